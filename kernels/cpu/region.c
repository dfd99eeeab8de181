/* region.c - the CPU device: memory, and the workers that walk a step's list together.
 *
 * The caller of kern_run is worker 0; the others are threads made by kern_open that live until kern_close. All of a
 * step's progress is one 64-bit word: which operation is open, how many workers are in it, and its next unclaimed
 * chunk. A worker enters the open operation, claims chunks until none is left, and leaves; the last one to leave
 * knows that all chunks are done, closes the operation, does the ones behind it that are too small to share, and
 * opens the next. So an operation waits for the chunks in hand, never for a worker that the system has put aside:
 * a late worker finds the list further on, or at its end. While anybody is in an operation it cannot move on, so what
 * entering workers read beside the word (list, step, index) stands still.
 *
 * Waiting spins some 30 us, then sleeps on a futex. With one worker there is no word, no atomic and no wait.
 * The step's arrays belong to the caller; the gather table and the profile belong to whoever holds the closed word.
 */
#include "kernels/kernels.h"

#include <assert.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "kernels/cpu/region.h"

#define MAX_THREADS 128
#define MAX_ROWS 65536 /* rows a step, for the gather table */

#define SPIN_NS 30000

/* The word: bits 0-31 the next chunk, 32-39 workers inside, 40 closed, 41 closed for good (the step is over), 42-63 a
 * serial number. */
#define WORKER ((uint64_t)1 << 32)
#define WORKERS(v) ((v) >> 32 & 0xFF)
#define CLOSED ((uint64_t)1 << 40)
#define OVER ((uint64_t)1 << 41 | CLOSED)
#define SERIAL ((uint64_t)1 << 42)

struct worker {
    struct kern_dev *d;
    struct cpu_ctx ctx;
    uint32_t next; /* chunks, while alone */
    bool alone;
    pthread_t thread;
};

struct kern_dev {
    _Alignas(64) _Atomic uint64_t word;
    _Alignas(64) _Atomic uint32_t phase; /* changes with each serial number: what sleepers sleep on */
    _Atomic uint32_t sleepers;
    _Alignas(64) const struct kern_op *ops; /* of the step under way; at: the open one */
    size_t n_ops, at;
    const struct kern_step *step;
    _Atomic bool stop;
    unsigned threads;
    struct cpu_table table;
    uint32_t *gather; /* [MAX_ROWS] */
    bool profiling;
    uint64_t stamp, ns[KERN_OP_KINDS];
    struct worker workers[];
};

static uint64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void pause_cpu(void)
{
#ifdef CPET_X86
    __builtin_ia32_pause();
#endif
}

uint32_t cpu_claim(struct cpu_ctx *c)
{
    struct worker *w = c->worker;
    if (w->alone)
        return w->next++;
    return (uint32_t)atomic_fetch_add_explicit(&w->d->word, 1, memory_order_relaxed);
}

/* ---- one worker, or the holder of the closed word ---- */

static void account(struct kern_dev *d, enum kern_kind kind)
{
    if (!d->profiling)
        return;
    uint64_t t = clock_ns();
    d->ns[kind] += t - d->stamp;
    d->stamp = t;
}

static void run_alone(struct worker *w, const struct kern_op *op)
{
    w->alone = true;
    w->next = 0;
    cpu_op_run(&w->ctx, op, 1);
    w->alone = false;
    account(w->d, op->kind);
}

/* Moves `at` to the next operation that is worth sharing, doing the small ones on the way; false at the list's end. */
static bool advance(struct worker *w, size_t from)
{
    struct kern_dev *d = w->d;
    for (d->at = from; d->at < d->n_ops; d->at++) {
        const struct kern_op *op = &d->ops[d->at];
        if (!cpu_op_wanted(op, d->step))
            continue;
        if (d->threads > 1 && !cpu_op_solo(op, d->step))
            return true;
        run_alone(w, op);
    }
    return false;
}

/* ---- sharing ---- */

