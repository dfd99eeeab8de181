/* check_region.c - the region itself: lists of operations on devices with 1, 2 and 3 workers, memory, loading; and the
 * time of all products of SmolLM2-135M.
 *
 * A list of the dense operations (a decoder block without attention) must give the same bits whatever the number of
 * workers, the rows beside a row and the steps before: memcmp throughout, 1, 3, 8 and 33 rows.
 */
#include "tests/kernels/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ROWS 512

static void must(struct check *c, int rc, const struct err *e)
{
    if (rc) {
        check_fail(c, "%s", e->msg);
        fprintf(stderr, "check: %s\n", e->msg);
        exit(2);
    }
}

static struct kern_dev *open_dev(struct check *c, enum kern_level l, unsigned threads)
{
    struct kern_dev *d;
    struct err e;
    must(c, kern_open(&(struct kern_opts){.threads = threads, .max_level = kern_level_name(l)}, &d, &e), &e);
    return d;
}

static kmem take(struct check *c, struct kern_dev *d, size_t bytes)
{
    kmem m;
    struct err e;
    must(c, kern_alloc(d, bytes, &m, &e), &e);
    return m;
}

/* At *at, which moves on by the matrix's size; or in memory of its own, where at is NULL. */
static struct kern_mat random_mat(struct check *c, struct kern_dev *d, enum kern_type type, uint32_t n, uint32_t k,
                                  kmem *at)
{
    size_t size = type == KERN_S8 ? 1 : type == KERN_BF16 ? 2 : 4, values = (size_t)n * k;
    uint8_t *src = malloc(values * size);
    float *scale = malloc(n * sizeof *scale);
    if (!src || !scale)
        abort();
    uint64_t x = check_bits(c);
    for (size_t i = 0; i < values; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        float f = (float)(int32_t)(x >> 32) * 0x1p-35f; /* within 1/16 */
        if (type == KERN_S8)
            src[i] = (uint8_t)(x >> 56);
        else if (type == KERN_F32)
            memcpy(src + 4 * i, &f, 4);
        else
            memcpy(src + 2 * i, (uint8_t *)&f + 2, 2);
    }
    for (uint32_t i = 0; i < n; i++)
        scale[i] = 0.0005f * (1 + (float)(i % 7));
    struct kern_mat m;
    size_t bytes = kern_mat_bytes(type, n, k, false);
    kern_mat_init(&m, type, n, k, false, at ? *at : take(c, d, bytes));
    if (at)
        at->a += bytes;
    kern_mat_pack(d, &m, 0, n, src, scale, NULL);
    free(src);
    free(scale);
    return m;
}

static struct kern_act new_act(struct check *c, struct kern_dev *d, uint32_t rows, uint32_t k, enum kern_type type)
{
    struct kern_act a;
    uint32_t forms = kern_act_forms(d, type);
    kern_act_init(&a, rows, k, forms, take(c, d, kern_act_bytes(rows, k, forms)));
    return a;
}

/* ---- a block: embedding, norm, up, SwiGLU, down (added), norm of the logit rows, head ---- */

enum { HIDDEN = 200, FFN = 272, VOCAB = 523, ROWS = 40 };

struct block {
    struct kern_dev *d;
    struct kern_mat embed, up, down;
    struct kern_act normed, act, last;
    kmem x, gu, logits, gain;
    struct kern_op ops[8];
};

