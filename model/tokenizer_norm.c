/* tokenizer_norm.c - the normalizers, run in order over one stretch of text.
 *
 * The caller owns the two buffers; a step reads one and writes the other, a step that changes nothing writes neither.
 * The Unicode forms work on the stretches that are not ASCII (with the ASCII character before, which a mark may join),
 * so plain English costs a copy. Marks are sorted by a stable merge sort: text made of marks alone is not quadratic.
 */
#include "model/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "common/checked.h"
#include "common/utf8.h"

/* Code points of one stretch. */
struct cps {
    utf8proc_int32_t *p;
    size_t n, cap;
};

static int cps_room(struct cps *c, size_t more)
{
    size_t want, bytes;
    if (ck_add(c->n, more, &want))
        return -ENOMEM;
    if (want <= c->cap)
        return 0;
    size_t cap = c->cap ? c->cap : 256;
    while (cap < want)
        cap *= 2;
    if (ck_mul(cap, sizeof *c->p, &bytes))
        return -ENOMEM;
    utf8proc_int32_t *p = realloc(c->p, bytes);
    if (!p)
        return -ENOMEM;
    c->p = p;
    c->cap = cap;
    return 0;
}

static int mark_class(utf8proc_int32_t cp)
{
    return cp < 0x300 ? 0 : utf8proc_get_property(cp)->combining_class;
}

/* Stable, by combining class; tmp holds n. */
static void marks_sort(utf8proc_int32_t *p, utf8proc_int32_t *tmp, size_t n)
{
    if (n < 2)
        return;
    size_t half = n / 2;
    marks_sort(p, tmp, half);
    marks_sort(p + half, tmp, n - half);
    if (mark_class(p[half - 1]) <= mark_class(p[half]))
        return;
    memcpy(tmp, p, half * sizeof *p);
    size_t a = 0, b = half, o = 0;
    while (a < half && b < n)
        p[o++] = mark_class(p[b]) < mark_class(tmp[a]) ? p[b++] : tmp[a++];
    while (a < half)
        p[o++] = tmp[a++];
}

static int marks_order(struct cps *c)
{
    utf8proc_int32_t *tmp = NULL;
    for (size_t i = 0; i < c->n;) {
        size_t end = i;
        while (end < c->n && mark_class(c->p[end]))
            end++;
        if (end - i > 1) {
            if (!tmp)
                tmp = malloc((c->n / 2 + 1) * sizeof *tmp);
            if (!tmp)
                return -ENOMEM;
            marks_sort(c->p + i, tmp, end - i);
        }
        i = end + 1;
    }
    free(tmp);
    return 0;
}

