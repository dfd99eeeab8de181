/* resident.c - the budget, the queue of requests that wait, and what goes out for them.
 *
 * Loop thread only; it owns the lists, the counts and the memory of what is in. Freeing is a worker's: what goes out is
 * put on `trash`, and the next job takes it along and frees it before it loads. A load starts only when all that
 * others are still freeing leaves room for it, so that the budget is kept in fact.
 *
 * What always holds:
 *   used = the sum of need over items that are LOADING or IN, and used <= budget unless pins were adopted at start.
 *   An item goes out only from IN with no users and no holds. users counts requests that the engine may be working
 *   for, holds counts requests of the queue that have their place and wait for loads.
 *   A request in the queue holds either all of its items or none, and one that holds them waits for loads alone, which
 *   end. So what is held is used or let go, users end, and the first request of the queue gets its place: no deadlock.
 *   Memory goes strictly by the queue. Requests that need none may pass; `passed` counts them (resident.h).
 *
 * `pump` is the only place that moves requests on. It may be asked for from inside itself (a ready callback gives
 * modules back): then it goes round again.
 */
#include "server/resident.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct resident {
    struct resident_opts o;
    size_t used;    /* by what is in, loads, and what waits for its load */
    size_t real;    /* by what is in, and loads that run */
    size_t freeing; /* by what jobs that run free first */
    struct resident_item *lru_first, *lru_last;
    struct resident_item *job_first, *job_last;
    struct resident_want *first, *last;           /* the queue */
    struct resident_want *told_first, *told_last; /* have an outcome that ready has not been called for */
    struct resident_want *blocked;                /* the first of the queue that waits for memory */
    struct resident_mem *trash;
    struct resident_stats stats;
    bool pumping, again, any_closed;
};

struct resident *resident_create(const struct resident_opts *o)
{
    struct resident *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    r->o = *o;
    if (!r->o.max_jobs)
        r->o.max_jobs = 2;
    return r;
}

void resident_item_clear(struct resident_item *it)
{
    assert(it->state == RESIDENT_OUT && !it->users && !it->holds && !it->queued && !it->mem);
    free(it->why);
    it->why = NULL;
}

size_t resident_budget(const struct resident *r)
{
    return r->o.budget;
}

const struct resident_stats *resident_stats(const struct resident *r)
{
    return &r->stats;
}

/* ---- lists ---- */

static void lru_unlink(struct resident *r, struct resident_item *it)
{
    *(it->prev ? &it->prev->next : &r->lru_first) = it->next;
    *(it->next ? &it->next->prev : &r->lru_last) = it->prev;
    it->prev = it->next = NULL;
}

static void lru_append(struct resident *r, struct resident_item *it)
{
    it->next = NULL;
    it->prev = r->lru_last;
    *(r->lru_last ? &r->lru_last->next : &r->lru_first) = it;
    r->lru_last = it;
}

static void want_unlink(struct resident *r, struct resident_want *w, bool told)
{
    *(w->prev ? &w->prev->next : told ? &r->told_first : &r->first) = w->next;
    *(w->next ? &w->next->prev : told ? &r->told_last : &r->last) = w->prev;
    w->prev = w->next = NULL;
}

static void want_append(struct resident *r, struct resident_want *w, bool told)
{
    struct resident_want **last = told ? &r->told_last : &r->last;
    w->next = NULL;
    w->prev = *last;
    *(*last ? &(*last)->next : told ? &r->told_first : &r->first) = w;
    *last = w;
}

static bool has_before(const struct resident_want *w, uint32_t i)
{
    for (uint32_t k = 0; k < i; k++)
        if (w->item[k] == w->item[i])
            return true;
    return false;
}

static bool wants(const struct resident_want *w, const struct resident_item *it)
{
    for (uint32_t k = 0; k < w->n; k++)
        if (w->item[k] == it)
            return true;
    return false;
}

/* ---- out ---- */

static void put_out(struct resident *r, struct resident_item *it)
{
    assert(it->state == RESIDENT_IN && !it->users && !it->holds);
    lru_unlink(r, it);
    it->state = RESIDENT_OUT;
    it->closed = false;
    it->mem->next = r->trash;
    r->trash = it->mem;
    it->mem = NULL;
    r->used -= it->need;
    r->real -= it->need;
    r->stats.n_in--;
    r->stats.bytes_in = r->used;
}

static bool may_go(const struct resident_item *it, const struct resident_want *w)
{
    return !it->users && !it->holds && !it->pins && !(w && wants(w, it));
}

/* Items that nobody wants, or that are to go, leave with their last user. */
static void settle(struct resident *r, struct resident_item *it)
{
    if (it->state == RESIDENT_IN && !it->users && !it->holds && (!it->wanted || it->leaving))
        put_out(r, it);
    if (it->state == RESIDENT_OUT)
        it->leaving = false;
}

