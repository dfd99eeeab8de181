/* metrics.c - what is counted, and the Prometheus exposition of it.
 *
 * Loop thread. Engine counters are atomics that the engine thread writes; everything else is the loop's own. Names
 * that begin with vllm: have vLLM's types and meaning, so that routers which read them work unchanged; ours begin with
 * cpet_; process_ is what Prometheus' own clients say of a process. The exposition is made afresh for each scrape, from
 * state that is in memory: series a task are capped by --metrics-tasks, so that a scrape stays short.
 */
#include "server/metrics.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "server/call.h"
#include "server/exposition.h"
#include "server/reqlog.h"

const double metrics_seconds[METRICS_BUCKETS - 1] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5,
                                                     0.75,  1,      2.5,   5,    10,    30,   60,    120, 600};
const double metrics_tokens[METRICS_BUCKETS - 1] = {
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000, 1000000};

/* ---- counting ---- */

static void add(struct histogram *h, const double *bucket, double v)
{
    unsigned i = 0;
    while (i < METRICS_BUCKETS - 1 && v > bucket[i])
        i++;
    h->count[i]++;
    h->sum += v;
}

void histogram_add(struct histogram *h, double seconds)
{
    add(h, metrics_seconds, seconds);
}

void histogram_add_tokens(struct histogram *h, uint32_t n)
{
    add(h, metrics_tokens, n);
}

static double between(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) * 1e-9 : 0;
}

void metrics_choice_done(struct metrics *m, const struct metrics_choice *d)
{
    ++*(strcmp(d->finish, "stop") ? &m->finished_length : &m->finished_stop);
    histogram_add(&m->whole, between(d->start_ns, d->now_ns));
    histogram_add_tokens(&m->request_prompt_tokens, d->prompt_tokens);
    histogram_add_tokens(&m->request_generation_tokens, d->generation_tokens);
    if (!d->admitted_ns || !d->first_ns)
        return;
    histogram_add(&m->prefill, between(d->admitted_ns, d->first_ns));
    histogram_add(&m->decode, between(d->first_ns, d->last_ns));
    histogram_add(&m->inference, between(d->admitted_ns, d->last_ns));
    if (d->generation_tokens > 1)
        histogram_add(&m->each_token, between(d->first_ns, d->last_ns) / (d->generation_tokens - 1));
}

static bool task_gone(const void *ctx, const char *name)
{
    const struct server *sv = ctx;
    return !tasks_find(sv->tasks, name);
}

void metrics_task_done(struct server *sv, const char *task, enum series_outcome how, uint64_t prompt_tokens,
                       uint64_t generation_tokens)
{
    struct series *s = series_of(&sv->metrics.tasks, task, task_gone, sv);
    s->requests[how]++;
    s->prompt_tokens += prompt_tokens;
    s->generation_tokens += generation_tokens;
}

/* ---- adapters ---- */

static int by_number(const void *a, const void *b)
{
    const struct task_version *const *x = a, *const *y = b;
    return ((*x)->number > (*y)->number) - ((*x)->number < (*y)->number);
}

/* Tasks with modules that have generations in this state, by name with commas, --metrics-tasks of them at most. */
static void put_adapters(const struct server *sv, int state, struct buf *b)
{
    size_t n = 0, shown = 0;
    for (const struct call *c = sv->calls; c; c = c->next)
        n++;
    const struct task_version **v = calloc(n + 1, sizeof *v);
    n = 0;
    for (const struct call *c = v ? sv->calls : NULL; c; c = c->next) {
        bool any = false;
        for (size_t k = 0; c->task && c->task->n_pets && c->gen && k < c->n_prompts && !any; k++)
            any = c->gen[k] && atomic_load(&c->gen[k]->state) == state;
        if (any)
            v[n++] = c->task;
    }
    if (v)
        qsort(v, n, sizeof *v, by_number);
    for (size_t i = 0; i < n && shown < sv->o->metrics_tasks; i++) {
        if (i && v[i]->number == v[i - 1]->number)
            continue;
        buf_printf(b, "%s%s", shown++ ? "," : "", v[i]->id);
    }
    free(v);
}

