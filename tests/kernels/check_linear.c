/* check_linear.c - the dense kernels: products, embedding rows, norm, quantization, bf16 and SwiGLU.
 *
 * Error bounds. S8 products, embedding rows, quantization, bf16, norm and SwiGLU: the scalar reference's bits, at all
 * levels (the reference itself is held to sums in double, and SwiGLU to libm in double: 4 units in the last place).
 * F32 and BF16 products: |got - want| <= 2^-21 * sum |w x| + 1e-6 |bias| against sums in double, and with AMX's
 * bf16 activations against sums of the rounded activations. Row invariance: memcmp of a row alone and among 3, 8, 33.
 */
#include "tests/kernels/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/num.h"
#include "kernels/cpu/layout.h"

/* A matrix, activations and an output, all guarded; src keeps the values as doubles. */
struct prod {
    struct kern_mat m;
    struct kern_act a;
    struct cpu_linear p;
    enum kern_type type;
    uint32_t n, k, rows, ldy;
    void *w_mem, *x_mem;
    float *y;
    double *w; /* [n][k], scale in it */
};

static double *make_src(struct check *c, struct prod *p, void *src, float *scale)
{
    double *w = malloc((size_t)p->n * p->k * sizeof *w);
    if (!w)
        abort();
    for (uint32_t n = 0; n < p->n; n++) {
        scale[n] = 0.01f * (check_unit(c) + 1.5f);
        for (uint32_t k = 0; k < p->k; k++) {
            size_t i = (size_t)n * p->k + k;
            float v = check_normal(c);
            int8_t q = check_below(c, 8) ? (int8_t)check_bits(c) : check_below(c, 2) ? -128 : 127;
            if (p->type == KERN_S8)
                ((int8_t *)src)[i] = q;
            else if (p->type == KERN_BF16)
                ((uint16_t *)src)[i] = f32_to_bf16(v);
            else
                ((float *)src)[i] = v;
            w[i] = p->type == KERN_S8     ? (double)q * (double)scale[n]
                   : p->type == KERN_BF16 ? (double)bf16_to_f32(((uint16_t *)src)[i])
                                          : (double)v;
        }
    }
    return w;
}

/* Packs in two parts, from an odd address, as a loader may. */
static void make_matrix(struct check *c, struct prod *p, bool bias)
{
    size_t size = p->type == KERN_S8 ? 1 : p->type == KERN_BF16 ? 2 : 4;
    float *scale = malloc(p->n * sizeof *scale), *b = malloc(p->n * sizeof *b);
    uint8_t *src = malloc((size_t)p->n * p->k * size), *odd = malloc((size_t)p->n * p->k * size + 1);
    if (!scale || !b || !src || !odd)
        abort();
    p->w = make_src(c, p, src, scale);
    check_fill(c, b, p->n, 1);
    memcpy(odd + 1, src, (size_t)p->n * p->k * size);
    size_t bytes = kern_mat_bytes(p->type, p->n, p->k, bias);
    p->w_mem = check_alloc(c, bytes);
    memset(p->w_mem, 0, bytes);
    kern_mat_init(&p->m, p->type, p->n, p->k, bias, (kmem){(uintptr_t)p->w_mem});
    uint32_t cut = p->n > 16 ? (p->n / 2) & ~15u : 0;
    cut = cut ? cut : p->n > 16 ? 16 : p->n;
    kern_mat_pack(NULL, &p->m, 0, cut, odd + 1, scale, bias ? b : NULL);
    if (cut < p->n)
        kern_mat_pack(NULL, &p->m, cut, p->n - cut, odd + 1 + (size_t)cut * p->k * size, scale + cut,
                      bias ? b + cut : NULL);
    free(scale);
    free(b);
    free(src);
    free(odd);
}

