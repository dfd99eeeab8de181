/* template_eval.c - evaluates the expressions of a template.
 *
 * Used by one thread a rendering; the tree is only read. What always holds: each node costs a step and a level of depth
 * before anything else happens, so that neither a deep tree, nor a macro that calls itself, nor a product of texts runs
 * on; arithmetic on integers is checked and never wraps.
 */
#include "model/template_internal.h"

#include <math.h>
#include <string.h>

#include "common/checked.h"

/* ---- names ---- */

static int ev_name(struct tctx *c, const struct node *n, struct tv *out)
{
    for (const struct scope *s = c->scope; s; s = s->up)
        for (uint32_t i = 0; i < s->n; i++)
            if (s->b[i].id == n->id) {
                *out = s->b[i].v;
                return 0;
            }
    struct tv *g = &c->globals[n->id];
    if (tv_given(*g)) {
        *out = *g;
        return 0;
    }
    const struct tstr *name = c->t->names[n->id];
    const json_t *j = c->vars ? json_object_get(c->vars, name->p) : NULL;
    const struct fn_spec *fn = function_find(name->p);
    int rc = 0;
    if (j)
        rc = tv_of_json(c, j, g);
    else if (fn)
        *g = (struct tv){.kind = TV_FUNC, .fn = fn};
    else
        *g = (struct tv){.kind = TV_UNDEF, .aux = UNDEF_NAME, .s = name};
    if (!rc)
        *out = *g;
    else
        *g = (struct tv){.kind = TV_MISSING};
    return rc;
}

/* ---- arithmetic ---- */

static int no_operator(struct tctx *c, enum tok_op op, struct tv a, struct tv b)
{
    static const char *const text[] = {[OP_ADD] = "+",       [OP_SUB] = "-", [OP_MUL] = "*", [OP_DIV] = "/",
                                       [OP_FLOORDIV] = "//", [OP_MOD] = "%", [OP_POW] = "**"};
    if (a.kind == TV_UNDEF || b.kind == TV_UNDEF)
        return fail_undefined(c, a.kind == TV_UNDEF ? a : b);
    return rfail(c, "unsupported operand type(s) for %s: '%s' and '%s'", text[op], tv_type((enum tv_kind)a.kind),
                 tv_type((enum tv_kind)b.kind));
}

static bool int_pow(int64_t base, int64_t exp, int64_t *out)
{
    *out = 1;
    while (exp) {
        if (exp & 1 && __builtin_mul_overflow(*out, base, out))
            return false;
        exp >>= 1;
        if (exp && __builtin_mul_overflow(base, base, &base))
            return false;
    }
    return true;
}

static int int_binary(struct tctx *c, enum tok_op op, int64_t a, int64_t b, struct tv *out)
{
    int64_t r = 0;
    bool ok = true;
    if ((op == OP_FLOORDIV || op == OP_MOD) && !b)
        return rfail(c, "integer division or modulo by zero");
    if ((op == OP_FLOORDIV || op == OP_MOD) && b == -1) {
        ok = op == OP_MOD || !__builtin_sub_overflow(0, a, &r);
    } else {
        switch (op) {
        case OP_ADD:
            ok = !__builtin_add_overflow(a, b, &r);
            break;
        case OP_SUB:
            ok = !__builtin_sub_overflow(a, b, &r);
            break;
        case OP_MUL:
            ok = !__builtin_mul_overflow(a, b, &r);
            break;
        case OP_FLOORDIV:
            r = a / b - (a % b && (a < 0) != (b < 0));
            break;
        case OP_MOD:
            r = a % b;
            r += r && (r < 0) != (b < 0) ? b : 0;
            break;
        default:
            ok = int_pow(a, b, &r);
        }
    }
    *out = tv_int(r);
    return ok ? 0 : rfail(c, "an integer grew beyond 64 bits");
}

static int float_binary(struct tctx *c, enum tok_op op, double a, double b, struct tv *out)
{
    double r;
    if (op != OP_ADD && op != OP_SUB && op != OP_MUL && !(op == OP_POW ? a != 0 || b >= 0 : b != 0))
        return rfail(c, "division by zero");
    switch (op) {
    case OP_ADD:
        r = a + b;
        break;
    case OP_SUB:
        r = a - b;
        break;
    case OP_MUL:
        r = a * b;
        break;
    case OP_DIV:
        r = a / b;
        break;
    case OP_POW:
        if (a < 0 && b != floor(b))
            return rfail(c, "a negative number to a fractional power");
        r = pow(a, b);
        break;
    default:
        r = fmod(a, b);
        r += r != 0 && (r < 0) != (b < 0) ? b : 0;
        if (op == OP_FLOORDIV)
            r = round((a - r) / b);
    }
    *out = tv_float(r);
    return 0;
}

