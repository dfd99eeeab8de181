/* model.c - opens and closes a backbone.
 *
 * model_open may take a while and runs on whichever thread wants the model; afterwards the engine thread owns it.
 * Everything that serving needs is allocated here: a step allocates nothing. A half-opened model closes cleanly.
 */
#include "model/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "common/file.h"

static uint32_t or_default(uint32_t v, uint32_t d)
{
    return v ? v : d;
}

static int limits(struct model *m, const struct model_opts *o, struct err *e)
{
    struct model_info *i = &m->info;
    i->max_rows = or_default(o->max_rows, 512);
    i->max_logits = or_default(o->max_logits, 128);
    i->max_seqs = or_default(o->max_seqs, 1024);
    i->max_pets = or_default(o->max_pets, 4);
    m->max_rank = or_default(o->max_rank, 256);
    if (i->max_rows > 1u << 16 || i->max_logits > i->max_rows || i->max_seqs > 1u << 20 || i->max_pets > 64 ||
        m->max_rank > 4096)
        return err_set(e, -EINVAL, "limits out of range: %u rows, %u logits, %u sequences, %u modules, rank %u",
                       i->max_rows, i->max_logits, i->max_seqs, i->max_pets, m->max_rank);
    i->max_context = or_default(o->max_context, m->cfg.max_context);
    if (i->max_context > m->cfg.max_context)
        return err_param(e, -EINVAL, "max-context", "%u is more than the model's %u", i->max_context,
                         m->cfg.max_context);
    i->n_layers = m->cfg.n_layers;
    i->hidden = m->cfg.hidden;
    i->vocab = m->cfg.vocab;
    i->head_dim = m->cfg.head_dim;
    snprintf(i->architecture, sizeof i->architecture, "%s", m->cfg.architecture);
    return 0;
}

static int load_recovery(struct model *m, const char *path, struct err *e)
{
    struct pet_limits lim = {.max_rank = m->max_rank};
    struct pet *p = NULL;
    int r = pet_open(path, &lim, &p, e);
    if (r)
        return r;
    if (pet_info(p)->kind != PET_RECOVERY)
        r = err_set(e, -EINVAL, "%s: a %s module, not a recovery module", path, pet_kind_name(pet_info(p)->kind));
    if (!r)
        r = pet_load(m->dev, p, &m->target, &m->recovery, e);
    if (!r) {
        char hex[HASH_HEX];
        m->prefix_salt = pet_info(p)->hash;
        hash_hex(&pet_info(p)->hash, hex);
        snprintf(m->info.recovery, sizeof m->info.recovery, "%.16s", hex);
    }
    pet_close(p);
    return r;
}

static int open_recovery(struct model *m, const struct model_opts *o, struct err *e)
{
    if (o->recovery && !*o->recovery)
        return 0;
    if (o->recovery)
        return load_recovery(m, o->recovery, e);
    char *path = path_join(m->dir, "recovery.safetensors");
    if (!path)
        return err_set(e, -ENOMEM, "out of memory");
    int r = access(path, F_OK) ? 0 : load_recovery(m, path, e);
    free(path);
    return r;
}

/* What every key of a page begins with. prefix_salt holds the recovery module's hash, zero without one. */
static int salt_keys(struct model *m, struct err *e)
{
    const int32_t kind[] = {m->info.precision, m->info.kv_type, KERN_PAGE_TOKENS};
    struct hash secret;
    struct hash_state h;
    if (getrandom(&secret, sizeof secret, 0) != (ssize_t)sizeof secret)
        return err_set(e, -EIO, "the system has no random bytes");
    hash_init(&h);
    hash_update(&h, &secret, sizeof secret);
    hash_update(&h, &m->target.lineage, sizeof m->target.lineage);
    hash_update(&h, &m->prefix_salt, sizeof m->prefix_salt);
    hash_update(&h, kind, sizeof kind);
    hash_final(&h, &m->prefix_salt);
    return 0;
}

int model_open(struct kern_dev *d, const struct model_opts *o, struct model **out, struct err *e)
{
    struct model *m = calloc(1, sizeof *m);
    if (!m || !(m->dir = strdup(o->dir))) {
        free(m);
        return err_set(e, -ENOMEM, "out of memory");
    }
    m->dev = d;
    int r = model_config_read(o->dir, &m->cfg, e);
    if (!r)
        r = limits(m, o, e);
    if (!r)
        r = model_sites_make(m, e);
    if (!r)
        r = model_load_weights(m, o, e);
    if (!r) {
        m->target.base_name = m->dir;
        m->target.type = m->info.precision == MODEL_F32 ? KERN_F32 : KERN_BF16;
        m->info.kv_type = o->kv_type != MODEL_KV_AUTO      ? (enum kern_type)o->kv_type
                          : m->info.precision == MODEL_F32 ? KERN_F32
                                                           : KERN_BF16;
        r = open_recovery(m, o, e);
    }
    if (!r)
        r = salt_keys(m, e);
    if (!r)
        r = model_kv_open(m, o, e);
    if (!r)
        r = model_plan(m, e);
    if (r)
        model_close(m);
    else
        *out = m;
    return r;
}

void model_close(struct model *m)
{
    if (!m)
        return;
    pet_unload(m->dev, m->recovery);
    model_kv_close(m);
    kern_free(m->dev, m->weights);
    kern_free(m->dev, m->scratch);
    free(m->layer);
    free(m->sites);
    free(m->site_scales);
    free(m->ops);
    free(m->tokens);
    free(m->pos);
    free(m->span_of);
    free(m->pool_row);
    free(m->step_seqs);
    free(m->logit_rows);
    free(m->sample);
    free(m->sampled);
    free(m->group_rows);
    free(m->groups);
    model_config_free(&m->cfg);
    free(m->dir);
    free(m);
}

const struct model_info *model_info(const struct model *m)
{
    return &m->info;
}

const struct pet_target *model_pet_target(const struct model *m)
{
    return &m->target;
}

struct kern_dev *model_dev(const struct model *m)
{
    return m->dev;
}

void model_prefix_root(const struct model *m, uint32_t tenant, const struct model_prefix_pet *pets, uint32_t n_pets,
                       struct hash *out)
{
    struct hash_state h;
    uint32_t head[2] = {tenant, n_pets};
    hash_init(&h);
    hash_update(&h, &m->prefix_salt, sizeof m->prefix_salt);
    hash_update(&h, head, sizeof head);
    for (uint32_t i = 0; i < n_pets; i++) {
        hash_update(&h, &pets[i].hash, sizeof pets[i].hash);
        hash_update(&h, &pets[i].weight, sizeof pets[i].weight);
    }
    hash_final(&h, out);
}
