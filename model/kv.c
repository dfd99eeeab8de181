/* kv.c - sequences and the pages that hold their keys and values.
 *
 * Engine thread only. The pool is one device allocation made at start. page_refs counts the sequences that hold a page,
 * and one more when it is kept for later ones (prefix.c): 0 is in the free stack, 1 and kept is idle and may be given
 * out as well, once the stack is empty. A page with more than one reference is never written: seq_reserve copies the
 * page that the next token would go into when it is shared, so that model_step only ever appends to pages of its own.
 * Pages are given out lowest number first at the beginning and last-freed first later; the resident part of the pool
 * grows with the load and with what is kept.
 *
 * A sequence that holds a kept page holds the kept pages before it (seq_keep and seq_attach see to it), and all its
 * pages are let go of from the last one on; prefix.c relies on both.
 */
#include "model/internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"

#define DEFAULT_KV_BYTES ((size_t)512 << 20)

static int page_layout(struct model *m, struct err *e)
{
    size_t at = 0;
    m->layer_off = calloc(m->cfg.n_layers, sizeof *m->layer_off);
    if (!m->layer_off)
        return err_set(e, -ENOMEM, "out of memory");
    for (uint32_t l = 0; l < m->cfg.n_layers; l++) {
        m->layer_off[l] = at;
        size_t part = kern_kv_layer_bytes(m->info.kv_type, m->cfg.layer[l].n_kv_heads, m->cfg.head_dim);
        if (!part || ck_add(at, part, &at))
            return err_set(e, -EOVERFLOW, "layer %u: a KV page is too large", l);
    }
    m->info.page_bytes = at;
    return 0;
}

int model_kv_open(struct model *m, const struct model_opts *o, struct err *e)
{
    int r = page_layout(m, e);
    if (r)
        return r;
    struct model_info *i = &m->info;
    size_t bytes = o->kv_bytes ? o->kv_bytes : DEFAULT_KV_BYTES;
    size_t pages = bytes / i->page_bytes, need = kv_pages_for(i->max_context);
    if (!o->kv_bytes && pages < need)
        pages = need;
    if (pages < need)
        return err_param(
            e, -EINVAL, "kv-bytes",
            "%zu bytes of KV hold %zu pages of %zu bytes; one sequence of %u tokens needs %zu pages (%zu bytes)", bytes,
            pages, i->page_bytes, i->max_context, need, need * i->page_bytes);
    if (pages > UINT32_MAX - 1)
        pages = UINT32_MAX - 1;
    i->n_pages = (uint32_t)pages;
    i->kv_bytes = pages * i->page_bytes;
    m->free_pages = malloc(pages * sizeof *m->free_pages);
    m->page_refs = calloc(pages, sizeof *m->page_refs);
    m->seqs = calloc(i->max_seqs, sizeof *m->seqs);
    m->page_copy = malloc(i->page_bytes);
    m->prefix = prefix_open((uint32_t)pages);
    if (!m->free_pages || !m->page_refs || !m->seqs || !m->page_copy || !m->prefix)
        return err_set(e, -ENOMEM, "out of memory for the table of %zu KV pages", pages);
    for (uint32_t p = 0; p < i->n_pages; p++)
        m->free_pages[p] = i->n_pages - 1 - p;
    m->n_free = i->n_pages;
    r = kern_alloc(m->dev, i->kv_bytes, &m->kv_mem, e);
    if (r)
        return err_prefix(e, r, "KV cache of %zu bytes", i->kv_bytes);
    m->kv = (struct kern_kv){.type = i->kv_type,
                             .base = m->kv_mem,
                             .page_bytes = i->page_bytes,
                             .n_layers = m->cfg.n_layers,
                             .layer_off = m->layer_off};
    return 0;
}

void model_kv_close(struct model *m)
{
    for (uint32_t s = 0; m->seqs && s < m->info.max_seqs; s++)
        free(m->seqs[s].pages);
    free(m->seqs);
    free(m->free_pages);
    free(m->page_refs);
    free(m->page_copy);
    prefix_close(m->prefix);
    free(m->layer_off);
    kern_free(m->dev, m->kv_mem);
}

uint32_t kv_pages_free(const struct model *m)
{
    return m->n_free + prefix_n_idle(m->prefix);
}

uint32_t kv_pages_idle(const struct model *m)
{
    return prefix_n_idle(m->prefix);
}

uint32_t kv_pages_for(uint32_t n_tokens)
{
    return n_tokens / KERN_PAGE_TOKENS + (n_tokens % KERN_PAGE_TOKENS != 0);
}

static uint32_t page_take(struct model *m)
{
    if (!m->n_free) {
        uint32_t p = prefix_evict(m->prefix);
        assert(m->page_refs[p] == 1);
        return p;
    }
    uint32_t p = m->free_pages[--m->n_free];
    assert(m->page_refs[p] == 0);
    m->page_refs[p] = 1;
    return p;
}

/* One more sequence holds p, which is kept or held. */
static void page_hold(struct model *m, uint32_t p)
{
    assert(m->page_refs[p] > 0);
    if (m->page_refs[p]++ == 1 && prefix_has(m->prefix, p))
        prefix_use(m->prefix, p);
}

static void page_drop(struct model *m, uint32_t p)
{
    assert(m->page_refs[p] > 0);
    if (--m->page_refs[p] == 0)
        m->free_pages[m->n_free++] = p;
    else if (m->page_refs[p] == 1 && prefix_has(m->prefix, p))
        prefix_idle(m->prefix, p);
}

static void page_copy(struct model *m, uint32_t from, uint32_t to)
{
    size_t n = m->info.page_bytes;
    kern_download(m->dev, m->page_copy, kmem_at(m->kv_mem, from * n), n);
    kern_upload(m->dev, kmem_at(m->kv_mem, to * n), m->page_copy, n);
}

