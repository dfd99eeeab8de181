/* fuzz_gguf.c - any bytes as a GGUF file: refused, or every value and every tensor can be read. */
#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "formats/gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_value(const struct gguf_file *f, const struct gguf_kv *kv)
{
    struct err e = {0};
    uint64_t u = 0;
    double d = 0;
    bool b = false;
    struct gguf_str s = {0};
    const struct gguf_kv *list = NULL;
    int32_t none = 0;
    size_t n = 0;
    assert(gguf_kv_find(f, kv->key) == kv);
    gguf_get_u64(f, kv->key, 0, UINT64_MAX, NULL, &u, &e);
    gguf_get_f64(f, kv->key, -1e308, 1e308, NULL, &d, &e);
    gguf_get_bool(f, kv->key, NULL, &b, &e);
    if (!gguf_get_str(f, kv->key, true, &s, &e))
        n += s.n ? (unsigned char)s.p[s.n - 1] : 0;
    for (enum gguf_value_type t = GGUF_U8; t < GGUF_VALUE_TYPES; t++) {
        bool is = kv->type == GGUF_ARRAY && kv->elem == t;
        assert(!gguf_get_array(f, kv->key, t, true, &list, &e) == is);
    }
    if (kv->type != GGUF_ARRAY) {
        assert(gguf_array_strs(kv, &s) && gguf_array_i32(kv, &none));
        return;
    }
    struct gguf_str *strs = malloc(kv->n * sizeof *strs + 1);
    if (strs && !gguf_array_strs(kv, strs)) {
        for (uint64_t i = 0; i < kv->n; i++)
            n += strs[i].n ? (unsigned char)strs[i].p[strs[i].n - 1] : 0;
    } else if (strs) {
        gguf_array_i32(kv, (int32_t *)strs);
        gguf_array_f32(kv, (float *)strs);
    }
    free(strs);
    assert(n + 1);
}

static void read_absent(const struct gguf_file *f)
{
    static const uint64_t seven = 7;
    static const double half = 0.5;
    static const bool yes = true;
    struct err e = {0};
    uint64_t u = 0;
    double d = 0;
    bool b = false;
    struct gguf_str s = {"", 0};
    const struct gguf_kv *list;
    const char *key = "no such key \x01";
    if (!gguf_kv_find(f, key)) {
        assert(gguf_get_u64(f, key, 0, 9, NULL, &u, &e) && gguf_get_f64(f, key, 0, 1, NULL, &d, &e));
        assert(gguf_get_bool(f, key, NULL, &b, &e) && gguf_get_str(f, key, true, &s, &e));
        assert(gguf_get_array(f, key, GGUF_STR, true, &list, &e));
        assert(!gguf_get_u64(f, key, 0, 9, &seven, &u, &e) && u == 7);
        assert(!gguf_get_f64(f, key, 0, 1, &half, &d, &e) && d == 0.5);
        assert(!gguf_get_bool(f, key, &yes, &b, &e) && b);
        assert(!gguf_get_str(f, key, false, &s, &e) && !s.p);
        assert(!gguf_get_array(f, key, GGUF_STR, false, &list, &e) && !list);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gguf_file *f = NULL;
    struct err e = {0};
    if (gguf_open_mem("FILE", data, size, &f, &e)) {
        assert(e.code < 0 && e.msg[0] && !f);
        return 0;
    }
    read_absent(f);
    for (size_t i = 0; i < gguf_kv_count(f); i++)
        read_value(f, gguf_kv_at(f, i));
    for (size_t i = 0; i < gguf_tensor_count(f); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(f, i);
        assert(gguf_tensor_find(f, t->name) == t && gguf_type_name(t->type));
        float *x = malloc(t->row_len * sizeof *x);
        if (x) {
            assert(!gguf_tensor_f32(t, 0, 1, x) && !gguf_tensor_f32(t, t->n_rows - 1, 1, x));
            assert(gguf_tensor_f32(t, t->n_rows, 1, x));
        }
        free(x);
        gguf_forget(f, t);
    }
    gguf_close(f);
    return 0;
}
