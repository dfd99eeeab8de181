/* choice.c - tokens in, text and tables of log-probabilities out.
 *
 * Loop thread. A special token has no text, but it is a token: it counts, and it has its place among the
 * log-probabilities, so that their number equals usage.completion_tokens. While a stop string may be beginning, the
 * tokens that it lies in are held back with its text; when the choice ends, all tokens go out.
 */
#include "server/choice.h"

#include <stdlib.h>
#include <string.h>

void choice_open(struct choice *c, const struct req *q)
{
    memset(c, 0, sizeof *c);
    text_open(&c->text, q->sampling.stop, q->sampling.n_stop);
    c->logprobs = q->logprobs >= 0;
    c->n_top = q->logprobs > 0 ? (size_t)q->logprobs : 0;
    c->keep_ids = q->return_token_ids;
}

void choice_close(struct choice *c)
{
    text_close(&c->text);
    buf_free(&c->out);
    free(c->token);
    free(c->top_id);
    free(c->top_logprob);
    free(c->id);
    c->id = NULL;
    c->token = NULL;
    c->top_id = NULL;
    c->top_logprob = NULL;
}

static int grow(struct choice *c)
{
    if (c->n_tokens < c->cap)
        return 0;
    size_t cap = c->cap ? 2 * c->cap : 32;
    void *p = realloc(c->token, cap * sizeof *c->token);
    if (!p)
        return -ENOMEM;
    c->token = p;
    if (c->n_top) {
        void *id = realloc(c->top_id, cap * c->n_top * sizeof *c->top_id);
        if (!id)
            return -ENOMEM;
        c->top_id = id;
        void *lp = realloc(c->top_logprob, cap * c->n_top * sizeof *c->top_logprob);
        if (!lp)
            return -ENOMEM;
        c->top_logprob = lp;
    }
    c->cap = cap;
    return 0;
}

static int keep(struct choice *c, const struct gen_event *ev, const int32_t *top_id, const float *top_logprob)
{
    if (!c->logprobs)
        return 0;
    if (grow(c))
        return -ENOMEM;
    c->token[c->n_tokens] = (struct choice_token){ev->token, ev->logprob, c->text.n_in};
    if (c->n_top) {
        memcpy(c->top_id + c->n_tokens * c->n_top, top_id, c->n_top * sizeof *top_id);
        memcpy(c->top_logprob + c->n_tokens * c->n_top, top_logprob, c->n_top * sizeof *top_logprob);
    }
    c->n_tokens++;
    return 0;
}

static int keep_id(struct choice *c, int32_t id)
{
    if (!c->keep_ids)
        return 0;
    if (c->n_ids == c->cap_ids) {
        size_t cap = c->cap_ids ? 2 * c->cap_ids : 32;
        int32_t *p = realloc(c->id, cap * sizeof *p);
        if (!p)
            return -ENOMEM;
        c->id = p;
        c->cap_ids = cap;
    }
    c->id[c->n_ids++] = id;
    return 0;
}

int choice_end(struct choice *c, const char *why)
{
    if (c->finish)
        return 0;
    c->finish = why;
    c->dirty = true;
    return text_finish(&c->text, &c->out);
}

int choice_token(struct choice *c, const struct tok *t, const struct gen_event *ev, const int32_t *top_id,
                 const float *top_logprob)
{
    const char *bytes;
    size_t n;
    if (c->finish)
        return 0;
    c->dirty = true;
    if (ev->of_prompt)
        return keep(c, ev, top_id, top_logprob);
    c->n_out++;
    c->sum_logprob += (double)ev->logprob;
    int rc = keep_id(c, ev->token);
    bool silent = ev->finish == GEN_STOP || tok_is_special(t, ev->token) || tok_piece(t, ev->token, &bytes, &n);
    if (!rc && !silent)
        rc = text_push(&c->text, bytes, n, &c->out);
    if (!rc)
        rc = keep(c, ev, top_id, top_logprob);
    if (!rc && (c->text.stopped || ev->finish == GEN_STOP || ev->finish == GEN_WHOLE))
        rc = choice_end(c, "stop");
    else if (!rc && ev->finish == GEN_LENGTH)
        rc = choice_end(c, "length");
    return rc;
}

void choice_top(const struct tok *t, int32_t id, float logprob, struct resp_top *out)
{
    *out = (struct resp_top){id, logprob, "", 0};
    tok_piece(t, id, &out->bytes, &out->n_bytes);
}

static int fill_tokens(struct choice *c, const struct tok *t, struct arena *a, size_t n, struct resp_logprobs *lp)
{
    struct resp_token *out = arena_calloc(a, n, sizeof *out);
    struct resp_top *tops = c->n_top ? arena_calloc(a, n * c->n_top, sizeof *tops) : NULL;
    if (!out || (c->n_top && !tops))
        return -ENOMEM;
    for (size_t i = 0; i < n; i++) {
        choice_top(t, c->token[i].id, c->token[i].logprob, &out[i].token);
        const int32_t *id = c->n_top ? c->top_id + i * c->n_top : NULL;
        for (size_t k = 0; k < c->n_top && id[k] >= 0; k++, out[i].n_top++)
            choice_top(t, id[k], c->top_logprob[i * c->n_top + k], &tops[i * c->n_top + k]);
        out[i].top = out[i].n_top ? tops + i * c->n_top : NULL;
    }
    *lp = (struct resp_logprobs){.tokens = out, .n_tokens = n, .text_offset = c->chars};
    return 0;
}

int choice_take(struct choice *c, const struct tok *t, struct arena *a, struct resp_choice *rc,
                struct resp_logprobs *lp)
{
    size_t n = 0;
    while (n < c->n_tokens && (c->finish || c->token[n].end <= c->text.n_out))
        n++;
    *lp = (struct resp_logprobs){0};
    if (c->logprobs && fill_tokens(c, t, a, n, lp))
        return -ENOMEM;
    rc->text = c->out.data ? c->out.data : "";
    rc->n_text = c->out.len;
    rc->finish = c->finish;
    rc->logprobs = c->logprobs ? lp : NULL;
    static const int32_t none;
    if (c->keep_ids)
        rc->token_ids = (struct resp_ids){c->id ? c->id : &none, c->n_ids};
    return c->out.failed ? -ENOMEM : 0;
}

void choice_sent(struct choice *c, size_t n_tokens)
{
    buf_clear(&c->out);
    c->n_ids = 0;
    if (!n_tokens)
        return;
    c->n_tokens -= n_tokens;
    memmove(c->token, c->token + n_tokens, c->n_tokens * sizeof *c->token);
    if (!c->n_top)
        return;
    memmove(c->top_id, c->top_id + n_tokens * c->n_top, c->n_tokens * c->n_top * sizeof *c->top_id);
    memmove(c->top_logprob, c->top_logprob + n_tokens * c->n_top, c->n_tokens * c->n_top * sizeof *c->top_logprob);
}
