/* keys.c - the keys file and the bearer check.
 *
 * Loop thread. The table of keys is replaced whole by a reload that succeeds; the table of tenants only grows. A
 * look-up hashes the given key once and compares with every entry, all of each, so that its time says nothing about
 * which one matched or how far.
 */
#include "server/keys.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "common/file.h"

#define FILE_MAX ((size_t)512 << 10)
#define NAME_MAX_BYTES 64

struct key {
    struct hash hash;
    uint32_t tenant;
    unsigned line;
};

struct keys {
    struct key *key;
    size_t n_keys;
    char **tenant;
    uint32_t *by_name; /* [n_tenants] numbers of tenants, in the order of their names */
    uint32_t n_tenants;
    bool required;
};

struct keys *keys_create(void)
{
    struct keys *k = calloc(1, sizeof *k);
    if (k && keys_tenant_named(k, "") == KEYS_NO_TENANT) {
        keys_free(k);
        return NULL;
    }
    return k;
}

void keys_free(struct keys *k)
{
    if (!k)
        return;
    for (uint32_t i = 0; i < k->n_tenants; i++)
        free(k->tenant[i]);
    free(k->tenant);
    free(k->by_name);
    free(k->key);
    free(k);
}

/* Where in by_name the name stands or would stand. */
static uint32_t place_of(const struct keys *k, const char *name)
{
    uint32_t lo = 0, hi = k->n_tenants;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (strcmp(k->tenant[k->by_name[mid]], name) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

uint32_t keys_tenant_named(struct keys *k, const char *name)
{
    uint32_t at = place_of(k, name), n = k->n_tenants;
    if (at < n && !strcmp(k->tenant[k->by_name[at]], name))
        return k->by_name[at];
    char **t = realloc(k->tenant, (n + 1) * sizeof *t);
    if (t)
        k->tenant = t;
    uint32_t *b = realloc(k->by_name, (n + 1) * sizeof *b);
    if (b)
        k->by_name = b;
    if (!t || !b || !(t[n] = strdup(name)))
        return KEYS_NO_TENANT;
    memmove(b + at + 1, b + at, (n - at) * sizeof *b);
    b[at] = n;
    return k->n_tenants++;
}

const char *keys_tenant_name(const struct keys *k, uint32_t tenant)
{
    return tenant < k->n_tenants ? k->tenant[tenant] : "";
}

uint32_t keys_tenants(const struct keys *k)
{
    return k->n_tenants;
}

bool keys_required(const struct keys *k)
{
    return k->required;
}

static bool name_ok(const char *s, size_t n)
{
    if (!n || n > NAME_MAX_BYTES)
        return false;
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)s[i] <= ' ' || (unsigned char)s[i] >= 0x7F || s[i] == '"' || s[i] == '\\')
            return false;
    return true;
}

static int one_key(struct keys *k, char *line, struct key *out, const char *path, unsigned number, struct err *e)
{
    char *colon = strchr(line, ':');
    if (!colon || !name_ok(line, (size_t)(colon - line)))
        return err_param(e, -EINVAL, "api-keys", "%s line %u: a line is tenant:hash", path, number);
    *colon = 0;
    if (hash_parse(colon + 1, &out->hash))
        return err_param(e, -EINVAL, "api-keys", "%s line %u: the hash is not 64 hexadecimal digits", path, number);
    out->tenant = keys_tenant_named(k, line);
    return out->tenant == KEYS_NO_TENANT ? err_set(e, -ENOMEM, "out of memory") : 0;
}

static int parse_lines(struct keys *k, char *text, struct key *key, size_t *n_keys, const char *path, struct err *e)
{
    unsigned number = 0;
    for (char *line = text, *next; line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        number++;
        size_t n = strcspn(line, "\r");
        line[n] = 0;
        if (!*line || *line == '#')
            continue;
        int rc = one_key(k, line, &key[*n_keys], path, number, e);
        if (rc)
            return rc;
        key[(*n_keys)++].line = number;
    }
    return 0;
}

static int by_hash_then_line(const void *a, const void *b)
{
    const struct key *x = a, *y = b;
    int c = memcmp(&x->hash, &y->hash, sizeof x->hash);
    return c ? c : (x->line > y->line) - (x->line < y->line);
}

