/* grammar_shape.c - from the assertions of a branch to shapes: literals, numbers, strings and arrays.
 *
 * Used while a grammar is compiled, by the thread that compiles. Shapes live in the grammar's arena. A branch gives at
 * most a few shapes a type; one that nothing can satisfy is left out. Objects are in grammar_object.c.
 */
#include "model/grammar_schema.h"

#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"

int gshape_add(struct gctx *c, struct grammar *g, struct gexpr *x, const struct gshape *s)
{
    if (g->n_shapes >= c->lim.max_nodes)
        return err_set(c->e, -E2BIG, "%s: more than %zu shapes", c->where ? c->where : "#", c->lim.max_nodes);
    if (g->n_shapes == g->cap_shapes) {
        uint32_t cap = g->cap_shapes ? 2 * g->cap_shapes : 64;
        struct gshape **p = g_alloc(c, cap, sizeof *p);
        if (!p)
            return g_memory_code(c);
        if (g->n_shapes)
            memcpy(p, g->shape, g->n_shapes * sizeof *p);
        g->shape = p;
        g->cap_shapes = cap;
    }
    if ((x->n_shapes & (x->n_shapes - 1)) == 0) { /* full at every power of two */
        uint32_t *p = g_alloc(c, x->n_shapes ? 2 * (size_t)x->n_shapes : 1, sizeof *p);
        if (!p)
            return g_memory_code(c);
        if (x->n_shapes)
            memcpy(p, x->shape, x->n_shapes * sizeof *p);
        x->shape = p;
    }
    struct gshape *copy = g_alloc(c, 1, sizeof *copy);
    if (!copy)
        return g_memory_code(c);
    *copy = *s;
    x->shape[x->n_shapes++] = g->n_shapes;
    g->shape[g->n_shapes++] = copy;
    return g_steps(c, 1);
}

int gshape_refused(struct gctx *c, uint32_t node, const char *what)
{
    const char *text = arena_printf(c->tmp, "%s: %s", c->schema->node[node].path, what);
    if (!text)
        return g_memory_code(c);
    c->where = text; /* for the caller, who puts it back */
    return -ENOTSUP;
}

static int literal(struct gctx *c, struct grammar *g, struct gexpr *x, enum gkind kind)
{
    for (uint32_t i = 0; i < x->n_shapes; i++)
        if (g->shape[x->shape[i]]->kind == kind)
            return 0;
    return gshape_add(c, g, x, &(struct gshape){.kind = kind});
}

static bool excluded(struct gctx *c, const struct gconj *k, const json_t *v)
{
    for (const struct gitems *a = k->atoms; a; a = a->next) {
        json_t *one;
        size_t i;
        if (a->a.kind != I_ENUM)
            continue;
        if (a->a.single && gvalue_equal(c, a->a.value, v))
            return true;
        if (!a->a.single)
            json_array_foreach(a->a.value, i, one) if (gvalue_equal(c, one, v)) return true;
    }
    return false;
}

/* ---- numbers ---- */

static void tighten(struct gnum_spec *s, const struct gdec *d, bool max, bool open)
{
    bool *has = max ? &s->has_hi : &s->has_lo, *is_open = max ? &s->hi_open : &s->lo_open;
    struct gdec *at = max ? &s->hi : &s->lo;
    int cmp = *has ? gdec_cmp(d, at) : max ? -1 : 1;
    if ((max && cmp < 0) || (!max && cmp > 0)) {
        *at = *d;
        *is_open = open;
    } else if (!cmp)
        *is_open |= open;
    *has = true;
}

static uint32_t gcd(uint32_t a, uint32_t b)
{
    while (b) {
        uint32_t t = a % b;
        a = b;
        b = t;
    }
    return a;
}

