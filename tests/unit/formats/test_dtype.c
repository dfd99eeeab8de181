/* test_dtype.c - element types: names, sizes, and conversions against common/num.h's scalar ones, at odd addresses. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/num.h"
#include "formats/dtype.h"

static void test_names(void **s)
{
    (void)s;
    for (unsigned i = 0; i < DT_COUNT; i++) {
        enum dtype t = DT_COUNT;
        assert_int_equal(dtype_parse(dtype_name((enum dtype)i), &t), 0);
        assert_int_equal(t, i);
        size_t n = dtype_size((enum dtype)i);
        assert_true(n == 1 || n == 2 || n == 4 || n == 8);
    }
    enum dtype t = DT_I8;
    assert_int_equal(dtype_parse("f32", &t), -22);
    assert_int_equal(dtype_parse("", &t), -22);
    assert_int_equal(t, DT_I8);
}

static void test_sixteen_bits(void **s)
{
    (void)s;
    enum { N = 65536 };
    uint8_t *src = malloc(2 * N + 1);
    float *dst = malloc(N * sizeof *dst);
    for (uint32_t i = 0; i < N; i++) {
        uint16_t h = (uint16_t)i;
        memcpy(src + 1 + 2 * i, &h, 2);
    }
    assert_int_equal(dtype_to_f32(DT_F16, src + 1, N, dst), 0);
    for (uint32_t i = 0; i < N; i++)
        assert_int_equal(f32_bits(dst[i]), f32_bits(f16_to_f32((uint16_t)i)));
    uint8_t *back = malloc(2 * N + 1);
    assert_int_equal(dtype_of_f32(DT_F16, dst, N, back + 1), 0);
    for (uint32_t i = 0; i < N; i++) {
        if (!isnan(dst[i]))
            assert_memory_equal(back + 1 + 2 * i, src + 1 + 2 * i, 2);
    }
    assert_int_equal(dtype_to_f32(DT_BF16, src + 1, N, dst), 0);
    for (uint32_t i = 0; i < N; i++)
        assert_int_equal(f32_bits(dst[i]), i << 16);
    assert_int_equal(dtype_of_f32(DT_BF16, dst, N, back + 1), 0);
    for (uint32_t i = 0; i < N; i++) {
        if (!isnan(dst[i]))
            assert_memory_equal(back + 1 + 2 * i, src + 1 + 2 * i, 2);
    }
    free(src);
    free(dst);
    free(back);
}

static void test_wide(void **s)
{
    (void)s;
    uint8_t src[1 + 3 * 8], back[1 + 3 * 8];
    double d[3] = {1.5, -1e-50, 1e300};
    float f[3];
    memcpy(src + 1, d, sizeof d);
    assert_int_equal(dtype_to_f32(DT_F64, src + 1, 3, f), 0);
    assert_true(f[0] == 1.5f && f[1] == 0 && isinf(f[2]));
    f[2] = 3;
    assert_int_equal(dtype_of_f32(DT_F64, f, 3, back + 1), 0);
    memcpy(d, back + 1, sizeof d);
    assert_true(d[0] == 1.5 && d[2] == 3);
    assert_int_equal(dtype_of_f32(DT_F32, f, 3, back + 1), 0);
    float g[3];
    assert_int_equal(dtype_to_f32(DT_F32, back + 1, 3, g), 0);
    assert_memory_equal(f, g, sizeof f);
}

static void test_refused(void **s)
{
    (void)s;
    float f[1] = {7};
    uint8_t b[8] = {0};
    enum dtype bad[] = {DT_I8, DT_U8, DT_I16, DT_I32, DT_I64, DT_BOOL, DT_F8_E4M3, DT_U64};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_false(dtype_is_float(bad[i]));
        assert_int_equal(dtype_to_f32(bad[i], b, 1, f), -22);
        assert_int_equal(dtype_of_f32(bad[i], f, 1, b), -22);
    }
    assert_true(f[0] == 7);
    assert_true(dtype_is_float(DT_F16));
    assert_int_equal(dtype_to_f32(DT_F32, NULL, 0, f), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_sixteen_bits),
        cmocka_unit_test(test_wide),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
