/* test_grammars.c - the cache of compiled grammars: keys, its bound, errors, two threads at once. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "fake_grammar.h"
#include "server/grammars.h"

static struct req_grammar regex(const char *text)
{
    return (struct req_grammar){.kind = REQ_REGEX, .text = {text, strlen(text)}, .param = "structured_outputs"};
}

static bool there(struct grammars *c, const char *text)
{
    struct req_grammar q = regex(text);
    struct hash key;
    grammars_key(&q, &key);
    struct grammar *g = grammars_find(c, &key);
    grammar_unref(g);
    return g;
}

static struct grammar *compile(struct grammars *c, const char *text)
{
    struct req_grammar q = regex(text);
    struct hash key;
    struct grammar *g = NULL;
    struct err e;
    grammars_key(&q, &key);
    assert_int_equal(grammars_compile(c, &q, &key, &g, &e), 0);
    return g;
}

static void test_keys(void **st)
{
    (void)st;
    static const struct req_str ab_c[] = {{"ab", 2}, {"c", 1}}, a_bc[] = {{"a", 1}, {"bc", 2}};
    const struct req_grammar q[] = {
        regex("ab"),
        regex("abc"),
        {.kind = REQ_JSON_SCHEMA, .text = {"ab", 2}},
        {.kind = REQ_JSON_OBJECT},
        {.kind = REQ_CHOICE, .choice = ab_c, .n_choices = 2},
        {.kind = REQ_CHOICE, .choice = a_bc, .n_choices = 2},
        {.kind = REQ_CHOICE, .choice = ab_c, .n_choices = 1},
    };
    enum { N = sizeof q / sizeof q[0] };
    struct hash key[N], again;
    for (int i = 0; i < N; i++) {
        grammars_key(&q[i], &key[i]);
        grammars_key(&q[i], &again);
        assert_true(hash_equal(&key[i], &again));
        for (int j = 0; j < i; j++)
            assert_false(hash_equal(&key[i], &key[j]));
    }
}

static void test_bound(void **st)
{
    (void)st;
    struct grammars *c = grammars_create(NULL, (size_t)13 << 20); /* three */
    struct grammars_stats s;
    assert_non_null(c);
    assert_false(there(c, "a"));
    struct grammar *a = compile(c, "a"), *b = compile(c, "b"), *d = compile(c, "d");
    assert_true(there(c, "b") && there(c, "d") && there(c, "a")); /* b is the oldest now */
    struct grammar *x = compile(c, "x");
    assert_true(there(c, "a") && there(c, "d") && there(c, "x") && !there(c, "b"));
    assert_int_equal(fake_grammars(), 4); /* b is in use */
    grammar_unref(b);
    assert_int_equal(fake_grammars(), 3);
    struct grammar *same = compile(c, "a"); /* as when two compile the same: the first stays */
    assert_ptr_equal(same, a);
    grammars_stats(c, &s);
    assert_true(s.n == 3 && s.hits == 6 && s.misses == 2 && s.bytes <= (size_t)13 << 20);
    grammars_free(c);
    assert_int_equal(fake_grammars(), 3);
    grammar_unref(same);
    grammar_unref(a);
    grammar_unref(d);
    grammar_unref(x);
    assert_int_equal(fake_grammars(), 0);

    c = grammars_create(NULL, (size_t)13 << 20);
    grammar_unref(compile(c, "a"));
    grammar_unref(compile(c, "+")); /* as large as two others */
    assert_true(!there(c, "a") && there(c, "+"));
    grammars_stats(c, &s);
    assert_true(s.n == 1 && s.bytes > (size_t)8 << 20);
    grammars_free(c);

    c = grammars_create(NULL, 1); /* the newest stays, however small the bound */
    grammar_unref(compile(c, "a"));
    grammar_unref(compile(c, "b"));
    assert_true(there(c, "b") && !there(c, "a"));
    grammars_free(c);
    assert_int_equal(fake_grammars(), 0);
    grammars_free(NULL);
}

static void test_errors(void **st)
{
    (void)st;
    struct grammars *c = grammars_create(NULL, 1 << 20);
    struct req_grammar q = regex("!");
    struct hash key;
    struct grammar *g = NULL;
    struct err e;
    grammars_key(&q, &key);
    assert_int_equal(grammars_compile(c, &q, &key, &g, &e), -EINVAL);
    assert_null(g);
    assert_string_equal(e.param, "structured_outputs");
    assert_string_equal(e.msg, "structured_outputs: /a: wrong");
    assert_false(there(c, "!"));
    grammars_free(c);
    assert_int_equal(fake_grammars(), 0);
}

static void *hammer(void *arg)
{
    struct grammars *c = arg;
    for (int i = 0; i < 3000; i++) {
        char text[8];
        snprintf(text, sizeof text, "%d", i % 7);
        struct req_grammar q = regex(text);
        struct hash key;
        struct err e;
        grammars_key(&q, &key);
        struct grammar *g = grammars_find(c, &key);
        if (!g && grammars_compile(c, &q, &key, &g, &e))
            return "failed";
        grammar_unref(g);
    }
    return NULL;
}

static void test_threads(void **st)
{
    (void)st;
    struct grammars *c = grammars_create(NULL, (size_t)13 << 20);
    pthread_t t[3];
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&t[i], NULL, hammer, c), 0);
    for (int i = 0; i < 3; i++) {
        void *why;
        pthread_join(t[i], &why);
        assert_null(why);
    }
    grammars_free(c);
    assert_int_equal(fake_grammars(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_bound),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
