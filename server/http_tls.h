/* http_tls.h - TLS for the listeners' clients, by GnuTLS: what a listener shows (a certificate and its key), and a
 * connection's session over a non-blocking socket.
 *
 * TLS 1.2 and 1.3, HTTP/1.1 by ALPN where the client asks, no session is kept between connections, and the client may
 * not renegotiate. http_tls_load may run on any thread; the rest belongs to the loop.
 */
#ifndef CPET_SERVER_HTTP_TLS_H
#define CPET_SERVER_HTTP_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "common/err.h"

struct http_tls; /* counted; sessions hold the one they began with */
struct tls;

/* Reads a PEM chain and its key and, where client_ca is not NULL, the certificates that must have signed a client's.
 * The caller has the first reference. -EINVAL or what reading says, naming the file. */
int http_tls_load(const char *cert, const char *key, const char *client_ca, struct http_tls **out, struct err *e);
struct http_tls *http_tls_ref(struct http_tls *h); /* takes NULL */
void http_tls_unref(struct http_tls *h);           /* takes NULL */

/* A session over fd, which stays the caller's. 0 or -ENOMEM. */
int tls_open(struct http_tls *h, int fd, struct tls **out);
void tls_close(struct tls *t); /* says nothing to the client; takes NULL */
/* 0: done; -EAGAIN: when the socket can be read, or written where tls_wants_write; else it failed, and the client was
 * told why. */
int tls_handshake(struct tls *t);
bool tls_wants_write(const struct tls *t);
/* Bytes taken, or -EAGAIN (the next call begins with the same bytes), or -EPIPE. */
ssize_t tls_send(struct tls *t, const void *p, size_t n);
/* Most bytes that one record brings: a call with as much room leaves nothing behind that no poll tells of. */
#define TLS_RECORD 16384
/* Bytes read; 0: the client's end; -EAGAIN, or -EPIPE. */
ssize_t tls_recv(struct tls *t, void *p, size_t n);
/* Tells the client that nothing more comes. */
void tls_end(struct tls *t);

#endif
