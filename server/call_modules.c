/* call_modules.c - a request and the modules of its task: it has them all before the engine gets it.
 *
 * Loop thread. A request whose modules are in memory passes through call_admit at once; one that needs a load waits in
 * resident.c's queue, counted with those that wait for the engine. While it waits its client may leave, its time may
 * run out (a timer looks each WAIT_LOOK_MS) and the server may stop: each gives back what it has. The modules are given
 * back when the engine has let go of the last generation, not when the client has read the last byte.
 */
#include <stdlib.h>
#include <string.h>

#include "server/call.h"
#include "server/log.h"

#define WAIT_LOOK_MS 20

int call_check_task(const struct call *c, struct err *e)
{
    const struct task_version *v = c->task;
    const char *gone = task_missing_module(v, c->sv->modules);
    if (v->problem)
        return err_param(e, -EIO, "model", "the model \"%s\" cannot be used: %s", v->id, v->problem);
    if (gone)
        return err_param(e, -ESHUTDOWN, "model", "the model \"%s\" cannot be used: its module \"%s\" was deleted",
                         v->id, gone);
    return 0;
}

int call_make_pets(struct call *c)
{
    const struct task_version *v = c->task;
    c->pet = arena_calloc(c->a, v->n_pets + 1u, sizeof *c->pet);
    struct resident_item **item = arena_calloc(c->a, v->n_pets + 1u, sizeof(struct resident_item *));
    if (!c->pet || !item)
        return -ENOMEM;
    for (uint32_t i = 0; i < v->n_pets; i++)
        item[i] = &v->module[i]->res;
    c->want.item = item;
    c->want.n = v->n_pets;
    return 0;
}

static void count(struct call *c, int by)
{
    struct server *sv = c->sv;
    c->waiting = by > 0;
    by *= (int)c->n_prompts;
    sv->n_waiting += (uint32_t)by;
    call_count_gens(c, by);
}

static void go(struct call *c)
{
    const struct task_version *v = c->task;
    for (uint32_t i = 0; i < v->n_pets; i++)
        c->pet[i] = (struct model_pet){pet_slot_kern(v->module[i]->res.mem->slot), v->pet[i].weight};
    call_submit(c);
}

void call_let_go(struct call *c)
{
    if (c->waiting)
        count(c, -1);
    if (c->want.state != WANT_NONE)
        resident_give(c->sv->resident, &c->want);
}

/* What went wrong with a module is the operator's to know: files and layers are not told to clients. */
static void fail(struct call *c, int rc, const struct err *why)
{
    struct err e;
    log_line("error", "the task %s: %s", c->task->id, why->msg);
    if (rc == -ENOMEM)
        err_param(&e, rc, "model", "the model \"%s\" cannot be used now: there is no memory for its modules",
                  c->task->id);
    else
        err_param(&e, rc, "model", "the model \"%s\" cannot be used: its module cannot be loaded", c->task->id);
    call_fail(c, resp_status(rc), &e, NULL);
}

static void on_ready(void *user, int rc, const struct err *why)
{
    struct call *c = user;
    count(c, -1);
    if (!c->r || c->answered)
        call_let_go(c);
    else if (rc)
        fail(c, rc, why);
    else
        go(c);
    call_drop(c);
}

static void on_look(uv_timer_t *t)
{
    struct server *sv = t->data;
    uint64_t now = mono_ns();
    struct err e;
    bool any = false;
    for (struct call *c = sv->calls, *next; c; c = next) {
        next = c->next;
        any |= c->waiting;
        if (!c->waiting || !c->want.deadline_ns || now < c->want.deadline_ns)
            continue;
        call_let_go(c);
        err_set(&e, -ETIMEDOUT, "the request took longer than the server's limit");
        call_fail(c, resp_status(-ETIMEDOUT), &e, NULL);
    }
    if (!any)
        uv_timer_stop(t);
}

void call_admit(struct call *c)
{
    struct server *sv = c->sv;
    c->queued_ns = mono_ns();
    c->want.ready = on_ready;
    c->want.user = c;
    if (sv->o->request_timeout_ms)
        c->want.deadline_ns = c->start_ns + (uint64_t)sv->o->request_timeout_ms * 1000000u;
    count(c, 1); /* before: ready may come from inside */
    if (resident_take(sv->resident, &c->want)) {
        count(c, -1);
        go(c);
        return;
    }
    if (c->waiting && !uv_is_active((uv_handle_t *)&sv->wait_look))
        uv_timer_start(&sv->wait_look, on_look, WAIT_LOOK_MS, WAIT_LOOK_MS);
}

void call_waits_open(struct server *sv)
{
    uv_timer_init(sv->loop, &sv->wait_look);
    sv->wait_look.data = sv;
    uv_unref((uv_handle_t *)&sv->wait_look);
}

void call_waits_close(struct server *sv)
{
    uv_close((uv_handle_t *)&sv->wait_look, NULL);
}
