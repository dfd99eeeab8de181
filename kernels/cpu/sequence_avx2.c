/* sequence_avx2.c - AVX2 and FMA kernels for sequences: the primitives of sequence_tmpl.h over 8 lanes.
 *
 * Called by the region's workers; owns no memory. Masked loads and stores carry the tails.
 */
#include <immintrin.h>
#include <stdint.h>

#define VL 8
#define TILE_DOWN 3     /* rows x 4 ranks */
#define TILE_DOWN_8 1   /* most rows x 8 ranks */
#define TILE_UP 4       /* rows x 16 columns */
#define TILE_ATTN 4     /* queries x 16 tokens */
#define TILE_VALUES_4 2 /* most queries x 32 dimensions */
#define MAX_QUERIES 96
#define MAX_WIDE 128 /* head_dim up to which many queries read a page widened to f32 */

#define VF static inline __attribute__((always_inline))
typedef __m256 vf;

VF vf vf_load(const float *p)
{
    return _mm256_loadu_ps(p);
}

VF void vf_store(float *p, vf v)
{
    _mm256_storeu_ps(p, v);
}

VF __m256i lanes8(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

VF vf vf_load_n(const float *p, uint32_t n)
{
    return n >= 8 ? vf_load(p) : _mm256_maskload_ps(p, lanes8((int)n));
}

VF void vf_store_n(float *p, uint32_t n, vf v)
{
    if (n >= 8)
        vf_store(p, v);
    else
        _mm256_maskstore_ps(p, lanes8((int)n), v);
}

VF vf vf_set1(float f)
{
    return _mm256_set1_ps(f);
}

VF vf vf_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}

VF vf vf_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}

VF vf vf_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}

VF vf vf_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}

VF vf vf_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}

VF vf vf_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}

VF vf vf_abs(vf a)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}

VF vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}

/* c - a b */
VF vf vf_fnma(vf a, vf b, vf c)
{
    return _mm256_fnmadd_ps(a, b, c);
}

VF vf vf_round(vf a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* v * 2^n for whole n in [-126, 127] */
VF vf vf_times_pow2(vf v, vf n)
{
    __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(e, 23)));
}

VF vf vf_select_lt(vf x, vf y, vf yes, vf no)
{
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(x, y, _CMP_LT_OQ));
}

/* The first n lanes of v, the others of w. */
VF vf vf_first(vf v, int n, vf w)
{
    return _mm256_blendv_ps(w, v, _mm256_castsi256_ps(lanes8(n)));
}

/* Lane i of v where bit i is set, else of w. */
VF vf vf_where(uint32_t bits, vf v, vf w)
{
    __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)bits), bit), bit);
    return _mm256_blendv_ps(w, v, _mm256_castsi256_ps(set));
}

VF uint32_t vf_mask_ge(vf a, vf b)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ));
}

/* Writes the lanes of v with their bit set, one after the other. */
VF void vf_compress(float *dst, vf v, uint32_t bits)
{
    float lane[8];
    _mm256_storeu_ps(lane, v);
    for (; bits; bits &= bits - 1)
        *dst++ = lane[__builtin_ctz(bits)];
}

VF int vf_any_ge4(const float *x, vf w)
{
    vf a = _mm256_or_ps(_mm256_cmp_ps(vf_load(x), w, _CMP_GE_OQ), _mm256_cmp_ps(vf_load(x + 8), w, _CMP_GE_OQ));
    vf b = _mm256_or_ps(_mm256_cmp_ps(vf_load(x + 16), w, _CMP_GE_OQ), _mm256_cmp_ps(vf_load(x + 24), w, _CMP_GE_OQ));
    return _mm256_movemask_ps(_mm256_or_ps(a, b)) != 0;
}

/* 8 words of two bf16 each, widened: the low halves, the high halves. */
VF vf vf_bf16_lo(const uint16_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256((const __m256i *)p), 16));
}

VF vf vf_bf16_hi(const uint16_t *p)
{
    __m256i high = _mm256_set1_epi32((int)0xFFFF0000u);
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256((const __m256i *)p), high));
}

VF void vf_bf16(const uint16_t *p, vf *lo, vf *hi)
{
    *lo = vf_bf16_lo(p);
    *hi = vf_bf16_hi(p);
}

VF vf vf_s8(const int8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

/* The sums of a, b, c and d; each by the same tree. */
VF __m128 vf_hsum4(vf a, vf b, vf c, vf d)
{
    vf s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}

VF float vf_hmax(vf v)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}

#include "kernels/cpu/sequence_tmpl.h"

void cpu_sequence_avx2(struct cpu_table *t)
{
    fill(t);
}
