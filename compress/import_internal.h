/* import_internal.h - what the import*.c files share; nobody else includes it. */
#ifndef CPET_COMPRESS_IMPORT_INTERNAL_H
#define CPET_COMPRESS_IMPORT_INTERNAL_H

#include <jansson.h>

#include "compress/import.h"
#include "formats/gguf.h"
#include "formats/safetensors.h"
#include "model/config.h"

struct import_job;

/* One tensor to write, and where its numbers come from: g or s. */
struct import_tensor {
    struct import_job *job;
    char name[96]; /* as transformers names it */
    char gguf[64]; /* as GGUF does */
    uint32_t ndim;
    uint64_t shape[2];
    uint32_t rope_heads; /* q and k: the heads among whose rows GGUF's llama permutation runs; else 0 */
    const struct gguf_tensor *g;
    const struct st_tensor *s;
};

struct import_job {
    const struct import_opts *o;
    char *src;              /* o->src without trailing slashes */
    char *dir;              /* o->dir likewise */
    char *tmp;              /* the temporary directory */
    bool tmp_there;         /* and it was made */
    struct gguf_file *gguf; /* one of these two */
    struct st_file *st;
    struct model_config cfg;
    json_t *bos, *eos, *eos_gen,
        *pad;                /* ids: integers, arrays of them (eos), or NULL. eos_gen: for generation_config.json */
    struct import_tensor *t; /* in strcmp order of names */
    size_t n_t;
    enum dtype dtype;
    float *rows, *gather; /* scratch of fill */
    struct hash_state hash;
    struct err fill_err;
    size_t done, total;
    struct import_result res;
};

/* import_plan.c: the tensors that a model of that configuration has, without sources, in strcmp order. */
int import_plan(struct import_job *j, struct err *e);
int import_by_name(const void *a, const void *b); /* the order, for bsearch */

/* import_gguf.c */
int import_gguf_open(struct import_job *j, struct err *e);      /* gguf, cfg, ids */
int import_gguf_bind(struct import_job *j, struct err *e);      /* each tensor's g, checked; none left over */
int import_gguf_tokenizer(struct import_job *j, struct err *e); /* writes the tokenizer's files into tmp */

/* import_rope.c: finds the llama3 scaling whose factors are exactly those of rope_freqs.weight ([head_dim / 2]) and
 * puts it into cfg (whose rope_theta and head_dim are set). -ENOTSUP when there is none. */
int import_rope_of_factors(struct model_config *cfg, const float *factor, uint32_t n, struct err *e);

/* import_hf.c */
int import_hf_open(struct import_job *j, struct err *e);
int import_hf_bind(struct import_job *j, struct err *e);
int import_hf_files(struct import_job *j, struct err *e); /* copies the tokenizer's files into tmp */

/* import_weights.c: writes tmp/model.safetensors and fills res.weights_hash. */
int import_weights(struct import_job *j, struct err *e);

/* import_config.c: config.json, generation_config.json (where it is not there yet) and cpet.json in tmp. */
int import_config_write(struct import_job *j, struct err *e);
int import_lineage_write(struct import_job *j, struct err *e);

#endif
