/* endpoints.c - the bodies of /tokenize, /detokenize, /v1/embeddings and /score to struct req.
 *
 * Any thread. Each endpoint has its own table of fields, walked by request.c as a completion's is: a field is read,
 * refused by name, or unknown. Values that a completion has too are read by the same functions. Everything that is kept
 * is in the request's arena; on failure *out is untouched.
 */
#include "proto/endpoints.h"

#include <string.h>

#include "proto/parse.h"

static int read_special(struct parse *p, const char *param, const json_t *v)
{
    p->has_special = true;
    return read_bool(p, param, v, &p->more->special);
}

static int read_generation_prompt(struct parse *p, const char *param, const json_t *v)
{
    p->has_generation_prompt = true;
    return read_bool(p, param, v, &p->more->generation_prompt);
}

static int read_token_strs(struct parse *p, const char *param, const json_t *v)
{
    return read_bool(p, param, v, &p->more->token_strs);
}

/* One text, or a list of ids. */
static int read_one(struct parse *p, const char *param, const json_t *v, bool ids)
{
    struct req_prompt *one = arena_calloc(p->a, 1, sizeof *one);
    if (!one)
        return too_large(p);
    if (ids && !json_is_array(v))
        return err_param(p->e, -EINVAL, param, "%s must be a list of token ids", param);
    int rc = ids ? read_ids(p, param, v, one) : read_str(p, param, v, &one->text);
    if (rc)
        return rc;
    p->r->prompts = one;
    p->r->n_prompts = 1;
    return 0;
}

static int read_text(struct parse *p, const char *param, const json_t *v)
{
    return read_one(p, param, v, false);
}

static int read_tokens(struct parse *p, const char *param, const json_t *v)
{
    return read_one(p, param, v, true);
}

/* ---- embeddings ---- */

/* A word of two. */
static int read_word(struct parse *p, const char *param, const json_t *v, const char *no, const char *yes, bool *out)
{
    const char *s = json_is_string(v) ? json_string_value(v) : "";
    *out = !strcmp(s, yes);
    if (*out || !strcmp(s, no))
        return 0;
    return err_param(p->e, -EINVAL, param, "%s must be \"%s\" or \"%s\"", param, no, yes);
}

static int read_encoding(struct parse *p, const char *param, const json_t *v)
{
    return read_word(p, param, v, "float", "base64", &p->more->base64);
}

static int read_pooling(struct parse *p, const char *param, const json_t *v)
{
    bool last = false;
    int rc = read_word(p, param, v, "mean", "last", &last);
    p->more->pooling = last ? REQ_POOL_LAST : REQ_POOL_MEAN;
    return rc;
}

static int read_normalize(struct parse *p, const char *param, const json_t *v)
{
    return read_bool(p, param, v, &p->more->normalize);
}

static int read_dimensions(struct parse *p, const char *param, const json_t *v)
{
    int64_t n;
    int rc = read_int(p, param, v, 1, p->lim->hidden ? p->lim->hidden : INT32_MAX, &n);
    if (!rc)
        p->more->dimensions = (uint32_t)n;
    return rc;
}

/* ---- score ---- */

static int read_texts(struct parse *p, const char *param, const json_t *v, struct req_prompt **out, size_t *n_out)
{
    bool list = json_is_array(v);
    size_t n = list ? json_array_size(v) : 1;
    if (!n || n > p->lim->max_prompts)
        return err_param(p->e, -EINVAL, param, "%s must be a string, or a list of 1 to %zu strings", param,
                         p->lim->max_prompts);
    struct req_prompt *t = arena_calloc(p->a, n, sizeof *t);
    if (!t)
        return too_large(p);
    for (size_t i = 0; i < n; i++) {
        const json_t *one = list ? json_array_get(v, i) : v;
        if (!json_is_string(one))
            return err_param(p->e, -EINVAL, param, "%s must be a string, or a list of 1 to %zu strings", param,
                             p->lim->max_prompts);
        int rc = read_str(p, param, one, &t[i].text);
        if (rc)
            return rc;
    }
    *out = t;
    *n_out = n;
    return 0;
}

static int read_text_1(struct parse *p, const char *param, const json_t *v)
{
    struct req_prompt *t;
    int rc = read_texts(p, param, v, &t, &p->r->n_prompts);
    if (!rc)
        p->r->prompts = t;
    return rc;
}

static int read_text_2(struct parse *p, const char *param, const json_t *v)
{
    struct req_prompt *t;
    size_t n;
    int rc = read_texts(p, param, v, &t, &n);
    if (rc)
        return rc;
    struct req_str *s = arena_calloc(p->a, n, sizeof *s);
    if (!s)
        return too_large(p);
    for (size_t i = 0; i < n; i++)
        s[i] = t[i].text;
    p->more->text_2 = s;
    p->more->n_text_2 = n;
    return 0;
}

