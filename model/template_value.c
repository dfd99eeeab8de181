/* template_value.c - the values of a rendering: making them, truth, equality, order, lookup and slices, as Python has
 * it.
 *
 * Used by the thread that renders; everything lives in the rendering's arena and is dropped with it. What always holds:
 * strings are valid UTF-8 with their code points counted, so that indices are by code point; lists and dicts are not
 * changed once a template can see them; work that grows with a value's size is charged to the rendering's steps.
 */
#include "model/template_internal.h"

#include <math.h>
#include <string.h>

#include "common/checked.h"
#include "common/hash.h"
#include "common/utf8.h"

const struct tstr *tstr_make(struct arena *a, const char *p, size_t len)
{
    struct tstr *s = arena_alloc(a, sizeof *s);
    char *q = s ? arena_strndup(a, p, len) : NULL;
    if (!q)
        return NULL;
    s->p = q;
    s->len = len;
    s->chars = 0;
    for (size_t i = 0; i < len; i++)
        s->chars += ((unsigned char)p[i] & 0xC0) != 0x80;
    return s;
}

bool tstr_is(const struct tstr *s, const char *lit)
{
    return strlen(lit) == s->len && !memcmp(s->p, lit, s->len);
}

bool tstr_eq(const struct tstr *a, const struct tstr *b)
{
    return a->len == b->len && !memcmp(a->p, b->p, a->len);
}

size_t tstr_offset(const struct tstr *s, size_t chr)
{
    if (s->chars == s->len)
        return chr;
    size_t i = 0;
    for (size_t k = 0; i < s->len; i++)
        if (((unsigned char)s->p[i] & 0xC0) != 0x80 && k++ == chr)
            break;
    return i;
}

int str_make(struct tctx *c, const char *p, size_t len, struct tv *out)
{
    int rc = charge(c, len / 16);
    if (rc)
        return rc;
    const struct tstr *s = tstr_make(c->arena, p, len);
    if (!s)
        return rnomem(c);
    *out = tv_of_str(s);
    return 0;
}

int buf_check(struct tctx *c, struct buf *b)
{
    if (!b->failed)
        return 0;
    if (b->error == -ENOMEM)
        return err_set(c->e, -ENOMEM, "chat template: out of memory");
    return err_set(c->e, -E2BIG, "chat template: a text grew beyond %zu bytes", c->max_output);
}

int str_of_buf(struct tctx *c, struct buf *b, struct tv *out)
{
    int rc = buf_check(c, b);
    if (!rc)
        rc = str_make(c, b->data ? b->data : "", b->len, out);
    buf_free(b);
    return rc;
}

struct tlist *list_make(struct tctx *c, size_t n)
{
    size_t bytes;
    struct tlist *l = arena_calloc(c->arena, 1, sizeof *l);
    if (!l || ck_mul(n, sizeof *l->v, &bytes) || !(l->v = arena_alloc(c->arena, bytes))) {
        rnomem(c);
        return NULL;
    }
    l->n = n;
    return l;
}

struct tv list_get(const struct tlist *l, size_t i)
{
    return l->v ? l->v[i] : tv_int(l->start + (int64_t)i * l->step);
}

/* ---- dicts ---- */

struct tdict *dict_make(struct tctx *c, size_t cap)
{
    size_t bytes;
    struct tdict *d = arena_calloc(c->arena, 1, sizeof *d);
    if (!d || ck_mul(cap, sizeof *d->e, &bytes) || !(d->e = arena_alloc(c->arena, bytes))) {
        rnomem(c);
        return NULL;
    }
    d->cap = cap;
    return d;
}

bool tv_hashable(struct tv v)
{
    if (v.kind == TV_TUPLE) {
        for (size_t i = 0; i < v.l->n; i++)
            if (v.l->v[i].kind == TV_TUPLE || !tv_hashable(v.l->v[i]))
                return false;
        return true;
    }
    return v.kind != TV_LIST && v.kind != TV_DICT && v.kind != TV_VIEW && v.kind != TV_GEN;
}

static uint32_t hash_bytes(const void *p, size_t n)
{
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ ((const unsigned char *)p)[i]) * 16777619u;
    return h ^ h >> 15;
}

static uint32_t tv_hash(struct tv k)
{
    double f;
    if (k.kind == TV_STR)
        return hash_bytes(k.s->p, k.s->len);
    if (tv_number(k, &f)) {
        f += 0.0; /* -0.0 is 0.0 */
        return hash_bytes(&f, sizeof f);
    }
    return k.kind;
}

