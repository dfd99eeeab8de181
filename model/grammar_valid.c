/* grammar_valid.c - does a subschema hold of a value? For the values of enum and const, and for tests.
 *
 * Used while a grammar is compiled, by the thread that compiles. A plain recursive validator; its depth and its work
 * are bounded by the context. Numbers are compared as exact decimals where they have that form.
 */
#include "model/grammar_schema.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define VALID_DEPTH 200
#define DECIMAL_STEPS 64 /* what making two decimals costs */

struct work {
    struct gctx *c;
    int depth;
};

static int holds(struct work *w, uint32_t node, const json_t *v, bool *yes);

/* Equal decimals are one double; of two reals, and of two integers, those alone. */
static bool number_equal(struct gctx *c, const json_t *a, const json_t *b)
{
    struct gdec x, y;
    if (json_is_integer(a) && json_is_integer(b))
        return json_integer_value(a) == json_integer_value(b);
    if (json_typeof(a) == json_typeof(b) || json_number_value(a) != json_number_value(b))
        return json_number_value(a) == json_number_value(b);
    c->steps += DECIMAL_STEPS;
    if (gdec_of(a, &x) && gdec_of(b, &y))
        return !gdec_cmp(&x, &y);
    return json_number_value(a) == json_number_value(b);
}

bool gvalue_equal(struct gctx *c, const json_t *a, const json_t *b)
{
    const char *key;
    json_t *v;
    size_t i;
    c->steps++;
    if (json_is_number(a) && json_is_number(b))
        return number_equal(c, a, b);
    if (json_typeof(a) != json_typeof(b))
        return false;
    if (json_is_array(a)) {
        if (json_array_size(a) != json_array_size(b))
            return false;
        json_array_foreach(a, i, v) if (!gvalue_equal(c, v, json_array_get(b, i))) return false;
        return true;
    }
    if (json_is_object(a)) {
        if (json_object_size(a) != json_object_size(b))
            return false;
        json_object_foreach((json_t *)(uintptr_t)a, key, v)
        {
            const json_t *o = json_object_get(b, key);
            if (!o || !gvalue_equal(c, v, o))
                return false;
        }
        return true;
    }
    if (json_is_string(a))
        c->steps += json_string_length(a) / 64;
    return json_equal(a, b);
}

unsigned gvalue_type(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_NULL:
        return T_NULL;
    case JSON_TRUE:
    case JSON_FALSE:
        return T_BOOL;
    case JSON_INTEGER:
        return T_INT;
    case JSON_REAL:
        return floor(json_real_value(v)) == json_real_value(v) ? T_INT : T_FRAC;
    case JSON_STRING:
        return T_STR;
    case JSON_ARRAY:
        return T_ARR;
    default:
        return T_OBJ;
    }
}

/* ---- atoms ---- */

static int enum_holds(struct work *w, const struct gatom *a, const json_t *v, bool *yes)
{
    json_t *one;
    size_t i;
    bool in = a->single && gvalue_equal(w->c, a->value, v);
    if (!a->single)
        json_array_foreach(a->value, i, one) in |= gvalue_equal(w->c, one, v);
    *yes = in != a->negated;
    return g_steps(w->c, 0);
}

static int number_holds(struct work *w, const struct gatom *a, const json_t *v, bool *yes)
{
    struct gdec x, y;
    double d = json_number_value(v);
    int r = g_steps(w->c, DECIMAL_STEPS);
    if (r)
        return r;
    if (a->kind == I_RANGE) {
        *yes = a->n == 1 || (gvalue_type(v) == T_INT && d >= -ldexp(1, (int)a->n - 1) && d < ldexp(1, (int)a->n - 1));
        return 0;
    }
    bool exact = gdec_of(v, &x) && gdec_of(a->value, &y);
    if (a->kind == I_MIN || a->kind == I_MAX) {
        double o = json_number_value(a->value);
        int cmp = exact ? gdec_cmp(&x, &y) : (d > o) - (d < o);
        cmp = a->kind == I_MAX ? -cmp : cmp;
        *yes = cmp > 0 || (!cmp && !a->open);
        return 0;
    }
    if (!exact)
        return err_set(w->c->e, -EINVAL, "a number too large or too small for multipleOf");
    /* both in units of the finer last place: digits(x) * 10^k mod digits(y) */
    int sx = x.n - x.n_int, sy = y.n - y.n_int, zeros = sy - sx;
    uint64_t m = 0, rem = 0;
    for (int i = 0; i < y.n && m < UINT64_MAX / 100; i++)
        m = m * 10 + (uint64_t)(y.d[i] - '0');
    for (int i = zeros; i < 0 && m < UINT64_MAX / 100; i++)
        m *= 10;
    if (m >= UINT64_MAX / 100)
        return err_set(w->c->e, -EINVAL, "a number too large or too small for multipleOf");
    for (int i = 0; i < x.n + (zeros > 0 ? zeros : 0); i++)
        rem = (rem * 10 + (uint64_t)(i < x.n ? x.d[i] - '0' : 0)) % m;
    *yes = (rem == 0) != a->negated;
    return 0;
}

