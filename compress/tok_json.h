/* tok_json.h - writes tokenizer.json and tokenizer_config.json from the parts that GGUF keeps of a tokenizer.
 *
 * GGUF stores the vocabulary, the merges (or scores) and a name for the pre-tokenizer; tokenizer.json spells out every
 * step. Known are byte-level BPE ("gpt2") with the pre-tokenizers of GPT-2, SmolLM, Llama 3 and Qwen2, and
 * SentencePiece-style BPE with byte fallback ("llama"). Everything else is refused by name.
 */
#ifndef CPET_COMPRESS_TOK_JSON_H
#define CPET_COMPRESS_TOK_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "formats/gguf.h"

enum { TOK_JSON_NORMAL = 1, TOK_JSON_UNKNOWN, TOK_JSON_CONTROL, TOK_JSON_USER, TOK_JSON_UNUSED, TOK_JSON_BYTE };

struct tok_json {                              /* everything is borrowed; strings are of the file, not terminated */
    struct gguf_str model, pre, chat_template; /* p NULL: absent */
    const struct gguf_str *tokens;             /* [n_tokens] */
    const int32_t *types;                      /* [n_tokens], TOK_JSON_...; NULL: all normal */
    const float *scores;                       /* [n_tokens], for "llama"; NULL: none */
    const struct gguf_str *merges;             /* [n_merges], "left right", for "gpt2" */
    size_t n_tokens, n_merges;
    int64_t bos, eos, unk, pad; /* ids, -1: none */
    int add_bos, add_eos;       /* 0, 1, or -1: unsaid */
    int add_space_prefix;       /* likewise; for "llama" */
    uint64_t model_max_length;
};

/* Writes dir/tokenizer.json and dir/tokenizer_config.json. -ENOTSUP for a model or pre-tokenizer that is not known;
 * -EINVAL for tokens that are not valid UTF-8 or are there twice, and merges of unknown tokens, naming their index. */
int tok_json_write(const char *dir, const struct tok_json *t, struct err *e);

#endif
