/* linear_vnni.c - the dense part with 512-bit vectors: vpdpbusd for S8, fused multiply-add for F32 and BF16.
 *
 * Any thread; no memory of its own. What each function computes, and in which order, is stated in linear_scalar.c.
 * A block is R rows by G groups of 16 columns, its sums in R * G registers; each line of weights is loaded once a
 * block and the rows' values are broadcast. Few rows are bound by memory: there the weights are fetched ahead of
 * their use, within the block by the first rows' pass and, in passes over more rows, for the next block.
 * vpdpbusd wraps where it overflows, so the sum less 128 * sum(x) is exact for k up to 130,000.
 */
#include "kernels/cpu/linear512.h"

#define ROWS_BYTES 64
#include "kernels/cpu/rows.h"

#define AHEAD 2048 /* bytes that weights are fetched ahead of their use */

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

/* The sums of a block are plain variables, c<row><group>; those that R and G (always constants) leave out cost
 * nothing. gcc 12 needs help to keep them in registers: the product is spelt out so that it adds in place, a loaded
 * line of weights is held (it would rather load it again for each use), and the sums go through memory to be
 * finished, so that what finishing needs does not crowd them out of the loop. */
#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define SUMS_OF(type, zero, r) type c##r##0 = zero, c##r##1 = zero, c##r##2 = zero, c##r##3 = zero;
#define HOLD(v) __asm__("" : "+v"(v))
#define ADD_PRODUCTS(sum, w, x) __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x))
#define FETCH(p) _mm_prefetch((const char *)(p) + AHEAD, _MM_HINT_T0)

