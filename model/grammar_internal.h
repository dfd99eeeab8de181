/* grammar_internal.h - what the files of the grammar share. See grammar.h for what it is for.
 *
 * Compilation: a schema is a tree of JSON; an expression is a set of its subschemas, each held true or false; each
 * expression expands into shapes of one type each, whose children are expressions again (grammar_expand.c,
 * grammar_shape.c). Strings, keys and numbers are automata (grammar_regex.c, grammar_dfa.c, grammar_number.c). A state
 * is a set of stacks of frames (grammar_step.c); masks come from walking the vocabulary's trie (grammar_mask.c).
 */
#ifndef CPET_MODEL_GRAMMAR_INTERNAL_H
#define CPET_MODEL_GRAMMAR_INTERNAL_H

#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>

#include "common/arena.h"
#include "model/grammar.h"

#define G_INF UINT32_MAX
#define G_CP_MAX 0x10FFFFu

/* ---- compile context: sticky bounds ---- */

struct gctx {
    struct arena *a;   /* what the grammar keeps */
    struct arena *tmp; /* dropped after compilation */
    struct grammar_limits lim;
    uint64_t steps;
    bool full; /* the last allocation that failed did so at the limit */
    struct err *e;
    const char *where; /* the JSON pointer that work is being done for, "" for none; for messages */
    struct gschema *schema;
    struct gnum_made *numbers;
};

/* n * size bytes of the grammar's memory, cleared; NULL with c->e filled (g_memory_code) past the limit or without
 * memory. g_tmp: the same, gone after compilation. */
void *g_alloc(struct gctx *c, size_t n, size_t size);
void *g_tmp(struct gctx *c, size_t n, size_t size);
int g_memory_code(struct gctx *c); /* -E2BIG or -ENOMEM: which it was */
int g_steps(struct gctx *c, uint64_t n);

/* A growable list of 32-bit numbers in the temporary arena. */
struct gvec {
    uint32_t *p;
    size_t n, cap;
};
int g_push(struct gctx *c, struct gvec *v, uint32_t x);

/* Sets of code points: sorted, disjoint, not touching ranges. */
struct grange {
    uint32_t lo, hi;
};
struct gset {
    struct grange *r;
    size_t n, cap;
};
int gset_add(struct gctx *c, struct gset *s, uint32_t lo, uint32_t hi); /* any order; gset_norm afterwards */
void gset_norm(struct gset *s);
int gset_invert(struct gctx *c, const struct gset *s, struct gset *out); /* s normal */

/* ---- automata over code points ---- */

struct gbytes { /* a set of ASCII bytes; 0 stands for all that a string cannot take as they are: quote, backslash,
                   control characters, and bytes beyond ASCII */
    uint64_t w[2];
};

/* State 0 is dead, 1 the start. Only states from which a label can be reached are ever entered: an edge that leads
 * nowhere leads to 0. */
struct gdfa {
    uint32_t n, n_classes, n_ranges;
    uint32_t *lo;        /* [n_ranges] the first code point of each range; lo[0] = 0 */
    uint16_t *cls;       /* [n_ranges] its class */
    uint16_t ascii[128]; /* classes of ASCII */
    uint32_t *next;      /* [n][n_classes] */
    uint32_t *label;     /* [n] 0: not accepting */
    uint32_t *dist;      /* [n] characters to the nearest accepting state; G_INF: none */
    bool *self;          /* [n] every code point leads back here */
    struct gbytes *open; /* [n] the printable ASCII that may come next, but for quote and backslash */
    uint32_t *run;       /* [n] so many characters of it at least may come, whichever they are */
};

/* The automaton of a regular expression. search: it may match anywhere (JSON schema's pattern); else the whole text.
 * Errors name the offset in the expression. */
