/* import_plan.c - which tensors a Llama or Qwen2 model has, under both of their names.
 *
 * Runs on import's thread; the list belongs to the job. It is made from the configuration alone and both kinds of
 * source are held to it, so a tensor that is missing, has another shape or is not part of the architecture is an error
 * either way.
 */
#include "compress/import_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* 14 a layer: seven matrices, seven biases at most, two norms; and embeddings, the last norm, the head. */
enum { PER_LAYER = 16, OUTSIDE = 3 };

static struct import_tensor *add(struct import_job *j, uint64_t d0, uint64_t d1)
{
    struct import_tensor *t = &j->t[j->n_t++];
    t->job = j;
    t->ndim = d1 ? 2 : 1;
    t->shape[0] = d0;
    t->shape[1] = d1;
    return t;
}

static void add_outside(struct import_job *j, const char *name, const char *gguf, uint64_t d0, uint64_t d1)
{
    struct import_tensor *t = add(j, d0, d1);
    snprintf(t->name, sizeof t->name, "%s", name);
    snprintf(t->gguf, sizeof t->gguf, "%s", gguf);
}

static void add_in_layer(struct import_job *j, uint32_t layer, const char *name, const char *gguf, const char *what,
                         uint64_t d0, uint64_t d1, uint32_t rope_heads)
{
    struct import_tensor *t = add(j, d0, d1);
    snprintf(t->name, sizeof t->name, "model.layers.%u.%s.%s", layer, name, what);
    snprintf(t->gguf, sizeof t->gguf, "blk.%u.%s.%s", layer, gguf, what);
    t->rope_heads = rope_heads;
}

static void add_linear(struct import_job *j, uint32_t layer, const char *name, const char *gguf, uint64_t out,
                       uint64_t in, bool bias, uint32_t rope_heads)
{
    add_in_layer(j, layer, name, gguf, "weight", out, in, rope_heads);
    if (bias)
        add_in_layer(j, layer, name, gguf, "bias", out, 0, rope_heads);
}

static void add_layer(struct import_job *j, uint32_t i)
{
    const struct model_config *c = &j->cfg;
    const struct model_layer_config *l = &c->layer[i];
    uint64_t q = (uint64_t)l->n_heads * c->head_dim, kv = (uint64_t)l->n_kv_heads * c->head_dim;
    bool llama = !strcmp(c->architecture, "llama");
    add_in_layer(j, i, "input_layernorm", "attn_norm", "weight", c->hidden, 0, 0);
    add_in_layer(j, i, "post_attention_layernorm", "ffn_norm", "weight", c->hidden, 0, 0);
    add_linear(j, i, "self_attn.q_proj", "attn_q", q, c->hidden, c->qkv_bias, llama ? l->n_heads : 0);
    add_linear(j, i, "self_attn.k_proj", "attn_k", kv, c->hidden, c->qkv_bias, llama ? l->n_kv_heads : 0);
    add_linear(j, i, "self_attn.v_proj", "attn_v", kv, c->hidden, c->qkv_bias, 0);
    add_linear(j, i, "self_attn.o_proj", "attn_output", c->hidden, q, c->o_bias, 0);
    add_linear(j, i, "mlp.gate_proj", "ffn_gate", l->ffn, c->hidden, c->mlp_bias, 0);
    add_linear(j, i, "mlp.up_proj", "ffn_up", l->ffn, c->hidden, c->mlp_bias, 0);
    add_linear(j, i, "mlp.down_proj", "ffn_down", c->hidden, l->ffn, c->mlp_bias, 0);
}

int import_by_name(const void *a, const void *b)
{
    return strcmp(((const struct import_tensor *)a)->name, ((const struct import_tensor *)b)->name);
}

int import_plan(struct import_job *j, struct err *e)
{
    const struct model_config *c = &j->cfg;
    j->t = calloc((size_t)c->n_layers * PER_LAYER + OUTSIDE, sizeof *j->t);
    if (!j->t)
        return err_set(e, -ENOMEM, "out of memory");
    add_outside(j, "model.embed_tokens.weight", "token_embd.weight", c->vocab, c->hidden);
    add_outside(j, "model.norm.weight", "output_norm.weight", c->hidden, 0);
    if (!c->tied)
        add_outside(j, "lm_head.weight", "output.weight", c->vocab, c->hidden);
    for (uint32_t i = 0; i < c->n_layers; i++)
        add_layer(j, i);
    qsort(j->t, j->n_t, sizeof *j->t, import_by_name);
    return 0;
}
