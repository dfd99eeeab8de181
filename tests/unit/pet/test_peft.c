/* test_peft.c - PEFT directories and recovery files: what is taken, and what is refused by name. */
#include "pet_testlib.h"

#include <sys/stat.h>

#include "common/num.h"

#define Q(layer) "model.layers." #layer ".self_attn.q_proj"
#define TARGET ", \"target_modules\": [\"q_proj\"]"

static const struct pair four[] = {
    {Q(0), 2, 8, 8, DT_F32}, {Q(1), 2, 8, 8, DT_F32}, {Q(10), 2, 8, 8, DT_F32}, {Q(2), 2, 8, 8, DT_F32}};

static int open_with(const char *config, const struct pair *pairs, size_t n, struct pet **p, struct err *e)
{
    memset(e, 0, sizeof *e);
    write_peft(scratch("m"), config, pairs, n);
    return pet_open(scratch("m"), NULL, p, e);
}

/* ---- configurations of one module, rank 2, that are taken, and its scale ---- */

static void test_taken(void **s)
{
    (void)s;
    static const struct {
        const char *more;
        double scale;
    } t[] = {
        {"", 4},
        {TARGET, 4},
        {", \"target_modules\": \"all-linear\"", 4},
        {", \"target_modules\": \"All-Linear\"", 4},
        {", \"target_modules\": \".*\\\\.q_proj\"", 4},
        {", \"target_modules\": \"(?P<a>model)\\\\.layers\\\\.\\\\d+\\\\.self_attn\\\\.[qk]_proj\"", 4},
        {", \"target_modules\": \"model.layers.0.self_attn.q|.*q_proj\"", 4},
        {", \"target_modules\": [\"self_attn.q_proj\"]", 4},
        {", \"target_modules\": [\"x\", \"" Q(0) "\"]", 4},
        {", \"target_modules\": null", 4},
        {TARGET ", \"use_rslora\": true", 8 / sqrt(2)},
        {TARGET ", \"alpha_pattern\": {\"q_proj\": 3}", 1.5},
        {TARGET ", \"alpha_pattern\": {\"q_proj\": 3.25}", 1.625},
        {TARGET ", \"alpha_pattern\": {\"proj\": 3}", 4}, /* not a whole part of the name */
        {TARGET ", \"alpha_pattern\": {\"attn.q_proj\": 3}", 4},
        {TARGET ", \"alpha_pattern\": {\"self.attn.q.proj\": 3}", 1.5},  /* a dot is any character */
        {TARGET ", \"alpha_pattern\": {\"q_proj\": 3, \".*\": 5}", 1.5}, /* the first one */
        {TARGET ", \"alpha_pattern\": {\".*\": 5, \"q_proj\": 3}", 2.5},
        {TARGET ", \"alpha_pattern\": {\"layers\\\\.[0-4]\\\\..*\": 6}", 3},
        {TARGET ", \"alpha_pattern\": {\"^self_attn.q_proj\": 6}", 4}, /* "^" is the name's beginning */
        {TARGET ", \"alpha_pattern\": {\"^model.layers.0.self_attn.q_proj\": 6}", 3},
        {TARGET ", \"alpha_pattern\": {\"k_proj|q_proj\": 6}", 3},
        {TARGET ", \"alpha_pattern\": {\"self_attn\\\\.q_proj\": 6}", 3},
        {TARGET ", \"alpha_pattern\": {\"self\\\\.attn.q_proj\": 6}", 4}, /* an escaped dot is a dot */
        {TARGET ", \"alpha_pattern\": {\"^q_proj\": 6}", 4},
        {TARGET ", \"alpha_pattern\": {\"\": 6}", 4},
        {TARGET ", \"alpha_pattern\": {\"" Q(0) ".x\": 6, \"" Q(0) "\": 2}", 1},
        {TARGET ", \"alpha_pattern\": null, \"rank_pattern\": {}", 4},
        {TARGET ", \"layers_to_transform\": 0", 4},
        {TARGET ", \"layers_to_transform\": [3, 0]", 4},
        {TARGET ", \"layers_to_transform\": []", 4},
        {TARGET ", \"layers_to_transform\": [0], \"layers_pattern\": \"layers\"", 4},
        {TARGET ", \"layers_to_transform\": [0], \"layers_pattern\": [\"h\", \"layers\"]", 4},
        {", \"target_modules\": [\"" Q(0) "\"], \"layers_to_transform\": [7]", 4}, /* a whole name needs no layer */
        {TARGET ", \"exclude_modules\": [\"k_proj\", \"proj\"]", 4},
        {TARGET ", \"exclude_modules\": \"q_proj\"", 4}, /* a string is for the whole name */
        {TARGET ", \"init_lora_weights\": true", 4},
        {TARGET ", \"init_lora_weights\": false", 4},
        {TARGET ", \"init_lora_weights\": \"gaussian\"", 4},
        {TARGET ", \"init_lora_weights\": \"eva\", \"eva_config\": {\"rho\": 2}", 4},
        {TARGET ", \"fan_in_fan_out\": true, \"lora_dropout\": 0.1, \"use_dora\": false, \"unknown\": null", 4},
        {TARGET ", \"modules_to_save\": null, \"megatron_core\": \"megatron.core\", \"loftq_config\": {}", 4},
        {TARGET ", \"layer_replication\": null, \"trainable_token_indices\": null, \"lora_bias\": false", 4},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct err e;
        struct pet *p = NULL;
        struct pet_part q;
        if (open_with(config_of(2, 8, t[i].more), four, 1, &p, &e))
            fail_msg("%s: %s", t[i].more, e.msg);
        pet_part(p, 0, &q);
        if (q.scale != (float)t[i].scale)
            fail_msg("%s: scale %g, not %g", t[i].more, q.scale, t[i].scale);
        pet_close(p);
    }
}

