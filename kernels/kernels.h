/* kernels.h - one table of operations over opaque buffers; kernels/cpu fills it, kernels/cuda will.
 *
 * A step is data: model/ builds, once a backbone, a list of kern_op records over device addresses; struct kern_step
 * says what varies from step to step (rows, pages, PET groups, sampling). kern_run walks the list: on the CPU in one
 * parallel region with barriers. Host code never follows a device address; results come back by kern_download or in
 * the host arrays that struct kern_step names.
 *
 * Row invariance: the bits of a row's results depend on that row's own inputs and on the level, never on the other
 * rows, its place, the chunking or the number of threads. Integer sums are exact; every float reduction has an order
 * fixed by the row's own shape (k, rank, position).
 *
 * One thread at a time may call kern_run on a device; packing and memory calls may come from any thread.
 */
#ifndef CPET_KERNELS_KERNELS_H
#define CPET_KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

typedef struct kmem {
    uintptr_t a; /* device address; 0: none */
} kmem;

static inline kmem kmem_at(kmem m, size_t off)
{
    return (kmem){m.a + off};
}

enum kern_level { KERN_SCALAR, KERN_AVX2, KERN_VNNI, KERN_AMX, KERN_LEVELS };
enum kern_type { KERN_F32, KERN_BF16, KERN_S8 };

struct kern_dev;

struct kern_opts {
    unsigned threads; /* workers in the region, the caller of kern_run included; 0: one a core */
    const char
        *max_level; /* NULL or "": the best this machine has; else "scalar", "avx2", "vnni", "amx": at most that */
};

/* Makes the CPU device. -EINVAL for an unknown level, -ENOMEM, -EAGAIN when threads cannot be had. */
int kern_open(const struct kern_opts *o, struct kern_dev **out, struct err *e);
void kern_close(struct kern_dev *d); /* takes NULL */
enum kern_level kern_level(const struct kern_dev *d);
const char *kern_level_name(enum kern_level l);
unsigned kern_threads(const struct kern_dev *d);

/* ---- memory ---- */

/* Cleared memory, 64-byte aligned (2 MiB pages asked for when large). */
int kern_alloc(struct kern_dev *d, size_t bytes, kmem *out, struct err *e);
void kern_free(struct kern_dev *d, kmem m); /* takes the null address */
void kern_upload(struct kern_dev *d, kmem dst, const void *src, size_t bytes);
void kern_download(struct kern_dev *d, void *dst, kmem src, size_t bytes);

/* Runs fn(ctx, i) for i in [0, n) on the device's workers and the caller; returns when all are done. For loading. */
void kern_parallel(struct kern_dev *d, size_t n, void (*fn)(void *ctx, size_t i), void *ctx);

/* ---- weights: y[n] = W[n][k] x[k] ---- */

/* A packed matrix. KERN_S8: s8 in [-128, 127] with one f32 scale an output row; packed u8 = s8 + 128 in the one
 * layout of all levels, [n/16][k/4][16][4]. BF16 and F32: values. bias: f32 [n] or none. */
struct kern_mat {
    enum kern_type type;
    uint32_t n, k;
    kmem w, scale, bias;
};

size_t kern_mat_bytes(enum kern_type type, uint32_t n, uint32_t k, bool bias); /* a multiple of 64; 0 on overflow */
/* Lays the matrix out at `at` (kern_mat_bytes long, zeroed, 64-byte aligned). */
void kern_mat_init(struct kern_mat *m, enum kern_type type, uint32_t n, uint32_t k, bool bias, kmem at);
/* Packs rows [row0, row0 + rows) from row-major src of m's type (s8, bf16 or f32 words; unaligned is fine); scale
 * [rows] for KERN_S8, bias [rows] or NULL. Distinct row ranges may be packed at the same time when row0 and rows are
 * multiples of 16 (or reach n). */
void kern_mat_pack(struct kern_dev *d, const struct kern_mat *m, uint32_t row0, uint32_t rows, const void *src,
                   const float *scale, const float *bias);

/* ---- activations: [rows][k] in the forms that the next product wants ---- */

