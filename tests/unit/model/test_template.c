/* test_template.c - bounds, errors and purity of the chat-template engine. What it renders is compared with jinja2's
 * renderings by tests/e2e/test_template.py. */
#include <stdarg.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model/template.h"

static int render(const char *src, const struct tmpl_limits *lim, struct buf *out, struct err *e)
{
    struct tmpl *t = NULL;
    memset(e, 0, sizeof *e);
    int rc = tmpl_parse(src, strlen(src), &t, e);
    if (!rc)
        rc = tmpl_render(t, NULL, lim, out, e);
    tmpl_free(t);
    return rc;
}

static void check_error(const char *src, int code, const char *part)
{
    struct buf out = {0};
    struct err e;
    int rc = render(src, NULL, &out, &e);
    if (rc != code || !strstr(e.msg, part))
        print_error("%s: %d %s, wanted %d %s\n", src, rc, e.msg, code, part);
    assert_int_equal(rc, code);
    assert_non_null(strstr(e.msg, part));
    assert_int_equal(out.len, 0);
    buf_free(&out);
}

static void refusals(void **state)
{
    static const struct {
        const char *src, *part;
    } cases[] = {
        {"a\n {{ x|nope }}", "line 2, column 7: the filter nope is not supported"},
        {"{% include 'x' %}", "line 1, column 1: the tag include"},
        {"é {{ x is nope }}", "column 8: the test nope"},
        {"{{ x.nope() }}", "the method nope"},
        {"{{ joiner(',') }}", "the function joiner"},
        {"{% for x in y recursive %}{% endfor %}", "recursive"},
        {"{{ '%s' % 1 }}", "formatting"},
        {"{{ f(*x) }}", "* and **"},
        {"{{ a[1,2] }}", "several indices"},
        {"{% if x %}", "endif"},
        {"{{ 'abc", "no end"},
        {"{# x", "comment"},
        {"{% raw %}x", "raw"},
        {"{{ (1] }}", "unexpected ']'"},
        {"{{ 1", "not closed"},
        {"{% break %}", "outside a loop"},
        {"{{ $ }}", "unexpected character $"},
        {"{% set 1 = 2 %}", "cannot be assigned"},
        {"{{ 99999999999999999999 }}", "too large"},
        {"{{ }}", "expected an expression"},
        {"\xff", "UTF-8"},
        {"{{ raise_exception('said this') }}", "said this"},
        {"\n{{ x.y }}", "line 2, column 5: 'x' is undefined"},
        {"{{ 2 ** 63 }}", "64 bits"},
        {"{{ 9223372036854775807 + 1 }}", "64 bits"},
        {"{{ range(1000000) }}", "range too big"},
        {"{{ range(9)[::2147483647][::2147483647][::2147483647] }}", "beyond 64 bits"},
        {"{{ namespace(_a=1) }}", "_a"},
        {"{{ [].append(1) }}", "append"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        check_error(cases[i].src, -EINVAL, cases[i].part);
}

static void bounds(void **state)
{
    (void)state;
    check_error("{{ 'a' * 10**9 }}", -E2BIG, "bytes");
    check_error("{{ [1] * 10**12 }}", -E2BIG, "steps");
    check_error("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", -E2BIG, "");
    check_error("{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}", -E2BIG, "");
    check_error("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", -E2BIG, "deeper");
    check_error("{% set n = namespace(s='ab') %}{% for i in range(100) %}{% set n.s = n.s ~ n.s %}{% endfor %}", -E2BIG,
                "");
    check_error("{% set n = namespace(s=[]) %}{% for i in range(10000) %}{% set n.s = [n.s] %}{% endfor %}{{ n.s }}",
                -E2BIG, "deeper");
    check_error("{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
                -E2BIG, "");
}

static void deep_source(void **state)
{
    static const char *const open[] = {"(", "[", "not ", "-", "{% if 1 %}", "1+", "{% for x in y %}"};
    (void)state;
    for (size_t k = 0; k < sizeof open / sizeof open[0]; k++) {
        struct buf src = {0};
        struct err e = {0};
        struct tmpl *t = NULL;
        bool tag = open[k][0] == '{';
        buf_puts(&src, tag ? "" : "{{ ");
        for (int i = 0; i < 20000; i++)
            buf_puts(&src, open[k]);
        buf_puts(&src, "1 }}");
        assert_int_not_equal(tmpl_parse(src.data, src.len, &t, &e), 0);
        assert_non_null(strstr(e.msg, "deep"));
        buf_free(&src);
    }
}

static void limits_given(void **state)
{
    struct buf out = {0};
    struct err e;
    struct tmpl_limits lim = {.max_output = 10};
    (void)state;
    assert_int_equal(render("{{ 'x' * 10 }}", &lim, &out, &e), 0);
    assert_string_equal(out.data, "xxxxxxxxxx");
    assert_int_equal(render("{{ 'x' * 10 }}y", &lim, &out, &e), -E2BIG);
    assert_int_equal(out.len, 10);
    lim = (struct tmpl_limits){.max_steps = 5};
    assert_int_equal(render("{{ 1 }}{{ 1 }}{{ 1 }}", &lim, &out, &e), -E2BIG);
    lim = (struct tmpl_limits){.max_memory = 256};
    assert_int_equal(render("{{ ['a','b','c','d','e','f','g','h','i','j','k','l','m','n','o','p'] }}", &lim, &out, &e),
                     -E2BIG);
    buf_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refusals),
        cmocka_unit_test(bounds),
        cmocka_unit_test(deep_source),
        cmocka_unit_test(limits_given),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
