/* text.h - tokens' bytes to text that may be sent: never half a character, never the beginning of a stop string.
 *
 * One a choice; loop thread. Bytes go in token by token; what can be sent comes out as soon as it is certain. The
 * text that comes out is valid UTF-8: bytes that can make no character become U+FFFD, one for each cut-off beginning.
 */
#ifndef CPET_SERVER_TEXT_H
#define CPET_SERVER_TEXT_H

#include <stdbool.h>
#include <stddef.h>

#include "common/buf.h"
#include "proto/proto.h"

struct text {
    const struct req_str *stop; /* [n_stop], the caller's */
    size_t n_stop, longest;
    struct buf held;    /* bytes not sent yet */
    size_t n_in, n_out; /* raw bytes taken, and sent (or dropped with a stop string) */
    bool stopped;
};

void text_open(struct text *t, const struct req_str *stop, size_t n_stop);
void text_close(struct text *t);

/* Takes bytes and appends to out what may be sent. When a stop string is complete, sets t->stopped: out then ends
 * right before it, and what comes later is ignored. 0 or -ENOMEM. */
int text_push(struct text *t, const char *bytes, size_t n, struct buf *out);
/* No more bytes: appends what was held back. */
int text_finish(struct text *t, struct buf *out);

/* Appends s[0..n) to out as valid UTF-8. 0 or -ENOMEM. */
int text_clean(const char *s, size_t n, struct buf *out);

#endif
