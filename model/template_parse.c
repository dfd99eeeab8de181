/* template_parse.c - the statement half of the template parser, and the life of a struct tmpl.
 *
 * Runs once per template, on the thread that loads a backbone or a task; the tree, the names and the constants live in
 * one arena that tmpl_free drops. What always holds: after tmpl_parse nothing in the tree changes, so that any number
 * of threads render it at once. Names are interned: a scope compares numbers. Tags outside the subset are refused here.
 */
#include "model/template_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"

#define PARSE_MEMORY_MAX ((size_t)96 << 20)

struct node *pnode(struct parser *p, enum node_kind kind, uint32_t pos)
{
    struct node *n = arena_calloc(p->t->arena, 1, sizeof *n);
    if (!n) {
        err_set(p->e, -ENOMEM, "chat template: out of memory");
        return NULL;
    }
    n->kind = (uint8_t)kind;
    n->pos = pos;
    n->depth = 1;
    return n;
}

int pfail(struct parser *p, uint32_t pos, const char *fmt, ...)
{
    char msg[300];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    return tmpl_fail_at(p->t, pos, p->e, -EINVAL, "%s", msg);
}

static const struct token *cur(const struct parser *p)
{
    return &p->tok[p->at];
}

bool pis(const struct parser *p, const char *name)
{
    return cur(p)->kind == T_NAME && tstr_is(cur(p)->s, name);
}

bool pis_op(const struct parser *p, enum tok_op op)
{
    return cur(p)->kind == T_OP && cur(p)->op == op;
}

bool pskip(struct parser *p, const char *name)
{
    if (!pis(p, name))
        return false;
    p->at++;
    return true;
}

bool pskip_op(struct parser *p, enum tok_op op)
{
    if (!pis_op(p, op))
        return false;
    p->at++;
    return true;
}

int pexpect_op(struct parser *p, enum tok_op op)
{
    static const char *const text[] = {
        [OP_ASSIGN] = "=",   [OP_COLON] = ":",    [OP_COMMA] = ",",  [OP_LPAREN] = "(", [OP_RPAREN] = ")",
        [OP_LBRACKET] = "[", [OP_RBRACKET] = "]", [OP_LBRACE] = "{", [OP_RBRACE] = "}",
    };
    return pskip_op(p, op) ? 0 : pfail(p, cur(p)->pos, "expected '%s'", text[op]);
}

int pname(struct parser *p, const struct tstr **out)
{
    if (cur(p)->kind != T_NAME)
        return pfail(p, cur(p)->pos, "expected a name");
    *out = cur(p)->s;
    p->at++;
    return 0;
}

int pintern(struct parser *p, const struct tstr *name, uint32_t *id)
{
    struct tmpl *t = p->t;
    for (uint32_t i = 0; i < t->n_names; i++) {
        if (tstr_eq(t->names[i], name)) {
            *id = i;
            return 0;
        }
    }
    if (t->n_names == 4096)
        return err_set(p->e, -E2BIG, "chat template: more than 4096 names");
    if (t->n_names == t->cap_names) {
        uint32_t cap = t->cap_names ? t->cap_names * 2 : 32;
        const struct tstr **l = arena_alloc(t->arena, cap * sizeof *l);
        if (!l)
            return err_set(p->e, -ENOMEM, "chat template: out of memory");
        if (t->n_names)
            memcpy(l, t->names, t->n_names * sizeof *l);
        t->names = l;
        t->cap_names = cap;
    }
    t->names[t->n_names] = name;
    *id = t->n_names++;
    return 0;
}

static int pblock_end(struct parser *p)
{
    if (cur(p)->kind != T_BLOCK_END)
        return pfail(p, cur(p)->pos, "expected the end of the tag");
    p->at++;
    return 0;
}

static int pstatement(struct parser *p, uint32_t open, struct node **out);

static bool pis_any(const struct parser *p, const char *const *ends)
{
    for (; *ends; ends++)
        if (pis(p, *ends))
            return true;
    return false;
}

