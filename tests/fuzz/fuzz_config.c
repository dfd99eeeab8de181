/* fuzz_config.c - any bytes as a configuration file, a keys file, an admin key's file and an Authorization header. A
 * name or a value that comes out must be trimmed and terminated; a keys file that is refused must leave the keys as
 * they were. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "server/keys.h"
#include "server/options.h"
#include "tests/fuzz/scratch.h"

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

/* The same bytes as files, which must read as they do from memory, and as a header. */
static void files(struct keys *k, const uint8_t *data, size_t size, int rc)
{
    struct err e = {0};
    struct hash h;
    unsigned n = 0;
    scratch_dir();
    scratch_put("f", data, size);
    if (size < 4096 && keys_load(k, scratch_at("f"), &e) != rc)
        abort();
    options_file_read(scratch_at("f"), set, &n, &e);
    char *text = malloc(size + 1);
    if (!text)
        abort();
    memcpy(text, data, size);
    text[size] = 0;
    const char *key = keys_bearer(text);
    uint32_t tenant = keys_tenant(k, key);
    if (keys_required(k) && tenant != KEYS_NO_TENANT && tenant >= keys_tenants(k))
        abort();
    if (!keys_admin_load(scratch_at("f"), &h, &e))
        abort(); /* others may read it */
    chmod(scratch_at("f"), 0600);
    if (!keys_admin_load(scratch_at("f"), &h, &e)) {
        text[strcspn(text, "\r\n")] = 0;
        if (strlen(text) >= 8 && !memchr(data, '\r', size) && !memchr(data, 0, size) && !keys_match(&h, text))
            abort();
    }
    free(text);
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
    files(k, data, size, rc);
    for (uint32_t i = 0; i < keys_tenants(k); i++)
        if (keys_tenant_named(k, keys_tenant_name(k, i)) != i)
            abort();
    keys_free(k);
    return 0;
}
