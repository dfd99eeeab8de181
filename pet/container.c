/* container.c - reading a .pet file: head, manifest, one zstd frame a layer.
 *
 * Any thread; the bytes read from stay the caller's and are not needed afterwards. The order is: the head against the
 * file's length, the manifest against its hash, every size in the manifest against the limits and against the others,
 * every frame's compressed bytes against its hash and the size it states; only then is one block of exactly the stated
 * size allocated and filled. So a file can make us allocate at most lim->max_bytes and a manifest of 32 MiB, and every
 * byte of the file is covered by a check whose failure says where.
 *
 * Frames follow each other without holes up to the file's last byte; tensors fill their frame without holes; each
 * layer's tensors come as pairs, A before B. Decoding needs no window buffer, because it writes straight into the
 * block; frames that would ask other decoders for one of more than 128 MiB are refused all the same.
 */
#include "pet/container.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "common/checked.h"
#include "formats/json.h"
#include "pet/internal.h"

struct layer {
    const char *name;
    size_t off, size, raw; /* in the file; in the block's terms its place is `at` */
    size_t at;
    struct hash hash; /* of the compressed bytes */
    size_t part0, n_parts;
};

struct reader {
    const uint8_t *data;
    size_t n;
    const struct pet_limits *lim;
    json_t *root;
    struct pet *p;
    struct layer *layers;
    size_t n_layers;
    ZSTD_DCtx *zstd;
};

bool pet_is_container(const void *data, size_t n)
{
    return n >= 8 && !memcmp(data, PET_MAGIC, 8);
}

/* ---- head and manifest ---- */

static int read_head(struct reader *r, size_t *manifest_bytes, struct err *e)
{
    struct pet_head h;
    if (r->n < sizeof h)
        return err_set(e, -EINVAL, "cut at byte %zu, inside the head of %zu bytes", r->n, sizeof h);
    memcpy(&h, r->data, sizeof h);
    uint64_t version = pet_get_le(h.version, 4), manifest = pet_get_le(h.manifest_bytes, 8),
             file = pet_get_le(h.file_bytes, 8);
    if (version != PET_VERSION)
        return err_set(e, -EINVAL, "version %llu at offset 8; version %u is known", (unsigned long long)version,
                       PET_VERSION);
    if (pet_get_le(h.flags, 4))
        return err_set(e, -EINVAL, "the flags at offset 12 are not zero");
    if (manifest > PET_MAX_MANIFEST)
        return err_set(e, -E2BIG, "a manifest of %llu bytes (offset 16) is more than the limit of %zu",
                       (unsigned long long)manifest, PET_MAX_MANIFEST);
    if (file != r->n)
        return err_set(e, -EINVAL, "the head (offset 24) says %llu bytes, the file has %zu: %s",
                       (unsigned long long)file, r->n, file > r->n ? "it was cut" : "there are bytes after its end");
    if (manifest > r->n - sizeof h)
        return err_set(e, -EINVAL, "the manifest of %llu bytes goes past the end of the file",
                       (unsigned long long)manifest);
    struct hash got, want;
    memcpy(want.b, h.manifest_hash, HASH_BYTES);
    hash_of(r->data + sizeof h, manifest, &got);
    if (!hash_equal(&got, &want))
        return err_set(e, -EINVAL, "the manifest at offset %zu is damaged: its hash is not the one at offset 32",
                       sizeof h);
    *manifest_bytes = manifest;
    return 0;
}

/* Refuses members that this version does not know: they may change the meaning. */
static int only(const json_t *obj, const char *const *keys, size_t n, struct err *e)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)obj, key, v)
    {
        size_t i = 0;
        while (i < n && strcmp(key, keys[i]))
            i++;
        if (i == n)
            return err_set(e, -EINVAL, "\"%.64s\" is not known", key);
    }
    return 0;
}

static int get_hash(const json_t *obj, const char *key, struct hash *out, struct err *e)
{
    const char *s = NULL;
    int r = json_get_str(obj, key, true, &s, e);
    if (!r && hash_parse(s, out))
        r = err_param(e, -EINVAL, key, "\"%s\" must be 64 hexadecimal digits", key);
    return r;
}

