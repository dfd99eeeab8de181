/* test_scheduler.c - the scheduler over a fake model: admission, fairness, chunks, choices, preemption, ends. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "sched_bed.h"

static void test_one(void **st)
{
    (void)st;
    struct bed b;
    struct out *o = outs(1);
    open_bed(&b, &roomy, 16);
    struct gen *g = send(&b, 0, 10, 5, o);
    run(&b, 20);
    assert_true(o->done);
    assert_int_equal(o->n[0], 5);
    assert_int_equal(o->finish[0], GEN_LENGTH);
    assert_int_equal(b.step, 5); /* the prompt's step samples the first token */
    assert_int_equal(g->code, 0);
    close_all(&b, &g, 1, o);
}

static void test_mixed_equal_alone(void **st)
{
    (void)st;
    enum { N = 24 };
    struct bed b;
    struct gen *g[N];
    struct out *o = outs(N), *ref = outs(1);
    struct gen_spec s[N];
    open_bed(&b, &roomy, 16);
    for (int i = 0; i < N; i++) {
        s[i] = spec(prompts[i], 1 + (uint32_t)(i * 37) % 150, 1 + (uint32_t)(i * 13) % 40);
        s[i].n_choices = 1 + (uint32_t)i % 3;
        s[i].seed = (uint64_t)i;
        s[i].tenant = (uint32_t)i % 4;
        s[i].task = (uint64_t)i % 5;
        s[i].presence = i % 5 == 0 ? 0.5f : 0;
        s[i].repetition = i % 7 == 0 ? 1.3f : 1;
        s[i].score_prompt = i % 6 == 0;
        s[i].n_top = i % 6 == 0 ? 2 : -1;
        g[i] = submit(&b, &s[i], &o[i]);
        if (i % 3 == 0)
            step_at(&b, 1);
    }
    run(&b, 5000);
    assert_true(b.max_rows_seen <= 64);
    for (int i = 0; i < N; i++) {
        alone(&roomy, &s[i], ref);
        for (uint32_t k = 0; k < s[i].n_choices; k++)
            assert_int_equal(o[i].n[k], s[i].max_tokens);
        assert_int_equal(o[i].n_prompt, s[i].score_prompt ? s[i].n_prompt : 0);
        assert_memory_equal(o[i].prompt, prompts[i], o[i].n_prompt * sizeof(int32_t));
        assert_as_alone(&s[i], &o[i], ref);
    }
    close_all(&b, g, N, o);
    free(ref);
}

static void test_choices_share(void **st)
{
    (void)st;
    struct bed b;
    struct out *o = outs(1);
    open_bed(&b, &roomy, 64);
    struct gen_spec s = spec(prompts[0], 130, 20);
    s.n_choices = 8;
    /* 149 tokens are 5 pages; 4 of the prompt are shared: 5 + 7 * 1 */
    assert_int_equal(gen_pages(&s), 12);
    struct gen *g = submit(&b, &s, o);
    uint32_t least = 256, rows = 0;
    while (sched_live(b.s)) {
        step_at(&b, 1);
        rows += b.r.rows;
        if (kv_pages_free(b.m) < least)
            least = kv_pages_free(b.m);
    }
    assert_int_equal(least, 256 - 12);
    assert_int_equal(rows, 129 + 8 * 20); /* the prompt once */
    for (int k = 0; k < 8; k++) {
        assert_int_equal(o->n[k], 20);
        for (int j = 0; j < k; j++)
            assert_true(memcmp(o->token[k], o->token[j], 20 * sizeof(int32_t)) != 0);
    }
    close_all(&b, &g, 1, o);
}

