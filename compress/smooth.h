/* smooth.h - smoothing scales. Inside compress/ only. */
#ifndef CPET_COMPRESS_SMOOTH_H
#define CPET_COMPRESS_SMOOTH_H

#include "compress/compress.h"
#include "formats/safetensors.h"
#include "kernels/kernels.h"
#include "model/model.h"

/* Scales of one site: the stored layer is fed x / in and gives y * out. NULL: ones. */
struct smooth_site {
    float *in, *out;
};

struct smooth {
    uint32_t n_sites; /* as pet_target numbers them */
    struct smooth_site *site;
};

/* Runs the backbone in DIR over the text, collects each linear's largest inputs, and makes the scales. */
int smooth_make(const struct compress_opts *o, const char *text, size_t len, const struct st_file *weights,
                struct smooth *out, uint32_t *tokens_used, struct err *e);
void smooth_free(struct smooth *s);

#endif
