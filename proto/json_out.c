/* json_out.c - JSON strings and floats, written by hand because streams write them for each token.
 *
 * Any thread; the buffer is the caller's. Invariant: whatever bytes come in, what is appended is valid JSON in valid
 * UTF-8. Text mostly needs no escape, so the writer looks for the longest run that can be copied as it is.
 */
#include "proto/proto.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"

/* The length of the run at s that needs no escape: plain ASCII and whole UTF-8 characters. */
static size_t plain_run(const char *s, size_t n)
{
    size_t i = 0;
    while (i < n) {
        unsigned char c = (unsigned char)s[i];
        uint32_t cp;
        if (c < 0x20 || c == '"' || c == '\\')
            break;
        size_t k = c < 0x80 ? 1 : utf8_next(s + i, n - i, &cp);
        if (!k)
            break;
        i += k;
    }
    return i;
}

static void put_escaped(struct buf *b, unsigned char c)
{
    static const char named[] = "\bb\tt\nn\ff\rr\"\"\\\\";
    char out[6] = {'\\', 'u', '0', '0'};
    if (c >= 0x80) {
        buf_append(b, "\xEF\xBF\xBD", 3);
        return;
    }
    for (size_t i = 0; i + 1 < sizeof named; i += 2) {
        if ((unsigned char)named[i] == c) {
            out[1] = named[i + 1];
            buf_append(b, out, 2);
            return;
        }
    }
    out[4] = "0123456789abcdef"[c >> 4];
    out[5] = "0123456789abcdef"[c & 15];
    buf_append(b, out, 6);
}

void json_put_string(struct buf *b, const char *s, size_t n)
{
    buf_append(b, "\"", 1);
    for (size_t i = 0; i < n;) {
        size_t run = plain_run(s + i, n - i);
        if (run)
            buf_append(b, s + i, run);
        i += run;
        if (i < n)
            put_escaped(b, (unsigned char)s[i++]);
    }
    buf_append(b, "\"", 1);
}

void json_put_float(struct buf *b, float f)
{
    char text[32];
    if (isnan(f)) {
        buf_puts(b, "null");
        return;
    }
    if (isinf(f)) {
        buf_puts(b, f < 0 ? "-9999.0" : "9999.0");
        return;
    }
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)f);
        if (strtof(text, NULL) == f)
            break;
    }
    buf_puts(b, text);
    if (!strpbrk(text, ".e"))
        buf_puts(b, ".0"); /* typed clients tell -2 from -2.0 */
}

size_t resp_chars(const char *s, size_t n)
{
    size_t chars = 0;
    for (size_t i = 0; i < n; i++)
        chars += ((unsigned char)s[i] & 0xC0) != 0x80;
    return chars;
}
