/* layout.h - where W[n][k] lies in the packed matrices; inside kernels/cpu only.
 *
 *     S8    [n/16][kpad/4][16][4]  u8 = s8 + 128        one 64-byte line: 16 outputs, 4 of k
 *     BF16  [n/16][kpad/2][16][2]                       one line: 16 outputs, 2 of k
 *     F32   [n/16][k][16]                               one line: 16 outputs, 1 of k
 *
 * The outputs are vector lanes. n is padded to 16 (zeros as values), k to 64 for S8 and BF16, so that sixteen lines
 * are one AMX tile. Scales and bias follow, f32 [n padded to 16].
 */
#ifndef CPET_KERNELS_CPU_LAYOUT_H
#define CPET_KERNELS_CPU_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

static inline uint32_t layout_kpad(uint32_t k)
{
    return (k + 63) & ~63u;
}

/* In elements from the start of the matrix. */
static inline size_t layout_s8(uint32_t n, uint32_t k, uint32_t width)
{
    return (size_t)(n & ~15u) * layout_kpad(width) + (size_t)(k / 4) * 64 + (n & 15) * 4 + (k & 3);
}

static inline size_t layout_bf16(uint32_t n, uint32_t k, uint32_t width)
{
    return (size_t)(n & ~15u) * layout_kpad(width) + (size_t)(k / 2) * 32 + (n & 15) * 2 + (k & 1);
}

static inline size_t layout_f32(uint32_t n, uint32_t k, uint32_t width)
{
    return (size_t)(n & ~15u) * width + (size_t)k * 16 + (n & 15);
}

#endif
