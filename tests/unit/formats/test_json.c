/* test_json.c - JSON under limits and the typed getters: every refusal names its key or place. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "formats/json.h"

static int parse(const char *s, const struct json_limits *l, struct err *e)
{
    json_t *v = NULL;
    int r = json_parse(s, strlen(s), l, &v, e);
    if (r)
        assert_null(v);
    json_decref(v);
    return r;
}

static void test_limits(void **s)
{
    (void)s;
    struct err e = {0};
    struct json_limits three = {.depth = 3}, few = {.values = 4}, scalars = {.scalars = true};
    assert_int_equal(parse("[[[1]]]", &three, &e), 0);
    assert_int_equal(parse("[[[[1]]]]", &three, &e), -E2BIG);
    assert_non_null(strstr(e.msg, "byte 3"));
    assert_int_equal(parse("[\"[[[[[[{{{\\\"[[[\"]", &three, &e), 0);
    assert_int_equal(parse("[1,2,3]", &few, &e), 0);
    assert_int_equal(parse("[1,2,3,4,5]", &few, &e), -E2BIG);
    char deep[600];
    memset(deep, '[', 300);
    memset(deep + 300, ']', 299);
    deep[599] = 0;
    assert_int_equal(parse(deep, NULL, &e), -E2BIG);
    assert_int_equal(parse("3", &scalars, &e), 0);
    assert_int_equal(parse("3", NULL, &e), -EINVAL);
    assert_int_equal(json_parse("", 0, NULL, &(json_t *){NULL}, &e), -EINVAL);
}

static void test_refused(void **s)
{
    (void)s;
    static const char *const bad[] = {
        "{\"a\":1,\"a\":2}",
        "{\"a\":1}x",
        "{\"a\":1,}",
        "[1,]",
        "{'a':1}",
        "{\"a\":\"\\u0000\"}",
        "[9223372036854775808]",
        "[1e999]",
        "[NaN]",
        "[Infinity]",
        "[\"\xC3\"]",
        "[\"\xED\xA0\x80\"]",
        "[01]",
        "[\"a",
        "[",
        "]",
        "{\"a\"}",
        "[\"\\uD800\"]",
        "[\"\\",
        "// x\n[1]",
        "[1 2]",
        "[+1]",
        "[.5]",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e = {0};
        assert_int_equal(parse(bad[i], NULL, &e), -EINVAL);
        assert_non_null(strstr(e.msg, "line 1"));
    }
}

static void test_getters(void **s)
{
    (void)s;
    struct err e = {0};
    json_t *o = NULL;
    const char *text =
        "{\"n\":7,\"f\":1.5,\"s\":\"x\",\"b\":true,\"z\":null,\"o\":{},\"a\":[1],\"neg\":-1,\"big\":4294967296}";
    assert_int_equal(json_parse(text, strlen(text), NULL, &o, &e), 0);
    uint32_t u = 9, def = 5;
    uint64_t w = 0;
    assert_int_equal(json_get_u32(o, "n", 0, 10, NULL, &u, &e), 0);
    assert_int_equal(u, 7);
    assert_int_equal(json_get_u32(o, "n", 0, 6, NULL, &u, &e), -EINVAL);
    assert_string_equal(e.param, "n");
    assert_string_equal(e.msg, "\"n\" must be an integer from 0 to 6");
    assert_int_equal(json_get_u32(o, "neg", 0, 10, NULL, &u, &e), -EINVAL);
    assert_int_equal(json_get_u32(o, "big", 0, UINT32_MAX, NULL, &u, &e), -EINVAL);
    assert_int_equal(u, 7);
    assert_int_equal(json_get_u64(o, "big", 0, UINT64_MAX, NULL, &w, &e), 0);
    assert_true(w == 4294967296u);
    assert_int_equal(json_get_u32(o, "f", 0, 10, NULL, &u, &e), -EINVAL);
    assert_int_equal(json_get_u32(o, "none", 0, 10, NULL, &u, &e), -EINVAL);
    assert_string_equal(e.msg, "\"none\" is missing");
    assert_int_equal(json_get_u32(o, "z", 0, 10, &def, &u, &e), 0);
    assert_int_equal(u, 5);
    double d = 0, dd = 2.5;
    assert_int_equal(json_get_f64(o, "n", 0, 10, NULL, &d, &e), 0);
    assert_true(d == 7);
    assert_int_equal(json_get_f64(o, "f", 2, 10, NULL, &d, &e), -EINVAL);
    assert_int_equal(json_get_f64(o, "s", 2, 10, NULL, &d, &e), -EINVAL);
    assert_int_equal(json_get_f64(o, "none", 2, 10, &dd, &d, &e), 0);
    assert_true(d == 2.5);
    assert_int_equal(json_get_f64(o, "none", 2, 10, NULL, &d, &e), -EINVAL);
    bool b = false, db = true;
    assert_int_equal(json_get_bool(o, "b", NULL, &b, &e), 0);
    assert_true(b);
    assert_int_equal(json_get_bool(o, "n", NULL, &b, &e), -EINVAL);
    assert_int_equal(json_get_bool(o, "none", NULL, &b, &e), -EINVAL);
    assert_int_equal(json_get_bool(o, "none", &db, &b, &e), 0);
    const char *str = NULL;
    assert_int_equal(json_get_str(o, "s", true, &str, &e), 0);
    assert_string_equal(str, "x");
    assert_int_equal(json_get_str(o, "n", true, &str, &e), -EINVAL);
    assert_int_equal(json_get_str(o, "z", true, &str, &e), -EINVAL);
    assert_int_equal(json_get_str(o, "z", false, &str, &e), 0);
    assert_null(str);
    json_t *c = NULL;
    assert_int_equal(json_get_object(o, "o", true, &c, &e), 0);
    assert_int_equal(json_get_object(o, "a", true, &c, &e), -EINVAL);
    assert_string_equal(e.msg, "\"a\" must be an object");
    assert_int_equal(json_get_array(o, "a", true, &c, &e), 0);
    assert_int_equal(json_get_array(o, "o", true, &c, &e), -EINVAL);
    assert_int_equal(json_get_array(o, "none", true, &c, &e), -EINVAL);
    assert_int_equal(json_get_array(o, "none", false, &c, &e), 0);
    assert_null(c);
    json_decref(o);
}

static void test_files(void **s)
{
    (void)s;
    struct err e = {0};
    char path[64];
    snprintf(path, sizeof path, "/tmp/cpet_json_%ld.json", (long)getpid());
    json_t *v = json_pack("{s:s,s:[i,i]}", "name", "\xC3\xA9\n", "list", 1, 2), *w = NULL;
    assert_int_equal(json_write_file(path, v, &e), 0);
    assert_int_equal(json_read_file(path, 1000, &w, &e), 0);
    assert_true(json_equal(v, w));
    json_decref(w);
    w = NULL;
    assert_int_equal(json_read_file(path, 10, &w, &e), -EFBIG);
    FILE *f = fopen(path, "w");
    fputs("{\n  \"a\": }", f);
    fclose(f);
    assert_int_equal(json_read_file(path, 1000, &w, &e), -EINVAL);
    assert_non_null(strstr(e.msg, path));
    assert_non_null(strstr(e.msg, "line 2"));
    unlink(path);
    assert_int_equal(json_read_file(path, 1000, &w, &e), -ENOENT);
    assert_null(w);
    json_decref(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_getters),
        cmocka_unit_test(test_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
