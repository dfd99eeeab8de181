/* metrics.h - what the loop counts, and the Prometheus text of all that is counted. Loop thread. */
#ifndef CPET_SERVER_METRICS_H
#define CPET_SERVER_METRICS_H

#include <stdint.h>

#include "common/buf.h"

#define METRICS_BUCKETS 16

struct server;

struct histogram {
    uint64_t count[METRICS_BUCKETS]; /* by metrics_bucket, the last one above them all */
    double sum;
};
extern const double metrics_bucket[METRICS_BUCKETS - 1]; /* seconds */

struct metrics {
    uint64_t prompt_tokens, generation_tokens;
    uint64_t finished_stop, finished_length, finished_abort, finished_error;
    uint64_t rejected_busy;
    struct histogram queue, first_token, between_tokens, whole;
};

void histogram_add(struct histogram *h, double seconds);

/* Appends the exposition. Look at b->failed at the end. */
void metrics_text(const struct server *sv, struct buf *b);

#endif