static struct seq *seq_get(const struct model *m, uint32_t s)
{
    assert(s < m->info.max_seqs);
    assert(m->seqs[s].open);
    return &m->seqs[s];
}

int seq_open(struct model *m, uint32_t *seq)
{
    for (uint32_t s = 0; s < m->info.max_seqs; s++) {
        if (m->seqs[s].open)
            continue;
        m->seqs[s].open = true;
        m->seqs[s].len = m->seqs[s].n_pages = 0;
        *seq = s;
        return 0;
    }
    return -ENOSPC;
}

void seq_close(struct model *m, uint32_t seq)
{
    if (seq == MODEL_NO_SEQ)
        return;
    struct seq *s = seq_get(m, seq);
    while (s->n_pages)
        page_drop(m, s->pages[--s->n_pages]);
    s->open = false;
}

uint32_t seq_len(const struct model *m, uint32_t seq)
{
    return seq_get(m, seq)->len;
}

static int pages_room(struct seq *s, uint32_t n)
{
    if (n <= s->cap)
        return 0;
    uint32_t cap = n > 2 * s->cap ? n : 2 * s->cap;
    uint32_t *p = realloc(s->pages, cap * sizeof *p);
    if (!p)
        return -ENOMEM;
    s->pages = p;
    s->cap = cap;
    return 0;
}

/* The page that the next token goes into is shared with another sequence. */
static bool tail_shared(const struct model *m, const struct seq *s)
{
    return s->len % KERN_PAGE_TOKENS && m->page_refs[s->pages[s->len / KERN_PAGE_TOKENS]] > 1;
}

bool model_kv_ready(const struct model *m, const struct seq *s, uint32_t n)
{
    return n <= m->info.max_context - s->len && kv_pages_for(s->len + n) <= s->n_pages && !tail_shared(m, s);
}

int seq_reserve(struct model *m, uint32_t seq, uint32_t n_tokens)
{
    struct seq *s = seq_get(m, seq);
    if (n_tokens > m->info.max_context)
        return -E2BIG;
    uint32_t want = kv_pages_for(n_tokens), tail = s->len / KERN_PAGE_TOKENS;
    bool copy = tail_shared(m, s);
    uint32_t need = (want > s->n_pages ? want - s->n_pages : 0) + copy;
    if (need > kv_pages_free(m))
        return -ENOSPC;
    int r = pages_room(s, want);
    if (r)
        return r;
    if (copy) {
        uint32_t p = page_take(m);
        page_copy(m, s->pages[tail], p);
        page_drop(m, s->pages[tail]);
        s->pages[tail] = p;
    }
    while (s->n_pages < want)
        s->pages[s->n_pages++] = page_take(m);
    return 0;
}

void seq_truncate(struct model *m, uint32_t seq, uint32_t n)
{
    struct seq *s = seq_get(m, seq);
    assert(n <= s->len);
    s->len = n;
    while (s->n_pages > kv_pages_for(n))
        page_drop(m, s->pages[--s->n_pages]);
}

int seq_fork(struct model *m, uint32_t seq, uint32_t n_tokens, uint32_t *out)
{
    const struct seq *s = seq_get(m, seq);
    uint32_t id, used = kv_pages_for(s->len);
    int r = seq_open(m, &id);
    if (r)
        return r;
    struct seq *t = &m->seqs[id];
    r = pages_room(t, used);
    if (!r) {
        for (uint32_t i = 0; i < used; i++) {
            t->pages[i] = s->pages[i];
            page_hold(m, s->pages[i]);
        }
        t->n_pages = used;
        t->len = s->len;
        r = seq_reserve(m, id, n_tokens > s->len ? n_tokens : s->len);
    }
    if (r) {
        seq_close(m, id);
        return r;
    }
    *out = id;
    return 0;
}

/* ---- pages kept ---- */

void seq_keep(struct model *m, uint32_t seq, uint32_t i, const struct hash *key)
{
    struct seq *s = seq_get(m, seq);
    assert(i < s->len / KERN_PAGE_TOKENS);
    uint32_t p = s->pages[i], before = i ? s->pages[i - 1] : PREFIX_NONE;
    if (prefix_has(m->prefix, p) || (i && !prefix_has(m->prefix, before)))
        return;
    uint32_t twin = prefix_find(m->prefix, key);
    if (twin == PREFIX_NONE) {
        prefix_put(m->prefix, p, key, before);
        m->page_refs[p]++;
    } else if (m->page_refs[p] == 1 && prefix_parent(m->prefix, twin) == before) {
        page_hold(m, twin);
        s->pages[i] = twin;
        page_drop(m, p);
    }
}

uint32_t seq_attach(struct model *m, uint32_t seq, uint32_t first, const struct hash *key, uint32_t n)
{
    struct seq *s = seq_get(m, seq);
    uint32_t i = s->len / KERN_PAGE_TOKENS;
    assert(i >= first);
    for (; i - first < n; i++) {
        uint32_t p = prefix_find(m->prefix, &key[i - first]);
        if (p == PREFIX_NONE || prefix_parent(m->prefix, p) != (i ? s->pages[i - 1] : PREFIX_NONE))
            break;
        bool own = i < s->n_pages;
        if (own ? m->page_refs[s->pages[i]] > 1 : pages_room(s, i + 1) != 0)
            break;
        page_hold(m, p);
        if (own)
            page_drop(m, s->pages[i]);
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
    for (uint32_t p; i < n && (p = prefix_find(m->prefix, &key[i])) != PREFIX_NONE && m->page_refs[p] > 1;)
        i++;
    return i;
}
