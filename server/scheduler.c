/* scheduler.c - queues, admission and ending.
 *
 * Engine thread only. Memory: a table of tenants that grows with their numbers, and the arrays of one batch, made
 * once. Generations belong to the loop; between sched_submit and publish(done) the scheduler holds them in exactly one
 * of its tenant's lists (waiting, reading) or by their listed runs, and in the list of all.
 *
 * What always holds: kv_pages_free >= promised_pages and open_seqs + promised_seqs <= max_seqs. A generation with
 * several choices opens one sequence at admission; the pages and sequences that its forks will take are promised, so
 * that neither a later admission nor a growing sequence can take them. Pages that the prefix cache keeps and nobody
 * holds count as free throughout; a page held already costs the next one who takes it nothing.
 *
 * Why everything admitted ends: rank is the order of first admission and never changes. The running generation of the
 * least rank is not preempted, and every other can be, so it always gets its next page (sched_fits: alone it fits
 * whole) and ends. So running ones drain whenever nothing is admitted; and a generation that waits stops all admission
 * once SCHED_MAX_PASS others went by. Hence the one of the least rank of all, running or waiting, ends; then the next.
 *
 * Fairness: `served` counts what a tenant was given; the least goes first. A tenant that comes back after a pause
 * starts from the least of those active, so that idling earns no credit.
 */
#include "server/scheduler.h"

#include <stdlib.h>
#include <string.h>

#include "server/sched_internal.h"

#define DEFAULT_CHUNK 256u

int sched_create(struct model *m, const struct sched_opts *o, struct sched **out, struct err *e)
{
    const struct model_info *mi = model_info(m);
    struct sched *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(e, -ENOMEM, "no memory for the scheduler");
    s->m = m;
    s->mi = mi;
    s->o = *o;
    if (!s->o.prefill_chunk)
        s->o.prefill_chunk = DEFAULT_CHUNK;
    s->part = calloc(mi->max_seqs, sizeof *s->part);
    s->span = calloc(mi->max_seqs, sizeof *s->span);
    s->task = calloc(mi->max_seqs, sizeof *s->task);
    s->sample = calloc(mi->max_logits, sizeof *s->sample);
    s->sampled = calloc(mi->max_logits, sizeof *s->sampled);
    if (!s->part || !s->span || !s->task || !s->sample || !s->sampled) {
        sched_free(s);
        return err_set(e, -ENOMEM, "no memory for the scheduler");
    }
    *out = s;
    return 0;
}

void sched_free(struct sched *s)
{
    if (!s)
        return;
    free(s->tenant);
    free(s->part);
    free(s->span);
    free(s->task);
    free(s->sample);
    free(s->sampled);
    free(s);
}

uint32_t sched_live(const struct sched *s)
{
    return s->n_live;
}

int sched_fits(const struct model_info *mi, const struct gen_spec *g, struct err *e)
{
    if (g->n_prompt > mi->max_context)
        return err_param(e, -EINVAL, "prompt", "the prompt has %u tokens, the context holds %u", g->n_prompt,
                         mi->max_context);
    if ((uint64_t)g->n_prompt + g->max_tokens > mi->max_context)
        return err_param(e, -EINVAL, "max_tokens",
                         "the prompt has %u tokens and max_tokens is %u, the context holds %u", g->n_prompt,
                         g->max_tokens, mi->max_context);
    if (g->n_choices > mi->max_seqs)
        return err_param(e, -EINVAL, "n", "n is %u, the server runs at most %u sequences", g->n_choices, mi->max_seqs);
    if (gen_pages(g) > mi->n_pages)
        return err_param(e, -EINVAL, g->n_choices > 1 ? "n" : "max_tokens",
                         "the request needs keys and values of %llu pages, the server has %u in all",
                         (unsigned long long)gen_pages(g), mi->n_pages);
    for (uint32_t i = 0; i < g->n_prompt; i++)
        if (g->prompt[i] < 0 || (uint32_t)g->prompt[i] >= mi->vocab)
            return err_param(e, -EINVAL, "prompt", "token id %d at place %u is outside the vocabulary (%u)",
                             (int)g->prompt[i], i, mi->vocab);
    return 0;
}

