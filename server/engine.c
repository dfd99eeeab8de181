/* engine.c - the engine thread and its two hand-over lists.
 *
 * The engine thread runs load(), then rounds of: take what was submitted, one sched_step, hand over what has news.
 * It sleeps on a condition when there is nothing to do. Two mutexes: `in` guards the list of submissions and the
 * flags, `out` the list of news; each is held for pointer writes only, never across a step, a file or the loop's work.
 *
 * A generation is in the list of news at most once (in_ready). `done` is posted under the lock and the engine never
 * touches the generation afterwards, so the loop may free it as soon as it has taken the list. The loop is woken once
 * a step, whatever the number of tokens.
 *
 * The trace file is written by the engine thread through stdio and flushed when it goes idle; it is a test aid.
 */
#include "server/engine.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "server/scheduler.h"

/* A generation whose ring is full waits for the loop; look again after this long. */
#define STUCK_WAIT_NS 2000000u

/* How much lower the priority of the compute threads is, and how long a turn they ask for. */
#define NICER 10
#define TURN_NS 5000000u

const uint32_t engine_bucket_us[ENGINE_BUCKETS - 1] = {500,   1000,   2000,   5000,   10000,   20000,   30000,  50000,
                                                       75000, 100000, 200000, 500000, 1000000, 2000000, 5000000};

struct engine {
    struct engine_opts o;
    uv_async_t async;
    pthread_t thread;
    struct model *model;
    struct sched *sched;
    FILE *trace;
    struct engine_stats stats;

    pthread_mutex_t in;
    pthread_cond_t wake;
    struct gen *submit_first, *submit_last;
    bool stop, kicked;

    pthread_mutex_t out;
    struct gen *ready_first, *ready_last;
    bool load_over, load_told;
    int load_rc;
    struct err load_err;

    struct gen *touched; /* engine thread: with news in this step */
    void (*closed)(void *ctx);
    void *closed_ctx;
};

/* ---- engine thread ---- */

static void on_publish(void *ctx, struct gen *g, bool done)
{
    struct engine *en = ctx;
    g->done_posted |= done;
    if (g->touched)
        return;
    g->touched = true;
    g->touched_next = en->touched;
    en->touched = g;
}

static void hand_over(struct engine *en)
{
    if (!en->touched)
        return;
    pthread_mutex_lock(&en->out);
    for (struct gen *g = en->touched, *next; g; g = next) {
        next = g->touched_next;
        g->touched = false;
        if (g->done_posted)
            g->done_seen = true;
        if (g->in_ready)
            continue;
        g->in_ready = true;
        g->ready_next = NULL;
        if (en->ready_last)
            en->ready_last->ready_next = g;
        else
            en->ready_first = g;
        en->ready_last = g;
    }
    pthread_mutex_unlock(&en->out);
    en->touched = NULL;
    uv_async_send(&en->async);
}

/* Waits when there is nothing to do; false when it is time to stop. */
static bool take_work(struct engine *en, bool busy)
{
    pthread_mutex_lock(&en->in);
    if (!busy && !en->stop && !en->submit_first && !en->kicked) {
        if (en->trace)
            fflush(en->trace);
        if (sched_live(en->sched)) {
            struct timespec t;
            clock_gettime(CLOCK_MONOTONIC, &t);
            t.tv_nsec += STUCK_WAIT_NS;
            t.tv_sec += t.tv_nsec / 1000000000;
            t.tv_nsec %= 1000000000;
            pthread_cond_timedwait(&en->wake, &en->in, &t);
        } else {
            while (!en->stop && !en->submit_first && !en->kicked)
                pthread_cond_wait(&en->wake, &en->in);
        }
    }
    struct gen *g = en->submit_first;
    en->submit_first = en->submit_last = NULL;
    en->kicked = false;
    bool stop = en->stop;
    pthread_mutex_unlock(&en->in);
    for (struct gen *next; g; g = next) {
        next = g->submit_next;
        if (!sched_submit(en->sched, g))
            continue;
        g->code = err_set(&g->err, -ENOMEM, "the server is out of memory");
        atomic_store(&g->state, GEN_DONE);
        on_publish(en, g, true);
    }
    return !stop;
}

