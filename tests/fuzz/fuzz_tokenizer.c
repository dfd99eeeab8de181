/* fuzz_tokenizer.c - any bytes as a tokenizer.json and a text: refused, or the text becomes ids that become text.
 *
 * The input is parts with a NUL between: the JSON, the text, a tokenizer_config.json. With more parts (the files SIDES
 * below, in that order; an empty part is a file that is not there) it is a directory.
 */
#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"
#include "model/tokenizer.h"
#include "tests/fuzz/scratch.h"

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
    assert(tok_bos_text(t) && tok_eos_text(t) && tok_pad_text(t));
    tok_space_prefix(t);
    assert(tok_bos(t) >= -1 && tok_eos(t) >= -1);
    int32_t every[34];
    for (int32_t i = 0; i < 34; i++)
        every[i] = i < 33 ? i - 1 : (int32_t)tok_vocab(t);
    struct buf b;
    buf_init(&b, 1 << 20);
    tok_decode(t, every, sizeof every / sizeof *every, false, &b);
    buf_free(&b);
}

enum { TOKENIZER, TEXT, CONFIG, PARTS = 7 };

static int open_dir(const struct scratch_part *part, size_t n, struct tok **t, struct err *e)
{
    static const char *const sides[PARTS] = {
        "tokenizer.json",         NULL,          "tokenizer_config.json", "special_tokens_map.json",
        "generation_config.json", "config.json", "chat_template.jinja"};
    const char *dir = scratch_dir();
    for (size_t i = 0; i < n; i++) {
        if (sides[i] && part[i].n)
            scratch_put(sides[i], part[i].p, part[i].n);
    }
    return tok_open(dir, t, e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct scratch_part part[PARTS] = {{0}};
    struct tok *t = NULL;
    struct err e = {0};
    if (size > 1 << 17)
        return 0;
    size_t n = scratch_split(data, size, "", 1, part, PARTS);
    const char *config = n > CONFIG ? (const char *)part[CONFIG].p : NULL;
    int rc = n > CONFIG + 1
                 ? open_dir(part, n, &t, &e)
                 : tok_parse((const char *)part[TOKENIZER].p, part[TOKENIZER].n, config, part[CONFIG].n, &t, &e);
    assert(rc ? !t && e.msg[0] : !!t);
    if (!rc)
        run(t, n > TEXT ? (const char *)part[TEXT].p : "", part[TEXT].n);
    tok_close(t);
    return 0;
}
