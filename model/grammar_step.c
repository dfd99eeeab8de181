/* grammar_step.c - stacks of frames and what a byte does to them.
 *
 * Belongs to one sequence, in the engine thread. Nothing here depends on how deep a stack is: a byte looks at the top
 * frame, and at those below only as frames close. Every frame that is pushed has a way to its end (grammar_final.c),
 * and every step keeps one: a member is begun only when it can be finished, a character taken only when the string can
 * be.
 *
 * Whitespace: after { [ , and before } ] one space, or a line end and up to WS_MAX spaces or tabs; after : one space.
 */
#include "model/grammar_run.h"

#include <stdlib.h>
#include <string.h>

#define WS_MAX 64

/* ---- stores ---- */

static uint64_t mix(uint64_t h, uint64_t x)
{
    h = (h ^ x) * 0x9E3779B97F4A7C15u;
    return h ^ h >> 29;
}

static size_t slot_of(const struct gframe *f)
{
    uint64_t h = mix(f->up + ((uint64_t)f->used << 32), f->a + ((uint64_t)f->b << 32));
    h = mix(h, f->shape + ((uint64_t)f->pend << 32));
    h = mix(h, f->h + ((uint64_t)f->kind << 56) + ((uint64_t)f->phase << 48) + ((uint64_t)f->ws << 40));
    return (size_t)(h >> 8);
}

#define SAME_BYTES offsetof(struct gframe, pad)

static int store_grow(struct gstore *s)
{
    uint32_t cap = s->cap ? 2 * s->cap : 256;
    struct gframe *f = realloc(s->f, cap * sizeof *f);
    if (f)
        s->f = f;
    uint32_t *bucket = f ? calloc(2 * (size_t)cap, sizeof *bucket) : NULL;
    if (!bucket)
        return -ENOMEM;
    free(s->bucket);
    s->bucket = bucket;
    s->cap = cap;
    for (uint32_t i = 0; i < s->n; i++) {
        uint32_t *b = &bucket[slot_of(&f[i]) & (2 * cap - 1)];
        f[i].chain = *b;
        *b = i + 1;
    }
    return 0;
}

uint32_t gstore_put(struct gstore *s, const struct gframe *p)
{
    if (s->n == s->cap && store_grow(s)) {
        s->no_memory = true;
        return G_INF;
    }
    uint32_t *bucket = &s->bucket[slot_of(p) & (2 * s->cap - 1)];
    for (uint32_t i = *bucket; i; i = s->f[i - 1].chain)
        if (!memcmp(&s->f[i - 1], p, SAME_BYTES))
            return i - 1;
    struct gframe *f = &s->f[s->n];
    *f = *p;
    f->chain = *bucket;
    for (int k = 0; k < 2; k++) {
        uint64_t h = mix(0x51 + (uint64_t)k, s->n ? s->f[f->up].id[k] : 7);
        h = mix(h, f->used ? s->f[f->used].id[k] : 3);
        h = mix(h, f->a + ((uint64_t)f->b << 32));
        h = mix(h, f->shape + ((uint64_t)f->pend << 32));
        h = mix(h, f->h);
        f->id[k] = mix(h, f->kind + ((uint64_t)f->phase << 8) + ((uint64_t)f->ws << 16));
    }
    *bucket = ++s->n;
    return s->n - 1;
}

void gstore_cut(struct gstore *s, uint32_t n)
{
    while (s->n > n) {
        s->n--;
        s->bucket[slot_of(&s->f[s->n]) & (2 * s->cap - 1)] = s->f[s->n].chain;
    }
    s->no_memory = false;
}

int gstore_open(struct gstore *s)
{
    struct gframe end = {.kind = F_END};
    memset(s, 0, sizeof *s);
    return gstore_put(s, &end) == G_INF ? -ENOMEM : 0;
}

void gstore_free(struct gstore *s)
{
    free(s->f);
    free(s->bucket);
}

static void add(struct gconfigs *out, uint32_t id)
{
    if (id == G_INF || out->n >= G_CONFIGS)
        return;
    for (uint32_t i = 0; i < out->n; i++)
        if (out->id[i] == id)
            return;
    out->id[out->n++] = id;
}

static void put(struct gstore *s, const struct gframe *f, struct gconfigs *out)
{
    add(out, gstore_put(s, f));
}

/* ---- objects ---- */

