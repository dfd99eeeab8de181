/* test_registry_alloc.c - allocations that fail, one by one, SQLite's too: the registry says so, gives back what it
 * had, and is as before. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sqlite3.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/unit/common/alloc_fail.h"
#include "tests/unit/server/registry_dump.h"

static char dir[64];
static struct registry *reg;

/* SQLite's memory by this object's malloc, which is wrapped; the size stands before the bytes. */
static void *mem_alloc(int n)
{
    size_t *p = malloc((size_t)n + 16);
    if (p)
        *p = (size_t)n;
    return p ? p + 2 : NULL;
}

static void mem_free(void *p)
{
    if (p)
        free((size_t *)p - 2);
}

static void *mem_resize(void *p, int n)
{
    size_t *q = realloc((size_t *)p - 2, (size_t)n + 16);
    if (q)
        *q = (size_t)n;
    return q ? q + 2 : NULL;
}

static int mem_size(void *p)
{
    return p ? (int)((size_t *)p)[-2] : 0;
}

static int mem_round(int n)
{
    return (n + 7) & ~7;
}

static int mem_init(void *ctx)
{
    (void)ctx;
    return SQLITE_OK;
}

static void mem_shutdown(void *ctx)
{
    (void)ctx;
}

static int do_open(struct err *e)
{
    struct registry *r = NULL;
    int rc = registry_open(dir, &r, e);
    assert_true(!rc == !!r);
    registry_close(r);
    return rc;
}

static int put(const char *name, struct err *e)
{
    struct registry_module m = {.name = name, .kind = "lora"};
    char *staged = NULL;
    hash_of(name, strlen(name), &m.hash);
    int rc = registry_stage(reg, name, strlen(name), &staged, e);
    if (!rc)
        rc = registry_put_module(reg, &m, staged, NULL, e);
    registry_unstage(reg, staged);
    free(staged);
    return rc;
}

static int put_task(const char *id, struct err *e)
{
    struct registry_ref ref = {.name = "m", .weight = 1};
    struct registry_task t = {.id = id, .ref = &ref, .n_refs = 1, .defaults = "{}", .template_text = "x"};
    hash_of("m", 1, &ref.hash);
    hash_of(id, strlen(id), &t.version);
    return registry_put_task(reg, &t, NULL, e);
}

static int do_put(struct err *e)
{
    return put("new", e);
}

static int do_task(struct err *e)
{
    return put_task("new", e);
}

/* Replaced, deleted, collected: whatever was done when an allocation failed, the next round begins anew. */
static int do_delete(struct err *e)
{
    int rc = put("old", e);
    if (!rc)
        rc = registry_delete_module(reg, "old", e);
    return rc ? rc : registry_collect(reg, e);
}

static int do_load(struct err *e)
{
    const struct registry_module *m;
    const struct registry_task *t;
    const struct hash *v;
    size_t n_m, n_t, n;
    struct arena *a = arena_create(0);
    int rc = a ? registry_load(reg, a, &m, &n_m, &t, &n_t, e) : err_set(e, -ENOMEM, "out of memory");
    if (!rc)
        rc = registry_task_versions(reg, "t", a, &v, &n, e);
    arena_free(a);
    return rc;
}

static void test_each(void **st)
{
    struct err e = {0};
    struct buf before = {0}, after = {0};
    (void)st;
    strcpy(dir, access("/dev/shm", W_OK) ? "/tmp/cpetd-registry-XXXXXX" : "/dev/shm/cpetd-registry-XXXXXX");
    assert_non_null(mkdtemp(dir));
    assert_int_equal(registry_open(dir, &reg, &e), 0);
    assert_int_equal(put("m", &e), 0);
    assert_int_equal(put_task("t", &e), 0);
    registry_dump(reg, dir, &before);
    registry_close(reg);
    alloc_fail_each("opening", do_open, 400);
    assert_int_equal(registry_open(dir, &reg, &e), 0);
    alloc_fail_each("putting a module", do_put, 400);
    alloc_fail_each("putting a task", do_task, 400);
    alloc_fail_each("deleting", do_delete, 400);
    alloc_fail_each("loading", do_load, 400);
    assert_int_equal(registry_delete_module(reg, "new", &e), 0);
    assert_int_equal(registry_delete_task(reg, "new", &e), 0);
    assert_int_equal(registry_collect(reg, &e), 0);
    registry_dump(reg, dir, &after);
    assert_string_equal(before.data, after.data);
    registry_close(reg);
    remove_tree(dir);
    buf_free(&before);
    buf_free(&after);
}

int main(void)
{
    static const sqlite3_mem_methods memory = {mem_alloc, mem_free, mem_resize,   mem_size,
                                               mem_round, mem_init, mem_shutdown, NULL};
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_each)};
    if (sqlite3_config(SQLITE_CONFIG_MALLOC, &memory))
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
