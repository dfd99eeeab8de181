/* template_lex.c - cuts a template into tokens, with jinja2's rules for white space.
 *
 * Runs once per template, on the thread that loads a backbone or a task. Tokens go to a temporary arena of the caller,
 * texts to the template's own. What always holds: white space is settled here, so that the parser sees only text that
 * is printed. A tag with `-` eats the space beside it; a block or comment that stands first on its line eats the
 * indent before it (lstrip_blocks) and one line end after it (trim_blocks); `+` turns either off.
 */
#include "model/template_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"

struct lexer {
    struct tmpl *t;
    struct arena *tmp;
    struct token *tok;
    size_t n, cap;
    size_t pos;
    bool line_starting; /* the last match ended a line */
    struct err *e;
};

void tmpl_where(const struct tmpl *t, uint32_t pos, unsigned *line, unsigned *col)
{
    *line = *col = 1;
    for (size_t i = 0; i < pos && i < t->n_src; i++) {
        if (t->src[i] == '\n') {
            ++*line;
            *col = 1;
        } else if (((unsigned char)t->src[i] & 0xC0) != 0x80) {
            ++*col;
        }
    }
}

int tmpl_fail_at(const struct tmpl *t, uint32_t pos, struct err *e, int code, const char *fmt, ...)
{
    char msg[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    unsigned line, col;
    tmpl_where(t, pos, &line, &col);
    return err_set(e, code, "chat template, line %u, column %u: %s", line, col, msg);
}

static int nomem(struct lexer *l)
{
    return err_set(l->e, -ENOMEM, "chat template: out of memory");
}

static int add(struct lexer *l, enum tok_kind kind, size_t pos, struct token **out)
{
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 128;
        struct token *p = arena_alloc(l->tmp, cap * sizeof *p);
        if (!p)
            return nomem(l);
        if (l->n)
            memcpy(p, l->tok, l->n * sizeof *p);
        l->tok = p;
        l->cap = cap;
    }
    struct token *k = &l->tok[l->n++];
    memset(k, 0, sizeof *k);
    k->kind = (uint8_t)kind;
    k->pos = (uint32_t)pos;
    if (out)
        *out = k;
    return 0;
}

static int add_text(struct lexer *l, enum tok_kind kind, size_t pos, const char *p, size_t n)
{
    struct token *k = NULL;
    int rc = add(l, kind, pos, &k);
    if (rc)
        return rc;
    k->s = tstr_make(l->t->arena, p, n);
    return k->s ? 0 : nomem(l);
}

static size_t skip_space(const struct tmpl *t, size_t p)
{
    uint32_t cp;
    while (p < t->n_src) {
        size_t k = utf8_next(t->src + p, t->n_src - p, &cp);
        if (!k || !uc_space(cp))
            break;
        p += k;
    }
    return p;
}

static size_t back_space(const struct tmpl *t, size_t from, size_t to)
{
    while (to > from) {
        size_t p = to - 1;
        uint32_t cp = 0;
        while (p > from && ((unsigned char)t->src[p] & 0xC0) == 0x80)
            p--;
        if (!utf8_next(t->src + p, to - p, &cp) || !uc_space(cp))
            break;
        to = p;
    }
    return to;
}

/* The end of the text src[from..to) that comes before a tag with this sign. */
static size_t text_end(const struct lexer *l, size_t from, size_t to, char sign, bool variable)
{
    if (sign == '-')
        return back_space(l->t, from, to);
    if (sign == '+' || variable)
        return to;
    const char *nl = to > from ? memrchr(l->t->src + from, '\n', to - from) : NULL;
    size_t line = nl ? (size_t)(nl - l->t->src) + 1 : from;
    if ((nl || l->line_starting) && back_space(l->t, line, to) == line)
        return line;
    return to;
}

static void moved(struct lexer *l, size_t pos)
{
    l->line_starting = pos > 0 && l->t->src[pos - 1] == '\n';
    l->pos = pos;
}

static bool at(const struct lexer *l, size_t p, const char *lit)
{
    size_t n = strlen(lit);
    return l->t->n_src - p >= n && !memcmp(l->t->src + p, lit, n);
}

/* Past the end of a block or comment whose closing mark is at p; 0 when there is none. */
static size_t close_end(const struct lexer *l, size_t p, const char *mark)
{
    if (at(l, p, "+") && at(l, p + 1, mark))
        return p + 3;
    if (at(l, p, "-") && at(l, p + 1, mark))
        return skip_space(l->t, p + 3);
    if (!at(l, p, mark))
        return 0;
    return at(l, p + 2, "\n") ? p + 3 : p + 2;
}