static void put_requests_info(const struct server *sv, size_t max, struct buf *b)
{
    struct buf l = {0}, running = {0}, waiting = {0};
    char number[24];
    snprintf(number, sizeof number, "%zu", max);
    put_adapters(sv, GEN_RUNNING, &running);
    put_adapters(sv, GEN_QUEUED, &waiting);
    expo_label(&l, "max_lora", number);
    expo_label(&l, "running_lora_adapters", running.data ? running.data : "");
    expo_label(&l, "waiting_lora_adapters", waiting.data ? waiting.data : "");
    expo_head(b, "vllm:lora_requests_info", "gauge",
              "Adapters with running and waiting requests; the value is the time.");
    buf_printf(b, "vllm:lora_requests_info{%s} %lld\n", l.data ? l.data : "", (long long)time(NULL));
    b->failed |= l.failed || running.failed || waiting.failed;
    buf_free(&l);
    buf_free(&running);
    buf_free(&waiting);
}

/* Whether all modules of a task are in memory; *pinned: and stay there. */
static bool is_loaded(const struct task_version *v, bool *pinned)
{
    *pinned = true;
    for (uint32_t k = 0; k < v->n_pets; k++) {
        const struct resident_item *it = &v->module[k]->res;
        if (it->state != RESIDENT_IN)
            return false;
        *pinned = *pinned && it->pins;
    }
    return v->n_pets > 0;
}

/* One series a task whose modules are in memory; those beyond the cap are counted in one. */
static void put_loaded(const struct server *sv, const char *labels, struct buf *b)
{
    size_t n = 0, rest = 0;
    const struct task_version *v;
    bool pinned;
    expo_head(b, "vllm:lora_adapter_loaded", "gauge", "1 for each resident adapter.");
    for (size_t i = 0; (v = tasks_at(sv->tasks, i)); i++) {
        if (!is_loaded(v, &pinned))
            continue;
        if (n++ >= sv->o->metrics_tasks) {
            rest++;
            continue;
        }
        struct buf l = {0};
        char rank[16];
        snprintf(rank, sizeof rank, "%u", v->module[0]->info.max_rank);
        expo_label(&l, "adapter_name", v->id);
        expo_label(&l, "level", "gpu");
        expo_label(&l, "pinned", pinned ? "true" : "false");
        expo_label(&l, "rank", rank);
        buf_printf(b, "vllm:lora_adapter_loaded{%s,%s} 1\n", labels, l.data ? l.data : "");
        b->failed |= l.failed;
        buf_free(&l);
    }
    if (rest)
        buf_printf(b, "vllm:lora_adapter_loaded{%s,adapter_name=\"other\",level=\"gpu\",pinned=\"\",rank=\"\"} %zu\n",
                   labels, rest);
}

/* What resident.c counts, and the modules by state. */
static void put_residency(const struct server *sv, struct buf *b)
{
    const struct resident_stats *s = resident_stats(sv->resident);
    size_t state[3] = {0};
    for (size_t i = 0; i < sv->modules->name.n; i++) {
        const struct module_name *n = table_at(&sv->modules->name, i);
        state[n->draining ? 2 : n->m->res.rc ? 1 : 0]++;
    }
    expo_one(b, "cpet_modules_resident", "gauge", "Modules in device memory.", "", (double)s->n_in);
    expo_one(b, "cpet_modules_resident_bytes", "gauge",
             "Device bytes of resident modules, those that are being loaded among them.", "", (double)s->bytes_in);
    expo_one(b, "cpet_modules_budget_bytes", "gauge", "What --pet-bytes allows.", "",
             (double)resident_budget(sv->resident));
    expo_head(b, "cpet_modules", "gauge", "Names of modules, by state.");
    buf_printf(b, "cpet_modules{state=\"ready\"} %zu\ncpet_modules{state=\"failed\"} %zu\n", state[0], state[1]);
    buf_printf(b, "cpet_modules{state=\"draining\"} %zu\n", state[2]);
    expo_one(b, "cpet_module_loads_total", "counter", "Modules loaded since the server was ready.", "",
             (double)s->loads);
    expo_one(b, "cpet_module_load_errors_total", "counter", "Loads that failed.", "", (double)s->load_errors);
    expo_one(b, "cpet_module_evictions_total", "counter", "Modules put out to make room for others.", "",
             (double)s->evictions);
    expo_one(b, "cpet_requests_waiting_for_modules", "gauge", "Requests that wait for a module to be loaded.", "",
             (double)s->n_waiting);
    expo_one(b, "cpet_admin_operations", "gauge", "Admin calls that are not over.", "", admin_busy(sv));
}

