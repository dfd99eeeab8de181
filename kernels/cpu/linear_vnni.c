/* linear_vnni.c - the dense part with 512-bit vectors: vpdpbusd for S8, fused multiply-add for F32 and BF16.
 *
 * Any thread; no memory of its own. What each function computes, and in which order, is stated in linear_scalar.c.
 * A block is R rows by G groups of 16 columns, its sums in R * G registers; each line of weights is loaded once a
 * block and the rows' values are broadcast. Few rows are bound by memory: there the weights are fetched ahead of
 * their use, within the block by the first rows' pass and, in passes over more rows, for the next block.
 * vpdpbusd wraps where it overflows, so the sum less 128 * sum(x) is exact for k up to 130,000.
 */
#include "kernels/cpu/linear512.h"

#include "kernels/cpu/rows.h"

#define UNROLL _Pragma("GCC unroll 8")

ROWS_DEFINE(vnni)

static const uint8_t *group_at(const struct cpu_linear *a, uint32_t n, size_t width)
{
    return a->w + (size_t)n * width;
}

BLOCK_FN __m512i broadcast4(const int8_t *p)
{
    int32_t v;
    memcpy(&v, p, 4);
    return _mm512_set1_epi32(v);
}

/* ahead: bytes to fetch ahead in each group's stream; 0: none. U sums a register block, so that one row has enough
 * of them in flight. */
BLOCK_FN void s8_block(const struct cpu_linear *a, uint32_t r0, uint32_t n, uint32_t n1, const int R, const int G,
                       const int U, size_t ahead)
{
    size_t stream = (size_t)16 * a->kpad;
    const uint8_t *w = group_at(a, n, a->kpad);
    const int8_t *x = a->x_s8 + (size_t)r0 * a->kpad;
    __m512i acc[6][4][4];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int g = 0; g < G; g++) UNROLL for (int u = 0; u < U; u++)
        acc[r][g][u] = _mm512_setzero_si512();
    for (uint32_t k = 0; k < a->kpad; k += 4 * (uint32_t)U) {
        UNROLL for (int u = 0; u < U; u++)
        {
            const uint8_t *line = w + (size_t)(k + 4 * (uint32_t)u) * 16;
            __m512i wv[4];
            UNROLL for (int g = 0; g < G; g++)
            {
                wv[g] = _mm512_loadu_si512(line + g * stream);
                if (ahead)
                    _mm_prefetch((const char *)line + g * stream + ahead, _MM_HINT_T0);
            }
            UNROLL for (int r = 0; r < R; r++)
            {
                __m512i xv = broadcast4(x + (size_t)r * a->kpad + k + 4 * u);
                UNROLL for (int g = 0; g < G; g++) acc[r][g][u] = _mm512_dpbusd_epi32(acc[r][g][u], wv[g], xv);
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int g = 0; g < G; g++)
    {
        UNROLL for (int u = 1; u < U; u++) acc[r][g][0] = _mm512_add_epi32(acc[r][g][0], acc[r][g][u]);
        finish_s8(a, r0 + (uint32_t)r, n + 16 * (uint32_t)g, n1, acc[r][g][0]);
    }
}

/* All rows on G groups of columns: blocks of at most six rows, about equal. */
BLOCK_FN void s8_columns(const struct cpu_linear *a, uint32_t n, uint32_t n1, const int G)
{
    uint32_t passes = (a->rows + 5) / 6;
    for (uint32_t p = 0, r = 0; p < passes; p++) {
        uint32_t rows = (a->rows - r) / (passes - p) + ((a->rows - r) % (passes - p) != 0);
        size_t ahead = p == 0 ? 2048 : 0;
        switch (rows) {
        case 1:
            s8_block(a, r, n, n1, 1, G, 2, ahead);
            break;
        case 2:
            s8_block(a, r, n, n1, 2, G, 1, ahead);
            break;
        case 3:
            s8_block(a, r, n, n1, 3, G, 1, ahead);
            break;
        case 4:
            s8_block(a, r, n, n1, 4, G, 1, ahead);
            break;
        case 5:
            s8_block(a, r, n, n1, 5, G, 1, ahead);
            break;
        default:
            s8_block(a, r, n, n1, 6, G, 1, ahead);
            break;
        }
        r += rows;
    }
}

void cpu_linear_s8_vnni(const struct cpu_linear *a, uint32_t n0, uint32_t n1)
{
    uint32_t n = n0;
    for (; n + 48 < n1; n += 64)
        s8_columns(a, n, n1, 4);
    for (; n < n1; n += 16)
        s8_columns(a, n, n1, 1);
}

/* ---- F32 and BF16: k in order, one fused step each ---- */

BLOCK_FN void f32_block(const struct cpu_linear *a, uint32_t r0, uint32_t n, uint32_t n1, const int R, const int G)
{
    uint32_t k = a->mat->k;
    const float *w = (const float *)(const void *)group_at(a, n, (size_t)4 * k);
    const float *x = a->x_f32 + (size_t)r0 * k;
    __m512 acc[6][4];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int g = 0; g < G; g++) acc[r][g] = _mm512_setzero_ps();
    for (uint32_t i = 0; i < k; i++) {
        __m512 wv[4];
        UNROLL for (int g = 0; g < G; g++) wv[g] = _mm512_loadu_ps(w + (size_t)i * 16 + (size_t)g * 16 * k);
        UNROLL for (int r = 0; r < R; r++)
        {
            __m512 xv = _mm512_set1_ps(x[(size_t)r * k + i]);
            UNROLL for (int g = 0; g < G; g++) acc[r][g] = _mm512_fmadd_ps(wv[g], xv, acc[r][g]);
        }
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int g = 0; g < G; g++)
        finish(a, r0 + (uint32_t)r, n + 16 * (uint32_t)g, n1, acc[r][g]);
}