/* One piece of a body. *end: it was one of the tags in ends, whose name is next. */
static int ppiece(struct parser *p, const char *const *ends, struct node *block, bool *end)
{
    const struct token *k = cur(p);
    struct node *n = NULL, *v = NULL;
    int rc;
    *end = false;
    p->at++;
    if (k->kind == T_BLOCK_BEGIN) {
        *end = pis_any(p, ends);
        if (*end)
            return 0;
        rc = pstatement(p, k->pos, &n);
        if (!rc)
            rc = pblock_end(p);
        return rc ? rc : pappend(p, block, n);
    }
    if (!(n = pnode(p, k->kind == T_DATA ? N_TEXT : N_OUTPUT, k->pos)))
        return -ENOMEM;
    if (k->kind == T_DATA) {
        n->v = tv_of_str(k->s);
        return pappend(p, block, n);
    }
    rc = ptuple(p, true, NULL, &v);
    if (rc)
        return rc;
    if (cur(p)->kind != T_VAR_END)
        return pfail(p, cur(p)->pos, "expected the end of the expression");
    p->at++;
    n->a = v;
    rc = pdepth(p, n, v);
    return rc ? rc : pappend(p, block, n);
}

/* Pieces up to one of the tags in ends, which is left at hand (ends[0] NULL: up to the end of the template). */
static int pbody(struct parser *p, const char *const *ends, uint32_t open, struct node **out)
{
    struct node *block = pnode(p, N_BLOCK, cur(p)->pos);
    bool end = false;
    int rc = block ? 0 : -ENOMEM;
    if (!rc && ++p->depth > PARSE_DEPTH_MAX)
        rc = pfail(p, open, "tags are nested too deep");
    while (!rc && !end && cur(p)->kind != T_EOF)
        rc = ppiece(p, ends, block, &end);
    p->depth--;
    if (!rc && !end && ends[0])
        return pfail(p, open, "this tag has no matching {%% %s %%}", ends[0]);
    *out = block;
    return rc;
}

/* A body that ends with one tag, which is consumed up to its closing mark. */
static int pbody_to(struct parser *p, const char *end, uint32_t open, struct node **out)
{
    const char *const ends[] = {end, NULL};
    int rc = pblock_end(p);
    if (!rc)
        rc = pbody(p, ends, open, out);
    if (!rc)
        p->at++;
    return rc;
}

static int pif(struct parser *p, struct node *n)
{
    static const char *const ends[] = {"endif", "elif", "else", NULL};
    struct node *test, *body;
    for (;;) {
        int rc = ptuple(p, false, NULL, &test);
        if (rc || (rc = pappend(p, n, test)) || (rc = pblock_end(p)) || (rc = pbody(p, ends, n->pos, &body)) ||
            (rc = pappend(p, n, body)))
            return rc;
        if (pskip(p, "elif"))
            continue;
        if (!pskip(p, "else"))
            break;
        rc = pbody_to(p, "endif", n->pos, &n->b);
        return rc ? rc : pdepth(p, n, n->b);
    }
    p->at++; /* endif */
    return 0;
}

static int pfor_head(struct parser *p, struct node *n)
{
    int rc = ptarget(p, "in", false, &n->a);
    if (rc)
        return rc;
    if (!pskip(p, "in"))
        return pfail(p, cur(p)->pos, "expected 'in'");
    rc = ptuple(p, false, "recursive", &n->b);
    if (!rc && pskip(p, "if"))
        rc = pexpr(p, true, &n->c);
    if (!rc && pis(p, "recursive"))
        return pfail(p, cur(p)->pos, "recursive loops are not supported");
    if (!rc)
        rc = pdepth(p, n, n->b);
    if (!rc)
        rc = pdepth(p, n, n->c);
    return rc ? rc : pblock_end(p);
}

static int pfor(struct parser *p, struct node *n)
{
    static const char *const ends[] = {"endfor", "else", NULL};
    struct node *body, *other = NULL;
    int rc = pfor_head(p, n);
    if (rc)
        return rc;
    bool outer = p->uses_loop;
    p->uses_loop = false;
    p->loops++;
    rc = pbody(p, ends, n->pos, &body);
    p->loops--;
    n->op = p->uses_loop;
    p->uses_loop = outer;
    if (!rc)
        rc = pappend(p, n, body);
    if (!rc && pskip(p, "else"))
        rc = pbody_to(p, "endfor", n->pos, &other);
    else
        p->at++;
    return rc ? rc : pappend(p, n, other);
}

