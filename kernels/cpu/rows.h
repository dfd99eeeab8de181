/* rows.h - norm, quantization, bf16 and SwiGLU of one row, written once in vectors and compiled at each level.
 *
 * Whoever includes this sets ROWS_BYTES to the width of its registers first. Every level runs these same additions and
 * products in this same order (fused multiply-add is off for the whole program), so their bits agree at all levels:
 * a row goes in runs of 16, sum i takes the elements i, i+16, ..., then the 16 sums fold in halves. A last run shorter
 * than 16 goes through a zero-padded copy and the same code, never through libm.
 */
#ifndef CPET_KERNELS_CPU_ROWS_H
#define CPET_KERNELS_CPU_ROWS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

#define LANES (ROWS_BYTES / 4)
#define PARTS (16 / LANES) /* vectors a run of 16 */

typedef float vf __attribute__((vector_size(ROWS_BYTES)));
typedef int32_t vi __attribute__((vector_size(ROWS_BYTES)));
typedef uint32_t vu __attribute__((vector_size(ROWS_BYTES)));
typedef int8_t vb __attribute__((vector_size(ROWS_BYTES / 4)));
typedef uint16_t vh __attribute__((vector_size(ROWS_BYTES / 2)));

#define ROWS_FN static inline __attribute__((always_inline))
#define EACH_PART _Pragma("GCC unroll 4") for (int p = 0; p < PARTS; p++)

