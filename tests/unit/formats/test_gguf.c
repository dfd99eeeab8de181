/* test_gguf.c - GGUF files made in the test (every cut, every refusal) and one made by the gguf package (tests/golden).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/num.h"
#include "formats/safetensors.h"
#include "tests/unit/formats/gguf_build.h"

static void good(struct buf *b, uint32_t version)
{
    buf_init(b, 0);
    gb_head(b, version, 2, 5);
    gb_text(b, "general.architecture", "llama");
    gb_u32(b, "general.alignment", 64);
    gb_array(b, "strs", GGUF_STR, 2);
    gb_str(b, "a");
    gb_str(b, "");
    gb_array(b, "nested", GGUF_ARRAY, 1);
    gb_int(b, GGUF_U16, 4);
    gb_int(b, 3, 8);
    gb_int(b, 0, 6);
    gb_f32(b, "eps", 0.5f);
    gb_tensor(b, "w", GGML_F32, 4, 2, 64);
    gb_tensor(b, "q", GGML_Q8_0, 32, 0, 0);
    gb_align(b, 64);
    gb_int(b, 0x3C00, 2); /* d = 1 */
    for (int i = 0; i < 32; i++)
        gb_int(b, (uint8_t)(i - 16), 1);
    gb_align(b, 64);
    for (int i = 0; i < 8; i++)
        gb_int(b, f32_bits((float)i), 4);
}

/* Opens exactly n bytes in memory of their own, so that a read beyond is caught. */
static int open_bytes(const void *p, size_t n, struct gguf_file **f, struct err *e)
{
    uint8_t *copy = malloc(n ? n : 1);
    if (n)
        memcpy(copy, p, n);
    struct gguf_file *g = NULL;
    int r = gguf_open_mem("FILE", copy, n, &g, e);
    if (r) {
        assert_null(g);
        assert_memory_equal(e->msg, "FILE: ", 6);
    }
    gguf_close(g);
    free(copy);
    if (!r && f)
        r = gguf_open_mem("FILE", p, n, f, e);
    return r;
}

static void test_read(void **s)
{
    (void)s;
    for (uint32_t version = 2; version <= 3; version++) {
        struct buf b;
        struct gguf_file *f = NULL;
        struct err e = {0};
        good(&b, version);
        assert_int_equal(open_bytes(b.data, b.len, &f, &e), 0);
        assert_int_equal(gguf_kv_count(f), 5);
        assert_string_equal(gguf_kv_at(f, 0)->key, "general.architecture");
        assert_null(gguf_kv_at(f, 5));
        assert_null(gguf_kv_find(f, "nothing"));
        struct gguf_str v[2];
        const struct gguf_kv *kv = NULL;
        assert_int_equal(gguf_get_array(f, "strs", GGUF_STR, true, &kv, &e), 0);
        assert_int_equal(gguf_array_strs(kv, v), 0);
        assert_true(v[0].n == 1 && v[0].p[0] == 'a' && v[1].n == 0);
        assert_int_equal(gguf_tensor_count(f), 2);
        const struct gguf_tensor *w = gguf_tensor_find(f, "w"), *q = gguf_tensor_find(f, "q");
        assert_ptr_equal(w, gguf_tensor_at(f, 0));
        assert_null(gguf_tensor_at(f, 2));
        assert_null(gguf_tensor_find(f, "x"));
        assert_true(w->ndim == 2 && w->shape[0] == 2 && w->shape[1] == 4 && w->n_rows == 2 && w->row_len == 4);
        float x[32];
        assert_int_equal(gguf_tensor_f32(w, 1, 1, x), 0);
        assert_true(x[0] == 4 && x[3] == 7);
        assert_int_equal(gguf_tensor_f32(w, 1, 2, x), -ERANGE);
        assert_int_equal(gguf_tensor_f32(q, 0, 1, x), 0);
        assert_true(x[0] == -16 && x[31] == 15);
        gguf_forget(f, w);
        gguf_close(f);
        buf_free(&b);
    }
    gguf_close(NULL);
}

static void test_cut_everywhere(void **s)
{
    (void)s;
    struct buf b;
    good(&b, 3);
    for (size_t n = 0; n < b.len; n++) {
        struct err e = {0};
        assert_int_equal(open_bytes(b.data, n, NULL, &e), -EINVAL);
    }
    buf_free(&b);
}

