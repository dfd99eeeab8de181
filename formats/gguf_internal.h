/* gguf_internal.h - what the gguf*.c files share; nobody else includes it. */
#ifndef CPET_FORMATS_GGUF_INTERNAL_H
#define CPET_FORMATS_GGUF_INTERNAL_H

#include "formats/gguf.h"

/* Bytes of a value of that type; 0 for strings and arrays. */
extern const size_t gguf_value_size[GGUF_VALUE_TYPES];
/* n (1 to 8) bytes, little endian. */
uint64_t gguf_le(const uint8_t *p, size_t n);

struct gguf_block {
    const char *name;
    unsigned len;   /* elements of a block */
    unsigned bytes; /* 0: a type that is not supported */
};

/* Never NULL; an unknown number has the name "unknown". */
const struct gguf_block *gguf_block_of(uint64_t type);

#endif
