/* grammar_keywords.c - what each keyword of JSON Schema asserts, held true or held false.
 *
 * Used while a grammar is compiled, by the thread that compiles; everything lies in the temporary arena. A subschema
 * held true adds its assertions to a branch one by one; held false, it is one choice among its assertions, each held
 * false alone. Keywords that JSON Schema does not know, or that only annotate, assert nothing. An assertion that cannot
 * be held exactly becomes an I_REFUSED atom of the types it would concern: it is an error only where a branch is left
 * in which such a value could be written.
 */
#include "model/grammar_schema.h"

#include <math.h>
#include <string.h>

enum keyword {
    K_NONE,
    K_TYPE,
    K_ENUM,
    K_CONST,
    K_REF,
    K_DYNAMIC_REF,
    K_ALL_OF,
    K_ANY_OF,
    K_ONE_OF,
    K_NOT,
    K_IF,
    K_MINIMUM,
    K_MAXIMUM,
    K_EXCLUSIVE_MINIMUM,
    K_EXCLUSIVE_MAXIMUM,
    K_MULTIPLE_OF,
    K_MIN_LENGTH,
    K_MAX_LENGTH,
    K_PATTERN,
    K_FORMAT,
    K_ITEMS,
    K_MIN_ITEMS,
    K_MAX_ITEMS,
    K_UNIQUE,
    K_CONTAINS,
    K_PROPERTIES,
    K_REQUIRED,
    K_MIN_PROPERTIES,
    K_MAX_PROPERTIES,
    K_PROPERTY_NAMES,
    K_DEPENDENT,
    K_UNEVALUATED_PROPERTIES,
    K_UNEVALUATED_ITEMS,
    K_REFUSED
};

static const struct {
    const char *name;
    enum keyword k;
} keywords[] = {
    {"type", K_TYPE},
    {"enum", K_ENUM},
    {"const", K_CONST},
    {"$ref", K_REF},
    {"$dynamicRef", K_DYNAMIC_REF},
    {"allOf", K_ALL_OF},
    {"anyOf", K_ANY_OF},
    {"oneOf", K_ONE_OF},
    {"not", K_NOT},
    {"if", K_IF},
    {"minimum", K_MINIMUM},
    {"maximum", K_MAXIMUM},
    {"exclusiveMinimum", K_EXCLUSIVE_MINIMUM},
    {"exclusiveMaximum", K_EXCLUSIVE_MAXIMUM},
    {"multipleOf", K_MULTIPLE_OF},
    {"minLength", K_MIN_LENGTH},
    {"maxLength", K_MAX_LENGTH},
    {"pattern", K_PATTERN},
    {"format", K_FORMAT},
    {"items", K_ITEMS},
    {"prefixItems", K_ITEMS},
    {"additionalItems", K_ITEMS},
    {"minItems", K_MIN_ITEMS},
    {"maxItems", K_MAX_ITEMS},
    {"uniqueItems", K_UNIQUE},
    {"contains", K_CONTAINS},
    {"properties", K_PROPERTIES},
    {"patternProperties", K_PROPERTIES},
    {"additionalProperties", K_PROPERTIES},
    {"required", K_REQUIRED},
    {"minProperties", K_MIN_PROPERTIES},
    {"maxProperties", K_MAX_PROPERTIES},
    {"propertyNames", K_PROPERTY_NAMES},
    {"dependentRequired", K_DEPENDENT},
    {"dependentSchemas", K_DEPENDENT},
    {"dependencies", K_DEPENDENT},
    {"unevaluatedProperties", K_UNEVALUATED_PROPERTIES},
    {"unevaluatedItems", K_UNEVALUATED_ITEMS},
    {"$recursiveRef", K_REFUSED},
    {"extends", K_REFUSED},
    {"disallow", K_REFUSED},
    {"divisibleBy", K_REFUSED},
};

/* One subschema at work: for held true k is the branch, for held false d the choice. */
struct work {
    struct gctx *c;
    struct grammar *g;
    struct gconj *k;
    struct gdisj *d;
    uint32_t node;
    json_t *j;
    const char *name; /* of the keyword */
    json_t *v;        /* its value */
};