/* ---- what fields say together ---- */

static int settle_tokenize(struct parse *p)
{
    const struct req *r = p->r;
    if (r->n_prompts && r->n_messages)
        return err_param(p->e, -EINVAL, "messages", "prompt and messages cannot both be given");
    if (!r->n_prompts && !r->n_messages)
        return err_param(p->e, -EINVAL, "prompt", "prompt or messages is required");
    if (r->n_prompts && p->has_generation_prompt)
        return err_param(p->e, -EINVAL, "add_generation_prompt", "add_generation_prompt is allowed only with messages");
    if (!p->has_special)
        p->more->special = r->n_prompts != 0;
    return 0;
}

static int settle_detokenize(struct parse *p)
{
    return p->r->n_prompts ? 0 : err_param(p->e, -EINVAL, "tokens", "tokens is required");
}

static int need_model(struct parse *p)
{
    return p->r->model.ptr ? 0 : err_param(p->e, -EINVAL, "model", "model is required");
}

static int settle_embedding(struct parse *p)
{
    int rc = need_model(p);
    if (!rc && !p->r->n_prompts)
        rc = err_param(p->e, -EINVAL, "input", "input is required");
    return rc;
}

static int settle_score(struct parse *p)
{
    size_t n1 = p->r->n_prompts, n2 = p->more->n_text_2;
    int rc = need_model(p);
    if (rc)
        return rc;
    if (!n1 || !n2)
        return err_param(p->e, -EINVAL, n1 ? "text_2" : "text_1", "%s is required", n1 ? "text_2" : "text_1");
    if (n1 != 1 && n1 != n2)
        return err_param(p->e, -EINVAL, "text_1", "text_1 must be one string, or as many as text_2 has (%zu, not %zu)",
                         n2, n1);
    return 0;
}

/* ---- the endpoints ---- */

const struct field req_tokenize_fields[] = {
    {"model", IN_MORE, read_model},
    {"prompt", IN_MORE, read_text},
    {"messages", IN_MORE, read_messages},
    {"add_special_tokens", IN_MORE, read_special},
    {"add_generation_prompt", IN_MORE, read_generation_prompt},
    {"return_token_strs", IN_MORE, read_token_strs},
    {NULL, 0, NULL},
};
const struct field req_detokenize_fields[] = {
    {"model", IN_MORE, read_model},
    {"tokens", IN_MORE, read_tokens},
    {NULL, 0, NULL},
};
const struct field req_embedding_fields[] = {
    {"model", IN_MORE, read_model},
    {"input", IN_MORE, read_prompt},
    {"encoding_format", IN_MORE, read_encoding},
    {"dimensions", IN_MORE, read_dimensions},
    {"pooling", IN_MORE, read_pooling},
    {"normalize", IN_MORE, read_normalize},
    {"user", IN_MORE, read_user},
    {NULL, 0, NULL},
};
const struct field req_score_fields[] = {
    {"model", IN_MORE, read_model},
    {"text_1", IN_MORE, read_text_1},
    {"text_2", IN_MORE, read_text_2},
    {"user", IN_MORE, read_user},
    {NULL, 0, NULL},
};

static const struct {
    const struct field *fields;
    int (*settle)(struct parse *p);
} endpoints[] = {
    [REQ_EMBEDDING] = {req_embedding_fields, settle_embedding},
    [REQ_SCORE] = {req_score_fields, settle_score},
    [REQ_TOKENIZE] = {req_tokenize_fields, settle_tokenize},
    [REQ_DETOKENIZE] = {req_detokenize_fields, settle_detokenize},
};

int req_parse_more(enum req_kind kind, const char *body, size_t n, const struct req_limits *lim, struct arena *a,
                   struct req **out, struct err *e)
{
    struct parse p = {.lim = lim, .a = a, .e = e, .where = IN_MORE, .fields = endpoints[kind].fields};
    p.r = arena_calloc(a, 1, sizeof *p.r);
    p.more = arena_calloc(a, 1, sizeof *p.more);
    if (!p.r || !p.more)
        return too_large(&p);
    p.r->kind = kind;
    p.r->n = p.r->best_of = 1;
    p.r->prompt_logprobs = -1;
    p.r->logprobs = kind == REQ_SCORE ? 0 : -1;
    p.r->more = p.more;
    p.s = &p.r->sampling;
    req_sampling_neutral(p.s);
    p.more->generation_prompt = p.more->normalize = true;
    int rc = req_read(&p, body, n, endpoints[kind].settle);
    if (!rc)
        *out = p.r;
    return rc;
}
