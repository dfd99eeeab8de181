/* request.c - a request's body to struct req: the checks before JSON, the walk over its fields, what fields imply
 * together, and defaults.
 *
 * Any thread. jansson's tree lives only during the call; everything that is kept is in the caller's arena. Before
 * jansson sees a byte the body is checked for size, UTF-8, depth and number of values, which bounds its memory (about
 * 100 bytes a value) and its recursion. On failure *out is untouched.
 */
#include "proto/parse.h"

#include <stdio.h>
#include <string.h>

#include "common/utf8.h"

const struct req_limits req_limits_default = {
    .max_body = 8u << 20,
    .max_depth = 32,
    .max_values = 1u << 18,
    .max_prompts = 256,
    .max_prompt_tokens = 1u << 17,
    .max_messages = 4096,
    .max_n = 128,
    .max_choices = 256,
    .max_stop = 16,
    .max_stop_len = 1024,
    .max_bias = 1024,
    .max_logprobs = 20,
    .max_grammar = 256u << 10,
    .max_grammar_choices = 1024,
    .max_tokens = 1u << 20,
};

int too_large(struct parse *p)
{
    return err_set(p->e, -E2BIG, "the request needs more memory than one request may use");
}

/* Depth and number of values, seen from the brackets and commas outside of strings. */
static int scan_shape(const char *s, size_t n, const struct req_limits *lim, struct err *e)
{
    size_t depth = 0, values = 1;
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        char c = s[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
            continue;
        }
        if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            values++;
            if (++depth > lim->max_depth)
                return err_set(e, -EINVAL, "the JSON is nested deeper than %u at byte %zu", lim->max_depth, i);
        } else if (c == ']' || c == '}') {
            depth -= depth > 0;
        } else if (c == ',') {
            values++;
        }
        if (values > lim->max_values)
            return err_set(e, -EINVAL, "the JSON has more than %zu values", lim->max_values);
    }
    return 0;
}

/* The body as a JSON object within the limits, or NULL with *rc and the error set. */
static json_t *load_object(const char *body, size_t n, const struct req_limits *lim, struct err *e, int *rc)
{
    json_error_t je = {0};
    if (n > lim->max_body) {
        *rc = err_set(e, -E2BIG, "the body has %zu bytes, the limit is %zu", n, lim->max_body);
        return NULL;
    }
    size_t valid = utf8_valid(body, n);
    if (valid < n) {
        *rc = err_set(e, -EINVAL, "the body is not valid UTF-8 at byte %zu", valid);
        return NULL;
    }
    *rc = scan_shape(body, n, lim, e);
    if (*rc)
        return NULL;
    json_t *root = json_loadb(n ? body : "", n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY, &je);
    if (!root) {
        if (!je.text[0] || json_error_code(&je) == json_error_out_of_memory) /* it says little when memory is out */
            *rc = err_set(e, -ENOMEM, "out of memory");
        else
            *rc = err_set(e, -EINVAL, "the body is not valid JSON: %s at byte %d", je.text, je.position);
        return NULL;
    }
    if (!json_is_object(root)) {
        json_decref(root);
        *rc = err_set(e, -EINVAL, "the body must be a JSON object");
        return NULL;
    }
    return root;
}

static const struct field *find_field(const struct parse *p, const char *name)
{
    for (const struct field *f = p->fields; f && f->name; f++)
        if (!strcmp(f->name, name))
            return f;
    for (size_t i = 0; i < req_n_fields; i++)
        if (!strcmp(req_fields[i].name, name))
            return &req_fields[i];
    return NULL;
}

static const char *where_name(unsigned where)
{
    return where == IN_CHAT         ? "chat completions"
           : where == IN_COMPLETION ? "completions"
           : where == IN_DEFAULTS   ? "a task's defaults"
                                    : "this endpoint";
}

