/* test_options.c - where a setting comes from, how it is written, and what is refused with which status. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "model/model.h"
#include "server/descriptors.h"
#include "server/options.h"

static int read_all(struct options *o, struct err *e, int *status, char *const *env, const char *const *args)
{
    char *argv[32] = {(char *)"cpetd"};
    int argc = 1;
    for (; args[argc - 1]; argc++)
        argv[argc] = (char *)(uintptr_t)args[argc - 1];
    enum options_what what;
    memset(e, 0, sizeof *e);
    return options_read(argc, argv, env, o, &what, status, e);
}

#define ARGS(...) ((const char *const[]){__VA_ARGS__, NULL})
#define ENV(...) ((char *const[]){__VA_ARGS__, NULL})

static char config_path[64];

static void write_config(const char *text)
{
    snprintf(config_path, sizeof config_path, "/tmp/cpetd-test-%d.conf", (int)getpid());
    FILE *f = fopen(config_path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void test_defaults(void **st)
{
    (void)st;
    struct options o;
    struct err e;
    int status;
    assert_int_equal(read_all(&o, &e, &status, ENV(NULL), ARGS("--model", "/m")), 0);
    assert_string_equal(o.model, "/m");
    assert_string_equal(o.listen, "127.0.0.1:8000");
    assert_int_equal(o.precision, MODEL_AUTO);
    assert_int_equal(o.kv_type, MODEL_KV_AUTO);
    assert_null(o.admin_listen);
    options_free(&o);
}

static void test_order(void **st)
{
    (void)st;
    struct options o;
    struct err e;
    int status;
    write_config("; a comment\n[cpetd]\nmodel = /fi;le ;x#y\n  kv-bytes=1G \n\tthreads = 3\npet = "
                 "a=/x=1\npublic-metrics = yes\r\n"
                 "drain-ms=1\n\n# end");
    char *const *env = ENV((char *)"CPETD_KV_BYTES=2G", (char *)"CPETD_PET=b=/b,c=/c", (char *)"CPETD_DRAIN_MS=2",
                           (char *)"CPETD_CPU_LEVEL=avx2", (char *)"OTHER=1");
    const char *const *args = ARGS("--config", config_path, "--kv-bytes=3M", "--pet", "d=/d");
    assert_int_equal(read_all(&o, &e, &status, env, args), 0);
    assert_string_equal(o.model, "/fi;le ;x#y");
    assert_int_equal(o.kv_bytes, 3 << 20);
    assert_int_equal(o.threads, 3);
    assert_int_equal(o.drain_ms, 2);
    assert_true(o.public_metrics);
    assert_string_equal(o.cpu_level, "avx2");
    assert_int_equal(o.n_pets, 4);
    static const char *const tasks[] = {"a", "b", "c", "d"}, *const paths[] = {"/x=1", "/b", "/c", "/d"};
    for (int i = 0; i < 4; i++) {
        assert_string_equal(o.pet_task[i], tasks[i]);
        assert_string_equal(o.pet_path[i], paths[i]);
    }
    options_free(&o);
    unlink(config_path);
}

static void test_bytes(void **st)
{
    (void)st;
    static const struct {
        const char *s;
        uint64_t v;
    } good[] = {{"0", 0}, {"17", 17}, {"4K", 4096}, {"4k", 4096}, {"512M", 512u << 20}, {"2G", (uint64_t)2 << 30}};
    static const char *const bad[] = {"",    "K", "-1", "1T", "1KB", "1 K", "99999999999999999999", "99999999999999G",
                                      "0x10"};
    uint64_t v;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(options_bytes(good[i].s, &v), 0);
        assert_true(v == good[i].v);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(options_bytes(bad[i], &v), -EINVAL);
}

static void test_bad_usage(void **st)
{
    (void)st;
    static const struct {
        const char *args[4];
        const char *says;
    } bad[] = {
        {{"--modle", "/m"}, "--modle"},
        {{"model"}, "\"model\" is not an option"},
        {{"--model"}, "--model needs a value"},
        {{"--threads=2"}, "--model is needed"},
        {{"--model=/m", "--threads=x"}, "--threads (command line)"},
        {{"--model=/m", "--threads=1K"}, "--threads"},
        {{"--model=/m", "--max-seqs=0"}, "outside"},
        {{"--model=/m", "--kv-bytes=0"}, "0 is below 1"},
        {{"--model=/m", "--precision=int4"}, "none of int8|bf16|f32"},
        {{"--model=/m", "--pet=x"}, "TASK=PATH"},
        {{"--model=/m", "--kv-bytes="}, "is empty"},
        {{"--model=/m", "--public-metrics=maybe"}, "true or false"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct options o;
        struct err e;
        int status = 0;
        assert_int_not_equal(read_all(&o, &e, &status, ENV(NULL), bad[i].args), 0);
        assert_int_equal(status, EXIT_USAGE);
        assert_non_null(strstr(e.msg, bad[i].says));
        options_free(&o);
    }
}

static void test_bad_file(void **st)
{
    (void)st;
    static const struct {
        const char *text, *says;
    } bad[] = {
        {"model = /m\nkv-bytes = many\n", "line 2"},
        {"nothing = 1\n", "no option \"nothing\""},
        {"model\n", "line 1: neither"},
        {"[cpetd]\nthreads = 1\n[other]\nmodel = /m\n", "line 4: section [other]"},
        {"threads = 1\n[cpetd\n", "line 2: neither"},
        {"\n\n= 3\n", "line 3: there is no option \"\""},
        {"config = /x\n", "no option \"config\""},
        {"max-seqs = 0\n", "line 1"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct options o;
        struct err e;
        int status = 0;
        write_config(bad[i].text);
        assert_int_not_equal(read_all(&o, &e, &status, ENV(NULL), ARGS("--model=/m", "--config", config_path)), 0);
        assert_int_equal(status, EXIT_CONFIG);
        assert_non_null(strstr(e.msg, bad[i].says));
        options_free(&o);
        unlink(config_path);
    }
    struct options o;
    struct err e;
    int status = 0;
    assert_int_not_equal(read_all(&o, &e, &status, ENV((char *)"CPETD_THREADS=x"), ARGS("--model=/m")), 0);
    assert_int_equal(status, EXIT_CONFIG);
    assert_non_null(strstr(e.msg, "CPETD_THREADS"));
    options_free(&o);
    assert_int_not_equal(read_all(&o, &e, &status, ENV(NULL), ARGS("--model=/m", "--config=/nowhere/x")), 0);
    assert_int_equal(status, EXIT_CONFIG);
    options_free(&o);
}

static void test_loopback(void **st)
{
    (void)st;
    static const char *const yes[] = {"127.0.0.1:80", "127.9.9.9:0", "localhost:1", "[::1]:8000"};
    static const char *const no[] = {"0.0.0.0:80",    "10.0.0.1:80", "[::]:80",
                                     "example.org:1", "127.0.0.1",   "[fe80::1]:2"};
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++)
        assert_true(options_is_loopback(yes[i]));
    for (size_t i = 0; i < sizeof no / sizeof *no; i++)
        assert_false(options_is_loopback(no[i]));
}

static void test_check(void **st)
{
    (void)st;
    static const struct {
        const char *args[4];
        const char *param; /* NULL: fine */
    } all[] = {
        {{"--model=/tmp"}, NULL},
        {{"--model=/tmp", "--device=cpu"}, NULL},
        {{"--model=/nowhere"}, "model"},
        {{"--model=/tmp", "--device=cuda:0"}, "device"},
        {{"--model=/tmp", "--device=tpu"}, "device"},
        {{"--model=/tmp", "--listen=0.0.0.0:80"}, "listen"},
        {{"--model=/tmp", "--admin-listen=0.0.0.0:80"}, "admin-listen"},
        {{"--model=/tmp", "--admin-listen=unix:/tmp/x"}, NULL},
        {{"--model=/tmp", "--pet=a=/tmp", "--pet=a=/tmp"}, "pet"},
        {{"--model=/tmp", "--pet=a=/nowhere"}, "pet"},
        {{"--model=/tmp", "--pet=a=/tmp", "--name=a"}, "pet"},
        {{"--model=/tmp", "--module-root=/nowhere"}, "module-root"},
        {{"--model=/tmp", "--api-keys=/nowhere"}, "api-keys"},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        struct options o;
        struct err e;
        int status = 0;
        assert_int_equal(read_all(&o, &e, &status, ENV(NULL), all[i].args), 0);
        int rc = options_check(&o, &e);
        assert_int_equal(rc, all[i].param ? -EINVAL : 0);
        if (all[i].param)
            assert_string_equal(e.param, all[i].param);
        options_free(&o);
    }
    struct options o;
    struct err e;
    int status = 0;
    assert_int_equal(read_all(&o, &e, &status, ENV((char *)"CPETD_CPU_LEVEL=sse"), ARGS("--model=/tmp")), 0);
    assert_int_equal(options_check(&o, &e), -EINVAL);
    options_free(&o);
}

