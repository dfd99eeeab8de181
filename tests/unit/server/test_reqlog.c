/* test_reqlog.c - lines arrive whole and in order, a moved file is left alone, a full disk costs lines and nothing
 * else.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/file.h"
#include "server/reqlog.h"

enum { LINES = 2000 };

static void put_number(struct reqlog *l, unsigned i)
{
    char text[32];
    int n = snprintf(text, sizeof text, "line %u", i);
    reqlog_put(l, text, (size_t)n);
}

static void wait_written(const struct reqlog *l, uint64_t n)
{
    uint64_t written = 0, dropped;
    for (int i = 0; i < 5000 && written < n; i++) {
        reqlog_counts(l, &written, &dropped);
        usleep(1000);
    }
    assert_int_equal(written, n);
}

static void check_file(const char *path, unsigned from, unsigned to)
{
    struct err e;
    char *text, *at;
    size_t n;
    assert_int_equal(file_read(path, 1 << 20, &text, &n, &e), 0);
    at = text;
    for (unsigned i = from; i < to; i++) {
        char want[32];
        snprintf(want, sizeof want, "line %u\n", i);
        assert_memory_equal(at, want, strlen(want));
        at += strlen(want);
    }
    assert_int_equal(*at, 0);
    free(text);
    unlink(path);
}

static void test_order_and_reopen(void **st)
{
    char dir[] = "/tmp/cpetd-reqlog-XXXXXX", path[64], old[64];
    struct reqlog *l;
    struct err e;
    (void)st;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/log", dir);
    snprintf(old, sizeof old, "%s/old", dir);
    assert_int_equal(reqlog_open(path, &l, &e), 0);
    for (unsigned i = 0; i < LINES; i++)
        put_number(l, i);
    wait_written(l, LINES);
    assert_int_equal(rename(path, old), 0);
    reqlog_reopen(l);
    for (int i = 0; i < 5000 && access(path, F_OK); i++)
        usleep(1000);
    for (unsigned i = LINES; i < 2 * LINES; i++)
        put_number(l, i);
    reqlog_close(l); /* writes what waits */
    check_file(old, 0, LINES);
    check_file(path, LINES, 2 * LINES);
    rmdir(dir);
}

static void test_full_disk(void **st)
{
    struct reqlog *l;
    struct err e;
    uint64_t written, dropped = 0;
    (void)st;
    if (access("/dev/full", W_OK))
        skip();
    assert_int_equal(reqlog_open("/dev/full", &l, &e), 0);
    for (unsigned i = 0; i < 100; i++)
        put_number(l, i);
    for (int i = 0; i < 5000 && dropped < 100; i++) {
        reqlog_counts(l, &written, &dropped);
        usleep(1000);
    }
    assert_int_equal(written, 0);
    assert_int_equal(dropped, 100);
    reqlog_close(l);
}

static void test_bounds(void **st)
{
    struct reqlog *l;
    struct err e;
    uint64_t written, dropped;
    char *big = calloc(1, REQLOG_QUEUE_BYTES);
    (void)st;
    memset(big, 'x', REQLOG_QUEUE_BYTES);
    assert_int_equal(reqlog_open("/dev/null", &l, &e), 0);
    reqlog_put(l, big, REQLOG_QUEUE_BYTES); /* never fits */
    put_number(l, 1);
    wait_written(l, 1);
    reqlog_counts(l, &written, &dropped);
    assert_int_equal(dropped, 1);
    reqlog_close(l);
    reqlog_close(NULL);
    assert_true(reqlog_open("/nowhere/log", &l, &e) < 0);
    assert_string_equal(e.param, "request-log");
    reqlog_counts(NULL, &written, &dropped);
    assert_int_equal(written + dropped, 0);
    free(big);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_and_reopen),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
