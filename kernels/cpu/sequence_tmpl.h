/* sequence_tmpl.h - the vector kernels for sequences, written once over VL lanes; sequence_avx2.c and sequence_vnni.c
 * define the vector type vf and its primitives (vf_*), TILE_* sizes, and include this file.
 *
 * Every sum has one order, whatever the tile that computes it: low-rank products run over k in 32s, lane by lane, and
 * fold by vf_hsum4; scores run over head_dim, a token a lane; values run over tokens, a dimension a lane; the softmax
 * goes page by page. Tails go through masks or zero-padded copies and the same instructions.
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/sequence.h"

#define TMPL static inline __attribute__((always_inline))
#define HALVES (16 / VL) /* vectors in half a group of 32 */

/* ---- exp and GELU ---- */

/* e^x for x <= 88, within 1.5 units in the last place; e^-87 below -87: no denormals, which are slow. exp(0) is 1. */
TMPL vf vf_exp_low(vf x)
{
    vf u = vf_max(x, vf_set1(-87.0f));
    vf n = vf_round(vf_mul(u, vf_set1(1.44269504f)));
    vf r = vf_fnma(n, vf_set1(0.693359375f), u);
    r = vf_fnma(n, vf_set1(-2.12194440e-4f), r);
    vf p = vf_set1(0.00139505998f);
    p = vf_fma(p, r, vf_set1(0.00836895406f));
    p = vf_fma(p, r, vf_set1(0.041666206f));
    p = vf_fma(p, r, vf_set1(0.166665182f));
    p = vf_fma(p, r, vf_set1(0.5f));
    p = vf_fma(vf_mul(r, r), p, r);
    return vf_times_pow2(vf_add(p, vf_set1(1.0f)), n);
}

/* As vf_exp_low, but 0 below -87 and e^88 above 88. */
TMPL vf vf_exp(vf x)
{
    vf e = vf_exp_low(vf_min(x, vf_set1(88.0f)));
    return vf_select_lt(x, vf_set1(-87.0f), vf_set1(0.0f), e);
}

/* 0.5 x (1 + erf(x / sqrt 2)): erf by an odd polynomial below 0.93, erfc(t) = exp(-t Q(t)) above. */
TMPL vf vf_gelu(vf x)
{
    vf z = vf_mul(x, vf_set1(0.70710678f)), t = vf_min(vf_abs(z), vf_set1(6.0f)), s = vf_mul(z, z);
    vf p = vf_set1(-0.000596457918f);
    p = vf_fma(p, s, vf_set1(0.00498858374f));
    p = vf_fma(p, s, vf_set1(-0.026763957f));
    p = vf_fma(p, s, vf_set1(0.112817593f));
    p = vf_fma(p, s, vf_set1(-0.376124889f));
    p = vf_fma(p, s, vf_set1(0.128379151f));
    vf near = vf_add(vf_fma(p, z, z), vf_set1(1.0f));
    vf q = vf_set1(1.07632895e-05f);
    q = vf_fma(q, t, vf_set1(-0.000318060833f));
    q = vf_fma(q, t, vf_set1(0.00362292328f));
    q = vf_fma(q, t, vf_set1(-0.0237201955f));
    q = vf_fma(q, t, vf_set1(0.106187619f));
    q = vf_fma(q, t, vf_set1(0.635181487f));
    q = vf_fma(q, t, vf_set1(1.12864101f));
    vf e = vf_exp(vf_mul(vf_sub(vf_set1(0.0f), t), q));
    vf far = vf_select_lt(x, vf_set1(0.0f), e, vf_sub(vf_set1(2.0f), e));
    vf h = vf_select_lt(t, vf_set1(0.93f), near, far);
    return vf_mul(vf_mul(vf_set1(0.5f), x), h);
}

/* 0.5 x (1 + tanh u) = x / (1 + exp(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3). */
TMPL vf vf_gelu_tanh(vf x)
{
    vf u = vf_fma(vf_mul(vf_mul(x, x), x), vf_set1(0.044715f), x);
    vf e = vf_exp(vf_mul(u, vf_set1(-1.59576912f)));
    return vf_div(x, vf_add(vf_set1(1.0f), e));
}

/* ---- low rank ---- */

TMPL size_t lr_word_bytes(enum kern_type type)
{
    return type == KERN_BF16 ? 2 : 4;
}

/* One vector of a packed group of 32: elements j*16 + h*VL .. */
TMPL vf lr_half(enum kern_type type, const void *group, int h, int j)
{
    if (type == KERN_BF16)
        return j ? vf_bf16_hi((const uint16_t *)group + 2 * VL * h) : vf_bf16_lo((const uint16_t *)group + 2 * VL * h);
    return vf_load((const float *)group + 16 * j + VL * h);
}

