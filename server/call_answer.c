/* call_answer.c - a request on its way out: the engine's events to choices, choices to JSON or server-sent events.
 *
 * Loop thread. Each wake-up of the loop drains the rings that have news; what came of a call is then sent in one
 * write. A stream's head goes out with its first bytes, so that whoever fails in the queue still gets a status. A
 * client that reads so slowly that its backlog is full is dropped: the generation is cancelled and the stream cut.
 *
 * A choice that ends by a stop string ends here; the engine is told by choice_stopped and may sample a token or two
 * that nobody counts.
 */
#include <stdlib.h>
#include <string.h>

#include "server/call.h"
#include "server/log.h"

/* ---- choices ---- */

/* The prompt's text for echo: as the client wrote it, or from its ids. */
static int echo_text(struct call *c, const struct call_prompt *p, struct buf *out)
{
    if (p->text.ptr)
        return buf_append(out, p->text.ptr, p->text.len);
    return tok_decode(c->sv->tok, p->id, p->n, false, out);
}

int call_open_choices(struct call *c)
{
    const struct req *q = c->req;
    c->n_choices = c->n_prompts * c->n_each;
    c->choice = calloc(c->n_choices, sizeof *c->choice);
    if (!c->choice)
        return -ENOMEM;
    for (size_t i = 0; i < c->n_choices; i++) {
        choice_open(&c->choice[i], q);
        if (q->echo && echo_text(c, &c->prompt[i / c->n_each], &c->choice[i].out))
            return -ENOMEM;
    }
    return 0;
}

/* ---- ends ---- */

static void mark_answered(struct call *c)
{
    if (c->answered)
        return;
    c->answered = true;
    c->sv->n_active--;
}

void call_count(struct call *c, enum series_outcome how)
{
    struct resp_usage u;
    c->ended = true;
    c->outcome = how;
    if (!c->task)
        return;
    call_usage(c, &u);
    metrics_task_done(c->sv, c->task->id, how, u.prompt_tokens, u.completion_tokens);
}

void call_fail(struct call *c, int status, const struct err *e, const char *code)
{
    call_cancel(c);
    if (!c->r || c->answered)
        return;
    mark_answered(c);
    c->sv->metrics.finished_error++;
    c->failure = *e;
    call_count(c, SERIES_ERROR);
    if (!c->streaming) {
        api_error(c->r, status, e, code);
        return;
    }
    struct buf b = {0};
    resp_chunk_error(&b, status, e);
    if (!b.failed && !http_stream_write(c->r, b.data, b.len))
        http_stream_end(c->r);
    else
        http_stream_abort(c->r);
    buf_free(&b);
}

static void fail_memory(struct call *c)
{
    struct err e;
    err_set(&e, -ENOMEM, "the server is out of memory");
    call_fail(c, 503, &e, NULL);
}

void call_usage(const struct call *c, struct resp_usage *u)
{
    *u = (struct resp_usage){.prompt_tokens = (uint32_t)c->n_prompt_tokens};
    for (size_t i = 0; c->choice && i < c->n_choices; i++)
        u->completion_tokens += c->choice[i].n_out;
    for (size_t i = 0; i < c->n_prompts; i++)
        u->cached_tokens += c->prompt[i].n_cached;
}

static void count_finished(struct call *c)
{
    uint64_t now = mono_ns();
    for (size_t i = 0; i < c->n_choices; i++) {
        const struct choice *ch = &c->choice[i];
        const struct call_prompt *p = &c->prompt[i / c->n_each];
        struct metrics_choice d = {.start_ns = c->start_ns,
                                   .admitted_ns = p->admitted_ns,
                                   .first_ns = ch->first_ns,
                                   .last_ns = ch->last_ns,
                                   .now_ns = now,
                                   .prompt_tokens = (uint32_t)p->n,
                                   .generation_tokens = ch->n_out,
                                   .finish = ch->finish};
        metrics_choice_done(&c->sv->metrics, &d);
    }
    call_count(c, SERIES_OK);
}

static bool all_finished(const struct call *c)
{
    for (size_t i = 0; i < c->n_choices; i++)
        if (!c->choice[i].finish)
            return false;
    return true;
}

/* ---- one answer ---- */

static double mean_logprob(const struct choice *ch)
{
    return ch->n_out ? ch->sum_logprob / ch->n_out : 0;
}

/* Which of a prompt's choices are shown: the n of the highest mean log-probability, best first; all of them in their
 * order where none is left out. */
static void pick_best(const struct call *c, size_t first, size_t *out)
{
    size_t n = c->req->n, have = 0;
    for (size_t k = 0; k < c->n_each; k++) {
        size_t at = have < n ? have++ : n;
        double mean = mean_logprob(&c->choice[first + k]);
        while (c->n_each > n && at && mean_logprob(&c->choice[out[at - 1]]) < mean) {
            if (at < n)
                out[at] = out[at - 1];
            at--;
        }
        if (at < n)
            out[at] = first + k;
    }
}

