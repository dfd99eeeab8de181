/* parse.h - inside proto/ only: what request.c, fields.c, messages.c and structured.c share. */
#ifndef CPET_PROTO_PARSE_H
#define CPET_PROTO_PARSE_H

#include <jansson.h>

#include "proto/endpoints.h"

/* Where a field may stand. */
enum { IN_COMPLETION = 1, IN_CHAT = 2, IN_DEFAULTS = 4, IN_MORE = 8 };

/* One parse in progress; lives on the stack. */
struct parse {
    const struct req_limits *lim;
    struct arena *a;
    struct err *e;
    unsigned where; /* one IN_ bit */
    struct req *r;  /* NULL for defaults */
    struct req_sampling *s;
    struct req_more *more;      /* IN_MORE */
    const struct field *fields; /* IN_MORE: its table, ended by a NULL name */
    bool has_special, has_generation_prompt;
    bool chat_logprobs, has_stream_options;
    int64_t max_tokens, max_completion_tokens, top_logprobs; /* -1: not given */
};

struct field {
    const char *name;
    unsigned where;
    /* v is never null; param is the field's name. Fills p->r or p->s, or the error. */
    int (*read)(struct parse *p, const char *param, const json_t *v);
};

extern const struct field req_fields[];
extern const size_t req_n_fields;
/* Each ends with a NULL name. */
extern const struct field req_tokenize_fields[], req_detokenize_fields[], req_embedding_fields[], req_score_fields[];
/* A field that OpenAI or vLLM know and that is not served. */
bool req_field_known(const char *name);
/* What to write instead of such a field; NULL: nothing does the same. */
const char *req_field_hint(const char *name);

/* Values of one type, or -EINVAL with the range in the sentence. */
int read_bool(struct parse *p, const char *param, const json_t *v, bool *out);
int read_int(struct parse *p, const char *param, const json_t *v, int64_t lo, int64_t hi, int64_t *out);
/* A copy in the arena, whole, with any NULs. */
int read_str(struct parse *p, const char *param, const json_t *v, struct req_str *out);
int too_large(struct parse *p); /* the arena is full: -E2BIG */

int read_model(struct parse *p, const char *param, const json_t *v);
int read_user(struct parse *p, const char *param, const json_t *v);
int read_ids(struct parse *p, const char *param, const json_t *v, struct req_prompt *out);
int read_messages(struct parse *p, const char *param, const json_t *v);
int read_prompt(struct parse *p, const char *param, const json_t *v);
int read_response_format(struct parse *p, const char *param, const json_t *v);
int read_structured_outputs(struct parse *p, const char *param, const json_t *v);

/* A whole body: every member is read, refused by name, or null (which is as good as absent); then settle, which sees
 * what only all members together tell. */
int req_read(struct parse *p, const char *body, size_t n, int (*settle)(struct parse *p));
void req_sampling_neutral(struct req_sampling *s);

#endif
