/* tokenizer_added.c - added tokens: reading them, and finding them in a text.
 *
 * Matches are leftmost, then longest. The texts are sorted, so that those which begin with what was read so far are
 * neighbours: a search narrows that range byte by byte. Built by the loading thread; read by all afterwards.
 */
#include "model/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"

#define ADDED_MAX 65536
#define ADDED_TEXT_MAX 1024

static int added_read(const json_t *j, size_t i, struct tok_added *a, struct err *e)
{
    char where[40];
    snprintf(where, sizeof where, "added_tokens[%zu]", i);
    const char *text;
    size_t n;
    int rc = tok_json_str(j, where, "content", &text, &n, e);
    if (rc)
        return rc;
    if (!text || !n || n > ADDED_TEXT_MAX)
        return err_set(e, -EINVAL, "tokenizer.json: %s.content must be 1 to %d bytes", where, ADDED_TEXT_MAX);
    const json_t *id = json_object_get(j, "id");
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= TOK_ID_MAX)
        return err_set(e, -EINVAL, "tokenizer.json: %s.id must be an id from 0 to %d", where, TOK_ID_MAX - 1);
    a->id = (int32_t)json_integer_value(id);
    if ((rc = tok_json_bool(j, where, "special", false, &a->special, e)) ||
        (rc = tok_json_bool(j, where, "single_word", false, &a->single_word, e)) ||
        (rc = tok_json_bool(j, where, "lstrip", false, &a->lstrip, e)) ||
        (rc = tok_json_bool(j, where, "rstrip", false, &a->rstrip, e)) ||
        (rc = tok_json_bool(j, where, "normalized", !a->special, &a->normalized, e)))
        return rc;
    return tok_str_set(&a->text, text, n) ? err_set(e, -ENOMEM, "out of memory") : 0;
}

int tok_added_load(struct tok *t, const json_t *list, struct err *e)
{
    if (!list || json_is_null(list))
        return 0;
    if (!json_is_array(list) || json_array_size(list) > ADDED_MAX)
        return err_set(e, -EINVAL, "tokenizer.json: added_tokens must be an array of at most %d", ADDED_MAX);
    size_t n = json_array_size(list);
    t->added = calloc(n ? n : 1, sizeof *t->added);
    if (!t->added)
        return err_set(e, -ENOMEM, "out of memory");
    t->n_added = n;
    for (size_t i = 0; i < n; i++) {
        int rc = added_read(json_array_get(list, i), i, &t->added[i], e);
        if (rc)
            return rc;
    }
    return 0;
}

static int match_cmp(const void *pa, const void *pb)
{
    const struct tok_str *a = &(*(const struct tok_added *const *)pa)->match;
    const struct tok_str *b = &(*(const struct tok_added *const *)pb)->match;
    int c = memcmp(a->data, b->data, a->n < b->n ? a->n : b->n);
    if (c)
        return c;
    if (a->n != b->n)
        return a->n < b->n ? -1 : 1;
    return *(const struct tok_added *const *)pa < *(const struct tok_added *const *)pb ? -1 : 1;
}

static int matcher_build(const struct tok *t, struct tok_matcher *m, bool normalized, struct err *e)
{
    m->by_match = calloc(t->n_added + 1, sizeof *m->by_match);
    if (!m->by_match)
        return err_set(e, -ENOMEM, "out of memory");
    for (size_t i = 0; i < t->n_added; i++)
        if (t->added[i].normalized == normalized && t->added[i].match.n)
            m->by_match[m->n++] = &t->added[i];
    qsort(m->by_match, m->n, sizeof *m->by_match, match_cmp);
    size_t i = 0;
    for (unsigned b = 0; b < 257; b++) {
        while (i < m->n && (unsigned char)m->by_match[i]->match.data[0] < b)
            i++;
        m->first[b] = (uint32_t)i;
    }
    return 0;
}