/* multipleOf d: units of 10^-scale; several become their least common multiple. */
static int multiple(struct gctx *c, struct gnum_spec *s, const struct gatom *a, const struct gdec *d)
{
    int scale = d->n - d->n_int;
    uint64_t m = 0;
    for (int i = 0; i < d->n && m <= 1000000; i++)
        m = m * 10 + (uint64_t)(d->d[i] - '0');
    if (a->negated) {
        if (scale || m > 10000)
            return gshape_refused(c, a->node, "multipleOf of a fraction or beyond 10000 cannot be negated");
        if (s->n_not_mod >= 4)
            return gshape_refused(c, a->node, "more than 4 negated multipleOf");
        s->not_mod[s->n_not_mod++] = (uint32_t)m;
        return 0;
    }
    while (s->mod && s->mod_scale < scale) {
        s->mod = s->mod <= 1000000 ? s->mod * 10 : s->mod;
        s->mod_scale++;
    }
    for (; s->mod && scale < s->mod_scale && m <= 1000000; scale++)
        m *= 10;
    if (s->mod && m <= 1000000)
        m = m / gcd((uint32_t)m, s->mod) * s->mod;
    if (m > 1000000 || scale > 15)
        return gshape_refused(c, a->node, "multipleOf beyond 1000000 units (of its last decimal place)");
    s->mod = (uint32_t)m;
    s->mod_scale = scale;
    return 0;
}

static int number_atom(struct gctx *c, struct gnum_spec *s, const struct gatom *a)
{
    struct gdec d;
    if (a->kind == I_RANGE && a->n != 1) {
        json_t *lo = json_integer(a->n == 32 ? INT32_MIN : INT64_MIN),
               *hi = json_integer(a->n == 32 ? INT32_MAX : INT64_MAX);
        if (lo && hi && gdec_of(lo, &d)) {
            tighten(s, &d, false, false);
            (void)gdec_of(hi, &d);
            tighten(s, &d, true, false);
        }
        json_decref(lo);
        json_decref(hi);
        s->fraction = false;
        return lo && hi ? 0 : err_set(c->e, -ENOMEM, "out of memory");
    }
    if (a->kind != I_MIN && a->kind != I_MAX && a->kind != I_MULTIPLE)
        return 0;
    if (!gdec_of(a->value, &d)) {
        double v = json_number_value(a->value);
        if (a->kind == I_MAX ? v > 1e30 : a->kind == I_MIN && v < -1e30)
            return 0; /* no number is written that long */
        return gshape_refused(c, a->node, "a number too large or too small to hold exactly");
    }
    if (a->kind == I_MULTIPLE)
        return multiple(c, s, a, &d);
    tighten(s, &d, a->kind == I_MAX, a->open);
    return 0;
}

static int by_dec(const void *a, const void *b)
{
    return gdec_cmp(a, b);
}

static int number_add(struct gctx *c, struct grammar *g, struct gexpr *x, const struct gnum_spec *s)
{
    struct gshape shape = {.kind = G_NUMBER};
    int r = gnum_build(c, s, &shape.u.num);
    return r || !shape.u.num ? r : gshape_add(c, g, x, &shape);
}

/* One number, or where some are excluded one a gap between them. */
static int numbers(struct gctx *c, struct grammar *g, struct gexpr *x, const struct gconj *k)
{
    struct gnum_spec s = {.integer = k->mask & T_INT, .fraction = k->mask & T_FRAC};
    size_t n = 0, i;
    int r;
    for (const struct gitems *a = k->atoms; a; a = a->next) {
        if ((r = number_atom(c, &s, &a->a)))
            return r;
        if (a->a.kind == I_ENUM)
            n += a->a.single ? 1 : json_array_size(a->a.value);
    }
    struct gdec *out = g_tmp(c, n, sizeof *out);
    if (!out)
        return g_memory_code(c);
    n = 0;
    for (const struct gitems *a = k->atoms; a; a = a->next) {
        json_t *one;
        if (a->a.kind != I_ENUM)
            continue;
        for (i = 0; i < (a->a.single ? 1 : json_array_size(a->a.value)); i++) {
            one = a->a.single ? a->a.value : json_array_get(a->a.value, i);
            if (json_is_number(one) && !gdec_of(one, &out[n++]))
                return gshape_refused(c, a->a.node, "a number too large or too small to hold exactly");
        }
    }
    qsort(out, n, sizeof *out, by_dec);
    for (i = 0; i <= n; i++) {
        struct gnum_spec gap = s;
        if (i)
            tighten(&gap, &out[i - 1], false, true);
        if (i < n)
            tighten(&gap, &out[i], true, true);
        if ((r = number_add(c, g, x, &gap)))
            return r;
    }
    return 0;
}

/* ---- strings ---- */

size_t g_characters(const char *s, size_t n)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++)
        k += ((unsigned char)s[i] & 0xC0) != 0x80;
    return k;
}

