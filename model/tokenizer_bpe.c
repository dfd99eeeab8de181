/* tokenizer_bpe.c - byte pair encoding of one word.
 *
 * A word becomes a list of initial symbols (characters, or bytes where a character is unknown), and the adjacent pair
 * of lowest rank (leftmost among equals) merges until none does. Two facts keep this fast on any text:
 * - a boundary between two initial symbols that no merge joins is never crossed, so the symbols between two such
 *   boundaries can be merged alone; t->joints holds the pairs that some merge does join;
 * - what is left is merged in place when short, and with a heap and a linked list when long: O(n log n).
 * Tables are built once at load and shared; scratch belongs to the run, and its size follows the longest word.
 */
#include "model/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#include "common/checked.h"
#include "common/utf8.h"

#define SHORT_WORD 24 /* merged in place up to here */

static uint64_t mix(uint64_t k)
{
    k *= 0x9E3779B97F4A7C15u;
    return k ^ k >> 32;
}

static uint64_t pair_key(int32_t a, int32_t b)
{
    return (uint64_t)(uint32_t)a << 32 | (uint32_t)b;
}

static const struct tok_pair *pair_find(const struct tok *t, int32_t a, int32_t b)
{
    uint64_t key = pair_key(a, b);
    for (uint64_t h = mix(key) & t->pair_mask;; h = (h + 1) & t->pair_mask) {
        const struct tok_pair *p = &t->pairs[h];
        if (p->key == key)
            return p;
        if (p->key == TOK_NO_PAIR)
            return NULL;
    }
}

static bool joint_find(const struct tok *t, int32_t a, int32_t b)
{
    uint64_t key = pair_key(a, b);
    for (uint64_t h = mix(key) & t->joint_mask;; h = (h + 1) & t->joint_mask) {
        if (t->joints[h] == key)
            return true;
        if (t->joints[h] == TOK_NO_PAIR)
            return false;
    }
}

/* ---- building ---- */

/* One merge's two sides, from "a b" or ["a", "b"]. */
static bool merge_sides(const json_t *m, const char **a, size_t *na, const char **b, size_t *nb)
{
    if (json_is_string(m)) {
        const char *s = json_string_value(m), *space = memchr(s, ' ', json_string_length(m));
        if (!space || memchr(space + 1, ' ', json_string_length(m) - (size_t)(space + 1 - s)))
            return false;
        *a = s;
        *na = (size_t)(space - s);
        *b = space + 1;
        *nb = json_string_length(m) - *na - 1;
        return true;
    }
    if (!json_is_array(m) || json_array_size(m) != 2)
        return false;
    const json_t *ja = json_array_get(m, 0), *jb = json_array_get(m, 1);
    if (!json_is_string(ja) || !json_is_string(jb))
        return false;
    *a = json_string_value(ja);
    *na = json_string_length(ja);
    *b = json_string_value(jb);
    *nb = json_string_length(jb);
    return true;
}

static int32_t char_symbol(const struct tok *t, const char *s, size_t n)
{
    return tok_vocab_find(t, s, n, TOK_F_MODEL);
}

/* Notes that left's last initial symbol and right's first may meet in a merge. */
static void joint_add(struct tok *t, const char *a, size_t na, const char *b, size_t nb)
{
    size_t k = 1, first;
    uint32_t cp;
    while (k < na && (a[na - k] & 0xC0) == 0x80)
        k++;
    first = utf8_next(b, nb, &cp);
    int32_t ia = char_symbol(t, a + na - k, k), ib = char_symbol(t, b, first);
    if (ia < 0 || ib < 0 || joint_find(t, ia, ib))
        return;
    uint64_t h = mix(pair_key(ia, ib)) & t->joint_mask;
    while (t->joints[h] != TOK_NO_PAIR)
        h = (h + 1) & t->joint_mask;
    t->joints[h] = pair_key(ia, ib);
}

/* Symbols that a character did not make by itself (bytes, unk) may merge as well: then no boundary is sure. */
static bool odd_symbol(const struct tok *t, int32_t id)
{
    if (id == t->unk)
        return true;
    for (int b = 0; t->byte_fallback && b < 256; b++)
        if (t->byte_id[b] == id)
            return true;
    return false;
}

