/* safetensors.h - reading and writing safetensors files.
 *
 * A file is a 64-bit length, a JSON header {name: {dtype, shape, data_offsets}}, and the tensors' bytes, row-major,
 * little endian, without holes. Files are mapped, never read whole: a tensor's data points into the map and has no
 * alignment beyond what the file gives it. An open file is read-only and may be used from any number of threads.
 */
#ifndef CPET_FORMATS_SAFETENSORS_H
#define CPET_FORMATS_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "formats/dtype.h"

#define ST_MAX_DIMS 8
#define ST_MAX_HEADER 100000000u /* bytes, the format's own limit */

struct st_tensor {
    const char *name;
    enum dtype type;
    uint32_t ndim; /* 0: a scalar */
    uint64_t shape[ST_MAX_DIMS];
    size_t off, bytes; /* off: from the start of its file */
    const uint8_t *data;
};

struct st_file;

/* One .safetensors file. -EINVAL naming file, tensor and byte offset for anything the format forbids: offsets out of
 * order, overlapping, with holes or past the end, a size that is not shape times type, duplicate names. */
int st_open(const char *path, struct st_file **out, struct err *e);
/* dir/model.safetensors, or all shards of dir/model.safetensors.index.json (whose file names must not leave dir).
 * -ENOENT when neither is there. */
int st_open_dir(const char *dir, struct st_file **out, struct err *e);
/* The same checks over bytes of the caller's, which must outlive the result; name is for errors. */
int st_open_mem(const char *name, const void *p, size_t n, struct st_file **out, struct err *e);
void st_close(struct st_file *f); /* takes NULL */

/* Tensors in file order (by offset, shard after shard). */
size_t st_count(const struct st_file *f);
const struct st_tensor *st_at(const struct st_file *f, size_t i);
/* NULL when no tensor has that name. Binary search. */
const struct st_tensor *st_find(const struct st_file *f, const char *name);
/* A value of __metadata__ (of the first file), or NULL. */
const char *st_meta(const struct st_file *f, const char *key);
/* Drops the tensor's pages from resident memory; reading them again is slow, not wrong. */
void st_forget(const struct st_file *f, const struct st_tensor *t);

/* One tensor to write: data, or, where data is NULL, fill. */
struct st_out {
    const char *name;
    enum dtype type;
    uint32_t ndim;
    uint64_t shape[ST_MAX_DIMS];
    const void *data;
    /* Writes bytes [off, off+n) of the tensor to dst: always whole rows (of the last dimension), as many as fit in 1
     * MiB and at least one, in order. 0, or -Exxx, which st_write returns. */
    int (*fill)(void *ctx, size_t off, size_t n, void *dst);
    void *ctx;
};

/* Writes path in the order given, deterministically: no clock, no padding but the header's spaces up to 8 bytes. meta:
 * key, value, key, value, NULL (or NULL). Streams into a temporary beside path, which is fsynced and renamed; on
 * failure path is as it was. -EINVAL for duplicate names. */
int st_write(const char *path, const struct st_out *t, size_t n, const char *const *meta, struct err *e);

#endif
