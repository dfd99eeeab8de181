/* safetensors.c - reading safetensors files and directories of shards.
 *
 * An st_file owns its maps, the table of tensors and the arena that holds their names and the first file's metadata; it
 * is immutable once open, so any thread may read it. What always holds after a successful open: every tensor's bytes
 * lie inside its map, one after the other without holes up to the file's last byte; bytes == product(shape) * size of
 * the type; names are unique over all shards; `by_name` lists the tensors in strcmp order. The header is bounded (100
 * MB, two million values, depth 4) before JSON is parsed, and dropped once the table is made. The table is searched by
 * bisection.
 */
#include "formats/safetensors.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/arena.h"
#include "common/checked.h"
#include "common/file.h"
#include "formats/json.h"

enum { HEADER_VALUES = 2000000, MAX_SHARDS = 4096, INDEX_CAP = 64 << 20 };

struct shard {
    struct map map;
    bool owned;
};

struct st_file {
    struct arena *names;
    struct shard *shards;
    size_t n_shards;
    struct st_tensor *tensors;
    uint32_t *shard_of; /* of tensors[i] */
    const struct st_tensor **by_name;
    size_t count, cap;
    const char **meta; /* key, value, ... */
    size_t n_meta;
};

static struct st_file *file_new(void)
{
    struct st_file *f = calloc(1, sizeof *f);
    if (f && !(f->names = arena_create(0))) {
        free(f);
        f = NULL;
    }
    return f;
}

void st_close(struct st_file *f)
{
    if (!f)
        return;
    for (size_t i = 0; i < f->n_shards; i++) {
        if (f->shards[i].owned)
            map_close(&f->shards[i].map);
    }
    free(f->shards);
    free(f->tensors);
    free(f->shard_of);
    free(f->by_name);
    free(f->meta);
    arena_free(f->names);
    free(f);
}

/* Room for so many more tensors. One is always to spare, so that the table is there even of a file without tensors. */
static int reserve(struct st_file *f, size_t more, struct err *e)
{
    size_t cap = f->count + more + 1;
    if (cap > f->cap) {
        struct st_tensor *t = realloc(f->tensors, cap * sizeof *t);
        if (t)
            f->tensors = t;
        uint32_t *s = realloc(f->shard_of, cap * sizeof *s);
        if (s)
            f->shard_of = s;
        if (!t || !s)
            return err_set(e, -ENOMEM, "out of memory for %zu tensors", cap);
        f->cap = cap;
    }
    return 0;
}

static int parse_shape(const char *name, const json_t *v, struct st_tensor *t, struct err *e)
{
    size_t n = json_array_size(v);
    if (!json_is_array(v))
        return err_set(e, -EINVAL, "tensor \"%s\": \"shape\" must be an array", name);
    if (n > ST_MAX_DIMS)
        return err_set(e, -EINVAL, "tensor \"%s\": %zu dimensions, at most %d are supported", name, n, ST_MAX_DIMS);
    for (size_t i = 0; i < n; i++) {
        const json_t *d = json_array_get(v, i);
        if (!json_is_integer(d) || json_integer_value(d) < 0)
            return err_set(e, -EINVAL, "tensor \"%s\": shape[%zu] must be an integer of 0 or more", name, i);
        t->shape[i] = (uint64_t)json_integer_value(d);
    }
    t->ndim = (uint32_t)n;
    return 0;
}

/* size of the type times the shape, checked. A zero anywhere makes zero, but a product that does not fit is refused
 * still. */
static int tensor_bytes(enum dtype type, const uint64_t *shape, uint32_t ndim, size_t *out)
{
    size_t n = dtype_size(type);
    bool zero = false;
    for (uint32_t i = 0; i < ndim; i++) {
        zero |= !shape[i];
        if (shape[i] && ck_mul(n, shape[i], &n))
            return -EOVERFLOW;
    }
    *out = zero ? 0 : n;
    return 0;
}

