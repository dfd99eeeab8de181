/* test_response.c - responses: escaping, floats, and each shape read back by jansson. */
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

#include "common/utf8.h"
#include "proto/proto.h"

static struct buf b;

static json_t *parsed(void)
{
    json_error_t e;
    json_t *j = json_loadb(b.data, b.len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY, &e);
    if (!j)
        fail_msg("%s: %s", e.text, b.data);
    buf_clear(&b);
    return j;
}

/* The JSON of one server-sent event. */
static json_t *event(void)
{
    assert_memory_equal(b.data, "data: ", 6);
    assert_memory_equal(b.data + b.len - 2, "\n\n", 2);
    assert_ptr_equal(strstr(b.data, "\n"), b.data + b.len - 2);
    buf_consume(&b, 6);
    return parsed();
}

static void expect(json_t *j, const char *text)
{
    char *got = json_dumps(j, JSON_COMPACT | JSON_ENCODE_ANY | JSON_SORT_KEYS | JSON_REAL_PRECISION(9));
    assert_string_equal(got, text);
    free(got);
    json_decref(j);
}

static void test_strings(void **state)
{
    (void)state;
    char all[256];
    for (int i = 0; i < 128; i++)
        all[i] = (char)i;
    json_put_string(&b, all, 128);
    json_t *j = parsed();
    assert_int_equal(json_string_length(j), 128);
    assert_memory_equal(json_string_value(j), all, 128);
    json_decref(j);
    for (uint32_t cp = 0x80; cp < 0x110000; cp += cp < 0x3000 ? 1 : 997) {
        char c[4];
        if (cp >= 0xD800 && cp < 0xE000)
            continue;
        size_t n = utf8_put(cp, c);
        json_put_string(&b, c, n);
        assert_int_equal(b.len, n + 2);
        assert_memory_equal(b.data + 1, c, n);
        buf_clear(&b);
    }
    json_put_string(&b, "a\xFF\xE2\x82z\xC0\xAF\xED\xA0\x80", 10);
    assert_int_equal(utf8_valid(b.data, b.len), b.len);
    json_decref(parsed());
    json_put_string(&b, "", 0);
    assert_string_equal(b.data, "\"\"");
    buf_clear(&b);
    json_put_string(&b, "\b\t\n\f\r\"\\\x1f/", 9);
    assert_string_equal(b.data, "\"\\b\\t\\n\\f\\r\\\"\\\\\\u001f/\"");
    buf_clear(&b);
}

static void test_floats(void **state)
{
    (void)state;
    uint32_t bits = 12345;
    for (int i = 0; i < 20000; i++) {
        float f;
        bits = bits * 1664525u + 1013904223u;
        memcpy(&f, &bits, sizeof f);
        if (!isfinite(f))
            continue;
        json_put_float(&b, f);
        assert_true(strtof(b.data, NULL) == f);
        json_decref(parsed());
    }
    json_put_float(&b, -0.5f);
    assert_string_equal(b.data, "-0.5");
    buf_clear(&b);
    json_put_float(&b, -INFINITY);
    assert_string_equal(b.data, "-9999.0");
    buf_clear(&b);
    json_put_float(&b, INFINITY);
    json_put_float(&b, NAN);
    assert_string_equal(b.data, "9999.0null");
    buf_clear(&b);
}

#define HEAD "\"created\":5,\"id\":\"i\",\"model\":\"m\\\"\","

static const struct resp_top tops[] = {{7, -0.25f, "\xE2\x82", 2}, {8, -1.5f, "b", 1}, {9, -2, "b", 1}};
static const struct resp_token tokens[] = {
    {{6, NAN, "a\xC3\xA9", 3}, NULL, 0}, {{8, -1.5f, "b", 1}, tops, 3}, {{5, -INFINITY, "c", 1}, tops, 1}};
static const struct resp_logprobs lps = {tokens, 3, 10};

