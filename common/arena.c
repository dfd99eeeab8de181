/* arena.c - a bump allocator over a list of blocks.
 *
 * Owned by one request (or one load) and used by one thread at a time. Blocks grow by doubling up to 1 MiB; an
 * allocation larger than a block gets its own. Nothing is freed before arena_free. `used` counts what was handed
 * out, rounded to 16 bytes, and never exceeds the limit.
 */
#include "common/arena.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/checked.h"

struct block {
    struct block *next;
    size_t cap, len;
    _Alignas(16) unsigned char data[];
};

struct arena {
    struct block *head;
    size_t used, limit, grow;
    bool no_memory;
};

struct arena *arena_create(size_t limit)
{
    struct arena *a = calloc(1, sizeof *a);
    if (a) {
        a->limit = limit ? limit : SIZE_MAX;
        a->grow = 4096;
    }
    return a;
}

void arena_free(struct arena *a)
{
    if (!a)
        return;
    for (struct block *b = a->head, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    free(a);
}

static struct block *block_add(struct arena *a, size_t n)
{
    size_t cap = n > a->grow ? n : a->grow, total;
    if (ck_add(cap, sizeof(struct block), &total))
        return NULL;
    struct block *b = malloc(total);
    if (!b) {
        a->no_memory = true;
        return NULL;
    }
    b->cap = cap;
    b->len = 0;
    b->next = a->head;
    a->head = b;
    if (a->grow < (1u << 20))
        a->grow *= 2;
    return b;
}

void *arena_alloc(struct arena *a, size_t n)
{
    size_t r;
    if (ck_round_up(n ? n : 1, 16, &r) || r > a->limit - a->used)
        return NULL;
    struct block *b = a->head;
    if (!b || b->cap - b->len < r) {
        b = block_add(a, r);
        if (!b)
            return NULL;
    }
    void *p = b->data + b->len;
    b->len += r;
    a->used += r;
    return p;
}

void *arena_calloc(struct arena *a, size_t count, size_t size)
{
    size_t n;
    if (ck_mul(count, size, &n))
        return NULL;
    void *p = arena_alloc(a, n);
    if (p)
        memset(p, 0, n);
    return p;
}

void *arena_memdup(struct arena *a, const void *p, size_t n)
{
    void *q = arena_alloc(a, n);
    if (q && n)
        memcpy(q, p, n);
    return q;
}

char *arena_strndup(struct arena *a, const char *s, size_t n)
{
    if (n == SIZE_MAX)
        return NULL;
    char *p = arena_alloc(a, n + 1);
    if (p) {
        if (n)
            memcpy(p, s, n);
        p[n] = 0;
    }
    return p;
}

char *arena_printf(struct arena *a, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    char *p = n < 0 ? NULL : arena_alloc(a, (size_t)n + 1);
    if (p)
        vsnprintf(p, (size_t)n + 1, fmt, again);
    va_end(again);
    return p;
}

size_t arena_used(const struct arena *a)
{
    return a->used;
}

bool arena_no_memory(const struct arena *a)
{
    return a->no_memory;
}
