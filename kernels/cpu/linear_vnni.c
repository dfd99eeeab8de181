/* linear_vnni.c - the dense part with 512-bit vectors.
 *
 * Any thread; no memory of its own. What each function computes, and in which order, is stated in linear_scalar.c.
 */
#include "kernels/cpu/cpu.h"

#include "kernels/cpu/rows.h"

ROWS_DEFINE(vnni)

void cpu_linear_vnni(struct cpu_table *t)
{
    ROWS_FILL(t, vnni);
}
