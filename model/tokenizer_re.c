/* tokenizer_re.c - regular expressions of a tokenizer.json, run by PCRE2.
 *
 * tokenizer.json's patterns are written for Oniguruma (Ruby's syntax, Unicode classes). tok_re_compile rewrites them
 * for PCRE2 and refuses what the two read differently. What it changes: \s (PCRE2 takes U+180E for a space), \w, \d and
 * \h (by name, as Oniguruma has them), ^ $ (of lines), script names, and letters, marks and digits that were assigned
 * after the Unicode version of the PCRE2 that is installed. Compiled patterns are immutable and shared; what a match
 * needs is in the caller's tok_re_run. Just-in-time compilation is used where the machine allows it. Each match has a
 * limit that grows with the subject, so that a pattern from a file cannot run for ever.
 */
#include "model/tokenizer_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"

#define RE_PATTERN_MAX 16384

#define CLASS_SPACE                                                                                                    \
    "\\t-\\r\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define CLASS_NOT_SPACE                                                                                                \
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}" \
    "\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}"
#define CLASS_WORD                                                                                                     \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{"    \
    "1f189}"

/* Where the translation stands. */
struct rewrite {
    const char *p;
    size_t n, at;
    bool in_class;
    bool counted; /* the atom before ended in {n,m}: a + there means another thing */
    struct buf out;
    struct err *e;
};

static int re_refuse(struct rewrite *w, const char *what)
{
    return err_set(w->e, -ENOTSUP, "pattern \"%.200s\": %s at offset %zu is not supported", w->p, what, w->at);
}

/* Puts a class's contents: inside [...] as they are, else in brackets of their own. */
static void re_class(struct rewrite *w, bool negated, const char *contents)
{
    if (w->in_class)
        buf_puts(&w->out, contents);
    else
        buf_printf(&w->out, "[%s%s]", negated ? "^" : "", contents);
}

/* \p{NAME}, \p{^NAME}, \P{NAME}; w->at is beyond the p. */
static int re_property(struct rewrite *w, bool negated)
{
    const char *name = w->p + w->at + 1, *end = w->at < w->n ? memchr(name - 1, '}', w->n - w->at) : NULL;
    if (!end || name[-1] != '{')
        return re_refuse(w, "a \\p without {}");
    w->at = (size_t)(end - w->p) + 1;
    if (*name == '^') {
        negated = !negated;
        name++;
    }
    size_t len = (size_t)(end - name);
    if (!len || len > 32)
        return re_refuse(w, "such a property");
    for (size_t i = 0; i < len; i++)
        if (!((name[i] >= 'a' && name[i] <= 'z') || (name[i] >= 'A' && name[i] <= 'Z') || name[i] == '_'))
            return re_refuse(w, "such a property");
    buf_printf(&w->out, "\\%c{%s%.*s}", negated ? 'P' : 'p', len > 2 ? "sc:" : "", (int)len, name);
    return 0;
}

/* \uHHHH: Oniguruma's; PCRE2 writes \x{HHHH}. */
static int re_hex(struct rewrite *w, size_t digits)
{
    if (w->n - w->at < digits || strspn(w->p + w->at, "0123456789abcdefABCDEF") < digits)
        return re_refuse(w, "such an escape");
    buf_printf(&w->out, "\\x{%.*s}", (int)digits, w->p + w->at);
    w->at += digits;
    return 0;
}

static int re_x(struct rewrite *w)
{
    if (w->at < w->n && w->p[w->at] == '{') {
        size_t len = strspn(w->p + w->at + 1, "0123456789abcdefABCDEF");
        if (!len || len > 6 || w->p[w->at + 1 + len] != '}')
            return re_refuse(w, "such an escape");
        buf_puts(&w->out, "\\x");
        buf_append(&w->out, w->p + w->at, len + 2);
        w->at += len + 2;
        return 0;
    }
    return re_hex(w, 2);
}

