/* peft.c - a PEFT LoRA directory: adapter_config.json and adapter_model.safetensors.
 *
 * Any thread. The tensors' file is read whole and becomes the module's block of bytes, unless much else is in it. Every
 * tensor of the file has to be one half of a low-rank pair that the configuration targets: what is not known is refused
 * by its key. One exception: PEFT saves the base weight of a wrapped embedding or head (`lm_head.base_layer.weight`)
 * beside its LoRA; PEFT never trains it, so the backbone's own is used, and its shape is checked against the pair's.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/checked.h"
#include "common/file.h"
#include "pet/internal.h"
#include "pet/peft_config.h"

enum { CONFIG_CAP = 4 << 20, MAX_KEY = PET_MAX_MODULE + 64 };

static const char PREFIX[] = "base_model.model.";
static const char A[] = ".lora_A.weight", B[] = ".lora_B.weight", BASE[] = ".base_layer.weight";

/* Parts of keys that say what a tensor is, for the sentence that refuses it. */
static const struct {
    const char *in_key, *what;
} other_kinds[] = {
    {".lora_magnitude_vector", "a DoRA magnitude"},
    {".lora_B.bias", "a bias of LoRA's B (lora_bias)"},
    {".lora_embedding_", "LoRA on an embedding"},
    {".modules_to_save", "a whole module that was trained (modules_to_save)"},
    {".original_module", "a whole module that was trained (modules_to_save)"},
    {"trainable_tokens", "trained tokens"},
    {".token_adapter", "trained tokens"},
    {"embed_tokens.", "embeddings"},
    {".lora_E", "AdaLoRA"},
    {".ranknum", "AdaLoRA"},
    {".ia3_l", "IA3"},
    {".hada_", "LoHa"},
    {".lokr_", "LoKr"},
    {"vera_", "VeRA"},
    {".oft_", "OFT"},
    {".boft_", "BOFT"},
    {"prompt_embeddings", "a soft prompt or prefix"},
    {"lm_head.weight", "a whole output head"},
    {".bias", "a trained bias"},
};

static bool ends_with(const char *s, size_t n, const char *end)
{
    size_t m = strlen(end);
    return n > m && !strcmp(s + n - m, end);
}

static int refuse_key(const char *key, struct err *e)
{
    for (size_t i = 0; i < sizeof other_kinds / sizeof *other_kinds; i++) {
        if (strstr(key, other_kinds[i].in_key))
            return err_set(e, -EINVAL, "tensor \"%.200s\" is %s, which is not supported; plain LoRA on linears is", key,
                           other_kinds[i].what);
    }
    return err_set(e, -EINVAL, "tensor \"%.200s\" is not known: LoRA's are named %s<module>%s and %s", key, PREFIX, A,
                   B);
}

/* The tensor with another end in place of the key's own; NULL when there is none. */
static const struct st_tensor *sibling(const struct st_file *f, const char *key, size_t stem, const char *end)
{
    char name[MAX_KEY];
    size_t m = strlen(end);
    memcpy(name, key, stem);
    memcpy(name + stem, end, m + 1);
    return st_find(f, name);
}

static int add_module(struct pet *p, struct peft_config *c, const struct st_tensor *a, const struct st_tensor *b,
                      size_t stem, const struct pet_limits *lim, struct err *e)
{
    char module[MAX_KEY];
    size_t pre = sizeof PREFIX - 1, len = stem - pre;
    memcpy(module, a->name + pre, len);
    module[len] = 0;
    uint32_t rank = 0;
    float scale = 0;
    int r = peft_config_module(c, module, &rank, &scale, e);
    if (!r && a->ndim == 2 && a->shape[0] != rank)
        r = err_set(e, -EINVAL, "tensor \"%s\" has rank %llu, the configuration says %u", a->name,
                    (unsigned long long)a->shape[0], rank);
    return r ? r : pet_add_pair(p, module, len, a, b, scale, KERN_FN_NONE, lim, e);
}

/* lm_head.base_layer.weight and the like: [n][k] of the pair beside it. */
static int check_base(const struct st_file *f, const struct st_tensor *t, size_t stem, struct err *e)
{
    const struct st_tensor *a = sibling(f, t->name, stem, A), *b = sibling(f, t->name, stem, B);
    if (!a || !b)
        return refuse_key(t->name, e);
    if (t->ndim != 2 || a->ndim != 2 || b->ndim != 2 || t->shape[0] != b->shape[0] || t->shape[1] != a->shape[1])
        return err_set(e, -EINVAL, "tensor \"%s\" does not have the shape of the pair beside it", t->name);
    return 0;
}

