/* import_gguf.c - a GGUF file as a source: configuration, ids and tensors.
 *
 * Runs on import's thread; everything read belongs to the job. A key that changes what the model computes and that is
 * not understood is an error (experts, sliding windows, YaRN, partial rotary), and so is a tensor that the architecture
 * does not have, so that nothing is ever dropped silently. Keys are named in errors with the file's architecture in
 * front.
 */
#include "compress/import_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"

static const char *arch_key(const struct import_job *j, const char *rest, char out[96])
{
    snprintf(out, 96, "%s.%s", j->cfg.architecture, rest);
    return out;
}

static int get_u32(struct import_job *j, const char *rest, uint32_t min, uint32_t max, const uint32_t *def,
                   uint32_t *out, struct err *e)
{
    char key[96];
    uint64_t v = 0, d = def ? *def : 0;
    int r = gguf_get_u64(j->gguf, arch_key(j, rest, key), min, max, def ? &d : NULL, &v, e);
    if (!r)
        *out = (uint32_t)v;
    return r;
}

/* Float32 metadata as the shortest decimal that gives the same float32, so that 9.99999975e-06 becomes 1e-05 again. */
static double shortest(double v)
{
    char s[40];
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(s, sizeof s, "%.*g", digits, v);
        if (strtof(s, NULL) == (float)v)
            return strtod(s, NULL);
    }
    return v;
}

static int get_f64(struct import_job *j, const char *rest, double min, double max, const double *def, double *out,
                   struct err *e)
{
    char key[96];
    int r = gguf_get_f64(j->gguf, arch_key(j, rest, key), min, max, def, out, e);
    if (!r)
        *out = shortest(*out);
    return r;
}

static bool has(const struct import_job *j, const char *tensor)
{
    return gguf_tensor_find(j->gguf, tensor);
}

static int read_arch(struct import_job *j, struct err *e)
{
    struct gguf_str s = {0};
    int r = gguf_get_str(j->gguf, "general.architecture", true, &s, e);
    if (r)
        return r;
    bool llama = s.n == 5 && !memcmp(s.p, "llama", 5), qwen2 = s.n == 5 && !memcmp(s.p, "qwen2", 5);
    if (!llama && !qwen2)
        return err_set(e, -ENOTSUP, "\"general.architecture\" is %.*s; llama and qwen2 are supported",
                       s.n < 40 ? (int)s.n : 40, s.p);
    snprintf(j->cfg.architecture, sizeof j->cfg.architecture, "%s", llama ? "llama" : "qwen2");
    j->cfg.qkv_bias = qwen2 || has(j, "blk.0.attn_q.bias");
    j->cfg.o_bias = has(j, "blk.0.attn_output.bias");
    j->cfg.mlp_bias = has(j, "blk.0.ffn_gate.bias");
    if (llama && j->cfg.o_bias != j->cfg.qkv_bias)
        return err_set(e, -ENOTSUP, "tensor \"blk.0.attn_%s.bias\" is missing, though others have biases",
                       j->cfg.o_bias ? "q" : "output");
    if (qwen2 && (j->cfg.o_bias || j->cfg.mlp_bias))
        return err_set(e, -ENOTSUP, "tensor \"blk.0.%s.bias\" is not part of a qwen2 model",
                       j->cfg.o_bias ? "attn_output" : "ffn_gate");
    j->cfg.tied = !has(j, "output.weight");
    return 0;
}

