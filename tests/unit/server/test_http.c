/* test_http.c - the listener over real sockets: the loop runs in a thread of its own, clients here are blocking.
 *
 * The handler answers by path; what it counts is atomic. Each test has its own server with limits that fit it.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "server/http.h"

/* ---- the server ---- */

enum { MAX_STREAMS = 4096 };

static struct fixture {
    uv_loop_t loop;
    uv_async_t stop, drain;
    uv_timer_t timer;
    pthread_t thread;
    struct http_server *s;
    char address[100];
    struct http_req *streams[MAX_STREAMS]; /* loop thread only */
    unsigned left[MAX_STREAMS], n_streams;
    atomic_uint requests, closes, pending, nobufs;
    atomic_uint answering; /* at the last on_close; at the end what on_stop found */
} fx;

static int (*check_key)(void *ctx, const char *authorization, struct err *e); /* of the next server */

static void add_stream(struct http_req *r, unsigned n)
{
    assert_true(fx.n_streams < MAX_STREAMS);
    http_set_user(r, r);
    fx.streams[fx.n_streams] = r;
    fx.left[fx.n_streams++] = n;
}

static void drop_stream(struct http_req *r)
{
    for (unsigned i = 0; i < fx.n_streams; i++) {
        if (fx.streams[i] == r) {
            fx.streams[i] = fx.streams[--fx.n_streams];
            fx.left[i] = fx.left[fx.n_streams];
            return;
        }
    }
}

/* Each turn of the timer: one event on each stream. */
static void on_timer(uv_timer_t *t)
{
    (void)t;
    for (unsigned i = fx.n_streams; i-- > 0;) {
        struct http_req *r = fx.streams[i];
        char text[64];
        int n = snprintf(text, sizeof text, "data: %u\n\n", fx.left[i]);
        if (!strcmp(http_path(r), "/later")) {
            http_reply(r, 200, "text/plain", "late", 4, NULL, 0);
            drop_stream(r);
            continue;
        }
        http_stream_write(r, text, (size_t)n);
        if (!strcmp(http_path(r), "/cut") && fx.left[i] == 2) {
            http_stream_abort(r);
            drop_stream(r);
        } else if (!--fx.left[i]) {
            http_stream_end(r);
            drop_stream(r);
        }
    }
}

static void flood(struct http_req *r)
{
    static char block[10000];
    int rc;
    memset(block, 'x', sizeof block);
    while (!(rc = http_stream_write(r, block, sizeof block)))
        ;
    if (rc == -ENOBUFS)
        atomic_fetch_add(&fx.nobufs, 1);
    atomic_store(&fx.pending, (unsigned)http_stream_pending(r));
}

/* One event above the backlog's limit, when nothing waits before it. */
static void large(struct http_req *r)
{
    size_t size = 3u << 20;
    char *big = malloc(size);
    memset(big, 'b', size);
    big[size - 1] = '#';
    assert_int_equal(http_stream_begin(r, 200, "text/plain", NULL, 0), 0);
    assert_int_equal(http_stream_write(r, big, size), 0);
    assert_int_equal(http_stream_write(r, big, 1), -ENOBUFS);
    http_stream_end(r);
    free(big);
}

static void echo(struct http_req *r)
{
    size_t n;
    const char *body = http_body(r, &n), *q = http_query(r, "q"), *h = http_header(r, "X-Test");
    char *text = arena_printf(http_arena(r), "%s %s q=%s h=%s n=%zu %.40s", http_method(r), http_path(r),
                              q ? q : "(none)", h ? h : "(none)", n, body);
    struct http_hdr extra[] = {{"X-Extra", "1"}};
    http_reply(r, 200, "text/plain", text, strlen(text), extra, 1);
}

static void on_request(void *ctx, struct http_req *r)
{
    const char *path = http_path(r), *n = http_query(r, "n");
    (void)ctx;
    atomic_fetch_add(&fx.requests, 1);
    if (!strcmp(path, "/hold"))
        return;
    if (!strcmp(path, "/later")) {
        add_stream(r, 1);
    } else if (!strcmp(path, "/stream") || !strcmp(path, "/cut")) {
        assert_int_equal(http_stream_begin(r, 200, "text/event-stream", NULL, 0), 0);
        add_stream(r, n ? (unsigned)atoi(n) : 5);
    } else if (!strcmp(path, "/flood")) {
        assert_int_equal(http_stream_begin(r, 200, "text/plain", NULL, 0), 0);
        flood(r);
    } else if (!strcmp(path, "/large")) {
        large(r);
    } else if (!strcmp(path, "/abort")) {
        assert_int_equal(http_stream_begin(r, 200, "text/plain", NULL, 0), 0);
        http_stream_write(r, "x", 1);
        http_stream_abort(r);
    } else if (!strcmp(path, "/big")) {
        size_t size = 3u << 20;
        char *big = malloc(size);
        memset(big, 'b', size);
        http_reply(r, 200, "text/plain", big, size, NULL, 0);
        free(big);
    } else if (!strcmp(path, "/busy")) {
        http_reply(r, 429, "text/plain", "no", 2, NULL, 0);
    } else {
        echo(r);
    }
}

