/* grammar_final.c - the last pass of compilation: what has no value is cut out, objects get their tables.
 *
 * Used while a grammar is compiled, by the thread that compiles. A value is finite, so an expression has one exactly
 * when some round of the iteration below finds one: round n finds those whose smallest value nests n deep. Shapes
 * without a value are dropped, properties without one may never come, arrays end before an item without one. After this
 * pass every frame that a state can push has a way to its end.
 */
#include "model/grammar_schema.h"

#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"

static bool alive(const struct grammar *g, uint32_t id)
{
    return g->expr[id]->height != G_INF;
}

bool garray_open(const struct grammar *g, const struct garray *a, uint32_t idx, uint32_t cnt)
{
    uint64_t lo = cnt, hi = cnt, n = idx;
    if (idx > a->max)
        return false;
    for (;; n++) { /* [lo, hi]: how many of n items may be counted */
        bool tail = n >= a->n_prefix;
        bool in = alive(g, tail ? a->item : a->prefix[n]);
        bool out = a->has && alive(g, a->other[tail ? a->n_prefix : n]);
        if (n >= a->min && (!a->has || (hi >= a->has_min && lo <= a->has_max)))
            return true;
        if (n >= a->max || (!in && !out))
            return false;
        if (tail) { /* all further items are alike: jump to the first length that could do */
            uint64_t t = n < a->min ? a->min - n : 1;
            if (a->has && in && hi + t < a->has_min)
                t = a->has_min - hi;
            if (n + t > a->max)
                return false;
            lo += in && !out ? t : 0;
            hi += in ? t : 0;
            n += t;
            return !a->has || (hi >= a->has_min && lo <= a->has_max);
        }
        lo += in && !out;
        hi += in;
    }
}

static bool object_alive(const struct grammar *g, const struct gobject *o)
{
    uint64_t can = 0, must = 0;
    for (uint32_t i = 0; i < o->n_props; i++) {
        if (o->prop[i].required && !alive(g, o->prop[i].expr))
            return false;
        can += alive(g, o->prop[i].expr);
        must += o->prop[i].required;
    }
    for (uint32_t i = 0; i < o->n_rest && o->rest; i++)
        if (alive(g, o->rest_expr[i]))
            can = UINT64_MAX / 2;
    return can >= o->min && must <= o->max;
}

static bool shape_alive(const struct grammar *g, const struct gshape *s)
{
    if (s->kind == G_ARRAY)
        return garray_open(g, &s->u.arr, 0, 0);
    return s->kind != G_OBJECT || object_alive(g, &s->u.obj);
}

/* Steps of shape_alive, some of a member each. */
static uint64_t looked_at(const struct gshape *s)
{
    return s->kind == G_ARRAY ? s->u.arr.n_prefix / 4 : s->kind == G_OBJECT ? s->u.obj.n_props / 4 : 0;
}

static int heights(struct gctx *c, struct grammar *g)
{
    bool change = true;
    for (uint32_t round = 0; change; round++) {
        change = false;
        for (uint32_t i = 0; i < g->n_exprs; i++) {
            struct gexpr *x = g->expr[i];
            int r = g_steps(c, 1 + x->n_shapes);
            if (r)
                return r;
            for (uint32_t k = 0; k < x->n_shapes && x->height == G_INF; k++) {
                if ((r = g_steps(c, looked_at(g->shape[x->shape[k]]))))
                    return r;
                if (shape_alive(g, g->shape[x->shape[k]])) {
                    x->height = round;
                    change = true;
                }
            }
        }
    }
    return 0;
}

/* ---- objects' tables ---- */

static int by_name(const void *a, const void *b)
{
    const struct grammar_text *x = a, *y = b;
    int cmp = memcmp(x->ptr, y->ptr, x->n < y->n ? x->n : y->n);
    return cmp ? cmp : (x->n > y->n) - (x->n < y->n);
}

struct named {
    struct grammar_text name;
    uint32_t label;
};

struct trie {
    struct gctx *c;
    struct gobject *o;
    struct named *name; /* sorted */
    uint32_t cap;
};