static void count(struct engine *en, const struct sched_report *r, uint64_t us)
{
    struct engine_stats *s = &en->stats;
    unsigned b = 0;
    while (b < ENGINE_BUCKETS - 1 && us > engine_bucket_us[b])
        b++;
    if (r->rows) {
        atomic_fetch_add_explicit(&s->steps, 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&s->rows, r->rows, memory_order_relaxed);
        atomic_fetch_add_explicit(&s->decode_rows, r->decode_rows, memory_order_relaxed);
        atomic_fetch_add_explicit(&s->prefill_rows, r->prefill_rows, memory_order_relaxed);
        atomic_fetch_add_explicit(&s->sampled, r->sampled, memory_order_relaxed);
        atomic_fetch_add_explicit(&s->step_us, us, memory_order_relaxed);
        atomic_fetch_add_explicit(&s->step_hist[b], 1, memory_order_relaxed);
    }
    atomic_fetch_add_explicit(&s->step_errors, r->failed, memory_order_relaxed);
    atomic_fetch_add_explicit(&s->preemptions, r->preempted, memory_order_relaxed);
    atomic_fetch_add_explicit(&s->prefix_queries, r->prefix_queries, memory_order_relaxed);
    atomic_fetch_add_explicit(&s->prefix_hits, r->prefix_hits, memory_order_relaxed);
    atomic_store_explicit(&s->pages_idle, kv_pages_idle(en->model), memory_order_relaxed);
    atomic_store_explicit(&s->waiting, r->waiting, memory_order_relaxed);
    atomic_store_explicit(&s->running, r->running, memory_order_relaxed);
    atomic_store_explicit(&s->slots, r->slots, memory_order_relaxed);
    atomic_store_explicit(&s->pages_free, kv_pages_free(en->model), memory_order_relaxed);
    if (en->trace && r->rows)
        fprintf(
            en->trace,
            "{\"rows\": %u, \"decode_rows\": %u, \"prefill_rows\": %u, \"slots\": %u, \"tasks\": %u, \"us\": %llu}\n",
            r->rows, r->decode_rows, r->prefill_rows, r->slots, r->tasks, (unsigned long long)us);
}

static void sleep_ms(uint32_t ms)
{
    struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};
    nanosleep(&t, NULL);
}

static void serve(struct engine *en)
{
    bool busy = false;
    while (take_work(en, busy)) {
        struct sched_report r;
        uint64_t t0 = mono_ns();
        atomic_store(&en->stats.round_ns, t0);
        busy = sched_step(en->sched, t0, &r);
        count(en, &r, (mono_ns() - t0) / 1000);
        hand_over(en);
        busy |= r.failed != 0;
        if (busy && en->o.inject_delay_ms)
            sleep_ms(en->o.inject_delay_ms);
        atomic_store(&en->stats.round_ns, 0);
    }
    sched_end_all(en->sched, -ESHUTDOWN, "the server is shutting down");
    hand_over(en);
}

static int load_all(struct engine *en, struct err *e)
{
    int rc = en->o.load(en->o.load_ctx, &en->model, e);
    if (rc)
        return rc;
    struct sched_opts so = {
        .prefill_chunk = en->o.prefill_chunk, .count_tasks = en->trace != NULL, .publish = on_publish, .ctx = en};
    rc = sched_create(en->model, &so, &en->sched, e);
    atomic_store(&en->stats.pages_free, kv_pages_free(en->model));
    return rc;
}