static int read_shapes(struct import_job *j, struct err *e)
{
    struct model_config *c = &j->cfg;
    uint32_t heads = 0, kv = 0, ffn = 0, value_dim = 0;
    int r = get_u32(j, "block_count", 1, 1024, NULL, &c->n_layers, e);
    if (!r)
        r = get_u32(j, "context_length", 1, 1u << 24, NULL, &c->max_context, e);
    if (!r)
        r = get_u32(j, "embedding_length", 8, 1u << 17, NULL, &c->hidden, e);
    if (!r)
        r = get_u32(j, "feed_forward_length", 8, 1u << 20, NULL, &ffn, e);
    if (!r)
        r = get_u32(j, "attention.head_count", 1, 4096, NULL, &heads, e);
    if (!r)
        r = get_u32(j, "attention.head_count_kv", 1, 4096, &heads, &kv, e);
    if (r)
        return r;
    uint32_t dim = c->hidden / heads, rotary = 0;
    r = get_u32(j, "attention.key_length", 2, 1024, &dim, &c->head_dim, e);
    if (!r)
        r = get_u32(j, "attention.value_length", 2, 1024, &c->head_dim, &value_dim, e);
    if (!r)
        r = get_u32(j, "rope.dimension_count", 0, 1024, &c->head_dim, &rotary, e);
    if (r)
        return r;
    if (heads % kv)
        return err_set(e, -EINVAL, "%u attention heads cannot share %u key/value heads", heads, kv);
    if (value_dim != c->head_dim || rotary != c->head_dim || c->head_dim % 2)
        return err_set(e, -ENOTSUP,
                       "keys of %u, values of %u and a rotary part of %u: only equal, even lengths are supported",
                       c->head_dim, value_dim, rotary);
    const struct gguf_tensor *embed = gguf_tensor_find(j->gguf, "token_embd.weight");
    if (!embed || embed->ndim != 2 || embed->shape[0] > 1u << 24)
        return err_set(e, -EINVAL, "tensor \"token_embd.weight\" is missing or not a matrix");
    c->vocab = (uint32_t)embed->shape[0];
    c->layer = calloc(c->n_layers, sizeof *c->layer);
    if (!c->layer)
        return err_set(e, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < c->n_layers; i++)
        c->layer[i] = (struct model_layer_config){.n_heads = heads, .n_kv_heads = kv, .ffn = ffn};
    return 0;
}

static int read_rope_factors(struct import_job *j, const struct gguf_tensor *t, struct err *e)
{
    uint32_t n = j->cfg.head_dim / 2;
    if (t->ndim != 1 || t->shape[0] != n || t->type != GGML_F32)
        return err_set(e, -EINVAL, "tensor \"rope_freqs.weight\" must be %u elements of type F32", n);
    float *f = malloc(n * sizeof *f);
    if (!f)
        return err_set(e, -ENOMEM, "out of memory");
    int r = gguf_tensor_f32(t, 0, 1, f);
    if (!r)
        r = import_rope_of_factors(&j->cfg, f, n, e);
    free(f);
    return r;
}

static int read_rope(struct import_job *j, struct err *e)
{
    static const double theta = 10000, one = 1, eps = 1e-6;
    struct model_config *c = &j->cfg;
    struct gguf_str type = {0};
    char key[96];
    double norm_eps = 0, factor = 1;
    int r = get_f64(j, "rope.freq_base", 1, 1e12, &theta, &c->rope_theta, e);
    if (!r)
        r = get_f64(j, "attention.layer_norm_rms_epsilon", 0, 1, &eps, &norm_eps, e);
    if (!r)
        r = gguf_get_str(j->gguf, arch_key(j, "rope.scaling.type", key), false, &type, e);
    if (!r)
        r = get_f64(j, "rope.scale_linear", 1e-3, 1e6, &one, &factor, e);
    if (!r)
        r = get_f64(j, "rope.scaling.factor", 1e-3, 1e6, &factor, &factor, e);
    if (r)
        return r;
    c->norm_eps = (float)norm_eps;
    bool none = type.n == 4 && !memcmp(type.p, "none", 4), linear = type.n == 6 && !memcmp(type.p, "linear", 6);
    const struct gguf_tensor *freqs = gguf_tensor_find(j->gguf, "rope_freqs.weight");
    if (type.p && !none && !linear)
        return err_set(e, -ENOTSUP, "\"%s\" is %.*s; none and linear are supported, and llama3 by rope_freqs.weight",
                       key, type.n < 40 ? (int)type.n : 40, type.p);
    if (!none && factor != 1) {
        c->rope = ROPE_LINEAR;
        c->rope_factor = factor;
    }
    if (freqs && c->rope == ROPE_LINEAR)
        return err_set(e, -ENOTSUP, "both a linear RoPE scaling and rope_freqs.weight");
    return freqs ? read_rope_factors(j, freqs, e) : 0;
}