struct kern_act {
    uint32_t k, kpad; /* kpad: k rounded up to 64; s8 and bf16 rows are padded with zeros to kpad */
    uint32_t forms;   /* KERN_ACT_* that are kept */
    kmem f32;         /* [rows][k], always there: low-rank products read it */
    kmem s8;          /* [rows][kpad], per-row scale = max|x| / 127 */
    kmem scale;       /* f32 [rows] */
    kmem sum;         /* s32 [rows]: sum of the s8 values */
    kmem bf16;        /* [rows][kpad] */
};
#define KERN_ACT_S8 1u
#define KERN_ACT_BF16 2u
/* The forms that a product with weights of this type reads at the device's level. */
uint32_t kern_act_forms(const struct kern_dev *d, enum kern_type weights);
size_t kern_act_bytes(uint32_t rows, uint32_t k, uint32_t forms);
void kern_act_init(struct kern_act *a, uint32_t rows, uint32_t k, uint32_t forms, kmem at);

/* ---- low-rank PET: y += weight * scale * B f(A x), at numbered sites ---- */

enum kern_fn { KERN_FN_NONE, KERN_FN_GELU /* exact, erf */, KERN_FN_GELU_TANH };

struct kern_lr {
    uint32_t rank, k, n; /* rank 0: the module does not touch this site */
    enum kern_type type; /* KERN_BF16 or KERN_F32 */
    enum kern_fn fn;
    float scale;
    kmem a, b;
};

size_t kern_lr_bytes(enum kern_type type, uint32_t rank, uint32_t k, uint32_t n); /* multiple of 64; 0 on overflow */
/* Packs row-major f32 a [rank][k] and b [n][rank] at `at`; fills l->type, rank, k, n, a, b (fn and scale are the
 * caller's). The packing is the order the kernels read: exact ranks, no padding to other modules' ranks. */
void kern_lr_pack(struct kern_dev *d, struct kern_lr *l, enum kern_type type, uint32_t rank, uint32_t k, uint32_t n,
                  const float *a, const float *b, kmem at);

/* A resident module: one entry a site. The array is the owner's and does not move while a step uses it. */
struct kern_slot {
    uint32_t n_sites;
    uint32_t max_rank;
    const struct kern_lr *site; /* [n_sites] */
};

/* ---- keys and values ---- */

#define KERN_PAGE_TOKENS 32

/* One layer's part of a page holds KERN_PAGE_TOKENS tokens' keys and values of all its KV heads; a page holds all
 * layers' parts. S8: symmetric, one f32 scale a token, head and side. */
struct kern_kv {
    enum kern_type type;
    kmem base;
    size_t page_bytes;
    uint32_t n_layers;
    const size_t *layer_off; /* [n_layers], host: offset of the layer's part in a page */
};
size_t kern_kv_layer_bytes(enum kern_type type, uint32_t n_kv_heads, uint32_t head_dim); /* multiple of 64 */

/* ---- what varies ---- */

/* A run of rows of one sequence: rows row0 .. row0+n_rows-1 stand at positions pos0 .. of it. */
struct kern_seq {
    uint32_t row0, n_rows, pos0;
    const uint32_t *pages; /* page numbers; covers pos0 + n_rows tokens */
};

/* Rows that share a module. Groups are applied in array order; a row may be in several (composition in order). */
struct kern_group {
    const struct kern_slot *slot;
    float weight;
    uint32_t n_rows;
    const uint32_t *rows; /* ascending */
};

struct kern_bias {
    int32_t token;
    float add;
};
struct kern_seen { /* a token that the penalties know */
    int32_t token;
    uint32_t in_output; /* times generated */
    uint32_t in_prompt; /* 0 or 1 */
};

#define KERN_TOP_MAX 20

struct kern_sample {
    float temperature;                     /* 0: greedy, the lowest id wins a tie */
    float top_p, min_p;                    /* 1 and 0: off */
    uint32_t top_k;                        /* 0: off */
    float presence, frequency, repetition; /* 0, 0, 1: off */
    uint64_t seed, sequence, position;     /* the counter of rng_unit */
    const uint32_t *mask;                  /* bit a token, set = allowed; NULL: all */
    const struct kern_bias *bias;
    uint32_t n_bias;
    const struct kern_seen *seen;
    uint32_t n_seen;
    int32_t target; /* >= 0: do not sample; report this token's log-probability */
    int32_t n_top;  /* -1: no log-probabilities; 0..KERN_TOP_MAX: of the token and of the n_top likeliest */
    bool rank;      /* with a target: its rank too */
};