static void test_refused(void **s)
{
    (void)s;
    static const struct {
        const char *more, *says;
    } t[] = {
        {", \"use_dora\": true", "DoRA"},
        {", \"lora_bias\": true", "lora_bias"},
        {", \"modules_to_save\": [\"lm_head\"]", "modules_to_save"},
        {", \"trainable_token_indices\": [1]", "trained tokens"},
        {", \"layer_replication\": [[0, 2]]", "replicated"},
        {", \"alora_invocation_tokens\": [1, 2]", "aLoRA"},
        {", \"use_qalora\": true", "QALoRA"},
        {", \"target_parameters\": [\"experts\"]", "target_parameters"},
        {", \"megatron_config\": {\"a\": 1}", "Megatron"},
        {", \"arrow_config\": {\"a\": 1}", "Arrow"},
        {", \"use_bdlora\": {\"a\": 1}", "block-diagonal"},
        {", \"kasa_config\": {\"a\": 1}", "KaSA"},
        {", \"monteclora_config\": {\"a\": 1}", "MonteCLoRA"},
        {", \"init_lora_weights\": \"pissa\"", "pissa"},
        {", \"init_lora_weights\": \"pissa_niter_16\"", "pissa_niter_16"},
        {", \"init_lora_weights\": \"olora\"", "olora"},
        {", \"init_lora_weights\": \"corda\"", "corda"},
        {", \"init_lora_weights\": \"loftq\", \"loftq_config\": {\"loftq_bits\": 4}", "loftq"},
        {", \"init_lora_weights\": \"lora_ga\"", "lora_ga"},
        {", \"init_lora_weights\": 3", "init_lora_weights"},
        {", \"some_new_thing\": true", "\"some_new_thing\" is not known"},
        {", \"target_modules\": [\"k_proj\"]", "does not target"},
        {", \"target_modules\": [\"proj\"]", "does not target"},
        {", \"target_modules\": \"q_proj\"", "does not target"},
        {", \"target_modules\": [7]", "\"target_modules\"[0] must be a string"},
        {", \"target_modules\": {\"a\": 1}", "\"target_modules\" must be"},
        {", \"target_modules\": \"(q_proj\"", "not a regular expression"},
        {", \"target_modules\": \".*q\", \"layers_to_transform\": 1", "\"layers_to_transform\" cannot"},
        {TARGET ", \"layers_to_transform\": [1]", "does not target"},
        {TARGET ", \"layers_to_transform\": 5", "does not target"},
        {TARGET ", \"layers_to_transform\": [\"1\"]", "must be an integer"},
        {TARGET ", \"layers_to_transform\": \"1\"", "must be an integer"},
        {TARGET ", \"layers_to_transform\": 0, \"layers_pattern\": \"blocks\"", "does not target"},
        {TARGET ", \"layers_to_transform\": 0, \"layers_pattern\": 3", "\"layers_pattern\""},
        {TARGET ", \"layers_to_transform\": 0, \"layers_pattern\": [\"(\"]", "\"layers_pattern\""},
        {TARGET ", \"exclude_modules\": [\"q_proj\"]", "does not target"},
        {TARGET ", \"exclude_modules\": \".*q_proj\"", "does not target"},
        {TARGET ", \"rank_pattern\": {\"q_proj\": 3}", "rank 2, the configuration says 3"},
        {TARGET ", \"rank_pattern\": {\"q_proj\": 0}", "integer of 1 or more"},
        {TARGET ", \"rank_pattern\": {\"q_proj\": 2.5}", "integer of 1 or more"},
        {TARGET ", \"rank_pattern\": [1]", "\"rank_pattern\" must be an object"},
        {TARGET ", \"alpha_pattern\": {\"q_proj\": \"3\"}", "finite number"},
        {TARGET ", \"alpha_pattern\": {\"q_proj\": 1e31}", "finite number"},
        {TARGET ", \"alpha_pattern\": {\"q(\": 3}", "not a regular expression"},
        {TARGET ", \"alpha_pattern\": {\"(([a-z._0-9]+)*)*[XY]\": 3}", "takes too many steps"},
        {TARGET ", \"use_rslora\": 1", "\"use_rslora\" must be"},
        {TARGET ", \"fan_in_fan_out\": \"no\"", "\"fan_in_fan_out\" must be"},
        {TARGET ", \"base_model_name_or_path\": 1", "\"base_model_name_or_path\" must be"},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct err e;
        struct pet *p = NULL;
        int r = open_with(config_of(2, 8, t[i].more), four, 1, &p, &e);
        if (!r)
            fail_msg("%s was taken", t[i].more);
        assert_true(e.code == r && !p);
        assert_says(&e, t[i].says);
        assert_says(&e, scratch("m"));
    }
}

