/* dtype.h - the element types of stored tensors, their names in safetensors, and their way to float.
 *
 * Pure functions on the caller's bytes; any thread.
 */
#ifndef CPET_FORMATS_DTYPE_H
#define CPET_FORMATS_DTYPE_H

#include <stdbool.h>
#include <stddef.h>

enum dtype {
    DT_F32,
    DT_F16,
    DT_BF16,
    DT_F64,
    DT_I8,
    DT_U8,
    DT_I16,
    DT_U16,
    DT_I32,
    DT_U32,
    DT_I64,
    DT_U64,
    DT_BOOL,
    DT_F8_E4M3,
    DT_F8_E5M2,
    DT_COUNT
};

/* Bytes of one element: 1, 2, 4 or 8. */
size_t dtype_size(enum dtype t);
/* The name as safetensors writes it ("BF16"); static. */
const char *dtype_name(enum dtype t);
/* 0, or -EINVAL when no type has that name; then *out is untouched. */
int dtype_parse(const char *name, enum dtype *out);
/* F32, F16, BF16 or F64: what dtype_to_f32 reads. */
bool dtype_is_float(enum dtype t);

/* n elements at src (no alignment needed) as floats at dst. 0, or -EINVAL for types that dtype_is_float refuses. src
 * and dst do not overlap. F64 rounds to nearest even. */
int dtype_to_f32(enum dtype t, const void *src, size_t n, float *dst);
/* The other way: F32, F16, BF16 or F64 at dst (no alignment needed), rounded to nearest even. -EINVAL for others. */
int dtype_of_f32(enum dtype t, const float *src, size_t n, void *dst);

#endif
