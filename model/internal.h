/* internal.h - struct model, inside model/ only.
 *
 * Files: config.c reads config.json; load.c finds, converts and packs the weights and builds the site map; plan.c
 * lays out memory and builds the operation list; kv.c owns sequences and pages; prefix.c has the table of pages kept
 * for later requests; step.c turns spans into a step; pool.c pools hidden states; model.c opens and closes.
 */
#ifndef CPET_MODEL_INTERNAL_H
#define CPET_MODEL_INTERNAL_H

#include "model/config.h"
#include "model/model.h"
#include "model/prefix.h"
#include "model/sites.h"

struct layer {
    struct kern_mat qkv, o, gate_up, down;
    kmem attn_norm, mlp_norm;          /* f32 [hidden] */
    struct kern_act act_attn, act_ffn; /* in scratch that all layers share */
};

/* A sequence's pages. Engine thread. */
struct seq {
    bool open;
    bool in_step; /* while the spans of a step are checked: one of them is this sequence's */
    uint32_t len, n_pages, cap;
    uint32_t *pages;
};

struct model {
    struct kern_dev *dev;
    struct model_config cfg;
    struct model_info info;
    char *dir;

    /* weights */
    kmem weights;                /* one allocation */
    struct kern_mat embed, head; /* the same matrix when tied */
    struct layer *layer;
    kmem final_norm, rope;

    /* sites and recovery */
    struct pet_target target;
    struct pet_site *sites;
    float *site_scales; /* owns in_scale and out_scale of the sites */
    struct pet_slot *recovery;

    /* KV */
    kmem kv_mem;
    struct kern_kv kv;
    size_t *layer_off;
    uint32_t *free_pages, n_free; /* stack of page numbers */
    uint32_t *page_refs;          /* sequences that hold the page, and one when it is kept */
    struct prefix *prefix;        /* the pages that are kept */
    struct hash prefix_salt;      /* all keys begin from it */
    struct seq *seqs;
    void *page_copy; /* host, page_bytes: for copying a shared page */

    /* the step */
    kmem scratch;
    struct kern_act act_hidden, act_final;
    kmem x, qkv, gate_up, logits, lr_t;
    uint32_t ld_qkv, ld_gate_up, max_rank, max_group_rows;
    struct kern_op *ops;
    size_t n_ops;
    int32_t *tokens;
    uint32_t *pos, *logit_rows, *group_rows;
    struct kern_seq *step_seqs;
    struct kern_group *groups;
    struct kern_sample *sample;
    struct kern_sampled *sampled;
    uint32_t *span_of; /* scratch of grouping: [max_rows] */
    float *pool_row;   /* scratch of pooling: [2 * hidden] */
    uint32_t last_slots;
};

/* load.c. Fills weights, layer, embed, head, norms, rope, target, sites. */
int model_load_weights(struct model *m, const struct model_opts *o, struct err *e);
/* sites.c: names, shapes and scales of the sites, and the lineage, from dir/cpet.json and dir/cpet/sites.safetensors.
 */
int model_sites_make(struct model *m, struct err *e);
/* plan.c */
int model_plan(struct model *m, struct err *e);
/* pool.c: after the list has run; row0 is the span's first row. */
void model_pool_rows(struct model *m, const struct model_span *sp, uint32_t row0);
/* kv.c */
int model_kv_open(struct model *m, const struct model_opts *o, struct err *e);
void model_kv_close(struct model *m);
/* Whether s has room for n more tokens in pages of its own. */
bool model_kv_ready(const struct model *m, const struct seq *s, uint32_t n);

#endif