/* Each changed byte either still gives a file or an error, never a crash (the sanitizers watch). */
static void test_every_byte_changed(void **s)
{
    (void)s;
    struct buf b;
    good(&b, 3);
    static const uint8_t values[] = {0, 1, 7, 0x7F, 0x80, 0xFF};
    for (size_t i = 0; i < b.len; i++) {
        char was = b.data[i];
        for (size_t k = 0; k < sizeof values; k++) {
            struct err e = {0};
            b.data[i] = (char)values[k];
            open_bytes(b.data, b.len, NULL, &e);
        }
        b.data[i] = was;
    }
    buf_free(&b);
}

static void refused(struct buf *b, const char *says)
{
    struct err e = {0};
    gb_align(b, 32);
    gb_int(b, 0, 8);
    int r = open_bytes(b->data, b->len, NULL, &e);
    if (r >= 0 || !strstr(e.msg, says))
        fail_msg("gave %d \"%s\", expected \"%s\"", r, e.msg, says);
    buf_free(b);
}

static void test_header(void **s)
{
    (void)s;
    struct buf b = {0};
    buf_puts(&b, "GGML\3");
    refused(&b, "does not begin with \"GGUF\"");
    gb_head(&b, 1, 0, 0);
    refused(&b, "GGUF version 1 at byte 4");
    gb_head(&b, 4, 0, 0);
    refused(&b, "GGUF version 4 at byte 4");
    gb_head(&b, 0x03000000, 0, 0);
    refused(&b, "big-endian");
    gb_head(&b, 3, UINT64_MAX, 0);
    refused(&b, "number of tensors at byte 8");
    gb_head(&b, 3, 0, UINT64_MAX);
    refused(&b, "number of keys at byte 16");
    struct err e = {0};
    gb_head(&b, 3, 0, 0);
    assert_int_equal(open_bytes(b.data, b.len, NULL, &e), 0);
    buf_free(&b);
}

static void test_bad_values(void **s)
{
    (void)s;
    struct buf b = {0};
    gb_head(&b, 3, 0, 1);
    gb_int(&b, UINT64_MAX, 8);
    refused(&b, "a key at byte 24 is 18446744073709551615 bytes long");
    gb_head(&b, 3, 0, 1);
    gb_key(&b, "", GGUF_U8);
    refused(&b, "a key at byte 24 must be");
    gb_head(&b, 3, 0, 1);
    gb_int(&b, 2, 8);
    buf_append(&b, "a\0", 2);
    gb_int(&b, 0, 8);
    refused(&b, "without NUL");
    gb_head(&b, 3, 0, 1);
    gb_key(&b, "k", 13);
    gb_int(&b, 0, 8);
    refused(&b, "unknown type 13");
    gb_head(&b, 3, 0, 1);
    gb_key(&b, "k", GGUF_STR);
    gb_int(&b, 1u << 30, 8);
    refused(&b, "past the end of the file");
    gb_head(&b, 3, 0, 1);
    gb_array(&b, "k", 13, 1);
    refused(&b, "elements of unknown type 13");
    gb_head(&b, 3, 0, 1);
    gb_array(&b, "k", GGUF_U64, UINT64_MAX / 8 + 2);
    refused(&b, "more than the file can hold");
    gb_head(&b, 3, 0, 1);
    gb_array(&b, "k", GGUF_STR, 1000000);
    refused(&b, "more than the file can hold");
    gb_head(&b, 3, 0, 1);
    gb_array(&b, "k", GGUF_ARRAY, 1);
    for (int i = 0; i < 8; i++) {
        gb_int(&b, GGUF_ARRAY, 4);
        gb_int(&b, 1, 8);
    }
    refused(&b, "nested deeper");
    gb_head(&b, 3, 0, 2);
    gb_u32(&b, "k", 1);
    gb_u32(&b, "k", 2);
    refused(&b, "the key \"k\" is there twice");
}

/* One tensor (and a second where name2 is given) with 64 bytes of room for data. */
static void one(struct buf *b, uint64_t ndim, uint64_t d0, uint64_t d1, uint32_t type, uint64_t off)
{
    gb_head(b, 3, 1, 0);
    gb_str(b, "t");
    gb_int(b, ndim, 4);
    for (uint64_t i = 0; i < ndim && i < 8; i++)
        gb_int(b, i ? d1 : d0, 8);
    gb_int(b, type, 4);
    gb_int(b, off, 8);
    gb_align(b, 32);
    gb_int(b, 0, 8);
    gb_int(b, 0, 8);
}