static int repeat_str(struct tctx *c, struct tv s, int64_t times, struct tv *out)
{
    struct buf b;
    size_t n, count = times > 0 && s.s->len ? (size_t)times : 0;
    if (ck_mul(s.s->len, count, &n) || n > c->max_output)
        return err_set(c->e, -E2BIG, "chat template: a text grew beyond %zu bytes", c->max_output);
    int rc = charge(c, count);
    buf_init(&b, c->max_output);
    for (size_t i = 0; !rc && i < count; i++)
        buf_append(&b, s.s->p, s.s->len);
    if (rc) {
        buf_free(&b);
        return rc;
    }
    rc = str_of_buf(c, &b, out);
    out->aux = s.aux;
    return rc;
}

static int repeat_list(struct tctx *c, struct tv l, int64_t times, struct tv *out)
{
    size_t n, count = times > 0 && l.l->n ? (size_t)times : 0;
    if (ck_mul(l.l->n, count, &n))
        return rnomem(c);
    int rc = charge(c, n);
    struct tlist *r = rc ? NULL : list_make(c, n);
    if (!r)
        return rc ? rc : -E2BIG;
    for (size_t i = 0; i < n; i++)
        r->v[i] = l.l->v[i % l.l->n];
    *out = tv_of_list((enum tv_kind)l.kind, r);
    return 0;
}

static int add_strings(struct tctx *c, struct tv a, struct tv b, struct tv *out)
{
    struct buf r;
    bool safe = a.aux || b.aux;
    int rc = safe ? text_escape(c, a, &a) : 0;
    if (!rc && safe)
        rc = text_escape(c, b, &b);
    if (rc)
        return rc;
    buf_init(&r, c->max_output);
    buf_append(&r, a.s->p, a.s->len);
    buf_append(&r, b.s->p, b.s->len);
    rc = str_of_buf(c, &r, out);
    out->aux = safe;
    return rc;
}

static int add_lists(struct tctx *c, struct tv a, struct tv b, struct tv *out)
{
    int rc = charge(c, a.l->n + b.l->n);
    struct tlist *r = rc ? NULL : list_make(c, a.l->n + b.l->n);
    if (!r)
        return rc ? rc : -E2BIG;
    for (size_t i = 0; i < r->n; i++)
        r->v[i] = i < a.l->n ? a.l->v[i] : b.l->v[i - a.l->n];
    *out = tv_of_list((enum tv_kind)a.kind, r);
    return 0;
}

static int concat(struct tctx *c, struct tv a, struct tv b, struct tv *out)
{
    int rc = tv_str(c, a, &a);
    if (!rc)
        rc = tv_str(c, b, &b);
    a.aux = b.aux = 0;
    return rc ? rc : add_strings(c, a, b, out);
}

int tv_binary(struct tctx *c, enum tok_op op, struct tv a, struct tv b, struct tv *out)
{
    int64_t i, j;
    double x, y;
    bool ints = tv_as_int(a, &i) && tv_as_int(b, &j);
    if (op == OP_TILDE)
        return concat(c, a, b, out);
    if (ints && op != OP_DIV && !(op == OP_POW && j < 0))
        return int_binary(c, op, i, j, out);
    if (tv_number(a, &x) && tv_number(b, &y))
        return float_binary(c, op, x, y, out);
    if (op == OP_ADD && a.kind == TV_STR && b.kind == TV_STR)
        return add_strings(c, a, b, out);
    if (op == OP_ADD && a.kind == b.kind && (a.kind == TV_LIST || a.kind == TV_TUPLE))
        return add_lists(c, a, b, out);
    if (op == OP_MUL && tv_as_int(a, &i)) {
        struct tv t = a;
        a = b;
        b = t;
    }
    if (op == OP_MUL && a.kind == TV_STR && tv_as_int(b, &i))
        return repeat_str(c, a, i, out);
    if (op == OP_MUL && (a.kind == TV_LIST || a.kind == TV_TUPLE) && tv_as_int(b, &i))
        return repeat_list(c, a, i, out);
    if (op == OP_MOD && a.kind == TV_STR)
        return rfail(c, "formatting with %% is not supported");
    return no_operator(c, op, a, b);
}

static int ev_sign(struct tctx *c, const struct node *n, struct tv *out)
{
    struct tv v;
    int64_t i;
    int rc = ev(c, n->a, &v);
    c->at = n;
    if (rc)
        return rc;
    if (v.kind == TV_UNDEF)
        return fail_undefined(c, v);
    if (v.kind == TV_FLOAT) {
        *out = tv_float(n->kind == N_NEG ? -v.f : v.f);
        return 0;
    }
    if (!tv_as_int(v, &i))
        return rfail(c, "bad operand type for unary sign: '%s'", tv_type((enum tv_kind)v.kind));
    return int_binary(c, n->kind == N_NEG ? OP_SUB : OP_ADD, 0, i, out);
}

