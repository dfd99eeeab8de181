/* template_internal.h - what the template_*.c files share. Not for others.
 *
 * A value (struct tv) is 16 bytes and is passed by copy; what it points to lives in the arena of the rendering, or, for
 * constants, in that of the template, and is never changed after it was made. Two exceptions: a namespace's members,
 * and how far a generator or a loop was read. Every function here returns 0 or a negative errno value with the error
 * already written to ctx->e; a negative one ends the rendering.
 */
#ifndef CPET_MODEL_TEMPLATE_INTERNAL_H
#define CPET_MODEL_TEMPLATE_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/arena.h"
#include "model/template.h"

/* ---- values ---- */

enum tv_kind {
    TV_MISSING, /* an argument that was not given; never seen by a template */
    TV_UNDEF,   /* aux: enum undef_why; s: the name, or the message */
    TV_NONE,
    TV_BOOL,
    TV_INT,
    TV_FLOAT,
    TV_STR, /* aux: 1 for text marked safe (adding to it escapes the other side, as jinja2's Markup does) */
    TV_LIST,
    TV_TUPLE,
    TV_RANGE,
    TV_GEN,  /* what map, select and reverse give: readable once, no length, no index */
    TV_VIEW, /* dict.items(), keys(), values(); aux: which */
    TV_DICT,
    TV_NS,
    TV_MACRO,
    TV_FUNC,   /* fn: a built-in function */
    TV_METHOD, /* m: a method and what it is bound to */
    TV_LOOP,
};

enum undef_why { UNDEF_NAME, UNDEF_ATTR, UNDEF_HINT };

struct tv {
    uint8_t kind, aux;
    uint8_t owner; /* of an undefined attribute: the kind that lacks it */
    union {
        bool b;
        int64_t i;
        double f;
        const struct tstr *s;
        struct tlist *l;
        struct tdict *d;
        const struct tmacro *macro;
        const struct fn_spec *fn;
        const struct tmethod *m;
        struct tloop *loop;
    };
};

struct tstr {
    const char *p; /* valid UTF-8, terminated */
    size_t len;    /* bytes */
    size_t chars;  /* code points; equal to len when all is ASCII */
};

struct tlist {
    struct tv *v; /* NULL for a range */
    size_t n;
    int64_t start, step; /* of a range */
    size_t pos;          /* of a generator: elements already read */
};

struct tpair {
    struct tv k, v;
    uint32_t hash;
};

struct tdict {
    struct tpair *e; /* in the order of insertion */
    size_t n, cap;
    uint32_t *index; /* open addressing over e, entries are position + 1; NULL below 9 pairs */
    size_t n_index;  /* a power of two */
};

struct tmethod {
    struct tv self;
    const struct fn_spec *fn;
};

struct tmacro {
    const struct node *def;
    struct scope *scope; /* where it was defined */
};

/* ---- the tree ---- */

enum node_kind {
    /* statements */
    N_TEXT,        /* v */
    N_OUTPUT,      /* a */
    N_IF,          /* list: test, block, test, block, ...; b: else block or NULL */
    N_FOR,         /* a: target, b: iterable, c: test or NULL, list[0]: body, list[1]: else or NULL; op: uses `loop` */
    N_SET,         /* a: target, b: value */
    N_SETBLOCK,    /* a: target, b: body, c: filter chain over N_HOLE or NULL */
    N_FILTERBLOCK, /* b: body, c: filter chain */
    N_WITH,        /* list: target, value, ...; b: body */
    N_MACRO,       /* id: its name; list: parameters (N_NAME); kw: defaults by parameter; b: body; op: MACRO_ flags */
    N_CALLBLOCK,   /* a: the call, b: an N_MACRO that is the caller */
    N_SCOPED,      /* b: body, in its own scope (generation) */
    N_BREAK,
    N_CONTINUE,
    N_BLOCK, /* list */
    /* expressions */
    N_CONST, /* v */
    N_NAME,  /* id */
    N_NSREF, /* id, v: attribute */
    N_LIST,
    N_TUPLE,
    N_DICT,   /* list: key, value, ... */
    N_ATTR,   /* a, v: name */
    N_ITEM,   /* a, b */
    N_SLICE,  /* a, list: start, stop, step (NULL where left out) */
    N_CALL,   /* a, list, kw */
    N_FILTER, /* a, fn, list, kw */
    N_TEST,   /* a, fn, list, kw */
    N_NOT,
    N_NEG,
    N_POS,
    N_BIN, /* op, a, b */
    N_AND,
    N_OR,
    N_COMPARE, /* a; list: right-hand sides; ops: operators */
    N_COND,    /* a: then, b: test, c: else or NULL */
    N_HOLE,    /* the text that a filter block works on */
};

