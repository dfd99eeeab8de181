/* file.h - files: mapped, read whole under a cap, written so that a crash leaves the old or the new one. */
#ifndef CPET_COMMON_FILE_H
#define CPET_COMMON_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct map {
    const uint8_t *data; /* NULL for an empty file */
    size_t len;
};

/* Maps a regular file read-only. -ENOENT, -EISDIR, -EINVAL (not a regular file), or what open says. */
int map_open(const char *path, struct map *out, struct err *e);
void map_close(struct map *m); /* takes NULL and an empty map */
/* Tells the kernel that the pages of [off, off+len) will not be read again: drops them from resident memory. */
void map_forget(const struct map *m, size_t off, size_t len);

/* Reads a file whole into malloc'ed memory, with a NUL beyond *len. -EFBIG above cap. */
int file_read(const char *path, size_t cap, char **out, size_t *len, struct err *e);

/* Opens a regular file for reading: a descriptor, which the caller closes, or -Exxx. *len: its length. */
int file_open(const char *path, size_t *len, struct err *e);
/* Reads exactly n bytes at off; path is for messages. -EINVAL where the file ends before. */
int file_read_at(int fd, const char *path, size_t off, void *p, size_t n, struct err *e);

/* Writes path.tmp.PID, fsyncs, renames over path, fsyncs the directory. On failure path is as it was. */
int file_write_atomic(const char *path, const void *data, size_t len, unsigned mode, struct err *e);

/* The same, streamed: open, any number of writes, then commit (fsync, rename, fsync of the directory) or abort (the
 * temporary is removed). Both free it. After a failed write only abort makes sense; abort takes NULL. */
struct file_out;
int file_out_open(const char *path, unsigned mode, struct file_out **out, struct err *e);
int file_out_write(struct file_out *o, const void *p, size_t n, struct err *e);
int file_out_commit(struct file_out *o, struct err *e);
void file_out_abort(struct file_out *o);

/* mkdir -p. */
int dir_make(const char *path, struct err *e);

/* dir + "/" + name, malloc'ed; NULL when memory is out. */
char *path_join(const char *dir, const char *name);

#endif
