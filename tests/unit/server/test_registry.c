/* test_registry.c - the registry on a sound disk: modules, tasks, versions, collecting, starting again, refusals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <math.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/file.h"
#include "tests/unit/server/registry_dump.h"

static char dir[64];
static struct registry *reg;
static struct err e;

static int setup(void **st)
{
    (void)st;
    strcpy(dir, "/tmp/cpetd-registry-XXXXXX");
    assert_non_null(mkdtemp(dir));
    reg = NULL;
    assert_int_equal(registry_open(dir, &reg, &e), 0);
    return 0;
}

static int teardown(void **st)
{
    (void)st;
    registry_close(reg);
    remove_tree(dir);
    return 0;
}

static void reopen(void)
{
    registry_close(reg);
    reg = NULL;
    if (registry_open(dir, &reg, &e))
        fail_msg("%s", e.msg);
}

static struct hash hash_text(const char *s)
{
    struct hash h;
    hash_of(s, strlen(s), &h);
    return h;
}

static const char *dump(void)
{
    static struct buf b;
    buf_free(&b);
    registry_dump(reg, dir, &b);
    return b.data ? b.data : "";
}

static char *in_dir(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

/* Puts the module name whose content is text. */
static int put(const char *name, const char *text, bool *was_there)
{
    char *staged = NULL;
    struct registry_module m = {.name = name,
                                .hash = hash_text(text),
                                .kind = "lora",
                                .base = "base",
                                .bytes = strlen(text),
                                .rank = 8,
                                .sites = 2,
                                .created = 7};
    assert_int_equal(registry_stage(reg, text, strlen(text), &staged, &e), 0);
    int r = registry_put_module(reg, &m, staged, was_there, &e);
    registry_unstage(reg, staged);
    free(staged);
    return r;
}

/* Puts a task of one module's content (text; NULL: none) whose version is named by v. */
static int put_task(const char *id, const char *v, const char *text, bool *created)
{
    struct registry_ref ref = {.name = "m", .weight = 0.5f};
    struct registry_task t = {.id = id, .version = hash_text(v), .defaults = v, .created = 1, .updated = 2};
    if (text) {
        ref.hash = hash_text(text);
        t.ref = &ref;
        t.n_refs = 1;
    }
    return registry_put_task(reg, &t, created, &e);
}

static size_t files(void)
{
    struct buf b = {0};
    size_t n = 0;
    dump_files(&b, dir);
    for (size_t i = 0; i < b.len; i++)
        n += b.data[i] == '\n';
    buf_free(&b);
    return n;
}

static void test_modules(void **st)
{
    (void)st;
    bool was = true;
    struct hash a = hash_text("aaaa"), b = hash_text("bb");
    assert_int_equal(put("x", "aaaa", &was), 0);
    assert_false(was);
    assert_int_equal(put("x", "aaaa", &was), 0);
    assert_true(was);
    assert_int_equal(put("x", "bb", &was), 0);
    assert_false(was);
    assert_true(registry_has_content(reg, &a) && registry_has_content(reg, &b));
    char *path = registry_module_path(reg, &b), *text;
    size_t n;
    assert_int_equal(file_read(path, 100, &text, &n, &e), 0);
    assert_string_equal(text, "bb");
    free(text);
    free(path);
    /* content that is there needs no file; content that is not does */
    struct registry_module m = {
        .name = "y", .tenant = "anna", .hash = b, .kind = "lora", .pinned = true, .verified = true};
    assert_int_equal(registry_put_module(reg, &m, NULL, NULL, &e), 0);
    m.hash = hash_text("never");
    assert_int_equal(registry_put_module(reg, &m, NULL, NULL, &e), -ENOENT);
    char *before = strdup(dump());
    assert_non_null(strstr(before, "module x - "));
    assert_non_null(strstr(before, "module y anna "));
    reopen(); /* takes "aaaa" away, that nothing names */
    assert_false(registry_has_content(reg, &a));
    assert_int_equal(strncmp(dump(), before, (size_t)(strstr(before, "file") - before)), 0);
    free(before);
    assert_int_equal(registry_delete_module(reg, "x", &e), 0);
    assert_int_equal(registry_delete_module(reg, "x", &e), -ENOENT);
    assert_true(registry_has_content(reg, &b)); /* y has it */
    assert_int_equal(registry_collect_one(reg, &b, &e), -EEXIST);
    assert_int_equal(registry_delete_module(reg, "y", &e), 0);
    assert_int_equal(registry_collect_one(reg, &b, &e), 0);
    assert_int_equal(registry_collect_one(reg, &b, &e), 0);
    assert_int_equal(files(), 0);
    reopen();
    assert_string_equal(dump(), "");
}

