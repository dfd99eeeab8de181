/* http_front.c - client connections: what stands between the network and libmicrohttpd.
 *
 * The loop's thread; a connection owns its sockets and buffers. Each connection reads one request at a time, checks its
 * head and framing (http_scan.h), and passes the very bytes on through a socket pair, whose other end libmicrohttpd
 * holds as if it were the client; answers come back the same way. So no byte that was not checked reaches
 * libmicrohttpd, a pipelined request waits here until the one before is answered, and everything that its own code
 * leaves open is closed here: deadlines for head and body, limits before 100-continue, refusals in JSON, clients that
 * leave while their answer is suspended, the limit of connections.
 *
 * Invariants: in.data[0..fwd) was checked; libmicrohttpd is given nothing of the next request before `completed`; the
 * pair is read only while `out` is empty, so what a slow client costs is bounded by the kernel's buffers and by the
 * stream's backlog.
 *
 * An idle connection holds one descriptor and no buffers: what libmicrohttpd keeps of it (two descriptors and 32 KiB)
 * is closed when it was idle for a second, or when others need it, and opened again by its next request. `max_pairs`
 * bounds those.
 */
#include "server/http_int.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proto/proto.h"

enum { READ_SIZE = 16384, PAIR_BUFFER = 65536, LINGER_MS = 1000, KEEP_PAIR_MS = 1000 };

static void on_client(uv_poll_t *h, int status, int events);
static void on_pair(uv_poll_t *h, int status, int events);
static void conn_process(struct http_conn *c);

void conn_unref(struct http_conn *c)
{
    assert(c->refs);
    if (--c->refs)
        return;
    buf_free(&c->in);
    buf_free(&c->out);
    free(c);
}

static void handle_closed(uv_handle_t *h)
{
    struct http_conn *c = h->data;
    struct http_server *s = c->s;
    conn_unref(c);
    server_handle_closed(s);
}

static void close_handle(uv_poll_t *h)
{
    uv_poll_stop(h);
    uv_close((uv_handle_t *)h, handle_closed);
}

/* Polls for exactly what the state needs. */
static void poll_for(uv_poll_t *h, int *now, int want, uv_poll_cb cb)
{
    if (*now == want)
        return;
    *now = want;
    if (want)
        uv_poll_start(h, want, cb);
    else
        uv_poll_stop(h);
}

static void conn_update(struct http_conn *c)
{
    if (c->closed)
        return;
    int client = c->out.len ? UV_WRITABLE : 0, pair = 0;
    if (c->state == CONN_TLS)
        client |= tls_wants_write(c->tls) ? UV_WRITABLE : UV_READABLE;
    else if (c->state == CONN_RESPONSE)
        client |= UV_DISCONNECT;
    else if (!c->fwd)
        client |= UV_READABLE;
    poll_for(&c->client_poll, &c->client_events, client, on_client);
    if (c->pair < 0)
        return;
    if (!c->out.len)
        pair |= UV_READABLE;
    if (c->fwd)
        pair |= UV_WRITABLE;
    poll_for(&c->pair_poll->poll, &c->pair_events, pair, on_pair);
}

static void pair_freed(uv_handle_t *h)
{
    struct http_pair *p = h->data;
    struct http_conn *c = p->c;
    struct http_server *s = c->s;
    free(p);
    conn_unref(c);
    server_handle_closed(s);
}

static void pair_close(struct http_conn *c)
{
    if (c->pair < 0)
        return;
    uv_poll_stop(&c->pair_poll->poll);
    uv_close((uv_handle_t *)&c->pair_poll->poll, pair_freed);
    c->pair_poll = NULL;
    close(c->pair);
    c->pair = -1;
    c->s->n_pairs--;
    c->fwd = 0;
    c->s->dirty = true; /* libmicrohttpd sees the end when it runs */
}

static void conn_close(struct http_conn *c)
{
    struct http_server *s = c->s;
    if (c->closed)
        return;
    c->closed = true;
    pair_close(c);
    close_handle(&c->client_poll);
    if (c->tls && c->state == CONN_HEAD)
        tls_end(c->tls);
    tls_close(c->tls);
    c->tls = NULL;
    close(c->fd);
    if (c->prev)
        c->prev->next = c->next;
    else
        s->conns = c->next;
    if (c->next)
        c->next->prev = c->prev;
    if (c->over)
        s->n_over--;
    else
        s->n_conns--;
    conn_unref(c);
}

