/* fail_alloc.c - a preloaded library whose malloc, calloc, realloc, posix_memalign, aligned_alloc and mmap fail when
 * they are told to.
 *
 * CPET_FAIL_ALLOC names a file of at least sizeof(struct control) bytes, which is mapped and shared with the test that
 * drives the process (tests/e2e/test_out_of_memory.py): it reads how many allocations there were and sets which ones
 * fail. Any thread. What a library that is not ours cannot survive is let through: jansson copies strings without a
 * look at what it got (json_loadb), libuv aborts when its table of watchers cannot grow, and what runs before the first
 * line of main (loader, constructors) is not the program's.
 *
 * Memory comes from glibc's own functions, so that nothing here allocates.
 */
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SHOWN __attribute__((visibility("default")))
#define CALLER ((uintptr_t)__builtin_return_address(0))

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t m);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);

struct control {
    _Atomic uint64_t seen;        /* allocations so far */
    _Atomic uint64_t first, last; /* those from first to last fail; first 0: none */
    _Atomic uint64_t failed;      /* how many did */
    _Atomic uint64_t caller;      /* of the last one that did */
};

enum { MAX_RANGES = 16 };

static struct control *control;
static struct range {
    uintptr_t from, to;
} spared[MAX_RANGES];
static int n_spared;

static int note(struct dl_phdr_info *info, size_t size, void *ctx)
{
    static const char *const names[] = {"libjansson", "libuv", "ld-linux"};
    (void)size;
    (void)ctx;
    for (size_t k = 0; k < sizeof names / sizeof *names; k++)
        for (int i = 0; strstr(info->dlpi_name, names[k]) && i < info->dlpi_phnum && n_spared < MAX_RANGES; i++)
            if (info->dlpi_phdr[i].p_type == PT_LOAD && info->dlpi_phdr[i].p_flags & PF_X) {
                uintptr_t at = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
                spared[n_spared++] = (struct range){at, at + info->dlpi_phdr[i].p_memsz};
            }
    return 0;
}

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("CPET_FAIL_ALLOC");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    dl_iterate_phdr(note, NULL);
    void *p = (void *)syscall(SYS_mmap, NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (p != MAP_FAILED)
        control = p;
}

static bool fails(uintptr_t caller)
{
    if (!control)
        return false;
    for (int i = 0; i < n_spared; i++)
        if (caller >= spared[i].from && caller < spared[i].to)
            return false;
    uint64_t n = ++control->seen, first = control->first;
    if (!first || n < first || n > control->last)
        return false;
    control->failed++;
    control->caller = caller;
    errno = ENOMEM;
    return true;
}

SHOWN void *malloc(size_t n)
{
    return fails(CALLER) ? NULL : __libc_malloc(n);
}

SHOWN void *calloc(size_t n, size_t m)
{
    return fails(CALLER) ? NULL : __libc_calloc(n, m);
}

SHOWN void *realloc(void *p, size_t n)
{
    return n && fails(CALLER) ? NULL : __libc_realloc(p, n);
}

SHOWN void *aligned_alloc(size_t align, size_t n)
{
    return fails(CALLER) ? NULL : __libc_memalign(align, n);
}

SHOWN int posix_memalign(void **out, size_t align, size_t n)
{
    void *p = fails(CALLER) ? NULL : __libc_memalign(align, n);
    if (!p)
        return ENOMEM;
    *out = p;
    return 0;
}

SHOWN void *mmap(void *at, size_t n, int prot, int flags, int fd, off_t off)
{
    return fails(CALLER) ? MAP_FAILED : (void *)syscall(SYS_mmap, at, n, prot, flags, fd, off);
}
