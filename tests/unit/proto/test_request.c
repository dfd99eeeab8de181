/* test_request.c - requests: each field's range, each refusal with its name, malformed JSON, limits, defaults. */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <jansson.h>

#include "common/file.h"
#include "proto/proto.h"

static struct arena *arena;
static struct err err;

static int setup(void **s)
{
    (void)s;
    arena = arena_create(16u << 20);
    return arena ? 0 : -1;
}

static int teardown(void **s)
{
    (void)s;
    arena_free(arena);
    return 0;
}

static int parse(bool chat, const char *body, struct req **r)
{
    memset(&err, 0, sizeof err);
    *r = NULL;
    return (chat ? req_parse_chat : req_parse_completion)(body, strlen(body), &req_limits_default, arena, r, &err);
}

static struct req *good(bool chat, const char *body)
{
    struct req *r;
    if (parse(chat, body, &r))
        fail_msg("%s: %s", body, err.msg);
    return r;
}

static struct req *completion(const char *fields)
{
    char body[4096];
    snprintf(body, sizeof body, "{\"model\":\"m\",\"prompt\":\"p\"%s%s}", *fields ? "," : "", fields);
    return good(false, body);
}

static void bad(bool chat, const char *body, const char *param, const char *says)
{
    struct req *r;
    int rc = parse(chat, body, &r);
    if (rc != -EINVAL || strcmp(err.param, param) || !strstr(err.msg, says))
        fail_msg("%s: %d, param '%s', '%s'; expected '%s', '%s'", body, rc, err.param, err.msg, param, says);
    assert_null(r);
}

static void test_fields(void **state)
{
    (void)state;
    struct req *r = completion("");
    assert_string_equal(r->model.ptr, "m");
    assert_int_equal(r->kind, REQ_COMPLETION);
    assert_int_equal(r->n_prompts, 1);
    assert_string_equal(r->prompts[0].text.ptr, "p");
    assert_int_equal(r->sampling.max_tokens, 16);
    assert_true(r->sampling.temperature == 1 && r->sampling.top_p == 1 && r->sampling.repetition_penalty == 1);
    assert_int_equal(r->sampling.set, 0);
    assert_int_equal(r->logprobs, -1);
    assert_int_equal(r->n, 1);

    r = completion("\"max_tokens\":7,\"temperature\":0.5,\"top_p\":0.25,\"top_k\":-1,\"min_p\":0.125,\"n\":3,"
                   "\"seed\":-5,\"stop\":[\"a\",\"b\\u0000c\"],\"echo\":true,\"logprobs\":5,\"presence_penalty\":-2,"
                   "\"frequency_penalty\":2,\"repetition_penalty\":1.5,\"logit_bias\":{\"7\":-100,\"0\":1.5},"
                   "\"stream\":true,\"stream_options\":{\"include_usage\":true},\"ignore_eos\":true,"
                   "\"min_tokens\":2,\"user\":\"u\",\"tools\":null,\"whatever\":null");
    const struct req_sampling *s = &r->sampling;
    assert_int_equal(s->max_tokens, 7);
    assert_true(s->temperature == 0.5f && s->top_p == 0.25f && s->min_p == 0.125f && s->top_k == 0);
    assert_true(s->presence_penalty == -2 && s->frequency_penalty == 2 && s->repetition_penalty == 1.5f);
    assert_true(s->seed == (uint64_t)-5);
    assert_int_equal(s->n_stop, 2);
    assert_int_equal(s->stop[1].len, 3);
    assert_memory_equal(s->stop[1].ptr, "b\0c", 4);
    assert_int_equal(s->n_bias, 2);
    assert_true(s->bias[0].id == 0 && s->bias[0].bias == 1.5f && s->bias[1].id == 7 && s->bias[1].bias == -100);
    assert_int_equal(s->min_tokens, 2);
    assert_true(s->ignore_eos && r->echo && r->stream && r->include_usage);
    assert_int_equal(r->logprobs, 5);
    assert_int_equal(r->n, 3);
    assert_string_equal(r->user.ptr, "u");
    assert_int_equal(s->set, 0x1FFF);

    assert_int_equal(r->best_of, 3);
    assert_int_equal(r->prompt_logprobs, -1);
    assert_string_equal(r->max_tokens_field, "max_tokens");

    r = completion("\"best_of\":128,\"n\":2,\"prompt_logprobs\":0,\"max_tokens\":0,\"return_token_ids\":true,"
                   "\"return_tokens_as_token_ids\":true");
    assert_int_equal(r->best_of, 128);
    assert_int_equal(r->n, 2);
    assert_int_equal(r->prompt_logprobs, 0);
    assert_true(r->return_token_ids && r->tokens_as_ids);
    assert_int_equal(completion("\"best_of\":3,\"n\":3,\"stream\":true")->best_of, 3);
    assert_null(completion("")->max_tokens_field);
    assert_int_equal(completion("\"max_tokens\":1.6e1")->sampling.max_tokens, 16);
    assert_true(completion("\"seed\":-9223372036854775808.0")->sampling.seed == (uint64_t)INT64_MIN);
    assert_int_equal(completion("\"stop\":\"x\"")->sampling.n_stop, 1);
    assert_int_equal(completion("\"stop\":[]")->sampling.n_stop, 0);
    assert_int_equal(completion("\"echo\":true,\"max_tokens\":0")->sampling.max_tokens, 0);
    assert_false(signbit(completion("\"temperature\":-0.0")->sampling.temperature));
    assert_true(completion("\"top_p\":1e-60")->sampling.top_p > 0);
    assert_true(completion("\"temperature\":2")->sampling.temperature == 2);
}

