/* tokenizer_decode.c - ids to text.
 *
 * tok_decode runs the decoders over the list of tokens as the reference does: a step sees all of them (bytes that fall
 * back join their neighbours, the first token loses a space). What each token stands for by itself is worked out once
 * at load (tok_piece) for those who stream. A byte-level tokenizer decodes from the pieces directly. All read-only.
 */
#include "model/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"

/* Tokens on their way through the steps: text[at[i] .. at[i + 1]). */
struct list {
    struct buf text;
    size_t *at, n;
};

static int list_room(struct list *l, size_t n)
{
    l->at = malloc((n + 1) * sizeof *l->at);
    return l->at ? 0 : -ENOMEM;
}

static void list_free(struct list *l)
{
    buf_free(&l->text);
    free(l->at);
}

static void list_end(struct list *l)
{
    l->at[++l->n] = l->text.len;
}

/* ---- one token ---- */

/* <0xNN> as a number, else -1. */
static int fallback_byte(const char *s, size_t n)
{
    int v = 0;
    if (n != 6 || memcmp(s, "<0x", 3) || s[5] != '>')
        return -1;
    for (int i = 3; i < 5; i++) {
        int d = s[i] >= '0' && s[i] <= '9'   ? s[i] - '0'
                : s[i] >= 'A' && s[i] <= 'F' ? s[i] - 'A' + 10
                : s[i] >= 'a' && s[i] <= 'f' ? s[i] - 'a' + 10
                                             : -1;
        if (d < 0)
            return -1;
        v = v * 16 + d;
    }
    return v;
}

/* The bytes of a token in the byte-level alphabet; one with other characters stands for itself. */
static void byte_level(const char *s, size_t n, struct buf *out)
{
    size_t start = out->len;
    for (size_t i = 0; i < n;) {
        uint32_t cp = 0;
        i += utf8_next(s + i, n - i, &cp);
        int b = tok_char_byte(cp);
        if (b < 0) {
            if (out->data)
                out->len = start;
            buf_append(out, s, n);
            return;
        }
        char c = (char)b;
        buf_append(out, &c, 1);
    }
}

static void strip_token(const struct tok_dec *st, const char *s, size_t n, struct buf *out)
{
    size_t k = st->text.n;
    for (size_t i = 0; i < st->start && n >= k && !memcmp(s, st->text.data, k); i++) {
        s += k;
        n -= k;
    }
    for (size_t i = 0; i < st->stop && n >= k && !memcmp(s + n - k, st->text.data, k); i++)
        n -= k;
    buf_append(out, s, n);
}

static void metaspace_token(const struct tok_dec *st, const char *s, size_t n, bool drop, struct buf *out)
{
    for (size_t i = 0; i < n;) {
        const char *hit = memmem(s + i, n - i, st->text.data, st->text.n);
        size_t end = hit ? (size_t)(hit - s) : n;
        buf_append(out, s + i, end - i);
        if (hit && !drop)
            buf_append(out, " ", 1);
        i = end + (hit ? st->text.n : 0);
    }
}

/* ---- all tokens, step by step ---- */

/* A run of fallback bytes: the text they make, or one U+FFFD for each. */
static void fallback_flush(struct list *out, struct buf *run)
{
    if (!run->len)
        return;
    if (utf8_valid(run->data, run->len) == run->len) {
        buf_append(&out->text, run->data, run->len);
        list_end(out);
    } else {
        for (size_t i = 0; i < run->len; i++) {
            buf_puts(&out->text, "\xEF\xBF\xBD");
            list_end(out);
        }
    }
    buf_clear(run);
}

/* As Rust's from_utf8_lossy: one U+FFFD for each longest piece that could have begun a character. */
static void lossy(const char *s, size_t n, struct buf *out)
{
    size_t from = 0;
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        size_t k = utf8_next(s + i, n - i, &cp);
        if (k) {
            i += k;
            continue;
        }
        buf_append(out, s + from, i - from);
        buf_puts(out, "\xEF\xBF\xBD");
        size_t bad = 1;
        while (bad < 3 && i + bad < n && utf8_tail(s + i, bad + 1) == bad + 1)
            bad++;
        i += bad;
        from = i;
    }
    buf_append(out, s + from, n - from);
}

