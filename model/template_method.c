/* template_method.c - the methods of strings, dicts, lists, tuples and loops.
 *
 * Used by the thread that renders. Names that Python has but a template may not use (the ones that change an object,
 * and those no chat template needs) are in the tables without a function: reading one gives a method, as in Python,
 * calling it is an error. What always holds: no method changes the value it is called on.
 */
#include "model/template_internal.h"

#include <string.h>

#include "common/utf8.h"

#define NEED_STR(v, what)                                                                                              \
    do {                                                                                                               \
        if ((v).kind != TV_STR)                                                                                        \
            return rfail(c, "%s: a string is needed, not %s", what, tv_type((enum tv_kind)(v).kind));                  \
    } while (0)

static int m_strip(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    return text_strip(c, s, a->v[0], true, true, out);
}

static int m_lstrip(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    return text_strip(c, s, a->v[0], true, false, out);
}

static int m_rstrip(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    return text_strip(c, s, a->v[0], false, true, out);
}

static int m_upper(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    (void)a;
    return text_case(c, s, CASE_UPPER, out);
}

static int m_lower(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    (void)a;
    return text_case(c, s, CASE_LOWER, out);
}

static int m_title(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    (void)a;
    return text_case(c, s, CASE_TITLE, out);
}

static int m_capitalize(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    (void)a;
    return text_case(c, s, CASE_CAPITAL, out);
}

/* ---- split ---- */

struct pieces {
    struct tv *v;
    size_t n, cap;
};

static int piece_add(struct tctx *c, struct pieces *p, const char *s, size_t n)
{
    if (p->n == p->cap) {
        size_t cap = p->cap ? p->cap * 2 : 8;
        struct tv *v = arena_alloc(c->arena, cap * sizeof *v);
        if (!v)
            return rnomem(c);
        if (p->n)
            memcpy(v, p->v, p->n * sizeof *v);
        p->v = v;
        p->cap = cap;
    }
    int rc = charge(c, 1);
    return rc ? rc : str_make(c, s, n, &p->v[p->n++]);
}

static const char *find_last(const char *s, size_t n, const struct tstr *sep)
{
    for (size_t i = n + 1; i-- > sep->len;)
        if (!memcmp(s + i - sep->len, sep->p, sep->len))
            return s + i - sep->len;
    return NULL;
}

static int split_sep(struct tctx *c, const struct tstr *s, const struct tstr *sep, int64_t max, bool right,
                     struct pieces *p)
{
    size_t from = 0, to = s->len;
    int rc = charge(c, s->len / (right ? 1 : 16));
    for (; !rc && max != 0; max--) {
        const char *f = right ? find_last(s->p, to, sep) : memmem(s->p + from, to - from, sep->p, sep->len);
        if (!f)
            break;
        size_t at = (size_t)(f - s->p);
        rc = right ? piece_add(c, p, f + sep->len, to - at - sep->len) : piece_add(c, p, s->p + from, at - from);
        if (right)
            to = at;
        else
            from = at + sep->len;
    }
    return rc ? rc : piece_add(c, p, s->p + from, to - from);
}

static size_t space_at(const char *s, size_t n)
{
    uint32_t cp;
    size_t k = n ? utf8_next(s, n, &cp) : 0;
    return k && uc_space(cp) ? k : 0;
}

static int split_space(struct tctx *c, const struct tstr *s, int64_t max, struct pieces *p)
{
    size_t i = 0, k;
    for (;; max--) {
        while ((k = space_at(s->p + i, s->len - i)))
            i += k;
        if (i >= s->len)
            return 0;
        size_t j = i;
        if (max == 0) /* the rest, as it is */
            return piece_add(c, p, s->p + i, s->len - i);
        while (j < s->len && !space_at(s->p + j, s->len - j))
            j++;
        int rc = piece_add(c, p, s->p + i, j - i);
        if (rc)
            return rc;
        i = j;
    }
}