static int merge_add(struct tok *t, const json_t *m, size_t rank, struct buf *joined, struct err *e)
{
    const char *a = NULL, *b = NULL;
    size_t na = 0, nb = 0;
    if (!merge_sides(m, &a, &na, &b, &nb) || !na || !nb)
        return err_set(e, -EINVAL, "tokenizer.json: model.merges[%zu] must be two tokens", rank);
    buf_clear(joined);
    buf_append(joined, a, na);
    buf_append(joined, b, nb);
    if (joined->failed)
        return err_set(e, -ENOMEM, "out of memory");
    int32_t ia = char_symbol(t, a, na), ib = char_symbol(t, b, nb), id = char_symbol(t, joined->data, joined->len);
    if (ia < 0 || ib < 0 || id < 0)
        return err_set(e, -EINVAL, "tokenizer.json: model.merges[%zu]: \"%.40s\" is not in model.vocab", rank,
                       ia < 0   ? a
                       : ib < 0 ? b
                                : joined->data);
    uint64_t key = pair_key(ia, ib), h = mix(key) & t->pair_mask;
    while (t->pairs[h].key != TOK_NO_PAIR && t->pairs[h].key != key)
        h = (h + 1) & t->pair_mask;
    t->pairs[h] = (struct tok_pair){.key = key, .rank = (uint32_t)rank, .id = id};
    joint_add(t, a, na, b, nb);
    return 0;
}

/* Bytes, unk and single characters, looked up once. */
static void symbols_build(struct tok *t)
{
    for (uint32_t cp = 0; cp < 2048; cp++) {
        char c[4];
        size_t n = utf8_put(cp, c);
        t->low_cp[cp] = char_symbol(t, c, n);
    }
    for (unsigned b = 0; b < 256; b++) {
        char c[8];
        snprintf(c, sizeof c, "<0x%02X>", b);
        t->byte_id[b] = char_symbol(t, c, 6);
    }
}

int tok_bpe_build(struct tok *t, const json_t *merges, struct err *e)
{
    if (!json_is_array(merges) || json_array_size(merges) > (size_t)TOK_ID_MAX * 2)
        return err_set(e, -EINVAL, "tokenizer.json: model.merges must be an array of at most %d", TOK_ID_MAX * 2);
    size_t n = json_array_size(merges), slots = 64;
    while (slots < n * 2)
        slots *= 2;
    t->pairs = malloc(slots * sizeof *t->pairs);
    t->joints = malloc(slots * sizeof *t->joints);
    if (!t->pairs || !t->joints)
        return err_set(e, -ENOMEM, "out of memory");
    t->pair_mask = t->joint_mask = slots - 1;
    memset(t->pairs, 0xFF, slots * sizeof *t->pairs);
    memset(t->joints, 0xFF, slots * sizeof *t->joints);
    symbols_build(t);
    struct buf joined;
    buf_init(&joined, 0);
    int rc = 0;
    for (size_t i = 0; i < n && !rc; i++)
        rc = merge_add(t, json_array_get(merges, i), i, &joined, e);
    buf_free(&joined);
    t->joints_exact = true;
    for (size_t i = 0; i < slots && !rc; i++)
        if (t->pairs[i].key != TOK_NO_PAIR && (t->unk >= 0 || t->byte_fallback) &&
            (odd_symbol(t, (int32_t)(t->pairs[i].key >> 32)) || odd_symbol(t, (int32_t)(t->pairs[i].key & UINT32_MAX))))
            t->joints_exact = false;
    return rc;
}

/* ---- output ---- */

int tok_ids_push(struct tok_ids *out, int32_t id)
{
    if (out->limit && out->n >= out->limit)
        return -E2BIG;
    if (out->n == out->cap) {
        size_t cap = out->cap ? out->cap * 2 : 64, bytes;
        if (ck_mul(cap, sizeof *out->id, &bytes))
            return -ENOMEM;
        int32_t *p = realloc(out->id, bytes);
        if (!p)
            return -ENOMEM;
        out->id = p;
        out->cap = cap;
    }
    out->id[out->n++] = id;
    return 0;
}

static int push(struct tok_run *r, int32_t id)
{
    int rc = tok_ids_push(r->out, id);
    if (rc == -E2BIG)
        return err_set(r->e, rc, "the text has more than %zu tokens", r->out->limit);
    return rc ? err_set(r->e, rc, "out of memory") : 0;
}

