/* service.c - the service manager's side of cpetd, by libsystemd.
 *
 * Main thread. Sockets are taken once, before the loop; each descriptor then belongs to whoever listens on it. The
 * manager's socket and clock come in environment variables that outsiders may have left there too: what makes no sense
 * in LISTEN_FDS stops the start, as a server on the wrong address would be worse; the rest is reported and ignored.
 *
 * The watchdog's timer is unreferenced: it never keeps the loop running. Its pings say two things: the loop turns (they
 * come from it), and the engine's step at hand is not old.
 */
#include "server/service.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#if CPET_SYSTEMD
#include <systemd/sd-daemon.h>
#endif

#include "server/gen.h"
#include "server/log.h"

#define STATE_BYTES 512

/* ---- sockets ---- */

#if CPET_SYSTEMD
static int take_one(struct service *s, int fd, const char *name, struct err *e)
{
    static const char *const names[] = {"http", "admin"};
    int i = 0, flags = fcntl(fd, F_GETFL);
    while (i < SERVICE_SOCKETS && strcmp(name, names[i]))
        i++;
    if (i == SERVICE_SOCKETS)
        return err_set(e, -EINVAL, "the socket passed as descriptor %d is named neither http nor admin", fd);
    if (s->fd[i])
        return err_set(e, -EINVAL, "two sockets were passed with the name %s: one is taken", name);
    if (sd_is_socket(fd, AF_UNSPEC, SOCK_STREAM, 1) <= 0)
        return err_set(e, -EINVAL, "descriptor %d, passed as %s, is not a listening stream socket", fd, name);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK))
        return err_set(e, -errno, "descriptor %d, passed as %s: %s", fd, name, strerror(errno));
    int rc = http_socket_address(fd, s->addr[i], e);
    if (!rc)
        s->fd[i] = fd;
    return rc;
}

static void free_names(char **names)
{
    for (char **p = names; p && *p; p++)
        free(*p);
    free(names);
}

int service_take_sockets(struct service *s, struct err *e)
{
    char **names = NULL;
    int rc = 0, n = sd_listen_fds_with_names(1, &names);
    if (n < 0)
        return err_set(e, -EINVAL, "LISTEN_FDS and LISTEN_FDNAMES: %s", strerror(-n));
    for (int i = 0; !rc && i < n; i++)
        rc = take_one(s, SD_LISTEN_FDS_START + i, names[i], e);
    free_names(names);
    return rc;
}
#else
int service_take_sockets(struct service *s, struct err *e)
{
    const char *pid = getenv("LISTEN_PID");
    (void)s;
    if (pid && atol(pid) == (long)getpid())
        return err_set(e, -EINVAL, "sockets were passed (LISTEN_FDS), but this build is without libsystemd");
    return 0;
}
#endif

/* ---- messages ---- */

static void tell(const char *state)
{
#if CPET_SYSTEMD
    static bool said;
    int rc = sd_notify(0, state);
    if (rc < 0 && !said)
        log_line("warning", "the service manager cannot be told (NOTIFY_SOCKET): %s", strerror(-rc));
    said |= rc < 0;
#else
    (void)state;
#endif
}

void service_tell(const char *fmt, ...)
{
    char state[STATE_BYTES];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(state, sizeof state, fmt, ap);
    va_end(ap);
    tell(state);
}

void service_reloading(void)
{
    service_tell("RELOADING=1\nMONOTONIC_USEC=%llu\nSTATUS=reloading", (unsigned long long)(mono_ns() / 1000));
}

void service_reloaded(void)
{
    service_tell("READY=1\nSTATUS=ready");
}

/* ---- watchdog ---- */

static void on_watchdog(uv_timer_t *t)
{
    struct service *s = t->data;
    if (s->step_age_ns(s->ctx) <= s->limit_ns)
        service_tell("WATCHDOG=1");
}

static uint64_t watchdog_us(void)
{
#if CPET_SYSTEMD
    uint64_t us = 0;
    int rc = sd_watchdog_enabled(1, &us);
    if (rc < 0)
        log_line("warning", "WATCHDOG_USEC is ignored: %s", strerror(-rc));
    return rc > 0 ? us : 0;
#else
    return 0;
#endif
}

int service_watch(struct service *s, uv_loop_t *loop, uint64_t (*step_age_ns)(void *ctx), void *ctx, struct err *e)
{
    uint64_t us = watchdog_us(), every_ms = us / 4000;
    if (!us)
        return 0;
    int rc = uv_timer_init(loop, &s->watchdog);
    if (rc)
        return err_set(e, rc, "the watchdog's timer: %s", uv_strerror(rc));
    s->watchdog.data = s;
    s->step_age_ns = step_age_ns;
    s->ctx = ctx;
    s->limit_ns = us > UINT64_MAX / 1000 ? UINT64_MAX : us * 1000 / 2;
    s->watching = true;
    every_ms = every_ms ? every_ms : 1;
    uv_timer_start(&s->watchdog, on_watchdog, 0, every_ms);
    uv_unref((uv_handle_t *)&s->watchdog);
    return 0;
}

void service_unwatch(struct service *s)
{
    if (s->watching)
        uv_close((uv_handle_t *)&s->watchdog, NULL);
    s->watching = false;
}
