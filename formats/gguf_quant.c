/* gguf_quant.c - GGUF's tensor types and their way to float.
 *
 * Pure functions; any thread. The blocks: Q8_0 is a half-float scale d and 32 signed bytes, x = d * q. Q4_0 is d and 16
 * bytes whose low nibbles are elements 0 to 15 and whose high ones 16 to 31, x = d * (q - 8). Q4_1 adds a half-float
 * minimum m, x = d * q + m (a product, then a sum: never fused). Every operation is a single float32 one, so the values
 * are those of any other implementation that does the same, bit for bit; tests/golden holds blocks to compare with.
 */
#include "formats/gguf_internal.h"

#include <string.h>

#include "common/checked.h"
#include "common/num.h"
#include "formats/dtype.h"

enum { QK = 32 };

const struct gguf_block *gguf_block_of(uint64_t type)
{
    static const struct gguf_block blocks[] = {
        [0] = {"F32", 1, 4},      [1] = {"F16", 1, 2},     [2] = {"Q4_0", QK, 18},   [3] = {"Q4_1", QK, 20},
        [6] = {"Q5_0", 1, 0},     [7] = {"Q5_1", 1, 0},    [8] = {"Q8_0", QK, 34},   [9] = {"Q8_1", 1, 0},
        [10] = {"Q2_K", 1, 0},    [11] = {"Q3_K", 1, 0},   [12] = {"Q4_K", 1, 0},    [13] = {"Q5_K", 1, 0},
        [14] = {"Q6_K", 1, 0},    [15] = {"Q8_K", 1, 0},   [16] = {"IQ2_XXS", 1, 0}, [17] = {"IQ2_XS", 1, 0},
        [18] = {"IQ3_XXS", 1, 0}, [19] = {"IQ1_S", 1, 0},  [20] = {"IQ4_NL", 1, 0},  [21] = {"IQ3_S", 1, 0},
        [22] = {"IQ2_S", 1, 0},   [23] = {"IQ4_XS", 1, 0}, [24] = {"I8", 1, 0},      [25] = {"I16", 1, 0},
        [26] = {"I32", 1, 0},     [27] = {"I64", 1, 0},    [28] = {"F64", 1, 0},     [29] = {"IQ1_M", 1, 0},
        [30] = {"BF16", 1, 2},    [34] = {"TQ1_0", 1, 0},  [35] = {"TQ2_0", 1, 0},   [39] = {"MXFP4", 1, 0},
    };
    static const struct gguf_block unknown = {"unknown", 1, 0};
    return type < sizeof blocks / sizeof *blocks && blocks[type].name ? &blocks[type] : &unknown;
}

const char *gguf_type_name(enum gguf_tensor_type t)
{
    return gguf_block_of(t)->name;
}

static float half_at(const uint8_t *p)
{
    return f16_to_f32((uint16_t)(p[0] | p[1] << 8));
}

static void q8_0(const uint8_t *p, size_t n_blocks, float *dst)
{
    for (; n_blocks--; p += 34, dst += QK) {
        float d = half_at(p);
        for (int i = 0; i < QK; i++)
            dst[i] = (float)(int8_t)p[2 + i] * d;
    }
}

static void q4_0(const uint8_t *p, size_t n_blocks, float *dst)
{
    for (; n_blocks--; p += 18, dst += QK) {
        float d = half_at(p);
        for (int i = 0; i < QK / 2; i++) {
            dst[i] = d * (float)((p[2 + i] & 15) - 8);
            dst[i + QK / 2] = d * (float)((p[2 + i] >> 4) - 8);
        }
    }
}

static void q4_1(const uint8_t *p, size_t n_blocks, float *dst)
{
    for (; n_blocks--; p += 20, dst += QK) {
        float d = half_at(p), m = half_at(p + 2);
        for (int i = 0; i < QK / 2; i++) {
            dst[i] = d * (float)(p[4 + i] & 15) + m;
            dst[i + QK / 2] = d * (float)(p[4 + i] >> 4) + m;
        }
    }
}

int gguf_tensor_f32(const struct gguf_tensor *t, size_t row, size_t n_rows, float *dst)
{
    if (ck_outside(row, n_rows, t->n_rows))
        return -ERANGE;
    const uint8_t *p = t->data + row * t->row_bytes;
    size_t n = n_rows * t->row_len;
    switch (t->type) {
    case GGML_F32:
        return dtype_to_f32(DT_F32, p, n, dst);
    case GGML_F16:
        return dtype_to_f32(DT_F16, p, n, dst);
    case GGML_BF16:
        return dtype_to_f32(DT_BF16, p, n, dst);
    case GGML_Q8_0:
        q8_0(p, n / QK, dst);
        return 0;
    case GGML_Q4_0:
        q4_0(p, n / QK, dst);
        return 0;
    case GGML_Q4_1:
        q4_1(p, n / QK, dst);
        return 0;
    }
    return -EINVAL;
}
