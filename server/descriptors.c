/* descriptors.c - shares the process's file descriptors between connections, requests and files.
 *
 * Runs in main before any thread. A connection is a descriptor while it is idle, and three while it is in a request
 * (http_front.c). So what an operator asks for are connections, most of which are idle; what is left of the limit
 * bounds how many of them can be in a request at once, and one more gets a 503 instead of an accept that fails. OTHERS
 * are kept for files, the registry, libuv and clients that are told that there are too many (http_front.c).
 */
#include "server/descriptors.h"

#include <errno.h>
#include <sys/resource.h>

enum { OTHERS = 256, FEWEST_PAIRS = 64, MOST = 16384, MOST_ADMIN = 512 };

int descriptors_plan(uint32_t want, uint64_t limit, struct descriptors *out, struct err *e)
{
    uint64_t n = want;
    uint64_t room = limit > OTHERS ? limit - OTHERS : 0;
    if (!n) { /* half of them idle, a quarter of that for the admin listener where there are few */
        uint64_t admin = room / 8 < MOST_ADMIN ? room / 8 : MOST_ADMIN;
        n = room / 2 - admin < MOST ? room / 2 - admin : MOST;
    }
    uint64_t admin = n / 4 + 1 < MOST_ADMIN ? n / 4 + 1 : MOST_ADMIN;
    uint64_t need = n + 3 * admin + 2 * (n < FEWEST_PAIRS ? n : FEWEST_PAIRS) + OTHERS;
    if (!n || need > limit)
        return err_param(e, -EINVAL, "max-connections",
                         "--max-connections %llu needs %llu file descriptors and the limit is %llu (ulimit -Hn)",
                         (unsigned long long)n, (unsigned long long)need, (unsigned long long)limit);
    uint64_t pairs = (limit - OTHERS - n - 3 * admin) / 2;
    out->conns = (uint32_t)n;
    out->admin_conns = (uint32_t)admin;
    out->pairs = (uint32_t)(pairs < n ? pairs : n);
    return 0;
}

int descriptors_share(uint32_t want, struct descriptors *out, struct err *e)
{
    struct rlimit l;
    rlim_t of_use = 3u * ((rlim_t)(want ? want : MOST) + MOST_ADMIN) + OTHERS;
    if (getrlimit(RLIMIT_NOFILE, &l))
        return err_set(e, -errno, "the limit of file descriptors cannot be read");
    if (l.rlim_cur < of_use) {
        rlim_t soft = l.rlim_cur;
        l.rlim_cur = l.rlim_max < of_use ? l.rlim_max : of_use;
        if (setrlimit(RLIMIT_NOFILE, &l))
            l.rlim_cur = soft;
    }
    return descriptors_plan(want, l.rlim_cur, out, e);
}
