/* test_forms.c - answers with a form, over a fake model and a fake grammar: masks, ends, preemption, failures. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "fake_grammar.h"
#include "sched_bed.h"

#define EOS 500

static const int32_t eos_ids[] = {EOS};

static struct gen_spec form_spec(struct grammar *g, int i, uint32_t n_prompt, uint32_t max_tokens)
{
    struct gen_spec s = spec(prompts[i], n_prompt, max_tokens);
    s.eos = eos_ids;
    s.grammar = g;
    return s;
}

static void assert_form(const struct out *o, uint32_t choice)
{
    for (uint32_t i = 0; i < o->n[choice]; i++)
        if (o->token[choice][i] != EOS)
            assert_int_equal(o->token[choice][i] % 7, i % 7);
}

/* Each choice has the form and ends where nothing may follow; beside others the tokens are those it has alone. */
static void test_form_and_batch(void **st)
{
    (void)st;
    enum { N = 6 };
    struct grammar *form = fake_grammar(9, 9, EOS);
    struct out *o = outs(N), *ref = outs(1);
    struct gen *g[N];
    struct gen_spec s[N];
    struct bed b;
    open_bed(&b, &roomy, 16);
    for (int i = 0; i < N; i++) {
        s[i] = form_spec(i % 2 ? NULL : form, i, 1 + 13 * (uint32_t)i, i % 2 ? 12 : 40);
        s[i].n_choices = 1 + (uint32_t)i % 4;
        s[i].seed = (uint64_t)i;
        s[i].presence = i == 4 ? 0.5f : 0;
        g[i] = submit(&b, &s[i], &o[i]);
    }
    run(&b, 1000);
    for (int i = 0; i < N; i++) {
        assert_int_equal(g[i]->code, 0);
        alone(&roomy, &s[i], ref);
        assert_as_alone(&s[i], &o[i], ref);
        for (uint32_t k = 0; k < s[i].n_choices; k++) {
            assert_int_equal(o[i].finish[k], i % 2 ? GEN_LENGTH : GEN_WHOLE);
            assert_int_equal(o[i].n[k], i % 2 ? 12 : 9);
            if (i % 2 == 0)
                assert_form(&o[i], k);
        }
    }
    close_all(&b, g, N, o);
    assert_int_equal(fake_grammar_open_states(form), 0);
    fake_grammar_free(form);
    free(ref);
}

/* Ends: an end token where one may stand, max_tokens, both at once, and min_tokens against a form that is over. */
static void test_ends(void **st)
{
    (void)st;
    struct out *o = outs(1);
    struct grammar *open = fake_grammar(3, 30, EOS), *shut = fake_grammar(5, 5, EOS), *none = fake_grammar(0, 0, EOS);
    uint32_t stopped = 0;
    for (uint64_t seed = 0; seed < 300; seed++) {
        struct gen_spec s = form_spec(open, 0, 10, 60);
        s.seed = seed;
        alone(&roomy, &s, o);
        assert_true(o->n[0] >= 4 && o->n[0] <= 30);
        assert_true(o->finish[0] == (o->token[0][o->n[0] - 1] == EOS ? GEN_STOP : GEN_WHOLE));
        assert_form(o, 0);
        stopped += o->finish[0] == GEN_STOP;
        s.min_tokens = 20; /* end tokens wait */
        alone(&roomy, &s, o);
        assert_true(o->n[0] >= 20);
        assert_form(o, 0);
    }
    assert_true(stopped > 0);
    struct gen_spec s = form_spec(open, 0, 10, 2);
    alone(&roomy, &s, o);
    assert_true(o->n[0] == 2 && o->finish[0] == GEN_LENGTH);
    s = form_spec(shut, 0, 10, 5);
    alone(&roomy, &s, o);
    assert_true(o->n[0] == 5 && o->finish[0] == GEN_WHOLE);
    s.min_tokens = s.max_tokens = 40; /* the form is over before: it ends the answer */
    alone(&roomy, &s, o);
    assert_true(o->n[0] == 5 && o->finish[0] == GEN_WHOLE);
    s = form_spec(none, 0, 10,
                  5); /* nothing may be said at all, and the end token is forbidden: it is taken all the same */
    s.min_tokens = 2;
    alone(&roomy, &s, o);
    assert_true(o->n[0] == 1 && o->token[0][0] == EOS && o->finish[0] == GEN_STOP);
    fake_grammar_free(open);
    fake_grammar_free(shut);
    fake_grammar_free(none);
    free(o);
}

