/* grammar_dfa.c - deterministic automata over code points: subset construction, word sets, products.
 *
 * Used while a grammar is compiled, by the thread that compiles. The automata live in the grammar's arena and never
 * change afterwards; everything on the way to them is in the temporary one. Code points fall into classes, few in
 * practice, and tables are states times classes. States are bounded by the context's max_states, work by its steps.
 *
 * Always: an edge leads to state 0 exactly when no accepting state can be reached by it, so whoever follows edges other
 * than those to 0 can get to an end.
 */
#include "model/grammar_nfa.h"

#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/utf8.h"

/* ---- bounds and small tools of the context ---- */

int g_memory_code(struct gctx *c)
{
    if (c->full)
        return err_set(c->e, -E2BIG, "%s%sthe grammar takes more than %zu bytes to compile", c->where ? c->where : "",
                       c->where && *c->where ? ": " : "", c->lim.max_memory);
    return err_set(c->e, -ENOMEM, "out of memory");
}

static void *take(struct gctx *c, struct arena *a, size_t n, size_t size)
{
    size_t bytes;
    void *p = ck_mul(n ? n : 1, size, &bytes) ? NULL : arena_calloc(a, n ? n : 1, size);
    if (!p)
        c->full = bytes + 16 > c->lim.max_memory / 2 || arena_used(a) > c->lim.max_memory / 2 - bytes - 16;
    return p;
}

void *g_alloc(struct gctx *c, size_t n, size_t size)
{
    return take(c, c->a, n, size);
}

void *g_tmp(struct gctx *c, size_t n, size_t size)
{
    return take(c, c->tmp, n, size);
}

int g_steps(struct gctx *c, uint64_t n)
{
    c->steps += n;
    if (c->steps > c->lim.max_steps)
        return err_set(c->e, -E2BIG, "%s%sthe grammar takes more than %llu steps to compile", c->where ? c->where : "",
                       c->where && *c->where ? ": " : "", (unsigned long long)c->lim.max_steps);
    return 0;
}

int g_push(struct gctx *c, struct gvec *v, uint32_t x)
{
    if (v->n == v->cap) {
        size_t cap = v->cap ? 2 * v->cap : 16;
        uint32_t *p = g_tmp(c, cap, sizeof *p);
        if (!p)
            return g_memory_code(c);
        if (v->n)
            memcpy(p, v->p, v->n * sizeof *p);
        v->p = p;
        v->cap = cap;
    }
    v->p[v->n++] = x;
    return 0;
}

int gset_add(struct gctx *c, struct gset *s, uint32_t lo, uint32_t hi)
{
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 4;
        struct grange *p = g_tmp(c, cap, sizeof *p);
        if (!p)
            return g_memory_code(c);
        if (s->n)
            memcpy(p, s->r, s->n * sizeof *p);
        s->r = p;
        s->cap = cap;
    }
    s->r[s->n++] = (struct grange){lo, hi};
    return 0;
}

static int by_lo(const void *a, const void *b)
{
    const struct grange *x = a, *y = b;
    return (x->lo > y->lo) - (x->lo < y->lo);
}

void gset_norm(struct gset *s)
{
    size_t n = 0;
    if (s->n)
        qsort(s->r, s->n, sizeof *s->r, by_lo);
    for (size_t i = 0; i < s->n; i++) {
        if (n && s->r[i].lo <= s->r[n - 1].hi + 1) {
            if (s->r[i].hi > s->r[n - 1].hi)
                s->r[n - 1].hi = s->r[i].hi;
        } else
            s->r[n++] = s->r[i];
    }
    s->n = n;
}

int gset_invert(struct gctx *c, const struct gset *s, struct gset *out)
{
    struct gset in = *s;
    gset_norm(&in);
    uint32_t at = 0;
    int r;
    for (size_t i = 0; i < in.n; i++) {
        if (in.r[i].lo > at && (r = gset_add(c, out, at, in.r[i].lo - 1)))
            return r;
        at = in.r[i].hi + 1;
    }
    return at <= G_CP_MAX ? gset_add(c, out, at, G_CP_MAX) : 0;
}