static void on_close(void *ctx, struct http_req *r)
{
    (void)ctx;
    atomic_store(&fx.answering, http_answering(fx.s));
    atomic_fetch_add(&fx.closes, 1);
    if (http_user(r))
        drop_stream(r);
}

static void on_stop(uv_async_t *a)
{
    (void)a;
    atomic_store(&fx.answering, http_answering(fx.s));
    uv_timer_stop(&fx.timer);
    uv_close((uv_handle_t *)&fx.timer, NULL);
    uv_close((uv_handle_t *)&fx.stop, NULL);
    uv_close((uv_handle_t *)&fx.drain, NULL);
    http_close(fx.s, NULL, NULL);
}

static void on_drain(uv_async_t *a)
{
    (void)a;
    http_stop_accepting(fx.s);
}

static void *loop_main(void *p)
{
    (void)p;
    uv_run(&fx.loop, UV_RUN_DEFAULT);
    return NULL;
}

static void start_paced(const struct http_opts *o, unsigned ms)
{
    struct err e;
    struct http_handler h = {on_request, on_close, NULL, check_key};
    memset(&fx, 0, sizeof fx);
    uv_loop_init(&fx.loop);
    uv_async_init(&fx.loop, &fx.stop, on_stop);
    uv_async_init(&fx.loop, &fx.drain, on_drain);
    uv_timer_init(&fx.loop, &fx.timer);
    uv_timer_start(&fx.timer, on_timer, ms, ms);
    if (http_listen(&fx.loop, o, h, &fx.s, &e))
        fail_msg("%s", e.msg);
    snprintf(fx.address, sizeof fx.address, "%s", http_address(fx.s));
    pthread_create(&fx.thread, NULL, loop_main, NULL);
}

static void start(const struct http_opts *o)
{
    start_paced(o, 2);
}

static void stop(void)
{
    uv_async_send(&fx.stop);
    pthread_join(fx.thread, NULL);
    assert_int_equal(uv_loop_close(&fx.loop), 0);
    assert_int_equal(fx.requests, fx.closes);
}

/* ---- clients ---- */

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int dial(void)
{
    struct timeval wait = {5, 0};
    int fd;
    if (!strncmp(fx.address, "unix:", 5)) {
        struct sockaddr_un a = {.sun_family = AF_UNIX};
        memcpy(a.sun_path, fx.address + 5, strlen(fx.address + 5));
        fd = socket(AF_UNIX, SOCK_STREAM, 0);
        assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    } else {
        struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        a.sin_port = htons((uint16_t)atoi(strrchr(fx.address, ':') + 1));
        fd = socket(AF_INET, SOCK_STREAM, 0);
        assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    }
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait);
    return fd;
}

static void put(int fd, const char *p, size_t n)
{
    while (n) {
        ssize_t k = send(fd, p, n, MSG_NOSIGNAL);
        if (k <= 0)
            return; /* the server has closed: the answer tells */
        p += k;
        n -= (size_t)k;
    }
}

static void puts_to(int fd, const char *s)
{
    put(fd, s, strlen(s));
}

/* Reads until `until` is seen (NULL: to the end); the text so far. */
static char *take(int fd, const char *until)
{
    static char text[1 << 16];
    size_t n = 0;
    text[0] = 0;
    while (n < sizeof text - 1 && !(until && strstr(text, until))) {
        ssize_t k = recv(fd, text + n, sizeof text - 1 - n, 0);
        if (k < 0)
            fail_msg("no answer within the time limit, only: %s", text);
        if (k == 0)
            break;
        n += (size_t)k;
        text[n] = 0;
    }
    return text;
}

static void expect(const char *text, const char *part)
{
    if (!text || !strstr(text, part))
        fail_msg("'%s' is not in: %s", part, text ? text : "(nothing)");
}

