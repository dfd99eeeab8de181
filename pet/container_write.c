/* container_write.c - writing a .pet file.
 *
 * Runs on the caller's thread; a module in, one file out, by file_write_atomic's way. The output is a function of the
 * module and the lineage alone. Layers go in the order of the model (by name, numbers by value), each in one zstd
 * frame with its content size and checksum; the frames are made first, because the manifest before them says how long
 * they are.
 */
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "common/buf.h"
#include "common/file.h"
#include "formats/json.h"
#include "pet/container.h"
#include "pet/internal.h"

enum { LEVEL = 6 };

struct frame {
    const struct part *parts;
    size_t n_parts, name_len, raw, size;
    uint8_t *data;
};

struct writer {
    const struct pet *p;
    struct frame *frames;
    size_t n_frames;
};

/* Same first part of the name: the shorter number first, then by its digits; else by bytes. */
static int cmp_frames(const void *a, const void *b)
{
    const struct frame *x = a, *y = b;
    const char *s = x->parts->module, *t = y->parts->module;
    size_t n = 0, dx = x->name_len, dy = y->name_len;
    while (dx && s[dx - 1] != '.')
        dx--;
    while (dy && t[dy - 1] != '.')
        dy--;
    n = dx < dy ? dx : dy;
    int c = memcmp(s, t, n);
    if (c || dx != dy)
        return c ? c : dx < dy ? -1 : 1;
    if (x->name_len != y->name_len)
        return x->name_len < y->name_len ? -1 : 1;
    return memcmp(s, t, x->name_len);
}

/* Parts are sorted by module, so a layer's parts stand together: "." sorts before the digits. */
static int find_frames(struct writer *w, struct err *e)
{
    const struct pet *p = w->p;
    w->frames = calloc(p->n_parts, sizeof *w->frames);
    if (!w->frames)
        return err_set(e, -ENOMEM, "out of memory");
    for (size_t i = 0; i < p->n_parts; i++) {
        const struct part *q = &p->parts[i];
        size_t len = pet_layer_len(q->module);
        struct frame *f = w->n_frames ? &w->frames[w->n_frames - 1] : NULL;
        if (!f || f->name_len != len || memcmp(f->parts->module, q->module, len)) {
            f = &w->frames[w->n_frames++];
            *f = (struct frame){.parts = q, .name_len = len};
        }
        f->n_parts++;
        f->raw += q->t[0].bytes + q->t[1].bytes;
    }
    if (w->n_frames > PET_MAX_LAYERS)
        return err_set(e, -E2BIG, "more than %u layers", PET_MAX_LAYERS);
    qsort(w->frames, w->n_frames, sizeof *w->frames, cmp_frames);
    return 0;
}

static int compress_frame(ZSTD_CCtx *z, struct frame *f, struct err *e)
{
    size_t cap = ZSTD_compressBound(f->raw), at = 0;
    uint8_t *raw = malloc(f->raw);
    f->data = malloc(cap);
    int r = raw && f->data ? 0 : err_set(e, -ENOMEM, "out of memory for a layer of %zu bytes", f->raw);
    for (size_t i = 0; !r && i < f->n_parts; i++) {
        for (int j = 0; j < 2; j++) {
            memcpy(raw + at, f->parts[i].t[j].data, f->parts[i].t[j].bytes);
            at += f->parts[i].t[j].bytes;
        }
    }
    if (!r) {
        f->size = ZSTD_compress2(z, f->data, cap, raw, f->raw);
        if (ZSTD_isError(f->size))
            r = err_set(e, -EIO, "zstd: %s", ZSTD_getErrorName(f->size));
    }
    free(raw);
    return r;
}

static int compress_frames(struct writer *w, struct err *e)
{
    ZSTD_CCtx *z = ZSTD_createCCtx();
    int r = z ? 0 : err_set(e, -ENOMEM, "out of memory");
    if (!r) {
        ZSTD_CCtx_setParameter(z, ZSTD_c_compressionLevel, LEVEL);
        ZSTD_CCtx_setParameter(z, ZSTD_c_checksumFlag, 1);
    }
    for (size_t i = 0; !r && i < w->n_frames; i++)
        r = compress_frame(z, &w->frames[i], e);
    ZSTD_freeCCtx(z);
    return r;
}

/* ---- the manifest ---- */

static json_t *hash_json(const struct hash *h)
{
    char hex[HASH_HEX];
    hash_hex(h, hex);
    return json_string(hex);
}

static json_t *tensor_json(const struct part *q, int j, size_t off)
{
    const struct pet_tensor *t = &q->t[j];
    return json_pack("{ss ss sI sf ss sI s[II] ss so}", "module", q->module, "role", j ? "B" : "A", "rank",
                     (json_int_t)q->rank, "scale", (double)q->scale, "fn", pet_fn_name(q->fn), "offset",
                     (json_int_t)off, "shape", (json_int_t)(j ? q->n : q->rank), (json_int_t)(j ? q->rank : q->k),
                     "type", dtype_name(t->type), "hash", hash_json(&t->hash));
}

