/* manifest.c - the head and the manifest of a .pet file, which say where everything is and what it must hash to.
 *
 * Any thread; the text stays the caller's and is not needed afterwards. The order is: the head against the file's
 * length, the manifest against its hash, every size in it against the limits and against the others. So a file can
 * make us allocate at most a manifest of 32 MiB and its values before anything in it has been found right.
 *
 * Frames follow each other without holes up to the file's last byte; tensors fill their frame without holes; each
 * layer's tensors come as pairs, A before B. The layers' names lie in m->root, everything else is copied.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "pet/container.h"

bool pet_is_container(const void *data, size_t n)
{
    return n >= 8 && !memcmp(data, PET_MAGIC, 8);
}

/* ---- the head ---- */

int pet_head_read(const void *head, size_t file_bytes, size_t *manifest_bytes, struct err *e)
{
    struct pet_head h;
    if (file_bytes < sizeof h)
        return err_set(e, -EINVAL, "cut at byte %zu, inside the head of %zu bytes", file_bytes, sizeof h);
    memcpy(&h, head, sizeof h);
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
    if (file != file_bytes)
        return err_set(e, -EINVAL, "the head (offset 24) says %llu bytes, the file has %zu: %s",
                       (unsigned long long)file, file_bytes,
                       file > file_bytes ? "it was cut" : "there are bytes after its end");
    if (manifest > file_bytes - sizeof h)
        return err_set(e, -EINVAL, "the manifest of %llu bytes goes past the end of the file",
                       (unsigned long long)manifest);
    *manifest_bytes = manifest;
    return 0;
}

static int check_manifest_hash(const void *head, const void *text, size_t n, struct err *e)
{
    struct hash got, want;
    memcpy(want.b, (const uint8_t *)head + offsetof(struct pet_head, manifest_hash), HASH_BYTES);
    hash_of(text, n, &got);
    if (!hash_equal(&got, &want))
        return err_set(e, -EINVAL, "the manifest at offset %zu is damaged: its hash is not the one at offset 32",
                       sizeof(struct pet_head));
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

static int read_lineage(struct pet_manifest *m, struct err *e)
{
    static const char *const keys[] = {"architecture", "tokenizer", "weights"};
    json_t *obj = NULL;
    const char *arch = NULL;
    struct pet_lineage *l = &m->p->info.lineage;
    int rc = json_get_object(m->root, "lineage", false, &obj, e);
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
    m->p->info.verified = true;
    return 0;
}

static int read_top(struct pet_manifest *m, json_t **layers, struct err *e)
{
    static const char *const keys[] = {"kind", "base", "hash", "bytes", "lineage", "layers"};
    const char *kind = NULL, *base = NULL;
    int rc = only(m->root, keys, sizeof keys / sizeof *keys, e);
    if (!rc)
        rc = json_get_str(m->root, "kind", true, &kind, e);
    if (!rc && strcmp(kind, "lora") && strcmp(kind, "recovery"))
        rc = err_set(e, -EINVAL, "modules of kind \"%.32s\" are not supported, only lora and recovery are", kind);
    if (!rc)
        rc = json_get_str(m->root, "base", false, &base, e);
    if (!rc)
        rc = get_size(m->root, "bytes", &m->bytes, e);
    if (!rc)
        rc = json_get_array(m->root, "layers", true, layers, e);
    if (!rc && json_array_size(*layers) > PET_MAX_LAYERS)
        rc = err_set(e, -E2BIG, "more than %u layers", PET_MAX_LAYERS);
    if (!rc && m->bytes > m->lim->max_bytes)
        rc = err_set(e, -E2BIG, "%zu bytes of tensors are more than the limit of %zu", m->bytes, m->lim->max_bytes);
    if (rc)
        return rc;
    m->p->info.kind = strcmp(kind, "lora") ? PET_RECOVERY : PET_LORA;
    pet_set_base(m->p, base ? base : "");
    return read_lineage(m, e);
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
static int read_pair(struct pet_manifest *m, const struct pet_layer *l, json_t *tensors, size_t i, size_t *at,
                     struct err *e)
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
    if (m->p->info.kind == PET_LORA && a->fn != KERN_FN_NONE)
        return err_set(e, -EINVAL, "module \"%.64s\": a LoRA has no function between its halves", a->module);
    struct part q = {.rank = a->rank, .k = a->cols, .n = b->rows, .scale = a->scale, .fn = a->fn, .t = {a->t, b->t}};
    return pet_add(m->p, a->module, strlen(a->module), &q, m->lim, e);
}

static int read_tensors(struct pet_manifest *m, struct pet_layer *l, json_t *tensors, struct err *e)
{
    size_t n = json_array_size(tensors), at = 0;
    if (!n || n % 2)
        return err_set(e, -EINVAL, "\"tensors\" must hold one pair or more, A before B");
    l->part0 = m->p->n_parts;
    l->n_parts = n / 2;
    for (size_t i = 0; i < n; i += 2) {
        int rc = read_pair(m, l, tensors, i, &at, e);
        if (rc)
            return rc;
    }
    if (at != l->raw)
        return err_set(e, -EINVAL, "its tensors take %zu bytes, \"raw\" says %zu", at, l->raw);
    return 0;
}

/* off: where the layer's frame has to begin. */
static int read_layer(struct pet_manifest *m, json_t *obj, size_t off, struct pet_layer *l, struct err *e)
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
    if (!rc && ck_outside(l->off, l->size, m->file_bytes))
        rc = err_set(e, -EINVAL, "its frame of %zu bytes at offset %zu goes past the end of the file", l->size, l->off);
    return rc ? rc : read_tensors(m, l, tensors, e);
}