static void block_ops(struct block *b)
{
    struct kern_op ops[8] = {
        {.kind = KERN_OP_EMBED, .mat = &b->embed, .x = b->x, .ldx = HIDDEN},
        {.kind = KERN_OP_NORM, .x = b->x, .ldx = HIDDEN, .gain = b->gain, .eps = 1e-5f, .act = &b->normed},
        {.kind = KERN_OP_LINEAR, .mat = &b->up, .act = &b->normed, .y = b->gu, .ldy = 2 * FFN},
        {.kind = KERN_OP_SWIGLU, .x = b->gu, .ldx = 2 * FFN, .n = FFN, .act = &b->act},
        {.kind = KERN_OP_FORMS, .act = &b->act},
        {.kind = KERN_OP_LINEAR, .mat = &b->down, .act = &b->act, .y = b->x, .ldy = HIDDEN, .accumulate = true},
        {.kind = KERN_OP_NORM,
         .gathered = true,
         .x = b->x,
         .ldx = HIDDEN,
         .gain = b->gain,
         .eps = 1e-5f,
         .act = &b->last},
        {.kind = KERN_OP_LINEAR, .gathered = true, .mat = &b->embed, .act = &b->last, .y = b->logits, .ldy = VOCAB},
    };
    memcpy(b->ops, ops, sizeof ops);
}

static void block_open(struct check *c, struct block *b, enum kern_level l, unsigned threads, enum kern_type type)
{
    b->d = open_dev(c, l, threads);
    b->embed = random_mat(c, b->d, type, VOCAB, HIDDEN, NULL);
    b->up = random_mat(c, b->d, type, 2 * FFN, HIDDEN, NULL);
    b->down = random_mat(c, b->d, type, HIDDEN, FFN, NULL);
    b->normed = new_act(c, b->d, ROWS, HIDDEN, type);
    b->act = new_act(c, b->d, ROWS, FFN, type);
    b->last = new_act(c, b->d, ROWS, HIDDEN, type);
    b->x = take(c, b->d, ROWS * HIDDEN * 4);
    b->gu = take(c, b->d, ROWS * 2 * FFN * 4);
    b->logits = take(c, b->d, ROWS * VOCAB * 4);
    b->gain = take(c, b->d, HIDDEN * 4);
    float gain[HIDDEN];
    check_fill(c, gain, HIDDEN, 1);
    kern_upload(b->d, b->gain, gain, sizeof gain);
    block_ops(b);
}

static void block_close(struct block *b)
{
    kmem all[] = {b->embed.w,  b->up.w, b->down.w, b->normed.f32, b->act.f32,
                  b->last.f32, b->x,    b->gu,     b->logits,     b->gain};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        kern_free(b->d, all[i]);
    kern_close(b->d);
}

/* Runs tokens [first, first + n) with every `stride`th row's logits; copies logits out. */
static uint32_t block_run(struct block *b, uint32_t first, uint32_t n, uint32_t stride, float *logits)
{
    int32_t token[ROWS];
    uint32_t pos[ROWS], rows[ROWS], n_logits = 0;
    for (uint32_t i = 0; i < n; i++) {
        token[i] = (int32_t)((first + i) * 97 % VOCAB);
        pos[i] = 0;
        if (i % stride == 0)
            rows[n_logits++] = i;
    }
    struct kern_step s = {.n_rows = n, .token = token, .pos = pos, .logit_rows = rows, .n_logits = n_logits};
    kern_run(b->d, b->ops, 8, &s);
    kern_download(b->d, logits, b->logits, (size_t)n_logits * VOCAB * sizeof(float));
    return n_logits;
}

static void test_block(struct check *c, enum kern_level l, enum kern_type type, unsigned threads)
{
    static const char *const names[] = {"f32", "bf16", "s8"};
    static const uint32_t runs[] = {1, 3, 8, 33};
    if (!check_case(c, l, "region/%s block threads=%u", names[type], threads))
        return;
    uint64_t seed = c->rng = 12345; /* the same weights whatever the case */
    struct block one, b;
    block_open(c, &one, l, 1, type);
    c->rng = seed;
    block_open(c, &b, l, threads, type);
    float *want = malloc(ROWS * VOCAB * sizeof *want), *got = malloc(ROWS * VOCAB * sizeof *got);
    if (!want || !got)
        abort();
    block_run(&one, 0, ROWS, 1, want);
    for (uint32_t i = 0; i < ROWS * VOCAB; i++)
        if (!isfinite(want[i]))
            check_fail(c, "logit %u: %g", i, (double)want[i]);
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++)
        for (uint32_t r = 0; r < ROWS; r += runs[i]) {
            uint32_t n = ROWS - r < runs[i] ? ROWS - r : runs[i], stride = i == 3 ? 5 : 1;
            uint32_t n_logits = block_run(&b, r, n, stride, got);
            for (uint32_t j = 0; j < n_logits; j++)
                check_same(c, "logits of a row", got + j * VOCAB, want + (r + j * stride) * VOCAB, VOCAB * 4);
        }
    block_run(&b, 0, 1, ROWS, got);
    for (int i = 0; i < 300; i++)
        block_run(&b, 0, 3, 1, got + VOCAB);
    check_same(c, "row 0 after many steps", got + VOCAB, want, 3 * VOCAB * 4);
    free(want);
    free(got);
    block_close(&one);
    block_close(&b);
}

