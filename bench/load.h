/* load.h - what load.c, load_run.c and load_report.c share. */
#ifndef CPET_BENCH_LOAD_H
#define CPET_BENCH_LOAD_H

#include <jansson.h>

#include "bench/load_http.h"

#define MAX_STATUS 16

struct load_options {
    struct http_target target;
    char **models;
    size_t n_models;
    long *lora_ids; /* NULL: name the model instead */
    size_t n_lora;
    long concurrency, in, out, requests, runs, vocab_min, vocab_max, health_ms, timeout_ms;
    uint64_t seed;
    bool prompt_text, json;
    const char *bearer;
    json_t *extra; /* an object or NULL */
};

struct samples {
    double *v; /* milliseconds */
    size_t n, cap;
};

struct run_result {
    double seconds, tokens_per_s;
    uint64_t tokens;
    bool by_usage; /* every answer carried a usage chunk */
    long ok, failed;
    struct {
        char what[48];
        long n;
    } errors[MAX_STATUS];
    size_t n_errors;
    struct samples first, inter, health;
    long health_failed;
};

/* Sends all requests of run k. 0, or -1 when out of memory. */
int load_run(const struct load_options *o, long k, struct run_result *r);
void run_result_free(struct run_result *r);
bool samples_add(struct samples *s, double v);
/* Sorts s; the q-quantile (nearest rank), NAN when there is none. */
double samples_quantile(struct samples *s, double q);
/* Writes the runs and the run of median speed, as a table or one JSON object. 0, or -1. */
int load_report(const struct load_options *o, struct run_result *runs, size_t n);

#endif
