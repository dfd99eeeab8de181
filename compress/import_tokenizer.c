/* import_tokenizer.c - the tokenizer of a GGUF file: its keys gathered for tok_json.h, and the result hashed.
 *
 * Runs on import's thread. Strings stay in the file's map; the arrays of pointers to them live until the files are
 * written. No more tokens than embeddings are accepted, so the arrays are bounded by the model's size.
 */
#include "compress/import_internal.h"

#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "compress/tok_json.h"

enum { TOKENIZER_CAP = 256 << 20 };

struct lists {
    struct gguf_str *tokens, *merges;
    int32_t *types;
    float *scores;
};

static int read_tokens(struct import_job *j, struct tok_json *t, struct lists *l, struct err *e)
{
    const struct gguf_kv *kv = NULL;
    int r = gguf_get_array(j->gguf, "tokenizer.ggml.tokens", GGUF_STR, true, &kv, e);
    if (r)
        return r;
    if (!kv->n || kv->n > j->cfg.vocab)
        return err_set(e, -EINVAL, "\"tokenizer.ggml.tokens\" at byte %zu: %llu tokens for %u embeddings", kv->off,
                       (unsigned long long)kv->n, j->cfg.vocab);
    t->n_tokens = (size_t)kv->n;
    t->tokens = l->tokens = calloc(t->n_tokens, sizeof *l->tokens);
    if (!l->tokens)
        return err_set(e, -ENOMEM, "out of memory");
    gguf_array_strs(kv, l->tokens);
    r = gguf_get_array(j->gguf, "tokenizer.ggml.token_type", GGUF_I32, false, &kv, e);
    if (r || !kv)
        return r;
    if (kv->n != t->n_tokens)
        return err_set(e, -EINVAL, "\"tokenizer.ggml.token_type\" at byte %zu: %llu types for %zu tokens", kv->off,
                       (unsigned long long)kv->n, t->n_tokens);
    t->types = l->types = calloc(t->n_tokens, sizeof *l->types);
    return l->types ? gguf_array_i32(kv, l->types) : err_set(e, -ENOMEM, "out of memory");
}

static int read_merges(struct import_job *j, struct tok_json *t, struct lists *l, struct err *e)
{
    const struct gguf_kv *kv = NULL;
    int r = gguf_get_array(j->gguf, "tokenizer.ggml.merges", GGUF_STR, false, &kv, e);
    if (!r && kv) {
        t->n_merges = (size_t)kv->n;
        t->merges = l->merges = calloc(t->n_merges + 1, sizeof *l->merges);
        r = l->merges ? gguf_array_strs(kv, l->merges) : err_set(e, -ENOMEM, "out of memory");
    }
    if (!r)
        r = gguf_get_array(j->gguf, "tokenizer.ggml.scores", GGUF_F32, false, &kv, e);
    if (r || !kv)
        return r;
    if (kv->n != t->n_tokens)
        return err_set(e, -EINVAL, "\"tokenizer.ggml.scores\" at byte %zu: %llu scores for %zu tokens", kv->off,
                       (unsigned long long)kv->n, t->n_tokens);
    t->scores = l->scores = calloc(t->n_tokens, sizeof *l->scores);
    return l->scores ? gguf_array_f32(kv, l->scores) : err_set(e, -ENOMEM, "out of memory");
}

/* Ids beyond the tokens mean "none" in files in the wild. */
static int read_id(struct import_job *j, const char *key, size_t n_tokens, int64_t *out, struct err *e)
{
    static const uint64_t none = UINT64_MAX;
    uint64_t v = 0;
    int r = gguf_get_u64(j->gguf, key, 0, UINT32_MAX, &none, &v, e);
    if (!r)
        *out = v < n_tokens ? (int64_t)v : -1;
    return r;
}

static int read_flag(struct import_job *j, const char *key, int *out, struct err *e)
{
    bool v = false;
    *out = -1;
    if (!gguf_kv_find(j->gguf, key))
        return 0;
    int r = gguf_get_bool(j->gguf, key, NULL, &v, e);
    if (!r)
        *out = v;
    return r;
}

static int read_rest(struct import_job *j, struct tok_json *t, struct err *e)
{
    int r = gguf_get_str(j->gguf, "tokenizer.ggml.model", true, &t->model, e);
    if (!r)
        r = gguf_get_str(j->gguf, "tokenizer.ggml.pre", false, &t->pre, e);
    if (!r)
        r = gguf_get_str(j->gguf, "tokenizer.chat_template", false, &t->chat_template, e);
    if (!r)
        r = read_id(j, "tokenizer.ggml.bos_token_id", t->n_tokens, &t->bos, e);
    if (!r)
        r = read_id(j, "tokenizer.ggml.eos_token_id", t->n_tokens, &t->eos, e);
    if (!r)
        r = read_id(j, "tokenizer.ggml.unknown_token_id", t->n_tokens, &t->unk, e);
    if (!r)
        r = read_id(j, "tokenizer.ggml.padding_token_id", t->n_tokens, &t->pad, e);
    if (!r)
        r = read_flag(j, "tokenizer.ggml.add_bos_token", &t->add_bos, e);
    if (!r)
        r = read_flag(j, "tokenizer.ggml.add_eos_token", &t->add_eos, e);
    if (!r)
        r = read_flag(j, "tokenizer.ggml.add_space_prefix", &t->add_space_prefix, e);
    t->model_max_length = j->cfg.max_context;
    return r;
}

static int hash_written(struct import_job *j, struct err *e)
{
    char *path = path_join(j->tmp, "tokenizer.json"), *p = NULL;
    size_t n = 0;
    int r = path ? file_read(path, TOKENIZER_CAP, &p, &n, e) : err_set(e, -ENOMEM, "out of memory");
    if (!r) {
        hash_of(p, n, &j->res.tokenizer_hash);
        j->res.has_tokenizer = true;
    }
    free(p);
    free(path);
    return r;
}

int import_gguf_tokenizer(struct import_job *j, struct err *e)
{
    struct tok_json t = {0};
    struct lists l = {0};
    int r = read_tokens(j, &t, &l, e);
    if (!r)
        r = read_merges(j, &t, &l, e);
    if (!r)
        r = read_rest(j, &t, e);
    if (!r)
        r = tok_json_write(j->tmp, &t, e);
    free(l.tokens);
    free(l.merges);
    free(l.types);
    free(l.scores);
    if (r)
        return err_prefix(e, r, "%s", j->src);
    return hash_written(j, e);
}
