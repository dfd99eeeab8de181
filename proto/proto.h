/* proto.h - HTTP bodies to structs, and results to HTTP bodies. Knows JSON and the OpenAI shapes, nothing of sockets,
 * models or tasks. Every function here is pure (no globals, no locks), so a large body may be parsed on any thread.
 *
 * A request lives in the arena that the caller gives: strings, token ids and lists are dropped with it. Errors are
 * -EINVAL (the client's fault: 400, with err.param naming the field), -E2BIG (a limit on the body's size or on the
 * arena: 413) or -ENOMEM (503).
 */
#ifndef CPET_PROTO_PROTO_H
#define CPET_PROTO_PROTO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/arena.h"
#include "common/buf.h"
#include "common/err.h"

/* ---- requests ---- */

struct req_limits {
    size_t max_body;    /* bytes of JSON */
    unsigned max_depth; /* arrays and objects inside one another */
    size_t max_values;  /* JSON values in one body */
    size_t max_prompts, max_messages;
    size_t max_prompt_tokens;      /* token ids in one prompt */
    size_t max_n, max_choices;     /* n, n * prompts */
    size_t max_stop, max_stop_len; /* stop strings, bytes of one */
    size_t max_bias;               /* entries of logit_bias */
    unsigned max_logprobs;         /* alternatives a token */
    size_t max_grammar;            /* bytes of a schema, a regular expression or all choices of an answer */
    size_t max_grammar_choices;    /* strings that an answer is chosen from */
    uint32_t max_tokens;           /* the most that max_tokens may say */
    uint32_t vocab;                /* ids must be below; 0: not checked here */
    uint32_t hidden;               /* the most dimensions of an embedding; 0: not checked here */
};
extern const struct req_limits req_limits_default;

enum req_kind { REQ_COMPLETION, REQ_CHAT, REQ_EMBEDDING, REQ_SCORE, REQ_TOKENIZE, REQ_DETOKENIZE };
struct req_more;

/* A run of bytes, terminated by a NUL beyond len; may hold NULs. ptr NULL: absent. */
struct req_str {
    const char *ptr;
    size_t len;
};

/* One prompt: text, or token ids when ids is not NULL. */
struct req_prompt {
    struct req_str text;
    const int32_t *ids;
    size_t n_ids;
};

struct req_message {
    const char *role;       /* "system", "user" or "assistant" ("developer" is read as "system") */
    struct req_str content; /* text parts joined by a newline; ptr NULL: null */
    struct req_str name;    /* ptr NULL: none */
};

struct req_bias {
    int32_t id;
    float bias;
};

/* Bits of req_sampling.set: what the client (or the task's defaults) said. */
enum {
    REQ_SET_TEMPERATURE = 1 << 0,
    REQ_SET_TOP_P = 1 << 1,
    REQ_SET_TOP_K = 1 << 2,
    REQ_SET_MIN_P = 1 << 3,
    REQ_SET_PRESENCE = 1 << 4,
    REQ_SET_FREQUENCY = 1 << 5,
    REQ_SET_REPETITION = 1 << 6,
    REQ_SET_MAX_TOKENS = 1 << 7,
    REQ_SET_MIN_TOKENS = 1 << 8,
    REQ_SET_SEED = 1 << 9,
    REQ_SET_STOP = 1 << 10,
    REQ_SET_BIAS = 1 << 11,
    REQ_SET_IGNORE_EOS = 1 << 12
};

/* What is not in `set` holds the neutral value given here. */
struct req_sampling {
    uint32_t set;
    float temperature;                         /* 0 to 2; 1. 0 is greedy */
    float top_p;                               /* above 0, to 1; 1 */
    float min_p;                               /* 0 to 1; 0 */
    float presence_penalty, frequency_penalty; /* -2 to 2; 0 */
    float repetition_penalty;                  /* above 0, to 10; 1 */
    int32_t top_k;                             /* 0: off (a client's -1 too) */
    uint32_t max_tokens, min_tokens;           /* completions 16, chat 0: up to the end of the context; 0 */
    uint64_t seed;                             /* meaningful when set */
    bool ignore_eos;
    const struct req_str *stop; /* none is empty */
    size_t n_stop;
    const struct req_bias *bias; /* ascending ids */
    size_t n_bias;
};

/* What form the answer must have. */
enum req_grammar_kind { REQ_ANY, REQ_JSON_OBJECT, REQ_JSON_SCHEMA, REQ_REGEX, REQ_CHOICE };
struct req_grammar {
    enum req_grammar_kind kind;
    struct req_str text; /* the schema as JSON (the client's own order of members), or the regular expression */
    const struct req_str *choice;
    size_t n_choices;
    const char *param; /* the field that asked for it; constant */
};

struct req {
    enum req_kind kind;
    struct req_str model, user;
    struct req_sampling sampling;
    unsigned n;          /* choices a prompt in the answer, at least 1 */
    unsigned best_of;    /* choices a prompt that are generated, at least n; more than n only without stream */
    int logprobs;        /* -1: none; else how many alternatives a token (0: the token alone) */
    int prompt_logprobs; /* the same of the prompt's tokens; -1: none. Never with stream */
    bool echo, stream, include_usage;
    bool return_token_ids;
    bool tokens_as_ids;           /* tokens of log-probabilities are named "token_id:N" */
    const char *max_tokens_field; /* the field that said max_tokens; NULL: none did (constant) */
    struct req_grammar grammar;
    const struct req_prompt *prompts; /* completions: at least one */
    size_t n_prompts;
    const struct req_message *messages; /* chat: at least one */
    size_t n_messages;
    /* The same as compact JSON for a template: [{"role","content"[,"name"]}...], content a string or null. */
    struct req_str messages_json;
    const struct req_more *more; /* the kinds of proto/endpoints.h; else NULL */
};

