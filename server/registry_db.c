/* registry_db.c - the registry's SQLite file.
 *
 * Owned by the registry, used by one thread at a time (SQLite's own mutexes are off for the connection).
 *
 * The journal is a rollback journal in TRUNCATE mode with synchronous=EXTRA. SQLite fsyncs the journal, then the
 * database, then truncates the journal (the commit) and fsyncs it again. Whatever fails before the truncation is undone
 * from the journal, by this process or the next. A write-ahead log would be faster, but a commit whose fsync failed
 * lies in the log, and would rise when the log is read after a crash.
 *
 * That leaves the last fsync: when it fails the truncation is there but may not last. Each transaction counts meta.seq
 * up; after a failed commit the number says whether the transaction is in the file. If so, another small transaction
 * writes the journal anew and makes both last; if that fails too, nobody knows, and db_unsure says so.
 */
#include "server/registry_db.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/registry.h"

#define APPLICATION_ID 0x63506574 /* "cPet" */
#define STR_(x) #x
#define STR(x) STR_(x)

struct db {
    sqlite3 *h;
    char *path;
    sqlite3_stmt *begin, *commit, *rollback, *bump, *seq;
    bool unsure;
};

static const char schema[] =
    "BEGIN IMMEDIATE;"
    "CREATE TABLE meta(one INTEGER PRIMARY KEY CHECK(one = 1), seq INTEGER NOT NULL) STRICT;"
    "INSERT INTO meta VALUES(1, 0);"
    "CREATE TABLE content(hash BLOB PRIMARY KEY NOT NULL CHECK(length(hash) = 32)) STRICT, WITHOUT ROWID;"
    "CREATE TABLE module(name TEXT PRIMARY KEY NOT NULL, tenant TEXT, hash BLOB NOT NULL REFERENCES content,"
    " kind TEXT NOT NULL, base TEXT NOT NULL, bytes INTEGER NOT NULL, rank INTEGER NOT NULL, sites INTEGER NOT NULL,"
    " verified INTEGER NOT NULL, pinned INTEGER NOT NULL, created INTEGER NOT NULL) STRICT, WITHOUT ROWID;"
    "CREATE INDEX module_hash ON module(hash);"
    "CREATE TABLE task(id TEXT PRIMARY KEY NOT NULL, tenant TEXT, version BLOB NOT NULL, created INTEGER NOT NULL,"
    " updated INTEGER NOT NULL,"
    " FOREIGN KEY(id, version) REFERENCES task_version(task, hash) DEFERRABLE INITIALLY DEFERRED) STRICT;"
    "CREATE TABLE task_version(task TEXT NOT NULL REFERENCES task ON DELETE CASCADE,"
    " hash BLOB NOT NULL CHECK(length(hash) = 32), ord INTEGER NOT NULL, defaults TEXT, template TEXT,"
    " PRIMARY KEY(task, hash)) STRICT;"
    "CREATE TABLE task_ref(task TEXT NOT NULL, version BLOB NOT NULL, i INTEGER NOT NULL, name TEXT NOT NULL,"
    " hash BLOB NOT NULL REFERENCES content, weight REAL NOT NULL, PRIMARY KEY(task, version, i),"
    " FOREIGN KEY(task, version) REFERENCES task_version(task, hash) ON DELETE CASCADE) STRICT, WITHOUT ROWID;"
    "CREATE INDEX task_ref_hash ON task_ref(hash);"
    "PRAGMA application_id = " STR(APPLICATION_ID) ";"
                                                   "PRAGMA user_version = " STR(REGISTRY_SCHEMA) ";"
                                                                                                 "COMMIT";

/* ---- errors ---- */

static int code_of(sqlite3 *h)
{
    int sys = sqlite3_system_errno(h);
    switch (sqlite3_errcode(h) & 0xFF) {
    case SQLITE_NOMEM:
        return -ENOMEM;
    case SQLITE_FULL:
        return -ENOSPC;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return -EBUSY;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return -EBADMSG;
    case SQLITE_READONLY:
        return -EROFS;
    case SQLITE_TOOBIG:
        return -E2BIG;
    case SQLITE_CONSTRAINT:
    case SQLITE_MISMATCH:
        return -EINVAL;
    default:
        if (sqlite3_extended_errcode(h) == SQLITE_IOERR_NOMEM)
            return -ENOMEM;
        return sys == ENOSPC || sys == EDQUOT ? -ENOSPC : -EIO;
    }
}

static int fail(struct db *db, struct err *e)
{
    int code = code_of(db->h), sys = sqlite3_system_errno(db->h);
    bool io = code == -EIO && sys > 0;
    return err_set(e, code, "%s: %s%s%s", db->path, sqlite3_errmsg(db->h), io ? ": " : "", io ? strerror(sys) : "");
}

