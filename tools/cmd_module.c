/* cmd_module.c - cpet module put|list|show|delete: a server's modules. One thread.
 *
 * A PEFT directory is packed to a temporary .pet file first, which is removed whatever comes; the server checks all
 * that it is sent, so nothing else is looked at here.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file.h"
#include "pet/pet.h"
#include "tools/admin.h"
#include "tools/cmds.h"

static const char help[] =
    "usage: cpet module put NAME FILE       sends FILE, a .pet file or PEFT directory, to a server as module NAME\n"
    "       cpet module put NAME --path PATH  the server reads PATH, under its --module-root\n"
    "       cpet module list                the modules that it has\n"
    "       cpet module show NAME           one of them, with all that is told of it\n"
    "       cpet module delete NAME         no task may use it\n"
    "\n"
    "  --server URL      its admin listener: http://HOST:PORT, https://HOST:PORT or unix:PATH (or CPET_ADMIN)\n"
    "  --key-file FILE   the file of the admin key (or CPET_ADMIN_KEY_FILE)\n"
    "  --path PATH       put: a .pet file or PEFT directory on the server's side\n"
    "  --dry-run         put: check all that a load would, and keep nothing\n"
    "  --pinned          put: the module never leaves memory\n"
    "  --tenant T        put: the module is T's alone\n"
    "  --drain           delete: though tasks use it; its memory comes back when the last request has ended\n"
    "  --json            print the server's answer\n";

/* Prints what the server said of a module that was put. */
static int say_put(const struct admin_args *a, int status, const json_t *o)
{
    json_int_t bytes = json_integer_value(json_object_get(o, "bytes"));
    printf("%s: %s, rank %lld on %lld linears, %.2f MB, hash %s%s\n", a->arg[0], admin_str(o, "kind"),
           (long long)json_integer_value(json_object_get(o, "rank")),
           (long long)json_integer_value(json_object_get(o, "sites")), (double)bytes / 1e6, admin_str(o, "hash"),
           a->dry_run      ? ": it would be taken"
           : status == 200 ? ": it was there already"
                           : "");
    return cmd_done(a->argv0);
}

/* A PEFT directory as a temporary .pet file; *path is malloc'ed, and the caller unlinks it. */
static int pack(const char *dir, char **path, struct err *e)
{
    struct pet *p = NULL;
    const char *tmp = getenv("TMPDIR");
    int r = pet_open(dir, NULL, &p, e);
    if (r)
        return r;
    char *to = path_join(tmp && *tmp ? tmp : "/tmp", "cpet-module-XXXXXX");
    int fd = to ? mkstemp(to) : -1;
    if (fd < 0) {
        r = err_set(e, to ? -errno : -ENOMEM, "no temporary file for the module: %s", strerror(to ? errno : ENOMEM));
    } else {
        close(fd);
        r = pet_write(p, pet_info(p)->verified ? &pet_info(p)->lineage : NULL, to, e);
        if (r)
            unlink(to);
    }
    pet_close(p);
    if (r)
        free(to);
    else
        *path = to;
    return r;
}

static int send_module(const struct admin_args *a, const struct admin_body *body)
{
    struct buf url = {0};
    json_t *answer = NULL;
    int status = 0, code;
    admin_url(&url, "modules", a->arg[0]);
    if (a->dry_run)
        admin_query(&url, "dry_run", "1");
    if (a->pinned)
        admin_query(&url, "pinned", "1");
    if (a->tenant)
        admin_query(&url, "tenant", a->tenant);
    if (!admin_send(a, "PUT", &url, body, &status, &answer, &code))
        return code;
    code = say_put(a, status, answer);
    json_decref(answer);
    return code;
}

static int put_file(const struct admin_args *a)
{
    struct err e = {0};
    struct stat st;
    char *packed = NULL;
    if (!stat(a->arg[1], &st) && S_ISDIR(st.st_mode) && pack(a->arg[1], &packed, &e))
        return cmd_fail(a->argv0, &e);
    struct admin_body body = {.type = "application/octet-stream", .file = packed ? packed : a->arg[1]};
    int status = send_module(a, &body);
    if (packed)
        unlink(packed);
    free(packed);
    return status;
}

static int put_path(const struct admin_args *a)
{
    json_t *o = json_pack("{ss}", "path", a->path);
    char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
    struct err e = {0};
    int status;
    if (text) {
        struct admin_body body = {.type = "application/json", .text = text};
        status = send_module(a, &body);
    } else {
        err_set(&e, -EINVAL, "--path is not valid UTF-8");
        status = cmd_fail(a->argv0, &e);
    }
    free(text);
    json_decref(o);
    return status;
}

static int put(const struct admin_args *a)
{
    if ((a->n_args == 2) == (a->path != NULL))
        return cmd_usage(a->argv0, "it takes a FILE or --path PATH");
    return a->path ? put_path(a) : put_file(a);
}

static int get(const struct admin_args *a)
{
    static const char *const columns[] = {"name",  "hash",      "kind",  "rank",   "sites", "bytes",
                                          "state", "residency", "users", "tenant", NULL};
    return admin_get(a, "modules", columns);
}

static int remove_module(const struct admin_args *a)
{
    struct buf url = {0};
    json_t *answer = NULL;
    int status = 0, code;
    admin_url(&url, "modules", a->arg[0]);
    if (a->drain)
        admin_query(&url, "drain", "1");
    if (!admin_send(a, "DELETE", &url, NULL, &status, &answer, &code))
        return code;
    json_int_t users = json_integer_value(json_object_get(answer, "users"));
    if (users)
        printf("%s: deleted, %lld requests use it until they end\n", a->arg[0], (long long)users);
    else
        printf("%s: deleted\n", a->arg[0]);
    json_decref(answer);
    return cmd_done(a->argv0);
}

int cmd_module(int argc, char **argv)
{
    static const struct admin_sub subs[] = {{"put", "a NAME and a FILE, or a NAME and --path", 1, 2, "pnPt", put},
                                            {"list", "no arguments", 0, 0, "", get},
                                            {"show", "a NAME", 1, 1, "", get},
                                            {"delete", "a NAME", 1, 1, "d", remove_module}};
    return admin_command(argc, argv, help, subs, sizeof subs / sizeof *subs);
}