static int bad(const struct work *w, const char *what)
{
    return gnode_bad(w->c, w->node, w->name, what);
}

/* Held true: add. Held false: an alternative of its own, with the type that the assertion is about before it. */
static int say(struct work *w, unsigned types, const struct gatom *a)
{
    if (w->k)
        return gconj_add(w->c, w->g, w->k, a);
    struct gatom two[2] = {{.kind = I_TYPE, .n = types}, *a};
    return gdisj_alt(w->c, w->d, two, 2);
}

static int refuse(struct work *w, unsigned types, const char *why)
{
    const char *text = arena_printf(w->c->tmp, "%s: %s %s", w->c->schema->node[w->node].path, w->name, why);
    if (!text)
        return g_memory_code(w->c);
    return say(w, types, &(struct gatom){.kind = I_REFUSED, .n = types, .name = text});
}

static int child(struct work *w, json_t *j, const char *sub, size_t index, bool negated, struct gatom *a)
{
    uint32_t id;
    int r = gnode_child(w->c, w->node, j, w->name, sub, index, &id);
    if (!r)
        *a = (struct gatom){.kind = I_LIT, .n = LIT(id, negated), .lit = LIT(id, negated)};
    return r;
}

/* A count: an integer, 2.0 too; -1 for anything else. */
static int64_t count_of(const json_t *v)
{
    if (json_is_integer(v))
        return json_integer_value(v) < 0 ? -1 : json_integer_value(v);
    double d = json_is_real(v) ? json_real_value(v) : -1;
    return d >= 0 && d < 9e15 && d == floor(d) ? (int64_t)d : -1;
}

static unsigned type_named(const char *s)
{
    static const struct {
        const char *name;
        unsigned mask;
    } types[] = {{"null", T_NULL},  {"boolean", T_BOOL}, {"integer", T_INT}, {"number", T_NUM},
                 {"string", T_STR}, {"array", T_ARR},    {"object", T_OBJ},  {"any", T_ALL}};
    for (size_t i = 0; s && i < 7; i++)
        if (!strcmp(types[i].name, s))
            return types[i].mask;
    return 0;
}

static int k_type(struct work *w)
{
    unsigned mask = 0, one;
    json_t *v;
    size_t i;
    if (json_is_string(w->v) && !(mask = type_named(json_string_value(w->v))))
        return bad(w, "is none of the seven types");
    if (!json_is_string(w->v) && !json_is_array(w->v))
        return bad(w, "must be a string or an array of strings");
    json_array_foreach(w->v, i, v)
    {
        if (!(one = type_named(json_string_value(v))))
            return bad(w, "is none of the seven types");
        mask |= one;
    }
    struct gatom a = {.kind = I_TYPE, .n = w->k ? mask : T_ALL & ~mask};
    return w->k ? gconj_add(w->c, w->g, w->k, &a) : gdisj_alt(w->c, w->d, &a, 1);
}

static int k_enum(struct work *w, bool single)
{
    unsigned types = 0;
    json_t *v;
    size_t i;
    int r = 0;
    if (!single && !json_is_array(w->v))
        return bad(w, "must be an array");
    if (single)
        types = gvalue_type(w->v);
    json_array_foreach(w->v, i, v) types |= single ? 0 : gvalue_type(v);
    struct gatom a = {.kind = I_ENUM, .value = w->v, .single = single, .negated = !w->k, .node = w->node};
    if (w->k && !(r = gconj_add(w->c, w->g, w->k, &(struct gatom){.kind = I_TYPE, .n = types})))
        r = gconj_add(w->c, w->g, w->k, &a);
    return w->k ? r : gdisj_alt(w->c, w->d, &a, 1);
}

static int k_ref(struct work *w)
{
    uint32_t id;
    int r = gnode_ref(w->c, w->node, w->name, &id);
    if (r)
        return r;
    struct gatom a = {.kind = I_LIT, .n = LIT(id, !w->k)};
    return w->k ? gconj_add(w->c, w->g, w->k, &a) : gdisj_alt(w->c, w->d, &a, 1);
}

