/* linear_amx.c - products in AMX tiles: S8 from 8 rows on, BF16 at any number of rows.
 *
 * Any thread; the tile registers are configured at a call's start and released at its end. What the S8 product
 * computes is stated in linear_scalar.c. The BF16 product takes activations rounded to bf16 and adds, for each output,
 * in the order of k and pair by pair as tdpbf16ps does; an output's bits do not depend on the rows beside it, so one
 * row runs through the same instruction as many.
 *
 * A tile of weights is 1 KiB as it lies in memory: 16 columns by 64 bytes of k. Up to 16 rows: one tile of rows by
 * four of columns. More: two by two. When the rows are no multiple of 16 the last tile starts 16 rows before the end,
 * and only the rows that are new are stored.
 */
#include "kernels/cpu/linear512.h"

#include <string.h>

#define FEW 8      /* rows below which S8 runs on VNNI: there the weights' bandwidth is the bound */
#define AHEAD 1024 /* bytes that weights are fetched ahead of their use */
#define TILE 1024

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t width[16];
    uint8_t rows[16];
};

/* Tiles 0-3 sums, 4 and (wide) 5 rows of x, (narrow) 5, 6 and 7 weights. */
static void configure(uint32_t rows, bool wide)
{
    struct tile_config c = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        c.width[i] = 64;
        c.rows[i] = i < 5 || (i == 5 && wide) ? (uint8_t)rows : 16;
    }
    _tile_loadconfig(&c);
}

BLOCK_FN void fetch_tile(const uint8_t *w)
{
    _Pragma("GCC unroll 16") for (int i = 0; i < 16; i++) _mm_prefetch((const char *)w + 64 * i + AHEAD, _MM_HINT_T0);
}

/* One product's operands as bytes, whatever the type. */
struct operands {
    const struct cpu_linear *a;
    const uint8_t *w, *x;
    size_t stream, ldx; /* bytes from one group of columns, and from one row, to the next */
    uint32_t steps;     /* tiles along k */
};

static struct operands operands_of(const struct cpu_linear *a, bool bf16)
{
    size_t size = bf16 ? 2 : 1;
    return (struct operands){.a = a,
                             .w = a->w,
                             .x = bf16 ? (const uint8_t *)a->x_bf16 : (const uint8_t *)a->x_s8,
                             .stream = 16 * size * a->kpad,
                             .ldx = size * a->kpad,
                             .steps = (uint32_t)(size * a->kpad / 64)};
}

#define MULTIPLY(sum, x, w)                                                                                            \
    do {                                                                                                               \
        if (bf16)                                                                                                      \
            _tile_dpbf16ps(sum, x, w);                                                                                 \
        else                                                                                                           \
            _tile_dpbsud(sum, x, w);                                                                                   \
    } while (0)

/* Finishes rows [r, r + rows) of a stored tile of sums, whose row 0 is row r. The plain case is most of all work
 * behind the tiles and has its own loop; its steps are those of finish_s8. */
BLOCK_FN void finish_tile(const struct cpu_linear *a, const int32_t *sums, uint32_t r, uint32_t rows, uint32_t n,
                          uint32_t n1, const bool bf16)
{
    if (n1 - n >= 16 && !a->bias && !a->accumulate) {
        float *y = a->y + (size_t)r * a->ldy + n;
        const size_t ldy = a->ldy;
        const __m512 w_scale = bf16 ? _mm512_setzero_ps() : _mm512_loadu_ps(a->scale + n);
        const float *x_scale = bf16 ? NULL : a->x_scale + r;
        const int32_t *x_sum = bf16 ? NULL : a->x_sum + r;
        for (uint32_t i = 0; i < rows; i++, y += ldy) {
            __m512i v = _mm512_load_si512(sums + 16 * i);
            __m512 f = _mm512_castsi512_ps(v);
            if (!bf16) {
                v = _mm512_sub_epi32(v, _mm512_slli_epi32(_mm512_set1_epi32(x_sum[i]), 7));
                f = _mm512_mul_ps(_mm512_cvtepi32_ps(v), _mm512_mul_ps(_mm512_set1_ps(x_scale[i]), w_scale));
            }
            _mm512_storeu_ps(y, f);
        }
        return;
    }
    for (uint32_t i = 0; i < rows; i++) {
        __m512i v = _mm512_load_si512(sums + 16 * i);
        if (bf16)
            finish(a, r + i, n, n1, _mm512_castsi512_ps(v));
        else
            finish_s8(a, r + i, n, n1, v);
    }
}

