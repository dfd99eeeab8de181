/* service.h - what cpetd and the service manager (systemd) tell each other: sockets, readiness, watchdog.
 *
 * Started by anything else, or built without libsystemd, all of it does nothing. Main thread, which is the loop's.
 */
#ifndef CPET_SERVER_SERVICE_H
#define CPET_SERVER_SERVICE_H

#include <stdbool.h>
#include <stdint.h>

#include <uv.h>

#include "common/err.h"
#include "server/http.h"

enum service_socket { SERVICE_HTTP, SERVICE_ADMIN, SERVICE_SOCKETS };

struct service {
    int fd[SERVICE_SOCKETS];                     /* listening sockets that were passed; 0: none */
    char addr[SERVICE_SOCKETS][HTTP_ADDR_BYTES]; /* where they listen, as http_opts.addr */

    uv_timer_t watchdog;
    bool watching;
    uint64_t limit_ns;
    uint64_t (*step_age_ns)(void *ctx);
    void *ctx;
};

/* Takes the sockets that were passed (LISTEN_FDS), by their names: "http" and "admin", one each. Before anything else
 * is opened: the descriptors are the first ones. Clears their variables. -EINVAL: another name, a name twice, no
 * listening stream socket, or variables that make no sense. */
int service_take_sockets(struct service *s, struct err *e);

/* Tells it: "READY=1", "STATUS=...", several with newlines between them. What fails is nobody's loss. */
void service_tell(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The pair around a reload of a service that is ready. */
void service_reloading(void);
void service_reloaded(void);

/* Where a watchdog is asked for (WATCHDOG_USEC): tells it four times in that span that all is well, from the loop, but
 * not while step_age_ns says that a step has run for more than half of it. So steps within the span are never held
 * against cpetd, and an engine or a loop that is stuck is found within one and a half. */
int service_watch(struct service *s, uv_loop_t *loop, uint64_t (*step_age_ns)(void *ctx), void *ctx, struct err *e);
void service_unwatch(struct service *s);

#endif