/* Where the word (raw, endraw) in a tag that opens at p ends; 0 when it is another tag. */
static size_t word_end(const struct lexer *l, size_t p, const char *word)
{
    p += 2;
    if (at(l, p, "-") || at(l, p, "+"))
        p++;
    p = skip_space(l->t, p);
    return at(l, p, word) ? skip_space(l->t, p + strlen(word)) : 0;
}

/* If a raw block opens at p, takes all of it. */
static int lex_raw(struct lexer *l, size_t p, bool *was)
{
    size_t q = word_end(l, p, "raw"), end = 0;
    *was = false;
    if (q && at(l, q, "-%}"))
        q = skip_space(l->t, q + 3);
    else if (q && at(l, q, "%}"))
        q += 2;
    else
        return 0;
    *was = true;
    moved(l, q);
    for (size_t r = q; r + 1 < l->t->n_src; r++) {
        if (!at(l, r, "{%"))
            continue;
        size_t w = word_end(l, r, "endraw");
        end = w ? close_end(l, w, "%}") : 0;
        if (!end)
            continue;
        size_t to = text_end(l, q, r, l->t->src[r + 2], false);
        if (to > q) {
            int rc = add_text(l, T_DATA, q, l->t->src + q, to - q);
            if (rc)
                return rc;
        }
        moved(l, end);
        return 0;
    }
    return tmpl_fail_at(l->t, (uint32_t)p, l->e, -EINVAL, "missing end of raw directive");
}

static int lex_comment(struct lexer *l, size_t open)
{
    for (size_t p = l->pos; p + 1 < l->t->n_src; p++) {
        size_t end = close_end(l, p, "#}");
        if (end) {
            moved(l, end);
            return 0;
        }
    }
    return tmpl_fail_at(l->t, (uint32_t)open, l->e, -EINVAL, "missing end of comment tag");
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 32);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* One \x, \u, \U or octal escape at s[*i] (just after the backslash). */
static bool unescape_code(const char *s, size_t n, size_t *i, uint32_t *cp)
{
    char c = s[*i];
    size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    *cp = 0;
    if (!digits) {
        for (size_t k = 0; k < 3 && *i < n && s[*i] >= '0' && s[*i] <= '7'; k++)
            *cp = *cp * 8 + (uint32_t)(s[(*i)++] - '0');
        return true;
    }
    ++*i;
    for (size_t k = 0; k < digits; k++, ++*i) {
        int h = *i < n ? hex_value(s[*i]) : -1;
        if (h < 0)
            return false;
        *cp = *cp * 16 + (uint32_t)h;
    }
    return *cp <= 0x10FFFF && (*cp < 0xD800 || *cp > 0xDFFF);
}

static int unescape(struct lexer *l, size_t pos, const char *s, size_t n, struct buf *b)
{
    static const char from[] = "abfnrtv\\'\"", to[] = "\a\b\f\n\r\t\v\\'\"";
    for (size_t i = 0; i < n;) {
        if (s[i] != '\\') {
            buf_append(b, s + i++, 1);
            continue;
        }
        char c = s[++i];
        const char *f = c ? strchr(from, c) : NULL;
        if (f) {
            buf_append(b, to + (f - from), 1);
            i++;
        } else if (c == '\n') {
            i++;
        } else if (c == 'x' || c == 'u' || c == 'U' || (c >= '0' && c <= '7')) {
            uint32_t cp;
            char u[4];
            if (!unescape_code(s, n, &i, &cp))
                return tmpl_fail_at(l->t, (uint32_t)pos, l->e, -EINVAL, "bad \\%c escape in a string", c);
            buf_append(b, u, utf8_put(cp, u));
        } else if (c == 'N') {
            return tmpl_fail_at(l->t, (uint32_t)pos, l->e, -EINVAL, "the escape \\N{...} is not supported");
        } else {
            buf_append(b, "\\", 1);
        }
    }
    return b->failed ? nomem(l) : 0;
}