static void test_full(void **state)
{
    (void)state;
    struct resp_head h = {.kind = REQ_COMPLETION, .id = "i", .model = "m\"", .created = 5};
    struct resp_choice c[] = {{.text = "hi\n", .n_text = 3, .finish = "stop"},
                              {.index = 1, .text = "", .logprobs = &lps}};
    struct resp_usage u = {4000000000u, 4000000000u, 1};
    resp_full(&b, &h, c, 2, &u);
    expect(parsed(),
           "{\"choices\":[{\"finish_reason\":\"stop\",\"index\":0,\"logprobs\":null,\"text\":\"hi\\n\"},"
           "{\"finish_reason\":null,\"index\":1,\"logprobs\":{\"text_offset\":[10,12,13],"
           "\"token_logprobs\":[null,-1.5,-9999.0],\"tokens\":[\"a\xC3\xA9\",\"b\",\"c\"],\"top_logprobs\":[null,"
           "{\"b\":-1.5,\"bytes:\\\\xe2\\\\x82\":-0.25},{\"bytes:\\\\xe2\\\\x82\":-0.25,\"c\":-9999.0}]},"
           "\"text\":\"\"}]," HEAD "\"object\":\"text_completion\",\"usage\":{\"completion_tokens\":4000000000,"
           "\"prompt_tokens\":4000000000,\"prompt_tokens_details\":{\"cached_tokens\":1},"
           "\"total_tokens\":8000000000}}");
    h.kind = REQ_CHAT;
    h.fingerprint = "fp";
    struct resp_logprobs one = {tokens + 1, 1, 0};
    c[0].logprobs = &one;
    resp_full(&b, &h, c, 1, &(struct resp_usage){1, 2, 0});
    expect(parsed(),
           "{\"choices\":[{\"finish_reason\":\"stop\",\"index\":0,\"logprobs\":{\"content\":[{\"bytes\":[98],"
           "\"logprob\":-1.5,\"token\":\"b\",\"top_logprobs\":[{\"bytes\":[226,130],\"logprob\":-0.25,"
           "\"token\":\"\xEF\xBF\xBD\xEF\xBF\xBD\"},{\"bytes\":[98],\"logprob\":-1.5,\"token\":\"b\"},"
           "{\"bytes\":[98],\"logprob\":-2.0,\"token\":\"b\"}]}],\"refusal\":null},\"message\":{\"content\":\"hi\\n\","
           "\"refusal\":null,\"role\":\"assistant\"}}]," HEAD "\"object\":\"chat.completion\","
           "\"system_fingerprint\":\"fp\",\"usage\":{\"completion_tokens\":2,\"prompt_tokens\":1,"
           "\"prompt_tokens_details\":{\"cached_tokens\":0},\"total_tokens\":3}}");
}

