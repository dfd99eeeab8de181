/* grammar_schema.h - a JSON schema while it is compiled: nodes, expressions, conjunctions. See grammar_internal.h.
 *
 * A node is a subschema. A literal is a node held true or false. An expression is a set of literals. Expanding an
 * expression resolves every applicator (allOf, anyOf, oneOf, not, if, $ref) into branches; a branch is a set of types
 * and a list of atoms, the assertions that are left, and gives a shape a type.
 */
#ifndef CPET_MODEL_GRAMMAR_SCHEMA_H
#define CPET_MODEL_GRAMMAR_SCHEMA_H

#include "model/grammar_internal.h"

enum { T_NULL = 1, T_BOOL = 2, T_INT = 4, T_FRAC = 8, T_STR = 16, T_ARR = 32, T_OBJ = 64, T_ALL = 127 };
#define T_NUM (T_INT | T_FRAC)

enum { NODE_TRUE, NODE_FALSE }; /* the first two nodes */
#define LIT(node, negated) (2 * (node) + ((negated) ? 1 : 0))
#define LIT_NODE(lit) ((lit) / 2)
#define LIT_NEG(lit) (((lit)&1) != 0)

struct gnode {
    json_t *j;
    const char *path;         /* its JSON pointer */
    const char *base;         /* the URI that its references are relative to */
    uint32_t ref;             /* 1 + node that $ref leads to, once resolved */
    const struct gconj *flat; /* for gvalid; NULL: not made yet */
};

struct gids { /* $id and anchors: absolute URI -> subschema */
    const char *uri;
    json_t *j;
    const char *path, *base;
    bool dynamic;
};

struct gpattern {
    const char *text;
    struct gdfa *dfa;
};

struct gschema {
    json_t *root;
    json_t *made;   /* subschemas of our own making: {"const": ...} of an enum's parts */
    bool ref_alone; /* draft 7 and before: what stands beside $ref is ignored */
    struct gnode *node;
    size_t n_nodes, cap_nodes;
    uint32_t *slot; /* 1 + node, by json_t */
    size_t n_slots;
    struct gids *ids;
    size_t n_ids, cap_ids;
    struct gpattern *pattern;
    size_t n_patterns, cap_patterns;
    struct gdfa *format[32];
    struct gdfa *any;
};

/* The node of a subschema. -EINVAL when j is neither an object nor a boolean. */
int gnode_of(struct gctx *c, json_t *j, const char *path, const char *base, uint32_t *id);
/* A child's: path + "/" + key (escaped), or + "/" + index when key is NULL. */
int gnode_child(struct gctx *c, uint32_t parent, json_t *j, const char *key, const char *sub, size_t index,
                uint32_t *id);
int gnode_ref(struct gctx *c, uint32_t node, const char *keyword, uint32_t *id);
/* "#/a/b: KEYWORD what": -EINVAL. */
int gnode_bad(struct gctx *c, uint32_t node, const char *keyword, const char *what);
const char *gpath(struct gctx *c, const char *base, const char *key); /* NULL without memory */

int g_format(struct gctx *c, const char *name, bool negated, struct gdfa **out); /* *out untouched: none */
int g_pattern(struct gctx *c, const char *text, const char *path, struct gdfa **out);

enum gatom_kind {
    I_TYPE, /* n: a mask */
    I_LIT,  /* n: a literal */
    I_ENUM, /* value: an array, or with `single` the one value; negated: none of them */
    I_MIN,  /* value: a number; open */
    I_MAX,
    I_MULTIPLE, /* value; negated */
    I_RANGE,    /* n: 32 or 64, the integers of so many bits; 1: none (a double) */
    I_PATTERN,  /* value: a string; negated */
    I_FORMAT,
    I_MIN_LENGTH, /* n */
    I_MAX_LENGTH,
    I_ITEMS,     /* node whose items, prefixItems and additionalItems apply */
    I_ITEM_AT,   /* lit, n: the index */
    I_ALL_ITEMS, /* lit */
    I_MIN_ITEMS,
    I_MAX_ITEMS,
    I_CONTAINS, /* lit, n, m: from n to m items */
    I_UNIQUE,
    I_PROPS,    /* node whose properties, patternProperties and additionalProperties apply */
    I_REQUIRED, /* name */
    I_FORBID,   /* name */
    I_VALUE,    /* name, lit: where the property is there */
    I_WITNESS,  /* some key breaks node's patternProperties (n: 0) or additionalProperties (n: 1) */
    I_MIN_PROPS,
    I_MAX_PROPS,
    I_NAMES,  /* lit: of every key */
    I_REFUSED /* text: what cannot be held; of the types n */
};