static int string_holds(struct work *w, const struct gatom *a, const json_t *v, bool *yes)
{
    const char *s = json_string_value(v);
    size_t n = json_string_length(v), k = g_characters(s, n);
    struct gdfa *d = NULL, *exact = NULL;
    int r = 0;
    if (a->kind == I_MIN_LENGTH || a->kind == I_MAX_LENGTH) {
        *yes = a->kind == I_MIN_LENGTH ? k >= a->n : k <= a->n;
        return 0;
    }
    if (a->kind == I_PATTERN)
        r = g_pattern(w->c, json_string_value(a->value), w->c->schema->node[a->node].path, &d);
    else
        r = g_format(w->c, json_string_value(a->value), a->negated, &d);
    if (!r && d)
        *yes = (gdfa_match(d, s, n) != 0) != a->negated;
    if (r || a->kind == I_PATTERN || *yes)
        return r;
    r = g_format(w->c, json_string_value(a->value), true, &exact);
    if (!r && !exact) /* it may be valid all the same, which matters under not */
        r = err_set(w->c->e, -EINVAL, "%s: whether \"%.60s\" is of format \"%s\" is not decided here",
                    w->c->schema->node[a->node].path, s, json_string_value(a->value));
    return r;
}

static int literal_holds(struct work *w, uint32_t lit, const json_t *v, bool *yes)
{
    int r = holds(w, LIT_NODE(lit), v, yes);
    if (LIT_NEG(lit))
        *yes = !*yes;
    return r;
}

static int child_holds(struct work *w, uint32_t node, json_t *j, const char *key, const json_t *v, bool *yes)
{
    uint32_t id;
    int r = gnode_child(w->c, node, j, key, NULL, SIZE_MAX, &id);
    return r ? r : holds(w, id, v, yes);
}

static int items_hold(struct work *w, const struct gatom *a, const json_t *v, bool *yes)
{
    json_t *j = w->c->schema->node[a->node].j, *prefix = json_object_get(j, "prefixItems"),
           *items = json_object_get(j, "items");
    bool old = !prefix && json_is_array(items);
    json_t *list = old ? items : prefix, *rest = old ? json_object_get(j, "additionalItems") : items;
    json_t *one;
    size_t i;
    int r = 0;
    json_array_foreach(v, i, one)
    {
        json_t *s = i < json_array_size(list) ? json_array_get(list, i) : rest;
        if (s && ((r = child_holds(w, a->node, s, "items", one, yes)) || !*yes))
            break;
    }
    return r;
}

static int array_holds(struct work *w, const struct gatom *a, const json_t *v, bool *yes)
{
    size_t i, j, count = 0, n = json_array_size(v);
    json_t *one;
    bool in = true;
    int r = 0;
    switch (a->kind) {
    case I_ITEMS:
        return items_hold(w, a, v, yes);
    case I_ITEM_AT:
        return a->n < n ? literal_holds(w, a->lit, json_array_get(v, a->n), yes) : 0;
    case I_MIN_ITEMS:
    case I_MAX_ITEMS:
        *yes = a->kind == I_MIN_ITEMS ? n >= a->n : n <= a->n;
        return 0;
    case I_UNIQUE:
        for (i = 0; i < n && !r; i++)
            for (j = 0; j < i && *yes && !r; j++) {
                *yes = !gvalue_equal(w->c, json_array_get(v, i), json_array_get(v, j));
                r = g_steps(w->c, 1);
            }
        return r;
    default: /* I_CONTAINS, I_ALL_ITEMS */
        json_array_foreach(v, i, one)
        {
            in = true;
            if ((r = literal_holds(w, a->lit, one, &in)))
                return r;
            count += in;
        }
        *yes = a->kind == I_ALL_ITEMS ? count == n : count >= a->n && (a->m == G_INF || count <= a->m);
        return 0;
    }
}

static int props_hold(struct work *w, uint32_t node, const json_t *v, bool *yes)
{
    json_t *j = w->c->schema->node[node].j, *props = json_object_get(j, "properties"), *one, *sub;
    json_t *pattern = json_object_get(j, "patternProperties"), *more = json_object_get(j, "additionalProperties");
    const char *key, *regex;
    struct gdfa *d;
    int r = 0;
    json_object_foreach((json_t *)(uintptr_t)v, key, one)
    {
        json_t *own = json_object_get(props, key);
        bool any = own != NULL;
        if (own && ((r = child_holds(w, node, own, "properties", one, yes)) || !*yes))
            return r;
        json_object_foreach(pattern, regex, sub)
        {
            if ((r = g_pattern(w->c, regex, w->c->schema->node[node].path, &d)))
                return r;
            if (!gdfa_match(d, key, strlen(key)))
                continue;
            any = true;
            if ((r = child_holds(w, node, sub, "patternProperties", one, yes)) || !*yes)
                return r;
        }
        if (!any && more && ((r = child_holds(w, node, more, "additionalProperties", one, yes)) || !*yes))
            return r;
    }
    return r;
}

