/* grammar_schema.c - the tree of a JSON schema: parsing, nodes, ids, anchors and references.
 *
 * Used while a grammar is compiled, by the thread that compiles; the tree is jansson's, everything else lies in the
 * temporary arena. Nothing is ever fetched: a reference leads into the same document or is refused. The depth of the
 * tree is bounded by the parser, so recursion over it is too.
 */
#include "model/grammar_schema.h"

#include <stdio.h>
#include <string.h>

#include "formats/json.h"

static int add_id(struct gctx *c, struct gschema *s, const struct gids *id)
{
    if (s->n_ids == s->cap_ids) {
        size_t cap = s->cap_ids ? 2 * s->cap_ids : 16;
        struct gids *p = g_tmp(c, cap, sizeof *p);
        if (!p)
            return g_memory_code(c);
        if (s->n_ids)
            memcpy(p, s->ids, s->n_ids * sizeof *p);
        s->ids = p;
        s->cap_ids = cap;
    }
    s->ids[s->n_ids++] = *id;
    return 0;
}

/* `ref` against `base`, as far as ids need it: absolute, a path from the root, a name beside, or a fragment. */
static const char *resolve(struct gctx *c, const char *base, const char *ref)
{
    size_t keep = strcspn(base, "#");
    const char *colon = strchr(ref, ':'), *slash = strchr(ref, '/');
    if (colon && (!slash || colon < slash))
        return ref;
    if (*ref == '#' || !*ref)
        return arena_printf(c->tmp, "%.*s%s", (int)keep, base, ref);
    const char *host = strstr(base, "://");
    size_t root = host ? (size_t)(host + 3 - base) + strcspn(host + 3, "/#") : 0;
    if (*ref == '/')
        return arena_printf(c->tmp, "%.*s%s", (int)root, base, ref);
    while (keep > root && base[keep - 1] != '/')
        keep--;
    return arena_printf(c->tmp, "%.*s%s%s", (int)keep, base, keep == root && root ? "/" : "", ref);
}

const char *gpath(struct gctx *c, const char *base, const char *key)
{
    struct buf b = {0};
    const char *out = NULL;
    buf_puts(&b, base);
    buf_puts(&b, "/");
    for (; *key; key++)
        buf_append(&b, *key == '~' ? "~0" : *key == '/' ? "~1" : key, *key == '~' || *key == '/' ? 2 : 1);
    if (!b.failed)
        out = arena_strndup(c->tmp, b.data, b.len);
    buf_free(&b);
    return out;
}

static int scan_one(struct gctx *c, struct gschema *s, json_t *j, const char *path, const char **base)
{
    const char *id = json_string_value(json_object_get(j, "$id"));
    const char *anchor = json_string_value(json_object_get(j, "$anchor"));
    const char *dynamic = json_string_value(json_object_get(j, "$dynamicAnchor"));
    int r = 0;
    if (!id && s->ref_alone)
        id = json_string_value(json_object_get(j, "id"));
    if (id && s->ref_alone && json_object_get(j, "$ref"))
        id = NULL;
    if (id) {
        const char *uri = resolve(c, *base, id);
        if (!uri)
            return g_memory_code(c);
        if (*id != '#') {
            size_t n = strlen(uri);
            if (n && uri[n - 1] == '#' && !(uri = arena_strndup(c->tmp, uri, n - 1)))
                return g_memory_code(c);
            *base = uri;
        }
        r = add_id(c, s, &(struct gids){.uri = uri, .j = j, .path = path, .base = *base});
    }
    for (int k = 0; k < 2 && !r; k++) {
        const char *name = k ? dynamic : anchor;
        const char *uri = name ? arena_printf(c->tmp, "%s#%s", *base, name) : NULL;
        if (name && !uri)
            return g_memory_code(c);
        if (name)
            r = add_id(c, s, &(struct gids){.uri = uri, .j = j, .path = path, .base = *base, .dynamic = k == 1});
    }
    return r;
}

/* Looks for ids everywhere but in values that are data. */
static int scan(struct gctx *c, struct gschema *s, json_t *j, const char *path, const char *base, bool names)
{
    const char *key;
    json_t *v;
    size_t i;
    int r = g_steps(c, 1);
    if (json_is_object(j)) {
        if (!r && !names)
            r = scan_one(c, s, j, path, &base);
        json_object_foreach(j, key, v)
        {
            if (r)
                return r;
            if (!json_is_object(v) && !json_is_array(v))
                continue;
            if (!names &&
                (!strcmp(key, "enum") || !strcmp(key, "const") || !strcmp(key, "default") || !strcmp(key, "examples")))
                continue;
            bool map = !names && (!strcmp(key, "properties") || !strcmp(key, "patternProperties") ||
                                  !strcmp(key, "$defs") || !strcmp(key, "definitions") ||
                                  !strcmp(key, "dependentSchemas") || !strcmp(key, "dependencies"));
            const char *sub = gpath(c, path, key);
            r = sub ? scan(c, s, v, sub, base, map) : g_memory_code(c);
        }
    } else if (json_is_array(j)) {
        json_array_foreach(j, i, v)
        {
            if (r)
                return r;
            const char *sub = arena_printf(c->tmp, "%s/%zu", path, i);
            r = sub ? scan(c, s, v, sub, base, false) : g_memory_code(c);
        }
    }
    return r;
}

