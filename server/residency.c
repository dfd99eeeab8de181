/* residency.c - what resident.c decides, done: modules are read, packed and freed on the background threads.
 *
 * Loop thread, except load_work. A job has copies of what it reads (path, hash), so that a worker looks at nothing that
 * the loop may change; its module is kept by a reference until it is over. A file whose content is not the one that it
 * stands for is refused: a damaged or exchanged file never becomes a module. A job has one layer of its module in
 * memory beside the slot (pet_stream_load).
 *
 * n_jobs counts everything on workers that uses the model, the device or the registry; main.c lets go of those only
 * when it is zero.
 */
#include <stdlib.h>
#include <string.h>

#include "server/background.h"
#include "server/server.h"

#define LOADS 2 /* at once */

struct load {
    struct background_job job; /* first: a job is its load */
    struct server *sv;
    struct resident_job *j;
    char *path;
    struct hash hash;
    struct pet_info info;
};

/* ---- jobs ---- */

void server_job_begin(struct server *sv)
{
    sv->n_jobs++;
}

void server_job_over(struct server *sv)
{
    if (--sv->n_jobs || !sv->jobs_over)
        return;
    void (*over)(void *) = sv->jobs_over;
    sv->jobs_over = NULL;
    over(sv->jobs_ctx);
}

void server_when_idle(struct server *sv, void (*over)(void *ctx), void *ctx)
{
    sv->jobs_over = over;
    sv->jobs_ctx = ctx;
    server_job_begin(sv);
    server_job_over(sv);
}

static void free_slots(struct kern_dev *d, struct resident_mem *m)
{
    for (struct resident_mem *next; m; m = next) {
        next = m->next;
        pet_unload(d, m->slot);
        free(m);
    }
}

static int open_content(struct load *l, struct pet_stream **out, struct err *e)
{
    struct pet_stream *p;
    int rc = pet_stream_open(l->path, NULL, &p, e);
    if (rc)
        return rc;
    l->info = *pet_stream_info(p);
    if (hash_equal(&l->info.hash, &l->hash)) {
        *out = p;
        return 0;
    }
    pet_stream_close(p);
    return err_set(e, -EBADMSG, "%s: is damaged, or has been exchanged: it does not hold the content of its name",
                   l->path);
}

/* A size is in the manifest; the tensors are read, and held against the content hash, by a load. */
static int load(struct load *l, struct err *e)
{
    struct resident_job *j = l->j;
    const struct server *sv = l->sv;
    struct pet_stream *p = NULL;
    int rc = open_content(l, &p, e);
    if (rc)
        return rc;
    if (!j->load)
        rc = pet_stream_size(p, sv->target, &j->need, e);
    else if (!(rc = pet_stream_load(sv->dev, p, sv->target, &j->mem->slot, e)))
        j->need = pet_slot_bytes(j->mem->slot);
    pet_stream_close(p);
    return rc;
}

static void load_work(struct background_job *job)
{
    struct load *l = (struct load *)job;
    struct resident_job *j = l->j;
    uint64_t t0 = mono_ns();
    free_slots(l->sv->dev, j->trash);
    j->trash = NULL;
    if (j->item)
        j->rc = load(l, &j->err);
    j->seconds = (double)(mono_ns() - t0) * 1e-9;
}

static void load_over(struct background_job *job)
{
    struct load *l = (struct load *)job;
    struct server *sv = l->sv;
    struct resident_job *j = l->j;
    struct module *m = (struct module *)j->item;
    if (j->rc && j->rc != -ENOMEM)
        j->rc = j->err.code = -EIO; /* whatever is wrong with it, it is not the client's fault */
    if (m && !j->rc && !m->info.bytes)
        m->info = l->info;
    if (m && !j->rc && j->load)
        histogram_add(&sv->metrics.module_load, j->seconds);
    resident_done(sv->resident, j);
    free(l->path);
    free(l);
    server_job_over(sv);
}

static int on_start(void *ctx, struct resident_job *j)
{
    struct server *sv = ctx;
    struct module *m = (struct module *)j->item;
    struct load *l = calloc(1, sizeof *l);
    if (l && m && !(l->path = strdup(m->path))) {
        free(l);
        l = NULL;
    }
    if (!l)
        return -ENOMEM;
    l->sv = sv;
    l->j = j;
    if (m)
        l->hash = m->info.hash;
    l->job = (struct background_job){.work = load_work, .after = load_over};
    server_job_begin(sv);
    background_run(sv->background, &l->job);
    return 0;
}

static void on_keep(void *ctx, struct resident_item *it, bool on)
{
    struct module *m = (struct module *)it;
    (void)ctx;
    if (on)
        module_ref(m);
    else
        module_unref(m);
}

int residency_open(struct server *sv)
{
    struct resident_opts o = {.budget = sv->o->pet_bytes < SIZE_MAX ? (size_t)sv->o->pet_bytes : SIZE_MAX,
                              .max_jobs = LOADS,
                              .start = on_start,
                              .keep = on_keep,
                              .ctx = sv};
    sv->resident = resident_create(&o);
    sv->modules = sv->resident ? modules_create(sv->resident) : NULL;
    return sv->modules ? 0 : -ENOMEM;
}

void residency_free(struct server *sv)
{
    if (sv->modules)
        sv->modules->res = NULL;
    free_slots(sv->dev, resident_free(sv->resident));
    sv->resident = NULL;
}
