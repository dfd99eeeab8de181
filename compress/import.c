/* import.c - import from beginning to end.
 *
 * Runs on the caller's thread; the job on its stack owns everything until import_run returns. The order: open and check
 * the whole source (configuration, every tensor's name and shape) before anything is written; write all files into
 * DIR.tmp.PID; then put that in DIR's place, by one rename where DIR is absent or empty, and file by file, cpet.json
 * last, where --force writes into a directory in use. On failure the temporary directory is removed and DIR is as it
 * was.
 */
#include "compress/import_internal.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file.h"

static char *trimmed(const char *path)
{
    char *s = strdup(path);
    size_t n = s ? strlen(s) : 0;
    while (n > 1 && s[n - 1] == '/')
        s[--n] = 0;
    return s;
}

static void job_free(struct import_job *j)
{
    gguf_close(j->gguf);
    st_close(j->st);
    model_config_free(&j->cfg);
    json_decref(j->bos);
    json_decref(j->eos);
    json_decref(j->eos_gen);
    json_decref(j->pad);
    free(j->t);
    free(j->rows);
    free(j->gather);
    free(j->src);
    free(j->dir);
    free(j->tmp);
}

/* Calls fn for every entry of a directory but . and ..; stops at the first result that is not 0. A directory that
 * cannot be opened: -errno. */
static int each_entry(const char *dir, int (*fn)(void *ctx, const char *name), void *ctx)
{
    DIR *d = opendir(dir);
    if (!d)
        return -errno;
    int r = 0;
    for (struct dirent *f; !r && (f = readdir(d));) {
        if (strcmp(f->d_name, ".") && strcmp(f->d_name, ".."))
            r = fn(ctx, f->d_name);
    }
    closedir(d);
    return r;
}

static int found_one(void *ctx, const char *name)
{
    (void)ctx;
    (void)name;
    return 1;
}

static int remove_one(void *ctx, const char *name)
{
    char *path = path_join(ctx, name);
    if (path)
        unlink(path);
    free(path);
    return 0;
}

static int move_one(void *ctx, const char *name)
{
    const struct import_job *j = ctx;
    char *from = path_join(j->tmp, name), *to = path_join(j->dir, name);
    int r = from && to ? 0 : -ENOMEM;
    if (!r && strcmp(name, "cpet.json") && rename(from, to))
        r = -errno;
    free(from);
    free(to);
    return r;
}

static void drop_tmp(struct import_job *j)
{
    if (!j->tmp_there)
        return;
    each_entry(j->tmp, remove_one, j->tmp);
    rmdir(j->tmp);
    j->tmp_there = false;
}

/* DIR must be absent, or empty, or force is set; then DIR.tmp.PID is made. */
static int make_tmp(struct import_job *j, struct err *e)
{
    int r = each_entry(j->dir, found_one, NULL);
    if (r < 0 && r != -ENOENT)
        return err_set(e, r, "%s: %s", j->dir, strerror(-r));
    if (r > 0 && !j->o->force)
        return err_set(e, -EEXIST, "%s holds files already; choose another directory, or --force to write over them",
                       j->dir);
    if (asprintf(&j->tmp, "%s.tmp.%ld", j->dir, (long)getpid()) < 0) {
        j->tmp = NULL;
        return err_set(e, -ENOMEM, "out of memory");
    }
    r = dir_make(j->tmp, e);
    j->tmp_there = !r;
    return r;
}

/* Removes from DIR what a model that was there had and this one may not have: a site map, a recovery module or a chat
 * template would be read beside weights that they were not made for. */
static int drop_old(const struct import_job *j)
{
    static const char *const names[] = {"cpet/sites.safetensors",  "recovery.safetensors", "chat_template.jinja",
                                        "chat_template.json",      "tokenizer.json",       "tokenizer_config.json",
                                        "special_tokens_map.json", "added_tokens.json"};
    int r = 0;
    for (size_t i = 0; !r && i < sizeof names / sizeof *names; i++) {
        char *path = path_join(j->dir, names[i]);
        if (!path)
            r = -ENOMEM;
        else if (unlink(path) && errno != ENOENT)
            r = -errno;
        free(path);
    }
    return r;
}

static int take_place(struct import_job *j, struct err *e)
{
    int r = 0;
    if (!rename(j->tmp, j->dir)) {
        j->tmp_there = false;
        return 0;
    }
    if (errno != ENOTEMPTY && errno != EEXIST)
        return err_set(e, -errno, "%s: cannot rename to %s: %s", j->tmp, j->dir, strerror(errno));
    char *last_from = path_join(j->tmp, "cpet.json"), *last = path_join(j->dir, "cpet.json");
    r = last_from && last ? 0 : -ENOMEM;
    if (!r && unlink(last) && errno != ENOENT) /* until the new one is there, the directory is not a whole import */
        r = -errno;
    if (!r)
        r = drop_old(j);
    if (!r)
        r = each_entry(j->tmp, move_one, j);
    if (!r && rename(last_from, last))
        r = -errno;
    free(last_from);
    free(last);
    return r ? err_set(e, r, "%s: cannot replace its files: %s", j->dir, strerror(-r)) : 0;
}

static int open_source(struct import_job *j, struct err *e)
{
    struct stat st;
    if (stat(j->src, &st))
        return err_set(e, -errno, "%s: %s", j->src, strerror(errno));
    if (S_ISDIR(st.st_mode))
        return import_hf_open(j, e);
    const char *dot = strrchr(j->src, '.');
    if (dot && !strcmp(dot, ".safetensors"))
        return err_set(e, -EINVAL, "%s: give the directory that holds it and its config.json", j->src);
    return import_gguf_open(j, e);
}

static int write_all(struct import_job *j, struct err *e)
{
    int r = make_tmp(j, e);
    if (!r)
        r = j->gguf ? import_gguf_tokenizer(j, e) : import_hf_files(j, e);
    if (!r)
        r = import_config_write(j, e);
    if (!r)
        r = import_weights(j, e);
    if (!r)
        r = import_lineage_write(j, e);
    if (!r)
        r = take_place(j, e);
    drop_tmp(j);
    return r;
}

int import_run(const struct import_opts *o, struct import_result *result, struct err *e)
{
    struct import_job j = {.o = o, .src = trimmed(o->src), .dir = trimmed(o->dir)};
    int r = j.src && j.dir ? 0 : err_set(e, -ENOMEM, "out of memory");
    if (!r && o->dtype != IMPORT_DTYPE_AUTO && o->dtype != DT_F32 && o->dtype != DT_F16 && o->dtype != DT_BF16)
        r = err_param(e, -EINVAL, "dtype", "weights can be written as f32, f16 or bf16");
    if (!r)
        r = open_source(&j, e);
    if (!r)
        r = import_plan(&j, e);
    if (!r)
        r = j.gguf ? import_gguf_bind(&j, e) : import_hf_bind(&j, e);
    if (!r)
        r = write_all(&j, e);
    if (!r && result)
        *result = j.res;
    job_free(&j);
    return r;
}
