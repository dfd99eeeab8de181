/* test_endpoints.c - the bodies of the smaller endpoints: every field, every refusal with its name, and the answers. */
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

#include "proto/endpoints.h"

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

static int parse(enum req_kind kind, const char *body, struct req **r)
{
    struct req_limits lim = req_limits_default;
    lim.vocab = 1000;
    lim.hidden = 64;
    memset(&err, 0, sizeof err);
    *r = NULL;
    return req_parse_more(kind, body, strlen(body), &lim, arena, r, &err);
}

static struct req *good(enum req_kind kind, const char *body)
{
    struct req *r;
    if (parse(kind, body, &r))
        fail_msg("%s: %s", body, err.msg);
    assert_int_equal(r->kind, kind);
    assert_non_null(r->more);
    return r;
}

static void test_tokenize(void **state)
{
    (void)state;
    struct req *r = good(REQ_TOKENIZE, "{\"prompt\":\"a\\u0000b\"}");
    assert_null(r->model.ptr);
    assert_int_equal(r->prompts[0].text.len, 3);
    assert_true(r->more->special && r->more->generation_prompt && !r->more->token_strs);
    r = good(REQ_TOKENIZE, "{\"model\":\"m\",\"prompt\":\"\",\"add_special_tokens\":false,\"return_token_strs\":true,"
                           "\"messages\":null}");
    assert_string_equal(r->model.ptr, "m");
    assert_true(!r->more->special && r->more->token_strs && r->n_prompts == 1);
    r = good(REQ_TOKENIZE, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"add_generation_prompt\":false}");
    assert_true(!r->more->special && !r->more->generation_prompt && r->n_messages == 1);
    assert_string_equal(r->messages_json.ptr, "[{\"role\":\"user\",\"content\":\"x\"}]");
    r = good(REQ_TOKENIZE, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"add_special_tokens\":true}");
    assert_true(r->more->special && r->more->generation_prompt);
    r = good(REQ_DETOKENIZE, "{\"tokens\":[1,999]}");
    assert_int_equal(r->prompts[0].n_ids, 2);
    assert_int_equal(good(REQ_DETOKENIZE, "{\"tokens\":[]}")->prompts[0].n_ids, 0);
}

static void test_embeddings(void **state)
{
    (void)state;
    struct req *r = good(REQ_EMBEDDING, "{\"model\":\"m\",\"input\":\"x\"}");
    assert_true(r->more->normalize && !r->more->base64 && r->more->pooling == REQ_POOL_MEAN && !r->more->dimensions);
    assert_true(r->n == 1 && r->logprobs == -1 && !r->sampling.max_tokens);
    r = good(REQ_EMBEDDING, "{\"model\":\"m\",\"input\":[[1,2],[3]],\"encoding_format\":\"base64\",\"dimensions\":64,"
                            "\"pooling\":\"last\",\"normalize\":false,\"user\":\"u\"}");
    assert_true(!r->more->normalize && r->more->base64 && r->more->pooling == REQ_POOL_LAST);
    assert_int_equal(r->more->dimensions, 64);
    assert_int_equal(r->n_prompts, 2);
    assert_int_equal(good(REQ_EMBEDDING, "{\"model\":\"m\",\"input\":[1,2]}")->prompts[0].n_ids, 2);
    assert_int_equal(good(REQ_EMBEDDING, "{\"model\":\"m\",\"input\":[\"a\",\"b\"]}")->n_prompts, 2);
}

static void test_score(void **state)
{
    (void)state;
    struct req *r = good(REQ_SCORE, "{\"model\":\"m\",\"text_1\":\"a\",\"text_2\":[\"b\",\"c\"],\"user\":null}");
    assert_int_equal(r->n_prompts, 1);
    assert_int_equal(r->more->n_text_2, 2);
    assert_string_equal(r->more->text_2[1].ptr, "c");
    r = good(REQ_SCORE, "{\"model\":\"m\",\"text_1\":[\"a\",\"d\"],\"text_2\":[\"b\",\"c\"]}");
    assert_string_equal(r->prompts[1].text.ptr, "d");
    good(REQ_SCORE, "{\"model\":\"m\",\"text_1\":\"a\",\"text_2\":\"b\"}");
    good(REQ_SCORE, "{\"model\":\"m\",\"text_1\":[\"a\"],\"text_2\":[\"b\",\"c\",\"d\"]}");
}

#define M "{\"model\":\"m\","
#define CHAT "\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]"

