/* template_expr.c - the expression half of the template parser: precedence climbing after jinja2's grammar.
 *
 * Runs once per template, on the thread that loads it; nodes live in the template's arena. What always holds: a node's
 * depth is one more than its deepest child's and at most PARSE_DEPTH_MAX times a small constant, so that evaluation,
 * which recurses over the tree, has a bound that is known before it starts. Filters, tests, functions and methods that
 * the engine lacks are refused here by name.
 */
#include "model/template_internal.h"

#include <string.h>

#define TREE_DEPTH_MAX 250u

int pdepth(struct parser *p, struct node *n, const struct node *child)
{
    if (child && child->depth >= n->depth)
        n->depth = (uint16_t)(child->depth + 1);
    return n->depth > TREE_DEPTH_MAX ? pfail(p, n->pos, "this is nested too deep") : 0;
}

int pappend(struct parser *p, struct node *n, struct node *child)
{
    if ((n->n & (n->n - 1)) == 0) { /* a power of two: full */
        size_t cap = n->n ? (size_t)n->n * 2 : 1;
        struct node **l = arena_alloc(p->t->arena, cap * sizeof *l);
        if (!l)
            return err_set(p->e, -ENOMEM, "chat template: out of memory");
        if (n->n)
            memcpy(l, n->list, n->n * sizeof *l);
        n->list = l;
    }
    n->list[n->n++] = child;
    return pdepth(p, n, child);
}

static int pkeyword(struct parser *p, struct node *n, const struct tstr *name, struct node *value)
{
    if ((n->n_kw & (n->n_kw - 1)) == 0) {
        size_t cap = n->n_kw ? (size_t)n->n_kw * 2 : 1;
        struct kwarg *l = arena_alloc(p->t->arena, cap * sizeof *l);
        if (!l)
            return err_set(p->e, -ENOMEM, "chat template: out of memory");
        if (n->n_kw)
            memcpy(l, n->kw, n->n_kw * sizeof *l);
        n->kw = l;
    }
    n->kw[n->n_kw++] = (struct kwarg){name, value};
    return pdepth(p, n, value);
}

/* A node over one to three children, any of which may be NULL. */
static int pmake(struct parser *p, enum node_kind kind, uint32_t pos, struct node *a, struct node *b, struct node *c,
                 struct node **out)
{
    struct node *n = pnode(p, kind, pos);
    if (!n)
        return -ENOMEM;
    n->a = a;
    n->b = b;
    n->c = c;
    int rc = pdepth(p, n, a);
    if (!rc)
        rc = pdepth(p, n, b);
    if (!rc)
        rc = pdepth(p, n, c);
    *out = n;
    return rc;
}

static int punary(struct parser *p, bool filters, struct node **out);

static const struct token *cur(const struct parser *p)
{
    return &p->tok[p->at];
}

static int pdeeper(struct parser *p)
{
    return ++p->depth > PARSE_DEPTH_MAX ? pfail(p, cur(p)->pos, "this is nested too deep") : 0;
}

/* ---- calls, filters, tests, subscripts ---- */

static int parg(struct parser *p, struct node *n)
{
    const struct token *k = cur(p);
    struct node *v;
    int rc;
    if (pis_op(p, OP_MUL) || pis_op(p, OP_POW))
        return pfail(p, k->pos, "* and ** arguments are not supported");
    if (k->kind == T_NAME && k[1].kind == T_OP && k[1].op == OP_ASSIGN) {
        p->at += 2;
        rc = pexpr(p, true, &v);
        return rc ? rc : pkeyword(p, n, k->s, v);
    }
    if (n->n_kw)
        return pfail(p, k->pos, "a positional argument follows a keyword argument");
    rc = pexpr(p, true, &v);
    return rc ? rc : pappend(p, n, v);
}

