/* options_file.c - the configuration file: INI, one level, one section at most.
 *
 * Runs in main before any thread. The text is bounded (1 MiB), so are its lines (4 KiB). Values are taken as they
 * stand, with blanks around them cut off; there are no quotes and no escapes. A comment is a line that begins with '#'
 * or ';': inside a value both are ordinary characters, as paths may hold them.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "server/options.h"

#define FILE_MAX ((size_t)1 << 20)
#define LINE_MAX_BYTES 4096

static char *trim(char *s)
{
    while (*s == ' ' || *s == '\t')
        s++;
    size_t n = strlen(s);
    while (n && (s[n - 1] == ' ' || s[n - 1] == '\t' || s[n - 1] == '\r'))
        s[--n] = 0;
    return s;
}

static int one_line(char *line, const char *where,
                    int (*set)(void *ctx, const char *key, const char *value, const char *where, struct err *e),
                    void *ctx, struct err *e)
{
    char *s = trim(line);
    if (!*s || *s == '#' || *s == ';')
        return 0;
    if (*s == '[') {
        if (strcmp(s, "[cpetd]"))
            return err_set(e, -EINVAL, "%s: section %s is not known; there is [cpetd] alone", where, s);
        return 0;
    }
    char *eq = strchr(s, '=');
    if (!eq)
        return err_set(e, -EINVAL, "%s: there is no '=' (a line is: option = value)", where);
    *eq = 0;
    return set(ctx, trim(s), trim(eq + 1), where, e);
}

int options_file_parse(const char *text, size_t n, const char *path,
                       int (*set)(void *ctx, const char *key, const char *value, const char *where, struct err *e),
                       void *ctx, struct err *e)
{
    unsigned number = 0;
    while (n) {
        const char *nl = memchr(text, '\n', n);
        size_t len = nl ? (size_t)(nl - text) : n;
        char line[LINE_MAX_BYTES], where[512];
        snprintf(where, sizeof where, "%.400s line %u", path, ++number);
        if (len >= sizeof line)
            return err_set(e, -EINVAL, "%s: longer than %u bytes", where, LINE_MAX_BYTES - 1);
        if (memchr(text, 0, len))
            return err_set(e, -EINVAL, "%s: holds a NUL byte", where);
        memcpy(line, text, len);
        line[len] = 0;
        int rc = one_line(line, where, set, ctx, e);
        if (rc)
            return rc;
        text += len + (nl != NULL);
        n -= len + (nl != NULL);
    }
    return 0;
}

int options_file_read(const char *path,
                      int (*set)(void *ctx, const char *key, const char *value, const char *where, struct err *e),
                      void *ctx, struct err *e)
{
    char *text;
    size_t n;
    int rc = file_read(path, FILE_MAX, &text, &n, e);
    if (rc)
        return rc;
    rc = options_file_parse(text, n, path, set, ctx, e);
    free(text);
    return rc;
}
