/* deny_wx.c - runs a command that can get no memory both writable and executable, as MemoryDenyWriteExecute= of a
 * systemd unit has it: mmap of such pages, and mprotect to executable, fail with EPERM. Then PCRE2 cannot compile
 * patterns just in time, and the tokenizer has to match by the interpreter.
 *
 * usage: deny_wx COMMAND [ARGUMENTS]; exit status 77 (skipped) where the kernel has no seccomp filters.
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define IF(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), (yes), (no))
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, (what))

static int deny(void)
{
    struct sock_filter f[] = {
        LOAD(nr),
        IF(SYS_mprotect, 4, 0),
        IF(SYS_pkey_mprotect, 3, 0),
        IF(SYS_mmap, 0, 5),
        LOAD(args[2]),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, PROT_WRITE | PROT_EXEC),
        IF(PROT_WRITE | PROT_EXEC, 3, 2),
        LOAD(args[2]),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 1, 0),
        RETURN(SECCOMP_RET_ALLOW),
        RETURN(SECCOMP_RET_ERRNO | EPERM),
    };
    struct sock_fprog p = {.len = sizeof f / sizeof *f, .filter = f};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p, 0, 0);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    if (deny()) {
        fprintf(stderr, "deny_wx: no seccomp filters: %s\n", strerror(errno));
        return 77;
    }
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p != MAP_FAILED || errno != EPERM) {
        fprintf(stderr, "deny_wx: the filter does not hold\n");
        return 1;
    }
    execvp(argv[1], argv + 1);
    fprintf(stderr, "deny_wx: %s: %s\n", argv[1], strerror(errno));
    return 1;
}
