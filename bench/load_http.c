/* load_http.c - a small HTTP/1.1 client for the load generator.
 *
 * Runs on the one loop thread. Each call owns its socket, its timer and its buffers, and frees them before on_done.
 * What always holds: on_done comes exactly once for a call that started: at the end of the body, on a broken
 * connection, on an answer that is not HTTP, or when the time is up; the header is bounded to 64 KiB, and the body is
 * passed on without being kept.
 */
#include "bench/load_http.h"

#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK_SIZE, CHUNK_DATA, CHUNK_END };

int http_target_parse(const char *url, struct http_target *t, char *why, size_t n)
{
    char host[256], port[8] = "80";
    const char *p = url;
    if (!strncmp(p, "http://", 7))
        p += 7;
    else if (strstr(p, "://")) {
        snprintf(why, n, "only http:// is supported");
        return -1;
    }
    size_t len = strcspn(p, ":/");
    if (!len || len >= sizeof host) {
        snprintf(why, n, "%s names no host", url);
        return -1;
    }
    memcpy(host, p, len);
    host[len] = 0;
    p += len;
    if (*p == ':') {
        len = strcspn(++p, "/");
        if (!len || len >= sizeof port) {
            snprintf(why, n, "%s has a bad port", url);
            return -1;
        }
        memcpy(port, p, len);
        port[len] = 0;
        p += len;
    }
    len = strlen(p);
    while (len && p[len - 1] == '/')
        len--;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *a = NULL;
    int rc = getaddrinfo(host, port, &hints, &a);
    if (rc || len >= sizeof t->path) {
        snprintf(why, n, "%s: %s", host, rc ? gai_strerror(rc) : "the path is too long");
        return -1;
    }
    memcpy(&t->addr, a->ai_addr, a->ai_addrlen);
    freeaddrinfo(a);
    snprintf(t->host, sizeof t->host, "%s", host);
    snprintf(t->path, sizeof t->path, "%.*s", (int)len, p);
    t->port = (unsigned)atoi(port);
    return 0;
}

static void on_closed(uv_handle_t *h)
{
    struct http_call *c = h->data;
    if (--c->handles)
        return;
    buf_free(&c->out);
    buf_free(&c->head);
    c->on_done(c);
}

static void finish(struct http_call *c, const char *failure)
{
    if (c->closing)
        return;
    c->closing = true;
    c->failure = failure;
    uv_close((uv_handle_t *)&c->tcp, on_closed);
    uv_close((uv_handle_t *)&c->timer, on_closed);
}

/* One byte of a chunk's framing. */
static void chunk_byte(struct http_call *c, char ch)
{
    if (c->chunk_state == CHUNK_END) { /* the line end after the data */
        if (ch == '\n')
            c->chunk_state = CHUNK_SIZE;
        return;
    }
    if (ch != '\n') {
        buf_append(&c->head, &ch, 1);
        return;
    }
    char *end = c->head.data;
    c->left = end ? strtoull(c->head.data, &end, 16) : 0;
    if (!end || end == c->head.data) {
        finish(c, "bad chunk");
        return;
    }
    buf_clear(&c->head);
    c->complete = !c->left;
    c->chunk_state = CHUNK_DATA;
}

static void feed_body(struct http_call *c, const char *p, size_t n)
{
    while (n && !c->complete && !c->closing) {
        if (c->chunked && c->chunk_state != CHUNK_DATA) {
            chunk_byte(c, *p);
            p++;
            n--;
            continue;
        }
        size_t k = (c->chunked || c->sized) && c->left < n ? (size_t)c->left : n;
        c->on_body(c, p, k);
        p += k;
        n -= k;
        c->left -= c->chunked || c->sized ? k : 0;
        if (c->chunked && !c->left)
            c->chunk_state = CHUNK_END;
        c->complete = c->sized && !c->left;
    }
    if (c->complete)
        finish(c, NULL);
}

