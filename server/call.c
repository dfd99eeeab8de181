/* call.c - a completion or chat request on its way in: parse, find the task, tokenize, admit (call_modules.c),
 * submit.
 *
 * Loop thread; the two stages that grow with the body (parse and encode) run on libuv's worker pool when it is large,
 * and touch only the body, the call's own arena and the immutable tokenizer and template. The client may leave at any
 * time: call_closed then sets r to NULL, and the next step on the loop sees it; a body that a worker reads stays.
 */
#include "server/call.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include <jansson.h>

#include "common/utf8.h"
#include "server/scheduler.h"

/* ---- life ---- */

void call_count_gens(struct call *c, int by)
{
    struct server *sv = c->sv;
    if (c->tenant < sv->n_tenant_gens)
        sv->tenant_gens[c->tenant] += (uint32_t)by;
}

void call_drop(struct call *c)
{
    if (c->r || c->in_work || c->n_with_engine)
        return;
    struct server *sv = c->sv;
    *(c->prev ? &c->prev->next : &sv->calls) = c->next;
    if (c->next)
        c->next->prev = c->prev;
    call_stage_forget(c);
    if (!c->answered)
        sv->n_active--;
    for (size_t i = 0; c->choice && i < c->n_choices; i++)
        choice_close(&c->choice[i]);
    free(c->choice);
    call_let_go(c);
    for (size_t i = 0; c->gen && i < c->n_prompts; i++)
        gen_free(c->gen[i]); /* one that the engine never had */
    for (size_t i = 0; c->prompt && i < c->n_prompts; i++)
        buf_free(&c->prompt[i].scores);
    grammar_unref(c->grammar);
    sv->grammar_bytes -= c->grammar_bytes;
    task_unref(c->task);
    free(c->left_body);
    buf_free(&c->out);
    arena_free(c->a);
    free(c);
}

void call_cancel(struct call *c)
{
    for (size_t i = 0; c->gen && i < c->n_prompts; i++)
        if (c->gen[i] && !atomic_load(&c->gen[i]->cancelled))
            engine_cancel(c->sv->en, c->gen[i]);
}

void call_closed(struct server *sv, struct http_req *r)
{
    (void)sv;
    struct call *c = http_user(r);
    if (!c)
        return;
    size_t n;
    if (c->in_work && c->body)
        c->left_body = http_body_take(r, &n);
    c->r = NULL;
    if (!c->answered) {
        c->sv->metrics.finished_abort++;
        call_count(c, SERIES_ABORT);
    }
    call_cancel(c);
    call_drop(c);
}

/* ---- stages, here or on a worker ---- */

static void run_stage(struct call *c, int (*stage)(struct call *c, struct err *e),
                      void (*after)(struct call *c, int rc, struct err *e))
{
    bool tmpl = c->task && c->task->tmpl; /* a task's own template may take long, within its bounds */
    call_stage(c, c->n_body > CALL_INLINE_BYTES || c->compile || tmpl, stage, after);
}

static void fail_by_code(struct call *c, int rc, const struct err *e)
{
    struct err none;
    if (rc == -E2BIG && arena_no_memory(c->a)) { /* it was not the request that was too large */
        rc = err_set(&none, -ENOMEM, "the server is out of memory");
        e = &none;
    }
    call_fail(c, resp_status(rc), e, NULL);
}

/* ---- 1: parse ---- */

static int stage_parse(struct call *c, struct err *e)
{
    struct req_limits lim = req_limits_default;
    lim.vocab = c->sv->mi->vocab;
    lim.hidden = c->sv->mi->hidden;
    if (c->kind >= REQ_EMBEDDING)
        return req_parse_more(c->kind, c->body, c->n_body, &lim, c->a, &c->req, e);
    int (*parse)(const char *, size_t, const struct req_limits *, struct arena *, struct req **, struct err *) =
        c->kind == REQ_CHAT ? req_parse_chat : req_parse_completion;
    return parse(c->body, c->n_body, &lim, c->a, &c->req, e);
}

/* ---- 2: tokenize ---- */

int call_encode(struct call *c, const char *text, size_t n, unsigned flags, struct call_prompt *out, struct err *e)
{
    struct tok_ids ids = {.limit = call_prompt_limit(c)};
    int rc = tok_encode(c->sv->tok, text, n, flags, &ids, e);
    if (rc == -E2BIG)
        rc = c->kind == REQ_TOKENIZE
                 ? err_param(e, -EINVAL, call_prompt_field(c), "the text has more than %zu tokens", ids.limit)
                 : err_param(e, -EINVAL, call_prompt_field(c), "the prompt has more tokens than the context holds (%u)",
                             c->sv->mi->max_context);
    else if (rc == -EILSEQ)
        rc = -EINVAL;
    if (!rc) {
        out->id = arena_memdup(c->a, ids.id, ids.n * sizeof *ids.id);
        out->n = ids.n;
        if (!out->id)
            rc = err_set(e, -E2BIG, "the request is too large");
    }
    tok_ids_free(&ids);
    return rc;
}

