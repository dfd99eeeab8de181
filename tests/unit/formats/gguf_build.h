/* gguf_build.h - builds GGUF bytes in memory, for tests. Appends to a struct buf; nothing is checked, so that wrong
 * files can be made too. */
#ifndef CPET_TESTS_GGUF_BUILD_H
#define CPET_TESTS_GGUF_BUILD_H

#include <string.h>

#include "common/buf.h"
#include "formats/gguf.h"

static inline void gb_int(struct buf *b, uint64_t v, int n)
{
    for (int i = 0; i < n; i++)
        buf_append(b, &(uint8_t){(uint8_t)(v >> (8 * i))}, 1);
}

static inline void gb_str(struct buf *b, const char *s)
{
    gb_int(b, strlen(s), 8);
    buf_puts(b, s);
}

static inline void gb_head(struct buf *b, uint32_t version, uint64_t tensors, uint64_t kvs)
{
    buf_puts(b, "GGUF");
    gb_int(b, version, 4);
    gb_int(b, tensors, 8);
    gb_int(b, kvs, 8);
}

static inline void gb_key(struct buf *b, const char *key, uint32_t type)
{
    gb_str(b, key);
    gb_int(b, type, 4);
}

static inline void gb_u32(struct buf *b, const char *key, uint32_t v)
{
    gb_key(b, key, GGUF_U32);
    gb_int(b, v, 4);
}

static inline void gb_f32(struct buf *b, const char *key, float v)
{
    uint32_t u;
    memcpy(&u, &v, 4);
    gb_key(b, key, GGUF_F32);
    gb_int(b, u, 4);
}

static inline void gb_text(struct buf *b, const char *key, const char *s)
{
    gb_key(b, key, GGUF_STR);
    gb_str(b, s);
}

static inline void gb_array(struct buf *b, const char *key, uint32_t elem, uint64_t n)
{
    gb_key(b, key, GGUF_ARRAY);
    gb_int(b, elem, 4);
    gb_int(b, n, 8);
}

/* d1 0: one dimension. */
static inline void gb_tensor(struct buf *b, const char *name, uint32_t type, uint64_t d0, uint64_t d1, uint64_t off)
{
    gb_str(b, name);
    gb_int(b, d1 ? 2 : 1, 4);
    gb_int(b, d0, 8);
    if (d1)
        gb_int(b, d1, 8);
    gb_int(b, type, 4);
    gb_int(b, off, 8);
}

static inline void gb_align(struct buf *b, size_t a)
{
    while (b->len % a)
        buf_append(b, "", 1);
}

#endif
