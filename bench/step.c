/* step.c - bench/step: times decode and prefill steps of a backbone without a server, and says where the time goes.
 *
 * Main thread; random token ids and random modules on every linear, made in memory. For each number of rows it fills
 * that many sequences with --context tokens, then times --steps decode steps, each with no module, with one shared
 * module and with a different one a row. Times are wall medians; the profile is kern_profile's share of each kind of
 * operation. Compare figures of one run only.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/num.h"
#include "tools/backbone.h"

#define MAX_ROWS 512u

static const char help[] =
    "Usage: step --model DIR [--rows 1,16,32] [--context N] [--steps N] [--rank N] [--prefill N] "
    "[options]\n\n" BACKBONE_HELP "  --rows LIST         sequences decoding at once (default 1,16,32)\n"
    "  --context N         tokens that each holds before (default 64)\n"
    "  --steps N           timed steps of each kind (default 50)\n"
    "  --rank N            of the random modules (default 8)\n"
    "  --prefill N         rows of a timed prefill step (default 256; 0: none)\n";

struct opts {
    uint32_t rows[16], n_rows, context, steps, rank, prefill;
};

struct slots {
    struct kern_slot slot[MAX_ROWS];
    struct kern_lr *lr;
    kmem mem;
    uint32_t n;
};

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* n random modules of one rank on all linears but the head. */
static int slots_make(struct backbone *b, uint32_t n, uint32_t rank, struct slots *s, struct err *e)
{
    const struct pet_target *t = model_pet_target(b->model);
    uint32_t sites = t->n_sites - 1;
    size_t bytes = 0, widest = 0;
    for (uint32_t i = 0; i < sites; i++) {
        bytes += kern_lr_bytes(t->type, rank, t->sites[i].k, t->sites[i].n);
        widest = t->sites[i].k > widest ? t->sites[i].k : widest;
        widest = t->sites[i].n > widest ? t->sites[i].n : widest;
    }
    float *v = malloc(widest * rank * sizeof *v);
    s->lr = calloc((size_t)n * t->n_sites, sizeof *s->lr);
    int r = v && s->lr ? kern_alloc(b->dev, bytes * n, &s->mem, e) : err_set(e, -ENOMEM, "out of memory");
    for (size_t i = 0; !r && i < widest * rank; i++)
        v[i] = 0.02f * (2 * rng_unit(1, 2, i) - 1);
    size_t at = 0;
    for (uint32_t m = 0; !r && m < n; m++) {
        struct kern_lr *lr = s->lr + (size_t)m * t->n_sites;
        for (uint32_t i = 0; i < sites; i++) {
            kern_lr_pack(b->dev, &lr[i], t->type, rank, t->sites[i].k, t->sites[i].n, v, v, kmem_at(s->mem, at));
            lr[i].scale = 1;
            at += kern_lr_bytes(t->type, rank, t->sites[i].k, t->sites[i].n);
        }
        s->slot[m] = (struct kern_slot){.n_sites = t->n_sites, .max_rank = rank, .site = lr};
    }
    s->n = n;
    free(v);
    return r;
}

