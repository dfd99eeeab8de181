/* registry.c - modules and tasks, durable.
 *
 * One thread at a time, but for the calls that store.h lets any thread make. The registry owns its database
 * (registry_db.c) and its directory (store.c); what it hands out lives in the caller's arena or is malloc'ed.
 *
 * Invariants: every content that a module or a task's version names has a row in `content` (foreign keys), and every
 * row of `content` has its file, because the file is there, durably, before the row is, and goes after it. Files
 * without a row are what a crash left between the two; registry_open removes them. Each change is one transaction.
 */
#include "server/registry.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/buf.h"
#include "common/file.h"
#include "common/utf8.h"
#include "server/registry_db.h"
#include "server/store.h"

/* clang-format off */
#define UNNAMED \
    "NOT EXISTS (SELECT 1 FROM module m WHERE m.hash = content.hash)" \
    " AND NOT EXISTS (SELECT 1 FROM task_ref r WHERE r.hash = content.hash)"

#define STATEMENTS(S) \
    S(CONTENT_HAS, "SELECT 1 FROM content WHERE hash = ?1") \
    S(CONTENT_ADD, "INSERT INTO content VALUES(?1) ON CONFLICT DO NOTHING") \
    S(CONTENT_NAMED, "SELECT 1 FROM content WHERE hash = ?1 AND NOT (" UNNAMED ")") \
    S(CONTENT_DROP, "DELETE FROM content WHERE hash = ?1") \
    S(CONTENT_SPARE, "SELECT 1 FROM content WHERE " UNNAMED " LIMIT 1") \
    S(CONTENT_DROP_SPARE, "DELETE FROM content WHERE " UNNAMED " RETURNING hash") \
    S(MODULE_COUNT, "SELECT count(*) FROM module") \
    S(MODULE_HASH, "SELECT hash FROM module WHERE name = ?1") \
    S(MODULE_PUT, "INSERT OR REPLACE INTO module VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)") \
    S(MODULE_DROP, "DELETE FROM module WHERE name = ?1 RETURNING 1") \
    S(MODULE_ALL, "SELECT name, tenant, hash, kind, base, bytes, rank, sites, verified, pinned, created" \
                  " FROM module ORDER BY name") \
    S(TASK_COUNT, "SELECT count(*) FROM task") \
    S(TASK_HAS, "SELECT 1 FROM task WHERE id = ?1") \
    S(TASK_PUT, "INSERT INTO task VALUES(?1, ?2, ?3, ?4, ?5) ON CONFLICT(id) DO UPDATE SET" \
                " tenant = excluded.tenant, version = excluded.version, updated = excluded.updated") \
    S(TASK_DROP, "DELETE FROM task WHERE id = ?1 RETURNING 1") \
    S(TASK_ALL, "SELECT id, version FROM task ORDER BY rowid") \
    S(VERSION_DROP, "DELETE FROM task_version WHERE task = ?1 AND hash = ?2") \
    S(VERSION_ADD, "INSERT INTO task_version SELECT ?1, ?2," \
                   " (SELECT coalesce(max(ord), 0) + 1 FROM task_version WHERE task = ?1), ?3, ?4") \
    S(VERSION_PRUNE, "DELETE FROM task_version WHERE task = ?1 AND hash NOT IN" \
                     " (SELECT hash FROM task_version WHERE task = ?1 ORDER BY ord DESC LIMIT ?2)") \
    S(VERSION_GET, "SELECT t.id, t.tenant, v.hash, v.defaults, v.template, t.created, t.updated" \
                   " FROM task t JOIN task_version v ON v.task = t.id WHERE t.id = ?1 AND v.hash = ?2") \
    S(VERSION_ALL, "SELECT hash FROM task_version WHERE task = ?1 ORDER BY ord DESC") \
    S(REF_ADD, "INSERT INTO task_ref VALUES(?1, ?2, ?3, ?4, ?5, ?6)") \
    S(REF_COUNT, "SELECT count(*) FROM task_ref WHERE task = ?1 AND version = ?2") \
    S(REF_ALL, "SELECT name, hash, weight FROM task_ref WHERE task = ?1 AND version = ?2 ORDER BY i")
