/* test_keys.c - the keys file, tenants over a reload, the bearer header, the admin key. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "server/keys.h"

static void line(char *out, size_t n, const char *tenant, const char *key)
{
    struct hash h;
    char hex[HASH_HEX];
    hash_of(key, strlen(key), &h);
    hash_hex(&h, hex);
    snprintf(out, n, "%s:%s\n", tenant, hex);
}

static void test_nobody(void **st)
{
    (void)st;
    struct keys *k = keys_create();
    assert_false(keys_required(k));
    assert_int_equal(keys_tenant(k, NULL), KEYS_ANYBODY);
    assert_int_equal(keys_tenant(k, "x"), KEYS_ANYBODY);
    keys_free(k);
}

static void test_reload(void **st)
{
    (void)st;
    struct keys *k = keys_create();
    struct err e;
    char a[128], b[128], c[128], text[512];
    line(a, sizeof a, "anna", "key-a");
    line(b, sizeof b, "bert", "key-b");
    line(c, sizeof c, "anna", "key-c");
    snprintf(text, sizeof text, "# keys\n%s\n%s%s", a, b, c);
    assert_int_equal(keys_parse(k, text, strlen(text), "f", &e), 0);
    uint32_t anna = keys_tenant(k, "key-a"), bert = keys_tenant(k, "key-b");
    assert_true(anna != bert && anna != KEYS_NO_TENANT && bert != KEYS_NO_TENANT);
    assert_int_equal(keys_tenant(k, "key-c"), anna);
    assert_string_equal(keys_tenant_name(k, bert), "bert");
    assert_int_equal(keys_tenant(k, NULL), KEYS_NO_TENANT);
    assert_int_equal(keys_tenant(k, "key"), KEYS_NO_TENANT);
    assert_int_equal(keys_tenant(k, ""), KEYS_NO_TENANT);
    /* a bad file leaves all as it was */
    assert_int_equal(keys_parse(k, "anna:12\n", 8, "f", &e), -EINVAL);
    assert_non_null(strstr(e.msg, "f line 1"));
    assert_int_equal(keys_tenant(k, "key-a"), anna);
    /* a good one replaces the keys; numbers stay */
    assert_int_equal(keys_parse(k, b, strlen(b), "f", &e), 0);
    assert_int_equal(keys_tenant(k, "key-a"), KEYS_NO_TENANT);
    assert_int_equal(keys_tenant(k, "key-b"), bert);
    keys_free(k);
}

static void test_bad_lines(void **st)
{
    (void)st;
    char good[128], twice[256];
    line(good, sizeof good, "a", "k");
    snprintf(twice, sizeof twice, "%s%s", good, good);
    char nul[] = "a\0b:";
    static const char hex63[] = "a:000000000000000000000000000000000000000000000000000000000000000\n";
    const char *bad[] = {"", "\n", "anna\n", ":00\n", "a b:00\n", hex63, twice};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct keys *k = keys_create();
        struct err e;
        assert_int_equal(keys_parse(k, bad[i], strlen(bad[i]), "f", &e), -EINVAL);
        assert_false(keys_required(k));
        assert_int_equal(keys_parse(k, nul, sizeof nul - 1, "f", &e), -EINVAL);
        keys_free(k);
    }
}

static void test_many(void **st)
{
    enum { N = 6000, LINE = 80 };
    struct keys *k = keys_create();
    struct err e;
    char *text = calloc(N + 3, LINE), name[24], key[24];
    size_t n = 0;
    (void)st;
    for (unsigned i = 0; i < N; i++) {
        snprintf(name, sizeof name, "t%u", i * 7919u % N);
        snprintf(key, sizeof key, "key-%u", i);
        line(text + n, 2 * LINE, name, key);
        n += strlen(text + n);
    }
    assert_int_equal(keys_parse(k, text, n, "f", &e), 0);
    assert_int_equal(keys_tenants(k), N + 1);
    assert_string_equal(keys_tenant_name(k, keys_tenant(k, "key-17")), "t2623"); /* 17 * 7919 mod 6000 */
    assert_int_equal(keys_tenant_named(k, "t2623"), keys_tenant(k, "key-17"));
    line(text + n, 2 * LINE, "other", "key-40"); /* a key of another line, twice: the first to repeat is named */
    line(text + n + strlen(text + n), 2 * LINE, "other", "key-3");
    assert_int_equal(keys_parse(k, text, strlen(text), "f", &e), -EINVAL);
    assert_non_null(strstr(e.msg, "f line 6001: this key is there already"));
    free(text);
    keys_free(k);
}

static void test_bearer(void **st)
{
    (void)st;
    assert_null(keys_bearer(NULL));
    assert_null(keys_bearer("Basic abc"));
    assert_null(keys_bearer("Bearer "));
    assert_string_equal(keys_bearer("bearer  abc"), "abc");
    assert_string_equal(keys_bearer("Bearer sk-1"), "sk-1");
}

static void test_admin_key(void **st)
{
    (void)st;
    char path[] = "/tmp/cpetd-key-XXXXXX";
    struct hash h;
    struct err e;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "secret-key\n", 11), 11);
    close(fd);
    assert_int_equal(keys_admin_load(path, &h, &e), 0);
    assert_true(keys_match(&h, "secret-key"));
    assert_false(keys_match(&h, "secret-kez"));
    assert_false(keys_match(&h, NULL));
    chmod(path, 0644);
    assert_int_equal(keys_admin_load(path, &h, &e), -EINVAL);
    chmod(path, 0600);
    assert_int_equal(truncate(path, 3), 0);
    assert_int_equal(keys_admin_load(path, &h, &e), -EINVAL);
    unlink(path);
    assert_true(keys_admin_load(path, &h, &e) < 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nobody), cmocka_unit_test(test_reload),    cmocka_unit_test(test_bad_lines),
        cmocka_unit_test(test_bearer), cmocka_unit_test(test_admin_key), cmocka_unit_test(test_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
