/* test_alloc.c - allocations that fail, one by one: requests. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include <errno.h>

#include "common/arena.h"
#include "proto/endpoints.h"
#include "tests/unit/common/alloc_fail.h"

typedef int parse_fn(const char *body, size_t n, const struct req_limits *lim, struct arena *a, struct req **out,
                     struct err *e);

static int parse(parse_fn *f, const char *body, struct err *e)
{
    struct arena *a = arena_create(1 << 20);
    struct req *q = NULL;
    int r = a ? f(body, strlen(body), &req_limits_default, a, &q, e) : err_set(e, -ENOMEM, "out of memory");
    assert_true(!r == !!q);
    arena_free(a);
    return r;
}

static int do_completion(struct err *e)
{
    return parse(req_parse_completion,
                 "{\"model\": \"m\", \"prompt\": [\"a\", \"b\"], \"stop\": [\"x\"], \"logit_bias\": {\"3\": 1}, "
                 "\"user\": \"u\", \"stream\": true, \"stream_options\": {\"include_usage\": true}}",
                 e);
}

static int do_ids(struct err *e)
{
    return parse(req_parse_completion, "{\"model\": \"m\", \"prompt\": [[1, 2], [3]], \"n\": 2}", e);
}

static int do_chat(struct err *e)
{
    return parse(req_parse_chat,
                 "{\"model\": \"m\", \"messages\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", "
                 "\"content\": [{\"type\": \"text\", \"text\": \"a\"}, {\"type\": \"text\", \"text\": \"b\"}]}]}",
                 e);
}

static int more(enum req_kind kind, const char *body, struct err *e)
{
    struct arena *a = arena_create(1 << 20);
    struct req *q = NULL;
    int r = a ? req_parse_more(kind, body, strlen(body), &req_limits_default, a, &q, e)
              : err_set(e, -ENOMEM, "out of memory");
    assert_true(!r == !!q);
    arena_free(a);
    return r;
}

static int do_embedding(struct err *e)
{
    return more(REQ_EMBEDDING, "{\"model\": \"m\", \"input\": [\"a\", \"b\"], \"encoding_format\": \"base64\"}", e);
}

static int do_score(struct err *e)
{
    return more(REQ_SCORE, "{\"model\": \"m\", \"text_1\": \"a\", \"text_2\": [\"b\", \"c\"]}", e);
}

static int do_tokenize(struct err *e)
{
    return more(REQ_TOKENIZE, "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", e);
}

static int do_detokenize(struct err *e)
{
    return more(REQ_DETOKENIZE, "{\"model\": \"m\", \"tokens\": [1, 2, 3]}", e);
}

static void test_each(void **s)
{
    (void)s;
    alloc_fail_each("a completion", do_completion, 0);
    alloc_fail_each("token ids", do_ids, 0);
    alloc_fail_each("a chat", do_chat, 0);
    alloc_fail_each("an embedding", do_embedding, 0);
    alloc_fail_each("a score", do_score, 0);
    alloc_fail_each("tokenize", do_tokenize, 0);
    alloc_fail_each("detokenize", do_detokenize, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_each)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
