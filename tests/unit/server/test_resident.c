/* test_resident.c - the budget, the queue and the eviction of modules, with loads that the test ends when it likes.
 *
 * Loads are jobs in a list; `finish` ends one. The last test plays thousands of random requests, ends, failures and
 * departures, looks at the invariants after each, and in the end wants everybody served.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/num.h"
#include "server/resident.h"

enum { JOBS = 64, ITEMS = 24, WANTS = 64 };

struct fake {
    struct resident *r;
    struct resident_job *job[JOBS];
    size_t n_jobs;
    struct resident_item *item;
    size_t *size;
    size_t n_items, in_memory; /* bytes that loads really hold */
    int keeps;
    bool refuse; /* start has no memory */
};

static size_t size_of(const struct fake *f, const struct resident_item *it)
{
    return f->size[it - f->item];
}

static void drop_trash(struct fake *f, struct resident_mem *m)
{
    for (struct resident_mem *next; m; m = next) {
        next = m->next;
        f->in_memory -= (size_t)(uintptr_t)m->slot;
        free(m);
    }
}

static int on_start(void *ctx, struct resident_job *j)
{
    struct fake *f = ctx;
    if (f->refuse)
        return -ENOMEM;
    assert_true(f->n_jobs < JOBS);
    f->job[f->n_jobs++] = j;
    return 0;
}

static void on_keep(void *ctx, struct resident_item *it, bool on)
{
    struct fake *f = ctx;
    (void)it;
    f->keeps += on ? 1 : -1;
}

/* Ends the i-th job: what a worker does, then what the loop does. rc: of a load or an opening. */
static void finish(struct fake *f, size_t i, int rc)
{
    struct resident_job *j = f->job[i];
    f->job[i] = f->job[--f->n_jobs];
    drop_trash(f, j->trash);
    j->trash = NULL;
    if (j->item) {
        j->rc = rc;
        if (rc)
            err_set(&j->err, rc, "broken");
        else
            j->need = size_of(f, j->item);
        if (!rc && j->load) {
            f->in_memory += j->need;
            j->mem->slot = (struct pet_slot *)(uintptr_t)j->need;
            assert_true(f->in_memory <= resident_budget(f->r));
        }
    }
    resident_done(f->r, j);
}

static void finish_all(struct fake *f)
{
    while (f->n_jobs)
        finish(f, 0, 0);
}

static void setup(struct fake *f, size_t budget, size_t *size, size_t n, struct resident_item *item, bool known)
{
    *f = (struct fake){.item = item, .size = size, .n_items = n};
    memset(item, 0, n * sizeof *item);
    for (size_t i = 0; i < n; i++) {
        item[i].wanted = true;
        item[i].need = known ? size[i] : 0;
    }
    struct resident_opts o = {.budget = budget, .max_jobs = 2, .start = on_start, .keep = on_keep, .ctx = f};
    f->r = resident_create(&o);
    assert_non_null(f->r);
}

static void teardown(struct fake *f)
{
    finish_all(f);
    drop_trash(f, resident_free(f->r));
    assert_int_equal(f->in_memory, 0);
    assert_int_equal(f->keeps, 0);
    for (size_t i = 0; i < f->n_items; i++)
        resident_item_clear(&f->item[i]);
}

struct request {
    struct resident_want w;
    struct resident_item *item[4];
    int told, rc;
};

static void on_ready(void *user, int rc, const struct err *e)
{
    struct request *q = user;
    q->told++;
    q->rc = rc;
    if (rc)
        assert_true(e->msg[0] != 0);
}

static bool ask(struct fake *f, struct request *q, uint32_t n, const int *which)
{
    *q = (struct request){.w = {.n = n, .ready = on_ready, .user = q}};
    for (uint32_t i = 0; i < n; i++)
        q->item[i] = &f->item[which[i]];
    q->w.item = q->item;
    return resident_take(f->r, &q->w);
}

#define ASK(f, q, ...) ask(f, q, sizeof((int[]){__VA_ARGS__}) / sizeof(int), (int[]){__VA_ARGS__})

static void test_hit_and_miss(void **state)
{
    struct resident_item item[3];
    size_t size[] = {10, 20, 30};
    struct fake f;
    struct request a, b, c;
    (void)state;
    setup(&f, 100, size, 3, item, true);
    assert_false(ASK(&f, &a, 0));
    assert_false(ASK(&f, &b, 0)); /* the same load serves both */
    assert_int_equal(f.n_jobs, 1);
    assert_int_equal(resident_stats(f.r)->n_waiting, 2);
    finish_all(&f);
    assert_true(a.told == 1 && b.told == 1 && !a.rc && !b.rc);
    assert_int_equal(item[0].users, 2);
    assert_true(ASK(&f, &c, 0, 0)); /* at once; the same twice counts twice */
    assert_int_equal(item[0].users, 4);
    resident_give(f.r, &a.w);
    resident_give(f.r, &a.w); /* once is enough, twice does no harm */
    resident_give(f.r, &b.w);
    resident_give(f.r, &c.w);
    assert_int_equal(item[0].users, 0);
    assert_int_equal(resident_stats(f.r)->loads, 1);
    struct request none = {.w = {.n = 0}};
    assert_true(resident_take(f.r, &none.w)); /* the backbone alone */
    resident_give(f.r, &none.w);
    teardown(&f);
}

