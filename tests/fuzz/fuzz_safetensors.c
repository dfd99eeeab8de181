/* fuzz_safetensors.c - any bytes as a safetensors file: refused, or every tensor's bytes and names can be read.
 *
 * After "DIR\n" the input is a directory instead: the index JSON, then the shards a.safetensors and b.safetensors, with
 * "\nNEXT\n" between; an empty index makes the first shard model.safetensors.
 */
#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "formats/safetensors.h"
#include "tests/fuzz/scratch.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_all(struct st_file *f)
{
    unsigned sum = 0;
    for (size_t i = 0; i < st_count(f); i++) {
        const struct st_tensor *t = st_at(f, i);
        assert(st_find(f, t->name) == t);
        for (size_t k = 0; k < t->bytes; k++)
            sum += t->data[k];
        float *x = malloc(t->bytes * 4 + 1);
        if (x && dtype_is_float(t->type))
            assert(!dtype_to_f32(t->type, t->data, t->bytes / dtype_size(t->type), x));
        free(x);
        st_forget(f, t);
    }
    sum += st_meta(f, "format") != NULL;
    assert(!st_find(f, "no such name, \x01"));
    assert(!st_at(f, st_count(f)) && sum + 1);
    st_close(f);
}

static int open_dir(const uint8_t *data, size_t size, struct st_file **f, struct err *e)
{
    static const char *const names[] = {"model.safetensors.index.json", "a.safetensors", "b.safetensors"};
    struct scratch_part part[3];
    const char *dir = scratch_dir();
    size_t n = scratch_split(data, size, "\nNEXT\n", 6, part, 3);
    for (size_t i = 0; i < n; i++) {
        if (i || part[0].n)
            scratch_put(i == 1 && !part[0].n ? "model.safetensors" : names[i], part[i].p, part[i].n);
    }
    return st_open_dir(dir, f, e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct st_file *f = NULL;
    struct err e = {0};
    int r = size >= 4 && !memcmp(data, "DIR\n", 4) ? open_dir(data + 4, size - 4, &f, &e)
                                                   : st_open_mem("FILE", data, size, &f, &e);
    assert(r ? r == e.code && r < 0 && e.msg[0] && !f : !!f);
    if (!r)
        read_all(f);
    return 0;
}
