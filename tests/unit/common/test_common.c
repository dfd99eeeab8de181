/* test_common.c - errors, arenas, buffers, files, hashes, 16-bit floats and UTF-8. */
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

#include "common/arena.h"
#include "common/buf.h"
#include "common/checked.h"
#include "common/err.h"
#include "common/file.h"
#include "common/hash.h"
#include "common/num.h"
#include "common/utf8.h"

static void test_err(void **s)
{
    (void)s;
    struct err e = {0};
    assert_int_equal(err_set(&e, -EINVAL, "%d things", 3), -EINVAL);
    assert_string_equal(e.msg, "3 things");
    assert_int_equal(err_prefix(&e, -EINVAL, "file %s", "x"), -EINVAL);
    assert_string_equal(e.msg, "file x: 3 things");
    assert_int_equal(err_param(&e, -ERANGE, "top_p", "must be at most 1"), -ERANGE);
    assert_string_equal(e.param, "top_p");
    assert_int_equal(err_set(NULL, -EIO, "no struct"), -EIO);
    char longer[1200];
    memset(longer, 0, sizeof longer);
    for (int i = 0; i < 500; i++)
        memcpy(longer + 2 * i, "\xC3\xA9", 2);
    err_set(&e, -EIO, "a%s", longer);
    assert_int_equal(utf8_valid(e.msg, strlen(e.msg)), strlen(e.msg));
    err_set(&e, -EIO, "%s", longer);
    assert_int_equal(utf8_valid(e.msg, strlen(e.msg)), strlen(e.msg));
    err_prefix(&e, -EIO, "b");
    assert_int_equal(utf8_valid(e.msg, strlen(e.msg)), strlen(e.msg));
}

static void test_arena(void **s)
{
    (void)s;
    struct arena *a = arena_create(1000);
    assert_non_null(a);
    char *p = arena_strndup(a, "hello", 5);
    assert_string_equal(p, "hello");
    assert_null(arena_alloc(a, 2000));
    assert_null(arena_calloc(a, SIZE_MAX / 2, 3));
    assert_string_equal(arena_printf(a, "%d-%s", 4, "x"), "4-x");
    size_t used = arena_used(a);
    assert_true(used <= 1000);
    while (arena_alloc(a, 10))
        ;
    assert_true(arena_used(a) <= 1000);
    arena_free(a);
    arena_free(NULL);
    a = arena_create(0);
    for (int i = 0; i < 100; i++) {
        uint8_t *q = arena_calloc(a, 1, 50000);
        assert_non_null(q);
        assert_int_equal((uintptr_t)q % 16, 0);
        assert_int_equal(q[49999], 0);
        memset(q, 1, 50000);
    }
    arena_free(a);
}

static void test_buf(void **s)
{
    (void)s;
    struct buf b;
    buf_init(&b, 10);
    assert_int_equal(buf_puts(&b, "hello"), 0);
    assert_int_equal(buf_printf(&b, "%d", 12345), 0);
    assert_int_equal(buf_puts(&b, "x"), -E2BIG);
    assert_true(b.failed);
    assert_string_equal(b.data, "hello12345");
    buf_clear(&b);
    assert_int_equal(buf_puts(&b, "ab"), 0);
    buf_consume(&b, 1);
    assert_string_equal(b.data, "b");
    buf_free(&b);
    buf_free(&b);
}

static void test_file(void **s)
{
    (void)s;
    char dir[] = "/tmp/cpet-test-XXXXXX";
    assert_non_null(mkdtemp(dir));
    struct err e = {0};
    char *sub = path_join(dir, "a/b"), *p = path_join(dir, "a/b/f");
    assert_int_equal(dir_make(sub, &e), 0);
    assert_int_equal(dir_make(sub, &e), 0);
    assert_int_equal(file_write_atomic(p, "data", 4, 0644, &e), 0);
    char *text = NULL;
    size_t n = 0;
    assert_int_equal(file_read(p, 3, &text, &n, &e), -EFBIG);
    assert_null(text);
    assert_int_equal(file_read(p, 4, &text, &n, &e), 0);
    assert_string_equal(text, "data");
    free(text);
    struct map m = {0};
    assert_int_equal(map_open(p, &m, &e), 0);
    assert_memory_equal(m.data, "data", 4);
    map_forget(&m, 0, 4);
    map_close(&m);
    assert_int_equal(map_open(sub, &m, &e), -EISDIR);
    assert_int_equal(map_open("/dev/null", &m, &e), -EINVAL);
    assert_int_equal(map_open("/nonexistent/x", &m, &e), -ENOENT);
    assert_int_not_equal(file_write_atomic("/nonexistent/x", "", 0, 0600, &e), 0);
    unlink(p);
    rmdir(sub);
    free(p);
    free(sub);
    p = path_join(dir, "a");
    rmdir(p);
    rmdir(dir);
    free(p);
}

