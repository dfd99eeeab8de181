/* template_filter.c - the filters on whole values, the tests and the functions that templates may use.
 *
 * Used by the thread that renders. Arguments arrive matched to the parameter names in the tables at the end (template_
 * eval.c, fn_call); raw ones match their own. What always holds: an undefined value behaves as in jinja2: empty where
 * it is read as text or as a sequence, an error where it is computed with.
 */
#include "model/template_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int to_str(struct tctx *c, struct tv *v)
{
    return tv_str(c, *v, v);
}

static int64_t int_or(struct tv v, int64_t otherwise)
{
    int64_t i;
    return tv_as_int(v, &i) ? i : otherwise;
}

static bool flag(struct tv v)
{
    return tv_given(v) && tv_truth(v);
}

/* ---- text ---- */

static int f_trim(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    int rc = to_str(c, &s);
    return rc ? rc : text_strip(c, s, a->v[0], true, true, out);
}

static int f_upper(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    (void)a;
    int rc = to_str(c, &s);
    return rc ? rc : text_case(c, s, CASE_UPPER, out);
}

static int f_lower(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    (void)a;
    int rc = to_str(c, &s);
    return rc ? rc : text_case(c, s, CASE_LOWER, out);
}

static int f_title(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    (void)a;
    int rc = to_str(c, &s);
    return rc ? rc : text_case(c, s, CASE_JINJA_TITLE, out);
}

static int f_capitalize(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    (void)a;
    int rc = to_str(c, &s);
    return rc ? rc : text_case(c, s, CASE_CAPITAL, out);
}

static int f_string(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    (void)a;
    return tv_str(c, s, out);
}

static int f_safe(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    (void)a;
    int rc = to_str(c, &s);
    *out = s;
    out->aux = 1;
    return rc;
}

static int f_escape(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    (void)a;
    return text_escape(c, s, out);
}

static int f_replace(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    struct tv old = a->v[0], new_ = a->v[1];
    int rc = to_str(c, &s);
    if (!rc)
        rc = to_str(c, &old);
    if (!rc)
        rc = to_str(c, &new_);
    return rc ? rc : text_replace(c, s.s, old.s, new_.s, int_or(a->v[2], -1), out);
}

/* The length of the line end at p (Python's splitlines), 0 when there is none. */
static size_t line_end(const char *p, size_t n)
{
    unsigned char ch = (unsigned char)p[0];
    if (ch == '\r' && n > 1 && p[1] == '\n')
        return 2;
    if ((ch >= 10 && ch <= 13) || (ch >= 28 && ch <= 30))
        return 1;
    if (n > 1 && ch == 0xC2 && (unsigned char)p[1] == 0x85)
        return 2;
    return n > 2 && ch == 0xE2 && (unsigned char)p[1] == 0x80 && ((unsigned char)p[2] & 0xFE) == 0xA8 ? 3 : 0;
}

static int f_indent(struct tctx *c, struct tv s, const struct args *a, struct tv *out)
{
    char spaces[257];
    int64_t width = int_or(a->v[0], 4);
    if (width > 256)
        return rfail(c, "indent: more than 256 columns");
    memset(spaces, ' ', sizeof spaces);
    spaces[width > 0 ? width : 0] = 0;
    const char *pad = a->v[0].kind == TV_STR ? a->v[0].s->p : spaces;
    bool first = flag(a->v[1]), blank = flag(a->v[2]);
    if (s.kind != TV_STR)
        return s.kind == TV_UNDEF ? fail_undefined(c, s) : rfail(c, "indent needs a text");
    struct buf b;
    buf_init(&b, c->max_output);
    for (size_t i = 0, n = 0; i <= s.s->len && !b.failed; n++) {
        size_t j = i, end = 0;
        while (j < s.s->len && !(end = line_end(s.s->p + j, s.s->len - j)))
            j++;
        if (n)
            buf_puts(&b, "\n");
        if (n ? (blank || j > i) : first)
            buf_puts(&b, pad);
        buf_append(&b, s.s->p + i, j - i);
        if (j >= s.s->len)
            break;
        i = j + end;
    }
    return str_of_buf(c, &b, out);
}

static int f_tojson(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    return json_dump(c, v, a, out);
}

/* ---- numbers ---- */

