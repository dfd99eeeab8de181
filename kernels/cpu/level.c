/* level.c - which instruction sets this processor, and the operating system, let us use, and the table for each.
 *
 * Any thread. cpuid says what the processor has, xgetbv which registers the system saves; the AMX tiles must be asked
 * for once a process, before the threads that use them start (arch_prctl; new threads inherit the permission).
 */
#include "kernels/cpu/cpu.h"

#include <string.h>

#ifdef CPET_X86
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_TILEDATA 18

#define BIT(x, n) ((x) >> (n)&1u)

static uint64_t saved_registers(void)
{
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

static enum kern_level detect(void)
{
    uint32_t a, b, c, d, b7, c7, d7;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !BIT(c, 27) /* osxsave */)
        return KERN_SCALAR;
    uint64_t saved = saved_registers();
    bool fma_f16c = BIT(c, 12) && BIT(c, 29) && BIT(c, 28);
    if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7))
        return KERN_SCALAR;
    if (!fma_f16c || !BIT(b7, 5) || (saved & 0x6) != 0x6)
        return KERN_SCALAR;
    bool avx512 = BIT(b7, 16) && BIT(b7, 17) && BIT(b7, 30) && BIT(b7, 31); /* f, dq, bw, vl */
    if (!avx512 || !BIT(c7, 11) /* vnni */ || (saved & 0xE6) != 0xE6)
        return KERN_AVX2;
    bool amx = BIT(d7, 24) && BIT(d7, 25) && BIT(d7, 22); /* tile, int8, bf16 */
    if (!amx || (saved & 0x60000) != 0x60000)
        return KERN_VNNI;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_TILEDATA) ? KERN_VNNI : KERN_AMX;
}
#else
static enum kern_level detect(void)
{
    return KERN_SCALAR;
}
#endif

enum kern_level cpu_best_level(void)
{
    return detect();
}

void cpu_table_fill(struct cpu_table *t, enum kern_level level)
{
    memset(t, 0, sizeof *t);
    t->level = level;
    cpu_linear_scalar(t);
    cpu_sequence_scalar(t);
#ifdef CPET_X86
    if (level >= KERN_AVX2) {
        cpu_linear_avx2(t);
        cpu_sequence_avx2(t);
    }
    if (level >= KERN_VNNI) {
        cpu_linear_vnni(t);
        cpu_sequence_vnni(t);
    }
    if (level >= KERN_AMX) {
        cpu_linear_amx(t);
        cpu_sequence_amx(t);
    }
#endif
}

const char *kern_level_name(enum kern_level l)
{
    static const char *const names[KERN_LEVELS] = {"scalar", "avx2", "vnni", "amx"};
    return l < KERN_LEVELS ? names[l] : "?";
}

const char *kern_kind_name(enum kern_kind k)
{
    static const char *const names[KERN_OP_KINDS] = {"embed", "norm",  "lr_down", "linear", "rope_kv",
                                                     "attn",  "forms", "swiglu",  "sample"};
    return k < KERN_OP_KINDS ? names[k] : "?";
}