static void test_hash(void **s)
{
    (void)s;
    struct hash h, g;
    char hex[HASH_HEX];
    hash_of("abc", 3, &h); /* the reference vector of BLAKE2b-256 */
    hash_hex(&h, hex);
    assert_string_equal(hex, "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319");
    struct hash_state st;
    hash_init(&st);
    hash_update(&st, "a", 1);
    hash_update(&st, "bc", 2);
    hash_final(&st, &g);
    assert_true(hash_equal(&h, &g));
    assert_int_equal(hash_parse(hex, &g), 0);
    assert_true(hash_equal(&h, &g));
    hex[63] = 0;
    assert_int_equal(hash_parse(hex, &g), -EINVAL);
    hex[3] = 'g';
    assert_int_equal(hash_parse(hex, &g), -EINVAL);
}

static void test_num(void **s)
{
    (void)s;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = f16_to_f32((uint16_t)h), g = bf16_to_f32((uint16_t)h);
        if (f == f)
            assert_int_equal(f32_to_f16(f), h);
        if (g == g)
            assert_int_equal(f32_to_bf16(g), h);
    }
    assert_int_equal(f32_to_f16(65520.0f), 0x7C00);
    assert_int_equal(f32_to_f16(65519.0f), 0x7BFF);
    assert_true(isnan(bf16_to_f32(f32_to_bf16(NAN))));
    assert_true(isnan(f16_to_f32(f32_to_f16(NAN))));
    double sum = 0;
    for (uint64_t i = 0; i < 100000; i++) {
        float u = rng_unit(1, 2, i);
        assert_true(u >= 0 && u < 1);
        sum += u;
    }
    assert_true(fabs(sum / 100000 - 0.5) < 0.005);
    assert_true(rng_bits(1, 2, 3) != rng_bits(1, 3, 2));
    size_t v;
    assert_true(ck_mul(SIZE_MAX, 2, &v));
    assert_true(ck_add(SIZE_MAX, 1, &v));
    assert_true(ck_round_up(SIZE_MAX, 16, &v));
    assert_true(ck_outside(5, SIZE_MAX, 10));
    assert_false(ck_outside(5, 5, 10));
}

static void test_utf8(void **s)
{
    (void)s;
    for (uint32_t cp = 0; cp <= 0x10FFFF; cp++) {
        if (cp >= 0xD800 && cp <= 0xDFFF)
            continue;
        char t[4];
        uint32_t back = 0;
        size_t n = utf8_put(cp, t);
        assert_int_equal(utf8_next(t, n, &back), n);
        assert_int_equal(back, cp);
        for (size_t k = 1; k < n; k++) {
            assert_int_equal(utf8_next(t, k, &back), 0);
            assert_int_equal(utf8_tail(t, k), k);
        }
        assert_int_equal(utf8_tail(t, n), 0);
    }
    assert_int_equal(utf8_valid("a\xC0\x80", 3), 1);
    assert_int_equal(utf8_valid("\xED\xA0\x80", 3), 0);
    assert_int_equal(utf8_tail("\xED\xA0", 2), 0);
    assert_int_equal(utf8_tail("\x80\x80", 2), 0);
    char shown[] = "a\n\x1B[2J\x7F\xC2\x9B \xC2\xA0\xC3\xA9\xC2";
    utf8_hide_controls(shown);
    assert_string_equal(shown, "a??[2J??? \xC2\xA0\xC3\xA9\xC2");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_err),  cmocka_unit_test(test_arena), cmocka_unit_test(test_buf),
        cmocka_unit_test(test_file), cmocka_unit_test(test_hash),  cmocka_unit_test(test_num),
        cmocka_unit_test(test_utf8),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
