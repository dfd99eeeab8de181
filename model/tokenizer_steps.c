/* tokenizer_steps.c - reads the lists of steps of a tokenizer.json: normalizer, pre_tokenizer, decoder, post_processor.
 *
 * Sequences are flattened (they may nest, a few levels). Everything a step may say is read or refused by name, so that
 * a tokenizer never silently gives other ids. The steps belong to the tokenizer; tok_steps_free takes half-built ones.
 */
#include "model/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"

#define DEPTH_MAX 8
#define POST_MAX 64 /* ids a post-processor may add on one side */

static int step_unknown(const char *where, const char *type, struct err *e)
{
    return err_set(e, -ENOTSUP, "tokenizer.json: %s \"%.40s\" is not supported", where, type);
}

static int step_type(const json_t *j, const char *where, const char **type, struct err *e)
{
    if (!json_is_object(j) || !json_is_string(json_object_get(j, "type")))
        return err_set(e, -EINVAL, "tokenizer.json: %s must be an object with a type", where);
    *type = json_string_value(json_object_get(j, "type"));
    return 0;
}

/* A string member that must be there. */
static int step_text(const json_t *j, const char *where, const char *key, struct tok_str *out, struct err *e)
{
    const char *s;
    size_t n;
    int rc = tok_json_str(j, where, key, &s, &n, e);
    if (rc)
        return rc;
    if (!s)
        return err_set(e, -EINVAL, "tokenizer.json: %s.%s is missing", where, key);
    return tok_str_set(out, s, n) ? err_set(e, -ENOMEM, "out of memory") : 0;
}

static int step_pattern(const json_t *j, const char *where, struct tok_pat *p, struct err *e)
{
    const json_t *pat = json_object_get(j, "pattern");
    const char *s;
    size_t n;
    int rc = tok_json_str(pat, where, "Regex", &s, &n, e);
    if (rc)
        return rc;
    if (s) {
        rc = tok_re_compile(&p->re, s, n, e);
        return rc ? err_prefix(e, rc, "tokenizer.json: %s", where) : 0;
    }
    rc = step_text(pat, where, "String", &p->lit, e);
    if (!rc && !p->lit.n)
        rc = err_set(e, -EINVAL, "tokenizer.json: %s.pattern is empty", where);
    return rc;
}

/* Runs one on each member of a Sequence. */
static int step_each(struct tok *t, const json_t *j, const char *where, const char *key, unsigned depth,
                     int (*one)(struct tok *, const json_t *, unsigned, struct err *), struct err *e)
{
    const json_t *list = json_object_get(j, key);
    if (!json_is_array(list))
        return err_set(e, -EINVAL, "tokenizer.json: %s.%s must be an array", where, key);
    if (depth >= DEPTH_MAX)
        return err_set(e, -EINVAL, "tokenizer.json: %s: Sequences nest deeper than %d", where, DEPTH_MAX);
    for (size_t i = 0; i < json_array_size(list); i++) {
        int rc = one(t, json_array_get(list, i), depth + 1, e);
        if (rc)
            return rc;
    }
    return 0;
}

static int step_room(size_t n, const char *where, struct err *e)
{
    return n < TOK_STEPS ? 0 : err_set(e, -ENOTSUP, "tokenizer.json: more than %d steps in %s", TOK_STEPS, where);
}

/* ---- normalizer ---- */

int tok_steps_norm(struct tok *t, const json_t *j, unsigned depth, struct err *e)
{
    static const struct {
        const char *type;
        enum tok_norm_kind kind;
    } kinds[] = {{"NFC", NORM_NFC},         {"NFD", NORM_NFD},         {"NFKC", NORM_NFKC},
                 {"NFKD", NORM_NFKD},       {"Lowercase", NORM_LOWER}, {"Prepend", NORM_PREPEND},
                 {"Replace", NORM_REPLACE}, {"Strip", NORM_STRIP}};
    const char *type = "";
    if (!j || json_is_null(j))
        return 0;
    int rc = step_type(j, "normalizer", &type, e);
    if (rc)
        return rc;
    if (!strcmp(type, "Sequence"))
        return step_each(t, j, "normalizer", "normalizers", depth, tok_steps_norm, e);
    if ((rc = step_room(t->n_norm, "normalizer", e)))
        return rc;
    size_t i = 0, n = sizeof kinds / sizeof *kinds;
    while (i < n && strcmp(type, kinds[i].type))
        i++;
    if (i == n)
        return step_unknown("normalizer", type, e);
    struct tok_norm *st = &t->norm[t->n_norm++];
    st->kind = kinds[i].kind;
    if (st->kind == NORM_PREPEND)
        return step_text(j, "normalizer.Prepend", "prepend", &st->text, e);
    if (st->kind == NORM_REPLACE) {
        rc = step_pattern(j, "normalizer.Replace", &st->pat, e);
        return rc ? rc : step_text(j, "normalizer.Replace", "content", &st->text, e);
    }
    if (st->kind == NORM_STRIP) {
        rc = tok_json_bool(j, "normalizer.Strip", "strip_left", true, &st->left, e);
        return rc ? rc : tok_json_bool(j, "normalizer.Strip", "strip_right", true, &st->right, e);
    }
    return 0;
}

