/* fuzz_http.c - any bytes as a request's head and what follows as its body. The verdict must not depend on how the
 * bytes are cut, and a head that passes must be as strict as promised. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "server/http_scan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct http_limits lim = {.max_header = 2048, .max_body = 4096};

static int find(const char *p, size_t n, size_t step, size_t *len)
{
    struct err e = {0};
    size_t scanned = 0;
    int rc = 0;
    for (size_t i = step < n ? step : n; !rc; i = i + step < n ? i + step : n) {
        rc = http_head_find(p, i, &lim, &scanned, len, &e);
        if (i == n)
            break;
    }
    if (rc > 1 && !e.msg[0])
        abort();
    return rc;
}

static int body(const char *p, size_t n, size_t step, size_t *end)
{
    struct http_chunks c = {0};
    struct err e = {0};
    int rc = 0;
    *end = 0;
    for (size_t i = 0; i < n && !rc; i += step) {
        size_t used = 0;
        rc = http_chunks_scan(&c, p + i, n - i < step ? n - i : step, &lim, &used, &e);
        *end += used;
    }
    if (c.body > lim.max_body && rc != 413)
        abort();
    return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *p = (const char *)data;
    struct http_head h;
    struct err e = {0};
    size_t len = 0, len1 = 0, end, end1;
    int rc = find(p, size, size ? size : 1, &len);
    if (rc != find(p, size, 1, &len1) || len != len1)
        abort();
    if (rc != 1)
        return 0;
    if (http_head_check(p, len, &lim, &h, &e))
        return 0;
    if (memchr(p, 0, len) || h.content_length > lim.max_body || (h.chunked && h.content_length))
        abort();
    for (size_t i = 0; i < len; i++)
        if ((p[i] == '\n' && p[i - 1] != '\r') || (p[i] == '\r' && p[i + 1] != '\n'))
            abort();
    char head[2048];
    struct http_head h1;
    memcpy(head, p, len);
    http_head_tidy(head, len);
    if (http_head_check(head, len, &lim, &h1, &e) || h1.content_length != h.content_length || h1.chunked != h.chunked ||
        h1.keep_alive != h.keep_alive)
        abort();
    size_t n, n1;
    const char *v = http_head_value(p, len, "Authorization", &n),
               *v1 = http_head_value(head, len, "Authorization", &n1);
    if (!v != !v1 || (v && (n != n1 || memcmp(v, v1, n) || v < p || v + n > p + len || memchr(v, '\n', n))))
        abort();
    rc = body(p + len, size - len, size ? size : 1, &end);
    if (rc != body(p + len, size - len, 1, &end1) || (rc <= 1 && end != end1))
        abort();
    return 0;
}
