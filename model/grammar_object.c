/* grammar_object.c - from the assertions of a branch to objects: which keys, in which order, with which values.
 *
 * Used while a grammar is compiled, by the thread that compiles. Declared properties come in the order of the schema's
 * text, then those that are only required, then keys that patternProperties and additionalProperties speak of, in any
 * order. What a name's value must be is gathered over all subschemas of the branch: properties, every pattern that
 * matches, or else additionalProperties. Other keys are an automaton whose labels tell which patterns matched.
 */
#include "model/grammar_schema.h"

#include <stdlib.h>
#include <string.h>

struct pattern {
    struct gdfa *dfa;
    uint32_t lit;
    size_t node; /* index into build.node */
};

struct build {
    struct gctx *c;
    struct grammar *g;
    const struct gatom **atom; /* oldest first */
    size_t n_atoms;
    uint32_t *node; /* the I_PROPS nodes */
    size_t n_nodes;
    struct pattern *pattern;
    size_t n_patterns, n_declared;
    struct gobject *o;
    size_t cap_props, cap_never;
    json_t *index; /* name -> its place in prop, or -1: never */
    struct gvec lit, labels;
    struct gdfa *part[G_PARTS];
    size_t n_parts, n_names;
    bool empty;
};

static int no_memory(struct gctx *c)
{
    return err_set(c->e, -ENOMEM, "out of memory");
}

static int gather(struct build *b, const struct gconj *k)
{
    size_t n = 0, i;
    json_t *one;
    for (const struct gitems *a = k->atoms; a; a = a->next)
        n++;
    b->atom = g_tmp(b->c, n, sizeof(struct gatom *));
    b->node = g_tmp(b->c, n, sizeof *b->node);
    if (!b->atom || !b->node)
        return g_memory_code(b->c);
    b->n_atoms = n;
    for (const struct gitems *a = k->atoms; a; a = a->next)
        b->atom[--n] = &a->a;
    for (n = 0; n < b->n_atoms; n++) {
        const struct gatom *a = b->atom[n];
        if (a->kind == I_PROPS)
            b->node[b->n_nodes++] = a->node;
        if (a->kind == I_MIN_PROPS && a->n > b->o->min)
            b->o->min = a->n < G_INF ? (uint32_t)a->n : G_INF - 1;
        if (a->kind == I_MAX_PROPS && a->n < b->o->max)
            b->o->max = (uint32_t)a->n;
        if (a->kind != I_ENUM)
            continue;
        bool in = a->single && json_is_object(a->value);
        if (!a->single)
            json_array_foreach(a->value, i, one) in |= json_is_object(one);
        if (in)
            return gshape_refused(b->c, a->node, "an enum or const with an object cannot be negated");
    }
    return 0;
}

static json_t *part_of(const struct build *b, size_t node, const char *key)
{
    return json_object_get(b->c->schema->node[b->node[node]].j, key);
}

static int patterns(struct build *b)
{
    size_t n = 0;
    const char *key;
    json_t *v;
    for (size_t i = 0; i < b->n_nodes; i++)
        n += json_object_size(part_of(b, i, "patternProperties"));
    if (!(b->pattern = g_tmp(b->c, n, sizeof *b->pattern)))
        return g_memory_code(b->c);
    for (size_t i = 0; i < b->n_nodes; i++)
        json_object_foreach(part_of(b, i, "patternProperties"), key, v)
        {
            struct pattern *p = &b->pattern[b->n_patterns];
            uint32_t id;
            const char *path = gpath(b->c, b->c->schema->node[b->node[i]].path, "patternProperties");
            if (!path || !(path = gpath(b->c, path, key)))
                return g_memory_code(b->c);
            int r = gnode_child(b->c, b->node[i], v, "patternProperties", key, SIZE_MAX, &id);
            if (r || (r = g_pattern(b->c, key, path, &p->dfa)))
                return r;
            p->lit = LIT(id, false);
            p->node = i;
            b->n_patterns++;
        }
    return 0;
}