/* One header entry. data_base: where the tensors' bytes begin in the file; data_len: how many there are. */
static int parse_entry(const char *name, const json_t *v, size_t data_base, size_t data_len, struct st_tensor *t,
                       struct err *e)
{
    if (!json_is_object(v))
        return err_set(e, -EINVAL, "tensor \"%s\": its entry must be an object", name);
    const char *type = json_string_value(json_object_get(v, "dtype"));
    if (!type)
        return err_set(e, -EINVAL, "tensor \"%s\": \"dtype\" must be a string", name);
    if (dtype_parse(type, &t->type))
        return err_set(e, -EINVAL, "tensor \"%s\": unknown dtype \"%.32s\"", name, type);
    int r = parse_shape(name, json_object_get(v, "shape"), t, e);
    if (r)
        return r;
    const json_t *o = json_object_get(v, "data_offsets"), *b = json_array_get(o, 0), *d = json_array_get(o, 1);
    if (json_array_size(o) != 2 || !json_is_integer(b) || !json_is_integer(d) || json_integer_value(b) < 0)
        return err_set(e, -EINVAL, "tensor \"%s\": \"data_offsets\" must be two integers of 0 or more", name);
    if (json_object_size(v) != 3)
        return err_set(e, -EINVAL, "tensor \"%s\": its entry holds more than dtype, shape and data_offsets", name);
    size_t begin = (size_t)json_integer_value(b), want = 0;
    if (json_integer_value(d) < json_integer_value(b))
        return err_set(e, -EINVAL, "tensor \"%s\": data_offsets end before they begin (byte %zu)", name, begin);
    size_t len = (size_t)json_integer_value(d) - begin;
    if (ck_outside(begin, len, data_len))
        return err_set(e, -EINVAL, "tensor \"%s\": bytes %zu to %zu lie past the end of the %zu bytes of data", name,
                       begin, begin + len, data_len);
    if (tensor_bytes(t->type, t->shape, t->ndim, &want))
        return err_set(e, -EINVAL, "tensor \"%s\": its shape overflows", name);
    if (want != len)
        return err_set(e, -EINVAL, "tensor \"%s\": shape and dtype make %zu bytes, data_offsets %zu (at byte %zu)",
                       name, want, len, data_base + begin);
    t->off = data_base + begin;
    t->bytes = len;
    return 0;
}

static int by_offset(const void *a, const void *b)
{
    const struct st_tensor *x = a, *y = b;
    if (x->off != y->off)
        return x->off < y->off ? -1 : 1;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* The tensors of one file must cover its data exactly, one after the other. */
static int check_cover(struct st_tensor *t, size_t n, size_t data_base, size_t total, struct err *e)
{
    if (n > 1)
        qsort(t, n, sizeof *t, by_offset);
    size_t at = data_base;
    for (size_t i = 0; i < n; i++) {
        if (t[i].off != at)
            return err_set(e, -EINVAL, "tensor \"%s\" begins at byte %zu, where %zu was expected: tensors %s",
                           t[i].name, t[i].off, at, t[i].off < at ? "overlap" : "leave a hole");
        at += t[i].bytes;
    }
    if (at != total)
        return err_set(e, -EINVAL, "the tensors end at byte %zu, the file at %zu", at, total);
    return 0;
}

static int keep_meta(struct st_file *f, json_t *m, struct err *e)
{
    const char *key;
    json_t *v;
    if (!json_is_object(m))
        return err_set(e, -EINVAL, "\"__metadata__\" must be an object");
    json_object_foreach(m, key, v)
    {
        if (!json_is_string(v))
            return err_set(e, -EINVAL, "\"__metadata__\": the value of \"%s\" must be a string", key);
    }
    if (f->meta)
        return 0; /* the first file's are kept */
    f->meta = calloc(2 * json_object_size(m) + 1, sizeof *f->meta);
    if (!f->meta)
        return err_set(e, -ENOMEM, "out of memory");
    json_object_foreach(m, key, v)
    {
        const char *k = arena_strndup(f->names, key, strlen(key));
        const char *s = arena_strndup(f->names, json_string_value(v), json_string_length(v));
        if (!k || !s)
            return err_set(e, -ENOMEM, "out of memory");
        f->meta[f->n_meta++] = k;
        f->meta[f->n_meta++] = s;
    }
    return 0;
}

static int add_entries(struct st_file *f, json_t *header, const struct map *m, size_t data_base, struct err *e)
{
    const char *key;
    json_t *v;
    size_t first = f->count;
    int r = reserve(f, json_object_size(header), e);
    if (r)
        return r;
    json_object_foreach(header, key, v)
    {
        if (!strcmp(key, "__metadata__")) {
            r = keep_meta(f, v, e);
        } else {
            struct st_tensor t = {0};
            r = parse_entry(key, v, data_base, m->len - data_base, &t, e);
            t.name = r ? NULL : arena_strndup(f->names, key, strlen(key));
            if (!r && !t.name)
                r = err_set(e, -ENOMEM, "out of memory");
            if (!r) {
                t.data = m->data + t.off;
                f->tensors[f->count++] = t;
            }
        }
        if (r)
            return r;
    }
    return check_cover(f->tensors + first, f->count - first, data_base, m->len, e);
}

/* Reads one mapped file's header and adds its tensors; the map becomes shard n_shards, which it owns even on failure.
 */
static int add_map(struct st_file *f, struct map m, bool owned, struct err *e)
{
    struct shard *s = realloc(f->shards, (f->n_shards + 1) * sizeof *s);
    if (!s) {
        if (owned)
            map_close(&m);
        return err_set(e, -ENOMEM, "out of memory");
    }
    f->shards = s;
    s[f->n_shards++] = (struct shard){m, owned};
    if (m.len < 8)
        return err_set(e, -EINVAL, "%zu bytes: too short for a safetensors file", m.len);
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--)
        n = n << 8 | m.data[i];
    if (n > ST_MAX_HEADER)
        return err_set(e, -EINVAL, "the header length at byte 0 is %llu, more than the limit of %u",
                       (unsigned long long)n, ST_MAX_HEADER);
    if (ck_outside(8, (size_t)n, m.len))
        return err_set(e, -EINVAL, "the header length at byte 0 is %llu, past the end of the file (%zu bytes)",
                       (unsigned long long)n, m.len);
    if (!n || m.data[8] != '{')
        return err_set(e, -EINVAL, "the header at byte 8 must begin with '{'");
    json_t *h = NULL;
    struct json_limits lim = {.depth = 4, .values = HEADER_VALUES};
    int r = json_parse((const char *)m.data + 8, (size_t)n, &lim, &h, e);
    if (r)
        return err_prefix(e, r, "the header at byte 8");
    size_t before = f->count;
    r = add_entries(f, h, &m, 8 + (size_t)n, e);
    json_decref(h);
    for (size_t i = before; i < f->count; i++)
        f->shard_of[i] = (uint32_t)(f->n_shards - 1);
    return r;
}