static void wake(struct kern_dev *d)
{
    atomic_fetch_add(&d->phase, 1);
    if (atomic_load(&d->sleepers))
        syscall(SYS_futex, &d->phase, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Opens the operation at d->at, or, with OVER, ends the step; under a new serial number in either case. */
static void reopen(struct kern_dev *d, uint64_t word, uint64_t over)
{
    uint64_t serial = (word & ~(SERIAL - 1)) + SERIAL;
    atomic_store_explicit(&d->word, serial | over, memory_order_release);
    wake(d);
}

static bool changed(struct kern_dev *d, uint64_t seen)
{
    return (atomic_load_explicit(&d->word, memory_order_acquire) ^ seen) >= SERIAL;
}

/* Waits until the serial number is not that of `seen`. A sleeper reads the phase before it looks at the word for the
 * last time; a change in between makes the futex call return at once. */
static void wait_change(struct kern_dev *d, uint64_t seen)
{
    uint64_t end = 0;
    do {
        for (int i = 0; i < 16; i++) {
            if (changed(d, seen))
                return;
            pause_cpu();
        }
        if (!end)
            end = clock_ns() + SPIN_NS;
    } while (clock_ns() < end);
    while (!changed(d, seen)) {
        uint32_t phase = atomic_load(&d->phase);
        atomic_fetch_add(&d->sleepers, 1);
        if (!changed(d, seen))
            syscall(SYS_futex, &d->phase, FUTEX_WAIT_PRIVATE, phase, NULL, NULL, 0);
        atomic_fetch_sub(&d->sleepers, 1);
    }
}

/* Leaves the operation entered; the last one out moves the list on. */
static void leave(struct worker *w)
{
    struct kern_dev *d = w->d;
    uint64_t v = atomic_load_explicit(&d->word, memory_order_relaxed), to;
    do {
        to = v - WORKER;
        if (!WORKERS(to))
            to |= CLOSED;
    } while (!atomic_compare_exchange_weak_explicit(&d->word, &v, to, memory_order_acq_rel, memory_order_relaxed));
    if (WORKERS(to))
        return;
    account(d, d->ops[d->at].kind);
    reopen(d, to, advance(w, d->at + 1) ? 0 : OVER);
}

/* Enters the open operation of `seen`'s serial number, works and leaves, unless it is closed already. */
static void take_part(struct worker *w, uint64_t seen)
{
    struct kern_dev *d = w->d;
    uint64_t v = seen;
    do {
        if (v & CLOSED || (v ^ seen) >= SERIAL)
            return;
    } while (
        !atomic_compare_exchange_weak_explicit(&d->word, &v, v + WORKER, memory_order_acq_rel, memory_order_acquire));
    w->ctx.s = d->step;
    cpu_op_run(&w->ctx, &d->ops[d->at], d->threads);
    leave(w);
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct kern_dev *d = w->d;
    uint64_t seen = 0;
    while (!atomic_load(&d->stop)) {
        wait_change(d, seen);
        seen = atomic_load_explicit(&d->word, memory_order_acquire);
        take_part(w, seen);
    }
    return NULL;
}

/* ---- steps ---- */

static void fill_gather(struct kern_dev *d, const struct kern_step *s)
{
    assert(s->n_rows <= MAX_ROWS);
    memset(d->gather, 0xFF, s->n_rows * sizeof *d->gather);
    for (uint32_t i = 0; i < s->n_logits; i++)
        d->gather[s->logit_rows[i]] = i;
}

void kern_run(struct kern_dev *d, const struct kern_op *ops, size_t n_ops, const struct kern_step *s)
{
    struct worker *w = &d->workers[0];
    fill_gather(d, s);
    d->ops = ops;
    d->n_ops = n_ops;
    d->step = s;
    w->ctx.s = s;
    if (d->profiling)
        d->stamp = clock_ns();
    if (!advance(w, 0))
        return;
    uint64_t seen = atomic_load_explicit(&d->word, memory_order_relaxed);
    reopen(d, seen, 0);
    for (;;) {
        wait_change(d, seen);
        seen = atomic_load_explicit(&d->word, memory_order_acquire);
        if ((seen & OVER) == OVER)
            return;
        take_part(w, seen);
    }
}

void kern_profile(struct kern_dev *d, uint64_t ns[KERN_OP_KINDS])
{
    memcpy(ns, d->ns, sizeof d->ns);
    memset(d->ns, 0, sizeof d->ns);
    d->profiling = true;
}

/* ---- the device ---- */

static int level_of(const char *name, enum kern_level *out, struct err *e)
{
    *out = cpu_best_level();
    if (!name || !*name)
        return 0;
    for (int l = 0; l < KERN_LEVELS; l++)
        if (!strcmp(name, kern_level_name((enum kern_level)l))) {
            if ((enum kern_level)l < *out)
                *out = (enum kern_level)l;
            return 0;
        }
    return err_set(e, -EINVAL, "unknown kernel level \"%s\": scalar, avx2, vnni or amx", name);
}

static unsigned threads_of(unsigned asked)
{
    long cores = asked ? (long)asked : sysconf(_SC_NPROCESSORS_ONLN);
    return cores < 1 ? 1 : cores > MAX_THREADS ? MAX_THREADS : (unsigned)cores;
}

static int start_workers(struct kern_dev *d, unsigned threads, struct err *e)
{
    for (d->threads = 1; d->threads < threads; d->threads++) {
        int rc = pthread_create(&d->workers[d->threads].thread, NULL, worker_main, &d->workers[d->threads]);
        if (rc)
            return err_set(e, -EAGAIN, "cannot start kernel thread %u of %u: %s", d->threads + 1, threads,
                           strerror(rc));
    }
    return 0;
}

int kern_open(const struct kern_opts *o, struct kern_dev **out, struct err *e)
{
    enum kern_level level;
    int rc = level_of(o->max_level, &level, e);
    if (rc)
        return rc;
    unsigned threads = threads_of(o->threads);
    size_t bytes = (sizeof(struct kern_dev) + threads * sizeof(struct worker) + 63) & ~(size_t)63;
    struct kern_dev *d = aligned_alloc(64, bytes);
    uint32_t *gather = malloc(MAX_ROWS * sizeof *gather);
    if (!d || !gather) {
        free(d);
        free(gather);
        return err_set(e, -ENOMEM, "no memory for the kernel device");
    }
    memset(d, 0, bytes);
    atomic_init(&d->word, OVER);
    d->gather = gather;
    cpu_table_fill(&d->table, level);
    for (unsigned i = 0; i < threads; i++)
        d->workers[i] = (struct worker){.d = d, .ctx = {.t = &d->table, .gather = gather, .worker = &d->workers[i]}};
    rc = start_workers(d, threads, e);
    if (rc) {
        kern_close(d);
        return rc;
    }
    *out = d;
    return 0;
}

void kern_close(struct kern_dev *d)
{
    if (!d)
        return;
    atomic_store(&d->stop, true);
    reopen(d, atomic_load(&d->word), OVER);
    for (unsigned i = 1; i < d->threads; i++)
        pthread_join(d->workers[i].thread, NULL);
    free(d->gather);
    free(d);
}

enum kern_level kern_level(const struct kern_dev *d)
{
    return d->table.level;
}

unsigned kern_threads(const struct kern_dev *d)
{
    return d->threads;
}

/* ---- loading ---- */

struct parallel {
    void (*fn)(void *ctx, size_t i);
    void *ctx;
    size_t n;
    _Atomic size_t next;
};

static void *parallel_main(void *arg)
{
    struct parallel *p = arg;
    for (size_t i; (i = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed)) < p->n;)
        p->fn(p->ctx, i);
    return NULL;
}

/* On threads of its own, so that a load beside running steps never holds the region. Where a thread cannot be had,
 * the others do its share. */
void kern_parallel(struct kern_dev *d, size_t n, void (*fn)(void *ctx, size_t i), void *ctx)
{
    struct parallel p = {.fn = fn, .ctx = ctx, .n = n};
    pthread_t helpers[MAX_THREADS];
    unsigned started = 0;
    while (started + 1 < d->threads && started + 1 < n && !pthread_create(&helpers[started], NULL, parallel_main, &p))
        started++;
    parallel_main(&p);
    for (unsigned i = 0; i < started; i++)
        pthread_join(helpers[i], NULL);
}
