/* main.c - cpetd: options, listeners, signals, and the order of start and end.
 *
 * Start: options are read and checked, the listeners open (so that /health answers and /ready says 503), then the
 * engine thread loads the model; when that is over the tasks are made and /ready says 200. End (SIGTERM, SIGINT): new
 * requests get 503, those that run finish up to --drain-ms, then the listeners close, the engine stops, and the loop
 * runs empty. A second signal cuts the waiting short. SIGHUP reads keys and certificates again (reload.c).
 *
 * Owns everything; the loop thread is the main thread. The only place in server/ that exits.
 */
#include <libgen.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <sodium.h>

#include "server/descriptors.h"
#include "server/http_tls.h"
#include "server/background.h"
#include "server/load.h"
#include "server/log.h"
#include "server/reload.h"
#include "server/reqlog.h"
#include "server/server.h"
#include "server/service.h"

#define DRAIN_LOOK_MS 10
#define MMAP_FROM (512 << 10) /* larger blocks are mapped, always, so that freeing them gives the memory back */
#define WORKERS "6"           /* a commit, admin bodies, and still some for parsing and tokenizing */
#define BACKGROUND 4          /* two loads and two checks of modules at once */
#define STOP_MS 15000         /* beyond the draining time: the last bytes, the step at hand, memory given back */
#define LAST_BYTES_MS 1000    /* for what is still queued to clients when the draining time is over */

extern char **environ;

struct cpetd {
    struct options o;
    struct loaded loaded;
    struct server sv;
    struct service service;
    struct descriptors room;
    uv_loop_t loop;
    uv_signal_t sig_term, sig_int, sig_hup;
    uv_timer_t drain;
    uint64_t drain_end_ns;
    unsigned n_open; /* listeners that are closing */
    bool ended_all, closing;
    bool reloading, reload_again, told_reloading;
    struct reload_tls tls; /* until the listeners have them */
    int status;
};

/* ---- end ---- */

static void on_engine_gone(void *ctx)
{
    struct cpetd *c = ctx;
    c->sv.en = NULL;
}

/* No request is left, and no worker looks at the model any more. */
static void on_idle(void *ctx)
{
    struct cpetd *c = ctx;
    background_close(c->sv.background);
    c->sv.background = NULL;
    if (c->sv.en)
        engine_stop(c->sv.en, on_engine_gone, c);
}

static void on_listener_gone(void *ctx)
{
    struct cpetd *c = ctx;
    if (--c->n_open)
        return;
    c->sv.http = c->sv.admin = NULL;
    module_stop(c->sv.modules);
    server_when_idle(&c->sv, on_idle, c);
}

/* Closes everything; the loop then runs empty. */
static void shut(struct cpetd *c)
{
    if (c->closing)
        return;
    c->closing = true;
    c->sv.state = SERVER_DRAINING; /* whatever brought it here: nothing begins any more */
    service_unwatch(&c->service);
    uv_close((uv_handle_t *)&c->sig_term, NULL);
    uv_close((uv_handle_t *)&c->sig_int, NULL);
    uv_close((uv_handle_t *)&c->sig_hup, NULL);
    uv_close((uv_handle_t *)&c->drain, NULL);
    call_waits_close(&c->sv);
    admin_stop(&c->sv);
    c->n_open = 1 + (c->sv.http != NULL) + (c->sv.admin != NULL);
    if (c->sv.http)
        http_close(c->sv.http, on_listener_gone, c);
    if (c->sv.admin)
        http_close(c->sv.admin, on_listener_gone, c);
    on_listener_gone(c);
}

static void on_drain_look(uv_timer_t *t)
{
    struct cpetd *c = t->data;
    uint64_t now = mono_ns();
    bool left = http_requests(c->sv.http) || http_answering(c->sv.http) || admin_busy(&c->sv) ||
                (c->sv.admin && http_answering(c->sv.admin));
    if (!left || now >= c->drain_end_ns + (uint64_t)LAST_BYTES_MS * 1000000u) {
        shut(c);
    } else if (now >= c->drain_end_ns && !c->ended_all) {
        c->ended_all = true;
        call_end_all(&c->sv);
    }
}