static void fill_forms(const struct cpu_table *t, const struct kern_act *a, uint32_t rows)
{
    for (uint32_t r = 0; r < rows; r++) {
        const float *x = (const float *)a->f32.a + (size_t)r * a->k;
        t->quant(x, a->k, a->kpad, (int8_t *)a->s8.a + (size_t)r * a->kpad, (float *)a->scale.a + r,
                 (int32_t *)a->sum.a + r);
        t->to_bf16(x, a->k, a->kpad, (uint16_t *)a->bf16.a + (size_t)r * a->kpad);
    }
}

static void prod_open(struct check *c, struct prod *p, enum kern_type type, uint32_t n, uint32_t k, uint32_t rows,
                      bool bias)
{
    *p = (struct prod){.type = type, .n = n, .k = k, .rows = rows, .ldy = n + 3};
    make_matrix(c, p, bias);
    uint32_t forms = KERN_ACT_S8 | KERN_ACT_BF16;
    p->x_mem = check_alloc(c, kern_act_bytes(rows, k, forms));
    kern_act_init(&p->a, rows, k, forms, (kmem){(uintptr_t)p->x_mem});
    check_fill(c, (float *)p->a.f32.a, (size_t)rows * k, 2);
    if (rows > 2)
        memset((float *)p->a.f32.a + (size_t)2 * k, 0, k * sizeof(float)); /* a row of zeros */
    fill_forms(check_table(c, KERN_SCALAR), &p->a, rows);
    p->y = check_alloc_end(c, ((size_t)(rows - 1) * p->ldy + n) * sizeof(float), 4);
    p->p = (struct cpu_linear){.mat = &p->m,
                               .w = (const uint8_t *)p->m.w.a,
                               .scale = (const float *)p->m.scale.a,
                               .bias = (const float *)p->m.bias.a,
                               .x_f32 = (const float *)p->a.f32.a,
                               .x_s8 = (const int8_t *)p->a.s8.a,
                               .x_scale = (const float *)p->a.scale.a,
                               .x_sum = (const int32_t *)p->a.sum.a,
                               .x_bf16 = (const uint16_t *)p->a.bf16.a,
                               .rows = rows,
                               .kpad = p->a.kpad,
                               .y = p->y,
                               .ldy = p->ldy};
}

static void prod_close(struct check *c, struct prod *p)
{
    check_free(c, p->y);
    check_free(c, p->x_mem);
    check_free(c, p->w_mem);
    free(p->w);
}

/* ---- products ---- */

/* The value and the sum of |w x| of one output, in double. */
static double exact(const struct prod *p, bool rounded, uint32_t r, uint32_t n, double *size)
{
    double sum = 0;
    *size = 0;
    for (uint32_t k = 0; k < p->k; k++) {
        double x = (double)p->p.x_f32[(size_t)r * p->k + k];
        if (p->type == KERN_S8)
            x = (double)p->p.x_s8[(size_t)r * p->a.kpad + k] * (double)p->p.x_scale[r];
        else if (rounded)
            x = (double)bf16_to_f32(p->p.x_bf16[(size_t)r * p->a.kpad + k]);
        sum += p->w[(size_t)n * p->k + k] * x;
        *size += fabs(p->w[(size_t)n * p->k + k] * x);
    }
    if (p->p.bias) {
        sum += (double)p->p.bias[n];
        *size += fabs((double)p->p.bias[n]);
    }
    return sum;
}

static void against_double(struct check *c, const struct prod *p, enum kern_level l, const float *y)
{
    bool rounded = p->type == KERN_BF16 && l == KERN_AMX;
    for (uint32_t r = 0; r < p->rows; r++)
        for (uint32_t n = 0; n < p->n; n++) {
            double size, want = exact(p, rounded, r, n, &size);
            double got = (double)y[(size_t)r * p->ldy + n];
            if (!(fabs(got - want) <= size * 0x1p-21 * (p->k > 64 ? sqrt(p->k / 64.0) : 1) + 1e-30))
                check_fail(c, "row %u column %u: %.9g, not %.9g", r, n, got, want);
        }
}

