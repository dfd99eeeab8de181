/* int8.c - writes an INT8 backbone in compressed-tensors naming.
 *
 * One thread. Tensors stream from the mapped source to the output a few rows at a time, so that memory stays small.
 * model.safetensors is written last and renamed into place: a directory without it is no result. A row of weights is
 * rescaled by the smoothing of its site, in float32, before its scale is taken.
 */
#include "compress/compress.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <float.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/file.h"
#include "common/hash.h"
#include "common/num.h"
#include "compress/smooth.h"
#include "formats/json.h"
#include "model/sites.h"

/* How one output tensor comes from its source. */
struct item {
    const struct st_tensor *src;
    char name[160];
    enum { AS_IS, TO_INT8, SCALES, FLOAT } how;
    const float *in, *out; /* columns times in, rows times out (rows only for a vector); NULL: ones */
    bool divide;           /* a gain: elements divided by in */
    struct job *job;
};

struct job {
    const struct compress_opts *o;
    struct st_file *f;
    struct smooth sm;
    struct item *items;
    size_t n_items, bytes_done, bytes_all;
    struct st_out *outs;
    float *row;
    char bad[200]; /* where a weight is not a finite number */
};

/* Row r of the item's source as float32, rescaled. */
static void load_row(const struct item *it, size_t r, size_t k, float *row)
{
    const struct st_tensor *t = it->src;
    dtype_to_f32(t->type, t->data + r * k * dtype_size(t->type), k, row);
    for (size_t j = 0; it->in && j < k; j++)
        row[j] = it->divide ? row[j] / it->in[j] : row[j] * it->in[j];
    if (it->out && t->ndim == 2)
        for (size_t j = 0; j < k; j++)
            row[j] *= it->out[r];
    if (it->out && t->ndim == 1)
        for (size_t j = 0; j < k; j++)
            row[j] *= it->out[j];
}

static float row_scale(const float *row, size_t k)
{
    float m = 0;
    for (size_t j = 0; j < k; j++) {
        if (!isfinite(row[j]))
            return NAN;
        m = fabsf(row[j]) > m ? fabsf(row[j]) : m;
    }
    float s = m / 127.0f;
    return s >= FLT_MIN ? s : 1.0f; /* a row of zeros, or of numbers too small: a denormal scale is too coarse */
}

static int fill(void *ctx, size_t off, size_t n, void *dst)
{
    const struct item *it = ctx;
    struct job *j = it->job;
    const struct st_tensor *t = it->src;
    size_t k = t->ndim == 2 ? t->shape[1] : t->shape[0];
    size_t word = it->how == TO_INT8 ? 1 : it->how == SCALES ? 4 : dtype_size(t->type);
    size_t row_bytes = it->how == SCALES ? word : k * word;
    assert(off % row_bytes == 0 && n % row_bytes == 0);
    for (size_t r = off / row_bytes, i = 0; i < n / row_bytes; i++, r++) {
        load_row(it, r, k, j->row);
        float s = row_scale(j->row, k);
        if (!isfinite(s)) {
            snprintf(j->bad, sizeof j->bad, "tensor %s, row %zu", t->name, r);
            return -EDOM;
        }
        if (it->how == SCALES)
            ((float *)dst)[i] = s;
        else if (it->how == TO_INT8)
            for (size_t c = 0; c < k; c++)
                ((int8_t *)dst)[i * k + c] = (int8_t)lrintf(j->row[c] / s);
        else
            dtype_of_f32(t->type, j->row, k, (char *)dst + i * row_bytes);
    }
    j->bytes_done += n;
    if (j->o->progress)
        j->o->progress(j->o->ctx, "writing", (double)j->bytes_done / (double)j->bytes_all);
    return 0;
}

/* The site of "model.layers.N.self_attn.q_proj", or UINT32_MAX. */
static uint32_t site_of(const char *module)
{
    unsigned layer;
    int used = 0;
    if (sscanf(module, "model.layers.%u.%n", &layer, &used) != 1 || !used)
        return UINT32_MAX;
    for (uint32_t k = 0; k < SITE_KINDS; k++)
        if (!strcmp(module + used, site_modules[k]))
            return layer * SITE_KINDS + k;
    return UINT32_MAX;
}