static void test_least_recently_used_goes(void **state)
{
    struct resident_item item[4];
    size_t size[] = {40, 40, 40, 40};
    struct fake f;
    struct request q;
    (void)state;
    setup(&f, 100, size, 4, item, false); /* sizes are found out first */
    for (int i = 0; i < 2; i++) {
        ASK(&f, &q, i);
        finish_all(&f);
        assert_int_equal(q.told, 1);
        resident_give(f.r, &q.w);
    }
    assert_true(ASK(&f, &q, 0)); /* 0 is younger than 1 now */
    resident_give(f.r, &q.w);
    assert_false(ASK(&f, &q, 2));
    finish_all(&f);
    resident_give(f.r, &q.w);
    assert_int_equal(item[0].state, RESIDENT_IN);
    assert_int_equal(item[1].state, RESIDENT_OUT);
    assert_int_equal(item[2].state, RESIDENT_IN);
    item[0].pins = 1; /* pinned: it stays though it is the oldest */
    assert_false(ASK(&f, &q, 3));
    finish_all(&f);
    resident_give(f.r, &q.w);
    assert_int_equal(item[0].state, RESIDENT_IN);
    assert_int_equal(item[2].state, RESIDENT_OUT);
    assert_int_equal(resident_stats(f.r)->evictions, 2);
    item[0].pins = 0;
    teardown(&f);
}

static void test_all_or_nothing(void **state)
{
    struct resident_item item[4];
    size_t size[] = {50, 50, 50, 50};
    struct fake f;
    struct request a, b;
    (void)state;
    setup(&f, 100, size, 4, item, true);
    assert_false(ASK(&f, &a, 0, 1));
    assert_false(ASK(&f, &b, 2, 3)); /* no half of it may come in before a has ended */
    assert_int_equal(f.n_jobs, 2);
    finish(&f, 0, 0);
    assert_int_equal(a.told, 0);
    finish_all(&f);
    assert_true(a.told == 1 && b.told == 0);
    assert_int_equal(item[2].state, RESIDENT_OUT);
    resident_give(f.r, &a.w);
    finish_all(&f);
    assert_int_equal(b.told, 1);
    resident_give(f.r, &b.w);
    teardown(&f);
}

static void test_failures(void **state)
{
    struct resident_item item[3];
    size_t size[] = {10, 10, 200};
    struct fake f;
    struct request a, b, c;
    (void)state;
    setup(&f, 100, size, 3, item, false);
    assert_false(ASK(&f, &a, 0));
    assert_false(ASK(&f, &b, 0, 1));
    assert_false(ASK(&f, &c, 1));
    finish(&f, 0, -EIO); /* 0 cannot be opened */
    assert_true(a.told == 1 && a.rc == -EIO && b.told == 1 && b.rc == -EIO);
    finish_all(&f);
    assert_true(c.told == 1 && !c.rc); /* which needed the other one alone */
    assert_int_equal(item[0].rc, -EIO);
    resident_give(f.r, &a.w);
    resident_give(f.r, &b.w);
    resident_give(f.r, &c.w);
    assert_false(ASK(&f, &a, 0)); /* the next one tries again */
    finish_all(&f);
    assert_true(a.told == 1 && !a.rc && !item[0].rc);
    resident_give(f.r, &a.w);
    assert_false(ASK(&f, &a, 2)); /* larger than all there is */
    finish_all(&f);
    assert_true(a.told == 1 && a.rc == -ENOMEM);
    f.refuse = true;
    item[1].pins = item[0].pins = 1;
    resident_put_out(f.r, &item[1]);
    f.refuse = false;
    item[1].pins = item[0].pins = 0;
    teardown(&f);
}

static void test_no_memory_for_a_job(void **state)
{
    struct resident_item item[1];
    size_t size[] = {10};
    struct fake f;
    struct request a;
    (void)state;
    setup(&f, 100, size, 1, item, true);
    f.refuse = true;
    assert_false(ASK(&f, &a, 0));
    assert_true(a.told == 1 && a.rc == -ENOMEM);
    assert_int_equal(resident_stats(f.r)->bytes_in, 0);
    f.refuse = false;
    assert_false(ASK(&f, &a, 0));
    finish_all(&f);
    assert_true(a.told == 1 && !a.rc);
    resident_give(f.r, &a.w);
    teardown(&f);
}

