/* fuzz_template.c - parses the input as a chat template and renders it over a small conversation, with low bounds.
 *
 * A parse error, a failed rendering and a reached bound are all fine; a crash, a leak or a run without end is not.
 */
#include <stdint.h>

#include "model/template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char vars_text[] =
        "{\"messages\":[{\"role\":\"system\",\"content\":\"S \\u00e9\"},{\"role\":\"user\",\"content\":\"Hi\"},"
        "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":{\"a\":"
        "[1,2.5]}}}]},{\"role\":\"tool\",\"content\":\"{}\"}],\"tools\":[{\"type\":\"function\",\"function\":{\"name\":"
        "\"f\",\"parameters\":{\"properties\":{\"a\":{\"type\":\"array\"}}}}}],\"add_generation_prompt\":true,"
        "\"bos_token\":\"<s>\",\"eos_token\":\"</s>\"}";
    const struct tmpl_limits lim = {.max_output = 1 << 16, .max_steps = 50000, .max_depth = 200, .max_memory = 4 << 20};
    struct tmpl *t = NULL;
    struct err e = {0};
    if (tmpl_parse((const char *)data, size, &t, &e))
        return 0;
    json_t *vars = json_loads(vars_text, 0, NULL);
    struct buf out;
    buf_init(&out, 0);
    (void)tmpl_render(t, vars, &lim, &out, &e);
    buf_free(&out);
    json_decref(vars);
    tmpl_free(t);
    return 0;
}