static void test_prompts(void **state)
{
    (void)state;
    struct req *r = good(false, "{\"model\":\"m\",\"prompt\":[1.0,2,3.0]}");
    assert_int_equal(r->n_prompts, 1);
    assert_int_equal(r->prompts[0].n_ids, 3);
    assert_int_equal(r->prompts[0].ids[2], 3);
    r = good(false, "{\"model\":\"m\",\"prompt\":[\"a\",\"\"]}");
    assert_int_equal(r->n_prompts, 2);
    assert_null(r->prompts[1].ids);
    assert_int_equal(r->prompts[1].text.len, 0);
    r = good(false, "{\"model\":\"m\",\"prompt\":[[1],[2,2147483647]]}");
    assert_int_equal(r->n_prompts, 2);
    assert_int_equal(r->prompts[1].ids[1], 2147483647);
    r = good(false, "{\"model\":\"m\",\"prompt\":\"a\\u0000\\ud83d\\ude00\"}");
    assert_memory_equal(r->prompts[0].text.ptr, "a\0\xF0\x9F\x98\x80", 7);
    static const char *const wrong[] = {"5",         "{}",          "[]",         "[[]]", "[[1],[]]",     "[1,\"a\"]",
                                        "[\"a\",1]", "[[1],\"a\"]", "[1.5]",      "[-1]", "[2147483648]", "[true]",
                                        "[[[1]]]",   "[null]",      "[[1,null]]", "false"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        char body[100];
        snprintf(body, sizeof body, "{\"model\":\"m\",\"prompt\":%s}", wrong[i]);
        bad(false, body, "prompt", "prompt");
    }
    struct req_limits lim = req_limits_default;
    lim.vocab = 10;
    const char *ids = "{\"model\":\"m\",\"prompt\":[9,10]}";
    assert_int_equal(req_parse_completion(ids, strlen(ids), &lim, arena, &r, &err), -EINVAL);
    assert_non_null(strstr(err.msg, "token 1 must be an integer from 0 to 9"));
    lim.max_prompt_tokens = 1;
    assert_int_equal(req_parse_completion(ids, strlen(ids), &lim, arena, &r, &err), -EINVAL);
    assert_non_null(strstr(err.msg, "the limit is 1"));
}

