/* test_alloc.c - allocations that fail, one by one: JSON, safetensors and GGUF, read and written. */
#include <errno.h>
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
#include "formats/gguf.h"
#include "formats/json.h"
#include "formats/safetensors.h"
#include "tests/unit/common/alloc_fail.h"

static char dir[64], json_path[128], st_path[128];
static json_t *tree;

static int do_json_file(struct err *e)
{
    json_t *v = NULL;
    int r = json_read_file(json_path, 1000, &v, e);
    json_decref(v);
    return r;
}

static int do_json_write(struct err *e)
{
    return json_write_file(json_path, tree, e);
}

static int do_st(struct err *e)
{
    struct st_file *f = NULL;
    int r = st_open(GOLDEN_DIR "/formats.safetensors", &f, e);
    assert_true(!r == !!f);
    st_close(f);
    return r;
}

static int do_st_dir(struct err *e)
{
    struct st_file *f = NULL;
    int r = st_open_dir(dir, &f, e);
    assert_true(!r == !!f);
    st_close(f);
    return r;
}

static int fill(void *ctx, size_t off, size_t n, void *dst)
{
    (void)ctx;
    (void)off;
    memset(dst, 1, n);
    return 0;
}

static int write_shard(const char *path, const char *name, struct err *e)
{
    static const char *const meta[] = {"format", "pt", NULL};
    const struct st_out out[] = {{.name = name, .type = DT_F32, .ndim = 2, .shape = {2, 3}, .fill = fill}};
    return st_write(path, out, 1, meta, e);
}

static int do_st_write(struct err *e)
{
    return write_shard(st_path, "a", e);
}

static int do_gguf(struct err *e)
{
    struct gguf_file *f = NULL;
    int r = gguf_open(GOLDEN_DIR "/formats.gguf", &f, e);
    assert_true(!r == !!f);
    gguf_close(f);
    return r;
}

static void test_formats(void **s)
{
    (void)s;
    alloc_fail_each("reading JSON", do_json_file, 0);
    alloc_fail_each("writing JSON", do_json_write, 0);
    alloc_fail_each("safetensors", do_st, 0);
    alloc_fail_each("shards", do_st_dir, 0);
    alloc_fail_each("writing safetensors", do_st_write, 0);
    alloc_fail_each("GGUF", do_gguf, 0);
}

static void *no_memory(size_t n)
{
    (void)n;
    return NULL;
}

/* jansson without any memory gives no reason, which must not read as bad JSON. */
static void test_jansson(void **s)
{
    json_t *v = NULL;
    struct err e = {0};
    (void)s;
    json_set_alloc_funcs(no_memory, free);
    int parsed = json_parse("[1]", 3, NULL, &v, &e), written = json_write_file(json_path, tree, &e);
    json_set_alloc_funcs(malloc, free);
    assert_int_equal(parsed, -ENOMEM);
    assert_int_equal(written, -ENOMEM);
    assert_null(v);
}

static int set_up(void **s)
{
    static const char index[] = "{\"weight_map\": {\"a\": \"a.safetensors\", \"b\": \"b.safetensors\"}}";
    char b[128], i[128];
    struct err e = {0};
    (void)s;
    snprintf(dir, sizeof dir, "%s", "/tmp/cpet-alloc-XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(json_path, sizeof json_path, "%s/v.json", dir);
    snprintf(st_path, sizeof st_path, "%s/a.safetensors", dir);
    snprintf(b, sizeof b, "%s/b.safetensors", dir);
    snprintf(i, sizeof i, "%s/model.safetensors.index.json", dir);
    assert_int_equal(file_write_atomic(json_path, "[1, {\"a\": 2}]", 13, 0644, &e), 0);
    assert_int_equal(file_write_atomic(i, index, sizeof index - 1, 0644, &e), 0);
    assert_int_equal(write_shard(st_path, "a", &e), 0);
    tree = json_pack("{s:[i,i]}", "a", 1, 2);
    return !tree || write_shard(b, "b", &e);
}

static int tear_down(void **s)
{
    static const char *const names[] = {"v.json", "a.safetensors", "b.safetensors", "model.safetensors.index.json"};
    (void)s;
    json_decref(tree);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    return rmdir(dir); /* it fails where a failure left a temporary behind */
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_formats), cmocka_unit_test(test_jansson)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
