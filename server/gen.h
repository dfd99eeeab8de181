/* gen.h - one generation: a prompt, n choices of it, and the ring that carries their tokens to the loop.
 *
 * The loop makes a struct gen, fills `spec`, and hands it to the engine. From then until it comes back as done the
 * spec does not change; `run` and what is marked so belong to the engine thread; the ring has one writer (engine) and
 * one reader (loop); the atomics are for both. The loop frees it once it is done.
 */
#ifndef CPET_SERVER_GEN_H
#define CPET_SERVER_GEN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "kernels/kernels.h"
#include "model/grammar.h"
#include "model/model.h"

#define GEN_MAX_CHOICES 1024

struct gen_spec {
    const int32_t *prompt; /* the caller's, unchanged until done */
    uint32_t n_prompt;     /* at least 1 */
    /* Keys of the prompt's full pages after their root, [n_prompt / KERN_PAGE_TOKENS + 1], the caller's; NULL: the
     * prefix cache is not used. */
    const struct hash *keys;
    uint32_t n_choices;  /* at least 1 */
    uint32_t max_tokens; /* a choice; 0 only to score the prompt */
    uint32_t min_tokens;
    bool ignore_eos;
    enum model_pool pool; /* reads the prompt and pools its hidden states, nothing else; max_tokens is 0 */
    uint32_t n_hidden;    /* with pool: the model's hidden size */
    bool score_prompt;    /* events for the prompt's tokens, once (choice 0) */
    uint32_t score_from;  /* with score_prompt: tokens before this one have no event, and come from the prefix cache */
    int n_prompt_top;     /* with score_prompt: candidates of each; 0: none */
    bool rank_prompt;     /* with score_prompt: the tokens' ranks too */
    int n_top;            /* as kern_sample.n_top */
    uint64_t seed;
    float temperature, top_p, min_p, presence, frequency, repetition;
    uint32_t top_k;
    const struct kern_bias *bias; /* [n_bias], the caller's */
    uint32_t n_bias;
    const int32_t *eos; /* [n_eos] */
    uint32_t n_eos;
    struct grammar *grammar;      /* what form each choice must have; NULL: any. Not with ignore_eos */
    const struct model_pet *pets; /* [n_pets] */
    uint32_t n_pets;
    uint32_t tenant;      /* a small number, for fairness */
    uint64_t task;        /* distinct a task; for the trace */
    uint64_t deadline_ns; /* CLOCK_MONOTONIC; 0: none */
};

/* STOP: the token is an end token, which has no text. WHOLE: it completes what the grammar asks for. */
enum gen_finish { GEN_NOT_YET, GEN_STOP, GEN_LENGTH, GEN_WHOLE };

struct gen_event {
    int32_t token;
    float logprob; /* NaN: none (the prompt's first token) */
    uint32_t rank; /* with rank_prompt, of a token of the prompt */
    uint16_t choice;
    uint8_t of_prompt;
    uint8_t finish; /* enum gen_finish: the choice's last token */
};

enum gen_state { GEN_QUEUED, GEN_RUNNING, GEN_DONE };

/* One choice on its way; the engine's. */
struct gen_run {
    struct gen *g;
    struct gen_run *next, *prev; /* in its tenant's list of decoding runs */
    uint32_t seq;
    uint32_t n_out;
    uint32_t len;      /* tokens that seq holds; n_prompt + n_out - 1 when the run is ready to decode */
    uint32_t reserved; /* tokens that the pages of seq hold */
    int32_t *fed;      /* the prompt's last token and the n_out sampled ones: the last is the next to append */
    uint32_t cap_fed;
    uint16_t choice;
    bool listed, done;
    struct hash *key; /* of the full pages after the prompt's full ones */
    uint32_t n_key, cap_key;
    struct grammar_state *form; /* NULL: any; kept when the run is preempted */
    uint64_t mask_ns;           /* what form's last mask took */
    uint32_t mask_waits;        /* steps that it sat out since, for its masks taking long */
    struct kern_seen *seen;     /* ascending tokens */
    uint32_t n_seen, cap_seen;
};

struct gen {
    struct gen_spec spec;
    void *user;     /* the loop's */
    uint32_t index; /* the loop's: which of the request's prompts */
    _Atomic int state;
    atomic_bool cancelled;       /* set by the loop: nobody waits for it any more */
    atomic_bool *choice_stopped; /* [n_choices], set by the loop: a stop string was found */
    int code;                    /* valid when done: 0, or why it ended early */
    struct err err;
    _Atomic uint64_t admitted_ns, first_ns;
    _Atomic uint32_t n_cached; /* prompt tokens taken from the prefix cache; the engine's, set before the first token */
    uint64_t submitted_ns;

    /* engine */
    struct gen *next, *prev;           /* in its tenant's list of waiting or of reading */
    struct gen *live_next, *live_prev; /* in the scheduler's list of all */
    struct gen_run *run;               /* [n_choices] */
    uint32_t prefill_done, prefill_end;
    double *pooled;     /* [n_hidden] with spec.pool; the loop's once done */
    uint32_t scored;    /* prompt tokens whose events are written */
    uint32_t n_running; /* runs not done */
    uint32_t base;      /* the run that reads the prompt: the first that is not done */
    uint32_t n_tails;   /* runs that read their own tokens again */
    uint64_t rank;      /* when it was first admitted, from 1 on; 0: not yet */
    uint32_t n_preempted;
    uint32_t promised_pages, promised_seqs;
    uint32_t passed;            /* how many were admitted before it while it did not fit */
    uint32_t n_planned;         /* events that the step at hand will write */
    struct kern_bias *bias_min; /* bias with the end tokens forbidden; [n_bias_min] */
    uint32_t n_bias_min;
    int failed;   /* -ENOMEM, or -EIO, while it ran: ended at the next step */
    bool reading; /* in its tenant's list of reading */

    /* hand-over, under the engine's lock */
    struct gen *ready_next, *submit_next;
    bool in_ready, done_seen;
    struct gen *touched_next; /* engine */
    bool touched, done_posted;
    struct gen *taken_next; /* loop */
    bool done_taken;

    /* ring */
    uint32_t cap;   /* a power of two */
    uint32_t n_top; /* candidates that a place holds */
    struct gen_event *event;
    int32_t *top_id;                    /* [cap][n_top] */
    float *top_logprob;                 /* [cap][n_top] */
    _Alignas(64) _Atomic uint32_t head; /* reader */
    _Alignas(64) _Atomic uint32_t tail; /* writer */
};

/* Copies *s (not what it points to; of the grammar it takes references). NULL when memory is out or a count is out of
 * range. */
struct gen *gen_create(const struct gen_spec *s);
void gen_free(struct gen *g); /* takes NULL; not while the engine has it */

/* Writer: free places in the ring. */
uint32_t gen_room(const struct gen *g);
/* n_top candidates of *tops go with it; the others of the ring's place become -1. */
void gen_put(struct gen *g, const struct gen_event *ev, const struct kern_sampled *tops, uint32_t n_top);

/* Reader: the oldest event, or false. The tops stay valid until gen_pop. */
bool gen_peek(const struct gen *g, struct gen_event *ev, const int32_t **top_id, const float **top_logprob);
void gen_pop(struct gen *g);

/* Most tokens of any choice, pages of all choices together when fully grown, for admission. */
uint32_t gen_total_tokens(const struct gen_spec *s);
uint64_t gen_pages(const struct gen_spec *s);

uint64_t mono_ns(void);

#endif
