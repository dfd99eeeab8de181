/* http_scan.c - the strict reading of HTTP/1.x framing.
 *
 * libmicrohttpd 0.9.75 takes bare LF, folded headers, a space before the colon, NULs, Content-Length together with
 * Transfer-Encoding, repeated Content-Length and HTTP/1.2, each of which lets a proxy in front and the server behind
 * see different requests. So nothing reaches it before it passed here.
 *
 * Any thread, no memory. Time is linear in the bytes: the search for the head's end never looks at a byte twice, and
 * what each chunk costs on the wire is counted, so that tiny chunks cannot cost more than a body's limit allows.
 */
#include "server/http_scan.h"

#include <string.h>
#include <strings.h>

enum { MAX_HEADERS = 100, MAX_TARGET = 8192, MAX_MEMBERS = 64 };

static int refuse(struct err *e, int status, const char *why)
{
    err_set(e, status == 413 || status == 431 ? -E2BIG : -EINVAL, "%s", why);
    return status;
}

int http_head_find(const char *p, size_t n, const struct http_limits *lim, size_t *scanned, size_t *len, struct err *e)
{
    for (size_t i = *scanned; i < n && i < lim->max_header;) {
        const char *lf = memchr(p + i, '\n', (n < lim->max_header ? n : lim->max_header) - i);
        if (!lf)
            break;
        size_t at = (size_t)(lf - p);
        if (!at || p[at - 1] != '\r')
            return refuse(e, 400, "a line of the request's head ends without CR");
        if (at >= 3 && p[at - 2] == '\n') {
            *len = at + 1;
            return 1;
        }
        if (at == 1)
            return refuse(e, 400, "the request begins with an empty line");
        *scanned = i = at + 1;
    }
    if (n >= lim->max_header) {
        bool in_target = !memchr(p, '\n', lim->max_header);
        return in_target ? refuse(e, 414, "the request's target is too long")
                         : refuse(e, 431, "the request's headers are too large");
    }
    return 0;
}

static bool is_token(unsigned char c)
{
    return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') || (c && strchr("!#$%&'*+-.^_`|~", c));
}

static int hex_digit(unsigned char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 32;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int check_target(const char *p, size_t n, struct err *e)
{
    if (n > MAX_TARGET)
        return refuse(e, 414, "the request's target is too long");
    if (!n || p[0] != '/')
        return refuse(e, 400, "the request's target must begin with /");
    size_t members = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)p[i];
        members += c == '&';
        if (members >= MAX_MEMBERS)
            return refuse(e, 400, "the request's query has too many members");
        if (c <= 0x20 || c >= 0x7F || strchr("#\"<>\\^`{|}", c))
            return refuse(e, 400, "the request's target has a character that must be percent-encoded");
        if (c != '%')
            continue;
        if (n - i < 3 || hex_digit((unsigned char)p[i + 1]) < 0 || hex_digit((unsigned char)p[i + 2]) < 0)
            return refuse(e, 400, "the request's target has a broken percent-encoding");
        if (p[i + 1] == '0' && p[i + 2] == '0')
            return refuse(e, 400, "the request's target has a NUL");
    }
    return 0;
}

/* METHOD SP target SP HTTP/1.x, without the line end. */
static int check_request_line(const char *p, size_t n, struct http_head *out, struct err *e)
{
    static const char *const methods[] = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "QUERY"};
    const char *sp = memchr(p, ' ', n), *sp2 = sp ? memrchr(p, ' ', n) : NULL;
    if (!sp || sp == sp2 || sp == p)
        return refuse(e, 400, "the request line must be a method, a target and a version, one space apart");
    size_t m = (size_t)(sp - p), version = n - (size_t)(sp2 + 1 - p);
    for (size_t i = 0; i < m; i++)
        if (!is_token((unsigned char)p[i]))
            return refuse(e, 400, "the request's method has a character that is not allowed");
    if (version != 8 || memcmp(sp2 + 1, "HTTP/", 5))
        return refuse(e, 400, "the request line must end with HTTP/1.1 or HTTP/1.0");
    if (memcmp(sp2 + 6, "1.1", 3) && memcmp(sp2 + 6, "1.0", 3))
        return refuse(e, 505, "only HTTP/1.1 and HTTP/1.0 are served");
    out->http10 = sp2[8] == '0';
    bool known = false;
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++)
        known |= strlen(methods[i]) == m && !memcmp(methods[i], p, m);
    if (!known)
        return refuse(e, 501, "the request's method is not served");
    return check_target(sp + 1, (size_t)(sp2 - sp - 1), e);
}

/* Headers that say how a message is framed or who it is for: once at most. */
enum { H_HOST, H_LENGTH, H_ENCODING, H_EXPECT, H_AUTH, H_CONNECTION, H_CONTENT_ENCODING, H_UPGRADE, N_SPECIAL };
static const char *const special[N_SPECIAL] = {"host",          "content-length", "transfer-encoding", "expect",
                                               "authorization", "connection",     "content-encoding",  "upgrade"};

