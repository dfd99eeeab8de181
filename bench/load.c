/* load.c - bench/load: generated tokens a second and latencies of any OpenAI server's /v1/completions.
 *
 * Reads the options, runs (load_run.c), reports (load_report.c). One thread; everything is freed before the exit. Exit
 * 0: every request of every run succeeded; 1: some failed, or the report could not be written; 2: usage.
 */
#include "bench/load.h"

#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
    "usage: load --url http://HOST:PORT --models a,b,c [options]\n"
    "\n"
    "Streams completions with random prompts from a server and prints the speed and latencies.\n"
    "  --url U            the server, without /v1\n"
    "  --models a,b,c     model names, used in turn by the requests\n"
    "  --lora-ids 0,1,2   llama.cpp: send \"lora\": [{\"id\", \"scale\": 1}] in turn (--models may be left out)\n"
    "  --concurrency N    requests in flight (default 16)\n"
    "  --requests R       requests a run (default: twice the concurrency)\n"
    "  --in N, --out N    prompt and generated tokens (default 64, 64)\n"
    "  --runs K           runs; the one of median speed is the summary (default 3)\n"
    "  --seed S           of the prompts (default 1)\n"
    "  --vocab N          prompt ids are 100 to N-1 (default: 1000 to 40000)\n"
    "  --prompt-text      send random words in place of token ids\n"
    "  --extra JSON       an object merged into each body\n"
    "  --bearer KEY       sent as Authorization: Bearer KEY\n"
    "  --health-probe MS  poll GET /health at this period and report its latency\n"
    "  --timeout S        limit of one request in seconds (default 300)\n"
    "  --json             one JSON object on standard output\n"
    "  --help             this text\n"
    "Exit: 0 all requests succeeded, 1 some failed, 2 usage.\n";

static int usage(const char *msg, const char *what)
{
    fprintf(stderr, "load: %s%s (--help tells more)\n", msg, what);
    return 2;
}

static bool number(const char *s, long low, long high, long *out)
{
    char *end;
    errno = 0;
    long v = strtol(s, &end, 10);
    if (errno || end == s || *end || v < low || v > high)
        return false;
    *out = v;
    return true;
}

/* Cuts s at its commas, in place. */
static char **cut(char *s, size_t *n)
{
    char **list = calloc(strlen(s) / 2 + 2, sizeof *list), *save = NULL;
    *n = 0;
    for (char *p = strtok_r(s, ",", &save); list && p; p = strtok_r(NULL, ",", &save))
        list[(*n)++] = p;
    return list;
}

static bool take_lora(struct load_options *o, char *arg)
{
    char **list = cut(arg, &o->n_lora);
    o->lora_ids = calloc(o->n_lora + 1, sizeof *o->lora_ids);
    bool ok = list && o->lora_ids && o->n_lora;
    for (size_t i = 0; ok && i < o->n_lora; i++)
        ok = number(list[i], 0, 1 << 20, &o->lora_ids[i]);
    free(list);
    return ok;
}

static bool take_extra(struct load_options *o, const char *arg)
{
    json_decref(o->extra);
    o->extra = json_loads(arg, 0, NULL);
    return json_is_object(o->extra);
}

static bool take_url(struct load_options *o, const char *arg)
{
    char why[400];
    bool ok = !http_target_parse(arg, &o->target, why, sizeof why);
    if (!ok)
        fprintf(stderr, "load: %s\n", why);
    return ok;
}

enum {
    O_URL = 1,
    O_MODELS,
    O_LORA,
    O_CONCURRENCY,
    O_REQUESTS,
    O_IN,
    O_OUT,
    O_RUNS,
    O_SEED,
    O_VOCAB,
    O_TEXT,
    O_EXTRA,
    O_BEARER,
    O_HEALTH,
    O_TIMEOUT,
    O_JSON,
    O_HELP
};