/* ---- pre_tokenizer ---- */

static int step_behavior(const json_t *j, const char *where, enum tok_behavior *out, struct err *e)
{
    static const char *const names[] = {[SPLIT_REMOVED] = "Removed",
                                        [SPLIT_ISOLATED] = "Isolated",
                                        [SPLIT_PREVIOUS] = "MergedWithPrevious",
                                        [SPLIT_NEXT] = "MergedWithNext",
                                        [SPLIT_CONTIGUOUS] = "Contiguous"};
    const char *s;
    size_t n;
    int rc = tok_json_str(j, where, "behavior", &s, &n, e);
    if (rc)
        return rc;
    if (!s) {
        *out = SPLIT_ISOLATED;
        return 0;
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(s, names[i])) {
            *out = (enum tok_behavior)i;
            return 0;
        }
    return err_set(e, -ENOTSUP, "tokenizer.json: %s.behavior \"%.40s\" is not supported", where, s);
}

/* Metaspace, of the pre-tokenizer or the decoder: the replacement (one character) and where it is put first. */
static int step_metaspace(const json_t *j, const char *where, struct tok_str *text, enum tok_scheme *scheme,
                          struct err *e)
{
    int rc = step_text(j, where, "replacement", text, e);
    if (rc)
        return rc;
    uint32_t cp;
    if (!text->n || utf8_next(text->data, text->n, &cp) != text->n)
        return err_set(e, -EINVAL, "tokenizer.json: %s.replacement must be one character", where);
    bool prefix;
    const char *s;
    size_t n;
    if ((rc = tok_json_bool(j, where, "add_prefix_space", true, &prefix, e)) ||
        (rc = tok_json_str(j, where, "prepend_scheme", &s, &n, e)))
        return rc;
    if (!s)
        s = prefix ? "always" : "never";
    if (!strcmp(s, "always"))
        *scheme = PREPEND_ALWAYS;
    else if (!strcmp(s, "first"))
        *scheme = PREPEND_FIRST;
    else if (!strcmp(s, "never"))
        *scheme = PREPEND_NEVER;
    else
        return err_set(e, -ENOTSUP, "tokenizer.json: %s.prepend_scheme \"%.40s\" is not supported", where, s);
    return 0;
}

/* GPT-2's pattern, which ByteLevel brings with it. */
static int gpt2_pattern(struct tok *t, struct err *e)
{
    static const char pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
    return t->gpt2.code ? 0 : tok_re_compile(&t->gpt2, pattern, sizeof pattern - 1, e);
}

static int pre_byte_level(struct tok *t, const json_t *j, struct tok_pre *st, struct err *e)
{
    st->kind = PRE_BYTE_LEVEL;
    int rc = tok_json_bool(j, "pre_tokenizer.ByteLevel", "add_prefix_space", true, &st->prefix_space, e);
    if (!rc)
        rc = tok_json_bool(j, "pre_tokenizer.ByteLevel", "use_regex", true, &st->use_regex, e);
    return !rc && st->use_regex ? gpt2_pattern(t, e) : rc;
}

static int pre_split(const json_t *j, struct tok_pre *st, struct err *e)
{
    st->kind = PRE_SPLIT;
    int rc = step_pattern(j, "pre_tokenizer.Split", &st->pat, e);
    if (!rc)
        rc = step_behavior(j, "pre_tokenizer.Split", &st->behavior, e);
    return rc ? rc : tok_json_bool(j, "pre_tokenizer.Split", "invert", false, &st->invert, e);
}

