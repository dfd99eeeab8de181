/* grammar_regex.c - regular expressions: a parser for what ECMA and Python share, and Thompson's construction.
 *
 * Used while a grammar is compiled, by the thread that compiles; everything lives in the context's temporary arena. The
 * expression becomes a tree (groups nest to the context's depth limit; sequences and alternatives are lists, so that
 * recursion follows groups alone), the tree a nondeterministic automaton over code points, with repeats written out.
 *
 * The meaning is ECMA's without flags, by code points: \d and \w are ASCII, \s is Unicode's white space, . is anything
 * but the four line ends. What depends on flags, on context or on what a group matched is refused by name: lookaround,
 * backreferences, \b, \p, inline flags, possessive repeats.
 */
#include "model/grammar_nfa.h"

#include <string.h>

#include "common/utf8.h"

enum { A_EMPTY, A_SET, A_CAT, A_ALT, A_REPEAT, A_BEGIN, A_END };

struct ast {
    int kind;
    struct ast *child, *next; /* the first child; the next in the parent's list */
    struct gset set;
    uint32_t min, max;
};

struct parser {
    struct gctx *c;
    const char *s;
    size_t n, i;
    unsigned depth;
};

static int bad(struct parser *p, size_t at, const char *what)
{
    const char *w = p->c->where ? p->c->where : "";
    return err_set(p->c->e, -EINVAL, "%s%sregular expression, at offset %zu: %s", w, *w ? ": " : "", at, what);
}

static struct ast *ast_new(struct parser *p, int kind)
{
    struct ast *a = g_tmp(p->c, 1, sizeof *a);
    if (a)
        a->kind = kind;
    return a;
}

static int peek(struct parser *p)
{
    return p->i < p->n ? (unsigned char)p->s[p->i] : -1;
}

static int hex_digits(struct parser *p, int count, uint32_t *out)
{
    uint32_t v = 0;
    size_t at = p->i;
    for (int k = 0; k < count; k++, p->i++) {
        int ch = peek(p);
        int d = ch >= '0' && ch <= '9' ? ch - '0' : (ch | 32) >= 'a' && (ch | 32) <= 'f' ? (ch | 32) - 'a' + 10 : -1;
        if (ch < 0 || d < 0)
            return bad(p, at, "hexadecimal digits are missing");
        v = v * 16 + (uint32_t)d;
    }
    *out = v;
    return 0;
}

static int unicode_escape(struct parser *p, uint32_t *cp)
{
    size_t at = p->i;
    int r;
    if (peek(p) == '{') {
        uint32_t v = 0, d = 0;
        for (p->i++; peek(p) != '}'; v = v * 16 + d) {
            if (v > G_CP_MAX || (r = hex_digits(p, 1, &d)))
                return bad(p, at, "\\u{...} is not a code point");
        }
        p->i++;
        if (v > G_CP_MAX || (v >= 0xD800 && v < 0xE000))
            return bad(p, at, "\\u{...} is not a character");
        *cp = v;
        return 0;
    }
    if ((r = hex_digits(p, 4, cp)))
        return r;
    if (*cp >= 0xDC00 && *cp < 0xE000)
        return bad(p, at, "half of a surrogate pair");
    if (*cp < 0xD800 || *cp >= 0xE000)
        return 0;
    uint32_t low;
    if (p->n - p->i < 6 || p->s[p->i] != '\\' || p->s[p->i + 1] != 'u')
        return bad(p, at, "half of a surrogate pair");
    p->i += 2;
    if ((r = hex_digits(p, 4, &low)))
        return r;
    if (low < 0xDC00 || low >= 0xE000)
        return bad(p, at, "half of a surrogate pair");
    *cp = 0x10000 + ((*cp - 0xD800) << 10) + (low - 0xDC00);
    return 0;
}