/* $dynamicRef is $ref where no other subschema has that dynamic anchor. */
static int k_dynamic_ref(struct work *w)
{
    const struct gschema *s = w->c->schema;
    size_t n = 0;
    for (size_t i = 0; i < s->n_ids; i++)
        n += s->ids[i].dynamic;
    return n <= 1 ? k_ref(w) : refuse(w, T_ALL, "is not supported with several dynamic anchors");
}

static int branches(struct work *w, bool negated, struct gatom **out, size_t *n)
{
    json_t *v;
    size_t i;
    int r;
    if (!json_is_array(w->v) || !json_array_size(w->v))
        return bad(w, "must be an array of schemas, and not empty");
    *n = json_array_size(w->v);
    if (!(*out = g_tmp(w->c, *n, sizeof **out)))
        return g_memory_code(w->c);
    json_array_foreach(w->v, i, v) if ((r = child(w, v, NULL, i, negated, &(*out)[i]))) return r;
    return 0;
}

static struct gdisj *disj_new(struct gctx *c)
{
    return g_tmp(c, 1, sizeof(struct gdisj));
}

static int push(struct work *w, struct gdisj *d)
{
    d->next = w->k->pending;
    w->k->pending = d;
    return g_steps(w->c, 1);
}

/* allOf (conjunction) held true, anyOf held false: all at once; the other way round: one of them. */
static int k_all_any(struct work *w, bool all)
{
    struct gatom *a;
    size_t n;
    int r = branches(w, !w->k, &a, &n);
    if (r)
        return r;
    if (w->k && all) {
        for (size_t i = 0; i < n && !r; i++)
            r = gconj_add(w->c, w->g, w->k, &a[i]);
        return r;
    }
    if (!w->k && !all)
        return gdisj_alt(w->c, w->d, a, n);
    struct gdisj *d = w->k ? disj_new(w->c) : w->d;
    if (!d)
        return g_memory_code(w->c);
    for (size_t i = 0; i < n && !r; i++)
        r = gdisj_alt(w->c, d, &a[i], 1);
    return r || !w->k ? r : push(w, d);
}

/* The types that a schema's `type` leaves, references followed. *j: the schema itself. */
static int types_of(struct work *w, uint32_t node, json_t **j, unsigned *mask)
{
    json_t *type, *one;
    size_t i;
    int r = 0;
    *mask = T_ALL;
    *j = w->c->schema->node[node].j;
    for (int hops = 0; hops < 8 && !r; hops++) {
        bool alone = w->c->schema->ref_alone || json_object_size(*j) == 1;
        if (!json_object_get(*j, "$ref") || !alone)
            break;
        r = gnode_ref(w->c, node, "$ref", &node);
        *j = r ? NULL : w->c->schema->node[node].j;
    }
    if (w->c->schema->ref_alone && json_object_get(*j, "$ref"))
        return r; /* its other keywords say nothing */
    type = json_object_get(*j, "type");
    if (r || !type)
        return r;
    *mask = type_named(json_string_value(type));
    json_array_foreach(type, i, one) *mask |= type_named(json_string_value(one));
    return 0;
}

static bool listed(const json_t *names, const char *name)
{
    const json_t *one;
    size_t i;
    json_array_foreach(names, i, one) if (json_is_string(one) && !strcmp(json_string_value(one), name)) return true;
    return false;
}

/* Do two schemas of one property, const or enum, have no value in common? */
static bool apart(struct gctx *c, const json_t *a, const json_t *b)
{
    const json_t *x = json_object_get(a, "const"), *y = json_object_get(b, "const"), *v;
    const json_t *xs = json_object_get(a, "enum"), *ys = json_object_get(b, "enum");
    size_t i, k;
    if ((!x && !json_is_array(xs)) || (!y && !json_is_array(ys)) || json_array_size(xs) > 16 ||
        json_array_size(ys) > 16)
        return false;
    for (i = 0; i < (x ? 1 : json_array_size(xs)); i++)
        for (k = 0; k < (y ? 1 : json_array_size(ys)); k++) {
            v = y ? y : json_array_get(ys, k);
            if (gvalue_equal(c, x ? x : json_array_get(xs, i), v))
                return false;
        }
    return true;
}