static void drop_request(struct http_conn *c)
{
    struct http_req *r = c->req;
    c->req = NULL;
    if (r)
        req_client_left(r);
}

void conn_left(struct http_conn *c)
{
    if (c->closed)
        return;
    c->refs++; /* the handler may do anything */
    drop_request(c);
    conn_close(c);
    conn_unref(c);
}

/* Bytes that the client's side took, or -Exxx. */
static ssize_t client_send(struct http_conn *c, const char *p, size_t n)
{
    if (c->tls)
        return tls_send(c->tls, p, n);
    ssize_t k = send(c->fd, p, n, MSG_NOSIGNAL | MSG_DONTWAIT);
    return k < 0 ? -errno : k;
}

static void client_end(struct http_conn *c)
{
    if (c->tls)
        tls_end(c->tls);
    shutdown(c->fd, SHUT_WR);
}

/* Our sending side is done: wait for the client to take it. */
static void conn_linger(struct http_conn *c)
{
    pair_close(c);
    c->state = CONN_LINGER;
    buf_clear(&c->in);
    c->deadline = uv_now(c->s->loop) + LINGER_MS;
    if (!c->out.len)
        client_end(c);
    conn_update(c);
}

/* Writes what waits in out. */
static void conn_flush(struct http_conn *c)
{
    while (c->out.len) {
        ssize_t k = client_send(c, c->out.data, c->out.len);
        if (k == -EINTR)
            continue;
        if (k == -EAGAIN)
            return;
        if (k <= 0) {
            conn_left(c);
            return;
        }
        buf_consume(&c->out, (size_t)k);
        c->out_since = uv_now(c->s->loop);
    }
    if (c->state == CONN_LINGER)
        client_end(c);
}

static const char *reason(int status)
{
    static const struct {
        int status;
        const char *text;
    } map[] = {{400, "Bad Request"},         {401, "Unauthorized"},         {408, "Request Timeout"},
               {413, "Content Too Large"},   {414, "URI Too Long"},         {415, "Unsupported Media Type"},
               {417, "Expectation Failed"},  {431, "Headers Too Large"},    {501, "Not Implemented"},
               {503, "Service Unavailable"}, {505, "Version Not Supported"}};
    for (size_t i = 0; i < sizeof map / sizeof map[0]; i++)
        if (map[i].status == status)
            return map[i].text;
    return "Error";
}

/* Answers by ourselves and ends the connection; what libmicrohttpd had of the request is dropped. */
static void conn_refuse(struct http_conn *c, int status, const struct err *e)
{
    struct buf body = {0};
    char id[24];
    c->refs++;
    drop_request(c);
    if (!c->closed) {
        c->s->answers[status]++;
        req_make_id(c->s, id, sizeof id);
        resp_error(&body, status, e, status == 401 ? "invalid_api_key" : NULL);
        buf_printf(&c->out,
                   "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\nConnection: close\r\n"
                   "x-request-id: %s\r\n%s\r\n%s",
                   status, reason(status), body.len, id,
                   status == 503   ? "Retry-After: 1\r\n"
                   : status == 401 ? "WWW-Authenticate: Bearer\r\n"
                                   : "",
                   body.data ? body.data : "");
        c->out_since = uv_now(c->s->loop);
        conn_linger(c);
        conn_flush(c);
        conn_update(c);
    }
    buf_free(&body);
    conn_unref(c);
}

/* Answered, and nothing of a next request is in. */
static bool conn_rests(const struct http_conn *c)
{
    return c->pair >= 0 && c->state == CONN_HEAD && !c->in.len && !c->out.len && !c->fwd && !c->completed;
}

static bool has_room(struct http_server *s)
{
    for (struct http_conn *c = s->conns; c && s->n_pairs >= s->o.max_pairs; c = c->next)
        if (conn_rests(c))
            pair_close(c);
    return s->n_pairs < s->o.max_pairs;
}