static int get_size(const json_t *obj, const char *key, size_t *out, struct err *e)
{
    uint64_t v = 0;
    int r = json_get_u64(obj, key, 0, INT64_MAX, NULL, &v, e);
    if (!r)
        *out = v;
    return r;
}

static int read_lineage(struct reader *r, struct err *e)
{
    static const char *const keys[] = {"architecture", "tokenizer", "weights"};
    json_t *obj = NULL;
    const char *arch = NULL;
    struct pet_lineage *l = &r->p->info.lineage;
    int rc = json_get_object(r->root, "lineage", false, &obj, e);
    if (rc || !obj)
        return rc;
    rc = only(obj, keys, 3, e);
    if (!rc)
        rc = json_get_str(obj, "architecture", true, &arch, e);
    if (!rc && (!*arch || strlen(arch) >= sizeof l->architecture))
        rc = err_set(e, -EINVAL, "\"architecture\" must have 1 to %zu characters", sizeof l->architecture - 1);
    if (!rc)
        rc = get_hash(obj, "tokenizer", &l->tokenizer, e);
    if (!rc)
        rc = get_hash(obj, "weights", &l->weights, e);
    if (rc)
        return err_prefix(e, rc, "\"lineage\"");
    strcpy(l->architecture, arch);
    r->p->info.verified = true;
    return 0;
}

static int read_top(struct reader *r, json_t **layers, size_t *bytes, struct err *e)
{
    static const char *const keys[] = {"kind", "base", "hash", "bytes", "lineage", "layers"};
    const char *kind = NULL, *base = NULL;
    int rc = only(r->root, keys, sizeof keys / sizeof *keys, e);
    if (!rc)
        rc = json_get_str(r->root, "kind", true, &kind, e);
    if (!rc && strcmp(kind, "lora") && strcmp(kind, "recovery"))
        rc = err_set(e, -EINVAL, "modules of kind \"%.32s\" are not supported, only lora and recovery are", kind);
    if (!rc)
        rc = json_get_str(r->root, "base", false, &base, e);
    if (!rc)
        rc = get_size(r->root, "bytes", bytes, e);
    if (!rc)
        rc = json_get_array(r->root, "layers", true, layers, e);
    if (!rc && json_array_size(*layers) > PET_MAX_LAYERS)
        rc = err_set(e, -E2BIG, "more than %u layers", PET_MAX_LAYERS);
    if (!rc && *bytes > r->lim->max_bytes)
        rc = err_set(e, -E2BIG, "%zu bytes of tensors are more than the limit of %zu", *bytes, r->lim->max_bytes);
    if (rc)
        return rc;
    r->p->info.kind = strcmp(kind, "lora") ? PET_RECOVERY : PET_LORA;
    pet_set_base(r->p, base ? base : "");
    return read_lineage(r, e);
}

/* ---- layers and tensors of the manifest ---- */

struct entry {
    const char *module;
    uint32_t rank, rows, cols;
    float scale;
    enum kern_fn fn;
    struct pet_tensor t;
};

static int read_shape(const json_t *obj, struct entry *t, struct err *e)
{
    json_t *shape = NULL;
    int r = json_get_array(obj, "shape", true, &shape, e);
    const json_t *a = json_array_get(shape, 0), *b = json_array_get(shape, 1);
    if (r)
        return r;
    if (json_array_size(shape) != 2 || !json_is_integer(a) || !json_is_integer(b) || json_integer_value(a) < 1 ||
        json_integer_value(b) < 1 || json_integer_value(a) > UINT32_MAX || json_integer_value(b) > UINT32_MAX)
        return err_set(e, -EINVAL, "\"shape\" must be two integers from 1 to 4294967295");
    t->rows = (uint32_t)json_integer_value(a);
    t->cols = (uint32_t)json_integer_value(b);
    if (ck_mul(t->rows, t->cols, &t->t.bytes) || ck_mul(t->t.bytes, dtype_size(t->t.type), &t->t.bytes))
        return err_set(e, -EINVAL, "\"shape\" [%u, %u] overflows", t->rows, t->cols);
    return 0;
}