static const struct {
    enum req_kind kind;
    const char *body, *param, *says;
} bad[] = {
    {REQ_TOKENIZE, "{}", "prompt", "prompt or messages is required"},
    {REQ_TOKENIZE, "[]", "", "must be a JSON object"},
    {REQ_TOKENIZE, "{\"prompt\":\"a\"", "", "not valid JSON"},
    {REQ_TOKENIZE, "{\"prompt\":null}", "prompt", "prompt or messages is required"},
    {REQ_TOKENIZE, "{\"prompt\":[\"a\"]}", "prompt", "prompt must be a string"},
    {REQ_TOKENIZE, "{\"prompt\":[1]}", "prompt", "prompt must be a string"},
    {REQ_TOKENIZE, "{\"prompt\":\"a\"," CHAT "}", "messages", "cannot both be given"},
    {REQ_TOKENIZE, "{\"prompt\":\"a\",\"prompt\":\"b\"}", "", "duplicate"},
    {REQ_TOKENIZE, "{\"prompt\":\"a\",\"model\":\"\"}", "model", "1 to 256 bytes"},
    {REQ_TOKENIZE, "{\"prompt\":\"a\",\"model\":1}", "model", "must be a string"},
    {REQ_TOKENIZE, "{\"prompt\":\"a\",\"add_special_tokens\":1}", "add_special_tokens", "true or false"},
    {REQ_TOKENIZE, "{\"prompt\":\"a\",\"return_token_strs\":\"yes\"}", "return_token_strs", "true or false"},
    {REQ_TOKENIZE, "{\"prompt\":\"a\",\"add_generation_prompt\":true}", "add_generation_prompt", "only with messages"},
    {REQ_TOKENIZE, "{" CHAT ",\"add_generation_prompt\":0}", "add_generation_prompt", "true or false"},
    {REQ_TOKENIZE, "{" CHAT ",\"continue_final_message\":true}", "continue_final_message", "is not supported"},
    {REQ_TOKENIZE, "{" CHAT ",\"chat_template\":\"x\"}", "chat_template", "is not supported"},
    {REQ_TOKENIZE, "{" CHAT ",\"tools\":[]}", "tools", "is not supported"},
    {REQ_TOKENIZE, "{\"messages\":[]}", "messages", "list of 1 to"},
    {REQ_TOKENIZE, "{\"messages\":[{\"role\":\"tool\",\"content\":\"x\"}]}", "messages[0].role", "not supported"},
    {REQ_TOKENIZE, "{\"prompt\":\"a\",\"max_tokens\":1}", "max_tokens", "not supported in this endpoint"},
    {REQ_TOKENIZE, "{\"prompt\":\"a\",\"whatever\":1}", "whatever", "unknown field"},
    {REQ_TOKENIZE, "{\"prompt\":\"\xff\"}", "", "UTF-8"},
    {REQ_DETOKENIZE, "{}", "tokens", "tokens is required"},
    {REQ_DETOKENIZE, "{\"tokens\":\"a\"}", "tokens", "list of token ids"},
    {REQ_DETOKENIZE, "{\"tokens\":[1,\"a\"]}", "tokens", "token 1 must be an integer"},
    {REQ_DETOKENIZE, "{\"tokens\":[1000]}", "tokens", "from 0 to 999"},
    {REQ_DETOKENIZE, "{\"tokens\":[-1]}", "tokens", "from 0 to 999"},
    {REQ_DETOKENIZE, "{\"tokens\":[1.5]}", "tokens", "must be an integer"},
    {REQ_DETOKENIZE, "{\"tokens\":[[1]]}", "tokens", "must be an integer"},
    {REQ_DETOKENIZE, "{\"tokens\":[99999999999999999999]}", "", "not valid JSON"},
    {REQ_DETOKENIZE, "{\"tokens\":[1],\"prompt\":\"a\"}", "prompt", "not supported in this endpoint"},
    {REQ_EMBEDDING, "{\"input\":\"a\"}", "model", "model is required"},
    {REQ_EMBEDDING, M "\"input\":null}", "input", "input is required"},
    {REQ_EMBEDDING, M "\"input\":[]}", "input", "none of them empty"},
    {REQ_EMBEDDING, M "\"input\":[[]]}", "input", "none of them empty"},
    {REQ_EMBEDDING, M "\"input\":[\"a\",1]}", "input", "none of them empty"},
    {REQ_EMBEDDING, M "\"input\":{\"a\":1}}", "input", "must be a string"},
    {REQ_EMBEDDING, M "\"input\":[1000]}", "input", "from 0 to 999"},
    {REQ_EMBEDDING, M "\"input\":\"a\",\"encoding_format\":\"hex\"}", "encoding_format", "\"float\" or \"base64\""},
    {REQ_EMBEDDING, M "\"input\":\"a\",\"encoding_format\":1}", "encoding_format", "\"float\" or \"base64\""},
    {REQ_EMBEDDING, M "\"input\":\"a\",\"dimensions\":0}", "dimensions", "from 1 to 64"},
    {REQ_EMBEDDING, M "\"input\":\"a\",\"dimensions\":65}", "dimensions", "from 1 to 64"},
    {REQ_EMBEDDING, M "\"input\":\"a\",\"dimensions\":-9223372036854775808}", "dimensions", "from 1 to 64"},
    {REQ_EMBEDDING, M "\"input\":\"a\",\"dimensions\":8.5}", "dimensions", "from 1 to 64"},
    {REQ_EMBEDDING, M "\"input\":\"a\",\"pooling\":\"cls\"}", "pooling", "\"mean\" or \"last\""},
    {REQ_EMBEDDING, M "\"input\":\"a\",\"normalize\":1}", "normalize", "true or false"},
    {REQ_EMBEDDING, M "\"input\":\"a\",\"user\":{}}", "user", "must be a string"},
    {REQ_EMBEDDING, M "\"input\":\"a\",\"truncate_prompt_tokens\":3}", "truncate_prompt_tokens", "is not supported"},
    {REQ_SCORE, "{\"text_1\":\"a\",\"text_2\":\"b\"}", "model", "model is required"},
    {REQ_SCORE, M "\"text_2\":\"b\"}", "text_1", "text_1 is required"},
    {REQ_SCORE, M "\"text_1\":\"b\"}", "text_2", "text_2 is required"},
    {REQ_SCORE, M "\"text_1\":[],\"text_2\":\"b\"}", "text_1", "list of 1 to 256"},
    {REQ_SCORE, M "\"text_1\":\"a\",\"text_2\":[1]}", "text_2", "list of 1 to 256"},
    {REQ_SCORE, M "\"text_1\":{},\"text_2\":\"b\"}", "text_1", "must be a string"},
    {REQ_SCORE, M "\"text_1\":[\"a\",\"b\"],\"text_2\":\"b\"}", "text_1", "as many as text_2 has (1, not 2)"},
    {REQ_SCORE, M "\"text_1\":\"a\",\"text_2\":\"b\",\"input\":\"a\"}", "input", "unknown field"},
};

