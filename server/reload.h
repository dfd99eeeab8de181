/* reload.h - what SIGHUP reads again: the API keys and the listeners' certificates; and their first reading. */
#ifndef CPET_SERVER_RELOAD_H
#define CPET_SERVER_RELOAD_H

#include "common/err.h"

struct http_tls;
struct options;
struct reload;
struct server;

/* The certificates of the options, NULL where there are none; the caller's references. Any thread. */
struct reload_tls {
    struct http_tls *api, *admin;
};
int reload_read_tls(const struct options *o, struct reload_tls *out, struct err *e);

/* Loop thread. Reads everything again on a worker, and puts it in force on the loop; what cannot be read stays as it
 * was, and the log says so. done follows, later. -ENOMEM or what libuv says: nothing is read, done does not come. */
int reload_start(struct server *sv, void (*done)(void *ctx), void *ctx);

#endif
