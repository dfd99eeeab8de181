/* structured.c - what form an answer must have: OpenAI's response_format and vLLM's structured_outputs.
 *
 * Any thread; results are in the request's arena, jansson's texts are freed here. Only the fields are read: the schema
 * or the regular expression in them is checked by whoever compiles it. A schema is written again as compact JSON with
 * its members in the client's order, which is the order that the answer's keys come in. Both fields end in one struct
 * req_grammar, and a request has one kind of form at most.
 */
#include "proto/parse.h"

#include <stdlib.h>
#include <string.h>

static int set_kind(struct parse *p, const char *param, enum req_grammar_kind kind)
{
    struct req_grammar *g = &p->r->grammar;
    if (g->kind)
        return err_param(p->e, -EINVAL, param, "only one form of the answer can be asked for (%s has one already)",
                         g->param);
    g->kind = kind;
    g->param = param;
    return 0;
}

/* v as compact JSON. */
static int read_schema(struct parse *p, const char *param, const char *where, const json_t *v)
{
    struct req_grammar *g = &p->r->grammar;
    if (!json_is_object(v))
        return err_param(p->e, -EINVAL, param, "%s must be an object (a JSON schema)", where);
    char *text = json_dumps(v, JSON_COMPACT);
    size_t n = text ? strlen(text) : 0;
    char *copy = text && n <= p->lim->max_grammar ? arena_strndup(p->a, text, n) : NULL;
    free(text);
    if (!text)
        return err_set(p->e, -ENOMEM, "out of memory");
    if (n > p->lim->max_grammar)
        return err_param(p->e, -EINVAL, param, "%s has %zu bytes, the limit is %zu", where, n, p->lim->max_grammar);
    if (!copy)
        return too_large(p);
    g->text = (struct req_str){copy, n};
    return set_kind(p, param, REQ_JSON_SCHEMA);
}

static int read_source(struct parse *p, const char *param, const char *where, const json_t *v,
                       enum req_grammar_kind kind)
{
    if (!json_is_string(v) || !json_string_length(v) || json_string_length(v) > p->lim->max_grammar)
        return err_param(p->e, -EINVAL, param, "%s must be a string of 1 to %zu bytes", where, p->lim->max_grammar);
    int rc = read_str(p, param, v, &p->r->grammar.text);
    return rc ? rc : set_kind(p, param, kind);
}

/* ---- response_format ---- */

/* A schema's name: 1 to 64 of what OpenAI allows. */
static bool good_name(const json_t *v)
{
    const char *s = json_string_value(v);
    size_t n = json_string_length(v);
    return s && n >= 1 && n <= 64 && strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == n;
}

static int read_json_schema(struct parse *p, const char *param, const json_t *v)
{
    const char *key;
    json_t *one;
    if (!json_is_object(v))
        return err_param(p->e, -EINVAL, param, "%s.json_schema must be an object with name and schema", param);
    json_object_foreach((json_t *)v, key, one)
    {
        const char *want = NULL;
        if (!strcmp(key, "name"))
            want = good_name(one) ? NULL : "1 to 64 letters, digits, _ and -";
        else if (!strcmp(key, "description"))
            want = json_is_string(one) || json_is_null(one) ? NULL : "a string";
        else if (!strcmp(key, "strict"))
            want = json_is_boolean(one) || json_is_null(one) ? NULL : "true or false";
        else if (strcmp(key, "schema"))
            return err_param(p->e, -EINVAL, param, "unknown field '%s' in %s.json_schema", key, param);
        if (want)
            return err_param(p->e, -EINVAL, param, "%s.json_schema.%s must be %s", param, key, want);
    }
    if (!json_object_get(v, "name"))
        return err_param(p->e, -EINVAL, param, "%s.json_schema.name is required", param);
    one = json_object_get(v, "schema");
    if (!one || json_is_null(one))
        return err_param(p->e, -EINVAL, param, "%s.json_schema.schema is required", param);
    return read_schema(p, param, "response_format.json_schema.schema", one);
}

