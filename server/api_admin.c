/* api_admin.c - paths of the admin listener that concern modules, tasks and adapters, and the lists.
 *
 * Loop thread. Lists are made from the tables alone; whatever writes, or reads the registry, is an operation
 * (admin.h). Everything here needs a server that is ready: api.c has looked at the key and at that.
 */
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"
#include "server/admin.h"

static void put_str(struct buf *b, const char *key, const char *value)
{
    buf_printf(b, "\"%s\": ", key);
    json_put_string(b, value, strlen(value));
}

static void put_tenant(const struct server *sv, struct buf *b, uint32_t tenant)
{
    if (tenant == TASK_EVERYBODY)
        buf_puts(b, "\"tenant\": null");
    else
        put_str(b, "tenant", keys_tenant_name(sv->keys, tenant));
}

/* ---- entries ---- */

void admin_show_module(const struct server *sv, struct buf *b, const struct module_name *n)
{
    static const char *const residency[] = {"stored", "stored", "loading", "resident"};
    const struct module *m = n->m;
    char hex[HASH_HEX];
    hash_hex(&m->info.hash, hex);
    buf_puts(b, "{");
    put_str(b, "name", n->name);
    buf_printf(b,
               ", \"hash\": \"%s\", \"kind\": \"%s\", \"bytes\": %zu, \"rank\": %u, \"sites\": %u, \"verified\": %s, ",
               hex, pet_kind_name(m->info.kind), m->info.bytes, m->info.max_rank, m->info.n_sites,
               m->info.verified ? "true" : "false");
    put_str(b, "base", m->info.base);
    buf_puts(b, ", ");
    put_tenant(sv, b, n->tenant);
    buf_printf(b,
               ", \"created\": %lld, \"pinned\": %s, \"command_line\": %s, \"state\": \"%s\", \"residency\": \"%s\", "
               "\"resident\": %s, \"resident_bytes\": %zu, \"users\": %u, \"error\": ",
               (long long)n->created, n->pinned ? "true" : "false", n->fixed ? "true" : "false",
               n->draining ? "draining"
               : m->res.rc ? "failed"
                           : "ready",
               residency[m->res.state], m->res.state == RESIDENT_IN ? "true" : "false",
               m->res.state == RESIDENT_IN ? m->res.need : 0, m->res.users);
    if (m->res.rc && m->res.why)
        json_put_string(b, m->res.why->msg, strlen(m->res.why->msg));
    else
        buf_puts(b, m->res.rc ? "\"the module cannot be loaded\"" : "null");
    buf_puts(b, "}");
}

static void put_problem(const struct server *sv, struct buf *b, const struct task_version *v)
{
    const char *gone = task_missing_module(v, sv->modules);
    const struct err *why = NULL;
    for (uint32_t k = 0; k < v->n_pets && !why; k++)
        why = v->module[k]->res.rc ? v->module[k]->res.why : NULL;
    buf_printf(b, "\"state\": \"%s\", \"error\": ", v->problem || gone || why ? "failed" : "ready");
    if (v->problem) {
        json_put_string(b, v->problem, strlen(v->problem));
    } else if (gone) {
        struct err e;
        err_set(&e, -ENOENT, "its module \"%s\" was deleted", gone);
        json_put_string(b, e.msg, strlen(e.msg));
    } else if (why) {
        json_put_string(b, why->msg, strlen(why->msg));
    } else {
        buf_puts(b, "null");
    }
}

static void put_refs(struct buf *b, const struct task_version *v)
{
    char hex[HASH_HEX];
    buf_puts(b, "\"modules\": [");
    for (uint32_t k = 0; k < v->n_pets; k++) {
        hash_hex(&v->module[k]->info.hash, hex);
        buf_puts(b, k ? ", {" : "{");
        put_str(b, "name", v->module_name[k]);
        buf_printf(b, ", \"hash\": \"%s\", \"weight\": ", hex);
        json_put_float(b, v->pet[k].weight);
        buf_puts(b, "}");
    }
    buf_puts(b, "]");
}

static void put_settings(struct buf *b, const struct task_settings *s)
{
    buf_printf(b, "\"defaults\": %s, \"template\": ", s && s->defaults_json ? s->defaults_json : "{}");
    if (s && s->template_text)
        json_put_string(b, s->template_text, strlen(s->template_text));
    else
        buf_puts(b, "null");
}