static int lex_string(struct lexer *l)
{
    const char *src = l->t->src;
    size_t p = l->pos, q = p + 1;
    while (q < l->t->n_src && src[q] != src[p])
        q += src[q] == '\\' ? 2 : 1;
    if (q >= l->t->n_src)
        return tmpl_fail_at(l->t, (uint32_t)p, l->e, -EINVAL, "this string has no end");
    struct buf b;
    buf_init(&b, 0);
    int rc = unescape(l, p, src + p + 1, q - p - 1, &b);
    if (!rc)
        rc = add_text(l, T_STRING, p, b.data ? b.data : "", b.len);
    buf_free(&b);
    moved(l, q + 1);
    return rc;
}

static bool digit(char c)
{
    return c >= '0' && c <= '9';
}

/* The end of digits with single underscores between them, from p. */
static size_t digits_end(const char *s, size_t p)
{
    while (digit(s[p]) || (s[p] == '_' && digit(s[p + 1])))
        p++;
    return p;
}

/* Is there a float at p (not after a dot)? Its end, or 0. */
static size_t float_end(const char *s, size_t p)
{
    if (p && s[p - 1] == '.')
        return 0;
    size_t q = digits_end(s, p);
    bool is = false;
    if (s[q] == '.' && digit(s[q + 1])) {
        q = digits_end(s, q + 1);
        is = true;
    }
    if ((s[q] | 32) == 'e') {
        size_t r = q + 1;
        r += s[r] == '+' || s[r] == '-';
        if (digit(s[r]))
            return digits_end(s, r);
    }
    return is ? q : 0;
}

static size_t int_end(const char *s, size_t p, int *base)
{
    *base = 10;
    if (s[p] != '0')
        return digits_end(s, p);
    *base = (s[p + 1] | 32) == 'x' ? 16 : (s[p + 1] | 32) == 'o' ? 8 : (s[p + 1] | 32) == 'b' ? 2 : 10;
    size_t q = p + 2;
    while (*base != 10 && ((hex_value(s[q]) >= 0 && hex_value(s[q]) < *base) || s[q] == '_'))
        q++;
    if (*base != 10 && q > p + 2)
        return q;
    *base = 10;
    for (q = p + 1; s[q] == '0' || (s[q] == '_' && s[q + 1] == '0');)
        q++;
    return q;
}

static int lex_number(struct lexer *l)
{
    const char *s = l->t->src;
    char num[80];
    size_t p = l->pos, end = float_end(s, p), n = 0;
    bool is_float = end != 0;
    int base = 10;
    if (!is_float)
        end = int_end(s, p, &base);
    for (size_t i = base == 10 ? p : p + 2; i < end && n < sizeof num - 1; i++)
        if (s[i] != '_')
            num[n++] = s[i];
    num[n] = 0;
    struct token *k = NULL;
    int rc = add(l, is_float ? T_FLOAT : T_INT, p, &k);
    if (rc)
        return rc;
    errno = 0;
    if (is_float)
        k->f = strtod(num, NULL);
    else
        k->i = strtoll(num, NULL, base);
    if (n == sizeof num - 1 || (!is_float && errno))
        return tmpl_fail_at(l->t, (uint32_t)p, l->e, -EINVAL, "this number is too large");
    moved(l, end);
    return 0;
}

static enum tok_op op_at(const char *s, size_t *len)
{
    static const struct {
        char text[3];
        uint8_t op;
    } ops[] = {{"//", OP_FLOORDIV}, {"**", OP_POW},   {"==", OP_EQ},      {"!=", OP_NE},      {">=", OP_GE},
               {"<=", OP_LE},       {"+", OP_ADD},    {"-", OP_SUB},      {"/", OP_DIV},      {"*", OP_MUL},
               {"%", OP_MOD},       {"~", OP_TILDE},  {"[", OP_LBRACKET}, {"]", OP_RBRACKET}, {"(", OP_LPAREN},
               {")", OP_RPAREN},    {"{", OP_LBRACE}, {"}", OP_RBRACE},   {">", OP_GT},       {"<", OP_LT},
               {"=", OP_ASSIGN},    {".", OP_DOT},    {":", OP_COLON},    {"|", OP_PIPE},     {",", OP_COMMA},
               {";", OP_SEMI}};
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++) {
        *len = strlen(ops[i].text);
        if (!strncmp(s, ops[i].text, *len))
            return (enum tok_op)ops[i].op;
    }
    return OP_NONE;
}

static bool name_char(char c, bool first)
{
    return c == '_' || ((c | 32) >= 'a' && (c | 32) <= 'z') || (!first && digit(c));
}

