/* api_admin.c - what the admin listener tells of modules and tasks.
 *
 * Loop thread. Reads the table of tasks and the calls in progress; keeps nothing.
 */
#include <stdlib.h>
#include <string.h>

#include "server/call.h"

static void put_str(struct buf *b, const char *key, const char *value)
{
    buf_printf(b, "\"%s\": ", key);
    json_put_string(b, value, strlen(value));
}

static void answer(struct http_req *r, struct buf *b)
{
    if (b->failed) {
        struct err e;
        err_set(&e, -ENOMEM, "the server is out of memory");
        api_error(r, 503, &e, NULL);
    } else {
        http_reply(r, 200, "application/json", b->data, b->len, NULL, 0);
    }
    buf_free(b);
}

static unsigned users(const struct server *sv, const struct module *m)
{
    unsigned n = 0;
    for (const struct call *c = sv->calls; c; c = c->next)
        for (uint32_t i = 0; c->task && c->n_with_engine && i < c->task->n_pets; i++)
            n += c->task->module[i] == m;
    return n;
}

static void put_module(const struct server *sv, struct buf *b, const struct module *m)
{
    char hex[HASH_HEX];
    hash_hex(&m->info.hash, hex);
    buf_puts(b, "{");
    put_str(b, "name", m->name);
    buf_printf(b,
               ", \"hash\": \"%s\", \"kind\": \"%s\", \"bytes\": %zu, \"rank\": %u, \"sites\": %u, \"verified\": %s, "
               "\"state\": \"ready\", \"resident\": true, \"resident_bytes\": %zu, \"users\": %u}",
               hex, pet_kind_name(m->info.kind), m->info.bytes, m->info.max_rank, m->info.n_sites,
               m->info.verified ? "true" : "false", pet_slot_bytes(m->slot), users(sv, m));
}

/* Whether a task before the i-th, or a module before the k-th of it, is the same module. */
static bool seen_before(const struct tasks *t, size_t i, uint32_t k)
{
    const struct module *m = tasks_at(t, i)->module[k];
    for (size_t j = 0; j <= i; j++) {
        const struct task_version *v = tasks_at(t, j);
        for (uint32_t l = 0; l < (j == i ? k : v->n_pets); l++)
            if (v->module[l] == m)
                return true;
    }
    return false;
}

void admin_modules(struct server *sv, struct http_req *r)
{
    struct buf b = {0};
    bool first = true;
    const struct task_version *v;
    buf_puts(&b, "{\"data\": [");
    for (size_t i = 0; (v = tasks_at(sv->tasks, i)); i++)
        for (uint32_t k = 0; k < v->n_pets; k++) {
            if (seen_before(sv->tasks, i, k))
                continue;
            buf_puts(&b, first ? "" : ", ");
            put_module(sv, &b, v->module[k]);
            first = false;
        }
    buf_puts(&b, "]}");
    answer(r, &b);
}

static void put_task(const struct server *sv, struct buf *b, const struct task_version *v)
{
    char hex[HASH_HEX];
    hash_hex(&v->hash, hex);
    buf_puts(b, "{");
    put_str(b, "id", v->id);
    buf_printf(b, ", \"version\": \"%s\", \"backbone\": %s, \"modules\": [", hex, v->backbone ? "true" : "false");
    for (uint32_t k = 0; k < v->n_pets; k++) {
        hash_hex(&v->module[k]->info.hash, hex);
        buf_puts(b, k ? ", {" : "{");
        put_str(b, "name", v->module[k]->name);
        buf_printf(b, ", \"hash\": \"%s\", \"weight\": ", hex);
        json_put_float(b, v->pet[k].weight);
        buf_puts(b, "}");
    }
    buf_puts(b, "], ");
    if (v->tenant == TASK_EVERYBODY)
        buf_puts(b, "\"tenant\": null}");
    else {
        put_str(b, "tenant", keys_tenant_name(sv->keys, v->tenant));
        buf_puts(b, "}");
    }
}

void admin_tasks(struct server *sv, struct http_req *r)
{
    struct buf b = {0};
    const struct task_version *v;
    buf_puts(&b, "{\"data\": [");
    for (size_t i = 0; (v = tasks_at(sv->tasks, i)); i++) {
        buf_puts(&b, i ? ", " : "");
        put_task(sv, &b, v);
    }
    buf_puts(&b, "]}");
    answer(r, &b);
}
