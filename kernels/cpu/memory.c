/* memory.c - the CPU device's memory: plain host memory, cleared, from a multiple of 64.
 *
 * Any thread. From 1 MiB on, a mapping of its own whose payload starts on a 2 MiB boundary, with large pages asked
 * for: pages are had when first touched. The 64 bytes before the payload hold what kern_free has to give back.
 */
#include "kernels/kernels.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/checked.h"

#define LARGE ((size_t)1 << 20)
#define HUGE ((size_t)2 << 20)

struct header {
    void *base;   /* of the mapping or the allocation */
    size_t bytes; /* mapped; 0: from aligned_alloc */
    uint8_t pad[48];
};
_Static_assert(sizeof(struct header) == 64, "the payload stays on a multiple of 64");

static uint8_t *map_large(size_t bytes)
{
    size_t total;
    if (ck_add(bytes, HUGE + sizeof(struct header), &total) || ck_round_up(total, 4096, &total))
        return NULL;
    uint8_t *base = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return NULL;
    uint8_t *p = (uint8_t *)(((uintptr_t)base + sizeof(struct header) + HUGE - 1) & ~(uintptr_t)(HUGE - 1));
    madvise(p, bytes, MADV_HUGEPAGE); /* where it is not to be had, small pages do */
    struct header *h = (struct header *)p - 1;
    h->base = base;
    h->bytes = total;
    return p;
}

static uint8_t *take_small(size_t bytes)
{
    size_t total = sizeof(struct header) + ((bytes + 63) & ~(size_t)63);
    struct header *h = aligned_alloc(64, total);
    if (!h)
        return NULL;
    memset(h, 0, total);
    h->base = h;
    return (uint8_t *)(h + 1);
}

int kern_alloc(struct kern_dev *d, size_t bytes, kmem *out, struct err *e)
{
    (void)d;
    uint8_t *p = bytes >= LARGE ? map_large(bytes) : take_small(bytes);
    if (!p)
        return err_set(e, -ENOMEM, "no memory for %zu bytes", bytes);
    out->a = (uintptr_t)p;
    return 0;
}

void kern_free(struct kern_dev *d, kmem m)
{
    (void)d;
    if (!m.a)
        return;
    struct header *h = (struct header *)m.a - 1;
    if (h->bytes)
        munmap(h->base, h->bytes);
    else
        free(h->base);
}

void kern_upload(struct kern_dev *d, kmem dst, const void *src, size_t bytes)
{
    (void)d;
    if (bytes)
        memcpy((void *)dst.a, src, bytes);
}

void kern_download(struct kern_dev *d, void *dst, kmem src, size_t bytes)
{
    (void)d;
    if (bytes)
        memcpy(dst, (const void *)src.a, bytes);
}
