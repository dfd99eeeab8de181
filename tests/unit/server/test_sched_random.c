/* test_sched_random.c - random requests in a tiny pool, against the same ones alone. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "sched_bed.h"

#define N_RANDOM 60

struct random_gen {
    struct gen *g;
    struct gen_spec s;
    struct hash keys[9]; /* of 256 tokens */
    struct model_pet pet;
    uint32_t cancel_at;
    uint32_t stop_after[4]; /* tokens after which the choice is stopped; 0: never */
    bool was_running;
};

static uint32_t draw(uint64_t *state, uint32_t n)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((*state >> 33) % n);
}

/* One of two beginnings, own tokens from some place on, and sometimes a module. */
static void share_prefix(struct random_gen *r, int32_t *prompt, uint64_t *state)
{
    static const struct kern_slot slot[2];
    uint32_t n = r->s.n_prompt, common = draw(state, 3) ? n : draw(state, n), first = draw(state, 2);
    for (uint32_t i = 0; i < n; i++)
        prompt[i] = (int32_t)(20 + (i * 7 + (i < common ? first : draw(state, 60))) % 60);
    struct model_prefix_pet p = {.weight = (float)(1 + draw(state, 2))};
    p.hash.b[0] = (uint8_t)draw(state, 2);
    r->pet = (struct model_pet){&slot[p.hash.b[0]], p.weight};
    r->s.pets = &r->pet;
    r->s.n_pets = !draw(state, 4);
    model_prefix_root(NULL, r->s.tenant, &p, r->s.n_pets, &r->keys[0]);
    prefix_keys(prompt, n, r->keys);
    r->s.keys = r->keys;
}

static void random_spec(struct random_gen *r, const struct bed *b, int32_t *prompt, uint64_t *state, bool share)
{
    struct err e;
    do {
        uint32_t n = draw(state, 4) ? 1 + draw(state, 60) : 1 + draw(state, 160);
        r->s = spec(prompt, n, draw(state, 8) ? draw(state, 256 - n) : draw(state, 3));
        r->s.n_choices = draw(state, 3) ? 1 : 1 + draw(state, 4);
        r->s.tenant = draw(state, 3);
        r->s.seed = draw(state, 1000);
        r->s.temperature = (float)draw(state, 2);
        r->s.presence = draw(state, 3) ? 0 : 0.5f;
        r->s.repetition = draw(state, 3) ? 1 : 1.3f;
        r->s.min_tokens = draw(state, 2) ? 0 : draw(state, 100);
        r->s.ignore_eos = draw(state, 2);
        r->s.score_prompt = !r->s.max_tokens || !draw(state, 4);
        r->s.n_top = r->s.n_prompt_top = r->s.score_prompt ? 2 : -1;
    } while (sched_fits(model_info(b->m), &r->s, &e));
    if (share)
        share_prefix(r, prompt, state);
    r->s.deadline_ns = draw(state, 12) ? 0 : b->step + 1 + draw(state, 400);
    r->cancel_at = draw(state, 12) ? 0 : b->step + 1 + draw(state, 400);
    for (int k = 0; k < 4; k++)
        r->stop_after[k] = draw(state, 6) ? 0 : 1 + draw(state, 100);
}

/* The oldest of those that ran before the step was not preempted in it; sets what runs now. */
static void check_oldest(struct random_gen *r, const struct out *o, int n)
{
    int oldest = -1;
    for (int i = 0; i < n; i++)
        if (r[i].was_running && (oldest < 0 || r[i].g->rank < r[oldest].g->rank))
            oldest = i;
    assert_true(oldest < 0 || o[oldest].done || atomic_load(&r[oldest].g->state) == GEN_RUNNING);
    for (int i = 0; i < n; i++)
        r[i].was_running = !o[i].done && atomic_load(&r[i].g->state) == GEN_RUNNING;
}

