/* tokenizer_impl.h - what the tokenizer's files share. Not for others. */
#ifndef CPET_MODEL_TOKENIZER_IMPL_H
#define CPET_MODEL_TOKENIZER_IMPL_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <jansson.h>

#include "model/tokenizer.h"

#define TOK_STEPS 32 /* the most steps of a kind a tokenizer.json may list */
#define TOK_NONE UINT32_MAX
#define TOK_F_MODEL 1   /* the id is in the model's vocabulary */
#define TOK_F_ADDED 2   /* ... is an added token's */
#define TOK_F_SPECIAL 4 /* ... one that is marked special */
#define TOK_F_SHOWN 8   /* ... one whose normalized form differs: it decodes to that */

/* Bytes owned by whoever holds the struct; data is terminated. */
struct tok_str {
    char *data;
    size_t n;
};

/* A compiled pattern; immutable, shared by threads. */
struct tok_re {
    pcre2_code *code;
};

/* What one thread needs to match: lives as long as one call. */
struct tok_re_run {
    pcre2_match_data *md;
    pcre2_match_context *mc;
    size_t limit_for; /* the subject length that the match limit was set for */
};

/* A Split's or Replace's pattern: a literal, or a regular expression. */
struct tok_pat {
    struct tok_str lit; /* when re.code is NULL */
    struct tok_re re;
};

enum tok_norm_kind { NORM_NFC, NORM_NFD, NORM_NFKC, NORM_NFKD, NORM_LOWER, NORM_PREPEND, NORM_REPLACE, NORM_STRIP };

struct tok_norm {
    enum tok_norm_kind kind;
    struct tok_pat pat;
    struct tok_str text; /* what to prepend, or to put in place */
    bool left, right;
};

enum tok_pre_kind { PRE_BYTE_LEVEL, PRE_SPLIT, PRE_DIGITS, PRE_METASPACE, PRE_WHITESPACE, PRE_PUNCTUATION };
enum tok_behavior { SPLIT_REMOVED, SPLIT_ISOLATED, SPLIT_PREVIOUS, SPLIT_NEXT, SPLIT_CONTIGUOUS };
enum tok_scheme { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER };

struct tok_pre {
    enum tok_pre_kind kind;
    struct tok_pat pat;
    enum tok_behavior behavior;
    enum tok_scheme scheme;
    struct tok_str text; /* Metaspace's replacement */
    bool invert, prefix_space, use_regex, split;
};

enum tok_dec_kind { DEC_BYTE_LEVEL, DEC_REPLACE, DEC_BYTE_FALLBACK, DEC_FUSE, DEC_STRIP, DEC_METASPACE };

struct tok_dec {
    enum tok_dec_kind kind;
    struct tok_pat pat;
    struct tok_str text;    /* Replace's content, Metaspace's replacement, Strip's character */
    size_t start, stop;     /* Strip */
    enum tok_scheme scheme; /* Metaspace */
};

struct tok_added {
    int32_t id;
    struct tok_str text;  /* as written */
    struct tok_str match; /* what is looked for: normalized when the token says so */
    bool special, single_word, lstrip, rstrip, normalized;
};

/* Added tokens sorted by their match, for the longest match at a place. */
struct tok_matcher {
    const struct tok_added **by_match;
    size_t n;
    uint32_t first[257]; /* by_match[first[b] .. first[b + 1]) begin with byte b */
};

/* (left, right) -> (rank, merged); open addressing, key TOK_NO_PAIR is free. */
struct tok_pair {
    uint64_t key;
    uint32_t rank;
    int32_t id;
};
#define TOK_NO_PAIR UINT64_MAX

struct tok {
    /* ids: n_ids entries each */
    uint32_t n_ids;
    char *blob;       /* the tokens as written, one after the other */
    uint32_t *at;     /* n_ids + 1 offsets into blob */
    char *piece_blob; /* the bytes they stand for */
    uint32_t *piece_at;
    uint8_t *flags; /* TOK_F_*: n_ids entries */
    uint32_t *map;  /* token text -> id, open addressing, TOK_NONE is free */
    uint32_t map_mask;
    /* the BPE model */
    struct tok_pair *pairs;
    uint64_t pair_mask;
    uint64_t *joints; /* pairs of initial symbols that some merge joins; open addressing */
    uint64_t joint_mask;
    bool joints_exact;    /* false: every boundary may merge */
    int32_t low_cp[2048]; /* the initial symbol of a code point below 2048, -1: none */
    int32_t byte_id[256];
    bool byte_fallback, fuse_unk, ignore_merges;
    int32_t unk; /* -1: none */
    /* the steps around it */
    struct tok_norm norm[TOK_STEPS];
    size_t n_norm;
    struct tok_pre pre[TOK_STEPS];
    size_t n_pre;
    struct tok_dec dec[TOK_STEPS];
    size_t n_dec;
    bool has_decoder;
    int32_t *post_before, *post_after;
    size_t n_before, n_after;
    struct tok_added *added;
    size_t n_added;
    struct tok_matcher raw, normalized;
    struct tok_re gpt2; /* ByteLevel's own pattern, when it is used */
    /* from the files beside it */
    int32_t bos, eos;
    int32_t *eos_ids;
    size_t n_eos_ids;
    struct tok_str bos_text, eos_text, pad_text, chat_template;
};

/* A short word met before in the same call: its ids are in the output already. */
#define TOK_CACHE_KEY 27
struct tok_cached {
    char key[TOK_CACHE_KEY];
    uint8_t n; /* 0: free */
    uint32_t n_ids;
    size_t at;
};
#define TOK_CACHE 4096

