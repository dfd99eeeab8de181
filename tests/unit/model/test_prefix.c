/* test_prefix.c - pages kept for later sequences: their keys, the table, and that the bits are those computed anew. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "model/model.h"
#include "model/prefix.h"
#include "tiny.h"

#define P ((uint32_t)KERN_PAGE_TOKENS)
#define N (7 * P)

static struct kern_dev *dev;

static struct model *open_tiny(const struct tiny *t, int kv_type, uint32_t pages)
{
    struct model *m = NULL;
    struct err e = {0};
    struct model_opts o = {.dir = t->dir,
                           .precision = MODEL_AUTO,
                           .kv_type = kv_type,
                           .kv_bytes = (size_t)pages << 16,
                           .max_rows = 64,
                           .max_logits = 64,
                           .max_seqs = 8};
    if (model_open(dev, &o, &m, &e))
        fail_msg("%s", e.msg);
    size_t page = model_info(m)->page_bytes;
    model_close(m);
    o.kv_bytes = pages * page;
    if (model_open(dev, &o, &m, &e))
        fail_msg("%s", e.msg);
    assert_int_equal(model_info(m)->n_pages, pages);
    return m;
}

static void chain(const struct model *m, const int32_t *ids, uint32_t n, struct hash *key)
{
    model_prefix_root(m, 0, NULL, 0, &key[0]);
    prefix_keys(ids, n, key);
}

/* Appends ids[len..n) in chunks; logits of the last token to out, where that is not NULL. */
static void feed(struct model *m, uint32_t seq, const int32_t *ids, uint32_t n, uint32_t most, float *out)
{
    struct err e = {0};
    assert_int_equal(seq_reserve(m, seq, n), 0);
    for (uint32_t at = seq_len(m, seq); at < n; at = seq_len(m, seq)) {
        uint32_t k = n - at < most ? n - at : most;
        struct model_span sp = {.seq = seq, .tokens = ids + at, .n_tokens = k, .n_logits = at + k == n};
        if (model_step(m, &sp, 1, &e))
            fail_msg("%s", e.msg);
    }
    if (out)
        model_logits(m, 0, out);
}

static uint32_t open_seq(struct model *m)
{
    uint32_t seq;
    assert_int_equal(seq_open(m, &seq), 0);
    return seq;
}

/* Reads n tokens, keeps the full pages, closes. */
static void leave(struct model *m, const int32_t *ids, uint32_t n, uint32_t most)
{
    struct hash key[N / P + 1];
    uint32_t seq = open_seq(m);
    chain(m, ids, n, key);
    feed(m, seq, ids, n, most, NULL);
    for (uint32_t i = 0; i < n / P; i++)
        seq_keep(m, seq, i, &key[i + 1]);
    seq_close(m, seq);
}

static uint32_t there(struct model *m, const int32_t *ids, uint32_t n)
{
    struct hash key[N / P + 1];
    uint32_t seq = open_seq(m);
    chain(m, ids, n, key);
    uint32_t len = seq_attach(m, seq, 0, key + 1, n / P);
    seq_close(m, seq);
    return len;
}

/* Chunked in any way, kept, taken, and gone on from: the bits of a prompt read at once. */
static void test_bits(void **s)
{
    (void)s;
    static const int kv_types[] = {KERN_F32, KERN_BF16, KERN_S8};
    struct tiny t = {.qwen2 = true};
    tiny_make(&t);
    for (size_t kind = 0; kind < 3; kind++) {
        struct model *m = open_tiny(&t, kv_types[kind], 16);
        float want[TINY_VOCAB], got[TINY_VOCAB];
        int32_t ids[N];
        struct hash key[N / P + 1];
        tiny_ids(ids, N, (uint32_t)kind);
        chain(m, ids, N, key);
        uint32_t seq = open_seq(m);
        feed(m, seq, ids, N, 64, want);
        seq_close(m, seq);
        assert_int_equal(there(m, ids, N), 0); /* nobody kept it */
        for (uint32_t most = 1; most <= 64; most = most * 3 + 2)
            for (uint32_t pages = 1; pages < N / P; pages += 2) {
                leave(m, ids, pages * P, most);
                seq = open_seq(m);
                uint32_t len = seq_attach(m, seq, 0, key + 1, pages);
                assert_true(len >= pages * P);
                feed(m, seq, ids, N, 50, got);
                assert_memory_equal(got, want, sizeof got);
                seq_close(m, seq);
            }
        assert_int_equal(kv_pages_free(m), 16);
        model_close(m);
    }
    tiny_remove(&t);
}

