/* container.h - inside pet/ only: a .pet file's beginning, manifest and frames, as docs/pet-format.md describes them.
 */
#ifndef CPET_PET_CONTAINER_H
#define CPET_PET_CONTAINER_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <zstd.h>

#include "formats/json.h"
#include "pet/internal.h"

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

/* One frame. */
struct pet_layer {
    const char *name;      /* in the manifest's root */
    size_t off, size, raw; /* in the file; decompressed */
    size_t at;             /* where it begins among all decompressed bytes */
    struct hash hash;      /* of the compressed bytes */
    size_t part0, n_parts; /* in the file's order */
};

struct pet_manifest {
    const struct pet_limits *lim; /* with the defaults filled in */
    size_t file_bytes;
    struct pet *p; /* its parts have no data yet, but the hashes that the data must have */
    json_t *root;
    struct pet_layer *layers;
    size_t n_layers;
    size_t bytes;    /* of all tensors */
    uint32_t *order; /* once p's parts are sorted: where in them the file's i-th is; NULL: as in the file */
};

static inline struct part *pet_manifest_part(const struct pet_manifest *m, size_t i)
{
    return &m->p->parts[m->order ? m->order[i] : i];
}

/* Checks the head against the file's length; head has min(64, file_bytes) bytes. All but the manifest's hash. */
int pet_head_read(const void *head, size_t file_bytes, size_t *manifest_bytes, struct err *e);
/* Checks the manifest's n bytes against the head's hash and reads them into m, of which lim, file_bytes and an empty p
 * are set. */
int pet_manifest_read(struct pet_manifest *m, const void *head, const char *text, size_t n, struct err *e);
/* After pet_finish: the content hash that the manifest states is that of its parts. */
int pet_manifest_content(const struct pet_manifest *m, struct err *e);
void pet_manifest_free(struct pet_manifest *m); /* p too, unless it is NULL */

/* A frame's compressed bytes, src[0..l->size): its hash, that it is one frame and states l->raw bytes. */
int pet_frame_check(const struct pet_layer *l, const uint8_t *src, struct err *e);
/* Decodes a checked frame into dst[0..l->raw), points the layer's parts there and checks each tensor's hash. */
int pet_frame_decode(const struct pet_manifest *m, const struct pet_layer *l, ZSTD_DCtx *zstd, const uint8_t *src,
                     uint8_t *dst, struct err *e);
/* Says in which layer it was. */
int pet_layer_prefix(const struct pet_layer *l, int rc, struct err *e);

#endif
