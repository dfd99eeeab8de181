/* stream_same.h - a module loaded whole and loaded a layer at a time: the same slot, or the same error.
 *
 * Shared by the tests of pet/ and the fuzz target. Nothing is asserted here: what differs comes back as a sentence in a
 * static buffer, NULL when nothing does. One thread.
 */
#ifndef CPET_TESTS_UNIT_PET_STREAM_SAME_H
#define CPET_TESTS_UNIT_PET_STREAM_SAME_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/num.h"
#include "pet/pet.h"

/* A target that a module fits: what its sites keep, in which order and how they scale it is drawn from a seed. */
struct bed {
    struct pet_target t;
    struct pet_site *sites;
};

static inline void *bed_alloc(size_t n, size_t size)
{
    void *p = calloc(n + 1, size);
    if (!p)
        abort();
    return p;
}

/* count of [0, orig), each at most once, in any order; NULL: all, in order. */
static inline uint32_t *bed_index(uint64_t seed, uint64_t site, uint32_t orig, uint32_t *count)
{
    *count = orig;
    if (rng_bits(seed, site, 0) % 2)
        return NULL;
    uint32_t *all = bed_alloc(orig, sizeof *all);
    *count = 1 + (uint32_t)(rng_bits(seed, site, 1) % orig);
    for (uint32_t i = 0; i < orig; i++)
        all[i] = i;
    for (uint32_t i = 0; i < *count; i++) {
        uint32_t j = i + (uint32_t)(rng_bits(seed, site, 2 + i) % (orig - i)), v = all[i];
        all[i] = all[j];
        all[j] = v;
    }
    return all;
}

static inline float *bed_scale(uint64_t seed, uint64_t site, uint32_t n)
{
    if (rng_bits(seed, site, 0) % 2)
        return NULL;
    float *v = bed_alloc(n, sizeof *v);
    for (uint32_t i = 0; i < n; i++)
        v[i] = rng_unit(seed, site, 1 + i) * 4 - 2;
    return v;
}

/* seed 0: every site as the original. Sites are in another order than the module's parts, and there is one more. */
static inline void bed_make(struct bed *b, const struct pet *p, enum kern_type type, uint64_t seed)
{
    uint32_t n = pet_info(p)->n_sites;
    b->sites = bed_alloc(n + 1, sizeof *b->sites);
    b->t = (struct pet_target){.sites = b->sites, .n_sites = n + 1, .type = type, .base_name = "bed"};
    for (uint32_t i = 0; i < n; i++) {
        struct pet_site *s = &b->sites[(i + seed) % (n + 1)];
        struct pet_part q;
        pet_part(p, i, &q);
        snprintf(s->module, sizeof s->module, "%s", q.module);
        s->k = s->k_orig = q.k;
        s->n = s->n_orig = q.n;
        if (!seed)
            continue;
        s->in_index = bed_index(seed, 4 * i, q.k, &s->k);
        s->out_index = bed_index(seed, 4 * i + 1, q.n, &s->n);
        s->in_scale = bed_scale(seed, 4 * i + 2, s->k);
        s->out_scale = bed_scale(seed, 4 * i + 3, s->n);
    }
}

static inline void bed_free(struct bed *b)
{
    for (uint32_t i = 0; i < b->t.n_sites; i++) {
        const struct pet_site *s = &b->sites[i];
        free((void *)(uintptr_t)s->in_index);
        free((void *)(uintptr_t)s->out_index);
        free((void *)(uintptr_t)s->in_scale);
        free((void *)(uintptr_t)s->out_scale);
    }
    free(b->sites);
}

/* Where the slot's memory begins: at its lowest part. */
static inline kmem slot_base(const struct kern_slot *k)
{
    kmem m = {UINTPTR_MAX};
    for (uint32_t i = 0; i < k->n_sites; i++) {
        if (k->site[i].rank && k->site[i].a.a < m.a)
            m = k->site[i].a;
    }
    return m;
}

static inline bool same_memory(struct kern_dev *d, kmem a, kmem b, size_t n)
{
    char *x = bed_alloc(n, 1), *y = bed_alloc(n, 1);
    kern_download(d, x, a, n);
    kern_download(d, y, b, n);
    bool same = !memcmp(x, y, n);
    free(x);
    free(y);
    return same;
}