static int add_path(struct st_file *f, const char *path, struct err *e)
{
    struct map m = {0};
    int r = map_open(path, &m, e);
    if (r)
        return r;
    r = add_map(f, m, true, e);
    return r ? err_prefix(e, r, "%s", path) : 0;
}

static int name_order(const void *a, const void *b)
{
    return strcmp((*(const struct st_tensor *const *)a)->name, (*(const struct st_tensor *const *)b)->name);
}

/* Makes by_name, once all tensors are there. Names within a file are unique by the JSON parser; across shards by this.
 */
static int index_names(struct st_file *f, struct err *e)
{
    f->by_name = calloc(f->count + 1, sizeof(struct st_tensor *));
    if (!f->by_name)
        return err_set(e, -ENOMEM, "out of memory");
    for (size_t i = 0; i < f->count; i++)
        f->by_name[i] = &f->tensors[i];
    qsort(f->by_name, f->count, sizeof *f->by_name, name_order);
    for (size_t i = 1; i < f->count; i++) {
        if (!strcmp(f->by_name[i - 1]->name, f->by_name[i]->name))
            return err_set(e, -EINVAL, "tensor \"%s\" is in two files", f->by_name[i]->name);
    }
    return 0;
}

/* Ends an open: the table on success, an error and nothing left otherwise. */
static int finish(struct st_file *f, int r, struct st_file **out, struct err *e)
{
    if (!r)
        r = index_names(f, e);
    if (r)
        st_close(f);
    else
        *out = f;
    return r;
}

int st_open(const char *path, struct st_file **out, struct err *e)
{
    struct st_file *f = file_new();
    if (!f)
        return err_set(e, -ENOMEM, "%s: out of memory", path);
    return finish(f, add_path(f, path, e), out, e);
}

int st_open_mem(const char *name, const void *p, size_t n, struct st_file **out, struct err *e)
{
    struct st_file *f = file_new();
    if (!f)
        return err_set(e, -ENOMEM, "%s: out of memory", name);
    int r = add_map(f, (struct map){.data = p, .len = n}, false, e);
    if (r)
        err_prefix(e, r, "%s", name);
    return finish(f, r, out, e);
}

