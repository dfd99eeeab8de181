/* gguf.c - reading GGUF files.
 *
 * A gguf_file owns its map, the tables of values and tensors, and the arena with their (terminated) names; it is
 * immutable once open, so any thread may read it. Parsing is one pass with a cursor that knows the file's end: every
 * length and count is compared with the bytes that are left before it is used, so memory is bounded by a small multiple
 * of the file's size and time by its length. What always holds after a successful open: every string and array lies
 * inside the file; every tensor's bytes lie inside the data section, aligned, without overlap, and bytes == n_rows *
 * row_bytes; keys and names are unique.
 */
#include "formats/gguf.h"

#include <stdlib.h>
#include <string.h>

#include "common/arena.h"
#include "common/checked.h"
#include "common/file.h"
#include "formats/gguf_internal.h"

enum { MAX_KEY = 65535, MAX_KVS = 65536, MAX_NAME = 1024, MAX_DEPTH = 4, MAX_ALIGN = 1 << 20 };

struct gguf_file {
    struct map map;
    bool owned;
    struct arena *names;
    struct gguf_kv *kvs;
    struct gguf_tensor *tensors;
    const struct gguf_kv **kv_by_key;
    const struct gguf_tensor **tensor_by_name;
    size_t n_kvs, n_tensors;
};

struct cursor {
    const uint8_t *p;
    size_t at, len;
    struct err *e;
};

