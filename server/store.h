/* store.h - the registry's directory: its lock, staged uploads, contents by hash. Used by registry.c alone.
 *
 *     DIR/lock            held by flock
 *     DIR/registry.db     (registry.c)
 *     DIR/incoming/N      uploads that are not taken yet
 *     DIR/modules/HASH.pet
 *
 * Names are never taken from outside: a content's is its hash, an upload's a number, and a path that comes back is
 * compared with the form that store_stage gives. Directories are 0700, files 0600.
 */
#ifndef CPET_SERVER_STORE_H
#define CPET_SERVER_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "common/err.h"
#include "common/hash.h"

/* The system calls that may fail on a bad disk. A test puts its own here, before any store is open. */
struct store_calls {
    int (*openat)(int dir, const char *name, int flags, mode_t mode);
    ssize_t (*write)(int fd, const void *p, size_t n);
    int (*fsync)(int fd);
    int (*close)(int fd);
    int (*renameat)(int from_dir, const char *from, int to_dir, const char *to);
    int (*unlinkat)(int dir, const char *name, int flags);
};
extern struct store_calls store_calls;

struct store;

/* Makes what is missing and takes the lock (-EBUSY). dir NULL: a private directory, removed by store_close, where
 * nothing is fsynced. Nothing that is there is changed. */
int store_open(const char *dir, struct store **out, struct err *e);
void store_close(struct store *s); /* takes NULL */

const char *store_dir(const struct store *s); /* absolute; lives as long as s */
bool store_durable(const struct store *s);    /* false: the private directory */
/* Makes the entries of DIR itself durable, once the database is made. */
int store_sync(struct store *s, struct err *e);

/* Writes an upload and fsyncs it; on failure nothing is left. *path is malloc'ed. Any thread. */
int store_stage(struct store *s, const void *data, size_t n, char **path, struct err *e);
void store_unstage(struct store *s, const char *path); /* takes NULL, and what is not there */

/* Renames an upload to its content's name and fsyncs modules/. On failure the upload may be under either name.
 * -EINVAL: not a path of store_stage; -ENOENT: not there. */
int store_take(struct store *s, const char *path, const struct hash *h, struct err *e);
bool store_has(const struct store *s, const struct hash *h);
int store_remove(struct store *s, const struct hash *h, struct err *e); /* 0 too when it is not there */
char *store_path(const struct store *s, const struct hash *h);          /* malloc'ed */

/* Is there any content? */
int store_any(struct store *s, bool *any, struct err *e);
/* Removes all uploads, and the contents for which keep says no. Files of other names are left alone. */
int store_sweep(struct store *s, bool (*keep)(void *ctx, const struct hash *h), void *ctx, struct err *e);

#endif
