/* admin_lora.c - load_lora_adapter and unload_lora_adapter with vLLM's fields and answers.
 *
 * A load makes a module and a task of the same name, both in one commit: the module is checked as any other
 * (admin_module.c), and when the task's row cannot be written the module's goes again. With load_inplace an adapter
 * that is there is replaced, atomically for requests; without, it is refused as vLLM does. An unload removes both.
 */
#include <string.h>

#include "server/admin.h"
#include "server/log.h"

static int read_body(struct admin_op *op, bool unload, struct err *e)
{
    struct admin_lora_body b;
    int rc = admin_body_lora(op->body ? op->body : "", op->n_body, unload, op->a, &b, e);
    if (rc)
        return rc;
    op->name = b.name;
    op->path = b.path;
    op->load_inplace = b.load_inplace;
    return 0;
}

static int load_check(struct admin_op *op, struct err *e)
{
    int rc = read_body(op, false, e);
    if (!rc)
        rc = task_check_id(op->name, e);
    if (!rc)
        rc = admin_module_work(op, e);
    if (rc && !strcmp(e->param, "path"))
        memcpy(e->param, "lora_path", 10);
    if (rc && (!strcmp(e->param, "name") || !strcmp(e->param, "id")))
        memcpy(e->param, "lora_name", 10);
    return rc;
}

/* What the registry has under that name now. */
static int remember(struct admin_op *op)
{
    const struct module_name *n = module_named(op->sv->modules, op->name);
    struct registry_module *m = n ? arena_calloc(op->a, 1, sizeof *m) : NULL;
    if (!n)
        return 0;
    if (!m)
        return -ENOMEM;
    const char *tenant = n->tenant == TASK_EVERYBODY ? NULL : keys_tenant_name(op->sv->keys, n->tenant);
    *m = admin_module_row(op->name, tenant, &n->m->info, n->pinned, n->created);
    if (m->tenant)
        m->tenant = arena_strndup(op->a, m->tenant, strlen(m->tenant)); /* the table of tenants may move */
    op->back = m;
    return 0;
}

static int load_prepare(struct admin_op *op, struct err *e)
{
    struct server *sv = op->sv;
    bool there = tasks_find(sv->tasks, op->name) || module_named(sv->modules, op->name);
    if (there && !op->load_inplace)
        return err_param(e, -EINVAL, "lora_name",
                         "The lora adapter '%s' has already been loaded. If you want to load the adapter in place, set "
                         "'load_inplace' to True.",
                         op->name);
    int rc = admin_module_prepare(op, e);
    if (rc)
        return rc;
    /* the task names the content by its module's name, which this commit makes */
    op->ref = arena_calloc(op->a, 1, sizeof *op->ref);
    char *hex = arena_alloc(op->a, HASH_HEX);
    if (!op->ref || !hex || remember(op))
        return err_set(e, -ENOMEM, "out of memory");
    hash_hex(&op->info.hash, hex);
    *op->ref = (struct admin_ref){.name = hex, .hash = op->info.hash, .by_hash = true, .weight = 1};
    op->n_refs = 1;
    rc = admin_task_prepare(op, e);
    return rc ? rc : task_rename_ref(op->v, 0, op->name, e);
}

static int load_write(struct admin_op *op, struct err *e)
{
    int rc = admin_module_write(op, e);
    if (rc)
        return rc;
    rc = admin_task_write(op, e);
    struct err why;
    if (!rc)
        return 0;
    int back = op->back ? registry_put_module(op->sv->registry, op->back, NULL, NULL, &why)
                        : registry_delete_module(op->sv->registry, op->name, &why);
    if (back)
        log_line("error", "the module %s is registered without its task: %s", op->name, why.msg);
    return rc;
}

static void load_done(struct admin_op *op)
{
    struct buf b = {0};
    if (!op->rc) {
        struct task_version *v = op->v;
        op->v = NULL;
        admin_module_apply(op);
        tasks_set(op->sv->tasks, v);
        buf_printf(&b, "Success: LoRA adapter '%s' added successfully.", op->name);
    }
    admin_answer(op, 200, "text/plain; charset=utf-8", &b);
}

static void load_checked(struct admin_op *op)
{
    if (op->rc)
        admin_answer(op, 0, NULL, NULL);
    else
        admin_run(op, &op->sv->ad->commit, load_prepare, load_write, load_done);
}

void admin_load_lora(struct server *sv, struct http_req *r)
{
    struct admin_op *op = admin_op_new(sv, r, "", true);
    if (!op)
        return;
    op->json = op->lora = true;
    admin_run(op, &sv->ad->check, NULL, load_check, load_checked);
}

/* ---- unload ---- */

static int unload_read(struct admin_op *op, struct err *e)
{
    return read_body(op, true, e);
}

static int unload_prepare(struct admin_op *op, struct err *e)
{
    struct server *sv = op->sv;
    const struct task_version *v = tasks_find(sv->tasks, op->name);
    const struct module_name *n = module_named(sv->modules, op->name);
    if (!v || !v->n_pets)
        return err_param(e, v ? -EBUSY : -ENOENT, "lora_name", "The lora adapter '%s' cannot be found.", op->name);
    if (v->fixed)
        return err_param(e, -EBUSY, "lora_name", "the task \"%s\" is of the command line and cannot be unloaded",
                         op->name);
    op->was_there = n && !n->fixed; /* a module of that name goes, too */
    for (size_t i = 0; op->was_there && tasks_at(sv->tasks, i); i++) {
        const struct task_version *u = tasks_at(sv->tasks, i);
        for (uint32_t k = 0; u != v && k < u->n_pets; k++)
            if (!strcmp(u->module_name[k], op->name))
                return err_param(e, -EBUSY, "lora_name", "the task \"%s\" uses the module \"%s\", too", u->id,
                                 op->name);
    }
    return 0;
}

static int unload_write(struct admin_op *op, struct err *e)
{
    int rc = op->rc ? op->rc : registry_delete_task(op->sv->registry, op->name, e);
    op->task_gone = !rc;
    if (!rc && op->was_there)
        rc = registry_delete_module(op->sv->registry, op->name, e);
    return rc;
}

static void unload_done(struct admin_op *op)
{
    struct buf b = {0};
    if (op->task_gone)
        tasks_remove(op->sv->tasks, op->name);
    if (!op->rc) {
        if (op->was_there)
            module_drop_name(op->sv->modules, op->name);
        admin_collect(op->sv);
        buf_printf(&b, "Success: LoRA adapter '%s' removed successfully.", op->name);
    }
    admin_answer(op, 200, "text/plain; charset=utf-8", &b);
}

static void unload_parsed(struct admin_op *op)
{
    if (op->rc)
        admin_answer(op, 0, NULL, NULL);
    else
        admin_run(op, &op->sv->ad->commit, unload_prepare, unload_write, unload_done);
}

void admin_unload_lora(struct server *sv, struct http_req *r)
{
    struct admin_op *op = admin_op_new(sv, r, "", true);
    if (op)
        admin_run(op, &sv->ad->parse, NULL, unload_read, unload_parsed);
}