/* One tensor; `at` is where in its frame it has to be. */
static int read_entry(const json_t *obj, const char *role_want, size_t at, struct entry *t, struct err *e)
{
    static const char *const keys[] = {"module", "role", "rank", "scale", "fn", "offset", "shape", "type", "hash"};
    const char *role = NULL, *fn = NULL, *type = NULL;
    double scale = 0;
    size_t off = 0;
    int r = json_is_object(obj) ? only(obj, keys, sizeof keys / sizeof *keys, e)
                                : err_set(e, -EINVAL, "a tensor must be an object");
    if (!r)
        r = json_get_str(obj, "module", true, &t->module, e);
    if (!r)
        r = json_get_str(obj, "role", true, &role, e);
    if (!r)
        r = json_get_u32(obj, "rank", 0, UINT32_MAX, NULL, &t->rank, e);
    if (!r)
        r = json_get_f64(obj, "scale", -INFINITY, INFINITY, NULL, &scale, e);
    if (!r)
        r = json_get_str(obj, "fn", true, &fn, e);
    if (!r)
        r = get_size(obj, "offset", &off, e);
    if (!r)
        r = json_get_str(obj, "type", true, &type, e);
    if (!r && dtype_parse(type, &t->t.type))
        r = err_set(e, -EINVAL, "\"type\" \"%.16s\" is not known", type);
    if (!r)
        r = read_shape(obj, t, e);
    if (!r)
        r = get_hash(obj, "hash", &t->t.hash, e);
    if (!r && pet_fn_parse(fn, &t->fn))
        r = err_set(e, -EINVAL, "\"fn\" \"%.16s\" is not known", fn);
    if (!r && strcmp(role, role_want))
        r = err_set(e, -EINVAL, "\"role\" is \"%.16s\", \"%s\" has to come here", role, role_want);
    if (!r && off != at)
        r = err_set(e, -EINVAL, "\"offset\" is %zu, %zu has to come here (no holes, no overlap)", off, at);
    t->scale = (float)scale;
    if (!r && !isfinite(t->scale))
        r = err_set(e, -EINVAL, "\"scale\" is not a finite 32-bit number");
    return r;
}

/* Two tensors into one part; *at moves past them. */
static int read_pair(struct reader *r, const struct layer *l, json_t *tensors, size_t i, size_t *at, struct err *e)
{
    struct entry t[2] = {0};
    for (size_t j = 0; j < 2; j++) {
        int rc = read_entry(json_array_get(tensors, i + j), j ? "B" : "A", *at, &t[j], e);
        if (rc)
            return err_prefix(e, rc, "tensor %zu", i + j);
        if (ck_add(*at, t[j].t.bytes, at))
            return err_set(e, -EINVAL, "tensor %zu: the sizes overflow", i + j);
    }
    const struct entry *a = &t[0], *b = &t[1];
    size_t len = pet_layer_len(a->module);
    if (strcmp(a->module, b->module) || a->rank != b->rank || a->scale != b->scale || a->fn != b->fn)
        return err_set(e, -EINVAL, "tensors %zu and %zu are not the two halves of one pair", i, i + 1);
    if (a->rows != a->rank || b->cols != b->rank)
        return err_set(e, -EINVAL, "module \"%.64s\": shapes [%u, %u] and [%u, %u] are not of rank %u", a->module,
                       a->rows, a->cols, b->rows, b->cols, a->rank);
    if (strlen(l->name) != len || strncmp(l->name, a->module, len))
        return err_set(e, -EINVAL, "module \"%.64s\" does not belong to this layer", a->module);
    if (r->p->info.kind == PET_LORA && a->fn != KERN_FN_NONE)
        return err_set(e, -EINVAL, "module \"%.64s\": a LoRA has no function between its halves", a->module);
    struct part q = {.rank = a->rank, .k = a->cols, .n = b->rows, .scale = a->scale, .fn = a->fn, .t = {a->t, b->t}};
    return pet_add(r->p, a->module, strlen(a->module), &q, r->lim, e);
}

