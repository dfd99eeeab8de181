/* check_sequence.h - the parts of the sequence kernels' checks. */
#ifndef CPET_TESTS_KERNELS_CHECK_SEQUENCE_H
#define CPET_TESTS_KERNELS_CHECK_SEQUENCE_H

#include "tests/kernels/check.h"

void check_sample(struct check *c, enum kern_level l);         /* check_sample.c */
void check_sequence_bench(struct check *c, enum kern_level l); /* check_sequence_bench.c */
void check_sequence_run(struct check *c);                      /* check_sequence_run.c: through kern_run */

#endif
