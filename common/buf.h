/* buf.h - a growable run of bytes with a limit. One thread at a time. */
#ifndef CPET_COMMON_BUF_H
#define CPET_COMMON_BUF_H

#include <stdbool.h>
#include <stddef.h>

struct buf {
    char *data; /* always terminated by a NUL beyond len once anything was added; NULL before */
    size_t len, cap, limit;
    bool failed; /* an append did not fit: memory or the limit; later appends do nothing */
    int error;   /* and which, where it failed: -ENOMEM or -E2BIG */
};

/* limit 0: none. A zeroed struct buf is valid too (no limit). */
void buf_init(struct buf *b, size_t limit);
void buf_free(struct buf *b); /* frees the bytes, leaves an empty buffer */
void buf_clear(struct buf *b);

/* 0, or -ENOMEM / -E2BIG (then b->failed stays set and the contents are as before). */
int buf_append(struct buf *b, const void *p, size_t n);
int buf_puts(struct buf *b, const char *s);
int buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Drops the first n bytes (n <= len). */
void buf_consume(struct buf *b, size_t n);

#endif
