/* metrics.c - the Prometheus exposition.
 *
 * Loop thread. Engine counters are atomics that the engine thread writes; everything else is the loop's own. Names
 * that begin with vllm: have vLLM's types and meaning, so that routers which read them work unchanged; ours begin with
 * cpet_. Label values are task IDs and model names, which hold no quotes, backslashes or line ends (task.c), or are
 * escaped here.
 */
#include "server/metrics.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "server/call.h"

const double metrics_bucket[METRICS_BUCKETS - 1] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                                    0.5,   1,      2.5,   5,    10,    30,   60};

void histogram_add(struct histogram *h, double seconds)
{
    unsigned i = 0;
    while (i < METRICS_BUCKETS - 1 && seconds > metrics_bucket[i])
        i++;
    h->count[i]++;
    h->sum += seconds;
}

static void head(struct buf *b, const char *name, const char *type, const char *help)
{
    buf_printf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void one(struct buf *b, const char *name, const char *type, const char *help, const char *labels, double value)
{
    head(b, name, type, help);
    buf_printf(b, "%s%s %.17g\n", name, labels, value);
}

static void put_histogram(struct buf *b, const char *name, const char *labels, const double *bucket, unsigned n_bucket,
                          const uint64_t *count, double sum, const char *help)
{
    uint64_t total = 0;
    head(b, name, "histogram", help);
    for (unsigned i = 0; i < n_bucket; i++) {
        total += count[i];
        buf_printf(b, "%s_bucket{%s%sle=\"%g\"} %llu\n", name, labels, *labels ? "," : "", bucket[i],
                   (unsigned long long)total);
    }
    total += count[n_bucket];
    buf_printf(b, "%s_bucket{%s%sle=\"+Inf\"} %llu\n", name, labels, *labels ? "," : "", (unsigned long long)total);
    buf_printf(b, "%s_sum{%s} %.9g\n%s_count{%s} %llu\n", name, labels, sum, name, labels, (unsigned long long)total);
}

static void loop_histogram(struct buf *b, const char *name, const char *labels, const struct histogram *h,
                           const char *help)
{
    put_histogram(b, name, labels, metrics_bucket, METRICS_BUCKETS - 1, h->count, h->sum, help);
}

/* ---- adapters ---- */

/* Tasks with modules that have generations in this state, by name with commas. */
static void put_adapters(const struct server *sv, int state, struct buf *b)
{
    bool first = true;
    for (size_t i = 0; tasks_at(sv->tasks, i); i++) {
        const struct task_version *v = tasks_at(sv->tasks, i);
        bool any = false;
        for (const struct call *c = sv->calls; v->n_pets && c && !any; c = c->next)
            for (size_t k = 0; c->task && c->task->number == v->number && k < c->n_prompts && !any; k++)
                any = c->gen && c->gen[k] && atomic_load(&c->gen[k]->state) == state;
        if (!any)
            continue;
        buf_printf(b, "%s%s", first ? "" : ",", v->id);
        first = false;
    }
}

struct residency {
    size_t n, bytes;
};

static void put_loaded(const struct server *sv, const char *labels, struct buf *b, struct residency *res)
{
    *res = (struct residency){0};
    head(b, "vllm:lora_adapter_loaded", "gauge", "1 for each resident adapter.");
    for (size_t i = 0; tasks_at(sv->tasks, i); i++) {
        const struct task_version *v = tasks_at(sv->tasks, i);
        for (uint32_t k = 0; k < v->n_pets; k++) {
            res->n++;
            res->bytes += pet_slot_bytes(v->module[k]->slot);
        }
        if (v->n_pets)
            buf_printf(b,
                       "vllm:lora_adapter_loaded{%s,adapter_name=\"%s\",level=\"gpu\",pinned=\"true\",rank=\"%u\"} 1\n",
                       labels, v->id, v->module[0]->info.max_rank);
    }
}

static void put_lora(const struct server *sv, const char *labels, struct buf *b)
{
    struct residency res;
    put_loaded(sv, labels, b, &res);
    size_t each = res.n ? res.bytes / res.n : 0;
    size_t max = each ? (size_t)sv->o->pet_bytes / each : 1;
    if (max < 1)
        max = 1;
    char l[260];
    snprintf(l, sizeof l, "{%s}", labels);
    one(b, "vllm:num_gpu_loaded_lora_adapters", "gauge", "Resident adapters.", l, (double)res.n);
    one(b, "vllm:max_gpu_lora_adapters", "gauge", "Adapters of the usual size that --pet-bytes would hold.", l,
        (double)max);
    head(b, "vllm:lora_requests_info", "gauge", "Adapters with running and waiting requests; the value is the time.");
    buf_printf(b, "vllm:lora_requests_info{max_lora=\"%zu\",running_lora_adapters=\"", max);
    put_adapters(sv, GEN_RUNNING, b);
    buf_puts(b, "\",waiting_lora_adapters=\"");
    put_adapters(sv, GEN_QUEUED, b);
    buf_printf(b, "\"} %lld\n", (long long)time(NULL));
    one(b, "cpet_modules_resident", "gauge", "Modules in device memory.", "", (double)res.n);
    one(b, "cpet_modules_resident_bytes", "gauge", "Device bytes of resident modules.", "", (double)res.bytes);
}

/* ---- groups ---- */

static size_t rss_bytes(void)
{
    unsigned long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f)
        return 0;
    if (fscanf(f, "%*u %lu", &pages) != 1)
        pages = 0;
    fclose(f);
    return pages * (size_t)sysconf(_SC_PAGESIZE);
}

