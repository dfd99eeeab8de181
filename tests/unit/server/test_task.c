/* test_task.c - the table, modules and their names, versions of tasks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "server/task.h"

/* ---- table ---- */

static void test_table(void **state)
{
    enum { N = 5000 };
    static char key[N][16];
    struct table t = {0};
    (void)state;
    assert_null(table_get(&t, "x", 1));
    assert_null(table_remove(&t, "x", 1));
    for (int i = 0; i < N; i++) {
        snprintf(key[i], sizeof key[i], "task-%d", i);
        assert_int_equal(table_put(&t, key[i], strlen(key[i]), key[i]), 0);
    }
    assert_int_equal(t.n, N);
    for (int i = 0; i < N; i++) {
        assert_ptr_equal(table_get(&t, key[i], strlen(key[i])), key[i]);
        assert_ptr_equal(table_at(&t, (size_t)i), key[i]);
    }
    assert_null(table_get(&t, "task-", 5));
    assert_null(table_at(&t, N));
    for (int i = 0; i < N; i += 250)
        assert_ptr_equal(table_remove(&t, key[i], strlen(key[i])), key[i]);
    for (int i = 0; i < N; i++)
        assert_ptr_equal(table_get(&t, key[i], strlen(key[i])), i % 250 ? key[i] : NULL);
    assert_ptr_equal(table_at(&t, 0), key[1]); /* the order stays */
    assert_int_equal(table_put(&t, key[1], strlen(key[1]), key[2]), 0);
    assert_ptr_equal(table_at(&t, 0), key[2]);
    assert_int_equal(t.n, N - N / 250);
    table_free(&t);
}

/* ---- modules and tasks over a residency whose loads never start ---- */

struct all {
    struct resident *r;
    struct modules *m;
    struct tasks *t;
};

static int on_start(void *ctx, struct resident_job *j)
{
    (void)ctx;
    (void)j;
    return -ENOMEM;
}

static int setup(void **state)
{
    struct all *a = calloc(1, sizeof *a);
    struct resident_opts o = {.budget = 1000, .start = on_start};
    a->r = resident_create(&o);
    a->m = modules_create(a->r);
    a->t = tasks_create();
    *state = a;
    return a->r && a->m && a->t ? 0 : -1;
}

static int teardown(void **state)
{
    struct all *a = *state;
    a->m->res = NULL;
    assert_null(resident_free(a->r));
    tasks_free(a->t);
    modules_free(a->m);
    free(a);
    return 0;
}

static struct module *content(struct all *a, int n)
{
    char path[16];
    struct pet_info info = {.bytes = 100, .max_rank = 8};
    info.hash.b[0] = (uint8_t)n;
    snprintf(path, sizeof path, "/m/%d", n);
    struct module *m = module_get(a->m, &info, path);
    assert_non_null(m);
    return m;
}

static void name_it(struct all *a, const char *name, int n)
{
    struct module *m = content(a, n);
    struct module_name *e = module_name_new(m, name, TASK_EVERYBODY, false, false, 1);
    assert_non_null(e);
    assert_int_equal(module_reserve(a->m), 0);
    module_set_name(a->m, e);
    module_unref(m);
}

static struct task_version *make(struct all *a, const char *id, const char *name, int n, float weight)
{
    struct module *m = content(a, n);
    struct task_ref ref = {m, name, weight};
    struct task_spec s = {.id = id, .tenant = TASK_EVERYBODY, .ref = &ref, .n_refs = 1};
    struct task_version *v;
    struct err e;
    assert_int_equal(task_make(&s, &v, &e), 0);
    module_unref(m);
    return v;
}

static void put(struct all *a, const char *id, const char *name, int n)
{
    assert_int_equal(tasks_reserve(a->t), 0);
    tasks_set(a->t, make(a, id, name, n, 1));
}

static void test_names(void **state)
{
    struct all *a = *state;
    struct err e;
    char long_name[200];
    name_it(a, "one", 1);
    name_it(a, "uno", 1);
    struct module *m = module_named(a->m, "one")->m;
    assert_ptr_equal(module_named(a->m, "uno")->m, m);
    assert_int_equal(m->wanted, 2);
    name_it(a, "one", 2); /* another content for the name */
    assert_int_equal(m->wanted, 1);
    assert_ptr_not_equal(module_named(a->m, "one")->m, m);
    module_drop_name(a->m, "uno");
    assert_null(module_named(a->m, "uno"));
    struct hash h = {.b = {1}};
    assert_null(module_find(a->m, &h)); /* nothing refers to it any more */
    module_drop_name(a->m, "nothing");
    memset(long_name, 'x', sizeof long_name);
    long_name[sizeof long_name - 1] = 0;
    assert_int_equal(module_check_name(long_name, &e), -EINVAL);
    assert_int_equal(module_check_name("", &e), -EINVAL);
    assert_int_equal(module_check_name("a b", &e), -EINVAL);
    assert_int_equal(module_check_name("\xff", &e), -EINVAL);
    long_name[64] = 0;
    memset(long_name, 'a', 64);
    assert_int_equal(module_check_name(long_name, &e), -EINVAL); /* would be a hash */
    assert_int_equal(module_check_name("triage-2.1", &e), 0);
}