/* clang-format on */

enum {
#define NAME(name, sql) name,
    STATEMENTS(NAME)
#undef NAME
        N_STATEMENTS
};

static const char *const sql_of[] = {
#define TEXT(name, sql) sql,
    STATEMENTS(TEXT)
#undef TEXT
};

struct registry {
    struct store *store;
    struct db *db;
    sqlite3_stmt *s[N_STATEMENTS];
};

/* ---- binding and reading ---- */

/* Reset, with its old bindings gone: a statement keeps no pointer to a caller's strings beyond its use. */
static sqlite3_stmt *use(const struct registry *r, int i)
{
    sqlite3_reset(r->s[i]);
    sqlite3_clear_bindings(r->s[i]);
    return r->s[i];
}

static void bind_text(sqlite3_stmt *s, int at, const char *text)
{
    if (text)
        sqlite3_bind_text(s, at, text, -1, SQLITE_STATIC);
}

static void bind_hash(sqlite3_stmt *s, int at, const struct hash *h)
{
    sqlite3_bind_blob(s, at, h->b, HASH_BYTES, SQLITE_STATIC);
}

/* A column that the schema says is a hash; an absent one (no memory) reads as zeros and the next step fails. */
static void get_hash(sqlite3_stmt *s, int at, struct hash *out)
{
    const void *p = sqlite3_column_blob(s, at);
    *out = (struct hash){0};
    if (p && sqlite3_column_bytes(s, at) == HASH_BYTES)
        memcpy(out->b, p, HASH_BYTES);
}

/* A text in the arena; NULL stays NULL. False when memory is out. */
static bool get_text(sqlite3_stmt *s, int at, struct arena *a, const char **out)
{
    *out = NULL;
    if (sqlite3_column_type(s, at) == SQLITE_NULL)
        return true;
    const char *p = (const char *)sqlite3_column_text(s, at);
    *out = p ? arena_strndup(a, p, (size_t)sqlite3_column_bytes(s, at)) : NULL;
    return *out != NULL;
}

static int no_memory(struct err *e)
{
    return err_set(e, -ENOMEM, "out of memory for the registry");
}

/* 1 or 0: does a statement with one text or hash bound have a row? */
static int has_row(const struct registry *r, sqlite3_stmt *s, struct err *e)
{
    int rc = db_step(r->db, s, e);
    if (rc > 0)
        sqlite3_reset(s);
    return rc;
}

static int count(const struct registry *r, sqlite3_stmt *s, size_t *n, struct err *e)
{
    int rc = db_step(r->db, s, e);
    if (rc > 0) {
        *n = (size_t)sqlite3_column_int64(s, 0);
        sqlite3_reset(s);
    }
    return rc < 0 ? rc : 0;
}

/* ---- checks of what is to be stored ---- */

static int check_text(struct err *e, const char *param, const char *text, size_t min, size_t max)
{
    size_t n = text ? strnlen(text, max + 1) : 0;
    if (!text && min)
        return err_param(e, -EINVAL, param, "\"%s\" is needed", param);
    if (text && (n < min || n > max))
        return err_param(e, -EINVAL, param, "\"%s\" must have %zu to %zu bytes", param, min, max);
    if (n && utf8_valid(text, n) != n)
        return err_param(e, -EINVAL, param, "\"%s\" is not valid UTF-8", param);
    return 0;
}

static int check_module(const struct registry_module *m, struct err *e)
{
    int r = check_text(e, "name", m->name, 1, REGISTRY_NAME_MAX);
    if (!r && m->tenant)
        r = check_text(e, "tenant", m->tenant, 1, REGISTRY_NAME_MAX);
    if (!r)
        r = check_text(e, "kind", m->kind, 1, REGISTRY_NAME_MAX);
    if (!r)
        r = check_text(e, "base", m->base, 0, REGISTRY_BASE_MAX);
    if (!r && m->bytes > INT64_MAX)
        r = err_param(e, -EINVAL, "bytes", "\"bytes\" is too large");
    return r;
}

