/* response.c - results to the OpenAI shapes: whole answers, stream chunks, log-probabilities, usage, models, errors.
 *
 * Any thread; the buffer and all inputs are the caller's and nothing is kept. A failed append sticks in the buffer
 * (buf.failed), so that callers look once, at the end. The two kinds differ in names only: completions carry "text",
 * chats a "message" (or a "delta" in a stream), and their log-probabilities have different shapes.
 */
#include "proto/proto.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/utf8.h"

static void put_cstr(struct buf *b, const char *s)
{
    json_put_string(b, s, strlen(s));
}

/* A token that is part of a character has no text of its own: OpenAI writes its bytes out, which keeps keys apart. */
static void put_token_text(struct buf *b, const struct resp_top *t, bool as_id)
{
    if (as_id) {
        buf_printf(b, "\"token_id:%d\"", (int)t->id);
        return;
    }
    if (utf8_valid(t->bytes, t->n_bytes) == t->n_bytes) {
        json_put_string(b, t->bytes, t->n_bytes);
        return;
    }
    buf_puts(b, "\"bytes:");
    for (size_t i = 0; i < t->n_bytes; i++)
        buf_printf(b, "\\\\x%02x", (unsigned char)t->bytes[i]);
    buf_puts(b, "\"");
}

/* ,"name":[ids], where there are any to show */
static void put_ids(struct buf *b, const char *name, const struct resp_ids *ids)
{
    if (!ids->ids)
        return;
    buf_printf(b, ",\"%s\":[", name);
    for (size_t i = 0; i < ids->n; i++)
        buf_printf(b, "%s%d", i ? "," : "", (int)ids->ids[i]);
    buf_puts(b, "]");
}

static void put_scores(struct buf *b, const struct buf *scores)
{
    if (!scores)
        return;
    buf_puts(b, ",\"prompt_logprobs\":[");
    buf_append(b, scores->data, scores->len);
    buf_puts(b, "]");
    b->failed |= scores->failed;
}

static void put_score(struct buf *b, const struct resp_top *t, uint32_t rank)
{
    buf_printf(b, "\"%d\":{\"logprob\":", (int)t->id);
    json_put_float(b, t->logprob);
    buf_printf(b, ",\"rank\":%u,\"decoded_token\":", rank);
    json_put_string(b, t->bytes, t->n_bytes);
    buf_puts(b, "}");
}

void resp_put_score(struct buf *b, const struct resp_top *t, uint32_t rank, const struct resp_top *top, size_t n_top)
{
    buf_puts(b, b->len ? "," : "");
    if (isnan(t->logprob)) {
        buf_puts(b, "null");
        return;
    }
    buf_puts(b, "{");
    put_score(b, t, rank);
    for (size_t i = 0; i < n_top; i++) {
        if (top[i].id == t->id)
            continue;
        buf_puts(b, ",");
        put_score(b, &top[i], (uint32_t)i + 1);
    }
    buf_puts(b, "}");
}

static void put_head(struct buf *b, const struct resp_head *h, const char *object)
{
    buf_puts(b, "{\"id\":");
    put_cstr(b, h->id);
    buf_printf(b, ",\"object\":\"%s\",\"created\":%lld,\"model\":", object, (long long)h->created);
    put_cstr(b, h->model);
    if (h->fingerprint) {
        buf_puts(b, ",\"system_fingerprint\":");
        put_cstr(b, h->fingerprint);
    }
}

static void put_usage(struct buf *b, const struct resp_usage *u)
{
    buf_printf(b,
               "{\"prompt_tokens\":%u,\"completion_tokens\":%u,\"total_tokens\":%llu,"
               "\"prompt_tokens_details\":{\"cached_tokens\":%u}}",
               u->prompt_tokens, u->completion_tokens, (unsigned long long)u->prompt_tokens + u->completion_tokens,
               u->cached_tokens);
}

static bool same_name(const struct resp_top *x, const struct resp_top *y, bool as_id)
{
    return as_id ? x->id == y->id : x->n_bytes == y->n_bytes && !memcmp(x->bytes, y->bytes, x->n_bytes);
}

static void put_pair(struct buf *b, const struct resp_top *t, bool as_id, bool first)
{
    buf_puts(b, first ? "" : ",");
    put_token_text(b, t, as_id);
    buf_puts(b, ":");
    json_put_float(b, t->logprob);
}

/* {"token": logprob...}: the best ones and the one that was taken. Two ids of one text keep the better. */
static void put_top_map(struct buf *b, const struct resp_token *t, bool as_id)
{
    bool taken = false, first = true;
    if (isnan(t->token.logprob)) {
        buf_puts(b, "null");
        return;
    }
    buf_puts(b, "{");
    for (size_t i = 0; i < t->n_top; i++) {
        size_t j = 0;
        while (j < i && !same_name(&t->top[i], &t->top[j], as_id))
            j++;
        if (j < i)
            continue;
        put_pair(b, &t->top[i], as_id, first);
        first = false;
        taken |= same_name(&t->top[i], &t->token, as_id);
    }
    if (!taken)
        put_pair(b, &t->token, as_id, first);
    buf_puts(b, "}");
}

