/* task_series.h - counters a task, capped: the first N tasks have series of their own, all others share "other".
 *
 * Loop thread. A series of a task that is gone is kept until its place is needed, so that what a scraper has seen does
 * not vanish with the task. A task that is itself named "other" counts there.
 */
#ifndef CPET_SERVER_TASK_SERIES_H
#define CPET_SERVER_TASK_SERIES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum series_outcome { SERIES_OK, SERIES_ERROR, SERIES_ABORT, SERIES_OUTCOMES };

struct series {
    char *task; /* "other" for the first */
    uint64_t requests[SERIES_OUTCOMES], prompt_tokens, generation_tokens;
};

struct task_series {
    struct series *s; /* [n]; the first is the shared one */
    size_t n, max;    /* max: places of tasks, without the shared one */
};

/* 0 or -ENOMEM. */
int series_open(struct task_series *t, size_t max);
void series_close(struct task_series *t);
/* The task's series, made when it is new; the shared one when there is no place. gone says whether a name of a series
 * is no task any more. Never NULL after series_open. */
struct series *series_of(struct task_series *t, const char *task, bool (*gone)(const void *ctx, const char *name),
                         const void *ctx);

#endif
