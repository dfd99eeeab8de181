/* plan.c - lays out the step's memory and builds the operation list, once a backbone.
 *
 * Called at load. The list holds device addresses only; what varies comes with struct kern_step. Scratch is one
 * allocation for the largest step (max_rows rows, max_logits logit rows): the system gives pages as they are first
 * written, so small steps cost little. Every layer's shapes are its own; buffers take the largest.
 */
#include "model/internal.h"

#include <assert.h>
#include <stdlib.h>

#include "common/checked.h"

#define OPS_PER_LAYER 14
#define OPS_BESIDE 6

struct sizes {
    uint32_t attn, ffn, qkv; /* the largest of all layers */
};

static struct sizes largest(const struct model_config *c)
{
    struct sizes s = {0};
    for (uint32_t l = 0; l < c->n_layers; l++) {
        const struct model_layer_config *a = &c->layer[l];
        uint32_t attn = a->n_heads * c->head_dim, qkv = attn + 2 * a->n_kv_heads * c->head_dim;
        s.attn = attn > s.attn ? attn : s.attn;
        s.qkv = qkv > s.qkv ? qkv : s.qkv;
        s.ffn = a->ffn > s.ffn ? a->ffn : s.ffn;
    }
    return s;
}

/* All forms that any layer's matrix of this role wants. */
static uint32_t forms_of(const struct model *m, size_t offset)
{
    uint32_t f = 0;
    for (uint32_t l = 0; l < m->cfg.n_layers; l++)
        f |= kern_act_forms(m->dev, ((const struct kern_mat *)((const char *)&m->layer[l] + offset))->type);
    return f;
}

static int scratch_alloc(struct model *m, struct err *e)
{
    const struct model_info *i = &m->info;
    struct sizes s = largest(&m->cfg);
    uint32_t rows = i->max_rows, n_log = i->max_logits, hidden = m->cfg.hidden;
    uint32_t f_hidden = forms_of(m, offsetof(struct layer, qkv)) | forms_of(m, offsetof(struct layer, gate_up));
    uint32_t f_attn = forms_of(m, offsetof(struct layer, o)), f_ffn = forms_of(m, offsetof(struct layer, down));
    uint32_t f_head = kern_act_forms(m->dev, m->head.type);
    m->max_group_rows = rows * (i->max_pets + 1);
    m->ld_qkv = s.qkv;
    m->ld_gate_up = 2 * s.ffn;
    const size_t part[9] = {
        kern_act_bytes(rows, hidden, f_hidden),
        kern_act_bytes(rows, s.attn, f_attn),
        kern_act_bytes(rows, s.ffn, f_ffn),
        kern_act_bytes(n_log, hidden, f_head),
        (size_t)rows * hidden * 4,
        (size_t)rows * s.qkv * 4,
        (size_t)rows * m->ld_gate_up * 4,
        (size_t)n_log * m->cfg.vocab * 4,
        kern_lr_scratch(m->max_group_rows, 3, m->max_rank),
    };
    size_t off[9], total = 0;
    for (int p = 0; p < 9; p++) {
        off[p] = total;
        if (ck_add(total, part[p], &total) || ck_round_up(total, 64, &total))
            return err_set(e, -EOVERFLOW, "a step of %u rows needs too much memory", rows);
    }
    int r = kern_alloc(m->dev, total, &m->scratch, e);
    if (r)
        return err_prefix(e, r, "scratch of %zu bytes", total);
    kern_act_init(&m->act_hidden, rows, hidden, f_hidden, kmem_at(m->scratch, off[0]));
    for (uint32_t l = 0; l < m->cfg.n_layers; l++) {
        struct layer *L = &m->layer[l];
        kern_act_init(&L->act_attn, rows, L->o.k, f_attn, kmem_at(m->scratch, off[1]));
        kern_act_init(&L->act_ffn, rows, L->down.k, f_ffn, kmem_at(m->scratch, off[2]));
    }
    kern_act_init(&m->act_final, n_log, hidden, f_head, kmem_at(m->scratch, off[3]));
    m->x = kmem_at(m->scratch, off[4]);
    m->qkv = kmem_at(m->scratch, off[5]);
    m->gate_up = kmem_at(m->scratch, off[6]);
    m->logits = kmem_at(m->scratch, off[7]);
    m->lr_t = kmem_at(m->scratch, off[8]);
    m->info.scratch_bytes = total;
    return 0;
}

static struct kern_op *op_add(struct model *m, struct kern_op o)
{
    m->ops[m->n_ops] = o;
    return &m->ops[m->n_ops++];
}

static void op_norm(struct model *m, kmem gain, const struct kern_act *out, bool gathered)
{
    op_add(m, (struct kern_op){.kind = KERN_OP_NORM,
                               .x = m->x,
                               .ldx = m->cfg.hidden,
                               .gain = gain,
                               .eps = m->cfg.norm_eps,
                               .act = out,
                               .gathered = gathered});
}

