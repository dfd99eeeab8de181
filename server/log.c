/* log.c - log lines. The only state is the format, set once before any thread. A line is made in one buffer and written
 * by one call, so that lines of several threads do not mix; a line that is too long is cut.
 */
#include "server/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/buf.h"
#include "common/utf8.h"
#include "proto/proto.h"

static bool as_json;

void log_as_json(bool json)
{
    as_json = json;
}

void log_put_time(struct buf *b)
{
    struct timespec t;
    struct tm tm;
    char when[32];
    clock_gettime(CLOCK_REALTIME, &t);
    gmtime_r(&t.tv_sec, &tm);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &tm);
    buf_printf(b, "\"time\": \"%s.%03ldZ\"", when, t.tv_nsec / 1000000);
}

static void put_json(struct buf *b, const char *level, const char *msg)
{
    buf_puts(b, "{");
    log_put_time(b);
    buf_printf(b, ", \"level\": \"%s\", \"message\": ", level);
    json_put_string(b, msg, strlen(msg));
    buf_puts(b, "}\n");
}

void log_line(const char *level, const char *fmt, ...)
{
    char msg[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    struct buf b = {0};
    if (as_json)
        put_json(&b, level, msg);
    utf8_hide_controls(msg); /* a message may quote a file: it stays one line */
    char line[sizeof msg + 64];
    int n = snprintf(line, sizeof line, "cpetd: %s%s\n", strcmp(level, "warning") ? "" : "warning: ", msg);
    bool whole = as_json && !b.failed; /* without memory a line that is no JSON is better than none */
    if (write(STDERR_FILENO, whole ? b.data : line, whole ? b.len : (size_t)n) < 0) {
        /* nowhere to say it */
    }
    buf_free(&b);
}
