/* options.h - cpetd's settings: command line over environment over file over default.
 *
 * Read once by main before any thread exists, and constant afterwards.
 */
#ifndef CPET_SERVER_OPTIONS_H
#define CPET_SERVER_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define OPTIONS_MANY 256 /* most --pet, and most --module-root */

enum options_log { OPTIONS_LOG_TEXT, OPTIONS_LOG_JSON };

struct options {
    const char *model, *name;
    int precision; /* enum model_precision */
    int kv_type;   /* MODEL_KV_AUTO or a kern_type */
    const char *recovery;
    const char *pet_task[OPTIONS_MANY], *pet_path[OPTIONS_MANY];
    size_t n_pets;
    const char *module_root[OPTIONS_MANY];
    size_t n_module_roots;
    const char *listen, *admin_listen; /* admin_listen NULL: none */
    const char *data, *api_keys, *admin_key, *config;
    uint32_t threads; /* 0: one a core */
    uint64_t kv_bytes, pet_bytes;
    uint32_t max_seqs, max_context, max_rows, prefill_chunk; /* 0: the model's or the engine's default */
    uint32_t max_queue, max_tenant;
    uint32_t max_connections; /* of --listen; 0: as many as descriptors allow, 16,384 at most */
    uint32_t request_timeout_ms, drain_ms, inject_delay_ms;
    const char *trace_steps;
    uint32_t metrics_tasks;
    const char *tls_cert, *tls_key, *tls_client_ca, *admin_tls_cert, *admin_tls_key; /* NULL: none */
    const char *request_log;
    bool log_prompts;
    bool public_metrics, check_config, no_prefix_cache;
    enum options_log log_format;
    const char *device, *cpu_level;
    void *memory; /* what the strings lie in */
};

enum options_what { OPTIONS_RUN, OPTIONS_HELP, OPTIONS_VERSION };

/* Exit statuses of the contract. */
enum { EXIT_USAGE = 2, EXIT_CONFIG = 78 };

/* Fills *o. env: NULL-terminated "NAME=value" (the program's environ). On failure returns an error with *status the
 * exit status (2: the command line is wrong; 78: the environment or the file is), e->param the option, and e->msg
 * saying where it came from. */
int options_read(int argc, char *const *argv, char *const *env, struct options *o, enum options_what *what, int *status,
                 struct err *e);
void options_free(struct options *o);

/* What can be said without loading: files there, modes, loopback without keys, the device. -EINVAL as above (78). */
int options_check(const struct options *o, struct err *e);

const char *options_help(void);

/* options_file.c: "key = value" lines; '#' and ';' begin comments, "[cpetd]" may stand above. Calls set for each; a
 * failing set stops it. where: "FILE line N". */
int options_file_read(const char *path,
                      int (*set)(void *ctx, const char *key, const char *value, const char *where, struct err *e),
                      void *ctx, struct err *e);
int options_file_parse(const char *text, size_t n, const char *path,
                       int (*set)(void *ctx, const char *key, const char *value, const char *where, struct err *e),
                       void *ctx, struct err *e);

/* "16", "512M", "2G": bytes. -EINVAL for anything else and on overflow. */
int options_bytes(const char *s, uint64_t *out);
/* Whether "HOST:PORT" names a loopback address (127.0.0.0/8, ::1, localhost). */
bool options_is_loopback(const char *addr);

#endif
