/* grammar.c - compiling a grammar, and the state of one sequence.
 *
 * grammar_compile runs in any thread and keeps what it makes in one arena, the grammar's; a second one is dropped at
 * its end. A grammar never changes afterwards but for its cache. A state belongs to one sequence: a set of
 * configurations in a store of frames, which is made anew from the live ones when it has grown.
 *
 * Always: the configurations of a state are not empty, and each has a way to an end.
 */
#include "model/grammar_run.h"

#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"

#define STORE_MAX 8192 /* frames; beyond, and beyond twice what was live the last time, a store is made anew */

struct grammar_state {
    struct grammar *g;
    struct gstore store;
    struct gconfigs at;
    struct gwalk walk;
    uint32_t renew_at; /* frames */
    bool ended;        /* an end token was accepted */
    uint32_t mask[];
};

/* ---- compilation ---- */

static void defaults(struct grammar_limits *l)
{
    l->max_bytes = l->max_bytes ? l->max_bytes : 256 << 10;
    l->max_nodes = l->max_nodes ? l->max_nodes : 20000;
    l->max_states = l->max_states ? l->max_states : 20000;
    l->max_memory = l->max_memory ? l->max_memory : 64 << 20;
    l->max_cache = l->max_cache ? l->max_cache : 8 << 20;
    l->max_steps = l->max_steps ? l->max_steps : 40000000;
    l->max_depth = l->max_depth ? l->max_depth : 64;
}

static int check_size(const struct grammar_spec *s, const struct grammar_limits *l, struct err *e)
{
    size_t n = s->kind == GRAMMAR_CHOICE || s->kind == GRAMMAR_JSON_OBJECT ? 0 : s->text.n;
    if (s->kind == GRAMMAR_CHOICE && !s->n_choices)
        return err_set(e, -EINVAL, "a choice needs at least one text");
    for (size_t i = 0; s->kind == GRAMMAR_CHOICE && i < s->n_choices; i++) {
        if (__builtin_add_overflow(n, s->choice[i].n + 1, &n) || n > l->max_bytes)
            break;
        if (utf8_valid(s->choice[i].ptr, s->choice[i].n) != s->choice[i].n)
            return err_set(e, -EINVAL, "choice %zu is not valid UTF-8", i);
        if (memchr(s->choice[i].ptr, 0, s->choice[i].n))
            return err_set(e, -EINVAL, "choice %zu has a NUL character", i);
    }
    return n > l->max_bytes ? err_set(e, -E2BIG, "a grammar of more than %zu bytes", l->max_bytes) : 0;
}

static int compile_text(struct gctx *c, struct grammar *g, const struct grammar_spec *s)
{
    int r = s->kind == GRAMMAR_REGEX ? gdfa_regex(c, s->text.ptr, s->text.n, false, &g->text.dfa)
                                     : gdfa_words(c, s->choice, s->n_choices, &g->text.dfa);
    if (r)
        return r;
    g->text.max = G_INF;
    if (g->text.dfa->dist[1] == G_INF)
        return err_set(c->e, -EINVAL, "no text matches the regular expression");
    return 0;
}

static int compile_schema(struct gctx *c, struct grammar *g, const struct grammar_spec *s)
{
    static const struct grammar_text object = {"{\"type\":\"object\"}", 17};
    const struct grammar_text *t = s->kind == GRAMMAR_JSON_OBJECT ? &object : &s->text;
    struct gschema *schema = NULL;
    int r = gschema_open(c, t->ptr, t->n, &schema);
    if (!r)
        r = g_expand_all(c, g);
    if (!r)
        r = g_finalise(c, g);
    gschema_close(schema);
    return r;
}

static void release(struct grammar *g)
{
    struct arena *a = g->a;
    gcache_free(g->cache);
    arena_free(a); /* g is in it */
}