/* What is shared is counted once; the last to leave gives it back to the cache, and no page is lost. */
static void test_pages(void **s)
{
    (void)s;
    struct tiny t = {.tied = true};
    tiny_make(&t);
    struct model *m = open_tiny(&t, MODEL_KV_AUTO, 16);
    int32_t ids[N], other[N];
    struct hash key[N / P + 1];
    tiny_ids(ids, N, 1);
    tiny_ids(other, N, 2);
    chain(m, ids, N, key);
    leave(m, ids, 4 * P + 5, 64);
    assert_int_equal(kv_pages_free(m), 16);
    assert_int_equal(kv_pages_idle(m), 4);
    assert_int_equal(kv_held(m, key + 1, 4), 0);
    uint32_t a = open_seq(m), b = open_seq(m);
    assert_int_equal(seq_attach(m, a, 0, key + 1, 7), 4 * P);
    assert_int_equal(kv_pages_free(m), 12);
    assert_int_equal(kv_pages_idle(m), 0);
    assert_int_equal(kv_held(m, key + 1, 7), 4);
    assert_int_equal(seq_attach(m, b, 0, key + 1, 3), 3 * P);
    assert_int_equal(kv_pages_free(m), 12);
    feed(m, a, ids, 6 * P, 64, NULL);
    feed(m, b, ids, 3 * P + 7, 64, NULL); /* into page 3, which is kept */
    assert_int_equal(kv_pages_free(m), 9);
    assert_int_equal(seq_attach(m, b, 0, key + 1, 4), 4 * P); /* its own half page goes */
    assert_int_equal(kv_pages_free(m), 10);
    seq_close(m, a);
    assert_int_equal(kv_pages_free(m), 12);
    /* the same page computed by two: the second takes the first's and gives its own back */
    seq_reserve(m, b, 7 * P);
    a = open_seq(m);
    seq_attach(m, a, 0, key + 1, 4);
    feed(m, a, ids, 5 * P, 64, NULL);
    feed(m, b, ids, 5 * P, 64, NULL);
    uint32_t before = kv_pages_free(m);
    seq_keep(m, a, 4, &key[5]);
    assert_int_equal(kv_pages_free(m), before);
    seq_keep(m, b, 4, &key[5]);
    assert_int_equal(kv_pages_free(m), before + 1);
    seq_keep(m, b, 4, &key[5]); /* again: nothing */
    assert_int_equal(kv_pages_free(m), before + 1);
    seq_close(m, a);
    seq_close(m, b);
    assert_int_equal(kv_pages_free(m), 16);
    assert_int_equal(kv_pages_idle(m), 5);
    /* no page is kept after one that is not */
    a = open_seq(m);
    feed(m, a, other, 3 * P, 64, NULL);
    chain(m, other, N, key);
    seq_keep(m, a, 1, &key[2]);
    seq_close(m, a);
    assert_int_equal(kv_pages_idle(m), 5);
    model_close(m);
    tiny_remove(&t);
}

/* A kept page is not written: cutting a sequence inside it and going on elsewhere leaves it as it was. */
static void test_never_written(void **s)
{
    (void)s;
    struct tiny t = {.tied = true};
    tiny_make(&t);
    struct model *m = open_tiny(&t, MODEL_KV_AUTO, 16);
    int32_t ids[N], tail[N];
    float want[TINY_VOCAB], got[TINY_VOCAB];
    struct hash key[N / P + 1];
    struct err e = {0};
    tiny_ids(ids, N, 1);
    chain(m, ids, N, key);
    uint32_t a = open_seq(m), fork;
    feed(m, a, ids, N, 64, want);
    for (uint32_t i = 0; i < 3; i++)
        seq_keep(m, a, i, &key[i + 1]);
    memcpy(tail, ids, sizeof tail);
    for (uint32_t i = 2 * P + 9; i < N; i++)
        tail[i] = (ids[i] + 5) % TINY_VOCAB;
    seq_truncate(m, a, 2 * P + 9);
    struct model_span sp = {.seq = a, .tokens = tail, .n_tokens = 1};
    assert_int_equal(model_step(m, &sp, 1, &e), -EINVAL); /* its page is the cache's as well */
    assert_int_equal(seq_fork(m, a, N, &fork), 0);
    feed(m, a, tail, N, 64, NULL);
    feed(m, fork, tail, N, 64, NULL);
    seq_close(m, a);
    seq_close(m, fork);
    a = open_seq(m);
    assert_int_equal(seq_attach(m, a, 0, key + 1, 7), 3 * P);
    feed(m, a, ids, N, 64, got);
    assert_memory_equal(got, want, sizeof got);
    seq_close(m, a);
    assert_int_equal(kv_pages_free(m), 16);
    model_close(m);
    tiny_remove(&t);
}

