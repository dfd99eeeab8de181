/* test_scan.c - framing: each malformed head with its status, heads in any cut, chunked bodies. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "server/http_scan.h"

static const struct http_limits lim = {.max_header = 8300, .max_body = 1000};

/* The status of a head given at once and byte by byte (0: it passes). */
static int scan(const char *p, size_t n, struct http_head *head)
{
    struct err e = {0};
    size_t scanned = 0, len = 0, scanned1 = 0, len1 = 0;
    int rc = http_head_find(p, n, &lim, &scanned, &len, &e), rc1 = 0;
    for (size_t i = 1; i <= n && !rc1; i++)
        rc1 = http_head_find(p, i, &lim, &scanned1, &len1, &e);
    assert_int_equal(rc, rc1);
    assert_int_equal(len, len1);
    if (rc == 1)
        rc = http_head_check(p, len, &lim, head, &e);
    assert_true(!rc || e.msg[0]);
    return rc;
}

#define GET "GET / HTTP/1.1\r\nHost: h\r\n"

static const struct {
    const char *text;
    int status;
} heads[] = {
    {GET "\r\n", 0},
    {"GET / HTTP/1.0\r\n\r\n", 0},
    {GET "A: b\tc \xC3\xA9\r\nB:\r\n\r\n", 0},
    {"POST /a%20b?x=%7B HTTP/1.1\r\nhost: h\r\ncontent-length: 1000\r\n\r\n", 0},
    {GET "Transfer-Encoding: Chunked\r\nExpect: 100-continue\r\n\r\n", 0},
    {"GET / HTTP/1.1\nHost: h\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\nHost: h\n\r\n", 400},
    {GET "\n", 400},
    {"\n", 400},
    {"\r\n", 400},
    {"\r\n\r\n", 400},
    {GET "A: b\r\n c\r\n\r\n", 400},
    {GET "A: b\r\n\tc\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\n Host: h\r\n\r\n", 400},
    {GET "A : b\r\n\r\n", 400},
    {GET "A\t: b\r\n\r\n", 400},
    {GET "A b\r\n\r\n", 400},
    {GET ": b\r\n\r\n", 400},
    {GET "A(: b\r\n\r\n", 400},
    {GET "A: b\rc\r\n\r\n", 400},
    {GET "A: \x01\r\n\r\n", 400},
    {GET "A: \x7F\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\n\r\n", 400},
    {GET "Host: h\r\n\r\n", 400},
    {"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", 400},
    {GET "Content-Length: 1\r\nContent-Length: 1\r\n\r\n", 400},
    {GET "Content-Length: 1\r\ncontent-LENGTH: 2\r\n\r\n", 400},
    {GET "Content-Length: 1, 1\r\n\r\n", 400},
    {GET "Content-Length:\r\n\r\n", 400},
    {GET "Content-Length: -1\r\n\r\n", 400},
    {GET "Content-Length: +1\r\n\r\n", 400},
    {GET "Content-Length: 0x1\r\n\r\n", 400},
    {GET "Content-Length: 1 \r\nTransfer-Encoding: chunked\r\n\r\n", 400},
    {GET "Content-Length: 1001\r\n\r\n", 413},
    {GET "Content-Length: 18446744073709551617\r\n\r\n", 413},
    {GET "Content-Length: 99999999999999999999999999999999999999999\r\n\r\n", 413},
    {GET "Transfer-Encoding: gzip, chunked\r\n\r\n", 501},
    {GET "Transfer-Encoding: xchunked\r\n\r\n", 501},
    {GET "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
    {"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
    {GET "Expect: the worst\r\n\r\n", 417},
    {GET "Content-Encoding: gzip\r\n\r\n", 415},
    {GET "Authorization: a\r\nAuthorization: b\r\n\r\n", 400},
    {"GET / HTTP/1.2\r\nHost: h\r\n\r\n", 505},
    {"GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505},
    {"GET / HTTP/11\r\nHost: h\r\n\r\n", 400},
    {"GET / http/1.1\r\nHost: h\r\n\r\n", 400},
    {"GET /\r\n\r\n", 400},
    {"GET\r\n\r\n", 400},
    {"GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400},
    {"GET / x HTTP/1.1\r\nHost: h\r\n\r\n", 400},
    {"GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n", 400},
    {" GET / HTTP/1.1\r\nHost: h\r\n\r\n", 400},
    {"get / HTTP/1.1\r\nHost: h\r\n\r\n", 501},
    {"BREW / HTTP/1.1\r\nHost: h\r\n\r\n", 501},
    {"CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", 501},
    {"CONNECT / HTTP/1.1\r\nHost: h\r\n\r\n", 501},
    {"TRACES / HTTP/1.1\r\nHost: h\r\n\r\n", 501},
    {"G(T / HTTP/1.1\r\nHost: h\r\n\r\n", 400},
    {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
    {"GET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400},
    {"GET * HTTP/1.1\r\nHost: h\r\n\r\n", 400},
    {"GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n", 400},
    {"GET /\xC3\xA9 HTTP/1.1\r\nHost: h\r\n\r\n", 400},
    {"GET /%00 HTTP/1.1\r\nHost: h\r\n\r\n", 400},
    {"GET /?a=%00 HTTP/1.1\r\nHost: h\r\n\r\n", 400},
    {"GET /%2 HTTP/1.1\r\nHost: h\r\n\r\n", 400},
    {"GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n", 400},
    {"GET /% HTTP/1.1\r\nHost: h\r\n\r\n", 400},
};

static void test_heads(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++) {
        struct http_head h;
        int got = scan(heads[i].text, strlen(heads[i].text), &h);
        if (got != heads[i].status)
            fail_msg("%s: %d, not %d", heads[i].text, got, heads[i].status);
    }
    struct http_head h;
    static const char nul[] = GET "A: b\0c\r\n\r\n", nul2[] = GET "A\0: b\r\n\r\n", nul3[] = "GET /\0 HTTP/1.1\r\n\r\n";
    assert_int_equal(scan(nul, sizeof nul - 1, &h), 400);
    assert_int_equal(scan(nul2, sizeof nul2 - 1, &h), 400);
    assert_int_equal(scan(nul3, sizeof nul3 - 1, &h), 400);
}

static void test_meaning(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool keep, chunked, old;
        uint64_t len;
    } cases[] = {
        {GET "\r\n", true, false, false, 0},
        {GET "Connection: close\r\n\r\n", false, false, false, 0},
        {GET "Connection: x, Close \r\n\r\n", false, false, false, 0},
        {GET "Connection: closed\r\n\r\n", true, false, false, 0},
        {"GET / HTTP/1.0\r\n\r\n", false, false, true, 0},
        {"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true, false, true, 0},
        {GET "Content-Length: 0999\r\n\r\n", true, false, false, 999},
        {GET "Transfer-Encoding:chunked\r\n\r\n", true, true, false, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct http_head h;
        assert_int_equal(scan(cases[i].text, strlen(cases[i].text), &h), 0);
        assert_true(h.keep_alive == cases[i].keep && h.chunked == cases[i].chunked && h.http10 == cases[i].old);
        assert_true(h.content_length == cases[i].len);
    }
}

static void test_tidy(void **state)
{
    (void)state;
    char head[] = "GET /: HTTP/1.1\r\nA: b \t\r\nB:\r\nC: \r\nD:e\r\nE:f \r\n\r\n";
    http_head_tidy(head, sizeof head - 1);
    assert_string_equal(head, "GET /: HTTP/1.1\r\nA:   b\r\nB:\r\nC: \r\nD:e\r\nE: f\r\n\r\n");
}

static void test_sizes(void **state)
{
    (void)state;
    struct http_head h;
    static char p[20000];
    size_t n = (size_t)sprintf(p, GET);
    for (int i = 0; i < 100; i++)
        n += (size_t)sprintf(p + n, "A: b\r\n");
    strcpy(p + n, "\r\n");
    assert_int_equal(scan(p, n + 2, &h), 431);
    memset(p, 'a', 20000);
    memcpy(p, "GET /", 5);
    assert_int_equal(scan(p, 20000, &h), 414);
    memcpy(p, GET "A: ", strlen(GET) + 3);
    assert_int_equal(scan(p, 20000, &h), 431);
    n = (size_t)sprintf(p, "GET /");
    memset(p + n, 'a', 8200);
    strcpy(p + n + 8200, " HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_int_equal(scan(p, strlen(p), &h), 414);
}

/* The status, or 1, of a chunked body; given at once and byte by byte. */
static int chunks(const char *p, size_t n, size_t *used)
{
    struct http_chunks c = {0}, c1 = {0};
    struct err e = {0};
    size_t u1 = 0, total = 0;
    int rc = http_chunks_scan(&c, p, n, &lim, used, &e), rc1 = 0;
    for (size_t i = 0; i < n && !rc1; i++, total += u1)
        rc1 = http_chunks_scan(&c1, p + i, 1, &lim, &u1, &e);
    assert_int_equal(rc, rc1);
    if (rc == 1)
        assert_int_equal(total, *used);
    return rc;
}

static void test_chunks(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int rc;
        size_t used;
    } cases[] = {
        {"0\r\n\r\n", 1, 5},
        {"0\r\n\r\nGET", 1, 5},
        {"3\r\nabc\r\n00\r\n\r\n", 1, 14},
        {"A\r\n0123456789\r\n1\r\nx\r\n0\r\n\r\n", 1, 26},
        {"3\r\nab", 0, 5},
        {"3\nabc", 400, 0},
        {"3\r\nabc\n", 400, 0},
        {"3\r\nabcd\r\n", 400, 0},
        {"3;x=y\r\nabc\r\n", 400, 0},
        {" 3\r\n", 400, 0},
        {"\r\n", 400, 0},
        {"-1\r\n", 400, 0},
        {"0x3\r\n", 400, 0},
        {"0\r\nTrailer: x\r\n\r\n", 400, 0},
        {"0\r\n\n", 400, 0},
        {"000000000\r\n", 400, 0},
        {"FFFFFFFF\r\n", 413, 0},
        {"3e9\r\n", 413, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t used = 0;
        int rc = chunks(cases[i].text, strlen(cases[i].text), &used);
        if (rc != cases[i].rc || (rc <= 1 && used != cases[i].used))
            fail_msg("%s: %d, %zu", cases[i].text, rc, used);
    }
    /* Many one-byte chunks pass the count of bytes; zero-padded sizes cost wire and are refused at last. */
    struct http_limits wide = {.max_body = 1 << 20};
    struct http_chunks c = {0};
    struct err e;
    size_t used;
    int rc = 0;
    for (int i = 0; i < 1 << 20 && !rc; i++)
        rc = http_chunks_scan(&c, "00000001\r\nx\r\n", 13, &wide, &used, &e);
    assert_int_equal(rc, 413);
    assert_true(c.wire < 5u << 20);
}

static void test_values(void **st)
{
    static const char head[] =
        "POST /Host: HTTP/1.1\r\nHost: a\r\nX-Authorization: no\r\nauthorization:\t Bearer x \t\r\n"
        "Empty:\r\nAuthorization: second\r\n\r\n";
    static const struct {
        const char *name, *value;
    } all[] = {{"Authorization", "Bearer x"}, {"host", "a"}, {"empty", ""}, {"Accept", NULL}, {"POST /Host", NULL}};
    (void)st;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        size_t n = 0;
        const char *v = http_head_value(head, sizeof head - 1, all[i].name, &n);
        assert_int_equal(v != NULL, all[i].value != NULL);
        if (v) {
            assert_int_equal(n, strlen(all[i].value));
            assert_memory_equal(v, all[i].value, n);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values), cmocka_unit_test(test_heads), cmocka_unit_test(test_meaning),
        cmocka_unit_test(test_tidy),   cmocka_unit_test(test_sizes), cmocka_unit_test(test_chunks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
