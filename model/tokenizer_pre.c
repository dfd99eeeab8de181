/* tokenizer_pre.c - the pre-tokenizers: cutting a stretch of text into words.
 *
 * Words are not collected: each step hands every piece it cuts to the next one at once, the last step to the BPE. So
 * memory does not grow with the number of words, except where a step rewrites its piece (ByteLevel, Metaspace): then
 * the piece lies in that step's own buffer of the run. Recursion is as deep as the list of steps. One thread per run.
 */
#include "model/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"

/* A step that cuts: pieces go out one by one as the behavior of its matches says. */
struct cutter {
    struct tok_run *r;
    size_t step;
    const char *s;
    bool at_start;
    enum tok_behavior behavior;
    bool bytes; /* hand pieces on in the byte-level alphabet */
    bool held;  /* [from, to) waits for its neighbour */
    bool last_match;
    size_t from, to;
};

static int emit_bytes(struct cutter *c, const char *s, size_t n, bool at_start)
{
    struct buf *b = &c->r->pre[c->step];
    buf_clear(b);
    char tmp[512];
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t cp = tok_byte_char((uint8_t)s[i]);
        if (cp < 0x80) {
            tmp[k++] = (char)cp;
        } else {
            tmp[k++] = (char)(0xC0 | cp >> 6);
            tmp[k++] = (char)(0x80 | (cp & 0x3F));
        }
        if (k > sizeof tmp - 2) {
            buf_append(b, tmp, k);
            k = 0;
        }
    }
    buf_append(b, tmp, k);
    if (b->failed)
        return err_set(c->r->e, -ENOMEM, "out of memory");
    return tok_pre_run(c->r, c->step + 1, b->data, b->len, at_start);
}

static int cut_emit(struct cutter *c, size_t from, size_t to)
{
    if (from == to)
        return 0;
    bool at_start = c->at_start && from == 0;
    if (c->bytes)
        return emit_bytes(c, c->s + from, to - from, at_start);
    return tok_pre_run(c->r, c->step + 1, c->s + from, to - from, at_start);
}

static int cut_flush(struct cutter *c)
{
    if (!c->held)
        return 0;
    c->held = false;
    return cut_emit(c, c->from, c->to);
}

/* The next stretch: stretches cover the piece in order, matches and what is between them. */
static int cut_add(struct cutter *c, size_t from, size_t to, bool match)
{
    int rc = 0;
    bool join = false;
    switch (c->behavior) {
    case SPLIT_ISOLATED:
        return cut_emit(c, from, to);
    case SPLIT_REMOVED:
        return match ? 0 : cut_emit(c, from, to);
    case SPLIT_CONTIGUOUS:
        join = match == c->last_match;
        break;
    case SPLIT_PREVIOUS:
        join = match && !c->last_match;
        break;
    case SPLIT_NEXT:
        join = !match && c->last_match;
        break;
    }
    c->last_match = match;
    if (join && c->held) {
        c->to = to;
        return 0;
    }
    rc = cut_flush(c);
    c->held = true;
    c->from = from;
    c->to = to;
    return rc;
}

/* Cuts c->s by the matches that a pattern has in seen: the same text, or one with stand-ins. */
static int cut_matches(struct cutter *c, const struct tok_pat *p, const struct tok_re *re, const char *seen, size_t n,
                       bool invert)
{
    size_t done = 0, at = 0, last = SIZE_MAX;
    while (at <= n) {
        size_t from, to;
        int rc = re ? tok_re_find(re, &c->r->re, seen, n, at, &from, &to, c->r->e)
                    : tok_pat_find(p, &c->r->re, seen, n, at, &from, &to, c->r->e);
        if (rc < 0)
            return rc;
        if (!rc)
            break;
        if (from == to && from == last) {
            uint32_t cp;
            at += at < n ? utf8_next(c->s + at, n - at, &cp) : 1;
            continue;
        }
        if (from > done && (rc = cut_add(c, done, from, invert)) < 0)
            return rc;
        if ((rc = cut_add(c, from, to, !invert)) < 0)
            return rc;
        done = at = last = to;
        if (at >= n)
            break;
    }
    if (done < n) {
        int rc = cut_add(c, done, n, invert);
        if (rc)
            return rc;
    }
    return cut_flush(c);
}

/* Cuts c->s by the matches of a pattern, or of re alone. */
static int cut_pattern(struct cutter *c, const struct tok_pat *p, const struct tok_re *re, size_t n, bool invert)
{
    if (!c->r->newer || (!re && !p->re.code) || !tok_uni_has_newer(c->s, n))
        return cut_matches(c, p, re, c->s, n, invert);
    char *seen = malloc(n);
    if (!seen)
        return err_set(c->r->e, -ENOMEM, "out of memory");
    memcpy(seen, c->s, n);
    tok_uni_stand_in(seen, n);
    int rc = cut_matches(c, p, re, seen, n, invert);
    free(seen);
    return rc;
}

