/* fuzz_backbone.c - any bytes as a backbone's config.json: refused by a sentence, or shapes that hold together and a
 * rope table of finite numbers.
 */
#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "model/config.h"
#include "tests/fuzz/scratch.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model_config c = {0};
    struct err e = {0};
    if (size > 1 << 16)
        return 0;
    const char *dir = scratch_dir();
    scratch_put("config.json", data, size);
    if (model_config_read(dir, &c, &e)) {
        assert(e.code < 0 && e.msg[0] && !c.layer);
        return 0;
    }
    assert(c.n_layers && c.layer && c.head_dim >= 8 && c.head_dim <= 256 && c.head_dim % 8 == 0);
    for (uint32_t i = 0; i < c.n_layers; i++)
        assert(c.layer[i].n_kv_heads && c.layer[i].n_heads % c.layer[i].n_kv_heads == 0 && c.layer[i].ffn);
    float *table = malloc(2 * c.head_dim * sizeof *table);
    if (table) {
        model_rope_fill(&c, 0, 1, table);
        model_rope_fill(&c, c.max_context - 1, 1, table + c.head_dim);
        for (uint32_t i = 0; i < 2 * c.head_dim; i++)
            assert(isfinite(table[i]));
    }
    free(table);
    model_config_free(&c);
    return 0;
}