/* The least recently used go first, leaves before what they follow on, and never what a sequence holds. */
static void test_eviction(void **s)
{
    (void)s;
    struct tiny t = {.tied = true};
    tiny_make(&t);
    struct model *m = open_tiny(&t, MODEL_KV_AUTO, 10);
    int32_t a[N], b[N], c[N];
    struct hash key[N / P + 1];
    tiny_ids(a, N, 1);
    tiny_ids(b, N, 2);
    memcpy(c, b, sizeof c);
    c[2 * P] ^= 1; /* as b for two pages */
    leave(m, a, 4 * P, 64);
    leave(m, b, 3 * P, 64);
    leave(m, c, 3 * P, 64);
    assert_int_equal(kv_pages_idle(m), 8);
    assert_int_equal(there(m, a, 4 * P), 4 * P); /* used now: b and c are older */
    uint32_t hold = open_seq(m);
    assert_int_equal(seq_reserve(m, hold, 3 * P), 0); /* the two free ones, and one kept */
    assert_int_equal(kv_pages_free(m), 7);
    assert_int_equal(there(m, b, 3 * P), 2 * P); /* b's leaf is gone */
    assert_int_equal(there(m, c, 3 * P), 3 * P);
    assert_int_equal(there(m, a, 4 * P), 4 * P);
    chain(m, c, N, key);
    uint32_t use = open_seq(m);
    assert_int_equal(seq_attach(m, use, 0, key + 1, 3), 3 * P);
    assert_int_equal(seq_reserve(m, hold, 6 * P), 0);
    assert_int_equal(seq_reserve(m, hold, 8 * P), -ENOSPC);
    assert_int_equal(there(m, a, 4 * P), P);
    assert_int_equal(kv_pages_free(m), 1);
    seq_close(m, use);
    assert_int_equal(there(m, c, 3 * P), 3 * P);
    seq_close(m, hold);
    hold = open_seq(m);
    use = open_seq(m);
    assert_int_equal(seq_reserve(m, hold, 8 * P), 0);
    assert_int_equal(seq_reserve(m, use, 2 * P), 0);
    assert_int_equal(kv_pages_free(m), 0);
    assert_int_equal(kv_pages_idle(m), 0);
    seq_close(m, hold);
    seq_close(m, use);
    assert_int_equal(kv_pages_free(m), 10);
    assert_int_equal(there(m, c, 3 * P), 0);
    model_close(m);
    tiny_remove(&t);
}

static void root(const struct model *m, uint32_t tenant, const struct model_prefix_pet *p, uint32_t n, struct hash *all,
                 size_t *n_all)
{
    model_prefix_root(m, tenant, p, n, &all[*n_all]);
    for (size_t i = 0; i < *n_all; i++)
        assert_memory_not_equal(&all[i], &all[*n_all], sizeof *all);
    ++*n_all;
}

/* Whatever keys and values depend on changes the key: tenant, modules, order, weights, type, place, any token. */
static void test_keys(void **s)
{
    (void)s;
    struct tiny t = {.tied = true};
    tiny_make(&t);
    struct model *m[3] = {open_tiny(&t, KERN_F32, 10), open_tiny(&t, KERN_S8, 10), open_tiny(&t, KERN_F32, 10)};
    struct model_prefix_pet ab[2] = {{.weight = 1}, {.weight = 1}};
    ab[0].hash.b[31] = 1;
    ab[1].hash.b[0] = 1;
    struct model_prefix_pet ba[2] = {ab[1], ab[0]}, half[2] = {ab[0], ab[1]};
    half[1].weight = 0.5f;
    struct hash all[64];
    size_t n = 0;
    for (int i = 0; i < 3; i++)
        for (uint32_t tenant = 0; tenant < 2; tenant++) {
            root(m[i], tenant, NULL, 0, all, &n);
            root(m[i], tenant, ab, 1, all, &n);
            root(m[i], tenant, ab, 2, all, &n);
            root(m[i], tenant, ba, 1, all, &n);
            root(m[i], tenant, ba, 2, all, &n);
            root(m[i], tenant, half, 2, all, &n);
        }
    struct hash x[3], y[3], again[3];
    int32_t ids[2 * P + 1];
    tiny_ids(ids, 2 * P + 1, 1);
    model_prefix_root(m[0], 1, ab, 2, &x[0]);
    y[0] = again[0] = x[0];
    prefix_keys(ids, 2 * P + 1, x);
    prefix_keys(ids, 2 * P, again);
    assert_memory_equal(x, again, sizeof x);
    for (uint32_t i = 0; i < 2 * P; i++) {
        ids[i]++;
        prefix_keys(ids, 2 * P, y);
        assert_true(!memcmp(&x[1], &y[1], sizeof *x) == (i >= P));
        assert_memory_not_equal(&x[2], &y[2], sizeof *x);
        ids[i]--;
    }
    memcpy(ids + P, ids, P * sizeof *ids); /* the same tokens a page later */
    prefix_keys(ids, 2 * P, y);
    assert_memory_not_equal(&y[1], &y[2], sizeof *y);
    for (int i = 0; i < 3; i++)
        model_close(m[i]);
    tiny_remove(&t);
}

