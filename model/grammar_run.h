/* grammar_run.h - a grammar at work: frames, stores, the vocabulary's trie, masks. See grammar_internal.h.
 *
 * A sequence stands at a set of configurations. A configuration is a stack of frames, and a stack is the index of its
 * top frame in a store, where equal stacks are one index. Frames never change; stepping makes new ones. All of this is
 * one thread's at a time but for the trie, which never changes, and the cache, which has a mutex.
 */
#ifndef CPET_MODEL_GRAMMAR_RUN_H
#define CPET_MODEL_GRAMMAR_RUN_H

#include "model/grammar_internal.h"

#define G_HEAVY 16      /* of them, whose part of a mask takes a walk over most of the vocabulary */
#define G_CONFIGS 128   /* of one state; further ones are dropped: fewer texts are allowed, none that is wrong */
#define G_TOKEN_MAX 255 /* bytes; longer tokens are never allowed */

enum gframe_kind {
    F_END,     /* index 0: under everything; the text is complete */
    F_START,   /* a value of expression a comes */
    F_RAW,     /* in the text of a regular expression: as F_STRING */
    F_STRING,  /* in a string: a: state, b: characters so far (capped), pend; h and used as in F_KEY where it is unique
                */
    F_KEY,     /* in a key, on its object: a: state of the other keys, b: node of the names, G_INF: none; h, used */
    F_NUMBER,  /* a: state */
    F_LITERAL, /* a: characters of null, false or true so far */
    F_OBJECT,  /* a: the next property, b: members so far (capped), phase, ws, used: keys that were not declared;
                  h: the expression of the value that comes */
    F_ARRAY,   /* a: items so far (capped), b: counted ones (capped), phase, ws */
    F_PREFIX,  /* the beginnings of a key: h, up: the one before */
    F_USED     /* keys so far: h: its hash, used: its beginnings, a: how many, up: those before */
};
enum { PH_OPEN, PH_COLON, PH_VALUE, PH_AFTER, PH_NEXT };

struct gframe {
    uint32_t up, used, shape, a, b, pend;
    uint64_t h;
    uint8_t kind, phase, ws, pad[5];
    /* not part of what it is: */
    uint32_t chain;
    uint32_t stamp;
    uint64_t id[2]; /* a hash of all that it is, the frames below included */
};

struct gstore {
    struct gframe *f;
    uint32_t n, cap;
    uint32_t *bucket; /* [2 * cap] 1 + index */
    bool no_memory;
};

int gstore_open(struct gstore *s); /* with F_END; -ENOMEM */
void gstore_free(struct gstore *s);
/* The index of the frame, added where it is new; G_INF and no_memory without memory. */
uint32_t gstore_put(struct gstore *s, const struct gframe *f);
void gstore_cut(struct gstore *s, uint32_t n); /* forgets the frames from n on */

struct gconfigs {
    uint32_t id[G_CONFIGS];
    uint32_t n;
};

/* Appends what configuration `top` becomes by a byte; nothing: it cannot take it. */
void gstep(const struct grammar *g, struct gstore *s, uint32_t top, unsigned char byte, struct gconfigs *out);
/* May the text end here? May it go on? */
bool gends(const struct grammar *g, const struct gstore *s, uint32_t top);
bool gmore(const struct grammar *g, const struct gstore *s, uint32_t top);

/* One byte within the top frame alone, where it is F_RAW, F_STRING, F_KEY or F_NUMBER. */
enum gleaf { LEAF_BAD, LEAF_IN, LEAF_CLOSED, LEAF_PASS }; /* PASS: the frame ended before this byte */
struct gwindow {                                          /* which keys may come: properties lo..hi, and others */
    uint32_t lo, hi;
    bool rest;
    bool keep; /* the beginnings of the key are kept: for a step that is taken, not tried */
};
struct gwindow gkey_window(const struct grammar *g, const struct gstore *s, const struct gframe *object);
/* f becomes the frame after it. s grows by beginnings of keys only. */
enum gleaf gleaf_step(const struct grammar *g, struct gstore *s, struct gframe *f, const struct gwindow *w,
                      unsigned char byte);
/* Whether the frame may close depends on those below it: on the words used so far. */
bool gleaf_checked(const struct grammar *g, const struct gframe *f);
/* Is making the frame's part of a mask much work, when it is new? */
bool gleaf_heavy(const struct grammar *g, const struct gframe *f);
/* The automaton in whose state f->a the frame stays as long as characters lead back to it; NULL: f's future depends on
 * more. *room: how many characters may come at least. *free: nothing but the automaton limits what may come. */
const struct gdfa *gleaf_loop(const struct grammar *g, const struct gframe *f, const struct gwindow *w, uint32_t *room,
                              bool *free);

/* ---- vocabulary ---- */

struct grammar_vocab {       /* nodes in preorder; 0: the root, of no byte */
    uint32_t vocab, n_words; /* ids; words of a mask */
    uint32_t n_nodes, longest;
    uint8_t *byte;
    uint8_t *depth;
    uint8_t *tail;        /* the bytes of its longest token below */
    struct gbytes *below; /* the bytes of all tokens below */
    uint32_t *skip;       /* the first node behind its subtree */
    uint32_t *parent;
    uint32_t *first; /* [n_nodes + 1] its tokens: token[first[k]..first[k + 1]) */
    int32_t *token;
    int32_t *eos;
    size_t n_eos;
    uint32_t *length; /* [vocab] bytes of a token; 0: never allowed */
    uint32_t *at;     /* [vocab] its node */
};

static inline void gbit(uint32_t *mask, int32_t token)
{
    mask[token / 32] |= (uint32_t)1 << (token % 32);
}

/* ---- masks ---- */

struct gcache;
int gcache_create(const struct grammar_vocab *v, size_t bytes, struct gcache **out);
void gcache_free(struct gcache *c); /* takes NULL */

struct gwalk {    /* scratch of one state */
    uint32_t *id; /* configurations, level by level */
    size_t n, cap;
};

/* Adds to mask the tokens that configuration `top` allows, ends aside. -ENOMEM. */
int gmask(const struct grammar *g, struct gstore *s, struct gwalk *w, uint32_t top, uint32_t *mask);

#endif
