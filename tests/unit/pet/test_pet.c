/* test_pet.c - modules that are right: PEFT directories, recovery files, .pet files, and what a slot computes. */
#include "pet_testlib.h"

#include "common/file.h"
#include "common/num.h"

static struct kern_dev *dev;

static const struct pair three[] = {
    {"model.layers.10.mlp.down_proj", 3, 24, 16, DT_BF16},
    {"model.layers.2.self_attn.q_proj", 8, 16, 20, DT_F32},
    {"lm_head", 1, 16, 33, DT_F16},
};
#define TARGETS ", \"target_modules\": [\"down_proj\", \"q_proj\", \"lm_head\"]"
#define RANKS ", \"rank_pattern\": {\"down_proj\": 3, \"lm_head\": 1}, \"alpha_pattern\": {\"lm_.ead\": 5}"

static void test_peft(void **s)
{
    (void)s;
    write_peft(scratch("m"), config_of(8, 16, TARGETS RANKS ", \"base_model_name_or_path\": \"some/base\""), three, 3);
    struct pet *p = open_ok(scratch("m"));
    const struct pet_info *i = pet_info(p);
    assert_int_equal(i->kind, PET_LORA);
    assert_int_equal(i->n_sites, 3);
    assert_int_equal(i->max_rank, 8);
    assert_false(i->verified);
    assert_string_equal(i->base, "some/base");
    assert_int_equal(i->bytes, 3 * (24 + 16) * 2 + 8 * (16 + 20) * 4 + (16 + 33) * 2);
    struct pet_part q;
    pet_part(p, 0, &q);
    assert_string_equal(q.module, "lm_head");
    assert_true(q.rank == 1 && q.k == 16 && q.n == 33 && q.scale == 5.0f && q.fn == KERN_FN_NONE);
    pet_part(p, 1, &q);
    assert_string_equal(q.module, "model.layers.10.mlp.down_proj");
    assert_true(q.rank == 3 && q.scale == (float)(16.0 / 3));
    pet_close(p);
}

static void test_rslora(void **s)
{
    (void)s;
    write_peft(scratch("rs"), config_of(8, 16, TARGETS RANKS ", \"use_rslora\": true"), three, 3);
    struct pet *p = open_ok(scratch("rs"));
    struct pet_part q;
    pet_part(p, 2, &q);
    assert_true(q.scale == (float)(16 / sqrt(8)));
    pet_close(p);
}

/* ---- what a slot computes ---- */

static const uint32_t in_index[] = {3, 0, 15, 7, 8, 1}, out_index[] = {19, 2, 0, 5};
static const float in_scale[] = {0.5f, 2, 1, 3, 0.25f, 1}, out_scale[] = {1, 2, -1, 0.125f};

static void fill_sites(struct pet_site site[3])
{
    memset(site, 0, 3 * sizeof *site);
    strcpy(site[0].name, "layers.2.q");
    strcpy(site[0].module, three[1].module);
    site[0].k_orig = 16;
    site[0].n_orig = 20;
    site[0].k = 6;
    site[0].n = 4;
    site[0].in_index = in_index;
    site[0].out_index = out_index;
    site[0].in_scale = in_scale;
    site[0].out_scale = out_scale;
    strcpy(site[1].name, "layers.10.down");
    strcpy(site[1].module, three[0].module);
    site[1].k = site[1].k_orig = 24;
    site[1].n = site[1].n_orig = 16;
    strcpy(site[2].name, "head");
    strcpy(site[2].module, "lm_head");
    site[2].k = site[2].k_orig = 16;
    site[2].n = site[2].n_orig = 33;
}

/* y[n] = s * B f(A x) in the original's coordinates, then the kept outputs. */
static void reference(const struct pair *p, const struct pet_site *site, float scale, enum kern_fn fn, const float *x,
                      double *y)
{
    double t[256];
    for (uint32_t r = 0; r < p->rank; r++) {
        t[r] = 0;
        for (uint32_t j = 0; j < site->k; j++) {
            uint32_t o = site->in_index ? site->in_index[j] : j;
            /* x is stored as x_original / in_scale */
            t[r] += (double)pair_value(p, 0, (size_t)r * p->k + o) * x[j] * (site->in_scale ? site->in_scale[j] : 1);
        }
        if (fn == KERN_FN_GELU)
            t[r] = 0.5 * t[r] * (1 + erf(t[r] / sqrt(2)));
        if (fn == KERN_FN_GELU_TANH)
            t[r] = 0.5 * t[r] * (1 + tanh(sqrt(2 / M_PI) * (t[r] + 0.044715 * t[r] * t[r] * t[r])));
    }
    for (uint32_t i = 0; i < site->n; i++) {
        uint32_t o = site->out_index ? site->out_index[i] : i;
        y[i] = 0;
        for (uint32_t r = 0; r < p->rank; r++)
            y[i] += (double)pair_value(p, 1, (size_t)o * p->rank + r) * t[r];
        y[i] *= (double)scale * (site->out_scale ? site->out_scale[i] : 1);
    }
}

