/* fuzz_json.c - any bytes as JSON under small limits: refused, or each member can be asked for as every type, and the
 * tree written to a file reads back equal.
 */
#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "formats/json.h"
#include "tests/fuzz/scratch.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void ask(const json_t *o, const char *key)
{
    static const uint32_t small = 3;
    static const uint64_t large = 3;
    static const double half = 0.5;
    static const bool yes = true;
    struct err e = {0};
    uint32_t u = 0;
    uint64_t w = 0;
    double d = 0;
    bool b = false;
    const char *s = NULL;
    json_t *v = NULL;
    for (int def = 0; def < 2; def++) {
        int r = json_get_u32(o, key, 1, 100, def ? &small : NULL, &u, &e);
        assert(r || (u >= 1 && u <= 100));
        r = json_get_u64(o, key, 2, UINT64_MAX, def ? &large : NULL, &w, &e);
        assert(r || w >= 2);
        r = json_get_f64(o, key, -10, 1e300, def ? &half : NULL, &d, &e);
        assert(r || (isfinite(d) && d >= -10));
        json_get_bool(o, key, def ? &yes : NULL, &b, &e);
        r = json_get_str(o, key, !def, &s, &e);
        assert(r || s || def);
        r = json_get_object(o, key, !def, &v, &e);
        assert(r || def ? 1 : json_is_object(v));
        r = json_get_array(o, key, !def, &v, &e);
        assert(r || def ? 1 : json_is_array(v));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct json_limits scalars = {.depth = 8, .values = 1000, .scalars = true};
    json_t *v = NULL, *back = NULL, *member;
    struct err e = {0};
    const char *key;
    if (size > 1 << 16)
        return 0;
    if (json_parse((const char *)data, size, &scalars, &v, &e)) {
        assert(e.code < 0 && e.msg[0] && !v);
        return 0;
    }
    if (json_is_object(v)) {
        ask(v, "absent");
        json_object_foreach(v, key, member)
        {
            ask(v, key);
        }
    }
    if (json_is_object(v) || json_is_array(v)) {
        scratch_dir();
        if (json_write_file(scratch_at("v.json"), v, &e) || json_read_file(scratch_at("v.json"), 1 << 22, &back, &e) ||
            json_object_size(back) != json_object_size(v))
            abort();
        json_decref(back);
        assert(json_read_file(scratch_at("v.json"), 1, &back, &e));
    }
    json_decref(v);
    return 0;
}
