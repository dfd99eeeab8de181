/* load.c - a module on a backbone: checked, sliced and rescaled to its sites, packed in device memory.
 *
 * Any thread; a load touches nothing but its own allocation. A slot owns one device allocation for all its sites and
 * the table of kern_lr, which has one entry a site and does not move until pet_unload. While loading, one site at a
 * time is held in floats: A' = A[:, in_index] * in_scale and B' = out_scale * B[out_index, :] (pet.h); nothing of that
 * stays. What would not be finite in the device's type is refused, so that no step ever meets it.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "pet/internal.h"

#define BF16_MAX 0x1.FFp127f /* values from here on round to infinity */

struct pet_slot {
    struct kern_slot slot;
    struct kern_lr *site;
    kmem mem;
    size_t bytes;
};

void pet_plan_free(struct pet_plan *plan)
{
    free(plan->of);
    free(plan->at);
    *plan = (struct pet_plan){0};
}

static int cmp_sites(const void *a, const void *b)
{
    return strcmp((*(const struct pet_site *const *)a)->module, (*(const struct pet_site *const *)b)->module);
}

/* Walks both sorted lists. Parts without a site get NULL. */
static int match_sites(const struct pet *p, const struct pet_target *t, struct pet_plan *plan, struct err *e)
{
    const struct pet_site **by_name = malloc((t->n_sites + (size_t)1) * sizeof *by_name);
    plan->of = malloc((p->n_parts + 1) * sizeof *plan->of);
    plan->at = malloc((p->n_parts + 1) * sizeof *plan->at);
    if (!by_name || !plan->of || !plan->at) {
        free(by_name);
        return err_set(e, -ENOMEM, "out of memory for a table of %u sites", t->n_sites);
    }
    for (uint32_t i = 0; i < t->n_sites; i++)
        by_name[i] = &t->sites[i];
    qsort(by_name, t->n_sites, sizeof *by_name, cmp_sites);
    for (size_t i = 0, j = 0; i < p->n_parts; i++) {
        while (j < t->n_sites && strcmp(by_name[j]->module, p->parts[i].module) < 0)
            j++;
        bool same = j < t->n_sites && !strcmp(by_name[j]->module, p->parts[i].module);
        plan->of[i] = same ? by_name[j] : NULL;
    }
    free(by_name);
    return 0;
}

static bool hash_known(const struct hash *h)
{
    static const struct hash zero;
    return !hash_equal(h, &zero);
}

static int check_hash(const char *what, const struct hash *of_pet, const struct hash *of_target, const char *base,
                      struct err *e)
{
    if (!hash_known(of_pet) || !hash_known(of_target) || hash_equal(of_pet, of_target))
        return 0;
    char a[HASH_HEX], b[HASH_HEX];
    hash_hex(of_pet, a);
    hash_hex(of_target, b);
    return err_set(e, -EINVAL,
                   "the module was made for another backbone: its %s are %.16s..., those of %s are %.16s...", what, a,
                   base, b);
}

static int check_lineage(const struct pet *p, const struct pet_target *t, struct err *e)
{
    const struct pet_lineage *a = &p->info.lineage, *b = &t->lineage;
    const char *base = t->base_name && *t->base_name ? t->base_name : "this backbone";
    if (!p->info.verified)
        return 0;
    if (*a->architecture && *b->architecture && strcmp(a->architecture, b->architecture))
        return err_set(e, -EINVAL,
                       "the module was made for another backbone: its architecture is \"%s\", that of %s is \"%s\"",
                       a->architecture, base, b->architecture);
    int r = check_hash("tokenizer's bytes", &a->tokenizer, &b->tokenizer, base, e);
    return r ? r : check_hash("original weights", &a->weights, &b->weights, base, e);
}