static int damaged(const char *path, struct err *e, const char *what)
{
    return err_set(e, -EBADMSG, "%s: the registry's database is damaged (%s); restore it from a copy", path, what);
}

static int newer(const char *path, struct err *e, long long version)
{
    return err_set(e, -ENOTSUP, "%s: has schema %lld, made by a newer cpetd; this one knows %d", path, version,
                   REGISTRY_SCHEMA);
}

/* ---- before SQLite sees the file ---- */

static uint32_t be32(const unsigned char *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static bool has_journal(const char *path)
{
    char name[4200];
    struct stat st;
    snprintf(name, sizeof name, "%s-journal", path);
    return !stat(name, &st) && st.st_size > 0;
}

int db_probe(const char *path, bool *fresh, struct err *e)
{
    unsigned char head[100];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) {
        *fresh = true;
        return 0;
    }
    if (fd < 0)
        return err_set(e, -errno, "%s: %s", path, strerror(errno));
    ssize_t n = read(fd, head, sizeof head);
    int code = n < 0 ? -errno : 0;
    close(fd);
    if (code)
        return err_set(e, code, "%s: %s", path, strerror(-code));
    bool sqlite = n == (ssize_t)sizeof head && !memcmp(head, "SQLite format 3", 16);
    uint32_t version = be32(head + 60), app = be32(head + 68);
    if (sqlite && app == APPLICATION_ID && version > REGISTRY_SCHEMA)
        return newer(path, e, version);
    if (n && !has_journal(path)) { /* with a journal, its first page may be of a write that was cut off */
        if (!sqlite)
            return damaged(path, e, "it does not begin as one");
        if (app != APPLICATION_ID)
            return err_set(e, -EBADMSG, "%s: is a database of another program", path);
    }
    *fresh = n == 0;
    return 0;
}

/* ---- statements ---- */

int db_prepare(struct db *db, const char *sql, sqlite3_stmt **out, struct err *e)
{
    int rc = sqlite3_prepare_v3(db->h, sql, -1, SQLITE_PREPARE_PERSISTENT, out, NULL);
    if (rc == SQLITE_ERROR)
        return damaged(db->path, e, sqlite3_errmsg(db->h));
    return rc ? fail(db, e) : 0;
}

int db_step(struct db *db, sqlite3_stmt *s, struct err *e)
{
    int rc = sqlite3_step(s);
    if (rc == SQLITE_ROW)
        return 1;
    int code = rc == SQLITE_DONE ? 0 : fail(db, e);
    sqlite3_reset(s);
    return code;
}

int db_run(struct db *db, sqlite3_stmt *s, struct err *e)
{
    int r;
    while ((r = db_step(db, s, e)) > 0)
        ;
    return r;
}

/* The first column of the first row of a one-off statement, as a number. */
static int ask(struct db *db, const char *sql, int64_t *out, struct err *e)
{
    sqlite3_stmt *s = NULL;
    if (sqlite3_prepare_v2(db->h, sql, -1, &s, NULL))
        return fail(db, e);
    int r = db_step(db, s, e);
    if (r > 0)
        *out = sqlite3_column_int64(s, 0);
    sqlite3_finalize(s);
    return r < 0 ? r : 0;
}

/* ---- opening ---- */

static int exec(struct db *db, const char *sql, struct err *e)
{
    return sqlite3_exec(db->h, sql, NULL, NULL, NULL) ? fail(db, e) : 0;
}

/* One of the two checks; its first row, other than "ok", is what is wrong. */
static int check(struct db *db, const char *sql, struct err *e)
{
    sqlite3_stmt *s = NULL;
    if (sqlite3_prepare_v2(db->h, sql, -1, &s, NULL))
        return fail(db, e);
    int r = db_step(db, s, e);
    if (r > 0) {
        const char *text = (const char *)sqlite3_column_text(s, 0);
        r = text && !strcmp(text, "ok") ? 0 : damaged(db->path, e, text ? text : "no memory to say what");
    }
    sqlite3_finalize(s);
    return r;
}

static int check_file(struct db *db, bool *empty, struct err *e)
{
    int64_t app = 0, version = 0, tables = 0;
    int r = ask(db, "PRAGMA user_version", &version, e);
    if (!r)
        r = ask(db, "PRAGMA application_id", &app, e);
    if (!r)
        r = ask(db, "SELECT count(*) FROM sqlite_schema", &tables, e);
    if (r)
        return r;
    *empty = !app && !version && !tables;
    if (*empty)
        return 0;
    if (app != APPLICATION_ID)
        return err_set(e, -EBADMSG, "%s: is a database of another program", db->path);
    if (version > REGISTRY_SCHEMA)
        return newer(db->path, e, version);
    if (version < 1)
        return damaged(db->path, e, "it has no schema version");
    r = check(db, "PRAGMA quick_check(1)", e);
    return r ? r : check(db, "PRAGMA foreign_key_check", e);
}

