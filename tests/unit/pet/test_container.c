/* test_container.c - .pet files: round trips, and every way in which one can be wrong. */
#include "pet_testlib.h"

#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include "common/file.h"
#include "common/num.h"
#include "formats/json.h"
#include "tests/unit/pet/stream_same.h"

static const struct pair pairs[] = {
    {"model.layers.0.self_attn.q_proj", 4, 16, 24, DT_F32},
    {"model.layers.0.mlp.up_proj", 2, 16, 40, DT_BF16},
    {"model.layers.11.mlp.up_proj", 2, 16, 40, DT_F16},
    {"model.layers.2.mlp.up_proj", 3, 16, 40, DT_BF16},
    {"lm_head", 1, 16, 32, DT_F32},
};
enum { N_PAIRS = 5 };
static const char config[] = "{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 7, \"use_rslora\": true,"
                             "\"base_model_name_or_path\": \"a/base\","
                             "\"target_modules\": [\"q_proj\", \"up_proj\", \"lm_head\"],"
                             "\"rank_pattern\": {\"q_proj\": 4, \"layers.2.mlp.up_proj\": 3, \"lm_head\": 1},"
                             "\"alpha_pattern\": {\"lm_head\": -0.3}}";

static char *good; /* a .pet with a lineage */
static size_t good_len;
static struct kern_dev *dev;
static struct bed bed; /* that the good one fits */

static struct pet_lineage lineage(void)
{
    struct pet_lineage l = {.architecture = "llama"};
    hash_of("tokenizer", 9, &l.tokenizer);
    hash_of("weights", 7, &l.weights);
    return l;
}

static void same_module(const struct pet *a, const struct pet *b)
{
    const struct pet_info *x = pet_info(a), *y = pet_info(b);
    assert_true(hash_equal(&x->hash, &y->hash));
    assert_true(x->kind == y->kind && x->bytes == y->bytes && x->max_rank == y->max_rank && x->n_sites == y->n_sites);
    assert_string_equal(x->base, y->base);
    for (uint32_t i = 0; i < x->n_sites; i++) {
        struct pet_part p, q;
        pet_part(a, i, &p);
        pet_part(b, i, &q);
        assert_string_equal(p.module, q.module);
        assert_true(p.rank == q.rank && p.k == q.k && p.n == q.n && p.fn == q.fn);
        assert_int_equal(f32_bits(p.scale), f32_bits(q.scale));
    }
}

static void test_round_trip(void **s)
{
    (void)s;
    struct pet_lineage l = lineage();
    struct err e = {0};
    struct pet *a = open_ok(scratch("src"));
    assert_int_equal(pet_write(a, NULL, scratch("plain.pet"), &e), 0);
    struct pet *b = open_ok(scratch("plain.pet")), *c = open_ok(scratch("good.pet")), *d = NULL;
    same_module(a, b);
    same_module(a, c);
    assert_false(pet_info(b)->verified);
    assert_true(pet_info(c)->verified);
    assert_string_equal(pet_info(c)->lineage.architecture, "llama");
    assert_true(hash_equal(&pet_info(c)->lineage.tokenizer, &l.tokenizer));
    assert_true(hash_equal(&pet_info(c)->lineage.weights, &l.weights));
    assert_int_equal(pet_write_peft(c, scratch("back"), &e), 0);
    d = open_ok(scratch("back"));
    same_module(a, d);
    pet_close(d);
    assert_int_equal(pet_parse(good, good_len, "upload", NULL, &d, &e), 0);
    same_module(a, d);
    pet_close(a);
    pet_close(b);
    pet_close(c);
    pet_close(d);
}