static int class_escape(struct gctx *c, int ch, struct gset *out)
{
    static const struct grange digit[] = {{'0', '9'}};
    static const struct grange word[] = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
    static const struct grange space[] = {{9, 13},          {32, 32},         {0xA0, 0xA0},     {0x1680, 0x1680},
                                          {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F},
                                          {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};
    const struct grange *t = (ch | 32) == 'd' ? digit : (ch | 32) == 'w' ? word : space;
    size_t n = (ch | 32) == 'd' ? 1 : (ch | 32) == 'w' ? 4 : sizeof space / sizeof *space;
    struct gset s = {0};
    int r = 0;
    for (size_t i = 0; i < n && !r; i++)
        r = gset_add(c, &s, t[i].lo, t[i].hi);
    if (!r && ch < 'a') {
        struct gset inv = {0};
        r = gset_invert(c, &s, &inv);
        s = inv;
    }
    for (size_t i = 0; i < s.n && !r; i++)
        r = gset_add(c, out, s.r[i].lo, s.r[i].hi);
    return r;
}

/* After a backslash. *single: *cp is a character; else a class was added to out. */
static int escape(struct parser *p, bool in_class, bool *single, uint32_t *cp, struct gset *out)
{
    size_t at = p->i - 1;
    int ch = peek(p);
    if (ch < 0)
        return bad(p, at, "a backslash at the end");
    if (ch >= 128) {
        p->i += utf8_next(p->s + p->i, p->n - p->i, cp);
        *single = true;
        return 0;
    }
    p->i++;
    *single = true;
    static const char from[] = "nrtfv", to[] = "\n\r\t\f\v";
    const char *f = strchr(from, ch);
    if (f) {
        *cp = (uint32_t)to[f - from];
        return 0;
    }
    if (strchr("dDwWsS", ch)) {
        *single = false;
        return class_escape(p->c, ch, out);
    }
    if (ch == 'x')
        return hex_digits(p, 2, cp);
    if (ch == 'u')
        return unicode_escape(p, cp);
    if (ch == 'b' && in_class)
        return *cp = 8, 0;
    if (ch == '0' && !(peek(p) >= '0' && peek(p) <= '9'))
        return *cp = 0, 0;
    if (ch == 'c' && ((peek(p) | 32) >= 'a' && (peek(p) | 32) <= 'z')) {
        *cp = (uint32_t)p->s[p->i++] & 31;
        return 0;
    }
    if (ch == 'b' || ch == 'B')
        return bad(p, at, "\\b and \\B (word boundaries) are not supported");
    if (ch == 'p' || ch == 'P')
        return bad(p, at, "\\p (Unicode properties) is not supported");
    if ((ch >= '0' && ch <= '9') || ch == 'k')
        return bad(p, at, "backreferences are not supported");
    if ((ch | 32) >= 'a' && (ch | 32) <= 'z')
        return bad(p, at, "an escape that is not supported");
    *cp = (uint32_t)ch;
    return 0;
}

static int class_atom(struct parser *p, bool *single, uint32_t *cp, struct gset *out)
{
    if (peek(p) == '\\') {
        p->i++;
        return escape(p, true, single, cp, out);
    }
    *single = true;
    p->i += utf8_next(p->s + p->i, p->n - p->i, cp);
    return 0;
}

static int parse_class(struct parser *p, struct gset *out)
{
    size_t at = p->i++;
    bool negate = peek(p) == '^', single;
    struct gset s = {0};
    uint32_t a, b;
    int r;
    p->i += negate;
    if (peek(p) == ']')
        return bad(p, at, "an empty class");
    while (peek(p) != ']') {
        size_t from = p->i;
        if (p->i >= p->n)
            return bad(p, at, "a class without its ]");
        if ((r = class_atom(p, &single, &a, &s)))
            return r;
        bool range = p->n - p->i >= 2 && p->s[p->i] == '-' && p->s[p->i + 1] != ']';
        if (!single)
            continue;
        b = a;
        if (range) {
            p->i++;
            if ((r = class_atom(p, &single, &b, &s)))
                return r;
            if (!single) { /* a-\d: three members */
                b = a;
                if ((r = gset_add(p->c, &s, '-', '-')))
                    return r;
            }
        }
        if (b < a)
            return bad(p, from, "a range out of order");
        if ((r = gset_add(p->c, &s, a, b)))
            return r;
    }
    p->i++;
    gset_norm(&s);
    if (!negate)
        return *out = s, 0;
    return gset_invert(p->c, &s, out);
}

static int parse_alt(struct parser *p, struct ast **out);

static int parse_group(struct parser *p, struct ast **out)
{
    size_t at = p->i++;
    int r;
    if (peek(p) == '?') {
        const char *q = p->s + p->i;
        size_t left = p->n - p->i, skip = 0;
        if (left >= 2 && q[1] == ':')
            skip = 2;
        else if (left >= 3 && (q[1] == '=' || q[1] == '!' || (q[1] == '<' && (q[2] == '=' || q[2] == '!'))))
            return bad(p, at, "lookahead and lookbehind are not supported");
        else if (left >= 3 && (q[1] == '<' || (q[1] == 'P' && q[2] == '<'))) {
            const char *close = memchr(q, '>', left);
            if (!close)
                return bad(p, at, "a group's name without its >");
            skip = (size_t)(close - q) + 1;
        } else
            return bad(p, at, "this kind of group is not supported");
        p->i += skip;
    }
    if (++p->depth > p->c->lim.max_depth)
        return err_set(p->c->e, -E2BIG, "regular expression: groups nest deeper than %u", p->c->lim.max_depth);
    if ((r = parse_alt(p, out)))
        return r;
    p->depth--;
    if (peek(p) != ')')
        return bad(p, at, "a group without its )");
    p->i++;
    return 0;
}

/* {m}, {m,}, {m,n}: 1 and past it; 0 when it is none (then it is text); negative errors. */
static int parse_counts(struct parser *p, uint32_t *min, uint32_t *max)
{
    size_t i = p->i + 1, at = p->i;
    uint64_t v[2] = {0, G_INF};
    int k = 0, digits = 0;
    for (; i < p->n && p->s[i] != '}'; i++) {
        if (p->s[i] == ',' && k == 0 && digits) {
            k = 1, digits = 0;
            continue;
        }
        if (p->s[i] < '0' || p->s[i] > '9')
            return 0;
        v[k] = (digits++ ? v[k] : 0) * 10 + (uint64_t)(p->s[i] - '0');
        if (v[k] > 100000)
            return bad(p, at, "a repeat of more than 100000");
    }
    if (i >= p->n || (!digits && !k))
        return 0;
    if (!k)
        v[1] = v[0];
    if (v[1] < v[0])
        return bad(p, at, "a repeat out of order");
    *min = (uint32_t)v[0], *max = (uint32_t)v[1];
    p->i = i + 1;
    return 1;
}

static int parse_repeat(struct parser *p, struct ast **item)
{
    for (bool once = false;; once = true) {
        uint32_t min = 0, max = 0;
        size_t at = p->i;
        int ch = peek(p), r;
        if (ch == '*' || ch == '+' || ch == '?') {
            min = ch == '+', max = ch == '?' ? 1 : G_INF;
            p->i++;
        } else if (ch == '{') {
            if ((r = parse_counts(p, &min, &max)) <= 0)
                return r;
        } else
            return 0;
        if (once)
            return bad(p, at, "a repeat of a repeat");
        if ((*item)->kind == A_BEGIN || (*item)->kind == A_END)
            return bad(p, at, "a repeated anchor");
        if (peek(p) == '?')
            p->i++; /* lazy: the same texts */
        else if (peek(p) == '+')
            return bad(p, at, "possessive repeats are not supported");
        struct ast *a = ast_new(p, A_REPEAT);
        if (!a)
            return g_memory_code(p->c);
        a->child = *item, a->min = min, a->max = max;
        *item = a;
    }
}

static int parse_item(struct parser *p, struct ast **out)
{
    int ch = peek(p), r = 0;
    bool single = true;
    uint32_t cp = 0;
    if (ch == '(')
        return parse_group(p, out);
    struct ast *a = ast_new(p, ch == '^' ? A_BEGIN : ch == '$' ? A_END : A_SET);
    if (!a)
        return g_memory_code(p->c);
    *out = a;
    if (ch == '^' || ch == '$')
        return p->i++, 0;
    if (ch == '*' || ch == '+' || ch == '?')
        return bad(p, p->i, "nothing to repeat");
    if (ch == '[')
        return parse_class(p, &a->set);
    if (ch == '.') {
        static const struct grange dot[] = {{0, 9}, {11, 12}, {14, 0x2027}, {0x202A, G_CP_MAX}};
        p->i++;
        for (int i = 0; i < 4 && !r; i++)
            r = gset_add(p->c, &a->set, dot[i].lo, dot[i].hi);
        return r;
    }
    if (ch == '\\') {
        p->i++;
        r = escape(p, false, &single, &cp, &a->set);
    } else
        p->i += utf8_next(p->s + p->i, p->n - p->i, &cp);
    if (!r && single)
        r = gset_add(p->c, &a->set, cp, cp);
    gset_norm(&a->set);
    return r;
}

static int parse_cat(struct parser *p, struct ast **out)
{
    struct ast *cat = ast_new(p, A_CAT), **tail;
    int r;
    if (!cat)
        return g_memory_code(p->c);
    tail = &cat->child;
    while (p->i < p->n && peek(p) != '|' && peek(p) != ')') {
        struct ast *item = NULL;
        if ((r = g_steps(p->c, 1)) || (r = parse_item(p, &item)) || (r = parse_repeat(p, &item)))
            return r;
        *tail = item;
        tail = &item->next;
    }
    *out = cat;
    return 0;
}

static int parse_alt(struct parser *p, struct ast **out)
{
    struct ast *alt = ast_new(p, A_ALT), **tail;
    int r;
    if (!alt)
        return g_memory_code(p->c);
    for (tail = &alt->child;; p->i++) {
        if ((r = parse_cat(p, tail)))
            return r;
        tail = &(*tail)->next;
        if (peek(p) != '|')
            break;
    }
    *out = alt;
    return 0;
}

/* ---- the automaton ---- */

int gnfa_node(struct gctx *c, struct gnfa *f, enum gnfa_kind kind, uint32_t a, uint32_t b, uint32_t *id)
{
    int r = g_steps(c, 1);
    if (r)
        return r;
    if (f->n == f->cap) {
        size_t cap = f->cap ? f->cap * 2 : 64;
        struct gnfa_node *p = cap > 2 * G_NFA_MAX ? NULL : g_tmp(c, cap, sizeof *p);
        if (!p)
            return cap > 2 * G_NFA_MAX ? err_set(c->e, -E2BIG, "%s: the regular expression is too large",
                                                 c->where && *c->where ? c->where : "grammar")
                                       : g_memory_code(c);
        if (f->n)
            memcpy(p, f->node, f->n * sizeof *p);
        f->node = p;
        f->cap = cap;
    }
    f->node[f->n] = (struct gnfa_node){.kind = kind, .a = a, .b = b};
    *id = (uint32_t)f->n++;
    return 0;
}

int gnfa_set(struct gctx *c, struct gnfa *f, const struct gset *s, uint32_t next, uint32_t *id)
{
    if (f->n_sets == f->cap_sets) {
        size_t cap = f->cap_sets ? f->cap_sets * 2 : 32;
        struct gset *p = g_tmp(c, cap, sizeof *p);
        if (!p)
            return g_memory_code(c);
        if (f->n_sets)
            memcpy(p, f->set, f->n_sets * sizeof *p);
        f->set = p;
        f->cap_sets = cap;
    }
    f->set[f->n_sets] = *s;
    return gnfa_node(c, f, N_SET, next, (uint32_t)f->n_sets++, id);
}

static int emit(struct gctx *c, struct gnfa *f, const struct ast *a, uint32_t next, uint32_t *id);

/* x{min,max} before next, from the end: max - min optional copies (or a loop), then min copies. */
static int emit_repeat(struct gctx *c, struct gnfa *f, const struct ast *a, uint32_t next, uint32_t *id)
{
    uint32_t at = next;
    int r;
    if (a->max == G_INF) {
        uint32_t loop, body;
        if ((r = gnfa_node(c, f, N_SPLIT, next, next, &loop)) || (r = emit(c, f, a->child, loop, &body)))
            return r;
        f->node[loop].a = body;
        at = loop;
    }
    for (uint32_t k = a->max == G_INF ? a->min : a->max; k; k--) {
        uint32_t body;
        if ((r = emit(c, f, a->child, at, &body)))
            return r;
        at = body;
        if (k > a->min && (r = gnfa_node(c, f, N_SPLIT, body, next, &at)))
            return r;
    }
    *id = at;
    return 0;
}

static int emit_list(struct gctx *c, struct gnfa *f, const struct ast *a, uint32_t next, uint32_t *id)
{
    size_t n = 0, k = 0;
    int r = 0;
    for (const struct ast *x = a->child; x; x = x->next)
        n++;
    const struct ast **item = g_tmp(c, n + 1, sizeof *item);
    if (!item)
        return g_memory_code(c);
    for (const struct ast *x = a->child; x; x = x->next)
        item[k++] = x;
    uint32_t at = next, one;
    while (k-- && !r) {
        if (a->kind == A_CAT)
            r = emit(c, f, item[k], at, &at);
        else if (!(r = emit(c, f, item[k], next, &one)))
            r = k + 1 == n ? (at = one, 0) : gnfa_node(c, f, N_SPLIT, one, at, &at);
    }
    *id = at;
    return r;
}

static int emit(struct gctx *c, struct gnfa *f, const struct ast *a, uint32_t next, uint32_t *id)
{
    switch (a->kind) {
    case A_SET:
        return gnfa_set(c, f, &a->set, next, id);
    case A_BEGIN:
        return gnfa_node(c, f, N_BEGIN, next, 0, id);
    case A_END:
        return gnfa_node(c, f, N_END, next, 0, id);
    case A_REPEAT:
        return emit_repeat(c, f, a, next, id);
    default:
        return emit_list(c, f, a, next, id);
    }
}

int gdfa_regex(struct gctx *c, const char *text, size_t n, bool search, struct gdfa **out)
{
    struct parser p = {.c = c, .s = text, .n = n};
    struct gnfa f = {0};
    struct ast *a;
    struct gset all = {0};
    uint32_t match, at, loop, any;
    size_t off = utf8_valid(text, n);
    int r;
    if (off != n)
        return bad(&p, off, "invalid UTF-8");
    if ((r = parse_alt(&p, &a)))
        return r;
    if (p.i != n)
        return bad(&p, p.i, "a ) without its (");
    if ((r = gset_add(c, &all, 0, G_CP_MAX)) || (r = gnfa_node(c, &f, search ? N_MATCH_ALL : N_MATCH, 1, 0, &match)) ||
        (r = emit(c, &f, a, match, &at)))
        return r;
    if (search && ((r = gnfa_node(c, &f, N_SPLIT, at, at, &loop)) || (r = gnfa_set(c, &f, &all, loop, &any))))
        return r;
    if (search) {
        f.node[loop].b = any;
        at = loop;
    }
    f.start = at;
    return gdfa_subsets(c, &f, out);
}