static int dict_find(struct tctx *c, const struct tdict *d, struct tv k, uint32_t hash, size_t *at)
{
    bool eq = false;
    int rc = 0;
    *at = SIZE_MAX;
    if (!d->index) {
        for (size_t i = 0; !rc && i < d->n; i++) {
            if (d->e[i].hash == hash && !(rc = tv_equal(c, d->e[i].k, k, &eq)) && eq) {
                *at = i;
                break;
            }
        }
        return rc;
    }
    for (size_t j = hash & (d->n_index - 1); !rc && d->index[j]; j = (j + 1) & (d->n_index - 1)) {
        size_t i = d->index[j] - 1;
        if ((rc = charge(c, 1)))
            break;
        if (d->e[i].hash == hash && !(rc = tv_equal(c, d->e[i].k, k, &eq)) && eq) {
            *at = i;
            break;
        }
    }
    return rc;
}

static void index_add(struct tdict *d, size_t i)
{
    size_t j = d->e[i].hash & (d->n_index - 1);
    while (d->index[j])
        j = (j + 1) & (d->n_index - 1);
    d->index[j] = (uint32_t)i + 1;
}

static int dict_grow(struct tctx *c, struct tdict *d)
{
    if (d->n == d->cap) {
        size_t cap = d->cap ? d->cap * 2 : 4;
        struct tpair *e = arena_alloc(c->arena, cap * sizeof *e);
        if (!e)
            return rnomem(c);
        if (d->n)
            memcpy(e, d->e, d->n * sizeof *e);
        d->e = e;
        d->cap = cap;
    }
    if (d->n < 8 || d->n * 2 < d->n_index)
        return 0;
    size_t n_index = 32;
    while (n_index < d->n * 4)
        n_index *= 2;
    uint32_t *index = arena_calloc(c->arena, n_index, sizeof *index);
    if (!index)
        return rnomem(c);
    d->index = index;
    d->n_index = n_index;
    for (size_t i = 0; i < d->n; i++)
        index_add(d, i);
    return 0;
}

int dict_set(struct tctx *c, struct tdict *d, struct tv k, struct tv v)
{
    size_t at;
    uint32_t hash = tv_hash(k);
    if (!tv_hashable(k))
        return rfail(c, "unhashable type: '%s'", tv_type((enum tv_kind)k.kind));
    int rc = dict_find(c, d, k, hash, &at);
    if (rc)
        return rc;
    if (at != SIZE_MAX) {
        d->e[at].v = v;
        return 0;
    }
    rc = dict_grow(c, d);
    if (rc)
        return rc;
    d->e[d->n] = (struct tpair){k, v, hash};
    d->n++;
    if (d->index)
        index_add(d, d->n - 1);
    return 0;
}

int dict_get(struct tctx *c, const struct tdict *d, struct tv k, struct tv *out, bool *found)
{
    size_t at;
    if (!tv_hashable(k))
        return rfail(c, "unhashable type: '%s'", tv_type((enum tv_kind)k.kind));
    int rc = dict_find(c, d, k, tv_hash(k), &at);
    if (rc)
        return rc;
    *found = at != SIZE_MAX;
    if (*found)
        *out = d->e[at].v;
    return 0;
}

bool dict_get_str(const struct tdict *d, const struct tstr *k, struct tv *out)
{
    uint32_t hash = hash_bytes(k->p, k->len);
    for (size_t i = 0; i < d->n; i++) {
        if (d->e[i].hash == hash && d->e[i].k.kind == TV_STR && tstr_eq(d->e[i].k.s, k)) {
            *out = d->e[i].v;
            return true;
        }
    }
    return false;
}

/* ---- kinds, truth, numbers ---- */

const char *tv_type(enum tv_kind kind)
{
    static const char *const names[] = {
        [TV_MISSING] = "missing", [TV_UNDEF] = "Undefined",  [TV_NONE] = "NoneType", [TV_BOOL] = "bool",
        [TV_INT] = "int",         [TV_FLOAT] = "float",      [TV_STR] = "str",       [TV_LIST] = "list",
        [TV_TUPLE] = "tuple",     [TV_RANGE] = "range",      [TV_GEN] = "generator", [TV_VIEW] = "dict view",
        [TV_DICT] = "dict",       [TV_NS] = "Namespace",     [TV_MACRO] = "Macro",   [TV_FUNC] = "function",
        [TV_METHOD] = "method",   [TV_LOOP] = "LoopContext",
    };
    return names[kind];
}