/* The common case, cheaply: other types, or objects that a required property tells apart. */
static int tell_apart(struct work *w, uint32_t a, uint32_t b, bool *yes)
{
    json_t *x, *y, *one;
    unsigned m, n;
    const char *key;
    int r = types_of(w, a, &x, &m);
    if (r || (r = types_of(w, b, &y, &n)))
        return r;
    *yes = !(m & n);
    if ((m & n) != T_OBJ)
        return 0;
    json_object_foreach(json_object_get(x, "properties"), key, one)
    {
        json_t *other = json_object_get(json_object_get(y, "properties"), key);
        bool refs = json_object_get(one, "$ref") || json_object_get(other, "$ref");
        if (other && !refs && apart(w->c, one, other) && listed(json_object_get(x, "required"), key) &&
            listed(json_object_get(y, "required"), key))
            *yes = true;
    }
    return 0;
}

/* Can both hold of one value? True unless it is certain that they cannot. */
static int overlap(struct work *w, uint64_t a, uint64_t b, bool *yes)
{
    uint32_t lit[2] = {(uint32_t)a, (uint32_t)b}, id;
    bool empty = false;
    int r = tell_apart(w, LIT_NODE(lit[0]), LIT_NODE(lit[1]), &empty);
    if (r || empty || (r = g_steps(w->c, 10)))
        return *yes = false, r;
    if (!(r = gexpr_of(w->c, w->g, lit, 2, &id)))
        r = gexpr_empty(w->c, w->g, id, 4, &empty);
    *yes = !empty;
    return r;
}

/* Held true: one, and none of those that could hold beside it. */
static int k_one_of(struct work *w)
{
    struct gatom *a;
    size_t n, m;
    int r = branches(w, false, &a, &n);
    struct gdisj *d = disj_new(w->c);
    struct gatom *item = r ? NULL : g_tmp(w->c, n, sizeof *item);
    bool *beside = r ? NULL : g_tmp(w->c, n * n, sizeof *beside);
    if (r || !d || !item || !beside)
        return r ? r : g_memory_code(w->c);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++) {
            beside[i * n + j] = true;
            if (!w->k->flat && (r = overlap(w, a[i].n, a[j].n, &beside[i * n + j])))
                return r;
            beside[j * n + i] = beside[i * n + j];
        }
    for (size_t i = 0; i < n; i++) {
        item[0] = a[i];
        m = 1;
        for (size_t j = 0; j < n; j++)
            if (beside[i * n + j]) {
                item[m] = a[j];
                item[m++].n ^= 1;
            }
        if ((r = gdisj_alt(w->c, d, item, m)))
            return r;
    }
    return push(w, d);
}

/* Held false: none of them, or two at least. */
static int k_not_one_of(struct work *w)
{
    struct gatom *a, *none;
    size_t n;
    int r = branches(w, false, &a, &n);
    if (r)
        return r;
    if (!(none = g_tmp(w->c, n, sizeof *none)))
        return g_memory_code(w->c);
    for (size_t i = 0; i < n; i++) {
        none[i] = a[i];
        none[i].n ^= 1;
    }
    r = gdisj_alt(w->c, w->d, none, n);
    for (size_t i = 0; i < n && !r; i++)
        for (size_t j = 0; j < i && !r; j++)
            r = gdisj_alt(w->c, w->d, (struct gatom[]){a[i], a[j]}, 2);
    return r;
}

static int k_if(struct work *w)
{
    static const char *const part[] = {"then", "else"};
    struct gdisj *d = w->k ? disj_new(w->c) : w->d;
    struct gatom two[2];
    int r;
    if (!d)
        return g_memory_code(w->c);
    for (int k = 0; k < 2; k++) {
        json_t *then = json_object_get(w->j, part[k]);
        w->name = "if";
        if ((r = child(w, w->v, NULL, SIZE_MAX, k == 1, &two[0])))
            return r;
        w->name = part[k];
        two[1] = (struct gatom){.kind = I_LIT, .n = LIT(NODE_TRUE, !w->k)};
        if (then && (r = child(w, then, NULL, SIZE_MAX, !w->k, &two[1])))
            return r;
        if ((r = gdisj_alt(w->c, d, two, 2)))
            return r;
    }
    return w->k ? push(w, d) : 0;
}

