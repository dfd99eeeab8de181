/* sched_bed.c - see sched_bed.h. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "sched_bed.h"
#include "server/sched_internal.h"

void drain(struct gen *g)
{
    struct out *o = g->user;
    struct gen_event ev;
    const int32_t *id;
    const float *lp;
    while (gen_peek(g, &ev, &id, &lp)) {
        if (ev.of_prompt) {
            o->prompt_logprob[o->n_prompt] = ev.logprob;
            o->prompt[o->n_prompt++] = ev.token;
        } else {
            assert_int_equal(o->finish[ev.choice], GEN_NOT_YET);
            o->logprob[ev.choice][o->n[ev.choice]] = ev.logprob;
            o->token[ev.choice][o->n[ev.choice]++] = ev.token;
            o->finish[ev.choice] = ev.finish;
        }
        gen_pop(g);
    }
}

static void on_publish(void *ctx, struct gen *g, bool done)
{
    struct bed *b = ctx;
    struct out *o = g->user;
    if (!b->keep || done)
        drain(g);
    if (done) {
        o->done = true;
        o->done_at = b->step;
    }
}

void open_bed(struct bed *b, const struct fake_opts *fo, uint32_t chunk)
{
    struct err e;
    memset(b, 0, sizeof *b);
    b->m = fake_open(fo);
    struct sched_opts so = {.prefill_chunk = chunk, .count_tasks = true, .publish = on_publish, .ctx = b};
    assert_int_equal(sched_create(b->m, &so, &b->s, &e), 0);
}

void close_bed(struct bed *b)
{
    assert_int_equal(sched_live(b->s), 0);
    assert_int_equal(fake_open_seqs(b->m), 0);
    assert_int_equal(kv_pages_free(b->m), model_info(b->m)->n_pages);
    sched_free(b->s);
    fake_close(b->m);
}

void close_all(struct bed *b, struct gen **g, size_t n, struct out *o)
{
    for (size_t i = 0; i < n; i++)
        gen_free(g[i]);
    close_bed(b);
    free(o);
}

int32_t prompts[256][1100];

const struct fake_opts roomy = {.n_pages = 256, .max_context = 1024, .max_rows = 64, .max_logits = 32, .max_seqs = 64};

static const int32_t eos_ids[] = {7};

struct gen_spec spec(int32_t *prompt, uint32_t n, uint32_t max_tokens)
{
    for (uint32_t i = 0; i < n; i++)
        prompt[i] = (int32_t)(20 + (i * 7 + n) % 60);
    return (struct gen_spec){.prompt = prompt,
                             .n_prompt = n,
                             .n_choices = 1,
                             .max_tokens = max_tokens,
                             .n_top = -1,
                             .seed = 5,
                             .temperature = 1,
                             .top_p = 1,
                             .repetition = 1,
                             .eos = eos_ids,
                             .n_eos = 1};
}

struct gen *submit(struct bed *b, const struct gen_spec *s, struct out *o)
{
    struct err e;
    assert_int_equal(sched_fits(model_info(b->m), s, &e), 0);
    struct gen *g = gen_create(s);
    assert_non_null(g);
    memset(o, 0, sizeof *o);
    g->user = o;
    assert_int_equal(sched_submit(b->s, g), 0);
    return g;
}

struct gen *send(struct bed *b, int i, uint32_t n_prompt, uint32_t max_tokens, struct out *o)
{
    struct gen_spec s = spec(prompts[i], n_prompt, max_tokens);
    return submit(b, &s, o);
}

void step_at(struct bed *b, uint64_t now)
{
    b->step++;
    sched_step(b->s, now, &b->r);
    assert_true(kv_pages_free(b->m) >= b->s->promised_pages);
    assert_true(b->s->open_seqs + b->s->promised_seqs <= b->s->mi->max_seqs);
    assert_int_equal(fake_open_seqs(b->m), b->s->open_seqs);
    if (b->r.rows > b->max_rows_seen)
        b->max_rows_seen = b->r.rows;
    b->preempted += b->r.preempted;
    b->rows += b->r.rows;
    b->prefix_hits += b->r.prefix_hits;
    b->prefix_queries += b->r.prefix_queries;
}

void run(struct bed *b, uint32_t most)
{
    for (uint32_t i = 0; i < most && sched_live(b->s); i++)
        step_at(b, 1);
    assert_int_equal(sched_live(b->s), 0);
}

struct out *outs(size_t n)
{
    struct out *o = calloc(n, sizeof *o);
    assert_non_null(o);
    return o;
}

/* The same request alone on a fresh model of plenty. */
void alone(const struct fake_opts *fo, const struct gen_spec *s, struct out *o)
{
    struct bed b;
    open_bed(&b, fo, 16);
    struct gen *g = submit(&b, s, o);
    run(&b, 10000);
    assert_int_equal(b.preempted, 0);
    gen_free(g);
    close_bed(&b);
}

/* What came of s, as far as it came, is what it is alone. */
void assert_as_alone(const struct gen_spec *s, const struct out *o, const struct out *ref)
{
    assert_true(o->n_prompt <= ref->n_prompt);
    assert_memory_equal(o->prompt, ref->prompt, o->n_prompt * sizeof *o->prompt);
    for (uint32_t k = 1; k < o->n_prompt; k++)
        assert_true(o->prompt_logprob[k] == ref->prompt_logprob[k]);
    for (uint32_t k = 0; k < s->n_choices; k++) {
        assert_true(o->n[k] <= ref->n[k]);
        assert_memory_equal(o->token[k], ref->token[k], o->n[k] * sizeof o->token[k][0]);
        assert_memory_equal(o->logprob[k], ref->logprob[k], o->n[k] * sizeof o->logprob[k][0]);
    }
}
