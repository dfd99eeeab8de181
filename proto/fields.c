/* fields.c - the table of request fields, and how each value is read and bounded.
 *
 * Any thread. A reader gets a value that is not null, checks type and range, and writes to the request or its sampling
 * part; strings and lists are copied to the arena. The sentence of each refusal names the field and what is allowed.
 * Where an integer is wanted, 16.0 is one, as JSON Schema has it; 16.5 is refused.
 */
#include "proto/parse.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

int read_bool(struct parse *p, const char *param, const json_t *v, bool *out)
{
    if (!json_is_boolean(v))
        return err_param(p->e, -EINVAL, param, "%s must be true or false", param);
    *out = json_is_true(v);
    return 0;
}

/* JSON has one kind of number: 16.0 is an integer, and some clients write it so. */
static bool whole(const json_t *v, int64_t *out)
{
    double d = json_is_real(v) ? json_real_value(v) : NAN;
    if (json_is_integer(v))
        *out = json_integer_value(v);
    else if (d >= -0x1p63 && d < 0x1p63 && d == trunc(d))
        *out = (int64_t)d;
    else
        return false;
    return true;
}

int read_int(struct parse *p, const char *param, const json_t *v, int64_t lo, int64_t hi, int64_t *out)
{
    int64_t n;
    if (!whole(v, &n) || n < lo || n > hi)
        return err_param(p->e, -EINVAL, param, "%s must be an integer from %lld to %lld", param, (long long)lo,
                         (long long)hi);
    *out = n;
    return 0;
}

int read_str(struct parse *p, const char *param, const json_t *v, struct req_str *out)
{
    if (!json_is_string(v))
        return err_param(p->e, -EINVAL, param, "%s must be a string", param);
    size_t n = json_string_length(v);
    char *copy = arena_strndup(p->a, json_string_value(v), n);
    if (!copy)
        return too_large(p);
    *out = (struct req_str){copy, n};
    return 0;
}

/* A float from lo to hi; above_lo leaves lo itself out. -0 becomes 0. */
static int read_float(struct parse *p, const char *param, const json_t *v, double lo, double hi, bool above_lo,
                      float *out)
{
    double d = json_is_number(v) ? json_number_value(v) : NAN;
    if (!(d >= lo && d <= hi) || (above_lo && d <= lo))
        return err_param(p->e, -EINVAL, param, "%s must be a number %s %g to %g", param, above_lo ? "above" : "from",
                         lo, hi);
    float f = (float)d;
    *out = above_lo && f < FLT_MIN ? FLT_MIN : f + 0.0f;
    return 0;
}

#define FLOAT_FIELD(fn, member, bit, lo, hi, above)                                                                    \
    static int fn(struct parse *p, const char *param, const json_t *v)                                                 \
    {                                                                                                                  \
        p->s->set |= (bit);                                                                                            \
        return read_float(p, param, v, lo, hi, above, &p->s->member);                                                  \
    }
FLOAT_FIELD(read_temperature, temperature, REQ_SET_TEMPERATURE, 0, 2, false)
FLOAT_FIELD(read_top_p, top_p, REQ_SET_TOP_P, 0, 1, true)
FLOAT_FIELD(read_min_p, min_p, REQ_SET_MIN_P, 0, 1, false)
FLOAT_FIELD(read_presence, presence_penalty, REQ_SET_PRESENCE, -2, 2, false)
FLOAT_FIELD(read_frequency, frequency_penalty, REQ_SET_FREQUENCY, -2, 2, false)
FLOAT_FIELD(read_repetition, repetition_penalty, REQ_SET_REPETITION, 0, 10, true)

static int read_top_k(struct parse *p, const char *param, const json_t *v)
{
    int64_t k;
    int rc = read_int(p, param, v, -1, INT32_MAX, &k);
    if (rc)
        return rc;
    p->s->top_k = k < 0 ? 0 : (int32_t)k;
    p->s->set |= REQ_SET_TOP_K;
    return 0;
}

static int read_max_tokens(struct parse *p, const char *param, const json_t *v)
{
    return read_int(p, param, v, 0, p->lim->max_tokens, &p->max_tokens);
}

static int read_max_completion_tokens(struct parse *p, const char *param, const json_t *v)
{
    return read_int(p, param, v, 1, p->lim->max_tokens, &p->max_completion_tokens);
}

static int read_min_tokens(struct parse *p, const char *param, const json_t *v)
{
    int64_t n;
    int rc = read_int(p, param, v, 0, p->lim->max_tokens, &n);
    if (rc)
        return rc;
    p->s->min_tokens = (uint32_t)n;
    p->s->set |= REQ_SET_MIN_TOKENS;
    return 0;
}

