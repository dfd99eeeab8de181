/* endpoints_out.c - the answers of /tokenize, /detokenize, /tokenizer_info, /v1/embeddings and /score.
 *
 * Any thread; the buffer and all inputs are the caller's. A failed append sticks in the buffer. An embedding's base64
 * is of its little-endian floats, whatever the machine's order: the openai client asks for it unless told otherwise.
 */
#include <math.h>
#include <string.h>

#include "proto/endpoints.h"

static void put_text_or_null(struct buf *b, const char *s, size_t n)
{
    if (n)
        json_put_string(b, s, n);
    else
        buf_puts(b, "null");
}

void resp_tokenize(struct buf *b, const int32_t *ids, const struct req_str *strs, size_t n, uint32_t max_model_len)
{
    buf_printf(b, "{\"count\":%zu,\"max_model_len\":%u,\"tokens\":[", n, max_model_len);
    for (size_t i = 0; i < n; i++)
        buf_printf(b, "%s%d", i ? "," : "", (int)ids[i]);
    buf_puts(b, "],\"token_strs\":");
    if (!strs)
        buf_puts(b, "null");
    for (size_t i = 0; strs && i < n; i++) {
        buf_puts(b, i ? "," : "[");
        json_put_string(b, strs[i].ptr, strs[i].len);
    }
    buf_puts(b, !strs ? "}" : n ? "]}" : "[]}");
}

void resp_detokenize(struct buf *b, const char *text, size_t n)
{
    buf_puts(b, "{\"prompt\":");
    json_put_string(b, text, n);
    buf_puts(b, "}");
}

void resp_tokenizer(struct buf *b, const struct resp_tokenizer *t)
{
    buf_puts(b, "{\"tokenizer_class\":\"PreTrainedTokenizerFast\",\"bos_token\":");
    put_text_or_null(b, t->bos, strlen(t->bos));
    buf_puts(b, ",\"eos_token\":");
    put_text_or_null(b, t->eos, strlen(t->eos));
    buf_puts(b, ",\"pad_token\":");
    put_text_or_null(b, t->pad, strlen(t->pad));
    buf_printf(b, ",\"vocab_size\":%u,\"model_max_length\":%u,\"chat_template\":", t->vocab, t->max_model_len);
    put_text_or_null(b, t->chat_template.ptr, t->chat_template.len);
    buf_puts(b, "}");
}

/* ---- embeddings ---- */

static void put_base64(struct buf *b, const float *v, size_t n)
{
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char out[1024];
    size_t at = 0, bytes = 4 * n;
    uint32_t word = 0, group = 0;
    buf_puts(b, "\"");
    for (size_t i = 0; i < bytes; i++) {
        if (i % 4 == 0)
            memcpy(&word, &v[i / 4], sizeof word);
        group = group << 8 | (word >> 8 * (i % 4) & 0xFF);
        if (i % 3 < 2 && i + 1 < bytes)
            continue;
        unsigned have = (unsigned)(i % 3) + 1;
        group <<= 8 * (3 - have);
        for (unsigned k = 0; k < 4; k++)
            out[at++] = '=';
        for (unsigned k = 0; k <= have; k++)
            out[at - 4 + k] = digit[group >> (18 - 6 * k) & 63];
        group = 0;
        if (at == sizeof out) {
            buf_append(b, out, at);
            at = 0;
        }
    }
    buf_append(b, out, at);
    buf_puts(b, "\"");
}

static void put_floats(struct buf *b, const float *v, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        buf_puts(b, i ? "," : "[");
        json_put_float(b, v[i]);
    }
    buf_puts(b, "]");
}

void resp_embeddings(struct buf *b, const char *model, float *const *vec, size_t n, size_t dims, bool base64,
                     uint64_t prompt_tokens)
{
    buf_puts(b, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < n; i++) {
        buf_printf(b, "%s{\"object\":\"embedding\",\"index\":%zu,\"embedding\":", i ? "," : "", i);
        (base64 ? put_base64 : put_floats)(b, vec[i], dims);
        buf_puts(b, "}");
    }
    buf_puts(b, "],\"model\":");
    json_put_string(b, model, strlen(model));
    buf_printf(b, ",\"usage\":{\"prompt_tokens\":%llu,\"total_tokens\":%llu}}", (unsigned long long)prompt_tokens,
               (unsigned long long)prompt_tokens);
}

/* ---- score ---- */

void resp_scores(struct buf *b, const struct resp_head *h, const struct resp_score *s, size_t n, uint64_t prompt_tokens)
{
    buf_puts(b, "{\"id\":");
    json_put_string(b, h->id, strlen(h->id));
    buf_printf(b, ",\"object\":\"list\",\"created\":%lld,\"model\":", (long long)h->created);
    json_put_string(b, h->model, strlen(h->model));
    buf_puts(b, ",\"data\":[");
    for (size_t i = 0; i < n; i++) {
        buf_printf(b, "%s{\"index\":%zu,\"object\":\"score\",\"score\":", i ? "," : "", i);
        json_put_float(b, (float)s[i].sum);
        buf_puts(b, ",\"mean\":");
        json_put_float(b, (float)(s[i].n_tokens ? s[i].sum / s[i].n_tokens : 0));
        buf_printf(b, ",\"tokens\":%u}", s[i].n_tokens);
    }
    buf_printf(b, "],\"usage\":{\"prompt_tokens\":%llu,\"total_tokens\":%llu}}", (unsigned long long)prompt_tokens,
               (unsigned long long)prompt_tokens);
}