static void test_waits_for_pages(void **st)
{
    (void)st;
    enum { N = 12 };
    struct bed b;
    struct gen *g[N];
    struct out *o = outs(N);
    struct fake_opts small = roomy;
    small.n_pages = 8;
    small.max_context = 256;
    open_bed(&b, &small, 16);
    for (int i = 0; i < N; i++)
        g[i] = send(&b, i, 60, 60, &o[i]); /* 4 pages: two at once */
    step_at(&b, 1);
    assert_int_equal(b.r.running, 2);
    assert_int_equal(b.r.waiting, N - 2);
    run(&b, 5000);
    for (int i = 0; i < N; i++) {
        assert_int_equal(g[i]->code, 0);
        assert_int_equal(o[i].n[0], 60);
        if (i)
            assert_true(o[i].done_at >= o[i - 1].done_at); /* first come, first served */
    }
    close_all(&b, g, N, o);
}

static void test_never_fits(void **st)
{
    (void)st;
    struct bed b;
    struct err e;
    struct fake_opts small = roomy;
    small.n_pages = 32;
    open_bed(&b, &small, 16);
    struct gen_spec s = spec(prompts[0], 1000, 30);
    assert_int_equal(sched_fits(model_info(b.m), &s, &e), -EINVAL);
    assert_string_equal(e.param, "max_tokens");
    s.n_prompt = 1100;
    assert_int_equal(sched_fits(model_info(b.m), &s, &e), -EINVAL);
    assert_string_equal(e.param, "prompt");
    s = spec(prompts[0], 10, 900);
    s.n_choices = 2;
    assert_int_equal(sched_fits(model_info(b.m), &s, &e), -EINVAL);
    assert_string_equal(e.param, "n");
    s = spec(prompts[0], 10, 10);
    s.n_choices = 65;
    assert_int_equal(sched_fits(model_info(b.m), &s, &e), -EINVAL);
    prompts[0][3] = 1000;
    s.n_choices = 1;
    assert_int_equal(sched_fits(model_info(b.m), &s, &e), -EINVAL);
    prompts[0][3] = -1;
    assert_int_equal(sched_fits(model_info(b.m), &s, &e), -EINVAL);
    close_bed(&b);
}

static void test_cancel(void **st)
{
    (void)st;
    enum { N = 6 };
    struct bed b;
    struct gen *g[N];
    struct out *o = outs(N);
    open_bed(&b, &roomy, 16);
    for (int i = 0; i < N; i++) {
        struct gen_spec s = spec(prompts[i], i < 3 ? 200 : 20, 100);
        s.n_choices = i == 4 ? 3 : 1;
        g[i] = submit(&b, &s, &o[i]);
    }
    for (int i = 0; i < 20; i++)
        step_at(&b, 1);
    uint32_t before = kv_pages_free(b.m);
    atomic_store(&g[0]->cancelled, true);
    atomic_store(&g[4]->cancelled, true);
    step_at(&b, 1);
    assert_true(o[0].done && o[4].done);
    assert_int_equal(g[0]->code, -ECANCELED);
    assert_true(kv_pages_free(b.m) > before);
    run(&b, 1000);
    assert_int_equal(o[5].n[0], 100);
    close_all(&b, g, N, o);
}

/* One runs out of time, one is cancelled while it waits. */
static void test_deadline_and_cancel(void **st)
{
    (void)st;
    struct bed b;
    struct out *o = outs(3);
    struct fake_opts small = roomy;
    small.max_seqs = 2;
    open_bed(&b, &small, 16);
    struct gen_spec s = spec(prompts[0], 30, 500);
    s.deadline_ns = 1000;
    struct gen *g[3] = {submit(&b, &s, &o[0]), send(&b, 1, 30, 10, &o[1]), send(&b, 2, 30, 10, &o[2])};
    for (int i = 0; i < 5; i++)
        step_at(&b, 999);
    assert_int_equal(atomic_load(&g[2]->state), GEN_QUEUED);
    atomic_store(&g[2]->cancelled, true);
    step_at(&b, 999);
    assert_true(o[2].done && !o[2].n[0] && !o[0].done);
    step_at(&b, 1000);
    assert_true(o[0].done);
    assert_int_equal(g[0]->code, -ETIMEDOUT);
    run(&b, 100);
    assert_true(!g[1]->code && o[1].n[0] == 10);
    close_all(&b, g, 3, o);
}

