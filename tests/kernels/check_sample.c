/* check_sample.c - sampling at every level: greedy picks, log-probabilities, filters, penalties, masks, and the draw's
 * distribution.
 *
 * Log-probabilities: 2e-6 of |x - max| + 2e-6 against double. The draw: chi-square of 100,000 draws against the
 * softmax of the kept tokens in double, at most 6 standard deviations above its mean. The kept sets: against a full
 * sort by (value, id).
 */
#include "tests/kernels/check_sequence.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/num.h"

static void *need(void *p)
{
    if (!p)
        abort();
    return p;
}

static struct kern_sample plain(float temperature)
{
    return (struct kern_sample){
        .temperature = temperature, .top_p = 1, .repetition = 1, .seed = 1, .sequence = 2, .target = -1, .n_top = -1};
}

/* Samples from a guarded copy of x. */
static struct kern_sampled run(struct check *c, enum kern_level l, const float *x, uint32_t n,
                               const struct kern_sample *s)
{
    struct kern_sampled out;
    float *copy = check_alloc_end(c, (size_t)n * 4, 4);
    memcpy(copy, x, (size_t)n * 4);
    memset(&out, 0xFB, sizeof out);
    check_table(c, l)->sample(copy, n, s, &out);
    check_free(c, copy);
    return out;
}

static void want_token(struct check *c, const char *what, const struct kern_sampled *o, int32_t token)
{
    if (o->token != token)
        check_fail(c, "%s: token %d, not %d", what, o->token, token);
}

static void test_greedy(struct check *c, enum kern_level l, uint32_t n)
{
    if (!check_case(c, l, "sample greedy vocab=%u", n))
        return;
    float *x = need(malloc((size_t)n * 4));
    struct kern_sample s = plain(0);
    check_fill(c, x, n, 3);
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        best = x[i] > x[best] ? i : best;
    struct kern_sampled o = run(c, l, x, n, &s);
    want_token(c, "largest", &o, (int32_t)best);
    x[n - 1] = x[best];
    o = run(c, l, x, n, &s);
    want_token(c, "a tie goes to the lowest id", &o, (int32_t)best);
    if (n > 2) {
        x[0] = NAN;
        x[n / 2] = 50;
        x[n - 1] = NAN;
        o = run(c, l, x, n, &s);
        want_token(c, "beside NaN", &o, (int32_t)(n / 2));
        x[n / 2] = INFINITY;
        for (s.n_top = -1; s.n_top < 2; s.n_top++) {
            o = run(c, l, x, n, &s);
            want_token(c, "infinity", &o, (int32_t)(n / 2));
        }
    }
    for (int soft = 0; soft < 2; soft++) {
        s = plain((float)soft);
        s.n_top = 3;
        s.top_p = 0.5f;
        s.top_k = 2;
        for (uint32_t i = 0; i < n; i++)
            x[i] = i % 2 ? NAN : -INFINITY;
        o = run(c, l, x, n, &s);
        want_token(c, "nothing possible", &o, 0);
    }
    free(x);
}

/* Ranks: of the listed tokens their places in the list, of others against a plain count; there are ties in x. */
static void test_ranks(struct check *c, enum kern_level l, const float *x, uint32_t n, const struct kern_sampled *list)
{
    struct kern_sample s = plain(1);
    s.n_top = 0;
    s.rank = true;
    for (uint32_t i = 0; i < KERN_TOP_MAX && i < n; i++) {
        s.target = list->top_id[i];
        struct kern_sampled o = run(c, l, x, n, &s);
        if (o.rank != i + 1)
            check_fail(c, "rank %u of the token that is listed at %u", o.rank, i);
    }
    for (uint32_t t = 0; t < n; t += n / 7 + 1) {
        uint32_t want = 1;
        for (uint32_t j = 0; j < n; j++)
            want += x[j] > x[t] || (x[j] == x[t] && j < t);
        s.target = (int32_t)t;
        struct kern_sampled o = run(c, l, x, n, &s);
        if (o.rank != want)
            check_fail(c, "rank of token %u: %u, not %u", t, o.rank, want);
    }
    s.target = (int32_t)n;
    struct kern_sampled o = run(c, l, x, n, &s);
    if (o.rank)
        check_fail(c, "rank %u of a token beyond the vocabulary", o.rank);
}

