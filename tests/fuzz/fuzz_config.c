/* fuzz_config.c - any bytes as a configuration file, and as a keys file. A name or a value that comes out must be
 * trimmed and terminated; a keys file that is refused must leave the keys as they were. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "server/keys.h"
#include "server/options.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int set(void *ctx, const char *key, const char *value, const char *where, struct err *e)
{
    size_t n = strlen(value);
    uint64_t bytes;
    (void)e;
    ++*(unsigned *)ctx;
    if (!where[0] || strchr(key, '=') || strchr(value, '\n') || (n && (value[0] == ' ' || value[n - 1] == ' ')))
        abort();
    options_bytes(value, &bytes);
    options_is_loopback(value);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err e = {0};
    unsigned n = 0;
    if (options_file_parse((const char *)data, size, "f", set, &n, &e) && !e.msg[0])
        abort();
    struct keys *k = keys_create();
    if (!k)
        return 0;
    int rc = keys_parse(k, (const char *)data, size, "f", &e);
    if (keys_required(k) != (rc == 0))
        abort();
    keys_free(k);
    return 0;
}