/* ---- lists ---- */

void sched_list_push(struct gen_list *l, struct gen *g)
{
    g->next = NULL;
    g->prev = l->last;
    *(l->last ? &l->last->next : &l->first) = g;
    l->last = g;
}

void sched_list_remove(struct gen_list *l, struct gen *g)
{
    *(g->prev ? &g->prev->next : &l->first) = g->next;
    *(g->next ? &g->next->prev : &l->last) = g->prev;
    g->next = g->prev = NULL;
}

void sched_decode_push(struct sched_tenant *t, struct gen_run *r)
{
    r->next = NULL;
    r->prev = t->decode_last;
    *(t->decode_last ? &t->decode_last->next : &t->decode_first) = r;
    t->decode_last = r;
    t->n_decoding++;
    r->listed = true;
}

void sched_decode_remove(struct sched_tenant *t, struct gen_run *r)
{
    *(r->prev ? &r->prev->next : &t->decode_first) = r->next;
    *(r->next ? &r->next->prev : &t->decode_last) = r->prev;
    r->next = r->prev = NULL;
    t->n_decoding--;
    r->listed = false;
}

/* ---- in ---- */

static int know_tenant(struct sched *s, uint32_t id)
{
    if (id < s->n_tenants)
        return 0;
    struct sched_tenant *t = realloc(s->tenant, ((size_t)id + 1) * sizeof *t);
    if (!t)
        return -ENOMEM;
    memset(t + s->n_tenants, 0, (id + 1 - s->n_tenants) * sizeof *t);
    s->tenant = t;
    s->n_tenants = id + 1;
    return 0;
}

/* A tenant that was idle starts where the least served of the active ones stands. */
static void catch_up(struct sched *s, struct sched_tenant *t)
{
    uint64_t served = UINT64_MAX, read = UINT64_MAX;
    for (uint32_t i = 0; i < s->n_tenants; i++) {
        const struct sched_tenant *o = &s->tenant[i];
        if (!o->n_live)
            continue;
        served = o->served < served ? o->served : served;
        read = o->read < read ? o->read : read;
    }
    if (served != UINT64_MAX && t->served < served)
        t->served = served;
    if (read != UINT64_MAX && t->read < read)
        t->read = read;
}

int sched_submit(struct sched *s, struct gen *g)
{
    if (know_tenant(s, g->spec.tenant))
        return -ENOMEM;
    struct sched_tenant *t = &s->tenant[g->spec.tenant];
    if (!t->n_live)
        catch_up(s, t);
    t->n_live++;
    g->n_running = g->spec.n_choices;
    sched_list_push(&t->waiting, g);
    g->live_prev = NULL;
    g->live_next = s->live_first;
    if (s->live_first)
        s->live_first->live_prev = g;
    s->live_first = g;
    s->n_live++;
    s->n_waiting++;
    return 0;
}

/* ---- out ---- */

static void forget(struct sched *s, struct gen *g)
{
    *(g->live_prev ? &g->live_prev->live_next : &s->live_first) = g->live_next;
    if (g->live_next)
        g->live_next->live_prev = g->live_prev;
    s->n_live--;
    s->tenant[g->spec.tenant].n_live--;
}

void sched_count_pages(struct sched *s, const struct gen *g, uint32_t before)
{
    s->tenant[g->spec.tenant].pages += before - kv_pages_free(s->m);
}

