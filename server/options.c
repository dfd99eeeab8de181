/* options.c - one table of options, filled from file, environment and command line in this order.
 *
 * Runs in main before any thread. Strings are copied into an arena that options_free drops. A later source overwrites
 * a single value and adds to a list (--pet, --module-root). What is wrong is said with the option's name and where it
 * was written, as "--kv-bytes (CPETD_KV_BYTES)".
 */
#include "server/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/arena.h"
#include "kernels/kernels.h"
#include "model/model.h"

enum kind { STR, BYTES, U32, FLAG, PRECISION, KV, PET, ROOT, LOG };

struct opt {
    const char *name, *arg, *help;
    enum kind kind;
    size_t off;
    uint64_t min, max;
};

#define AT(f) offsetof(struct options, f)
static const struct opt table[] = {
    {"model", "DIR", "the backbone: a Hugging Face directory", STR, AT(model), 0, 0},
    {"name", "ID", "the backbone's own task ID (the directory's name)", STR, AT(name), 0, 0},
    {"precision", "int8|bf16|f32", "of the weights (what DIR holds)", PRECISION, AT(precision), 0, 0},
    {"recovery", "FILE", "recovery module (DIR/recovery.safetensors)", STR, AT(recovery), 0, 0},
    {"pet", "TASK=PATH", "a task with one module: a PEFT directory or a .pet; may be repeated", PET, 0, 0, 0},
    {"module-root", "DIR", "where the admin API may take modules from by path; may be repeated", ROOT, 0, 0, 0},
    {"listen", "ADDR:PORT", "the API (127.0.0.1:8000)", STR, AT(listen), 0, 0},
    {"admin-listen", "ADDR:PORT|unix:PATH", "the admin API and metrics (none)", STR, AT(admin_listen), 0, 0},
    {"data", "DIR", "the registry and the modules that it owns", STR, AT(data), 0, 0},
    {"api-keys", "FILE", "tenant:hex(BLAKE2b-256(key)) a line; without it only loopback addresses are served", STR,
     AT(api_keys), 0, 0},
    {"admin-key", "FILE", "the admin API's key, mode 0600", STR, AT(admin_key), 0, 0},
    {"tls-cert", "FILE", "PEM certificates of --listen: it speaks HTTPS", STR, AT(tls_cert), 0, 0},
    {"tls-key", "FILE", "the key of --tls-cert, mode 0600", STR, AT(tls_key), 0, 0},
    {"tls-client-ca", "FILE", "clients of --listen must show a certificate that one of these signed", STR,
     AT(tls_client_ca), 0, 0},
    {"admin-tls-cert", "FILE", "PEM certificates of --admin-listen", STR, AT(admin_tls_cert), 0, 0},
    {"admin-tls-key", "FILE", "the key of --admin-tls-cert, mode 0600", STR, AT(admin_tls_key), 0, 0},
    {"config", "FILE", "option = value lines; the environment and the command line go before it", STR, AT(config), 0,
     0},
    {"threads", "N", "compute threads (one a core)", U32, AT(threads), 0, 1024},
    {"kv-bytes", "BYTES", "memory for keys and values (512M); K, M, G", BYTES, AT(kv_bytes), 1, 0},
    {"pet-bytes", "BYTES", "memory for resident modules (1G)", BYTES, AT(pet_bytes), 1, 0},
    {"kv", "bf16|int8|f32", "type of keys and values (f32 for f32 weights, else bf16)", KV, AT(kv_type), 0, 0},
    {"no-prefix-cache", NULL, "compute every prompt whole, whatever earlier ones began with", FLAG, AT(no_prefix_cache),
     0, 0},
    {"device", "cpu|cuda:N|auto", "where to compute (auto)", STR, AT(device), 0, 0},
    {"max-seqs", "N", "sequences at once (256)", U32, AT(max_seqs), 1, 1u << 16},
    {"max-context", "N", "tokens of a sequence (the model's)", U32, AT(max_context), 1, 1u << 30},
    {"max-rows", "N", "tokens a step (512)", U32, AT(max_rows), 1, 1u << 16},
    {"prefill-chunk", "N", "prompt tokens a step beside decoding (256)", U32, AT(prefill_chunk), 1, 1u << 16},
    {"max-queue", "N", "requests that may wait; more get 429 (1024)", U32, AT(max_queue), 1, 1u << 20},
    {"max-tenant", "N", "requests of one tenant, waiting and running; more get 429 (1024)", U32, AT(max_tenant), 1,
     1u << 20},
    {"max-connections", "N", "connections of --listen, idle ones too; more get 503 (16384, or what descriptors allow)",
     U32, AT(max_connections), 1, 1u << 20},
    {"request-timeout-ms", "N", "a request's longest time, 0: none (600000)", U32, AT(request_timeout_ms), 0,
     0x7FFFFFFF},
    {"drain-ms", "N", "how long SIGTERM lets streams finish (30000)", U32, AT(drain_ms), 0, 0x7FFFFFFF},
    {"trace-steps", "FILE", "write a JSON line a step", STR, AT(trace_steps), 0, 0},
    {"request-log", "FILE|-", "a JSON line a request, appended; SIGHUP opens FILE again", STR, AT(request_log), 0, 0},
    {"log-prompts", NULL, "prompts and error messages in --request-log too", FLAG, AT(log_prompts), 0, 0},
    {"metrics-tasks", "N", "tasks with metric series of their own; the others share one (256)", U32, AT(metrics_tasks),
     0, 4096},
    {"public-metrics", NULL, "serve /metrics on --listen too", FLAG, AT(public_metrics), 0, 0},
    {"log-format", "text|json", "of what is logged on stderr (text)", LOG, AT(log_format), 0, 0},
    {"inject-delay-ms", "N", "test aid: sleep this long in the engine each step (0)", U32, AT(inject_delay_ms), 0,
     60000},
    {"check-config", NULL, "check the options and exit", FLAG, AT(check_config), 0, 0},
};
#define N_TABLE (sizeof table / sizeof *table)