static int split(struct tctx *c, struct tv s, const struct args *a, bool right, struct tv *out)
{
    struct pieces p = {0};
    struct tv sep = a->v[0];
    int64_t max = -1;
    bool space = !tv_given(sep) || sep.kind == TV_NONE;
    if (tv_given(a->v[1]) && !tv_as_int(a->v[1], &max))
        return rfail(c, "split: maxsplit must be an integer");
    if (!space)
        NEED_STR(sep, "split");
    if (!space && !sep.s->len)
        return rfail(c, "empty separator");
    if (space && right && max >= 0)
        return rfail(c, "rsplit by white space with a limit is not supported");
    int rc = space ? split_space(c, s.s, max, &p) : split_sep(c, s.s, sep.s, max, right, &p);
    struct tlist *l = rc ? NULL : list_make(c, p.n);
    if (!l)
        return rc ? rc : -E2BIG;
    for (size_t i = 0; i < p.n; i++)
        l->v[i] = p.v[right && !space ? p.n - 1 - i : i];
    *out = tv_of_list(TV_LIST, l);
    return 0;
}

static int m_split(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    return split(c, s, a, false, out);
}

static int m_rsplit(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    return split(c, s, a, true, out);
}

/* ---- looking ---- */

static bool has_at(const struct tstr *s, const struct tstr *part, bool end)
{
    return part->len <= s->len && !memcmp(s->p + (end ? s->len - part->len : 0), part->p, part->len);
}

static int with(struct tctx *c, struct tv s, struct tv part, bool end, struct tv *out)
{
    bool yes = false;
    if (part.kind == TV_STR) {
        yes = has_at(s.s, part.s, end);
    } else if (part.kind == TV_TUPLE) {
        for (size_t i = 0; i < part.l->n; i++) {
            NEED_STR(part.l->v[i], end ? "endswith" : "startswith");
            yes |= has_at(s.s, part.l->v[i].s, end);
        }
    } else if (part.kind == TV_UNDEF) {
        return fail_undefined(c, part);
    } else {
        NEED_STR(part, end ? "endswith" : "startswith");
    }
    *out = tv_bool(yes);
    return 0;
}

static int m_startswith(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    return with(c, s, a->v[0], false, out);
}

static int m_endswith(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    return with(c, s, a->v[0], true, out);
}

static int find_in(struct tctx *c, struct tv s, struct tv part, bool last, struct tv *out)
{
    NEED_STR(part, "find");
    int rc = charge(c, s.s->len / (last ? 1 : 16));
    if (rc)
        return rc;
    const char *f = last ? find_last(s.s->p, s.s->len, part.s) : memmem(s.s->p, s.s->len, part.s->p, part.s->len);
    int64_t chars = 0;
    for (const char *p = s.s->p; f && p < f; p++)
        chars += ((unsigned char)*p & 0xC0) != 0x80;
    *out = tv_int(f ? chars : -1);
    return 0;
}

static int m_find(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    return find_in(c, s, a->v[0], false, out);
}

static int m_rfind(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    return find_in(c, s, a->v[0], true, out);
}

static int m_count(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    int64_t n = 0;
    NEED_STR(a->v[0], "count");
    const struct tstr *part = a->v[0].s;
    int rc = charge(c, s.s->len / 16);
    if (!part->len)
        n = (int64_t)s.s->chars + 1;
    for (size_t i = 0; !rc && part->len && i < s.s->len; n++) {
        const char *f = memmem(s.s->p + i, s.s->len - i, part->p, part->len);
        if (!f)
            break;
        i = (size_t)(f - s.s->p) + part->len;
    }
    *out = tv_int(n);
    return rc;
}

static int m_replace(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    int64_t count = -1;
    NEED_STR(a->v[0], "replace");
    NEED_STR(a->v[1], "replace");
    if (tv_given(a->v[2]) && !tv_as_int(a->v[2], &count))
        return rfail(c, "replace: count must be an integer");
    return text_replace(c, s.s, a->v[0].s, a->v[1].s, count, out);
}

static int m_join(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    struct tlist *l;
    int rc = tv_elements(c, a->v[0], &l);
    return rc ? rc : text_join(c, s.s, l, false, out);
}

enum char_class { IS_DIGIT, IS_ALPHA, IS_ALNUM, IS_SPACE };