/* Takes r out of the batches to come and gives its pages back; what it has sampled stays. */
static void close_seq(struct sched *s, struct gen_run *r)
{
    if (r->listed)
        sched_decode_remove(&s->tenant[r->g->spec.tenant], r);
    if (r->seq != MODEL_NO_SEQ) {
        uint32_t before = kv_pages_free(s->m);
        seq_close(s->m, r->seq);
        sched_count_pages(s, r->g, before);
        s->open_seqs--;
    }
    r->seq = MODEL_NO_SEQ;
    r->len = r->reserved = 0;
}

static void stop_reading(struct sched *s, struct gen *g)
{
    struct sched_tenant *t = &s->tenant[g->spec.tenant];
    if (!g->reading)
        return;
    sched_list_remove(&t->reading, g);
    g->reading = false;
    t->n_reading--;
}

/* r reads its own tokens no longer; the last such lets g out of the list of reading. */
static void tail_over(struct sched *s, struct gen *g)
{
    if (!--g->n_tails)
        stop_reading(s, g);
}

static void close_run(struct sched *s, struct gen_run *r)
{
    if (r->g->n_tails && r->seq != MODEL_NO_SEQ && r->len < sched_ready_len(r))
        tail_over(s, r->g);
    close_seq(s, r);
    r->done = true;
}

static void give_back_promise(struct sched *s, struct gen *g)
{
    s->promised_pages -= g->promised_pages;
    s->promised_seqs -= g->promised_seqs;
    g->promised_pages = g->promised_seqs = 0;
}

void sched_end(struct sched *s, struct gen *g, int code, const char *why)
{
    if (atomic_load(&g->state) == GEN_QUEUED) {
        sched_list_remove(&s->tenant[g->spec.tenant].waiting, g);
        s->n_waiting--;
    }
    stop_reading(s, g);
    for (uint32_t i = 0; i < g->spec.n_choices; i++)
        close_run(s, &g->run[i]);
    give_back_promise(s, g);
    g->code = code;
    if (code)
        err_set(&g->err, code, "%s", why);
    forget(s, g);
    atomic_store(&g->state, GEN_DONE);
    s->o.publish(s->o.ctx, g, true);
}

bool sched_end_run(struct sched *s, struct gen_run *r)
{
    struct gen *g = r->g;
    close_run(s, r);
    if (--g->n_running)
        return false;
    sched_end(s, g, 0, NULL);
    return true;
}

void sched_end_all(struct sched *s, int code, const char *why)
{
    while (s->live_first)
        sched_end(s, s->live_first, code, why);
}

static void end_cancelled_and_late(struct sched *s, uint64_t now_ns)
{
    for (struct gen *g = s->live_first, *next; g; g = next) {
        next = g->live_next;
        if (atomic_load_explicit(&g->cancelled, memory_order_relaxed))
            sched_end(s, g, -ECANCELED, "cancelled");
        else if (g->failed)
            sched_end(s, g, g->failed,
                      g->failed == -EIO ? "a token outside of the answer's form was sampled"
                                        : "the server is out of memory");
        else if (g->spec.deadline_ns && now_ns >= g->spec.deadline_ns)
            sched_end(s, g, -ETIMEDOUT, "the request took longer than the server's limit");
    }
}

/* Ends what was stopped of a generation that is not (all) decoding: it waits, or reads its own tokens again. While it
 * reads the prompt, its first run's sequence is everybody's, so that has to wait. */
static void end_stopped_of(struct sched *s, struct gen *g)
{
    bool last = false;
    if (g->reading && !g->n_tails)
        return;
    for (uint32_t i = 0; i < g->spec.n_choices && !last; i++)
        if (!g->run[i].done && !g->run[i].listed && atomic_load_explicit(&g->choice_stopped[i], memory_order_relaxed))
            last = sched_end_run(s, &g->run[i]);
}

