/* endpoints.h - bodies beside completions and chats: /tokenize, /detokenize, /v1/embeddings, /score.
 *
 * A request is a struct req (proto/proto.h) of its own kind, whose `more` says what these endpoints have beside it:
 * prompts holds the texts or tokens, n is 1, and nothing is sampled. Errors, limits and memory are as in proto/proto.h.
 */
#ifndef CPET_PROTO_ENDPOINTS_H
#define CPET_PROTO_ENDPOINTS_H

#include "proto/proto.h"

enum req_pooling { REQ_POOL_MEAN, REQ_POOL_LAST };

struct req_more {
    /* tokenize: one text prompt, or messages. special: the tokenizer's own first and last tokens are added */
    bool special, generation_prompt, token_strs;
    /* embeddings: prompts are the inputs */
    enum req_pooling pooling;
    bool normalize, base64;
    uint32_t dimensions; /* 0: all of them */
    /* score: text_2[i] is scored after prompts[i], or after prompts[0] where there is one; n_text_2 pairs */
    const struct req_str *text_2;
    size_t n_text_2;
};

/* Parses body[0..n) as a request of one of these kinds. The model may be left out (ptr NULL) of (de)tokenizing. */
int req_parse_more(enum req_kind kind, const char *body, size_t n, const struct req_limits *lim, struct arena *a,
                   struct req **out, struct err *e);

/* ---- answers ---- */

/* The OpenAPI description of the public listener (proto/openapi.json), not terminated. */
const char *resp_openapi(size_t *n);

/* strs: NULL, or the tokens as the vocabulary writes them. */
void resp_tokenize(struct buf *b, const int32_t *ids, const struct req_str *strs, size_t n, uint32_t max_model_len);
void resp_detokenize(struct buf *b, const char *text, size_t n);

struct resp_tokenizer {
    const char *bos, *eos, *pad; /* "" : null */
    struct req_str chat_template;
    uint32_t vocab, max_model_len;
};
void resp_tokenizer(struct buf *b, const struct resp_tokenizer *t);

/* vec: [n][dims], row after row. */
void resp_embeddings(struct buf *b, const char *model, float *const *vec, size_t n, size_t dims, bool base64,
                     uint64_t prompt_tokens);

struct resp_score {
    double sum; /* of n_tokens log-probabilities, natural */
    uint32_t n_tokens;
};
void resp_scores(struct buf *b, const struct resp_head *h, const struct resp_score *s, size_t n,
                 uint64_t prompt_tokens);

#endif
