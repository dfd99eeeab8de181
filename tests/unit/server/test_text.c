/* test_text.c - text_push over every way to cut a text into pieces. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/utf8.h"
#include "server/text.h"

struct want {
    const char *in;
    size_t n_in;
    const char *stop[3];
    const char *out;
    bool stopped;
};

/* Pieces by the bits of cut: a piece ends after byte i where bit i is set. */
static void one_cut(const struct want *w, uint64_t cut)
{
    struct req_str stop[3];
    size_t n_stop = 0;
    for (; n_stop < 3 && w->stop[n_stop]; n_stop++)
        stop[n_stop] = (struct req_str){w->stop[n_stop], strlen(w->stop[n_stop])};
    struct text t;
    struct buf out = {0};
    text_open(&t, stop, n_stop);
    size_t from = 0, sent = 0;
    for (size_t i = 0; i < w->n_in; i++) {
        if (i + 1 < w->n_in && !(cut >> i & 1))
            continue;
        assert_int_equal(text_push(&t, w->in + from, i + 1 - from, &out), 0);
        from = i + 1;
        size_t n = out.len;
        assert_int_equal(utf8_valid(out.data ? out.data : "", n), n); /* whole characters at any time */
        assert_true(n >= sent && n <= strlen(w->out));
        assert_true(!n || !memcmp(out.data, w->out, n)); /* and never more than will stand */
        sent = n;
        if (t.stopped)
            break;
    }
    assert_int_equal(text_finish(&t, &out), 0);
    assert_string_equal(out.data ? out.data : "", w->out);
    assert_int_equal(t.stopped, w->stopped);
    assert_int_equal(t.n_in, t.n_out);
    text_close(&t);
    buf_free(&out);
}

static void every_cut(const struct want *w)
{
    assert_true(w->n_in <= 14);
    for (uint64_t cut = 0; cut < (uint64_t)1 << w->n_in; cut++)
        one_cut(w, cut);
}

#define IN(s) s, sizeof(s) - 1

static void test_cuts(void **st)
{
    (void)st;
    static const struct want all[] = {
        {IN("plain text"), {0}, "plain text", false},
        {IN("a\xC3\xA9\xE2\x82\xACz\xF0\x9F\x98\x80!"), {0}, "a\xC3\xA9\xE2\x82\xACz\xF0\x9F\x98\x80!", false},
        {IN("one STOP two"), {"STOP"}, "one ", true},
        {IN("aaabaaab"), {"aaab"}, "", true},
        {IN("aaaaaab"), {"aaab"}, "aaa", true},
        {IN("xababac"), {"abac"}, "xab", true},
        {IN("to be or no"), {"not", "be"}, "to ", true},
        {IN("abcd"), {"bcde", "cd"}, "ab", true},
        {IN("ends in STO"), {"STOP"}, "ends in STO", false},
        {IN("\xE2\x82\xAC\xE2\x82\xAC\xC2\xA3"), {"\xE2\x82\xAC\xC2\xA3"}, "\xE2\x82\xAC", true},
        {IN("bad \xFF end"), {0}, "bad \xEF\xBF\xBD end", false},
        {IN("cut \xE2\x82"), {0}, "cut \xEF\xBF\xBD", false},
        {IN("\xE2\x82x\xF0\x9Fy"), {0}, "\xEF\xBF\xBDx\xEF\xBF\xBDy", false},
        {IN("\xED\xA0\x80"), {0}, "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD", false},
        {IN("a\nb\n\nc"), {"\n\n"}, "a\nb", true},
        {IN("x\0y"), {0}, "x", false},
    };
    for (size_t i = 0; i + 1 < sizeof all / sizeof *all; i++)
        every_cut(&all[i]);
}

/* Random texts over a tiny alphabet and random stops against a search of the whole. */
static void test_random(void **st)
{
    (void)st;
    srand(3);
    for (int round = 0; round < 20000; round++) {
        char in[15], stop[3][5], out[15];
        size_t n = (size_t)(rand() % 13) + 1;
        for (size_t i = 0; i < n; i++)
            in[i] = (char)('a' + rand() % 2);
        in[n] = 0;
        struct want w = {.in = in, .n_in = n, .out = out};
        const char *at = NULL, *end = NULL;
        int n_stop = rand() % 3;
        for (int k = 0; k < n_stop; k++) {
            size_t m = (size_t)(rand() % 4) + 1;
            for (size_t i = 0; i < m; i++)
                stop[k][i] = (char)('a' + rand() % 2);
            stop[k][m] = 0;
            w.stop[k] = stop[k];
        }
        /* byte by byte, the stop that is complete first wins; of those complete together the one that begins first */
        for (size_t i = 1; i <= n && !at; i++)
            for (int k = 0; k < n_stop; k++) {
                size_t m = strlen(stop[k]);
                if (m <= i && !memcmp(in + i - m, stop[k], m) && (!at || in + i - m < at)) {
                    at = in + i - m;
                    end = in + i;
                }
            }
        (void)end;
        memcpy(out, in, sizeof in);
        if (at)
            out[at - in] = 0;
        w.stopped = at != NULL;
        one_cut(&w, UINT64_MAX);
    }
}

static void test_many_bytes(void **st)
{
    (void)st;
    struct req_str stop = {"xyz", 3};
    struct text t;
    struct buf out = {0};
    text_open(&t, &stop, 1);
    for (int i = 0; i < 100000; i++)
        assert_int_equal(text_push(&t, "xy", 2, &out), 0);
    assert_int_equal(out.len, 200000 - 2);
    assert_true(t.held.cap < 4096);
    text_close(&t);
    buf_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuts),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_many_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