static int check_task(const struct registry_task *t, struct err *e)
{
    int r = check_text(e, "id", t->id, 1, REGISTRY_NAME_MAX);
    if (!r && t->tenant)
        r = check_text(e, "tenant", t->tenant, 1, REGISTRY_NAME_MAX);
    if (!r)
        r = check_text(e, "defaults", t->defaults, 0, REGISTRY_TEXT_MAX);
    if (!r)
        r = check_text(e, "template", t->template_text, 0, REGISTRY_TEXT_MAX);
    if (!r && t->n_refs > REGISTRY_REFS_MAX)
        r = err_param(e, -EINVAL, "modules", "a task has at most %d modules", REGISTRY_REFS_MAX);
    for (uint32_t i = 0; !r && i < t->n_refs; i++) {
        r = check_text(e, "modules", t->ref[i].name, 1, REGISTRY_NAME_MAX);
        if (!r && !isfinite(t->ref[i].weight))
            r = err_param(e, -EINVAL, "modules", "the weight of module \"%s\" is not a finite number", t->ref[i].name);
    }
    return r;
}

/* ---- opening ---- */

static bool keep_content(void *ctx, const struct hash *h)
{
    const struct registry *r = ctx;
    sqlite3_stmt *s = use(r, CONTENT_HAS);
    bind_hash(s, 1, h);
    return has_row(r, s, NULL) != 0; /* an error keeps the file */
}

static int open_db(struct registry *r, struct err *e)
{
    char *path = path_join(store_dir(r->store), "registry.db");
    bool fresh = false, any = false;
    int rc = path ? db_probe(path, &fresh, e) : no_memory(e);
    if (!rc && fresh)
        rc = store_any(r->store, &any, e);
    if (!rc && any)
        rc = err_set(
            e, -EBADMSG,
            "%s: is missing or empty, but %s/modules holds modules: restore the database from a copy, or remove "
            "the modules",
            path, store_dir(r->store));
    if (!rc)
        rc = db_open(path, store_durable(r->store), &r->db, e);
    free(path);
    return rc;
}

static int open_all(struct registry *r, const char *dir, struct err *e)
{
    int rc = store_open(dir, &r->store, e);
    if (!rc)
        rc = open_db(r, e);
    for (int i = 0; !rc && i < N_STATEMENTS; i++)
        rc = db_prepare(r->db, sql_of[i], &r->s[i], e);
    if (!rc)
        rc = store_sync(r->store, e);
    if (!rc)
        rc = has_row(r, use(r, CONTENT_SPARE), e);
    if (rc > 0)
        rc = registry_collect(r, e);
    return rc ? rc : store_sweep(r->store, keep_content, r, e);
}

int registry_open(const char *dir, struct registry **out, struct err *e)
{
    struct registry *r = calloc(1, sizeof *r);
    if (!r)
        return no_memory(e);
    int rc = open_all(r, dir, e);
    if (rc)
        registry_close(r);
    else
        *out = r;
    return rc;
}

void registry_close(struct registry *r)
{
    if (!r)
        return;
    db_close(r->db);
    store_close(r->store);
    free(r);
}

/* ---- contents ---- */

int registry_stage(struct registry *r, const void *data, size_t n, char **path, struct err *e)
{
    return store_stage(r->store, data, n, path, e);
}

void registry_unstage(struct registry *r, const char *path)
{
    store_unstage(r->store, path);
}

char *registry_module_path(const struct registry *r, const struct hash *h)
{
    return store_path(r->store, h);
}

/* 1 or 0, or an error: is there a row for that content? */
static int content_known(const struct registry *r, const struct hash *h, struct err *e)
{
    sqlite3_stmt *s = use(r, CONTENT_HAS);
    bind_hash(s, 1, h);
    return has_row(r, s, e);
}