/* Sends, expects the status, our JSON error and the connection's end. */
static void refused(const char *p, size_t n, int status)
{
    char line[32];
    int fd = dial();
    put(fd, p, n);
    char *text = take(fd, NULL);
    snprintf(line, sizeof line, "HTTP/1.1 %d ", status);
    expect(text, line);
    expect(text, "application/json");
    expect(text, "{\"error\":{\"message\":");
    expect(text, "Connection: close");
    expect(text, "x-request-id: ");
    close(fd);
}

static void wait_closes(unsigned n)
{
    for (int i = 0; i < 2000 && fx.closes < n; i++)
        usleep(1000);
    assert_int_equal(fx.closes, n);
}

#define HOST "Host: h\r\n"

/* ---- tests ---- */

static void basics(const char *addr)
{
    start(&(struct http_opts){.addr = addr});
    int fd = dial();
    puts_to(fd, "GET /a%20b?q=x%26y&z HTTP/1.1\r\n" HOST "x-test: t\r\nX-Request-ID: my-id\r\n\r\n");
    char *t = take(fd, "n=0 ");
    expect(t, "HTTP/1.1 200 OK");
    expect(t, "GET /a b q=x&y h=t n=0 ");
    expect(t, "x-request-id: my-id");
    expect(t, "X-Extra: 1");
    puts_to(fd, "POST /p HTTP/1.1\r\n" HOST "Content-Length: 5\r\n\r\nhel");
    usleep(20000);
    puts_to(fd, "lo");
    expect(take(fd, "hello"), "POST /p q=(none) h=(none) n=5 hello");
    puts_to(fd, "POST /p HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    expect(take(fd, "abcde"), "n=5 abcde");
    puts_to(fd, "POST /p HTTP/1.1\r\n" HOST "Content-Length: 3\r\nExpect: 100-continue\r\n\r\n");
    expect(take(fd, "\r\n\r\n"), "HTTP/1.1 100 Continue");
    puts_to(fd, "abc");
    expect(take(fd, "n=3 abc"), "200 OK");
    puts_to(fd, "GET /busy HTTP/1.1\r\n" HOST "\r\n");
    t = take(fd, "\r\n\r\nno");
    expect(t, "429");
    expect(t, "Retry-After: 1");
    puts_to(fd, "HEAD /x HTTP/1.1\r\n" HOST "\r\nGET /later HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n");
    t = take(fd, NULL);
    expect(t, "200 OK");
    expect(t, "late");
    close(fd);
    fd = dial();
    puts_to(fd, "GET /stream?n=3 HTTP/1.0\r\n\r\n"); /* no chunks there: the end is the connection's */
    t = take(fd, NULL);
    expect(t, "\r\n\r\ndata: 3\n\ndata: 2\n\ndata: 1\n\n");
    close(fd);
    wait_closes(8);
    stop();
}

static void test_basics(void **state)
{
    (void)state;
    basics("127.0.0.1:0");
    basics("localhost:0");
    char path[64];
    snprintf(path, sizeof path, "unix:/tmp/cpet-http-%d.sock", (int)getpid());
    basics(path);
    assert_int_equal(access(path + 5, F_OK), -1);
}

static void test_addresses(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        "",        ":",     "127.0.0.1",   "127.0.0.1:", "127.0.0.1:70000", "127.0.0.1:1x", "example.org:80",
        "[::1:80", "unix:", "1.2.3.4.5:1", "[::1]"};
    uv_loop_t loop;
    struct http_server *s = NULL, *s2 = NULL;
    struct err e;
    struct http_handler h = {on_request, on_close, NULL, NULL};
    uv_loop_init(&loop);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        assert_int_equal(http_listen(&loop, &(struct http_opts){.addr = wrong[i]}, h, &s, &e), -EINVAL);
    assert_int_equal(http_listen(&loop, &(struct http_opts){.addr = "127.0.0.1:0"}, h, &s, &e), 0);
    assert_int_equal(http_listen(&loop, &(struct http_opts){.addr = http_address(s) + 7}, h, &s2, &e), -EADDRINUSE);
    http_close(s, NULL, NULL);
    assert_int_equal(uv_run(&loop, UV_RUN_DEFAULT), 0);
    assert_int_equal(uv_loop_close(&loop), 0);
}

