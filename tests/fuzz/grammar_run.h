/* grammar_run.h - compiles a grammar under low limits and follows a few random texts of it.
 *
 * The vocabulary is small: every byte and some longer tokens. What must hold of any grammar that compiles: a mask is
 * never empty, what it allows is accepted, what it does not is not.
 */
#ifndef CPET_FUZZ_GRAMMAR_RUN_H
#define CPET_FUZZ_GRAMMAR_RUN_H

#include <stdlib.h>
#include <string.h>

#include "common/buf.h"
#include "common/num.h"
#include "common/utf8.h"
#include "model/grammar.h"

#define RUN_EOS 300

/* GPT-2's way of writing a byte as a character. */
static inline uint32_t run_char(int byte)
{
    static const int plain[3][2] = {{33, 126}, {161, 172}, {174, 255}};
    uint32_t other = 256;
    for (int b = 0; b <= byte; b++) {
        bool same = false;
        for (int i = 0; i < 3; i++)
            same |= b >= plain[i][0] && b <= plain[i][1];
        if (b == byte)
            return same ? (uint32_t)b : other;
        other += !same;
    }
    return 0;
}

/* Writes the text of a tokenizer.json: token b is byte b, some longer ones follow, RUN_EOS ends a text. */
static inline int run_tokenizer(struct buf *b)
{
    static const char *const more[] = {"{\\\"", "\\\":", "\\\",", "\\\"}", "true", "[[",
                                       "]]",    "abc",   "12",    ".5",    "},",   "\\\\u"};
    buf_puts(b, "{\"model\":{\"type\":\"BPE\",\"vocab\":{");
    for (int i = 0; i < 256; i++) {
        char c[4];
        uint32_t cp = run_char(i);
        size_t n = utf8_put(cp, c);
        buf_puts(b, cp == '"' || cp == '\\' ? "\"\\" : "\"");
        buf_append(b, c, n);
        buf_printf(b, "\":%d,", i);
    }
    for (int i = 0; i < 12; i++)
        buf_printf(b, "\"%s\":%d,", more[i], 256 + i);
    buf_puts(
        b, "\"<end>\":300},\"merges\":[]},\"decoder\":{\"type\":\"ByteLevel\"},\"pre_tokenizer\":{\"type\":"
           "\"ByteLevel\",\"add_prefix_space\":false},\"added_tokens\":[{\"id\":300,\"content\":\"<end>\",\"special\":"
           "true,\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false}]}");
    return b->error;
}

static inline struct grammar_vocab *run_vocab(void)
{
    static struct grammar_vocab *v;
    struct tok *t;
    struct buf b = {0};
    struct err e;
    int32_t eos = RUN_EOS;
    if (v)
        return v;
    if (run_tokenizer(&b) || tok_parse(b.data, b.len, NULL, 0, &t, &e) || grammar_vocab_create(t, &eos, 1, 301, &v, &e))
        abort();
    buf_free(&b);
    tok_close(t);
    return v;
}

static inline void run_text(struct grammar *g, uint64_t seed)
{
    struct grammar_state *s;
    const uint32_t *mask;
    if (grammar_state_open(g, &s))
        return;
    for (uint64_t i = 0; i < 60 && !grammar_over(s); i++) {
        int32_t id[301], n = 0;
        if (grammar_mask(s, &mask))
            break;
        for (int32_t k = 0; k < 301; k++)
            if (mask[k / 32] >> (k % 32) & 1)
                id[n++] = k;
        if (!n)
            abort(); /* stuck */
        int32_t other = (int32_t)(rng_bits(seed, 1, i) % 301);
        if (!(mask[other / 32] >> (other % 32) & 1) && !grammar_accept(s, other))
            abort(); /* accepted what was masked */
        if (grammar_accept(s, id[rng_bits(seed, 2, i) % (uint32_t)n]))
            abort(); /* refused what was allowed */
    }
    grammar_state_close(s);
}

static inline void run_grammar(enum grammar_kind kind, const uint8_t *data, size_t size)
{
    const struct grammar_limits lim = {
        .max_nodes = 400, .max_states = 1500, .max_memory = 16 << 20, .max_cache = 1 << 18, .max_steps = 300000};
    const struct grammar_spec s = {.kind = kind, .text = {(const char *)data, size}};
    struct grammar *g = NULL;
    struct err e = {0};
    if (grammar_compile(run_vocab(), &s, &lim, &g, &e)) {
        if (!e.code || !e.msg[0])
            abort(); /* no word on why */
        return;
    }
    uint64_t seed = 1;
    for (size_t i = 0; i < size; i++)
        seed = seed * 31 + data[i];
    for (uint64_t k = 0; k < 4; k++)
        run_text(g, seed + k);
    grammar_unref(g);
}

#endif
