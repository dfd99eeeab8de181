/* test_sched_prefix.c - the prefix cache in the scheduler, over a fake model whose pages hold what was read. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "sched_bed.h"

#define CONTEXT 1024

static struct hash keys[64][CONTEXT / KERN_PAGE_TOKENS + 1];

/* A request of n tokens: the first `common` by `family`, the others its own. */
static struct gen_spec request(int i, int family, uint32_t common, uint32_t n, uint32_t max_tokens)
{
    struct gen_spec s = spec(prompts[i], n, max_tokens);
    for (uint32_t k = 0; k < n; k++)
        prompts[i][k] = (int32_t)(20 + (k * 13 + (k < common ? (uint32_t)family * 5 : 100u + (uint32_t)i)) % 300);
    model_prefix_root(NULL, 0, NULL, 0, &keys[i][0]);
    prefix_keys(prompts[i], n, keys[i]);
    s.keys = keys[i];
    s.seed = (uint64_t)i;
    return s;
}

static void rekey(struct gen_spec *s, int i, uint32_t tenant, const struct model_prefix_pet *pets, uint32_t n_pets)
{
    s->tenant = tenant;
    model_prefix_root(NULL, tenant, pets, n_pets, &keys[i][0]);
    prefix_keys(s->prompt, s->n_prompt, keys[i]);
}

static void assert_alone(const struct gen_spec *s, const struct out *o)
{
    struct out *ref = outs(1);
    struct gen_spec whole = *s;
    whole.keys = NULL;
    alone(&roomy, &whole, ref);
    assert_as_alone(s, o, ref);
    for (uint32_t k = 0; k < s->n_choices; k++)
        assert_int_equal(o->n[k], ref->n[k]);
    free(ref);
}

/* Runs one request to its end; the rows that it took. */
static uint32_t rows_of(struct bed *b, const struct gen_spec *s, uint32_t *cached)
{
    struct out *o = outs(1);
    uint32_t before = b->rows;
    struct gen *g = submit(b, s, o);
    run(b, 10000);
    assert_int_equal(g->code, 0);
    assert_alone(s, o);
    if (cached)
        *cached = atomic_load(&g->n_cached);
    gen_free(g);
    free(o);
    return b->rows - before;
}

static void test_repeated(void **st)
{
    (void)st;
    static const uint32_t lengths[] = {1, 31, 32, 33, 63, 64, 65, 128, 1000, 1023};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        struct bed b;
        uint32_t n = lengths[i], cached, want = (n - 1) / KERN_PAGE_TOKENS * KERN_PAGE_TOKENS;
        open_bed(&b, &roomy, 0);
        struct gen_spec s = request(0, 1, n, n, 1);
        assert_int_equal(rows_of(&b, &s, &cached), n);
        assert_int_equal(cached, 0);
        assert_int_equal(rows_of(&b, &s, &cached), n - want); /* at most a page */
        assert_int_equal(cached, want);
        assert_int_equal(b.prefix_queries, 2 * n);
        assert_int_equal(b.prefix_hits, want);
        close_bed(&b);
    }
}

/* A chat's next turn finds what was generated in the last one. */
static void test_next_turn(void **st)
{
    (void)st;
    struct bed b;
    struct out *o = outs(1);
    open_bed(&b, &roomy, 0);
    struct gen_spec s = request(0, 1, 50, 50, 100);
    struct gen *g = submit(&b, &s, o);
    run(&b, 1000);
    struct gen_spec next = request(1, 1, 50, 200, 4);
    memcpy(prompts[1] + 50, o->token[0], 100 * sizeof(int32_t));
    rekey(&next, 1, 0, NULL, 0);
    uint32_t cached;
    assert_int_equal(rows_of(&b, &next, &cached), 200 - 128 + 3);
    assert_int_equal(cached, 128); /* 149 tokens were read: the last one sampled never is */
    close_all(&b, &g, 1, o);
}

static void test_nobody_shares(void **st)
{
    (void)st;
    struct bed b;
    static const struct kern_slot slot[2];
    struct model_prefix_pet p[2] = {{.weight = 1}, {.weight = 2}};
    struct model_pet pet[2] = {{&slot[0], 1}, {&slot[1], 2}};
    p[0].hash.b[0] = 1;
    p[1].hash.b[0] = 2;
    open_bed(&b, &roomy, 0);
    struct gen_spec s = request(0, 1, 100, 100, 2);
    assert_int_equal(rows_of(&b, &s, NULL), 101);
    for (int round = 0; round < 2; round++) {
        uint32_t want = round ? 101 - 96 : 101;
        struct gen_spec t = request(1, 1, 100, 100, 2);
        rekey(&t, 1, 1, NULL, 0);
        assert_int_equal(rows_of(&b, &t, NULL), want); /* another tenant */
        t.pets = pet;
        t.n_pets = 2;
        rekey(&t, 1, 0, p, 2);
        assert_int_equal(rows_of(&b, &t, NULL), want); /* modules */
        t.n_pets = 1;
        rekey(&t, 1, 0, p, 1);
        assert_int_equal(rows_of(&b, &t, NULL), want); /* fewer */
        struct model_pet turned[2] = {pet[1], pet[0]};
        struct model_prefix_pet q[2] = {p[1], p[0]};
        t.pets = turned;
        t.n_pets = 2;
        rekey(&t, 1, 0, q, 2);
        assert_int_equal(rows_of(&b, &t, NULL), want); /* their order */
        turned[0].weight = q[0].weight = 3;
        rekey(&t, 1, 0, q, 2);
        assert_int_equal(rows_of(&b, &t, NULL), want); /* their weights */
    }
    close_bed(&b);
}

