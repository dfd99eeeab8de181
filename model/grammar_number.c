/* grammar_number.c - numbers: an automaton over the bytes of a JSON number that is an integer or not, lies between
 * bounds and is a multiple of something.
 *
 * Used while a grammar is compiled, by the thread that compiles. Each state stands for what of the number so far can
 * still matter: where in the syntax it is, how the digits compare with those of each bound, the remainder, whether a
 * digit of the fraction was not 0. All such states are explored from the empty text, then those without a way to an end
 * are cut off. Comparisons are of decimals, exact.
 *
 * Texts are bounded, so that a number ends: 18 digits before the point, 18 after it, 2 in an exponent. Readers round to
 * doubles; where that could matter (an exclusive bound, a multipleOf, no integers) a number with a fraction has at most
 * 15 digits, and one with a multipleOf 15 before the point, which are told apart in doubles. Exponents are written
 * where only the sign matters. Integers have no fraction and no exponent.
 */
#include "model/grammar_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { INT_MAX_DIGITS = 18, FRAC_MAX_DIGITS = 18, OPEN_MAX_DIGITS = 15, EXP_MAX_DIGITS = 2 };
enum { P_START, P_MINUS, P_ZERO, P_INT, P_POINT, P_FRAC, P_E, P_ESIGN, P_EXP };

struct at { /* zeroed before it is filled: compared by memcmp */
    uint8_t phase, neg, n_int, n_frac, n_exp, nonzero, fraction;
    uint8_t pad[3];
    int8_t cmp[2]; /* the digits so far against the bound's: -1, 0, 1 */
    uint32_t rem;  /* of the digits so far, in units of mod */
    uint32_t not_rem[4];
};

struct work {
    struct gctx *c;
    const struct gnum_spec *s;
    bool exponent; /* allowed */
    int int_max, frac_max;
    bool narrow; /* a number with a fraction has at most OPEN_MAX_DIGITS */
    struct at *state;
    size_t n, cap;
    uint32_t *slot;
    size_t slots;
};

int gnum_symbol(unsigned char byte)
{
    switch (byte) {
    case '-':
        return 10;
    case '+':
        return 11;
    case '.':
        return 12;
    case 'e':
        return 13;
    case 'E':
        return 14;
    default:
        return byte >= '0' && byte <= '9' ? byte - '0' : -1;
    }
}

/* ---- decimals ---- */

static bool dec_digits(struct gdec *d, const char *digits, int n, int point)
{
    int lead = 0, lo, hi;
    while (lead < n && digits[lead] == '0')
        lead++;
    while (n > lead && digits[n - 1] == '0')
        n--;
    if (lead == n) {
        *d = (struct gdec){.n_int = 1, .n = 1, .d = "0"};
        return true;
    }
    lo = point <= lead ? point - 1 : lead; /* one 0 before the point at least */
    hi = n > point ? n : point;
    if (hi - lo > G_DIGITS)
        return false;
    d->n_int = point - lo;
    d->n = hi - lo;
    for (int i = lo; i < hi; i++)
        d->d[i - lo] = i >= 0 && i < n ? digits[i] : '0';
    return true;
}

bool gdec_of(const json_t *number, struct gdec *out)
{
    char text[64], digits[64];
    int n = 0, point = -1, exp = 0;
    memset(out, 0, sizeof *out);
    if (json_is_integer(number))
        snprintf(text, sizeof text, "%lld", (long long)json_integer_value(number));
    else {
        double v = json_real_value(number);
        for (int p = 1; p <= 17; p++) { /* the shortest text that reads back as v */
            snprintf(text, sizeof text, "%.*e", p - 1, v);
            if (strtod(text, NULL) == v)
                break;
        }
    }
    for (const char *p = text; *p; p++) {
        if (*p >= '0' && *p <= '9')
            digits[n++] = *p;
        else if (*p == '.')
            point = n;
        else if (*p == 'e') {
            exp = atoi(p + 1);
            break;
        }
    }
    if (exp < -400 || exp > 400 || !dec_digits(out, digits, n, (point < 0 ? n : point) + exp))
        return false;
    out->neg = text[0] == '-' && !(out->n == 1 && out->d[0] == '0');
    return true;
}

static int digit_at(const struct gdec *d, int from_point) /* 0: the first digit of the fraction; -1: the units */
{
    int i = d->n_int + from_point;
    return i >= 0 && i < d->n ? d->d[i] - '0' : 0;
}

