/* http_listen.c - the listening socket, the timers, and a server's start and end.
 *
 * The loop's thread. libmicrohttpd has no socket and no thread of its own: it runs when its epoll descriptor is
 * readable, when its timer says so, once a turn of the loop when anything was queued (the prepare handle), and once a
 * second whatever happens. The server is freed when the last of its and its connections' handles has closed.
 */
#include "server/http_int.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ACCEPTS_A_TURN = 64 };

union any_addr {
    struct sockaddr sa;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
    struct sockaddr_un un;
};

/* ---- addresses ---- */

static int parse_port(const char *text, uint16_t *port)
{
    unsigned v = 0;
    if (!*text || strlen(text) > 5)
        return -EINVAL;
    for (; *text; text++) {
        if (*text < '0' || *text > '9')
            return -EINVAL;
        v = v * 10 + (unsigned)(*text - '0');
    }
    *port = htons((uint16_t)v);
    return v > 65535 ? -EINVAL : 0;
}

/* HOST:PORT or [V6]:PORT. */
static int parse_tcp(const char *addr, union any_addr *out, socklen_t *len, struct err *e)
{
    char host[64];
    uint16_t port;
    const char *colon = strrchr(addr, ':');
    size_t n = colon ? (size_t)(colon - addr) : 0;
    if (!colon || !n || n >= sizeof host || parse_port(colon + 1, &port))
        return err_set(e, -EINVAL, "'%s' is not HOST:PORT, [V6]:PORT or unix:PATH", addr);
    memcpy(host, addr, n);
    host[n] = 0;
    memset(out, 0, sizeof *out);
    if (host[0] == '[' && host[n - 1] == ']') {
        host[n - 1] = 0;
        out->in6.sin6_family = AF_INET6;
        out->in6.sin6_port = port;
        *len = sizeof out->in6;
        if (inet_pton(AF_INET6, host + 1, &out->in6.sin6_addr) == 1)
            return 0;
    } else {
        out->in.sin_family = AF_INET;
        out->in.sin_port = port;
        *len = sizeof out->in;
        if (inet_pton(AF_INET, strcmp(host, "localhost") ? host : "127.0.0.1", &out->in.sin_addr) == 1)
            return 0;
    }
    return err_set(e, -EINVAL, "'%s': the host must be a number or localhost", addr);
}

static int parse_unix(const char *path, union any_addr *out, socklen_t *len, struct err *e)
{
    memset(out, 0, sizeof *out);
    if (!*path || strlen(path) >= sizeof out->un.sun_path)
        return err_set(e, -EINVAL, "the unix socket's path must have 1 to %zu bytes", sizeof out->un.sun_path - 1);
    out->un.sun_family = AF_UNIX;
    memcpy(out->un.sun_path, path, strlen(path));
    *len = sizeof out->un;
    return 0;
}

int http_check_address(const char *addr, struct err *e)
{
    union any_addr a;
    socklen_t len;
    return strncmp(addr, "unix:", 5) ? parse_tcp(addr, &a, &len, e) : parse_unix(addr + 5, &a, &len, e);
}

/* A socket file that nobody listens on any more stands in the way: removed. Anything else stays. */
static void remove_stale(const union any_addr *a, socklen_t len)
{
    struct stat st;
    if (lstat(a->un.sun_path, &st) || !S_ISSOCK(st.st_mode))
        return;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    if (connect(fd, &a->sa, len) && errno == ECONNREFUSED)
        unlink(a->un.sun_path);
    close(fd);
}

/* A name in the abstract space is written with an @, as systemd and ss do. */
static void unix_address(const union any_addr *a, socklen_t len, char out[HTTP_ADDR_BYTES])
{
    size_t n = len > offsetof(struct sockaddr_un, sun_path) ? len - offsetof(struct sockaddr_un, sun_path) : 0;
    bool abstract = n && !a->un.sun_path[0];
    if (!abstract)
        n = strnlen(a->un.sun_path, n);
    snprintf(out, HTTP_ADDR_BYTES, "unix:%s%.*s", abstract ? "@" : "", (int)(n - abstract), a->un.sun_path + abstract);
}

