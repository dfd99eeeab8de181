/* test_log.c - a log line stays one line, whatever its message quotes; as JSON it says the same exactly. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include <jansson.h>

#include "server/log.h"

static const char hostile[] = "tensor \x1b[31m\"a\"\nb\r\x7f\xC2\x9B"
                              "2J";

/* What log_line writes to stderr. */
static void logged(const char *level, char *out, size_t size)
{
    int p[2], was = dup(STDERR_FILENO);
    assert_int_equal(pipe(p), 0);
    dup2(p[1], STDERR_FILENO);
    log_line(level, "%s", hostile);
    dup2(was, STDERR_FILENO);
    close(was);
    close(p[1]);
    ssize_t n = read(p[0], out, size - 1);
    close(p[0]);
    assert_true(n > 0);
    out[n] = 0;
}

static void test_text(void **state)
{
    char line[512];
    (void)state;
    logged("error", line, sizeof line);
    assert_string_equal(line, "cpetd: tensor ?[31m\"a\"?b????"
                              "2J\n");
    logged("warning", line, sizeof line);
    assert_string_equal(line, "cpetd: warning: tensor ?[31m\"a\"?b????"
                              "2J\n");
}

static void test_json(void **state)
{
    char line[512];
    json_t *o;
    (void)state;
    log_as_json(true);
    logged("error", line, sizeof line);
    log_as_json(false);
    assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
    assert_non_null(o = json_loads(line, 0, NULL));
    assert_string_equal(json_string_value(json_object_get(o, "message")), hostile);
    assert_string_equal(json_string_value(json_object_get(o, "level")), "error");
    assert_int_equal(strlen(json_string_value(json_object_get(o, "time"))), 24);
    json_decref(o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_text), cmocka_unit_test(test_json)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
