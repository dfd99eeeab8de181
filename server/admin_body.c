/* admin_body.c - the JSON bodies of admin calls: bounded, strict, each error with the field's name.
 *
 * Any thread, no state. jansson's tree lives during one call; strings that are kept are copied to the caller's arena.
 * Before jansson sees a byte, size, UTF-8, number of values and depth are checked (json_parse), which bounds its memory
 * and its recursion. A key that is not known is refused: a slip of the pen must not become a task with other settings.
 */
#include "server/admin_body.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"
#include "formats/json.h"

#define VALUES_MAX 65536
#define DEPTH_MAX 32
#define TENANT_MAX 64

static int no_memory(struct err *e)
{
    return err_set(e, -ENOMEM, "out of memory");
}

static int load(const char *body, size_t n, json_t **out, struct err *e)
{
    static const struct json_limits limits = {.depth = DEPTH_MAX, .values = VALUES_MAX};
    if (n > ADMIN_BODY_MAX)
        return err_set(e, -E2BIG, "the body has %zu bytes, the limit is %zu", n, ADMIN_BODY_MAX);
    if (!n)
        return err_set(e, -EINVAL, "the body is empty; it must be a JSON object");
    if (utf8_valid(body, n) < n)
        return err_set(e, -EINVAL, "the body is not valid UTF-8 at byte %zu", utf8_valid(body, n));
    json_t *o = NULL;
    int rc = json_parse(body, n, &limits, &o, e);
    if (rc == -E2BIG) /* values or depth, not bytes: 400 */
        rc = e->code = -EINVAL;
    if (rc)
        return err_prefix(e, rc, "the body");
    if (!json_is_object(o)) {
        json_decref(o);
        return err_set(e, -EINVAL, "the body must be a JSON object");
    }
    *out = o;
    return 0;
}

static int only(const json_t *o, const char *const *names, struct err *e)
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

static int get_string(struct arena *a, const json_t *o, const char *key, const char **out, struct err *e)
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

static int get_bool(const json_t *o, const char *key, bool *out, struct err *e)
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

/* ---- a task ---- */

static int read_ref(struct arena *a, const json_t *v, struct admin_ref *out, struct err *e)
{
    static const char *const names[] = {"name", "weight", NULL};
    const json_t *name = v, *weight = NULL;
    if (json_is_object(v)) {
        int rc = only(v, names, e);
        if (rc)
            return rc;
        name = json_object_get(v, "name");
        weight = json_object_get(v, "weight");
    }
    if (!json_is_string(name))
        return err_param(e, -EINVAL, "modules", "an entry of modules is a name, or an object with name and weight");
    if (strlen(json_string_value(name)) != json_string_length(name) || json_string_length(name) > ADMIN_NAME_MAX)
        return err_param(e, -EINVAL, "modules", "a module's name has 1 to %d bytes and no NUL", ADMIN_NAME_MAX);
    out->name = arena_strndup(a, json_string_value(name), json_string_length(name));
    if (!out->name)
        return no_memory(e);
    out->by_hash = !hash_parse(out->name, &out->hash);
    if (out->by_hash) { /* one way to write it */
        char *hex = arena_alloc(a, HASH_HEX);
        if (!hex)
            return no_memory(e);
        hash_hex(&out->hash, hex);
        out->name = hex;
    }
    out->weight = 1;
    if (!weight || json_is_null(weight))
        return 0;
    out->weight = json_is_number(weight) ? (float)json_number_value(weight) + 0.0f : NAN;
    return isfinite(out->weight) ? 0 : err_param(e, -EINVAL, "modules", "a weight must be a finite number");
}

static int read_refs(struct arena *a, const json_t *o, uint32_t max, struct admin_task_body *out, struct err *e)
{
    const json_t *list = json_object_get(o, "modules");
    if (!list)
        return err_param(e, -EINVAL, "modules",
                         "modules is missing: a list of names, or of objects with name and weight");
    if (!json_is_array(list))
        return err_param(e, -EINVAL, "modules", "modules must be a list");
    if (json_array_size(list) > max)
        return err_param(e, -EINVAL, "modules", "a task has at most %u modules", max);
    out->n_refs = (uint32_t)json_array_size(list);
    out->ref = arena_calloc(a, out->n_refs + 1u, sizeof *out->ref);
    int rc = out->ref ? 0 : no_memory(e);
    for (uint32_t i = 0; !rc && i < out->n_refs; i++)
        rc = read_ref(a, json_array_get(list, i), &out->ref[i], e);
    return rc;
}

/* In one way to write them, so that the same ones give the same version. */
static int read_defaults(struct arena *a, const json_t *o, const char **out, struct err *e)
{
    const json_t *d = json_object_get(o, "defaults");
    if (!d || json_is_null(d))
        return 0;
    if (!json_is_object(d))
        return err_param(e, -EINVAL, "defaults", "defaults must be an object of sampling fields");
    if (!json_object_size(d))
        return 0;
    char *text = json_dumps(d, JSON_COMPACT | JSON_SORT_KEYS);
    size_t n = text ? strlen(text) : 0;
    int rc = text ? 0 : no_memory(e);
    if (!rc && n > ADMIN_DEFAULTS_MAX)
        rc = err_param(e, -EINVAL, "defaults", "defaults have at most %d bytes", ADMIN_DEFAULTS_MAX);
    if (!rc && !(*out = arena_strndup(a, text, n)))
        rc = no_memory(e);
    free(text);
    return rc;
}

