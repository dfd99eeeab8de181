/* fake_grammar.h - stands in for model/grammar.h in the server's tests: a text is n to `most` tokens, the i-th of those
 * with id % 7 == i % 7; from the n-th on an end token may follow, at `most` nothing else. grammar_compile makes such a
 * one of any source that does not begin with '!', which is -EINVAL. */
#ifndef CPET_TESTS_FAKE_GRAMMAR_H
#define CPET_TESTS_FAKE_GRAMMAR_H

#include "model/grammar.h"

struct grammar *fake_grammar(uint32_t n, uint32_t most, int32_t eos);
void fake_grammar_free(struct grammar *g);
unsigned fake_grammars(void); /* that grammar_compile made and that are still referred to */
unsigned fake_grammar_open_states(const struct grammar *g);
void fake_grammar_slow(struct grammar *g, unsigned us);            /* each mask takes so long at least */
void fake_grammar_fail(struct grammar *g, bool mask, bool accept); /* from now on -ENOMEM and -EINVAL */

#endif
