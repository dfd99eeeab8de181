/* fake_grammar.c - see fake_grammar.h. The mask is in the state, so that a stale one is seen: each accept clears it. */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fake_grammar.h"

#define VOCAB 1000

struct grammar {
    uint32_t n, most;
    int32_t eos;
    unsigned states;
    unsigned slow_us;
    bool fail_mask, fail_accept;
    atomic_uint refs;
    size_t bytes;
};

static atomic_uint alive;

struct grammar_state {
    struct grammar *g;
    uint32_t at;
    uint32_t mask[(VOCAB + 31) / 32];
};

struct grammar *fake_grammar(uint32_t n, uint32_t most, int32_t eos)
{
    struct grammar *g = calloc(1, sizeof *g);
    *g = (struct grammar){.n = n, .most = most, .eos = eos};
    return g;
}

int grammar_compile(const struct grammar_vocab *v, const struct grammar_spec *s, const struct grammar_limits *lim,
                    struct grammar **out, struct err *e)
{
    (void)v;
    (void)lim;
    if (s->text.n && s->text.ptr[0] == '!')
        return err_set(e, -EINVAL, "/a: wrong");
    *out = fake_grammar(1, 2, 500);
    (*out)->refs = 1;
    (*out)->bytes = s->text.n && s->text.ptr[0] == '+' ? (size_t)8 << 20 : 0;
    alive++;
    return 0;
}

size_t grammar_bytes(const struct grammar *g)
{
    return g->bytes;
}

struct grammar *grammar_ref(struct grammar *g)
{
    g->refs++;
    return g;
}

void grammar_unref(struct grammar *g)
{
    if (!g || --g->refs)
        return;
    alive--;
    free(g);
}

unsigned fake_grammars(void)
{
    return alive;
}

void fake_grammar_free(struct grammar *g)
{
    free(g);
}

unsigned fake_grammar_open_states(const struct grammar *g)
{
    return g->states;
}

void fake_grammar_slow(struct grammar *g, unsigned us)
{
    g->slow_us = us;
}

void fake_grammar_fail(struct grammar *g, bool mask, bool accept)
{
    g->fail_mask = mask;
    g->fail_accept = accept;
}

int grammar_state_open(struct grammar *g, struct grammar_state **out)
{
    *out = calloc(1, sizeof **out);
    (*out)->g = g;
    g->states++;
    return 0;
}

void grammar_state_close(struct grammar_state *s)
{
    if (s)
        s->g->states--;
    free(s);
}

static bool allowed(const struct grammar_state *s, int32_t token)
{
    if (token == s->g->eos)
        return s->at >= s->g->n;
    return s->at < s->g->most && token % 7 == (int32_t)(s->at % 7);
}

int grammar_mask(struct grammar_state *s, const uint32_t **mask)
{
    if (s->g->fail_mask)
        return -ENOMEM;
    if (s->g->slow_us)
        usleep(s->g->slow_us);
    memset(s->mask, 0, sizeof s->mask);
    for (int32_t i = 0; i < VOCAB; i++)
        if (allowed(s, i))
            s->mask[i / 32] |= 1u << (i % 32);
    *mask = s->mask;
    return 0;
}

int grammar_accept(struct grammar_state *s, int32_t token)
{
    memset(s->mask, 0, sizeof s->mask);
    if (s->g->fail_accept || !allowed(s, token))
        return -EINVAL;
    s->at++;
    return 0;
}

bool grammar_over(const struct grammar_state *s)
{
    return s->at >= s->g->most;
}
