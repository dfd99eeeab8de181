/* json.c - jansson behind limits.
 *
 * Any thread. The tree belongs to the caller. jansson has a fixed depth of 2,048 and no limit on the number of
 * values, and a value of two bytes ("1,") costs some fifty in memory. So a scan over the bytes first counts depth and
 * values (everything outside strings) and refuses before anything is allocated. The scan need not be exact on texts
 * that are not JSON: jansson refuses those after it.
 */
#include "formats/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"

enum { DEFAULT_DEPTH = 64, DEFAULT_VALUES = 4000000 };

static int scan_limits(const char *p, size_t n, size_t max_depth, size_t max_values, struct err *e)
{
    size_t depth = 0, values = 0;
    bool str = false;
    for (size_t i = 0; i < n; i++) {
        char c = p[i];
        if (str) {
            if (c == '\\')
                i++;
            else if (c == '"')
                str = false;
            continue;
        }
        if (c == '"') {
            str = true;
        } else if (c == '{' || c == '[') {
            values++;
            if (++depth > max_depth)
                return err_set(e, -E2BIG, "JSON is nested deeper than %zu at byte %zu", max_depth, i);
        } else if (c == '}' || c == ']') {
            depth -= depth > 0;
        } else if (c == ',' || c == ':') {
            values++;
        }
        if (values > max_values)
            return err_set(e, -E2BIG, "JSON holds more than %zu values, at byte %zu", max_values, i);
    }
    return 0;
}

int json_parse(const char *p, size_t n, const struct json_limits *l, json_t **out, struct err *e)
{
    size_t depth = l && l->depth ? l->depth : DEFAULT_DEPTH;
    size_t values = l && l->values ? l->values : DEFAULT_VALUES;
    int r = scan_limits(p, n, depth, values, e);
    if (r)
        return r;
    json_error_t je = {0};
    json_t *v = json_loadb(p, n, JSON_REJECT_DUPLICATES | (l && l->scalars ? JSON_DECODE_ANY : 0), &je);
    if (!v && (!je.text[0] || json_error_code(&je) == json_error_out_of_memory)) /* it is silent when memory is out */
        return err_set(e, -ENOMEM, "out of memory for JSON of %zu bytes", n);
    if (!v)
        return err_set(e, -EINVAL, "not valid JSON at line %d, column %d (byte %d): %s", je.line, je.column,
                       je.position, je.text);
    *out = v;
    return 0;
}

int json_read_file(const char *path, size_t cap, json_t **out, struct err *e)
{
    char *p = NULL;
    size_t n = 0;
    int r = file_read(path, cap, &p, &n, e);
    if (r)
        return r;
    r = json_parse(p, n, NULL, out, e);
    free(p);
    return r ? err_prefix(e, r, "%s", path) : 0;
}

int json_write_file(const char *path, const json_t *v, struct err *e)
{
    char *s = json_dumps(v, JSON_INDENT(2) | JSON_ENSURE_ASCII);
    if (!s)
        return err_set(e, -ENOMEM, "%s: out of memory", path);
    size_t n = strlen(s);
    s[n++] = '\n'; /* over the NUL: the length is passed on */
    int r = file_write_atomic(path, s, n, 0644, e);
    free(s);
    return r;
}

/* The member, or NULL when absent or null. */
static json_t *member(const json_t *obj, const char *key)
{
    json_t *v = json_object_get(obj, key);
    return json_is_null(v) ? NULL : v;
}

static int missing(const char *key, struct err *e)
{
    return err_param(e, -EINVAL, key, "\"%s\" is missing", key);
}

int json_get_u64(const json_t *obj, const char *key, uint64_t min, uint64_t max, const uint64_t *def, uint64_t *out,
                 struct err *e)
{
    json_t *v = member(obj, key);
    if (!v) {
        if (!def)
            return missing(key, e);
        *out = *def;
        return 0;
    }
    json_int_t i = json_integer_value(v);
    if (!json_is_integer(v) || i < 0 || (uint64_t)i < min || (uint64_t)i > max)
        return err_param(e, -EINVAL, key, "\"%s\" must be an integer from %llu to %llu", key, (unsigned long long)min,
                         (unsigned long long)max);
    *out = (uint64_t)i;
    return 0;
}

int json_get_u32(const json_t *obj, const char *key, uint32_t min, uint32_t max, const uint32_t *def, uint32_t *out,
                 struct err *e)
{
    uint64_t wide = 0, wide_def = def ? *def : 0;
    int r = json_get_u64(obj, key, min, max, def ? &wide_def : NULL, &wide, e);
    if (!r)
        *out = (uint32_t)wide;
    return r;
}

int json_get_f64(const json_t *obj, const char *key, double min, double max, const double *def, double *out,
                 struct err *e)
{
    json_t *v = member(obj, key);
    if (!v) {
        if (!def)
            return missing(key, e);
        *out = *def;
        return 0;
    }
    double d = json_number_value(v);
    if (!json_is_number(v) || !isfinite(d) || d < min || d > max)
        return err_param(e, -EINVAL, key, "\"%s\" must be a number from %g to %g", key, min, max);
    *out = d;
    return 0;
}

int json_get_bool(const json_t *obj, const char *key, const bool *def, bool *out, struct err *e)
{
    json_t *v = member(obj, key);
    if (!v) {
        if (!def)
            return missing(key, e);
        *out = *def;
        return 0;
    }
    if (!json_is_boolean(v))
        return err_param(e, -EINVAL, key, "\"%s\" must be true or false", key);
    *out = json_is_true(v);
    return 0;
}

int json_get_str(const json_t *obj, const char *key, bool required, const char **out, struct err *e)
{
    json_t *v = member(obj, key);
    if (!v && required)
        return missing(key, e);
    if (v && !json_is_string(v))
        return err_param(e, -EINVAL, key, "\"%s\" must be a string", key);
    *out = v ? json_string_value(v) : NULL;
    return 0;
}

static int get_container(const json_t *obj, const char *key, bool required, json_type type, json_t **out, struct err *e)
{
    json_t *v = member(obj, key);
    if (!v && required)
        return missing(key, e);
    if (v && json_typeof(v) != type)
        return err_param(e, -EINVAL, key, "\"%s\" must be an %s", key, type == JSON_OBJECT ? "object" : "array");
    *out = v;
    return 0;
}

int json_get_object(const json_t *obj, const char *key, bool required, json_t **out, struct err *e)
{
    return get_container(obj, key, required, JSON_OBJECT, out, e);
}

int json_get_array(const json_t *obj, const char *key, bool required, json_t **out, struct err *e)
{
    return get_container(obj, key, required, JSON_ARRAY, out, e);
}
