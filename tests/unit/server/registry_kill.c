/* registry_kill.c - kills a program that writes to a registry, again and again, and looks at what is left.
 *
 *     registry_kill ROUNDS [SEED]
 *
 * A child opens the registry and makes random admin writes; after each it writes a byte to a pipe. It is killed
 * (SIGKILL) after a random time, while it opens too. The parent counts the bytes, replays as many writes on a model,
 * opens the registry and compares: it must be the model, or the model after the one write that was under way, in rows,
 * kept versions and files; the files must be whole. So nothing acknowledged is lost and nothing deleted comes back. The
 * next round goes on with the same registry. Writes are drawn by a counter, so both sides know each other's.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/file.h"
#include "tests/unit/server/registry_dump.h"

enum { MODULES = 8, CONTENTS = 24, TASKS = 5, REFS = 2, CONTENT_STEP = 700 };

struct version {
    uint64_t id;
    int n, content[REFS];
};
struct model_task {
    int64_t created, updated; /* numbers of writes; created 0: no such task */
    int n;
    struct version v[REGISTRY_VERSIONS]; /* newest first */
};
struct model {
    int module[MODULES]; /* its content, 0: none */
    int64_t module_created[MODULES];
    bool content[CONTENTS + 1];
    struct model_task task[TASKS];
};

static uint64_t seed;
static char dir[64];

static void die(const char *what, const struct err *e)
{
    fprintf(stderr, "registry_kill: %s: %s\n", what, e ? e->msg : "");
    exit(3);
}

