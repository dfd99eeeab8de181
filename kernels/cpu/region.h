/* region.h - between region.c, which runs the list, and ops.c, which knows the operations; inside kernels/cpu only. */
#ifndef CPET_KERNELS_CPU_REGION_H
#define CPET_KERNELS_CPU_REGION_H

#include "kernels/cpu/cpu.h"

/* Has the operation anything to do in this step? */
bool cpu_op_wanted(const struct kern_op *op, const struct kern_step *s);
/* Is it so small that handing it round costs more than doing it? */
bool cpu_op_solo(const struct kern_op *op, const struct kern_step *s);
/* Claims and does chunks of it until none is left; threads: how many share it at most. */
void cpu_op_run(struct cpu_ctx *c, const struct kern_op *op, unsigned threads);

#endif
