/* server.h - the state of a running cpetd; all of it belongs to the loop thread. */
#ifndef CPET_SERVER_SERVER_H
#define CPET_SERVER_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include <uv.h>

#include "model/template.h"
#include "model/tokenizer.h"
#include "server/engine.h"
#include "server/grammars.h"
#include "server/http.h"
#include "server/keys.h"
#include "server/metrics.h"
#include "server/options.h"
#include "server/task.h"

enum server_state { SERVER_LOADING, SERVER_READY, SERVER_DRAINING };

struct call;
struct background;
struct admin;
struct registry;

/* call_stages.c: calls that have a worker of libuv's pool, and those that wait for one. */
#define CALL_TURNS 4
struct call_turns {
    struct call *has[CALL_TURNS];
    struct call *first, *last;
};

struct server {
    const struct options *o;
    uv_loop_t *loop;
    enum server_state state;
    char *name; /* the backbone's task ID */
    struct engine *en;
    struct keys *keys;
    bool has_admin_key;
    struct hash admin_key;
    struct http_server *http, *admin;

    /* from loading; constant once READY */
    struct kern_dev *dev;
    struct tok *tok;
    struct tmpl *tmpl; /* the backbone's chat template; NULL: none */
    const int32_t *eos;
    size_t n_eos;
    struct grammars *grammars; /* NULL: answers with a form cannot be had, for grammars_problem */
    const char *grammars_problem;
    char fingerprint[32];            /* "" : none */
    struct model_info info;          /* a copy: a worker may still tokenize when the engine closes the model */
    const struct model_info *mi;     /* &info; NULL before */
    const struct pet_target *target; /* what modules are held to; the model's */
    struct registry *registry;       /* used by one worker at a time */
    struct background *background;   /* threads that load and check modules */
    struct resident *resident;
    struct modules *modules;
    struct tasks *tasks;
    struct admin *ad;
    int64_t started;

    unsigned n_jobs; /* work that may be using the model or the registry */
    void (*jobs_over)(void *ctx);
    void *jobs_ctx;

    struct call *calls; /* all that are not freed */
    struct call_turns turns;
    uint32_t n_active;     /* of these, not answered yet */
    uint32_t n_gens;       /* with the engine */
    uint32_t n_waiting;    /* prompts that wait for modules */
    uv_timer_t wait_look;  /* while there are such */
    uint32_t *tenant_gens; /* [n_tenant_gens], of each tenant */
    uint32_t n_tenant_gens;
    size_t grammar_bytes; /* large grammars that calls hold, once a call */
    struct metrics metrics;
    struct reqlog *requests; /* NULL: none */
};

/* api.c: the two listeners' handlers. */
struct http_handler api_handler(struct server *sv);
struct http_handler api_admin_handler(struct server *sv);
/* An error as JSON. code NULL: null. */
void api_error(struct http_req *r, int status, const struct err *e, const char *code);
/* b as the whole answer, 200; a buffer that failed is out of memory, 503. Frees what b holds. */
void api_json(struct http_req *r, struct buf *b);

/* call_more.c */
void get_tokenizer_info(struct server *sv, struct http_req *r);

/* api_admin.c: everything under /admin/v1/ and vLLM's two calls. false: there is nothing at that path. */
bool admin_route(struct server *sv, struct http_req *r);
/* admin.c: operations of the admin listener. */
int admin_open(struct server *sv);
unsigned admin_busy(const struct server *sv); /* operations that are not over */
void admin_stop(struct server *sv);           /* those that have not begun are dropped */
void admin_free(struct server *sv);
void admin_closed(struct server *sv, struct http_req *r);

/* residency.c: resident.c's jobs on the worker pool, and how calls wait for modules. */
int residency_open(struct server *sv);
void residency_free(struct server *sv);
void server_job_begin(struct server *sv);
void server_job_over(struct server *sv);
/* Calls over, once, when no job runs: perhaps now. */
void server_when_idle(struct server *sv, void (*over)(void *ctx), void *ctx);

/* request_line.c: a request that is over, for sv->requests */
void request_line(struct server *sv, struct http_req *r);

/* call.c: a completion or chat request; the body is in r. */
void call_start(struct server *sv, struct http_req *r, enum req_kind kind, uint32_t tenant);
void call_closed(struct server *sv, struct http_req *r);
/* call_modules.c: what calls that wait for modules need. */
void call_waits_open(struct server *sv);
void call_waits_close(struct server *sv);
/* call_answer.c; engine_opts.news: what the engine has for a generation. */
void call_news(void *ctx, struct gen *g, bool done);
/* Ends every open request with 503. */
void call_end_all(struct server *sv);

#endif
