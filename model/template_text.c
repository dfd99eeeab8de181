/* template_text.c - what Python's str does to text: white space, case, strip, replace, join, numbers, escapes.
 *
 * Used by the thread that renders; results live in the rendering's arena. What always holds: text is taken by code
 * point. Case mapping is Unicode's simple one, with the long forms that Python also knows for German sharp s, the Latin
 * ligatures and the dotted I, and the final sigma; other one-to-many mappings keep their simple form.
 */
#include "model/template_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "common/utf8.h"

bool uc_space(uint32_t cp)
{
    return (cp >= 9 && cp <= 13) || (cp >= 28 && cp <= 32) || cp == 0x85 || cp == 0xA0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F ||
           cp == 0x3000;
}

bool uc_printable(uint32_t cp)
{
    if (cp < 128)
        return cp >= 32 && cp < 127;
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
        return false;
    default:
        return true;
    }
}

static bool cased(uint32_t cp)
{
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)cp);
    return k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LL || k == UTF8PROC_CATEGORY_LT;
}

static void put_cp(struct buf *b, int32_t cp)
{
    char u[4];
    buf_append(b, u, utf8_put((uint32_t)cp, u));
}

static void put_upper(struct buf *b, uint32_t cp, bool title)
{
    static const char *const lig[] = {"FF", "FI", "FL", "FFI", "FFL", "ST", "ST"}, *const tlig[] = {"Ff",  "Fi",  "Fl",
                                                                                                    "Ffi", "Ffl", "St",
                                                                                                    "St"};
    if (cp == 0xDF)
        buf_puts(b, title ? "Ss" : "SS");
    else if (cp >= 0xFB00 && cp <= 0xFB06)
        buf_puts(b, (title ? tlig : lig)[cp - 0xFB00]);
    else
        put_cp(b, title ? utf8proc_totitle((utf8proc_int32_t)cp) : utf8proc_toupper((utf8proc_int32_t)cp));
}

/* prev_cased, next: what a capital sigma needs to know whether it ends a word. */
static void put_lower(struct buf *b, uint32_t cp, bool prev_cased, const char *next, size_t n)
{
    uint32_t follow = 0;
    if (cp == 0x130)
        buf_puts(b, "i\xCC\x87");
    else if (cp == 0x3A3 && prev_cased && !(n && utf8_next(next, n, &follow) && cased(follow)))
        put_cp(b, 0x3C2);
    else
        put_cp(b, utf8proc_tolower((utf8proc_int32_t)cp));
}

/* jinja2's title filter starts a word after these. */
static bool jinja_break(uint32_t cp)
{
    return cp == '-' || cp == '(' || cp == '{' || cp == '[' || cp == '<' || uc_space(cp);
}

int text_case(struct tctx *c, struct tv s, enum text_case how, struct tv *out)
{
    struct buf b;
    bool prev_cased = false, start = true;
    buf_init(&b, c->max_output);
    for (size_t i = 0; i < s.s->len;) {
        uint32_t cp;
        size_t n = utf8_next(s.s->p + i, s.s->len - i, &cp);
        bool first = how == CASE_TITLE ? !prev_cased : start;
        i += n ? n : 1;
        if (how == CASE_UPPER || (how == CASE_JINJA_TITLE && first))
            put_upper(&b, cp, false);
        else if (how != CASE_LOWER && first)
            put_upper(&b, cp, true);
        else
            put_lower(&b, cp, prev_cased, s.s->p + i, s.s->len - i);
        prev_cased = cased(cp);
        start = how == CASE_JINJA_TITLE && jinja_break(cp);
    }
    int rc = str_of_buf(c, &b, out);
    out->aux = s.aux;
    return rc;
}

static bool in_set(uint32_t cp, struct tv chars)
{
    if (chars.kind != TV_STR)
        return uc_space(cp);
    for (size_t i = 0; i < chars.s->len;) {
        uint32_t k;
        size_t n = utf8_next(chars.s->p + i, chars.s->len - i, &k);
        if (k == cp)
            return true;
        i += n ? n : 1;
    }
    return false;
}

