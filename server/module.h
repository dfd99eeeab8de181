/* module.h - modules: contents by their hash, and the names that stand for them.
 *
 * Loop thread only. A content (struct module) is one .pet, whatever it is called; several names and tasks may share it.
 * A request holds a reference through its task's version. Whether a content is in memory is resident.h's matter.
 */
#ifndef CPET_SERVER_MODULE_H
#define CPET_SERVER_MODULE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/hash.h"
#include "pet/pet.h"
#include "server/resident.h"
#include "server/table.h"

struct modules;

/* A content. */
struct module {
    struct resident_item res; /* resident.c's; first, so that an item is its module */
    struct modules *table;
    unsigned refs;
    unsigned wanted;      /* names and current versions of tasks */
    struct pet_info info; /* hash is the version; bytes 0: nothing but the hash is known yet */
    char *path;           /* the file, or the PEFT directory, that it is loaded from */
};

/* A name for a content. */
struct module_name {
    char *name;
    uint32_t tenant; /* or TASK_EVERYBODY */
    bool pinned;
    bool fixed;    /* of --pet: not in the registry, not to be changed */
    bool draining; /* deleted; it is listed until the last request ends, and stands for nothing */
    int64_t created;
    struct module *m;
    struct resident_want pin; /* brings a pinned content in */
    struct resident_item *pin_item;
};

struct modules {
    struct table content; /* struct module, by hash */
    struct table name;    /* struct module_name */
    struct resident *res; /* NULL once it is gone */
};

struct modules *modules_create(struct resident *r);
/* Drops the names. Contents that are still referred to live on. Takes NULL. */
void modules_free(struct modules *t);

/* The content with that hash, made when it is new, with a reference for the caller; path is copied. NULL: no memory. */
struct module *module_get(struct modules *t, const struct pet_info *info, const char *path);
/* Without a reference; NULL: none is known. */
struct module *module_find(const struct modules *t, const struct hash *h);
void module_ref(struct module *m);
void module_unref(struct module *m); /* takes NULL */
/* One more, or one less, that stands for it; with none it leaves memory with its last request. */
void module_want(struct module *m, int by);

#define MODULE_NAME_MAX 128
/* Whether a module may have that name: -EINVAL with what is wrong. Any thread. */
int module_check_name(const char *name, struct err *e);

/* What the name stands for; NULL: nothing, or it is draining. */
struct module_name *module_named(const struct modules *t, const char *name);
/* Makes n (malloc'ed, with its name) the entry of its name, in place of an old one; it takes over a reference to n->m.
 * Room must have been made by module_reserve. */
void module_set_name(struct modules *t, struct module_name *n);
int module_reserve(struct modules *t);
/* A new entry for module_set_name; it takes a reference to m. NULL: no memory. */
struct module_name *module_name_new(struct module *m, const char *name, uint32_t tenant, bool pinned, bool fixed,
                                    int64_t created);
void module_name_free(struct module_name *n); /* one that was never set; takes NULL */
/* Whether a name stands for it; fixed: one of --pet. */
bool module_has_name(const struct modules *t, const struct module *m, bool fixed);
/* The name stands for nothing from now on; its content leaves memory with its last request, and the entry the list. */
void module_drop_name(struct modules *t, const char *name);
/* Takes entries out of the list whose last request has ended. */
void module_sweep(struct modules *t);
/* Pinned names give up waiting for their contents: the server stops. */
void module_stop(struct modules *t);
/* Bytes of pinned contents whose size is known, without `except` (may be NULL). */
size_t module_pinned_bytes(const struct modules *t, const struct module *except);

#endif