/* ---- in ---- */

static void queue_job(struct resident *r, struct resident_item *it)
{
    assert(!it->queued);
    it->queued = true;
    it->job_next = NULL;
    *(r->job_last ? &r->job_last->job_next : &r->job_first) = it;
    r->job_last = it;
    if (r->o.keep)
        r->o.keep(r->o.ctx, it, true);
}

static size_t bytes_of(const struct resident_want *w, bool only_out)
{
    size_t n = 0;
    for (uint32_t i = 0; i < w->n; i++)
        if (!has_before(w, i) && (!only_out || w->item[i]->state == RESIDENT_OUT))
            n += w->item[i]->need; /* each at most the budget: checked before */
    return n;
}

static size_t free_bytes(const struct resident *r)
{
    return r->used < r->o.budget ? r->o.budget - r->used : 0;
}

static void open_closed(struct resident *r)
{
    for (struct resident_item *it = r->lru_first; it && r->any_closed; it = it->next)
        it->closed = false;
    r->any_closed = false;
}

/* Closes the least recently used items in use until what they will free is enough for w. */
static void close_blockers(struct resident *r, const struct resident_want *w)
{
    size_t want = bytes_of(w, true), have = free_bytes(r);
    for (struct resident_item *it = r->lru_first; it; it = it->next)
        if (may_go(it, w) || it->closed)
            have += it->need;
    for (struct resident_item *it = r->lru_first; it && have < want; it = it->next) {
        if (it->closed || it->pins || may_go(it, w) || wants(w, it))
            continue;
        it->closed = r->any_closed = true;
        r->stats.closed++;
        have += it->need;
    }
}

static void count_passed(struct resident *r)
{
    struct resident_want *w = r->blocked;
    if (!w)
        return;
    r->stats.passed++;
    if (++w->passed >= RESIDENT_PASSED)
        close_blockers(r, w);
}

static void take(struct resident *r, struct resident_want *w)
{
    for (uint32_t i = 0; i < w->n; i++) {
        struct resident_item *it = w->item[i];
        it->users++;
        lru_unlink(r, it);
        lru_append(r, it);
    }
    w->state = WANT_TAKEN;
}

static void hold(struct resident_want *w, int by)
{
    for (uint32_t i = 0; i < w->n; i++)
        w->item[i]->holds += (unsigned)by;
}

/* Nobody waits for memory any more: those that waited behind, wherever they stand in the queue, may go on. */
static void unblock(struct resident *r)
{
    r->blocked = NULL;
    open_closed(r);
    r->again = true;
}

/* w waits no more; its state is the caller's to change. */
static void leave_queue(struct resident *r, struct resident_want *w)
{
    if (w->state == WANT_PLACED)
        hold(w, -1);
    want_unlink(r, w, false);
    r->stats.n_waiting--;
    if (w == r->blocked)
        unblock(r);
}

/* The outcome of a request of the queue. */
static void tell(struct resident *r, struct resident_want *w, int rc, const struct err *e)
{
    leave_queue(r, w);
    w->rc = rc;
    if (rc) {
        w->state = WANT_FAILED;
        w->err = *e;
        for (uint32_t i = 0; i < w->n; i++)
            settle(r, w->item[i]);
    } else {
        take(r, w);
    }
    want_append(r, w, true);
}

/* Puts out the least recently used until `bytes` fit; false, with nothing changed, when they cannot. */
static bool make_room(struct resident *r, const struct resident_want *w, size_t bytes)
{
    size_t have = free_bytes(r);
    for (struct resident_item *it = r->lru_first; it && have < bytes; it = it->next)
        if (may_go(it, w))
            have += it->need;
    if (have < bytes)
        return false;
    for (struct resident_item *it = r->lru_first, *next; it && free_bytes(r) < bytes; it = next) {
        next = it->next;
        if (!may_go(it, w))
            continue;
        put_out(r, it);
        r->stats.evictions++;
    }
    return true;
}

/* Could w ever have its place? Not beside the pinned ones, perhaps. */
static bool check_possible(struct resident *r, struct resident_want *w)
{
    size_t pinned = 0, own = 0;
    bool fits = true;
    for (struct resident_item *it = r->lru_first; it; it = it->next)
        if (it->pins && !wants(w, it))
            pinned += it->need;
    for (uint32_t i = 0; fits && i < w->n; i++)
        if (!has_before(w, i))
            fits = !__builtin_add_overflow(own, w->item[i]->need, &own) && own <= r->o.budget;
    if (fits && own <= r->o.budget - (pinned < r->o.budget ? pinned : r->o.budget))
        return true;
    struct err e;
    err_set(
        &e, -ENOMEM,
        "the modules of this task do not fit into memory (%zu bytes or more, the budget has %zu, %zu of them pinned)",
        own, r->o.budget, pinned);
    tell(r, w, -ENOMEM, &e);
    return false;
}

