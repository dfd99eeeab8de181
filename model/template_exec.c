/* template_exec.c - runs the statements of a template: scopes, loops, macros, captured blocks; and tmpl_render.
 *
 * Used by one thread a rendering, with its own struct tctx; the template is only read. Output goes to c->out, which a
 * captured block swaps for a buffer of its own. What always holds: an `if` opens no scope; a loop's body, a captured
 * block and a macro do, and a macro sees the scope it was defined in as it is when called, as jinja2's closures do.
 */
#include "model/template_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define DEFAULT_OUTPUT ((size_t)8 << 20)
#define DEFAULT_STEPS ((size_t)4000000)
#define DEFAULT_DEPTH ((size_t)300)
#define MAX_DEPTH ((size_t)1000)
#define DEFAULT_MEMORY ((size_t)64 << 20)

int rfail(struct tctx *c, const char *fmt, ...)
{
    char msg[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    return tmpl_fail_at(c->t, c->at ? c->at->pos : 0, c->e, -EINVAL, "%s", msg);
}

int rnomem(struct tctx *c)
{
    return err_set(c->e, -E2BIG, "chat template: the values take more memory than is allowed");
}

int charge(struct tctx *c, size_t steps)
{
    if (steps > c->max_steps - c->steps)
        return err_set(c->e, -E2BIG, "chat template: more than %zu steps", c->max_steps);
    c->steps += steps;
    return 0;
}

int enter(struct tctx *c)
{
    if (c->depth >= c->max_depth)
        return err_set(c->e, -E2BIG, "chat template: nested deeper than %zu", c->max_depth);
    c->depth++;
    return 0;
}

/* ---- scopes ---- */

int scope_push(struct tctx *c, struct scope *up)
{
    struct scope *s = arena_calloc(c->arena, 1, sizeof *s);
    if (!s)
        return rnomem(c);
    s->up = up;
    c->scope = s;
    return 0;
}

int scope_set(struct tctx *c, uint32_t id, struct tv v)
{
    struct scope *s = c->scope;
    for (uint32_t i = 0; i < s->n; i++) {
        if (s->b[i].id == id) {
            s->b[i].v = v;
            return 0;
        }
    }
    if (s->n == s->cap) {
        uint32_t cap = s->cap ? s->cap * 2 : 4;
        struct binding *b = arena_alloc(c->arena, cap * sizeof *b);
        if (!b)
            return rnomem(c);
        if (s->n)
            memcpy(b, s->b, s->n * sizeof *b);
        s->b = b;
        s->cap = cap;
    }
    s->b[s->n++] = (struct binding){id, v};
    return 0;
}

static int assign_tuple(struct tctx *c, const struct node *target, struct tv v)
{
    struct tlist *l;
    int rc = tv_elements(c, v, &l);
    if (!rc && l->n != target->n)
        rc = rfail(c, "cannot unpack %zu values into %u names", l->n, target->n);
    for (uint32_t i = 0; !rc && i < target->n; i++)
        rc = assign(c, target->list[i], list_get(l, i));
    return rc;
}

int assign(struct tctx *c, const struct node *target, struct tv v)
{
    if (target->kind == N_NAME)
        return scope_set(c, target->id, v);
    if (target->kind != N_NSREF)
        return assign_tuple(c, target, v);
    struct node name = *target;
    struct tv ns;
    name.kind = N_NAME;
    int rc = ev(c, &name, &ns);
    c->at = target;
    if (rc)
        return rc;
    if (ns.kind != TV_NS)
        return rfail(c, "cannot assign attribute on non-namespace object");
    if (target->v.s->p[0] == '_')
        return rfail(c, "a namespace cannot hold the name %s", target->v.s->p);
    return dict_set(c, ns.d, target->v, v);
}

/* ---- loops ---- */

/* The next element that passes the loop's test; TV_MISSING after the last. */
static int loop_fetch(struct tctx *c, struct tloop *l, struct tv *out)
{
    *out = (struct tv){.kind = TV_MISSING};
    if (l->rest) {
        if (l->rest_at < l->rest->n)
            *out = l->rest->v[l->rest_at++];
        return 0;
    }
    while (l->next < l->src->n) {
        struct tv v = list_get(l->src, l->next++), test = tv_bool(true);
        struct scope *outer = c->scope;
        int rc = charge(c, 1);
        if (!rc && l->test) {
            rc = scope_push(c, l->scope);
            if (!rc)
                rc = assign(c, l->target, v);
            if (!rc)
                rc = ev(c, l->test, &test);
            c->scope = outer;
        }
        if (rc)
            return rc;
        if (tv_truth(test)) {
            *out = v;
            return 0;
        }
    }
    return 0;
}

static int loop_peek(struct tctx *c, struct tloop *l)
{
    if (tv_given(l->after) || l->ended)
        return 0;
    int rc = loop_fetch(c, l, &l->after);
    l->ended = !rc && !tv_given(l->after);
    return rc;
}

int loop_next(struct tctx *c, struct tloop *l, bool *more)
{
    int rc = loop_peek(c, l);
    *more = !rc && tv_given(l->after);
    if (!*more)
        return rc;
    l->before = l->current;
    l->current = l->after;
    l->after = (struct tv){.kind = TV_MISSING};
    l->index0++;
    return 0;
}

static int loop_length(struct tctx *c, struct tloop *l)
{
    if (l->length >= 0)
        return 0;
    if (!l->test) {
        l->length = (int64_t)l->src->n;
        return 0;
    }
    struct tlist *rest = list_make(c, l->src->n - l->next);
    int rc = rest ? 0 : -E2BIG;
    size_t n = 0;
    for (struct tv v; !rc && !(rc = loop_fetch(c, l, &v)) && tv_given(v);)
        rest->v[n++] = v;
    if (rc)
        return rc;
    rest->n = n;
    l->rest = rest;
    l->length = (int64_t)n + l->index0 + 1 + tv_given(l->after);
    return 0;
}

int loop_attr(struct tctx *c, struct tloop *l, const char *name, struct tv *out, bool *found)
{
    static const char *const names[] = {"index", "index0", "first",    "previtem", "depth",    "depth0",
                                        "last",  "length", "nextitem", "revindex", "revindex0"};
    size_t k = 0;
    int rc = 0;
    while (k < sizeof names / sizeof names[0] && strcmp(name, names[k]))
        k++;
    *found = k < sizeof names / sizeof names[0];
    if (k == 6 || k == 8)
        rc = loop_peek(c, l);
    else if (k == 7 || k == 9 || k == 10)
        rc = loop_length(c, l);
    switch (k) {
    case 2:
        *out = tv_bool(l->index0 == 0);
        break;
    case 3:
        *out = tv_given(l->before) ? l->before : tv_undef_hint(c, "there is no previous item");
        break;
    case 6:
        *out = tv_bool(!tv_given(l->after));
        break;
    case 8:
        *out = tv_given(l->after) ? l->after : tv_undef_hint(c, "there is no next item");
        break;
    default: {
        int64_t v[] = {
            l->index0 + 1, l->index0, 0, 0, 1, 0, 0, l->length, 0, l->length - l->index0, l->length - l->index0 - 1};
        *out = tv_int(*found ? v[k] : 0);
    }
    }
    return rc;
}

static int exec_body(struct tctx *c, const struct node *n, struct tloop *l, struct scope *outer)
{
    int rc;
    bool more;
    while (!(rc = loop_next(c, l, &more)) && more) {
        rc = scope_push(c, outer);
        if (!rc && n->op)
            rc = scope_set(c, ID_LOOP, (struct tv){.kind = TV_LOOP, .loop = l});
        if (!rc)
            rc = assign(c, n->a, l->current);
        if (!rc)
            rc = exec(c, n->list[0]);
        c->scope = outer;
        if (rc < 0)
            return rc;
        if (rc == FLOW_BREAK)
            return 0;
    }
    return rc;
}

static int exec_for(struct tctx *c, const struct node *n)
{
    struct tv src;
    struct scope *outer = c->scope;
    struct tloop *l = arena_calloc(c->arena, 1, sizeof *l);
    int rc = l ? ev(c, n->b, &src) : rnomem(c);
    c->at = n;
    if (!rc)
        rc = tv_elements(c, src, &l->src);
    if (rc)
        return rc;
    l->target = n->a;
    l->test = n->c;
    l->scope = outer;
    l->index0 = l->length = -1;
    rc = exec_body(c, n, l, outer);
    if (rc || l->index0 >= 0 || !n->list[1])
        return rc;
    rc = scope_push(c, outer);
    if (!rc)
        rc = exec(c, n->list[1]);
    c->scope = outer;
    return rc;
}

/* ---- captured blocks and macros ---- */

int exec_captured(struct tctx *c, const struct node *body, struct tv *out)
{
    struct buf b, *outer = c->out;
    buf_init(&b, c->max_output);
    c->out = &b;
    int rc = exec(c, body);
    c->out = outer;
    if (rc) {
        buf_free(&b);
        return rc < 0 ? rc : rfail(c, "a loop cannot be left from inside a block");
    }
    return str_of_buf(c, &b, out);
}

static int exec_capture_scoped(struct tctx *c, const struct node *n, struct tv *out)
{
    struct scope *outer = c->scope;
    int rc = scope_push(c, outer);
    if (!rc)
        rc = exec_captured(c, n->b, out);
    c->scope = outer;
    if (!rc && n->c) {
        struct tv hole = c->hole;
        c->hole = *out;
        rc = ev(c, n->c, out);
        c->hole = hole;
    }
    return rc;
}

static const struct tv *keyword(const struct args *a, const struct tstr *name)
{
    for (size_t i = 0; i < a->n_kw; i++)
        if (tstr_eq(a->kw_name[i], name))
            return &a->kw[i];
    return NULL;
}

static bool is_param(const struct tctx *c, const struct node *def, const struct tstr *name)
{
    for (uint32_t i = 0; i < def->n; i++)
        if (tstr_eq(c->t->names[def->list[i]->id], name))
            return true;
    return false;
}

/* The arguments that no parameter takes: caller, kwargs, varargs, or an error. */
static int bind_rest(struct tctx *c, const struct node *def, const struct args *a)
{
    const struct tstr *caller = c->t->names[ID_CALLER];
    struct tdict *kw = def->op & MACRO_KWARGS ? dict_make(c, a->n_kw) : NULL;
    int rc = def->op & MACRO_KWARGS && !kw ? -E2BIG : 0;
    bool has_caller = false;
    for (size_t i = 0; !rc && i < a->n_kw; i++) {
        if (is_param(c, def, a->kw_name[i]))
            continue;
        if (def->op & MACRO_CALLER && tstr_eq(a->kw_name[i], caller)) {
            has_caller = true;
            rc = scope_set(c, ID_CALLER, a->kw[i]);
        } else if (kw) {
            rc = dict_set(c, kw, tv_of_str(a->kw_name[i]), a->kw[i]);
        } else {
            rc = rfail(c, "macro '%s' takes no keyword argument '%s'", c->t->names[def->id]->p, a->kw_name[i]->p);
        }
    }
    if (!rc && def->op & MACRO_CALLER && !has_caller && !is_param(c, def, caller))
        rc = scope_set(c, ID_CALLER, tv_undef_hint(c, "No caller defined"));
    if (!rc && kw)
        rc = scope_set(c, ID_KWARGS, (struct tv){.kind = TV_DICT, .d = kw});
    if (rc || !(def->op & MACRO_VARARGS))
        return !rc && a->n > def->n
                   ? rfail(c, "macro '%s' takes not more than %u argument(s)", c->t->names[def->id]->p, def->n)
                   : rc;
    struct tlist *rest = list_make(c, a->n > def->n ? a->n - def->n : 0);
    if (!rest)
        return -E2BIG;
    for (size_t i = 0; i < rest->n; i++)
        rest->v[i] = a->v[def->n + i];
    return scope_set(c, ID_VARARGS, tv_of_list(TV_TUPLE, rest));
}

static int bind_params(struct tctx *c, const struct node *def, const struct args *a)
{
    int rc = 0;
    for (uint32_t i = 0; !rc && i < def->n; i++) {
        uint32_t id = def->list[i]->id, first = def->n - def->n_kw;
        const struct tv *kw = keyword(a, c->t->names[id]);
        struct tv v = {.kind = TV_UNDEF, .aux = UNDEF_NAME, .s = c->t->names[id]};
        if (i < a->n)
            v = a->v[i];
        else if (kw)
            v = *kw;
        else if (i >= first)
            rc = ev(c, def->kw[i - first].value, &v);
        if (!rc && i < a->n && kw)
            rc = rfail(c, "macro '%s' got two values for '%s'", c->t->names[def->id]->p, c->t->names[id]->p);
        if (!rc)
            rc = scope_set(c, id, v);
    }
    return rc ? rc : bind_rest(c, def, a);
}

int call_macro(struct tctx *c, const struct tmacro *m, const struct args *a, struct tv *out)
{
    struct scope *outer = c->scope;
    int rc = enter(c);
    if (rc)
        return rc;
    rc = scope_push(c, m->scope);
    if (!rc)
        rc = bind_params(c, m->def, a);
    if (!rc)
        rc = exec_captured(c, m->def->b, out);
    c->scope = outer;
    c->depth--;
    return rc;
}

static int macro_value(struct tctx *c, const struct node *def, struct tv *out)
{
    struct tmacro *m = arena_alloc(c->arena, sizeof *m);
    if (!m)
        return rnomem(c);
    *m = (struct tmacro){def, c->scope};
    *out = (struct tv){.kind = TV_MACRO, .macro = m};
    return 0;
}

static int exec_callblock(struct tctx *c, const struct node *n)
{
    struct tv v;
    int rc = macro_value(c, n->b, &v);
    if (!rc)
        rc = ev_call(c, n->a, &v, &v);
    return rc ? rc : tv_print(c, v, false, c->out);
}

static int exec_with(struct tctx *c, const struct node *n)
{
    struct scope *outer = c->scope, *inner;
    int rc = scope_push(c, outer);
    inner = c->scope;
    for (uint32_t i = 0; !rc && i < n->n; i += 2) {
        struct tv v;
        c->scope = outer;
        rc = ev(c, n->list[i + 1], &v);
        c->scope = inner;
        if (!rc)
            rc = assign(c, n->list[i], v);
    }
    if (!rc)
        rc = exec(c, n->b);
    c->scope = outer;
    return rc;
}

/* ---- statements ---- */

static int exec_if(struct tctx *c, const struct node *n)
{
    for (uint32_t i = 0; i < n->n; i += 2) {
        struct tv test;
        int rc = ev(c, n->list[i], &test);
        if (rc)
            return rc;
        if (tv_truth(test))
            return exec(c, n->list[i + 1]);
    }
    return n->b ? exec(c, n->b) : 0;
}

static int exec_simple(struct tctx *c, const struct node *n)
{
    struct tv v;
    int rc;
    switch ((enum node_kind)n->kind) {
    case N_TEXT:
        buf_append(c->out, n->v.s->p, n->v.s->len);
        return buf_check(c, c->out);
    case N_OUTPUT:
        rc = ev(c, n->a, &v);
        return rc ? rc : tv_print(c, v, false, c->out);
    case N_SET:
        rc = ev(c, n->b, &v);
        return rc ? rc : assign(c, n->a, v);
    case N_SETBLOCK:
        rc = exec_capture_scoped(c, n, &v);
        return rc ? rc : assign(c, n->a, v);
    case N_FILTERBLOCK:
    case N_SCOPED:
        rc = exec_capture_scoped(c, n, &v);
        return rc ? rc : tv_print(c, v, false, c->out);
    case N_MACRO:
        rc = macro_value(c, n, &v);
        return rc ? rc : scope_set(c, n->id, v);
    case N_BREAK:
        return FLOW_BREAK;
    default:
        return FLOW_CONTINUE;
    }
}

int exec(struct tctx *c, const struct node *n)
{
    int rc = enter(c);
    if (!rc)
        rc = charge(c, 1);
    if (rc)
        return rc;
    c->at = n;
    switch ((enum node_kind)n->kind) {
    case N_BLOCK:
        for (uint32_t i = 0; !rc && i < n->n; i++)
            rc = exec(c, n->list[i]);
        break;
    case N_IF:
        rc = exec_if(c, n);
        break;
    case N_FOR:
        rc = exec_for(c, n);
        break;
    case N_WITH:
        rc = exec_with(c, n);
        break;
    case N_CALLBLOCK:
        rc = exec_callblock(c, n);
        break;
    default:
        rc = exec_simple(c, n);
    }
    c->depth--;
    return rc;
}

static size_t limit_of(size_t given, size_t otherwise)
{
    return given ? given : otherwise;
}

int tmpl_render(const struct tmpl *t, const json_t *vars, const struct tmpl_limits *lim, struct buf *out, struct err *e)
{
    static const struct tmpl_limits none;
    struct buf b;
    lim = lim ? lim : &none;
    struct tctx c = {.t = t, .vars = vars, .e = e, .out = &b};
    c.max_output = limit_of(lim->max_output, DEFAULT_OUTPUT);
    c.max_steps = limit_of(lim->max_steps, DEFAULT_STEPS);
    c.max_depth = limit_of(lim->max_depth, DEFAULT_DEPTH);
    c.max_depth = c.max_depth > MAX_DEPTH ? MAX_DEPTH : c.max_depth;
    c.arena = arena_create(limit_of(lim->max_memory, DEFAULT_MEMORY));
    if (!c.arena)
        return err_set(e, -ENOMEM, "chat template: out of memory");
    buf_init(&b, c.max_output);
    c.globals = arena_calloc(c.arena, t->n_names, sizeof *c.globals);
    int rc = c.globals ? scope_push(&c, NULL) : rnomem(&c);
    if (!rc)
        rc = exec(&c, t->root);
    if (!rc && b.len && (rc = buf_append(out, b.data, b.len)))
        err_set(e, rc, "chat template: the text does not fit where it goes");
    if (rc == -ENOMEM || (rc == -E2BIG && arena_no_memory(c.arena)))
        rc = err_set(e, -ENOMEM, "chat template: out of memory");
    buf_free(&b);
    arena_free(c.arena);
    return rc;
}
