/* cmd_task.c - cpet task put|list|show|delete|rollback: a server's tasks. One thread. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "common/hash.h"
#include "tools/admin.h"
#include "tools/cmds.h"

enum { TEXT_MAX = 1 << 20 };

static const char help[] =
    "usage: cpet task put ID --module NAME[=WEIGHT]...  makes a task, or points it to a new version\n"
    "       cpet task list                the tasks of a server\n"
    "       cpet task show ID             one of them, with the versions that are kept\n"
    "       cpet task delete ID           with all its versions; its modules stay\n"
    "       cpet task rollback ID HASH    to a version that is kept\n"
    "\n"
    "  --server URL          its admin listener: http://HOST:PORT, https://HOST:PORT or unix:PATH (or CPET_ADMIN)\n"
    "  --key-file FILE       the file of the admin key (or CPET_ADMIN_KEY_FILE)\n"
    "  --module NAME[=WEIGHT]  put: a module, or the hash of one; again for more, in order (weight 1 unless given)\n"
    "  --defaults JSON|@FILE put: sampling fields of requests that do not name them, an object\n"
    "  --template FILE       put: a chat template (Jinja) instead of the backbone's\n"
    "  --tenant T            put: the task is T's alone\n"
    "  --json                print the server's answer\n";

/* NAME or NAME=WEIGHT, at the last "=". A name that ends so, "a=2", is written "a=2=1". */
static json_t *module_json(const char *arg, struct err *e)
{
    const char *eq = strrchr(arg, '=');
    char *end = NULL;
    double weight = eq ? strtod(eq + 1, &end) : 1;
    size_t n = eq ? (size_t)(eq - arg) : strlen(arg);
    if (eq && (end == eq + 1 || *end || !isfinite(weight))) {
        err_set(e, -EINVAL, "--module: '%s' does not end with =WEIGHT, a number (a name that holds '=' needs one)",
                arg);
        return NULL;
    }
    json_t *o = n ? json_pack("{ss# sf}", "name", arg, n, "weight", weight) : NULL;
    if (!o)
        err_set(e, -EINVAL, "--module: '%s' does not begin with a name in UTF-8", arg);
    return o;
}

static int put_modules(const struct admin_args *a, json_t *body, struct err *e)
{
    json_t *list = json_array();
    int r = list ? 0 : err_set(e, -ENOMEM, "out of memory");
    for (int i = 0; !r && i < a->n_modules; i++) {
        json_t *m = module_json(a->module[i], e);
        r = m ? json_array_append_new(list, m) : -EINVAL;
    }
    if (!r)
        return json_object_set_new(body, "modules", list) ? err_set(e, -ENOMEM, "out of memory") : 0;
    json_decref(list);
    return r;
}

static int put_defaults(const struct admin_args *a, json_t *body, struct err *e)
{
    char *text = NULL;
    size_t n = strlen(a->defaults);
    json_error_t je;
    if (*a->defaults == '@') {
        int r = file_read(a->defaults + 1, TEXT_MAX, &text, &n, e);
        if (r)
            return r;
    }
    json_t *o = json_loadb(text ? text : a->defaults, n, JSON_REJECT_DUPLICATES, &je);
    free(text);
    if (!json_is_object(o)) {
        json_decref(o);
        return err_set(e, -EINVAL, "--defaults: not a JSON object%s%s", o ? "" : ": ", o ? "" : je.text);
    }
    return json_object_set_new(body, "defaults", o) ? err_set(e, -ENOMEM, "out of memory") : 0;
}

static int put_template(const struct admin_args *a, json_t *body, struct err *e)
{
    char *text;
    size_t n;
    int r = file_read(a->template_file, TEXT_MAX, &text, &n, e);
    if (r)
        return r;
    if (json_object_set_new(body, "template", json_stringn(text, n)))
        r = err_set(e, -EINVAL, "--template: %s is not valid UTF-8", a->template_file);
    free(text);
    return r;
}

/* PUT with body, which is given up; says the version. */
static int send_task(const struct admin_args *a, json_t *body)
{
    struct err e = {0};
    struct buf url = {0};
    json_t *answer = NULL;
    int status = 0, code;
    char *text = json_dumps(body, JSON_COMPACT);
    json_decref(body);
    if (!text) {
        err_set(&e, -ENOMEM, "out of memory");
        return cmd_fail(a->argv0, &e);
    }
    struct admin_body b = {.type = "application/json", .text = text};
    admin_url(&url, "tasks", a->arg[0]);
    bool agreed = admin_send(a, "PUT", &url, &b, &status, &answer, &code);
    free(text);
    if (!agreed)
        return code;
    const char *version = admin_str(answer, "version");
    printf("%s: %s, version %s\n", a->arg[0], status == 201 ? "made" : "changed",
           *version ? version : admin_str(answer, "hash"));
    json_decref(answer);
    return cmd_done(a->argv0);
}

static int put(const struct admin_args *a)
{
    struct err e = {0};
    json_t *body = json_object();
    int r = put_modules(a, body, &e);
    if (!r && a->defaults)
        r = put_defaults(a, body, &e);
    if (r) {
        json_decref(body);
        return e.code == -EINVAL ? cmd_usage(a->argv0, "%s", e.msg) : cmd_fail(a->argv0, &e);
    }
    if (a->template_file)
        r = put_template(a, body, &e);
    if (!r && a->tenant && json_object_set_new(body, "tenant", json_string(a->tenant)))
        r = err_set(&e, -EINVAL, "--tenant is not valid UTF-8");
    if (!r)
        return send_task(a, body);
    json_decref(body);
    return cmd_fail(a->argv0, &e);
}

static int rollback(const struct admin_args *a)
{
    struct hash h;
    if (hash_parse(a->arg[1], &h))
        return cmd_usage(a->argv0, "'%s' is not a version: 64 hexadecimal digits", a->arg[1]);
    return send_task(a, json_pack("{ss}", "version", a->arg[1]));
}

static int get(const struct admin_args *a)
{
    static const char *const columns[] = {"id", "version", "modules", "state", "tenant", NULL};
    return admin_get(a, "tasks", columns);
}

static int remove_task(const struct admin_args *a)
{
    struct buf url = {0};
    json_t *answer = NULL;
    int status = 0, code;
    admin_url(&url, "tasks", a->arg[0]);
    if (!admin_send(a, "DELETE", &url, NULL, &status, &answer, &code))
        return code;
    json_decref(answer);
    printf("%s: deleted\n", a->arg[0]);
    return cmd_done(a->argv0);
}

int cmd_task(int argc, char **argv)
{
    static const struct admin_sub subs[] = {{"put", "an ID", 1, 1, "mDTt", put},
                                            {"list", "no arguments", 0, 0, "", get},
                                            {"show", "an ID", 1, 1, "", get},
                                            {"delete", "an ID", 1, 1, "", remove_task},
                                            {"rollback", "an ID and a version's HASH", 2, 2, "", rollback}};
    return admin_command(argc, argv, help, subs, sizeof subs / sizeof *subs);
}
