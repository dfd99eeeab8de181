/* test_import.c - import of small models made in the test: names, the row permutation, RoPE scaling, types, refusals,
 * and that a failed import leaves the directory as it was. */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/file.h"
#include "common/num.h"
#include "compress/import.h"
#include "compress/import_internal.h"
#include "formats/json.h"
#include "tests/unit/formats/gguf_build.h"

enum { HIDDEN = 32, HEADS = 2, KV = 1, DIM = 16, FFN = 64, VOCAB = 260, CONTEXT = 64 };

static char root[64];

static char *at(const char *name)
{
    return path_join(root, name);
}

static void remove_tree(const char *path)
{
    DIR *d = opendir(path);
    for (struct dirent *f; d && (f = readdir(d));) {
        if (!strcmp(f->d_name, ".") || !strcmp(f->d_name, ".."))
            continue;
        char *p = path_join(path, f->d_name);
        if (unlink(p))
            remove_tree(p);
        free(p);
    }
    if (d)
        closedir(d);
    rmdir(path);
}

/* ---- a Hugging Face directory ---- */

struct hf {
    bool llama, bias, tied, sharded;
    enum dtype dtype;
    const char *config_more;  /* members added to config.json, with a comma in front */
    const char *drop, *extra; /* a tensor left out, one too many */
    const char *bad_shape;    /* a tensor one row too long */
    const char *nan;          /* a tensor with a NaN at its element 5 */
};

struct hf_names {
    char name[64][64];
    struct st_out t[64];
    size_t n;
    float *data;
};

static int fill_hf(void *ctx, size_t off, size_t n, void *dst)
{
    const struct st_out *t = ctx;
    size_t esz = dtype_size(t->type);
    for (size_t i = 0; i < n / esz; i++) {
        size_t k = off / esz + i;
        float x = sinf((float)k * 0.37f + (float)strlen(t->name)) * 0.5f;
        if (t->data && k == 5)
            x = NAN;
        if (dtype_of_f32(t->type, &x, 1, (char *)dst + i * esz))
            memset((char *)dst + i * esz, 1, esz);
    }
    return 0;
}

static void add_hf(struct hf_names *l, const struct hf *h, const char *name, uint64_t d0, uint64_t d1)
{
    if (h->drop && !strcmp(h->drop, name))
        return;
    struct st_out *t = &l->t[l->n];
    snprintf(l->name[l->n], sizeof l->name[0], "%s", name);
    *t = (struct st_out){
        .name = l->name[l->n], .type = h->dtype, .ndim = d1 ? 2 : 1, .shape = {d0, d1}, .fill = fill_hf, .ctx = t};
    if (h->bad_shape && !strcmp(h->bad_shape, name))
        t->shape[0]++;
    l->n++;
}

static void list_hf(struct hf_names *l, const struct hf *h)
{
    static const struct {
        const char *name;
        int out, in, bias; /* bias 2: with Llama only */
    } linears[] = {{"self_attn.q_proj", HEADS * DIM, HIDDEN, 1},
                   {"self_attn.k_proj", KV * DIM, HIDDEN, 1},
                   {"self_attn.v_proj", KV * DIM, HIDDEN, 1},
                   {"self_attn.o_proj", HIDDEN, HEADS * DIM, 2},
                   {"mlp.gate_proj", FFN, HIDDEN, 0},
                   {"mlp.up_proj", FFN, HIDDEN, 0},
                   {"mlp.down_proj", HIDDEN, FFN, 0}};
    char name[96];
    l->n = 0;
    add_hf(l, h, "model.embed_tokens.weight", VOCAB, HIDDEN);
    add_hf(l, h, "model.norm.weight", HIDDEN, 0);
    if (!h->tied)
        add_hf(l, h, "lm_head.weight", VOCAB, HIDDEN);
    add_hf(l, h, "model.layers.0.input_layernorm.weight", HIDDEN, 0);
    add_hf(l, h, "model.layers.0.post_attention_layernorm.weight", HIDDEN, 0);
    for (size_t i = 0; i < sizeof linears / sizeof *linears; i++) {
        snprintf(name, sizeof name, "model.layers.0.%s.weight", linears[i].name);
        add_hf(l, h, name, (uint64_t)linears[i].out, (uint64_t)linears[i].in);
        snprintf(name, sizeof name, "model.layers.0.%s.bias", linears[i].name);
        if (h->bias && (linears[i].bias == 1 || (linears[i].bias == 2 && h->llama)))
            add_hf(l, h, name, (uint64_t)linears[i].out, 0);
    }
    if (h->extra)
        add_hf(l, h, h->extra, 4, 0);
}