/* The first request of a connection opens libmicrohttpd's side of it. */
static int pair_open(struct http_conn *c)
{
    struct http_server *s = c->s;
    struct sockaddr_un peer = {.sun_family = AF_UNIX};
    int p[2], size = PAIR_BUFFER;
    if (!has_room(s))
        return -EMFILE;
    struct http_pair *pair = calloc(1, sizeof *pair);
    if (!pair || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, p)) {
        free(pair);
        return -ENOMEM;
    }
    setsockopt(p[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    s->adding = c;
    enum MHD_Result ok = MHD_add_connection(s->daemon, p[1], (struct sockaddr *)&peer, sizeof peer);
    s->adding = NULL;
    if (ok != MHD_YES || uv_poll_init_socket(s->loop, &pair->poll, p[0])) { /* a NO has closed its end */
        close(p[0]);
        free(pair);
        return -ENOMEM;
    }
    pair->c = c;
    pair->poll.data = pair;
    c->pair_poll = pair;
    c->pair_events = 0;
    s->n_pairs++;
    c->pair = p[0];
    c->refs++;
    s->handles++;
    return 0;
}

/* Whether whoever sent this head may send its body too: who may not is told before it is read. */
static int check_key(struct http_conn *c, size_t len, struct err *e)
{
    char value[4096]; /* no key is as long */
    size_t n;
    const struct http_handler *h = &c->s->h;
    const char *v = h->check_key ? http_head_value(c->in.data, len, "Authorization", &n) : NULL;
    if (!h->check_key)
        return 0;
    if (v && n >= sizeof value)
        n = 0;
    if (v) {
        memcpy(value, v, n);
        value[n] = 0;
    }
    return h->check_key(h->ctx, v ? value : NULL, e) ? 401 : 0;
}

/* A whole head is in: check it, and let it pass. */
static void head_take(struct http_conn *c, size_t len)
{
    struct http_server *s = c->s;
    struct http_head head;
    struct err e = {0};
    int status = http_head_check(c->in.data, len, &s->lim, &head, &e);
    if (!status && (head.chunked || head.content_length))
        status = check_key(c, len, &e);
    if (!status && c->pair < 0 && pair_open(c)) {
        err_set(&e, -ENOMEM, "the server has no room for another request");
        status = 503;
    }
    if (status) {
        conn_refuse(c, status, &e);
        return;
    }
    c->fwd = len;
    c->scanned = 0;
    c->answered = c->given = false;
    http_head_tidy(c->in.data, len);
    c->keep_alive = head.keep_alive;
    c->chunked = head.chunked;
    c->chunks = (struct http_chunks){0};
    c->body_left = head.content_length;
    bool body = c->chunked || c->body_left;
    c->state = body ? CONN_BODY : CONN_RESPONSE;
    c->deadline = body ? uv_now(s->loop) + s->o.body_ms : 0;
}

/* Looks for a head in `in`. False: more bytes are needed, or the connection is done for. */
static bool head_step(struct http_conn *c)
{
    size_t len = 0, skip = 0;
    struct err e = {0};
    while (c->in.len - skip >= 2 && !memcmp(c->in.data + skip, "\r\n", 2))
        skip += 2; /* empty lines before a request are ignored */
    if (skip) {
        buf_consume(&c->in, skip);
        c->scanned = 0;
    }
    if (!c->in.len)
        return false;
    if (!c->begun) { /* empty lines give no more time */
        c->begun = true;
        c->deadline = uv_now(c->s->loop) + c->s->o.header_ms;
    }
    int rc = http_head_find(c->in.data, c->in.len, &c->s->lim, &c->scanned, &len, &e);
    if (rc > 1)
        conn_refuse(c, rc, &e);
    else if (rc == 1)
        head_take(c, len);
    return rc == 1 && !c->closed && c->state != CONN_LINGER;
}

/* Lets through what belongs to the body. */
static bool body_step(struct http_conn *c)
{
    size_t used = c->in.len;
    struct err e = {0};
    bool end;
    if (!c->in.len)
        return false;
    if (c->chunked) {
        int rc = http_chunks_scan(&c->chunks, c->in.data, c->in.len, &c->s->lim, &used, &e);
        if (rc > 1) {
            conn_refuse(c, rc, &e);
            return false;
        }
        end = rc == 1;
    } else {
        if (used > c->body_left)
            used = (size_t)c->body_left;
        c->body_left -= used;
        end = !c->body_left;
    }
    c->fwd = used;
    if (end) {
        c->state = CONN_RESPONSE;
        c->deadline = 0;
    }
    return true;
}

/* Sends in.data[0..fwd) on. False when the pair is full or gone. */
static bool forward(struct http_conn *c)
{
    while (c->fwd) {
        ssize_t k = send(c->pair, c->in.data, c->fwd, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            break; /* full, or closed by an early answer, which the pair's end will tell */
        buf_consume(&c->in, (size_t)k);
        c->fwd -= (size_t)k;
        c->s->dirty = true;
    }
    return !c->fwd;
}

static void conn_process(struct http_conn *c)
{
    bool more = true;
    while (more && !c->closed && c->state != CONN_LINGER) {
        if (c->fwd && !forward(c))
            break;
        more = c->state == CONN_HEAD ? head_step(c) : c->state == CONN_BODY ? body_step(c) : false;
    }
    conn_update(c);
}

/* The answer is with the client, or in the kernel's buffers: next request, or the end. */
static void conn_next(struct http_conn *c)
{
    uint64_t now = uv_now(c->s->loop);
    c->completed = false;
    if (!c->keep_alive || c->s->stopping) {
        conn_linger(c);
        return;
    }
    if (!c->in.len)
        buf_free(&c->in); /* an idle connection holds little */
    c->state = CONN_HEAD;
    c->scanned = 0;
    c->begun = false;
    c->deadline = now + c->s->o.idle_ms;
    conn_process(c);
}

/* libmicrohttpd closed its side: after an answer that ends the connection, a broken stream, or for want of memory. */
static void pair_ended(struct http_conn *c)
{
    struct err e = {0};
    if (c->state == CONN_HEAD || c->completed) {
        c->completed = false;
        conn_linger(c);
    } else if (!c->answered) {
        err_set(&e, -ENOMEM, "the server could not take the request");
        conn_refuse(c, 503, &e);
    } else {
        conn_left(c);
    }
}

void conn_pump(struct http_conn *c)
{
    static char bytes[PAIR_BUFFER]; /* the loop's thread alone */
    static const char go_on[] = "HTTP/1.1 100 ";
    struct err e = {0};
    c->refs++;
    while (!c->closed && c->pair >= 0 && !c->out.len) {
        ssize_t k = recv(c->pair, bytes, sizeof bytes, MSG_DONTWAIT);
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0 && errno == EAGAIN) {
            if (c->completed)
                conn_next(c);
            break;
        }
        if (k <= 0) {
            pair_ended(c);
            break;
        }
        if (!c->given && ((size_t)k < sizeof go_on - 1 || memcmp(bytes, go_on, sizeof go_on - 1))) {
            err_set(&e, -EINVAL, "the request is malformed");
            conn_refuse(c, 400, &e); /* its own error page: in HTML, and in 0.9.75 with its head twice */
            break;
        }
        c->answered = c->given;
        ssize_t sent = client_send(c, bytes, (size_t)k);
        if (sent < 0 && sent != -EAGAIN && sent != -EINTR) {
            conn_left(c);
            break;
        }
        sent = sent < 0 ? 0 : sent;
        c->out_since = uv_now(c->s->loop);
        if (sent < k && buf_append(&c->out, bytes + sent, (size_t)(k - sent)))
            conn_left(c);
        if ((size_t)k < sizeof bytes && !c->completed)
            break; /* the poll tells of more */
    }
    conn_update(c);
    conn_unref(c);
}

static void on_pair(uv_poll_t *h, int status, int events)
{
    struct http_conn *c = ((struct http_pair *)h->data)->c;
    c->refs++;
    if (c->fwd && (events & UV_WRITABLE))
        conn_process(c);
    if (status < 0 || (events & UV_READABLE))
        conn_pump(c);
    conn_unref(c);
}

/* Reads once; 0 bytes is the client's end. */
static void conn_read(struct http_conn *c)
{
    static char bytes[READ_SIZE]; /* the loop's thread alone */
    static_assert(READ_SIZE >= TLS_RECORD, "a whole record is read, so that the poll tells of the next");
    bool sealed = c->tls && c->state != CONN_LINGER; /* what comes while we linger is thrown away as it is */
    ssize_t k = sealed ? tls_recv(c->tls, bytes, sizeof bytes) : recv(c->fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (sealed ? k == -EAGAIN : k < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (k <= 0) {
        conn_left(c);
        return;
    }
    if (c->state == CONN_LINGER)
        return;
    if (buf_append(&c->in, bytes, (size_t)k)) {
        conn_left(c);
        return;
    }
    conn_process(c);
}

/* A client that speaks plain HTTP here is told so. */
static void refuse_plain(struct http_conn *c)
{
    struct err e = {0};
    tls_close(c->tls);
    c->tls = NULL;
    err_set(&e, -EINVAL, "this address speaks HTTPS");
    conn_refuse(c, 400, &e);
}

static void conn_handshake(struct http_conn *c)
{
    enum { HANDSHAKE = 22 }; /* the type of a TLS client's first record */
    char first = HANDSHAKE;
    ssize_t k = c->hello ? 1 : recv(c->fd, &first, 1, MSG_PEEK | MSG_DONTWAIT);
    if (k < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (k <= 0) {
        conn_left(c);
        return;
    }
    if (first != HANDSHAKE) {
        refuse_plain(c);
        return;
    }
    c->hello = true;
    int rc = tls_handshake(c->tls);
    if (!rc) {
        c->state = CONN_HEAD;
        c->deadline = uv_now(c->s->loop) + c->s->o.header_ms;
    } else if (rc != -EAGAIN) { /* the alert is on its way: let it arrive */
        tls_close(c->tls);
        c->tls = NULL;
        conn_linger(c);
    }
}

static void on_client(uv_poll_t *h, int status, int events)
{
    struct http_conn *c = h->data;
    c->refs++;
    if (status >= 0 && c->state == CONN_TLS) {
        conn_handshake(c);
        conn_update(c);
        conn_unref(c);
        return;
    }
    if (status < 0 || (c->state == CONN_RESPONSE && (events & UV_DISCONNECT)))
        conn_left(c);
    if (!c->closed && (events & UV_WRITABLE)) {
        conn_flush(c);
        if (!c->closed && !c->out.len)
            conn_pump(c);
    }
    if (!c->closed && (events & UV_READABLE) && c->state != CONN_RESPONSE && !c->fwd)
        conn_read(c);
    conn_update(c);
    conn_unref(c);
}

/* A new client. Above the limit it still gets an answer, unless too many are getting it. */
void conn_accept(struct http_server *s, int fd)
{
    enum { MOST_OVER = 64 };
    bool over = s->n_conns >= s->o.max_conns; /* no handshake for those */
    struct http_conn *c = over && (s->n_over >= MOST_OVER || s->o.tls) ? NULL : calloc(1, sizeof *c);
    if (!c || (s->o.tls && tls_open(s->o.tls, fd, &c->tls)) || uv_poll_init_socket(s->loop, &c->client_poll, fd)) {
        if (c)
            tls_close(c->tls);
        free(c);
        close(fd);
        return;
    }
    c->s = s;
    c->fd = fd;
    c->pair = -1;
    c->over = over;
    c->state = c->tls ? CONN_TLS : CONN_HEAD;
    c->refs = 2; /* the list and the handle */
    c->client_poll.data = c;
    c->deadline = uv_now(s->loop) + s->o.header_ms;
    buf_init(&c->in, s->lim.max_header + 2 * READ_SIZE);
    buf_init(&c->out, PAIR_BUFFER + 4096);
    s->handles++;
    c->next = s->conns;
    if (s->conns)
        s->conns->prev = c;
    s->conns = c;
    if (over) {
        struct err e = {0};
        s->n_over++;
        err_set(&e, -EAGAIN, "the server has %u connections and takes no more", s->o.max_conns);
        conn_refuse(c, 503, &e);
        return;
    }
    s->n_conns++;
    conn_update(c);
}

void conn_tick(struct http_conn *c, uint64_t now)
{
    struct err e = {0};
    if (conn_rests(c) && c->deadline + KEEP_PAIR_MS <= now + c->s->o.idle_ms)
        pair_close(c);
    if (c->out.len && now - c->out_since > c->s->o.send_ms) {
        conn_left(c);
    } else if (!c->deadline || now < c->deadline) {
        return;
    } else if (c->state == CONN_BODY) {
        err_set(&e, -ETIMEDOUT, "the request's body took longer than %u ms", c->s->o.body_ms);
        conn_refuse(c, 408, &e);
    } else if (c->state == CONN_HEAD && c->in.len) {
        err_set(&e, -ETIMEDOUT, "the request's headers took longer than %u ms", c->s->o.header_ms);
        conn_refuse(c, 408, &e);
    } else {
        conn_left(c);
    }
}

void conn_finish_idle(struct http_conn *c)
{
    if (c->state == CONN_TLS || (c->state == CONN_HEAD && !c->in.len))
        conn_left(c);
}
