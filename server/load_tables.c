/* load_tables.c - from what was loaded at start to the tables that requests look into.
 *
 * Loop thread, once, before the server says that it is ready. The order matters: the backbone, then --pet, then the
 * registry, so that a name which is there already is found whichever two collide. A task or a module whose content is
 * missing or cannot be read becomes an entry that says so; it does not keep the server from starting.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/load.h"
#include "server/log.h"
#include "server/server.h"

static int no_memory(struct err *e)
{
    return err_set(e, -ENOMEM, "out of memory");
}

/* A name for module_set_name, for which there is room then. */
static int make_name(struct server *sv, struct module *m, const char *name, uint32_t tenant, bool pinned, bool fixed,
                     int64_t created, struct module_name **out, struct err *e)
{
    if (module_named(sv->modules, name))
        return err_param(e, -EEXIST, "pet", "--pet: a module \"%s\" is in the registry already", name);
    struct module_name *n = module_name_new(m, name, tenant, pinned, fixed, created);
    if (!n || module_reserve(sv->modules)) {
        module_name_free(n);
        return no_memory(e);
    }
    *out = n;
    return 0;
}

static int add_pet(struct server *sv, struct loaded *l, size_t i, struct err *e)
{
    struct loaded_pet *p = &l->pet[i];
    const char *id = l->o->pet_task[i];
    struct module *m = module_get(sv->modules, &p->info, l->o->pet_path[i]);
    if (!m)
        return no_memory(e);
    struct module_name *n = NULL;
    int rc = make_name(sv, m, id, TASK_EVERYBODY, l->pets_fit, true, sv->started, &n, e);
    if (rc) {
        module_unref(m); /* and so it must not be resident yet */
        return rc;
    }
    if (p->mem && m->res.state == RESIDENT_OUT) {
        resident_adopt(sv->resident, &m->res, p->need, p->mem);
        m->res.seconds = p->seconds;
        p->mem = NULL;
    }
    m->res.need = p->need;
    module_set_name(sv->modules, n);
    struct task_ref ref = {m, id, 1};
    struct task_spec s = {.id = id, .tenant = TASK_EVERYBODY, .fixed = true, .ref = &ref, .n_refs = 1};
    rc = tasks_add(sv->tasks, &s, e);
    module_unref(m);
    return rc;
}

static int add_module(struct server *sv, const struct loaded *l, size_t i, struct err *e)
{
    const struct registry_module *row = &l->module[i];
    struct pet_info info = {.kind = PET_LORA,
                            .hash = row->hash,
                            .bytes = (size_t)row->bytes,
                            .max_rank = row->rank,
                            .n_sites = row->sites,
                            .verified = row->verified};
    snprintf(info.base, sizeof info.base, "%s", row->base ? row->base : "");
    char *path = registry_module_path(sv->registry, &row->hash);
    uint32_t tenant = row->tenant ? keys_tenant_named(sv->keys, row->tenant) : TASK_EVERYBODY;
    struct module *m = path ? module_get(sv->modules, &info, path) : NULL;
    int rc = m && (!row->tenant || tenant != KEYS_NO_TENANT) ? 0 : no_memory(e);
    if (!rc && !l->module_there[i] && !m->res.why && (m->res.why = malloc(sizeof *m->res.why)))
        m->res.rc = err_set(m->res.why, -EIO, "%s: the content is missing", path);
    struct module_name *n = NULL;
    if (!rc)
        rc = make_name(sv, m, row->name, tenant, row->pinned && l->module_there[i], false, row->created, &n, e);
    if (!rc)
        module_set_name(sv->modules, n);
    module_unref(m);
    free(path);
    return rc;
}

static int add_task(struct server *sv, struct loaded *l, size_t i, struct err *e)
{
    const struct registry_task *row = &l->task[i];
    struct task_ref *ref = calloc(row->n_refs + 1u, sizeof *ref);
    uint32_t tenant = row->tenant ? keys_tenant_named(sv->keys, row->tenant) : TASK_EVERYBODY, n = 0;
    int rc = ref && (!row->tenant || tenant != KEYS_NO_TENANT) ? 0 : no_memory(e);
    for (; !rc && n < row->n_refs; n++) {
        struct pet_info info = {.hash = row->ref[n].hash};
        char *path = registry_module_path(sv->registry, &info.hash);
        ref[n] =
            (struct task_ref){path ? module_get(sv->modules, &info, path) : NULL, row->ref[n].name, row->ref[n].weight};
        free(path);
        if (!ref[n].module)
            rc = no_memory(e);
    }
    const char *problem = l->task_more[i].problem;
    if (!problem && row->n_refs > sv->mi->max_pets)
        problem = "it has more modules than this backbone takes";
    struct task_spec s = {.id = row->id,
                          .tenant = tenant,
                          .ref = ref,
                          .n_refs = row->n_refs,
                          .created = row->created,
                          .updated = row->updated,
                          .settings = l->task_more[i].settings,
                          .problem = problem};
    if (!rc && tasks_find(sv->tasks, row->id))
        rc = err_param(e, -EEXIST, "pet",
                       "the registry has a task \"%s\" already, so neither the backbone nor a --pet "
                       "may have that name",
                       row->id);
    if (!rc && !(rc = tasks_add(sv->tasks, &s, e)))
        l->task_more[i].settings = NULL;
    for (uint32_t k = 0; k < n; k++)
        module_unref(ref[k].module);
    free(ref);
    return rc;
}

int load_tables(struct server *sv, struct loaded *l, struct err *e)
{
    struct task_spec base = {.id = sv->name, .tenant = TASK_EVERYBODY, .backbone = true};
    int rc = tasks_add(sv->tasks, &base, e);
    sv->registry = l->registry;
    for (size_t i = 0; !rc && i < l->o->n_pets; i++)
        rc = add_pet(sv, l, i, e);
    for (size_t i = 0; !rc && i < l->n_modules; i++)
        rc = add_module(sv, l, i, e);
    for (size_t i = 0; !rc && i < l->n_tasks; i++)
        rc = add_task(sv, l, i, e);
    if (rc)
        return rc;
    if (l->o->n_pets && !l->pets_fit)
        log_line("warning",
                 "the modules of --pet do not fit into --pet-bytes together; they come in when they are used");
    if (l->registry && !l->o->data)
        log_line("warning", "no --data: what is registered ends with this process");
    return 0;
}