static void put(const char *dir, const char *name, const char *text)
{
    struct err e = {0};
    char *p = path_join(dir, name);
    assert_int_equal(file_write_atomic(p, text, strlen(text), 0644, &e), 0);
    free(p);
}

static void write_shards(const char *dir, struct hf_names *l)
{
    struct err e = {0};
    struct buf b = {0};
    size_t cut = l->n / 2;
    char *one = path_join(dir, "model-00001-of-00002.safetensors"),
         *two = path_join(dir, "model-00002-of-00002.safetensors");
    assert_int_equal(st_write(one, l->t, cut, NULL, &e), 0);
    assert_int_equal(st_write(two, l->t + cut, l->n - cut, NULL, &e), 0);
    buf_puts(&b, "{\"metadata\":{\"total_size\":1},\"weight_map\":{");
    for (size_t i = 0; i < l->n; i++)
        buf_printf(&b, "%s\"%s\":\"model-0000%d-of-00002.safetensors\"", i ? "," : "", l->name[i], i < cut ? 1 : 2);
    buf_puts(&b, "}}");
    put(dir, "model.safetensors.index.json", b.data);
    buf_free(&b);
    free(one);
    free(two);
}

static char *make_hf(const char *name, const struct hf *h)
{
    struct err e = {0};
    char *dir = at(name);
    remove_tree(dir);
    assert_int_equal(dir_make(dir, &e), 0);
    struct hf_names *l = calloc(1, sizeof *l);
    list_hf(l, h);
    for (size_t i = 0; i < l->n; i++) {
        if (h->nan && !strcmp(h->nan, l->name[i])) { /* data marks it; fill is what is used */
            struct st_out *copy = malloc(sizeof *copy);
            *copy = l->t[i];
            copy->data = "";
            l->t[i].ctx = copy;
        }
    }
    if (h->sharded) {
        write_shards(dir, l);
    } else {
        char *path = path_join(dir, "model.safetensors");
        assert_int_equal(st_write(path, l->t, l->n, NULL, &e), 0);
        free(path);
    }
    for (size_t i = 0; i < l->n; i++) {
        if (l->t[i].ctx != &l->t[i])
            free(l->t[i].ctx);
    }
    free(l);
    char config[1200];
    snprintf(config, sizeof config,
             "{\"model_type\":\"%s\",\"hidden_size\":%d,\"intermediate_size\":%d,\"num_hidden_layers\":1,\"num_"
             "attention_heads\":%d,"
             "\"num_key_value_heads\":%d,\"vocab_size\":%d,\"max_position_embeddings\":%d,\"rms_norm_eps\":1e-5,"
             "\"tie_word_embeddings\":%s,\"attention_bias\":%s,\"bos_token_id\":1,\"eos_token_id\":[2,3]%s}",
             h->llama ? "llama" : "qwen2", HIDDEN, FFN, HEADS, KV, VOCAB, CONTEXT, h->tied ? "true" : "false",
             h->bias ? "true" : "false", h->config_more ? h->config_more : "");
    put(dir, "config.json", config);
    return dir;
}

static int run(const char *src, const char *dst, int dtype, bool force, struct import_result *res, struct err *e)
{
    struct import_opts o = {.src = src, .dir = dst, .dtype = dtype, .force = force};
    memset(e, 0, sizeof *e);
    return import_run(&o, res, e);
}

/* Nothing but what is named may be left in root; so no temporary directory either. */
static void only(const char *a, const char *b)
{
    DIR *d = opendir(root);
    for (struct dirent *f; (f = readdir(d));) {
        if (f->d_name[0] != '.' && strcmp(f->d_name, a) && strcmp(f->d_name, b))
            fail_msg("%s was left behind", f->d_name);
    }
    closedir(d);
}

