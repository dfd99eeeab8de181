/* import_config.c - config.json, generation_config.json and cpet.json of an imported model.
 *
 * Runs on import's thread. config.json is written from what was understood, not copied: every field that transformers
 * needs, in the spelling that its older and newer versions both read (rope_theta and rope_scaling). It is read back
 * through model/config.c before import goes on, so that a directory that import wrote is one that the server accepts.
 */
#include "compress/import_internal.h"

#include <string.h>
#include <stdlib.h>
#include <stdio.h>
#include <sys/stat.h>

#include "common/file.h"
#include "formats/json.h"

static json_t *rope_scaling(const struct model_config *c)
{
    if (c->rope == ROPE_LINEAR)
        return json_pack("{s:s,s:f}", "rope_type", "linear", "factor", c->rope_factor);
    if (c->rope == ROPE_LLAMA3)
        return json_pack("{s:s,s:f,s:f,s:f,s:I}", "rope_type", "llama3", "factor", c->rope_factor, "low_freq_factor",
                         c->rope_low, "high_freq_factor", c->rope_high, "original_max_position_embeddings",
                         (json_int_t)c->rope_original);
    return json_null();
}

static const char *torch_name(enum dtype t)
{
    return t == DT_F32 ? "float32" : t == DT_F16 ? "float16" : "bfloat16";
}

/* A float32 as the shortest decimal that gives it again: 1e-05, not 9.9999997e-06. */
static double shortest(float v)
{
    char s[40];
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(s, sizeof s, "%.*g", digits, (double)v);
        if (strtof(s, NULL) == v)
            break;
    }
    return strtod(s, NULL);
}

static json_t *make_config(const struct import_job *j)
{
    const struct model_config *c = &j->cfg;
    const struct model_layer_config *l = &c->layer[0];
    bool llama = !strcmp(c->architecture, "llama");
    json_t *o = json_pack("{s:[s],s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "architectures",
                          llama ? "LlamaForCausalLM" : "Qwen2ForCausalLM", "model_type", c->architecture, "vocab_size",
                          (json_int_t)c->vocab, "hidden_size", (json_int_t)c->hidden, "intermediate_size",
                          (json_int_t)l->ffn, "num_hidden_layers", (json_int_t)c->n_layers, "num_attention_heads",
                          (json_int_t)l->n_heads, "num_key_value_heads", (json_int_t)l->n_kv_heads, "head_dim",
                          (json_int_t)c->head_dim, "max_position_embeddings", (json_int_t)c->max_context);
    json_t *rest = json_pack("{s:s,s:f,s:f,s:o,s:b,s:O?,s:O?,s:O?,s:s,s:b}", "hidden_act", "silu", "rms_norm_eps",
                             shortest(c->norm_eps), "rope_theta", c->rope_theta, "rope_scaling", rope_scaling(c),
                             "tie_word_embeddings", (int)c->tied, "bos_token_id", j->bos, "eos_token_id", j->eos,
                             "pad_token_id", j->pad, "torch_dtype", torch_name(j->dtype), "use_cache", 1);
    int bad = !o || !rest || json_object_update(o, rest);
    json_decref(rest);
    if (!bad && llama)
        bad = json_object_set_new(o, "attention_bias", json_boolean(c->qkv_bias)) ||
              json_object_set_new(o, "mlp_bias", json_boolean(c->mlp_bias));
    if (!bad && !llama)
        bad = json_object_set_new(o, "use_sliding_window", json_false());
    if (!bad)
        return o;
    json_decref(o);
    return NULL;
}

/* Writes tmp/name unless it is there, and gives up v. */
static int put(const struct import_job *j, const char *name, json_t *v, struct err *e)
{
    char *path = path_join(j->tmp, name);
    struct stat st;
    int r = 0;
    if (!v || !path)
        r = err_set(e, -ENOMEM, "out of memory");
    else if (stat(path, &st))
        r = json_write_file(path, v, e);
    json_decref(v);
    free(path);
    return r;
}

int import_config_write(struct import_job *j, struct err *e)
{
    struct model_config check = {0};
    int r = put(j, "config.json", make_config(j), e);
    if (!r)
        r = model_config_read(j->tmp, &check, e);
    model_config_free(&check);
    json_t *eos = j->eos_gen ? j->eos_gen : j->eos;
    if (!r)
        r = put(j, "generation_config.json",
                json_pack("{s:O?,s:O?,s:O?}", "bos_token_id", j->bos, "eos_token_id", eos, "pad_token_id", j->pad), e);
    snprintf(j->res.architecture, sizeof j->res.architecture, "%s", j->cfg.architecture);
    return r;
}

/* How many of the written tensors came from each type, and which type holds most of the elements. */
static json_t *count_types(const struct import_job *j, const char **most)
{
    json_t *o = json_object(), *sums = json_object();
    json_int_t best = -1;
    for (size_t i = 0; o && sums && i < j->n_t; i++) {
        const struct import_tensor *t = &j->t[i];
        const char *type = t->g ? gguf_type_name(t->g->type) : dtype_name(t->s->type);
        json_int_t n = (json_int_t)t->shape[0] * (t->ndim == 2 ? (json_int_t)t->shape[1] : 1);
        json_int_t count = json_integer_value(json_object_get(o, type)) + 1;
        json_int_t sum = json_integer_value(json_object_get(sums, type)) + n;
        json_object_set_new(o, type, json_integer(count));
        json_object_set_new(sums, type, json_integer(sum));
        if (sum > best) {
            best = sum;
            *most = type;
        }
    }
    json_decref(sums);
    return o;
}

static json_t *make_source(struct import_job *j)
{
    const char *most = "", *slash = strrchr(j->src, '/');
    json_t *types = count_types(j, &most);
    json_int_t bytes = 0;
    for (size_t i = 0; i < j->n_t; i++)
        bytes += (json_int_t)(j->t[i].g ? j->t[i].g->bytes : j->t[i].s->bytes);
    bool quantized = most[0] == 'Q';
    snprintf(j->res.weights, sizeof j->res.weights, "%s%s", quantized ? "dequantized " : "original",
             quantized ? most : "");
    return json_pack("{s:s,s:s,s:I,s:s,s:s,s:o}", "format", j->gguf ? "gguf" : "huggingface", "file",
                     slash ? slash + 1 : j->src, "bytes", bytes, "weights", j->res.weights, "written_as",
                     dtype_name(j->dtype), "types", types);
}

int import_lineage_write(struct import_job *j, struct err *e)
{
    char weights[HASH_HEX], tokenizer[HASH_HEX];
    hash_hex(&j->res.weights_hash, weights);
    hash_hex(&j->res.tokenizer_hash, tokenizer);
    json_t *lineage = json_pack("{s:s,s:s*,s:s}", "architecture", j->cfg.architecture, "tokenizer",
                                j->res.has_tokenizer ? tokenizer : NULL, "weights", weights);
    json_t *o = json_pack("{s:s,s:i,s:o,s:o}", "format", "cpet-backbone", "version", 1, "lineage", lineage, "source",
                          make_source(j));
    return put(j, "cpet.json", o, e);
}