static void on_stop_signal(uv_signal_t *s, int signum)
{
    struct cpetd *c = s->data;
    uint64_t now = mono_ns();
    if (c->sv.state == SERVER_DRAINING) {
        c->drain_end_ns = now;
        return;
    }
    log_line("info", "%s: draining (%u requests)", signum == SIGTERM ? "SIGTERM" : "SIGINT", c->sv.n_active);
    service_tell("STOPPING=1\nSTATUS=draining, %u requests\nEXTEND_TIMEOUT_USEC=%llu", c->sv.n_active,
                 (c->o.drain_ms + (unsigned long long)STOP_MS) * 1000);
    c->sv.state = SERVER_DRAINING;
    c->drain_end_ns = now + (uint64_t)c->o.drain_ms * 1000000u;
    uv_timer_start(&c->drain, on_drain_look, 0, DRAIN_LOOK_MS);
}

static void reload(struct cpetd *c);

static void on_reloaded(void *ctx)
{
    struct cpetd *c = ctx;
    c->reloading = false;
    if (c->reload_again && !c->closing) {
        reload(c);
        return;
    }
    if (c->told_reloading && c->sv.state == SERVER_READY)
        service_reloaded();
    c->told_reloading = false;
}

/* One at a time; a signal that comes meanwhile is obeyed afterwards. */
static void reload(struct cpetd *c)
{
    c->reload_again = c->reloading;
    if (c->reloading)
        return;
    if (c->sv.requests)
        reqlog_reopen(c->sv.requests);
    c->reloading = true;
    if (reload_start(&c->sv, on_reloaded, c)) {
        log_line("error", "out of memory: nothing was reloaded");
        c->reload_again = false;
        on_reloaded(c);
    }
}

static void on_hup(uv_signal_t *s, int signum)
{
    struct cpetd *c = s->data;
    (void)signum;
    if (c->sv.state == SERVER_READY && !c->told_reloading) { /* before and after, READY=1 would be untrue */
        c->told_reloading = true;
        service_reloading();
    }
    reload(c);
}

/* ---- start ---- */

static void fingerprint(const struct model *m, const struct model_info *mi, char out[32])
{
    static const struct hash none;
    const struct hash *h = &model_pet_target(m)->lineage.weights;
    char hex[HASH_HEX];
    if (hash_equal(h, &none))
        return;
    hash_hex(h, hex);
    snprintf(out, 32, "fp_%.12s%s%.6s", hex, mi->recovery[0] ? "-" : "", mi->recovery);
}

static void on_loaded(void *ctx, int rc, const struct err *why)
{
    struct cpetd *c = ctx;
    struct server *sv = &c->sv;
    struct err e = *why;
    if (!rc) {
        struct model *m = engine_model(sv->en);
        sv->info = *model_info(m);
        sv->mi = &sv->info;
        sv->dev = c->loaded.dev;
        sv->tok = c->loaded.tok;
        sv->tmpl = c->loaded.tmpl;
        sv->eos = tok_eos_ids(sv->tok, &sv->n_eos);
        sv->grammars = c->loaded.grammars;
        sv->grammars_problem = c->loaded.vocab_problem;
        fingerprint(m, sv->mi, sv->fingerprint);
        sv->target = model_pet_target(m);
        for (size_t i = 0; i < c->o.n_pets; i++)
            if (c->loaded.pet[i].mem)
                histogram_add(&sv->metrics.module_load, c->loaded.pet[i].seconds);
        rc = load_tables(sv, &c->loaded, &e);
    }
    if (rc) {
        log_line("error", "%s", e.msg);
        c->status = e.param[0] ? EXIT_CONFIG : EXIT_FAILURE;
        shut(c);
        return;
    }
    if (c->loaded.tmpl_problem[0])
        log_line("warning", "the chat template cannot be used: %s", c->loaded.tmpl_problem);
    if (c->loaded.vocab_problem[0])
        log_line("warning", "structured output cannot be served: %s", c->loaded.vocab_problem);
    if (sv->state != SERVER_LOADING) /* it was told to stop meanwhile */
        return;
    sv->state = SERVER_READY;
    fprintf(stderr, "cpetd: ready\n");
    service_tell("READY=1\nSTATUS=ready");
}

