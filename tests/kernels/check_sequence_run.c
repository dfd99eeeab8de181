/* check_sequence_run.c - the sequence operations through kern_run: groups, gathering, sequences and logits are cut into
 * chunks and shared between threads, and the results must be the kernels' own bits, row by row, for 1, 2 and 3 threads.
 */
#include "tests/kernels/check_sequence.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/sequence.h"

static void *need(void *p)
{
    if (!p)
        abort();
    return p;
}

static kmem at(const void *p)
{
    return (kmem){(uintptr_t)p};
}

static void run(struct check *c, enum kern_level l, unsigned threads, const struct kern_op *ops, size_t n,
                const struct kern_step *s)
{
    struct kern_dev *d;
    struct kern_opts o = {.threads = threads, .max_level = kern_level_name(l)};
    if (kern_open(&o, &d, NULL)) {
        check_fail(c, "kern_open");
        return;
    }
    for (int i = 0; i < 3; i++)
        kern_run(d, ops, n, s);
    kern_close(d);
}

/* ---- low rank ---- */

enum { ROWS = 150, K = 100, SITES = 3, GROUPS = 7, N_ALL = 300, MAX_RANK = 70 };

struct modules {
    struct kern_lr lr[GROUPS][SITES];
    struct kern_slot slot[GROUPS];
    struct kern_group group[GROUPS];
    uint32_t rows[GROUPS][ROWS];
    void *packed[GROUPS][SITES];
};

static const struct kern_op_site sites[SITES] = {{0, 0, 130}, {1, 130, 50}, {2, 180, 120}};

/* Groups of all sizes and ranks; some modules miss a site; the last group has every row a second time. */
static void make_modules(struct check *c, struct modules *m)
{
    static const uint32_t ranks[GROUPS] = {8, 1, 33, 4, 70, 16, 5};
    float *a = need(malloc(MAX_RANK * N_ALL * 4)), *b = need(malloc(MAX_RANK * N_ALL * 4));
    memset(m, 0, sizeof *m);
    for (uint32_t g = 0; g < GROUPS; g++) {
        for (uint32_t s = 0; s < SITES; s++) {
            if (g == s + 1)
                continue;
            check_fill(c, a, MAX_RANK * N_ALL, 1);
            check_fill(c, b, MAX_RANK * N_ALL, 1);
            enum kern_type type = g % 2 ? KERN_F32 : KERN_BF16;
            m->packed[g][s] = check_alloc(c, kern_lr_bytes(type, ranks[g] - (s && g), K, sites[s].n));
            kern_lr_pack(NULL, &m->lr[g][s], type, ranks[g] - (s && g), K, sites[s].n, a, b, at(m->packed[g][s]));
            m->lr[g][s].scale = 0.3f;
            m->lr[g][s].fn = (enum kern_fn)(g % 3);
        }
        m->slot[g] = (struct kern_slot){SITES, MAX_RANK, m->lr[g]};
        m->group[g] = (struct kern_group){&m->slot[g], 0.5f + (float)g, 0, m->rows[g]};
    }
    for (uint32_t i = 0; i < ROWS; i++) {
        uint32_t g = i % 3 ? 4 : i / 3 % 5;
        m->rows[g][m->group[g].n_rows++] = i;
        m->rows[GROUPS - 1][m->group[GROUPS - 1].n_rows++] = i;
    }
    free(a);
    free(b);
}

/* What rows[i] of y must be: each group's kernels on that row alone. */
static void lr_expected(const struct cpu_table *t, const struct modules *m, uint32_t row, uint32_t x_row,
                        const float *x, float *y)
{
    float tmp[MAX_RANK];
    memset(y, 0, N_ALL * 4);
    for (uint32_t g = 0; g < GROUPS; g++)
        for (uint32_t i = 0; i < m->group[g].n_rows; i++)
            for (uint32_t s = 0; s < SITES && m->rows[g][i] == row; s++) {
                const struct kern_lr *lr = &m->lr[g][s];
                uint32_t zero = 0;
                struct cpu_lr a = {.lr = lr,
                                   .a = (const void *)lr->a.a,
                                   .b = (const void *)lr->b.a,
                                   .rows = &zero,
                                   .n_rows = 1,
                                   .x = x + (size_t)x_row * K,
                                   .t = tmp,
                                   .y = y + sites[s].n0,
                                   .ldy = N_ALL,
                                   .weight = m->group[g].weight};
                if (!lr->rank)
                    continue;
                t->lr_down(&a, 0, lr->rank);
                t->lr_up(&a, 0, lr->n);
            }
}

