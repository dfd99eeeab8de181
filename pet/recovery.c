/* recovery.c - a recovery file: safetensors with one low-rank pair a linear, y = W x + s * A2 f(A1 x).
 *
 * Any thread. The file is read whole and becomes the module's block of bytes. Keys are `<module>.recovery_A` [r][k] and
 * `<module>.recovery_B` [n][r]; the names of published CA-LoRA checkpoints (`<module>.lora.lora_a1`, `.lora.lora_a2`,
 * also without the inner `lora.` and with PEFT's `base_model.model.` before the module) mean the same. The metadata has
 * cpet.kind = recovery, cpet.fn and cpet.scale (or cpet.scale.<module> for one module). Anything else is refused.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "pet/internal.h"

enum { MAX_KEY = PET_MAX_MODULE + 64 };

/* Longer ends first: ".lora_a1" is an end of ".lora.lora_a1". */
static const char *const ends[][2] = {
    {".recovery_A", ".recovery_B"}, {".lora.lora_a1", ".lora.lora_a2"}, {".lora_a1", ".lora_a2"}};
static const char PREFIX[] = "base_model.model.";

/* A plain decimal number, in no locale's manner. */
static int parse_scale(const char *key, const char *s, float *out, struct err *e)
{
    char *end = NULL;
    size_t n = strspn(s, "0123456789+-.eE");
    double v = n && !s[n] && n < 64 ? strtod(s, &end) : NAN;
    if (!end || *end || end == s || !isfinite((float)v))
        return err_set(e, -EINVAL, "metadata \"%s\" is \"%.32s\", which is not a finite decimal number", key, s);
    *out = (float)v;
    return 0;
}

static int scale_of(const struct st_file *f, const char *module, float *out, struct err *e)
{
    char key[MAX_KEY] = "cpet.scale.";
    memcpy(key + strlen(key), module, strlen(module) + 1); /* shorter than PET_MAX_MODULE + 32 */
    const char *s = st_meta(f, key);
    if (s)
        return parse_scale(key, s, out, e);
    s = st_meta(f, "cpet.scale");
    if (!s)
        return err_set(e, -EINVAL, "neither metadata \"cpet.scale\" nor \"%s\" is there", key);
    return parse_scale("cpet.scale", s, out, e);
}

static int add_pair(struct pet *p, const struct st_file *f, enum kern_fn fn, const struct st_tensor *a, size_t stem,
                    const char *b_end, const struct pet_limits *lim, struct err *e)
{
    char name[MAX_KEY], module[MAX_KEY];
    memcpy(name, a->name, stem);
    strcpy(name + stem, b_end);
    const struct st_tensor *b = st_find(f, name);
    if (!b)
        return err_set(e, -EINVAL, "tensor \"%s\" has no \"%s\" beside it", a->name, name);
    size_t skip = strncmp(a->name, PREFIX, sizeof PREFIX - 1) ? 0 : sizeof PREFIX - 1;
    if (skip > stem)
        skip = 0;
    memcpy(module, a->name + skip, stem - skip);
    module[stem - skip] = 0;
    float scale = 0;
    int r = scale_of(f, module, &scale, e);
    return r ? r : pet_add_pair(p, module, stem - skip, a, b, scale, fn, lim, e);
}

static int add_tensor(struct pet *p, const struct st_file *f, enum kern_fn fn, const struct st_tensor *t,
                      const struct pet_limits *lim, struct err *e)
{
    size_t n = strlen(t->name);
    if (n >= PET_MAX_MODULE + 32)
        return err_set(e, -EINVAL, "tensor \"%.64s...\": its name has %zu characters", t->name, n);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        for (int j = 0; j < 2; j++) {
            size_t m = strlen(ends[i][j]);
            if (n <= m || strcmp(t->name + n - m, ends[i][j]))
                continue;
            if (!j)
                return add_pair(p, f, fn, t, n - m, ends[i][1], lim, e);
            char name[MAX_KEY];
            memcpy(name, t->name, n - m);
            strcpy(name + n - m, ends[i][0]);
            return st_find(f, name) ? 0 : err_set(e, -EINVAL, "tensor \"%s\" has no \"%s\" beside it", t->name, name);
        }
    }
    return err_set(e, -EINVAL, "tensor \"%s\" is not known: a recovery file's are <module>.recovery_A and .recovery_B",
                   t->name);
}

static int read_meta(const struct st_file *f, struct pet *p, enum kern_fn *fn, struct err *e)
{
    const char *kind = st_meta(f, "cpet.kind"), *name = st_meta(f, "cpet.fn"), *base = st_meta(f, "cpet.base");
    if (!kind)
        return err_set(e, -EINVAL,
                       "neither a .pet file nor a recovery file (its metadata has no \"cpet.kind\"); for a PEFT module "
                       "give its directory");
    if (strcmp(kind, "recovery"))
        return err_set(e, -EINVAL, "metadata \"cpet.kind\" is \"%.32s\"; a single file can be \"recovery\"", kind);
    if (!name)
        return err_set(e, -EINVAL, "metadata \"cpet.fn\" is missing (none, gelu or gelu_tanh)");
    if (pet_fn_parse(name, fn))
        return err_set(e, -EINVAL, "metadata \"cpet.fn\" is \"%.32s\"; none, gelu and gelu_tanh are known", name);
    if (base)
        pet_set_base(p, base);
    return 0;
}

int pet_read_recovery(char *bytes, size_t n, const char *path, const struct pet_limits *lim, struct pet **out,
                      struct err *e)
{
    struct st_file *f = NULL;
    enum kern_fn fn = KERN_FN_NONE;
    int r = st_open_mem(path, bytes, n, &f, e);
    if (r)
        return r;
    struct pet *p = pet_new(PET_RECOVERY);
    r = p ? read_meta(f, p, &fn, e) : err_set(e, -ENOMEM, "out of memory");
    for (size_t i = 0; !r && i < st_count(f); i++)
        r = add_tensor(p, f, fn, st_at(f, i), lim, e);
    if (!r)
        r = pet_finish(p, false, e);
    st_close(f);
    if (r) {
        pet_close(p);
        return err_prefix(e, r, "%s", path);
    }
    p->bytes = bytes;
    *out = p;
    return 0;
}