static int render(struct call *c, const struct tmpl *t, struct buf *out, struct err *e)
{
    const struct req *q = c->req;
    json_t *vars = json_object(),
           *messages = json_loadb(q->messages_json.ptr, q->messages_json.len, JSON_ALLOW_NUL, NULL);
    int bad = !vars || !messages || json_object_set_new(vars, "messages", messages);
    bad =
        bad || json_object_set_new(vars, "add_generation_prompt", json_boolean(!q->more || q->more->generation_prompt));
    bad = bad || json_object_set_new(vars, "bos_token", json_string(tok_bos_text(c->sv->tok)));
    bad = bad || json_object_set_new(vars, "eos_token", json_string(tok_eos_text(c->sv->tok)));
    int rc = bad ? err_set(e, -ENOMEM, "out of memory") : tmpl_render(t, vars, NULL, out, e);
    json_decref(vars);
    if (rc == -EINVAL || rc == -E2BIG) {
        rc = -EINVAL;
        snprintf(e->param, sizeof e->param, "messages");
    }
    return rc;
}

int call_encode_chat(struct call *c, unsigned flags, struct err *e)
{
    const struct tmpl *t = c->task->tmpl ? c->task->tmpl : c->sv->tmpl;
    if (!t)
        return err_param(e, -EINVAL, "messages", "the model \"%s\" has no chat template; use /v1/completions",
                         c->task->id);
    struct buf text;
    buf_init(&text, (size_t)16 << 20);
    int rc = render(c, t, &text, e);
    if (!rc)
        rc = call_encode(c, text.data ? text.data : "", text.len, flags, &c->prompt[0], e);
    buf_free(&text);
    return rc;
}

int call_encode_prompts(struct call *c, struct err *e)
{
    for (size_t i = 0; i < c->n_prompts; i++) {
        const struct req_prompt *p = &c->req->prompts[i];
        struct call_prompt *out = &c->prompt[i];
        out->id = p->ids;
        out->n = p->n_ids;
        out->text = p->text;
        int rc = p->ids ? 0 : call_encode(c, p->text.ptr, p->text.len, TOK_SPECIAL | TOK_POST, out, e);
        if (rc)
            return rc;
    }
    return 0;
}

static int stage_encode(struct call *c, struct err *e)
{
    int bad = c->compile ? grammars_compile(c->sv->grammars, &c->req->grammar, &c->grammar_key, &c->grammar, e) : 0;
    if (bad)
        return bad;
    int rc = c->kind == REQ_CHAT        ? call_encode_chat(c, TOK_SPECIAL, e)
             : c->kind >= REQ_EMBEDDING ? call_more_encode(c, e)
                                        : call_encode_prompts(c, e);
    return rc || c->kind >= REQ_TOKENIZE ? rc : call_keys(c, e);
}

/* ---- 3: admit and submit ---- */

/* Tokens for a chat that does not say max_tokens: to the end of the context, as far as pages for all choices go. */
static uint32_t chat_rest(const struct model_info *mi, size_t n_prompt, uint32_t n)
{
    if (n_prompt >= mi->max_context)
        return 1;
    uint64_t shared = (n_prompt - 1) / KERN_PAGE_TOKENS;
    uint64_t each = (mi->n_pages + (n - 1) * shared) / n * KERN_PAGE_TOKENS;
    uint64_t rest = each + 1 > n_prompt ? each + 1 - n_prompt : 1, most = mi->max_context - n_prompt;
    return (uint32_t)(rest < most ? rest : most);
}

static const struct kern_bias *copy_bias(struct call *c)
{
    const struct req_sampling *s = &c->req->sampling;
    struct kern_bias *b = arena_calloc(c->a, s->n_bias, sizeof *b);
    for (size_t i = 0; b && i < s->n_bias; i++)
        b[i] = (struct kern_bias){s->bias[i].id, s->bias[i].bias};
    return b;
}