static int re_escape(struct rewrite *w)
{
    if (w->at + 1 >= w->n)
        return re_refuse(w, "a lone backslash");
    char c = w->p[w->at + 1];
    w->at += 2;
    switch (c) {
    case 's':
        re_class(w, false, CLASS_SPACE);
        return 0;
    case 'S':
        re_class(w, false, CLASS_NOT_SPACE);
        return 0;
    case 'w':
        re_class(w, false, CLASS_WORD);
        return 0;
    case 'd':
        buf_puts(&w->out, "\\p{Nd}");
        return 0;
    case 'D':
        buf_puts(&w->out, "\\P{Nd}");
        return 0;
    case 'W':
        if (w->in_class)
            return re_refuse(w, "\\W in a class");
        re_class(w, true, CLASS_WORD);
        return 0;
    case 'p':
    case 'P':
        return re_property(w, c == 'P');
    case 'x':
        return re_x(w);
    case 'u':
        return re_hex(w, 4);
    case 'n':
    case 'r':
    case 't':
    case 'f':
        buf_printf(&w->out, "\\%c", c);
        return 0;
    case 'v':
        buf_puts(&w->out, "\\x0b");
        return 0;
    default:
        if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c & 0x80))
            return re_refuse(w, "such an escape");
        buf_printf(&w->out, "\\%c", c);
        return 0;
    }
}

/* [ ... ], without nested classes and intersections. */
static int re_bracket(struct rewrite *w)
{
    w->in_class = true;
    buf_puts(&w->out, "[");
    w->at++;
    if (w->at < w->n && w->p[w->at] == '^') {
        buf_puts(&w->out, "^");
        w->at++;
    }
    if (w->at < w->n && w->p[w->at] == ']')
        return re_refuse(w, "an empty class");
    while (w->at < w->n && w->p[w->at] != ']') {
        char c = w->p[w->at];
        if (c == '[' || (c == '&' && w->at + 1 < w->n && w->p[w->at + 1] == '&'))
            return re_refuse(w, "a class in a class");
        if (c == '\\') {
            int rc = re_escape(w);
            if (rc)
                return rc;
            continue;
        }
        buf_append(&w->out, &c, 1);
        w->at++;
    }
    if (w->at >= w->n)
        return re_refuse(w, "a class without an end");
    buf_puts(&w->out, "]");
    w->at++;
    w->in_class = false;
    return 0;
}

/* "(" and what says its kind. */
static int re_group(struct rewrite *w)
{
    static const char *const kinds[] = {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i)"};
    if (w->at + 1 < w->n && w->p[w->at + 1] == '?') {
        for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
            size_t len = strlen(kinds[i]);
            if (w->n - w->at >= len && !memcmp(w->p + w->at, kinds[i], len)) {
                buf_append(&w->out, kinds[i], len);
                w->at += len;
                return 0;
            }
        }
        return re_refuse(w, "such a group");
    }
    if (w->at + 1 < w->n && w->p[w->at + 1] == '*')
        return re_refuse(w, "a verb");
    buf_puts(&w->out, "(?:"); /* nothing asks for what a group caught */
    w->at++;
    return 0;
}

/* {n,m} as a count where it is one, else as plain text. */
static void re_brace(struct rewrite *w)
{
    const char *s = w->p + w->at + 1;
    size_t a = strspn(s, "0123456789"), i = a, b = 0;
    if (s[i] == ',')
        b = 1 + strspn(s + i + 1, "0123456789");
    i += b;
    if (s[i] == '}' && (a || b > 1)) {
        if (a)
            buf_append(&w->out, s - 1, i + 2);
        else
            buf_printf(&w->out, "{0%.*s", (int)i + 1, s);
        w->at += i + 2;
        w->counted = true;
        return;
    }
    buf_puts(&w->out, "\\{");
    w->at++;
}

static int re_rewrite(struct rewrite *w)
{
    while (w->at < w->n) {
        char c = w->p[w->at];
        bool counted = w->counted;
        int rc = 0;
        w->counted = false;
        if (counted && (c == '+' || c == '?' || c == '*'))
            return re_refuse(w, "a quantifier after a counted one");
        if (c == '\\')
            rc = re_escape(w);
        else if (c == '[')
            rc = re_bracket(w);
        else if (c == '(')
            rc = re_group(w);
        else if (c == '{')
            re_brace(w);
        else if (c == '^' || c == '$') {
            buf_printf(&w->out, "(?m:%c)", c);
            w->at++;
        } else {
            buf_append(&w->out, &c, 1);
            w->at++;
        }
        if (rc)
            return rc;
    }
    return 0;
}