/* A shard's name: one path component, no dot file, so that an index cannot point outside its directory. */
static bool shard_name_ok(const char *s)
{
    static const char tail[] = ".safetensors";
    size_t n = strlen(s);
    return s[0] != '.' && !strchr(s, '/') && n > sizeof tail - 1 && n < 256 && !strcmp(s + n - (sizeof tail - 1), tail);
}

/* The distinct shard names of weight_map, in order of first use, as keys of a new object. */
static int shard_names(json_t *map, json_t **out, struct err *e)
{
    json_t *set = json_object(), *v;
    const char *key;
    int r = set ? 0 : err_set(e, -ENOMEM, "out of memory");
    json_object_foreach(map, key, v)
    {
        const char *s = json_string_value(v);
        if (r)
            break;
        if (!s || !shard_name_ok(s))
            r = err_set(e, -EINVAL,
                        "\"weight_map\": the file of \"%s\" must be the name of a .safetensors file beside the index",
                        key);
        else if (json_object_set_new(set, s, json_true()))
            r = err_set(e, -ENOMEM, "out of memory");
    }
    if (!r && (!json_object_size(set) || json_object_size(set) > MAX_SHARDS))
        r = err_set(e, -EINVAL, "\"weight_map\" names %zu files, 1 to %d are supported", json_object_size(set),
                    MAX_SHARDS);
    if (r)
        json_decref(set);
    else
        *out = set;
    return r;
}

static int add_shards(struct st_file *f, const char *dir, const char *index, struct err *e)
{
    json_t *root = NULL, *map = NULL, *set = NULL, *v;
    const char *name;
    int r = json_read_file(index, INDEX_CAP, &root, e);
    if (r)
        return r;
    r = json_get_object(root, "weight_map", true, &map, e);
    if (!r)
        r = shard_names(map, &set, e);
    if (r)
        err_prefix(e, r, "%s", index);
    json_object_foreach(set, name, v)
    {
        if (r)
            break;
        char *path = path_join(dir, name);
        r = path ? add_path(f, path, e) : err_set(e, -ENOMEM, "out of memory");
        free(path);
    }
    if (!r)
        r = index_names(f, e);
    json_object_foreach(map, name, v)
    {
        if (!r && !st_find(f, name))
            r = err_set(e, -EINVAL, "%s: tensor \"%s\" is not in its file %s", index, name, json_string_value(v));
    }
    json_decref(set);
    json_decref(root);
    return r;
}

int st_open_dir(const char *dir, struct st_file **out, struct err *e)
{
    char *one = path_join(dir, "model.safetensors"), *index = path_join(dir, "model.safetensors.index.json");
    int r = 0;
    struct stat st;
    struct st_file *f = NULL;
    if (!one || !index) {
        r = err_set(e, -ENOMEM, "%s: out of memory", dir);
    } else if (!stat(one, &st)) {
        r = st_open(one, &f, e);
    } else if (!stat(index, &st)) {
        f = file_new();
        r = f ? add_shards(f, dir, index, e) : err_set(e, -ENOMEM, "%s: out of memory", dir);
    } else {
        r = err_set(e, -ENOENT, "%s: neither model.safetensors nor model.safetensors.index.json is there", dir);
    }
    if (r)
        st_close(f);
    else
        *out = f;
    free(one);
    free(index);
    return r;
}

size_t st_count(const struct st_file *f)
{
    return f->count;
}

const struct st_tensor *st_at(const struct st_file *f, size_t i)
{
    return i < f->count ? &f->tensors[i] : NULL;
}

const struct st_tensor *st_find(const struct st_file *f, const char *name)
{
    size_t lo = 0, hi = f->count;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = strcmp(name, f->by_name[mid]->name);
        if (!c)
            return f->by_name[mid];
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

const char *st_meta(const struct st_file *f, const char *key)
{
    for (size_t i = 0; i < f->n_meta; i += 2) {
        if (!strcmp(f->meta[i], key))
            return f->meta[i + 1];
    }
    return NULL;
}

void st_forget(const struct st_file *f, const struct st_tensor *t)
{
    const struct shard *s = &f->shards[f->shard_of[t - f->tensors]];
    if (s->owned)
        map_forget(&s->map, t->off, t->bytes);
}
