/* load.h - what takes long at start: the model, its tokenizer and template, the modules of --pet, the registry. */
#ifndef CPET_SERVER_LOAD_H
#define CPET_SERVER_LOAD_H

#include "model/template.h"
#include "model/tokenizer.h"
#include "server/grammars.h"
#include "server/options.h"
#include "server/registry.h"
#include "server/task.h"

/* A module of --pet. */
struct loaded_pet {
    struct pet_info info;
    size_t need; /* its bytes in memory */
    double seconds;
    struct resident_mem *mem; /* NULL: not loaded, for want of room, or because an earlier one has the same content */
};

/* A task of the registry, beside its row. */
struct loaded_task {
    struct task_settings *settings;
    char *problem; /* why it cannot be used; NULL */
};

struct loaded {
    const struct options *o; /* in */
    struct kern_dev *dev;
    struct tok *tok;
    struct tmpl *tmpl;
    char tmpl_problem[512];      /* why the backbone's template cannot be used; "" */
    struct grammar_vocab *vocab; /* of answers with a form; NULL: they cannot be had */
    struct grammars *grammars;
    char vocab_problem[512]; /* why not; "" */
    struct loaded_pet *pet;  /* [o->n_pets] */
    bool pets_fit;           /* all of --pet are loaded, and stay */

    struct registry *registry; /* NULL: nobody can write to one */
    struct arena *rows;
    const struct registry_module *module;
    const struct registry_task *task;
    struct loaded_task *task_more; /* [n_tasks] */
    bool *module_there;            /* [n_modules]: the content's file is */
    size_t n_modules, n_tasks;
};

/* engine_opts.load: runs on the engine thread; ctx is a struct loaded with `o` set. */
int load_all(void *ctx, struct model **out, struct err *e);
/* Frees what load_all made (not the model, which the engine closes before). */
void loaded_free(struct loaded *l);

struct server;

/* Loop thread, after load_all: the tables' entries of the backbone, --pet and the registry. Errors with err.param are
 * of the configuration. */
int load_tables(struct server *sv, struct loaded *l, struct err *e);

#endif