static void slots_free(struct backbone *b, struct slots *s)
{
    kern_free(b->dev, s->mem);
    free(s->lr);
    *s = (struct slots){0};
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(const char *what, uint32_t rows, const char *modules, double *ms, uint32_t n, const uint64_t *ns)
{
    uint64_t sum = 0;
    qsort(ms, n, sizeof *ms, by_size);
    for (int k = 0; k < KERN_OP_KINDS; k++)
        sum += ns[k];
    printf("%s %3u rows, %-9s %8.3f ms a step (min %.3f), %8.0f tokens/s |", what, rows, modules, ms[n / 2], ms[0],
           rows / ms[n / 2] * 1e3);
    for (int k = 0; k < KERN_OP_KINDS; k++)
        if (sum && ns[k] * 200 >= sum)
            printf(" %s %.0f%%", kern_kind_name((enum kern_kind)k), 100.0 * (double)ns[k] / (double)sum);
    putchar('\n');
    fflush(stdout);
}

static int32_t token(uint32_t i, uint32_t vocab)
{
    return (int32_t)(rng_bits(3, 0, i) % vocab);
}

/* Fills seq with n tokens. */
static int fill(struct backbone *b, uint32_t seq, uint32_t n, struct err *e)
{
    int32_t ids[MAX_ROWS];
    int r = 0;
    for (uint32_t at = 0; !r && at < n; at += MAX_ROWS) {
        uint32_t k = n - at < MAX_ROWS ? n - at : MAX_ROWS;
        for (uint32_t i = 0; i < k; i++)
            ids[i] = token(seq * 7919 + at + i, model_info(b->model)->vocab);
        struct model_span sp = {.seq = seq, .tokens = ids, .n_tokens = k};
        r = model_step(b->model, &sp, 1, e);
    }
    return r;
}

static int decode(struct backbone *b, const struct opts *o, uint32_t rows, const struct slots *s, uint32_t different,
                  const char *name, struct err *e)
{
    static struct model_span sp[MAX_ROWS];
    static struct model_pet pet[MAX_ROWS];
    static struct kern_sample want[MAX_ROWS];
    static struct kern_sampled got[MAX_ROWS];
    static int32_t ids[MAX_ROWS];
    uint64_t ns[KERN_OP_KINDS];
    double *ms = calloc(o->steps, sizeof *ms);
    int r = ms ? 0 : err_set(e, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < rows; i++)
        sp[i].seq = MODEL_NO_SEQ;
    for (uint32_t i = 0; !r && i < rows; i++) {
        uint32_t seq = MODEL_NO_SEQ;
        if (seq_open(b->model, &seq) || seq_reserve(b->model, seq, o->context + o->steps + 2))
            r = err_set(e, -ENOSPC, "no room for %u sequences of %u tokens", rows, o->context + o->steps);
        else
            r = fill(b, seq, o->context, e);
        ids[i] = token(i, model_info(b->model)->vocab);
        want[i] = (struct kern_sample){.top_p = 1, .repetition = 1, .target = -1, .n_top = -1};
        pet[i] = (struct model_pet){.slot = &s->slot[different > 1 ? i % different : 0], .weight = 1};
        sp[i] = (struct model_span){.seq = seq,
                                    .tokens = &ids[i],
                                    .n_tokens = 1,
                                    .pets = &pet[i],
                                    .n_pets = different > 0,
                                    .n_logits = 1,
                                    .sample = &want[i],
                                    .sampled = &got[i]};
    }
    for (uint32_t t = 0; !r && t < o->steps + 2; t++) {
        if (t == 2)
            kern_profile(b->dev, ns);
        double start = now_ms();
        r = model_step(b->model, sp, rows, e);
        if (t >= 2)
            ms[t - 2] = now_ms() - start;
        for (uint32_t i = 0; i < rows; i++)
            ids[i] = got[i].token;
    }
    if (!r) {
        kern_profile(b->dev, ns);
        report("decode ", rows, name, ms, o->steps, ns);
    }
    for (uint32_t i = 0; i < rows; i++)
        seq_close(b->model, sp[i].seq);
    free(ms);
    return r;
}

static int prefill(struct backbone *b, const struct opts *o, struct err *e)
{
    int32_t ids[MAX_ROWS];
    uint64_t ns[KERN_OP_KINDS];
    double ms[64];
    uint32_t steps = o->steps < 64 ? o->steps : 64, seq = MODEL_NO_SEQ;
    for (uint32_t i = 0; i < o->prefill; i++)
        ids[i] = token(i, model_info(b->model)->vocab);
    int r = seq_open(b->model, &seq) || seq_reserve(b->model, seq, o->prefill)
                ? err_set(e, -ENOSPC, "no room for a prompt of %u tokens", o->prefill)
                : 0;
    kern_profile(b->dev, ns);
    for (uint32_t t = 0; !r && t < steps; t++) {
        seq_truncate(b->model, seq, 0);
        r = seq_reserve(b->model, seq, o->prefill);
        struct model_span sp = {.seq = seq, .tokens = ids, .n_tokens = o->prefill, .n_logits = 1};
        double start = now_ms();
        if (!r)
            r = model_step(b->model, &sp, 1, e);
        ms[t] = now_ms() - start;
    }
    kern_profile(b->dev, ns);
    if (!r)
        report("prefill", o->prefill, "none", ms, steps, ns);
    seq_close(b->model, seq);
    return r;
}

static int run(struct backbone *b, const struct opts *o, struct err *e)
{
    int r = backbone_open(b, MAX_ROWS, 128, e);
    if (r)
        return r;
    printf("%s, level %s, %u threads, %zu bytes of weights\n", b->dir, kern_level_name(kern_level(b->dev)),
           kern_threads(b->dev), model_info(b->model)->weight_bytes);
    struct slots s = {0};
    uint64_t ns[KERN_OP_KINDS];
    kern_profile(b->dev, ns);
    for (uint32_t i = 0; !r && i < o->n_rows; i++) {
        uint32_t rows = o->rows[i];
        r = slots_make(b, rows, o->rank, &s, e);
        if (!r)
            r = decode(b, o, rows, &s, 0, "none", e);
        if (!r)
            r = decode(b, o, rows, &s, 1, "shared", e);
        if (!r && rows > 1)
            r = decode(b, o, rows, &s, rows, "different", e);
        slots_free(b, &s);
    }
    return r || !o->prefill ? r : prefill(b, o, e);
}

static int parse_rows(struct opts *o, const char *list, struct err *e)
{
    o->n_rows = 0;
    for (char *end; *list; list = end + (*end == ',')) {
        unsigned long v = strtoul(list, &end, 10);
        if (end == list || v < 1 || v > 128 || o->n_rows == 16 || (*end && *end != ','))
            return err_set(e, -EINVAL, "--rows: numbers from 1 to 128, separated by commas");
        o->rows[o->n_rows++] = (uint32_t)v;
    }
    return 0;
}

int main(int argc, char **argv)
{
    enum { OPT_ROWS = OPT_BACKBONE_END, OPT_CONTEXT, OPT_STEPS, OPT_RANK, OPT_PREFILL };
    static const struct option table[] = {BACKBONE_OPTIONS,
                                          {"rows", required_argument, NULL, OPT_ROWS},
                                          {"context", required_argument, NULL, OPT_CONTEXT},
                                          {"steps", required_argument, NULL, OPT_STEPS},
                                          {"rank", required_argument, NULL, OPT_RANK},
                                          {"prefill", required_argument, NULL, OPT_PREFILL},
                                          {"help", no_argument, NULL, 'h'},
                                          {0}};
    struct opts o = {.rows = {1, 16, 32}, .n_rows = 3, .context = 64, .steps = 50, .rank = 8, .prefill = 256};
    struct backbone b;
    struct err e = {0};
    int r = 0;
    backbone_init(&b);
    for (int c; !r && (c = getopt_long(argc, argv, "h", table, NULL)) != -1;) {
        if (c == 'h' || c == '?') {
            fputs(help, c == 'h' ? stdout : stderr);
            return c == 'h' ? 0 : 2;
        }
        r = c == OPT_ROWS      ? parse_rows(&o, optarg, &e)
            : c == OPT_CONTEXT ? option_u32("context", optarg, 1, 1u << 20, &o.context, &e)
            : c == OPT_STEPS   ? option_u32("steps", optarg, 1, 100000, &o.steps, &e)
            : c == OPT_RANK    ? option_u32("rank", optarg, 1, 256, &o.rank, &e)
            : c == OPT_PREFILL ? option_u32("prefill", optarg, 0, MAX_ROWS, &o.prefill, &e)
                               : backbone_option(&b, c, optarg, &e);
    }
    if (r || optind != argc || !b.dir) {
        fprintf(stderr, "step: %s\n", r ? e.msg : "--model is needed (step --help)");
        return 2;
    }
    b.max_seqs = 128;
    r = run(&b, &o, &e);
    if (r)
        fprintf(stderr, "step: %s\n", e.msg);
    backbone_close(&b);
    return r != 0;
}
