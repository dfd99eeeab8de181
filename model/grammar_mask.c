/* grammar_mask.c - from a configuration to the tokens that it allows.
 *
 * Runs for one sequence in the engine thread; the cache is its grammar's, under a mutex that is held for the work of
 * one mask. A mask is a walk over the vocabulary's trie. What makes it cheap:
 *
 * - Inside a string, a key or a number most tokens never leave it. Whether they do depends on that frame alone, not on
 *   what it stands in, so this part is kept by the frame ("local"), with the list of trie nodes at which the frame has
 *   ended; only the subtrees of those are walked with the frames below.
 * - Where a string's automaton stays in a state for all bytes of a subtree, the subtree is taken whole.
 * - Masks of other configurations that took long are kept by a 128-bit hash of the stack.
 *
 * The cache is bounded in bytes and starts again from nothing when it is full.
 */
#include "model/grammar_run.h"

#include <stdlib.h>
#include <string.h>

struct key {
    uint64_t w[4];
};

struct entry {
    struct entry *next;
    struct key key;
    size_t bytes;
    uint32_t *exit; /* trie nodes at which the frame has ended */
    size_t n_exits;
    uint32_t mask[];
};

struct gcache {
    pthread_mutex_t lock;
    struct entry *bucket[1024];
    size_t bytes, max_bytes;
};

int gcache_create(const struct grammar_vocab *v, size_t bytes, struct gcache **out)
{
    struct gcache *c = calloc(1, sizeof *c);
    size_t least = 16 * (size_t)v->n_words * 4;
    if (!c)
        return -ENOMEM;
    if (pthread_mutex_init(&c->lock, NULL)) {
        free(c);
        return -ENOMEM;
    }
    c->max_bytes = bytes > least ? bytes : least;
    *out = c;
    return 0;
}

static void flush(struct gcache *c)
{
    for (size_t i = 0; i < 1024; i++) {
        for (struct entry *e = c->bucket[i], *next; e; e = next) {
            next = e->next;
            free(e->exit);
            free(e);
        }
        c->bucket[i] = NULL;
    }
    c->bytes = 0;
}