/* Cuts s at each character of a class. */
static int cut_class(struct cutter *c, bool (*is)(uint32_t), size_t n)
{
    size_t done = 0;
    for (size_t i = 0; i < n;) {
        uint32_t cp = 0;
        size_t k = utf8_next(c->s + i, n - i, &cp);
        if (is(cp)) {
            int rc = 0;
            if (i > done && (rc = cut_add(c, done, i, false)))
                return rc;
            if ((rc = cut_add(c, i, i + k, true)))
                return rc;
            done = i + k;
        }
        i += k;
    }
    if (done < n) {
        int rc = cut_add(c, done, n, false);
        if (rc)
            return rc;
    }
    return cut_flush(c);
}

static int run_byte_level(struct tok_run *r, const struct tok_pre *st, struct cutter *c, size_t n)
{
    struct buf spaced = {0};
    if (st->prefix_space && c->s[0] != ' ') {
        buf_append(&spaced, " ", 1);
        buf_append(&spaced, c->s, n);
        if (spaced.failed)
            return err_set(r->e, -ENOMEM, "out of memory");
        c->s = spaced.data;
        n = spaced.len;
    }
    c->bytes = true;
    c->behavior = SPLIT_ISOLATED;
    int rc = st->use_regex ? cut_pattern(c, NULL, &r->t->gpt2, n, false) : cut_emit(c, 0, n);
    buf_free(&spaced);
    return rc;
}

/* Words, and runs of what is neither a word nor a space. */
static int run_whitespace(struct cutter *c, size_t n)
{
    size_t from = 0;
    int kind = 0, rc = 0; /* 0 space, 1 word, 2 other */
    for (size_t i = 0; i < n && !rc;) {
        uint32_t cp = 0;
        size_t k = utf8_next(c->s + i, n - i, &cp);
        int now = tok_is_word(cp) ? 1 : tok_is_space(cp) ? 0 : 2;
        if (now != kind) {
            rc = kind ? cut_emit(c, from, i) : 0;
            from = i;
            kind = now;
        }
        i += k;
    }
    return rc || !kind ? rc : cut_emit(c, from, n);
}

static int run_metaspace(struct tok_run *r, const struct tok_pre *st, struct cutter *c, size_t n)
{
    struct buf *b = &r->pre[c->step];
    buf_clear(b);
    bool prepend = st->scheme == PREPEND_ALWAYS || (st->scheme == PREPEND_FIRST && c->at_start);
    if (prepend && c->s[0] != ' ' && !(n >= st->text.n && !memcmp(c->s, st->text.data, st->text.n)))
        buf_append(b, st->text.data, st->text.n);
    for (size_t i = 0; i < n;) {
        const char *space = memchr(c->s + i, ' ', n - i);
        size_t end = space ? (size_t)(space - c->s) : n;
        buf_append(b, c->s + i, end - i);
        if (space)
            buf_append(b, st->text.data, st->text.n);
        i = end + (space ? 1 : 0);
    }
    if (b->failed)
        return err_set(r->e, -ENOMEM, "out of memory");
    c->s = b->data;
    if (!st->split)
        return cut_emit(c, 0, b->len);
    c->behavior = SPLIT_NEXT;
    struct tok_pat p = {.lit = st->text};
    return cut_pattern(c, &p, NULL, b->len, false);
}

int tok_pre_run(struct tok_run *r, size_t step, const char *s, size_t n, bool at_start)
{
    if (!n)
        return 0;
    if (step >= r->t->n_pre)
        return tok_bpe_word(r, s, n);
    const struct tok_pre *st = &r->t->pre[step];
    struct cutter c = {.r = r, .step = step, .s = s, .at_start = at_start, .behavior = st->behavior};
    switch (st->kind) {
    case PRE_BYTE_LEVEL:
        return run_byte_level(r, st, &c, n);
    case PRE_SPLIT:
        return cut_pattern(&c, &st->pat, NULL, n, st->invert);
    case PRE_DIGITS:
        return cut_class(&c, tok_is_numeric, n);
    case PRE_PUNCTUATION:
        return cut_class(&c, tok_is_punctuation, n);
    case PRE_METASPACE:
        return run_metaspace(r, st, &c, n);
    case PRE_WHITESPACE:
        return run_whitespace(&c, n);
    }
    return 0;
}
