/* pet.c - a parsed module: opening, adding parts, finishing, asking.
 *
 * Any thread; once pet_finish has returned 0 a struct pet never changes, so threads share it without a lock. It owns
 * one block with every tensor's bytes, the table of parts and an arena with their names. Files are read whole instead
 * of being mapped: a module is small, and a mapped file that somebody cuts would kill the server with a signal.
 *
 * What always holds after pet_finish: parts are in strcmp order of their modules, which are unique; 1 <= rank <=
 * max_rank; the sizes of A and B are exactly their shapes times their type; each tensor's hash is of its bytes. Values
 * that are not finite are noted, not refused, so that `inspect` can still show such a file; pet_check, pet_load and
 * pet_write refuse it.
 *
 * The content hash is over a canonical text of kind, modules, ranks, shapes, scale bits, function, types and tensor
 * hashes; not over names of files, lineage or layout. So a PEFT directory and its .pet have the same one.
 */
#include "pet/internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/checked.h"
#include "common/file.h"
#include "common/num.h"
#include "common/utf8.h"

/* What a file may hold beside its tensors: headers and manifests. */
enum { FILE_SLACK = 128 << 20 };

const char *pet_kind_name(enum pet_kind k)
{
    return k == PET_RECOVERY ? "recovery" : "lora";
}

const char *pet_fn_name(enum kern_fn fn)
{
    return fn == KERN_FN_GELU ? "gelu" : fn == KERN_FN_GELU_TANH ? "gelu_tanh" : "none";
}

int pet_fn_parse(const char *s, enum kern_fn *out)
{
    static const enum kern_fn all[] = {KERN_FN_NONE, KERN_FN_GELU, KERN_FN_GELU_TANH};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (!strcmp(s, pet_fn_name(all[i]))) {
            *out = all[i];
            return 0;
        }
    }
    return -EINVAL;
}

struct pet_limits pet_limits_of(const struct pet_limits *lim)
{
    struct pet_limits l = lim ? *lim : (struct pet_limits){0};
    if (!l.max_bytes)
        l.max_bytes = PET_MAX_BYTES;
    if (!l.max_rank)
        l.max_rank = PET_MAX_RANK;
    return l;
}

struct pet *pet_new(enum pet_kind kind)
{
    struct pet *p = calloc(1, sizeof *p);
    if (p && !(p->names = arena_create(0))) {
        free(p);
        p = NULL;
    }
    if (p)
        p->info.kind = kind;
    return p;
}

void pet_close(struct pet *p)
{
    if (!p)
        return;
    arena_free(p->names);
    free(p->bytes);
    free(p->parts);
    free(p);
}

const struct pet_info *pet_info(const struct pet *p)
{
    return &p->info;
}

void pet_part(const struct pet *p, uint32_t i, struct pet_part *out)
{
    const struct part *q = &p->parts[i];
    *out =
        (struct pet_part){.module = q->module, .rank = q->rank, .k = q->k, .n = q->n, .scale = q->scale, .fn = q->fn};
}

void pet_set_base(struct pet *p, const char *base)
{
    size_t n = strlen(base), max = sizeof p->info.base - 1;
    if (n > max)
        n = max - utf8_tail(base, max);
    memcpy(p->info.base, base, n);
    p->info.base[n] = 0;
}

size_t pet_layer_len(const char *module)
{
    for (const char *s = module; *s;) {
        size_t digits = strspn(s, "0123456789"), len = strcspn(s, ".");
        if (digits && digits == len)
            return (size_t)(s - module) + len;
        s += len + (s[len] == '.');
    }
    return strlen(module);
}

/* ---- adding ---- */

static int check_module(const char *module, size_t len, struct err *e)
{
    if (!len || len > PET_MAX_MODULE)
        return err_set(e, -EINVAL, "module name \"%.*s\" must have 1 to %u characters", (int)(len > 200 ? 200 : len),
                       module, PET_MAX_MODULE);
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)module[i];
        if (c <= 0x20 || c >= 0x7F || c == '"' || c == '\\')
            return err_set(e, -EINVAL, "a module name holds byte 0x%02x at place %zu: only plain characters are taken",
                           c, i);
    }
    return 0;
}

static int check_tensor(const char *module, size_t len, char role, const struct pet_tensor *t, uint32_t rows,
                        uint32_t cols, struct err *e)
{
    size_t want = 0;
    if (t->type != DT_F32 && t->type != DT_F16 && t->type != DT_BF16)
        return err_set(e, -EINVAL, "module \"%.*s\", tensor %c: type %s; F32, F16 and BF16 are taken", (int)len, module,
                       role, dtype_name(t->type));
    if (!rows || !cols || ck_mul(rows, cols, &want) || ck_mul(want, dtype_size(t->type), &want) || want != t->bytes)
        return err_set(e, -EINVAL, "module \"%.*s\", tensor %c: %zu bytes do not make a %u x %u matrix of %s", (int)len,
                       module, role, t->bytes, rows, cols, dtype_name(t->type));
    return 0;
}