static void test_client_leaves(void **state)
{
    struct resident_item item[3];
    size_t size[] = {60, 60, 60};
    struct fake f;
    struct request a, b, c;
    (void)state;
    setup(&f, 100, size, 3, item, true);
    ASK(&f, &a, 0);
    resident_give(f.r, &a.w); /* before the load is over */
    finish_all(&f);
    assert_int_equal(a.told, 0);
    assert_int_equal(item[0].users, 0);
    assert_true(ASK(&f, &a, 0));
    assert_false(ASK(&f, &b, 1)); /* waits for a's memory */
    assert_false(ASK(&f, &c, 2));
    resident_give(f.r, &b.w); /* and goes: c is the first now */
    resident_give(f.r, &a.w);
    finish_all(&f);
    assert_true(b.told == 0 && c.told == 1);
    resident_give(f.r, &c.w);
    assert_int_equal(resident_stats(f.r)->n_waiting, 0);
    teardown(&f);
}

static void test_unwanted_leaves_with_its_last_user(void **state)
{
    struct resident_item item[2];
    size_t size[] = {10, 10};
    struct fake f;
    struct request a, b;
    (void)state;
    setup(&f, 100, size, 2, item, true);
    ASK(&f, &a, 0);
    ASK(&f, &b, 1);
    finish_all(&f);
    resident_wanted(f.r, &item[0], false);
    assert_int_equal(item[0].state, RESIDENT_IN);
    resident_give(f.r, &a.w);
    assert_int_equal(item[0].state, RESIDENT_OUT);
    resident_put_out(f.r, &item[1]); /* wanted, but to go */
    assert_int_equal(item[1].state, RESIDENT_IN);
    resident_give(f.r, &b.w);
    assert_int_equal(item[1].state, RESIDENT_OUT);
    finish_all(&f);
    assert_int_equal(f.in_memory, 0);
    ASK(&f, &b, 1); /* and may come back, to stay */
    finish_all(&f);
    resident_give(f.r, &b.w);
    assert_int_equal(item[1].state, RESIDENT_IN);
    teardown(&f);
}

/* Two users of a large module take turns, so that it never is without one; small ones pass. */
static void test_nobody_starves(void **state)
{
    struct resident_item item[3];
    size_t size[] = {60, 30, 60};
    struct fake f;
    struct request hold[2], big, pass;
    (void)state;
    setup(&f, 100, size, 3, item, true);
    ASK(&f, &hold[0], 0);
    ASK(&f, &pass, 1);
    finish_all(&f);
    resident_give(f.r, &pass.w);
    assert_false(ASK(&f, &big, 2));
    int turns = 0;
    for (; !big.told && turns < 200; turns++) {
        struct request *next = &hold[(turns + 1) % 2], *old = &hold[turns % 2];
        ASK(&f, next, 0); /* before the other one goes; waits once 0 is closed */
        resident_give(f.r, &old->w);
        ASK(&f, &pass, 1);
        resident_give(f.r, &pass.w);
        finish_all(&f);
    }
    assert_int_equal(big.told, 1);
    assert_in_range(turns, RESIDENT_PASSED / 2 - 2, RESIDENT_PASSED + 2);
    assert_true(resident_stats(f.r)->closed > 0);
    resident_give(f.r, &big.w);
    finish_all(&f);
    for (int i = 0; i < 2; i++)
        resident_give(f.r, &hold[i].w);
    finish_all(&f);
    teardown(&f);
}

/* A registration of the same content says the size while a job is finding it out: the request must still be loaded. */
static void test_size_told_while_opening(void **state)
{
    struct resident_item item[2];
    size_t size[] = {10, 20};
    struct fake f;
    struct request a, b;
    (void)state;
    setup(&f, 100, size, 2, item, false);
    assert_false(ASK(&f, &a, 0));
    assert_int_equal(item[0].state, RESIDENT_OPENING);
    item[0].need = size[0];
    assert_false(ASK(&f, &b, 1)); /* looks at the queue */
    finish_all(&f);
    assert_true(a.told == 1 && !a.rc && b.told == 1 && !b.rc);
    resident_give(f.r, &a.w);
    resident_give(f.r, &b.w);
    teardown(&f);
}

