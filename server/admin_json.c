/* admin_json.c - the JSON bodies of admin calls: bounded, strict, each error with the field's name.
 *
 * Any thread. jansson's tree is the caller's and lives for one stage; strings that are kept are copied to the
 * operation's arena. Before jansson sees a byte, size, UTF-8, number of values and depth are checked, which bounds its
 * memory and its recursion.
 */
#include <stdio.h>
#include <string.h>

#include "common/utf8.h"
#include "server/admin.h"

#define BODY_MAX ((size_t)4 << 20)
#define VALUES_MAX 65536u
#define DEPTH_MAX 32u
#define TENANT_MAX 64

static int check_shape(const char *s, size_t n, struct err *e)
{
    size_t depth = 0, values = 1;
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        char c = s[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
            continue;
        }
        in_string = c == '"';
        if (c == '[' || c == '{')
            depth++;
        else if ((c == ']' || c == '}') && depth)
            depth--;
        values += c == ',' || c == '[' || c == '{';
        if (depth > DEPTH_MAX || values > VALUES_MAX)
            return err_set(e, -EINVAL, "the JSON is nested deeper than %u or has more than %u values", DEPTH_MAX,
                           VALUES_MAX);
    }
    return 0;
}

int admin_json(const char *body, size_t n, json_t **out, struct err *e)
{
    if (n > BODY_MAX)
        return err_set(e, -E2BIG, "the body has %zu bytes, the limit is %zu", n, BODY_MAX);
    if (!n)
        return err_set(e, -EINVAL, "the body is empty; it must be a JSON object");
    if (utf8_valid(body, n) < n)
        return err_set(e, -EINVAL, "the body is not valid UTF-8 at byte %zu", utf8_valid(body, n));
    int rc = check_shape(body, n, e);
    if (rc)
        return rc;
    json_error_t je;
    json_t *o = json_loadb(body, n, JSON_REJECT_DUPLICATES, &je);
    if (!o)
        return err_set(e, -EINVAL, "the body is not JSON: line %d, column %d: %s", je.line, je.column, je.text);
    if (!json_is_object(o)) {
        json_decref(o);
        return err_set(e, -EINVAL, "the body must be a JSON object");
    }
    *out = o;
    return 0;
}

int admin_json_only(const json_t *o, const char *const *names, struct err *e)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)o, key, v)
    {
        size_t i = 0;
        while (names[i] && strcmp(names[i], key))
            i++;
        if (names[i])
            continue;
        char param[64];
        snprintf(param, sizeof param, "%.*s", utf8_cut(key, strlen(key), 60), key);
        return err_param(e, -EINVAL, param, "the field \"%s\" is not known here", param);
    }
    return 0;
}

int admin_json_string(struct arena *a, const json_t *o, const char *key, const char **out, struct err *e)
{
    const json_t *v = json_object_get(o, key);
    *out = NULL;
    if (!v || json_is_null(v))
        return 0;
    if (!json_is_string(v))
        return err_param(e, -EINVAL, key, "%s must be a string", key);
    *out = arena_strndup(a, json_string_value(v), json_string_length(v));
    return *out ? 0 : err_param(e, -E2BIG, key, "%s is too long", key);
}

int admin_json_bool(const json_t *o, const char *key, bool *out, struct err *e)
{
    const json_t *v = json_object_get(o, key);
    if (!v || json_is_null(v))
        return 0;
    if (!json_is_boolean(v))
        return err_param(e, -EINVAL, key, "%s must be true or false", key);
    *out = json_is_true(v);
    return 0;
}

int admin_check_tenant(const char *tenant, struct err *e)
{
    size_t n = strlen(tenant);
    bool ok = n && n <= TENANT_MAX;
    for (size_t i = 0; ok && i < n; i++)
        ok = (unsigned char)tenant[i] > ' ' && (unsigned char)tenant[i] < 0x7F && tenant[i] != '"' &&
             tenant[i] != '\\' && tenant[i] != ':';
    return ok ? 0
              : err_param(e, -EINVAL, "tenant",
                          "a tenant's name is 1 to %d printable characters, as in the file of API keys", TENANT_MAX);
}
