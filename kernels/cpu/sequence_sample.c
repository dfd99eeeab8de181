/* sequence_sample.c - one row's token from its logits: the part of sampling that is the same at all levels.
 *
 * The order is vLLM's: mask, logit bias, penalties (repetition, frequency, presence), then for greedy rows the largest
 * logit; otherwise temperature, min_p, top_k, top_p over what top_k left, and one draw by falling through the kept
 * tokens in the order of their ids. Equal values rank by id, the lowest first, also at the edge of top_k and top_p.
 * Log-probabilities are of the raw logits, which are therefore looked at first; after that the row's logits are
 * shifted in place, and set to -inf as tokens fall out. NaN counts as -inf.
 *
 * No sort: the value at which top_k or top_p ends is found by counting, first in equal steps below the maximum (of
 * tokens within 8, then 32 temperatures), then by the logits' bits among the tokens of the step where it ends. Weights
 * are exp((x - max) / temperature); sums run over blocks of 256 tokens in order. Owns no memory (but for a temporary
 * when penalties and biases touch over 4,096 tokens and log-probabilities are wanted).
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/sequence.h"

#define SUM_BLOCK 256u
#define MAX_SPANS 1024u
#define SAVED 4096u
#define NEAR_BINS 2048u
#define NEAR_HELD 2048u

/* A row on its way: its logits, their maximum after the shifts, and how to weigh them. */
struct row {
    const struct sample_prims *p;
    float *x;
    uint32_t n;
    float max, temperature;
};

static uint32_t block_len(const struct row *r, uint32_t i)
{
    return r->n - i < SUM_BLOCK ? r->n - i : SUM_BLOCK;
}

/* Sum of the weights in [i, end); i is a multiple of SUM_BLOCK. Blocks with no token left are passed over. */
static double range_sum(const struct row *r, uint32_t i, uint32_t end)
{
    float w[SUM_BLOCK];
    double sum = 0;
    while ((i = r->p->next_ge(r->x, i, end, -FLT_MAX)) < end) {
        i -= i % SUM_BLOCK;
        sum += r->p->weights(w, r->x + i, block_len(r, i), r->max, r->temperature);
        i += block_len(r, i);
    }
    return sum;
}

/* ---- log-probabilities of the raw logits ---- */

struct norm {
    float max, log_sum;
};

static struct norm norm_of(const struct sample_prims *p, float *x, uint32_t n)
{
    struct row r = {.p = p, .x = x, .n = n, .max = p->max_of(x, n), .temperature = 1};
    if (!(r.max > -INFINITY))
        return (struct norm){0, 0};
    return (struct norm){r.max, (float)log(range_sum(&r, 0, n))};
}

static float norm_logprob(const struct norm *z, float x)
{
    return x - z->max - z->log_sum;
}

static void top_list(const struct sample_prims *p, const float *x, uint32_t n, const struct norm *z, int32_t n_top,
                     struct kern_sampled *out)
{
    float best[KERN_TOP_MAX];
    int32_t have = 0;
    n_top = n_top < KERN_TOP_MAX ? n_top : KERN_TOP_MAX;
    for (uint32_t i = 0; n_top > 0 && i < n; i++) {
        if (have == n_top) {
            i = p->next_ge(x, i, n, best[have - 1]);
            if (i == n)
                break;
            if (x[i] == best[have - 1])
                continue;
        }
        int32_t at = have < n_top ? have++ : have - 1;
        for (; at > 0 && best[at - 1] < x[i]; at--) {
            best[at] = best[at - 1];
            out->top_id[at] = out->top_id[at - 1];
        }
        best[at] = x[i];
        out->top_id[at] = (int32_t)i;
    }
    for (int32_t i = 0; i < n_top; i++) {
        out->top_id[i] = i < have ? out->top_id[i] : -1;
        out->top_logprob[i] = i < have ? norm_logprob(z, best[i]) : -INFINITY;
    }
}

/* Its place among all tokens as top_list orders them. */
static uint32_t rank_of(const float *x, uint32_t n, uint32_t token)
{
    float v = x[token];
    uint32_t above = 0, ties = 0;
    for (uint32_t i = 0; i < n; i++)
        above += x[i] > v;
    for (uint32_t i = 0; i < token; i++)
        ties += x[i] == v;
    return 1 + above + ties;
}

/* ---- mask, bias, penalties ---- */

/* As tidy leaves logits. */
static void set_logit(float *x, float v)
{
    float most = v < FLT_MAX ? v : FLT_MAX;
    *x = v == v ? most : -INFINITY;
}

static float penalized(const struct kern_sample *s, const struct kern_seen *t, float v)
{
    if (t->in_output || t->in_prompt)
        v = v > 0 ? v / s->repetition : v * s->repetition;
    v -= s->frequency * (float)t->in_output;
    return t->in_output ? v - s->presence : v;
}

