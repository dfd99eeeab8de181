/* test_int8.c - INT8 backbones from small random ones: scales, rounding, smoothing that changes no result, what a
 * module does on them, and what is refused. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/file.h"
#include "common/num.h"
#include "compress/compress.h"
#include "formats/json.h"
#include "formats/safetensors.h"
#include "model/model.h"
#include "tests/unit/model/tiny.h"

enum { N_IDS = 24, RANK = 4, LAYERS = 2 };
#define LOGITS ((size_t)N_IDS * TINY_VOCAB)

static struct kern_dev *dev;
static struct tiny tiny; /* the original */
static char out[80], module_dir[80];

/* A tokenizer of single printable characters: 96 ids, which the tiny vocabulary holds. */
static void write_tokenizer(const char *dir)
{
    char text[4096], path[160];
    size_t n = (size_t)snprintf(text, sizeof text,
                                "{\"added_tokens\": [], \"pre_tokenizer\": {\"type\": \"ByteLevel\", "
                                "\"add_prefix_space\": false, \"use_regex\": true}, \"decoder\": {\"type\": "
                                "\"ByteLevel\"}, \"model\": {\"type\": \"BPE\", \"merges\": [], \"vocab\": {");
    for (int c = 33; c < 127; c++)
        n +=
            (size_t)snprintf(text + n, sizeof text - n, "\"%s%c\": %d, ", c == '"' || c == '\\' ? "\\" : "", c, c - 33);
    n += (size_t)snprintf(text + n, sizeof text - n, "\"\\u0120\": 94, \"\\u010a\": 95}}}");
    struct err e = {0};
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    assert_int_equal(file_write_atomic(path, text, n, 0644, &e), 0);
}

/* A module on all linears of the original, in its coordinates. */
static void write_module(const char *dir)
{
    static const struct {
        const char *name;
        uint32_t k, n;
    } linears[] = {{"self_attn.q_proj", 64, 64}, {"self_attn.k_proj", 64, 32}, {"self_attn.v_proj", 64, 32},
                   {"self_attn.o_proj", 64, 64}, {"mlp.gate_proj", 64, 96},    {"mlp.up_proj", 64, 96},
                   {"mlp.down_proj", 96, 64}};
    static const char config[] = "{\"peft_type\": \"LORA\", \"r\": 4, \"lora_alpha\": 4, \"target_modules\": "
                                 "\"all-linear\"}";
    static char names[2 * 7 * LAYERS][120];
    struct st_out t[2 * 7 * LAYERS];
    size_t n = 0;
    struct err e = {0};
    char path[160];
    for (uint32_t i = 0; i < 7 * LAYERS; i++) {
        for (int b = 0; b < 2; b++, n++) {
            uint32_t k = linears[i % 7].k, rows = b ? linears[i % 7].n : RANK, cols = b ? RANK : k;
            float *v = malloc((size_t)rows * cols * sizeof *v);
            assert_non_null(v);
            for (size_t j = 0; j < (size_t)rows * cols; j++)
                v[j] = 0.15f * (2 * rng_unit(n, 1, j) - 1);
            snprintf(names[n], sizeof names[n], "base_model.model.model.layers.%u.%s.lora_%c.weight", i / 7,
                     linears[i % 7].name, b ? 'B' : 'A');
            t[n] = (struct st_out){.name = names[n], .type = DT_F32, .ndim = 2, .shape = {rows, cols}, .data = v};
        }
    }
    assert_int_equal(dir_make(dir, &e), 0);
    snprintf(path, sizeof path, "%s/adapter_config.json", dir);
    assert_int_equal(file_write_atomic(path, config, sizeof config - 1, 0644, &e), 0);
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", dir);
    int r = st_write(path, t, n, NULL, &e);
    while (n--)
        free((void *)(uintptr_t)t[n].data);
    assert_int_equal(r, 0);
}