static const struct {
    const char *fields, *param, *says;
} bad_fields[] = {
    {"\"max_tokens\":0", "max_tokens", "at least 1"},
    {"\"max_tokens\":-1", "max_tokens", "integer from 0"},
    {"\"max_tokens\":1.5", "max_tokens", "from 0 to"},
    {"\"seed\":1e19", "seed", "must be an integer"},
    {"\"seed\":9223372036854775808.0", "seed", "must be an integer"},
    {"\"max_tokens\":\"5\"", "max_tokens", "integer"},
    {"\"max_tokens\":1048577", "max_tokens", "to 1048576"},
    {"\"max_tokens\":true", "max_tokens", "integer"},
    {"\"max_completion_tokens\":4", "max_completion_tokens", "not supported in completions"},
    {"\"temperature\":-0.1", "temperature", "from 0 to 2"},
    {"\"temperature\":2.1", "temperature", "from 0 to 2"},
    {"\"temperature\":\"hot\"", "temperature", "number"},
    {"\"temperature\":[]", "temperature", "number"},
    {"\"top_p\":0", "top_p", "above 0 to 1"},
    {"\"top_p\":1.01", "top_p", "above 0 to 1"},
    {"\"top_k\":-2", "top_k", "from -1"},
    {"\"top_k\":2147483648", "top_k", "to 2147483647"},
    {"\"min_p\":1.5", "min_p", "from 0 to 1"},
    {"\"n\":0", "n", "from 1 to 128"},
    {"\"n\":129", "n", "from 1 to 128"},
    {"\"n\":-1", "n", "from 1"},
    {"\"seed\":1.5", "seed", "integer"},
    {"\"seed\":\"x\"", "seed", "integer"},
    {"\"stop\":\"\"", "stop", "1 to 1024 bytes"},
    {"\"stop\":[\"a\",1]", "stop", "string"},
    {"\"stop\":{}", "stop", "string"},
    {"\"stop\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]", "stop", "at most 16"},
    {"\"echo\":1", "echo", "true or false"},
    {"\"logprobs\":21", "logprobs", "from 0 to 20"},
    {"\"logprobs\":true", "logprobs", "integer"},
    {"\"top_logprobs\":2", "top_logprobs", "not supported in completions"},
    {"\"presence_penalty\":-2.5", "presence_penalty", "from -2 to 2"},
    {"\"frequency_penalty\":3", "frequency_penalty", "from -2 to 2"},
    {"\"repetition_penalty\":0", "repetition_penalty", "above 0"},
    {"\"logit_bias\":[]", "logit_bias", "object"},
    {"\"logit_bias\":{\"a\":1}", "logit_bias", "key 'a'"},
    {"\"logit_bias\":{\"\":1}", "logit_bias", "key ''"},
    {"\"logit_bias\":{\"01\":1}", "logit_bias", "key '01'"},
    {"\"logit_bias\":{\"-1\":1}", "logit_bias", "key '-1'"},
    {"\"logit_bias\":{\"99999999999999999999\":1}", "logit_bias", "token ids"},
    {"\"logit_bias\":{\"5\":101}", "logit_bias", "from -100 to 100"},
    {"\"logit_bias\":{\"5\":null}", "logit_bias", "from -100 to 100"},
    {"\"stream\":\"yes\"", "stream", "true or false"},
    {"\"stream_options\":{}", "stream_options", "only with stream"},
    {"\"stream\":true,\"stream_options\":1", "stream_options", "object"},
    {"\"stream\":true,\"stream_options\":{\"include_usage\":1}", "stream_options.include_usage", "true or false"},
    {"\"stream\":true,\"stream_options\":{\"x\":1}", "stream_options", "stream_options.x is not supported"},
    {"\"ignore_eos\":0", "ignore_eos", "true or false"},
    {"\"min_tokens\":-1", "min_tokens", "from 0"},
    {"\"min_tokens\":9,\"max_tokens\":8", "min_tokens", "at most max_tokens"},
    {"\"user\":7", "user", "string"},
    {"\"tools\":[]", "tools", "tools is not supported"},
    {"\"best_of\":0", "best_of", "from 1 to 128"},
    {"\"best_of\":129", "best_of", "from 1 to 128"},
    {"\"best_of\":99999999999", "best_of", "from 1 to 128"},
    {"\"best_of\":\"2\"", "best_of", "integer"},
    {"\"best_of\":2,\"n\":3", "best_of", "at least n (3)"},
    {"\"best_of\":3,\"n\":2,\"stream\":true", "best_of", "not available with stream"},
    {"\"return_token_ids\":1", "return_token_ids", "true or false"},
    {"\"return_tokens_as_token_ids\":\"x\"", "return_tokens_as_token_ids", "true or false"},
    {"\"tool_choice\":\"none\"", "tool_choice", "not supported in completions"},
    {"\"suffix\":\"\"", "suffix", "suffix is not supported"},
    {"\"prompt_logprobs\":21", "prompt_logprobs", "from 0 to 20"},
    {"\"prompt_logprobs\":-1", "prompt_logprobs", "from 0 to 20"},
    {"\"prompt_logprobs\":true", "prompt_logprobs", "integer"},
    {"\"prompt_logprobs\":1,\"stream\":true", "prompt_logprobs", "not available with stream"},
    {"\"messages\":[]", "messages", "not supported in completions"},
    {"\"wat\":1", "wat", "unknown field 'wat'"},
};

static void test_bad_fields(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad_fields / sizeof bad_fields[0]; i++) {
        char body[512];
        snprintf(body, sizeof body, "{\"model\":\"m\",\"prompt\":\"p\",%s}", bad_fields[i].fields);
        bad(false, body, bad_fields[i].param, bad_fields[i].says);
    }
    bad(false, "{\"prompt\":\"p\"}", "model", "required");
    bad(false, "{\"model\":\"m\"}", "prompt", "required");
    bad(false, "{\"model\":\"m\",\"prompt\":null}", "prompt", "required");
    bad(false, "{\"model\":\"\",\"prompt\":\"p\"}", "model", "1 to 256");
    bad(false, "{\"model\":\"a\\u0000b\",\"prompt\":\"p\"}", "model", "no NUL");
    bad(false, "{\"model\":5,\"prompt\":\"p\"}", "model", "string");
    bad(false, "{\"model\":\"m\",\"prompt\":[\"a\",\"b\",\"c\"],\"n\":128}", "n", "at most 256");
    bad(false, "{\"model\":\"m\",\"prompt\":[\"a\",\"b\",\"c\"],\"best_of\":128}", "best_of", "at most 256");
}

