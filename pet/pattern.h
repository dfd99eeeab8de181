/* pattern.h - inside pet/ only: the regular expressions of PEFT configurations, bounded in memory and time. */
#ifndef CPET_PET_PATTERN_H
#define CPET_PET_PATTERN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

/* What all patterns of one configuration may cost together. Zeroed to begin with. */
struct pattern_budget {
    size_t compiled; /* bytes of compiled patterns */
    uint64_t steps;  /* of all matches */
};

struct pattern;

/* Compiles before + key + after. -EINVAL with the place of the mistake, -E2BIG past the budget. */
int pattern_compile(const char *before, const char *key, const char *after, struct pattern_budget *b,
                    struct pattern **out, struct err *e);
void pattern_free(struct pattern *p); /* takes NULL */

/* Does it match at the beginning of s (whole: all of s)? *found; and where the group named "idx" took part, *idx
 * points at its first byte with *idx_len bytes (both may be NULL). -E2BIG when the budget is used up. */
int pattern_match(const struct pattern *p, const char *s, bool whole, bool *found, const char **idx, size_t *idx_len,
                  struct err *e);

#endif