/* acc += 32 of k, R rows x Q ranks. */
TMPL void down_32(enum kern_type type, int R, int Q, const char *w, const float *const *x, uint32_t k, vf acc[8][8])
{
#pragma GCC unroll 2
    for (int h = 0; h < HALVES; h++)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            vf v[8];
#pragma GCC unroll 8
            for (int i = 0; i < R; i++)
                v[i] = vf_load(x[i] + k + 16 * j + VL * h);
#pragma GCC unroll 8
            for (int q = 0; q < Q; q++) {
                vf a = lr_half(type, w + q * LR_WIDE * lr_word_bytes(type), h, j);
#pragma GCC unroll 8
                for (int i = 0; i < R; i++)
                    acc[i][q] = vf_fma(a, v[i], acc[i][q]);
            }
        }
}

/* t[i][0..Q) of R rows; w: the first rank's first group, `step` bytes to the next 32 of k. */
TMPL void down_tile(enum kern_type type, int R, int Q, const struct cpu_lr *a, uint32_t i0, const char *w, size_t step,
                    uint32_t r)
{
    uint32_t k = 0, k_all = a->lr->k, rank = a->lr->rank;
    const float *x[8];
    vf acc[8][8];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
        x[i] = a->x + (size_t)a->rows[i0 + i] * k_all;
#pragma GCC unroll 8
        for (int q = 0; q < Q; q++)
            acc[i][q] = vf_set1(0.0f);
    }
    for (; k + LR_WIDE <= k_all; k += LR_WIDE, w += step)
        down_32(type, R, Q, w, x, k, acc);
    if (k < k_all) {
        float tail[8][LR_WIDE] = {{0}};
        for (int i = 0; i < R; i++) {
            memcpy(tail[i], x[i] + k, (k_all - k) * sizeof **x);
            x[i] = tail[i];
        }
        down_32(type, R, Q, w, x, 0, acc);
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
        float *t = a->t + (size_t)(i0 + i) * rank + r;
#pragma GCC unroll 2
        for (int q = 0; q + 4 <= Q; q += 4)
            _mm_storeu_ps(t + q, vf_hsum4(acc[i][q], acc[i][q + 1], acc[i][q + 2], acc[i][q + 3]));
        if (Q == 1)
            _mm_store_ss(t, vf_hsum4(acc[i][0], acc[i][0], acc[i][0], acc[i][0]));
    }
}

/* R rows, ranks [r0, r1), in tiles of 8 (where R leaves room), 4 and 1 ranks. */
TMPL void down_rows(enum kern_type type, int R, const struct cpu_lr *a, uint32_t i, uint32_t r0, uint32_t r1)
{
    size_t word = lr_word_bytes(type);
    for (uint32_t r = r0; r < r1;) {
        uint32_t in = r % LR_RANK_BLOCK, ranks = lr_block_ranks(a->lr->rank, r);
        uint32_t left = ranks - in < r1 - r ? ranks - in : r1 - r;
        const char *w = (const char *)a->a + lr_a_index(type, a->lr->rank, a->lr->k, r, 0) * word;
        size_t step = ranks * LR_WIDE * word;
        if (R <= TILE_DOWN_8 && left >= 8) {
            down_tile(type, R, 8, a, i, w, step, r);
            r += 8;
        } else if (left >= 4) {
            down_tile(type, R, 4, a, i, w, step, r);
            r += 4;
        } else {
            down_tile(type, R, 1, a, i, w, step, r);
            r++;
        }
    }
}

TMPL void down(enum kern_type type, const struct cpu_lr *a, uint32_t r0, uint32_t r1)
{
    uint32_t i = 0;
    for (; i + TILE_DOWN <= a->n_rows; i += TILE_DOWN)
        down_rows(type, TILE_DOWN, a, i, r0, r1);
#if TILE_DOWN_8 > 1
    for (; i + TILE_DOWN_8 <= a->n_rows; i += TILE_DOWN_8)
        down_rows(type, TILE_DOWN_8, a, i, r0, r1);
#endif
    for (; i < a->n_rows; i++)
        down_rows(type, 1, a, i, r0, r1);
}

