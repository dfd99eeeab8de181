/* module.c - contents, names, and their counts.
 *
 * Loop thread. refs keeps a struct module alive: names, versions of tasks (those that requests hold, too) and jobs have
 * one each. wanted counts names and current versions only: at zero the memory goes with the last request, though
 * answers that clients read slowly may keep the struct for a while. A pinned name brings its content in by a want of
 * its own, which gives it back at once: the pin keeps it there.
 */
#include "server/module.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"

struct modules *modules_create(struct resident *r)
{
    struct modules *t = calloc(1, sizeof *t);
    if (t)
        t->res = r;
    return t;
}

/* ---- contents ---- */

struct module *module_find(const struct modules *t, const struct hash *h)
{
    return table_get(&t->content, h->b, sizeof h->b);
}

struct module *module_get(struct modules *t, const struct pet_info *info, const char *path)
{
    struct module *m = module_find(t, &info->hash);
    if (m) {
        if (!m->info.bytes)
            m->info = *info;
        m->refs++;
        return m;
    }
    m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    m->table = t;
    m->refs = 1;
    m->info = *info;
    m->path = strdup(path);
    if (!m->path || table_put(&t->content, m->info.hash.b, sizeof m->info.hash.b, m)) {
        free(m->path);
        free(m);
        return NULL;
    }
    return m;
}

void module_ref(struct module *m)
{
    m->refs++;
}

void module_unref(struct module *m)
{
    if (!m || --m->refs)
        return;
    assert(!m->wanted);
    table_remove(&m->table->content, m->info.hash.b, sizeof m->info.hash.b);
    resident_item_clear(&m->res);
    free(m->path);
    free(m);
}

void module_want(struct module *m, int by)
{
    m->wanted += (unsigned)by;
    if (m->table->res)
        resident_wanted(m->table->res, &m->res, m->wanted > 0);
}

/* ---- names ---- */

int module_check_name(const char *name, struct err *e)
{
    size_t n = strlen(name);
    struct hash h;
    if (!n || n > MODULE_NAME_MAX)
        return err_param(e, -EINVAL, "name", "a module's name has 1 to %d bytes", MODULE_NAME_MAX);
    if (utf8_valid(name, n) < n)
        return err_param(e, -EINVAL, "name", "the name is not valid UTF-8");
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)name[i] <= ' ' || name[i] == 0x7F || name[i] == '"' || name[i] == '\\')
            return err_param(e, -EINVAL, "name", "a name holds no blanks, controls, quotes or backslashes");
    if (!hash_parse(name, &h))
        return err_param(e, -EINVAL, "name", "a name of 64 hexadecimal digits would be taken for a content hash");
    return 0;
}

struct module_name *module_named(const struct modules *t, const char *name)
{
    struct module_name *n = table_get(&t->name, name, strlen(name));
    return n && !n->draining ? n : NULL;
}

int module_reserve(struct modules *t)
{
    return table_reserve(&t->name);
}

struct module_name *module_name_new(struct module *m, const char *name, uint32_t tenant, bool pinned, bool fixed,
                                    int64_t created)
{
    struct module_name *n = calloc(1, sizeof *n);
    char *copy = strdup(name);
    if (!n || !copy) {
        free(n);
        free(copy);
        return NULL;
    }
    module_ref(m);
    *n = (struct module_name){
        .name = copy, .tenant = tenant, .pinned = pinned, .fixed = fixed, .created = created, .m = m};
    return n;
}

void module_name_free(struct module_name *n)
{
    if (!n)
        return;
    module_unref(n->m);
    free(n->name);
    free(n);
}

static void on_pinned(void *user, int rc, const struct err *e)
{
    struct module_name *n = user;
    (void)e; /* the item keeps the reason, and GET shows it */
    if (!rc)
        resident_give(n->m->table->res, &n->pin);
}

static void pin(struct modules *t, struct module_name *n)
{
    n->m->res.pins++;
    if (!t->res)
        return;
    n->pin_item = &n->m->res;
    n->pin = (struct resident_want){.item = &n->pin_item, .n = 1, .ready = on_pinned, .user = n};
    if (resident_take(t->res, &n->pin))
        resident_give(t->res, &n->pin);
}

/* The name stands for its content no more. */
static void let_go(struct modules *t, struct module_name *n)
{
    if (n->pinned) {
        if (t->res)
            resident_give(t->res, &n->pin);
        n->m->res.pins--;
        n->pinned = false;
    }
    module_want(n->m, -1);
}

void module_set_name(struct modules *t, struct module_name *n)
{
    struct module_name *old = table_get(&t->name, n->name, strlen(n->name));
    int rc = table_put(&t->name, n->name, strlen(n->name), n);
    assert(!rc); /* room was made before */
    (void)rc;
    module_want(n->m, 1);
    if (n->pinned)
        pin(t, n);
    if (!old)
        return;
    if (!old->draining)
        let_go(t, old);
    module_name_free(old);
}

bool module_has_name(const struct modules *t, const struct module *m, bool fixed)
{
    for (size_t i = 0; i < t->name.n; i++) {
        const struct module_name *n = table_at(&t->name, i);
        if (n->m == m && !n->draining && (n->fixed || !fixed))
            return true;
    }
    return false;
}

void module_drop_name(struct modules *t, const char *name)
{
    struct module_name *n = module_named(t, name);
    if (!n)
        return;
    n->draining = true;
    let_go(t, n);
    if (t->res && !module_has_name(t, n->m, false))
        resident_put_out(t->res, &n->m->res);
    module_sweep(t);
}

void module_sweep(struct modules *t)
{
    for (size_t i = 0; i < t->name.n;) {
        struct module_name *n = table_at(&t->name, i);
        if (n->draining && !n->m->res.users) {
            table_remove(&t->name, n->name, strlen(n->name));
            module_name_free(n);
        } else {
            i++;
        }
    }
}

size_t module_pinned_bytes(const struct modules *t, const struct module *except)
{
    size_t bytes = 0;
    for (size_t i = 0; i < t->content.n; i++) {
        const struct module *m = table_at(&t->content, i);
        if (m->res.pins && m != except)
            bytes += m->res.need;
    }
    return bytes;
}

void module_stop(struct modules *t)
{
    for (size_t i = 0; t && i < t->name.n; i++)
        resident_give(t->res, &((struct module_name *)table_at(&t->name, i))->pin);
}

void modules_free(struct modules *t)
{
    if (!t)
        return;
    t->res = NULL;
    while (t->name.n) {
        struct module_name *n = table_at(&t->name, t->name.n - 1);
        table_remove(&t->name, n->name, strlen(n->name));
        if (!n->draining)
            let_go(t, n);
        module_name_free(n);
    }
    table_free(&t->name);
    assert(!t->content.n);
    table_free(&t->content);
    free(t);
}
