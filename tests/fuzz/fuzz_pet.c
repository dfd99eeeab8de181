/* fuzz_pet.c - any bytes as a .pet file, and as a recovery file.
 *
 * A .pet is covered by hashes, which random changes never get past. So it is read twice: as it is, and with the hashes
 * of the manifest and of the frames put right first, so that changes reach the manifest's reader and the decoder.
 *
 * Each time it is also loaded from a file, whole and a layer at a time, on a backbone that it fits where it is right:
 * the slots and the errors must be the same.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "formats/json.h"
#include "pet/container.h"
#include "pet/internal.h"
#include "tests/fuzz/scratch.h"
#include "tests/unit/pet/stream_same.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { INPUT_MAX_BYTES = 1 << 20 };
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

static struct kern_dev *dev;

static void close_dev(void)
{
    kern_close(dev);
}

static void load_both(const uint8_t *data, size_t size)
{
    static const struct kern_opts o = {.threads = 1, .max_level = "scalar"};
    struct pet *p = NULL;
    struct bed b = {.t = {.type = KERN_BF16}};
    int rc;
    if (!dev && (kern_open(&o, &dev, NULL) || atexit(close_dev)))
        abort();
    scratch_dir();
    scratch_put("x.pet", data, size);
    if (!pet_parse(data, size, "fuzz", &limits, &p, NULL))
        bed_make(&b, p, size % 2 ? KERN_BF16 : KERN_F32, size % 5);
    const char *says = stream_same(dev, scratch_at("x.pet"), &limits, &b.t, &rc);
    if (says) {
        fprintf(stderr, "%s\n", says);
        abort();
    }
    bed_free(&b);
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
    if (size > INPUT_MAX_BYTES)
        return 0;
    if (!pet_parse(data, size, "fuzz", &limits, &p, &e))
        look(p);
    if (pet_is_container(data, size))
        load_both(data, size);
    uint8_t *copy = malloc(size + 1);
    if (!copy)
        return 0;
    memcpy(copy, data, size);
    if (size >= 64 && pet_is_container(copy, size)) {
        repair(copy, size);
        load_both(copy, size);
        if (!pet_parse(copy, size, "fuzz", &limits, &p, &e))
            look(p);
    } else if (!pet_read_recovery((char *)copy, size, "fuzz", &limits, &p, &e)) {
        copy = NULL; /* taken over */
        look(p);
    }
    free(copy);
    return 0;
}