/* Ids and the prompt's log-probabilities, in both kinds. */
static void test_ids_and_scores(void **state)
{
    (void)state;
    static const int32_t ids[] = {4, 6}, prompt[] = {1};
    struct buf scores = {0};
    resp_put_score(&scores, &tokens[0].token, 0, NULL, 0);
    resp_put_score(&scores, &tokens[1].token, 2, tops, 2);
    resp_put_score(&scores, &tokens[2].token, 900, tops, 1);
    struct resp_head h = {.kind = REQ_COMPLETION, .id = "i", .model = "m\"", .created = 5, .tokens_as_ids = true};
    struct resp_choice c = {.text = "x", .n_text = 1, .finish = "stop", .logprobs = &lps};
    c.token_ids = (struct resp_ids){ids, 2};
    c.prompt_token_ids = (struct resp_ids){prompt, 1};
    c.prompt_logprobs = &scores;
#define SCORES                                                                                                         \
    "\"prompt_logprobs\":[null,"                                                                                       \
    "{\"7\":{\"decoded_token\":\"\xEF\xBF\xBD\xEF\xBF\xBD\",\"logprob\":-0.25,\"rank\":1},"                            \
    "\"8\":{\"decoded_token\":\"b\",\"logprob\":-1.5,\"rank\":2}},"                                                    \
    "{\"5\":{\"decoded_token\":\"c\",\"logprob\":-9999.0,\"rank\":900},"                                               \
    "\"7\":{\"decoded_token\":\"\xEF\xBF\xBD\xEF\xBF\xBD\",\"logprob\":-0.25,\"rank\":1}}],\"prompt_token_ids\":[1]"
    resp_full(&b, &h, &c, 1, &(struct resp_usage){1, 2, 0});
    expect(parsed(),
           "{\"choices\":[{\"finish_reason\":\"stop\",\"index\":0,\"logprobs\":{\"text_offset\":[10,12,13],"
           "\"token_logprobs\":[null,-1.5,-9999.0],\"tokens\":[\"token_id:6\",\"token_id:8\",\"token_id:5\"],"
           "\"top_logprobs\":[null,{\"token_id:7\":-0.25,\"token_id:8\":-1.5,\"token_id:9\":-2.0},"
           "{\"token_id:5\":-9999.0,\"token_id:7\":-0.25}]}," SCORES ",\"text\":\"x\",\"token_ids\":[4,6]}]," HEAD
           "\"object\":\"text_completion\",\"usage\":{\"completion_tokens\":2,\"prompt_tokens\":1,"
           "\"prompt_tokens_details\":{\"cached_tokens\":0},\"total_tokens\":3}}");
    h.kind = REQ_CHAT;
    struct resp_logprobs one = {tokens + 1, 1, 0};
    c.logprobs = &one;
    c.token_ids.n = 0;
    resp_full(&b, &h, &c, 1, &(struct resp_usage){1, 2, 0});
    expect(parsed(),
           "{\"choices\":[{\"finish_reason\":\"stop\",\"index\":0,\"logprobs\":{\"content\":[{\"bytes\":[98],"
           "\"logprob\":-1.5,\"token\":\"token_id:8\",\"top_logprobs\":[{\"bytes\":[226,130],\"logprob\":-0.25,"
           "\"token\":\"token_id:7\"},{\"bytes\":[98],\"logprob\":-1.5,\"token\":\"token_id:8\"},"
           "{\"bytes\":[98],\"logprob\":-2.0,\"token\":\"token_id:9\"}]}],\"refusal\":null},"
           "\"message\":{\"content\":\"x\",\"refusal\":null,\"role\":\"assistant\"},\"token_ids\":[]}]," HEAD
           "\"object\":\"chat.completion\"," SCORES ",\"usage\":{\"completion_tokens\":2,\"prompt_tokens\":1,"
           "\"prompt_tokens_details\":{\"cached_tokens\":0},\"total_tokens\":3}}");
    resp_chunk_role(&b, &h, 0, &c.prompt_token_ids);
    expect(event(),
           "{\"choices\":[{\"delta\":{\"content\":\"\",\"role\":\"assistant\"},\"finish_reason\":null,"
           "\"index\":0,\"logprobs\":null}]," HEAD "\"object\":\"chat.completion.chunk\",\"prompt_token_ids\":[1]}");
    buf_free(&scores);
}

