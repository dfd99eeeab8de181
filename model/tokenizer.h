/* tokenizer.h - text to token ids and back, as the PyPI package `tokenizers` does it for BPE models.
 *
 * A tokenizer is read from a Hugging Face directory (tokenizer.json and the small files beside it) and never changes
 * afterwards: any number of threads may use one at the same time. What a tokenizer.json asks for and this code does not
 * do (another model, normalizer, pre-tokenizer, decoder or post-processor) is refused at load, by name.
 */
#ifndef CPET_MODEL_TOKENIZER_H
#define CPET_MODEL_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/err.h"

struct tok;

#define TOK_TEXT_MAX ((size_t)1 << 30) /* a text to encode is shorter than this, in bytes */
#define TOK_ID_MAX (1 << 22)           /* ids are below this */

/* Reads dir/tokenizer.json, and tokenizer_config.json, special_tokens_map.json, generation_config.json, config.json and
 * chat_template.jinja where they are. -ENOENT without a tokenizer.json, -EINVAL for one that is damaged, -ENOTSUP for
 * one that asks for something unknown. */
int tok_open(const char *dir, struct tok **out, struct err *e);
/* The same from memory: the text of a tokenizer.json, and of a tokenizer_config.json (NULL, 0: none). */
int tok_parse(const char *json, size_t len, const char *config_json, size_t config_len, struct tok **out,
              struct err *e);
void tok_close(struct tok *t); /* takes NULL */

/* The highest id + 1 (added tokens count; ids in between may stand for nothing). */
uint32_t tok_vocab(const struct tok *t);

/* A growable list of ids. limit: the most tokens it may hold, 0 for no limit. A zeroed one is valid. */
struct tok_ids {
    int32_t *id;
    size_t n, cap, limit;
};
void tok_ids_free(struct tok_ids *ids); /* takes NULL; leaves an empty list with the same limit */

enum {
    TOK_SPECIAL = 1, /* special tokens written out in the text are recognised; without it they are plain text. Added
                        tokens that are not special are always recognised (`encode_special_tokens`) */
    TOK_POST = 2,    /* run the post-processor: bos and eos, where the tokenizer adds them */
};

/* Appends the ids of text[0..n) to out. -EILSEQ (with the offset) for invalid UTF-8, -E2BIG past out->limit or
 * TOK_TEXT_MAX, -ENOMEM. On failure out->n is as it was. */
int tok_encode(const struct tok *t, const char *text, size_t n, unsigned flags, struct tok_ids *out, struct err *e);

/* The bytes that an id stands for: the decoder applied to this one token, before anything that looks at its neighbours
 * (no stripping of a first space; half a character stays half). The bytes belong to t. -EINVAL for an unknown id. */
int tok_piece(const struct tok *t, int32_t id, const char **bytes, size_t *n);
/* The token as the vocabulary writes it, not terminated; no bytes for an unknown id. They belong to t. */
const char *tok_written(const struct tok *t, int32_t id, size_t *n);
/* An added token that is marked special; false for unknown ids. */
bool tok_is_special(const struct tok *t, int32_t id);
/* Appends the text of ids[0..n), valid UTF-8: bytes that make no character become U+FFFD; unknown ids stand for
 * nothing. skip_special leaves special tokens out. 0, -ENOMEM, or -E2BIG when out is full. */
int tok_decode(const struct tok *t, const int32_t *ids, size_t n, bool skip_special, struct buf *out);
/* Whether tok_decode drops a space that the pieces have at the very beginning: whoever streams pieces drops it then. */
bool tok_space_prefix(const struct tok *t);

/* The id of a token as the vocabulary writes it (not of text), added tokens too; -1 when there is none. */
int32_t tok_id(const struct tok *t, const char *piece, size_t n);
int32_t tok_bos(const struct tok *t); /* -1: none */
int32_t tok_eos(const struct tok *t); /* -1: none */
/* Every id that ends a generation: the tokenizer's eos and generation_config.json's (else config.json's) eos_token_id.
 * Without repeats; *n may be 0. */
const int32_t *tok_eos_ids(const struct tok *t, size_t *n);

/* The chat template (Jinja): tokenizer_config.json's chat_template (of a list of them, the one named "default"), else
 * chat_template.jinja. NULL: none. */
const char *tok_chat_template(const struct tok *t, size_t *n);
const char *tok_bos_text(const struct tok *t); /* for templates; "" when there is none */
const char *tok_eos_text(const struct tok *t);
const char *tok_pad_text(const struct tok *t); /* "" when there is none, or it is not in the vocabulary */

#endif