static uint64_t mix(uint64_t x)
{
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static uint32_t draw(uint64_t *rng, uint32_t n)
{
    *rng = mix(*rng);
    return (uint32_t)((*rng >> 32) % n);
}

static const char *name_of(const char *kind, int i)
{
    static char s[4][16];
    static int at;
    at = (at + 1) % 4;
    snprintf(s[at], sizeof s[at], "%s%d", kind, i);
    return s[at];
}

static struct buf content_bytes(int id)
{
    struct buf b = {0};
    for (int i = 0; i < id * CONTENT_STEP; i++)
        buf_printf(&b, "%d,", id);
    return b;
}

static struct hash content_hash(int id)
{
    static struct hash h[CONTENTS + 1];
    static bool made[CONTENTS + 1];
    if (!made[id]) {
        struct buf b = content_bytes(id);
        hash_of(b.data, b.len, &h[id]);
        buf_free(&b);
        made[id] = true;
    }
    return h[id];
}

static struct hash version_hash(uint64_t id)
{
    struct hash h;
    hash_of(&id, sizeof id, &h);
    return h;
}

static bool named(const struct model *m, int content)
{
    for (int i = 0; i < MODULES; i++)
        if (m->module[i] == content)
            return true;
    for (int i = 0; i < TASKS; i++)
        for (int k = 0; k < m->task[i].n; k++)
            for (int j = 0; j < m->task[i].v[k].n; j++)
                if (m->task[i].v[k].content[j] == content)
                    return true;
    return false;
}

static void collect_model(struct model *m)
{
    for (int c = 1; c <= CONTENTS; c++)
        m->content[c] = m->content[c] && named(m, c);
}

/* A content that is there, from a random one on; 0: none is. */
static int some_content(const struct model *m, uint64_t *rng)
{
    int from = (int)draw(rng, CONTENTS);
    for (int i = 0; i < CONTENTS; i++)
        if (m->content[(from + i) % CONTENTS + 1])
            return (from + i) % CONTENTS + 1;
    return 0;
}

static struct registry_module module_struct(const struct model *m, int i)
{
    return (struct registry_module){.name = name_of("m", i),
                                    .tenant = i % 2 ? "anna" : NULL,
                                    .hash = content_hash(m->module[i]),
                                    .kind = "lora",
                                    .bytes = (uint64_t)m->module[i],
                                    .created = m->module_created[i]};
}

static struct registry_task task_struct(const struct model_task *t, int i, int v, struct registry_ref ref[REFS])
{
    for (int k = 0; k < t->v[v].n; k++)
        ref[k] = (struct registry_ref){name_of("r", k), content_hash(t->v[v].content[k]), (float)(k + 1)};
    return (struct registry_task){.id = name_of("t", i),
                                  .version = version_hash(t->v[v].id),
                                  .ref = ref,
                                  .n_refs = (uint32_t)t->v[v].n,
                                  .defaults = "{}",
                                  .created = t->created,
                                  .updated = t->updated};
}

/* ---- the writes: each on the model and, where r is given, on the registry ---- */

static void check(const char *what, int rc, int want, const struct err *e)
{
    if (rc != want)
        die(what, e);
}

static void put_module(struct model *m, uint64_t *rng, int64_t now, struct registry *r, bool fresh)
{
    int i = (int)draw(rng, MODULES), c = fresh ? (int)draw(rng, CONTENTS) + 1 : some_content(m, rng);
    struct err e = {0};
    char *staged = NULL;
    if (!c)
        return;
    m->module[i] = c;
    m->module_created[i] = now;
    m->content[c] = true;
    if (!r)
        return;
    struct registry_module row = module_struct(m, i);
    if (fresh) {
        struct buf b = content_bytes(c);
        check("stage", registry_stage(r, b.data, b.len, &staged, &e), 0, &e);
        buf_free(&b);
    }
    check("put_module", registry_put_module(r, &row, staged, NULL, &e), 0, &e);
    free(staged);
}

static void delete_module(struct model *m, uint64_t *rng, struct registry *r)
{
    int i = (int)draw(rng, MODULES), want = m->module[i] ? 0 : -ENOENT;
    struct err e = {0};
    m->module[i] = 0;
    if (r)
        check("delete_module", registry_delete_module(r, name_of("m", i), &e), want, &e);
}

/* v becomes the newest version of task i; an equal one before goes. */
static void put_version(struct model *m, int i, struct version v, int64_t now, struct registry *r)
{
    struct model_task *t = &m->task[i];
    struct err e = {0};
    int at = 0;
    while (at < t->n && t->v[at].id != v.id)
        at++;
    if (at == REGISTRY_VERSIONS)
        at--;
    memmove(&t->v[1], &t->v[0], (size_t)at * sizeof v);
    t->v[0] = v;
    t->n = at < t->n ? t->n : t->n + 1;
    t->created = t->created ? t->created : now;
    t->updated = now;
    if (r) {
        struct registry_ref ref[REFS];
        struct registry_task row = task_struct(t, i, 0, ref);
        check("put_task", registry_put_task(r, &row, NULL, &e), 0, &e);
    }
}

static void put_task(struct model *m, uint64_t *rng, int64_t now, struct registry *r)
{
    struct version v = {.id = (uint64_t)now};
    int i = (int)draw(rng, TASKS), n = (int)draw(rng, REFS + 1);
    for (int k = 0; k < n; k++)
        if ((v.content[v.n] = some_content(m, rng)))
            v.n++;
    put_version(m, i, v, now, r);
}

static void roll_back(struct model *m, uint64_t *rng, int64_t now, struct registry *r)
{
    int i = (int)draw(rng, TASKS);
    if (m->task[i].n)
        put_version(m, i, m->task[i].v[draw(rng, (uint32_t)m->task[i].n)], now, r);
}

static void delete_task(struct model *m, uint64_t *rng, struct registry *r)
{
    int i = (int)draw(rng, TASKS), want = m->task[i].n ? 0 : -ENOENT;
    struct err e = {0};
    m->task[i] = (struct model_task){0};
    if (r)
        check("delete_task", registry_delete_task(r, name_of("t", i), &e), want, &e);
}

static void collect_one(struct model *m, uint64_t *rng, struct registry *r)
{
    int c = (int)draw(rng, CONTENTS) + 1;
    bool keep = named(m, c);
    struct hash h = content_hash(c);
    struct err e = {0};
    m->content[c] = m->content[c] && keep;
    if (r)
        check("collect_one", registry_collect_one(r, &h, &e), keep ? -EEXIST : 0, &e);
}

static void write_once(struct model *m, int64_t now, struct registry *r)
{
    uint64_t rng = mix(seed) ^ (uint64_t)now;
    struct err e = {0};
    uint32_t what = draw(&rng, 16);
    if (what < 4)
        put_module(m, &rng, now, r, true);
    else if (what < 5)
        put_module(m, &rng, now, r, false);
    else if (what < 8)
        delete_module(m, &rng, r);
    else if (what < 11)
        put_task(m, &rng, now, r);
    else if (what < 12)
        roll_back(m, &rng, now, r);
    else if (what < 13)
        delete_task(m, &rng, r);
    else if (what < 15)
        collect_one(m, &rng, r);
    else {
        collect_model(m);
        if (r)
            check("collect", registry_collect(r, &e), 0, &e);
    }
}

/* ---- a round ---- */

static void dump_model(const struct model *m, struct buf *b)
{
    struct registry_ref ref[REFS];
    char files[CONTENTS][HASH_HEX], hex[HASH_HEX];
    int n = 0;
    buf_free(b);
    for (int i = 0; i < MODULES; i++)
        if (m->module[i]) {
            struct registry_module row = module_struct(m, i);
            dump_module(b, &row);
        }
    for (int i = 0; i < TASKS; i++)
        for (int v = 0; v < m->task[i].n; v++) {
            struct registry_task row = task_struct(&m->task[i], i, v, ref);
            if (!v)
                dump_task(b, &row);
            dump_version(b, &row);
        }
    for (int c = 1; c <= CONTENTS; c++)
        if (m->content[c]) {
            struct hash h = content_hash(c);
            hash_hex(&h, hex);
            memcpy(files[n++], hex, HASH_HEX);
        }
    qsort(files, (size_t)n, HASH_HEX, (int (*)(const void *, const void *))strcmp);
    for (int i = 0; i < n; i++)
        buf_printf(b, "file %s.pet\n", files[i]);
    buf_append(b, "", 0);
}

static void check_files(const struct model *m, struct registry *r)
{
    struct err e = {0};
    for (int c = 1; c <= CONTENTS; c++) {
        struct hash h = content_hash(c), got;
        char *text, *path = registry_module_path(r, &h);
        size_t n;
        if (m->content[c]) {
            if (file_read(path, 1 << 24, &text, &n, &e))
                die("a content is gone", &e);
            hash_of(text, n, &got);
            if (!hash_equal(&h, &got))
                die("a content is not whole", NULL);
            free(text);
        }
        free(path);
    }
}

/* The child: writes until it is killed. */
static _Noreturn void work(struct model m, int64_t now, int out)
{
    struct registry *r;
    struct err e = {0};
    if (registry_open(dir, &r, &e))
        die("the child cannot open", &e);
    for (;; now++) {
        write_once(&m, now, r);
        if (write(out, "+", 1) != 1)
            exit(0);
    }
}

/* Lets a child write for some time and kills it; how many writes it acknowledged. */
static int64_t let_work(const struct model *m, int64_t now, uint64_t *rng)
{
    int p[2], status;
    char bytes[4096];
    int64_t n = 0;
    ssize_t k;
    if (pipe2(p, O_CLOEXEC))
        die("pipe", NULL);
    pid_t pid = fork();
    if (!pid) {
        close(p[0]);
        work(*m, now, p[1]);
    }
    close(p[1]);
    struct timespec t = {.tv_nsec = (long)draw(rng, draw(rng, 4) ? 30000 : 3000) * 1000};
    nanosleep(&t, NULL);
    kill(pid, SIGKILL);
    while ((k = read(p[0], bytes, sizeof bytes)) > 0)
        n += k;
    close(p[0]);
    if (waitpid(pid, &status, 0) != pid || !WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
        die("the child ended by itself", NULL);
    return n;
}

/* Opens the registry: it is m, or m after one more write (then 1 is answered and m is that). */
static int compare(struct model *m, int64_t now)
{
    struct registry *r;
    struct err e = {0};
    struct buf got = {0}, want = {0}, next = {0};
    struct model after = *m;
    if (registry_open(dir, &r, &e))
        die("cannot open", &e);
    registry_dump(r, dir, &got);
    buf_append(&got, "", 0);
    write_once(&after, now, NULL);
    collect_model(m); /* opening does */
    collect_model(&after);
    dump_model(m, &want);
    dump_model(&after, &next);
    bool one_more = strcmp(got.data, want.data) != 0;
    if (one_more && strcmp(got.data, next.data)) {
        fprintf(stderr, "got\n%s\nwant\n%s\nor\n%s\n", got.data, want.data, next.data);
        die("the registry is not what was acknowledged", NULL);
    }
    if (one_more)
        *m = after;
    check_files(m, r);
    registry_close(r);
    buf_free(&got);
    buf_free(&want);
    buf_free(&next);
    return one_more;
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 50, done_unsaid = 0;
    static struct model m;
    int64_t now = 1, writes = 0;
    seed = argc > 2 ? strtoull(argv[2], NULL, 10) : (uint64_t)time(NULL);
    uint64_t rng = mix(seed ^ 0x5EED);
    strcpy(dir, access("/dev/shm", W_OK) ? "/tmp/cpetd-kill-XXXXXX" : "/dev/shm/cpetd-kill-XXXXXX");
    if (!mkdtemp(dir))
        die("cannot make a directory", NULL);
    printf("seed %llu\n", (unsigned long long)seed);
    fflush(stdout);
    for (int i = 0; i < rounds; i++) {
        int64_t n = let_work(&m, now, &rng);
        for (int64_t k = 0; k < n; k++)
            write_once(&m, now++, NULL);
        int more = compare(&m, now);
        now++; /* the write that was under way is not drawn again */
        done_unsaid += more;
        writes += n;
    }
    printf("%d kills, %lld writes acknowledged, %d more found done\n", rounds, (long long)writes, done_unsaid);
    remove_tree(dir);
    return 0;
}