bool registry_has_content(const struct registry *r, const struct hash *h)
{
    return content_known(r, h, NULL) > 0 && store_has(r->store, h);
}

struct collect {
    struct registry *r;
    const struct hash *one; /* NULL: all */
    struct buf gone;        /* hashes whose rows went */
};

static int collect_rows(void *ctx, struct err *e)
{
    struct collect *c = ctx;
    struct registry *r = c->r;
    struct hash h;
    int rc;
    if (c->one) {
        sqlite3_stmt *s = use(r, CONTENT_DROP);
        bind_hash(s, 1, c->one);
        rc = db_run(r->db, s, e);
        return rc ? rc : buf_append(&c->gone, c->one, sizeof *c->one) ? no_memory(e) : 0;
    }
    sqlite3_stmt *s = use(r, CONTENT_DROP_SPARE);
    while ((rc = db_step(r->db, s, e)) > 0) {
        get_hash(s, 0, &h);
        if (buf_append(&c->gone, &h, sizeof h)) {
            sqlite3_reset(s);
            return no_memory(e);
        }
    }
    return rc;
}

static int collect(struct registry *r, const struct hash *one, struct err *e)
{
    struct collect c = {.r = r, .one = one};
    int rc = db_write(r->db, collect_rows, &c, e);
    if (!rc)
        for (size_t i = 0; i < c.gone.len; i += HASH_BYTES) {
            struct hash h;
            memcpy(h.b, c.gone.data + i, HASH_BYTES);
            int failed = store_remove(r->store, &h, rc ? NULL : e);
            rc = rc ? rc : failed;
        }
    buf_free(&c.gone);
    return rc;
}

int registry_collect(struct registry *r, struct err *e)
{
    int any = has_row(r, use(r, CONTENT_SPARE), e);
    return any > 0 ? collect(r, NULL, e) : any;
}

int registry_collect_one(struct registry *r, const struct hash *h, struct err *e)
{
    int known = content_known(r, h, e);
    if (known <= 0)
        return known;
    sqlite3_stmt *s = use(r, CONTENT_NAMED);
    bind_hash(s, 1, h);
    int named = has_row(r, s, e);
    if (named > 0)
        return err_set(e, -EEXIST, "a module or a task's version names that content");
    return named ? named : collect(r, h, e);
}

/* ---- modules ---- */

struct put_module {
    struct registry *r;
    const struct registry_module *m;
    bool was_there;
};

static int put_module_rows(void *ctx, struct err *e)
{
    struct put_module *p = ctx;
    struct registry *r = p->r;
    const struct registry_module *m = p->m;
    struct hash old;
    size_t n = 0;
    sqlite3_stmt *s = use(r, MODULE_HASH);
    bind_text(s, 1, m->name);
    int rc = db_step(r->db, s, e);
    if (rc > 0) {
        get_hash(s, 0, &old);
        p->was_there = hash_equal(&old, &m->hash);
        sqlite3_reset(s);
    } else if (!rc && !(rc = count(r, use(r, MODULE_COUNT), &n, e)) && n >= REGISTRY_MODULES_MAX) {
        rc = err_param(e, -E2BIG, "name", "there are %d modules already, the most that the registry holds", (int)n);
    }
    if (rc < 0)
        return rc;
    s = use(r, CONTENT_ADD);
    bind_hash(s, 1, &m->hash);
    rc = db_run(r->db, s, e);
    if (rc)
        return rc;
    s = use(r, MODULE_PUT);
    bind_text(s, 1, m->name);
    bind_text(s, 2, m->tenant);
    bind_hash(s, 3, &m->hash);
    bind_text(s, 4, m->kind);
    bind_text(s, 5, m->base ? m->base : "");
    const int64_t numbers[] = {(int64_t)m->bytes, m->rank, m->sites, m->verified, m->pinned, m->created};
    for (int i = 0; i < 6; i++)
        sqlite3_bind_int64(s, 6 + i, numbers[i]);
    return db_run(r->db, s, e);
}

