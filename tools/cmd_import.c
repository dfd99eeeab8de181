/* cmd_import.c - cpet import SRC DIR: arguments in, compress/import.h, result out. One thread. */
#include "tools/cmds.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "compress/import.h"

static const char help[] = "usage: cpet import [--dtype f32|bf16|f16] [--force] [--json] SRC DIR\n"
                           "\n"
                           "Reads SRC, a GGUF file (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, "
                           "Q6_K) or a Hugging Face directory "
                           "(safetensors, sharded too) of a Llama or\n"
                           "Qwen2 model, and writes DIR, a Hugging Face directory: config.json, "
                           "generation_config.json, model.safetensors, the\n"
                           "tokenizer's files, and cpet.json, which records source and lineage.\n"
                           "\n"
                           "  --dtype TYPE  how weights are written (default: bf16 from GGUF, else as SRC has them)\n"
                           "  --force       write into DIR although it holds files\n"
                           "  --json        print the result as JSON\n";

static void progress(void *ctx, size_t done, size_t total)
{
    cmd_progress(ctx, (double)done / (double)total);
}

static int parse_dtype(const char *s)
{
    return !strcmp(s, "f32") ? (int)DT_F32 : !strcmp(s, "bf16") ? (int)DT_BF16 : !strcmp(s, "f16") ? (int)DT_F16 : -1;
}

static int print_result(const char *argv0, const struct import_opts *o, const struct import_result *r, bool json)
{
    char weights[HASH_HEX], tokenizer[HASH_HEX];
    hash_hex(&r->weights_hash, weights);
    hash_hex(&r->tokenizer_hash, tokenizer);
    if (json)
        return cmd_json(argv0,
                        json_pack("{s:s,s:s,s:s,s:s,s:I,s:I,s:I,s:{s:s,s:s*,s:s}}", "dir", o->dir, "architecture",
                                  r->architecture, "weights", r->weights, "dtype", dtype_name(r->dtype), "tensors",
                                  (json_int_t)r->n_tensors, "parameters", (json_int_t)r->n_params, "bytes",
                                  (json_int_t)r->bytes, "lineage", "architecture", r->architecture, "tokenizer",
                                  r->has_tokenizer ? tokenizer : NULL, "weights", weights));
    printf("%s: %s, %zu parameters in %zu tensors, %s weights as %s (%.1f MB)\n", o->dir, r->architecture, r->n_params,
           r->n_tensors, r->weights, dtype_name(r->dtype), (double)r->bytes / 1e6);
    if (!r->has_tokenizer)
        printf("no tokenizer: cpetd needs one; cpet logits takes token ids\n");
    printf("lineage %s\n", weights);
    return cmd_done(argv0);
}

int cmd_import(int argc, char **argv)
{
    static const struct option options[] = {{"dtype", required_argument, NULL, 'd'},
                                            {"force", no_argument, NULL, 'f'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    struct import_opts o = {.dtype = IMPORT_DTYPE_AUTO, .progress = progress, .ctx = argv[0]};
    struct import_result result = {0};
    struct err e = {0};
    bool json = false;
    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        if (c == 'd') {
            o.dtype = parse_dtype(optarg);
            if (o.dtype < 0)
                return cmd_usage(argv[0], "--dtype is f32, bf16 or f16, not '%s'", optarg);
        } else if (c == 'f') {
            o.force = true;
        } else if (c == 'j') {
            json = true;
        } else if (c == 'h') {
            fputs(help, stdout);
            return cmd_done(argv[0]);
        } else {
            return cmd_usage(argv[0], "see the options");
        }
    }
    if (argc - optind != 2)
        return cmd_usage(argv[0], "needs SRC and DIR");
    o.src = argv[optind];
    o.dir = argv[optind + 1];
    if (import_run(&o, &result, &e))
        return cmd_fail(argv[0], &e);
    return print_result(argv[0], &o, &result, json);
}