/* A preempted run goes on where its form stood. */
static void test_preempted(void **st)
{
    (void)st;
    enum { N = 4 };
    struct fake_opts tight = roomy;
    struct grammar *form = fake_grammar(140, 140, EOS);
    struct out *o = outs(N), *ref = outs(1);
    struct gen *g[N];
    struct gen_spec s[N];
    struct bed b;
    tight.n_pages = 20;
    open_bed(&b, &tight, 16);
    for (int i = 0; i < N; i++) {
        s[i] = form_spec(form, i, 60 + (uint32_t)i, 150);
        s[i].seed = (uint64_t)i;
        s[i].n_choices = 2;
        g[i] = submit(&b, &s[i], &o[i]);
    }
    run(&b, 5000);
    assert_true(b.preempted > 0);
    for (int i = 0; i < N; i++) {
        alone(&roomy, &s[i], ref);
        assert_int_equal(g[i]->code, 0);
        assert_as_alone(&s[i], &o[i], ref);
        for (uint32_t k = 0; k < 2; k++) {
            assert_true(o[i].n[k] == 140 && o[i].finish[k] == GEN_WHOLE);
            assert_form(&o[i], k);
        }
    }
    close_all(&b, g, N, o);
    fake_grammar_free(form);
    free(ref);
}

/* Masks that take long hold nobody else up: their runs take turns, and all of them end with the tokens they have alone.
 */
static void test_slow_masks(void **st)
{
    (void)st;
    enum { N = 12, PLAIN = N - 1, QUICK = N - 2 };
    struct grammar *slow = fake_grammar(8, 8, EOS), *quick = fake_grammar(8, 8, EOS);
    struct out *o = outs(N), *ref = outs(1);
    struct gen *g[N];
    struct gen_spec s[N];
    struct bed b;
    open_bed(&b, &roomy, 16);
    for (int i = 0; i < N; i++) {
        s[i] = form_spec(i == PLAIN ? NULL : i == QUICK ? quick : slow, i, 4, 8);
        s[i].seed = (uint64_t)i;
        g[i] = submit(&b, &s[i], &o[i]);
    }
    fake_grammar_slow(slow, 2000);
    uint32_t steps = 0, most = 0;
    for (; steps < 400 && sched_live(b.s); steps++) {
        step_at(&b, 1);
        if (!b.r.prefill_rows && b.r.decode_rows > most)
            most = b.r.decode_rows;
    }
    assert_int_equal(sched_live(b.s), 0);
    assert_true(most <= 4); /* two slow ones, the quick one and the plain one */
    for (int i = 0; i < N - 2; i++)
        assert_true(o[QUICK].done_at <= o[i].done_at && o[PLAIN].done_at <= o[i].done_at);
    fake_grammar_slow(slow, 0);
    for (int i = 0; i < N; i++) {
        alone(&roomy, &s[i], ref);
        assert_int_equal(o[i].n[0], 8);
        assert_as_alone(&s[i], &o[i], ref);
    }
    close_all(&b, g, N, o);
    fake_grammar_free(slow);
    fake_grammar_free(quick);
    free(ref);
}

/* What fails inside ends its own generation and no other. */
static void test_failures(void **st)
{
    (void)st;
    for (int how = 0; how < 2; how++) {
        struct grammar *form = fake_grammar(20, 20, EOS);
        struct out *o = outs(2);
        struct bed b;
        open_bed(&b, &roomy, 16);
        struct gen_spec s[2] = {form_spec(form, 0, 10, 30), form_spec(NULL, 1, 10, 30)};
        struct gen *g[2] = {submit(&b, &s[0], &o[0]), submit(&b, &s[1], &o[1])};
        for (int i = 0; i < 5; i++)
            step_at(&b, 1);
        fake_grammar_fail(form, how == 0, how == 1);
        run(&b, 100);
        assert_int_equal(g[0]->code, how ? -EIO : -ENOMEM);
        assert_non_null(strstr(g[0]->err.msg, how ? "form" : "memory"));
        assert_true(g[1]->code == 0 && o[1].n[0] == 30);
        close_all(&b, g, 2, o);
        fake_grammar_free(form);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_form_and_batch), cmocka_unit_test(test_ends),     cmocka_unit_test(test_preempted),
        cmocka_unit_test(test_slow_masks),     cmocka_unit_test(test_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
