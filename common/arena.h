/* arena.h - memory that is dropped at once.
 *
 * A request's structs, strings and token lists live in one arena with a byte limit; beyond it an allocation answers
 * NULL, which callers turn into an HTTP error. One thread at a time.
 */
#ifndef CPET_COMMON_ARENA_H
#define CPET_COMMON_ARENA_H

#include <stdbool.h>
#include <stddef.h>

struct arena;

/* limit: the most bytes ever handed out (0: no limit). NULL when memory is out. */
struct arena *arena_create(size_t limit);
void arena_free(struct arena *a); /* takes NULL */

/* 16-byte aligned, not cleared; NULL past the limit or out of memory. n = 0 gives a valid pointer. */
void *arena_alloc(struct arena *a, size_t n);
/* count * size bytes, cleared; NULL on overflow too. */
void *arena_calloc(struct arena *a, size_t count, size_t size);
void *arena_memdup(struct arena *a, const void *p, size_t n);
/* A terminated copy of s[0..n). */
char *arena_strndup(struct arena *a, const char *s, size_t n);
char *arena_printf(struct arena *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

size_t arena_used(const struct arena *a);

/* Whether an allocation failed because the system had no memory, rather than for the limit. */
bool arena_no_memory(const struct arena *a);

#endif