static int need_table(struct gctx *c, struct gstring *s)
{
    const struct gdfa *d = s->dfa;
    size_t row = (size_t)s->min + 1, cells;
    s->need = NULL;
    if (!s->min)
        return 0;
    if (__builtin_mul_overflow(row, (size_t)d->n, &cells) || cells > (1u << 22))
        return err_set(c->e, -E2BIG, "%s: minLength %u is too much for this pattern", c->where ? c->where : "#",
                       s->min);
    if (!(s->need = g_alloc(c, cells, sizeof *s->need)))
        return g_memory_code(c);
    for (uint32_t q = 0; q < d->n; q++)
        s->need[q * row] = d->dist[q];
    for (uint32_t k = 1; k <= s->min; k++) {
        int r = g_steps(c, (uint64_t)d->n * d->n_classes);
        if (r)
            return r;
        for (uint32_t q = 0; q < d->n; q++) {
            uint32_t best = G_INF;
            for (uint32_t i = 0; i < d->n_classes; i++) {
                uint32_t to = d->next[(size_t)q * d->n_classes + i];
                if (to && s->need[to * row + k - 1] < best)
                    best = s->need[to * row + k - 1];
            }
            s->need[q * row + k] = best == G_INF ? G_INF : best + 1;
        }
    }
    return 0;
}

/* Adds the string unless nothing fits. Equal ones share tables: kept by automaton and lengths. */
static int string_add(struct gctx *c, struct grammar *g, struct gexpr *x, struct gstring *s)
{
    struct gshape shape = {.kind = G_STRING};
    for (uint32_t i = 0; i < g->n_shapes; i++) {
        const struct gshape *o = g->shape[i];
        if (o->kind == G_STRING && !o->u.str.unique && o->u.str.dfa == s->dfa && o->u.str.min == s->min &&
            o->u.str.max == s->max) {
            shape.u.str = o->u.str;
            return gshape_add(c, g, x, &shape);
        }
    }
    int r = need_table(c, s);
    if (r)
        return r;
    uint32_t least = s->need ? s->need[(size_t)s->min + 1 + s->min] : s->dfa->dist[1];
    if (least == G_INF || least > s->max)
        return 0;
    s->id = g->n_shapes;
    shape.u.str = *s;
    return gshape_add(c, g, x, &shape);
}

struct signs {
    struct gdfa *part[G_PARTS];
    bool negated[G_PARTS];
    size_t n;
};

static int label_parts(void *arg, const uint32_t *labels, uint32_t *out)
{
    const struct signs *s = arg;
    *out = 1;
    for (size_t i = 0; i < s->n; i++)
        if ((labels[i] != 0) == s->negated[i])
            *out = 0;
    return 0;
}

static int signs_add(struct gctx *c, struct signs *s, struct gdfa *d, bool negated)
{
    for (size_t i = 0; i < s->n; i++)
        if (s->part[i] == d && s->negated[i] == negated)
            return 0;
    if (s->n >= G_PARTS)
        return err_set(c->e, -E2BIG, "%s: more than %d patterns of one string", c->where ? c->where : "#", G_PARTS);
    s->part[s->n] = d;
    s->negated[s->n++] = negated;
    return 0;
}

static int string_words(struct gctx *c, const struct gconj *k, struct signs *signs)
{
    size_t n = 0, i;
    json_t *one;
    for (const struct gitems *a = k->atoms; a; a = a->next)
        n += a->a.kind == I_ENUM ? (a->a.single ? 1 : json_array_size(a->a.value)) : 0;
    struct grammar_text *words = g_tmp(c, n, sizeof *words);
    struct gdfa *d;
    if (!words)
        return g_memory_code(c);
    n = 0;
    for (const struct gitems *a = k->atoms; a; a = a->next) {
        if (a->a.kind != I_ENUM)
            continue;
        for (i = 0; i < (a->a.single ? 1 : json_array_size(a->a.value)); i++) {
            one = a->a.single ? a->a.value : json_array_get(a->a.value, i);
            if (json_is_string(one))
                words[n++] = (struct grammar_text){json_string_value(one), json_string_length(one)};
        }
    }
    int r = n ? gdfa_words(c, words, n, &d) : 0;
    return r || !n ? r : signs_add(c, signs, d, true);
}

