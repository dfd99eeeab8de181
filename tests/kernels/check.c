/* check.c - the kernel checker: every entry of every level against the scalar reference, and the same for time.
 *
 *     check [--bench] [--level scalar|avx2|vnni|amx] [--filter PART]
 *
 * One thread (the regions under test start their own). Buffers come from check_alloc, each in a mapping of its own
 * with unreadable pages at both ends; a list of the live ones stays here. Ends with the counts; the exit status is 0
 * when no case failed, 1 when one did, 2 for a wrong command line.
 */
#include "tests/kernels/check.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define GARBAGE 0xFB
#define CANARY 0xC5

struct guard {
    struct guard *next;
    uint8_t *map, *p;
    size_t map_bytes, bytes, usable, page;
};

static struct guard *guards;
static unsigned lines_of_case;

bool check_case(struct check *c, enum kern_level l, const char *fmt, ...)
{
    if (c->failed)
        c->n_failed++;
    c->failed = false;
    int n = snprintf(c->name, sizeof c->name, "%s/", kern_level_name(l));
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(c->name + n, sizeof c->name - (size_t)n, fmt, ap);
    va_end(ap);
    if (c->only_level >= 0 && c->only_level != (int)l)
        return false;
    if (c->filter && !strstr(c->name, c->filter))
        return false;
    c->n_cases++;
    lines_of_case = 0;
    c->rng = 0x9E3779B97F4A7C15u;
    for (const char *s = c->name + n; *s; s++) /* without the level: all levels see the same numbers */
        c->rng = (c->rng ^ (uint8_t)*s) * 0x100000001B3u;
    return true;
}

void check_fail(struct check *c, const char *fmt, ...)
{
    c->failed = true;
    if (lines_of_case++ >= 5)
        return;
    fprintf(stderr, "FAIL %s: ", c->name);
    va_list ap;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}

static void *guard_make(size_t bytes, size_t usable, size_t align)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t body = (usable + page - 1) / page * page;
    struct guard *g = calloc(1, sizeof *g);
    if (!g)
        abort();
    g->page = page;
    g->map_bytes = body + 2 * page;
    g->map = mmap(NULL, g->map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (g->map == MAP_FAILED || mprotect(g->map, page, PROT_NONE) || mprotect(g->map + page + body, page, PROT_NONE)) {
        perror("check: guarded memory");
        exit(2);
    }
    g->bytes = bytes;
    g->usable = usable;
    g->p = g->map + page + body - usable;
    if ((uintptr_t)g->p % align)
        abort();
    memset(g->map + page, CANARY, body);
    memset(g->p, GARBAGE, bytes);
    g->next = guards;
    guards = g;
    return g->p;
}

void *check_alloc(struct check *c, size_t bytes)
{
    (void)c;
    return guard_make(bytes, (bytes + 63) & ~(size_t)63, 64);
}

void *check_alloc_end(struct check *c, size_t bytes, size_t align)
{
    (void)c;
    return guard_make(bytes, bytes, align);
}

static bool canaries_intact(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] != CANARY)
            return false;
    return true;
}

void check_free(struct check *c, void *p)
{
    if (!p)
        return;
    struct guard **at = &guards;
    while (*at && (*at)->p != p)
        at = &(*at)->next;
    struct guard *g = *at;
    if (!g)
        abort();
    if (!canaries_intact(g->map + g->page, (size_t)(g->p - g->map) - g->page))
        check_fail(c, "wrote before a buffer of %zu bytes", g->bytes);
    if (!canaries_intact(g->p + g->bytes, g->usable - g->bytes))
        check_fail(c, "wrote past a buffer of %zu bytes", g->bytes);
    *at = g->next;
    munmap(g->map, g->map_bytes);
    free(g);
}

bool check_near(struct check *c, const char *what, const float *got, const float *want, size_t n, double abs_tol,
                double rel_tol)
{
    size_t bad = 0, first = 0;
    for (size_t i = 0; i < n; i++) {
        double g = got[i], w = want[i];
        bool ok = isnan(w) ? isnan(g) : isinf(w) ? g == w : fabs(g - w) <= abs_tol + rel_tol * fabs(w);
        if (!ok && !bad++)
            first = i;
    }
    if (bad)
        check_fail(c, "%s: %zu of %zu differ, first [%zu]: %.9g, not %.9g", what, bad, n, first, (double)got[first],
                   (double)want[first]);
    return !bad;
}

