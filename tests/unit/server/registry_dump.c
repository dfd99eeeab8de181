/* registry_dump.c - a registry as text. One thread; for tests, so it aborts where a program would report. */
#include "tests/unit/server/registry_dump.h"

#include <dirent.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"

#define MUST(x)                                                                                                        \
    do {                                                                                                               \
        if (!(x)) {                                                                                                    \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #x, e.msg);                                         \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

static const char *or_dash(const char *s)
{
    return s ? s : "-";
}

static const char *hex16(const struct hash *h, char out[HASH_HEX])
{
    hash_hex(h, out);
    out[16] = 0;
    return out;
}

void dump_module(struct buf *out, const struct registry_module *m)
{
    char x[HASH_HEX];
    buf_printf(out, "module %s %s %s %s %s %llu %u %u %d %d %lld\n", m->name, or_dash(m->tenant), hex16(&m->hash, x),
               m->kind, m->base ? m->base : "", (unsigned long long)m->bytes, m->rank, m->sites, m->verified, m->pinned,
               (long long)m->created);
}

void dump_task(struct buf *out, const struct registry_task *t)
{
    buf_printf(out, "task %s %s %lld %lld\n", t->id, or_dash(t->tenant), (long long)t->created, (long long)t->updated);
}

void dump_version(struct buf *out, const struct registry_task *t)
{
    char x[HASH_HEX];
    buf_printf(out, " version %s %s %s\n", hex16(&t->version, x), or_dash(t->defaults), or_dash(t->template_text));
    for (uint32_t i = 0; i < t->n_refs; i++)
        buf_printf(out, "  ref %s %s %g\n", t->ref[i].name, hex16(&t->ref[i].hash, x), (double)t->ref[i].weight);
}

static int by_id(const void *a, const void *b)
{
    return strcmp(((const struct registry_task *)a)->id, ((const struct registry_task *)b)->id);
}

static void dump_rows(struct registry *r, struct buf *out)
{
    struct err e = {0};
    struct arena *a = arena_create(0);
    const struct registry_module *m;
    const struct registry_task *t, *v;
    const struct hash *h;
    size_t n_m, n_t, n_h;
    MUST(!registry_load(r, a, &m, &n_m, &t, &n_t, &e));
    for (size_t i = 0; i < n_m; i++)
        dump_module(out, &m[i]);
    struct registry_task *sorted = arena_memdup(a, t, n_t * sizeof *t);
    qsort(sorted, n_t, sizeof *sorted, by_id);
    for (size_t i = 0; i < n_t; i++) {
        dump_task(out, &sorted[i]);
        MUST(!registry_task_versions(r, sorted[i].id, a, &h, &n_h, &e));
        MUST(n_h && hash_equal(&h[0], &sorted[i].version));
        for (size_t k = 0; k < n_h; k++) {
            MUST(!registry_task_version(r, sorted[i].id, &h[k], a, &v, &e));
            dump_version(out, v);
        }
    }
    arena_free(a);
}

/* A file of modules/ whose name is not the hash of its bytes, though it should be. */
static bool broken(const char *dir, const char *name)
{
    char path[4400], hex[HASH_HEX];
    struct hash h;
    char *text;
    size_t n;
    if (strlen(name) != HASH_HEX + 3)
        return false;
    snprintf(path, sizeof path, "%s/modules/%s", dir, name);
    if (file_read(path, 1 << 26, &text, &n, NULL))
        return true;
    hash_of(text, n, &h);
    free(text);
    hash_hex(&h, hex);
    return strncmp(hex, name, HASH_HEX - 1) != 0;
}

void dump_files(struct buf *out, const char *dir)
{
    struct err e = {0};
    char path[4200];
    struct dirent **ent;
    snprintf(path, sizeof path, "%s/modules", dir);
    int n = scandir(path, &ent, NULL, alphasort);
    MUST(n >= 0);
    for (int i = 0; i < n; i++) {
        if (ent[i]->d_name[0] != '.')
            buf_printf(out, "file %s%s\n", ent[i]->d_name, broken(dir, ent[i]->d_name) ? " broken" : "");
        free(ent[i]);
    }
    free(ent);
}

void registry_dump(struct registry *r, const char *dir, struct buf *out)
{
    dump_rows(r, out);
    dump_files(out, dir);
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(path);
}

void remove_tree(const char *dir)
{
    nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}
