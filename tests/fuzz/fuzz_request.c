/* fuzz_request.c - any bytes as a completion, a chat and a task's defaults; what parses is written back out.
 *
 * Each body is read twice: under the usual limits, and under small ones with little memory, which every limit's own
 * error comes from.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"
#include "proto/proto.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct req_limits tight = {
    .max_body = 4096,
    .max_depth = 5,
    .max_values = 40,
    .max_prompts = 2,
    .max_messages = 3,
    .max_prompt_tokens = 4,
    .max_n = 4,
    .max_choices = 4,
    .max_stop = 2,
    .max_stop_len = 8,
    .max_bias = 2,
    .max_logprobs = 2,
    .max_grammar = 40,
    .max_grammar_choices = 2,
    .max_tokens = 64,
    .vocab = 100,
};

/* Any request takes what it does not say from any defaults, and stays one that could have been sent. */
static void defaults(struct req *r, const struct req_sampling *d, const struct req_limits *lim)
{
    req_apply_defaults(r, d);
    const struct req_sampling *s = &r->sampling;
    if (s->n_stop > lim->max_stop || s->n_bias > lim->max_bias || s->max_tokens > lim->max_tokens ||
        (s->max_tokens && s->min_tokens > s->max_tokens))
        abort();
}

/* A form has what its kind needs, within the limits. */
static void form(const struct req *r, const struct req_limits *lim)
{
    const struct req_grammar *g = &r->grammar;
    size_t bytes = g->text.len;
    for (size_t i = 0; i < g->n_choices; i++)
        bytes += g->choice[i].len;
    bool text = g->kind == REQ_JSON_SCHEMA || g->kind == REQ_REGEX;
    if (bytes > lim->max_grammar || g->n_choices > lim->max_grammar_choices || text != (g->text.len > 0) ||
        (g->kind == REQ_CHOICE) != (g->n_choices > 0) || (g->kind != REQ_ANY) != (g->param != NULL) ||
        (g->kind && r->sampling.ignore_eos))
        abort();
}

static void parse(const char *body, size_t size, const struct req_limits *lim, size_t memory)
{
    static const char all[] = "{\"temperature\":0.5,\"top_p\":0.5,\"top_k\":3,\"min_p\":0.1,\"presence_penalty\":1,"
                              "\"frequency_penalty\":1,\"repetition_penalty\":1.5,\"max_tokens\":9,\"min_tokens\":5,"
                              "\"seed\":1,\"ignore_eos\":true,\"stop\":\"x\",\"logit_bias\":{\"1\":2}}";
    static const char plain[] = "{\"model\":\"m\",\"prompt\":\"p\",\"max_tokens\":3}";
    struct arena *a = arena_create(memory), *roomy = arena_create(1 << 20);
    struct req *r = NULL, *p = NULL;
    struct req_sampling *d = NULL, *every = NULL;
    struct err e = {0};
    if (a && roomy && !req_parse_defaults(all, sizeof all - 1, lim, roomy, &every, &e) &&
        !req_parse_completion(plain, sizeof plain - 1, lim, roomy, &p, &e)) {
        if (!req_parse_defaults(body, size, lim, a, &d, &e))
            defaults(p, d, lim);
        if (!req_parse_completion(body, size, lim, a, &r, &e)) {
            if (!r->model.ptr || !r->n_prompts || !r->n)
                abort();
            form(r, lim);
            defaults(r, every, lim);
        }
        r = NULL;
        if (!req_parse_chat(body, size, lim, a, &r, &e) &&
            utf8_valid(r->messages_json.ptr, r->messages_json.len) != r->messages_json.len)
            abort();
    } else if (a && roomy) {
        abort();
    }
    arena_free(a);
    arena_free(roomy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *body = (const char *)data;
    struct err e = {0};
    struct buf b = {0};
    parse(body, size, &req_limits_default, 1 << 20);
    parse(body, size, &tight, 2048);
    for (size_t memory = 64; memory < 1024 && size < 1024; memory += 192)
        parse(body, size, &req_limits_default, memory);
    err_param(&e, -22, "prompt", "%.*s", (int)(size < 200 ? size : 200), body);
    resp_error(&b, resp_status(e.code), &e, NULL);
    json_put_string(&b, body, size);
    if (b.failed || utf8_valid(b.data, b.len) != b.len)
        abort();
    buf_free(&b);
    return 0;
}
