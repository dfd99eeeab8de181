/* scheduler.h - what runs in the next step. Belongs to the engine thread (the tests drive it alone).
 *
 * Each step it ends what was cancelled or is late, admits from the queues, and makes one batch: a row for every
 * sequence that decodes and, beside them, chunks of prompts under a budget of rows. Between tenants the one served
 * least goes first, within a tenant the one that came first; a request that does not fit lets at most SCHED_MAX_PASS
 * later ones of other tenants by, then everybody waits for it.
 *
 * Admission takes pages for the prompt and SCHED_HEADROOM tokens of each choice; a sequence that decodes gets further
 * pages one by one. When there are none, the youngest generation of the tenant that holds the most pages is preempted:
 * its pages are freed and it waits again, first in its queue. Admitted again it reads the prompt and its own tokens and
 * goes on where it was; since a row's result does not depend on the batch, its tokens are those it would have had.
 * Nothing preempted fails: see scheduler.c for why everything admitted ends.
 *
 * Full pages of prompts and of what was generated are kept under keys as they fill, and taken from there by later
 * generations with the same beginning, at admission and before each chunk of a prompt (sched_prefix.c).
 */
#ifndef CPET_SERVER_SCHEDULER_H
#define CPET_SERVER_SCHEDULER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "model/model.h"
#include "server/gen.h"

#define SCHED_MAX_PASS 32
/* Tokens beyond what it has that a choice gets pages for at admission; doubled by each preemption, and after so many
 * of those the choice gets pages for all that it may grow to. */
#define SCHED_HEADROOM 64
#define SCHED_MAX_PREEMPT 8

struct sched;

struct sched_opts {
    uint32_t prefill_chunk; /* most prompt rows a step while others decode; 0: 256 */
    bool count_tasks;       /* fill sched_report.tasks */
    /* Called during sched_step: g has new events or (done) is over; after done the scheduler has forgotten it. */
    void (*publish)(void *ctx, struct gen *g, bool done);
    void *ctx;
};

struct sched_report {
    uint32_t rows, decode_rows, prefill_rows; /* of the last step */
    uint32_t slots, tasks;
    uint32_t waiting, running; /* generations, after the step */
    uint32_t sampled;          /* tokens sampled */
    uint32_t preempted;        /* generations that lost their pages in this step */
    uint32_t prefix_queries;   /* prompt tokens of generations that were admitted and looked up in the prefix cache */
    uint32_t prefix_hits;      /* of those, tokens that were there */
    uint32_t failed;           /* 1: model_step failed, and whoever had a part in it was ended */
};

int sched_create(struct model *m, const struct sched_opts *o, struct sched **out, struct err *e);
void sched_free(struct sched *s); /* takes NULL; ends nothing: the queues should be empty */

/* Whether such a generation could ever run on this model. -EINVAL with param: prompt, max_tokens or n. Any thread. */
int sched_fits(const struct model_info *mi, const struct gen_spec *g, struct err *e);

/* Takes g into its tenant's queue. -ENOMEM: it was not taken. */
int sched_submit(struct sched *s, struct gen *g);

/* One round, with one model_step when there is something to compute. True when rows were computed. */
bool sched_step(struct sched *s, uint64_t now_ns, struct sched_report *r);

uint32_t sched_live(const struct sched *s);                     /* generations that are not done */
void sched_end_all(struct sched *s, int code, const char *why); /* ends every one of them */

#endif
