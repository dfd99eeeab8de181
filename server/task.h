/* task.h - tasks and modules: what a client's "model" stands for.
 *
 * The loop thread owns the table, the counts of users and the freeing. module_load alone may run on any thread. A
 * struct module and a struct task_version never change once made: a request takes a reference to the version that is
 * current when it comes, and keeps it, whatever happens to the table meanwhile.
 */
#ifndef CPET_SERVER_TASK_H
#define CPET_SERVER_TASK_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "common/hash.h"
#include "model/model.h"
#include "model/template.h"
#include "pet/pet.h"
#include "proto/proto.h"
#include "server/keys.h"

#define TASK_ID_MAX 128
#define TASK_EVERYBODY KEYS_NO_TENANT /* the tenant of a task that every key may use */

/* A resident module. */
struct module {
    unsigned refs;
    char *name;           /* as it was asked for: a path or a name */
    struct pet_info info; /* hash is the version */
    struct pet_slot *slot;
    struct kern_dev *dev;
    double load_seconds;
};

/* Reads, checks against t and makes resident. Any thread. The caller has the first reference. */
int module_load(struct kern_dev *d, const struct pet_target *t, const char *path, uint32_t max_rank,
                struct module **out, struct err *e);
void module_ref(struct module *m);
void module_unref(struct module *m); /* unloads with the last; takes NULL */

struct task_version {
    unsigned refs;
    uint64_t number; /* distinct a task; the same for its versions */
    char *id;
    uint32_t tenant;  /* or TASK_EVERYBODY */
    bool backbone;    /* the backbone itself */
    int64_t created;  /* seconds since 1970 */
    struct hash hash; /* of modules, weights, template and defaults */
    struct module **module;
    struct model_pet *pet; /* [n_pets] */
    uint32_t n_pets;
    struct tmpl *tmpl;                   /* NULL: the backbone's */
    const struct req_sampling *defaults; /* NULL: none */
    struct arena *memory;                /* of defaults */
};
void task_ref(struct task_version *v);
void task_unref(struct task_version *v); /* takes NULL */

struct task_spec {
    const char *id;
    uint32_t tenant;
    bool backbone;
    struct module *const *module; /* [n_modules]; references are taken */
    const float *weight;          /* [n_modules] */
    uint32_t n_modules;
    const char *template_text; /* NULL: the backbone's */
    const char *defaults_json; /* NULL: none */
};

struct tasks;

struct tasks *tasks_create(void);
void tasks_free(struct tasks *t); /* takes NULL; versions in use live on */

/* Whether a task may have that name: -EINVAL with what is wrong. Any thread. */
int task_check_id(const char *id, struct err *e);
/* Adds a task, or (replace) points an old one to a new version. -EEXIST, -EINVAL with what is wrong. */
int tasks_put(struct tasks *t, const struct task_spec *s, bool replace, struct err *e);
/* 0 or -ENOENT. */
int tasks_remove(struct tasks *t, const char *id);
/* The current version of a task that the tenant may see, with a reference; NULL: none. id need not be terminated. */
struct task_version *tasks_get(const struct tasks *t, uint32_t tenant, const char *id, size_t n_id);
/* The i-th task; NULL past the end. No reference. */
const struct task_version *tasks_at(const struct tasks *t, size_t i);
bool task_visible(const struct task_version *v, uint32_t tenant);

#endif
