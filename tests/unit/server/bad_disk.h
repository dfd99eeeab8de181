/* bad_disk.h - a disk that fails when it is told to: under SQLite (a VFS over the default one) and under store.c.
 *
 * Calls that write are counted: write, fsync, rename, remove, truncate, making a file. The one that is armed, or it and
 * all after it, answers the error. One thread.
 */
#ifndef CPET_TESTS_BAD_DISK_H
#define CPET_TESTS_BAD_DISK_H

#include <stdbool.h>

#include "common/buf.h"

enum { BAD_SYNC = 1, BAD_OTHER = 2, BAD_ALL = 3 };

/* Puts itself in, before anything is open. */
void bad_disk_install(void);
/* The n-th counted call from now on (1: the next) fails with error, and later ones too where forever. kinds: which
 * calls count. */
void bad_disk_arm(int n, int kinds, int error, bool forever);
/* No further failures; how many there were. */
int bad_disk_disarm(void);
/* From now on each counted call leaves a letter, NULL ends it. Of a module's file: o (made) w s (fsync) r (renamed)
 * u (removed); of a directory: d (fsync); of the database: W S T, of its journal: J K L (write, fsync, truncate). */
void bad_disk_trace(struct buf *to);
/* Is called before each counted call; NULL ends it. The changes that calls make are told to power_loss.h where it is
 * on. */
void bad_disk_before(void (*f)(void));

#endif