static void put_completion_logprobs(struct buf *b, const struct resp_logprobs *lp, bool as_id)
{
    buf_puts(b, "{\"tokens\":[");
    for (size_t i = 0; i < lp->n_tokens; i++) {
        buf_puts(b, i ? "," : "");
        put_token_text(b, &lp->tokens[i].token, as_id);
    }
    buf_puts(b, "],\"token_logprobs\":[");
    for (size_t i = 0; i < lp->n_tokens; i++) {
        buf_puts(b, i ? "," : "");
        json_put_float(b, lp->tokens[i].token.logprob);
    }
    buf_puts(b, "],\"top_logprobs\":[");
    for (size_t i = 0; i < lp->n_tokens; i++) {
        buf_puts(b, i ? "," : "");
        put_top_map(b, &lp->tokens[i], as_id);
    }
    buf_puts(b, "],\"text_offset\":[");
    size_t offset = lp->text_offset;
    for (size_t i = 0; i < lp->n_tokens; i++) {
        buf_printf(b, "%s%zu", i ? "," : "", offset);
        offset += resp_chars(lp->tokens[i].token.bytes, lp->tokens[i].token.n_bytes);
    }
    buf_puts(b, "]}");
}

static void put_chat_token(struct buf *b, const struct resp_top *t, bool as_id)
{
    buf_puts(b, "{\"token\":");
    if (as_id)
        put_token_text(b, t, true);
    else
        json_put_string(b, t->bytes, t->n_bytes);
    buf_puts(b, ",\"logprob\":");
    json_put_float(b, t->logprob);
    buf_puts(b, ",\"bytes\":[");
    for (size_t i = 0; i < t->n_bytes; i++)
        buf_printf(b, "%s%u", i ? "," : "", (unsigned char)t->bytes[i]);
    buf_puts(b, "]");
}

static void put_chat_logprobs(struct buf *b, const struct resp_logprobs *lp, bool as_id)
{
    buf_puts(b, "{\"content\":[");
    for (size_t i = 0; i < lp->n_tokens; i++) {
        const struct resp_token *t = &lp->tokens[i];
        buf_puts(b, i ? "," : "");
        put_chat_token(b, &t->token, as_id);
        buf_puts(b, ",\"top_logprobs\":[");
        for (size_t j = 0; j < t->n_top; j++) {
            buf_puts(b, j ? "," : "");
            put_chat_token(b, &t->top[j], as_id);
            buf_puts(b, "}");
        }
        buf_puts(b, "]}");
    }
    buf_puts(b, "],\"refusal\":null}");
}

/* The end of a choice, whatever came before it. */
static void put_choice_tail(struct buf *b, const struct resp_head *h, const struct resp_choice *c)
{
    buf_puts(b, ",\"logprobs\":");
    if (!c->logprobs)
        buf_puts(b, "null");
    else if (h->kind == REQ_CHAT)
        put_chat_logprobs(b, c->logprobs, h->tokens_as_ids);
    else
        put_completion_logprobs(b, c->logprobs, h->tokens_as_ids);
    buf_puts(b, ",\"finish_reason\":");
    if (c->finish)
        put_cstr(b, c->finish);
    else
        buf_puts(b, "null");
    put_ids(b, "token_ids", &c->token_ids);
    if (h->kind == REQ_COMPLETION) {
        put_ids(b, "prompt_token_ids", &c->prompt_token_ids);
        put_scores(b, c->prompt_logprobs);
    }
    buf_puts(b, "}");
}

void resp_full(struct buf *b, const struct resp_head *h, const struct resp_choice *choices, size_t n,
               const struct resp_usage *u)
{
    bool chat = h->kind == REQ_CHAT;
    put_head(b, h, chat ? "chat.completion" : "text_completion");
    buf_puts(b, ",\"choices\":[");
    for (size_t i = 0; i < n; i++) {
        const struct resp_choice *c = &choices[i];
        buf_printf(b, "%s{\"index\":%u,", i ? "," : "", c->index);
        buf_puts(b, chat ? "\"message\":{\"role\":\"assistant\",\"content\":" : "\"text\":");
        json_put_string(b, c->text, c->n_text);
        if (chat)
            buf_puts(b, ",\"refusal\":null}");
        put_choice_tail(b, h, c);
    }
    buf_puts(b, "],\"usage\":");
    put_usage(b, u);
    if (chat && n) {
        put_ids(b, "prompt_token_ids", &choices[0].prompt_token_ids);
        put_scores(b, choices[0].prompt_logprobs);
    }
    buf_puts(b, "}");
}