/* The one that waited for memory fails: one before it in the queue, which it held up, goes on at once. */
static void test_first_goes_on_when_the_blocked_fails(void **state)
{
    struct resident_item item[3];
    size_t size[] = {60, 30, 50};
    struct fake f;
    struct request u, a, b, c;
    (void)state;
    setup(&f, 100, size, 3, item, true);
    item[1].need = 0;
    ASK(&f, &u, 0);
    finish_all(&f);
    assert_false(ASK(&f, &a, 1));
    assert_false(ASK(&f, &b, 2)); /* waits for memory */
    finish_all(&f);
    assert_true(!a.told && !b.told && !f.n_jobs);
    item[0].pins = 1; /* now it never fits */
    assert_true(ASK(&f, &c, 0));
    resident_give(f.r, &c.w);
    assert_true(b.told == 1 && b.rc == -ENOMEM);
    finish_all(&f);
    assert_true(a.told == 1 && !a.rc);
    resident_give(f.r, &a.w);
    resident_give(f.r, &u.w);
    item[0].pins = 0;
    teardown(&f);
}

static void test_pins_leave_no_room(void **state)
{
    struct resident_item item[2];
    size_t size[] = {60, 60};
    struct fake f;
    struct request a, b;
    (void)state;
    setup(&f, 100, size, 2, item, true);
    item[0].pins = 1;
    ASK(&f, &a, 0);
    finish_all(&f);
    resident_give(f.r, &a.w);
    assert_false(ASK(&f, &b, 1)); /* refused at once, instead of waiting for ever */
    assert_true(b.told == 1 && b.rc == -ENOMEM);
    item[0].pins = 0;
    teardown(&f);
}

/* ---- everything at random ---- */

static void check(const struct fake *f, const struct request *q, size_t n)
{
    size_t bytes = 0, in = 0;
    for (size_t i = 0; i < f->n_items; i++) {
        const struct resident_item *it = &f->item[i];
        unsigned users = 0;
        for (size_t k = 0; k < n; k++)
            for (uint32_t l = 0; q[k].w.state == WANT_TAKEN && l < q[k].w.n; l++)
                users += q[k].item[l] == it;
        assert_int_equal(it->users, users);
        if (users || it->holds)
            assert_true(it->state == RESIDENT_IN || it->state == RESIDENT_LOADING);
        if (it->state == RESIDENT_LOADING || it->state == RESIDENT_IN)
            bytes += it->need;
        in += it->state == RESIDENT_IN;
    }
    assert_true(bytes <= resident_budget(f->r));
    assert_int_equal(bytes, resident_stats(f->r)->bytes_in);
    assert_int_equal(in, resident_stats(f->r)->n_in);
}

static void play(uint64_t seed)
{
    struct resident_item item[ITEMS];
    size_t size[ITEMS];
    static struct request q[WANTS];
    bool live[WANTS] = {false};
    struct fake f;
    uint64_t at = 0;
    for (size_t i = 0; i < ITEMS; i++)
        size[i] = 1 + rng_bits(seed, 1, i) % 40;
    setup(&f, 160, size, ITEMS, item, seed & 1);
    memset(q, 0, sizeof q);
    for (int step = 0; step < 3000; step++) {
        uint64_t x = rng_bits(seed, 2, at++), k = x % WANTS;
        if (!live[k] && step < 2500) {
            int which[4];
            uint32_t n = 1 + (uint32_t)(x >> 20) % 4;
            for (uint32_t i = 0; i < n; i++)
                which[i] = (int)((x >> (24 + 8 * i)) % ITEMS);
            live[k] = true;
            if (ask(&f, &q[k], n, which))
                q[k].told = 1;
        } else if (live[k] && (q[k].told || (x >> 40) % 8 == 0)) { /* ends, or leaves before its time */
            resident_give(f.r, &q[k].w);
            live[k] = false;
        }
        if (f.n_jobs && (x >> 50) % 2)
            finish(&f, (x >> 52) % f.n_jobs, (x >> 56) % 16 == 0 ? -EIO : 0);
        check(&f, q, WANTS);
    }
    for (int round = 0; round < 4 * WANTS; round++) { /* nobody new: everybody gets an outcome */
        finish_all(&f);
        for (size_t k = 0; k < WANTS; k++)
            if (live[k] && q[k].told) {
                resident_give(f.r, &q[k].w);
                live[k] = false;
            }
    }
    for (size_t k = 0; k < WANTS; k++)
        assert_false(live[k]);
    teardown(&f);
}

static void test_random(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 40; seed++)
        play(seed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hit_and_miss),
        cmocka_unit_test(test_least_recently_used_goes),
        cmocka_unit_test(test_all_or_nothing),
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_no_memory_for_a_job),
        cmocka_unit_test(test_client_leaves),
        cmocka_unit_test(test_unwanted_leaves_with_its_last_user),
        cmocka_unit_test(test_nobody_starves),
        cmocka_unit_test(test_pins_leave_no_room),
        cmocka_unit_test(test_size_told_while_opening),
        cmocka_unit_test(test_first_goes_on_when_the_blocked_fails),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
