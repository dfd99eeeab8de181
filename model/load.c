/* load.c - the backbone's weights: from the mapped safetensors straight into the packed matrices.
 *
 * Called once at load, on the calling thread and the device's workers. All matrices, gains and the rope table lie in
 * one device allocation, sized before anything is read. Rows are converted a block at a time in small buffers, and a
 * tensor's file pages are dropped once it is packed: no float copy of a quantized weight exists, and resident memory
 * never holds file and packed matrix together for long.
 *
 * INT8 follows the compressed-tensors naming: X.weight is I8 [n, k] with X.weight_scale [n] or [n, 1]. Which matrices
 * are INT8 is read off the tensors. With precision bf16 or f32 an INT8 matrix is dequantized while packing.
 */
#include "model/internal.h"

#include <assert.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/num.h"
#include "formats/safetensors.h"

#define BLOCK_ROWS 64u
#define MAT_PARTS 3
#define S8_MAX_K (INT32_MAX / (128 * 127)) /* products of s8 are added in 32 bits */

/* A tensor that gives rows [row0, row0 + n) of a matrix. */
struct part {
    const struct st_tensor *w, *scale, *bias;
    uint32_t row0, n;
};

/* A matrix to pack, made of up to three tensors one below the other. */
struct job {
    struct kern_mat *mat;
    struct part part[MAT_PARTS];
    uint32_t n_parts, n, k;
    bool bias;
    enum kern_type type;
    size_t first_block;
};

struct loader {
    struct model *m;
    struct st_file *f;
    struct job *jobs;
    size_t n_jobs, n_blocks;
    bool *used; /* [st_count] */
    size_t first_gain;
    atomic_int failed; /* -Exxx of a worker */
    enum model_precision want;
    bool any_s8;
};

static const struct st_tensor *take(struct loader *l, const char *name)
{
    const struct st_tensor *t = st_find(l->f, name);
    if (t)
        l->used[t - st_at(l->f, 0)] = true;
    return t;
}

static int check_vector(const struct st_tensor *t, uint32_t n, struct err *e)
{
    bool shape = (t->ndim == 1 && t->shape[0] == n) || (t->ndim == 2 && t->shape[0] == n && t->shape[1] == 1);
    if (!shape || !dtype_is_float(t->type))
        return err_set(e, -EINVAL, "tensor %s: not a float tensor of shape [%u]", t->name, n);
    for (uint32_t i = 0; i < n; i++) {
        float v;
        dtype_to_f32(t->type, t->data + i * dtype_size(t->type), 1, &v);
        if (!isfinite(v))
            return err_set(e, -EINVAL, "tensor %s: element %u is not a finite number", t->name, i);
    }
    return 0;
}

/* Adds module.weight (and its scale and bias) below what job holds. */
static int job_add(struct loader *l, struct job *j, const char *module, uint32_t n, uint32_t k, bool bias,
                   struct err *e)
{
    char name[160];
    struct part *p = &j->part[j->n_parts];
    snprintf(name, sizeof name, "%s.weight", module);
    p->w = take(l, name);
    if (!p->w)
        return err_set(e, -EINVAL, "tensor %s is missing", name);
    if (p->w->ndim != 2 || p->w->shape[0] != n || p->w->shape[1] != k)
        return err_set(e, -EINVAL, "tensor %s: shape is not [%u, %u]", name, n, k);
    if (p->w->type == DT_I8) {
        snprintf(name, sizeof name, "%s.weight_scale", module);
        p->scale = take(l, name);
        if (!p->scale)
            return err_set(e, -EINVAL, "tensor %s is missing, though the weight is I8", name);
        int r = check_vector(p->scale, n, e);
        if (r)
            return r;
        l->any_s8 = true;
    } else if (!dtype_is_float(p->w->type)) {
        return err_set(e, -EINVAL, "tensor %s: type %s is not supported", name, dtype_name(p->w->type));
    }
    if (bias) {
        snprintf(name, sizeof name, "%s.bias", module);
        p->bias = take(l, name);
        if (!p->bias)
            return err_set(e, -EINVAL, "tensor %s is missing", name);
        int r = check_vector(p->bias, n, e);
        if (r)
            return r;
    }
    p->row0 = j->n;
    p->n = n;
    j->n += n;
    j->k = k;
    j->bias = bias;
    j->n_parts++;
    return 0;
}

