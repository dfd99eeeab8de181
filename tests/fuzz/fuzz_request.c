/* fuzz_request.c - any bytes as a completion, a chat and a task's defaults; what parses is written back out. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"
#include "proto/proto.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *body = (const char *)data;
    struct req_limits lim = req_limits_default;
    struct req *r = NULL;
    struct req_sampling *d = NULL;
    struct err e = {0};
    struct arena *a = arena_create(1 << 20);
    struct buf b = {0};
    if (!a)
        return 0;
    req_parse_defaults(body, size, &lim, a, &d, &e);
    if (!req_parse_completion(body, size, &lim, a, &r, &e)) {
        if (!r->model.ptr || !r->n_prompts || !r->n)
            abort();
        if (d)
            req_apply_defaults(r, d);
    }
    r = NULL;
    if (!req_parse_chat(body, size, &lim, a, &r, &e) &&
        utf8_valid(r->messages_json.ptr, r->messages_json.len) != r->messages_json.len)
        abort();
    resp_error(&b, resp_status(e.code), &e, NULL);
    json_put_string(&b, body, size);
    if (b.failed || utf8_valid(b.data, b.len) != b.len)
        abort();
    buf_free(&b);
    arena_free(a);
    return 0;
}