static void lr_down(const struct cpu_lr *a, uint32_t r0, uint32_t r1)
{
    if (a->lr->type == KERN_BF16)
        down(KERN_BF16, a, r0, r1);
    else
        down(KERN_F32, a, r0, r1);
    if (a->lr->fn == KERN_FN_NONE)
        return;
    for (uint32_t i = 0; i < a->n_rows; i++)
        for (uint32_t r = r0; r < r1; r += VL) {
            float *t = a->t + (size_t)i * a->lr->rank + r;
            uint32_t n = r1 - r < VL ? r1 - r : VL;
            vf v = vf_load_n(t, n);
            vf_store_n(t, n, a->lr->fn == KERN_FN_GELU ? vf_gelu(v) : vf_gelu_tanh(v));
        }
}

/* y of R rows in one group of 32 columns, of which [c0, c1) are wanted. */
TMPL void up_tile(enum kern_type type, int R, const struct cpu_lr *a, uint32_t i0, uint32_t n, uint32_t c0, uint32_t c1,
                  float scale)
{
    uint32_t rank = a->lr->rank;
    const char *w0 = (const char *)a->b + (size_t)n / LR_WIDE * rank * LR_WIDE * lr_word_bytes(type);
    const float *t = a->t + (size_t)i0 * rank;
    vf s = vf_set1(scale);
    for (int h = 0; h < HALVES; h++) {
        const char *w = w0;
        vf acc[8][2];
#pragma GCC unroll 8
        for (int i = 0; i < R; i++)
            acc[i][0] = acc[i][1] = vf_set1(0.0f);
        for (uint32_t r = 0; r < rank; r++, w += LR_WIDE * lr_word_bytes(type)) {
            vf lo = lr_half(type, w, h, 0), hi = lr_half(type, w, h, 1);
#pragma GCC unroll 8
            for (int i = 0; i < R; i++) {
                vf b = vf_set1(t[(size_t)i * rank + r]);
                acc[i][0] = vf_fma(lo, b, acc[i][0]);
                acc[i][1] = vf_fma(hi, b, acc[i][1]);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) {
            float *y = a->y + (size_t)a->rows[i0 + i] * a->ldy + n;
#pragma GCC unroll 2
            for (uint32_t j = 0; j < 2; j++) {
                uint32_t at = 16 * j + VL * (uint32_t)h;
                if (c0 <= at && at + VL <= c1) {
                    vf_store(y + at, vf_fma(acc[i][j], s, vf_load(y + at)));
                    continue;
                }
                float part[VL];
                vf_store(part, acc[i][j]);
                for (uint32_t c = 0; c < VL; c++)
                    if (at + c >= c0 && at + c < c1)
                        y[at + c] = __builtin_fmaf(part[c], scale, y[at + c]);
            }
        }
    }
}

/* Columns [n0, n1) of R rows: y and B are read in order. */
TMPL void up_rows(enum kern_type type, int R, const struct cpu_lr *a, uint32_t i, uint32_t n0, uint32_t n1, float scale)
{
    for (uint32_t n = n0 / LR_WIDE * LR_WIDE; n < n1; n += LR_WIDE)
        up_tile(type, R, a, i, n, n0 > n ? n0 - n : 0, n1 - n < LR_WIDE ? n1 - n : LR_WIDE, scale);
}

TMPL void up(enum kern_type type, const struct cpu_lr *a, uint32_t n0, uint32_t n1)
{
    float scale = a->weight * a->lr->scale;
    uint32_t i = 0;
    for (; i + TILE_UP <= a->n_rows; i += TILE_UP)
        up_rows(type, TILE_UP, a, i, n0, n1, scale);
#if TILE_UP > 4
    for (; i + 4 <= a->n_rows; i += 4)
        up_rows(type, 4, a, i, n0, n1, scale);
#endif
    for (; i < a->n_rows; i++)
        up_rows(type, 1, a, i, n0, n1, scale);
}

static void lr_up(const struct cpu_lr *a, uint32_t n0, uint32_t n1)
{
    if (a->lr->type == KERN_BF16)
        up(KERN_BF16, a, n0, n1);
    else
        up(KERN_F32, a, n0, n1);
}

/* ---- RoPE and the pages ---- */

static void rope(float *x, const float *cos_sin, uint32_t n_heads, uint32_t head_dim)
{
    uint32_t half = head_dim / 2;
    for (uint32_t h = 0; h < n_heads; h++, x += head_dim)
        for (uint32_t d = 0; d < half; d += VL) {
            uint32_t n = half - d < VL ? half - d : VL;
            vf a = vf_load_n(x + d, n), b = vf_load_n(x + half + d, n);
            vf c = vf_load_n(cos_sin + d, n), s = vf_load_n(cos_sin + half + d, n);
            vf_store_n(x + d, n, vf_sub(vf_mul(a, c), vf_mul(b, s)));
            vf_store_n(x + half + d, n, vf_add(vf_mul(b, c), vf_mul(a, s)));
        }
}

static void kv_put_bf16(uint8_t *part, uint32_t slot, uint32_t n_kv_heads, uint32_t head_dim, const float *k,
                        const float *v)
{
    uint32_t d16 = kv_d16(head_dim);
    for (uint32_t h = 0; h < n_kv_heads; h++, k += head_dim, v += head_dim) {
        uint16_t *kp = (uint16_t *)(part + h * kv_head_bytes(KERN_BF16, head_dim)) + slot * 2;
        uint16_t *vp = kp - slot * 2 + (size_t)KERN_PAGE_TOKENS * d16 + (size_t)(slot / 2) * d16 * 2 + slot % 2;
        for (uint32_t d = 0; d < head_dim; d += 16) {
            uint16_t kt[16] = {0}, vt[16];
            uint32_t n = head_dim - d < 16 ? head_dim - d : 16;
            for (uint32_t j = 0; j < n; j++) {
                kt[j] = f32_to_bf16(k[d + j]);
                vt[j] = f32_to_bf16(v[d + j]);
            }
            for (uint32_t j = 0; j < n; j += 2)
                memcpy(kp + (size_t)(d + j) * KERN_PAGE_TOKENS, kt + j, 4);
            for (uint32_t j = 0; j < n; j++)
                vp[(d + j) * 2] = vt[j];
        }
    }
}

/* As the scalar reference: max|x|/127 and rounding to nearest even, without a fused multiply-add. */
TMPL float put_s8(const float *x, uint32_t n, int8_t *q, size_t stride)
{
    vf m = vf_set1(0.0f);
    for (uint32_t d = 0; d < n; d += VL)
        m = vf_max(vf_abs(vf_load_n(x + d, n - d < VL ? n - d : VL)), m);
    float max = vf_hmax(m), inv = max > 0 ? 127.0f / max : 0;
    for (uint32_t d = 0; d < n; d += VL) {
        uint32_t lanes = n - d < VL ? n - d : VL;
        vf v = vf_min(vf_mul(vf_load_n(x + d, lanes), vf_set1(inv)), vf_set1(127.0f));
        v = vf_round(vf_max(v, vf_set1(-127.0f)));
        float w[VL];
        vf_store(w, v);
        for (uint32_t j = 0; j < lanes; j++)
            q[(d + j) * stride] = (int8_t)w[j];
    }
    return max / 127.0f;
}

static void kv_put_s8(uint8_t *part, uint32_t slot, uint32_t n_kv_heads, uint32_t head_dim, const float *k,
                      const float *v)
{
    uint32_t d16 = kv_d16(head_dim);
    size_t side = kv_side_bytes(KERN_S8, head_dim);
    for (uint32_t h = 0; h < n_kv_heads; h++, k += head_dim, v += head_dim) {
        uint8_t *at = part + h * kv_head_bytes(KERN_S8, head_dim);
        float *scale = (float *)(at + 2 * side);
        scale[slot] = put_s8(k, head_dim, (int8_t *)at + slot, KERN_PAGE_TOKENS);
        scale[KERN_PAGE_TOKENS + slot] = put_s8(v, head_dim, (int8_t *)at + side + (size_t)slot * d16, 1);
    }
}

/* ---- attention ---- */

/* What a tile of query vectors shares: a page's keys and values as `type`, and where the next page's lie. */
struct page {
    const char *k, *v;
    const float *k_scale, *v_scale; /* S8: [32]; else NULL */
    ptrdiff_t next;                 /* bytes to the next page's head block, for prefetching; 0: none */
    uint32_t head_dim, d16;
    float scale;
};

#define MAX_TILE 8

/* One query vector of one row. l sums the weights lane by lane. */
struct query {
    const float *q;
    float *out;
    uint32_t n_tokens;
    float max;
    float l[VL];
};

/* Scores of 2 * VL tokens from `tok`, R queries. */
TMPL void scores(enum kern_type type, int R, const struct page *g, const struct query *q, uint32_t tok,
                 vf s[MAX_TILE][2])
{
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
        s[i][0] = s[i][1] = vf_set1(0.0f);
    for (uint32_t d = 0; d < g->head_dim; d += 2) {
        vf k[2][2]; /* dimension, vector of tokens */
        if (type == KERN_BF16) {
            const uint16_t *p = (const uint16_t *)g->k + ((size_t)d * KERN_PAGE_TOKENS) + 2 * tok;
            vf_bf16(p, &k[0][0], &k[1][0]);
            vf_bf16(p + 2 * VL, &k[0][1], &k[1][1]);
            __builtin_prefetch((const char *)p + g->next, 0, 1);
            __builtin_prefetch((const char *)(p + 2 * VL) + g->next, 0, 1);
        } else if (type == KERN_F32) {
            const float *p = (const float *)g->k + (size_t)d * KERN_PAGE_TOKENS + tok;
            for (int j = 0; j < 2; j++) {
                k[j][0] = vf_load(p + j * (int)KERN_PAGE_TOKENS);
                k[j][1] = vf_load(p + j * (int)KERN_PAGE_TOKENS + VL);
            }
        } else {
            const int8_t *p = (const int8_t *)g->k + (size_t)d * KERN_PAGE_TOKENS + tok;
            for (int j = 0; j < 2; j++) {
                k[j][0] = vf_s8(p + j * (int)KERN_PAGE_TOKENS);
                k[j][1] = vf_s8(p + j * (int)KERN_PAGE_TOKENS + VL);
            }
            __builtin_prefetch((const char *)p + g->next);
        }
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++)
#pragma GCC unroll 8
            for (int i = 0; i < R; i++) {
                vf b = vf_set1(q[i].q[d + (uint32_t)j]);
                s[i][0] = vf_fma(k[j][0], b, s[i][0]);
                s[i][1] = vf_fma(k[j][1], b, s[i][1]);
            }
    }
}

