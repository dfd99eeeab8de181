/* sites.h - the linears of a layer, by number, short name and module path. Inside model/ and compress/.
 *
 * site = layer * SITE_KINDS + kind; the head comes after all layers.
 */
#ifndef CPET_MODEL_SITES_H
#define CPET_MODEL_SITES_H

enum site_kind { SITE_Q, SITE_K, SITE_V, SITE_O, SITE_GATE, SITE_UP, SITE_DOWN, SITE_KINDS };

/* "q", "k", "v", "o", "gate", "up", "down": as in "layers.3.q". */
extern const char *const site_names[SITE_KINDS];
/* "self_attn.q_proj" ...: as in "model.layers.3.self_attn.q_proj". */
extern const char *const site_modules[SITE_KINDS];

#endif
