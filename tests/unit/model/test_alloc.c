/* test_alloc.c - allocations that fail, one by one: config.json, tokenizers, chat templates. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/file.h"
#include "model/config.h"
#include "model/template.h"
#include "model/tokenizer.h"
#include "tests/unit/common/alloc_fail.h"

static char dir[64];
static json_t *vars;
static char *template;
static size_t template_len;

static int do_config(struct err *e)
{
    struct model_config c = {0};
    int r = model_config_read(dir, &c, e);
    model_config_free(&c);
    return r;
}

static int tokenizer(const char *name, bool text, struct err *e)
{
    static const char words[] = "Hello  w\xc3\xb6rld 123, it's\n<s>\xf0\x9f\x98\x80";
    char path[256];
    struct tok *t = NULL;
    struct tok_ids ids = {0};
    struct buf out = {0};
    char *json = NULL;
    size_t n = 0;
    snprintf(path, sizeof path, "%s/tokenizer/%s.json", GOLDEN_DIR, name);
    int r = file_read(path, 1 << 24, &json, &n, e);
    if (!r)
        r = tok_parse(json, n, NULL, 0, &t, e);
    free(json);
    assert_true(!r == !!t);
    if (!r && text)
        r = tok_encode(t, words, sizeof words - 1, 3, &ids, e);
    if (!r && text && (r = tok_decode(t, ids.id, ids.n, false, &out)))
        err_set(e, r, "decode");
    buf_free(&out);
    tok_ids_free(&ids);
    tok_close(t);
    return r;
}

static int do_smollm(struct err *e)
{
    return tokenizer("smollm", true, e);
}

static int do_llama3(struct err *e)
{
    return tokenizer("llama3", true, e);
}

static int do_spm(struct err *e)
{
    return tokenizer("spm_prepend", true, e);
}

static int do_odd(struct err *e)
{
    return tokenizer("odd", true, e);
}

static int do_template(struct err *e)
{
    struct tmpl *t = NULL;
    struct buf out;
    buf_init(&out, 0);
    int r = tmpl_parse(template, template_len, &t, e);
    if (!r)
        r = tmpl_render(t, vars, NULL, &out, e);
    buf_free(&out);
    tmpl_free(t);
    return r;
}

static void test_each(void **s)
{
    (void)s;
    alloc_fail_each("config.json", do_config, 0);
    alloc_fail_each("a chat template", do_template, 0);
    alloc_fail_each("tokenizer smollm", do_smollm, 1);
    alloc_fail_each("tokenizer llama3", do_llama3, 1);
    alloc_fail_each("tokenizer spm", do_spm, 1);
    alloc_fail_each("tokenizer odd", do_odd, 1);
}

static int set_up(void **s)
{
    static const char config[] = "{\"model_type\": \"llama\", \"num_hidden_layers\": 2, \"hidden_size\": 64, "
                                 "\"intermediate_size\": 96, \"num_attention_heads\": 4, \"vocab_size\": 128, "
                                 "\"max_position_embeddings\": 256}";
    static const char chat[] =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", "
        "\"content\": \"Ho\"}], \"tools\": [{\"function\": {\"name\": \"f\"}}], \"bos_token\": \"<s>\"}";
    char path[128];
    struct err e = {0};
    (void)s;
    vars = json_loads(chat, 0, NULL);
    if (!vars || file_read(GOLDEN_DIR "/templates/qwen2.5-instruct.jinja", 1 << 20, &template, &template_len, &e))
        return -1;
    snprintf(dir, sizeof dir, "%s", "/tmp/cpet-alloc-XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/config.json", dir);
    return file_write_atomic(path, config, sizeof config - 1, 0644, &e);
}

static int tear_down(void **s)
{
    char path[128];
    (void)s;
    json_decref(vars);
    free(template);
    snprintf(path, sizeof path, "%s/config.json", dir);
    unlink(path);
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_each)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