/* The site whose input a norm feeds, or UINT32_MAX. */
static uint32_t norm_of(const char *name)
{
    unsigned layer;
    int used = 0;
    if (sscanf(name, "model.layers.%u.%n", &layer, &used) != 1 || !used)
        return UINT32_MAX;
    if (!strcmp(name + used, "input_layernorm.weight"))
        return layer * SITE_KINDS + SITE_Q;
    return strcmp(name + used, "post_attention_layernorm.weight") ? UINT32_MAX : layer * SITE_KINDS + SITE_GATE;
}

static struct item *item_add(struct job *j, const struct st_tensor *t, const char *name)
{
    struct item *it = &j->items[j->n_items++];
    *it = (struct item){.src = t, .job = j};
    snprintf(it->name, sizeof it->name, "%s", name);
    return it;
}

static void plan_weight(struct job *j, const struct st_tensor *t, const char *module, uint32_t site)
{
    char name[160];
    struct item *w = item_add(j, t, t->name);
    w->how = TO_INT8;
    if (site < j->sm.n_sites) {
        w->in = j->sm.site[site].in;
        w->out = j->sm.site[site].out;
    }
    snprintf(name, sizeof name, "%s.weight_scale", module);
    struct item *s = item_add(j, t, name);
    s->how = SCALES;
    s->in = w->in;
    s->out = w->out;
}

static int plan_tensor(struct job *j, const struct st_tensor *t, struct err *e)
{
    char module[128];
    size_t n = strlen(t->name);
    bool weight = n > 7 && n < sizeof module && !strcmp(t->name + n - 7, ".weight");
    if (!dtype_is_float(t->type))
        return err_set(e, -EINVAL, "tensor %s: type %s; only an uncompressed backbone can be compressed", t->name,
                       dtype_name(t->type));
    if (n >= sizeof module)
        return err_set(e, -EINVAL, "tensor %.64s...: the name is too long", t->name);
    snprintf(module, sizeof module, "%.*s", (int)(weight ? n - 7 : n), t->name);
    uint32_t site = site_of(module), norm = norm_of(t->name);
    bool head = !strcmp(module, "lm_head") || !strcmp(module, "model.embed_tokens");
    if (weight && t->ndim == 2 && (site != UINT32_MAX || (head && !j->o->head_float))) {
        plan_weight(j, t, module, site);
        return 0;
    }
    struct item *it = item_add(j, t, t->name);
    if (norm < j->sm.n_sites && j->sm.site[norm].in) {
        it->how = FLOAT;
        it->in = j->sm.site[norm].in;
        it->divide = true;
        return 0;
    }
    char *dot = strrchr(module, '.');
    if (dot && !strcmp(dot, ".bias")) {
        *dot = 0;
        site = site_of(module);
        if (site < j->sm.n_sites && j->sm.site[site].out) {
            it->how = FLOAT;
            it->out = j->sm.site[site].out;
        }
    }
    return 0;
}

static int plan_items(struct job *j, struct err *e)
{
    size_t n = st_count(j->f), k = 0;
    j->items = calloc(2 * n + 1, sizeof *j->items);
    j->outs = calloc(2 * n + 1, sizeof *j->outs);
    if (!j->items || !j->outs)
        return err_set(e, -ENOMEM, "out of memory");
    for (size_t i = 0; i < n; i++) {
        const struct st_tensor *t = st_at(j->f, i);
        int r = plan_tensor(j, t, e);
        if (r)
            return r;
        size_t row = t->ndim == 2 ? t->shape[1] : t->ndim == 1 ? t->shape[0] : 1;
        k = row > k ? row : k;
    }
    j->row = malloc((k ? k : 1) * sizeof *j->row);
    if (!j->row)
        return err_set(e, -ENOMEM, "out of memory");
    for (size_t i = 0; i < j->n_items; i++) {
        struct item *it = &j->items[i];
        const struct st_tensor *t = it->src;
        struct st_out *o = &j->outs[i];
        *o = (struct st_out){.name = it->name, .type = t->type, .ndim = t->ndim, .data = t->data};
        memcpy(o->shape, t->shape, sizeof o->shape);
        if (it->how != AS_IS) {
            o->data = NULL;
            o->fill = fill;
            o->ctx = it;
            o->type = it->how == TO_INT8 ? DT_I8 : it->how == SCALES ? DT_F32 : t->type;
            if (it->how == SCALES)
                o->shape[1] = 1;
        }
        j->bytes_all += o->data              ? 0
                        : it->how == TO_INT8 ? t->bytes / dtype_size(t->type)
                        : it->how == SCALES  ? 4 * t->shape[0]
                                             : t->bytes;
    }
    return 0;
}

