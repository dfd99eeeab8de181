/* cmds.h - the commands of cpet, and what they share.
 *
 * To add one: a line in CMD_LIST, a file tools/cmd_NAME.c with `int cmd_NAME(int argc, char **argv)`, and that file in
 * tools/meson.build. argv[0] is "cpet NAME". A command answers its exit status: 0 done, 1 failed, 2 used wrongly.
 * Results go to stdout (as one JSON object with --json), everything else to stderr, progress only when that is a
 * terminal.
 */
#ifndef CPET_TOOLS_CMDS_H
#define CPET_TOOLS_CMDS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"

/* clang-format off */
#define CMD_LIST(CMD) \
    CMD(import,   "a GGUF file or Hugging Face directory becomes a Hugging Face directory") \
    CMD(compress, "a Hugging Face directory becomes a smaller one (INT8)") \
    CMD(pet,      "PET modules: pack, convert, inspect, verify") \
    CMD(logits,   "the logits of given tokens, raw float32") \
    CMD(ppl,      "perplexity of a text") \
    CMD(module,   "modules of a running server: put, list, show, delete") \
    CMD(task,     "tasks of a running server: put, list, show, delete, rollback")
/* clang-format on */

enum { CMD_OK = 0, CMD_FAILED = 1, CMD_USAGE = 2 };

struct cmd {
    const char *name, *summary;
    int (*run)(int argc, char **argv);
};

#define CMD_DECLARE(name, summary) int cmd_##name(int argc, char **argv);
CMD_LIST(CMD_DECLARE)
#undef CMD_DECLARE

/* Prints "cpet NAME: sentence" to stderr and answers CMD_FAILED. */
int cmd_fail(const char *argv0, const struct err *e);
/* Prints the sentence and "try 'cpet NAME --help'" to stderr and answers CMD_USAGE. */
int cmd_usage(const char *argv0, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Prints v to stdout as one line of JSON and gives it up. CMD_OK, or CMD_FAILED when v is NULL or stdout fails. */
int cmd_json(const char *argv0, json_t *v);
/* Ends a command that printed text: CMD_OK, or CMD_FAILED with a message when stdout could not be written. */
int cmd_done(const char *argv0);

/* A line on stderr that is written over: "cpet import:  42 %". Does nothing unless stderr is a terminal. Ends the line
 * at share 1 or more; cmd_fail ends it too. */
void cmd_progress(const char *argv0, double share);

#endif
