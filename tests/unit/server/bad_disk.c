/* bad_disk.c - a disk that fails when it is told to. One thread; all state is static.
 *
 * The VFS hands every call to the default VFS, but counts those that change something. A failed write writes half of
 * its bytes, as a full disk may.
 */
#include "tests/unit/server/bad_disk.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/store.h"
#include "tests/unit/server/power_loss.h"

static int left, kinds_armed, error_armed, fired;
static bool armed, forever_armed;
static struct buf *trace;
static void (*before)(void);

/* Does this call fail? errno is set then. */
static bool hit(int kind, char letter)
{
    if (trace)
        buf_append(trace, &letter, 1);
    if (before)
        before();
    if (!armed || !(kinds_armed & kind))
        return false;
    if (left > 1) {
        left--;
        return false;
    }
    armed = forever_armed;
    fired++;
    errno = error_armed;
    return true;
}

void bad_disk_arm(int n, int kinds, int error, bool forever)
{
    left = n;
    kinds_armed = kinds;
    error_armed = error;
    forever_armed = forever;
    armed = true;
    fired = 0;
}

int bad_disk_disarm(void)
{
    armed = false;
    return fired;
}

void bad_disk_trace(struct buf *to)
{
    trace = to;
}

void bad_disk_before(void (*f)(void))
{
    before = f;
}

/* ---- for the model of a loss of power: which file is it? NULL: none that it knows. ---- */

static const char *name_at(int dir, const char *name)
{
    static char path[2][4400];
    static int at;
    char link[64];
    if (!power_on())
        return NULL;
    at = !at;
    snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
    ssize_t n = readlink(link, path[at], 4096);
    if (n < 0)
        return NULL;
    snprintf(path[at] + n, sizeof path[at] - (size_t)n, "%s%s", *name ? "/" : "", name);
    return power_name(path[at]);
}

static const char *name_of_fd(int fd)
{
    return name_at(fd, "");
}

/* ---- store.c's calls ---- */

static struct store_calls real;

static int bad_openat(int dir, const char *name, int flags, mode_t mode)
{
    if (flags & O_CREAT && hit(BAD_OTHER, 'o'))
        return -1;
    const char *who = flags & O_CREAT ? name_at(dir, name) : NULL;
    int fd = real.openat(dir, name, flags, mode);
    if (fd >= 0 && who)
        power_create(who);
    return fd;
}

static ssize_t bad_write(int fd, const void *p, size_t n)
{
    if (!hit(BAD_OTHER, 'w')) {
        const char *who = name_of_fd(fd);
        off_t at = lseek(fd, 0, SEEK_CUR);
        ssize_t k = real.write(fd, p, n);
        if (who && k > 0)
            power_write(who, p, (size_t)k, (size_t)at);
        return k;
    }
    int e = errno;
    if (real.write(fd, p, n / 2) < 0)
        abort();
    errno = e;
    return -1;
}

static int bad_fsync(int fd)
{
    struct stat st;
    bool is_dir = !fstat(fd, &st) && S_ISDIR(st.st_mode);
    if (hit(BAD_SYNC, is_dir ? 'd' : 's'))
        return -1;
    const char *who = name_of_fd(fd);
    if (who && is_dir)
        power_sync_dir(who);
    else if (who)
        power_sync(who);
    return real.fsync(fd);
}

static int bad_renameat(int from_dir, const char *from, int to_dir, const char *to)
{
    if (hit(BAD_OTHER, 'r'))
        return -1;
    const char *who = name_at(from_dir, from), *whom = name_at(to_dir, to);
    int r = real.renameat(from_dir, from, to_dir, to);
    if (!r && who && whom)
        power_rename(who, whom);
    return r;
}

static int bad_unlinkat(int dir, const char *name, int flags)
{
    if (hit(BAD_OTHER, 'u'))
        return -1;
    const char *who = name_at(dir, name);
    int r = real.unlinkat(dir, name, flags);
    if (!r && who)
        power_unlink(who);
    return r;
}

/* ---- SQLite's ---- */

struct bad_file {
    sqlite3_file base;
    bool journal;
    const char *path;   /* SQLite keeps it as long as the file */
    sqlite3_file *real; /* behind this struct */
};

static sqlite3_vfs vfs, *under;

static sqlite3_file *below(sqlite3_file *f)
{
    return ((struct bad_file *)f)->real;
}

static bool hit_file(sqlite3_file *f, int kind, const char *letters)
{
    return hit(kind, letters[((struct bad_file *)f)->journal]);
}

static const char *name_of_file(sqlite3_file *f)
{
    const char *path = ((struct bad_file *)f)->path;
    return power_on() && path ? power_name(path) : NULL;
}

static int bad_close(sqlite3_file *f)
{
    return below(f)->pMethods->xClose(below(f));
}