/* Runs whose text met a stop string need no more tokens. */
static void end_stopped(struct sched *s)
{
    for (struct gen *g = s->live_first, *next; g; g = next) {
        next = g->live_next;
        if (g->n_preempted)
            end_stopped_of(s, g);
    }
    for (uint32_t i = 0; i < s->n_tenants; i++)
        for (struct gen_run *r = s->tenant[i].decode_first, *next; r; r = next) {
            next = r->next;
            if (atomic_load_explicit(&r->g->choice_stopped[r->choice], memory_order_relaxed))
                sched_end_run(s, r);
        }
}

/* ---- admission ---- */

/* Tokens that r gets pages for at admission: what it has and some more, twice as many each time that it was preempted;
 * in the end all that it may grow to. */
static uint32_t tokens_wanted(const struct gen_run *r)
{
    const struct gen *g = r->g;
    uint32_t total = gen_total_tokens(&g->spec);
    if (g->n_preempted >= SCHED_MAX_PREEMPT)
        return total;
    uint64_t some = (uint64_t)g->spec.n_prompt + r->n_out + ((uint64_t)SCHED_HEADROOM << g->n_preempted);
    return some < total ? (uint32_t)some : total;
}

/* As gen_pages, of the runs that are not done and for tokens_wanted. */
static uint64_t pages_wanted(const struct gen *g)
{
    uint64_t shared = (g->spec.n_prompt - 1) / KERN_PAGE_TOKENS, pages = shared;
    for (uint32_t i = 0; i < g->spec.n_choices; i++)
        if (!g->run[i].done)
            pages += kv_pages_for(tokens_wanted(&g->run[i])) - shared;
    return pages;
}

static bool fits_now(const struct sched *s, const struct gen *g)
{
    uint64_t pages = pages_wanted(g) + s->promised_pages;
    uint64_t seqs = (uint64_t)s->open_seqs + s->promised_seqs + g->n_running;
    return seqs <= s->mi->max_seqs && sched_prefix_fits(s, g, pages);
}

static void note_reserved(struct gen_run *r, uint32_t n_tokens)
{
    r->reserved = kv_pages_for(n_tokens) * KERN_PAGE_TOKENS;
}

/* Opens the sequence that reads the prompt with what is kept of it and the further pages that its run wants, and
 * promises the other runs'. */
static int take_pages(struct sched *s, struct gen *g)
{
    g->base = 0;
    while (g->run[g->base].done)
        g->base++;
    struct gen_run *r = &g->run[g->base];
    uint64_t all = pages_wanted(g);
    uint32_t before = kv_pages_free(s->m), want = tokens_wanted(r);
    int rc = seq_open(s->m, &r->seq);
    if (rc)
        return rc;
    sched_prefix_admit(s, g, r);
    rc = seq_reserve(s->m, r->seq, want);
    if (rc) {
        seq_close(s->m, r->seq);
        r->seq = MODEL_NO_SEQ;
        return rc;
    }
    note_reserved(r, want);
    sched_count_pages(s, g, before);
    s->open_seqs++;
    g->promised_pages = (uint32_t)all - kv_pages_for(want);
    g->promised_seqs = g->n_running - 1;
    s->promised_pages += g->promised_pages;
    s->promised_seqs += g->promised_seqs;
    return 0;
}

static void admit(struct sched *s, struct gen *g, uint64_t now_ns)
{
    struct sched_tenant *t = &s->tenant[g->spec.tenant];
    g->prefill_done = 0;
    g->prefill_end = sched_prompt_end(g);
    int rc = take_pages(s, g);
    if (rc) {
        sched_end(s, g, rc, "the server ran out of room for the request");
        return;
    }
    sched_list_remove(&t->waiting, g);
    s->n_waiting--;
    atomic_store(&g->state, GEN_RUNNING);
    if (!g->rank) {
        g->rank = ++s->n_ranks;
        atomic_store(&g->admitted_ns, now_ns);
        t->served += g->spec.n_prompt - g->prefill_done;
    }
    if (g->spec.pool) /* it may have begun before, and have been preempted */
        memset(g->pooled, 0, g->spec.n_hidden * sizeof *g->pooled);
    sched_list_push(&t->reading, g);
    g->reading = true;
    t->n_reading++;
    if (g->prefill_done < g->prefill_end)
        return;
    if (g->spec.score_prompt && !g->scored) /* a prompt of one token, which has no score */
        sched_score_first(g);
    sched_prompt_read(s, g);
}