bool check_same(struct check *c, const char *what, const void *got, const void *want, size_t bytes)
{
    const uint8_t *g = got, *w = want;
    for (size_t i = 0; i < bytes; i++)
        if (g[i] != w[i]) {
            check_fail(c, "%s: byte %zu of %zu differs (%02x, not %02x)", what, i, bytes, g[i], w[i]);
            return false;
        }
    return true;
}

uint64_t check_bits(struct check *c)
{
    uint64_t x = c->rng += 0x9E3779B97F4A7C15u; /* splitmix64 */
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

uint32_t check_below(struct check *c, uint32_t n)
{
    return (uint32_t)((check_bits(c) >> 32) * n >> 32);
}

float check_unit(struct check *c)
{
    return (float)(check_bits(c) >> 40) * 0x1p-23f - 1.0f;
}

float check_normal(struct check *c)
{
    float s = 0;
    for (int i = 0; i < 4; i++)
        s += check_unit(c);
    return s * 0.8660254f; /* variance of one: 1/3 */
}

void check_fill(struct check *c, float *x, size_t n, float spread)
{
    for (size_t i = 0; i < n; i++)
        x[i] = check_normal(c) * spread;
}

static double now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double time_by(clockid_t clock, void (*fn)(void *ctx), void *ctx)
{
    unsigned calls = 0, n = 0;
    double start, best = 1e30;
    fn(ctx);
    start = now(clock);
    do {
        fn(ctx);
        calls++;
    } while (now(clock) - start < 1e-3);
    start = now(clock);
    while (n < 5 || now(clock) - start < 0.3) {
        double t0 = now(clock);
        for (unsigned i = 0; i < calls; i++)
            fn(ctx);
        double t = (now(clock) - t0) / calls;
        best = t < best ? t : best;
        n++;
    }
    return best;
}

double check_time(void (*fn)(void *ctx), void *ctx)
{
    return time_by(CLOCK_THREAD_CPUTIME_ID, fn, ctx);
}

double check_time_wall(void (*fn)(void *ctx), void *ctx)
{
    return time_by(CLOCK_MONOTONIC, fn, ctx);
}

void check_report(struct check *c, double seconds, double bytes, double ops)
{
    printf("%-44s %10.1f us", c->name, seconds * 1e6);
    if (bytes > 0)
        printf(" %8.2f GB/s", bytes / seconds * 1e-9);
    if (ops > 0)
        printf(" %9.1f GOPS", ops / seconds * 1e-9);
    putchar('\n');
    fflush(stdout);
}

static int usage(void)
{
    fputs("usage: check [--bench] [--level scalar|avx2|vnni|amx] [--filter PART]\n", stderr);
    return 2;
}

static bool parse(struct check *c, int argc, char **argv)
{
    c->only_level = -1;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--bench")) {
            c->bench = true;
        } else if (!strcmp(argv[i], "--filter") && i + 1 < argc) {
            c->filter = argv[++i];
        } else if (!strcmp(argv[i], "--level") && i + 1 < argc) {
            i++;
            for (int l = 0; l < KERN_LEVELS; l++)
                if (!strcmp(argv[i], kern_level_name((enum kern_level)l)))
                    c->only_level = l;
            if (c->only_level < 0)
                return false;
        } else {
            return false;
        }
    }
    return true;
}

int main(int argc, char **argv)
{
    struct check c = {0};
    if (!parse(&c, argc, argv))
        return usage();
    c.best = cpu_best_level();
    if (c.only_level > (int)c.best) {
        fprintf(stderr, "this machine goes up to %s\n", kern_level_name(c.best));
        return 77;
    }
    for (int l = 0; l <= (int)c.best; l++)
        cpu_table_fill(&c.tables[l], (enum kern_level)l);
    check_linear(&c);
    check_region(&c);

    check_sequence(&c);
    if (c.failed)
        c.n_failed++;
    printf("%u %s up to %s, %u failed\n", c.n_cases, c.bench ? "times" : "cases", kern_level_name(c.best), c.n_failed);
    return c.n_failed != 0;
}