static void test_hf_round_trip(void **s)
{
    (void)s;
    static const struct hf kinds[] = {
        {.llama = true, .bias = true, .dtype = DT_F32},
        {.llama = true, .bias = true, .dtype = DT_F32, .sharded = true},
        {.bias = true, .tied = true, .dtype = DT_BF16, .extra = "model.layers.0.self_attn.rotary_emb.inv_freq"},
        {.llama = true, .dtype = DT_F16, .tied = true, .extra = "lm_head.weight"},
        {.llama = true, .dtype = DT_F64, .tied = true},
    };
    char *dst = at("out");
    struct import_result res[5];
    struct err e = {0};
    for (size_t i = 0; i < 5; i++) {
        char *src = make_hf("src", &kinds[i]);
        put(src, "LICENSE", "free");
        if (run(src, dst, IMPORT_DTYPE_AUTO, false, &res[i], &e))
            fail_msg("kind %zu: %s", i, e.msg);
        only("src", "out");
        struct st_file *a = NULL, *b = NULL;
        assert_int_equal(st_open_dir(src, &a, &e), 0);
        assert_int_equal(st_open_dir(dst, &b, &e), 0);
        enum dtype want = kinds[i].dtype == DT_F64 ? DT_BF16 : kinds[i].dtype;
        for (size_t k = 0; k < st_count(b); k++) {
            const struct st_tensor *t = st_at(b, k), *from = st_find(a, t->name);
            assert_int_equal(t->type, want);
            assert_memory_equal(t->shape, from->shape, sizeof t->shape);
            if (want == kinds[i].dtype)
                assert_memory_equal(t->data, from->data, t->bytes);
        }
        st_close(a);
        st_close(b);
        struct model_config c = {0};
        assert_int_equal(model_config_read(dst, &c, &e), 0);
        assert_true(c.tied == kinds[i].tied && c.qkv_bias == kinds[i].bias && c.head_dim == DIM && c.norm_eps == 1e-5f);
        model_config_free(&c);
        remove_tree(src);
        remove_tree(dst);
        free(src);
    }
    assert_int_equal(res[0].n_tensors, 16);
    assert_true(hash_equal(&res[0].weights_hash, &res[1].weights_hash));
    assert_false(hash_equal(&res[0].weights_hash, &res[2].weights_hash));
    assert_string_equal(res[0].weights, "original");
    assert_false(res[0].has_tokenizer);
    free(dst);
}

static void test_lineage(void **s)
{
    (void)s;
    char *src = make_hf("src", &(struct hf){.llama = true, .dtype = DT_F32, .tied = true}), *dst = at("out");
    struct import_result res;
    struct err e = {0};
    put(src, "tokenizer.json", "{}");
    put(src, "generation_config.json", "{\"temperature\":0.6}");
    assert_int_equal(run(src, dst, DT_BF16, false, &res, &e), 0);
    assert_true(res.has_tokenizer);
    json_t *o = NULL, *g = NULL;
    char *path = path_join(dst, "cpet.json"), *gen = path_join(dst, "generation_config.json");
    assert_int_equal(json_read_file(path, 10000, &o, &e), 0);
    assert_int_equal(json_read_file(gen, 10000, &g, &e), 0);
    assert_true(json_real_value(json_object_get(g, "temperature")) == 0.6);
    assert_string_equal(json_string_value(json_object_get(o, "format")), "cpet-backbone");
    json_t *l = json_object_get(o, "lineage");
    struct hash h, want;
    assert_int_equal(hash_parse(json_string_value(json_object_get(l, "tokenizer")), &h), 0);
    hash_of("{}", 2, &want);
    assert_true(hash_equal(&h, &want));
    /* The documented hash, over the written file. */
    struct st_file *f = NULL;
    struct hash_state hs;
    assert_int_equal(st_open_dir(dst, &f, &e), 0);
    hash_init(&hs);
    for (size_t i = 0; i < st_count(f); i++) {
        const struct st_tensor *t = st_at(f, i);
        if (i)
            assert_true(strcmp(st_at(f, i - 1)->name, t->name) < 0);
        uint32_t nd = t->ndim;
        hash_update(&hs, t->name, strlen(t->name) + 1);
        hash_update(&hs, "BF16", 5);
        hash_update(&hs, &nd, 4);
        hash_update(&hs, t->shape, 8 * nd);
        hash_update(&hs, t->data, t->bytes);
    }
    hash_final(&hs, &want);
    assert_int_equal(hash_parse(json_string_value(json_object_get(l, "weights")), &h), 0);
    assert_true(hash_equal(&h, &want));
    assert_true(hash_equal(&h, &res.weights_hash));
    st_close(f);
    json_decref(o);
    json_decref(g);
    free(path);
    free(gen);
    remove_tree(src);
    remove_tree(dst);
    free(src);
    free(dst);
}

static void expect(const struct hf *h, int dtype, const char *says)
{
    struct err e = {0};
    char *src = make_hf("src", h), *dst = at("out");
    int r = run(src, dst, dtype, false, NULL, &e);
    if (r >= 0 || !strstr(e.msg, says))
        fail_msg("gave %d \"%s\", expected \"%s\"", r, e.msg, says);
    only("src", "");
    remove_tree(src);
    free(src);
    free(dst);
}