static void test_chat(void **state)
{
    (void)state;
    struct req *r = good(true, "{\"model\":\"m\",\"messages\":[{\"role\":\"developer\",\"content\":\"s\"},"
                               "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\\\"\"},"
                               "{\"text\":\"b\",\"type\":\"text\"}],\"name\":\"bob\",\"refusal\":null},"
                               "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":null}],"
                               "\"logprobs\":true,\"top_logprobs\":3,\"max_completion_tokens\":5,\"max_tokens\":5}");
    assert_int_equal(r->n_messages, 3);
    assert_string_equal(r->messages[0].role, "system");
    assert_string_equal(r->messages[1].content.ptr, "a\"\nb");
    assert_string_equal(r->messages[1].name.ptr, "bob");
    assert_null(r->messages[2].content.ptr);
    assert_string_equal(r->messages_json.ptr, "[{\"role\":\"system\",\"content\":\"s\"},"
                                              "{\"role\":\"user\",\"content\":\"a\\\"\\nb\",\"name\":\"bob\"},"
                                              "{\"role\":\"assistant\",\"content\":null}]");
    assert_int_equal(r->logprobs, 3);
    assert_int_equal(r->sampling.max_tokens, 5);
    assert_int_equal(
        good(true, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"\"}]}")->sampling.max_tokens, 0);
    assert_int_equal(good(true, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"\"}],"
                                "\"logprobs\":true}")
                         ->logprobs,
                     0);
    static const struct {
        const char *messages, *param, *says;
    } cases[] = {
        {"[]", "messages", "1 to 4096"},
        {"\"x\"", "messages", "list"},
        {"{}", "messages", "list"},
        {"[1]", "messages[0]", "object"},
        {"[{\"content\":\"x\"}]", "messages[0]", "no role"},
        {"[{\"role\":\"user\"}]", "messages[0]", "no content"},
        {"[{\"role\":\"user\",\"content\":null}]", "messages[0]", "no content"},
        {"[{\"role\":\"tool\",\"content\":\"x\"}]", "messages[0].role", "'tool' is not supported"},
        {"[{\"role\":\"king\",\"content\":\"x\"}]", "messages[0].role", "must be system"},
        {"[{\"role\":4,\"content\":\"x\"}]", "messages[0].role", "must be system"},
        {"[{\"role\":\"user\",\"content\":4}]", "messages[0].content", "string"},
        {"[{\"role\":\"user\",\"content\":[]}]", "messages[0].content", "empty"},
        {"[{\"role\":\"user\",\"content\":[\"x\"]}]", "messages[0].content[0]", "object with a type"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{\"url\":\"http://h\"}}]}]",
         "messages[0].content[0]", "'image_url' is not supported"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"input_audio\"}]}]",
         "messages[0].content[1]", "'input_audio' is not supported"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]", "messages[0].content[0]", "a text"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\",\"x\":1}]}]", "messages[0].content[0]",
         "nothing else"},
        {"[{\"role\":\"assistant\",\"tool_calls\":[]}]", "messages[0].tool_calls", "not supported"},
        {"[{\"role\":\"user\",\"content\":\"x\",\"zap\":1}]", "messages[0].zap", "unknown field 'zap'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char body[512];
        snprintf(body, sizeof body, "{\"model\":\"m\",\"messages\":%s}", cases[i].messages);
        bad(true, body, cases[i].param, cases[i].says);
    }
}

#define HI "\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]"
static void test_chat_fields(void **state)
{
    (void)state;
    bad(true, "{\"model\":\"m\"}", "messages", "required");
    bad(true, "{\"model\":\"m\"," HI ",\"prompt\":\"x\"}", "prompt", "not supported in chat");
    bad(true, "{\"model\":\"m\"," HI ",\"echo\":true}", "echo", "not supported in chat");
    bad(true, "{\"model\":\"m\"," HI ",\"logprobs\":1}", "logprobs", "true or false");
    bad(true, "{\"model\":\"m\"," HI ",\"top_logprobs\":1}", "top_logprobs", "only with logprobs");
    bad(true, "{\"model\":\"m\"," HI ",\"top_logprobs\":21,\"logprobs\":true}", "top_logprobs", "0 to 20");
    bad(true, "{\"model\":\"m\"," HI ",\"max_tokens\":3,\"max_completion_tokens\":4}", "max_completion_tokens",
        "differ");
    bad(true, "{\"model\":\"m\"," HI ",\"best_of\":2}", "best_of", "not supported in chat");
    bad(true, "{\"model\":\"m\"," HI ",\"tool_choice\":\"auto\"}", "tool_choice", "not supported");
    bad(true, "{\"model\":\"m\"," HI ",\"tool_choice\":{\"type\":\"function\"}}", "tool_choice", "not supported");
    bad(true, "{\"model\":\"m\"," HI ",\"tools\":[],\"tool_choice\":\"none\"}", "tools", "not supported");
    bad(true, "{\"model\":\"m\"," HI ",\"functions\":[]}", "functions", "not supported");
    bad(true, "{\"model\":\"m\"," HI ",\"max_tokens\":0}", "max_tokens", "max_tokens must be at least 1");
    bad(true, "{\"model\":\"m\"," HI ",\"max_completion_tokens\":0}", "max_completion_tokens", "from 1");
    bad(true, "{\"model\":\"m\"," HI ",\"max_completion_tokens\":3,\"min_tokens\":4}", "min_tokens",
        "at most max_completion_tokens (3)");
    struct req *none = good(true, "{\"model\":\"m\"," HI ",\"tool_choice\":\"none\",\"tools\":null,"
                                  "\"max_completion_tokens\":3,\"prompt_logprobs\":2,\"return_token_ids\":true}");
    assert_string_equal(none->max_tokens_field, "max_completion_tokens");
    assert_int_equal(none->prompt_logprobs, 2);
    assert_true(none->return_token_ids && !none->tokens_as_ids && none->best_of == 1);
    bad(true, "{\"model\":\"m\"," HI ",\"chat_template_kwargs\":{}}", "chat_template_kwargs", "not supported");
}