int tok_added_index(struct tok *t, struct err *e)
{
    struct tok_re_run re = {0};
    struct buf bufs[2] = {{0}, {0}};
    int rc = 0;
    for (size_t i = 0; i < t->n_added && !rc; i++) {
        struct tok_added *a = &t->added[i];
        const char *s = a->text.data;
        size_t n = a->text.n;
        if (a->normalized)
            rc = tok_normalize(t, &re, bufs, s, n, &s, &n, e);
        if (!rc && tok_str_set(&a->match, s, n))
            rc = err_set(e, -ENOMEM, "out of memory");
        if (!rc && (n != a->text.n || memcmp(s, a->text.data, n)))
            t->flags[a->id] |= TOK_F_SHOWN;
    }
    buf_free(&bufs[0]);
    buf_free(&bufs[1]);
    tok_re_run_free(&re);
    if (!rc)
        rc = matcher_build(t, &t->raw, false, e);
    return rc ? rc : matcher_build(t, &t->normalized, true, e);
}

const char *tok_added_shown(const struct tok *t, int32_t id, size_t *n)
{
    for (size_t i = 0; i < t->n_added && (t->flags[id] & TOK_F_SHOWN); i++)
        if (t->added[i].id == id) {
            *n = t->added[i].match.n;
            return t->added[i].match.data;
        }
    return tok_text(t, id, n);
}

void tok_added_free(struct tok *t)
{
    for (size_t i = 0; i < t->n_added; i++) {
        tok_str_free(&t->added[i].text);
        tok_str_free(&t->added[i].match);
    }
    free(t->added);
    free(t->raw.by_match);
    free(t->normalized.by_match);
}

/* The first of m->by_match[lo..hi) whose byte at depth is at least b; all are longer than depth. */
static size_t matcher_bound(const struct tok_matcher *m, size_t lo, size_t hi, size_t depth, unsigned b)
{
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if ((unsigned char)m->by_match[mid]->match.data[depth] < b)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static const struct tok_added *matcher_longest(const struct tok_matcher *m, const char *s, size_t n)
{
    unsigned b = (unsigned char)s[0];
    size_t lo = m->first[b], hi = m->first[b + 1];
    const struct tok_added *best = NULL;
    for (size_t depth = 1; lo < hi; depth++) {
        if (m->by_match[lo]->match.n == depth) {
            best = m->by_match[lo];
            while (lo < hi && m->by_match[lo]->match.n == depth)
                lo++;
        }
        if (depth >= n)
            break;
        b = (unsigned char)s[depth];
        size_t from = matcher_bound(m, lo, hi, depth, b);
        hi = matcher_bound(m, from, hi, depth, b + 1);
        lo = from;
    }
    return best;
}

/* Start of the character that ends before at (at > 0). */
static size_t char_before(const char *s, size_t at, uint32_t *cp)
{
    size_t k = 1;
    while (k < at && (s[at - k] & 0xC0) == 0x80)
        k++;
    utf8_next(s + at - k, k, cp);
    return at - k;
}

static bool alone(const char *s, size_t n, size_t from, size_t to)
{
    uint32_t cp = 0;
    if (from) {
        char_before(s, from, &cp);
        if (tok_is_word(cp))
            return false;
    }
    if (to < n) {
        utf8_next(s + to, n - to, &cp);
        if (tok_is_word(cp))
            return false;
    }
    return true;
}

const struct tok_added *tok_added_next(const struct tok_matcher *m, const char *s, size_t n, size_t at, size_t floor,
                                       bool skip_special, size_t *from, size_t *to, size_t *next)
{
    while (m->n && at < n) {
        unsigned b = (unsigned char)s[at];
        const struct tok_added *a = m->first[b] < m->first[b + 1] ? matcher_longest(m, s + at, n - at) : NULL;
        if (!a) {
            at++;
            continue;
        }
        *from = at;
        *to = at += a->match.n;
        if ((skip_special && a->special) || (a->single_word && !alone(s, n, *from, *to)))
            continue;
        *next = at;
        uint32_t cp = 0;
        while (a->lstrip && *from > floor) {
            size_t before = char_before(s, *from, &cp);
            if (!tok_is_space(cp))
                break;
            *from = before;
        }
        if (*from < floor)
            *from = floor;
        while (a->rstrip && *to < n) {
            size_t k = utf8_next(s + *to, n - *to, &cp);
            if (!tok_is_space(cp))
                break;
            *to += k;
        }
        return a;
    }
    return NULL;
}
