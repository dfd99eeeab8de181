/* check_sequence.c - low-rank products, RoPE, KV pages and attention at every level; sampling is check_sample.c's,
 * times are check_sequence_bench.c's.
 *
 * Error bounds. Low rank: 2^-21 sqrt(k / 64) of the sum of |a x| against sums in double, GELU 2e-6 of |x| more. RoPE
 * and the pages: the scalar reference's bits, and 1e-6 against double. Attention: 1e-5 of the largest |value| against
 * a softmax in double over the keys and values as the pages hold them. Row invariance by memcmp: low-rank rows in
 * groups of 1, 3, 8 and 33; attention with the cache built token by token and in chunks of 3, 8, 33 and all. Pages
 * start as garbage (NaN), so that a read of a token that is not there shows.
 */
#include "tests/kernels/check_sequence.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/num.h"
#include "kernels/cpu/sequence.h"

static void *need(void *p)
{
    if (!p)
        abort();
    return p;
}

static const char *const type_names[] = {"f32", "bf16", "s8"};

/* ---- low rank ---- */

struct lr_case {
    struct kern_lr lr;
    struct cpu_lr p;
    float *a, *b; /* as packed: rounded to the type */
    float *x, *t, *y, *y0;
    uint32_t *rows;
    uint32_t ldy, all_rows;
    size_t y_floats;
    void *packed;
};

static void lr_open(struct check *c, struct lr_case *s, enum kern_type type, enum kern_fn fn, uint32_t rank, uint32_t k,
                    uint32_t n, uint32_t rows)
{
    *s = (struct lr_case){.ldy = n + 5, .all_rows = rows + 3};
    s->a = need(malloc((size_t)rank * k * 4));
    s->b = need(malloc((size_t)rank * n * 4));
    check_fill(c, s->a, (size_t)rank * k, 1.5f / sqrtf((float)k));
    check_fill(c, s->b, (size_t)rank * n, 1);
    s->packed = check_alloc(c, kern_lr_bytes(type, rank, k, n));
    kern_lr_pack(NULL, &s->lr, type, rank, k, n, s->a, s->b, (kmem){(uintptr_t)s->packed});
    s->lr.fn = fn;
    s->lr.scale = 1.75f;
    for (size_t i = 0; type == KERN_BF16 && i < (size_t)rank * k; i++)
        s->a[i] = bf16_to_f32(f32_to_bf16(s->a[i]));
    for (size_t i = 0; type == KERN_BF16 && i < (size_t)rank * n; i++)
        s->b[i] = bf16_to_f32(f32_to_bf16(s->b[i]));
    s->x = check_alloc_end(c, (size_t)s->all_rows * k * 4, 4);
    check_fill(c, s->x, (size_t)s->all_rows * k, 2);
    s->t = check_alloc_end(c, (size_t)rows * rank * 4, 4);
    s->y_floats = (size_t)(s->all_rows - 1) * s->ldy + n;
    s->y = check_alloc_end(c, s->y_floats * 4, 4);
    s->y0 = need(malloc(s->y_floats * 4));
    check_fill(c, s->y0, s->y_floats, 3);
    s->rows = need(malloc(rows * sizeof *s->rows));
    for (uint32_t i = 0; i < rows; i++)
        s->rows[i] = i + (i >= rows / 2 ? 3 : 0);
    s->p = (struct cpu_lr){.lr = &s->lr,
                           .a = (const void *)s->lr.a.a,
                           .b = (const void *)s->lr.b.a,
                           .rows = s->rows,
                           .n_rows = rows,
                           .x = s->x,
                           .t = s->t,
                           .y = s->y,
                           .ldy = s->ldy,
                           .weight = 0.5f};
}

static void lr_close(struct check *c, struct lr_case *s)
{
    free(s->a);
    free(s->b);
    free(s->y0);
    free(s->rows);
    check_free(c, s->x);
    check_free(c, s->t);
    check_free(c, s->y);
    check_free(c, s->packed);
}

static double fn_exact(enum kern_fn fn, double x)
{
    if (fn == KERN_FN_GELU)
        return 0.5 * x * erfc(-x / sqrt(2));
    if (fn == KERN_FN_GELU_TANH)
        return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1.0)) * (x + 0.044715 * x * x * x)));
    return x;
}

