/* import_hf.c - a Hugging Face directory as a source: configuration, ids, tensors, and the files that are copied.
 *
 * Runs on import's thread; everything read belongs to the job. model/config.c judges config.json, so import accepts
 * what serving accepts. Weights that are quantized already, or pickled, are refused by name: nothing here executes or
 * unpacks a pickle.
 */
#include "compress/import_internal.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file.h"
#include "formats/json.h"

enum { CONFIG_CAP = 4 << 20, COPY_CAP = 256 << 20 };

/* The first pickle in the directory, for the message; malloc'ed, or NULL. */
static char *find_pickle(const char *dir)
{
    static const char *const tails[] = {".bin", ".pt", ".pth", ".ckpt", ".pkl"};
    DIR *d = opendir(dir);
    char *hit = NULL;
    for (struct dirent *f; d && !hit && (f = readdir(d));) {
        size_t n = strlen(f->d_name);
        for (size_t i = 0; !hit && i < sizeof tails / sizeof *tails; i++) {
            size_t k = strlen(tails[i]);
            if (n > k && !strcmp(f->d_name + n - k, tails[i]))
                hit = strdup(f->d_name);
        }
    }
    if (d)
        closedir(d);
    return hit;
}

static int open_weights(struct import_job *j, struct err *e)
{
    int r = st_open_dir(j->src, &j->st, e);
    char *pickle = r == -ENOENT ? find_pickle(j->src) : NULL;
    if (pickle)
        r = err_set(e, -ENOTSUP,
                    "%s/%s: pickle files are not read, as they can hold code; save the model as safetensors "
                    "(save_pretrained with safe_serialization)",
                    j->src, pickle);
    free(pickle);
    return r;
}

/* An id, or an array of ids where list is set, below the vocabulary; -1, null and absent are none. */
static int read_id(struct import_job *j, const json_t *config, const char *key, bool list, json_t **out, struct err *e)
{
    json_t *v = json_object_get(config, key);
    if (!v || json_is_null(v) || (json_is_integer(v) && json_integer_value(v) < 0))
        return 0;
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    for (size_t i = 0; i < n; i++) {
        const json_t *x = json_is_array(v) ? json_array_get(v, i) : v;
        if ((json_is_array(v) && !list) || !json_is_integer(x) || json_integer_value(x) < 0 ||
            json_integer_value(x) >= j->cfg.vocab)
            return err_param(e, -EINVAL, key, "%s/config.json: \"%s\" must be a token id below %u", j->src, key,
                             j->cfg.vocab);
    }
    *out = json_incref(v);
    return 0;
}

static int read_config(struct import_job *j, struct err *e)
{
    json_t *config = NULL;
    char *path = path_join(j->src, "config.json");
    int r = path ? json_read_file(path, CONFIG_CAP, &config, e) : err_set(e, -ENOMEM, "out of memory");
    if (!r && json_object_get(config, "quantization_config"))
        r = err_param(e, -ENOTSUP, "quantization_config",
                      "%s: \"quantization_config\": the weights are quantized already; import takes float ones", path);
    if (!r)
        r = model_config_read(j->src, &j->cfg, e);
    if (!r)
        r = read_id(j, config, "bos_token_id", false, &j->bos, e);
    if (!r)
        r = read_id(j, config, "eos_token_id", true, &j->eos, e);
    if (!r)
        r = read_id(j, config, "pad_token_id", false, &j->pad, e);
    json_decref(config);
    free(path);
    return r;
}

int import_hf_open(struct import_job *j, struct err *e)
{
    int r = open_weights(j, e);
    if (!r)
        r = read_config(j, e);
    if (r)
        return r;
    j->dtype = (enum dtype)j->o->dtype;
    if (j->o->dtype != IMPORT_DTYPE_AUTO)
        return 0;
    const struct st_tensor *first = st_at(j->st, 0);
    j->dtype = first && dtype_is_float(first->type) && first->type != DT_F64 ? first->type : DT_BF16;
    for (size_t i = 1; i < st_count(j->st); i++) {
        if (st_at(j->st, i)->type != j->dtype)
            j->dtype = DT_BF16;
    }
    return 0;
}

