/* tmpl_filter.c - a template renderer on standard streams, for the comparison with the reference implementation.
 *
 * Reads JSON lines {"template": TEXT, "vars": {}} on stdin, writes {"out": TEXT} or {"error": TEXT} a line. One thread;
 * each line's memory is freed before the next is read.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/template.h"

static int answer(const json_t *job)
{
    struct err e = {0};
    struct tmpl *t = NULL;
    struct buf out;
    const json_t *src = json_object_get(job, "template");
    buf_init(&out, 0);
    int rc = tmpl_parse(json_string_value(src), json_string_length(src), &t, &e);
    if (!rc)
        rc = tmpl_render(t, json_object_get(job, "vars"), NULL, &out, &e);
    json_t *r = rc ? json_pack("{s:s}", "error", e.msg) : json_pack("{s:s%}", "out", out.data ? out.data : "", out.len);
    int bad = !r || json_dumpf(r, stdout, JSON_COMPACT) || putchar('\n') == EOF;
    json_decref(r);
    tmpl_free(t);
    buf_free(&out);
    return bad;
}

int main(void)
{
    char *line = NULL;
    size_t cap = 0;
    int bad = 0;
    while (!bad && getline(&line, &cap, stdin) > 0) {
        json_error_t je;
        json_t *job = json_loads(line, JSON_ALLOW_NUL, &je);
        bad = !job || answer(job);
        json_decref(job);
    }
    free(line);
    return bad;
}
