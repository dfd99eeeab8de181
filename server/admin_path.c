/* admin_path.c - paths that a client of the admin listener names: they must lie under a --module-root.
 *
 * Worker threads. Roots and path are resolved by realpath, so that neither `..` nor a symbolic link leaves the roots;
 * the files of a PEFT directory are looked at in the same way, because the directory may be inside and a file of it
 * a link to the outside. What is outside and what is not there get the same sentence: a caller cannot ask by it which
 * files the machine has.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file.h"
#include "server/admin.h"

static bool inside(const char *root, const char *path)
{
    size_t n = strlen(root);
    while (n && root[n - 1] == '/')
        n--;
    return !strncmp(root, path, n) && path[n] == '/';
}

/* realpath; *lacked is set where memory was what it lacked. */
static char *resolved(const char *path, bool *lacked)
{
    errno = ENOMEM;
    char *real = path ? realpath(path, NULL) : NULL;
    *lacked |= !real && errno == ENOMEM;
    return real;
}

static bool file_inside(const char *root, const char *dir, const char *name, bool *lacked)
{
    char *joined = path_join(dir, name), *real = resolved(joined, lacked);
    bool ok = joined && (real ? inside(root, real) : errno == ENOENT);
    free(real);
    free(joined);
    return ok;
}

/* path, resolved, when it and what would be read of it lie under root. */
static char *under(const char *root, const char *path, bool *lacked)
{
    char *real_root = resolved(root, lacked), *joined = path[0] == '/' ? strdup(path) : path_join(root, path);
    char *real = resolved(joined, lacked);
    struct stat st;
    bool ok = real_root && real && inside(real_root, real) && !stat(real, &st);
    if (ok && S_ISDIR(st.st_mode))
        ok = file_inside(real_root, real, "adapter_config.json", lacked) &&
             file_inside(real_root, real, "adapter_model.safetensors", lacked) &&
             file_inside(real_root, real, "adapter_model.bin", lacked);
    free(real_root);
    free(joined);
    if (!ok) {
        free(real);
        real = NULL;
    }
    return real;
}

int admin_resolve(const struct options *o, const char *path, char **out, struct err *e)
{
    if (!*path)
        return err_param(e, -EINVAL, "path", "the path is empty");
    if (!o->n_module_roots)
        return err_param(e, -EPERM, "path", "no --module-root is given, so modules cannot be named by path");
    bool lacked = false;
    for (size_t i = 0; i < o->n_module_roots; i++) {
        char *real = under(o->module_root[i], path, &lacked);
        if (!real)
            continue;
        *out = real;
        return 0;
    }
    if (lacked)
        return err_set(e, -ENOMEM, "out of memory");
    return err_param(e, -EPERM, "path", "there is no such module under a --module-root");
}
