/* sched_internal.h - what scheduler.c (queues, admission, ending) and sched_batch.c (one batch) share. */
#ifndef CPET_SERVER_SCHED_INTERNAL_H
#define CPET_SERVER_SCHED_INTERNAL_H

#include "server/scheduler.h"

struct gen_list {
    struct gen *first, *last;
};

struct sched_tenant {
    uint64_t served; /* prompt tokens admitted and tokens decoded */
    uint64_t read;   /* prompt rows computed */
    struct gen_list waiting, reading;
    struct gen_run *decode_first, *decode_last;
    uint32_t n_live, n_reading, n_decoding;
    uint32_t pages; /* KV pages that its generations hold */
    bool blocked;   /* its first does not fit, in this round */
};

/* One span of the batch being made. */
struct sched_part {
    struct gen *g;
    struct gen_run *run; /* NULL: a chunk of the prompt. Without logits: tokens of its own, read again */
    uint32_t logit0;     /* its first logit row */
};

struct sched {
    struct model *m;
    const struct model_info *mi;
    struct sched_opts o;
    struct sched_tenant *tenant;
    uint32_t n_tenants;
    struct gen *live_first;
    uint32_t n_live, n_waiting;
    uint32_t open_seqs, promised_seqs, promised_pages;
    uint64_t n_ranks;                     /* generations ever admitted */
    uint32_t prefix_queries, prefix_hits; /* in this step */

    struct sched_part *part; /* [max_seqs] */
    struct model_span *span; /* [max_seqs] */
    uint32_t n_parts, n_rows, n_logits, decode_rows;
    uint64_t mask_ns;             /* spent on masks for the batch being made */
    struct kern_sample *sample;   /* [max_logits] */
    struct kern_sampled *sampled; /* [max_logits] */
    uint64_t *task;               /* [max_seqs] */
};

void sched_list_push(struct gen_list *l, struct gen *g);
void sched_list_remove(struct gen_list *l, struct gen *g);
void sched_decode_push(struct sched_tenant *t, struct gen_run *r);
void sched_decode_remove(struct sched_tenant *t, struct gen_run *r);

/* Ends g now: closes its sequences, gives back what it was promised, publishes it as done. */
void sched_end(struct sched *s, struct gen *g, int code, const char *why);
/* Ends one run; ends g with the last one. True when g is gone. */
bool sched_end_run(struct sched *s, struct gen_run *r);
/* The prompt is read as far as all choices share it: forks, and lists the runs that have nothing to read again. */
void sched_prompt_read(struct sched *s, struct gen *g);
/* A run of g has read its own tokens again: lists it for decoding. */
void sched_tail_read(struct sched *s, struct gen_run *r);

/* Counts for g's tenant what pages came or went since `before` were free. */
void sched_count_pages(struct sched *s, const struct gen *g, uint32_t before);

/* The tokens that r's sequence holds when it is ready to decode. */
static inline uint32_t sched_ready_len(const struct gen_run *r)
{
    return r->g->spec.n_prompt + r->n_out - 1;
}

/* How far the prompt is read before the runs go on by themselves: to its end when the last row's logits are the only
 * run's first, else each run feeds the last token for itself. */
static inline uint32_t sched_prompt_end(const struct gen *g)
{
    bool samples = g->spec.n_choices == 1 && g->spec.max_tokens && !g->run[0].n_out;
    return g->spec.n_prompt - !(samples || g->spec.pool);
}

/* sched_batch.c */
void sched_plan(struct sched *s);
int sched_run_batch(struct sched *s, struct err *e);
/* The event of the prompt's first token, which nothing precedes. */
void sched_score_first(struct gen *g);
void sched_apply(struct sched *s, struct sched_report *r);
void sched_drop_batch(struct sched *s, const struct err *e);

/* sched_prefix.c: the prefix cache. Nothing happens for generations without keys. */

/* Whether so many pages are free, less those that g would take from the cache and others hold: these cost nothing. */
bool sched_prefix_fits(const struct sched *s, const struct gen *g, uint64_t pages);
/* At admission, r's sequence being new: takes what is kept, and sets prefill_done. */
void sched_prefix_admit(struct sched *s, struct gen *g, struct gen_run *r);
/* Before a chunk of the prompt: takes what others have left since; at least one row stays to be read. */
void sched_prefix_more(struct sched *s, struct gen *g);
/* Whether a part of the batch being made computes the page that g would read next. */
bool sched_prefix_coming(const struct sched *s, const struct gen *g);
/* Before r reads its own tokens again: takes what is kept of them; at least one row stays to be read. */
void sched_prefix_tail(struct sched *s, struct gen_run *r);
/* r's sequence has grown from `from` to `to` tokens: keeps the pages that are full now. */
void sched_prefix_keep(struct sched *s, struct gen_run *r, uint32_t from, uint32_t to);

#endif