static int check_index(const char *module, const char *what, const uint32_t *index, uint32_t count, uint32_t orig,
                       struct err *e)
{
    if (!index && count != orig)
        return err_set(e, -EINVAL, "the backbone's layer for \"%s\" has %u %s of %u and does not say which", module,
                       count, what, orig);
    for (uint32_t i = 0; index && i < count; i++) {
        if (index[i] >= orig)
            return err_set(e, -EINVAL, "the backbone's layer for \"%s\" maps %s %u to %u of %u", module, what, i,
                           index[i], orig);
    }
    return 0;
}

static int check_part(const struct part *q, const struct pet_site *s, const struct pet_target *t, struct err *e)
{
    const char *base = t->base_name && *t->base_name ? t->base_name : "the backbone";
    if (!s)
        return err_set(e, -EINVAL, "module \"%s\" is no linear of %s", q->module, base);
    if (q->k != s->k_orig || q->n != s->n_orig)
        return err_set(e, -EINVAL, "module \"%s\" is for a linear of %u outputs and %u inputs; %s has %u and %u there",
                       q->module, q->n, q->k, base, s->n_orig, s->k_orig);
    int r = check_index(q->module, "inputs", s->in_index, s->k, s->k_orig, e);
    if (!r)
        r = check_index(q->module, "outputs", s->out_index, s->n, s->n_orig, e);
    if (!r && !kern_lr_bytes(t->type, q->rank, s->k, s->n))
        r = err_set(e, -EOVERFLOW, "module \"%s\" is too large for memory", q->module);
    return r;
}

int pet_plan_make(const struct pet *p, const struct pet_target *t, struct pet_plan *plan, struct err *e)
{
    *plan = (struct pet_plan){0};
    int r = 0;
    if (t->type != KERN_BF16 && t->type != KERN_F32)
        r = err_set(e, -EINVAL, "modules are kept as bf16 or f32 on a device");
    if (!r)
        r = check_lineage(p, t, e);
    if (!r)
        r = match_sites(p, t, plan, e);
    for (size_t i = 0; !r && i < p->n_parts; i++) {
        const struct part *q = &p->parts[i];
        const struct pet_site *s = plan->of[i];
        r = check_part(q, s, t, e);
        plan->at[i] = plan->bytes;
        if (!r && ck_add(plan->bytes, kern_lr_bytes(t->type, q->rank, s->k, s->n), &plan->bytes))
            r = err_set(e, -EOVERFLOW, "the module is too large for memory");
    }
    return r;
}

/* The plan is filled, and to be freed, whatever comes back. */
static int check_all(const struct pet *p, const struct pet_target *t, struct pet_plan *plan, struct err *e)
{
    *plan = (struct pet_plan){0};
    int r = pet_finite(p, e);
    return r ? r : pet_plan_make(p, t, plan, e);
}

int pet_check(const struct pet *p, const struct pet_target *t, struct err *e)
{
    struct pet_plan plan;
    int r = check_all(p, t, &plan, e);
    pet_plan_free(&plan);
    return r;
}

size_t pet_resident_bytes(const struct pet *p, const struct pet_target *t)
{
    struct pet_plan plan;
    int r = check_all(p, t, &plan, NULL);
    size_t bytes = plan.bytes;
    pet_plan_free(&plan);
    return r ? 0 : bytes;
}

/* ---- loading ---- */

/* out[rank][s->k] from A [rank][k_orig]; row: scratch of k_orig floats. */
static void lower_a(const struct part *q, const struct pet_site *s, float *row, float *out)
{
    size_t stride = (size_t)q->k * dtype_size(q->t[0].type);
    for (uint32_t r = 0; r < q->rank; r++, out += s->k) {
        dtype_to_f32(q->t[0].type, q->t[0].data + r * stride, q->k, row);
        for (uint32_t j = 0; j < s->k; j++)
            out[j] = row[s->in_index ? s->in_index[j] : j] * (s->in_scale ? s->in_scale[j] : 1.0f);
    }
}