static int k_not(struct work *w)
{
    struct gatom a;
    int r = child(w, w->v, NULL, SIZE_MAX, w->k != NULL, &a);
    if (r)
        return r;
    return w->k ? gconj_add(w->c, w->g, w->k, &a) : gdisj_alt(w->c, w->d, &a, 1);
}

static int k_bound(struct work *w, bool max, bool open)
{
    const char *draft4 = max ? "exclusiveMaximum" : "exclusiveMinimum";
    json_t *old = json_object_get(w->j, draft4);
    if (json_is_boolean(w->v) && open)
        return 0; /* draft 4: said with minimum or maximum */
    if (!json_is_number(w->v))
        return bad(w, "must be a number");
    open = open || json_is_true(old);
    struct gatom a = {.kind = (max == (w->k != NULL)) ? I_MAX : I_MIN, .value = w->v, .open = w->k ? open : !open};
    a.node = w->node;
    return say(w, T_NUM, &a);
}

static int k_multiple(struct work *w)
{
    if (!json_is_number(w->v) || json_number_value(w->v) <= 0)
        return bad(w, "must be a number above 0");
    return say(w, T_NUM, &(struct gatom){.kind = I_MULTIPLE, .value = w->v, .negated = !w->k, .node = w->node});
}

/* minLength and its like: held false, the other bound one further. */
static int k_count(struct work *w, unsigned type, enum gatom_kind kind, enum gatom_kind other, bool max)
{
    int64_t n = count_of(w->v);
    if (n < 0)
        return bad(w, "must be an integer of 0 or more");
    if (w->k)
        return say(w, type, &(struct gatom){.kind = kind, .n = (uint64_t)n, .node = w->node});
    if (!n && !max)
        return 0; /* never false */
    return say(w, type, &(struct gatom){.kind = other, .n = (uint64_t)(max ? n + 1 : n - 1), .node = w->node});
}

static int k_text(struct work *w, enum gatom_kind kind)
{
    const char *s = json_string_value(w->v);
    if (!s)
        return bad(w, "must be a string");
    if (kind == I_FORMAT) {
        if (!strcmp(s, "int32") || !strcmp(s, "int64") || !strcmp(s, "float") || !strcmp(s, "double")) {
            if (!w->k)
                return refuse(w, T_NUM, "of a number cannot be negated");
            uint64_t bits = s[0] == 'i' ? (s[3] == '3' ? 32 : 64) : 1;
            return say(w, T_NUM, &(struct gatom){.kind = I_RANGE, .n = bits});
        }
        struct gdfa *d = NULL;
        int r = g_format(w->c, s, !w->k, &d);
        if (r)
            return r;
        if (!d) {
            const char *why = arena_printf(w->c->tmp, "\"%.60s\" is not supported%s", s, w->k ? "" : " under not");
            return why ? refuse(w, T_STR, why) : g_memory_code(w->c);
        }
    }
    return say(w, T_STR, &(struct gatom){.kind = kind, .value = w->v, .negated = !w->k, .node = w->node});
}

/* ---- arrays ---- */

static int deny_items(struct work *w)
{
    json_t *prefix = json_object_get(w->j, "prefixItems"), *items = json_object_get(w->j, "items"), *v;
    bool old = !prefix && json_is_array(items);
    struct gatom a, three[3];
    size_t i, n = 0;
    int r;
    w->name = old ? "items" : "prefixItems";
    json_array_foreach(old ? items : prefix, i, v)
    {
        if ((r = child(w, v, NULL, i, true, &a)))
            return r;
        three[0] = (struct gatom){.kind = I_TYPE, .n = T_ARR};
        three[1] = (struct gatom){.kind = I_MIN_ITEMS, .n = i + 1};
        three[2] = (struct gatom){.kind = I_ITEM_AT, .lit = a.lit, .n = i};
        if ((r = gdisj_alt(w->c, w->d, three, 3)))
            return r;
        n++;
    }
    w->name = old ? "additionalItems" : "items";
    json_t *rest = json_object_get(w->j, w->name);
    if (!rest)
        return 0;
    if (n && json_is_false(rest))
        return say(w, T_ARR, &(struct gatom){.kind = I_MIN_ITEMS, .n = n + 1});
    if (n)
        return refuse(w, T_ARR, "behind a prefix cannot be negated");
    if ((r = child(w, rest, NULL, SIZE_MAX, true, &a)))
        return r;
    a.kind = I_CONTAINS, a.n = 1, a.m = G_INF, a.node = w->node;
    return say(w, T_ARR, &a);
}