static void test_stop_of_a_choice(void **st)
{
    (void)st;
    struct bed b;
    struct out *o = outs(1);
    open_bed(&b, &roomy, 64);
    struct gen_spec s = spec(prompts[0], 40, 50);
    s.n_choices = 3;
    struct gen *g = submit(&b, &s, o);
    for (int i = 0; i < 10; i++)
        step_at(&b, 1);
    uint32_t seqs = fake_open_seqs(b.m);
    atomic_store(&g->choice_stopped[1], true);
    step_at(&b, 1);
    assert_int_equal(fake_open_seqs(b.m), seqs - 1);
    run(&b, 100);
    assert_int_equal(o->n[0], 50);
    assert_int_equal(o->n[2], 50);
    assert_true(o->n[1] < 50);
    close_all(&b, &g, 1, o);
}

static void test_eos(void **st)
{
    (void)st;
    struct bed b;
    struct out *o = outs(3);
    struct fake_opts fo = roomy;
    fo.eos = 7;
    fo.eos_after = 4;
    open_bed(&b, &fo, 16);
    struct gen_spec s[3];
    for (int i = 0; i < 3; i++)
        s[i] = spec(prompts[i], 10, 20);
    s[1].ignore_eos = true;
    s[2].min_tokens = 9;
    struct gen *g[3];
    for (int i = 0; i < 3; i++)
        g[i] = submit(&b, &s[i], &o[i]);
    run(&b, 100);
    assert_int_equal(o[0].n[0], 4);
    assert_int_equal(o[0].finish[0], GEN_STOP);
    assert_int_equal(o[1].n[0], 20);
    assert_int_equal(o[1].finish[0], GEN_LENGTH);
    assert_int_equal(o[2].n[0], 10);
    assert_int_equal(o[2].finish[0], GEN_STOP);
    close_all(&b, g, 3, o);
}

static void test_bias_of_min_tokens(void **st)
{
    (void)st;
    static const int32_t eos[] = {9, 3};
    static const struct kern_bias bias[] = {{2, 1}, {3, 5}, {8, -1}, {40, 2}};
    struct gen_spec s = spec(prompts[0], 4, 4);
    s.eos = eos;
    s.n_eos = 2;
    s.bias = bias;
    s.n_bias = 4;
    s.min_tokens = 1;
    struct gen *g = gen_create(&s);
    static const int32_t want[] = {2, 3, 8, 9, 40};
    assert_int_equal(g->n_bias_min, 5);
    for (int i = 0; i < 5; i++)
        assert_int_equal(g->bias_min[i].token, want[i]);
    assert_true(g->bias_min[1].add == -INFINITY && g->bias_min[3].add == -INFINITY);
    assert_true(g->bias_min[0].add == 1 && g->bias_min[4].add == 2);
    gen_free(g);
}

/* One tenant floods, another sends now and then: the second is served as if the first had one request less. */
static void test_fair_admission(void **st)
{
    (void)st;
    enum { N = 41 };
    struct bed b;
    struct gen *g[N];
    struct out *o = outs(N);
    struct fake_opts small = roomy;
    small.max_seqs = 4;
    open_bed(&b, &small, 16);
    for (int i = 0; i < N; i++) {
        struct gen_spec s = spec(prompts[i], 30, 30);
        s.tenant = i == N - 1;
        g[i] = submit(&b, &s, &o[i]);
    }
    run(&b, 5000);
    unsigned later = 0;
    for (int i = 0; i < N - 1; i++)
        later += o[i].done_at > o[N - 1].done_at;
    assert_true(later >= 32); /* it went in with the first or second four */
    close_all(&b, g, N, o);
}

