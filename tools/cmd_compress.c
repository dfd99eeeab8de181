/* cmd_compress.c - cpet compress: makes a smaller backbone. Main thread. */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "compress/compress.h"
#include "tools/backbone.h"
#include "tools/cmds.h"

static const char help[] = "Usage: cpet compress DIR OUT --int8 [options]\n\n"
                           "Writes DIR (an uncompressed Hugging Face directory) to OUT with INT8 weights.\n\n"
                           "  --int8              W8A8: weights an output channel, activations a token\n"
                           "  --no-smooth         do not move activation outliers into the weights\n"
                           "  --alpha A           how far smoothing goes, 0 to 1 (default 0.6)\n"
                           "  --calib FILE        text to calibrate smoothing on (default: a small one that ships)\n"
                           "  --calib-tokens N    how much of it (default 2048)\n"
                           "  --head bf16|int8    the head and embeddings (default int8)\n"
                           "  --threads N         worker threads (default: one a core)\n"
                           "  --force             replace the model that OUT holds\n"
                           "  --json              the report as JSON\n"
                           "  --help\n";

static void show(void *ctx, const char *what, double share)
{
    int *last = ctx, now = (int)(share * 100);
    if (isatty(STDERR_FILENO) && now != *last)
        fprintf(stderr, "\r%-12s %3d %%%s", what, now, now >= 100 ? "\n" : "");
    *last = now;
}

enum {
    OPT_INT8 = OPT_BACKBONE_END,
    OPT_NO_SMOOTH,
    OPT_ALPHA,
    OPT_CALIB,
    OPT_CALIB_TOKENS,
    OPT_HEAD,
    OPT_CTHREADS,
    OPT_FORCE,
    OPT_JSON
};

static int option(struct compress_opts *o, int c, const char *arg, struct err *e)
{
    char *end;
    uint32_t n = 0;
    int r;
    switch (c) {
    case OPT_NO_SMOOTH:
        o->smooth = false;
        return 0;
    case OPT_ALPHA:
        o->alpha = strtof(arg, &end);
        return end != arg && !*end && o->alpha >= 0 && o->alpha <= 1
                   ? 0
                   : err_set(e, -EINVAL, "--alpha: %s is not a number from 0 to 1", arg);
    case OPT_CALIB:
        o->calib = arg;
        return 0;
    case OPT_CALIB_TOKENS:
        return option_u32("calib-tokens", arg, 1, 1u << 24, &o->calib_tokens, e);
    case OPT_HEAD:
        if (strcmp(arg, "bf16") && strcmp(arg, "int8"))
            return err_set(e, -EINVAL, "--head: %s is not bf16 or int8", arg);
        o->head_float = !strcmp(arg, "bf16");
        return 0;
    case OPT_CTHREADS:
        r = option_u32("threads", arg, 1, 1024, &n, e);
        o->threads = r ? 0 : n;
        return r;
    default:
        o->force = true;
        return 0;
    }
}

static void report(const struct compress_opts *o, const struct compress_report *rep, bool json)
{
    if (json)
        printf("{\"bytes_before\": %zu, \"bytes_after\": %zu, \"smooth\": %s, \"alpha\": %g, \"calib_tokens\": %u, "
               "\"calib_hash\": \"%s\"}\n",
               rep->bytes_before, rep->bytes_after, o->smooth ? "true" : "false", (double)o->alpha, rep->calib_tokens,
               rep->calib_hash);
    else
        printf("%s: %.1f MB, was %.1f MB%s\n", o->out, (double)rep->bytes_after / 1e6, (double)rep->bytes_before / 1e6,
               o->smooth ? ", smoothed" : "");
}

int cmd_compress(int argc, char **argv)
{
    static const struct option table[] = {{"int8", no_argument, NULL, OPT_INT8},
                                          {"no-smooth", no_argument, NULL, OPT_NO_SMOOTH},
                                          {"alpha", required_argument, NULL, OPT_ALPHA},
                                          {"calib", required_argument, NULL, OPT_CALIB},
                                          {"calib-tokens", required_argument, NULL, OPT_CALIB_TOKENS},
                                          {"head", required_argument, NULL, OPT_HEAD},
                                          {"threads", required_argument, NULL, OPT_CTHREADS},
                                          {"force", no_argument, NULL, OPT_FORCE},
                                          {"json", no_argument, NULL, OPT_JSON},
                                          {"help", no_argument, NULL, 'h'},
                                          {0}};
    int last = -1, r = 0;
    struct compress_opts o = {.smooth = true, .alpha = 0.6f, .progress = show, .ctx = &last};
    struct compress_report rep;
    struct err e = {0};
    bool int8 = false, json = false;
    for (int c; !r && (c = getopt_long(argc, argv, "h", table, NULL)) != -1;) {
        if (c == 'h') {
            fputs(help, stdout);
            return cmd_done(argv[0]);
        }
        if (c == '?')
            return 2;
        if (c == OPT_INT8)
            int8 = true;
        else if (c == OPT_JSON)
            json = true;
        else
            r = option(&o, c, optarg, &e);
    }
    if (!r && (argc - optind != 2 || !int8))
        r = err_set(&e, -EINVAL, "DIR, OUT and --int8 are needed");
    if (r)
        return cmd_usage(argv[0], "%s", e.msg);
    o.dir = argv[optind];
    o.out = argv[optind + 1];
    r = compress_int8(&o, &rep, &e);
    if (r)
        return cmd_fail(argv[0], &e);
    report(&o, &rep, json);
    return cmd_done(argv[0]);
}