/* Steps that make one text of all tokens. */
static int step_join(const struct tok_dec *st, const struct list *in, struct list *out)
{
    struct buf all = {0};
    for (size_t i = 0; i < in->n && st->kind == DEC_BYTE_LEVEL; i++)
        byte_level(in->text.data + in->at[i], in->at[i + 1] - in->at[i], &all);
    if (st->kind == DEC_BYTE_LEVEL)
        lossy(all.data, all.len, &out->text);
    else
        buf_append(&out->text, in->text.data, in->text.len);
    list_end(out);
    bool failed = all.failed || out->text.failed;
    buf_free(&all);
    return failed ? -ENOMEM : 0;
}

static int step_tokens(const struct tok_dec *st, const struct list *in, struct list *out)
{
    struct buf run = {0};
    struct tok_re_run re = {0};
    int rc = 0;
    for (size_t i = 0; i < in->n && !rc; i++) {
        const char *s = in->text.data ? in->text.data + in->at[i] : "";
        size_t n = in->at[i + 1] - in->at[i];
        int b = st->kind == DEC_BYTE_FALLBACK ? fallback_byte(s, n) : -1;
        if (b >= 0) {
            char c = (char)b;
            buf_append(&run, &c, 1);
            continue;
        }
        fallback_flush(out, &run);
        if (st->kind == DEC_REPLACE)
            rc = tok_replace(&st->pat, &re, s, n, &st->text, &out->text, NULL);
        else if (st->kind == DEC_STRIP)
            strip_token(st, s, n, &out->text);
        else if (st->kind == DEC_METASPACE)
            metaspace_token(st, s, n, !i && st->scheme != PREPEND_NEVER, &out->text);
        else
            buf_append(&out->text, s, n);
        list_end(out);
    }
    fallback_flush(out, &run);
    if (run.failed || out->text.failed)
        rc = -ENOMEM;
    buf_free(&run);
    tok_re_run_free(&re);
    return rc;
}

static int decode_steps(const struct tok *t, struct list *l)
{
    for (size_t i = 0; i < t->n_dec; i++) {
        const struct tok_dec *st = &t->dec[i];
        struct list next = {0};
        if (list_room(&next, l->n + 1))
            return -ENOMEM;
        next.at[0] = 0;
        int rc =
            st->kind == DEC_BYTE_LEVEL || st->kind == DEC_FUSE ? step_join(st, l, &next) : step_tokens(st, l, &next);
        list_free(l);
        *l = next;
        if (rc)
            return rc;
    }
    return 0;
}

static bool known(const struct tok *t, int32_t id, bool skip_special)
{
    return id >= 0 && (uint32_t)id < t->n_ids && t->flags[id] && !(skip_special && (t->flags[id] & TOK_F_SPECIAL));
}

static int decode_pieces(const struct tok *t, const int32_t *ids, size_t n, bool skip_special, struct buf *out)
{
    struct buf all = {0};
    for (size_t i = 0; i < n; i++)
        if (known(t, ids[i], skip_special))
            buf_append(&all, t->piece_blob + t->piece_at[ids[i]], t->piece_at[ids[i] + 1] - t->piece_at[ids[i]]);
    if (!all.failed)
        lossy(all.data, all.len, out);
    bool failed = all.failed;
    buf_free(&all);
    return failed ? -ENOMEM : 0;
}

static int decode_list(const struct tok *t, const int32_t *ids, size_t n, bool skip_special, struct buf *out)
{
    struct list l = {0};
    int rc = list_room(&l, n);
    if (rc)
        return rc;
    l.at[0] = 0;
    for (size_t i = 0; i < n; i++) {
        if (!known(t, ids[i], skip_special))
            continue;
        size_t len;
        const char *s = tok_added_shown(t, ids[i], &len);
        if (!t->has_decoder && l.n)
            buf_append(&l.text, " ", 1);
        buf_append(&l.text, s, len);
        list_end(&l);
    }
    rc = l.text.failed ? -ENOMEM : decode_steps(t, &l);
    if (!rc)
        buf_append(out, l.text.data, l.text.len);
    list_free(&l);
    return rc;
}

