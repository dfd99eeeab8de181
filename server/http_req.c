/* http_req.c - requests as libmicrohttpd sees them: it calls in here with headers, body and the wish for more bytes of
 * an answer, and is told to suspend while there is nothing to say.
 *
 * The loop's thread, always inside MHD_run or a call by the owner. A request is created at libmicrohttpd's first call
 * and freed at its last (request_completed), which for a client that left comes a little after on_close. Resuming is
 * only noted (s->ready) and done for all streams at once before one MHD_run, because a resume and a run a token starve
 * each other when thousands stream.
 */
#include "server/http_int.h"

#include <arpa/inet.h>
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "common/num.h"

/* Beside a head, what libmicrohttpd keeps of it and its answer's head. It clears all of a connection's memory after
 * each request, so that it is resident. With a head of 16 KiB a connection's memory is over 32 KiB: from there on it is
 * mapped, and goes back to the system when the connection rests (http_front.c). */
enum { STREAM_BLOCK = 8192, REQUEST_ROOM = 20480 };

void req_make_id(struct http_server *s, char *out, size_t n)
{
    snprintf(out, n, "%016llx", (unsigned long long)rng_bits(s->seed, 1, s->made++));
}

/* libmicrohttpd will look at r in its next run. */
static void req_ready(struct http_req *r)
{
    r->s->dirty = true;
    if (r->in_ready || !r->suspended)
        return;
    r->in_ready = true;
    r->ready_next = r->s->ready;
    r->s->ready = r;
}

/* on_close, once, for a request that the owner knows. */
static void req_close(struct http_req *r)
{
    if (!r->entered || r->closed)
        return;
    r->closed = true;
    r->s->n_requests--;
    if (r->s->h.on_close)
        r->s->h.on_close(r->s->h.ctx, r);
}

void req_client_left(struct http_req *r)
{
    r->c = NULL;
    r->gone = true;
    req_close(r);
    req_ready(r);
}

static void req_free(struct http_req *r)
{
    for (struct http_req **p = &r->s->ready; r->in_ready && *p; p = &(*p)->ready_next) {
        if (*p == r) {
            *p = r->ready_next;
            break;
        }
    }
    if (r->resp)
        MHD_destroy_response(r->resp);
    http_body_done(r);
    buf_free(&r->queue);
    arena_free(r->arena);
    free(r);
}

/* A client's id is taken when it is short and printable. */
static void set_id(struct http_req *r)
{
    const char *id = http_header(r, "x-request-id");
    size_t n = id ? strlen(id) : 0;
    bool fit = n && n < sizeof r->id;
    for (size_t i = 0; fit && i < n; i++)
        fit = id[i] > ' ' && id[i] < 0x7F;
    if (fit)
        memcpy(r->id, id, n + 1);
    else
        req_make_id(r->s, r->id, sizeof r->id);
}

static void set_peer(struct http_req *r, int fd)
{
    struct sockaddr_storage a = {0};
    socklen_t len = sizeof a;
    char host[INET6_ADDRSTRLEN] = "";
    const struct sockaddr_in6 *v6 = (const void *)&a;
    const struct sockaddr_in *v4 = (const void *)&a;
    if (getpeername(fd, (struct sockaddr *)&a, &len))
        return;
    if (a.ss_family == AF_INET && inet_ntop(AF_INET, &v4->sin_addr, host, sizeof host))
        snprintf(r->peer, sizeof r->peer, "%s:%u", host, ntohs(v4->sin_port));
    else if (a.ss_family == AF_INET6 && inet_ntop(AF_INET6, &v6->sin6_addr, host, sizeof host))
        snprintf(r->peer, sizeof r->peer, "[%s]:%u", host, ntohs(v6->sin6_port));
    else
        snprintf(r->peer, sizeof r->peer, "unix");
}

static struct http_req *req_create(struct http_server *s, struct http_conn *c, struct MHD_Connection *mc,
                                   const char *method, const char *path)
{
    struct http_req *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    r->s = s;
    r->c = c;
    r->mc = mc;
    r->method = method;
    r->path = path;
    buf_init(&r->body, s->lim.max_body + 1);
    buf_init(&r->queue, 2 * s->o.max_backlog); /* taken bytes too, until they are dropped */
    set_id(r);
    set_peer(r, c->fd);
    c->req = r;
    return r;
}

static enum MHD_Result give_response(struct http_req *r)
{
    r->c->given = true;
    r->s->answers[r->status]++;
    enum MHD_Result ok = MHD_queue_response(r->mc, (unsigned)r->status, r->resp);
    MHD_destroy_response(r->resp);
    r->resp = NULL;
    return ok;
}

