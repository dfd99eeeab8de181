/* fuzz_template.c - parses the input as chat templates and renders each over a small conversation, with low bounds.
 *
 * The input is at most 64 templates, a NUL between. A parse error, a failed rendering and a reached bound are all fine;
 * a crash, a leak or a run without end is not.
 */
#include <stdint.h>

#include "model/template.h"
#include "tests/fuzz/scratch.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void render(const char *text, size_t size, json_t *vars)
{
    const struct tmpl_limits lim = {.max_output = 1 << 16, .max_steps = 50000, .max_depth = 200, .max_memory = 4 << 20};
    struct tmpl *t = NULL;
    struct err e = {0};
    if (tmpl_parse(text, size, &t, &e))
        return;
    struct buf out;
    buf_init(&out, 0);
    (void)tmpl_render(t, vars, &lim, &out, &e);
    buf_free(&out);
    tmpl_free(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char vars_text[] =
        "{\"messages\":[{\"role\":\"system\",\"content\":\"S \\u00e9\"},{\"role\":\"user\",\"content\":\"Hi\"},"
        "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":{\"a\":"
        "[1,2.5]}}}]},{\"role\":\"tool\",\"content\":\"{}\"}],\"tools\":[{\"type\":\"function\",\"function\":{\"name\":"
        "\"f\",\"parameters\":{\"properties\":{\"a\":{\"type\":\"array\"}}}}}],\"add_generation_prompt\":true,"
        "\"bos_token\":\"<s>\",\"eos_token\":\"</s>\"}";
    struct scratch_part part[64];
    json_t *vars = json_loads(vars_text, 0, NULL);
    size_t n = scratch_split(data, size, "", 1, part, 64);
    for (size_t i = 0; vars && i < n; i++)
        render((const char *)part[i].p, part[i].n, vars);
    json_decref(vars);
    return 0;
}