static void test_refusals(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int status;
    } cases[] = {
        {"GET / HTTP/1.1\nHost: h\n\n", 400},
        {"GET / HTTP/1.1\r\n" HOST "A: b\r\n c\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\n" HOST "Content-Length : 1\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\n" HOST HOST "\r\n", 400},
        {"GET / HTTP/1.1\r\n\r\n", 400},
        {"POST / HTTP/1.1\r\n" HOST "Content-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400},
        {"POST / HTTP/1.1\r\n" HOST "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
        {"GET / HTTP/1.2\r\n" HOST "\r\n", 505},
        {"BREW / HTTP/1.1\r\n" HOST "\r\n", 501},
        {"GET /%00 HTTP/1.1\r\n" HOST "\r\n", 400},
        {"POST / HTTP/1.1\r\n" HOST "Content-Length: 100001\r\nExpect: 100-continue\r\n\r\n", 413},
        {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n186A1\r\n", 413},
        {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n", 400},
        {"\x16\x03\x01\x02\x01\n", 400},
    };
    start(&(struct http_opts){.addr = "127.0.0.1:0", .max_body = 100000});
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        refused(cases[i].text, strlen(cases[i].text), cases[i].status);
    static const char nul[] = "GET / HTTP/1.1\r\n" HOST "A: b\0c\r\n\r\n";
    refused(nul, sizeof nul - 1, 400);
    char *big = malloc(1 << 20);
    memset(big, 'a', 1 << 20);
    memcpy(big, "GET /", 5);
    refused(big, 1 << 20, 414);
    memcpy(big, "GET / HTTP/1.1\r\nA: ", 19);
    refused(big, 1 << 20, 431);
    /* A chunked body that grows past the limit while it comes. */
    size_t n = (size_t)sprintf(big, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 40; i++, n += 4096 + 8) {
        memcpy(big + n, "1000\r\n", 6);
        memcpy(big + n + 4096 + 6, "\r\n", 2);
    }
    refused(big, n, 413);
    /* After a good request the next one is judged too; what was asked before it is answered. */
    int fd = dial();
    puts_to(fd, "GET /ok HTTP/1.1\r\n" HOST "\r\nGET /bad HTTP/1.1\r\n" HOST "A : b\r\n\r\n");
    char *t = take(fd, NULL);
    expect(t, "GET /ok");
    expect(t, "HTTP/1.1 400");
    assert_null(strstr(t, "/bad"));
    close(fd);
    free(big);
    stop();
    assert_int_equal(fx.requests, 1);
}

static void test_pipelining(void **state)
{
    (void)state;
    enum { N = 50 };
    start(&(struct http_opts){.addr = "127.0.0.1:0"});
    int fd = dial();
    char text[8192] = "", want[32];
    for (int i = 0; i < N; i++)
        sprintf(text + strlen(text), "POST /%d HTTP/1.1\r\n" HOST "Content-Length: 3\r\n\r\nabc%s", i,
                i % 2 ? "\r\n" : "");
    strcat(text, "GET /stream?n=3 HTTP/1.1\r\n" HOST "\r\nGET /last HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n");
    puts_to(fd, text);
    char *t = take(fd, NULL);
    for (int i = 0; i < N; i++) {
        snprintf(want, sizeof want, "POST /%d q", i);
        char *at = strstr(t, want);
        if (!at)
            fail_msg("no '%s' in order in %s", want, t);
        t = at;
    }
    t = strstr(t, "data: 3");
    assert_non_null(t);
    expect(t, "GET /last");
    close(fd);
    stop();
}

/* The front and libmicrohttpd must see the same requests: bodies that look like requests, on one connection. */
static void test_framing_agrees(void **state)
{
    (void)state;
    static const char *const methods[] = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "QUERY"};
    static const char evil[] = "GET /evil HTTP/1.1\r\n" HOST "\r\n";
    char text[16384] = "", chunked[512];
    unsigned n = 0;
    start(&(struct http_opts){.addr = "127.0.0.1:0"});
    int fd = dial();
    snprintf(chunked, sizeof chunked, "0%zX\r\n%s\r\n%zx\r\n%s\r\n000\r\n\r\n", sizeof evil - 1, evil, sizeof evil - 1,
             evil);
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        sprintf(text + strlen(text), "%s / HTTP/1.1\r\n" HOST "Content-Length:\t%zu \r\n\r\n%s", methods[i],
                sizeof evil - 1, evil);
        sprintf(text + strlen(text), "%s / HTTP/1.1\r\n" HOST "transfer-encoding: CHUNKED\r\n\r\n%s", methods[i],
                chunked);
        sprintf(text + strlen(text), "%s /?a&b=&=c&&d=%%41 HTTP/1.1\r\n" HOST "Content-Length: 0\r\n\r\n", methods[i]);
        n += 3;
    }
    strcat(text, "POST /x HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nabGET /end HTTP/1.0\r\n\r\n");
    puts_to(fd, text);
    char *t = take(fd, NULL);
    expect(t, "/end");
    assert_null(strstr(t, "/evil q"));
    assert_null(strstr(t, "HTTP/1.1 400"));
    close(fd);
    stop();
    assert_int_equal(fx.requests, n + 2);
}

/* The largest head that the front lets pass also fits into libmicrohttpd's memory, with a body and either answer. */
static void test_largest_head(void **state)
{
    (void)state;
    static const char *const paths[] = {"POST /x", "POST /stream?n=2",
                                        "POST /x?aaaaaaaaaaaaaaaaaaaaa&b&c&d&e&f&g&h&i&j&k&l"};
    static const size_t sizes[] = {8192, 16384, 65536};
    static char text[70000];
    for (size_t k = 0; k < 3; k++) {
        start(&(struct http_opts){.addr = "127.0.0.1:0", .max_header = sizes[k]});
        int fd = dial();
        for (size_t i = 0; i < 9; i++) {
            size_t n = (size_t)sprintf(text, "%s HTTP/1.1\r\n" HOST "Content-Length: 3\r\n", paths[i % 3]);
            for (int h = 0; h < (i < 6 ? 97 : 1); h++)
                n += (size_t)sprintf(text + n, "A%d: b\r\n", h);
            n += (size_t)sprintf(text + n, "Z: ");
            memset(text + n, 'z', sizes[k] - 4 - n);
            puts_to(fd, strcpy(text + sizes[k] - 4, "\r\n\r\nabc") - sizes[k] + 4);
            char *t = take(fd, i % 3 == 1 ? "\r\n0\r\n\r\n" : "abc");
            expect(t, "HTTP/1.1 200 OK");
        }
        close(fd);
        stop();
    }
}

/* Megabytes by length, in chunks of many sizes, and in chunks of one byte. */
static void test_large_bodies(void **state)
{
    (void)state;
    enum { SIZE = 6000000, TINY = 200000 };
    static char text[8000000];
    char want[40];
    start(&(struct http_opts){.addr = "127.0.0.1:0"});
    int fd = dial();
    size_t n = (size_t)sprintf(text, "POST / HTTP/1.1\r\n" HOST "Content-Length: %d\r\n\r\n", SIZE);
    memset(text + n, 'x', SIZE);
    put(fd, text, n + SIZE);
    snprintf(want, sizeof want, "n=%d xxx", SIZE);
    expect(take(fd, "xxx"), want);
    n = (size_t)sprintf(text, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n");
    size_t head = n, total = 0;
    for (size_t k = 1; k < 3000; k++, total += k - 1) {
        n += (size_t)sprintf(text + n, "%zx\r\n", k);
        memset(text + n, 'y', k);
        memcpy(text + n + k, "\r\n", 2);
        n += k + 2;
    }
    n += (size_t)sprintf(text + n, "0\r\n\r\n");
    put(fd, text, n);
    snprintf(want, sizeof want, "n=%zu yyy", total);
    expect(take(fd, "yyy"), want);
    n = head;
    for (int i = 0; i < TINY; i++, n += 6)
        memcpy(text + n, "1\r\nz\r\n", 6);
    n += (size_t)sprintf(text + n, "0\r\n\r\n");
    put(fd, text, n);
    snprintf(want, sizeof want, "n=%d zzz", TINY);
    expect(take(fd, "zzz"), want);
    close(fd);
    stop();
}

/* All bodies together have a limit: the one that passes it is told to come back. */
static void test_bodies(void **state)
{
    (void)state;
    enum { BODY = 60000 };
    static char text[BODY];
    int fds[3];
    start(&(struct http_opts){.addr = "127.0.0.1:0", .max_bodies = 2 * BODY});
    memset(text, 'x', sizeof text);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 3; i++) {
            fds[i] = dial();
            puts_to(fds[i], "POST /hold HTTP/1.1\r\n" HOST "Content-Length: 60000\r\nExpect: 100-continue\r\n\r\n");
            expect(take(fds[i], "\r\n\r\n"), "100 Continue");
            put(fds[i], text, BODY);
            for (int k = 0; i < 2 && k < 2000 && fx.requests < (unsigned)(2 * round + i + 1); k++)
                usleep(1000);
        }
        char *t = take(fds[2], NULL);
        expect(t, "HTTP/1.1 503");
        expect(t, "Retry-After");
        for (int i = 0; i < 3; i++)
            close(fds[i]);
        wait_closes(2 * (unsigned)round + 2);
    }
    stop();
}

