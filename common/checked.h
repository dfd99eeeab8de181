/* checked.h - arithmetic on sizes that come from outside. Each returns true when the result did not fit. */
#ifndef CPET_COMMON_CHECKED_H
#define CPET_COMMON_CHECKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool ck_add(size_t a, size_t b, size_t *out)
{
    return __builtin_add_overflow(a, b, out);
}

static inline bool ck_mul(size_t a, size_t b, size_t *out)
{
    return __builtin_mul_overflow(a, b, out);
}

/* Rounds a up to a multiple of m (a power of two). */
static inline bool ck_round_up(size_t a, size_t m, size_t *out)
{
    size_t t;
    if (__builtin_add_overflow(a, m - 1, &t))
        return true;
    *out = t & ~(m - 1);
    return false;
}

/* True when [off, off + len) does not lie inside [0, total). */
static inline bool ck_outside(size_t off, size_t len, size_t total)
{
    return off > total || len > total - off;
}

#endif