/* Asks for the sizes that are not known; true when all are. An item that is being opened stays with its job until that
 * is over, though a registration may have said its size meanwhile: only then can its load begin. */
static bool sizes_known(struct resident *r, struct resident_want *w)
{
    bool known = true;
    for (uint32_t i = 0; i < w->n; i++) {
        struct resident_item *it = w->item[i];
        if (it->need && it->state != RESIDENT_OPENING)
            continue;
        known = false;
        if (it->state == RESIDENT_OUT) {
            it->state = RESIDENT_OPENING;
            queue_job(r, it);
        }
    }
    return known;
}

static void start_loads(struct resident *r, struct resident_want *w)
{
    for (uint32_t i = 0; i < w->n; i++) {
        struct resident_item *it = w->item[i];
        if (it->state != RESIDENT_OUT)
            continue;
        it->state = RESIDENT_LOADING;
        r->used += it->need;
        queue_job(r, it);
    }
    r->stats.bytes_in = r->used;
}

static bool any_closed(const struct resident_want *w)
{
    for (uint32_t i = 0; i < w->n; i++)
        if (w->item[i]->closed)
            return true;
    return false;
}

/* Gives w its place when there is one. */
static void place(struct resident *r, struct resident_want *w)
{
    if (any_closed(w) || !sizes_known(r, w) || !check_possible(r, w))
        return;
    size_t bytes = bytes_of(w, true);
    if (bytes) {
        if (r->blocked && r->blocked != w)
            return;
        if (!make_room(r, w, bytes)) {
            r->blocked = w;
            if (w->passed >= RESIDENT_PASSED)
                close_blockers(r, w);
            return;
        }
        start_loads(r, w);
    }
    if (w == r->blocked)
        unblock(r);
    else if (!bytes)
        count_passed(r);
    hold(w, 1);
    w->state = WANT_PLACED;
}

static bool all_in(const struct resident_want *w)
{
    for (uint32_t i = 0; i < w->n; i++)
        if (w->item[i]->state != RESIDENT_IN)
            return false;
    return true;
}

/* ---- jobs ---- */

static void count_job(struct resident *r, const struct resident_job *j, bool begins)
{
    size_t load = j->load ? j->item->need : 0;
    r->stats.n_jobs += begins ? 1 : -(size_t)1;
    r->freeing += begins ? j->freeing : -j->freeing;
    r->real += begins ? load : -load;
}

static struct resident_job *make_job(struct resident *r, struct resident_item *it)
{
    struct resident_job *j = calloc(1, sizeof *j);
    if (j && it && it->state == RESIDENT_LOADING && !(j->mem = calloc(1, sizeof *j->mem))) {
        free(j);
        j = NULL;
    }
    if (!j)
        return NULL;
    j->item = it;
    j->load = j->mem != NULL;
    j->trash = r->trash;
    for (const struct resident_mem *m = r->trash; m; m = m->next)
        j->freeing += m->bytes;
    r->trash = NULL;
    count_job(r, j, true);
    return j;
}

static void fail_item(struct resident *r, struct resident_item *it, int rc, const struct err *e)
{
    if (it->state == RESIDENT_LOADING) {
        r->used -= it->need;
        r->stats.bytes_in = r->used;
    }
    it->state = RESIDENT_OUT;
    it->rc = rc;
    if (!it->why)
        it->why = malloc(sizeof *it->why);
    if (it->why)
        *it->why = *e;
    r->stats.load_errors++;
    for (struct resident_want *w = r->first, *next; w; w = next) {
        next = w->next;
        if (wants(w, it))
            tell(r, w, rc, e);
    }
}

/* Starts a job for it (NULL: only to free what went out). */
static int start_job(struct resident *r, struct resident_item *it)
{
    struct resident_job *j = make_job(r, it);
    if (!j)
        return -ENOMEM;
    if (!r->o.start(r->o.ctx, j))
        return 0;
    r->trash = j->trash;
    count_job(r, j, false);
    free(j->mem);
    free(j);
    return -ENOMEM;
}

