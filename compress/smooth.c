/* smooth.c - SmoothQuant's scales from a calibration text.
 *
 * One thread (the device's workers help inside a step). The original backbone runs over the text in windows, each
 * with an empty context; an observer keeps, for every linear, the largest |x| of each input channel. Linears that
 * share an input share a scale. A scale s of input channel j is folded into whatever makes that channel:
 *   q, k, v     <- the gain of the norm before attention
 *   gate, up    <- the gain of the norm before the MLP
 *   down        <- the rows of up (gate is not linear, but up is a factor of the product)
 *   o           <- the rows of v; the query heads that share a value head share its scales
 * The head is left as it is: its input norm also has no other reader, but the gain is small there.
 */
#include "compress/smooth.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/config.h"
#include "model/sites.h"
#include "model/tokenizer.h"

#define WINDOW 512u
#define DEFAULT_TOKENS 2048u

struct collector {
    const struct pet_target *t;
    float **amax; /* [n_sites] -> [k]; of the first site of each group only */
};

static void observe(void *ctx, uint32_t site, uint32_t n_sites, const float *x, uint32_t rows, uint32_t k)
{
    struct collector *c = ctx;
    float *m = c->amax[site];
    (void)n_sites;
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t j = 0; j < k; j++) {
            float a = fabsf(x[(size_t)r * k + j]);
            m[j] = a > m[j] ? a : m[j];
        }
}

static int run_windows(struct model *m, const struct tok_ids *ids, struct collector *c, const struct compress_opts *o,
                       struct err *e)
{
    const uint32_t window = model_info(m)->max_rows;
    int r = 0;
    for (size_t at = 0; !r && at < ids->n; at += window) {
        uint32_t n = ids->n - at < window ? (uint32_t)(ids->n - at) : window, seq;
        if (seq_open(m, &seq) || seq_reserve(m, seq, n))
            return err_set(e, -ENOSPC, "calibration: no room for %u tokens", n);
        struct model_span sp = {.seq = seq, .tokens = ids->id + at, .n_tokens = n, .n_logits = 1};
        r = model_step_observed(m, &sp, 1, observe, c, e);
        seq_close(m, seq);
        if (o->progress)
            o->progress(o->ctx, "calibrating", (double)(at + n) / (double)ids->n);
    }
    return r;
}

/* Largest |W| of each input channel over a tensor's rows, into wmax. */
static int weight_columns(const struct st_file *f, const struct pet_site *s, float *wmax, struct err *e)
{
    char name[128];
    snprintf(name, sizeof name, "%s.weight", s->module);
    const struct st_tensor *t = st_find(f, name);
    if (!t || t->ndim != 2 || t->shape[0] != s->n || t->shape[1] != s->k || !dtype_is_float(t->type))
        return err_set(e, -EINVAL, "tensor %s: missing, or not a float tensor of shape [%u, %u]", name, s->n, s->k);
    float *row = malloc(s->k * sizeof *row);
    if (!row)
        return err_set(e, -ENOMEM, "out of memory");
    size_t row_bytes = s->k * dtype_size(t->type);
    for (uint32_t i = 0; i < s->n; i++) {
        dtype_to_f32(t->type, t->data + i * row_bytes, s->k, row);
        for (uint32_t j = 0; j < s->k; j++) {
            float a = fabsf(row[j]);
            wmax[j] = a > wmax[j] ? a : wmax[j];
        }
    }
    st_forget(f, t);
    free(row);
    return 0;
}

static float scale_of(float amax, float wmax, float alpha)
{
    if (!(amax > 0) || !(wmax > 0) || !isfinite(amax) || !isfinite(wmax))
        return 1.0f;
    float s = powf(amax, alpha) / powf(wmax, 1.0f - alpha);
    return s < 1e-4f ? 1e-4f : s > 1e4f ? 1e4f : s;
}

/* The scales of sites first..last of a layer, which share the input observed at first. */
static int group_scales(const struct collector *c, const struct st_file *f, uint32_t first, uint32_t last, float alpha,
                        float **out, struct err *e)
{
    uint32_t k = c->t->sites[first].k;
    float *s = calloc(k, sizeof *s);
    if (!s)
        return err_set(e, -ENOMEM, "out of memory");
    int r = 0;
    for (uint32_t i = first; !r && i <= last; i++)
        r = weight_columns(f, &c->t->sites[i], s, e);
    if (r) {
        free(s);
        return r;
    }
    for (uint32_t j = 0; j < k; j++)
        s[j] = scale_of(c->amax[first][j], s[j], alpha);
    *out = s;
    return 0;
}

static float *inverse(const float *s, uint32_t n)
{
    float *v = malloc(n * sizeof *v);
    for (uint32_t i = 0; v && i < n; i++)
        v[i] = 1.0f / s[i];
    return v;
}

/* o's scales, made equal over the query heads that share a value head (the largest), and v's rows. */
static int share_values(const struct pet_target *t, uint32_t base, uint32_t head_dim, struct smooth_site *site,
                        struct err *e)
{
    uint32_t k = t->sites[base + SITE_O].k, n = t->sites[base + SITE_V].n, group = k / n;
    float *o = site[base + SITE_O].in, *v = calloc(n, sizeof *v);
    if (!v)
        return err_set(e, -ENOMEM, "out of memory");
    for (uint32_t j = 0; j < k; j++) {
        uint32_t c = j / head_dim / group * head_dim + j % head_dim;
        v[c] = o[j] > v[c] ? o[j] : v[c];
    }
    for (uint32_t j = 0; j < k; j++)
        o[j] = v[j / head_dim / group * head_dim + j % head_dim];
    for (uint32_t c = 0; c < n; c++)
        v[c] = 1.0f / v[c];
    site[base + SITE_V].out = v;
    return 0;
}