void admin_show_task(const struct server *sv, struct buf *b, const struct task_version *v, const struct hash *kept,
                     size_t n_kept)
{
    char hex[HASH_HEX];
    hash_hex(&v->hash, hex);
    buf_puts(b, "{");
    put_str(b, "id", v->id);
    buf_printf(b, ", \"version\": \"%s\", \"backbone\": %s, \"command_line\": %s, ", hex,
               v->backbone ? "true" : "false", v->fixed ? "true" : "false");
    put_refs(b, v);
    buf_puts(b, ", ");
    put_settings(b, v->settings);
    buf_puts(b, ", ");
    put_tenant(sv, b, v->tenant);
    buf_printf(b, ", \"created\": %lld, \"updated\": %lld, ", (long long)v->created, (long long)v->updated);
    put_problem(sv, b, v);
    for (size_t i = 0; i < n_kept; i++) {
        hash_hex(&kept[i], hex);
        buf_printf(b, "%s\"%s\"", i ? ", " : ", \"versions\": [", hex);
    }
    buf_puts(b, n_kept ? "]}" : "}");
}

/* ---- lists ---- */

static void list_modules(struct server *sv, struct http_req *r)
{
    struct buf b = {0};
    module_sweep(sv->modules);
    buf_puts(&b, "{\"data\": [");
    for (size_t i = 0; i < sv->modules->name.n; i++) {
        buf_puts(&b, i ? ", " : "");
        admin_show_module(sv, &b, table_at(&sv->modules->name, i));
    }
    buf_puts(&b, "]}");
    api_json(r, &b);
}

static void get_module(struct server *sv, struct http_req *r, const char *name)
{
    struct buf b = {0};
    module_sweep(sv->modules);
    const struct module_name *n = table_get(&sv->modules->name, name, strlen(name));
    if (!n) {
        struct err e;
        err_param(&e, -ENOENT, "name", "there is no module \"%.*s\"", utf8_cut(name, strlen(name), 200), name);
        api_error(r, 404, &e, NULL);
        return;
    }
    buf_puts(&b, "{\"data\": [");
    admin_show_module(sv, &b, n);
    buf_puts(&b, "]}");
    api_json(r, &b);
}

static void list_tasks(struct server *sv, struct http_req *r)
{
    struct buf b = {0};
    const struct task_version *v;
    buf_puts(&b, "{\"data\": [");
    for (size_t i = 0; (v = tasks_at(sv->tasks, i)); i++) {
        buf_puts(&b, i ? ", " : "");
        admin_show_task(sv, &b, v, NULL, 0);
    }
    buf_puts(&b, "]}");
    api_json(r, &b);
}

/* ---- routes ---- */

typedef void (*one_fn)(struct server *sv, struct http_req *r, const char *name);
typedef void (*all_fn)(struct server *sv, struct http_req *r);

static void refuse_method(struct http_req *r, const char *allowed)
{
    struct buf b = {0};
    struct err e;
    struct http_hdr allow = {"Allow", allowed};
    err_set(&e, -EINVAL, "%.*s takes %s, not %s", utf8_cut(http_path(r), strlen(http_path(r)), 200), http_path(r),
            allowed, http_method(r));
    resp_error(&b, 405, &e, NULL);
    http_reply(r, 405, "application/json", b.failed ? "{}" : b.data, b.failed ? 2 : b.len, &allow, 1);
    buf_free(&b);
}

static bool is_get(const struct http_req *r)
{
    return !strcmp(http_method(r), "GET") || !strcmp(http_method(r), "HEAD");
}

static void one(struct server *sv, struct http_req *r, const char *name, one_fn get, one_fn put, one_fn del)
{
    const char *m = http_method(r);
    one_fn f = is_get(r) ? get : !strcmp(m, "PUT") ? put : !strcmp(m, "DELETE") ? del : NULL;
    if (f)
        f(sv, r, name);
    else
        refuse_method(r, "GET, HEAD, PUT, DELETE");
}

bool admin_route(struct server *sv, struct http_req *r)
{
    static const char modules[] = "/admin/v1/modules", tasks[] = "/admin/v1/tasks";
    const char *path = http_path(r);
    bool post = !strcmp(http_method(r), "POST");
    all_fn list = !strcmp(path, modules) ? list_modules : !strcmp(path, tasks) ? list_tasks : NULL;
    all_fn lora = !strcmp(path, "/v1/load_lora_adapter")     ? admin_load_lora
                  : !strcmp(path, "/v1/unload_lora_adapter") ? admin_unload_lora
                                                             : NULL;
    if (list && is_get(r))
        list(sv, r);
    else if (lora && post)
        lora(sv, r);
    else if (list || lora)
        refuse_method(r, list ? "GET, HEAD" : "POST");
    else if (!strncmp(path, modules, sizeof modules - 1) && path[sizeof modules - 1] == '/' && path[sizeof modules])
        one(sv, r, path + sizeof modules, get_module, admin_put_module, admin_delete_module);
    else if (!strncmp(path, tasks, sizeof tasks - 1) && path[sizeof tasks - 1] == '/' && path[sizeof tasks])
        one(sv, r, path + sizeof tasks, admin_get_task, admin_put_task, admin_delete_task);
    else
        return false;
    return true;
}