static int open_checked(struct db *db, bool durable, struct err *e)
{
    bool empty = false;
    int fd = open(db->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600); /* SQLite would make it 0644 */
    if (fd < 0)
        return err_set(e, -errno, "%s: cannot make: %s", db->path, strerror(errno));
    close(fd);
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE;
    if (sqlite3_open_v2(db->path, &db->h, flags, NULL))
        return db->h ? fail(db, e) : err_set(e, -ENOMEM, "%s: out of memory", db->path);
    sqlite3_busy_timeout(db->h, REGISTRY_BUSY_MS);
    sqlite3_db_config(db->h, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_db_config(db->h, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    int r = exec(db, "PRAGMA cell_size_check = ON; PRAGMA temp_store = MEMORY; PRAGMA foreign_keys = ON", e);
    if (!r)
        r = check_file(db, &empty, e);
    if (!r)
        r = exec(db, "PRAGMA journal_mode = TRUNCATE", e);
    if (!r)
        r = exec(db, durable ? "PRAGMA synchronous = EXTRA" : "PRAGMA synchronous = OFF", e);
    if (!r && empty && (r = exec(db, schema, e)))
        sqlite3_exec(db->h, "ROLLBACK", NULL, NULL, NULL);
    return r;
}

int db_open(const char *path, bool durable, struct db **out, struct err *e)
{
    struct db *db = calloc(1, sizeof *db);
    if (!db || !(db->path = strdup(path))) {
        free(db);
        return err_set(e, -ENOMEM, "out of memory");
    }
    int r = open_checked(db, durable, e);
    const struct {
        sqlite3_stmt **s;
        const char *sql;
    } own[] = {{&db->begin, "BEGIN IMMEDIATE"},
               {&db->commit, "COMMIT"},
               {&db->rollback, "ROLLBACK"},
               {&db->bump, "UPDATE meta SET seq = seq + 1 RETURNING seq"},
               {&db->seq, "SELECT seq FROM meta"}};
    for (size_t i = 0; !r && i < sizeof own / sizeof *own; i++)
        r = db_prepare(db, own[i].sql, own[i].s, e);
    if (r)
        db_close(db);
    else
        *out = db;
    return r;
}

void db_close(struct db *db)
{
    if (!db)
        return;
    sqlite3_stmt *s;
    while (db->h && (s = sqlite3_next_stmt(db->h, NULL)))
        sqlite3_finalize(s);
    sqlite3_close(db->h);
    free(db->path);
    free(db);
}

/* ---- transactions ---- */

static void roll_back(struct db *db)
{
    if (!sqlite3_get_autocommit(db->h))
        db_run(db, db->rollback, NULL);
}

/* The number that a statement answers with. */
static int number(struct db *db, sqlite3_stmt *s, int64_t *out, struct err *e)
{
    int r = db_step(db, s, e);
    if (r > 0) {
        *out = sqlite3_column_int64(s, 0);
        r = db_run(db, s, e);
    } else if (!r) {
        r = damaged(db->path, e, "its table meta is empty");
    }
    return r;
}

/* BEGIN, count, f, COMMIT; *seq is the transaction's number once it is known. */
static int attempt(struct db *db, int (*f)(void *ctx, struct err *e), void *ctx, int64_t *seq, struct err *e)
{
    int r = db_run(db, db->begin, e);
    if (!r)
        r = number(db, db->bump, seq, e);
    if (!r && f && (r = f(ctx, e)))
        *seq = -1; /* never committed: there is nothing to look for */
    if (!r)
        r = db_run(db, db->commit, e);
    if (r)
        roll_back(db);
    return r;
}

int db_write(struct db *db, int (*f)(void *ctx, struct err *e), void *ctx, struct err *e)
{
    int64_t seq = -1, now = -1, again = -1;
    db->unsure = false;
    int r = attempt(db, f, ctx, &seq, e);
    if (!r || seq < 0)
        return r;
    bool known = !number(db, db->seq, &now, NULL);
    if (known && now != seq)
        return r;
    if (known && !attempt(db, NULL, NULL, &again, NULL))
        return 0;
    db->unsure = true;
    return err_prefix(e, r, "it is unknown until the next start whether this was stored");
}

bool db_unsure(const struct db *db)
{
    return db->unsure;
}