static int pset(struct parser *p, struct node *n)
{
    int rc = ptarget(p, NULL, true, &n->a);
    if (rc)
        return rc;
    if (pskip_op(p, OP_ASSIGN)) {
        rc = ptuple(p, true, NULL, &n->b);
        return rc ? rc : pdepth(p, n, n->b);
    }
    n->kind = N_SETBLOCK;
    if (pis_op(p, OP_PIPE)) {
        struct node *hole = pnode(p, N_HOLE, n->pos);
        rc = hole ? pfilters(p, hole, false, &n->c) : -ENOMEM;
    }
    if (!rc)
        rc = pbody_to(p, "endset", n->pos, &n->b);
    if (!rc)
        rc = pdepth(p, n, n->c);
    return rc ? rc : pdepth(p, n, n->b);
}

static int pfilterblock(struct parser *p, struct node *n)
{
    struct node *hole = pnode(p, N_HOLE, n->pos);
    int rc = hole ? pfilters(p, hole, true, &n->c) : -ENOMEM;
    if (!rc)
        rc = pbody_to(p, "endfilter", n->pos, &n->b);
    if (!rc)
        rc = pdepth(p, n, n->c);
    return rc ? rc : pdepth(p, n, n->b);
}

static int pwith(struct parser *p, struct node *n)
{
    struct node *target, *v;
    int rc = 0;
    while (!rc && cur(p)->kind != T_BLOCK_END) {
        if (n->n && (rc = pexpect_op(p, OP_COMMA)))
            break;
        const struct tstr *name;
        if (!(target = pnode(p, N_NAME, cur(p)->pos)))
            return -ENOMEM;
        if ((rc = pname(p, &name)) || (rc = pintern(p, name, &target->id)) || (rc = pexpect_op(p, OP_ASSIGN)) ||
            (rc = pexpr(p, true, &v)) || (rc = pappend(p, n, target)))
            break;
        rc = pappend(p, n, v);
    }
    if (!rc)
        rc = pbody_to(p, "endwith", n->pos, &n->b);
    return rc ? rc : pdepth(p, n, n->b);
}

/* The body of a macro or a call block: loops outside it cannot be left from inside. */
static int pmacro_body(struct parser *p, struct node *n, const char *end)
{
    uint8_t flags = p->macro_flags;
    unsigned loops = p->loops;
    p->macro_flags = 0;
    p->loops = 0;
    int rc = pbody_to(p, end, n->pos, &n->b);
    n->op = p->macro_flags;
    p->macro_flags = flags;
    p->loops = loops;
    return rc ? rc : pdepth(p, n, n->b);
}

static int pmacro(struct parser *p, struct node *n)
{
    const struct tstr *name;
    int rc = pname(p, &name);
    if (!rc)
        rc = pintern(p, name, &n->id);
    if (!rc)
        rc = psignature(p, n);
    return rc ? rc : pmacro_body(p, n, "endmacro");
}

static int pcallblock(struct parser *p, struct node *n)
{
    n->b = pnode(p, N_MACRO, n->pos);
    int rc = n->b ? 0 : -ENOMEM;
    if (!rc)
        n->b->id = ID_CALLER;
    if (!rc && pis_op(p, OP_LPAREN))
        rc = psignature(p, n->b);
    if (!rc)
        rc = pexpr(p, true, &n->a);
    if (!rc && n->a->kind != N_CALL)
        rc = pfail(p, n->a->pos, "expected a call");
    if (!rc)
        rc = pmacro_body(p, n->b, "endcall");
    if (!rc)
        rc = pdepth(p, n, n->a);
    return rc ? rc : pdepth(p, n, n->b);
}

static int pgeneration(struct parser *p, struct node *n)
{
    int rc = pbody_to(p, "endgeneration", n->pos, &n->b);
    return rc ? rc : pdepth(p, n, n->b);
}

