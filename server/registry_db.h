/* registry_db.h - the registry's SQLite file: opened, checked, written in transactions. Used by registry.c alone.
 *
 * One thread at a time. A rollback journal that is truncated (not a write-ahead log), synchronous=EXTRA: when a commit
 * fails, the journal brings back what was there, now or when the file is next opened.
 */
#ifndef CPET_SERVER_REGISTRY_DB_H
#define CPET_SERVER_REGISTRY_DB_H

#include <sqlite3.h>
#include <stdbool.h>

#include "common/err.h"

struct db;

/* Looks at the file alone, without SQLite, and changes nothing: *fresh when there is no database yet. -ENOTSUP: its
 * schema is newer than REGISTRY_SCHEMA; -EBADMSG: not a registry's database, or one that is damaged. */
int db_probe(const char *path, bool *fresh, struct err *e);

/* Opens, makes the schema where the file is empty, checks the file (quick_check, foreign keys). durable false: never
 * fsyncs. Errors as db_probe's. */
int db_open(const char *path, bool durable, struct db **out, struct err *e);
void db_close(struct db *db); /* takes NULL; statements are finalized with it */

/* A statement that lives as long as db. -EBADMSG: it does not fit the file's schema. */
int db_prepare(struct db *db, const char *sql, sqlite3_stmt **out, struct err *e);

/* One step: 1 a row, 0 the end (the statement is reset), negative an error (reset too). */
int db_step(struct db *db, sqlite3_stmt *s, struct err *e);
/* Steps to the end, whatever rows come. */
int db_run(struct db *db, sqlite3_stmt *s, struct err *e);

/* Calls f in a transaction and commits when it answers 0, durably; else, and when the commit fails, all is as before.
 * The one exception is db_unsure. f fills e itself. */
int db_write(struct db *db, int (*f)(void *ctx, struct err *e), void *ctx, struct err *e);
/* Did the last db_write fail in such a way that nobody knows what the disk holds (two failures in a row at the very end
 * of a commit)? Files that the write names must then be kept. */
bool db_unsure(const struct db *db);

#endif
