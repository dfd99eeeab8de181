/* linear_avx2.c - the dense part with 256-bit vectors.
 *
 * Any thread; no memory of its own. What each function computes, and in which order, is stated in linear_scalar.c.
 */
#include "kernels/cpu/cpu.h"

#include "kernels/cpu/rows.h"

ROWS_DEFINE(avx2)

void cpu_linear_avx2(struct cpu_table *t)
{
    ROWS_FILL(t, avx2);
}