static int ploop_control(struct parser *p, struct node *n)
{
    return p->loops ? 0 : pfail(p, n->pos, "this tag stands outside a loop");
}

static int pstatement(struct parser *p, uint32_t open, struct node **out)
{
    static const struct {
        const char *name;
        enum node_kind kind;
        int (*parse)(struct parser *p, struct node *n);
    } tags[] = {
        {"if", N_IF, pif},
        {"for", N_FOR, pfor},
        {"set", N_SET, pset},
        {"macro", N_MACRO, pmacro},
        {"with", N_WITH, pwith},
        {"filter", N_FILTERBLOCK, pfilterblock},
        {"call", N_CALLBLOCK, pcallblock},
        {"generation", N_SCOPED, pgeneration},
        {"break", N_BREAK, ploop_control},
        {"continue", N_CONTINUE, ploop_control},
    };
    const struct tstr *name;
    int rc = pname(p, &name);
    if (rc)
        return rc;
    for (size_t i = 0; i < sizeof tags / sizeof tags[0]; i++) {
        if (!tstr_is(name, tags[i].name))
            continue;
        *out = pnode(p, tags[i].kind, open);
        return *out ? tags[i].parse(p, *out) : -ENOMEM;
    }
    return pfail(p, open, "the tag %s is not supported, or stands where it cannot", name->p);
}

/* The source with \r\n and \r made \n, and without the line end at its end. */
static int load_source(struct tmpl *t, const char *src, size_t n, struct err *e)
{
    if (n > TMPL_SOURCE_MAX)
        return err_set(e, -E2BIG, "chat template: %zu bytes are more than %u", n, TMPL_SOURCE_MAX);
    size_t bad = utf8_valid(src, n);
    if (bad != n)
        return err_set(e, -EINVAL, "chat template: byte %zu is not valid UTF-8", bad);
    if (memchr(src, 0, n))
        return err_set(e, -EINVAL, "chat template: a NUL byte");
    char *s = arena_calloc(t->arena, 1, n + 8);
    if (!s)
        return err_set(e, -ENOMEM, "chat template: out of memory");
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        if (src[i] == '\r' && i + 1 < n && src[i + 1] == '\n')
            continue;
        s[k++] = src[i] == '\r' ? '\n' : src[i];
    }
    if (k && s[k - 1] == '\n')
        s[--k] = 0;
    t->src = s;
    t->n_src = k;
    return 0;
}

static int parse_all(struct tmpl *t, const struct token *tok, size_t n, struct err *e)
{
    static const char *const fixed[ID_FIXED] = {"loop", "caller", "varargs", "kwargs"}, *const none[] = {NULL};
    struct parser p = {.t = t, .tok = tok, .n = n, .e = e};
    int rc = 0;
    for (size_t i = 0; !rc && i < ID_FIXED; i++) {
        uint32_t id;
        const struct tstr *s = tstr_make(t->arena, fixed[i], strlen(fixed[i]));
        rc = s ? pintern(&p, s, &id) : err_set(e, -ENOMEM, "chat template: out of memory");
    }
    return rc ? rc : pbody(&p, none, 0, &t->root);
}

int tmpl_parse(const char *src, size_t n, struct tmpl **out, struct err *e)
{
    struct tmpl *t = calloc(1, sizeof *t);
    struct arena *tmp = arena_create(PARSE_MEMORY_MAX);
    struct token *tok;
    size_t n_tok;
    int rc = 0;
    if (t)
        t->arena = arena_create(PARSE_MEMORY_MAX);
    if (!t || !tmp || !t->arena)
        rc = err_set(e, -ENOMEM, "chat template: out of memory");
    if (!rc)
        rc = load_source(t, src, n, e);
    if (!rc)
        rc = tmpl_lex(t, tmp, &tok, &n_tok, e);
    if (!rc)
        rc = parse_all(t, tok, n_tok, e);
    arena_free(tmp);
    if (rc)
        tmpl_free(t);
    else
        *out = t;
    return rc;
}

void tmpl_free(struct tmpl *t)
{
    if (!t)
        return;
    arena_free(t->arena);
    free(t);
}