static json_t *quantization_config(bool head_float)
{
    json_t *targets = head_float ? json_pack("[s]", "Linear") : json_pack("[s, s]", "Linear", "Embedding");
    json_t *ignore = head_float ? json_pack("[s]", "lm_head") : json_array();
    return json_pack("{s:s, s:s, s:s, s:o, s:{s:{s:o, s:{s:i, s:s, s:b, s:s, s:b}, s:{s:i, s:s, s:b, s:s, s:b}}}}",
                     "quant_method", "compressed-tensors", "format", "int-quantized", "quantization_status",
                     "compressed", "ignore", ignore, "config_groups", "group_0", "targets", targets, "weights",
                     "num_bits", 8, "type", "int", "symmetric", 1, "strategy", "channel", "dynamic", 0,
                     "input_activations", "num_bits", 8, "type", "int", "symmetric", 1, "strategy", "token", "dynamic",
                     1);
}

/* config.json: sites_hash NULL where there is no site map, so that a lost or exchanged one is noticed at load. */
static int write_config(const struct compress_opts *o, const char *sites_hash, struct err *e)
{
    char *from = path_join(o->dir, "config.json"), *to = path_join(o->out, "config.json");
    json_t *c = NULL;
    int r = from && to ? json_read_file(from, 4u << 20, &c, e) : err_set(e, -ENOMEM, "out of memory");
    if (!r && json_object_get(c, "quantization_config"))
        r = err_set(e, -EINVAL, "%s: the backbone is quantized already (\"quantization_config\")", from);
    if (!r && json_object_set_new(c, "quantization_config", quantization_config(o->head_float)))
        r = err_set(e, -ENOMEM, "out of memory");
    if (!r && sites_hash && json_object_set_new(c, "cpet_sites_hash", json_string(sites_hash)))
        r = err_set(e, -ENOMEM, "out of memory");
    if (!r)
        r = json_write_file(to, c, e);
    json_decref(c);
    free(from);
    free(to);
    return r;
}

/* Removes what an earlier result left: it would be read beside weights that it was not made for. */
static int drop(const char *dir, const char *name, struct err *e)
{
    char *path = path_join(dir, name);
    int r = path ? 0 : err_set(e, -ENOMEM, "out of memory");
    if (path && unlink(path) && errno != ENOENT)
        r = err_set(e, -errno, "%s: %s", path, strerror(errno));
    free(path);
    return r;
}

/* Everything else that belongs to a model directory goes along: tokenizer, templates, generation settings, lineage.
 * What DIR does not have, OUT does not keep. */
static int copy_beside(const struct compress_opts *o, struct err *e)
{
    static const char *const names[] = {"tokenizer.json",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "generation_config.json",
                                        "chat_template.jinja",
                                        "cpet.json",
                                        "LICENSE",
                                        "recovery.safetensors"};
    int r = 0;
    for (size_t i = 0; !r && i < sizeof names / sizeof *names; i++) {
        char *from = path_join(o->dir, names[i]), *to = path_join(o->out, names[i]), *text = NULL;
        size_t n = 0;
        r = from && to ? 0 : err_set(e, -ENOMEM, "out of memory");
        bool there = !r && !access(from, F_OK);
        if (there)
            r = file_read(from, (size_t)1 << 30, &text, &n, e);
        if (there && !r)
            r = file_write_atomic(to, text, n, 0644, e);
        if (!there && !r)
            r = drop(o->out, names[i], e);
        free(text);
        free(from);
        free(to);
    }
    return r;
}

static int hash_file(const char *path, char hex[HASH_HEX], struct err *e)
{
    struct map m;
    struct hash h;
    int r = map_open(path, &m, e);
    if (r)
        return r;
    hash_of(m.data, m.len, &h);
    hash_hex(&h, hex);
    map_close(&m);
    return 0;
}

