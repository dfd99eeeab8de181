/* template_seq.c - the filters that work on sequences and mappings: map, select, sort, join and their like.
 *
 * Used by the thread that renders. map, select, reject, unique, reverse and items give a generator (TV_GEN), as in
 * jinja2: it can be read once and has no length. Unlike there it is computed at once, which a template cannot tell
 * apart but for errors in elements it never reads. What always holds: sorting is stable and each comparison costs a
 * step.
 */
#include "model/template_internal.h"

#include <stdlib.h>
#include <string.h>

static const struct tv *kw_find(const struct args *a, const char *name)
{
    for (size_t i = 0; i < a->n_kw; i++)
        if (tstr_is(a->kw_name[i], name))
            return &a->kw[i];
    return NULL;
}

/* item.a.b.0, as jinja2's make_attrgetter; attr missing or none: the item itself. fallback may be NULL. */
static int attr_path(struct tctx *c, struct tv item, struct tv attr, const struct tv *fallback, struct tv *out)
{
    int rc = 0;
    *out = item;
    if (!tv_given(attr) || attr.kind == TV_NONE)
        return 0;
    if (attr.kind != TV_STR)
        return tv_getitem(c, item, attr, out);
    for (size_t i = 0; !rc && i <= attr.s->len;) {
        const char *dot = memchr(attr.s->p + i, '.', attr.s->len - i);
        size_t n = dot ? (size_t)(dot - attr.s->p) - i : attr.s->len - i;
        struct tv part, number;
        rc = str_make(c, attr.s->p + i, n, &part);
        bool digits = n > 0;
        for (size_t k = 0; k < n; k++)
            digits = digits && attr.s->p[i + k] >= '0' && attr.s->p[i + k] <= '9';
        if (!rc && digits && text_number(part.s, true, 10, &number))
            part = number;
        if (!rc)
            rc = tv_getitem(c, *out, part, out);
        if (!rc && fallback && fallback->kind != TV_NONE && out->kind == TV_UNDEF)
            *out = *fallback;
        i += n + 1;
    }
    return rc;
}

static int f_first(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    struct tlist *l;
    (void)a;
    if (v.kind == TV_GEN) {
        *out = v.l->pos < v.l->n ? v.l->v[v.l->pos++] : tv_undef_hint(c, "No first item, sequence was empty.");
        return 0;
    }
    int rc = tv_elements(c, v, &l);
    if (!rc)
        *out = l->n ? list_get(l, 0) : tv_undef_hint(c, "No first item, sequence was empty.");
    return rc;
}

static int f_last(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    struct tlist *l;
    (void)a;
    if (v.kind == TV_GEN)
        return rfail(c, "'generator' object is not reversible");
    int rc = tv_elements(c, v, &l);
    if (!rc)
        *out = l->n ? list_get(l, l->n - 1) : tv_undef_hint(c, "No last item, sequence was empty.");
    return rc;
}

static int f_list(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    struct tlist *l, *r;
    (void)a;
    int rc = tv_elements(c, v, &l);
    if (!rc)
        rc = charge(c, l->n);
    if (rc || !(r = list_make(c, l->n)))
        return rc ? rc : -E2BIG;
    for (size_t i = 0; i < l->n; i++)
        r->v[i] = list_get(l, i);
    *out = tv_of_list(TV_LIST, r);
    return 0;
}

static int f_join(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    struct tlist *l, *r;
    struct tv sep = a->v[0];
    int rc = tv_elements(c, v, &l);
    if (!rc)
        rc = tv_given(sep) ? tv_str(c, sep, &sep) : str_make(c, "", 0, &sep);
    if (!rc && tv_given(a->v[1])) {
        if (!(r = list_make(c, l->n)))
            return -E2BIG;
        for (size_t i = 0; !rc && i < l->n; i++)
            rc = attr_path(c, list_get(l, i), a->v[1], NULL, &r->v[i]);
        l = r;
    }
    return rc ? rc : text_join(c, sep.s, l, true, out);
}