int gdec_cmp(const struct gdec *a, const struct gdec *b)
{
    if (a->neg != b->neg)
        return a->neg ? -1 : 1;
    int top = a->n_int > b->n_int ? a->n_int : b->n_int;
    for (int i = -top; i < G_DIGITS; i++) {
        int x = digit_at(a, i), y = digit_at(b, i);
        if (x != y)
            return (x > y) == !a->neg ? 1 : -1;
    }
    return 0;
}

static bool dec_zero(const struct gdec *d)
{
    return d->n == 1 && d->d[0] == '0';
}

/* ---- states ---- */

static const struct gdec *bound(const struct gnum_spec *s, int k)
{
    return k ? (s->has_hi ? &s->hi : NULL) : (s->has_lo ? &s->lo : NULL);
}

static void take_digit(const struct work *w, struct at *a, int digit, bool fraction)
{
    for (int k = 0; k < 2; k++) {
        const struct gdec *b = bound(w->s, k);
        if (!b || a->cmp[k])
            continue;
        /* before the point: as if both had as many digits; the count settles it otherwise */
        int other = fraction ? digit_at(b, a->n_frac) : a->n_int < b->n_int ? b->d[a->n_int] - '0' : 0;
        a->cmp[k] = (int8_t)((digit > other) - (digit < other));
    }
    a->nonzero |= digit != 0;
    a->fraction |= fraction && digit != 0;
    if (w->s->mod)
        a->rem = (uint32_t)(((uint64_t)a->rem * 10 + (uint32_t)digit) % w->s->mod);
    for (uint32_t k = 0; k < w->s->n_not_mod && !fraction; k++)
        a->not_rem[k] = (uint32_t)(((uint64_t)a->not_rem[k] * 10 + (uint32_t)digit) % w->s->not_mod[k]);
    if (fraction)
        a->n_frac++;
    else
        a->n_int++;
}

/* The digits before the point are complete: settles comparisons by their count. */
static void end_int(const struct work *w, struct at *a)
{
    for (int k = 0; k < 2; k++) {
        const struct gdec *b = bound(w->s, k);
        if (b && a->n_int != b->n_int)
            a->cmp[k] = a->n_int > b->n_int ? 1 : -1;
    }
}

/* The value's magnitude against the bound's, for a text that ends here. */
static int magnitude(const struct work *w, const struct at *a, int k)
{
    const struct gdec *b = bound(w->s, k);
    struct at t = *a;
    if (a->phase == P_ZERO || a->phase == P_INT)
        end_int(w, &t);
    if (t.cmp[k])
        return t.cmp[k];
    for (int i = t.n_frac; b->n_int + i < b->n; i++)
        if (digit_at(b, i))
            return -1;
    return 0;
}

static int compare(const struct work *w, const struct at *a, int k)
{
    const struct gdec *b = bound(w->s, k);
    bool neg = a->neg && a->nonzero;
    if (dec_zero(b))
        return !a->nonzero ? 0 : neg ? -1 : 1; /* whatever the exponent */
    if (neg != b->neg)
        return neg ? -1 : 1;
    return neg ? -magnitude(w, a, k) : magnitude(w, a, k);
}

static bool accepts(const struct work *w, const struct at *a)
{
    const struct gnum_spec *s = w->s;
    if (a->phase != P_ZERO && a->phase != P_INT && a->phase != P_FRAC && a->phase != P_EXP)
        return false;
    bool whole = a->phase != P_EXP && !a->fraction;
    if (a->neg && !a->nonzero && a->phase != P_FRAC && a->phase != P_EXP)
        return false; /* -0 */
    if ((!s->fraction && !whole) || (!s->integer && (whole || a->phase == P_EXP)))
        return false;
    if (s->has_lo) {
        int c = compare(w, a, 0);
        if (c < 0 || (!c && s->lo_open))
            return false;
    }
    if (s->has_hi) {
        int c = compare(w, a, 1);
        if (c > 0 || (!c && s->hi_open))
            return false;
    }
    if (s->mod) {
        uint64_t rem = a->rem;
        for (int k = a->n_frac; k < s->mod_scale; k++)
            rem = rem * 10 % s->mod;
        if (rem)
            return false;
    }
    for (uint32_t k = 0; k < s->n_not_mod; k++)
        if (!a->not_rem[k] && whole)
            return false;
    return true;
}