static int strings(struct gctx *c, struct grammar *g, struct gexpr *x, const struct gconj *k)
{
    struct gstring s = {.max = G_INF};
    struct signs signs = {0};
    int r = 0;
    for (const struct gitems *a = k->atoms; a && !r; a = a->next) {
        struct gdfa *d = NULL;
        if (a->a.kind == I_PATTERN)
            r = g_pattern(c, json_string_value(a->a.value), c->schema->node[a->a.node].path, &d);
        else if (a->a.kind == I_FORMAT)
            r = g_format(c, json_string_value(a->a.value), a->a.negated, &d);
        else if (a->a.kind == I_MIN_LENGTH && a->a.n > s.min)
            s.min = a->a.n < G_INF ? (uint32_t)a->a.n : G_INF - 1;
        else if (a->a.kind == I_MAX_LENGTH && a->a.n < s.max)
            s.max = (uint32_t)a->a.n;
        if (!r && d)
            r = signs_add(c, &signs, d, a->a.negated);
    }
    if (r || (r = string_words(c, k, &signs)))
        return r;
    if (!signs.n)
        s.dfa = c->schema->any;
    else if (signs.n == 1 && !signs.negated[0])
        s.dfa = signs.part[0];
    else if ((r = gdfa_product(c, signs.part, signs.n, label_parts, &signs, &s.dfa)))
        return r;
    return string_add(c, g, x, &s);
}

int gshape_words(struct gctx *c, struct grammar *g, struct gexpr *x, const struct grammar_text *words, size_t n)
{
    struct gstring s = {.max = G_INF};
    int r = gdfa_words(c, words, n, &s.dfa);
    return r ? r : string_add(c, g, x, &s);
}

/* ---- arrays ---- */

/* The literals that one I_ITEMS node puts on index i; i = SIZE_MAX: behind every prefix. */
static int items_at(struct gctx *c, uint32_t node, size_t i, struct gvec *lit)
{
    json_t *j = c->schema->node[node].j, *prefix = json_object_get(j, "prefixItems"),
           *items = json_object_get(j, "items");
    bool old = !prefix && json_is_array(items);
    json_t *list = old ? items : prefix, *rest = old ? json_object_get(j, "additionalItems") : items;
    const char *key = old ? "items" : "prefixItems";
    uint32_t id;
    int r;
    bool in = i < json_array_size(list);
    if (!in && !rest)
        return 0;
    if (in)
        r = gnode_child(c, node, json_array_get(list, i), key, NULL, i, &id);
    else
        r = gnode_child(c, node, rest, old ? "additionalItems" : "items", NULL, SIZE_MAX, &id);
    return r ? r : g_push(c, lit, LIT(id, false));
}

static int item_literals(struct gctx *c, const struct gconj *k, size_t i, struct gvec *lit)
{
    int r = 0;
    lit->n = 0;
    for (const struct gitems *a = k->atoms; a && !r; a = a->next) {
        if (a->a.kind == I_ITEMS)
            r = items_at(c, a->a.node, i, lit);
        else if (a->a.kind == I_ALL_ITEMS || (a->a.kind == I_ITEM_AT && a->a.n == i))
            r = g_push(c, lit, a->a.lit);
    }
    return r;
}

static size_t prefix_of(struct gctx *c, const struct gatom *a)
{
    if (a->kind == I_ITEM_AT)
        return (size_t)a->n + 1;
    if (a->kind != I_ITEMS)
        return 0;
    json_t *j = c->schema->node[a->node].j, *prefix = json_object_get(j, "prefixItems");
    return json_array_size(prefix ? prefix : json_object_get(j, "items"));
}

static int array_bounds(struct gctx *c, const struct gconj *k, struct garray *a, const struct gatom **has)
{
    const struct gatom *unique = NULL;
    a->max = G_INF;
    for (const struct gitems *i = k->atoms; i; i = i->next) {
        const struct gatom *x = &i->a;
        size_t prefix = prefix_of(c, x);
        if (prefix > a->n_prefix)
            a->n_prefix = (uint32_t)prefix;
        if (x->kind == I_MIN_ITEMS && x->n > a->min)
            a->min = x->n < G_INF ? (uint32_t)x->n : G_INF - 1;
        if (x->kind == I_MAX_ITEMS && x->n < a->max)
            a->max = (uint32_t)x->n;
        if (x->kind == I_UNIQUE)
            unique = x;
        if (x->kind == I_CONTAINS && *has)
            return gshape_refused(c, x->node, "more than one contains of one array");
        if (x->kind == I_CONTAINS)
            *has = x;
    }
    if (unique && a->max > 1) { /* gunique_items sees whether it can be held */
        if (a->n_prefix || *has)
            return gshape_refused(c, unique->node, "uniqueItems with prefixItems or contains is not supported");
        a->unique = c->schema->node[unique->node].path;
    }
    return 0;
}