static void test_whole_configs(void **s)
{
    (void)s;
    static const struct {
        const char *text, *says;
    } t[] = {
        {"", "JSON"},
        {"[]", "not a JSON object"},
        {"{\"r\": 2", "JSON"},
        {"{}", "\"peft_type\" is missing"},
        {"{\"peft_type\": 1}", "\"peft_type\" must be"},
        {"{\"peft_type\": \"IA3\"}", "\"IA3\""},
        {"{\"peft_type\": \"ADALORA\"}", "\"ADALORA\""},
        {"{\"peft_type\": \"PREFIX_TUNING\"}", "\"PREFIX_TUNING\""},
        {"{\"peft_type\": \"LORA\", \"bias\": \"all\", \"r\": 2}", "\"all\""},
        {"{\"peft_type\": \"LORA\", \"bias\": 3}", "\"bias\""},
        {"{\"peft_type\": \"LORA\"}", "rank 2, the configuration says 8"},
        {"{\"peft_type\": \"LORA\", \"r\": 0}", "\"r\" must be"},
        {"{\"peft_type\": \"LORA\", \"r\": -1}", "\"r\" must be"},
        {"{\"peft_type\": \"LORA\", \"r\": \"2\"}", "\"r\" must be"},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": NaN}", "JSON"},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 1e400}", "JSON"},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 1e38, \"alpha_pattern\": {\"a\": true}}", "lora_alpha"},
        {"{\"peft_type\": \"LORA\", \"r\": 2, \"r\": 3}", "JSON"},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct err e;
        struct pet *p = NULL;
        if (!open_with(t[i].text, four, 1, &p, &e))
            fail_msg("%s was taken", t[i].text);
        assert_says(&e, t[i].says);
    }
}

