/* tok_filter.c - a tokenizer as a filter, for tests that compare it with another one.
 *
 * tok_filter DIR FLAGS: reads texts from standard input, each a 32-bit length (little endian) and its bytes; writes for
 * each the number of ids and the ids, then the length and bytes of the ids decoded, and decoded without special tokens,
 * then the length and bytes of the pieces joined. A text that is refused gives the number 0xFFFFFFFF alone. With FLAGS
 * "d" the input is ids (count, ids) and only the three texts come back. With "time" it says how much processor time
 * loading and encoding standard input as one text took.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model/tokenizer.h"

static double now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec * 1e-6;
}

static void put(const void *p, uint32_t n, size_t unit)
{
    fwrite(&n, 4, 1, stdout);
    if (n)
        fwrite(p, unit, n, stdout);
}

static void put_texts(const struct tok *t, const int32_t *id, size_t n)
{
    for (int skip = 0; skip < 2; skip++) {
        struct buf b = {0};
        if (tok_decode(t, id, n, skip, &b))
            exit(1);
        put(b.data, (uint32_t)b.len, 1);
        buf_free(&b);
    }
    struct buf b = {0};
    for (size_t i = 0; i < n; i++) {
        const char *s;
        size_t k;
        if (!tok_piece(t, id[i], &s, &k))
            buf_append(&b, s, k);
    }
    put(b.data, (uint32_t)b.len, 1);
    buf_free(&b);
}

static char *take(uint32_t *n, size_t unit)
{
    if (fread(n, 4, 1, stdin) != 1)
        return NULL;
    char *p = malloc(*n * unit + 1);
    if (!p || fread(p, unit, *n, stdin) != *n)
        exit(1);
    return p;
}

static int run_time(const struct tok *t, double load_ms)
{
    struct buf in = {0};
    char tmp[65536];
    for (size_t k; (k = fread(tmp, 1, sizeof tmp, stdin)) > 0;)
        buf_append(&in, tmp, k);
    struct tok_ids ids = {0};
    struct err e = {0};
    double a = now_ms();
    int rc = tok_encode(t, in.data, in.len, 0, &ids, &e);
    double b = now_ms();
    struct buf out = {0};
    if (!rc)
        rc = tok_decode(t, ids.id, ids.n, false, &out);
    double c = now_ms();
    printf("load %.1f ms, encode %.1f ms, decode %.1f ms, %zu bytes, %zu ids %s\n", load_ms, b - a, c - b, in.len,
           ids.n, e.msg);
    buf_free(&in);
    buf_free(&out);
    tok_ids_free(&ids);
    return rc ? 1 : 0;
}

int main(int argc, char **argv)
{
    struct tok *t = NULL;
    struct err e = {0};
    if (argc != 3)
        return 2;
    double a = now_ms();
    if (tok_open(argv[1], &t, &e)) {
        fprintf(stderr, "%s\n", e.msg);
        return 1;
    }
    double load_ms = now_ms() - a;
    int rc = 0;
    if (!strcmp(argv[2], "time")) {
        rc = run_time(t, load_ms);
        tok_close(t);
        return rc;
    }
    bool decode = !strcmp(argv[2], "d");
    unsigned flags = decode ? 0 : (unsigned)atoi(argv[2]);
    uint32_t n;
    for (char *p; (p = take(&n, decode ? 4 : 1)) != NULL; free(p)) {
        if (decode) {
            put_texts(t, (const int32_t *)(const void *)p, n);
            continue;
        }
        struct tok_ids ids = {0};
        if (tok_encode(t, p, n, flags, &ids, &e)) {
            uint32_t none = UINT32_MAX;
            fwrite(&none, 4, 1, stdout);
            continue;
        }
        put(ids.id, (uint32_t)ids.n, 4);
        put_texts(t, ids.id, ids.n);
        tok_ids_free(&ids);
    }
    tok_close(t);
    return 0;
}