int http_socket_address(int fd, char out[HTTP_ADDR_BYTES], struct err *e)
{
    union any_addr a = {0};
    char host[INET6_ADDRSTRLEN];
    socklen_t len = sizeof a;
    if (getsockname(fd, &a.sa, &len))
        return err_set(e, -errno, "descriptor %d: %s", fd, strerror(errno));
    if (a.sa.sa_family == AF_UNIX) {
        unix_address(&a, len, out);
    } else if (a.sa.sa_family == AF_INET6) {
        inet_ntop(AF_INET6, &a.in6.sin6_addr, host, sizeof host);
        snprintf(out, HTTP_ADDR_BYTES, "[%s]:%u", host, ntohs(a.in6.sin6_port));
    } else if (a.sa.sa_family == AF_INET) {
        inet_ntop(AF_INET, &a.in.sin_addr, host, sizeof host);
        snprintf(out, HTTP_ADDR_BYTES, "%s:%u", host, ntohs(a.in.sin_port));
    } else {
        return err_set(e, -EINVAL, "descriptor %d is neither a TCP nor a unix socket", fd);
    }
    return 0;
}

static int set_address(struct http_server *s, struct err *e)
{
    char addr[HTTP_ADDR_BYTES];
    int rc = http_socket_address(s->fd, addr, e);
    if (rc)
        return rc;
    s->local = !strncmp(addr, "unix:", 5);
    snprintf(s->address, sizeof s->address, "%s%s", s->local ? "" : s->o.tls ? "https://" : "http://", addr);
    return 0;
}

