/* buf.c - a growable run of bytes.
 *
 * The owner is whoever called buf_init; the bytes are malloc'ed. Growth doubles, never past the limit. A failure is
 * sticky (b->failed), so that a writer of many pieces checks once at the end.
 */
#include "common/buf.h"

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void buf_init(struct buf *b, size_t limit)
{
    *b = (struct buf){.limit = limit};
}

void buf_free(struct buf *b)
{
    if (!b)
        return;
    free(b->data);
    *b = (struct buf){.limit = b->limit};
}

void buf_clear(struct buf *b)
{
    b->len = 0;
    b->failed = false;
    b->error = 0;
    if (b->data)
        b->data[0] = 0;
}

static int buf_fail(struct buf *b, int error)
{
    b->failed = true;
    return b->error = error;
}

static int buf_room(struct buf *b, size_t n)
{
    if (b->failed)
        return b->error ? b->error : -ENOMEM; /* others may set failed alone */
    size_t limit = b->limit ? b->limit : SIZE_MAX / 2;
    if (n > limit || b->len > limit - n)
        return buf_fail(b, -E2BIG);
    size_t want = b->len + n + 1;
    if (want <= b->cap)
        return 0;
    size_t cap = b->cap ? b->cap : 256;
    while (cap < want)
        cap *= 2;
    char *p = realloc(b->data, cap);
    if (!p)
        return buf_fail(b, -ENOMEM);
    b->data = p;
    b->cap = cap;
    return 0;
}

int buf_append(struct buf *b, const void *p, size_t n)
{
    int r = buf_room(b, n);
    if (r)
        return r;
    if (n)
        memcpy(b->data + b->len, p, n);
    b->len += n;
    b->data[b->len] = 0;
    return 0;
}

int buf_puts(struct buf *b, const char *s)
{
    return buf_append(b, s, strlen(s));
}

int buf_printf(struct buf *b, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    int r = n < 0 ? -EINVAL : buf_room(b, (size_t)n);
    if (!r) {
        vsnprintf(b->data + b->len, (size_t)n + 1, fmt, again);
        b->len += (size_t)n;
    }
    va_end(again);
    return r;
}

void buf_consume(struct buf *b, size_t n)
{
    if (!n)
        return;
    memmove(b->data, b->data + n, b->len - n);
    b->len -= n;
    b->data[b->len] = 0;
}