static void fill_spec(const struct call *c, const struct call_prompt *p, struct gen_spec *g)
{
    const struct req *q = c->req;
    const struct req_sampling *s = &q->sampling;
    const struct server *sv = c->sv;
    int echoed = q->echo ? q->logprobs : -1, most = echoed > q->prompt_logprobs ? echoed : q->prompt_logprobs;
    *g = (struct gen_spec){.prompt = p->id,
                           .n_prompt = (uint32_t)p->n,
                           .keys = p->keys,
                           .n_choices = q->best_of,
                           .max_tokens = s->max_tokens,
                           .min_tokens = s->min_tokens,
                           .ignore_eos = s->ignore_eos,
                           .score_prompt = most >= 0 || c->kind == REQ_SCORE,
                           .score_from = (uint32_t)p->n_context,
                           .n_prompt_top = most > 0 ? most : 0,
                           .rank_prompt = q->prompt_logprobs >= 0,
                           .n_top = q->logprobs < 0 && q->best_of > q->n ? 0 : q->logprobs,
                           .seed = s->seed,
                           .temperature = s->temperature,
                           .top_p = s->top_p,
                           .min_p = s->min_p,
                           .presence = s->presence_penalty,
                           .frequency = s->frequency_penalty,
                           .repetition = s->repetition_penalty,
                           .top_k = (uint32_t)s->top_k,
                           .n_bias = (uint32_t)s->n_bias,
                           .eos = sv->eos,
                           .n_eos = (uint32_t)sv->n_eos,
                           .grammar = c->grammar,
                           .pets = c->pet,
                           .n_pets = c->task->n_pets,
                           .tenant = c->tenant,
                           .task = c->task->number};
    if (c->kind == REQ_EMBEDDING) {
        g->pool = q->more->pooling == REQ_POOL_LAST ? MODEL_POOL_LAST : MODEL_POOL_SUM;
        g->n_hidden = sv->mi->hidden;
    }
    if (q->kind == REQ_CHAT && !g->max_tokens)
        g->max_tokens = chat_rest(sv->mi, p->n, q->best_of);
    if (!(s->set & REQ_SET_SEED) && getrandom(&g->seed, sizeof g->seed, GRND_NONBLOCK) < 0)
        g->seed = mono_ns();
    if (sv->o->request_timeout_ms)
        g->deadline_ns = c->start_ns + (uint64_t)sv->o->request_timeout_ms * 1000000u;
}

/* The field at fault is the one that the client sent. */
static int check_context(const struct call *c, const struct gen_spec *g, struct err *e)
{
    const char *field = c->req->max_tokens_field;
    uint32_t most = c->sv->mi->max_context;
    if (g->n_prompt > most)
        return err_param(e, -EINVAL, call_prompt_field(c), "the prompt has %u tokens, the context holds %u",
                         g->n_prompt, most);
    if ((uint64_t)g->n_prompt + g->max_tokens <= most)
        return 0;
    if (field)
        return err_param(e, -EINVAL, field, "the prompt has %u tokens and %s is %u, the context holds %u", g->n_prompt,
                         field, g->max_tokens, most);
    return err_param(e, -EINVAL, call_prompt_field(c),
                     "the prompt has %u tokens and the answer may have %u by default, the context holds %u",
                     g->n_prompt, g->max_tokens, most);
}

/* As the scheduler names fields, in the client's words. */
static void name_field(const struct call *c, struct err *e)
{
    const struct req *q = c->req;
    const char *name = e->param;
    if (!strcmp(name, "max_tokens"))
        name = q->max_tokens_field ? q->max_tokens_field : "prompt";
    if (!strcmp(name, "n") && q->best_of > q->n)
        name = "best_of";
    if (!strcmp(name, "prompt"))
        name = call_prompt_field(c);
    memmove(e->param, name, strlen(name) + 1);
}

static int check_scores(struct call *c, const struct gen_spec *g, struct err *e)
{
    const struct req *q = c->req;
    bool echoed = q->echo && q->logprobs >= 0;
    if (!g->score_prompt || q->more)
        return 0;
    c->n_scores += (uint64_t)g->n_prompt * ((uint32_t)g->n_prompt_top + 1) * (echoed ? q->best_of : q->n);
    if (c->n_scores <= CALL_SCORES_MAX)
        return 0;
    const char *field = q->prompt_logprobs >= 0 ? "prompt_logprobs" : "logprobs";
    return err_param(e, -EINVAL, field, "%s: the prompts' log-probabilities would be more than %llu in one answer",
                     field, (unsigned long long)CALL_SCORES_MAX);
}

