/* config.h - what config.json of a Hugging Face directory says of the architecture. Inside model/ and compress/. */
#ifndef CPET_MODEL_CONFIG_H
#define CPET_MODEL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "common/hash.h"

enum rope_kind { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3 };

struct model_layer_config { /* shapes are a layer's own (design decision 4) */
    uint32_t n_heads, n_kv_heads, ffn;
};

struct model_config {
    char architecture[32]; /* "llama", "qwen2" */
    uint32_t n_layers, hidden, vocab, max_context, head_dim;
    struct model_layer_config *layer; /* [n_layers] */
    float norm_eps;
    bool tied;
    bool qkv_bias, o_bias, mlp_bias;
    double rope_theta;
    enum rope_kind rope;
    double rope_factor, rope_low, rope_high, rope_original; /* LLAMA3: low_freq_factor ..; LINEAR: factor */
    bool has_sites; /* "cpet_sites_hash": what cpet/sites.safetensors has to hold */
    struct hash sites_hash;
};

/* Reads dir/config.json. Everything that would change the numbers and is not known is refused by name. */
int model_config_read(const char *dir, struct model_config *out, struct err *e);
void model_config_free(struct model_config *c);

/* Rows of the rope table for positions [pos0, pos0 + n): head_dim/2 cosines, then head_dim/2 sines each. */
void model_rope_fill(const struct model_config *c, uint32_t pos0, uint32_t n, float *table);

#endif
