/* log.h - lines on stderr, as text or as JSON. Any thread; a line is one write. */
#ifndef CPET_SERVER_LOG_H
#define CPET_SERVER_LOG_H

#include <stdbool.h>

#include "common/buf.h"

void log_as_json(bool json); /* at start, before threads */
/* level: "info", "warning", "error". Text: "cpetd: message" (a warning says so). JSON: {"time", "level", "message"}. */
void log_line(const char *level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* "time": "2026-01-31T12:00:00.000Z": the member that each JSON line begins with. */
void log_put_time(struct buf *b);

#endif