static void lr_against_double(struct check *c, const struct lr_case *s, const float *t, const float *y)
{
    uint32_t k = s->lr.k, n = s->lr.n, rank = s->lr.rank;
    for (uint32_t i = 0; i < s->p.n_rows; i++) {
        for (uint32_t r = 0; r < rank; r++) {
            double sum = 0, size = 0;
            for (uint32_t j = 0; j < k; j++) {
                double v = (double)s->a[(size_t)r * k + j] * (double)s->x[(size_t)s->rows[i] * k + j];
                sum += v;
                size += fabs(v);
            }
            double got = (double)t[(size_t)i * rank + r], want = fn_exact(s->lr.fn, sum);
            double bound = size * 0x1p-21 * (k > 64 ? sqrt(k / 64.0) : 1) + (s->lr.fn ? 2e-6 * fabs(sum) : 0) + 1e-30;
            if (!(fabs(got - want) <= bound))
                check_fail(c, "t row %u rank %u: %.9g, not %.9g", i, r, got, want);
        }
        for (uint32_t j = 0; j < n; j++) {
            size_t at = (size_t)s->rows[i] * s->ldy + j;
            double sum = 0, size = 0;
            for (uint32_t r = 0; r < rank; r++) {
                double v = 0.875 * (double)s->b[(size_t)j * rank + r] * (double)t[(size_t)i * rank + r];
                sum += v;
                size += fabs(v);
            }
            double want = (double)s->y0[at] + sum, got = (double)y[at];
            if (!(fabs(got - want) <= (size + fabs(want)) * 0x1p-21 * (rank > 64 ? sqrt(rank / 64.0) : 1)))
                check_fail(c, "y row %u column %u: %.9g, not %.9g", i, j, got, want);
        }
    }
}

/* Runs the rows in groups of `group`, ranks in parts of `ranks`, columns in parts of `cols`. */
static void lr_run(const struct cpu_table *t, const struct lr_case *s, uint32_t group, uint32_t ranks, uint32_t cols)
{
    memset(s->t, 0xFB, (size_t)s->p.n_rows * s->lr.rank * 4);
    memcpy(s->y, s->y0, s->y_floats * 4);
    for (uint32_t i = 0; i < s->p.n_rows; i += group) {
        struct cpu_lr p = s->p;
        p.rows += i;
        p.n_rows = s->p.n_rows - i < group ? s->p.n_rows - i : group;
        p.t += (size_t)i * s->lr.rank;
        for (uint32_t r = 0; r < s->lr.rank; r += ranks)
            t->lr_down(&p, r, s->lr.rank - r < ranks ? s->lr.rank : r + ranks);
        for (uint32_t n = 0; n < s->lr.n; n += cols)
            t->lr_up(&p, n, s->lr.n - n < cols ? s->lr.n : n + cols);
    }
}

static void test_lr(struct check *c, enum kern_level l, enum kern_type type, enum kern_fn fn, uint32_t rank, uint32_t k,
                    uint32_t n, uint32_t rows)
{
    static const char *const fns[] = {"", " gelu", " gelu_tanh"};
    static const uint32_t ways[][3] = {{1, 8, 64}, {3, 16, 24}, {8, 32, 1000}, {33, 8, 7}, {1, 1000, 40}};
    if (!check_case(c, l, "lr/%s%s rank=%u k=%u n=%u rows=%u", type_names[type], fns[fn], rank, k, n, rows))
        return;
    struct lr_case s;
    lr_open(c, &s, type, fn, rank, k, n, rows);
    float *t = need(malloc((size_t)rows * rank * 4)), *y = need(malloc(s.y_floats * 4));
    lr_run(check_table(c, l), &s, rows, rank, n);
    memcpy(t, s.t, (size_t)rows * rank * 4);
    memcpy(y, s.y, s.y_floats * 4);
    lr_against_double(c, &s, t, y);
    for (size_t w = 0; w < sizeof ways / sizeof ways[0]; w++) {
        lr_run(check_table(c, l), &s, ways[w][0], ways[w][1], ways[w][2]);
        check_same(c, "t in other parts", s.t, t, (size_t)rows * rank * 4);
        check_same(c, "y in other parts", s.y, y, s.y_floats * 4);
    }
    free(t);
    free(y);
    lr_close(c, &s);
}