/* Parse body[0..n) as POST /v1/completions or /v1/chat/completions. The body itself is not kept. */
int req_parse_completion(const char *body, size_t n, const struct req_limits *lim, struct arena *a, struct req **out,
                         struct err *e);
int req_parse_chat(const char *body, size_t n, const struct req_limits *lim, struct arena *a, struct req **out,
                   struct err *e);

/* A JSON object of sampling fields alone (a task's defaults); the same names, ranges and errors as in a request. */
int req_parse_defaults(const char *json, size_t n, const struct req_limits *lim, struct arena *a,
                       struct req_sampling **out, struct err *e);
/* Takes from d what the client did not say (but ignore_eos, where r asks for a form). d's lists must outlive r. */
void req_apply_defaults(struct req *r, const struct req_sampling *d);

/* ---- responses: each appends to b; look at b->failed once at the end ---- */

/* s[0..n) as a JSON string with its quotes. Bytes that are not UTF-8 become U+FFFD, one each. */
void json_put_string(struct buf *b, const char *s, size_t n);
/* The shortest decimal that reads back as the same float; a NaN is null, infinities are -9999.0 and 9999.0. */
void json_put_float(struct buf *b, float f);

struct resp_head {
    enum req_kind kind;
    const char *id, *model;  /* "cmpl-..." or "chatcmpl-..."; as the client named it */
    int64_t created;         /* seconds since 1970 */
    bool include_usage;      /* chunks carry "usage": null until the last one */
    bool tokens_as_ids;      /* tokens of log-probabilities are written "token_id:N" */
    const char *fingerprint; /* NULL: left out */
};

/* Token ids to show; ids NULL: the field is left out. */
struct resp_ids {
    const int32_t *ids;
    size_t n;
};

/* A candidate: its bytes need not be whole UTF-8 characters. */
struct resp_top {
    int32_t id;
    float logprob;
    const char *bytes;
    size_t n_bytes;
};
struct resp_token {
    struct resp_top token;      /* logprob NaN: null (the first token of an echoed prompt) */
    const struct resp_top *top; /* NULL with n_top 0 */
    size_t n_top;
};
struct resp_logprobs {
    const struct resp_token *tokens;
    size_t n_tokens;
    size_t text_offset; /* completions: characters of this choice's text before tokens[0] (see resp_chars) */
};
struct resp_choice {
    unsigned index;
    const char *text; /* whole UTF-8 characters */
    size_t n_text;
    const char *finish;                   /* "stop", "length"; NULL: null */
    const struct resp_logprobs *logprobs; /* NULL: null */
    struct resp_ids token_ids, prompt_token_ids;
    const struct buf *prompt_logprobs; /* made by resp_put_score; NULL: left out */
};

/* One more position of a prompt's log-probabilities, {"ID": {"logprob", "rank", "decoded_token"}, ...}: the prompt's
 * own token t and the n_top likeliest, by rank. logprob NaN: null, of the first token. b is the list without brackets.
 */
void resp_put_score(struct buf *b, const struct resp_top *t, uint32_t rank, const struct resp_top *top, size_t n_top);

struct resp_usage {
    uint32_t prompt_tokens, completion_tokens, cached_tokens;
};
/* The whole answer of a request that does not stream. A chat has one prompt: its ids and log-probabilities, of the
 * first choice, stand beside "choices". */
void resp_full(struct buf *b, const struct resp_head *h, const struct resp_choice *choices, size_t n,
               const struct resp_usage *u);

/* Server-sent events ("data: ...\n\n"). In order, a choice: resp_chunk_role (chat only), resp_chunk with text as it
 * comes, the last one with finish; after all choices resp_chunk_usage if asked for, then resp_chunk_done. */
void resp_chunk_role(struct buf *b, const struct resp_head *h, unsigned index, const struct resp_ids *prompt);
void resp_chunk(struct buf *b, const struct resp_head *h, const struct resp_choice *c);
void resp_chunk_usage(struct buf *b, const struct resp_head *h, const struct resp_usage *u);
void resp_chunk_done(struct buf *b);
/* An error after the stream began: data: {"error": ...}. The stream then ends without [DONE]. */
void resp_chunk_error(struct buf *b, int status, const struct err *e);

/* {"error": {"message", "type", "param", "code"}}; the type follows from the status; param null when e->param is "";
 * code NULL: null, except 404 with param "model": model_not_found. */
void resp_error(struct buf *b, int status, const struct err *e, const char *code);
/* The HTTP status of what a parser or admission returned: -EINVAL 400, -E2BIG 413, -EACCES 401,
 * -EPERM 403, -ENOENT 404, -EEXIST and -EBUSY 409, -EAGAIN 429, -ENOMEM and -ESHUTDOWN 503, -ETIMEDOUT 504, or 500 */
int resp_status(int code);

struct resp_model {
    const char *id, *owned_by;
    const char *root;   /* what it stands on: a content hash or an ID */
    const char *parent; /* the backbone's ID for a task; NULL: null */
    int64_t created;
    uint32_t max_model_len;
};
void resp_models(struct buf *b, const struct resp_model *m, size_t n); /* {"object": "list", "data": [...]} */
void resp_model(struct buf *b, const struct resp_model *m);

/* Characters that begin in s[0..n): the unit of text_offset. */
size_t resp_chars(const char *s, size_t n);

#endif