static void test_chunks(void **state)
{
    (void)state;
    struct resp_head h = {.kind = REQ_CHAT, .id = "i", .model = "m\"", .created = 5};
    resp_chunk_role(&b, &h, 2, NULL);
    expect(event(), "{\"choices\":[{\"delta\":{\"content\":\"\",\"role\":\"assistant\"},\"finish_reason\":null,"
                    "\"index\":2,\"logprobs\":null}]," HEAD "\"object\":\"chat.completion.chunk\"}");
    h.include_usage = true;
    resp_chunk(&b, &h, &(struct resp_choice){.text = "x", .n_text = 1});
    expect(event(), "{\"choices\":[{\"delta\":{\"content\":\"x\"},\"finish_reason\":null,\"index\":0,"
                    "\"logprobs\":null}]," HEAD "\"object\":\"chat.completion.chunk\",\"usage\":null}");
    resp_chunk(&b, &h, &(struct resp_choice){.text = "", .finish = "length"});
    expect(event(), "{\"choices\":[{\"delta\":{},\"finish_reason\":\"length\",\"index\":0,\"logprobs\":null}]," HEAD
                    "\"object\":\"chat.completion.chunk\",\"usage\":null}");
    h.kind = REQ_COMPLETION;
    resp_chunk(&b, &h, &(struct resp_choice){.index = 1, .text = "y", .n_text = 1, .finish = "stop"});
    expect(event(), "{\"choices\":[{\"finish_reason\":\"stop\",\"index\":1,\"logprobs\":null,\"text\":\"y\"}]," HEAD
                    "\"object\":\"text_completion\",\"usage\":null}");
    resp_chunk_usage(&b, &h, &(struct resp_usage){1, 2, 0});
    json_t *j = event();
    assert_int_equal(json_array_size(json_object_get(j, "choices")), 0);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(j, "usage"), "total_tokens")), 3);
    json_decref(j);
    resp_chunk_done(&b);
    assert_string_equal(b.data, "data: [DONE]\n\n");
    buf_clear(&b);
    struct err e = {.msg = "it broke"};
    resp_chunk_error(&b, 500, &e);
    expect(event(), "{\"error\":{\"code\":null,\"message\":\"it broke\",\"param\":null,\"type\":\"server_error\"}}");
}

static void test_errors(void **state)
{
    (void)state;
    static const struct {
        int status;
        const char *type;
    } cases[] = {{400, "invalid_request_error"}, {401, "authentication_error"},  {403, "permission_error"},
                 {404, "not_found_error"},       {405, "invalid_request_error"}, {409, "conflict_error"},
                 {413, "invalid_request_error"}, {422, "invalid_request_error"}, {429, "rate_limit_error"},
                 {500, "server_error"},          {503, "overloaded_error"},      {504, "server_error"}};
    struct err e = {.param = "top_p", .msg = "bad\x01\xFF"};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        resp_error(&b, cases[i].status, &e, NULL);
        json_t *j = parsed(), *x = json_object_get(j, "error");
        assert_string_equal(json_string_value(json_object_get(x, "type")), cases[i].type);
        assert_string_equal(json_string_value(json_object_get(x, "param")), "top_p");
        assert_string_equal(json_string_value(json_object_get(x, "message")), "bad\x01\xEF\xBF\xBD");
        assert_true(json_is_null(json_object_get(x, "code")));
        json_decref(j);
    }
    err_param(&e, -ENOENT, "model", "no task 'x'");
    resp_error(&b, resp_status(e.code), &e, NULL);
    expect(parsed(), "{\"error\":{\"code\":\"model_not_found\",\"message\":\"no task 'x'\",\"param\":\"model\","
                     "\"type\":\"not_found_error\"}}");
    assert_int_equal(resp_status(-EAGAIN), 429);
    assert_int_equal(resp_status(-EIO), 500);
}

static void test_models(void **state)
{
    (void)state;
    struct resp_model m[] = {{"base", "cpetd", "/m", NULL, 1, 8192}, {"task", "t", NULL, "base", 2, 8192}};
    resp_models(&b, m, 2);
    expect(parsed(), "{\"data\":[{\"created\":1,\"id\":\"base\",\"max_model_len\":8192,\"object\":\"model\","
                     "\"owned_by\":\"cpetd\",\"parent\":null,\"root\":\"/m\"},{\"created\":2,\"id\":\"task\","
                     "\"max_model_len\":8192,\"object\":\"model\",\"owned_by\":\"t\",\"parent\":\"base\","
                     "\"root\":\"task\"}],\"object\":\"list\"}");
    struct buf small;
    buf_init(&small, 20);
    resp_models(&small, m, 2);
    assert_true(small.failed && small.len <= 20);
    buf_free(&small);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_strings),        cmocka_unit_test(test_floats), cmocka_unit_test(test_full),
        cmocka_unit_test(test_ids_and_scores), cmocka_unit_test(test_chunks), cmocka_unit_test(test_errors),
        cmocka_unit_test(test_models),
    };
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    buf_free(&b);
    return rc;
}
