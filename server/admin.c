/* admin.c - operations of the admin listener: their queues, their memory, their answers.
 *
 * Loop thread; run_work alone is on a worker, and touches nothing but its operation, the registry (commits, one at a
 * time) and what is constant. An operation owns its arena, its copy of the request and whatever it makes, until `after`
 * gives that to the tables. What always holds: at most `limit` operations of a queue run, in the order of their coming;
 * an answer goes out only after `after`, so what is acknowledged is durable.
 *
 * Contents that nothing names any more are collected by an operation of its own, a second after a write that may have
 * made some, and never while a request may want a load: it may be on a version that was deleted meanwhile.
 */
#include "server/admin.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "server/call.h"
#include "server/log.h"

#define BODIES_MAX ((size_t)256 << 20) /* of all operations together */
#define CHECKS 2                       /* modules that are validated at once */
#define PARSES 2
#define ARENA_BYTES ((size_t)16 << 20)
#define COLLECT_MS 1000

int admin_open(struct server *sv)
{
    struct admin *ad = calloc(1, sizeof *ad);
    if (!ad)
        return -ENOMEM;
    ad->check.limit = CHECKS;
    ad->check.slow = true;
    ad->parse.limit = PARSES;
    ad->commit.limit = 1;
    uv_timer_init(sv->loop, &ad->collect);
    ad->collect.data = sv;
    ad->collect_open = true;
    uv_unref((uv_handle_t *)&ad->collect);
    sv->ad = ad;
    return 0;
}

unsigned admin_busy(const struct server *sv)
{
    return sv->ad ? sv->ad->n_ops : 0;
}

static void drop_queue(struct admin_queue *q)
{
    for (struct admin_op *op; (op = q->first);) {
        q->first = op->next;
        admin_op_free(op);
    }
    q->last = NULL;
}

void admin_stop(struct server *sv)
{
    struct admin *ad = sv->ad;
    if (!ad || ad->stopping)
        return;
    ad->stopping = true;
    drop_queue(&ad->check); /* their clients get no answer: nothing of these was done */
    drop_queue(&ad->parse);
    drop_queue(&ad->commit);
    if (ad->collect_open)
        uv_close((uv_handle_t *)&ad->collect, NULL);
    ad->collect_open = false;
}

void admin_free(struct server *sv)
{
    free(sv->ad);
    sv->ad = NULL;
}

/* ---- operations ---- */

struct admin_op *admin_op_new(struct server *sv, struct http_req *r, const char *name, bool take_body)
{
    struct admin *ad = sv->ad;
    struct admin_op *op = calloc(1, sizeof *op);
    struct arena *a = op ? arena_create(ARENA_BYTES) : NULL;
    struct err e;
    size_t n = 0;
    if (r && take_body)
        http_body(r, &n);
    if (op && a) {
        op->sv = sv;
        op->a = a;
        op->name = arena_strndup(a, name, strlen(name));
    }
    if (!op || !op->name || n > BODIES_MAX - ad->body_bytes) {
        err_set(&e, -ENOMEM, "the server has no memory for this call now");
        if (r)
            api_error(r, 503, &e, NULL);
        arena_free(a);
        free(op);
        return NULL;
    }
    if (r && take_body) {
        op->body = http_body_take(r, &op->n_body);
        op->counted = op->n_body;
        ad->body_bytes += op->counted;
    }
    op->r = r;
    if (r)
        http_set_user(r, op);
    ad->n_ops++;
    server_job_begin(sv);
    return op;
}

void admin_op_free(struct admin_op *op)
{
    struct admin *ad = op->sv->ad;
    if (op->r)
        http_set_user(op->r, NULL);
    ad->body_bytes -= op->counted;
    ad->n_ops--;
    module_name_free(op->entry);
    module_unref(op->m);
    task_unref(op->v);
    task_settings_free(op->settings);
    free(op->staged);
    free(op->body);
    arena_free(op->a);
    struct server *sv = op->sv;
    free(op);
    server_job_over(sv);
}

void admin_closed(struct server *sv, struct http_req *r)
{
    struct admin_op *op = http_user(r);
    (void)sv;
    if (op)
        op->r = NULL;
}

void admin_answer(struct admin_op *op, int status, const char *type, struct buf *b)
{
    struct http_req *r = op->r;
    struct err e;
    if (r)
        http_set_user(r, NULL);
    op->r = NULL;
    if (r && op->rc) {
        api_error(r, resp_status(op->rc), &op->err, NULL);
    } else if (r && b && b->failed) {
        err_set(&e, -ENOMEM, "the server is out of memory"); /* what was asked for is done all the same */
        api_error(r, 503, &e, NULL);
    } else if (r) {
        http_reply(r, status, b ? type : NULL, b ? b->data : "", b ? b->len : 0, NULL, 0);
    }
    if (b)
        buf_free(b);
    admin_op_free(op);
}

