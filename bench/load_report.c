/* load_report.c - prints the runs of the load generator: a table for people, or one JSON object.
 *
 * Runs after all requests; sorts the samples in place and frees nothing. The summary is the run of median speed (the
 * lower middle one of an even number), whole, so that its figures belong together.
 */
#include "bench/load.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static int by_speed(const void *a, const void *b)
{
    const struct run_result *x = *(struct run_result *const *)a, *y = *(struct run_result *const *)b;
    return (x->tokens_per_s > y->tokens_per_s) - (x->tokens_per_s < y->tokens_per_s);
}

static json_t *number(double v)
{
    return isnan(v) ? json_null() : json_real(v);
}

static json_t *quantiles(struct samples *s)
{
    return json_pack("{s:o, s:o, s:o, s:I}", "p50", number(samples_quantile(s, 0.5)), "p95",
                     number(samples_quantile(s, 0.95)), "p99", number(samples_quantile(s, 0.99)), "n",
                     (json_int_t)s->n);
}

static json_t *run_json(const struct load_options *o, struct run_result *r)
{
    json_t *errors = json_object();
    for (size_t i = 0; i < r->n_errors; i++)
        json_object_set_new(errors, r->errors[i].what, json_integer(r->errors[i].n));
    json_t *j = json_pack("{s:f, s:I, s:f, s:s, s:I, s:I, s:o, s:o, s:o}", "tokens_per_s", r->tokens_per_s, "tokens",
                          (json_int_t)r->tokens, "seconds", r->seconds, "counted_by", r->by_usage ? "usage" : "chunks",
                          "ok", (json_int_t)r->ok, "failed", (json_int_t)r->failed, "first_token_ms",
                          quantiles(&r->first), "inter_token_ms", quantiles(&r->inter), "errors", errors);
    if (j && o->health_ms) {
        json_t *h = quantiles(&r->health);
        json_object_set_new(h, "failed", json_integer(r->health_failed));
        json_object_set_new(j, "health_ms", h);
    }
    return j;
}

static int report_json(const struct load_options *o, struct run_result *runs, size_t n, struct run_result *median)
{
    json_t *all = json_array(), *models = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(all, run_json(o, &runs[i]));
    for (size_t i = 0; i < o->n_models; i++)
        json_array_append_new(models, json_string(o->models[i]));
    json_t *j =
        json_pack("{s:o, s:I, s:I, s:I, s:I, s:I, s:o, s:o}", "models", models, "concurrency",
                  (json_int_t)o->concurrency, "in", (json_int_t)o->in, "out", (json_int_t)o->out, "requests",
                  (json_int_t)o->requests, "seed", (json_int_t)o->seed, "median", run_json(o, median), "runs", all);
    int bad = !j || json_dumpf(j, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(8)) || putchar('\n') == EOF;
    json_decref(j);
    return bad ? -1 : 0;
}

static void print_samples(const char *name, struct samples *s)
{
    printf("  %-16s p50 %9.2f   p95 %9.2f   p99 %9.2f ms  (%zu)\n", name, samples_quantile(s, 0.5),
           samples_quantile(s, 0.95), samples_quantile(s, 0.99), s->n);
}

static void print_run(const struct load_options *o, const char *name, struct run_result *r)
{
    printf("%s: %.1f tokens/s (%llu tokens by %s in %.2f s), %ld ok, %ld failed\n", name, r->tokens_per_s,
           (unsigned long long)r->tokens, r->by_usage ? "usage" : "chunks", r->seconds, r->ok, r->failed);
    print_samples("first token", &r->first);
    print_samples("between tokens", &r->inter);
    if (o->health_ms)
        print_samples("GET /health", &r->health);
    for (size_t i = 0; i < r->n_errors; i++)
        printf("  error %-10s %ld\n", r->errors[i].what, r->errors[i].n);
}

int load_report(const struct load_options *o, struct run_result *runs, size_t n)
{
    struct run_result **order = calloc(n, sizeof *order);
    if (!order)
        return -1;
    for (size_t i = 0; i < n; i++)
        order[i] = &runs[i];
    qsort(order, n, sizeof *order, by_speed);
    struct run_result *median = order[(n - 1) / 2];
    free(order);
    if (o->json)
        return report_json(o, runs, n, median);
    printf("%ld at once, %ld requests of %ld + %ld tokens, %zu model(s)\n", o->concurrency, o->requests, o->in, o->out,
           o->n_models);
    for (size_t i = 0; i < n; i++) {
        char name[32];
        snprintf(name, sizeof name, "run %zu", i + 1);
        print_run(o, name, &runs[i]);
    }
    print_run(o, "median run", median);
    return 0;
}
