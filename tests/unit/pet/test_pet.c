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

static struct pet *open_ok(const char *path)
{
    struct pet *p = NULL;
    struct err e = {0};
    if (pet_open(path, NULL, &p, &e))
        fail_msg("%s", e.msg);
    return p;
}

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
        cmocka_unit_test(test_peft),
        cmocka_unit_test(test_rslora),
        cmocka_unit_test(test_slot),
        cmocka_unit_test(test_untouched),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