void gcache_free(struct gcache *c)
{
    if (!c)
        return;
    flush(c);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

static struct entry **find(struct gcache *c, const struct key *k)
{
    uint64_t h = (k->w[0] ^ k->w[1] * 31 ^ k->w[2] * 0x9E3779B97F4A7C15u ^ k->w[3] * 0xD6E8FEB86659FD93u);
    struct entry **e = &c->bucket[(h ^ h >> 33) & 1023];
    while (*e && memcmp(&(*e)->key, k, sizeof *k))
        e = &(*e)->next;
    return e;
}

static struct entry *entry_new(const struct grammar_vocab *v, const struct key *k)
{
    struct entry *e = calloc(1, sizeof *e + (size_t)v->n_words * 4);
    if (e) {
        e->key = *k;
        e->bytes = sizeof *e + (size_t)v->n_words * 4;
    }
    return e;
}

/* Takes e over, unless it is too large to keep. */
static bool keep(struct gcache *c, struct entry *e)
{
    if (e->bytes > c->max_bytes / 2)
        return false;
    if (c->bytes + e->bytes > c->max_bytes)
        flush(c);
    struct entry **at = find(c, &e->key);
    e->next = *at;
    *at = e;
    c->bytes += e->bytes;
    return true;
}

/* ---- walking with stacks ---- */

static int push(struct gwalk *w, const struct gconfigs *c)
{
    if (w->n + c->n > w->cap) {
        size_t cap = 2 * (w->cap + G_CONFIGS);
        uint32_t *p = realloc(w->id, cap * sizeof *p);
        if (!p)
            return -ENOMEM;
        w->id = p;
        w->cap = cap;
    }
    memcpy(w->id + w->n, c->id, c->n * sizeof *c->id);
    w->n += c->n;
    return 0;
}

/* Marks the tokens below node v that `at` allows; at holds v's configurations. *work counts steps. */
static int walk(const struct grammar *g, struct gstore *s, struct gwalk *w, uint32_t v, const struct gconfigs *at,
                uint32_t *mask, size_t *work)
{
    const struct grammar_vocab *t = g->vocab;
    size_t off[G_TOKEN_MAX + 2];
    uint32_t base = t->depth[v], end = t->skip[v];
    w->n = 0;
    off[base] = 0;
    if (push(w, at))
        return -ENOMEM;
    off[base + 1] = w->n;
    for (uint32_t k = v + 1; k < end;) {
        uint32_t d = t->depth[k];
        struct gconfigs to;
        to.n = 0;
        w->n = off[d];
        for (size_t i = off[d - 1]; i < off[d]; i++)
            gstep(g, s, w->id[i], t->byte[k], &to);
        *work += off[d] - off[d - 1];
        if (s->no_memory || (to.n && push(w, &to)))
            return -ENOMEM;
        if (!to.n) {
            k = t->skip[k];
            continue;
        }
        off[d + 1] = w->n;
        for (uint32_t i = t->first[k]; i < t->first[k + 1] && t->length[t->token[i]] == d; i++)
            gbit(mask, t->token[i]);
        k++;
    }
    return 0;
}

/* ---- the local part ---- */

static bool is_leaf(const struct gframe *f)
{
    return f->kind == F_RAW || f->kind == F_STRING || f->kind == F_KEY || f->kind == F_NUMBER;
}

/* Frames that behave alike for every token have one key. */
static struct key local_key(const struct grammar *g, const struct gstore *s, const struct gframe *f,
                            const struct gwindow *w)
{
    uint32_t longest = g->vocab->longest;
    struct key k = {{(uint64_t)f->kind << 32 | f->pend, (uint64_t)f->shape << 32 | f->a, f->b, 0}};
    if (f->kind == F_KEY) {
        const struct gobject *o = &g->shape[f->shape]->u.obj;
        k.w[3] = (uint64_t)w->lo << 33 | (uint64_t)w->hi << 1 | w->rest;
        if (f->b == G_INF && !o->words) { /* a free key, of any object */
            k.w[1] = f->a;
            k.w[3] = w->rest;
        }
        if (o->words && s->f[f->up].used) { /* it may matter which keys there were */
            k.w[0] = (uint64_t)1 << 63 | f->id[0];
            k.w[1] = f->id[1];
        }
        return k;
    }
    if (f->kind == F_NUMBER)
        return k;
    const struct gstring *str = f->kind == F_RAW ? &g->text : &g->shape[f->shape]->u.str;
    if (str->unique) {
        k.w[0] |= str->words && s->f[f->up].used ? (uint64_t)1 << 63 | f->id[0] : 0;
        k.w[3] = str->words && s->f[f->up].used ? f->id[1] : 1;
        return k;
    }
    if (!str->dfa->self[f->a]) {
        k.w[1] = (uint64_t)str->id << 32 | f->a;
        return k;
    }
    uint32_t more = f->b < str->min ? str->min - f->b : 0, left = str->max == G_INF ? G_INF : str->max - f->b;
    k.w[1] = 0; /* a free string: how many characters must and may follow, as far as a token can tell */
    k.w[2] = more < longest + 1 ? more : longest + 1;
    k.w[3] = left > longest ? (uint64_t)longest + 1 : left;
    return k;
}

static int add_exit(struct entry *e, uint32_t v)
{
    if ((e->n_exits & (e->n_exits - 1)) == 0) {
        size_t cap = e->n_exits ? 2 * e->n_exits : 1;
        uint32_t *p = realloc(e->exit, cap * sizeof *p);
        if (!p)
            return -ENOMEM;
        e->exit = p;
    }
    e->exit[e->n_exits++] = v;
    e->bytes += sizeof *e->exit;
    return 0;
}

static void mark_node(const struct grammar_vocab *t, uint32_t k, uint32_t *mask)
{
    for (uint32_t i = t->first[k]; i < t->first[k + 1] && t->length[t->token[i]] == t->depth[k]; i++)
        gbit(mask, t->token[i]);
}

struct loops { /* the bytes that lead from a state back to it, of the states seen last */
    const struct gdfa *dfa[16];
    uint32_t state[16];
    struct gbytes set[16];
};

static const struct gbytes *loop_of(struct loops *l, const struct gdfa *d, uint32_t state)
{
    uint32_t i = state % 16;
    if (l->dfa[i] != d || l->state[i] != state) {
        l->dfa[i] = d;
        l->state[i] = state;
        l->set[i] = (struct gbytes){{0, 0}};
        for (uint32_t b = 0x20; b < 0x80; b++)
            if (gdfa_step(d, state, b) == state)
                l->set[i].w[b / 64] |= (uint64_t)1 << (b % 64);
    }
    return &l->set[i];
}

/* Do all tokens below node k stay in the frame? */
static bool all_stay(const struct grammar *g, const struct gframe *f, const struct gwindow *w, uint32_t k,
                     struct loops *l)
{
    const struct grammar_vocab *t = g->vocab;
    uint32_t room;
    bool free;
    const struct gdfa *d = t->tail[k] ? gleaf_loop(g, f, w, &room, &free) : NULL;
    if (!d || room < t->tail[k])
        return false;
    const uint64_t *below = t->below[k].w, *open = d->open[f->a].w;
    if (free && d->run[f->a] >= t->tail[k] && !((below[0] & ~open[0]) | (below[1] & ~open[1])))
        return true;
    const struct gbytes *set = loop_of(l, d, f->a);
    return !((below[0] & ~set->w[0]) | (below[1] & ~set->w[1]));
}

/* Fills e: tokens that stay in the frame, and where others leave it. A number is left at a node whose children may go
 * on; a string at the node of its quote, whose own tokens are good for it; a key, and a string that must differ from
 * others, at the node of its quote, whose tokens are not marked: whether it may end there takes the stack. */
static int local_walk(const struct grammar *g, struct gstore *s, const struct gframe *f, const struct gwindow *w,
                      struct entry *e)
{
    const struct grammar_vocab *t = g->vocab;
    struct gframe level[G_TOKEN_MAX + 1];
    struct loops loops = {0};
    bool number = f->kind == F_NUMBER, checked = gleaf_checked(g, f);
    level[0] = *f;
    if (number && g->shape[f->shape]->u.num->accept[f->a] && add_exit(e, 0))
        return -ENOMEM;
    for (uint32_t k = 1; k < t->n_nodes;) {
        struct gframe *at = &level[t->depth[k]];
        *at = at[-1];
        enum gleaf l = gleaf_step(g, s, at, w, t->byte[k]);
        if (s->no_memory)
            return -ENOMEM;
        if (l == LEAF_CLOSED) {
            if (!checked)
                mark_node(t, k, e->mask);
            if ((checked || t->skip[k] > k + 1) && add_exit(e, k))
                return -ENOMEM;
        }
        if (l != LEAF_IN) {
            k = t->skip[k];
            continue;
        }
        mark_node(t, k, e->mask);
        if (number && t->skip[k] > k + 1 && g->shape[f->shape]->u.num->accept[at->a] && add_exit(e, k))
            return -ENOMEM;
        if (all_stay(g, at, w, k, &loops)) {
            for (uint32_t i = t->first[k]; i < t->first[t->skip[k]]; i++)
                gbit(e->mask, t->token[i]);
            k = t->skip[k];
        } else
            k++;
    }
    return 0;
}

/* A key (or unique string) that has ended at node v: what it does depends on the whole stack, so its bytes are stepped
 * from the top. */
static int key_exit(const struct grammar *g, struct gstore *s, struct gwalk *w, uint32_t top, uint32_t v,
                    uint32_t *mask, size_t *work)
{
    const struct grammar_vocab *t = g->vocab;
    uint8_t path[G_TOKEN_MAX];
    struct gconfigs at = {.id = {top}, .n = 1};
    for (uint32_t k = v; k; k = t->parent[k])
        path[t->depth[k] - 1] = t->byte[k];
    for (uint32_t d = 0; d < t->depth[v] && at.n; d++) {
        struct gconfigs to;
        to.n = 0;
        for (uint32_t i = 0; i < at.n; i++)
            gstep(g, s, at.id[i], path[d], &to);
        at = to;
    }
    *work += t->depth[v];
    if (s->no_memory)
        return -ENOMEM;
    if (!at.n)
        return 0;
    mark_node(t, v, mask);
    return walk(g, s, w, v, &at, mask, work);
}

static int leaf_mask(const struct grammar *g, struct gstore *s, struct gwalk *w, uint32_t top, uint32_t *mask,
                     size_t *work)
{
    struct gframe f = s->f[top];
    struct gwindow win = {0};
    if (f.kind == F_KEY)
        win = gkey_window(g, s, &s->f[f.up]);
    struct key key = local_key(g, s, &f, &win);
    struct entry *e = *find(g->cache, &key);
    bool kept = e != NULL;
    int r = 0;
    if (!e) {
        uint32_t mark = s->n;
        if (!(e = entry_new(g->vocab, &key)))
            return -ENOMEM;
        r = local_walk(g, s, &f, &win, e);
        gstore_cut(s, mark);
        *work += g->vocab->n_nodes / 4;
        if (!r)
            kept = keep(g->cache, e);
    }
    for (uint32_t i = 0; i < g->vocab->n_words && !r; i++)
        mask[i] |= e->mask[i];
    for (size_t i = 0; i < e->n_exits && !r; i++) {
        uint32_t mark = s->n;
        if (gleaf_checked(g, &f))
            r = key_exit(g, s, w, top, e->exit[i], mask, work);
        else
            r = walk(g, s, w, e->exit[i], &(struct gconfigs){.id = {f.up}, .n = 1}, mask, work);
        gstore_cut(s, mark);
    }
    if (!kept) {
        free(e->exit);
        free(e);
    }
    return r;
}

#define WORTH_KEEPING 500 /* steps */

static int fresh(const struct grammar *g, struct gstore *s, struct gwalk *w, uint32_t top, const struct key *key,
                 uint32_t *mask)
{
    struct entry *e = entry_new(g->vocab, key);
    size_t work = 0;
    int r = -ENOMEM;
    if (!e)
        return r;
    if (is_leaf(&s->f[top]))
        r = leaf_mask(g, s, w, top, e->mask, &work);
    else {
        uint32_t mark = s->n;
        r = walk(g, s, w, 0, &(struct gconfigs){.id = {top}, .n = 1}, e->mask, &work);
        gstore_cut(s, mark);
    }
    for (uint32_t i = 0; i < g->vocab->n_words && !r; i++)
        mask[i] |= e->mask[i];
    if (r || work < WORTH_KEEPING || !keep(g->cache, e)) {
        free(e->exit);
        free(e);
    }
    return r;
}

int gmask(const struct grammar *g, struct gstore *s, struct gwalk *w, uint32_t top, uint32_t *mask)
{
    struct key key = {{(uint64_t)255 << 32, s->f[top].id[0], s->f[top].id[1], 0}};
    int r = 0;
    if (s->f[top].kind == F_END)
        return 0;
    pthread_mutex_lock(&g->cache->lock);
    struct entry *e = *find(g->cache, &key);
    for (uint32_t i = 0; e && i < g->vocab->n_words; i++)
        mask[i] |= e->mask[i];
    if (!e)
        r = fresh(g, s, w, top, &key, mask);
    pthread_mutex_unlock(&g->cache->lock);
    return r;
}
