/* admin_module.c - PUT and DELETE of modules.
 *
 * The check of an upload runs on a worker (admin_module_work): the bytes, or the file or directory under a
 * --module-root, become a struct pet, are held to the backbone, and are loaded once and dropped again, so that nothing
 * is registered that a later load would refuse. What is to be kept is written to the registry's incoming folder there,
 * outside of the one commit at a time. The commit then makes it the content of its name, durably, and tells the tables.
 *
 * Tasks that use the name stay with the content that their version names. A name may not change hands to a tenant
 * while tasks of others use it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "server/admin.h"

/* ---- check (worker) ---- */

static int read_fields(struct admin_op *op, struct err *e)
{
    struct admin_module_body b = {.tenant = op->tenant, .pinned = op->pinned, .dry_run = op->dry_run};
    int rc = admin_body_module(op->body, op->n_body, op->a, &b, e);
    op->path = b.path;
    op->tenant = b.tenant;
    op->pinned = b.pinned;
    op->dry_run = b.dry_run;
    return rc;
}

/* A module has at most twice its resident bytes in its tensors: f32 that is kept as bf16. */
static struct pet_limits limits(const struct server *sv)
{
    size_t most = resident_budget(sv->resident);
    return (struct pet_limits){.max_bytes = most < SIZE_MAX / 2 ? 2 * most : SIZE_MAX};
}

/* Opens op->path. */
static int open_path(struct admin_op *op, struct pet **p, struct err *e)
{
    struct pet_limits lim = limits(op->sv);
    char *real;
    int rc = admin_resolve(op->sv->o, op->path, &real, e);
    if (rc)
        return rc;
    rc = pet_open(real, &lim, p, e);
    free(real);
    if (!rc)
        return 0;
    if (rc != -ENOMEM && rc != -E2BIG) /* what is wrong with a file that was named is the request's fault */
        rc = e->code = -EINVAL;
    snprintf(e->param, sizeof e->param, "path");
    return rc;
}

static int check(struct admin_op *op, const struct pet *p, struct err *e)
{
    const struct server *sv = op->sv;
    const struct pet_target *t = sv->target;
    op->info = *pet_info(p);
    if (op->info.kind != PET_LORA)
        return err_set(e, -EINVAL, "a %s module is not a task's", pet_kind_name(op->info.kind));
    int rc = pet_check(p, t, e);
    if (rc)
        return rc == -ENOMEM ? rc : (e->code = -EINVAL);
    op->need = pet_resident_bytes(p, t);
    if (!op->need) /* it was checked: no size is for want of memory alone */
        return err_set(e, -ENOMEM, "out of memory");
    if (op->need > resident_budget(sv->resident))
        return err_set(e, -E2BIG, "the module takes %zu bytes of memory, --pet-bytes allows %zu for all", op->need,
                       resident_budget(sv->resident));
    struct pet_slot *slot;
    rc = pet_load(sv->dev, p, t, &slot, e);
    if (!rc)
        pet_unload(sv->dev, slot);
    return rc && rc != -ENOMEM ? (e->code = -EINVAL) : rc;
}

/* What is to be kept, in the registry's folder for uploads. What came by path is packed there. */
static int stage(struct admin_op *op, const struct pet *p, struct err *e)
{
    struct registry *reg = op->sv->registry;
    const struct pet_info *info = pet_info(p);
    if (!op->json)
        return registry_stage(reg, op->body, op->n_body, &op->staged, e);
    int rc = registry_stage(reg, "", 0, &op->staged, e);
    if (rc)
        return rc;
    rc = pet_write(p, info->verified ? &info->lineage : NULL, op->staged, e);
    if (!rc && chmod(op->staged, 0600)) /* as the registry makes its files */
        rc = err_set(e, -errno, "%s: %s", op->staged, strerror(errno));
    if (rc)
        registry_unstage(reg, op->staged);
    return rc;
}

int admin_module_work(struct admin_op *op, struct err *e)
{
    struct pet *p = NULL;
    int rc = module_check_name(op->name, e);
    if (!rc && op->tenant)
        rc = admin_check_tenant(op->tenant, e);
    if (rc)
        return rc;
    if (op->json) {
        rc = open_path(op, &p, e);
    } else {
        struct pet_limits lim = limits(op->sv);
        rc = pet_parse(op->body, op->n_body, op->name, &lim, &p, e);
        if (rc && rc != -ENOMEM && rc != -E2BIG)
            rc = e->code = -EINVAL;
    }
    if (!rc)
        rc = check(op, p, e);
    if (!rc && !op->dry_run)
        rc = stage(op, p, e);
    pet_close(p);
    free(op->body);
    op->body = NULL;
    return rc;
}