/* More runs than logit rows: the tenants' shares of decode rows stay equal. */
static void test_fair_decode(void **st)
{
    (void)st;
    enum { N = 50 };
    struct bed b;
    struct gen *g[N];
    struct out *o = outs(N);
    struct fake_opts fo = roomy;
    fo.max_logits = 8;
    open_bed(&b, &fo, 16);
    for (int i = 0; i < N; i++) {
        struct gen_spec s = spec(prompts[i], 4, 110);
        prompts[i][0] = i < 45 ? 16 : 17;
        s.tenant = i < 45 ? 0 : 3;
        g[i] = submit(&b, &s, &o[i]);
    }
    for (int i = 0; i < 40; i++)
        step_at(&b, 1);
    uint32_t rows[2] = {0}, n0[45];
    for (int i = 0; i < 45; i++)
        n0[i] = o[i].n[0];
    for (int i = 0; i < 50; i++) {
        step_at(&b, 1);
        rows[0] += fake_last(b.m)->rows_of_task[0];
        rows[1] += fake_last(b.m)->rows_of_task[1];
    }
    assert_true(abs((int)rows[0] - (int)rows[1]) <= 50);
    uint32_t least = UINT32_MAX, most = 0;
    for (int i = 0; i < 45; i++) {
        uint32_t n = o[i].n[0] - n0[i];
        least = n < least ? n : least;
        most = n > most ? n : most;
    }
    assert_true(most - least <= 2); /* in turn */
    sched_end_all(b.s, -ESHUTDOWN, "end");
    for (int i = 0; i < N; i++) {
        assert_int_equal(g[i]->code, -ESHUTDOWN);
    }
    close_all(&b, g, N, o);
}

/* A long prompt beside decoding: a chunk a step, and a token for everybody each step. */
static void test_chunks_beside_decode(void **st)
{
    (void)st;
    struct bed b;
    struct out *o = outs(2);
    open_bed(&b, &roomy, 16);
    struct gen_spec s0 = spec(prompts[0], 10, 200), s1 = spec(prompts[1], 500, 10);
    struct gen *a = submit(&b, &s0, &o[0]);
    step_at(&b, 1);
    step_at(&b, 1);
    struct gen *c = submit(&b, &s1, &o[1]);
    uint32_t n0 = o[0].n[0], steps = 0;
    while (!o[1].n[0]) {
        step_at(&b, 1);
        steps++;
        assert_int_equal(o[0].n[0], n0 + steps);
        assert_true(b.r.prefill_rows <= 16);
    }
    assert_int_equal(steps, (500 + 15) / 16);
    run(&b, 1000);
    close_all(&b, (struct gen *[]){a, c}, 2, o);
}

/* However many runs decode, a prompt is read. */
static void test_no_starvation_of_prompts(void **st)
{
    (void)st;
    enum { N = 31 };
    struct bed b;
    struct gen *g[N];
    struct out *o = outs(N);
    struct fake_opts fo = roomy;
    fo.max_rows = 16;
    fo.max_logits = 16;
    open_bed(&b, &fo, 16);
    for (int i = 0; i < N; i++)
        g[i] = send(&b, i, 8, 200, &o[i]);
    for (int i = 0; i < 200; i++)
        step_at(&b, 1);
    for (int i = 0; i < N; i++)
        assert_true(o[i].n[0] > 0);
    run(&b, 5000);
    close_all(&b, g, N, o);
}

