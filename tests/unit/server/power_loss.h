/* power_loss.h - what a disk may hold when the power goes: a model of one directory, told of each change.
 *
 * Bytes written to a file last when that file is synced, entries of a directory when that directory is; before that
 * each write may be there, or not, or in part, and of the changes of entries the first few. Names are relative to the
 * directory
 * ("modules/HASH.pet"). One thread; all state is static. Told by bad_disk.c.
 */
#ifndef CPET_TESTS_POWER_LOSS_H
#define CPET_TESTS_POWER_LOSS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Everything in dir lasts, as it is now; later changes are noted. */
void power_begin(const char *dir);
void power_end(void);
bool power_on(void);
/* Makes the directory `to`, as the disk might be now; rng picks what lasted. */
void power_image(const char *to, uint64_t *rng);

/* The name of path under the directory; NULL when it is elsewhere. */
const char *power_name(const char *path);
void power_write(const char *name, const void *p, size_t n, size_t at);
void power_truncate(const char *name, size_t n);
void power_sync(const char *name);     /* a file */
void power_sync_dir(const char *name); /* "" is the directory itself */
void power_create(const char *name);   /* nothing happens when it is there */
void power_rename(const char *from, const char *to);
void power_unlink(const char *name);

#endif