static void test_lr(struct check *c, enum kern_level l, unsigned threads, bool gathered)
{
    if (!check_case(c, l, "run/lr threads=%u%s", threads, gathered ? " gathered" : ""))
        return;
    static struct modules m;
    make_modules(c, &m);
    uint32_t logit_rows[ROWS], n_logits = 0, total = 0;
    for (uint32_t i = 0; i < ROWS; i++)
        if (i % 7 == 2 || i > 140)
            logit_rows[n_logits++] = i;
    for (uint32_t g = 0; g < GROUPS; g++)
        total += m.group[g].n_rows;
    uint32_t rows = gathered ? n_logits : ROWS;
    struct kern_act act;
    void *x = check_alloc(c, kern_act_bytes(ROWS, K, 0));
    kern_act_init(&act, ROWS, K, 0, at(x));
    check_fill(c, (float *)act.f32.a, ROWS * K, 1);
    struct kern_mat mat;
    size_t w_bytes = kern_mat_bytes(KERN_F32, N_ALL, K, false);
    void *w = check_alloc(c, w_bytes);
    memset(w, 0, w_bytes);
    kern_mat_init(&mat, KERN_F32, N_ALL, K, false, at(w));
    float *y = check_alloc_end(c, (size_t)ROWS * N_ALL * 4, 4), want[N_ALL];
    void *t = check_alloc(c, kern_lr_scratch(total, SITES, MAX_RANK));
    struct kern_op ops[2] = {
        {.kind = KERN_OP_LR_DOWN, .gathered = gathered, .act = &act, .n_sites = SITES, .t = at(t)}};
    memcpy(ops[0].sites, sites, sizeof sites);
    ops[1] = ops[0];
    ops[1].kind = KERN_OP_LINEAR;
    ops[1].mat = &mat;
    ops[1].y = at(y);
    ops[1].ldy = N_ALL;
    int32_t tokens[ROWS] = {0};
    uint32_t pos[ROWS] = {0};
    struct kern_step s = {.n_rows = ROWS,
                          .token = tokens,
                          .pos = pos,
                          .groups = m.group,
                          .n_groups = GROUPS,
                          .logit_rows = logit_rows,
                          .n_logits = n_logits};
    run(c, l, threads, ops, 2, &s);
    for (uint32_t i = 0; i < rows; i++) {
        lr_expected(check_table(c, l), &m, gathered ? logit_rows[i] : i, i, (const float *)act.f32.a, want);
        check_same(c, "a row's bits alone", y + (size_t)i * N_ALL, want, N_ALL * 4);
    }
    check_free(c, x);
    check_free(c, w);
    check_free(c, y);
    check_free(c, t);
    for (uint32_t g = 0; g < GROUPS; g++)
        for (uint32_t i = 0; i < SITES; i++)
            check_free(c, m.packed[g][i]);
}

/* ---- RoPE, pages, attention ---- */

enum { HEADS = 6, KV = 3, DIM = 24, QKV = (HEADS + 2 * KV) * DIM, SEQS = 4, PAGES = 6, POSITIONS = 192 };

/* Each sequence's tokens one by one, by the kernels themselves. */
static void attn_expected(const struct cpu_table *t, const struct kern_op *op, const struct kern_seq *q,
                          const float *qkv, uint8_t *base, float *out)
{
    const struct kern_kv *kv = op->kv;
    for (uint32_t i = 0; i < q->n_rows; i++) {
        float x[QKV];
        uint32_t pos = q->pos0 + i;
        memcpy(x, qkv + (size_t)(q->row0 + i) * QKV, sizeof x);
        t->rope(x, (const float *)op->rope.a + (size_t)pos * DIM, HEADS + KV, DIM);
        uint8_t *part = base + kv->layer_off[op->layer];
        t->kv_put[kv->type](part + q->pages[pos / KERN_PAGE_TOKENS] * kv->page_bytes, pos % KERN_PAGE_TOKENS, KV, DIM,
                            x + HEADS * DIM, x + (HEADS + KV) * DIM);
        for (uint32_t h = 0; h < KV; h++) {
            struct cpu_attn a = {.q = x + (size_t)h * 2 * DIM,
                                 .ldq = QKV,
                                 .out = out + ((size_t)(q->row0 + i) * HEADS + (size_t)h * 2) * DIM,
                                 .ldo = HEADS * DIM,
                                 .n_rows = 1,
                                 .pos0 = pos,
                                 .n_q = 2,
                                 .head_dim = DIM,
                                 .n_kv_heads = KV,
                                 .kv_head = h,
                                 .scale = op->attn_scale,
                                 .base = part,
                                 .page_bytes = kv->page_bytes,
                                 .pages = q->pages};
            t->attn[kv->type](&a);
        }
    }
}