/* No descriptor is left for a new connection: it waits, and is served when there is one again. */
static void test_no_descriptors(void **state)
{
    (void)state;
    static int spare[1 << 16];
    int n = 0;
    start(&(struct http_opts){.addr = "127.0.0.1:0", .header_ms = 400});
    while (n < 1 << 16 && (spare[n] = dup(0)) >= 0)
        n++;
    if (n == 1 << 16) {
        print_message("more than %d descriptors: not tried\n", n);
    } else {
        close(spare[--n]);
    }
    int fd = dial();
    puts_to(fd, "GET / HTTP/1.1\r\n" HOST "\r\n");
    usleep(50000);
    while (n)
        close(spare[--n]);
    expect(take(fd, "n=0"), "200 OK");
    close(fd);
    stop();
}

static void test_deadlines(void **state)
{
    (void)state;
    start(&(struct http_opts){.addr = "127.0.0.1:0", .header_ms = 200, .body_ms = 250, .idle_ms = 300});
    int head = dial(), body = dial(), idle = dial(), silent = dial();
    double t0 = now_s();
    puts_to(idle, "GET / HTTP/1.1\r\n" HOST "\r\n");
    take(idle, "n=0");
    puts_to(body, "POST / HTTP/1.1\r\n" HOST "Content-Length: 1000\r\n\r\n");
    puts_to(head, "GET / HTTP/1.1\r\n");
    for (int i = 0; i < 10; i++) { /* one byte each 50 ms keeps nothing alive */
        puts_to(head, "A");
        puts_to(body, "b");
        usleep(50000);
    }
    expect(take(head, NULL), "HTTP/1.1 408");
    char *t = take(body, NULL);
    expect(t, "HTTP/1.1 408");
    expect(t, "body took longer than 250 ms");
    assert_string_equal(take(idle, NULL), "");
    assert_string_equal(take(silent, NULL), "");
    assert_true(now_s() - t0 < 2);
    close(head), close(body), close(idle), close(silent);
    stop();
}

