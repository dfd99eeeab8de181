/* step.c - turns spans into one step of the device.
 *
 * Engine thread. Everything is written into tables that plan.c sized for the largest step; nothing is allocated here.
 * Groups are made level by level of the spans' module lists (all first modules, then all second ones), so that a
 * row's modules are applied in its own order whatever the batch holds; within a level, rows with the same slot and
 * weight form one group. The recovery module is a group of all rows, before the others.
 */
#include "model/internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static int check_span(const struct model *m, const struct model_span *sp, uint32_t i, struct err *e)
{
    if (sp->seq >= m->info.max_seqs || !m->seqs[sp->seq].open)
        return err_set(e, -EINVAL, "span %u: no such sequence", i);
    if (m->seqs[sp->seq].in_step)
        return err_set(e, -EINVAL, "span %u: its sequence has a span already", i);
    if (!sp->n_tokens || sp->n_logits > sp->n_tokens || sp->n_pets > m->info.max_pets)
        return err_set(e, -EINVAL, "span %u: %u tokens, %u logits, %u modules", i, sp->n_tokens, sp->n_logits,
                       sp->n_pets);
    for (uint32_t p = 0; p < sp->n_pets; p++)
        if (sp->pets[p].slot && sp->pets[p].slot->max_rank > m->max_rank)
            return err_set(e, -EINVAL, "span %u: module %u has rank %u (at most %u)", i, p, sp->pets[p].slot->max_rank,
                           m->max_rank);
    if (!model_kv_ready(m, &m->seqs[sp->seq], sp->n_tokens))
        return err_set(e, -EINVAL, "span %u: its pages are not reserved", i);
    for (uint32_t t = 0; t < sp->n_tokens; t++)
        if (sp->tokens[t] < 0 || (uint32_t)sp->tokens[t] >= m->info.vocab)
            return err_set(e, -EINVAL, "span %u: token %d is not in the vocabulary", i, sp->tokens[t]);
    return 0;
}

static int check_spans(struct model *m, const struct model_span *sp, uint32_t n, struct err *e)
{
    size_t rows = 0, logits = 0;
    uint32_t marked = 0;
    int r = 0;
    for (; marked < n && !(r = check_span(m, &sp[marked], marked, e)); marked++) {
        m->seqs[sp[marked].seq].in_step = true;
        rows += sp[marked].n_tokens;
        logits += sp[marked].n_logits;
    }
    while (marked)
        m->seqs[sp[--marked].seq].in_step = false;
    if (r)
        return r;
    if (!rows || rows > m->info.max_rows || logits > m->info.max_logits)
        return err_set(e, -EINVAL, "a step of %zu rows and %zu logits (at most %u and %u)", rows, logits,
                       m->info.max_rows, m->info.max_logits);
    return 0;
}

/* For a span without sampling in a batch with: greedy, and thrown away. */
static const struct kern_sample sample_none = {.top_p = 1, .repetition = 1, .target = -1, .n_top = -1};

static void add_rows(struct model *m, const struct model_span *sp, uint32_t n, struct kern_step *st)
{
    uint32_t row = 0, logit = 0;
    bool sample = false;
    for (uint32_t i = 0; i < n; i++) {
        const struct seq *s = &m->seqs[sp[i].seq];
        m->step_seqs[i] = (struct kern_seq){.row0 = row, .n_rows = sp[i].n_tokens, .pos0 = s->len, .pages = s->pages};
        for (uint32_t t = 0; t < sp[i].n_tokens; t++, row++) {
            m->tokens[row] = sp[i].tokens[t];
            m->pos[row] = s->len + t;
            if (t >= sp[i].n_tokens - sp[i].n_logits) {
                const struct kern_sample *want = sp[i].sample;
                m->sample[logit] = want ? want[t - (sp[i].n_tokens - sp[i].n_logits)] : sample_none;
                sample = sample || want;
                m->logit_rows[logit++] = row;
            }
        }
    }
    *st = (struct kern_step){.n_rows = row,
                             .token = m->tokens,
                             .pos = m->pos,
                             .seqs = m->step_seqs,
                             .n_seqs = n,
                             .logit_rows = m->logit_rows,
                             .n_logits = logit,
                             .sample = sample ? m->sample : NULL,
                             .sampled = m->sampled};
}

static uint32_t add_group_rows(const struct model *m, uint32_t at, const struct kern_seq *s)
{
    for (uint32_t r = 0; r < s->n_rows; r++)
        m->group_rows[at++] = s->row0 + r;
    return at;
}

