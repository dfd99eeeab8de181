/* engine.h - the thread that owns model, keys and values, and the scheduler.
 *
 * Everything here is called on the loop thread, except where it says so. Work goes in through a list under a mutex
 * that is held for a few pointer writes only; tokens come out through each generation's ring, and one wake-up of the
 * loop a step says which generations have news.
 */
#ifndef CPET_SERVER_ENGINE_H
#define CPET_SERVER_ENGINE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <uv.h>

#include "common/err.h"
#include "model/model.h"
#include "server/gen.h"

struct engine;

struct engine_opts {
    uint32_t prefill_chunk;   /* as sched_opts */
    uint32_t inject_delay_ms; /* slept in each step: a test aid */
    const char *trace_path;   /* a JSON line a step; NULL: none */
    /* Runs first on the engine thread: opens the model and whatever else takes long. */
    int (*load)(void *load_ctx, struct model **out, struct err *e);
    void *load_ctx;
    /* On the loop: loading is over. rc 0: the engine takes work from now on; else it has ended. */
    void (*loaded)(void *ctx, int rc, const struct err *e);
    /* On the loop: g has events in its ring; done: it is the caller's again, drained or not. */
    void (*news)(void *ctx, struct gen *g, bool done);
    void *ctx;
};

#define ENGINE_BUCKETS 16

/* Counters of the engine thread; any thread may read them. */
struct engine_stats {
    _Atomic uint64_t steps, rows, decode_rows, prefill_rows, sampled, step_errors, preemptions;
    _Atomic uint64_t prefix_queries, prefix_hits; /* tokens, as sched_report's, added up */
    _Atomic uint64_t step_us;                     /* sum */
    _Atomic uint64_t step_hist[ENGINE_BUCKETS];   /* by engine_bucket_us, the last one above them all */
    _Atomic uint32_t waiting, running, pages_free, pages_idle, slots;
    _Atomic uint64_t round_ns; /* mono_ns when the round at hand began; 0: it waits for work, or loads */
};
extern const uint32_t engine_bucket_us[ENGINE_BUCKETS - 1];

int engine_start(uv_loop_t *loop, const struct engine_opts *o, struct engine **out, struct err *e);
/* Joins the thread, ends all generations as -ESHUTDOWN (news of each comes from inside this call) and closes the model;
 * the loop must then run once more for the handle to close, after which closed is called and en is gone. */
void engine_stop(struct engine *en, void (*closed)(void *ctx), void *ctx);

/* The model, once loaded; for model_info and model_pet_target. */
struct model *engine_model(const struct engine *en);
const struct engine_stats *engine_stats(const struct engine *en);

/* How long the round at hand, a step and what belongs to it, has taken up to now; 0: none is at hand. */
uint64_t engine_round_age_ns(const struct engine *en);

/* g is the engine's until news(done). */
void engine_submit(struct engine *en, struct gen *g);
/* Ends g within a step; news(done) follows. */
void engine_cancel(struct engine *en, struct gen *g);
/* The ring of a full generation was drained, or a choice was stopped: look again. */
void engine_kick(struct engine *en);

#endif