static void test_bad_tensors(void **s)
{
    (void)s;
    struct buf b = {0};
    one(&b, 0, 1, 1, GGML_F32, 0);
    refused(&b, "has 0 dimensions");
    one(&b, 5, 1, 1, GGML_F32, 0);
    refused(&b, "has 5 dimensions");
    one(&b, 2, 0, 1, GGML_F32, 0);
    refused(&b, "empty or overflows");
    one(&b, 3, 4, (uint64_t)1 << 33, GGML_F32, 0);
    refused(&b, "overflows");
    one(&b, 2, (uint64_t)1 << 33, (uint64_t)1 << 33, GGML_F32, 0);
    refused(&b, "overflows");
    one(&b, 1, UINT64_MAX, 0, GGML_F32, 0);
    refused(&b, "empty or overflows");
    one(&b, 1, 256, 0, 10, 0);
    refused(&b, "of type Q2_K (10, byte");
    one(&b, 1, 288, 0, GGML_Q4_K, 0);
    refused(&b, "not whole blocks of 256");
    one(&b, 1, 256, 0, 5, 0);
    refused(&b, "of type unknown (5");
    one(&b, 1, 256, 0, UINT32_MAX, 0);
    refused(&b, "supported are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K");
    one(&b, 1, 33, 0, GGML_Q4_0, 0);
    refused(&b, "not whole blocks of 32");
    one(&b, 1, 4, 0, GGML_F32, 16);
    refused(&b, "not a multiple of 32");
    one(&b, 1, 4, 0, GGML_F32, 64);
    refused(&b, "past the end");
    one(&b, 1, 4, 0, GGML_F32, UINT64_MAX - 31);
    refused(&b, "past the end");
    one(&b, 2, 4, 1000, GGML_F32, 0);
    refused(&b, "past the end");
    gb_head(&b, 3, 2, 0);
    gb_tensor(&b, "t", GGML_F32, 4, 0, 0);
    gb_tensor(&b, "t", GGML_F32, 4, 0, 32);
    gb_int(&b, 0, 8);
    refused(&b, "the tensor \"t\" is there twice");
    gb_head(&b, 3, 2, 0);
    gb_tensor(&b, "t", GGML_F32, 1, 0, 0);
    gb_tensor(&b, "u", GGML_F32, 1, 0, 0);
    refused(&b, "overlaps");
    for (int i = 0; i < 2; i++) {
        gb_head(&b, 3, 1, 1);
        gb_u32(&b, "general.alignment", i ? 48 : 4);
        gb_tensor(&b, "t", GGML_F32, 1, 0, 0);
        refused(&b, i ? "power of two" : "\"general.alignment\" at byte");
    }
}

static void test_golden(void **s)
{
    (void)s;
    struct gguf_file *f = NULL;
    struct st_file *want = NULL;
    struct err e = {0};
    assert_int_equal(gguf_open(GOLDEN_DIR "/formats.gguf", &f, &e), 0);
    assert_int_equal(st_open(GOLDEN_DIR "/formats.safetensors", &want, &e), 0);
    assert_string_equal(st_meta(want, "made by"), "make_formats.py");
    assert_int_equal(gguf_tensor_count(f), 11);
    for (size_t i = 0; i < gguf_tensor_count(f); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(f, i);
        const struct st_tensor *w = st_find(want, t->name);
        assert_non_null(w);
        assert_int_equal(t->ndim, w->ndim);
        assert_memory_equal(t->shape, w->shape, t->ndim * sizeof *t->shape);
        float *x = malloc(w->bytes);
        assert_int_equal(gguf_tensor_f32(t, 0, t->n_rows, x), 0);
        assert_memory_equal(x, w->data, w->bytes);
        assert_int_equal(gguf_tensor_f32(t, t->n_rows - 1, 1, x), 0);
        assert_memory_equal(x, w->data + w->bytes - 4 * t->row_len, 4 * t->row_len);
        free(x);
        gguf_forget(f, t);
    }
    assert_string_equal(gguf_type_name(GGML_Q4_1), "Q4_1");
    st_close(want);
    gguf_close(f);
    assert_int_equal(gguf_open(GOLDEN_DIR "/none.gguf", &f, &e), -ENOENT);
}