static int add_tensor(struct pet *p, struct peft_config *c, const struct st_file *f, const struct st_tensor *t,
                      const struct pet_limits *lim, struct err *e)
{
    size_t n = strlen(t->name), pre = sizeof PREFIX - 1;
    bool is_a = ends_with(t->name, n, A), is_b = ends_with(t->name, n, B), is_base = ends_with(t->name, n, BASE);
    if (n >= MAX_KEY - sizeof BASE)
        return err_set(e, -EINVAL, "tensor \"%.64s...\": its name has %zu characters", t->name, n);
    if (strncmp(t->name, PREFIX, pre) || !(is_a || is_b || is_base))
        return refuse_key(t->name, e);
    size_t stem = n - (is_a ? sizeof A : is_b ? sizeof B : sizeof BASE) + 1;
    if (stem <= pre)
        return refuse_key(t->name, e);
    if (is_base)
        return check_base(f, t, stem, e);
    const struct st_tensor *other = sibling(f, t->name, stem, is_a ? B : A);
    if (!other)
        return err_set(e, -EINVAL, "tensor \"%s\" has no %s beside it", t->name, is_a ? "lora_B" : "lora_A");
    return is_a ? add_module(p, c, t, other, stem, lim, e) : 0;
}

static int add_all(struct pet *p, struct peft_config *c, const struct st_file *f, const struct pet_limits *lim,
                   struct err *e)
{
    int r = 0;
    for (size_t i = 0; !r && i < st_count(f); i++)
        r = add_tensor(p, c, f, st_at(f, i), lim, e);
    return r ? r : pet_finish(p, false, e);
}

int pet_parse_peft(const char *config, size_t config_len, char *tensors, size_t tensors_len,
                   const struct pet_limits *lim, struct pet **out, struct err *e)
{
    struct peft_config *c = NULL;
    struct st_file *f = NULL;
    struct pet *p = pet_new(PET_LORA);
    int r = p ? 0 : err_set(e, -ENOMEM, "out of memory");
    if (!r)
        r = peft_config_parse(config, config_len, &c, e);
    if (r)
        err_prefix(e, r, "adapter_config.json");
    if (!r)
        r = st_open_mem("adapter_model.safetensors", tensors, tensors_len, &f, e);
    if (!r) {
        pet_set_base(p, peft_config_base(c));
        r = add_all(p, c, f, lim, e);
        if (r)
            err_prefix(e, r, "adapter_model.safetensors");
    }
    st_close(f);
    peft_config_free(c);
    if (!r) {
        p->bytes = tensors;
        r = pet_compact(p, tensors_len, e);
        if (r)
            p->bytes = NULL; /* it stays the caller's */
    }
    if (r)
        pet_close(p);
    else
        *out = p;
    return r;
}

/* 0, -ENOENT, or -ENOMEM. */
static int look_for(const char *dir, const char *name)
{
    struct stat st;
    char *path = path_join(dir, name);
    int r = !path ? -ENOMEM : stat(path, &st) ? -ENOENT : 0;
    free(path);
    return r;
}

static int read_in(const char *dir, const char *name, size_t cap, char **out, size_t *n, struct err *e)
{
    char *path = path_join(dir, name);
    int r = path ? file_read(path, cap, out, n, e) : err_set(e, -ENOMEM, "%s: out of memory", dir);
    free(path);
    return r;
}

int pet_read_peft(const char *dir, const struct pet_limits *lim, struct pet **out, struct err *e)
{
    char *config = NULL, *tensors = NULL;
    size_t config_len = 0, tensors_len = 0, cap = 0;
    int no_config = look_for(dir, "adapter_config.json"), no_tensors = look_for(dir, "adapter_model.safetensors"),
        no_pickle = look_for(dir, "adapter_model.bin");
    if (no_config == -ENOMEM || no_tensors == -ENOMEM || no_pickle == -ENOMEM)
        return err_set(e, -ENOMEM, "%s: out of memory", dir);
    if (no_config)
        return err_set(e, -ENOENT, "%s: a directory without adapter_config.json is not a PEFT module", dir);
    if (no_tensors && !no_pickle)
        return err_set(e, -EINVAL,
                       "%s: adapter_model.bin is a pickle, which can carry code and is never read; save the module as "
                       "adapter_model.safetensors (safe_serialization)",
                       dir);
    if (ck_add(lim->max_bytes, ST_MAX_HEADER, &cap))
        cap = SIZE_MAX;
    int r = read_in(dir, "adapter_config.json", CONFIG_CAP, &config, &config_len, e);
    if (!r)
        r = read_in(dir, "adapter_model.safetensors", cap, &tensors, &tensors_len, e);
    if (!r) {
        r = pet_parse_peft(config, config_len, tensors, tensors_len, lim, out, e);
        if (r)
            err_prefix(e, r, "%s", dir);
        else
            tensors = NULL;
    }
    free(tensors);
    free(config);
    return r;
}
