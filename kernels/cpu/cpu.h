/* cpu.h - inside kernels/cpu only: the table of row kernels that each level overwrites, and the region's context.
 *
 * The scalar reference fills every slot; avx2, vnni and amx overwrite upward (never a slot they do not speed up). No
 * other folder names an instruction set. All pointers are plain host memory here. "Columns" are outputs of W.
 */
#ifndef CPET_KERNELS_CPU_CPU_H
#define CPET_KERNELS_CPU_CPU_H

#include "kernels/kernels.h"

/* y[r][n0..n1) (+)= W x: n0 is a multiple of 64, n1 too or n. */
struct cpu_linear {
    const struct kern_mat *mat;
    const uint8_t *w;
    const float *scale, *bias; /* bias NULL: none */
    const float *x_f32;        /* [rows][k] */
    const int8_t *x_s8;        /* [rows][kpad] */
    const float *x_scale;
    const int32_t *x_sum;
    const uint16_t *x_bf16; /* [rows][kpad] */
    uint32_t rows, kpad;
    float *y;
    uint32_t ldy;
    bool accumulate;
};

/* One group at one site. t: [n_rows][rank]. rows[i] numbers the row of x and y. */
struct cpu_lr {
    const struct kern_lr *lr;
    const void *a, *b;
    const uint32_t *rows;
    uint32_t n_rows;
    const float *x; /* [..][k] */
    float *t;
    float *y; /* column 0 of the site */
    uint32_t ldy;
    float weight;
};

/* Attention of rows row0.. of one sequence (n_rows of them, positions pos0..) for one KV head and its n_q = n_heads /
 * n_kv_heads query heads. q and out point at the KV head's first query head of the first row. */
struct cpu_attn {
    const float *q;
    uint32_t ldq;
    float *out;
    uint32_t ldo;
    uint32_t n_rows, pos0, n_q, head_dim, n_kv_heads, kv_head;
    float scale;
    const uint8_t *base; /* page 0's part of this layer */
    size_t page_bytes;
    const uint32_t *pages;
};

struct cpu_table {
    enum kern_level level;
    /* linear.c and friends */
    void (*norm)(const float *x, const float *gain, uint32_t k, float eps, float *y);
    void (*quant)(const float *x, uint32_t k, uint32_t kpad, int8_t *q, float *scale, int32_t *sum);
    void (*to_bf16)(const float *x, uint32_t k, uint32_t kpad, uint16_t *y);
    void (*swiglu)(const float *gate, const float *up, uint32_t n, float *y);
    void (*linear[3])(const struct cpu_linear *a, uint32_t n0, uint32_t n1); /* by kern_type of the weights */
    void (*embed[3])(const struct kern_mat *m, uint32_t row, float *y);
    /* sequence.c and friends */
    void (*lr_down)(const struct cpu_lr *a, uint32_t r0, uint32_t r1); /* ranks [r0, r1) of t */
    void (*lr_up)(const struct cpu_lr *a, uint32_t n0, uint32_t n1);   /* columns [n0, n1) of y */
    void (*rope)(float *x, const float *cos_sin, uint32_t n_heads, uint32_t head_dim);
    /* stores one token's k and v (f32 [n_kv_heads][head_dim]) at place `slot` of a page's layer part */
    void (*kv_put[3])(uint8_t *part, uint32_t slot, uint32_t n_kv_heads, uint32_t head_dim, const float *k,
                      const float *v);
    void (*attn[3])(const struct cpu_attn *a); /* by kern_type of the pages */
    void (*sample)(float *logits, uint32_t vocab, const struct kern_sample *s, struct kern_sampled *out);
};

/* Each fills its slots; called scalar first, then upward to the device's level. */
void cpu_linear_scalar(struct cpu_table *t);
void cpu_linear_avx2(struct cpu_table *t);
void cpu_linear_vnni(struct cpu_table *t);
void cpu_linear_amx(struct cpu_table *t);
void cpu_sequence_scalar(struct cpu_table *t);
void cpu_sequence_avx2(struct cpu_table *t);
void cpu_sequence_vnni(struct cpu_table *t);
void cpu_sequence_amx(struct cpu_table *t);

/* The best level this processor and kernel allow (AMX: after asking for the permission). */
enum kern_level cpu_best_level(void);
/* The table for exactly that level (at most cpu_best_level()). */
void cpu_table_fill(struct cpu_table *t, enum kern_level level);

/* ---- the region: what an operation's function sees ---- */

struct cpu_ctx {
    const struct cpu_table *t;
    const struct kern_step *s;
    const uint32_t *gather; /* [n_rows]: index among the logit rows, or UINT32_MAX */
    void *worker;           /* region.c's */
};

/* The next unclaimed chunk of this operation: 0, 1, 2 ... over all workers. */
uint32_t cpu_claim(struct cpu_ctx *c);

/* sequence.c: the operations on groups, sequences and logits; every worker calls each once an operation. */
void cpu_op_lr_down(struct cpu_ctx *c, const struct kern_op *op);
/* Called by LINEAR's worker on its own columns [n0, n1) of y once their product is there. */
void cpu_lr_up_columns(struct cpu_ctx *c, const struct kern_op *op, uint32_t n0, uint32_t n1);
void cpu_op_rope_kv(struct cpu_ctx *c, const struct kern_op *op);
void cpu_op_attn(struct cpu_ctx *c, const struct kern_op *op);
void cpu_op_sample(struct cpu_ctx *c, const struct kern_op *op);

#endif