/* Orders, composes and writes what was decomposed. */
static int form_flush(struct cps *c, int options, struct buf *out)
{
    if (marks_order(c))
        return -ENOMEM;
    utf8proc_ssize_t len = (utf8proc_ssize_t)c->n;
    if (options & UTF8PROC_COMPOSE)
        len = utf8proc_normalize_utf32(c->p, len, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    for (utf8proc_ssize_t i = 0; i < len; i++) {
        char b[4];
        buf_append(out, b, utf8_put((uint32_t)c->p[i], b));
    }
    c->n = 0;
    return out->failed ? -ENOMEM : 0;
}

/* A character that the reference's tables lack stands by itself and parts what is around it. */
static int form_stretch(struct cps *c, const char *s, size_t n, int options, struct buf *out)
{
    c->n = 0;
    for (size_t i = 0; i < n;) {
        uint32_t cp = 0;
        int bound = 0;
        size_t used = utf8_next(s + i, n - i, &cp);
        if (cp >= 0x300 && tok_uni_no_form(cp)) {
            if (form_flush(c, options, out))
                return -ENOMEM;
            buf_append(out, s + i, used);
            i += used;
            continue;
        }
        i += used;
        if (cps_room(c, 32))
            return -ENOMEM;
        utf8proc_ssize_t k = utf8proc_decompose_char((utf8proc_int32_t)cp, c->p + c->n,
                                                     (utf8proc_ssize_t)(c->cap - c->n), options, &bound);
        c->n += k > 0 && k <= (utf8proc_ssize_t)(c->cap - c->n) ? (size_t)k : 0; /* 18 at most in Unicode */
    }
    return form_flush(c, options, out);
}

static int run_form(enum tok_norm_kind kind, const char *s, size_t n, struct buf *out)
{
    static const int options[] = {
        [NORM_NFC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE,
        [NORM_NFD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE,
        [NORM_NFKC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
        [NORM_NFKD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT,
    };
    struct cps c = {0};
    int rc = 0;
    for (size_t i = 0; i < n && !rc;) {
        size_t end = i;
        while (end < n && !(s[end] & 0x80))
            end++;
        if (end < n && end > i)
            end--; /* a mark may join the last one */
        buf_append(out, s + i, end - i);
        i = end;
        if (end < n)
            end++;
        while (end < n && (s[end] & 0x80))
            end++;
        rc = form_stretch(&c, s + i, end - i, options[kind], out);
        i = end;
    }
    free(c.p);
    return rc ? rc : out->failed ? -ENOMEM : 0;
}

static int run_lower(const char *s, size_t n, struct buf *out)
{
    for (size_t i = 0; i < n;) {
        uint32_t cp = 0;
        char b[4];
        i += utf8_next(s + i, n - i, &cp);
        if (cp == 0x130) { /* the one capital whose small letter is two characters */
            buf_append(out, "i\xCC\x87", 3);
            continue;
        }
        uint32_t low = tok_uni_lower(cp);
        buf_append(out, b, utf8_put(low ? low : (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp), b));
    }
    return out->failed ? -ENOMEM : 0;
}

int tok_replace(const struct tok_pat *p, struct tok_re_run *re, const char *s, size_t n, const struct tok_str *with,
                struct buf *out, struct err *e)
{
    size_t done = 0, at = 0, last = SIZE_MAX;
    while (at <= n) {
        size_t from, to;
        int rc = tok_pat_find(p, re, s, n, at, &from, &to, e);
        if (rc < 0)
            return rc;
        if (!rc)
            break;
        if (from == to && from == last) { /* an empty match right after a match: look one character further */
            uint32_t cp;
            at += at < n ? utf8_next(s + at, n - at, &cp) : 1;
            continue;
        }
        buf_append(out, s + done, from - done);
        buf_append(out, with->data, with->n);
        done = at = last = to;
    }
    buf_append(out, s + done, n - done);
    return out->failed ? err_set(e, -ENOMEM, "out of memory") : 0;
}

static void strip(const struct tok_norm *st, const char **s, size_t *n)
{
    uint32_t cp;
    while (st->left && *n) {
        size_t k = utf8_next(*s, *n, &cp);
        if (!k || !tok_is_space(cp))
            break;
        *s += k;
        *n -= k;
    }
    while (st->right && *n) {
        size_t k = 1;
        while (k < *n && ((*s)[*n - k] & 0xC0) == 0x80)
            k++;
        if (!utf8_next(*s + *n - k, k, &cp) || !tok_is_space(cp))
            break;
        *n -= k;
    }
}

int tok_normalize(const struct tok *t, struct tok_re_run *re, struct buf bufs[2], const char *s, size_t n,
                  const char **out, size_t *out_n, struct err *e)
{
    size_t turn = 0;
    for (size_t i = 0; i < t->n_norm && n; i++) {
        const struct tok_norm *st = &t->norm[i];
        if (st->kind == NORM_STRIP) {
            strip(st, &s, &n);
            continue;
        }
        struct buf *b = &bufs[turn];
        buf_clear(b);
        int rc = 0;
        if (st->kind == NORM_PREPEND) {
            buf_append(b, st->text.data, st->text.n);
            buf_append(b, s, n);
        } else if (st->kind == NORM_REPLACE) {
            rc = tok_replace(&st->pat, re, s, n, &st->text, b, e);
        } else if (st->kind == NORM_LOWER) {
            rc = run_lower(s, n, b);
        } else {
            rc = run_form(st->kind, s, n, b);
        }
        if (rc == -ENOMEM || b->failed)
            return err_set(e, -ENOMEM, "out of memory");
        if (rc)
            return rc;
        s = b->data ? b->data : "";
        n = b->len;
        turn ^= 1;
    }
    *out = s;
    *out_n = n;
    return 0;
}