/* A large request of one tenant is passed by a bounded number of small ones of others. */
static void test_no_starvation_of_large(void **st)
{
    (void)st;
    enum { SMALL = 200 };
    struct bed b;
    static struct gen *g[SMALL + 1];
    struct out *o = outs(SMALL + 1);
    struct fake_opts fo = roomy;
    fo.n_pages = 32;
    open_bed(&b, &fo, 16);
    for (int i = 0; i < 4; i++) {
        struct gen_spec s = spec(prompts[i], 20, 20);
        s.tenant = 1;
        g[i] = submit(&b, &s, &o[i]);
    }
    step_at(&b, 1);
    struct gen_spec large = spec(prompts[SMALL], 900, 100); /* 32 pages: all there are */
    g[SMALL] = submit(&b, &large, &o[SMALL]);
    int sent = 4;
    for (uint32_t i = 0; i < 4000 && !o[SMALL].n[0]; i++) {
        for (; sent < SMALL && b.r.waiting < 3; sent++) {
            struct gen_spec s = spec(prompts[sent], 20, 20);
            s.tenant = 1 + (uint32_t)sent % 3;
            g[sent] = submit(&b, &s, &o[sent]);
            b.r.waiting++;
        }
        step_at(&b, 1);
    }
    assert_true(o[SMALL].n[0] > 0);
    assert_true(sent < SMALL); /* not after all of the others */
    run(&b, 10000);
    gen_free(g[SMALL]);
    close_all(&b, g, (size_t)sent, o);
}

/* The loop does not drain: the generation pauses, nothing is lost, others go on. */
static void test_full_ring(void **st)
{
    (void)st;
    struct bed b;
    struct out *o = outs(1);
    open_bed(&b, &roomy, 16);
    struct gen *g = send(&b, 0, 10, 300, o);
    b.keep = true;
    for (int i = 0; i < 200; i++)
        step_at(&b, 1);
    assert_int_equal(gen_room(g), 0);
    assert_int_equal(b.r.rows, 0);
    b.keep = false;
    drain(g);
    run(&b, 400);
    assert_int_equal(o->n[0], 300);
    close_all(&b, &g, 1, o);
}

static void test_score_only(void **st)
{
    (void)st;
    struct bed b;
    struct out *o = outs(3);
    open_bed(&b, &roomy, 16);
    struct gen_spec s[3] = {spec(prompts[0], 300, 0), spec(prompts[1], 1, 0), spec(prompts[2], 1, 3)};
    s[2].n_choices = 2;
    struct gen *g[3];
    for (int i = 0; i < 3; i++) {
        s[i].score_prompt = true;
        s[i].n_top = 0;
        g[i] = submit(&b, &s[i], &o[i]);
    }
    run(&b, 200);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(g[i]->code, 0);
        assert_int_equal(o[i].n_prompt, s[i].n_prompt);
        assert_true(isnan(o[i].prompt_logprob[0]));
        assert_int_equal(o[i].n[0], s[i].max_tokens);
    }
    assert_int_equal(o[2].n[1], 3);
    close_all(&b, g, 3, o);
}

static void test_step_fails(void **st)
{
    (void)st;
    struct bed b;
    struct out *o = outs(2);
    open_bed(&b, &roomy, 16);
    struct gen_spec s = spec(prompts[0], 20, 20);
    s.n_choices = 3;
    struct gen *g = submit(&b, &s, &o[0]);
    for (int i = 0; i < 5; i++)
        step_at(&b, 1);
    fake_fail_next(b.m);
    step_at(&b, 1);
    assert_true(o[0].done);
    assert_int_equal(g->code, -EIO);
    assert_int_equal(b.r.failed, 1);
    struct gen_spec s1 = spec(prompts[1], 20, 20);
    struct gen *h = submit(&b, &s1, &o[1]);
    run(&b, 100);
    assert_int_equal(h->code, 0);
    close_all(&b, (struct gen *[]){g, h}, 2, o);
}

static void test_tasks_counted(void **st)
{
    (void)st;
    struct bed b;
    struct out *o = outs(6);
    struct gen *g[6];
    open_bed(&b, &roomy, 16);
    for (int i = 0; i < 6; i++) {
        struct gen_spec s = spec(prompts[i], 4, 4);
        s.task = (uint64_t)i / 2;
        g[i] = submit(&b, &s, &o[i]);
    }
    step_at(&b, 1);
    assert_int_equal(b.r.tasks, 3);
    run(&b, 100);
    close_all(&b, g, 6, o);
}

