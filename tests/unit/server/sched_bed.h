/* sched_bed.h - a scheduler over the fake model, and what comes out of it; shared by the scheduler's tests. */
#ifndef CPET_TESTS_SCHED_BED_H
#define CPET_TESTS_SCHED_BED_H

#include "fake_model.h"
#include "server/scheduler.h"

#define MAX_OUT 4096

/* What a test keeps of one generation. */
struct out {
    int32_t token[8][MAX_OUT];
    float logprob[8][MAX_OUT];
    uint32_t n[8], n_prompt, finish[8];
    int32_t prompt[MAX_OUT];
    float prompt_logprob[MAX_OUT];
    bool done;
    uint32_t done_at;
};

struct bed {
    struct model *m;
    struct sched *s;
    uint32_t step, max_rows_seen, preempted, rows, prefix_hits, prefix_queries;
    bool keep; /* do not drain: a loop that is behind */
    struct sched_report r;
};

extern int32_t prompts[256][1100];
extern const struct fake_opts roomy;

void open_bed(struct bed *b, const struct fake_opts *fo, uint32_t chunk);
/* Nothing is left: no generation, sequence or page. */
void close_bed(struct bed *b);
void close_all(struct bed *b, struct gen **g, size_t n, struct out *o);
struct out *outs(size_t n);
/* A sampled request; fills prompt[n]. */
struct gen_spec spec(int32_t *prompt, uint32_t n, uint32_t max_tokens);
struct gen *submit(struct bed *b, const struct gen_spec *s, struct out *o);
/* submit(spec(prompts[i])). */
struct gen *send(struct bed *b, int i, uint32_t n_prompt, uint32_t max_tokens, struct out *o);
/* Takes g's events into its struct out. */
void drain(struct gen *g);
void step_at(struct bed *b, uint64_t now);
void run(struct bed *b, uint32_t most); /* to the end of all */
/* The same request alone on a fresh model of plenty. */
void alone(const struct fake_opts *fo, const struct gen_spec *s, struct out *o);
/* What came of s, as far as it came, is what it is alone. */
void assert_as_alone(const struct gen_spec *s, const struct out *o, const struct out *ref);

#endif