/* ---- forms ---- */

static const struct req_grammar *form(const char *fields)
{
    return &completion(fields)->grammar;
}

#define SCHEMA(s) "\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"a-Z_9\",\"schema\":" s "}}"

static void test_forms(void **state)
{
    (void)state;
    assert_int_equal(form("")->kind, REQ_ANY);
    assert_int_equal(form("\"response_format\":{\"type\":\"text\"}")->kind, REQ_ANY);
    assert_int_equal(form("\"response_format\":{\"type\":\"json_object\",\"json_schema\":null}")->kind,
                     REQ_JSON_OBJECT);
    assert_int_equal(form("\"structured_outputs\":{\"json_object\":true}")->kind, REQ_JSON_OBJECT);
    const struct req_grammar *g =
        form(SCHEMA("{ \"z\": 1.0, \"b\" : [true, 12345678901], \"a\": \"\\u0000\\u00e9\" }"));
    assert_int_equal(g->kind, REQ_JSON_SCHEMA);
    assert_string_equal(g->text.ptr, "{\"z\":1.0,\"b\":[true,12345678901],\"a\":\"\\u0000\xC3\xA9\"}");
    assert_string_equal(g->param, "response_format");
    g = form(
        "\"response_format\":{\"json_schema\":{\"schema\":{},\"strict\":true,\"description\":\"d\",\"name\":\"n\"},"
        "\"type\":\"json_schema\"}");
    assert_string_equal(g->text.ptr, "{}");
    g = form("\"structured_outputs\":{\"json\":{\"type\":\"object\"},\"regex\":null,\"json_object\":false,"
             "\"disable_any_whitespace\":false}");
    assert_string_equal(g->text.ptr, "{\"type\":\"object\"}");
    assert_string_equal(g->param, "structured_outputs");
    g = form("\"structured_outputs\":{\"json\":\"{\\\"type\\\": 1}\"},\"response_format\":{\"type\":\"text\"}");
    assert_int_equal(g->kind, REQ_JSON_SCHEMA);
    assert_string_equal(g->text.ptr, "{\"type\": 1}");
    g = form("\"structured_outputs\":{\"regex\":\"a\\\\d\\u0000\"}");
    assert_int_equal(g->kind, REQ_REGEX);
    assert_int_equal(g->text.len, 4);
    g = form("\"structured_outputs\":{\"choice\":[\"yes\",\"n\\u0000\"]}");
    assert_int_equal(g->kind, REQ_CHOICE);
    assert_int_equal(g->n_choices, 2);
    assert_int_equal(g->choice[1].len, 2);
    struct req *r =
        good(true, "{\"model\":\"m\"," HI ",\"response_format\":{\"type\":\"json_object\"},\"ignore_eos\":false,"
                   "\"min_tokens\":3,\"max_tokens\":9}");
    assert_int_equal(r->grammar.kind, REQ_JSON_OBJECT);
    struct req_sampling *d;
    const char *eos = "{\"ignore_eos\":true,\"top_k\":3}";
    r = good(true, "{\"model\":\"m\"," HI ",\"response_format\":{\"type\":\"json_object\"}}");
    assert_int_equal(req_parse_defaults(eos, strlen(eos), &req_limits_default, arena, &d, &err), 0);
    req_apply_defaults(r, d);
    assert_true(!r->sampling.ignore_eos && r->sampling.top_k == 3);
}

