/* rows.h - norm, quantization, bf16 and SwiGLU of one row, written once in 16-lane vectors and compiled at each level.
 *
 * Every level runs these same additions and products in this same order (fused multiply-add is off for the whole
 * program), so their bits agree at all levels: lane i sums the elements i, i+16, ..., then the lanes fold in halves.
 * A tail shorter than 16 goes through a zero-padded copy and the same code, never through libm.
 */
#ifndef CPET_KERNELS_CPU_ROWS_H
#define CPET_KERNELS_CPU_ROWS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

typedef float v16f __attribute__((vector_size(64)));
typedef int32_t v16i __attribute__((vector_size(64)));
typedef uint32_t v16u __attribute__((vector_size(64)));
typedef int8_t v16b __attribute__((vector_size(16)));
typedef uint16_t v16h __attribute__((vector_size(32)));

#define ROWS_FN static inline __attribute__((always_inline))

ROWS_FN v16f v16_load(const float *p)
{
    v16f v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* The last n < 16 floats, zeros behind. */
ROWS_FN v16f v16_load_tail(const float *p, uint32_t n)
{
    float t[16] = {0};
    memcpy(t, p, n * sizeof *p);
    return v16_load(t);
}

ROWS_FN v16f v16_at(const float *p, uint32_t i, uint32_t n)
{
    return n - i >= 16 ? v16_load(p + i) : v16_load_tail(p + i, n - i);
}

ROWS_FN void v16_put(float *p, uint32_t i, uint32_t n, v16f v)
{
    if (n - i >= 16) {
        memcpy(p + i, &v, sizeof v);
    } else {
        float t[16];
        memcpy(t, &v, sizeof v);
        memcpy(p + i, t, (n - i) * sizeof *p);
    }
}

ROWS_FN v16f v16_select(v16i mask, v16f yes, v16f no)
{
    return (v16f)((mask & (v16i)yes) | (~mask & (v16i)no));
}

/* a where a > b, else b: b where a is not a number. */
ROWS_FN v16f v16_max(v16f a, v16f b)
{
    return v16_select(a > b, a, b);
}

ROWS_FN v16f v16_min(v16f a, v16f b)
{
    return v16_select(a < b, a, b);
}

ROWS_FN float v16_sum(v16f v)
{
    float t[16];
    memcpy(t, &v, sizeof t);
    for (int w = 8; w; w /= 2)
        for (int i = 0; i < w; i++)
            t[i] += t[i + w];
    return t[0];
}

/* y = x / sqrt(mean(x^2) + eps) * gain */
ROWS_FN void rows_norm(const float *x, const float *gain, uint32_t k, float eps, float *y)
{
    v16f acc = {0};
    for (uint32_t i = 0; i < k; i += 16) {
        v16f v = v16_at(x, i, k);
        acc += v * v;
    }
    float s = 1.0f / sqrtf(v16_sum(acc) / (float)k + eps);
    for (uint32_t i = 0; i < k; i += 16)
        v16_put(y, i, k, v16_at(x, i, k) * s * v16_at(gain, i, k));
}

/* Adding and taking away 1.5 * 2^23 rounds |v| < 2^22 to the nearest even integer. */
#define ROWS_ROUND 12582912.0f

ROWS_FN v16i v16_round(v16f v)
{
    return (v16i)(v + ROWS_ROUND) - 0x4B400000;
}

/* q = round(x * 127 / max|x|); what is not a number counts for nothing in the maximum and becomes -127. Below 1e-30
 * the row is zeros with the scale 0. */
ROWS_FN void rows_quant(const float *x, uint32_t k, uint32_t kpad, int8_t *q, float *scale, int32_t *sum)
{
    v16f top = {0};
    for (uint32_t i = 0; i < k; i += 16)
        top = v16_max((v16f)((v16i)v16_at(x, i, k) & 0x7FFFFFFF), top);
    float m = 0;
    for (int i = 0; i < 16; i++)
        m = top[i] > m ? top[i] : m;
    if (!(m >= 1e-30f)) {
        memset(q, 0, kpad);
        *scale = 0;
        *sum = 0;
        return;
    }
    const v16f most = {127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127, 127};
    float inv = 127.0f / m;
    v16i total = {0};
    for (uint32_t i = 0; i < k; i += 16) {
        v16i r = v16_round(v16_min(v16_max(v16_at(x, i, k) * inv, -most), most));
        if (k - i < 16) /* zeros times an infinite maximum's inverse are zeros; keep the padding so in any case */
            for (uint32_t j = k - i; j < 16; j++)
                r[j] = 0;
        total += r;
        v16b b = __builtin_convertvector(r, v16b);
        memcpy(q + i, &b, sizeof b);
    }
    uint32_t done = (k + 15) & ~15u;
    memset(q + done, 0, kpad - done);
    int32_t s = 0;
    for (int i = 0; i < 16; i++)
        s += total[i];
    *scale = m / 127.0f;
    *sum = s;
}

/* Round to nearest even; not a number stays so. */
ROWS_FN void rows_bf16(const float *x, uint32_t k, uint32_t kpad, uint16_t *y)
{
    for (uint32_t i = 0; i < k; i += 16) {
        v16f v = v16_at(x, i, k);
        v16u u = (v16u)v;
        v16u nan = (v16u)(v != v);
        v16u r = (u + 0x7FFF + (u >> 16 & 1)) >> 16;
        r = (nan & (u >> 16 | 0x40)) | (~nan & r);
        v16h h = __builtin_convertvector(r, v16h);
        memcpy(y + i, &h, sizeof h);
    }
    uint32_t done = (k + 15) & ~15u;
    memset(y + done, 0, (size_t)(kpad - done) * sizeof *y);
}

/* e^x within 2 units in the last place on [-87, 88]; x is held to that range (what is not a number becomes 88).
 * x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 is split so that n times its high part is exact. */
ROWS_FN v16f v16_exp(v16f x)
{
    const v16f zero = {0};
    x = v16_max(v16_min(x, zero + 88.0f), zero - 87.0f);
    v16i n = v16_round(x * 1.44269504f);
    v16f nf = __builtin_convertvector(n, v16f);
    v16f r = x - nf * 0.693359375f;
    r = r + nf * 2.12194440e-4f;
    v16f p = zero + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * (r * r) + r) + 1.0f;
    return p * (v16f)((n + 127) << 23);
}

