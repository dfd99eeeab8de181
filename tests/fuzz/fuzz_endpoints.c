/* fuzz_endpoints.c - any bytes as the body of each of the smaller endpoints; what parses has what its kind needs.
 *
 * Each body is read as every kind: under the usual limits, and under small ones with little memory. The first bytes
 * also become tokens, vectors and texts of answers, which are to be JSON in UTF-8 whatever they hold.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"
#include "proto/endpoints.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct req_limits tight = {
    .max_body = 4096,
    .max_depth = 5,
    .max_values = 40,
    .max_prompts = 2,
    .max_messages = 3,
    .max_prompt_tokens = 4,
    .max_tokens = 64,
    .vocab = 100,
    .hidden = 8,
};

static void check(const struct req *r, const struct req_limits *lim)
{
    const struct req_more *m = r->more;
    for (size_t i = 0; i < r->n_prompts; i++)
        for (size_t k = 0; k < r->prompts[i].n_ids; k++)
            if (r->prompts[i].ids[k] < 0 || (lim->vocab && (uint32_t)r->prompts[i].ids[k] >= lim->vocab))
                abort();
    bool ok = m && r->n == 1 && !r->sampling.max_tokens;
    if (r->kind == REQ_TOKENIZE)
        ok = ok && (r->n_prompts == 1) != (r->n_messages != 0);
    else if (r->kind == REQ_DETOKENIZE)
        ok = ok && r->n_prompts == 1;
    else
        ok = ok && r->model.ptr && r->n_prompts && r->n_prompts <= lim->max_prompts;
    if (r->kind == REQ_SCORE)
        ok = ok && m->n_text_2 && m->n_text_2 <= lim->max_prompts && (r->n_prompts == 1 || r->n_prompts == m->n_text_2);
    if (r->kind == REQ_EMBEDDING && lim->hidden)
        ok = ok && m->dimensions <= lim->hidden;
    if (!ok)
        abort();
}

static void parse(const char *body, size_t size, const struct req_limits *lim, size_t memory)
{
    for (enum req_kind kind = REQ_EMBEDDING; kind <= REQ_DETOKENIZE; kind++) {
        struct arena *a = arena_create(memory);
        struct req *r = NULL;
        struct err e = {0};
        int rc = a ? req_parse_more(kind, body, size, lim, a, &r, &e) : -1;
        if (!rc != !!r || (a && rc && !e.msg[0]))
            abort();
        if (r)
            check(r, lim);
        arena_free(a);
    }
}

static void answers(const char *body, size_t size)
{
    float v[64] = {0};
    float *rows[2] = {v, v + 1};
    int32_t ids[64] = {0};
    size_t n = size / 4 < 63 ? size / 4 : 63;
    const struct req_str strs[] = {{body, size}};
    const struct resp_tokenizer t = {.bos = "", .eos = "x", .pad = "", .chat_template = {body, size}};
    struct buf b = {0};
    memcpy(v, body, 4 * n);
    memcpy(ids, body, 4 * n);
    resp_tokenize(&b, ids, NULL, n, 9);
    resp_tokenize(&b, ids, strs, 1, 9);
    resp_detokenize(&b, body, size);
    resp_tokenizer(&b, &t);
    resp_embeddings(&b, "m", rows, 2, n, false, size);
    resp_embeddings(&b, "m", rows, 2, n, true, size);
    if (b.failed || utf8_valid(b.data, b.len) != b.len)
        abort();
    buf_free(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *body = (const char *)data;
    parse(body, size, &req_limits_default, 1 << 20);
    parse(body, size, &tight, 2048);
    for (size_t memory = 64; memory < 1024 && size < 1024; memory += 192)
        parse(body, size, &req_limits_default, memory);
    answers(body, size);
    return 0;
}