struct tv tv_undef(struct tv owner, const struct tstr *name)
{
    return (struct tv){.kind = TV_UNDEF, .aux = UNDEF_ATTR, .owner = owner.kind, .s = name};
}

struct tv tv_undef_hint(struct tctx *c, const char *msg)
{
    return (struct tv){.kind = TV_UNDEF, .aux = UNDEF_HINT, .s = tstr_make(c->arena, msg, strlen(msg))};
}

int fail_undefined(struct tctx *c, struct tv v)
{
    if (v.aux == UNDEF_NAME)
        return rfail(c, "'%s' is undefined", v.s ? v.s->p : "?");
    if (v.aux == UNDEF_HINT)
        return rfail(c, "%s", v.s ? v.s->p : "undefined");
    return rfail(c, "'%s object' has no attribute '%s'", tv_type((enum tv_kind)v.owner), v.s ? v.s->p : "?");
}

bool tv_truth(struct tv v)
{
    switch ((enum tv_kind)v.kind) {
    case TV_MISSING:
    case TV_UNDEF:
    case TV_NONE:
        return false;
    case TV_BOOL:
        return v.b;
    case TV_INT:
        return v.i != 0;
    case TV_FLOAT:
        return v.f != 0;
    case TV_STR:
        return v.s->len != 0;
    case TV_LIST:
    case TV_TUPLE:
    case TV_RANGE:
    case TV_VIEW:
        return v.l->n != 0;
    case TV_DICT:
        return v.d->n != 0;
    default:
        return true;
    }
}

bool tv_number(struct tv v, double *f)
{
    if (v.kind == TV_FLOAT)
        *f = v.f;
    else if (v.kind == TV_INT)
        *f = (double)v.i;
    else if (v.kind == TV_BOOL)
        *f = v.b;
    else
        return false;
    return true;
}

bool tv_as_int(struct tv v, int64_t *i)
{
    if (v.kind != TV_INT && v.kind != TV_BOOL)
        return false;
    *i = v.kind == TV_INT ? v.i : v.b;
    return true;
}

/* ---- equality and order ---- */

static int list_equal(struct tctx *c, const struct tlist *a, const struct tlist *b, bool *eq)
{
    int rc = 0;
    *eq = a->n == b->n;
    for (size_t i = 0; !rc && *eq && i < a->n; i++)
        rc = tv_equal(c, list_get(a, i), list_get(b, i), eq);
    return rc;
}

static int dict_equal(struct tctx *c, const struct tdict *a, const struct tdict *b, bool *eq)
{
    int rc = 0;
    *eq = a->n == b->n;
    for (size_t i = 0; !rc && *eq && i < a->n; i++) {
        struct tv v;
        rc = dict_get(c, b, a->e[i].k, &v, eq);
        if (!rc && *eq)
            rc = tv_equal(c, a->e[i].v, v, eq);
    }
    return rc;
}

static int compound_equal(struct tctx *c, struct tv a, struct tv b, bool *eq)
{
    int rc = enter(c);
    if (rc)
        return rc;
    rc = a.kind == TV_DICT ? dict_equal(c, a.d, b.d, eq) : list_equal(c, a.l, b.l, eq);
    c->depth--;
    return rc;
}

int tv_equal(struct tctx *c, struct tv a, struct tv b, bool *eq)
{
    double x, y;
    int rc = charge(c, 1);
    if (rc)
        return rc;
    if (a.kind == TV_INT && b.kind == TV_INT) {
        *eq = a.i == b.i;
        return 0;
    }
    if (tv_number(a, &x) && tv_number(b, &y)) {
        *eq = x == y;
        return 0;
    }
    *eq = false;
    if (a.kind != b.kind)
        return 0;
    switch ((enum tv_kind)a.kind) {
    case TV_UNDEF:
    case TV_NONE:
        *eq = true;
        return 0;
    case TV_STR:
        *eq = tstr_eq(a.s, b.s);
        return *eq ? charge(c, a.s->len / 16) : 0;
    case TV_LIST:
    case TV_TUPLE:
    case TV_RANGE:
    case TV_DICT:
        return compound_equal(c, a, b, eq);
    default:
        *eq = a.l == b.l;
        return 0;
    }
}