/* out[s->n][rank] from B [n_orig][rank]. */
static void lower_b(const struct part *q, const struct pet_site *s, float *out)
{
    size_t stride = (size_t)q->rank * dtype_size(q->t[1].type);
    for (uint32_t i = 0; i < s->n; i++, out += q->rank) {
        dtype_to_f32(q->t[1].type, q->t[1].data + (s->out_index ? s->out_index[i] : i) * stride, q->rank, out);
        float m = s->out_scale ? s->out_scale[i] : 1.0f;
        for (uint32_t r = 0; r < q->rank; r++)
            out[r] *= m;
    }
}

static int check_lowered(const struct part *q, char role, enum kern_type type, const float *v, size_t n, struct err *e)
{
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(v[i]) || (type == KERN_BF16 && fabsf(v[i]) >= BF16_MAX))
            return err_set(e, -ERANGE, "module \"%s\", tensor %c: a value is not finite once rescaled to the backbone",
                           q->module, role);
    }
    return 0;
}

int pet_slot_fill(struct kern_dev *d, const struct pet *p, size_t i, const struct pet_plan *plan,
                  const struct pet_target *t, struct pet_slot *slot, struct err *e)
{
    const struct part *q = &p->parts[i];
    const struct pet_site *s = plan->of[i];
    size_t na = (size_t)q->rank * s->k, nb = (size_t)q->rank * s->n;
    float *a = malloc((na + nb + q->k) * sizeof *a), *b = a + na;
    if (!a)
        return err_set(e, -ENOMEM, "module \"%s\": out of memory", q->module);
    lower_a(q, s, b + nb, a);
    lower_b(q, s, b);
    int r = check_lowered(q, 'A', t->type, a, na, e);
    if (!r)
        r = check_lowered(q, 'B', t->type, b, nb, e);
    if (!r) {
        struct kern_lr *lr = &slot->site[s - t->sites];
        kern_lr_pack(d, lr, t->type, q->rank, s->k, s->n, a, b, kmem_at(slot->mem, plan->at[i]));
        lr->fn = q->fn;
        lr->scale = q->scale;
        if (q->rank > slot->slot.max_rank)
            slot->slot.max_rank = q->rank;
    }
    free(a);
    return r;
}

int pet_slot_create(struct kern_dev *d, const struct pet_target *t, size_t bytes, struct pet_slot **out, struct err *e)
{
    struct pet_slot *s = calloc(1, sizeof *s);
    struct kern_lr *site = calloc(t->n_sites, sizeof *site);
    int r = s && site ? kern_alloc(d, bytes, &s->mem, e)
                      : err_set(e, -ENOMEM, "out of memory for a table of %u sites", t->n_sites);
    if (r) {
        free(site);
        free(s);
        return r;
    }
    s->site = site;
    s->slot = (struct kern_slot){.n_sites = t->n_sites, .site = site};
    s->bytes = bytes;
    *out = s;
    return 0;
}

int pet_load(struct kern_dev *d, const struct pet *p, const struct pet_target *t, struct pet_slot **out, struct err *e)
{
    struct pet_plan plan;
    struct pet_slot *s = NULL;
    int r = check_all(p, t, &plan, e);
    if (!r)
        r = pet_slot_create(d, t, plan.bytes, &s, e);
    for (size_t i = 0; !r && i < p->n_parts; i++)
        r = pet_slot_fill(d, p, i, &plan, t, s, e);
    pet_plan_free(&plan);
    if (r)
        pet_unload(d, s);
    else
        *out = s;
    return r;
}

void pet_unload(struct kern_dev *d, struct pet_slot *s)
{
    if (!s)
        return;
    kern_free(d, s->mem);
    free(s->site);
    free(s);
}

const struct kern_slot *pet_slot_kern(const struct pet_slot *s)
{
    return &s->slot;
}

size_t pet_slot_bytes(const struct pet_slot *s)
{
    return s->bytes;
}