/* One token inside a tag. open[*depth]: the closing bracket that is awaited. */
static int lex_one(struct lexer *l, char open[PARSE_DEPTH_MAX], size_t *depth)
{
    const char *s = l->t->src;
    size_t p = l->pos, len;
    char c = s[p];
    if (digit(c))
        return lex_number(l);
    if (c == '\'' || c == '"')
        return lex_string(l);
    if (name_char(c, true)) {
        size_t q = p;
        while (name_char(s[q], false))
            q++;
        moved(l, q);
        return add_text(l, T_NAME, p, s + p, q - p);
    }
    enum tok_op op = op_at(s + p, &len);
    if (!op)
        return tmpl_fail_at(l->t, (uint32_t)p, l->e, -EINVAL, "unexpected character %.*s",
                            (int)(utf8_next(s + p, l->t->n_src - p, &(uint32_t){0})), s + p);
    if (op == OP_LPAREN || op == OP_LBRACKET || op == OP_LBRACE) {
        if (*depth == PARSE_DEPTH_MAX)
            return tmpl_fail_at(l->t, (uint32_t)p, l->e, -E2BIG, "brackets are nested too deep");
        open[(*depth)++] = op == OP_LPAREN ? ')' : op == OP_LBRACKET ? ']' : '}';
    } else if (op == OP_RPAREN || op == OP_RBRACKET || op == OP_RBRACE) {
        if (!*depth || open[--*depth] != c)
            return tmpl_fail_at(l->t, (uint32_t)p, l->e, -EINVAL, "unexpected '%c'", c);
    }
    struct token *k = NULL;
    int rc = add(l, T_OP, p, &k);
    if (!rc)
        k->op = (uint8_t)op;
    moved(l, p + len);
    return rc;
}

/* The tokens of a block or a variable, up to and with its end. */
static int lex_tag(struct lexer *l, size_t open_at, bool variable)
{
    char open[PARSE_DEPTH_MAX];
    size_t depth = 0;
    for (;;) {
        size_t p = l->pos, end = 0;
        if (!depth && variable)
            end = at(l, p, "-}}") ? skip_space(l->t, p + 3) : at(l, p, "}}") ? p + 2 : 0;
        else if (!depth)
            end = close_end(l, p, "%}");
        if (end) {
            moved(l, end);
            return add(l, variable ? T_VAR_END : T_BLOCK_END, p, NULL);
        }
        size_t q = skip_space(l->t, p);
        if (q > p) {
            moved(l, q);
            continue;
        }
        if (p >= l->t->n_src)
            return tmpl_fail_at(l->t, (uint32_t)open_at, l->e, -EINVAL, "this tag is not closed");
        int rc = lex_one(l, open, &depth);
        if (rc)
            return rc;
    }
}

/* Text up to the next tag, and that tag. */
static int lex_next(struct lexer *l)
{
    const char *s = l->t->src;
    size_t from = l->pos, p = from, n = l->t->n_src;
    while (p < n && !(s[p] == '{' && (s[p + 1] == '%' || s[p + 1] == '{' || s[p + 1] == '#')))
        p++;
    bool tag = p < n, variable = tag && s[p + 1] == '{';
    size_t to = tag ? text_end(l, from, p, s[p + 2], variable) : n;
    int rc = to > from ? add_text(l, T_DATA, from, s + from, to - from) : 0;
    if (rc || !tag) {
        moved(l, n);
        return rc;
    }
    bool raw = false;
    if (s[p + 1] == '%') {
        rc = lex_raw(l, p, &raw);
        if (rc || raw)
            return rc;
    }
    moved(l, p + 2 + (s[p + 2] == '-' || s[p + 2] == '+'));
    if (s[p + 1] == '#')
        return lex_comment(l, p);
    rc = add(l, variable ? T_VAR_BEGIN : T_BLOCK_BEGIN, p, NULL);
    return rc ? rc : lex_tag(l, p, variable);
}

int tmpl_lex(struct tmpl *t, struct arena *tmp, struct token **out, size_t *n, struct err *e)
{
    struct lexer l = {.t = t, .tmp = tmp, .line_starting = true, .e = e};
    int rc = 0;
    while (!rc && l.pos < t->n_src)
        rc = lex_next(&l);
    if (!rc)
        rc = add(&l, T_EOF, t->n_src, NULL);
    if (rc)
        return rc;
    *out = l.tok;
    *n = l.n;
    return 0;
}