/* Adds to b->lit what node i says of a key that its patterns matched as in hit, and that is declared where v is given.
 */
static int value_literals(struct build *b, size_t i, json_t *v, const char *name, const bool *hit)
{
    json_t *more = part_of(b, i, "additionalProperties");
    bool any = v != NULL;
    uint32_t id;
    int r = 0;
    if (v && !(r = gnode_child(b->c, b->node[i], v, "properties", name, SIZE_MAX, &id)))
        r = g_push(b->c, &b->lit, LIT(id, false));
    for (size_t k = 0; k < b->n_patterns && !r; k++)
        if (b->pattern[k].node == i && hit[k]) {
            any = true;
            r = g_push(b->c, &b->lit, b->pattern[k].lit);
        }
    if (!r && !any && more && !(r = gnode_child(b->c, b->node[i], more, "additionalProperties", NULL, SIZE_MAX, &id)))
        r = g_push(b->c, &b->lit, LIT(id, false));
    return r;
}

static int grow(struct gctx *c, void **p, size_t n, size_t *cap, size_t size)
{
    if (n < *cap)
        return 0;
    size_t more = *cap ? 2 * *cap : 8;
    void *q = g_alloc(c, more, size);
    if (!q)
        return g_memory_code(c);
    if (n)
        memcpy(q, *p, n * size);
    *p = q;
    *cap = more;
    return 0;
}

static int keep_name(struct gctx *c, const char *name, size_t n, struct grammar_text *out)
{
    char *copy = g_alloc(c, n + 1, 1);
    if (!copy)
        return g_memory_code(c);
    memcpy(copy, name, n);
    *out = (struct grammar_text){copy, n};
    return 0;
}

static int add_prop(struct build *b, const char *name, size_t n, uint32_t expr, bool required)
{
    struct gobject *o = b->o;
    void *p = o->prop;
    int r = grow(b->c, &p, o->n_props, &b->cap_props, sizeof *o->prop);
    o->prop = p;
    if (r || (r = keep_name(b->c, name, n, &o->prop[o->n_props].name)))
        return r;
    o->prop[o->n_props].expr = expr;
    o->prop[o->n_props++].required = required;
    return g_steps(b->c, 1);
}

static int add_never(struct build *b, const char *name, size_t n)
{
    struct gobject *o = b->o;
    void *p = o->never;
    int r = grow(b->c, &p, o->n_never, &b->cap_never, sizeof *o->never);
    o->never = p;
    if (r || (r = keep_name(b->c, name, n, &o->never[o->n_never])))
        return r;
    o->n_never++;
    return 0;
}

/* May the key come at all: not forbidden, and every propertyNames takes it. */
static int key_allowed(struct build *b, const char *name, bool *yes)
{
    json_t *text = json_string(name);
    int r = text ? 0 : no_memory(b->c);
    *yes = true;
    for (size_t i = 0; i < b->n_atoms && *yes && !r; i++) {
        if (b->atom[i]->kind == I_FORBID && !strcmp(b->atom[i]->name, name))
            *yes = false;
        if (b->atom[i]->kind == I_NAMES)
            r = gvalid(b->c, b->atom[i]->lit, text, yes);
    }
    json_decref(text);
    return r;
}

static bool is_required(const struct build *b, const char *name)
{
    for (size_t i = 0; i < b->n_atoms; i++)
        if (b->atom[i]->kind == I_REQUIRED && !strcmp(b->atom[i]->name, name))
            return true;
    return false;
}

