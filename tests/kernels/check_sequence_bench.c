/* check_sequence_bench.c - times of the sequence kernels on one thread, in the shapes of a 135M model: 9 heads of 64
 * with 3 KV heads, width 576, FFN 1536, vocabulary 49,152.
 *
 * GB/s counts the bytes that must be read once: factors, or keys and values. "read" is a plain sum over the same
 * memory, the ceiling to compare with in the same run. Memory stays from one level to the next and is freed at exit.
 */
#include "tests/kernels/check_sequence.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/cpu/sequence.h"

enum { MODULES = 32, LAYERS = 30, SITES = 7, RANK = 8, ROWS = 256, WIDE = 1536 };

static const uint32_t shapes[SITES][2] = {{576, 576},  {576, 192},  {576, 192}, {576, 576},
                                          {576, 1536}, {576, 1536}, {1536, 576}};

struct bench {
    const struct cpu_table *t;
    struct kern_lr (*lr)[LAYERS][SITES]; /* [MODULES] */
    struct kern_lr big;
    uint8_t *mem;
    size_t bytes;
    float *x, *y, *t_mem;
    uint32_t rows[ROWS];
    struct cpu_attn attn;
    enum kern_type type;
    uint32_t seqs, layers, n_rows;
    uint32_t *pages;
    const float *cos_sin;
    float *logits, *logits_now;
    uint32_t vocab;
    struct kern_sample sample;
};