static inline const char *same_slot(struct kern_dev *d, const struct pet_slot *a, const struct pet_slot *b)
{
    const struct kern_slot *x = pet_slot_kern(a), *y = pet_slot_kern(b);
    kmem xm = slot_base(x), ym = slot_base(y);
    if (x->n_sites != y->n_sites || x->max_rank != y->max_rank || pet_slot_bytes(a) != pet_slot_bytes(b))
        return "the slots differ in sites, rank or bytes";
    for (uint32_t i = 0; i < x->n_sites; i++) {
        const struct kern_lr *p = &x->site[i], *q = &y->site[i];
        if (p->rank != q->rank || p->k != q->k || p->n != q->n || p->type != q->type || p->fn != q->fn ||
            f32_bits(p->scale) != f32_bits(q->scale))
            return "the slots differ in a site";
        if (p->rank && (p->a.a - xm.a != q->a.a - ym.a || p->b.a - xm.a != q->b.a - ym.a))
            return "the slots differ in a site's place";
    }
    return same_memory(d, xm, ym, pet_slot_bytes(a)) ? NULL : "the slots differ in memory";
}

static inline bool same_info(const struct pet_info *a, const struct pet_info *b)
{
    return a->kind == b->kind && hash_equal(&a->hash, &b->hash) && a->bytes == b->bytes && a->max_rank == b->max_rank &&
           a->n_sites == b->n_sites && a->verified == b->verified && !strcmp(a->base, b->base) &&
           !memcmp(&a->lineage, &b->lineage, sizeof a->lineage);
}

/* What a way of loading gives. */
struct loaded {
    int rc;
    struct err e;
    bool have_info;
    struct pet_info info;
    size_t bytes; /* foretold; 0: nothing was */
    struct pet_slot *slot;
};

static inline void load_whole(struct kern_dev *d, const char *path, const struct pet_limits *lim,
                              const struct pet_target *t, struct loaded *l)
{
    struct pet *p = NULL;
    *l = (struct loaded){0};
    l->rc = pet_open(path, lim, &p, &l->e);
    if (l->rc)
        return;
    l->have_info = true;
    l->info = *pet_info(p);
    l->bytes = pet_resident_bytes(p, t);
    l->rc = pet_load(d, p, t, &l->slot, &l->e);
    pet_close(p);
}

static inline void load_stream(struct kern_dev *d, const char *path, const struct pet_limits *lim,
                               const struct pet_target *t, struct loaded *l)
{
    struct pet_stream *s = NULL;
    *l = (struct loaded){0};
    l->rc = pet_stream_open(path, lim, &s, &l->e);
    if (l->rc)
        return;
    l->have_info = true;
    l->info = *pet_stream_info(s);
    pet_stream_size(s, t, &l->bytes, NULL);
    l->rc = pet_stream_load(d, s, t, &l->slot, &l->e);
    if (!l->rc) { /* a second load of one stream is as the first */
        pet_unload(d, l->slot);
        l->slot = NULL;
        l->rc = pet_stream_load(d, s, t, &l->slot, &l->e);
    }
    pet_stream_close(s);
}

/* *rc: what both ways gave, when they are the same. */
static inline const char *stream_same(struct kern_dev *d, const char *path, const struct pet_limits *lim,
                                      const struct pet_target *t, int *rc)
{
    static char text[1500];
    struct loaded a, b;
    const char *says = NULL;
    load_whole(d, path, lim, t, &a);
    load_stream(d, path, lim, t, &b);
    *rc = a.rc;
    if (a.rc != b.rc || a.e.code != b.e.code || strcmp(a.e.msg, b.e.msg)) {
        snprintf(text, sizeof text, "whole: %d \"%s\"; streamed: %d \"%s\"", a.rc, a.e.msg, b.rc, b.e.msg);
        says = text;
    } else if (a.have_info && (!b.have_info || !same_info(&a.info, &b.info))) {
        says = "the stream's info differs";
    } else if (!a.rc) {
        says = a.bytes != b.bytes || a.bytes != pet_slot_bytes(a.slot) ? "the sizes foretold differ"
                                                                       : same_slot(d, a.slot, b.slot);
    }
    pet_unload(d, a.slot);
    pet_unload(d, b.slot);
    return says;
}

#endif
