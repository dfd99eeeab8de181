/* ops.c - the operations of a step: which have work, how they are cut into chunks, and the dense ones themselves.
 *
 * Run by the region's workers, each claiming chunks by cpu_claim; no memory of its own. A chunk of a row operation is
 * one row, written to f32 and then, while it is in the nearest cache, to the forms that the next product reads. A
 * chunk of a product is a run of columns, whose low-rank part follows at once by the same worker: nobody else writes
 * those columns in between.
 */
#include "kernels/cpu/region.h"

#include "kernels/cpu/layout.h"

static uint32_t op_rows(const struct kern_op *op, const struct kern_step *s)
{
    return op->gathered ? s->n_logits : s->n_rows;
}

bool cpu_op_wanted(const struct kern_op *op, const struct kern_step *s)
{
    switch (op->kind) {
    case KERN_OP_LR_DOWN:
        return s->n_groups && op->n_sites && op_rows(op, s);
    case KERN_OP_FORMS:
        return op->act->forms && s->n_rows;
    case KERN_OP_SAMPLE:
        return s->sample && s->n_logits;
    case KERN_OP_NORM:
    case KERN_OP_LINEAR:
        return op_rows(op, s) != 0;
    default:
        return s->n_rows != 0;
    }
}

bool cpu_op_solo(const struct kern_op *op, const struct kern_step *s)
{
    switch (op->kind) {
    case KERN_OP_EMBED:
    case KERN_OP_NORM:
    case KERN_OP_FORMS:
    case KERN_OP_SWIGLU:
    case KERN_OP_ROPE_KV:
        return op_rows(op, s) == 1;
    case KERN_OP_SAMPLE:
        return s->n_logits == 1;
    default:
        return false;
    }
}

static void make_forms(const struct cpu_table *t, const struct kern_act *a, uint32_t r)
{
    const float *x = (const float *)a->f32.a + (size_t)r * a->k;
    if (a->forms & KERN_ACT_S8)
        t->quant(x, a->k, a->kpad, (int8_t *)a->s8.a + (size_t)r * a->kpad, (float *)a->scale.a + r,
                 (int32_t *)a->sum.a + r);
    if (a->forms & KERN_ACT_BF16)
        t->to_bf16(x, a->k, a->kpad, (uint16_t *)a->bf16.a + (size_t)r * a->kpad);
}

static void op_embed(struct cpu_ctx *c, const struct kern_op *op)
{
    for (uint32_t r; (r = cpu_claim(c)) < c->s->n_rows;)
        c->t->embed[op->mat->type](op->mat, (uint32_t)c->s->token[r], (float *)op->x.a + (size_t)r * op->ldx);
}

static void op_norm(struct cpu_ctx *c, const struct kern_op *op)
{
    const struct kern_act *a = op->act;
    uint32_t rows = op_rows(op, c->s);
    for (uint32_t r; (r = cpu_claim(c)) < rows;) {
        size_t from = op->gathered ? c->s->logit_rows[r] : r;
        c->t->norm((const float *)op->x.a + from * op->ldx, (const float *)op->gain.a, a->k, op->eps,
                   (float *)a->f32.a + (size_t)r * a->k);
        make_forms(c->t, a, r);
    }
}

static void op_swiglu(struct cpu_ctx *c, const struct kern_op *op)
{
    const struct kern_act *a = op->act;
    for (uint32_t r; (r = cpu_claim(c)) < c->s->n_rows;) {
        const float *gate = (const float *)op->x.a + (size_t)r * op->ldx;
        c->t->swiglu(gate, gate + op->n, op->n, (float *)a->f32.a + (size_t)r * a->k);
        make_forms(c->t, a, r);
    }
}

static void op_forms(struct cpu_ctx *c, const struct kern_op *op)
{
    for (uint32_t r; (r = cpu_claim(c)) < c->s->n_rows;)
        make_forms(c->t, op->act, r);
}

/* Columns a chunk: a multiple of 64, about four chunks a worker, and never so many that the last chunk keeps the
 * others waiting for long. */
static uint32_t chunk_columns(uint32_t n, unsigned threads)
{
    uint32_t blocks = (n + 63) / 64, per = threads == 1 ? blocks : blocks / (threads * 4);
    return 64 * (per < 1 ? 1 : per > 16 ? 16 : per);
}

static void op_linear(struct cpu_ctx *c, const struct kern_op *op, unsigned threads)
{
    const struct kern_mat *m = op->mat;
    const struct kern_act *a = op->act;
    struct cpu_linear p = {.mat = m,
                           .w = (const uint8_t *)m->w.a,
                           .scale = (const float *)m->scale.a,
                           .bias = (const float *)m->bias.a,
                           .x_f32 = (const float *)a->f32.a,
                           .x_s8 = (const int8_t *)a->s8.a,
                           .x_scale = (const float *)a->scale.a,
                           .x_sum = (const int32_t *)a->sum.a,
                           .x_bf16 = (const uint16_t *)a->bf16.a,
                           .rows = op_rows(op, c->s),
                           .kpad = layout_kpad(m->k),
                           .y = (float *)op->y.a,
                           .ldy = op->ldy,
                           .accumulate = op->accumulate};
    uint32_t step = chunk_columns(m->n, threads);
    bool lr = c->s->n_groups && op->n_sites;
    for (uint64_t n0; (n0 = (uint64_t)cpu_claim(c) * step) < m->n;) {
        uint32_t n1 = m->n - n0 < step ? m->n : (uint32_t)n0 + step;
        c->t->linear[m->type](&p, (uint32_t)n0, n1);
        if (lr)
            cpu_lr_up_columns(c, op, (uint32_t)n0, n1);
    }
}

void cpu_op_run(struct cpu_ctx *c, const struct kern_op *op, unsigned threads)
{
    switch (op->kind) {
    case KERN_OP_EMBED:
        op_embed(c, op);
        break;
    case KERN_OP_NORM:
        op_norm(c, op);
        break;
    case KERN_OP_LR_DOWN:
        cpu_op_lr_down(c, op);
        break;
    case KERN_OP_LINEAR:
        op_linear(c, op, threads);
        break;
    case KERN_OP_ROPE_KV:
        cpu_op_rope_kv(c, op);
        break;
    case KERN_OP_ATTN:
        cpu_op_attn(c, op);
        break;
    case KERN_OP_FORMS:
        op_forms(c, op);
        break;
    case KERN_OP_SWIGLU:
        op_swiglu(c, op);
        break;
    case KERN_OP_SAMPLE:
        cpu_op_sample(c, op);
        break;
    case KERN_OP_KINDS:
        break;
    }
}
