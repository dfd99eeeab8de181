/* config.c - reads config.json and makes the rotary table.
 *
 * Called once at load, by any thread; the struct belongs to the caller. transformers' older and newer spellings
 * (rope_theta + rope_scaling, or rope_parameters) are both read. A setting that changes the numbers and that the step
 * does not compute is an error here, so that nothing is ever ignored silently.
 */
#include "model/config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "formats/json.h"

#define CONFIG_CAP (4u << 20)

static int read_rope(const json_t *o, struct model_config *c, struct err *e)
{
    static const double theta_def = 10000.0, one = 1.0;
    json_t *params, *scaling;
    double whole;
    int r = json_get_object(o, "rope_parameters", false, &params, e);
    if (!r)
        r = json_get_object(o, "rope_scaling", false, &scaling, e);
    if (!r)
        r = json_get_f64(o, "rope_theta", 1.0, 1e12, &theta_def, &c->rope_theta, e);
    if (!r)
        r = json_get_f64(params ? params : o, "partial_rotary_factor", 1.0, 1.0, &one, &whole, e);
    if (r)
        return r;
    const json_t *s = scaling;
    if (params) {
        double old = c->rope_theta;
        r = json_get_f64(params, "rope_theta", 1.0, 1e12, &old, &c->rope_theta, e);
        if (r)
            return r;
        s = params;
    }
    c->rope = ROPE_DEFAULT;
    if (!s)
        return 0;
    const char *type;
    r = json_get_str(s, "rope_type", false, &type, e);
    if (!r && !type)
        r = json_get_str(s, "type", false, &type, e);
    if (r)
        return r;
    if (!type || !strcmp(type, "default"))
        return 0;
    r = json_get_f64(s, "factor", 1e-3, 1e6, &one, &c->rope_factor, e);
    if (!r && !strcmp(type, "linear")) {
        c->rope = ROPE_LINEAR;
        return 0;
    }
    if (!r && strcmp(type, "llama3"))
        return err_param(e, -EINVAL, "rope_type", "\"rope_type\" %s is not supported (default, linear and llama3 are)",
                         type);
    c->rope = ROPE_LLAMA3;
    if (!r)
        r = json_get_f64(s, "low_freq_factor", 1e-6, 1e6, NULL, &c->rope_low, e);
    if (!r)
        r = json_get_f64(s, "high_freq_factor", 1e-6, 1e6, NULL, &c->rope_high, e);
    if (!r)
        r = json_get_f64(s, "original_max_position_embeddings", 1, 1e9, NULL, &c->rope_original, e);
    if (!r && !(c->rope_high > c->rope_low))
        r = err_param(e, -EINVAL, "high_freq_factor", "\"high_freq_factor\" must be larger than \"low_freq_factor\"");
    return r;
}

static int refuse_true(const json_t *o, const char *key, struct err *e)
{
    static const bool no = false;
    bool v;
    int r = json_get_bool(o, key, &no, &v, e);
    if (!r && v)
        r = err_param(e, -EINVAL, key, "\"%s\" is not supported", key);
    return r;
}

static int read_arch(const json_t *o, struct model_config *c, struct err *e)
{
    static const bool no = false;
    const char *type, *act;
    int r = json_get_str(o, "model_type", true, &type, e);
    if (r)
        return r;
    bool bias = false;
    if (!strcmp(type, "llama")) {
        r = json_get_bool(o, "attention_bias", &no, &bias, e);
        c->qkv_bias = c->o_bias = bias;
        if (!r)
            r = json_get_bool(o, "mlp_bias", &no, &c->mlp_bias, e);
    } else if (!strcmp(type, "qwen2")) {
        c->qkv_bias = true;
        r = refuse_true(o, "use_sliding_window", e);
    } else {
        return err_param(e, -EINVAL, "model_type", "\"model_type\" %s is not supported (llama and qwen2 are)", type);
    }
    snprintf(c->architecture, sizeof c->architecture, "%s", type);
    if (!r)
        r = json_get_str(o, "hidden_act", false, &act, e);
    if (!r && act && strcmp(act, "silu"))
        r = err_param(e, -EINVAL, "hidden_act", "\"hidden_act\" %s is not supported (silu is)", act);
    return r;
}