/* Weights of one page's n tokens from their scores p, in place; returns what the sums so far shrink by. */
TMPL vf soften(const struct page *g, struct query *q, float *p, uint32_t n)
{
    vf m = vf_set1(q->max), s[KERN_PAGE_TOKENS / VL];
#pragma GCC unroll 4
    for (int j = 0; j < (int)(KERN_PAGE_TOKENS / VL); j++) {
        s[j] = vf_mul(vf_load(p + j * VL), vf_set1(g->scale));
        if (g->k_scale)
            s[j] = vf_mul(s[j], vf_load(g->k_scale + j * VL));
        s[j] = vf_first(s[j], (int)n - j * VL, vf_set1(-INFINITY));
        m = vf_max(m, s[j]);
    }
    float max = vf_hmax(m);
    m = vf_set1(max);
    vf shrink = vf_set1(1.0f); /* what exp(0) is */
    if (max != q->max)
        shrink = vf_exp_low(vf_sub(vf_set1(q->max), m));
    vf l = vf_mul(vf_load(q->l), shrink);
#pragma GCC unroll 4
    for (int j = 0; j < (int)(KERN_PAGE_TOKENS / VL); j++) {
        vf w = vf_exp_low(vf_sub(s[j], m));
        l = vf_add(l, w);
        if (g->v_scale)
            w = vf_mul(w, vf_load(g->v_scale + j * VL));
        vf_store(p + j * VL, w);
    }
    vf_store(q->l, l);
    q->max = max;
    return shrink;
}