static int declare(struct build *b, const char *name)
{
    bool *hit, yes, required = is_required(b, name);
    uint32_t expr;
    size_t n = strlen(name);
    int r;
    if (json_object_get(b->index, name))
        return 0;
    if (json_object_set_new(b->index, name, json_true()))
        return no_memory(b->c);
    if (!(hit = g_tmp(b->c, b->n_patterns, 1)))
        return g_memory_code(b->c);
    for (size_t k = 0; k < b->n_patterns; k++)
        hit[k] = gdfa_match(b->pattern[k].dfa, name, n) != 0;
    b->lit.n = 0;
    if ((r = g_steps(b->c, 1 + b->n_atoms)) || (r = key_allowed(b, name, &yes)))
        return r;
    for (size_t i = 0; i < b->n_nodes && !r; i++)
        r = value_literals(b, i, json_object_get(part_of(b, i, "properties"), name), name, hit);
    for (size_t i = 0; i < b->n_atoms && !r; i++)
        if (b->atom[i]->kind == I_VALUE && !strcmp(b->atom[i]->name, name))
            r = g_push(b->c, &b->lit, b->atom[i]->lit);
    if (r || (r = gexpr_of(b->c, b->g, b->lit.p, b->lit.n, &expr)))
        return r;
    if (yes && expr != G_EXPR_NEVER)
        return add_prop(b, name, n, expr, required);
    b->empty |= required;
    return add_never(b, name, n);
}

static int declare_all(struct build *b)
{
    const char *key;
    json_t *v;
    int r;
    for (size_t i = 0; i < b->n_nodes; i++)
        json_object_foreach(part_of(b, i, "properties"), key, v) if ((r = declare(b, key))) return r;
    b->n_declared = b->o->n_props;
    for (size_t i = 0; i < b->n_atoms; i++) {
        enum gatom_kind k = b->atom[i]->kind;
        if ((k == I_REQUIRED || k == I_VALUE || k == I_FORBID) && (r = declare(b, b->atom[i]->name)))
            return r;
    }
    return 0;
}

/* ---- other keys ---- */

/* The keys that a propertyNames takes, as an automaton. */
static int names_dfa(struct build *b, const struct gatom *a, struct gdfa **out)
{
    struct gdfa *part[G_PARTS];
    struct galternatives alt = {0};
    size_t n = 0;
    uint32_t id;
    int r = gexpr_of(b->c, b->g, &a->lit, 1, &id);
    if (r)
        return r;
    const struct gexpr *x = b->g->expr[id];
    if (x->busy)
        return gshape_refused(b->c, a->node, "propertyNames that contains itself is not supported");
    if ((r = gexpr_expand(b->c, b->g, id)))
        return r;
    if (x->refused)
        return gshape_refused(b->c, a->node, "propertyNames with an assertion that is not supported");
    for (uint32_t i = 0; i < x->n_shapes; i++) {
        const struct gshape *s = b->g->shape[x->shape[i]];
        if (s->kind != G_STRING)
            continue;
        if (n + 2 > G_PARTS)
            return gshape_refused(b->c, a->node, "propertyNames with too many alternatives");
        part[n++] = s->u.str.dfa;
        if (s->u.str.min || s->u.str.max != G_INF)
            if ((r = gdfa_length(b->c, s->u.str.min, s->u.str.max, &part[n++])))
                return r;
        alt.first[++alt.n] = n;
    }
    return gdfa_union(b->c, part, &alt, out);
}

/* Parts: patterns, then propertyNames, then the names that are spoken for. The label is 1 + the index in b->labels of
 * the value's expression. */
static int label_rest(void *arg, const uint32_t *labels, uint32_t *out)
{
    struct build *b = arg;
    bool hit[G_PARTS] = {0};
    uint32_t expr;
    int r = 0;
    *out = 0;
    for (size_t i = 0; i < b->n_names; i++)
        if (!labels[b->n_patterns + i])
            return 0;
    if (labels[b->n_parts - 1])
        return 0;
    b->lit.n = 0;
    for (size_t i = 0; i < b->n_patterns; i++)
        hit[i] = labels[i] != 0;
    for (size_t i = 0; i < b->n_nodes && !r; i++)
        r = value_literals(b, i, NULL, NULL, hit);
    if (r || (r = gexpr_of(b->c, b->g, b->lit.p, b->lit.n, &expr)) || expr == G_EXPR_NEVER)
        return r;
    for (size_t i = 0; i < b->labels.n && !*out; i++)
        if (b->labels.p[i] == expr)
            *out = (uint32_t)i + 1;
    if (*out)
        return 0;
    *out = (uint32_t)b->labels.n + 1;
    return g_push(b->c, &b->labels, expr);
}

