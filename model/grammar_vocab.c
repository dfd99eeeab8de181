/* grammar_vocab.c - the vocabulary as a trie of the tokens' bytes.
 *
 * Made once, when a tokenizer is loaded, and never changed; any thread may read it. Nodes lie in preorder, each with
 * the index behind its subtree, so that a walk is one loop that steps or skips, and the tokens of a subtree are
 * neighbours. Special tokens, tokens without bytes and those longer than G_TOKEN_MAX are not in it.
 */
#include "model/grammar_run.h"

#include <stdlib.h>
#include <string.h>

struct entry {
    const char *p;
    uint32_t n;
    int32_t id;
};

static int by_bytes(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    int cmp = memcmp(x->p, y->p, x->n < y->n ? x->n : y->n);
    if (!cmp)
        cmp = (x->n > y->n) - (x->n < y->n);
    return cmp ? cmp : (x->id > y->id) - (x->id < y->id);
}

static bool is_end(const int32_t *eos, size_t n, int32_t id)
{
    for (size_t i = 0; i < n; i++)
        if (eos[i] == id)
            return true;
    return false;
}

static size_t gather(const struct tok *t, const int32_t *eos, size_t n_eos, uint32_t vocab, struct entry *out)
{
    uint32_t n = tok_vocab(t) < vocab ? tok_vocab(t) : vocab;
    size_t k = 0;
    for (uint32_t id = 0; id < n; id++) {
        const char *p;
        size_t len;
        if (is_end(eos, n_eos, (int32_t)id) || tok_is_special(t, (int32_t)id) || tok_piece(t, (int32_t)id, &p, &len) ||
            !len || len > G_TOKEN_MAX)
            continue;
        out[k++] = (struct entry){p, (uint32_t)len, (int32_t)id};
    }
    return k;
}

static size_t count_nodes(const struct entry *e, size_t n)
{
    size_t nodes = 1;
    for (size_t i = 0; i < n; i++) {
        uint32_t same = 0;
        while (i && same < e[i].n && same < e[i - 1].n && e[i].p[same] == e[i - 1].p[same])
            same++;
        nodes += e[i].n - same;
    }
    return nodes;
}

static int alloc_nodes(struct grammar_vocab *v, size_t nodes, size_t tokens)
{
    v->byte = calloc(nodes, 1);
    v->depth = calloc(nodes, 1);
    v->tail = calloc(nodes, 1);
    v->below = calloc(nodes, sizeof *v->below);
    v->skip = calloc(nodes, sizeof *v->skip);
    v->parent = calloc(nodes, sizeof *v->parent);
    v->first = calloc(nodes + 1, sizeof *v->first);
    v->token = calloc(tokens ? tokens : 1, sizeof *v->token);
    v->length = calloc(v->vocab, sizeof *v->length);
    v->at = calloc(v->vocab, sizeof *v->at);
    return v->byte && v->depth && v->tail && v->below && v->skip && v->parent && v->first && v->token && v->length &&
                   v->at
               ? 0
               : -ENOMEM;
}

static void build(struct grammar_vocab *v, const struct entry *e, size_t n)
{
    uint32_t path[G_TOKEN_MAX + 1] = {0}, k = 1;
    for (size_t i = 0; i < n; i++) {
        uint32_t same = 0;
        while (i && same < e[i].n && same < e[i - 1].n && e[i].p[same] == e[i - 1].p[same])
            same++;
        for (uint32_t d = same; d < e[i].n; d++, k++) {
            v->byte[k] = (uint8_t)e[i].p[d];
            v->depth[k] = (uint8_t)(d + 1);
            v->parent[k] = path[d];
            v->first[k] = (uint32_t)i; /* nothing ends in it before this token */
            path[d + 1] = k;
        }
        v->token[i] = e[i].id;
        v->length[e[i].id] = e[i].n;
        v->at[e[i].id] = path[e[i].n];
        v->longest = e[i].n > v->longest ? e[i].n : v->longest;
    }
    v->n_nodes = k;
    v->first[k] = (uint32_t)n;
    for (uint32_t i = 0; i < k; i++)
        v->skip[i] = i + 1;
    while (--k) { /* children before parents */
        uint8_t b = v->byte[k], as = b >= 0x20 && b < 0x80 && b != '"' && b != '\\' ? b : 0;
        uint32_t p = v->parent[k];
        v->skip[p] = v->skip[p] > v->skip[k] ? v->skip[p] : v->skip[k];
        v->tail[p] = v->tail[p] > v->tail[k] ? v->tail[p] : (uint8_t)(v->tail[k] + 1);
        for (int i = 0; i < 2; i++)
            v->below[p].w[i] |= v->below[k].w[i];
        v->below[p].w[as / 64] |= (uint64_t)1 << (as % 64);
    }
}

/* Every printable ASCII character needs a token, or a text could get stuck before one. */
static int check_bytes(const struct grammar_vocab *v, struct err *e)
{
    bool seen[256] = {false};
    for (uint32_t i = 1; i < v->n_nodes; i++)
        if (v->depth[i] == 1 && v->first[i + 1] > v->first[i] && v->length[v->token[v->first[i]]] == 1)
            seen[v->byte[i]] = true;
    for (int b = 0x20; b < 0x7F; b++)
        if (!seen[b])
            return err_set(e, -ENOTSUP, "the tokenizer has no token for the character U+%04X", (unsigned)b);
    return 0;
}

int grammar_vocab_create(const struct tok *t, const int32_t *eos, size_t n_eos, uint32_t vocab,
                         struct grammar_vocab **out, struct err *e)
{
    if (!vocab || vocab > TOK_ID_MAX || !n_eos)
        return err_set(e, -EINVAL, "a grammar needs a vocabulary and a token that ends a text");
    for (size_t i = 0; i < n_eos; i++)
        if (eos[i] < 0 || (uint32_t)eos[i] >= vocab)
            return err_set(e, -EINVAL, "the end token %d is not in the vocabulary", (int)eos[i]);
    struct grammar_vocab *v = calloc(1, sizeof *v);
    struct entry *entry = calloc(vocab, sizeof *entry);
    int r = v && entry && (v->eos = calloc(n_eos, sizeof *v->eos)) ? 0 : -ENOMEM;
    if (!r) {
        size_t n = gather(t, eos, n_eos, vocab, entry);
        qsort(entry, n, sizeof *entry, by_bytes);
        memcpy(v->eos, eos, n_eos * sizeof *eos);
        v->n_eos = n_eos;
        v->vocab = vocab;
        v->n_words = (vocab + 31) / 32;
        if (!(r = alloc_nodes(v, count_nodes(entry, n), n)))
            build(v, entry, n);
    }
    free(entry);
    r = r ? err_set(e, r, "out of memory") : check_bytes(v, e);
    if (r)
        grammar_vocab_free(v);
    else
        *out = v;
    return r;
}

void grammar_vocab_free(struct grammar_vocab *v)
{
    if (!v)
        return;
    free(v->byte);
    free(v->depth);
    free(v->tail);
    free(v->below);
    free(v->skip);
    free(v->parent);
    free(v->first);
    free(v->token);
    free(v->eos);
    free(v->length);
    free(v->at);
    free(v);
}