static void shift(const struct sample_prims *p, float *x, uint32_t n, const struct kern_sample *s)
{
    if (s->mask)
        p->mask(x, n, s->mask);
    for (uint32_t i = 0; i < s->n_bias; i++) {
        uint32_t t = (uint32_t)s->bias[i].token;
        if (t < n)
            set_logit(&x[t], x[t] + s->bias[i].add);
    }
    for (uint32_t i = 0; i < s->n_seen; i++) {
        uint32_t t = (uint32_t)s->seen[i].token;
        if (t < n)
            set_logit(&x[t], penalized(s, &s->seen[i], x[t]));
    }
}

/* The logits that shift will change, in its order: saved[n_bias + n_seen]. */
static void save(const float *x, uint32_t n, const struct kern_sample *s, float *saved)
{
    for (uint32_t i = 0; i < s->n_bias; i++)
        *saved++ = (uint32_t)s->bias[i].token < n ? x[s->bias[i].token] : 0;
    for (uint32_t i = 0; i < s->n_seen; i++)
        *saved++ = (uint32_t)s->seen[i].token < n ? x[s->seen[i].token] : 0;
}

static float raw_logit(const struct kern_sample *s, const float *saved, uint32_t token, float now)
{
    for (uint32_t i = 0; i < s->n_bias; i++)
        if ((uint32_t)s->bias[i].token == token)
            return saved[i];
    for (uint32_t i = 0; i < s->n_seen; i++)
        if ((uint32_t)s->seen[i].token == token)
            return saved[s->n_bias + i];
    return now;
}

/* ---- where top_k and top_p end ---- */

/* Tokens above v are kept, and the first `ties` of those equal to it; UINT32_MAX: all of them. */
struct edge {
    float v;
    uint32_t ties;
};

/* What is looked for: the fewest tokens, likeliest first, that number `count`, or weigh `mass` (count 0). */
struct goal {
    double count, mass;
    double above_count, above_mass; /* of the tokens beyond the bin at hand */
};

struct bins {
    uint32_t count[2048];
    double mass[2048];
};

/* Bits whose order as integers is the order of the floats, and back. */
static uint32_t key_of(float f)
{
    uint32_t u = f32_bits(f + 0.0f); /* -0 as 0 */
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

static float key_value(uint32_t k)
{
    return f32_of_bits(k & 0x80000000u ? k & 0x7FFFFFFFu : ~k);
}

static void bins_add(const struct row *r, struct bins *b, const float *x, uint32_t n, unsigned low_bits,
                     uint32_t bin_mask)
{
    float w[SUM_BLOCK];
    r->p->weights(w, x, n, r->max, r->temperature);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t bin = key_of(x[i]) >> low_bits & bin_mask;
        b->count[bin]++;
        b->mass[bin] += w[i];
    }
}

/* Counts the tokens with keys in [lo, hi] by their bits above low_bits, then goes down from the highest bin until the
 * goal is reached, and returns that bin; -1 when it is not. */
static int edge_pass(const struct row *r, struct bins *b, uint32_t lo, uint32_t hi, unsigned low_bits, struct goal *g)
{
    float held[SUM_BLOCK], from = key_value(lo), to = key_value(hi);
    uint32_t bin_mask = low_bits ? 0x7FFu : 0x3FFu;
    memset(b, 0, sizeof *b);
    for (uint32_t i = 0; i < r->n;) {
        uint32_t n = r->p->take(r->x, &i, r->n, from, held, SUM_BLOCK), kept = 0;
        for (uint32_t j = 0; j < n; j++)
            if (held[j] <= to)
                held[kept++] = held[j];
        bins_add(r, b, held, kept, low_bits, bin_mask);
    }
    double count = g->above_count, mass = g->above_mass;
    for (int bin = (int)bin_mask; bin >= 0; bin--) {
        bool there = g->count > 0 ? count + b->count[bin] >= g->count : mass + b->mass[bin] >= g->mass;
        if (b->count[bin] && there) {
            g->above_count = count;
            g->above_mass = mass;
            return bin;
        }
        count += b->count[bin];
        mass += b->mass[bin];
    }
    return -1;
}

