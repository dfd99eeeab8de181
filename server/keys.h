/* keys.h - who may call: the API keys' file, and the tenants that it names.
 *
 * Loop thread only (reading at start is on it too). Keys are kept as BLAKE2b-256 hashes and compared in constant time.
 * A tenant's number never changes and is never given to another, whatever a reload brings.
 */
#ifndef CPET_SERVER_KEYS_H
#define CPET_SERVER_KEYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/hash.h"

#define KEYS_NO_TENANT UINT32_MAX
#define KEYS_ANYBODY 0 /* the tenant of a server without keys; its name is "" */

struct keys;

/* No file: everybody is tenant KEYS_ANYBODY. NULL when memory is out. */
struct keys *keys_create(void);
void keys_free(struct keys *k); /* takes NULL */

/* Reads the file; on failure what was there before stays. Errors name the line. */
int keys_load(struct keys *k, const char *path, struct err *e);
/* The file's bytes, for keys_parse; the caller frees them. Any thread. */
int keys_read(const char *path, char **text, size_t *n, struct err *e);
int keys_parse(struct keys *k, const char *text, size_t n, const char *path, struct err *e);

/* The tenant of the bearer key, or KEYS_NO_TENANT. key NULL: none was given. */
uint32_t keys_tenant(const struct keys *k, const char *key);
/* A tenant by name, made when it is new; KEYS_NO_TENANT when memory is out. */
uint32_t keys_tenant_named(struct keys *k, const char *name);
const char *keys_tenant_name(const struct keys *k, uint32_t tenant);
uint32_t keys_tenants(const struct keys *k);
bool keys_required(const struct keys *k);

/* The value after "Bearer " of an Authorization header; NULL when there is none. */
const char *keys_bearer(const char *header);

/* Whether a file of raw keys is there and has a fit mode: read by its owner alone; a service manager's credential,
 * which lies in $CREDENTIALS_DIRECTORY and is guarded by that, may be read by its group. Nobody else may read either.
 * -EINVAL with option as the param. */
int keys_check_file(const char *path, const char *option, struct err *e);
/* The admin key: a file with the raw key, one line, of a mode as above. */
int keys_admin_load(const char *path, struct hash *out, struct err *e);
bool keys_match(const struct hash *want, const char *key);

#endif