static int read_seed(struct parse *p, const char *param, const json_t *v)
{
    int64_t n;
    int rc = read_int(p, param, v, INT64_MIN, INT64_MAX, &n);
    if (rc)
        return rc;
    p->s->seed = (uint64_t)n;
    p->s->set |= REQ_SET_SEED;
    return 0;
}

static int read_ignore_eos(struct parse *p, const char *param, const json_t *v)
{
    p->s->set |= REQ_SET_IGNORE_EOS;
    return read_bool(p, param, v, &p->s->ignore_eos);
}

static int read_stop_one(struct parse *p, const char *param, const json_t *v, struct req_str *out)
{
    if (!json_is_string(v) || !json_string_length(v) || json_string_length(v) > p->lim->max_stop_len)
        return err_param(p->e, -EINVAL, param, "%s must be a string of 1 to %zu bytes, or a list of up to %zu of them",
                         param, p->lim->max_stop_len, p->lim->max_stop);
    return read_str(p, param, v, out);
}

static int read_stop(struct parse *p, const char *param, const json_t *v)
{
    bool list = json_is_array(v);
    size_t n = list ? json_array_size(v) : 1;
    if (n > p->lim->max_stop)
        return err_param(p->e, -EINVAL, param, "%s must hold at most %zu strings, not %zu", param, p->lim->max_stop, n);
    struct req_str *stop = arena_calloc(p->a, n ? n : 1, sizeof *stop);
    if (!stop)
        return too_large(p);
    for (size_t i = 0; i < n; i++) {
        int rc = read_stop_one(p, param, list ? json_array_get(v, i) : v, &stop[i]);
        if (rc)
            return rc;
    }
    p->s->stop = stop;
    p->s->n_stop = n;
    p->s->set |= REQ_SET_STOP;
    return 0;
}

/* The largest token id that may be named. */
static int64_t last_id(const struct parse *p)
{
    return p->lim->vocab ? (int64_t)p->lim->vocab - 1 : INT32_MAX;
}

/* A token id as a decimal key: no sign, no leading zero. */
static bool key_id(const char *key, int64_t max, int32_t *id)
{
    int64_t v = 0;
    if (!*key || (key[0] == '0' && key[1]))
        return false;
    for (; *key; key++) {
        if (*key < '0' || *key > '9')
            return false;
        v = v * 10 + (*key - '0');
        if (v > max)
            return false;
    }
    *id = (int32_t)v;
    return true;
}

static int bias_order(const void *x, const void *y)
{
    const struct req_bias *a = x, *b = y;
    return a->id < b->id ? -1 : a->id > b->id;
}

static int read_logit_bias(struct parse *p, const char *param, const json_t *v)
{
    const char *key;
    json_t *one;
    size_t n = 0;
    if (!json_is_object(v))
        return err_param(p->e, -EINVAL, param, "%s must be an object of token ids and numbers from -100 to 100", param);
    if (json_object_size(v) > p->lim->max_bias)
        return err_param(p->e, -EINVAL, param, "%s must have at most %zu entries", param, p->lim->max_bias);
    struct req_bias *bias = arena_calloc(p->a, json_object_size(v) + 1, sizeof *bias);
    if (!bias)
        return too_large(p);
    json_object_foreach((json_t *)v, key, one)
    {
        if (!key_id(key, last_id(p), &bias[n].id))
            return err_param(p->e, -EINVAL, param, "%s has the key '%s': keys are token ids from 0 to %lld", param, key,
                             (long long)last_id(p));
        double d = json_is_number(one) ? json_number_value(one) : NAN;
        if (!(d >= -100 && d <= 100))
            return err_param(p->e, -EINVAL, param, "%s of token %d must be a number from -100 to 100", param,
                             bias[n].id);
        bias[n++].bias = (float)d;
    }
    qsort(bias, n, sizeof *bias, bias_order);
    p->s->bias = bias;
    p->s->n_bias = n;
    p->s->set |= REQ_SET_BIAS;
    return 0;
}

int read_model(struct parse *p, const char *param, const json_t *v)
{
    int rc = read_str(p, param, v, &p->r->model);
    if (rc)
        return rc;
    if (!p->r->model.len || p->r->model.len > 256 || strlen(p->r->model.ptr) != p->r->model.len)
        return err_param(p->e, -EINVAL, param, "%s must have 1 to 256 bytes and no NUL", param);
    return 0;
}