/* The edge of the goal by the logits' bits, three passes; {least, UINT32_MAX} when all tokens do not reach it. */
static struct edge edge_by_bits(const struct row *r, struct bins *b, struct goal g, float least)
{
    uint32_t key = 0, lowest = key_of(least);
    static const unsigned low_bits[3] = {21, 10, 0};
    int bin = -1;
    for (int i = 0; i < 3; i++) {
        uint32_t below = i ? (1u << low_bits[i - 1]) - 1 : UINT32_MAX;
        uint32_t lo = key > lowest ? key : lowest, top = i ? key | below : key_of(r->max);
        bin = edge_pass(r, b, lo, top, low_bits[i], &g);
        if (bin < 0) /* not reached, or the same weights added in another order fell a hair short */
            return (struct edge){key_value(lo), UINT32_MAX};
        key |= (uint32_t)bin << low_bits[i];
    }
    double each = b->mass[bin] / b->count[bin];
    double ties = g.count > 0 ? g.count - g.above_count : each > 0 ? ceil((g.mass - g.above_mass) / each) : 1;
    ties = ties < 1 ? 1 : ties;
    return (struct edge){key_value(key), ties < b->count[bin] ? (uint32_t)ties : UINT32_MAX};
}

static uint32_t step_of(const struct row *r, float per_bin, float x)
{
    float step = (r->max - x) * per_bin;
    return step < NEAR_BINS - 1 ? (uint32_t)step : NEAR_BINS - 1;
}

/* Counts the tokens within `depth` below the maximum in steps of equal width, and finds the step in which the goal is
 * reached, as edge_pass does. */
static int near_pass(const struct row *r, struct bins *b, float depth, struct goal *g)
{
    float held[SUM_BLOCK], w[SUM_BLOCK], per_bin = NEAR_BINS / depth;
    uint32_t bin[SUM_BLOCK];
    memset(b, 0, sizeof *b);
    for (uint32_t i = 0; i < r->n;) {
        uint32_t n = r->p->take(r->x, &i, r->n, r->max - depth, held, SUM_BLOCK);
        r->p->weights(w, held, n, r->max, r->temperature);
        for (uint32_t j = 0; j < n; j++)
            bin[j] = step_of(r, per_bin, held[j]);
        for (uint32_t j = 0; j < n; j++) {
            b->count[bin[j]]++;
            b->mass[bin[j]] += w[j];
        }
    }
    double count = g->above_count, mass = g->above_mass;
    for (int k = 0; k < (int)NEAR_BINS; k++) {
        bool there = g->count > 0 ? count + b->count[k] >= g->count : mass + b->mass[k] >= g->mass;
        if (b->count[k] && there) {
            g->above_count = count;
            g->above_mass = mass;
            return k;
        }
        count += b->count[k];
        mass += b->mass[k];
    }
    return -1;
}

/* Looks for the edge within `depth` of the maximum; false when it is not there, or too many tokens are near it. */
static bool edge_near(const struct row *r, struct bins *b, float depth, struct goal g, struct edge *e)
{
    float held[NEAR_HELD], per_bin = NEAR_BINS / depth;
    if (!(per_bin < FLT_MAX) || !(per_bin > 0))
        return false;
    int bin = near_pass(r, b, depth, &g);
    if (bin < 0 || b->count[bin] > NEAR_HELD)
        return false;
    struct row sub = *r;
    float from = r->max - (float)(bin + 2) / per_bin;
    from = from > r->max - depth ? from : r->max - depth;
    sub.x = held;
    sub.n = 0;
    float least = INFINITY;
    for (uint32_t i = 0; i < r->n;) {
        float some[SUM_BLOCK];
        uint32_t n = r->p->take(r->x, &i, r->n, from, some, SUM_BLOCK);
        for (uint32_t j = 0; j < n; j++)
            if (step_of(r, per_bin, some[j]) == (uint32_t)bin && sub.n < NEAR_HELD) {
                held[sub.n++] = some[j];
                least = some[j] < least ? some[j] : least;
            }
    }
    if (!sub.n)
        return false;
    *e = edge_by_bits(&sub, b, g, least);
    return true;
}

static struct edge edge_find(const struct row *r, struct goal g)
{
    struct bins b;
    struct edge e;
    if (edge_near(r, &b, 8 * r->temperature, g, &e) || edge_near(r, &b, 32 * r->temperature, g, &e))
        return e;
    return edge_by_bits(r, &b, g, -FLT_MAX);
}

/* Drops what lies beyond the edge. */
static void edge_cut(const struct row *r, struct edge e)
{
    r->p->cut(r->x, r->n, e.v);
    uint32_t seen = 0;
    for (uint32_t i = 0; e.ties < UINT32_MAX && (i = r->p->next_ge(r->x, i, r->n, e.v)) < r->n; i++)
        if (r->x[i] == e.v && seen++ >= e.ties)
            r->x[i] = -INFINITY;
}

/* ---- the draw ---- */

