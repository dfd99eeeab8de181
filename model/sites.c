/* sites.c - the site map: which linear of the backbone stands for which of the original, and the backbone's lineage.
 *
 * Called once at load. The names and shapes come from the configuration; what compression changed comes from the
 * directory: cpet.json states the lineage and cpet/sites.safetensors holds the scales that smoothing folded in, named
 * "layers.N.q.in_scale" ([k]) and "layers.N.up.out_scale" ([n]); config.json has the hash of that file where there
 * must be one, since modules would come out wrong without it. A directory without cpet.json is an original: all scales
 * are one, and the weights' hash is unknown. The arrays belong to struct model.
 */
#include "model/internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/file.h"
#include "formats/json.h"
#include "formats/safetensors.h"

const char *const site_names[SITE_KINDS] = {"q", "k", "v", "o", "gate", "up", "down"};
const char *const site_modules[SITE_KINDS] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                              "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                              "mlp.down_proj"};

static void site_shape(const struct model_config *c, uint32_t l, enum site_kind s, uint32_t *k, uint32_t *n)
{
    const struct model_layer_config *lc = &c->layer[l];
    uint32_t q = lc->n_heads * c->head_dim, kv = lc->n_kv_heads * c->head_dim;
    *k = s == SITE_O ? q : s == SITE_DOWN ? lc->ffn : c->hidden;
    *n = s == SITE_Q ? q : s == SITE_K || s == SITE_V ? kv : s == SITE_GATE || s == SITE_UP ? lc->ffn : c->hidden;
}

static int read_lineage(struct model *m, struct err *e)
{
    struct pet_lineage *l = &m->target.lineage;
    snprintf(l->architecture, sizeof l->architecture, "%s", m->cfg.architecture);
    json_t *o = NULL, *lin = NULL;
    char *path = path_join(m->dir, "cpet.json");
    if (!path)
        return err_set(e, -ENOMEM, "out of memory");
    struct err sub = {0};
    int r = json_read_file(path, 1u << 20, &o, &sub);
    if (r == -ENOENT) {
        free(path);
        return 0;
    }
    const char *arch = NULL, *tok = NULL, *weights = NULL;
    if (!r)
        r = json_get_object(o, "lineage", true, &lin, &sub);
    if (!r)
        r = json_get_str(lin, "architecture", true, &arch, &sub);
    if (!r)
        r = json_get_str(lin, "tokenizer", false, &tok, &sub);
    if (!r)
        r = json_get_str(lin, "weights", true, &weights, &sub);
    if (!r && strcmp(arch, l->architecture))
        r = err_set(&sub, -EINVAL, "\"architecture\" is %s, but config.json says %s", arch, l->architecture);
    if (!r && tok && hash_parse(tok, &l->tokenizer))
        r = err_set(&sub, -EINVAL, "\"tokenizer\" is not a 64-digit hash");
    if (!r && hash_parse(weights, &l->weights))
        r = err_set(&sub, -EINVAL, "\"weights\" is not a 64-digit hash");
    if (r)
        err_set(e, r, "%s%s%s", sub.code && strstr(sub.msg, path) ? "" : path, strstr(sub.msg, path) ? "" : ": ",
                sub.msg);
    json_decref(o);
    free(path);
    return r;
}

static int read_scale(const struct st_file *f, const struct pet_site *s, const char *which, uint32_t n, float **at,
                      const float **out, struct err *e)
{
    char name[80];
    snprintf(name, sizeof name, "%s.%s", s->name, which);
    const struct st_tensor *t = st_find(f, name);
    if (!t)
        return 0;
    if (t->type != DT_F32 || t->ndim != 1 || t->shape[0] != n)
        return err_set(e, -EINVAL, "tensor %s: not F32 of shape [%u]", name, n);
    memcpy(*at, t->data, n * sizeof(float));
    for (uint32_t i = 0; i < n; i++)
        if (!isfinite((*at)[i]) || (*at)[i] <= 0)
            return err_set(e, -EINVAL, "tensor %s: element %u is not a positive number", name, i);
    *out = *at;
    *at += n;
    return 0;
}

/* Whether the file at path is the one that config.json names. */
static int check_sites(const struct model *m, const char *path, struct err *e)
{
    struct map f;
    struct hash h;
    if (!m->cfg.has_sites)
        return 0;
    int r = map_open(path, &f, e);
    if (r)
        return r;
    hash_of(f.data, f.len, &h);
    map_close(&f);
    return hash_equal(&h, &m->cfg.sites_hash)
               ? 0
               : err_set(e, -EINVAL, "%s: is not the site map of this backbone (config.json has another hash)", path);
}

static int read_scales(struct model *m, struct err *e)
{
    char *path = path_join(m->dir, "cpet/sites.safetensors");
    if (!path)
        return err_set(e, -ENOMEM, "out of memory");
    if (access(path, F_OK)) {
        int lost = m->cfg.has_sites ? err_set(e, -ENOENT, "%s: is missing; the backbone was smoothed", path) : 0;
        free(path);
        return lost;
    }
    struct st_file *f = NULL;
    int r = check_sites(m, path, e);
    if (!r)
        r = st_open(path, &f, e);
    size_t total = 0;
    for (uint32_t s = 0; s < m->target.n_sites; s++)
        total += (size_t)m->sites[s].k + m->sites[s].n;
    if (!r && !(m->site_scales = malloc(total * sizeof(float))))
        r = err_set(e, -ENOMEM, "out of memory");
    float *at = m->site_scales;
    size_t read = 0;
    for (uint32_t s = 0; !r && s < m->target.n_sites; s++) {
        struct pet_site *p = &m->sites[s];
        r = read_scale(f, p, "in_scale", p->k, &at, &p->in_scale, e);
        if (!r)
            r = read_scale(f, p, "out_scale", p->n, &at, &p->out_scale, e);
        read += (p->in_scale != NULL) + (p->out_scale != NULL);
        if (r)
            err_prefix(e, r, "%s", path);
    }
    if (!r && read != st_count(f)) /* what is not understood would change the modules */
        r = err_set(e, -EINVAL, "%s: %zu of its %zu tensors are scales of this model's linears", path, read,
                    st_count(f));
    st_close(f);
    free(path);
    return r;
}

int model_sites_make(struct model *m, struct err *e)
{
    uint32_t n = m->cfg.n_layers * SITE_KINDS + 1;
    m->sites = calloc(n, sizeof *m->sites);
    if (!m->sites)
        return err_set(e, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i + 1 < n; i++) {
        struct pet_site *s = &m->sites[i];
        uint32_t l = i / SITE_KINDS, kind = i % SITE_KINDS;
        snprintf(s->name, sizeof s->name, "layers.%u.%s", l, site_names[kind]);
        snprintf(s->module, sizeof s->module, "model.layers.%u.%s", l, site_modules[kind]);
        site_shape(&m->cfg, l, kind, &s->k, &s->n);
        s->k_orig = s->k;
        s->n_orig = s->n;
    }
    struct pet_site *h = &m->sites[n - 1];
    snprintf(h->name, sizeof h->name, "head");
    snprintf(h->module, sizeof h->module, "lm_head");
    h->k = h->k_orig = m->cfg.hidden;
    h->n = h->n_orig = m->cfg.vocab;
    m->target.sites = m->sites;
    m->target.n_sites = n;
    int r = read_lineage(m, e);
    return r ? r : read_scales(m, e);
}