static int f_reverse(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    static const struct tv none = {.kind = TV_NONE};
    struct tv bound[3] = {none, none, tv_int(-1)};
    (void)a;
    if (v.kind == TV_STR)
        return tv_slice(c, v, bound, out);
    if (v.kind == TV_GEN)
        return rfail(c, "argument must be iterable");
    int rc = f_list(c, v, a, out);
    if (rc)
        return rc;
    for (size_t i = 0, n = out->l->n; i < n / 2; i++) {
        struct tv t = out->l->v[i];
        out->l->v[i] = out->l->v[n - 1 - i];
        out->l->v[n - 1 - i] = t;
    }
    out->kind = TV_GEN;
    return 0;
}

static int f_items(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    (void)a;
    if (v.kind != TV_DICT && v.kind != TV_UNDEF)
        return rfail(c, "Can only get item pairs from a mapping.");
    size_t n = v.kind == TV_DICT ? v.d->n : 0;
    struct tlist *l = list_make(c, n), *pair;
    int rc = l ? charge(c, n) : -E2BIG;
    for (size_t i = 0; !rc && i < n; i++) {
        if (!(pair = list_make(c, 2)))
            return -E2BIG;
        pair->v[0] = v.d->e[i].k;
        pair->v[1] = v.d->e[i].v;
        l->v[i] = tv_of_list(TV_TUPLE, pair);
    }
    *out = tv_of_list(TV_GEN, l);
    return rc;
}

/* ---- map and select ---- */

/* The elements; none at all for whatever counts as false, as jinja2 has it for map and select. */
static int elements_or_none(struct tctx *c, struct tv v, struct tlist **l)
{
    return tv_elements(c, tv_truth(v) ? v : (struct tv){.kind = TV_UNDEF}, l);
}

static int f_map(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    struct tlist *l, *r;
    const struct tv *attr = kw_find(a, "attribute"), *fallback = kw_find(a, "default");
    const struct fn_spec *fn = NULL;
    if (a->n && a->v[0].kind == TV_STR && !(fn = filter_find(a->v[0].s->p)))
        return rfail(c, "the filter %s is not supported", a->v[0].s->p);
    if (!a->n && !attr)
        return rfail(c, "map requires a filter argument");
    if (a->n && !fn)
        return rfail(c, "map needs the name of a filter");
    int rc = elements_or_none(c, v, &l);
    if (rc || !(r = list_make(c, l->n)))
        return rc ? rc : -E2BIG;
    struct args rest = *a;
    if (a->n) {
        rest.v++;
        rest.n--;
    }
    for (size_t i = 0; !rc && i < l->n; i++) {
        if (fn && !(rc = enter(c))) {
            rc = fn_call(c, fn, "filter", list_get(l, i), &rest, &r->v[i]);
            c->depth--;
        } else if (!rc) {
            rc = attr_path(c, list_get(l, i), *attr, fallback, &r->v[i]);
        }
        if (!rc)
            rc = charge(c, 1);
    }
    *out = tv_of_list(TV_GEN, r);
    return rc;
}

static int select_by(struct tctx *c, struct tv v, const struct args *a, bool by_attr, bool keep, struct tv *out)
{
    struct tlist *l, *r;
    struct args rest = *a;
    const struct fn_spec *fn = NULL;
    size_t skip = by_attr, n = 0;
    if (a->n < skip)
        return rfail(c, "Missing parameter for attribute name");
    if (a->n > skip && (a->v[skip].kind != TV_STR || !(fn = test_find(a->v[skip].s->p))))
        return rfail(c, "the test %s is not supported", a->v[skip].kind == TV_STR ? a->v[skip].s->p : "?");
    rest.v += skip + (fn != NULL);
    rest.n -= skip + (fn != NULL);
    int rc = elements_or_none(c, v, &l);
    if (rc || !(r = list_make(c, l->n)))
        return rc ? rc : -E2BIG;
    for (size_t i = 0; !rc && i < l->n; i++) {
        struct tv item = list_get(l, i), x, yes;
        rc = by_attr ? attr_path(c, item, a->v[0], NULL, &x) : 0;
        x = by_attr ? x : item;
        yes = x;
        if (!rc && fn)
            rc = fn_call(c, fn, "test", x, &rest, &yes);
        if (!rc)
            rc = charge(c, 1);
        if (!rc && tv_truth(yes) == keep)
            r->v[n++] = item;
    }
    r->n = n;
    *out = tv_of_list(TV_GEN, r);
    return rc;
}

