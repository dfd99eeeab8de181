/* peft_config.h - inside pet/ only: adapter_config.json of a PEFT LoRA directory. */
#ifndef CPET_PET_PEFT_CONFIG_H
#define CPET_PET_PEFT_CONFIG_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct peft_config;

/* Reads the n bytes of an adapter_config.json. Everything that would change what the module computes and that is not
 * plain LoRA is refused by name. -EINVAL, -E2BIG, -ENOMEM. */
int peft_config_parse(const char *text, size_t n, struct peft_config **out, struct err *e);
void peft_config_free(struct peft_config *c); /* takes NULL */

/* The base model it names, "" when none. */
const char *peft_config_base(const struct peft_config *c);

/* What the configuration says of a module: its rank, and alpha / rank (or alpha / sqrt(rank)). -EINVAL when the
 * configuration does not target it; -E2BIG when its patterns take too many steps. */
int peft_config_module(struct peft_config *c, const char *module, uint32_t *rank, float *scale, struct err *e);

#endif