/* Children of node k: names [lo, hi) share their first `depth` bytes. Breadth first, so that children lie together. */
static int trie_children(struct trie *t, uint32_t k, size_t depth, size_t *child_depth)
{
    struct gkeynode *node = t->o->trie;
    uint32_t i = node[k].lo, hi = node[k].hi, cp;
    if (i < hi && t->name[i].name.n == depth)
        node[k].label = t->name[i++].label;
    node[k].first = t->o->n_trie;
    while (i < hi) {
        uint32_t from = i;
        size_t len = utf8_next(t->name[i].name.ptr + depth, t->name[i].name.n - depth, &cp);
        if (!len)
            return err_set(t->c->e, -EINVAL, "a property's name is not UTF-8");
        while (i < hi && t->name[i].name.n >= depth + len &&
               !memcmp(t->name[i].name.ptr + depth, t->name[from].name.ptr + depth, len))
            i++;
        if (t->o->n_trie >= t->cap)
            return err_set(t->c->e, -E2BIG, "too many names");
        child_depth[t->o->n_trie] = depth + len;
        node[t->o->n_trie++] = (struct gkeynode){.lo = from, .hi = i, .cp = cp};
        node[k].n++;
    }
    return g_steps(t->c, 1 + hi - node[k].lo);
}

static int key_trie(struct gctx *c, struct gobject *o)
{
    size_t n = (size_t)o->n_props + o->n_never, bytes = 1;
    struct trie t = {.c = c, .o = o};
    int r = 0;
    for (uint32_t i = 0; i < o->n_props; i++)
        bytes += o->prop[i].name.n;
    for (uint32_t i = 0; i < o->n_never; i++)
        bytes += o->never[i].n;
    t.cap = (uint32_t)bytes;
    size_t *depth = g_tmp(c, bytes, sizeof *depth);
    t.name = g_tmp(c, n, sizeof *t.name);
    o->trie = g_alloc(c, bytes, sizeof *o->trie);
    o->order = g_alloc(c, n, sizeof *o->order);
    if (!depth || !t.name || !o->trie || !o->order)
        return g_memory_code(c);
    for (uint32_t i = 0; i < o->n_props; i++)
        t.name[i] = (struct named){o->prop[i].name, i + 1};
    for (uint32_t i = 0; i < o->n_never; i++)
        t.name[o->n_props + i] = (struct named){o->never[i], G_INF};
    qsort(t.name, n, sizeof *t.name, by_name);
    for (size_t i = 0; i < n; i++)
        o->order[i] = t.name[i].label;
    o->n_trie = 1;
    o->trie[0] = (struct gkeynode){.hi = (uint32_t)n};
    for (uint32_t k = 0; k < o->n_trie && !r; k++)
        r = trie_children(&t, k, depth[k], depth);
    return r;
}

static int object_tables(struct gctx *c, struct gobject *o)
{
    int r = key_trie(c, o);
    uint32_t n = o->n_props;
    o->required_after = g_alloc(c, (size_t)n + 1, sizeof *o->required_after);
    o->next_required = g_alloc(c, (size_t)n + 1, sizeof *o->next_required);
    if (r || !o->required_after || !o->next_required)
        return r ? r : g_memory_code(c);
    o->next_required[n] = n;
    for (uint32_t i = n; i--;) {
        o->required_after[i] = o->required_after[i + 1] + o->prop[i].required;
        o->next_required[i] = o->prop[i].required ? i : o->next_required[i + 1];
    }
    if (o->rest && !o->rest->self[1])
        r = gdfa_count(c, o->rest, &o->words);
    return r;
}

/* Names without a value may not come; the automaton of other keys loses the labels without one. */
static int cut_object(struct gctx *c, struct grammar *g, struct gobject *o)
{
    uint32_t kept = 0, lost = 0;
    int r = 0;
    for (uint32_t i = 0; i < o->n_props; i++)
        lost += !alive(g, o->prop[i].expr);
    if (lost) {
        struct grammar_text *never = g_alloc(c, (size_t)o->n_never + lost, sizeof *never);
        if (!never)
            return g_memory_code(c);
        if (o->n_never)
            memcpy(never, o->never, o->n_never * sizeof *never);
        o->never = never;
        for (uint32_t i = 0; i < o->n_props; i++) {
            if (alive(g, o->prop[i].expr))
                o->prop[kept++] = o->prop[i];
            else
                o->never[o->n_never++] = o->prop[i].name;
        }
        o->n_props = kept;
    }
    lost = 0;
    for (uint32_t i = 0; i < o->n_rest; i++)
        lost += !alive(g, o->rest_expr[i]);
    if (o->rest && lost == o->n_rest)
        o->rest = NULL;
    else if (o->rest && lost) {
        for (uint32_t s = 0; s < o->rest->n; s++)
            if (o->rest->label[s] && !alive(g, o->rest_expr[o->rest->label[s] - 1]))
                o->rest->label[s] = 0;
        r = gdfa_finish(c, o->rest);
        if (!r && o->rest->dist[1] == G_INF)
            o->rest = NULL;
    }
    return r ? r : object_tables(c, o);
}