/* y = gate / (1 + e^-gate) * up */
ROWS_FN void rows_swiglu(const float *gate, const float *up, uint32_t n, float *y)
{
    for (uint32_t i = 0; i < n; i += 16) {
        v16f g = v16_at(gate, i, n);
        v16_put(y, i, n, g / (1.0f + v16_exp(-g)) * v16_at(up, i, n));
    }
}

/* The four row kernels as functions of one level. */
#define ROWS_DEFINE(suffix)                                                                                            \
    static void norm_##suffix(const float *x, const float *gain, uint32_t k, float eps, float *y)                      \
    {                                                                                                                  \
        rows_norm(x, gain, k, eps, y);                                                                                 \
    }                                                                                                                  \
    static void quant_##suffix(const float *x, uint32_t k, uint32_t kpad, int8_t *q, float *scale, int32_t *sum)       \
    {                                                                                                                  \
        rows_quant(x, k, kpad, q, scale, sum);                                                                         \
    }                                                                                                                  \
    static void to_bf16_##suffix(const float *x, uint32_t k, uint32_t kpad, uint16_t *y)                               \
    {                                                                                                                  \
        rows_bf16(x, k, kpad, y);                                                                                      \
    }                                                                                                                  \
    static void swiglu_##suffix(const float *gate, const float *up, uint32_t n, float *y)                              \
    {                                                                                                                  \
        rows_swiglu(gate, up, n, y);                                                                                   \
    }

#define ROWS_FILL(table, suffix)                                                                                       \
    do {                                                                                                               \
        (table)->norm = norm_##suffix;                                                                                 \
        (table)->quant = quant_##suffix;                                                                               \
        (table)->to_bf16 = to_bf16_##suffix;                                                                           \
        (table)->swiglu = swiglu_##suffix;                                                                             \
    } while (0)

#endif