/* Logits of a fixed text on a backbone, with the module or without. */
static void run(const char *dir, bool module, enum model_precision want, float *logits)
{
    struct model_opts o = {.dir = dir,
                           .precision = MODEL_AUTO,
                           .kv_type = KERN_F32,
                           .max_rows = N_IDS,
                           .max_logits = N_IDS,
                           .max_seqs = 1};
    struct model *m = NULL;
    struct pet *p = NULL;
    struct pet_slot *slot = NULL;
    struct err e = {0};
    uint32_t seq;
    int32_t ids[N_IDS];
    for (int i = 0; i < N_IDS; i++)
        ids[i] = i * 37 % TINY_VOCAB;
    if (model_open(dev, &o, &m, &e))
        fail_msg("%s", e.msg);
    assert_int_equal(model_info(m)->precision, want);
    if (module && (pet_open(module_dir, NULL, &p, &e) || pet_load(dev, p, model_pet_target(m), &slot, &e)))
        fail_msg("%s", e.msg);
    struct model_pet pet = {.slot = slot ? pet_slot_kern(slot) : NULL, .weight = 1};
    assert_int_equal(seq_open(m, &seq), 0);
    assert_int_equal(seq_reserve(m, seq, N_IDS), 0);
    struct model_span sp = {
        .seq = seq, .tokens = ids, .n_tokens = N_IDS, .n_logits = N_IDS, .pets = &pet, .n_pets = module};
    if (model_step(m, &sp, 1, &e))
        fail_msg("%s", e.msg);
    for (uint32_t i = 0; i < N_IDS; i++)
        model_logits(m, i, logits + (size_t)i * TINY_VOCAB);
    seq_close(m, seq);
    pet_unload(dev, slot);
    pet_close(p);
    model_close(m);
}

static double norm(const float *a, const float *b)
{
    double sum = 0;
    for (size_t i = 0; i < LOGITS; i++)
        sum += (double)(a[i] - (b ? b[i] : 0)) * (double)(a[i] - (b ? b[i] : 0));
    return sqrt(sum);
}

static int compress(bool smooth, bool force, struct err *e)
{
    struct compress_opts o = {.dir = tiny.dir,
                              .out = out,
                              .smooth = smooth,
                              .alpha = 0.5f,
                              .calib_tokens = 600,
                              .force = force,
                              .threads = 1};
    struct compress_report rep = {0};
    int r = compress_int8(&o, &rep, e);
    if (!r) {
        assert_true(rep.bytes_after < rep.bytes_before / 3);
        assert_int_equal(rep.calib_tokens, smooth ? 600 : 0);
        assert_int_equal(strlen(rep.calib_hash), smooth ? 64 : 0);
    }
    return r;
}

static void in_out(const char *name, char path[160])
{
    snprintf(path, 160, "%s/%s", out, name);
}

static bool there(const char *name)
{
    char path[160];
    in_out(name, path);
    return !access(path, F_OK);
}

/* A scale vector of the site map, or NULL. */
static const float *site_scale(const struct st_file *sites, const char *site, const char *which)
{
    char name[96];
    snprintf(name, sizeof name, "%s.%s", site, which);
    const struct st_tensor *t = sites ? st_find(sites, name) : NULL;
    return t ? (const float *)(const void *)t->data : NULL;
}

/* Every quantized weight lies within half a step of the original, rescaled; scales are the largest of a row over 127.
 */
