/* reload.c - reads keys and certificates, at start and again on SIGHUP.
 *
 * The files are read on a libuv worker, so that a slow disk does not hold the loop; the loop then replaces what is in
 * force, each part by itself: a keys file with an error does not keep a new certificate away. The job owns what it read
 * until then.
 */
#include "server/reload.h"

#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "server/http_tls.h"
#include "server/log.h"
#include "server/server.h"

struct reload {
    struct server *sv;
    uv_work_t work;
    void (*done)(void *ctx);
    void *ctx;
    char *keys;
    size_t n_keys;
    int keys_rc, tls_rc;
    struct err keys_err, tls_err;
    struct reload_tls tls;
};

static int read_one(const char *cert, const char *key, const char *ca, const char *option, struct http_tls **out,
                    struct err *e)
{
    *out = NULL;
    if (!cert)
        return 0;
    int rc = keys_check_file(key, option, e);
    if (!rc)
        rc = http_tls_load(cert, key, ca, out, e);
    return rc ? err_prefix(e, rc, "--%s", option) : 0;
}

int reload_read_tls(const struct options *o, struct reload_tls *out, struct err *e)
{
    struct reload_tls t = {0};
    int rc = read_one(o->tls_cert, o->tls_key, o->tls_client_ca, "tls-key", &t.api, e);
    if (!rc)
        rc = read_one(o->admin_tls_cert, o->admin_tls_key, NULL, "admin-tls-key", &t.admin, e);
    if (rc) {
        http_tls_unref(t.api);
        return rc;
    }
    *out = t;
    return 0;
}

static void on_work(uv_work_t *w)
{
    struct reload *r = w->data;
    const struct options *o = r->sv->o;
    if (o->api_keys)
        r->keys_rc = keys_read(o->api_keys, &r->keys, &r->n_keys, &r->keys_err);
    r->tls_rc = reload_read_tls(o, &r->tls, &r->tls_err);
}

static void take_keys(struct reload *r)
{
    struct server *sv = r->sv;
    if (!sv->o->api_keys)
        return;
    if (!r->keys_rc)
        r->keys_rc = keys_parse(sv->keys, r->keys, r->n_keys, sv->o->api_keys, &r->keys_err);
    if (r->keys_rc)
        log_line("error", "the API keys were not reloaded, the old ones stay: %s", r->keys_err.msg);
    else
        log_line("info", "the API keys were reloaded");
}

static void take_tls(struct reload *r)
{
    struct server *sv = r->sv;
    if (!sv->o->tls_cert && !sv->o->admin_tls_cert)
        return;
    if (r->tls_rc) {
        log_line("error", "the certificates were not reloaded, the old ones stay: %s", r->tls_err.msg);
        return;
    }
    if (r->tls.api && sv->http)
        http_set_tls(sv->http, r->tls.api);
    if (r->tls.admin && sv->admin)
        http_set_tls(sv->admin, r->tls.admin);
    log_line("info", "the certificates were reloaded");
}

static void after_work(uv_work_t *w, int status)
{
    struct reload *r = w->data;
    if (!status && r->sv->state != SERVER_DRAINING) { /* then the listeners may be gone */
        take_keys(r);
        take_tls(r);
    }
    r->done(r->ctx);
    http_tls_unref(r->tls.api);
    http_tls_unref(r->tls.admin);
    free(r->keys);
    free(r);
}

int reload_start(struct server *sv, void (*done)(void *ctx), void *ctx)
{
    struct reload *r = calloc(1, sizeof *r);
    if (!r)
        return -ENOMEM;
    r->sv = sv;
    r->done = done;
    r->ctx = ctx;
    r->work.data = r;
    int rc = uv_queue_work(sv->loop, &r->work, on_work, after_work);
    if (rc)
        free(r);
    return rc;
}
