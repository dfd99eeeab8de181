/* prefix.h - the table of the prefix cache: which pages are kept under which key, and which of them are idle.
 *
 * Inside model/ (kv.c owns one; the scheduler's tests use it in their stand-in for the model). It knows nothing of
 * sequences and counts no references: its user says when a kept page's last sequence lets go of it (prefix_idle) and
 * when one takes it again (prefix_use). All memory is taken by prefix_open; every function but prefix_open is O(1).
 */
#ifndef CPET_MODEL_PREFIX_H
#define CPET_MODEL_PREFIX_H

#include <stdbool.h>
#include <stdint.h>

#include "common/hash.h"

#define PREFIX_NONE UINT32_MAX

struct prefix;

/* For pages 0 to n_pages - 1. NULL when memory is out. */
struct prefix *prefix_open(uint32_t n_pages);
void prefix_close(struct prefix *p); /* takes NULL */

/* The page kept under that key, or PREFIX_NONE. */
uint32_t prefix_find(const struct prefix *p, const struct hash *key);
bool prefix_has(const struct prefix *p, uint32_t page);
/* The page before a kept page, itself kept; PREFIX_NONE: it begins a prompt. */
uint32_t prefix_parent(const struct prefix *p, uint32_t page);

/* Keeps a page, which a sequence holds. The key must not be there yet, the parent must be kept. */
void prefix_put(struct prefix *p, uint32_t page, const struct hash *key, uint32_t parent);
/* No sequence holds the kept page any more: it is now the one used last. Children must become idle before parents. */
void prefix_idle(struct prefix *p, uint32_t page);
/* A sequence takes the idle page. */
void prefix_use(struct prefix *p, uint32_t page);

uint32_t prefix_n_idle(const struct prefix *p);
/* Forgets the idle page used longest ago and returns it. There must be one. */
uint32_t prefix_evict(struct prefix *p);

#endif