#define RF "response_format"
#define SO "structured_outputs"
static const struct {
    const char *fields, *param, *says;
} bad_forms[] = {
    {"\"response_format\":\"json\"", RF, "object with a type"},
    {"\"response_format\":[]", RF, "object with a type"},
    {"\"response_format\":{}", RF, "object with a type"},
    {"\"response_format\":{\"type\":5}", RF, "object with a type"},
    {"\"response_format\":{\"type\":\"xml\"}", RF, "'xml' is not supported"},
    {"\"response_format\":{\"type\":\"structural_tag\"}", RF, "'structural_tag' is not supported"},
    {"\"response_format\":{\"type\":\"json_object\",\"schema\":{}}", RF, "no field 'schema'"},
    {"\"response_format\":{\"type\":\"text\",\"json_schema\":{}}", RF, "no field 'json_schema'"},
    {"\"response_format\":{\"type\":\"json_schema\"}", RF, "json_schema must be an object"},
    {"\"response_format\":{\"type\":\"json_schema\",\"json_schema\":[]}", RF, "json_schema must be an object"},
    {"\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"schema\":{}}}", RF, "name is required"},
    {"\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"a b\",\"schema\":{}}}", RF, "1 to 64"},
    {"\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"a\\u0000\",\"schema\":{}}}", RF,
     "1 to 64"},
    {"\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"\",\"schema\":{}}}", RF, "1 to 64"},
    {"\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":7,\"schema\":{}}}", RF, "name must be"},
    {"\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"a\"}}", RF, "schema is required"},
    {"\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"a\",\"schema\":null}}", RF,
     "schema is required"},
    {SCHEMA("\"{}\""), RF, "must be an object (a JSON schema)"},
    {SCHEMA("true"), RF, "must be an object (a JSON schema)"},
    {SCHEMA("{},\"strict\":1"), RF, "strict must be true or false"},
    {SCHEMA("{},\"description\":[]"), RF, "description must be a string"},
    {SCHEMA("{},\"x\":1"), RF, "unknown field 'x'"},
    {SCHEMA("{}") ",\"ignore_eos\":true", "ignore_eos", "cannot be combined with response_format"},
    {SCHEMA("{}") ",\"structured_outputs\":{\"regex\":\"a\"}", SO, "only one form"},
    {"\"structured_outputs\":{\"regex\":\"a\"}," SCHEMA("{}"), RF, "only one form"},
    {"\"structured_outputs\":[]", SO, "must be an object"},
    {"\"structured_outputs\":{}", SO, "must have one of"},
    {"\"structured_outputs\":{\"json\":null,\"json_object\":false}", SO, "must have one of"},
    {"\"structured_outputs\":{\"json\":{},\"regex\":\"a\"}", SO, "only one form"},
    {"\"structured_outputs\":{\"json_object\":true,\"choice\":[\"a\"]}", SO, "only one form"},
    {"\"structured_outputs\":{\"json\":5}", SO, "must be an object (a JSON schema)"},
    {"\"structured_outputs\":{\"json\":\"\"}", SO, "string of 1"},
    {"\"structured_outputs\":{\"regex\":\"\"}", SO, "string of 1"},
    {"\"structured_outputs\":{\"regex\":{}}", SO, "string of 1"},
    {"\"structured_outputs\":{\"choice\":[]}", SO, "list of 1 to 1024"},
    {"\"structured_outputs\":{\"choice\":\"a\"}", SO, "list of 1 to 1024"},
    {"\"structured_outputs\":{\"choice\":[\"a\",\"\"]}", SO, "choice[1] must be a string"},
    {"\"structured_outputs\":{\"choice\":[\"a\",1]}", SO, "choice[1] must be a string"},
    {"\"structured_outputs\":{\"json_object\":1}", SO, "true or false"},
    {"\"structured_outputs\":{\"grammar\":\"root ::= x\"}", SO, "structured_outputs.grammar is not supported"},
    {"\"structured_outputs\":{\"structural_tag\":\"{}\"}", SO, "structural_tag is not supported"},
    {"\"structured_outputs\":{\"json\":{},\"whitespace_pattern\":\" \"}", SO, "whitespace_pattern is not supported"},
    {"\"structured_outputs\":{\"json\":{},\"disable_any_whitespace\":true}", SO, "is not supported"},
    {"\"guided_json\":{}", "guided_json", "use structured_outputs: {\"json\""},
    {"\"guided_regex\":\"a\"", "guided_regex", "use structured_outputs: {\"regex\""},
    {"\"guided_choice\":[\"a\"]", "guided_choice", "use structured_outputs: {\"choice\""},
    {"\"guided_grammar\":\"\"", "guided_grammar", "guided_grammar is not supported"},
};

static void test_bad_forms(void **state)
{
    (void)state;
    char body[512];
    for (size_t i = 0; i < sizeof bad_forms / sizeof bad_forms[0]; i++) {
        snprintf(body, sizeof body, "{\"model\":\"m\",\"prompt\":\"p\",%s}", bad_forms[i].fields);
        bad(false, body, bad_forms[i].param, bad_forms[i].says);
        snprintf(body, sizeof body, "{\"model\":\"m\"," HI ",%s}", bad_forms[i].fields);
        bad(true, body, bad_forms[i].param, bad_forms[i].says);
    }
    struct req_sampling *d;
    const char *text = "{\"response_format\":{\"type\":\"json_object\"}}";
    assert_int_equal(req_parse_defaults(text, strlen(text), &req_limits_default, arena, &d, &err), -EINVAL);
    assert_non_null(strstr(err.msg, "not supported in a task's defaults"));
}