static int pargs(struct parser *p, struct node *n)
{
    int rc = pexpect_op(p, OP_LPAREN);
    bool comma = false;
    while (!rc && !pis_op(p, OP_RPAREN)) {
        if (comma && ((rc = pexpect_op(p, OP_COMMA)) || pis_op(p, OP_RPAREN)))
            break;
        rc = parg(p, n);
        comma = true;
    }
    return rc ? rc : pexpect_op(p, OP_RPAREN);
}

static int pcall(struct parser *p, struct node *f, struct node **out)
{
    struct node *n = NULL;
    if (f->kind == N_ATTR && !method_known(f->v.s->p))
        return pfail(p, f->pos, "the method %s is not supported", f->v.s->p);
    if (f->kind == N_NAME) {
        static const char *const refused[] = {"lipsum", "cycler", "joiner"};
        for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
            if (tstr_is(p->t->names[f->id], refused[i]))
                return pfail(p, f->pos, "the function %s is not supported", refused[i]);
    }
    int rc = pmake(p, N_CALL, cur(p)->pos, f, NULL, NULL, &n);
    if (!rc)
        rc = pargs(p, n);
    *out = n;
    return rc;
}

int pfilters(struct parser *p, struct node *inner, bool inline_first, struct node **out)
{
    int rc = 0;
    while (!rc && (inline_first || pis_op(p, OP_PIPE))) {
        if (!inline_first)
            p->at++;
        inline_first = false;
        uint32_t pos = cur(p)->pos;
        const struct tstr *name;
        struct node *n;
        if ((rc = pname(p, &name)) || (rc = pmake(p, N_FILTER, pos, inner, NULL, NULL, &n)))
            return rc;
        n->fn = filter_find(name->p);
        if (!n->fn)
            return pfail(p, pos, "the filter %s is not supported", name->p);
        if (pis_op(p, OP_LPAREN))
            rc = pargs(p, n);
        inner = n;
    }
    *out = inner;
    return rc;
}

static int ppostfix(struct parser *p, struct node **io);
static int pprimary(struct parser *p, bool namespaces, struct node **out);

static int ptest(struct parser *p, struct node *inner, struct node **out)
{
    uint32_t pos = cur(p)->pos;
    p->at++; /* is */
    bool negated = pskip(p, "not");
    const struct tstr *name;
    struct node *n = NULL, *arg = NULL;
    int rc = pname(p, &name);
    if (rc || (rc = pmake(p, N_TEST, pos, inner, NULL, NULL, &n)))
        return rc;
    n->fn = test_find(name->p);
    if (!n->fn)
        return pfail(p, pos, "the test %s is not supported", name->p);
    const struct token *k = cur(p);
    bool arg_follows = k->kind == T_STRING || k->kind == T_INT || k->kind == T_FLOAT || pis_op(p, OP_LBRACKET) ||
                       pis_op(p, OP_LBRACE) ||
                       (k->kind == T_NAME && !pis(p, "else") && !pis(p, "or") && !pis(p, "and"));
    if (pis_op(p, OP_LPAREN)) {
        rc = pargs(p, n);
    } else if (arg_follows) {
        if (pis(p, "is"))
            return pfail(p, k->pos, "tests cannot be chained with is");
        rc = pprimary(p, false, &arg);
        if (!rc)
            rc = ppostfix(p, &arg);
        if (!rc)
            rc = pappend(p, n, arg);
    }
    *out = n;
    return rc || !negated ? rc : pmake(p, N_NOT, pos, n, NULL, NULL, out);
}

static bool pslice_end(const struct parser *p)
{
    return pis_op(p, OP_COLON) || pis_op(p, OP_RBRACKET) || pis_op(p, OP_COMMA);
}

