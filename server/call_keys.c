/* call_keys.c - the keys under which the prefix cache keeps the pages of a request's prompts.
 *
 * The root is made on the loop thread, which owns the modules. The keys are made with the tokenizing, on the loop or on
 * a worker: a hash of 160 bytes a page of 32 tokens, so that the engine thread has none to compute for a prompt. They
 * lie in the call's arena. The tenant is the request's own, also where the task is everybody's, so that no tenant's
 * answers come sooner for what another one sent. A module counts by its content: one put anew under an old name finds
 * nothing of the old one.
 */
#include "server/call.h"

int call_root_key(struct call *c)
{
    const struct task_version *v = c->task;
    if (c->sv->o->no_prefix_cache)
        return 0;
    struct model_prefix_pet *pet = arena_calloc(c->a, v->n_pets + 1, sizeof *pet);
    if (!pet)
        return -ENOMEM;
    for (uint32_t i = 0; i < v->n_pets; i++) {
        pet[i].hash = v->module[i]->info.hash;
        pet[i].weight = v->pet[i].weight;
    }
    model_prefix_root(engine_model(c->sv->en), c->tenant, pet, v->n_pets, &c->root_key);
    return 0;
}

int call_keys(struct call *c, struct err *e)
{
    if (c->sv->o->no_prefix_cache)
        return 0;
    for (size_t i = 0; i < c->n_prompts; i++) {
        struct call_prompt *p = &c->prompt[i];
        if (!p->n || p->n > c->sv->mi->max_context) /* refused later, with a message */
            continue;
        struct hash *keys = arena_calloc(c->a, p->n / KERN_PAGE_TOKENS + 1, sizeof *keys);
        if (!keys)
            return err_set(e, -E2BIG, "the request is too large");
        keys[0] = c->root_key;
        prefix_keys(p->id, (uint32_t)p->n, keys);
        p->keys = keys;
    }
    return 0;
}