/* ASCII classes and Unicode space; a text with other characters is refused rather than guessed at. */
static int all_chars(struct tctx *c, struct tv s, enum char_class k, struct tv *out)
{
    bool yes = s.s->len != 0;
    for (size_t i = 0; i < s.s->len;) {
        uint32_t cp;
        size_t n = utf8_next(s.s->p + i, s.s->len - i, &cp);
        bool digit = cp >= '0' && cp <= '9', alpha = (cp | 32) >= 'a' && (cp | 32) <= 'z';
        if (cp > 127 && k != IS_SPACE)
            return rfail(c, "character classes beyond ASCII are not supported");
        yes &= k == IS_DIGIT ? digit : k == IS_ALPHA ? alpha : k == IS_ALNUM ? digit || alpha : uc_space(cp);
        i += n ? n : 1;
    }
    *out = tv_bool(yes);
    return 0;
}

static int m_isdigit(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    (void)a;
    return all_chars(c, s, IS_DIGIT, out);
}

static int m_isalpha(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    (void)a;
    return all_chars(c, s, IS_ALPHA, out);
}

static int m_isalnum(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    (void)a;
    return all_chars(c, s, IS_ALNUM, out);
}

static int m_isspace(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    (void)a;
    return all_chars(c, s, IS_SPACE, out);
}

/* ---- dicts, lists, loops ---- */

/* 0 items, 1 keys, 2 values */
static int view(struct tctx *c, const struct tdict *d, uint8_t which, struct tv *out)
{
    struct tlist *l = list_make(c, d->n), *pair;
    int rc = l ? charge(c, d->n) : -E2BIG;
    for (size_t i = 0; !rc && i < d->n; i++) {
        l->v[i] = which == 1 ? d->e[i].k : d->e[i].v;
        if (which)
            continue;
        if (!(pair = list_make(c, 2)))
            return -E2BIG;
        pair->v[0] = d->e[i].k;
        pair->v[1] = d->e[i].v;
        l->v[i] = tv_of_list(TV_TUPLE, pair);
    }
    *out = tv_of_list(TV_VIEW, l);
    out->aux = which;
    return rc;
}

static int m_items(struct tctx *c, struct tv d, const struct args *a, struct tv *out)
{
    (void)a;
    return view(c, d.d, 0, out);
}

static int m_keys(struct tctx *c, struct tv d, const struct args *a, struct tv *out)
{
    (void)a;
    return view(c, d.d, 1, out);
}

static int m_values(struct tctx *c, struct tv d, const struct args *a, struct tv *out)
{
    (void)a;
    return view(c, d.d, 2, out);
}

static int m_get(struct tctx *c, struct tv d, const struct args *a, struct tv *out)
{
    bool found;
    int rc = dict_get(c, d.d, a->v[0], out, &found);
    if (!rc && !found)
        *out = tv_given(a->v[1]) ? a->v[1] : tv_none();
    return rc;
}

static int m_copy(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    (void)c;
    (void)a;
    *out = v; /* nothing can change it */
    return 0;
}

static int list_look(struct tctx *c, struct tv l, struct tv item, bool index, struct tv *out)
{
    int64_t n = 0;
    int rc = 0;
    for (size_t i = 0; !rc && i < l.l->n; i++) {
        bool eq;
        rc = tv_equal(c, list_get(l.l, i), item, &eq);
        if (!rc && eq && index) {
            *out = tv_int((int64_t)i);
            return 0;
        }
        n += !rc && eq;
    }
    *out = tv_int(n);
    return !rc && index ? rfail(c, "the value is not in the list") : rc;
}

static int m_list_count(struct tctx *c, struct tv l, const struct args *a, struct tv *out)
{
    return list_look(c, l, a->v[0], false, out);
}

static int m_index(struct tctx *c, struct tv l, const struct args *a, struct tv *out)
{
    return list_look(c, l, a->v[0], true, out);
}

static int m_cycle(struct tctx *c, struct tv loop, const struct args *a, struct tv *out)
{
    if (!a->n)
        return rfail(c, "no items for cycling given");
    *out = a->v[(size_t)loop.loop->index0 % a->n];
    return 0;
}