static int spoken_for(struct build *b, struct gdfa **out)
{
    size_t n = (size_t)b->o->n_props + b->o->n_never, k = 0;
    struct grammar_text *t = g_tmp(b->c, n, sizeof *t);
    if (!t)
        return g_memory_code(b->c);
    for (uint32_t i = 0; i < b->o->n_props; i++)
        t[k++] = b->o->prop[i].name;
    for (uint32_t i = 0; i < b->o->n_never; i++)
        t[k++] = b->o->never[i];
    return gdfa_words(b->c, t, n, out);
}

static int keep_labels(struct build *b)
{
    b->o->n_rest = (uint32_t)b->labels.n;
    if (!(b->o->rest_expr = g_alloc(b->c, b->labels.n, sizeof *b->o->rest_expr)))
        return g_memory_code(b->c);
    if (b->labels.n)
        memcpy(b->o->rest_expr, b->labels.p, b->labels.n * sizeof *b->labels.p);
    return 0;
}

static int rest(struct build *b)
{
    bool none[1] = {false};
    uint32_t expr;
    int r = 0;
    for (size_t i = 0; i < b->n_patterns; i++) {
        if (b->n_parts >= G_PARTS - 1)
            return err_set(b->c->e, -E2BIG, "%s: more than %d patternProperties of one object",
                           b->c->where ? b->c->where : "#", G_PARTS - 1);
        b->part[b->n_parts++] = b->pattern[i].dfa;
    }
    for (size_t i = 0; i < b->n_atoms && !r; i++) {
        if (b->atom[i]->kind != I_NAMES)
            continue;
        if (b->n_parts >= G_PARTS - 1)
            return gshape_refused(b->c, b->atom[i]->node, "too many propertyNames of one object");
        r = names_dfa(b, b->atom[i], &b->part[b->n_parts++]);
        b->n_names++;
    }
    if (r)
        return r;
    if (!b->n_parts) {
        b->lit.n = 0;
        for (size_t i = 0; i < b->n_nodes && !r; i++)
            r = value_literals(b, i, NULL, NULL, none);
        if (r || (r = gexpr_of(b->c, b->g, b->lit.p, b->lit.n, &expr)) || expr == G_EXPR_NEVER)
            return r;
        b->o->rest = b->c->schema->any;
        return (r = g_push(b->c, &b->labels, expr)) ? r : keep_labels(b);
    }
    if ((r = spoken_for(b, &b->part[b->n_parts++])) ||
        (r = gdfa_product(b->c, b->part, b->n_parts, label_rest, b, &b->o->rest)) || (r = keep_labels(b)))
        return r;
    if (b->o->rest->dist[1] == G_INF)
        b->o->rest = NULL;
    return 0;
}

/* ---- negated patternProperties and additionalProperties: some key breaks them ---- */

/* Appends the literals of which one must hold of the value of `name` for it to be the witness. */
static int breaks(struct build *b, const struct gatom *a, const char *name, struct gvec *out)
{
    json_t *j = b->c->schema->node[a->node].j, *more = json_object_get(j, "additionalProperties"), *v;
    bool declared = json_object_get(json_object_get(j, "properties"), name) != NULL;
    struct gdfa *d;
    const char *regex;
    uint32_t id;
    int r;
    out->n = 0;
    json_object_foreach(json_object_get(j, "patternProperties"), regex, v)
    {
        if ((r = g_pattern(b->c, regex, b->c->schema->node[a->node].path, &d)))
            return r;
        if (!gdfa_match(d, name, strlen(name)))
            continue;
        declared = true;
        if (!a->n && ((r = gnode_child(b->c, a->node, v, "patternProperties", regex, SIZE_MAX, &id)) ||
                      (r = g_push(b->c, out, LIT(id, true)))))
            return r;
    }
    if (declared || !a->n)
        return 0;
    r = gnode_child(b->c, a->node, more, "additionalProperties", NULL, SIZE_MAX, &id);
    return r ? r : g_push(b->c, out, LIT(id, true));
}

