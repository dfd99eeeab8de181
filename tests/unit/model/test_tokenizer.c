/* test_tokenizer.c - golden ids of every kind of tokenizer, refusals by name, limits, damaged files, threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <jansson.h>
#include <pthread.h>
#include <unistd.h>

#include "common/file.h"
#include "model/tokenizer.h"

static const char *const kinds[] = {"smollm",      "gpt2",          "llama3",          "qwen2",
                                    "spm_prepend", "spm_metaspace", "metaspace_split", "odd"};
#define N_KINDS (sizeof kinds / sizeof *kinds)

static char *golden_read(const char *kind, const char *ext, size_t *len)
{
    char path[512], *text = NULL;
    struct err e = {0};
    snprintf(path, sizeof path, "%s/tokenizer/%s.%s", GOLDEN_DIR, kind, ext);
    if (file_read(path, 1 << 24, &text, len, &e))
        fail_msg("%s", e.msg);
    return text;
}

static struct tok *golden_tok(const char *kind)
{
    size_t len;
    char *json = golden_read(kind, "json", &len);
    struct tok *t = NULL;
    struct err e = {0};
    if (tok_parse(json, len, NULL, 0, &t, &e))
        fail_msg("%s: %s", kind, e.msg);
    free(json);
    return t;
}

/* One line: JSON string, tab, ids, tab, JSON string. */
static void golden_case(const struct tok *t, const char *kind, char *line)
{
    char *ids_text = strchr(line, '\t'), *text = ids_text ? strchr(ids_text + 1, '\t') : NULL;
    assert_non_null(text);
    *ids_text++ = *text++ = 0;
    json_t *in = json_loads(line, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    json_t *out = json_loads(text, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    assert_true(json_is_string(in) && json_is_string(out));
    struct tok_ids ids = {0};
    struct buf b = {0}, got = {0};
    struct err e = {0};
    if (tok_encode(t, json_string_value(in), json_string_length(in), TOK_SPECIAL | TOK_POST, &ids, &e))
        fail_msg("%s: %s: %s", kind, line, e.msg);
    for (size_t i = 0; i < ids.n; i++)
        buf_printf(&got, "%s%d", i ? " " : "", ids.id[i]);
    if (strcmp(got.data ? got.data : "", ids_text))
        fail_msg("%s: %s: expected %s, got %s", kind, line, ids_text, got.data ? got.data : "");
    assert_int_equal(tok_decode(t, ids.id, ids.n, false, &b), 0);
    if (b.len != json_string_length(out) || memcmp(b.data ? b.data : "", json_string_value(out), b.len))
        fail_msg("%s: %s: decoded to \"%s\"", kind, line, b.data ? b.data : "");
    tok_ids_free(&ids);
    buf_free(&b);
    buf_free(&got);
    json_decref(in);
    json_decref(out);
}

static size_t golden_run(const struct tok *t, const char *kind)
{
    size_t len, n = 0;
    char *gold = golden_read(kind, "gold", &len);
    for (char *line = gold, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        *end = 0;
        golden_case(t, kind, line);
        n++;
    }
    free(gold);
    return n;
}

static void test_golden(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_KINDS; i++) {
        struct tok *t = golden_tok(kinds[i]);
        assert_true(golden_run(t, kinds[i]) > 150);
        tok_close(t);
    }
}

static void *golden_thread(void *t)
{
    golden_run(t, "qwen2");
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    struct tok *t = golden_tok("qwen2");
    pthread_t th[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&th[i], NULL, golden_thread, t), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(th[i], NULL);
    tok_close(t);
}

/* The bits of a tokenizer.json with one part replaced. */
#define DOC(added, norm, pre, post, dec, model)                                                                        \
    "{\"added_tokens\":" added ",\"normalizer\":" norm ",\"pre_tokenizer\":" pre ",\"post_processor\":" post           \
    ",\"decoder\":" dec ",\"model\":" model "}"
#define MODEL "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}"
#define SPLIT_OF(pat) "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" pat "\"},\"behavior\":\"Isolated\"}"

struct refusal {
    const char *json;
    int rc;
    const char *says;
};

static const struct refusal refusals[] = {
    {"", -EINVAL, "line"},
    {"[]", -EINVAL, "object"},
    {"{}", -EINVAL, "model"},
    {DOC("[]", "null", "null", "null", "null", "{\"type\":\"Unigram\"}"), -ENOTSUP, "Unigram"},
    {DOC("[]", "{\"type\":\"Nmt\"}", "null", "null", "null", MODEL), -ENOTSUP, "Nmt"},
    {DOC("[]", "{}", "null", "null", "null", MODEL), -EINVAL, "type"},
    {DOC("[]", "{\"type\":\"Prepend\"}", "null", "null", "null", MODEL), -EINVAL, "prepend"},
    {DOC("[]", "{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"\"}", "null", "null", "null", MODEL),
     -EINVAL, "pattern"},
    {DOC("[]", "null", "{\"type\":\"UnicodeScripts\"}", "null", "null", MODEL), -ENOTSUP, "UnicodeScripts"},
    {DOC("[]", "null", "{\"type\":\"Sequence\"}", "null", "null", MODEL), -EINVAL, "pretokenizers"},
    {DOC("[]", "null", SPLIT_OF("("), "null", "null", MODEL), -ENOTSUP, "pattern"},
    {DOC("[]", "null", SPLIT_OF("a{1,2}+"), "null", "null", MODEL), -ENOTSUP, "quantifier"},
    {DOC("[]", "null", SPLIT_OF("\\\\Ka"), "null", "null", MODEL), -ENOTSUP, "escape"},
    {DOC("[]", "null", SPLIT_OF("(?R)"), "null", "null", MODEL), -ENOTSUP, "group"},
    {DOC("[]", "null", SPLIT_OF("(*UTF)a"), "null", "null", MODEL), -ENOTSUP, "verb"},
    {DOC("[]", "null", SPLIT_OF("[a[b]]"), "null", "null", MODEL), -ENOTSUP, "class"},
    {DOC("[]", "null", SPLIT_OF("[a"), "null", "null", MODEL), -ENOTSUP, "class"},
    {DOC("[]", "null", SPLIT_OF("[]"), "null", "null", MODEL), -ENOTSUP, "class"},
    {DOC("[]", "null", SPLIT_OF("[\\\\W]"), "null", "null", MODEL), -ENOTSUP, "class"},
    {DOC("[]", "null", SPLIT_OF("\\\\p{L"), "null", "null", MODEL), -ENOTSUP, "{}"},
    {DOC("[]", "null", SPLIT_OF("\\\\p{Nonsense}"), "null", "null", MODEL), -ENOTSUP, "pattern"},
    {DOC("[]", "null", SPLIT_OF("\\\\p{a*}"), "null", "null", MODEL), -ENOTSUP, "property"},
    {DOC("[]", "null", SPLIT_OF("\\\\x4"), "null", "null", MODEL), -ENOTSUP, "escape"},
    {DOC("[]", "null", SPLIT_OF("\\\\x{}"), "null", "null", MODEL), -ENOTSUP, "escape"},
    {DOC("[]", "null", SPLIT_OF("a\\\\"), "null", "null", MODEL), -ENOTSUP, "backslash"},
    {DOC("[]", "null", "{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":\"Other\"}", "null", "null",
         MODEL),
     -ENOTSUP, "Other"},
    {DOC("[]", "null", "{\"type\":\"Metaspace\",\"replacement\":\"ab\"}", "null", "null", MODEL), -EINVAL, "character"},
    {DOC("[]", "null", "{\"type\":\"Metaspace\",\"replacement\":\"a\",\"prepend_scheme\":\"last\"}", "null", "null",
         MODEL),
     -ENOTSUP, "last"},
    {DOC("[]", "null", "{\"type\":\"Digits\",\"individual_digits\":3}", "null", "null", MODEL), -EINVAL, "individual"},
    {DOC("[]", "null", "null", "{\"type\":\"RobertaProcessing\"}", "null", MODEL), -ENOTSUP, "Roberta"},
    {DOC("[]", "null", "null", "{\"type\":\"TemplateProcessing\",\"single\":[]}", "null", MODEL), -ENOTSUP, "once"},
    {DOC("[]", "null", "null", "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}}]}",
         "null", MODEL),
     -EINVAL, "special_tokens"},
    {DOC("[]", "null", "null",
         "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}},{\"Sequence\":{\"id\":\"A\"}}]"
         ","
         "\"special_tokens\":{\"x\":{\"ids\":[7]}}}",
         "null", MODEL),
     -EINVAL, "id 7"},
    {DOC("[]", "null", "null", "null", "{\"type\":\"WordPiece\"}", MODEL), -ENOTSUP, "WordPiece"},
    {DOC("[]", "null", "null", "null", "{\"type\":\"Strip\",\"content\":\" \",\"start\":-1,\"stop\":0}", MODEL),
     -EINVAL, "start"},
    {DOC("[]", "null", "null", "null", "{\"type\":\"Strip\",\"content\":\"\",\"start\":1,\"stop\":0}", MODEL), -EINVAL,
     "content"},
    {DOC("3", "null", "null", "null", "null", MODEL), -EINVAL, "added_tokens"},
    {DOC("[{\"id\":1}]", "null", "null", "null", "null", MODEL), -EINVAL, "added_tokens[0].content"},
    {DOC("[{\"id\":-1,\"content\":\"x\"}]", "null", "null", "null", "null", MODEL), -EINVAL, "added_tokens[0].id"},
    {DOC("[{\"id\":1,\"content\":\"x\"}]", "null", "null", "null", "null", MODEL), -EINVAL, "id 1"},
    {DOC("[{\"id\":9,\"content\":\"a\"}]", "null", "null", "null", "null", MODEL), -EINVAL, "id 9"},
    {DOC("[]", "null", "null", "null", "null", "{\"type\":\"BPE\",\"vocab\":[],\"merges\":[]}"), -EINVAL, "vocab"},
    {DOC("[]", "null", "null", "null", "null", "{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}"), -EINVAL, "empty"},
    {DOC("[]", "null", "null", "null", "null", "{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}"), -EINVAL, "id"},
    {DOC("[]", "null", "null", "null", "null", "{\"type\":\"BPE\",\"vocab\":{\"a\":99999999},\"merges\":[]}"), -EINVAL,
     "id"},
    {DOC("[]", "null", "null", "null", "null", "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}"), -EINVAL,
     "both"},
    {DOC("[]", "null", "null", "null", "null", "{\"type\":\"BPE\",\"vocab\":{\"a\":0}}"), -EINVAL, "merges"},
    {DOC("[]", "null", "null", "null", "null", "{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"aa\"]}"), -EINVAL,
     "merges[0]"},
    {DOC("[]", "null", "null", "null", "null", "{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}"), -EINVAL,
     "merges[0]"},
    {DOC("[]", "null", "null", "null", "null", "{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[[\"a\",\"a\"]]}"),
     -EINVAL, "\"aa\""},
    {DOC("[]", "null", "null", "null", "null", "{\"type\":\"BPE\",\"dropout\":0.1,\"vocab\":{\"a\":0},\"merges\":[]}"),
     -ENOTSUP, "dropout"},
    {DOC("[]", "null", "null", "null", "null",
         "{\"type\":\"BPE\",\"unk_token\":\"u\",\"vocab\":{\"a\":0},\"merges\":[]}"),
     -EINVAL, "unk_token"},
};

static void test_refusals(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        const struct refusal *r = &refusals[i];
        struct tok *t = NULL;
        struct err e = {0};
        int rc = tok_parse(r->json, strlen(r->json), NULL, 0, &t, &e);
        if (rc != r->rc || !strstr(e.msg, r->says) || t)
            fail_msg("%s: expected %d and \"%s\", got %d: %s", r->json, r->rc, r->says, rc, e.msg);
    }
}