/* Empty lines before a request are let by, but give it no more time. */
static void test_empty_lines(void **state)
{
    (void)state;
    start(&(struct http_opts){.addr = "127.0.0.1:0", .header_ms = 200, .idle_ms = 300});
    int fd = dial();
    double t0 = now_s();
    char c;
    puts_to(fd, "\r\n\r\nGET /x HTTP/1.1\r\n" HOST "\r\n");
    expect(take(fd, "n=0 "), "200 OK");
    for (int i = 0; i < 100 && recv(fd, &c, 1, MSG_DONTWAIT) != 0; i++) {
        puts_to(fd, "\r\n");
        usleep(20000);
    }
    assert_true(now_s() - t0 < 1.5);
    close(fd);
    stop();
}

static int only_good(void *ctx, const char *authorization, struct err *e)
{
    (void)ctx;
    return authorization && !strcmp(authorization, "good") ? 0 : err_set(e, -EACCES, "no key");
}

/* Who may not ask is told so before the body is asked for; what has no body is the handler's. */
static void test_key_before_body(void **state)
{
    static const char *const bad[] = {"Content-Length: 5\r\nExpect: 100-continue\r\n", "Content-Length: 5\r\n",
                                      "Transfer-Encoding: chunked\r\nAuthorization: other\r\n"};
    (void)state;
    check_key = only_good;
    start(&(struct http_opts){.addr = "127.0.0.1:0"});
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[256];
        int n = snprintf(text, sizeof text, "POST /p HTTP/1.1\r\n" HOST "%s\r\n", bad[i]);
        refused(text, (size_t)n, 401);
    }
    assert_int_equal(fx.requests, 0);
    int fd = dial();
    puts_to(fd, "GET /x HTTP/1.1\r\n" HOST "\r\n");
    expect(take(fd, "n=0 "), "200 OK");
    puts_to(fd, "POST /p HTTP/1.1\r\n" HOST "AUTHORIZATION:good \r\nContent-Length: 2\r\n\r\nhi");
    expect(take(fd, "n=2 hi"), "200 OK");
    close(fd);
    stop();
    check_key = NULL;
}

