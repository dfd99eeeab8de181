/* call.h - one API request on its way: what call.c (in) and call_answer.c (out) share. Loop thread.
 *
 * A call lives until three have let go of it: the HTTP request (call_closed), the worker that may be parsing or
 * tokenizing for it, and the engine with its generations.
 */
#ifndef CPET_SERVER_CALL_H
#define CPET_SERVER_CALL_H

#include "common/arena.h"
#include "proto/endpoints.h"
#include "server/choice.h"
#include "server/server.h"

/* Bodies above this are parsed and tokenized on the worker pool. */
#define CALL_INLINE_BYTES ((size_t)16 << 10)
/* Most log-probabilities of prompts in one answer, alternatives and repeats in each choice counted. */
#define CALL_SCORES_MAX ((uint64_t)1 << 20)
/* Most bytes of one request's structs, prompts and tables. */
#define CALL_ARENA_BYTES ((size_t)64 << 20)

struct call_prompt {
    struct req_str text; /* of a text prompt: for echo */
    const int32_t *id;
    size_t n;
    struct buf scores;       /* its prompt_logprobs as JSON, as they come */
    size_t n_context;        /* score: tokens before those that are scored */
    uint64_t admitted_ns;    /* 0: not yet */
    const struct hash *keys; /* as gen_spec.keys */
    uint32_t n_cached;       /* as gen's */
};

struct call {
    struct server *sv;
    struct call *next, *prev;
    struct http_req *r; /* NULL: the client has left or has its answer */
    struct arena *a;
    const char *body; /* the HTTP request's, until it is parsed */
    size_t n_body;
    char *left_body; /* that of a client that left, for the worker that reads it */
    enum req_kind kind;
    struct req *req;
    uint32_t tenant;
    struct task_version *task;
    struct hash root_key; /* of the prompts' pages */
    struct resp_head head;
    struct grammar *grammar; /* what form the answers must have; NULL: any, or not compiled yet */
    struct hash grammar_key;

    struct call_prompt *prompt; /* [n_prompts] */
    size_t n_prompts;
    struct gen **gen; /* [n_prompts], NULL where none is needed or it was freed */
    size_t n_with_engine;
    struct resident_want want; /* the modules of the task; had while n_with_engine */
    struct model_pet *pet;     /* [task->n_pets], filled when it has them */
    bool waiting;              /* for modules; the generations are made */
    size_t n_each;             /* choices that are generated of a prompt: best_of */
    struct choice *choice;     /* [n_prompts * n_each], a prompt's together */
    size_t n_choices;
    bool sent_prompt_ids; /* a chat's stream: with its first chunk */
    uint64_t n_prompt_tokens, n_scores;

    float **vec;    /* [n_prompts], embeddings: as they come */
    struct buf out; /* an answer that a stage wrote */

    uv_work_t work;
    int (*stage)(struct call *c, struct err *e);
    void (*after)(struct call *c, int rc, struct err *e);
    int stage_rc;
    struct err stage_err;
    size_t grammar_bytes; /* counted in the server's */
    bool in_work;
    bool turn_waits; /* for a worker */
    struct call *turn_next, *turn_prev;
    bool compile; /* the next stage compiles the grammar, so it runs on a worker */

    bool streaming; /* the head was sent */
    bool answered;
    bool ended; /* counted, with its outcome */
    enum series_outcome outcome;
    struct err failure; /* of outcome SERIES_ERROR */
    uint64_t start_ns, first_ns;
    uint64_t queued_ns; /* when all was known that its generations need, but for the modules in memory */
};

/* Answers with an error (before a stream began by HTTP status, later inside it), and cancels what runs. */
void call_fail(struct call *c, int status, const struct err *e, const char *code);
void call_cancel(struct call *c);
/* More, or fewer, generations of the call's tenant. */
void call_count_gens(struct call *c, int by);
/* Tokens so far. */
void call_usage(const struct call *c, struct resp_usage *u);
/* The end of a request: notes how, and counts it in its task's series. */
void call_count(struct call *c, enum series_outcome how);
/* Frees c when nobody holds it. */
void call_drop(struct call *c);
/* Sends what is ready; answers when all choices are finished. */
void call_send(struct call *c);
/* choice_open for all, with the echoed prompts. 0 or -ENOMEM. */
int call_open_choices(struct call *c);
/* A whole answer, 200; counts it. A buffer that failed is out of memory. */
void call_reply(struct call *c, const struct buf *b);
/* The generations go to the engine; the call has its modules. */
void call_submit(struct call *c);
/* Stages of encoding: a text or the rendered messages into *out or prompt[0]; all text prompts. */
int call_encode(struct call *c, const char *text, size_t n, unsigned flags, struct call_prompt *out, struct err *e);
int call_encode_chat(struct call *c, unsigned flags, struct err *e);
int call_encode_prompts(struct call *c, struct err *e);

/* call_stages.c */
/* Runs stage, on a worker where it is large, then after on the loop (not when the client has left meanwhile). The call
 * may be over when this returns. */
void call_stage(struct call *c, bool large, int (*stage)(struct call *c, struct err *e),
                void (*after)(struct call *c, int rc, struct err *e));
/* c waits for no worker any more. */
void call_stage_forget(struct call *c);

/* call_modules.c */
/* Whether the task may be used: -EIO, -ESHUTDOWN with the reason. */
int call_check_task(const struct call *c, struct err *e);
/* Makes room for pets and the want. 0 or -ENOMEM. */
int call_make_pets(struct call *c);
/* call_submit, at once or when the modules are in memory. The call may be answered when this returns. */
void call_admit(struct call *c);
/* Gives the modules back, or stops waiting for them. At any time, any number of times. */
void call_let_go(struct call *c);

/* call_more.c: for kinds from REQ_EMBEDDING on, but the first two for all */
const char *call_prompt_field(const struct call *c); /* the request's field that the prompt came in */
size_t call_prompt_limit(const struct call *c);      /* most tokens of one text */
size_t call_more_prompts(const struct call *c);
int call_more_encode(struct call *c, struct err *e);
void call_more_answer(struct call *c);
/* Takes g's vector. 0 or -ENOMEM. */
int call_pooled(struct call *c, const struct gen *g, size_t at);

/* call_keys.c, for the prefix cache: what the keys of the call's pages begin from, on the loop; then the keys of each
 * prompt's pages, on any thread. */
int call_root_key(struct call *c);
int call_keys(struct call *c, struct err *e);

#endif