static bool digit_step(const struct work *w, struct at *a, int digit)
{
    switch (a->phase) {
    case P_START:
    case P_MINUS:
        take_digit(w, a, digit, false);
        a->phase = digit ? P_INT : P_ZERO;
        return true;
    case P_INT:
        take_digit(w, a, digit, false);
        return a->n_int <= w->int_max;
    case P_POINT:
    case P_FRAC:
        take_digit(w, a, digit, true);
        a->phase = P_FRAC;
        if (w->narrow && a->n_int + a->n_frac > OPEN_MAX_DIGITS)
            return false;
        return a->n_frac <= w->frac_max;
    case P_E:
    case P_ESIGN:
    case P_EXP:
        a->phase = P_EXP;
        return ++a->n_exp <= EXP_MAX_DIGITS;
    default:
        return false;
    }
}

static bool step(const struct work *w, struct at *a, int symbol)
{
    bool in_int = a->phase == P_ZERO || a->phase == P_INT;
    if (symbol < 10)
        return digit_step(w, a, symbol);
    if (symbol == 10 && a->phase == P_START) {
        a->phase = P_MINUS;
        a->neg = 1;
        return true;
    }
    if (symbol == 12 && in_int && w->s->fraction) {
        end_int(w, a);
        a->phase = P_POINT;
        if (!w->narrow)
            a->n_int = 0; /* it matters no more, and fewer states do the same */
        return true;
    }
    if ((symbol == 13 || symbol == 14) && (in_int || a->phase == P_FRAC) && w->exponent) {
        if (in_int)
            end_int(w, a);
        a->phase = P_E;
        a->n_int = a->n_frac = a->fraction = 0;
        return true;
    }
    if ((symbol == 10 || symbol == 11) && a->phase == P_E) {
        a->phase = P_ESIGN;
        return true;
    }
    return false;
}

static uint64_t at_hash(const struct at *a)
{
    uint32_t w[sizeof *a / 4];
    uint64_t h = 0;
    memcpy(w, a, sizeof w);
    for (size_t i = 0; i < sizeof w / sizeof *w; i++) {
        h = (h ^ w[i]) * 0x9E3779B97F4A7C15u;
        h ^= h >> 29;
    }
    return h;
}

static int grow(struct work *w)
{
    size_t cap = w->cap ? 2 * w->cap : 256;
    struct at *p = g_tmp(w->c, cap, sizeof *p);
    uint32_t *slot = g_tmp(w->c, 2 * cap, sizeof *slot);
    if (!p || !slot)
        return g_memory_code(w->c);
    if (w->n)
        memcpy(p, w->state, w->n * sizeof *p);
    w->state = p;
    w->cap = cap;
    w->slot = slot;
    w->slots = 2 * cap;
    for (size_t i = 0; i < w->n; i++) {
        uint64_t h = at_hash(&p[i]);
        while (slot[h & (w->slots - 1)])
            h++;
        slot[h & (w->slots - 1)] = (uint32_t)i + 1;
    }
    return 0;
}

static int intern(struct work *w, const struct at *a, uint32_t *id)
{
    uint64_t h = at_hash(a);
    for (; w->slot[h & (w->slots - 1)]; h++) {
        *id = w->slot[h & (w->slots - 1)] - 1;
        if (!memcmp(&w->state[*id], a, sizeof *a))
            return 0;
    }
    if (w->n > 4 * w->c->lim.max_states) /* they are small */
        return err_set(w->c->e, -E2BIG, "%s: a number's automaton of more than %zu states (a large multipleOf?)",
                       w->c->where ? w->c->where : "", 4 * w->c->lim.max_states);
    w->state[w->n] = *a;
    w->slot[h & (w->slots - 1)] = (uint32_t)w->n + 1;
    *id = (uint32_t)w->n++;
    return w->n < w->cap ? 0 : grow(w);
}

static int explore(struct work *w, struct gvec *next)
{
    struct at a;
    uint32_t id;
    int r = grow(w);
    if (r)
        return r;
    memset(&a, 0, sizeof a);
    w->n = 1; /* 0: dead; its slot is not in the table */
    w->state[0] = a;
    if ((r = intern(w, &a, &id)))
        return r;
    for (uint32_t k = 0; k < GNUM_SYMBOLS && !r; k++)
        r = g_push(w->c, next, 0);
    for (size_t s = 1; s < w->n && !r; s++)
        for (int k = 0; k < GNUM_SYMBOLS && !r; k++) {
            a = w->state[s];
            id = 0;
            if (step(w, &a, k))
                r = intern(w, &a, &id);
            r = r ? r : g_push(w->c, next, id);
            r = r ? r : g_steps(w->c, 1);
        }
    return r;
}

