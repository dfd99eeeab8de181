/* exposition.h - the Prometheus text format: families, samples and labels appended to a buffer. Any thread, no state.
 * Look at b->failed at the end. */
#ifndef CPET_SERVER_EXPOSITION_H
#define CPET_SERVER_EXPOSITION_H

#include <stdint.h>

#include "common/buf.h"

#define EXPO_TYPE "text/plain; version=0.0.4; charset=utf-8"

/* The two lines before a family's samples. type: "gauge", "counter" or "histogram". */
void expo_head(struct buf *b, const char *name, const char *type, const char *help);
/* name="value" with a comma before it unless b is empty or ends with '{': backslash, quote and line end are escaped,
 * and what is not UTF-8 becomes U+FFFD, a byte each. */
void expo_label(struct buf *b, const char *name, const char *value);
/* A family of one sample. labels: as expo_label made them, without braces; "": none. */
void expo_one(struct buf *b, const char *name, const char *type, const char *help, const char *labels, double value);
/* One series of a histogram, whose head stands already. count: [n_bucket + 1], each bucket's own. */
void expo_histogram(struct buf *b, const char *name, const char *labels, const double *bucket, unsigned n_bucket,
                    const uint64_t *count, double sum);

#endif