/* a[...], after the bracket: an item or a slice. */
static int pitem(struct parser *p, struct node *a, uint32_t pos, struct node **out)
{
    struct node *part[3] = {NULL, NULL, NULL}, *n = NULL;
    int rc = 0, k = 0;
    for (; !rc && k < 3; k++) {
        if (!pslice_end(p))
            rc = pexpr(p, true, &part[k]);
        if (rc || k == 2 || !pskip_op(p, OP_COLON))
            break;
    }
    if (!rc && pis_op(p, OP_COMMA))
        rc = pfail(p, cur(p)->pos, "an item with several indices is not supported");
    if (!rc && k == 0 && !part[0])
        rc = pfail(p, cur(p)->pos, "an index is missing");
    if (!rc)
        rc = pexpect_op(p, OP_RBRACKET);
    if (rc)
        return rc;
    if (k == 0)
        return pmake(p, N_ITEM, pos, a, part[0], NULL, out);
    rc = pmake(p, N_SLICE, pos, a, NULL, NULL, &n);
    for (int i = 0; !rc && i < 3; i++)
        rc = pappend(p, n, part[i]);
    *out = n;
    return rc;
}

static int psubscript(struct parser *p, struct node **io)
{
    uint32_t pos = cur(p)->pos;
    struct node *n = NULL;
    int rc;
    if (pskip_op(p, OP_LBRACKET)) {
        rc = pitem(p, *io, pos, &n);
    } else {
        p->at++; /* . */
        const struct token *k = cur(p);
        if (k->kind == T_INT) {
            struct node *idx = pnode(p, N_CONST, k->pos);
            if (!idx)
                return -ENOMEM;
            idx->v = tv_int(k->i);
            rc = pmake(p, N_ITEM, pos, *io, idx, NULL, &n);
        } else if (k->kind == T_NAME) {
            rc = pmake(p, N_ATTR, pos, *io, NULL, NULL, &n);
            if (!rc)
                n->v = tv_of_str(k->s);
        } else {
            return pfail(p, k->pos, "expected a name or a number after the dot");
        }
        p->at++;
    }
    *io = n;
    return rc;
}

static int ppostfix(struct parser *p, struct node **io)
{
    int rc = 0;
    while (!rc) {
        if (pis_op(p, OP_DOT) || pis_op(p, OP_LBRACKET))
            rc = psubscript(p, io);
        else if (pis_op(p, OP_LPAREN))
            rc = pcall(p, *io, io);
        else
            break;
    }
    return rc;
}

/* ---- literals and names ---- */

static int plist(struct parser *p, struct node **out)
{
    struct node *n = pnode(p, N_LIST, cur(p)->pos), *v;
    int rc = n ? pexpect_op(p, OP_LBRACKET) : -ENOMEM;
    while (!rc && !pis_op(p, OP_RBRACKET)) {
        if (n->n && ((rc = pexpect_op(p, OP_COMMA)) || pis_op(p, OP_RBRACKET)))
            break;
        rc = pexpr(p, true, &v);
        if (!rc)
            rc = pappend(p, n, v);
    }
    *out = n;
    return rc ? rc : pexpect_op(p, OP_RBRACKET);
}

static int pdict(struct parser *p, struct node **out)
{
    struct node *n = pnode(p, N_DICT, cur(p)->pos), *k, *v;
    int rc = n ? pexpect_op(p, OP_LBRACE) : -ENOMEM;
    while (!rc && !pis_op(p, OP_RBRACE)) {
        if (n->n && ((rc = pexpect_op(p, OP_COMMA)) || pis_op(p, OP_RBRACE)))
            break;
        if ((rc = pexpr(p, true, &k)) || (rc = pexpect_op(p, OP_COLON)) || (rc = pexpr(p, true, &v)))
            break;
        rc = pappend(p, n, k);
        if (!rc)
            rc = pappend(p, n, v);
    }
    *out = n;
    return rc ? rc : pexpect_op(p, OP_RBRACE);
}