/* ---- a word ---- */

static int sym_room(struct tok_run *r, size_t n)
{
    if (n <= r->sym_cap)
        return 0;
    size_t cap = 64, bytes;
    while (cap < n)
        cap *= 2;
    if (ck_mul(cap, 3 * sizeof *r->sym, &bytes))
        return err_set(r->e, -ENOMEM, "out of memory");
    int32_t *p = malloc(bytes);
    if (!p)
        return err_set(r->e, -ENOMEM, "out of memory");
    free(r->sym);
    r->sym = p;
    r->sym_cap = cap;
    return 0;
}

/* All bytes of a character as byte symbols; false when one of them is missing. */
static bool put_bytes(const struct tok *t, const char *s, size_t k, int32_t *sym, size_t *n)
{
    for (size_t i = 0; i < k; i++)
        if (t->byte_id[(uint8_t)s[i]] < 0)
            return false;
    for (size_t i = 0; i < k; i++)
        sym[(*n)++] = t->byte_id[(uint8_t)s[i]];
    return true;
}

/* The initial symbols of s[0..n) into r->sym (room for n). A run of unknown characters is put when a known one comes
 * (byte symbols do not end it), which is what the reference does. */
static size_t word_symbols(struct tok_run *r, const char *s, size_t n)
{
    const struct tok *t = r->t;
    size_t k = 0, pending = 0;
    for (size_t i = 0; i < n;) {
        uint32_t cp = 0;
        size_t len = utf8_next(s + i, n - i, &cp);
        int32_t id = cp < 2048 ? t->low_cp[cp] : char_symbol(t, s + i, len);
        if (id >= 0) {
            if (pending)
                r->sym[k++] = t->unk;
            pending = 0;
            r->sym[k++] = id;
        } else if (!(t->byte_fallback && put_bytes(t, s + i, len, r->sym, &k)) && t->unk >= 0) {
            if (pending && !t->fuse_unk)
                r->sym[k++] = t->unk;
            pending = 1;
        }
        i += len;
    }
    if (pending)
        r->sym[k++] = t->unk;
    return k;
}

/* Merges sym[0..n), n small; returns how many are left. */
static size_t merge_short(const struct tok *t, int32_t *sym, size_t n)
{
    uint32_t rank[SHORT_WORD];
    int32_t made[SHORT_WORD];
    for (size_t i = 0; i + 1 < n; i++) {
        const struct tok_pair *p = pair_find(t, sym[i], sym[i + 1]);
        rank[i] = p ? p->rank : UINT32_MAX;
        made[i] = p ? p->id : 0;
    }
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best])
                best = i;
        if (rank[best] == UINT32_MAX)
            break;
        sym[best] = made[best];
        n--;
        for (size_t i = best + 1; i < n; i++) {
            sym[i] = sym[i + 1];
            rank[i - 1] = rank[i];
            made[i - 1] = made[i];
        }
        for (size_t i = best ? best - 1 : 0; i <= best && i + 1 < n; i++) {
            const struct tok_pair *p = pair_find(t, sym[i], sym[i + 1]);
            rank[i] = p ? p->rank : UINT32_MAX;
            made[i] = p ? p->id : 0;
        }
    }
    return n;
}

static void heap_down(uint64_t *h, size_t n, size_t i)
{
    uint64_t v = h[i];
    for (;;) {
        size_t c = 2 * i + 1;
        if (c >= n)
            break;
        if (c + 1 < n && h[c + 1] < h[c])
            c++;
        if (h[c] >= v)
            break;
        h[i] = h[c];
        i = c;
    }
    h[i] = v;
}

