/* gguf_value.c - typed access to a GGUF file's values.
 *
 * Pure functions on an open file; any thread. Values are read from the map byte by byte (they have no alignment).
 * gguf.c has checked that each lies inside the file, array elements included, so nothing here looks at bounds again.
 */
#include "formats/gguf_internal.h"

#include <math.h>
#include <string.h>

#include "common/num.h"

/* An integer value of any width; negative ones are refused. */
static bool as_u64(enum gguf_value_type t, const uint8_t *p, uint64_t *out)
{
    switch (t) {
    case GGUF_U8:
    case GGUF_U16:
    case GGUF_U32:
    case GGUF_U64:
        *out = gguf_le(p, gguf_value_size[t]);
        return true;
    case GGUF_I8:
    case GGUF_I16:
    case GGUF_I32:
    case GGUF_I64:
        *out = gguf_le(p, gguf_value_size[t]);
        return !(*out >> (8 * gguf_value_size[t] - 1));
    default:
        return false;
    }
}

static bool as_i32(enum gguf_value_type t, const uint8_t *p, int32_t *out)
{
    uint64_t u = 0;
    if (t == GGUF_I8)
        *out = (int8_t)p[0];
    else if (t == GGUF_I16)
        *out = (int16_t)gguf_le(p, 2);
    else if (t == GGUF_I32)
        *out = (int32_t)gguf_le(p, 4);
    else if (as_u64(t, p, &u) && u <= INT32_MAX)
        *out = (int32_t)u;
    else
        return false;
    return true;
}

static bool as_f64(enum gguf_value_type t, const uint8_t *p, double *out)
{
    uint64_t u = 0;
    int32_t i = 0;
    if (t == GGUF_F32) {
        *out = f32_of_bits((uint32_t)gguf_le(p, 4));
    } else if (t == GGUF_F64) {
        u = gguf_le(p, 8);
        memcpy(out, &u, sizeof u);
    } else if (as_i32(t, p, &i)) {
        *out = i;
    } else if (as_u64(t, p, &u)) {
        *out = (double)u;
    } else {
        return false;
    }
    return true;
}

static int missing(const char *key, struct err *e)
{
    return err_set(e, -EINVAL, "\"%s\" is missing", key);
}

int gguf_get_u64(const struct gguf_file *f, const char *key, uint64_t min, uint64_t max, const uint64_t *def,
                 uint64_t *out, struct err *e)
{
    const struct gguf_kv *kv = gguf_kv_find(f, key);
    uint64_t v = 0;
    if (!kv && !def)
        return missing(key, e);
    if (kv && (!as_u64(kv->type, kv->raw, &v) || v < min || v > max))
        return err_set(e, -EINVAL, "\"%s\" at byte %zu must be an integer from %llu to %llu", key, kv->off,
                       (unsigned long long)min, (unsigned long long)max);
    *out = kv ? v : *def;
    return 0;
}

int gguf_get_f64(const struct gguf_file *f, const char *key, double min, double max, const double *def, double *out,
                 struct err *e)
{
    const struct gguf_kv *kv = gguf_kv_find(f, key);
    double v = 0;
    if (!kv && !def)
        return missing(key, e);
    if (kv && (!as_f64(kv->type, kv->raw, &v) || !isfinite(v) || v < min || v > max))
        return err_set(e, -EINVAL, "\"%s\" at byte %zu must be a number from %g to %g", key, kv->off, min, max);
    *out = kv ? v : *def;
    return 0;
}

int gguf_get_bool(const struct gguf_file *f, const char *key, const bool *def, bool *out, struct err *e)
{
    const struct gguf_kv *kv = gguf_kv_find(f, key);
    if (!kv && !def)
        return missing(key, e);
    if (kv && (kv->type != GGUF_BOOL || kv->raw[0] > 1))
        return err_set(e, -EINVAL, "\"%s\" at byte %zu must be true or false", key, kv->off);
    *out = kv ? kv->raw[0] : *def;
    return 0;
}

static struct gguf_str str_at(const uint8_t *p)
{
    return (struct gguf_str){(const char *)p + 8, (size_t)gguf_le(p, 8)};
}

int gguf_get_str(const struct gguf_file *f, const char *key, bool required, struct gguf_str *out, struct err *e)
{
    const struct gguf_kv *kv = gguf_kv_find(f, key);
    if (!kv && required)
        return missing(key, e);
    if (kv && kv->type != GGUF_STR)
        return err_set(e, -EINVAL, "\"%s\" at byte %zu must be a string", key, kv->off);
    *out = kv ? str_at(kv->raw) : (struct gguf_str){0};
    return 0;
}

int gguf_get_array(const struct gguf_file *f, const char *key, enum gguf_value_type elem, bool required,
                   const struct gguf_kv **out, struct err *e)
{
    static const char *const names[GGUF_VALUE_TYPES] = {"uint8",  "int8",    "uint16",  "int16",  "uint32",
                                                        "int32",  "float32", "boolean", "string", "array",
                                                        "uint64", "int64",   "float64"};
    const struct gguf_kv *kv = gguf_kv_find(f, key);
    if (!kv && required)
        return missing(key, e);
    if (kv && (kv->type != GGUF_ARRAY || kv->elem != elem))
        return err_set(e, -EINVAL, "\"%s\" at byte %zu must be an array of %s", key, kv->off, names[elem]);
    *out = kv;
    return 0;
}

int gguf_array_strs(const struct gguf_kv *kv, struct gguf_str *out)
{
    if (kv->type != GGUF_ARRAY || kv->elem != GGUF_STR)
        return -EINVAL;
    const uint8_t *p = kv->raw;
    for (uint64_t i = 0; i < kv->n; i++) {
        out[i] = str_at(p);
        p += 8 + out[i].n;
    }
    return 0;
}

int gguf_array_i32(const struct gguf_kv *kv, int32_t *out)
{
    if (kv->type != GGUF_ARRAY)
        return -EINVAL;
    for (uint64_t i = 0; i < kv->n; i++) {
        if (!as_i32(kv->elem, kv->raw + i * gguf_value_size[kv->elem], &out[i]))
            return -EINVAL;
    }
    return 0;
}

int gguf_array_f32(const struct gguf_kv *kv, float *out)
{
    double d = 0;
    if (kv->type != GGUF_ARRAY)
        return -EINVAL;
    for (uint64_t i = 0; i < kv->n; i++) {
        if (!as_f64(kv->elem, kv->raw + i * gguf_value_size[kv->elem], &d))
            return -EINVAL;
        out[i] = (float)d;
    }
    return 0;
}
