/* grammar.h - what a sequence may say next: JSON, JSON schemas, regular expressions and choices as masks of tokens.
 *
 * A grammar is compiled once, by any thread, and is then shared by any number of sequences. A state is where one
 * sequence stands. For each state there is the set of tokens that may come next, as the bit mask that kern_sample
 * takes.
 *
 * What holds: every text that ends where the mask allowed an end token belongs to the grammar (a JSON text validates
 * against its schema), and from every state that grammar_accept lets a sequence reach there is a way to such an end.
 * What a schema or a regular expression asks for and this code cannot hold exactly is refused at compile time, by name
 * and place. docs/structured-output.md has the list, the order of keys and the whitespace.
 */
#ifndef CPET_MODEL_GRAMMAR_H
#define CPET_MODEL_GRAMMAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "model/tokenizer.h"

struct grammar; /* compiled; immutable but for its cache of masks, which has a mutex; reference-counted; any thread */
struct grammar_vocab; /* the tokenizer's tokens as a trie of bytes; made once at load; immutable; any thread */
struct grammar_state; /* where one sequence stands; one thread at a time (the engine) */

enum grammar_kind {
    GRAMMAR_JSON_OBJECT, /* any JSON object; text is not read */
    GRAMMAR_JSON_SCHEMA, /* a JSON value valid against the schema in text */
    GRAMMAR_REGEX,       /* a text that the regular expression in text matches as a whole */
    GRAMMAR_CHOICE       /* one of choice[0..n_choices), byte for byte */
};

struct grammar_text {
    const char *ptr; /* UTF-8; not terminated */
    size_t n;
};

struct grammar_spec {
    enum grammar_kind kind;
    struct grammar_text text;          /* the schema (JSON) or the regular expression */
    const struct grammar_text *choice; /* of GRAMMAR_CHOICE */
    size_t n_choices;
};

struct grammar_limits { /* zero: the default in brackets */
    size_t max_bytes;   /* of the source, all choices together [256 KiB] */
    size_t max_nodes;   /* distinct schemas and shapes after compilation [20,000] */
    size_t max_states;  /* of one string's or key's automaton, and four times that of a number's [20,000] */
    size_t max_memory;  /* bytes that the compiled grammar takes, without its cache [64 MiB] */
    size_t max_cache;   /* bytes of masks that it keeps for reuse [8 MiB] */
    uint64_t max_steps; /* work of the compiler; the default is a few seconds at worst [40,000,000] */
    unsigned max_depth; /* of the schema's JSON, and of groups in a regular expression [64] */
};

/* Makes the trie of t's tokens. eos[0..n_eos): the tokens that end a generation, allowed exactly where the text is
 * complete; other special tokens are never allowed. vocab: ids of the model's logits; masks have (vocab + 31) / 32
 * words and ids past the tokenizer's stay off. t is not used after the call. -EINVAL for an eos outside the vocabulary
 * or none at all, -ENOTSUP for a tokenizer that cannot write each of the ASCII characters, -ENOMEM. */
int grammar_vocab_create(const struct tok *t, const int32_t *eos, size_t n_eos, uint32_t vocab,
                         struct grammar_vocab **out, struct err *e);
void grammar_vocab_free(struct grammar_vocab *v); /* takes NULL; after every grammar made with it */

/* Compiles s within lim (NULL: the defaults). v must outlive the grammar; s is not used after the call. Takes from
 * microseconds to, at the limits, seconds: never on the loop or the engine thread. -EINVAL: what is wrong or not
 * supported, by its JSON pointer or its offset in the regular expression, or nothing could satisfy it; -E2BIG beyond a
 * limit; -ENOMEM. */
int grammar_compile(const struct grammar_vocab *v, const struct grammar_spec *s, const struct grammar_limits *lim,
                    struct grammar **out, struct err *e);
struct grammar *grammar_ref(struct grammar *g); /* returns g */
void grammar_unref(struct grammar *g);          /* takes NULL */

/* What g takes in memory, its cache of masks aside (that is bounded by max_cache). */
size_t grammar_bytes(const struct grammar *g);

/* A state at the beginning of the text; holds a reference on g. -ENOMEM. */
int grammar_state_open(struct grammar *g, struct grammar_state **out);
void grammar_state_close(struct grammar_state *s); /* takes NULL */

/* *mask: bit set = allowed, [(vocab + 31) / 32] words, valid until the next call on s. An end token is allowed exactly
 * where the text so far is complete. Never all zero. -ENOMEM (s is as it was). */
int grammar_mask(struct grammar_state *s, const uint32_t **mask);
/* Appends a token. -EINVAL: it was not allowed; after an end token nothing is. -ENOMEM. On failure s is as it was. */
int grammar_accept(struct grammar_state *s, int32_t token);
/* The text is complete and nothing but an end token may follow, or one has. */
bool grammar_over(const struct grammar_state *s);

#endif