enum tok_op {
    OP_NONE,
    OP_ADD,
    OP_SUB,
    OP_MUL,
    OP_DIV,
    OP_FLOORDIV,
    OP_MOD,
    OP_POW,
    OP_TILDE,
    OP_EQ,
    OP_NE,
    OP_LT,
    OP_LE,
    OP_GT,
    OP_GE,
    OP_IN,
    OP_NOTIN,
    OP_ASSIGN,
    OP_DOT,
    OP_COLON,
    OP_PIPE,
    OP_COMMA,
    OP_SEMI,
    OP_LPAREN,
    OP_RPAREN,
    OP_LBRACKET,
    OP_RBRACKET,
    OP_LBRACE,
    OP_RBRACE,
};

enum { MACRO_CALLER = 1, MACRO_VARARGS = 2, MACRO_KWARGS = 4 };

struct kwarg {
    const struct tstr *name;
    struct node *value;
};

struct node {
    uint8_t kind, op;
    uint16_t depth; /* of the tree below, for the bound on recursion */
    uint32_t pos;   /* in the source */
    uint32_t id;    /* of a name */
    uint32_t n, n_kw;
    struct tv v;
    struct node *a, *b, *c;
    struct node **list;
    struct kwarg *kw;
    uint8_t *ops;
    const struct fn_spec *fn;
};

/* Names that the engine itself sets; they are interned first, in this order. */
enum { ID_LOOP, ID_CALLER, ID_VARARGS, ID_KWARGS, ID_FIXED };

struct tmpl {
    struct arena *arena;
    const char *src; /* with its line ends made \n */
    size_t n_src;
    struct node *root;
    const struct tstr **names;
    uint32_t n_names, cap_names;
};

/* ---- tokens ---- */

enum tok_kind {
    T_EOF,
    T_DATA,
    T_VAR_BEGIN,
    T_VAR_END,
    T_BLOCK_BEGIN,
    T_BLOCK_END,
    T_NAME,
    T_STRING,
    T_INT,
    T_FLOAT,
    T_OP
};

struct token {
    uint8_t kind, op;
    uint32_t pos;
    const struct tstr *s; /* data, name, string */
    union {
        int64_t i;
        double f;
    };
};

/* Cuts t->src into tokens, allocated in tmp; the texts go to t->arena. The last is T_EOF. */
int tmpl_lex(struct tmpl *t, struct arena *tmp, struct token **out, size_t *n, struct err *e);
/* Line and column (in characters), from 1, of a position. */
void tmpl_where(const struct tmpl *t, uint32_t pos, unsigned *line, unsigned *col);
int tmpl_fail_at(const struct tmpl *t, uint32_t pos, struct err *e, int code, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));

/* ---- the parser ---- */

struct parser {
    struct tmpl *t;
    const struct token *tok;
    size_t at, n;
    unsigned depth, loops; /* nesting; loops open inside the current macro */
    uint8_t macro_flags;   /* MACRO_ names read so far in the macro at hand */
    bool uses_loop;        /* `loop` was read in the loop at hand */
    struct err *e;
};

