/* fake_model.c - see fake_model.h. Pages are counted as the real ones are: shared by forks, copied where partial, kept
 * in the product's own table (model/prefix.c). What a page holds stands for keys and values: each token with the
 * modules that read it. Sampling sees nothing else, so that a page taken wrongly gives other tokens.
 */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/num.h"
#include "fake_model.h"
#include "model/prefix.h"

struct fseq {
    bool open;
    uint32_t len, n_pages;
    uint32_t *pages;
};

struct fpage {
    uint64_t row[KERN_PAGE_TOKENS];
};

struct model {
    struct fake_opts o;
    struct model_info info;
    struct fseq *seq;
    uint32_t *refs, n_free;
    struct fpage *page;
    struct prefix *prefix;
    bool fail;
    struct fake_step last;
};

struct model *fake_open(const struct fake_opts *o)
{
    struct model *m = calloc(1, sizeof *m);
    m->o = *o;
    m->info = (struct model_info){.vocab = 1000,
                                  .max_context = o->max_context,
                                  .max_rows = o->max_rows,
                                  .max_logits = o->max_logits,
                                  .max_seqs = o->max_seqs,
                                  .max_pets = 4,
                                  .n_pages = o->n_pages};
    m->seq = calloc(o->max_seqs, sizeof *m->seq);
    m->refs = calloc(o->n_pages, sizeof *m->refs);
    m->page = calloc(o->n_pages, sizeof *m->page);
    m->prefix = prefix_open(o->n_pages);
    m->n_free = o->n_pages;
    for (uint32_t i = 0; i < o->max_seqs; i++)
        m->seq[i].pages = calloc(o->n_pages, sizeof *m->seq[i].pages);
    return m;
}

void fake_close(struct model *m)
{
    for (uint32_t i = 0; i < m->o.max_seqs; i++)
        free(m->seq[i].pages);
    free(m->seq);
    free(m->page);
    prefix_close(m->prefix);
    free(m->refs);
    free(m);
}

void fake_fail_next(struct model *m)
{
    m->fail = true;
}

const struct fake_step *fake_last(const struct model *m)
{
    return &m->last;
}

uint32_t fake_open_seqs(const struct model *m)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < m->o.max_seqs; i++)
        n += m->seq[i].open;
    return n;
}

const struct model_info *model_info(const struct model *m)
{
    return &m->info;
}

uint32_t kv_pages_free(const struct model *m)
{
    return m->n_free + prefix_n_idle(m->prefix);
}

uint32_t kv_pages_idle(const struct model *m)
{
    return prefix_n_idle(m->prefix);
}

uint32_t seq_len(const struct model *m, uint32_t seq)
{
    assert(m->seq[seq].open);
    return m->seq[seq].len;
}

uint32_t kv_pages_for(uint32_t n_tokens)
{
    return (n_tokens + KERN_PAGE_TOKENS - 1) / KERN_PAGE_TOKENS;
}

uint32_t model_step_slots(const struct model *m)
{
    (void)m;
    return 0;
}

static uint32_t take(struct model *m)
{
    if (!m->n_free) {
        uint32_t p = prefix_evict(m->prefix);
        assert(m->refs[p] == 1);
        return p;
    }
    for (uint32_t i = 0; i < m->o.n_pages; i++)
        if (!m->refs[i]) {
            m->refs[i] = 1;
            m->n_free--;
            return i;
        }
    abort();
}

static void hold(struct model *m, uint32_t p)
{
    if (m->refs[p]++ == 1 && prefix_has(m->prefix, p))
        prefix_use(m->prefix, p);
}

static void drop(struct model *m, uint32_t p)
{
    if (!--m->refs[p])
        m->n_free++;
    else if (m->refs[p] == 1 && prefix_has(m->prefix, p))
        prefix_idle(m->prefix, p);
}

int seq_open(struct model *m, uint32_t *seq)
{
    for (uint32_t i = 0; i < m->o.max_seqs; i++)
        if (!m->seq[i].open) {
            m->seq[i].open = true;
            m->seq[i].len = m->seq[i].n_pages = 0;
            *seq = i;
            return 0;
        }
    return -ENOSPC;
}

