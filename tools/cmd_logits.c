/* cmd_logits.c - cpet logits: the logits of a token sequence, raw float32 [ids, vocabulary], for comparison.
 *
 * Main thread. The ids go through the model in chunks of --chunk rows, which does not change a bit of the result.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "tools/backbone.h"
#include "tools/cmds.h"

#define MAX_CHUNK 128u

static const char help[] = "Usage: cpet logits --model DIR --ids 1,2,3 --out FILE [options]\n\n"
                           "Writes the logits after each token, raw float32, [ids, vocabulary].\n\n" BACKBONE_HELP
                           "  --ids LIST          token ids, separated by commas; @FILE reads them from a file\n"
                           "  --out FILE          where the logits go\n"
                           "  --chunk N           rows a step, 1 to 128 (default 128); the result is the same\n"
                           "  --json              say what was done as JSON\n"
                           "  --help\n";

static int parse_ids(const char *list, int32_t **out, uint32_t *n, struct err *e)
{
    uint32_t cap = 0, count = 0;
    int32_t *ids = NULL;
    for (const char *p = list; *p;) {
        char *end;
        long v = strtol(p, &end, 10);
        if (end == p || v < 0 || v > INT32_MAX || (*end && !strchr(", \n\t", *end))) {
            free(ids);
            return err_set(e, -EINVAL, "--ids: not a token id at character %zu", (size_t)(p - list) + 1);
        }
        if (count == cap) {
            cap = cap ? 2 * cap : 64;
            int32_t *more = realloc(ids, cap * sizeof *ids);
            if (!more) {
                free(ids);
                return err_set(e, -ENOMEM, "out of memory");
            }
            ids = more;
        }
        ids[count++] = (int32_t)v;
        p = end + strspn(end, ", \n\t");
    }
    if (!count) {
        free(ids);
        return err_set(e, -EINVAL, "--ids: no token ids");
    }
    *out = ids;
    *n = count;
    return 0;
}

static int run(struct backbone *b, const int32_t *ids, uint32_t n, uint32_t chunk, FILE *f, struct err *e)
{
    uint32_t seq, vocab = model_info(b->model)->vocab;
    float *row = malloc(vocab * sizeof *row);
    if (!row)
        return err_set(e, -ENOMEM, "out of memory");
    int r = seq_open(b->model, &seq);
    if (!r)
        r = seq_reserve(b->model, seq, n);
    if (r)
        r = err_set(e, r, "no room for %u tokens (the context is %u)", n, model_info(b->model)->max_context);
    for (uint32_t at = 0; !r && at < n; at += chunk) {
        uint32_t k = n - at < chunk ? n - at : chunk;
        struct model_span sp = {
            .seq = seq, .tokens = ids + at, .n_tokens = k, .pets = b->use, .n_pets = b->n_pets, .n_logits = k};
        r = model_step(b->model, &sp, 1, e);
        for (uint32_t i = 0; !r && i < k; i++) {
            model_logits(b->model, i, row);
            if (fwrite(row, sizeof *row, vocab, f) != vocab)
                r = err_set(e, -EIO, "cannot write: %s", strerror(errno));
        }
    }
    free(row);
    return r;
}

static const char *precision_name(enum model_precision p)
{
    return p == MODEL_INT8 ? "int8" : p == MODEL_BF16 ? "bf16" : "f32";
}

static int logits_write(struct backbone *b, const char *list, const char *out, uint32_t chunk, bool json, struct err *e)
{
    int32_t *ids = NULL;
    uint32_t n = 0;
    char *text = NULL;
    size_t len = 0;
    int r = 0;
    if (list[0] == '@') {
        r = file_read(list + 1, (size_t)64 << 20, &text, &len, e);
        list = text;
    }
    if (!r)
        r = parse_ids(list, &ids, &n, e);
    free(text);
    if (!r)
        r = backbone_open(b, chunk, chunk, e);
    FILE *f = NULL;
    if (!r && !(f = fopen(out, "wb")))
        r = err_set(e, -errno, "%s: %s", out, strerror(errno));
    if (!r)
        r = run(b, ids, n, chunk, f, e);
    if (f && fclose(f) && !r)
        r = err_set(e, -errno, "%s: %s", out, strerror(errno));
    if (!r && json)
        printf("{\"ids\": %u, \"vocabulary\": %u, \"precision\": \"%s\"}\n", n, model_info(b->model)->vocab,
               precision_name(model_info(b->model)->precision));
    free(ids);
    return r;
}

int cmd_logits(int argc, char **argv)
{
    enum { OPT_IDS = OPT_BACKBONE_END, OPT_OUT, OPT_CHUNK, OPT_JSON };
    static const struct option table[] = {BACKBONE_OPTIONS,
                                          {"ids", required_argument, NULL, OPT_IDS},
                                          {"out", required_argument, NULL, OPT_OUT},
                                          {"chunk", required_argument, NULL, OPT_CHUNK},
                                          {"json", no_argument, NULL, OPT_JSON},
                                          {"help", no_argument, NULL, 'h'},
                                          {0}};
    struct backbone b;
    struct err e = {0};
    const char *ids = NULL, *out = NULL;
    uint32_t chunk = MAX_CHUNK;
    bool json = false;
    int r = 0;
    backbone_init(&b);
    for (int c; !r && (c = getopt_long(argc, argv, "h", table, NULL)) != -1;) {
        if (c == 'h') {
            fputs(help, stdout);
            return cmd_done(argv[0]);
        }
        if (c == '?')
            return 2;
        if (c == OPT_IDS)
            ids = optarg;
        else if (c == OPT_OUT)
            out = optarg;
        else if (c == OPT_JSON)
            json = true;
        else
            r = c == OPT_CHUNK ? option_u32("chunk", optarg, 1, MAX_CHUNK, &chunk, &e)
                               : backbone_option(&b, c, optarg, &e);
    }
    if (!r && (optind != argc || !ids || !out || !b.dir))
        r = err_set(&e, -EINVAL, "--model, --ids and --out are needed, and nothing else");
    if (r)
        return cmd_usage(argv[0], "%s", e.msg);
    r = logits_write(&b, ids, out, chunk, json, &e);
    backbone_close(&b);
    return r ? cmd_fail(argv[0], &e) : cmd_done(argv[0]);
}
