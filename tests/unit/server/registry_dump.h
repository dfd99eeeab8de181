/* registry_dump.h - a registry as text, to compare: its rows, the versions that it keeps, the files in modules/. */
#ifndef CPET_TESTS_REGISTRY_DUMP_H
#define CPET_TESTS_REGISTRY_DUMP_H

#include "common/buf.h"
#include "server/registry.h"

/* Lines, in this order:
 *     module NAME TENANT HASH KIND BASE BYTES RANK SITES VERIFIED PINNED CREATED
 *     task ID TENANT CREATED UPDATED, and newest first  version HASH DEFAULTS TEMPLATE, each with  ref NAME HASH WEIGHT
 *     file NAME, those of DIR/modules in order; "broken" after it where a HASH.pet does not hold the bytes of that hash
 * Tasks by ID; hashes by their first 16 digits; NULL as "-". Aborts when something cannot be read. */
void registry_dump(struct registry *r, const char *dir, struct buf *out);
void dump_module(struct buf *out, const struct registry_module *m);
void dump_task(struct buf *out, const struct registry_task *t);
void dump_version(struct buf *out, const struct registry_task *t);
void dump_files(struct buf *out, const char *dir);

/* Removes a directory with all that it holds. */
void remove_tree(const char *dir);

#endif
