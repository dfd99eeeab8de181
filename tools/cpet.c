/* cpet.c - the command line over compress/, pet/ and model/: picks the command and holds what commands share.
 *
 * One process, one command, one thread here (a command may use more). Nothing is kept between calls but whether a
 * progress line is open on stderr.
 */
#include "tools/cmds.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/utf8.h"

#define CMD_ROW(name, summary) {#name, summary, cmd_##name},
static const struct cmd cmds[] = {CMD_LIST(CMD_ROW)};
#undef CMD_ROW

static bool progress_open;
static int progress_shown = -1;

static void end_progress(void)
{
    if (progress_open)
        fputc('\n', stderr);
    progress_open = false;
    progress_shown = -1;
}

void cmd_progress(const char *argv0, double share)
{
    int percent = share <= 0 ? 0 : share >= 1 ? 100 : (int)(share * 100);
    if (percent == progress_shown || !isatty(STDERR_FILENO))
        return;
    progress_shown = percent;
    progress_open = true;
    fprintf(stderr, "\r%s: %3d %%", argv0, percent);
    if (percent == 100)
        end_progress();
    fflush(stderr);
}

int cmd_fail(const char *argv0, const struct err *e)
{
    char msg[sizeof e->msg];
    end_progress();
    memcpy(msg, e->msg, sizeof msg);
    utf8_hide_controls(msg); /* it may quote a file, or what a server said */
    fprintf(stderr, "%s: %s\n", argv0, msg[0] ? msg : strerror(-e->code));
    return CMD_FAILED;
}

int cmd_usage(const char *argv0, const char *fmt, ...)
{
    va_list ap;
    fprintf(stderr, "%s: ", argv0);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fprintf(stderr, "\ntry '%s --help'\n", argv0);
    return CMD_USAGE;
}

int cmd_done(const char *argv0)
{
    end_progress();
    if (!fflush(stdout) && !ferror(stdout))
        return CMD_OK;
    fprintf(stderr, "%s: cannot write to standard output\n", argv0);
    return CMD_FAILED;
}

int cmd_json(const char *argv0, json_t *v)
{
    char *s = v ? json_dumps(v, JSON_COMPACT) : NULL;
    json_decref(v);
    if (!s) {
        fprintf(stderr, "%s: out of memory\n", argv0);
        return CMD_FAILED;
    }
    puts(s);
    free(s);
    return cmd_done(argv0);
}

static void print_help(FILE *f)
{
    fputs("usage: cpet COMMAND [ARGUMENTS]\n\n", f);
    for (size_t i = 0; i < sizeof cmds / sizeof *cmds; i++)
        fprintf(f, "  %-10s %s\n", cmds[i].name, cmds[i].summary);
    fputs("\n'cpet COMMAND --help' says more. Every command takes --json. Exit status: 0 done, 1 failed, 2 used "
          "wrongly.\n",
          f);
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : NULL;
    if (!name) {
        print_help(stderr);
        return CMD_USAGE;
    }
    if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help")) {
        print_help(stdout);
        return cmd_done("cpet");
    }
    if (!strcmp(name, "--version") || !strcmp(name, "-V")) {
        puts("cpet " CPET_VERSION);
        return cmd_done("cpet");
    }
    for (size_t i = 0; i < sizeof cmds / sizeof *cmds; i++) {
        if (strcmp(cmds[i].name, name))
            continue;
        char full[64];
        snprintf(full, sizeof full, "cpet %s", name);
        argv[1] = full; /* getopt's own messages begin with it */
        return cmds[i].run(argc - 1, argv + 1);
    }
    return cmd_usage("cpet", "there is no command '%s'", name);
}
