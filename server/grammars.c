/* grammars.c - the cache of compiled grammars: a list, the one used last in front.
 *
 * Any thread; one mutex, held for pointers and counts only. The list is short (a grammar takes some hundred KiB with
 * the masks that it caches, and the whole is bounded), so a look-up walks it and compares hashes. An entry holds one
 * reference of its grammar; requests hold their own, so that what is pushed out lives on while it is used.
 */
#include "server/grammars.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define MASKS_BYTES ((size_t)4 << 20) /* that a grammar keeps, at most */

struct entry {
    struct entry *next;
    struct hash key;
    struct grammar *g;
    size_t bytes;
};

struct grammars {
    const struct grammar_vocab *v;
    size_t max_bytes;
    pthread_mutex_t lock;
    struct entry *first;
    struct grammars_stats stats;
};

struct grammars *grammars_create(const struct grammar_vocab *v, size_t max_bytes)
{
    struct grammars *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->v = v;
    c->max_bytes = max_bytes;
    pthread_mutex_init(&c->lock, NULL);
    return c;
}

static void drop(struct entry *x)
{
    for (struct entry *next; x; x = next) {
        next = x->next;
        grammar_unref(x->g);
        free(x);
    }
}

void grammars_free(struct grammars *c)
{
    if (!c)
        return;
    drop(c->first);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

void grammars_key(const struct req_grammar *q, struct hash *key)
{
    struct hash_state s;
    uint64_t kind = (uint64_t)q->kind;
    hash_init(&s);
    hash_update(&s, &kind, sizeof kind);
    if (q->text.ptr)
        hash_update(&s, q->text.ptr, q->text.len);
    for (size_t i = 0; i < q->n_choices; i++) {
        uint64_t n = q->choice[i].len;
        hash_update(&s, &n, sizeof n);
        hash_update(&s, q->choice[i].ptr, q->choice[i].len);
    }
    hash_final(&s, key);
}

/* Moves the entry to the front. NULL: there is none. Under the lock. */
static struct entry *look(struct grammars *c, const struct hash *key)
{
    for (struct entry **at = &c->first; *at; at = &(*at)->next) {
        struct entry *x = *at;
        if (!hash_equal(&x->key, key))
            continue;
        *at = x->next;
        x->next = c->first;
        c->first = x;
        return x;
    }
    return NULL;
}

struct grammar *grammars_find(struct grammars *c, const struct hash *key)
{
    pthread_mutex_lock(&c->lock);
    struct entry *x = look(c, key);
    struct grammar *g = x ? grammar_ref(x->g) : NULL;
    ++*(x ? &c->stats.hits : &c->stats.misses);
    pthread_mutex_unlock(&c->lock);
    return g;
}

/* Takes from the end until what is left fits; the newest always stays. Returns what was taken. Under the lock. */
static struct entry *push_out(struct grammars *c)
{
    struct entry *out = NULL;
    while (c->stats.bytes > c->max_bytes && c->first->next) {
        struct entry **at = &c->first->next;
        while ((*at)->next)
            at = &(*at)->next;
        struct entry *x = *at;
        *at = NULL;
        c->stats.bytes -= x->bytes;
        c->stats.n--;
        x->next = out;
        out = x;
    }
    return out;
}

/* Puts x in, or, where another thread was first, x->g becomes that one's. Returns what is to be dropped. */
static struct entry *put(struct grammars *c, struct entry *x, struct grammar **g)
{
    pthread_mutex_lock(&c->lock);
    struct entry *old = look(c, &x->key), *out;
    if (old) {
        x->next = NULL;
        out = x;
    } else {
        old = x;
        x->next = c->first;
        c->first = x;
        c->stats.bytes += x->bytes;
        c->stats.n++;
        out = push_out(c);
    }
    *g = grammar_ref(old->g);
    pthread_mutex_unlock(&c->lock);
    return out;
}

static struct grammar_text text_of(const struct req_str *s)
{
    return (struct grammar_text){s->ptr, s->len};
}

static int compile(const struct grammar_vocab *v, const struct req_grammar *q, struct grammar **out, struct err *e)
{
    static const enum grammar_kind kind[] = {[REQ_JSON_OBJECT] = GRAMMAR_JSON_OBJECT,
                                             [REQ_JSON_SCHEMA] = GRAMMAR_JSON_SCHEMA,
                                             [REQ_REGEX] = GRAMMAR_REGEX,
                                             [REQ_CHOICE] = GRAMMAR_CHOICE};
    struct grammar_text *choice = NULL;
    if (q->n_choices) {
        choice = calloc(q->n_choices, sizeof *choice);
        if (!choice)
            return err_set(e, -ENOMEM, "the server is out of memory");
    }
    for (size_t i = 0; i < q->n_choices; i++)
        choice[i] = text_of(&q->choice[i]);
    struct grammar_spec s = {
        .kind = kind[q->kind], .text = text_of(&q->text), .choice = choice, .n_choices = q->n_choices};
    struct grammar_limits lim = {.max_cache = MASKS_BYTES};
    struct err why = {0};
    int rc = grammar_compile(v, &s, &lim, out, &why);
    free(choice);
    if (rc == -ENOMEM)
        return err_set(e, rc, "the server is out of memory");
    return rc ? err_param(e, -EINVAL, q->param, "%s: %s", q->param, why.msg) : 0;
}

int grammars_compile(struct grammars *c, const struct req_grammar *q, const struct hash *key, struct grammar **out,
                     struct err *e)
{
    pthread_mutex_lock(&c->lock);
    struct entry *x = look(c, key); /* another request may have compiled it while this one waited for a worker */
    *out = x ? grammar_ref(x->g) : NULL;
    pthread_mutex_unlock(&c->lock);
    if (*out)
        return 0;
    x = calloc(1, sizeof *x);
    if (!x)
        return err_set(e, -ENOMEM, "the server is out of memory");
    int rc = compile(c->v, q, &x->g, e);
    if (rc) {
        free(x);
        return rc;
    }
    x->key = *key;
    x->bytes = MASKS_BYTES + grammar_bytes(x->g);
    drop(put(c, x, out));
    return 0;
}

void grammars_stats(struct grammars *c, struct grammars_stats *out)
{
    pthread_mutex_lock(&c->lock);
    *out = c->stats;
    pthread_mutex_unlock(&c->lock);
}
