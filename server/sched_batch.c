/* sched_batch.c - one batch: which rows, their sampling, and what comes of the results.
 *
 * Engine thread only. A batch is made in s->part / s->span / s->sample and lives for one call of sched_step. Order:
 * decoding runs first (all of them where the limits of rows and logits allow, else the least served tenants' first,
 * each tenant's in turn), then chunks of prompts.
 *
 * What always holds: a part is planned only when its generation's ring has room for every event that it will write,
 * and no limit of model_step is exceeded. While prompts wait to be read, an eighth of the rows and one logit row are
 * kept for them, so that any number of decoding runs cannot stop them.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "server/sched_internal.h"

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* ---- sampling settings ---- */

static struct kern_sample settings(const struct gen *g)
{
    const struct gen_spec *p = &g->spec;
    return (struct kern_sample){.temperature = p->temperature,
                                .top_p = p->top_p,
                                .min_p = p->min_p,
                                .top_k = p->top_k,
                                .presence = p->presence,
                                .frequency = p->frequency,
                                .repetition = p->repetition,
                                .seed = p->seed,
                                .target = -1,
                                .n_top = p->n_top};
}

/* Masks are made between the steps, one after another, so those that take long hold everybody up. A run whose last one
 * took longer than MASK_LONG_NS sits out a step in which masks have taken MASK_STEP_NS already. They take turns, and
 * what they may add to a step grows while they wait, so all of them get there. */
#define MASK_LONG_NS 200000u
#define MASK_STEP_NS 3000000u
#define MASK_WAITS 16u

static bool takes_long(const struct gen_run *r)
{
    return r->form && r->mask_ns >= MASK_LONG_NS;
}

static bool mask_waits(const struct sched *s, struct gen_run *r)
{
    if (!takes_long(r) || s->mask_ns < MASK_STEP_NS * (1 + (uint64_t)r->mask_waits / MASK_WAITS))
        return false;
    r->mask_waits++;
    return true;
}

/* Those with long masks that are in the batch go behind the others of their tenant. */
static void take_turns(struct sched *s)
{
    for (uint32_t i = 0; i < s->n_parts && s->mask_ns >= MASK_STEP_NS; i++) {
        struct gen_run *r = s->part[i].run;
        struct sched_tenant *t = &s->tenant[s->part[i].g->spec.tenant];
        if (!r || !r->listed || !takes_long(r))
            continue;
        sched_decode_remove(t, r);
        sched_decode_push(t, r);
    }
}

static int make_mask(struct sched *s, struct gen_run *r, const uint32_t **mask)
{
    uint64_t t0 = mono_ns();
    int rc = grammar_mask(r->form, mask);
    r->mask_ns = mono_ns() - t0;
    r->mask_waits = 0;
    s->mask_ns += r->mask_ns;
    return rc;
}

/* Fails when the mask cannot be had; the generation then ends at the next step. The mask is good until the token is
 * taken. */
static int sample_next(struct sched *s, struct gen_run *r, struct kern_sample *k)
{
    struct gen *g = r->g;
    *k = settings(g);
    if (r->form && make_mask(s, r, &k->mask))
        return g->failed = -ENOMEM;
    k->sequence = r->choice;
    k->position = r->n_out;
    bool hold = g->bias_min && r->n_out < g->spec.min_tokens;
    k->bias = hold ? g->bias_min : g->spec.bias;
    k->n_bias = hold ? g->n_bias_min : g->spec.n_bias;
    k->seen = r->seen;
    k->n_seen = r->n_seen;
    return 0;
}

static void sample_target(const struct gen *g, int32_t target, struct kern_sample *k)
{
    *k = settings(g);
    k->target = target;
    k->n_top = g->spec.n_prompt_top;
    k->rank = g->spec.rank_prompt;
}

/* ---- tokens that the penalties know ---- */

static bool penalised(const struct gen_spec *p)
{
    return p->presence != 0 || p->frequency != 0 || p->repetition != 1;
}