int tok_decode(const struct tok *t, const int32_t *ids, size_t n, bool skip_special, struct buf *out)
{
    size_t before = out->len;
    if (out->failed)
        return -ENOMEM;
    int rc = t->n_dec == 1 && t->dec[0].kind == DEC_BYTE_LEVEL ? decode_pieces(t, ids, n, skip_special, out)
                                                               : decode_list(t, ids, n, skip_special, out);
    if (!rc && out->failed)
        rc = out->limit ? -E2BIG : -ENOMEM;
    if (rc && out->data) {
        out->len = before;
        out->data[before] = 0;
    }
    return rc;
}

/* ---- pieces ---- */

static int piece_build(const struct tok *t, const char *s, size_t n, struct tok_re_run *re, struct buf tmp[2],
                       struct buf *out, struct err *e)
{
    size_t turn = 0;
    for (size_t i = 0; i < t->n_dec; i++) {
        const struct tok_dec *st = &t->dec[i];
        struct buf *b = &tmp[turn];
        int byte = st->kind == DEC_BYTE_FALLBACK ? fallback_byte(s, n) : -1, rc = 0;
        buf_clear(b);
        if (byte >= 0) {
            char c = (char)byte;
            buf_append(out, &c, 1);
            return 0;
        }
        if (st->kind == DEC_BYTE_LEVEL)
            byte_level(s, n, b);
        else if (st->kind == DEC_REPLACE)
            rc = tok_replace(&st->pat, re, s, n, &st->text, b, e);
        else if (st->kind == DEC_METASPACE)
            metaspace_token(st, s, n, false, b);
        else
            continue;
        if (rc)
            return rc;
        if (b->failed)
            return err_set(e, -ENOMEM, "out of memory");
        s = b->data ? b->data : "";
        n = b->len;
        turn ^= 1;
    }
    buf_append(out, s, n);
    return 0;
}

int tok_pieces_build(struct tok *t, struct err *e)
{
    struct buf out, tmp[2] = {{0}, {0}};
    struct tok_re_run re = {0};
    int rc = 0;
    buf_init(&out, UINT32_MAX / 2);
    t->piece_at = malloc((t->n_ids + (size_t)1) * sizeof *t->piece_at);
    if (!t->piece_at)
        return err_set(e, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i < t->n_ids && !rc; i++) {
        size_t n;
        const char *s = tok_added_shown(t, (int32_t)i, &n);
        t->piece_at[i] = (uint32_t)out.len;
        rc = piece_build(t, s, n, &re, tmp, &out, e);
    }
    t->piece_at[t->n_ids] = (uint32_t)out.len;
    if (!rc && out.failed)
        rc = err_set(e, -ENOMEM, "out of memory");
    t->piece_blob = out.data;
    buf_free(&tmp[0]);
    buf_free(&tmp[1]);
    tok_re_run_free(&re);
    return rc;
}

int tok_piece(const struct tok *t, int32_t id, const char **bytes, size_t *n)
{
    if (id < 0 || (uint32_t)id >= t->n_ids || !t->flags[id])
        return -EINVAL;
    *bytes = t->piece_blob ? t->piece_blob + t->piece_at[id] : "";
    *n = t->piece_at[id + 1] - t->piece_at[id];
    return 0;
}

bool tok_space_prefix(const struct tok *t)
{
    for (size_t i = 0; i < t->n_dec; i++)
        if ((t->dec[i].kind == DEC_STRIP && t->dec[i].start && t->dec[i].text.data[0] == ' ') ||
            (t->dec[i].kind == DEC_METASPACE && t->dec[i].scheme != PREPEND_NEVER))
            return true;
    return false;
}

const char *tok_written(const struct tok *t, int32_t id, size_t *n)
{
    *n = 0;
    return id >= 0 && (uint32_t)id < t->n_ids ? tok_text(t, id, n) : "";
}
