/* model.h - the backbone: loaded once, stepped by one thread.
 *
 * A struct model owns the packed weights, the recovery module, the KV pages and the step's scratch, all allocated at
 * model_open. The engine thread alone calls the functions on sequences and model_step; model_info and
 * model_pet_target are constant after model_open and may be read by any thread.
 *
 * A sequence is a list of KV pages and a length. model_step appends the tokens of each span to its sequence, computes
 * all spans in one batch, and samples where asked. The result for a span depends on the span and its sequence alone
 * (row invariance), whatever else is in the batch and however a prompt is cut into spans.
 */
#ifndef CPET_MODEL_MODEL_H
#define CPET_MODEL_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "common/hash.h"
#include "kernels/kernels.h"
#include "pet/pet.h"

struct model;

enum model_precision { MODEL_AUTO = -1, MODEL_F32 = KERN_F32, MODEL_BF16 = KERN_BF16, MODEL_INT8 = KERN_S8 };
#define MODEL_KV_AUTO (-1)

struct model_opts {
    const char *dir;                /* a Hugging Face directory */
    const char *recovery;           /* a recovery file; NULL: dir/recovery.safetensors where it exists; "": none */
    enum model_precision precision; /* AUTO: what dir holds. int8 needs a directory that cpet compress wrote */
    int kv_type;                    /* MODEL_KV_AUTO (f32 for f32 weights, else bf16) or a kern_type */
    size_t kv_bytes; /* for KV pages; 0: 512 MiB. Rounded down to whole pages, at least one context's worth is needed */
    uint32_t max_context; /* 0: what config.json states */
    uint32_t max_rows;    /* rows a step; 0: 512 */
    uint32_t max_logits;  /* logit rows a step; 0: 128 */
    uint32_t max_seqs;    /* sequences open at once; 0: 1024 */
    uint32_t max_pets;    /* modules composed on one sequence; 0: 4 */
    uint32_t max_rank;    /* 0: 256 */
};

/* Loads and packs. Errors name the file and the tensor or field. */
int model_open(struct kern_dev *d, const struct model_opts *o, struct model **out, struct err *e);
void model_close(struct model *m); /* takes NULL */

struct model_info {
    char architecture[32];
    enum model_precision precision;
    enum kern_type kv_type;
    uint32_t n_layers, hidden, vocab, max_context, head_dim;
    uint32_t max_rows, max_logits, max_seqs, max_pets;
    uint32_t n_pages; /* KV pages of KERN_PAGE_TOKENS tokens in all */
    size_t page_bytes;
    size_t weight_bytes; /* packed, resident */
    size_t kv_bytes, scratch_bytes;
    char recovery[17]; /* the first 16 digits of the recovery module's hash, "" when none is loaded */
};
const struct model_info *model_info(const struct model *m);
const struct pet_target *model_pet_target(const struct model *m);
struct kern_dev *model_dev(const struct model *m);

/* ---- sequences (engine thread) ---- */

#define MODEL_NO_SEQ UINT32_MAX

/* A new, empty sequence. -ENOSPC when max_seqs are open. */
int seq_open(struct model *m, uint32_t *seq);
void seq_close(struct model *m, uint32_t seq);         /* gives its pages back; takes MODEL_NO_SEQ */
uint32_t seq_len(const struct model *m, uint32_t seq); /* tokens whose keys and values it holds */
/* Makes sure of pages for n_tokens in all, so that appending up to there cannot fail. -ENOSPC: too few pages free (the
 * sequence is as before), -E2BIG: beyond max_context. */
int seq_reserve(struct model *m, uint32_t seq, uint32_t n_tokens);
/* Forgets the tokens from n on; whole pages beyond are given back. n at most seq_len. */
void seq_truncate(struct model *m, uint32_t seq, uint32_t n);
/* A new sequence with the same tokens: full pages are shared, the last partial one is copied. Then reserved as
 * seq_reserve(n_tokens) would. -ENOSPC as above. */
int seq_fork(struct model *m, uint32_t seq, uint32_t n_tokens, uint32_t *out);

uint32_t kv_pages_free(const struct model *m); /* that no sequence holds, those kept for later ones among them */
uint32_t kv_pages_for(uint32_t n_tokens);      /* pages that hold n_tokens */