static int put_work(struct admin_op *op, struct err *e)
{
    int rc = op->json ? read_fields(op, e) : 0;
    return rc ? rc : admin_module_work(op, e);
}

/* ---- commit ---- */

/* Every task that uses the name has to be the tenant's own. */
static int check_users(const struct admin_op *op, struct err *e)
{
    const struct tasks *t = op->sv->tasks;
    const struct task_version *v;
    for (size_t i = 0; op->tenant_number != TASK_EVERYBODY && (v = tasks_at(t, i)); i++)
        for (uint32_t k = 0; k < v->n_pets; k++)
            if (v->tenant != op->tenant_number && !v->fixed && !strcmp(v->module_name[k], op->name))
                return err_param(e, -EEXIST, "tenant",
                                 "the task \"%s\" uses this module and is not of the tenant \"%s\"", v->id, op->tenant);
    return 0;
}

static int check_room(const struct admin_op *op, struct err *e)
{
    const struct server *sv = op->sv;
    size_t pinned = module_pinned_bytes(sv->modules, op->m), budget = resident_budget(sv->resident);
    if (pinned <= budget && op->need <= budget - pinned)
        return 0;
    return err_set(e, -E2BIG, "the module takes %zu bytes of memory; pinned modules leave %zu of --pet-bytes", op->need,
                   pinned < budget ? budget - pinned : 0);
}

static int tenant_number(struct admin_op *op, struct err *e)
{
    op->tenant_number = op->tenant ? keys_tenant_named(op->sv->keys, op->tenant) : TASK_EVERYBODY;
    if (op->tenant && op->tenant_number == KEYS_NO_TENANT)
        return err_set(e, -ENOMEM, "the server is out of memory");
    return 0;
}

/* Whether the name may become op's content, as things are; makes no change. */
static int may_put(struct admin_op *op, struct err *e)
{
    const struct server *sv = op->sv;
    const struct module_name *old = module_named(sv->modules, op->name);
    if (old && old->fixed)
        return err_param(e, -EEXIST, "name", "the module \"%s\" is of the command line and cannot be replaced",
                         op->name);
    op->m = module_find(sv->modules, &op->info.hash);
    op->was_there = old && old->m == op->m;
    if (op->m)
        module_ref(op->m);
    int rc = check_room(op, e);
    return rc ? rc : check_users(op, e);
}

int admin_module_prepare(struct admin_op *op, struct err *e)
{
    struct server *sv = op->sv;
    int rc = tenant_number(op, e);
    if (!rc)
        rc = may_put(op, e);
    if (rc)
        return rc;
    char *path = registry_module_path(sv->registry, &op->info.hash);
    module_unref(op->m);
    op->m = path ? module_get(sv->modules, &op->info, path) : NULL;
    const struct module_name *old = module_named(sv->modules, op->name);
    if (op->m && !module_reserve(sv->modules))
        op->entry = module_name_new(op->m, op->name, op->tenant_number, op->pinned, false,
                                    old ? old->created : (int64_t)time(NULL));
    free(path);
    return op->entry ? 0 : err_set(e, -ENOMEM, "the server is out of memory");
}

struct registry_module admin_module_row(const char *name, const char *tenant, const struct pet_info *i, bool pinned,
                                        int64_t created)
{
    return (struct registry_module){.name = name,
                                    .tenant = tenant,
                                    .hash = i->hash,
                                    .kind = pet_kind_name(i->kind),
                                    .base = i->base,
                                    .bytes = i->bytes,
                                    .rank = i->max_rank,
                                    .sites = i->n_sites,
                                    .verified = i->verified,
                                    .pinned = pinned,
                                    .created = created};
}

int admin_module_write(struct admin_op *op, struct err *e)
{
    struct registry *reg = op->sv->registry;
    int rc = op->rc;
    if (!rc) {
        struct registry_module row = admin_module_row(op->name, op->tenant, &op->info, op->pinned, op->entry->created);
        rc = registry_put_module(reg, &row, op->staged, NULL, e);
    }
    registry_unstage(reg, op->staged); /* gone already, where it was taken */
    return rc;
}

void admin_module_apply(struct admin_op *op)
{
    /* A content that a --pet shares stays with that file, which is there as long as the server runs. */
    bool shared = module_has_name(op->sv->modules, op->m, true);
    char *path = shared ? NULL : registry_module_path(op->sv->registry, &op->info.hash);
    if (path) {
        free(op->m->path);
        op->m->path = path;
    }
    if (!op->m->res.need) /* else it is the same, and may be counted already */
        op->m->res.need = op->need;
    op->m->res.rc = 0;
    module_set_name(op->sv->modules, op->entry);
    op->entry = NULL;
    admin_collect(op->sv);
}

