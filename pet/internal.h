/* internal.h - inside pet/ only: a parsed module, and what the readers share.
 *
 * A reader (peft.c, recovery.c, container.c) makes an empty struct pet, adds parts whose tensors lie in p->bytes, and
 * calls pet_finish, after which nothing changes. All of it is the caller's thread's until pet_finish has returned.
 */
#ifndef CPET_PET_INTERNAL_H
#define CPET_PET_INTERNAL_H

#include "common/arena.h"
#include "formats/dtype.h"
#include "formats/safetensors.h"
#include "pet/pet.h"

#define PET_NO_BAD UINT64_MAX
#define PET_MAX_RANK 256u
#define PET_MAX_BYTES ((size_t)4 << 30)
#define PET_MAX_MODULE 200u  /* characters of a module's path */
#define PET_MAX_PARTS 65536u /* linears that one module may touch */

struct pet_tensor {
    enum dtype type; /* F32, F16 or BF16 */
    const uint8_t *data;
    size_t bytes;
    struct hash hash; /* of the bytes */
    uint64_t bad;     /* index of the first element that is not finite, or PET_NO_BAD */
};

struct part {
    const char *module;
    uint32_t rank, k, n;
    float scale;
    enum kern_fn fn;
    uint32_t seq;           /* when it was added: 0, 1, ... */
    struct pet_tensor t[2]; /* A [rank][k], B [n][rank] */
};

struct pet {
    struct pet_info info;
    struct arena *names;
    char *bytes; /* holds every tensor's data */
    struct part *parts;
    size_t n_parts, cap_parts;
};

/* limits with the defaults filled in */
struct pet_limits pet_limits_of(const struct pet_limits *lim);

/* The largest file that is read: the tensors' limit, and room for what stands beside them. */
size_t pet_file_cap(const struct pet_limits *lim);

/* NULL when memory is out. */
struct pet *pet_new(enum pet_kind kind);
/* Appends a part and counts its bytes against the limits. module[0..len) is copied; part->module is ignored. Checks
 * rank (1 to max_rank), the module's name, the types, and that sizes are shapes times types. */
int pet_add(struct pet *p, const char *module, size_t len, const struct part *part, const struct pet_limits *lim,
            struct err *e);
/* Makes a part of two tensors of a safetensors file: checks that both are matrices whose ranks agree, then pet_add. */
int pet_add_pair(struct pet *p, const char *module, size_t len, const struct st_tensor *a, const struct st_tensor *b,
                 float scale, enum kern_fn fn, const struct pet_limits *lim, struct err *e);
/* Sorts by module, refuses two parts of one module and an empty pet, hashes the tensors (unless the reader has), looks
 * for values that are not finite where there is data, fills info. */
int pet_finish(struct pet *p, bool hashed, struct err *e);
/* Moves the tensors into a block of their own when the file's other bytes would cost much memory. After pet_finish. */
int pet_compact(struct pet *p, size_t file_bytes, struct err *e);
/* Index of the first element that is not finite, or PET_NO_BAD. */
uint64_t pet_first_bad(const struct pet_tensor *t);
/* -EINVAL naming the tensor, when a tensor or a scale is not finite. */
int pet_finite(const struct pet *p, struct err *e);

/* The module's layer: "model.layers.3" of "model.layers.3.mlp.up_proj" (up to the first number), else the whole name.
 * Returns its length. */
size_t pet_layer_len(const char *module);

/* Keeps the base model's name, cut between characters where it is too long. */
void pet_set_base(struct pet *p, const char *base);

/* "none", "gelu", "gelu_tanh" */
const char *pet_fn_name(enum kern_fn fn);
int pet_fn_parse(const char *s, enum kern_fn *out);

/* ---- a module on a backbone, in steps (load.c); parts are meant in p's order ---- */

struct pet_plan {
    const struct pet_site **of; /* [n_parts] the part's site */
    size_t *at;                 /* [n_parts] where its pair begins in the slot */
    size_t bytes;               /* the slot's */
};
/* All of pet_check but the values; needs no data. The plan is filled, and to be freed, whatever comes back. */
int pet_plan_make(const struct pet *p, const struct pet_target *t, struct pet_plan *plan, struct err *e);
void pet_plan_free(struct pet_plan *plan);
int pet_slot_create(struct kern_dev *d, const struct pet_target *t, size_t bytes, struct pet_slot **out, struct err *e);
/* Slices, rescales and packs part i, whose data is there. */
int pet_slot_fill(struct kern_dev *d, const struct pet *p, size_t i, const struct pet_plan *plan,
                  const struct pet_target *t, struct pet_slot *slot, struct err *e);

/* ---- readers: data stays the caller's, except where p->bytes is set to it ---- */
int pet_read_peft(const char *dir, const struct pet_limits *lim, struct pet **out, struct err *e);
/* Takes bytes (malloc'ed, from file_read) over on success only. */
int pet_read_recovery(char *bytes, size_t n, const char *path, const struct pet_limits *lim, struct pet **out,
                      struct err *e);
int pet_read_container(const void *data, size_t n, const char *name, const struct pet_limits *lim, struct pet **out,
                       struct err *e);
bool pet_is_container(const void *data, size_t n);

/* A PEFT directory's two files from memory, for pet_read_peft and the fuzzer. Takes tensors over on success only. */
int pet_parse_peft(const char *config, size_t config_len, char *tensors, size_t tensors_len,
                   const struct pet_limits *lim, struct pet **out, struct err *e);

#endif
