/* call_more.c - what a request for tokens, an embedding or a score does otherwise than a completion.
 *
 * Such a request takes a completion's way: parse, find the task, encode, admit, submit, answer (call.c,
 * call_answer.c). Tokenizing ends at encode, which writes the answer. An embedding is a generation that reads its
 * prompt and ends with a pooled vector; a score is one that reads text_1 and text_2 with the log-probabilities of its
 * tokens.
 *
 * Stages run on a worker when the request is large; what they write is the call's own. Vectors are in the call's arena.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "server/call.h"

/* Most tokens of one text to /tokenize: the context does not bound what may be counted. */
#define TOKENIZE_MAX ((size_t)1 << 20)
/* Numbers of an answer above which it is written by a worker. */
#define INLINE_FLOATS ((size_t)8 << 10)

const char *call_prompt_field(const struct call *c)
{
    switch (c->kind) {
    case REQ_CHAT:
        return "messages";
    case REQ_EMBEDDING:
        return "input";
    case REQ_SCORE:
        return "text_1";
    case REQ_TOKENIZE:
        return c->req->n_messages ? "messages" : "prompt";
    case REQ_DETOKENIZE:
        return "tokens";
    default:
        return "prompt";
    }
}

size_t call_prompt_limit(const struct call *c)
{
    return c->kind == REQ_TOKENIZE ? TOKENIZE_MAX : (size_t)c->sv->mi->max_context + 1;
}

/* ---- encode ---- */

static int encode_tokens(struct call *c, struct err *e)
{
    const struct req *q = c->req;
    unsigned flags = TOK_SPECIAL | (q->more->special ? TOK_POST : 0);
    int rc = q->n_messages ? call_encode_chat(c, flags, e)
                           : call_encode(c, q->prompts[0].text.ptr, q->prompts[0].text.len, flags, &c->prompt[0], e);
    if (rc)
        return rc;
    const struct call_prompt *p = &c->prompt[0];
    struct req_str *strs = q->more->token_strs ? calloc(p->n + 1, sizeof *strs) : NULL;
    if (q->more->token_strs && !strs)
        return err_set(e, -ENOMEM, "the server is out of memory");
    for (size_t i = 0; strs && i < p->n; i++)
        strs[i].ptr = tok_written(c->sv->tok, p->id[i], &strs[i].len);
    resp_tokenize(&c->out, p->id, strs, p->n, c->sv->mi->max_context);
    free(strs);
    return 0;
}

static int decode_tokens(struct call *c, struct err *e)
{
    const struct req_prompt *p = &c->req->prompts[0];
    struct buf text = {0};
    int rc = tok_decode(c->sv->tok, p->ids, p->n_ids, false, &text);
    if (!rc)
        resp_detokenize(&c->out, text.data ? text.data : "", text.len);
    buf_free(&text);
    return rc ? err_set(e, -ENOMEM, "the server is out of memory") : 0;
}

/* text_1's tokens and then text_2's, each encoded by itself: what a score is of does not depend on where the two join.
 */
static int join(struct call *c, size_t i, const struct call_prompt *first, const struct call_prompt *second,
                struct err *e)
{
    struct call_prompt *out = &c->prompt[i];
    if (!first->n)
        return err_param(e, -EINVAL, "text_1", "text_1 has no tokens: there is nothing to score text_2 after");
    if (!second->n)
        return err_param(e, -EINVAL, "text_2", "text_2 has no tokens (the text at %zu)", i);
    size_t n = first->n + second->n;
    if (n > c->sv->mi->max_context)
        return err_param(e, -EINVAL, "text_2",
                         "text_1 and text_2 have %zu tokens (the pair at %zu), the context holds %u", n, i,
                         c->sv->mi->max_context);
    int32_t *id = arena_alloc(c->a, n * sizeof *id);
    if (!id)
        return err_set(e, -E2BIG, "the request is too large");
    memcpy(id, first->id, first->n * sizeof *id);
    memcpy(id + first->n, second->id, second->n * sizeof *id);
    *out = (struct call_prompt){.id = id, .n = n, .n_context = first->n};
    return 0;
}

