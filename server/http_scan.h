/* http_scan.h - the strict reading of HTTP/1.x framing: where a request's head ends, whether it may pass, and where its
 * body ends. Pure functions over bytes; inside server/ only.
 *
 * What passes here is unambiguous to any later parser: CRLF line ends only, no folded lines, no controls, no NUL (also
 * not as %00), one Host, one Content-Length, never both framings, known methods, HTTP/1.0 or 1.1.
 */
#ifndef CPET_SERVER_HTTP_SCAN_H
#define CPET_SERVER_HTTP_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct http_limits {
    size_t max_header, max_body;
};

struct http_head {
    bool chunked, keep_alive, http10;
    uint64_t content_length;
};

/* Looks for the end of the head in p[0..n). *scanned (0 at first) is kept between calls so that no byte is looked at
 * twice. 0: not there yet; 1: *len bytes are the head, the empty line included; else the HTTP status of a refusal. */
int http_head_find(const char *p, size_t n, const struct http_limits *lim, size_t *scanned, size_t *len, struct err *e);

/* Checks a head that http_head_find found. 0, or the HTTP status of the refusal with its sentence. */
int http_head_check(const char *p, size_t len, const struct http_limits *lim, struct http_head *out, struct err *e);

/* A header's value in a head that passed the check, without the blanks around it; NULL: absent. */
const char *http_head_value(const char *p, size_t len, const char *name, size_t *n);

/* White space behind a header's value, which libmicrohttpd takes for a part of it, moves before the value. For a head
 * that passed the check; its length stays. */
void http_head_tidy(char *p, size_t len);

/* The framing of a chunked body; zero it at the start. */
struct http_chunks {
    uint8_t state, digits;
    uint64_t left; /* of the chunk at hand */
    uint64_t body, wire;
};

/* Walks over p[0..n). 0: all of it belongs to the body; 1: the body ends after *used bytes; else the HTTP status. */
int http_chunks_scan(struct http_chunks *c, const char *p, size_t n, const struct http_limits *lim, size_t *used,
                     struct err *e);

#endif
