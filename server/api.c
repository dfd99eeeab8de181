/* api.c - routes of the two listeners, and the short answers.
 *
 * Loop thread. Nothing here waits: health is answered from the state alone, so that it stays quick whatever the engine
 * does. A path that is known with another method gets 405 and Allow.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"
#include "proto/endpoints.h"
#include "server/exposition.h"
#include "server/server.h"

void api_error(struct http_req *r, int status, const struct err *e, const char *code)
{
    struct buf b = {0};
    resp_error(&b, status, e, code);
    struct http_hdr h = {"WWW-Authenticate", "Bearer"};
    http_reply(r, status, "application/json", b.failed ? "{}" : b.data, b.failed ? 2 : b.len, &h, status == 401);
    buf_free(&b);
}

void api_json(struct http_req *r, struct buf *b)
{
    struct err e;
    if (b->failed) {
        err_set(&e, -ENOMEM, "the server is out of memory");
        api_error(r, 503, &e, NULL);
    } else {
        http_reply(r, 200, "application/json", b->data, b->len, NULL, 0);
    }
    buf_free(b);
}

/* ---- GET ---- */

static void get_health(struct server *sv, struct http_req *r)
{
    (void)sv;
    http_reply(r, 200, "application/json", "{\"status\": \"ok\"}", 16, NULL, 0);
}

static void get_ready(struct server *sv, struct http_req *r)
{
    static const char *const words[] = {"loading", "ready", "draining"};
    char s[64];
    int n = snprintf(s, sizeof s, "{\"status\": \"%s\"}", words[sv->state]);
    http_reply(r, sv->state == SERVER_READY ? 200 : 503, "application/json", s, (size_t)n, NULL, 0);
}

static void get_version(struct server *sv, struct http_req *r)
{
    (void)sv;
    static const char s[] = "{\"version\": \"" CPET_VERSION "\"}";
    http_reply(r, 200, "application/json", s, sizeof s - 1, NULL, 0);
}

static void get_openapi(struct server *sv, struct http_req *r)
{
    size_t n;
    const char *text = resp_openapi(&n);
    (void)sv;
    http_reply(r, 200, "application/json", text, n, NULL, 0);
}

static void get_metrics(struct server *sv, struct http_req *r)
{
    struct buf b = {0};
    metrics_text(sv, &b);
    if (b.failed)
        http_reply(r, 503, "text/plain", "out of memory\n", 14, NULL, 0);
    else
        http_reply(r, 200, EXPO_TYPE, b.data, b.len, NULL, 0);
    buf_free(&b);
}

/* ---- models ---- */

/* root: a place for the text of m.root. What a task stands on is its module's content; no path is told. */
static struct resp_model describe(const struct server *sv, const struct task_version *v, char root[HASH_HEX])
{
    if (v->n_pets)
        hash_hex(&v->module[0]->info.hash, root);
    const char *tenant = v->tenant == TASK_EVERYBODY ? "cpetd" : keys_tenant_name(sv->keys, v->tenant);
    return (struct resp_model){.id = v->id,
                               .root = v->n_pets ? root : sv->name,
                               .parent = v->backbone ? NULL : sv->name,
                               .owned_by = *tenant ? tenant : "cpetd",
                               .created = v->created,
                               .max_model_len = sv->mi->max_context};
}

static void get_models(struct server *sv, struct http_req *r, uint32_t tenant)
{
    size_t n = 0, k = 0;
    while (tasks_at(sv->tasks, n))
        n++;
    struct resp_model *m = calloc(n + 1, sizeof *m);
    char(*root)[HASH_HEX] = calloc(n + 1, sizeof *root);
    struct buf b = {0};
    const struct task_version *v;
    for (size_t i = 0; m && root && (v = tasks_at(sv->tasks, i)); i++) {
        if (!task_visible(v, tenant))
            continue;
        m[k] = describe(sv, v, root[k]);
        k++;
    }
    if (m && root)
        resp_models(&b, m, k);
    else
        b.failed = true;
    api_json(r, &b);
    free(root);
    free(m);
}

static void get_model(struct server *sv, struct http_req *r, uint32_t tenant, const char *id)
{
    struct task_version *v = tasks_get(sv->tasks, tenant, id, strlen(id));
    struct err e;
    if (!v) {
        err_param(&e, -ENOENT, "model", "the model \"%.*s\" does not exist", utf8_cut(id, strlen(id), 200), id);
        api_error(r, 404, &e, NULL);
        return;
    }
    char root[HASH_HEX];
    struct resp_model m = describe(sv, v, root);
    struct buf b = {0};
    resp_model(&b, &m);
    api_json(r, &b);
    task_unref(v);
}

/* ---- routes ---- */