/* The groups of one level: m->span_of marks the spans that have joined one. */
static uint32_t add_level(struct model *m, const struct model_span *sp, uint32_t n, uint32_t level,
                          struct kern_step *st, uint32_t at)
{
    memset(m->span_of, 0, n * sizeof *m->span_of);
    for (uint32_t i = 0; i < n; i++) {
        if (sp[i].n_pets <= level || m->span_of[i])
            continue;
        const struct model_pet *p = &sp[i].pets[level];
        struct kern_group *g = &m->groups[st->n_groups++];
        *g = (struct kern_group){.slot = p->slot, .weight = p->weight, .rows = m->group_rows + at};
        uint32_t start = at;
        for (uint32_t k = i; k < n; k++) {
            if (sp[k].n_pets <= level || sp[k].pets[level].slot != p->slot || sp[k].pets[level].weight != p->weight)
                continue;
            m->span_of[k] = 1;
            at = add_group_rows(m, at, &m->step_seqs[k]);
        }
        g->n_rows = at - start;
    }
    return at;
}

static void add_groups(struct model *m, const struct model_span *sp, uint32_t n, struct kern_step *st)
{
    uint32_t at = 0;
    st->groups = m->groups;
    if (m->recovery) {
        for (uint32_t i = 0; i < n; i++)
            at = add_group_rows(m, at, &m->step_seqs[i]);
        m->groups[st->n_groups++] = (struct kern_group){
            .slot = pet_slot_kern(m->recovery), .weight = 1.0f, .n_rows = at, .rows = m->group_rows};
    }
    uint32_t before = st->n_groups;
    for (uint32_t level = 0; level < m->info.max_pets; level++)
        at = add_level(m, sp, n, level, st, at);
    m->last_slots = 0;
    for (uint32_t g = before; g < st->n_groups; g++) {
        bool seen = false;
        for (uint32_t k = before; k < g && !seen; k++)
            seen = m->groups[k].slot == m->groups[g].slot;
        m->last_slots += !seen;
    }
    assert(at <= m->max_group_rows);
}

/* Runs the list, stopping before each product so that the observer sees its input. */
static int run_observed(struct model *m, const struct kern_step *st, model_observer fn, void *ctx)
{
    size_t from = 0;
    uint32_t cap = 0;
    for (size_t i = 0; i < m->n_ops; i++)
        if (m->ops[i].kind == KERN_OP_LR_DOWN && m->ops[i].act->k > cap)
            cap = m->ops[i].act->k;
    float *x = malloc((size_t)st->n_rows * cap * sizeof *x);
    if (!x)
        return -ENOMEM;
    for (size_t i = 0; i < m->n_ops; i++) {
        const struct kern_op *o = &m->ops[i];
        if (o->kind != KERN_OP_LR_DOWN)
            continue;
        uint32_t rows = o->gathered ? st->n_logits : st->n_rows;
        kern_run(m->dev, m->ops + from, i - from, st);
        from = i;
        kern_download(m->dev, x, o->act->f32, (size_t)rows * o->act->k * sizeof *x);
        fn(ctx, o->sites[0].site, o->n_sites, x, rows, o->act->k);
    }
    kern_run(m->dev, m->ops + from, m->n_ops - from, st);
    free(x);
    return 0;
}

static int step(struct model *m, const struct model_span *spans, uint32_t n_spans, model_observer fn, void *ctx,
                struct err *e)
{
    int r = check_spans(m, spans, n_spans, e);
    if (r)
        return r;
    struct kern_step st;
    add_rows(m, spans, n_spans, &st);
    add_groups(m, spans, n_spans, &st);
    if (!fn)
        kern_run(m->dev, m->ops, m->n_ops, &st);
    else if (run_observed(m, &st, fn, ctx))
        return err_set(e, -ENOMEM, "out of memory for observing %u rows", st.n_rows);
    uint32_t logit = 0, row = 0;
    for (uint32_t i = 0; i < n_spans; i++) {
        m->seqs[spans[i].seq].len += spans[i].n_tokens;
        if (spans[i].pool)
            model_pool_rows(m, &spans[i], row);
        row += spans[i].n_tokens;
        if (spans[i].sample)
            memcpy(spans[i].sampled, m->sampled + logit, spans[i].n_logits * sizeof *m->sampled);
        logit += spans[i].n_logits;
    }
    return 0;
}

int model_step(struct model *m, const struct model_span *spans, uint32_t n_spans, struct err *e)
{
    return step(m, spans, n_spans, NULL, NULL, e);
}

int model_step_observed(struct model *m, const struct model_span *spans, uint32_t n_spans, model_observer fn, void *ctx,
                        struct err *e)
{
    return step(m, spans, n_spans, fn, ctx, e);
}

void model_logits(const struct model *m, uint32_t i, float *dst)
{
    assert(i < m->info.max_logits);
    size_t n = (size_t)m->info.vocab * sizeof(float);
    kern_download(m->dev, dst, kmem_at(m->logits, i * n), n);
}

uint32_t model_step_slots(const struct model *m)
{
    return m->last_slots;
}
