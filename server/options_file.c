/* options_file.c - the configuration file, read by libinih.
 *
 * Runs in main before any thread (libinih's settings are global where it has them). The library splits lines, sections
 * and names from values; what it is silent about is done in the reader that feeds it, a line at a time: the text is
 * bounded (1 MiB), so are lines, NUL bytes are refused, and errors know their line. Its continuation lines and comments
 * inside a value are off: an option may be indented, and a path may hold ';'. Builds of the library that cannot turn
 * them off are fed lines without leading blanks, and a value that the library cut is refused.
 */
#include <ini.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "server/options.h"

#define FILE_MAX ((size_t)1 << 20)
#if CPET_INI_SETTINGS
#define LINE_MAX_BYTES 4096
#else
#define LINE_MAX_BYTES (INI_MAX_LINE - 2)
#endif

struct feed {
    const char *text, *path;
    size_t n;
    unsigned number;           /* of the line given last */
    char line[LINE_MAX_BYTES]; /* the same, blanks around it cut off */
    int rc;
    struct err *e;
    int (*set)(void *ctx, const char *key, const char *value, const char *where, struct err *e);
    void *ctx;
};

static void where_of(const struct feed *f, char out[512])
{
    snprintf(out, 512, "%.400s line %u", f->path, f->number);
}

static int feed_fail(struct feed *f, const char *what)
{
    char where[512];
    where_of(f, where);
    f->rc = err_set(f->e, -EINVAL, "%s: %s", where, what);
    return 0;
}

static bool blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

/* Gives libinih the next line; NULL ends it. */
static char *next_line(char *out, int size, void *stream)
{
    struct feed *f = stream;
    if (f->rc || !f->n)
        return NULL;
    if (size < (int)sizeof f->line + 1) {
        feed_fail(f, "this build of libinih takes shorter lines than its header says");
        return NULL;
    }
    const char *nl = memchr(f->text, '\n', f->n), *from = f->text;
    size_t len = nl ? (size_t)(nl - from) : f->n;
    f->number++;
    f->text += len + (nl != NULL);
    f->n -= len + (nl != NULL);
    while (len && blank(*from))
        from++, len--;
    while (len && blank(from[len - 1]))
        len--;
    if (len >= sizeof f->line) {
        char what[48];
        snprintf(what, sizeof what, "longer than %d bytes", LINE_MAX_BYTES - 1);
        feed_fail(f, what);
        return NULL;
    }
    if (memchr(from, 0, len)) {
        feed_fail(f, "holds a NUL byte");
        return NULL;
    }
    memcpy(f->line, from, len);
    f->line[len] = 0;
    memcpy(out, f->line, len);
    memcpy(out + len, "\n", 2);
    return out;
}

/* libinih has an option. Non-zero: go on. */
static int on_option(void *user, const char *section, const char *name, const char *value)
{
    struct feed *f = user;
    char where[512];
    size_t n = strlen(value), n_line = strlen(f->line);
    if (f->rc)
        return 0;
    where_of(f, where);
    if (*section && strcmp(section, "cpetd")) {
        f->rc = err_set(f->e, -EINVAL, "%s: section [%s] is not known; there is [cpetd] alone", where, section);
        return 0;
    }
    if (n > n_line || memcmp(f->line + n_line - n, value, n))
        return feed_fail(f, "a comment cannot follow a value here");
    f->rc = f->set(f->ctx, name, value, where, f->e);
    return !f->rc;
}

static void set_up(void)
{
#if CPET_INI_SETTINGS
    ini_allow_multiline = false;
    ini_allow_inline_comments = false;
    ini_use_stack = false;
    ini_allow_realloc = true;
    ini_initial_alloc = ini_max_line = LINE_MAX_BYTES + 2;
    ini_stop_on_first_error = true;
#endif
}

int options_file_parse(const char *text, size_t n, const char *path,
                       int (*set)(void *ctx, const char *key, const char *value, const char *where, struct err *e),
                       void *ctx, struct err *e)
{
    struct feed f = {.text = text, .n = n, .path = path, .e = e, .set = set, .ctx = ctx};
    set_up();
    int rc = ini_parse_stream(next_line, &f, on_option, &f);
    if (f.rc)
        return f.rc;
    if (rc == -2)
        return err_set(e, -ENOMEM, "out of memory");
    if (!rc)
        return 0;
    f.number = (unsigned)rc; /* the first line that the library does not understand */
    feed_fail(&f, "neither [cpetd], a comment nor: option = value (there is no '=')");
    return f.rc;
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
