/* pet.h - PET modules: read (PEFT directory, .pet file, recovery file), checked against a backbone, made resident.
 *
 * A struct pet is a parsed module on the host: immutable, shared by any number of threads. A struct pet_slot is that
 * module lowered to kern_slot in device memory for one backbone. Nothing from a file is ever executed.
 *
 * Every tensor in a module is in the coordinates of the original, uncompressed backbone; pet_load slices, permutes and
 * rescales it to each site by the site map that the backbone records (design decision 3).
 */
#ifndef CPET_PET_PET_H
#define CPET_PET_PET_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "common/hash.h"
#include "kernels/kernels.h"

/* ---- what a module is loaded onto ---- */

/* One linear layer of the backbone. y_stored = out_scale * y_original on the kept outputs, and the layer is fed
 * x_original / in_scale on the kept inputs. So A' = A[:, in_index] * in_scale and B' = out_scale * B[out_index, :]. */
struct pet_site {
    char name[40];   /* "layers.3.q"; q k v o gate up down; "head" */
    char module[96]; /* the original's module path, "model.layers.3.self_attn.q_proj"; "lm_head" */
    uint32_t k, n;   /* the stored layer's inputs and outputs */
    uint32_t k_orig, n_orig;
    const float *in_scale, *out_scale;    /* [k], [n]; NULL: ones */
    const uint32_t *in_index, *out_index; /* [k], [n] into the original's; NULL: identity */
};

struct pet_lineage {
    char architecture[32]; /* "llama", "qwen2" */
    struct hash tokenizer; /* of tokenizer.json */
    struct hash weights;   /* of the original weights; all zero: unknown */
};

struct pet_target {
    struct pet_lineage lineage;
    const char *base_name;        /* what the backbone calls itself, for messages; may be NULL */
    const struct pet_site *sites; /* in site-number order: site = index */
    uint32_t n_sites;
    enum kern_type type; /* how modules are kept on the device: KERN_BF16 or KERN_F32 */
};

/* ---- reading ---- */

enum pet_kind { PET_LORA, PET_RECOVERY };

struct pet_limits {    /* zero: the default in parentheses */
    size_t max_bytes;  /* of all tensors, decompressed (4 GiB) */
    uint32_t max_rank; /* (256) */
};

struct pet;

struct pet_info {
    enum pet_kind kind;
    struct hash hash; /* content hash: the module's version; the same for a PEFT directory and its .pet */
    size_t bytes;     /* of the tensors, as stored */
    uint32_t max_rank;
    uint32_t n_sites; /* how many linears it touches */
    bool verified;    /* it states a lineage (a .pet made with one); a PEFT directory does not */
    struct pet_lineage lineage;
    char base[256]; /* the base model it names, "" when none */
};

/* path: a PEFT directory (adapter_config.json + adapter_model.safetensors), a .pet file, or a recovery .safetensors.
 * Errors name the file and the tensor, field, layer or offset at fault; other PET kinds are refused by name. */
int pet_open(const char *path, const struct pet_limits *lim, struct pet **out, struct err *e);
/* A .pet from memory (an upload). The bytes may be freed afterwards. name is used in messages. */
int pet_parse(const void *data, size_t len, const char *name, const struct pet_limits *lim, struct pet **out,
              struct err *e);
void pet_close(struct pet *p); /* takes NULL */
const struct pet_info *pet_info(const struct pet *p);
const char *pet_kind_name(enum pet_kind k);

/* One of the linears that a module touches, i in [0, n_sites). */
struct pet_part {
    const char *module; /* path in the original's names */
    uint32_t rank, k, n;
    float scale;
    enum kern_fn fn;
};
void pet_part(const struct pet *p, uint32_t i, struct pet_part *out);

/* Writes p as a .pet file. lineage may be NULL (then the module stays unverified). */
int pet_write(const struct pet *p, const struct pet_lineage *lineage, const char *path, struct err *e);
/* Writes p as a PEFT directory (LoRA kinds only), readable by PEFT. */
int pet_write_peft(const struct pet *p, const char *dir, struct err *e);

/* ---- on a backbone ---- */

/* All that loading would check: every part has a site, shapes agree, lineage agrees where stated, values are finite. */
int pet_check(const struct pet *p, const struct pet_target *t, struct err *e);
/* Device bytes that pet_load would take; 0 when pet_check would fail. */
size_t pet_resident_bytes(const struct pet *p, const struct pet_target *t);

struct pet_slot;
/* Checks, allocates and packs. Any thread; does not touch other slots. */
int pet_load(struct kern_dev *d, const struct pet *p, const struct pet_target *t, struct pet_slot **out, struct err *e);
/* A module's file, opened to be loaded a layer at a time: of a .pet only the manifest is read and kept. Everything else
 * that pet_open takes is read whole here. One thread at a time. Errors and their order are those of pet_open. */
struct pet_stream;
int pet_stream_open(const char *path, const struct pet_limits *lim, struct pet_stream **out, struct err *e);
void pet_stream_close(struct pet_stream *s); /* takes NULL */
/* As the manifest states it, whose tensors have not been read: the hash is right for the hashes of the tensors there.
 */
const struct pet_info *pet_stream_info(const struct pet_stream *s);
/* Device bytes that loading would take, and all of pet_check that needs no values. */
int pet_stream_size(const struct pet_stream *s, const struct pet_target *t, size_t *bytes, struct err *e);
/* The slot that pet_open and pet_load would make, bit for bit, or their error. Needs memory for one layer, compressed
 * and decompressed, and the slot. Each byte of the file is checked before the slot is handed out. */
int pet_stream_load(struct kern_dev *d, struct pet_stream *s, const struct pet_target *t, struct pet_slot **out,
                    struct err *e);
void pet_unload(struct kern_dev *d, struct pet_slot *s);         /* takes NULL; nothing may use it any more */
const struct kern_slot *pet_slot_kern(const struct pet_slot *s); /* site[] has t->n_sites entries */
size_t pet_slot_bytes(const struct pet_slot *s);

#endif