int gdfa_regex(struct gctx *c, const char *text, size_t n, bool search, struct gdfa **out);
/* Exactly these words (valid UTF-8), each labelled 1 + its index (the first of equal ones). */
int gdfa_words(struct gctx *c, const struct grammar_text *words, size_t n, struct gdfa **out);
/* Everything (label 1), and texts of min to max characters. */
int gdfa_any(struct gctx *c, struct gdfa **out);
int gdfa_length(struct gctx *c, uint32_t min, uint32_t max, struct gdfa **out);
/* All parts side by side; label(arg, labels of the parts) decides. Part i is NULL-free; 1 <= k <= G_PARTS. */
#define G_PARTS 24
typedef int gdfa_label(void *arg, const uint32_t *labels, uint32_t *out);
int gdfa_product(struct gctx *c, struct gdfa *const *part, size_t k, gdfa_label *label, void *arg, struct gdfa **out);
struct galternatives { /* of parts: all of [first[i], first[i + 1]) hold, for one i */
    size_t first[G_PARTS + 1], n;
};
int gdfa_union(struct gctx *c, struct gdfa *const *part, const struct galternatives *a, struct gdfa **out);
/* Fills ascii, dist, self, open and run, and drops edges that lead nowhere. */
int gdfa_finish(struct gctx *c, struct gdfa *d);

static inline uint32_t gdfa_class(const struct gdfa *d, uint32_t cp)
{
    if (cp < 128)
        return d->ascii[cp];
    size_t a = 0, b = d->n_ranges;
    while (b - a > 1) {
        size_t m = (a + b) / 2;
        if (d->lo[m] <= cp)
            a = m;
        else
            b = m;
    }
    return d->cls[a];
}

static inline uint32_t gdfa_step(const struct gdfa *d, uint32_t s, uint32_t cp)
{
    return d->next[(size_t)s * d->n_classes + gdfa_class(d, cp)];
}

/* The label of text[0..n) (valid UTF-8), 0 when it is not accepted. */
uint32_t gdfa_match(const struct gdfa *d, const char *text, size_t n);
/* How many words lie behind each state: [n], G_WORDS_INF beyond 32 bits. */
#define G_WORDS_INF UINT64_MAX
int gdfa_count(struct gctx *c, const struct gdfa *d, uint64_t **out);

/* ---- numbers ---- */

#define G_DIGITS 48
/* An exact decimal: sign, digits d[0..n_int) before the point and d[n_int..n) after it, no superfluous zeros. */
struct gdec {
    bool neg;
    int n_int, n;
    char d[G_DIGITS]; /* '0'..'9' */
};
/* false: it has no such form (too large or too small). */
bool gdec_of(const json_t *number, struct gdec *out);
int gdec_cmp(const struct gdec *a, const struct gdec *b);

struct gnum_spec {
    bool integer, fraction; /* values that are integers, values that are not */
    bool has_lo, has_hi, lo_open, hi_open;
    struct gdec lo, hi;
    uint32_t mod; /* 0: none; a multiple of mod * 10^-mod_scale */
    int mod_scale;
    uint32_t n_not_mod, not_mod[4]; /* integers that are no multiples of these */
};
#define GNUM_SYMBOLS 15 /* 0-9 - + . e E */
struct gnum {
    uint32_t n;     /* states; 0 dead, 1 start */
    uint32_t *next; /* [n][GNUM_SYMBOLS] */
    bool *accept;
    bool *more; /* [n] a further character may follow */
};
struct gnum_made { /* numbers with equal bounds share one automaton */
    struct gnum_spec spec;
    struct gnum *num;
    struct gnum_made *next;
};
/* *out = NULL when no number fits. */
int gnum_build(struct gctx *c, const struct gnum_spec *s, struct gnum **out);
int gnum_symbol(unsigned char byte); /* -1: none */

/* ---- shapes ---- */

enum gkind { G_NULL, G_FALSE, G_TRUE, G_NUMBER, G_STRING, G_ARRAY, G_OBJECT };

struct gstring {
    struct gdfa *dfa;
    uint32_t min, max; /* characters; G_INF: no end */
    uint32_t *need;    /* [n][min + 1] fewest characters, at least k, from a state to acceptance; NULL when min is 0 */
    uint32_t id;       /* equal strings have equal ids */
    bool unique;       /* an item of an array whose items differ: then min is 0 and max G_INF */
    uint64_t *words;   /* [n] of a unique one: how many strings lie behind a state; NULL: it takes everything */
};

