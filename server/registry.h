/* registry.h - the durable registry: which modules and tasks there are, and the modules' contents.
 *
 * DIR/registry.db (SQLite) has the rows, DIR/modules/HASH.pet the contents, DIR/incoming/ the uploads that are not
 * taken yet, DIR/lock the lock. A write that returned 0 survives kill -9 and loss of power; one that failed left the
 * registry as it was, and the next may succeed. What was deleted does not come back: its row goes first, durably, then
 * its file.
 *
 * Synchronous, and one thread at a time, whichever it is; registry_stage, registry_unstage and registry_module_path may
 * be called by any thread at any time. Every string is copied. Outputs are untouched on failure.
 *
 * Errors everywhere: -ENOSPC (disk full), -EIO (reading, writing or fsync failed), -EBUSY (another program has locked
 * registry.db for longer than REGISTRY_BUSY_MS), -EBADMSG (registry.db is damaged), -ENOMEM. -EINVAL names the field in
 * err.param where a value may not be stored.
 */
#ifndef CPET_SERVER_REGISTRY_H
#define CPET_SERVER_REGISTRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/arena.h"
#include "common/err.h"
#include "common/hash.h"

#define REGISTRY_SCHEMA 1           /* user_version of the database that this program reads and writes */
#define REGISTRY_VERSIONS 16        /* versions of a task that are kept, the current one among them */
#define REGISTRY_NAME_MAX 256       /* bytes of a name, an ID, a tenant, a kind */
#define REGISTRY_BASE_MAX 1024      /* bytes of a base model's name */
#define REGISTRY_TEXT_MAX (1 << 20) /* bytes of defaults, of a template */
#define REGISTRY_REFS_MAX 64        /* modules of a task */
#define REGISTRY_MODULES_MAX 65536
#define REGISTRY_TASKS_MAX 65536
#define REGISTRY_BUSY_MS 2000

struct registry;

struct registry_module {
    const char *name;   /* unique; NUL-terminated UTF-8, 1 to REGISTRY_NAME_MAX bytes */
    const char *tenant; /* NULL: everybody's */
    struct hash hash;   /* content hash of the module: its version */
    const char *kind;   /* "lora", ... */
    const char *base;   /* the base model it names; "" (or NULL): none */
    uint64_t bytes;     /* of its tensors, as stored */
    uint32_t rank, sites;
    bool verified, pinned;
    int64_t created; /* seconds since 1970 */
};

/* A module of a task: content, and the name that it had. The name need not be there any more. */
struct registry_ref {
    const char *name;
    struct hash hash;
    float weight; /* finite */
};

struct registry_task {
    const char *id, *tenant; /* tenant NULL: everybody's */
    struct hash version;     /* of modules, weights, template and defaults, as the caller computes it */
    const struct registry_ref *ref;
    uint32_t n_refs;
    const char *defaults, *template_text; /* JSON text, Jinja text; NULL: none */
    int64_t created, updated;             /* seconds since 1970 */
};

/* Opens, or makes, DIR (0700; files 0600) and takes its lock: -EBUSY when another process has it. Removes half-written
 * uploads and contents that nothing names. Refused, with nothing changed: a database of a newer schema (-ENOTSUP), a
 * damaged one or one of another program (-EBADMSG), and a DIR that holds contents and has lost its database (-EBADMSG).
 * dir NULL: a private directory under TMPDIR (or /tmp), never fsynced, that registry_close removes. */
int registry_open(const char *dir, struct registry **out, struct err *e);
void registry_close(struct registry *r); /* takes NULL */

/* ---- modules ---- */

/* Writes the bytes of a .pet to a new file in DIR/incoming/ and fsyncs it. *path is malloc'ed; give it to
 * registry_put_module, or to registry_unstage. Any thread. */
int registry_stage(struct registry *r, const void *data, size_t n, char **path, struct err *e);
/* Removes a staged file. Takes NULL, and a path that is gone (registry_put_module took it); others it leaves alone. */
void registry_unstage(struct registry *r, const char *path);

/* Adds the module m->name or replaces it whole. staged: a path of registry_stage, renamed to DIR/modules/HASH.pet (over
 * a file of the same content), the directory fsynced, then the row committed. staged NULL: that content is there
 * already (registry_has_content), else -ENOENT. *was_there (may be NULL): the same name with the same hash existed. The
 * content that a name had before stays until registry_collect. After a failure the staged file may be there still:
 * registry_unstage it. -E2BIG: too many modules. */
int registry_put_module(struct registry *r, const struct registry_module *m, const char *staged, bool *was_there,
                        struct err *e);
/* Removes the name; the content stays until registry_collect, and longer where a task's version names it. -ENOENT. */
int registry_delete_module(struct registry *r, const char *name, struct err *e);

/* DIR/modules/HASH.pet, whether it is there or not; malloc'ed, NULL when memory is out. Any thread. */
char *registry_module_path(const struct registry *r, const struct hash *h);
/* Is that content in the registry, and its file there? */
bool registry_has_content(const struct registry *r, const struct hash *h);
/* Removes all contents that neither a module nor a task's version (old ones that are kept included) names. Rows first,
 * then files; a file that could not be removed is an error, but its content is gone from the registry. */
int registry_collect(struct registry *r, struct err *e);
/* The same for one content. -EEXIST when something names it; 0 when it is not there. */
int registry_collect_one(struct registry *r, const struct hash *h, struct err *e);

/* ---- tasks ---- */

/* Adds a task or points it to another version, which becomes the newest of the last REGISTRY_VERSIONS that are kept (a
 * version that was there moves to the front: so a roll-back is a put of an old version). All contents must be there:
 * -ENOENT. *created (may be NULL): the task is new; an old one keeps the `created` it had. -E2BIG: too many tasks. */
int registry_put_task(struct registry *r, const struct registry_task *t, bool *created, struct err *e);
/* Removes a task with all its versions. -ENOENT. */
int registry_delete_task(struct registry *r, const char *id, struct err *e);
/* A kept version of a task, the current one too: -ENOENT. *out lives in the arena; tenant and times are the task's. */
int registry_task_version(struct registry *r, const char *id, const struct hash *version, struct arena *a,
                          const struct registry_task **out, struct err *e);
/* The hashes of the kept versions, newest (the current one) first. -ENOENT: no such task. In the arena. */
int registry_task_versions(struct registry *r, const char *id, struct arena *a, const struct hash **v, size_t *n,
                           struct err *e);

/* Everything, for start: modules by name, tasks in the order of their making. In the arena; -ENOMEM when it is full. */
int registry_load(struct registry *r, struct arena *a, const struct registry_module **m, size_t *n_m,
                  const struct registry_task **t, size_t *n_t, struct err *e);

#endif