static void test_layers(void **s)
{
    (void)s;
    struct err e;
    struct pet *p = NULL;
    const char *more = TARGET ", \"layers_to_transform\": [0, 1, 2, 10], \"rank_pattern\": {\"layers.1.*q_proj\": 2}";
    assert_int_equal(open_with(config_of(2, 8, more), four, 4, &p, &e), 0);
    assert_int_equal(pet_info(p)->n_sites, 4);
    pet_close(p);
    more = TARGET ", \"layers_to_transform\": [0, 1, 10]";
    assert_int_equal(open_with(config_of(2, 8, more), four, 4, &p, &e), -EINVAL);
    assert_says(&e, Q(2));
}

/* Lists that are long on purpose, times many modules: counted, and refused after a bounded time. */
static void test_long_lists(void **s)
{
    (void)s;
    enum { N_NAMES = 16000, N_MODULES = 6400 };
    struct err e;
    struct pet *p = NULL;
    char(*names)[24] = calloc(N_MODULES, sizeof *names), *config = malloc(N_NAMES * 12 + 200), *at = config;
    struct pair *many = calloc(N_MODULES, sizeof *many);
    at += sprintf(at, "{\"peft_type\": \"LORA\", \"r\": 1, \"target_modules\": [\"x\"");
    for (int i = 0; i < N_NAMES; i++)
        at += sprintf(at, ", \"%d\"", i);
    strcpy(at, "]}");
    for (int i = 0; i < N_MODULES; i++) {
        sprintf(names[i], "m.%d.x", i);
        many[i] = (struct pair){names[i], 1, 1, 1, DT_F32};
    }
    assert_int_equal(open_with(config, many, N_MODULES, &p, &e), -E2BIG);
    assert_says(&e, "too long for so many modules");
    assert_int_equal(open_with(config, many, 100, &p, &e), 0);
    pet_close(p);
    free(many);
    free(config);
    free(names);
}

/* ---- tensors ---- */

static void put_tensors(struct st_out *t, size_t n)
{
    static const char zeros[4096];
    static const char *const meta[] = {"format", "pt", NULL};
    for (size_t i = 0; i < n; i++) {
        if (!t[i].data)
            t[i].data = zeros;
    }
    assert_int_equal(mkdir(scratch("m"), 0777) && errno != EEXIST, 0);
    write_text(scratch("m/adapter_config.json"), config_of(2, 8, ""));
    assert_int_equal(st_write(scratch("m/adapter_model.safetensors"), t, n, meta, NULL), 0);
}

#define P "base_model.model."
#define A2                                                                                                             \
    {                                                                                                                  \
        P Q(0) ".lora_A.weight", DT_F32, 2, {2, 8}, NULL, NULL, NULL                                                   \
    }
#define B2                                                                                                             \
    {                                                                                                                  \
        P Q(0) ".lora_B.weight", DT_F32, 2, {8, 2}, NULL, NULL, NULL                                                   \
    }
#define ONE(name, ...)                                                                                                 \
    {                                                                                                                  \
        name, DT_F32, __VA_ARGS__, NULL, NULL, NULL                                                                    \
    }

