/* sched_prefix.c - what the scheduler asks of the prefix cache, and what it leaves there.
 *
 * Engine thread only. The prompt's keys come with the generation, hashed where it was tokenized; those of generated
 * pages are hashed here as they fill, one in KERN_PAGE_TOKENS tokens of a run, well under a microsecond each.
 *
 * What always holds: a prompt leaves at least one row to be computed (the last token's, whose logits are wanted; or
 * all those whose scores or hidden states are), so that an attached generation goes on as one whose earlier chunks are
 * read. Only the admission of a single run that was preempted may find the whole prompt, and more. Attaching after
 * admission replaces pages that the sequence has already, and keeping a page replaces it at most by its twin, so
 * neither takes from the free pages that others were promised.
 */
#include <stdlib.h>
#include <string.h>

#include "server/sched_internal.h"

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t prompt_pages(const struct gen *g)
{
    return g->spec.n_prompt / KERN_PAGE_TOKENS;
}

/* Pages of the prompt that need not be computed. Of a prompt whose tokens want scores those scored before g was
 * preempted: the row of token i scores token i + 1. */
static uint32_t may_attach(const struct gen *g)
{
    uint32_t rows = sched_prompt_end(g);
    if (!g->spec.keys || !rows || g->spec.pool == MODEL_POOL_SUM)
        return 0;
    rows--;
    if (g->spec.score_prompt)
        rows = least(rows, g->scored ? g->scored - 1 : 0);
    return rows / KERN_PAGE_TOKENS;
}

static uint32_t attach(struct sched *s, struct gen_run *r, uint32_t most)
{
    const struct gen *g = r->g;
    uint32_t n = prompt_pages(g);
    uint32_t len = seq_attach(s->m, r->seq, 0, g->spec.keys + 1, least(n, most));
    if (most > n && len >= n * KERN_PAGE_TOKENS)
        len = seq_attach(s->m, r->seq, n, r->key, least(r->n_key, most - n));
    return len;
}

/* The prompt's tokens up to len need not be read; what its tenant was charged for them at admission is given back. */
static void note(struct sched *s, struct gen *g, uint32_t len)
{
    uint32_t done = least(len, g->prefill_end), got = done - g->prefill_done;
    g->prefill_done = done;
    if (g->n_preempted)
        return;
    s->prefix_hits += got;
    if (g->rank)
        s->tenant[g->spec.tenant].served -= got;
    atomic_fetch_add_explicit(&g->n_cached, got, memory_order_relaxed);
}

bool sched_prefix_fits(const struct sched *s, const struct gen *g, uint64_t pages)
{
    uint32_t n = may_attach(g), have = kv_pages_free(s->m);
    return pages <= have || (n && pages - n <= have && pages - kv_held(s->m, g->spec.keys + 1, n) <= have);
}

void sched_prefix_admit(struct sched *s, struct gen *g, struct gen_run *r)
{
    if (!g->spec.keys)
        return;
    bool again = g->n_running == 1 && r->n_out;
    uint32_t most = again ? (sched_ready_len(r) - 1) / KERN_PAGE_TOKENS : may_attach(g);
    if (!g->rank && (!g->spec.score_prompt || g->spec.score_from) && g->spec.pool != MODEL_POOL_SUM)
        s->prefix_queries += g->spec.n_prompt;
    note(s, g, attach(s, r, most));
}

void sched_prefix_more(struct sched *s, struct gen *g)
{
    uint32_t most = may_attach(g);
    if (g->prefill_done / KERN_PAGE_TOKENS >= most)
        return;
    uint32_t before = kv_pages_free(s->m);
    note(s, g, attach(s, &g->run[g->base], most));
    sched_count_pages(s, g, before);
}

bool sched_prefix_coming(const struct sched *s, const struct gen *g)
{
    uint32_t next = g->prefill_done / KERN_PAGE_TOKENS;
    if (next >= may_attach(g))
        return false;
    for (uint32_t i = 0; i < s->n_parts; i++) {
        const struct gen *o = s->part[i].g;
        if (s->part[i].run || !o->spec.keys || next < o->prefill_done / KERN_PAGE_TOKENS ||
            next >= (o->prefill_done + s->span[i].n_tokens) / KERN_PAGE_TOKENS)
            continue;
        if (!memcmp(&o->spec.keys[next + 1], &g->spec.keys[next + 1], sizeof *g->spec.keys))
            return true;
    }
    return false;
}

void sched_prefix_tail(struct sched *s, struct gen_run *r)
{
    uint32_t most = (sched_ready_len(r) - 1) / KERN_PAGE_TOKENS;
    if (!r->g->spec.keys || r->len / KERN_PAGE_TOKENS >= most)
        return;
    uint32_t before = kv_pages_free(s->m);
    r->len = attach(s, r, most);
    sched_count_pages(s, r->g, before);
}

/* The key of page i of r's sequence, which is full; NULL: an earlier one is unknown, or memory is out. */
static const struct hash *page_key(struct gen_run *r, uint32_t i)
{
    const struct gen_spec *p = &r->g->spec;
    uint32_t n = prompt_pages(r->g);
    if (i < n)
        return &p->keys[i + 1];
    uint32_t at = i - n;
    if (at < r->n_key)
        return &r->key[at];
    if (at > r->n_key)
        return NULL;
    if (at == r->cap_key) {
        uint32_t cap = r->cap_key ? 2 * r->cap_key : 4;
        struct hash *k = realloc(r->key, cap * sizeof *k);
        if (!k)
            return NULL;
        r->key = k;
        r->cap_key = cap;
    }
    int32_t token[KERN_PAGE_TOKENS];
    for (uint32_t k = 0; k < KERN_PAGE_TOKENS; k++) {
        uint32_t pos = i * KERN_PAGE_TOKENS + k;
        token[k] = pos < p->n_prompt ? p->prompt[pos] : r->fed[pos - (p->n_prompt - 1)];
    }
    prefix_key(at ? &r->key[at - 1] : &p->keys[n], token, &r->key[at]);
    r->n_key++;
    return &r->key[at];
}

void sched_prefix_keep(struct sched *s, struct gen_run *r, uint32_t from, uint32_t to)
{
    if (!r->g->spec.keys || from / KERN_PAGE_TOKENS == to / KERN_PAGE_TOKENS)
        return;
    uint32_t before = kv_pages_free(s->m);
    for (uint32_t i = from / KERN_PAGE_TOKENS; i < to / KERN_PAGE_TOKENS; i++) {
        const struct hash *key = page_key(r, i);
        if (!key)
            break;
        seq_keep(s->m, r->seq, i, key);
    }
    sched_count_pages(s, r->g, before);
}