ROWS_FN vf v_load(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

ROWS_FN void v_store(float *p, vf v)
{
    memcpy(p, &v, sizeof v);
}

ROWS_FN vf v_select(vi mask, vf yes, vf no)
{
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}

/* a where a > b, else b: b where a is not a number. */
ROWS_FN vf v_max(vf a, vf b)
{
    return v_select(a > b, a, b);
}

ROWS_FN vf v_min(vf a, vf b)
{
    return v_select(a < b, a, b);
}

/* The last n % 16 floats with zeros behind. */
ROWS_FN void rows_tail(const float *x, uint32_t n, float tail[16])
{
    memset(tail, 0, 16 * sizeof *tail);
    memcpy(tail, x + (n & ~15u), (n & 15) * sizeof *tail);
}

/* ---- norm: y = x / sqrt(mean(x^2) + eps) * gain ---- */

ROWS_FN float rows_fold(const vf acc[PARTS])
{
    float t[16];
    memcpy(t, acc, sizeof t);
    for (int w = 8; w; w /= 2)
        for (int i = 0; i < w; i++)
            t[i] += t[i + w];
    return t[0];
}

ROWS_FN void rows_square(const float *x, vf acc[PARTS])
{
    EACH_PART
    {
        vf v = v_load(x + p * LANES);
        acc[p] += v * v;
    }
}

ROWS_FN void rows_norm(const float *x, const float *gain, uint32_t k, float eps, float *y)
{
    vf acc[PARTS] = {{0}};
    uint32_t i = 0;
    float tail[16];
    for (; i + 16 <= k; i += 16)
        rows_square(x + i, acc);
    if (i < k) {
        rows_tail(x, k, tail);
        rows_square(tail, acc);
    }
    float s = 1.0f / sqrtf(rows_fold(acc) / (float)k + eps);
    for (i = 0; i + LANES <= k; i += LANES)
        v_store(y + i, v_load(x + i) * s * v_load(gain + i));
    for (; i < k; i++)
        y[i] = x[i] * s * gain[i];
}

/* ---- quantization: q = round(x * 127 / max|x|) ---- */

/* Adding and taking away 1.5 * 2^23 rounds |v| < 2^22 to the nearest even integer. */
ROWS_FN vi v_round(vf v)
{
    return (vi)(v + 12582912.0f) - 0x4B400000;
}

ROWS_FN vf rows_most(const float *x, vf top)
{
    EACH_PART
    {
        top = v_max((vf)((vi)v_load(x + p * LANES) & 0x7FFFFFFF), top);
    }
    return top;
}

ROWS_FN float rows_max_abs(const float *x, uint32_t k)
{
    vf top = {0};
    uint32_t i = 0;
    for (; i + 16 <= k; i += 16)
        top = rows_most(x + i, top);
    if (i < k) {
        float tail[16];
        rows_tail(x, k, tail);
        top = rows_most(tail, top);
    }
    float m = 0;
    for (i = 0; i < LANES; i++)
        m = top[i] > m ? top[i] : m;
    return m;
}

ROWS_FN vi rows_quant16(const float *x, float inv, int8_t *q, vi total)
{
    const vf zero = {0};
    EACH_PART
    {
        vi r = v_round(v_min(v_max(v_load(x + p * LANES) * inv, zero - 127.0f), zero + 127.0f));
        total += r;
        vb b = __builtin_convertvector(r, vb);
        memcpy(q + p * LANES, &b, sizeof b);
    }
    return total;
}

/* What is not a number counts for nothing in the maximum and becomes -127. Below 1e-30 the row is zeros and the scale
 * is 0; with an infinite maximum the finite values become zeros, and the scale makes the product infinite or NaN. */
ROWS_FN void rows_quant(const float *x, uint32_t k, uint32_t kpad, int8_t *q, float *scale, int32_t *sum)
{
    float m = rows_max_abs(x, k);
    *sum = 0;
    *scale = 0;
    if (!(m >= 1e-30f)) {
        memset(q, 0, kpad);
        return;
    }
    float inv = 127.0f / m;
    vi total = {0};
    uint32_t i = 0;
    for (; i + 16 <= k; i += 16)
        total = rows_quant16(x + i, inv, q + i, total);
    memset(q + i, 0, kpad - i);
    if (i < k) {
        float tail[16];
        rows_tail(x, k, tail);
        total = rows_quant16(tail, inv, q + i, total);
    }
    for (i = 0; i < LANES; i++)
        *sum += total[i];
    *scale = m / 127.0f;
}

/* ---- bf16: round to nearest even; not a number stays so ---- */

ROWS_FN void rows_bf16_16(const float *x, uint16_t *y)
{
    EACH_PART
    {
        vf v = v_load(x + p * LANES);
        vu u = (vu)v, nan = (vu)(v != v), r = (u + 0x7FFF + (u >> 16 & 1)) >> 16;
        r = (nan & (u >> 16 | 0x40)) | (~nan & r);
        vh h = __builtin_convertvector(r, vh);
        memcpy(y + p * LANES, &h, sizeof h);
    }
}

ROWS_FN void rows_bf16(const float *x, uint32_t k, uint32_t kpad, uint16_t *y)
{
    uint32_t i = 0;
    for (; i + 16 <= k; i += 16)
        rows_bf16_16(x + i, y + i);
    memset(y + i, 0, (size_t)(kpad - i) * sizeof *y);
    if (i < k) {
        float tail[16];
        rows_tail(x, k, tail);
        rows_bf16_16(tail, y + i);
    }
}

/* ---- SwiGLU: y = gate / (1 + e^-gate) * up ---- */

/* e^x within 2 units in the last place on [-87, 88]; x is held to that range (what is not a number becomes 88).
 * x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 is split so that n times its high part is exact. */
ROWS_FN vf v_exp(vf x)
{
    const vf zero = {0};
    x = v_max(v_min(x, zero + 88.0f), zero - 87.0f);
    vi n = v_round(x * 1.44269504f);
    vf nf = __builtin_convertvector(n, vf);
    vf r = x - nf * 0.693359375f;
    r = r + nf * 2.12194440e-4f;
    vf p = zero + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * (r * r) + r) + 1.0f;
    return p * (vf)((n + 127) << 23);
}

ROWS_FN vf v_silu(vf gate, vf up)
{
    return gate / (1.0f + v_exp(-gate)) * up;
}

ROWS_FN void rows_swiglu(const float *gate, const float *up, uint32_t n, float *y)
{
    uint32_t i = 0;
    for (; i + 16 <= n; i += 16)
        EACH_PART
        {
            uint32_t at = i + (uint32_t)p * LANES;
            v_store(y + at, v_silu(v_load(gate + at), v_load(up + at)));
        }
    if (i < n) {
        float g[16], u[16], z[16];
        rows_tail(gate, n, g);
        rows_tail(up, n, u);
        EACH_PART
        {
            v_store(z + p * LANES, v_silu(v_load(g + p * LANES), v_load(u + p * LANES)));
        }
        memcpy(y + i, z, (n - i) * sizeof *y);
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
