/* backbone.c - opens a backbone and its modules as the command line asks.
 *
 * Main thread. The level of the kernels comes from CPETD_CPU_LEVEL, as it does for the server.
 */
#include "tools/backbone.h"

#include <stdlib.h>
#include <string.h>

void backbone_init(struct backbone *b)
{
    *b = (struct backbone){
        .precision = MODEL_AUTO, .kv_type = MODEL_KV_AUTO, .max_seqs = 2, .level = getenv("CPETD_CPU_LEVEL")};
}

int option_u32(const char *name, const char *arg, uint32_t min, uint32_t max, uint32_t *out, struct err *e)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(arg, &end, 10);
    if (errno || end == arg || *end || *arg == '-' || v < min || v > max)
        return err_set(e, -EINVAL, "--%s: %s is not a whole number from %u to %u", name, arg, min, max);
    *out = (uint32_t)v;
    return 0;
}

static int parse_type(const char *name, const char *arg, int *out, struct err *e)
{
    static const struct {
        const char *name;
        int type;
    } types[] = {{"f32", KERN_F32}, {"bf16", KERN_BF16}, {"int8", KERN_S8}};
    for (size_t i = 0; i < 3; i++)
        if (!strcmp(arg, types[i].name)) {
            *out = types[i].type;
            return 0;
        }
    return err_set(e, -EINVAL, "--%s: %s is not f32, bf16 or int8", name, arg);
}

int backbone_option(struct backbone *b, int opt, const char *arg, struct err *e)
{
    int type = 0;
    uint32_t n = 0;
    int r = 0;
    switch (opt) {
    case OPT_MODEL:
        b->dir = arg;
        break;
    case OPT_PET:
        if (b->n_pets == BACKBONE_MAX_PETS)
            return err_set(e, -EINVAL, "--pet: at most %d modules", BACKBONE_MAX_PETS);
        b->pet[b->n_pets++] = arg;
        break;
    case OPT_PRECISION:
        r = parse_type("precision", arg, &type, e);
        if (!r)
            b->precision = (enum model_precision)type;
        break;
    case OPT_RECOVERY:
        b->recovery = arg;
        break;
    case OPT_KV:
        r = parse_type("kv", arg, &type, e);
        if (!r)
            b->kv_type = type;
        break;
    case OPT_THREADS:
        r = option_u32("threads", arg, 1, 1024, &n, e);
        if (!r)
            b->threads = n;
        break;
    default:
        return -EINVAL;
    }
    return r;
}

static int load_pets(struct backbone *b, struct err *e)
{
    for (uint32_t i = 0; i < b->n_pets; i++) {
        struct pet *p = NULL;
        int r = pet_open(b->pet[i], NULL, &p, e);
        if (!r)
            r = pet_load(b->dev, p, model_pet_target(b->model), &b->slot[i], e);
        if (r)
            err_prefix(e, r, "%s", b->pet[i]);
        pet_close(p);
        if (r)
            return r;
        b->use[i] = (struct model_pet){.slot = pet_slot_kern(b->slot[i]), .weight = 1.0f};
    }
    return 0;
}

int backbone_open(struct backbone *b, uint32_t max_rows, uint32_t max_logits, struct err *e)
{
    if (!b->dir)
        return err_set(e, -EINVAL, "--model is needed");
    int r = kern_open(&(struct kern_opts){.threads = b->threads, .max_level = b->level}, &b->dev, e);
    if (!r)
        r = model_open(b->dev,
                       &(struct model_opts){.dir = b->dir,
                                            .recovery = b->recovery,
                                            .precision = b->precision,
                                            .kv_type = b->kv_type,
                                            .max_rows = max_rows,
                                            .max_logits = max_logits,
                                            .max_seqs = b->max_seqs,
                                            .max_pets = b->n_pets ? b->n_pets : 1},
                       &b->model, e);
    if (!r)
        r = load_pets(b, e);
    if (r)
        backbone_close(b);
    return r;
}

void backbone_close(struct backbone *b)
{
    for (uint32_t i = 0; i < b->n_pets; i++) {
        pet_unload(b->dev, b->slot[i]);
        b->slot[i] = NULL;
    }
    model_close(b->model);
    kern_close(b->dev);
    b->model = NULL;
    b->dev = NULL;
}