/* The type a matrix is packed in: as the file holds it, unless a float precision was asked for. */
static enum kern_type job_type(const struct loader *l, const struct job *j)
{
    if (l->want == MODEL_F32 || l->want == MODEL_BF16)
        return (enum kern_type)l->want;
    bool all_s8 = true, any_f32 = false;
    for (uint32_t i = 0; i < j->n_parts; i++) {
        all_s8 = all_s8 && j->part[i].w->type == DT_I8;
        any_f32 = any_f32 || j->part[i].w->type == DT_F32;
    }
    return all_s8 ? KERN_S8 : any_f32 && !l->any_s8 ? KERN_F32 : KERN_BF16;
}

static int collect_layer(struct loader *l, uint32_t i, struct job *j, struct err *e)
{
    struct model *m = l->m;
    const struct model_config *c = &m->cfg;
    const struct pet_site *s = m->sites + (size_t)i * SITE_KINDS;
    struct layer *L = &m->layer[i];
    const struct {
        struct kern_mat *mat;
        enum site_kind first, last;
        bool bias;
    } mats[4] = {{&L->qkv, SITE_Q, SITE_V, c->qkv_bias},
                 {&L->o, SITE_O, SITE_O, c->o_bias},
                 {&L->gate_up, SITE_GATE, SITE_UP, c->mlp_bias},
                 {&L->down, SITE_DOWN, SITE_DOWN, c->mlp_bias}};
    for (int a = 0; a < 4; a++) {
        j[a].mat = mats[a].mat;
        for (int k = mats[a].first; k <= (int)mats[a].last; k++) {
            int r = job_add(l, &j[a], s[k].module, s[k].n, s[k].k, mats[a].bias, e);
            if (r)
                return r;
        }
    }
    return 0;
}

static int collect(struct loader *l, struct err *e)
{
    struct model *m = l->m;
    const struct model_config *c = &m->cfg;
    l->n_jobs = 4 * (size_t)c->n_layers + 1 + !c->tied;
    l->jobs = calloc(l->n_jobs, sizeof *l->jobs);
    l->used = calloc(st_count(l->f) + 1, sizeof *l->used);
    if (!l->jobs || !l->used)
        return err_set(e, -ENOMEM, "out of memory");
    int r = 0;
    for (uint32_t i = 0; !r && i < c->n_layers; i++)
        r = collect_layer(l, i, l->jobs + 4 * (size_t)i, e);
    struct job *j = l->jobs + 4 * (size_t)c->n_layers;
    j->mat = &m->embed;
    if (!r)
        r = job_add(l, j, "model.embed_tokens", c->vocab, c->hidden, false, e);
    if (!r && !c->tied) {
        j[1].mat = &m->head;
        r = job_add(l, &j[1], "lm_head", c->vocab, c->hidden, false, e);
    }
    if (r)
        return r;
    if (c->tied) { /* some writers repeat it */
        take(l, "lm_head.weight");
        take(l, "lm_head.weight_scale");
    }
    if (l->want == MODEL_INT8 && !l->any_s8)
        return err_param(e, -EINVAL, "precision",
                         "the directory holds no INT8 weights; make one with cpet compress --int8");
    for (size_t i = 0; i < l->n_jobs; i++) {
        l->jobs[i].type = job_type(l, &l->jobs[i]);
        if (l->jobs[i].type == KERN_S8 && l->jobs[i].k > S8_MAX_K)
            return err_set(e, -EINVAL, "tensor %s: %u inputs; an INT8 matrix has at most %d",
                           l->jobs[i].part[0].w->name, l->jobs[i].k, S8_MAX_K);
        l->jobs[i].first_block = l->n_blocks;
        l->n_blocks += (l->jobs[i].n + BLOCK_ROWS - 1) / BLOCK_ROWS;
    }
    return 0;
}