/* The token at which the running sum of weights from x[i] passes `need`; i is a multiple of SUM_BLOCK. */
static uint32_t draw_in(const struct row *r, uint32_t i, double need)
{
    float w[SUM_BLOCK];
    uint32_t last = i;
    double sum = 0;
    for (; i < r->n; i += block_len(r, i)) {
        double after = sum + r->p->weights(w, r->x + i, block_len(r, i), r->max, r->temperature);
        if (!(need < after) && i + SUM_BLOCK < r->n) {
            sum = after;
            continue;
        }
        for (uint32_t j = 0; j < block_len(r, i); j++) {
            if (!(w[j] > 0))
                continue;
            last = i + j;
            sum += w[j];
            if (need < sum)
                break;
        }
        return last;
    }
    return last;
}

static uint32_t draw(const struct row *r, float unit)
{
    double sums[MAX_SPANS], total = 0, before = 0;
    uint32_t per_span = SUM_BLOCK * (uint32_t)(((uint64_t)r->n + SUM_BLOCK * MAX_SPANS - 1) / (SUM_BLOCK * MAX_SPANS));
    uint32_t n_spans = 0;
    for (uint32_t i = 0; i < r->n; i += per_span, n_spans++) {
        sums[n_spans] = range_sum(r, i, r->n - i < per_span ? r->n : i + per_span);
        total += sums[n_spans];
    }
    double target = unit * total;
    for (uint32_t k = 0; k < n_spans; k++) {
        if (target < before + sums[k])
            return draw_in(r, k * per_span, target - before);
        before += sums[k];
    }
    return r->p->next_ge(r->x, 0, r->n, r->max);
}

/* ---- together ---- */

static uint32_t sample_soft(const struct row *r, const struct kern_sample *s)
{
    if (s->min_p > 0) {
        float least = r->max + r->temperature * logf(s->min_p);
        r->p->cut(r->x, r->n, least < r->max ? least : r->max);
    }
    if (s->top_k && s->top_k < r->n)
        edge_cut(r, edge_find(r, (struct goal){.count = s->top_k}));
    if (s->top_p < 1) {
        double mass = s->top_p > 0 ? s->top_p * range_sum(r, 0, r->n) : 0;
        edge_cut(r, edge_find(r, (struct goal){.mass = mass}));
    }
    return draw(r, rng_unit(s->seed, s->sequence, s->position));
}

/* When no token has a finite logit: the first that the mask allows. */
static uint32_t first_allowed(const struct kern_sample *s, uint32_t n)
{
    for (uint32_t i = 0; s->mask && i < n; i++)
        if (s->mask[i / 32] >> (i % 32) & 1u)
            return i;
    return 0;
}

/* Picks from the shifted logits. */
static uint32_t pick(const struct sample_prims *p, float *x, uint32_t n, const struct kern_sample *s)
{
    struct row r = {.p = p, .x = x, .n = n, .max = p->max_of(x, n), .temperature = s->temperature};
    if (!(r.max > -INFINITY))
        return first_allowed(s, n);
    if (!(s->temperature > 0))
        return p->next_ge(x, 0, n, r.max);
    return sample_soft(&r, s);
}

/* As pick after shift; *raw is the token's logit before the shift. */
static uint32_t pick_raw(const struct sample_prims *p, float *x, uint32_t n, const struct kern_sample *s, float *raw)
{
    float few[SAVED], *saved = few;
    size_t changed = (size_t)s->n_bias + s->n_seen;
    if (changed > SAVED)
        saved = malloc(changed * sizeof *saved);
    if (saved)
        save(x, n, s, saved);
    shift(p, x, n, s);
    uint32_t token = pick(p, x, n, s);
    *raw = saved ? raw_logit(s, saved, token, x[token]) : x[token]; /* out of memory: the shifted one */
    if (saved != few)
        free(saved);
    return token;
}

void cpu_sample_with(const struct sample_prims *p, float *logits, uint32_t vocab, const struct kern_sample *s,
                     struct kern_sampled *out)
{
    bool wanted = s->n_top >= 0 || s->target >= 0;
    struct norm z = {0, 0};
    if (wanted || s->temperature > 0)
        p->tidy(logits, vocab);
    if (wanted) {
        z = norm_of(p, logits, vocab);
        top_list(p, logits, vocab, &z, s->n_top, out);
    }
    out->logprob = 0;
    out->rank = 0;
    if (s->target >= 0) {
        bool known = (uint32_t)s->target < vocab;
        out->token = s->target;
        out->logprob = known ? norm_logprob(&z, logits[s->target]) : -INFINITY;
        out->rank = known && s->rank ? rank_of(logits, vocab, (uint32_t)s->target) : 0;
    } else if (wanted) {
        float raw;
        out->token = (int32_t)pick_raw(p, logits, vocab, s, &raw);
        out->logprob = norm_logprob(&z, raw);
    } else {
        shift(p, logits, vocab, s);
        out->token = (int32_t)pick(p, logits, vocab, s);
    }
}