enum route {
    R_NONE,
    R_HEALTH,
    R_READY,
    R_VERSION,
    R_METRICS,
    R_MODELS,
    R_MODEL,
    R_COMPLETIONS,
    R_CHAT,
    R_EMBEDDINGS,
    R_SCORE,
    R_TOKENIZE,
    R_DETOKENIZE,
    R_TOKENIZER_INFO,
    R_OPENAPI,
    R_ADMIN, /* api_admin.c's */
};

struct path {
    const char *path;
    enum route route;
    bool post;
};

static const struct path public_paths[] = {
    {"/health", R_HEALTH, false},
    {"/ready", R_READY, false},
    {"/version", R_VERSION, false},
    {"/openapi.json", R_OPENAPI, false},
    {"/v1/models", R_MODELS, false},
    {"/v1/completions", R_COMPLETIONS, true},
    {"/v1/chat/completions", R_CHAT, true},
    {"/v1/embeddings", R_EMBEDDINGS, true},
    {"/v1/score", R_SCORE, true},
    {"/score", R_SCORE, true},
    {"/tokenize", R_TOKENIZE, true},
    {"/detokenize", R_DETOKENIZE, true},
    {"/tokenizer_info", R_TOKENIZER_INFO, false},
    {"/metrics", R_METRICS, false}, /* last: left out without --public-metrics */
};
static const struct path admin_paths[] = {
    {"/health", R_HEALTH, false},
    {"/ready", R_READY, false},
    {"/version", R_VERSION, false},
    {"/metrics", R_METRICS, false},
    {"/admin/v1/modules", R_ADMIN, false},
    {"/admin/v1/tasks", R_ADMIN, false},
    {"/v1/load_lora_adapter", R_ADMIN, true},
    {"/v1/unload_lora_adapter", R_ADMIN, true},
};

#define MODEL_PREFIX "/v1/models/"
#define ADMIN_PREFIX "/admin/v1/"

static enum route find_route(const struct path *p, size_t n, const char *path, bool *post)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(p[i].path, path)) {
            *post = p[i].post;
            return p[i].route;
        }
    *post = false;
    return R_NONE;
}

/* Answers 404 or 405 and says false when the request is not for us. */
static bool check_route(struct http_req *r, enum route route, bool post)
{
    const char *method = http_method(r);
    struct err e;
    if (route == R_NONE) {
        err_set(&e, -ENOENT, "there is nothing at %.*s", utf8_cut(http_path(r), strlen(http_path(r)), 200),
                http_path(r));
        api_error(r, 404, &e, NULL);
        return false;
    }
    bool fits = post ? !strcmp(method, "POST") : !strcmp(method, "GET") || !strcmp(method, "HEAD");
    if (fits)
        return true;
    struct buf b = {0};
    struct http_hdr allow = {"Allow", post ? "POST" : "GET, HEAD"};
    err_set(&e, -EINVAL, "%s takes %s, not %s", http_path(r), post ? "POST" : "GET", method);
    resp_error(&b, 405, &e, NULL);
    http_reply(r, 405, "application/json", b.failed ? "{}" : b.data, b.failed ? 2 : b.len, &allow, 1);
    buf_free(&b);
    return false;
}

static bool check_ready(struct server *sv, struct http_req *r)
{
    struct err e;
    if (sv->state == SERVER_READY)
        return true;
    err_set(&e, -ESHUTDOWN, sv->state == SERVER_LOADING ? "the model is loading" : "the server is shutting down");
    api_error(r, 503, &e, NULL);
    return false;
}

static int refuse_key(struct err *e, const char *why)
{
    return err_set(e, -EACCES, "%s; send it as \"Authorization: Bearer KEY\"", why);
}

static int check_public_key(void *ctx, const char *authorization, struct err *e)
{
    const struct server *sv = ctx;
    if (keys_tenant(sv->keys, keys_bearer(authorization)) != KEYS_NO_TENANT)
        return 0;
    return refuse_key(e, "the API key is missing or not known");
}

static int check_admin_key(void *ctx, const char *authorization, struct err *e)
{
    const struct server *sv = ctx;
    if (!sv->has_admin_key || keys_match(&sv->admin_key, keys_bearer(authorization)))
        return 0;
    return refuse_key(e, "the admin key is missing or wrong");
}

/* Answers what needs no key; false: route does. */
static bool get_open(struct server *sv, struct http_req *r, enum route route)
{
    switch (route) {
    case R_HEALTH:
        get_health(sv, r);
        return true;
    case R_READY:
        get_ready(sv, r);
        return true;
    case R_VERSION:
        get_version(sv, r);
        return true;
    case R_METRICS:
        get_metrics(sv, r);
        return true;
    case R_OPENAPI:
        get_openapi(sv, r);
        return true;
    default:
        return false;
    }
}