static void *big_alloc(size_t bytes)
{
    uint8_t *p = mmap(NULL, bytes + (2u << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        abort();
    p = (uint8_t *)(((uintptr_t)p + (2u << 20) - 1) & ~(uintptr_t)((2u << 20) - 1));
    madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

static void read_all(void *ctx)
{
    struct bench *b = ctx;
    const uint64_t *p = (const uint64_t *)b->mem;
    uint64_t s[8] = {0};
    for (size_t i = 0; i + 8 <= b->bytes / 8; i += 8)
        for (int j = 0; j < 8; j++)
            s[j] += p[i + (size_t)j];
    volatile uint64_t sink = s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
    (void)sink;
}

static void report(struct check *c, void (*fn)(void *), struct bench *b, double bytes, double ops)
{
    check_report(c, check_time(fn, b), bytes, ops);
}

/* ---- low rank ---- */

static void make_modules(struct check *c, struct bench *b)
{
    size_t layer = 0;
    for (int s = 0; s < SITES; s++)
        layer += kern_lr_bytes(KERN_BF16, RANK, shapes[s][0], shapes[s][1]);
    b->bytes = layer * LAYERS * MODULES;
    b->mem = big_alloc(b->bytes + (4u << 20));
    b->lr = calloc(MODULES, sizeof *b->lr);
    float *a = malloc(WIDE * 64 * 4), *bb = malloc(WIDE * 64 * 4);
    if (!b->lr || !a || !bb)
        abort();
    check_fill(c, a, WIDE * 64, 0.1f);
    check_fill(c, bb, WIDE * 64, 0.1f);
    uint8_t *at = b->mem;
    for (int m = 0; m < MODULES; m++)
        for (int l = 0; l < LAYERS; l++)
            for (int s = 0; s < SITES; s++) {
                struct kern_lr *lr = &b->lr[m][l][s];
                kern_lr_pack(NULL, lr, KERN_BF16, RANK, shapes[s][0], shapes[s][1], a, bb, (kmem){(uintptr_t)at});
                lr->scale = 1;
                at += kern_lr_bytes(KERN_BF16, RANK, shapes[s][0], shapes[s][1]);
            }
    kern_lr_pack(NULL, &b->big, KERN_BF16, 64, 576, 1536, a, bb, (kmem){(uintptr_t)at});
    b->big.scale = 1;
    b->x = big_alloc(ROWS * WIDE * 4);
    b->y = big_alloc(ROWS * WIDE * 4);
    b->t_mem = big_alloc(ROWS * 64 * 4);
    check_fill(c, b->x, ROWS * WIDE, 1);
    for (uint32_t i = 0; i < ROWS; i++)
        b->rows[i] = i;
    free(a);
    free(bb);
}

static struct cpu_lr lr_args(const struct bench *b, const struct kern_lr *lr, uint32_t row, uint32_t rows)
{
    return (struct cpu_lr){.lr = lr,
                           .a = (const void *)lr->a.a,
                           .b = (const void *)lr->b.a,
                           .rows = b->rows + row,
                           .n_rows = rows,
                           .x = b->x,
                           .t = b->t_mem + row * 64,
                           .y = b->y,
                           .ldy = WIDE,
                           .weight = 1};
}

/* A decode step's: 32 rows, each with its own module. */
static void decode_down(void *ctx)
{
    struct bench *b = ctx;
    for (int l = 0; l < LAYERS; l++)
        for (int s = 0; s < SITES; s++)
            for (uint32_t m = 0; m < MODULES; m++) {
                struct cpu_lr a = lr_args(b, &b->lr[m][l][s], m, 1);
                b->t->lr_down(&a, 0, RANK);
            }
}

static void decode_up(void *ctx)
{
    struct bench *b = ctx;
    for (int l = 0; l < LAYERS; l++)
        for (int s = 0; s < SITES; s++)
            for (uint32_t n = 0; n < shapes[s][1]; n += 192)
                for (uint32_t m = 0; m < MODULES; m++) {
                    struct cpu_lr a = lr_args(b, &b->lr[m][l][s], m, 1);
                    b->t->lr_up(&a, n, n + 192);
                }
}

static void shared_down(void *ctx)
{
    struct bench *b = ctx;
    struct cpu_lr a = lr_args(b, &b->big, 0, b->n_rows);
    for (uint32_t i = 0; i < b->n_rows; i += 64) {
        struct cpu_lr p = a;
        p.rows += i;
        p.t += i * 64;
        p.n_rows = b->n_rows - i < 64 ? b->n_rows - i : 64;
        b->t->lr_down(&p, 0, 32);
        b->t->lr_down(&p, 32, 64);
    }
}

static void shared_up(void *ctx)
{
    struct bench *b = ctx;
    struct cpu_lr a = lr_args(b, &b->big, 0, b->n_rows);
    b->t->lr_up(&a, 0, 1536);
}

/* ---- a step's products with modules, through kern_run ---- */

enum { STEP_ROWS = 32, OPS = 4 };

struct step {
    struct kern_mat mat[LAYERS][OPS];
    struct kern_op ops[2 * LAYERS * OPS];
    struct kern_act act[2]; /* of width 576 and 1536 */
    struct kern_slot slot[MODULES];
    struct kern_group own[STEP_ROWS], same[STEP_ROWS], shared;
    struct kern_step s;
    struct kern_dev *d;
};

/* The four products of a layer: columns, width, first site, sites. */
static const uint32_t products[OPS][4] = {{960, 576, 0, 3}, {576, 576, 3, 1}, {3072, 576, 4, 2}, {576, 1536, 6, 1}};

static void make_step_ops(struct step *p, struct bench *b, uint32_t forms)
{
    float *y = big_alloc(STEP_ROWS * 3072 * 4), *t = big_alloc(kern_lr_scratch(STEP_ROWS, 3, RANK));
    for (int i = 0; i < 2; i++) {
        uint32_t k = i ? 1536 : 576;
        kern_act_init(&p->act[i], STEP_ROWS, k, forms,
                      (kmem){(uintptr_t)big_alloc(kern_act_bytes(STEP_ROWS, k, forms))});
        memcpy((void *)p->act[i].f32.a, b->x, (size_t)STEP_ROWS * k * 4);
    }
    for (uint32_t l = 0; l < LAYERS; l++)
        for (int i = 0; i < OPS; i++) {
            const uint32_t *q = products[i];
            size_t bytes = kern_mat_bytes(KERN_S8, q[0], q[1], false);
            uint8_t *w = big_alloc(bytes);
            memset(w, 1, bytes);
            kern_mat_init(&p->mat[l][i], KERN_S8, q[0], q[1], false, (kmem){(uintptr_t)w});
            struct kern_op *o = &p->ops[2 * (l * OPS + (uint32_t)i)];
            *o = (struct kern_op){.kind = KERN_OP_LR_DOWN,
                                  .act = &p->act[q[1] == 1536],
                                  .mat = &p->mat[l][i],
                                  .y = {(uintptr_t)y},
                                  .ldy = 3072,
                                  .t = {(uintptr_t)t},
                                  .n_sites = q[3]};
            for (uint32_t j = 0, n0 = 0; j < q[3]; n0 += shapes[q[2] + j][1], j++)
                o->sites[j] = (struct kern_op_site){l * SITES + q[2] + j, n0, shapes[q[2] + j][1]};
            o[1] = o[0];
            o[1].kind = KERN_OP_LINEAR;
        }
}

static void run_step(void *ctx)
{
    struct step *p = ctx;
    kern_run(p->d, p->ops, 2 * LAYERS * OPS, &p->s);
}

static void bench_step(struct check *c, enum kern_level l, struct bench *b)
{
    static struct step p;
    static int32_t tokens[STEP_ROWS];
    if (l < KERN_VNNI)
        return;
    if (!p.ops[0].n_sites)
        make_step_ops(&p, b, KERN_ACT_S8 | KERN_ACT_BF16);
    for (uint32_t m = 0; m < STEP_ROWS; m++) {
        p.slot[m] = (struct kern_slot){LAYERS * SITES, RANK, &b->lr[m][0][0]};
        p.own[m] = (struct kern_group){&p.slot[m], 1, 1, b->rows + m};
    }
    for (uint32_t m = 0; m < STEP_ROWS; m++)
        p.same[m] = (struct kern_group){&p.slot[0], 1, 1, b->rows + m};
    p.shared = (struct kern_group){&p.slot[0], 1, STEP_ROWS, b->rows};
    for (unsigned threads = 1; threads <= 2; threads++)
        for (int way = 0; way < 4; way++) {
            static const char *const names[] = {"no module", "one module", "32 modules", "32 groups of one module"};
            struct kern_opts o = {.threads = threads, .max_level = kern_level_name(l)};
            if (!check_case(c, l, "step s8 32 rows, %s, threads=%u", names[way], threads) || kern_open(&o, &p.d, NULL))
                continue;
            p.s = (struct kern_step){.n_rows = STEP_ROWS,
                                     .token = tokens,
                                     .pos = b->rows,
                                     .groups = way == 1   ? &p.shared
                                               : way == 2 ? p.own
                                                          : p.same,
                                     .n_groups = way == 0   ? 0
                                                 : way == 1 ? 1
                                                            : STEP_ROWS};
            check_report(c, threads > 1 ? check_time_wall(run_step, &p) : check_time(run_step, &p), 0, 0);
            kern_close(p.d);
        }
}

static void bench_lr(struct check *c, enum kern_level l)
{
    static struct bench b;
    if (!b.mem)
        make_modules(c, &b);
    b.t = check_table(c, l);
    double down = 0, up = 0;
    for (int s = 0; s < SITES; s++) {
        down += 2.0 * RANK * shapes[s][0] * LAYERS * MODULES;
        up += 2.0 * RANK * shapes[s][1] * LAYERS * MODULES;
    }
    if (check_case(c, l, "lr read"))
        report(c, read_all, &b, down + up, 0);
    if (check_case(c, l, "lr_down 32 rows, 32 modules, 7x30 sites"))
        report(c, decode_down, &b, down, 0);
    if (check_case(c, l, "lr_up 32 rows, 32 modules, 7x30 sites"))
        report(c, decode_up, &b, up, 0);
    for (b.n_rows = 4; b.n_rows <= ROWS; b.n_rows *= 8) {
        if (check_case(c, l, "lr_down rank 64, 576, %u rows of one", b.n_rows))
            report(c, shared_down, &b, 0, 2.0 * 64 * 576 * b.n_rows);
        if (check_case(c, l, "lr_up rank 64, 1536, %u rows of one", b.n_rows))
            report(c, shared_up, &b, 0, 2.0 * 64 * 1536 * b.n_rows);
    }
    bench_step(c, l, &b);
}

/* ---- attention ---- */

enum { TOKENS = 1024, KV_HEADS = 3, N_Q = 3, DIM = 64, SEQS = 32, KV_LAYERS = 8 };

static void make_pages(struct check *c, struct bench *b, enum kern_type type)
{
    size_t part = kern_kv_layer_bytes(type, KV_HEADS, DIM);
    uint32_t n_pages = (TOKENS + ROWS) / KERN_PAGE_TOKENS;
    b->type = type;
    b->bytes = part * KV_LAYERS * n_pages * SEQS;
    b->mem = big_alloc(b->bytes);
    b->pages = malloc(sizeof *b->pages * n_pages * SEQS);
    b->x = big_alloc(ROWS * WIDE * 4);
    b->y = big_alloc(ROWS * WIDE * 4);
    if (!b->pages)
        abort();
    check_fill(c, b->x, ROWS * WIDE, 1);
    for (uint32_t i = 0; i < n_pages * SEQS; i++)
        b->pages[i] = i % n_pages * SEQS + i / n_pages;
    for (size_t i = 0; i < n_pages * SEQS * KV_LAYERS; i++)
        for (uint32_t j = 0; j < KERN_PAGE_TOKENS; j++)
            check_table(c, c->best)
                ->kv_put[type](b->mem + part * i, j, KV_HEADS, DIM, b->x + (i * 7 + j) % 999, b->x + (i * 5 + j) % 777);
    b->attn = (struct cpu_attn){.ldq = 960,
                                .ldo = 576,
                                .n_q = N_Q,
                                .head_dim = DIM,
                                .n_kv_heads = KV_HEADS,
                                .scale = 0.125f,
                                .page_bytes = part * KV_LAYERS};
}

static void attend(struct bench *b, uint32_t seq, uint32_t layer, uint32_t pos, uint32_t rows)
{
    struct cpu_attn a = b->attn;
    a.base = b->mem + layer * (a.page_bytes / KV_LAYERS);
    a.pages = b->pages + seq * ((TOKENS + ROWS) / KERN_PAGE_TOKENS);
    a.pos0 = pos;
    a.n_rows = rows;
    for (a.kv_head = 0; a.kv_head < KV_HEADS; a.kv_head++) {
        a.q = b->x + a.kv_head * N_Q * DIM;
        a.out = b->y + a.kv_head * N_Q * DIM;
        b->t->attn[b->type](&a);
    }
}

static void decode_attn(void *ctx)
{
    struct bench *b = ctx;
    for (uint32_t l = 0; l < KV_LAYERS; l++)
        for (uint32_t s = 0; s < SEQS; s++)
            attend(b, s, l, TOKENS - 1, 1);
}

static void prefill_attn(void *ctx)
{
    struct bench *b = ctx;
    for (uint32_t i = 0; i < ROWS; i += 32)
        attend(b, 0, 0, b->n_rows + i, 32);
}

static void bench_attn(struct check *c, enum kern_level l)
{
    static struct bench all[3];
    static const char *const names[] = {"f32", "bf16", "s8"};
    for (int type = KERN_BF16; type <= KERN_S8; type++) {
        struct bench *b = &all[type];
        if (!b->mem)
            make_pages(c, b, (enum kern_type)type);
        b->t = check_table(c, l);
        if (check_case(c, l, "attn/%s read", names[type]))
            report(c, read_all, b, (double)b->bytes, 0);
        double bytes = (double)kern_kv_layer_bytes((enum kern_type)type, KV_HEADS, DIM) / KERN_PAGE_TOKENS;
        double ops = 4.0 * DIM * N_Q * KV_HEADS;
        if (check_case(c, l, "attn/%s decode 32 x 1,024 tokens, 8 layers", names[type]))
            report(c, decode_attn, b, bytes * TOKENS * SEQS * KV_LAYERS, ops * TOKENS * SEQS * KV_LAYERS);
        for (b->n_rows = 0; b->n_rows <= TOKENS; b->n_rows += TOKENS)
            if (check_case(c, l, "attn/%s prefill 256 rows at %u", names[type], b->n_rows))
                report(c, prefill_attn, b, 0, ops * ROWS * (b->n_rows + ROWS / 2.0));
    }
}

/* ---- the rest ---- */

static void put_rows(void *ctx)
{
    struct bench *b = ctx;
    size_t part = kern_kv_layer_bytes(b->type, KV_HEADS, DIM);
    for (uint32_t i = 0; i < 32; i++)
        b->t->kv_put[b->type](b->mem + part * (i * 13), i, KV_HEADS, DIM, b->x + i * 960, b->x + i * 960 + 192);
}

static void rope_rows(void *ctx)
{
    struct bench *b = ctx;
    for (uint32_t i = 0; i < 32; i++)
        b->t->rope(b->x + i * 960, b->cos_sin, 12, DIM);
}

static void sample_row(void *ctx)
{
    struct bench *b = ctx;
    struct kern_sampled out;
    memcpy(b->logits_now, b->logits, (size_t)b->vocab * 4);
    b->sample.position++;
    b->t->sample(b->logits_now, b->vocab, &b->sample, &out);
}

static void bench_sample(struct check *c, struct bench *b, enum kern_level l)
{
    static const struct {
        const char *name;
        float temperature, top_p, min_p;
        uint32_t top_k;
        int32_t n_top;
    } ways[] = {{"greedy", 0, 1, 0, 0, -1},
                {"greedy, 20 log-probabilities", 0, 1, 0, 0, 20},
                {"T=1", 1, 1, 0, 0, -1},
                {"T=0.7 top_p=0.9", 0.7f, 0.9f, 0, 0, -1},
                {"T=1 top_k=50", 1, 1, 0, 50, -1},
                {"T=0.7 top_k=40 top_p=0.9", 0.7f, 0.9f, 0, 40, -1},
                {"T=1 min_p=0.05", 1, 1, 0.05f, 0, -1},
                {"flat T=5 top_p=0.9", 5, 0.9f, 0, 0, -1}};
    for (b->vocab = 49152; b->vocab <= 151936; b->vocab += 151936 - 49152)
        for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
            b->sample = (struct kern_sample){.temperature = ways[i].temperature,
                                             .top_p = ways[i].top_p,
                                             .min_p = ways[i].min_p,
                                             .top_k = ways[i].top_k,
                                             .n_top = ways[i].n_top,
                                             .repetition = 1,
                                             .target = -1};
            if (check_case(c, l, "sample %u %s", b->vocab, ways[i].name))
                report(c, sample_row, b, 4.0 * b->vocab, 0);
        }
}

static void bench_rows(struct check *c, enum kern_level l)
{
    static struct bench b;
    if (!b.mem) {
        b.mem = big_alloc((size_t)32 * 13 * 65536);
        b.x = big_alloc(ROWS * WIDE * 4);
        b.logits = big_alloc(151936 * 4);
        b.logits_now = big_alloc(151936 * 4);
        check_fill(c, b.x, ROWS * WIDE, 1);
        check_fill(c, b.logits, 151936, 3);
    }
    b.t = check_table(c, l);
    static const char *const names[] = {"f32", "bf16", "s8"};
    for (int type = KERN_F32; type <= KERN_S8; type++) {
        b.type = (enum kern_type)type;
        if (check_case(c, l, "kv_put/%s 32 rows", names[type]))
            report(c, put_rows, &b, 32 * 2 * 192 * 4, 0);
    }
    static float cos_sin[DIM];
    for (int i = 0; i < DIM / 2; i++) {
        cos_sin[i] = cosf((float)i);
        cos_sin[DIM / 2 + i] = sinf((float)i);
    }
    b.cos_sin = cos_sin;
    if (check_case(c, l, "rope 32 rows"))
        report(c, rope_rows, &b, 32 * 768 * 4, 0);
    bench_sample(c, &b, l);
}

void check_sequence_bench(struct check *c, enum kern_level l)
{
    bench_lr(c, l);
    bench_attn(c, l);
    bench_rows(c, l);
}
