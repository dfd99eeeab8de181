/* grammar_lib.c - for tests of grammars: a vocabulary, texts by bytes and by tokens, keys in a schema's order. */
#include "tests/unit/model/grammar_lib.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "common/num.h"

int glib_open(const char *golden, struct glib *l, struct err *e)
{
    char path[512], *json = NULL;
    size_t n = 0, k;
    const char *p;
    snprintf(path, sizeof path, "%s/tokenizer/smollm.json", golden);
    memset(l, 0, sizeof *l);
    int r = file_read(path, 1 << 24, &json, &n, e);
    if (!r)
        r = tok_parse(json, n, NULL, 0, &l->t, e);
    free(json);
    if (r)
        return r;
    l->vocab = tok_vocab(l->t);
    l->eos = tok_id(l->t, "<|im_end|>", 10);
    memset(l->byte, 0xFF, sizeof l->byte);
    for (uint32_t id = 0; id < l->vocab; id++)
        if (!tok_is_special(l->t, (int32_t)id) && !tok_piece(l->t, (int32_t)id, &p, &k) && k == 1)
            l->byte[(unsigned char)*p] = (int32_t)id;
    return grammar_vocab_create(l->t, &l->eos, 1, l->vocab, &l->v, e);
}

void glib_close(struct glib *l)
{
    grammar_vocab_free(l->v);
    tok_close(l->t);
}

int glib_compile(const struct glib *l, enum grammar_kind kind, const char *text, size_t n, struct grammar **out,
                 struct err *e)
{
    struct grammar_spec s = {.kind = kind, .text = {text, n}};
    return grammar_compile(l->v, &s, NULL, out, e);
}

static bool may_end(const struct glib *l, struct grammar_state *s)
{
    const uint32_t *mask;
    return !grammar_mask(s, &mask) && (mask[l->eos / 32] >> (l->eos % 32) & 1);
}

bool glib_accepts(const struct glib *l, struct grammar *g, const char *text, size_t n, size_t *at)
{
    struct grammar_state *s = NULL;
    size_t i = 0;
    bool ok = !grammar_state_open(g, &s);
    for (; ok && i < n; i++)
        if (l->byte[(unsigned char)text[i]] < 0 || grammar_accept(s, l->byte[(unsigned char)text[i]])) {
            ok = false;
            break;
        }
    if (at)
        *at = i;
    ok = ok && may_end(l, s);
    grammar_state_close(s);
    return ok;
}

static int32_t pick(const struct glib *l, const uint32_t *mask, uint64_t seed, uint64_t step)
{
    uint32_t n = 0, words = (l->vocab + 31) / 32;
    for (uint32_t i = 0; i < words; i++)
        n += (uint32_t)__builtin_popcount(mask[i]);
    if (!n)
        return -1;
    uint32_t k = (uint32_t)(rng_bits(seed, 1, step) % n);
    for (uint32_t i = 0; i < words; i++) {
        uint32_t c = (uint32_t)__builtin_popcount(mask[i]);
        if (k >= c) {
            k -= c;
            continue;
        }
        for (uint32_t b = 0; b < 32; b++)
            if ((mask[i] >> b & 1) && !k--)
                return (int32_t)(32 * i + b);
    }
    return -1;
}

/* Past `soft` tokens: what brings a JSON text to its end soonest. */
static int32_t closing(const struct glib *l, const uint32_t *mask)
{
    static const char first[] = "}]\"";
    for (const char *p = first; *p; p++) {
        int32_t id = l->byte[(unsigned char)*p];
        if (mask[id / 32] >> (id % 32) & 1)
            return id;
    }
    return -1;
}

bool glib_random(const struct glib *l, struct grammar *g, uint64_t seed, int soft, int hard, struct buf *out)
{
    struct grammar_state *s = NULL;
    bool done = false, ok = !grammar_state_open(g, &s);
    for (int i = 0; ok && !done && i < hard; i++) {
        const uint32_t *mask;
        const char *p;
        size_t n;
        int32_t id = -1;
        if (grammar_mask(s, &mask))
            break;
        bool end = mask[l->eos / 32] >> (l->eos % 32) & 1;
        if (i >= soft && end)
            id = l->eos;
        else if (i >= soft && rng_bits(seed, 2, (uint64_t)i) % 4)
            id = closing(l, mask);
        if (id < 0)
            id = pick(l, mask, seed, (uint64_t)i);
        ok = id >= 0 && !grammar_accept(s, id);
        done = id == l->eos;
        if (ok && !done && !tok_piece(l->t, id, &p, &n))
            buf_append(out, p, n);
    }
    grammar_state_close(s);
    if (!ok)
        out->failed = true;
    return ok && done;
}

/* ---- keys in order ---- */

struct parts {
    const json_t *s[512];
    size_t n;
};