static int by_u32(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static size_t unique(uint32_t *p, size_t n)
{
    size_t k = 0;
    if (n)
        qsort(p, n, sizeof *p, by_u32);
    for (size_t i = 0; i < n; i++)
        if (!k || p[k - 1] != p[i])
            p[k++] = p[i];
    return k;
}

/* ---- finding equal lists of numbers: states on the way ---- */

struct lists {
    struct gvec items, off; /* list i is items[off[i]..off[i+1]) */
    uint32_t *slot;         /* 1 + index */
    size_t cap;
};

static uint64_t list_hash(const uint32_t *p, size_t n)
{
    uint64_t h = 0x9E3779B97F4A7C15u + n;
    for (size_t i = 0; i < n; i++) {
        h = (h ^ p[i]) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
    }
    return h;
}

static bool list_is(const struct lists *l, uint32_t i, const uint32_t *p, size_t n)
{
    return l->off.p[i + 1] - l->off.p[i] == n && (!n || !memcmp(l->items.p + l->off.p[i], p, n * sizeof *p));
}

static int lists_grow(struct gctx *c, struct lists *l)
{
    size_t cap = l->cap ? 2 * l->cap : 64;
    uint32_t *slot = g_tmp(c, cap, sizeof *slot);
    if (!slot)
        return g_memory_code(c);
    for (size_t i = 0; i + 1 < l->off.n; i++) {
        uint64_t h = list_hash(l->items.p + l->off.p[i], l->off.p[i + 1] - l->off.p[i]);
        while (slot[h & (cap - 1)])
            h++;
        slot[h & (cap - 1)] = (uint32_t)i + 1;
    }
    l->slot = slot;
    l->cap = cap;
    return l->off.n ? 0 : g_push(c, &l->off, 0);
}

/* The index of the list p[0..n), added where it is new. */
static int lists_find(struct gctx *c, struct lists *l, const uint32_t *p, size_t n, uint32_t *index)
{
    int r;
    if (2 * l->off.n >= l->cap && (r = lists_grow(c, l)))
        return r;
    uint64_t h = list_hash(p, n);
    for (; l->slot[h & (l->cap - 1)]; h++) {
        uint32_t i = l->slot[h & (l->cap - 1)] - 1;
        if (list_is(l, i, p, n)) {
            *index = i;
            return 0;
        }
    }
    if (l->off.n > c->lim.max_states)
        return err_set(c->e, -E2BIG, "%s%san automaton of more than %zu states", c->where ? c->where : "",
                       c->where && *c->where ? ": " : "", c->lim.max_states);
    for (size_t i = 0; i < n; i++)
        if ((r = g_push(c, &l->items, p[i])))
            return r;
    *index = (uint32_t)l->off.n - 1;
    l->slot[h & (l->cap - 1)] = *index + 1;
    return g_push(c, &l->off, (uint32_t)l->items.n);
}

/* ---- classes ---- */

/* Fills lo, cls, n_ranges, n_classes: code points that the columns (one list of numbers a range) tell not apart are in
 * one class. bound: where ranges begin, in any order. of() gives the column of the range that begins at cp. Class 0 is
 * what no text has: NUL, which we never write, and surrogates. */
typedef int column_of(struct gctx *c, void *arg, uint32_t cp, struct gvec *column);

static int classes(struct gctx *c, struct gdfa *d, struct gvec *bound, column_of *of, void *arg)
{
    struct lists seen = {0};
    struct gvec column = {0};
    uint32_t k;
    int r;
    static const uint32_t never[] = {0, 1, 0xD800, 0xE000};
    for (int i = 0; i < 4; i++)
        if ((r = g_push(c, bound, never[i])))
            return r;
    size_t n = unique(bound->p, bound->n);
    d->lo = g_alloc(c, n, sizeof *d->lo);
    d->cls = g_alloc(c, n, sizeof *d->cls);
    if (!d->lo || !d->cls)
        return g_memory_code(c);
    for (size_t i = 0; i < n; i++) {
        uint32_t cp = bound->p[i];
        column.n = 0;
        if ((r = cp == 0 || cp == 0xD800 ? g_push(c, &column, G_INF) : of(c, arg, cp, &column)) ||
            (r = lists_find(c, &seen, column.p, column.n, &k)) || (r = g_steps(c, column.n + 1)))
            return r;
        if (k >= UINT16_MAX)
            return err_set(c->e, -E2BIG, "an automaton with too many kinds of characters");
        if (d->n_ranges && d->cls[d->n_ranges - 1] == k)
            continue;
        d->lo[d->n_ranges] = cp;
        d->cls[d->n_ranges++] = (uint16_t)k;
    }
    d->n_classes = (uint32_t)seen.off.n - 1;
    return 0;
}

/* A code point of each class. */
static int class_points(struct gctx *c, const struct gdfa *d, uint32_t **out)
{
    uint32_t *cp = g_tmp(c, d->n_classes, sizeof *cp);
    if (!cp)
        return g_memory_code(c);
    for (uint32_t i = d->n_ranges; i--;)
        cp[d->cls[i]] = d->lo[i];
    *out = cp;
    return 0;
}

/* Distances to acceptance, from the end backwards by repeated relaxation over a queue. */
static int distances(struct gctx *c, struct gdfa *d)
{
    uint32_t *first = g_tmp(c, (size_t)d->n + 1, sizeof *first), *queue = g_tmp(c, d->n, sizeof *queue);
    size_t edges = (size_t)d->n * d->n_classes, head = 0, tail = 0;
    uint32_t *from = g_tmp(c, edges, sizeof *from);
    int r;
    if (!first || !queue || !from)
        return g_memory_code(c);
    if ((r = g_steps(c, 2 * edges)))
        return r;
    for (size_t i = 0; i < edges; i++)
        first[d->next[i] + 1]++;
    for (uint32_t s = 0; s < d->n; s++)
        first[s + 1] += first[s];
    uint32_t *fill = g_tmp(c, (size_t)d->n + 1, sizeof *fill);
    if (!fill)
        return g_memory_code(c);
    memcpy(fill, first, ((size_t)d->n + 1) * sizeof *fill);
    for (size_t i = 0; i < edges; i++)
        from[fill[d->next[i]]++] = (uint32_t)(i / d->n_classes);
    for (uint32_t s = 0; s < d->n; s++) {
        d->dist[s] = d->label[s] && s ? 0 : G_INF;
        if (!d->dist[s])
            queue[tail++] = s;
    }
    while (head < tail) {
        uint32_t s = queue[head++];
        for (uint32_t i = first[s]; i < first[s + 1]; i++)
            if (d->dist[from[i]] == G_INF && from[i]) {
                d->dist[from[i]] = d->dist[s] + 1;
                queue[tail++] = from[i];
            }
    }
    return 0;
}

/* The classes that a printable ASCII character is of, each once. */
static uint32_t ascii_classes(const struct gdfa *d, uint32_t list[96])
{
    uint32_t n = 0;
    for (uint32_t b = 0x20; b < 0x7F; b++) {
        uint32_t k = 0;
        while (k < n && list[k] != d->ascii[b])
            k++;
        if (k == n && b != '"' && b != '\\')
            list[n++] = d->ascii[b];
    }
    return n;
}

static bool within(const struct gbytes *a, const struct gbytes *b)
{
    return !((a->w[0] & ~b->w[0]) | (a->w[1] & ~b->w[1]));
}

/* open, and run: the distance to a state that takes less than the one before it, backwards from those that lead to
 * one. Predecessors are found by a list of edges for each state. */
static int runs(struct gctx *c, struct gdfa *d)
{
    uint32_t list[96], n = ascii_classes(d, list), head = 0, tail = 0;
    size_t edges = (size_t)d->n * n;
    uint32_t *first = g_tmp(c, d->n, sizeof *first), *next = g_tmp(c, edges, sizeof *next);
    uint32_t *queue = g_tmp(c, d->n, sizeof *queue);
    d->open = g_alloc(c, d->n, sizeof *d->open);
    d->run = g_alloc(c, d->n, sizeof *d->run);
    if (!first || !next || !queue || !d->open || !d->run)
        return g_memory_code(c);
    int r = g_steps(c, edges + 95 * (uint64_t)d->n);
    for (uint32_t s = 1; s < d->n && !r; s++)
        for (uint32_t b = 0x20; b < 0x7F; b++)
            if (b != '"' && b != '\\' && d->next[(size_t)s * d->n_classes + d->ascii[b]])
                d->open[s].w[b / 64] |= (uint64_t)1 << (b % 64);
    for (uint32_t s = 1; s < d->n && !r; s++) {
        d->run[s] = G_INF;
        for (uint32_t k = 0; k < n; k++) {
            uint32_t to = d->next[(size_t)s * d->n_classes + list[k]];
            size_t e = (size_t)s * n + k;
            if (!to)
                continue;
            next[e] = first[to]; /* edges into `to`, 1 + index */
            first[to] = (uint32_t)e + 1;
            if (d->run[s] == G_INF && !within(&d->open[s], &d->open[to])) {
                d->run[s] = 1;
                queue[tail++] = s;
            }
        }
    }
    while (head < tail && !r) {
        uint32_t s = queue[head++];
        for (uint32_t e = first[s]; e; e = next[e - 1]) {
            uint32_t from = (e - 1) / n;
            if (d->run[from] != G_INF)
                continue;
            d->run[from] = d->run[s] + 1;
            queue[tail++] = from;
        }
    }
    return r;
}

int gdfa_finish(struct gctx *c, struct gdfa *d)
{
    d->dist = g_alloc(c, d->n, sizeof *d->dist);
    d->self = g_alloc(c, d->n, sizeof *d->self);
    if (!d->dist || !d->self)
        return g_memory_code(c);
    uint32_t range = 0;
    for (uint32_t cp = 0; cp < 128; cp++) {
        while (range + 1 < d->n_ranges && d->lo[range + 1] <= cp)
            range++;
        d->ascii[cp] = d->cls[range];
    }
    for (uint32_t s = 0; s < d->n; s++)
        d->next[(size_t)s * d->n_classes] = 0;
    int r = distances(c, d);
    for (uint32_t s = 0; s < d->n && !r; s++) {
        uint32_t *row = d->next + (size_t)s * d->n_classes;
        d->self[s] = s != 0;
        for (uint32_t k = 0; k < d->n_classes; k++) {
            if (d->dist[row[k]] == G_INF)
                row[k] = 0;
            d->self[s] = d->self[s] && (!k || row[k] == s);
        }
    }
    return r ? r : runs(c, d);
}

/* ---- subset construction ---- */

struct subsets {
    const struct gnfa *f;
    struct gvec stack, set;
    uint32_t *mark, stamp;
};

static int nfa_column(struct gctx *c, void *arg, uint32_t cp, struct gvec *column)
{
    const struct gnfa *f = arg;
    int r = g_steps(c, f->n_sets / 4 + 1); /* most of the sets are passed by */
    for (size_t i = 0; i < f->n_sets && !r; i++) {
        const struct gset *s = &f->set[i];
        size_t a = 0, b = s->n;
        while (a < b) {
            size_t m = (a + b) / 2;
            if (s->r[m].hi < cp)
                a = m + 1;
            else
                b = m;
        }
        if (a < s->n && s->r[a].lo <= cp)
            r = g_push(c, column, (uint32_t)i);
    }
    return r;
}

/* Adds to w->set what id reaches without a character. begin: the text's beginning; end: the text's end. */
static int closure(struct gctx *c, struct subsets *w, uint32_t id, bool begin, bool end)
{
    int r = g_push(c, &w->stack, id);
    while (!r && w->stack.n) {
        uint32_t k = w->stack.p[--w->stack.n];
        const struct gnfa_node *x = &w->f->node[k];
        if (w->mark[k] == w->stamp)
            continue;
        w->mark[k] = w->stamp;
        if (x->kind == N_SPLIT) {
            if (!(r = g_push(c, &w->stack, x->b)))
                r = g_push(c, &w->stack, x->a);
        } else if ((x->kind == N_BEGIN && begin) || (x->kind == N_END && end))
            r = g_push(c, &w->stack, x->a);
        else if (x->kind != N_BEGIN || begin)
            r = g_push(c, &w->set, k);
        r = r ? r : g_steps(c, 1);
    }
    return r;
}

/* The set as a sorted list, with everything but the match dropped where any end will do. */
static void set_close(struct subsets *w)
{
    w->set.n = unique(w->set.p, w->set.n);
    for (size_t i = 0; i < w->set.n; i++)
        if (w->set.p[i] != G_INF && w->f->node[w->set.p[i]].kind == N_MATCH_ALL) {
            w->set.p[0] = w->set.p[i];
            w->set.n = 1;
        }
}

/* The label of a state: the least of the matches that its members reach at the end. */
static int state_label(struct gctx *c, struct subsets *w, const uint32_t *p, size_t n, bool begin, uint32_t *label)
{
    int r = 0;
    w->set.n = 0;
    w->stamp++;
    for (size_t i = 0; i < n && !r; i++)
        if (p[i] != G_INF)
            r = closure(c, w, p[i], begin, true);
    *label = 0;
    for (size_t i = 0; i < w->set.n && !r; i++) {
        const struct gnfa_node *x = &w->f->node[w->set.p[i]];
        if ((x->kind == N_MATCH || x->kind == N_MATCH_ALL) && (!*label || x->a < *label))
            *label = x->a;
    }
    return r;
}

struct table {
    struct gvec next, label;
};

static int table_keep(struct gctx *c, const struct table *t, struct gdfa *d)
{
    d->n = (uint32_t)t->label.n;
    d->next = g_alloc(c, t->next.n, sizeof *d->next);
    d->label = g_alloc(c, d->n, sizeof *d->label);
    if (!d->next || !d->label)
        return g_memory_code(c);
    memcpy(d->next, t->next.p, t->next.n * sizeof *d->next);
    memcpy(d->label, t->label.p, d->n * sizeof *d->label);
    return gdfa_finish(c, d);
}

/* The successor of list `from` (a copy) by a class whose sets are column[0..n). */
static int move(struct gctx *c, struct subsets *w, const struct gvec *from, const bool *in)
{
    int r = 0;
    w->set.n = 0;
    w->stamp++;
    for (size_t i = 0; i < from->n && !r; i++) {
        if (from->p[i] == G_INF)
            continue;
        const struct gnfa_node *x = &w->f->node[from->p[i]];
        if (x->kind == N_MATCH_ALL)
            r = g_push(c, &w->set, from->p[i]);
        else if (x->kind == N_SET && in[x->b])
            r = closure(c, w, x->a, false, false);
    }
    set_close(w);
    return r ? r : g_steps(c, from->n + 1);
}

static int explore(struct gctx *c, struct subsets *w, struct gdfa *d, bool *const *member, struct table *t)
{
    struct lists l = {0};
    struct gvec from = {0};
    uint32_t id, label;
    int r = lists_find(c, &l, NULL, 0, &id);
    w->stamp++;
    w->set.n = 0;
    if (r || (r = closure(c, w, w->f->start, true, false)))
        return r;
    set_close(w);
    if ((r = g_push(c, &w->set, G_INF)) || (r = lists_find(c, &l, w->set.p, w->set.n, &id)))
        return r;
    for (uint32_t s = 0; s + 1 < l.off.n; s++) {
        from.n = 0;
        for (uint32_t i = l.off.p[s]; i < l.off.p[s + 1]; i++)
            if ((r = g_push(c, &from, l.items.p[i])))
                return r;
        if ((r = state_label(c, w, from.p, from.n, s == 1, &label)) || (r = g_push(c, &t->label, label)))
            return r;
        for (uint32_t k = 0; k < d->n_classes; k++)
            if ((r = move(c, w, &from, member[k])) || (r = lists_find(c, &l, w->set.p, w->set.n, &id)) ||
                (r = g_push(c, &t->next, id)))
                return r;
    }
    return 0;
}

int gdfa_subsets(struct gctx *c, const struct gnfa *f, struct gdfa **out)
{
    struct gdfa *d = g_alloc(c, 1, sizeof *d);
    struct subsets w = {.f = f};
    struct gvec bound = {0}, column = {0};
    struct table t = {0};
    uint32_t *cp = NULL;
    bool **member = NULL;
    int r = g_push(c, &bound, 0);
    w.mark = g_tmp(c, f->n, sizeof *w.mark);
    if (!d || !w.mark)
        return g_memory_code(c);
    for (size_t i = 0; i < f->n_sets && !r; i++)
        for (size_t k = 0; k < f->set[i].n && !r; k++) {
            r = g_push(c, &bound, f->set[i].r[k].lo);
            if (!r && f->set[i].r[k].hi < G_CP_MAX)
                r = g_push(c, &bound, f->set[i].r[k].hi + 1);
        }
    if (r || (r = classes(c, d, &bound, nfa_column, (void *)(uintptr_t)f)) || (r = class_points(c, d, &cp)))
        return r;
    if (!(member = g_tmp(c, d->n_classes, sizeof *member)))
        return g_memory_code(c);
    for (uint32_t k = 0; k < d->n_classes; k++) {
        if (!(member[k] = g_tmp(c, f->n_sets, sizeof **member)))
            return g_memory_code(c);
        column.n = 0;
        if ((r = nfa_column(c, (void *)(uintptr_t)f, cp[k], &column)))
            return r;
        for (size_t i = 0; i < column.n; i++)
            member[k][column.p[i]] = true;
    }
    if ((r = explore(c, &w, d, member, &t)) || (r = table_keep(c, &t, d)))
        return r;
    *out = d;
    return 0;
}

/* ---- simple automata ---- */

int gdfa_words(struct gctx *c, const struct grammar_text *words, size_t n, struct gdfa **out)
{
    struct gnfa f = {0};
    uint32_t at = 0, id, start = G_INF;
    int r;
    for (size_t i = n; i--;) {
        if ((r = gnfa_node(c, &f, N_MATCH, (uint32_t)i + 1, 0, &at)))
            return r;
        for (size_t k = words[i].n; k;) {
            size_t len = 1;
            uint32_t cp;
            struct gset one = {0};
            while (len < k && ((unsigned char)words[i].ptr[k - len] & 0xC0) == 0x80)
                len++;
            if (!utf8_next(words[i].ptr + k - len, len, &cp))
                return err_set(c->e, -EINVAL, "invalid UTF-8");
            if ((r = gset_add(c, &one, cp, cp)) || (r = gnfa_set(c, &f, &one, at, &id)))
                return r;
            at = id;
            k -= len;
        }
        if (start != G_INF && (r = gnfa_node(c, &f, N_SPLIT, at, start, &at)))
            return r;
        start = at;
    }
    if (start == G_INF && (r = gnfa_node(c, &f, N_BEGIN, 0, 0, &start))) /* no word: stuck at once */
        return r;
    f.start = start;
    return gdfa_subsets(c, &f, out);
}

/* A chain: after k characters state 1 + k, and the last one goes on in itself where `loop`. */
static int chain(struct gctx *c, uint32_t n, uint32_t min, bool loop, struct gdfa **out)
{
    struct gdfa *d = g_alloc(c, 1, sizeof *d);
    if (!d)
        return g_memory_code(c);
    if (n >= c->lim.max_states)
        return err_set(c->e, -E2BIG, "%s%sa length beyond %zu together with a pattern", c->where ? c->where : "",
                       c->where && *c->where ? ": " : "", c->lim.max_states);
    d->n = n + 1;
    d->n_classes = 2;
    d->n_ranges = 4;
    d->lo = g_alloc(c, 4, sizeof *d->lo);
    d->cls = g_alloc(c, 4, sizeof *d->cls);
    d->next = g_alloc(c, d->n, 2 * sizeof *d->next);
    d->label = g_alloc(c, d->n, sizeof *d->label);
    if (!d->lo || !d->cls || !d->next || !d->label)
        return g_memory_code(c);
    d->lo[1] = 1, d->lo[2] = 0xD800, d->lo[3] = 0xE000;
    d->cls[1] = d->cls[3] = 1;
    for (uint32_t s = 1; s <= n; s++) {
        d->next[2 * s + 1] = s < n ? s + 1 : loop ? s : 0;
        d->label[s] = s - 1 >= min;
    }
    int r = gdfa_finish(c, d);
    if (!r)
        *out = d;
    return r;
}

int gdfa_any(struct gctx *c, struct gdfa **out)
{
    return chain(c, 1, 0, true, out);
}

int gdfa_length(struct gctx *c, uint32_t min, uint32_t max, struct gdfa **out)
{
    if (max != G_INF && max < min)
        return gdfa_words(c, NULL, 0, out);
    uint32_t n = max == G_INF ? min : max;
    return n < G_INF - 2 ? chain(c, n + 1, min, max == G_INF, out)
                         : err_set(c->e, -E2BIG, "a length beyond 4294967292");
}

/* ---- products ---- */

struct product {
    struct gdfa *const *part;
    size_t k;
};

static int product_column(struct gctx *c, void *arg, uint32_t cp, struct gvec *column)
{
    const struct product *p = arg;
    int r = 0;
    for (size_t i = 0; i < p->k && !r; i++)
        r = g_push(c, column, gdfa_class(p->part[i], cp));
    return r;
}

static int product_explore(struct gctx *c, const struct product *p, const struct gdfa *d, const uint32_t *cp,
                           gdfa_label *label, void *arg, struct table *t)
{
    struct lists l = {0};
    uint32_t at[G_PARTS], to[G_PARTS], id, name;
    int r = lists_find(c, &l, NULL, 0, &id);
    for (size_t i = 0; i < p->k; i++)
        to[i] = 1;
    if (r || (r = lists_find(c, &l, to, p->k, &id)))
        return r;
    for (uint32_t s = 0; s + 1 < l.off.n; s++) {
        if (!s) {
            for (uint32_t k = 0; k < d->n_classes && !r; k++)
                r = g_push(c, &t->next, 0);
            if (r || (r = g_push(c, &t->label, 0)))
                return r;
            continue;
        }
        memcpy(at, l.items.p + l.off.p[s], p->k * sizeof *at);
        for (size_t i = 0; i < p->k; i++)
            to[i] = p->part[i]->label[at[i]];
        if ((r = label(arg, to, &name)) || (r = g_push(c, &t->label, name)))
            return r;
        for (uint32_t k = 0; k < d->n_classes; k++) {
            for (size_t i = 0; i < p->k; i++)
                to[i] = gdfa_step(p->part[i], at[i], cp[k]);
            if ((r = lists_find(c, &l, to, p->k, &id)) || (r = g_push(c, &t->next, id)) || (r = g_steps(c, p->k)))
                return r;
        }
    }
    return 0;
}

int gdfa_product(struct gctx *c, struct gdfa *const *part, size_t k, gdfa_label *label, void *arg, struct gdfa **out)
{
    struct product p = {part, k};
    struct gdfa *d = g_alloc(c, 1, sizeof *d);
    struct gvec bound = {0};
    struct table t = {0};
    uint32_t *cp = NULL;
    int r = 0;
    if (!d)
        return g_memory_code(c);
    for (size_t i = 0; i < k && !r; i++)
        for (uint32_t j = 0; j < part[i]->n_ranges && !r; j++)
            r = g_push(c, &bound, part[i]->lo[j]);
    if (r || (r = classes(c, d, &bound, product_column, &p)) || (r = class_points(c, d, &cp)) ||
        (r = product_explore(c, &p, d, cp, label, arg, &t)) || (r = table_keep(c, &t, d)))
        return r;
    *out = d;
    return 0;
}

static int label_any(void *arg, const uint32_t *labels, uint32_t *out)
{
    const struct galternatives *a = arg;
    *out = 0;
    for (size_t i = 0; i < a->n && !*out; i++) {
        bool all = true;
        for (size_t k = a->first[i]; k < a->first[i + 1]; k++)
            all = all && labels[k];
        *out = all;
    }
    return 0;
}

int gdfa_union(struct gctx *c, struct gdfa *const *part, const struct galternatives *a, struct gdfa **out)
{
    if (!a->n)
        return gdfa_words(c, NULL, 0, out);
    if (a->first[a->n] == 1)
        return *out = part[0], 0;
    return gdfa_product(c, part, a->first[a->n], label_any, (void *)(uintptr_t)a, out);
}

/* ---- questions ---- */

uint32_t gdfa_match(const struct gdfa *d, const char *text, size_t n)
{
    uint32_t s = 1, cp;
    for (size_t i = 0; i < n && s;) {
        size_t k = utf8_next(text + i, n - i, &cp);
        if (!k)
            return 0;
        s = gdfa_step(d, s, cp);
        i += k;
    }
    return d->label[s];
}

/* Repeats until nothing changes; what never settles lies on a way to a loop. */
int gdfa_count(struct gctx *c, const struct gdfa *d, uint64_t **out)
{
    uint64_t *words = g_alloc(c, d->n, sizeof *words);
    uint8_t *known = g_tmp(c, d->n, 1);
    if (!known || !words)
        return g_memory_code(c);
    for (uint32_t s = 1; s < d->n; s++)
        words[s] = G_WORDS_INF;
    for (bool change = true; change;) {
        change = false;
        for (uint32_t s = d->n - 1; s; s--) {
            uint64_t n = d->label[s] != 0;
            bool all = !known[s];
            int r = g_steps(c, all ? d->n_ranges : 1);
            if (r)
                return r;
            for (uint32_t i = 0; i < d->n_ranges && all; i++) {
                uint32_t to = d->next[(size_t)s * d->n_classes + d->cls[i]];
                uint32_t width = (i + 1 < d->n_ranges ? d->lo[i + 1] : G_CP_MAX + 1) - d->lo[i];
                all = !to || known[to];
                if (to && all && (words[to] == G_WORDS_INF || (n += width * words[to]) > UINT32_MAX))
                    n = G_WORDS_INF;
                if (n == G_WORDS_INF)
                    break;
            }
            if (!all)
                continue;
            words[s] = n;
            known[s] = 1;
            change = true;
        }
    }
    *out = words;
    return 0;
}