static void test_hf_refused(void **s)
{
    (void)s;
    struct hf h = {.llama = true, .dtype = DT_F32};
    h.drop = "model.layers.0.mlp.up_proj.weight";
    expect(&h, -1, "tensor \"model.layers.0.mlp.up_proj.weight\" is missing");
    h.drop = NULL;
    h.extra = "model.layers.1.mlp.up_proj.weight";
    expect(&h, -1, "is not part of a llama model");
    h.extra = "a.name.longer.than.any.tensor.of.these.architectures.xxxxxxxxxx";
    expect(&h, -1, "is not part of a llama model");
    h.extra = NULL;
    h.bad_shape = "model.norm.weight";
    expect(&h, -1, "tensor \"model.norm.weight\" at byte");
    h.bad_shape = NULL;
    h.nan = "model.layers.0.mlp.up_proj.weight";
    expect(&h, -1, "tensor \"model.layers.0.mlp.up_proj.weight\": element 5 is");
    h.nan = NULL;
    h.config_more = ",\"quantization_config\":{}";
    expect(&h, -1, "quantized already");
    h.config_more = ",\"rope_scaling\":{\"rope_type\":\"yarn\"}";
    expect(&h, -1, "yarn");
    h.config_more = ",\"pad_token_id\":260";
    expect(&h, -1, "\"pad_token_id\" must be a token id below 260");
    h.config_more = ",\"pad_token_id\":[1]";
    expect(&h, -1, "\"pad_token_id\" must be");
    h.config_more = ",\"pad_token_id\":1,\"pad_token_id\":1";
    expect(&h, -1, "not valid JSON");
    h.config_more = NULL;
    expect(&h, DT_I8, "f32, f16 or bf16");
    h.dtype = DT_I8;
    expect(&h, DT_BF16, "is of type I8");
}

static void test_hf_files_refused(void **s)
{
    (void)s;
    struct err e = {0};
    char *src = make_hf("src", &(struct hf){.llama = true, .dtype = DT_F32}), *dst = at("out");
    put(src, "tokenizer.model", "x");
    assert_int_equal(run(src, dst, -1, false, NULL, &e), -ENOTSUP);
    assert_non_null(strstr(e.msg, "tokenizer.model but no tokenizer.json"));
    char *weights = path_join(src, "model.safetensors");
    assert_int_equal(run(weights, dst, -1, false, NULL, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "give the directory"));
    assert_int_equal(truncate(weights, 3000), 0);
    assert_int_equal(run(src, dst, -1, false, NULL, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "model.safetensors: "));
    unlink(weights);
    assert_int_equal(run(src, dst, -1, false, NULL, &e), -ENOENT);
    put(src, "pytorch_model.bin", "\x80\x02.");
    assert_int_equal(run(src, dst, -1, false, NULL, &e), -ENOTSUP);
    assert_non_null(strstr(e.msg, "pytorch_model.bin: pickle files are not read"));
    assert_int_equal(run("/nonexistent", dst, -1, false, NULL, &e), -ENOENT);
    only("src", "");
    remove_tree(src);
    free(weights);
    free(src);
    free(dst);
}

static void test_existing_directory(void **s)
{
    (void)s;
    struct err e = {0};
    struct stat st;
    char *src = make_hf("src", &(struct hf){.llama = true, .dtype = DT_F32}), *dst = at("out///"), *plain = at("out");
    assert_int_equal(dir_make(plain, &e), 0);
    assert_int_equal(run(src, dst, -1, false, NULL, &e), 0); /* an empty one is fine */
    assert_int_equal(run(src, dst, -1, false, NULL, &e), -EEXIST);
    put(plain, "notes.txt", "mine");
    char *cpet_dir = path_join(plain, "cpet"), *sites = path_join(cpet_dir, "sites.safetensors");
    assert_int_equal(dir_make(cpet_dir, &e), 0);
    put(cpet_dir, "sites.safetensors", "of other weights");
    put(plain, "recovery.safetensors", "of other weights");
    assert_int_equal(run(src, dst, DT_BF16, true, NULL, &e), 0);
    assert_int_not_equal(stat(sites, &st), 0);
    assert_int_equal(rmdir(cpet_dir), 0);
    free(sites);
    sites = path_join(plain, "recovery.safetensors");
    assert_int_not_equal(stat(sites, &st), 0);
    free(sites);
    free(cpet_dir);
    only("src", "out");
    char *notes = path_join(plain, "notes.txt"), *cpet = path_join(plain, "cpet.json");
    assert_int_equal(stat(notes, &st), 0);
    assert_int_equal(stat(cpet, &st), 0);
    struct st_file *f = NULL;
    assert_int_equal(st_open_dir(plain, &f, &e), 0);
    assert_int_equal(st_at(f, 0)->type, DT_BF16);
    st_close(f);
    assert_int_equal(run(src, notes, -1, true, NULL, &e), -ENOTDIR);
    remove_tree(src);
    remove_tree(plain);
    free(src);
    free(dst);
    free(plain);
    free(notes);
    free(cpet);
}