int read_response_format(struct parse *p, const char *param, const json_t *v)
{
    const char *type = json_string_value(json_object_get(v, "type")), *key;
    json_t *one;
    if (!type)
        return err_param(p->e, -EINVAL, param, "%s must be an object with a type", param);
    bool schema = !strcmp(type, "json_schema");
    json_object_foreach((json_t *)v, key, one)
    {
        if (strcmp(key, "type") && !(schema && !strcmp(key, "json_schema")) && !json_is_null(one))
            return err_param(p->e, -EINVAL, param, "%s of type '%s' has no field '%s'", param, type, key);
    }
    if (schema)
        return read_json_schema(p, param, json_object_get(v, "json_schema"));
    if (!strcmp(type, "json_object"))
        return set_kind(p, param, REQ_JSON_OBJECT);
    if (!strcmp(type, "text"))
        return 0;
    return err_param(p->e, -EINVAL, param, "%s.type '%s' is not supported: text, json_object and json_schema are",
                     param, type);
}

/* ---- structured_outputs ---- */

static int read_choice(struct parse *p, const char *param, const json_t *v)
{
    size_t n = json_array_size(v), bytes = 0;
    if (!n || n > p->lim->max_grammar_choices)
        return err_param(p->e, -EINVAL, param, "%s.choice must be a list of 1 to %zu strings", param,
                         p->lim->max_grammar_choices);
    struct req_str *choice = arena_calloc(p->a, n, sizeof *choice);
    if (!choice)
        return too_large(p);
    for (size_t i = 0; i < n; i++) {
        const json_t *one = json_array_get(v, i);
        if (!json_is_string(one) || !json_string_length(one))
            return err_param(p->e, -EINVAL, param, "%s.choice[%zu] must be a string that is not empty", param, i);
        bytes += json_string_length(one);
        int rc = bytes > p->lim->max_grammar ? 0 : read_str(p, param, one, &choice[i]);
        if (rc)
            return rc;
    }
    if (bytes > p->lim->max_grammar)
        return err_param(p->e, -EINVAL, param, "%s.choice has %zu bytes, the limit is %zu", param, bytes,
                         p->lim->max_grammar);
    p->r->grammar.choice = choice;
    p->r->grammar.n_choices = n;
    return set_kind(p, param, REQ_CHOICE);
}

static int read_form(struct parse *p, const char *param, const char *key, const json_t *v)
{
    if (!strcmp(key, "json"))
        return json_is_string(v) ? read_source(p, param, "structured_outputs.json", v, REQ_JSON_SCHEMA)
                                 : read_schema(p, param, "structured_outputs.json", v);
    if (!strcmp(key, "regex"))
        return read_source(p, param, "structured_outputs.regex", v, REQ_REGEX);
    if (!strcmp(key, "choice"))
        return read_choice(p, param, v);
    if (!strcmp(key, "json_object")) {
        if (!json_is_boolean(v))
            return err_param(p->e, -EINVAL, param, "%s.json_object must be true or false", param);
        return json_is_true(v) ? set_kind(p, param, REQ_JSON_OBJECT) : 0;
    }
    /* What vLLM's own clients write out although it is the default. */
    if (json_is_false(v) && !strncmp(key, "disable_", 8))
        return 0;
    return err_param(p->e, -EINVAL, param, "%s.%s is not supported: json, regex, choice and json_object are", param,
                     key);
}

int read_structured_outputs(struct parse *p, const char *param, const json_t *v)
{
    const char *key;
    json_t *one;
    if (!json_is_object(v))
        return err_param(p->e, -EINVAL, param, "%s must be an object", param);
    json_object_foreach((json_t *)v, key, one)
    {
        int rc = json_is_null(one) ? 0 : read_form(p, param, key, one);
        if (rc)
            return rc;
    }
    if (!p->r->grammar.kind)
        return err_param(p->e, -EINVAL, param, "%s must have one of json, regex, choice and json_object", param);
    return 0;
}