static int pre_digits(const json_t *j, struct tok_pre *st, struct err *e)
{
    bool each;
    st->kind = PRE_DIGITS;
    int rc = tok_json_bool(j, "pre_tokenizer.Digits", "individual_digits", false, &each, e);
    if (!rc)
        st->behavior = each ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS;
    return rc;
}

int tok_steps_pre(struct tok *t, const json_t *j, unsigned depth, struct err *e)
{
    const char *type = "";
    if (!j || json_is_null(j))
        return 0;
    int rc = step_type(j, "pre_tokenizer", &type, e);
    if (rc)
        return rc;
    if (!strcmp(type, "Sequence"))
        return step_each(t, j, "pre_tokenizer", "pretokenizers", depth, tok_steps_pre, e);
    if ((rc = step_room(t->n_pre, "pre_tokenizer", e)))
        return rc;
    struct tok_pre *st = &t->pre[t->n_pre++];
    if (!strcmp(type, "ByteLevel"))
        return pre_byte_level(t, j, st, e);
    if (!strcmp(type, "Split"))
        return pre_split(j, st, e);
    if (!strcmp(type, "Digits"))
        return pre_digits(j, st, e);
    if (!strcmp(type, "Punctuation")) {
        st->kind = PRE_PUNCTUATION;
        return step_behavior(j, "pre_tokenizer.Punctuation", &st->behavior, e);
    }
    if (!strcmp(type, "Metaspace")) {
        st->kind = PRE_METASPACE;
        rc = step_metaspace(j, "pre_tokenizer.Metaspace", &st->text, &st->scheme, e);
        return rc ? rc : tok_json_bool(j, "pre_tokenizer.Metaspace", "split", true, &st->split, e);
    }
    if (!strcmp(type, "Whitespace")) {
        st->kind = PRE_WHITESPACE;
        return 0;
    }
    t->n_pre--;
    return step_unknown("pre_tokenizer", type, e);
}

/* ---- decoder ---- */

static int dec_strip(const json_t *j, struct tok_dec *st, struct err *e)
{
    const json_t *start = json_object_get(j, "start"), *stop = json_object_get(j, "stop");
    json_int_t a = json_is_integer(start) ? json_integer_value(start) : -1;
    json_int_t b = json_is_integer(stop) ? json_integer_value(stop) : -1;
    if (a < 0 || b < 0 || a > 1024 || b > 1024)
        return err_set(e, -EINVAL, "tokenizer.json: decoder.Strip: start and stop must be from 0 to 1024");
    st->start = (size_t)a;
    st->stop = (size_t)b;
    uint32_t cp;
    int rc = step_text(j, "decoder.Strip", "content", &st->text, e);
    if (!rc && (!st->text.n || utf8_next(st->text.data, st->text.n, &cp) != st->text.n))
        rc = err_set(e, -EINVAL, "tokenizer.json: decoder.Strip.content must be one character");
    return rc;
}

int tok_steps_dec(struct tok *t, const json_t *j, unsigned depth, struct err *e)
{
    static const struct {
        const char *type;
        enum tok_dec_kind kind;
    } kinds[] = {{"ByteLevel", DEC_BYTE_LEVEL},
                 {"Replace", DEC_REPLACE},
                 {"ByteFallback", DEC_BYTE_FALLBACK},
                 {"Fuse", DEC_FUSE},
                 {"Strip", DEC_STRIP},
                 {"Metaspace", DEC_METASPACE}};
    const char *type = "";
    if (!j || json_is_null(j))
        return 0;
    int rc = step_type(j, "decoder", &type, e);
    if (rc)
        return rc;
    t->has_decoder = true;
    if (!strcmp(type, "Sequence"))
        return step_each(t, j, "decoder", "decoders", depth, tok_steps_dec, e);
    if ((rc = step_room(t->n_dec, "decoder", e)))
        return rc;
    size_t i = 0, n = sizeof kinds / sizeof *kinds;
    while (i < n && strcmp(type, kinds[i].type))
        i++;
    if (i == n)
        return step_unknown("decoder", type, e);
    struct tok_dec *st = &t->dec[t->n_dec++];
    st->kind = kinds[i].kind;
    if (st->kind == DEC_REPLACE) {
        rc = step_pattern(j, "decoder.Replace", &st->pat, e);
        return rc ? rc : step_text(j, "decoder.Replace", "content", &st->text, e);
    }
    if (st->kind == DEC_STRIP)
        return dec_strip(j, st, e);
    if (st->kind == DEC_METASPACE)
        return step_metaspace(j, "decoder.Metaspace", &st->text, &st->scheme, e);
    return 0;
}

