/* text.c - holding back what may still become a stop string or a character.
 *
 * Loop thread; `held` is the only memory and never grows beyond one push plus the longest stop string. What is held at
 * rest is always a proper prefix of some stop string, or the beginning of a character, or both in a row; so that each
 * push looks only at the held bytes and its own.
 */
#include "server/text.h"

#include <string.h>

#include "common/utf8.h"

void text_open(struct text *t, const struct req_str *stop, size_t n_stop)
{
    memset(t, 0, sizeof *t);
    t->stop = stop;
    t->n_stop = n_stop;
    for (size_t i = 0; i < n_stop; i++)
        if (stop[i].len > t->longest)
            t->longest = stop[i].len;
}

void text_close(struct text *t)
{
    buf_free(&t->held);
}

int text_clean(const char *s, size_t n, struct buf *out)
{
    while (n) {
        size_t ok = utf8_valid(s, n);
        buf_append(out, s, ok);
        s += ok;
        n -= ok;
        if (!n)
            break;
        size_t bad = n < 3 ? n : 3; /* the longest beginning of a character here is one replacement */
        while (bad > 1 && utf8_tail(s, bad) != bad)
            bad--;
        buf_puts(out, "\xEF\xBF\xBD");
        s += bad;
        n -= bad;
    }
    return out->failed ? -ENOMEM : 0;
}

/* Sends the first n held bytes. */
static int release(struct text *t, size_t n, struct buf *out)
{
    int rc = text_clean(t->held.data, n, out);
    buf_consume(&t->held, n);
    t->n_out += n;
    return rc;
}

/* Where the first stop string begins in the held bytes; SIZE_MAX when there is none. */
static size_t find_stop(const struct text *t)
{
    size_t at = SIZE_MAX;
    for (size_t i = 0; i < t->n_stop; i++) {
        if (!t->stop[i].len)
            continue;
        const char *p = memmem(t->held.data, t->held.len, t->stop[i].ptr, t->stop[i].len);
        if (p && (size_t)(p - t->held.data) < at)
            at = (size_t)(p - t->held.data);
    }
    return at;
}

static bool begins_stop(const struct text *t, const char *s, size_t n)
{
    for (size_t i = 0; i < t->n_stop; i++)
        if (t->stop[i].len > n && !memcmp(t->stop[i].ptr, s, n))
            return true;
    return false;
}

/* How many of the last held bytes could be the beginning of a stop string. */
static size_t stop_tail(const struct text *t)
{
    size_t n = t->longest ? t->longest - 1 : 0;
    if (n > t->held.len)
        n = t->held.len;
    while (n && !begins_stop(t, t->held.data + t->held.len - n, n))
        n--;
    return n;
}

int text_push(struct text *t, const char *bytes, size_t n, struct buf *out)
{
    if (t->stopped)
        return 0;
    if (buf_append(&t->held, bytes, n))
        return -ENOMEM;
    t->n_in += n;
    if (!t->held.len)
        return 0;
    size_t at = find_stop(t);
    if (at != SIZE_MAX) {
        t->stopped = true;
        int rc = release(t, at, out);
        t->n_out += t->held.len;
        buf_clear(&t->held);
        return rc;
    }
    size_t send = t->held.len - stop_tail(t);
    send -= utf8_tail(t->held.data, send);
    return release(t, send, out);
}

int text_finish(struct text *t, struct buf *out)
{
    return t->held.len ? release(t, t->held.len, out) : 0;
}
