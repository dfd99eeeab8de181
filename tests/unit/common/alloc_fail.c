/* alloc_fail.c - malloc, calloc and realloc that fail when told to; see alloc_fail.h. */
#include "alloc_fail.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t m);
void *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t m);
void *__wrap_realloc(void *p, size_t n);

static long left = -1; /* allocations until one fails; negative: none does */
static long seen;
static bool sticky; /* those after it fail too */

static bool fails(void)
{
    seen++;
    if (left < 0)
        return false;
    if (left == 0)
        return sticky || left-- == 0;
    left--;
    return false;
}

void *__wrap_malloc(size_t n)
{
    return fails() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t m)
{
    return fails() ? NULL : __real_calloc(n, m);
}

void *__wrap_realloc(void *p, size_t n)
{
    return fails() ? NULL : __real_realloc(p, n);
}

static void pass(const char *name, int (*f)(struct err *), long n, long without)
{
    long did = 0;
    for (long k = 0; k < n; k++) {
        struct err e = {0};
        left = k;
        int r = f(&e);
        left = -1;
        if ((r && r != -ENOMEM && r != -E2BIG) || !r != !e.msg[0])
            fail_msg("%s, allocation %ld of %ld%s: %d, \"%s\"", name, k, n, sticky ? " and all after" : "", r, e.msg);
        did += !r;
    }
    if (did > without)
        fail_msg("%s: %ld of %ld failures%s did not matter, at most %ld may", name, did, n,
                 sticky ? " and all after" : "", without);
}

void alloc_fail_each(const char *name, int (*f)(struct err *), long without)
{
    struct err e = {0};
    seen = 0;
    int r = f(&e);
    long n = seen;
    if (r || n < 1)
        fail_msg("%s: %d, \"%s\" (%ld allocations)", name, r, e.msg, n);
    for (int all = 0; all < 2; all++) {
        sticky = all;
        pass(name, f, n, without);
    }
    sticky = false;
    assert_int_equal(f(&e), 0);
    print_message("%s: %ld allocations\n", name, n);
}