static void test_tasks(void **st)
{
    (void)st;
    bool created = false;
    struct arena *a = arena_create(1 << 20);
    const struct registry_task *t;
    assert_int_equal(put("m", "one", NULL), 0);
    assert_int_equal(put_task("t", "v1", "none", NULL), -ENOENT);
    assert_string_equal(e.param, "modules");
    assert_int_equal(put_task("t", "v1", "one", &created), 0);
    assert_true(created);
    assert_int_equal(put("m", "two", NULL), 0);
    assert_int_equal(put_task("t", "v2", "two", &created), 0);
    assert_false(created);
    /* the old version keeps its content, whatever becomes of the module */
    assert_int_equal(registry_delete_module(reg, "m", &e), 0);
    assert_int_equal(registry_collect(reg, &e), 0);
    assert_int_equal(files(), 2);
    struct hash v1 = hash_text("v1"), v3 = hash_text("v3");
    assert_int_equal(registry_task_version(reg, "t", &v1, a, &t, &e), 0);
    assert_string_equal(t->defaults, "v1");
    assert_null(t->template_text);
    assert_int_equal(t->n_refs, 1);
    assert_string_equal(t->ref[0].name, "m");
    assert_true(t->ref[0].weight == 0.5f);
    assert_int_equal(registry_task_version(reg, "t", &v3, a, &t, &e), -ENOENT);
    assert_int_equal(registry_task_version(reg, "u", &v1, a, &t, &e), -ENOENT);
    /* rolled back: v1 is in front again, and both are kept */
    assert_int_equal(registry_put_task(reg, t, NULL, &e), 0);
    const struct hash *v;
    size_t n;
    assert_int_equal(registry_task_versions(reg, "t", a, &v, &n, &e), 0);
    assert_int_equal(n, 2);
    assert_true(hash_equal(&v[0], &v1));
    assert_int_equal(registry_task_versions(reg, "u", a, &v, &n, &e), -ENOENT);
    char *before = strdup(dump());
    reopen();
    assert_string_equal(dump(), before);
    free(before);
    assert_int_equal(registry_delete_task(reg, "t", &e), 0);
    assert_int_equal(registry_delete_task(reg, "t", &e), -ENOENT);
    assert_int_equal(registry_collect(reg, &e), 0);
    assert_int_equal(files(), 0);
    arena_free(a);
}

static void test_versions_are_pruned(void **st)
{
    (void)st;
    char v[16];
    struct arena *a = arena_create(1 << 20);
    const struct hash *all;
    size_t n;
    assert_int_equal(put("m", "one", NULL), 0);
    assert_int_equal(put_task("t", "v0", "one", NULL), 0);
    assert_int_equal(registry_delete_module(reg, "m", &e), 0);
    for (int i = 1; i <= REGISTRY_VERSIONS + 3; i++) {
        snprintf(v, sizeof v, "v%d", i);
        assert_int_equal(put_task("t", v, NULL, NULL), 0);
    }
    assert_int_equal(registry_task_versions(reg, "t", a, &all, &n, &e), 0);
    assert_int_equal(n, REGISTRY_VERSIONS);
    struct hash newest = hash_text(v), oldest = hash_text("v4");
    assert_true(hash_equal(&all[0], &newest) && hash_equal(&all[n - 1], &oldest));
    assert_int_equal(registry_collect(reg, &e), 0); /* v0 went, and its content with it */
    assert_int_equal(files(), 0);
    arena_free(a);
}