static void heap_push(uint64_t *h, size_t *n, uint64_t v)
{
    size_t i = (*n)++;
    while (i && h[(i - 1) / 2] > v) {
        h[i] = h[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    h[i] = v;
}

static int heap_room(struct tok_run *r, size_t n)
{
    if (n <= r->heap_cap)
        return 0;
    size_t bytes;
    uint64_t *p = ck_mul(n, sizeof *p, &bytes) ? NULL : malloc(bytes);
    if (!p)
        return err_set(r->e, -ENOMEM, "out of memory");
    free(r->heap);
    r->heap = p;
    r->heap_cap = n;
    return 0;
}

/* The long way: heap of (rank, place), list of the symbols alive. A place whose pair has another rank by now is stale
 * and dropped. Each merge adds two at most, so 3n entries are enough. next and prev are scratch for n each. */
static int merge_long(struct tok_run *r, int32_t *sym, int32_t *next, int32_t *prev, size_t n, size_t *left)
{
    const struct tok *t = r->t;
    int rc = heap_room(r, 3 * n);
    if (rc)
        return rc;
    uint64_t *h = r->heap;
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        next[i] = (int32_t)i + 1;
        prev[i] = (int32_t)i - 1;
        const struct tok_pair *p = i + 1 < n ? pair_find(t, sym[i], sym[i + 1]) : NULL;
        if (p)
            h[k++] = (uint64_t)p->rank << 32 | i;
    }
    for (size_t i = k / 2; i-- > 0;)
        heap_down(h, k, i);
    while (k) {
        int32_t at = (int32_t)(h[0] & UINT32_MAX), to;
        uint32_t rank = (uint32_t)(h[0] >> 32);
        h[0] = h[--k];
        if (k)
            heap_down(h, k, 0);
        if (sym[at] < 0 || (to = next[at]) >= (int32_t)n)
            continue;
        const struct tok_pair *p = pair_find(t, sym[at], sym[to]);
        if (!p || p->rank != rank)
            continue;
        sym[at] = p->id;
        sym[to] = -1;
        next[at] = next[to];
        if (next[at] < (int32_t)n) {
            prev[next[at]] = at;
            if ((p = pair_find(t, sym[at], sym[next[at]])))
                heap_push(h, &k, (uint64_t)p->rank << 32 | (uint32_t)at);
        }
        if (prev[at] >= 0 && (p = pair_find(t, sym[prev[at]], sym[at])))
            heap_push(h, &k, (uint64_t)p->rank << 32 | (uint32_t)prev[at]);
    }
    size_t o = 0;
    for (size_t i = 0; i < n; i++)
        if (sym[i] >= 0)
            sym[o++] = sym[i];
    *left = o;
    return 0;
}

/* Merges and puts out the symbols sym[0..n). */
static int merge_out(struct tok_run *r, size_t from, size_t n)
{
    int32_t *sym = r->sym + from;
    if (n <= SHORT_WORD) {
        n = merge_short(r->t, sym, n);
    } else {
        int rc = merge_long(r, sym, r->sym + r->sym_cap, r->sym + 2 * r->sym_cap, n, &n);
        if (rc)
            return rc;
    }
    for (size_t i = 0; i < n; i++) {
        int rc = push(r, sym[i]);
        if (rc)
            return rc;
    }
    return 0;
}

static int word_merge(struct tok_run *r, const char *s, size_t n)
{
    int rc = sym_room(r, n + 1);
    if (rc)
        return rc;
    size_t k = word_symbols(r, s, n), from = 0;
    if (k > SHORT_WORD && r->t->joints_exact) {
        for (size_t i = 1; i < k; i++) {
            if (joint_find(r->t, r->sym[i - 1], r->sym[i]))
                continue;
            if ((rc = merge_out(r, from, i - from)))
                return rc;
            from = i;
        }
    }
    return merge_out(r, from, k - from);
}

int tok_bpe_word(struct tok_run *r, const char *s, size_t n)
{
    if (r->t->ignore_merges) {
        int32_t id = char_symbol(r->t, s, n);
        if (id >= 0)
            return push(r, id);
    }
    if (!r->cache || n > TOK_CACHE_KEY)
        return word_merge(r, s, n);
    struct tok_cached *c = &r->cache[tok_hash(s, n) % TOK_CACHE];
    int rc = 0;
    if (c->n == n && !memcmp(c->key, s, n)) {
        for (size_t i = 0; i < c->n_ids && !rc; i++)
            rc = push(r, r->out->id[c->at + i]);
        return rc;
    }
    size_t at = r->out->n;
    rc = word_merge(r, s, n);
    if (!rc) {
        memcpy(c->key, s, n);
        c->n = (uint8_t)n;
        c->n_ids = (uint32_t)(r->out->n - at);
        c->at = at;
    }
    return rc;
}