/* ---- queues ---- */

static void run_next(struct admin_queue *q);

static void run_work(uv_work_t *w)
{
    struct admin_op *op = w->data;
    op->rc = op->work(op, &op->err);
}

/* The place is given up first: after may end the operation, or take the place again (admin_again) before another can.
 */
static void leave(struct admin_op *op)
{
    struct admin_queue *q = op->q;
    struct server *sv = op->sv;
    q->running--;
    server_job_begin(sv); /* q lives until run_next is through */
    op->after(op);
    run_next(q);
    server_job_over(sv);
}

static void after_work(uv_work_t *w, int status)
{
    struct admin_op *op = w->data;
    if (status && !op->rc)
        op->rc = err_set(&op->err, -ESHUTDOWN, "the server is shutting down");
    leave(op);
}

static struct admin_op *of_job(struct background_job *j)
{
    return (struct admin_op *)((char *)j - offsetof(struct admin_op, job));
}

static void run_slow(struct background_job *j)
{
    struct admin_op *op = of_job(j);
    op->rc = op->work(op, &op->err);
}

static void after_slow(struct background_job *j)
{
    leave(of_job(j));
}

static void begin(struct admin_op *op)
{
    op->q->running++;
    op->rc = op->prepare ? op->prepare(op, &op->err) : 0;
    if (op->q->slow) {
        op->job = (struct background_job){.work = run_slow, .after = after_slow};
        background_run(op->sv->background, &op->job);
        return;
    }
    op->uv.data = op;
    if (!uv_queue_work(op->sv->loop, &op->uv, run_work, after_work))
        return;
    op->rc = err_set(&op->err, -ENOMEM, "the server is out of memory");
    leave(op);
}

static void run_next(struct admin_queue *q)
{
    while (q->first && q->running < q->limit) {
        struct admin_op *op = q->first;
        q->first = op->next;
        if (!q->first)
            q->last = NULL;
        begin(op);
    }
}

void admin_run(struct admin_op *op, struct admin_queue *q, int (*prepare)(struct admin_op *, struct err *),
               int (*work)(struct admin_op *, struct err *), void (*after)(struct admin_op *))
{
    op->q = q;
    op->prepare = prepare;
    op->work = work;
    op->after = after;
    op->next = NULL;
    if (op->sv->ad->stopping) {
        admin_op_free(op);
        return;
    }
    *(q->last ? &q->last->next : &q->first) = op;
    q->last = op;
    run_next(q);
}

void admin_again(struct admin_op *op, int (*prepare)(struct admin_op *, struct err *),
                 int (*work)(struct admin_op *, struct err *), void (*after)(struct admin_op *))
{
    op->prepare = prepare;
    op->work = work;
    op->after = after;
    begin(op);
}

/* ---- contents that are nobody's ---- */

static int collect_work(struct admin_op *op, struct err *e)
{
    return registry_collect(op->sv->registry, e);
}

static void collect_after(struct admin_op *op)
{
    if (op->rc)
        log_line("warning", "contents of deleted modules were not removed: %s", op->err.msg);
    admin_op_free(op);
}

/* A request on a version that is not current, which may still want its modules read. */
static bool any_on_old_version(const struct server *sv)
{
    for (const struct call *c = sv->calls; c; c = c->next)
        if (c->task && !c->answered && !c->n_with_engine && tasks_find(sv->tasks, c->task->id) != c->task)
            return true;
    return false;
}

static void on_collect(uv_timer_t *t)
{
    struct server *sv = t->data;
    const struct resident_stats *s = resident_stats(sv->resident);
    if (s->n_waiting || s->n_jobs || sv->ad->commit.running || sv->ad->commit.first || any_on_old_version(sv)) {
        admin_collect(sv);
        return;
    }
    struct admin_op *op = admin_op_new(sv, NULL, "", false);
    if (op)
        admin_run(op, &sv->ad->commit, NULL, collect_work, collect_after);
}

void admin_collect(struct server *sv)
{
    struct admin *ad = sv->ad;
    if (ad->collect_open && !uv_is_active((uv_handle_t *)&ad->collect))
        uv_timer_start(&ad->collect, on_collect, COLLECT_MS, 0);
}
