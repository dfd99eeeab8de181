/* grammar_nfa.h - nondeterministic automata over code points, on the way from an expression to a struct gdfa. They live
 * in the compile context's temporary arena. */
#ifndef CPET_MODEL_GRAMMAR_NFA_H
#define CPET_MODEL_GRAMMAR_NFA_H

#include "model/grammar_internal.h"

#define G_NFA_MAX 200000u /* nodes */

enum gnfa_kind {
    N_SPLIT,    /* to a and b */
    N_SET,      /* a code point of set b, then a */
    N_BEGIN,    /* at the very beginning, to a */
    N_END,      /* at the very end, to a */
    N_MATCH,    /* accepts with label a when nothing follows */
    N_MATCH_ALL /* accepts with label a whatever follows */
};
struct gnfa_node {
    enum gnfa_kind kind;
    uint32_t a, b;
};
struct gnfa {
    struct gnfa_node *node;
    size_t n, cap;
    struct gset *set;
    size_t n_sets, cap_sets;
    uint32_t start;
};

int gnfa_node(struct gctx *c, struct gnfa *f, enum gnfa_kind kind, uint32_t a, uint32_t b, uint32_t *id);
int gnfa_set(struct gctx *c, struct gnfa *f, const struct gset *s, uint32_t next, uint32_t *id);
/* Subset construction. Of several matches the lowest label wins. */
int gdfa_subsets(struct gctx *c, const struct gnfa *f, struct gdfa **out);

#endif