/* The tensors that come back are the tensors that went in, byte by byte. */
static void test_tensor_bytes(void **s)
{
    (void)s;
    struct st_file *f = NULL, *g = NULL;
    struct pet *p = open_ok(scratch("good.pet"));
    assert_int_equal(pet_write_peft(p, scratch("back2"), NULL), 0);
    assert_int_equal(st_open(scratch("src/adapter_model.safetensors"), &f, NULL), 0);
    assert_int_equal(st_open(scratch("back2/adapter_model.safetensors"), &g, NULL), 0);
    assert_int_equal(st_count(f), st_count(g));
    for (size_t i = 0; i < st_count(f); i++) {
        const struct st_tensor *t = st_at(f, i), *u = st_find(g, t->name);
        assert_non_null(u);
        assert_true(t->type == u->type && t->ndim == u->ndim && t->bytes == u->bytes);
        assert_memory_equal(t->shape, u->shape, sizeof t->shape);
        assert_memory_equal(t->data, u->data, t->bytes);
    }
    st_close(f);
    st_close(g);
    pet_close(p);
}

static void test_same_bytes(void **s)
{
    (void)s;
    struct pet_lineage l = lineage();
    struct pet *p = open_ok(scratch("good.pet"));
    char *again = NULL;
    size_t n = 0;
    assert_int_equal(pet_write(p, &l, scratch("again.pet"), NULL), 0);
    assert_int_equal(file_read(scratch("again.pet"), 1 << 20, &again, &n, NULL), 0);
    assert_int_equal(n, good_len);
    assert_memory_equal(again, good, n);
    free(again);
    pet_close(p);
}

/* ---- damage ---- */

/* As a file, whole and a layer at a time: the same error. */
static void check_stream(const void *data, size_t n)
{
    int rc = 0;
    write_bytes(scratch("x.pet"), data, n);
    const char *says = stream_same(dev, scratch("x.pet"), NULL, &bed.t, &rc);
    if (says)
        fail_msg("%s", says);
}

/* Parses a copy of exactly n bytes, so that a sanitizer sees a read past the end. */
static int parse(const void *data, size_t n, struct err *e)
{
    struct pet *p = NULL;
    void *copy = malloc(n ? n : 1);
    memset(e, 0, sizeof *e);
    if (n)
        memcpy(copy, data, n);
    int r = pet_parse(copy, n, "upload", NULL, &p, e);
    free(copy);
    pet_close(p);
    check_stream(data, n);
    if (r)
        assert_true(e->code == r && strlen(e->msg) > 10);
    return r;
}

static json_t *manifest_of(void)
{
    size_t n = 0;
    json_t *m = NULL;
    memcpy(&n, good + 16, 8);
    assert_int_equal(json_parse(good + 64, n, NULL, &m, NULL), 0);
    return m;
}

static void test_cuts(void **s)
{
    (void)s;
    struct err e;
    json_t *m = manifest_of(), *l;
    size_t i, n = 0;
    memcpy(&n, good + 16, 8);
    const size_t at[] = {0, 1, 7, 8, 12, 16, 24, 32, 63, 64, 65, 64 + n - 1, 64 + n, 64 + n + 1, good_len - 1};
    for (i = 0; i < sizeof at / sizeof *at; i++)
        assert_int_equal(parse(good, at[i], &e), -EINVAL);
    json_array_foreach(json_object_get(m, "layers"), i, l)
    {
        size_t off = (size_t)json_integer_value(json_object_get(l, "offset"));
        assert_int_equal(parse(good, off, &e), -EINVAL);
        assert_says(&e, "it was cut");
        assert_int_equal(parse(good, off + 4, &e), -EINVAL);
    }
    for (i = 0; i < 50; i++)
        assert_int_equal(parse(good, rng_bits(3, 0, i) % good_len, &e), -EINVAL);
    json_decref(m);
}

static void test_flips(void **s)
{
    (void)s;
    struct err e;
    char *bad = malloc(good_len + 1);
    for (size_t i = 0; i < good_len; i++) { /* every byte of the file, one bit of it */
        memcpy(bad, good, good_len);
        bad[i] ^= (char)(1 << i % 8);
        int r = parse(bad, good_len, &e);
        if (r != -EINVAL && r != -E2BIG)
            fail_msg("byte %zu of %zu can change unseen: %d", i, good_len, r);
    }
    memcpy(bad, good, good_len);
    bad[good_len] = 0;
    assert_int_equal(parse(bad, good_len + 1, &e), -EINVAL);
    assert_says(&e, "bytes after its end");
    bad[good_len - 9] ^= 1; /* inside the last frame: lm_head's */
    assert_int_equal(parse(bad, good_len, &e), -EINVAL);
    assert_says(&e, "layer \"");
    assert_says(&e, " at offset ");
    free(bad);
}