static int read_template(struct arena *a, const json_t *o, const char **out, struct err *e)
{
    if (json_string_length(json_object_get(o, "template")) > ADMIN_TEMPLATE_MAX)
        return err_param(e, -EINVAL, "template", "a template has at most %d bytes", ADMIN_TEMPLATE_MAX);
    return get_string(a, o, "template", out, e);
}

static int read_version(const json_t *o, struct admin_task_body *out, struct err *e)
{
    const json_t *v = json_object_get(o, "version");
    if (json_object_size(o) != 1)
        return err_param(e, -EINVAL, "version", "version goes back to a kept version, and stands alone");
    if (!json_is_string(v) || hash_parse(json_string_value(v), &out->version))
        return err_param(e, -EINVAL, "version", "version is the 64 hexadecimal digits of a kept version");
    out->roll_back = true;
    return 0;
}

static int read_tenant(struct arena *a, const json_t *o, const char **out, struct err *e)
{
    int rc = get_string(a, o, "tenant", out, e);
    return !rc && *out ? admin_check_tenant(*out, e) : rc;
}

static int read_task(struct arena *a, const json_t *o, uint32_t max, struct admin_task_body *out, struct err *e)
{
    static const char *const names[] = {"modules", "defaults", "template", "tenant", "version", NULL};
    int rc = only(o, names, e);
    if (!rc && json_object_get(o, "version"))
        return read_version(o, out, e);
    if (!rc)
        rc = read_refs(a, o, max, out, e);
    if (!rc)
        rc = read_tenant(a, o, &out->tenant, e);
    if (!rc)
        rc = read_template(a, o, &out->template_text, e);
    return rc ? rc : read_defaults(a, o, &out->defaults_json, e);
}

int admin_body_task(const char *body, size_t n, uint32_t max_modules, struct arena *a, struct admin_task_body *out,
                    struct err *e)
{
    struct admin_task_body b = {0};
    json_t *o = NULL;
    int rc = load(body, n, &o, e);
    if (rc)
        return rc;
    rc = read_task(a, o, max_modules, &b, e);
    json_decref(o);
    if (!rc)
        *out = b;
    return rc;
}

/* ---- a module ---- */

static int read_module(struct arena *a, const json_t *o, struct admin_module_body *out, struct err *e)
{
    static const char *const names[] = {"path", "tenant", "pinned", "dry_run", NULL};
    const char *tenant = NULL;
    int rc = only(o, names, e);
    if (!rc)
        rc = get_string(a, o, "path", &out->path, e);
    if (!rc && !out->path)
        rc = err_param(e, -EINVAL, "path", "path is missing: where under a --module-root the module lies");
    if (!rc)
        rc = read_tenant(a, o, &tenant, e);
    if (!rc)
        rc = get_bool(o, "pinned", &out->pinned, e);
    if (!rc)
        rc = get_bool(o, "dry_run", &out->dry_run, e);
    if (tenant)
        out->tenant = tenant;
    return rc;
}

int admin_body_module(const char *body, size_t n, struct arena *a, struct admin_module_body *out, struct err *e)
{
    struct admin_module_body b = *out;
    json_t *o = NULL;
    int rc = load(body, n, &o, e);
    if (rc)
        return rc;
    rc = read_module(a, o, &b, e);
    json_decref(o);
    if (!rc)
        *out = b;
    return rc;
}

/* ---- vLLM's ---- */

static int read_lora(struct arena *a, const json_t *o, bool unload, struct admin_lora_body *out, struct err *e)
{
    static const char *const loads[] = {"lora_name", "lora_path", "load_inplace", "base_model_name", NULL};
    static const char *const unloads[] = {"lora_name", "lora_int_id", NULL};
    const char *base;
    int rc = only(o, unload ? unloads : loads, e);
    if (!rc)
        rc = get_string(a, o, "lora_name", &out->name, e);
    if (!rc)
        rc = get_string(a, o, "lora_path", &out->path, e);
    if (!rc)
        rc = get_string(a, o, "base_model_name", &base, e); /* there is one backbone: it is looked at, and not needed */
    if (!rc)
        rc = get_bool(o, "load_inplace", &out->load_inplace, e);
    if (!rc && (!out->name || !*out->name))
        rc = err_param(e, -EINVAL, "lora_name", "lora_name is missing or empty");
    if (!rc && !unload && (!out->path || !*out->path))
        rc = err_param(e, -EINVAL, "lora_path", "lora_path is missing or empty");
    return rc;
}

int admin_body_lora(const char *body, size_t n, bool unload, struct arena *a, struct admin_lora_body *out,
                    struct err *e)
{
    struct admin_lora_body b = {0};
    json_t *o = NULL;
    int rc = load(body, n, &o, e);
    if (rc)
        return rc;
    rc = read_lora(a, o, unload, &b, e);
    json_decref(o);
    if (!rc)
        *out = b;
    return rc;
}
