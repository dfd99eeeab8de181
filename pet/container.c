/* container.c - a .pet file in memory: its frames decoded, one a layer.
 *
 * Any thread; the bytes read from stay the caller's and are not needed afterwards. After the manifest (manifest.c)
 * every frame's compressed bytes are held against its hash and the size it states; only then is one block of exactly
 * the stated size allocated and filled. So a file can make us allocate at most lim->max_bytes and a manifest of 32 MiB,
 * and every byte of the file is covered by a check whose failure says where.
 *
 * Decoding needs no window buffer, because it writes straight into the block; frames that would ask other decoders for
 * one of more than 128 MiB are refused all the same. stream.c does the same from a file, a frame at a time.
 */
#include "pet/container.h"

#include <stdlib.h>
#include <string.h>

/* ---- frames ---- */

/* The window that a frame asks a streaming decoder for, as a power of two; RFC 8878, section 3.1.1.1. */
static unsigned window_log(const uint8_t *frame, size_t n)
{
    if (n < 6 || (frame[4] & 0x20)) /* a single segment: its window is its content, which is limited */
        return 0;
    return 10u + (frame[5] >> 3) + ((frame[5] & 7) != 0);
}

int pet_frame_check(const struct pet_layer *l, const uint8_t *src, struct err *e)
{
    struct hash got;
    hash_of(src, l->size, &got);
    if (!hash_equal(&got, &l->hash))
        return err_set(e, -EINVAL, "its frame of %zu bytes is damaged (hash)", l->size);
    size_t one = ZSTD_findFrameCompressedSize(src, l->size);
    if (ZSTD_isError(one) || one != l->size)
        return err_set(e, -EINVAL, "its %zu bytes are not exactly one zstd frame", l->size);
    if (ZSTD_getFrameContentSize(src, l->size) != l->raw)
        return err_set(e, -EINVAL, "its zstd frame does not state the %zu bytes that the manifest says", l->raw);
    if (window_log(src, l->size) > PET_MAX_WINDOW_LOG)
        return err_set(e, -EINVAL, "its zstd frame asks for a window of more than %d bits", PET_MAX_WINDOW_LOG);
    return 0;
}

int pet_frame_decode(const struct pet_manifest *m, const struct pet_layer *l, ZSTD_DCtx *zstd, const uint8_t *src,
                     uint8_t *dst, struct err *e)
{
    size_t got = ZSTD_decompressDCtx(zstd, dst, l->raw, src, l->size);
    if (ZSTD_isError(got))
        return err_set(e, -EINVAL, "its frame does not decode: %s", ZSTD_getErrorName(got));
    if (got != l->raw)
        return err_set(e, -EINVAL, "its frame holds %zu bytes, the manifest says %zu", got, l->raw);
    for (size_t i = l->part0; i < l->part0 + l->n_parts; i++) {
        struct part *q = pet_manifest_part(m, i);
        for (int j = 0; j < 2; j++) {
            struct hash h;
            q->t[j].data = dst;
            hash_of(dst, q->t[j].bytes, &h);
            if (!hash_equal(&h, &q->t[j].hash))
                return err_set(e, -EINVAL, "module \"%s\", tensor %c is damaged (hash)", q->module, "AB"[j]);
            dst += q->t[j].bytes;
        }
    }
    return 0;
}

int pet_layer_prefix(const struct pet_layer *l, int rc, struct err *e)
{
    return err_prefix(e, rc, "layer \"%.64s\" at offset %zu", l->name, l->off);
}

static int decode_all(const struct pet_manifest *m, const uint8_t *data, ZSTD_DCtx *zstd, struct err *e)
{
    for (size_t i = 0; i < m->n_layers; i++) {
        const struct pet_layer *l = &m->layers[i];
        int rc = pet_frame_decode(m, l, zstd, data + l->off, (uint8_t *)m->p->bytes + l->at, e);
        if (rc)
            return pet_layer_prefix(l, rc, e);
    }
    return 0;
}

static int read_frames(struct pet_manifest *m, const uint8_t *data, struct err *e)
{
    for (size_t i = 0; i < m->n_layers; i++) {
        const struct pet_layer *l = &m->layers[i];
        int rc = pet_frame_check(l, data + l->off, e);
        if (rc)
            return pet_layer_prefix(l, rc, e);
    }
    m->p->bytes = malloc(m->bytes + 1);
    ZSTD_DCtx *zstd = ZSTD_createDCtx();
    int rc = m->p->bytes && zstd ? decode_all(m, data, zstd, e)
                                 : err_set(e, -ENOMEM, "out of memory for %zu bytes", m->bytes);
    ZSTD_freeDCtx(zstd);
    return rc;
}

int pet_read_container(const void *data, size_t n, const char *name, const struct pet_limits *lim, struct pet **out,
                       struct err *e)
{
    struct pet_manifest m = {.file_bytes = n, .lim = lim, .p = pet_new(PET_LORA)};
    size_t bytes = 0;
    int rc = m.p ? pet_head_read(data, n, &bytes, e) : err_set(e, -ENOMEM, "out of memory");
    if (!rc)
        rc = pet_manifest_read(&m, data, (const char *)data + sizeof(struct pet_head), bytes, e);
    if (!rc)
        rc = read_frames(&m, data, e);
    if (!rc)
        rc = pet_finish(m.p, true, e);
    if (!rc)
        rc = pet_manifest_content(&m, e);
    if (!rc) {
        *out = m.p;
        m.p = NULL;
    }
    pet_manifest_free(&m);
    return rc ? err_prefix(e, rc, "%s", name) : 0;
}