static const struct option options[] = {{"url", 1, 0, O_URL},           {"models", 1, 0, O_MODELS},
                                        {"lora-ids", 1, 0, O_LORA},     {"concurrency", 1, 0, O_CONCURRENCY},
                                        {"requests", 1, 0, O_REQUESTS}, {"in", 1, 0, O_IN},
                                        {"out", 1, 0, O_OUT},           {"runs", 1, 0, O_RUNS},
                                        {"seed", 1, 0, O_SEED},         {"vocab", 1, 0, O_VOCAB},
                                        {"prompt-text", 0, 0, O_TEXT},  {"extra", 1, 0, O_EXTRA},
                                        {"bearer", 1, 0, O_BEARER},     {"health-probe", 1, 0, O_HEALTH},
                                        {"timeout", 1, 0, O_TIMEOUT},   {"json", 0, 0, O_JSON},
                                        {"help", 0, 0, O_HELP},         {0, 0, 0, 0}};

static bool take(struct load_options *o, int opt, char *arg)
{
    long v;
    switch (opt) {
    case O_URL:
        return take_url(o, arg);
    case O_MODELS:
        free(o->models);
        return (o->models = cut(arg, &o->n_models)) && o->n_models;
    case O_LORA:
        return take_lora(o, arg);
    case O_CONCURRENCY:
        return number(arg, 1, 4096, &o->concurrency);
    case O_REQUESTS:
        return number(arg, 1, 10000000, &o->requests);
    case O_IN:
        return number(arg, 1, 1 << 20, &o->in);
    case O_OUT:
        return number(arg, 1, 1 << 20, &o->out);
    case O_RUNS:
        return number(arg, 1, 1000, &o->runs);
    case O_SEED:
        if (!number(arg, 0, INT64_MAX, &v))
            return false;
        o->seed = (uint64_t)v;
        return true;
    case O_VOCAB:
        o->vocab_min = 100;
        if (!number(arg, 101, 1 << 28, &o->vocab_max))
            return false;
        o->vocab_max--;
        return true;
    case O_TEXT:
        return o->prompt_text = true;
    case O_EXTRA:
        return take_extra(o, arg);
    case O_BEARER:
        o->bearer = arg;
        return !strpbrk(arg, "\r\n");
    case O_HEALTH:
        return number(arg, 1, 60000, &o->health_ms);
    case O_TIMEOUT:
        if (!number(arg, 1, 86400, &v))
            return false;
        o->timeout_ms = v * 1000;
        return true;
    case O_JSON:
        return o->json = true;
    default:
        return false;
    }
}

static int run_all(struct load_options *o)
{
    struct run_result *runs = calloc((size_t)o->runs, sizeof *runs);
    int rc = runs ? 0 : 1;
    for (long k = 0; !rc && k < o->runs; k++)
        rc = load_run(o, k, &runs[k]) ? 1 : 0;
    if (rc)
        fprintf(stderr, "load: out of memory\n");
    else
        rc = load_report(o, runs, (size_t)o->runs) ? 1 : 0;
    for (long k = 0; runs && k < o->runs; k++) {
        rc |= runs[k].failed > 0;
        run_result_free(&runs[k]);
    }
    free(runs);
    return rc;
}

static int parse(struct load_options *o, int argc, char **argv)
{
    int opt, at = 0;
    bool url = false;
    while ((opt = getopt_long(argc, argv, "", options, &at)) != -1) {
        if (opt == O_HELP) {
            fputs(help, stdout);
            return 0;
        }
        if (opt == '?')
            return usage("bad option", "");
        if (!take(o, opt, optarg))
            return usage("bad value for --", options[at].name);
        url |= opt == O_URL;
    }
    if (optind < argc)
        return usage("unexpected argument: ", argv[optind]);
    if (!url || !(o->n_models || o->n_lora))
        return usage("--url and --models are needed", "");
    if (!o->requests)
        o->requests = o->concurrency * 2;
    return -1;
}

int main(int argc, char **argv)
{
    struct load_options o = {.concurrency = 16,
                             .in = 64,
                             .out = 64,
                             .runs = 3,
                             .seed = 1,
                             .vocab_min = 1000,
                             .vocab_max = 40000,
                             .timeout_ms = 300000};
    signal(SIGPIPE, SIG_IGN);
    int rc = parse(&o, argc, argv);
    if (rc < 0)
        rc = run_all(&o);
    free(o.models);
    free(o.lora_ids);
    json_decref(o.extra);
    return rc;
}