int tok_re_compile(struct tok_re *re, const char *pattern, size_t n, struct err *e)
{
    if (n > RE_PATTERN_MAX || utf8_valid(pattern, n) != n || strlen(pattern) != n)
        return err_set(e, -EINVAL, "a pattern must be UTF-8 without NUL and at most %d bytes", RE_PATTERN_MAX);
    struct rewrite w = {.p = pattern, .n = n, .e = e};
    buf_init(&w.out, 64 * RE_PATTERN_MAX);
    int rc = re_rewrite(&w);
    if (!rc && w.out.failed)
        rc = err_set(e, -ENOMEM, "out of memory");
    if (!rc) {
        int code;
        PCRE2_SIZE at;
        re->code = pcre2_compile((PCRE2_SPTR)(w.out.data ? w.out.data : ""), w.out.len,
                                 PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &at, NULL);
        if (!re->code) {
            PCRE2_UCHAR why[128] = "";
            pcre2_get_error_message(code, why, sizeof why);
            rc = err_set(e, -ENOTSUP, "pattern \"%.200s\": %s", pattern, (const char *)why);
        } else {
            pcre2_jit_compile(re->code, PCRE2_JIT_COMPLETE); /* without it the interpreter runs */
        }
    }
    buf_free(&w.out);
    return rc;
}

void tok_re_free(struct tok_re *re)
{
    pcre2_code_free(re->code);
    re->code = NULL;
}

void tok_re_run_free(struct tok_re_run *r)
{
    pcre2_match_data_free(r->md);
    pcre2_match_context_free(r->mc);
    *r = (struct tok_re_run){0};
}

static int re_prepare(struct tok_re_run *r, size_t n, struct err *e)
{
    if (!r->md)
        r->md = pcre2_match_data_create(1, NULL);
    if (!r->mc)
        r->mc = pcre2_match_context_create(NULL);
    if (!r->md || !r->mc)
        return err_set(e, -ENOMEM, "out of memory");
    if (n > r->limit_for || !r->limit_for) {
        uint64_t limit = 100000 + (uint64_t)n * 16;
        pcre2_set_match_limit(r->mc, limit > UINT32_MAX ? UINT32_MAX : (uint32_t)limit);
        pcre2_set_depth_limit(r->mc, 10000);
        pcre2_set_heap_limit(r->mc, 65536); /* KiB */
        r->limit_for = n ? n : 1;
    }
    return 0;
}

int tok_re_find(const struct tok_re *re, struct tok_re_run *r, const char *s, size_t n, size_t at, size_t *from,
                size_t *to, struct err *e)
{
    if (!r->md || n > r->limit_for) {
        int rc = re_prepare(r, n, e);
        if (rc)
            return rc;
    }
    int rc = pcre2_match(re->code, (PCRE2_SPTR)s, n, at, PCRE2_NO_UTF_CHECK, r->md, r->mc);
    if (rc == PCRE2_ERROR_NOMATCH)
        return 0;
    if (rc < 0)
        return err_set(e, rc == PCRE2_ERROR_NOMEMORY ? -ENOMEM : -E2BIG,
                       "the tokenizer's pattern needs too much work at offset %zu of the text (%d)", at, rc);
    const PCRE2_SIZE *ov = pcre2_get_ovector_pointer(r->md);
    *from = ov[0];
    *to = ov[1];
    return 1;
}

int tok_pat_find(const struct tok_pat *p, struct tok_re_run *r, const char *s, size_t n, size_t at, size_t *from,
                 size_t *to, struct err *e)
{
    if (p->re.code)
        return tok_re_find(&p->re, r, s, n, at, from, to, e);
    const char *hit = p->lit.n && at <= n ? memmem(s + at, n - at, p->lit.data, p->lit.n) : NULL;
    if (!hit)
        return 0;
    *from = (size_t)(hit - s);
    *to = *from + p->lit.n;
    return 1;
}