static void test_bad(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct req *r;
        int rc = parse(bad[i].kind, bad[i].body, &r);
        if (rc != -EINVAL || strcmp(err.param, bad[i].param) || !strstr(err.msg, bad[i].says))
            fail_msg("%s: %d, param '%s', '%s'; expected '%s', '%s'", bad[i].body, rc, err.param, err.msg, bad[i].param,
                     bad[i].says);
        assert_null(r);
    }
}

static void test_limits(void **state)
{
    (void)state;
    struct req *r;
    char *body = malloc(1u << 20), *p = body;
    assert_non_null(body);
    p += sprintf(p, M "\"text_1\":\"a\",\"text_2\":[\"b\"");
    for (int i = 0; i < 256; i++)
        p += sprintf(p, ",\"b\"");
    strcpy(p, "]}");
    assert_int_equal(parse(REQ_SCORE, body, &r), -EINVAL);
    assert_string_equal(err.param, "text_2");
    p = body + sprintf(body, "{\"tokens\":[1");
    for (int i = 0; i < (1 << 17); i++)
        p += sprintf(p, ",1");
    strcpy(p, "]}");
    assert_int_equal(parse(REQ_DETOKENIZE, body, &r), -EINVAL);
    assert_string_equal(err.param, "tokens");
    free(body);
    struct arena *small = arena_create(300), *whole = arena;
    arena = small;
    assert_int_equal(parse(REQ_SCORE, M "\"text_1\":\"a\",\"text_2\":[\"b\",\"c\",\"d\",\"e\"]}", &r), -E2BIG);
    arena = whole;
    arena_free(small);
}

static json_t *read_back(struct buf *b)
{
    assert_false(b->failed);
    json_t *j = json_loadb(b->data, b->len, JSON_REJECT_DUPLICATES, NULL);
    if (!j)
        fail_msg("%s", b->data);
    buf_free(b);
    return j;
}