static int k_items(struct work *w)
{
    json_t *prefix = json_object_get(w->j, "prefixItems"), *items = json_object_get(w->j, "items");
    const char *first = prefix ? "prefixItems" : items ? "items" : "additionalItems";
    if (strcmp(first, w->name))
        return 0; /* once for all three */
    if (prefix && !json_is_array(prefix))
        return gnode_bad(w->c, w->node, "prefixItems", "must be an array");
    if (!prefix && !items)
        return 0; /* additionalItems alone says nothing */
    if (!w->k)
        return deny_items(w);
    return say(w, T_ARR, &(struct gatom){.kind = I_ITEMS, .node = w->node});
}

static int k_contains(struct work *w)
{
    json_t *lo = json_object_get(w->j, "minContains"), *hi = json_object_get(w->j, "maxContains");
    int64_t min = lo ? count_of(lo) : 1, max = hi ? count_of(hi) : G_INF;
    struct gatom a;
    int r = child(w, w->v, NULL, SIZE_MAX, false, &a);
    if (r)
        return r;
    if (min < 0 || max < 0 || min > 1000000)
        return bad(w, "with a minContains or maxContains that is no count");
    if (max > G_INF)
        max = G_INF;
    a.kind = I_CONTAINS, a.n = (uint64_t)min, a.m = (uint64_t)max, a.node = w->node;
    if (w->k)
        return min || max != G_INF ? say(w, T_ARR, &a) : 0;
    a.n = 0, a.m = (uint64_t)min - 1;
    if (min > 0 && (r = say(w, T_ARR, &a)))
        return r;
    a.n = (uint64_t)max + 1, a.m = G_INF;
    return max < 1000000 ? say(w, T_ARR, &a) : 0;
}

static int k_unique(struct work *w)
{
    if (!json_is_boolean(w->v))
        return bad(w, "must be true or false");
    if (json_is_false(w->v))
        return 0;
    if (!w->k)
        return refuse(w, T_ARR, "cannot be negated");
    return say(w, T_ARR, &(struct gatom){.kind = I_UNIQUE, .node = w->node});
}

/* ---- objects ---- */

static int deny_properties(struct work *w)
{
    json_t *props = json_object_get(w->j, "properties"), *pattern = json_object_get(w->j, "patternProperties");
    json_t *more = json_object_get(w->j, "additionalProperties"), *v;
    const char *key;
    struct gatom a, three[3];
    int r;
    w->name = "properties";
    json_object_foreach(props, key, v)
    {
        if ((r = child(w, v, key, SIZE_MAX, true, &a)))
            return r;
        three[0] = (struct gatom){.kind = I_TYPE, .n = T_OBJ};
        three[1] = (struct gatom){.kind = I_REQUIRED, .name = key};
        three[2] = (struct gatom){.kind = I_VALUE, .name = key, .lit = a.lit};
        if (!json_is_true(v) && (r = gdisj_alt(w->c, w->d, three, 3)))
            return r;
    }
    if (json_object_size(pattern) && (r = say(w, T_OBJ, &(struct gatom){.kind = I_WITNESS, .node = w->node})))
        return r;
    if (more && !json_is_true(more) && !(json_is_object(more) && !json_object_size(more)))
        return say(w, T_OBJ, &(struct gatom){.kind = I_WITNESS, .node = w->node, .n = 1});
    return 0;
}

static int k_properties(struct work *w)
{
    static const char *const all[] = {"properties", "patternProperties", "additionalProperties"};
    int first = 0;
    while (!json_object_get(w->j, all[first]))
        first++;
    if (strcmp(all[first], w->name))
        return 0; /* once for all three */
    for (int i = 0; i < 2; i++) {
        json_t *v = json_object_get(w->j, all[i]);
        if (v && !json_is_object(v))
            return gnode_bad(w->c, w->node, all[i], "must be an object");
    }
    if (!w->k)
        return deny_properties(w);
    return say(w, T_OBJ, &(struct gatom){.kind = I_PROPS, .node = w->node});
}

