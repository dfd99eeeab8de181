/* err.h - how a function says what went wrong.
 *
 * A function that can fail returns 0 or a negative errno value and, where the caller gave one, fills a struct err with
 * a sentence for a person. Libraries never print; server/ and the tools do. On failure outputs are untouched.
 */
#ifndef CPET_COMMON_ERR_H
#define CPET_COMMON_ERR_H

#include <errno.h>
#include <stddef.h>

struct err {
    int code;       /* the -Exxx that was returned, 0 when nothing was set */
    char param[64]; /* the request field or option at fault, "" when there is none */
    char msg[512];  /* one sentence, no trailing newline */
};

/* Writes code and the formatted sentence into e (which may be NULL) and returns code, so that a caller can say
 * `return err_set(e, -EINVAL, "...")`. A sentence longer than msg is cut at a UTF-8 boundary. */
int err_set(struct err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* As err_set, and names the request field or option at fault. */
int err_param(struct err *e, int code, const char *param, const char *fmt, ...) __attribute__((format(printf, 4, 5)));

/* Puts "prefix: " before the sentence that e holds, and returns code: for adding a file's name on the way up. */
int err_prefix(struct err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

#endif
