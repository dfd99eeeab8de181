/* test_registry_faults.c - the registry on a bad disk.
 *
 * Each write that it has is tried with the first call that changes the disk failing, then the second, and so on until
 * one gets through: a write, fsync, rename, truncation or removal, of a module's file, a directory, the database or its
 * journal. After each failure the registry must be as before, to this process and to the next, and go on working.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <ftw.h>
#include <regex.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/file.h"
#include "tests/unit/server/bad_disk.h"
#include "tests/unit/server/power_loss.h"
#include "tests/unit/server/registry_dump.h"

static char dir[64], model_dir[64];
static struct registry *reg;
static struct err e;

static struct hash hash_text(const char *s)
{
    struct hash h;
    hash_of(s, strlen(s), &h);
    return h;
}

static int put(const char *name, const char *text)
{
    char *staged = NULL;
    struct registry_module m = {.name = name, .hash = hash_text(text), .kind = "lora", .bytes = strlen(text)};
    int r = registry_stage(reg, text, strlen(text), &staged, &e);
    if (!r)
        r = registry_put_module(reg, &m, staged, NULL, &e);
    registry_unstage(reg, staged);
    free(staged);
    return r;
}

static int task(const char *id, const char *v, const char *a, const char *b)
{
    struct registry_ref ref[2] = {{"a", hash_text(a), 1}, {"b", hash_text(b), 0.25f}};
    struct registry_task t = {.id = id, .version = hash_text(v), .ref = ref, .n_refs = 2, .defaults = v};
    return registry_put_task(reg, &t, NULL, &e);
}

static int put_new(void)
{
    return put("new", "content of new");
}

static int put_over(void)
{
    return put("a", "other content");
}

static int put_same(void)
{
    return put("a", "content a");
}

static int put_again(void) /* a content that is there under another name */
{
    return put("c", "content a");
}

static int delete_module(void)
{
    return registry_delete_module(reg, "a", &e);
}

static int task_new(void)
{
    return task("new", "v1", "content a", "content b");
}

static int task_swap(void)
{
    return task("t", "v99", "content b", "content a");
}

static int task_back(void)
{
    return task("t", "v5", "content a", "content b");
}

static int delete_task(void)
{
    return registry_delete_task(reg, "t", &e);
}

static int collect(void)
{
    return registry_collect(reg, &e);
}

static int open_again(void)
{
    registry_close(reg);
    reg = NULL;
    return registry_open(dir, &reg, &e);
}

static const struct write {
    const char *name;
    int (*f)(void);
} writes[] = {{"put_new", put_new},
              {"put_over", put_over},
              {"put_same", put_same},
              {"put_again", put_again},
              {"delete_module", delete_module},
              {"task_new", task_new},
              {"task_swap", task_swap},
              {"task_back", task_back},
              {"delete_task", delete_task},
              {"collect", collect},
              {"open", open_again}};

static void must(int r)
{
    if (r)
        fail_msg("%d: %s", r, e.msg);
}

static void make_dir(char *at)
{
    strcpy(at, access("/dev/shm", W_OK) ? "/tmp/cpetd-registry-XXXXXX" : "/dev/shm/cpetd-registry-XXXXXX");
    assert_non_null(mkdtemp(at));
}

/* Two modules, a third that was deleted and is collected, a task of 16 versions. */
static int make_model(void **st)
{
    char v[8];
    (void)st;
    make_dir(model_dir);
    must(registry_open(model_dir, &reg, &e));
    must(put("a", "content a"));
    must(put("b", "content b"));
    for (int i = 0; i < REGISTRY_VERSIONS; i++) {
        snprintf(v, sizeof v, "v%d", i);
        must(task("t", v, "content a", "content b"));
    }
    must(put("gone", "content of gone"));
    registry_close(reg);
    return 0;
}

static int remove_model(void **st)
{
    (void)st;
    remove_tree(model_dir);
    return 0;
}

static int copy_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    char to[512], *text;
    size_t n;
    (void)ftw;
    snprintf(to, sizeof to, "%s%s", dir, path + strlen(model_dir));
    if (flag == FTW_D)
        return mkdir(to, st->st_mode) && errno != EEXIST;
    must(file_read(path, 1 << 24, &text, &n, &e));
    must(file_write_atomic(to, text, n, 0600, &e));
    free(text);
    return 0;
}