static int k_required(struct work *w)
{
    json_t *v;
    size_t i;
    int r = 0;
    if (json_is_boolean(w->v) && !json_is_true(w->v))
        return 0; /* draft 3 */
    if (!json_is_array(w->v))
        return bad(w, "must be an array of strings");
    json_array_foreach(w->v, i, v)
    {
        if (!json_is_string(v))
            return bad(w, "must be an array of strings");
        struct gatom a = {.kind = w->k ? I_REQUIRED : I_FORBID, .name = json_string_value(v)};
        if ((r = say(w, T_OBJ, &a)))
            return r;
    }
    return r;
}

static int k_names(struct work *w)
{
    struct gatom a;
    if (!w->k)
        return json_is_true(w->v) ? 0 : refuse(w, T_OBJ, "cannot be negated");
    int r = child(w, w->v, NULL, SIZE_MAX, false, &a);
    a.kind = I_NAMES, a.node = w->node;
    return r ? r : say(w, T_OBJ, &a);
}

/* One entry: where `key` is there, its names are too, or its schema holds. */
static int dependent(struct work *w, const char *key, json_t *v)
{
    bool list = json_is_array(v);
    size_t n = list ? json_array_size(v) : 1;
    struct gatom *item = g_tmp(w->c, n + 2, sizeof *item), forbid = {.kind = I_FORBID, .name = key}, a;
    int r = 0;
    if (!item)
        return g_memory_code(w->c);
    item[0] = (struct gatom){.kind = I_TYPE, .n = T_OBJ};
    item[1] = (struct gatom){.kind = I_REQUIRED, .name = key};
    if (!list && !json_is_string(v)) {
        if ((r = child(w, v, key, SIZE_MAX, !w->k, &item[2])))
            return r;
    }
    for (size_t i = 0; i < n && (list || json_is_string(v)) && !r; i++) {
        const char *name = json_string_value(list ? json_array_get(v, i) : v);
        if (!name)
            return bad(w, "must hold names");
        item[2 + (w->k ? i : 0)] = (struct gatom){.kind = w->k ? I_REQUIRED : I_FORBID, .name = name};
        if (!w->k)
            r = gdisj_alt(w->c, w->d, item, 3);
    }
    if (r || (!w->k && (list || json_is_string(v))))
        return r;
    if (!w->k)
        return gdisj_alt(w->c, w->d, item, 3);
    struct gdisj *d = disj_new(w->c);
    if (!d)
        return g_memory_code(w->c);
    a = forbid;
    if ((r = gdisj_alt(w->c, d, &a, 1)) || (r = gdisj_alt(w->c, d, item, n + 2)))
        return r;
    return push(w, d);
}

static int k_dependent(struct work *w)
{
    const char *key;
    json_t *v;
    int r = 0;
    if (!json_is_object(w->v))
        return bad(w, "must be an object");
    json_object_foreach(w->v, key, v) if ((r = dependent(w, key, v))) break;
    return r;
}

/* Without applicators beside it, it is additionalProperties (or items) by another name. */
static int k_unevaluated(struct work *w, bool properties)
{
    static const char *const beside[] = {
        "allOf",    "anyOf",           "oneOf", "not", "if", "$ref", "$dynamicRef", "dependentSchemas",
        "contains", "unevaluatedItems"};
    const char *same = properties ? "additionalProperties" : "items";
    json_t *beside_it = json_object_get(w->j, same);
    if (json_is_true(w->v) || (beside_it && !json_is_array(beside_it)))
        return 0; /* nothing is left unevaluated */
    for (size_t i = 0; i < sizeof beside / sizeof *beside - (properties ? 2 : 1); i++)
        if (json_object_get(w->j, beside[i]))
            return refuse(w, properties ? T_OBJ : T_ARR, "beside other applicators is not supported");
    return refuse(w, properties ? T_OBJ : T_ARR,
                  properties ? "is not supported; use additionalProperties" : "is not supported; use items");
}