static enum req_kind call_kind(enum route route)
{
    switch (route) {
    case R_CHAT:
        return REQ_CHAT;
    case R_EMBEDDINGS:
        return REQ_EMBEDDING;
    case R_SCORE:
        return REQ_SCORE;
    case R_TOKENIZE:
        return REQ_TOKENIZE;
    case R_DETOKENIZE:
        return REQ_DETOKENIZE;
    default:
        return REQ_COMPLETION;
    }
}

static void on_public(void *ctx, struct http_req *r)
{
    struct server *sv = ctx;
    bool post, is_model = !strncmp(http_path(r), MODEL_PREFIX, sizeof MODEL_PREFIX - 1);
    size_t n = sizeof public_paths / sizeof *public_paths - !sv->o->public_metrics;
    enum route route = find_route(public_paths, n, http_path(r), &post);
    if (route == R_NONE && is_model && http_path(r)[sizeof MODEL_PREFIX - 1])
        route = R_MODEL;
    if (!check_route(r, route, post))
        return;
    if (get_open(sv, r, route))
        return;
    uint32_t tenant = keys_tenant(sv->keys, keys_bearer(http_header(r, "Authorization")));
    if (tenant == KEYS_NO_TENANT) {
        struct err e;
        refuse_key(&e, "the API key is missing or not known");
        api_error(r, 401, &e, "invalid_api_key");
        return;
    }
    if (!check_ready(sv, r))
        return;
    if (route == R_MODELS)
        get_models(sv, r, tenant);
    else if (route == R_MODEL)
        get_model(sv, r, tenant, http_path(r) + sizeof MODEL_PREFIX - 1);
    else if (route == R_TOKENIZER_INFO)
        get_tokenizer_info(sv, r);
    else
        call_start(sv, r, call_kind(route), tenant);
}

static void on_public_close(void *ctx, struct http_req *r)
{
    struct server *sv = ctx;
    bool post;
    enum route route = find_route(public_paths, sizeof public_paths / sizeof *public_paths, http_path(r), &post);
    bool probe = route == R_HEALTH || route == R_READY || route == R_VERSION || route == R_METRICS;
    if (sv->requests && !probe)
        request_line(sv, r);
    call_closed(sv, r);
}

/* Without a key only programs on this machine reach the admin listener; a web page in a browser on it would too. Its
 * requests carry Origin, or a Host that is not a loopback address (a name that was made to point here). */
static bool from_a_page(const struct server *sv, const struct http_req *r)
{
    const char *host = http_header(r, "Host");
    char with_port[300];
    if (sv->has_admin_key)
        return false;
    if (http_header(r, "Origin") || http_header(r, "Sec-Fetch-Site"))
        return true;
    if (!host || !strncmp(sv->o->admin_listen, "unix:", 5))
        return false;
    const char *colon = strrchr(host, ':');
    snprintf(with_port, sizeof with_port, "%s%s", host, colon && !strchr(colon, ']') ? "" : ":0");
    return !options_is_loopback(with_port);
}

static void on_admin(void *ctx, struct http_req *r)
{
    struct server *sv = ctx;
    bool post;
    enum route route = find_route(admin_paths, sizeof admin_paths / sizeof *admin_paths, http_path(r), &post);
    if (route == R_HEALTH || route == R_READY) {
        if (check_route(r, route, post))
            (route == R_HEALTH ? get_health : get_ready)(sv, r);
        return;
    }
    if (sv->has_admin_key && !keys_match(&sv->admin_key, keys_bearer(http_header(r, "Authorization")))) {
        struct err e;
        refuse_key(&e, "the admin key is missing or wrong");
        api_error(r, 401, &e, "invalid_api_key");
        return;
    }
    if (route == R_METRICS || route == R_VERSION) {
        if (check_route(r, route, post))
            (route == R_METRICS ? get_metrics : get_version)(sv, r);
    } else if (route != R_ADMIN && strncmp(http_path(r), ADMIN_PREFIX, sizeof ADMIN_PREFIX - 1)) {
        check_route(r, R_NONE, post);
    } else if (from_a_page(sv, r)) {
        struct err e;
        err_set(&e, -EPERM, "without --admin-key, requests of web pages are refused");
        api_error(r, 403, &e, NULL);
    } else if (check_ready(sv, r) && !admin_route(sv, r)) {
        check_route(r, R_NONE, post);
    }
}

static void on_admin_close(void *ctx, struct http_req *r)
{
    admin_closed(ctx, r);
}

struct http_handler api_handler(struct server *sv)
{
    return (struct http_handler){on_public, on_public_close, sv, check_public_key};
}

struct http_handler api_admin_handler(struct server *sv)
{
    return (struct http_handler){on_admin, on_admin_close, sv, check_admin_key};
}