/* Places every matrix in one allocation; gains and the rope table follow. */
static int place(struct loader *l, struct err *e)
{
    struct model *m = l->m;
    const struct model_config *c = &m->cfg;
    size_t total = 0, gain = ((size_t)c->hidden * 4 + 63) / 64 * 64,
           rope = (size_t)m->info.max_context * c->head_dim * 4;
    for (size_t i = 0; i < l->n_jobs; i++) {
        const struct job *j = &l->jobs[i];
        size_t b = kern_mat_bytes(j->type, j->n, j->k, j->bias);
        if (!b || ck_add(total, b, &total))
            return err_set(e, -EOVERFLOW, "tensor %s: too large", j->part[0].w->name);
    }
    size_t mats = total;
    if (ck_add(total, (2 * (size_t)c->n_layers + 1) * gain, &total) || ck_add(total, rope, &total))
        return err_set(e, -EOVERFLOW, "weights are too large");
    int r = kern_alloc(m->dev, total, &m->weights, e);
    if (r)
        return err_prefix(e, r, "weights of %zu bytes", total);
    size_t at = 0;
    for (size_t i = 0; i < l->n_jobs; i++) {
        struct job *j = &l->jobs[i];
        kern_mat_init(j->mat, j->type, j->n, j->k, j->bias, kmem_at(m->weights, at));
        at += kern_mat_bytes(j->type, j->n, j->k, j->bias);
    }
    if (c->tied)
        m->head = m->embed;
    assert(at == mats);
    l->first_gain = at;
    for (uint32_t i = 0; i < c->n_layers; i++) {
        m->layer[i].attn_norm = kmem_at(m->weights, at + 2 * (size_t)i * gain);
        m->layer[i].mlp_norm = kmem_at(m->weights, at + (2 * (size_t)i + 1) * gain);
    }
    m->final_norm = kmem_at(m->weights, at + 2 * (size_t)c->n_layers * gain);
    m->rope = kmem_at(m->final_norm, gain);
    m->info.weight_bytes = total;
    return 0;
}

static bool as_stored(const struct job *j, const struct part *p)
{
    enum dtype t = p->w->type;
    return (j->type == KERN_S8 && t == DT_I8) || (j->type == KERN_F32 && t == DT_F32) ||
           (j->type == KERN_BF16 && t == DT_BF16);
}

/* Rows [r0, r0 + n) of a part as words of the matrix's type, converted into tmp (n * k words) where they differ. */
static const void *convert_rows(const struct job *j, const struct part *p, uint32_t r0, uint32_t n, float *row,
                                void *tmp)
{
    size_t word = dtype_size(p->w->type), k = j->k;
    const uint8_t *src = p->w->data + (size_t)r0 * k * word;
    if (as_stored(j, p))
        return src;
    for (uint32_t i = 0; i < n; i++, src += k * word) {
        float *dst = j->type == KERN_F32 ? (float *)tmp + i * k : row;
        if (p->w->type == DT_I8) {
            float scale;
            dtype_to_f32(p->scale->type, p->scale->data + (size_t)(r0 + i) * dtype_size(p->scale->type), 1, &scale);
            for (size_t q = 0; q < k; q++)
                dst[q] = (float)(int8_t)src[q] * scale;
        } else {
            dtype_to_f32(p->w->type, src, k, dst);
        }
        if (j->type == KERN_BF16)
            for (size_t q = 0; q < k; q++)
                ((uint16_t *)tmp)[i * k + q] = f32_to_bf16(row[q]);
    }
    return tmp;
}

static void pack_rows(struct loader *l, const struct job *j, const struct part *p, uint32_t r0, uint32_t n, float *row,
                      void *tmp)
{
    float scale[BLOCK_ROWS], bias[BLOCK_ROWS];
    if (j->type == KERN_S8)
        dtype_to_f32(p->scale->type, p->scale->data + (size_t)r0 * dtype_size(p->scale->type), n, scale);
    if (p->bias)
        dtype_to_f32(p->bias->type, p->bias->data + (size_t)r0 * dtype_size(p->bias->type), n, bias);
    const void *src = convert_rows(j, p, r0, n, row, tmp);
    kern_mat_pack(l->m->dev, j->mat, p->row0 + r0, n, src, j->type == KERN_S8 ? scale : NULL, p->bias ? bias : NULL);
}

/* Packs block b: BLOCK_ROWS rows of one matrix, from the one to three tensors that they come from. */
static void pack_block(void *ctx, size_t b)
{
    struct loader *l = ctx;
    size_t lo = 0, hi = l->n_jobs;
    while (hi - lo > 1) {
        size_t mid = (lo + hi) / 2;
        *(l->jobs[mid].first_block <= b ? &lo : &hi) = mid;
    }
    const struct job *j = &l->jobs[lo];
    uint32_t r0 = (uint32_t)(b - j->first_block) * BLOCK_ROWS, r1 = r0 + BLOCK_ROWS < j->n ? r0 + BLOCK_ROWS : j->n;
    bool convert = false;
    for (uint32_t i = 0; i < j->n_parts; i++)
        convert = convert || !as_stored(j, &j->part[i]);
    float *row = convert ? malloc(j->k * sizeof(float)) : NULL;
    void *tmp = convert ? malloc((size_t)BLOCK_ROWS * j->k * sizeof(float)) : NULL;
    bool ok = !convert || (row && tmp);
    if (!ok)
        atomic_store(&l->failed, -ENOMEM);
    for (uint32_t i = 0; ok && i < j->n_parts; i++) {
        const struct part *p = &j->part[i];
        uint32_t a = r0 > p->row0 ? r0 : p->row0, z = r1 < p->row0 + p->n ? r1 : p->row0 + p->n;
        if (a < z)
            pack_rows(l, j, p, a - p->row0, z - a, row, tmp);
        if (a < z && z == p->row0 + p->n)
            st_forget(l->f, p->w);
    }
    free(tmp);
    free(row);
}