static void test_answers(void **state)
{
    (void)state;
    const int32_t ids[] = {1, 22};
    const struct req_str strs[] = {{"a\"", 2}, {"\xC4\xA0x", 3}};
    struct buf b = {0};
    resp_tokenize(&b, ids, strs, 2, 64);
    assert_string_equal(
        b.data, "{\"count\":2,\"max_model_len\":64,\"tokens\":[1,22],\"token_strs\":[\"a\\\"\",\"\xC4\xA0x\"]}");
    json_decref(read_back(&b));
    resp_tokenize(&b, ids, strs, 0, 64);
    assert_string_equal(b.data, "{\"count\":0,\"max_model_len\":64,\"tokens\":[],\"token_strs\":[]}");
    buf_clear(&b);
    resp_tokenize(&b, ids, NULL, 1, 64);
    assert_string_equal(b.data, "{\"count\":1,\"max_model_len\":64,\"tokens\":[1],\"token_strs\":null}");
    buf_clear(&b);
    resp_detokenize(&b, "a\0\n", 3);
    assert_string_equal(b.data, "{\"prompt\":\"a\\u0000\\n\"}");
    buf_clear(&b);
    const struct resp_tokenizer t = {
        .bos = "", .eos = "</s>", .pad = "", .chat_template = {"{{x}}", 5}, .vocab = 9, .max_model_len = 64};
    resp_tokenizer(&b, &t);
    json_t *j = read_back(&b);
    assert_true(json_is_null(json_object_get(j, "bos_token")) && json_is_null(json_object_get(j, "pad_token")));
    assert_string_equal(json_string_value(json_object_get(j, "eos_token")), "</s>");
    assert_string_equal(json_string_value(json_object_get(j, "chat_template")), "{{x}}");
    json_decref(j);
    const struct resp_head h = {.kind = REQ_SCORE, .id = "score-1", .model = "m", .created = 7};
    const struct resp_score s[] = {{-3, 2}, {-0.5, 1}};
    resp_scores(&b, &h, s, 2, 9);
    assert_string_equal(b.data,
                        "{\"id\":\"score-1\",\"object\":\"list\",\"created\":7,\"model\":\"m\",\"data\":[{\"index\":0,"
                        "\"object\":\"score\",\"score\":-3.0,\"mean\":-1.5,\"tokens\":2},{\"index\":1,\"object\":"
                        "\"score\",\"score\":-0.5,\"mean\":-0.5,\"tokens\":1}],\"usage\":{\"prompt_tokens\":9,"
                        "\"total_tokens\":9}}");
    buf_free(&b);
}

static int digit(char c)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *p = c ? strchr(digits, c) : NULL;
    return p ? (int)(p - digits) : -1;
}

/* Every length, past the writer's own buffer: the bytes come back, with the right padding. */
static void test_base64(void **state)
{
    (void)state;
    enum { MOST = 600 };
    float v[MOST];
    float *rows[1] = {v};
    for (int i = 0; i < MOST; i++)
        v[i] = sinf((float)i) * powf(10, (float)(i % 60 - 30));
    for (size_t n = 1; n <= MOST; n += n < 20 ? 1 : 29) {
        struct buf b = {0};
        resp_embeddings(&b, "m", rows, 1, n, true, 3);
        json_t *j = read_back(&b);
        const char *s = json_string_value(json_object_get(json_array_get(json_object_get(j, "data"), 0), "embedding"));
        assert_non_null(s);
        assert_int_equal(strlen(s), (4 * n + 2) / 3 * 4);
        unsigned char out[4 * MOST + 3];
        size_t at = 0;
        uint32_t group = 0;
        for (size_t i = 0; digit(s[i]) >= 0; i++) {
            group = group << 6 | (uint32_t)digit(s[i]);
            if (i % 4)
                out[at++] = (unsigned char)(group >> (6 - 2 * (i % 4)));
        }
        assert_int_equal(at, 4 * n);
        assert_memory_equal(out, v, 4 * n);
        json_decref(j);
    }
    struct buf b = {0};
    resp_embeddings(&b, "m", rows, 1, 3, false, 3);
    json_t *j = read_back(&b), *e = json_object_get(json_array_get(json_object_get(j, "data"), 0), "embedding");
    for (size_t i = 0; i < 3; i++)
        assert_true((float)json_number_value(json_array_get(e, i)) == v[i]);
    json_decref(j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_tokenize, setup, teardown),
        cmocka_unit_test_setup_teardown(test_embeddings, setup, teardown),
        cmocka_unit_test_setup_teardown(test_score, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad, setup, teardown),
        cmocka_unit_test_setup_teardown(test_limits, setup, teardown),
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_base64),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