static enum MHD_Result on_access(void *ctx, struct MHD_Connection *mc, const char *url, const char *method,
                                 const char *version, const char *upload, size_t *upload_size, void **state)
{
    struct http_server *s = ctx;
    struct http_req *r = *state;
    (void)version;
    if (!r) {
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(mc, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
        struct http_conn *c = info->socket_context;
        if (c->closed || c->state == CONN_LINGER)
            return MHD_NO;
        *state = req_create(s, c, mc, method, url);
        return *state ? MHD_YES : MHD_NO;
    }
    if (r->gone || r->aborted)
        return MHD_NO;
    if (*upload_size) {
        if (*upload_size > s->o.max_bodies - s->body_bytes || buf_append(&r->body, upload, *upload_size))
            return MHD_NO; /* the front answers 503 */
        s->body_bytes += *upload_size;
        *upload_size = 0;
        return MHD_YES;
    }
    if (!r->entered) {
        r->entered = true;
        s->n_requests++;
        s->h.on_request(s->h.ctx, r);
    }
    if (r->aborted)
        return MHD_NO;
    if (r->resp)
        return give_response(r);
    r->suspended = true;
    MHD_suspend_connection(mc);
    return MHD_YES;
}

static void on_completed(void *ctx, struct MHD_Connection *mc, void **state, enum MHD_RequestTerminationCode code)
{
    struct http_server *s = ctx;
    struct http_req *r = *state;
    (void)mc;
    (void)code;
    if (!r)
        return;
    *state = NULL;
    struct http_conn *c = r->c;
    if (c) {
        c->req = NULL;
        c->completed = code == MHD_REQUEST_TERMINATED_COMPLETED_OK;
        if (!c->in_done) {
            c->in_done = true;
            c->refs++;
            c->done_next = s->done;
            s->done = c;
        }
    }
    r->gone = true;
    req_close(r);
    req_free(r);
}

static void on_connection(void *ctx, struct MHD_Connection *mc, void **socket_ctx,
                          enum MHD_ConnectionNotificationCode code)
{
    struct http_server *s = ctx;
    (void)mc;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        *socket_ctx = s->adding;
        s->adding->refs++;
    } else {
        conn_unref(*socket_ctx);
    }
}

/* Paths and keys are checked by the front; libmicrohttpd's own way of decoding is kept. */
struct MHD_Daemon *req_daemon(struct http_server *s)
{
    unsigned limit = 2 * s->o.max_conns + 64; /* those that left stay until the next run */
    return MHD_start_daemon(MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_NO_LISTEN_SOCKET, 0, NULL, NULL,
                            on_access, s, MHD_OPTION_NOTIFY_COMPLETED, on_completed, s, MHD_OPTION_NOTIFY_CONNECTION,
                            on_connection, s, MHD_OPTION_CONNECTION_LIMIT, limit, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
                            s->lim.max_header + REQUEST_ROOM, MHD_OPTION_CONNECTION_TIMEOUT, 0u, MHD_OPTION_END);
}

/* ---- what the owner asks ---- */

const char *http_method(const struct http_req *r)
{
    return r->method;
}

const char *http_path(const struct http_req *r)
{
    return r->path;
}

const char *http_query(const struct http_req *r, const char *key)
{
    const char *v = NULL;
    size_t n = 0;
    if (MHD_lookup_connection_value_n(r->mc, MHD_GET_ARGUMENT_KIND, key, strlen(key), &v, &n) != MHD_YES)
        return NULL;
    return v ? v : "";
}

const char *http_header(const struct http_req *r, const char *name)
{
    return MHD_lookup_connection_value(r->mc, MHD_HEADER_KIND, name);
}

const char *http_body(const struct http_req *r, size_t *n)
{
    *n = r->body.len;
    return r->body.data ? r->body.data : "";
}

void http_body_done(struct http_req *r)
{
    r->s->body_bytes -= r->body.len;
    buf_free(&r->body);
}

const char *http_peer(const struct http_req *r)
{
    return r->peer;
}

int http_status(const struct http_req *r)
{
    return r->status;
}

char *http_body_take(struct http_req *r, size_t *n)
{
    char *body = r->body.data;
    *n = r->body.len;
    r->s->body_bytes -= r->body.len;
    r->body = (struct buf){.limit = r->body.limit};
    return body;
}

const char *http_request_id(const struct http_req *r)
{
    return r->id;
}

struct arena *http_arena(struct http_req *r)
{
    if (!r->arena)
        r->arena = arena_create(r->s->o.max_arena);
    return r->arena;
}

void *http_user(const struct http_req *r)
{
    return r->user;
}

void http_set_user(struct http_req *r, void *user)
{
    r->user = user;
}