int grammar_compile(const struct grammar_vocab *v, const struct grammar_spec *s, const struct grammar_limits *lim,
                    struct grammar **out, struct err *e)
{
    struct gctx c = {.e = e};
    struct err local;
    if (!e)
        c.e = &local;
    if (lim)
        c.lim = *lim;
    defaults(&c.lim);
    int r = check_size(s, &c.lim, c.e);
    if (r)
        return r;
    c.a = arena_create(c.lim.max_memory / 2);
    c.tmp = arena_create(c.lim.max_memory / 2);
    struct grammar *g = c.a && c.tmp ? arena_calloc(c.a, 1, sizeof *g) : NULL;
    if (!g) {
        arena_free(c.a);
        arena_free(c.tmp);
        return err_set(e, -ENOMEM, "out of memory");
    }
    g->a = c.a;
    g->kind = s->kind;
    g->vocab = v;
    atomic_init(&g->refs, 1);
    r = s->kind == GRAMMAR_REGEX || s->kind == GRAMMAR_CHOICE ? compile_text(&c, g, s) : compile_schema(&c, g, s);
    if (!r && (r = gcache_create(v, c.lim.max_cache, &g->cache)))
        err_set(e, r, "out of memory");
    arena_free(c.tmp);
    if (r)
        release(g);
    else
        *out = g;
    return r;
}

size_t grammar_bytes(const struct grammar *g)
{
    return arena_used(g->a);
}

struct grammar *grammar_ref(struct grammar *g)
{
    atomic_fetch_add_explicit(&g->refs, 1, memory_order_relaxed);
    return g;
}

void grammar_unref(struct grammar *g)
{
    if (g && atomic_fetch_sub_explicit(&g->refs, 1, memory_order_acq_rel) == 1)
        release(g);
}

/* ---- states ---- */

int grammar_state_open(struct grammar *g, struct grammar_state **out)
{
    bool text = g->kind == GRAMMAR_REGEX || g->kind == GRAMMAR_CHOICE;
    struct gframe start = {.kind = text ? F_RAW : F_START, .a = text ? 1 : g->root};
    struct grammar_state *s = calloc(1, sizeof *s + (size_t)g->vocab->n_words * 4);
    if (!s)
        return -ENOMEM;
    s->g = grammar_ref(g);
    if (gstore_open(&s->store) || (s->at.id[0] = gstore_put(&s->store, &start)) == G_INF) {
        grammar_state_close(s);
        return -ENOMEM;
    }
    s->at.n = 1;
    s->renew_at = STORE_MAX;
    *out = s;
    return 0;
}

void grammar_state_close(struct grammar_state *s)
{
    if (!s)
        return;
    gstore_free(&s->store);
    free(s->walk.id);
    grammar_unref(s->g);
    free(s);
}

static bool complete(const struct grammar_state *s)
{
    for (uint32_t i = 0; i < s->at.n; i++)
        if (gends(s->g, &s->store, s->at.id[i]))
            return true;
    return false;
}

int grammar_mask(struct grammar_state *s, const uint32_t **mask)
{
    const struct grammar_vocab *v = s->g->vocab;
    int r = 0;
    memset(s->mask, 0, (size_t)v->n_words * 4);
    for (uint32_t i = 0; i < s->at.n && !r && !s->ended; i++)
        r = gmask(s->g, &s->store, &s->walk, s->at.id[i], s->mask);
    if (r)
        return r;
    if (s->ended || complete(s))
        for (size_t i = 0; i < v->n_eos; i++)
            gbit(s->mask, v->eos[i]);
    *mask = s->mask;
    return 0;
}

#define DEAD G_INF
#define LIVE (G_INF - 1)

/* Copies what the configurations stand on: map[i] becomes the new index of frame i. Frames only lead to earlier ones,
 * so one pass down finds the live ones and one up copies them. False: without memory. */
