/* server.h - the state of a running cpetd; all of it belongs to the loop thread. */
#ifndef CPET_SERVER_SERVER_H
#define CPET_SERVER_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include <uv.h>

#include "model/template.h"
#include "model/tokenizer.h"
#include "server/engine.h"
#include "server/http.h"
#include "server/keys.h"
#include "server/metrics.h"
#include "server/options.h"
#include "server/task.h"

enum server_state { SERVER_LOADING, SERVER_READY, SERVER_DRAINING };

struct call;

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
    char fingerprint[32];        /* "" : none */
    struct model_info info;      /* a copy: a worker may still tokenize when the engine closes the model */
    const struct model_info *mi; /* &info; NULL before */
    struct tasks *tasks;
    int64_t started;

    struct call *calls;    /* all that are not freed */
    uint32_t n_active;     /* of these, not answered yet */
    uint32_t n_gens;       /* with the engine */
    uint32_t *tenant_gens; /* [n_tenant_gens], of each tenant */
    uint32_t n_tenant_gens;
    struct metrics metrics;
    struct reqlog *requests; /* NULL: none */
};

/* api.c: the two listeners' handlers. */
struct http_handler api_handler(struct server *sv);
struct http_handler api_admin_handler(struct server *sv);
/* An error as JSON. code NULL: null. */
void api_error(struct http_req *r, int status, const struct err *e, const char *code);

/* call_more.c */
void get_tokenizer_info(struct server *sv, struct http_req *r);

/* api_admin.c */
void admin_modules(struct server *sv, struct http_req *r);
void admin_tasks(struct server *sv, struct http_req *r);

/* request_line.c: a request that is over, for sv->requests */
void request_line(struct server *sv, struct http_req *r);

/* call.c: a completion or chat request; the body is in r. */
void call_start(struct server *sv, struct http_req *r, enum req_kind kind, uint32_t tenant);
void call_closed(struct server *sv, struct http_req *r);
/* call_answer.c; engine_opts.news: what the engine has for a generation. */
void call_news(void *ctx, struct gen *g, bool done);
/* Ends every open request with 503. */
void call_end_all(struct server *sv);

#endif