/* Steps i and i + 1 of k; the second only where k reaches it. */
BLOCK_FN void bf16_step(const uint16_t *w, size_t stream, const float *x, uint32_t k, uint32_t i, bool both,
                        const int R, const int G, __m512 acc[6][4])
{
    const __m512i high = _mm512_set1_epi32((int)0xFFFF0000u);
    __m512i wv[4];
    UNROLL for (int g = 0; g < G; g++) wv[g] = _mm512_loadu_si512(w + (size_t)i * 16 + g * stream);
    UNROLL for (int r = 0; r < R; r++)
    {
        __m512 xv = _mm512_set1_ps(x[(size_t)r * k + i]);
        UNROLL for (int g = 0; g < G; g++) acc[r][g] =
            _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(wv[g], 16)), xv, acc[r][g]);
    }
    if (!both)
        return;
    UNROLL for (int r = 0; r < R; r++)
    {
        __m512 xv = _mm512_set1_ps(x[(size_t)r * k + i + 1]);
        UNROLL for (int g = 0; g < G; g++) acc[r][g] =
            _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(wv[g], high)), xv, acc[r][g]);
    }
}

BLOCK_FN void bf16_block(const struct cpu_linear *a, uint32_t r0, uint32_t n, uint32_t n1, const int R, const int G)
{
    uint32_t k = a->mat->k, i = 0;
    size_t stream = (size_t)16 * a->kpad;
    const uint16_t *w = (const uint16_t *)(const void *)group_at(a, n, (size_t)2 * a->kpad);
    const float *x = a->x_f32 + (size_t)r0 * k;
    __m512 acc[6][4];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int g = 0; g < G; g++) acc[r][g] = _mm512_setzero_ps();
    for (; i + 2 <= k; i += 2)
        bf16_step(w, stream, x, k, i, true, R, G, acc);
    if (i < k)
        bf16_step(w, stream, x, k, i, false, R, G, acc);
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int g = 0; g < G; g++)
        finish(a, r0 + (uint32_t)r, n + 16 * (uint32_t)g, n1, acc[r][g]);
}

/* Row blocks of up to four for the float types: `block` with constant R and G. */
#define FLOAT_COLUMNS(block, a, n, n1, G)                                                                              \
    for (uint32_t r = 0; r < (a)->rows; r += 4) {                                                                      \
        switch ((a)->rows - r) {                                                                                       \
        case 1:                                                                                                        \
            block(a, r, n, n1, 1, G);                                                                                  \
            break;                                                                                                     \
        case 2:                                                                                                        \
            block(a, r, n, n1, 2, G);                                                                                  \
            break;                                                                                                     \
        case 3:                                                                                                        \
            block(a, r, n, n1, 3, G);                                                                                  \
            break;                                                                                                     \
        default:                                                                                                       \
            block(a, r, n, n1, 4, G);                                                                                  \
            break;                                                                                                     \
        }                                                                                                              \
    }

static void linear_f32(const struct cpu_linear *a, uint32_t n0, uint32_t n1)
{
    uint32_t n = n0;
    for (; n + 48 < n1; n += 64)
        FLOAT_COLUMNS(f32_block, a, n, n1, 4)
    for (; n < n1; n += 16)
        FLOAT_COLUMNS(f32_block, a, n, n1, 1)
}

static void linear_bf16(const struct cpu_linear *a, uint32_t n0, uint32_t n1)
{
    uint32_t n = n0;
    for (; n + 48 < n1; n += 64)
        FLOAT_COLUMNS(bf16_block, a, n, n1, 4)
    for (; n < n1; n += 16)
        FLOAT_COLUMNS(bf16_block, a, n, n1, 1)
}

void cpu_linear_vnni(struct cpu_table *t)
{
    ROWS_FILL(t, vnni);
    t->linear[KERN_S8] = cpu_linear_s8_vnni;
    t->linear[KERN_F32] = linear_f32;
    t->linear[KERN_BF16] = linear_bf16;
}
