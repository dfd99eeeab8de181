/* admin.h - admin calls that write: one operation each, in stages on the worker pool and on the loop.
 *
 * Loop thread, except a stage's work. First a check (parse, read, validate, stage the upload), several at once; then a
 * commit, one at a time: `prepare` on the loop looks at the tables and makes what is to go into them, `work` on a
 * worker writes the registry durably, `after` on the loop puts it into the tables and answers. Since the tables change
 * in commits alone, what prepare saw still holds in after, and memory and registry say the same.
 *
 * A client may leave: r is NULL then, and the operation runs to its end.
 */
#ifndef CPET_SERVER_ADMIN_H
#define CPET_SERVER_ADMIN_H

#include "common/arena.h"
#include "server/admin_body.h"
#include "server/background.h"
#include "server/registry.h"
#include "server/server.h"

struct admin_op {
    struct server *sv;
    struct http_req *r;
    struct admin_op *next;
    struct admin_queue *q; /* that it is in */
    uv_work_t uv;          /* where it runs: one of these two */
    struct background_job job;
    int (*prepare)(struct admin_op *op, struct err *e); /* NULL: nothing to do */
    int (*work)(struct admin_op *op, struct err *e);    /* rc holds what prepare said */
    void (*after)(struct admin_op *op);
    int rc;
    struct err err;

    struct arena *a;
    char *body;
    size_t n_body, counted; /* counted: of admin.body_bytes */
    const char *name;       /* the module's, the task's */
    bool json;              /* the body is JSON, not a .pet */
    bool dry_run, drain;
    bool lora, load_inplace; /* a load_lora_adapter */
    bool task_gone;          /* an unload has deleted the task's row */

    /* a module */
    const char *path, *tenant; /* NULL: none, everybody's */
    bool pinned, was_there;
    uint32_t tenant_number;
    struct pet_info info;
    size_t need;
    char *staged;
    struct module *m;
    struct module_name *entry; /* to become m's name */

    /* a task */
    struct admin_ref *ref;
    uint32_t n_refs;
    struct task_settings *settings;
    bool roll_back, created;
    struct hash version;
    struct task_version *v; /* to become current */
    const struct registry_task *row;
    const struct registry_module *back; /* what the name stood for, to be put back */
    const struct hash *kept;
    size_t n_kept;
};

struct admin_queue {
    struct admin_op *first, *last;
    unsigned running, limit;
    bool slow; /* on the background threads */
};

struct admin {
    struct admin_queue check, parse, commit; /* of modules, of other bodies; of all that write */
    size_t body_bytes;                       /* of uploads that operations hold */
    unsigned n_ops;
    uv_timer_t collect;
    bool collect_open, stopping;
};

/* An operation for r, with name copied and, where take_body is set, r's body. NULL: r has its answer. */
struct admin_op *admin_op_new(struct server *sv, struct http_req *r, const char *name, bool take_body);
/* Frees op and what it made that went nowhere. */
void admin_op_free(struct admin_op *op);
/* Waits for a place in q, then: prepare here, work on a worker, after here. */
void admin_run(struct admin_op *op, struct admin_queue *q, int (*prepare)(struct admin_op *, struct err *),
               int (*work)(struct admin_op *, struct err *), void (*after)(struct admin_op *));
/* From `after`: another round without giving up the place. */
void admin_again(struct admin_op *op, int (*prepare)(struct admin_op *, struct err *),
                 int (*work)(struct admin_op *, struct err *), void (*after)(struct admin_op *));
/* The answer, and the end of op: an error when op->rc says so, else status with b (may be NULL), which is freed. */
void admin_answer(struct admin_op *op, int status, const char *type, struct buf *b);
/* Contents may have become nobody's: looked after soon. */
void admin_collect(struct server *sv);

/* admin_path.c, worker. path under one of the roots, symbolic links followed, and all files of a PEFT directory too;
 * a relative path is looked for under each root. *out is malloc'ed. -EPERM outside, or not there: which is not told. */
int admin_resolve(const struct options *o, const char *path, char **out, struct err *e);

/* admin_module.c: the check of a module, worker: op->body or op->path -> info, need, staged. */
int admin_module_work(struct admin_op *op, struct err *e);
/* Parts of a commit: loop, worker, loop. */
int admin_module_prepare(struct admin_op *op, struct err *e);
int admin_module_write(struct admin_op *op, struct err *e);
void admin_module_apply(struct admin_op *op);
/* What the registry keeps of a module; its strings are those given. */
struct registry_module admin_module_row(const char *name, const char *tenant, const struct pet_info *i, bool pinned,
                                        int64_t created);
void admin_put_module(struct server *sv, struct http_req *r, const char *name);
void admin_delete_module(struct server *sv, struct http_req *r, const char *name);
/* admin_task.c */
int admin_task_prepare(struct admin_op *op, struct err *e);
int admin_task_write(struct admin_op *op, struct err *e);
void admin_put_task(struct server *sv, struct http_req *r, const char *id);
void admin_get_task(struct server *sv, struct http_req *r, const char *id);
void admin_delete_task(struct server *sv, struct http_req *r, const char *id);
/* admin_lora.c: vLLM's two calls. */
void admin_load_lora(struct server *sv, struct http_req *r);
void admin_unload_lora(struct server *sv, struct http_req *r);
/* api_admin.c: one entry as JSON. */
void admin_show_module(const struct server *sv, struct buf *b, const struct module_name *n);
void admin_show_task(const struct server *sv, struct buf *b, const struct task_version *v, const struct hash *kept,
                     size_t n_kept);

#endif
