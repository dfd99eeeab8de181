/* alloc_fail.h - allocations that fail, one by one.
 *
 * A test linked with alloc_fail.c and alloc_link_args has its own objects' malloc, calloc and realloc wrapped
 * (libraries outside the tree keep theirs, jansson's follow where alloc_fail_jansson says so). One thread. A sanitizer
 * build of the test sees what a failure leaks.
 */
#ifndef CPET_TESTS_UNIT_ALLOC_FAIL_H
#define CPET_TESTS_UNIT_ALLOC_FAIL_H

#include "common/err.h"

/* Runs f, which opens or makes something and gives it back, once as it is: it must succeed. Then once for each of its
 * allocations failing alone, and once for all from that one on: f must give -ENOMEM, or -E2BIG (a buffer or a request's
 * memory), with a sentence; or 0, at most `without` times a pass, where something does without what it did not get. */
void alloc_fail_each(const char *name, int (*f)(struct err *e), long without);

#endif