static int f_select(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    return select_by(c, v, a, false, true, out);
}

static int f_reject(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    return select_by(c, v, a, false, false, out);
}

static int f_selectattr(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    return select_by(c, v, a, true, true, out);
}

static int f_rejectattr(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    return select_by(c, v, a, true, false, out);
}

/* ---- order ---- */

struct keyed {
    struct tv key, v;
};

static int key_of(struct tctx *c, struct tv item, struct tv attr, bool case_sensitive, struct tv *key)
{
    int rc = attr_path(c, item, attr, NULL, key);
    return !rc && key->kind == TV_STR && !case_sensitive ? text_case(c, *key, CASE_LOWER, key) : rc;
}

static int keyed_make(struct tctx *c, const struct tlist *l, struct tv attr, bool case_sensitive, struct keyed **out)
{
    struct keyed *k = arena_calloc(c->arena, l->n, sizeof *k);
    int rc = k ? 0 : rnomem(c);
    for (size_t i = 0; !rc && i < l->n; i++) {
        k[i].v = list_get(l, i);
        rc = key_of(c, k[i].v, attr, case_sensitive, &k[i].key);
    }
    *out = k;
    return rc;
}

/* Stable merge sort; reverse keeps equal elements in their order, as Python does. */
static int keyed_sort(struct tctx *c, struct keyed *k, size_t n, bool reverse)
{
    struct keyed *tmp = arena_calloc(c->arena, n, sizeof *tmp);
    int rc = tmp ? 0 : rnomem(c);
    for (size_t w = 1; !rc && w < n; w *= 2) {
        for (size_t lo = 0; !rc && lo < n; lo += 2 * w) {
            size_t mid = lo + w < n ? lo + w : n, hi = lo + 2 * w < n ? lo + 2 * w : n, i = lo, j = mid, o = lo;
            while (!rc && o < hi) {
                int cmp = 0;
                if (i < mid && j < hi)
                    rc = tv_compare(c, k[i].key, k[j].key, &cmp);
                bool left = i < mid && (j >= hi || (reverse ? cmp >= 0 : cmp <= 0));
                tmp[o++] = left ? k[i++] : k[j++];
            }
        }
        if (!rc)
            memcpy(k, tmp, n * sizeof *k);
    }
    return rc;
}

static int list_of_keyed(struct tctx *c, const struct keyed *k, size_t n, struct tv *out)
{
    struct tlist *r = list_make(c, n);
    if (!r)
        return -E2BIG;
    for (size_t i = 0; i < n; i++)
        r->v[i] = k[i].v;
    *out = tv_of_list(TV_LIST, r);
    return 0;
}

static bool flag(struct tv v)
{
    return tv_given(v) && tv_truth(v);
}

/* a: reverse, case_sensitive, attribute. */
static int f_sort(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    struct tlist *l;
    struct keyed *k;
    if (a->v[2].kind == TV_STR && memchr(a->v[2].s->p, ',', a->v[2].s->len))
        return rfail(c, "sort by several attributes is not supported");
    int rc = tv_elements(c, v, &l);
    if (!rc)
        rc = keyed_make(c, l, a->v[2], flag(a->v[1]), &k);
    if (!rc)
        rc = keyed_sort(c, k, l->n, flag(a->v[0]));
    return rc ? rc : list_of_keyed(c, k, l->n, out);
}

/* a: case_sensitive, by, reverse. */
static int f_dictsort(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    static const struct args none;
    struct keyed *k;
    bool by_value = a->v[1].kind == TV_STR && tstr_is(a->v[1].s, "value");
    if (tv_given(a->v[1]) && !by_value && !(a->v[1].kind == TV_STR && tstr_is(a->v[1].s, "key")))
        return rfail(c, "You can only sort by either \"key\" or \"value\"");
    int rc = v.kind == TV_UNDEF ? fail_undefined(c, v) : f_items(c, v, &none, out);
    if (!rc)
        rc = keyed_make(c, out->l, tv_int(by_value), flag(a->v[0]), &k);
    size_t n = rc ? 0 : out->l->n;
    if (!rc)
        rc = keyed_sort(c, k, n, flag(a->v[2]));
    return rc ? rc : list_of_keyed(c, k, n, out);
}