/* ---- answers ---- */

static bool has_header(const struct http_hdr *h, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (!strcasecmp(h[i].name, name))
            return true;
    return false;
}

static void respond(struct http_req *r, int status, struct MHD_Response *resp, const char *type,
                    const struct http_hdr *extra, size_t n)
{
    assert(!r->answered && status >= 200 && status < 600);
    if (type)
        MHD_add_response_header(resp, "Content-Type", type);
    MHD_add_response_header(resp, "x-request-id", r->id);
    if ((status == 429 || status == 503) && !has_header(extra, n, "Retry-After"))
        MHD_add_response_header(resp, "Retry-After", "1");
    if (r->s->stopping)
        MHD_add_response_header(resp, "Connection", "close");
    for (size_t i = 0; i < n; i++)
        MHD_add_response_header(resp, extra[i].name, extra[i].value);
    r->answered = true;
    r->status = status;
    r->resp = resp;
    req_ready(r);
}

void http_stream_abort(struct http_req *r)
{
    r->aborted = true;
    req_ready(r);
}

void http_reply(struct http_req *r, int status, const char *content_type, const void *body, size_t n,
                const struct http_hdr *extra, size_t n_extra)
{
    if (r->gone)
        return;
    union {
        const void *in;
        void *out;
    } bytes = {.in = body}; /* the library copies, but does not say const */
    struct MHD_Response *resp = MHD_create_response_from_buffer(n, bytes.out, MHD_RESPMEM_MUST_COPY);
    if (resp)
        respond(r, status, resp, content_type, extra, n_extra);
    else
        http_stream_abort(r); /* out of memory: the front answers 503 */
}

/* libmicrohttpd wants bytes of a stream. */
static ssize_t on_read(void *ctx, uint64_t pos, char *out, size_t max)
{
    struct http_req *r = ctx;
    size_t n = r->queue.len - r->queue_off;
    (void)pos;
    if (r->gone || r->aborted)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    if (n) {
        n = n < max ? n : max;
        memcpy(out, r->queue.data + r->queue_off, n);
        r->queue_off += n;
        if (r->queue_off == r->queue.len || r->queue_off > r->queue.len / 2 + 65536) { /* moves less than it took */
            buf_consume(&r->queue, r->queue_off);
            r->queue_off = 0;
        }
        return (ssize_t)n;
    }
    if (r->ended)
        return MHD_CONTENT_READER_END_OF_STREAM;
    r->suspended = true;
    MHD_suspend_connection(r->mc);
    return 0;
}

int http_stream_begin(struct http_req *r, int status, const char *content_type, const struct http_hdr *extra,
                      size_t n_extra)
{
    if (r->gone)
        return -EPIPE;
    struct MHD_Response *resp = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK, on_read, r, NULL);
    if (!resp)
        return -ENOMEM;
    if (!has_header(extra, n_extra, "Cache-Control"))
        MHD_add_response_header(resp, "Cache-Control", "no-cache");
    r->stream = true;
    respond(r, status, resp, content_type, extra, n_extra);
    return 0;
}

int http_stream_write(struct http_req *r, const void *p, size_t n)
{
    if (r->gone || r->aborted)
        return -EPIPE;
    assert(r->stream && !r->ended);
    size_t pending = http_stream_pending(r), most = r->s->o.max_backlog;
    if (pending && pending + n > most)
        return -ENOBUFS;
    r->queue.limit = n > 2 * most ? n : 2 * most;
    if (r->queue_off && r->queue.len + n > r->queue.limit) {
        buf_consume(&r->queue, r->queue_off);
        r->queue_off = 0;
    }
    if (buf_append(&r->queue, p, n)) {
        r->queue.failed = false; /* what was there is still there */
        return -ENOMEM;
    }
    req_ready(r);
    return 0;
}

size_t http_stream_pending(const struct http_req *r)
{
    return r->queue.len - r->queue_off;
}

void http_stream_end(struct http_req *r)
{
    if (r->gone)
        return;
    r->ended = true;
    req_ready(r);
}

/* ---- the turn ---- */

void http_flush(struct http_server *s)
{
    if (s->running) {
        s->dirty = true;
        return;
    }
    s->running = true;
    s->dirty = false;
    while (s->ready) {
        struct http_req *r = s->ready;
        s->ready = r->ready_next;
        r->in_ready = false;
        r->suspended = false;
        MHD_resume_connection(r->mc);
    }
    MHD_run(s->daemon);
    s->last_run = uv_now(s->loop);
    s->running = false;
    while (s->done) {
        struct http_conn *c = s->done;
        s->done = c->done_next;
        c->in_done = false;
        conn_pump(c);
        conn_unref(c);
    }
}