static int list_compare(struct tctx *c, const struct tlist *a, const struct tlist *b, int *cmp)
{
    size_t n = a->n < b->n ? a->n : b->n;
    int rc = enter(c);
    if (rc)
        return rc;
    *cmp = 0;
    for (size_t i = 0; !rc && !*cmp && i < n; i++) {
        bool eq;
        rc = tv_equal(c, a->v[i], b->v[i], &eq);
        if (!rc && !eq)
            rc = tv_compare(c, a->v[i], b->v[i], cmp);
    }
    c->depth--;
    if (!rc && !*cmp)
        *cmp = (a->n > b->n) - (a->n < b->n);
    return rc;
}

int tv_compare(struct tctx *c, struct tv a, struct tv b, int *cmp)
{
    double x, y;
    int rc = charge(c, 1);
    if (rc)
        return rc;
    if (a.kind == TV_UNDEF || b.kind == TV_UNDEF)
        return fail_undefined(c, a.kind == TV_UNDEF ? a : b);
    if (a.kind == TV_INT && b.kind == TV_INT) {
        *cmp = (a.i > b.i) - (a.i < b.i);
        return 0;
    }
    if (tv_number(a, &x) && tv_number(b, &y)) {
        *cmp = isnan(x) || isnan(y) ? 2 : (x > y) - (x < y);
        return 0;
    }
    if (a.kind == TV_STR && b.kind == TV_STR) {
        size_t n = a.s->len < b.s->len ? a.s->len : b.s->len;
        int m = memcmp(a.s->p, b.s->p, n);
        *cmp = m ? (m > 0) - (m < 0) : (a.s->len > b.s->len) - (a.s->len < b.s->len);
        return charge(c, n / 16);
    }
    if (a.kind == b.kind && (a.kind == TV_LIST || a.kind == TV_TUPLE))
        return list_compare(c, a.l, b.l, cmp);
    return rfail(c, "'<' or '>' not supported between '%s' and '%s'", tv_type((enum tv_kind)a.kind),
                 tv_type((enum tv_kind)b.kind));
}

/* ---- from JSON ---- */

static int list_of_json(struct tctx *c, const json_t *j, struct tv *out)
{
    size_t n = json_array_size(j);
    struct tlist *l = list_make(c, n);
    int rc = l ? 0 : -E2BIG;
    for (size_t i = 0; !rc && i < n; i++)
        rc = tv_of_json(c, json_array_get(j, i), &l->v[i]);
    if (!rc)
        *out = tv_of_list(TV_LIST, l);
    return rc;
}

static int dict_of_json(struct tctx *c, const json_t *j, struct tv *out)
{
    struct tdict *d = dict_make(c, json_object_size(j));
    const char *key;
    json_t *v;
    int rc = d ? 0 : -E2BIG;
    json_object_foreach((json_t *)j, key, v)
    {
        struct tv k, x;
        if (rc || (rc = str_make(c, key, strlen(key), &k)) || (rc = tv_of_json(c, v, &x)))
            break;
        rc = dict_set(c, d, k, x);
    }
    if (!rc)
        *out = (struct tv){.kind = TV_DICT, .d = d};
    return rc;
}

int tv_of_json(struct tctx *c, const json_t *j, struct tv *out)
{
    int rc = enter(c);
    if (!rc)
        rc = charge(c, 1);
    if (rc)
        return rc;
    switch (json_typeof(j)) {
    case JSON_OBJECT:
        rc = dict_of_json(c, j, out);
        break;
    case JSON_ARRAY:
        rc = list_of_json(c, j, out);
        break;
    case JSON_STRING:
        rc = str_make(c, json_string_value(j), json_string_length(j), out);
        break;
    case JSON_INTEGER:
        *out = tv_int(json_integer_value(j));
        break;
    case JSON_REAL:
        *out = tv_float(json_real_value(j));
        break;
    case JSON_NULL:
        *out = tv_none();
        break;
    default:
        *out = tv_bool(json_is_true(j));
    }
    c->depth--;
    return rc;
}

/* ---- elements, membership, lookup ---- */

static int str_elements(struct tctx *c, const struct tstr *s, struct tlist **out)
{
    struct tlist *l = list_make(c, s->chars);
    int rc = l ? charge(c, s->chars) : -E2BIG;
    for (size_t i = 0, p = 0; !rc && i < s->chars; i++) {
        uint32_t cp;
        size_t n = utf8_next(s->p + p, s->len - p, &cp);
        rc = str_make(c, s->p + p, n, &l->v[i]);
        p += n;
    }
    *out = l;
    return rc;
}

static int gen_elements(struct tctx *c, struct tlist *g, struct tlist **out)
{
    struct tlist *l = list_make(c, g->n - g->pos);
    if (!l)
        return -E2BIG;
    for (size_t i = 0; i < l->n; i++)
        l->v[i] = g->v[g->pos + i];
    g->pos = g->n;
    *out = l;
    return charge(c, l->n);
}