static int encode_pairs(struct call *c, struct err *e)
{
    const struct req *q = c->req;
    struct call_prompt first = {0}, second;
    int rc = 0;
    for (size_t i = 0; !rc && i < c->n_prompts; i++) {
        if (i < q->n_prompts)
            rc = call_encode(c, q->prompts[i].text.ptr, q->prompts[i].text.len, TOK_SPECIAL | TOK_POST, &first, e);
        if (!rc)
            rc = call_encode(c, q->more->text_2[i].ptr, q->more->text_2[i].len, TOK_SPECIAL, &second, e);
        if (!rc)
            rc = join(c, i, &first, &second, e);
    }
    return rc;
}

int call_more_encode(struct call *c, struct err *e)
{
    switch (c->kind) {
    case REQ_TOKENIZE:
        return encode_tokens(c, e);
    case REQ_DETOKENIZE:
        return decode_tokens(c, e);
    case REQ_SCORE:
        return encode_pairs(c, e);
    default:
        return call_encode_prompts(c, e);
    }
}

size_t call_more_prompts(const struct call *c)
{
    return c->kind == REQ_SCORE ? c->req->more->n_text_2 : c->kind == REQ_EMBEDDING ? c->req->n_prompts : 1;
}

/* ---- embeddings ---- */

static size_t dimensions(const struct call *c)
{
    uint32_t d = c->req->more->dimensions;
    return d ? d : c->sv->mi->hidden;
}

int call_pooled(struct call *c, const struct gen *g, size_t at)
{
    const struct req_more *q = c->req->more;
    size_t n = dimensions(c);
    double scale = q->pooling == REQ_POOL_LAST ? 1 : 1.0 / g->spec.n_prompt, norm = 0;
    if (!c->vec)
        c->vec = arena_calloc(c->a, c->n_prompts, sizeof *c->vec);
    float *v = c->vec ? arena_alloc(c->a, n * sizeof *v) : NULL;
    if (!v)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++)
        norm += g->pooled[i] * scale * (g->pooled[i] * scale);
    if (q->normalize && norm > 0)
        scale /= sqrt(norm);
    for (size_t i = 0; i < n; i++)
        v[i] = (float)(g->pooled[i] * scale);
    c->vec[at] = v;
    return 0;
}

static int stage_embeddings(struct call *c, struct err *e)
{
    (void)e;
    resp_embeddings(&c->out, c->task->id, c->vec, c->n_prompts, dimensions(c), c->req->more->base64,
                    c->n_prompt_tokens);
    return 0;
}

static void after_write(struct call *c, int rc, struct err *e)
{
    if (rc)
        call_fail(c, resp_status(rc), e, NULL);
    else
        call_reply(c, &c->out);
}

/* ---- score ---- */

static void write_scores(struct call *c)
{
    struct resp_score *s = arena_calloc(c->a, c->n_prompts, sizeof *s);
    if (!s) {
        c->out.failed = true;
        return;
    }
    for (size_t i = 0; i < c->n_prompts; i++) {
        const struct choice *ch = &c->choice[i];
        for (size_t k = 0; k < ch->n_tokens; k++, s[i].n_tokens++)
            s[i].sum += (double)ch->token[k].logprob;
    }
    resp_scores(&c->out, &c->head, s, c->n_prompts, c->n_prompt_tokens);
}

void call_more_answer(struct call *c)
{
    if (c->kind == REQ_EMBEDDING) {
        call_stage(c, c->n_prompts * dimensions(c) > INLINE_FLOATS, stage_embeddings, after_write);
        return;
    }
    write_scores(c);
    call_reply(c, &c->out);
}

/* ---- GET /tokenizer_info ---- */

void get_tokenizer_info(struct server *sv, struct http_req *r)
{
    struct resp_tokenizer t = {.bos = tok_bos_text(sv->tok),
                               .eos = tok_eos_text(sv->tok),
                               .pad = tok_pad_text(sv->tok),
                               .vocab = tok_vocab(sv->tok),
                               .max_model_len = sv->mi->max_context};
    struct buf b = {0};
    t.chat_template.ptr = tok_chat_template(sv->tok, &t.chat_template.len);
    if (!t.chat_template.ptr)
        t.chat_template.len = 0;
    resp_tokenizer(&b, &t);
    api_json(r, &b);
}