static int start_listening(struct cpetd *c, struct err *e)
{
    struct server *sv = &c->sv;
    struct http_opts ho = {.addr = c->o.listen,
                           .fd = c->service.fd[SERVICE_HTTP],
                           .tls = c->tls.api,
                           .max_conns = c->room.conns,
                           .max_pairs = c->room.pairs};
    int rc = http_listen(&c->loop, &ho, api_handler(sv), &sv->http, e);
    if (rc)
        return err_prefix(e, rc, "--listen %s", c->o.listen);
    fprintf(stderr, "cpetd: listening on %s\n", http_address(sv->http));
    if (!c->o.admin_listen)
        return 0;
    ho = (struct http_opts){.addr = c->o.admin_listen,
                            .fd = c->service.fd[SERVICE_ADMIN],
                            .tls = c->tls.admin,
                            .max_conns = c->room.admin_conns,
                            .max_pairs = c->room.admin_conns,
                            .max_body = (size_t)64 << 20};
    rc = http_listen(&c->loop, &ho, api_admin_handler(sv), &sv->admin, e);
    if (rc)
        return err_prefix(e, rc, "--admin-listen %s", c->o.admin_listen);
    fprintf(stderr, "cpetd: admin listening on %s\n", http_address(sv->admin));
    return 0;
}

static int start_engine(struct cpetd *c, struct err *e)
{
    struct engine_opts eo = {.prefill_chunk = c->o.prefill_chunk,
                             .inject_delay_ms = c->o.inject_delay_ms,
                             .trace_path = c->o.trace_steps,
                             .load = load_all,
                             .load_ctx = &c->loaded,
                             .loaded = on_loaded,
                             .news = call_news,
                             .ctx = c};
    return engine_start(&c->loop, &eo, &c->sv.en, e);
}

static void watch_signal(struct cpetd *c, uv_signal_t *s, uv_signal_cb cb, int signum)
{
    uv_signal_init(&c->loop, s);
    s->data = c;
    uv_signal_start(s, cb, signum);
    uv_unref((uv_handle_t *)s);
}

static char *backbone_name(const struct options *o)
{
    if (o->name)
        return strdup(o->name);
    char *full = realpath(o->model, NULL), *name = full ? strdup(basename(full)) : NULL;
    free(full);
    return name;
}

static int check_names(const struct cpetd *c, struct err *e)
{
    int rc = task_check_id(c->sv.name, e);
    if (rc)
        return err_prefix(e, rc, "the backbone's name \"%s\" (--name sets another)", c->sv.name);
    for (size_t i = 0; !rc && i < c->o.n_pets; i++) {
        const char *id = c->o.pet_task[i];
        if (!strcmp(id, c->sv.name))
            rc = err_param(e, -EEXIST, "pet", "--pet: \"%s\" is the backbone's name", id);
        else if ((rc = task_check_id(id, e)))
            err_prefix(e, rc, "--pet \"%s\"", id);
    }
    return rc;
}

static int check_address(const char *option, const char *addr, struct err *e)
{
    int rc = addr ? http_check_address(addr, e) : 0;
    return rc ? err_prefix(e, rc, "--%s", option) : 0;
}

/* Addresses, keys and names: what --check-config looks at beyond options_check. */
static int prepare(struct cpetd *c, struct err *e)
{
    struct server *sv = &c->sv;
    int rc = options_check(&c->o, e);
    rc = rc ? rc : check_address("listen", c->o.listen, e);
    rc = rc ? rc : check_address("admin-listen", c->o.admin_listen, e);
    rc = rc ? rc : descriptors_share(c->o.max_connections, &c->room, e);
    if (rc)
        return rc;
    sv->o = &c->o;
    sv->loop = &c->loop;
    sv->started = (int64_t)time(NULL);
    sv->keys = keys_create();
    sv->tasks = tasks_create();
    sv->name = backbone_name(&c->o);
    if (!sv->keys || !sv->tasks || !sv->name || series_open(&sv->metrics.tasks, c->o.metrics_tasks))
        return err_set(e, -ENOMEM, "out of memory");
    if (c->o.api_keys)
        rc = keys_load(sv->keys, c->o.api_keys, e);
    if (!rc && c->o.admin_key) {
        rc = keys_admin_load(c->o.admin_key, &sv->admin_key, e);
        sv->has_admin_key = !rc;
    }
    rc = rc ? rc : reload_read_tls(&c->o, &c->tls, e);
    return rc ? rc : check_names(c, e);
}