int tv_elements(struct tctx *c, struct tv v, struct tlist **out)
{
    switch ((enum tv_kind)v.kind) {
    case TV_LIST:
    case TV_TUPLE:
    case TV_RANGE:
    case TV_VIEW:
        *out = v.l;
        return 0;
    case TV_GEN:
        return gen_elements(c, v.l, out);
    case TV_STR:
        return str_elements(c, v.s, out);
    case TV_UNDEF:
        *out = list_make(c, 0);
        return *out ? 0 : -E2BIG;
    case TV_DICT: {
        struct tlist *l = list_make(c, v.d->n);
        if (!l)
            return -E2BIG;
        for (size_t i = 0; i < l->n; i++)
            l->v[i] = v.d->e[i].k;
        *out = l;
        return charge(c, l->n);
    }
    default:
        return rfail(c, "'%s' object is not iterable", tv_type((enum tv_kind)v.kind));
    }
}

int tv_contains(struct tctx *c, struct tv container, struct tv item, bool *in)
{
    struct tlist *l;
    struct tv v;
    *in = false;
    if (container.kind == TV_STR) {
        if (item.kind != TV_STR)
            return rfail(c, "'in <string>' requires a string as left operand, not %s",
                         tv_type((enum tv_kind)item.kind));
        *in = memmem(container.s->p, container.s->len, item.s->p, item.s->len) != NULL;
        return charge(c, container.s->len / 16);
    }
    if (container.kind == TV_DICT)
        return dict_get(c, container.d, item, &v, in);
    int rc = tv_elements(c, container, &l);
    for (size_t i = 0; !rc && !*in && i < l->n; i++)
        rc = tv_equal(c, list_get(l, i), item, in);
    return rc;
}

static int bind_method(struct tctx *c, struct tv self, const struct fn_spec *fn, struct tv *out)
{
    struct tmethod *m = arena_alloc(c->arena, sizeof *m);
    if (!m)
        return rnomem(c);
    m->self = self;
    m->fn = fn;
    *out = (struct tv){.kind = TV_METHOD, .m = m};
    return 0;
}

static const struct fn_spec *method_find(struct tv v, const char *name)
{
    return v.kind == TV_STR ? str_method_find(name) : other_method_find((enum tv_kind)v.kind, name);
}

int tv_getattr(struct tctx *c, struct tv v, const struct tstr *name, struct tv *out)
{
    bool found = false;
    if (v.kind == TV_UNDEF)
        return fail_undefined(c, v);
    if (v.kind == TV_LOOP) {
        int rc = loop_attr(c, v.loop, name->p, out, &found);
        if (rc || found)
            return rc;
    }
    if (v.kind == TV_NS && dict_get_str(v.d, name, out))
        return 0;
    const struct fn_spec *fn = method_find(v, name->p);
    if (fn)
        return bind_method(c, v, fn, out);
    if (v.kind == TV_DICT) {
        int rc = dict_get(c, v.d, tv_of_str(name), out, &found);
        if (rc || found)
            return rc;
    }
    *out = tv_undef(v, name);
    return 0;
}

static struct tv undef_item(struct tctx *c, struct tv v, struct tv key)
{
    if (key.kind == TV_STR)
        return tv_undef(v, key.s);
    char msg[96];
    if (key.kind == TV_INT)
        snprintf(msg, sizeof msg, "%s object has no element %lld", tv_type((enum tv_kind)v.kind), (long long)key.i);
    else
        snprintf(msg, sizeof msg, "%s object has no such element", tv_type((enum tv_kind)v.kind));
    return tv_undef_hint(c, msg);
}

int tv_getitem(struct tctx *c, struct tv v, struct tv key, struct tv *out)
{
    int64_t i;
    bool found = false;
    if (v.kind == TV_UNDEF)
        return fail_undefined(c, v);
    if (v.kind == TV_DICT && tv_hashable(key)) {
        int rc = dict_get(c, v.d, key, out, &found);
        if (rc || found)
            return rc;
    }
    if (tv_as_int(key, &i) && (v.kind == TV_LIST || v.kind == TV_TUPLE || v.kind == TV_RANGE || v.kind == TV_STR)) {
        int64_t n = (int64_t)(v.kind == TV_STR ? v.s->chars : v.l->n);
        i += i < 0 ? n : 0;
        if (i >= 0 && i < n && v.kind != TV_STR) {
            *out = list_get(v.l, (size_t)i);
            return 0;
        }
        if (i >= 0 && i < n) {
            size_t from = tstr_offset(v.s, (size_t)i), len;
            uint32_t cp;
            len = utf8_next(v.s->p + from, v.s->len - from, &cp);
            int rc = charge(c, from / 16);
            return rc ? rc : str_make(c, v.s->p + from, len, out);
        }
    }
    if (key.kind == TV_STR)
        return tv_getattr(c, v, key.s, out);
    *out = undef_item(c, v, key);
    return 0;
}

