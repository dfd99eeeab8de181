/* power_loss.c - what a disk may hold when the power goes. One thread; static state, freed by power_end.
 *
 * A file is an inode: bytes that last, and changes since its last sync. `lasting` are the entries that last, `now`
 * those that the program sees, and `ops` leads from one to the other.
 */
#include "tests/unit/server/power_loss.h"

#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/buf.h"
#include "common/file.h"

enum { INODES = 256, ENTRIES = 64, OPS = 64, NAME = 96 };

struct change {
    size_t at, n;
    bool truncate; /* to `at` bytes */
    char *bytes;
    struct change *next;
};
struct inode {
    struct buf lasting;
    struct change *first, **last;
};
struct entry {
    char name[NAME];
    int inode;
};
struct entries {
    struct entry e[ENTRIES];
    int n;
};
struct op { /* from "": made; to "": removed */
    char from[NAME], to[NAME];
    int inode;
};

static char root[256];
static struct inode inodes[INODES];
static int n_inodes, n_ops;
static struct entries lasting, now;
static struct op ops[OPS];

static void must(bool ok)
{
    if (!ok)
        abort();
}

static struct entry *find(struct entries *t, const char *name)
{
    for (int i = 0; i < t->n; i++)
        if (!strcmp(t->e[i].name, name))
            return &t->e[i];
    return NULL;
}

static void drop(struct entries *t, const char *name)
{
    struct entry *e = find(t, name);
    if (e)
        *e = t->e[--t->n];
}

static void put(struct entries *t, const char *name, int inode)
{
    drop(t, name);
    must(t->n < ENTRIES && strlen(name) < NAME);
    strcpy(t->e[t->n].name, name);
    t->e[t->n++].inode = inode;
}

static void apply(struct entries *t, const struct op *op)
{
    if (*op->from)
        drop(t, op->from);
    if (*op->to)
        put(t, op->to, op->inode);
}

static int new_inode(void)
{
    must(n_inodes < INODES);
    inodes[n_inodes] = (struct inode){0};
    inodes[n_inodes].last = &inodes[n_inodes].first;
    return n_inodes++;
}

static void note(const char *from, const char *to, int inode)
{
    struct op *op = &ops[n_ops];
    must(n_ops < OPS && strlen(from) < NAME && strlen(to) < NAME);
    strcpy(op->from, from);
    strcpy(op->to, to);
    op->inode = inode;
    n_ops++;
    apply(&now, op);
}

/* ---- what the program does ---- */

const char *power_name(const char *path)
{
    size_t n = strlen(root);
    if (!n || strncmp(path, root, n))
        return NULL;
    return path[n] == '/' ? path + n + 1 : path[n] ? NULL : "";
}

static struct inode *inode_of(const char *name)
{
    struct entry *e = find(&now, name);
    return e ? &inodes[e->inode] : NULL;
}

static void add_change(const char *name, struct change c)
{
    struct inode *i = inode_of(name);
    struct change *p = malloc(sizeof *p);
    must(i && p);
    *p = c;
    *i->last = p;
    i->last = &p->next;
}

void power_write(const char *name, const void *p, size_t n, size_t at)
{
    struct change c = {.at = at, .n = n, .bytes = malloc(n + 1)};
    must(c.bytes);
    memcpy(c.bytes, p, n);
    add_change(name, c);
}

void power_truncate(const char *name, size_t n)
{
    add_change(name, (struct change){.at = n, .truncate = true});
}

static void resize(struct buf *b, size_t n)
{
    while (b->len < n)
        must(!buf_append(b, "", 1));
    b->len = n;
}

static void change(struct buf *b, const struct change *c, size_t n)
{
    if (c->truncate) {
        resize(b, c->at);
        return;
    }
    if (b->len < c->at + n)
        resize(b, c->at + n);
    if (n)
        memcpy(b->data + c->at, c->bytes, n);
}

static void forget(struct inode *i)
{
    for (struct change *c = i->first, *next; c; c = next) {
        next = c->next;
        free(c->bytes);
        free(c);
    }
    i->first = NULL;
    i->last = &i->first;
}

void power_sync(const char *name)
{
    struct inode *i = inode_of(name);
    must(i);
    for (struct change *c = i->first; c; c = c->next)
        change(&i->lasting, c, c->n);
    forget(i);
}

void power_create(const char *name)
{
    if (!find(&now, name))
        note("", name, new_inode());
}

void power_rename(const char *from, const char *to)
{
    struct entry *e = find(&now, from);
    must(e);
    note(from, to, e->inode);
}

void power_unlink(const char *name)
{
    if (find(&now, name))
        note(name, "", -1);
}

static bool in_dir(const char *name, const char *dir)
{
    size_t n = strlen(dir);
    return n ? !strncmp(name, dir, n) && name[n] == '/' : !strchr(name, '/');
}

void power_sync_dir(const char *name)
{
    int kept = 0;
    for (int i = 0; i < n_ops; i++) {
        if (in_dir(*ops[i].to ? ops[i].to : ops[i].from, name))
            apply(&lasting, &ops[i]);
        else
            ops[kept++] = ops[i];
    }
    n_ops = kept;
}

/* ---- begin, end, images ---- */

static int read_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    char *text;
    size_t n;
    (void)st;
    (void)ftw;
    if (flag != FTW_F)
        return 0;
    must(!file_read(path, 1 << 26, &text, &n, NULL));
    int i = new_inode();
    buf_append(&inodes[i].lasting, text, n);
    put(&lasting, power_name(path), i);
    free(text);
    return 0;
}

void power_begin(const char *dir)
{
    power_end();
    must(strlen(dir) < sizeof root);
    strcpy(root, dir);
    must(!nftw(dir, read_one, 16, FTW_PHYS));
    now = lasting;
}

void power_end(void)
{
    for (int i = 0; i < n_inodes; i++) {
        forget(&inodes[i]);
        buf_free(&inodes[i].lasting);
    }
    n_inodes = n_ops = lasting.n = now.n = 0;
    *root = 0;
}

bool power_on(void)
{
    return *root;
}

static uint32_t draw(uint64_t *rng, uint32_t n)
{
    *rng = *rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((*rng >> 33) % n);
}

/* how: 0 nothing since the last sync is there, 1 all, 2 some, each in part where it pleases. */
static void write_inode(const char *path, const struct inode *i, uint32_t how, uint64_t *rng)
{
    struct buf b = {0};
    buf_append(&b, i->lasting.data ? i->lasting.data : "", i->lasting.len);
    for (const struct change *c = i->first; c && how; c = c->next) {
        uint32_t fate = how == 1 ? 0 : draw(rng, 3); /* whole, in part, not at all */
        if (fate < 2)
            change(&b, c, fate && c->n ? draw(rng, (uint32_t)c->n) : c->n);
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    must(fd >= 0 && write(fd, b.data ? b.data : "", b.len) == (ssize_t)b.len);
    close(fd);
    buf_free(&b);
}

void power_image(const char *to, uint64_t *rng)
{
    static const char *const dirs[] = {"", "/modules", "/incoming"};
    struct entries t = lasting;
    char path[512];
    uint32_t how = draw(rng, 3), n = draw(rng, (uint32_t)n_ops + 1);
    for (uint32_t i = 0; i < n; i++)
        apply(&t, &ops[i]);
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s%s", to, dirs[i]);
        mkdir(path, 0700);
    }
    for (int i = 0; i < t.n; i++) {
        snprintf(path, sizeof path, "%s/%s", to, t.e[i].name);
        write_inode(path, &inodes[t.e[i].inode], how, rng);
    }
}