/* ---- GGUF ---- */

struct gg {
    const char *arch;
    bool bias, head;
    const float *freqs;          /* DIM / 2 of them */
    void (*keys)(struct buf *b); /* more keys */
    uint64_t n_keys;
    const char *drop, *extra;
    uint64_t vocab;
};

struct gg_tensor {
    const char *name;
    uint32_t type;
    uint64_t d0, d1; /* d0: innermost */
};

static size_t gg_bytes(const struct gg_tensor *t)
{
    size_t n = (size_t)(t->d0 * (t->d1 ? t->d1 : 1));
    return t->type == GGML_Q8_0 ? n / 32 * 34 : 4 * n;
}

/* Values of tensor t: row r, column c -> r + c / 64 for f32, so that permuted rows show. */
static void gg_data(struct buf *b, const struct gg_tensor *t, const struct gg *g)
{
    if (!strcmp(t->name, "rope_freqs.weight")) {
        for (int i = 0; i < DIM / 2; i++)
            gb_int(b, f32_bits(g->freqs[i]), 4);
        return;
    }
    uint64_t rows = t->d1 ? t->d1 : t->d0, cols = t->d1 ? t->d0 : 1;
    for (uint64_t r = 0; r < rows; r++) {
        for (uint64_t c = 0; c < cols; c++) {
            if (t->type == GGML_Q8_0 && c % 32 == 0)
                gb_int(b, 0x3C00, 2);
            if (t->type == GGML_Q8_0)
                gb_int(b, (r + c) % 100, 1);
            else
                gb_int(b, f32_bits((float)r + (float)c / 64), 4);
        }
    }
}

static size_t gg_list(struct gg_tensor *l, const struct gg *g)
{
    size_t n = 0;
    static const struct gg_tensor all[] = {
        {"token_embd.weight", GGML_Q8_0, HIDDEN, VOCAB},
        {"output_norm.weight", GGML_F32, HIDDEN, 0},
        {"blk.0.attn_norm.weight", GGML_F32, HIDDEN, 0},
        {"blk.0.ffn_norm.weight", GGML_F32, HIDDEN, 0},
        {"blk.0.attn_q.weight", GGML_F32, HIDDEN, HEADS * DIM},
        {"blk.0.attn_k.weight", GGML_F32, HIDDEN, KV * DIM},
        {"blk.0.attn_v.weight", GGML_F32, HIDDEN, KV * DIM},
        {"blk.0.attn_output.weight", GGML_F32, HEADS * DIM, HIDDEN},
        {"blk.0.ffn_gate.weight", GGML_Q8_0, HIDDEN, FFN},
        {"blk.0.ffn_up.weight", GGML_Q8_0, HIDDEN, FFN},
        {"blk.0.ffn_down.weight", GGML_Q8_0, FFN, HIDDEN},
    };
    static const struct gg_tensor biases[] = {{"blk.0.attn_q.bias", GGML_F32, HEADS * DIM, 0},
                                              {"blk.0.attn_k.bias", GGML_F32, KV * DIM, 0},
                                              {"blk.0.attn_v.bias", GGML_F32, KV * DIM, 0},
                                              {"blk.0.attn_output.bias", GGML_F32, HIDDEN, 0}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (!g->drop || strcmp(g->drop, all[i].name))
            l[n++] = all[i];
    }
    for (size_t i = 0; g->bias && i < (g->arch[0] == 'l' ? 4 : 3); i++) {
        if (!g->drop || strcmp(g->drop, biases[i].name))
            l[n++] = biases[i];
    }
    if (g->head)
        l[n++] = (struct gg_tensor){"output.weight", GGML_F32, HIDDEN, VOCAB};
    if (g->freqs)
        l[n++] = (struct gg_tensor){"rope_freqs.weight", GGML_F32, DIM / 2, 0};
    if (g->extra)
        l[n++] = (struct gg_tensor){g->extra, GGML_F32, 4, 0};
    return n;
}

static void gg_u32(struct buf *b, const struct gg *g, const char *rest, uint32_t v)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", g->arch, rest);
    gb_u32(b, key, v);
}