/* The scales as "layers.N.q.in_scale": the names of the site map. hash: of the file, "" where nothing was scaled. */
static int write_sites(const struct job *j, char hash[HASH_HEX], struct err *e)
{
    struct st_out *t = calloc(2 * (size_t)j->sm.n_sites + 1, sizeof *t);
    char(*names)[48] = calloc(2 * (size_t)j->sm.n_sites + 1, sizeof *names);
    char *dir = path_join(j->o->out, "cpet"), *path = path_join(j->o->out, "cpet/sites.safetensors");
    int r = t && names && dir && path ? dir_make(dir, e) : err_set(e, -ENOMEM, "out of memory");
    size_t n = 0;
    for (size_t i = 0; !r && i < j->n_items; i++) {
        const struct item *it = &j->items[i];
        char module[128];
        snprintf(module, sizeof module, "%.*s", (int)(strlen(it->src->name) - 7), it->src->name);
        uint32_t site = it->how == TO_INT8 ? site_of(module) : UINT32_MAX;
        for (int out = 0; site != UINT32_MAX && out < 2; out++) {
            const float *v = out ? it->out : it->in;
            if (!v)
                continue;
            snprintf(names[n], sizeof names[n], "layers.%u.%s.%s", site / SITE_KINDS, site_names[site % SITE_KINDS],
                     out ? "out_scale" : "in_scale");
            t[n] = (struct st_out){
                .name = names[n], .type = DT_F32, .ndim = 1, .shape = {it->src->shape[!out]}, .data = v};
            n++;
        }
    }
    if (!r && n)
        r = st_write(path, t, n, NULL, e);
    if (!r && n)
        r = hash_file(path, hash, e);
    free(t);
    free(names);
    free(dir);
    free(path);
    return r;
}

static int read_calib(const struct compress_opts *o, char **text, size_t *n, struct err *e)
{
    if (o->calib)
        return file_read(o->calib, (size_t)256 << 20, text, n, e);
    *text = strdup(compress_calib_text);
    *n = strlen(compress_calib_text);
    return *text ? 0 : err_set(e, -ENOMEM, "out of memory");
}

static int check_out(const struct compress_opts *o, struct err *e)
{
    int r = dir_make(o->out, e);
    if (r)
        return r;
    char *model = path_join(o->out, "model.safetensors");
    if (!model)
        return err_set(e, -ENOMEM, "out of memory");
    char *a = realpath(o->dir, NULL), *b = realpath(o->out, NULL);
    if (a && b && !strcmp(a, b))
        r = err_set(e, -EINVAL, "%s: OUT must be another directory than DIR", o->out);
    else if (!access(model, F_OK) && !o->force)
        r = err_set(e, -EEXIST, "%s: holds a model already (--force replaces it)", o->out);
    else if (unlink(model) && errno != ENOENT)
        r = err_set(e, -errno, "%s: %s", model, strerror(errno));
    if (!r)
        r = drop(o->out, "cpet/sites.safetensors", e);
    if (!r)
        r = drop(o->out, "recovery.safetensors", e);
    free(a);
    free(b);
    free(model);
    return r;
}

static int make_smooth(struct job *j, struct compress_report *rep, struct err *e)
{
    char *text = NULL;
    size_t n = 0;
    int r = read_calib(j->o, &text, &n, e);
    if (!r) {
        struct hash h;
        hash_of(text, n, &h);
        hash_hex(&h, rep->calib_hash);
        r = smooth_make(j->o, text, n, j->f, &j->sm, &rep->calib_tokens, e);
    }
    free(text);
    return r;
}

static int write_weights(struct job *j, struct compress_report *rep, struct err *e)
{
    const char *meta[] = {"format", "pt", NULL};
    char *path = path_join(j->o->out, "model.safetensors");
    int r = path ? st_write(path, j->outs, j->n_items, meta, e) : err_set(e, -ENOMEM, "out of memory");
    if (r == -EDOM)
        err_set(e, r, "%s: %s: a weight is not a finite number", j->o->dir, j->bad);
    struct map m = {0};
    if (!r && !map_open(path, &m, NULL)) {
        rep->bytes_after = m.len;
        map_close(&m);
    }
    for (size_t i = 0; i < st_count(j->f); i++)
        rep->bytes_before += st_at(j->f, i)->bytes;
    free(path);
    return r;
}

int compress_int8(const struct compress_opts *o, struct compress_report *report, struct err *e)
{
    struct job j = {.o = o};
    struct compress_report rep = {0};
    int r = check_out(o, e);
    if (!r)
        r = st_open_dir(o->dir, &j.f, e);
    if (!r && o->smooth)
        r = make_smooth(&j, &rep, e);
    if (!r)
        r = plan_items(&j, e);
    char sites[HASH_HEX] = "";
    if (!r && o->smooth)
        r = write_sites(&j, sites, e);
    if (!r)
        r = write_config(o, sites[0] ? sites : NULL, e);
    if (!r)
        r = copy_beside(o, e);
    if (!r)
        r = write_weights(&j, &rep, e);
    smooth_free(&j.sm);
    free(j.items);
    free(j.outs);
    free(j.row);
    st_close(j.f);
    if (!r && report)
        *report = rep;
    return r;
}
