/* background.h - threads for work that may take its time: modules are read, checked and packed on them.
 *
 * libuv's workers serve requests (large bodies are parsed and tokenized there); these have a lower priority than the
 * compute threads, so that on a machine whose processors are all computing a load takes longer, not every step.
 */
#ifndef CPET_SERVER_BACKGROUND_H
#define CPET_SERVER_BACKGROUND_H

#include <uv.h>

#include "common/err.h"

struct background;

/* Embedded in whatever is to be done; the caller's, from background_run to `after` in the pool's hands. */
struct background_job {
    void (*work)(struct background_job *j);  /* on a thread of the pool */
    void (*after)(struct background_job *j); /* then, on the loop */
    struct background_job *next;
};

int background_open(uv_loop_t *loop, unsigned n_threads, struct background **out, struct err *e);
/* No job may be queued or run. Joins; the loop must run once more, which frees it. Takes NULL. */
void background_close(struct background *b);
/* Loop thread. Jobs begin in the order of coming. */
void background_run(struct background *b, struct background_job *j);

#endif