static int reserve_part(struct pet *p, struct err *e)
{
    if (p->n_parts < p->cap_parts)
        return 0;
    if (p->n_parts >= PET_MAX_PARTS)
        return err_set(e, -E2BIG, "more than %u linears", PET_MAX_PARTS);
    size_t cap = p->cap_parts ? p->cap_parts * 2 : 64;
    struct part *q = realloc(p->parts, cap * sizeof *q);
    if (!q)
        return err_set(e, -ENOMEM, "out of memory for %zu linears", cap);
    p->parts = q;
    p->cap_parts = cap;
    return 0;
}

int pet_add(struct pet *p, const char *module, size_t len, const struct part *part, const struct pet_limits *lim,
            struct err *e)
{
    struct part q = *part;
    int r = check_module(module, len, e);
    if (r)
        return r;
    if (q.rank < 1 || q.rank > lim->max_rank)
        return err_set(e, -EINVAL, "module \"%.*s\": rank %u is outside 1 to %u", (int)len, module, q.rank,
                       lim->max_rank);
    r = check_tensor(module, len, 'A', &q.t[0], q.rank, q.k, e);
    if (!r)
        r = check_tensor(module, len, 'B', &q.t[1], q.n, q.rank, e);
    size_t total = 0;
    if (!r &&
        (ck_add(p->info.bytes, q.t[0].bytes, &total) || ck_add(total, q.t[1].bytes, &total) || total > lim->max_bytes))
        r = err_set(e, -E2BIG, "module \"%.*s\": the tensors up to here are more than the limit of %zu bytes", (int)len,
                    module, lim->max_bytes);
    if (!r)
        r = reserve_part(p, e);
    if (!r && !(q.module = arena_strndup(p->names, module, len)))
        r = err_set(e, -ENOMEM, "out of memory for a name");
    if (r)
        return r;
    p->info.bytes = total;
    q.seq = (uint32_t)p->n_parts;
    p->parts[p->n_parts++] = q;
    return 0;
}

int pet_add_pair(struct pet *p, const char *module, size_t len, const struct st_tensor *a, const struct st_tensor *b,
                 float scale, enum kern_fn fn, const struct pet_limits *lim, struct err *e)
{
    const struct st_tensor *t[2] = {a, b};
    for (int i = 0; i < 2; i++) {
        if (t[i]->ndim != 2)
            return err_set(e, -EINVAL, "tensor \"%s\" has %u dimensions, a matrix has two", t[i]->name, t[i]->ndim);
        if (t[i]->shape[0] > UINT32_MAX || t[i]->shape[1] > UINT32_MAX)
            return err_set(e, -EINVAL, "tensor \"%s\": shape [%llu, %llu] is too large", t[i]->name,
                           (unsigned long long)t[i]->shape[0], (unsigned long long)t[i]->shape[1]);
    }
    if (a->shape[0] != b->shape[1])
        return err_set(e, -EINVAL, "tensor \"%s\" has rank %llu (its rows), \"%s\" has rank %llu (its columns)",
                       a->name, (unsigned long long)a->shape[0], b->name, (unsigned long long)b->shape[1]);
    struct part q = {.rank = (uint32_t)a->shape[0],
                     .k = (uint32_t)a->shape[1],
                     .n = (uint32_t)b->shape[0],
                     .scale = scale,
                     .fn = fn};
    for (int i = 0; i < 2; i++)
        q.t[i] = (struct pet_tensor){.type = t[i]->type, .data = t[i]->data, .bytes = t[i]->bytes, .bad = PET_NO_BAD};
    return pet_add(p, module, len, &q, lim, e);
}

/* ---- finishing ---- */

/* An exponent of all ones is an infinity or not a number. */
uint64_t pet_first_bad(const struct pet_tensor *t)
{
    size_t n = t->bytes / dtype_size(t->type);
    if (t->type == DT_F32) {
        for (size_t i = 0; i < n; i++) {
            uint32_t u;
            memcpy(&u, t->data + 4 * i, 4);
            if ((u & 0x7F800000u) == 0x7F800000u)
                return i;
        }
        return PET_NO_BAD;
    }
    uint16_t mask = t->type == DT_F16 ? 0x7C00u : 0x7F80u;
    for (size_t i = 0; i < n; i++) {
        uint16_t u;
        memcpy(&u, t->data + 2 * i, 2);
        if ((u & mask) == mask)
            return i;
    }
    return PET_NO_BAD;
}

int pet_finite(const struct pet *p, struct err *e)
{
    for (size_t i = 0; i < p->n_parts; i++) {
        const struct part *q = &p->parts[i];
        if (!isfinite(q->scale))
            return err_set(e, -EINVAL, "module \"%s\": its scale is not a finite number", q->module);
        for (int j = 0; j < 2; j++) {
            if (q->t[j].bad != PET_NO_BAD)
                return err_set(e, -EINVAL, "module \"%s\", tensor %c: element %llu is not a finite number", q->module,
                               "AB"[j], (unsigned long long)q -> t[j].bad);
        }
    }
    return 0;
}

static int cmp_parts(const void *a, const void *b)
{
    return strcmp(((const struct part *)a)->module, ((const struct part *)b)->module);
}

