/* test_openapi.c - the OpenAPI document beside the parsers: the same fields in both, with null allowed, and references
 * that lead somewhere. The paths are held to the server's by tests/e2e/test_endpoints.py.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "proto/parse.h"

static json_t *doc;

static int setup(void **s)
{
    size_t n;
    const char *text = resp_openapi(&n);
    json_error_t e;
    (void)s;
    doc = json_loadb(text, n, JSON_REJECT_DUPLICATES, &e);
    if (!doc)
        fprintf(stderr, "openapi.json:%d: %s\n", e.line, e.text);
    return doc ? 0 : -1;
}

static int teardown(void **s)
{
    (void)s;
    json_decref(doc);
    return 0;
}

static const json_t *schema(const char *name)
{
    const json_t *s = json_object_get(json_object_get(json_object_get(doc, "components"), "schemas"), name);
    if (!s)
        fail_msg("openapi.json has no schema %s", name);
    return s;
}

static bool in_table(const struct field *f, size_t n, unsigned where, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (f[i].where & where && !strcmp(f[i].name, name))
            return true;
    return false;
}

/* props of each of the schemas (variants of one request) together are the table's fields. */
static void same_fields(const char *what, const json_t *const *schemas, size_t n_schemas, const struct field *f,
                        size_t n, unsigned where)
{
    for (size_t k = 0; k < n_schemas; k++) {
        const char *name;
        json_t *v;
        json_object_foreach(json_object_get(schemas[k], "properties"), name, v)
        {
            if (!in_table(f, n, where, name))
                fail_msg("%s: openapi.json has %s, the server does not", what, name);
        }
        assert_string_equal(
            json_string_value(json_object_get(json_object_get(schemas[k], "additionalProperties"), "type")), "null");
    }
    for (size_t i = 0; i < n; i++) {
        bool there = !(f[i].where & where);
        for (size_t k = 0; k < n_schemas && !there; k++)
            there = json_object_get(json_object_get(schemas[k], "properties"), f[i].name) != NULL;
        if (!there)
            fail_msg("%s: the server reads %s, openapi.json lacks it", what, f[i].name);
    }
}

static size_t length(const struct field *f)
{
    size_t n = 0;
    while (f[n].name)
        n++;
    return n;
}

static void test_fields(void **st)
{
    (void)st;
    const json_t *one = schema("CompletionRequest");
    same_fields("completions", &one, 1, req_fields, req_n_fields, IN_COMPLETION);
    one = schema("ChatRequest");
    same_fields("chats", &one, 1, req_fields, req_n_fields, IN_CHAT);
    one = schema("EmbeddingRequest");
    same_fields("embeddings", &one, 1, req_embedding_fields, length(req_embedding_fields), IN_MORE);
    one = schema("ScoreRequest");
    same_fields("score", &one, 1, req_score_fields, length(req_score_fields), IN_MORE);
    one = schema("DetokenizeRequest");
    same_fields("detokenize", &one, 1, req_detokenize_fields, length(req_detokenize_fields), IN_MORE);
    const json_t *variants = json_object_get(schema("TokenizeRequest"), "oneOf");
    const json_t *two[] = {json_array_get(variants, 0), json_array_get(variants, 1)};
    assert_int_equal(json_array_size(variants), 2);
    same_fields("tokenize", two, 2, req_tokenize_fields, length(req_tokenize_fields), IN_MORE);
}

static double bound(const char *name, const char *property, const char *key)
{
    const json_t *v = json_object_get(json_object_get(json_object_get(schema(name), "properties"), property), key);
    if (!json_is_number(v))
        fail_msg("%s.%s has no %s", name, property, key);
    return json_number_value(v);
}

static void test_limits(void **st)
{
    (void)st;
    const struct req_limits *l = &req_limits_default;
    static const char *const both[] = {"CompletionRequest", "ChatRequest"};
    for (size_t i = 0; i < 2; i++) {
        assert_true(bound(both[i], "max_tokens", "maximum") == l->max_tokens);
        assert_true(bound(both[i], "min_tokens", "maximum") == l->max_tokens);
        assert_true(bound(both[i], "n", "maximum") == l->max_n);
        assert_true(bound(both[i], "prompt_logprobs", "maximum") == l->max_logprobs);
        assert_true(bound(both[i], "logit_bias", "maxProperties") == l->max_bias);
    }
    assert_true(bound("CompletionRequest", "logprobs", "maximum") == l->max_logprobs);
    assert_true(bound("CompletionRequest", "best_of", "maximum") == l->max_n);
    assert_true(bound("ChatRequest", "top_logprobs", "maximum") == l->max_logprobs);
    assert_true(bound("ChatRequest", "max_completion_tokens", "maximum") == l->max_tokens);
    assert_true(bound("DetokenizeRequest", "tokens", "maxItems") == (double)l->max_prompt_tokens);
    assert_true(json_number_value(json_object_get(schema("TokenIds"), "maxItems")) == (double)l->max_prompt_tokens);
    assert_true(json_number_value(json_object_get(schema("Messages"), "maxItems")) == (double)l->max_messages);
}

static void check_refs(const json_t *v)
{
    const char *key;
    json_t *one;
    size_t i;
    json_object_foreach((json_t *)v, key, one)
    {
        if (strcmp(key, "$ref")) {
            check_refs(one);
            continue;
        }
        char path[256], *save = NULL;
        const json_t *at = doc;
        snprintf(path, sizeof path, "%s", json_string_value(one));
        for (char *p = strtok_r(path + 2, "/", &save); p; p = strtok_r(NULL, "/", &save))
            at = json_object_get(at, p);
        if (!at)
            fail_msg("%s leads nowhere", json_string_value(one));
    }
    json_array_foreach(v, i, one)
    {
        check_refs(one);
    }
}

static void test_document(void **st)
{
    (void)st;
    assert_string_equal(json_string_value(json_object_get(doc, "openapi")), "3.1.0");
    assert_string_equal(json_string_value(json_object_get(json_object_get(doc, "info"), "version")), CPET_VERSION);
    check_refs(doc);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_document), cmocka_unit_test(test_fields),
                                       cmocka_unit_test(test_limits)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
