/* load.h - what takes long at start: the model, its tokenizer and template, and the modules of --pet. */
#ifndef CPET_SERVER_LOAD_H
#define CPET_SERVER_LOAD_H

#include "model/template.h"
#include "model/tokenizer.h"
#include "server/options.h"
#include "server/task.h"

struct loaded {
    const struct options *o; /* in */
    struct kern_dev *dev;
    struct tok *tok;
    struct tmpl *tmpl;
    char tmpl_problem[512];              /* why the backbone's template cannot be used; "" */
    struct module *module[OPTIONS_MANY]; /* [o->n_pets] */
};

/* engine_opts.load: runs on the engine thread; ctx is a struct loaded with `o` set. */
int load_all(void *ctx, struct model **out, struct err *e);
/* Frees what load_all made (not the model, which the engine closes before). */
void loaded_free(struct loaded *l);

#endif