const size_t gguf_value_size[GGUF_VALUE_TYPES] = {
    [GGUF_U8] = 1,  [GGUF_I8] = 1,   [GGUF_U16] = 2, [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4,
    [GGUF_F32] = 4, [GGUF_BOOL] = 1, [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
};

uint64_t gguf_le(const uint8_t *p, size_t n)
{
    uint64_t v = 0;
    while (n--)
        v = v << 8 | p[n];
    return v;
}

static int cut(const struct cursor *c, const char *what)
{
    return err_set(c->e, -EINVAL, "the file ends inside %s at byte %zu", what, c->at);
}

static int get_int(struct cursor *c, size_t n, const char *what, uint64_t *out)
{
    if (ck_outside(c->at, n, c->len))
        return cut(c, what);
    *out = gguf_le(c->p + c->at, n);
    c->at += n;
    return 0;
}

static int get_str(struct cursor *c, const char *what, struct gguf_str *out)
{
    uint64_t n = 0;
    size_t start = c->at;
    int r = get_int(c, 8, what, &n);
    if (r)
        return r;
    if (ck_outside(c->at, n, c->len))
        return err_set(c->e, -EINVAL, "%s at byte %zu is %llu bytes long, past the end of the file", what, start,
                       (unsigned long long)n);
    *out = (struct gguf_str){(const char *)c->p + c->at, (size_t)n};
    c->at += (size_t)n;
    return 0;
}

/* A key or a tensor's name: bounded, without NUL, copied and terminated. */
static int get_name(struct gguf_file *f, struct cursor *c, const char *what, size_t max, const char **out)
{
    struct gguf_str s = {0};
    size_t start = c->at;
    int r = get_str(c, what, &s);
    if (r)
        return r;
    if (!s.n || s.n > max || memchr(s.p, 0, s.n))
        return err_set(c->e, -EINVAL, "%s at byte %zu must be 1 to %zu bytes without NUL", what, start, max);
    *out = arena_strndup(f->names, s.p, s.n);
    return *out ? 0 : err_set(c->e, -ENOMEM, "out of memory");
}

/* Moves past one value of a type (an array's count and elements too), checking that it lies inside the file. */
static int skip_value(struct cursor *c, enum gguf_value_type type, unsigned depth);

static int get_array_head(struct cursor *c, enum gguf_value_type *elem, uint64_t *n)
{
    uint64_t t = 0;
    size_t start = c->at;
    int r = get_int(c, 4, "an array", &t);
    if (!r)
        r = get_int(c, 8, "an array", n);
    if (r)
        return r;
    if (t >= GGUF_VALUE_TYPES)
        return err_set(c->e, -EINVAL, "an array at byte %zu has elements of unknown type %llu", start,
                       (unsigned long long)t);
    *elem = (enum gguf_value_type)t;
    size_t least = *elem == GGUF_STR ? 8 : *elem == GGUF_ARRAY ? 12 : gguf_value_size[*elem];
    if (*n > (c->len - c->at) / least)
        return err_set(c->e, -EINVAL, "an array at byte %zu has %llu elements, more than the file can hold", start,
                       (unsigned long long)*n);
    return 0;
}

static int skip_elements(struct cursor *c, enum gguf_value_type elem, uint64_t n, unsigned depth)
{
    if (gguf_value_size[elem]) {
        c->at += (size_t)n * gguf_value_size[elem]; /* fits: get_array_head */
        return 0;
    }
    int r = 0;
    for (uint64_t i = 0; !r && i < n; i++)
        r = skip_value(c, elem, depth);
    return r;
}

static int skip_value(struct cursor *c, enum gguf_value_type type, unsigned depth)
{
    struct gguf_str s;
    if (type == GGUF_STR)
        return get_str(c, "a string", &s);
    if (type == GGUF_ARRAY) {
        enum gguf_value_type elem = GGUF_U8;
        uint64_t n = 0;
        if (depth >= MAX_DEPTH)
            return err_set(c->e, -EINVAL, "arrays at byte %zu are nested deeper than %d", c->at, MAX_DEPTH);
        int r = get_array_head(c, &elem, &n);
        return r ? r : skip_elements(c, elem, n, depth + 1);
    }
    uint64_t v;
    return get_int(c, gguf_value_size[type], "a value", &v);
}

static int parse_kv(struct gguf_file *f, struct cursor *c, struct gguf_kv *kv)
{
    uint64_t type = 0;
    int r = get_name(f, c, "a key", MAX_KEY, &kv->key);
    if (!r)
        r = get_int(c, 4, "a value's type", &type);
    if (r)
        return r;
    if (type >= GGUF_VALUE_TYPES)
        return err_set(c->e, -EINVAL, "\"%.64s\" has unknown type %llu at byte %zu", kv->key, (unsigned long long)type,
                       c->at - 4);
    kv->type = kv->elem = (enum gguf_value_type)type;
    kv->n = 1;
    if (kv->type == GGUF_ARRAY)
        r = get_array_head(c, &kv->elem, &kv->n);
    kv->off = c->at;
    kv->raw = c->p + c->at;
    if (!r)
        r = kv->type == GGUF_ARRAY ? skip_elements(c, kv->elem, kv->n, 1) : skip_value(c, kv->type, 0);
    return r ? err_prefix(c->e, r, "\"%.64s\"", kv->key) : 0;
}

/* Dimensions are stored innermost first; shape holds them outermost first. */
static int parse_shape(struct cursor *c, struct gguf_tensor *t)
{
    uint64_t ndim = 0, d = 0;
    size_t start = c->at, rows = 1, total = 0;
    int r = get_int(c, 4, "a tensor's dimensions", &ndim);
    if (!r && (ndim < 1 || ndim > GGUF_MAX_DIMS))
        r = err_set(c->e, -EINVAL, "tensor \"%s\" has %llu dimensions at byte %zu, 1 to %d are supported", t->name,
                    (unsigned long long)ndim, start, GGUF_MAX_DIMS);
    for (uint64_t i = 0; !r && i < ndim; i++) {
        r = get_int(c, 8, "a tensor's dimensions", &d);
        if (!r && (!d || (i && ck_mul(rows, (size_t)d, &rows)) || d > SIZE_MAX / 16))
            r = err_set(c->e, -EINVAL, "tensor \"%s\": its shape is empty or overflows, at byte %zu", t->name,
                        c->at - 8);
        t->shape[ndim - 1 - i] = d;
    }
    if (r)
        return r;
    t->ndim = (uint32_t)ndim;
    t->row_len = (size_t)t->shape[ndim - 1];
    t->n_rows = rows;
    if (ck_mul(t->row_len, rows, &total) || total > SIZE_MAX / 16)
        return err_set(c->e, -EINVAL, "tensor \"%s\": its shape overflows, at byte %zu", t->name, start);
    return 0;
}

static int parse_tensor(struct gguf_file *f, struct cursor *c, struct gguf_tensor *t)
{
    uint64_t type = 0, off = 0;
    int r = get_name(f, c, "a tensor's name", MAX_NAME, &t->name);
    if (!r)
        r = parse_shape(c, t);
    size_t at = c->at;
    if (!r)
        r = get_int(c, 4, "a tensor's type", &type);
    if (!r)
        r = get_int(c, 8, "a tensor's offset", &off);
    if (r)
        return r;
    const struct gguf_block *b = gguf_block_of(type);
    if (!b->bytes)
        return err_set(c->e, -ENOTSUP,
                       "tensor \"%s\" is of type %s (%llu, byte %zu); supported are F32, F16, BF16, Q8_0, Q4_0, Q4_1, "
                       "Q5_0, Q5_1, Q4_K, Q5_K and Q6_K",
                       t->name, b->name, (unsigned long long)type, at);
    t->type = (enum gguf_tensor_type)type;
    if (t->row_len % b->len)
        return err_set(c->e, -EINVAL, "tensor \"%s\": its rows of %zu are not whole blocks of %u, at byte %zu", t->name,
                       t->row_len, b->len, at);
    t->row_bytes = t->row_len / b->len * b->bytes;
    t->bytes = t->n_rows * t->row_bytes; /* fits: parse_shape */
    t->off = (size_t)off;
    return 0;
}

static int cmp_kv(const void *a, const void *b)
{
    return strcmp((*(const struct gguf_kv *const *)a)->key, (*(const struct gguf_kv *const *)b)->key);
}

static int cmp_tensor(const void *a, const void *b)
{
    return strcmp((*(const struct gguf_tensor *const *)a)->name, (*(const struct gguf_tensor *const *)b)->name);
}

static int parse_kvs(struct gguf_file *f, struct cursor *c, uint64_t n)
{
    if (n > MAX_KVS || n > (c->len - c->at) / 13)
        return err_set(c->e, -EINVAL, "the number of keys at byte 16 is %llu, more than the file can hold or %d",
                       (unsigned long long)n, MAX_KVS);
    f->kvs = calloc((size_t)n + 1, sizeof *f->kvs);
    f->kv_by_key = calloc((size_t)n + 1, sizeof *f->kv_by_key);
    if (!f->kvs || !f->kv_by_key)
        return err_set(c->e, -ENOMEM, "out of memory");
    for (; f->n_kvs < n; f->n_kvs++) {
        int r = parse_kv(f, c, &f->kvs[f->n_kvs]);
        if (r)
            return r;
        f->kv_by_key[f->n_kvs] = &f->kvs[f->n_kvs];
    }
    qsort(f->kv_by_key, f->n_kvs, sizeof *f->kv_by_key, cmp_kv);
    for (size_t i = 1; i < f->n_kvs; i++) {
        if (!cmp_kv(&f->kv_by_key[i - 1], &f->kv_by_key[i]))
            return err_set(c->e, -EINVAL, "the key \"%.64s\" is there twice, at byte %zu", f->kv_by_key[i]->key,
                           f->kv_by_key[i]->off);
    }
    return 0;
}

static int parse_tensors(struct gguf_file *f, struct cursor *c, uint64_t n)
{
    if (n > (c->len - c->at) / 32)
        return err_set(c->e, -EINVAL, "the number of tensors at byte 8 is %llu, more than the file can hold",
                       (unsigned long long)n);
    f->tensors = calloc((size_t)n + 1, sizeof *f->tensors);
    f->tensor_by_name = calloc((size_t)n + 1, sizeof *f->tensor_by_name);
    if (!f->tensors || !f->tensor_by_name)
        return err_set(c->e, -ENOMEM, "out of memory");
    for (; f->n_tensors < n; f->n_tensors++) {
        int r = parse_tensor(f, c, &f->tensors[f->n_tensors]);
        if (r)
            return r;
        f->tensor_by_name[f->n_tensors] = &f->tensors[f->n_tensors];
    }
    qsort(f->tensor_by_name, f->n_tensors, sizeof *f->tensor_by_name, cmp_tensor);
    for (size_t i = 1; i < f->n_tensors; i++) {
        if (!cmp_tensor(&f->tensor_by_name[i - 1], &f->tensor_by_name[i]))
            return err_set(c->e, -EINVAL, "the tensor \"%s\" is there twice", f->tensor_by_name[i]->name);
    }
    return 0;
}

static int cmp_off(const void *a, const void *b)
{
    const struct gguf_tensor *x = *(const struct gguf_tensor *const *)a, *y = *(const struct gguf_tensor *const *)b;
    return x->off < y->off ? -1 : x->off > y->off;
}

/* Turns offsets into places in the file and checks them: aligned, inside, apart. */
static int place_tensors(struct gguf_file *f, struct cursor *c)
{
    uint64_t align = 32, def = 32;
    int r = gguf_get_u64(f, "general.alignment", 8, MAX_ALIGN, &def, &align, c->e);
    size_t base = 0, end = 0;
    if (!r && (align & (align - 1)))
        r = err_set(c->e, -EINVAL, "\"general.alignment\" must be a power of two, is %llu", (unsigned long long)align);
    if (r || !f->n_tensors)
        return r;
    if (ck_round_up(c->at, (size_t)align, &base) || base > c->len)
        return err_set(c->e, -EINVAL, "the file ends before its tensors at byte %zu", c->at);
    const struct gguf_tensor **order = calloc(f->n_tensors, sizeof *order);
    if (!order)
        return err_set(c->e, -ENOMEM, "out of memory");
    for (size_t i = 0; !r && i < f->n_tensors; i++) {
        struct gguf_tensor *t = &f->tensors[i];
        if (t->off % align)
            r = err_set(c->e, -EINVAL, "tensor \"%s\": offset %zu is not a multiple of %llu", t->name, t->off,
                        (unsigned long long)align);
        else if (ck_outside(t->off, t->bytes, c->len - base))
            r = err_set(c->e, -EINVAL, "tensor \"%s\": %zu bytes at offset %zu lie past the end of the file", t->name,
                        t->bytes, t->off);
        if (r)
            break;
        t->off += base;
        t->data = c->p + t->off;
        order[i] = t;
    }
    if (!r)
        qsort(order, f->n_tensors, sizeof *order, cmp_off);
    for (size_t i = 0; !r && i < f->n_tensors; i++) {
        if (order[i]->off < end)
            r = err_set(c->e, -EINVAL, "tensor \"%s\" at byte %zu overlaps the one before it", order[i]->name,
                        order[i]->off);
        end = order[i]->off + order[i]->bytes;
    }
    free(order);
    return r;
}

static int parse(struct gguf_file *f, struct err *e)
{
    struct cursor c = {f->map.data, 0, f->map.len, e};
    uint64_t magic = 0, version = 0, n_tensors = 0, n_kvs = 0;
    int r = get_int(&c, 4, "the header", &magic);
    if (!r && magic != 0x46554747u)
        r = err_set(e, -EINVAL, "not a GGUF file: it does not begin with \"GGUF\"");
    if (!r)
        r = get_int(&c, 4, "the header", &version);
    if (!r && version && !(version & 0xFFFFu))
        r = err_set(e, -ENOTSUP, "a big-endian GGUF file (version field at byte 4); only little endian is supported");
    if (!r && version != 2 && version != 3)
        r = err_set(e, -ENOTSUP, "GGUF version %llu at byte 4; 2 and 3 are supported", (unsigned long long)version);
    if (!r)
        r = get_int(&c, 8, "the header", &n_tensors);
    if (!r)
        r = get_int(&c, 8, "the header", &n_kvs);
    if (!r)
        r = parse_kvs(f, &c, n_kvs);
    if (!r)
        r = parse_tensors(f, &c, n_tensors);
    if (!r)
        r = place_tensors(f, &c);
    return r;
}

static int open_map(const char *name, struct map m, bool owned, struct gguf_file **out, struct err *e)
{
    struct gguf_file *f = calloc(1, sizeof *f);
    if (!f) {
        if (owned)
            map_close(&m);
        return err_set(e, -ENOMEM, "%s: out of memory", name);
    }
    f->map = m;
    f->owned = owned;
    f->names = arena_create(0);
    int r = f->names ? parse(f, e) : err_set(e, -ENOMEM, "out of memory");
    if (r) {
        gguf_close(f);
        return err_prefix(e, r, "%s", name);
    }
    *out = f;
    return 0;
}

int gguf_open(const char *path, struct gguf_file **out, struct err *e)
{
    struct map m = {0};
    int r = map_open(path, &m, e);
    return r ? r : open_map(path, m, true, out, e);
}

int gguf_open_mem(const char *name, const void *p, size_t n, struct gguf_file **out, struct err *e)
{
    return open_map(name, (struct map){.data = p, .len = n}, false, out, e);
}

void gguf_close(struct gguf_file *f)
{
    if (!f)
        return;
    if (f->owned)
        map_close(&f->map);
    arena_free(f->names);
    free(f->kvs);
    free(f->kv_by_key);
    free(f->tensors);
    free(f->tensor_by_name);
    free(f);
}

size_t gguf_kv_count(const struct gguf_file *f)
{
    return f->n_kvs;
}

const struct gguf_kv *gguf_kv_at(const struct gguf_file *f, size_t i)
{
    return i < f->n_kvs ? &f->kvs[i] : NULL;
}

const struct gguf_kv *gguf_kv_find(const struct gguf_file *f, const char *key)
{
    struct gguf_kv want = {.key = key};
    const struct gguf_kv *w = &want;
    const struct gguf_kv **hit = bsearch(&w, f->kv_by_key, f->n_kvs, sizeof *f->kv_by_key, cmp_kv);
    return hit ? *hit : NULL;
}

size_t gguf_tensor_count(const struct gguf_file *f)
{
    return f->n_tensors;
}

const struct gguf_tensor *gguf_tensor_at(const struct gguf_file *f, size_t i)
{
    return i < f->n_tensors ? &f->tensors[i] : NULL;
}

const struct gguf_tensor *gguf_tensor_find(const struct gguf_file *f, const char *name)
{
    struct gguf_tensor want = {.name = name};
    const struct gguf_tensor *w = &want;
    const struct gguf_tensor **hit =
        bsearch(&w, f->tensor_by_name, f->n_tensors, sizeof *f->tensor_by_name, cmp_tensor);
    return hit ? *hit : NULL;
}

void gguf_forget(const struct gguf_file *f, const struct gguf_tensor *t)
{
    if (f->owned)
        map_forget(&f->map, t->off, t->bytes);
}
