/* check.h - what the kernel checker's parts share: one case a kernel, level and shape, guarded buffers, comparisons
 * and times. check.c holds main and these helpers; check_linear.c and check_sequence.c hold the cases.
 *
 * A part loops `for (enum kern_level l = ...; l <= c->best; l++)`, asks check_case(c, l, "attn/s8 rows=%u", ...)
 * whether that case is wanted (filter and --level), runs it, and calls check_fail or a comparison; the case counts as
 * failed when any of them failed in it. Reference results come from check_table(c, KERN_SCALAR).
 */
#ifndef CPET_TESTS_KERNELS_CHECK_H
#define CPET_TESTS_KERNELS_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu/cpu.h"

struct check {
    enum kern_level best; /* of this machine */
    int only_level;       /* --level: the enum's value; -1: all */
    const char *filter;   /* --filter: part of a case's name; NULL: all */
    bool bench;           /* --bench: times instead of tests */
    uint64_t rng;         /* state: fixed at the start of each case, so that a case alone sees the same numbers */
    char name[128];       /* the case at hand */
    bool failed;          /* it */
    unsigned n_cases, n_failed;
    struct cpu_table tables[KERN_LEVELS];
};

/* The parts. Each runs its cases, or its times when c->bench. */
void check_linear(struct check *c);
void check_region(struct check *c);
void check_sequence(struct check *c);

/* Opens a case: false when it is filtered out. The name is prefixed with the level's. Seeds c->rng from the name. */
bool check_case(struct check *c, enum kern_level l, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* The case at hand fails, with a line on stderr (the first 5 of a case). */
void check_fail(struct check *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static inline const struct cpu_table *check_table(const struct check *c, enum kern_level l)
{
    return &c->tables[l];
}

/* Guarded memory: 64-byte aligned, an unreadable page before it and one beyond its last 64 bytes; the bytes between
 * are canaries that check_free verifies (a changed one fails the case). Filled with 0xFB: garbage, NaN as f32.
 * Ends the program when memory is out. bytes may be 0. */
void *check_alloc(struct check *c, size_t bytes);
/* As check_alloc, but ends exactly at the unreadable page; aligned to `align` (bytes must be a multiple of it). */
void *check_alloc_end(struct check *c, size_t bytes, size_t align);
void check_free(struct check *c, void *p); /* takes NULL */

/* Comparisons; n values. near: |got - want| <= abs + rel * |want|, NaN only where want is NaN. */
bool check_near(struct check *c, const char *what, const float *got, const float *want, size_t n, double abs_tol,
                double rel_tol);
bool check_same(struct check *c, const char *what, const void *got, const void *want, size_t bytes);

/* Numbers. */
uint64_t check_bits(struct check *c);
uint32_t check_below(struct check *c, uint32_t n);                  /* in [0, n) */
float check_unit(struct check *c);                                  /* in [-1, 1) */
float check_normal(struct check *c);                                /* about a normal distribution, within 6 */
void check_fill(struct check *c, float *x, size_t n, float spread); /* normal times spread */

/* Calls fn(ctx) for about 0.3 s and answers the seconds of a call in the fastest batch of them (about 1 ms each):
 * processor time of this thread, so that other programs on the machine show little. */
double check_time(void (*fn)(void *ctx), void *ctx);
/* The same by the clock on the wall, for what runs on several threads. */
double check_time_wall(void (*fn)(void *ctx), void *ctx);
/* Prints "name  time  GB/s  GOPS" of the case at hand (0: left out). */
void check_report(struct check *c, double seconds, double bytes, double ops);

#endif
