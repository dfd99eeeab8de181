/* admin_task.c - PUT, GET and DELETE of one task.
 *
 * A PUT is parsed on a worker (fields, template, defaults). In the commit, `prepare` finds the modules that it names as
 * the tables have them then, and makes the new version; a worker writes it durably; then it becomes current in one
 * assignment. Requests that run keep the version that they began with.
 *
 * {"version": HASH} alone goes back to a version that the registry keeps: a commit of two rounds, the first of which
 * reads it. Its modules are taken by content; a name that stands for another content today, or for none, is left out
 * of it, so that what is registered under the name later does not matter.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "server/admin.h"

/* ---- parse (worker) ---- */

static int parse_work(struct admin_op *op, struct err *e)
{
    struct admin_task_body b = {0};
    int rc = task_check_id(op->name, e);
    if (!rc)
        rc = admin_body_task(op->body ? op->body : "", op->n_body, op->sv->mi->max_pets, op->a, &b, e);
    if (!rc && !b.roll_back)
        rc = task_settings_make(b.template_text, b.defaults_json, &op->settings, e);
    op->roll_back = b.roll_back;
    op->version = b.version;
    op->ref = b.ref;
    op->n_refs = b.n_refs;
    op->tenant = b.tenant;
    free(op->body);
    op->body = NULL;
    return rc;
}

/* ---- commit ---- */

static bool tenant_may(const struct module_name *n, uint32_t tenant)
{
    return n->tenant == TASK_EVERYBODY || n->tenant == tenant;
}

/* A content that has names may be used where one of them may. */
static bool content_may(const struct modules *t, const struct module *m, uint32_t tenant)
{
    bool named = false;
    for (size_t i = 0; i < t->name.n; i++) {
        const struct module_name *n = table_at(&t->name, i);
        if (n->m != m || n->draining)
            continue;
        named = true;
        if (tenant_may(n, tenant))
            return true;
    }
    return !named;
}

/* The content that a task's entry stands for, with a reference; NULL with the error. */
static struct module *find_module(struct admin_op *op, const struct admin_ref *ref, uint32_t tenant, struct err *e)
{
    struct modules *t = op->sv->modules;
    if (!ref->by_hash) {
        const struct module_name *n = module_named(t, ref->name);
        if (!n) {
            err_param(e, -ENOENT, "modules", "there is no module \"%s\"", ref->name);
        } else if (n->fixed) {
            err_param(e, -EINVAL, "modules",
                      "the module \"%s\" is of the command line; register it to use it in a task", ref->name);
        } else if (!tenant_may(n, tenant)) {
            err_param(e, -EPERM, "modules", "the module \"%s\" is another tenant's", ref->name);
        } else {
            module_ref(n->m);
            return n->m;
        }
        return NULL;
    }
    struct module *m = module_find(t, &ref->hash);
    if (m && !op->lora && !content_may(t, m, tenant)) {
        err_param(e, -EPERM, "modules", "the module with the content %s is another tenant's", ref->name);
        return NULL;
    }
    struct pet_info info = {.hash = ref->hash};
    char *path = registry_module_path(op->sv->registry, &ref->hash);
    m = path ? module_get(t, &info, path) : NULL;
    free(path);
    if (!m)
        err_set(e, -ENOMEM, "the server is out of memory");
    return m;
}

static int check_size(const struct admin_op *op, const struct task_ref *ref, struct err *e)
{
    size_t sum = 0, budget = resident_budget(op->sv->resident);
    for (uint32_t i = 0; i < op->n_refs; i++) {
        bool before = false;
        for (uint32_t k = 0; k < i; k++)
            before |= ref[k].module == ref[i].module;
        if (before)
            continue;
        size_t need = ref[i].module->res.need;
        if (need > budget || sum > budget - need)
            return err_param(e, -E2BIG, "modules", "the modules together do not fit into --pet-bytes (%zu)", budget);
        sum += need;
    }
    return 0;
}

