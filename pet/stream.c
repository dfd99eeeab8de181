/* stream.c - a .pet file into a slot, a layer at a time.
 *
 * One thread at a time for a stream; loads of different streams do not know each other. A stream owns the open file,
 * its manifest and the parts that the manifest lists. A load owns two buffers, which hold one layer's frame and its
 * tensors, and the slot until it is handed out; so memory is one layer and the slot, whatever the module's size.
 *
 * The manifest is read once, against its hash, and states the hash of every tensor; so the content hash is known before
 * any tensor is. Every frame is then held against its own hash, every tensor against its, as in container.c, before the
 * slot leaves this file: the slot's content is that of the hash, even when the file is changed meanwhile.
 *
 * container.c sees all frames before it decodes one, and load.c sees all values before it packs one. Here they come
 * layer by layer. For a file with several faults to be told the same one, a load that has met a fault goes on with what
 * would have been told before it, without packing, and gives the fault of the earliest stage.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file.h"
#include "pet/container.h"

struct pet_stream {
    int fd;
    char *path;
    struct pet_limits lim;
    struct pet_manifest m;
    struct err why;    /* what is wrong with the contents as the manifest lists them; code 0: nothing */
    struct pet *whole; /* not a .pet: all of it; then there is no fd and no manifest */
};

/* ---- opening ---- */

/* Where each part has gone by sorting. */
static int make_order(struct pet_manifest *m, struct err *e)
{
    const struct pet *p = m->p;
    m->order = malloc((p->n_parts + 1) * sizeof *m->order);
    if (!m->order)
        return err_set(e, -ENOMEM, "out of memory for %zu linears", p->n_parts);
    for (size_t i = 0; i < p->n_parts; i++)
        m->order[p->parts[i].seq] = (uint32_t)i;
    return 0;
}

static int read_text(struct pet_stream *s, const uint8_t *head, size_t n, struct err *e)
{
    char *text = malloc(n + 1);
    int r = text ? file_read_at(s->fd, s->path, sizeof(struct pet_head), text, n, e)
                 : err_set(e, -ENOMEM, "%s: out of memory for a manifest of %zu bytes", s->path, n);
    if (!r) {
        text[n] = 0;
        r = pet_manifest_read(&s->m, head, text, n, e);
        if (r)
            err_prefix(e, r, "%s", s->path);
    }
    free(text);
    return r;
}

static int read_manifest(struct pet_stream *s, const uint8_t *head, struct err *e)
{
    size_t n = 0;
    s->m.lim = &s->lim;
    s->m.p = pet_new(PET_LORA);
    if (!s->m.p)
        return err_set(e, -ENOMEM, "%s: out of memory", s->path);
    int r = pet_head_read(head, s->m.file_bytes, &n, e);
    if (r)
        return err_prefix(e, r, "%s", s->path);
    r = read_text(s, head, n, e);
    if (r)
        return r;
    r = pet_finish(s->m.p, true, &s->why);
    if (!r)
        r = pet_manifest_content(&s->m, &s->why);
    if (r)
        err_prefix(&s->why, r, "%s", s->path);
    return make_order(&s->m, e);
}

static int open_file(struct pet_stream *s, struct err *e)
{
    uint8_t head[sizeof(struct pet_head)] = {0};
    size_t n = 0;
    s->fd = file_open(s->path, &n, e);
    if (s->fd < 0)
        return s->fd;
    if (n > pet_file_cap(&s->lim))
        return err_set(e, -EFBIG, "%s: %zu bytes, more than the limit of %zu", s->path, n, pet_file_cap(&s->lim));
    s->m.file_bytes = n;
    size_t k = n < sizeof head ? n : sizeof head;
    int r = file_read_at(s->fd, s->path, 0, head, k, e);
    if (r)
        return r;
    if (pet_is_container(head, k))
        return read_manifest(s, head, e);
    return pet_open(s->path, &s->lim, &s->whole, e);
}

