/* load.c - loading at start, on the engine thread, while the loop already answers /health and /ready.
 *
 * Fills a struct loaded that the loop takes over when the engine says that loading is over; until then nobody else
 * looks at it. On failure what was made stays in it and loaded_free drops it.
 */
#include "server/load.h"

#include <stdio.h>
#include <string.h>

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

static int load_pets(struct loaded *l, const struct model *m, struct err *e)
{
    for (size_t i = 0; i < l->o->n_pets; i++) {
        int rc = module_load(l->dev, model_pet_target(m), l->o->pet_path[i], 0, &l->module[i], e);
        if (rc)
            return err_prefix(e, rc, "--pet %s", l->o->pet_task[i]);
    }
    return 0;
}

int load_all(void *ctx, struct model **out, struct err *e)
{
    struct loaded *l = ctx;
    const struct options *o = l->o;
    struct kern_opts ko = {.threads = o->threads, .max_level = o->cpu_level};
    int rc = kern_open(&ko, &l->dev, e);
    if (rc)
        return rc;
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
    for (size_t i = 0; i < OPTIONS_MANY; i++)
        module_unref(l->module[i]);
    tok_close(l->tok);
    tmpl_free(l->tmpl);
    kern_close(l->dev);
    memset(l, 0, sizeof *l);
}