/* Sorts the keys; a key that is there twice is refused by the first line that repeats one. */
static int check_twice(struct key *key, size_t n, const char *path, struct err *e)
{
    unsigned line = 0;
    qsort(key, n, sizeof *key, by_hash_then_line);
    for (size_t i = 1; i < n; i++)
        if (hash_equal(&key[i - 1].hash, &key[i].hash) && (!line || key[i].line < line))
            line = key[i].line;
    return line ? err_param(e, -EINVAL, "api-keys", "%s line %u: this key is there already", path, line) : 0;
}

int keys_parse(struct keys *k, const char *text, size_t n, const char *path, struct err *e)
{
    if (memchr(text, 0, n))
        return err_param(e, -EINVAL, "api-keys", "%s: holds a NUL byte", path);
    size_t lines = 1, n_keys = 0;
    for (size_t i = 0; i < n; i++)
        lines += text[i] == '\n';
    char *copy = strndup(text, n);
    struct key *key = calloc(lines, sizeof *key);
    int rc = copy && key ? parse_lines(k, copy, key, &n_keys, path, e) : err_set(e, -ENOMEM, "out of memory");
    if (!rc)
        rc = check_twice(key, n_keys, path, e);
    if (!rc && !n_keys)
        rc = err_param(e, -EINVAL, "api-keys", "%s holds no key", path);
    free(copy);
    if (rc) {
        free(key);
        return rc;
    }
    free(k->key);
    k->key = key;
    k->n_keys = n_keys;
    k->required = true;
    return 0;
}

int keys_read(const char *path, char **text, size_t *n, struct err *e)
{
    return file_read(path, FILE_MAX, text, n, e);
}

int keys_load(struct keys *k, const char *path, struct err *e)
{
    char *text;
    size_t n;
    int rc = keys_read(path, &text, &n, e);
    if (rc)
        return rc;
    rc = keys_parse(k, text, n, path, e);
    free(text);
    return rc;
}

uint32_t keys_tenant(const struct keys *k, const char *key)
{
    if (!k->required)
        return KEYS_ANYBODY;
    if (!key)
        return KEYS_NO_TENANT;
    struct hash h;
    hash_of(key, strlen(key), &h);
    uint32_t found = KEYS_NO_TENANT;
    for (size_t i = 0; i < k->n_keys; i++) {
        uint32_t hit = (uint32_t) - (hash_equal(&h, &k->key[i].hash) != 0);
        found = (found & ~hit) | (k->key[i].tenant & hit);
    }
    return found;
}

const char *keys_bearer(const char *header)
{
    if (!header || strncasecmp(header, "Bearer ", 7))
        return NULL;
    header += 7;
    while (*header == ' ')
        header++;
    return *header ? header : NULL;
}

static bool mode_ok(const char *path, unsigned mode)
{
    const char *dir = getenv("CREDENTIALS_DIRECTORY"), *slash = strrchr(path, '/');
    bool credential = dir && *dir == '/' && slash && strlen(dir) == (size_t)(slash - path) &&
                      !strncmp(path, dir, (size_t)(slash - path));
    return !(mode & (credential ? 037 : 077));
}

int keys_check_file(const char *path, const char *option, struct err *e)
{
    struct stat st;
    if (stat(path, &st))
        return err_param(e, -EINVAL, option, "%s: %s", path, strerror(errno));
    if (!mode_ok(path, st.st_mode))
        return err_param(e, -EINVAL, option, "%s may be read by others (mode %04o); make it 0600", path,
                         (unsigned)(st.st_mode & 07777));
    return 0;
}

int keys_admin_load(const char *path, struct hash *out, struct err *e)
{
    char *text;
    size_t n;
    int rc = file_read(path, 4096, &text, &n, e);
    if (rc)
        return rc;
    rc = keys_check_file(path, "admin-key", e);
    while (n && (text[n - 1] == '\n' || text[n - 1] == '\r'))
        n--;
    if (!rc && n < 8)
        rc = err_param(e, -EINVAL, "admin-key", "%s: the key is shorter than 8 characters", path);
    if (!rc && memchr(text, '\n', n))
        rc = err_param(e, -EINVAL, "admin-key", "%s holds more than one line", path);
    if (!rc)
        hash_of(text, n, out);
    free(text);
    return rc;
}

bool keys_match(const struct hash *want, const char *key)
{
    struct hash h;
    if (!key)
        return false;
    hash_of(key, strlen(key), &h);
    return hash_equal(want, &h) != 0;
}