/* Without contains: one expression an index. With it: two, of items that count and of items that do not. */
static int array_items(struct gctx *c, struct grammar *g, const struct gconj *k, struct garray *a,
                       const struct gatom *has)
{
    struct gvec lit = {0};
    int r = 0;
    a->prefix = g_alloc(c, a->n_prefix, sizeof *a->prefix);
    a->other = g_alloc(c, (size_t)a->n_prefix + 1, sizeof *a->other);
    if (!a->prefix || !a->other)
        return g_memory_code(c);
    for (uint32_t i = 0; i <= a->n_prefix && !r; i++) {
        uint32_t *in = i < a->n_prefix ? &a->prefix[i] : &a->item;
        if ((r = item_literals(c, k, i < a->n_prefix ? i : SIZE_MAX, &lit)))
            return r;
        if (!has) {
            r = gexpr_of(c, g, lit.p, lit.n, in);
            continue;
        }
        size_t plain = lit.n;
        if ((r = g_push(c, &lit, has->lit)) || (r = gexpr_of(c, g, lit.p, lit.n, in)))
            return r;
        lit.p[plain] ^= 1;
        r = gexpr_of(c, g, lit.p, has->m == G_INF ? plain : lit.n, &a->other[i]);
    }
    return r;
}

static int arrays(struct gctx *c, struct grammar *g, struct gexpr *x, const struct gconj *k)
{
    struct gshape s = {.kind = G_ARRAY};
    struct garray *a = &s.u.arr;
    const struct gatom *has = NULL;
    json_t *one;
    size_t i;
    for (const struct gitems *at = k->atoms; at; at = at->next) {
        if (at->a.kind != I_ENUM)
            continue;
        bool in = at->a.single && json_is_array(at->a.value);
        if (!at->a.single)
            json_array_foreach(at->a.value, i, one) in |= json_is_array(one);
        if (in)
            return gshape_refused(c, at->a.node, "an enum or const with an array cannot be negated");
    }
    int r = array_bounds(c, k, a, &has);
    if (r)
        return r;
    if (has) {
        a->has = true;
        a->has_min = (uint32_t)has->n;
        a->has_max = (uint32_t)has->m;
        if (a->has_min > a->min)
            a->min = a->has_min;
        if (a->has_max < a->has_min)
            return 0;
    }
    if (a->min > a->max)
        return 0;
    if (a->n_prefix > a->max)
        a->n_prefix = a->max;
    r = array_items(c, g, k, a, has);
    return r ? r : gshape_add(c, g, x, &s);
}

/* Items that differ: where each is a string. Their text is remembered as keys are; an array has no more of them than
 * there are strings. */
int gunique_items(struct gctx *c, struct grammar *g, struct garray *a)
{
    const struct gexpr *x = g->expr[a->item];
    if (x->n_shapes != 1 || g->shape[x->shape[0]]->kind != G_STRING)
        return err_set(c->e, -EINVAL, "%s: uniqueItems is supported for arrays of strings and with maxItems 1",
                       a->unique);
    struct gshape own = *g->shape[x->shape[0]];
    struct gstring *s = &own.u.str;
    uint64_t room = G_REST_MAX;
    int r = 0;
    if (s->min || s->max != G_INF) {
        struct signs both = {.part = {s->dfa}, .n = 2};
        if ((r = gdfa_length(c, s->min, s->max, &both.part[1])) ||
            (r = gdfa_product(c, both.part, 2, label_parts, &both, &s->dfa)))
            return r;
        s->min = 0;
        s->max = G_INF;
        s->need = NULL;
    }
    if (!s->dfa->self[1]) {
        if ((r = gdfa_count(c, s->dfa, &s->words)))
            return r;
        room = s->words[1] < G_REST_FEW ? s->words[1] : G_REST_FEW;
    }
    if (a->max > room)
        a->max = (uint32_t)room;
    s->unique = true;
    s->id = g->n_shapes;
    a->unique = NULL;
    return gexpr_own(c, g, &own, &a->item);
}

