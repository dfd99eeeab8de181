/* linear_avx2.c - the dense part with 256-bit vectors.
 *
 * Any thread; no memory of its own. What each function computes, and in which order, is stated in linear_scalar.c.
 * S8: vpmaddubsw adds two products of u8 and s8 in 16 bits and saturates. It is given |w| (0 to 128, as u8) and x with
 * w's sign: at most 2 * 128 * 127 = 32,512, so it never does, w = -128 included, because x stays within -127..127.
 * That needs w as s8 (the packed bytes with the top bit turned) and no correction by sum(x).
 */
#include "kernels/cpu/cpu.h"

#include <immintrin.h>

#define ROWS_BYTES 32
#include "kernels/cpu/rows.h"

#define BLOCK_FN static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

ROWS_DEFINE(avx2)

/* Stores eight finished outputs from column n, as far as n1. */
BLOCK_FN void finish(const struct cpu_linear *a, uint32_t r, uint32_t n, uint32_t n1, __m256 v)
{
    if (n >= n1)
        return;
    float *y = a->y + (size_t)r * a->ldy + n;
    if (a->bias)
        v = _mm256_add_ps(v, _mm256_loadu_ps(a->bias + n));
    if (n1 - n >= 8) {
        if (a->accumulate)
            v = _mm256_add_ps(_mm256_loadu_ps(y), v);
        _mm256_storeu_ps(y, v);
        return;
    }
    __m256i m = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n1 - n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    if (a->accumulate)
        v = _mm256_add_ps(_mm256_maskload_ps(y, m), v);
    _mm256_maskstore_ps(y, m, v);
}

BLOCK_FN void finish_s8(const struct cpu_linear *a, uint32_t r, uint32_t n, uint32_t n1, __m256i acc)
{
    __m256 scale = _mm256_mul_ps(_mm256_set1_ps(a->x_scale[r]), _mm256_loadu_ps(a->scale + n));
    finish(a, r, n, n1, _mm256_mul_ps(_mm256_cvtepi32_ps(acc), scale));
}

/* R rows by one group of 16 columns (two vectors). */
BLOCK_FN void s8_block(const struct cpu_linear *a, uint32_t r0, uint32_t n, uint32_t n1, const int R, size_t ahead)
{
    const __m256i flip = _mm256_set1_epi8((char)0x80), ones = _mm256_set1_epi16(1);
    const uint8_t *w = a->w + (size_t)n * a->kpad;
    const int8_t *x = a->x_s8 + (size_t)r0 * a->kpad;
    __m256i acc[4][2];
    UNROLL for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
    for (uint32_t k = 0; k < a->kpad; k += 4, w += 64) {
        __m256i w0 = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)w), flip);
        __m256i w1 = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(w + 32)), flip);
        __m256i a0 = _mm256_abs_epi8(w0), a1 = _mm256_abs_epi8(w1);
        if (ahead)
            _mm_prefetch((const char *)w + ahead, _MM_HINT_T0);
        UNROLL for (int r = 0; r < R; r++)
        {
            int32_t four;
            memcpy(&four, x + (size_t)r * a->kpad + k, 4);
            __m256i xv = _mm256_set1_epi32(four);
            __m256i p0 = _mm256_maddubs_epi16(a0, _mm256_sign_epi8(xv, w0));
            __m256i p1 = _mm256_maddubs_epi16(a1, _mm256_sign_epi8(xv, w1));
            acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(p0, ones));
            acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(p1, ones));
        }
    }
    UNROLL for (int r = 0; r < R; r++)
    {
        finish_s8(a, r0 + (uint32_t)r, n, n1, acc[r][0]);
        finish_s8(a, r0 + (uint32_t)r, n + 8, n1, acc[r][1]);
    }
}

