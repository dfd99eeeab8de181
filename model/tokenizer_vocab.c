/* tokenizer_vocab.c - the table of tokens: id -> text and text -> id.
 *
 * Built once at load by the loading thread, read by all afterwards. The texts lie one after the other in one block, in
 * the order of their ids, so that a vocabulary of 49,152 tokens is four allocations. The map from text to id is open
 * addressing at most half full. A text has one id: an added token that the model knows too must carry the model's id.
 */
#include "model/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#include "common/checked.h"

uint64_t tok_hash(const char *p, size_t n)
{
    uint64_t h = 0x9E3779B97F4A7C15u ^ n;
    while (n >= 8) {
        uint64_t v;
        memcpy(&v, p, 8);
        h = (h ^ v) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
        p += 8;
        n -= 8;
    }
    uint64_t v = 0;
    memcpy(&v, p, n);
    h = (h ^ v) * 0xD6E8FEB86659FD93u;
    h ^= h >> 32;
    h *= 0x9E3779B97F4A7C15u;
    return h ^ h >> 29;
}

/* One token on its way into the table. */
struct entry {
    const char *text;
    size_t n;
    uint8_t flags;
};

static int entry_put(struct entry *list, int32_t id, const char *text, size_t n, uint8_t flags, struct err *e)
{
    struct entry *at = &list[id];
    if (at->flags && (at->n != n || memcmp(at->text, text, n)))
        return err_set(e, -EINVAL, "tokenizer.json: id %d stands for both \"%.40s\" and \"%.40s\"", id, at->text, text);
    at->text = text;
    at->n = n;
    at->flags |= flags;
    return 0;
}

static int vocab_top(const struct tok *t, const json_t *vocab, uint32_t *n_ids, struct err *e)
{
    const char *key;
    json_t *v;
    json_int_t top = -1;
    json_object_foreach((json_t *)vocab, key, v)
    {
        json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;
        if (id < 0 || id >= TOK_ID_MAX)
            return err_set(e, -EINVAL, "tokenizer.json: model.vocab[\"%.40s\"] must be an id from 0 to %d", key,
                           TOK_ID_MAX - 1);
        if (id > top)
            top = id;
    }
    for (size_t i = 0; i < t->n_added; i++)
        if (t->added[i].id > top)
            top = t->added[i].id;
    size_t count = json_object_size(vocab) + t->n_added;
    if (top > 0 && (size_t)top > 8 * count + 65536)
        return err_set(e, -EINVAL, "tokenizer.json: id %lld is far above the number of tokens, %zu", (long long)top,
                       count);
    *n_ids = (uint32_t)(top + 1);
    return 0;
}

static int vocab_fill(struct tok *t, const struct entry *list, struct err *e)
{
    size_t total = 0;
    for (uint32_t i = 0; i < t->n_ids; i++)
        if (ck_add(total, list[i].n, &total) || total > UINT32_MAX / 2)
            return err_set(e, -E2BIG, "tokenizer.json: the vocabulary's text is longer than 2 GiB");
    uint32_t mask = 63;
    while (mask / 2 < t->n_ids)
        mask = mask * 2 + 1;
    t->blob = malloc(total + 1);
    t->at = malloc((t->n_ids + 1) * sizeof *t->at);
    t->flags = calloc(t->n_ids + 1, 1);
    t->map = malloc((mask + (size_t)1) * sizeof *t->map);
    if (!t->blob || !t->at || !t->flags || !t->map)
        return err_set(e, -ENOMEM, "out of memory");
    t->map_mask = mask;
    memset(t->map, 0xFF, (mask + (size_t)1) * sizeof *t->map);
    uint32_t off = 0;
    for (uint32_t i = 0; i < t->n_ids; i++) {
        t->at[i] = off;
        t->flags[i] = list[i].flags;
        if (!list[i].flags)
            continue;
        memcpy(t->blob + off, list[i].text, list[i].n);
        off += (uint32_t)list[i].n;
        uint64_t h = tok_hash(list[i].text, list[i].n) & mask;
        while (t->map[h] != TOK_NONE)
            h = (h + 1) & mask;
        t->map[h] = i;
    }
    t->at[t->n_ids] = off;
    t->blob[off] = 0;
    return 0;
}

/* Two ids for one text: the map would answer with either. */
static int vocab_check(const struct tok *t, struct err *e)
{
    for (size_t i = 0; i < t->n_added; i++) {
        int32_t id = tok_vocab_find(t, t->added[i].text.data, t->added[i].text.n, 0);
        if (id != t->added[i].id)
            return err_set(e, -EINVAL, "tokenizer.json: added_tokens[%zu] \"%.40s\" has id %d, but also id %d", i,
                           t->added[i].text.data, t->added[i].id, id);
    }
    return 0;
}

int tok_vocab_build(struct tok *t, const json_t *vocab, struct err *e)
{
    if (!json_is_object(vocab))
        return err_set(e, -EINVAL, "tokenizer.json: model.vocab must be an object");
    int rc = vocab_top(t, vocab, &t->n_ids, e);
    if (rc)
        return rc;
    if (!t->n_ids)
        return err_set(e, -EINVAL, "tokenizer.json: model.vocab is empty");
    struct entry *list = calloc(t->n_ids, sizeof *list);
    if (!list)
        return err_set(e, -ENOMEM, "out of memory");
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)vocab, key, v)
    {
        rc = entry_put(list, (int32_t)json_integer_value(v), key, strlen(key), TOK_F_MODEL, e);
        if (rc)
            break;
    }
    for (size_t i = 0; i < t->n_added && !rc; i++) {
        const struct tok_added *a = &t->added[i];
        rc = entry_put(list, a->id, a->text.data, a->text.n, TOK_F_ADDED | (a->special ? TOK_F_SPECIAL : 0), e);
    }
    if (!rc)
        rc = vocab_fill(t, list, e);
    free(list);
    return rc ? rc : vocab_check(t, e);
}

int32_t tok_vocab_find(const struct tok *t, const char *p, size_t n, uint8_t flag)
{
    uint64_t h = tok_hash(p, n) & t->map_mask;
    for (; t->map[h] != TOK_NONE; h = (h + 1) & t->map_mask) {
        uint32_t id = t->map[h];
        if (t->at[id + 1] - t->at[id] == n && !memcmp(t->blob + t->at[id], p, n))
            return !flag || (t->flags[id] & flag) ? (int32_t)id : -1;
    }
    return -1;
}

int32_t tok_id(const struct tok *t, const char *piece, size_t n)
{
    return tok_vocab_find(t, piece, n, 0);
}

uint32_t tok_vocab(const struct tok *t)
{
    return t->n_ids;
}

bool tok_is_special(const struct tok *t, int32_t id)
{
    return id >= 0 && (uint32_t)id < t->n_ids && (t->flags[id] & TOK_F_SPECIAL);
}
