/* err.c - fills struct err.
 *
 * Any thread; the struct belongs to the caller. A NULL struct is accepted everywhere, so that a caller who only wants
 * the code need not make one. The sentence is always terminated and never ends inside a UTF-8 character.
 */
#include "common/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void cut_utf8(char *s, size_t cap, int want)
{
    if (want < 0 || (size_t)want < cap)
        return;
    size_t n = cap - 1;
    while (n > 0 && ((unsigned char)s[n - 1] & 0xC0) == 0x80)
        n--;
    if (n > 0 && (unsigned char)s[n - 1] >= 0xC0)
        n--;
    else
        n = cap - 1;
    s[n] = 0;
}

static void fill(struct err *e, int code, const char *param, const char *fmt, va_list ap)
{
    e->code = code;
    cut_utf8(e->param, sizeof e->param, snprintf(e->param, sizeof e->param, "%s", param ? param : ""));
    cut_utf8(e->msg, sizeof e->msg, vsnprintf(e->msg, sizeof e->msg, fmt, ap));
}

int err_set(struct err *e, int code, const char *fmt, ...)
{
    if (!e)
        return code;
    va_list ap;
    va_start(ap, fmt);
    fill(e, code, NULL, fmt, ap);
    va_end(ap);
    return code;
}

int err_param(struct err *e, int code, const char *param, const char *fmt, ...)
{
    if (!e)
        return code;
    va_list ap;
    va_start(ap, fmt);
    fill(e, code, param, fmt, ap);
    va_end(ap);
    return code;
}

int err_prefix(struct err *e, int code, const char *fmt, ...)
{
    if (!e)
        return code;
    char old[sizeof e->msg], pre[sizeof e->msg];
    memcpy(old, e->msg, sizeof old);
    va_list ap;
    va_start(ap, fmt);
    cut_utf8(pre, sizeof pre, vsnprintf(pre, sizeof pre, fmt, ap));
    va_end(ap);
    size_t n = strlen(pre), room = sizeof e->msg - 1;
    if (n > room)
        n = room;
    memcpy(e->msg, pre, n);
    int want = snprintf(e->msg + n, sizeof e->msg - n, "%s%s", old[0] ? ": " : "", old);
    cut_utf8(e->msg + n, sizeof e->msg - n, want);
    e->code = code;
    return code;
}
