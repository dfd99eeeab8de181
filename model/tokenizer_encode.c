/* tokenizer_encode.c - text to ids: added tokens first, then normalizers, pre-tokenizers and the BPE on what is
 * between.
 *
 * A call owns its run (scratch, match data, a cache of words already met in this text) and frees it before it returns;
 * the tokenizer itself is only read. Added tokens that are not "normalized" are looked for in the text as it came, the
 * others in what the normalizers made of the stretches between.
 */
#include "model/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"

#define CACHE_FROM 2048 /* bytes of text from which a cache of words pays */

void tok_ids_free(struct tok_ids *ids)
{
    if (!ids)
        return;
    free(ids->id);
    *ids = (struct tok_ids){.limit = ids->limit};
}

static int push_all(struct tok_run *r, const int32_t *id, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int rc = tok_ids_push(r->out, id[i]);
        if (rc == -E2BIG)
            return err_set(r->e, rc, "the text has more than %zu tokens", r->out->limit);
        if (rc)
            return err_set(r->e, rc, "out of memory");
    }
    return 0;
}

static int encode_plain(struct tok_run *r, const char *s, size_t n, unsigned flags, bool at_start);

/* Puts out the added tokens of m in s; what is between goes to the normalizers (raw) or on to the words. */
static int encode_split(struct tok_run *r, const struct tok_matcher *m, const char *s, size_t n, unsigned flags,
                        bool at_start)
{
    bool raw = m == &r->t->raw;
    size_t done = 0, at = 0, from, to;
    const struct tok_added *a;
    int rc = 0;
    while (!rc && (a = tok_added_next(m, s, n, at, done, !(flags & TOK_SPECIAL), &from, &to, &at))) {
        if (from > done)
            rc = raw ? encode_plain(r, s + done, from - done, flags, at_start && !done)
                     : tok_pre_run(r, 0, s + done, from - done, at_start && !done);
        if (!rc)
            rc = push_all(r, &a->id, 1);
        done = to;
    }
    if (!rc && done < n)
        rc = raw ? encode_plain(r, s + done, n - done, flags, at_start && !done)
                 : tok_pre_run(r, 0, s + done, n - done, at_start && !done);
    return rc;
}

static int encode_plain(struct tok_run *r, const char *s, size_t n, unsigned flags, bool at_start)
{
    int rc = tok_normalize(r->t, &r->re, r->norm, s, n, &s, &n, r->e);
    if (!rc && n)
        rc = encode_split(r, &r->t->normalized, s, n, flags, at_start);
    return rc;
}

static void run_free(struct tok_run *r)
{
    tok_re_run_free(&r->re);
    buf_free(&r->norm[0]);
    buf_free(&r->norm[1]);
    for (size_t i = 0; i < TOK_STEPS; i++)
        buf_free(&r->pre[i]);
    free(r->sym);
    free(r->heap);
    free(r->cache);
}

int tok_encode(const struct tok *t, const char *text, size_t n, unsigned flags, struct tok_ids *out, struct err *e)
{
    if (n >= TOK_TEXT_MAX)
        return err_set(e, -E2BIG, "the text is %zu bytes long; the most is %zu", n, TOK_TEXT_MAX - 1);
    size_t valid = utf8_valid(text, n);
    if (valid != n)
        return err_set(e, -EILSEQ, "the text is not valid UTF-8 at byte %zu", valid);
    struct tok_run r = {.t = t, .out = out, .e = e};
    size_t before = out->n;
    r.newer = tok_uni_has_newer(text, n);
    if (n >= CACHE_FROM)
        r.cache = calloc(TOK_CACHE, sizeof *r.cache); /* without it, slower */
    int rc = flags & TOK_POST ? push_all(&r, t->post_before, t->n_before) : 0;
    if (!rc && n)
        rc = encode_split(&r, &t->raw, text, n, flags, true);
    if (!rc && (flags & TOK_POST))
        rc = push_all(&r, t->post_after, t->n_after);
    run_free(&r);
    if (rc)
        out->n = before;
    return rc;
}