/* Cuts off what leads nowhere: repeats until nothing changes (numbers are short, so it settles in few rounds). */
static void trim(struct gnum *g, bool *live)
{
    for (bool change = true; change;) {
        change = false;
        for (uint32_t s = g->n; s-- > 1;) {
            bool l = g->accept[s];
            for (int k = 0; k < GNUM_SYMBOLS && !l; k++)
                l = live[g->next[s * GNUM_SYMBOLS + k]];
            change |= l != live[s];
            live[s] = l;
        }
    }
    for (size_t i = 0; i < (size_t)g->n * GNUM_SYMBOLS; i++) {
        if (!live[g->next[i]])
            g->next[i] = 0;
        g->more[i / GNUM_SYMBOLS] |= g->next[i] != 0;
    }
}

static int build(struct gctx *c, const struct gnum_spec *s, struct gnum **out)
{
    struct work w = {.c = c, .s = s};
    struct gvec next = {0};
    bool zero_lo = !s->has_lo || dec_zero(&s->lo), zero_hi = !s->has_hi || dec_zero(&s->hi);
    w.exponent = s->integer && s->fraction && zero_lo && zero_hi && !s->mod && !s->n_not_mod;
    w.frac_max = s->mod && s->mod_scale < FRAC_MAX_DIGITS ? s->mod_scale : FRAC_MAX_DIGITS;
    w.narrow = s->lo_open || s->hi_open || !s->integer || s->mod;
    w.int_max = INT_MAX_DIGITS;
    if ((s->mod || s->n_not_mod) && (!s->has_lo || s->lo.n_int < OPEN_MAX_DIGITS) &&
        (!s->has_hi || s->hi.n_int < OPEN_MAX_DIGITS))
        w.int_max = OPEN_MAX_DIGITS;
    int r = explore(&w, &next);
    if (r)
        return r;
    struct gnum *g = g_alloc(c, 1, sizeof *g);
    bool *live = g_tmp(c, w.n, sizeof *live);
    if (!g || !live)
        return g_memory_code(c);
    g->n = (uint32_t)w.n;
    g->next = g_alloc(c, next.n, sizeof *g->next);
    g->accept = g_alloc(c, g->n, sizeof *g->accept);
    g->more = g_alloc(c, g->n, sizeof *g->more);
    if (!g->next || !g->accept || !g->more)
        return g_memory_code(c);
    memcpy(g->next, next.p, next.n * sizeof *g->next);
    for (uint32_t i = 1; i < g->n; i++)
        g->accept[i] = accepts(&w, &w.state[i]);
    trim(g, live);
    *out = live[1] ? g : NULL;
    return 0;
}

static bool same(const struct gnum_spec *a, const struct gnum_spec *b)
{
    bool mods = a->n_not_mod == b->n_not_mod;
    for (uint32_t i = 0; i < a->n_not_mod && mods; i++)
        mods = a->not_mod[i] == b->not_mod[i];
    return mods && a->integer == b->integer && a->fraction == b->fraction && a->has_lo == b->has_lo &&
           a->has_hi == b->has_hi && a->lo_open == b->lo_open && a->hi_open == b->hi_open && a->mod == b->mod &&
           a->mod_scale == b->mod_scale && (!a->has_lo || !gdec_cmp(&a->lo, &b->lo)) &&
           (!a->has_hi || !gdec_cmp(&a->hi, &b->hi));
}

int gnum_build(struct gctx *c, const struct gnum_spec *s, struct gnum **out)
{
    for (struct gnum_made *m = c->numbers; m; m = m->next)
        if (same(&m->spec, s)) {
            *out = m->num;
            return 0;
        }
    struct gnum_made *made = g_tmp(c, 1, sizeof *made);
    if (!made)
        return g_memory_code(c);
    int r = build(c, s, &made->num);
    if (r)
        return r;
    made->spec = *s;
    made->next = c->numbers;
    c->numbers = made;
    *out = made->num;
    return 0;
}