static void test_form_limits(void **state)
{
    (void)state;
    static const struct {
        const char *form, *says;
    } over[] = {
        {"{\"json\":{\"a\":\"123456789\"}}", "has 17 bytes, the limit is 16"},
        {"{\"json\":\"12345678901234567\"}", "1 to 16 bytes"},
        {"{\"regex\":\"12345678901234567\"}", "1 to 16 bytes"},
        {"{\"choice\":[\"123456789\",\"12345678\"]}", "has 17 bytes, the limit is 16"},
        {"{\"choice\":[\"a\",\"b\",\"c\"]}", "1 to 2 strings"},
    };
    struct req_limits lim = req_limits_default;
    lim.max_grammar = 16;
    lim.max_grammar_choices = 2;
    for (size_t i = 0; i < sizeof over / sizeof over[0]; i++) {
        char body[200];
        struct req *r;
        snprintf(body, sizeof body, "{\"model\":\"m\",\"prompt\":\"p\",\"structured_outputs\":%s}", over[i].form);
        assert_int_equal(req_parse_completion(body, strlen(body), &lim, arena, &r, &err), -EINVAL);
        if (!strstr(err.msg, over[i].says))
            fail_msg("%s: %s", over[i].form, err.msg);
        assert_int_equal(req_parse_completion(body, strlen(body), &req_limits_default, arena, &r, &err), 0);
    }
}

static void test_malformed(void **state)
{
    (void)state;
    static const char *const broken[] = {
        "",
        " ",
        "{",
        "}",
        "[",
        "nul",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{a:1}",
        "{'a':1}",
        "[1,]",
        "{\"a\":NaN}",
        "{\"a\":Infinity}",
        "{\"a\":1e400}",
        "{\"a\":01}",
        "{\"a\":+1}",
        "{\"a\":.5}",
        "{\"a\":99999999999999999999}",
        "{\"a\":\"\\ud800\"}",
        "{\"a\":\"\\x\"}",
        "{\"a\":\"\n\"}",
        "{\"a\\u0000\":1}",
        "{\"a\":1}{}",
        "{\"a\":1} x",
        "{\"n\":1,\"n\":1}",
        "{\"logit_bias\":{\"1\":1,\"1\":2}}",
        "{\"a\":\"",
        "\"\\",
        "// c\n{}",
        "\xEF\xBB\xBF{}",
    };
    for (size_t i = 0; i < sizeof broken / sizeof broken[0]; i++) {
        bad(false, broken[i], "", "not valid JSON");
        bad(true, broken[i], "", "not valid JSON");
    }
    bad(false, "{\"a\":\"\xFF\"}", "", "UTF-8 at byte 6");
    bad(false, "{\"a\":\"\xED\xA0\x80\"}", "", "UTF-8 at byte 6");
    static const char *const shapes[] = {"[]", "\"x\"", "1", "null", "true"};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        bad(false, shapes[i], "", "must be a JSON object");
    struct req *r;
    assert_int_equal(req_parse_chat("{}\0", 3, &req_limits_default, arena, &r, &err), -EINVAL);
}

static void test_limits(void **state)
{
    (void)state;
    struct req *r = NULL;
    struct req_limits lim = req_limits_default;
    size_t n = 1 << 20;
    char *deep = malloc(n);
    memset(deep, '[', n);
    assert_int_equal(req_parse_completion(deep, n, &lim, arena, &r, &err), -EINVAL);
    assert_non_null(strstr(err.msg, "deeper than 32 at byte 32"));
    memset(deep, ',', n);
    deep[0] = '[';
    assert_int_equal(req_parse_completion(deep, n, &lim, arena, &r, &err), -EINVAL);
    assert_non_null(strstr(err.msg, "more than 262144 values"));
    lim.max_body = n - 1;
    assert_int_equal(req_parse_completion(deep, n, &lim, arena, &r, &err), -E2BIG);
    assert_int_equal(resp_status(-E2BIG), 413);
    free(deep);
    lim = req_limits_default;
    lim.max_prompts = 2;
    const char *many = "{\"model\":\"m\",\"prompt\":[\"a\",\"b\",\"c\"]}";
    assert_int_equal(req_parse_completion(many, strlen(many), &lim, arena, &r, &err), -EINVAL);
    const char *bias = "{\"model\":\"m\",\"prompt\":\"a\",\"logit_bias\":{\"1\":1,\"2\":1}}";
    lim.max_bias = 1;
    assert_int_equal(req_parse_completion(bias, strlen(bias), &lim, arena, &r, &err), -EINVAL);
    /* An arena of any size gives an answer or a clear refusal. */
    const char *chat = "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":"
                       "\"abc\"}],\"name\":\"x\"}],\"stop\":[\"a\"],\"logit_bias\":{\"1\":1},\"user\":\"u\"}";
    int rc = -E2BIG;
    for (size_t size = 16; rc; size += 16) {
        struct arena *small = arena_create(size);
        rc = req_parse_chat(chat, strlen(chat), &req_limits_default, small, &r, &err);
        assert_true(!rc || rc == -E2BIG);
        arena_free(small);
        assert_true(size < 10000);
    }
}

