/* fuzz_safetensors.c - any bytes as a safetensors file: refused, or every tensor's bytes and names can be read. */
#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "formats/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct st_file *f = NULL;
    struct err e = {0};
    if (st_open_mem("FILE", data, size, &f, &e)) {
        assert(e.code < 0 && e.msg[0] && !f);
        return 0;
    }
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
    st_close(f);
    return sum == 0xFFFFFFFFu;
}