struct gwindow gkey_window(const struct grammar *g, const struct gstore *s, const struct gframe *f)
{
    const struct gobject *o = &g->shape[f->shape]->u.obj;
    uint64_t n = o->n_props, i = f->a, cnt = f->b, need = o->required_after[i], used = f->used ? s->f[f->used].a : 0;
    uint64_t most = o->words ? G_REST_FEW : G_REST_MAX, others = 0;
    struct gwindow w = {.lo = 1};
    if (cnt >= o->max)
        return w;
    if (o->rest) {
        others = o->words && o->words[1] < most ? o->words[1] : most;
        others -= used < others ? used : others;
    }
    uint64_t left = o->max == G_INF ? n + 1 : o->max - cnt, next = o->next_required[i];
    if (i < n) {
        uint64_t lo = left == need ? next : i, hi = next < n ? next : n - 1;
        uint64_t most_j = cnt + n + others >= o->min ? cnt + n + others - o->min : 0;
        if (hi > most_j)
            hi = most_j;
        if (lo <= hi && lo < n) {
            w.lo = (uint32_t)lo;
            w.hi = (uint32_t)hi;
        }
    }
    w.rest = !need && others && cnt + others >= o->min;
    return w;
}

static bool object_closes(const struct grammar *g, const struct gframe *f)
{
    const struct gobject *o = &g->shape[f->shape]->u.obj;
    return !o->required_after[f->a] && f->b >= o->min;
}

static bool has_keys(const struct gwindow *w)
{
    return w->lo <= w->hi || w->rest;
}

/* ---- characters: from bytes, with JSON's escapes ----
 *
 * Printable ASCII is written as itself, but the quote and the backslash; \uXXXX is for the others. Were a key's letters
 * free to be written \u0061, a model that looks for a way around the one key that may come would take it. */

static bool may_be_hex(uint32_t cp)
{
    return cp && (cp < 0x20 || cp > 0x7E);
}

enum { /* pend: mode << 27 | bits so far */
       M_NONE,
       M_U2,  /* 1 byte missing of 2 */
       M_U3B, /* 2 of 3 */
       M_U3A,
       M_U4C,
       M_U4B,
       M_U4A,
       M_ESCAPE,
       M_HEX,             /* + digits so far */
       M_LOW = M_HEX + 4, /* after a high surrogate, its 10 bits in the bits: a backslash comes */
       M_LOW_U,
       M_LOW_HEX /* + digits so far; bits: 10 bits << 16 | digits */
};
#define PEND(mode, bits) ((uint32_t)(mode) << 27 | (uint32_t)(bits))
#define MODE(pend) ((pend) >> 27)
#define BITS(pend) ((pend)&0x7FFFFFFu)

enum decoded { D_BAD, D_PART, D_CHAR, D_CLOSE };

static int hex_value(unsigned char b)
{
    return b >= '0' && b <= '9' ? b - '0' : (b | 32) >= 'a' && (b | 32) <= 'f' ? (b | 32) - 'a' + 10 : -1;
}

static enum decoded hex_step(uint32_t *pend, unsigned char b, uint32_t *cp)
{
    uint32_t mode = MODE(*pend), bits = BITS(*pend);
    int d = hex_value(b);
    if (d < 0)
        return D_BAD;
    if (mode < M_LOW) {
        bits = bits << 4 | (uint32_t)d;
        if (mode == M_HEX + 1 && bits >= 0xDC && bits < 0xE0)
            return D_BAD; /* the second half of a surrogate pair */
        if (mode == M_HEX + 2 && bits >= 2 && bits <= 6)
            return D_BAD; /* printable ASCII, whatever follows */
        if (mode < M_HEX + 3) {
            *pend = PEND(mode + 1, bits);
            return D_PART;
        }
        if (bits >= 0xD800 && bits < 0xDC00) {
            *pend = PEND(M_LOW, bits - 0xD800);
            return D_PART;
        }
        *cp = bits;
        return may_be_hex(bits) && (bits < 0xDC00 || bits >= 0xE000) ? D_CHAR : D_BAD;
    }
    uint32_t digits = (bits & 0xFFFF) << 4 | (uint32_t)d, k = mode - M_LOW_HEX;
    if ((k == 0 && digits != 0xD) || (k == 1 && (digits & 0xC) != 0xC)) /* DC00 to DFFF */
        return D_BAD;
    if (k < 3) {
        *pend = PEND(mode + 1, (bits & ~0xFFFFu) | digits);
        return D_PART;
    }
    *cp = 0x10000 + ((bits >> 16) << 10) + (digits - 0xDC00);
    return D_CHAR;
}