static void begin(void)
{
    make_dir(dir);
    must(nftw(model_dir, copy_one, 16, FTW_PHYS));
    must(registry_open(dir, &reg, &e));
    must(registry_delete_module(reg, "gone", &e));
}

static void end(void)
{
    registry_close(reg);
    reg = NULL;
    remove_tree(dir);
}

static void dump(struct buf *b)
{
    buf_free(b);
    registry_dump(reg, dir, b);
}

/* Equal but for the files? One whose row went may lie there until the next start. */
static bool same_rows(const struct buf *a, const struct buf *b)
{
    const char *fa = strstr(a->data, "file "), *fb = strstr(b->data, "file ");
    size_t n = (size_t)(fa - a->data);
    return fa && fb && n == (size_t)(fb - b->data) && !memcmp(a->data, b->data, n);
}

static bool same(const struct buf *a, const struct buf *b)
{
    return !strcmp(a->data, b->data);
}

/* What the registry holds when w was done, and the program started again. */
static void dump_done(const struct write *w, struct buf *done)
{
    begin();
    must(w->f());
    must(open_again());
    dump(done);
    end();
}

/* One write with its n-th call failing, alone or with all after it. True while there was an n-th call. */
static bool fail_at(const struct write *w, int n, int kinds, int error, bool forever, const struct buf *done)
{
    struct buf before = {0}, after = {0}, again = {0};
    bool may_leave = forever || w->f == collect || w->f == open_again; /* files without rows */
    begin();
    dump(&before);
    bad_disk_arm(n, kinds, error, forever);
    int r = w->f();
    bool hit = bad_disk_disarm() > 0;
    bool unknown = r && strstr(e.msg, "unknown until the next start");
    if (r && (!*e.msg || (r != -error && r != -EIO) || !hit || (unknown && !forever)))
        fail_msg("%s, call %d: %d: %s", w->name, n, r, e.msg);
    if (!reg)
        must(registry_open(dir, &reg, &e));
    dump(&after);
    if (r && !unknown && !(may_leave ? same_rows(&before, &after) : same(&before, &after)))
        fail_msg("%s, call %d: not as before\n%s\nbut\n%s", w->name, n, before.data, after.data);
    must(open_again());
    dump(&again);
    bool is_done = same(&again, done);
    if (r && !is_done && !same_rows(&again, &before))
        fail_msg("%s, call %d: neither as before nor done\n%s\nbut\n%s", w->name, n, before.data, again.data);
    if (r ? is_done && !unknown && !same_rows(done, &before) && w->f != collect && w->f != open_again : !is_done)
        fail_msg("%s, call %d: answered %d, but\n%s", w->name, n, r, again.data);
    if (r && !is_done)
        must(w->f()); /* it goes on working */
    must(open_again());
    dump(&again);
    if (!same(&again, done))
        fail_msg("%s, call %d: tried again, it has\n%s", w->name, n, again.data);
    end();
    buf_free(&before);
    buf_free(&after);
    buf_free(&again);
    return hit;
}

static void each_call(int kinds, int error, bool forever)
{
    for (size_t i = 0; i < sizeof writes / sizeof *writes; i++) {
        struct buf done = {0};
        int n = 1;
        dump_done(&writes[i], &done);
        while (fail_at(&writes[i], n, kinds, error, forever, &done))
            n++;
        print_message("%s: %d calls\n", writes[i].name, n - 1);
        assert_true(n > 1);
        buf_free(&done);
    }
}

static void test_each_write_fails_once(void **st)
{
    (void)st;
    each_call(BAD_OTHER, EIO, false);
}

static void test_each_fsync_fails_once(void **st)
{
    (void)st;
    each_call(BAD_SYNC, EIO, false);
}

static void test_disk_full(void **st)
{
    (void)st;
    each_call(BAD_OTHER, ENOSPC, false);
}

static void test_disk_stays_full(void **st)
{
    (void)st;
    each_call(BAD_OTHER, ENOSPC, true);
}

static void test_disk_dies(void **st)
{
    (void)st;
    each_call(BAD_ALL, EIO, true);
}

