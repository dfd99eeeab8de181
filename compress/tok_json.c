/* tok_json.c - from GGUF's parts of a tokenizer to tokenizer.json.
 *
 * One thread; the JSON tree is built in memory, written, and dropped. What each pre-tokenizer name stands for is a
 * table of the steps that the models' own tokenizer.json files hold. Added tokens (control and user-defined ones) that
 * follow the last ordinary token stay out of the model's vocabulary, as in those files: with ignore_merges a vocabulary
 * entry would match plain text. SentencePiece merges are not stored in GGUF; they follow from the scores: every split
 * of a piece into two pieces is a merge, best score first (and for equal scores in the order that transformers'
 * converter gives).
 */
#include "compress/tok_json.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "common/utf8.h"
#include "formats/json.h"

#define SPACE_MARK "\xE2\x96\x81" /* U+2581, SentencePiece's space */
#define LLAMA3_RE                                                                                                      \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "                                         \
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"                                                                     \
    "\\s+(?!\\S)|\\s+"
#define QWEN2_RE                                                                                                       \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "                                              \
    "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

enum kind { KIND_GPT2, KIND_SMOLLM, KIND_LLAMA3, KIND_QWEN2, KIND_SPM };

struct work {
    const struct tok_json *t;
    enum kind kind;
    size_t n_model; /* ids below this are in the model's vocabulary */
    json_t *vocab;
    struct err *e;
};

static bool is(struct gguf_str s, const char *text)
{
    return s.p && s.n == strlen(text) && !memcmp(s.p, text, s.n);
}

static int no_memory(struct err *e)
{
    return err_set(e, -ENOMEM, "out of memory");
}

static int pick_kind(struct work *w)
{
    static const struct {
        const char *name;
        enum kind kind;
    } pres[] = {{"gpt-2", KIND_GPT2},    {"gpt2", KIND_GPT2},       {"smollm", KIND_SMOLLM}, {"llama-bpe", KIND_LLAMA3},
                {"llama3", KIND_LLAMA3}, {"llama-v3", KIND_LLAMA3}, {"qwen2", KIND_QWEN2}};
    const struct tok_json *t = w->t;
    w->kind = KIND_SPM;
    if (is(t->model, "llama"))
        return 0;
    if (!is(t->model, "gpt2"))
        return err_set(w->e, -ENOTSUP, "\"tokenizer.ggml.model\" is %.*s; gpt2 and llama are supported",
                       t->model.n < 40 ? (int)t->model.n : 40, t->model.p);
    for (size_t i = 0; i < sizeof pres / sizeof *pres; i++) {
        if (is(t->pre, pres[i].name)) {
            w->kind = pres[i].kind;
            return 0;
        }
    }
    return err_set(w->e, -ENOTSUP, "\"tokenizer.ggml.pre\" is %.*s; gpt-2, smollm, llama-bpe and qwen2 are supported",
                   t->pre.p ? (t->pre.n < 40 ? (int)t->pre.n : 40) : 6, t->pre.p ? t->pre.p : "absent");
}

static int type_of(const struct tok_json *t, size_t id)
{
    return t->types ? t->types[id] : TOK_JSON_NORMAL;
}

static bool is_added(const struct work *w, size_t id)
{
    int type = type_of(w->t, id);
    return type == TOK_JSON_CONTROL || type == TOK_JSON_USER || (type == TOK_JSON_UNKNOWN && w->kind == KIND_SPM);
}

/* Where the tail of added tokens begins. It may be left out of the vocabulary only where its ids follow without a gap.
 */
static void find_tail(struct work *w)
{
    size_t n = w->t->n_tokens;
    while (n && type_of(w->t, n - 1) == TOK_JSON_UNUSED)
        n--;
    w->n_model = n;
    while (w->n_model && is_added(w, w->n_model - 1))
        w->n_model--;
}

static json_t *text(struct gguf_str s)
{
    return json_stringn(s.p, s.n); /* NULL when not valid UTF-8 */
}

static json_t *make_vocab(struct work *w)
{
    const struct tok_json *t = w->t;
    json_t *v = json_object();
    for (size_t i = 0; v && i < w->n_model; i++) {
        struct gguf_str s = t->tokens[i];
        if (memchr(s.p, 0, s.n) || utf8_valid(s.p, s.n) != s.n) {
            err_set(w->e, -EINVAL, "token %zu is not valid UTF-8 without NUL", i);
        } else if (json_object_getn(v, s.p, s.n)) {
            err_set(w->e, -EINVAL, "token %zu, \"%.*s\", is there twice", i, s.n < 64 ? (int)s.n : 64, s.p);
        } else if (json_object_setn_new_nocheck(v, s.p, s.n, json_integer((json_int_t)i))) {
            no_memory(w->e);
        } else {
            continue;
        }
        json_decref(v);
        return NULL;
    }
    if (!v)
        no_memory(w->e);
    return v;
}

