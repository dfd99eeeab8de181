/* scratch.h - a directory of a fuzz target's own, for parsers that open files by name.
 *
 * Made at first use under TMPDIR (or /tmp), removed at exit. One thread, as fuzz targets are.
 */
#ifndef CPET_TESTS_FUZZ_SCRATCH_H
#define CPET_TESTS_FUZZ_SCRATCH_H

#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char scratch_path[512];

static const char *scratch_at(const char *name)
{
    static char full[1024];
    snprintf(full, sizeof full, "%s/%s", scratch_path, name);
    return full;
}

static inline void scratch_clear(void)
{
    DIR *d = opendir(scratch_path);
    for (struct dirent *e; d && (e = readdir(d));)
        unlink(scratch_at(e->d_name));
    if (d)
        closedir(d);
}

static inline void scratch_remove(void)
{
    scratch_clear();
    rmdir(scratch_path);
}

/* The directory, emptied. */
static inline const char *scratch_dir(void)
{
    if (scratch_path[0]) {
        scratch_clear();
        return scratch_path;
    }
    const char *tmp = getenv("TMPDIR");
    snprintf(scratch_path, sizeof scratch_path, "%s/cpet-fuzz-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (!mkdtemp(scratch_path))
        abort();
    atexit(scratch_remove);
    return scratch_path;
}

static inline void scratch_put(const char *name, const void *p, size_t n)
{
    FILE *f = fopen(scratch_at(name), "wb");
    if (!f || fwrite(p, 1, n, f) != n || fclose(f))
        abort();
}

/* Cuts p[0..n) at each mark into at most max parts, the last one with all the rest; gives how many there are. */
struct scratch_part {
    const uint8_t *p;
    size_t n;
};

static inline size_t scratch_split(const uint8_t *p, size_t n, const char *mark, size_t mark_len,
                                   struct scratch_part *part, size_t max)
{
    size_t count = 0;
    while (count + 1 < max) {
        const uint8_t *at = n ? memmem(p, n, mark, mark_len) : NULL;
        if (!at)
            break;
        part[count++] = (struct scratch_part){p, (size_t)(at - p)};
        n -= (size_t)(at - p) + mark_len;
        p = at + mark_len;
    }
    part[count++] = (struct scratch_part){p, n};
    return count;
}

#endif