static int make_gen(struct call *c, size_t i, const struct kern_bias *bias, struct err *e)
{
    struct gen_spec spec;
    fill_spec(c, &c->prompt[i], &spec);
    spec.bias = bias;
    if (!spec.n_prompt)
        return err_param(e, -EINVAL, call_prompt_field(c), "prompt %zu has no tokens", i);
    int rc = check_context(c, &spec, e);
    if (rc)
        return rc;
    rc = sched_fits(c->sv->mi, &spec, e);
    if (rc) {
        name_field(c, e);
        return rc;
    }
    rc = check_scores(c, &spec, e);
    if (rc)
        return rc;
    c->n_prompt_tokens += spec.n_prompt;
    if (!spec.max_tokens && !spec.score_prompt && !spec.pool)
        return 0;
    c->gen[i] = gen_create(&spec);
    if (!c->gen[i])
        return err_set(e, -ENOMEM, "the server is out of memory");
    c->gen[i]->user = c;
    c->gen[i]->index = (uint32_t)i;
    return 0;
}

static int check_room(struct server *sv, struct call *c, struct err *e)
{
    if (c->tenant >= sv->n_tenant_gens) {
        uint32_t *p = realloc(sv->tenant_gens, (c->tenant + 1) * sizeof *p);
        if (!p)
            return err_set(e, -ENOMEM, "the server is out of memory");
        memset(p + sv->n_tenant_gens, 0, (c->tenant + 1 - sv->n_tenant_gens) * sizeof *p);
        sv->tenant_gens = p;
        sv->n_tenant_gens = c->tenant + 1;
    }
    uint32_t running = atomic_load(&engine_stats(sv->en)->running);
    uint32_t waiting = (sv->n_gens > running ? sv->n_gens - running : 0) + sv->n_waiting;
    if (waiting + c->n_prompts > sv->o->max_queue)
        return err_set(e, -EAGAIN, "the queue is full (%u requests wait); try again later", waiting);
    if (sv->tenant_gens[c->tenant] + c->n_prompts > sv->o->max_tenant)
        return err_set(e, -EAGAIN, "too many requests of this key at once (%u); try again later",
                       sv->tenant_gens[c->tenant]);
    return 0;
}

/* Grammars that live requests hold, beside those in the cache: small ones are bounded by the queue. */
#define GRAMMAR_SMALL ((size_t)1 << 20)
#define GRAMMARS_HELD ((size_t)1 << 30)

static int hold_grammar(struct call *c, struct err *e)
{
    size_t n = c->grammar ? grammar_bytes(c->grammar) : 0;
    if (n <= GRAMMAR_SMALL)
        return 0;
    if (c->sv->grammar_bytes + n > GRAMMARS_HELD)
        return err_set(e, -EAGAIN, "the forms of the answers at work take too much memory; try again later");
    c->sv->grammar_bytes += c->grammar_bytes = n;
    return 0;
}

static int make_gens(struct call *c, struct err *e)
{
    const struct kern_bias *bias = copy_bias(c);
    int rc = bias && !call_make_pets(c) ? call_open_choices(c) : -ENOMEM;
    if (rc)
        return err_set(e, -ENOMEM, "the server is out of memory");
    for (size_t i = 0; !rc && i < c->n_prompts; i++)
        rc = make_gen(c, i, bias, e);
    return rc;
}

void call_submit(struct call *c)
{
    struct server *sv = c->sv;
    sv->metrics.prompt_tokens += c->n_prompt_tokens;
    for (size_t i = 0; i < c->n_prompts; i++) {
        if (!c->gen[i]) {
            for (size_t k = 0; k < c->n_each; k++)
                choice_end(&c->choice[i * c->n_each + k], "length");
            continue;
        }
        c->n_with_engine++;
        sv->n_gens++;
        call_count_gens(c, 1);
        engine_submit(sv->en, c->gen[i]);
    }
    if (!c->n_with_engine) {
        call_let_go(c);
        call_send(c);
    }
}

static void after_encode(struct call *c, int rc, struct err *e)
{
    if (!rc && c->kind >= REQ_TOKENIZE) {
        call_reply(c, &c->out);
        return;
    }
    if (!rc)
        rc = check_room(c->sv, c, e);
    if (!rc)
        rc = hold_grammar(c, e);
    if (rc == -EAGAIN)
        c->sv->metrics.rejected_busy++;
    if (!rc)
        rc = make_gens(c, e);
    if (!rc) {
        call_admit(c);
        return;
    }
    for (size_t i = 0; c->gen && i < c->n_prompts; i++) {
        gen_free(c->gen[i]);
        c->gen[i] = NULL;
    }
    const char *code = rc == -EINVAL && strstr(e->msg, "the context holds") ? "context_length_exceeded" : NULL;
    call_fail(c, resp_status(rc), e, code);
}