static void test_draining_is_listed_until_the_end(void **state)
{
    struct all *a = *state;
    name_it(a, "one", 1);
    struct module *m = module_named(a->m, "one")->m;
    m->res.users = 1;
    module_ref(m);
    module_drop_name(a->m, "one");
    assert_null(module_named(a->m, "one"));
    assert_int_equal(a->m->name.n, 1);
    name_it(a, "one", 2); /* the name is free again */
    assert_int_equal(a->m->name.n, 1);
    m->res.users = 0;
    module_unref(m);
    module_drop_name(a->m, "one");
    assert_int_equal(a->m->name.n, 0);
}

static void test_versions(void **state)
{
    struct all *a = *state;
    name_it(a, "one", 1);
    name_it(a, "two", 2);
    put(a, "t", "one", 1);
    struct task_version *old = tasks_get(a->t, 7, "txx", 1);
    assert_non_null(old);
    assert_int_equal(old->module[0]->wanted, 2);
    put(a, "t", "two", 2);
    struct task_version *now = tasks_get(a->t, 7, "t", 1);
    assert_ptr_not_equal(now, old); /* a request that has the old one keeps it */
    assert_int_equal(now->number, old->number);
    assert_false(hash_equal(&now->hash, &old->hash));
    assert_int_equal(old->module[0]->wanted, 1); /* its name alone */
    put(a, "t", "one", 1);
    assert_true(hash_equal(&tasks_find(a->t, "t")->hash, &old->hash)); /* the same again has the same hash */
    struct task_version *half = make(a, "t", "one", 1, 0.5f);
    assert_false(hash_equal(&half->hash, &old->hash));
    task_unref(half);
    put(a, "u", "two", 2);
    assert_int_not_equal(tasks_find(a->t, "u")->number, old->number);
    assert_string_equal(tasks_using(a->t, "two", NULL)->id, "u");
    assert_int_equal(tasks_remove(a->t, "u"), 0);
    assert_int_equal(tasks_remove(a->t, "u"), -ENOENT);
    assert_null(tasks_using(a->t, "two", NULL));
    task_unref(old);
    task_unref(now);
}

static void test_by_name_and_by_hash(void **state)
{
    struct all *a = *state;
    char hex[HASH_HEX];
    name_it(a, "one", 1);
    struct module *m = module_named(a->m, "one")->m;
    hash_hex(&m->info.hash, hex);
    put(a, "named", "one", 1);
    put(a, "hashed", hex, 1);
    assert_null(task_missing_module(tasks_find(a->t, "named"), a->m));
    tasks_remove(a->t, "named");
    assert_string_equal(tasks_using(a->t, "one", m)->id, "hashed");
    put(a, "named", "one", 1);
    module_drop_name(a->m, "one");
    assert_string_equal(task_missing_module(tasks_find(a->t, "named"), a->m), "one");
    assert_null(task_missing_module(tasks_find(a->t, "hashed"), a->m)); /* stands on the content, not on a name */
}

static void test_tenants(void **state)
{
    struct all *a = *state;
    struct task_spec s = {.id = "mine", .tenant = 3};
    struct err e;
    assert_int_equal(tasks_add(a->t, &s, &e), 0);
    assert_int_equal(tasks_add(a->t, &s, &e), -EEXIST);
    assert_string_equal(e.param, "id");
    assert_null(tasks_get(a->t, 4, "mine", 4));
    struct task_version *v = tasks_get(a->t, 3, "mine", 4);
    assert_non_null(v);
    task_unref(v);
}

static void test_settings(void **state)
{
    struct task_settings *s = NULL;
    struct err e;
    (void)state;
    assert_int_equal(task_settings_make("{{ messages[0].content }}", "{\"temperature\": 0.5}", &s, &e), 0);
    assert_true(s->tmpl && s->defaults && s->defaults->set == REQ_SET_TEMPERATURE);
    task_settings_free(s);
    assert_int_equal(task_settings_make("{% if %}", NULL, &s, &e), -EINVAL);
    assert_string_equal(e.param, "template");
    assert_int_equal(task_settings_make(NULL, "{\"temperature\": 9}", &s, &e), -EINVAL);
    assert_string_equal(e.param, "defaults.temperature");
    assert_int_equal(task_settings_make(NULL, "{\"nothing\": 9}", &s, &e), -EINVAL);
    assert_int_equal(task_settings_make(NULL, NULL, &s, &e), 0);
    task_settings_free(s);
    task_settings_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test_setup_teardown(test_names, setup, teardown),
        cmocka_unit_test_setup_teardown(test_draining_is_listed_until_the_end, setup, teardown),
        cmocka_unit_test_setup_teardown(test_versions, setup, teardown),
        cmocka_unit_test_setup_teardown(test_by_name_and_by_hash, setup, teardown),
        cmocka_unit_test_setup_teardown(test_tenants, setup, teardown),
        cmocka_unit_test(test_settings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
