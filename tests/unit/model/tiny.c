/* tiny.c - writes a backbone of two layers whose weights come from the counter-based generator. */
#include "tiny.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/file.h"
#include "common/num.h"
#include "formats/safetensors.h"

#define HIDDEN 64
#define FFN 96
#define LAYERS 2
#define MAX_TENSORS 64

struct builder {
    struct tiny *t;
    struct st_out out[MAX_TENSORS];
    char name[MAX_TENSORS][96];
    size_t n;
};

static void add(struct builder *b, const char *name, uint32_t rows, uint32_t cols, float scale, float mean)
{
    const struct tiny *t = b->t;
    if (t->drop && !strcmp(t->drop, name))
        return;
    if (t->reshape && !strcmp(t->reshape, name))
        rows++;
    size_t n = (size_t)rows * (cols ? cols : 1);
    float *v = malloc(n * sizeof *v);
    assert_non_null(v);
    uint64_t seed = 0;
    for (const char *s = name; *s; s++)
        seed = seed * 131 + (unsigned char)*s;
    for (size_t i = 0; i < n; i++)
        v[i] = mean + scale * (2 * rng_unit(seed, 0, i) - 1);
    if (t->nan && !strcmp(t->nan, name))
        v[0] = NAN;
    snprintf(b->name[b->n], sizeof b->name[0], "%s", name);
    b->out[b->n] =
        (struct st_out){.name = b->name[b->n], .type = DT_F32, .ndim = cols ? 2 : 1, .shape = {rows, cols}, .data = v};
    b->n++;
}

static void add_layer(struct builder *b, int l)
{
    static const struct {
        const char *name;
        uint32_t n, k;
        bool qkv;
    } linears[] = {{"self_attn.q_proj", 64, HIDDEN, true}, {"self_attn.k_proj", 32, HIDDEN, true},
                   {"self_attn.v_proj", 32, HIDDEN, true}, {"self_attn.o_proj", HIDDEN, 64, false},
                   {"mlp.gate_proj", FFN, HIDDEN, false},  {"mlp.up_proj", FFN, HIDDEN, false},
                   {"mlp.down_proj", HIDDEN, FFN, false}};
    char name[96];
    for (size_t i = 0; i < 7; i++) {
        snprintf(name, sizeof name, "model.layers.%d.%s.weight", l, linears[i].name);
        add(b, name, linears[i].n, linears[i].k, 2.0f / sqrtf((float)linears[i].k), 0);
        snprintf(name, sizeof name, "model.layers.%d.%s.bias", l, linears[i].name);
        if (b->t->qwen2 && linears[i].qkv)
            add(b, name, linears[i].n, 0, 0.3f, 0);
    }
    snprintf(name, sizeof name, "model.layers.%d.input_layernorm.weight", l);
    add(b, name, HIDDEN, 0, 0.2f, 1);
    snprintf(name, sizeof name, "model.layers.%d.post_attention_layernorm.weight", l);
    add(b, name, HIDDEN, 0, 0.2f, 1);
}

void tiny_make(struct tiny *t)
{
    char path[128], config[1024];
    struct err e = {0};
    struct builder b = {.t = t};
    strcpy(t->dir, "/tmp/cpet-tiny-XXXXXX");
    assert_non_null(mkdtemp(t->dir));
    snprintf(config, sizeof config,
             "{\"model_type\": \"%s\", \"hidden_size\": %d, \"intermediate_size\": %d, \"num_hidden_layers\": %d, "
             "\"num_attention_heads\": 4, "
             "\"num_key_value_heads\": 2, \"vocab_size\": %d, \"max_position_embeddings\": 256, \"rms_norm_eps\": "
             "1e-5, \"rope_theta\": 10000.0, "
             "\"tie_word_embeddings\": %s, \"hidden_act\": \"silu\"}",
             t->qwen2 ? "qwen2" : "llama", HIDDEN, FFN, LAYERS, TINY_VOCAB, t->tied ? "true" : "false");
    const char *text = t->config ? t->config : config;
    snprintf(path, sizeof path, "%s/config.json", t->dir);
    assert_int_equal(file_write_atomic(path, text, strlen(text), 0644, &e), 0);
    add(&b, "model.embed_tokens.weight", TINY_VOCAB, HIDDEN, 1, 0);
    for (int l = 0; l < LAYERS; l++)
        add_layer(&b, l);
    add(&b, "model.norm.weight", HIDDEN, 0, 0.2f, 1);
    if (!t->tied)
        add(&b, "lm_head.weight", TINY_VOCAB, HIDDEN, 0.3f, 0);
    if (t->extra)
        add(&b, t->extra, 4, 4, 1, 0);
    snprintf(path, sizeof path, "%s/model.safetensors", t->dir);
    int r = st_write(path, b.out, b.n, NULL, &e);
    for (size_t i = 0; i < b.n; i++)
        free((void *)(uintptr_t)b.out[i].data);
    assert_int_equal(r, 0);
}

void tiny_remove(struct tiny *t)
{
    char cmd[128];
    snprintf(cmd, sizeof cmd, "rm -rf %s", t->dir);
    assert_int_equal(system(cmd), 0);
}

void tiny_ids(int32_t *ids, uint32_t n, uint32_t seed)
{
    for (uint32_t i = 0; i < n; i++)
        ids[i] = (int32_t)((seed * 7919u + i * 104729u + i * i * 31u) % TINY_VOCAB);
}