/* Keys that change the numbers and must be absent or without effect. */
static int refuse_others(struct import_job *j, struct err *e)
{
    static const uint32_t zero = 0;
    uint32_t v = 0;
    int r = get_u32(j, "expert_count", 0, UINT32_MAX, &zero, &v, e);
    if (!r && v)
        return err_set(e, -ENOTSUP, "\"%s.expert_count\" is %u; mixtures of experts are not supported",
                       j->cfg.architecture, v);
    if (!r)
        r = get_u32(j, "attention.sliding_window", 0, UINT32_MAX, &zero, &v, e);
    if (!r && v && v < j->cfg.max_context)
        return err_set(e, -ENOTSUP, "\"%s.attention.sliding_window\" is %u; sliding windows are not supported",
                       j->cfg.architecture, v);
    static const double one = 1;
    static const char *const scales[] = {"embedding_scale", "residual_scale", "attention.scale", "logit_scale"};
    double s = 0;
    for (size_t i = 0; !r && i < sizeof scales / sizeof *scales; i++) {
        r = get_f64(j, scales[i], -1e9, 1e9, &one, &s, e);
        if (!r && s != 1)
            return err_set(e, -ENOTSUP, "\"%s.%s\" is %g, which is not supported", j->cfg.architecture, scales[i], s);
    }
    return r;
}

static int read_id(struct import_job *j, const char *key, json_t **out, struct err *e)
{
    static const uint64_t none = UINT64_MAX;
    uint64_t v = 0;
    int r = gguf_get_u64(j->gguf, key, 0, UINT32_MAX, &none, &v, e);
    if (r || v == none || v >= j->cfg.vocab)
        return r; /* ids beyond the vocabulary mean "none" in files in the wild */
    *out = json_integer((json_int_t)v);
    return *out ? 0 : err_set(e, -ENOMEM, "out of memory");
}

static int read_ids(struct import_job *j, struct err *e)
{
    json_t *eot = NULL;
    int r = read_id(j, "tokenizer.ggml.bos_token_id", &j->bos, e);
    if (!r)
        r = read_id(j, "tokenizer.ggml.eos_token_id", &j->eos, e);
    if (!r)
        r = read_id(j, "tokenizer.ggml.padding_token_id", &j->pad, e);
    if (!r)
        r = read_id(j, "tokenizer.ggml.eot_token_id", &eot, e);
    if (!r && eot && j->eos && !json_equal(eot, j->eos)) { /* generation ends at either */
        j->eos_gen = json_pack("[O,O]", j->eos, eot);
        if (!j->eos_gen)
            r = err_set(e, -ENOMEM, "out of memory");
    }
    json_decref(eot);
    return r;
}

int import_gguf_open(struct import_job *j, struct err *e)
{
    int r = gguf_open(j->src, &j->gguf, e);
    if (r)
        return r;
    r = read_arch(j, e);
    if (!r)
        r = read_shapes(j, e);
    if (!r)
        r = read_rope(j, e);
    if (!r)
        r = refuse_others(j, e);
    if (!r)
        r = read_ids(j, e);
    if (r)
        return err_prefix(e, r, "%s", j->src);
    j->dtype = j->o->dtype == IMPORT_DTYPE_AUTO ? DT_BF16 : (enum dtype)j->o->dtype;
    return 0;
}

static int find_tensor(struct import_job *j, struct import_tensor *t, struct err *e)
{
    t->g = gguf_tensor_find(j->gguf, t->gguf);
    if (!t->g)
        return err_set(e, -EINVAL, "tensor \"%s\" is missing", t->gguf);
    if (t->g->ndim == t->ndim && t->g->shape[0] == t->shape[0] && (t->ndim == 1 || t->g->shape[1] == t->shape[1]))
        return 0;
    return err_set(e, -EINVAL, "tensor \"%s\" at byte %zu has another shape than [%llu%s%.0llu]", t->gguf, t->g->off,
                   (unsigned long long)t->shape[0], t->ndim == 2 ? ", " : "", (unsigned long long)t->shape[1]);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

int import_gguf_bind(struct import_job *j, struct err *e)
{
    int r = 0;
    const char **used = calloc(j->n_t + 1, sizeof *used);
    if (!used)
        return err_set(e, -ENOMEM, "out of memory");
    for (size_t i = 0; !r && i < j->n_t; i++) {
        r = find_tensor(j, &j->t[i], e);
        used[i] = j->t[i].gguf;
    }
    used[j->n_t] = "rope_freqs.weight";
    if (!r)
        qsort(used, j->n_t + 1, sizeof *used, by_text);
    for (size_t i = 0; !r && i < gguf_tensor_count(j->gguf); i++) {
        const char *name = gguf_tensor_at(j->gguf, i)->name;
        if (!bsearch(&name, used, j->n_t + 1, sizeof *used, by_text))
            r = err_set(e, -ENOTSUP, "tensor \"%s\" is not part of a %s model", name, j->cfg.architecture);
    }
    free(used);
    return r ? err_prefix(e, r, "%s", j->src) : 0;
}