/* A byte-level vocabulary of 256 characters, one merge and three special tokens. */
static uint64_t gg_tokenizer(struct buf *b)
{
    gb_text(b, "tokenizer.ggml.model", "gpt2");
    gb_text(b, "tokenizer.ggml.pre", "smollm");
    gb_array(b, "tokenizer.ggml.tokens", GGUF_STR, VOCAB);
    gb_str(b, "<unk>");
    gb_str(b, "<s>");
    gb_str(b, "</s>");
    for (uint32_t c = 0, n = 0; c < 256; c++) { /* GPT-2's printable stand-ins for bytes */
        bool shown = (c >= 33 && c <= 126) || (c >= 161 && c <= 172) || c >= 174;
        char s[5] = {0};
        uint32_t cp = shown ? c : 256 + n++;
        s[0] = (char)cp;
        if (cp >= 0x80) {
            s[0] = (char)(0xC0 | cp >> 6);
            s[1] = (char)(0x80 | (cp & 63));
        }
        gb_str(b, s);
    }
    gb_str(b, "ab");
    gb_array(b, "tokenizer.ggml.token_type", GGUF_I32, VOCAB);
    for (int i = 0; i < VOCAB; i++)
        gb_int(b, i < 3 ? 3 : 1, 4);
    gb_array(b, "tokenizer.ggml.merges", GGUF_STR, 1);
    gb_str(b, "a b");
    gb_u32(b, "tokenizer.ggml.bos_token_id", 1);
    gb_u32(b, "tokenizer.ggml.eos_token_id", 2);
    gb_u32(b, "tokenizer.ggml.eot_token_id", 0);
    gb_u32(b, "tokenizer.ggml.padding_token_id", 4000000000u);
    gb_text(b, "tokenizer.chat_template", "{{ messages[0]['content'] }}");
    return 10;
}

static char *make_gg(const struct gg *g)
{
    struct gg_tensor l[32];
    size_t n = gg_list(l, g), off = 0;
    struct buf keys = {0}, b = {0};
    gb_text(&keys, "general.architecture", g->arch);
    gg_u32(&keys, g, "block_count", 1);
    gg_u32(&keys, g, "context_length", CONTEXT);
    gg_u32(&keys, g, "embedding_length", HIDDEN);
    gg_u32(&keys, g, "feed_forward_length", FFN);
    gg_u32(&keys, g, "attention.head_count", HEADS);
    gg_u32(&keys, g, "attention.head_count_kv", KV);
    char key[96];
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", g->arch);
    gb_f32(&keys, key, 1e-5f);
    uint64_t n_keys = 8 + gg_tokenizer(&keys) + g->n_keys;
    if (g->keys)
        g->keys(&keys);
    gb_head(&b, 3, n, n_keys);
    buf_append(&b, keys.data, keys.len);
    for (size_t i = 0; i < n; i++) {
        gb_tensor(&b, l[i].name, l[i].type, l[i].d0, l[i].d1, off);
        off += (gg_bytes(&l[i]) + 31) / 32 * 32;
    }
    for (size_t i = 0; i < n; i++) {
        gb_align(&b, 32);
        gg_data(&b, &l[i], g);
    }
    char *path = at("src.gguf");
    struct err e = {0};
    assert_int_equal(file_write_atomic(path, b.data, b.len, 0644, &e), 0);
    buf_free(&b);
    buf_free(&keys);
    return path;
}

static float value(const struct st_file *f, const char *name, size_t row, size_t col)
{
    const struct st_tensor *t = st_find(f, name);
    assert_non_null(t);
    float x = 0;
    size_t i = t->ndim == 2 ? row * (size_t)t->shape[1] + col : row;
    assert_int_equal(dtype_to_f32(t->type, t->data + i * dtype_size(t->type), 1, &x), 0);
    return x;
}

