/* linear_scalar.c - the reference of the dense part: y = W x, embedding rows, and the row kernels of rows.h.
 *
 * Any thread; no memory of its own. What every level has to match is stated here. S8: the exact integer sum, then
 * y = (f32)sum * (x_scale * w_scale), + bias, and last the sum with the old y when accumulating; all levels do these
 * in this order and give the same bits. F32 and BF16: one running f32 sum an output, in the order of k, so that no
 * blocking of rows or columns shows; the levels differ in the rounding of each step (fused or not).
 */
#include "kernels/cpu/cpu.h"

#include "common/num.h"
#include "kernels/cpu/layout.h"
#define ROWS_BYTES 16
#include "kernels/cpu/rows.h"

ROWS_DEFINE(scalar)

static void finish(const struct cpu_linear *a, float *y, uint32_t n, float v)
{
    if (a->bias)
        v += a->bias[n];
    *y = a->accumulate ? *y + v : v;
}

/* Sixteen outputs from column n of one row. */
static void s8_group(const struct cpu_linear *a, uint32_t r, uint32_t n, uint32_t n1)
{
    const uint8_t *w = a->w + (size_t)n * a->kpad;
    const int8_t *x = a->x_s8 + (size_t)r * a->kpad;
    int32_t acc[16] = {0};
    for (uint32_t k = 0; k < a->kpad; k += 4, w += 64)
        for (uint32_t l = 0; l < 16; l++)
            for (uint32_t j = 0; j < 4; j++)
                acc[l] += (w[4 * l + j] - 128) * x[k + j];
    for (uint32_t l = 0; l < 16 && n + l < n1; l++)
        finish(a, a->y + (size_t)r * a->ldy + n + l, n + l, (float)acc[l] * (a->x_scale[r] * a->scale[n + l]));
}

static void linear_s8(const struct cpu_linear *a, uint32_t n0, uint32_t n1)
{
    for (uint32_t n = n0; n < n1; n += 16)
        for (uint32_t r = 0; r < a->rows; r++)
            s8_group(a, r, n, n1);
}

static void linear_f32(const struct cpu_linear *a, uint32_t n0, uint32_t n1)
{
    uint32_t k = a->mat->k;
    for (uint32_t n = n0; n < n1; n += 16) {
        const float *w = (const float *)a->w + (size_t)n * k;
        for (uint32_t r = 0; r < a->rows; r++) {
            const float *x = a->x_f32 + (size_t)r * k;
            float acc[16] = {0};
            for (uint32_t i = 0; i < k; i++)
                for (uint32_t l = 0; l < 16; l++)
                    acc[l] += w[(size_t)i * 16 + l] * x[i];
            for (uint32_t l = 0; l < 16 && n + l < n1; l++)
                finish(a, a->y + (size_t)r * a->ldy + n + l, n + l, acc[l]);
        }
    }
}

static void linear_bf16(const struct cpu_linear *a, uint32_t n0, uint32_t n1)
{
    uint32_t k = a->mat->k;
    for (uint32_t n = n0; n < n1; n += 16) {
        const uint16_t *w = (const uint16_t *)a->w + (size_t)n * a->kpad;
        for (uint32_t r = 0; r < a->rows; r++) {
            const float *x = a->x_f32 + (size_t)r * k;
            float acc[16] = {0};
            for (uint32_t i = 0; i < k; i++)
                for (uint32_t l = 0; l < 16; l++)
                    acc[l] += bf16_to_f32(w[(size_t)(i / 2) * 32 + 2 * l + i % 2]) * x[i];
            for (uint32_t l = 0; l < 16 && n + l < n1; l++)
                finish(a, a->y + (size_t)r * a->ldy + n + l, n + l, acc[l]);
        }
    }
}

static void embed_s8(const struct kern_mat *m, uint32_t row, float *y)
{
    const uint8_t *w = (const uint8_t *)m->w.a;
    float scale = ((const float *)m->scale.a)[row];
    for (uint32_t k = 0; k < m->k; k++)
        y[k] = (float)(w[layout_s8(row, k, m->k)] - 128) * scale;
}

static void embed_bf16(const struct kern_mat *m, uint32_t row, float *y)
{
    const uint16_t *w = (const uint16_t *)m->w.a;
    for (uint32_t k = 0; k < m->k; k++)
        y[k] = bf16_to_f32(w[layout_bf16(row, k, m->k)]);
}

static void embed_f32(const struct kern_mat *m, uint32_t row, float *y)
{
    const float *w = (const float *)m->w.a;
    for (uint32_t k = 0; k < m->k; k++)
        y[k] = w[layout_f32(row, k, m->k)];
}

void cpu_linear_scalar(struct cpu_table *t)
{
    ROWS_FILL(t, scalar);
    t->linear[KERN_S8] = linear_s8;
    t->linear[KERN_F32] = linear_f32;
    t->linear[KERN_BF16] = linear_bf16;
    t->embed[KERN_S8] = embed_s8;
    t->embed[KERN_F32] = embed_f32;
    t->embed[KERN_BF16] = embed_bf16;
}