static void low_rank(struct check *c, enum kern_level l)
{
    static const uint32_t shapes[][3] = {{1, 1, 1},    {2, 16, 5},    {3, 33, 32},   {4, 64, 64},   {8, 576, 192},
                                         {7, 100, 77}, {12, 95, 130}, {16, 160, 96}, {64, 256, 72}, {37, 40, 33}};
    static const uint32_t rows[] = {1, 2, 4, 7, 13, 33};
    for (int type = KERN_F32; type <= KERN_BF16; type++)
        for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
            for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++)
                test_lr(c, l, (enum kern_type)type, (enum kern_fn)((s + r) % 3), shapes[s][0], shapes[s][1],
                        shapes[s][2], rows[r]);
    test_lr(c, l, KERN_BF16, KERN_FN_NONE, 256, 1536, 576, 9);
}

/* ---- RoPE ---- */

static void test_rope(struct check *c, enum kern_level l, uint32_t heads, uint32_t dim)
{
    if (!check_case(c, l, "rope heads=%u dim=%u", heads, dim))
        return;
    uint32_t half = dim / 2;
    float *x = check_alloc_end(c, (size_t)heads * dim * 4, 4), *cs = check_alloc_end(c, dim * 4, 4);
    float *x0 = need(malloc((size_t)heads * dim * 4)), *want = need(malloc((size_t)heads * dim * 4));
    check_fill(c, x0, (size_t)heads * dim, 2);
    for (uint32_t d = 0; d < half; d++) {
        cs[d] = cosf((float)d * 1.7f);
        cs[half + d] = sinf((float)d * 1.7f);
    }
    for (uint32_t i = 0; i < heads * dim; i++) {
        uint32_t d = i % dim, j = d % half;
        double other = d < half ? -(double)x0[i + half] : (double)x0[i - half];
        want[i] = (float)((double)x0[i] * (double)cs[j] + other * (double)cs[half + j]);
    }
    memcpy(x, x0, (size_t)heads * dim * 4);
    check_table(c, l)->rope(x, cs, heads, dim);
    check_near(c, "against double", x, want, (size_t)heads * dim, 2e-6, 1e-6);
    memcpy(want, x0, (size_t)heads * dim * 4);
    check_table(c, KERN_SCALAR)->rope(want, cs, heads, dim);
    check_same(c, "the scalar level's bits", x, want, (size_t)heads * dim * 4);
    free(x0);
    free(want);
    check_free(c, x);
    check_free(c, cs);
}

/* ---- the pages ---- */

static void test_kv_put(struct check *c, enum kern_level l, enum kern_type type, uint32_t heads, uint32_t dim)
{
    if (!check_case(c, l, "kv_put/%s heads=%u dim=%u", type_names[type], heads, dim))
        return;
    size_t bytes = kern_kv_layer_bytes(type, heads, dim);
    uint8_t *got = check_alloc(c, bytes), *want = check_alloc(c, bytes);
    float *k = check_alloc_end(c, (size_t)heads * dim * 4, 4), *v = check_alloc_end(c, (size_t)heads * dim * 4, 4);
    if (!bytes || bytes % 64)
        check_fail(c, "%zu bytes", bytes);
    for (uint32_t i = 0; i < KERN_PAGE_TOKENS; i++) {
        uint32_t slot = (i * 5 + 3) % KERN_PAGE_TOKENS;
        check_fill(c, k, (size_t)heads * dim, i == 7 ? 0 : 2);
        check_fill(c, v, (size_t)heads * dim, 100);
        if (i == 9)
            k[0] = NAN;
        check_table(c, l)->kv_put[type](got, slot, heads, dim, k, v);
        check_table(c, KERN_SCALAR)->kv_put[type](want, slot, heads, dim, k, v);
    }
    check_same(c, "the scalar level's bytes", got, want, bytes);
    check_free(c, got);
    check_free(c, want);
    check_free(c, k);
    check_free(c, v);
}

/* ---- attention ---- */