/* Items are prefix[i], then item. Where has is set, an item is one of two kinds: counted, of the expression that takes
 * has in, or not counted: other (prefix and item are then of counted ones). */
struct garray {
    uint32_t *prefix; /* [n_prefix] expressions */
    uint32_t n_prefix, item, min, max;
    bool has;
    const char *unique; /* while compiling: where it is asked for that items differ; NULL: nowhere */
    uint32_t *other;    /* [n_prefix + 1] what an item that is not counted is */
    uint32_t has_min, has_max;
};

struct gprop {
    struct grammar_text name;
    uint32_t expr;
    bool required;
};
struct gkeynode {      /* of the trie of declared names, over code points */
    uint32_t first, n; /* children, sorted by cp */
    uint32_t lo, hi;   /* the names below: order[lo..hi) */
    uint32_t cp;
    uint32_t label; /* 1 + index of the property that ends here; 0: none; G_INF: one that may not come */
};
#define G_REST_MAX 1024u /* keys of one object that are not declared, where rest takes everything */
#define G_REST_FEW 128u  /* and where it does not */
struct gobject {
    struct gprop *prop;
    uint32_t n_props;
    struct grammar_text *never; /* [n_never] names that may not come, where rest takes everything */
    uint32_t n_never;
    struct gkeynode *trie; /* [n_trie] 0: the root; NULL without properties */
    uint32_t *order;       /* [n_props + n_never] labels in the order of their names */
    uint32_t n_trie;
    uint32_t *required_after; /* [n_props + 1] how many of prop[i..) are required */
    uint32_t *next_required;  /* [n_props + 1] the first required one at or after i; n_props: none */
    struct gdfa *rest;        /* keys that are not declared; NULL: none may come. Declared names are not in it, but for
                                 one that takes everything */
    uint32_t *rest_expr;      /* [n_rest] the value's expression, of label - 1 */
    uint32_t n_rest;
    uint64_t *words; /* [rest->n] how many keys lie behind a state; NULL: rest takes everything */
    uint32_t min, max;
};

struct gshape {
    enum gkind kind;
    bool empty;
    union {
        struct gnum *num;
        struct gstring str;
        struct garray arr;
        struct gobject obj;
    } u;
};

struct gexpr {
    uint32_t *lit; /* [n_lit] sorted: 2 * schema + (held false) */
    uint32_t n_lit;
    bool expanded, busy;
    bool reached;        /* from the root */
    const char *refused; /* what cannot be held in a branch of it; NULL: nothing */
    uint32_t *shape;     /* [n_shapes] */
    uint32_t n_shapes;
    uint32_t height;   /* of its smallest value; G_INF: it has none */
    uint64_t first[4]; /* the bytes that a value can begin with */
};

struct grammar {
    atomic_uint refs;
    enum grammar_kind kind;
    const struct grammar_vocab *vocab;
    struct arena *a;
    struct gexpr **expr;
    uint32_t n_exprs, cap_exprs, root;
    uint32_t *expr_slot; /* while compiling: by literals */
    struct gshape **shape;
    uint32_t n_shapes, cap_shapes;
    struct gstring text; /* of GRAMMAR_REGEX and GRAMMAR_CHOICE */
    struct gcache *cache;
};

/* ---- schemas (grammar_schema.c) ---- */

struct gschema;
/* Parses the text and finds ids and anchors; lasts as long as c. */
int gschema_open(struct gctx *c, const char *text, size_t n, struct gschema **out);
void gschema_close(struct gschema *s); /* the JSON tree (takes NULL); the rest is in the arenas */

/* Builds g's expressions and shapes: of the schema in c, or (c->schema NULL) of any object. */
int g_expand_all(struct gctx *c, struct grammar *g);
int g_finalise(struct gctx *c, struct grammar *g); /* after it, every expression that is left has a value */

/* Can an array with idx items so far, cnt of them counted, be completed? */
bool garray_open(const struct grammar *g, const struct garray *a, uint32_t idx, uint32_t cnt);

#endif