static int keyword(struct work *w, enum keyword k)
{
    switch (k) {
    case K_TYPE:
        return k_type(w);
    case K_ENUM:
    case K_CONST:
        return k_enum(w, k == K_CONST);
    case K_REF:
        return k_ref(w);
    case K_DYNAMIC_REF:
        return k_dynamic_ref(w);
    case K_ALL_OF:
    case K_ANY_OF:
        return k_all_any(w, k == K_ALL_OF);
    case K_ONE_OF:
        return w->k ? k_one_of(w) : k_not_one_of(w);
    case K_NOT:
        return k_not(w);
    case K_IF:
        return k_if(w);
    case K_MINIMUM:
    case K_MAXIMUM:
        return k_bound(w, k == K_MAXIMUM, false);
    case K_EXCLUSIVE_MINIMUM:
    case K_EXCLUSIVE_MAXIMUM:
        return k_bound(w, k == K_EXCLUSIVE_MAXIMUM, true);
    case K_MULTIPLE_OF:
        return k_multiple(w);
    case K_MIN_LENGTH:
        return k_count(w, T_STR, I_MIN_LENGTH, I_MAX_LENGTH, false);
    case K_MAX_LENGTH:
        return k_count(w, T_STR, I_MAX_LENGTH, I_MIN_LENGTH, true);
    case K_MIN_ITEMS:
        return k_count(w, T_ARR, I_MIN_ITEMS, I_MAX_ITEMS, false);
    case K_MAX_ITEMS:
        return k_count(w, T_ARR, I_MAX_ITEMS, I_MIN_ITEMS, true);
    case K_MIN_PROPERTIES:
        return k_count(w, T_OBJ, I_MIN_PROPS, I_MAX_PROPS, false);
    case K_MAX_PROPERTIES:
        return k_count(w, T_OBJ, I_MAX_PROPS, I_MIN_PROPS, true);
    case K_PATTERN:
    case K_FORMAT:
        return k_text(w, k == K_PATTERN ? I_PATTERN : I_FORMAT);
    case K_ITEMS:
        return k_items(w);
    case K_CONTAINS:
        return k_contains(w);
    case K_UNIQUE:
        return k_unique(w);
    case K_PROPERTIES:
        return k_properties(w);
    case K_REQUIRED:
        return k_required(w);
    case K_PROPERTY_NAMES:
        return k_names(w);
    case K_DEPENDENT:
        return k_dependent(w);
    case K_UNEVALUATED_PROPERTIES:
    case K_UNEVALUATED_ITEMS:
        return k_unevaluated(w, k == K_UNEVALUATED_PROPERTIES);
    case K_REFUSED:
        return refuse(w, T_ALL, "is not supported");
    default:
        return 0;
    }
}

static enum keyword keyword_named(const char *name)
{
    for (size_t i = 0; i < sizeof keywords / sizeof *keywords; i++)
        if (!strcmp(keywords[i].name, name))
            return keywords[i].k;
    return K_NONE;
}

/* In the order of the text: it becomes the order of properties. */
static int each(struct work *w)
{
    bool alone = w->c->schema->ref_alone && json_object_get(w->j, "$ref");
    const char *key;
    json_t *v;
    int r;
    json_object_foreach(w->j, key, v)
    {
        enum keyword k = keyword_named(key);
        if (k == K_NONE || (alone && k != K_REF))
            continue;
        w->name = key;
        w->v = v;
        if ((r = g_steps(w->c, 1)) || (r = keyword(w, k)))
            return r;
    }
    return 0;
}

int g_assert(struct gctx *c, struct grammar *g, struct gconj *k, uint32_t node)
{
    struct work w = {.c = c, .g = g, .k = k, .node = node, .j = c->schema->node[node].j};
    if (json_is_boolean(w.j)) {
        if (json_is_false(w.j))
            k->mask = 0;
        return 0;
    }
    return each(&w);
}

int g_deny(struct gctx *c, uint32_t node, struct gdisj *d)
{
    struct work w = {.c = c, .d = d, .node = node, .j = c->schema->node[node].j};
    if (json_is_boolean(w.j))
        return json_is_false(w.j) ? gdisj_alt(c, d, NULL, 0) : 0;
    return each(&w);
}