static int read_layers(struct pet_manifest *m, json_t *layers, size_t off, struct err *e)
{
    size_t at = 0;
    m->n_layers = json_array_size(layers);
    m->layers = calloc(m->n_layers + 1, sizeof *m->layers);
    if (!m->layers)
        return err_set(e, -ENOMEM, "out of memory");
    for (size_t i = 0; i < m->n_layers; i++) {
        struct pet_layer *l = &m->layers[i];
        int rc = read_layer(m, json_array_get(layers, i), off, l, e);
        if (rc)
            return err_prefix(e, rc, "layer %zu (\"%.64s\")", i, l->name ? l->name : "");
        l->at = at;
        at += l->raw; /* bounded by pet_add's count */
        off += l->size;
    }
    if (at != m->bytes)
        return err_set(e, -EINVAL, "the layers take %zu bytes, \"bytes\" says %zu", at, m->bytes);
    if (off != m->file_bytes)
        return err_set(e, -EINVAL, "the last frame ends at offset %zu, the file at %zu", off, m->file_bytes);
    return 0;
}

/* ---- the whole ---- */

int pet_manifest_read(struct pet_manifest *m, const void *head, const char *text, size_t n, struct err *e)
{
    static const struct json_limits limits = {.depth = 8, .values = 2500000};
    json_t *layers = NULL;
    int rc = check_manifest_hash(head, text, n, e);
    if (rc)
        return rc;
    rc = json_parse(text, n, &limits, &m->root, e);
    if (!rc)
        rc = read_top(m, &layers, e);
    if (!rc)
        rc = read_layers(m, layers, sizeof(struct pet_head) + n, e);
    return rc ? err_prefix(e, rc, "manifest") : 0;
}

int pet_manifest_content(const struct pet_manifest *m, struct err *e)
{
    struct hash want;
    int rc = get_hash(m->root, "hash", &want, e);
    if (!rc && !hash_equal(&want, &m->p->info.hash))
        rc = err_set(e, -EINVAL, "\"hash\" is not the hash of the contents");
    return rc ? err_prefix(e, rc, "manifest") : 0;
}

void pet_manifest_free(struct pet_manifest *m)
{
    free(m->layers);
    free(m->order);
    json_decref(m->root);
    pet_close(m->p);
    *m = (struct pet_manifest){0};
}
