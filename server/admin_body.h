/* admin_body.h - the JSON bodies of admin calls, read into structs.
 *
 * Any thread. Everything that is kept lives in the caller's arena. Errors are -EINVAL with err.param the field at
 * fault, -E2BIG or -ENOMEM; outputs are untouched then. Before JSON is read, size, UTF-8, number of values and depth
 * are bounded.
 */
#ifndef CPET_SERVER_ADMIN_BODY_H
#define CPET_SERVER_ADMIN_BODY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/arena.h"
#include "common/err.h"
#include "common/hash.h"

#define ADMIN_NAME_MAX 128           /* bytes of a module's name */
#define ADMIN_TEMPLATE_MAX (1 << 20) /* bytes of a template */
#define ADMIN_DEFAULTS_MAX (1 << 20) /* of defaults, as they are kept */
#define ADMIN_BODY_MAX ((size_t)4 << 20)

/* What a client says of a module of a task: a name, or a content's hash. */
struct admin_ref {
    const char *name; /* the hash in lower case where by_hash */
    struct hash hash;
    bool by_hash;
    float weight; /* finite */
};

struct admin_task_body {
    bool roll_back; /* to version; nothing else is set */
    struct hash version;
    struct admin_ref *ref; /* [n_refs] */
    uint32_t n_refs;
    const char *tenant, *template_text; /* NULL: none */
    const char *defaults_json;          /* keys in order, no blanks; NULL: none */
};
int admin_body_task(const char *body, size_t n, uint32_t max_modules, struct arena *a, struct admin_task_body *out,
                    struct err *e);

struct admin_module_body {
    const char *path;
    const char *tenant; /* NULL: none */
    bool pinned, dry_run;
};
/* *out holds what the query said; the body goes before it. */
int admin_body_module(const char *body, size_t n, struct arena *a, struct admin_module_body *out, struct err *e);

struct admin_lora_body {
    const char *name, *path; /* path NULL for an unload */
    bool load_inplace;
};
/* The body of a load_lora_adapter, or of an unload_lora_adapter. */
int admin_body_lora(const char *body, size_t n, bool unload, struct arena *a, struct admin_lora_body *out,
                    struct err *e);

/* A tenant's name, as in the file of API keys: -EINVAL where it could be none. */
int admin_check_tenant(const char *tenant, struct err *e);

#endif