static json_t *layer_json(const struct frame *f, size_t file_off)
{
    struct hash h;
    json_t *tensors = json_array();
    size_t off = 0;
    int r = 0;
    for (size_t i = 0; i < f->n_parts; i++) {
        for (int j = 0; j < 2; j++) {
            r |= json_array_append_new(tensors, tensor_json(&f->parts[i], j, off));
            off += f->parts[i].t[j].bytes;
        }
    }
    hash_of(f->data, f->size, &h);
    json_t *o =
        json_pack("{ss% sI sI sI so so}", "name", f->parts->module, f->name_len, "offset", (json_int_t)file_off, "size",
                  (json_int_t)f->size, "raw", (json_int_t)f->raw, "hash", hash_json(&h), "tensors", tensors);
    if (r) {
        json_decref(o);
        o = NULL;
    }
    return o;
}

static json_t *manifest_json(const struct writer *w, const struct pet_lineage *l, size_t off)
{
    json_t *layers = json_array();
    int r = 0;
    for (size_t i = 0; i < w->n_frames; i++) {
        r |= json_array_append_new(layers, layer_json(&w->frames[i], off));
        off += w->frames[i].size;
    }
    const struct pet_info *info = &w->p->info;
    json_t *o = json_pack("{ss ss so sI}", "kind", pet_kind_name(info->kind), "base", info->base, "hash",
                          hash_json(&info->hash), "bytes", (json_int_t)info->bytes);
    if (l) {
        json_t *lineage = json_pack("{ss so so}", "architecture", l->architecture, "tokenizer",
                                    hash_json(&l->tokenizer), "weights", hash_json(&l->weights));
        r |= json_object_set_new(o, "lineage", lineage);
    }
    r |= json_object_set_new(o, "layers", layers);
    if (r) {
        json_decref(o);
        o = NULL;
    }
    return o;
}

/* The frames' offsets are in the manifest, and its own length moves them: write, measure, and write again until the
 * length is the one assumed. It only grows with the digits, so that takes a few rounds. */
static int make_manifest(const struct writer *w, const struct pet_lineage *l, char **out, size_t *n, struct err *e)
{
    size_t assumed = 0;
    for (;;) {
        json_t *m = manifest_json(w, l, sizeof(struct pet_head) + assumed);
        char *text = m ? json_dumps(m, JSON_COMPACT | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(17)) : NULL;
        json_decref(m);
        if (!text)
            return err_set(e, -ENOMEM, "out of memory for the manifest");
        size_t len = strlen(text);
        if (len > PET_MAX_MANIFEST) {
            free(text);
            return err_set(e, -E2BIG, "the manifest would have %zu bytes, more than %zu", len, PET_MAX_MANIFEST);
        }
        if (len <= assumed) {
            /* a digit fewer than assumed: spaces are JSON too */
            char *padded = realloc(text, assumed + 1);
            if (!padded) {
                free(text);
                return err_set(e, -ENOMEM, "out of memory for the manifest");
            }
            memset(padded + len, ' ', assumed - len);
            *out = padded;
            *n = assumed;
            return 0;
        }
        assumed = len;
        free(text);
    }
}

static int write_file(const struct writer *w, const char *manifest, size_t n, const char *path, struct err *e)
{
    struct pet_head h = {0};
    struct hash hash;
    struct file_out *o = NULL;
    uint64_t total = sizeof h + n;
    for (size_t i = 0; i < w->n_frames; i++)
        total += w->frames[i].size;
    memcpy(h.magic, PET_MAGIC, sizeof h.magic);
    pet_put_le(h.version, 4, PET_VERSION);
    pet_put_le(h.manifest_bytes, 8, n);
    pet_put_le(h.file_bytes, 8, total);
    hash_of(manifest, n, &hash);
    memcpy(h.manifest_hash, hash.b, sizeof h.manifest_hash);
    int r = file_out_open(path, 0644, &o, e);
    if (r)
        return r;
    r = file_out_write(o, &h, sizeof h, e);
    if (!r)
        r = file_out_write(o, manifest, n, e);
    for (size_t i = 0; !r && i < w->n_frames; i++)
        r = file_out_write(o, w->frames[i].data, w->frames[i].size, e);
    if (!r)
        return file_out_commit(o, e);
    file_out_abort(o);
    return r;
}

static int check_lineage(const struct pet_lineage *l, struct err *e)
{
    if (l && (!*l->architecture || !memchr(l->architecture, 0, sizeof l->architecture)))
        return err_set(e, -EINVAL, "a lineage names an architecture of 1 to %zu characters",
                       sizeof l->architecture - 1);
    return 0;
}

int pet_write(const struct pet *p, const struct pet_lineage *lineage, const char *path, struct err *e)
{
    struct writer w = {.p = p};
    char *manifest = NULL;
    size_t n = 0;
    int r = pet_finite(p, e);
    if (!r)
        r = check_lineage(lineage, e);
    if (!r)
        r = find_frames(&w, e);
    if (!r)
        r = compress_frames(&w, e);
    if (!r)
        r = make_manifest(&w, lineage, &manifest, &n, e);
    if (r)
        err_prefix(e, r, "%s", path);
    else
        r = write_file(&w, manifest, n, path, e);
    for (size_t i = 0; i < w.n_frames; i++)
        free(w.frames[i].data);
    free(w.frames);
    free(manifest);
    return r;
}