/* Deep nesting of Sequences is refused, not followed. */
static void test_nesting(void **state)
{
    (void)state;
    struct buf b = {0};
    buf_puts(&b, "{\"model\":" MODEL ",\"normalizer\":");
    for (int i = 0; i < 100; i++)
        buf_puts(&b, "{\"type\":\"Sequence\",\"normalizers\":[");
    for (int i = 0; i < 100; i++)
        buf_puts(&b, "]}");
    buf_puts(&b, "}");
    struct tok *t = NULL;
    struct err e = {0};
    assert_int_equal(tok_parse(b.data, b.len, NULL, 0, &t, &e), -EINVAL);
    assert_non_null(strstr(e.msg, "deeper"));
    buf_free(&b);
}

static void test_cut(void **state)
{
    (void)state;
    size_t len;
    char *json = golden_read("odd", "json", &len);
    while (len && json[len - 1] == '\n')
        len--;
    for (size_t n = 0; n < len; n += n < 6000 ? 1 : 101) {
        struct tok *t = NULL;
        assert_int_equal(tok_parse(json, n, NULL, 0, &t, NULL), -EINVAL);
    }
    free(json);
}

static void test_limits(void **state)
{
    (void)state;
    struct tok *t = golden_tok("smollm");
    struct err e = {0};
    struct tok_ids ids = {.limit = 4};
    assert_int_equal(tok_encode(t, "xyzw", 4, 0, &ids, &e), 0);
    size_t had = ids.n;
    assert_int_equal(tok_encode(t, "1234567", 7, 0, &ids, &e), -E2BIG);
    assert_int_equal(ids.n, had);
    assert_int_equal(tok_encode(t, "ab\xFFz", 4, 0, &ids, &e), -EILSEQ);
    assert_non_null(strstr(e.msg, "byte 2"));
    assert_int_equal(tok_encode(t, "", TOK_TEXT_MAX, 0, &ids, &e), -E2BIG);
    struct buf small = {.limit = 2};
    assert_int_equal(tok_decode(t, ids.id, had, false, &small), -E2BIG);
    buf_free(&small);
    const char *s;
    size_t n;
    assert_int_equal(tok_piece(t, -1, &s, &n), -EINVAL);
    assert_int_equal(tok_piece(t, (int32_t)tok_vocab(t), &s, &n), -EINVAL);
    assert_int_equal(tok_piece(t, tok_id(t, "\xC4\xA0", 2), &s, &n), 0);
    assert_true(n == 1 && s[0] == ' ');
    assert_int_equal(tok_id(t, "no such token", 13), -1);
    assert_false(tok_is_special(t, -5));
    assert_true(tok_is_special(t, tok_id(t, "<|im_end|>", 10)));
    tok_ids_free(&ids);
    tok_close(t);
}