static enum decoded first_byte(uint32_t *pend, unsigned char b, bool raw, uint32_t *cp)
{
    if (b < 0x80) {
        *cp = b;
        if (!raw && b == '"')
            return D_CLOSE;
        if (!raw && b == '\\') {
            *pend = PEND(M_ESCAPE, 0);
            return D_PART;
        }
        return b < (raw ? 1 : 0x20) ? D_BAD : D_CHAR;
    }
    if (b < 0xC2 || b > 0xF4)
        return D_BAD;
    *pend = b < 0xE0 ? PEND(M_U2, b & 31) : b < 0xF0 ? PEND(M_U3B, b & 15) : PEND(M_U4C, b & 7);
    return D_PART;
}

/* The next byte of a character; *pend is what stands of it afterwards, 0 with D_CHAR. */
static enum decoded decode(uint32_t *pend, unsigned char b, bool raw, uint32_t *cp)
{
    static const char from[] = "\"\\bfnrt", to[] = "\"\\\b\f\n\r\t";
    uint32_t mode = MODE(*pend), bits = BITS(*pend);
    const char *e;
    enum decoded d;
    if (mode == M_NONE)
        return first_byte(pend, b, raw, cp);
    if (mode <= M_U4A) {
        if ((b & 0xC0) != 0x80)
            return D_BAD;
        bits = bits << 6 | (b & 63);
        if (mode == M_U3B && (bits < 0x20 || (bits >= 0x360 && bits < 0x380)))
            return D_BAD;
        if (mode == M_U4C && (bits < 0x10 || bits >= 0x110))
            return D_BAD;
        if (mode != M_U2 && mode != M_U3A && mode != M_U4A) {
            *pend = PEND(mode + 1, bits);
            return D_PART;
        }
        *cp = bits;
        *pend = 0;
        return D_CHAR;
    }
    if (mode == M_ESCAPE || mode == M_LOW || mode == M_LOW_U) {
        if (mode != M_LOW && b == 'u') {
            *pend = mode == M_ESCAPE ? PEND(M_HEX, 0) : PEND(M_LOW_HEX, bits << 16);
            return D_PART;
        }
        if (mode == M_LOW && b == '\\') {
            *pend = PEND(M_LOW_U, bits);
            return D_PART;
        }
        if (mode != M_ESCAPE || !b || !(e = strchr(from, b)))
            return D_BAD;
        *cp = (unsigned char)to[e - from];
        *pend = 0;
        return D_CHAR;
    }
    d = hex_step(pend, b, cp);
    if (d == D_CHAR)
        *pend = 0;
    return d;
}

struct spans { /* the code points that an unfinished character can become */
    struct grange r[5];
    int n;
};