static void put_lora(const struct server *sv, const char *labels, struct buf *b)
{
    const struct resident_stats *s = resident_stats(sv->resident);
    size_t each = s->n_in ? s->bytes_in / s->n_in : 0;
    size_t max = each ? (size_t)sv->o->pet_bytes / each : 1;
    struct buf l = {0};
    if (max < 1)
        max = 1;
    put_loaded(sv, labels, b);
    expo_one(b, "vllm:num_gpu_loaded_lora_adapters", "gauge", "Resident adapters.", labels, (double)s->n_in);
    expo_one(b, "vllm:num_cpu_loaded_lora_adapters", "gauge", "Adapters held beside the device; none are.", labels, 0);
    expo_one(b, "vllm:max_gpu_lora_adapters", "gauge", "Adapters of the usual size that --pet-bytes would hold.",
             labels, (double)max);
    buf_printf(&l, "%s,transition=\"load\"", labels);
    expo_head(b, "vllm:lora_adapter_load_seconds", "histogram", "From file to memory, an adapter.");
    expo_histogram(b, "vllm:lora_adapter_load_seconds", l.data ? l.data : "", metrics_seconds, METRICS_BUCKETS - 1,
                   sv->metrics.module_load.count, sv->metrics.module_load.sum);
    b->failed |= l.failed;
    buf_free(&l);
    put_requests_info(sv, max, b);
    put_residency(sv, b);
}

/* ---- groups ---- */

static void put_seconds(struct buf *b, const char *name, const char *labels, const struct histogram *h,
                        const char *help)
{
    expo_head(b, name, "histogram", help);
    expo_histogram(b, name, labels, metrics_seconds, METRICS_BUCKETS - 1, h->count, h->sum);
}

static void put_tokens(struct buf *b, const char *name, const char *labels, const struct histogram *h, const char *help)
{
    expo_head(b, name, "histogram", help);
    expo_histogram(b, name, labels, metrics_tokens, METRICS_BUCKETS - 1, h->count, h->sum);
}

static void put_vllm_histograms(const struct metrics *m, const char *labels, struct buf *b)
{
    put_seconds(b, "vllm:time_to_first_token_seconds", labels, &m->first_token, "From request to first token.");
    put_seconds(b, "vllm:inter_token_latency_seconds", labels, &m->between_tokens, "Between a choice's tokens.");
    put_seconds(b, "vllm:request_time_per_output_token_seconds", labels, &m->each_token,
                "Mean time between tokens, a finished choice.");
    put_seconds(b, "vllm:request_queue_time_seconds", labels, &m->queue,
                "From all being known to admission, waiting for modules too.");
    put_seconds(b, "vllm:request_prefill_time_seconds", labels, &m->prefill, "From admission to first token.");
    put_seconds(b, "vllm:request_decode_time_seconds", labels, &m->decode, "From first to last token.");
    put_seconds(b, "vllm:request_inference_time_seconds", labels, &m->inference, "From admission to last token.");
    put_seconds(b, "vllm:e2e_request_latency_seconds", labels, &m->whole, "From request to the end of its answer.");
    put_tokens(b, "vllm:request_prompt_tokens", labels, &m->request_prompt_tokens, "Prompt tokens, a finished choice.");
    put_tokens(b, "vllm:request_generation_tokens", labels, &m->request_generation_tokens,
               "Tokens generated, a finished choice.");
}