static bool copy_live(const struct gstore *from, const struct gconfigs *at, struct gstore *to, uint32_t *map)
{
    memset(map, 0xFF, from->n * sizeof *map);
    for (uint32_t i = 0; i < at->n; i++)
        map[at->id[i]] = LIVE;
    for (uint32_t i = from->n; --i;)
        if (map[i] != DEAD)
            map[from->f[i].up] = map[from->f[i].used] = LIVE;
    map[0] = 0;
    for (uint32_t i = 1; i < from->n; i++) {
        struct gframe f = from->f[i];
        if (map[i] == DEAD)
            continue;
        f.up = map[f.up];
        f.used = map[f.used];
        if ((map[i] = gstore_put(to, &f)) == G_INF)
            return false;
    }
    return true;
}

/* A store with nothing but the live frames. Without memory the old one stays: it only grows. */
static void renew(struct grammar_state *s)
{
    struct gstore fresh;
    uint32_t *map = malloc(s->store.n * sizeof *map);
    if (!map || gstore_open(&fresh)) {
        free(map);
        return;
    }
    if (copy_live(&s->store, &s->at, &fresh, map)) {
        for (uint32_t i = 0; i < s->at.n; i++)
            s->at.id[i] = map[s->at.id[i]];
        gstore_free(&s->store);
        s->store = fresh;
    } else {
        gstore_free(&fresh);
    }
    s->renew_at = 2 * s->store.n > STORE_MAX ? 2 * s->store.n : STORE_MAX;
    free(map);
}

/* The same for every sequence that said the same, whatever the cache holds: masks do not depend on other requests. */
static void merge(const struct grammar *g, const struct gstore *s, struct gconfigs *to, const struct gconfigs *from)
{
    uint32_t heavy = 0;
    for (uint32_t i = 0; i < to->n; i++)
        heavy += gleaf_heavy(g, &s->f[to->id[i]]);
    for (uint32_t i = 0; i < from->n && to->n < G_CONFIGS; i++) {
        uint32_t k = 0;
        while (k < to->n && to->id[k] != from->id[i])
            k++;
        bool much = gleaf_heavy(g, &s->f[from->id[i]]);
        if (k < to->n || (much && heavy >= G_HEAVY))
            continue;
        heavy += much;
        to->id[to->n++] = from->id[i];
    }
}

int grammar_accept(struct grammar_state *s, int32_t token)
{
    const struct grammar_vocab *v = s->g->vocab;
    struct gconfigs all;
    all.n = 0;
    uint8_t byte[G_TOKEN_MAX];
    if (s->ended || token < 0 || (uint32_t)token >= v->vocab)
        return -EINVAL;
    for (size_t i = 0; i < v->n_eos; i++)
        if (v->eos[i] == token) {
            s->ended = complete(s);
            return s->ended ? 0 : -EINVAL;
        }
    if (!v->length[token])
        return -EINVAL;
    if (s->store.n > s->renew_at)
        renew(s);
    for (uint32_t k = v->at[token]; k; k = v->parent[k])
        byte[v->depth[k] - 1] = v->byte[k];
    uint32_t mark = s->store.n;
    for (uint32_t i = 0; i < s->at.n; i++) { /* one by one, as the mask was made */
        struct gconfigs at = {.id = {s->at.id[i]}, .n = 1};
        for (uint32_t d = 0; d < v->length[token] && at.n; d++) {
            struct gconfigs to;
            to.n = 0;
            for (uint32_t k = 0; k < at.n; k++)
                gstep(s->g, &s->store, at.id[k], byte[d], &to);
            at = to;
        }
        merge(s->g, &s->store, &all, &at);
    }
    if (s->store.no_memory || !all.n) {
        int r = s->store.no_memory ? -ENOMEM : -EINVAL;
        gstore_cut(&s->store, mark);
        return r;
    }
    s->at = all;
    return 0;
}

bool grammar_over(const struct grammar_state *s)
{
    if (s->ended)
        return true;
    for (uint32_t i = 0; i < s->at.n; i++)
        if (gmore(s->g, &s->store, s->at.id[i]))
            return false;
    return true;
}