static int req_walk(struct parse *p, json_t *root)
{
    const char *key;
    json_t *v;
    json_object_foreach(root, key, v)
    {
        const struct field *f = find_field(p, key);
        if (json_is_null(v))
            continue;
        int rc;
        if (f && f->where & p->where)
            rc = f->read(p, f->name, v);
        else if (f)
            rc = err_param(p->e, -EINVAL, key, "%s is not supported in %s", key, where_name(p->where));
        else if (req_field_hint(key))
            rc = err_param(p->e, -EINVAL, key, "%s is not supported; use %s", key, req_field_hint(key));
        else if (req_field_known(key))
            rc = err_param(p->e, -EINVAL, key, "%s is not supported", key);
        else
            rc = err_param(p->e, -EINVAL, key, "unknown field '%s'", key);
        if (rc)
            return rc;
    }
    return 0;
}

int req_read(struct parse *p, const char *body, size_t n, int (*settle)(struct parse *))
{
    int rc;
    json_t *root = load_object(body, n, p->lim, p->e, &rc);
    if (!root)
        return rc;
    rc = req_walk(p, root);
    json_decref(root);
    return rc ? rc : settle(p);
}

void req_sampling_neutral(struct req_sampling *s)
{
    *s = (struct req_sampling){.temperature = 1, .top_p = 1, .repetition_penalty = 1};
}

/* max_tokens and its newer name become one value. */
static int settle_max_tokens(struct parse *p)
{
    int64_t a = p->max_tokens, b = p->max_completion_tokens;
    const char *field = b >= 0 ? "max_completion_tokens" : "max_tokens";
    bool none = p->r && (p->r->echo || (p->where == IN_COMPLETION && p->r->prompt_logprobs >= 0));
    if (a >= 0 && b >= 0 && a != b)
        return err_param(p->e, -EINVAL, "max_completion_tokens", "max_tokens and max_completion_tokens differ");
    if (b >= 0)
        a = b;
    if (a == 0 && !none)
        return err_param(p->e, -EINVAL, field, "%s must be at least 1%s", field,
                         p->where == IN_COMPLETION ? " (0 only with echo or prompt_logprobs)" : "");
    if (a >= 0) {
        if (p->r)
            p->r->max_tokens_field = field;
        p->s->max_tokens = (uint32_t)a;
        p->s->set |= REQ_SET_MAX_TOKENS;
    } else if (p->where == IN_COMPLETION) {
        p->s->max_tokens = 16;
    }
    if (p->s->set & REQ_SET_MAX_TOKENS && p->s->min_tokens > p->s->max_tokens)
        return err_param(p->e, -EINVAL, "min_tokens", "min_tokens must be at most %s (%u)", field, p->s->max_tokens);
    return 0;
}

/* n, best_of and the number of prompts. */
static int settle_choices(struct parse *p)
{
    struct req *r = p->r;
    bool asked = r->best_of > 0;
    size_t prompts = r->n_prompts ? r->n_prompts : 1;
    if (!asked)
        r->best_of = r->n;
    if (r->best_of < r->n)
        return err_param(p->e, -EINVAL, "best_of", "best_of must be at least n (%u)", r->n);
    if (r->best_of > r->n && r->stream)
        return err_param(p->e, -EINVAL, "best_of", "best_of above n is not available with stream: true");
    if (r->best_of > p->lim->max_choices / prompts)
        return err_param(p->e, -EINVAL, asked ? "best_of" : "n", "%s times the number of prompts must be at most %zu",
                         asked ? "best_of" : "n", p->lim->max_choices);
    return 0;
}

/* What fields say together, once all are read. */
static int settle_request(struct parse *p)
{
    struct req *r = p->r;
    if (!r->model.ptr)
        return err_param(p->e, -EINVAL, "model", "model is required");
    if (p->where == IN_COMPLETION && !r->n_prompts)
        return err_param(p->e, -EINVAL, "prompt", "prompt is required");
    if (p->where == IN_CHAT && !r->n_messages)
        return err_param(p->e, -EINVAL, "messages", "messages is required");
    if (p->has_stream_options && !r->stream)
        return err_param(p->e, -EINVAL, "stream_options", "stream_options is allowed only with stream: true");
    if (p->top_logprobs >= 0 && !p->chat_logprobs)
        return err_param(p->e, -EINVAL, "top_logprobs", "top_logprobs is allowed only with logprobs: true");
    if (p->chat_logprobs)
        r->logprobs = p->top_logprobs > 0 ? (int)p->top_logprobs : 0;
    if (r->prompt_logprobs >= 0 && r->stream)
        return err_param(p->e, -EINVAL, "prompt_logprobs", "prompt_logprobs is not available with stream: true");
    if (r->grammar.kind && p->s->ignore_eos)
        return err_param(p->e, -EINVAL, "ignore_eos", "ignore_eos cannot be combined with %s", r->grammar.param);
    int rc = settle_choices(p);
    return rc ? rc : settle_max_tokens(p);
}

