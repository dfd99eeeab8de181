/* task.c - versions of tasks, and the table of those that are current.
 *
 * Loop thread, except task_settings_make. References are counted without atomics because only the loop
 * counts them; the engine uses a version's modules only while a request holds a reference on the loop's side. A current
 * version wants its modules (module.h); one that requests alone still hold does not, so that the memory of a module
 * that was swapped out or deleted goes with the last of them.
 */
#include "server/task.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/utf8.h"

struct tasks {
    struct table table;
    uint64_t next_number;
};

/* ---- settings ---- */

void task_settings_free(struct task_settings *s)
{
    if (!s)
        return;
    tmpl_free(s->tmpl);
    arena_free(s->memory);
    free(s->template_text);
    free(s->defaults_json);
    free(s);
}

static int parse_defaults(struct task_settings *s, struct err *e)
{
    s->memory = arena_create((size_t)1 << 20);
    if (!s->memory)
        return err_set(e, -ENOMEM, "out of memory");
    int rc =
        req_parse_defaults(s->defaults_json, strlen(s->defaults_json), &req_limits_default, s->memory, &s->defaults, e);
    if (rc == -E2BIG && arena_no_memory(s->memory))
        return err_set(e, -ENOMEM, "out of memory");
    char field[sizeof e->param];
    if (rc && e) { /* the field's own name, below "defaults" */
        memcpy(field, e->param, sizeof field);
        field[sizeof field - 10] = 0;
        memcpy(e->param, "defaults", 9);
        if (*field)
            strcat(strcat(e->param, "."), field);
    }
    return rc;
}

int task_settings_make(const char *template_text, const char *defaults_json, struct task_settings **out, struct err *e)
{
    struct task_settings *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(e, -ENOMEM, "out of memory");
    s->template_text = template_text ? strdup(template_text) : NULL;
    s->defaults_json = defaults_json ? strdup(defaults_json) : NULL;
    int rc = 0;
    if ((template_text && !s->template_text) || (defaults_json && !s->defaults_json))
        rc = err_set(e, -ENOMEM, "out of memory");
    if (!rc && template_text) {
        rc = tmpl_parse(template_text, strlen(template_text), &s->tmpl, e);
        if (rc && e)
            memcpy(e->param, "template", 9);
    }
    if (!rc && defaults_json)
        rc = parse_defaults(s, e);
    if (rc)
        task_settings_free(s);
    else
        *out = s;
    return rc;
}

/* ---- versions ---- */

void task_ref(struct task_version *v)
{
    v->refs++;
}

void task_unref(struct task_version *v)
{
    if (!v || --v->refs)
        return;
    for (uint32_t i = 0; i < v->n_pets; i++) {
        module_unref(v->module[i]);
        free(v->module_name[i]);
    }
    free(v->module);
    free(v->module_name);
    free(v->pet);
    free(v->id);
    free(v->problem);
    task_settings_free(v->settings);
    free(v);
}

int task_check_id(const char *id, struct err *e)
{
    size_t n = strlen(id);
    if (!n || n > TASK_ID_MAX)
        return err_param(e, -EINVAL, "id", "a task ID has 1 to %d bytes", TASK_ID_MAX);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)id[i] <= ' ' || id[i] == 0x7F || id[i] == '"' || id[i] == '\\')
            return err_param(e, -EINVAL, "id", "a task ID holds no blanks, controls, quotes or backslashes");
    if (utf8_valid(id, n) != n)
        return err_param(e, -EINVAL, "id", "a task ID must be valid UTF-8; byte %zu is not", utf8_valid(id, n));
    return 0;
}

static void hash_version(struct task_version *v, const struct task_settings *s)
{
    struct hash_state h;
    hash_init(&h);
    for (uint32_t i = 0; i < v->n_pets; i++) {
        hash_update(&h, &v->module[i]->info.hash, sizeof v->module[i]->info.hash);
        hash_update(&h, &v->pet[i].weight, sizeof v->pet[i].weight);
    }
    const char *texts[] = {s ? s->template_text : NULL, s ? s->defaults_json : NULL};
    for (int i = 0; i < 2; i++) {
        hash_update(&h, texts[i] ? "+" : "-", 1);
        if (texts[i])
            hash_update(&h, texts[i], strlen(texts[i]) + 1);
    }
    hash_final(&h, &v->hash);
}

static int fill_refs(struct task_version *v, const struct task_spec *s)
{
    v->module = calloc(s->n_refs + 1, sizeof *v->module);
    v->module_name = calloc(s->n_refs + 1, sizeof *v->module_name);
    v->pet = calloc(s->n_refs + 1, sizeof *v->pet);
    if (!v->module || !v->module_name || !v->pet)
        return -ENOMEM;
    for (uint32_t i = 0; i < s->n_refs; i++) {
        v->module_name[i] = strdup(s->ref[i].name);
        if (!v->module_name[i])
            return -ENOMEM;
        v->module[i] = s->ref[i].module;
        v->pet[i].weight = s->ref[i].weight;
        module_ref(v->module[i]);
        v->n_pets++;
    }
    hash_version(v, s->settings);
    return 0;
}