static void chunk_begin(struct buf *b, const struct resp_head *h)
{
    buf_puts(b, "data: ");
    put_head(b, h, h->kind == REQ_CHAT ? "chat.completion.chunk" : "text_completion");
    buf_puts(b, ",\"choices\":[");
}

static void chunk_end(struct buf *b, const struct resp_head *h, const struct resp_ids *prompt)
{
    buf_puts(b, h->include_usage ? "],\"usage\":null" : "]");
    if (prompt)
        put_ids(b, "prompt_token_ids", prompt);
    buf_puts(b, "}\n\n");
}

void resp_chunk_role(struct buf *b, const struct resp_head *h, unsigned index, const struct resp_ids *prompt)
{
    chunk_begin(b, h);
    buf_printf(b,
               "{\"index\":%u,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
               "\"logprobs\":null,\"finish_reason\":null}",
               index);
    chunk_end(b, h, prompt);
}

void resp_chunk(struct buf *b, const struct resp_head *h, const struct resp_choice *c)
{
    chunk_begin(b, h);
    buf_printf(b, "{\"index\":%u,", c->index);
    if (h->kind == REQ_COMPLETION) {
        buf_puts(b, "\"text\":");
        json_put_string(b, c->text, c->n_text);
    } else if (c->n_text || !c->finish) {
        buf_puts(b, "\"delta\":{\"content\":");
        json_put_string(b, c->text, c->n_text);
        buf_puts(b, "}");
    } else {
        buf_puts(b, "\"delta\":{}");
    }
    put_choice_tail(b, h, c);
    chunk_end(b, h, NULL);
}

void resp_chunk_usage(struct buf *b, const struct resp_head *h, const struct resp_usage *u)
{
    chunk_begin(b, h);
    buf_puts(b, "],\"usage\":");
    put_usage(b, u);
    buf_puts(b, "}\n\n");
}

void resp_chunk_done(struct buf *b)
{
    buf_puts(b, "data: [DONE]\n\n");
}

void resp_chunk_error(struct buf *b, int status, const struct err *e)
{
    buf_puts(b, "data: ");
    resp_error(b, status, e, NULL);
    buf_puts(b, "\n\n");
}

static const char *error_type(int status)
{
    switch (status) {
    case 401:
        return "authentication_error";
    case 403:
        return "permission_error";
    case 404:
        return "not_found_error";
    case 409:
        return "conflict_error";
    case 429:
        return "rate_limit_error";
    case 503:
        return "overloaded_error";
    default:
        return status < 500 ? "invalid_request_error" : "server_error";
    }
}

void resp_error(struct buf *b, int status, const struct err *e, const char *code)
{
    if (!code && status == 404 && !strcmp(e->param, "model"))
        code = "model_not_found";
    buf_puts(b, "{\"error\":{\"message\":");
    put_cstr(b, e->msg);
    buf_printf(b, ",\"type\":\"%s\",\"param\":", error_type(status));
    if (e->param[0])
        put_cstr(b, e->param);
    else
        buf_puts(b, "null");
    buf_puts(b, ",\"code\":");
    if (code)
        put_cstr(b, code);
    else
        buf_puts(b, "null");
    buf_puts(b, "}}");
}

int resp_status(int code)
{
    static const struct {
        int code, status;
    } map[] = {
        {0, 200},       {-EINVAL, 400}, {-E2BIG, 413},  {-EACCES, 401}, {-EPERM, 403},     {-ENOENT, 404},
        {-EEXIST, 409}, {-EBUSY, 409},  {-EAGAIN, 429}, {-ENOMEM, 503}, {-ESHUTDOWN, 503}, {-ETIMEDOUT, 504},
    };
    for (size_t i = 0; i < sizeof map / sizeof map[0]; i++)
        if (map[i].code == code)
            return map[i].status;
    return 500;
}

void resp_model(struct buf *b, const struct resp_model *m)
{
    buf_puts(b, "{\"id\":");
    put_cstr(b, m->id);
    buf_printf(b, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":", (long long)m->created);
    put_cstr(b, m->owned_by);
    buf_puts(b, ",\"root\":");
    put_cstr(b, m->root ? m->root : m->id);
    buf_puts(b, ",\"parent\":");
    if (m->parent)
        put_cstr(b, m->parent);
    else
        buf_puts(b, "null");
    buf_printf(b, ",\"max_model_len\":%u}", m->max_model_len);
}

void resp_models(struct buf *b, const struct resp_model *m, size_t n)
{
    buf_puts(b, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < n; i++) {
        buf_puts(b, i ? "," : "");
        resp_model(b, &m[i]);
    }
    buf_puts(b, "]}");
}