/* Makes op->v of op->ref and op->settings; and the row for the registry. */
static int make_version(struct admin_op *op, struct err *e)
{
    struct server *sv = op->sv;
    const struct task_version *old = tasks_find(sv->tasks, op->name);
    struct task_ref *ref = arena_calloc(op->a, op->n_refs + 1u, sizeof *ref);
    uint32_t tenant = op->tenant ? keys_tenant_named(sv->keys, op->tenant) : TASK_EVERYBODY, n = 0;
    int rc = 0;
    if (!ref || (op->tenant && tenant == KEYS_NO_TENANT) || tasks_reserve(sv->tasks))
        return err_set(e, -ENOMEM, "the server is out of memory");
    for (; !rc && n < op->n_refs; n++) {
        ref[n] = (struct task_ref){find_module(op, &op->ref[n], tenant, e), op->ref[n].name, op->ref[n].weight};
        if (!ref[n].module)
            rc = e->code;
    }
    if (!rc)
        rc = check_size(op, ref, e);
    struct task_spec s = {.id = op->name,
                          .tenant = tenant,
                          .ref = ref,
                          .n_refs = op->n_refs,
                          .created = old ? old->created : 0,
                          .settings = op->settings};
    if (!rc && !(rc = task_make(&s, &op->v, e)))
        op->settings = NULL;
    for (uint32_t i = 0; i < n; i++)
        module_unref(ref[i].module);
    return rc;
}

int admin_task_prepare(struct admin_op *op, struct err *e)
{
    const struct task_version *old = tasks_find(op->sv->tasks, op->name);
    if (old && old->fixed)
        return err_param(e, -EEXIST, "id", "the task \"%s\" is %s and cannot be replaced", op->name,
                         old->backbone ? "the backbone" : "of the command line");
    op->created = !old;
    return make_version(op, e);
}

int admin_task_write(struct admin_op *op, struct err *e)
{
    if (op->rc)
        return op->rc;
    const struct task_version *v = op->v;
    struct registry_ref *ref = arena_calloc(op->a, v->n_pets + 1u, sizeof *ref);
    if (!ref)
        return err_set(e, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < v->n_pets; i++)
        ref[i] = (struct registry_ref){v->module_name[i], op->v->module[i]->info.hash, v->pet[i].weight};
    struct registry_task row = {.id = v->id,
                                .tenant = op->tenant,
                                .version = v->hash,
                                .ref = ref,
                                .n_refs = v->n_pets,
                                .defaults = v->settings ? v->settings->defaults_json : NULL,
                                .template_text = v->settings ? v->settings->template_text : NULL,
                                .created = v->created,
                                .updated = v->updated};
    return registry_put_task(op->sv->registry, &row, NULL, e);
}

static void put_done(struct admin_op *op)
{
    struct buf b = {0};
    struct server *sv = op->sv;
    if (op->rc) {
        admin_answer(op, 0, NULL, NULL);
        return;
    }
    bool created = op->created;
    struct task_version *v = op->v;
    op->v = NULL;
    tasks_set(sv->tasks, v);
    admin_show_task(sv, &b, v, NULL, 0);
    admin_collect(sv);
    admin_answer(op, created ? 201 : 200, "application/json", &b);
}

/* ---- back to a kept version ---- */

static int kept_prepare(struct admin_op *op, struct err *e)
{
    const struct task_version *old = tasks_find(op->sv->tasks, op->name);
    if (!old)
        return err_param(e, -ENOENT, "id", "there is no task \"%s\"", op->name);
    if (old->fixed)
        return err_param(e, -EEXIST, "id", "the task \"%s\" is %s and cannot be replaced", op->name,
                         old->backbone ? "the backbone" : "of the command line");
    return 0;
}

static int kept_work(struct admin_op *op, struct err *e)
{
    if (op->rc)
        return op->rc;
    int rc = registry_task_version(op->sv->registry, op->name, &op->version, op->a, &op->row, e);
    if (rc == -ENOENT)
        return err_param(e, rc, "version", "the task \"%s\" has no such version", op->name);
    return rc ? rc : task_settings_make(op->row->template_text, op->row->defaults, &op->settings, e);
}