/* One row through LR_DOWN and LINEAR with a zero matrix, so that y is the module's part alone. */
static void run_site(const struct kern_slot *slot, uint32_t site, uint32_t k, uint32_t n, const float *x, float *y)
{
    struct kern_mat mat;
    struct kern_act act;
    kmem wm, am, ym, tm;
    uint32_t row = 0;
    int32_t token = 0;
    struct err e = {0};
    uint32_t forms = kern_act_forms(dev, KERN_F32);
    assert_int_equal(kern_alloc(dev, kern_mat_bytes(KERN_F32, n, k, false), &wm, &e), 0);
    assert_int_equal(kern_alloc(dev, kern_act_bytes(1, k, forms), &am, &e), 0);
    assert_int_equal(kern_alloc(dev, (n + 16) * sizeof(float), &ym, &e), 0);
    assert_int_equal(kern_alloc(dev, kern_lr_scratch(1, 1, slot->max_rank), &tm, &e), 0);
    kern_mat_init(&mat, KERN_F32, n, k, false, wm);
    kern_act_init(&act, 1, k, forms, am);
    kern_upload(dev, act.f32, x, k * sizeof *x);
    struct kern_op ops[2] = {{.kind = KERN_OP_LR_DOWN, .act = &act, .sites = {{site, 0, n}}, .n_sites = 1, .t = tm},
                             {.kind = KERN_OP_LINEAR,
                              .mat = &mat,
                              .act = &act,
                              .y = ym,
                              .ldy = n,
                              .sites = {{site, 0, n}},
                              .n_sites = 1,
                              .t = tm}};
    struct kern_group group = {.slot = slot, .weight = 1, .n_rows = 1, .rows = &row};
    struct kern_step step = {.n_rows = 1, .token = &token, .pos = &row, .groups = &group, .n_groups = 1};
    kern_run(dev, ops, 2, &step);
    kern_download(dev, y, ym, n * sizeof *y);
    kern_free(dev, wm);
    kern_free(dev, am);
    kern_free(dev, ym);
    kern_free(dev, tm);
}

static void check_slot(const struct pet *p, const struct pet_target *t, const struct pair *pairs, const float *scales,
                       enum kern_fn fn, double tolerance)
{
    struct pet_slot *slot = NULL;
    struct err e = {0};
    size_t want = pet_resident_bytes(p, t);
    if (pet_load(dev, p, t, &slot, &e))
        fail_msg("%s", e.msg);
    const struct kern_slot *k = pet_slot_kern(slot);
    assert_true(want > 0 && pet_slot_bytes(slot) == want);
    assert_int_equal(k->n_sites, t->n_sites);
    assert_int_equal(k->max_rank, pet_info(p)->max_rank);
    for (uint32_t i = 0; i < t->n_sites; i++) {
        float x[64], y[64];
        double ref[64], most = 0;
        for (uint32_t j = 0; j < 64; j++)
            x[j] = rng_unit(9, i, j) * 2 - 1;
        run_site(k, i, t->sites[i].k, t->sites[i].n, x, y);
        reference(&pairs[i], &t->sites[i], scales[i], fn, x, ref);
        for (uint32_t j = 0; j < t->sites[i].n; j++) {
            most = fmax(most, fabs(ref[j]));
            if (!(fabs(y[j] - ref[j]) <= tolerance * (1 + fabs(ref[j]))))
                fail_msg("site %u, output %u: %g, not %g", i, j, y[j], ref[j]);
        }
        assert_true(most > 0.01);
    }
    pet_unload(dev, slot);
}

static void test_slot(void **s)
{
    (void)s;
    struct pet_site sites[3];
    fill_sites(sites);
    struct pet_target t = {.sites = sites, .n_sites = 3, .type = KERN_F32};
    const struct pair order[] = {three[1], three[0], three[2]};
    const float scales[] = {2, (float)(16.0 / 3), 5};
    write_peft(scratch("slot"), config_of(8, 16, TARGETS RANKS), three, 3);
    struct pet *p = open_ok(scratch("slot"));
    check_slot(p, &t, order, scales, KERN_FN_NONE, 1e-5);
    t.type = KERN_BF16;
    check_slot(p, &t, order, scales, KERN_FN_NONE, 0.05);
    pet_close(p);
}

