/* table.c - an array of entries in the order of arrival, and an open-addressed index over it.
 *
 * The thread of whoever owns the table. The index holds places in the array, is at most half full, and is made anew
 * when it grows and when an entry goes: removing is rare (an operator deletes something), looking up is not (each
 * request names its task). What always holds: each entry is found from its hash on before an empty place comes.
 */
#include "server/table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LEAST 16u

/* FNV-1a, its high bits folded down. Keys are chosen by operators; clients only look up. */
static uint64_t hash_key(const void *key, size_t n)
{
    const unsigned char *p = key;
    uint64_t h = 0xCBF29CE484222325u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 0x100000001B3u;
    return h ^ h >> 29;
}

static void index_put(struct table *t, size_t at)
{
    size_t i = t->e[at].hash & (t->n_index - 1);
    while (t->index[i])
        i = (i + 1) & (t->n_index - 1);
    t->index[i] = (uint32_t)at + 1;
}

static void index_fill(struct table *t)
{
    memset(t->index, 0, t->n_index * sizeof *t->index);
    for (size_t i = 0; i < t->n; i++)
        index_put(t, i);
}

void table_free(struct table *t)
{
    free(t->e);
    free(t->index);
    *t = (struct table){0};
}

static struct table_entry *find(const struct table *t, const void *key, size_t n_key)
{
    if (!t->n)
        return NULL;
    uint64_t h = hash_key(key, n_key);
    for (size_t i = h & (t->n_index - 1); t->index[i]; i = (i + 1) & (t->n_index - 1)) {
        struct table_entry *e = &t->e[t->index[i] - 1];
        if (e->hash == h && e->n_key == n_key && !memcmp(e->key, key, n_key))
            return e;
    }
    return NULL;
}

void *table_get(const struct table *t, const void *key, size_t n_key)
{
    const struct table_entry *e = find(t, key, n_key);
    return e ? e->value : NULL;
}

static int grow(struct table *t)
{
    size_t cap = t->cap ? 2 * t->cap : LEAST;
    if (cap > UINT32_MAX / 4)
        return -ENOMEM;
    uint32_t *index = malloc(2 * cap * sizeof *index);
    struct table_entry *e = index ? realloc(t->e, cap * sizeof *e) : NULL;
    if (!e) {
        free(index);
        return -ENOMEM;
    }
    free(t->index);
    t->e = e;
    t->cap = cap;
    t->index = index;
    t->n_index = 2 * cap;
    index_fill(t);
    return 0;
}

int table_reserve(struct table *t)
{
    return t->n == t->cap ? grow(t) : 0;
}

int table_put(struct table *t, const void *key, size_t n_key, void *value)
{
    struct table_entry *e = find(t, key, n_key);
    if (e) {
        e->key = key;
        e->value = value;
        return 0;
    }
    if (table_reserve(t))
        return -ENOMEM;
    t->e[t->n] = (struct table_entry){key, n_key, hash_key(key, n_key), value};
    index_put(t, t->n++);
    return 0;
}

void *table_remove(struct table *t, const void *key, size_t n_key)
{
    struct table_entry *e = find(t, key, n_key);
    if (!e)
        return NULL;
    void *value = e->value;
    size_t behind = t->n - (size_t)(e - t->e) - 1;
    memmove(e, e + 1, behind * sizeof *e);
    t->n--;
    index_fill(t);
    return value;
}

void *table_at(const struct table *t, size_t i)
{
    return i < t->n ? t->e[i].value : NULL;
}