/* ---- slices ---- */

/* Python's slice.indices: the first index, the step and how many. */
static int slice_indices(struct tctx *c, const struct tv bound[3], int64_t n, int64_t *start, int64_t *step,
                         size_t *count)
{
    int64_t v[3] = {0, 0, 1};
    for (int i = 0; i < 3; i++)
        if (bound[i].kind != TV_NONE && !tv_as_int(bound[i], &v[i]))
            return rfail(c, "slice indices must be integers or None");
    if (!v[2])
        return rfail(c, "slice step cannot be zero");
    if (v[2] < -INT32_MAX || v[2] > INT32_MAX)
        v[2] = v[2] < 0 ? -INT32_MAX : INT32_MAX;
    bool back = v[2] < 0;
    int64_t low = back ? -1 : 0, high = back ? n - 1 : n;
    for (int i = 0; i < 2; i++) {
        bool first = i == 0;
        if (bound[i].kind == TV_NONE)
            v[i] = first == back ? high : low;
        else if (v[i] < 0)
            v[i] = v[i] + n < low ? low : v[i] + n;
        else if (v[i] > high)
            v[i] = high;
    }
    int64_t span = back ? v[0] - v[1] : v[1] - v[0], abs = back ? -v[2] : v[2];
    *start = v[0];
    *step = v[2];
    *count = span > 0 ? (size_t)((span + abs - 1) / abs) : 0;
    return 0;
}

static int slice_str(struct tctx *c, const struct tstr *s, int64_t start, int64_t step, size_t count, struct tv *out)
{
    if (step == 1 || !count) {
        size_t from = tstr_offset(s, (size_t)start), to = from;
        if (count)
            to = tstr_offset(s, (size_t)start + count);
        int rc = charge(c, s->len / 16);
        return rc ? rc : str_make(c, count ? s->p + from : "", to - from, out);
    }
    struct tlist *chars;
    struct buf b;
    int rc = str_elements(c, s, &chars);
    if (rc)
        return rc;
    buf_init(&b, c->max_output);
    for (size_t i = 0; i < count; i++) {
        const struct tstr *e = chars->v[start + (int64_t)i * step].s;
        buf_append(&b, e->p, e->len);
    }
    return str_of_buf(c, &b, out);
}

int tv_slice(struct tctx *c, struct tv v, const struct tv bound[3], struct tv *out)
{
    int64_t start = 0, step = 1;
    size_t count = 0;
    if (v.kind == TV_UNDEF)
        return fail_undefined(c, v);
    bool list = v.kind == TV_LIST || v.kind == TV_TUPLE || v.kind == TV_RANGE;
    if (!list && v.kind != TV_STR)
        return rfail(c, "'%s' object is not subscriptable by a slice", tv_type((enum tv_kind)v.kind));
    int rc = slice_indices(c, bound, (int64_t)(list ? v.l->n : v.s->chars), &start, &step, &count);
    if (rc)
        return rc;
    if (!list) {
        rc = slice_str(c, v.s, start, step, count, out);
        out->aux = v.aux;
        return rc;
    }
    struct tlist *l = list_make(c, v.kind == TV_RANGE ? 0 : count);
    if (!l)
        return -E2BIG;
    if (v.kind == TV_RANGE) {
        int64_t first, by;
        if (__builtin_mul_overflow(start, v.l->step, &first) || __builtin_add_overflow(first, v.l->start, &first) ||
            __builtin_mul_overflow(step, v.l->step, &by))
            return rfail(c, "an integer grew beyond 64 bits");
        *l = (struct tlist){.n = count, .start = first, .step = by};
    }
    for (size_t i = 0; v.kind != TV_RANGE && i < count; i++)
        l->v[i] = v.l->v[start + (int64_t)i * step];
    *out = tv_of_list((enum tv_kind)v.kind, l);
    return charge(c, v.kind == TV_RANGE ? 1 : count);
}
