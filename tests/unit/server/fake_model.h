/* fake_model.h - stands in for model.h in the scheduler's tests: the same sequences and pages, tokens by a hash.
 *
 * A token depends on the tokens before it, the modules, the seed, the choice and the place alone, so equal requests get
 * equal tokens whatever else is in the batch. Each step is checked against the rules of model_step.
 */
#ifndef CPET_TESTS_FAKE_MODEL_H
#define CPET_TESTS_FAKE_MODEL_H

#include "model/model.h"

struct fake_opts {
    uint32_t n_pages, max_context, max_rows, max_logits, max_seqs;
    int32_t eos_after; /* the eos_after-th token of every sequence is `eos`; 0: never */
    int32_t eos;
};

struct model *fake_open(const struct fake_opts *o);
void fake_close(struct model *m);
void fake_fail_next(struct model *m); /* the next model_step answers -EIO */

struct fake_step {
    uint32_t rows, decode_rows, spans;
    uint32_t rows_of_task[16]; /* by the prompt's first token, below 16 */
};
const struct fake_step *fake_last(const struct model *m);
uint32_t fake_open_seqs(const struct model *m);

#endif