static int parse_request(const char *body, size_t n, enum req_kind kind, const struct req_limits *lim, struct arena *a,
                         struct req **out, struct err *e)
{
    struct parse p = {.lim = lim,
                      .a = a,
                      .e = e,
                      .where = kind == REQ_CHAT ? IN_CHAT : IN_COMPLETION,
                      .max_tokens = -1,
                      .max_completion_tokens = -1,
                      .top_logprobs = -1};
    p.r = arena_calloc(a, 1, sizeof *p.r);
    if (!p.r)
        return too_large(&p);
    p.r->kind = kind;
    p.r->n = 1;
    p.r->logprobs = p.r->prompt_logprobs = -1;
    p.s = &p.r->sampling;
    req_sampling_neutral(p.s);
    int rc = req_read(&p, body, n, settle_request);
    if (!rc)
        *out = p.r;
    return rc;
}

int req_parse_completion(const char *body, size_t n, const struct req_limits *lim, struct arena *a, struct req **out,
                         struct err *e)
{
    return parse_request(body, n, REQ_COMPLETION, lim, a, out, e);
}

int req_parse_chat(const char *body, size_t n, const struct req_limits *lim, struct arena *a, struct req **out,
                   struct err *e)
{
    return parse_request(body, n, REQ_CHAT, lim, a, out, e);
}

int req_parse_defaults(const char *json, size_t n, const struct req_limits *lim, struct arena *a,
                       struct req_sampling **out, struct err *e)
{
    struct parse p = {.lim = lim,
                      .a = a,
                      .e = e,
                      .where = IN_DEFAULTS,
                      .max_tokens = -1,
                      .max_completion_tokens = -1,
                      .top_logprobs = -1};
    p.s = arena_calloc(a, 1, sizeof *p.s);
    if (!p.s)
        return too_large(&p);
    req_sampling_neutral(p.s);
    int rc = req_read(&p, json, n, settle_max_tokens);
    if (!rc)
        *out = p.s;
    return rc;
}

void req_apply_defaults(struct req *r, const struct req_sampling *d)
{
    struct req_sampling *s = &r->sampling;
    uint32_t take = d->set & ~s->set;
    if (r->grammar.kind)
        take &= ~(uint32_t)REQ_SET_IGNORE_EOS; /* such an answer ends where its form does */
#define TAKE(bit, member)                                                                                              \
    if (take & (bit))                                                                                                  \
    s->member = d->member
    TAKE(REQ_SET_TEMPERATURE, temperature);
    TAKE(REQ_SET_TOP_P, top_p);
    TAKE(REQ_SET_TOP_K, top_k);
    TAKE(REQ_SET_MIN_P, min_p);
    TAKE(REQ_SET_PRESENCE, presence_penalty);
    TAKE(REQ_SET_FREQUENCY, frequency_penalty);
    TAKE(REQ_SET_REPETITION, repetition_penalty);
    TAKE(REQ_SET_MAX_TOKENS, max_tokens);
    TAKE(REQ_SET_MIN_TOKENS, min_tokens);
    TAKE(REQ_SET_SEED, seed);
    TAKE(REQ_SET_IGNORE_EOS, ignore_eos);
    TAKE(REQ_SET_STOP, stop);
    TAKE(REQ_SET_STOP, n_stop);
    TAKE(REQ_SET_BIAS, bias);
    TAKE(REQ_SET_BIAS, n_bias);
#undef TAKE
    s->set |= take;
    if (s->max_tokens && s->min_tokens > s->max_tokens)
        s->min_tokens = s->max_tokens; /* the client's word beats the task's default */
}