/* out[d .. d + D * VL) = out * shrink + weights x values over n tokens; `lanes` of them when D is 1. */
TMPL void values(enum kern_type type, int R, int D, const struct page *g, const struct query *q, const vf *shrink,
                 float (*p)[KERN_PAGE_TOKENS], uint32_t n, uint32_t d, uint32_t lanes)
{
    vf acc[MAX_TILE][4];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 4
        for (int j = 0; j < D; j++)
            acc[i][j] = vf_mul(D == 1 ? vf_load_n(q[i].out + d, lanes) : vf_load(q[i].out + d + j * VL), shrink[i]);
    uint32_t t = 0;
    for (; type == KERN_BF16 && t + 2 <= n; t += 2) {
        const uint16_t *v = (const uint16_t *)g->v + ((size_t)t / 2 * g->d16 + d) * 2;
#pragma GCC unroll 4
        for (int j = 0; j < D; j++) {
            vf a, b;
            vf_bf16(v + j * 2 * VL, &a, &b);
            __builtin_prefetch((const char *)(v + j * 2 * VL) + g->next, 0, 1);
#pragma GCC unroll 8
            for (int i = 0; i < R; i++) {
                acc[i][j] = vf_fma(a, vf_set1(p[i][t]), acc[i][j]);
                acc[i][j] = vf_fma(b, vf_set1(p[i][t + 1]), acc[i][j]);
            }
        }
    }
    for (; t < n; t++)
#pragma GCC unroll 4
        for (int j = 0; j < D; j++) {
            vf a, b;
            size_t at = (size_t)t * g->d16 + d + (size_t)j * VL;
            if (type == KERN_BF16)
                vf_bf16((const uint16_t *)g->v + ((size_t)t / 2 * g->d16 + d + (size_t)j * VL) * 2, &a, &b);
            else if (type == KERN_F32)
                a = vf_load((const float *)g->v + at);
            else
                a = vf_s8((const int8_t *)g->v + at);
            if (type == KERN_S8)
                __builtin_prefetch(g->v + at + g->next);
#pragma GCC unroll 8
            for (int i = 0; i < R; i++)
                acc[i][j] = vf_fma(a, vf_set1(p[i][t]), acc[i][j]);
        }
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 4
        for (int j = 0; j < D; j++)
            if (D == 1)
                vf_store_n(q[i].out + d, lanes, acc[i][j]);
            else
                vf_store(q[i].out + d + j * VL, acc[i][j]);
}