static bool known(const struct work *w, const char *p, size_t n)
{
    return json_object_getn(w->vocab, p, n);
}

static json_t *stored_merges(struct work *w)
{
    const struct tok_json *t = w->t;
    json_t *list = json_array();
    for (size_t i = 0; list && i < t->n_merges; i++) {
        struct gguf_str s = t->merges[i];
        const char *gap = s.n > 2 ? memchr(s.p + 1, ' ', s.n - 1) : NULL;
        size_t left = gap ? (size_t)(gap - s.p) : 0, right = gap ? s.n - left - 1 : 0;
        json_t *pair = gap && known(w, s.p, left) && known(w, gap + 1, right)
                           ? json_pack("[s%s%]", s.p, left, gap + 1, right)
                           : NULL;
        if (pair && !json_array_append_new(list, pair))
            continue;
        err_set(w->e, -EINVAL, "merge %zu, \"%.*s\", is not two known tokens with a space between", i,
                s.n < 64 ? (int)s.n : 64, s.p);
        json_decref(list);
        return NULL;
    }
    if (!list)
        no_memory(w->e);
    return list;
}

struct merge {
    const char *p;
    size_t left, right;     /* bytes */
    size_t n_left, n_right; /* characters */
    json_int_t id_left, id_right;
    float score;
    size_t piece;
};

/* Best score first, longer left part, longer right part first, then by piece and the ids of the parts. */
static int merge_order(const void *a, const void *b)
{
    const struct merge *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    if (x->n_left != y->n_left)
        return x->n_left > y->n_left ? -1 : 1;
    if (x->n_right != y->n_right)
        return x->n_right > y->n_right ? -1 : 1;
    if (x->piece != y->piece)
        return x->piece < y->piece ? -1 : 1;
    if (x->id_left != y->id_left)
        return x->id_left < y->id_left ? -1 : 1;
    return x->id_right < y->id_right ? -1 : x->id_right > y->id_right;
}

struct merge_list {
    struct merge *m;
    size_t n, cap;
};

static int add_splits(struct work *w, size_t id, struct merge_list *l)
{
    struct gguf_str s = w->t->tokens[id];
    size_t chars = 0, seen = 0;
    uint32_t cp;
    if (s.n > 4096)
        return err_set(w->e, -EINVAL, "token %zu is %zu bytes long", id, s.n);
    for (size_t i = 0; i < s.n; i += utf8_next(s.p + i, s.n - i, &cp))
        chars++;
    for (size_t i = utf8_next(s.p, s.n, &cp); i && i < s.n; i += utf8_next(s.p + i, s.n - i, &cp)) {
        seen++;
        const json_t *left = json_object_getn(w->vocab, s.p, i), *right = json_object_getn(w->vocab, s.p + i, s.n - i);
        if (!left || !right)
            continue;
        if (l->n == l->cap) {
            size_t cap = l->cap ? 2 * l->cap : 4096;
            struct merge *m = realloc(l->m, cap * sizeof *m);
            if (!m)
                return no_memory(w->e);
            l->m = m;
            l->cap = cap;
        }
        l->m[l->n++] = (struct merge){
            s.p, i, s.n - i, seen, chars - seen, json_integer_value(left), json_integer_value(right), w->t->scores[id],
            id};
    }
    return 0;
}

static json_t *scored_merges(struct work *w)
{
    struct merge_list l = {0};
    int r = w->t->scores ? 0 : err_set(w->e, -EINVAL, "\"tokenizer.ggml.scores\" is missing");
    for (size_t i = 0; !r && i < w->n_model; i++) {
        if (type_of(w->t, i) == TOK_JSON_NORMAL)
            r = add_splits(w, i, &l);
    }
    if (!r && l.n)
        qsort(l.m, l.n, sizeof *l.m, merge_order);
    json_t *list = r ? NULL : json_array();
    for (size_t i = 0; list && i < l.n; i++) {
        const struct merge *m = &l.m[i];
        json_array_append_new(list, json_pack("[s%s%]", m->p, m->left, m->p + m->left, m->right));
    }
    if (!r && (!list || json_array_size(list) != l.n)) {
        no_memory(w->e);
        json_decref(list);
        list = NULL;
    }
    free(l.m);
    return list;
}