static int fill_head(struct call *c)
{
    static const char *const id_prefix[] = {"cmpl", "chatcmpl", "embd", "score", "tok", "tok"};
    const struct req *q = c->req;
    uint64_t id[2];
    if (getrandom(id, sizeof id, GRND_NONBLOCK) < 0)
        id[0] = mono_ns(), id[1] = (uintptr_t)c->start_ns;
    c->head = (struct resp_head){.kind = c->kind,
                                 .id = arena_printf(c->a, "%s-%016llx%016llx", id_prefix[c->kind],
                                                    (unsigned long long)id[0], (unsigned long long)id[1]),
                                 .model = c->task->id,
                                 .created = (int64_t)time(NULL),
                                 .include_usage = q->include_usage,
                                 .tokens_as_ids = q->tokens_as_ids,
                                 .fingerprint = c->sv->fingerprint[0] ? c->sv->fingerprint : NULL};
    c->n_prompts = c->kind == REQ_CHAT ? 1 : c->kind >= REQ_EMBEDDING ? call_more_prompts(c) : q->n_prompts;
    c->n_each = q->best_of;
    c->prompt = arena_calloc(c->a, c->n_prompts, sizeof *c->prompt);
    c->gen = arena_calloc(c->a, c->n_prompts, sizeof(struct gen *));
    return c->head.id && c->prompt && c->gen ? 0 : -ENOMEM;
}

/* The body was read: a request may wait and run for minutes without it. */
static void drop_body(struct call *c)
{
    http_body_done(c->r);
    c->body = NULL;
}

/* The grammar of an answer's form: compiled before, or to be compiled by the next stage. */
static int find_grammar(struct call *c, struct err *e)
{
    const struct req_grammar *q = &c->req->grammar;
    if (!q->kind)
        return 0;
    if (!c->sv->grammars)
        return err_param(e, -EINVAL, q->param, "%s is not available with this model: %s", q->param,
                         c->sv->grammars_problem);
    grammars_key(q, &c->grammar_key);
    c->grammar = grammars_find(c->sv->grammars, &c->grammar_key);
    c->compile = !c->grammar;
    return 0;
}

static void after_parse(struct call *c, int rc, struct err *e)
{
    drop_body(c);
    if (rc) {
        fail_by_code(c, rc, e);
        return;
    }
    struct req *q = c->req;
    if (!q->model.ptr) /* where it may be left out */
        q->model = (struct req_str){c->sv->name, strlen(c->sv->name)};
    c->task = tasks_get(c->sv->tasks, c->tenant, q->model.ptr, q->model.len);
    if (!c->task) {
        err_param(e, -ENOENT, "model", "the model \"%.*s\" does not exist", utf8_cut(q->model.ptr, q->model.len, 200),
                  q->model.ptr);
        fail_by_code(c, -ENOENT, e);
        return;
    }
    rc = call_check_task(c, e);
    if (rc) {
        fail_by_code(c, rc, e);
        return;
    }
    if (c->task->defaults && !q->more)
        req_apply_defaults(q, c->task->defaults);
    if (fill_head(c) || call_root_key(c)) {
        err_set(e, -ENOMEM, "the server is out of memory");
        fail_by_code(c, -ENOMEM, e);
        return;
    }
    int bad = find_grammar(c, e);
    if (bad) {
        fail_by_code(c, bad, e);
        return;
    }
    run_stage(c, stage_encode, after_encode);
}

void call_start(struct server *sv, struct http_req *r, enum req_kind kind, uint32_t tenant)
{
    struct call *c = calloc(1, sizeof *c);
    struct arena *a = arena_create(CALL_ARENA_BYTES);
    if (!c || !a) {
        struct err e;
        err_set(&e, -ENOMEM, "the server is out of memory");
        free(c);
        arena_free(a);
        api_error(r, 503, &e, NULL);
        return;
    }
    c->sv = sv;
    c->r = r;
    c->a = a;
    c->body = http_body(r, &c->n_body);
    c->kind = kind;
    c->tenant = tenant;
    c->start_ns = mono_ns();
    c->next = sv->calls;
    if (sv->calls)
        sv->calls->prev = c;
    sv->calls = c;
    sv->n_active++;
    http_set_user(r, c);
    run_stage(c, stage_parse, after_parse);
}

void call_end_all(struct server *sv)
{
    struct err e;
    err_set(&e, -ESHUTDOWN, "the server is shutting down");
    for (struct call *c = sv->calls, *next; c; c = next) {
        next = c->next;
        if (c->r && !c->answered)
            call_fail(c, 503, &e, NULL);
    }
}