/* Adjacent strings are one. */
static int pstring(struct parser *p, struct node *n)
{
    struct buf b;
    buf_init(&b, 0);
    for (; cur(p)->kind == T_STRING; p->at++)
        buf_append(&b, cur(p)->s->p, cur(p)->s->len);
    const struct tstr *s = b.failed ? NULL : tstr_make(p->t->arena, b.data ? b.data : "", b.len);
    buf_free(&b);
    if (!s)
        return err_set(p->e, -ENOMEM, "chat template: out of memory");
    n->v = tv_of_str(s);
    return 0;
}

static int pname_expr(struct parser *p, bool namespaces, struct node *n)
{
    const struct tstr *s = cur(p)->s;
    p->at++;
    if (tstr_is(s, "true") || tstr_is(s, "True") || tstr_is(s, "false") || tstr_is(s, "False")) {
        n->v = tv_bool(s->p[0] == 't' || s->p[0] == 'T');
        return 0;
    }
    if (tstr_is(s, "none") || tstr_is(s, "None")) {
        n->v = tv_none();
        return 0;
    }
    n->kind = N_NAME;
    int rc = pintern(p, s, &n->id);
    if (rc)
        return rc;
    p->uses_loop |= n->id == ID_LOOP;
    p->macro_flags |= n->id == ID_CALLER    ? MACRO_CALLER
                      : n->id == ID_VARARGS ? MACRO_VARARGS
                      : n->id == ID_KWARGS  ? MACRO_KWARGS
                                            : 0;
    if (namespaces && pskip_op(p, OP_DOT)) {
        const struct tstr *attr;
        n->kind = N_NSREF;
        rc = pname(p, &attr);
        if (!rc)
            n->v = tv_of_str(attr);
    }
    return rc;
}

static int pparen(struct parser *p, struct node **out)
{
    p->at++;
    if (pskip_op(p, OP_RPAREN)) {
        *out = pnode(p, N_TUPLE, cur(p)->pos);
        return *out ? 0 : -ENOMEM;
    }
    int rc = ptuple(p, true, NULL, out);
    return rc ? rc : pexpect_op(p, OP_RPAREN);
}

static int pprimary(struct parser *p, bool namespaces, struct node **out)
{
    const struct token *k = cur(p);
    if (pis_op(p, OP_LPAREN))
        return pparen(p, out);
    if (pis_op(p, OP_LBRACKET))
        return plist(p, out);
    if (pis_op(p, OP_LBRACE))
        return pdict(p, out);
    struct node *n = pnode(p, N_CONST, k->pos);
    if (!n)
        return -ENOMEM;
    *out = n;
    if (k->kind == T_NAME)
        return pname_expr(p, namespaces, n);
    if (k->kind == T_STRING)
        return pstring(p, n);
    if (k->kind == T_INT)
        n->v = tv_int(k->i);
    else if (k->kind == T_FLOAT)
        n->v = tv_float(k->f);
    else
        return pfail(p, k->pos, "expected an expression");
    p->at++;
    return 0;
}

/* ---- operators, loosest last ---- */

static int punary(struct parser *p, bool filters, struct node **out)
{
    uint32_t pos = cur(p)->pos;
    bool neg = pis_op(p, OP_SUB), pos_ = pis_op(p, OP_ADD);
    struct node *n = NULL;
    int rc = pdeeper(p);
    if (!rc && (neg || pos_)) {
        p->at++;
        rc = punary(p, false, &n);
        if (!rc)
            rc = pmake(p, neg ? N_NEG : N_POS, pos, n, NULL, NULL, &n);
    } else if (!rc) {
        rc = pprimary(p, false, &n);
    }
    if (!rc)
        rc = ppostfix(p, &n);
    while (!rc && filters) {
        if (pis_op(p, OP_PIPE))
            rc = pfilters(p, n, false, &n);
        else if (pis(p, "is"))
            rc = ptest(p, n, &n);
        else if (pis_op(p, OP_LPAREN))
            rc = pcall(p, n, &n);
        else
            break;
    }
    p->depth--;
    *out = n;
    return rc;
}