static void span(struct spans *s, uint32_t lo, uint32_t hi)
{
    if (lo <= hi)
        s->r[s->n++] = (struct grange){lo, hi};
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t most(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

static struct spans pending(uint32_t pend)
{
    static const uint8_t missing[] = {0, 1, 2, 1, 3, 2, 1};
    uint32_t mode = MODE(pend), bits = BITS(pend), lo, hi;
    struct spans s = {0};
    if (mode <= M_U4A) {
        lo = bits << (6 * missing[mode]);
        hi = lo | ((1u << (6 * missing[mode])) - 1);
        lo = most(lo, mode == M_U2 ? 0x80 : mode <= M_U3A ? 0x800 : 0x10000);
        span(&s, lo, least(hi, mode <= M_U3A ? 0xD7FF : G_CP_MAX));
        if (mode <= M_U3A)
            span(&s, most(lo, 0xE000), hi);
    } else if (mode == M_ESCAPE) {
        span(&s, 1, 0x1F);
        span(&s, '"', '"');
        span(&s, '\\', '\\');
        span(&s, 0x7F, 0xD7FF);
        span(&s, 0xE000, G_CP_MAX);
    } else if (mode < M_LOW) {
        uint32_t w = 4 * (4 - (mode - M_HEX));
        lo = bits << w;
        hi = lo | ((1u << w) - 1);
        span(&s, most(lo, 1), least(hi, 0x1F));
        span(&s, most(lo, 0x7F), least(hi, 0xD7FF));
        if (most(lo, 0xD800) <= least(hi, 0xDBFF))
            span(&s, 0x10000 + ((most(lo, 0xD800) - 0xD800) << 10),
                 0x10000 + ((least(hi, 0xDBFF) - 0xD800) << 10) + 0x3FF);
        span(&s, most(lo, 0xE000), hi);
    } else {
        uint32_t high = mode < M_LOW_HEX ? bits : bits >> 16, k = mode < M_LOW_HEX ? 0 : mode - M_LOW_HEX;
        uint32_t w = 4 * (4 - k), digits = mode < M_LOW_HEX ? 0 : bits & 0xFFFF;
        lo = most(digits << w, 0xDC00);
        hi = least(digits << w | ((1u << w) - 1), 0xDFFF);
        if (lo <= hi)
            span(&s, 0x10000 + (high << 10) + (lo - 0xDC00), 0x10000 + (high << 10) + (hi - 0xDC00));
    }
    return s;
}

/* ---- words that differ: keys, and items of some arrays ---- */

static uint64_t key_hash(uint64_t h, uint32_t cp)
{
    return mix(h + 0x2545F4914F6CDD1Du, cp);
}

/* How many of the words so far begin with what h is the hash of. */
static uint64_t begun(const struct gstore *s, uint32_t used, uint64_t h)
{
    uint64_t n = 0;
    for (; used; used = s->f[used].up)
        for (uint32_t p = s->f[used].used; p; p = s->f[p].up)
            if (s->f[p].h == h) {
                n++;
                break;
            }
    return n;
}

/* Is there a word behind state `to` that was not used? */
static bool rest_lives(const uint64_t *words, const struct gstore *s, uint32_t used, uint32_t to, uint64_t h)
{
    if (!to || !words || words[to] == G_WORDS_INF || !used)
        return to != 0;
    return words[to] > s->f[used].a || words[to] > begun(s, used, h);
}

static bool rest_span(const struct gdfa *d, const uint64_t *words, const struct gstore *s, uint32_t used,
                      const struct gframe *f, const struct grange *r)
{
    uint64_t sum = 0;
    for (int pass = 0; pass < 2; pass++) { /* enough of them? else one by one: then there are few */
        for (uint32_t i = 0; i < d->n_ranges && d->lo[i] <= r->hi; i++) {
            uint32_t hi = i + 1 < d->n_ranges ? d->lo[i + 1] - 1 : G_CP_MAX;
            uint32_t to = d->next[(size_t)f->a * d->n_classes + d->cls[i]];
            if (hi < r->lo || !to)
                continue;
            uint32_t from = most(d->lo[i], r->lo), last = least(hi, r->hi);
            if (!words || words[to] == G_WORDS_INF || !used)
                return true;
            sum += (uint64_t)(last - from + 1) * words[to];
            if (!pass && sum > s->f[used].a)
                return true;
            for (uint32_t cp = from; pass && cp <= last; cp++)
                if (rest_lives(words, s, used, to, key_hash(f->h, cp)))
                    return true;
        }
    }
    return false;
}

/* A used word more, whose beginnings are f->used. G_INF: it was used before, or without memory. */
static uint32_t use(struct gstore *s, uint32_t used, const struct gframe *f)
{
    for (uint32_t i = used; i; i = s->f[i].up)
        if (s->f[i].h == f->h)
            return G_INF;
    uint32_t n = used ? s->f[used].a : 0;
    return gstore_put(s, &(struct gframe){.kind = F_USED, .up = used, .used = f->used, .h = f->h, .a = n + 1});
}

/* Goes on from f's word by cp; false without memory. */
static bool extend(struct gstore *s, struct gframe *f, uint32_t cp, bool keep)
{
    f->h = key_hash(f->h, cp);
    if (!keep)
        return true;
    f->used = gstore_put(s, &(struct gframe){.kind = F_PREFIX, .up = f->used, .h = f->h});
    return f->used != G_INF;
}

/* ---- strings ---- */

static const struct gstring *string_of(const struct grammar *g, const struct gframe *f)
{
    return f->kind == F_RAW ? &g->text : &g->shape[f->shape]->u.str;
}

static bool string_lives(const struct gstring *s, uint32_t to, uint32_t count)
{
    if (!to)
        return false;
    uint32_t short_of = count < s->min ? s->min - count : 0;
    uint32_t need = s->need ? s->need[(size_t)to * (s->min + 1) + short_of] : s->dfa->dist[to];
    return need != G_INF && (s->max == G_INF || (uint64_t)count + need <= s->max);
}

static bool string_spans(const struct gstring *s, uint32_t a, uint32_t count, uint32_t pend)
{
    const struct gdfa *d = s->dfa;
    struct spans p = pending(pend);
    for (int k = 0; k < p.n; k++) {
        uint32_t i = 0, j = d->n_ranges;
        while (j - i > 1) {
            uint32_t m = (i + j) / 2;
            if (d->lo[m] <= p.r[k].lo)
                i = m;
            else
                j = m;
        }
        for (; i < d->n_ranges && d->lo[i] <= p.r[k].hi; i++)
            if (string_lives(s, d->next[(size_t)a * d->n_classes + d->cls[i]], count))
                return true;
    }
    return false;
}

static uint32_t capped(uint32_t n, uint32_t min, uint32_t max)
{
    return max == G_INF && n > min ? min : n;
}

static enum gleaf unique_step(const struct gstring *str, struct gstore *s, struct gframe *f, bool keep,
                              unsigned char byte)
{
    uint32_t cp = 0, used = s->f[f->up].used;
    struct spans p;
    switch (decode(&f->pend, byte, false, &cp)) {
    case D_CLOSE:
        return str->dfa->label[f->a] ? LEAF_CLOSED : LEAF_BAD; /* whether it was used: string_close */
    case D_PART:
        p = pending(f->pend);
        for (int k = 0; k < p.n; k++)
            if (rest_span(str->dfa, str->words, s, used, f, &p.r[k]))
                return LEAF_IN;
        return LEAF_BAD;
    case D_CHAR:
        f->a = gdfa_step(str->dfa, f->a, cp);
        if (!f->a || !extend(s, f, cp, keep && str->words))
            return LEAF_BAD;
        return rest_lives(str->words, s, used, f->a, f->h) ? LEAF_IN : LEAF_BAD;
    default:
        return LEAF_BAD;
    }
}

static bool string_close(struct gstore *s, const struct gframe *f, struct gframe *array)
{
    *array = s->f[f->up];
    array->used = use(s, array->used, f);
    return array->used != G_INF;
}

static enum gleaf string_step(const struct grammar *g, struct gframe *f, unsigned char byte)
{
    const struct gstring *s = string_of(g, f);
    uint32_t cp = 0, count = capped(f->b + 1, s->min, s->max);
    switch (decode(&f->pend, byte, f->kind == F_RAW, &cp)) {
    case D_CLOSE:
        return s->dfa->label[f->a] && f->b >= s->min ? LEAF_CLOSED : LEAF_BAD;
    case D_PART:
        if (s->dfa->self[f->a] && s->max == G_INF)
            return LEAF_IN;
        return string_spans(s, f->a, count, f->pend) ? LEAF_IN : LEAF_BAD;
    case D_CHAR:
        f->a = gdfa_step(s->dfa, f->a, cp);
        f->b = count;
        return string_lives(s, f->a, count) ? LEAF_IN : LEAF_BAD;
    default:
        return LEAF_BAD;
    }
}

/* ---- keys ---- */

static bool names_live(const struct gobject *o, uint32_t node, const struct gwindow *w)
{
    if (node == G_INF || w->lo > w->hi)
        return false;
    for (uint32_t i = o->trie[node].lo; i < o->trie[node].hi; i++)
        if (o->order[i] - 1 >= w->lo && o->order[i] - 1 <= w->hi)
            return true;
    return false;
}

static uint32_t child(const struct gobject *o, uint32_t node, uint32_t cp)
{
    if (node == G_INF)
        return G_INF;
    uint32_t a = o->trie[node].first, b = a + o->trie[node].n;
    while (a < b) {
        uint32_t m = (a + b) / 2;
        if (o->trie[m].cp < cp)
            a = m + 1;
        else
            b = m;
    }
    return a < o->trie[node].first + o->trie[node].n && o->trie[a].cp == cp ? a : G_INF;
}

static bool key_spans(const struct gobject *o, const struct gstore *s, uint32_t used, const struct gframe *f,
                      const struct gwindow *w)
{
    struct spans p = pending(f->pend);
    for (int k = 0; k < p.n; k++) {
        for (uint32_t i = 0; f->b != G_INF && i < o->trie[f->b].n; i++) {
            uint32_t c = o->trie[f->b].first + i, cp = o->trie[c].cp;
            if (cp >= p.r[k].lo && cp <= p.r[k].hi && names_live(o, c, w))
                return true;
        }
        if (w->rest && f->a && rest_span(o->rest, o->words, s, used, f, &p.r[k]))
            return true;
    }
    return false;
}

static enum gleaf key_step(const struct grammar *g, struct gstore *s, struct gframe *f, const struct gwindow *w,
                           unsigned char byte)
{
    const struct gobject *o = &g->shape[f->shape]->u.obj;
    uint32_t cp = 0, used = s->f[f->up].used;
    switch (decode(&f->pend, byte, false, &cp)) {
    case D_CLOSE:
        return LEAF_CLOSED; /* whether it may close: key_close */
    case D_PART:
        return key_spans(o, s, used, f, w) ? LEAF_IN : LEAF_BAD;
    case D_CHAR:
        f->b = child(o, f->b, cp);
        f->a = w->rest && f->a ? gdfa_step(o->rest, f->a, cp) : 0;
        if (!extend(s, f, cp, f->a && o->words && w->keep))
            return LEAF_BAD;
        if (!names_live(o, f->b, w) && !(f->a && rest_lives(o->words, s, used, f->a, f->h)))
            return LEAF_BAD;
        if (f->b != G_INF && !names_live(o, f->b, w) && o->words)
            f->b = G_INF; /* the automaton of other keys knows them */
        return LEAF_IN;
    default:
        return LEAF_BAD;
    }
}

/* The object after the key f and its quote; false: there is no such key. */
static bool key_close(const struct grammar *g, struct gstore *s, const struct gframe *f, const struct gwindow *w,
                      struct gframe *object)
{
    const struct gobject *o = &g->shape[f->shape]->u.obj;
    uint32_t name = f->b == G_INF ? 0 : o->trie[f->b].label;
    *object = s->f[f->up];
    object->phase = PH_COLON;
    object->ws = 0;
    object->b = capped(object->b + 1, o->min, o->max);
    if (name) {
        if (name == G_INF || name - 1 < w->lo || name - 1 > w->hi)
            return false;
        object->a = name;
        object->h = o->prop[name - 1].expr;
        return true;
    }
    uint32_t label = w->rest ? o->rest->label[f->a] : 0;
    if (!label)
        return false;
    object->a = o->n_props;
    object->h = o->rest_expr[label - 1];
    object->used = use(s, object->used, f);
    return object->used != G_INF;
}

/* ---- leaves ---- */

enum gleaf gleaf_step(const struct grammar *g, struct gstore *s, struct gframe *f, const struct gwindow *w,
                      unsigned char byte)
{
    if (f->kind == F_KEY)
        return key_step(g, s, f, w, byte);
    if (f->kind == F_STRING && g->shape[f->shape]->u.str.unique)
        return unique_step(&g->shape[f->shape]->u.str, s, f, w->keep, byte);
    if (f->kind != F_NUMBER)
        return string_step(g, f, byte);
    const struct gnum *n = g->shape[f->shape]->u.num;
    int symbol = gnum_symbol(byte);
    uint32_t to = symbol < 0 ? 0 : n->next[f->a * GNUM_SYMBOLS + (uint32_t)symbol];
    if (!to)
        return n->accept[f->a] ? LEAF_PASS : LEAF_BAD;
    f->a = to;
    return LEAF_IN;
}

bool gleaf_checked(const struct grammar *g, const struct gframe *f)
{
    return f->kind == F_KEY || (f->kind == F_STRING && g->shape[f->shape]->u.str.unique);
}

bool gleaf_heavy(const struct grammar *g, const struct gframe *f)
{
    if (f->kind == F_KEY)
        return g->shape[f->shape]->u.obj.words != NULL;
    if (f->kind != F_STRING)
        return false;
    const struct gstring *s = &g->shape[f->shape]->u.str;
    const struct gbytes *open = &s->dfa->open[f->a]; /* of the words of an enum few characters come next */
    bool wide = __builtin_popcountll(open->w[0]) + __builtin_popcountll(open->w[1]) >= 24;
    return wide && (s->max != G_INF || !s->dfa->self[f->a]);
}

const struct gdfa *gleaf_loop(const struct grammar *g, const struct gframe *f, const struct gwindow *w, uint32_t *room,
                              bool *free)
{
    *room = G_INF;
    *free = false;
    if (f->pend || f->kind == F_NUMBER)
        return NULL;
    if (f->kind == F_KEY) {
        const struct gobject *o = &g->shape[f->shape]->u.obj;
        bool on = f->b == G_INF && w->rest && f->a && (!o->words || o->words[f->a] == G_WORDS_INF);
        return on ? o->rest : NULL;
    }
    const struct gstring *s = string_of(g, f);
    if (s->words && s->words[f->a] != G_WORDS_INF)
        return NULL;
    *free = s->max == G_INF && !s->need && !s->words;
    if (s->max == G_INF)
        return s->dfa;
    if (!s->dfa->self[f->a]) /* elsewhere the end may be too far off for the length that is left */
        return NULL;
    *room = s->max - f->b;
    return s->dfa;
}

/* ---- values ---- */

static void begin_value(const struct grammar *g, struct gstore *s, uint32_t expr, uint32_t up, unsigned char byte,
                        struct gconfigs *out)
{
    const struct gexpr *x = g->expr[expr];
    if (!(x->first[byte / 64] >> (byte % 64) & 1))
        return;
    for (uint32_t i = 0; i < x->n_shapes && out->n < G_CONFIGS; i++) {
        const struct gshape *shape = g->shape[x->shape[i]];
        struct gframe f = {.up = up, .shape = x->shape[i]};
        int symbol = gnum_symbol(byte);
        switch (shape->kind) {
        case G_NULL:
        case G_FALSE:
        case G_TRUE:
            if (byte != "nft"[shape->kind])
                continue;
            f.kind = F_LITERAL, f.a = 1;
            break;
        case G_NUMBER:
            f.kind = F_NUMBER;
            if (symbol < 0 || !(f.a = shape->u.num->next[GNUM_SYMBOLS + (uint32_t)symbol]))
                continue;
            break;
        case G_STRING:
            if (byte != '"')
                continue;
            f.kind = F_STRING, f.a = 1;
            break;
        case G_ARRAY:
            if (byte != '[')
                continue;
            f.kind = F_ARRAY;
            break;
        default:
            if (byte != '{')
                continue;
            f.kind = F_OBJECT;
        }
        put(s, &f, out);
    }
}

/* Whitespace after f->ws; false: byte is none, or too much of it. */
static bool space(struct gframe *f, unsigned char byte)
{
    if (byte == ' ' && f->ws == 0)
        f->ws = 1;
    else if (byte == '\n' && f->ws == 0)
        f->ws = 2;
    else if ((byte == ' ' || byte == '\t') && f->ws >= 2 && f->ws < 2 + WS_MAX)
        f->ws++;
    else
        return false;
    return true;
}

static void step_object(const struct grammar *g, struct gstore *s, struct gframe f, unsigned char byte,
                        struct gconfigs *out)
{
    bool closes = object_closes(g, &f);
    uint32_t up = f.up;
    if (f.phase == PH_COLON) {
        if (byte == ':') {
            f.phase = PH_VALUE;
            put(s, &f, out);
        }
        return;
    }
    if (f.phase == PH_VALUE) {
        if (byte == ' ' && !f.ws) {
            f.ws = 1;
            put(s, &f, out);
            return;
        }
        uint32_t expr = (uint32_t)f.h;
        f.phase = PH_AFTER;
        f.ws = 0;
        f.h = 0;
        uint32_t at = gstore_put(s, &f);
        if (at != G_INF)
            begin_value(g, s, expr, at, byte, out);
        return;
    }
    struct gwindow w = gkey_window(g, s, &f);
    if (byte == '}' && closes && f.phase != PH_NEXT) {
        add(out, up);
        return;
    }
    if (byte == ',' && f.phase == PH_AFTER && !f.ws && has_keys(&w)) {
        f.phase = PH_NEXT;
        put(s, &f, out);
        return;
    }
    if (byte == '"' && f.phase != PH_AFTER && has_keys(&w)) {
        const struct gobject *o = &g->shape[f.shape]->u.obj;
        f.ws = 0;
        struct gframe key = {.kind = F_KEY, .up = gstore_put(s, &f), .shape = f.shape, .a = o->rest ? 1 : 0};
        if (key.up != G_INF)
            put(s, &key, out);
        return;
    }
    if ((f.phase != PH_AFTER || closes) && space(&f, byte))
        put(s, &f, out);
}

static void step_array(const struct grammar *g, struct gstore *s, struct gframe f, unsigned char byte,
                       struct gconfigs *out)
{
    const struct garray *a = &g->shape[f.shape]->u.arr;
    bool closes = f.a >= a->min && (!a->has || (f.b >= a->has_min && f.b <= a->has_max));
    uint32_t most_n = a->max, fixed = most(a->min, a->n_prefix), idx = f.a + 1;
    uint32_t in = f.a < a->n_prefix ? a->prefix[f.a] : a->item;
    uint32_t cnt = capped(f.b + 1, a->has_min, a->has_max);
    if (most_n == G_INF && idx > fixed)
        idx = fixed + 1; /* all further ones are alike */
    bool room = f.a < most_n;
    bool can_in = room && g->expr[in]->height != G_INF && garray_open(g, a, idx, a->has ? cnt : 0);
    uint32_t other = a->has && room ? a->other[least(f.a, a->n_prefix)] : 0;
    bool can_out = a->has && room && g->expr[other]->height != G_INF && garray_open(g, a, idx, f.b);
    if (byte == ']' && closes && f.phase != PH_NEXT) {
        add(out, f.up);
        return;
    }
    if (byte == ',' && f.phase == PH_AFTER) {
        if (!f.ws && (can_in || can_out)) {
            f.phase = PH_NEXT;
            put(s, &f, out);
        }
        return;
    }
    if (byte == ' ' || byte == '\n' || byte == '\t') {
        if ((f.phase != PH_AFTER || closes) && space(&f, byte))
            put(s, &f, out);
        return;
    }
    if (f.phase == PH_AFTER)
        return;
    struct gframe next = {.kind = F_ARRAY, .up = f.up, .shape = f.shape, .phase = PH_AFTER, .a = idx, .used = f.used};
    for (int k = 0; k < 2; k++) {
        if (k ? !can_out : !can_in)
            continue;
        next.b = k || !a->has ? f.b : cnt;
        uint32_t at = gstore_put(s, &next);
        if (at != G_INF)
            begin_value(g, s, k ? other : in, at, byte, out);
    }
}

static void step_literal(const struct grammar *g, struct gstore *s, struct gframe f, unsigned char byte,
                         struct gconfigs *out)
{
    static const char *const text[] = {"null", "false", "true"};
    const char *t = text[g->shape[f.shape]->kind];
    if ((unsigned char)t[f.a] != byte)
        return;
    f.a++;
    if (t[f.a])
        put(s, &f, out);
    else
        add(out, f.up);
}

void gstep(const struct grammar *g, struct gstore *s, uint32_t top, unsigned char byte, struct gconfigs *out)
{
    while (top != G_INF) {
        struct gframe f = s->f[top], object;
        struct gwindow w = {0};
        switch (f.kind) {
        case F_END:
            return;
        case F_START:
            begin_value(g, s, f.a, f.up, byte, out);
            return;
        case F_OBJECT:
            step_object(g, s, f, byte, out);
            return;
        case F_ARRAY:
            step_array(g, s, f, byte, out);
            return;
        case F_LITERAL:
            step_literal(g, s, f, byte, out);
            return;
        default:
            break;
        }
        if (f.kind == F_KEY)
            w = gkey_window(g, s, &s->f[f.up]);
        w.keep = true;
        enum gleaf l = gleaf_step(g, s, &f, &w, byte);
        if (l == LEAF_IN)
            put(s, &f, out);
        else if (l == LEAF_CLOSED && !gleaf_checked(g, &f))
            add(out, f.up);
        else if (l == LEAF_CLOSED &&
                 (f.kind == F_KEY ? key_close(g, s, &f, &w, &object) : string_close(s, &f, &object)))
            put(s, &object, out);
        if (l != LEAF_PASS)
            return;
        top = f.up; /* the number ended: the byte is for what it stands in */
    }
}

bool gends(const struct grammar *g, const struct gstore *s, uint32_t top)
{
    const struct gframe *f = &s->f[top];
    if (f->kind == F_END)
        return true;
    if (f->kind == F_NUMBER)
        return s->f[f->up].kind == F_END && g->shape[f->shape]->u.num->accept[f->a];
    return f->kind == F_RAW && !f->pend && g->text.dfa->label[f->a];
}

bool gmore(const struct grammar *g, const struct gstore *s, uint32_t top)
{
    const struct gframe *f = &s->f[top];
    if (f->kind == F_END)
        return false;
    if (f->kind == F_NUMBER && s->f[f->up].kind == F_END)
        return g->shape[f->shape]->u.num->more[f->a];
    if (f->kind != F_RAW || f->pend)
        return true;
    const struct gdfa *d = g->text.dfa;
    for (uint32_t k = 0; k < d->n_classes; k++)
        if (d->next[(size_t)f->a * d->n_classes + k])
            return true;
    return false;
}
