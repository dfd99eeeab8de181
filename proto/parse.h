/* parse.h - inside proto/ only: what request.c and fields.c share. */
#ifndef CPET_PROTO_PARSE_H
#define CPET_PROTO_PARSE_H

#include <jansson.h>

#include "proto/proto.h"

/* Where a field may stand. */
enum { IN_COMPLETION = 1, IN_CHAT = 2, IN_DEFAULTS = 4 };

/* One parse in progress; lives on the stack. */
struct parse {
    const struct req_limits *lim;
    struct arena *a;
    struct err *e;
    unsigned where; /* one IN_ bit */
    struct req *r;  /* NULL for defaults */
    struct req_sampling *s;
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
/* A field that OpenAI or vLLM know and that is not served. */
bool req_field_known(const char *name);

/* Values of one type, or -EINVAL with the range in the sentence. */
int read_bool(struct parse *p, const char *param, const json_t *v, bool *out);
int read_int(struct parse *p, const char *param, const json_t *v, int64_t lo, int64_t hi, int64_t *out);
/* A copy in the arena, whole, with any NULs. */
int read_str(struct parse *p, const char *param, const json_t *v, struct req_str *out);
int too_large(struct parse *p); /* the arena is full: -E2BIG */

int read_messages(struct parse *p, const char *param, const json_t *v);
int read_prompt(struct parse *p, const char *param, const json_t *v);

#endif
