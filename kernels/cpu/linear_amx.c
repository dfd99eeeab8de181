/* linear_amx.c - the dense part with AMX tiles.
 *
 * Any thread; no memory of its own. What each function computes, and in which order, is stated in linear_scalar.c.
 */
#include "kernels/cpu/cpu.h"

void cpu_linear_amx(struct cpu_table *t)
{
    (void)t;
}