static json_t *make_model(struct work *w)
{
    const struct tok_json *t = w->t;
    bool spm = w->kind == KIND_SPM;
    w->vocab = make_vocab(w);
    json_t *merges = !w->vocab ? NULL : spm ? scored_merges(w) : stored_merges(w);
    if (!merges) {
        json_decref(w->vocab);
        return NULL;
    }
    json_t *unk = spm && t->unk >= 0 ? text(t->tokens[t->unk]) : json_null();
    json_t *m =
        json_pack("{s:s,s:n,s:o,s:n,s:n,s:b,s:b,s:b,s:o,s:o}", "type", "BPE", "dropout", "unk_token", unk,
                  "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", (int)spm, "byte_fallback", (int)spm,
                  "ignore_merges", (int)(w->kind == KIND_LLAMA3), "vocab", w->vocab, "merges", merges);
    if (!m)
        no_memory(w->e);
    return m;
}

static json_t *added_tokens(struct work *w)
{
    const struct tok_json *t = w->t;
    json_t *list = json_array();
    for (size_t i = 0; list && i < t->n_tokens; i++) {
        if (!is_added(w, i))
            continue;
        json_t *s = text(t->tokens[i]);
        json_t *a =
            s ? json_pack("{s:I,s:o,s:b,s:b,s:b,s:b,s:b}", "id", (json_int_t)i, "content", s, "single_word", 0,
                          "lstrip", 0, "rstrip", 0, "normalized", 0, "special", (int)(type_of(t, i) != TOK_JSON_USER))
              : NULL;
        if (a && !json_array_append_new(list, a))
            continue;
        err_set(w->e, -EINVAL, "token %zu is not valid UTF-8", i);
        json_decref(list);
        return NULL;
    }
    if (!list)
        no_memory(w->e);
    return list;
}

static json_t *byte_level(bool regex)
{
    return json_pack("{s:s,s:b,s:b,s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1, "use_regex",
                     (int)regex);
}

static json_t *split(const char *re)
{
    return json_pack("{s:s,s:{s:s},s:s,s:b}", "type", "Split", "pattern", "Regex", re, "behavior", "Isolated", "invert",
                     0);
}

static json_t *pre_tokenizer(enum kind kind)
{
    switch (kind) {
    case KIND_GPT2:
        return byte_level(true);
    case KIND_SMOLLM:
        return json_pack("{s:s,s:[{s:s,s:b},o]}", "type", "Sequence", "pretokenizers", "type", "Digits",
                         "individual_digits", 1, byte_level(true));
    case KIND_LLAMA3:
    case KIND_QWEN2:
        return json_pack("{s:s,s:[o,o]}", "type", "Sequence", "pretokenizers",
                         split(kind == KIND_QWEN2 ? QWEN2_RE : LLAMA3_RE), byte_level(false));
    default:
        return json_null();
    }
}

static bool prefix_space(const struct tok_json *t)
{
    return t->add_space_prefix != 0;
}

static json_t *normalizer(const struct work *w)
{
    if (w->kind == KIND_QWEN2)
        return json_pack("{s:s}", "type", "NFC");
    if (w->kind != KIND_SPM)
        return json_null();
    json_t *list = json_array();
    if (prefix_space(w->t))
        json_array_append_new(list, json_pack("{s:s,s:s}", "type", "Prepend", "prepend", SPACE_MARK));
    json_array_append_new(
        list, json_pack("{s:s,s:{s:s},s:s}", "type", "Replace", "pattern", "String", " ", "content", SPACE_MARK));
    return json_pack("{s:s,s:o}", "type", "Sequence", "normalizers", list);
}

static json_t *decoder(const struct work *w)
{
    if (w->kind != KIND_SPM)
        return byte_level(true);
    json_t *list = json_pack("[{s:s,s:{s:s},s:s},{s:s},{s:s}]", "type", "Replace", "pattern", "String", SPACE_MARK,
                             "content", " ", "type", "ByteFallback", "type", "Fuse");
    if (prefix_space(w->t))
        json_array_append_new(list,
                              json_pack("{s:s,s:s,s:i,s:i}", "type", "Strip", "content", " ", "start", 1, "stop", 0));
    return json_pack("{s:s,s:o}", "type", "Sequence", "decoders", list);
}

static bool adds_bos(const struct work *w)
{
    const struct tok_json *t = w->t;
    bool usual = w->kind == KIND_SPM || w->kind == KIND_LLAMA3;
    return t->bos >= 0 && (t->add_bos < 0 ? usual : t->add_bos > 0);
}