/* ---- branches and values ---- */

int gshape_branch(struct gctx *c, struct grammar *g, struct gexpr *x, const struct gconj *k)
{
    int r = 0;
    json_t *null = json_null(), *yes = json_true(), *no = json_false();
    if ((k->mask & T_NULL) && !excluded(c, k, null))
        r = literal(c, g, x, G_NULL);
    if (!r && (k->mask & T_BOOL) && !excluded(c, k, no))
        r = literal(c, g, x, G_FALSE);
    if (!r && (k->mask & T_BOOL) && !excluded(c, k, yes))
        r = literal(c, g, x, G_TRUE);
    if (!r && (k->mask & T_NUM))
        r = numbers(c, g, x, k);
    if (!r && (k->mask & T_STR))
        r = strings(c, g, x, k);
    if (!r && (k->mask & T_ARR))
        r = arrays(c, g, x, k);
    if (!r && (k->mask & T_OBJ))
        r = gshape_object(c, g, x, k);
    return r;
}

/* An expression of exactly v. */
static int value_expr(struct gctx *c, struct grammar *g, json_t *v, uint32_t *id)
{
    json_t *holder = json_object();
    uint32_t node, lit;
    if (!holder || json_object_set(holder, "const", v)) {
        json_decref(holder);
        return err_set(c->e, -ENOMEM, "out of memory");
    }
    if (json_array_append_new(c->schema->made, holder)) /* takes it, whether it works or not */
        return err_set(c->e, -ENOMEM, "out of memory");
    int r = gnode_of(c, holder, c->where ? c->where : "#", "", &node);
    lit = LIT(node, false);
    return r ? r : gexpr_of(c, g, &lit, 1, id);
}

static int object_value(struct gctx *c, struct grammar *g, struct gexpr *x, json_t *v)
{
    struct gshape s = {.kind = G_OBJECT};
    struct gobject *o = &s.u.obj;
    const char *key;
    json_t *one;
    int r;
    if (!(o->prop = g_alloc(c, json_object_size(v), sizeof *o->prop)))
        return g_memory_code(c);
    json_object_foreach(v, key, one)
    {
        struct gprop *p = &o->prop[o->n_props++];
        p->name.n = strlen(key);
        char *name = g_alloc(c, p->name.n + 1, 1);
        if (!name)
            return g_memory_code(c);
        memcpy(name, key, p->name.n);
        p->name.ptr = name;
        p->required = true;
        if ((r = value_expr(c, g, one, &p->expr)))
            return r;
    }
    o->max = o->n_props;
    return gshape_add(c, g, x, &s);
}

int gshape_value(struct gctx *c, struct grammar *g, struct gexpr *x, json_t *v)
{
    struct gshape s = {.kind = G_ARRAY};
    struct garray *a = &s.u.arr;
    int r = 0;
    if (json_is_null(v) || json_is_boolean(v))
        return literal(c, g, x, json_is_null(v) ? G_NULL : json_is_true(v) ? G_TRUE : G_FALSE);
    if (json_is_string(v))
        return gshape_words(c, g, x, &(struct grammar_text){json_string_value(v), json_string_length(v)}, 1);
    if (json_is_object(v))
        return object_value(c, g, x, v);
    if (json_is_number(v)) {
        struct gnum_spec n = {.integer = true, .fraction = true, .has_lo = true, .has_hi = true};
        if (!gdec_of(v, &n.lo))
            return err_set(c->e, -EINVAL, "%s: a number too large or too small to write", c->where ? c->where : "#");
        n.hi = n.lo;
        n.fraction = json_is_real(v);
        return number_add(c, g, x, &n);
    }
    a->min = a->max = a->n_prefix = (uint32_t)json_array_size(v);
    a->item = G_EXPR_NEVER;
    a->prefix = g_alloc(c, a->n_prefix, sizeof *a->prefix);
    for (size_t i = 0; i < a->n_prefix && a->prefix && !r; i++)
        r = value_expr(c, g, json_array_get(v, i), &a->prefix[i]);
    return !a->prefix ? g_memory_code(c) : r ? r : gshape_add(c, g, x, &s);
}