struct node *pnode(struct parser *p, enum node_kind kind, uint32_t pos);
int pfail(struct parser *p, uint32_t pos, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
bool pis(const struct parser *p, const char *name);
bool pis_op(const struct parser *p, enum tok_op op);
bool pskip(struct parser *p, const char *name);
bool pskip_op(struct parser *p, enum tok_op op);
int pexpect_op(struct parser *p, enum tok_op op);
int pname(struct parser *p, const struct tstr **out);
int pintern(struct parser *p, const struct tstr *name, uint32_t *id);
/* Appends to n->list; sets the depth. Fails when the tree is too deep. */
int pappend(struct parser *p, struct node *n, struct node *child);
int pdepth(struct parser *p, struct node *n, const struct node *child);
int pexpr(struct parser *p, bool condexpr, struct node **out);
/* end: a name that ends the tuple (`in`), or NULL. simplified: assignment targets only. */
int ptuple(struct parser *p, bool condexpr, const char *end, struct node **out);
int ptarget(struct parser *p, const char *end, bool namespaces, struct node **out);
int pfilters(struct parser *p, struct node *inner, bool inline_first, struct node **out);
int psignature(struct parser *p, struct node *macro);
#define PARSE_DEPTH_MAX 120u

/* ---- rendering ---- */

struct binding {
    uint32_t id;
    struct tv v;
};

struct scope {
    struct scope *up;
    struct binding *b;
    uint32_t n, cap;
};

struct tctx {
    const struct tmpl *t;
    const json_t *vars;
    struct tv *globals; /* by name id; TV_MISSING until looked up */
    struct scope *scope;
    struct arena *arena;
    struct buf *out;
    struct err *e;
    size_t steps, max_steps, max_depth, max_output;
    size_t depth;
    const struct node *at; /* for the place in an error */
    struct tv hole;
};

struct args {
    const struct tv *v;
    size_t n;
    const struct tstr **kw_name;
    const struct tv *kw;
    size_t n_kw;
};

typedef int (*builtin_fn)(struct tctx *c, struct tv self, const struct args *a, struct tv *out);

/* A filter, test, method or function. max FN_RAW: the function reads a->kw itself; else the arguments are matched to
 * params, a->v holds max of them (TV_MISSING where not given) and a->n_kw is 0. fn NULL: known to Python, refused when
 * called. */
#define FN_RAW 255
struct fn_spec {
    const char *name;
    builtin_fn fn;
    uint8_t min, max;
    const char *params[4];
};

const struct fn_spec *filter_find(const char *name);
const struct fn_spec *seq_filter_find(const char *name);
const struct fn_spec *test_find(const char *name);
const struct fn_spec *function_find(const char *name);
const struct fn_spec *str_method_find(const char *name);
const struct fn_spec *other_method_find(enum tv_kind kind, const char *name);
bool method_known(const char *name); /* of any kind */

int fn_call(struct tctx *c, const struct fn_spec *fn, const char *what, struct tv self, const struct args *a,
            struct tv *out);
int ev(struct tctx *c, const struct node *n, struct tv *out);
int exec(struct tctx *c, const struct node *n); /* also FLOW_BREAK, FLOW_CONTINUE */
enum { FLOW_BREAK = 1, FLOW_CONTINUE = 2 };
/* An N_CALL; caller: a macro to pass as `caller`, or NULL. */
int ev_call(struct tctx *c, const struct node *n, const struct tv *caller, struct tv *out);
int call_value(struct tctx *c, struct tv f, const struct args *a, struct tv *out);
int call_macro(struct tctx *c, const struct tmacro *m, const struct args *a, struct tv *out);
/* Runs a body with the output going to a string. */
int exec_captured(struct tctx *c, const struct node *body, struct tv *out);
int assign(struct tctx *c, const struct node *target, struct tv v);
int scope_push(struct tctx *c, struct scope *up);
int scope_set(struct tctx *c, uint32_t id, struct tv v);
int rfail(struct tctx *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int rnomem(struct tctx *c);
int charge(struct tctx *c, size_t steps);
int enter(struct tctx *c); /* one level deeper; pair with c->depth-- */
int fail_undefined(struct tctx *c, struct tv v);

/* loops */
struct tloop {
    struct tlist *src;
    const struct node *target, *test; /* test NULL: every element */
    size_t next;                      /* in src */
    int64_t index0;
    struct tv before, current, after; /* TV_MISSING where there is none */
    struct tlist *rest;               /* what `length` had to read ahead, or NULL */
    size_t rest_at;
    int64_t length;      /* -1: not known yet */
    struct scope *scope; /* around the loop; the test is evaluated on top of it */
    bool ended;
};
int loop_next(struct tctx *c, struct tloop *l, bool *more);
int loop_attr(struct tctx *c, struct tloop *l, const char *name, struct tv *out, bool *found);

/* values */
static inline struct tv tv_none(void)
{
    return (struct tv){.kind = TV_NONE};
}
static inline struct tv tv_bool(bool b)
{
    return (struct tv){.kind = TV_BOOL, .b = b};
}
static inline struct tv tv_int(int64_t i)
{
    return (struct tv){.kind = TV_INT, .i = i};
}
static inline struct tv tv_float(double f)
{
    return (struct tv){.kind = TV_FLOAT, .f = f};
}
static inline struct tv tv_of_str(const struct tstr *s)
{
    return (struct tv){.kind = TV_STR, .s = s};
}
static inline struct tv tv_of_list(enum tv_kind kind, struct tlist *l)
{
    return (struct tv){.kind = (uint8_t)kind, .l = l};
}
static inline bool tv_given(struct tv v)
{
    return v.kind != TV_MISSING;
}

const struct tstr *tstr_make(struct arena *a, const char *p, size_t len); /* copies; NULL without memory */
bool tstr_is(const struct tstr *s, const char *lit);
bool tstr_eq(const struct tstr *a, const struct tstr *b);
size_t tstr_offset(const struct tstr *s, size_t chr); /* the byte where code point chr begins (chr <= chars) */
int str_make(struct tctx *c, const char *p, size_t len, struct tv *out);
int str_of_buf(struct tctx *c, struct buf *b, struct tv *out); /* frees b */
struct tlist *list_make(struct tctx *c, size_t n);             /* NULL: failed, error set */
struct tv list_get(const struct tlist *l, size_t i);
struct tdict *dict_make(struct tctx *c, size_t cap);
int dict_set(struct tctx *c, struct tdict *d, struct tv k, struct tv v);
/* found false when absent; -EINVAL for a key that cannot be one. */
int dict_get(struct tctx *c, const struct tdict *d, struct tv k, struct tv *out, bool *found);
bool dict_get_str(const struct tdict *d, const struct tstr *k, struct tv *out);
bool tv_hashable(struct tv v);
const char *tv_type(enum tv_kind kind);
struct tv tv_undef(struct tv owner, const struct tstr *name);
struct tv tv_undef_hint(struct tctx *c, const char *msg);
bool tv_truth(struct tv v);
int tv_equal(struct tctx *c, struct tv a, struct tv b, bool *eq);
int tv_compare(struct tctx *c, struct tv a, struct tv b, int *cmp); /* fails where Python has no order */
bool tv_number(struct tv v, double *f);
bool tv_as_int(struct tv v, int64_t *i); /* ints and booleans */
int tv_of_json(struct tctx *c, const json_t *j, struct tv *out);
/* The elements, for iteration; a generator is spent by it. */
int tv_elements(struct tctx *c, struct tv v, struct tlist **out);
int tv_contains(struct tctx *c, struct tv container, struct tv item, bool *in);
int tv_getattr(struct tctx *c, struct tv v, const struct tstr *name, struct tv *out);
int tv_getitem(struct tctx *c, struct tv v, struct tv key, struct tv *out);
int tv_slice(struct tctx *c, struct tv v, const struct tv bound[3], struct tv *out);
/* Appends str(v), or repr(v). */
int tv_print(struct tctx *c, struct tv v, bool repr, struct buf *out);
int tv_str(struct tctx *c, struct tv v, struct tv *out); /* str(v) as a value */
void float_repr(double f, char out[40]);
int json_dump(struct tctx *c, struct tv v, const struct args *a, struct tv *out);
int tv_binary(struct tctx *c, enum tok_op op, struct tv a, struct tv b, struct tv *out);
int text_escape(struct tctx *c, struct tv v, struct tv *out);
int buf_check(struct tctx *c, struct buf *b); /* turns a failed append into an error */

/* text, as Python's str does it */
bool uc_space(uint32_t cp);
bool uc_printable(uint32_t cp);
enum text_case { CASE_LOWER, CASE_UPPER, CASE_TITLE, CASE_CAPITAL, CASE_JINJA_TITLE };
int text_case(struct tctx *c, struct tv s, enum text_case how, struct tv *out);
int text_strip(struct tctx *c, struct tv s, struct tv chars, bool left, bool right, struct tv *out);
int text_replace(struct tctx *c, const struct tstr *s, const struct tstr *old, const struct tstr *new_, int64_t count,
                 struct tv *out);
bool text_number(const struct tstr *s, bool integer, int base, struct tv *out);
int text_join(struct tctx *c, const struct tstr *sep, const struct tlist *l, bool convert, struct tv *out);

#endif
