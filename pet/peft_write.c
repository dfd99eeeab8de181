/* peft_write.c - a LoRA module back as a PEFT directory.
 *
 * Runs on the caller's thread. The tensors are written as they are, so a directory that went through .pet comes back
 * with the same bytes. The configuration says the commonest rank and alpha, and the others by whole names in
 * rank_pattern and alpha_pattern ("^" in front, so that a pattern cannot match the end of a longer name). alpha is
 * scale * rank, which is exact in a double, so that alpha / rank gives the scale's bits back; rsLoRA's scales are
 * written in that way too, with use_rslora false.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/arena.h"
#include "common/buf.h"
#include "common/file.h"
#include "formats/json.h"
#include "pet/internal.h"

static double alpha_of(const struct part *q)
{
    double alpha = (double)q->scale * q->rank, whole = nearbyint(alpha);
    return (float)(whole / q->rank) == q->scale ? whole : alpha;
}

static int cmp_double(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The value that comes most often; sorts v. */
static double commonest(double *v, size_t n)
{
    qsort(v, n, sizeof *v, cmp_double);
    double best = v[0];
    size_t best_n = 0;
    for (size_t i = 0, j = 0; i < n; i = j) {
        while (j < n && v[j] == v[i])
            j++;
        if (j - i > best_n) {
            best_n = j - i;
            best = v[i];
        }
    }
    return best;
}

static json_t *number(double v)
{
    return v == nearbyint(v) && fabs(v) < 1e15 ? json_integer((json_int_t)v) : json_real(v);
}

/* "^model\.layers\.3\.self_attn\.q_proj" */
static int name_pattern(const char *module, struct buf *b)
{
    buf_clear(b);
    buf_puts(b, "^");
    for (const char *s = module; *s; s++) {
        if (strchr("\\^$.|?*+()[]{}", *s))
            buf_puts(b, "\\");
        buf_append(b, s, 1);
    }
    return b->failed ? -ENOMEM : 0;
}

static int fill_config(const struct pet *p, double r, double alpha, json_t *ranks, json_t *alphas, json_t *targets)
{
    struct buf b = {0};
    int rc = 0;
    for (size_t i = 0; !rc && i < p->n_parts; i++) {
        const struct part *q = &p->parts[i];
        rc = name_pattern(q->module, &b);
        if (!rc && q->rank != r)
            rc = json_object_set_new(ranks, b.data, json_integer(q->rank));
        if (!rc && alpha_of(q) != alpha)
            rc = json_object_set_new(alphas, b.data, number(alpha_of(q)));
        if (!rc)
            rc = json_array_append_new(targets, json_string(q->module));
    }
    buf_free(&b);
    return rc;
}

static int write_config(const struct pet *p, const char *path, struct err *e)
{
    double *v = malloc(p->n_parts * sizeof *v);
    if (!v)
        return err_set(e, -ENOMEM, "out of memory");
    for (size_t i = 0; i < p->n_parts; i++)
        v[i] = p->parts[i].rank;
    double r = commonest(v, p->n_parts);
    for (size_t i = 0; i < p->n_parts; i++)
        v[i] = alpha_of(&p->parts[i]);
    double alpha = commonest(v, p->n_parts);
    free(v);
    json_t *ranks = json_object(), *alphas = json_object(), *targets = json_array();
    int rc = fill_config(p, r, alpha, ranks, alphas, targets);
    json_t *o = json_pack("{ss ss ss sb ss sb sb so so so so so}", "peft_type", "LORA", "task_type", "CAUSAL_LM",
                          "base_model_name_or_path", p->info.base, "inference_mode", 1, "bias", "none", "use_rslora", 0,
                          "use_dora", 0, "r", number(r), "lora_alpha", number(alpha), "rank_pattern", ranks,
                          "alpha_pattern", alphas, "target_modules", targets);
    if (rc || !o)
        rc = err_set(e, -ENOMEM, "out of memory for the configuration");
    else
        rc = json_write_file(path, o, e);
    json_decref(o);
    return rc;
}

static int write_tensors(const struct pet *p, const char *path, struct err *e)
{
    static const char *const meta[] = {"format", "pt", NULL};
    struct arena *a = arena_create(0);
    struct st_out *t = calloc(2 * p->n_parts, sizeof *t);
    int r = a && t ? 0 : err_set(e, -ENOMEM, "out of memory");
    for (size_t i = 0; !r && i < p->n_parts; i++) {
        const struct part *q = &p->parts[i];
        for (int j = 0; !r && j < 2; j++) {
            t[2 * i + j] = (struct st_out){
                .name = arena_printf(a, "base_model.model.%s.lora_%c.weight", q->module, "AB"[j]),
                .type = q->t[j].type,
                .ndim = 2,
                .shape = {j ? q->n : q->rank, j ? q->rank : q->k},
                .data = q->t[j].data,
            };
            if (!t[2 * i + j].name)
                r = err_set(e, -ENOMEM, "out of memory");
        }
    }
    if (!r)
        r = st_write(path, t, 2 * p->n_parts, meta, e);
    free(t);
    arena_free(a);
    return r;
}

int pet_write_peft(const struct pet *p, const char *dir, struct err *e)
{
    if (p->info.kind != PET_LORA)
        return err_set(e, -EINVAL, "%s: a %s module cannot be written as a PEFT directory, only a LoRA can", dir,
                       pet_kind_name(p->info.kind));
    int r = pet_finite(p, e);
    if (r)
        return err_prefix(e, r, "%s", dir);
    r = dir_make(dir, e);
    if (r)
        return r;
    char *config = path_join(dir, "adapter_config.json"), *tensors = path_join(dir, "adapter_model.safetensors");
    r = config && tensors ? 0 : err_set(e, -ENOMEM, "%s: out of memory", dir);
    if (!r)
        r = write_tensors(p, tensors, e);
    if (!r)
        r = write_config(p, config, e);
    free(config);
    free(tensors);
    return r;
}
