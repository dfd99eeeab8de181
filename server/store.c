/* store.c - the registry's directory.
 *
 * store_stage, store_unstage and store_path may be called by any thread (uploads have a counter of their own); the rest
 * by one at a time, as registry.h says. The struct and the paths that it gives out are malloc'ed.
 *
 * A content gets its name only by rename, after its bytes were fsynced, and the directory is fsynced before the
 * registry names it. So a name stands for whole contents, whenever the machine stops. A file whose fsync failed is
 * removed and never fsynced again: the kernel may have dropped its dirty pages, and a second fsync would say that all
 * is well. All goes relative to open directories; the lock is on an open file, so the system gives it back whatever
 * happens.
 */
#include "server/store.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file.h"

#define UPLOAD_DIGITS 16
#define CONTENT_NAME (HASH_HEX + 4) /* HASH.pet and its NUL */

struct store {
    char *dir;
    bool durable;
    int dir_fd, modules_fd, incoming_fd, lock_fd;
    atomic_uint_fast64_t uploads;
};

static int call_openat(int dir, const char *name, int flags, mode_t mode)
{
    return openat(dir, name, flags, mode);
}

struct store_calls store_calls = {
    .openat = call_openat,
    .write = write,
    .fsync = fsync,
    .close = close,
    .renameat = renameat,
    .unlinkat = unlinkat,
};

/* ---- opening ---- */

static int fail(const struct store *s, struct err *e, int code, const char *what, const char *name)
{
    return err_set(e, code, "%s/%s: cannot %s: %s", s->dir, name, what, strerror(-code));
}

static int sync_fd(const struct store *s, int fd)
{
    return s->durable && store_calls.fsync(fd) ? -errno : 0;
}

/* Makes dir with mode 0700 and what is missing above it; its name in the directory above is made durable. */
static int make_dir(const char *dir, struct err *e)
{
    char *up = strdup(dir);
    if (!up)
        return err_set(e, -ENOMEM, "%s: out of memory", dir);
    for (size_t n = strlen(up); n > 1 && up[n - 1] == '/'; n--)
        up[n - 1] = 0;
    char *slash = strrchr(up, '/');
    int r = 0;
    if (mkdir(up, 0700)) {
        r = -errno;
        if (r == -ENOENT && slash && slash != up) {
            *slash = 0;
            r = dir_make(up, e);
            *slash = '/';
            if (r)
                goto done;
            r = mkdir(up, 0700) ? -errno : 0;
        }
    }
    if (r) {
        r = r == -EEXIST ? 0 : err_set(e, r, "%s: cannot make directory: %s", dir, strerror(-r));
        goto done;
    }
    if (slash)
        slash[slash == up] = 0;
    int fd = open(slash ? up : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || store_calls.fsync(fd))
        r = err_set(e, -errno, "%s: cannot sync: %s", slash ? up : ".", strerror(errno));
    if (fd >= 0)
        close(fd);
done:
    free(up);
    return r;
}

