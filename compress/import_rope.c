/* import_rope.c - Llama 3's RoPE scaling, found again from GGUF's factors.
 *
 * GGUF does not keep the four numbers of the scaling (factor, low and high frequency factor, original context), but
 * what they come to: one divisor a frequency, in rope_freqs.weight. transformers needs the four. The largest divisor is
 * the factor; the other three are looked for among those in use and taken only when they give every divisor again to
 * float32's precision. Several may, being the same function (all three doubled, say): the first is taken, with 1 and 4
 * tried before other frequency factors. Pure functions; any thread.
 */
#include "compress/import_internal.h"

#include <math.h>

/* The divisor of frequency i under that scaling, as converters compute it. */
static double divisor(double theta, uint32_t head_dim, uint32_t i, double factor, double low, double high,
                      double original)
{
    double wave = 2 * M_PI * pow(theta, (double)(2 * i) / head_dim);
    if (wave < original / high)
        return 1;
    if (wave > original / low)
        return factor;
    double smooth = (original / wave - low) / (high - low);
    return 1 / ((1 - smooth) / factor + smooth);
}

static bool matches(const struct model_config *c, const float *f, uint32_t n, double factor, double low, double high,
                    double original)
{
    for (uint32_t i = 0; i < n; i++) {
        double d = divisor(c->rope_theta, c->head_dim, i, factor, low, high, original);
        if (!(fabs(d - f[i]) <= 1e-5 * d))
            return false;
    }
    return true;
}

int import_rope_of_factors(struct model_config *cfg, const float *f, uint32_t n, struct err *e)
{
    static const double originals[] = {8192, 4096, 2048, 16384, 32768, 65536, 131072, 1024, 512, 256, 128, 64};
    static const double bands[][2] = {{1, 4}, {1, 2}, {1, 8}, {2, 4}, {2, 8}, {1, 16}, {1, 32}};
    float top = 1;
    bool plain = true;
    for (uint32_t i = 0; i < n; i++) {
        if (!(f[i] >= 0.5f && f[i] <= 1e6f))
            return err_set(e, -EINVAL, "tensor \"rope_freqs.weight\": element %u is %g", i, (double)f[i]);
        top = f[i] > top ? f[i] : top;
        plain = plain && f[i] == 1;
    }
    if (plain)
        return 0;
    for (size_t b = 0; b < sizeof bands / sizeof *bands; b++) {
        for (size_t o = 0; o < sizeof originals / sizeof *originals; o++) {
            if (!matches(cfg, f, n, top, bands[b][0], bands[b][1], originals[o]))
                continue;
            cfg->rope = ROPE_LLAMA3;
            cfg->rope_factor = top;
            cfg->rope_low = bands[b][0];
            cfg->rope_high = bands[b][1];
            cfg->rope_original = originals[o];
            return 0;
        }
    }
    return err_set(e, -ENOTSUP,
                   "tensor \"rope_freqs.weight\": its factors are not those of a llama3 RoPE scaling, the only one "
                   "supported in this form");
}
