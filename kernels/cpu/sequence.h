/* sequence.h - inside kernels/cpu only: how low-rank factors and KV pages lie in memory, and sampling's shared part.
 *
 * Low rank, exact ranks, k and n padded with zeros to 32:
 *   A  [rank/8][k/32][8 or what is left][32]     B  [n/32][rank][32]
 * A bf16 group of 32 holds elements j and j + 16 in one 32-bit word (low half, high half), so that a shift and a mask
 * widen it at any vector width; an f32 group lies in order.
 *
 * One KV head's block in a layer's part of a page (d16: head_dim rounded up to 16):
 *   F32   K [d16][32 tokens]                V [32][d16]
 *   BF16  K [d16/2][32 tokens][2 dims]      V [32/2][d16][2 tokens]
 *   S8    K [d16][32 tokens]                V [32][d16], then f32 scales: K [32], V [32]
 */
#ifndef CPET_KERNELS_CPU_SEQUENCE_H
#define CPET_KERNELS_CPU_SEQUENCE_H

#include "common/num.h"
#include "kernels/cpu/cpu.h"

#define LR_RANK_BLOCK 8u
#define LR_WIDE 32u

static inline size_t lr_pad(uint32_t n)
{
    return ((size_t)n + LR_WIDE - 1) / LR_WIDE * LR_WIDE;
}

static inline size_t lr_place(enum kern_type type, uint32_t j)
{
    return type == KERN_BF16 ? (j % 16) * 2 + j / 16 : j;
}

/* Ranks in the block of 8 that r is in. */
static inline uint32_t lr_block_ranks(uint32_t rank, uint32_t r)
{
    uint32_t r0 = r / LR_RANK_BLOCK * LR_RANK_BLOCK;
    return rank - r0 < LR_RANK_BLOCK ? rank - r0 : LR_RANK_BLOCK;
}

static inline size_t lr_a_index(enum kern_type type, uint32_t rank, uint32_t k_all, uint32_t r, uint32_t k)
{
    size_t r0 = r / LR_RANK_BLOCK * LR_RANK_BLOCK;
    return r0 * lr_pad(k_all) + ((size_t)(k / LR_WIDE) * lr_block_ranks(rank, r) + (r - r0)) * LR_WIDE +
           lr_place(type, k % LR_WIDE);
}

static inline size_t lr_b_index(enum kern_type type, uint32_t rank, uint32_t n, uint32_t r)
{
    return ((size_t)(n / LR_WIDE) * rank + r) * LR_WIDE + lr_place(type, n % LR_WIDE);
}

static inline uint32_t kv_d16(uint32_t head_dim)
{
    return (head_dim + 15u) & ~15u;
}

static inline size_t kv_side_bytes(enum kern_type type, uint32_t head_dim)
{
    static const size_t word[3] = {[KERN_F32] = 4, [KERN_BF16] = 2, [KERN_S8] = 1};
    return word[type] * KERN_PAGE_TOKENS * kv_d16(head_dim);
}

static inline size_t kv_head_bytes(enum kern_type type, uint32_t head_dim)
{
    size_t scales = type == KERN_S8 ? 2 * KERN_PAGE_TOKENS * sizeof(float) : 0;
    return 2 * kv_side_bytes(type, head_dim) + scales;
}

/* What the levels lend to sampling. x may hold NaN only in max_of, next_ge (where it is never found) and tidy. */
struct sample_prims {
    float (*max_of)(const float *x, uint32_t n);                          /* -inf when nothing is above it */
    void (*tidy)(float *x, uint32_t n);                                   /* NaN becomes -inf, +inf the largest float */
    uint32_t (*next_ge)(const float *x, uint32_t i, uint32_t n, float v); /* first j >= i with x[j] >= v, or n */
    /* Copies the values >= v from x[*i] on to held, at most `room` (32 or more), and moves *i on; how many. */
    uint32_t (*take)(const float *x, uint32_t *i, uint32_t n, float v, float *held, uint32_t room);
    void (*mask)(float *x, uint32_t n, const uint32_t *bits); /* -inf where the bit is clear */
    void (*cut)(float *x, uint32_t n, float v);               /* -inf where x < v */
    /* w = exp((x - max) / temperature); returns their sum, in an order fixed by n */
    float (*weights)(float *w, const float *x, uint32_t n, float max, float temperature);
};

void cpu_sample_with(const struct sample_prims *p, float *logits, uint32_t vocab, const struct kern_sample *s,
                     struct kern_sampled *out);

#endif