static bool adds_eos(const struct work *w)
{
    return w->t->eos >= 0 && w->t->add_eos > 0;
}

/* {"SpecialToken": {"id": text, "type_id": type}} */
static json_t *template_special(const struct work *w, int64_t id, int type)
{
    return json_pack("{s:{s:o,s:i}}", "SpecialToken", "id", text(w->t->tokens[id]), "type_id", type);
}

static void put_special(const struct work *w, json_t *specials, int64_t id)
{
    json_t *s = text(w->t->tokens[id]);
    if (s)
        json_object_set_new(specials, json_string_value(s),
                            json_pack("{s:O,s:[I],s:[O]}", "id", s, "ids", (json_int_t)id, "tokens", s));
    json_decref(s);
}

static json_t *post_processor(const struct work *w)
{
    bool bos = adds_bos(w), eos = adds_eos(w);
    if (!bos && !eos)
        return w->kind == KIND_SPM ? json_null() : byte_level(true);
    json_t *single = json_array(), *pair = json_array(), *specials = json_object();
    for (int type = 0; type < 2; type++) {
        json_t *seq = json_pack("{s:{s:s,s:i}}", "Sequence", "id", type ? "B" : "A", "type_id", type);
        json_t *to[2] = {pair, type ? NULL : single};
        for (int k = 0; k < 2 && to[k]; k++) {
            if (bos)
                json_array_append_new(to[k], template_special(w, w->t->bos, type));
            json_array_append(to[k], seq);
            if (eos)
                json_array_append_new(to[k], template_special(w, w->t->eos, type));
        }
        json_decref(seq);
    }
    if (bos)
        put_special(w, specials, w->t->bos);
    if (eos)
        put_special(w, specials, w->t->eos);
    return json_pack("{s:s,s:o,s:o,s:o}", "type", "TemplateProcessing", "single", single, "pair", pair,
                     "special_tokens", specials);
}

static int write_file(const char *dir, const char *name, json_t *v, struct err *e)
{
    char *path = path_join(dir, name);
    int r = path && v ? json_write_file(path, v, e) : no_memory(e);
    free(path);
    json_decref(v);
    return r;
}

static json_t *id_text(const struct tok_json *t, int64_t id)
{
    return id >= 0 ? text(t->tokens[id]) : json_null();
}

static int write_config(const struct work *w, const char *dir)
{
    const struct tok_json *t = w->t;
    json_t *template = t->chat_template.p ? text(t->chat_template) : json_null();
    if (!template)
        return err_set(w->e, -EINVAL, "\"tokenizer.chat_template\" is not valid UTF-8");
    json_t *o = json_pack("{s:s,s:o,s:o,s:o,s:o,s:b,s:b,s:b,s:b,s:I,s:o}", "tokenizer_class", "PreTrainedTokenizerFast",
                          "bos_token", id_text(t, t->bos), "eos_token", id_text(t, t->eos), "unk_token",
                          id_text(t, t->unk), "pad_token", id_text(t, t->pad), "add_bos_token", (int)adds_bos(w),
                          "add_eos_token", (int)adds_eos(w), "add_prefix_space", 0, "clean_up_tokenization_spaces", 0,
                          "model_max_length", (json_int_t)t->model_max_length, "chat_template", template);
    return write_file(dir, "tokenizer_config.json", o, w->e);
}

int tok_json_write(const char *dir, const struct tok_json *t, struct err *e)
{
    struct err own = {0};
    struct work w = {.t = t, .e = e ? e : &own};
    int64_t ids[] = {t->bos, t->eos, t->unk, t->pad};
    for (size_t i = 0; i < 4; i++) {
        if (ids[i] >= 0 && (uint64_t)ids[i] >= t->n_tokens)
            return err_set(w.e, -EINVAL, "a special token's id is %lld, beyond the %zu tokens", (long long)ids[i],
                           t->n_tokens);
    }
    int r = pick_kind(&w);
    if (r)
        return r;
    find_tail(&w);
    json_t *added = added_tokens(&w), *model = added ? make_model(&w) : NULL;
    if (!model) {
        json_decref(added);
        return w.e->code;
    }
    json_t *o = json_pack("{s:s,s:n,s:n,s:o,s:o,s:o,s:o,s:o,s:o}", "version", "1.0", "truncation", "padding",
                          "added_tokens", added, "normalizer", normalizer(&w), "pre_tokenizer", pre_tokenizer(w.kind),
                          "post_processor", post_processor(&w), "decoder", decoder(&w), "model", model);
    r = write_file(dir, "tokenizer.json", o, w.e);
    return r ? r : write_config(&w, dir);
}
