/* sequence_pack.c - sizes and packing of low-rank factors, and the size of a layer's part of a KV page.
 *
 * Any thread may call these; they touch only the memory that they are given. The layouts are those of sequence.h and
 * the same for every level, so that a packed module or a cached page outlives a change of level.
 */
#include <string.h>

#include "common/checked.h"
#include "kernels/cpu/sequence.h"

static bool lr_sizes(enum kern_type type, uint32_t rank, uint32_t k, uint32_t n, size_t *a, size_t *b)
{
    size_t word = type == KERN_BF16 ? 2 : 4;
    return ck_mul(lr_pad(k), rank, a) || ck_mul(*a, word, a) || ck_mul(lr_pad(n), rank, b) || ck_mul(*b, word, b);
}

size_t kern_lr_bytes(enum kern_type type, uint32_t rank, uint32_t k, uint32_t n)
{
    size_t a, b, all;
    if (lr_sizes(type, rank, k, n, &a, &b) || ck_add(a, b, &all))
        return 0;
    return all;
}

static inline __attribute__((always_inline)) void put(enum kern_type type, void *dst, size_t i, float v)
{
    if (type == KERN_BF16)
        ((uint16_t *)dst)[i] = f32_to_bf16(v);
    else
        ((float *)dst)[i] = v;
}

static inline __attribute__((always_inline)) void pack(enum kern_type type, const struct kern_lr *l, const float *a,
                                                       const float *b)
{
    for (uint32_t r = 0; r < l->rank; r++, a += l->k) {
        size_t group = lr_a_index(type, l->rank, l->k, r, 0);
        size_t step = (size_t)lr_block_ranks(l->rank, r) * LR_WIDE;
        for (uint32_t k = 0; k < l->k; k += LR_WIDE, group += step)
            for (uint32_t j = 0; j < LR_WIDE && k + j < l->k; j++)
                put(type, (void *)l->a.a, group + lr_place(type, j), a[k + j]);
    }
    for (uint32_t n = 0; n < l->n; n++, b += l->rank) {
        size_t first = lr_b_index(type, l->rank, n, 0);
        for (uint32_t r = 0; r < l->rank; r++)
            put(type, (void *)l->b.a, first + (size_t)r * LR_WIDE, b[r]);
    }
}

void kern_lr_pack(struct kern_dev *d, struct kern_lr *l, enum kern_type type, uint32_t rank, uint32_t k, uint32_t n,
                  const float *a, const float *b, kmem at)
{
    (void)d;
    size_t a_bytes = 0, b_bytes = 0;
    lr_sizes(type, rank, k, n, &a_bytes, &b_bytes);
    l->type = type;
    l->rank = rank;
    l->k = k;
    l->n = n;
    l->a = at;
    l->b = kmem_at(at, a_bytes);
    memset((void *)at.a, 0, a_bytes + b_bytes);
    if (type == KERN_BF16)
        pack(KERN_BF16, l, a, b);
    else
        pack(KERN_F32, l, a, b);
}

size_t kern_lr_scratch(uint32_t max_group_rows, uint32_t n_sites, uint32_t max_rank)
{
    size_t n;
    if (ck_mul(max_group_rows, n_sites, &n) || ck_mul(n, max_rank, &n) || ck_mul(n, sizeof(float), &n) ||
        ck_round_up(n, 64, &n))
        return 0;
    return n ? n : 64;
}

size_t kern_kv_layer_bytes(enum kern_type type, uint32_t n_kv_heads, uint32_t head_dim)
{
    size_t all;
    if (head_dim > UINT32_MAX - 15 || ck_mul(kv_head_bytes(type, head_dim), n_kv_heads, &all))
        return 0;
    return all;
}