/* R queries against the first n tokens of a page. */
TMPL void attn_tile(enum kern_type type, int R, const struct page *g, struct query *q, uint32_t n)
{
    float p[MAX_TILE][KERN_PAGE_TOKENS];
    vf shrink[MAX_TILE];
    for (uint32_t tok = 0; tok < KERN_PAGE_TOKENS; tok += 2 * VL) {
        vf s[MAX_TILE][2];
        scores(type, R, g, q, tok, s);
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) {
            vf_store(p[i] + tok, s[i][0]);
            vf_store(p[i] + tok + VL, s[i][1]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
        shrink[i] = soften(g, &q[i], p[i], n);
    enum { WIDE = 4 };
    uint32_t d = 0;
    if (R <= TILE_VALUES_4)
        for (; d + WIDE * VL <= g->head_dim; d += WIDE * VL)
            values(type, R, WIDE, g, q, shrink, p, n, d, VL);
    for (; d + 2 * VL <= g->head_dim; d += 2 * VL)
        values(type, R, 2, g, q, shrink, p, n, d, VL);
    for (; d < g->head_dim; d += VL)
        values(type, R, 1, g, q, shrink, p, n, d, g->head_dim - d < VL ? g->head_dim - d : VL);
}

#define ATTN_TILES(name, type)                                                                                         \
    static void name##_1(const struct page *g, struct query *q, uint32_t n)                                            \
    {                                                                                                                  \
        attn_tile(type, 1, g, q, n);                                                                                   \
    }                                                                                                                  \
    static void name##_2(const struct page *g, struct query *q)                                                        \
    {                                                                                                                  \
        attn_tile(type, 2, g, q, KERN_PAGE_TOKENS);                                                                    \
    }                                                                                                                  \
    static void name##_3(const struct page *g, struct query *q)                                                        \
    {                                                                                                                  \
        attn_tile(type, 3, g, q, KERN_PAGE_TOKENS);                                                                    \
    }                                                                                                                  \
    static void name##_big(const struct page *g, struct query *q)                                                      \
    {                                                                                                                  \
        attn_tile(type, TILE_ATTN, g, q, KERN_PAGE_TOKENS);                                                            \
    }                                                                                                                  \
    static void name(const struct page *g, struct query *q, uint32_t n)                                                \
    {                                                                                                                  \
        for (; n >= TILE_ATTN; n -= TILE_ATTN, q += TILE_ATTN)                                                         \
            name##_big(g, q);                                                                                          \
        for (; n >= 3; n -= 3, q += 3)                                                                                 \
            name##_3(g, q);                                                                                            \
        if (n == 2)                                                                                                    \
            name##_2(g, q);                                                                                            \
        if (n == 1)                                                                                                    \
            name##_1(g, q, KERN_PAGE_TOKENS);                                                                          \
    }
ATTN_TILES(page_f32, KERN_F32)
ATTN_TILES(page_bf16, KERN_BF16)
ATTN_TILES(page_s8, KERN_S8)

TMPL void page_one(enum kern_type type, const struct page *g, struct query *q, uint32_t n)
{
    if (type == KERN_F32)
        page_f32_1(g, q, n);
    else if (type == KERN_BF16)
        page_bf16_1(g, q, n);
    else
        page_s8_1(g, q, n);
}

/* n queries that all see the whole page. Many of them read it better widened to f32 once: `wide`, 2 * 32 * d16. */
TMPL void page_all(enum kern_type type, const struct page *g, struct query *q, uint32_t n, float *wide)
{
    if (type == KERN_F32) {
        page_f32(g, q, n);
        return;
    }
    if (n < 2 * TILE_ATTN || g->d16 > MAX_WIDE) {
        if (type == KERN_BF16)
            page_bf16(g, q, n);
        else
            page_s8(g, q, n);
        return;
    }
    uint32_t side = KERN_PAGE_TOKENS * g->d16;
    for (uint32_t j = 0; type == KERN_S8 && j < side; j += VL) {
        vf_store(wide + j, vf_s8((const int8_t *)g->k + j));
        vf_store(wide + side + j, vf_s8((const int8_t *)g->v + j));
    }
    for (uint32_t j = 0; type == KERN_BF16 && j < side / 2; j += VL) {
        uint32_t d = j / KERN_PAGE_TOKENS, t = j / g->d16;
        vf a, b;
        vf_bf16((const uint16_t *)g->k + 2 * (size_t)j, &a, &b);
        vf_store(wide + j + (size_t)d * KERN_PAGE_TOKENS, a);
        vf_store(wide + j + (size_t)(d + 1) * KERN_PAGE_TOKENS, b);
        vf_bf16((const uint16_t *)g->v + 2 * (size_t)j, &a, &b);
        vf_store(wide + side + j + (size_t)t * g->d16, a);
        vf_store(wide + side + j + (size_t)(t + 1) * g->d16, b);
    }
    struct page w = *g;
    w.k = (const char *)wide;
    w.v = (const char *)(wide + side);
    page_f32(&w, q, n);
}

/* n queries of rising positions, page by page. */
TMPL void attn_queries(enum kern_type type, const struct cpu_attn *a, struct query *q, uint32_t n)
{
    float wide[2 * KERN_PAGE_TOKENS * MAX_WIDE];
    size_t head_off = a->kv_head * kv_head_bytes(type, a->head_dim), side = kv_side_bytes(type, a->head_dim);
    uint32_t pages = (q[n - 1].n_tokens + KERN_PAGE_TOKENS - 1) / KERN_PAGE_TOKENS, first = 0;
    for (uint32_t p = 0; p < pages; p++) {
        const uint8_t *head = a->base + a->pages[p] * a->page_bytes + head_off;
        const float *scales = type == KERN_S8 ? (const float *)(head + 2 * side) : NULL;
        struct page g = {.k = (const char *)head,
                         .v = (const char *)head + side,
                         .k_scale = scales,
                         .v_scale = scales ? scales + KERN_PAGE_TOKENS : NULL,
                         .head_dim = a->head_dim,
                         .d16 = kv_d16(a->head_dim),
                         .scale = a->scale};
        if (p + 1 < pages)
            g.next = a->base + a->pages[p + 1] * a->page_bytes + head_off - head;
        while (first < n && q[first].n_tokens <= p * KERN_PAGE_TOKENS)
            first++;
        uint32_t whole = first;
        for (; whole < n && q[whole].n_tokens < (p + 1) * KERN_PAGE_TOKENS; whole++)
            page_one(type, &g, &q[whole], q[whole].n_tokens - p * KERN_PAGE_TOKENS);
        if (whole < n)
            page_all(type, &g, q + whole, n - whole, wide);
    }
}

TMPL void attn(enum kern_type type, const struct cpu_attn *a)
{
    struct query q[MAX_QUERIES];
    uint32_t n = 0, all = a->n_rows * a->n_q;
    for (uint32_t c = 0; c < all; c++) {
        uint32_t row = c / a->n_q, head = c % a->n_q;
        q[n] = (struct query){.q = a->q + (size_t)row * a->ldq + (size_t)head * a->head_dim,
                              .out = a->out + (size_t)row * a->ldo + (size_t)head * a->head_dim,
                              .n_tokens = a->pos0 + row + 1,
                              .max = -FLT_MAX};
        memset(q[n].out, 0, a->head_dim * sizeof(float));
        if (++n < MAX_QUERIES && c + 1 < all)
            continue;
        attn_queries(type, a, q, n);
        for (uint32_t i = 0; i < n; i++) {
            vf l = vf_load(q[i].l), sum = vf_set1(_mm_cvtss_f32(vf_hsum4(l, l, l, l)));
            for (uint32_t d = 0; d < a->head_dim; d += VL) {
                uint32_t lanes = a->head_dim - d < VL ? a->head_dim - d : VL;
                vf_store_n(q[i].out + d, lanes, vf_div(vf_load_n(q[i].out + d, lanes), sum));
            }
        }
        n = 0;
    }
}

static void attn_f32(const struct cpu_attn *a)
{
    attn(KERN_F32, a);
}

static void attn_bf16(const struct cpu_attn *a)
{
    attn(KERN_BF16, a);
}

static void attn_s8(const struct cpu_attn *a)
{
    attn(KERN_S8, a);
}

/* ---- sampling ---- */

static float max_of(const float *x, uint32_t n)
{
    vf low = vf_set1(-INFINITY), m[4] = {low, low, low, low};
    uint32_t i = 0;
    for (; i + 4 * VL <= n; i += 4 * VL)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            m[j] = vf_max(vf_load(x + i + j * VL), m[j]); /* the second operand stays when the first is NaN */
    for (; i < n; i += VL) {
        int left = (int)(n - i < VL ? n - i : VL);
        m[0] = vf_max(vf_first(vf_load_n(x + i, (uint32_t)left), left, low), m[0]);
    }
    return vf_hmax(vf_max(vf_max(m[0], m[1]), vf_max(m[2], m[3])));
}

static void tidy(float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += VL) {
        uint32_t left = n - i < VL ? n - i : VL;
        vf v = vf_max(vf_load_n(x + i, left), vf_set1(-INFINITY));
        vf_store_n(x + i, left, vf_min(v, vf_set1(FLT_MAX)));
    }
}

static uint32_t next_ge(const float *x, uint32_t i, uint32_t n, float v)
{
    vf w = vf_set1(v);
    for (; i + 4 * VL <= n; i += 4 * VL) {
        if (!vf_any_ge4(x + i, w))
            continue;
        for (uint32_t j = 0; j < 4 * VL; j += VL) {
            uint32_t hit = vf_mask_ge(vf_load(x + i + j), w);
            if (hit)
                return i + j + (uint32_t)__builtin_ctz(hit);
        }
    }
    for (; i < n; i++)
        if (x[i] >= v)
            return i;
    return n;
}

static uint32_t take(const float *x, uint32_t *at, uint32_t n, float v, float *held, uint32_t room)
{
    uint32_t k = 0, i = *at;
    vf w = vf_set1(v);
    for (; i + VL <= n && k + VL <= room; i += VL) {
        vf u = vf_load(x + i);
        uint32_t hits = vf_mask_ge(u, w);
        if (hits)
            vf_compress(held + k, u, hits);
        k += (uint32_t)__builtin_popcount(hits);
    }
    for (; i + VL > n && i < n && k < room; i++)
        if (x[i] >= v)
            held[k++] = x[i];
    *at = i;
    return k;
}

static void cut(float *x, uint32_t n, float v)
{
    vf w = vf_set1(v), low = vf_set1(-INFINITY);
    for (uint32_t i = 0; i < n; i += VL) {
        uint32_t left = n - i < VL ? n - i : VL;
        vf u = vf_load_n(x + i, left);
        vf_store_n(x + i, left, vf_select_lt(u, w, low, u));
    }
}

static void mask(float *x, uint32_t n, const uint32_t *bits)
{
    for (uint32_t i = 0; i < n; i += VL) {
        uint32_t left = n - i < VL ? n - i : VL, b = bits[i / 32] >> (i % 32);
        vf_store_n(x + i, left, vf_where(b, vf_load_n(x + i, left), vf_set1(-INFINITY)));
    }
}

static float weights(float *w, const float *x, uint32_t n, float max, float temperature)
{
    float inv = 1.0f / temperature < FLT_MAX ? 1.0f / temperature : FLT_MAX;
    vf m = vf_set1(max), s = vf_set1(inv), sum = vf_set1(0.0f);
    for (uint32_t i = 0; i < n; i += VL) {
        uint32_t left = n - i < VL ? n - i : VL;
        vf e = vf_exp(vf_mul(vf_sub(vf_load_n(x + i, left), m), s));
        e = vf_first(e, (int)left, vf_set1(0.0f));
        vf_store_n(w + i, left, e);
        sum = vf_add(sum, e);
    }
    return _mm_cvtss_f32(vf_hsum4(sum, sum, sum, sum));
}

static void sample(float *logits, uint32_t vocab, const struct kern_sample *s, struct kern_sampled *out)
{
    static const struct sample_prims prims = {max_of, tidy, next_ge, take, mask, cut, weights};
    cpu_sample_with(&prims, logits, vocab, s, out);
}

static void fill(struct cpu_table *t)
{
    t->lr_down = lr_down;
    t->lr_up = lr_up;
    t->rope = rope;
    t->kv_put[KERN_BF16] = kv_put_bf16;
    t->kv_put[KERN_S8] = kv_put_s8;
    t->attn[KERN_F32] = attn_f32;
    t->attn[KERN_BF16] = attn_bf16;
    t->attn[KERN_S8] = attn_s8;
    t->sample = sample;
}
