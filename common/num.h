/* num.h - 16-bit floats and the counter-based random numbers (style rule 20: (seed, sequence, position)). */
#ifndef CPET_COMMON_NUM_H
#define CPET_COMMON_NUM_H

#include <stdint.h>
#include <string.h>

static inline float f32_of_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint32_t f32_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float bf16_to_f32(uint16_t h)
{
    return f32_of_bits((uint32_t)h << 16);
}

/* Round to nearest even; NaN stays a (quiet) NaN. */
static inline uint16_t f32_to_bf16(float f)
{
    uint32_t u = f32_bits(f);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u)
        return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}

static inline float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exp = (h >> 10) & 0x1Fu, man = h & 0x3FFu;
    if (exp == 31)
        return f32_of_bits(sign | 0x7F800000u | man << 13);
    if (exp)
        return f32_of_bits(sign | (exp + 112u) << 23 | man << 13);
    float f = (float)man * 0x1p-24f;
    return sign ? -f : f;
}

/* Round to nearest even, overflow to infinity. */
static inline uint16_t f32_to_f16(float f)
{
    uint32_t u = f32_bits(f), sign = (u >> 16) & 0x8000u;
    u &= 0x7FFFFFFFu;
    if (u > 0x7F800000u)
        return (uint16_t)(sign | 0x7E00u);
    if (u >= 0x477FF000u)
        return (uint16_t)(sign | 0x7C00u);
    if (u < 0x38800000u) {
        float v = f32_of_bits(u) + 0.5f; /* aligns the 2^-24 grid with the mantissa's last bit */
        return (uint16_t)(sign | (f32_bits(v) - 0x3F000000u));
    }
    u += 0xFFFu + ((u >> 13) & 1u);
    return (uint16_t)(sign | ((u - 0x38000000u) >> 13));
}

/* 64 random bits from a counter: two rounds of a murmur-style finalizer over the three words. Not for secrets. */
static inline uint64_t rng_bits(uint64_t seed, uint64_t sequence, uint64_t position)
{
    uint64_t x = seed * 0x9E3779B97F4A7C15u + sequence * 0xD1B54A32D192ED03u + position * 0x8CB92BA72F3D8DD7u +
                 0x2545F4914F6CDD1Du;
    for (int i = 0; i < 2; i++) {
        x ^= x >> 32;
        x *= 0xD6E8FEB86659FD93u;
        x ^= x >> 32;
        x *= 0xD6E8FEB86659FD93u;
        x ^= x >> 32;
        x += sequence ^ (position << 32 | position >> 32);
    }
    return x;
}

/* Uniform in [0, 1), 24 bits. */
static inline float rng_unit(uint64_t seed, uint64_t sequence, uint64_t position)
{
    return (float)(rng_bits(seed, sequence, position) >> 40) * 0x1p-24f;
}

#endif