static void hash_u32(struct hash_state *s, uint32_t v)
{
    uint8_t b[4] = {(uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16), (uint8_t)(v >> 24)};
    hash_update(s, b, sizeof b);
}

static void hash_str(struct hash_state *s, const char *text)
{
    hash_u32(s, (uint32_t)strlen(text));
    hash_update(s, text, strlen(text));
}

static void content_hash(const struct pet *p, struct hash *out)
{
    struct hash_state s;
    hash_init(&s);
    hash_str(&s, "cpet module 1");
    hash_str(&s, pet_kind_name(p->info.kind));
    hash_u32(&s, (uint32_t)p->n_parts);
    for (size_t i = 0; i < p->n_parts; i++) {
        const struct part *q = &p->parts[i];
        hash_str(&s, q->module);
        hash_u32(&s, q->rank);
        hash_u32(&s, q->k);
        hash_u32(&s, q->n);
        hash_u32(&s, f32_bits(q->scale));
        hash_str(&s, pet_fn_name(q->fn));
        for (int j = 0; j < 2; j++) {
            hash_str(&s, dtype_name(q->t[j].type));
            hash_update(&s, q->t[j].hash.b, HASH_BYTES);
        }
    }
    hash_final(&s, out);
}

int pet_finish(struct pet *p, bool hashed, struct err *e)
{
    if (!p->n_parts)
        return err_set(e, -EINVAL, "it holds no low-rank pair of tensors");
    qsort(p->parts, p->n_parts, sizeof *p->parts, cmp_parts);
    for (size_t i = 0; i < p->n_parts; i++) {
        struct part *q = &p->parts[i];
        if (i && !strcmp(q->module, q[-1].module))
            return err_set(e, -EINVAL, "module \"%s\" is there twice", q->module);
        for (int j = 0; j < 2; j++) {
            if (!hashed)
                hash_of(q->t[j].data, q->t[j].bytes, &q->t[j].hash);
            q->t[j].bad = q->t[j].data ? pet_first_bad(&q->t[j]) : PET_NO_BAD;
        }
        if (q->rank > p->info.max_rank)
            p->info.max_rank = q->rank;
    }
    p->info.n_sites = (uint32_t)p->n_parts;
    content_hash(p, &p->info.hash);
    return 0;
}

int pet_compact(struct pet *p, size_t file_bytes, struct err *e)
{
    enum { SPARE = 1 << 20 };
    if (file_bytes < p->info.bytes || file_bytes - p->info.bytes <= SPARE)
        return 0;
    char *bytes = malloc(p->info.bytes), *at = bytes;
    if (!bytes)
        return err_set(e, -ENOMEM, "out of memory for %zu bytes", p->info.bytes);
    for (size_t i = 0; i < 2 * p->n_parts; i++) {
        struct pet_tensor *t = &p->parts[i / 2].t[i % 2];
        memcpy(at, t->data, t->bytes);
        t->data = (const uint8_t *)at;
        at += t->bytes;
    }
    free(p->bytes);
    p->bytes = bytes;
    return 0;
}

/* ---- opening ---- */

/* torch.save's zip, or a bare pickle; a safetensors header has its brace at byte 8, whatever its length's bytes are. */
static bool is_pickle(const char *p, size_t n)
{
    return n >= 2 && (!memcmp(p, "PK", 2) || (uint8_t)p[0] == 0x80) && !(n > 8 && p[8] == '{');
}

size_t pet_file_cap(const struct pet_limits *lim)
{
    size_t cap = 0;
    return ck_add(lim->max_bytes, FILE_SLACK, &cap) ? SIZE_MAX : cap;
}

static int open_file(const char *path, const struct pet_limits *lim, struct pet **out, struct err *e)
{
    size_t n = 0;
    char *bytes = NULL;
    int r = file_read(path, pet_file_cap(lim), &bytes, &n, e);
    if (r)
        return r;
    if (pet_is_container(bytes, n)) {
        r = pet_read_container(bytes, n, path, lim, out, e);
    } else if (is_pickle(bytes, n)) {
        r = err_set(e, -EINVAL, "%s: a pickle, which can carry code and is never read; save it as safetensors", path);
    } else {
        r = pet_read_recovery(bytes, n, path, lim, out, e);
        if (!r)
            bytes = NULL;
    }
    free(bytes);
    return r;
}

int pet_open(const char *path, const struct pet_limits *lim, struct pet **out, struct err *e)
{
    struct pet_limits l = pet_limits_of(lim);
    struct stat st;
    if (stat(path, &st))
        return err_set(e, -errno, "%s: %s", path, strerror(errno));
    return S_ISDIR(st.st_mode) ? pet_read_peft(path, &l, out, e) : open_file(path, &l, out, e);
}

int pet_parse(const void *data, size_t len, const char *name, const struct pet_limits *lim, struct pet **out,
              struct err *e)
{
    struct pet_limits l = pet_limits_of(lim);
    if (!pet_is_container(data, len))
        return err_set(e, -EINVAL, "%s: not a .pet file (its first 8 bytes are not the mark of one)", name);
    return pet_read_container(data, len, name, &l, out, e);
}