static int read_shapes(const json_t *o, struct model_config *c, struct err *e)
{
    static const double eps_def = 1e-6;
    static const bool no = false;
    uint32_t heads = 0, kv = 0, ffn = 0;
    double eps = 0;
    int r = json_get_u32(o, "num_hidden_layers", 1, 1024, NULL, &c->n_layers, e);
    if (!r)
        r = json_get_u32(o, "hidden_size", 8, 1u << 17, NULL, &c->hidden, e);
    if (!r)
        r = json_get_u32(o, "intermediate_size", 8, 1u << 20, NULL, &ffn, e);
    if (!r)
        r = json_get_u32(o, "num_attention_heads", 1, 4096, NULL, &heads, e);
    if (!r)
        r = json_get_u32(o, "num_key_value_heads", 1, 4096, &heads, &kv, e);
    if (!r)
        r = json_get_u32(o, "vocab_size", 1, 1u << 24, NULL, &c->vocab, e);
    if (!r)
        r = json_get_u32(o, "max_position_embeddings", 1, 1u << 24, NULL, &c->max_context, e);
    if (!r)
        r = json_get_f64(o, "rms_norm_eps", 0, 1, &eps_def, &eps, e);
    if (!r)
        r = json_get_bool(o, "tie_word_embeddings", &no, &c->tied, e);
    if (r)
        return r;
    uint32_t hd = c->hidden / heads;
    r = json_get_u32(o, "head_dim", 8, 256, hd >= 8 && hd <= 256 ? &hd : NULL, &c->head_dim, e);
    if (r)
        return r;
    if (heads % kv)
        return err_param(e, -EINVAL, "num_key_value_heads", "%u attention heads cannot share %u key/value heads", heads,
                         kv);
    if (c->head_dim % 8)
        return err_param(e, -EINVAL, "head_dim", "\"head_dim\" %u is not a multiple of 8", c->head_dim);
    c->norm_eps = (float)eps;
    c->layer = calloc(c->n_layers, sizeof *c->layer);
    if (!c->layer)
        return err_set(e, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < c->n_layers; i++)
        c->layer[i] = (struct model_layer_config){.n_heads = heads, .n_kv_heads = kv, .ffn = ffn};
    return 0;
}

static int read_sites_hash(const json_t *o, struct model_config *c, struct err *e)
{
    const char *hex = NULL;
    int r = json_get_str(o, "cpet_sites_hash", false, &hex, e);
    if (r || !hex)
        return r;
    c->has_sites = true;
    return hash_parse(hex, &c->sites_hash)
               ? err_param(e, -EINVAL, "cpet_sites_hash", "\"cpet_sites_hash\" is not a 64-digit hash")
               : 0;
}

int model_config_read(const char *dir, struct model_config *out, struct err *e)
{
    struct model_config c = {0};
    json_t *o = NULL;
    char *path = path_join(dir, "config.json");
    if (!path)
        return err_set(e, -ENOMEM, "out of memory");
    int r = json_read_file(path, CONFIG_CAP, &o, e);
    if (!r) {
        r = read_arch(o, &c, e);
        if (!r)
            r = read_rope(o, &c, e);
        if (!r)
            r = read_shapes(o, &c, e);
        if (!r)
            r = read_sites_hash(o, &c, e);
        if (r)
            err_prefix(e, r, "%s", path);
    }
    json_decref(o);
    free(path);
    if (r)
        model_config_free(&c);
    else
        *out = c;
    return r;
}

void model_config_free(struct model_config *c)
{
    free(c->layer);
    c->layer = NULL;
}

/* One frequency, as transformers computes it: float32 throughout, so that late positions agree. */
static float rope_freq(const struct model_config *c, uint32_t i)
{
    float f = 1.0f / powf((float)c->rope_theta, (float)(2 * i) / (float)c->head_dim);
    if (c->rope == ROPE_LINEAR)
        return f / (float)c->rope_factor;
    if (c->rope != ROPE_LLAMA3)
        return f;
    float wave = (float)(2.0 * M_PI) / f, orig = (float)c->rope_original;
    if (wave < (float)(c->rope_original / c->rope_high))
        return f;
    if (wave > (float)(c->rope_original / c->rope_low))
        return f / (float)c->rope_factor;
    float smooth = (orig / wave - (float)c->rope_low) / (float)(c->rope_high - c->rope_low);
    return (1.0f - smooth) * (f / (float)c->rope_factor) + smooth * f;
}

void model_rope_fill(const struct model_config *c, uint32_t pos0, uint32_t n, float *table)
{
    uint32_t half = c->head_dim / 2;
    for (uint32_t i = 0; i < half; i++) {
        float freq = rope_freq(c, i);
        for (uint32_t p = 0; p < n; p++) {
            float angle = (float)(pos0 + p) * freq, *row = table + (size_t)p * c->head_dim;
            row[i] = cosf(angle);
            row[half + i] = sinf(angle);
        }
    }
}
