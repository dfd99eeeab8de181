/* linear512.h - what linear_vnni.c and linear_amx.c share: finishing sixteen outputs at a time. */
#ifndef CPET_KERNELS_CPU_LINEAR512_H
#define CPET_KERNELS_CPU_LINEAR512_H

#include <immintrin.h>

#include "kernels/cpu/cpu.h"

#define BLOCK_FN static inline __attribute__((always_inline))

/* The VNNI product, which AMX too uses for few rows. */
void cpu_linear_s8_vnni(const struct cpu_linear *a, uint32_t n0, uint32_t n1);

/* Stores sixteen finished outputs of row r from column n, as far as n1. */
BLOCK_FN void finish(const struct cpu_linear *a, uint32_t r, uint32_t n, uint32_t n1, __m512 v)
{
    float *y = a->y + (size_t)r * a->ldy + n;
    if (a->bias)
        v = _mm512_add_ps(v, _mm512_loadu_ps(a->bias + n));
    __mmask16 m = n1 - n >= 16 ? 0xFFFF : (__mmask16)((1u << (n1 - n)) - 1);
    if (a->accumulate)
        v = _mm512_add_ps(_mm512_maskz_loadu_ps(m, y), v);
    _mm512_mask_storeu_ps(y, m, v);
}

BLOCK_FN void finish_s8(const struct cpu_linear *a, uint32_t r, uint32_t n, uint32_t n1, __m512i acc)
{
    __m512 v = _mm512_cvtepi32_ps(_mm512_sub_epi32(acc, _mm512_set1_epi32(128 * a->x_sum[r])));
    __m512 scale = _mm512_mul_ps(_mm512_set1_ps(a->x_scale[r]), _mm512_loadu_ps(a->scale + n));
    finish(a, r, n, n1, _mm512_mul_ps(v, scale));
}

#endif