/* ---- manifests that lie ---- */

static void put_head(char *file, size_t manifest, size_t total)
{
    struct hash h;
    memcpy(file, good, 64);
    memcpy(file + 16, &manifest, 8);
    memcpy(file + 24, &total, 8);
    hash_of(file + 64, manifest, &h);
    memcpy(file + 32, h.b, 32);
}

/* The good file with one text of its manifest replaced (and spaces after it to make up the length). */
static int edited(const char *from, const char *to, struct err *e)
{
    enum { ROOM = 4096 };
    json_t *m = manifest_of(), *l;
    size_t i, n = 0, to_len = strlen(to), from_len = strlen(from);
    memcpy(&n, good + 16, 8);
    json_array_foreach(json_object_get(m, "layers"), i, l)
    {
        json_t *o = json_object_get(l, "offset");
        json_integer_set(o, json_integer_value(o) + ROOM);
    }
    char *text = json_dumps(m, JSON_COMPACT | JSON_REAL_PRECISION(17)), *file = malloc(good_len + ROOM);
    char *at = strstr(text, from);
    if (!at)
        fail_msg("the manifest has no %s", from);
    memset(file + 64, ' ', n + ROOM);
    size_t head = (size_t)(at - text), tail = strlen(at + from_len);
    assert_true(head + to_len + tail <= n + ROOM);
    memcpy(file + 64, text, head);
    memcpy(file + 64 + head, to, to_len);
    memcpy(file + 64 + head + to_len, at + from_len, tail);
    memcpy(file + 64 + n + ROOM, good + 64 + n, good_len - 64 - n);
    put_head(file, n + ROOM, good_len + ROOM);
    int r = parse(file, good_len + ROOM, e);
    free(file);
    free(text);
    json_decref(m);
    return r;
}

static void test_manifests(void **s)
{
    (void)s;
    static const struct {
        const char *from, *to, *says;
    } t[] = {
        {"\"kind\":\"lora\"", "\"kind\":\"ia3\"", "kind \"ia3\""},
        {"\"kind\":\"lora\"", "\"kind\":7", "\"kind\" must be a string"},
        {"\"kind\":\"lora\",", "", "\"kind\" is missing"},
        {"\"kind\":\"lora\"", "\"kind\":\"recovery\"", "not the hash of the contents"},
        {"\"kind\":", "\"more\":1,\"kind\":", "\"more\" is not known"},
        {"{\"kind\"", "[{\"kind\"", "manifest: not valid JSON"},
        {"\"bytes\":", "\"bytes\":1", "says"},
        {"\"bytes\":", "\"bytes\":-", "\"bytes\" must be an integer"},
        {"\"bytes\":", "\"bytes\":99999999999", "limit"},
        {"\"architecture\":\"llama\"", "\"architecture\":\"\"", "\"architecture\""},
        {"\"architecture\":\"llama\"", "\"architecture\":\"0123456789012345678901234567890123\"", "1 to 31"},
        {"\"weights\":\"", "\"weights\":\"0", "64 hexadecimal"},
        {"\"layers\":[", "\"layers\":[7,", "a layer must be an object"},
        {"\"name\":\"lm_head\"", "\"name\":\"lm_heed\"", "does not belong to this layer"},
        {"\"name\":\"lm_head\"", "\"nome\":\"lm_head\"", "\"nome\" is not known"},
        {"\"size\":", "\"size\":9000000000", "past the end"},
        {"\"size\":", "\"size\":0,\"raw\":", "not valid JSON"},
        {"\"raw\":", "\"raw\":1", "\"raw\" says"},
        {"\"role\":\"A\"", "\"role\":\"B\"", "\"A\" has to come here"},
        {"\"role\":\"A\"", "\"role\":\"C\"", "\"A\" has to come here"},
        {"\"rank\":4", "\"rank\":0", "not the two halves"},
        {"\"rank\":4", "\"rank\":-1", "\"rank\" must be an integer"},
        {"\"rank\":4", "\"rank\":4294967296", "\"rank\" must be an integer"},
        {"\"fn\":\"none\"", "\"fn\":\"relu\"", "\"relu\" is not known"},
        {"\"fn\":\"none\"", "\"fn\":\"gelu\"", "not the two halves"},
        {"\"offset\":0", "\"offset\":1", "no holes"},
        {"\"offset\":0", "\"offset\":9223372036854775807", "no holes"},
        {"\"shape\":[4,16]", "\"shape\":[4,15]", "no holes"},
        {"\"shape\":[4,16]", "\"shape\":[16,4]", "are not of rank 4"},
        {"\"shape\":[4,16]", "\"shape\":[64]", "two integers"},
        {"\"shape\":[4,16]", "\"shape\":[4,0]", "two integers"},
        {"\"shape\":[4,16]", "\"shape\":[4,\"16\"]", "two integers"},
        {"\"shape\":[4,16]", "\"shape\":[4294967295,4294967295]", "overflows"},
        {"\"type\":\"F32\"", "\"type\":\"F37\"", "not known"},
        {"\"type\":\"F32\"", "\"type\":\"I32\"", "I32"},
        {"\"type\":\"BF16\"", "\"type\":\"F16\"", "hash of the contents"},
        {"\"scale\":", "\"scale\":1e39,\"scale\":", "not valid JSON"},
        {"\"module\":\"lm_head\"", "\"module\":\"lm_head2\"", "not the two halves"},
        {"\"module\":\"model.layers.0.mlp.up_proj\"", "\"module\":\"model.layers.0.mlp.up\\nproj\"", "not the two"},
        {"\"tensors\":[", "\"tensors\":[0,", "one pair or more"},
        {"\"tensors\":[", "\"tensors\":[0,0,", "a tensor must be an object"},
    };
    struct err e;
    assert_int_equal(edited("\"kind\"", "\"kind\"", &e), 0);
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        if (!edited(t[i].from, t[i].to, &e))
            fail_msg("%s -> %s was taken", t[i].from, t[i].to);
        assert_says(&e, t[i].says);
    }
}

