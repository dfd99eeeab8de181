/* sequence_avx2.c - this level's row kernels for sequences; it overwrites no slot. */
#include "kernels/cpu/sequence.h"

void cpu_sequence_avx2(struct cpu_table *t)
{
    (void)t;
}