/* The tenant served least among those whose first waiting one has not been found too large in this round. */
static struct sched_tenant *next_to_admit(struct sched *s)
{
    struct sched_tenant *best = NULL;
    for (uint32_t i = 0; i < s->n_tenants; i++) {
        struct sched_tenant *t = &s->tenant[i];
        if (t->waiting.first && !t->blocked && (!best || t->served < best->served))
            best = t;
    }
    return best;
}

static void admit_all(struct sched *s, uint64_t now_ns)
{
    for (uint32_t i = 0; i < s->n_tenants; i++)
        s->tenant[i].blocked = false;
    bool any_blocked = false;
    for (struct sched_tenant *t; s->n_waiting && (t = next_to_admit(s));) {
        struct gen *g = t->waiting.first;
        if (fits_now(s, g)) {
            admit(s, g, now_ns);
            for (uint32_t i = 0; any_blocked && i < s->n_tenants; i++)
                if (s->tenant[i].blocked && s->tenant[i].waiting.first)
                    s->tenant[i].waiting.first->passed++;
            continue;
        }
        if (g->passed >= SCHED_MAX_PASS)
            return;
        t->blocked = any_blocked = true;
    }
}

/* The forks of the runs that are not done, beside the one that read the prompt. */
static int fork_runs(struct sched *s, struct gen *g)
{
    uint32_t before = kv_pages_free(s->m);
    int rc = 0;
    for (uint32_t i = g->base + 1; i < g->spec.n_choices && !rc; i++) {
        struct gen_run *r = &g->run[i];
        if (r->done)
            continue;
        uint32_t want = tokens_wanted(r);
        rc = seq_fork(s->m, g->run[g->base].seq, want, &r->seq);
        if (rc) {
            r->seq = MODEL_NO_SEQ;
            break;
        }
        note_reserved(r, want);
        s->open_seqs++;
    }
    sched_count_pages(s, g, before);
    return rc;
}

/* The first of r->fed, from which a preempted run reads on. */
static int feed_prompt_end(struct gen_run *r)
{
    if (r->fed)
        return 0;
    r->fed = malloc(64 * sizeof *r->fed);
    if (!r->fed)
        return -ENOMEM;
    r->cap_fed = 64;
    r->fed[0] = r->g->spec.prompt[r->g->spec.n_prompt - 1];
    return 0;
}

void sched_prompt_read(struct sched *s, struct gen *g)
{
    if (!g->spec.max_tokens) {
        sched_end(s, g, 0, NULL);
        return;
    }
    give_back_promise(s, g);
    int rc = fork_runs(s, g);
    for (uint32_t i = 0; i < g->spec.n_choices && !rc; i++)
        rc = g->run[i].done ? 0 : feed_prompt_end(&g->run[i]);
    if (rc) {
        sched_end(s, g, rc, "the server ran out of room for the request");
        return;
    }
    g->n_tails = 0;
    for (uint32_t i = 0; i < g->spec.n_choices; i++) {
        struct gen_run *r = &g->run[i];
        if (r->done)
            continue;
        r->len = seq_len(s->m, r->seq);
        if (r->len < sched_ready_len(r))
            g->n_tails++;
        else
            sched_decode_push(&s->tenant[g->spec.tenant], r);
    }
    if (!g->n_tails)
        stop_reading(s, g);
}

void sched_tail_read(struct sched *s, struct gen_run *r)
{
    sched_decode_push(&s->tenant[r->g->spec.tenant], r);
    tail_over(s, r->g);
}

/* ---- growing and preempting ---- */

