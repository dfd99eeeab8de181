/* metrics.h - what the loop counts, and the Prometheus text of all that is counted. Loop thread. */
#ifndef CPET_SERVER_METRICS_H
#define CPET_SERVER_METRICS_H

#include <stdint.h>

#include "common/buf.h"
#include "server/task_series.h"

#define METRICS_BUCKETS 20

struct server;

struct histogram {
    uint64_t count[METRICS_BUCKETS]; /* by one of the tables below, the last one above them all */
    double sum;
};
extern const double metrics_seconds[METRICS_BUCKETS - 1];
extern const double metrics_tokens[METRICS_BUCKETS - 1];

struct metrics {
    uint64_t prompt_tokens, generation_tokens;
    uint64_t finished_stop, finished_length, finished_abort, finished_error;
    uint64_t rejected_busy;
    struct histogram queue, first_token, between_tokens;               /* seconds, as tokens come */
    struct histogram whole, prefill, decode, inference, each_token;    /* seconds, when a choice is finished */
    struct histogram request_prompt_tokens, request_generation_tokens; /* tokens, when a choice is finished */
    struct histogram module_load;                                      /* seconds */
    struct task_series tasks;
};

void histogram_add(struct histogram *h, double seconds);
void histogram_add_tokens(struct histogram *h, uint32_t n);

/* A finished choice. Times by mono_ns; admitted_ns and first_ns 0: it never ran. */
struct metrics_choice {
    uint64_t start_ns, admitted_ns, first_ns, last_ns, now_ns;
    uint32_t prompt_tokens, generation_tokens;
    const char *finish; /* "stop", "length" */
};
void metrics_choice_done(struct metrics *m, const struct metrics_choice *d);
/* The end of a request to a task. */
void metrics_task_done(struct server *sv, const char *task, enum series_outcome how, uint64_t prompt_tokens,
                       uint64_t generation_tokens);

/* Appends the exposition. Look at b->failed at the end. */
void metrics_text(const struct server *sv, struct buf *b);

#endif
