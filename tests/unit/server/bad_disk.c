/* bad_disk.c - a disk that fails when it is told to. One thread; all state is static.
 *
 * The VFS hands every call to the default VFS, but counts those that change something. A failed write writes half of
 * its bytes, as a full disk may.
 */
#include "tests/unit/server/bad_disk.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/store.h"

static int left, kinds_armed, error_armed, fired;
static bool armed, forever_armed;
static struct buf *trace;

/* Does this call fail? errno is set then. */
static bool hit(int kind, char letter)
{
    if (trace)
        buf_append(trace, &letter, 1);
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

/* ---- store.c's calls ---- */

static struct store_calls real;

static int bad_openat(int dir, const char *name, int flags, mode_t mode)
{
    if (flags & O_CREAT && hit(BAD_OTHER, 'o'))
        return -1;
    return real.openat(dir, name, flags, mode);
}

static ssize_t bad_write(int fd, const void *p, size_t n)
{
    if (!hit(BAD_OTHER, 'w'))
        return real.write(fd, p, n);
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
    return hit(BAD_SYNC, is_dir ? 'd' : 's') ? -1 : real.fsync(fd);
}

static int bad_renameat(int from_dir, const char *from, int to_dir, const char *to)
{
    return hit(BAD_OTHER, 'r') ? -1 : real.renameat(from_dir, from, to_dir, to);
}

static int bad_unlinkat(int dir, const char *name, int flags)
{
    return hit(BAD_OTHER, 'u') ? -1 : real.unlinkat(dir, name, flags);
}

/* ---- SQLite's ---- */

struct bad_file {
    sqlite3_file base;
    bool journal;
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
    if (!hit_file(f, BAD_OTHER, "WJ"))
        return below(f)->pMethods->xWrite(below(f), p, n, at);
    below(f)->pMethods->xWrite(below(f), p, n / 2, at);
    return error_armed == ENOSPC ? SQLITE_FULL : SQLITE_IOERR_WRITE;
}

static int bad_truncate(sqlite3_file *f, sqlite3_int64 n)
{
    return hit_file(f, BAD_OTHER, "TL") ? SQLITE_IOERR_TRUNCATE : below(f)->pMethods->xTruncate(below(f), n);
}

static int bad_sync(sqlite3_file *f, int flags)
{
    return hit_file(f, BAD_SYNC, "SK") ? SQLITE_IOERR_FSYNC : below(f)->pMethods->xSync(below(f), flags);
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
    int rc = under->xOpen(under, name, b->real, flags, out_flags);
    if (b->real->pMethods)
        b->base.pMethods = &methods;
    return rc;
}

static int bad_delete(sqlite3_vfs *v, const char *name, int sync_dir)
{
    (void)v;
    return hit(BAD_OTHER, 'L') ? SQLITE_IOERR_DELETE : under->xDelete(under, name, sync_dir);
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