static int witnesses(struct build *b, struct gexpr *x, const struct gobject *o, size_t from, int depth);

/* o with property i there, and one more literal about its value. */
static int variant(struct build *b, struct gexpr *x, const struct gobject *o, uint32_t i, uint32_t lit, size_t from,
                   int depth)
{
    const struct gexpr *old = b->g->expr[o->prop[i].expr];
    struct gobject v = *o;
    struct gvec lits = {0};
    int r = g_push(b->c, &lits, lit);
    for (uint32_t k = 0; k < old->n_lit && !r; k++)
        r = g_push(b->c, &lits, old->lit[k]);
    v.prop = r ? NULL : g_alloc(b->c, o->n_props, sizeof *v.prop);
    if (r || !v.prop)
        return r ? r : g_memory_code(b->c);
    memcpy(v.prop, o->prop, o->n_props * sizeof *v.prop);
    v.prop[i].required = true;
    if ((r = gexpr_of(b->c, b->g, lits.p, lits.n, &v.prop[i].expr)) || v.prop[i].expr == G_EXPR_NEVER)
        return r;
    return witnesses(b, x, &v, from, depth);
}

/* Adds o, or its variants for each I_WITNESS from atom `from` on. Where the schema's other keys could be witnesses too
 * it is refused, unless a required property is one anyway. */
static int witnesses(struct build *b, struct gexpr *x, const struct gobject *o, size_t from, int depth)
{
    struct gvec lits = {0};
    int r;
    while (from < b->n_atoms && b->atom[from]->kind != I_WITNESS)
        from++;
    if (from == b->n_atoms)
        return gshape_add(b->c, b->g, x, &(struct gshape){.kind = G_OBJECT, .u.obj = *o});
    const struct gatom *a = b->atom[from];
    if (depth > 8)
        return gshape_refused(b->c, a->node, "too many negations of patternProperties and additionalProperties");
    for (uint32_t i = 0; i < o->n_props; i++) {
        if ((r = breaks(b, a, o->prop[i].name.ptr, &lits)))
            return r;
        for (size_t k = 0; k < lits.n; k++)
            if (o->prop[i].required && lits.p[k] == LIT(NODE_FALSE, true))
                return witnesses(b, x, o, from + 1, depth + 1);
    }
    if (o->rest)
        return gshape_refused(b->c, a->node,
                              a->n ? "additionalProperties cannot be negated where keys may come that are not declared"
                                   : "patternProperties cannot be negated where keys may come that are not declared");
    for (uint32_t i = 0; i < o->n_props; i++) {
        if ((r = breaks(b, a, o->prop[i].name.ptr, &lits)))
            return r;
        for (size_t k = 0; k < lits.n; k++)
            if ((r = variant(b, x, o, i, lits.p[k], from + 1, depth + 1)))
                return r;
    }
    return 0;
}

int gshape_object(struct gctx *c, struct grammar *g, struct gexpr *x, const struct gconj *k)
{
    struct gshape s = {.kind = G_OBJECT};
    struct build b = {.c = c, .g = g, .o = &s.u.obj};
    s.u.obj.max = G_INF;
    int r = gather(&b, k);
    if (r)
        return r;
    if (!(b.index = json_object()))
        return no_memory(c);
    if (!(r = patterns(&b)) && !(r = declare_all(&b)) && !b.empty)
        r = rest(&b);
    json_decref(b.index);
    if (r || b.empty || s.u.obj.min > s.u.obj.max)
        return r;
    return witnesses(&b, x, &s.u.obj, 0, 0);
}
