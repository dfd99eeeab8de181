/* test_grammar_alloc.c - grammars with allocations that fail, one by one: vocabulary, compilation, states and masks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "tests/fuzz/grammar_run.h"
#include "tests/unit/common/alloc_fail.h"

static struct grammar_vocab *vocab;

static int follow(struct grammar *g, const char *text, struct err *e)
{
    struct grammar_state *s = NULL;
    const uint32_t *mask;
    int r = grammar_state_open(g, &s);
    for (; !r && *text; text++) {
        r = grammar_mask(s, &mask);
        if (!r)
            r = grammar_accept(s, (unsigned char)*text);
    }
    grammar_state_close(s);
    return r ? err_set(e, r, "following a text") : 0;
}

static int run(enum grammar_kind kind, const char *source, const char *text, struct err *e)
{
    const struct grammar_spec s = {.kind = kind, .text = {source, strlen(source)}};
    struct grammar *g = NULL;
    int r = grammar_compile(vocab, &s, NULL, &g, e);
    assert_true(!r == !!g);
    if (!r)
        r = follow(g, text, e);
    grammar_unref(g);
    return r;
}

static int do_schema(struct err *e)
{
    return run(
        GRAMMAR_JSON_SCHEMA,
        "{\"type\":\"object\",\"properties\":{\"a\":{\"enum\":[\"x\",\"yy\",[1,{\"k\":null}]]},\"b\":{\"type\":"
        "\"string\","
        "\"minLength\":2,\"pattern\":\"^[a-z]+$\"},\"c\":{\"$ref\":\"#/$defs/"
        "n\"},\"d\":{\"oneOf\":[{\"type\":\"integer\"},"
        "{\"multipleOf\":2}]}},\"patternProperties\":{\"^p\":{\"type\":\"number\"}},\"required\":[\"a\"],"
        "\"propertyNames\":{\"maxLength\":3},\"$defs\":{\"n\":{\"anyOf\":[{\"type\":\"null\"},{\"items\":{\"not\":{"
        "\"type\":\"string\"}}}]}}}",
        "{\"a\":[1,{\"k\":null}],\"b\":\"abc\",\"c\":[1,true],\"d\":3,\"p1\":2.5,\"p2\":1,\"z\":{}}", e);
}

static int do_regex(struct err *e)
{
    return run(GRAMMAR_REGEX, "(a|b[^c-e]{2,3})+\\.\\d", "abxya.7", e);
}

static int do_vocab(struct err *e)
{
    struct tok *t = NULL;
    struct grammar_vocab *v = NULL;
    int32_t eos = RUN_EOS;
    struct buf b = {0};
    int r = run_tokenizer(&b) ? -ENOMEM : 0;
    if (r)
        err_set(e, r, "the text");
    if (!r)
        r = tok_parse(b.data, b.len, NULL, 0, &t, e);
    if (!r)
        r = grammar_vocab_create(t, &eos, 1, 301, &v, e);
    assert_true(!r == !!v);
    grammar_vocab_free(v);
    tok_close(t);
    buf_free(&b);
    return r;
}

static void test_each(void **state)
{
    (void)state;
    vocab = run_vocab();
    alloc_fail_each("a vocabulary", do_vocab, 1);
    alloc_fail_each("a schema", do_schema, 0);
    alloc_fail_each("a regular expression", do_regex, 0);
    grammar_vocab_free(vocab);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_each)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