void seq_close(struct model *m, uint32_t seq)
{
    if (seq == MODEL_NO_SEQ)
        return;
    struct fseq *s = &m->seq[seq];
    assert(s->open);
    while (s->n_pages)
        drop(m, s->pages[--s->n_pages]);
    s->open = false;
}

int seq_reserve(struct model *m, uint32_t seq, uint32_t n_tokens)
{
    struct fseq *s = &m->seq[seq];
    uint32_t want = kv_pages_for(n_tokens);
    if (n_tokens > m->o.max_context)
        return -E2BIG;
    if (want > s->n_pages && want - s->n_pages > kv_pages_free(m))
        return -ENOSPC;
    while (s->n_pages < want)
        s->pages[s->n_pages++] = take(m);
    return 0;
}

int seq_fork(struct model *m, uint32_t seq, uint32_t n_tokens, uint32_t *out)
{
    struct fseq *s = &m->seq[seq];
    uint32_t full = s->len / KERN_PAGE_TOKENS;
    if (kv_pages_for(n_tokens) - full > kv_pages_free(m) || seq_open(m, out))
        return -ENOSPC;
    struct fseq *t = &m->seq[*out];
    for (uint32_t i = 0; i < full; i++) {
        t->pages[t->n_pages++] = s->pages[i];
        hold(m, s->pages[i]);
    }
    t->len = s->len;
    int rc = seq_reserve(m, *out, n_tokens > s->len ? n_tokens : s->len);
    if (!rc && s->len % KERN_PAGE_TOKENS)
        m->page[t->pages[full]] = m->page[s->pages[full]];
    return rc;
}

void seq_keep(struct model *m, uint32_t seq, uint32_t i, const struct hash *key)
{
    struct fseq *s = &m->seq[seq];
    assert(i < s->len / KERN_PAGE_TOKENS);
    uint32_t p = s->pages[i], before = i ? s->pages[i - 1] : PREFIX_NONE;
    if (prefix_has(m->prefix, p) || (i && !prefix_has(m->prefix, before)))
        return;
    uint32_t twin = prefix_find(m->prefix, key);
    if (twin == PREFIX_NONE) {
        prefix_put(m->prefix, p, key, before);
        m->refs[p]++;
        return;
    }
    assert(!memcmp(&m->page[p], &m->page[twin], sizeof m->page[p]));
    if (m->refs[p] == 1 && prefix_parent(m->prefix, twin) == before) {
        hold(m, twin);
        s->pages[i] = twin;
        drop(m, p);
    }
}

uint32_t seq_attach(struct model *m, uint32_t seq, uint32_t first, const struct hash *key, uint32_t n)
{
    struct fseq *s = &m->seq[seq];
    for (uint32_t i = s->len / KERN_PAGE_TOKENS; i - first < n; i++) {
        uint32_t p = prefix_find(m->prefix, &key[i - first]);
        if (p == PREFIX_NONE || prefix_parent(m->prefix, p) != (i ? s->pages[i - 1] : PREFIX_NONE))
            break;
        if (i < s->n_pages && m->refs[s->pages[i]] > 1)
            break;
        hold(m, p);
        if (i < s->n_pages)
            drop(m, s->pages[i]);
        else
            s->n_pages++;
        s->pages[i] = p;
        s->len = (i + 1) * KERN_PAGE_TOKENS;
    }
    return s->len;
}

uint32_t kv_held(const struct model *m, const struct hash *key, uint32_t n)
{
    uint32_t i = 0;
    for (uint32_t p; i < n && (p = prefix_find(m->prefix, &key[i])) != PREFIX_NONE && m->refs[p] > 1;)
        i++;
    return i;
}

/* The product's hashes its salt too. */
void model_prefix_root(const struct model *m, uint32_t tenant, const struct model_prefix_pet *pets, uint32_t n_pets,
                       struct hash *out)
{
    struct hash_state h;
    (void)m;
    hash_init(&h);
    hash_update(&h, &tenant, sizeof tenant);
    hash_update(&h, pets, n_pets * sizeof *pets);
    hash_final(&h, out);
}

static uint64_t *row_at(const struct model *m, const struct fseq *s, uint32_t i)
{
    return &m->page[s->pages[i / KERN_PAGE_TOKENS]].row[i % KERN_PAGE_TOKENS];
}