/* What struct sched_attr of the kernel begins with. */
struct turn_attr {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

/* Makes this thread and those it starts (the compute threads) give way: with all processors busy computing, the
 * loop's thread and the clients on the machine come to run soon after they wake. The lower priority counts only
 * beside other threads that want the processor; the long turn is what kernels from 6.12 on understand. A system that
 * refuses leaves things as they are. */
static void give_way(void)
{
    struct turn_attr a = {.size = sizeof a, .policy = SCHED_OTHER, .runtime = TURN_NS};
    int nice = getpriority(PRIO_PROCESS, 0) + NICER;
    a.nice = nice < 19 ? nice : 19;
    (void)syscall(SYS_sched_setattr, 0, &a, 0u);
}

static void *engine_main(void *arg)
{
    struct engine *en = arg;
    struct err e = {0};
    give_way();
    int rc = load_all(en, &e);
    pthread_mutex_lock(&en->out);
    en->load_rc = rc;
    en->load_err = e;
    en->load_over = true;
    pthread_mutex_unlock(&en->out);
    uv_async_send(&en->async);
    if (!rc)
        serve(en);
    return NULL;
}

/* ---- loop thread ---- */

static void on_async(uv_async_t *h)
{
    struct engine *en = h->data;
    pthread_mutex_lock(&en->out);
    bool tell = en->load_over && !en->load_told;
    struct gen *g = en->ready_first;
    en->ready_first = en->ready_last = NULL;
    for (struct gen *i = g; i; i = i->ready_next) {
        i->in_ready = false;
        i->done_taken = i->done_seen;
        i->taken_next = i->ready_next;
    }
    pthread_mutex_unlock(&en->out);
    if (tell) {
        en->load_told = true;
        en->o.loaded(en->o.ctx, en->load_rc, &en->load_err);
    }
    for (struct gen *next; g; g = next) {
        next = g->taken_next;
        en->o.news(en->o.ctx, g, g->done_taken);
    }
}

static int open_trace(struct engine *en, struct err *e)
{
    if (!en->o.trace_path)
        return 0;
    en->trace = fopen(en->o.trace_path, "w");
    if (!en->trace)
        return err_param(e, -errno, "trace-steps", "--trace-steps: %s: %s", en->o.trace_path, strerror(errno));
    return 0;
}

int engine_start(uv_loop_t *loop, const struct engine_opts *o, struct engine **out, struct err *e)
{
    struct engine *en = calloc(1, sizeof *en);
    if (!en)
        return err_set(e, -ENOMEM, "no memory for the engine");
    en->o = *o;
    int rc = open_trace(en, e);
    if (rc) {
        free(en);
        return rc;
    }
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&en->wake, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&en->in, NULL);
    pthread_mutex_init(&en->out, NULL);
    uv_async_init(loop, &en->async, on_async);
    en->async.data = en;
    rc = pthread_create(&en->thread, NULL, engine_main, en);
    if (rc) {
        en->thread = 0;
        en->load_told = true;
        engine_stop(en, NULL, NULL);
        return err_set(e, -rc, "the engine's thread: %s", strerror(rc));
    }
    *out = en;
    return 0;
}

static void on_closed(uv_handle_t *h)
{
    struct engine *en = h->data;
    void (*closed)(void *) = en->closed;
    void *ctx = en->closed_ctx;
    pthread_cond_destroy(&en->wake);
    pthread_mutex_destroy(&en->in);
    pthread_mutex_destroy(&en->out);
    free(en);
    if (closed)
        closed(ctx);
}

void engine_stop(struct engine *en, void (*closed)(void *ctx), void *ctx)
{
    pthread_mutex_lock(&en->in);
    en->stop = true;
    pthread_cond_signal(&en->wake);
    pthread_mutex_unlock(&en->in);
    if (en->thread)
        pthread_join(en->thread, NULL);
    on_async(&en->async);
    sched_free(en->sched);
    model_close(en->model);
    if (en->trace)
        fclose(en->trace);
    en->closed = closed;
    en->closed_ctx = ctx;
    uv_close((uv_handle_t *)&en->async, on_closed);
}

struct model *engine_model(const struct engine *en)
{
    return en->model;
}

const struct engine_stats *engine_stats(const struct engine *en)
{
    return &en->stats;
}

uint64_t engine_round_age_ns(const struct engine *en)
{
    uint64_t began = atomic_load(&en->stats.round_ns), now = mono_ns();
    return began && now > began ? now - began : 0;
}

void engine_submit(struct engine *en, struct gen *g)
{
    g->submitted_ns = mono_ns();
    g->submit_next = NULL;
    pthread_mutex_lock(&en->in);
    if (en->submit_last)
        en->submit_last->submit_next = g;
    else
        en->submit_first = g;
    en->submit_last = g;
    pthread_cond_signal(&en->wake);
    pthread_mutex_unlock(&en->in);
}

void engine_cancel(struct engine *en, struct gen *g)
{
    atomic_store(&g->cancelled, true);
    engine_kick(en);
}

void engine_kick(struct engine *en)
{
    pthread_mutex_lock(&en->in);
    en->kicked = true;
    pthread_cond_signal(&en->wake);
    pthread_mutex_unlock(&en->in);
}
