/* call_stages.c - the stages of calls that grow with what a client sent: here, or on libuv's worker pool.
 *
 * Loop thread, but for the stage itself. The pool takes its work in the order of its coming, so what goes there is held
 * back: CALL_TURNS stages at most are on it at a time, TURNS_EACH of one tenant, and the rest of the workers is for
 * admin calls. Who waits gets the next turn when its tenant has the fewest; among those, who came first. So a tenant
 * that sends forms which take seconds to compile waits for its own, and nobody else does.
 *
 * A large body's next stage goes before all others of its tenant: parsed requests do not pile up, whose memory no limit
 * counts until they are admitted.
 *
 * A call that waits for a turn is in the list and nowhere else: it may be dropped at any time (call_stage_forget). One
 * that has a turn is kept by in_work until its worker is through.
 */
#include <string.h>

#include "server/call.h"

#define TURNS_EACH (CALL_TURNS - 1)

static void next_turns(struct server *sv);

static void unlink_waiting(struct call *c)
{
    struct call_turns *t = &c->sv->turns;
    *(c->turn_prev ? &c->turn_prev->turn_next : &t->first) = c->turn_next;
    *(c->turn_next ? &c->turn_next->turn_prev : &t->last) = c->turn_prev;
    c->turn_next = c->turn_prev = NULL;
    c->turn_waits = false;
}

/* first: before those that came earlier. */
static void wait_turn(struct call_turns *t, struct call *c, bool first)
{
    struct call *next = first ? t->first : NULL, *prev = first ? NULL : t->last;
    c->turn_waits = true;
    c->turn_next = next;
    c->turn_prev = prev;
    *(prev ? &prev->turn_next : &t->first) = c;
    *(next ? &next->turn_prev : &t->last) = c;
}

void call_stage_forget(struct call *c)
{
    if (c->turn_waits)
        unlink_waiting(c);
}

static void on_work(uv_work_t *w)
{
    struct call *c = w->data;
    c->stage_rc = c->stage(c, &c->stage_err);
}

static void give_turn_back(struct call *c)
{
    struct call_turns *t = &c->sv->turns;
    for (unsigned i = 0; i < CALL_TURNS; i++)
        if (t->has[i] == c)
            t->has[i] = NULL;
}

static void after_work(uv_work_t *w, int status)
{
    struct call *c = w->data;
    struct server *sv = c->sv;
    give_turn_back(c);
    c->in_work = false;
    if (!c->r || c->answered) { /* the client has left, or was told that the server stops */
        call_drop(c);
    } else {
        if (status)
            c->stage_rc = err_set(&c->stage_err, -ESHUTDOWN, "the server is shutting down");
        c->after(c, c->stage_rc, &c->stage_err);
    }
    next_turns(sv);
}

static unsigned turns_of(const struct call_turns *t, uint32_t tenant)
{
    unsigned n = 0;
    for (unsigned i = 0; i < CALL_TURNS; i++)
        n += t->has[i] && t->has[i]->tenant == tenant;
    return n;
}

static struct call *whose_turn(const struct call_turns *t)
{
    struct call *best = NULL;
    unsigned least = TURNS_EACH;
    for (struct call *c = t->first; c && least; c = c->turn_next) {
        unsigned n = turns_of(t, c->tenant);
        if (n < least) {
            best = c;
            least = n;
        }
    }
    return best;
}

static void next_turns(struct server *sv)
{
    struct call_turns *t = &sv->turns;
    unsigned i = 0;
    for (struct call *c; i < CALL_TURNS && (t->has[i] || (c = whose_turn(t)));) {
        if (t->has[i]) {
            i++;
            continue;
        }
        unlink_waiting(c);
        if (c->answered) /* it was told that the server stops; it goes with its connection */
            continue;
        t->has[i] = c;
        c->in_work = true;
        if (!uv_queue_work(sv->loop, &c->work, on_work, after_work))
            continue;
        on_work(&c->work); /* the pool takes nothing: here, then */
        after_work(&c->work, 0);
    }
}

void call_stage(struct call *c, bool large, int (*stage)(struct call *c, struct err *e),
                void (*after)(struct call *c, int rc, struct err *e))
{
    struct call_turns *t = &c->sv->turns;
    c->stage = stage;
    c->after = after;
    memset(&c->stage_err, 0, sizeof c->stage_err);
    c->work.data = c;
    if (!large) {
        int rc = stage(c, &c->stage_err);
        after(c, rc, &c->stage_err);
        return;
    }
    wait_turn(t, c, c->req && c->n_body > CALL_INLINE_BYTES);
    next_turns(c->sv);
}