/* All (at most 16) rows by G groups of columns from n. */
BLOCK_FN void narrow_block(const struct operands *o, uint32_t n, uint32_t n1, const int G, const bool bf16)
{
    _Alignas(64) int32_t sums[4][256];
    const uint8_t *w = o->w + (size_t)(n / 16) * o->stream, *x = o->x;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (uint32_t k = 0; k < o->steps; k++, w += TILE, x += 64) {
        _tile_loadd(4, x, o->ldx);
        _tile_loadd(5, w, 64);
        fetch_tile(w);
        MULTIPLY(0, 4, 5);
        if (G > 1) {
            _tile_loadd(6, w + o->stream, 64);
            fetch_tile(w + o->stream);
            MULTIPLY(1, 4, 6);
        }
        if (G > 2) {
            _tile_loadd(7, w + 2 * o->stream, 64);
            fetch_tile(w + 2 * o->stream);
            MULTIPLY(2, 4, 7);
        }
        if (G > 3) {
            _tile_loadd(5, w + 3 * o->stream, 64);
            fetch_tile(w + 3 * o->stream);
            MULTIPLY(3, 4, 5);
        }
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
    for (uint32_t g = 0; g < (uint32_t)G; g++)
        finish_tile(o->a, sums[g], 0, o->a->rows, n + 16 * g, n1, bf16);
}

/* R (1 or 2) tiles of rows, from tile t, by G (1 or 2) groups of columns. The weights of the columns behind these are
 * fetched meanwhile, each pass over the rows its share, so that memory works while the tiles do. */
BLOCK_FN void wide_block(const struct operands *o, uint32_t t, uint32_t n, uint32_t n1, const int R, const int G,
                         const bool bf16)
{
    _Alignas(64) int32_t sums[4][256];
    uint32_t most = o->a->rows - 16, r = 16 * t < most ? 16 * t : most, s = 16 * t + 16 < most ? 16 * t + 16 : most;
    const uint8_t *w = o->w + (size_t)(n / 16) * o->stream, *x = o->x + r * o->ldx, *z = o->x + s * o->ldx;
    uint32_t passes = (o->a->rows + 31) / 32, lines = (2 * TILE / 64 + passes - 1) / passes;
    const uint8_t *next = w + 2 * o->stream + (size_t)(t / 2) * o->steps * lines * 64;
    lines = passes == 1 ? 0 : lines;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (uint32_t k = 0; k < o->steps; k++, w += TILE, x += 64, z += 64) {
        _tile_loadd(6, w, 64);
        _tile_loadd(4, x, o->ldx);
        if (R > 1)
            _tile_loadd(5, z, o->ldx);
        if (G > 1)
            _tile_loadd(7, w + o->stream, 64);
        if (t == 0) {
            fetch_tile(w);
            if (G > 1)
                fetch_tile(w + o->stream);
        }
        for (uint32_t i = 0; i < lines; i++, next += 64)
            _mm_prefetch((const char *)next, _MM_HINT_T1);
        MULTIPLY(0, 4, 6);
        if (R > 1)
            MULTIPLY(1, 5, 6);
        if (G > 1)
            MULTIPLY(2, 4, 7);
        if (R > 1 && G > 1)
            MULTIPLY(3, 5, 7);
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
    uint32_t old = 16 * t - r, old2 = 16 * t + 16 - s; /* rows that the tile before has stored */
    for (uint32_t g = 0; g < (uint32_t)G; g++) {
        finish_tile(o->a, sums[2 * g] + 16 * old, r + old, 16 - old, n + 16 * g, n1, bf16);
        if (R > 1)
            finish_tile(o->a, sums[2 * g + 1] + 16 * old2, s + old2, 16 - old2, n + 16 * g, n1, bf16);
    }
}

BLOCK_FN void narrow(const struct operands *o, uint32_t n0, uint32_t n1, const bool bf16)
{
    configure(o->a->rows, false);
    uint32_t n = n0;
    for (; n + 48 < n1; n += 64)
        narrow_block(o, n, n1, 4, bf16);
    for (; n < n1; n += 16)
        narrow_block(o, n, n1, 1, bf16);
}

/* All rows (more than 16) on G groups of columns. */
BLOCK_FN void wide_columns(const struct operands *o, uint32_t n, uint32_t n1, const int G, const bool bf16)
{
    uint32_t tiles = (o->a->rows + 15) / 16, t = 0;
    for (; t + 1 < tiles; t += 2)
        wide_block(o, t, n, n1, 2, G, bf16);
    if (t < tiles)
        wide_block(o, t, n, n1, 1, G, bf16);
}

BLOCK_FN void product(const struct cpu_linear *a, uint32_t n0, uint32_t n1, const bool bf16)
{
    struct operands o = operands_of(a, bf16);
    if (a->rows <= 16) {
        narrow(&o, n0, n1, bf16);
    } else {
        configure(16, true);
        uint32_t n = n0;
        for (; n + 16 < n1; n += 32)
            wide_columns(&o, n, n1, 2, bf16);
        if (n < n1)
            wide_columns(&o, n, n1, 1, bf16);
    }
    _tile_release();
}

static void linear_s8(const struct cpu_linear *a, uint32_t n0, uint32_t n1)
{
    if (a->rows < FEW)
        cpu_linear_s8_vnni(a, n0, n1);
    else
        product(a, n0, n1, false);
}

static void linear_bf16(const struct cpu_linear *a, uint32_t n0, uint32_t n1)
{
    product(a, n0, n1, true);
}

void cpu_linear_amx(struct cpu_table *t)
{
    t->linear[KERN_S8] = linear_s8;
    t->linear[KERN_BF16] = linear_bf16;
}