static bool old_draft(const char *uri)
{
    static const char *const old[] = {"draft-03", "draft-04", "draft-05", "draft-06", "draft-07"};
    for (int i = 0; uri && i < 5; i++)
        if (strstr(uri, old[i]))
            return true;
    return false;
}

int gschema_open(struct gctx *c, const char *text, size_t n, struct gschema **out)
{
    struct gschema *s = g_tmp(c, 1, sizeof *s);
    struct json_limits lim = {.depth = c->lim.max_depth, .values = 1 << 18, .scalars = true};
    uint32_t id;
    if (!s)
        return g_memory_code(c);
    *out = c->schema = s; /* from here on gschema_close frees the trees */
    int r = json_parse(text, n, &lim, &s->root, c->e);
    if (r)
        return err_prefix(c->e, r, "schema");
    if (!(s->made = json_array()))
        return err_set(c->e, -ENOMEM, "out of memory");
    if (!json_is_object(s->root) && !json_is_boolean(s->root))
        return err_set(c->e, -EINVAL, "#: a schema is an object or a boolean");
    s->ref_alone = old_draft(json_string_value(json_object_get(s->root, "$schema")));
    r = gdfa_any(c, &s->any);
    if (!r)
        r = gnode_of(c, json_true(), "#", "", &id);
    if (!r)
        r = gnode_of(c, json_false(), "#", "", &id);
    return r ? r : scan(c, s, s->root, "#", "", false);
}

void gschema_close(struct gschema *s)
{
    if (s) {
        json_decref(s->root);
        json_decref(s->made);
    }
}

/* ---- nodes ---- */

static size_t pointer_hash(const json_t *j)
{
    uint64_t x = (uint64_t)(uintptr_t)j * 0x9E3779B97F4A7C15u;
    return (size_t)(x >> 20);
}

static int nodes_grow(struct gctx *c, struct gschema *s)
{
    size_t cap = s->cap_nodes ? 2 * s->cap_nodes : 64;
    struct gnode *p = g_tmp(c, cap, sizeof *p);
    uint32_t *slot = g_tmp(c, 2 * cap, sizeof *slot);
    if (!p || !slot)
        return g_memory_code(c);
    if (s->n_nodes)
        memcpy(p, s->node, s->n_nodes * sizeof *p);
    s->node = p;
    s->cap_nodes = cap;
    s->slot = slot;
    s->n_slots = 2 * cap;
    for (size_t i = 0; i < s->n_nodes; i++) {
        size_t h = pointer_hash(p[i].j);
        while (slot[h & (s->n_slots - 1)])
            h++;
        slot[h & (s->n_slots - 1)] = (uint32_t)i + 1;
    }
    return 0;
}

int gnode_of(struct gctx *c, json_t *j, const char *path, const char *base, uint32_t *id)
{
    struct gschema *s = c->schema;
    int r;
    if (!json_is_object(j) && !json_is_boolean(j))
        return err_set(c->e, -EINVAL, "%s: a schema is an object or a boolean", path);
    if (s->n_nodes == s->cap_nodes && (r = nodes_grow(c, s)))
        return r;
    size_t h = pointer_hash(j);
    for (; s->slot[h & (s->n_slots - 1)]; h++) {
        *id = s->slot[h & (s->n_slots - 1)] - 1;
        if (s->node[*id].j == j)
            return 0;
    }
    if (s->n_nodes >= c->lim.max_nodes)
        return err_set(c->e, -E2BIG, "%s: more than %zu subschemas", path, c->lim.max_nodes);
    for (size_t i = 0; i < s->n_ids; i++)
        if (s->ids[i].j == j)
            base = s->ids[i].base;
    s->node[s->n_nodes] = (struct gnode){.j = j, .path = path, .base = base};
    s->slot[h & (s->n_slots - 1)] = (uint32_t)s->n_nodes + 1;
    *id = (uint32_t)s->n_nodes++;
    return 0;
}

int gnode_child(struct gctx *c, uint32_t parent, json_t *j, const char *key, const char *sub, size_t index,
                uint32_t *id)
{
    const struct gnode *p = &c->schema->node[parent];
    const char *path = gpath(c, p->path, key), *base = p->base;
    if (path && sub)
        path = gpath(c, path, sub);
    else if (path && index != SIZE_MAX)
        path = arena_printf(c->tmp, "%s/%zu", path, index);
    return path ? gnode_of(c, j, path, base, id) : g_memory_code(c);
}