/* LR_DOWN and LINEAR of the sites first..last of a layer, whose outputs lie side by side in y. */
static void op_linear(struct model *m, const struct kern_mat *mat, const struct kern_act *in, kmem y, uint32_t ldy,
                      uint32_t first, uint32_t last, bool add, bool gathered)
{
    struct kern_op o = {.kind = KERN_OP_LR_DOWN, .act = in, .t = m->lr_t, .gathered = gathered};
    uint32_t at = 0;
    for (uint32_t s = first; s <= last; s++) {
        o.sites[o.n_sites++] = (struct kern_op_site){.site = s, .n0 = at, .n = m->sites[s].n};
        at += m->sites[s].n;
    }
    assert(at == mat->n);
    op_add(m, o);
    o.kind = KERN_OP_LINEAR;
    o.mat = mat;
    o.y = y;
    o.ldy = ldy;
    o.accumulate = add;
    op_add(m, o);
}

static void layer_ops(struct model *m, uint32_t l)
{
    struct layer *L = &m->layer[l];
    const struct model_layer_config *c = &m->cfg.layer[l];
    uint32_t s = l * SITE_KINDS, hd = m->cfg.head_dim;
    struct kern_op seq = {.x = m->qkv,
                          .ldx = m->ld_qkv,
                          .kv = &m->kv,
                          .layer = l,
                          .n_heads = c->n_heads,
                          .n_kv_heads = c->n_kv_heads,
                          .head_dim = hd,
                          .rope = m->rope};
    op_norm(m, L->attn_norm, &m->act_hidden, false);
    op_linear(m, &L->qkv, &m->act_hidden, m->qkv, m->ld_qkv, s + SITE_Q, s + SITE_V, false, false);
    seq.kind = KERN_OP_ROPE_KV;
    op_add(m, seq);
    seq.kind = KERN_OP_ATTN;
    seq.act = &L->act_attn;
    seq.attn_scale = 1.0f / __builtin_sqrtf((float)hd);
    op_add(m, seq);
    op_add(m, (struct kern_op){.kind = KERN_OP_FORMS, .act = &L->act_attn});
    op_linear(m, &L->o, &L->act_attn, m->x, m->cfg.hidden, s + SITE_O, s + SITE_O, true, false);
    op_norm(m, L->mlp_norm, &m->act_hidden, false);
    op_linear(m, &L->gate_up, &m->act_hidden, m->gate_up, m->ld_gate_up, s + SITE_GATE, s + SITE_UP, false, false);
    op_add(m, (struct kern_op){
                  .kind = KERN_OP_SWIGLU, .x = m->gate_up, .ldx = m->ld_gate_up, .act = &L->act_ffn, .n = c->ffn});
    op_linear(m, &L->down, &L->act_ffn, m->x, m->cfg.hidden, s + SITE_DOWN, s + SITE_DOWN, true, false);
}

static int step_tables(struct model *m, struct err *e)
{
    const struct model_info *i = &m->info;
    m->tokens = calloc(i->max_rows, sizeof *m->tokens);
    m->pos = calloc(i->max_rows, sizeof *m->pos);
    m->span_of = calloc(i->max_rows, sizeof *m->span_of);
    m->step_seqs = calloc(i->max_rows, sizeof *m->step_seqs);
    m->pool_row = calloc(2 * (size_t)m->cfg.hidden, sizeof *m->pool_row);
    m->logit_rows = calloc(i->max_logits, sizeof *m->logit_rows);
    m->sample = calloc(i->max_logits, sizeof *m->sample);
    m->sampled = calloc(i->max_logits, sizeof *m->sampled);
    m->group_rows = calloc(m->max_group_rows, sizeof *m->group_rows);
    m->groups = calloc(m->max_group_rows, sizeof *m->groups);
    if (!m->tokens || !m->pos || !m->span_of || !m->step_seqs || !m->logit_rows || !m->sample || !m->sampled ||
        !m->group_rows || !m->groups || !m->pool_row)
        return err_set(e, -ENOMEM, "out of memory for a step of %u rows", i->max_rows);
    return 0;
}

int model_plan(struct model *m, struct err *e)
{
    int r = scratch_alloc(m, e);
    if (!r)
        r = step_tables(m, e);
    if (r)
        return r;
    size_t cap = (size_t)m->cfg.n_layers * OPS_PER_LAYER + OPS_BESIDE;
    m->ops = calloc(cap, sizeof *m->ops);
    if (!m->ops)
        return err_set(e, -ENOMEM, "out of memory");
    op_add(m, (struct kern_op){.kind = KERN_OP_EMBED, .mat = &m->embed, .x = m->x, .ldx = m->cfg.hidden});
    for (uint32_t l = 0; l < m->cfg.n_layers; l++)
        layer_ops(m, l);
    uint32_t head = m->target.n_sites - 1;
    op_norm(m, m->final_norm, &m->act_final, true);
    op_linear(m, &m->head, &m->act_final, m->logits, m->cfg.vocab, head, head, false, true);
    op_add(m, (struct kern_op){.kind = KERN_OP_SAMPLE, .x = m->logits, .ldx = m->cfg.vocab, .n = m->cfg.vocab});
    assert(m->n_ops <= cap);
    return 0;
}