static void test_getters(void **s)
{
    (void)s;
    struct gguf_file *f = NULL;
    struct err e = {0};
    assert_int_equal(gguf_open(GOLDEN_DIR "/formats.gguf", &f, &e), 0);
    uint64_t u = 1, def = 3;
    static const struct {
        const char *key;
        uint64_t is; /* 0: not an unsigned integer */
        double f;
    } ints[] = {
        {"v.u8", 200, 200},  {"v.u16", 60000, 60000}, {"v.u32", 4000000000u, 4e9}, {"v.u64", (uint64_t)1 << 40, 0x1p40},
        {"v.i8", 0, -100},   {"v.i16", 0, -30000},    {"v.i32", 0, -2e9},          {"v.f32", 0, 1.5},
        {"v.f64", 0, 1e-300}};
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) {
        double d = 0;
        assert_int_equal(gguf_get_u64(f, ints[i].key, 1, UINT64_MAX, NULL, &u, &e), ints[i].is ? 0 : -EINVAL);
        if (ints[i].is)
            assert_true(u == ints[i].is);
        assert_int_equal(gguf_get_f64(f, ints[i].key, -1e10, 2e12, NULL, &d, &e), 0);
        assert_true(d == ints[i].f);
    }
    double d = 0, dd = 7;
    bool t = false, td = true;
    struct gguf_str str;
    const struct gguf_kv *kv = NULL;
    assert_int_equal(gguf_get_u64(f, "v.u8", 0, 199, NULL, &u, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "\"v.u8\" at byte"));
    assert_int_equal(gguf_get_u64(f, "none", 0, 1, NULL, &u, &e), -EINVAL);
    assert_string_equal(e.msg, "\"none\" is missing");
    assert_int_equal(gguf_get_u64(f, "none", 0, 1, &def, &u, &e), 0);
    assert_int_equal(u, 3);
    assert_int_equal(gguf_get_f64(f, "v.str", 0, 1, NULL, &d, &e), -EINVAL);
    assert_int_equal(gguf_get_f64(f, "none", 0, 1, NULL, &d, &e), -EINVAL);
    assert_int_equal(gguf_get_f64(f, "none", 0, 1, &dd, &d, &e), 0);
    assert_int_equal(gguf_get_bool(f, "v.bool", NULL, &t, &e), 0);
    assert_true(t);
    assert_int_equal(gguf_get_bool(f, "v.u8", NULL, &t, &e), -EINVAL);
    assert_int_equal(gguf_get_bool(f, "none", NULL, &t, &e), -EINVAL);
    assert_int_equal(gguf_get_bool(f, "none", &td, &t, &e), 0);
    assert_int_equal(gguf_get_str(f, "v.str", true, &str, &e), 0);
    assert_true(str.n == 4 && !memcmp(str.p, "a \xC3\xA9", 4));
    assert_int_equal(gguf_get_str(f, "v.u8", true, &str, &e), -EINVAL);
    assert_int_equal(gguf_get_str(f, "none", true, &str, &e), -EINVAL);
    assert_int_equal(gguf_get_str(f, "none", false, &str, &e), 0);
    assert_null(str.p);
    int32_t ints3[3];
    float floats[2];
    struct gguf_str strs[3];
    assert_int_equal(gguf_get_array(f, "v.ints", GGUF_I32, true, &kv, &e), 0);
    assert_int_equal(gguf_array_i32(kv, ints3), 0);
    assert_true(ints3[0] == 1 && ints3[1] == -2 && ints3[2] == 3);
    assert_int_equal(gguf_array_strs(kv, strs), -EINVAL);
    assert_int_equal(gguf_get_array(f, "v.floats", GGUF_F32, true, &kv, &e), 0);
    assert_int_equal(gguf_array_f32(kv, floats), 0);
    assert_true(floats[0] == 0.5f && floats[1] == -0.25f);
    assert_int_equal(gguf_array_i32(kv, ints3), -EINVAL);
    assert_int_equal(gguf_get_array(f, "v.strs", GGUF_STR, true, &kv, &e), 0);
    assert_int_equal(gguf_array_strs(kv, strs), 0);
    assert_true(strs[2].n == 2 && !memcmp(strs[2].p, "yz", 2));
    assert_int_equal(gguf_array_f32(kv, floats), -EINVAL);
    assert_int_equal(gguf_array_f32(gguf_kv_find(f, "v.u8"), floats), -EINVAL);
    assert_int_equal(gguf_array_i32(gguf_kv_find(f, "v.u8"), ints3), -EINVAL);
    assert_int_equal(gguf_get_array(f, "v.strs", GGUF_I32, true, &kv, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "must be an array of int32"));
    assert_int_equal(gguf_get_array(f, "none", GGUF_I32, true, &kv, &e), -EINVAL);
    assert_int_equal(gguf_get_array(f, "none", GGUF_I32, false, &kv, &e), 0);
    assert_null(kv);
    gguf_close(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),   cmocka_unit_test(test_cut_everywhere), cmocka_unit_test(test_every_byte_changed),
        cmocka_unit_test(test_header), cmocka_unit_test(test_bad_values),     cmocka_unit_test(test_bad_tensors),
        cmocka_unit_test(test_golden), cmocka_unit_test(test_getters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