/* ---- post_processor ---- */

/* The ids of a special token that a template names. */
static int post_special(const json_t *tokens, const char *name, int32_t *out, size_t *n, struct err *e)
{
    const json_t *ids = json_object_get(json_object_get(tokens, name), "ids");
    if (!json_is_array(ids))
        return err_set(e, -EINVAL, "tokenizer.json: post_processor.special_tokens[\"%.40s\"].ids is missing", name);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= TOK_ID_MAX)
            return err_set(e, -EINVAL, "tokenizer.json: post_processor.special_tokens[\"%.40s\"].ids[%zu]", name, i);
        if (*n >= POST_MAX)
            return err_set(e, -ENOTSUP, "tokenizer.json: post_processor adds more than %d tokens", POST_MAX);
        out[(*n)++] = (int32_t)json_integer_value(id);
    }
    return 0;
}

/* Puts add[0..n) at the outer side of list. */
static int post_grow(int32_t **list, size_t *have, const int32_t *add, size_t n, bool front, struct err *e)
{
    if (*have + n > POST_MAX)
        return err_set(e, -ENOTSUP, "tokenizer.json: post_processor adds more than %d tokens", POST_MAX);
    int32_t *p = malloc((*have + n + 1) * sizeof *p);
    if (!p)
        return err_set(e, -ENOMEM, "out of memory");
    if (n)
        memcpy(p + (front ? 0 : *have), add, n * sizeof *p);
    if (*have)
        memcpy(p + (front ? n : 0), *list, *have * sizeof *p);
    free(*list);
    *list = p;
    *have += n;
    return 0;
}

static int post_template(struct tok *t, const json_t *j, struct err *e)
{
    const json_t *single = json_object_get(j, "single"), *tokens = json_object_get(j, "special_tokens");
    int32_t before[POST_MAX], after[POST_MAX];
    size_t n_before = 0, n_after = 0, texts = 0;
    if (!json_is_array(single))
        return err_set(e, -EINVAL, "tokenizer.json: post_processor.single must be an array");
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *item = json_array_get(single, i);
        const json_t *special = json_object_get(item, "SpecialToken"), *id = json_object_get(special, "id");
        if (json_is_string(id)) {
            int rc = texts ? post_special(tokens, json_string_value(id), after, &n_after, e)
                           : post_special(tokens, json_string_value(id), before, &n_before, e);
            if (rc)
                return rc;
        } else if (json_is_object(json_object_get(item, "Sequence"))) {
            texts++;
        } else {
            return err_set(e, -EINVAL, "tokenizer.json: post_processor.single[%zu]", i);
        }
    }
    if (texts != 1)
        return err_set(e, -ENOTSUP, "tokenizer.json: post_processor.single must hold the text once");
    int rc = post_grow(&t->post_before, &t->n_before, before, n_before, true, e);
    return rc ? rc : post_grow(&t->post_after, &t->n_after, after, n_after, false, e);
}

int tok_steps_post(struct tok *t, const json_t *j, unsigned depth, struct err *e)
{
    const char *type = "";
    if (!j || json_is_null(j))
        return 0;
    int rc = step_type(j, "post_processor", &type, e);
    if (rc)
        return rc;
    if (!strcmp(type, "Sequence"))
        return step_each(t, j, "post_processor", "processors", depth, tok_steps_post, e);
    if (!strcmp(type, "ByteLevel"))
        return 0; /* it moves offsets, which nobody asks for */
    if (!strcmp(type, "TemplateProcessing"))
        return post_template(t, j, e);
    return step_unknown("post_processor", type, e);
}

static void pat_free(struct tok_pat *p)
{
    tok_str_free(&p->lit);
    tok_re_free(&p->re);
}

void tok_steps_free(struct tok *t)
{
    for (size_t i = 0; i < t->n_norm; i++) {
        pat_free(&t->norm[i].pat);
        tok_str_free(&t->norm[i].text);
    }
    for (size_t i = 0; i < t->n_pre; i++) {
        pat_free(&t->pre[i].pat);
        tok_str_free(&t->pre[i].text);
    }
    for (size_t i = 0; i < t->n_dec; i++) {
        pat_free(&t->dec[i].pat);
        tok_str_free(&t->dec[i].text);
    }
    tok_re_free(&t->gpt2);
    free(t->post_before);
    free(t->post_after);
}