static void traced(int (*f)(void), const char *pattern)
{
    struct buf t = {0};
    regex_t re;
    bad_disk_trace(&t);
    int r = f();
    bad_disk_trace(NULL);
    must(r);
    assert_int_equal(regcomp(&re, pattern, REG_EXTENDED | REG_NOSUB), 0);
    if (regexec(&re, t.data ? t.data : "", 0, NULL, 0))
        fail_msg("%s is not %s", t.data, pattern);
    regfree(&re);
    buf_free(&t);
}

/* Nothing is named before it lasts: the upload is fsynced, then renamed, the directory fsynced, then the row committed.
 * The commit: journal fsynced, database written and fsynced, journal truncated and fsynced. Rows go before files. */
static void test_order(void **st)
{
    (void)st;
    begin();
#define COMMIT "J+K[JK]*W+SLK"
    traced(put_new, "^ow+srd" COMMIT "u$");
    traced(put_over, "^ow+srd" COMMIT "u$");
    traced(task_swap, "^" COMMIT "$");
    traced(delete_module, "^" COMMIT "$");
    traced(delete_task, "^" COMMIT "$");
    traced(collect, "^" COMMIT "u+$");
    end();
}

/* A file whose fsync failed is gone: nobody can take it, or fsync it once more. */
static void test_failed_upload(void **st)
{
    (void)st;
    char *staged = NULL;
    begin();
    bad_disk_arm(1, BAD_SYNC, EIO, false);
    assert_int_equal(registry_stage(reg, "x", 1, &staged, &e), -EIO);
    assert_int_equal(bad_disk_disarm(), 1);
    assert_null(staged);
    char path[128];
    snprintf(path, sizeof path, "%s/incoming", dir);
    assert_int_equal(rmdir(path), 0); /* it is empty */
    end();
}

/* ---- the power goes ---- */

enum { IMAGES = 3 }; /* of each moment */

static char images_dir[64];
static int n_images;
static uint64_t image_rng = 1;

static const char *image_path(int i)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%d", images_dir, i);
    return path;
}

static void take_images(void)
{
    for (int i = 0; i < IMAGES; i++)
        power_image(image_path(n_images++), &image_rng);
}

/* Opens an image, as the next start would. */
static void open_image(int i, struct buf *out)
{
    struct registry *r;
    buf_free(out);
    must(registry_open(image_path(i), &r, &e));
    registry_dump(r, image_path(i), out);
    registry_close(r);
}

/* Whenever the power goes during a write, the next start finds it done or not begun; once it was answered, done. */
static void lose_power(const struct write *w)
{
    struct buf before = {0}, done = {0}, got = {0};
    dump_done(w, &done);
    begin();
    must(registry_collect(reg, &e)); /* as the next start does */
    dump(&before);
    end();
    make_dir(images_dir);
    n_images = 0;
    begin();
    power_begin(dir);
    bad_disk_before(take_images);
    must(w->f());
    bad_disk_before(NULL);
    int answered = n_images;
    take_images();
    power_end();
    for (int i = 0; i < n_images; i++) {
        open_image(i, &got);
        if (!same(&got, &done) && (i >= answered || !same(&got, &before)))
            fail_msg("%s, image %d of %d: neither\n%s\nnor\n%s\nbut\n%s", w->name, i, answered, before.data, done.data,
                     got.data);
    }
    print_message("%s: %d images\n", w->name, n_images);
    end();
    remove_tree(images_dir);
    buf_free(&before);
    buf_free(&done);
    buf_free(&got);
}

static void test_power_goes(void **st)
{
    (void)st;
    for (size_t i = 0; i < sizeof writes / sizeof *writes; i++)
        lose_power(&writes[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_failed_upload),
        cmocka_unit_test(test_each_write_fails_once),
        cmocka_unit_test(test_each_fsync_fails_once),
        cmocka_unit_test(test_disk_full),
        cmocka_unit_test(test_disk_stays_full),
        cmocka_unit_test(test_disk_dies),
        cmocka_unit_test(test_power_goes),
    };
    bad_disk_install();
    return cmocka_run_group_tests(tests, make_model, remove_model);
}