/* Into its tenant's queue before those that never ran, the oldest first. */
static void queue_again(struct sched_tenant *t, struct gen *g)
{
    struct gen *next = t->waiting.first;
    while (next && next->rank && next->rank < g->rank)
        next = next->next;
    if (!next) {
        sched_list_push(&t->waiting, g);
        return;
    }
    g->next = next;
    g->prev = next->prev;
    *(g->prev ? &g->prev->next : &t->waiting.first) = g;
    next->prev = g;
}

static void preempt(struct sched *s, struct gen *g)
{
    stop_reading(s, g);
    for (uint32_t i = 0; i < g->spec.n_choices; i++)
        close_seq(s, &g->run[i]);
    give_back_promise(s, g);
    g->n_tails = g->prefill_done = 0;
    g->n_preempted++;
    atomic_store(&g->state, GEN_QUEUED);
    queue_again(&s->tenant[g->spec.tenant], g);
    s->n_waiting++;
}

static bool is_running(const struct gen *g)
{
    return atomic_load_explicit(&g->state, memory_order_relaxed) == GEN_RUNNING;
}

/* The youngest of the tenant that holds the most pages, but never the oldest of all. NULL: that one runs alone. */
static struct gen *choose_victim(const struct sched *s)
{
    const struct gen *oldest = NULL;
    struct gen *best = NULL;
    for (struct gen *g = s->live_first; g; g = g->live_next)
        if (is_running(g) && (!oldest || g->rank < oldest->rank))
            oldest = g;
    uint32_t most = 0;
    for (struct gen *g = s->live_first; g; g = g->live_next) {
        uint32_t pages = s->tenant[g->spec.tenant].pages;
        if (!is_running(g) || g == oldest)
            continue;
        if (!best || pages > most || (pages == most && g->rank > best->rank)) {
            best = g;
            most = pages;
        }
    }
    return best;
}

/* False when a page is wanting. A run that the loop holds up, its ring being full, wants none. */
static bool grow_run(struct sched *s, struct gen_run *r)
{
    if (r->len < r->reserved || r->g->failed || !gen_room(r->g))
        return true;
    uint32_t before = kv_pages_free(s->m);
    if (before <= s->promised_pages)
        return false;
    int rc = seq_reserve(s->m, r->seq, r->len + 1);
    if (rc)
        r->g->failed = rc;
    else
        note_reserved(r, r->len + 1);
    sched_count_pages(s, r->g, before);
    return true;
}

static struct gen_run *first_that_wants(struct sched *s)
{
    for (uint32_t i = 0; i < s->n_tenants; i++)
        for (struct gen_run *r = s->tenant[i].decode_first; r; r = r->next)
            if (!grow_run(s, r))
                return r;
    return NULL;
}

/* A page for every run that needs one for its next token. Each round without enough preempts one generation. */
static void grow_all(struct sched *s, struct sched_report *r)
{
    for (struct gen_run *wants; (wants = first_that_wants(s));) {
        struct gen *g = choose_victim(s);
        if (!g) {
            wants->g->failed = -ENOSPC;
            continue;
        }
        preempt(s, g);
        r->preempted++;
    }
}

bool sched_step(struct sched *s, uint64_t now_ns, struct sched_report *r)
{
    memset(r, 0, sizeof *r);
    s->prefix_queries = s->prefix_hits = 0;
    end_cancelled_and_late(s, now_ns);
    end_stopped(s);
    grow_all(s, r);
    admit_all(s, now_ns);
    sched_plan(s);
    if (s->n_parts) {
        struct err e;
        r->failed = sched_run_batch(s, &e) != 0;
        if (r->failed)
            sched_drop_batch(s, &e);
        else
            sched_apply(s, r);
    }
    r->prefix_queries = s->prefix_queries;
    r->prefix_hits = s->prefix_hits;
    r->waiting = s->n_waiting;
    r->running = s->n_live - s->n_waiting;
    return r->rows > 0;
}
