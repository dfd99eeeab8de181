/* grammar_filter.c - for comparisons with another validator: lines of {"name", "schema"} in, random texts out.
 *
 * usage: grammar_filter TEXTS < lines. A line out has the name and either "refused" or "texts": TEXTS random texts of
 * the grammar that ended, as strings.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/model/grammar_lib.h"

static struct glib lib;

static json_t *texts(struct grammar *g, int n)
{
    json_t *out = json_array();
    for (uint64_t seed = 0; seed < 3 * (uint64_t)n && json_array_size(out) < (size_t)n; seed++) {
        struct buf b = {0};
        if (glib_random(&lib, g, seed, 1 + (int)(seed * 13 % 80), 500, &b) && b.data)
            json_array_append_new(out, json_stringn(b.data, b.len));
        if (b.failed) {
            fprintf(stderr, "stuck after: %s\n", b.data ? b.data : "");
            exit(1);
        }
        buf_free(&b);
    }
    return out;
}

int main(int argc, char **argv)
{
    struct err e = {0};
    char *line = NULL;
    size_t cap = 0;
    if (glib_open(GOLDEN_DIR, &lib, &e)) {
        fprintf(stderr, "%s\n", e.msg);
        return 1;
    }
    while (getline(&line, &cap, stdin) > 0) {
        json_t *j = json_loads(line, 0, NULL), *out = json_object();
        char *schema = json_dumps(json_object_get(j, "schema"), JSON_ENCODE_ANY);
        struct grammar *g = NULL;
        json_object_set(out, "name", json_object_get(j, "name"));
        if (schema && !glib_compile(&lib, GRAMMAR_JSON_SCHEMA, schema, strlen(schema), &g, &e))
            json_object_set_new(out, "texts", texts(g, argc > 1 ? atoi(argv[1]) : 5));
        else
            json_object_set_new(out, "refused", json_string(e.msg));
        json_dumpf(out, stdout, JSON_COMPACT);
        putchar('\n');
        grammar_unref(g);
        free(schema);
        json_decref(out);
        json_decref(j);
    }
    free(line);
    glib_close(&lib);
    return 0;
}
