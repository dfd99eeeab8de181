/* test_pooling.c - generations that read a prompt and sample nothing: pooled, alone, beside others and preempted; and
 * scored from a token on.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "sched_bed.h"

enum { MANY = 12, LONGEST = 300 };

static int32_t text[MANY][LONGEST];
static uint32_t n_done;

static void on_publish(void *ctx, struct gen *g, bool done)
{
    struct gen_event ev;
    const int32_t *id;
    const float *lp;
    (void)ctx;
    while (gen_peek(g, &ev, &id, &lp)) {
        assert_int_equal(g->spec.pool, MODEL_POOL_NONE);
        gen_pop(g);
    }
    n_done += done;
}

static struct gen *make(uint32_t i, uint32_t n, uint32_t max_tokens, enum model_pool pool)
{
    for (uint32_t k = 0; k < n; k++)
        text[i][k] = (int32_t)(20 + (k * 7 + n + i) % 60);
    struct gen_spec s = {.prompt = text[i],
                         .n_prompt = n,
                         .n_choices = 1,
                         .max_tokens = max_tokens,
                         .n_top = -1,
                         .temperature = 1,
                         .top_p = 1,
                         .repetition = 1,
                         .ignore_eos = true,
                         .pool = pool,
                         .n_hidden = 1};
    struct gen *g = gen_create(&s);
    assert_non_null(g);
    assert_true(!g->pooled == !pool);
    return g;
}

static void check(const struct gen *g, uint32_t i)
{
    double want = 0;
    for (uint32_t k = 0; k < g->spec.n_prompt; k++)
        want = g->spec.pool == MODEL_POOL_SUM ? want + text[i][k] : text[i][k];
    assert_int_equal(g->code, 0);
    assert_true(*g->pooled == want);
}

/* Every third generation is a completion. Returns how many were preempted. */
static uint32_t run_many(const struct fake_opts *o)
{
    struct model *m = fake_open(o);
    struct sched *s;
    struct err e;
    struct sched_opts so = {.prefill_chunk = o->max_rows / 4, .publish = on_publish};
    struct gen *g[MANY];
    uint32_t preempted = 0, pooled_again = 0;
    assert_int_equal(sched_create(m, &so, &s, &e), 0);
    n_done = 0;
    for (uint32_t i = 0; i < MANY; i++) {
        enum model_pool pool = i % 3;
        g[i] = make(i, pool ? 1 + i * 23 : 40, pool ? 0 : 200, pool);
        assert_int_equal(sched_fits(model_info(m), &g[i]->spec, &e), 0);
        assert_int_equal(sched_submit(s, g[i]), 0);
    }
    for (uint32_t step = 0; n_done < MANY; step++) {
        struct sched_report r;
        assert_true(step < 20000);
        sched_step(s, step, &r);
        preempted += r.preempted;
    }
    for (uint32_t i = 0; i < MANY; i++) {
        if (g[i]->spec.pool)
            check(g[i], i);
        pooled_again += g[i]->spec.pool && g[i]->n_preempted;
        gen_free(g[i]);
    }
    assert_int_equal(sched_live(s), 0);
    assert_int_equal(fake_open_seqs(m), 0);
    assert_int_equal(kv_pages_free(m), o->n_pages);
    sched_free(s);
    fake_close(m);
    return preempted ? pooled_again : 0;
}

static void test_roomy(void **st)
{
    const struct fake_opts o = {.n_pages = 256, .max_context = 1024, .max_rows = 64, .max_logits = 8, .max_seqs = 64};
    (void)st;
    assert_int_equal(run_many(&o), 0);
}

static void test_preempted(void **st)
{
    uint32_t again = 0;
    (void)st;
    for (uint32_t pages = 10; pages < 40; pages += 3) {
        const struct fake_opts o = {
            .n_pages = pages, .max_context = 320, .max_rows = 10, .max_logits = 8, .max_seqs = 64};
        again += run_many(&o);
    }
    assert_true(again > 0);
}

/* As the end of what is scored from the first token on, whatever the chunks. */
static void test_score_from(void **st)
{
    (void)st;
    struct out *o = outs(2);
    struct gen_spec s = spec(prompts[0], 200, 0);
    s.score_prompt = true;
    alone(&roomy, &s, &o[0]);
    assert_int_equal(o[0].n_prompt, 200);
    for (uint32_t from = 1; from < 200; from += 33) {
        struct bed b;
        open_bed(&b, &roomy, 16);
        s.score_from = from;
        struct gen *g = submit(&b, &s, &o[1]);
        run(&b, 100);
        assert_true(o[1].done);
        assert_int_equal(o[1].n_prompt, 200 - from);
        assert_memory_equal(o[1].prompt, o[0].prompt + from, (200 - from) * sizeof *o[0].prompt);
        assert_memory_equal(o[1].prompt_logprob, o[0].prompt_logprob + from, (200 - from) * sizeof(float));
        gen_free(g);
        close_bed(&b);
    }
    free(o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_roomy), cmocka_unit_test(test_preempted),
                                       cmocka_unit_test(test_score_from)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