/* What lies between the columns of a row and the next row must stay. */
static void gaps_intact(struct check *c, const struct prod *p)
{
    const uint8_t *y = (const uint8_t *)p->y;
    for (uint32_t r = 0; r + 1 < p->rows; r++)
        for (size_t i = ((size_t)r * p->ldy + p->n) * 4; i < ((size_t)r + 1) * p->ldy * 4; i++)
            if (y[i] != 0xFB)
                check_fail(c, "wrote past the columns of row %u", r);
}

/* Runs the product in column parts, as workers do. */
static void run_parts(const struct cpu_table *t, const struct prod *p, const struct cpu_linear *a, uint32_t step)
{
    for (uint32_t n0 = 0; n0 < p->n; n0 += step)
        t->linear[p->type](a, n0, p->n - n0 < step ? p->n : n0 + step);
}

static void test_product(struct check *c, enum kern_level l, enum kern_type type, uint32_t n, uint32_t k, uint32_t rows,
                         bool bias, bool accumulate)
{
    static const char *const names[] = {"f32", "bf16", "s8"};
    if (!check_case(c, l, "linear/%s n=%u k=%u rows=%u%s%s", names[type], n, k, rows, bias ? " bias" : "",
                    accumulate ? " acc" : ""))
        return;
    struct prod p;
    prod_open(c, &p, type, n, k, rows, bias);
    size_t floats = (size_t)(rows - 1) * p.ldy + n;
    float *old = malloc(floats * sizeof *old), *first = malloc(floats * sizeof *first);
    if (!old || !first)
        abort();
    p.p.accumulate = accumulate;
    memset(old, 0xFB, floats * sizeof *old);
    for (uint32_t r = 0; accumulate && r < rows; r++)
        check_fill(c, old + (size_t)r * p.ldy, n, 3);
    memcpy(p.y, old, floats * sizeof *old);
    run_parts(check_table(c, l), &p, &p.p, 64);
    memcpy(first, p.y, floats * sizeof *old);
    gaps_intact(c, &p);
    if (!accumulate)
        against_double(c, &p, l, p.y);
    memcpy(p.y, old, floats * sizeof *old);
    run_parts(check_table(c, l), &p, &p.p, 192);
    check_same(c, "columns in other parts", p.y, first, floats * sizeof *old);
    if (type == KERN_S8 || accumulate) {
        memcpy(p.y, old, floats * sizeof *old);
        run_parts(check_table(c, type == KERN_S8 ? KERN_SCALAR : l), &p, &p.p, n + 63);
        check_same(c, "the scalar level's bits", first, p.y, floats * sizeof *old);
    }
    free(old);
    free(first);
    prod_close(c, &p);
}

/* Each row alone, and in runs of 3, 8 and 33, gives the bits it has among all. */
static void test_invariance(struct check *c, enum kern_level l, enum kern_type type)
{
    static const char *const names[] = {"f32", "bf16", "s8"};
    static const uint32_t runs[] = {1, 3, 8, 33};
    if (!check_case(c, l, "linear/%s row invariance", names[type]))
        return;
    struct prod p;
    prod_open(c, &p, type, 208, 576, 67, true);
    size_t bytes = ((size_t)(p.rows - 1) * p.ldy + p.n) * sizeof(float);
    float *all = malloc(bytes);
    if (!all)
        abort();
    run_parts(check_table(c, l), &p, &p.p, 64);
    memcpy(all, p.y, bytes);
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++)
        for (uint32_t r = 0; r < p.rows; r += runs[i]) {
            struct cpu_linear a = p.p;
            a.rows = p.rows - r < runs[i] ? p.rows - r : runs[i];
            a.x_f32 += (size_t)r * p.k;
            a.x_s8 += (size_t)r * p.a.kpad;
            a.x_bf16 += (size_t)r * p.a.kpad;
            a.x_scale += r;
            a.x_sum += r;
            a.y += (size_t)r * p.ldy;
            run_parts(check_table(c, l), &p, &a, 128);
        }
    check_same(c, "rows in other runs", p.y, all, bytes);
    free(all);
    prod_close(c, &p);
}