static bool ends(const char *s, const char *tail)
{
    size_t n = strlen(s), k = strlen(tail);
    return n >= k && !strcmp(s + n - k, tail);
}

static int find_tensor(struct import_job *j, struct import_tensor *t, struct err *e)
{
    t->s = st_find(j->st, t->name);
    if (!t->s)
        return err_set(e, -EINVAL, "%s: tensor \"%s\" is missing", j->src, t->name);
    if (!dtype_is_float(t->s->type))
        return err_set(e, -ENOTSUP, "%s: tensor \"%s\" is of type %s; F32, F16, BF16 and F64 are supported", j->src,
                       t->name, dtype_name(t->s->type));
    if (t->s->ndim == t->ndim && t->s->shape[0] == t->shape[0] && (t->ndim == 1 || t->s->shape[1] == t->shape[1]))
        return 0;
    return err_set(e, -EINVAL, "%s: tensor \"%s\" at byte %zu has another shape than [%llu%s%.0llu]", j->src, t->name,
                   t->s->off, (unsigned long long)t->shape[0], t->ndim == 2 ? ", " : "",
                   (unsigned long long)t->shape[1]);
}

int import_hf_bind(struct import_job *j, struct err *e)
{
    for (size_t i = 0; i < j->n_t; i++) {
        int r = find_tensor(j, &j->t[i], e);
        if (r)
            return r;
    }
    for (size_t i = 0; i < st_count(j->st); i++) {
        const char *name = st_at(j->st, i)->name;
        struct import_tensor want, *hit;
        if ((j->cfg.tied && !strcmp(name, "lm_head.weight")) || ends(name, ".rotary_emb.inv_freq"))
            continue; /* the embeddings again, and a table that follows from the configuration */
        if (strlen(name) < sizeof want.name) {
            strcpy(want.name, name);
            hit = bsearch(&want, j->t, j->n_t, sizeof want, import_by_name);
        } else {
            hit = NULL;
        }
        if (!hit)
            return err_set(e, -ENOTSUP, "%s: tensor \"%s\" is not part of a %s model of this configuration", j->src,
                           name, j->cfg.architecture);
    }
    return 0;
}

/* Copies one file where it is there; *found says so. */
static int copy(struct import_job *j, const char *name, bool *found, struct err *e)
{
    char *from = path_join(j->src, name), *to = path_join(j->tmp, name), *p = NULL;
    size_t n = 0;
    struct stat st;
    int r = from && to ? 0 : err_set(e, -ENOMEM, "out of memory");
    *found = !r && !stat(from, &st);
    if (*found) {
        r = file_read(from, COPY_CAP, &p, &n, e);
        if (!r)
            r = file_write_atomic(to, p, n, 0644, e);
        if (!r && !strcmp(name, "tokenizer.json"))
            hash_of(p, n, &j->res.tokenizer_hash);
    }
    free(p);
    free(from);
    free(to);
    return r;
}

int import_hf_files(struct import_job *j, struct err *e)
{
    static const char *const names[] = {"tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "chat_template.jinja",
                                        "chat_template.json",
                                        "generation_config.json",
                                        "LICENSE"};
    bool found = false;
    int r = copy(j, "tokenizer.json", &j->res.has_tokenizer, e);
    for (size_t i = 0; !r && i < sizeof names / sizeof *names; i++)
        r = copy(j, names[i], &found, e);
    if (r || j->res.has_tokenizer)
        return r;
    static const char *const others[] = {"tokenizer.model", "vocab.json", "spiece.model", "tokenizer_config.json"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        char *path = path_join(j->src, others[i]);
        struct stat st;
        bool there = path && !stat(path, &st);
        free(path);
        if (there)
            return err_set(e, -ENOTSUP,
                           "%s: there is %s but no tokenizer.json, the only form of a tokenizer that is read", j->src,
                           others[i]);
    }
    return 0; /* weights alone: such a directory serves token ids */
}