/* ---- memory, loading, names ---- */

static void count_up(void *ctx, size_t i)
{
    ((_Atomic unsigned char *)ctx)[i]++;
}

static void test_device(struct check *c, enum kern_level l)
{
    if (!check_case(c, l, "device"))
        return;
    struct kern_dev *d = open_dev(c, l, 3);
    if (kern_level(d) != l || kern_threads(d) != 3)
        check_fail(c, "level %d, %u threads", kern_level(d), kern_threads(d));
    static const size_t sizes[] = {0, 1, 63, 64, 4096, (1 << 20) - 1, 1 << 20, (5 << 20) + 7};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        kmem m = take(c, d, sizes[i]);
        const uint8_t *p = (const uint8_t *)m.a;
        if (m.a % 64)
            check_fail(c, "%zu bytes at %p", sizes[i], (const void *)p);
        for (size_t j = 0; j < sizes[i]; j++)
            if (p[j]) {
                check_fail(c, "%zu bytes are not clear", sizes[i]);
                break;
            }
        memset((void *)m.a, 1, sizes[i]);
        kern_free(d, m);
    }
    unsigned char seen[1000] = {0};
    kern_parallel(d, sizeof seen, count_up, seen);
    for (size_t i = 0; i < sizeof seen; i++)
        if (seen[i] != 1)
            check_fail(c, "item %zu done %d times", i, seen[i]);
    kern_parallel(d, 0, count_up, NULL);
    struct err e;
    kmem none = {0};
    if (kern_alloc(d, SIZE_MAX - 100, &none, &e) != -ENOMEM || none.a)
        check_fail(c, "memory without end");
    kern_free(d, none);
    kern_close(d);
    kern_close(NULL);
    if (kern_open(&(struct kern_opts){.max_level = "sse9"}, &d, &e) != -EINVAL || !strstr(e.msg, "sse9"))
        check_fail(c, "an unknown level: %s", e.msg);
}

static void test_sizes(struct check *c)
{
    if (!check_case(c, KERN_SCALAR, "sizes"))
        return;
    if (kern_mat_bytes(KERN_F32, UINT32_MAX, UINT32_MAX, true) || kern_mat_bytes(KERN_S8, 0, 5, false) ||
        kern_mat_bytes(KERN_BF16, UINT32_MAX - 3, 70, false))
        check_fail(c, "sizes that do not fit, or of nothing, are not 0");
    if (kern_mat_bytes(KERN_S8, 17, 65, true) != 32 * 128 + 2 * 32 * 4)
        check_fail(c, "17 by 65 in S8: %zu", kern_mat_bytes(KERN_S8, 17, 65, true));
    if (kern_act_bytes(UINT32_MAX, UINT32_MAX, KERN_ACT_BF16))
        check_fail(c, "activations that do not fit");
}