static int kept_again(struct admin_op *op, struct err *e)
{
    const struct registry_task *row = op->row;
    op->tenant = row->tenant;
    op->n_refs = row->n_refs;
    op->ref = arena_calloc(op->a, row->n_refs + 1u, sizeof *op->ref);
    for (uint32_t i = 0; op->ref && i < row->n_refs; i++) {
        const struct module_name *n = module_named(op->sv->modules, row->ref[i].name);
        struct admin_ref *ref = &op->ref[i];
        *ref = (struct admin_ref){.name = row->ref[i].name, .hash = row->ref[i].hash, .weight = row->ref[i].weight};
        if (n && hash_equal(&n->m->info.hash, &ref->hash))
            continue;
        char *hex = arena_alloc(op->a, HASH_HEX);
        ref->by_hash = true;
        ref->name = hex;
        if (!hex)
            return err_set(e, -ENOMEM, "out of memory");
        hash_hex(&ref->hash, hex);
    }
    return op->ref ? admin_task_prepare(op, e) : err_set(e, -ENOMEM, "out of memory");
}

static void kept_done(struct admin_op *op)
{
    if (op->rc)
        admin_answer(op, 0, NULL, NULL);
    else
        admin_again(op, kept_again, admin_task_write, put_done);
}

static void parsed(struct admin_op *op)
{
    struct admin_queue *q = &op->sv->ad->commit;
    if (op->rc)
        admin_answer(op, 0, NULL, NULL);
    else if (op->roll_back)
        admin_run(op, q, kept_prepare, kept_work, kept_done);
    else
        admin_run(op, q, admin_task_prepare, admin_task_write, put_done);
}

void admin_put_task(struct server *sv, struct http_req *r, const char *id)
{
    struct admin_op *op = admin_op_new(sv, r, id, true);
    if (op)
        admin_run(op, &sv->ad->parse, NULL, parse_work, parsed);
}

/* ---- one task ---- */

static int get_work(struct admin_op *op, struct err *e)
{
    int rc = registry_task_versions(op->sv->registry, op->name, op->a, &op->kept, &op->n_kept, e);
    return rc == -ENOENT ? 0 : rc; /* of the command line, or deleted meanwhile */
}

static void get_done(struct admin_op *op)
{
    const struct task_version *v = tasks_find(op->sv->tasks, op->name);
    struct buf b = {0};
    if (!op->rc && !v)
        op->rc = err_param(&op->err, -ENOENT, "id", "there is no task \"%s\"", op->name);
    buf_puts(&b, "{\"data\": [");
    if (!op->rc)
        admin_show_task(op->sv, &b, v, v->fixed ? &v->hash : op->kept, v->fixed ? 1 : op->n_kept);
    buf_puts(&b, "]}");
    admin_answer(op, 200, "application/json", &b);
}

void admin_get_task(struct server *sv, struct http_req *r, const char *id)
{
    struct admin_op *op = admin_op_new(sv, r, id, false);
    if (op)
        admin_run(op, &sv->ad->commit, NULL, get_work, get_done);
}

static int delete_prepare(struct admin_op *op, struct err *e)
{
    const struct task_version *v = tasks_find(op->sv->tasks, op->name);
    if (!v)
        return err_param(e, -ENOENT, "id", "there is no task \"%s\"", op->name);
    if (v->fixed)
        return err_param(e, -EBUSY, "id", "the task \"%s\" is %s and cannot be deleted", op->name,
                         v->backbone ? "the backbone" : "of the command line");
    return 0;
}

static int delete_work(struct admin_op *op, struct err *e)
{
    return op->rc ? op->rc : registry_delete_task(op->sv->registry, op->name, e);
}

static void delete_done(struct admin_op *op)
{
    if (!op->rc) {
        tasks_remove(op->sv->tasks, op->name);
        admin_collect(op->sv);
    }
    admin_answer(op, 204, NULL, NULL);
}

void admin_delete_task(struct server *sv, struct http_req *r, const char *id)
{
    struct admin_op *op = admin_op_new(sv, r, id, false);
    if (op)
        admin_run(op, &sv->ad->commit, delete_prepare, delete_work, delete_done);
}
