/* load.c - loading at start, on the engine thread, while the loop already answers /health and /ready.
 *
 * What the registry holds is read as rows only: modules are loaded when requests need them, so that a start with a
 * thousand of them is as quick as without. Fills a struct loaded that the loop takes over when the engine says that
 * loading is over; until then nobody else looks at it. On failure what was made stays in it and loaded_free drops it.
 */
#include "server/load.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/gen.h"

/* Most bytes of compiled grammars that wait to be used again. */
#define GRAMMARS_BYTES ((size_t)128 << 20)

static int load_tokenizer(struct loaded *l, struct err *e)
{
    int rc = tok_open(l->o->model, &l->tok, e);
    size_t n;
    const char *text = rc ? NULL : tok_chat_template(l->tok, &n);
    if (!text)
        return rc;
    struct err why;
    if (tmpl_parse(text, n, &l->tmpl, &why))
        snprintf(l->tmpl_problem, sizeof l->tmpl_problem, "%s", why.msg);
    return 0;
}

/* A tokenizer that no grammar can be made for serves everything else. */
static int load_grammars(struct loaded *l, const struct model *m, struct err *e)
{
    size_t n_eos;
    const int32_t *eos = tok_eos_ids(l->tok, &n_eos);
    struct err why = {0};
    int rc = grammar_vocab_create(l->tok, eos, n_eos, model_info(m)->vocab, &l->vocab, &why);
    if (rc && rc != -ENOMEM) {
        snprintf(l->vocab_problem, sizeof l->vocab_problem, "%s", why.msg);
        return 0;
    }
    l->grammars = rc ? NULL : grammars_create(l->vocab, GRAMMARS_BYTES);
    return l->grammars ? 0 : err_set(e, -ENOMEM, "no memory for the tokenizer's tree of tokens");
}

/* ---- modules of --pet ---- */

static bool seen_before(const struct loaded *l, size_t i)
{
    for (size_t k = 0; k < i; k++)
        if (hash_equal(&l->pet[k].info.hash, &l->pet[i].info.hash))
            return true;
    return false;
}

/* Loads it when `left` bytes are enough. */
static int load_pet(struct loaded *l, const struct pet_target *t, size_t i, size_t left, struct err *e)
{
    struct loaded_pet *lp = &l->pet[i];
    struct pet *p;
    uint64_t t0 = mono_ns();
    int rc = pet_open(l->o->pet_path[i], NULL, &p, e);
    if (rc)
        return rc;
    lp->info = *pet_info(p);
    if (lp->info.kind != PET_LORA)
        rc = err_set(e, -EINVAL, "%s: is a %s module, not a task's", l->o->pet_path[i], pet_kind_name(lp->info.kind));
    if (!rc && (rc = pet_check(p, t, e)))
        err_prefix(e, rc, "%s", l->o->pet_path[i]);
    lp->need = rc ? 0 : pet_resident_bytes(p, t);
    if (!rc && !lp->need)
        rc = err_set(e, -ENOMEM, "out of memory");
    if (!rc && lp->need <= left && !seen_before(l, i)) {
        lp->mem = calloc(1, sizeof *lp->mem);
        rc = lp->mem ? pet_load(l->dev, p, t, &lp->mem->slot, e) : err_set(e, -ENOMEM, "out of memory");
    }
    lp->seconds = (double)(mono_ns() - t0) * 1e-9;
    pet_close(p);
    return rc;
}

static void drop_pets(struct loaded *l)
{
    for (size_t i = 0; l->pet && i < l->o->n_pets; i++) {
        if (l->pet[i].mem)
            pet_unload(l->dev, l->pet[i].mem->slot);
        free(l->pet[i].mem);
        l->pet[i].mem = NULL;
    }
}

