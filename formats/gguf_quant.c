/* gguf_quant.c - GGUF's tensor types and their way to float.
 *
 * Pure functions; any thread. The blocks: Q8_0 is a half-float scale d and 32 signed bytes, x = d * q. Q4_0 is d and 16
 * bytes whose low nibbles are elements 0 to 15 and whose high ones 16 to 31, x = d * (q - 8). Q4_1 adds a half-float
 * minimum m, x = d * q + m (a product, then a sum: never fused). Q5_0 and Q5_1 are the same with a fifth bit of each
 * element in 4 bytes before. The K types have blocks of 256 in sub-blocks with small scales of their own. Every
 * operation is a single float32 one, so the values are those of any other implementation that does the same, bit for
 * bit; tests/golden holds blocks to compare with.
 *
 * Q4_K: d, dmin, 12 bytes with a 6-bit scale and a 6-bit minimum for each of 8 sub-blocks of 32, then 128 bytes of
 * nibbles; x = (d * scale) * q - (dmin * minimum). Q5_K has 32 bytes of fifth bits between. Q6_K: 128 bytes of low
 * nibbles, 64 of high bit pairs, 16 signed scales of 16 elements each, d last; x = (d * scale) * (q - 32).
 */
#include "formats/gguf_internal.h"

#include <string.h>

#include "common/checked.h"
#include "common/num.h"
#include "formats/dtype.h"

enum { QK = 32, QK_K = 256 };

const struct gguf_block *gguf_block_of(uint64_t type)
{
    static const struct gguf_block blocks[] = {
        [0] = {"F32", 1, 4},        [1] = {"F16", 1, 2},     [2] = {"Q4_0", QK, 18},     [3] = {"Q4_1", QK, 20},
        [6] = {"Q5_0", QK, 22},     [7] = {"Q5_1", QK, 24},  [8] = {"Q8_0", QK, 34},     [9] = {"Q8_1", 1, 0},
        [10] = {"Q2_K", 1, 0},      [11] = {"Q3_K", 1, 0},   [12] = {"Q4_K", QK_K, 144}, [13] = {"Q5_K", QK_K, 176},
        [14] = {"Q6_K", QK_K, 210}, [15] = {"Q8_K", 1, 0},   [16] = {"IQ2_XXS", 1, 0},   [17] = {"IQ2_XS", 1, 0},
        [18] = {"IQ3_XXS", 1, 0},   [19] = {"IQ1_S", 1, 0},  [20] = {"IQ4_NL", 1, 0},    [21] = {"IQ3_S", 1, 0},
        [22] = {"IQ2_S", 1, 0},     [23] = {"IQ4_XS", 1, 0}, [24] = {"I8", 1, 0},        [25] = {"I16", 1, 0},
        [26] = {"I32", 1, 0},       [27] = {"I64", 1, 0},    [28] = {"F64", 1, 0},       [29] = {"IQ1_M", 1, 0},
        [30] = {"BF16", 1, 2},      [34] = {"TQ1_0", 1, 0},  [35] = {"TQ2_0", 1, 0},     [39] = {"MXFP4", 1, 0},
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

static uint32_t word_at(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Element i of a block of 32: its nibble in q and its fifth bit in the word h. */
static int five_bits(const uint8_t *q, uint32_t h, int i)
{
    int low = i < QK / 2 ? q[i] & 15 : q[i - QK / 2] >> 4;
    return low | (int)(h >> i & 1) << 4;
}

static void q5_0(const uint8_t *p, size_t n_blocks, float *dst)
{
    for (; n_blocks--; p += 22, dst += QK) {
        float d = half_at(p);
        uint32_t h = word_at(p + 2);
        for (int i = 0; i < QK; i++)
            dst[i] = d * (float)(five_bits(p + 6, h, i) - 16);
    }
}

static void q5_1(const uint8_t *p, size_t n_blocks, float *dst)
{
    for (; n_blocks--; p += 24, dst += QK) {
        float d = half_at(p), m = half_at(p + 2);
        uint32_t h = word_at(p + 4);
        for (int i = 0; i < QK; i++)
            dst[i] = d * (float)five_bits(p + 8, h, i) + m;
    }
}

/* The 6-bit scale and minimum of sub-block j. */
static void scale_min(const uint8_t s[12], int j, int *scale, int *min)
{
    if (j < 4) {
        *scale = s[j] & 63;
        *min = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        *min = s[j + 4] >> 4 | (s[j] >> 6) << 4;
    }
}

/* Q4_K (high NULL) and Q5_K: the sub-blocks 2j and 2j + 1 are the low and high nibbles of the same 32 bytes; their
 * fifth bits are bit 2j and 2j + 1 of the 32 bytes at `high`. */
static void k_block(const uint8_t *p, const uint8_t *high, const uint8_t *q, float *dst)
{
    float d = half_at(p), dmin = half_at(p + 2);
    for (int j = 0; j < 8; j++, dst += 32) {
        int scale, min;
        scale_min(p + 4, j, &scale, &min);
        float ds = d * (float)scale, m = dmin * (float)min;
        const uint8_t *at = q + j / 2 * 32;
        for (int i = 0; i < 32; i++) {
            int v = j % 2 ? at[i] >> 4 : at[i] & 15;
            if (high)
                v |= (high[i] >> j & 1) << 4;
            dst[i] = ds * (float)v - m;
        }
    }
}

static void q4_k(const uint8_t *p, size_t n_blocks, float *dst)
{
    for (; n_blocks--; p += 144, dst += QK_K)
        k_block(p, NULL, p + 16, dst);
}

static void q5_k(const uint8_t *p, size_t n_blocks, float *dst)
{
    for (; n_blocks--; p += 176, dst += QK_K)
        k_block(p, p + 16, p + 48, dst);
}

static void q6_k(const uint8_t *p, size_t n_blocks, float *dst)
{
    for (; n_blocks--; p += 210, dst += QK_K) {
        float d = half_at(p + 208);
        for (int e = 0; e < QK_K; e++) {
            int half = e / 128, part = e % 128 / 32, i = e % 32;
            uint8_t nibbles = p[half * 64 + part % 2 * 32 + i];
            int low = part < 2 ? nibbles & 15 : nibbles >> 4;
            int v = low | (p[128 + half * 32 + i] >> 2 * part & 3) << 4;
            dst[e] = d * (float)(int8_t)p[192 + e / 16] * (float)(v - 32);
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
    case GGML_Q5_0:
        q5_0(p, n / QK, dst);
        return 0;
    case GGML_Q5_1:
        q5_1(p, n / QK, dst);
        return 0;
    case GGML_Q4_K:
        q4_k(p, n / QK_K, dst);
        return 0;
    case GGML_Q5_K:
        q5_k(p, n / QK_K, dst);
        return 0;
    case GGML_Q6_K:
        q6_k(p, n / QK_K, dst);
        return 0;
    }
    return -EINVAL;
}
