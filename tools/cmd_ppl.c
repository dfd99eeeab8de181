/* cmd_ppl.c - cpet ppl: perplexity of a text in windows.
 *
 * Main thread. The text's tokens are cut into windows of --window; each starts with an empty context, and the log-
 * probabilities of its tokens but the first are averaged: perplexity = exp(-mean). The log-softmax is the kernels'.
 */
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/file.h"
#include "model/tokenizer.h"
#include "tools/backbone.h"
#include "tools/cmds.h"

#define CHUNK 128u

static const char help[] =
    "Usage: cpet ppl --model DIR --text FILE --window N [--windows N] [options]\n\n" BACKBONE_HELP
    "  --text FILE         UTF-8 text\n"
    "  --window N          tokens a window, each with an empty context\n"
    "  --windows N         at most so many windows (default: all whole ones)\n"
    "  --json              the result as JSON\n"
    "  --help\n";

struct ppl_opts {
    const char *text;
    uint32_t window, windows;
    bool json;
};

/* Sum of the log-probabilities of tokens 1 .. n-1 of a window. */
static int window_sum(struct backbone *b, const int32_t *ids, uint32_t n, double *sum, struct err *e)
{
    uint32_t seq;
    struct kern_sample want[CHUNK];
    struct kern_sampled got[CHUNK];
    int r = seq_open(b->model, &seq);
    if (!r)
        r = seq_reserve(b->model, seq, n);
    if (r)
        return err_set(e, r, "no room for %u tokens (the context is %u)", n, model_info(b->model)->max_context);
    for (uint32_t at = 0; !r && at + 1 < n; at += CHUNK) {
        uint32_t k = n - 1 - at < CHUNK ? n - 1 - at : CHUNK;
        for (uint32_t i = 0; i < k; i++)
            want[i] = (struct kern_sample){.top_p = 1, .repetition = 1, .target = ids[at + i + 1], .n_top = 0};
        struct model_span sp = {.seq = seq,
                                .tokens = ids + at,
                                .n_tokens = k,
                                .pets = b->use,
                                .n_pets = b->n_pets,
                                .n_logits = k,
                                .sample = want,
                                .sampled = got};
        r = model_step(b->model, &sp, 1, e);
        for (uint32_t i = 0; !r && i < k; i++)
            *sum += (double)got[i].logprob;
    }
    seq_close(b->model, seq);
    return r;
}

static int measure(struct backbone *b, const struct ppl_opts *o, const struct tok_ids *ids, struct err *e)
{
    uint32_t windows = (uint32_t)(ids->n / o->window);
    windows = o->windows && o->windows < windows ? o->windows : windows;
    if (!windows)
        return err_set(e, -EINVAL, "%s: %zu tokens do not fill a window of %u", o->text, ids->n, o->window);
    double sum = 0;
    struct timespec a, z;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (uint32_t w = 0; w < windows; w++) {
        int r = window_sum(b, ids->id + (size_t)w * o->window, o->window, &sum, e);
        if (r)
            return r;
        if (isatty(STDERR_FILENO))
            fprintf(stderr, "\r%u of %u windows", w + 1, windows);
    }
    if (isatty(STDERR_FILENO))
        fputc('\n', stderr);
    clock_gettime(CLOCK_MONOTONIC, &z);
    double n = (double)windows * (o->window - 1), ppl = exp(-sum / n);
    double s = (double)(z.tv_sec - a.tv_sec) + (double)(z.tv_nsec - a.tv_nsec) * 1e-9;
    if (!isfinite(ppl))
        return err_set(e, -EDOM, "the log-probabilities are not finite numbers");
    if (o->json)
        printf("{\"perplexity\": %.6f, \"tokens\": %.0f, \"windows\": %u, \"window\": %u, \"seconds\": %.3f}\n", ppl, n,
               windows, o->window, s);
    else
        printf("perplexity %.4f over %.0f tokens (%u windows of %u), %.0f tokens/s\n", ppl, n, windows, o->window,
               n / s);
    return 0;
}

static int ppl_run(struct backbone *b, const struct ppl_opts *o, struct err *e)
{
    char *text = NULL;
    size_t len = 0;
    struct tok *tok = NULL;
    struct tok_ids ids = {0};
    int r = file_read(o->text, (size_t)1 << 30, &text, &len, e);
    if (!r)
        r = tok_open(b->dir, &tok, e);
    if (!r) {
        r = tok_encode(tok, text, len, 0, &ids, e);
        if (r)
            err_prefix(e, r, "%s", o->text);
    }
    if (!r)
        r = backbone_open(b, CHUNK, CHUNK, e);
    if (!r)
        r = measure(b, o, &ids, e);
    free(ids.id);
    tok_close(tok);
    free(text);
    return r;
}

int cmd_ppl(int argc, char **argv)
{
    enum { OPT_TEXT = OPT_BACKBONE_END, OPT_WINDOW, OPT_WINDOWS, OPT_JSON };
    static const struct option table[] = {BACKBONE_OPTIONS,
                                          {"text", required_argument, NULL, OPT_TEXT},
                                          {"window", required_argument, NULL, OPT_WINDOW},
                                          {"windows", required_argument, NULL, OPT_WINDOWS},
                                          {"json", no_argument, NULL, OPT_JSON},
                                          {"help", no_argument, NULL, 'h'},
                                          {0}};
    struct backbone b;
    struct ppl_opts o = {0};
    struct err e = {0};
    int r = 0;
    backbone_init(&b);
    for (int c; !r && (c = getopt_long(argc, argv, "h", table, NULL)) != -1;) {
        if (c == 'h') {
            fputs(help, stdout);
            return cmd_done(argv[0]);
        }
        if (c == '?')
            return 2;
        if (c == OPT_TEXT)
            o.text = optarg;
        else if (c == OPT_JSON)
            o.json = true;
        else if (c == OPT_WINDOW)
            r = option_u32("window", optarg, 2, 1u << 24, &o.window, &e);
        else if (c == OPT_WINDOWS)
            r = option_u32("windows", optarg, 1, 1u << 24, &o.windows, &e);
        else
            r = backbone_option(&b, c, optarg, &e);
    }
    if (!r && (optind != argc || !o.text || !o.window || !b.dir))
        r = err_set(&e, -EINVAL, "--model, --text and --window are needed, and nothing else");
    if (r)
        return cmd_usage(argv[0], "%s", e.msg);
    r = ppl_run(&b, &o, &e);
    backbone_close(&b);
    return r ? cmd_fail(argv[0], &e) : cmd_done(argv[0]);
}