int task_make(const struct task_spec *s, struct task_version **out, struct err *e)
{
    int rc = task_check_id(s->id, e);
    for (uint32_t i = 0; !rc && i < s->n_refs; i++)
        if (!isfinite(s->ref[i].weight))
            rc = err_param(e, -EINVAL, "modules", "a module's weight is not a finite number");
    if (rc)
        return rc;
    struct task_version *v = calloc(1, sizeof *v);
    if (!v)
        return err_set(e, -ENOMEM, "out of memory");
    v->refs = 1;
    v->id = strdup(s->id);
    v->tenant = s->tenant;
    v->backbone = s->backbone;
    v->fixed = s->fixed || s->backbone;
    v->created = s->created ? s->created : (int64_t)time(NULL);
    v->updated = s->updated ? s->updated : (int64_t)time(NULL);
    v->problem = s->problem ? strdup(s->problem) : NULL;
    if (!v->id || fill_refs(v, s) || (s->problem && !v->problem)) {
        task_unref(v);
        return err_set(e, -ENOMEM, "out of memory");
    }
    v->settings = s->settings;
    v->tmpl = v->settings ? v->settings->tmpl : NULL;
    v->defaults = v->settings ? v->settings->defaults : NULL;
    *out = v;
    return 0;
}

int task_rename_ref(struct task_version *v, uint32_t i, const char *name, struct err *e)
{
    char *copy = strdup(name);
    if (!copy)
        return err_set(e, -ENOMEM, "out of memory");
    free(v->module_name[i]);
    v->module_name[i] = copy;
    return 0;
}

/* Given by its content's hash: the name is the hash. */
static bool by_hash(const struct task_version *v, uint32_t i)
{
    char hex[HASH_HEX];
    hash_hex(&v->module[i]->info.hash, hex);
    return !strcmp(hex, v->module_name[i]);
}

const char *task_missing_module(const struct task_version *v, const struct modules *m)
{
    if (v->fixed)
        return NULL;
    for (uint32_t i = 0; i < v->n_pets; i++)
        if (!module_named(m, v->module_name[i]) && !by_hash(v, i))
            return v->module_name[i];
    return NULL;
}

/* ---- the table ---- */

struct tasks *tasks_create(void)
{
    return calloc(1, sizeof(struct tasks));
}

static void want_modules(struct task_version *v, int by)
{
    for (uint32_t i = 0; i < v->n_pets; i++)
        module_want(v->module[i], by);
}

static void retire(struct task_version *v)
{
    want_modules(v, -1);
    task_unref(v);
}

void tasks_free(struct tasks *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->table.n; i++)
        retire(table_at(&t->table, i));
    table_free(&t->table);
    free(t);
}

int tasks_reserve(struct tasks *t)
{
    return table_reserve(&t->table);
}

void tasks_set(struct tasks *t, struct task_version *v)
{
    struct task_version *old = tasks_find(t, v->id);
    v->number = old ? old->number : ++t->next_number;
    want_modules(v, 1);
    if (table_put(&t->table, v->id, strlen(v->id), v)) { /* cannot be: room was made before */
        retire(v);
        return;
    }
    if (old)
        retire(old);
}

int tasks_add(struct tasks *t, const struct task_spec *s, struct err *e)
{
    struct task_version *v = NULL;
    if (tasks_find(t, s->id))
        return err_param(e, -EEXIST, "id", "the task \"%s\" is there already", s->id);
    if (tasks_reserve(t))
        return err_set(e, -ENOMEM, "out of memory");
    int rc = task_make(s, &v, e);
    if (!rc)
        tasks_set(t, v);
    return rc;
}

int tasks_remove(struct tasks *t, const char *id)
{
    struct task_version *v = table_remove(&t->table, id, strlen(id));
    if (!v)
        return -ENOENT;
    retire(v);
    return 0;
}

struct task_version *tasks_find(const struct tasks *t, const char *id)
{
    return table_get(&t->table, id, strlen(id));
}

bool task_visible(const struct task_version *v, uint32_t tenant)
{
    return v->tenant == TASK_EVERYBODY || v->tenant == tenant;
}

struct task_version *tasks_get(const struct tasks *t, uint32_t tenant, const char *id, size_t n_id)
{
    struct task_version *v = table_get(&t->table, id, n_id);
    if (!v || !task_visible(v, tenant))
        return NULL;
    task_ref(v);
    return v;
}

const struct task_version *tasks_at(const struct tasks *t, size_t i)
{
    return table_at(&t->table, i);
}

const struct task_version *tasks_using(const struct tasks *t, const char *name, const struct module *m)
{
    for (size_t i = 0; i < t->table.n; i++) {
        const struct task_version *v = table_at(&t->table, i);
        for (uint32_t k = 0; !v->fixed && k < v->n_pets; k++)
            if (!strcmp(v->module_name[k], name) || (m && v->module[k] == m && by_hash(v, k)))
                return v;
    }
    return NULL;
}
