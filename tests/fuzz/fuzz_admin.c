/* fuzz_admin.c - any bytes as the body of each admin call.
 *
 * What is taken is held to what the header says of it: names within their limits, finite weights, a hash where one is
 * claimed, defaults that are an object. Read twice: with room, and with an arena that is soon full.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "server/admin_body.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_error(int rc, const struct err *e)
{
    if (rc && (rc != e->code || !e->msg[0] || (rc != -EINVAL && rc != -E2BIG && rc != -ENOMEM)))
        abort();
}

static void check_task(const struct admin_task_body *t)
{
    if (t->roll_back && (t->ref || t->tenant || t->defaults_json))
        abort();
    if (t->n_refs > 4 || (t->defaults_json && t->defaults_json[0] != '{'))
        abort();
    for (uint32_t i = 0; i < t->n_refs; i++) {
        struct hash h;
        bool hash = !hash_parse(t->ref[i].name, &h);
        if (!isfinite(t->ref[i].weight) || strlen(t->ref[i].name) > ADMIN_NAME_MAX || hash != t->ref[i].by_hash ||
            (hash && !hash_equal(&h, &t->ref[i].hash)))
            abort();
    }
}

static void read_all(const char *body, size_t n, size_t memory)
{
    struct arena *a = arena_create(memory);
    struct admin_task_body task;
    struct admin_module_body module = {0};
    struct admin_lora_body lora;
    struct err e = {0};
    if (!a)
        return;
    int rc = admin_body_task(body, n, 4, a, &task, &e);
    check_error(rc, &e);
    if (!rc)
        check_task(&task);
    rc = admin_body_module(body, n, a, &module, &e);
    check_error(rc, &e);
    if (!rc && !module.path)
        abort();
    for (int unload = 0; unload < 2; unload++) {
        rc = admin_body_lora(body, n, unload, a, &lora, &e);
        check_error(rc, &e);
        if (!rc && (!lora.name[0] || (!unload && !lora.path[0])))
            abort();
    }
    arena_free(a);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *body = malloc(size + 1); /* so that a read beyond the end is seen */
    if (!body)
        return 0;
    memcpy(body, data, size);
    body = realloc(body, size ? size : 1);
    read_all(body, size, (size_t)1 << 20);
    read_all(body, size, 64);
    free(body);
    return 0;
}