static void test_gguf(void **s)
{
    (void)s;
    static const struct gg kinds[] = {
        {.arch = "llama"}, {.arch = "llama", .bias = true, .head = true}, {.arch = "qwen2", .bias = true}};
    for (size_t i = 0; i < 3; i++) {
        struct err e = {0};
        struct import_result res;
        bool llama = kinds[i].arch[0] == 'l';
        char *src = make_gg(&kinds[i]), *dst = at("out");
        if (run(src, dst, DT_F32, false, &res, &e))
            fail_msg("%s", e.msg);
        assert_string_equal(res.weights, "dequantized Q8_0");
        assert_true(res.has_tokenizer);
        struct st_file *f = NULL;
        assert_int_equal(st_open_dir(dst, &f, &e), 0);
        for (size_t r = 0; r < HEADS * DIM; r++) {
            size_t in = r % DIM, kept = llama ? r - in + in % (DIM / 2) * 2 + in / (DIM / 2) : r;
            assert_true(value(f, "model.layers.0.self_attn.q_proj.weight", r, 3) == (float)kept + 3.0f / 64);
            if (kinds[i].bias)
                assert_true(value(f, "model.layers.0.self_attn.q_proj.bias", r, 0) == (float)kept);
            assert_true(value(f, "model.layers.0.self_attn.o_proj.weight", r, 1) == (float)r + 1.0f / 64);
        }
        assert_true(value(f, "model.layers.0.self_attn.k_proj.weight", 1, 0) == (llama ? 2 : 1));
        assert_true(value(f, "model.layers.0.self_attn.v_proj.weight", 1, 0) == 1);
        assert_true(value(f, "model.embed_tokens.weight", 2, 5) == 7);
        assert_true(!st_find(f, "lm_head.weight") == !kinds[i].head);
        st_close(f);
        struct model_config c = {0};
        assert_int_equal(model_config_read(dst, &c, &e), 0);
        assert_true(c.norm_eps == 1e-5f && c.rope == ROPE_DEFAULT && c.rope_theta == 10000 && c.tied == !kinds[i].head);
        model_config_free(&c);
        json_t *g = NULL;
        char *gen = path_join(dst, "generation_config.json");
        assert_int_equal(json_read_file(gen, 1000, &g, &e), 0);
        assert_int_equal(json_array_size(json_object_get(g, "eos_token_id")), 2);
        assert_true(json_is_null(json_object_get(g, "pad_token_id")));
        json_decref(g);
        free(gen);
        only("src.gguf", "out");
        remove_tree(dst);
        unlink(src);
        free(src);
        free(dst);
    }
}

static void expect_gg(const struct gg *g, const char *says)
{
    struct err e = {0};
    char *src = make_gg(g), *dst = at("out");
    int r = run(src, dst, IMPORT_DTYPE_AUTO, false, NULL, &e);
    if (r >= 0 || !strstr(e.msg, says) || !strstr(e.msg, "src.gguf"))
        fail_msg("gave %d \"%s\", expected \"%s\"", r, e.msg, says);
    only("src.gguf", "");
    unlink(src);
    free(src);
    free(dst);
}

static void key_experts(struct buf *b)
{
    gb_u32(b, "llama.expert_count", 8);
}

static void key_window(struct buf *b)
{
    gb_u32(b, "llama.attention.sliding_window", 16);
}

static void key_yarn(struct buf *b)
{
    gb_text(b, "llama.rope.scaling.type", "yarn");
}

static void key_rotary(struct buf *b)
{
    gb_u32(b, "llama.rope.dimension_count", DIM / 2);
}

static void key_scale(struct buf *b)
{
    gb_f32(b, "llama.logit_scale", 2);
}

static void key_linear(struct buf *b)
{
    gb_text(b, "llama.rope.scaling.type", "linear");
    gb_f32(b, "llama.rope.scaling.factor", 4);
}

static void key_theta(struct buf *b)
{
    gb_text(b, "llama.rope.freq_base", "x");
}

static void test_gguf_refused(void **s)
{
    (void)s;
    float freqs[DIM / 2] = {1, 1, 1, 1, 1, 2, 3, 8};
    expect_gg(&(struct gg){.arch = "gemma"}, "\"general.architecture\" is gemma");
    expect_gg(&(struct gg){.arch = "llama", .drop = "blk.0.ffn_up.weight"}, "\"blk.0.ffn_up.weight\" is missing");
    expect_gg(&(struct gg){.arch = "llama", .drop = "token_embd.weight"}, "\"token_embd.weight\" is missing");
    expect_gg(&(struct gg){.arch = "llama", .bias = true, .drop = "blk.0.attn_output.bias"}, "blk.0.attn_output.bias");
    expect_gg(&(struct gg){.arch = "qwen2"}, "\"blk.0.attn_k.bias\" is missing");
    expect_gg(&(struct gg){.arch = "qwen2", .bias = true, .extra = "blk.0.attn_output.bias"},
              "not part of a qwen2 model");
    expect_gg(&(struct gg){.arch = "llama", .extra = "blk.0.attn_q_norm.weight"},
              "\"blk.0.attn_q_norm.weight\" is not part");
    expect_gg(&(struct gg){.arch = "llama", .extra = "output.weight"}, "\"output.weight\" at byte");
    expect_gg(&(struct gg){.arch = "llama", .freqs = freqs}, "not those of a llama3 RoPE scaling");
    expect_gg(&(struct gg){.arch = "llama", .keys = key_experts, .n_keys = 1}, "mixtures of experts");
    expect_gg(&(struct gg){.arch = "llama", .keys = key_window, .n_keys = 1}, "sliding windows");
    expect_gg(&(struct gg){.arch = "llama", .keys = key_yarn, .n_keys = 1}, "yarn");
    expect_gg(&(struct gg){.arch = "llama", .keys = key_rotary, .n_keys = 1}, "rotary part of 8");
    expect_gg(&(struct gg){.arch = "llama", .keys = key_scale, .n_keys = 1}, "logit_scale");
    expect_gg(&(struct gg){.arch = "llama", .keys = key_theta, .n_keys = 1}, "\"llama.rope.freq_base\" at byte");
    expect_gg(&(struct gg){.arch = "llama", .keys = key_linear, .n_keys = 2, .freqs = freqs}, "both a linear");
    char *src = make_gg(&(struct gg){.arch = "llama"}), *dst = at("out");
    struct err e = {0};
    assert_int_equal(truncate(src, 9000), 0);
    assert_int_equal(run(src, dst, -1, false, NULL, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "past the end of the file"));
    only("src.gguf", "");
    unlink(src);
    free(src);
    free(dst);
}

