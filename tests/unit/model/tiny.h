/* tiny.h - a small random backbone in a temporary directory, for tests that need a model. */
#ifndef CPET_TESTS_TINY_H
#define CPET_TESTS_TINY_H

#include <stdbool.h>
#include <stdint.h>

struct tiny {
    char dir[64];
    bool qwen2, tied;
    const char *drop;    /* a tensor to leave out */
    const char *nan;     /* a tensor whose first element is a NaN */
    const char *reshape; /* a tensor that gets one row too many */
    const char *extra;   /* a tensor that no model has */
    const char *config;  /* replaces config.json */
};

#define TINY_VOCAB 97

/* Makes t->dir and writes config.json and model.safetensors there; asserts that it worked. */
void tiny_make(struct tiny *t);
void tiny_remove(struct tiny *t);

/* n token ids of its vocabulary, another text a seed. */
void tiny_ids(int32_t *ids, uint32_t n, uint32_t seed);

#endif
