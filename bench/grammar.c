/* grammar.c - what constrained decoding costs: bench/grammar MODEL [SCHEMAS.jsonl]
 *
 * One thread. For each schema that compiles, its valid instances are tokenized as JSON and followed token by token,
 * twice over: the first time every mask is new to the grammar, the second time the cache has them. Prints the time to
 * compile and to make a mask and accept a token, mean and quantiles. Without SCHEMAS.jsonl (lines of {"schema",
 * "tests":
 * [{"valid", "data"}]}) a small set built in is used.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model/grammar.h"

struct times {
    double *us;
    size_t n, cap;
};

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return 1e6 * (double)t.tv_sec + 1e-3 * (double)t.tv_nsec;
}

static void add(struct times *t, double us)
{
    if (t->n == t->cap) {
        size_t cap = t->cap ? 2 * t->cap : 4096;
        double *p = realloc(t->us, cap * sizeof *p);
        if (!p)
            exit(1);
        t->us = p;
        t->cap = cap;
    }
    t->us[t->n++] = us;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(const char *what, struct times *t)
{
    double sum = 0;
    if (!t->n)
        return;
    qsort(t->us, t->n, sizeof *t->us, by_value);
    for (size_t i = 0; i < t->n; i++)
        sum += t->us[i];
    printf("%-14s %7zu  mean %8.1f us  p50 %8.1f  p90 %8.1f  p99 %8.1f  max %8.1f\n", what, t->n, sum / (double)t->n,
           t->us[t->n / 2], t->us[t->n * 9 / 10], t->us[t->n * 99 / 100], t->us[t->n - 1]);
}

static void follow(struct grammar *g, const struct tok_ids *ids, struct times *mask_t, struct times *accept_t)
{
    struct grammar_state *s = NULL;
    const uint32_t *mask;
    if (grammar_state_open(g, &s))
        return;
    for (size_t i = 0; i <= ids->n; i++) {
        double a = now_us();
        if (grammar_mask(s, &mask))
            break;
        double b = now_us();
        add(mask_t, b - a);
        if (i == ids->n || grammar_accept(s, ids->id[i]))
            break;
        add(accept_t, now_us() - b);
    }
    grammar_state_close(s);
}

struct bench {
    struct tok *t;
    struct grammar_vocab *v;
    struct times compile, cold, warm, accept;
};

static void one(struct bench *x, const json_t *line)
{
    char *text = json_dumps(json_object_get(line, "schema"), JSON_ENCODE_ANY);
    struct grammar_spec s = {.kind = GRAMMAR_JSON_SCHEMA, .text = {text, text ? strlen(text) : 0}};
    struct grammar *g = NULL;
    struct err e;
    json_t *test;
    size_t i;
    double from = now_us();
    int r = text ? grammar_compile(x->v, &s, NULL, &g, &e) : -1;
    if (!r)
        add(&x->compile, now_us() - from);
    json_array_foreach(json_object_get(line, "tests"), i, test)
    {
        char *doc = json_dumps(json_object_get(test, "data"), JSON_ENCODE_ANY | JSON_REAL_PRECISION(15));
        struct tok_ids ids = {0};
        if (!r && doc && json_is_true(json_object_get(test, "valid")) &&
            !tok_encode(x->t, doc, strlen(doc), 0, &ids, &e)) {
            follow(g, &ids, &x->cold, &x->accept);
            follow(g, &ids, &x->warm, &x->accept);
        }
        tok_ids_free(&ids);
        free(doc);
    }
    grammar_unref(g);
    free(text);
}

static const char *const built_in[] = {"{\"schema\":{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\"}"
                                       ",\"order\":{\"type\":\"integer\"},\"city\":{\"type\":"
                                       "\"string\",\"maxLength\":40},\"kind\":{\"enum\":[\"repair\",\"refund\","
                                       "\"question\"]}},\"required\":[\"name\",\"order\",\"kind\"],"
                                       "\"additionalProperties\":false},\"tests\":[{\"valid\":true,\"data\":{\"name\":"
                                       "\"Maria Lopez\",\"order\":48213,\"city\":\"Lisbon\","
                                       "\"kind\":\"repair\"}}]}",
                                       "{\"schema\":true,\"tests\":[{\"valid\":true,\"data\":{\"a\":[1,2.5,\"x\",null,{"
                                       "\"b\":\"a longer text with some words in it\"}]}}]}"};

int main(int argc, char **argv)
{
    struct bench x = {0};
    struct err e = {0};
    size_t n_eos;
    if (argc < 2) {
        fprintf(stderr, "usage: %s MODEL [SCHEMAS.jsonl]\n", argv[0]);
        return 2;
    }
    double from = now_us();
    if (tok_open(argv[1], &x.t, &e)) {
        fprintf(stderr, "%s\n", e.msg);
        return 1;
    }
    const int32_t *eos = tok_eos_ids(x.t, &n_eos);
    double loaded = now_us();
    if (grammar_vocab_create(x.t, eos, n_eos, tok_vocab(x.t), &x.v, &e)) {
        fprintf(stderr, "%s\n", e.msg);
        return 1;
    }
    printf("vocabulary %u, tokenizer %.0f ms, trie %.1f ms\n", tok_vocab(x.t), (loaded - from) / 1e3,
           (now_us() - loaded) / 1e3);
    FILE *f = argc > 2 ? fopen(argv[2], "r") : NULL;
    char *line = NULL;
    size_t cap = 0;
    for (size_t i = 0; argc <= 2 ? i < 2 : f && getline(&line, &cap, f) > 0; i++) {
        json_t *j = json_loads(argc > 2 ? line : built_in[i], 0, NULL);
        if (j)
            one(&x, j);
        json_decref(j);
    }
    report("compile", &x.compile);
    report("mask, new", &x.cold);
    report("mask, again", &x.warm);
    report("accept", &x.accept);
    return 0;
}