static int read_tensors(struct reader *r, struct layer *l, json_t *tensors, struct err *e)
{
    size_t n = json_array_size(tensors), at = 0;
    if (!n || n % 2)
        return err_set(e, -EINVAL, "\"tensors\" must hold one pair or more, A before B");
    l->part0 = r->p->n_parts;
    l->n_parts = n / 2;
    for (size_t i = 0; i < n; i += 2) {
        int rc = read_pair(r, l, tensors, i, &at, e);
        if (rc)
            return rc;
    }
    if (at != l->raw)
        return err_set(e, -EINVAL, "its tensors take %zu bytes, \"raw\" says %zu", at, l->raw);
    return 0;
}

/* off: where the layer's frame has to begin. */
static int read_layer(struct reader *r, json_t *obj, size_t off, struct layer *l, struct err *e)
{
    static const char *const keys[] = {"name", "offset", "size", "raw", "hash", "tensors"};
    json_t *tensors = NULL;
    int rc = json_is_object(obj) ? only(obj, keys, sizeof keys / sizeof *keys, e)
                                 : err_set(e, -EINVAL, "a layer must be an object");
    if (!rc)
        rc = json_get_str(obj, "name", true, &l->name, e);
    if (!rc)
        rc = get_size(obj, "offset", &l->off, e);
    if (!rc)
        rc = get_size(obj, "size", &l->size, e);
    if (!rc)
        rc = get_size(obj, "raw", &l->raw, e);
    if (!rc)
        rc = get_hash(obj, "hash", &l->hash, e);
    if (!rc)
        rc = json_get_array(obj, "tensors", true, &tensors, e);
    if (!rc && l->off != off)
        rc = err_set(e, -EINVAL, "its frame is said to be at offset %zu, %zu has to come here (no holes, no overlap)",
                     l->off, off);
    if (!rc && ck_outside(l->off, l->size, r->n))
        rc = err_set(e, -EINVAL, "its frame of %zu bytes at offset %zu goes past the end of the file", l->size, l->off);
    return rc ? rc : read_tensors(r, l, tensors, e);
}

static int read_layers(struct reader *r, json_t *layers, size_t off, size_t bytes, struct err *e)
{
    size_t at = 0;
    r->n_layers = json_array_size(layers);
    r->layers = calloc(r->n_layers + 1, sizeof *r->layers);
    if (!r->layers)
        return err_set(e, -ENOMEM, "out of memory");
    for (size_t i = 0; i < r->n_layers; i++) {
        struct layer *l = &r->layers[i];
        int rc = read_layer(r, json_array_get(layers, i), off, l, e);
        if (rc)
            return err_prefix(e, rc, "layer %zu (\"%.64s\")", i, l->name ? l->name : "");
        l->at = at;
        at += l->raw; /* bounded by pet_add's count */
        off += l->size;
    }
    if (at != bytes)
        return err_set(e, -EINVAL, "the layers take %zu bytes, \"bytes\" says %zu", at, bytes);
    if (off != r->n)
        return err_set(e, -EINVAL, "the last frame ends at offset %zu, the file at %zu", off, r->n);
    return 0;
}

/* ---- frames ---- */

/* The window that a frame asks a streaming decoder for, as a power of two; RFC 8878, section 3.1.1.1. */
static unsigned window_log(const uint8_t *frame, size_t n)
{
    if (n < 6 || (frame[4] & 0x20)) /* a single segment: its window is its content, which is limited */
        return 0;
    return 10u + (frame[5] >> 3) + ((frame[5] & 7) != 0);
}

static int check_frame(const struct reader *r, const struct layer *l, struct err *e)
{
    const uint8_t *src = r->data + l->off;
    struct hash got;
    hash_of(src, l->size, &got);
    if (!hash_equal(&got, &l->hash))
        return err_set(e, -EINVAL, "its frame of %zu bytes is damaged (hash)", l->size);
    size_t one = ZSTD_findFrameCompressedSize(src, l->size);
    if (ZSTD_isError(one) || one != l->size)
        return err_set(e, -EINVAL, "its %zu bytes are not exactly one zstd frame", l->size);
    if (ZSTD_getFrameContentSize(src, l->size) != l->raw)
        return err_set(e, -EINVAL, "its zstd frame does not state the %zu bytes that the manifest says", l->raw);
    if (window_log(src, l->size) > PET_MAX_WINDOW_LOG)
        return err_set(e, -EINVAL, "its zstd frame asks for a window of more than %d bits", PET_MAX_WINDOW_LOG);
    return 0;
}