/* Left-associative operators of one level, from the tightest: 0 **, 1 * / // %, 2 ~, 3 + -. */
static bool plevel_has(const struct parser *p, int level)
{
    switch (level) {
    case 0:
        return pis_op(p, OP_POW);
    case 1:
        return pis_op(p, OP_MUL) || pis_op(p, OP_DIV) || pis_op(p, OP_FLOORDIV) || pis_op(p, OP_MOD);
    case 2:
        return pis_op(p, OP_TILDE);
    default:
        return pis_op(p, OP_ADD) || pis_op(p, OP_SUB);
    }
}

static int plevel(struct parser *p, int level, struct node **out)
{
    struct node *l = NULL, *r = NULL, *n = NULL;
    int rc = level ? plevel(p, level - 1, &l) : punary(p, true, &l);
    while (!rc && plevel_has(p, level)) {
        const struct token *k = cur(p);
        p->at++;
        if (k->op == OP_MOD && l->kind == N_CONST && l->v.kind == TV_STR)
            return pfail(p, k->pos, "formatting with %% is not supported");
        rc = level ? plevel(p, level - 1, &r) : punary(p, true, &r);
        if (!rc)
            rc = pmake(p, N_BIN, k->pos, l, r, NULL, &n);
        if (!rc) {
            n->op = k->op;
            l = n;
        }
    }
    *out = l;
    return rc;
}

/* The comparison operator at hand, or OP_NONE; *tokens: how many it takes. */
static enum tok_op pcompare_op(const struct parser *p, unsigned *tokens)
{
    const struct token *k = cur(p);
    *tokens = 1;
    if (k->kind == T_OP && k->op >= OP_EQ && k->op <= OP_GE)
        return (enum tok_op)k->op;
    if (pis(p, "in"))
        return OP_IN;
    *tokens = 2;
    return pis(p, "not") && k[1].kind == T_NAME && tstr_is(k[1].s, "in") ? OP_NOTIN : OP_NONE;
}

static int pcompare(struct parser *p, struct node **out)
{
    struct node *l = NULL, *r = NULL, *n = NULL;
    uint8_t ops[32];
    unsigned tokens;
    uint32_t pos = cur(p)->pos;
    enum tok_op op;
    int rc = plevel(p, 3, &l);
    while (!rc && (op = pcompare_op(p, &tokens)) != OP_NONE) {
        p->at += tokens;
        if (!n && (rc = pmake(p, N_COMPARE, pos, l, NULL, NULL, &n)))
            break;
        if (n->n == sizeof ops)
            return pfail(p, pos, "too many comparisons in one chain");
        ops[n->n] = (uint8_t)op;
        rc = plevel(p, 3, &r);
        if (!rc)
            rc = pappend(p, n, r);
    }
    if (!rc && n && !(n->ops = arena_memdup(p->t->arena, ops, n->n)))
        rc = err_set(p->e, -ENOMEM, "chat template: out of memory");
    *out = n ? n : l;
    return rc;
}

static int pnot(struct parser *p, struct node **out)
{
    uint32_t pos = cur(p)->pos;
    struct node *n = NULL;
    if (!pskip(p, "not"))
        return pcompare(p, out);
    int rc = pdeeper(p);
    if (!rc)
        rc = pnot(p, &n);
    p->depth--;
    return rc ? rc : pmake(p, N_NOT, pos, n, NULL, NULL, out);
}

static int pand(struct parser *p, struct node **out)
{
    struct node *r = NULL;
    int rc = pnot(p, out);
    while (!rc && pis(p, "and")) {
        uint32_t pos = cur(p)->pos;
        p->at++;
        rc = pnot(p, &r);
        if (!rc)
            rc = pmake(p, N_AND, pos, *out, r, NULL, out);
    }
    return rc;
}

