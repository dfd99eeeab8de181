/* test_alloc.c - allocations that fail, one by one: everything in pet/ says so and gives back what it had. */
#include "pet_testlib.h"
#include "tests/unit/common/alloc_fail.h"

static struct kern_dev *dev;
static struct pet *lora, *recovery;
static struct pet_site sites[2];
static const struct pet_target target = {.sites = sites, .n_sites = 2, .type = KERN_F32};
static const struct pair pairs[] = {{"a.0.q", 2, 8, 4, DT_F32}, {"a.1.q", 3, 8, 4, DT_BF16}};

static int open_path(const char *path, struct err *e)
{
    struct pet *p = NULL;
    int r = pet_open(path, NULL, &p, e);
    assert_true(!r == !!p);
    pet_close(p);
    return r;
}

static int do_peft(struct err *e)
{
    return open_path(scratch("m"), e);
}

static int do_recovery(struct err *e)
{
    return open_path(scratch("r.safetensors"), e);
}

static int do_container(struct err *e)
{
    return open_path(scratch("m.pet"), e);
}

static int do_write(struct err *e)
{
    static const struct pet_lineage l = {.architecture = "llama"};
    return pet_write(recovery, &l, scratch("out.pet"), e);
}

static int do_write_peft(struct err *e)
{
    return pet_write_peft(lora, scratch("out"), e);
}

static int do_load(struct err *e)
{
    struct pet_slot *s = NULL;
    int r = pet_load(dev, lora, &target, &s, e);
    assert_true(!r == !!s);
    pet_unload(dev, s);
    return r;
}

static int do_stream(struct err *e)
{
    struct pet_stream *st = NULL;
    struct pet_slot *s = NULL;
    int r = pet_stream_open(scratch("m.pet"), NULL, &st, e);
    if (!r)
        r = pet_stream_load(dev, st, &target, &s, e);
    assert_true(!r == !!s);
    pet_unload(dev, s);
    pet_stream_close(st);
    return r;
}

static void test_each(void **s)
{
    (void)s;
    alloc_fail_each("a PEFT directory", do_peft, 1); /* a slower way does without */
    alloc_fail_each("a recovery file", do_recovery, 1);
    alloc_fail_each("a .pet file", do_container, 1);
    alloc_fail_each("writing a .pet file", do_write, 1);
    alloc_fail_each("writing a PEFT directory", do_write_peft, 1);
    alloc_fail_each("loading", do_load, 1);
    alloc_fail_each("loading a layer at a time", do_stream, 1);
}

static int set_up(void **s)
{
    (void)s;
    static const char *const meta[] = {"cpet.kind", "recovery", "cpet.fn", "gelu", "cpet.scale", "0.5", NULL};
    struct kern_opts o = {.threads = 1, .max_level = "scalar"};
    struct err e = {0};
    scratch_make();
    write_peft(scratch("m"),
               config_of(2, 4,
                         ", \"target_modules\": [\"q\"], \"rank_pattern\": {\".*1.q\": 3}, \"exclude_modules\": "
                         "\"x\", \"layers_to_transform\": [0, 1], \"layers_pattern\": \"a\""),
               pairs, 2);
    write_pairs(scratch("r.safetensors"), pairs, 2, "", ".recovery_A", ".recovery_B", meta);
    for (int i = 0; i < 2; i++) {
        strcpy(sites[i].module, pairs[i].module);
        sites[i].k = sites[i].k_orig = 8;
        sites[i].n = sites[i].n_orig = 4;
    }
    int r = kern_open(&o, &dev, &e);
    if (!r)
        r = pet_open(scratch("m"), NULL, &lora, &e);
    if (!r)
        r = pet_open(scratch("r.safetensors"), NULL, &recovery, &e);
    if (!r)
        r = pet_write(lora, NULL, scratch("m.pet"), &e);
    if (r)
        fprintf(stderr, "%s\n", e.msg);
    return r;
}

static int tear_down(void **s)
{
    (void)s;
    pet_close(lora);
    pet_close(recovery);
    kern_close(dev);
    scratch_remove();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_each)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