struct reading {
    struct options *o;
    struct arena *a;
};

int options_bytes(const char *s, uint64_t *out)
{
    uint64_t v = 0;
    if (*s < '0' || *s > '9')
        return -EINVAL;
    for (; *s >= '0' && *s <= '9'; s++)
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, (uint64_t)(*s - '0'), &v))
            return -EINVAL;
    unsigned shift = *s == 'K' || *s == 'k' ? 10 : *s == 'M' || *s == 'm' ? 20 : *s == 'G' || *s == 'g' ? 30 : 0;
    if (shift)
        s++;
    if (*s || (shift && v >> (64 - shift)))
        return -EINVAL;
    *out = v << shift;
    return 0;
}

static int choose(const char *v, const char *const *names, int n)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(v, names[i]))
            return i;
    return -1;
}

static int bad(const struct opt *p, const char *where, struct err *e, const char *what)
{
    return err_param(e, -EINVAL, p->name, "--%s (%s): %s", p->name, where, what);
}

static int set_pet(struct options *o, const struct opt *p, char *v, const char *where, struct err *e)
{
    char *eq = strchr(v, '=');
    if (!eq || eq == v || !eq[1])
        return bad(p, where, e, "give it as TASK=PATH");
    if (o->n_pets == OPTIONS_MANY)
        return bad(p, where, e, "too many of them");
    *eq = 0;
    o->pet_task[o->n_pets] = v;
    o->pet_path[o->n_pets++] = eq + 1;
    return 0;
}

static int set_enum(struct options *o, const struct opt *p, const char *v, const char *where, struct err *e)
{
    static const char *const types[] = {"f32", "bf16", "int8"}, *const logs[] = {"text", "json"};
    static const int type_of[] = {KERN_F32, KERN_BF16, KERN_S8};
    int i = p->kind == LOG ? choose(v, logs, 2) : choose(v, types, 3);
    if (i < 0)
        return err_param(e, -EINVAL, p->name, "--%s (%s): \"%s\" is none of %s", p->name, where, v, p->arg);
    if (p->kind == LOG)
        o->log_format = (enum options_log)i;
    else
        *(int *)((char *)o + p->off) = type_of[i];
    return 0;
}

