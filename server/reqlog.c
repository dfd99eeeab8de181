/* reqlog.c - the request log's queue and its writer thread.
 *
 * Two threads. The loop appends to `fill` under the mutex; the writer takes the whole of it by an exchange of buffers
 * and writes without the mutex, so that no disk ever holds the loop. Memory: two buffers of REQLOG_QUEUE_BYTES at most.
 *
 * Invariants: lines in the file are whole, in the order in which they were put; a line that was cut by a full disk is
 * ended before the next one. At the end, a writer that a disk holds for longer than two seconds is left behind with its
 * buffers: the process is about to exit.
 */
#include "server/reqlog.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/buf.h"
#include "server/log.h"

#define LAST_WRITE_S 2

struct reqlog {
    char *path;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct buf fill; /* under lock */
    uint64_t lines;  /* in fill */
    bool stop, reopen;
    _Atomic uint64_t written, dropped;
    /* the writer's */
    int fd;
    bool torn, failing;
};

/* A pipe without a reader is refused instead of waited for. */
static int open_file(const char *path)
{
    if (!strcmp(path, "-"))
        return dup(STDOUT_FILENO);
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0640);
    if (fd >= 0)
        fcntl(fd, F_SETFL, O_APPEND);
    return fd;
}

/* ---- the writer ---- */

static bool write_all(struct reqlog *l, const char *p, size_t n)
{
    while (n) {
        ssize_t k = write(l->fd, p, n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return false;
        l->torn = p[k - 1] != '\n';
        p += k;
        n -= (size_t)k;
    }
    return true;
}

static void write_lines(struct reqlog *l, const struct buf *b, uint64_t lines)
{
    bool ok = (!l->torn || write_all(l, "\n", 1)) && write_all(l, b->data, b->len);
    atomic_fetch_add(ok ? &l->written : &l->dropped, lines);
    if (!ok && !l->failing)
        log_line("error", "the request log %s: %s; lines are dropped", l->path, strerror(errno));
    l->failing = !ok;
}

static void open_again(struct reqlog *l)
{
    int fd = open_file(l->path);
    if (fd < 0) {
        log_line("error", "the request log %s was not opened again, the old file stays: %s", l->path, strerror(errno));
        return;
    }
    close(l->fd);
    l->fd = fd;
    l->torn = false;
}

static void *writer(void *arg)
{
    struct reqlog *l = arg;
    struct buf out;
    bool stop = false;
    buf_init(&out, REQLOG_QUEUE_BYTES);
    while (!stop) {
        pthread_mutex_lock(&l->lock);
        while (!l->stop && !l->reopen && !l->fill.len)
            pthread_cond_wait(&l->wake, &l->lock);
        struct buf full = l->fill;
        uint64_t lines = l->lines;
        bool again = l->reopen;
        stop = l->stop;
        l->fill = out;
        l->lines = 0;
        l->reopen = false;
        pthread_mutex_unlock(&l->lock);
        if (full.len)
            write_lines(l, &full, lines); /* what came before the file was moved belongs to it */
        if (again)
            open_again(l);
        buf_clear(&full);
        out = full;
    }
    buf_free(&out);
    return NULL;
}

/* ---- the loop ---- */

static void reqlog_free(struct reqlog *l)
{
    pthread_mutex_destroy(&l->lock);
    pthread_cond_destroy(&l->wake);
    buf_free(&l->fill);
    close(l->fd);
    free(l->path);
    free(l);
}

int reqlog_open(const char *path, struct reqlog **out, struct err *e)
{
    struct reqlog *l = calloc(1, sizeof *l);
    if (!l || !(l->path = strdup(path))) {
        free(l);
        return err_set(e, -ENOMEM, "out of memory");
    }
    l->fd = open_file(path);
    if (l->fd < 0) {
        int rc = err_param(e, -errno, "request-log", "--request-log: %s: %s", path, strerror(errno));
        free(l->path);
        free(l);
        return rc;
    }
    buf_init(&l->fill, REQLOG_QUEUE_BYTES);
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->wake, NULL);
    int rc = pthread_create(&l->thread, NULL, writer, l);
    if (rc) {
        reqlog_free(l);
        return err_set(e, -rc, "the request log's thread: %s", strerror(rc));
    }
    *out = l;
    return 0;
}

void reqlog_put(struct reqlog *l, const char *line, size_t n)
{
    pthread_mutex_lock(&l->lock);
    bool room = l->fill.len + n < REQLOG_QUEUE_BYTES - 1;
    size_t before = l->fill.len;
    if (room && (buf_append(&l->fill, line, n) || buf_append(&l->fill, "\n", 1))) {
        room = false; /* out of memory: what was there stays */
        l->fill.len = before;
        l->fill.failed = false;
    }
    l->lines += room;
    pthread_cond_signal(&l->wake);
    pthread_mutex_unlock(&l->lock);
    if (!room)
        atomic_fetch_add(&l->dropped, 1);
}

void reqlog_reopen(struct reqlog *l)
{
    pthread_mutex_lock(&l->lock);
    l->reopen = strcmp(l->path, "-") != 0;
    pthread_cond_signal(&l->wake);
    pthread_mutex_unlock(&l->lock);
}

void reqlog_counts(const struct reqlog *l, uint64_t *written, uint64_t *dropped)
{
    *written = l ? atomic_load(&l->written) : 0;
    *dropped = l ? atomic_load(&l->dropped) : 0;
}

void reqlog_close(struct reqlog *l)
{
    struct timespec end;
    if (!l)
        return;
    pthread_mutex_lock(&l->lock);
    l->stop = true;
    pthread_cond_signal(&l->wake);
    pthread_mutex_unlock(&l->lock);
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += LAST_WRITE_S;
    if (!pthread_timedjoin_np(l->thread, NULL, &end)) {
        reqlog_free(l);
        return;
    }
    log_line("error", "the request log %s takes no lines; what waits for it is lost", l->path);
    pthread_detach(l->thread);
}
