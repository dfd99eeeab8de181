/* http_int.h - inside server/http*.c only: a server, its connections and requests, and who calls whom.
 *
 *   http_listen.c  the listening socket, the timers, start and stop
 *   http_front.c   client connections: reads, frames by http_scan.h, passes on to libmicrohttpd through a socket pair,
 *                  passes answers back; deadlines, refusals, clients that leave
 *   http_req.c     what libmicrohttpd calls: requests, replies, streams
 *
 * One thread, the loop's. A connection is freed when its handles are closed and libmicrohttpd has let go of its side.
 */
#ifndef CPET_SERVER_HTTP_INT_H
#define CPET_SERVER_HTTP_INT_H

#include <microhttpd.h>
#include <netinet/in.h>
#include <sys/un.h>

#include "common/buf.h"
#include "server/http.h"
#include "server/http_scan.h"
#include "server/http_tls.h"

struct http_pair {
    uv_poll_t poll;
    struct http_conn *c;
};

enum conn_state {
    CONN_TLS,      /* the handshake */
    CONN_HEAD,     /* waiting for, or reading, a head */
    CONN_BODY,     /* passing the body on */
    CONN_RESPONSE, /* the request is in; its answer is on the way */
    CONN_LINGER,   /* our last bytes are written; reads to the client's end so that they arrive */
};

struct http_conn {
    struct http_server *s;
    struct http_conn *prev, *next;
    struct http_conn *done_next; /* in s->done */
    struct tls *tls;             /* NULL: plain */
    int fd, pair;                /* the client; our end towards libmicrohttpd, -1: none */
    uv_poll_t client_poll;
    struct http_pair *pair_poll;    /* of `pair`; allocated, since its handle closes later than the next one opens */
    int client_events, pair_events; /* what each socket is polled for at present */
    unsigned refs;                  /* open handles, libmicrohttpd's side, the list */
    enum conn_state state;
    bool closed, over, completed, in_done, keep_alive, chunked;
    bool hello;           /* TLS: the first byte was looked at */
    bool begun;           /* the head's first byte is in: its deadline runs */
    bool given, answered; /* the handler gave an answer; bytes of it have passed */
    struct buf in;        /* from the client; the first `fwd` bytes may pass on */
    struct buf out;       /* to the client */
    size_t fwd, scanned;
    uint64_t body_left;
    struct http_chunks chunks;
    uint64_t deadline, out_since; /* uv_now; 0: none */
    struct http_req *req;
};

struct http_req {
    struct http_server *s;
    struct http_conn *c; /* NULL when the client has left */
    struct MHD_Connection *mc;
    const char *method, *path;
    struct buf body;
    struct arena *arena;
    void *user;
    char id[129], peer[64];
    struct MHD_Response *resp; /* until it is queued */
    int status;
    bool entered, closed, gone, suspended, answered, stream, ended, aborted, in_ready;
    struct buf queue; /* of a stream; queue_off bytes are taken */
    size_t queue_off;
    struct http_req *ready_next; /* in s->ready */
};

struct http_server {
    uv_loop_t *loop;
    struct http_handler h;
    struct http_opts o;
    struct http_limits lim;
    char address[256], unix_path[sizeof((struct sockaddr_un *)0)->sun_path];
    int fd;
    bool local; /* a unix socket; unix_path is empty when it is of another's making: its file stays */
    struct MHD_Daemon *daemon;
    uv_poll_t listen_poll, mhd_poll;
    uv_prepare_t prepare;
    uv_timer_t tick, mhd_timer;
    unsigned handles; /* not closed yet */
    struct http_conn *conns, *adding, *done;
    struct http_req *ready;
    size_t body_bytes; /* of all requests */
    unsigned n_conns, n_over, n_pairs, n_requests;
    uint64_t seed, made; /* of request ids */
    uint64_t last_run;
    uint64_t answers[HTTP_STATUSES];
    bool accepting, paused, dirty, running, stopping;
    void (*on_closed)(void *ctx);
    void *closed_ctx;
};

/* http_listen.c */
void server_handle_closed(struct http_server *s);

/* http_front.c */
void conn_accept(struct http_server *s, int fd);
void conn_pump(struct http_conn *c); /* after libmicrohttpd ran: its bytes to the client, and on to the next request */
void conn_left(struct http_conn *c); /* closes; the request, if any, is told */
void conn_unref(struct http_conn *c);
void conn_tick(struct http_conn *c, uint64_t now);
void conn_finish_idle(struct http_conn *c); /* on stop: an idle connection is closed */

/* http_req.c */
struct MHD_Daemon *req_daemon(struct http_server *s);
void req_client_left(struct http_req *r);
void req_make_id(struct http_server *s, char *out, size_t n);

#endif