/* A manifest and frames of our own. */
static int built(const char *manifest, const void *frame, size_t frame_len, struct err *e)
{
    size_t n = strlen(manifest), total = 64 + n + frame_len;
    char *file = malloc(total);
    memcpy(file + 64, manifest, n);
    memcpy(file + 64 + n, frame, frame_len);
    put_head(file, n, total);
    int r = parse(file, total, e);
    free(file);
    return r;
}

/* One layer "head" of raw = 64 bytes: A [1][8] and B [8][1] in f32, in this frame. */
static int one_layer(const char *scale, int rank, size_t raw, const void *frame, size_t len, struct err *e)
{
    char text[4000], hex[HASH_HEX], zero[HASH_HEX];
    uint8_t zeros[32] = {0};
    struct hash h;
    hash_of(zeros, 32, &h);
    hash_hex(&h, zero);
    hash_of(frame, len, &h);
    hash_hex(&h, hex);
    size_t n = 0, side = rank == 1 ? raw / 8 : 8;
    for (int i = 0; i < 3; i++) { /* until the length is in the text */
        n = (size_t)snprintf(
            text, sizeof text,
            "{\"kind\":\"lora\",\"hash\":\"%s\",\"bytes\":%zu,\"layers\":[{\"name\":\"head\",\"offset\":%zu,\"size\":%"
            "zu,"
            "\"raw\":%zu,\"hash\":\"%s\",\"tensors\":[{\"module\":\"head\",\"role\":\"A\",\"rank\":%d,\"scale\":%s,"
            "\"fn\":\"none\",\"offset\":0,\"shape\":[%d,%zu],\"type\":\"F32\",\"hash\":\"%s\"},"
            "{\"module\":\"head\",\"role\":\"B\",\"rank\":%d,\"scale\":%s,\"fn\":\"none\",\"offset\":%zu,"
            "\"shape\":[%zu,%d],\"type\":\"F32\",\"hash\":\"%s\"}]}]}",
            zero, raw, 64 + n, len, raw, hex, rank, scale, rank, side, zero, rank, scale, rank * side * 4, side, rank,
            zero);
    }
    return built(text, frame, len, e);
}