struct seq_case {
    enum kern_type type;
    uint32_t n, heads, n_q, dim; /* tokens, KV heads, queries a KV head */
    float *q, *k, *v;            /* [n][heads * n_q * dim], [n][heads * dim] */
    float *out;                  /* as q */
    uint8_t *base;
    size_t page_bytes;
    uint32_t *pages;
    float *scratch; /* keys and values as stored, [2][n][heads * dim] */
};

static uint32_t seq_pages(const struct seq_case *s)
{
    return (s->n + KERN_PAGE_TOKENS - 1) / KERN_PAGE_TOKENS;
}

/* One token's side of one head as a page of this type holds it. */
static void stored(enum kern_type type, const float *x, uint32_t dim, float *y)
{
    float max = 0;
    for (uint32_t d = 0; d < dim; d++)
        max = fabsf(x[d]) > max ? fabsf(x[d]) : max;
    for (uint32_t d = 0; d < dim; d++)
        y[d] = type == KERN_F32 ? x[d] : bf16_to_f32(f32_to_bf16(x[d]));
    for (uint32_t d = 0; type == KERN_S8 && d < dim; d++)
        y[d] = rintf(x[d] * (127.0f / max)) * (max / 127.0f);
}

static void seq_open(struct check *c, struct seq_case *s, float spread)
{
    size_t q = (size_t)s->n * s->heads * s->n_q * s->dim, kv = (size_t)s->n * s->heads * s->dim;
    s->q = check_alloc_end(c, q * 4, 4);
    s->k = check_alloc_end(c, kv * 4, 4);
    s->v = check_alloc_end(c, kv * 4, 4);
    s->out = check_alloc_end(c, q * 4, 4);
    s->scratch = need(malloc(2 * kv * 4));
    check_fill(c, s->q, q, spread);
    check_fill(c, s->k, kv, 1);
    check_fill(c, s->v, kv, 2);
    for (size_t i = 0; i < kv; i += s->dim) {
        stored(s->type, s->k + i, s->dim, s->scratch + i);
        stored(s->type, s->v + i, s->dim, s->scratch + kv + i);
    }
    s->page_bytes = kern_kv_layer_bytes(s->type, s->heads, s->dim);
    s->base = check_alloc(c, s->page_bytes * seq_pages(s));
    s->pages = need(malloc(seq_pages(s) * sizeof *s->pages));
    for (uint32_t i = 0; i < seq_pages(s); i++) { /* shuffled */
        uint32_t j = check_below(c, i + 1);
        s->pages[i] = s->pages[j];
        s->pages[j] = i;
    }
}

static void seq_close(struct check *c, struct seq_case *s)
{
    free(s->scratch);
    free(s->pages);
    check_free(c, s->q);
    check_free(c, s->k);
    check_free(c, s->v);
    check_free(c, s->out);
    check_free(c, s->base);
}

/* Stores and attends in chunks of `chunk` tokens, from garbage pages. */
static void seq_run(const struct cpu_table *t, const struct seq_case *s, uint32_t chunk)
{
    size_t kv_row = (size_t)s->heads * s->dim, q_row = kv_row * s->n_q;
    memset(s->base, 0xFB, s->page_bytes * seq_pages(s));
    memset(s->out, 0xFB, s->n * q_row * 4);
    for (uint32_t i = 0; i < s->n; i += chunk) {
        uint32_t rows = s->n - i < chunk ? s->n - i : chunk;
        for (uint32_t j = i; j < i + rows; j++)
            t->kv_put[s->type](s->base + s->pages[j / KERN_PAGE_TOKENS] * s->page_bytes, j % KERN_PAGE_TOKENS, s->heads,
                               s->dim, s->k + j * kv_row, s->v + j * kv_row);
        for (uint32_t h = 0; h < s->heads; h++) {
            struct cpu_attn a = {.q = s->q + i * q_row + (size_t)h * s->n_q * s->dim,
                                 .ldq = (uint32_t)q_row,
                                 .out = s->out + i * q_row + (size_t)h * s->n_q * s->dim,
                                 .ldo = (uint32_t)q_row,
                                 .n_rows = rows,
                                 .pos0 = i,
                                 .n_q = s->n_q,
                                 .head_dim = s->dim,
                                 .n_kv_heads = s->heads,
                                 .kv_head = h,
                                 .scale = 1 / sqrtf((float)s->dim),
                                 .base = s->base,
                                 .page_bytes = s->page_bytes,
                                 .pages = s->pages};
            t->attn[s->type](&a);
        }
    }
}