/* Puts row r's sums where finishing reads them. */
#define STORE_SUMS(store, r)                                                                                           \
    if (R > r) {                                                                                                       \
        store(&sums[r][0], c##r##0);                                                                                   \
        if (G > 1) {                                                                                                   \
            store(&sums[r][1], c##r##1);                                                                               \
            store(&sums[r][2], c##r##2);                                                                               \
            store(&sums[r][3], c##r##3);                                                                               \
        }                                                                                                              \
    }
#define STORE_S8(r) STORE_SUMS(_mm512_store_si512, r)
#define STORE_FLOAT(r) STORE_SUMS(_mm512_store_ps, r)

BLOCK_FN void s8_block(const struct cpu_linear *a, uint32_t r0, uint32_t n, uint32_t n1, const int R, const int G)
{
    const size_t stream = (size_t)16 * a->kpad, ldx = a->kpad;
    const uint8_t *w = group_at(a, n, a->kpad);
    const int8_t *x = a->x_s8 + (size_t)r0 * ldx;
    __m512i sums[6][4], w0, w1, w2, w3;
    w1 = w2 = w3 = _mm512_setzero_si512();
#define S8_SUMS(r) SUMS_OF(__m512i, _mm512_setzero_si512(), r)
    EACH_ROW(S8_SUMS)
#define S8_LOAD(g)                                                                                                     \
    if (G > g) {                                                                                                       \
        w##g = _mm512_loadu_si512(w + g * stream);                                                                     \
        HOLD(w##g);                                                                                                    \
        FETCH(w + g * stream);                                                                                         \
    }
#define S8_STEP(r)                                                                                                     \
    if (R > r) {                                                                                                       \
        __m512i xv = broadcast4(x + r * ldx);                                                                          \
        ADD_PRODUCTS(c##r##0, w0, xv);                                                                                 \
        if (G > 1) {                                                                                                   \
            ADD_PRODUCTS(c##r##1, w1, xv);                                                                             \
            ADD_PRODUCTS(c##r##2, w2, xv);                                                                             \
            ADD_PRODUCTS(c##r##3, w3, xv);                                                                             \
        }                                                                                                              \
    }
    for (uint32_t k = 0; k < a->kpad; k += 4, w += 64, x += 4) {
        S8_LOAD(0) S8_LOAD(1) S8_LOAD(2) S8_LOAD(3) EACH_ROW(S8_STEP)
    }
    EACH_ROW(STORE_S8)
    __asm__ volatile("" ::: "memory");
    for (uint32_t r = 0; r < (uint32_t)R; r++)
        for (uint32_t g = 0; g < (uint32_t)G; g++)
            finish_s8(a, r0 + r, n + 16 * g, n1, sums[r][g]);
}

/* One row reads the weights as they lie: a group at a time, with four sums along k in flight. */
static void s8_one(const struct cpu_linear *a, uint32_t r, uint32_t n0, uint32_t n1)
{
    const int8_t *x = a->x_s8 + (size_t)r * a->kpad;
    const uint8_t *w = group_at(a, n0, a->kpad);
    for (uint32_t n = n0; n < n1; n += 16) {
        __m512i c0 = _mm512_setzero_si512(), c1 = c0, c2 = c0, c3 = c0;
        for (uint32_t k = 0; k < a->kpad; k += 16, w += 256) {
            FETCH(w);
            FETCH(w + 64);
            FETCH(w + 128);
            FETCH(w + 192);
            c0 = _mm512_dpbusd_epi32(c0, _mm512_loadu_si512(w), broadcast4(x + k));
            c1 = _mm512_dpbusd_epi32(c1, _mm512_loadu_si512(w + 64), broadcast4(x + k + 4));
            c2 = _mm512_dpbusd_epi32(c2, _mm512_loadu_si512(w + 128), broadcast4(x + k + 8));
            c3 = _mm512_dpbusd_epi32(c3, _mm512_loadu_si512(w + 192), broadcast4(x + k + 12));
        }
        finish_s8(a, r, n, n1, _mm512_add_epi32(_mm512_add_epi32(c0, c1), _mm512_add_epi32(c2, c3)));
    }
}

/* All rows on G groups of columns: blocks of at most six rows, about equal. */
BLOCK_FN void s8_columns(const struct cpu_linear *a, uint32_t n, uint32_t n1, const int G)
{
    uint32_t passes = (a->rows + 5) / 6;
    for (uint32_t p = 0, r = 0; p < passes; p++) {
        uint32_t rows = (a->rows - r) / (passes - p) + ((a->rows - r) % (passes - p) != 0);
        switch (rows) {
        case 1:
            s8_block(a, r, n, n1, 1, G);
            break;
        case 2:
            s8_block(a, r, n, n1, 2, G);
            break;
        case 3:
            s8_block(a, r, n, n1, 3, G);
            break;
        case 4:
            s8_block(a, r, n, n1, 4, G);
            break;
        case 5:
            s8_block(a, r, n, n1, 5, G);
            break;
        default:
            s8_block(a, r, n, n1, 6, G);
            break;
        }
        r += rows;
    }
}

void cpu_linear_s8_vnni(const struct cpu_linear *a, uint32_t n0, uint32_t n1)
{
    if (a->rows == 1) {
        s8_one(a, 0, n0, n1);
        return;
    }
    uint32_t n = n0;
    for (; n + 48 < n1; n += 64)
        s8_columns(a, n, n1, 4);
    for (; n < n1; n += 16)
        s8_columns(a, n, n1, 1);
}

/* ---- F32 and BF16: k in order, one fused step each ---- */

/* One step of k for all rows of the block: the weights' values v<group>, row r's value at x[r * ldx]. */
#define FLOAT_STEP(r)                                                                                                  \
    if (R > r) {                                                                                                       \
        __m512 xv = _mm512_set1_ps(x[r * ldx]);                                                                        \
        c##r##0 = _mm512_fmadd_ps(v0, xv, c##r##0);                                                                    \
        if (G > 1) {                                                                                                   \
            c##r##1 = _mm512_fmadd_ps(v1, xv, c##r##1);                                                                \
            c##r##2 = _mm512_fmadd_ps(v2, xv, c##r##2);                                                                \
            c##r##3 = _mm512_fmadd_ps(v3, xv, c##r##3);                                                                \
        }                                                                                                              \
    }
#define FLOAT_SUMS(r) SUMS_OF(__m512, _mm512_setzero_ps(), r)

BLOCK_FN void f32_block(const struct cpu_linear *a, uint32_t r0, uint32_t n, uint32_t n1, const int R, const int G)
{
    const size_t k = a->mat->k, ldx = k;
    const float *w = (const float *)(const void *)group_at(a, n, 4 * k);
    const float *x = a->x_f32 + (size_t)r0 * ldx;
    __m512 sums[6][4], v0, v1, v2, v3;
    v1 = v2 = v3 = _mm512_setzero_ps();
#define F32_LOAD(g)                                                                                                    \
    if (G > g) {                                                                                                       \
        v##g = _mm512_loadu_ps(w + g * 16 * k);                                                                        \
        HOLD(v##g);                                                                                                    \
        FETCH(w + g * 16 * k);                                                                                         \
    }
    EACH_ROW(FLOAT_SUMS)
    for (size_t i = 0; i < k; i++, w += 16, x++) {
        F32_LOAD(0) F32_LOAD(1) F32_LOAD(2) F32_LOAD(3) EACH_ROW(FLOAT_STEP)
    }
    EACH_ROW(STORE_FLOAT)
    __asm__ volatile("" ::: "memory");
    for (uint32_t r = 0; r < (uint32_t)R; r++)
        for (uint32_t g = 0; g < (uint32_t)G; g++)
            finish(a, r0 + r, n + 16 * g, n1, sums[r][g]);
}

/* Each 32-bit word of a line holds steps i (low half) and i + 1 of k for one output; an odd k has no last high half. */
BLOCK_FN void bf16_block(const struct cpu_linear *a, uint32_t r0, uint32_t n, uint32_t n1, const int R, const int G)
{
    const __m512i high = _mm512_set1_epi32((int)0xFFFF0000u);
    const size_t k = a->mat->k, ldx = k, stream = (size_t)16 * a->kpad;
    const uint16_t *w = (const uint16_t *)(const void *)group_at(a, n, (size_t)2 * a->kpad);
    const float *x = a->x_f32 + (size_t)r0 * ldx;
    __m512i w0, w1, w2, w3;
    w1 = w2 = w3 = _mm512_setzero_si512();
    __m512 sums[6][4], v0, v1, v2, v3;
    v1 = v2 = v3 = _mm512_setzero_ps();
#define BF16_LOAD(g)                                                                                                   \
    if (G > g) {                                                                                                       \
        w##g = _mm512_loadu_si512(w + g * stream);                                                                     \
        HOLD(w##g);                                                                                                    \
        v##g = _mm512_castsi512_ps(_mm512_slli_epi32(w##g, 16));                                                       \
        FETCH(w + g * stream);                                                                                         \
    }
#define BF16_HIGH(g)                                                                                                   \
    if (G > g)                                                                                                         \
        v##g = _mm512_castsi512_ps(_mm512_and_si512(w##g, high));
    EACH_ROW(FLOAT_SUMS)
    for (size_t i = 0; i < k; i += 2, w += 32) {
        BF16_LOAD(0) BF16_LOAD(1) BF16_LOAD(2) BF16_LOAD(3) EACH_ROW(FLOAT_STEP) x++;
        if (i + 1 == k)
            break;
        BF16_HIGH(0) BF16_HIGH(1) BF16_HIGH(2) BF16_HIGH(3) EACH_ROW(FLOAT_STEP) x++;
    }
    EACH_ROW(STORE_FLOAT)
    __asm__ volatile("" ::: "memory");
    for (uint32_t r = 0; r < (uint32_t)R; r++)
        for (uint32_t g = 0; g < (uint32_t)G; g++)
            finish(a, r0 + r, n + 16 * g, n1, sums[r][g]);
}

/* All rows on G groups of columns, six at a time: `block` with constant R and G. */
#define FLOAT_COLUMNS(block, G)                                                                                        \
    for (uint32_t r = 0; r < a->rows; r += 6) {                                                                        \
        switch (a->rows - r) {                                                                                         \
        case 1:                                                                                                        \
            block(a, r, n, n1, 1, G);                                                                                  \
            break;                                                                                                     \
        case 2:                                                                                                        \
            block(a, r, n, n1, 2, G);                                                                                  \
            break;                                                                                                     \
        case 3:                                                                                                        \
            block(a, r, n, n1, 3, G);                                                                                  \
            break;                                                                                                     \
        case 4:                                                                                                        \
            block(a, r, n, n1, 4, G);                                                                                  \
            break;                                                                                                     \
        case 5:                                                                                                        \
            block(a, r, n, n1, 5, G);                                                                                  \
            break;                                                                                                     \
        default:                                                                                                       \
            block(a, r, n, n1, 6, G);                                                                                  \
            break;                                                                                                     \
        }                                                                                                              \
    }

static void linear_f32(const struct cpu_linear *a, uint32_t n0, uint32_t n1)
{
    uint32_t n = n0;
    for (; n + 48 < n1; n += 64)
        FLOAT_COLUMNS(f32_block, 4)
    for (; n < n1; n += 16)
        FLOAT_COLUMNS(f32_block, 1)
}

static void linear_bf16(const struct cpu_linear *a, uint32_t n0, uint32_t n1)
{
    uint32_t n = n0;
    for (; n + 48 < n1; n += 64)
        FLOAT_COLUMNS(bf16_block, 4)
    for (; n < n1; n += 16)
        FLOAT_COLUMNS(bf16_block, 1)
}

void cpu_linear_vnni(struct cpu_table *t)
{
    ROWS_FILL(t, vnni);
    t->linear[KERN_S8] = cpu_linear_s8_vnni;
    t->linear[KERN_F32] = linear_f32;
    t->linear[KERN_BF16] = linear_bf16;
}