static int object_holds(struct work *w, const struct gatom *a, const json_t *v, bool *yes)
{
    const json_t *one = a->name ? json_object_get(v, a->name) : NULL;
    const char *key;
    json_t *value;
    int r = 0;
    switch (a->kind) {
    case I_PROPS:
        return props_hold(w, a->node, v, yes);
    case I_REQUIRED:
    case I_FORBID:
        *yes = (one != NULL) == (a->kind == I_REQUIRED);
        return 0;
    case I_VALUE:
        return one ? literal_holds(w, a->lit, one, yes) : 0;
    case I_NAMES:
        json_object_foreach((json_t *)(uintptr_t)v, key, value)
        {
            json_t *name = json_string(key);
            r = name ? literal_holds(w, a->lit, name, yes) : err_set(w->c->e, -ENOMEM, "out of memory");
            json_decref(name);
            if (r || !*yes)
                break;
        }
        return r;
    default:
        *yes = a->kind == I_MIN_PROPS ? json_object_size(v) >= a->n : json_object_size(v) <= a->n;
        return 0;
    }
}

static int atom_holds(struct work *w, const struct gatom *a, const json_t *v, bool *yes)
{
    unsigned type = gvalue_type(v);
    *yes = true;
    switch (a->kind) {
    case I_TYPE:
        *yes = (type & a->n) != 0;
        return 0;
    case I_LIT:
        return literal_holds(w, (uint32_t)a->n, v, yes);
    case I_ENUM:
        return enum_holds(w, a, v, yes);
    case I_REFUSED:
        return type & a->n ? err_set(w->c->e, -EINVAL, "%s", a->name) : 0;
    case I_MIN:
    case I_MAX:
    case I_MULTIPLE:
    case I_RANGE:
        return type & T_NUM ? number_holds(w, a, v, yes) : 0;
    case I_PATTERN:
    case I_FORMAT:
    case I_MIN_LENGTH:
    case I_MAX_LENGTH:
        return type == T_STR ? string_holds(w, a, v, yes) : 0;
    case I_ITEMS:
    case I_ITEM_AT:
    case I_ALL_ITEMS:
    case I_MIN_ITEMS:
    case I_MAX_ITEMS:
    case I_CONTAINS:
    case I_UNIQUE:
        return type == T_ARR ? array_holds(w, a, v, yes) : 0;
    default:
        return type == T_OBJ ? object_holds(w, a, v, yes) : 0;
    }
}

/* The node's own assertions as a list, its applicators unresolved; made once. */
static int flat(struct work *w, uint32_t node, const struct gconj **out)
{
    struct gconj *k;
    if (!(*out = w->c->schema->node[node].flat)) {
        if (!(k = g_tmp(w->c, 1, sizeof *k)))
            return g_memory_code(w->c);
        *k = (struct gconj){.mask = T_ALL, .flat = true};
        int r = g_assert(w->c, NULL, k, node);
        if (r)
            return r;
        *out = w->c->schema->node[node].flat = k;
    }
    return 0;
}

static int one_of(struct work *w, const struct gdisj *d, const json_t *v, bool *yes)
{
    int r = 0;
    *yes = false;
    for (size_t i = 0; i < d->n && !*yes && !r; i++) {
        *yes = true;
        for (size_t k = 0; k < d->alt[i].n && *yes && !r; k++)
            r = atom_holds(w, &d->alt[i].item[k], v, yes);
    }
    return r;
}

static int holds(struct work *w, uint32_t node, const json_t *v, bool *yes)
{
    const struct gconj *k;
    int r = g_steps(w->c, 1);
    *yes = node != NODE_FALSE;
    if (r || node <= NODE_FALSE)
        return r;
    if (++w->depth > VALID_DEPTH)
        return err_set(w->c->e, -E2BIG, "%s: subschemas nest deeper than %d around one value",
                       w->c->schema->node[node].path, VALID_DEPTH);
    if ((r = flat(w, node, &k)))
        return r;
    for (const struct gitems *a = k->atoms; a && *yes && !r; a = a->next)
        r = atom_holds(w, &a->a, v, yes);
    for (const struct gdisj *d = k->pending; d && *yes && !r; d = d->next)
        r = one_of(w, d, v, yes);
    w->depth--;
    return r;
}

int gvalid(struct gctx *c, uint32_t lit, const json_t *v, bool *yes)
{
    struct work w = {.c = c};
    return literal_holds(&w, lit, v, yes);
}