static void test_defaults(void **state)
{
    (void)state;
    struct req_sampling *d = NULL;
    const char *json = "{\"temperature\":0.5,\"max_tokens\":9,\"min_tokens\":4,\"stop\":\"x\",\"seed\":3,\"top_k\":2,"
                       "\"logit_bias\":{\"4\":1},\"ignore_eos\":true,\"top_p\":0.5,\"min_p\":0.5,"
                       "\"presence_penalty\":1,\"frequency_penalty\":1,\"repetition_penalty\":2}";
    assert_int_equal(req_parse_defaults(json, strlen(json), &req_limits_default, arena, &d, &err), 0);
    struct req *r = completion("\"temperature\":0,\"max_tokens\":2");
    req_apply_defaults(r, d);
    assert_true(r->sampling.temperature == 0 && r->sampling.max_tokens == 2 && r->sampling.min_tokens == 2);
    assert_true(r->sampling.seed == 3 && r->sampling.top_k == 2 && r->sampling.n_stop == 1 && r->sampling.n_bias == 1);
    assert_true(r->sampling.top_p == 0.5f && r->sampling.repetition_penalty == 2 && r->sampling.ignore_eos);
    assert_int_equal(r->sampling.set, 0x1FFF);
    static const char *const wrong[] = {"{\"model\":\"m\"}", "{\"n\":2}", "{\"top_p\":2}", "[]", "{\"x\":1}", "{"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        assert_int_equal(req_parse_defaults(wrong[i], strlen(wrong[i]), &req_limits_default, arena, &d, &err), -EINVAL);
    struct arena *none = arena_create(16);
    assert_int_equal(req_parse_defaults("{}", 2, &req_limits_default, none, &d, &err), -E2BIG);
    assert_int_equal(req_parse_completion("{}", 2, &req_limits_default, none, &r, &err), -E2BIG);
    arena_free(none);
}

static long allocations_left;

static void *scarce_malloc(size_t n)
{
    return allocations_left-- > 0 ? malloc(n) : NULL;
}

/* Each of jansson's allocations fails once: a refusal, never half a request. (Out of memory inside a string it calls a
 * syntax error; elsewhere it is -ENOMEM.) */
static void test_no_memory(void **state)
{
    (void)state;
    const char *body = "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"\\u00e9 and more than a few "
                       "bytes of text, so that buffers grow\"}],\"stop\":[\"a\",\"b\"],\"logit_bias\":{\"1\":1,"
                       "\"2\":2.5},\"temperature\":0.5,\"seed\":12345678901234,\"stream\":true,\"n\":2,\"top_p\":1,"
                       "\"top_k\":3,\"min_p\":0,\"user\":\"u\"}";
    struct req *r;
    int rc = -ENOMEM;
    json_set_alloc_funcs(scarce_malloc, free);
    for (long n = 0; rc; n++) {
        allocations_left = n;
        rc = parse(true, body, &r);
        if (rc && rc != -ENOMEM && !strstr(err.msg, "not valid JSON"))
            fail_msg("%ld: %d %s", n, rc, err.msg);
        assert_true(n < 1000);
    }
    json_set_alloc_funcs(malloc, free);
}

/* Every file of the JSON test suite: n_ is refused as JSON; y_ fails only by its shape or an unknown field. */
static void test_suite(void **state)
{
    (void)state;
    char dir[4096];
    const char *data = getenv("CPET_DATA");
    snprintf(dir, sizeof dir, "%s/jsontestsuite", data ? data : CPET_SOURCE_ROOT "/../shared/data");
    DIR *d = opendir(dir);
    if (!d) {
        print_message("no %s: skipped\n", dir);
        skip();
    }
    size_t seen = 0;
    for (struct dirent *f; (f = readdir(d));) {
        char path[8192], *body;
        size_t n;
        struct req *r = NULL;
        if (f->d_name[0] == '.' || !strstr(f->d_name, ".json"))
            continue;
        snprintf(path, sizeof path, "%s/%s", dir, f->d_name);
        assert_int_equal(file_read(path, 1 << 20, &body, &n, &err), 0);
        int rc = req_parse_completion(body, n, &req_limits_default, arena, &r, &err);
        bool syntax = strstr(err.msg, "not valid") || strstr(err.msg, "deeper");
        if (rc != -EINVAL || (f->d_name[0] == 'n' && !syntax && !strstr(err.msg, "must be a JSON object")) ||
            (f->d_name[0] == 'y' && syntax && !strstr(f->d_name, "duplicated_key")))
            fail_msg("%s: %d %s", f->d_name, rc, err.msg);
        free(body);
        seen++;
    }
    closedir(d);
    print_message("%zu files of the JSON test suite\n", seen);
    assert_true(seen > 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fields),      cmocka_unit_test(test_prompts),     cmocka_unit_test(test_bad_fields),
        cmocka_unit_test(test_chat),        cmocka_unit_test(test_chat_fields), cmocka_unit_test(test_malformed),
        cmocka_unit_test(test_limits),      cmocka_unit_test(test_defaults),    cmocka_unit_test(test_suite),
        cmocka_unit_test(test_no_memory),   cmocka_unit_test(test_forms),       cmocka_unit_test(test_bad_forms),
        cmocka_unit_test(test_form_limits),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