static void test_untouched(void **s)
{
    (void)s;
    struct pet_site sites[3];
    fill_sites(sites);
    struct pet_target t = {.sites = sites, .n_sites = 3, .type = KERN_BF16};
    struct pet_slot *slot = NULL;
    write_peft(scratch("one"), config_of(1, 1, TARGETS), &three[2], 1);
    struct pet *p = open_ok(scratch("one"));
    assert_int_equal(pet_load(dev, p, &t, &slot, NULL), 0);
    const struct kern_slot *k = pet_slot_kern(slot);
    assert_true(k->site[0].rank == 0 && k->site[1].rank == 0 && k->site[2].rank == 1 && k->max_rank == 1);
    pet_unload(dev, slot);
    pet_unload(dev, NULL);
    pet_close(p);
}

/* ---- what pet_check refuses ---- */

static void refuse(const struct pet *p, const struct pet_target *t, int code, const char *says)
{
    struct err e = {0};
    struct pet_slot *slot = NULL;
    assert_int_equal(pet_check(p, t, &e), code);
    assert_says(&e, says);
    assert_int_equal(pet_resident_bytes(p, t), 0);
    assert_int_equal(pet_load(dev, p, t, &slot, &e), code);
    assert_null(slot);
}

static void test_other_backbone(void **s)
{
    (void)s;
    struct pet_site sites[3], bad[3];
    fill_sites(sites);
    struct pet_target t = {.sites = bad, .n_sites = 3, .type = KERN_F32, .base_name = "tiny"};
    write_peft(scratch("o"), config_of(8, 16, TARGETS RANKS), three, 3);
    struct pet *p = open_ok(scratch("o"));
    memcpy(bad, sites, sizeof bad);
    assert_int_equal(pet_check(p, &t, NULL), 0);
    strcpy(bad[2].module, "head");
    refuse(p, &t, -EINVAL, "module \"lm_head\" is no linear of tiny");
    memcpy(bad, sites, sizeof bad);
    bad[1].k = bad[1].k_orig = 25;
    refuse(p, &t, -EINVAL, "tiny has 16 and 25 there");
    memcpy(bad, sites, sizeof bad);
    bad[1].n_orig = 17;
    refuse(p, &t, -EINVAL, "of 16 outputs and 24 inputs");
    memcpy(bad, sites, sizeof bad);
    bad[0].in_index = NULL;
    refuse(p, &t, -EINVAL, "6 inputs of 16");
    memcpy(bad, sites, sizeof bad);
    bad[0].out_index = NULL;
    refuse(p, &t, -EINVAL, "4 outputs of 20");
    memcpy(bad, sites, sizeof bad);
    const uint32_t wrong[] = {0, 1, 2, 3, 4, 16};
    bad[0].in_index = wrong;
    refuse(p, &t, -EINVAL, "maps inputs 5 to 16 of 16");
    memcpy(bad, sites, sizeof bad);
    t.n_sites = 0;
    refuse(p, &t, -EINVAL, "is no linear");
    t.n_sites = 3;
    t.type = KERN_S8;
    refuse(p, &t, -EINVAL, "bf16 or f32");
    pet_close(p);
}

static void test_lineage(void **s)
{
    (void)s;
    struct pet_site sites[3];
    fill_sites(sites);
    struct pet_lineage l = {.architecture = "llama"}, none = {0};
    hash_of("tok", 3, &l.tokenizer);
    hash_of("w", 1, &l.weights);
    struct pet_target t = {.lineage = l, .sites = sites, .n_sites = 3, .type = KERN_F32};
    write_peft(scratch("l"), config_of(8, 16, TARGETS RANKS), three, 3);
    struct pet *p = open_ok(scratch("l"));
    assert_int_equal(pet_write(p, &l, scratch("l.pet"), NULL), 0);
    strcpy(t.lineage.architecture, "qwen2");
    assert_int_equal(pet_check(p, &t, NULL), 0); /* it states none */
    pet_close(p);
    p = open_ok(scratch("l.pet"));
    refuse(p, &t, -EINVAL, "architecture is \"llama\"");
    t.lineage = l;
    assert_int_equal(pet_check(p, &t, NULL), 0);
    t.lineage.tokenizer.b[0] ^= 1;
    refuse(p, &t, -EINVAL, "tokenizer");
    t.lineage = l;
    t.lineage.weights.b[31] ^= 1;
    refuse(p, &t, -EINVAL, "original weights");
    t.lineage.weights = none.weights;
    assert_int_equal(pet_check(p, &t, NULL), 0); /* not known */
    t.lineage = none;
    assert_int_equal(pet_check(p, &t, NULL), 0);
    pet_close(p);
}