/* ---- the table alone, against a plain list ---- */

enum { PAGES = 40, CHAINS = 6 };

struct plain {
    uint32_t parent[PAGES], used[PAGES]; /* used: by so many */
    bool kept[PAGES];
    struct hash key[PAGES];
};

static uint32_t draw(uint64_t *state, uint32_t n)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((*state >> 33) % n);
}

static void test_table(void **s)
{
    (void)s;
    struct prefix *p = prefix_open(PAGES);
    struct plain *q = calloc(1, sizeof *q);
    uint64_t state = 7;
    uint32_t chain_of[CHAINS][PAGES], n_chain[CHAINS] = {0}, names = 0;
    for (int round = 0; round < 20000; round++) {
        uint32_t c = draw(&state, CHAINS), page = draw(&state, PAGES);
        if (draw(&state, 8) == 0) { /* a sequence ends, from its last page on */
            while (n_chain[c]) {
                uint32_t last = chain_of[c][--n_chain[c]];
                if (!--q->used[last])
                    prefix_idle(p, last);
            }
        } else if (!n_chain[c] && q->kept[page]) { /* one takes what is there, up to that page */
            uint32_t path[PAGES], n = 0;
            for (uint32_t at = page; at != PREFIX_NONE; at = prefix_parent(p, at))
                path[n++] = at;
            while (n) {
                uint32_t at = path[--n];
                assert_int_equal(prefix_find(p, &q->key[at]), at);
                if (!q->used[at]++)
                    prefix_use(p, at);
                chain_of[c][n_chain[c]++] = at;
            }
        } else { /* one grows by a page, taking the oldest idle one when none is free */
            uint32_t at = 0;
            while (at < PAGES && q->kept[at])
                at++;
            if (at == PAGES) {
                if (!prefix_n_idle(p))
                    continue;
                at = prefix_evict(p);
                assert_true(q->kept[at] && !q->used[at]);
                for (uint32_t k = 0; k < PAGES; k++)
                    assert_false(q->kept[k] && q->parent[k] == at); /* a leaf */
                assert_int_equal(prefix_find(p, &q->key[at]), PREFIX_NONE);
            }
            memset(&q->key[at], 0, sizeof q->key[at]);
            names++;
            memcpy(q->key[at].b + draw(&state, 2) * 4, &names, sizeof names); /* many in one bucket, too */
            q->parent[at] = n_chain[c] ? chain_of[c][n_chain[c] - 1] : PREFIX_NONE;
            prefix_put(p, at, &q->key[at], q->parent[at]);
            q->kept[at] = true;
            q->used[at] = 1;
            chain_of[c][n_chain[c]++] = at;
        }
        uint32_t idle = 0;
        for (uint32_t k = 0; k < PAGES; k++) {
            idle += q->kept[k] && !q->used[k];
            assert_int_equal(prefix_has(p, k), q->kept[k]);
        }
        assert_int_equal(prefix_n_idle(p), idle);
    }
    prefix_close(p);
    free(q);
}

static int start(void **s)
{
    (void)s;
    return kern_open(&(struct kern_opts){.threads = 2}, &dev, NULL);
}

static int stop(void **s)
{
    (void)s;
    kern_close(dev);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bits),     cmocka_unit_test(test_pages), cmocka_unit_test(test_never_written),
        cmocka_unit_test(test_eviction), cmocka_unit_test(test_keys),  cmocka_unit_test(test_table),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