static void test_logprobs(struct check *c, enum kern_level l, uint32_t n, float spread)
{
    if (!check_case(c, l, "sample logprobs vocab=%u spread=%g", n, (double)spread))
        return;
    float *x = need(malloc((size_t)n * 4));
    check_fill(c, x, n, spread);
    for (uint32_t i = 0; i < n; i += 3)
        x[i] = x[n / 2]; /* many ties */
    double max = -1e300, sum = 0;
    for (uint32_t i = 0; i < n; i++)
        max = fmax(max, (double)x[i]);
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)x[i] - max);
    struct kern_sample s = plain(0);
    s.n_top = KERN_TOP_MAX;
    struct kern_sampled o = run(c, l, x, n, &s);
    for (int i = 0; i < KERN_TOP_MAX && i < (int)n; i++) {
        double want = (double)x[o.top_id[i]] - max - log(sum);
        if (!(fabs((double)o.top_logprob[i] - want) <= 2e-6 * fabs(want) + 2e-6))
            check_fail(c, "top %d: %.9g, not %.9g", i, (double)o.top_logprob[i], want);
        if (i && (x[o.top_id[i]] > x[o.top_id[i - 1]] ||
                  (x[o.top_id[i]] == x[o.top_id[i - 1]] && o.top_id[i] <= o.top_id[i - 1])))
            check_fail(c, "top %d out of order", i);
        uint32_t above = 0;
        for (uint32_t j = 0; j < n; j++)
            above += x[j] > x[o.top_id[i]] || (x[j] == x[o.top_id[i]] && (int32_t)j < o.top_id[i]);
        if (above != (uint32_t)i)
            check_fail(c, "top %d has %u before it", i, above);
    }
    want_token(c, "greedy", &o, o.top_id[0]);
    check_same(c, "the token's log-probability", &o.logprob, &o.top_logprob[0], 4);
    struct kern_sampled few, target;
    s.n_top = 0;
    few = run(c, l, x, n, &s);
    check_same(c, "with no list", &few.logprob, &o.logprob, 4);
    s.temperature = 1;
    s.target = o.top_id[n < 5 ? 0 : 4];
    target = run(c, l, x, n, &s);
    want_token(c, "target", &target, s.target);
    check_same(c, "the target's log-probability", &target.logprob, &o.top_logprob[n < 5 ? 0 : 4], 4);
    if (target.rank)
        check_fail(c, "rank %u, not asked for", target.rank);
    test_ranks(c, l, x, n, &o);
    free(x);
}

/* ---- kept sets and the draw ---- */

static const float *order_x;

static int by_value(const void *a, const void *b)
{
    uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    if (order_x[i] != order_x[j])
        return order_x[i] > order_x[j] ? -1 : 1;
    return i < j ? -1 : 1;
}

/* The probabilities after the filters, in double; the number kept. */
static uint32_t kept(const float *x, uint32_t n, const struct kern_sample *s, double *p)
{
    uint32_t *order = need(malloc(n * sizeof *order)), keep = n;
    double all = 0, sum = 0;
    for (uint32_t i = 0; i < n; i++)
        order[i] = i;
    order_x = x;
    qsort(order, n, sizeof *order, by_value);
    for (uint32_t i = 0; i < n; i++)
        p[order[i]] = exp(((double)x[order[i]] - (double)x[order[0]]) / (double)s->temperature);
    for (uint32_t i = 0; i < n && s->min_p > 0; i++)
        if (p[order[i]] < (double)s->min_p) {
            keep = i;
            break;
        }
    keep = s->top_k && s->top_k < keep ? s->top_k : keep;
    for (uint32_t i = 0; i < keep; i++)
        all += p[order[i]];
    for (uint32_t i = 0; i < keep && s->top_p < 1; i++) {
        sum += p[order[i]];
        if (sum >= (double)s->top_p * all)
            keep = i + 1;
    }
    sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += i < keep ? p[order[i]] : 0;
    for (uint32_t i = 0; i < n; i++)
        p[order[i]] = i < keep ? p[order[i]] / sum : 0;
    free(order);
    return keep;
}

static void draw_many(struct check *c, enum kern_level l, const float *x, uint32_t n, struct kern_sample s,
                      uint32_t draws)
{
    double *p = need(malloc(n * sizeof *p)), chi = 0, spare_want = 0, spare_got = 0;
    uint32_t *got = need(calloc(n, sizeof *got)), cells = 0;
    float *copy = need(malloc((size_t)n * 4));
    kept(x, n, &s, p);
    for (uint32_t i = 0; i < draws; i++) {
        struct kern_sampled o;
        memcpy(copy, x, (size_t)n * 4);
        s.position = i;
        check_table(c, l)->sample(copy, n, &s, &o);
        if (o.token < 0 || o.token >= (int32_t)n || !(p[o.token] > 0))
            check_fail(c, "drew %d, which is not kept", o.token);
        else
            got[o.token]++;
    }
    for (uint32_t i = 0; i < n; i++) {
        double want = p[i] * draws;
        if (want < 8) { /* the unlikely ones count together */
            spare_want += want;
            spare_got += got[i];
            continue;
        }
        chi += (got[i] - want) * (got[i] - want) / want;
        cells++;
    }
    if (spare_want >= 8) {
        chi += (spare_got - spare_want) * (spare_got - spare_want) / spare_want;
        cells++;
    }
    double df = cells > 1 ? cells - 1 : 1;
    if (chi > df + 6 * sqrt(2 * df))
        check_fail(c, "chi-square %.1f for %.0f degrees of freedom", chi, df);
    free(p);
    free(got);
    free(copy);
}