/* All of them are looked at; they stay in memory when they fit into it together, else they come when they are used. */
static int load_pets(struct loaded *l, const struct model *m, struct err *e)
{
    size_t budget = l->o->pet_bytes < SIZE_MAX ? (size_t)l->o->pet_bytes : SIZE_MAX, used = 0;
    l->pet = calloc(l->o->n_pets + 1, sizeof *l->pet);
    if (!l->pet)
        return err_set(e, -ENOMEM, "out of memory");
    l->pets_fit = true;
    for (size_t i = 0; i < l->o->n_pets; i++) {
        int rc = load_pet(l, model_pet_target(m), i, l->pets_fit ? budget - used : 0, e);
        if (rc)
            return err_prefix(e, rc, "--pet %s", l->o->pet_task[i]);
        if (l->pet[i].need > budget)
            return err_param(e, -E2BIG, "pet-bytes", "--pet %s: takes %zu bytes of memory, --pet-bytes is %zu",
                             l->o->pet_task[i], l->pet[i].need, budget);
        if (l->pet[i].mem)
            used += l->pet[i].need;
        else if (!seen_before(l, i))
            l->pets_fit = false;
    }
    if (!l->pets_fit)
        drop_pets(l);
    return 0;
}

/* ---- the registry ---- */

/* A row that cannot be read any more is its task's trouble, not the server's. */
static void load_task(struct loaded *l, size_t i)
{
    const struct registry_task *t = &l->task[i];
    struct err why;
    if (task_settings_make(t->template_text, t->defaults, &l->task_more[i].settings, &why))
        l->task_more[i].problem = strdup(why.msg);
}

static int load_registry(struct loaded *l, struct err *e)
{
    if (!l->o->data && !l->o->admin_listen)
        return 0;
    int rc = registry_open(l->o->data, &l->registry, e);
    if (rc)
        return err_prefix(e, rc, "--data");
    l->rows = arena_create(0);
    rc = l->rows ? registry_load(l->registry, l->rows, &l->module, &l->n_modules, &l->task, &l->n_tasks, e)
                 : err_set(e, -ENOMEM, "out of memory");
    if (rc)
        return rc;
    l->task_more = calloc(l->n_tasks + 1, sizeof *l->task_more);
    l->module_there = calloc(l->n_modules + 1, sizeof *l->module_there);
    if (!l->task_more || !l->module_there)
        return err_set(e, -ENOMEM, "out of memory");
    for (size_t i = 0; i < l->n_modules; i++)
        l->module_there[i] = registry_has_content(l->registry, &l->module[i].hash);
    for (size_t i = 0; i < l->n_tasks; i++)
        load_task(l, i);
    return 0;
}

/* ---- all ---- */

int load_all(void *ctx, struct model **out, struct err *e)
{
    struct loaded *l = ctx;
    const struct options *o = l->o;
    struct kern_opts ko = {.threads = o->threads, .max_level = o->cpu_level};
    int rc = kern_open(&ko, &l->dev, e);
    if (rc)
        return rc;
    rc = load_registry(l, e);
    if (!rc)
        rc = load_tokenizer(l, e);
    if (rc)
        return rc;
    struct model_opts mo = {.dir = o->model,
                            .recovery = o->recovery,
                            .precision = (enum model_precision)o->precision,
                            .kv_type = o->kv_type,
                            .kv_bytes = o->kv_bytes,
                            .max_context = o->max_context,
                            .max_rows = o->max_rows,
                            .max_logits = o->max_rows && o->max_rows < 128 ? o->max_rows : 128,
                            .max_seqs = o->max_seqs};
    struct model *m;
    rc = model_open(l->dev, &mo, &m, e);
    if (rc)
        return rc;
    rc = load_grammars(l, m, e);
    if (!rc)
        rc = load_pets(l, m, e);
    if (rc) {
        model_close(m);
        return rc;
    }
    *out = m;
    return 0;
}

void loaded_free(struct loaded *l)
{
    drop_pets(l);
    free(l->pet);
    for (size_t i = 0; l->task_more && i < l->n_tasks; i++) {
        task_settings_free(l->task_more[i].settings);
        free(l->task_more[i].problem);
    }
    free(l->task_more);
    free(l->module_there);
    arena_free(l->rows);
    registry_close(l->registry);
    grammars_free(l->grammars);
    grammar_vocab_free(l->vocab);
    tok_close(l->tok);
    tmpl_free(l->tmpl);
    kern_close(l->dev);
    memset(l, 0, sizeof *l);
}
