/* exposition.c - writes the Prometheus text format, version 0.0.4.
 *
 * Any thread; nothing is kept. Numbers are written so that they read back exactly (%.17g); labels are escaped here and
 * nowhere else, so that a task's name cannot break a line or a scrape.
 */
#include "server/exposition.h"

#include <string.h>

#include "common/utf8.h"

void expo_head(struct buf *b, const char *name, const char *type, const char *help)
{
    buf_printf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

void expo_label(struct buf *b, const char *name, const char *value)
{
    size_t n = strlen(value);
    buf_printf(b, "%s%s=\"", b->len && b->data[b->len - 1] != '{' ? "," : "", name);
    for (size_t i = 0, k; i < n; i += k) {
        uint32_t cp;
        k = utf8_next(value + i, n - i, &cp);
        if (!k) {
            k = 1;
            buf_puts(b, "\xEF\xBF\xBD");
        } else if (value[i] == '\n') {
            buf_puts(b, "\\n");
        } else {
            if (value[i] == '\\' || value[i] == '"')
                buf_puts(b, "\\");
            buf_append(b, value + i, k);
        }
    }
    buf_puts(b, "\"");
}

void expo_one(struct buf *b, const char *name, const char *type, const char *help, const char *labels, double value)
{
    expo_head(b, name, type, help);
    buf_printf(b, *labels ? "%s{%s} %.17g\n" : "%s%s %.17g\n", name, labels, value);
}

void expo_histogram(struct buf *b, const char *name, const char *labels, const double *bucket, unsigned n_bucket,
                    const uint64_t *count, double sum)
{
    const char *comma = *labels ? "," : "", *open = *labels ? "{" : "", *close = *labels ? "}" : "";
    uint64_t total = 0;
    for (unsigned i = 0; i < n_bucket; i++) {
        total += count[i];
        buf_printf(b, "%s_bucket{%s%sle=\"%g\"} %llu\n", name, labels, comma, bucket[i], (unsigned long long)total);
    }
    total += count[n_bucket];
    buf_printf(b, "%s_bucket{%s%sle=\"+Inf\"} %llu\n", name, labels, comma, (unsigned long long)total);
    buf_printf(b, "%s_sum%s%s%s %.17g\n", name, open, labels, close, sum);
    buf_printf(b, "%s_count%s%s%s %llu\n", name, open, labels, close, (unsigned long long)total);
}