static void check_weights(bool smooth)
{
    static const struct {
        const char *site, *module;
    } all[] = {{"layers.0.q", "model.layers.0.self_attn.q_proj"},
               {"layers.1.v", "model.layers.1.self_attn.v_proj"},
               {"layers.0.o", "model.layers.0.self_attn.o_proj"},
               {"layers.1.gate", "model.layers.1.mlp.gate_proj"},
               {"layers.0.up", "model.layers.0.mlp.up_proj"},
               {"layers.1.down", "model.layers.1.mlp.down_proj"},
               {"head", "lm_head"},
               {"none", "model.embed_tokens"}};
    struct st_file *was = NULL, *is = NULL, *sites = NULL;
    struct err e = {0};
    char path[160], name[128];
    assert_int_equal(st_open_dir(tiny.dir, &was, &e), 0);
    assert_int_equal(st_open_dir(out, &is, &e), 0);
    in_out("cpet/sites.safetensors", path);
    assert_int_equal(st_open(path, &sites, &e), smooth ? 0 : -ENOENT);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        snprintf(name, sizeof name, "%s.weight", all[i].module);
        const struct st_tensor *w = st_find(was, name), *q = st_find(is, name);
        snprintf(name, sizeof name, "%s.weight_scale", all[i].module);
        const struct st_tensor *s = st_find(is, name);
        assert_true(w && q && s && q->type == DT_I8 && s->type == DT_F32 && s->ndim == 2 && s->shape[1] == 1);
        const float *in = site_scale(sites, all[i].site, "in_scale"), *by = site_scale(sites, all[i].site, "out_scale");
        assert_int_equal(smooth && i < 6, !!in);
        size_t k = w->shape[1];
        for (size_t r = 0; r < w->shape[0]; r++) {
            float scale, most = 0;
            memcpy(&scale, s->data + 4 * r, 4);
            for (size_t c = 0; c < k; c++) {
                float v;
                int8_t got = (int8_t)q->data[r * k + c];
                memcpy(&v, w->data + 4 * (r * k + c), 4);
                v = v * (in ? in[c] : 1) * (by ? by[r] : 1);
                most = fabsf(v) > most ? fabsf(v) : most;
                assert_true(got >= -127 && fabsf(v - (float)got * scale) <= 0.5001f * scale);
            }
            assert_true(fabsf(scale - most / 127) <= 1e-6f * scale);
        }
    }
    st_close(was);
    st_close(is);
    st_close(sites);
}

/* The INT8 backbone computes nearly what the original does. Gives how far what the module changes on it is from what it
 * changes on the original. */
static double check_results(void)
{
    float *x = malloc(4 * LOGITS * sizeof *x), *y = x + LOGITS, *xm = y + LOGITS, *ym = xm + LOGITS;
    assert_non_null(x);
    run(tiny.dir, false, MODEL_F32, x);
    run(tiny.dir, true, MODEL_F32, xm);
    run(out, false, MODEL_INT8, y);
    run(out, true, MODEL_INT8, ym);
    double error = norm(y, x) / norm(x, NULL), error_m = norm(ym, xm) / norm(xm, NULL),
           effect = norm(xm, x) / norm(x, NULL);
    for (size_t i = 0; i < LOGITS; i++) { /* what the module changed */
        xm[i] -= x[i];
        ym[i] -= y[i];
    }
    double off = norm(ym, xm) / norm(xm, NULL);
    print_message("logits off by %.3f, %.3f with the module; it changes %.3f of them, off by %.3f\n", error, error_m,
                  effect, off);
    assert_true(error < 0.05);
    assert_true(effect > 0.2);
    free(x);
    return off;
}

/* As compressed before config.json knew the site map's hash. */
static void forget_sites_hash(void)
{
    char path[160];
    json_t *c = NULL;
    struct err e = {0};
    in_out("config.json", path);
    assert_int_equal(json_read_file(path, 1u << 20, &c, &e), 0);
    assert_int_equal(json_object_del(c, "cpet_sites_hash"), 0);
    assert_int_equal(json_write_file(path, c, &e), 0);
    json_decref(c);
}

static void refused_to_load(const char *says)
{
    struct model_opts o = {
        .dir = out, .precision = MODEL_AUTO, .kv_type = MODEL_KV_AUTO, .max_rows = 8, .max_logits = 8};
    struct model *m = NULL;
    struct err e = {0};
    if (!model_open(dev, &o, &m, &e) || !strstr(e.msg, says) || !strstr(e.msg, out))
        fail_msg("\"%s\"", e.msg);
    assert_null(m);
}

static void test_plain(void **s)
{
    (void)s;
    struct err e = {0};
    if (compress(false, true, &e))
        fail_msg("%s", e.msg);
    check_weights(false);
    assert_true(check_results() < 0.12);
}