static int put_gain(struct loader *l, const char *name, kmem at, struct err *e)
{
    uint32_t n = l->m->cfg.hidden;
    const struct st_tensor *t = take(l, name);
    if (!t)
        return err_set(e, -EINVAL, "tensor %s is missing", name);
    int r = check_vector(t, n, e);
    if (r)
        return r;
    float *v = malloc(n * sizeof *v);
    if (!v)
        return err_set(e, -ENOMEM, "out of memory");
    dtype_to_f32(t->type, t->data, n, v);
    kern_upload(l->m->dev, at, v, n * sizeof *v);
    free(v);
    return 0;
}

static int put_gains(struct loader *l, struct err *e)
{
    struct model *m = l->m;
    char name[96];
    int r = put_gain(l, "model.norm.weight", m->final_norm, e);
    for (uint32_t i = 0; !r && i < m->cfg.n_layers; i++) {
        snprintf(name, sizeof name, "model.layers.%u.input_layernorm.weight", i);
        r = put_gain(l, name, m->layer[i].attn_norm, e);
        snprintf(name, sizeof name, "model.layers.%u.post_attention_layernorm.weight", i);
        if (!r)
            r = put_gain(l, name, m->layer[i].mlp_norm, e);
    }
    return r;
}

static void put_rope(void *ctx, size_t block)
{
    struct model *m = ((struct loader *)ctx)->m;
    uint32_t p0 = (uint32_t)block * 256, n = m->info.max_context - p0 < 256 ? m->info.max_context - p0 : 256;
    float *rows = malloc((size_t)n * m->cfg.head_dim * sizeof *rows);
    if (!rows) {
        atomic_store(&((struct loader *)ctx)->failed, -ENOMEM);
        return;
    }
    model_rope_fill(&m->cfg, p0, n, rows);
    kern_upload(m->dev, kmem_at(m->rope, (size_t)p0 * m->cfg.head_dim * 4), rows, (size_t)n * m->cfg.head_dim * 4);
    free(rows);
}

/* A tensor that nothing asked for would be a part of the model left out. */
static int check_unused(const struct loader *l, struct err *e)
{
    for (size_t i = 0; i < st_count(l->f); i++) {
        const struct st_tensor *t = st_at(l->f, i);
        if (!l->used[i] && !strstr(t->name, "rotary_emb.inv_freq"))
            return err_set(e, -EINVAL, "tensor %s is not part of a %s model of this configuration", t->name,
                           l->m->cfg.architecture);
    }
    return 0;
}

int model_load_weights(struct model *m, const struct model_opts *o, struct err *e)
{
    struct loader l = {.m = m, .want = o->precision};
    int r = st_open_dir(m->dir, &l.f, e);
    if (r)
        return r;
    m->layer = calloc(m->cfg.n_layers, sizeof *m->layer);
    r = m->layer ? collect(&l, e) : err_set(e, -ENOMEM, "out of memory");
    if (!r)
        r = place(&l, e);
    if (!r)
        r = put_gains(&l, e);
    if (!r)
        r = check_unused(&l, e);
    if (r) {
        err_prefix(e, r, "%s", m->dir);
    } else {
        kern_parallel(m->dev, l.n_blocks, pack_block, &l);
        kern_parallel(m->dev, (m->info.max_context + 255) / 256, put_rope, &l);
        if (atomic_load(&l.failed))
            r = err_set(e, -ENOMEM, "%s: out of memory while packing", m->dir);
        enum kern_type t = l.jobs[0].type;
        m->info.precision = (enum model_precision)t;
    }
    free(l.jobs);
    free(l.used);
    st_close(l.f);
    return r;
}