/* Sent at once: the first computes the common pages, the others wait a step and take them. */
static void test_at_once(void **st)
{
    (void)st;
    enum { N = 8 };
    struct bed b;
    struct gen *g[N];
    struct gen_spec s[N];
    struct out *o = outs(N);
    struct fake_opts fo = roomy;
    fo.max_rows = 512;
    open_bed(&b, &fo, 512);
    for (int i = 0; i < N; i++) {
        s[i] = request(i, 1, 64, 70, 1);
        g[i] = submit(&b, &s[i], &o[i]);
    }
    step_at(&b, 1);
    assert_int_equal(b.r.rows, 70);
    step_at(&b, 1);
    assert_int_equal(b.r.rows, (N - 1) * 6);
    assert_int_equal(sched_live(b.s), 0);
    assert_int_equal(b.prefix_hits, (N - 1) * 64);
    for (int i = 0; i < N; i++)
        assert_alone(&s[i], &o[i]);
    close_all(&b, g, N, o);
}

/* A long prompt read in chunks: a second one beside it takes each page as it is there. */
static void test_behind(void **st)
{
    (void)st;
    struct bed b;
    struct gen *g[2];
    struct gen_spec s[2];
    struct out *o = outs(2);
    open_bed(&b, &roomy, 64);
    for (int i = 0; i < 2; i++)
        s[i] = request(i, 1, 600, 640, 2);
    g[0] = submit(&b, &s[0], &o[0]);
    step_at(&b, 1);
    g[1] = submit(&b, &s[1], &o[1]);
    run(&b, 100);
    assert_int_equal(b.rows, 640 + 1 + (640 - 576) + 1);
    assert_int_equal(atomic_load(&g[1]->n_cached), 576);
    assert_alone(&s[0], &o[0]);
    assert_alone(&s[1], &o[1]);
    close_all(&b, g, 2, o);
}

/* Scores need every row; what was read for them serves others. */
static void test_scores(void **st)
{
    (void)st;
    struct bed b;
    uint32_t cached;
    open_bed(&b, &roomy, 0);
    struct gen_spec s = request(0, 1, 200, 200, 1), t = s;
    t.score_prompt = true;
    t.n_top = t.n_prompt_top = 2;
    assert_int_equal(rows_of(&b, &t, &cached), 200);
    assert_int_equal(rows_of(&b, &t, &cached), 200);
    assert_int_equal(cached, 0);
    assert_int_equal(b.prefix_queries, 0);
    assert_int_equal(rows_of(&b, &s, &cached), 200 - 192);
    assert_int_equal(rows_of(&b, &t, &cached), 200);
    close_bed(&b);
}

/* A sum of hidden states needs every row, the last one's only its own. */
static void test_pooled(void **st)
{
    (void)st;
    struct bed b;
    uint32_t cached;
    open_bed(&b, &roomy, 0);
    struct gen_spec s = request(0, 1, 200, 200, 0);
    s.n_hidden = 1;
    for (int round = 0; round < 2; round++) {
        s.pool = MODEL_POOL_SUM;
        assert_int_equal(rows_of(&b, &s, &cached), 200);
        s.pool = MODEL_POOL_LAST;
        assert_int_equal(rows_of(&b, &s, &cached), 200 - 192);
        assert_int_equal(cached, 192);
    }
    close_bed(&b);
}

static void test_choices(void **st)
{
    (void)st;
    static const uint32_t lengths[] = {1, 32, 33, 64, 65, 130};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        struct bed b;
        uint32_t n = lengths[i], all = n - 1 + 4 * 20, cached;
        open_bed(&b, &roomy, 0);
        struct gen_spec s = request(0, 1, n, n, 20);
        s.n_choices = 4;
        assert_int_equal(rows_of(&b, &s, &cached), all);
        uint32_t want = n > 1 ? (n - 2) / KERN_PAGE_TOKENS * KERN_PAGE_TOKENS : 0;
        assert_int_equal(rows_of(&b, &s, &cached), all - want);
        assert_int_equal(cached, want);
        close_bed(&b);
    }
}

