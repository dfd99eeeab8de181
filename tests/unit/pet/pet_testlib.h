/* pet_testlib.h - what the tests of pet/ share: a scratch directory, small modules, and a target for them. */
#ifndef CPET_TESTS_UNIT_PET_TESTLIB_H
#define CPET_TESTS_UNIT_PET_TESTLIB_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "formats/safetensors.h"
#include "pet/pet.h"

/* A fresh directory under TMPDIR, removed by scratch_remove. */
const char *scratch_make(void);
void scratch_remove(void);
/* scratch directory + "/" + name, in one of a few static buffers. */
const char *scratch(const char *name);
void write_text(const char *path, const char *text);
void write_bytes(const char *path, const void *p, size_t n);

/* A pair of tensors for a module, values from a counter. */
struct pair {
    const char *module;
    uint32_t rank, k, n;
    enum dtype type;
};
/* dir/adapter_config.json = config, dir/adapter_model.safetensors = the pairs with PEFT's names. */
void write_peft(const char *dir, const char *config, const struct pair *pairs, size_t n);
/* A safetensors file with the pairs named <module>a_end and <module>b_end. meta as in st_write. */
void write_pairs(const char *path, const struct pair *pairs, size_t n, const char *prefix, const char *a_end,
                 const char *b_end, const char *const *meta);
/* Element i of the pair's A (role 0) or B (role 1), after rounding to its type. */
float pair_value(const struct pair *p, int role, size_t i);

/* A plain LoRA configuration: r, lora_alpha, and more JSON members (each with a comma before it). */
const char *config_of(int r, int alpha, const char *more);

/* The error's sentence has to hold this text. */
#define assert_says(e, text)                                                                                           \
    do {                                                                                                               \
        if (!strstr((e)->msg, text))                                                                                   \
            fail_msg("\"%s\" does not say \"%s\"", (e)->msg, text);                                                    \
    } while (0)

/* pet_open; asserts that it worked. */
struct pet *open_ok(const char *path);

#endif