static void test_smooth(void **s)
{
    (void)s;
    struct err e = {0};
    if (compress(true, true, &e))
        fail_msg("%s", e.msg);
    check_weights(true);
    assert_true(check_results() < 0.12);
    assert_true(there("tokenizer.json") && there("config.json"));
    char sites[160];
    in_out("cpet/sites.safetensors", sites);
    assert_int_equal(file_write_atomic(sites, "{}", 2, 0644, &e), 0);
    refused_to_load("is not the site map of this backbone");
    assert_int_equal(unlink(sites), 0);
    refused_to_load("is missing; the backbone was smoothed");
    forget_sites_hash(); /* without the map, the module is another one */
    assert_true(check_results() > 0.25);
    if (compress(true, true, &e))
        fail_msg("%s", e.msg);
    /* an earlier result's site map goes with its weights */
    if (compress(false, true, &e))
        fail_msg("%s", e.msg);
    assert_false(there("cpet/sites.safetensors"));
    assert_true(check_results() < 0.12);
    in_out("cpet.json", sites); /* nor does it keep a lineage that DIR does not have */
    assert_int_equal(file_write_atomic(sites, "{}", 2, 0644, &e), 0);
    if (compress(false, true, &e))
        fail_msg("%s", e.msg);
    assert_false(there("cpet.json"));
}

static void test_refused(void **s)
{
    (void)s;
    struct err e = {0};
    if (compress(false, true, &e))
        fail_msg("%s", e.msg);
    assert_int_equal(compress(false, false, &e), -EEXIST);
    assert_non_null(strstr(e.msg, "force"));
    assert_true(there("model.safetensors"));
    struct compress_opts o = {.dir = tiny.dir, .out = tiny.dir, .force = true};
    assert_int_equal(compress_int8(&o, NULL, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "another directory"));
    char again[96], model[128];
    snprintf(again, sizeof again, "%s.again", out);
    snprintf(model, sizeof model, "%s/model.safetensors", again);
    for (int smooth = 0; smooth < 2; smooth++) { /* a quantized DIR */
        o = (struct compress_opts){.dir = out, .out = again, .smooth = smooth, .alpha = 0.5f};
        assert_int_not_equal(compress_int8(&o, NULL, &e), 0);
        assert_true(e.msg[0] && access(model, F_OK));
    }
    o = (struct compress_opts){.dir = "/nonexistent", .out = again};
    assert_int_not_equal(compress_int8(&o, NULL, &e), 0);
}

/* A tied head that the original repeats is quantized like the rest, and the result loads. */
static void test_repeated_head(void **s)
{
    (void)s;
    struct tiny tied = {.qwen2 = true, .tied = true, .extra = "lm_head.weight"};
    struct err e = {0};
    tiny_make(&tied);
    write_tokenizer(tied.dir);
    struct compress_opts o = {.dir = tied.dir, .out = out, .force = true, .threads = 1};
    if (compress_int8(&o, NULL, &e))
        fail_msg("%s", e.msg);
    float *logits = malloc(LOGITS * sizeof *logits);
    assert_non_null(logits);
    run(out, false, MODEL_INT8, logits);
    free(logits);
    tiny_remove(&tied);
}

/* A weight that is no number is named, and leaves no model behind. */
static void test_nan(void **s)
{
    (void)s;
    struct tiny bad = {.qwen2 = true, .nan = "model.layers.1.mlp.down_proj.weight"};
    struct err e = {0};
    tiny_make(&bad);
    write_tokenizer(bad.dir);
    for (int smooth = 0; smooth < 2; smooth++) {
        struct compress_opts o = {
            .dir = bad.dir, .out = out, .smooth = smooth, .alpha = 0.5f, .force = true, .threads = 1};
        assert_int_not_equal(compress_int8(&o, NULL, &e), 0);
        if (!strstr(e.msg, "model.layers.1.mlp.down_proj"))
            fail_msg("%s", e.msg);
        assert_false(there("model.safetensors"));
    }
    tiny_remove(&bad);
}

/* Copies a safetensors file with one tensor's first four bytes set to v (a row taken off, with RESHAPE; another name,
 * with RENAME), or without it.
 */
enum damage { SET, DROP, RESHAPE, RENAME };

