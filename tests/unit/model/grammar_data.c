/* grammar_data.c - grammars over real schemas and the official suite: every valid instance is taken, byte by byte and
 * with keys in the schema's order; no invalid one is.
 *
 * The data is in CPET_DATA/jsonschema or ../shared/data/jsonschema beside the source; without it the test is skipped.
 * Refused schemas and valid instances that are not taken are counted and, with -v, named; an invalid instance that is
 * taken, a state without a way on, or a count below the floor fails.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/file.h"
#include "tests/unit/model/grammar_lib.h"

struct count {
    int schemas, compiled, refused, valid, taken, invalid, rejected, wrong;
    double compile_ms, worst_ms;
};

static struct glib lib;
static bool verbose;
static struct {
    char text[80];
    int n;
} reasons[256];
static int n_reasons;

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

static void reason(const char *msg)
{
    char text[80];
    const char *colon = strstr(msg, ": ");
    snprintf(text, sizeof text, "%.79s", colon && msg[0] == '#' ? colon + 2 : msg);
    for (int i = 0; i < n_reasons; i++)
        if (!strcmp(reasons[i].text, text)) {
            reasons[i].n++;
            return;
        }
    if (n_reasons < 256) {
        memcpy(reasons[n_reasons].text, text, sizeof text);
        reasons[n_reasons++].n = 1;
    }
}

static bool taken(struct grammar *g, const json_t *v, size_t flags, size_t *at, char **text)
{
    char *s = json_dumps(v, flags | JSON_ENCODE_ANY | JSON_REAL_PRECISION(15));
    bool ok = s && glib_accepts(&lib, g, s, strlen(s), at);
    if (text)
        *text = s;
    else
        free(s);
    return ok;
}

static void instance(struct count *c, struct grammar *g, const json_t *schema, const json_t *test, const char *name)
{
    const json_t *data = json_object_get(test, "data");
    bool valid = json_is_true(json_object_get(test, "valid"));
    json_t *v = glib_order(data, schema);
    size_t at;
    char *text;
    bool ok = taken(g, v, JSON_COMPACT, &at, &text) || taken(g, data, JSON_COMPACT, &at, NULL);
    if (valid) {
        c->valid++;
        c->taken += ok;
        if (!ok && verbose)
            printf("not taken: %s (%s) at %zu: %.300s\n", name, json_string_value(json_object_get(test, "description")),
                   at, text);
        if (ok && !taken(g, v, 0, &at, NULL) && taken(g, v, JSON_COMPACT, &at, NULL))
            printf("spaces not taken: %s\n", name);
    } else {
        ok = ok || taken(g, v, 0, &at, NULL);
        c->invalid++;
        c->rejected += !ok;
        c->wrong += ok;
        if (ok)
            printf("WRONG: %s takes %.300s\n", name, text);
    }
    free(text);
    json_decref(v);
}

static void one(struct count *c, const json_t *schema, const json_t *tests, const char *name)
{
    char *text = json_dumps(schema, JSON_ENCODE_ANY);
    struct grammar *g = NULL;
    struct err e = {0};
    const json_t *t;
    size_t i;
    double from = now_ms();
    int r = glib_compile(&lib, GRAMMAR_JSON_SCHEMA, text, strlen(text), &g, &e);
    double ms = now_ms() - from;
    c->schemas++;
    c->compile_ms += ms;
    c->worst_ms = ms > c->worst_ms ? ms : c->worst_ms;
    free(text);
    if (verbose && ms > 300)
        printf("slow: %s %.0f ms\n", name, ms);
    if (r) {
        c->refused++;
        reason(e.msg);
        if (verbose)
            printf("refused: %s: %s\n", name, e.msg);
        return;
    }
    c->compiled++;
    json_array_foreach(tests, i, t) instance(c, g, schema, t, name);
    grammar_unref(g);
}

static void report(const char *what, const struct count *c)
{
    printf(
        "%s: %d schemas, %d compiled, %d refused; valid %d of %d taken; invalid %d of %d rejected, %d wrongly taken; "
        "%.2f ms a schema, %.0f ms at worst\n",
        what, c->schemas, c->compiled, c->refused, c->taken, c->valid, c->rejected, c->invalid, c->wrong,
        c->schemas ? c->compile_ms / c->schemas : 0, c->worst_ms);
}

static struct count lines(const char *path)
{
    struct count c = {0};
    FILE *f = fopen(path, "r");
    char *line = NULL;
    size_t cap = 0;
    while (f && getline(&line, &cap, f) > 0) {
        json_t *j = json_loads(line, 0, NULL);
        if (j)
            one(&c, json_object_get(j, "schema"), json_object_get(j, "tests"),
                json_string_value(json_object_get(j, "name")));
        json_decref(j);
    }
    free(line);
    if (f)
        fclose(f);
    return c;
}

static const char *const suite[] = {"additionalProperties",
                                    "allOf",
                                    "anyOf",
                                    "const",
                                    "contains",
                                    "default",
                                    "defs",
                                    "dynamicRef",
                                    "enum",
                                    "exclusiveMaximum",
                                    "exclusiveMinimum",
                                    "if-then-else",
                                    "infinite-loop-detection",
                                    "maxContains",
                                    "maxLength",
                                    "maxProperties",
                                    "maximum",
                                    "minItems",
                                    "minLength",
                                    "minProperties",
                                    "minimum",
                                    "not",
                                    "oneOf",
                                    "optional/anchor",
                                    "optional/bignum",
                                    "optional/dynamicRef",
                                    "optional/float-overflow",
                                    "optional/id",
                                    "optional/no-schema",
                                    "optional/non-bmp-regex",
                                    "optional/refOfUnknownKeyword",
                                    "optional/format/date-time",
                                    "optional/format/duration",
                                    "optional/format/email",
                                    "optional/format/hostname",
                                    "optional/format/idn-hostname",
                                    "optional/format/ipv4",
                                    "optional/format/iri-reference",
                                    "optional/format/json-pointer",
                                    "optional/format/regex",
                                    "properties",
                                    "propertyNames",
                                    "ref",
                                    "refRemote",
                                    "required",
                                    "vocabulary"};

static struct count official(const char *dir)
{
    struct count c = {0};
    for (size_t i = 0; i < sizeof suite / sizeof *suite; i++) {
        char path[512], name[256];
        snprintf(path, sizeof path, "%s/draft2020-12/%s.json", dir, suite[i]);
        json_t *j = json_load_file(path, 0, NULL), *s;
        size_t k;
        json_array_foreach(j, k, s)
        {
            snprintf(name, sizeof name, "%s: %s", suite[i], json_string_value(json_object_get(s, "description")));
            one(&c, json_object_get(s, "schema"), json_object_get(s, "tests"), name);
        }
        json_decref(j);
    }
    return c;
}

int main(int argc, char **argv)
{
    const char *data = getenv("CPET_DATA");
    char dir[400], path[500];
    struct err e = {0};
    verbose = argc > 1 && !strcmp(argv[1], "-v");
    snprintf(dir, sizeof dir, "%s/jsonschema", data && *data ? data : SOURCE_ROOT "/../shared/data");
    snprintf(path, sizeof path, "%s/schemas.jsonl", dir);
    FILE *f = fopen(path, "r");
    if (!f) {
        printf("skipped: no %s\n", path);
        return 77;
    }
    fclose(f);
    if (glib_open(GOLDEN_DIR, &lib, &e)) {
        printf("%s\n", e.msg);
        return 1;
    }
    struct count a = lines(path), b = official(dir);
    for (int i = 0; i < n_reasons; i++)
        printf("refused %d: %s\n", reasons[i].n, reasons[i].text);
    report("schemas.jsonl", &a);
    report("draft2020-12", &b);
    glib_close(&lib);
    /* what was reached: fewer is a step back (the data is a fixed sample) */
    bool floors = a.compiled >= 692 && a.taken >= 703 && b.compiled >= 158 && b.taken >= 316;
    if (!floors)
        printf("fewer compiled or taken than before\n");
    return a.wrong || b.wrong || !floors;
}