static void test_embed(struct check *c, enum kern_level l, enum kern_type type, uint32_t k)
{
    static const char *const names[] = {"f32", "bf16", "s8"};
    if (!check_case(c, l, "embed/%s k=%u", names[type], k))
        return;
    struct prod p;
    prod_open(c, &p, type, 37, k, 1, false);
    float *y = check_alloc_end(c, k * sizeof *y, 4), *want = malloc(k * sizeof *want);
    if (!want)
        abort();
    for (uint32_t n = 0; n < p.n; n++) {
        for (uint32_t i = 0; i < k; i++)
            want[i] = (float)p.w[(size_t)n * k + i];
        check_table(c, l)->embed[type](&p.m, n, y);
        check_same(c, "the row", y, want, k * sizeof *y);
    }
    free(want);
    check_free(c, y);
    prod_close(c, &p);
}

static void products(struct check *c, enum kern_level l)
{
    static const uint32_t shapes[][2] = {{1, 1},    {5, 3},     {16, 64},  {17, 65},  {64, 128},
                                         {79, 100}, {130, 577}, {192, 96}, {333, 260}};
    static const uint32_t rows[] = {1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 33, 50};
    for (int type = KERN_F32; type <= KERN_S8; type++) {
        for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
            for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++)
                test_product(c, l, (enum kern_type)type, shapes[s][0], shapes[s][1], rows[r], (s + r) % 3 == 0,
                             (s + r) % 4 == 1);
        test_product(c, l, (enum kern_type)type, 576, 1536, 33, false, false);
        test_invariance(c, l, (enum kern_type)type);
        test_embed(c, l, (enum kern_type)type, 1);
        test_embed(c, l, (enum kern_type)type, 99);
    }
}

/* ---- rows ---- */

static const uint32_t widths[] = {1, 3, 15, 16, 17, 31, 33, 64, 100, 576, 1000, 1536};

static void test_norm(struct check *c, enum kern_level l, uint32_t k)
{
    if (!check_case(c, l, "norm k=%u", k))
        return;
    float *x = check_alloc_end(c, k * 4, 4), *g = check_alloc_end(c, k * 4, 4), *y = check_alloc_end(c, k * 4, 4);
    float *z = check_alloc_end(c, k * 4, 4);
    check_fill(c, x, k, 3);
    check_fill(c, g, k, 1);
    check_table(c, l)->norm(x, g, k, 1e-5f, y);
    double sum = 0;
    for (uint32_t i = 0; i < k; i++)
        sum += (double)x[i] * (double)x[i];
    for (uint32_t i = 0; i < k; i++)
        z[i] = (float)((double)x[i] / sqrt(sum / k + 1e-5) * (double)g[i]);
    check_near(c, "against double", y, z, k, 1e-30, 1e-6);
    check_table(c, KERN_SCALAR)->norm(x, g, k, 1e-5f, z);
    check_same(c, "the scalar level's bits", y, z, k * 4);
    check_free(c, x);
    check_free(c, g);
    check_free(c, y);
    check_free(c, z);
}

