/* grammar_lib.h - for tests of grammars: a vocabulary, texts by bytes and by tokens. */
#ifndef CPET_TESTS_GRAMMAR_LIB_H
#define CPET_TESTS_GRAMMAR_LIB_H

#include <jansson.h>

#include "model/grammar.h"

/* SmolLM's tokenizer of tests/golden: 49,152 tokens, every byte among them. */
struct glib {
    struct tok *t;
    struct grammar_vocab *v;
    int32_t byte[256]; /* the token of one byte; -1: none */
    int32_t eos;
    uint32_t vocab;
};
int glib_open(const char *golden, struct glib *l, struct err *e);
void glib_close(struct glib *l);

int glib_compile(const struct glib *l, enum grammar_kind kind, const char *text, size_t n, struct grammar **out,
                 struct err *e);
/* Byte by byte; accepted: the whole text, and it may end there. *at: how many bytes were taken. */
bool glib_accepts(const struct glib *l, struct grammar *g, const char *text, size_t n, size_t *at);
/* A text of random allowed tokens, ended where the mask allows it after `soft` tokens; false past `hard`. */
bool glib_random(const struct glib *l, struct grammar *g, uint64_t seed, int soft, int hard, struct buf *out);

/* A copy of v with keys in the order that the schema gives them. */
json_t *glib_order(const json_t *v, const json_t *schema);

#endif
