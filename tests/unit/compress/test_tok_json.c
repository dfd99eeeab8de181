/* test_tok_json.c - tokenizer.json written from GGUF's parts: read back by the tokenizer, for every kind; and refusals.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "compress/tok_json.h"
#include "model/tokenizer.h"

#define STR(s) ((struct gguf_str){s, sizeof(s) - 1})

static char dir[64];

static void drop_files(void)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json"};
    for (int i = 0; i < 2; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
}

static void expect_ids(const struct tok_json *t, const char *text, unsigned flags, const int32_t *want, size_t n)
{
    struct err e = {0};
    struct tok *k = NULL;
    struct tok_ids ids = {0};
    if (tok_json_write(dir, t, &e) || tok_open(dir, &k, &e) || tok_encode(k, text, strlen(text), flags, &ids, &e))
        fail_msg("%s", e.msg);
    assert_int_equal(ids.n, n);
    assert_memory_equal(ids.id, want, n * sizeof *want);
    tok_ids_free(&ids);
    tok_close(k);
    drop_files();
}

static void test_byte_level(void **s)
{
    (void)s;
    static const struct gguf_str tokens[] = {STR("a"),        STR("b"),  STR("1"),  STR("2"),
                                             STR("\xC4\xA0"), STR("ab"), STR("12"), STR("<s>")};
    static const struct gguf_str merges[] = {STR("a b"), STR("1 2")};
    static const int32_t types[] = {1, 1, 1, 1, 1, 1, 1, 3};
    static const struct gguf_str pres[] = {STR("gpt-2"), STR("smollm"), STR("llama-bpe"), STR("qwen2")};
    static const int32_t joined[] = {7, 5, 4, 6}, digits[] = {7, 5, 4, 2, 3}, with_bos[] = {7, 7, 5, 4, 6};
    for (int i = 0; i < 4; i++) {
        struct tok_json t = {.model = STR("gpt2"),
                             .pre = pres[i],
                             .tokens = tokens,
                             .types = types,
                             .merges = merges,
                             .n_tokens = 8,
                             .n_merges = 2,
                             .bos = 7,
                             .eos = -1,
                             .unk = -1,
                             .pad = -1,
                             .add_bos = -1,
                             .add_eos = -1};
        bool bos = i == 2;
        if (i == 2 || i == 0) /* a space of its own, then the digits */
            expect_ids(&t, "<s>ab 12", TOK_SPECIAL | TOK_POST, bos ? with_bos : joined, bos ? 5 : 4);
        else
            expect_ids(&t, "<s>ab 12", TOK_SPECIAL | TOK_POST, digits, 5);
    }
}

static void test_scores(void **s)
{
    (void)s;
    static const struct gguf_str tokens[] = {STR("<unk>"),
                                             STR("<s>"),
                                             STR("<0x21>"),
                                             STR("\xE2\x96\x81"),
                                             STR("a"),
                                             STR("b"),
                                             STR("ab"),
                                             STR("\xE2\x96\x81"
                                                 "ab")};
    static const int32_t types[] = {2, 3, 6, 1, 1, 1, 1, 1};
    static const float scores[] = {0, 0, 0, -5, -6, -7, -1, -2};
    static const int32_t want[] = {1, 7, 6, 2};
    struct tok_json t = {.model = STR("llama"),
                         .tokens = tokens,
                         .types = types,
                         .scores = scores,
                         .n_tokens = 8,
                         .bos = 1,
                         .eos = -1,
                         .unk = 0,
                         .pad = -1,
                         .add_bos = -1,
                         .add_eos = -1,
                         .add_space_prefix = -1};
    expect_ids(&t, "abab!", TOK_SPECIAL | TOK_POST, want, 4);
}

static void refuse(const struct tok_json *t, const char *says)
{
    struct err e = {0};
    int r = tok_json_write(dir, t, &e);
    if (r >= 0 || !strstr(e.msg, says))
        fail_msg("gave %d \"%s\", expected \"%s\"", r, e.msg, says);
    drop_files();
}

static void test_refused(void **s)
{
    (void)s;
    static const struct gguf_str twice[] = {STR("a"), STR("a")}, bad[] = {STR("a"), STR("\xFF")},
                                 good[] = {STR("a"), STR("b")}, merge[] = {STR("a c")};
    struct tok_json t = {.model = STR("gpt2"),
                         .pre = STR("gpt-2"),
                         .tokens = twice,
                         .n_tokens = 2,
                         .bos = -1,
                         .eos = -1,
                         .unk = -1,
                         .pad = -1};
    refuse(&t, "is there twice");
    t.tokens = bad;
    refuse(&t, "token 1 is not valid UTF-8");
    t.tokens = good;
    t.merges = merge;
    t.n_merges = 1;
    refuse(&t, "merge 0, \"a c\"");
    t.eos = 2;
    refuse(&t, "beyond the 2 tokens");
    t.eos = -1;
    t.pre = STR("deepseek");
    refuse(&t, "\"tokenizer.ggml.pre\" is deepseek");
    t.pre = (struct gguf_str){0};
    refuse(&t, "\"tokenizer.ggml.pre\" is absent");
    t.model = STR("bert");
    refuse(&t, "\"tokenizer.ggml.model\" is bert");
    t.model = STR("llama");
    refuse(&t, "\"tokenizer.ggml.scores\" is missing");
}

static int make_dir(void **s)
{
    (void)s;
    snprintf(dir, sizeof dir, "/tmp/cpet_tokj_XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int drop_dir(void **s)
{
    (void)s;
    drop_files();
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_byte_level), cmocka_unit_test(test_scores),
                                       cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}