static int f_int(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    struct tv f;
    double x;
    if (v.kind == TV_UNDEF)
        return fail_undefined(c, v);
    if (tv_as_int(v, &(int64_t){0})) {
        *out = tv_int(int_or(v, 0));
        return 0;
    }
    int64_t base = int_or(a->v[1], 10);
    if (base < 2 || base > 36)
        return rfail(c, "int: a base from 2 to 36 is needed");
    if (v.kind == TV_STR && text_number(v.s, true, (int)base, out))
        return 0;
    f = v.kind == TV_FLOAT ? v : tv_none();
    if (v.kind == TV_STR && !text_number(v.s, false, 10, &f))
        f = tv_none();
    if (tv_number(f, &x) && x > -0x1p63 && x < 0x1p63)
        *out = tv_int((int64_t)x);
    else
        *out = tv_given(a->v[0]) ? a->v[0] : tv_int(0);
    return 0;
}

static int f_float(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    double x;
    if (v.kind == TV_UNDEF)
        return fail_undefined(c, v);
    if (tv_number(v, &x))
        *out = tv_float(x);
    else if (v.kind != TV_STR || !text_number(v.s, false, 10, out))
        *out = tv_given(a->v[0]) ? a->v[0] : tv_float(0);
    return 0;
}

static int f_abs(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    int64_t i;
    (void)a;
    if (v.kind == TV_UNDEF)
        return fail_undefined(c, v);
    if (v.kind == TV_FLOAT) {
        *out = tv_float(fabs(v.f));
        return 0;
    }
    if (!tv_as_int(v, &i))
        return rfail(c, "bad operand type for abs(): '%s'", tv_type((enum tv_kind)v.kind));
    if (i >= 0) {
        *out = tv_int(i);
        return 0;
    }
    return tv_binary(c, OP_SUB, tv_int(0), tv_int(i), out);
}

static int f_round(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    char num[400];
    double x;
    int64_t digits = int_or(a->v[0], 0);
    if (v.kind == TV_UNDEF)
        return fail_undefined(c, v);
    if (!tv_number(v, &x))
        return rfail(c, "round needs a number");
    if (digits < 0 || digits > 15)
        return rfail(c, "round: 0 to 15 digits");
    bool common = !tv_given(a->v[1]) || (a->v[1].kind == TV_STR && tstr_is(a->v[1].s, "common"));
    if (common && v.kind != TV_FLOAT) {
        *out = tv_int(int_or(v, 0));
        return 0;
    }
    if (common) {
        snprintf(num, sizeof num, "%.*f", (int)digits, x);
        *out = tv_float(strtod(num, NULL));
        return 0;
    }
    bool up = a->v[1].kind == TV_STR && tstr_is(a->v[1].s, "ceil");
    if (!up && !(a->v[1].kind == TV_STR && tstr_is(a->v[1].s, "floor")))
        return rfail(c, "round: the method must be common, ceil or floor");
    double scale = pow(10, (double)digits);
    *out = tv_float((up ? ceil(x * scale) : floor(x * scale)) / scale);
    return 0;
}

/* ---- other values ---- */

static int f_default(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    if (v.kind != TV_UNDEF && !(flag(a->v[1]) && !tv_truth(v))) {
        *out = v;
        return 0;
    }
    *out = a->v[0];
    return tv_given(a->v[0]) ? 0 : str_make(c, "", 0, out);
}

static int f_length(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    (void)a;
    switch ((enum tv_kind)v.kind) {
    case TV_STR:
        *out = tv_int((int64_t)v.s->chars);
        return 0;
    case TV_LIST:
    case TV_TUPLE:
    case TV_RANGE:
    case TV_VIEW:
        *out = tv_int((int64_t)v.l->n);
        return 0;
    case TV_DICT:
        *out = tv_int((int64_t)v.d->n);
        return 0;
    case TV_UNDEF:
        *out = tv_int(0);
        return 0;
    default:
        return rfail(c, "object of type '%s' has no len()", tv_type((enum tv_kind)v.kind));
    }
}

/* ---- tests ---- */