static void test_profile(struct check *c)
{
    if (!check_case(c, KERN_SCALAR, "profile"))
        return;
    struct block b;
    block_open(c, &b, KERN_SCALAR, 2, KERN_S8);
    float *got = malloc(ROWS * VOCAB * sizeof *got);
    if (!got)
        abort();
    uint64_t ns[KERN_OP_KINDS];
    kern_profile(b.d, ns);
    block_run(&b, 0, ROWS, 1, got);
    kern_profile(b.d, ns);
    if (!ns[KERN_OP_LINEAR] || !ns[KERN_OP_NORM] || ns[KERN_OP_ATTN])
        check_fail(c, "linear %lu ns, norm %lu ns, attention %lu ns", (unsigned long)ns[KERN_OP_LINEAR],
                   (unsigned long)ns[KERN_OP_NORM], (unsigned long)ns[KERN_OP_ATTN]);
    kern_profile(b.d, ns);
    if (ns[KERN_OP_LINEAR])
        check_fail(c, "the profile was not reset");
    free(got);
    block_close(&b);
}

/* ---- times ---- */

enum { LAYERS = 30 };

struct pass {
    struct kern_dev *d;
    struct kern_mat qkv[LAYERS], o[LAYERS], up[LAYERS], down[LAYERS], head;
    struct kern_act hidden, ffn;
    kmem y, small, weights;
    struct kern_op ops[3 * 4 * LAYERS + 1];
    size_t n_ops;
    struct kern_step step;
};

static void pass_op(struct pass *p, const struct kern_mat *m, const struct kern_act *a, bool gathered)
{
    p->ops[p->n_ops++] =
        (struct kern_op){.kind = KERN_OP_LINEAR, .mat = m, .act = a, .y = p->y, .ldy = m->n, .gathered = gathered};
}

static void pass_open(struct check *c, struct pass *p, enum kern_level l, unsigned threads, enum kern_type type,
                      bool rows_too)
{
    p->n_ops = 0;
    p->d = open_dev(c, l, threads);
    p->hidden = new_act(c, p->d, MAX_ROWS, 576, type);
    p->ffn = new_act(c, p->d, MAX_ROWS, 1536, type);
    p->y = take(c, p->d, (size_t)MAX_ROWS * 49152 * 4);
    p->small = take(c, p->d, 4096 * 4);
    check_fill(c, (float *)p->hidden.f32.a, (size_t)MAX_ROWS * 576, 1);
    check_fill(c, (float *)p->ffn.f32.a, (size_t)MAX_ROWS * 1536, 1);
    struct kern_op norm = {.kind = KERN_OP_NORM, .x = p->y, .ldx = 576, .gain = p->small, .act = &p->hidden};
    struct kern_op swiglu = {.kind = KERN_OP_SWIGLU, .x = p->y, .ldx = 3072, .n = 1536, .act = &p->ffn};
    size_t size = type == KERN_S8 ? 1 : type == KERN_BF16 ? 2 : 4;
    kmem at = p->weights = take(c, p->d, size * (140u << 20)); /* in one piece, as a model has it */
    for (int i = 0; i < LAYERS; i++) {
        p->qkv[i] = random_mat(c, p->d, type, 960, 576, &at);
        p->o[i] = random_mat(c, p->d, type, 576, 576, &at);
        p->up[i] = random_mat(c, p->d, type, 3072, 576, &at);
        p->down[i] = random_mat(c, p->d, type, 576, 1536, &at);
        if (rows_too)
            p->ops[p->n_ops++] = norm;
        pass_op(p, &p->qkv[i], &p->hidden, false);
        pass_op(p, &p->o[i], &p->hidden, false);
        if (rows_too)
            p->ops[p->n_ops++] = norm;
        pass_op(p, &p->up[i], &p->hidden, false);
        if (rows_too)
            p->ops[p->n_ops++] = swiglu;
        pass_op(p, &p->down[i], &p->ffn, false);
    }
    p->head = random_mat(c, p->d, type, 49152, 576, &at);
    pass_op(p, &p->head, &p->hidden, true);
}

static void pass_close(struct pass *p)
{
    kmem rest[] = {p->weights, p->hidden.f32, p->ffn.f32, p->y, p->small};
    for (size_t i = 0; i < sizeof rest / sizeof rest[0]; i++)
        kern_free(p->d, rest[i]);
    kern_close(p->d);
}

