/* task.h - tasks and their versions: what a client's "model" stands for.
 *
 * The loop thread owns the table, the counts of users and the freeing; task_settings_make alone may run on any thread.
 * A struct task_version never changes once made: a request takes a reference to the version that is current when it
 * comes, and keeps it, whatever happens to the table meanwhile.
 */
#ifndef CPET_SERVER_TASK_H
#define CPET_SERVER_TASK_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "common/hash.h"
#include "model/model.h"
#include "model/template.h"
#include "proto/proto.h"
#include "server/keys.h"
#include "server/module.h"

#define TASK_ID_MAX 128
#define TASK_EVERYBODY KEYS_NO_TENANT /* the tenant of a task that every key may use */

/* A task's template and defaults, parsed. */
struct task_settings {
    char *template_text, *defaults_json; /* NULL: none */
    struct tmpl *tmpl;                   /* NULL: the backbone's */
    struct req_sampling *defaults;       /* NULL: none */
    struct arena *memory;                /* of defaults */
};

/* Parses and copies; NULL texts: none. -EINVAL with err.param "template" or "defaults" or below. Any thread. */
int task_settings_make(const char *template_text, const char *defaults_json, struct task_settings **out, struct err *e);
void task_settings_free(struct task_settings *s); /* takes NULL */

struct task_version {
    unsigned refs;
    uint64_t number; /* distinct a task; the same for its versions */
    char *id;
    uint32_t tenant;          /* or TASK_EVERYBODY */
    bool backbone;            /* the backbone itself */
    bool fixed;               /* of the command line: not to be changed, not in the registry */
    int64_t created, updated; /* seconds since 1970 */
    struct hash hash;         /* of modules, weights, template and defaults */
    struct module **module;   /* [n_pets] */
    char **module_name;       /* [n_pets]; the content's hash in hex where it was given by hash */
    struct model_pet *pet;    /* [n_pets]: the weights; each request has slots of its own (call.h) */
    uint32_t n_pets;
    const struct tmpl *tmpl;             /* NULL: the backbone's */
    const struct req_sampling *defaults; /* NULL: none */
    struct task_settings *settings;
    char *problem; /* why it cannot be used, whatever its modules; NULL */
};
void task_ref(struct task_version *v);
void task_unref(struct task_version *v); /* takes NULL */

struct task_ref {
    struct module *module;
    const char *name; /* as task_version.module_name; copied */
    float weight;
};

struct task_spec {
    const char *id;
    uint32_t tenant;
    bool backbone, fixed;
    const struct task_ref *ref; /* [n_refs]; references to the modules are taken */
    uint32_t n_refs;
    int64_t created, updated;       /* 0: now */
    struct task_settings *settings; /* the version's from now on, on success; NULL: none */
    const char *problem;            /* copied; NULL */
};

/* Whether a task may have that name: -EINVAL with what is wrong. Any thread. */
int task_check_id(const char *id, struct err *e);
/* A version that no table has yet, with one reference. -EINVAL with what is wrong, -ENOMEM. */
int task_make(const struct task_spec *s, struct task_version **out, struct err *e);
/* Another name for the i-th module, in a version that no table has yet. 0 or -ENOMEM. */
int task_rename_ref(struct task_version *v, uint32_t i, const char *name, struct err *e);
/* A module that was given by name and has none any more; NULL: nothing is in the way. */
const char *task_missing_module(const struct task_version *v, const struct modules *m);

struct tasks;

struct tasks *tasks_create(void);
void tasks_free(struct tasks *t); /* takes NULL; versions in use live on */

/* Makes sure that the next tasks_set cannot fail. */
int tasks_reserve(struct tasks *t);
/* Makes v the current version of its task, in place of what was there; takes v's reference over. */
void tasks_set(struct tasks *t, struct task_version *v);
/* task_make and tasks_set. -EEXIST where the task is there. */
int tasks_add(struct tasks *t, const struct task_spec *s, struct err *e);
/* 0 or -ENOENT. */
int tasks_remove(struct tasks *t, const char *id);
/* The current version, whoever's it is; no reference. NULL: none. */
struct task_version *tasks_find(const struct tasks *t, const char *id);
/* The current version of a task that the tenant may see, with a reference; NULL: none. id need not be terminated. */
struct task_version *tasks_get(const struct tasks *t, uint32_t tenant, const char *id, size_t n_id);
/* The i-th task; NULL past the end. No reference. */
const struct task_version *tasks_at(const struct tasks *t, size_t i);
bool task_visible(const struct task_version *v, uint32_t tenant);
/* The first task whose current version uses that module: by its name, or by its content (m, may be NULL) where that is
 * how it was given. */
const struct task_version *tasks_using(const struct tasks *t, const char *name, const struct module *m);

#endif