static void put_success(const struct metrics *m, const char *labels, struct buf *b)
{
    const struct {
        const char *reason;
        uint64_t n;
    } all[] = {{"stop", m->finished_stop}, {"length", m->finished_length}, {"abort", m->finished_abort}};
    expo_head(b, "vllm:request_success_total", "counter", "Choices finished, by reason.");
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        buf_printf(b, "vllm:request_success_total{%s,finished_reason=\"%s\"} %llu\n", labels, all[i].reason,
                   (unsigned long long)all[i].n);
}

static void put_vllm(const struct server *sv, const char *labels, struct buf *b)
{
    const struct engine_stats *s = engine_stats(sv->en);
    const struct metrics *m = &sv->metrics;
    uint32_t running = atomic_load(&s->running), waiting = sv->n_gens > running ? sv->n_gens - running : 0;
    waiting += sv->n_waiting;
    double used = 1.0 - (double)atomic_load(&s->pages_free) / (double)sv->mi->n_pages;
    expo_one(b, "vllm:num_requests_running", "gauge", "Requests in the batch.", labels, running);
    expo_one(b, "vllm:num_requests_waiting", "gauge", "Requests in the queue.", labels, waiting);
    expo_one(b, "vllm:kv_cache_usage_perc", "gauge", "Used part of the KV pages, 0 to 1.", labels, used);
    expo_one(b, "vllm:prompt_tokens_total", "counter", "Prompt tokens taken.", labels, (double)m->prompt_tokens);
    expo_one(b, "vllm:generation_tokens_total", "counter", "Tokens generated.", labels, (double)m->generation_tokens);
    expo_one(b, "vllm:num_preemptions_total", "counter", "Requests that lost their KV pages and waited again.", labels,
             (double)atomic_load(&s->preemptions));
    put_success(m, labels, b);
    expo_head(b, "vllm:cache_config_info", "gauge", "How the KV cache is made; always 1.");
    buf_printf(b, "vllm:cache_config_info{%s,block_size=\"%d\",num_gpu_blocks=\"%u\",cache_dtype=\"%s\"} 1\n", labels,
               KERN_PAGE_TOKENS, sv->mi->n_pages,
               sv->mi->kv_type == KERN_S8     ? "int8"
               : sv->mi->kv_type == KERN_BF16 ? "bfloat16"
                                              : "float32");
    put_vllm_histograms(m, labels, b);
    put_lora(sv, labels, b);
}

/* The prefix cache. */
static void put_prefix(const struct server *sv, const char *labels, struct buf *b)
{
    const struct engine_stats *s = engine_stats(sv->en);
    expo_one(b, "vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache.", labels,
             (double)atomic_load(&s->prefix_queries));
    expo_one(b, "vllm:prefix_cache_hits_total", "counter", "Prompt tokens taken from the prefix cache.", labels,
             (double)atomic_load(&s->prefix_hits));
    expo_one(b, "cpet_kv_pages_kept", "gauge", "KV pages kept for later prompts that nobody holds; they count as free.",
             "", atomic_load(&s->pages_idle));
}

static void put_grammars(const struct server *sv, struct buf *b)
{
    struct grammars_stats s;
    if (!sv->grammars)
        return;
    grammars_stats(sv->grammars, &s);
    expo_one(b, "cpet_grammars", "gauge", "Compiled forms of answers that are kept.", "", s.n);
    expo_head(b, "cpet_grammar_lookups_total", "counter", "Requests with a form, by whether it was compiled already.");
    buf_printf(b, "cpet_grammar_lookups_total{result=\"hit\"} %llu\ncpet_grammar_lookups_total{result=\"miss\"} %llu\n",
               (unsigned long long)s.hits, (unsigned long long)s.misses);
}