/* One tensor of the file gets a value that is not finite. */
static void test_not_finite(void **s)
{
    (void)s;
    struct pet_site sites[3];
    fill_sites(sites);
    struct pet_target t = {.sites = sites, .n_sites = 3, .type = KERN_F32};
    const uint32_t bits[3] = {0x7F80, 0x7F800001, 0xFC00}; /* inf in bf16, NaN in f32, -inf in f16 */
    for (int i = 0; i < 6; i++) {
        const struct pair *q = &three[i / 2];
        struct st_file *f = NULL;
        struct pet *p = NULL;
        char name[200], want[200];
        write_peft(scratch("nf"), config_of(8, 16, TARGETS RANKS), three, 3);
        const char *path = scratch("nf/adapter_model.safetensors");
        snprintf(name, sizeof name, "base_model.model.%s.lora_%c.weight", q->module, "AB"[i % 2]);
        snprintf(want, sizeof want, "module \"%s\", tensor %c: element 2", q->module, "AB"[i % 2]);
        assert_int_equal(st_open(path, &f, NULL), 0);
        size_t size = dtype_size(q->type), off = st_find(f, name)->off + 2 * size;
        st_close(f);
        FILE *file = fopen(path, "r+b");
        assert_int_equal(fseek(file, (long)off, SEEK_SET), 0);
        assert_int_equal(fwrite(&bits[i / 2], size, 1, file), 1);
        fclose(file);
        p = open_ok(scratch("nf")); /* it can be looked at */
        refuse(p, &t, -EINVAL, want);
        struct err e = {0};
        assert_int_equal(pet_write(p, NULL, scratch("nf.pet"), &e), -EINVAL);
        assert_says(&e, want);
        assert_int_equal(pet_write_peft(p, scratch("nf.dir"), &e), -EINVAL);
        pet_close(p);
    }
}

static void test_rescaled_too_far(void **s)
{
    (void)s;
    struct pet_site sites[3];
    const float huge[6] = {1, 1, 1e38f, 1, 1, 1}, most[6] = {1, 3e38f, 1, 1, 1, 1};
    fill_sites(sites);
    struct pet_target t = {.sites = sites, .n_sites = 3, .type = KERN_F32};
    struct pet_slot *slot = NULL;
    struct err e = {0};
    const struct pair big[] = {{"model.layers.2.self_attn.q_proj", 8, 16, 20, DT_F32}};
    write_peft(scratch("far"), config_of(8, 16, TARGETS), big, 1);
    struct pet *p = open_ok(scratch("far"));
    sites[0].in_scale = huge;
    assert_int_equal(pet_load(dev, p, &t, &slot, &e), 0); /* large and finite */
    pet_unload(dev, slot);
    const float inf[6] = {1, INFINITY, 1, 1, 1, 1};
    sites[0].in_scale = inf;
    assert_int_equal(pet_load(dev, p, &t, &slot, &e), -ERANGE);
    assert_says(&e, "tensor A");
    sites[0].in_scale = most;
    sites[0].out_scale = inf;
    assert_int_equal(pet_load(dev, p, &t, &slot, &e), -ERANGE);
    assert_says(&e, "tensor B");
    pet_close(p);
}

/* Recovery: the function between the halves. */
static void test_recovery_slot(void **s)
{
    (void)s;
    struct pet_site sites[3];
    fill_sites(sites);
    struct pet_target t = {.sites = sites, .n_sites = 3, .type = KERN_F32};
    const struct pair order[] = {three[1], three[0], three[2]};
    const float scales[] = {0.75f, 0.75f, 0.75f};
    static const char *const fns[] = {"none", "gelu", "gelu_tanh"};
    static const enum kern_fn fn[] = {KERN_FN_NONE, KERN_FN_GELU, KERN_FN_GELU_TANH};
    for (int i = 0; i < 3; i++) {
        const char *const meta[] = {"cpet.kind", "recovery", "cpet.fn", fns[i], "cpet.scale", "0.75", NULL};
        write_pairs(scratch("rec.safetensors"), three, 3, "", ".recovery_A", ".recovery_B", meta);
        struct pet *p = open_ok(scratch("rec.safetensors"));
        check_slot(p, &t, order, scales, fn[i], 1e-5);
        pet_close(p);
    }
}

static int set_up(void **s)
{
    (void)s;
    struct kern_opts o = {.threads = 1, .max_level = "scalar"};
    struct err e = {0};
    scratch_make();
    return kern_open(&o, &dev, &e);
}

static int tear_down(void **s)
{
    (void)s;
    kern_close(dev);
    scratch_remove();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_peft),           cmocka_unit_test(test_rslora),
        cmocka_unit_test(test_slot),           cmocka_unit_test(test_untouched),
        cmocka_unit_test(test_other_backbone), cmocka_unit_test(test_lineage),
        cmocka_unit_test(test_not_finite),     cmocka_unit_test(test_rescaled_too_far),
        cmocka_unit_test(test_recovery_slot),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