#define TEST(name, expr)                                                                                               \
    static int name(struct tctx *c, struct tv v, const struct args *a, struct tv *out)                                 \
    {                                                                                                                  \
        (void)c;                                                                                                       \
        (void)a;                                                                                                       \
        (void)v;                                                                                                       \
        *out = tv_bool(expr);                                                                                          \
        return 0;                                                                                                      \
    }

TEST(t_defined, v.kind != TV_UNDEF)
TEST(t_undefined, v.kind == TV_UNDEF)
TEST(t_none, v.kind == TV_NONE)
TEST(t_string, v.kind == TV_STR)
TEST(t_mapping, v.kind == TV_DICT)
TEST(t_number, v.kind == TV_INT || v.kind == TV_FLOAT || v.kind == TV_BOOL)
TEST(t_integer, v.kind == TV_INT)
TEST(t_float, v.kind == TV_FLOAT)
TEST(t_boolean, v.kind == TV_BOOL)
TEST(t_true, v.kind == TV_BOOL && v.b)
TEST(t_false, v.kind == TV_BOOL && !v.b)
TEST(t_callable, (v.kind >= TV_MACRO && v.kind <= TV_LOOP) || v.kind == TV_UNDEF)
TEST(t_iterable, v.kind == TV_UNDEF || (v.kind >= TV_STR && v.kind <= TV_DICT) || v.kind == TV_LOOP)
TEST(t_sequence, v.kind == TV_UNDEF || v.kind == TV_STR || v.kind == TV_LIST || v.kind == TV_TUPLE ||
                     v.kind == TV_RANGE || v.kind == TV_DICT)
TEST(t_sameas, v.kind == a->v[0].kind && (v.kind == TV_NONE    ? true
                                          : v.kind == TV_BOOL  ? v.b == a->v[0].b
                                          : v.kind == TV_FLOAT ? v.f == a->v[0].f
                                                               : v.i == a->v[0].i))

static int t_cased(struct tctx *c, struct tv v, enum text_case how, struct tv *out)
{
    struct tv other, s;
    bool same = false;
    int rc = tv_str(c, v, &s);
    if (!rc)
        rc = text_case(c, s, how, out);
    if (!rc)
        rc = text_case(c, s, how == CASE_LOWER ? CASE_UPPER : CASE_LOWER, &other);
    if (!rc)
        same = tstr_eq(out->s, s.s) && !tstr_eq(other.s, s.s);
    *out = tv_bool(same);
    return rc;
}

static int t_lower(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    (void)a;
    return t_cased(c, v, CASE_LOWER, out);
}

static int t_upper(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    (void)a;
    return t_cased(c, v, CASE_UPPER, out);
}

static int remainder_is(struct tctx *c, struct tv v, struct tv by, int64_t want, struct tv *out)
{
    bool eq = false;
    int rc = v.kind == TV_STR ? rfail(c, "not a number") : tv_binary(c, OP_MOD, v, by, out);
    if (!rc)
        rc = tv_equal(c, *out, tv_int(want), &eq);
    *out = tv_bool(eq);
    return rc;
}

static int t_odd(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    (void)a;
    return remainder_is(c, v, tv_int(2), 1, out);
}

static int t_even(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    (void)a;
    return remainder_is(c, v, tv_int(2), 0, out);
}

static int t_divisibleby(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    return remainder_is(c, v, a->v[0], 0, out);
}

static int t_eq(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    bool eq;
    int rc = tv_equal(c, v, a->v[0], &eq);
    *out = tv_bool(eq);
    return rc;
}

static int t_ne(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    int rc = t_eq(c, v, a, out);
    out->b = !out->b;
    return rc;
}

static int t_in(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    bool in;
    int rc = tv_contains(c, a->v[0], v, &in);
    *out = tv_bool(in);
    return rc;
}

/* Order: -1 lt, 1 gt, or-equal where the other sign is refused. */
static int order(struct tctx *c, struct tv v, const struct args *a, int not_sign, bool strict, struct tv *out)
{
    int cmp = 0;
    int rc = tv_compare(c, v, a->v[0], &cmp);
    *out = tv_bool(cmp != 2 && cmp != not_sign && !(strict && !cmp));
    return rc;
}

static int t_lt(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    return order(c, v, a, 1, true, out);
}

static int t_le(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    return order(c, v, a, 1, false, out);
}

static int t_gt(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    return order(c, v, a, -1, true, out);
}