int registry_put_module(struct registry *r, const struct registry_module *m, const char *staged, bool *was_there,
                        struct err *e)
{
    struct put_module p = {.r = r, .m = m};
    bool unsure = false;
    int rc = check_module(m, e);
    int known = rc ? rc : content_known(r, &m->hash, e);
    if (known < 0)
        return known;
    if (staged)
        rc = store_take(r->store, staged, &m->hash, e);
    else if (!known || !store_has(r->store, &m->hash))
        return err_set(e, -ENOENT, "the content of module \"%s\" is not in the registry", m->name);
    if (!rc) {
        rc = db_write(r->db, put_module_rows, &p, e);
        unsure = db_unsure(r->db);
    }
    if (rc && staged && !known && !unsure)
        store_remove(r->store, &m->hash, NULL); /* where it was known, a whole file has that name: the old or the new */
    if (!rc && was_there)
        *was_there = p.was_there;
    return rc;
}

struct drop {
    struct registry *r;
    int statement;
    const char *name, *what;
};

static int drop_row(void *ctx, struct err *e)
{
    struct drop *d = ctx;
    sqlite3_stmt *s = use(d->r, d->statement);
    bind_text(s, 1, d->name);
    int rc = db_step(d->r->db, s, e);
    if (!rc)
        return err_set(e, -ENOENT, "there is no %s \"%s\"", d->what, d->name);
    return rc > 0 ? db_run(d->r->db, s, e) : rc;
}

int registry_delete_module(struct registry *r, const char *name, struct err *e)
{
    struct drop d = {r, MODULE_DROP, name, "module"};
    int rc = check_text(e, "name", name, 1, REGISTRY_NAME_MAX);
    return rc ? rc : db_write(r->db, drop_row, &d, e);
}

/* ---- tasks ---- */

struct put_task {
    struct registry *r;
    const struct registry_task *t;
    bool created;
};

static int put_task_row(struct put_task *p, struct err *e)
{
    struct registry *r = p->r;
    const struct registry_task *t = p->t;
    size_t n = 0;
    sqlite3_stmt *s = use(r, TASK_HAS);
    bind_text(s, 1, t->id);
    int rc = has_row(r, s, e);
    p->created = rc == 0;
    if (!rc && !(rc = count(r, use(r, TASK_COUNT), &n, e)) && n >= REGISTRY_TASKS_MAX)
        rc = err_param(e, -E2BIG, "id", "there are %d tasks already, the most that the registry holds", (int)n);
    if (rc < 0)
        return rc;
    s = use(r, TASK_PUT);
    bind_text(s, 1, t->id);
    bind_text(s, 2, t->tenant);
    bind_hash(s, 3, &t->version);
    sqlite3_bind_int64(s, 4, t->created);
    sqlite3_bind_int64(s, 5, t->updated);
    return db_run(r->db, s, e);
}

static int put_refs(struct registry *r, const struct registry_task *t, struct err *e)
{
    int rc = 0;
    for (uint32_t i = 0; !rc && i < t->n_refs; i++) {
        rc = content_known(r, &t->ref[i].hash, e);
        if (!rc)
            return err_param(e, -ENOENT, "modules", "the content of module \"%s\" is not in the registry",
                             t->ref[i].name);
        if (rc < 0)
            return rc;
        sqlite3_stmt *s = use(r, REF_ADD);
        bind_text(s, 1, t->id);
        bind_hash(s, 2, &t->version);
        sqlite3_bind_int64(s, 3, i);
        bind_text(s, 4, t->ref[i].name);
        bind_hash(s, 5, &t->ref[i].hash);
        sqlite3_bind_double(s, 6, (double)t->ref[i].weight);
        rc = db_run(r->db, s, e);
    }
    return rc;
}

