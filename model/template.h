/* template.h - chat templates: the part of Jinja that they use, rendered as transformers' apply_chat_template does.
 *
 * The environment is jinja2's immutable sandbox with trim_blocks and lstrip_blocks, loop controls, the `generation`
 * tag, the globals raise_exception, strftime_now, range, dict and namespace, and a tojson that is plain json.dumps
 * without ASCII escapes. docs of what is left out: an unknown tag, filter, test, function or method is refused by
 * tmpl_parse, with its name, line and column. Integers are 64 bits wide; beyond them is an error.
 *
 * A template is untrusted: it comes with a model. Parsing is bounded in bytes and nesting, rendering in steps, depth,
 * memory and output.
 */
#ifndef CPET_MODEL_TEMPLATE_H
#define CPET_MODEL_TEMPLATE_H

#include <stddef.h>

#include <jansson.h>

#include "common/buf.h"
#include "common/err.h"

struct tmpl; /* parsed; immutable; any thread may render it, several at once */

/* Bounds of one rendering; a zero takes the default. */
struct tmpl_limits {
    size_t max_output; /* bytes written; default 8 MiB */
    size_t max_steps;  /* nodes evaluated, elements visited and, each 16 bytes, text worked on; default 4,000,000 */
    size_t max_depth;  /* nested evaluations, macro calls and values; default 300, at most 1,000 */
    size_t max_memory; /* bytes of values; default 64 MiB */
};

/* Longest source that tmpl_parse takes, in bytes. */
#define TMPL_SOURCE_MAX (1u << 19)

/* Parses src[0..n), UTF-8. 0, or -EINVAL (syntax, or outside the subset; the message names line and column), -E2BIG
 * (too long or too deep) or -ENOMEM. The caller owns *out and frees it with tmpl_free. */
int tmpl_parse(const char *src, size_t n, struct tmpl **out, struct err *e);
void tmpl_free(struct tmpl *t); /* takes NULL */

/* Renders t with the members of vars (a JSON object: messages, tools, documents, add_generation_prompt, bos_token,
 * eos_token and whatever else the template reads; NULL means none) and appends the text to out. lim may be NULL.
 * -EINVAL: the template raised an exception (e->msg is its message and nothing else) or failed as Python would
 * (e->msg begins with the line and column); -E2BIG: a bound was reached; -ENOMEM. On failure out is as it was. */
int tmpl_render(const struct tmpl *t, const json_t *vars, const struct tmpl_limits *lim, struct buf *out,
                struct err *e);

#endif