int text_strip(struct tctx *c, struct tv s, struct tv chars, bool left, bool right, struct tv *out)
{
    size_t from = 0, to = s.s->len;
    uint32_t cp;
    if (chars.kind != TV_STR && chars.kind != TV_NONE && tv_given(chars))
        return rfail(c, "strip arg must be None or str");
    int rc = charge(c, chars.kind == TV_STR ? s.s->len / 16 * (chars.s->chars + 1) : s.s->len / 16);
    while (!rc && left && from < to) {
        size_t n = utf8_next(s.s->p + from, to - from, &cp);
        if (!in_set(cp, chars))
            break;
        from += n;
    }
    while (!rc && right && to > from) {
        size_t p = to - 1;
        while (p > from && ((unsigned char)s.s->p[p] & 0xC0) == 0x80)
            p--;
        utf8_next(s.s->p + p, to - p, &cp);
        if (!in_set(cp, chars))
            break;
        to = p;
    }
    if (!rc)
        rc = str_make(c, s.s->p + from, to - from, out);
    out->aux = s.aux;
    return rc;
}

int text_replace(struct tctx *c, const struct tstr *s, const struct tstr *old, const struct tstr *new_, int64_t count,
                 struct tv *out)
{
    struct buf b;
    size_t i = 0;
    int rc = charge(c, s->len / 16);
    if (rc)
        return rc;
    buf_init(&b, c->max_output);
    for (; count != 0 && i <= s->len && !b.failed; count--) {
        const char *f = old->len ? memmem(s->p + i, s->len - i, old->p, old->len) : s->p + i;
        if (!f)
            break;
        size_t at = (size_t)(f - s->p), step = old->len;
        buf_append(&b, s->p + i, at - i);
        buf_append(&b, new_->p, new_->len);
        if (!old->len) { /* between all characters, and at both ends */
            uint32_t cp;
            step = at < s->len ? utf8_next(f, s->len - at, &cp) : 1;
            buf_append(&b, f, at < s->len ? step : 0);
        }
        i = at + step;
    }
    if (i < s->len)
        buf_append(&b, s->p + i, s->len - i);
    return str_of_buf(c, &b, out);
}

int text_join(struct tctx *c, const struct tstr *sep, const struct tlist *l, bool convert, struct tv *out)
{
    struct buf b;
    int rc = charge(c, l->n);
    buf_init(&b, c->max_output);
    for (size_t i = 0; !rc && i < l->n; i++) {
        struct tv v = list_get(l, i);
        if (i)
            buf_append(&b, sep->p, sep->len);
        rc = convert || v.kind == TV_STR
                 ? tv_print(c, v, false, &b)
                 : rfail(c, "sequence item %zu: expected str instance, %s found", i, tv_type((enum tv_kind)v.kind));
        if (!rc)
            rc = buf_check(c, &b);
    }
    if (rc) {
        buf_free(&b);
        return rc;
    }
    return str_of_buf(c, &b, out);
}

/* Python's int(text, base) or float(text). */
bool text_number(const struct tstr *s, bool integer, int base, struct tv *out)
{
    char num[128], *end;
    size_t from = 0, to = s->len, n = 0;
    while (from < to && uc_space((unsigned char)s->p[from]))
        from++;
    while (to > from && uc_space((unsigned char)s->p[to - 1]))
        to--;
    if (from == to || to - from >= sizeof num)
        return false;
    for (size_t i = from; i < to; i++) {
        char ch = s->p[i], prev = i > from ? s->p[i - 1] : '_', next = i + 1 < to ? s->p[i + 1] : '_';
        if (ch == '_' && (prev == '_' || next == '_' || prev == '+' || prev == '-'))
            return false;
        if (uc_space((unsigned char)ch) || (!integer && (ch | 32) == 'x') || ch == 0 || ch == '(')
            return false;
        if (ch != '_')
            num[n++] = ch;
    }
    num[n] = 0;
    errno = 0;
    if (integer)
        *out = tv_int(strtoll(num, &end, base));
    else
        *out = tv_float(strtod(num, &end));
    return end == num + n && (!integer || !errno);
}

int text_escape(struct tctx *c, struct tv v, struct tv *out)
{
    static const char from[] = "&<>'\"", *const to[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
    struct buf b;
    if (v.kind == TV_STR && v.aux) {
        *out = v;
        return 0;
    }
    int rc = tv_str(c, v, &v);
    if (rc)
        return rc;
    buf_init(&b, c->max_output);
    for (size_t i = 0; i < v.s->len; i++) {
        const char *f = v.s->p[i] ? strchr(from, v.s->p[i]) : NULL;
        buf_append(&b, f ? to[f - from] : v.s->p + i, f ? strlen(to[f - from]) : 1);
    }
    rc = str_of_buf(c, &b, out);
    out->aux = 1;
    return rc;
}