static int decode_frame(struct reader *r, const struct layer *l, struct err *e)
{
    uint8_t *dst = (uint8_t *)r->p->bytes + l->at;
    size_t got = ZSTD_decompressDCtx(r->zstd, dst, l->raw, r->data + l->off, l->size);
    if (ZSTD_isError(got))
        return err_set(e, -EINVAL, "its frame does not decode: %s", ZSTD_getErrorName(got));
    if (got != l->raw)
        return err_set(e, -EINVAL, "its frame holds %zu bytes, the manifest says %zu", got, l->raw);
    for (size_t i = l->part0; i < l->part0 + l->n_parts; i++) {
        struct part *q = &r->p->parts[i];
        for (int j = 0; j < 2; j++) {
            struct hash h;
            q->t[j].data = dst;
            hash_of(dst, q->t[j].bytes, &h);
            if (!hash_equal(&h, &q->t[j].hash))
                return err_set(e, -EINVAL, "module \"%s\", tensor %c is damaged (hash)", q->module, "AB"[j]);
            dst += q->t[j].bytes;
        }
    }
    return 0;
}

static int read_frames(struct reader *r, size_t bytes, struct err *e)
{
    for (size_t i = 0; i < r->n_layers; i++) {
        const struct layer *l = &r->layers[i];
        int rc = check_frame(r, l, e);
        if (rc)
            return err_prefix(e, rc, "layer \"%.64s\" at offset %zu", l->name, l->off);
    }
    r->p->bytes = malloc(bytes + 1);
    r->zstd = ZSTD_createDCtx();
    if (!r->p->bytes || !r->zstd)
        return err_set(e, -ENOMEM, "out of memory for %zu bytes", bytes);
    for (size_t i = 0; i < r->n_layers; i++) {
        const struct layer *l = &r->layers[i];
        int rc = decode_frame(r, l, e);
        if (rc)
            return err_prefix(e, rc, "layer \"%.64s\" at offset %zu", l->name, l->off);
    }
    return 0;
}

/* ---- the whole ---- */

static int read_manifest(struct reader *r, size_t *bytes, struct err *e)
{
    static const struct json_limits limits = {.depth = 8, .values = 2500000};
    size_t manifest = 0;
    json_t *layers = NULL;
    int rc = read_head(r, &manifest, e);
    if (rc)
        return rc;
    const char *text = (const char *)r->data + sizeof(struct pet_head);
    rc = json_parse(text, manifest, &limits, &r->root, e);
    if (!rc)
        rc = read_top(r, &layers, bytes, e);
    if (!rc)
        rc = read_layers(r, layers, sizeof(struct pet_head) + manifest, *bytes, e);
    return rc ? err_prefix(e, rc, "manifest") : 0;
}

static int check_content(struct reader *r, struct err *e)
{
    struct hash want;
    int rc = get_hash(r->root, "hash", &want, e);
    if (!rc && !hash_equal(&want, &r->p->info.hash))
        rc = err_set(e, -EINVAL, "\"hash\" is not the hash of the contents");
    return rc ? err_prefix(e, rc, "manifest") : 0;
}

int pet_read_container(const void *data, size_t n, const char *name, const struct pet_limits *lim, struct pet **out,
                       struct err *e)
{
    struct reader r = {.data = data, .n = n, .lim = lim, .p = pet_new(PET_LORA)};
    size_t bytes = 0;
    int rc = r.p ? read_manifest(&r, &bytes, e) : err_set(e, -ENOMEM, "out of memory");
    if (!rc)
        rc = read_frames(&r, bytes, e);
    if (!rc)
        rc = pet_finish(r.p, true, e);
    if (!rc)
        rc = check_content(&r, e);
    ZSTD_freeDCtx(r.zstd);
    free(r.layers);
    json_decref(r.root);
    if (rc) {
        pet_close(r.p);
        return err_prefix(e, rc, "%s", name);
    }
    *out = r.p;
    return 0;
}