static int open_sub(struct store *s, const char *name, int *fd, struct err *e)
{
    if (mkdirat(s->dir_fd, name, 0700) && errno != EEXIST)
        return fail(s, e, -errno, "make directory", name);
    *fd = store_calls.openat(s->dir_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    return *fd < 0 ? fail(s, e, -errno, "open", name) : 0;
}

static int take_lock(struct store *s, struct err *e)
{
    s->lock_fd = store_calls.openat(s->dir_fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (s->lock_fd < 0)
        return fail(s, e, -errno, "open", "lock");
    if (!flock(s->lock_fd, LOCK_EX | LOCK_NB))
        return 0;
    if (errno != EWOULDBLOCK)
        return fail(s, e, -errno, "lock", "lock");
    return err_set(e, -EBUSY, "%s: another process uses this directory (it holds %s/lock)", s->dir, s->dir);
}

static int open_all(struct store *s, const char *dir, struct err *e)
{
    char temp[4096];
    const char *tmp = getenv("TMPDIR");
    s->durable = dir != NULL;
    if (!dir) {
        int n = snprintf(temp, sizeof temp, "%s/cpetd-XXXXXX", tmp && *tmp ? tmp : "/tmp");
        if (n < 0 || (size_t)n >= sizeof temp || !mkdtemp(temp))
            return err_set(e, -errno, "%s: cannot make directory: %s", temp, strerror(errno));
        dir = temp;
    } else {
        int r = make_dir(dir, e);
        if (r)
            return r;
    }
    s->dir = realpath(dir, NULL);
    if (!s->dir)
        return err_set(e, -errno, "%s: %s", dir, strerror(errno));
    s->dir_fd = store_calls.openat(AT_FDCWD, s->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    if (s->dir_fd < 0)
        return err_set(e, -errno, "%s: %s", dir, strerror(errno));
    int r = take_lock(s, e);
    if (!r)
        r = open_sub(s, "modules", &s->modules_fd, e);
    if (!r)
        r = open_sub(s, "incoming", &s->incoming_fd, e);
    return r ? r : store_sync(s, e);
}

int store_open(const char *dir, struct store **out, struct err *e)
{
    struct store *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(e, -ENOMEM, "out of memory");
    s->dir_fd = s->modules_fd = s->incoming_fd = s->lock_fd = -1;
    int r = open_all(s, dir, e);
    if (r)
        store_close(s);
    else
        *out = s;
    return r;
}

/* Calls f for each entry's name but . and ..; ends with the first error. */
static int each_entry(int dir_fd, int (*f)(void *ctx, int dir_fd, const char *name), void *ctx)
{
    int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (!d) {
        int r = -errno;
        if (fd >= 0)
            close(fd);
        return r;
    }
    int r = 0;
    struct dirent *ent;
    while (!r && (errno = 0, ent = readdir(d)))
        if (strcmp(ent->d_name, ".") && strcmp(ent->d_name, ".."))
            r = f(ctx, dir_fd, ent->d_name);
    if (!r && errno)
        r = -errno;
    closedir(d);
    return r;
}

static int remove_entry(void *ctx, int dir_fd, const char *name)
{
    (void)ctx;
    if (unlinkat(dir_fd, name, 0))
        unlinkat(dir_fd, name, AT_REMOVEDIR);
    return 0;
}

void store_close(struct store *s)
{
    if (!s)
        return;
    if (!s->durable && s->dir) {
        int fds[] = {s->incoming_fd, s->modules_fd, s->dir_fd};
        for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
            if (fds[i] >= 0)
                each_entry(fds[i], remove_entry, NULL);
        rmdir(s->dir);
    }
    int fds[] = {s->incoming_fd, s->modules_fd, s->dir_fd, s->lock_fd};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    free(s->dir);
    free(s);
}

const char *store_dir(const struct store *s)
{
    return s->dir;
}

bool store_durable(const struct store *s)
{
    return s->durable;
}

int store_sync(struct store *s, struct err *e)
{
    int r = sync_fd(s, s->dir_fd);
    return r ? err_set(e, r, "%s: cannot sync: %s", s->dir, strerror(-r)) : 0;
}

/* ---- uploads ---- */

static int write_all(int fd, const char *p, size_t n)
{
    while (n) {
        ssize_t k = store_calls.write(fd, p, n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return k ? -errno : -EIO;
        p += k;
        n -= (size_t)k;
    }
    return 0;
}

int store_stage(struct store *s, const void *data, size_t n, char **path, struct err *e)
{
    char *full = NULL;
    if (asprintf(&full, "%s/incoming/%0*llx", s->dir, UPLOAD_DIGITS,
                 (unsigned long long)atomic_fetch_add(&s->uploads, 1)) < 0)
        return err_set(e, -ENOMEM, "out of memory");
    const char *name = strrchr(full, '/') + 1;
    int r, fd = store_calls.openat(s->incoming_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        r = err_set(e, -errno, "%s: cannot make: %s", full, strerror(errno));
        free(full);
        return r;
    }
    r = write_all(fd, data, n);
    if (!r)
        r = sync_fd(s, fd);
    if (store_calls.close(fd) && !r)
        r = -errno;
    if (r) {
        store_calls.unlinkat(s->incoming_fd, name, 0);
        err_set(e, r, "%s: cannot write: %s", full, strerror(-r));
        free(full);
        return r;
    }
    *path = full;
    return 0;
}

/* The name in incoming/ of a path that store_stage gave; NULL when it is none. */
static const char *upload_name(const struct store *s, const char *path)
{
    size_t n = strlen(s->dir);
    static const char mid[] = "/incoming/";
    if (strncmp(path, s->dir, n) || strncmp(path + n, mid, sizeof mid - 1))
        return NULL;
    const char *name = path + n + sizeof mid - 1;
    return strlen(name) == UPLOAD_DIGITS && strspn(name, "0123456789abcdef") == UPLOAD_DIGITS ? name : NULL;
}

void store_unstage(struct store *s, const char *path)
{
    const char *name = path ? upload_name(s, path) : NULL;
    if (name)
        store_calls.unlinkat(s->incoming_fd, name, 0);
}

/* ---- contents ---- */

static void content_name(const struct hash *h, char out[CONTENT_NAME])
{
    hash_hex(h, out);
    strcpy(out + HASH_HEX - 1, ".pet");
}

/* Is name HASH.pet? Only the spelling that content_name gives. */
static bool content_hash(const char *name, struct hash *h)
{
    char hex[HASH_HEX], again[CONTENT_NAME];
    if (strlen(name) != CONTENT_NAME - 1)
        return false;
    memcpy(hex, name, HASH_HEX - 1);
    hex[HASH_HEX - 1] = 0;
    if (hash_parse(hex, h))
        return false;
    content_name(h, again);
    return !strcmp(name, again);
}

int store_take(struct store *s, const char *path, const struct hash *h, struct err *e)
{
    char to[CONTENT_NAME];
    const char *name = upload_name(s, path);
    if (!name)
        return err_set(e, -EINVAL, "%s: is no upload of this registry", path);
    content_name(h, to);
    int r = store_calls.renameat(s->incoming_fd, name, s->modules_fd, to) ? -errno : 0;
    if (!r)
        r = sync_fd(s, s->modules_fd);
    return r ? err_set(e, r, "%s/modules/%s: cannot write: %s", s->dir, to, strerror(-r)) : 0;
}

bool store_has(const struct store *s, const struct hash *h)
{
    struct stat st;
    char name[CONTENT_NAME];
    content_name(h, name);
    return !fstatat(s->modules_fd, name, &st, 0) && S_ISREG(st.st_mode);
}

int store_remove(struct store *s, const struct hash *h, struct err *e)
{
    char name[CONTENT_NAME];
    content_name(h, name);
    if (!store_calls.unlinkat(s->modules_fd, name, 0) || errno == ENOENT)
        return 0;
    return err_set(e, -errno, "%s/modules/%s: cannot remove: %s", s->dir, name, strerror(errno));
}

char *store_path(const struct store *s, const struct hash *h)
{
    char name[CONTENT_NAME], *path = NULL;
    content_name(h, name);
    return asprintf(&path, "%s/modules/%s", s->dir, name) < 0 ? NULL : path;
}

/* ---- all files ---- */

static int see_content(void *ctx, int dir_fd, const char *name)
{
    struct hash h;
    (void)dir_fd;
    *(bool *)ctx |= content_hash(name, &h);
    return 0;
}

int store_any(struct store *s, bool *any, struct err *e)
{
    bool seen = false;
    int r = each_entry(s->modules_fd, see_content, &seen);
    if (r)
        return fail(s, e, r, "read", "modules");
    *any = seen;
    return 0;
}

struct sweep {
    bool (*keep)(void *ctx, const struct hash *h);
    void *ctx;
};

static int sweep_content(void *ctx, int dir_fd, const char *name)
{
    struct sweep *w = ctx;
    struct hash h;
    if (content_hash(name, &h) && !w->keep(w->ctx, &h) && store_calls.unlinkat(dir_fd, name, 0))
        return -errno;
    return 0;
}

static int sweep_upload(void *ctx, int dir_fd, const char *name)
{
    (void)ctx;
    return store_calls.unlinkat(dir_fd, name, 0) ? -errno : 0;
}

int store_sweep(struct store *s, bool (*keep)(void *ctx, const struct hash *h), void *ctx, struct err *e)
{
    struct sweep w = {keep, ctx};
    int r = each_entry(s->incoming_fd, sweep_upload, NULL);
    if (r)
        return fail(s, e, r, "remove uploads in", "incoming");
    r = each_entry(s->modules_fd, sweep_content, &w);
    return r ? fail(s, e, r, "remove contents in", "modules") : 0;
}
