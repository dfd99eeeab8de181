/* descriptors.h - how many connections the process's file descriptors are enough for. */
#ifndef CPET_SERVER_DESCRIPTORS_H
#define CPET_SERVER_DESCRIPTORS_H

#include <stdint.h>

#include "common/err.h"

struct descriptors {
    uint32_t conns, pairs; /* of the API listener: http_opts.max_conns and max_pairs */
    uint32_t admin_conns;  /* of the admin listener, all of which may be in a request */
};

/* How `limit` descriptors are shared. want: connections of the API listener that were asked for; 0: as many as go, up
 * to 16,384. -EINVAL with the option as parameter: the limit is too low for want, or for anything. */
int descriptors_plan(uint32_t want, uint64_t limit, struct descriptors *out, struct err *e);

/* The same with the process's limit, which is raised as far as the system lets it and as is of use. */
int descriptors_share(uint32_t want, struct descriptors *out, struct err *e);

#endif
