/* load_run.c - one run of the load generator: keeps N requests in flight until R were sent, and measures them.
 *
 * All on one libuv loop, made and closed here. A slot owns its call, its line buffer and its body; results go to the
 * caller's struct run_result. What always holds: prompts depend on (seed, run, request) alone; every request ends,
 * because each has a deadline; and nothing is kept of an answer but counts and times.
 */
#include "bench/load.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/num.h"

struct run {
    const struct load_options *o;
    struct run_result *r;
    uv_loop_t loop;
    uv_timer_t health;
    long index, next, active;
    bool probing, out_of_memory, all_usage;
    uint64_t first_send, last_token;
};

struct slot {
    struct run *run;
    struct http_call call;
    struct buf line;
    uint64_t last, tokens, usage;
    bool done, has_usage, failed;
};

bool samples_add(struct samples *s, double v)
{
    if (s->n == s->cap) {
        size_t cap = s->cap ? s->cap * 2 : 256;
        double *p = realloc(s->v, cap * sizeof *p);
        if (!p)
            return false;
        s->v = p;
        s->cap = cap;
    }
    s->v[s->n++] = v;
    return true;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double samples_quantile(struct samples *s, double q)
{
    if (!s->n)
        return NAN;
    qsort(s->v, s->n, sizeof *s->v, by_value);
    size_t i = (size_t)ceil(q * (double)s->n);
    return s->v[i ? i - 1 : 0];
}

void run_result_free(struct run_result *r)
{
    free(r->first.v);
    free(r->inter.v);
    free(r->health.v);
}

static void count_error(struct run_result *r, const char *what)
{
    size_t i = 0;
    while (i < r->n_errors && strcmp(r->errors[i].what, what))
        i++;
    if (i == MAX_STATUS)
        i--;
    if (i == r->n_errors) {
        snprintf(r->errors[i].what, sizeof r->errors[i].what, "%s", what);
        r->n_errors++;
    }
    r->errors[i].n++;
}

/* ---- the body ---- */

static json_t *make_prompt(const struct run *run, long request)
{
    static const char *const words[] = {"river", "stone", "light", "green", "carry", "seven", "paper", "night",
                                        "music", "salt",  "round", "early", "table", "cloud", "north", "glass"};
    const struct load_options *o = run->o;
    uint64_t sequence = (uint64_t)run->index << 32 | (uint64_t)request;
    if (!o->prompt_text) {
        json_t *ids = json_array();
        uint64_t span = (uint64_t)(o->vocab_max - o->vocab_min + 1);
        for (long i = 0; i < o->in; i++)
            json_array_append_new(ids,
                                  json_integer(o->vocab_min + (long)(rng_bits(o->seed, sequence, (uint64_t)i) % span)));
        return ids;
    }
    struct buf b = {0};
    for (long i = 0; i < o->in; i++)
        buf_printf(&b, "%s%s", i ? " " : "", words[rng_bits(o->seed, sequence, (uint64_t)i) % 16]);
    json_t *s = json_string(b.data ? b.data : "");
    buf_free(&b);
    return s;
}

static char *make_body(const struct run *run, long request)
{
    const struct load_options *o = run->o;
    json_t *j =
        json_pack("{s:o, s:b, s:b, s:I, s:i, s:{s:b}}", "prompt", make_prompt(run, request), "stream", 1, "ignore_eos",
                  1, "max_tokens", (json_int_t)o->out, "temperature", 0, "stream_options", "include_usage", 1);
    if (o->n_models)
        json_object_set_new(j, "model", json_string(o->models[(size_t)request % o->n_models]));
    if (o->n_lora)
        json_object_set_new(
            j, "lora",
            json_pack("[{s:I, s:f}]", "id", (json_int_t)o->lora_ids[(size_t)request % o->n_lora], "scale", 1.0));
    if (o->extra)
        json_object_update(j, o->extra);
    char *s = json_dumps(j, JSON_COMPACT);
    json_decref(j);
    return s;
}

/* ---- the answer ---- */

static void on_token(struct slot *s, uint64_t now)
{
    struct run *run = s->run;
    double ms = (double)(now - (s->tokens ? s->last : s->call.sent_ns)) / 1e6;
    run->out_of_memory |= !samples_add(s->tokens ? &run->r->inter : &run->r->first, ms);
    s->tokens++;
    s->last = now;
    if (now > run->last_token)
        run->last_token = now;
}

static void on_event(struct slot *s, const char *p, size_t n)
{
    if (n == 6 && !memcmp(p, "[DONE]", 6)) {
        s->done = true;
        return;
    }
    json_t *j = json_loadb(p, n, 0, NULL);
    json_t *choice = json_array_get(json_object_get(j, "choices"), 0), *usage = json_object_get(j, "usage");
    const char *text = json_string_value(json_object_get(choice, "text"));
    if (!j || json_object_get(j, "error"))
        s->failed = true;
    if (choice && (!json_is_string(json_object_get(choice, "finish_reason")) || (text && *text)))
        on_token(s, uv_hrtime());
    json_t *count = json_object_get(usage, "completion_tokens");
    if (json_is_integer(count) && json_integer_value(count) >= 0) {
        s->has_usage = true;
        s->usage = (uint64_t)json_integer_value(count);
    }
    json_decref(j);
}

static void on_body(struct http_call *c, const char *p, size_t n)
{
    struct slot *s = c->data;
    if (c->status != 200)
        return;
    buf_append(&s->line, p, n);
    if (s->line.failed) {
        s->failed = true;
        return;
    }
    char *nl;
    while (s->line.len && (nl = memchr(s->line.data, '\n', s->line.len))) {
        size_t len = (size_t)(nl - s->line.data), k = len;
        while (k && s->line.data[k - 1] == '\r')
            k--;
        if (k > 5 && !memcmp(s->line.data, "data:", 5)) {
            size_t from = s->line.data[5] == ' ' ? 6 : 5;
            on_event(s, s->line.data + from, k - from);
        }
        buf_consume(&s->line, len + 1);
    }
}

static void start_next(struct run *run);

static void on_done(struct http_call *c)
{
    struct slot *s = c->data;
    struct run *run = s->run;
    struct run_result *r = run->r;
    char what[32];
    if (c->status && c->status != 200) {
        snprintf(what, sizeof what, "%d", c->status);
        count_error(r, what);
    } else if (c->failure || s->failed || !s->tokens) {
        count_error(r, c->failure ? c->failure : s->failed ? "error in the stream" : "no tokens");
    }
    bool ok = c->status == 200 && !c->failure && !s->failed && s->tokens;
    r->ok += ok;
    r->failed += !ok;
    r->tokens += s->has_usage ? s->usage : s->tokens;
    run->all_usage &= s->has_usage || !ok;
    buf_free(&s->line);
    free(s);
    run->active--;
    start_next(run);
}

static bool start_one(struct run *run)
{
    struct slot *s = calloc(1, sizeof *s);
    char *body = make_body(run, run->next);
    bool ok = s && body;
    if (ok) {
        s->run = run;
        s->call.on_body = on_body;
        s->call.on_done = on_done;
        s->call.data = s;
        buf_init(&s->line, 1 << 20);
        ok = !http_start(&run->loop, &run->o->target, &s->call, "POST", "/v1/completions", run->o->bearer, body,
                         (uint64_t)run->o->timeout_ms);
    }
    if (ok && !run->first_send)
        run->first_send = s->call.sent_ns;
    if (!ok)
        free(s);
    free(body);
    return ok;
}

static void start_next(struct run *run)
{
    while (!run->out_of_memory && run->active < run->o->concurrency && run->next < run->o->requests) {
        if (!start_one(run)) {
            run->out_of_memory = true;
            break;
        }
        run->next++;
        run->active++;
    }
    if (!run->active && run->o->health_ms && !uv_is_closing((uv_handle_t *)&run->health))
        uv_close((uv_handle_t *)&run->health, NULL);
}

/* ---- the health probe ---- */

static void on_health_body(struct http_call *c, const char *p, size_t n)
{
    (void)c;
    (void)p;
    (void)n;
}

static void on_health_done(struct http_call *c)
{
    struct run *run = c->data;
    if (c->failure || c->status != 200)
        run->r->health_failed++;
    else
        run->out_of_memory |= !samples_add(&run->r->health, (double)(uv_hrtime() - c->sent_ns) / 1e6);
    run->probing = false;
    free(c);
}

static void on_health_timer(uv_timer_t *t)
{
    struct run *run = t->data;
    if (run->probing)
        return;
    struct http_call *c = calloc(1, sizeof *c);
    if (!c)
        return;
    c->on_body = on_health_body;
    c->on_done = on_health_done;
    c->data = run;
    if (http_start(&run->loop, &run->o->target, c, "GET", "/health", run->o->bearer, NULL, 10000))
        free(c);
    else
        run->probing = true;
}

int load_run(const struct load_options *o, long k, struct run_result *r)
{
    struct run run = {.o = o, .r = r, .index = k, .all_usage = true};
    memset(r, 0, sizeof *r);
    if (uv_loop_init(&run.loop))
        return -1;
    if (o->health_ms) {
        uv_timer_init(&run.loop, &run.health);
        run.health.data = &run;
        uv_timer_start(&run.health, on_health_timer, 0, (uint64_t)o->health_ms);
    }
    start_next(&run);
    uv_run(&run.loop, UV_RUN_DEFAULT);
    uv_loop_close(&run.loop);
    r->seconds = run.last_token > run.first_send ? (double)(run.last_token - run.first_send) / 1e9 : 0;
    r->tokens_per_s = r->seconds > 0 ? (double)r->tokens / r->seconds : 0;
    r->by_usage = run.all_usage && r->ok > 0;
    return run.out_of_memory ? -1 : 0;
}