static void put_engine(const struct server *sv, struct buf *b)
{
    const struct engine_stats *s = engine_stats(sv->en);
    double bucket[ENGINE_BUCKETS - 1];
    uint64_t count[ENGINE_BUCKETS];
    expo_one(b, "cpet_steps_total", "counter", "Passes of the model.", "", (double)atomic_load(&s->steps));
    expo_head(b, "cpet_rows_total", "counter", "Rows computed, by kind.");
    buf_printf(b, "cpet_rows_total{kind=\"decode\"} %llu\ncpet_rows_total{kind=\"prefill\"} %llu\n",
               (unsigned long long)atomic_load(&s->decode_rows), (unsigned long long)atomic_load(&s->prefill_rows));
    expo_one(b, "cpet_sampled_tokens_total", "counter", "Tokens sampled.", "", (double)atomic_load(&s->sampled));
    expo_one(b, "cpet_step_errors_total", "counter", "Steps that failed.", "", (double)atomic_load(&s->step_errors));
    expo_one(b, "cpet_preemptions_total", "counter", "Generations that lost their KV pages and waited again.", "",
             (double)atomic_load(&s->preemptions));
    for (unsigned i = 0; i < ENGINE_BUCKETS; i++) {
        count[i] = atomic_load(&s->step_hist[i]);
        if (i < ENGINE_BUCKETS - 1)
            bucket[i] = engine_bucket_us[i] * 1e-6;
    }
    expo_head(b, "cpet_step_seconds", "histogram", "Time of a step.");
    expo_histogram(b, "cpet_step_seconds", "", bucket, ENGINE_BUCKETS - 1, count,
                   (double)atomic_load(&s->step_us) * 1e-6);
    expo_one(b, "cpet_step_slots", "gauge", "Distinct modules in the last step.", "", atomic_load(&s->slots));
    expo_one(b, "cpet_kv_pages", "gauge", "KV pages in all.", "", sv->mi->n_pages);
    expo_one(b, "cpet_kv_pages_free", "gauge", "KV pages that nobody holds.", "", atomic_load(&s->pages_free));
    expo_one(b, "cpet_weight_bytes", "gauge", "Bytes of packed weights.", "", (double)sv->mi->weight_bytes);
}

static void put_tasks(const struct server *sv, struct buf *b)
{
    static const char *const outcome[SERIES_OUTCOMES] = {"ok", "error", "abort"};
    const struct task_series *t = &sv->metrics.tasks;
    struct buf requests = {0}, prompt = {0}, generated = {0};
    for (size_t i = 0; i < t->n; i++) {
        const struct series *s = &t->s[i];
        struct buf l = {0};
        expo_label(&l, "task", s->task);
        const char *label = l.data ? l.data : "";
        for (int k = 0; k < SERIES_OUTCOMES; k++)
            buf_printf(&requests, "cpet_task_requests_total{%s,outcome=\"%s\"} %llu\n", label, outcome[k],
                       (unsigned long long)s->requests[k]);
        buf_printf(&prompt, "cpet_task_prompt_tokens_total{%s} %llu\n", label, (unsigned long long)s->prompt_tokens);
        buf_printf(&generated, "cpet_task_generation_tokens_total{%s} %llu\n", label,
                   (unsigned long long)s->generation_tokens);
        b->failed |= l.failed;
        buf_free(&l);
    }
    expo_head(b, "cpet_task_requests_total", "counter", "Requests that ended, by task and outcome.");
    buf_append(b, requests.data, requests.len);
    expo_head(b, "cpet_task_prompt_tokens_total", "counter", "Prompt tokens of requests that ended, by task.");
    buf_append(b, prompt.data, prompt.len);
    expo_head(b, "cpet_task_generation_tokens_total", "counter", "Tokens generated by requests that ended, by task.");
    buf_append(b, generated.data, generated.len);
    b->failed |= requests.failed || prompt.failed || generated.failed;
    buf_free(&requests);
    buf_free(&prompt);
    buf_free(&generated);
}

/* ---- the process and its listeners ---- */

/* Open descriptors: the kernel's own count since Linux 6.2, else by listing them. */
static double open_fds(void)
{
    struct stat st;
    if (!stat("/proc/self/fd", &st) && st.st_size)
        return (double)st.st_size;
    DIR *d = opendir("/proc/self/fd");
    double n = -3; /* ".", ".." and the directory itself */
    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n < 0 ? 0 : n;
}

