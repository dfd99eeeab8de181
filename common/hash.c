/* hash.c - BLAKE2b-256 through libsodium. Any thread; no state of its own. */
#include "common/hash.h"

#include <assert.h>
#include <errno.h>
#include <sodium.h>

static_assert(sizeof(crypto_generichash_state) <= sizeof(struct hash_state), "hash_state is too small");

void hash_init(struct hash_state *s)
{
    crypto_generichash_init((crypto_generichash_state *)s->opaque, NULL, 0, HASH_BYTES);
}

void hash_update(struct hash_state *s, const void *p, size_t n)
{
    crypto_generichash_update((crypto_generichash_state *)s->opaque, p, n);
}

void hash_final(struct hash_state *s, struct hash *out)
{
    crypto_generichash_final((crypto_generichash_state *)s->opaque, out->b, HASH_BYTES);
}

void hash_of(const void *p, size_t n, struct hash *out)
{
    crypto_generichash(out->b, HASH_BYTES, p, n, NULL, 0);
}

void hash_hex(const struct hash *h, char out[HASH_HEX])
{
    sodium_bin2hex(out, HASH_HEX, h->b, HASH_BYTES);
}

int hash_parse(const char *s, struct hash *out)
{
    struct hash h;
    for (int i = 0; i < 2 * HASH_BYTES; i++) {
        char c = s[i];
        int d = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;
        if (d < 0)
            return -EINVAL;
        h.b[i / 2] = (uint8_t)(i % 2 ? h.b[i / 2] | d : d << 4);
    }
    if (s[2 * HASH_BYTES])
        return -EINVAL;
    *out = h;
    return 0;
}

int hash_equal(const struct hash *a, const struct hash *b)
{
    return sodium_memcmp(a->b, b->b, HASH_BYTES) == 0;
}