static void test_help(void **st)
{
    (void)st;
    const char *h = options_help();
    static const char *const names[] = {
        "--model",        "--name",     "--precision",   "--recovery",     "--pet",     "--module-root", "--listen",
        "--admin-listen", "--data",     "--api-keys",    "--admin-key",    "--config",  "--threads",     "--kv-bytes",
        "--pet-bytes",    "--device",   "--trace-steps", "--check-config", "--version", "--drain-ms",    "--kv ",
        "--max-seqs",     "--max-rows", "--log-format",  "--help"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        assert_non_null(strstr(h, names[i]));
}

/* How descriptors are shared, for limits of all sizes: the parts never add up to more than there are. */
static void test_descriptors(void **st)
{
    (void)st;
    static const uint64_t limits[] = {0, 3, 256, 300, 400, 1024, 4096, 20000, 65536, 1048576, UINT64_MAX};
    static const uint32_t wants[] = {0, 1, 10, 300, 4096, 10000, 1u << 20};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        for (size_t k = 0; k < sizeof wants / sizeof *wants; k++) {
            struct descriptors d = {0};
            struct err e = {0};
            int rc = descriptors_plan(wants[k], limits[i], &d, &e);
            assert_int_equal(!rc, !e.msg[0]);
            assert_true(!rc || (rc == -EINVAL && !strcmp(e.param, "max-connections")));
            if (rc)
                continue;
            assert_true(d.conns && d.admin_conns && d.pairs && d.pairs <= d.conns);
            assert_true(!wants[k] || d.conns == wants[k]);
            assert_true(d.conns + 3ull * d.admin_conns + 2ull * d.pairs + 256 <= limits[i]);
        }
    struct descriptors d = {0};
    struct err e = {0};
    assert_int_equal(descriptors_plan(0, 1024, &d, &e), 0);
    assert_true(d.conns >= 256);
    assert_int_equal(descriptors_plan(0, 65536, &d, &e), 0);
    assert_true(d.conns == 16384 && d.pairs == 16384 && d.admin_conns == 512);
    assert_int_equal(descriptors_plan(10000, 8192, &d, &e), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),  cmocka_unit_test(test_order),    cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_bad_usage), cmocka_unit_test(test_bad_file), cmocka_unit_test(test_loopback),
        cmocka_unit_test(test_check),     cmocka_unit_test(test_help),     cmocka_unit_test(test_descriptors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