static void start_jobs(struct resident *r)
{
    while (r->job_first && r->stats.n_jobs < r->o.max_jobs) {
        struct resident_item *it = r->job_first;
        if (it->state == RESIDENT_LOADING && r->freeing && r->real + r->freeing + it->need > r->o.budget)
            return; /* until a job is over */
        r->job_first = it->job_next;
        if (!r->job_first)
            r->job_last = NULL;
        it->queued = false;
        if (!start_job(r, it))
            continue;
        struct err e;
        fail_item(r, it, err_set(&e, -ENOMEM, "the server is out of memory"), &e);
        r->again = true;
        if (r->o.keep)
            r->o.keep(r->o.ctx, it, false);
    }
    if (r->trash && r->stats.n_jobs < r->o.max_jobs)
        (void)start_job(r, NULL); /* without memory for a job it waits for the next one */
}

static void pump(struct resident *r)
{
    if (r->pumping) {
        r->again = true;
        return;
    }
    r->pumping = true;
    do {
        r->again = false;
        for (struct resident_want *w = r->first, *next; w; w = next) {
            next = w->next;
            if (w->state == WANT_WAITING)
                place(r, w);
            if (w->state == WANT_PLACED && all_in(w))
                tell(r, w, 0, NULL);
        }
        start_jobs(r);
        for (struct resident_want *w; (w = r->told_first);) {
            want_unlink(r, w, true);
            w->listed = false;
            if (w->state == WANT_FAILED)
                w->state = WANT_NONE;
            w->ready(w->user, w->rc, &w->err);
        }
    } while (r->again);
    r->pumping = false;
}

void resident_done(struct resident *r, struct resident_job *j)
{
    struct resident_item *it = j->item;
    assert(!j->trash);
    count_job(r, j, false);
    if (it && j->load)
        r->used -= it->need; /* and again, as much as it really is */
    if (it && j->need)
        it->need = j->need;
    if (it && j->load)
        r->used += it->need;
    if (it && j->rc) {
        fail_item(r, it, j->rc, &j->err);
    } else if (it && !j->load) {
        it->state = RESIDENT_OUT;
    } else if (it) {
        it->state = RESIDENT_IN;
        it->mem = j->mem;
        it->mem->bytes = it->need;
        r->real += it->need;
        j->mem = NULL;
        it->rc = 0;
        it->seconds = j->seconds;
        lru_append(r, it);
        r->stats.n_in++;
        r->stats.bytes_in = r->used;
        r->stats.loads++;
        r->stats.load_seconds += j->seconds;
        settle(r, it);
    }
    free(j->mem);
    free(j);
    if (it && r->o.keep)
        r->o.keep(r->o.ctx, it, false);
    pump(r);
}

/* ---- callers ---- */

bool resident_take(struct resident *r, struct resident_want *w)
{
    w->passed = 0;
    if (all_in(w) && !any_closed(w)) {
        if (w->n)
            count_passed(r);
        take(r, w);
        return true;
    }
    w->state = WANT_WAITING;
    w->listed = true;
    want_append(r, w, false);
    r->stats.n_waiting++;
    pump(r);
    return false;
}

void resident_give(struct resident *r, struct resident_want *w)
{
    bool taken = w->state == WANT_TAKEN, told = w->listed && (taken || w->state == WANT_FAILED);
    if (told) {
        want_unlink(r, w, true);
    } else if (w->listed) {
        leave_queue(r, w);
    } else if (!taken) {
        return;
    }
    for (uint32_t i = 0; i < w->n; i++) {
        w->item[i]->users -= taken;
        settle(r, w->item[i]);
    }
    w->listed = false;
    w->state = WANT_NONE;
    if (r->first || r->trash)
        pump(r);
}

void resident_wanted(struct resident *r, struct resident_item *it, bool wanted)
{
    it->wanted = wanted;
    settle(r, it);
    if (r->trash)
        pump(r);
}

void resident_put_out(struct resident *r, struct resident_item *it)
{
    it->leaving = true;
    settle(r, it);
    if (r->trash)
        pump(r);
}

void resident_adopt(struct resident *r, struct resident_item *it, size_t need, struct resident_mem *mem)
{
    assert(it->state == RESIDENT_OUT && need);
    it->state = RESIDENT_IN;
    it->need = need;
    it->mem = mem;
    mem->bytes = need;
    lru_append(r, it);
    r->used += need;
    r->real += need;
    r->stats.bytes_in = r->used;
    r->stats.n_in++;
}

struct resident_mem *resident_free(struct resident *r)
{
    if (!r)
        return NULL;
    assert(!r->first && !r->stats.n_jobs);
    for (struct resident_item *it = r->lru_first, *next; it; it = next) {
        next = it->next;
        it->prev = it->next = NULL;
        it->users = it->holds = 0;
        it->state = RESIDENT_OUT;
        it->mem->next = r->trash;
        r->trash = it->mem;
        it->mem = NULL;
    }
    struct resident_mem *trash = r->trash;
    free(r);
    return trash;
}