/* ---- growing and preemption ---- */

static void until_preempted(struct bed *b, struct gen *g)
{
    for (int i = 0; i < 1000 && atomic_load(&g->state) != GEN_QUEUED; i++)
        step_at(b, 1);
    assert_int_equal(atomic_load(&g->state), GEN_QUEUED);
}

static void test_grows_by_pages(void **st)
{
    (void)st;
    struct bed b;
    struct out *o = outs(1);
    open_bed(&b, &roomy, 64);
    struct gen *g = send(&b, 0, 40, 400, o);
    for (uint32_t len = 40 + SCHED_HEADROOM; sched_live(b.s); len = 40 + o->n[0]) {
        step_at(&b, 1);
        if (sched_live(b.s) && len >= 40 + SCHED_HEADROOM)
            assert_int_equal(256 - kv_pages_free(b.m), kv_pages_for(len));
    }
    assert_int_equal(o->n[0], 400);
    close_all(&b, &g, 1, o);
}

/* The tenant with the most pages loses its youngest, which keeps its tokens, goes first in its queue and goes on. */
static void test_preemption_order(void **st)
{
    (void)st;
    enum { N = 5 };
    struct bed b;
    struct gen *g[N];
    struct gen_spec s[N];
    struct out *o = outs(N), *ref = outs(1);
    struct fake_opts fo = roomy;
    fo.n_pages = 20;
    fo.max_seqs = 5; /* the last one waits */
    open_bed(&b, &fo, 64);
    for (int i = 0; i < N; i++) { /* 4, 7, 4 and 4 pages at first: 11 of tenant 0, 8 of tenant 1 */
        s[i] = spec(prompts[i], 40, 200);
        s[i].n_choices = i == 1 ? 2 : 1;
        s[i].tenant = i == 0 || i == 3;
        g[i] = submit(&b, &s[i], &o[i]);
        step_at(&b, 1);
    }
    until_preempted(&b, g[2]);
    uint32_t had = o[2].n[0];
    assert_true(had && b.preempted == 1);
    while (atomic_load(&g[2]->state) == GEN_QUEUED) {
        assert_int_equal(o[2].n[0], had);
        assert_int_equal(atomic_load(&g[4]->state), GEN_QUEUED);
        step_at(&b, 1);
    }
    run(&b, 5000);
    assert_int_equal(g[0]->n_preempted, 0); /* the oldest of all */
    for (int i = 0; i < N; i++) {
        alone(&roomy, &s[i], ref);
        assert_int_equal(o[i].n[0], 200);
        assert_as_alone(&s[i], &o[i], ref);
    }
    close_all(&b, g, N, o);
    free(ref);
}

/* Two that do not both fit when grown; the second one is preempted. */
static void open_pair(struct bed *b, struct gen_spec *s, struct gen **g, struct out *o, uint32_t choices)
{
    struct fake_opts fo = roomy;
    fo.n_pages = 2 + 6 * choices - (choices > 1);
    fo.max_context = 256;
    fo.max_rows = 16;
    open_bed(b, &fo, 64);
    for (int i = 0; i < 2; i++) {
        s[i] = spec(prompts[i], 60, 150);
        s[i].seed = (uint64_t)i;
        s[i].n_choices = i ? choices : 1;
        s[i].repetition = 1.2f;
        g[i] = submit(b, &s[i], &o[i]);
        step_at(b, 1);
    }
}

static void close_pair(struct bed *b, const struct gen_spec *s, struct gen **g, struct out *o)
{
    struct out *ref = outs(1);
    run(b, 2000);
    for (int i = 0; i < 2; i++) {
        alone(&roomy, &s[i], ref);
        assert_as_alone(&s[i], &o[i], ref);
    }
    close_all(b, g, 2, o);
    free(ref);
}