struct value {
    const char *p;
    size_t n;
};

static bool value_is(const struct value *v, const char *s)
{
    return v->n == strlen(s) && !strncasecmp(v->p, s, v->n);
}

/* Does a comma-separated list name s? */
static bool value_lists(const struct value *v, const char *s)
{
    for (size_t i = 0; i < v->n;) {
        size_t end = i;
        while (end < v->n && v->p[end] != ',')
            end++;
        struct value one = {v->p + i, end - i};
        while (one.n && (*one.p == ' ' || *one.p == '\t'))
            one.p++, one.n--;
        while (one.n && (one.p[one.n - 1] == ' ' || one.p[one.n - 1] == '\t'))
            one.n--;
        if (value_is(&one, s))
            return true;
        i = end + 1;
    }
    return false;
}

/* One header line without its line end; a special one is noted in found. */
static int check_header(const char *p, size_t n, struct value found[N_SPECIAL], struct err *e)
{
    if (*p == ' ' || *p == '\t')
        return refuse(e, 400, "a header is folded over several lines");
    const char *colon = memchr(p, ':', n);
    if (!colon || colon == p)
        return refuse(e, 400, "a header line has no name");
    for (const char *q = p; q < colon; q++)
        if (!is_token((unsigned char)*q))
            return refuse(e, 400, "a header's name has a character that is not allowed, or a space before the colon");
    struct value v = {colon + 1, (size_t)(p + n - colon - 1)}, name = {p, (size_t)(colon - p)};
    for (size_t i = 0; i < v.n; i++) {
        unsigned char c = (unsigned char)v.p[i];
        if ((c < 0x20 && c != '\t') || c == 0x7F)
            return refuse(e, 400, "a header's value has a control character");
    }
    while (v.n && (*v.p == ' ' || *v.p == '\t'))
        v.p++, v.n--;
    while (v.n && (v.p[v.n - 1] == ' ' || v.p[v.n - 1] == '\t'))
        v.n--;
    for (int i = 0; i < N_SPECIAL; i++) {
        if (!value_is(&name, special[i]))
            continue;
        if (found[i].p) {
            err_set(e, -EINVAL, "the header %s is there twice", special[i]);
            return 400;
        }
        found[i] = v;
    }
    return 0;
}

static int check_length(const struct value *v, const struct http_limits *lim, struct http_head *out, struct err *e)
{
    uint64_t len = 0;
    if (!v->n)
        return refuse(e, 400, "Content-Length must be a number");
    for (size_t i = 0; i < v->n; i++) {
        if (v->p[i] < '0' || v->p[i] > '9')
            return refuse(e, 400, "Content-Length must be a number");
        if (len < UINT64_MAX / 16)
            len = len * 10 + (uint64_t)(v->p[i] - '0');
    }
    if (len > lim->max_body) {
        err_set(e, -E2BIG, "the body is larger than %zu bytes", lim->max_body);
        return 413;
    }
    out->content_length = len;
    return 0;
}

/* What the special headers say together. */
static int check_special(const struct value f[N_SPECIAL], const struct http_limits *lim, struct http_head *out,
                         struct err *e)
{
    if (!f[H_HOST].p && !out->http10)
        return refuse(e, 400, "the Host header is missing");
    if (f[H_HOST].p && memchr(f[H_HOST].p, ',', f[H_HOST].n))
        return refuse(e, 400, "the Host header names more than one host");
    if (f[H_ENCODING].p) {
        if (f[H_LENGTH].p)
            return refuse(e, 400, "Content-Length and Transfer-Encoding exclude each other");
        if (out->http10)
            return refuse(e, 400, "HTTP/1.0 has no Transfer-Encoding");
        if (!value_is(&f[H_ENCODING], "chunked"))
            return refuse(e, 501, "the only Transfer-Encoding served is chunked");
        out->chunked = true;
    }
    if (f[H_EXPECT].p && !value_is(&f[H_EXPECT], "100-continue"))
        return refuse(e, 417, "the only expectation served is 100-continue");
    if (f[H_CONTENT_ENCODING].p && !value_is(&f[H_CONTENT_ENCODING], "identity"))
        return refuse(e, 415, "compressed bodies are not served");
    out->keep_alive = !out->http10;
    if (f[H_CONNECTION].p && value_lists(&f[H_CONNECTION], "close"))
        out->keep_alive = false;
    else if (f[H_CONNECTION].p && value_lists(&f[H_CONNECTION], "keep-alive"))
        out->keep_alive = true;
    return f[H_LENGTH].p ? check_length(&f[H_LENGTH], lim, out, e) : 0;
}

