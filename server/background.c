/* background.c - a small pool of threads of low priority, and the way back to the loop.
 *
 * Two lists under one mutex that is held for pointer writes only: jobs to do, jobs done. A thread that has done one
 * wakes the loop, which calls `after` of all that are done. The memory of jobs is their owners'; the pool owns its
 * threads and the handle.
 */
#include "server/background.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>

#define THREADS_MAX 8
#define NICER 15 /* the compute threads have 10 */

struct list {
    struct background_job *first, *last;
};

struct background {
    uv_async_t async;
    pthread_t thread[THREADS_MAX];
    unsigned n_threads;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct list todo, done;
    bool stop;
};

static void append(struct list *l, struct background_job *j)
{
    j->next = NULL;
    *(l->last ? &l->last->next : &l->first) = j;
    l->last = j;
}

static struct background_job *take(struct list *l)
{
    struct background_job *j = l->first;
    if (j && !(l->first = j->next))
        l->last = NULL;
    return j;
}

static void *thread_main(void *arg)
{
    struct background *b = arg;
    setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) + NICER); /* of this thread; refused: as things were */
    pthread_mutex_lock(&b->lock);
    while (!b->stop) {
        struct background_job *j = take(&b->todo);
        if (!j) {
            pthread_cond_wait(&b->wake, &b->lock);
            continue;
        }
        pthread_mutex_unlock(&b->lock);
        j->work(j);
        pthread_mutex_lock(&b->lock);
        append(&b->done, j);
        uv_async_send(&b->async);
    }
    pthread_mutex_unlock(&b->lock);
    return NULL;
}

static void on_async(uv_async_t *h)
{
    struct background *b = h->data;
    pthread_mutex_lock(&b->lock);
    struct background_job *j = b->done.first;
    b->done = (struct list){0};
    pthread_mutex_unlock(&b->lock);
    for (struct background_job *next; j; j = next) {
        next = j->next;
        j->after(j); /* may free it */
    }
}

static void on_closed(uv_handle_t *h)
{
    struct background *b = h->data;
    pthread_cond_destroy(&b->wake);
    pthread_mutex_destroy(&b->lock);
    free(b);
}

void background_close(struct background *b)
{
    if (!b)
        return;
    pthread_mutex_lock(&b->lock);
    b->stop = true;
    pthread_cond_broadcast(&b->wake);
    pthread_mutex_unlock(&b->lock);
    for (unsigned i = 0; i < b->n_threads; i++)
        pthread_join(b->thread[i], NULL);
    uv_close((uv_handle_t *)&b->async, on_closed);
}

int background_open(uv_loop_t *loop, unsigned n_threads, struct background **out, struct err *e)
{
    struct background *b = calloc(1, sizeof *b);
    if (!b)
        return err_set(e, -ENOMEM, "out of memory");
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->wake, NULL);
    uv_async_init(loop, &b->async, on_async);
    b->async.data = b;
    int rc = 0;
    for (; !rc && b->n_threads < n_threads && b->n_threads < THREADS_MAX; b->n_threads += !rc)
        rc = pthread_create(&b->thread[b->n_threads], NULL, thread_main, b);
    if (rc) {
        background_close(b);
        return err_set(e, -rc, "a thread for loading modules: %s", strerror(rc));
    }
    *out = b;
    return 0;
}

void background_run(struct background *b, struct background_job *j)
{
    pthread_mutex_lock(&b->lock);
    append(&b->todo, j);
    pthread_cond_signal(&b->wake);
    pthread_mutex_unlock(&b->lock);
}
