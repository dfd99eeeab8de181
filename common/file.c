/* file.c - files as the rest of the tree needs them.
 *
 * Any thread. A map belongs to whoever opened it. Writes go to a temporary beside the target and are renamed, with
 * the file and its directory fsynced, so that a crash leaves the old or the new contents and nothing between.
 */
#include "common/file.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int file_open(const char *path, size_t *len, struct err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_set(e, -errno, "%s: %s", path, strerror(errno));
    struct stat st;
    int r = 0;
    if (fstat(fd, &st))
        r = err_set(e, -errno, "%s: %s", path, strerror(errno));
    else if (S_ISDIR(st.st_mode))
        r = err_set(e, -EISDIR, "%s: is a directory", path);
    else if (!S_ISREG(st.st_mode))
        r = err_set(e, -EINVAL, "%s: not a regular file", path);
    if (r) {
        close(fd);
        return r;
    }
    *len = (size_t)st.st_size;
    return fd;
}

int map_open(const char *path, struct map *out, struct err *e)
{
    size_t len = 0;
    int fd = file_open(path, &len, e);
    if (fd < 0)
        return fd;
    void *p = NULL;
    int r = 0;
    if (len) {
        p = mmap(NULL, len, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED)
            r = err_set(e, -errno, "%s: cannot map %zu bytes: %s", path, len, strerror(errno));
    }
    close(fd);
    if (!r)
        *out = (struct map){.data = p, .len = len};
    return r;
}

void map_close(struct map *m)
{
    if (!m || !m->data)
        return;
    munmap((void *)(uintptr_t)m->data, m->len);
    *m = (struct map){0};
}

void map_forget(const struct map *m, size_t off, size_t len)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (!m->data || off >= m->len)
        return;
    size_t end = len > m->len - off ? m->len : off + len;
    off = (off + page - 1) / page * page;
    end = end / page * page;
    if (end > off)
        madvise((void *)(uintptr_t)(m->data + off), end - off, MADV_DONTNEED);
}

int file_read(const char *path, size_t cap, char **out, size_t *len, struct err *e)
{
    size_t n = 0, got = 0;
    int fd = file_open(path, &n, e);
    if (fd < 0)
        return fd;
    int r = 0;
    char *p = NULL;
    if (n > cap) {
        r = err_set(e, -EFBIG, "%s: %zu bytes, more than the limit of %zu", path, n, cap);
        goto done;
    }
    p = malloc(n + 1);
    if (!p) {
        r = err_set(e, -ENOMEM, "%s: out of memory for %zu bytes", path, n);
        goto done;
    }
    while (got < n) {
        ssize_t k = read(fd, p + got, n - got);
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0) {
            r = err_set(e, -errno, "%s: %s", path, strerror(errno));
            goto done;
        }
        if (k == 0)
            break;
        got += (size_t)k;
    }
    p[got] = 0;
    *out = p;
    *len = got;
    p = NULL;
done:
    free(p);
    close(fd);
    return r;
}

int file_read_at(int fd, const char *path, size_t off, void *p, size_t n, struct err *e)
{
    for (size_t got = 0; got < n;) {
        ssize_t k = pread(fd, (char *)p + got, n - got, (off_t)(off + got));
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            return err_set(e, -errno, "%s: %s", path, strerror(errno));
        if (k == 0)
            return err_set(e, -EINVAL, "%s: it was cut at byte %zu while it was read", path, off + got);
        got += (size_t)k;
    }
    return 0;
}

static int write_all(int fd, const char *p, size_t n)
{
    while (n) {
        ssize_t k = write(fd, p, n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            return -errno;
        p += k;
        n -= (size_t)k;
    }
    return 0;
}

static int sync_parent(const char *path)
{
    char *dir = strdup(path);
    if (!dir)
        return -ENOMEM;
    char *slash = strrchr(dir, '/');
    if (slash)
        slash[slash == dir] = 0;
    int fd = open(slash ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(dir);
    if (fd < 0)
        return -errno;
    int r = fsync(fd) ? -errno : 0;
    close(fd);
    return r;
}

struct file_out {
    char *path, *tmp;
    int fd;
};

static void file_out_free(struct file_out *o)
{
    if (o->fd >= 0)
        close(o->fd);
    free(o->tmp);
    free(o->path);
    free(o);
}

int file_out_open(const char *path, unsigned mode, struct file_out **out, struct err *e)
{
    struct file_out *o = calloc(1, sizeof *o);
    if (!o)
        return err_set(e, -ENOMEM, "%s: out of memory", path);
    o->fd = -1;
    o->path = strdup(path);
    if (asprintf(&o->tmp, "%s.tmp.%ld", path, (long)getpid()) < 0)
        o->tmp = NULL;
    int r = o->path && o->tmp ? 0 : -ENOMEM;
    if (!r) {
        o->fd = open(o->tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
        r = o->fd < 0 ? -errno : 0;
    }
    if (r) {
        file_out_free(o);
        return err_set(e, r, "%s: cannot write: %s", path, strerror(-r));
    }
    *out = o;
    return 0;
}

int file_out_write(struct file_out *o, const void *p, size_t n, struct err *e)
{
    int r = write_all(o->fd, p, n);
    return r ? err_set(e, r, "%s: cannot write: %s", o->path, strerror(-r)) : 0;
}

int file_out_commit(struct file_out *o, struct err *e)
{
    int r = fsync(o->fd) ? -errno : 0;
    if (close(o->fd) && !r)
        r = -errno;
    o->fd = -1;
    if (!r && rename(o->tmp, o->path))
        r = -errno;
    if (!r)
        r = sync_parent(o->path);
    else
        unlink(o->tmp);
    if (r)
        err_set(e, r, "%s: cannot write: %s", o->path, strerror(-r));
    file_out_free(o);
    return r;
}

void file_out_abort(struct file_out *o)
{
    if (!o)
        return;
    unlink(o->tmp);
    file_out_free(o);
}

int file_write_atomic(const char *path, const void *data, size_t len, unsigned mode, struct err *e)
{
    struct file_out *o = NULL;
    int r = file_out_open(path, mode, &o, e);
    if (r)
        return r;
    r = file_out_write(o, data, len, e);
    if (!r)
        return file_out_commit(o, e);
    file_out_abort(o);
    return r;
}

int dir_make(const char *path, struct err *e)
{
    char *p = strdup(path);
    if (!p)
        return err_set(e, -ENOMEM, "%s: out of memory", path);
    int r = 0;
    for (char *s = p + 1; !r; s++) {
        if (*s != '/' && *s)
            continue;
        char c = *s;
        *s = 0;
        if (mkdir(p, 0777) && errno != EEXIST)
            r = err_set(e, -errno, "%s: cannot make directory: %s", p, strerror(errno));
        *s = c;
        if (!c)
            break;
    }
    free(p);
    return r;
}

char *path_join(const char *dir, const char *name)
{
    char *p = NULL;
    return asprintf(&p, "%s/%s", dir, name) < 0 ? NULL : p;
}