/* ---- comparisons ---- */

static int compare_once(struct tctx *c, enum tok_op op, struct tv a, struct tv b, bool *yes)
{
    int cmp = 0, rc;
    if (op == OP_EQ || op == OP_NE) {
        rc = tv_equal(c, a, b, yes);
        *yes = *yes == (op == OP_EQ);
        return rc;
    }
    if (op == OP_IN || op == OP_NOTIN) {
        rc = tv_contains(c, b, a, yes);
        *yes = *yes == (op == OP_IN);
        return rc;
    }
    rc = tv_compare(c, a, b, &cmp);
    bool nan = cmp == 2;
    *yes = !nan && (op == OP_LT ? cmp < 0 : op == OP_LE ? cmp <= 0 : op == OP_GT ? cmp > 0 : cmp >= 0);
    return rc;
}

static int ev_compare(struct tctx *c, const struct node *n, struct tv *out)
{
    struct tv l, r;
    bool yes = true;
    int rc = ev(c, n->a, &l);
    for (uint32_t i = 0; !rc && yes && i < n->n; i++) {
        rc = ev(c, n->list[i], &r);
        c->at = n;
        if (!rc)
            rc = compare_once(c, (enum tok_op)n->ops[i], l, r, &yes);
        l = r;
    }
    *out = tv_bool(yes);
    return rc;
}

/* ---- literals ---- */

static int ev_list(struct tctx *c, const struct node *n, struct tv *out)
{
    struct tlist *l = list_make(c, n->n);
    int rc = l ? 0 : -E2BIG;
    for (uint32_t i = 0; !rc && i < n->n; i++)
        rc = ev(c, n->list[i], &l->v[i]);
    if (!rc)
        *out = tv_of_list(n->kind == N_TUPLE ? TV_TUPLE : TV_LIST, l);
    return rc;
}

static int ev_dict(struct tctx *c, const struct node *n, struct tv *out)
{
    struct tdict *d = dict_make(c, n->n / 2);
    int rc = d ? 0 : -E2BIG;
    for (uint32_t i = 0; !rc && i < n->n; i += 2) {
        struct tv k, v;
        rc = ev(c, n->list[i], &k);
        if (!rc)
            rc = ev(c, n->list[i + 1], &v);
        c->at = n;
        if (!rc)
            rc = dict_set(c, d, k, v);
    }
    if (!rc)
        *out = (struct tv){.kind = TV_DICT, .d = d};
    return rc;
}

static int ev_slice(struct tctx *c, const struct node *n, struct tv *out)
{
    struct tv v, bound[3];
    int rc = ev(c, n->a, &v);
    for (int i = 0; !rc && i < 3; i++) {
        bound[i] = tv_none();
        if (n->list[i])
            rc = ev(c, n->list[i], &bound[i]);
    }
    c->at = n;
    return rc ? rc : tv_slice(c, v, bound, out);
}

/* ---- calls ---- */

/* Evaluates the arguments; extra: an additional keyword argument `caller`, or NULL. */
static int ev_args(struct tctx *c, const struct node *n, const struct tv *extra, struct args *a)
{
    size_t n_kw = n->n_kw + (extra != NULL);
    struct tv *v = arena_alloc(c->arena, n->n * sizeof *v), *kw = arena_alloc(c->arena, n_kw * sizeof *kw);
    const struct tstr **names = arena_alloc(c->arena, n_kw * sizeof *names);
    int rc = v && kw && names ? 0 : rnomem(c);
    for (uint32_t i = 0; !rc && i < n->n; i++)
        rc = ev(c, n->list[i], &v[i]);
    for (uint32_t i = 0; !rc && i < n->n_kw; i++) {
        names[i] = n->kw[i].name;
        rc = ev(c, n->kw[i].value, &kw[i]);
    }
    if (!rc && extra) {
        names[n->n_kw] = c->t->names[ID_CALLER];
        kw[n->n_kw] = *extra;
    }
    *a = (struct args){v, n->n, names, kw, n_kw};
    c->at = n;
    return rc;
}