static int t_ge(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    return order(c, v, a, -1, false, out);
}

/* ---- functions ---- */

static int g_raise(struct tctx *c, struct tv self, const struct args *a, struct tv *out)
{
    (void)self;
    int rc = tv_str(c, a->v[0], out);
    return rc ? rc : err_set(c->e, -EINVAL, "%s", out->s->p);
}

static int g_strftime(struct tctx *c, struct tv self, const struct args *a, struct tv *out)
{
    char text[256];
    struct tm tm;
    time_t now = time(NULL);
    (void)self;
    if (a->v[0].kind != TV_STR || a->v[0].s->len > 64)
        return rfail(c, "strftime_now needs a format of at most 64 bytes");
    localtime_r(&now, &tm);
    size_t n = strftime(text, sizeof text, a->v[0].s->p, &tm);
    return str_make(c, text, n, out);
}

static int g_range(struct tctx *c, struct tv self, const struct args *a, struct tv *out)
{
    int64_t v[3] = {0, 0, 1};
    size_t n = 0;
    (void)self;
    while (n < 3 && tv_given(a->v[n])) {
        if (!tv_as_int(a->v[n], &v[n]))
            return a->v[n].kind == TV_UNDEF ? fail_undefined(c, a->v[n]) : rfail(c, "range needs integers");
        n++;
    }
    if (n == 1) {
        v[1] = v[0];
        v[0] = 0;
    }
    if (!v[2])
        return rfail(c, "range() arg 3 must not be zero");
    for (int i = 0; i < 3; i++)
        if (v[i] > INT64_MAX / 4 || v[i] < -(INT64_MAX / 4))
            return rfail(c, "range: a bound is too large");
    int64_t span = v[2] > 0 ? v[1] - v[0] : v[0] - v[1], step = v[2] > 0 ? v[2] : -v[2];
    int64_t count = span > 0 ? (span - 1) / step + 1 : 0;
    if (count > 100000)
        return rfail(c, "range too big: more than 100000 elements");
    struct tlist *l = list_make(c, 0);
    if (!l)
        return -E2BIG;
    *l = (struct tlist){.n = (size_t)count, .start = v[0], .step = v[2]};
    *out = tv_of_list(TV_RANGE, l);
    return 0;
}

static int pairs_into(struct tctx *c, struct tdict *d, struct tv src)
{
    struct tlist *l, *pair;
    int rc = 0;
    if (src.kind == TV_DICT) {
        for (size_t i = 0; !rc && i < src.d->n; i++)
            rc = dict_set(c, d, src.d->e[i].k, src.d->e[i].v);
        return rc;
    }
    rc = tv_elements(c, src, &l);
    for (size_t i = 0; !rc && i < l->n; i++) {
        rc = tv_elements(c, list_get(l, i), &pair);
        if (!rc && pair->n != 2)
            rc = rfail(c, "dict: an element is not a pair");
        if (!rc)
            rc = dict_set(c, d, list_get(pair, 0), list_get(pair, 1));
    }
    return rc;
}

static int g_dict(struct tctx *c, struct tv self, const struct args *a, struct tv *out)
{
    (void)self;
    struct tdict *d = dict_make(c, a->n_kw);
    int rc = d ? 0 : -E2BIG;
    if (!rc && a->n > 1)
        rc = rfail(c, "dict takes one positional argument");
    if (!rc && a->n)
        rc = pairs_into(c, d, a->v[0]);
    for (size_t i = 0; !rc && i < a->n_kw; i++)
        rc = dict_set(c, d, tv_of_str(a->kw_name[i]), a->kw[i]);
    *out = (struct tv){.kind = TV_DICT, .d = d};
    return rc;
}

static int g_namespace(struct tctx *c, struct tv self, const struct args *a, struct tv *out)
{
    int rc = g_dict(c, self, a, out);
    for (size_t i = 0; !rc && i < out->d->n; i++)
        if (out->d->e[i].k.kind == TV_STR && out->d->e[i].k.s->p[0] == '_')
            rc = rfail(c, "a namespace cannot hold the name %s", out->d->e[i].k.s->p);
    out->kind = TV_NS;
    return rc;
}

/* ---- tables ---- */