static void damage(const char *from, const char *to, const char *name, enum damage how, float v)
{
    struct st_file *f = NULL;
    struct err e = {0};
    assert_int_equal(st_open(from, &f, &e), 0);
    struct st_out *t = calloc(st_count(f) + 1, sizeof *t);
    uint8_t *bytes = NULL;
    size_t n = 0;
    for (size_t i = 0; i < st_count(f); i++) {
        const struct st_tensor *a = st_at(f, i);
        bool hit = !strcmp(a->name, name);
        if (hit && how == DROP)
            continue;
        t[n] = (struct st_out){.name = a->name, .type = a->type, .ndim = a->ndim, .data = a->data};
        memcpy(t[n].shape, a->shape, sizeof a->shape);
        if (hit) {
            bytes = malloc(a->bytes);
            memcpy(bytes, a->data, a->bytes);
            memcpy(bytes, &v, sizeof v);
            t[n].data = bytes;
            t[n].shape[0] -= how == RESHAPE;
            t[n].name = how == RENAME ? "layers.0.q.in_index" : a->name;
        }
        n++;
    }
    assert_true(how == DROP || bytes);
    assert_int_equal(st_write(to, t, n, NULL, &e), 0);
    free(bytes);
    free(t);
    st_close(f);
}

/* What a damaged INT8 backbone or site map is refused with. */
static void test_damaged(void **s)
{
    (void)s;
    static const struct {
        bool sites;
        const char *name;
        enum damage how;
        float v;
        const char *says;
    } cases[] = {
        {false, "model.layers.0.mlp.up_proj.weight_scale", SET, NAN, "up_proj.weight_scale: element 0 is not a finite"},
        {false, "model.layers.1.self_attn.q_proj.weight_scale", SET, INFINITY, "q_proj.weight_scale: element 0"},
        {false, "lm_head.weight_scale", DROP, 0, "lm_head.weight_scale is missing"},
        {false, "model.layers.0.self_attn.o_proj.weight_scale", RESHAPE, 1, "o_proj.weight_scale: not a float tensor"},
        {false, "model.layers.0.self_attn.o_proj.weight", RESHAPE, 1, "o_proj.weight: shape is not [64, 64]"},
        {false, "model.layers.1.self_attn.k_proj.bias", SET, NAN, "k_proj.bias: element 0 is not a finite"},
        {true, "layers.0.q.in_scale", SET, NAN, "layers.0.q.in_scale: element 0 is not a positive"},
        {true, "layers.1.up.out_scale", SET, 0, "layers.1.up.out_scale: element 0 is not a positive"},
        {true, "layers.0.down.in_scale", SET, -1, "layers.0.down.in_scale: element 0 is not a positive"},
        {true, "layers.0.q.in_scale", RENAME, 1, "of its "},
        {true, "layers.0.gate.in_scale", RESHAPE, 1, "layers.0.gate.in_scale: not F32 of shape [64]"},
    };
    char path[2][160], kept[2][400];
    struct err e = {0};
    if (compress(true, true, &e))
        fail_msg("%s", e.msg);
    forget_sites_hash();
    in_out("model.safetensors", path[0]);
    in_out("cpet/sites.safetensors", path[1]);
    for (int i = 0; i < 2; i++) {
        snprintf(kept[i], sizeof kept[i], "%s.kept", path[i]);
        assert_int_equal(rename(path[i], kept[i]), 0);
        damage(kept[i], path[i], "none", DROP, 0);
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int which = cases[i].sites;
        damage(kept[which], path[which], cases[i].name, cases[i].how, cases[i].v);
        refused_to_load(cases[i].says);
        damage(kept[which], path[which], "none", DROP, 0);
    }
    assert_true(check_results() < 0.12); /* put right, it loads */
}

static int start(void **s)
{
    (void)s;
    tiny = (struct tiny){.qwen2 = true};
    tiny_make(&tiny);
    write_tokenizer(tiny.dir);
    snprintf(out, sizeof out, "%s.int8", tiny.dir);
    snprintf(module_dir, sizeof module_dir, "%s.module", tiny.dir);
    write_module(module_dir);
    return kern_open(&(struct kern_opts){.threads = 1}, &dev, NULL);
}

static int stop(void **s)
{
    char cmd[256];
    (void)s;
    kern_close(dev);
    snprintf(cmd, sizeof cmd, "rm -rf %s.int8 %s.module %s.int8.again", tiny.dir, tiny.dir, tiny.dir);
    tiny_remove(&tiny);
    return system(cmd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_plain),   cmocka_unit_test(test_smooth),
                                       cmocka_unit_test(test_refused), cmocka_unit_test(test_nan),
                                       cmocka_unit_test(test_damaged), cmocka_unit_test(test_repeated_head)};
    return cmocka_run_group_tests(tests, start, stop);
}