/* a: case_sensitive, attribute. */
static int f_unique(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    struct tlist *l, *r;
    struct keyed *k;
    struct tdict *seen;
    size_t n = 0;
    int rc = tv_elements(c, v, &l);
    if (!rc)
        rc = keyed_make(c, l, a->v[1], flag(a->v[0]), &k);
    if (rc || !(r = list_make(c, l->n)) || !(seen = dict_make(c, l->n)))
        return rc ? rc : -E2BIG;
    for (size_t i = 0; !rc && i < l->n; i++) {
        bool found;
        struct tv x;
        rc = dict_get(c, seen, k[i].key, &x, &found);
        if (!rc && !found && !(rc = dict_set(c, seen, k[i].key, tv_none())))
            r->v[n++] = k[i].v;
    }
    r->n = n;
    *out = tv_of_list(TV_GEN, r);
    return rc;
}

static int extreme(struct tctx *c, struct tv v, const struct args *a, int sign, struct tv *out)
{
    struct tlist *l;
    struct keyed *k;
    size_t best = 0;
    int rc = tv_elements(c, v, &l);
    if (!rc)
        rc = keyed_make(c, l, a->v[1], flag(a->v[0]), &k);
    for (size_t i = 1; !rc && i < l->n; i++) {
        int cmp = 0;
        rc = tv_compare(c, k[i].key, k[best].key, &cmp);
        best = cmp == sign ? i : best;
    }
    if (!rc)
        *out = l->n ? k[best].v : tv_undef_hint(c, "No aggregated item, sequence was empty.");
    return rc;
}

static int f_min(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    return extreme(c, v, a, -1, out);
}

static int f_max(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    return extreme(c, v, a, 1, out);
}

/* a: attribute, start. */
static int f_sum(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    struct tlist *l;
    int rc = tv_elements(c, v, &l);
    struct tv sum = tv_given(a->v[1]) ? a->v[1] : tv_int(0);
    if (!rc && sum.kind == TV_STR)
        rc = rfail(c, "sum() can't sum strings");
    for (size_t i = 0; !rc && i < l->n; i++) {
        struct tv x;
        rc = attr_path(c, list_get(l, i), a->v[0], NULL, &x);
        if (!rc)
            rc = tv_binary(c, OP_ADD, sum, x, &sum);
    }
    *out = sum;
    return rc;
}

const struct fn_spec *seq_filter_find(const char *name)
{
    static const struct fn_spec table[] = {
        {"first", f_first, 0, 0, {0}},
        {"last", f_last, 0, 0, {0}},
        {"list", f_list, 0, 0, {0}},
        {"join", f_join, 0, 2, {"d", "attribute"}},
        {"reverse", f_reverse, 0, 0, {0}},
        {"items", f_items, 0, 0, {0}},
        {"map", f_map, 0, FN_RAW, {0}},
        {"select", f_select, 0, FN_RAW, {0}},
        {"reject", f_reject, 0, FN_RAW, {0}},
        {"selectattr", f_selectattr, 0, FN_RAW, {0}},
        {"rejectattr", f_rejectattr, 0, FN_RAW, {0}},
        {"sort", f_sort, 0, 3, {"reverse", "case_sensitive", "attribute"}},
        {"dictsort", f_dictsort, 0, 3, {"case_sensitive", "by", "reverse"}},
        {"unique", f_unique, 0, 2, {"case_sensitive", "attribute"}},
        {"min", f_min, 0, 2, {"case_sensitive", "attribute"}},
        {"max", f_max, 0, 2, {"case_sensitive", "attribute"}},
        {"sum", f_sum, 0, 2, {"attribute", "start"}},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (!strcmp(table[i].name, name))
            return &table[i];
    return NULL;
}