static int set_number(struct options *o, const struct opt *p, const char *v, const char *where, struct err *e)
{
    uint64_t n;
    if (options_bytes(v, &n) || (p->kind == U32 && v[strspn(v, "0123456789")]))
        return err_param(e, -EINVAL, p->name, "--%s (%s): \"%s\" is not a number%s", p->name, where, v,
                         p->kind == BYTES ? " of bytes (K, M and G may follow it)" : "");
    if (n < p->min && !p->max)
        return err_param(e, -EINVAL, p->name, "--%s (%s): %s is below %llu", p->name, where, v,
                         (unsigned long long)p->min);
    if (n < p->min || (p->max && n > p->max))
        return err_param(e, -EINVAL, p->name, "--%s (%s): %s is outside %llu to %llu", p->name, where, v,
                         (unsigned long long)p->min, (unsigned long long)p->max);
    if (p->kind == U32)
        *(uint32_t *)((char *)o + p->off) = (uint32_t)n;
    else
        *(uint64_t *)((char *)o + p->off) = n;
    return 0;
}

static int set_flag(struct options *o, const struct opt *p, const char *v, const char *where, struct err *e)
{
    static const char *const words[] = {"false", "true", "no", "yes", "0", "1", "off", "on"};
    int i = choose(v, words, 8);
    if (i < 0)
        return bad(p, where, e, "say true or false");
    *(bool *)((char *)o + p->off) = i & 1;
    return 0;
}

static int set_value(struct reading *rd, const struct opt *p, const char *value, const char *where, struct err *e)
{
    struct options *o = rd->o;
    char *v = arena_strndup(rd->a, value, strlen(value));
    if (!v)
        return err_set(e, -ENOMEM, "out of memory");
    if (!*v)
        return bad(p, where, e, "is empty");
    switch (p->kind) {
    case STR:
        *(const char **)((char *)o + p->off) = v;
        return 0;
    case PET:
        return set_pet(o, p, v, where, e);
    case ROOT:
        if (o->n_module_roots == OPTIONS_MANY)
            return bad(p, where, e, "too many of them");
        o->module_root[o->n_module_roots++] = v;
        return 0;
    case FLAG:
        return set_flag(o, p, v, where, e);
    case BYTES:
    case U32:
        return set_number(o, p, v, where, e);
    default:
        return set_enum(o, p, v, where, e);
    }
}

static const struct opt *find(const char *name, size_t n)
{
    for (size_t i = 0; i < N_TABLE; i++)
        if (strlen(table[i].name) == n && !strncmp(table[i].name, name, n))
            return &table[i];
    return NULL;
}

/* ---- the three sources ---- */

static int from_file(void *ctx, const char *key, const char *value, const char *where, struct err *e)
{
    const struct opt *p = find(key, strlen(key));
    if (!p || p->off == AT(config) || p->off == AT(check_config))
        return err_param(e, -EINVAL, key, "%s: there is no option \"%s\"", where, key);
    return set_value(ctx, p, value, where, e);
}

static void env_name(const struct opt *p, char out[64])
{
    size_t n = (size_t)snprintf(out, 64, "CPETD_%s", p->name);
    for (size_t i = 0; i < n; i++)
        out[i] = out[i] == '-' ? '_' : out[i] >= 'a' && out[i] <= 'z' ? (char)(out[i] - 'a' + 'A') : out[i];
}

static const char *env_value(char *const *env, const char *name)
{
    size_t n = strlen(name);
    for (; env && *env; env++)
        if (!strncmp(*env, name, n) && (*env)[n] == '=')
            return *env + n + 1;
    return NULL;
}

/* A list holds one entry a comma. */
static int from_env_list(struct reading *rd, const struct opt *p, const char *v, const char *where, struct err *e)
{
    while (*v) {
        size_t n = strcspn(v, ",");
        char *one = arena_strndup(rd->a, v, n);
        int rc = one ? set_value(rd, p, one, where, e) : err_set(e, -ENOMEM, "out of memory");
        if (rc)
            return rc;
        v += n + (v[n] == ',');
    }
    return 0;
}

static int from_env(struct reading *rd, char *const *env, struct err *e)
{
    for (size_t i = 0; i < N_TABLE; i++) {
        char name[64];
        env_name(&table[i], name);
        const char *v = env_value(env, name);
        if (!v || !*v)
            continue;
        bool list = table[i].kind == PET || table[i].kind == ROOT;
        int rc = list ? from_env_list(rd, &table[i], v, name, e) : set_value(rd, &table[i], v, name, e);
        if (rc)
            return rc;
    }
    rd->o->cpu_level = env_value(env, "CPETD_CPU_LEVEL");
    return 0;
}