int read_user(struct parse *p, const char *param, const json_t *v)
{
    int rc = read_str(p, param, v, &p->r->user);
    if (!rc && p->r->user.len > 512)
        return err_param(p->e, -EINVAL, param, "%s must have at most 512 bytes", param);
    return rc;
}

static int read_n(struct parse *p, const char *param, const json_t *v)
{
    int64_t n;
    int rc = read_int(p, param, v, 1, p->lim->max_n, &n);
    if (!rc)
        p->r->n = (unsigned)n;
    return rc;
}

static int read_echo(struct parse *p, const char *param, const json_t *v)
{
    return read_bool(p, param, v, &p->r->echo);
}

static int read_stream(struct parse *p, const char *param, const json_t *v)
{
    return read_bool(p, param, v, &p->r->stream);
}

static int read_logprobs(struct parse *p, const char *param, const json_t *v)
{
    int64_t n;
    if (p->where == IN_CHAT)
        return read_bool(p, param, v, &p->chat_logprobs);
    int rc = read_int(p, param, v, 0, p->lim->max_logprobs, &n);
    if (!rc)
        p->r->logprobs = (int)n;
    return rc;
}

static int read_top_logprobs(struct parse *p, const char *param, const json_t *v)
{
    return read_int(p, param, v, 0, p->lim->max_logprobs, &p->top_logprobs);
}

static int read_best_of(struct parse *p, const char *param, const json_t *v)
{
    int64_t n;
    int rc = read_int(p, param, v, 1, p->lim->max_n, &n);
    if (!rc)
        p->r->best_of = (unsigned)n;
    return rc;
}

static int read_prompt_logprobs(struct parse *p, const char *param, const json_t *v)
{
    int64_t n;
    int rc = read_int(p, param, v, 0, p->lim->max_logprobs, &n);
    if (!rc)
        p->r->prompt_logprobs = (int)n;
    return rc;
}

static int read_return_token_ids(struct parse *p, const char *param, const json_t *v)
{
    return read_bool(p, param, v, &p->r->return_token_ids);
}

static int read_tokens_as_ids(struct parse *p, const char *param, const json_t *v)
{
    return read_bool(p, param, v, &p->r->tokens_as_ids);
}

/* "none" is what a request without tools means anyway. */
static int read_tool_choice(struct parse *p, const char *param, const json_t *v)
{
    if (json_is_string(v) && !strcmp(json_string_value(v), "none"))
        return 0;
    return err_param(p->e, -EINVAL, param, "%s is not supported (but \"none\")", param);
}

static int read_stream_options(struct parse *p, const char *param, const json_t *v)
{
    const char *key;
    json_t *one;
    if (!json_is_object(v))
        return err_param(p->e, -EINVAL, param, "%s must be an object", param);
    p->has_stream_options = true;
    json_object_foreach((json_t *)v, key, one)
    {
        int rc;
        if (json_is_null(one))
            continue;
        if (!strcmp(key, "include_usage"))
            rc = read_bool(p, "stream_options.include_usage", one, &p->r->include_usage);
        else
            rc = err_param(p->e, -EINVAL, param, "stream_options.%s is not supported", key);
        if (rc)
            return rc;
    }
    return 0;
}

int read_ids(struct parse *p, const char *param, const json_t *v, struct req_prompt *out)
{
    size_t n = json_array_size(v);
    if (n > p->lim->max_prompt_tokens)
        return err_param(p->e, -EINVAL, param, "%s has %zu tokens, the limit is %zu", param, n,
                         p->lim->max_prompt_tokens);
    int32_t *ids = arena_calloc(p->a, n, sizeof *ids);
    if (!ids)
        return too_large(p);
    for (size_t i = 0; i < n; i++) {
        int64_t id;
        if (!whole(json_array_get(v, i), &id) || id < 0 || id > last_id(p))
            return err_param(p->e, -EINVAL, param, "%s: token %zu must be an integer from 0 to %lld", param, i,
                             (long long)last_id(p));
        ids[i] = (int32_t)id;
    }
    *out = (struct req_prompt){.ids = ids, .n_ids = n};
    return 0;
}

/* One member of a list of prompts: a string or a list of ids, like the first one. */
static int read_prompt_one(struct parse *p, const char *param, const json_t *v, const json_t *first,
                           struct req_prompt *out)
{
    if (json_is_string(v) && json_is_string(first))
        return read_str(p, param, v, &out->text);
    if (json_is_array(v) && json_is_array(first) && json_array_size(v))
        return read_ids(p, param, v, out);
    return err_param(p->e, -EINVAL, param,
                     "%s must be a string, a list of strings, a list of token ids, or a list of lists of token ids "
                     "(none of them empty)",
                     param);
}

