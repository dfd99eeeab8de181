/* safetensors_write.c - writing safetensors files.
 *
 * Runs on the caller's thread and borrows what it is given. The header is built in memory, the tensors are streamed:
 * borrowed bytes are written as they are, others go through one buffer of about 1 MiB (a row, where a row is longer).
 * The output is a function of the arguments alone, so the same tensors give the same file and the same hash.
 */
#include "formats/safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "common/buf.h"
#include "common/checked.h"
#include "common/file.h"

enum { CHUNK = 1 << 20 };

/* A JSON string of valid UTF-8: quotes, backslashes and control characters escaped. */
static void put_string(struct buf *b, const char *s)
{
    buf_puts(b, "\"");
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            buf_printf(b, "\\%c", c);
        else if (c < 0x20)
            buf_printf(b, "\\u%04x", c);
        else
            buf_append(b, s, 1);
    }
    buf_puts(b, "\"");
}

/* Bytes of the tensor and of one row of it (the last dimension). */
static int out_bytes(const struct st_out *t, size_t *bytes, size_t *row, struct err *e)
{
    if (t->ndim > ST_MAX_DIMS)
        return err_set(e, -EINVAL, "tensor \"%s\": %u dimensions, at most %d are supported", t->name, t->ndim,
                       ST_MAX_DIMS);
    size_t n = dtype_size(t->type);
    *row = n;
    for (uint32_t i = t->ndim; i-- > 0;) {
        if (ck_mul(n, t->shape[i], &n))
            return err_set(e, -EINVAL, "tensor \"%s\": its shape overflows", t->name);
        if (i + 1 == t->ndim)
            *row = n;
    }
    *bytes = n;
    return 0;
}

static int put_entries(struct buf *b, const struct st_out *t, size_t n, bool comma, struct err *e)
{
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        size_t bytes = 0, row = 0, end = 0;
        int r = out_bytes(&t[i], &bytes, &row, e);
        if (r)
            return r;
        if (ck_add(at, bytes, &end))
            return err_set(e, -EINVAL, "tensor \"%s\": the file's size overflows", t[i].name);
        if (comma)
            buf_puts(b, ",");
        comma = true;
        put_string(b, t[i].name);
        buf_printf(b, ":{\"dtype\":\"%s\",\"shape\":[", dtype_name(t[i].type));
        for (uint32_t d = 0; d < t[i].ndim; d++)
            buf_printf(b, "%s%llu", d ? "," : "", (unsigned long long)t[i].shape[d]);
        buf_printf(b, "],\"data_offsets\":[%zu,%zu]}", at, end);
        at = end;
    }
    return 0;
}

static int make_header(struct buf *b, const struct st_out *t, size_t n, const char *const *meta, struct err *e)
{
    buf_append(b, "\0\0\0\0\0\0\0\0{", 9);
    for (size_t i = 0; meta && meta[i]; i += 2) {
        buf_puts(b, i ? "," : "\"__metadata__\":{");
        put_string(b, meta[i]);
        buf_puts(b, ":");
        put_string(b, meta[i + 1]);
    }
    bool any = meta && meta[0];
    if (any)
        buf_puts(b, "}");
    int r = put_entries(b, t, n, any, e);
    if (r)
        return r;
    buf_puts(b, "}");
    while (b->len % 8 && !b->failed)
        buf_puts(b, " ");
    if (b->failed)
        return err_set(e, b->error, "the header of %zu tensors %s", n,
                       b->error == -E2BIG ? "is longer than the format allows" : "does not fit in memory");
    uint64_t len = b->len - 8;
    for (int i = 0; i < 8; i++)
        b->data[i] = (char)(len >> (8 * i) & 0xFF);
    return 0;
}

static int write_tensor(struct file_out *o, const struct st_out *t, struct err *e)
{
    size_t bytes = 0, row = 0, off = 0;
    int r = out_bytes(t, &bytes, &row, e);
    if (r || !bytes)
        return r;
    if (t->data)
        return file_out_write(o, t->data, bytes, e);
    size_t step = row >= CHUNK ? row : CHUNK / row * row;
    if (step > bytes)
        step = bytes;
    char *chunk = malloc(step);
    if (!chunk)
        return err_set(e, -ENOMEM, "tensor \"%s\": out of memory for %zu bytes", t->name, step);
    while (!r && off < bytes) {
        size_t n = bytes - off < step ? bytes - off : step;
        r = t->fill(t->ctx, off, n, chunk);
        if (r)
            err_set(e, r, "tensor \"%s\": its bytes from %zu on could not be made: %s", t->name, off, strerror(-r));
        else
            r = file_out_write(o, chunk, n, e);
        off += n;
    }
    free(chunk);
    return r;
}

static int cmp_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int check_names(const struct st_out *t, size_t n, struct err *e)
{
    const char **names = calloc(n + 1, sizeof *names);
    int r = names ? 0 : err_set(e, -ENOMEM, "out of memory");
    for (size_t i = 0; !r && i < n; i++)
        names[i] = t[i].name;
    if (!r)
        qsort(names, n, sizeof *names, cmp_names);
    for (size_t i = 1; !r && i < n; i++) {
        if (!strcmp(names[i - 1], names[i]))
            r = err_set(e, -EINVAL, "two tensors are named \"%s\"", names[i]);
    }
    free(names);
    return r;
}

int st_write(const char *path, const struct st_out *t, size_t n, const char *const *meta, struct err *e)
{
    struct buf b;
    struct file_out *o = NULL;
    buf_init(&b, ST_MAX_HEADER + 8);
    int r = check_names(t, n, e);
    if (!r)
        r = make_header(&b, t, n, meta, e);
    if (r)
        err_prefix(e, r, "%s", path);
    if (!r)
        r = file_out_open(path, 0644, &o, e);
    if (!r)
        r = file_out_write(o, b.data, b.len, e);
    for (size_t i = 0; !r && i < n; i++)
        r = write_tensor(o, &t[i], e);
    buf_free(&b);
    if (!r)
        return file_out_commit(o, e);
    file_out_abort(o);
    return r;
}
