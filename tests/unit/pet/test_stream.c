/* test_stream.c - modules loaded a layer at a time: bit for bit what the whole file gives, and its errors. */
#include "pet_testlib.h"

#include <dirent.h>
#include <unistd.h>

#include "common/file.h"
#include "formats/json.h"
#include "pet/container.h"
#include "tests/unit/pet/stream_same.h"

static struct kern_dev *devs[2]; /* the reference, and the best level of this machine */
static const enum kern_type types[] = {KERN_F32, KERN_BF16};

/* On both levels, in both types. */
static int same(const char *path, const struct pet_target *t)
{
    int rc = 0;
    for (size_t i = 0; i < 4; i++) {
        struct pet_target u = *t;
        u.type = types[i / 2];
        const char *says = stream_same(devs[i % 2], path, NULL, &u, &rc);
        if (says)
            fail_msg("%s: %s", path, says);
    }
    return rc;
}

static void same_on_beds(const char *path, unsigned n_beds)
{
    struct pet *p = open_ok(path);
    for (unsigned seed = 0; seed < n_beds; seed++) {
        struct bed b;
        bed_make(&b, p, KERN_F32, seed);
        assert_int_equal(same(path, &b.t), 0);
        bed_free(&b);
    }
    pet_close(p);
}

/* Pairs over a few layers whose order by name is not the file's by layer ("layers.10" before "layers.2"). */
static uint32_t draw(uint64_t seed, uint64_t at, uint32_t below)
{
    return (uint32_t)(rng_bits(seed, 1, at) % below);
}

static size_t draw_pairs(uint64_t seed, struct pair *pairs, char names[][64], size_t max)
{
    static const char *const sides[] = {"mlp.up_proj", "mlp.down_proj", "self_attn.q_proj", "self_attn.o_proj"};
    static const enum dtype dtypes[] = {DT_F32, DT_F16, DT_BF16};
    size_t n = 0;
    for (uint32_t layer = 0; layer < 12 && n + 5 < max; layer++) {
        for (size_t i = 0; i < 4; i++) {
            uint64_t at = layer * 40 + i * 10;
            if (draw(seed, at, 3) == 0)
                continue;
            snprintf(names[n], 64, "model.layers.%u.%s", layer, sides[i]);
            pairs[n] = (struct pair){names[n], 1 + draw(seed, at + 1, 9), 1 + draw(seed, at + 2, 70),
                                     1 + draw(seed, at + 3, 70), dtypes[draw(seed, at + 4, 3)]};
            n++;
        }
    }
    pairs[n++] = (struct pair){"lm_head", 1 + draw(seed, 999, 8), 20, 90, DT_F32};
    return n;
}

static void write_module(const char *path, const struct pair *pairs, size_t n, const char *fn)
{
    const char *const meta[] = {"cpet.kind", "recovery", "cpet.fn", fn, "cpet.scale", "0.3", NULL};
    struct err e = {0};
    write_pairs(scratch("r.safetensors"), pairs, n, "", ".recovery_A", ".recovery_B", meta);
    struct pet *p = open_ok(scratch("r.safetensors"));
    if (pet_write(p, NULL, path, &e))
        fail_msg("%s", e.msg);
    pet_close(p);
}

static void test_random(void **s)
{
    (void)s;
    static const char *const fns[] = {"none", "gelu", "gelu_tanh"};
    struct pair pairs[64];
    char names[64][64];
    for (unsigned i = 0; i < 12; i++) {
        size_t n = draw_pairs(i, pairs, names, 64);
        write_module(scratch("m.pet"), pairs, n, fns[i % 3]);
        same_on_beds(scratch("m.pet"), 4);
    }
}