static uint32_t seen_place(const struct gen_run *r, int32_t token)
{
    uint32_t lo = 0, hi = r->n_seen;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (r->seen[mid].token < token)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static int see(struct gen_run *r, int32_t token, bool output)
{
    uint32_t at = seen_place(r, token);
    if (at == r->n_seen || r->seen[at].token != token) {
        if (r->n_seen == r->cap_seen) {
            uint32_t cap = r->cap_seen ? 2 * r->cap_seen : 64;
            struct kern_seen *p = realloc(r->seen, cap * sizeof *p);
            if (!p)
                return r->g->failed = -ENOMEM;
            r->seen = p;
            r->cap_seen = cap;
        }
        memmove(r->seen + at + 1, r->seen + at, (r->n_seen - at) * sizeof *r->seen);
        r->seen[at] = (struct kern_seen){.token = token};
        r->n_seen++;
    }
    if (output)
        r->seen[at].in_output++;
    else
        r->seen[at].in_prompt = 1;
    return 0;
}

static int by_token(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* The prompt's tokens, which the repetition penalty knows too; once a run, before its first sampling. */
static int see_prompt(struct gen_run *r)
{
    const struct gen_spec *p = &r->g->spec;
    if (p->repetition == 1 || r->n_out || r->n_seen)
        return 0;
    int32_t *ids = malloc(p->n_prompt * sizeof *ids);
    if (!ids)
        return r->g->failed = -ENOMEM;
    memcpy(ids, p->prompt, p->n_prompt * sizeof *ids);
    qsort(ids, p->n_prompt, sizeof *ids, by_token);
    int rc = 0;
    for (uint32_t i = 0; i < p->n_prompt && !rc; i++)
        rc = see(r, ids[i], false);
    free(ids);
    return rc;
}

/* ---- planning ---- */

static struct sched_part *add_part(struct sched *s, struct gen *g, struct gen_run *r, uint32_t seq,
                                   const int32_t *tokens, uint32_t n_tokens, uint32_t n_logits)
{
    struct sched_part *p = &s->part[s->n_parts];
    *p = (struct sched_part){.g = g, .run = r, .logit0 = s->n_logits};
    s->span[s->n_parts] = (struct model_span){.seq = seq,
                                              .tokens = tokens,
                                              .n_tokens = n_tokens,
                                              .pets = g->spec.pets,
                                              .n_pets = g->spec.n_pets,
                                              .n_logits = n_logits,
                                              .sample = n_logits ? s->sample + s->n_logits : NULL,
                                              .sampled = n_logits ? s->sampled + s->n_logits : NULL};
    s->task[s->n_parts] = g->spec.task;
    s->n_parts++;
    s->n_rows += n_tokens;
    s->n_logits += n_logits;
    return p;
}

/* False when the ring is full (the loop is behind), its next page is wanting (the ring was full when pages were given),
 * masks take too long or memory is out; the run then sits this step out. */
static bool plan_run(struct sched *s, struct gen_run *r)
{
    struct gen *g = r->g;
    if (gen_room(g) <= g->n_planned || r->len >= r->reserved || see_prompt(r) || mask_waits(s, r) ||
        sample_next(s, r, &s->sample[s->n_logits]))
        return false;
    add_part(s, g, r, r->seq, &r->fed[r->n_out], 1, 1);
    g->n_planned++;
    s->tenant[g->spec.tenant].served++;
    s->decode_rows++;
    return true;
}

static struct sched_tenant *next_to_decode(struct sched *s, const uint32_t *left)
{
    struct sched_tenant *best = NULL;
    for (uint32_t i = 0; i < s->n_tenants; i++) {
        struct sched_tenant *t = &s->tenant[i];
        if (left[i] && (!best || t->served < best->served))
            best = t;
    }
    return best;
}

/* More runs want a row than there are: one at a time to the least served tenant, each tenant's runs in turn. */
static void plan_decode_some(struct sched *s, uint32_t budget)
{
    uint32_t *left = malloc(s->n_tenants * sizeof *left);
    if (!left)
        return;
    for (uint32_t i = 0; i < s->n_tenants; i++)
        left[i] = s->tenant[i].n_decoding;
    for (struct sched_tenant *t; budget && (t = next_to_decode(s, left));) {
        struct gen_run *r = t->decode_first;
        sched_decode_remove(t, r);
        sched_decode_push(t, r);
        left[t - s->tenant]--;
        budget -= plan_run(s, r);
    }
    free(left);
}

static void plan_decode(struct sched *s)
{
    uint32_t reading = 0, decoding = 0;
    for (uint32_t i = 0; i < s->n_tenants; i++) {
        reading += s->tenant[i].n_reading;
        decoding += s->tenant[i].n_decoding;
    }
    uint32_t rows = s->mi->max_rows, logits = s->mi->max_logits;
    if (reading) {
        rows -= rows / 8 ? rows / 8 : rows > 1;
        logits -= logits > 1;
    }
    uint32_t budget = least(rows, logits);
    if (decoding > budget) {
        plan_decode_some(s, budget);
        return;
    }
    for (uint32_t i = 0; i < s->n_tenants; i++)
        for (struct gen_run *r = s->tenant[i].decode_first; r; r = r->next)
            plan_run(s, r);
}

/* How many of g's prompt tokens go into this step, at most `budget`; *n_logits of the last of them want logits. What
 * was scored before g was preempted is not scored again. */
static uint32_t chunk_size(const struct sched *s, const struct gen *g, uint32_t budget, uint32_t *n_logits)
{
    uint32_t n = least(g->prefill_end - g->prefill_done, budget);
    uint32_t logits = s->mi->max_logits - s->n_logits;
    *n_logits = 0;
    if (g->spec.score_prompt) {
        uint32_t first = g->scored == 0; /* the first token's own event */
        uint32_t room = gen_room(g), known = g->scored > g->prefill_done ? g->scored - g->prefill_done - 1 : 0;
        if (n <= known)
            return n;
        *n_logits = least(n - known, least(logits, room > first ? room - first : 0));
        return known + *n_logits;
    }
    if (g->prefill_done + n == g->spec.n_prompt && !g->spec.pool) {
        if (logits && gen_room(g))
            *n_logits = 1;
        else
            n--;
    }
    return n;
}

static bool plan_chunk(struct sched *s, struct gen *g, uint32_t *budget)
{
    sched_prefix_more(s, g);
    if (sched_prefix_coming(s, g))
        return false;
    uint32_t n_logits, n = chunk_size(s, g, *budget, &n_logits);
    if (!n)
        return false;
    uint32_t pos0 = g->prefill_done, end = g->spec.n_prompt;
    struct kern_sample *k = s->sample + s->n_logits;
    for (uint32_t i = 0; i < n_logits; i++) {
        uint32_t pos = pos0 + n - n_logits + i;
        if (pos + 1 < end)
            sample_target(g, g->spec.prompt[pos + 1], &k[i]);
        else if (see_prompt(&g->run[0]) || sample_next(s, &g->run[0], &k[i]))
            return false;
    }
    add_part(s, g, NULL, g->run[g->base].seq, g->spec.prompt + pos0, n, n_logits);
    s->span[s->n_parts - 1].pool = g->spec.pool;
    s->span[s->n_parts - 1].pooled = g->pooled;
    s->tenant[g->spec.tenant].read += n;
    *budget -= n;
    return true;
}

/* What the runs of a generation that was preempted had sampled, as far as it goes into this step. */
static void plan_tails(struct sched *s, struct gen *g, uint32_t *budget)
{
    for (uint32_t i = g->base; i < g->spec.n_choices && *budget; i++) {
        struct gen_run *r = &g->run[i];
        if (r->done || r->len >= sched_ready_len(r))
            continue;
        sched_prefix_tail(s, r);
        uint32_t n = least(sched_ready_len(r) - r->len, *budget);
        add_part(s, g, r, r->seq, r->fed + (r->len - (g->spec.n_prompt - 1)), n, 0);
        s->tenant[g->spec.tenant].read += n;
        *budget -= n;
    }
}

/* The next prompt: of the tenant that was read least, its first that is not in this batch yet. */
static struct gen *next_to_read(struct sched *s, struct gen **at)
{
    uint32_t best = UINT32_MAX;
    for (uint32_t i = 0; i < s->n_tenants; i++)
        if (at[i] && (best == UINT32_MAX || s->tenant[i].read < s->tenant[best].read))
            best = i;
    if (best == UINT32_MAX)
        return NULL;
    struct gen *g = at[best];
    at[best] = g->next;
    return g;
}

/* Beside decoding runs a step reads prefill_chunk tokens, so that their next token is not long in coming. While more
 * prompts wait than runs decode, it reads as many as fit: few are held up, and many start sooner. */
static void plan_prefill(struct sched *s)
{
    uint32_t budget = s->mi->max_rows - s->n_rows, reading = 0;
    for (uint32_t i = 0; i < s->n_tenants; i++)
        reading += s->tenant[i].n_reading;
    if (s->decode_rows >= reading && s->decode_rows)
        budget = least(budget, s->o.prefill_chunk);
    struct gen **at = malloc((s->n_tenants + 1) * sizeof *at);
    if (!at)
        return;
    for (uint32_t i = 0; i < s->n_tenants; i++)
        at[i] = s->tenant[i].reading.first;
    for (struct gen *g; budget && (g = next_to_read(s, at));) {
        if (g->n_tails)
            plan_tails(s, g, &budget);
        else
            plan_chunk(s, g, &budget);
    }
    free(at);
}

void sched_plan(struct sched *s)
{
    s->n_parts = s->n_rows = s->n_logits = s->decode_rows = 0;
    s->mask_ns = 0;
    plan_decode(s);
    take_turns(s);
    plan_prefill(s);
}

int sched_run_batch(struct sched *s, struct err *e)
{
    return model_step(s->m, s->span, s->n_parts, e);
}

/* ---- results ---- */

static bool ends(const struct gen *g, int32_t token)
{
    for (uint32_t i = 0; !g->spec.ignore_eos && i < g->spec.n_eos; i++)
        if (g->spec.eos[i] == token)
            return true;
    return false;
}

/* Keeps a sampled token: the next step appends it, and a preempted run reads it again. */
static void feed(struct gen_run *r, int32_t token)
{
    if (r->n_out + 1 >= r->cap_fed) {
        uint32_t cap = r->cap_fed ? 2 * r->cap_fed : 64;
        int32_t *p = realloc(r->fed, cap * sizeof *p);
        if (!p) {
            r->g->failed = -ENOMEM;
            return;
        }
        r->fed = p;
        r->cap_fed = cap;
    }
    r->fed[0] = r->g->spec.prompt[r->g->spec.n_prompt - 1];
    r->fed[r->n_out + 1] = token;
}

/* Moves r's form on by a token that does not end it. True when nothing more may follow. With every allowed token at
 * -infinity the sampler still takes one that the mask allows, so a refusal is a fault of ours. */
static bool form_is_whole(struct gen_run *r, int32_t token)
{
    if (!r->form)
        return false;
    int rc = grammar_accept(r->form, token);
    if (rc)
        r->g->failed = rc == -ENOMEM ? rc : -EIO;
    return !rc && grammar_over(r->form);
}

/* A sampled token of run r. Returns true when the run is over. */
static bool take_token(struct gen_run *r, const struct kern_sampled *t)
{
    struct gen *g = r->g;
    feed(r, t->token);
    r->n_out++;
    struct gen_event ev = {.token = t->token, .logprob = t->logprob, .choice = r->choice};
    if (ends(g, t->token))
        ev.finish = GEN_STOP;
    else if (form_is_whole(r, t->token))
        ev.finish = GEN_WHOLE;
    else
        ev.finish = r->n_out >= g->spec.max_tokens ? GEN_LENGTH : GEN_NOT_YET;
    if (penalised(&g->spec) && !ev.finish)
        see(r, t->token, true);
    if (!atomic_load_explicit(&g->first_ns, memory_order_relaxed))
        atomic_store(&g->first_ns, mono_ns());
    gen_put(g, &ev, t, g->spec.n_top > 0 ? (uint32_t)g->spec.n_top : 0);
    return ev.finish != GEN_NOT_YET;
}

void sched_score_first(struct gen *g)
{
    struct gen_event first = {.token = g->spec.prompt[0], .logprob = NAN, .of_prompt = 1};
    gen_put(g, &first, NULL, 0);
    g->scored = 1;
}

/* The n rows from pos0 on have scores, each of the token after its own. */
static void publish_scores(struct gen *g, uint32_t pos0, uint32_t n, const struct kern_sampled *t)
{
    if (!g->scored)
        sched_score_first(g);
    for (uint32_t i = 0; i < n; i++) {
        if (pos0 + i + 1 >= g->spec.n_prompt)
            return;
        struct gen_event ev = {
            .token = g->spec.prompt[pos0 + i + 1], .logprob = t[i].logprob, .rank = t[i].rank, .of_prompt = 1};
        gen_put(g, &ev, &t[i], (uint32_t)g->spec.n_prompt_top);
        g->scored++;
    }
}

static void apply_chunk(struct sched *s, const struct sched_part *p, const struct model_span *sp,
                        struct sched_report *r)
{
    struct gen *g = p->g;
    const struct kern_sampled *t = s->sampled + p->logit0;
    r->prefill_rows += sp->n_tokens;
    if (g->spec.score_prompt)
        publish_scores(g, g->prefill_done + sp->n_tokens - sp->n_logits, sp->n_logits, t);
    g->prefill_done += sp->n_tokens;
    sched_prefix_keep(s, &g->run[g->base], g->prefill_done - sp->n_tokens, g->prefill_done);
    bool sampled = g->prefill_done == g->spec.n_prompt && !g->spec.pool, over = false;
    if (sampled) {
        over = take_token(&g->run[0], &t[sp->n_logits - 1]);
        r->sampled++;
    }
    if (sp->n_logits)
        s->o.publish(s->o.ctx, g, false);
    if (over)
        sched_end_run(s, &g->run[0]);
    else if (g->prefill_done == g->prefill_end)
        sched_prompt_read(s, g);
}

static void apply_tail(struct sched *s, struct gen_run *run, uint32_t n, struct sched_report *r)
{
    r->prefill_rows += n;
    run->len += n;
    sched_prefix_keep(s, run, run->len - n, run->len);
    if (run->len == sched_ready_len(run))
        sched_tail_read(s, run);
}

static void apply_decode(struct sched *s, const struct sched_part *p, struct sched_report *r)
{
    struct gen *g = p->g;
    g->n_planned--;
    p->run->len++;
    sched_prefix_keep(s, p->run, p->run->len - 1, p->run->len);
    r->decode_rows++;
    r->sampled++;
    bool over = take_token(p->run, &s->sampled[p->logit0]);
    s->o.publish(s->o.ctx, g, false);
    if (over)
        sched_end_run(s, p->run);
}

static int by_number(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static uint32_t distinct_tasks(struct sched *s)
{
    uint32_t n = 0;
    qsort(s->task, s->n_parts, sizeof *s->task, by_number);
    for (uint32_t i = 0; i < s->n_parts; i++)
        n += !i || s->task[i] != s->task[i - 1];
    return n;
}

void sched_apply(struct sched *s, struct sched_report *r)
{
    r->rows = s->n_rows;
    r->slots = model_step_slots(s->m);
    if (s->o.count_tasks)
        r->tasks = distinct_tasks(s);
    for (uint32_t i = 0; i < s->n_parts; i++) {
        struct sched_part *p = &s->part[i];
        if (!p->run)
            apply_chunk(s, p, &s->span[i], r);
        else if (s->span[i].n_logits)
            apply_decode(s, p, r);
        else
            apply_tail(s, p->run, s->span[i].n_tokens, r);
    }
}

/* The step failed: whoever had a part in it gets the reason. A generation may have several parts. */
void sched_drop_batch(struct sched *s, const struct err *e)
{
    for (uint32_t i = 0; i < s->n_parts; i++) {
        struct gen *g = s->part[i].g;
        bool again = false;
        for (uint32_t j = 0; j < i && !again; j++)
            again = s->part[j].g == g;
        if (!again)
            sched_end(s, g, -EIO, e->msg);
    }
}
