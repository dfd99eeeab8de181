/* pool.c - the hidden states of a span's rows, after the final norm, pooled for embeddings.
 *
 * Engine thread, after the list has run: x then holds every row's last hidden state, and the final norm, which the list
 * computes for logit rows alone, is computed here for the rows that are pooled. All sums are doubles in an order fixed
 * by the row and by its place in the sequence: a row's in the order of its columns, a sequence's from its first row on.
 * So a pooled vector has the same bits however the prompt was cut, whatever else was in the step, on every level.
 */
#include <math.h>

#include "model/internal.h"

/* x * rsqrt(mean(x^2) + eps) * gain, in place. */
static void final_norm(float *x, const float *gain, uint32_t n, float eps)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    double scale = 1 / sqrt(sum / n + (double)eps);
    for (uint32_t i = 0; i < n; i++)
        x[i] = (float)((double)x[i] * scale) * gain[i];
}

void model_pool_rows(struct model *m, const struct model_span *sp, uint32_t row0)
{
    uint32_t n = m->cfg.hidden, first = sp->pool == MODEL_POOL_LAST ? sp->n_tokens - 1 : 0;
    float *x = m->pool_row, *gain = m->pool_row + n;
    kern_download(m->dev, gain, m->final_norm, n * sizeof *gain);
    for (uint32_t t = first; t < sp->n_tokens; t++) {
        size_t bytes = n * sizeof *x;
        kern_download(m->dev, x, kmem_at(m->x, (row0 + t) * bytes), bytes);
        final_norm(x, gain, n, m->cfg.norm_eps);
        for (uint32_t i = 0; i < n; i++)
            sp->pooled[i] = sp->pool == MODEL_POOL_LAST ? (double)x[i] : sp->pooled[i] + (double)x[i];
    }
}