int pet_stream_open(const char *path, const struct pet_limits *lim, struct pet_stream **out, struct err *e)
{
    struct stat st;
    if (stat(path, &st))
        return err_set(e, -errno, "%s: %s", path, strerror(errno));
    struct pet_stream *s = calloc(1, sizeof *s);
    if (!s || !(s->path = strdup(path))) {
        free(s);
        return err_set(e, -ENOMEM, "%s: out of memory", path);
    }
    s->fd = -1;
    s->lim = pet_limits_of(lim);
    int r = S_ISDIR(st.st_mode) ? pet_open(path, lim, &s->whole, e) : open_file(s, e);
    if (r)
        pet_stream_close(s);
    else
        *out = s;
    return r;
}

void pet_stream_close(struct pet_stream *s)
{
    if (!s)
        return;
    if (s->fd >= 0)
        close(s->fd);
    pet_manifest_free(&s->m);
    pet_close(s->whole);
    free(s->path);
    free(s);
}

static const struct pet *pet_of(const struct pet_stream *s)
{
    return s->whole ? s->whole : s->m.p;
}

const struct pet_info *pet_stream_info(const struct pet_stream *s)
{
    return &pet_of(s)->info;
}

int pet_stream_size(const struct pet_stream *s, const struct pet_target *t, size_t *bytes, struct err *e)
{
    struct pet_plan plan;
    if (s->why.code)
        return err_set(e, s->why.code, "%s", s->why.msg);
    int r = s->whole ? pet_finite(s->whole, e) : 0;
    if (r)
        return r;
    r = pet_plan_make(pet_of(s), t, &plan, e);
    if (!r)
        *bytes = plan.bytes;
    pet_plan_free(&plan);
    return r;
}

/* ---- loading ---- */

/* The stages of pet_open and pet_load after the frames' own checks, in their order; PACK + i is for part i. */
enum { DECODE, CONTENT, VALUES, TARGET, PACK };
#define NO_FAULT UINT64_MAX

struct load {
    struct kern_dev *dev;
    struct pet_stream *s;
    const struct pet_target *target;
    struct pet_plan plan;
    struct pet_slot *slot; /* NULL: nothing is packed, a fault was there before the first frame */
    ZSTD_DCtx *zstd;
    uint8_t *frame, *raw; /* of the largest frame; of raw_cap bytes */
    size_t raw_cap;
    uint64_t stage; /* of `why`, the earliest fault met */
    struct err why;
};

static void note(struct load *l, uint64_t stage, const struct err *why)
{
    if (stage >= l->stage)
        return;
    l->stage = stage;
    l->why = *why;
}

static int read_frame(struct load *l, const struct pet_layer *y, struct err *e)
{
    const char *path = l->s->path;
    int r = file_read_at(l->s->fd, path, y->off, l->frame, y->size, e);
    if (r)
        return r;
    r = pet_frame_check(y, l->frame, e);
    if (r) {
        pet_layer_prefix(y, r, e);
        return err_prefix(e, r, "%s", path);
    }
    return 0;
}

/* Room for a layer's tensors. Only a frame that has been checked may ask for it. */
static int reserve(struct load *l, size_t n, struct err *e)
{
    if (l->raw && n <= l->raw_cap)
        return 0;
    free(l->raw);
    l->raw = malloc(n + 1);
    l->raw_cap = n;
    return l->raw ? 0 : err_set(e, -ENOMEM, "%s: out of memory for %zu bytes", l->s->path, n);
}