/* Two that grow over the pool: the one preempted comes back to what it had, but for what was given away. */
static void test_preempted(void **st)
{
    (void)st;
    struct bed b;
    struct gen *g[2];
    struct gen_spec s[2];
    struct out *o = outs(2);
    struct fake_opts fo = roomy;
    fo.n_pages = 24;
    open_bed(&b, &fo, 64);
    for (int i = 0; i < 2; i++) {
        s[i] = request(i, i, 64, 64, i ? 400 : 380);
        g[i] = submit(&b, &s[i], &o[i]);
    }
    run(&b, 5000);
    assert_true(b.preempted >= 1);
    uint32_t least = 2 * 64 + 380 + 400 - 2, again = b.rows - least;
    assert_true(again > 0 && again < 320 * b.preempted);
    print_message("%u preemptions, %u rows again\n", b.preempted, again);
    assert_alone(&s[0], &o[0]);
    assert_alone(&s[1], &o[1]);
    close_all(&b, g, 2, o);
}

/* With more beginnings than pages, every request still runs, and the least recent ones are forgotten. */
static void test_eviction(void **st)
{
    (void)st;
    struct bed b;
    struct fake_opts fo = roomy;
    uint32_t cached;
    fo.n_pages = 32;
    open_bed(&b, &fo, 64);
    for (int i = 0; i < 20; i++) {
        struct gen_spec s = request(i, i, 320, 320, 1);
        rows_of(&b, &s, &cached);
        assert_int_equal(cached, 0);
        assert_int_equal(kv_pages_free(b.m), 32);
    }
    struct gen_spec last = request(19, 19, 320, 320, 1), old = request(18, 18, 320, 320, 1);
    rows_of(&b, &old, &cached);
    assert_int_equal(cached, 288);
    rows_of(&b, &last, &cached);
    assert_int_equal(cached, 288);
    for (int i = 20; i < 22; i++) {
        struct gen_spec s = request(i, i, 320, 320, 1);
        rows_of(&b, &s, NULL);
    }
    rows_of(&b, &last, &cached);
    assert_int_equal(cached, 288);
    rows_of(&b, &old, &cached);
    assert_true(cached < 288);
    uint32_t seq;
    assert_int_equal(seq_open(b.m, &seq), 0);
    assert_int_equal(seq_reserve(b.m, seq, 32 * KERN_PAGE_TOKENS), 0); /* every page can be had */
    assert_int_equal(kv_pages_idle(b.m), 0);
    seq_close(b.m, seq);
    rows_of(&b, &last, &cached);
    assert_int_equal(cached, 0);
    close_bed(&b);
}

/* Pages that others hold cost the next one nothing: requests that would not fit apart run at once. */
static void test_admission_counts_held(void **st)
{
    (void)st;
    enum { N = 6 };
    struct bed b;
    struct gen *g[N];
    struct gen_spec s[N];
    struct out *o = outs(N);
    struct fake_opts fo = roomy;
    fo.n_pages = 24;
    open_bed(&b, &fo, 64);
    for (int i = 0; i < N; i++)
        s[i] = request(i, 1, 512, 520, 24); /* 17 pages each, 16 of them common */
    g[0] = submit(&b, &s[0], &o[0]);
    while (!o[0].n[0])
        step_at(&b, 1);
    for (int i = 1; i < N; i++)
        g[i] = submit(&b, &s[i], &o[i]);
    step_at(&b, 1);
    assert_int_equal(b.r.running, N);
    run(&b, 1000);
    assert_int_equal(b.preempted, 0);
    for (int i = 0; i < N; i++)
        assert_alone(&s[i], &o[i]);
    close_all(&b, g, N, o);
}

/* The first of two alike is cancelled, or its step fails, midway: the other goes on by itself. */
static void test_leader_ends(void **st)
{
    (void)st;
    for (int fail = 0; fail < 2; fail++) {
        struct bed b;
        struct gen *g[2];
        struct gen_spec s[2];
        struct out *o = outs(2);
        open_bed(&b, &roomy, 64);
        for (int i = 0; i < 2; i++) {
            s[i] = request(i, 1, 300, 320, 8);
            g[i] = submit(&b, &s[i], &o[i]);
        }
        step_at(&b, 1);
        if (fail)
            fake_fail_next(b.m);
        else
            atomic_store(&g[0]->cancelled, true);
        run(&b, 1000);
        assert_int_equal(g[0]->code, fail ? -EIO : -ECANCELED);
        assert_int_equal(g[1]->code, 0);
        assert_alone(&s[1], &o[1]);
        close_all(&b, g, 2, o);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_repeated),
        cmocka_unit_test(test_next_turn),
        cmocka_unit_test(test_nobody_shares),
        cmocka_unit_test(test_at_once),
        cmocka_unit_test(test_behind),
        cmocka_unit_test(test_scores),
        cmocka_unit_test(test_pooled),
        cmocka_unit_test(test_choices),
        cmocka_unit_test(test_preempted),
        cmocka_unit_test(test_eviction),
        cmocka_unit_test(test_admission_counts_held),
        cmocka_unit_test(test_leader_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
