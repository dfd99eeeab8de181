/* prefix.c - keys of pages, and the table of the pages that are kept.
 *
 * A page's key is a BLAKE2b-256 hash of the key of the page before it and the page's tokens; the first one begins from
 * a root that hashes all else that the keys and values depend on: the tenant, the backbone with its recovery module,
 * the type of keys and values, the modules by content, in their order, with their weights. So equal keys mean equal
 * bits (a row depends on its own inputs alone), and nobody shares what another tenant's requests left. The root also
 * takes random bytes of this process: no client can search for prompts whose keys crowd one bucket.
 *
 * The functions on keys run on any thread; the table belongs to the engine thread.
 *
 * What always holds in the table: who holds a page holds the pages before it too, and lets go of the last one first. So
 * in the list of idle pages, oldest first, a page stands before its parent, and the oldest is always a leaf: taking
 * pages from that end is least recently used first and leaves before parents, in one.
 */
#include "model/prefix.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"

struct entry {
    struct hash key;
    uint32_t next;         /* in its bucket */
    uint32_t parent;       /* page */
    uint32_t n_children;   /* kept pages that follow it */
    uint32_t older, newer; /* in the list of idle pages */
    bool kept, idle;
};

struct prefix {
    struct entry *e;  /* [n_pages] */
    uint32_t *bucket; /* [mask + 1]: a page or PREFIX_NONE */
    uint32_t mask, n_pages, n_idle;
    uint32_t oldest, newest;
};

/* ---- keys ---- */

void prefix_key(const struct hash *before, const int32_t *tokens, struct hash *out)
{
    struct {
        struct hash before;
        int32_t token[KERN_PAGE_TOKENS];
    } all;
    static_assert(sizeof all == sizeof all.before + sizeof all.token, "the key hashes no padding");
    all.before = *before;
    memcpy(all.token, tokens, sizeof all.token);
    hash_of(&all, sizeof all, out);
}

void prefix_keys(const int32_t *tokens, uint32_t n_tokens, struct hash *key)
{
    for (uint32_t i = 0; i < n_tokens / KERN_PAGE_TOKENS; i++)
        prefix_key(&key[i], tokens + (size_t)i * KERN_PAGE_TOKENS, &key[i + 1]);
}

/* ---- the table ---- */

struct prefix *prefix_open(uint32_t n_pages)
{
    struct prefix *p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    size_t buckets = 1;
    while (buckets < 2 * (size_t)n_pages)
        buckets *= 2;
    p->e = calloc(n_pages, sizeof *p->e);
    p->bucket = malloc(buckets * sizeof *p->bucket);
    if (!p->e || !p->bucket) {
        prefix_close(p);
        return NULL;
    }
    for (size_t i = 0; i < buckets; i++)
        p->bucket[i] = PREFIX_NONE;
    p->mask = (uint32_t)(buckets - 1);
    p->n_pages = n_pages;
    p->oldest = p->newest = PREFIX_NONE;
    return p;
}

void prefix_close(struct prefix *p)
{
    if (!p)
        return;
    free(p->e);
    free(p->bucket);
    free(p);
}

static uint32_t *bucket_of(const struct prefix *p, const struct hash *key)
{
    uint32_t h;
    memcpy(&h, key->b, sizeof h);
    return &p->bucket[h & p->mask];
}

uint32_t prefix_find(const struct prefix *p, const struct hash *key)
{
    uint32_t at = *bucket_of(p, key);
    while (at != PREFIX_NONE && memcmp(&p->e[at].key, key, sizeof *key))
        at = p->e[at].next;
    return at;
}

bool prefix_has(const struct prefix *p, uint32_t page)
{
    return p->e[page].kept;
}

uint32_t prefix_parent(const struct prefix *p, uint32_t page)
{
    assert(p->e[page].kept);
    return p->e[page].parent;
}

uint32_t prefix_n_idle(const struct prefix *p)
{
    return p->n_idle;
}

void prefix_put(struct prefix *p, uint32_t page, const struct hash *key, uint32_t parent)
{
    assert(page < p->n_pages && !p->e[page].kept);
    assert(prefix_find(p, key) == PREFIX_NONE);
    assert(parent == PREFIX_NONE || p->e[parent].kept);
    uint32_t *b = bucket_of(p, key);
    p->e[page] = (struct entry){.key = *key, .next = *b, .parent = parent, .kept = true};
    *b = page;
    if (parent != PREFIX_NONE)
        p->e[parent].n_children++;
}

void prefix_idle(struct prefix *p, uint32_t page)
{
    struct entry *e = &p->e[page];
    assert(e->kept && !e->idle);
    e->idle = true;
    e->older = p->newest;
    e->newer = PREFIX_NONE;
    *(p->newest == PREFIX_NONE ? &p->oldest : &p->e[p->newest].newer) = page;
    p->newest = page;
    p->n_idle++;
}

void prefix_use(struct prefix *p, uint32_t page)
{
    struct entry *e = &p->e[page];
    assert(e->kept && e->idle);
    e->idle = false;
    *(e->older == PREFIX_NONE ? &p->oldest : &p->e[e->older].newer) = e->newer;
    *(e->newer == PREFIX_NONE ? &p->newest : &p->e[e->newer].older) = e->older;
    p->n_idle--;
}

uint32_t prefix_evict(struct prefix *p)
{
    uint32_t page = p->oldest;
    assert(page != PREFIX_NONE);
    struct entry *e = &p->e[page];
    assert(e->n_children == 0);
    prefix_use(p, page);
    uint32_t *at = bucket_of(p, &e->key);
    while (*at != page)
        at = &p->e[*at].next;
    *at = e->next;
    if (e->parent != PREFIX_NONE)
        p->e[e->parent].n_children--;
    e->kept = false;
    return page;
}