struct gatom {
    enum gatom_kind kind;
    bool negated, open, single;
    uint32_t node, lit;
    uint64_t n, m;
    json_t *value;
    const char *name;
};

struct gitems { /* a list that branches share: the newest first */
    struct gatom a;
    const struct gitems *next;
    uint32_t count;
};

struct galt {
    struct gatom *item;
    size_t n;
};
struct gdisj {
    struct galt *alt;
    size_t n, cap;
    const struct gdisj *next; /* pending in the branch */
};

struct gconj {
    unsigned mask;
    bool flat;                  /* applicators are only listed: I_TYPE and I_LIT are atoms too */
    const struct gitems *atoms; /* none of I_TYPE, I_LIT */
    const struct gdisj *pending;
    const struct gitems *seen; /* literals already in: kind I_LIT */
};

/* What the assertions of a node say, held true (added to k) or false (as one disjunction of alternatives). */
int g_assert(struct gctx *c, struct grammar *g, struct gconj *k, uint32_t node);
int g_deny(struct gctx *c, uint32_t node, struct gdisj *d);
int gconj_add(struct gctx *c, struct grammar *g, struct gconj *k, const struct gatom *a);
int gdisj_alt(struct gctx *c, struct gdisj *d, const struct gatom *item, size_t n);

/* The expression of a set of literals. */
int gexpr_of(struct gctx *c, struct grammar *g, const uint32_t *lit, size_t n, uint32_t *id);
/* Surely without a value? Looks a few levels deep. */
int gexpr_empty(struct gctx *c, struct grammar *g, uint32_t id, int depth, bool *empty);
int gexpr_expand(struct gctx *c, struct grammar *g, uint32_t id);
/* An expression of its own with one shape. */
int gexpr_own(struct gctx *c, struct grammar *g, const struct gshape *s, uint32_t *id);

/* -ENOTSUP: what the node asks for cannot be enforced; c->where says so. */
int gshape_refused(struct gctx *c, uint32_t node, const char *what);
/* Builds the shapes of a branch (no I_ENUM held true in it) and adds them to x. */
int gshape_branch(struct gctx *c, struct grammar *g, struct gexpr *x, const struct gconj *k);
int gshape_add(struct gctx *c, struct grammar *g, struct gexpr *x, const struct gshape *s);
/* The shape of one value, and of any of some strings. */
int gshape_value(struct gctx *c, struct grammar *g, struct gexpr *x, json_t *v);
int gshape_words(struct gctx *c, struct grammar *g, struct gexpr *x, const struct grammar_text *words, size_t n);
int gshape_object(struct gctx *c, struct grammar *g, struct gexpr *x, const struct gconj *k);

/* Makes the items of an array differ. -EINVAL where they are not strings. After g_expand_all. */
int gunique_items(struct gctx *c, struct grammar *g, struct garray *a);

/* Does the literal hold of v? */
int gvalid(struct gctx *c, uint32_t lit, const json_t *v, bool *yes);
size_t g_characters(const char *s, size_t n);

/* json values that mean the same: 1 and 1.0 too. Counts steps; whoever compares many asks g_steps. */
bool gvalue_equal(struct gctx *c, const json_t *a, const json_t *b);
unsigned gvalue_type(const json_t *v);

#define G_EXPR_ANY 0   /* every value */
#define G_EXPR_NEVER 1 /* none */

#endif
