/* compress.h - cpet compress: from an original backbone to a smaller one. Never linked into the server.
 *
 * INT8 (W8A8): weights symmetric, one scale an output channel, scale = max|w| / 127, round to nearest even, values in
 * [-127, 127]; activations are quantized a token at a time when served. Smoothing (SmoothQuant, arXiv 2211.10438, eq.
 * 4: s_j = max|X_j|^a / max|W_j|^(1-a)) moves activation outliers into the weights where that is exact: the norm
 * before q, k, v and before gate and up, the value rows before o, and the up rows before down. The scales that were
 * folded in go to OUT/cpet/sites.safetensors, so that PET modules made for the original can be rescaled at load.
 */
#ifndef CPET_COMPRESS_COMPRESS_H
#define CPET_COMPRESS_COMPRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct compress_opts {
    const char *dir, *out; /* Hugging Face directories; out is made and must be empty, or hold an earlier result */
    bool smooth;
    float alpha;           /* 0 to 1; 0.6 */
    const char *calib;     /* a UTF-8 text file; NULL: the text that ships with the program */
    uint32_t calib_tokens; /* how much of it to use; 0: 2048 */
    bool head_float;       /* keep head and embeddings in bf16 */
    bool force;            /* replace what OUT holds */
    unsigned threads;      /* 0: one a core */
    /* Called now and then with the share done, 0 to 1; may be NULL. */
    void (*progress)(void *ctx, const char *what, double share);
    void *ctx;
};

struct compress_report {
    size_t bytes_before, bytes_after; /* of all tensors */
    uint32_t calib_tokens;            /* used */
    char calib_hash[65];              /* BLAKE2b-256 of the calibration text, "" without smoothing */
};

/* OUT holds, at the end, what DIR holds (configuration, tokenizer, lineage) with INT8 weights in compressed-tensors
 * naming. On failure OUT holds no model.safetensors. Errors name the file, tensor or option. */
int compress_int8(const struct compress_opts *o, struct compress_report *report, struct err *e);

/* The calibration text that ships with the program. */
extern const char compress_calib_text[];

#endif