static void test_ends_while_preempted(void **st)
{
    (void)st;
    static const int code[] = {-ECANCELED, -ETIMEDOUT, 0, -ESHUTDOWN};
    for (int how = 0; how < 4; how++) {
        struct bed b;
        struct gen_spec s[2];
        struct gen *g[2];
        struct out *o = outs(2);
        open_pair(&b, s, g, o, 1);
        until_preempted(&b, g[1]);
        atomic_store(&g[1]->cancelled, how == 0);
        g[1]->spec.deadline_ns = how == 1 ? 100 : 0;
        atomic_store(&g[1]->choice_stopped[0], how == 2);
        if (how == 3)
            sched_end_all(b.s, -ESHUTDOWN, "end");
        step_at(&b, 100);
        assert_true(o[1].done && !b.r.waiting);
        assert_int_equal(g[1]->code, code[how]);
        close_pair(&b, s, g, o);
    }
}

/* One choice is over before, one is stopped while it waits: the others are read again. */
static void test_choices_while_preempted(void **st)
{
    (void)st;
    struct bed b;
    struct gen_spec s[2];
    struct gen *g[2];
    struct out *o = outs(2);
    open_pair(&b, s, g, o, 4);
    while (!o[1].n[0])
        step_at(&b, 1);
    atomic_store(&g[1]->choice_stopped[0], true);
    until_preempted(&b, g[1]);
    uint32_t n0 = o[1].n[0], n2 = o[1].n[2];
    assert_true(n0 && n0 < n2);
    assert_int_equal(fake_open_seqs(b.m), 1);
    atomic_store(&g[1]->choice_stopped[2], true);
    run(&b, 2000);
    assert_true(o[1].n[0] == n0 && o[1].n[1] == 150 && o[1].n[2] == n2 && o[1].n[3] == 150);
    close_pair(&b, s, g, o);
}

/* Its first choice is stopped while it reads the prompt, or its own tokens, again. */
static void test_stop_while_reading_again(void **st)
{
    (void)st;
    for (uint32_t more = 0; more < 12; more++) {
        struct bed b;
        struct gen_spec s[2];
        struct gen *g[2];
        struct out *o = outs(2);
        open_pair(&b, s, g, o, 2);
        until_preempted(&b, g[1]);
        while (atomic_load(&g[1]->state) == GEN_QUEUED)
            step_at(&b, 1);
        for (uint32_t i = 0; i < more; i++)
            step_at(&b, 1);
        atomic_store(&g[1]->choice_stopped[0], true);
        run(&b, 1000);
        assert_true(o[1].n[0] < 150 && o[1].n[1] == 150);
        close_pair(&b, s, g, o);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one),
        cmocka_unit_test(test_mixed_equal_alone),
        cmocka_unit_test(test_choices_share),
        cmocka_unit_test(test_waits_for_pages),
        cmocka_unit_test(test_never_fits),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_deadline_and_cancel),
        cmocka_unit_test(test_stop_of_a_choice),
        cmocka_unit_test(test_eos),
        cmocka_unit_test(test_bias_of_min_tokens),
        cmocka_unit_test(test_fair_admission),
        cmocka_unit_test(test_fair_decode),
        cmocka_unit_test(test_chunks_beside_decode),
        cmocka_unit_test(test_no_starvation_of_prompts),
        cmocka_unit_test(test_no_starvation_of_large),
        cmocka_unit_test(test_full_ring),
        cmocka_unit_test(test_score_only),
        cmocka_unit_test(test_step_fails),
        cmocka_unit_test(test_tasks_counted),
        cmocka_unit_test(test_grows_by_pages),
        cmocka_unit_test(test_preemption_order),
        cmocka_unit_test(test_ends_while_preempted),
        cmocka_unit_test(test_choices_while_preempted),
        cmocka_unit_test(test_stop_while_reading_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