static void test_draw(struct check *c, enum kern_level l, uint32_t n, float temperature, uint32_t top_k, float top_p,
                      float min_p, uint32_t draws)
{
    if (!check_case(c, l, "sample draw vocab=%u T=%g k=%u p=%g min=%g", n, (double)temperature, top_k, (double)top_p,
                    (double)min_p))
        return;
    float *x = need(malloc((size_t)n * 4));
    check_fill(c, x, n, 2);
    struct kern_sample s = plain(temperature);
    s.top_k = top_k;
    s.top_p = top_p;
    s.min_p = min_p;
    draw_many(c, l, x, n, s, draws);
    free(x);
}

/* Equal logits: exactly so many are kept, the lowest ids. */
static void test_ties(struct check *c, enum kern_level l, float value)
{
    if (!check_case(c, l, "sample ties at %g", (double)value))
        return;
    float x[40];
    bool seen[40] = {false};
    for (int i = 0; i < 40; i++)
        x[i] = i % 4 == 1 ? value : value - 5;
    struct kern_sample s = plain(1);
    for (int way = 0; way < 3; way++) {
        s.top_k = way == 0 ? 3 : 0;
        s.top_p = way == 0 ? 1 : way == 1 ? 0.24f : 0;
        uint32_t keep = way == 2 ? 1 : 3;
        memset(seen, 0, sizeof seen);
        for (s.position = 0; s.position < 200; s.position++) {
            int32_t t = run(c, l, x, 40, &s).token;
            seen[t] = true;
            if (t % 4 != 1 || t > (int32_t)(keep - 1) * 4 + 1)
                check_fail(c, "way %d: drew %d", way, t);
        }
        for (uint32_t i = 0; i < keep; i++)
            if (!seen[i * 4 + 1])
                check_fail(c, "way %d: %u was never drawn", way, i * 4 + 1);
    }
}

static void test_edges(struct check *c, enum kern_level l)
{
    if (!check_case(c, l, "sample edges of the settings"))
        return;
    float x[300];
    check_fill(c, x, 300, 3);
    x[123] = 30;
    const struct kern_sample ways[] = {{.temperature = 1e-30f, .top_p = 1},
                                       {.temperature = 1e-45f, .top_p = 1},
                                       {.temperature = 1, .top_p = 1e-6f},
                                       {.temperature = 1, .top_p = 0},
                                       {.temperature = 1, .top_p = -1},
                                       {.temperature = 1, .top_p = 1, .top_k = 1},
                                       {.temperature = 1, .top_p = 1, .min_p = 1},
                                       {.temperature = 1, .top_p = 1, .min_p = 5},
                                       {.temperature = 1, .top_p = 0.5f, .top_k = 1000000},
                                       {.temperature = -1, .top_p = 1},
                                       {.temperature = NAN, .top_p = 1}};
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        struct kern_sample s = ways[i];
        s.repetition = 1;
        s.target = s.n_top = -1;
        struct kern_sampled o = run(c, l, x, 300, &s);
        want_token(c, "the only one left", &o, 123);
    }
    struct kern_sample s = plain(1e30f);
    for (s.position = 0; s.position < 50; s.position++) {
        struct kern_sampled o = run(c, l, x, 300, &s);
        if (o.token < 0 || o.token >= 300)
            check_fail(c, "token %d", o.token);
    }
    s = plain(1);
    struct kern_sampled a = run(c, l, x, 300, &s), b = run(c, l, x, 300, &s);
    want_token(c, "the same counter", &a, b.token);
}

/* ---- mask, bias, penalties ---- */