static int bad_read(sqlite3_file *f, void *p, int n, sqlite3_int64 at)
{
    return below(f)->pMethods->xRead(below(f), p, n, at);
}

static int bad_file_write(sqlite3_file *f, const void *p, int n, sqlite3_int64 at)
{
    if (!hit_file(f, BAD_OTHER, "WJ")) {
        const char *who = name_of_file(f);
        if (who)
            power_write(who, p, (size_t)n, (size_t)at);
        return below(f)->pMethods->xWrite(below(f), p, n, at);
    }
    below(f)->pMethods->xWrite(below(f), p, n / 2, at);
    return error_armed == ENOSPC ? SQLITE_FULL : SQLITE_IOERR_WRITE;
}

static int bad_truncate(sqlite3_file *f, sqlite3_int64 n)
{
    if (hit_file(f, BAD_OTHER, "TL"))
        return SQLITE_IOERR_TRUNCATE;
    const char *who = name_of_file(f);
    if (who)
        power_truncate(who, (size_t)n);
    return below(f)->pMethods->xTruncate(below(f), n);
}

static int bad_sync(sqlite3_file *f, int flags)
{
    if (hit_file(f, BAD_SYNC, "SK"))
        return SQLITE_IOERR_FSYNC;
    const char *who = name_of_file(f);
    if (who) {
        power_sync(who);
        power_sync_dir(""); /* SQLite does so with the first sync of a journal that it made */
    }
    return below(f)->pMethods->xSync(below(f), flags);
}

static int bad_size(sqlite3_file *f, sqlite3_int64 *n)
{
    return below(f)->pMethods->xFileSize(below(f), n);
}

static int bad_lock(sqlite3_file *f, int how)
{
    return below(f)->pMethods->xLock(below(f), how);
}

static int bad_unlock(sqlite3_file *f, int how)
{
    return below(f)->pMethods->xUnlock(below(f), how);
}

static int bad_reserved(sqlite3_file *f, int *out)
{
    return below(f)->pMethods->xCheckReservedLock(below(f), out);
}

static int bad_control(sqlite3_file *f, int op, void *arg)
{
    return below(f)->pMethods->xFileControl(below(f), op, arg);
}

static int bad_sector(sqlite3_file *f)
{
    return below(f)->pMethods->xSectorSize(below(f));
}

static int bad_device(sqlite3_file *f)
{
    return below(f)->pMethods->xDeviceCharacteristics(below(f));
}

static const sqlite3_io_methods methods = {
    .iVersion = 1,
    .xClose = bad_close,
    .xRead = bad_read,
    .xWrite = bad_file_write,
    .xTruncate = bad_truncate,
    .xSync = bad_sync,
    .xFileSize = bad_size,
    .xLock = bad_lock,
    .xUnlock = bad_unlock,
    .xCheckReservedLock = bad_reserved,
    .xFileControl = bad_control,
    .xSectorSize = bad_sector,
    .xDeviceCharacteristics = bad_device,
};

static int bad_open(sqlite3_vfs *v, const char *name, sqlite3_file *f, int flags, int *out_flags)
{
    struct bad_file *b = (struct bad_file *)f;
    (void)v;
    b->base.pMethods = NULL;
    b->journal = (flags & SQLITE_OPEN_MAIN_JOURNAL) != 0;
    b->real = (sqlite3_file *)(b + 1);
    if (b->journal && hit(BAD_OTHER, 'J'))
        return SQLITE_CANTOPEN;
    b->path = name;
    int rc = under->xOpen(under, name, b->real, flags, out_flags);
    if (!rc && name_of_file(f))
        power_create(name_of_file(f));
    if (b->real->pMethods)
        b->base.pMethods = &methods;
    return rc;
}

static int bad_delete(sqlite3_vfs *v, const char *name, int sync_dir)
{
    (void)v;
    if (hit(BAD_OTHER, 'L'))
        return SQLITE_IOERR_DELETE;
    if (power_on() && power_name(name))
        power_unlink(power_name(name));
    return under->xDelete(under, name, sync_dir);
}

void bad_disk_install(void)
{
    real = store_calls;
    store_calls.openat = bad_openat;
    store_calls.write = bad_write;
    store_calls.fsync = bad_fsync;
    store_calls.renameat = bad_renameat;
    store_calls.unlinkat = bad_unlinkat;
    under = sqlite3_vfs_find(NULL);
    vfs = *under;
    vfs.zName = "bad-disk";
    vfs.szOsFile = (int)sizeof(struct bad_file) + under->szOsFile;
    vfs.xOpen = bad_open;
    vfs.xDelete = bad_delete;
    if (sqlite3_vfs_register(&vfs, 1))
        abort();
}
