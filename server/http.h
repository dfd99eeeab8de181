/* http.h - HTTP/1.1 on a libuv loop, by libmicrohttpd behind a strict front.
 *
 * Everything here belongs to the thread that runs the loop; nothing is locked. The front accepts connections, frames
 * and checks each request (see http_scan.h), bounds it in size and time, and hands libmicrohttpd only well-formed
 * requests, one at a time a connection. What the front refuses it answers itself, in JSON.
 *
 * A request goes: on_request once the whole body is in -> http_reply, or http_stream_begin, http_stream_write...,
 * http_stream_end -> on_close exactly once, after which `r` is gone. A client that leaves brings on_close at any time
 * after on_request was entered; the owner then cancels its work and forgets `r`. Closing one's sending side counts as
 * leaving.
 */
#ifndef CPET_SERVER_HTTP_H
#define CPET_SERVER_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "common/arena.h"
#include "common/err.h"

struct http_server;
struct http_req;
struct http_tls;

#define HTTP_ADDR_BYTES 128

struct http_opts {
    const char *addr;     /* "HOST:PORT", "[V6]:PORT" (HOST numeric or localhost; port 0 picks one), "unix:PATH" */
    int fd;               /* a listening, non-blocking socket to take instead (http_listen closes it); 0: none */
    struct http_tls *tls; /* what clients are shown (http_tls.h); a reference is taken; NULL: plain HTTP */
    size_t max_body;      /* bytes; 0: 8 MiB */
    size_t max_bodies;    /* bytes of all bodies held at once; 0: 256 MiB; above: 503 */
    size_t max_header;    /* bytes of request line and headers; 0: 16 KiB */
    size_t max_arena;     /* bytes of http_arena; 0: 64 MiB */
    size_t max_backlog;   /* bytes a stream may have queued; 0: 4 MiB */
    unsigned max_conns;   /* 0: 4096; above: 503 and closed. An idle one holds one descriptor */
    unsigned max_pairs; /* of them in a request, or idle for less than a second: two descriptors more each; above: 503;
                           0: max_conns */
    unsigned header_ms; /* from a request's first byte (or the accept) to the end of its headers, and for TLS'
                           handshake; 0: 10,000 */
    unsigned body_ms;   /* from there to the end of its body; 0: 60,000 */
    unsigned idle_ms;   /* a kept connection without a request; 0: 75,000 */
    unsigned send_ms;   /* a client that takes no byte of its answer; 0: 60,000 */
    unsigned unix_mode; /* of the unix socket; 0: 0600 */
};

struct http_handler {
    void (*on_request)(void *ctx, struct http_req *r); /* may answer at once, or keep r and answer later */
    void (*on_close)(void *ctx, struct http_req *r);   /* r is gone after this returns; may be NULL */
    void *ctx;
    /* For a request with a body, before any of it is read or asked for (100-continue): 0, or -EACCES with what to say,
     * which is answered with 401. authorization: the header's value, NULL without one. May be NULL. */
    int (*check_key)(void *ctx, const char *authorization, struct err *e);
};

struct http_hdr {
    const char *name, *value; /* copied; CR, LF and other controls are not allowed */
};

/* Whether an address can be one to listen on: 0, or -EINVAL with what is wrong. */
int http_check_address(const char *addr, struct err *e);
/* Listens. -EINVAL for the address, -EADDRINUSE and others as from bind. o's strings are copied. */
int http_listen(uv_loop_t *loop, const struct http_opts *o, struct http_handler h, struct http_server **out,
                struct err *e);
/* Where a listening socket of another's making is bound, in the form of http_opts.addr. -EINVAL: neither TCP nor unix.
 */
int http_socket_address(int fd, char out[HTTP_ADDR_BYTES], struct err *e);
/* Connections from now on are shown this; for a server that began with one. */
void http_set_tls(struct http_server *s, struct http_tls *tls);
/* "http://127.0.0.1:41234" with the real port (https with TLS), or "unix:PATH". */
const char *http_address(const struct http_server *s);
/* No new connections; those that are open finish their request and are then closed. */
void http_stop_accepting(struct http_server *s);
/* Drops everything (on_close for each open request), then calls closed (may be NULL) from the loop and frees s. Not
 * from inside a handler. */
void http_close(struct http_server *s, void (*closed)(void *ctx), void *ctx);
/* Open client connections, and requests between on_request and on_close. */
unsigned http_connections(const struct http_server *s);
unsigned http_requests(const struct http_server *s);
/* Answers begun with this status (below HTTP_STATUSES), the front's refusals among them. */
#define HTTP_STATUSES 600
uint64_t http_answers(const struct http_server *s, unsigned status);
/* Connections whose answer is not with the client, or in the kernel's buffers, yet: on_close may be over for it. */
unsigned http_answering(const struct http_server *s);

const char *http_method(const struct http_req *r); /* GET HEAD POST PUT DELETE OPTIONS PATCH TRACE QUERY */
const char *http_path(const struct http_req *r);   /* percent-decoded, no query; never holds a NUL */
const char *http_query(const struct http_req *r, const char *key);   /* decoded; "" without a value; NULL: absent */
const char *http_header(const struct http_req *r, const char *name); /* any case; NULL: absent */
const char *http_body(const struct http_req *r, size_t *n);          /* terminated; valid until on_close */
void http_body_done(struct http_req *r);             /* the body is read: its memory goes now, not at on_close */
const char *http_peer(const struct http_req *r);     /* "ADDR:PORT" of the client, or "unix" */
int http_status(const struct http_req *r);           /* of the answer; 0: none was given */
char *http_body_take(struct http_req *r, size_t *n); /* the body is the caller's, malloc'ed, terminated; NULL: empty */
const char *http_request_id(const struct http_req *r); /* the client's x-request-id, or one made here */
struct arena *http_arena(struct http_req *r);          /* dropped after on_close; NULL when memory is out */
void *http_user(const struct http_req *r);
void http_set_user(struct http_req *r, void *user);

/* The whole answer; body is copied. content_type NULL: none. x-request-id is added, and Retry-After: 1 to 429 and 503
 * unless extra has one. Once a request. */
void http_reply(struct http_req *r, int status, const char *content_type, const void *body, size_t n,
                const struct http_hdr *extra, size_t n_extra);
/* Begins a streamed answer (chunked). 0 or -ENOMEM. */
int http_stream_begin(struct http_req *r, int status, const char *content_type, const struct http_hdr *extra,
                      size_t n_extra);
/* Queues bytes, sent at the end of the loop's turn. -EPIPE: the client has left; -ENOBUFS: it reads too slowly and the
 * backlog is full (nothing was queued; with nothing pending, any n is taken); -ENOMEM. */
int http_stream_write(struct http_req *r, const void *p, size_t n);
size_t http_stream_pending(const struct http_req *r); /* bytes queued and not yet taken */
void http_stream_end(struct http_req *r);
/* The stream breaks off: the client sees a cut transfer (a 503 when nothing was sent yet). on_close follows. */
void http_stream_abort(struct http_req *r);
/* Sends what is queued on all streams now, in one go. The loop does it once a turn by itself. */
void http_flush(struct http_server *s);

#endif