int http_head_check(const char *p, size_t len, const struct http_limits *lim, struct http_head *out, struct err *e)
{
    struct value found[N_SPECIAL] = {{0}};
    struct http_head head = {0};
    unsigned headers = 0;
    for (size_t i = 0; i + 2 < len;) {
        const char *lf = memchr(p + i, '\n', len - i);
        size_t n = (size_t)(lf - p) - i - 1; /* without CR LF */
        int rc = i ? check_header(p + i, n, found, e) : check_request_line(p, n, &head, e);
        if (rc)
            return rc;
        if (i && ++headers > MAX_HEADERS)
            return refuse(e, 431, "the request has more than 100 headers");
        i += n + 2;
    }
    int rc = check_special(found, lim, &head, e);
    if (!rc)
        *out = head;
    return rc;
}

const char *http_head_value(const char *p, size_t len, const char *name, size_t *n)
{
    size_t n_name = strlen(name);
    for (size_t i = 0; i + 2 < len;) {
        const char *lf = memchr(p + i, '\n', len - i), *v = p + i + n_name + 1, *end = lf - 1;
        if (i && end >= v && v[-1] == ':' && !strncasecmp(p + i, name, n_name)) {
            while (v < end && (*v == ' ' || *v == '\t'))
                v++;
            while (end > v && (end[-1] == ' ' || end[-1] == '\t'))
                end--;
            *n = (size_t)(end - v);
            return v;
        }
        i = (size_t)(lf - p) + 1;
    }
    return NULL;
}

void http_head_tidy(char *p, size_t len)
{
    for (size_t i = 0; i + 2 < len;) {
        char *lf = memchr(p + i, '\n', len - i), *end = lf - 1, *colon = i ? memchr(p + i, ':', len - i) : NULL;
        size_t blank = 0;
        while (colon && end - blank > colon + 1 && (end[-1 - (long)blank] == ' ' || end[-1 - (long)blank] == '\t'))
            blank++;
        if (blank) {
            memmove(colon + 1 + blank, colon + 1, (size_t)(end - colon - 1) - blank);
            memset(colon + 1, ' ', blank);
        }
        i = (size_t)(lf - p) + 1;
    }
}

enum { C_SIZE, C_SIZE_LF, C_DATA, C_DATA_CR, C_DATA_LF, C_END_CR, C_END_LF };

/* One byte of the size line. */
static int chunk_size_byte(struct http_chunks *c, unsigned char ch, const struct http_limits *lim, struct err *e)
{
    int d = hex_digit(ch);
    if (d >= 0) {
        if (++c->digits > 8)
            return refuse(e, 400, "a chunk's size has more than 8 digits");
        c->left = c->left * 16 + (uint64_t)d;
        return 0;
    }
    if (ch != '\r' || !c->digits)
        return refuse(e, 400, "a chunk's size must be hexadecimal, without extensions");
    c->body += c->left;
    if (c->body > lim->max_body) {
        err_set(e, -E2BIG, "the body is larger than %zu bytes", lim->max_body);
        return 413;
    }
    c->state = C_SIZE_LF;
    return 0;
}

/* One byte that must be what the framing says. */
static int chunk_mark(struct http_chunks *c, unsigned char ch, struct err *e)
{
    static const char want[] = {
        [C_SIZE_LF] = '\n', [C_DATA_CR] = '\r', [C_DATA_LF] = '\n', [C_END_CR] = '\r', [C_END_LF] = '\n'};
    if (ch != (unsigned char)want[c->state])
        return refuse(e, 400, "a chunk is not framed by CR LF, or trailers follow the body");
    switch (c->state) {
    case C_SIZE_LF:
        c->state = c->left ? C_DATA : C_END_CR;
        break;
    case C_DATA_LF:
        c->state = C_SIZE;
        c->digits = 0;
        break;
    default:
        c->state++;
    }
    return 0;
}

int http_chunks_scan(struct http_chunks *c, const char *p, size_t n, const struct http_limits *lim, size_t *used,
                     struct err *e)
{
    for (size_t i = 0; i < n;) {
        int rc;
        bool last = c->state == C_END_LF;
        if (c->state == C_DATA) {
            size_t k = n - i < c->left ? n - i : (size_t)c->left;
            c->left -= k;
            c->wire += k;
            i += k;
            if (!c->left)
                c->state = C_DATA_CR;
            continue;
        }
        rc = c->state == C_SIZE ? chunk_size_byte(c, (unsigned char)p[i], lim, e)
                                : chunk_mark(c, (unsigned char)p[i], e);
        if (rc)
            return rc;
        i++;
        c->wire++;
        if (last) {
            *used = i;
            return 1;
        }
    }
    *used = n;
    if (c->wire / 2 > lim->max_body + 65536)
        return refuse(e, 413, "the body is cut into too many small chunks");
    return 0;
}