static void test_connection_limit(void **state)
{
    (void)state;
    enum { MAX = 20 };
    int fds[MAX];
    start(&(struct http_opts){.addr = "127.0.0.1:0", .max_conns = MAX});
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < MAX; i++)
            fds[i] = dial();
        for (int i = 0; i < 30; i++) {
            int fd = dial();
            puts_to(fd, "GET / HTTP/1.1\r\n" HOST "\r\n");
            char *t = take(fd, NULL);
            expect(t, "HTTP/1.1 503");
            expect(t, "Retry-After: 1");
            expect(t, "overloaded_error");
            close(fd);
        }
        puts_to(fds[MAX - 1], "GET / HTTP/1.1\r\n" HOST "\r\n");
        expect(take(fds[MAX - 1], "n=0"), "200 OK");
        for (int i = 0; i < MAX; i++)
            close(fds[i]);
        usleep(30000);
    }
    int fd = dial();
    puts_to(fd, "GET / HTTP/1.1\r\n" HOST "\r\n");
    expect(take(fd, "n=0"), "200 OK");
    close(fd);
    stop();
}

static void test_clients_leave(void **state)
{
    (void)state;
    start(&(struct http_opts){.addr = "127.0.0.1:0", .max_backlog = 1 << 20});
    static const char *const paths[] = {"/hold", "/stream?n=1000000", "/flood", "/big", "/later"};
    for (unsigned i = 0; i < 5; i++) {
        char text[100];
        int fd = dial();
        snprintf(text, sizeof text, "GET %s HTTP/1.1\r\n" HOST "\r\n", paths[i]);
        puts_to(fd, text);
        for (int k = 0; k < 1000 && fx.requests < i + 1; k++)
            usleep(1000);
        if (i == 1)
            take(fd, "data: ");
        double t0 = now_s();
        close(fd);
        wait_closes(i + 1);
        assert_true(now_s() - t0 < 0.1);
    }
    assert_int_equal(fx.nobufs, 1);
    assert_in_range(fx.pending, 1 << 19, 1 << 20);
    /* Half a body, a reset in mid-stream, a pipelined request behind a held one. */
    int fd = dial();
    puts_to(fd, "POST / HTTP/1.1\r\n" HOST "Content-Length: 10\r\n\r\nabc");
    usleep(10000);
    close(fd);
    fd = dial();
    struct linger reset = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    puts_to(fd, "GET /stream?n=1000000 HTTP/1.1\r\n" HOST "\r\n");
    take(fd, "data: ");
    close(fd);
    wait_closes(6);
    fd = dial();
    puts_to(fd, "GET /hold HTTP/1.1\r\n" HOST "\r\nGET /second HTTP/1.1\r\n" HOST "\r\n");
    usleep(20000);
    close(fd);
    wait_closes(7);
    /* A stream that breaks off ends without its last chunk; before its first byte it becomes a refusal. */
    fd = dial();
    puts_to(fd, "GET /cut HTTP/1.1\r\n" HOST "\r\n");
    char *t = take(fd, NULL);
    expect(t, "200 OK");
    expect(t, "data: 3\n");
    assert_null(strstr(t, "\r\n0\r\n\r\n"));
    close(fd);
    wait_closes(8);
    refused("GET /abort HTTP/1.1\r\n" HOST "\r\n", strlen("GET /abort HTTP/1.1\r\n" HOST "\r\n"), 503);
    wait_closes(9);
    stop();
}

static void test_large_event(void **state)
{
    (void)state;
    start(&(struct http_opts){.addr = "127.0.0.1:0", .max_backlog = 1 << 20});
    int fd = dial();
    puts_to(fd, "GET /large HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n");
    size_t got = 0;
    bool end = false;
    char block[65536];
    for (ssize_t n; (n = read(fd, block, sizeof block)) > 0; got += (size_t)n)
        end |= memchr(block, '#', (size_t)n) != NULL;
    assert_true(got > 3u << 20 && end);
    close(fd);
    wait_closes(1);
    stop();
}

static void test_slow_reader(void **state)
{
    (void)state;
    start(&(struct http_opts){.addr = "127.0.0.1:0", .send_ms = 200, .max_backlog = 64u << 20});
    int fd = dial();
    puts_to(fd, "GET /big HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n");
    size_t total = 0;
    char bytes[65536];
    for (ssize_t k; (k = recv(fd, bytes, sizeof bytes, 0)) > 0; usleep(2000))
        total += (size_t)k;
    assert_in_range(total, 3u << 20, (3u << 20) + 400);
    close(fd);
    fd = dial();
    puts_to(fd, "GET /flood HTTP/1.1\r\n" HOST "\r\n");
    double t0 = now_s();
    wait_closes(2); /* it reads nothing and is dropped */
    assert_true(now_s() - t0 < 1.5);
    close(fd);
    stop();
}