static void test_frames(void **s)
{
    (void)s;
    struct err e;
    uint8_t raw[64] = {0}, frame[400], other[100];
    size_t n = ZSTD_compress(frame, sizeof frame, raw, sizeof raw, 3);
    assert_int_equal(one_layer("1", 1, 64, frame, n, &e), -EINVAL);
    assert_says(&e, "not the hash of the contents"); /* all before it is right */
    for (size_t i = 0; i < 4; i++) {
        static const char *const bad[] = {"NaN", "Infinity", "1e400", "null"};
        assert_int_equal(one_layer(bad[i], 1, 64, frame, n, &e), -EINVAL);
    }
    assert_int_equal(one_layer("1e39", 1, 64, frame, n, &e), -EINVAL);
    assert_says(&e, "\"scale\" is not a finite");
    assert_int_equal(one_layer("1", 1, 128, frame, n, &e), -EINVAL);
    assert_says(&e, "does not state the 128 bytes");
    memcpy(frame + n, frame, n); /* two frames */
    assert_int_equal(one_layer("1", 1, 64, frame, 2 * n, &e), -EINVAL);
    assert_says(&e, "not exactly one zstd frame");
    assert_int_equal(one_layer("1", 1, 64, "not zstd at all", 15, &e), -EINVAL);
    assert_int_equal(one_layer("1", 1, 64, "", 0, &e), -EINVAL);
    raw[5] = 9;
    n = ZSTD_compress(frame, sizeof frame, raw, sizeof raw, 3);
    assert_int_equal(one_layer("1", 1, 64, frame, n, &e), -EINVAL);
    assert_says(&e, "module \"head\", tensor A is damaged");
    /* states 64 bytes, holds 32; with a window of 2^31 bytes, and with a small one */
    for (int i = 0; i < 2; i++) {
        memcpy(other, "\x28\xb5\x2f\xfd\xc0\x00\x40\0\0\0\0\0\0\0\x01\x01\x00", 17);
        other[5] = i ? 0 : 21 << 3;
        memset(other + 17, 0, 32);
        assert_int_equal(one_layer("1", 1, 64, other, 49, &e), -EINVAL);
        assert_says(&e, i ? "does not decode" : "a window of more than");
    }
}

static void test_ranks(void **s)
{
    (void)s;
    struct err e;
    size_t raw = 257 * 8 * 4 * 2, n;
    uint8_t *zeros = calloc(1, raw), frame[400];
    assert_int_equal(one_layer("1", 257, raw, frame, ZSTD_compress(frame, sizeof frame, zeros, raw, 3), &e), -EINVAL);
    assert_says(&e, "rank 257 is outside 1 to 256");
    n = ZSTD_compress(frame, sizeof frame, zeros, 256 * 64, 3);
    assert_int_equal(one_layer("1", 256, 256 * 64, frame, n, &e), -EINVAL);
    assert_says(&e, "hash"); /* the rank passed */
    assert_int_equal(one_layer("1", 0, 0, frame, n, &e), -EINVAL);
    free(zeros);
}

/* A few hundred bytes that claim, and hold, 64 MiB of zeros: refused by the limit before anything is allocated. */
static void test_bomb(void **s)
{
    (void)s;
    struct err e;
    size_t raw = 64 << 20, cap = ZSTD_compressBound(1 << 20);
    char *zeros = calloc(1, raw), *frame = malloc(cap);
    size_t n = ZSTD_compress(frame, cap, zeros, raw, 3);
    assert_false(ZSTD_isError(n));
    struct pet *p = NULL;
    char *big = NULL;
    assert_int_equal(one_layer("1", 1, raw, frame, n, &e), -EINVAL); /* under the default limit: it decodes, hash */
    assert_says(&e, "damaged (hash)");
    assert_int_equal(one_layer("1", 1, (size_t)5 << 30, frame, n, &e), -E2BIG);
    assert_says(&e, "limit");
    struct pet_limits lim = {.max_bytes = 100};
    assert_int_equal(pet_parse(good, good_len, "x", &lim, &p, &e), -E2BIG);
    lim = (struct pet_limits){.max_rank = 3};
    assert_int_equal(pet_parse(good, good_len, "x", &lim, &p, &e), -EINVAL);
    assert_says(&e, "rank 4 is outside 1 to 3");
    assert_null(p);
    big = calloc(1, 64 + (33 << 20)); /* a manifest of 33 MiB */
    put_head(big, 33 << 20, 64 + (33 << 20));
    assert_int_equal(parse(big, 64 + (33 << 20), &e), -E2BIG);
    assert_says(&e, "manifest");
    free(big);
    free(zeros);
    free(frame);
}

