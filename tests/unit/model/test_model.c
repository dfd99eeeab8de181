/* test_model.c - loading, sequences and pages, and that a step's results do not depend on the batch. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "model/model.h"
#include "tiny.h"

static struct kern_dev *dev;

static struct model *open_tiny(const struct tiny *t, struct model_opts o)
{
    struct model *m = NULL;
    struct err e = {0};
    o.dir = t->dir;
    if (model_open(dev, &o, &m, &e))
        fail_msg("%s", e.msg);
    return m;
}

static const struct model_opts defaults = {
    .precision = MODEL_AUTO, .kv_type = MODEL_KV_AUTO, .max_rows = 64, .max_logits = 64, .max_seqs = 8};

/* The loader names what is wrong. */
static void test_bad_directories(void **s)
{
    (void)s;
    static const struct {
        struct tiny t;
        const char *says;
    } bad[] = {
        {{.drop = "model.layers.1.mlp.up_proj.weight"}, "model.layers.1.mlp.up_proj.weight is missing"},
        {{.drop = "model.norm.weight"}, "model.norm.weight is missing"},
        {{.qwen2 = true, .drop = "model.layers.0.self_attn.k_proj.bias"},
         "model.layers.0.self_attn.k_proj.bias is missing"},
        {{.reshape = "model.layers.0.self_attn.o_proj.weight"}, "self_attn.o_proj.weight: shape is not [64, 64]"},
        {{.reshape = "model.layers.0.input_layernorm.weight"}, "input_layernorm.weight: not a float tensor"},
        {{.nan = "model.layers.1.post_attention_layernorm.weight"}, "element 0 is not a finite number"},
        {{.extra = "model.layers.0.self_attn.q_norm.weight"}, "q_norm.weight is not part of a llama model"},
        {{.config = "{}"}, "\"model_type\" is missing"},
        {{.config = "{\"model_type\": \"gpt2\"}"}, "gpt2 is not supported"},
        {{.config = "{\"model_type\": \"llama\", \"hidden_act\": \"gelu\"}"}, "gelu is not supported"},
        {{.config = "{\"model_type\": \"llama\", \"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 2}}"},
         "yarn is not supported"},
        {{.config = "{\"model_type\": \"llama\", \"rope_parameters\": {\"partial_rotary_factor\": 0.5}}"},
         "partial_rotary_factor"},
        {{.config = "{\"model_type\": \"llama\", \"num_hidden_layers\": 1e9}"}, "num_hidden_layers"},
        {{.config = "{\"model_type\": \"llama\", \"num_hidden_layers\": 2, \"hidden_size\": 64, \"intermediate_size\": "
                    "96, \"num_attention_heads\": 3, \"num_key_value_heads\": 2, \"vocab_size\": 9, "
                    "\"max_position_embeddings\": 9, \"head_dim\": 16}"},
         "3 attention heads cannot share 2"},
        {{.config = "[1"}, "config.json"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct tiny t = bad[i].t;
        struct model_opts o = defaults;
        struct model *m = NULL;
        struct err e = {0};
        tiny_make(&t);
        o.dir = t.dir;
        assert_int_not_equal(model_open(dev, &o, &m, &e), 0);
        assert_null(m);
        if (!strstr(e.msg, bad[i].says) || !strstr(e.msg, t.dir))
            fail_msg("case %zu: \"%s\" does not say \"%s\" and the directory", i, e.msg, bad[i].says);
        tiny_remove(&t);
    }
}

static void test_bad_options(void **s)
{
    (void)s;
    struct tiny t = {.tied = true};
    tiny_make(&t);
    const struct model_opts bad[] = {
        {.dir = "/nonexistent", .precision = MODEL_AUTO, .kv_type = MODEL_KV_AUTO},
        {.dir = t.dir, .precision = MODEL_INT8, .kv_type = MODEL_KV_AUTO},
        {.dir = t.dir, .precision = MODEL_AUTO, .kv_type = MODEL_KV_AUTO, .kv_bytes = 1000},
        {.dir = t.dir, .precision = MODEL_AUTO, .kv_type = MODEL_KV_AUTO, .max_context = 1000},
        {.dir = t.dir, .precision = MODEL_AUTO, .kv_type = MODEL_KV_AUTO, .recovery = "/nonexistent"},
        {.dir = t.dir, .precision = MODEL_AUTO, .kv_type = MODEL_KV_AUTO, .max_rows = 8, .max_logits = 9},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct model *m = NULL;
        struct err e = {0};
        assert_int_not_equal(model_open(dev, &bad[i], &m, &e), 0);
        assert_null(m);
        assert_true(e.msg[0]);
    }
    tiny_remove(&t);
}

/* Logits of every token of ids, fed in chunks; f32 [n][TINY_VOCAB]. */
static void run(struct model *m, const int32_t *ids, uint32_t n, uint32_t chunk, float *out)
{
    uint32_t seq;
    struct err e = {0};
    assert_int_equal(seq_open(m, &seq), 0);
    assert_int_equal(seq_reserve(m, seq, n), 0);
    for (uint32_t at = 0; at < n; at += chunk) {
        uint32_t k = n - at < chunk ? n - at : chunk;
        struct model_span sp = {.seq = seq, .tokens = ids + at, .n_tokens = k, .n_logits = k};
        if (model_step(m, &sp, 1, &e))
            fail_msg("%s", e.msg);
        for (uint32_t i = 0; i < k; i++)
            model_logits(m, i, out + (size_t)(at + i) * TINY_VOCAB);
    }
    assert_int_equal(seq_len(m, seq), n);
    seq_close(m, seq);
}

#define N 61u

static void test_chunks_and_batches(void **s)
{
    (void)s;
    static const int kv_types[] = {KERN_F32, KERN_BF16, KERN_S8};
    struct tiny t = {.qwen2 = true};
    tiny_make(&t);
    for (size_t kind = 0; kind < 3; kind++) {
        struct model_opts o = defaults;
        o.kv_type = kv_types[kind];
        struct model *m = open_tiny(&t, o);
        uint32_t free_pages = kv_pages_free(m);
        float *a = calloc(N * TINY_VOCAB, 4), *b = calloc(N * TINY_VOCAB, 4);
        int32_t ids[N], other[N];
        tiny_ids(ids, N, 1);
        tiny_ids(other, N, 2);
        run(m, ids, N, N, a);
        for (uint32_t chunk = 1; chunk < 40; chunk += 12) {
            run(m, ids, N, chunk, b);
            assert_memory_equal(a, b, N * TINY_VOCAB * 4);
        }
        /* beside two other sequences, one of them decoding */
        uint32_t q[3];
        struct err e = {0};
        for (int i = 0; i < 3; i++) {
            assert_int_equal(seq_open(m, &q[i]), 0);
            assert_int_equal(seq_reserve(m, q[i], N), 0);
        }
        for (uint32_t at = 0; at + 5 <= N; at += 5) {
            struct model_span sp[3] = {{.seq = q[0], .tokens = other + at % 7, .n_tokens = 1, .n_logits = 1},
                                       {.seq = q[1], .tokens = ids + at, .n_tokens = 5, .n_logits = 5},
                                       {.seq = q[2], .tokens = other + at, .n_tokens = 5, .n_logits = 0}};
            assert_int_equal(model_step(m, sp, 3, &e), 0);
            for (uint32_t i = 0; i < 5; i++)
                model_logits(m, 1 + i, b + (size_t)(at + i) * TINY_VOCAB);
        }
        assert_memory_equal(a, b, 60 * TINY_VOCAB * 4);
        for (int i = 0; i < 3; i++)
            seq_close(m, q[i]);
        assert_int_equal(kv_pages_free(m), free_pages);
        free(a);
        free(b);
        model_close(m);
    }
    tiny_remove(&t);
}

/* fork and truncate: the branches compute what a sequence of their own would. */
static void test_fork_truncate(void **s)
{
    (void)s;
    struct tiny t = {.tied = true};
    tiny_make(&t);
    struct model *m = open_tiny(&t, defaults);
    uint32_t all = kv_pages_free(m), root, twin;
    int32_t ids[N], tail[N];
    float *want = calloc(N * TINY_VOCAB, 4), got[TINY_VOCAB];
    struct err e = {0};
    tiny_ids(ids, N, 3);
    memcpy(tail, ids, sizeof tail);
    for (uint32_t i = 40; i < N; i++)
        tail[i] = (ids[i] + 5) % TINY_VOCAB;
    run(m, tail, N, 1, want);
    assert_int_equal(seq_open(m, &root), 0);
    assert_int_equal(seq_reserve(m, root, N), 0);
    struct model_span sp = {.seq = root, .tokens = ids, .n_tokens = 50};
    assert_int_equal(model_step(m, &sp, 1, &e), 0);
    seq_truncate(m, root, 40);
    assert_int_equal(seq_fork(m, root, N, &twin), 0);
    assert_int_equal(all - kv_pages_free(m), 3); /* one page shared, two partial ones */
    assert_int_equal(seq_reserve(m, root, N), 0);
    for (int branch = 0; branch < 2; branch++) { /* the first goes elsewhere, and must not disturb the second */
        const int32_t *own = branch ? tail : ids;
        for (uint32_t i = 40; i < N; i++) {
            struct model_span one = {.seq = branch ? twin : root, .tokens = own + i, .n_tokens = 1, .n_logits = 1};
            assert_int_equal(model_step(m, &one, 1, &e), 0);
            model_logits(m, 0, got);
            if (branch)
                assert_memory_equal(got, want + (size_t)i * TINY_VOCAB, sizeof got);
        }
    }
    seq_close(m, twin);
    seq_close(m, root);
    seq_close(m, MODEL_NO_SEQ);
    assert_int_equal(kv_pages_free(m), all);
    free(want);
    model_close(m);
    tiny_remove(&t);
}

static void test_limits(void **s)
{
    (void)s;
    struct tiny t = {.tied = true};
    tiny_make(&t);
    struct model_opts o = defaults;
    o.kv_bytes = 1;
    struct model *m = open_tiny(&t, defaults);
    size_t page = model_info(m)->page_bytes;
    model_close(m);
    o.kv_bytes = 8 * page;
    m = open_tiny(&t, o);
    assert_int_equal(kv_pages_free(m), 8);
    uint32_t a, b, c;
    struct err e = {0};
    assert_int_equal(seq_open(m, &a), 0);
    assert_int_equal(seq_open(m, &b), 0);
    assert_int_equal(seq_reserve(m, a, 257), -E2BIG);
    assert_int_equal(seq_reserve(m, a, 200), 0);
    assert_int_equal(seq_reserve(m, b, 33), -ENOSPC);
    assert_int_equal(seq_fork(m, b, 40, &c), -ENOSPC);
    assert_int_equal(kv_pages_free(m), 1);
    int32_t ids[70] = {0};
    struct model_span sp = {.seq = b, .tokens = ids, .n_tokens = 1, .n_logits = 1};
    assert_int_equal(model_step(m, &sp, 1, &e), -EINVAL); /* not reserved */
    sp.seq = a;
    sp.n_tokens = 65;
    assert_int_equal(model_step(m, &sp, 1, &e), -EINVAL); /* max_rows */
    sp.n_tokens = 2;
    sp.n_logits = 3;
    assert_int_equal(model_step(m, &sp, 1, &e), -EINVAL);
    sp.n_logits = 1;
    ids[1] = TINY_VOCAB;
    assert_int_equal(model_step(m, &sp, 1, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "vocabulary"));
    ids[1] = -1;
    assert_int_equal(model_step(m, &sp, 1, &e), -EINVAL);
    ids[1] = 0;
    struct model_span twice[2] = {sp, sp};
    assert_int_equal(model_step(m, twice, 2, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "already"));
    struct kern_slot wide = {.max_rank = 257};
    sp.pets = &(struct model_pet){.slot = &wide, .weight = 1};
    sp.n_pets = 1;
    assert_int_equal(model_step(m, &sp, 1, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "rank 257"));
    assert_int_equal(seq_len(m, a), 0);
    for (int i = 0; i < 6; i++)
        assert_int_equal(seq_open(m, &c), 0);
    assert_int_equal(seq_open(m, &c), -ENOSPC);
    model_close(m);
    tiny_remove(&t);
}

/* A step appends to pages of the sequence's own alone, and never past max_context, where the last page has room. */
static void test_reserved(void **s)
{
    (void)s;
    struct tiny t = {.tied = true};
    tiny_make(&t);
    struct model_opts o = defaults;
    o.max_context = 40;
    struct model *m = open_tiny(&t, o);
    uint32_t root, twin;
    int32_t ids[40] = {0};
    struct err e = {0};
    assert_int_equal(seq_open(m, &root), 0);
    assert_int_equal(seq_reserve(m, root, 40), 0);
    struct model_span sp = {.seq = root, .tokens = ids, .n_tokens = 40};
    assert_int_equal(model_step(m, &sp, 1, &e), 0);
    sp.n_tokens = 1;
    assert_int_equal(model_step(m, &sp, 1, &e), -EINVAL);
    assert_int_equal(seq_fork(m, root, 40, &twin), 0);
    seq_truncate(m, twin, 20);
    sp.seq = twin;
    assert_int_equal(model_step(m, &sp, 1, &e), -EINVAL); /* its page is root's as well */
    assert_non_null(strstr(e.msg, "reserved"));
    assert_int_equal(seq_reserve(m, twin, 21), 0);
    assert_int_equal(model_step(m, &sp, 1, &e), 0);
    assert_int_equal(seq_len(m, twin), 21);
    model_close(m);
    tiny_remove(&t);
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

/* The pooled hidden states of ids, fed in chunks, beside another sequence. */
static void pool(struct model *m, const int32_t *ids, uint32_t n, uint32_t chunk, enum model_pool how, double *out)
{
    uint32_t seq[2];
    struct err e = {0};
    int32_t other[N];
    tiny_ids(other, N, 5);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(seq_open(m, &seq[i]), 0);
        assert_int_equal(seq_reserve(m, seq[i], N), 0);
    }
    memset(out, 0, model_info(m)->hidden * sizeof *out);
    for (uint32_t at = 0; at < n; at += chunk) {
        uint32_t k = n - at < chunk ? n - at : chunk;
        struct model_span sp[2] = {{.seq = seq[0], .tokens = other + at, .n_tokens = k, .n_logits = 1},
                                   {.seq = seq[1], .tokens = ids + at, .n_tokens = k, .pool = how, .pooled = out}};
        bool both = chunk % 2 && chunk < 30;
        if (model_step(m, both ? sp : sp + 1, both ? 2 : 1, &e))
            fail_msg("%s", e.msg);
    }
    for (int i = 0; i < 2; i++)
        seq_close(m, seq[i]);
}

static void test_pooling(void **s)
{
    (void)s;
    struct tiny t = {.qwen2 = false};
    tiny_make(&t);
    struct model *m = open_tiny(&t, defaults);
    uint32_t hidden = model_info(m)->hidden;
    size_t bytes = hidden * sizeof(double);
    double *a = calloc(hidden, sizeof *a), *b = calloc(hidden, sizeof *b), *c = calloc(hidden, sizeof *c);
    int32_t ids[N];
    tiny_ids(ids, N, 1);
    for (enum model_pool how = MODEL_POOL_SUM; how <= MODEL_POOL_LAST; how++) {
        pool(m, ids, N, N, how, a);
        for (uint32_t chunk = 1; chunk < 40; chunk += 7) {
            pool(m, ids, N, chunk, how, b);
            assert_memory_equal(a, b, bytes);
        }
    }
    pool(m, ids, N, 9, MODEL_POOL_SUM, b);
    pool(m, ids, N - 1, 8, MODEL_POOL_SUM, c);
    double largest = 0;
    for (uint32_t i = 0; i < hidden; i++) {
        assert_true(fabs(b[i] - c[i] - a[i]) < 1e-9);
        largest = fmax(largest, fabs(a[i]));
    }
    assert_true(largest > 0.01);
    free(a);
    free(b);
    free(c);
    model_close(m);
    tiny_remove(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_directories),    cmocka_unit_test(test_bad_options),
        cmocka_unit_test(test_chunks_and_batches), cmocka_unit_test(test_pooling),
        cmocka_unit_test(test_fork_truncate),      cmocka_unit_test(test_limits),
        cmocka_unit_test(test_reserved),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
