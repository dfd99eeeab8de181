/* sequence_vnni.c - this level's row kernels for sequences; it overwrites no slot. */
#include "kernels/cpu/sequence.h"

void cpu_sequence_vnni(struct cpu_table *t)
{
    (void)t;
}