static const struct fn_spec str_methods[] = {
    {"strip", m_strip, 0, 1, {0}},
    {"lstrip", m_lstrip, 0, 1, {0}},
    {"rstrip", m_rstrip, 0, 1, {0}},
    {"split", m_split, 0, 2, {"sep", "maxsplit"}},
    {"rsplit", m_rsplit, 0, 2, {"sep", "maxsplit"}},
    {"startswith", m_startswith, 1, 1, {0}},
    {"endswith", m_endswith, 1, 1, {0}},
    {"upper", m_upper, 0, 0, {0}},
    {"lower", m_lower, 0, 0, {0}},
    {"title", m_title, 0, 0, {0}},
    {"capitalize", m_capitalize, 0, 0, {0}},
    {"replace", m_replace, 2, 3, {0}},
    {"join", m_join, 1, 1, {0}},
    {"find", m_find, 1, 1, {0}},
    {"rfind", m_rfind, 1, 1, {0}},
    {"count", m_count, 1, 1, {0}},
    {"isdigit", m_isdigit, 0, 0, {0}},
    {"isalpha", m_isalpha, 0, 0, {0}},
    {"isalnum", m_isalnum, 0, 0, {0}},
    {"isspace", m_isspace, 0, 0, {0}},
    {"index", NULL, 0, 0, {0}},
    {"format", NULL, 0, 0, {0}},
    {"format_map", NULL, 0, 0, {0}},
    {"encode", NULL, 0, 0, {0}},
    {"splitlines", NULL, 0, 0, {0}},
    {"partition", NULL, 0, 0, {0}},
    {"rpartition", NULL, 0, 0, {0}},
    {"translate", NULL, 0, 0, {0}},
    {"zfill", NULL, 0, 0, {0}},
    {"center", NULL, 0, 0, {0}},
    {"ljust", NULL, 0, 0, {0}},
    {"rjust", NULL, 0, 0, {0}},
    {"removeprefix", NULL, 0, 0, {0}},
    {"removesuffix", NULL, 0, 0, {0}},
    {"swapcase", NULL, 0, 0, {0}},
    {"casefold", NULL, 0, 0, {0}},
    {"expandtabs", NULL, 0, 0, {0}},
};

static const struct fn_spec dict_methods[] = {
    {"items", m_items, 0, 0, {0}}, {"keys", m_keys, 0, 0, {0}},     {"values", m_values, 0, 0, {0}},
    {"get", m_get, 1, 2, {0}},     {"copy", m_copy, 0, 0, {0}},     {"pop", NULL, 0, 0, {0}},
    {"update", NULL, 0, 0, {0}},   {"setdefault", NULL, 0, 0, {0}}, {"clear", NULL, 0, 0, {0}},
    {"popitem", NULL, 0, 0, {0}},  {"fromkeys", NULL, 0, 0, {0}},
};

static const struct fn_spec list_methods[] = {
    {"count", m_list_count, 1, 1, {0}}, {"index", m_index, 1, 1, {0}}, {"copy", m_copy, 0, 0, {0}},
    {"append", NULL, 0, 0, {0}},        {"extend", NULL, 0, 0, {0}},   {"insert", NULL, 0, 0, {0}},
    {"pop", NULL, 0, 0, {0}},           {"remove", NULL, 0, 0, {0}},   {"clear", NULL, 0, 0, {0}},
    {"sort", NULL, 0, 0, {0}},          {"reverse", NULL, 0, 0, {0}},
};

static const struct fn_spec loop_methods[] = {{"cycle", m_cycle, 0, FN_RAW, {0}}};

static const struct fn_spec *find(const struct fn_spec *t, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(t[i].name, name))
            return &t[i];
    return NULL;
}

#define FIND(table, name) find(table, sizeof table / sizeof table[0], name)

const struct fn_spec *str_method_find(const char *name)
{
    return FIND(str_methods, name);
}

const struct fn_spec *other_method_find(enum tv_kind kind, const char *name)
{
    if (kind == TV_DICT)
        return FIND(dict_methods, name);
    if (kind == TV_LIST)
        return FIND(list_methods, name);
    if (kind == TV_TUPLE || kind == TV_RANGE)
        return find(list_methods, 2, name);
    return kind == TV_LOOP ? FIND(loop_methods, name) : NULL;
}

bool method_known(const char *name)
{
    return FIND(str_methods, name) || FIND(dict_methods, name) || FIND(list_methods, name) || FIND(loop_methods, name);
}