/* The frame's tensors, where l->stage says that anybody still wants to know. */
static int decode(struct load *l, const struct pet_layer *y, struct err *e)
{
    const struct pet_manifest *m = &l->s->m;
    struct err why = {0};
    if (l->stage == DECODE)
        return 0;
    int r = reserve(l, y->raw, e);
    if (r)
        return r;
    r = pet_frame_decode(m, y, l->zstd, l->frame, l->raw, &why);
    if (r) {
        pet_layer_prefix(y, r, &why);
        err_prefix(&why, r, "%s", l->s->path);
        note(l, DECODE, &why);
        return 0;
    }
    for (size_t i = y->part0; i < y->part0 + y->n_parts; i++) {
        struct part *q = pet_manifest_part(m, i);
        for (int j = 0; j < 2; j++) {
            q->t[j].bad = pet_first_bad(&q->t[j]);
            if (q->t[j].bad != PET_NO_BAD)
                note(l, VALUES, &why); /* pet_finite finds the words, when it has all parts */
        }
    }
    return 0;
}

static int pack(struct load *l, const struct pet_layer *y, struct err *e)
{
    const struct pet_manifest *m = &l->s->m;
    for (size_t k = y->part0; l->slot && k < y->part0 + y->n_parts; k++) {
        size_t i = m->order[k];
        struct err why = {0};
        if (l->stage <= PACK + i)
            continue;
        int r = pet_slot_fill(l->dev, m->p, i, &l->plan, l->target, l->slot, &why);
        if (r == -ENOMEM)
            return err_set(e, r, "%s", why.msg);
        if (r)
            note(l, PACK + i, &why);
    }
    return 0;
}

static int load_layers(struct load *l, struct err *e)
{
    const struct pet_manifest *m = &l->s->m;
    for (size_t i = 0; i < m->n_layers; i++) {
        const struct pet_layer *y = &m->layers[i];
        int r = read_frame(l, y, e);
        if (!r)
            r = decode(l, y, e);
        if (!r)
            r = pack(l, y, e);
        for (size_t k = y->part0; k < y->part0 + y->n_parts; k++) {
            struct part *q = pet_manifest_part(m, k);
            q->t[0].data = q->t[1].data = NULL; /* the buffer is the next layer's */
        }
        if (r)
            return r;
    }
    return 0;
}

/* What is known before the first frame. */
static int prepare(struct load *l, struct err *e)
{
    const struct pet *p = l->s->m.p;
    size_t largest = 0;
    struct err why = {0};
    for (size_t i = 0; i < l->s->m.n_layers; i++)
        largest = l->s->m.layers[i].size > largest ? l->s->m.layers[i].size : largest;
    l->stage = NO_FAULT;
    l->zstd = ZSTD_createDCtx();
    l->frame = malloc(largest + 1);
    if (!l->zstd || !l->frame)
        return err_set(e, -ENOMEM, "%s: out of memory", l->s->path);
    if (l->s->why.code)
        note(l, CONTENT, &l->s->why);
    else if (pet_plan_make(p, l->target, &l->plan, &why))
        note(l, TARGET, &why);
    return l->stage == NO_FAULT ? pet_slot_create(l->dev, l->target, l->plan.bytes, &l->slot, e) : 0;
}

static int verdict(struct load *l, struct err *e)
{
    struct err why = {0};
    if (l->stage >= VALUES && pet_finite(l->s->m.p, &why)) {
        l->stage = VALUES;
        l->why = why;
    }
    return l->stage == NO_FAULT ? 0 : err_set(e, l->why.code, "%s", l->why.msg);
}

int pet_stream_load(struct kern_dev *d, struct pet_stream *s, const struct pet_target *t, struct pet_slot **out,
                    struct err *e)
{
    if (s->whole)
        return pet_load(d, s->whole, t, out, e);
    struct load l = {.dev = d, .s = s, .target = t};
    int r = prepare(&l, e);
    if (!r)
        r = load_layers(&l, e);
    if (!r)
        r = verdict(&l, e);
    if (r)
        pet_unload(d, l.slot);
    else
        *out = l.slot;
    pet_plan_free(&l.plan);
    ZSTD_freeDCtx(l.zstd);
    free(l.frame);
    free(l.raw);
    return r;
}