int gnode_bad(struct gctx *c, uint32_t node, const char *keyword, const char *what)
{
    return err_set(c->e, -EINVAL, "%s: %s %s", c->schema->node[node].path, keyword, what);
}

/* ---- references ---- */

static int hex(char ch)
{
    return ch >= '0' && ch <= '9' ? ch - '0' : (ch | 32) >= 'a' && (ch | 32) <= 'f' ? (ch | 32) - 'a' + 10 : -1;
}

/* One step of a JSON pointer, decoded in place from p (up to the next '/'); returns where the rest begins. */
static char *token(char *p, char **next)
{
    char *w = p, *q = p;
    for (; *q && *q != '/'; q++, w++) {
        if (*q == '%' && hex(q[1]) >= 0 && hex(q[2]) >= 0) {
            *w = (char)(hex(q[1]) * 16 + hex(q[2]));
            q += 2;
        } else
            *w = *q;
        if (*w == '~' && (q[1] == '0' || q[1] == '1')) {
            *w = q[1] == '0' ? '~' : '/';
            q++;
        }
    }
    *next = *q ? q + 1 : NULL;
    *w = 0;
    return p;
}

static int follow(struct gctx *c, uint32_t node, const char *ref, json_t *at, const char *path, const char *base,
                  const char *pointer, uint32_t *id)
{
    char *text = arena_strndup(c->tmp, pointer, strlen(pointer)), *next = text && *text ? text + 1 : NULL;
    if (!text)
        return g_memory_code(c);
    while (next) {
        char *key = token(next, &next);
        if (json_is_array(at)) {
            char *end;
            unsigned long k = strtoul(key, &end, 10);
            at = *end || !*key ? NULL : json_array_get(at, k);
        } else
            at = json_object_get(at, key);
        if (!at)
            return err_set(c->e, -EINVAL, "%s: $ref \"%s\" leads nowhere", c->schema->node[node].path, ref);
        if (!(path = gpath(c, path, key)))
            return g_memory_code(c);
        for (size_t i = 0; i < c->schema->n_ids; i++)
            if (c->schema->ids[i].j == at)
                base = c->schema->ids[i].base;
    }
    return gnode_of(c, at, path, base, id);
}

int gnode_ref(struct gctx *c, uint32_t node, const char *keyword, uint32_t *id)
{
    struct gschema *s = c->schema;
    const char *base = s->node[node].base;
    const char *ref = json_string_value(json_object_get(s->node[node].j, keyword));
    bool plain = !strcmp(keyword, "$ref");
    if (plain && s->node[node].ref) {
        *id = s->node[node].ref - 1;
        return 0;
    }
    if (!ref)
        return gnode_bad(c, node, keyword, "must be a string");
    const char *uri = resolve(c, base, ref);
    if (!uri)
        return g_memory_code(c);
    const char *fragment = strchr(uri, '#');
    size_t n = fragment ? (size_t)(fragment - uri) : strlen(uri);
    bool pointer = !fragment || !fragment[1] || fragment[1] == '/';
    json_t *at = pointer && !n ? s->root : NULL;
    const char *path = "#", *at_base = "";
    for (size_t i = 0; i < s->n_ids && !at; i++) {
        bool same =
            pointer ? strlen(s->ids[i].uri) == n && !strncmp(s->ids[i].uri, uri, n) : !strcmp(s->ids[i].uri, uri);
        if (same)
            at = s->ids[i].j, path = s->ids[i].path, at_base = s->ids[i].base;
    }
    if (!at)
        return err_set(c->e, -EINVAL, "%s: %s \"%s\" leads out of the schema or nowhere; nothing is fetched",
                       s->node[node].path, keyword, ref);
    int r = follow(c, node, ref, at, path, at_base, pointer && fragment ? fragment + 1 : "", id);
    if (!r && plain)
        s->node[node].ref = *id + 1;
    return r;
}

int g_pattern(struct gctx *c, const char *text, const char *path, struct gdfa **out)
{
    struct gschema *s = c->schema;
    int r = g_steps(c, s->n_patterns / 4 + 1);
    if (r)
        return r;
    for (size_t i = 0; i < s->n_patterns; i++)
        if (!strcmp(s->pattern[i].text, text)) {
            *out = s->pattern[i].dfa;
            return 0;
        }
    if (s->n_patterns == s->cap_patterns) {
        size_t cap = s->cap_patterns ? 2 * s->cap_patterns : 16;
        struct gpattern *p = g_tmp(c, cap, sizeof *p);
        if (!p)
            return g_memory_code(c);
        if (s->n_patterns)
            memcpy(p, s->pattern, s->n_patterns * sizeof *p);
        s->pattern = p;
        s->cap_patterns = cap;
    }
    const char *where = c->where;
    c->where = path;
    r = gdfa_regex(c, text, strlen(text), true, out);
    c->where = where;
    if (!r)
        s->pattern[s->n_patterns++] = (struct gpattern){text, *out};
    return r;
}
