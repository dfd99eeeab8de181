/* reqlog.h - the request log: lines that a thread of its own writes to a file.
 *
 * reqlog_put is for the loop thread and never waits: a line goes into a bounded buffer in memory, under a mutex that is
 * held for a copy or an exchange of pointers. When the file is slow, or its disk is full, lines are dropped and
 * counted.
 */
#ifndef CPET_SERVER_REQLOG_H
#define CPET_SERVER_REQLOG_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define REQLOG_QUEUE_BYTES ((size_t)1 << 20)

struct reqlog;

/* Opens path for appending ("-": standard output) and starts the writer. What open says, with param request-log. */
int reqlog_open(const char *path, struct reqlog **out, struct err *e);
/* A line without its end. */
void reqlog_put(struct reqlog *l, const char *line, size_t n);
/* The file was moved away: opens path again, soon, on the writer's thread. Where that fails the old file stays. */
void reqlog_reopen(struct reqlog *l);
/* Lines written, and lines that were not. l may be NULL. */
void reqlog_counts(const struct reqlog *l, uint64_t *written, uint64_t *dropped);
/* Writes what waits, for two seconds at most, and ends. Takes NULL. */
void reqlog_close(struct reqlog *l);

#endif