static void put_prompt(const struct call *c, size_t prompt, struct resp_choice *rc)
{
    const struct call_prompt *p = &c->prompt[prompt];
    if (c->req->return_token_ids)
        rc->prompt_token_ids = (struct resp_ids){p->id, p->n};
    if (c->req->prompt_logprobs >= 0)
        rc->prompt_logprobs = &p->scores;
}

/* The choices that are shown, prompt by prompt. */
static int take_choices(struct call *c, size_t n, struct resp_choice *rc, struct resp_logprobs *lp)
{
    size_t *shown = arena_calloc(c->a, n, sizeof *shown);
    if (!rc || !lp || !shown)
        return -ENOMEM;
    for (size_t p = 0; p < c->n_prompts; p++)
        pick_best(c, p * c->n_each, shown + p * c->req->n);
    for (size_t i = 0; i < n; i++) {
        rc[i].index = (unsigned)i;
        if (choice_take(&c->choice[shown[i]], c->sv->tok, c->a, &rc[i], &lp[i]))
            return -ENOMEM;
        put_prompt(c, i / c->req->n, &rc[i]);
    }
    return 0;
}

void call_reply(struct call *c, const struct buf *b)
{
    if (b->failed) {
        fail_memory(c);
        return;
    }
    count_finished(c);
    mark_answered(c);
    http_reply(c->r, 200, "application/json", b->data, b->len, NULL, 0);
}

static void answer_whole(struct call *c)
{
    if (c->kind >= REQ_EMBEDDING) {
        call_more_answer(c);
        return;
    }
    size_t n = c->n_prompts * c->req->n;
    struct resp_choice *rc = arena_calloc(c->a, n, sizeof *rc);
    struct resp_logprobs *lp = arena_calloc(c->a, n, sizeof *lp);
    if (take_choices(c, n, rc, lp)) {
        fail_memory(c);
        return;
    }
    struct resp_usage u;
    struct buf b = {0};
    call_usage(c, &u);
    resp_full(&b, &c->head, rc, n, &u);
    call_reply(c, &b);
    buf_free(&b);
}

/* ---- streams ---- */

static bool write_stream(struct call *c, const struct buf *b)
{
    if (!b->len)
        return true;
    static const struct http_hdr no_cache[] = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}};
    if (!c->streaming) {
        if (http_stream_begin(c->r, 200, "text/event-stream; charset=utf-8", no_cache, 2)) {
            fail_memory(c);
            return false;
        }
        c->streaming = true;
    }
    int rc = http_stream_write(c->r, b->data, b->len);
    if (!rc)
        return true;
    mark_answered(c);
    c->sv->metrics.finished_abort++;
    call_count(c, SERIES_ABORT);
    call_cancel(c);
    http_stream_abort(c->r);
    return false;
}

/* One choice's news as a chunk. scratch holds the tables for the time of this call. */
static int chunk(struct call *c, size_t i, struct arena *scratch, struct buf *b)
{
    struct choice *ch = &c->choice[i];
    struct resp_choice rc = {.index = (unsigned)i};
    struct resp_logprobs lp;
    if (!ch->dirty || ch->sent_finish)
        return 0;
    if (!ch->n_out && !ch->finish) /* an echoed prompt waits for the first token */
        return 0;
    ch->dirty = false;
    if (choice_take(ch, c->sv->tok, scratch, &rc, &lp))
        return -ENOMEM;
    if (!ch->begun)
        put_prompt(c, i / c->n_each, &rc);
    if (c->kind == REQ_CHAT && !ch->begun) {
        resp_chunk_role(b, &c->head, (unsigned)i, c->sent_prompt_ids ? NULL : &rc.prompt_token_ids);
        c->sent_prompt_ids = true;
    }
    if (c->kind == REQ_CHAT)
        ch->begun = true;
    if (!rc.n_text && !lp.n_tokens && !rc.finish)
        return 0;
    ch->begun = true;
    resp_chunk(b, &c->head, &rc);
    for (size_t k = 0; k < lp.n_tokens; k++)
        ch->chars += resp_chars(lp.tokens[k].token.bytes, lp.tokens[k].token.n_bytes);
    choice_sent(ch, lp.n_tokens);
    ch->sent_finish = rc.finish != NULL;
    return 0;
}

static int stream_chunks(struct call *c, struct buf *b)
{
    struct arena *scratch = c->req->logprobs >= 0 ? arena_create(0) : NULL;
    int rc = c->req->logprobs >= 0 && !scratch ? -ENOMEM : 0;
    for (size_t i = 0; !rc && i < c->n_choices; i++)
        rc = chunk(c, i, scratch, b);
    arena_free(scratch);
    return rc;
}

static void send_stream(struct call *c)
{
    struct buf b = {0};
    bool over = all_finished(c);
    int rc = stream_chunks(c, &b);
    if (over && c->req->include_usage) {
        struct resp_usage u;
        call_usage(c, &u);
        resp_chunk_usage(&b, &c->head, &u);
    }
    if (over)
        resp_chunk_done(&b);
    if (rc || b.failed) {
        fail_memory(c);
    } else if (write_stream(c, &b) && over) {
        count_finished(c);
        mark_answered(c);
        http_stream_end(c->r);
    }
    buf_free(&b);
}