static void test_bad_values(void **st)
{
    (void)st;
    char longer[REGISTRY_NAME_MAX + 2];
    memset(longer, 'n', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    const char *names[] = {NULL, "", longer, "a\xFF", "\xC3"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct registry_module m = {.name = names[i], .kind = "lora"};
        assert_int_equal(registry_put_module(reg, &m, NULL, NULL, &e), -EINVAL);
        assert_string_equal(e.param, "name");
        struct registry_task t = {.id = names[i]};
        assert_int_equal(registry_put_task(reg, &t, NULL, &e), -EINVAL);
        assert_string_equal(e.param, "id");
        assert_int_equal(registry_delete_task(reg, names[i], &e), -EINVAL);
    }
    char *text = malloc(REGISTRY_TEXT_MAX + 2);
    memset(text, 'x', REGISTRY_TEXT_MAX + 1);
    text[REGISTRY_TEXT_MAX + 1] = 0;
    struct registry_task t = {.id = "t", .template_text = text};
    assert_int_equal(registry_put_task(reg, &t, NULL, &e), -EINVAL);
    assert_string_equal(e.param, "template");
    text[REGISTRY_TEXT_MAX] = 0;
    assert_int_equal(registry_put_task(reg, &t, NULL, &e), 0);
    free(text);
    struct registry_ref ref[REGISTRY_REFS_MAX + 1] = {{.name = "m", .weight = NAN}};
    t = (struct registry_task){.id = "u", .ref = ref, .n_refs = 1};
    assert_int_equal(registry_put_task(reg, &t, NULL, &e), -EINVAL);
    t.n_refs = REGISTRY_REFS_MAX + 1;
    assert_int_equal(registry_put_task(reg, &t, NULL, &e), -EINVAL);
    struct arena *a = arena_create(1 << 16); /* less than the template */
    const struct registry_module *m;
    const struct registry_task *all;
    size_t n_m, n_t;
    assert_int_equal(registry_load(reg, a, &m, &n_m, &all, &n_t, &e), -ENOMEM);
    arena_free(a);
}

/* Names go into rows, never into paths; staged paths have to be of this registry. */
static void test_paths(void **st)
{
    (void)st;
    const char *names[] = {"../../etc/x", "/etc/passwd", ".", "a/b", "'; DROP TABLE module; --", "\xC3\xA9"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        assert_int_equal(put(names[i], "same", NULL), 0);
        assert_int_equal(put_task(names[i], "v", "same", NULL), 0);
    }
    assert_int_equal(files(), 1);
    char *good = NULL, bad[512];
    assert_int_equal(registry_stage(reg, "x", 1, &good, &e), 0);
    const char *base = strrchr(good, '/') + 1;
    const char *forms[] = {"/etc/passwd",
                           "%s/incoming/../registry.db",
                           "%s/incoming/",
                           "%s/incoming/0",
                           "%s/modules/../incoming/%s",
                           "%s//incoming/%s",
                           "",
                           "%s/incoming/%sx"};
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        struct registry_module m = {.name = "n", .kind = "lora", .hash = hash_text("x")};
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(bad, sizeof bad, forms[i], dir, base);
#pragma GCC diagnostic pop
        assert_int_equal(registry_put_module(reg, &m, bad, NULL, &e), -EINVAL);
        registry_unstage(reg, bad);
    }
    assert_int_equal(access(good, F_OK), 0);
    assert_int_equal(access(in_dir("registry.db"), F_OK), 0);
    registry_unstage(reg, good);
    assert_int_equal(access(good, F_OK), -1);
    free(good);
    assert_int_equal(files(), 1);
}

static void test_lock(void **st)
{
    (void)st;
    struct registry *other = NULL;
    assert_int_equal(registry_open(dir, &other, &e), -EBUSY);
    assert_non_null(strstr(e.msg, dir));
    assert_null(other);
    reopen();
}

static mode_t mode_of(const char *name)
{
    struct stat s;
    assert_int_equal(stat(in_dir(name), &s), 0);
    return s.st_mode & 07777;
}

