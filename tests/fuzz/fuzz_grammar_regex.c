/* fuzz_grammar_regex.c - compiles the input as a regular expression under low limits and follows random texts of it.
 *
 * A refusal and a reached limit are fine; a crash, a leak, a run without end, a state without a way on, or a mask that
 * is not what is accepted is not.
 */
#include "tests/fuzz/grammar_run.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    run_grammar(GRAMMAR_REGEX, data, size);
    return 0;
}