static void test_linear_rope(void **s)
{
    (void)s;
    struct err e = {0};
    struct model_config c = {0};
    char *src = make_gg(&(struct gg){.arch = "llama", .keys = key_linear, .n_keys = 2}), *dst = at("out");
    assert_int_equal(run(src, dst, -1, false, NULL, &e), 0);
    assert_int_equal(model_config_read(dst, &c, &e), 0);
    assert_true(c.rope == ROPE_LINEAR && c.rope_factor == 4);
    model_config_free(&c);
    remove_tree(dst);
    unlink(src);
    free(src);
    free(dst);
}

/* Factors as converters write them (float32), for the scalings of published models and one small one. */
static void test_rope_factors(void **s)
{
    (void)s;
    static const struct {
        double theta, factor, low, high, original;
        uint32_t dim;
    } all[] = {{500000, 8, 1, 4, 8192, 128},
               {500000, 32, 1, 4, 8192, 64},
               {500000, 16, 1, 4, 8192, 128},
               {10000, 4, 1, 4, 64, 16}};
    for (size_t k = 0; k < sizeof all / sizeof *all; k++) {
        struct model_config c = {.rope_theta = all[k].theta, .head_dim = all[k].dim}, d = c;
        float f[64];
        for (uint32_t i = 0; i < all[k].dim / 2; i++) {
            float freq = 1.0f / powf((float)all[k].theta, (float)(2 * i) / (float)all[k].dim);
            double wave = 2 * M_PI / (double)freq;
            double smooth = (all[k].original / wave - all[k].low) / (all[k].high - all[k].low);
            f[i] = wave < all[k].original / all[k].high  ? 1
                   : wave > all[k].original / all[k].low ? (float)all[k].factor
                                                         : (float)(1 / ((1 - smooth) / all[k].factor + smooth));
        }
        struct err e = {0};
        if (import_rope_of_factors(&c, f, all[k].dim / 2, &e))
            fail_msg("case %zu: %s", k, e.msg);
        assert_true(c.rope == ROPE_LLAMA3 && c.rope_factor == all[k].factor && c.rope_low == all[k].low);
        assert_true(c.rope_high == all[k].high && c.rope_original == all[k].original);
        f[0] = 1.5f;
        assert_int_equal(import_rope_of_factors(&d, f, all[k].dim / 2, &e), -ENOTSUP);
        f[0] = NAN;
        assert_int_equal(import_rope_of_factors(&d, f, all[k].dim / 2, &e), -EINVAL);
    }
    struct model_config c = {.rope_theta = 1e4, .head_dim = 8};
    struct err e = {0};
    assert_int_equal(import_rope_of_factors(&c, (float[]){1, 1, 1, 1}, 4, &e), 0);
    assert_int_equal(c.rope, ROPE_DEFAULT);
}

static int make_root(void **s)
{
    (void)s;
    snprintf(root, sizeof root, "/tmp/cpet_import_XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int drop_root(void **s)
{
    (void)s;
    remove_tree(root);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hf_round_trip),      cmocka_unit_test(test_lineage),
        cmocka_unit_test(test_hf_refused),         cmocka_unit_test(test_hf_files_refused),
        cmocka_unit_test(test_existing_directory), cmocka_unit_test(test_gguf),
        cmocka_unit_test(test_gguf_refused),       cmocka_unit_test(test_linear_rope),
        cmocka_unit_test(test_rope_factors),
    };
    return cmocka_run_group_tests(tests, make_root, drop_root);
}