static void first_bytes(struct gexpr *x, const struct gshape *s)
{
    static const char *const begin[] = {"n", "f", "t", "-0123456789", "\"", "[", "{"};
    for (const char *p = begin[s->kind]; *p; p++)
        x->first[(unsigned char)*p / 64] |= (uint64_t)1 << (*p % 64);
}

static bool object_counts(const struct gobject *o)
{
    uint64_t can = o->n_props;
    if (o->rest)
        can += o->words && o->words[1] < G_REST_FEW ? o->words[1] : o->words ? G_REST_FEW : G_REST_MAX;
    return can >= o->min;
}

#define ITEMS_MAX 1024u /* before item; each step in an array looks at those that are to come */
#define MERGED_STATES 4000
#define MERGED_LENGTH 256

/* Several strings of one expression become one automaton where that is small, so that they are not followed side by
 * side. Where it is not, they stay as they are. */
static int merge_strings(struct gctx *c, struct grammar *g, struct gexpr *x)
{
    struct gdfa *part[G_PARTS];
    struct galternatives alt = {0};
    struct gshape merged = {.kind = G_STRING, .u.str = {.max = G_INF, .id = g->n_shapes}};
    uint32_t took[G_PARTS], kept = 0;
    size_t n = 0, states = c->lim.max_states;
    int r = 0;
    for (uint32_t i = 0; i < x->n_shapes && n + 2 <= G_PARTS && !r; i++) {
        const struct gshape *s = g->shape[x->shape[i]];
        const struct gstring *t = &s->u.str;
        if (s->kind != G_STRING || t->unique || (t->max == G_INF ? t->min : t->max) > MERGED_LENGTH)
            continue;
        took[alt.n] = i;
        part[n++] = t->dfa;
        if (t->min || t->max != G_INF)
            r = gdfa_length(c, t->min, t->max, &part[n++]);
        alt.first[++alt.n] = n;
    }
    if (r || alt.n < 2)
        return r;
    c->lim.max_states = states < MERGED_STATES ? states : MERGED_STATES;
    r = gdfa_union(c, part, &alt, &merged.u.str.dfa);
    c->lim.max_states = states;
    if (r == -E2BIG && c->steps <= c->lim.max_steps && !c->full)
        return 0;
    if (r)
        return r;
    for (uint32_t i = 0, k = 0; i < x->n_shapes; i++) {
        if (k < alt.n && took[k] == i)
            k++;
        else
            x->shape[kept++] = x->shape[i];
    }
    x->n_shapes = kept;
    return gshape_add(c, g, x, &merged);
}

static int unique_items(struct gctx *c, struct grammar *g)
{
    for (uint32_t i = 0, n = g->n_exprs; i < n; i++)
        for (uint32_t k = 0; g->expr[i]->reached && k < g->expr[i]->n_shapes; k++) {
            struct gshape *s = g->shape[g->expr[i]->shape[k]];
            int r = s->kind == G_ARRAY && s->u.arr.unique ? gunique_items(c, g, &s->u.arr) : 0;
            if (r)
                return r;
        }
    return 0;
}

static int strings_and_items(struct gctx *c, struct grammar *g)
{
    int r = 0;
    for (uint32_t i = 0; i < g->n_exprs && !r; i++)
        r = g->expr[i]->reached ? merge_strings(c, g, g->expr[i]) : 0;
    return r ? r : unique_items(c, g);
}

int g_finalise(struct gctx *c, struct grammar *g)
{
    int r = strings_and_items(c, g);
    if (r || (r = heights(c, g)))
        return r;
    if (!alive(g, g->root))
        return err_set(c->e, -EINVAL, "#: no value satisfies the schema");
    for (uint32_t i = 0; i < g->n_shapes; i++) {
        struct gshape *s = g->shape[i];
        if (s->kind == G_ARRAY && s->u.arr.n_prefix > ITEMS_MAX)
            return err_set(c->e, -E2BIG, "#: an array of more than %u items that each have their own schema",
                           ITEMS_MAX);
        s->empty = !shape_alive(g, s);
        if (s->empty || s->kind != G_OBJECT)
            continue;
        if ((r = cut_object(c, g, &s->u.obj)))
            return r;
        if (!object_counts(&s->u.obj))
            return err_set(c->e, -EINVAL, "#: minProperties %u with so few declared properties is not supported",
                           s->u.obj.min);
    }
    for (uint32_t i = 0; i < g->n_exprs; i++) {
        struct gexpr *x = g->expr[i];
        uint32_t n = 0;
        for (uint32_t k = 0; k < x->n_shapes; k++)
            if (!g->shape[x->shape[k]]->empty) {
                first_bytes(x, g->shape[x->shape[k]]);
                x->shape[n++] = x->shape[k];
            }
        x->n_shapes = n;
    }
    return 0;
}
