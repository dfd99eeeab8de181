/* sequence_ops.c - the operations on groups, sequences and logits: cuts each into chunks and calls the level's kernels.
 *
 * Every worker calls each function once an operation and walks the same list of items, which follows from the step
 * alone; items in a row are joined into chunks of like cost, and cpu_claim says which chunk is whose. Chunks write
 * disjoint memory: KV items end at page borders, low-rank items at whole blocks of ranks. Owns no memory.
 *
 * t holds, for each group in order and each of the op's sites that its module touches, n_rows x rank floats. With
 * op->gathered the rows of a block of 64 that have logits lie at the block's beginning.
 */
#include "kernels/cpu/sequence.h"

#define LR_ROWS 64u
#define LR_RANKS 32u
#define ATTN_ROWS 32u

/* ---- chunks ---- */

/* Items come in a fixed order with a cost each; a chunk ends when its items' cost reaches the limit. */
struct walk {
    struct cpu_ctx *c;
    uint32_t want, chunk;
    uint64_t cost, limit;
};

static struct walk walk_start(struct cpu_ctx *c, uint64_t total, uint64_t limit)
{
    uint64_t fair = total / 16;
    return (struct walk){.c = c, .want = cpu_claim(c), .limit = fair < limit ? fair : limit};
}

/* Whether the next item is this worker's. */
static bool walk_item(struct walk *w, uint64_t cost)
{
    if (w->cost > w->limit) {
        if (w->chunk++ == w->want)
            w->want = cpu_claim(w->c);
        w->cost = 0;
    }
    w->cost += cost;
    return w->chunk == w->want;
}

/* ---- low rank ---- */

static const struct kern_lr *lr_site(const struct kern_op *op, const struct kern_group *g, uint32_t j)
{
    uint32_t site = op->sites[j].site;
    if (!g->slot || site >= g->slot->n_sites || !g->slot->site[site].rank)
        return NULL;
    return &g->slot->site[site];
}

/* Fills rows with the numbers that rows[i0 .. i0+n) of the group have in x and y; returns how many there are. */
static uint32_t lr_rows(const struct cpu_ctx *c, const struct kern_op *op, const struct kern_group *g, uint32_t i0,
                        uint32_t n, uint32_t *rows)
{
    uint32_t count = 0;
    for (uint32_t i = i0; i < i0 + n; i++) {
        uint32_t row = op->gathered ? c->gather[g->rows[i]] : g->rows[i];
        if (row != UINT32_MAX)
            rows[count++] = row;
    }
    return count;
}

static uint64_t lr_cost(uint32_t rows, uint32_t ranks, uint32_t k)
{
    return (uint64_t)(rows + 16) * ranks * k / 16;
}

static uint64_t lr_total(const struct kern_step *s, const struct kern_op *op)
{
    uint64_t total = 0;
    for (uint32_t g = 0; g < s->n_groups; g++)
        for (uint32_t j = 0; j < op->n_sites; j++) {
            const struct kern_lr *lr = lr_site(op, &s->groups[g], j);
            if (lr)
                total += lr_cost(s->groups[g].n_rows, lr->rank, lr->k);
        }
    return total;
}

static void lr_down_site(struct cpu_ctx *c, const struct kern_op *op, struct walk *w, const struct kern_group *g,
                         const struct kern_lr *lr, float *t)
{
    uint32_t rows[LR_ROWS];
    struct cpu_lr a = {
        .lr = lr, .a = (const void *)lr->a.a, .rows = rows, .x = (const float *)op->act->f32.a, .weight = g->weight};
    for (uint32_t i = 0; i < g->n_rows; i += LR_ROWS) {
        uint32_t n = g->n_rows - i < LR_ROWS ? g->n_rows - i : LR_ROWS;
        a.t = t + (size_t)i * lr->rank;
        for (uint32_t r = 0; r < lr->rank; r += LR_RANKS) {
            uint32_t r1 = lr->rank - r < LR_RANKS ? lr->rank : r + LR_RANKS;
            if (!walk_item(w, lr_cost(n, r1 - r, lr->k)))
                continue;
            a.n_rows = lr_rows(c, op, g, i, n, rows);
            if (a.n_rows)
                c->t->lr_down(&a, r, r1);
        }
    }
}

void cpu_op_lr_down(struct cpu_ctx *c, const struct kern_op *op)
{
    const struct kern_step *s = c->s;
    struct walk w = walk_start(c, lr_total(s, op), 1u << 14);
    float *t = (float *)op->t.a;
    for (uint32_t g = 0; g < s->n_groups; g++)
        for (uint32_t j = 0; j < op->n_sites; j++) {
            const struct kern_lr *lr = lr_site(op, &s->groups[g], j);
            if (!lr)
                continue;
            lr_down_site(c, op, &w, &s->groups[g], lr, t);
            t += (size_t)s->groups[g].n_rows * lr->rank;
        }
}

static void lr_up_site(struct cpu_ctx *c, const struct kern_op *op, uint32_t g, uint32_t j, float *t, uint32_t n0,
                       uint32_t n1)
{
    const struct kern_step *s = c->s;
    const struct kern_group *grp = &s->groups[g];
    const struct kern_lr *lr = lr_site(op, grp, j);
    uint32_t rows[LR_ROWS];
    struct cpu_lr a = {.lr = lr,
                       .b = (const void *)lr->b.a,
                       .rows = rows,
                       .y = (float *)op->y.a + op->sites[j].n0,
                       .ldy = op->ldy,
                       .weight = grp->weight};
    for (uint32_t i = 0; i < grp->n_rows; i += LR_ROWS) {
        uint32_t n = grp->n_rows - i < LR_ROWS ? grp->n_rows - i : LR_ROWS;
        a.t = t + (size_t)i * lr->rank;
        a.n_rows = lr_rows(c, op, grp, i, n, rows);
        if (a.n_rows)
            c->t->lr_up(&a, n0, n1);
    }
}

