/* import.h - a model from elsewhere becomes a Hugging Face directory that this tree and transformers both load.
 *
 * Source: a GGUF file, or a Hugging Face directory (safetensors, sharded or not). Architectures: Llama and Qwen2.
 * Result: config.json, generation_config.json, model.safetensors, the tokenizer's files, and cpet.json, which records
 * where the weights came from and their lineage:
 *
 *   {"format": "cpet-backbone", "version": 1,
 *    "lineage": {"architecture": "llama", "tokenizer": HEX, "weights": HEX},
 *    "source": {"format": "gguf", "file": ..., "bytes": ..., "weights": "dequantized Q4_1", "types": {"Q4_1": 210,
 * ...}}}
 *
 * lineage.tokenizer is the BLAKE2b-256 of tokenizer.json (absent where there is none). lineage.weights is the
 * BLAKE2b-256 over the tensors of model.safetensors in strcmp order of their names, each as: name, NUL, type's name
 * ("BF16"), NUL, number of dimensions (32 bits), dimensions (64 bits each), bytes; integers little endian.
 */
#ifndef CPET_COMPRESS_IMPORT_H
#define CPET_COMPRESS_IMPORT_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"
#include "common/hash.h"
#include "formats/dtype.h"

#define IMPORT_DTYPE_AUTO (-1)

struct import_opts {
    const char *src, *dir;
    int dtype; /* DT_F32, DT_BF16, DT_F16, or IMPORT_DTYPE_AUTO: bf16 for GGUF, else the type the source has (bf16 where
                  it mixes several) */
    bool force; /* write into a directory that is not empty, over files of the same names */
    /* Called now and then with the bytes of weights written so far; NULL: no progress. */
    void (*progress)(void *ctx, size_t done, size_t total);
    void *ctx;
};

struct import_result {
    char architecture[32];
    char weights[32]; /* "original", or "dequantized Q4_1" */
    enum dtype dtype;
    size_t n_tensors, n_params, bytes; /* as written */
    bool has_tokenizer;
    struct hash weights_hash, tokenizer_hash;
};

/* Streams tensor by tensor; resident memory stays at a few MiB beside the tokenizer. Everything is written into a
 * temporary directory beside dir, which then takes its place; on failure dir is as it was. -EEXIST when dir holds files
 * and force is not set; -ENOTSUP for what is recognized but not supported (pickles, quantized checkpoints, other
 * architectures); -EINVAL naming file and tensor, key or offset for damaged input and weights that are not finite.
 * result may be NULL. */
int import_run(const struct import_opts *o, struct import_result *result, struct err *e);

#endif
