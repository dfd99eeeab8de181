/* task_series.c - the capped table of counters a task.
 *
 * Loop thread. A plain array in the order of arrival, looked up once a request, at its end: a few hundred names are
 * compared in microseconds. Memory is bounded by the cap and the length of a task's name.
 */
#include "server/task_series.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int series_open(struct task_series *t, size_t max)
{
    t->s = calloc(max + 1, sizeof *t->s);
    if (!t->s)
        return -ENOMEM;
    t->max = max;
    t->s[0].task = strdup("other");
    t->n = t->s[0].task != NULL;
    return t->n ? 0 : -ENOMEM;
}

void series_close(struct task_series *t)
{
    for (size_t i = 0; i < t->n; i++)
        free(t->s[i].task);
    free(t->s);
    *t = (struct task_series){0};
}

struct series *series_of(struct task_series *t, const char *task, bool (*gone)(const void *ctx, const char *name),
                         const void *ctx)
{
    size_t at = t->n;
    for (size_t i = 0; i < t->n; i++)
        if (!strcmp(t->s[i].task, task))
            return &t->s[i];
    for (size_t i = 1; at > t->max && i < t->n; i++)
        if (gone(ctx, t->s[i].task))
            at = i;
    char *name = at <= t->max ? strdup(task) : NULL;
    if (!name)
        return &t->s[0];
    free(t->s[at].task);
    t->s[at] = (struct series){.task = name};
    if (at == t->n)
        t->n++;
    return &t->s[at];
}