int read_prompt(struct parse *p, const char *param, const json_t *v)
{
    const json_t *first = json_array_get(v, 0);
    bool list = first && !json_is_number(first);
    size_t n = list ? json_array_size(v) : 1;
    if (n > p->lim->max_prompts)
        return err_param(p->e, -EINVAL, param, "%s must hold at most %zu prompts, not %zu", param, p->lim->max_prompts,
                         n);
    struct req_prompt *prompts = arena_calloc(p->a, n, sizeof *prompts);
    if (!prompts)
        return too_large(p);
    for (size_t i = 0; i < n; i++) {
        int rc = read_prompt_one(p, param, list ? json_array_get(v, i) : v, list ? first : v, &prompts[i]);
        if (rc)
            return rc;
    }
    p->r->prompts = prompts;
    p->r->n_prompts = n;
    return 0;
}

#define BOTH (IN_COMPLETION | IN_CHAT)
#define ALL (BOTH | IN_DEFAULTS)
const struct field req_fields[] = {
    {"model", BOTH, read_model},
    {"prompt", IN_COMPLETION, read_prompt},
    {"messages", IN_CHAT, read_messages},
    {"max_tokens", ALL, read_max_tokens},
    {"max_completion_tokens", IN_CHAT, read_max_completion_tokens},
    {"temperature", ALL, read_temperature},
    {"top_p", ALL, read_top_p},
    {"top_k", ALL, read_top_k},
    {"min_p", ALL, read_min_p},
    {"n", BOTH, read_n},
    {"best_of", IN_COMPLETION, read_best_of},
    {"seed", ALL, read_seed},
    {"stop", ALL, read_stop},
    {"echo", IN_COMPLETION, read_echo},
    {"logprobs", BOTH, read_logprobs},
    {"top_logprobs", IN_CHAT, read_top_logprobs},
    {"prompt_logprobs", BOTH, read_prompt_logprobs},
    {"return_token_ids", BOTH, read_return_token_ids},
    {"return_tokens_as_token_ids", BOTH, read_tokens_as_ids},
    {"tool_choice", IN_CHAT, read_tool_choice},
    {"response_format", BOTH, read_response_format},
    {"structured_outputs", BOTH, read_structured_outputs},
    {"presence_penalty", ALL, read_presence},
    {"frequency_penalty", ALL, read_frequency},
    {"repetition_penalty", ALL, read_repetition},
    {"logit_bias", ALL, read_logit_bias},
    {"stream", BOTH, read_stream},
    {"stream_options", BOTH, read_stream_options},
    {"ignore_eos", ALL, read_ignore_eos},
    {"min_tokens", ALL, read_min_tokens},
    {"user", BOTH, read_user},
};
const size_t req_n_fields = sizeof req_fields / sizeof req_fields[0];

bool req_field_known(const char *name)
{
    static const char *const known[] = {
        "add_generation_prompt",
        "add_special_tokens",
        "allowed_token_ids",
        "audio",
        "bad_words",
        "cache_salt",
        "chat_template",
        "chat_template_kwargs",
        "continue_final_message",
        "detokenize",
        "documents",
        "function_call",
        "functions",
        "guided_choice",
        "guided_decoding_backend",
        "guided_grammar",
        "guided_json",
        "guided_regex",
        "guided_whitespace_pattern",
        "include_reasoning",
        "include_stop_str_in_output",
        "kv_transfer_params",
        "length_penalty",
        "logits_processors",
        "metadata",
        "mm_processor_kwargs",
        "modalities",
        "parallel_tool_calls",
        "prediction",
        "priority",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_embeds",
        "reasoning_effort",
        "request_id",
        "safety_identifier",
        "service_tier",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "stop_token_ids",
        "store",
        "structural_tag",
        "suffix",
        "thinking",
        "tools",
        "truncate_prompt_tokens",
        "use_beam_search",
        "verbosity",
        "vllm_xargs",
        "web_search_options",
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (!strcmp(known[i], name))
            return true;
    return false;
}

const char *req_field_hint(const char *name)
{
    static const struct {
        const char *name, *hint;
    } hints[] = {
        {"guided_choice", "structured_outputs: {\"choice\": [...]}"},
        {"guided_json", "structured_outputs: {\"json\": ...} or response_format"},
        {"guided_regex", "structured_outputs: {\"regex\": ...}"},
    };
    for (size_t i = 0; i < sizeof hints / sizeof hints[0]; i++)
        if (!strcmp(hints[i].name, name))
            return hints[i].hint;
    return NULL;
}