static void test_shift(struct check *c, enum kern_level l)
{
    if (!check_case(c, l, "sample mask, bias and penalties"))
        return;
    enum { N = 77 };
    float x[N];
    uint32_t mask[(N + 31) / 32] = {0};
    for (int i = 0; i < N; i++)
        x[i] = (float)i * 0.1f;
    struct kern_sample s = plain(0);
    mask[1] = 1u << 5 | 1u << 3;
    s.mask = mask;
    s.n_top = 2;
    struct kern_sampled o = run(c, l, x, N, &s);
    want_token(c, "masked", &o, 37);
    if (o.top_id[0] != 76)
        check_fail(c, "the list is of the raw logits, not %d", o.top_id[0]);
    s.temperature = 1;
    for (s.position = 0; s.position < 50; s.position++) {
        o = run(c, l, x, N, &s);
        if (o.token != 35 && o.token != 37)
            check_fail(c, "drew masked %d", o.token);
    }
    s = plain(0);
    const struct kern_bias bias[] = {{76, -100}, {4, 8}, {-1, 5}, {N, 5}};
    s.bias = bias;
    s.n_bias = 4;
    o = run(c, l, x, N, &s);
    want_token(c, "biased", &o, 4);
    const struct kern_seen seen[] = {{4, 3, 1}, {75, 0, 1}, {74, 2, 0}, {-5, 1, 1}, {N + 5, 1, 1}};
    s.seen = seen;
    s.n_seen = 5;
    s.presence = 1;
    s.frequency = 0.5f;
    s.repetition = 2;
    o = run(c, l, x, N, &s); /* 4: 8.4/2 - 1.5 - 1 = 1.7; 75: 3.75; 74: 3.7 - 1 - 1 */
    want_token(c, "penalized", &o, 73);
    struct kern_sample raw = plain(0);
    s.n_top = raw.n_top = 0;
    raw.target = 73;
    struct kern_sampled r = run(c, l, x, N, &raw);
    o = run(c, l, x, N, &s);
    check_same(c, "raw log-probability", &o.logprob, &r.logprob, 4);
    const struct kern_bias up = {7, 50};
    s.bias = &up;
    s.n_bias = 1;
    s.temperature = 1;
    raw.target = 7;
    o = run(c, l, x, N, &s);
    r = run(c, l, x, N, &raw);
    want_token(c, "biased, drawn", &o, 7);
    check_same(c, "raw log-probability of a biased token", &o.logprob, &r.logprob, 4);
    x[3] = -8; /* a negative logit is multiplied: all but it masked, it still is the only one */
    memset(mask, 0, sizeof mask);
    mask[0] = 1u << 3 | 1u << 2;
    x[2] = -15;
    const struct kern_seen neg = {3, 0, 1};
    s = plain(0);
    s.mask = mask;
    s.seen = &neg;
    s.n_seen = 1;
    s.repetition = 2;
    o = run(c, l, x, N, &s);
    want_token(c, "a negative logit times the penalty", &o, 2);
}

/* More changed tokens than fit the stack. */
static void test_many_seen(struct check *c, enum kern_level l)
{
    if (!check_case(c, l, "sample with 9,000 penalized tokens"))
        return;
    enum { N = 9000 };
    float *x = need(malloc(N * 4));
    struct kern_seen *seen = need(malloc(N * sizeof *seen));
    check_fill(c, x, N, 2);
    for (int32_t i = 0; i < N; i++)
        seen[i] = (struct kern_seen){N - 1 - i, (uint32_t)i % 3, 1};
    struct kern_sample s = plain(0.8f), raw = plain(0);
    s.seen = seen;
    s.n_seen = N;
    s.repetition = 1.3f;
    s.n_top = raw.n_top = 0;
    struct kern_sampled o = run(c, l, x, N, &s);
    raw.target = o.token;
    struct kern_sampled r = run(c, l, x, N, &raw);
    check_same(c, "raw log-probability", &o.logprob, &r.logprob, 4);
    free(x);
    free(seen);
}

void check_sample(struct check *c, enum kern_level l)
{
    if (l > KERN_SCALAR && check_table(c, l)->sample == check_table(c, (enum kern_level)(l - 1))->sample)
        return; /* the level below's */
    static const uint32_t vocabs[] = {1, 2, 7, 31, 64, 100, 257, 49152, 151936};
    for (size_t i = 0; i < sizeof vocabs / sizeof vocabs[0]; i++) {
        test_greedy(c, l, vocabs[i]);
        if (vocabs[i] < 5000)
            test_logprobs(c, l, vocabs[i], 3);
    }
    test_logprobs(c, l, 5000, 20);
    test_draw(c, l, 50, 0.7f, 0, 1, 0, 100000);
    test_draw(c, l, 50, 1.3f, 0, 0.8f, 0, 100000);
    test_draw(c, l, 700, 1, 20, 1, 0, 30000);
    test_draw(c, l, 700, 1, 20, 0.7f, 0, 30000);
    test_draw(c, l, 700, 1, 0, 1, 0.1f, 30000);
    test_draw(c, l, 700, 2, 30, 0.9f, 0.05f, 30000);
    test_draw(c, l, 3000, 8, 0, 0.999f, 0, 10000);
    test_draw(c, l, 20001, 0.5f, 0, 0.95f, 0, 2000);
    test_draw(c, l, 20001, 100, 15000, 0.95f, 0, 300);
    test_ties(c, l, 3);
    test_ties(c, l, 0);
    test_ties(c, l, -70);
    test_edges(c, l);
    test_shift(c, l);
    test_many_seen(c, l);
}
