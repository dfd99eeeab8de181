/* fuzz_tokenizer.c - any bytes as a tokenizer.json and a text: refused, or the text becomes ids that become text.
 *
 * The input is the JSON up to the first NUL, then the text, then, after another NUL, a tokenizer_config.json.
 */
#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"
#include "model/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_ids(const struct tok *t, const struct tok_ids *ids)
{
    size_t total = 0;
    for (size_t i = 0; i < ids->n; i++) {
        const char *s;
        size_t n;
        assert(tok_piece(t, ids->id[i], &s, &n) == 0);
        total += n;
        tok_is_special(t, ids->id[i]);
    }
    for (int skip = 0; skip < 2; skip++) {
        struct buf b;
        buf_init(&b, 1 << 20);
        if (!tok_decode(t, ids->id, ids->n, skip, &b))
            assert(utf8_valid(b.data ? b.data : "", b.len) == b.len);
        buf_free(&b);
    }
    (void)total;
}

static void run(const struct tok *t, const char *text, size_t n)
{
    for (unsigned flags = 0; flags < 4; flags++) {
        struct tok_ids ids = {.limit = 100000};
        struct err e = {0};
        if (!tok_encode(t, text, n, flags, &ids, &e))
            check_ids(t, &ids);
        else
            assert(ids.n == 0 && e.msg[0]);
        tok_ids_free(&ids);
    }
    size_t k;
    const int32_t *eos = tok_eos_ids(t, &k);
    assert(!k || eos);
    tok_chat_template(t, &k);
    assert(tok_bos_text(t) && tok_eos_text(t));
    tok_space_prefix(t);
    int32_t every[] = {-1, 0, 1, 2, 3, 4, 5, 6, 7, (int32_t)tok_vocab(t)};
    struct buf b;
    buf_init(&b, 1 << 20);
    tok_decode(t, every, sizeof every / sizeof *every, false, &b);
    buf_free(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > 1 << 17)
        return 0;
    const char *json = (const char *)data, *end = json + size;
    const char *text = size ? memchr(json, 0, size) : NULL;
    size_t len = text ? (size_t)(text - json) : size;
    text = text ? text + 1 : end;
    const char *config = text < end ? memchr(text, 0, (size_t)(end - text)) : NULL;
    size_t n = (size_t)((config ? config : end) - text);
    struct tok *t = NULL;
    struct err e = {0};
    int rc = tok_parse(json, len, config ? config + 1 : NULL, config ? (size_t)(end - config - 1) : 0, &t, &e);
    assert(rc ? !t && e.msg[0] : !!t);
    if (!rc)
        run(t, text, n);
    tok_close(t);
    return 0;
}