static void test_drain(void **state)
{
    (void)state;
    start(&(struct http_opts){.addr = "127.0.0.1:0"});
    int busy = dial(), idle = dial();
    puts_to(idle, "GET / HTTP/1.1\r\n" HOST "\r\n");
    take(idle, "n=0");
    puts_to(busy, "GET /stream?n=50 HTTP/1.1\r\n" HOST "\r\n");
    take(busy, "data: 5");
    uv_async_send(&fx.drain);
    assert_string_equal(take(idle, NULL), "");
    expect(take(busy, NULL), "data: 1\n\n");
    close(busy), close(idle);
    stop();
}

/* A request is over for its handler before a slow client has all of the answer. */
static void test_answering(void **state)
{
    (void)state;
    start(&(struct http_opts){.addr = "127.0.0.1:0"});
    int fd = dial();
    puts_to(fd, "GET / HTTP/1.1\r\n" HOST "\r\n");
    take(fd, "n=0");
    wait_closes(1);
    assert_int_equal(fx.answering, 1);
    puts_to(fd, "GET /big HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n");
    char bytes[65536];
    while (recv(fd, bytes, sizeof bytes, 0) > 0)
        ;
    wait_closes(2);
    assert_int_equal(fx.answering, 1);
    stop();
    assert_int_equal(fx.answering, 0);
    close(fd);
}

/* Closing with requests open: each is told once. */
static void test_close_open(void **state)
{
    (void)state;
    start(&(struct http_opts){.addr = "127.0.0.1:0"});
    int a = dial(), b = dial(), c = dial();
    puts_to(a, "GET /hold HTTP/1.1\r\n" HOST "\r\n");
    puts_to(b, "GET /stream?n=1000000 HTTP/1.1\r\n" HOST "\r\n");
    puts_to(c, "POST / HTTP/1.1\r\n" HOST "Content-Length: 10\r\n\r\nabc");
    take(b, "data: ");
    for (int k = 0; k < 1000 && fx.requests < 2; k++)
        usleep(1000);
    stop();
    assert_int_equal(fx.closes, 2);
    close(a), close(b), close(c);
}

static void test_many_streams(void **state)
{
    (void)state;
    enum { N = 1000, EVENTS = 20 };
    static struct {
        int fd;
        size_t n;
        char text[2048];
    } c[N];
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (files.rlim_cur < 4 * N + 100) {
        print_message("only %lu descriptors: skipped\n", (unsigned long)files.rlim_cur);
        skip();
    }
    start_paced(&(struct http_opts){.addr = "127.0.0.1:0"}, 20);
    for (int i = 0; i < N; i++) {
        c[i].fd = dial();
        c[i].n = 0;
        puts_to(c[i].fd, "GET /stream?n=20 HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n");
    }
    /* Another client's short request meanwhile. */
    double worst = 0, t0 = now_s();
    int health = dial();
    for (int i = 0; i < 20; i++) {
        double t = now_s();
        puts_to(health, "GET /health HTTP/1.1\r\n" HOST "\r\n");
        take(health, "n=0");
        t = now_s() - t;
        worst = t > worst ? t : worst;
    }
    close(health);
    for (int i = 0; i < N; i++) {
        for (ssize_t k; (k = recv(c[i].fd, c[i].text + c[i].n, sizeof c[i].text - 1 - c[i].n, 0)) > 0;)
            c[i].n += (size_t)k;
        c[i].text[c[i].n] = 0;
        close(c[i].fd);
        expect(c[i].text, "data: 20\n\n");
        expect(c[i].text, "data: 1\n\n");
        expect(c[i].text, "\r\n0\r\n\r\n");
    }
    print_message("%d streams of %d events: %.2f s; a short request beside them at most %.1f ms\n", N, EVENTS,
                  now_s() - t0, worst * 1e3);
    stop();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_basics),
        cmocka_unit_test(test_addresses),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_pipelining),
        cmocka_unit_test(test_deadlines),
        cmocka_unit_test(test_framing_agrees),
        cmocka_unit_test(test_no_descriptors),
        cmocka_unit_test(test_bodies),
        cmocka_unit_test(test_large_bodies),
        cmocka_unit_test(test_largest_head),
        cmocka_unit_test(test_connection_limit),
        cmocka_unit_test(test_clients_leave),
        cmocka_unit_test(test_large_event),
        cmocka_unit_test(test_slow_reader),
        cmocka_unit_test(test_drain),
        cmocka_unit_test(test_answering),
        cmocka_unit_test(test_close_open),
        cmocka_unit_test(test_many_streams),
        cmocka_unit_test(test_empty_lines),
        cmocka_unit_test(test_key_before_body),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
