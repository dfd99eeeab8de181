/* fuzz_pet.c - any bytes as a .pet file, and as a recovery file.
 *
 * A .pet is covered by hashes, which random changes never get past. So it is read twice: as it is, and with the hashes
 * of the manifest and of the frames put right first, so that changes reach the manifest's reader and the decoder.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "formats/json.h"
#include "pet/container.h"
#include "pet/internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_INPUT = 1 << 20 };
static const struct pet_limits limits = {.max_bytes = 1 << 22, .max_rank = PET_MAX_RANK};

static void look(struct pet *p)
{
    size_t sum = 0;
    for (uint32_t i = 0; i < pet_info(p)->n_sites; i++) {
        struct pet_part q;
        pet_part(p, i, &q);
        if (!q.rank || q.rank > PET_MAX_RANK || !q.k || !q.n || !*q.module)
            abort();
        for (int j = 0; j < 2; j++) {
            const struct pet_tensor *t = &p->parts[i].t[j];
            sum += t->bytes + (t->bytes ? t->data[t->bytes - 1] & 0 : 0);
        }
    }
    if (sum != pet_info(p)->bytes)
        abort();
    struct err e = {0};
    if (pet_finite(p, &e) && !e.msg[0])
        abort();
    pet_close(p);
}

/* Overwrites the hash that stands as text for a layer with the one its frame has. */
static void repair_layers(uint8_t *file, size_t n, size_t manifest)
{
    json_t *root = NULL, *l;
    size_t i;
    if (json_parse((char *)file + 64, manifest, NULL, &root, NULL))
        return;
    json_array_foreach(json_object_get(root, "layers"), i, l)
    {
        const char *old = json_string_value(json_object_get(l, "hash"));
        json_int_t off = json_integer_value(json_object_get(l, "offset")),
                   len = json_integer_value(json_object_get(l, "size"));
        if (!old || strlen(old) != 2 * HASH_BYTES || off < 0 || len < 0 || (size_t)off > n || (size_t)len > n - off)
            continue;
        uint8_t *at = memmem(file + 64, manifest, old, 2 * HASH_BYTES);
        struct hash h;
        char hex[HASH_HEX];
        hash_of(file + off, (size_t)len, &h);
        hash_hex(&h, hex);
        if (at)
            memcpy(at, hex, 2 * HASH_BYTES);
    }
    json_decref(root);
}

static void repair(uint8_t *file, size_t n)
{
    uint64_t manifest = pet_get_le(file + 16, 8);
    struct hash h;
    pet_put_le(file + 24, 8, n);
    if (manifest > n - 64)
        return;
    repair_layers(file, n, manifest);
    hash_of(file + 64, manifest, &h);
    memcpy(file + 32, h.b, sizeof h.b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct pet *p = NULL;
    struct err e = {0};
    if (size > MAX_INPUT)
        return 0;
    if (!pet_parse(data, size, "fuzz", &limits, &p, &e))
        look(p);
    uint8_t *copy = malloc(size + 1);
    if (!copy)
        return 0;
    memcpy(copy, data, size);
    if (size >= 64 && pet_is_container(copy, size)) {
        repair(copy, size);
        if (!pet_parse(copy, size, "fuzz", &limits, &p, &e))
            look(p);
    } else if (!pet_read_recovery((char *)copy, size, "fuzz", &limits, &p, &e)) {
        copy = NULL; /* taken over */
        look(p);
    }
    free(copy);
    return 0;
}
