/* pet_testlib.c - shared by the tests of pet/: writes small modules into a scratch directory. */
#include "pet_testlib.h"

#include <ftw.h>
#include <unistd.h>

#include "common/file.h"
#include "common/num.h"

static char dir[256];

const char *scratch_make(void)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/cpet-pet-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    assert_non_null(mkdtemp(dir));
    return dir;
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    return remove(path);
}

void scratch_remove(void)
{
    nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

const char *scratch(const char *name)
{
    static char out[8][400];
    static unsigned next;
    char *s = out[next++ % 8];
    snprintf(s, sizeof out[0], "%s/%s", dir, name);
    return s;
}

void write_bytes(const char *path, const void *p, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(p, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

void write_text(const char *path, const char *text)
{
    write_bytes(path, text, strlen(text));
}

static float raw_value(const struct pair *p, int role, size_t i)
{
    return rng_unit(p->rank * 1000003u + p->k * 101u + p->n, (uint64_t)role + 2 * strlen(p->module), i) * 2 - 1;
}

float pair_value(const struct pair *p, int role, size_t i)
{
    float v = raw_value(p, role, i);
    return p->type == DT_F16 ? f16_to_f32(f32_to_f16(v)) : p->type == DT_BF16 ? bf16_to_f32(f32_to_bf16(v)) : v;
}

static void *pair_data(const struct pair *p, int role, size_t n)
{
    float *v = calloc(n + 1, sizeof *v);
    void *out = calloc(n + 1, sizeof *v);
    assert_true(v && out);
    for (size_t i = 0; i < n; i++)
        v[i] = raw_value(p, role, i);
    if (dtype_of_f32(p->type, v, n, out))
        memset(out, 0, n); /* a type that is not a float: any bytes */
    free(v);
    return out;
}

void write_pairs(const char *path, const struct pair *pairs, size_t n, const char *prefix, const char *a_end,
                 const char *b_end, const char *const *meta)
{
    struct st_out *t = calloc(2 * n + 1, sizeof *t);
    struct err e = {0};
    assert_non_null(t);
    for (size_t i = 0; i < 2 * n; i++) {
        const struct pair *p = &pairs[i / 2];
        char *name = NULL;
        assert_true(asprintf(&name, "%s%s%s", prefix, p->module, i % 2 ? b_end : a_end) > 0);
        t[i] = (struct st_out){.name = name, .type = p->type, .ndim = 2};
        t[i].shape[0] = i % 2 ? p->n : p->rank;
        t[i].shape[1] = i % 2 ? p->rank : p->k;
        t[i].data = pair_data(p, i % 2, t[i].shape[0] * t[i].shape[1]);
    }
    if (st_write(path, t, 2 * n, meta, &e))
        fail_msg("%s", e.msg);
    for (size_t i = 0; i < 2 * n; i++) {
        free((void *)(uintptr_t)t[i].name);
        free((void *)(uintptr_t)t[i].data);
    }
    free(t);
}

void write_peft(const char *path, const char *config, const struct pair *pairs, size_t n)
{
    static const char *const meta[] = {"format", "pt", NULL};
    char *name = path_join(path, "adapter_model.safetensors");
    assert_int_equal(dir_make(path, NULL), 0);
    write_pairs(name, pairs, n, "base_model.model.", ".lora_A.weight", ".lora_B.weight", meta);
    free(name);
    name = path_join(path, "adapter_config.json");
    write_text(name, config);
    free(name);
}

const char *config_of(int r, int alpha, const char *more)
{
    static char out[4][2000];
    static unsigned next;
    char *s = out[next++ % 4];
    snprintf(s, sizeof out[0], "{\"peft_type\": \"LORA\", \"r\": %d, \"lora_alpha\": %d, \"bias\": \"none\"%s}", r,
             alpha, more);
    return s;
}

struct pet *open_ok(const char *path)
{
    struct pet *p = NULL;
    struct err e = {0};
    if (pet_open(path, NULL, &p, &e))
        fail_msg("%s", e.msg);
    return p;
}
