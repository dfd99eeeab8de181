/* grammar_expand.c - expressions: sets of subschemas, each held true or false, and how they become shapes.
 *
 * Used while a grammar is compiled, by the thread that compiles. An expression is expanded depth first over its
 * choices (anyOf, oneOf, if, negations); each way through them is a branch of plain assertions. Where an enum or const
 * is asserted the values are few, so each is tried against the whole expression (grammar_valid.c) instead. The number
 * of expressions, the branches (as steps) and the depth of the recursion are bounded.
 *
 * Always: expressions 0 and 1 are every value and none; equal sets of literals are one expression, which is what ends
 * the recursion of schemas that contain themselves.
 */
#include "model/grammar_schema.h"

#include <stdlib.h>
#include <string.h>

#define DEPTH_MAX 400 /* choices inside each other in one expression */

struct expansion {
    struct gctx *c;
    struct grammar *g;
    struct gexpr *x;
    const char *refused; /* the first assertion that cannot be held in a branch that is left */
    json_t *tried;       /* values of enums, tried already: borrowed in an own array */
    struct gvec words;   /* indices into tried: strings that hold */
    int depth;
};

static int by_u32(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* ---- branches ---- */

static const struct gitems *cons(struct gctx *c, const struct gatom *a, const struct gitems *next)
{
    struct gitems *i = g_tmp(c, 1, sizeof *i);
    if (i)
        *i = (struct gitems){.a = *a, .next = next, .count = next ? next->count + 1 : 1};
    return i;
}

int gdisj_alt(struct gctx *c, struct gdisj *d, const struct gatom *item, size_t n)
{
    if (d->n == d->cap) {
        size_t cap = d->cap ? 2 * d->cap : 4;
        struct galt *p = g_tmp(c, cap, sizeof *p);
        if (!p)
            return g_memory_code(c);
        if (d->n)
            memcpy(p, d->alt, d->n * sizeof *p);
        d->alt = p;
        d->cap = cap;
    }
    struct gatom *copy = g_tmp(c, n, sizeof *copy);
    if (!copy)
        return g_memory_code(c);
    if (n)
        memcpy(copy, item, n * sizeof *copy);
    d->alt[d->n++] = (struct galt){copy, n};
    return g_steps(c, n + 1);
}

static int add_literal(struct gctx *c, struct grammar *g, struct gconj *k, uint32_t lit)
{
    int r = g_steps(c, 1);
    if (r || lit == LIT(NODE_TRUE, false) || lit == LIT(NODE_FALSE, true))
        return r;
    if (lit == LIT(NODE_TRUE, true) || lit == LIT(NODE_FALSE, false)) {
        k->mask = 0;
        return 0;
    }
    for (const struct gitems *i = k->seen; i; i = i->next) {
        if (i->a.n == lit)
            return 0;
        if (i->a.n == (lit ^ 1)) {
            k->mask = 0;
            return 0;
        }
    }
    struct gatom self = {.kind = I_LIT, .n = lit};
    if (!(k->seen = cons(c, &self, k->seen)))
        return g_memory_code(c);
    if (k->seen->count > DEPTH_MAX)
        return err_set(c->e, -E2BIG, "%s: more than %d subschemas of one value", c->schema->node[LIT_NODE(lit)].path,
                       DEPTH_MAX);
    if (!LIT_NEG(lit))
        return g_assert(c, g, k, LIT_NODE(lit));
    struct gdisj *d = g_tmp(c, 1, sizeof *d);
    if (!d)
        return g_memory_code(c);
    if ((r = g_deny(c, LIT_NODE(lit), d)))
        return r;
    if (!d->n)
        k->mask = 0;
    d->next = k->pending;
    k->pending = d;
    return 0;
}

int gconj_add(struct gctx *c, struct grammar *g, struct gconj *k, const struct gatom *a)
{
    if (!k->mask)
        return 0;
    if (a->kind == I_TYPE && !k->flat) {
        k->mask &= (unsigned)a->n;
        return 0;
    }
    if (a->kind == I_LIT && !k->flat)
        return add_literal(c, g, k, (uint32_t)a->n);
    if (!(k->atoms = cons(c, a, k->atoms)))
        return g_memory_code(c);
    return 0;
}

/* Values of an enum, against the whole expression. Strings are gathered, to be one shape. */
static int try_value(struct expansion *w, json_t *v)
{
    bool yes = true;
    json_t *old;
    size_t i;
    json_array_foreach(w->tried, i, old) if (gvalue_equal(w->c, old, v)) return g_steps(w->c, 0);
    if (json_array_append(w->tried, v))
        return err_set(w->c->e, -ENOMEM, "out of memory");
    int r = g_steps(w->c, 1);
    for (uint32_t k = 0; k < w->x->n_lit && yes && !r; k++)
        r = gvalid(w->c, w->x->lit[k], v, &yes);
    if (r || !yes)
        return r;
    if (json_is_string(v))
        return g_push(w->c, &w->words, (uint32_t)json_array_size(w->tried) - 1);
    return gshape_value(w->c, w->g, w->x, v);
}

static int leaf(struct expansion *w, const struct gconj *k)
{
    const struct gitems *few = NULL;
    json_t *v;
    size_t i;
    int r = 0;
    for (const struct gitems *a = k->atoms; a; a = a->next)
        if (a->a.kind == I_ENUM && !a->a.negated)
            few = a;
    if (few && few->a.single)
        return try_value(w, few->a.value);
    if (few) {
        json_array_foreach(few->a.value, i, v) if ((r = try_value(w, v))) break;
        return r;
    }
    for (const struct gitems *a = k->atoms; a; a = a->next)
        if (a->a.kind == I_REFUSED && (a->a.n & k->mask)) {
            w->refused = w->refused ? w->refused : a->a.name;
            return 0;
        }
    r = gshape_branch(w->c, w->g, w->x, k);
    if (r == -ENOTSUP) {
        w->refused = w->refused ? w->refused : w->c->where;
        r = 0;
    }
    return r;
}

static int branch(struct expansion *w, const struct gconj *k)
{
    int r = g_steps(w->c, 4);
    if (r || !k->mask)
        return r;
    if (!k->pending)
        return leaf(w, k);
    if (w->depth >= DEPTH_MAX)
        return err_set(w->c->e, -E2BIG, "%s: more than %d choices inside each other",
                       w->x->n_lit ? w->c->schema->node[LIT_NODE(w->x->lit[0])].path : "#", DEPTH_MAX);
    const struct gdisj *d = k->pending;
    w->depth++;
    for (size_t i = 0; i < d->n && !r; i++) {
        struct gconj one = *k;
        one.pending = d->next;
        for (size_t j = 0; j < d->alt[i].n && !r; j++)
            r = gconj_add(w->c, w->g, &one, &d->alt[i].item[j]);
        r = r ? r : branch(w, &one);
    }
    w->depth--;
    return r;
}

static int gather_words(struct expansion *w)
{
    struct grammar_text *t = g_tmp(w->c, w->words.n, sizeof *t);
    if (!t)
        return g_memory_code(w->c);
    for (size_t i = 0; i < w->words.n; i++) {
        const json_t *v = json_array_get(w->tried, w->words.p[i]);
        t[i] = (struct grammar_text){json_string_value(v), json_string_length(v)};
    }
    return gshape_words(w->c, w->g, w->x, t, w->words.n);
}

int gexpr_expand(struct gctx *c, struct grammar *g, uint32_t id)
{
    struct gexpr *x = g->expr[id];
    struct expansion w = {.c = c, .g = g, .x = x};
    struct gconj k = {.mask = id == G_EXPR_NEVER ? 0 : T_ALL};
    const char *where = c->where;
    int r = 0;
    if (x->expanded || x->busy)
        return 0;
    if (!(w.tried = json_array()))
        return err_set(c->e, -ENOMEM, "out of memory");
    x->busy = true;
    c->where = x->n_lit ? c->schema->node[LIT_NODE(x->lit[0])].path : "#";
    for (uint32_t i = 0; i < x->n_lit && !r; i++)
        r = gconj_add(c, g, &k, &(struct gatom){.kind = I_LIT, .n = x->lit[i]});
    r = r ? r : branch(&w, &k);
    if (!r && w.words.n)
        r = gather_words(&w);
    json_decref(w.tried);
    c->where = where;
    x->busy = false;
    x->expanded = !r;
    x->refused = w.refused;
    return r;
}

/* ---- expressions ---- */

static size_t lits_hash(const uint32_t *lit, size_t n)
{
    uint64_t h = n;
    for (size_t i = 0; i < n; i++) {
        h = (h ^ lit[i]) * 0x9E3779B97F4A7C15u;
        h ^= h >> 31;
    }
    return (size_t)h;
}

static int exprs_grow(struct gctx *c, struct grammar *g)
{
    uint32_t cap = g->cap_exprs ? 2 * g->cap_exprs : 64;
    struct gexpr **p = g_alloc(c, cap, sizeof *p);
    uint32_t *slot = g_tmp(c, 2 * (size_t)cap, sizeof *slot);
    if (!p || !slot)
        return g_memory_code(c);
    if (g->n_exprs)
        memcpy(p, g->expr, g->n_exprs * sizeof(struct gexpr *));
    g->expr = p;
    g->cap_exprs = cap;
    g->expr_slot = slot;
    for (uint32_t i = 0; i < g->n_exprs; i++) {
        size_t h = lits_hash(p[i]->lit, p[i]->n_lit);
        while (slot[h & (2 * cap - 1)])
            h++;
        slot[h & (2 * cap - 1)] = i + 1;
    }
    return 0;
}

static int expr_new(struct gctx *c, struct grammar *g, const uint32_t *lit, size_t n, uint32_t *id)
{
    int r;
    if (g->n_exprs >= c->lim.max_nodes)
        return err_set(c->e, -E2BIG, "%s: more than %zu combinations of subschemas", c->where ? c->where : "#",
                       c->lim.max_nodes);
    if (g->n_exprs == g->cap_exprs && (r = exprs_grow(c, g)))
        return r;
    struct gexpr *x = g_alloc(c, 1, sizeof *x);
    if (!x || !(x->lit = g_alloc(c, n, sizeof *x->lit)))
        return g_memory_code(c);
    if (n)
        memcpy(x->lit, lit, n * sizeof *lit);
    x->n_lit = (uint32_t)n;
    x->height = G_INF;
    size_t h = lits_hash(lit, n);
    while (g->expr_slot[h & (2 * g->cap_exprs - 1)])
        h++;
    g->expr_slot[h & (2 * g->cap_exprs - 1)] = g->n_exprs + 1;
    g->expr[g->n_exprs] = x;
    *id = g->n_exprs++;
    return 0;
}

int gexpr_of(struct gctx *c, struct grammar *g, const uint32_t *lit, size_t n, uint32_t *id)
{
    uint32_t few[16], *p = n <= 16 ? few : g_tmp(c, n, sizeof *p), never = LIT(NODE_FALSE, false);
    size_t m = 0;
    int r;
    if (!p)
        return g_memory_code(c);
    if (!g->n_exprs && ((r = expr_new(c, g, NULL, 0, id)) || (r = expr_new(c, g, &never, 1, id))))
        return r;
    for (size_t i = 0; i < n; i++)
        if (lit[i] != LIT(NODE_TRUE, false) && lit[i] != LIT(NODE_FALSE, true))
            p[m++] = lit[i];
    if (m)
        qsort(p, m, sizeof *p, by_u32);
    size_t k = 0;
    for (size_t i = 0; i < m; i++) {
        if (p[i] == LIT(NODE_FALSE, false) || p[i] == LIT(NODE_TRUE, true) || (k && p[k - 1] == (p[i] ^ 1))) {
            *id = G_EXPR_NEVER;
            return 0;
        }
        if (!k || p[k - 1] != p[i])
            p[k++] = p[i];
    }
    for (size_t h = lits_hash(p, k); g->expr_slot[h & (2 * g->cap_exprs - 1)]; h++) {
        *id = g->expr_slot[h & (2 * g->cap_exprs - 1)] - 1;
        const struct gexpr *x = g->expr[*id];
        if (x->n_lit == k && (!k || !memcmp(x->lit, p, k * sizeof *p)))
            return 0;
    }
    return expr_new(c, g, p, k, id);
}

int gexpr_own(struct gctx *c, struct grammar *g, const struct gshape *s, uint32_t *id)
{
    uint32_t none = G_INF - g->n_exprs; /* a literal of no node */
    int r = expr_new(c, g, &none, 1, id);
    if (r)
        return r;
    g->expr[*id]->expanded = g->expr[*id]->reached = true;
    return gshape_add(c, g, g->expr[*id], s);
}

/* ---- without a value? ---- */

static int shape_empty(struct gctx *c, struct grammar *g, const struct gshape *s, int depth, bool *empty)
{
    int r = 0;
    *empty = false;
    if (s->kind == G_ARRAY) {
        const struct garray *a = &s->u.arr;
        for (uint32_t i = 0; i < a->min && i <= a->n_prefix && !*empty && !r; i++) {
            r = gexpr_empty(c, g, i < a->n_prefix ? a->prefix[i] : a->item, depth - 1, empty);
            if (!r && *empty && a->has)
                r = gexpr_empty(c, g, a->other[i], depth - 1, empty);
        }
    } else if (s->kind == G_OBJECT)
        for (uint32_t i = 0; i < s->u.obj.n_props && !*empty && !r; i++)
            if (s->u.obj.prop[i].required)
                r = gexpr_empty(c, g, s->u.obj.prop[i].expr, depth - 1, empty);
    return r;
}

int gexpr_empty(struct gctx *c, struct grammar *g, uint32_t id, int depth, bool *empty)
{
    struct gexpr *x = g->expr[id];
    *empty = id == G_EXPR_NEVER;
    if (*empty || id == G_EXPR_ANY || depth <= 0 || x->busy)
        return 0;
    int r = gexpr_expand(c, g, id);
    if (r || x->refused)
        return r;
    bool one = true;
    for (uint32_t i = 0; i < x->n_shapes && one && !r; i++)
        r = shape_empty(c, g, g->shape[x->shape[i]], depth, &one);
    *empty = one;
    return r;
}

/* ---- everything that is reached ---- */

struct reach {
    struct gctx *c;
    struct grammar *g;
    struct gvec todo;
    bool *seen;
    uint32_t cap;
};

static int reach(struct reach *w, uint32_t id)
{
    if (id >= w->cap) {
        uint32_t cap = 2 * id + 64;
        bool *p = g_tmp(w->c, cap, sizeof *p);
        if (!p)
            return g_memory_code(w->c);
        if (w->cap)
            memcpy(p, w->seen, w->cap);
        w->seen = p;
        w->cap = cap;
    }
    if (w->seen[id])
        return 0;
    w->seen[id] = true;
    w->g->expr[id]->reached = true;
    return g_push(w->c, &w->todo, id);
}

static int reach_shape(struct reach *w, const struct gshape *s)
{
    int r = g_steps(w->c, 1);
    if (s->kind == G_ARRAY) {
        const struct garray *a = &s->u.arr;
        for (uint32_t i = 0; i <= a->n_prefix && !r; i++) {
            if (i >= a->max)
                break;
            r = reach(w, i < a->n_prefix ? a->prefix[i] : a->item);
            if (!r && a->has)
                r = reach(w, a->other[i]);
        }
    } else if (s->kind == G_OBJECT) {
        for (uint32_t i = 0; i < s->u.obj.n_props && !r; i++)
            r = reach(w, s->u.obj.prop[i].expr);
        for (uint32_t i = 0; i < s->u.obj.n_rest && !r; i++)
            r = reach(w, s->u.obj.rest_expr[i]);
    }
    return r;
}

int g_expand_all(struct gctx *c, struct grammar *g)
{
    struct reach w = {.c = c, .g = g};
    uint32_t lit = LIT(NODE_TRUE, false), id;
    int r = 0;
    if (c->schema->root)
        r = gnode_of(c, c->schema->root, "#", "", &id), lit = LIT(r ? 0 : id, false);
    if (r || (r = gexpr_of(c, g, &lit, 1, &g->root)) || (r = reach(&w, g->root)))
        return r;
    while (w.todo.n) {
        id = w.todo.p[--w.todo.n];
        struct gexpr *x = g->expr[id];
        if ((r = gexpr_expand(c, g, id)))
            return r;
        if (x->refused)
            return err_set(c->e, -EINVAL, "%s", x->refused);
        for (uint32_t i = 0; i < x->n_shapes && !r; i++)
            r = reach_shape(&w, g->shape[x->shape[i]]);
        if (r)
            return r;
    }
    return 0;
}