static int por(struct parser *p, struct node **out)
{
    struct node *r = NULL;
    int rc = pand(p, out);
    while (!rc && pis(p, "or")) {
        uint32_t pos = cur(p)->pos;
        p->at++;
        rc = pand(p, &r);
        if (!rc)
            rc = pmake(p, N_OR, pos, *out, r, NULL, out);
    }
    return rc;
}

int pexpr(struct parser *p, bool condexpr, struct node **out)
{
    struct node *then = NULL, *test = NULL, *other = NULL;
    int rc = pdeeper(p);
    if (!rc)
        rc = por(p, &then);
    while (!rc && condexpr && pis(p, "if")) {
        uint32_t pos = cur(p)->pos;
        p->at++;
        other = NULL;
        rc = por(p, &test);
        if (!rc && pskip(p, "else"))
            rc = pexpr(p, true, &other);
        if (!rc)
            rc = pmake(p, N_COND, pos, then, test, other, &then);
    }
    p->depth--;
    if (!rc)
        *out = then;
    return rc;
}

static bool ptuple_end(const struct parser *p, const char *end)
{
    const struct token *k = cur(p);
    return k->kind == T_VAR_END || k->kind == T_BLOCK_END || pis_op(p, OP_RPAREN) || (end && pis(p, end));
}

static int ptuple_of(struct parser *p, bool target, bool condexpr, bool namespaces, const char *end, struct node **out)
{
    uint32_t pos = cur(p)->pos;
    struct node *tuple = NULL, *v = NULL;
    int rc = 0;
    for (;;) {
        if (tuple && ptuple_end(p, end))
            break;
        rc = target ? pprimary(p, namespaces, &v) : pexpr(p, condexpr, &v);
        if (rc || (!tuple && !pis_op(p, OP_COMMA)))
            break;
        if (!tuple && !(tuple = pnode(p, N_TUPLE, pos)))
            return -ENOMEM;
        rc = pappend(p, tuple, v);
        if (rc || !pskip_op(p, OP_COMMA))
            break;
    }
    *out = tuple ? tuple : v;
    return rc;
}

int ptuple(struct parser *p, bool condexpr, const char *end, struct node **out)
{
    return ptuple_of(p, false, condexpr, false, end, out);
}

static int pcheck_target(struct parser *p, const struct node *n)
{
    if (n->kind == N_NAME || n->kind == N_NSREF)
        return 0;
    if (n->kind != N_TUPLE && n->kind != N_LIST)
        return pfail(p, n->pos, "this cannot be assigned to");
    int rc = 0;
    for (uint32_t i = 0; !rc && i < n->n; i++)
        rc = pcheck_target(p, n->list[i]);
    return rc;
}

int ptarget(struct parser *p, const char *end, bool namespaces, struct node **out)
{
    int rc = pdeeper(p);
    if (!rc)
        rc = ptuple_of(p, true, false, namespaces, end, out);
    p->depth--;
    return rc ? rc : pcheck_target(p, *out);
}

int psignature(struct parser *p, struct node *macro)
{
    int rc = pexpect_op(p, OP_LPAREN);
    while (!rc && !pis_op(p, OP_RPAREN)) {
        if (macro->n && (rc = pexpect_op(p, OP_COMMA)))
            break;
        const struct tstr *name;
        struct node *arg = pnode(p, N_NAME, cur(p)->pos), *v;
        if (!arg)
            return -ENOMEM;
        if ((rc = pname(p, &name)) || (rc = pintern(p, name, &arg->id)))
            break;
        if (pskip_op(p, OP_ASSIGN)) {
            rc = pexpr(p, true, &v);
            if (!rc)
                rc = pkeyword(p, macro, name, v);
        } else if (macro->n_kw) {
            rc = pfail(p, arg->pos, "a parameter without a default follows one with a default");
        }
        if (!rc)
            rc = pappend(p, macro, arg);
    }
    return rc ? rc : pexpect_op(p, OP_RPAREN);
}