static void test_attn(struct check *c, enum kern_level l, unsigned threads, enum kern_type type)
{
    static const char *const names[] = {"f32", "bf16", "s8"};
    static const uint32_t pages[SEQS][PAGES] = {{3, 7, 1}, {0, 2, 4, 5}, {6}, {10, 8, 12, 9, 11}};
    /* rows before pos0 were stored by no one: they are garbage, which must not matter beyond the cleared pages */
    static const struct kern_seq seqs[SEQS] = {
        {0, 70, 5, pages[0]}, {70, 1, 100, pages[1]}, {71, 1, 0, pages[2]}, {72, 60, 64, pages[3]}};
    if (!check_case(c, l, "run/attn/%s threads=%u", names[type], threads))
        return;
    enum { N = 132 };
    size_t part = kern_kv_layer_bytes(type, KV, DIM), off[2] = {0, part}, bytes = 2 * part * 13;
    float *qkv = check_alloc_end(c, (size_t)N * QKV * 4, 4), *x0 = need(malloc((size_t)N * QKV * 4));
    float *rope = check_alloc_end(c, (size_t)POSITIONS * DIM * 4, 4), *want = need(malloc((size_t)N * HEADS * DIM * 4));
    uint8_t *base = check_alloc(c, bytes), *base2 = need(aligned_alloc(64, bytes));
    memset(base, 0, bytes);
    memset(base2, 0, bytes);
    check_fill(c, x0, (size_t)N * QKV, 1);
    for (uint32_t p = 0; p < POSITIONS; p++)
        for (uint32_t d = 0; d < DIM / 2; d++) {
            rope[p * DIM + d] = cosf((float)p / (float)(d + 1));
            rope[p * DIM + DIM / 2 + d] = sinf((float)p / (float)(d + 1));
        }
    struct kern_kv kv = {type, at(base), 2 * part, 2, off};
    struct kern_act act;
    void *out = check_alloc(c, kern_act_bytes(N, HEADS * DIM, 0));
    kern_act_init(&act, N, HEADS * DIM, 0, at(out));
    struct kern_op ops[2] = {{.kind = KERN_OP_ROPE_KV,
                              .x = at(qkv),
                              .ldx = QKV,
                              .kv = &kv,
                              .layer = 1,
                              .n_heads = HEADS,
                              .n_kv_heads = KV,
                              .head_dim = DIM,
                              .rope = at(rope),
                              .act = &act,
                              .attn_scale = 0.2f}};
    ops[1] = ops[0];
    ops[1].kind = KERN_OP_ATTN;
    int32_t tokens[N] = {0};
    uint32_t pos[N];
    for (uint32_t s = 0; s < SEQS; s++)
        for (uint32_t i = 0; i < seqs[s].n_rows; i++)
            pos[seqs[s].row0 + i] = seqs[s].pos0 + i;
    struct kern_step s = {.n_rows = N, .token = tokens, .pos = pos, .seqs = seqs, .n_seqs = SEQS};
    memcpy(qkv, x0, (size_t)N * QKV * 4);
    struct kern_dev *d;
    struct kern_opts o = {.threads = threads, .max_level = kern_level_name(l)};
    if (kern_open(&o, &d, NULL))
        abort();
    kern_run(d, ops, 2, &s);
    kern_close(d);
    for (uint32_t q = 0; q < SEQS; q++)
        attn_expected(check_table(c, l), &ops[1], &seqs[q], x0, base2, want);
    check_same(c, "pages", base, base2, bytes);
    check_same(c, "rows alone", (const void *)act.f32.a, want, (size_t)N * HEADS * DIM * 4);
    free(x0);
    free(want);
    free(base2);
    check_free(c, qkv);
    check_free(c, rope);
    check_free(c, base);
    check_free(c, out);
}

/* ---- sampling ---- */

static void test_sample(struct check *c, enum kern_level l, unsigned threads)
{
    enum { N = 9, V = 1003, LD = 1010 };
    if (!check_case(c, l, "run/sample threads=%u", threads))
        return;
    float *x = check_alloc_end(c, (size_t)N * LD * 4, 4), *copy = need(malloc((size_t)N * LD * 4));
    struct kern_sample sample[N];
    struct kern_sampled got[N], want;
    int32_t tokens[N] = {0};
    uint32_t pos[N] = {0}, rows[N];
    check_fill(c, x, N * LD, 3);
    memcpy(copy, x, (size_t)N * LD * 4);
    for (uint32_t i = 0; i < N; i++) {
        rows[i] = i;
        sample[i] = (struct kern_sample){
            .temperature = i % 2 ? 1 : 0, .top_p = 1, .repetition = 1, .position = i, .target = -1, .n_top = -1};
    }
    struct kern_op op = {.kind = KERN_OP_SAMPLE, .gathered = true, .x = at(x), .ldx = LD, .n = V};
    struct kern_step s = {
        .n_rows = N, .token = tokens, .pos = pos, .logit_rows = rows, .n_logits = N, .sample = sample, .sampled = got};
    run(c, l, threads, &op, 1, &s);
    for (uint32_t i = 0; i < N; i++) {
        check_table(c, l)->sample(copy + (size_t)i * LD, V, &sample[i], &want);
        if (got[i].token != want.token)
            check_fail(c, "row %u: %d, not %d", i, got[i].token, want.token);
    }
    s.sample = NULL;
    run(c, l, threads, &op, 1, &s);
    free(copy);
    check_free(c, x);
}

void check_sequence_run(struct check *c)
{
    for (int i = 0; i <= (int)c->best; i++)
        for (unsigned threads = 1; threads <= 3; threads++) {
            enum kern_level l = (enum kern_level)i;
            test_lr(c, l, threads, false);
            test_lr(c, l, threads, true);
            for (int type = KERN_F32; type <= KERN_S8; type++)
                test_attn(c, l, threads, (enum kern_type)type);
            test_sample(c, l, threads);
        }
}