static void test_tensors(void **s)
{
    (void)s;
    static const struct {
        struct st_out t[3];
        const char *says;
    } t[] = {
        {{A2}, "has no lora_B"},
        {{B2}, "has no lora_A"},
        {{ONE(P "x.lora_A.weight", 1, {16}), ONE(P "x.lora_B.weight", 2, {8, 2})}, "1 dimensions"},
        {{ONE(P "x.lora_A.weight", 2, {2, 8}), ONE(P "x.lora_B.weight", 2, {8, 3})}, "has rank 3 (its columns)"},
        {{ONE(P "x.lora_A.weight", 2, {0, 8}), ONE(P "x.lora_B.weight", 2, {8, 0})}, "rank 0"},
        {{ONE(P "x.lora_A.weight", 2, {2, 0}), ONE(P "x.lora_B.weight", 2, {8, 2})}, "tensor A"},
        {{ONE(P "x.lora_A.weight", 2, {2, 8}), {P "x.lora_B.weight", DT_F64, 2, {8, 2}, NULL, NULL, NULL}}, "F64"},
        {{ONE(P "x.lora_A.weight", 2, {2, 8}), {P "x.lora_B.weight", DT_I8, 2, {8, 2}, NULL, NULL, NULL}}, "I8"},
        {{ONE("x.lora_A.weight", 2, {2, 8}), ONE("x.lora_B.weight", 2, {8, 2})}, "is not known"},
        {{ONE(P ".lora_A.weight", 2, {2, 8})}, "is not known"},
        {{ONE(P "a b.lora_A.weight", 2, {2, 8}), ONE(P "a b.lora_B.weight", 2, {8, 2})}, "plain characters"},
        {{A2, B2, ONE(P Q(0) ".lora_magnitude_vector", 1, {8})}, "DoRA"},
        {{A2, B2, ONE(P Q(0) ".lora_B.bias", 1, {8})}, "lora_bias"},
        {{A2, B2, ONE(P "model.embed_tokens.lora_embedding_A", 2, {2, 8})}, "LoRA on an embedding"},
        {{A2, B2, ONE(P "lm_head.modules_to_save.weight", 2, {2, 8})}, "modules_to_save"},
        {{A2, B2, ONE(P "lm_head.weight", 2, {2, 8})}, "output head"},
        {{A2, B2, ONE(P "model.embed_tokens.weight", 2, {2, 8})}, "embeddings"},
        {{A2, B2, ONE(P "x.ia3_l", 2, {2, 1})}, "IA3"},
        {{A2, B2, ONE(P "x.lora_E", 2, {2, 1})}, "AdaLoRA"},
        {{A2, B2, ONE("prompt_embeddings", 2, {2, 1})}, "soft prompt"},
        {{A2, B2, ONE(P Q(0) ".bias", 1, {2})}, "a trained bias"},
        {{A2, B2, ONE("something.else", 1, {2})}, "\"something.else\" is not known"},
        {{A2, B2, ONE(P Q(0) ".base_layer.weight", 2, {8, 7})}, "does not have the shape"},
        {{A2, B2, ONE(P Q(1) ".base_layer.weight", 2, {8, 8})}, "is not known"},
        {{{P "x", DT_F32, 0, {0}, NULL, NULL, NULL}}, "is not known"},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct err e = {0};
        struct pet *p = NULL;
        struct st_out copy[3];
        size_t n = 0;
        memcpy(copy, t[i].t, sizeof copy);
        while (n < 3 && copy[n].name)
            n++;
        put_tensors(copy, n);
        if (!pet_open(scratch("m"), NULL, &p, &e))
            fail_msg("%s was taken", copy[n - 1].name);
        assert_says(&e, t[i].says);
    }
}

static void test_base_copy(void **s)
{
    (void)s;
    struct pet *p = NULL;
    struct err e = {0};
    struct st_out t[] = {A2, B2, ONE(P Q(0) ".base_layer.weight", 2, {8, 8})};
    put_tensors(t, 3);
    if (pet_open(scratch("m"), NULL, &p, &e))
        fail_msg("%s", e.msg);
    assert_int_equal(pet_info(p)->n_sites, 1);
    struct hash first = pet_info(p)->hash;
    pet_close(p);
    enum { BIG = 70000 }; /* a base weight that is worth dropping from memory */
    char *zeros = calloc(BIG, 8 * sizeof(float));
    struct st_out big[] = {ONE(P "lm_head.lora_A.weight", 2, {2, 8}), ONE(P "lm_head.lora_B.weight", 2, {BIG, 2}),
                           ONE(P "lm_head.base_layer.weight", 2, {BIG, 8})};
    struct pet *q = NULL;
    for (int i = 0; i < 3; i++)
        big[i].data = zeros;
    put_tensors(big, 2);
    assert_int_equal(pet_open(scratch("m"), NULL, &p, &e), 0);
    put_tensors(big, 3);
    assert_int_equal(pet_open(scratch("m"), NULL, &q, &e), 0);
    assert_true(hash_equal(&pet_info(p)->hash, &pet_info(q)->hash));
    assert_false(hash_equal(&first, &pet_info(q)->hash));
    assert_int_equal(pet_write(q, NULL, scratch("big.pet"), &e), 0);
    pet_close(q);
    assert_int_equal(pet_open(scratch("big.pet"), NULL, &q, &e), 0);
    assert_true(hash_equal(&pet_info(p)->hash, &pet_info(q)->hash));
    pet_close(p);
    pet_close(q);
    free(zeros);
}