void cpu_lr_up_columns(struct cpu_ctx *c, const struct kern_op *op, uint32_t n0, uint32_t n1)
{
    const struct kern_step *s = c->s;
    float *t = (float *)op->t.a;
    for (uint32_t g = 0; g < s->n_groups; g++)
        for (uint32_t j = 0; j < op->n_sites; j++) {
            const struct kern_lr *lr = lr_site(op, &s->groups[g], j);
            if (!lr)
                continue;
            uint32_t s0 = op->sites[j].n0, s1 = s0 + lr->n;
            uint32_t lo = n0 > s0 ? n0 : s0, hi = n1 < s1 ? n1 : s1;
            if (lo < hi)
                lr_up_site(c, op, g, j, t, lo - s0, hi - s0);
            t += (size_t)s->groups[g].n_rows * lr->rank;
        }
}

/* ---- RoPE and the pages ---- */

static void rope_kv_rows(struct cpu_ctx *c, const struct kern_op *op, const struct kern_seq *q, uint32_t i0, uint32_t n)
{
    const struct kern_kv *kv = op->kv;
    uint32_t heads = op->n_heads + op->n_kv_heads;
    for (uint32_t i = i0; i < i0 + n; i++) {
        uint32_t row = q->row0 + i, pos = q->pos0 + i;
        float *x = (float *)op->x.a + (size_t)row * op->ldx;
        c->t->rope(x, (const float *)op->rope.a + (size_t)c->s->pos[row] * op->head_dim, heads, op->head_dim);
        uint8_t *part =
            (uint8_t *)kv->base.a + q->pages[pos / KERN_PAGE_TOKENS] * kv->page_bytes + kv->layer_off[op->layer];
        const float *k = x + (size_t)op->n_heads * op->head_dim;
        c->t->kv_put[kv->type](part, pos % KERN_PAGE_TOKENS, op->n_kv_heads, op->head_dim, k,
                               k + (size_t)op->n_kv_heads * op->head_dim);
    }
}

void cpu_op_rope_kv(struct cpu_ctx *c, const struct kern_op *op)
{
    struct walk w = walk_start(c, c->s->n_rows, 8);
    for (uint32_t j = 0; j < c->s->n_seqs; j++) {
        const struct kern_seq *q = &c->s->seqs[j];
        for (uint32_t i = 0, n; i < q->n_rows; i += n) {
            n = KERN_PAGE_TOKENS - (q->pos0 + i) % KERN_PAGE_TOKENS;
            n = q->n_rows - i < n ? q->n_rows - i : n;
            if (walk_item(&w, n))
                rope_kv_rows(c, op, q, i, n);
        }
    }
}

/* ---- attention ---- */

static uint64_t attn_cost(const struct kern_op *op, uint32_t rows, uint32_t pos)
{
    uint64_t q = op->n_heads / op->n_kv_heads;
    return (rows * q + 4) * ((uint64_t)pos + 32) * op->head_dim;
}

static uint64_t attn_total(const struct kern_step *s, const struct kern_op *op)
{
    uint64_t total = 0;
    for (uint32_t j = 0; j < s->n_seqs; j++)
        total += attn_cost(op, s->seqs[j].n_rows, s->seqs[j].pos0) * op->n_kv_heads;
    return total;
}

void cpu_op_attn(struct cpu_ctx *c, const struct kern_op *op)
{
    const struct kern_step *s = c->s;
    const struct kern_kv *kv = op->kv;
    struct walk w = walk_start(c, attn_total(s, op), 1u << 20);
    struct cpu_attn a = {.ldq = op->ldx,
                         .ldo = op->act->k,
                         .n_q = op->n_heads / op->n_kv_heads,
                         .head_dim = op->head_dim,
                         .n_kv_heads = op->n_kv_heads,
                         .scale = op->attn_scale,
                         .base = (const uint8_t *)kv->base.a + kv->layer_off[op->layer],
                         .page_bytes = kv->page_bytes};
    for (uint32_t j = 0; j < s->n_seqs; j++) {
        const struct kern_seq *q = &s->seqs[j];
        a.pages = q->pages;
        for (uint32_t i = 0; i < q->n_rows; i += a.n_rows)
            for (a.kv_head = 0; a.kv_head < op->n_kv_heads; a.kv_head++) {
                size_t col = (size_t)a.kv_head * a.n_q * op->head_dim, row = q->row0 + i;
                a.n_rows = q->n_rows - i < ATTN_ROWS ? q->n_rows - i : ATTN_ROWS;
                a.pos0 = q->pos0 + i;
                a.q = (const float *)op->x.a + row * op->ldx + col;
                a.out = (float *)op->act->f32.a + row * op->act->k + col;
                if (walk_item(&w, attn_cost(op, a.n_rows, a.pos0)))
                    c->t->attn[kv->type](&a);
            }
    }
}

/* ---- sampling ---- */

void cpu_op_sample(struct cpu_ctx *c, const struct kern_op *op)
{
    const struct kern_step *s = c->s;
    if (!s->sample)
        return;
    for (uint32_t i; (i = cpu_claim(c)) < s->n_logits;)
        c->t->sample((float *)op->x.a + (size_t)i * op->ldx, op->n, &s->sample[i], &s->sampled[i]);
}
