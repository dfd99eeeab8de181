/* load_http.h - the load generator's HTTP/1.1 client: one request a connection, over the libuv loop, no TLS. */
#ifndef CPET_BENCH_LOAD_HTTP_H
#define CPET_BENCH_LOAD_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <uv.h>

#include "common/buf.h"

struct http_target {
    struct sockaddr_storage addr;
    char host[256], path[256]; /* path: what stands before /v1, "" for most servers */
    unsigned port;
};

struct http_call;
typedef void (*http_body_fn)(struct http_call *c, const char *p, size_t n);
typedef void (*http_done_fn)(struct http_call *c);

/* Filled by the caller up to data, zeroed else; lives until done is called, which may free it. */
struct http_call {
    http_body_fn on_body; /* decoded body bytes, as they come */
    http_done_fn on_done; /* once, after the handles are closed */
    void *data;
    int status;          /* of the answer; 0 before there was one */
    const char *failure; /* NULL, or why there was no whole answer */
    uint64_t sent_ns;    /* when the request was handed to the socket */
    /* private */
    uv_tcp_t tcp;
    uv_timer_t timer;
    uv_connect_t connect;
    uv_write_t write;
    struct buf out, head;
    bool headers_done, chunked, sized, complete, closing;
    uint64_t left; /* of the body, or of the chunk */
    int chunk_state;
    int handles;
    char in[16384];
};

/* Parses http://HOST:PORT[/PREFIX] and resolves HOST. 0, or -1 with a sentence in why. */
int http_target_parse(const char *url, struct http_target *t, char *why, size_t n);
/* method, path and body; bearer may be NULL. timeout_ms: for the whole exchange. 0, or -1 (then on_done is not called).
 */
int http_start(uv_loop_t *loop, const struct http_target *t, struct http_call *c, const char *method, const char *path,
               const char *bearer, const char *body, uint64_t timeout_ms);

#endif