static void interfere(struct random_gen *r, const struct out *o, int n, uint32_t now)
{
    for (int i = 0; i < n; i++) {
        if (r[i].cancel_at && now >= r[i].cancel_at)
            atomic_store(&r[i].g->cancelled, true);
        for (uint32_t k = 0; k < r[i].s.n_choices; k++)
            if (r[i].stop_after[k] && o[i].n[k] >= r[i].stop_after[k])
                atomic_store(&r[i].g->choice_stopped[k], true);
    }
}

static void check_random(struct random_gen *r, const struct out *o, const struct fake_opts *plenty, struct out *ref)
{
    struct gen_spec whole = r->s;
    whole.keys = NULL;
    alone(plenty, &whole, ref);
    assert_true(o->done);
    assert_as_alone(&r->s, o, ref);
    if (r->g->code) {
        assert_true((r->g->code == -ECANCELED && r->cancel_at) || (r->g->code == -ETIMEDOUT && r->s.deadline_ns));
        return;
    }
    assert_int_equal(o->n_prompt, ref->n_prompt);
    for (uint32_t k = 0; k < r->s.n_choices; k++)
        assert_true(o->n[k] == ref->n[k] || (r->stop_after[k] && o->n[k] >= r->stop_after[k]));
}

struct sum {
    uint32_t preempted, hits;
};

static void random_round(uint64_t seed, bool share, struct sum *sum)
{
    struct bed b;
    struct random_gen *r = calloc(N_RANDOM, sizeof *r);
    struct out *o = outs(N_RANDOM), *ref = outs(1);
    uint64_t state = seed;
    struct fake_opts plenty = roomy, fo;
    plenty.eos = 7;
    plenty.eos_after = 60 + (int32_t)(seed % 3) * 60;
    fo = plenty;
    fo.n_pages = 8 + draw(&state, 30);
    fo.max_rows = 8 + draw(&state, 40);
    fo.max_logits = 2 + draw(&state, 7);
    fo.max_seqs = 4 + draw(&state, 20);
    open_bed(&b, &fo, 1 + draw(&state, 30));
    int sent = 0;
    uint32_t wait = 1 + draw(&state, 30);
    for (uint32_t i = 0; i < 100000 && (sent < N_RANDOM || sched_live(b.s)); i++) {
        while (sent < N_RANDOM && !draw(&state, wait)) {
            random_spec(&r[sent], &b, prompts[sent], &state, share);
            r[sent].g = submit(&b, &r[sent].s, &o[sent]);
            sent++;
        }
        interfere(r, o, sent, b.step);
        if (!draw(&state, 40)) {
            b.keep = !b.keep;
            for (int k = 0; k < sent && !b.keep; k++)
                if (!o[k].done)
                    drain(r[k].g);
        }
        step_at(&b, b.step + 1);
        check_oldest(r, o, sent);
    }
    for (int i = 0; i < N_RANDOM; i++) {
        check_random(&r[i], &o[i], &plenty, ref);
        gen_free(r[i].g);
    }
    sum->preempted += b.preempted;
    sum->hits += b.prefix_hits;
    close_all(&b, NULL, 0, o);
    free(ref);
    free(r);
}

static void rounds(bool share, uint64_t n)
{
    struct sum sum = {0};
    for (uint64_t seed = 1; seed <= n; seed++)
        random_round(seed, share, &sum);
    assert_true(sum.preempted > 4 * n);
    assert_true(share ? sum.hits > 100 * n : !sum.hits);
    print_message("%u preemptions, %u tokens from the cache\n", sum.preempted, sum.hits);
}

static void test_random_pressure(void **st)
{
    (void)st;
    rounds(false, 24);
}

/* The same pool with the prefix cache: requests begin alike, and each gets the tokens that it gets alone without. */
static void test_random_sharing(void **st)
{
    (void)st;
    rounds(true, 48);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_pressure),
        cmocka_unit_test(test_random_sharing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