static void test_quant(struct check *c, enum kern_level l, uint32_t k, float spread)
{
    if (!check_case(c, l, "quant k=%u spread=%g", k, (double)spread))
        return;
    uint32_t kpad = layout_kpad(k);
    float *x = check_alloc_end(c, k * 4, 4), scale[2];
    int8_t *q = check_alloc(c, kpad), *p = check_alloc(c, kpad);
    int32_t sum[2], total = 0;
    check_fill(c, x, k, spread);
    check_table(c, l)->quant(x, k, kpad, q, &scale[0], &sum[0]);
    check_table(c, KERN_SCALAR)->quant(x, k, kpad, p, &scale[1], &sum[1]);
    check_same(c, "the scalar level's values", q, p, kpad);
    check_same(c, "the scalar level's scale", &scale[0], &scale[1], 4);
    for (uint32_t i = 0; i < kpad; i++) {
        total += q[i];
        if (i >= k ? q[i] != 0 : q[i] < -127)
            check_fail(c, "q[%u] = %d", i, q[i]);
        if (i < k && fabs((double)x[i] - q[i] * (double)scale[0]) > 0.50001 * (double)scale[0] + 1e-30)
            check_fail(c, "q[%u] = %d is not nearest to %g", i, q[i], (double)(x[i] / scale[0]));
    }
    if (sum[0] != total)
        check_fail(c, "the sum is %d, not %d", sum[0], total);
    check_free(c, x);
    check_free(c, q);
    check_free(c, p);
}

static void test_quant_odd(struct check *c, enum kern_level l)
{
    if (!check_case(c, l, "quant of infinities, and of what is not a number"))
        return;
    float x[3][20] = {{0}}, scale;
    int8_t q[64], want[64];
    int32_t sum;
    x[0][3] = NAN;
    x[0][5] = -2;
    x[1][7] = INFINITY;
    x[2][19] = 1e-38f;
    for (int i = 0; i < 3; i++) {
        check_table(c, l)->quant(x[i], 20, 64, q, &scale, &sum);
        check_table(c, KERN_SCALAR)->quant(x[i], 20, 64, want, &scale, &sum);
        check_same(c, "the scalar level's values", q, want, 64);
        for (int j = 20; j < 64; j++)
            if (q[j])
                check_fail(c, "padding %d", q[j]);
    }
}

static void test_bf16(struct check *c, enum kern_level l, uint32_t k)
{
    if (!check_case(c, l, "to_bf16 k=%u", k))
        return;
    uint32_t kpad = layout_kpad(k);
    float *x = check_alloc_end(c, k * 4, 4);
    uint16_t *y = check_alloc(c, kpad * 2);
    for (uint32_t i = 0; i < k; i++)
        x[i] = f32_of_bits((uint32_t)check_bits(c)); /* any bits: not-a-number, denormals, all */
    check_table(c, l)->to_bf16(x, k, kpad, y);
    for (uint32_t i = 0; i < kpad; i++)
        if (y[i] != (i < k ? f32_to_bf16(x[i]) : 0))
            check_fail(c, "[%u]: %04x", i, y[i]);
    check_free(c, x);
    check_free(c, y);
}

static void test_swiglu(struct check *c, enum kern_level l, uint32_t n, float spread)
{
    if (!check_case(c, l, "swiglu n=%u spread=%g", n, (double)spread))
        return;
    float *g = check_alloc_end(c, n * 4, 4), *u = check_alloc_end(c, n * 4, 4), *y = check_alloc_end(c, n * 4, 4);
    float *z = check_alloc_end(c, n * 4, 4), one;
    check_fill(c, g, n, spread);
    check_fill(c, u, n, 2);
    check_table(c, l)->swiglu(g, u, n, y);
    for (uint32_t i = 0; i < n; i++) {
        z[i] = (float)((double)g[i] / (1 + exp(-(double)g[i])) * (double)u[i]);
        check_table(c, l)->swiglu(g + i, u + i, 1, &one);
        check_same(c, "one alone", &one, y + i, 4);
    }
    check_near(c, "against libm in double", y, z, n, 1e-30, 4 * 0x1p-23);
    check_table(c, KERN_SCALAR)->swiglu(g, u, n, z);
    check_same(c, "the scalar level's bits", y, z, n * 4);
    check_free(c, g);
    check_free(c, u);
    check_free(c, y);
    check_free(c, z);
}