void call_send(struct call *c)
{
    if (!c->r || c->answered)
        return;
    if (c->req->stream)
        send_stream(c);
    else if (all_finished(c))
        answer_whole(c);
    if (c->answered)
        call_cancel(c);
}

/* ---- what the engine says ---- */

/* A token of the choice has come. */
static void times(struct call *c, struct gen *g, struct call_prompt *p, struct choice *ch)
{
    struct metrics *m = &c->sv->metrics;
    uint64_t now = mono_ns();
    m->generation_tokens++;
    if (!c->first_ns)
        c->first_ns = now;
    if (!p->admitted_ns) {
        p->admitted_ns = atomic_load(&g->admitted_ns);
        histogram_add(&m->queue, (double)(p->admitted_ns - c->queued_ns) * 1e-9); /* waiting for modules is waiting */
    }
    if (!ch->first_ns) {
        ch->first_ns = now;
        histogram_add(&m->first_token, (double)(now - c->start_ns) * 1e-9);
    } else {
        histogram_add(&m->between_tokens, (double)(now - ch->last_ns) * 1e-9);
    }
    ch->last_ns = now;
}

/* A token of the prompt: to the choices that echo or score it, and to the list of the prompt's log-probabilities. */
static int take_prompt_event(struct call *c, size_t at, const struct gen_event *ev, const int32_t *top_id,
                             const float *top_logprob)
{
    const struct tok *t = c->sv->tok;
    const struct req *q = c->req;
    int rc = 0;
    for (size_t k = 0; (q->echo || q->more) && !rc && k < c->n_each; k++)
        rc = choice_token(&c->choice[at * c->n_each + k], t, ev, top_id, top_logprob);
    if (rc || q->prompt_logprobs < 0)
        return rc;
    struct resp_top own, top[KERN_TOP_MAX];
    size_t n_top = 0;
    choice_top(t, ev->token, ev->logprob, &own);
    for (; n_top < (size_t)q->prompt_logprobs && top_id[n_top] >= 0; n_top++)
        choice_top(t, top_id[n_top], top_logprob[n_top], &top[n_top]);
    resp_put_score(&c->prompt[at].scores, &own, ev->rank, top, n_top);
    return c->prompt[at].scores.failed ? -ENOMEM : 0;
}

static int take_event(struct call *c, struct gen *g, size_t at, const struct gen_event *ev, const int32_t *top_id,
                      const float *top_logprob)
{
    const struct tok *t = c->sv->tok;
    if (ev->of_prompt)
        return take_prompt_event(c, at, ev, top_id, top_logprob);
    struct choice *ch = &c->choice[at * c->n_each + ev->choice];
    if (ch->finish)
        return 0;
    times(c, g, &c->prompt[at], ch);
    int rc = choice_token(ch, t, ev, top_id, top_logprob);
    if (ch->finish && !ev->finish)
        atomic_store_explicit(&g->choice_stopped[ev->choice], true, memory_order_relaxed);
    return rc;
}

static void drain(struct call *c, struct gen *g, size_t at)
{
    struct gen_event ev;
    const int32_t *top_id;
    const float *top_logprob;
    bool full = gen_room(g) == 0;
    int rc = 0;
    c->prompt[at].n_cached = atomic_load_explicit(&g->n_cached, memory_order_relaxed);
    while (gen_peek(g, &ev, &top_id, &top_logprob)) {
        if (c->r && !c->answered && !rc)
            rc = take_event(c, g, at, &ev, top_id, top_logprob);
        gen_pop(g);
    }
    if (rc)
        fail_memory(c);
    if (full)
        engine_kick(c->sv->en);
}

/* What went wrong inside is for the log; the client gets the number to ask about. */
static void hide_failure(const struct call *c, struct gen *g)
{
    if (resp_status(g->code) != 500)
        return;
    const char *id = c->r ? http_request_id(c->r) : "of a client that has left";
    log_line("error", "request %s: %s", id, g->err.msg);
    err_set(&g->err, g->code, "the server failed while computing; request ID %s", id);
}

static void gen_over(struct call *c, struct gen *g, size_t at)
{
    struct server *sv = c->sv;
    c->gen[at] = NULL;
    if (!--c->n_with_engine)
        call_let_go(c);
    sv->n_gens--;
    call_count_gens(c, -1);
    if (g->code && g->code != -ECANCELED) {
        hide_failure(c, g);
        call_fail(c, resp_status(g->code), &g->err, NULL);
    }
    if (!g->code && g->pooled && call_pooled(c, g, at))
        fail_memory(c);
    for (size_t k = 0; !g->code && k < c->n_each; k++)
        choice_end(&c->choice[at * c->n_each + k], c->req->more ? "stop" : "length");
    gen_free(g);
}

void call_news(void *ctx, struct gen *g, bool done)
{
    (void)ctx;
    struct call *c = g->user;
    size_t at = g->index;
    drain(c, g, at);
    if (done)
        gen_over(c, g, at);
    call_send(c);
    call_drop(c);
}