static const struct fn_spec filters[] = {
    {"trim", f_trim, 0, 1, {"chars"}},
    {"upper", f_upper, 0, 0, {0}},
    {"lower", f_lower, 0, 0, {0}},
    {"title", f_title, 0, 0, {0}},
    {"capitalize", f_capitalize, 0, 0, {0}},
    {"string", f_string, 0, 0, {0}},
    {"safe", f_safe, 0, 0, {0}},
    {"escape", f_escape, 0, 0, {0}},
    {"e", f_escape, 0, 0, {0}},
    {"replace", f_replace, 2, 3, {"old", "new", "count"}},
    {"indent", f_indent, 0, 3, {"width", "first", "blank"}},
    {"tojson", f_tojson, 0, 4, {"ensure_ascii", "indent", "separators", "sort_keys"}},
    {"int", f_int, 0, 2, {"default", "base"}},
    {"float", f_float, 0, 1, {"default"}},
    {"abs", f_abs, 0, 0, {0}},
    {"round", f_round, 0, 2, {"precision", "method"}},
    {"default", f_default, 0, 2, {"default_value", "boolean"}},
    {"d", f_default, 0, 2, {"default_value", "boolean"}},
    {"length", f_length, 0, 0, {0}},
    {"count", f_length, 0, 0, {0}},
};

static const struct fn_spec tests[] = {
    {"defined", t_defined, 0, 0, {0}},
    {"undefined", t_undefined, 0, 0, {0}},
    {"none", t_none, 0, 0, {0}},
    {"string", t_string, 0, 0, {0}},
    {"mapping", t_mapping, 0, 0, {0}},
    {"iterable", t_iterable, 0, 0, {0}},
    {"sequence", t_sequence, 0, 0, {0}},
    {"number", t_number, 0, 0, {0}},
    {"integer", t_integer, 0, 0, {0}},
    {"float", t_float, 0, 0, {0}},
    {"boolean", t_boolean, 0, 0, {0}},
    {"true", t_true, 0, 0, {0}},
    {"false", t_false, 0, 0, {0}},
    {"callable", t_callable, 0, 0, {0}},
    {"lower", t_lower, 0, 0, {0}},
    {"upper", t_upper, 0, 0, {0}},
    {"odd", t_odd, 0, 0, {0}},
    {"even", t_even, 0, 0, {0}},
    {"divisibleby", t_divisibleby, 1, 1, {"num"}},
    {"eq", t_eq, 1, 1, {0}},
    {"equalto", t_eq, 1, 1, {0}},
    {"==", t_eq, 1, 1, {0}},
    {"ne", t_ne, 1, 1, {0}},
    {"!=", t_ne, 1, 1, {0}},
    {"in", t_in, 1, 1, {"seq"}},
    {"sameas", t_sameas, 1, 1, {"other"}},
    {"lt", t_lt, 1, 1, {0}},
    {"lessthan", t_lt, 1, 1, {0}},
    {"<", t_lt, 1, 1, {0}},
    {"le", t_le, 1, 1, {0}},
    {"<=", t_le, 1, 1, {0}},
    {"gt", t_gt, 1, 1, {0}},
    {"greaterthan", t_gt, 1, 1, {0}},
    {">", t_gt, 1, 1, {0}},
    {"ge", t_ge, 1, 1, {0}},
    {">=", t_ge, 1, 1, {0}},
};

static const struct fn_spec functions[] = {
    {"raise_exception", g_raise, 1, 1, {"message"}},
    {"strftime_now", g_strftime, 1, 1, {"format"}},
    {"range", g_range, 1, 3, {0}},
    {"dict", g_dict, 0, FN_RAW, {0}},
    {"namespace", g_namespace, 0, FN_RAW, {0}},
};

static const struct fn_spec *find(const struct fn_spec *t, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(t[i].name, name))
            return &t[i];
    return NULL;
}

const struct fn_spec *filter_find(const char *name)
{
    const struct fn_spec *fn = find(filters, sizeof filters / sizeof filters[0], name);
    return fn ? fn : seq_filter_find(name);
}

const struct fn_spec *test_find(const char *name)
{
    return find(tests, sizeof tests / sizeof tests[0], name);
}

const struct fn_spec *function_find(const char *name)
{
    return find(functions, sizeof functions / sizeof functions[0], name);
}