int fn_call(struct tctx *c, const struct fn_spec *fn, const char *what, struct tv self, const struct args *a,
            struct tv *out)
{
    struct tv v[4] = {{.kind = TV_MISSING}, {.kind = TV_MISSING}, {.kind = TV_MISSING}, {.kind = TV_MISSING}};
    if (!fn->fn)
        return rfail(c, "the %s %s is not allowed in a template", what, fn->name);
    if (fn->max == FN_RAW)
        return fn->fn(c, self, a, out);
    if (a->n > fn->max)
        return rfail(c, "the %s %s takes at most %u arguments", what, fn->name, fn->max);
    for (size_t i = 0; i < a->n; i++)
        v[i] = a->v[i];
    for (size_t k = 0; k < a->n_kw; k++) {
        size_t i = 0;
        while (i < fn->max && !(fn->params[i] && tstr_is(a->kw_name[k], fn->params[i])))
            i++;
        if (i == fn->max || tv_given(v[i]))
            return rfail(c, "the %s %s takes no keyword argument '%s' here", what, fn->name, a->kw_name[k]->p);
        v[i] = a->kw[k];
    }
    for (size_t i = 0; i < fn->min; i++)
        if (!tv_given(v[i]))
            return rfail(c, "the %s %s needs an argument", what, fn->name);
    struct args bound = {.v = v, .n = fn->max};
    return fn->fn(c, self, &bound, out);
}

int call_value(struct tctx *c, struct tv f, const struct args *a, struct tv *out)
{
    switch ((enum tv_kind)f.kind) {
    case TV_MACRO:
        return call_macro(c, f.macro, a, out);
    case TV_FUNC:
        return fn_call(c, f.fn, "function", tv_none(), a, out);
    case TV_METHOD:
        return fn_call(c, f.m->fn, "method", f.m->self, a, out);
    case TV_UNDEF:
        return fail_undefined(c, f);
    default:
        return rfail(c, "'%s' object is not callable", tv_type((enum tv_kind)f.kind));
    }
}

int ev_call(struct tctx *c, const struct node *n, const struct tv *caller, struct tv *out)
{
    struct tv f;
    struct args a;
    int rc = ev(c, n->a, &f);
    c->at = n;
    if (!rc)
        rc = ev_args(c, n, caller, &a);
    return rc ? rc : call_value(c, f, &a, out);
}

static int ev_builtin(struct tctx *c, const struct node *n, struct tv *out)
{
    struct tv self;
    struct args a;
    int rc = ev(c, n->a, &self);
    if (!rc)
        rc = ev_args(c, n, NULL, &a);
    return rc ? rc : fn_call(c, n->fn, n->kind == N_FILTER ? "filter" : "test", self, &a, out);
}

/* ---- all expressions ---- */

static int ev_logic(struct tctx *c, const struct node *n, struct tv *out)
{
    struct tv v = tv_none();
    int rc = ev(c, n->kind == N_COND ? n->b : n->a, &v);
    if (rc)
        return rc;
    bool yes = tv_truth(v);
    switch ((enum node_kind)n->kind) {
    case N_NOT:
        *out = tv_bool(!yes);
        return 0;
    case N_AND:
    case N_OR:
        *out = v;
        return yes == (n->kind == N_AND) ? ev(c, n->b, out) : 0;
    default:
        if (yes)
            return ev(c, n->a, out);
        *out = tv_undef_hint(c, "the inline if-expression evaluated to false and no else section was defined.");
        return n->c ? ev(c, n->c, out) : 0;
    }
}

static int ev_pair(struct tctx *c, const struct node *n, struct tv *out)
{
    struct tv a, b;
    int rc = ev(c, n->a, &a);
    if (!rc && n->kind == N_ATTR) {
        c->at = n;
        return tv_getattr(c, a, n->v.s, out);
    }
    if (!rc)
        rc = ev(c, n->b, &b);
    c->at = n;
    if (rc)
        return rc;
    return n->kind == N_ITEM ? tv_getitem(c, a, b, out) : tv_binary(c, (enum tok_op)n->op, a, b, out);
}

static int ev_node(struct tctx *c, const struct node *n, struct tv *out)
{
    switch ((enum node_kind)n->kind) {
    case N_CONST:
        *out = n->v;
        return 0;
    case N_HOLE:
        *out = c->hole;
        return 0;
    case N_NAME:
        return ev_name(c, n, out);
    case N_LIST:
    case N_TUPLE:
        return ev_list(c, n, out);
    case N_DICT:
        return ev_dict(c, n, out);
    case N_ATTR:
    case N_ITEM:
    case N_BIN:
        return ev_pair(c, n, out);
    case N_SLICE:
        return ev_slice(c, n, out);
    case N_CALL:
        return ev_call(c, n, NULL, out);
    case N_FILTER:
    case N_TEST:
        return ev_builtin(c, n, out);
    case N_NEG:
    case N_POS:
        return ev_sign(c, n, out);
    case N_COMPARE:
        return ev_compare(c, n, out);
    default:
        return ev_logic(c, n, out);
    }
}

int ev(struct tctx *c, const struct node *n, struct tv *out)
{
    int rc = enter(c);
    if (!rc)
        rc = charge(c, 1);
    if (rc)
        return rc;
    c->at = n;
    rc = ev_node(c, n, out);
    c->depth--;
    return rc;
}