static void put_process(const struct server *sv, struct buf *b)
{
    unsigned long size = 0, resident = 0;
    double page = (double)sysconf(_SC_PAGESIZE);
    struct rlimit files = {0};
    struct timespec cpu = {0};
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%lu %lu", &size, &resident) != 2)
        size = resident = 0;
    if (f)
        fclose(f);
    getrlimit(RLIMIT_NOFILE, &files);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    expo_one(b, "cpet_resident_bytes", "gauge", "Resident memory of the process.", "", (double)resident * page);
    expo_one(b, "cpet_start_time_seconds", "gauge", "When the process started.", "", (double)sv->started);
    expo_one(b, "process_resident_memory_bytes", "gauge", "Resident memory of the process.", "",
             (double)resident * page);
    expo_one(b, "process_virtual_memory_bytes", "gauge", "Address space of the process.", "", (double)size * page);
    expo_one(b, "process_cpu_seconds_total", "counter", "Processor time of all threads.", "",
             (double)cpu.tv_sec + (double)cpu.tv_nsec * 1e-9);
    expo_one(b, "process_open_fds", "gauge", "Open file descriptors.", "", open_fds());
    expo_one(b, "process_max_fds", "gauge", "Most file descriptors that may be open.", "", (double)files.rlim_cur);
    expo_one(b, "process_start_time_seconds", "gauge", "When the process started.", "", (double)sv->started);
}

static void put_http(const struct server *sv, struct buf *b)
{
    const struct http_server *const s[] = {sv->http, sv->admin};
    static const char *const name[] = {"api", "admin"};
    expo_head(b, "cpet_connections", "gauge", "Open connections, by listener.");
    for (int i = 0; i < 2; i++)
        if (s[i])
            buf_printf(b, "cpet_connections{listener=\"%s\"} %u\n", name[i], http_connections(s[i]));
    expo_head(b, "cpet_http_responses_total", "counter", "Answers begun, by listener and status.");
    for (int i = 0; i < 2; i++)
        for (unsigned code = 0; s[i] && code < HTTP_STATUSES; code++)
            if (http_answers(s[i], code))
                buf_printf(b, "cpet_http_responses_total{listener=\"%s\",code=\"%u\"} %llu\n", name[i], code,
                           (unsigned long long)http_answers(s[i], code));
}

static void put_server(const struct server *sv, struct buf *b)
{
    const struct metrics *m = &sv->metrics;
    uint64_t written, dropped;
    size_t n = 0;
    while (tasks_at(sv->tasks, n))
        n++;
    expo_one(b, "cpet_ready", "gauge", "1 when requests are served.", "", sv->state == SERVER_READY);
    expo_one(b, "cpet_tasks", "gauge", "Tasks, the backbone among them.", "", (double)n);
    expo_one(b, "cpet_tenants", "gauge", "Tenants that keys or tasks named so far.", "", keys_tenants(sv->keys) - 1.0);
    expo_one(b, "cpet_requests_active", "gauge", "Completion requests without an answer yet.", "", sv->n_active);
    expo_one(b, "cpet_requests_rejected_total", "counter", "Requests answered with 429.", "", (double)m->rejected_busy);
    reqlog_counts(sv->requests, &written, &dropped);
    expo_one(b, "cpet_request_log_lines_total", "counter", "Lines of the request log that were written.", "",
             (double)written);
    expo_one(b, "cpet_request_log_dropped_total", "counter", "Lines of the request log that were not.", "",
             (double)dropped);
    expo_one(b, "cpet_requests_failed_total", "counter", "Completion requests that ended with an error.", "",
             (double)m->finished_error);
}

void metrics_text(const struct server *sv, struct buf *b)
{
    struct buf labels = {0};
    put_server(sv, b);
    put_process(sv, b);
    put_http(sv, b);
    if (!sv->mi)
        return;
    expo_label(&labels, "model_name", sv->name);
    expo_label(&labels, "engine", "0");
    if (labels.failed) {
        b->failed = true;
        return;
    }
    put_vllm(sv, labels.data, b);
    put_prefix(sv, labels.data, b);
    put_engine(sv, b);
    put_grammars(sv, b);
    put_tasks(sv, b);
    buf_free(&labels);
}
