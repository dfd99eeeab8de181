/* test_metrics.c - the exposition's labels and histograms, and the capped series a task. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "server/exposition.h"
#include "server/task_series.h"

static void test_labels(void **st)
{
    static const struct {
        const char *value, *text;
    } all[] = {{"plain", "a=\"plain\""},
               {"", "a=\"\""},
               {"q\"b\\n\nx", "a=\"q\\\"b\\\\n\\nx\""},
               {"\xC3\xBC", "a=\"\xC3\xBC\""},
               {"x\xFFy\xC3", "a=\"x\xEF\xBF\xBDy\xEF\xBF\xBD\""}};
    (void)st;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        struct buf b = {0};
        expo_label(&b, "a", all[i].value);
        assert_string_equal(b.data, all[i].text);
        expo_label(&b, "z", "1");
        assert_non_null(strstr(b.data, "\",z=\"1\""));
        buf_free(&b);
    }
}

static void test_families(void **st)
{
    static const double bucket[] = {0.5, 1};
    static const uint64_t count[] = {2, 0, 3};
    struct buf b = {0};
    (void)st;
    expo_one(&b, "g", "gauge", "Help.", "", 0.1);
    expo_one(&b, "c", "counter", "Help.", "l=\"1\"", 12345678901234.0);
    expo_head(&b, "h", "histogram", "Help.");
    expo_histogram(&b, "h", "l=\"1\"", bucket, 2, count, 7.25);
    expo_histogram(&b, "i", "", bucket, 2, count, 7.25);
    assert_string_equal(b.data, "# HELP g Help.\n# TYPE g gauge\ng 0.10000000000000001\n"
                                "# HELP c Help.\n# TYPE c counter\nc{l=\"1\"} 12345678901234\n"
                                "# HELP h Help.\n# TYPE h histogram\nh_bucket{l=\"1\",le=\"0.5\"} 2\n"
                                "h_bucket{l=\"1\",le=\"1\"} 2\nh_bucket{l=\"1\",le=\"+Inf\"} 5\nh_sum{l=\"1\"} 7.25\n"
                                "h_count{l=\"1\"} 5\ni_bucket{le=\"0.5\"} 2\ni_bucket{le=\"1\"} 2\n"
                                "i_bucket{le=\"+Inf\"} 5\ni_sum 7.25\ni_count 5\n");
    buf_free(&b);
}

static const char *gone_name;

static bool gone(const void *ctx, const char *name)
{
    (void)ctx;
    return gone_name && !strcmp(name, gone_name);
}

static void test_series(void **st)
{
    struct task_series t = {0};
    (void)st;
    assert_int_equal(series_open(&t, 2), 0);
    series_of(&t, "a", gone, NULL)->requests[SERIES_OK]++;
    series_of(&t, "b", gone, NULL)->requests[SERIES_OK]++;
    series_of(&t, "c", gone, NULL)->requests[SERIES_OK]++;
    series_of(&t, "d", gone, NULL)->requests[SERIES_OK]++;
    series_of(&t, "other", gone, NULL)->requests[SERIES_OK]++;
    series_of(&t, "a", gone, NULL)->requests[SERIES_OK]++;
    assert_int_equal(t.n, 3);
    assert_int_equal(t.s[0].requests[SERIES_OK], 3);
    assert_int_equal(t.s[1].requests[SERIES_OK], 2);
    gone_name = "a"; /* its place is needed: the counts begin anew */
    struct series *e = series_of(&t, "e", gone, NULL);
    assert_ptr_equal(e, &t.s[1]);
    assert_string_equal(e->task, "e");
    assert_int_equal(e->requests[SERIES_OK], 0);
    assert_ptr_equal(series_of(&t, "a", gone, NULL), &t.s[0]);
    series_close(&t);
    assert_int_equal(series_open(&t, 0), 0);
    assert_ptr_equal(series_of(&t, "x", gone, NULL), &t.s[0]);
    series_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_labels),
        cmocka_unit_test(test_families),
        cmocka_unit_test(test_series),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
