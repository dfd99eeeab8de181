/* test_safetensors.c - files made in the test: round trips, every cut, and everything the format forbids. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/file.h"
#include "formats/safetensors.h"

static char dir[64];

static char *at(const char *name)
{
    return path_join(dir, name);
}

static void put(const char *name, const void *p, size_t n)
{
    char *path = at(name);
    struct err e = {0};
    assert_int_equal(file_write_atomic(path, p, n, 0644, &e), 0);
    free(path);
}

/* A file of that header and so many bytes of data; malloc'ed exactly, so that a read beyond is caught. */
static uint8_t *make(const char *header, size_t data, size_t *n)
{
    size_t h = strlen(header);
    *n = 8 + h + data;
    uint8_t *p = malloc(*n);
    for (int i = 0; i < 8; i++)
        p[i] = (uint8_t)((uint64_t)h >> (8 * i));
    memcpy(p + 8, header, h);
    for (size_t i = 0; i < data; i++)
        p[8 + h + i] = (uint8_t)i;
    return p;
}

static int open_header(const char *header, size_t data, struct err *e)
{
    size_t n;
    uint8_t *p = make(header, data, &n);
    struct st_file *f = NULL;
    int r = st_open_mem("FILE", p, n, &f, e);
    if (r)
        assert_null(f);
    st_close(f);
    free(p);
    return r;
}

#define GOOD                                                                                                           \
    "{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[4,28]},"         \
    "\"a\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[0,4]},"                                                 \
    "\"e\":{\"dtype\":\"I64\",\"shape\":[0,5],\"data_offsets\":[28,28]},"                                              \
    "\"s\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[28,29]}}   "

static void test_read(void **s)
{
    (void)s;
    size_t n;
    uint8_t *p = make(GOOD, 29, &n);
    struct st_file *f = NULL;
    struct err e = {0};
    assert_int_equal(st_open_mem("FILE", p, n, &f, &e), 0);
    assert_int_equal(st_count(f), 4);
    assert_string_equal(st_at(f, 0)->name, "a");
    assert_string_equal(st_at(f, 3)->name, "s");
    assert_null(st_at(f, 4));
    const struct st_tensor *b = st_find(f, "b");
    assert_non_null(b);
    assert_true(b->type == DT_F32 && b->ndim == 2 && b->shape[0] == 2 && b->shape[1] == 3 && b->bytes == 24);
    assert_int_equal(b->data[0], 4);
    assert_ptr_equal(b->data, p + b->off);
    assert_int_equal(st_find(f, "s")->ndim, 0);
    assert_int_equal(st_find(f, "e")->bytes, 0);
    assert_null(st_find(f, "c"));
    assert_string_equal(st_meta(f, "format"), "pt");
    assert_null(st_meta(f, "pt"));
    st_forget(f, b);
    st_close(f);
    st_close(NULL);
    assert_int_equal(open_header("{}", 0, &e), 0);
    free(p);
}

static void test_cut_everywhere(void **s)
{
    (void)s;
    size_t n;
    uint8_t *p = make(GOOD, 29, &n);
    for (size_t k = 0; k < n; k++) {
        uint8_t *cut = malloc(k ? k : 1);
        memcpy(cut, p, k);
        struct st_file *f = NULL;
        struct err e = {0};
        assert_int_equal(st_open_mem("FILE", cut, k, &f, &e), -EINVAL);
        assert_null(f);
        assert_memory_equal(e.msg, "FILE: ", 6);
        free(cut);
    }
    /* One byte more than the tensors. */
    free(p);
    struct err e = {0};
    assert_int_equal(open_header(GOOD, 30, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "the tensors end at byte"));
}

