/* task.c - the table of tasks, versions and modules.
 *
 * Loop thread, except module_load. The table is a plain array in the order of arrival: hundreds of tasks are compared
 * by length and bytes in microseconds. References are counted without atomics because only the loop counts them; the
 * engine uses a version's pets only while a generation holds a reference on the loop's side.
 */
#include "server/task.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/utf8.h"
#include "server/gen.h"

struct tasks {
    struct task_version **v;
    size_t n, cap;
    uint64_t next_number;
};

int module_load(struct kern_dev *d, const struct pet_target *t, const char *path, uint32_t max_rank,
                struct module **out, struct err *e)
{
    struct pet_limits lim = {.max_rank = max_rank};
    struct pet *p;
    uint64_t t0 = mono_ns();
    int rc = pet_open(path, &lim, &p, e);
    if (rc)
        return rc;
    struct module *m = calloc(1, sizeof *m);
    char *name = strdup(path);
    if (!m || !name)
        rc = err_set(e, -ENOMEM, "out of memory for the module %s", path);
    else if (pet_info(p)->kind != PET_LORA)
        rc = err_set(e, -EINVAL, "%s: is a %s module, not a task's", path, pet_kind_name(pet_info(p)->kind));
    else if ((rc = pet_load(d, p, t, &m->slot, e)))
        err_prefix(e, rc, "%s", path);
    if (!rc) {
        m->refs = 1;
        m->name = name;
        m->info = *pet_info(p);
        m->dev = d;
        m->load_seconds = (double)(mono_ns() - t0) * 1e-9;
        *out = m;
    } else {
        free(name);
        free(m);
    }
    pet_close(p);
    return rc;
}

void module_ref(struct module *m)
{
    m->refs++;
}

void module_unref(struct module *m)
{
    if (!m || --m->refs)
        return;
    pet_unload(m->dev, m->slot);
    free(m->name);
    free(m);
}

void task_ref(struct task_version *v)
{
    v->refs++;
}

void task_unref(struct task_version *v)
{
    if (!v || --v->refs)
        return;
    for (uint32_t i = 0; i < v->n_pets; i++)
        module_unref(v->module[i]);
    free(v->module);
    free(v->pet);
    free(v->id);
    tmpl_free(v->tmpl);
    arena_free(v->memory);
    free(v);
}

struct tasks *tasks_create(void)
{
    return calloc(1, sizeof(struct tasks));
}

void tasks_free(struct tasks *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n; i++)
        task_unref(t->v[i]);
    free(t->v);
    free(t);
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

static void hash_version(const struct task_spec *s, struct hash *out)
{
    struct hash_state h;
    hash_init(&h);
    for (uint32_t i = 0; i < s->n_modules; i++) {
        hash_update(&h, &s->module[i]->info.hash, sizeof s->module[i]->info.hash);
        hash_update(&h, &s->weight[i], sizeof s->weight[i]);
    }
    const char *texts[] = {s->template_text, s->defaults_json};
    for (int i = 0; i < 2; i++) {
        hash_update(&h, texts[i] ? "+" : "-", 1);
        if (texts[i])
            hash_update(&h, texts[i], strlen(texts[i]) + 1);
    }
    hash_final(&h, out);
}

static int fill_settings(struct task_version *v, const struct task_spec *s, struct err *e)
{
    int rc = s->template_text ? tmpl_parse(s->template_text, strlen(s->template_text), &v->tmpl, e) : 0;
    if (rc || !s->defaults_json)
        return rc;
    v->memory = arena_create((size_t)1 << 20);
    if (!v->memory)
        return err_set(e, -ENOMEM, "out of memory");
    struct req_sampling *d;
    rc = req_parse_defaults(s->defaults_json, strlen(s->defaults_json), &req_limits_default, v->memory, &d, e);
    if (!rc)
        v->defaults = d;
    return rc;
}

static int make_version(const struct task_spec *s, struct task_version **out, struct err *e)
{
    int rc = task_check_id(s->id, e);
    for (uint32_t i = 0; !rc && i < s->n_modules; i++)
        if (!isfinite(s->weight[i]))
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
    v->created = (int64_t)time(NULL);
    v->module = calloc(s->n_modules + 1, sizeof *v->module);
    v->pet = calloc(s->n_modules + 1, sizeof *v->pet);
    rc = v->id && v->module && v->pet ? fill_settings(v, s, e) : err_set(e, -ENOMEM, "out of memory");
    if (rc) {
        task_unref(v);
        return rc;
    }
    for (; v->n_pets < s->n_modules; v->n_pets++) {
        struct module *m = s->module[v->n_pets];
        module_ref(m);
        v->module[v->n_pets] = m;
        v->pet[v->n_pets] = (struct model_pet){pet_slot_kern(m->slot), s->weight[v->n_pets]};
    }
    hash_version(s, &v->hash);
    *out = v;
    return 0;
}

static size_t find(const struct tasks *t, const char *id, size_t n)
{
    for (size_t i = 0; i < t->n; i++)
        if (strlen(t->v[i]->id) == n && !memcmp(t->v[i]->id, id, n))
            return i;
    return SIZE_MAX;
}

int tasks_put(struct tasks *t, const struct task_spec *s, bool replace, struct err *e)
{
    size_t at = find(t, s->id, strlen(s->id));
    if (at != SIZE_MAX && (!replace || t->v[at]->backbone))
        return err_param(e, -EEXIST, "id", "the task \"%s\" is there already", s->id);
    if (at == SIZE_MAX && t->n == t->cap) {
        size_t cap = t->cap ? 2 * t->cap : 16;
        struct task_version **p = realloc(t->v, cap * sizeof *p);
        if (!p)
            return err_set(e, -ENOMEM, "out of memory");
        t->v = p;
        t->cap = cap;
    }
    struct task_version *v = NULL;
    int rc = make_version(s, &v, e);
    if (rc)
        return rc;
    if (at == SIZE_MAX) {
        v->number = ++t->next_number;
        t->v[t->n++] = v;
        return 0;
    }
    v->number = t->v[at]->number;
    task_unref(t->v[at]);
    t->v[at] = v;
    return 0;
}

int tasks_remove(struct tasks *t, const char *id)
{
    size_t at = find(t, id, strlen(id));
    if (at == SIZE_MAX || t->v[at]->backbone)
        return -ENOENT;
    task_unref(t->v[at]);
    memmove(t->v + at, t->v + at + 1, (t->n - at - 1) * sizeof *t->v);
    t->n--;
    return 0;
}

bool task_visible(const struct task_version *v, uint32_t tenant)
{
    return v->tenant == TASK_EVERYBODY || v->tenant == tenant;
}

struct task_version *tasks_get(const struct tasks *t, uint32_t tenant, const char *id, size_t n_id)
{
    size_t at = find(t, id, n_id);
    if (at == SIZE_MAX || !task_visible(t->v[at], tenant))
        return NULL;
    task_ref(t->v[at]);
    return t->v[at];
}

const struct task_version *tasks_at(const struct tasks *t, size_t i)
{
    return i < t->n ? t->v[i] : NULL;
}
