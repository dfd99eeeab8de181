/* gen.c - making and freeing a generation, and its ring of events.
 *
 * gen_create and gen_free run on the loop; gen_put on the engine thread, gen_peek and gen_pop on the loop. The ring is
 * single-producer, single-consumer: `tail` is published with release after the event and its candidates are written,
 * `head` with release after they were read. It holds a bounded number of events: when it is full, the scheduler leaves
 * the generation out of a step until the loop has caught up.
 */
#include "server/gen.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define RING_LEAST 64u

static uint32_t ring_capacity(const struct gen_spec *s)
{
    uint32_t want = s->score_prompt ? 256 : RING_LEAST, cap = RING_LEAST;
    if (want < 4 * s->n_choices)
        want = 4 * s->n_choices;
    while (cap < want)
        cap *= 2;
    return cap;
}

/* The client's bias and -infinity for each end token, by ascending id. */
static int forbid_eos(struct gen *g)
{
    const struct gen_spec *s = &g->spec;
    if (!s->min_tokens || !s->n_eos)
        return 0;
    g->bias_min = calloc((size_t)s->n_bias + s->n_eos, sizeof *g->bias_min);
    if (!g->bias_min)
        return -ENOMEM;
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_bias; i++) {
        bool end = false;
        for (uint32_t j = 0; j < s->n_eos; j++)
            end |= s->eos[j] == s->bias[i].token;
        if (!end)
            g->bias_min[n++] = s->bias[i];
    }
    for (uint32_t j = 0; j < s->n_eos; j++) {
        uint32_t at = n++;
        for (; at && g->bias_min[at - 1].token > s->eos[j]; at--)
            g->bias_min[at] = g->bias_min[at - 1];
        g->bias_min[at] = (struct kern_bias){s->eos[j], -INFINITY};
    }
    g->n_bias_min = n;
    return 0;
}

struct gen *gen_create(const struct gen_spec *s)
{
    if (!s->n_choices || s->n_choices > GEN_MAX_CHOICES || !s->n_prompt || s->n_top > KERN_TOP_MAX ||
        s->n_prompt_top > KERN_TOP_MAX)
        return NULL;
    size_t size = (sizeof(struct gen) + 63) & ~(size_t)63;
    struct gen *g = aligned_alloc(64, size);
    if (!g)
        return NULL;
    memset(g, 0, size);
    g->spec = *s;
    g->scored = s->score_from;
    g->cap = ring_capacity(s);
    int most = s->score_prompt && s->n_prompt_top > s->n_top ? s->n_prompt_top : s->n_top;
    g->n_top = most > 0 ? (uint32_t)most : 0;
    g->run = calloc(s->n_choices, sizeof *g->run);
    g->choice_stopped = calloc(s->n_choices, sizeof *g->choice_stopped);
    g->event = calloc(g->cap, sizeof *g->event);
    if (g->n_top) {
        g->top_id = calloc((size_t)g->cap * g->n_top, sizeof *g->top_id);
        g->top_logprob = calloc((size_t)g->cap * g->n_top, sizeof *g->top_logprob);
    }
    bool tops = !g->n_top || (g->top_id && g->top_logprob);
    if (s->pool && !(g->pooled = calloc(s->n_hidden, sizeof *g->pooled)))
        tops = false;
    if (!g->run || !g->choice_stopped || !g->event || !tops || forbid_eos(g)) {
        gen_free(g);
        return NULL;
    }
    int rc = 0;
    for (uint32_t i = 0; i < s->n_choices; i++) {
        g->run[i] = (struct gen_run){.g = g, .choice = (uint16_t)i, .seq = MODEL_NO_SEQ};
        if (s->grammar && !rc)
            rc = grammar_state_open(s->grammar, &g->run[i].form);
    }
    if (rc) {
        gen_free(g);
        return NULL;
    }
    return g;
}

void gen_free(struct gen *g)
{
    if (!g)
        return;
    for (uint32_t i = 0; g->run && i < g->spec.n_choices; i++) {
        grammar_state_close(g->run[i].form);
        free(g->run[i].seen);
        free(g->run[i].fed);
        free(g->run[i].key);
    }
    free(g->run);
    free(g->choice_stopped);
    free(g->bias_min);
    free(g->event);
    free(g->top_id);
    free(g->top_logprob);
    free(g->pooled);
    free(g);
}

uint32_t gen_room(const struct gen *g)
{
    uint32_t tail = atomic_load_explicit(&g->tail, memory_order_relaxed);
    return g->cap - (tail - atomic_load_explicit(&g->head, memory_order_acquire));
}

void gen_put(struct gen *g, const struct gen_event *ev, const struct kern_sampled *tops, uint32_t n_top)
{
    uint32_t tail = atomic_load_explicit(&g->tail, memory_order_relaxed), at = tail & (g->cap - 1);
    g->event[at] = *ev;
    for (uint32_t i = 0; i < g->n_top; i++) {
        g->top_id[(size_t)at * g->n_top + i] = i < n_top ? tops->top_id[i] : -1;
        g->top_logprob[(size_t)at * g->n_top + i] = i < n_top ? tops->top_logprob[i] : NAN;
    }
    atomic_store_explicit(&g->tail, tail + 1, memory_order_release);
}

bool gen_peek(const struct gen *g, struct gen_event *ev, const int32_t **top_id, const float **top_logprob)
{
    uint32_t head = atomic_load_explicit(&g->head, memory_order_relaxed);
    if (head == atomic_load_explicit(&g->tail, memory_order_acquire))
        return false;
    size_t at = head & (g->cap - 1);
    *ev = g->event[at];
    *top_id = g->n_top ? g->top_id + at * g->n_top : NULL;
    *top_logprob = g->n_top ? g->top_logprob + at * g->n_top : NULL;
    return true;
}

void gen_pop(struct gen *g)
{
    uint32_t head = atomic_load_explicit(&g->head, memory_order_relaxed);
    atomic_store_explicit(&g->head, head + 1, memory_order_release);
}

uint32_t gen_total_tokens(const struct gen_spec *s)
{
    /* The last token sampled is never fed back, so its keys need no place. */
    uint64_t t = (uint64_t)s->n_prompt + (s->max_tokens ? s->max_tokens - 1 : 0);
    return t > UINT32_MAX ? UINT32_MAX : (uint32_t)t;
}

uint64_t gen_pages(const struct gen_spec *s)
{
    uint64_t each = kv_pages_for(gen_total_tokens(s));
    uint64_t shared = (s->n_prompt - 1) / KERN_PAGE_TOKENS;
    return each + (s->n_choices - 1) * (each - shared);
}

uint64_t mono_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
