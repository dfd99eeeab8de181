/* module.c - bench/module: makes a large random module for a backbone, and loads it whole or a layer at a time.
 *
 * Main thread. `make` writes a .pet with a pair of a given rank on every linear but the head. `whole` is pet_open and
 * pet_load, `stream` is pet_stream_open and pet_stream_load. A load prints its median time, the slot's bytes, and by
 * how much the process's peak of resident memory has grown over what it was before the first: run each way in a process
 * of its own, and compare figures of one machine and hour only.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/num.h"
#include "formats/safetensors.h"
#include "tools/backbone.h"

static const char help[] = "Usage: module make   MODEL_DIR RANK OUT.pet\n"
                           "       module whole  MODEL_DIR IN.pet [RUNS]\n"
                           "       module stream MODEL_DIR IN.pet [RUNS]\n";

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* The peak of resident memory since the last reset, in MB; below 0 where it cannot be had. */
static double peak_mb(void)
{
    char line[256];
    double kb = -1;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        sscanf(line, "VmHWM: %lf", &kb);
    if (f)
        fclose(f);
    return kb * 1024e-6;
}

static void reset_peak(void)
{
    FILE *f = fopen("/proc/self/clear_refs", "w");
    if (!f)
        return;
    fputs("5", f);
    fclose(f);
}

/* ---- making ---- */

static int fill(void *ctx, size_t off, size_t n, void *dst)
{
    uint64_t seq = (uint64_t)(uintptr_t)ctx;
    float *v = dst;
    for (size_t i = 0; i < n / 4; i++)
        v[i] = 0.02f * (2 * rng_unit(1, seq, off / 4 + i) - 1);
    return 0;
}

static int make_tensors(const struct pet_target *t, uint32_t rank, const char *path, struct err *e)
{
    static const char *const meta[] = {"cpet.kind", "recovery", "cpet.fn", "none", "cpet.scale", "1", NULL};
    size_t n = 2 * (size_t)(t->n_sites - 1);
    struct st_out *o = calloc(n + 1, sizeof *o);
    char(*names)[128] = calloc(n + 1, sizeof *names);
    int r = o && names ? 0 : err_set(e, -ENOMEM, "out of memory");
    for (size_t i = 0; !r && i < n; i++) {
        const struct pet_site *s = &t->sites[i / 2];
        snprintf(names[i], sizeof names[i], "%s.recovery_%c", s->module, "AB"[i % 2]);
        o[i] = (struct st_out){.name = names[i], .type = DT_F32, .ndim = 2, .fill = fill, .ctx = (void *)(uintptr_t)i};
        o[i].shape[0] = i % 2 ? s->n_orig : rank;
        o[i].shape[1] = i % 2 ? rank : s->k_orig;
    }
    if (!r)
        r = st_write(path, o, n, meta, e);
    free(o);
    free(names);
    return r;
}

static int make(const struct pet_target *t, uint32_t rank, const char *out, struct err *e)
{
    char tmp[4096];
    struct pet *p = NULL;
    snprintf(tmp, sizeof tmp, "%s.safetensors", out);
    int r = make_tensors(t, rank, tmp, e);
    if (!r)
        r = pet_open(tmp, NULL, &p, e);
    if (!r)
        r = pet_write(p, NULL, out, e);
    pet_close(p);
    remove(tmp);
    return r;
}

/* ---- loading ---- */

static int load_whole(struct kern_dev *d, const char *path, const struct pet_target *t, struct pet_slot **s,
                      struct err *e)
{
    struct pet *p = NULL;
    int r = pet_open(path, NULL, &p, e);
    if (!r)
        r = pet_load(d, p, t, s, e);
    pet_close(p);
    return r;
}

static int load_stream(struct kern_dev *d, const char *path, const struct pet_target *t, struct pet_slot **s,
                       struct err *e)
{
    struct pet_stream *p = NULL;
    int r = pet_stream_open(path, NULL, &p, e);
    if (!r)
        r = pet_stream_load(d, p, t, s, e);
    pet_stream_close(p);
    return r;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int measure(const struct backbone *b, bool stream, const char *path, uint32_t runs, struct err *e)
{
    const struct pet_target *t = model_pet_target(b->model);
    double *ms = calloc(runs, sizeof *ms), before;
    reset_peak();
    before = peak_mb();
    size_t bytes = 0;
    int r = ms ? 0 : err_set(e, -ENOMEM, "out of memory");
    for (uint32_t i = 0; !r && i < runs; i++) {
        struct pet_slot *s = NULL;
        double at = now_ms();
        r = (stream ? load_stream : load_whole)(b->dev, path, t, &s, e);
        ms[i] = now_ms() - at;
        bytes = r ? 0 : pet_slot_bytes(s);
        pet_unload(b->dev, s);
    }
    if (!r) {
        qsort(ms, runs, sizeof *ms, by_value);
        printf("%s: %.1f ms (least %.1f), slot %.1f MB, peak grew by %.1f MB\n", stream ? "stream" : "whole",
               ms[runs / 2], ms[0], (double)bytes * 1e-6, peak_mb() - before);
    }
    free(ms);
    return r;
}

static int run(int argc, char **argv, struct err *e)
{
    struct backbone b;
    uint32_t n = 1;
    bool making = argc == 5 && !strcmp(argv[1], "make"), stream = argc > 1 && !strcmp(argv[1], "stream");
    if (!making && !((argc == 4 || argc == 5) && (stream || !strcmp(argv[1], "whole")))) {
        fputs(help, stderr);
        return err_set(e, -EINVAL, "make, whole or stream is wanted");
    }
    backbone_init(&b);
    b.dir = argv[2];
    int r = making      ? option_u32("RANK", argv[3], 1, 256, &n, e)
            : argc == 5 ? option_u32("RUNS", argv[4], 1, 1000, &n, e)
                        : 0;
    if (!r)
        r = backbone_open(&b, 1, 1, e);
    if (!r)
        r = making ? make(model_pet_target(b.model), n, argv[4], e) : measure(&b, stream, argv[3], n, e);
    backbone_close(&b);
    return r;
}

int main(int argc, char **argv)
{
    struct err e = {0};
    if (!run(argc, argv, &e))
        return 0;
    fprintf(stderr, "module: %s\n", e.msg);
    return 1;
}
