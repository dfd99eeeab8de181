/* sequence_scalar.c - the reference for low-rank products, RoPE, KV pages, attention and sampling: plain C, every sum
 * in rising order of its index.
 *
 * Called by the region's workers on parts of an operation; owns no memory. A row's sums run over k, rank, head_dim or
 * the tokens 0 .. its own position in order, so its bits do not depend on the rows beside it. RoPE and the storing of
 * keys and values round the same way at all levels (no fused multiply-add), so that pages are equal at all of them.
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/sequence.h"

/* ---- low rank ---- */

static inline float lr_word(enum kern_type type, const void *p, size_t i)
{
    return type == KERN_BF16 ? bf16_to_f32(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}

static float lr_fn(enum kern_fn fn, float x)
{
    if (fn == KERN_FN_GELU)
        return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    if (fn == KERN_FN_GELU_TANH)
        return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    return x;
}

static void lr_down(const struct cpu_lr *a, uint32_t r0, uint32_t r1)
{
    const struct kern_lr *lr = a->lr;
    for (uint32_t i = 0; i < a->n_rows; i++) {
        const float *x = a->x + (size_t)a->rows[i] * lr->k;
        for (uint32_t r = r0; r < r1; r++) {
            size_t step = (size_t)lr_block_ranks(lr->rank, r) * LR_WIDE;
            size_t at = lr_a_index(lr->type, lr->rank, lr->k, r, 0);
            float sum = 0;
            for (uint32_t k = 0; k < lr->k; k++)
                sum += lr_word(lr->type, a->a, at + k / LR_WIDE * step + lr_place(lr->type, k % LR_WIDE)) * x[k];
            a->t[(size_t)i * lr->rank + r] = lr_fn(lr->fn, sum);
        }
    }
}

static void lr_up(const struct cpu_lr *a, uint32_t n0, uint32_t n1)
{
    const struct kern_lr *lr = a->lr;
    float s = a->weight * lr->scale;
    for (uint32_t i = 0; i < a->n_rows; i++) {
        const float *t = a->t + (size_t)i * lr->rank;
        float *y = a->y + (size_t)a->rows[i] * a->ldy;
        for (uint32_t n = n0; n < n1; n++) {
            size_t at = lr_b_index(lr->type, lr->rank, n, 0);
            float sum = 0;
            for (uint32_t r = 0; r < lr->rank; r++)
                sum += lr_word(lr->type, a->b, at + (size_t)r * LR_WIDE) * t[r];
            y[n] += s * sum;
        }
    }
}

/* ---- RoPE and the pages ---- */

static void rope(float *x, const float *cos_sin, uint32_t n_heads, uint32_t head_dim)
{
    uint32_t half = head_dim / 2;
    const float *cs = cos_sin, *sn = cos_sin + half;
    for (uint32_t h = 0; h < n_heads; h++) {
        float *u = x + (size_t)h * head_dim, *v = u + half;
        for (uint32_t d = 0; d < half; d++) {
            float a = u[d], b = v[d];
            u[d] = a * cs[d] - b * sn[d];
            v[d] = b * cs[d] + a * sn[d];
        }
    }
}

static void kv_put_f32(uint8_t *part, uint32_t slot, uint32_t n_kv_heads, uint32_t head_dim, const float *k,
                       const float *v)
{
    uint32_t d16 = kv_d16(head_dim);
    for (uint32_t h = 0; h < n_kv_heads; h++, k += head_dim, v += head_dim) {
        float *kp = (float *)(part + h * kv_head_bytes(KERN_F32, head_dim));
        float *vp = kp + (size_t)KERN_PAGE_TOKENS * d16 + (size_t)slot * d16;
        for (uint32_t d = 0; d < head_dim; d++) {
            kp[d * KERN_PAGE_TOKENS + slot] = k[d];
            vp[d] = v[d];
        }
    }
}

static void kv_put_bf16(uint8_t *part, uint32_t slot, uint32_t n_kv_heads, uint32_t head_dim, const float *k,
                        const float *v)
{
    uint32_t d16 = kv_d16(head_dim);
    for (uint32_t h = 0; h < n_kv_heads; h++, k += head_dim, v += head_dim) {
        uint16_t *kp = (uint16_t *)(part + h * kv_head_bytes(KERN_BF16, head_dim));
        uint16_t *vp = kp + (size_t)KERN_PAGE_TOKENS * d16 + (size_t)(slot / 2) * d16 * 2 + slot % 2;
        for (uint32_t d = 0; d < head_dim; d++) {
            kp[(d / 2 * KERN_PAGE_TOKENS + slot) * 2 + d % 2] = f32_to_bf16(k[d]);
            vp[d * 2] = f32_to_bf16(v[d]);
        }
    }
}

/* Writes x as 8-bit integers `stride` apart and returns the scale. A value that is no number becomes -127. */
static float put_s8(const float *x, uint32_t n, int8_t *q, size_t stride)
{
    float max = 0;
    for (uint32_t d = 0; d < n; d++) {
        float v = fabsf(x[d]);
        max = v > max ? v : max;
    }
    float inv = max > 0 ? 127.0f / max : 0;
    for (uint32_t d = 0; d < n; d++) {
        float v = x[d] * inv;
        v = v < 127.0f ? v : 127.0f;
        v = v > -127.0f ? v : -127.0f;
        q[d * stride] = (int8_t)rintf(v);
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

static inline float kv_key(enum kern_type type, const uint8_t *head, uint32_t d, uint32_t t)
{
    if (type == KERN_F32)
        return ((const float *)head)[d * KERN_PAGE_TOKENS + t];
    if (type == KERN_BF16)
        return bf16_to_f32(((const uint16_t *)head)[(d / 2 * KERN_PAGE_TOKENS + t) * 2 + d % 2]);
    return (float)((const int8_t *)head)[d * KERN_PAGE_TOKENS + t];
}

static inline float kv_value(enum kern_type type, const uint8_t *side, uint32_t d16, uint32_t d, uint32_t t)
{
    if (type == KERN_F32)
        return ((const float *)side)[(size_t)t * d16 + d];
    if (type == KERN_BF16)
        return bf16_to_f32(((const uint16_t *)side)[((size_t)(t / 2) * d16 + d) * 2 + t % 2]);
    return (float)((const int8_t *)side)[(size_t)t * d16 + d];
}

/* One query vector against one page's first n tokens: updates the running maximum, sum and weighted values. */
static inline void attn_page(enum kern_type type, const struct cpu_attn *a, const uint8_t *head, uint32_t n,
                             const float *q, float *out, float *max, float *sum)
{
    size_t side = kv_side_bytes(type, a->head_dim);
    const float *scale = (const float *)(head + 2 * side);
    float p[KERN_PAGE_TOKENS], m = *max;
    for (uint32_t t = 0; t < n; t++) {
        float dot = 0;
        for (uint32_t d = 0; d < a->head_dim; d++)
            dot += q[d] * kv_key(type, head, d, t);
        p[t] = dot * a->scale * (type == KERN_S8 ? scale[t] : 1.0f);
        m = p[t] > m ? p[t] : m;
    }
    float shrink = expf(*max - m);
    *sum *= shrink;
    for (uint32_t d = 0; d < a->head_dim; d++)
        out[d] *= shrink;
    for (uint32_t t = 0; t < n; t++) {
        float w = expf(p[t] - m);
        *sum += w;
        if (type == KERN_S8)
            w *= scale[KERN_PAGE_TOKENS + t];
        for (uint32_t d = 0; d < a->head_dim; d++)
            out[d] += w * kv_value(type, head + side, kv_d16(a->head_dim), d, t);
    }
    *max = m;
}

static inline void attn(enum kern_type type, const struct cpu_attn *a)
{
    size_t head_off = a->kv_head * kv_head_bytes(type, a->head_dim);
    for (uint32_t i = 0; i < a->n_rows; i++)
        for (uint32_t h = 0; h < a->n_q; h++) {
            const float *q = a->q + (size_t)i * a->ldq + (size_t)h * a->head_dim;
            float *out = a->out + (size_t)i * a->ldo + (size_t)h * a->head_dim;
            float max = -FLT_MAX, sum = 0;
            memset(out, 0, a->head_dim * sizeof *out);
            uint32_t n = a->pos0 + i + 1;
            for (uint32_t p = 0; p * KERN_PAGE_TOKENS < n; p++) {
                uint32_t left = n - p * KERN_PAGE_TOKENS;
                const uint8_t *head = a->base + a->pages[p] * a->page_bytes + head_off;
                attn_page(type, a, head, left < KERN_PAGE_TOKENS ? left : KERN_PAGE_TOKENS, q, out, &max, &sum);
            }
            for (uint32_t d = 0; d < a->head_dim; d++)
                out[d] /= sum;
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
    float m = -INFINITY;
    for (uint32_t i = 0; i < n; i++)
        m = x[i] > m ? x[i] : m;
    return m;
}

static void tidy(float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        float v = x[i] < FLT_MAX ? x[i] : FLT_MAX;
        x[i] = x[i] == x[i] ? v : -INFINITY;
    }
}

static uint32_t next_ge(const float *x, uint32_t i, uint32_t n, float v)
{
    while (i < n && !(x[i] >= v))
        i++;
    return i;
}

static uint32_t take(const float *x, uint32_t *i, uint32_t n, float v, float *held, uint32_t room)
{
    uint32_t k = 0;
    for (; *i < n && k < room; ++*i)
        if (x[*i] >= v)
            held[k++] = x[*i];
    return k;
}

static void mask(float *x, uint32_t n, const uint32_t *bits)
{
    for (uint32_t i = 0; i < n; i++)
        if (!(bits[i / 32] >> (i % 32) & 1u))
            x[i] = -INFINITY;
}

static void cut(float *x, uint32_t n, float v)
{
    for (uint32_t i = 0; i < n; i++)
        x[i] = x[i] >= v ? x[i] : -INFINITY;
}

static float weights(float *w, const float *x, uint32_t n, float max, float temperature)
{
    float sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        w[i] = expf((x[i] - max) / temperature);
        sum += w[i];
    }
    return sum;
}

static void sample(float *logits, uint32_t vocab, const struct kern_sample *s, struct kern_sampled *out)
{
    static const struct sample_prims prims = {max_of, tidy, next_ge, take, mask, cut, weights};
    cpu_sample_with(&prims, logits, vocab, s, out);
}

void cpu_sequence_scalar(struct cpu_table *t)
{
    t->lr_down = lr_down;
    t->lr_up = lr_up;
    t->rope = rope;
    t->kv_put[KERN_F32] = kv_put_f32;
    t->kv_put[KERN_BF16] = kv_put_bf16;
    t->kv_put[KERN_S8] = kv_put_s8;
    t->attn[KERN_F32] = attn_f32;
    t->attn[KERN_BF16] = attn_bf16;
    t->attn[KERN_S8] = attn_s8;
    t->sample = sample;
}