/* The listening socket in s->fd. */
static int open_socket(struct http_server *s, const char *addr, struct err *e)
{
    union any_addr a;
    socklen_t len = 0;
    int one = 1;
    bool local = !strncmp(addr, "unix:", 5);
    int rc = local ? parse_unix(addr + 5, &a, &len, e) : parse_tcp(addr, &a, &len, e);
    if (rc)
        return rc;
    s->fd = socket(a.sa.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (s->fd < 0)
        return err_set(e, -errno, "socket: %s", strerror(errno));
    if (local)
        remove_stale(&a, len);
    else
        setsockopt(s->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(s->fd, &a.sa, len)) {
        rc = err_set(e, -errno, "cannot listen on %s: %s", addr, strerror(errno));
    } else {
        if (local)
            memcpy(s->unix_path, a.un.sun_path, sizeof s->unix_path);
        if ((local && chmod(s->unix_path, s->o.unix_mode)) || listen(s->fd, 1024))
            rc = err_set(e, -errno, "cannot listen on %s: %s", addr, strerror(errno));
    }
    if (rc) {
        if (s->unix_path[0])
            unlink(s->unix_path);
        close(s->fd);
        s->fd = -1;
    }
    return rc;
}

/* ---- events ---- */

static void on_listen(uv_poll_t *h, int status, int events)
{
    struct http_server *s = h->data;
    int one = 1;
    (void)status;
    (void)events;
    for (int i = 0; i < ACCEPTS_A_TURN; i++) {
        int fd = accept4(s->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            if (!s->local)
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            conn_accept(s, fd);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            uv_poll_stop(h); /* the next tick tries again */
            s->paused = true;
            return;
        } else if (errno == EAGAIN) {
            return;
        }
    }
}

static void on_mhd_timer(uv_timer_t *t);

/* Lets libmicrohttpd run and asks it when it wants to run next. */
static void server_run(struct http_server *s)
{
    MHD_UNSIGNED_LONG_LONG ms;
    http_flush(s);
    if (MHD_get_timeout(s->daemon, &ms) == MHD_YES)
        uv_timer_start(&s->mhd_timer, on_mhd_timer, ms, 0);
    else
        uv_timer_stop(&s->mhd_timer);
}

static void on_mhd_timer(uv_timer_t *t)
{
    server_run(t->data);
}

static void on_mhd(uv_poll_t *h, int status, int events)
{
    (void)status;
    (void)events;
    server_run(h->data);
}

static void on_prepare(uv_prepare_t *h)
{
    struct http_server *s = h->data;
    for (int i = 0; s->dirty && i < 4; i++) /* a reply may free the way for a pipelined request */
        server_run(s);
    if (s->dirty)
        uv_timer_start(&s->mhd_timer, on_mhd_timer, 0, 0);
}

static void on_tick(uv_timer_t *t)
{
    struct http_server *s = t->data;
    uint64_t now = uv_now(s->loop);
    for (struct http_conn *c = s->conns, *next; c; c = next) {
        next = c->next;
        conn_tick(c, now);
    }
    if (s->paused && s->accepting && !uv_poll_start(&s->listen_poll, UV_READABLE, on_listen))
        s->paused = false;
    if (s->dirty || now - s->last_run >= 1000)
        server_run(s);
}

/* ---- start and end ---- */

static void server_free(struct http_server *s)
{
    http_tls_unref(s->o.tls);
    free(s);
}

static void set_options(struct http_server *s, const struct http_opts *o)
{
    s->o = *o;
    s->o.addr = NULL;
    http_tls_ref(s->o.tls);
    s->lim.max_body = o->max_body ? o->max_body : 8u << 20;
    s->lim.max_header = o->max_header ? o->max_header : 16384;
    s->o.max_bodies = o->max_bodies ? o->max_bodies : 256u << 20;
    s->o.max_arena = o->max_arena ? o->max_arena : 64u << 20;
    s->o.max_backlog = o->max_backlog ? o->max_backlog : 4u << 20;
    s->o.max_conns = o->max_conns ? o->max_conns : 4096;
    s->o.max_pairs = o->max_pairs ? o->max_pairs : s->o.max_conns;
    s->o.header_ms = o->header_ms ? o->header_ms : 10000;
    s->o.body_ms = o->body_ms ? o->body_ms : 60000;
    s->o.idle_ms = o->idle_ms ? o->idle_ms : 75000;
    s->o.send_ms = o->send_ms ? o->send_ms : 60000;
    s->o.unix_mode = o->unix_mode ? o->unix_mode : 0600;
}

/* A quarter of the shortest deadline, 20 ms to 1 s. */
static uint64_t tick_ms(const struct http_opts *o)
{
    unsigned least = 4000;
    const unsigned all[] = {o->header_ms, o->body_ms, o->idle_ms, o->send_ms};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        least = all[i] < least ? all[i] : least;
    return least / 4 < 20 ? 20 : least / 4;
}

/* Nothing below fails once both descriptors can be polled. */
static int start_handles(struct http_server *s, struct err *e)
{
    int epoll = MHD_get_daemon_info(s->daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
    int rc = uv_poll_init(s->loop, &s->mhd_poll, epoll);
    if (rc)
        return err_set(e, rc, "cannot poll: %s", uv_strerror(rc));
    s->handles++;
    s->mhd_poll.data = s;
    rc = uv_poll_init(s->loop, &s->listen_poll, s->fd);
    if (rc)
        return err_set(e, rc, "cannot poll: %s", uv_strerror(rc));
    s->listen_poll.data = s->prepare.data = s->tick.data = s->mhd_timer.data = s;
    s->handles += 4;
    uv_prepare_init(s->loop, &s->prepare);
    uv_timer_init(s->loop, &s->tick);
    uv_timer_init(s->loop, &s->mhd_timer);
    uv_poll_start(&s->mhd_poll, UV_READABLE, on_mhd);
    uv_poll_start(&s->listen_poll, UV_READABLE, on_listen);
    uv_prepare_start(&s->prepare, on_prepare);
    uv_timer_start(&s->tick, on_tick, tick_ms(&s->o), tick_ms(&s->o));
    s->accepting = true;
    return 0;
}

int http_listen(uv_loop_t *loop, const struct http_opts *o, struct http_handler h, struct http_server **out,
                struct err *e)
{
    struct http_server *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(e, -ENOMEM, "out of memory");
    s->loop = loop;
    s->h = h;
    s->fd = -1;
    set_options(s, o);
    if (getrandom(&s->seed, sizeof s->seed, 0) != sizeof s->seed)
        s->seed = uv_hrtime();
    int rc = 0;
    if (o->fd)
        s->fd = o->fd;
    else
        rc = open_socket(s, o->addr, e);
    rc = rc ? rc : set_address(s, e);
    s->daemon = rc ? NULL : req_daemon(s);
    if (!rc)
        rc = s->daemon ? start_handles(s, e) : err_set(e, -ENOMEM, "libmicrohttpd does not start");
    if (rc) {
        http_close(s, NULL, NULL);
        return rc;
    }
    *out = s;
    return 0;
}

void http_set_tls(struct http_server *s, struct http_tls *tls)
{
    http_tls_ref(tls);
    http_tls_unref(s->o.tls);
    s->o.tls = tls;
}

const char *http_address(const struct http_server *s)
{
    return s->address;
}

unsigned http_connections(const struct http_server *s)
{
    return s->n_conns;
}

unsigned http_requests(const struct http_server *s)
{
    return s->n_requests;
}

uint64_t http_answers(const struct http_server *s, unsigned status)
{
    return status < HTTP_STATUSES ? s->answers[status] : 0;
}

unsigned http_answering(const struct http_server *s)
{
    unsigned n = 0;
    for (const struct http_conn *c = s->conns; c; c = c->next)
        n += c->state == CONN_RESPONSE || c->out.len;
    return n;
}

/* The socket goes; its poll handle closes with the server. */
static void stop_listening(struct http_server *s)
{
    if (s->accepting)
        uv_poll_stop(&s->listen_poll);
    s->accepting = false;
    if (s->fd < 0)
        return;
    close(s->fd);
    s->fd = -1;
    if (s->unix_path[0])
        unlink(s->unix_path);
}

void http_stop_accepting(struct http_server *s)
{
    stop_listening(s);
    s->stopping = true;
    for (struct http_conn *c = s->conns, *next; c; c = next) {
        next = c->next;
        conn_finish_idle(c);
    }
}

void server_handle_closed(struct http_server *s)
{
    if (--s->handles)
        return;
    if (s->on_closed)
        s->on_closed(s->closed_ctx);
    server_free(s);
}

static void on_handle_closed(uv_handle_t *h)
{
    server_handle_closed(h->data);
}

void http_close(struct http_server *s, void (*closed)(void *ctx), void *ctx)
{
    unsigned open = s->handles;
    s->on_closed = closed;
    s->closed_ctx = ctx;
    s->stopping = true;
    stop_listening(s);
    while (s->conns)
        conn_left(s->conns);
    if (s->daemon) {
        http_flush(s); /* resumes what is suspended, so that it can end */
        uv_poll_stop(&s->mhd_poll);
        MHD_stop_daemon(s->daemon);
        s->daemon = NULL;
    }
    if (!open) {
        server_free(s);
        return;
    }
    uv_close((uv_handle_t *)&s->mhd_poll, on_handle_closed);
    if (!s->listen_poll.data)
        return;
    uv_close((uv_handle_t *)&s->listen_poll, on_handle_closed);
    uv_close((uv_handle_t *)&s->prepare, on_handle_closed);
    uv_close((uv_handle_t *)&s->tick, on_handle_closed);
    uv_close((uv_handle_t *)&s->mhd_timer, on_handle_closed);
}
