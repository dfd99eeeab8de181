/* test_golden.c - modules saved by PEFT (tests/golden/make_pet.py): ranks and scales are PEFT's, other kinds refused;
 * taken ones go through .pet and back with the same content. */
#include "pet_testlib.h"

#include "common/file.h"
#include "formats/json.h"

static json_t *expected;

static void golden(const char *name, char *out, size_t n)
{
    snprintf(out, n, "%s/pet/%s", GOLDEN_DIR, name);
}

static void check_modules(const struct pet *p, const char *name, json_t *modules)
{
    if (json_object_size(modules) != pet_info(p)->n_sites)
        fail_msg("%s: %u linears, PEFT has %zu", name, pet_info(p)->n_sites, json_object_size(modules));
    for (uint32_t i = 0; i < pet_info(p)->n_sites; i++) {
        struct pet_part q;
        pet_part(p, i, &q);
        const json_t *m = json_object_get(modules, q.module);
        if (!m)
            fail_msg("%s: PEFT does not wrap %s", name, q.module);
        assert_int_equal(json_integer_value(json_object_get(m, "rank")), q.rank);
        if ((float)json_number_value(json_object_get(m, "scale")) != q.scale)
            fail_msg("%s: %s has scale %g", name, q.module, q.scale);
    }
}

static void check_round_trip(const struct pet *p, const char *name, json_t *modules)
{
    struct pet *q = NULL, *back = NULL;
    struct err e = {0};
    assert_int_equal(pet_write(p, NULL, scratch("g.pet"), &e), 0);
    assert_int_equal(pet_open(scratch("g.pet"), NULL, &q, &e), 0);
    assert_true(hash_equal(&pet_info(p)->hash, &pet_info(q)->hash));
    assert_int_equal(pet_write_peft(q, scratch(name), &e), 0);
    if (pet_open(scratch(name), NULL, &back, &e))
        fail_msg("%s", e.msg);
    assert_true(hash_equal(&pet_info(p)->hash, &pet_info(back)->hash));
    check_modules(back, name, modules);
    pet_close(q);
    pet_close(back);
}

static void test_all(void **s)
{
    (void)s;
    const char *name;
    json_t *v;
    size_t taken = 0, refused = 0;
    json_object_foreach(expected, name, v)
    {
        char path[1000];
        struct pet *p = NULL;
        struct err e = {0};
        const char *says = json_string_value(json_object_get(v, "refused"));
        golden(name, path, sizeof path);
        int r = pet_open(path, NULL, &p, &e);
        if (says) {
            if (!r)
                fail_msg("%s was taken", name);
            assert_says(&e, says);
            refused++;
        } else {
            if (r)
                fail_msg("%s", e.msg);
            check_modules(p, name, json_object_get(v, "modules"));
            check_round_trip(p, name, json_object_get(v, "modules"));
            pet_close(p);
            taken++;
        }
    }
    assert_true(taken >= 8 && refused >= 15);
}

static int set_up(void **s)
{
    (void)s;
    char path[1000];
    struct err e = {0};
    scratch_make();
    golden("expected.json", path, sizeof path);
    int r = json_read_file(path, 1 << 20, &expected, &e);
    if (r)
        fprintf(stderr, "%s\n", e.msg);
    return r;
}

static int tear_down(void **s)
{
    (void)s;
    json_decref(expected);
    scratch_remove();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_all)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