/* One call of tok_encode. */
struct tok_run {
    const struct tok *t;
    struct tok_ids *out;
    struct err *e;
    struct tok_re_run re;
    struct buf norm[2];
    struct buf pre[TOK_STEPS];
    int32_t *sym; /* BPE's scratch: 3 * sym_cap entries */
    size_t sym_cap;
    uint64_t *heap;
    size_t heap_cap;
    bool newer;               /* the text has characters that patterns must see as others (tokenizer_unicode.c) */
    struct tok_cached *cache; /* TOK_CACHE entries, or NULL for short texts */
};

/* tokenizer_load.c: small helpers on JSON values. All refuse with the field's name. */
int tok_str_set(struct tok_str *s, const char *p, size_t n);
void tok_str_free(struct tok_str *s);
int tok_json_bool(const json_t *o, const char *where, const char *key, bool dflt, bool *out, struct err *e);
int tok_json_str(const json_t *o, const char *where, const char *key, const char **s, size_t *n, struct err *e);

/* tokenizer_vocab.c: reads model.vocab and the added tokens' texts into blob, at, flags and map. t->added is filled. */
uint64_t tok_hash(const char *p, size_t n);
int tok_vocab_build(struct tok *t, const json_t *vocab, struct err *e);
/* The id of a token of the model (flag TOK_F_MODEL) or of any (0); -1. */
int32_t tok_vocab_find(const struct tok *t, const char *p, size_t n, uint8_t flag);
static inline const char *tok_text(const struct tok *t, int32_t id, size_t *n)
{
    *n = t->at[id + 1] - t->at[id];
    return t->blob + t->at[id];
}

/* tokenizer_steps.c: the lists of steps. Each frees with tok_steps_free, half-built too. */
int tok_steps_norm(struct tok *t, const json_t *j, unsigned depth, struct err *e);
int tok_steps_pre(struct tok *t, const json_t *j, unsigned depth, struct err *e);
int tok_steps_dec(struct tok *t, const json_t *j, unsigned depth, struct err *e);
int tok_steps_post(struct tok *t, const json_t *j, unsigned depth, struct err *e);
void tok_steps_free(struct tok *t);

/* tokenizer_re.c */
int tok_re_compile(struct tok_re *re, const char *pattern, size_t n, struct err *e);
void tok_re_free(struct tok_re *re);
void tok_re_run_free(struct tok_re_run *r);
/* 1 and [*from, *to) of the first match at or after at, 0 for none, or -Exxx. s must be valid UTF-8. */
int tok_re_find(const struct tok_re *re, struct tok_re_run *r, const char *s, size_t n, size_t at, size_t *from,
                size_t *to, struct err *e);
int tok_pat_find(const struct tok_pat *p, struct tok_re_run *r, const char *s, size_t n, size_t at, size_t *from,
                 size_t *to, struct err *e);

/* tokenizer_chars.c: classes of characters, as Rust's standard library has them. */
bool tok_is_space(uint32_t cp);
bool tok_is_numeric(uint32_t cp);
bool tok_is_punctuation(uint32_t cp);
bool tok_is_word(uint32_t cp);
/* The character that stands for a byte in a byte-level vocabulary, and back (-1: it stands for none). */
uint32_t tok_byte_char(uint8_t b);
int tok_char_byte(uint32_t cp);

/* tokenizer_unicode.c: what the reference's Unicode adds (true, 1), or does not know (-1), beside the libraries'. */
bool tok_uni_numeric(uint32_t cp);
int tok_uni_punct(uint32_t cp);
bool tok_uni_word(uint32_t cp);
bool tok_uni_no_form(uint32_t cp);
uint32_t tok_uni_lower(uint32_t cp); /* 0: nothing to add */
/* Characters newer than PCRE2's tables: are there any in s (valid UTF-8), and putting their stand-ins in place. */
bool tok_uni_has_newer(const char *s, size_t n);
void tok_uni_stand_in(char *s, size_t n);

/* tokenizer_norm.c: runs the normalizers; *out and *n point at s or into bufs. */
int tok_normalize(const struct tok *t, struct tok_re_run *re, struct buf bufs[2], const char *s, size_t n,
                  const char **out, size_t *out_n, struct err *e);
/* Appends s with each match of p replaced. */
int tok_replace(const struct tok_pat *p, struct tok_re_run *re, const char *s, size_t n, const struct tok_str *with,
                struct buf *out, struct err *e);

/* tokenizer_added.c */
int tok_added_load(struct tok *t, const json_t *list, struct err *e);
int tok_added_index(struct tok *t, struct err *e);
void tok_added_free(struct tok *t);
/* What a token decodes from: its text, or an added token's normalized form. */
const char *tok_added_shown(const struct tok *t, int32_t id, size_t *n);
/* The next added token in s[at..n): its place with the spaces that it takes. floor: where the text not yet handed out
 * begins. NULL: no more; else *next is where to look on. */
const struct tok_added *tok_added_next(const struct tok_matcher *m, const char *s, size_t n, size_t at, size_t floor,
                                       bool skip_special, size_t *from, size_t *to, size_t *next);

/* tokenizer_pre.c: cuts s into words from step on and encodes each. at_start: s begins where the whole text does. */
int tok_pre_run(struct tok_run *r, size_t step, const char *s, size_t n, bool at_start);

/* tokenizer_bpe.c */
int tok_bpe_build(struct tok *t, const json_t *merges, struct err *e);
int tok_bpe_word(struct tok_run *r, const char *s, size_t n);
int tok_ids_push(struct tok_ids *out, int32_t id);

/* tokenizer_decode.c: fills piece_blob and piece_at. */
int tok_pieces_build(struct tok *t, struct err *e);

/* tokenizer_config.c */
int tok_config_apply(struct tok *t, const json_t *config, const json_t *special_map, struct err *e);
int tok_config_eos(struct tok *t, const json_t *generation, const json_t *model_config, struct err *e);

#endif