/* What is no .pet goes the old way behind the same calls. */
static void test_golden(void **s)
{
    (void)s;
    char root[1000], path[2000];
    size_t taken = 0, refused = 0;
    struct pet_target none = {0};
    snprintf(root, sizeof root, "%s/pet", GOLDEN_DIR);
    DIR *d = opendir(root);
    assert_non_null(d);
    for (struct dirent *f; (f = readdir(d));) {
        struct pet *p = NULL;
        if (f->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/%s", root, f->d_name);
        if (pet_open(path, NULL, &p, NULL)) {
            assert_true(same(path, &none) < 0);
            refused++;
            continue;
        }
        assert_int_equal(pet_write(p, NULL, scratch("g.pet"), NULL), 0);
        same_on_beds(path, 2);
        same_on_beds(scratch("g.pet"), 3);
        taken++;
        pet_close(p);
    }
    closedir(d);
    assert_true(taken >= 8 && refused >= 15);
}

/* ---- errors: a table of what a target refuses, in a file that is right and in one that is damaged ---- */

static const struct pair pairs[] = {
    {"model.layers.10.mlp.down_proj", 3, 24, 16, DT_BF16},
    {"model.layers.2.self_attn.q_proj", 8, 16, 20, DT_F32},
    {"lm_head", 1, 16, 33, DT_F32},
};
static const uint32_t index_ok[] = {3, 0, 15, 7}, index_far[] = {0, 1, 2, 99};
static float inf_scale[64];

enum wrong {
    NOTHING,
    NO_SITES,
    MISSING,
    INPUTS,
    OUTPUTS,
    NO_INDEX,
    FAR_INDEX,
    S8,
    ARCHITECTURE,
    TOKENIZER,
    RESCALED_A,
    RESCALED_B,
    RESCALED_BOTH,
    N_WRONG
};

/* Site i of bed_make with seed 0 is part i by name: lm_head, layers.10, layers.2. */
static void spoil(struct bed *b, enum wrong w)
{
    struct pet_site *s = b->sites;
    switch (w) {
    case NO_SITES:
        b->t.n_sites = 0;
        break;
    case MISSING:
        strcpy(s[1].module, "other");
        break;
    case INPUTS:
        s[2].k_orig++;
        break;
    case OUTPUTS:
        s[0].n_orig++;
        break;
    case NO_INDEX:
        s[2].k--;
        break;
    case FAR_INDEX:
        s[2].in_index = index_far;
        s[2].k = 4;
        break;
    case ARCHITECTURE:
        strcpy(b->t.lineage.architecture, "qwen2");
        break;
    case TOKENIZER:
        hash_of("other", 5, &b->t.lineage.tokenizer);
        break;
    case RESCALED_BOTH:
        s[1].out_scale = inf_scale;
        s[2].in_scale = inf_scale; /* comes first in the file, is told second */
        s[2].in_index = index_ok;
        s[2].k = 4;
        break;
    case RESCALED_A:
        s[2].in_scale = inf_scale;
        s[2].in_index = index_ok;
        s[2].k = 4;
        break;
    case RESCALED_B:
        s[1].out_scale = inf_scale;
        break;
    default:
        break;
    }
}

static void check_table(const char *path, const struct pet *like, bool damaged)
{
    for (int w = 0; w < N_WRONG; w++) {
        struct bed b;
        int rc = 0;
        bed_make(&b, like, KERN_F32, 0);
        struct pet_site kept[4];
        memcpy(kept, b.sites, sizeof kept);
        spoil(&b, w);
        if (w == S8) {
            b.t.type = KERN_S8;
            const char *says = stream_same(devs[0], path, NULL, &b.t, &rc);
            if (says)
                fail_msg("%s: %s", path, says);
        } else {
            rc = same(path, &b.t);
        }
        assert_true(!rc == (w == NOTHING && !damaged));
        memcpy(b.sites, kept, sizeof kept);
        b.t.n_sites = 4;
        bed_free(&b);
    }
}

/* Writes the good file with the manifest that f makes of its own and all hashes above the content's put right. */
static void remake(const char *from, const char *to, void (*f)(json_t *m, char *frames, size_t n))
{
    char *file = NULL, *text = NULL;
    size_t n = 0, len = 0;
    json_t *m = NULL, *y;
    size_t i;
    assert_int_equal(file_read(from, 1 << 20, &file, &n, NULL), 0);
    size_t old = pet_get_le((uint8_t *)file + 16, 8);
    assert_int_equal(json_parse(file + 64, old, NULL, &m, NULL), 0);
    char *frames = file + 64 + old;
    f(m, frames, n - 64 - old);
    for (int pass = 0; pass < 4; pass++) { /* until the offsets' digits are settled */
        size_t at = 64 + len;
        json_array_foreach(json_object_get(m, "layers"), i, y)
        {
            json_integer_set(json_object_get(y, "offset"), (json_int_t)at);
            at += (size_t)json_integer_value(json_object_get(y, "size"));
        }
        free(text);
        text = json_dumps(m, JSON_COMPACT | JSON_REAL_PRECISION(17));
        len = strlen(text);
    }
    char *out = calloc(1, 64 + len + n);
    struct hash h;
    size_t total = 64 + len + n - 64 - old;
    memcpy(out, file, 64);
    memcpy(out + 64, text, len);
    memcpy(out + 64 + len, frames, n - 64 - old);
    pet_put_le((uint8_t *)out + 16, 8, len);
    pet_put_le((uint8_t *)out + 24, 8, total);
    hash_of(text, len, &h);
    memcpy(out + 32, h.b, sizeof h.b);
    write_bytes(to, out, total);
    free(out);
    free(text);
    free(file);
    json_decref(m);
}

static json_t *layer_at(json_t *m, size_t i)
{
    return json_array_get(json_object_get(m, "layers"), i);
}

static void as_it_is(json_t *m, char *frames, size_t n)
{
    (void)m, (void)frames, (void)n;
}

static void last_frame(json_t *m, char *frames, size_t n)
{
    (void)m;
    frames[n - 9] ^= 1;
}

static void other_content(json_t *m, char *frames, size_t n)
{
    (void)frames, (void)n;
    const char *any = json_string_value(json_object_get(layer_at(m, 0), "hash"));
    json_object_set_new(m, "hash", json_string(any));
}

static void other_content_and_last_frame(json_t *m, char *frames, size_t n)
{
    other_content(m, frames, n);
    last_frame(m, frames, n);
}

static void no_content(json_t *m, char *frames, size_t n)
{
    (void)frames, (void)n;
    json_object_del(m, "hash");
}

/* The first layer's tensors have other hashes than stated: seen when it is decoded. */
static void first_tensor(json_t *m, char *frames, size_t n)
{
    (void)frames, (void)n;
    json_t *t = json_array_get(json_object_get(layer_at(m, 0), "tensors"), 0);
    json_object_set_new(t, "hash", json_string("00000000000000000000000000000000000000000000000000000000000000aa"));
}

static void first_tensor_and_last_frame(json_t *m, char *frames, size_t n)
{
    first_tensor(m, frames, n);
    last_frame(m, frames, n);
}

/* A layer twice: two parts of one module. */
static void twice(json_t *m, char *frames, size_t n)
{
    (void)frames, (void)n;
    json_t *layers = json_object_get(m, "layers");
    size_t last = json_array_size(layers) - 1;
    json_t *a = json_object_get(layer_at(m, last), "tensors"), *copy = json_deep_copy(a);
    json_array_extend(a, copy);
    json_decref(copy);
}

static void nothing_at_all(json_t *m, char *frames, size_t n)
{
    (void)frames, (void)n;
    json_array_clear(json_object_get(m, "layers"));
}

static void test_errors(void **s)
{
    (void)s;
    static void (*const damage[])(json_t *, char *, size_t) = {
        last_frame,   other_content, other_content_and_last_frame, no_content,
        first_tensor, twice,         first_tensor_and_last_frame,  nothing_at_all,
    };
    struct pet *p = open_ok(scratch("good.pet"));
    remake(scratch("good.pet"), scratch("again.pet"), as_it_is);
    check_table(scratch("again.pet"), p, false);
    for (size_t i = 0; i < sizeof damage / sizeof *damage; i++) {
        remake(scratch("good.pet"), scratch("bad.pet"), damage[i]);
        check_table(scratch("bad.pet"), p, true);
    }
    pet_close(p);
}

/* Writes the good module with elements that are not finite, which pet_write would refuse: bit 2i+j of mask is for
 * tensor j of part i. */
static void write_not_finite(const char *path, unsigned mask)
{
    struct pet *p = open_ok(scratch("good.pet"));
    struct pet_lineage l = pet_info(p)->lineage;
    struct err e = {0};
    for (unsigned i = 0; i < 6; i++) {
        const struct pet_tensor *t = &p->parts[i / 2].t[i % 2];
        if (mask >> i & 1) /* all ones: a NaN in every type, at another place in each */
            memset((uint8_t *)(uintptr_t)t->data + (i + 1) * dtype_size(t->type), 0xFF, dtype_size(t->type));
    }
    assert_int_equal(pet_finish(p, false, &e), 0);
    assert_int_equal(pet_finite(p, NULL), mask ? -EINVAL : 0);
    for (unsigned i = 0; i < 6; i++)
        p->parts[i / 2].t[i % 2].bad = PET_NO_BAD;
    if (pet_write(p, &l, path, &e))
        fail_msg("%s", e.msg);
    pet_close(p);
}

static void test_not_finite(void **s)
{
    (void)s;
    struct pet *p = open_ok(scratch("good.pet"));
    for (unsigned mask = 0; mask < 64; mask++) {
        write_not_finite(scratch("nan.pet"), mask);
        check_table(scratch("nan.pet"), p, mask != 0);
    }
    remake(scratch("nan.pet"), scratch("bad.pet"), last_frame);
    check_table(scratch("bad.pet"), p, true);
    remake(scratch("nan.pet"), scratch("bad.pet"), other_content);
    check_table(scratch("bad.pet"), p, true);
    pet_close(p);
}

/* The committed corpus of the fuzzer: files of all kinds, most of them wrong. */
static void test_corpus(void **s)
{
    (void)s;
    DIR *d = opendir(CORPUS_DIR);
    struct pet *p = open_ok(scratch("good.pet"));
    struct bed b;
    size_t n = 0;
    bed_make(&b, p, KERN_F32, 0);
    assert_non_null(d);
    for (struct dirent *f; (f = readdir(d)); n++) {
        char path[2000];
        snprintf(path, sizeof path, "%s/%s", CORPUS_DIR, f->d_name);
        if (f->d_name[0] != '.')
            same(path, &b.t);
    }
    closedir(d);
    bed_free(&b);
    pet_close(p);
    assert_true(n > 40);
}

static void test_limits(void **s)
{
    (void)s;
    struct pet *p = open_ok(scratch("good.pet"));
    struct bed b;
    bed_make(&b, p, KERN_BF16, 3);
    for (size_t i = 0; i < 40; i++) {
        struct pet_limits lim = {.max_bytes = 100 * i, .max_rank = (uint32_t)i % 10};
        int rc = 0;
        const char *says = stream_same(devs[0], scratch("good.pet"), &lim, &b.t, &rc);
        if (says)
            fail_msg("limits %zu: %s", i, says);
    }
    bed_free(&b);
    pet_close(p);
}

/* The manifest alone says what a load would take; a file that is cut afterwards is never handed out. */
static void test_changed_between(void **s)
{
    (void)s;
    struct pet *p = open_ok(scratch("good.pet"));
    struct pet_stream *stream = NULL;
    struct pet_slot *slot = NULL;
    struct bed b;
    struct err e = {0};
    size_t bytes = 0;
    remake(scratch("good.pet"), scratch("c.pet"), as_it_is);
    bed_make(&b, p, KERN_BF16, 5);
    assert_int_equal(pet_stream_open(scratch("c.pet"), NULL, &stream, &e), 0);
    assert_int_equal(pet_stream_size(stream, &b.t, &bytes, &e), 0);
    assert_int_equal(bytes, pet_resident_bytes(p, &b.t));
    FILE *f = fopen(scratch("c.pet"), "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, -9, SEEK_END), 0);
    int c = fgetc(f);
    assert_int_equal(fseek(f, -9, SEEK_END), 0);
    fputc(c ^ 1, f);
    fclose(f);
    assert_int_equal(pet_stream_load(devs[0], stream, &b.t, &slot, &e), -EINVAL);
    assert_says(&e, "c.pet: layer \"");
    assert_says(&e, "is damaged (hash)");
    assert_int_equal(truncate(scratch("c.pet"), 100), 0);
    assert_int_equal(pet_stream_load(devs[0], stream, &b.t, &slot, &e), -EINVAL);
    assert_says(&e, "while it was read");
    assert_null(slot);
    pet_stream_close(stream);
    pet_stream_close(NULL);
    bed_free(&b);
    pet_close(p);
}

static int set_up(void **s)
{
    (void)s;
    static const char config[] = "{\"peft_type\": \"LORA\", \"r\": 8, \"lora_alpha\": 16, \"bias\": \"none\","
                                 "\"target_modules\": [\"down_proj\", \"q_proj\", \"lm_head\"],"
                                 "\"rank_pattern\": {\"down_proj\": 3, \"lm_head\": 1}}";
    struct kern_opts o = {.threads = 1, .max_level = "scalar"}, best = {.threads = 1};
    struct pet_lineage l = {.architecture = "llama"};
    struct pet *p = NULL;
    struct err e = {0};
    scratch_make();
    hash_of("tok", 3, &l.tokenizer);
    for (size_t i = 0; i < 64; i++)
        inf_scale[i] = i % 2 ? INFINITY : 1;
    write_peft(scratch("src"), config, pairs, 3);
    int r = kern_open(&o, &devs[0], &e);
    if (!r)
        r = kern_open(&best, &devs[1], &e);
    if (!r)
        r = pet_open(scratch("src"), NULL, &p, &e);
    if (!r)
        r = pet_write(p, &l, scratch("good.pet"), &e);
    if (r)
        fprintf(stderr, "%s\n", e.msg);
    pet_close(p);
    return r;
}

static int tear_down(void **s)
{
    (void)s;
    kern_close(devs[0]);
    kern_close(devs[1]);
    scratch_remove();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),          cmocka_unit_test(test_golden), cmocka_unit_test(test_errors),
        cmocka_unit_test(test_not_finite),      cmocka_unit_test(test_corpus), cmocka_unit_test(test_limits),
        cmocka_unit_test(test_changed_between),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