struct kern_sampled {
    int32_t token;
    float logprob; /* natural log, of the raw logits' softmax: before temperature, penalties, bias and mask */
    uint32_t rank; /* of a target, where asked for: 1 for the likeliest, ties by id, as in top_id; else 0 */
    int32_t top_id[KERN_TOP_MAX];
    float top_logprob[KERN_TOP_MAX]; /* falling; ties by id */
};

struct kern_step {
    uint32_t n_rows;
    const int32_t *token; /* [n_rows] */
    const uint32_t *pos;  /* [n_rows] */
    const struct kern_seq *seqs;
    uint32_t n_seqs;
    const struct kern_group *groups;
    uint32_t n_groups;
    const uint32_t *logit_rows; /* [n_logits], ascending: the rows whose logits are computed */
    uint32_t n_logits;
    const struct kern_sample *sample; /* [n_logits], or NULL: no sampling */
    struct kern_sampled *sampled;     /* [n_logits], host */
};

/* ---- the list ---- */

enum kern_kind {
    KERN_OP_EMBED,   /* x[row] = mat row token[row], as f32 */
    KERN_OP_NORM,    /* out = RMSNorm(x) * gain, in out's forms; gathered: of the logit rows only, densely */
    KERN_OP_LR_DOWN, /* t = f(A x) for every group at sites [site0, site0 + n_sites), which share one input */
    KERN_OP_LINEAR,  /* y (+)= W in + bias, then y += B t of the op's sites */
    KERN_OP_ROPE_KV, /* rotates q and k in place (half-split convention), stores k and v into the pages */
    KERN_OP_ATTN,    /* out.f32 = causal attention of q over the pages, keys and values as the pages hold them */
    KERN_OP_FORMS,   /* fills the other forms of an activation from its f32 */
    KERN_OP_SWIGLU,  /* out = silu(gu[0..n)) * gu[n..2n), in out's forms */
    KERN_OP_SAMPLE,  /* step->sampled from the logits */
    KERN_OP_KINDS
};

struct kern_op_site {
    uint32_t site;  /* index into kern_slot.site */
    uint32_t n0, n; /* the columns of y it adds to; n equals the site's n */
};

struct kern_op {
    enum kern_kind kind;
    bool gathered;              /* NORM, LR_DOWN, LINEAR: rows are the logit rows, numbered 0 .. n_logits-1 */
    bool accumulate;            /* LINEAR: y += instead of y = */
    const struct kern_mat *mat; /* EMBED, LINEAR */
    kmem x;                     /* EMBED: out; NORM, SWIGLU: in; ROPE_KV, ATTN: qkv; SAMPLE: logits. f32 [rows][ldx] */
    uint32_t ldx;
    kmem gain; /* NORM: f32 [k] */
    float eps;
    const struct kern_act *act; /* NORM, ATTN, SWIGLU, FORMS: out; LR_DOWN, LINEAR: in */
    kmem y;                     /* LINEAR: f32 [rows][ldy] */
    uint32_t ldy;
    struct kern_op_site sites[4]; /* LR_DOWN, LINEAR: n_sites of them */
    uint32_t n_sites;
    kmem t; /* LR_DOWN out, LINEAR in: f32 scratch, kern_lr_scratch bytes, one a LR_DOWN op in flight */
    const struct kern_kv *kv;                      /* ROPE_KV, ATTN */
    uint32_t layer, n_heads, n_kv_heads, head_dim; /* q, k, v lie in a qkv row in this order */
    kmem rope;        /* f32 [positions][head_dim]: head_dim/2 cosines, then head_dim/2 sines */
    float attn_scale; /* 1/sqrt(head_dim) as a rule */
    uint32_t n;       /* SWIGLU: ffn width; SAMPLE: vocabulary */
};

/* Bytes of t for steps of at most max_group_rows (the sum of all groups' rows), n_sites sites, ranks up to max_rank. */
size_t kern_lr_scratch(uint32_t max_group_rows, uint32_t n_sites, uint32_t max_rank);

/* Walks the list for one step. The step's arrays stay the caller's and unchanged until it returns. */
void kern_run(struct kern_dev *d, const struct kern_op *ops, size_t n_ops, const struct kern_step *s);

/* Nanoseconds the caller's worker spent in each kind of operation (barriers included) since the last call; resets.
 * Counting costs two clock reads an operation and is on after the first call. */
void kern_profile(struct kern_dev *d, uint64_t ns[KERN_OP_KINDS]);
const char *kern_kind_name(enum kern_kind k);

#endif
