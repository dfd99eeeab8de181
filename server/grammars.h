/* grammars.h - compiled forms of answers, kept for the requests that ask for the same again. Any thread.
 *
 * A grammar is found by the hash of its kind and source. The cache is bounded in bytes; the one that was used longest
 * ago goes first. Its mutex is held for pointers only: compiling happens outside, and two requests that compile the
 * same at once both use what the first one put in.
 */
#ifndef CPET_SERVER_GRAMMARS_H
#define CPET_SERVER_GRAMMARS_H

#include <stdint.h>

#include "common/hash.h"
#include "model/grammar.h"
#include "proto/proto.h"

struct grammars;

/* v must outlive it and every grammar that it gave out. NULL: memory is out. */
struct grammars *grammars_create(const struct grammar_vocab *v, size_t max_bytes);
void grammars_free(struct grammars *c); /* takes NULL; grammars in use live on */

/* What q stands for in the cache. q->kind is not REQ_ANY. */
void grammars_key(const struct req_grammar *q, struct hash *key);
/* With a reference for the caller; NULL: it must be compiled. */
struct grammar *grammars_find(struct grammars *c, const struct hash *key);
/* Compiles and keeps it; *out with a reference for the caller. Takes long: never on the loop. -EINVAL with param for
 * what is wrong in the client's schema or expression, -ENOMEM. */
int grammars_compile(struct grammars *c, const struct req_grammar *q, const struct hash *key, struct grammar **out,
                     struct err *e);

struct grammars_stats {
    uint64_t hits, misses;
    uint32_t n;
    size_t bytes;
};
void grammars_stats(struct grammars *c, struct grammars_stats *out);

#endif