static void test_modes_and_leftovers(void **st)
{
    (void)st;
    char *staged = NULL, name[128], hex[HASH_HEX];
    mode_t old = umask(0);
    assert_int_equal(put("x", "x", NULL), 0);
    assert_int_equal(registry_stage(reg, "half", 4, &staged, &e), 0);
    struct hash h = hash_text("x"), stray = hash_text("stray");
    hash_hex(&h, hex);
    snprintf(name, sizeof name, "modules/%s.pet", hex);
    assert_int_equal(mode_of(name), 0600);
    assert_int_equal(mode_of("modules"), 0700);
    assert_int_equal(mode_of("incoming"), 0700);
    assert_int_equal(mode_of("registry.db"), 0600);
    assert_int_equal(mode_of("registry.db-journal"), 0600);
    assert_int_equal(mode_of("lock"), 0600);
    umask(old);
    /* what a crash leaves goes at the next start; what is not ours stays */
    hash_hex(&stray, hex);
    snprintf(name, sizeof name, "modules/%s.pet", hex);
    close(open(in_dir(name), O_CREAT | O_WRONLY, 0600));
    close(open(in_dir("modules/README"), O_CREAT | O_WRONLY, 0600));
    reopen();
    assert_int_equal(access(staged, F_OK), -1);
    assert_int_equal(access(in_dir(name), F_OK), -1);
    assert_int_equal(access(in_dir("modules/README"), F_OK), 0);
    assert_int_equal(files(), 2);
    free(staged);
}

/* The file of a content is gone: has_content says so, and a new upload brings it back. */
static void test_lost_file(void **st)
{
    (void)st;
    struct hash h = hash_text("x");
    assert_int_equal(put("x", "x", NULL), 0);
    char *path = registry_module_path(reg, &h);
    unlink(path);
    free(path);
    assert_false(registry_has_content(reg, &h));
    struct registry_module m = {.name = "y", .kind = "lora", .hash = h};
    assert_int_equal(registry_put_module(reg, &m, NULL, NULL, &e), -ENOENT);
    assert_int_equal(put("x", "x", NULL), 0);
    assert_true(registry_has_content(reg, &h));
}

static void sql(const char *text)
{
    sqlite3 *h;
    assert_int_equal(sqlite3_open(in_dir("registry.db"), &h), 0);
    assert_int_equal(sqlite3_exec(h, text, NULL, NULL, NULL), 0);
    sqlite3_close(h);
}

static void overwrite(long at, const void *p, size_t n)
{
    int fd = open(in_dir("registry.db"), O_WRONLY);
    assert_int_equal(pwrite(fd, p, n, at), n);
    close(fd);
}

/* The registry is refused with code, its message has text, and the file and modules/ are as they were. */
static void refused(int code, const char *text)
{
    char *before = NULL, *after = NULL;
    size_t n = 0, k = 0, had = files();
    file_read(in_dir("registry.db"), 1 << 24, &before, &n, &e);
    int r = registry_open(dir, &reg, &e);
    if (r != code || !strstr(e.msg, text))
        fail_msg("%d: %s; wanted %d and \"%s\"", r, e.msg, code, text);
    assert_null(reg);
    assert_non_null(strstr(e.msg, dir));
    file_read(in_dir("registry.db"), 1 << 24, &after, &k, &e);
    assert_int_equal(n, k);
    if (n)
        assert_memory_equal(before, after, n);
    assert_int_equal(files(), had);
    free(before);
    free(after);
}

static void test_refusals(void **st)
{
    (void)st;
    char *good;
    size_t n;
    assert_int_equal(put("m", "content", NULL), 0);
    assert_int_equal(put_task("t", "v", "content", NULL), 0);
    registry_close(reg);
    reg = NULL;
    assert_int_equal(file_read(in_dir("registry.db"), 1 << 24, &good, &n, &e), 0);

    sql("PRAGMA user_version = 2");
    refused(-ENOTSUP, "newer");
    sql("PRAGMA user_version = 0");
    refused(-EBADMSG, "version");
    sql("PRAGMA user_version = 1; PRAGMA application_id = 1");
    refused(-EBADMSG, "another program");
    overwrite(0, good, n);
    assert_int_equal(truncate(in_dir("registry.db"), (off_t)n), 0);
    sql("DROP TABLE task_ref");
    refused(-EBADMSG, "damaged");
    overwrite(0, good, n);
    sql("PRAGMA foreign_keys = OFF; DELETE FROM content");
    refused(-EBADMSG, "damaged");
    overwrite(0, "nonsense", 8);
    refused(-EBADMSG, "damaged");
    overwrite(0, good, n);
    assert_int_equal(truncate(in_dir("registry.db"), (off_t)n - 4096), 0);
    refused(-EBADMSG, "");
    assert_int_equal(truncate(in_dir("registry.db"), 50), 0);
    refused(-EBADMSG, "damaged");
    /* lost: no new, empty registry takes its place and sweeps the contents away */
    assert_int_equal(truncate(in_dir("registry.db"), 0), 0);
    refused(-EBADMSG, "missing or empty");
    unlink(in_dir("registry.db"));
    refused(-EBADMSG, "missing or empty");

    int fd = open(in_dir("registry.db"), O_CREAT | O_WRONLY, 0600);
    close(fd);
    overwrite(0, good, n);
    free(good);
    reopen();
    assert_non_null(strstr(dump(), "module m"));
}

