/* resident.h - which modules are in memory: a budget of bytes, loads when a request needs them, the least recently used
 * out first.
 *
 * Loop thread only. Reading, packing and freeing are jobs that `start` hands to the worker pool; resident_done brings
 * each back. A request asks for all modules of its task with one struct resident_want. When all are in it has them at
 * once; else it waits in a queue, and nobody else does. Memory is given in the queue's order, for all of a request's
 * modules together, so that two requests never hold a half each.
 *
 * Requests whose modules are in pass those that wait. When RESIDENT_PASSED have passed the first one that waits for
 * memory, the least recently used of the modules that take its place stop taking new requests until it has it.
 */
#ifndef CPET_SERVER_RESIDENT_H
#define CPET_SERVER_RESIDENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define RESIDENT_PASSED 32

struct pet_slot;
struct resident;
struct resident_want;

/* A loaded module's memory, on its way from a job to a module and back to a job that frees it. */
struct resident_mem {
    struct resident_mem *next;
    struct pet_slot *slot;
    size_t bytes; /* resident.c's */
};

enum resident_state {
    RESIDENT_OUT,
    RESIDENT_OPENING, /* its size is being found out */
    RESIDENT_LOADING, /* its bytes are taken */
    RESIDENT_IN
};

/* The part of a module that is resident.c's; others read it. */
struct resident_item {
    enum resident_state state;
    size_t need;     /* bytes when in; 0: not known yet */
    unsigned users;  /* requests that use it */
    unsigned holds;  /* requests that wait for others of their modules while this one stays */
    unsigned pins;   /* above 0: never put out for room */
    bool wanted;     /* a name or a task stands for it; false: it goes out with its last user */
    bool closed;     /* takes no new users until the first in the queue has its place */
    bool leaving;    /* goes out with its last user, this once */
    bool queued;     /* for a job */
    int rc;          /* why the last load failed; 0 */
    struct err *why; /* of rc */
    double seconds;  /* that the last load took */
    struct resident_mem *mem;
    struct resident_item *prev, *next; /* of those that are in, the least recently used first */
    struct resident_item *job_next;
};

/* What a worker is to do: free `trash`, then, where item is not NULL, open it and find its size (need), and, where
 * `load` is set, load it into mem->slot. */
struct resident_job {
    struct resident_item *item;
    bool load;
    struct resident_mem *trash;
    struct resident_mem *mem; /* of a load */
    size_t freeing;           /* bytes of trash; resident.c's */
    /* out */
    int rc;
    struct err err;
    size_t need;
    double seconds;
};

struct resident_opts {
    size_t budget;
    unsigned max_jobs; /* at once; 0: 2 */
    /* Runs j elsewhere; resident_done(r, j) on the loop must follow, later. Else (-ENOMEM) j stays the caller's. */
    int (*start)(void *ctx, struct resident_job *j);
    /* A job has been made for the item, or is over: it must not be freed between. */
    void (*keep)(void *ctx, struct resident_item *it, bool on);
    void *ctx;
};

struct resident_stats {
    size_t n_in, bytes_in; /* bytes: of loads that run, too */
    size_t n_waiting, n_jobs;
    uint64_t loads, load_errors, evictions, passed, closed;
    double load_seconds;
};

enum resident_want_state { WANT_NONE, WANT_WAITING, WANT_PLACED, WANT_TAKEN, WANT_FAILED };

/* One request; zeroed, then item, n, ready and user are set. */
struct resident_want {
    struct resident_item **item; /* [n], the caller's, unchanged until given back; the same may be there twice */
    uint32_t n;
    /* On the loop, from another call into resident.c: rc 0: it has them; else it waits no more. */
    void (*ready)(void *user, int rc, const struct err *e);
    void *user;
    uint64_t deadline_ns; /* for the caller's use */
    /* resident.c's */
    enum resident_want_state state;
    unsigned passed;
    int rc;
    struct err err;
    bool listed;
    struct resident_want *prev, *next;
};

struct resident *resident_create(const struct resident_opts *o);
/* Nothing may be in use or wait, and no job may run; what is in is handed back for the caller to free. */
struct resident_mem *resident_free(struct resident *r); /* takes NULL */

/* true: w has its modules now. false: it waits, and w->ready comes. */
bool resident_take(struct resident *r, struct resident_want *w);
/* Gives back what w has, or forgets it when it waits (ready will not come). Takes a want in any state. */
void resident_give(struct resident *r, struct resident_want *w);

/* wanted changed: an unwanted item goes out as soon as nobody uses it. */
void resident_wanted(struct resident *r, struct resident_item *it, bool wanted);
/* Puts an item out as soon as nobody uses it, though it stays wanted: it may be loaded again. */
void resident_put_out(struct resident *r, struct resident_item *it);
/* A job is over. Frees j. */
void resident_done(struct resident *r, struct resident_job *j);
/* An item that was loaded elsewhere (at start). The bytes count; mem is r's. */
void resident_adopt(struct resident *r, struct resident_item *it, size_t need, struct resident_mem *mem);
/* Frees what the item's own memory holds (the reason of its last error). It is out, and in no job. */
void resident_item_clear(struct resident_item *it);

size_t resident_budget(const struct resident *r);
const struct resident_stats *resident_stats(const struct resident *r);

#endif