BLOCK_FN void f32_block(const struct cpu_linear *a, uint32_t r0, uint32_t n, uint32_t n1, const int R, size_t ahead)
{
    uint32_t k = a->mat->k;
    const float *w = (const float *)(const void *)a->w + (size_t)n * k;
    const float *x = a->x_f32 + (size_t)r0 * k;
    __m256 acc[4][2];
    UNROLL for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
    for (uint32_t i = 0; i < k; i++, w += 16) {
        __m256 w0 = _mm256_loadu_ps(w), w1 = _mm256_loadu_ps(w + 8);
        if (ahead)
            _mm_prefetch((const char *)w + ahead, _MM_HINT_T0);
        UNROLL for (int r = 0; r < R; r++)
        {
            __m256 xv = _mm256_set1_ps(x[(size_t)r * k + i]);
            acc[r][0] = _mm256_fmadd_ps(w0, xv, acc[r][0]);
            acc[r][1] = _mm256_fmadd_ps(w1, xv, acc[r][1]);
        }
    }
    UNROLL for (int r = 0; r < R; r++)
    {
        finish(a, r0 + (uint32_t)r, n, n1, acc[r][0]);
        finish(a, r0 + (uint32_t)r, n + 8, n1, acc[r][1]);
    }
}

/* Each 32-bit word of a line holds steps i (low half) and i + 1 of k for one output. */
BLOCK_FN void bf16_block(const struct cpu_linear *a, uint32_t r0, uint32_t n, uint32_t n1, const int R, size_t ahead)
{
    const __m256i high = _mm256_set1_epi32((int)0xFFFF0000u);
    uint32_t k = a->mat->k;
    const uint16_t *w = (const uint16_t *)(const void *)a->w + (size_t)n * a->kpad;
    const float *x = a->x_f32 + (size_t)r0 * k;
    __m256 acc[4][2];
    UNROLL for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
    for (uint32_t i = 0; i < k; i += 2, w += 32) {
        __m256i w0 = _mm256_loadu_si256((const __m256i *)(const void *)w);
        __m256i w1 = _mm256_loadu_si256((const __m256i *)(const void *)(w + 16));
        if (ahead)
            _mm_prefetch((const char *)w + ahead, _MM_HINT_T0);
        __m256 l0 = _mm256_castsi256_ps(_mm256_slli_epi32(w0, 16)),
               h0 = _mm256_castsi256_ps(_mm256_and_si256(w0, high));
        __m256 l1 = _mm256_castsi256_ps(_mm256_slli_epi32(w1, 16)),
               h1 = _mm256_castsi256_ps(_mm256_and_si256(w1, high));
        UNROLL for (int r = 0; r < R; r++)
        {
            __m256 xv = _mm256_set1_ps(x[(size_t)r * k + i]);
            acc[r][0] = _mm256_fmadd_ps(l0, xv, acc[r][0]);
            acc[r][1] = _mm256_fmadd_ps(l1, xv, acc[r][1]);
            if (i + 1 < k) {
                xv = _mm256_set1_ps(x[(size_t)r * k + i + 1]);
                acc[r][0] = _mm256_fmadd_ps(h0, xv, acc[r][0]);
                acc[r][1] = _mm256_fmadd_ps(h1, xv, acc[r][1]);
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++)
    {
        finish(a, r0 + (uint32_t)r, n, n1, acc[r][0]);
        finish(a, r0 + (uint32_t)r, n + 8, n1, acc[r][1]);
    }
}

/* All rows on each group of columns, four at a time: `block` with a constant R. The first pass fetches ahead. */
#define DEFINE_LINEAR(name, block)                                                                                     \
    static void name(const struct cpu_linear *a, uint32_t n0, uint32_t n1)                                             \
    {                                                                                                                  \
        for (uint32_t n = n0; n < n1; n += 16) {                                                                       \
            for (uint32_t r = 0; r < a->rows; r += 4) {                                                                \
                size_t ahead = r ? 0 : 2048;                                                                           \
                switch (a->rows - r) {                                                                                 \
                case 1:                                                                                                \
                    block(a, r, n, n1, 1, ahead);                                                                      \
                    break;                                                                                             \
                case 2:                                                                                                \
                    block(a, r, n, n1, 2, ahead);                                                                      \
                    break;                                                                                             \
                case 3:                                                                                                \
                    block(a, r, n, n1, 3, ahead);                                                                      \
                    break;                                                                                             \
                default:                                                                                               \
                    block(a, r, n, n1, 4, ahead);                                                                      \
                    break;                                                                                             \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }

DEFINE_LINEAR(linear_s8, s8_block)
DEFINE_LINEAR(linear_f32, f32_block)
DEFINE_LINEAR(linear_bf16, bf16_block)

void cpu_linear_avx2(struct cpu_table *t)
{
    ROWS_FILL(t, avx2);
    t->linear[KERN_S8] = linear_s8;
    t->linear[KERN_F32] = linear_f32;
    t->linear[KERN_BF16] = linear_bf16;
}
