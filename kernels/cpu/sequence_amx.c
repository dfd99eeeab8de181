/* sequence_amx.c - this level's row kernels for sequences; it overwrites no slot. */
#include "kernels/cpu/sequence.h"

void cpu_sequence_amx(struct cpu_table *t)
{
    (void)t;
}