static void pass_run(void *ctx)
{
    struct pass *p = ctx;
    kern_run(p->d, p->ops, p->n_ops, &p->step);
}

struct reading {
    const uint64_t *p;
    size_t n;
    volatile uint64_t sum;
};

static void read_all(void *ctx)
{
    struct reading *r = ctx;
    uint64_t a = 0, b = 0, c = 0, d = 0;
    for (size_t i = 0; i + 4 <= r->n; i += 4) {
        a += r->p[i];
        b += r->p[i + 1];
        c += r->p[i + 2];
        d += r->p[i + 3];
    }
    r->sum = a + b + c + d;
}

/* As many bytes as a pass reads, by one thread: what the passes over few rows are to be compared with. */
static void bench_reading(struct check *c)
{
    if (!check_case(c, KERN_SCALAR, "pass/reading threads=1"))
        return;
    struct kern_dev *d = open_dev(c, KERN_SCALAR, 1);
    size_t bytes = (size_t)576 * (LAYERS * (960 + 576 + 3072 + 1536) + 49152);
    kmem m = take(c, d, bytes);
    memset((void *)m.a, 1, bytes);
    struct reading r = {.p = (const uint64_t *)m.a, .n = bytes / 8};
    check_report(c, check_time(read_all, &r), (double)bytes, 0);
    kern_free(d, m);
    kern_close(d);
}

/* All linears and the head once; rows_too: with the norms and SwiGLUs between them. */
static void bench_pass(struct check *c, enum kern_level l, enum kern_type type, bool rows_too)
{
    static const char *const names[] = {"f32", "bf16", "s8"};
    static const uint32_t rows[] = {1, 4, 8, 16, 32, 128, 512};
    static struct pass p;
    uint32_t *logit_rows = malloc(MAX_ROWS * sizeof *logit_rows);
    if (!logit_rows)
        abort();
    for (unsigned threads = 1; threads <= 2; threads++) {
        bool open = false;
        for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
            if (!check_case(c, l, "pass/%s%s rows=%u threads=%u", names[type], rows_too ? "+rows" : "", rows[i],
                            threads))
                continue;
            if (!open)
                pass_open(c, &p, l, threads, type, rows_too);
            open = true;
            for (uint32_t r = 0; r < rows[i]; r++)
                logit_rows[r] = r;
            p.step = (struct kern_step){.n_rows = rows[i], .logit_rows = logit_rows, .n_logits = rows[i]};
            struct kern_op forms[] = {{.kind = KERN_OP_FORMS, .act = &p.hidden},
                                      {.kind = KERN_OP_FORMS, .act = &p.ffn}};
            kern_run(p.d, forms, 2, &p.step);
            double weights = 576.0 * (LAYERS * (960 + 576 + 3072 + 1536) + 49152);
            double bytes = weights * (type == KERN_S8 ? 1 : type == KERN_BF16 ? 2 : 4);
            double t = threads > 1 ? check_time_wall(pass_run, &p) : check_time(pass_run, &p);
            check_report(c, t, bytes, 2 * weights * rows[i]);
        }
        if (open)
            pass_close(&p);
    }
    free(logit_rows);
}

void check_region(struct check *c)
{
    if (c->bench)
        bench_reading(c);
    for (int l = 0; l <= (int)c->best; l++) {
        if (c->bench) {
            bench_pass(c, (enum kern_level)l, KERN_S8, false);
            bench_pass(c, (enum kern_level)l, KERN_S8, true);
            bench_pass(c, (enum kern_level)l, KERN_BF16, false);
            continue;
        }
        for (int type = KERN_F32; type <= KERN_S8; type++)
            for (unsigned threads = 1; threads <= 3; threads++)
                test_block(c, (enum kern_level)l, (enum kern_type)type, threads);
        test_device(c, (enum kern_level)l);
    }
    if (!c->bench) {
        test_sizes(c);
        test_profile(c);
    }
}