static void test_forbidden(void **s)
{
    (void)s;
#define T(name, rest) "\"" name "\":{" rest "}"
    static const struct {
        const char *header;
        size_t data;
        const char *says;
    } bad[] = {
        {"[1]", 0, "must begin with '{'"},
        {" {}", 0, "must begin with '{'"},
        {"{\"a\":1}", 0, "\"a\": its entry must be an object"},
        {"{" T("a", "\"shape\":[1],\"data_offsets\":[0,1]") "}", 1, "\"dtype\" must be a string"},
        {"{" T("a", "\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,1]") "}", 1, "\"dtype\" must be a string"},
        {"{" T("a", "\"dtype\":\"Q4\",\"shape\":[1],\"data_offsets\":[0,1]") "}", 1, "unknown dtype \"Q4\""},
        {"{" T("a", "\"dtype\":\"U8\",\"data_offsets\":[0,1]") "}", 1, "\"shape\" must be an array"},
        {"{" T("a", "\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]") "}", 1, "shape[0]"},
        {"{" T("a", "\"dtype\":\"U8\",\"shape\":[1.0],\"data_offsets\":[0,1]") "}", 1, "shape[0]"},
        {"{" T("a", "\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]") "}", 1, "9 dimensions"},
        {"{" T("a", "\"dtype\":\"U8\",\"shape\":[1]") "}", 1, "\"data_offsets\" must be two"},
        {"{" T("a", "\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]") "}", 1, "\"data_offsets\" must be two"},
        {"{" T("a", "\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[-1,0]") "}", 1, "\"data_offsets\" must be two"},
        {"{" T("a", "\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,0]") "}", 1, "end before they begin"},
        {"{" T("a", "\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":1") "}", 1, "holds more than"},
        {"{" T("a", "\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]") "}", 1, "past the end"},
        {"{" T("a", "\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[9223372036854775806,9223372036854775807]") "}", 1,
         "past the end"},
        {"{" T("a", "\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,2]") "}", 2, "make 4 bytes"},
        {"{" T("a", "\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]") "}", 0, "overflows"},
        {"{" T("a",
               "\"dtype\":\"F32\",\"shape\":[0,9223372036854775807,9223372036854775807],\"data_offsets\":[0,0]") "}",
         0, "overflows"},
        {"{" T("a", "\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]") "}", 0, "overflows"},
        {"{" T("a", "\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]") "," T(
             "b", "\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]") "}",
         3, "overlap"},
        {"{" T("a", "\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]") "," T(
             "b", "\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[2,3]") "}",
         3, "leave a hole"},
        {"{" T("a", "\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]") "}", 2, "leave a hole"},
        {"{" T("a", "\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]") "," T(
             "a", "\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]") "}",
         2, "duplicate"},
        {"{\"__metadata__\":[]}", 0, "\"__metadata__\" must be an object"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "the value of \"a\" must be a string"},
        {"{\"a\\u0000\":{}}", 0, "not valid JSON"},
        {"{\"a\":{\"shape\":[[[[1]]]]}}", 0, "nested deeper"},
        {"{} x", 0, "not valid JSON"},
        {"{", 0, "not valid JSON"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err e = {0};
        int r = open_header(bad[i].header, bad[i].data, &e);
        if (r >= 0 || !strstr(e.msg, bad[i].says) || strncmp(e.msg, "FILE: ", 6))
            fail_msg("%s\n  gave %d \"%s\", expected \"%s\"", bad[i].header, r, e.msg, bad[i].says);
    }
}

static void test_header_length(void **s)
{
    (void)s;
    uint8_t p[16] = {0};
    struct st_file *f = NULL;
    struct err e = {0};
    memset(p, 0xFF, 8);
    assert_int_equal(st_open_mem("FILE", p, 16, &f, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "more than the limit"));
    memset(p, 0, 8);
    assert_int_equal(st_open_mem("FILE", p, 16, &f, &e), -EINVAL);
    p[0] = 9;
    assert_int_equal(st_open_mem("FILE", p, 16, &f, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "past the end of the file"));
    assert_int_equal(st_open_mem("FILE", NULL, 0, &f, &e), -EINVAL);
}

struct counter {
    size_t next, calls, row;
    int fail_at;
};

static int fill(void *ctx, size_t off, size_t n, void *dst)
{
    struct counter *c = ctx;
    assert_int_equal(off, c->next);
    assert_int_equal(n % c->row, 0);
    if (c->fail_at && (int)++c->calls == c->fail_at)
        return -EIO;
    for (size_t i = 0; i < n; i++)
        ((uint8_t *)dst)[i] = (uint8_t)((off + i) * 7);
    c->next += n;
    return 0;
}

static void test_write(void **s)
{
    (void)s;
    uint8_t small[6] = {1, 2, 3, 4, 5, 6};
    struct counter c = {.row = 3000};
    struct st_out t[] = {
        {.name = "x\"\\\n\xC3\xA9", .type = DT_BF16, .ndim = 1, .shape = {3}, .data = small},
        {.name = "big", .type = DT_F32, .ndim = 2, .shape = {1000, 750}, .fill = fill, .ctx = &c},
        {.name = "none", .type = DT_F32, .ndim = 2, .shape = {0, 7}, .fill = fill, .ctx = &c},
    };
    const char *meta[] = {"format", "pt", "made\tby", "test", NULL};
    struct err e = {0};
    struct st_file *f = NULL;
    char *path = at("w.safetensors");
    assert_int_equal(st_write(path, t, 3, meta, &e), 0);
    assert_int_equal(c.next, 3000000);
    assert_int_equal(st_open(path, &f, &e), 0);
    assert_int_equal(st_count(f), 3);
    assert_string_equal(st_at(f, 0)->name, t[0].name);
    assert_memory_equal(st_at(f, 0)->data, small, 6);
    const struct st_tensor *big = st_find(f, "big");
    assert_int_equal(big->bytes, 3000000);
    for (size_t i = 0; i < big->bytes; i++)
        assert_int_equal(big->data[i], (uint8_t)(i * 7));
    st_forget(f, big);
    assert_int_equal(big->data[2999999], (uint8_t)(2999999u * 7));
    assert_int_equal(st_at(f, 0)->off % 8, 0);
    assert_string_equal(st_meta(f, "made\tby"), "test");
    st_close(f);
    /* A failing producer leaves the file that was there, and no temporary. */
    c = (struct counter){.row = 3000, .fail_at = 2};
    assert_int_equal(st_write(path, t, 3, NULL, &e), -EIO);
    assert_non_null(strstr(e.msg, "\"big\""));
    assert_int_equal(st_open(path, &f, &e), 0);
    assert_string_equal(st_meta(f, "format"), "pt");
    st_close(f);
    char tmp[128];
    snprintf(tmp, sizeof tmp, "%s.tmp.%ld", path, (long)getpid());
    assert_int_not_equal(access(tmp, F_OK), 0);
    t[1] = t[0];
    assert_int_equal(st_write(path, t, 2, NULL, &e), -EINVAL);
    t[1] = (struct st_out){.name = "o", .type = DT_F32, .ndim = 2, .shape = {UINT64_MAX, 3}};
    assert_int_equal(st_write(path, t, 2, NULL, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "overflows"));
    t[1].ndim = 9;
    assert_int_equal(st_write(path, t, 2, NULL, &e), -EINVAL);
    assert_int_equal(st_write("/nonexistent/x", t, 1, NULL, &e), -ENOENT);
    assert_int_equal(st_write(path, NULL, 0, NULL, &e), 0);
    assert_int_equal(st_open(path, &f, &e), 0);
    assert_int_equal(st_count(f), 0);
    st_close(f);
    unlink(path);
    free(path);
}

static void test_shards(void **s)
{
    (void)s;
    struct err e = {0};
    struct st_file *f = NULL;
    assert_int_equal(st_open_dir(dir, &f, &e), -ENOENT);
    uint8_t v[4] = {9, 8, 7, 6};
    struct st_out a = {.name = "a", .type = DT_U8, .ndim = 1, .shape = {4}, .data = v}, b = a;
    b.name = "b";
    char *pa = at("m-1.safetensors"), *pb = at("m-2.safetensors");
    const char *meta[] = {"k", "1", NULL};
    assert_int_equal(st_write(pa, &a, 1, meta, &e), 0);
    assert_int_equal(st_write(pb, &b, 1, NULL, &e), 0);
#define INDEX "model.safetensors.index.json"
#define GOOD_INDEX "{\"weight_map\":{\"a\":\"m-1.safetensors\",\"b\":\"m-2.safetensors\"}}"
    put(INDEX, GOOD_INDEX, strlen(GOOD_INDEX));
    assert_int_equal(st_open_dir(dir, &f, &e), 0);
    assert_int_equal(st_count(f), 2);
    assert_int_equal(st_find(f, "b")->data[0], 9);
    st_forget(f, st_find(f, "b"));
    assert_string_equal(st_meta(f, "k"), "1");
    st_close(f);
    f = NULL;
    static const char *const bad[][2] = {
        {"{\"weight_map\":{\"a\":\"../m-1.safetensors\"}}", "beside the index"},
        {"{\"weight_map\":{\"a\":\"/etc/x.safetensors\"}}", "beside the index"},
        {"{\"weight_map\":{\"a\":\".safetensors\"}}", "beside the index"},
        {"{\"weight_map\":{\"a\":\"pytorch_model.bin\"}}", "beside the index"},
        {"{\"weight_map\":{\"a\":1}}", "beside the index"},
        {"{\"weight_map\":{}}", "names 0 files"},
        {"{\"weight_map\":[]}", "must be an object"},
        {"{}", "\"weight_map\" is missing"},
        {"{\"weight_map\":{\"c\":\"m-1.safetensors\"}}", "\"c\" is not in its file"},
        {"{\"weight_map\":{\"a\":\"m-3.safetensors\"}}", "m-3.safetensors"},
        {"{\"weight_map\":{\"a\":\"m-1.safetensors\"", "not valid JSON"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put(INDEX, bad[i][0], strlen(bad[i][0]));
        int r = st_open_dir(dir, &f, &e);
        if (r >= 0 || !strstr(e.msg, bad[i][1]))
            fail_msg("%s gave %d \"%s\"", bad[i][0], r, e.msg);
        assert_null(f);
    }
    put(INDEX, GOOD_INDEX, strlen(GOOD_INDEX));
    assert_int_equal(st_write(pb, &a, 1, NULL, &e), 0);
    assert_int_equal(st_open_dir(dir, &f, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "in two files"));
    char *one = at("model.safetensors"), *index = at(INDEX);
    assert_int_equal(st_write(one, &b, 1, NULL, &e), 0);
    assert_int_equal(st_open_dir(dir, &f, &e), 0);
    assert_non_null(st_find(f, "b"));
    st_close(f);
    assert_int_equal(st_open(dir, &f, &e), -EISDIR);
    char *paths[] = {pa, pb, one, index};
    for (int i = 0; i < 4; i++) {
        unlink(paths[i]);
        free(paths[i]);
    }
}

static int make_dir(void **s)
{
    (void)s;
    snprintf(dir, sizeof dir, "/tmp/cpet_st_XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int drop_dir(void **s)
{
    (void)s;
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),          cmocka_unit_test(test_cut_everywhere), cmocka_unit_test(test_forbidden),
        cmocka_unit_test(test_header_length), cmocka_unit_test(test_write),          cmocka_unit_test(test_shards),
    };
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}