static float *copy(const float *s, uint32_t n)
{
    float *v = malloc(n * sizeof *v);
    return v ? memcpy(v, s, n * sizeof *v) : NULL;
}

static int layer_scales(const struct collector *c, const struct st_file *f, uint32_t l, uint32_t head_dim, float alpha,
                        struct smooth *out, struct err *e)
{
    uint32_t b = l * SITE_KINDS;
    const struct pet_site *s = c->t->sites;
    struct smooth_site *o = out->site;
    int r = group_scales(c, f, b + SITE_Q, b + SITE_V, alpha, &o[b + SITE_Q].in, e);
    if (!r)
        r = group_scales(c, f, b + SITE_GATE, b + SITE_UP, alpha, &o[b + SITE_GATE].in, e);
    if (!r)
        r = group_scales(c, f, b + SITE_O, b + SITE_O, alpha, &o[b + SITE_O].in, e);
    if (!r)
        r = group_scales(c, f, b + SITE_DOWN, b + SITE_DOWN, alpha, &o[b + SITE_DOWN].in, e);
    if (!r)
        r = share_values(c->t, b, head_dim, o, e);
    if (r)
        return r;
    o[b + SITE_K].in = copy(o[b + SITE_Q].in, s[b].k);
    o[b + SITE_V].in = copy(o[b + SITE_Q].in, s[b].k);
    o[b + SITE_UP].in = copy(o[b + SITE_GATE].in, s[b + SITE_UP].k);
    o[b + SITE_UP].out = inverse(o[b + SITE_DOWN].in, s[b + SITE_UP].n);
    return o[b + SITE_K].in && o[b + SITE_V].in && o[b + SITE_UP].in && o[b + SITE_UP].out
               ? 0
               : err_set(e, -ENOMEM, "out of memory");
}

static int collect(const struct compress_opts *o, struct model *m, const char *text, size_t len, struct collector *c,
                   uint32_t *used, struct err *e)
{
    struct tok *tok = NULL;
    struct tok_ids ids = {0};
    int r = tok_open(o->dir, &tok, e);
    if (!r)
        r = tok_encode(tok, text, len, 0, &ids, e);
    if (!r && !ids.n)
        r = err_param(e, -EINVAL, "calib", "the calibration text is empty");
    if (!r) {
        uint32_t most = o->calib_tokens ? o->calib_tokens : DEFAULT_TOKENS;
        ids.n = ids.n < most ? ids.n : most;
        *used = (uint32_t)ids.n;
        r = run_windows(m, &ids, c, o, e);
    }
    free(ids.id);
    tok_close(tok);
    return r;
}

int smooth_make(const struct compress_opts *o, const char *text, size_t len, const struct st_file *weights,
                struct smooth *out, uint32_t *tokens_used, struct err *e)
{
    struct kern_dev *dev = NULL;
    struct model *m = NULL;
    struct collector c = {0};
    struct smooth s = {0};
    struct model_config cfg = {0};
    int r = model_config_read(o->dir, &cfg, e);
    uint32_t window = cfg.max_context < WINDOW ? cfg.max_context : WINDOW;
    model_config_free(&cfg);
    if (!r)
        r = kern_open(&(struct kern_opts){.threads = o->threads}, &dev, e);
    if (!r)
        r = model_open(dev,
                       &(struct model_opts){.dir = o->dir,
                                            .recovery = "",
                                            .precision = MODEL_AUTO,
                                            .kv_type = MODEL_KV_AUTO,
                                            .max_context = window,
                                            .kv_bytes = 0,
                                            .max_rows = window,
                                            .max_logits = 1,
                                            .max_seqs = 1},
                       &m, e);
    if (!r) {
        c.t = model_pet_target(m);
        s.n_sites = c.t->n_sites;
        s.site = calloc(s.n_sites, sizeof *s.site);
        c.amax = calloc(s.n_sites, sizeof *c.amax);
        for (uint32_t i = 0; c.amax && s.site && i < s.n_sites && !r; i++)
            if (!(c.amax[i] = calloc(c.t->sites[i].k, sizeof(float))))
                r = -ENOMEM;
        if (r || !c.amax || !s.site)
            r = err_set(e, -ENOMEM, "out of memory");
    }
    if (!r)
        r = collect(o, m, text, len, &c, tokens_used, e);
    uint32_t hd = r ? 0 : model_info(m)->head_dim, layers = r ? 0 : model_info(m)->n_layers;
    for (uint32_t l = 0; !r && l < layers; l++) {
        r = layer_scales(&c, weights, l, hd, o->alpha, &s, e);
        if (o->progress)
            o->progress(o->ctx, "smoothing", (double)(l + 1) / layers);
    }
    for (uint32_t i = 0; c.amax && i < s.n_sites; i++)
        free(c.amax[i]);
    free(c.amax);
    model_close(m);
    kern_close(dev);
    if (r)
        smooth_free(&s);
    else
        *out = s;
    return r;
}

void smooth_free(struct smooth *s)
{
    for (uint32_t i = 0; s->site && i < s->n_sites; i++) {
        free(s->site[i].in);
        free(s->site[i].out);
    }
    free(s->site);
    *s = (struct smooth){0};
}
