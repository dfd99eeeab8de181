/* dtype.c - element types and their conversion to and from float.
 *
 * Pure functions; any thread; no memory of their own. The loops hold no branch and read through memcpy, so that the
 * compiler turns them into vector code on any alignment. The 16-bit conversions give the same bits as common/num.h's
 * scalar ones (the unit test compares all 65,536 values); half floats go through normal numbers only, so that a
 * processor told to flush subnormals gives the same result.
 */
#include "formats/dtype.h"

#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "common/num.h"

static const struct {
    const char *name;
    size_t size;
} types[DT_COUNT] = {
    [DT_F32] = {"F32", 4},   [DT_F16] = {"F16", 2},         [DT_BF16] = {"BF16", 2},       [DT_F64] = {"F64", 8},
    [DT_I8] = {"I8", 1},     [DT_U8] = {"U8", 1},           [DT_I16] = {"I16", 2},         [DT_U16] = {"U16", 2},
    [DT_I32] = {"I32", 4},   [DT_U32] = {"U32", 4},         [DT_I64] = {"I64", 8},         [DT_U64] = {"U64", 8},
    [DT_BOOL] = {"BOOL", 1}, [DT_F8_E4M3] = {"F8_E4M3", 1}, [DT_F8_E5M2] = {"F8_E5M2", 1},
};

size_t dtype_size(enum dtype t)
{
    assert((unsigned)t < DT_COUNT);
    return types[t].size;
}

const char *dtype_name(enum dtype t)
{
    assert((unsigned)t < DT_COUNT);
    return types[t].name;
}

int dtype_parse(const char *name, enum dtype *out)
{
    for (unsigned i = 0; i < DT_COUNT; i++) {
        if (!strcmp(types[i].name, name)) {
            *out = (enum dtype)i;
            return 0;
        }
    }
    return -EINVAL;
}

bool dtype_is_float(enum dtype t)
{
    return t == DT_F32 || t == DT_F16 || t == DT_BF16 || t == DT_F64;
}

static void f16_row(const uint8_t *restrict s, size_t n, float *restrict dst)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, s + 2 * i, 2);
        uint32_t sign = (uint32_t)(h & 0x8000u) << 16, mag = (uint32_t)(h & 0x7FFFu) << 13;
        uint32_t normal = mag + (112u << 23);
        uint32_t huge = mag | 0x7F800000u;
        uint32_t tiny = f32_bits(f32_of_bits(mag + (113u << 23)) - 0x1p-14f);
        uint32_t u = mag < 0x00800000u ? tiny : normal;
        u = mag >= 0x0F800000u ? huge : u;
        u |= sign;
        memcpy(dst + i, &u, 4);
    }
}

static void bf16_row(const uint8_t *restrict s, size_t n, float *restrict dst)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, s + 2 * i, 2);
        uint32_t u = (uint32_t)h << 16;
        memcpy(dst + i, &u, 4);
    }
}

static void f64_row(const uint8_t *restrict s, size_t n, float *restrict dst)
{
    for (size_t i = 0; i < n; i++) {
        double d;
        memcpy(&d, s + 8 * i, 8);
        dst[i] = (float)d;
    }
}

int dtype_to_f32(enum dtype t, const void *src, size_t n, float *dst)
{
    switch (t) {
    case DT_F32:
        if (n)
            memcpy(dst, src, n * sizeof *dst);
        return 0;
    case DT_F16:
        f16_row(src, n, dst);
        return 0;
    case DT_BF16:
        bf16_row(src, n, dst);
        return 0;
    case DT_F64:
        f64_row(src, n, dst);
        return 0;
    default:
        return -EINVAL;
    }
}

static void row_to_f16(const float *restrict s, size_t n, uint8_t *restrict dst)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t h = f32_to_f16(s[i]);
        memcpy(dst + 2 * i, &h, 2);
    }
}

static void row_to_bf16(const float *restrict s, size_t n, uint8_t *restrict dst)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t h = f32_to_bf16(s[i]);
        memcpy(dst + 2 * i, &h, 2);
    }
}

static void row_to_f64(const float *restrict s, size_t n, uint8_t *restrict dst)
{
    for (size_t i = 0; i < n; i++) {
        double d = s[i];
        memcpy(dst + 8 * i, &d, 8);
    }
}

int dtype_of_f32(enum dtype t, const float *src, size_t n, void *dst)
{
    switch (t) {
    case DT_F32:
        if (n)
            memcpy(dst, src, n * sizeof *src);
        return 0;
    case DT_F16:
        row_to_f16(src, n, dst);
        return 0;
    case DT_BF16:
        row_to_bf16(src, n, dst);
        return 0;
    case DT_F64:
        row_to_f64(src, n, dst);
        return 0;
    default:
        return -EINVAL;
    }
}
