/* fuzz_peft.c - any bytes as a PEFT directory: adapter_config.json up to the first NUL, then adapter_model.safetensors.
 *
 * Without a NUL the bytes are a configuration alone, which is asked about a few names. The files are also put into a
 * directory and read from there, with the same result.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "pet/internal.h"
#include "pet/peft_config.h"
#include "tests/fuzz/scratch.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { INPUT_CAP = 1 << 18 };

static void ask(const char *config, size_t n)
{
    static const char *const modules[] = {
        "model.layers.0.self_attn.q_proj", "model.layers.11.mlp.down_proj", "lm_head", "a", "layers.1.x", "a..b.1.2.3"};
    struct peft_config *c = NULL;
    struct err e = {0};
    if (peft_config_parse(config, n, &c, &e))
        return;
    for (size_t i = 0; i < sizeof modules / sizeof *modules; i++) {
        uint32_t rank = 0;
        float scale = 0;
        int r = peft_config_module(c, modules[i], &rank, &scale, &e);
        if (!r && !rank)
            abort();
    }
    if (!peft_config_base(c))
        abort();
    peft_config_free(c);
}

static const struct pet_limits limits = {.max_bytes = 1 << 22, .max_rank = PET_MAX_RANK};

static int from_dir(const void *config, size_t n, const void *tensors, size_t rest)
{
    struct pet *p = NULL;
    struct err e = {0};
    const char *dir = scratch_dir();
    scratch_put("adapter_config.json", config, n);
    if (rest)
        scratch_put("adapter_model.safetensors", tensors, rest);
    else
        scratch_put("adapter_model.bin", "", 0);
    int r = pet_read_peft(dir, &limits, &p, &e);
    if (!r != !!p || !r != !e.msg[0])
        abort();
    pet_close(p);
    return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *end = size ? memchr(data, 0, size) : NULL;
    struct pet *p = NULL;
    struct err e = {0};
    if (size > INPUT_CAP)
        return 0;
    size_t n = end ? (size_t)(end - data) : size, rest = end ? size - n - 1 : 0;
    ask((const char *)data, n);
    if (!end)
        return 0;
    char *tensors = malloc(rest + 1);
    if (!tensors)
        return 0;
    memcpy(tensors, end + 1, rest);
    int again = from_dir(data, n, tensors, rest);
    if (pet_parse_peft((const char *)data, n, tensors, rest, &limits, &p, &e)) {
        free(tensors);
        if (!again)
            abort();
        return 0;
    }
    if (again || !pet_info(p)->n_sites)
        abort();
    pet_close(p);
    return 0;
}