static void rows_kernels(struct check *c, enum kern_level l)
{
    for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++) {
        test_norm(c, l, widths[i]);
        test_quant(c, l, widths[i], 2);
        test_quant(c, l, widths[i], 1e-20f);
        test_quant(c, l, widths[i], 0);
        test_bf16(c, l, widths[i]);
        test_swiglu(c, l, widths[i], 4);
        test_swiglu(c, l, widths[i], 30);
    }
    test_quant_odd(c, l);
}

/* ---- times: one thread ---- */

struct bench {
    const struct cpu_table *t;
    struct prod p;
    float *x, *y;
};

static void bench_product(void *ctx)
{
    struct bench *b = ctx;
    b->t->linear[b->p.type](&b->p.p, 0, b->p.n);
}

static void bench_norm(void *ctx)
{
    struct bench *b = ctx;
    b->t->norm(b->x, b->x + 1536, 1536, 1e-5f, b->y);
}

static void bench_quant(void *ctx)
{
    struct bench *b = ctx;
    float scale;
    int32_t sum;
    b->t->quant(b->x, 1536, 1536, (int8_t *)b->y, &scale, &sum);
}

static void bench_bf16(void *ctx)
{
    struct bench *b = ctx;
    b->t->to_bf16(b->x, 1536, 1536, (uint16_t *)b->y);
}

static void bench_swiglu(void *ctx)
{
    struct bench *b = ctx;
    b->t->swiglu(b->x, b->x + 1536, 1536, b->y);
}

static void bench_rows(struct check *c, enum kern_level l)
{
    static const struct {
        const char *name;
        void (*fn)(void *ctx);
        double bytes;
    } all[] = {{"norm k=1536", bench_norm, 12 * 1536},
               {"quant k=1536", bench_quant, 5 * 1536},
               {"to_bf16 k=1536", bench_bf16, 6 * 1536},
               {"swiglu n=1536", bench_swiglu, 12 * 1536}};
    struct bench b = {.t = check_table(c, l)};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        if (!check_case(c, l, "%s", all[i].name))
            continue;
        b.x = check_alloc(c, 2 * 1536 * 4);
        b.y = check_alloc(c, 1536 * 4);
        check_fill(c, b.x, 2 * 1536, 3);
        check_report(c, check_time(all[i].fn, &b), all[i].bytes, 0);
        check_free(c, b.x);
        check_free(c, b.y);
    }
}

/* A matrix that stays in the second-level cache. */
static void bench_products(struct check *c, enum kern_level l)
{
    static const char *const names[] = {"f32", "bf16", "s8"};
    static const uint32_t rows[] = {1, 2, 4, 6, 8, 16, 32, 128};
    struct bench b = {.t = check_table(c, l)};
    for (int type = KERN_F32; type <= KERN_S8; type++)
        for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
            if (!check_case(c, l, "linear/%s n=576 k=576 rows=%u", names[type], rows[i]))
                continue;
            prod_open(c, &b.p, (enum kern_type)type, 576, 576, rows[i], false);
            b.p.p.ldy = 576; /* as a model has it: whole lines */
            b.p.p.y = check_alloc(c, (size_t)rows[i] * 576 * sizeof(float));
            double weights = 576.0 * 576;
            check_report(c, check_time(bench_product, &b),
                         weights * (type == KERN_S8     ? 1
                                    : type == KERN_BF16 ? 2
                                                        : 4),
                         2 * weights * rows[i]);
            check_free(c, b.p.p.y);
            prod_close(c, &b.p);
        }
}

void check_linear(struct check *c)
{
    for (int l = 0; l <= (int)c->best; l++) {
        if (c->bench) {
            bench_rows(c, (enum kern_level)l);
            bench_products(c, (enum kern_level)l);
        } else {
            rows_kernels(c, (enum kern_level)l);
            products(c, (enum kern_level)l);
        }
    }
}