/* The first token from its own on that the mask allows and no bias forbids; with none, the first that it allows. */
static void masked(const struct kern_sample *k, struct kern_sampled *out)
{
    for (uint32_t i = 0; i < 2 * 1000; i++) {
        uint32_t t = ((uint32_t)out->token + i) % 1000;
        bool forbidden = false;
        for (uint32_t j = 0; j < k->n_bias; j++)
            forbidden |= k->bias[j].token == (int32_t)t && k->bias[j].add == -INFINITY;
        if (k->mask[t / 32] >> (t % 32) & 1u && (!forbidden || i >= 1000)) {
            out->token = (int32_t)t;
            return;
        }
    }
    abort();
}

static void sample(const struct model *m, const struct fseq *s, uint32_t n, const struct kern_sample *k,
                   struct kern_sampled *out)
{
    uint64_t h = 0;
    for (uint32_t i = 0; i < n; i++)
        h = rng_bits(h, *row_at(m, s, i), i);
    for (uint32_t i = 0; i < k->n_seen; i++)
        h = rng_bits(h, (uint64_t)k->seen[i].token, k->seen[i].in_output * 2 + k->seen[i].in_prompt);
    if (k->temperature > 0)
        h = rng_bits(h ^ k->seed, k->sequence, k->position);
    bool no_eos = false;
    for (uint32_t i = 0; i < k->n_bias; i++)
        no_eos |= k->bias[i].token == m->o.eos && k->bias[i].add == -INFINITY;
    out->token = k->target >= 0 ? k->target : (int32_t)(100 + h % 800);
    if (k->target < 0 && m->o.eos_after && k->position + 1 >= (uint64_t)m->o.eos_after && !no_eos)
        out->token = m->o.eos;
    if (k->mask && k->target < 0)
        masked(k, out);
    out->logprob = -(float)(h % 1000) / 100;
    for (int i = 0; i < k->n_top; i++) {
        out->top_id[i] = (int32_t)(h % 900) + i;
        out->top_logprob[i] = -(float)i;
    }
}

int model_step(struct model *m, const struct model_span *sp, uint32_t n, struct err *e)
{
    uint32_t rows = 0, logits = 0;
    if (m->fail) {
        m->fail = false;
        return err_set(e, -EIO, "the fake model failed");
    }
    memset(&m->last, 0, sizeof m->last);
    for (uint32_t i = 0; i < n; i++) {
        struct fseq *s = &m->seq[sp[i].seq];
        assert(s->open && sp[i].n_tokens && sp[i].n_logits <= sp[i].n_tokens);
        assert(s->len + sp[i].n_tokens <= s->n_pages * KERN_PAGE_TOKENS);
        for (uint32_t j = 0; j < i; j++)
            assert(sp[j].seq != sp[i].seq);
        uint64_t pets = 0;
        for (uint32_t k = 0; k < sp[i].n_pets; k++)
            pets = pets * 31 + (uintptr_t)sp[i].pets[k].slot + (uint64_t)(sp[i].pets[k].weight * 16);
        for (uint32_t k = 0; k < sp[i].n_tokens; k++, s->len++) {
            assert(m->refs[s->pages[s->len / KERN_PAGE_TOKENS]] == 1);
            *row_at(m, s, s->len) = (uint64_t)sp[i].tokens[k] | pets << 32;
        }
        for (uint32_t k = 0; k < sp[i].n_logits; k++)
            sample(m, s, s->len - sp[i].n_logits + k + 1, &sp[i].sample[k], &sp[i].sampled[k]);
        for (uint32_t k = 0; sp[i].pool && k < sp[i].n_tokens; k++)
            *sp[i].pooled = sp[i].pool == MODEL_POOL_SUM ? *sp[i].pooled + sp[i].tokens[k] : sp[i].tokens[k];
        rows += sp[i].n_tokens;
        logits += sp[i].n_logits;
        m->last.decode_rows += sp[i].n_tokens == 1;
        m->last.rows_of_task[*row_at(m, s, 0) & 15] += sp[i].n_tokens;
    }
    assert(rows && rows <= m->o.max_rows && logits <= m->o.max_logits);
    m->last.rows = rows;
    m->last.spans = n;
    return 0;
}