/* A text with no boundary, one of boundaries only, and one of marks: time grows like the length. */
static void test_long(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_KINDS; i++) {
        struct tok *t = golden_tok(kinds[i]);
        size_t n = 200000;
        char *s = malloc(n);
        assert_non_null(s);
        static const char *const fills[] = {"a", " ", "\n", "ab", "1", "\xCC\x81\xCC\xA3", "\xE4\xBD\xA0", "<"};
        for (size_t f = 0; f < sizeof fills / sizeof *fills; f++) {
            size_t k = strlen(fills[f]), len = n / k * k;
            for (size_t at = 0; at < len; at += k)
                memcpy(s + at, fills[f], k);
            struct tok_ids ids = {0};
            struct err e = {0};
            if (tok_encode(t, s, len, TOK_SPECIAL, &ids, &e))
                fail_msg("%s, \"%s\": %s", kinds[i], fills[f], e.msg);
            tok_ids_free(&ids);
        }
        free(s);
        tok_close(t);
    }
}

static void write_text(const char *dir, const char *name, const char *text)
{
    char *path = path_join(dir, name);
    assert_int_equal(file_write_atomic(path, text, strlen(text), 0644, NULL), 0);
    free(path);
}

static void test_open(void **state)
{
    (void)state;
    char dir[] = "/tmp/test_tokenizer.XXXXXX";
    static const char *const names[] = {"tokenizer.json",         "tokenizer_config.json", "special_tokens_map.json",
                                        "generation_config.json", "config.json",           "chat_template.jinja"};
    assert_non_null(mkdtemp(dir));
    struct tok *t = NULL;
    struct err e = {0};
    assert_int_equal(tok_open(dir, &t, &e), -ENOENT);
    write_text(dir, names[0],
               DOC("[{\"id\":5,\"content\":\"<e>\",\"special\":true}]", "null", "null", "null", "null", MODEL));
    assert_int_equal(tok_open(dir, &t, &e), 0);
    size_t n;
    assert_int_equal(tok_vocab(t), 6);
    assert_int_equal(tok_bos(t), -1);
    assert_string_equal(tok_eos_text(t), "");
    assert_string_equal(tok_pad_text(t), "");
    tok_eos_ids(t, &n);
    assert_int_equal(n, 0);
    assert_null(tok_chat_template(t, &n));
    tok_close(t);
    write_text(dir, names[4], "{\"bos_token_id\":1,\"eos_token_id\":[2,0]}");
    write_text(dir, names[5], "J");
    assert_int_equal(tok_open(dir, &t, &e), 0);
    assert_int_equal(tok_bos(t), 1);
    assert_string_equal(tok_bos_text(t), "b");
    const int32_t *eos = tok_eos_ids(t, &n);
    assert_true(n == 2 && eos[0] == 2 && eos[1] == 0);
    assert_string_equal(tok_chat_template(t, &n), "J");
    tok_close(t);
    write_text(dir, names[2], "{\"bos_token\":\"a\",\"eos_token\":\"b\",\"pad_token\":\"a\"}");
    write_text(dir, names[3], "{\"eos_token_id\":[2,5,2]}");
    write_text(dir, names[1],
               "{\"eos_token\":{\"content\":\"<e>\"},\"chat_template\":[{\"name\":\"tool_use\",\"template\":"
               "\"T\"},{\"name\":\"default\",\"template\":\"D\"}]}");
    assert_int_equal(tok_open(dir, &t, &e), 0);
    assert_int_equal(tok_bos(t), 0);
    assert_int_equal(tok_eos(t), 5);
    assert_string_equal(tok_eos_text(t), "<e>");
    assert_string_equal(tok_pad_text(t), "a");
    for (int32_t id = -1; id < 7; id++) {
        const char *s = tok_written(t, id, &n);
        if (n ? tok_id(t, s, n) != id : id == 5)
            fail_msg("%d: '%.*s'", id, (int)n, s);
    }
    eos = tok_eos_ids(t, &n);
    assert_true(n == 2 && eos[0] == 5 && eos[1] == 2);
    assert_string_equal(tok_chat_template(t, &n), "J"); /* the file comes first */
    tok_close(t);
    char *jinja = path_join(dir, names[5]);
    assert_int_equal(unlink(jinja), 0);
    free(jinja);
    assert_int_equal(tok_open(dir, &t, &e), 0);
    assert_string_equal(tok_chat_template(t, &n), "D");
    tok_close(t);
    static const char *const bad[][2] = {{"generation_config.json", "{\"eos_token_id\":\"x\"}"},
                                         {"tokenizer_config.json", "{\"bos_token\":\"nope\"}"},
                                         {"tokenizer_config.json", "{\"chat_template\":3}"},
                                         {"special_tokens_map.json", "{"}};
    for (size_t i = 0; i < 4; i++) {
        write_text(dir, bad[i][0], bad[i][1]);
        assert_int_equal(tok_open(dir, &t, &e), -EINVAL);
        write_text(dir, bad[i][0], "{}");
    }
    for (size_t i = 0; i < 6; i++) {
        char *path = path_join(dir, names[i]);
        unlink(path);
        free(path);
    }
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden),   cmocka_unit_test(test_threads),
                                       cmocka_unit_test(test_refusals), cmocka_unit_test(test_nesting),
                                       cmocka_unit_test(test_cut),      cmocka_unit_test(test_limits),
                                       cmocka_unit_test(test_long),     cmocka_unit_test(test_open)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