static void test_ranks(void **s)
{
    (void)s;
    struct pet *p = NULL;
    struct err e;
    const struct pair q[] = {{"a.b", 257, 8, 8, DT_BF16}, {"a.b", 256, 8, 8, DT_BF16}, {"a.b", 1, 1, 1, DT_F16}};
    assert_int_equal(open_with(config_of(257, 8, ""), &q[0], 1, &p, &e), -EINVAL);
    assert_says(&e, "rank 257 is outside 1 to 256");
    for (int i = 1; i < 3; i++) {
        assert_int_equal(open_with(config_of((int)q[i].rank, 8, ""), &q[i], 1, &p, &e), 0);
        assert_int_equal(pet_info(p)->max_rank, q[i].rank);
        pet_close(p);
    }
}

static void test_files(void **s)
{
    (void)s;
    struct pet *p = NULL;
    struct err e = {0};
    struct pet_limits lim = {.max_bytes = 100};
    write_peft(scratch("f"), config_of(2, 8, ""), four, 4);
    assert_int_equal(pet_open(scratch("f"), &lim, &p, &e), -E2BIG);
    assert_int_equal(remove(scratch("f/adapter_model.safetensors")), 0);
    assert_int_equal(pet_open(scratch("f"), NULL, &p, &e), -ENOENT);
    write_text(scratch("f/adapter_model.bin"), "\x80\x02");
    assert_int_equal(pet_open(scratch("f"), NULL, &p, &e), -EINVAL);
    assert_says(&e, "pickle");
    write_text(scratch("f/adapter_model.safetensors"), "cut");
    assert_int_equal(pet_open(scratch("f"), NULL, &p, &e), -EINVAL);
    assert_says(&e, "adapter_model.safetensors");
}

/* ---- recovery files ---- */

static const char *const meta_good[] = {"cpet.kind",        "recovery", "cpet.fn",   "gelu", "cpet.scale", "0.5",
                                        "cpet.scale." Q(1), "-2e-1",    "cpet.base", "b",    NULL};

static void test_recovery(void **s)
{
    (void)s;
    static const char *const names[][3] = {{"", ".recovery_A", ".recovery_B"},
                                           {"", ".lora.lora_a1", ".lora.lora_a2"},
                                           {"", ".lora_a1", ".lora_a2"},
                                           {P, ".lora.lora_a1", ".lora.lora_a2"}};
    struct hash first = {0};
    for (size_t i = 0; i < 4; i++) {
        struct pet *p = NULL, *q = NULL;
        struct err e = {0};
        struct pet_part a, b;
        write_pairs(scratch("r.safetensors"), four, 2, names[i][0], names[i][1], names[i][2], meta_good);
        if (pet_open(scratch("r.safetensors"), NULL, &p, &e))
            fail_msg("%s", e.msg);
        pet_part(p, 0, &a);
        pet_part(p, 1, &b);
        assert_string_equal(a.module, Q(0));
        assert_true(a.scale == 0.5f && b.scale == -0.2f && a.fn == KERN_FN_GELU && a.rank == 2);
        assert_int_equal(pet_info(p)->kind, PET_RECOVERY);
        assert_string_equal(pet_info(p)->base, "b");
        if (!i)
            first = pet_info(p)->hash;
        assert_true(hash_equal(&first, &pet_info(p)->hash));
        assert_int_equal(pet_write(p, NULL, scratch("r.pet"), &e), 0);
        assert_int_equal(pet_open(scratch("r.pet"), NULL, &q, &e), 0);
        assert_true(hash_equal(&first, &pet_info(q)->hash) && pet_info(q)->kind == PET_RECOVERY);
        assert_int_equal(pet_write_peft(q, scratch("r.dir"), &e), -EINVAL);
        assert_says(&e, "recovery");
        pet_close(p);
        pet_close(q);
    }
}