/* Each page's bytes turned over in turn: opened or refused, never a crash; and what opens can be read. */
static void test_damage_everywhere(void **st)
{
    (void)st;
    char *good, junk[512];
    size_t n;
    assert_int_equal(put("m", "content", NULL), 0);
    assert_int_equal(put_task("t", "v", "content", NULL), 0);
    registry_close(reg);
    reg = NULL;
    assert_int_equal(file_read(in_dir("registry.db"), 1 << 24, &good, &n, &e), 0);
    memset(junk, 0xA5, sizeof junk);
    int taken = 0, turned_away = 0;
    for (size_t at = 0; at + sizeof junk <= n; at += 1024) {
        overwrite(0, good, n);
        assert_int_equal(truncate(in_dir("registry.db"), (off_t)n), 0);
        overwrite((long)at, junk, sizeof junk);
        int r = registry_open(dir, &reg, &e);
        if (r) {
            turned_away++;
            if (r != -EBADMSG && r != -ENOTSUP)
                fail_msg("at %zu: %d: %s", at, r, e.msg);
            continue;
        }
        taken++; /* in the free space of a page */
        assert_non_null(strstr(dump(), "module m"));
        registry_close(reg);
        reg = NULL;
    }
    assert_true(taken > 0 && turned_away > 0);
    free(good);
}

static void test_private(void **st)
{
    (void)st;
    struct registry *r = NULL;
    char *staged = NULL;
    assert_int_equal(registry_open(NULL, &r, &e), 0);
    assert_int_equal(registry_stage(r, "x", 1, &staged, &e), 0);
    struct registry_module m = {.name = "n", .kind = "lora", .hash = hash_text("x")};
    assert_int_equal(registry_put_module(r, &m, staged, NULL, &e), 0);
    char *path = registry_module_path(r, &m.hash);
    assert_int_equal(access(path, F_OK), 0);
    *strstr(path, "/modules/") = 0;
    assert_int_equal(access(path, F_OK), 0);
    registry_close(r);
    assert_int_equal(access(path, F_OK), -1);
    free(path);
    free(staged);
    registry_close(NULL);
}

static void test_makes_parents(void **st)
{
    (void)st;
    struct registry *r = NULL;
    char deep[128];
    snprintf(deep, sizeof deep, "%s/a/b/c/", dir);
    assert_int_equal(registry_open(deep, &r, &e), 0);
    assert_int_equal(mode_of("a/b/c"), 0700);
    registry_close(r);
    snprintf(deep, sizeof deep, "%s/registry.db", dir);
    r = NULL;
    assert_true(registry_open(deep, &r, &e) < 0);
    assert_true(registry_open("/proc/nowhere", &r, &e) < 0);
    assert_null(r);
}

/* Another program's lock on the file: an error that says so, and all goes on when it is gone. */
static void test_locked_by_another(void **st)
{
    (void)st;
    sqlite3 *h;
    assert_int_equal(sqlite3_open(in_dir("registry.db"), &h), 0);
    assert_int_equal(sqlite3_exec(h, "BEGIN IMMEDIATE", NULL, NULL, NULL), 0);
    assert_int_equal(put("m", "one", NULL), -EBUSY);
    assert_string_equal(dump(), "");
    sqlite3_close(h);
    assert_int_equal(put("m", "one", NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_modules, setup, teardown),
        cmocka_unit_test_setup_teardown(test_tasks, setup, teardown),
        cmocka_unit_test_setup_teardown(test_versions_are_pruned, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_values, setup, teardown),
        cmocka_unit_test_setup_teardown(test_paths, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lock, setup, teardown),
        cmocka_unit_test_setup_teardown(test_modes_and_leftovers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lost_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refusals, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damage_everywhere, setup, teardown),
        cmocka_unit_test_setup_teardown(test_locked_by_another, setup, teardown),
        cmocka_unit_test_setup_teardown(test_makes_parents, setup, teardown),
        cmocka_unit_test(test_private),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