static void test_head(void **s)
{
    (void)s;
    struct err e;
    char *bad = malloc(good_len);
    static const struct {
        size_t at;
        const char *says;
    } t[] = {{0, "not a .pet"}, {8, "version"}, {12, "flags"},  {23, "limit"},
             {16, "damaged"},   {31, "cut"},    {40, "damaged"}};
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        memcpy(bad, good, good_len);
        bad[t[i].at] ^= 3;
        assert_true(parse(bad, good_len, &e) < 0);
        assert_says(&e, t[i].says);
    }
    size_t n = good_len; /* a manifest longer than the file */
    memcpy(bad, good, good_len);
    memcpy(bad + 16, &n, 8);
    assert_true(parse(bad, good_len, &e) < 0);
    assert_says(&e, "past the end");
    free(bad);
}

static void test_paths(void **s)
{
    (void)s;
    struct pet *p = NULL;
    struct err e = {0};
    assert_int_equal(pet_open(scratch("none"), NULL, &p, &e), -ENOENT);
    assert_int_equal(pet_open("", NULL, &p, &e), -ENOENT);
    assert_int_equal(mkdir(scratch("empty"), 0777), 0);
    assert_int_equal(pet_open(scratch("empty"), NULL, &p, &e), -ENOENT);
    assert_says(&e, "adapter_config.json");
    assert_int_equal(pet_open("/dev/null", NULL, &p, &e), -EINVAL);
    write_text(scratch("nothing"), "");
    assert_int_equal(pet_open(scratch("nothing"), NULL, &p, &e), -EINVAL);
    write_bytes(scratch("pickle.bin"), "\x80\x02}q", 4);
    assert_int_equal(pet_open(scratch("pickle.bin"), NULL, &p, &e), -EINVAL);
    assert_says(&e, "pickle");
    p = open_ok(scratch("good.pet"));
    assert_true(pet_write(p, NULL, scratch("no/such/dir/x.pet"), &e) < 0);
    assert_true(pet_write_peft(p, scratch("nothing/x"), &e) < 0);
    struct pet_lineage l = {0};
    assert_int_equal(pet_write(p, &l, scratch("x.pet"), &e), -EINVAL);
    pet_close(p);
    pet_close(NULL);
}

static int set_up(void **s)
{
    (void)s;
    struct pet_lineage l = lineage();
    struct pet *p = NULL;
    struct kern_opts o = {.threads = 1, .max_level = "scalar"};
    struct err e = {0};
    scratch_make();
    write_peft(scratch("src"), config, pairs, N_PAIRS);
    int r = pet_open(scratch("src"), NULL, &p, &e);
    if (!r)
        r = pet_write(p, &l, scratch("good.pet"), &e);
    if (!r)
        r = file_read(scratch("good.pet"), 1 << 20, &good, &good_len, &e);
    if (!r)
        r = kern_open(&o, &dev, &e);
    if (!r)
        bed_make(&bed, p, KERN_BF16, 7);
    if (r)
        fprintf(stderr, "%s\n", e.msg);
    pet_close(p);
    return r;
}

static int tear_down(void **s)
{
    (void)s;
    free(good);
    bed_free(&bed);
    kern_close(dev);
    scratch_remove();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_tensor_bytes), cmocka_unit_test(test_same_bytes),
        cmocka_unit_test(test_cuts),       cmocka_unit_test(test_flips),        cmocka_unit_test(test_manifests),
        cmocka_unit_test(test_frames),     cmocka_unit_test(test_ranks),        cmocka_unit_test(test_bomb),
        cmocka_unit_test(test_head),       cmocka_unit_test(test_paths),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