static void test_recovery_meta(void **s)
{
    (void)s;
    static const struct {
        const char *meta[7], *says;
    } t[] = {
        {{NULL}, "neither a .pet file nor a recovery file"},
        {{"cpet.kind", "lora", NULL}, "\"cpet.kind\" is \"lora\""},
        {{"cpet.kind", "recovery", NULL}, "\"cpet.fn\" is missing"},
        {{"cpet.kind", "recovery", "cpet.fn", "relu", NULL}, "\"relu\""},
        {{"cpet.kind", "recovery", "cpet.fn", "gelu", NULL}, "neither metadata \"cpet.scale\" nor"},
        {{"cpet.kind", "recovery", "cpet.fn", "gelu", "cpet.scale", "nan", NULL}, "finite decimal"},
        {{"cpet.kind", "recovery", "cpet.fn", "gelu", "cpet.scale", "inf", NULL}, "finite decimal"},
        {{"cpet.kind", "recovery", "cpet.fn", "gelu", "cpet.scale", "", NULL}, "finite decimal"},
        {{"cpet.kind", "recovery", "cpet.fn", "gelu", "cpet.scale", "1 ", NULL}, "finite decimal"},
        {{"cpet.kind", "recovery", "cpet.fn", "gelu", "cpet.scale", "0x10", NULL}, "finite decimal"},
        {{"cpet.kind", "recovery", "cpet.fn", "gelu", "cpet.scale", "1e39", NULL}, "finite decimal"},
        {{"cpet.kind", "recovery", "cpet.fn", "gelu", "cpet.scale", "1-1", NULL}, "finite decimal"},
        {{"cpet.kind", "recovery", "cpet.fn", "gelu", "cpet.scale", "-", NULL}, "finite decimal"},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct pet *p = NULL;
        struct err e = {0};
        write_pairs(scratch("r.safetensors"), four, 1, "", ".recovery_A", ".recovery_B", t[i].meta);
        assert_int_equal(pet_open(scratch("r.safetensors"), NULL, &p, &e), -EINVAL);
        assert_says(&e, t[i].says);
    }
}

static void test_recovery_tensors(void **s)
{
    (void)s;
    static const struct {
        const char *a, *b, *says;
    } t[] = {
        {".recovery_A", ".recovery_C", "has no \"" Q(0) ".recovery_B\""},
        {".recovery_X", ".recovery_B", "is not known"},
        {".x", ".recovery_B", "is not known"},
        {".lora.lora_a1", ".lora_a2", "has no \"" Q(0) ".lora.lora_a2\""},
        {".weight", ".bias", "is not known"},
    };
    for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
        struct pet *p = NULL;
        struct err e = {0};
        write_pairs(scratch("r.safetensors"), four, 1, "", t[i].a, t[i].b, meta_good);
        assert_int_equal(pet_open(scratch("r.safetensors"), NULL, &p, &e), -EINVAL);
        assert_says(&e, t[i].says);
    }
    struct pet *p = NULL;
    struct err e = {0};
    struct pair many[] = {{"x", 2, 8, 8, DT_F32}, {P "x", 2, 8, 8, DT_F32}}; /* one module under two names */
    write_pairs(scratch("r.safetensors"), many, 2, "", ".recovery_A", ".recovery_B", meta_good);
    assert_int_equal(pet_open(scratch("r.safetensors"), NULL, &p, &e), -EINVAL);
    assert_says(&e, "is there twice");
    write_pairs(scratch("r.safetensors"), many, 0, "", "", "", meta_good);
    assert_int_equal(pet_open(scratch("r.safetensors"), NULL, &p, &e), -EINVAL);
    assert_says(&e, "no low-rank pair");
}

static int set_up(void **s)
{
    (void)s;
    scratch_make();
    return 0;
}

static int tear_down(void **s)
{
    (void)s;
    scratch_remove();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_taken),     cmocka_unit_test(test_refused),       cmocka_unit_test(test_whole_configs),
        cmocka_unit_test(test_layers),    cmocka_unit_test(test_long_lists),    cmocka_unit_test(test_tensors),
        cmocka_unit_test(test_base_copy), cmocka_unit_test(test_ranks),         cmocka_unit_test(test_files),
        cmocka_unit_test(test_recovery),  cmocka_unit_test(test_recovery_meta), cmocka_unit_test(test_recovery_tensors),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