/* One query of one token against a softmax in double. */
static void seq_against_double(struct check *c, const struct seq_case *s, uint32_t i, uint32_t head, double *w)
{
    size_t kv_row = (size_t)s->heads * s->dim, q_row = kv_row * s->n_q, side = s->n * kv_row;
    const float *q = s->q + i * q_row + (size_t)head * s->dim, *out = s->out + i * q_row + (size_t)head * s->dim;
    const float *k = s->scratch + (size_t)(head / s->n_q) * s->dim, *v = k + side;
    double max = -1e300, sum = 0;
    for (uint32_t t = 0; t <= i; t++) {
        w[t] = 0;
        for (uint32_t d = 0; d < s->dim; d++)
            w[t] += (double)q[d] * (double)k[t * kv_row + d];
        w[t] /= sqrt(s->dim);
        max = fmax(max, w[t]);
    }
    for (uint32_t t = 0; t <= i; t++)
        sum += w[t] = exp(w[t] - max);
    for (uint32_t d = 0; d < s->dim; d++) {
        double want = 0, big = 0;
        for (uint32_t t = 0; t <= i; t++) {
            want += w[t] / sum * (double)v[t * kv_row + d];
            big = fmax(big, fabs((double)v[t * kv_row + d]));
        }
        if (!(fabs((double)out[d] - want) <= 1e-5 * big))
            check_fail(c, "row %u head %u [%u]: %.9g, not %.9g", i, head, d, (double)out[d], want);
    }
}

static void test_attn(struct check *c, enum kern_level l, enum kern_type type, uint32_t n, uint32_t heads, uint32_t n_q,
                      uint32_t dim, float spread)
{
    static const uint32_t chunks[] = {3, 8, 33, 256};
    if (!check_case(c, l, "attn/%s tokens=%u heads=%ux%u dim=%u spread=%g", type_names[type], n, heads, n_q, dim,
                    (double)spread))
        return;
    struct seq_case s = {.type = type, .n = n, .heads = heads, .n_q = n_q, .dim = dim};
    seq_open(c, &s, spread);
    size_t bytes = (size_t)n * heads * n_q * dim * 4;
    float *alone = need(malloc(bytes));
    double *w = need(malloc(n * sizeof *w));
    seq_run(check_table(c, l), &s, 1);
    for (uint32_t i = 0; i < n; i += i < 70 ? 1 : 13)
        for (uint32_t h = 0; h < heads * n_q; h++)
            seq_against_double(c, &s, i, h, w);
    memcpy(alone, s.out, bytes);
    for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
        seq_run(check_table(c, l), &s, chunks[i]);
        check_same(c, "in chunks, against one by one", s.out, alone, bytes);
    }
    free(alone);
    free(w);
    seq_close(c, &s);
}

static void attention(struct check *c, enum kern_level l)
{
    static const uint32_t dims[] = {16, 24, 64, 72, 80, 128, 256};
    for (int type = KERN_F32; type <= KERN_S8; type++) {
        enum kern_type y = (enum kern_type)type;
        for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++) {
            test_kv_put(c, l, y, 3, dims[i]);
            test_attn(c, l, y, 67, 2, 1 + (uint32_t)i, dims[i], 1);
        }
        test_attn(c, l, y, 1, 3, 3, 64, 1);
        test_attn(c, l, y, 33, 1, 16, 64, 8);
        test_attn(c, l, y, 300, 3, 3, 64, 3);
        test_attn(c, l, y, 290, 1, 1, 128, 20);
    }
}

void check_sequence(struct check *c)
{
    static const uint32_t dims[] = {16, 24, 64, 80, 128, 256};
    for (int i = 0; i <= (int)c->best; i++) {
        enum kern_level l = (enum kern_level)i;
        if (c->bench) {
            check_sequence_bench(c, l);
            continue;
        }
        low_rank(c, l);
        for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++)
            test_rope(c, l, 1 + (uint32_t)d, dims[d]);
        attention(c, l);
        check_sample(c, l);
    }
    if (!c->bench)
        check_sequence_run(c);
}
