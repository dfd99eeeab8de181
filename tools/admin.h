/* admin.h - what cpet module and cpet task share: options, calls to a server's admin listener, tables.
 *
 * One thread. The key comes from a file and goes into one header; it is never an argument, and never goes to a proxy
 * or after a redirect.
 */
#ifndef CPET_TOOLS_ADMIN_H
#define CPET_TOOLS_ADMIN_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "common/buf.h"
#include "common/err.h"

#define ADMIN_MODULES_MAX 64

struct admin_args {
    const char *argv0;             /* "cpet module put" */
    const char *server, *key_file; /* options, or the environment; key_file NULL: none */
    bool json;
    int n_args;
    const char *arg[2];
    const char *path, *tenant; /* NULL: not given */
    bool dry_run, pinned, drain;
    const char *module[ADMIN_MODULES_MAX];
    int n_modules;
    const char *defaults, *template_file;
};

struct admin_sub {
    const char *name, *wants; /* "put", "a NAME and a FILE" */
    int min_args, max_args;
    const char *letters; /* of the options beyond the shared ones: see admin.c */
    int (*run)(const struct admin_args *a);
};

/* Runs the one of subs that argv[1] names. */
int admin_command(int argc, char **argv, const char *help, const struct admin_sub *subs, size_t n);

/* "/admin/v1/KIND", and "/NAME" with what a URL may not hold escaped; name NULL: none. */
void admin_url(struct buf *b, const char *kind, const char *name);
/* Adds "?key=value", or "&..."; value escaped. */
void admin_query(struct buf *b, const char *key, const char *value);

struct admin_body {
    const char *type; /* of the content; NULL: no body */
    const char *text; /* NUL-terminated, or NULL: */
    const char *file; /* the bytes of this file */
};

/* The call; url is given up. True: the server agreed, *status and *answer (an object; NULL when it sent none;
 * json_decref it) are to be told. False: it is told, *code is the exit status: the server's sentence and the field at
 * fault, or with --json its answer. */
bool admin_send(const struct admin_args *a, const char *method, struct buf *url, const struct admin_body *body,
                int *status, json_t **answer, int *code);
/* list and show of a kind: the answer's entries as a table of columns (keys of the entries, ended by NULL), or with an
 * argument its one entry, a line a field. The exit status. */
int admin_get(const struct admin_args *a, const char *kind, const char *const *columns);

/* An answer's value under key as text; "" where there is none. */
const char *admin_str(const json_t *o, const char *key);

#endif