static void put_answer(struct admin_op *op)
{
    struct buf b = {0};
    char hex[HASH_HEX];
    hash_hex(&op->info.hash, hex);
    buf_puts(&b, "{\"name\": ");
    json_put_string(&b, op->name, strlen(op->name));
    buf_printf(&b,
               ", \"hash\": \"%s\", \"kind\": \"%s\", \"bytes\": %zu, \"rank\": %u, \"sites\": %u, \"verified\": %s, "
               "\"resident_bytes\": %zu, \"dry_run\": %s}",
               hex, pet_kind_name(op->info.kind), op->info.bytes, op->info.max_rank, op->info.n_sites,
               op->info.verified ? "true" : "false", op->need, op->dry_run ? "true" : "false");
    admin_answer(op, op->was_there || op->dry_run ? 200 : 201, "application/json", &b);
}

static void put_done(struct admin_op *op)
{
    if (op->rc) {
        admin_answer(op, 0, NULL, NULL);
        return;
    }
    admin_module_apply(op);
    put_answer(op);
}

static void put_checked(struct admin_op *op)
{
    if (!op->rc && op->dry_run && !(op->rc = tenant_number(op, &op->err)))
        op->rc = may_put(op, &op->err);
    if (op->rc)
        admin_answer(op, 0, NULL, NULL);
    else if (op->dry_run)
        put_answer(op);
    else
        admin_run(op, &op->sv->ad->commit, admin_module_prepare, admin_module_write, put_done);
}

/* A query's switch: "", "1" and "true" are on. */
static bool query_on(const struct http_req *r, const char *key)
{
    const char *v = http_query(r, key);
    return v && strcmp(v, "0") && strcmp(v, "false");
}

/* A .pet begins with a byte that no JSON begins with. Clients leave Content-Type to their libraries. */
static bool is_json(const struct admin_op *op)
{
    size_t i = 0;
    while (i < op->n_body && strchr(" \t\r\n", op->body[i]))
        i++;
    return i < op->n_body && op->body[i] == '{';
}

void admin_put_module(struct server *sv, struct http_req *r, const char *name)
{
    struct admin_op *op = admin_op_new(sv, r, name, true);
    if (!op)
        return;
    const char *tenant = http_query(r, "tenant");
    op->tenant = tenant && *tenant ? arena_strndup(op->a, tenant, strlen(tenant)) : NULL;
    op->dry_run = query_on(r, "dry_run");
    op->pinned = query_on(r, "pinned");
    op->json = is_json(op);
    admin_run(op, &sv->ad->check, NULL, put_work, put_checked);
}

/* ---- delete ---- */

static int delete_prepare(struct admin_op *op, struct err *e)
{
    struct server *sv = op->sv;
    const struct module_name *n = module_named(sv->modules, op->name);
    if (!n)
        return err_param(e, -ENOENT, "name", "there is no module \"%s\"", op->name);
    if (n->fixed)
        return err_param(e, -EBUSY, "name", "the module \"%s\" is of the command line and cannot be deleted", op->name);
    const struct task_version *v = tasks_using(sv->tasks, op->name, n->m);
    if (v && !op->drain)
        return err_param(e, -EBUSY, "name", "the task \"%s\" uses the module \"%s\"", v->id, op->name);
    if (!op->drain && n->m->wanted == 1 && n->m->res.users)
        return err_param(e, -EBUSY, "name", "%u requests use the module \"%s\"; ?drain=1 lets them finish",
                         n->m->res.users, op->name);
    return 0;
}

static int delete_work(struct admin_op *op, struct err *e)
{
    return op->rc ? op->rc : registry_delete_module(op->sv->registry, op->name, e);
}

static void delete_done(struct admin_op *op)
{
    struct server *sv = op->sv;
    struct buf b = {0};
    if (op->rc) {
        admin_answer(op, 0, NULL, NULL);
        return;
    }
    const struct module_name *n = module_named(sv->modules, op->name);
    unsigned users = n ? n->m->res.users : 0;
    module_drop_name(sv->modules, op->name);
    admin_collect(sv);
    if (!op->drain) {
        admin_answer(op, 204, NULL, NULL);
        return;
    }
    buf_puts(&b, "{\"name\": ");
    json_put_string(&b, op->name, strlen(op->name));
    buf_printf(&b, ", \"state\": \"%s\", \"users\": %u}", users ? "draining" : "deleted", users);
    admin_answer(op, 202, "application/json", &b);
}

void admin_delete_module(struct server *sv, struct http_req *r, const char *name)
{
    struct admin_op *op = admin_op_new(sv, r, name, false);
    if (!op)
        return;
    op->drain = query_on(r, "drain");
    admin_run(op, &sv->ad->commit, delete_prepare, delete_work, delete_done);
}
