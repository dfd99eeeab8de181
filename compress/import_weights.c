/* import_weights.c - the weights, streamed from the source to model.safetensors.
 *
 * Runs on import's thread. st_write asks for a run of whole rows at a time; they are read as float32 from the source's
 * map (with GGUF's row permutation undone), checked to be finite, rounded to the output's type and hashed, in one pass.
 * Two scratch buffers of at most 1 MiB of output (or one row) each are all the memory; a tensor's pages are given back
 * once it is written.
 */
#include "compress/import_internal.h"

#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "common/num.h"

enum { CHUNK = 1 << 20 }; /* at most what st_write asks for, rows longer than this apart */

static void hash_u64(struct hash_state *h, uint64_t v, size_t n)
{
    uint8_t b[8];
    for (size_t i = 0; i < n; i++)
        b[i] = (uint8_t)(v >> (8 * i));
    hash_update(h, b, n);
}

static void hash_head(struct import_job *j, const struct import_tensor *t)
{
    const char *type = dtype_name(j->dtype);
    hash_update(&j->hash, t->name, strlen(t->name) + 1);
    hash_update(&j->hash, type, strlen(type) + 1);
    hash_u64(&j->hash, t->ndim, 4);
    for (uint32_t i = 0; i < t->ndim; i++)
        hash_u64(&j->hash, t->shape[i], 8);
}

/* Within a head of d rows, GGUF's llama row 2i + h holds row h * d/2 + i. Where row r of the whole is kept: */
static size_t stored_row(const struct import_tensor *t, size_t r)
{
    size_t d = (size_t)t->shape[0] / t->rope_heads, in = r % d;
    return r - in + in % (d / 2) * 2 + in / (d / 2);
}

static int read_gguf(const struct import_tensor *t, size_t row, size_t n, float *dst)
{
    if (!t->rope_heads)
        return gguf_tensor_f32(t->g, row, n, dst);
    int r = 0;
    if (t->ndim == 1) { /* a bias: its elements are the rows */
        float *whole = t->job->gather;
        r = gguf_tensor_f32(t->g, 0, 1, whole);
        for (size_t i = 0; !r && i < t->shape[0]; i++)
            dst[i] = whole[stored_row(t, i)];
        return r;
    }
    for (size_t i = 0; !r && i < n; i++)
        r = gguf_tensor_f32(t->g, stored_row(t, row + i), 1, dst + i * t->shape[1]);
    return r;
}

/* The first magnitude, as float bits, that does not become a finite number of the output's type. */
static uint32_t too_large(enum dtype t)
{
    return t == DT_F16 ? 0x477FF000u : t == DT_BF16 ? 0x7F7F8000u : 0x7F800000u;
}

static int check_finite(const struct import_tensor *t, size_t row, const float *x, size_t n)
{
    uint32_t top = 0, limit = too_large(t->job->dtype);
    for (size_t i = 0; i < n; i++) {
        uint32_t u = f32_bits(x[i]) & 0x7FFFFFFFu;
        top = u > top ? u : top;
    }
    if (top < limit)
        return 0;
    size_t i = 0;
    while ((f32_bits(x[i]) & 0x7FFFFFFFu) < limit)
        i++;
    return err_set(&t->job->fill_err, -EINVAL, "%s: tensor \"%s\": element %zu is %g, not a finite number of type %s",
                   t->job->src, t->name, row * (size_t)t->shape[t->ndim - 1] + i, (double)x[i],
                   dtype_name(t->job->dtype));
}

static int fill(void *ctx, size_t off, size_t n, void *dst)
{
    const struct import_tensor *t = ctx;
    struct import_job *j = t->job;
    size_t esz = dtype_size(j->dtype), len = (size_t)t->shape[t->ndim - 1], row = off / esz / len, count = n / esz;
    int r;
    if (t->g) {
        r = read_gguf(t, row, count / len, j->rows);
    } else {
        size_t from = dtype_size(t->s->type);
        r = dtype_to_f32(t->s->type, t->s->data + off / esz * from, count, j->rows);
    }
    if (!r)
        r = check_finite(t, row, j->rows, count);
    if (!r)
        r = dtype_of_f32(j->dtype, j->rows, count, dst);
    if (r)
        return r;
    if (!off)
        hash_head(j, t);
    hash_update(&j->hash, dst, n);
    j->done += n;
    if (j->o->progress)
        j->o->progress(j->o->ctx, j->done, j->total);
    if (row + count / len == (t->ndim == 1 ? 1 : t->shape[0])) {
        if (t->g)
            gguf_forget(j->gguf, t->g);
        else
            st_forget(j->st, t->s);
    }
    return 0;
}

/* Room for the longest run that st_write asks for. */
static int make_scratch(struct import_job *j, struct err *e)
{
    size_t esz = dtype_size(j->dtype), most = CHUNK / esz;
    for (size_t i = 0; i < j->n_t; i++) {
        const struct import_tensor *t = &j->t[i];
        size_t len = (size_t)t->shape[t->ndim - 1];
        most = len > most ? len : most;
        j->total += (size_t)t->shape[0] * (t->ndim == 2 ? (size_t)t->shape[1] : 1) * esz;
    }
    j->rows = malloc(most * sizeof *j->rows);
    j->gather = malloc(most * sizeof *j->gather);
    return j->rows && j->gather ? 0 : err_set(e, -ENOMEM, "out of memory");
}

int import_weights(struct import_job *j, struct err *e)
{
    static const char *const meta[] = {"format", "pt", NULL};
    int r = make_scratch(j, e);
    if (r)
        return r;
    struct st_out *out = calloc(j->n_t, sizeof *out);
    char *path = path_join(j->tmp, "model.safetensors");
    if (!out || !path)
        r = err_set(e, -ENOMEM, "out of memory");
    for (size_t i = 0; !r && i < j->n_t; i++) {
        struct import_tensor *t = &j->t[i];
        out[i] = (struct st_out){.name = t->name, .type = j->dtype, .ndim = t->ndim, .fill = fill, .ctx = t};
        memcpy(out[i].shape, t->shape, sizeof t->shape);
    }
    hash_init(&j->hash);
    if (!r)
        r = st_write(path, out, j->n_t, meta, e);
    if (r && j->fill_err.code && e)
        *e = j->fill_err;
    hash_final(&j->hash, &j->res.weights_hash);
    free(path);
    free(out);
    j->res.dtype = j->dtype;
    j->res.n_tensors = j->n_t;
    j->res.bytes = j->total;
    j->res.n_params = j->total / dtype_size(j->dtype);
    return r;
}