/* Takes the header apart once it is whole; what follows it is body. */
static void feed_head(struct http_call *c, const char *p, size_t n)
{
    buf_append(&c->head, p, n);
    if (c->head.failed) {
        finish(c, "header too long");
        return;
    }
    char *end = memmem(c->head.data, c->head.len, "\r\n\r\n", 4);
    if (!end)
        return;
    if (sscanf(c->head.data, "HTTP/1.%*1[01] %d", &c->status) != 1) {
        finish(c, "not HTTP");
        return;
    }
    struct buf rest = {0};
    size_t body = (size_t)(end - c->head.data) + 4;
    buf_append(&rest, c->head.data + body, c->head.len - body);
    *end = 0;
    const char *te = strcasestr(c->head.data, "\r\ntransfer-encoding: chunked"),
               *cl = strcasestr(c->head.data, "\r\ncontent-length:");
    c->chunked = te != NULL;
    c->sized = !te && cl;
    c->left = c->sized ? strtoull(cl + 17, NULL, 10) : 0;
    c->complete = c->sized && !c->left;
    c->headers_done = true;
    buf_clear(&c->head);
    if (rest.len || c->complete)
        feed_body(c, rest.data ? rest.data : "", rest.len);
    buf_free(&rest);
}

static void on_alloc(uv_handle_t *h, size_t hint, uv_buf_t *b)
{
    struct http_call *c = h->data;
    (void)hint;
    *b = uv_buf_init(c->in, sizeof c->in);
}

static void on_read(uv_stream_t *s, ssize_t n, const uv_buf_t *b)
{
    struct http_call *c = s->data;
    if (n < 0) {
        bool whole = n == UV_EOF && c->headers_done && !c->chunked && !c->sized;
        finish(c, whole ? NULL : "connection closed early");
    } else if (n > 0 && !c->headers_done) {
        feed_head(c, b->base, (size_t)n);
    } else if (n > 0) {
        feed_body(c, b->base, (size_t)n);
    }
}

static void on_written(uv_write_t *w, int status)
{
    struct http_call *c = w->data;
    if (status < 0)
        finish(c, "write failed");
}

static void on_connected(uv_connect_t *r, int status)
{
    struct http_call *c = r->data;
    uv_buf_t b;
    if (status < 0) {
        finish(c, "connection refused");
        return;
    }
    uv_tcp_nodelay(&c->tcp, 1);
    b = uv_buf_init(c->out.data, (unsigned)c->out.len);
    c->write.data = c;
    if (uv_write(&c->write, (uv_stream_t *)&c->tcp, &b, 1, on_written) ||
        uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read))
        finish(c, "write failed");
}

static void on_timeout(uv_timer_t *t)
{
    finish(t->data, "timeout");
}

int http_start(uv_loop_t *loop, const struct http_target *t, struct http_call *c, const char *method, const char *path,
               const char *bearer, const char *body, uint64_t timeout_ms)
{
    buf_init(&c->out, 0);
    buf_init(&c->head, 65536);
    buf_printf(&c->out, "%s %s%s HTTP/1.1\r\nHost: %s:%u\r\nConnection: close\r\n", method, t->path, path, t->host,
               t->port);
    if (bearer)
        buf_printf(&c->out, "Authorization: Bearer %s\r\n", bearer);
    if (body)
        buf_printf(&c->out, "Content-Type: application/json\r\nContent-Length: %zu\r\n", strlen(body));
    buf_printf(&c->out, "\r\n%s", body ? body : "");
    if (c->out.failed || uv_tcp_init(loop, &c->tcp)) {
        buf_free(&c->out);
        return -1;
    }
    uv_timer_init(loop, &c->timer);
    c->handles = 2;
    c->tcp.data = c->timer.data = c->connect.data = c;
    c->sent_ns = uv_hrtime();
    uv_timer_start(&c->timer, on_timeout, timeout_ms, 0);
    if (uv_tcp_connect(&c->connect, &c->tcp, (const struct sockaddr *)&t->addr, on_connected))
        finish(c, "connection refused");
    return 0;
}
