/* request_line.c - a request of the API listener as a line of the request log.
 *
 * Loop thread, when a request is over (its answer is on the way, or its client has left) and before its call forgets
 * it. Prompts, and the messages of errors, which may quote them, are in it with --log-prompts alone. While a worker
 * parses or encodes for a call, only what the loop itself wrote is looked at.
 */
#include <string.h>

#include "server/call.h"
#include "server/log.h"
#include "server/reqlog.h"

/* Most bytes of a text, and ids of a prompt, that a line shows. */
#define SHOWN_BYTES ((size_t)16 << 10)
#define SHOWN_IDS ((size_t)4 << 10)
#define SHOWN_PROMPTS 16

/* What a client that left before its answer is shown as. */
#define STATUS_LEFT 499

static void put_text(struct buf *b, const char *key, const char *s)
{
    buf_printf(b, ", \"%s\": ", key);
    if (s)
        json_put_string(b, s, strlen(s));
    else
        buf_puts(b, "null");
}

static void put_ms(struct buf *b, const char *key, uint64_t from_ns, uint64_t to_ns)
{
    if (from_ns && to_ns >= from_ns)
        buf_printf(b, ", \"%s\": %.3f", key, (double)(to_ns - from_ns) * 1e-6);
    else
        buf_printf(b, ", \"%s\": null", key);
}

static void put_finish_reasons(struct buf *b, const struct call *c)
{
    buf_puts(b, ", \"finish_reasons\": [");
    for (size_t i = 0; c->choice && i < c->n_choices; i++) {
        const char *f = c->choice[i].finish;
        buf_printf(b, f ? "%s\"%s\"" : "%s%s", i ? ", " : "", f ? f : "null");
    }
    buf_puts(b, "]");
}

static void put_prompt(struct buf *b, const struct req_prompt *p)
{
    if (!p->ids) {
        json_put_string(b, p->text.ptr ? p->text.ptr : "", p->text.len < SHOWN_BYTES ? p->text.len : SHOWN_BYTES);
        return;
    }
    buf_puts(b, "[");
    for (size_t i = 0; i < p->n_ids && i < SHOWN_IDS; i++)
        buf_printf(b, "%s%d", i ? ", " : "", p->ids[i]);
    buf_puts(b, "]");
}

static void put_prompts(struct buf *b, const struct req *q)
{
    const struct req_str *m = &q->messages_json;
    buf_puts(b, ", \"prompt\": ");
    if (m->ptr && m->len < SHOWN_BYTES) {
        buf_append(b, m->ptr, m->len);
    } else if (m->ptr) { /* no longer JSON when it is cut: shown as a string */
        json_put_string(b, m->ptr, SHOWN_BYTES);
    } else {
        buf_puts(b, "[");
        for (size_t i = 0; i < q->n_prompts && i < SHOWN_PROMPTS; i++) {
            buf_puts(b, i ? ", " : "");
            put_prompt(b, &q->prompts[i]);
        }
        buf_puts(b, "]");
    }
}

static void put_call(struct buf *b, const struct server *sv, const struct call *c, uint64_t now_ns)
{
    struct resp_usage u;
    const struct req *q = c->in_work ? NULL : c->req;
    const struct call_prompt *p = c->task && c->prompt ? &c->prompt[0] : NULL;
    call_usage(c, &u);
    put_text(b, "task", c->task ? c->task->id : NULL);
    buf_printf(b, ", \"stream\": %s", q && q->stream ? "true" : "false");
    put_finish_reasons(b, c);
    buf_printf(b, ", \"prompt_tokens\": %u, \"cached_tokens\": %u, \"completion_tokens\": %u", u.prompt_tokens,
               u.cached_tokens, u.completion_tokens);
    put_ms(b, "queue_ms", c->queued_ns, p ? p->admitted_ns : 0);
    put_ms(b, "first_token_ms", c->first_ns ? c->start_ns : 0, c->first_ns);
    put_ms(b, "total_ms", c->start_ns, now_ns);
    put_text(b, "error_param", c->failure.param[0] ? c->failure.param : NULL);
    if (!sv->o->log_prompts)
        return;
    put_text(b, "error", c->failure.code ? c->failure.msg : NULL);
    if (q)
        put_prompts(b, q);
}

void request_line(struct server *sv, struct http_req *r)
{
    struct buf b;
    const struct call *c = http_user(r);
    uint32_t tenant = c ? c->tenant : KEYS_ANYBODY;
    int status = http_status(r);
    bool left = c ? !c->ended : !status;
    const char *outcome = left || (c && c->outcome == SERIES_ABORT) ? "abort"
                          : c                                       ? (c->outcome == SERIES_OK ? "ok" : "error")
                          : status < 400                            ? "ok"
                                                                    : "error";
    buf_init(&b, REQLOG_QUEUE_BYTES);
    buf_puts(&b, "{");
    log_put_time(&b);
    put_text(&b, "request_id", http_request_id(r));
    put_text(&b, "client", http_peer(r));
    put_text(&b, "method", http_method(r));
    put_text(&b, "path", http_path(r));
    buf_printf(&b, ", \"status\": %d, \"outcome\": \"%s\"", status ? status : STATUS_LEFT, outcome);
    put_text(&b, "tenant", tenant == KEYS_ANYBODY ? NULL : keys_tenant_name(sv->keys, tenant));
    if (c)
        put_call(&b, sv, c, mono_ns());
    buf_puts(&b, "}");
    if (!b.failed)
        reqlog_put(sv->requests, b.data, b.len);
    buf_free(&b);
}
