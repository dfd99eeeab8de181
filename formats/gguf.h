/* gguf.h - reading GGUF files, version 2 and 3, little endian.
 *
 * A file is a list of typed key/value pairs, a list of tensor descriptions and, aligned, the tensors' bytes. It is
 * mapped, never read whole. An open file is read-only and may be used from any number of threads; what it hands out
 * lives until gguf_close. Shapes are given the way transformers writes them: outermost dimension first, rows
 * contiguous.
 */
#ifndef CPET_FORMATS_GGUF_H
#define CPET_FORMATS_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define GGUF_MAX_DIMS 4

enum gguf_value_type {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STR,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_VALUE_TYPES
};

/* The tensor types that gguf_tensor_f32 reads; numbers are the format's. A file with any other is refused by name at
 * open. */
enum gguf_tensor_type {
    GGML_F32 = 0,
    GGML_F16 = 1,
    GGML_Q4_0 = 2,
    GGML_Q4_1 = 3,
    GGML_Q5_0 = 6,
    GGML_Q5_1 = 7,
    GGML_Q8_0 = 8,
    GGML_Q4_K = 12,
    GGML_Q5_K = 13,
    GGML_Q6_K = 14,
    GGML_BF16 = 30
};

struct gguf_str {
    const char *p; /* into the file: not terminated, valid UTF-8 or not as the file has it */
    size_t n;
};

struct gguf_kv {
    const char *key;
    enum gguf_value_type type;
    enum gguf_value_type elem; /* of an array's elements */
    uint64_t n;                /* elements of an array, else 1 */
    const uint8_t *raw;        /* the first value, as stored; no alignment */
    size_t off;                /* of raw in the file */
};

struct gguf_tensor {
    const char *name;
    enum gguf_tensor_type type;
    uint32_t ndim;
    uint64_t shape[GGUF_MAX_DIMS];
    size_t row_len, row_bytes, n_rows; /* a row: the last dimension. n_rows * row_len elements in all */
    size_t off, bytes;
    const uint8_t *data;
};

struct gguf_file;

/* -EINVAL naming file and byte offset: wrong magic, version or byte order, lengths and counts beyond the file, nested
 * arrays deeper than 4, duplicate keys or tensors, tensors of unsupported types, misaligned, overlapping or past the
 * end. */
int gguf_open(const char *path, struct gguf_file **out, struct err *e);
/* The same over bytes of the caller's, which must outlive the result; name is for errors. */
int gguf_open_mem(const char *name, const void *p, size_t n, struct gguf_file **out, struct err *e);
void gguf_close(struct gguf_file *f); /* takes NULL */

size_t gguf_kv_count(const struct gguf_file *f);
const struct gguf_kv *gguf_kv_at(const struct gguf_file *f, size_t i);
const struct gguf_kv *gguf_kv_find(const struct gguf_file *f, const char *key); /* NULL when absent */

/* Values by key, converted where the type allows it (any integer type for u64, any number for f64). Absent: *out =
 * *def, or -EINVAL "... is missing" when def is NULL. Another type or outside [min, max]: -EINVAL naming the key and
 * its offset. */
int gguf_get_u64(const struct gguf_file *f, const char *key, uint64_t min, uint64_t max, const uint64_t *def,
                 uint64_t *out, struct err *e);
int gguf_get_f64(const struct gguf_file *f, const char *key, double min, double max, const double *def, double *out,
                 struct err *e);
int gguf_get_bool(const struct gguf_file *f, const char *key, const bool *def, bool *out, struct err *e);
/* required false: an absent key gives p NULL. */
int gguf_get_str(const struct gguf_file *f, const char *key, bool required, struct gguf_str *out, struct err *e);
/* The key's array of that element type; required false: NULL when absent. */
int gguf_get_array(const struct gguf_file *f, const char *key, enum gguf_value_type elem, bool required,
                   const struct gguf_kv **out, struct err *e);

/* Arrays whole, into room for kv->n elements, converted like the getters. -EINVAL when kv is not an array of such
 * elements (or a value does not fit). */
int gguf_array_strs(const struct gguf_kv *kv, struct gguf_str *out);
int gguf_array_i32(const struct gguf_kv *kv, int32_t *out);
int gguf_array_f32(const struct gguf_kv *kv, float *out);

/* Tensors in the order of the file's list. */
size_t gguf_tensor_count(const struct gguf_file *f);
const struct gguf_tensor *gguf_tensor_at(const struct gguf_file *f, size_t i);
const struct gguf_tensor *gguf_tensor_find(const struct gguf_file *f, const char *name); /* NULL when absent */
const char *gguf_type_name(enum gguf_tensor_type t);                                     /* "Q4_1"; static */

/* Rows [row, row + n_rows) as floats, [n_rows, row_len]. -ERANGE beyond the tensor's rows. */
int gguf_tensor_f32(const struct gguf_tensor *t, size_t row, size_t n_rows, float *dst);
/* Drops the tensor's pages from resident memory. */
void gguf_forget(const struct gguf_file *f, const struct gguf_tensor *t);

#endif
