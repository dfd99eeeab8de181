/* http_tls.c - certificates and sessions, by GnuTLS.
 *
 * The loop's thread, except http_tls_load. A struct http_tls never changes once made: a reload makes another, and
 * sessions in progress keep theirs by its count, which the loop alone touches. GnuTLS reads and writes the socket
 * itself and buffers a record that the socket did not take: tls_send then remembers how many bytes of the caller's it
 * stands for, and finishes it first.
 */
#include "server/http_tls.h"

#include <stdlib.h>
#include <string.h>

#include <gnutls/gnutls.h>
#include <gnutls/x509.h>

#define PRIORITY "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:%SERVER_PRECEDENCE"

struct http_tls {
    unsigned refs;
    gnutls_certificate_credentials_t cred;
    gnutls_priority_t priority;
    bool client_cert;
};

struct tls {
    struct http_tls *h;
    gnutls_session_t s;
    size_t held; /* bytes of the caller's in a record that is not out yet */
};

static int fill(struct http_tls *h, const char *cert, const char *key, const char *client_ca, struct err *e)
{
    int rc = gnutls_certificate_allocate_credentials(&h->cred);
    if (!rc)
        rc = gnutls_priority_init(&h->priority, PRIORITY, NULL);
    if (rc)
        return err_set(e, -ENOMEM, "TLS: %s", gnutls_strerror(rc));
    rc = gnutls_certificate_set_x509_key_file(h->cred, cert, key, GNUTLS_X509_FMT_PEM);
    if (rc < 0)
        return err_set(e, -EINVAL, "the certificate %s with the key %s: %s", cert, key, gnutls_strerror(rc));
    if (!client_ca)
        return 0;
    rc = gnutls_certificate_set_x509_trust_file(h->cred, client_ca, GNUTLS_X509_FMT_PEM);
    if (rc <= 0)
        return err_set(e, -EINVAL, "the clients' authority %s: %s", client_ca,
                       rc ? gnutls_strerror(rc) : "holds no certificate");
    h->client_cert = true;
    return 0;
}

int http_tls_load(const char *cert, const char *key, const char *client_ca, struct http_tls **out, struct err *e)
{
    struct http_tls *h = calloc(1, sizeof *h);
    if (!h)
        return err_set(e, -ENOMEM, "out of memory");
    h->refs = 1;
    int rc = fill(h, cert, key, client_ca, e);
    if (rc)
        http_tls_unref(h);
    else
        *out = h;
    return rc;
}

struct http_tls *http_tls_ref(struct http_tls *h)
{
    if (h)
        h->refs++;
    return h;
}

void http_tls_unref(struct http_tls *h)
{
    if (!h || --h->refs)
        return;
    if (h->cred)
        gnutls_certificate_free_credentials(h->cred);
    if (h->priority)
        gnutls_priority_deinit(h->priority);
    free(h);
}

/* ---- sessions ---- */

/* Whatever the client shows must be signed by the authority, valid now, and not be for servers alone. The library keeps
 * the pointer. */
static void want_client_cert(gnutls_session_t s)
{
    static unsigned char purpose[] = GNUTLS_KP_TLS_WWW_CLIENT;
    static gnutls_typed_vdata_st data = {.type = GNUTLS_DT_KEY_PURPOSE_OID, .data = purpose};
    gnutls_certificate_server_set_request(s, GNUTLS_CERT_REQUIRE);
    gnutls_session_set_verify_cert2(s, &data, 1, 0);
}

static int set_up(gnutls_session_t s, struct http_tls *h, int fd)
{
    static unsigned char name[] = "http/1.1";
    const gnutls_datum_t alpn = {name, sizeof name - 1};
    int rc = gnutls_priority_set(s, h->priority);
    if (!rc)
        rc = gnutls_credentials_set(s, GNUTLS_CRD_CERTIFICATE, h->cred);
    if (!rc)
        rc = gnutls_alpn_set_protocols(s, &alpn, 1, GNUTLS_ALPN_MANDATORY);
    gnutls_handshake_set_timeout(s, GNUTLS_INDEFINITE_TIMEOUT); /* the front has its own */
    gnutls_transport_set_int(s, fd);
    return rc;
}

int tls_open(struct http_tls *h, int fd, struct tls **out)
{
    struct tls *t = calloc(1, sizeof *t);
    if (!t)
        return -ENOMEM;
    if (gnutls_init(&t->s, GNUTLS_SERVER | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL | GNUTLS_NO_TICKETS)) {
        free(t);
        return -ENOMEM;
    }
    t->h = http_tls_ref(h);
    if (set_up(t->s, h, fd)) {
        tls_close(t);
        return -ENOMEM;
    }
    if (h->client_cert)
        want_client_cert(t->s);
    *out = t;
    return 0;
}

void tls_close(struct tls *t)
{
    if (!t)
        return;
    gnutls_deinit(t->s);
    http_tls_unref(t->h);
    free(t);
}

int tls_handshake(struct tls *t)
{
    int rc;
    do
        rc = gnutls_handshake(t->s);
    while (rc == GNUTLS_E_INTERRUPTED || (rc && rc != GNUTLS_E_AGAIN && !gnutls_error_is_fatal(rc)));
    if (!rc || rc == GNUTLS_E_AGAIN)
        return rc ? -EAGAIN : 0;
    gnutls_alert_send_appropriate(t->s, rc);
    return -EPROTO;
}

bool tls_wants_write(const struct tls *t)
{
    return gnutls_record_get_direction(t->s) == 1;
}

ssize_t tls_send(struct tls *t, const void *p, size_t n)
{
    const char *from = p;
    size_t done = 0;
    while (done < n) {
        size_t part = t->held ? t->held : n - done < TLS_RECORD ? n - done : TLS_RECORD;
        ssize_t k = t->held ? gnutls_record_send(t->s, NULL, 0) : gnutls_record_send(t->s, from + done, part);
        if (k == GNUTLS_E_INTERRUPTED || k == GNUTLS_E_AGAIN) {
            t->held = part;
            if (k == GNUTLS_E_INTERRUPTED)
                continue;
            return done ? (ssize_t)done : -EAGAIN;
        }
        if (k < 0)
            return -EPIPE;
        done += t->held ? t->held : (size_t)k;
        t->held = 0;
    }
    return (ssize_t)done;
}

ssize_t tls_recv(struct tls *t, void *p, size_t n)
{
    for (;;) {
        ssize_t k = gnutls_record_recv(t->s, p, n);
        if (k >= 0)
            return k;
        if (k == GNUTLS_E_AGAIN)
            return -EAGAIN;
        if (k == GNUTLS_E_REHANDSHAKE || gnutls_error_is_fatal((int)k))
            return -EPIPE;
    }
}

void tls_end(struct tls *t)
{
    gnutls_bye(t->s, GNUTLS_SHUT_WR); /* where the socket is full the client does without */
}