static int put_task_rows(void *ctx, struct err *e)
{
    struct put_task *p = ctx;
    struct registry *r = p->r;
    const struct registry_task *t = p->t;
    int rc = put_task_row(p, e);
    if (rc)
        return rc;
    sqlite3_stmt *s = use(r, VERSION_DROP);
    bind_text(s, 1, t->id);
    bind_hash(s, 2, &t->version);
    rc = db_run(r->db, s, e);
    if (rc)
        return rc;
    s = use(r, VERSION_ADD);
    bind_text(s, 1, t->id);
    bind_hash(s, 2, &t->version);
    bind_text(s, 3, t->defaults);
    bind_text(s, 4, t->template_text);
    rc = db_run(r->db, s, e);
    if (!rc)
        rc = put_refs(r, t, e);
    if (rc)
        return rc;
    s = use(r, VERSION_PRUNE);
    bind_text(s, 1, t->id);
    sqlite3_bind_int64(s, 2, REGISTRY_VERSIONS);
    return db_run(r->db, s, e);
}

int registry_put_task(struct registry *r, const struct registry_task *t, bool *created, struct err *e)
{
    struct put_task p = {.r = r, .t = t};
    int rc = check_task(t, e);
    if (!rc)
        rc = db_write(r->db, put_task_rows, &p, e);
    if (!rc && created)
        *created = p.created;
    return rc;
}

int registry_delete_task(struct registry *r, const char *id, struct err *e)
{
    struct drop d = {r, TASK_DROP, id, "task"};
    int rc = check_text(e, "id", id, 1, REGISTRY_NAME_MAX);
    return rc ? rc : db_write(r->db, drop_row, &d, e);
}

/* ---- reading ---- */

static int get_refs(struct registry *r, struct registry_task *t, struct arena *a, struct err *e)
{
    size_t n = 0, i = 0;
    sqlite3_stmt *s = use(r, REF_COUNT);
    bind_text(s, 1, t->id);
    bind_hash(s, 2, &t->version);
    int rc = count(r, s, &n, e);
    struct registry_ref *ref = rc ? NULL : arena_calloc(a, n + 1, sizeof *ref);
    if (!ref)
        return rc ? rc : no_memory(e);
    s = use(r, REF_ALL);
    bind_text(s, 1, t->id);
    bind_hash(s, 2, &t->version);
    while ((rc = db_step(r->db, s, e)) > 0 && i < n) {
        get_hash(s, 1, &ref[i].hash);
        ref[i].weight = (float)sqlite3_column_double(s, 2);
        if (!get_text(s, 0, a, &ref[i++].name)) {
            rc = no_memory(e);
            break;
        }
    }
    sqlite3_reset(s);
    t->ref = ref;
    t->n_refs = (uint32_t)i;
    return rc < 0 ? rc : 0;
}

static int get_task(struct registry *r, const char *id, const struct hash *version, struct arena *a,
                    struct registry_task *out, struct err *e)
{
    struct registry_task t = {0};
    sqlite3_stmt *s = use(r, VERSION_GET);
    bind_text(s, 1, id);
    bind_hash(s, 2, version);
    int rc = db_step(r->db, s, e);
    if (!rc)
        return err_set(e, -ENOENT, "there is no such task or version");
    if (rc < 0)
        return rc;
    bool ok = get_text(s, 0, a, &t.id) && get_text(s, 1, a, &t.tenant) && get_text(s, 3, a, &t.defaults) &&
              get_text(s, 4, a, &t.template_text);
    get_hash(s, 2, &t.version);
    t.created = sqlite3_column_int64(s, 5);
    t.updated = sqlite3_column_int64(s, 6);
    sqlite3_reset(s);
    rc = ok ? get_refs(r, &t, a, e) : no_memory(e);
    if (!rc)
        *out = t;
    return rc;
}

int registry_task_version(struct registry *r, const char *id, const struct hash *version, struct arena *a,
                          const struct registry_task **out, struct err *e)
{
    struct registry_task *t = arena_calloc(a, 1, sizeof *t);
    int rc = t ? get_task(r, id, version, a, t, e) : no_memory(e);
    if (!rc)
        *out = t;
    return rc;
}

