/* sequence_vnni.c - AVX-512 kernels for sequences: the primitives of sequence_tmpl.h over 16 lanes.
 *
 * Called by the region's workers; owns no memory. Masks carry the tails. The level's name is that of the dense
 * products' instruction; nothing here multiplies integers.
 */
#include <immintrin.h>
#include <stdint.h>

#define VL 16
#define TILE_DOWN 6     /* rows x 4 ranks */
#define TILE_DOWN_8 2   /* most rows x 8 ranks */
#define TILE_UP 8       /* rows x 32 columns */
#define TILE_ATTN 8     /* queries x 32 tokens */
#define TILE_VALUES_4 4 /* most queries x 64 dimensions */
#define MAX_QUERIES 96
#define MAX_WIDE 128 /* head_dim up to which many queries read a page widened to f32 */

#define VF static inline __attribute__((always_inline))
typedef __m512 vf;

VF vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

VF void vf_store(float *p, vf v)
{
    _mm512_storeu_ps(p, v);
}

VF __mmask16 lanes16(int n)
{
    return (__mmask16)(n >= 16 ? 0xFFFFu : n <= 0 ? 0 : (1u << n) - 1);
}

VF vf vf_load_n(const float *p, uint32_t n)
{
    return _mm512_maskz_loadu_ps(lanes16((int)n), p);
}

VF void vf_store_n(float *p, uint32_t n, vf v)
{
    _mm512_mask_storeu_ps(p, lanes16((int)n), v);
}

VF vf vf_set1(float f)
{
    return _mm512_set1_ps(f);
}

VF vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}

VF vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}

VF vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}

VF vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}

VF vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}

VF vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}

VF vf vf_abs(vf a)
{
    return _mm512_abs_ps(a);
}

VF vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}

/* c - a b */
VF vf vf_fnma(vf a, vf b, vf c)
{
    return _mm512_fnmadd_ps(a, b, c);
}

VF vf vf_round(vf a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* v * 2^n for whole n */
VF vf vf_times_pow2(vf v, vf n)
{
    return _mm512_scalef_ps(v, n);
}

VF vf vf_select_lt(vf x, vf y, vf yes, vf no)
{
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), yes);
}

/* The first n lanes of v, the others of w. */
VF vf vf_first(vf v, int n, vf w)
{
    return _mm512_mask_mov_ps(w, lanes16(n), v);
}

/* Lane i of v where bit i is set, else of w. */
VF vf vf_where(uint32_t bits, vf v, vf w)
{
    return _mm512_mask_mov_ps(w, (__mmask16)bits, v);
}

VF uint32_t vf_mask_ge(vf a, vf b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ);
}

/* Writes the lanes of v with their bit set, one after the other; up to 16 floats at dst change. */
VF void vf_compress(float *dst, vf v, uint32_t bits)
{
    _mm512_storeu_ps(dst, _mm512_maskz_compress_ps((__mmask16)bits, v));
}

VF int vf_any_ge4(const float *x, vf w)
{
    uint32_t a = vf_mask_ge(vf_load(x), w) | vf_mask_ge(vf_load(x + 16), w);
    uint32_t b = vf_mask_ge(vf_load(x + 32), w) | vf_mask_ge(vf_load(x + 48), w);
    return (a | b) != 0;
}

/* 16 words of two bf16 each, widened: the low halves, the high halves. */
VF vf vf_bf16_lo(const uint16_t *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}

VF vf vf_bf16_hi(const uint16_t *p)
{
    __m512i high = _mm512_set1_epi32((int)0xFFFF0000u);
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), high));
}

VF void vf_bf16(const uint16_t *p, vf *lo, vf *hi)
{
    *lo = vf_bf16_lo(p);
    *hi = vf_bf16_hi(p);
}

VF vf vf_s8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

VF __m256 fold(vf v)
{
    return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
}

/* The sums of a, b, c and d; each by the same tree. */
VF __m128 vf_hsum4(vf a, vf b, vf c, vf d)
{
    __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(fold(a), fold(b)), _mm256_hadd_ps(fold(c), fold(d)));
    return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}

VF float vf_hmax(vf v)
{
    return _mm512_reduce_max_ps(v);
}

#include "kernels/cpu/sequence_tmpl.h"

void cpu_sequence_vnni(struct cpu_table *t)
{
    fill(t);
}