/* ---- the prefix cache ----
 * A full page may be kept under a key, and sequences with the same tokens before them take it instead of computing it;
 * the bits are the same. A kept page is never written. Pages that are kept and held by no sequence count as free: they
 * are given out when no others are left, the least recently used first and a page before those it follows on. */

struct model_prefix_pet {
    struct hash hash; /* of its content */
    float weight;
};
/* What the key of a sequence's first page begins from: all that its keys and values depend on beside its tokens, and
 * the tenant. Keys are good for this struct model only. Any thread. */
void model_prefix_root(const struct model *m, uint32_t tenant, const struct model_prefix_pet *pets, uint32_t n_pets,
                       struct hash *out);
/* The key of a page: `before` is that of the page before it (or the root), tokens[KERN_PAGE_TOKENS]. Any thread. */
void prefix_key(const struct hash *before, const int32_t *tokens, struct hash *out);
/* key[0] is the root; fills key[1 + i] for each full page i of the tokens. Any thread. */
void prefix_keys(const int32_t *tokens, uint32_t n_tokens, struct hash *key);

/* Keeps page i of the sequence, which is full, under its key. Where another page is kept under that key, the sequence
 * takes that one and gives its own back. Nothing happens when the page before is not kept. Engine thread, as below. */
void seq_keep(struct model *m, uint32_t seq, uint32_t i, const struct hash *key);
/* Lengthens the sequence by kept pages as far as there are: key[i] is that of page first + i, n of them, and the tokens
 * before page `first` are there. A page that the sequence has already for that place is given back for the kept one;
 * beyond its pages, more are taken. Returns the sequence's length. */
uint32_t seq_attach(struct model *m, uint32_t seq, uint32_t first, const struct hash *key, uint32_t n);
/* How many pages, from the first of keys on, are kept and held by sequences: attaching those takes nothing from
 * kv_pages_free. */
uint32_t kv_held(const struct model *m, const struct hash *key, uint32_t n);
uint32_t kv_pages_idle(const struct model *m); /* kept, and held by no sequence */

/* ---- the step (engine thread) ---- */

struct model_pet {
    const struct kern_slot *slot;
    float weight;
};

/* What a span does with its rows' hidden states, after the final norm. */
enum model_pool {
    MODEL_POOL_NONE,
    MODEL_POOL_SUM, /* adds them to pooled, in the order of the rows */
    MODEL_POOL_LAST /* writes the last row's into pooled */
};

struct model_span {
    uint32_t seq;
    const int32_t *tokens; /* appended to seq: n_tokens >= 1, ids in [0, vocab); pages must be reserved */
    uint32_t n_tokens;
    const struct model_pet *pets; /* applied in this order, after recovery */
    uint32_t n_pets;
    uint32_t n_logits;                /* logits of the last n_logits tokens of the span: 0, 1, or up to n_tokens */
    const struct kern_sample *sample; /* [n_logits], or NULL: logits only */
    struct kern_sampled *sampled;     /* [n_logits] out */
    enum model_pool pool;
    double *pooled; /* [hidden]; where pool is not NONE */
};

/* One pass over all spans (at most one a sequence). Limits: max_rows, max_logits in the sum. -EINVAL says which rule a
 * caller broke; nothing is appended then. */
int model_step(struct model *m, const struct model_span *spans, uint32_t n_spans, struct err *e);

/* After a step without sampling: logits of the i-th logit row (spans in order), f32 [vocab], copied to dst. Sampling
 * changes logits in place, so after one they are not the model's. */
void model_logits(const struct model *m, uint32_t i, float *dst);

/* As model_step, and shows the observer the input of every linear layer: sites [site, site + n_sites) are fed x, f32
 * [rows][k] (host memory, the observer's during the call). For calibration; slower than model_step. */
typedef void (*model_observer)(void *ctx, uint32_t site, uint32_t n_sites, const float *x, uint32_t rows, uint32_t k);
int model_step_observed(struct model *m, const struct model_span *spans, uint32_t n_spans, model_observer fn, void *ctx,
                        struct err *e);

/* How many different resident modules the last step's rows used (recovery not counted). */
uint32_t model_step_slots(const struct model *m);

#endif