static uint64_t step_age_ns(void *ctx)
{
    struct cpetd *c = ctx;
    return c->sv.en ? engine_round_age_ns(c->sv.en) : 0;
}

/* Sockets that were passed go before the addresses of the options, and the same rules hold for where they listen. */
static int take_sockets(struct cpetd *c, struct err *e)
{
    int rc = service_take_sockets(&c->service, e);
    if (rc)
        return rc;
    if (c->service.fd[SERVICE_HTTP])
        c->o.listen = c->service.addr[SERVICE_HTTP];
    if (c->service.fd[SERVICE_ADMIN])
        c->o.admin_listen = c->service.addr[SERVICE_ADMIN];
    return 0;
}

static int serve(struct cpetd *c)
{
    struct err e = {0};
    uv_loop_init(&c->loop);
    uv_timer_init(&c->loop, &c->drain);
    c->drain.data = c;
    call_waits_open(&c->sv);
    watch_signal(c, &c->sig_term, on_stop_signal, SIGTERM);
    watch_signal(c, &c->sig_int, on_stop_signal, SIGINT);
    watch_signal(c, &c->sig_hup, on_hup, SIGHUP);
    service_tell("STATUS=loading the backbone");
    int rc = residency_open(&c->sv) || admin_open(&c->sv) ? err_set(&e, -ENOMEM, "out of memory") : 0;
    if (!rc)
        rc = background_open(&c->loop, BACKGROUND, &c->sv.background, &e);
    if (!rc && c->o.request_log)
        rc = reqlog_open(c->o.request_log, &c->sv.requests, &e);
    if (!rc)
        rc = service_watch(&c->service, &c->loop, step_age_ns, c, &e);
    if (!rc)
        rc = start_listening(c, &e);
    if (!rc)
        rc = start_engine(c, &e);
    if (rc) {
        log_line("error", "%s", e.msg);
        c->status = rc == -EINVAL || e.param[0] ? EXIT_CONFIG : EXIT_FAILURE;
        shut(c);
    }
    uv_run(&c->loop, UV_RUN_DEFAULT);
    uv_loop_close(&c->loop);
    return c->status;
}

static void cleanup(struct cpetd *c)
{
    http_tls_unref(c->tls.api);
    http_tls_unref(c->tls.admin);
    residency_free(&c->sv);
    tasks_free(c->sv.tasks);
    modules_free(c->sv.modules);
    admin_free(&c->sv);
    keys_free(c->sv.keys);
    series_close(&c->sv.metrics.tasks);
    reqlog_close(c->sv.requests);
    free(c->sv.name);
    free(c->sv.tenant_gens);
    loaded_free(&c->loaded);
    options_free(&c->o);
}

static int run(struct cpetd *c)
{
    struct err e = {0};
    int rc = take_sockets(c, &e);
    if (!rc)
        rc = prepare(c, &e);
    if (rc) {
        log_line("error", "%s", e.msg);
        return rc == -ENOMEM ? EXIT_FAILURE : EXIT_CONFIG;
    }
    if (c->o.check_config) {
        printf("cpetd: the configuration is fine\n");
        return 0;
    }
    return serve(c);
}

int main(int argc, char **argv)
{
    static struct cpetd c;
    enum options_what what;
    struct err e = {0};
    int status = EXIT_USAGE;
    signal(SIGPIPE, SIG_IGN);
    mallopt(M_MMAP_THRESHOLD, MMAP_FROM);
    setenv("UV_THREADPOOL_SIZE", WORKERS, 0);
    if (sodium_init() < 0)
        return EXIT_FAILURE;
    int rc = options_read(argc, argv, environ, &c.o, &what, &status, &e);
    if (rc) {
        status = rc == -ENOMEM ? EXIT_FAILURE : status;
        fprintf(stderr, "cpetd: %s\n%s", e.msg, status == EXIT_USAGE ? "cpetd --help lists the options\n" : "");
        options_free(&c.o);
        return status;
    }
    if (what == OPTIONS_HELP) {
        fputs(options_help(), stdout);
        return 0;
    }
    if (what == OPTIONS_VERSION) {
        printf("cpetd %s\n", CPET_VERSION);
        return 0;
    }
    log_as_json(c.o.log_format == OPTIONS_LOG_JSON);
    c.loaded.o = &c.o;
    status = run(&c);
    cleanup(&c);
    return status;
}