static void put_vllm(const struct server *sv, const char *labels, struct buf *b)
{
    const struct engine_stats *s = engine_stats(sv->en);
    const struct metrics *m = &sv->metrics;
    char l[260];
    snprintf(l, sizeof l, "{%s}", labels);
    uint32_t running = atomic_load(&s->running), waiting = sv->n_gens > running ? sv->n_gens - running : 0;
    double used = 1.0 - (double)atomic_load(&s->pages_free) / (double)sv->mi->n_pages;
    one(b, "vllm:num_requests_running", "gauge", "Requests in the batch.", l, running);
    one(b, "vllm:num_requests_waiting", "gauge", "Requests in the queue.", l, waiting);
    one(b, "vllm:kv_cache_usage_perc", "gauge", "Used part of the KV pages, 0 to 1.", l, used);
    one(b, "vllm:prompt_tokens_total", "counter", "Prompt tokens taken.", l, (double)m->prompt_tokens);
    one(b, "vllm:generation_tokens_total", "counter", "Tokens generated.", l, (double)m->generation_tokens);
    one(b, "vllm:num_preemptions_total", "counter", "Requests that lost their KV pages and waited again.", l,
        (double)atomic_load(&s->preemptions));
    head(b, "vllm:request_success_total", "counter", "Choices finished, by reason.");
    buf_printf(b, "vllm:request_success_total{%s,finished_reason=\"stop\"} %llu\n", labels,
               (unsigned long long)m->finished_stop);
    buf_printf(b, "vllm:request_success_total{%s,finished_reason=\"length\"} %llu\n", labels,
               (unsigned long long)m->finished_length);
    buf_printf(b, "vllm:request_success_total{%s,finished_reason=\"abort\"} %llu\n", labels,
               (unsigned long long)m->finished_abort);
    head(b, "vllm:cache_config_info", "gauge", "How the KV cache is made; always 1.");
    buf_printf(b, "vllm:cache_config_info{block_size=\"%d\",num_gpu_blocks=\"%u\",cache_dtype=\"%s\"} 1\n",
               KERN_PAGE_TOKENS, sv->mi->n_pages,
               sv->mi->kv_type == KERN_S8     ? "int8"
               : sv->mi->kv_type == KERN_BF16 ? "bfloat16"
                                              : "float32");
    loop_histogram(b, "vllm:time_to_first_token_seconds", labels, &m->first_token, "From request to first token.");
    loop_histogram(b, "vllm:inter_token_latency_seconds", labels, &m->between_tokens, "Between a request's tokens.");
    loop_histogram(b, "vllm:request_queue_time_seconds", labels, &m->queue, "From submission to admission.");
    loop_histogram(b, "vllm:e2e_request_latency_seconds", labels, &m->whole, "From request to the end of its answer.");
    put_lora(sv, labels, b);
}

static void put_engine(const struct server *sv, struct buf *b)
{
    const struct engine_stats *s = engine_stats(sv->en);
    double bucket[ENGINE_BUCKETS - 1];
    uint64_t count[ENGINE_BUCKETS];
    one(b, "cpet_steps_total", "counter", "Passes of the model.", "", (double)atomic_load(&s->steps));
    head(b, "cpet_rows_total", "counter", "Rows computed, by kind.");
    buf_printf(b, "cpet_rows_total{kind=\"decode\"} %llu\ncpet_rows_total{kind=\"prefill\"} %llu\n",
               (unsigned long long)atomic_load(&s->decode_rows), (unsigned long long)atomic_load(&s->prefill_rows));
    one(b, "cpet_sampled_tokens_total", "counter", "Tokens sampled.", "", (double)atomic_load(&s->sampled));
    one(b, "cpet_step_errors_total", "counter", "Steps that failed.", "", (double)atomic_load(&s->step_errors));
    one(b, "cpet_preemptions_total", "counter", "Generations that lost their KV pages and waited again.", "",
        (double)atomic_load(&s->preemptions));
    for (unsigned i = 0; i < ENGINE_BUCKETS; i++) {
        count[i] = atomic_load(&s->step_hist[i]);
        if (i < ENGINE_BUCKETS - 1)
            bucket[i] = engine_bucket_us[i] * 1e-6;
    }
    put_histogram(b, "cpet_step_seconds", "", bucket, ENGINE_BUCKETS - 1, count,
                  (double)atomic_load(&s->step_us) * 1e-6, "Time of a step.");
    one(b, "cpet_kv_pages", "gauge", "KV pages in all.", "", sv->mi->n_pages);
    one(b, "cpet_kv_pages_free", "gauge", "KV pages that nobody holds.", "", atomic_load(&s->pages_free));
    one(b, "cpet_weight_bytes", "gauge", "Bytes of packed weights.", "", (double)sv->mi->weight_bytes);
}

void metrics_text(const struct server *sv, struct buf *b)
{
    const struct metrics *m = &sv->metrics;
    one(b, "cpet_ready", "gauge", "1 when requests are served.", "", sv->state == SERVER_READY);
    one(b, "cpet_resident_bytes", "gauge", "Resident memory of the process.", "", (double)rss_bytes());
    one(b, "cpet_start_time_seconds", "gauge", "When the process started.", "", (double)sv->started);
    one(b, "cpet_connections", "gauge", "Open connections of the API listener.", "",
        sv->http ? http_connections(sv->http) : 0);
    one(b, "cpet_requests_active", "gauge", "Completion requests without an answer yet.", "", sv->n_active);
    one(b, "cpet_requests_rejected_total", "counter", "Requests answered with 429.", "", (double)m->rejected_busy);
    one(b, "cpet_requests_failed_total", "counter", "Completion requests that ended with an error.", "",
        (double)m->finished_error);
    if (!sv->mi)
        return;
    char labels[256];
    snprintf(labels, sizeof labels, "model_name=\"%.150s\",engine=\"0\"", sv->name);
    put_vllm(sv, labels, b);
    put_engine(sv, b);
}
