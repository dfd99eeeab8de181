/* table.h - values by a key of bytes, in the order in which they came.
 *
 * One thread at a time. The table owns neither keys nor values: a key must stay where it is while its value is in the
 * table. Looking up costs the same for ten entries and for a hundred thousand; removing moves the entries behind.
 */
#ifndef CPET_SERVER_TABLE_H
#define CPET_SERVER_TABLE_H

#include <stddef.h>
#include <stdint.h>

struct table_entry {
    const void *key;
    size_t n_key;
    uint64_t hash;
    void *value;
};

struct table {
    struct table_entry *e; /* [n], by arrival */
    size_t n, cap;
    uint32_t *index; /* [n_index], a power of two; 0: empty, else 1 + which entry */
    size_t n_index;
};

void table_free(struct table *t); /* leaves an empty table; a zeroed struct is one too */

/* NULL: none. */
void *table_get(const struct table *t, const void *key, size_t n_key);
/* Adds, or gives the key's entry this value (and this place of the key's bytes). 0 or -ENOMEM. */
int table_put(struct table *t, const void *key, size_t n_key, void *value);
/* Makes sure that one more table_put cannot fail. 0 or -ENOMEM. */
int table_reserve(struct table *t);
/* The value that was there, or NULL. */
void *table_remove(struct table *t, const void *key, size_t n_key);
/* The i-th value; NULL past the end. */
void *table_at(const struct table *t, size_t i);

#endif
