/* options_check.c - what can be said about the options without loading anything.
 *
 * Runs in main, also for --check-config. Looks at files (there, a directory, who may read them), addresses and the
 * device; opens nothing for good.
 */
#include <arpa/inet.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/keys.h"
#include "server/options.h"

bool options_is_loopback(const char *addr)
{
    char host[64];
    const char *colon = strrchr(addr, ':');
    if (!colon)
        return false;
    const char *from = addr[0] == '[' ? addr + 1 : addr;
    size_t n = (size_t)(colon - from) - (addr[0] == '[' && colon[-1] == ']');
    if (n >= sizeof host)
        return false;
    memcpy(host, from, n);
    host[n] = 0;
    struct in_addr v4;
    struct in6_addr v6;
    if (!strcmp(host, "localhost"))
        return true;
    if (inet_pton(AF_INET, host, &v4) == 1)
        return (ntohl(v4.s_addr) >> 24) == 127;
    return inet_pton(AF_INET6, host, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

static int need(const char *option, const char *path, bool directory, struct err *e)
{
    struct stat st;
    if (!path)
        return 0;
    if (stat(path, &st))
        return err_param(e, -EINVAL, option, "--%s: %s: %s", option, path, strerror(errno));
    if (directory && !S_ISDIR(st.st_mode))
        return err_param(e, -EINVAL, option, "--%s: %s is not a directory", option, path);
    return 0;
}

/* A file that will be written: it, or the directory that it is to be made in, can be. */
static int check_output(const char *option, const char *path, struct err *e)
{
    char *copy = path ? strdup(path) : NULL;
    if (!path)
        return 0;
    if (!copy)
        return err_set(e, -ENOMEM, "out of memory");
    const char *what = access(path, F_OK) ? dirname(copy) : path;
    int rc = access(what, W_OK)
                 ? err_param(e, -EINVAL, option, "--%s: cannot write %s: %s", option, path, strerror(errno))
                 : 0;
    free(copy);
    return rc;
}

static int check_device(const char *device, struct err *e)
{
    if (!strcmp(device, "cpu") || !strcmp(device, "auto"))
        return 0;
    if (!strncmp(device, "cuda:", 5))
        return err_param(e, -EINVAL, "device", "--device %s: this build computes on the processor only; it has no CUDA",
                         device);
    return err_param(e, -EINVAL, "device", "--device %s: is none of cpu, cuda:N, auto", device);
}

static int check_addresses(const struct options *o, struct err *e)
{
    if (!o->api_keys && !options_is_loopback(o->listen))
        return err_param(e, -EINVAL, "listen",
                         "--listen %s is not a loopback address, and without --api-keys only those are served",
                         o->listen);
    const char *a = o->admin_listen;
    if (a && strncmp(a, "unix:", 5) && !o->admin_key && !options_is_loopback(a))
        return err_param(e, -EINVAL, "admin-listen",
                         "--admin-listen %s is not a loopback address, and without --admin-key only those are served",
                         a);
    return 0;
}

static int check_pair(const char *cert, const char *key, const char *cert_option, const char *key_option, struct err *e)
{
    if (!cert == !key)
        return 0;
    const char *have = cert ? cert_option : key_option, *lacks = cert ? key_option : cert_option;
    return err_param(e, -EINVAL, lacks, "--%s needs --%s beside it", have, lacks);
}

static int check_tls(const struct options *o, struct err *e)
{
    int rc = check_pair(o->tls_cert, o->tls_key, "tls-cert", "tls-key", e);
    rc = rc ? rc : check_pair(o->admin_tls_cert, o->admin_tls_key, "admin-tls-cert", "admin-tls-key", e);
    if (!rc && o->tls_client_ca && !o->tls_cert)
        rc = err_param(e, -EINVAL, "tls-cert", "--tls-client-ca needs --tls-cert beside it");
    if (!rc && o->admin_tls_cert && (!o->admin_listen || !strncmp(o->admin_listen, "unix:", 5)))
        rc = err_param(e, -EINVAL, "admin-tls-cert", "--admin-tls-cert needs an address and port at --admin-listen");
    if (!rc && o->tls_cert && !strncmp(o->listen, "unix:", 5))
        rc = err_param(e, -EINVAL, "tls-cert", "--tls-cert needs an address and port at --listen");
    return rc;
}

static int check_admin_key(const char *path, struct err *e)
{
    int rc = path ? keys_check_file(path, "admin-key", e) : 0;
    return rc ? err_prefix(e, rc, "--admin-key") : 0;
}

static int check_pets(const struct options *o, struct err *e)
{
    for (size_t i = 0; i < o->n_pets; i++) {
        int rc = need("pet", o->pet_path[i], false, e);
        if (rc)
            return rc;
        for (size_t j = 0; j < i; j++)
            if (!strcmp(o->pet_task[i], o->pet_task[j]))
                return err_param(e, -EINVAL, "pet", "--pet: the task \"%s\" is there twice", o->pet_task[i]);
        if (o->name && !strcmp(o->pet_task[i], o->name))
            return err_param(e, -EINVAL, "pet", "--pet: \"%s\" is the backbone's name", o->name);
    }
    return 0;
}

int options_check(const struct options *o, struct err *e)
{
    static const char *const levels[] = {"scalar", "avx2", "vnni", "amx"};
    int rc = need("model", o->model, true, e);
    rc = rc ? rc : need("recovery", o->recovery, false, e);
    rc = rc ? rc : need("api-keys", o->api_keys, false, e);
    rc = rc ? rc : check_admin_key(o->admin_key, e);
    rc = rc ? rc : check_device(o->device, e);
    rc = rc ? rc : check_addresses(o, e);
    rc = rc ? rc : check_pets(o, e);
    rc = rc ? rc : check_tls(o, e);
    rc = rc ? rc : check_output("trace-steps", o->trace_steps, e);
    if (o->request_log && strcmp(o->request_log, "-"))
        rc = rc ? rc : check_output("request-log", o->request_log, e);
    for (size_t i = 0; !rc && i < o->n_module_roots; i++)
        rc = need("module-root", o->module_root[i], true, e);
    if (rc || !o->cpu_level || !*o->cpu_level)
        return rc;
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++)
        if (!strcmp(o->cpu_level, levels[i]))
            return 0;
    return err_param(e, -EINVAL, "cpu-level", "CPETD_CPU_LEVEL: \"%s\" is none of scalar, avx2, vnni, amx",
                     o->cpu_level);
}