static const json_t *resolve(const json_t *root, const char *ref)
{
    const json_t *at = root;
    char part[256];
    if (*ref++ != '#')
        return NULL;
    while (at && *ref == '/') {
        size_t n = 0;
        for (ref++; *ref && *ref != '/' && n + 1 < sizeof part; ref++) {
            part[n] = *ref;
            if (*ref == '~' && (ref[1] == '0' || ref[1] == '1'))
                part[n] = *++ref == '0' ? '~' : '/';
            unsigned x;
            if (*ref == '%' && sscanf(ref + 1, "%2x", &x) == 1) {
                part[n] = (char)x;
                ref += 2;
            }
            n++;
        }
        part[n] = 0;
        at = json_is_array(at) ? json_array_get(at, (size_t)atoi(part)) : json_object_get(at, part);
    }
    return at;
}

/* The subschemas that speak of the same value, in the order of the text; choices behind what is certain. */
static void applied(struct parts *p, const json_t *s, const json_t *root)
{
    static const char *const one[] = {"then", "else", "if"};
    const char *key;
    json_t *v, *x;
    size_t i;
    if (!json_is_object(s) || p->n >= 512)
        return;
    for (i = 0; i < p->n; i++)
        if (p->s[i] == s)
            return;
    p->s[p->n++] = s;
    json_object_foreach((json_t *)(uintptr_t)s, key, v)
    {
        if (!strcmp(key, "$ref") && json_is_string(v))
            applied(p, resolve(root, json_string_value(v)), root);
        if (!strcmp(key, "allOf"))
            json_array_foreach(v, i, x) applied(p, x, root);
    }
    json_object_foreach((json_t *)(uintptr_t)s, key, v)
    {
        if (!strcmp(key, "anyOf") || !strcmp(key, "oneOf"))
            json_array_foreach(v, i, x) applied(p, x, root);
        for (int k = 0; k < 3; k++)
            if (!strcmp(key, one[k]))
                applied(p, v, root);
    }
}

static json_t *order(const json_t *v, const struct parts *p, const json_t *root);

static void children(struct parts *to, const struct parts *p, const char *key, const json_t *root)
{
    to->n = 0;
    for (size_t i = 0; i < p->n; i++) {
        json_t *own = json_object_get(json_object_get(p->s[i], "properties"), key);
        json_t *pattern = json_object_get(p->s[i], "patternProperties"), *x;
        const char *k;
        if (own)
            applied(to, own, root);
        else
            applied(to, json_object_get(p->s[i], "additionalProperties"), root);
        json_object_foreach(pattern, k, x) applied(to, x, root);
    }
}

static json_t *order_object(const json_t *v, const struct parts *p, const json_t *root)
{
    json_t *out = json_object(), *x, *y;
    struct parts *to = malloc(sizeof *to);
    const char *key;
    size_t k;
    for (size_t i = 0; i < p->n; i++)
        json_object_foreach(json_object_get(p->s[i], "properties"), key, x)
        {
            y = json_object_get(v, key);
            children(to, p, key, root);
            if (y && !json_object_get(out, key))
                json_object_set_new(out, key, order(y, to, root));
        }
    for (size_t i = 0; i < p->n; i++)
        json_array_foreach(json_object_get(p->s[i], "required"), k, x)
        {
            key = json_string_value(x);
            y = key ? json_object_get(v, key) : NULL;
            if (!y || json_object_get(out, key))
                continue;
            children(to, p, key, root);
            json_object_set_new(out, key, order(y, to, root));
        }
    json_object_foreach((json_t *)(uintptr_t)v, key, x)
    {
        if (json_object_get(out, key))
            continue;
        children(to, p, key, root);
        json_object_set_new(out, key, order(x, to, root));
    }
    free(to);
    return out;
}

static json_t *order(const json_t *v, const struct parts *p, const json_t *root)
{
    if (json_is_object(v))
        return order_object(v, p, root);
    if (!json_is_array(v))
        return json_deep_copy(v);
    json_t *out = json_array(), *x;
    struct parts *to = malloc(sizeof *to);
    size_t i, k;
    json_array_foreach(v, i, x)
    {
        to->n = 0;
        for (k = 0; k < p->n; k++) {
            json_t *items = json_object_get(p->s[k], "items"), *prefix = json_object_get(p->s[k], "prefixItems");
            applied(to, json_is_array(items) ? json_array_get(items, i) : items, root);
            applied(to, json_array_get(prefix, i), root);
            applied(to, json_object_get(p->s[k], "additionalItems"), root);
            applied(to, json_object_get(p->s[k], "contains"), root);
        }
        json_array_append_new(out, order(x, to, root));
    }
    free(to);
    return out;
}

json_t *glib_order(const json_t *v, const json_t *schema)
{
    struct parts *p = malloc(sizeof *p);
    p->n = 0;
    applied(p, schema, schema);
    json_t *out = order(v, p, schema);
    free(p);
    return out;
}
