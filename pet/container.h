/* container.h - inside pet/ only: the fixed beginning of a .pet file, as docs/pet-format.md describes it. */
#ifndef CPET_PET_CONTAINER_H
#define CPET_PET_CONTAINER_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define PET_MAGIC "\x89PET\r\n\x1a\n"
#define PET_VERSION 1u
#define PET_MAX_MANIFEST ((size_t)32 << 20)
#define PET_MAX_LAYERS 65536u
#define PET_MAX_WINDOW_LOG 27 /* 128 MiB: what zstd itself writes at most without asking */

/* All integers little endian. The manifest follows at once, then the frames up to the file's last byte. */
struct pet_head {
    uint8_t magic[8];
    uint8_t version[4];
    uint8_t flags[4]; /* zero */
    uint8_t manifest_bytes[8];
    uint8_t file_bytes[8];
    uint8_t manifest_hash[32]; /* BLAKE2b-256 of the manifest's bytes */
};
static_assert(sizeof(struct pet_head) == 64, "the head of a .pet file has 64 bytes");
static_assert(offsetof(struct pet_head, version) == 8, "version");
static_assert(offsetof(struct pet_head, manifest_bytes) == 16, "manifest_bytes");
static_assert(offsetof(struct pet_head, file_bytes) == 24, "file_bytes");
static_assert(offsetof(struct pet_head, manifest_hash) == 32, "manifest_hash");

static inline uint64_t pet_get_le(const uint8_t *b, int n)
{
    uint64_t v = 0;
    while (n--)
        v = v << 8 | b[n];
    return v;
}

static inline void pet_put_le(uint8_t *b, int n, uint64_t v)
{
    for (int i = 0; i < n; i++)
        b[i] = (uint8_t)(v >> (8 * i));
}

#endif