int registry_task_versions(struct registry *r, const char *id, struct arena *a, const struct hash **v, size_t *n,
                           struct err *e)
{
    size_t i = 0;
    int rc;
    struct hash *all = arena_calloc(a, REGISTRY_VERSIONS, sizeof *all);
    if (!all)
        return no_memory(e);
    sqlite3_stmt *s = use(r, VERSION_ALL);
    bind_text(s, 1, id);
    while ((rc = db_step(r->db, s, e)) > 0 && i < REGISTRY_VERSIONS)
        get_hash(s, 0, &all[i++]);
    sqlite3_reset(s);
    if (rc < 0)
        return rc;
    if (!i)
        return err_set(e, -ENOENT, "there is no task \"%s\"", id);
    *v = all;
    *n = i;
    return 0;
}

static bool get_module(sqlite3_stmt *s, struct arena *a, struct registry_module *m)
{
    get_hash(s, 2, &m->hash);
    m->bytes = (uint64_t)sqlite3_column_int64(s, 5);
    m->rank = (uint32_t)sqlite3_column_int64(s, 6);
    m->sites = (uint32_t)sqlite3_column_int64(s, 7);
    m->verified = sqlite3_column_int64(s, 8);
    m->pinned = sqlite3_column_int64(s, 9);
    m->created = sqlite3_column_int64(s, 10);
    return get_text(s, 0, a, &m->name) && get_text(s, 1, a, &m->tenant) && get_text(s, 3, a, &m->kind) &&
           get_text(s, 4, a, &m->base);
}

static int load_modules(struct registry *r, struct arena *a, struct registry_module **out, size_t *n, struct err *e)
{
    size_t cap = 0, i = 0;
    int rc = count(r, use(r, MODULE_COUNT), &cap, e);
    struct registry_module *m = rc ? NULL : arena_calloc(a, cap + 1, sizeof *m);
    if (!m)
        return rc ? rc : no_memory(e);
    sqlite3_stmt *s = use(r, MODULE_ALL);
    while ((rc = db_step(r->db, s, e)) > 0 && i < cap)
        if (!get_module(s, a, &m[i++])) {
            rc = no_memory(e);
            break;
        }
    sqlite3_reset(s);
    *out = m;
    *n = i;
    return rc < 0 ? rc : 0;
}

static int load_tasks(struct registry *r, struct arena *a, struct registry_task **out, size_t *n, struct err *e)
{
    size_t cap = 0, i = 0;
    int rc = count(r, use(r, TASK_COUNT), &cap, e);
    struct registry_task *t = rc ? NULL : arena_calloc(a, cap + 1, sizeof *t);
    if (!t)
        return rc ? rc : no_memory(e);
    sqlite3_stmt *s = use(r, TASK_ALL);
    while ((rc = db_step(r->db, s, e)) > 0 && i < cap) {
        struct hash h;
        get_hash(s, 1, &h);
        const char *id = (const char *)sqlite3_column_text(s, 0);
        rc = id ? get_task(r, id, &h, a, &t[i++], e) : no_memory(e);
        if (rc)
            break;
    }
    sqlite3_reset(s);
    *out = t;
    *n = i;
    return rc < 0 ? rc : 0;
}

int registry_load(struct registry *r, struct arena *a, const struct registry_module **m, size_t *n_m,
                  const struct registry_task **t, size_t *n_t, struct err *e)
{
    struct registry_module *modules = NULL;
    struct registry_task *tasks = NULL;
    size_t nm = 0, nt = 0;
    int rc = load_modules(r, a, &modules, &nm, e);
    if (!rc)
        rc = load_tasks(r, a, &tasks, &nt, e);
    if (rc)
        return rc;
    *m = modules;
    *n_m = nm;
    *t = tasks;
    *n_t = nt;
    return 0;
}