static int one_arg(struct reading *rd, int argc, char *const *argv, int *i, const char *only, struct err *e)
{
    const char *a = argv[*i];
    if (strncmp(a, "--", 2) || !a[2])
        return err_set(e, -EINVAL, "\"%s\" is not an option", a);
    size_t n = strcspn(a + 2, "=");
    const struct opt *p = find(a + 2, n);
    if (!p)
        return err_set(e, -EINVAL, "there is no option %.*s", (int)n + 2, a);
    const char *v = a[2 + n] == '=' ? a + 3 + n : NULL;
    if (!v && p->kind == FLAG)
        v = "true";
    if (!v && ++*i >= argc)
        return err_param(e, -EINVAL, p->name, "--%s needs a value (%s)", p->name, p->arg);
    if (!v)
        v = argv[*i];
    return only && strcmp(only, p->name) ? 0 : set_value(rd, p, v, "command line", e);
}

static int from_args(struct reading *rd, int argc, char *const *argv, const char *only, struct err *e)
{
    for (int i = 1; i < argc; i++) {
        int rc = one_arg(rd, argc, argv, &i, only, e);
        if (rc)
            return rc;
    }
    return 0;
}

static void defaults(struct options *o)
{
    *o = (struct options){.precision = MODEL_AUTO,
                          .kv_type = MODEL_KV_AUTO,
                          .listen = "127.0.0.1:8000",
                          .device = "auto",
                          .pet_bytes = (uint64_t)1 << 30,
                          .max_seqs = 256,
                          .max_queue = 1024,
                          .max_tenant = 1024,
                          .metrics_tasks = 256,
                          .request_timeout_ms = 600000,
                          .drain_ms = 30000};
}

static enum options_what asked_for(int argc, char *const *argv)
{
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))
            return OPTIONS_HELP;
        if (!strcmp(argv[i], "--version"))
            return OPTIONS_VERSION;
    }
    return OPTIONS_RUN;
}

int options_read(int argc, char *const *argv, char *const *env, struct options *o, enum options_what *what, int *status,
                 struct err *e)
{
    defaults(o);
    *what = asked_for(argc, argv);
    if (*what != OPTIONS_RUN)
        return 0;
    struct reading rd = {o, arena_create((size_t)8 << 20)};
    o->memory = rd.a;
    *status = EXIT_USAGE;
    if (!rd.a)
        return err_set(e, -ENOMEM, "out of memory");
    int rc = from_args(&rd, argc, argv, "config", e);
    if (rc)
        return rc;
    *status = EXIT_CONFIG;
    const char *file = o->config ? o->config : env_value(env, "CPETD_CONFIG");
    if (file && *file && (rc = options_file_read(file, from_file, &rd, e)))
        return rc;
    rc = from_env(&rd, env, e);
    if (rc)
        return rc;
    *status = EXIT_USAGE;
    rc = from_args(&rd, argc, argv, NULL, e);
    if (!rc && !o->model)
        rc = err_param(e, -EINVAL, "model", "--model is needed");
    return rc;
}

void options_free(struct options *o)
{
    arena_free(o->memory);
    o->memory = NULL;
}

const char *options_help(void)
{
    static char text[8192];
    size_t n = (size_t)snprintf(text, sizeof text,
                                "usage: cpetd --model DIR [options]\n\n"
                                "Serves many fine-tuned tasks from one language model over an OpenAI-style API.\n\n");
    for (size_t i = 0; i < N_TABLE && n < sizeof text; i++) {
        char head[64];
        snprintf(head, sizeof head, "--%s%s%s", table[i].name, table[i].arg ? " " : "",
                 table[i].arg ? table[i].arg : "");
        n += (size_t)snprintf(text + n, sizeof text - n, strlen(head) > 30 ? "  %s\n%34s%s\n" : "  %-32s%s%s\n", head,
                              "", table[i].help);
    }
    if (n < sizeof text)
        snprintf(
            text + n, sizeof text - n,
            "  %-32s%s\n  %-32s%s\n\n"
            "Each option may also stand in the environment (CPETD_KV_BYTES=2G) or in the --config file (kv-bytes = "
            "2G).\nCPETD_CPU_LEVEL=scalar|avx2|vnni|amx holds the kernels down.\n",
            "--version", "print the version", "--help", "print this");
    return text;
}
