/* pack.c - sizes and packing of weights and activations (layout.h has the picture).
 *
 * Any thread: packing writes only the sixteen-row groups that its rows touch. The memory is the caller's, zeroed
 * before kern_mat_init. Padding is written by the call that packs the last row: s8 zeros (u8 128), scale 0, bias 0.
 */
#include "kernels/kernels.h"

#include <assert.h>
#include <string.h>

#include "common/checked.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/layout.h"

/* Bytes of the weights alone; false when they do not fit. */
static bool weights_bytes(enum kern_type type, uint32_t n, uint32_t k, size_t *out)
{
    size_t rows = ((size_t)n + 15) & ~(size_t)15, width = ((size_t)k + 63) & ~(size_t)63;
    if (!n || !k || width > UINT32_MAX || rows > UINT32_MAX)
        return false;
    size_t size = type == KERN_S8 ? 1 : type == KERN_BF16 ? 2 : 4;
    return !ck_mul(rows, type == KERN_F32 ? k : width, out) && !ck_mul(*out, size, out);
}

static size_t row_floats_bytes(uint32_t n)
{
    return (((size_t)n + 15) & ~(size_t)15) * sizeof(float);
}

size_t kern_mat_bytes(enum kern_type type, uint32_t n, uint32_t k, bool bias)
{
    size_t total;
    if (!weights_bytes(type, n, k, &total))
        return 0;
    if (type == KERN_S8 && ck_add(total, row_floats_bytes(n), &total))
        return 0;
    if (bias && ck_add(total, row_floats_bytes(n), &total))
        return 0;
    return total;
}

void kern_mat_init(struct kern_mat *m, enum kern_type type, uint32_t n, uint32_t k, bool bias, kmem at)
{
    size_t off = 0;
    bool fits = weights_bytes(type, n, k, &off);
    assert(fits);
    (void)fits;
    *m = (struct kern_mat){.type = type, .n = n, .k = k, .w = at};
    if (type == KERN_S8) {
        m->scale = kmem_at(at, off);
        off += row_floats_bytes(n);
    }
    if (bias)
        m->bias = kmem_at(at, off);
}

/* One row of s8 into its lane: four bytes a line. */
static void pack_row_s8(uint8_t *lane, const uint8_t *src, uint32_t k)
{
    uint32_t i = 0;
    for (; i + 4 <= k; i += 4, lane += 64) {
        uint32_t u;
        memcpy(&u, src + i, 4);
        u ^= 0x80808080u;
        memcpy(lane, &u, 4);
    }
    for (uint32_t pad = layout_kpad(k); i < pad; i += 4, lane += 64)
        for (uint32_t j = 0; j < 4; j++)
            lane[j] = i + j < k ? src[i + j] ^ 0x80 : 0x80;
}

static void pack_row_bf16(uint16_t *lane, const uint8_t *src, uint32_t k)
{
    for (uint32_t i = 0; i < k; i++)
        memcpy(lane + (size_t)(i / 2) * 32 + (i & 1), src + (size_t)i * 2, 2);
}

static void pack_row_f32(float *lane, const uint8_t *src, uint32_t k)
{
    for (uint32_t i = 0; i < k; i++)
        memcpy(lane + (size_t)i * 16, src + (size_t)i * 4, 4);
}

static void pad_row_s8(const struct kern_mat *m, uint32_t row)
{
    uint8_t *w = (uint8_t *)m->w.a;
    for (uint32_t k = 0; k < layout_kpad(m->k); k++)
        w[layout_s8(row, k, m->k)] = 0x80;
}

void kern_mat_pack(struct kern_dev *d, const struct kern_mat *m, uint32_t row0, uint32_t rows, const void *src,
                   const float *scale, const float *bias)
{
    (void)d;
    assert(row0 <= m->n && rows <= m->n - row0);
    size_t row_bytes = (size_t)m->k * (m->type == KERN_S8 ? 1 : m->type == KERN_BF16 ? 2 : 4);
    const uint8_t *s = src;
    for (uint32_t i = 0; i < rows; i++, s += row_bytes) {
        uint32_t n = row0 + i;
        if (m->type == KERN_S8)
            pack_row_s8((uint8_t *)m->w.a + layout_s8(n, 0, m->k), s, m->k);
        else if (m->type == KERN_BF16)
            pack_row_bf16((uint16_t *)m->w.a + layout_bf16(n, 0, m->k), s, m->k);
        else
            pack_row_f32((float *)m->w.a + layout_f32(n, 0, m->k), s, m->k);
    }
    if (m->type == KERN_S8) {
        memcpy((float *)m->scale.a + row0, scale, rows * sizeof *scale);
        if (row0 + rows == m->n)
            for (uint32_t n = m->n; n & 15; n++)
                pad_row_s8(m, n);
    }
    if (m->bias.a && bias)
        memcpy((float *)m->bias.a + row0, bias, rows * sizeof *bias);
}

/* ---- activations ---- */

uint32_t kern_act_forms(const struct kern_dev *d, enum kern_type weights)
{
    if (weights == KERN_S8)
        return KERN_ACT_S8;
    return weights == KERN_BF16 && kern_level(d) == KERN_AMX ? KERN_ACT_BF16 : 0;
}

/* Lays the parts out one behind the other, each from a multiple of 64; false when the total does not fit. */
static bool act_layout(uint32_t rows, uint32_t k, uint32_t forms, size_t off[5], size_t *total)
{
    size_t kpad = ((size_t)k + 63) & ~(size_t)63;
    size_t width[5] = {(size_t)k * 4, forms & KERN_ACT_S8 ? kpad : 0, forms & KERN_ACT_S8 ? 4 : 0,
                       forms & KERN_ACT_S8 ? 4 : 0, forms & KERN_ACT_BF16 ? kpad * 2 : 0};
    size_t at = 0;
    for (int i = 0; i < 5; i++) {
        size_t bytes;
        off[i] = at;
        if (ck_mul(width[i], rows, &bytes) || ck_round_up(bytes, 64, &bytes) || ck_add(at, bytes, &at))
            return false;
    }
    *total = at;
    return true;
}

size_t kern_act_bytes(uint32_t rows, uint32_t k, uint32_t forms)
{
    size_t off[5], total;
    return act_layout(rows, k, forms, off, &total) ? total : 0;
}

void kern_act_init(struct kern_act *a, uint32_t rows, uint32_t k, uint32_t forms, kmem at)
{
    size_t off[5], total;
    bool fits = act_layout(rows, k, forms, off, &total);
    assert(fits);
    (void)fits;
    *a = (struct kern_act){.k = k, .kpad = layout_kpad(k), .forms = forms, .f32 = at};
    if (forms & KERN_ACT_S8) {
        a->s8 = kmem_at(at, off[1]);
        a->scale = kmem_at(at, off[2]);
        a->sum = kmem_at(at, off[3]);
    }
    if (forms & KERN_ACT_BF16)
        a->bf16 = kmem_at(at, off[4]);
}
