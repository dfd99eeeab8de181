/* json.h - JSON from files and requests: jansson behind limits on size, depth and number of values.
 *
 * A parsed tree belongs to the caller (json_decref). Any thread; a tree is one thread's at a time.
 */
#ifndef CPET_FORMATS_JSON_H
#define CPET_FORMATS_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct json_limits {
    size_t depth;  /* most objects and arrays inside each other; 0: 64 */
    size_t values; /* most values and keys, counted by commas, colons and brackets; 0: 4,000,000. A value costs up to
                      about 100 bytes of memory, whatever it took in the text. */
    bool scalars;  /* also accept a text that is a lone string, number, true, false or null */
};

/* Strict JSON (RFC 8259) of n bytes at p, not terminated; l may be NULL (the defaults). Duplicate keys, \u0000,
 * integers beyond 64 bits, numbers beyond a double and bytes after the value are errors. -EINVAL naming line, column
 * and byte offset, -E2BIG past a limit, -ENOMEM. */
int json_parse(const char *p, size_t n, const struct json_limits *l, json_t **out, struct err *e);
/* A whole file of at most cap bytes under the default limits; errors name the file. -EFBIG above cap. */
int json_read_file(const char *path, size_t cap, json_t **out, struct err *e);
/* Writes the tree indented by two with keys as inserted and a newline at the end, by file_write_atomic. */
int json_write_file(const char *path, const json_t *v, struct err *e);

/* Getters of obj's member `key`. Absent or null: *out = *def, or -EINVAL "\"key\" is missing" when def is NULL. Another
 * type or a value outside [min, max]: -EINVAL naming the key, which err.param holds too. out may not alias def. */
int json_get_u32(const json_t *obj, const char *key, uint32_t min, uint32_t max, const uint32_t *def, uint32_t *out,
                 struct err *e);
int json_get_u64(const json_t *obj, const char *key, uint64_t min, uint64_t max, const uint64_t *def, uint64_t *out,
                 struct err *e);
/* Integers are numbers too; the result is finite. */
int json_get_f64(const json_t *obj, const char *key, double min, double max, const double *def, double *out,
                 struct err *e);
int json_get_bool(const json_t *obj, const char *key, const bool *def, bool *out, struct err *e);
/* *out points into obj. required false: NULL when absent or null. */
int json_get_str(const json_t *obj, const char *key, bool required, const char **out, struct err *e);
/* A member that is an object or an array; required false: NULL when absent or null. */
int json_get_object(const json_t *obj, const char *key, bool required, json_t **out, struct err *e);
int json_get_array(const json_t *obj, const char *key, bool required, json_t **out, struct err *e);

#endif
