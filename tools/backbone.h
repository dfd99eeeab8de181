/* backbone.h - a backbone with modules, opened from the command line's options. tools/ only. */
#ifndef CPET_TOOLS_BACKBONE_H
#define CPET_TOOLS_BACKBONE_H

#include "common/err.h"
#include "model/model.h"

#define BACKBONE_MAX_PETS 16

struct backbone {
    /* options */
    const char *dir, *recovery, *level;
    const char *pet[BACKBONE_MAX_PETS];
    uint32_t n_pets;
    enum model_precision precision;
    int kv_type;
    unsigned threads;
    uint32_t max_seqs; /* sequences open at once (2) */
    /* opened */
    struct kern_dev *dev;
    struct model *model;
    struct pet_slot *slot[BACKBONE_MAX_PETS];
    struct model_pet use[BACKBONE_MAX_PETS];
};

/* Options that every command with a model takes: for getopt_long's table, and its help text. */
enum { OPT_MODEL = 256, OPT_PET, OPT_PRECISION, OPT_RECOVERY, OPT_KV, OPT_THREADS, OPT_BACKBONE_END };
#define BACKBONE_OPTIONS                                                                                               \
    {"model", required_argument, NULL, OPT_MODEL}, {"pet", required_argument, NULL, OPT_PET},                          \
        {"precision", required_argument, NULL, OPT_PRECISION}, {"recovery", required_argument, NULL, OPT_RECOVERY},    \
        {"kv", required_argument, NULL, OPT_KV},                                                                       \
    {                                                                                                                  \
        "threads", required_argument, NULL, OPT_THREADS                                                                \
    }
#define BACKBONE_HELP                                                                                                  \
    "  --model DIR         the backbone, a Hugging Face directory\n"                                                   \
    "  --pet PATH          a PEFT directory or .pet to apply; again for more, in order\n"                              \
    "  --precision P       f32, bf16 or int8 (default: what DIR holds)\n"                                              \
    "  --recovery FILE     a recovery file (default: DIR/recovery.safetensors where it exists)\n"                      \
    "  --kv TYPE           keys and values as f32, bf16 or int8 (default: f32 for f32, else bf16)\n"                   \
    "  --threads N         worker threads (default: one a core)\n"

/* Before parsing: the defaults. */
void backbone_init(struct backbone *b);
/* One parsed option. 0, or -EINVAL with a message naming the option. */
int backbone_option(struct backbone *b, int opt, const char *arg, struct err *e);
/* Opens device, model and modules for steps of at most max_rows rows and max_logits logits. */
int backbone_open(struct backbone *b, uint32_t max_rows, uint32_t max_logits, struct err *e);
void backbone_close(struct backbone *b);

/* "12" as a whole number in [min, max]; -EINVAL naming the option. */
int option_u32(const char *name, const char *arg, uint32_t min, uint32_t max, uint32_t *out, struct err *e);

#endif
