/* choice.h - one choice of an answer as it grows: text and log-probabilities that wait to be sent. Loop thread. */
#ifndef CPET_SERVER_CHOICE_H
#define CPET_SERVER_CHOICE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/buf.h"
#include "model/tokenizer.h"
#include "proto/proto.h"
#include "server/gen.h"
#include "server/text.h"

struct choice_token {
    int32_t id;
    float logprob;
    size_t end; /* it may be sent once this many raw bytes of text were */
};

struct choice {
    struct text text;
    struct buf out; /* text to send; all of it where the answer is not streamed */
    struct choice_token *token;
    int32_t *top_id;    /* [cap][n_top] */
    float *top_logprob; /* [cap][n_top] */
    size_t n_tokens, cap, n_top;
    int32_t *id; /* generated and not sent yet, where they are asked for */
    size_t n_ids, cap_ids;
    double sum_logprob;         /* of the tokens generated */
    size_t chars;               /* of the tokens that were sent */
    uint32_t n_out;             /* tokens generated */
    uint64_t first_ns, last_ns; /* when the first and the last of them came to the loop; 0: none yet */
    const char *finish;         /* "stop", "length" */
    bool logprobs, keep_ids;
    bool begun; /* the first chunk was sent; in a chat, the role */
    bool dirty; /* something came since it was last sent */
    bool sent_finish;
};

/* What q asks for; q must outlive c. */
void choice_open(struct choice *c, const struct req *q);
void choice_close(struct choice *c);

/* A token of the prompt or of the answer; sets finish when it was the last. 0 or -ENOMEM. */
int choice_token(struct choice *c, const struct tok *t, const struct gen_event *ev, const int32_t *top_id,
                 const float *top_logprob);
/* No more tokens will come, why says the reason. Takes what was held back. */
int choice_end(struct choice *c, const char *why);

/* Makes what may be sent into rc (with lp as its place for log-probabilities), allocating the tables in a. Then
 * choice_sent drops it. -ENOMEM. */
int choice_take(struct choice *c, const struct tok *t, struct arena *a, struct resp_choice *rc,
                struct resp_logprobs *lp);
void choice_sent(struct choice *c, size_t n_tokens);

/* A token and its log-probability as the answers show it. The bytes are t's. */
void choice_top(const struct tok *t, int32_t id, float logprob, struct resp_top *out);

#endif
