/* hash.h - BLAKE2b-256 (libsodium), the content hash of everything: modules, backbones, API keys. */
#ifndef CPET_COMMON_HASH_H
#define CPET_COMMON_HASH_H

#include <stddef.h>
#include <stdint.h>

#define HASH_BYTES 32
#define HASH_HEX (2 * HASH_BYTES + 1) /* with the NUL */

struct hash {
    uint8_t b[HASH_BYTES];
};

struct hash_state {
    _Alignas(64) unsigned char opaque[384];
};

void hash_init(struct hash_state *s);
void hash_update(struct hash_state *s, const void *p, size_t n);
void hash_final(struct hash_state *s, struct hash *out);
void hash_of(const void *p, size_t n, struct hash *out);

void hash_hex(const struct hash *h, char out[HASH_HEX]);
/* 0, or -EINVAL when s is not exactly 64 hex digits. */
int hash_parse(const char *s, struct hash *out);
/* Equal? In constant time. */
int hash_equal(const struct hash *a, const struct hash *b);

#endif
