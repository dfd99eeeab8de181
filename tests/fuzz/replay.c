/* replay.c - runs a fuzz target over files and directories of files, without a fuzzer.
 *
 * Linked with one fuzz_NAME.c; the ordinary test run calls it on that target's corpus. Each input is copied into
 * memory of exactly its size, so that a sanitizer sees a read past the end. Exit 0 when every input came back.
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    struct stat st;
    if (!f || fstat(fileno(f), &st)) {
        perror(path);
        if (f)
            fclose(f);
        return 1;
    }
    size_t n = (size_t)st.st_size;
    uint8_t *p = malloc(n ? n : 1);
    int bad = !p || fread(p, 1, n, f) != n;
    fclose(f);
    if (!bad)
        LLVMFuzzerTestOneInput(p, n);
    free(p);
    return bad;
}

static int replay(const char *path, unsigned *count)
{
    DIR *d = opendir(path);
    if (!d) {
        ++*count;
        return replay_file(path);
    }
    int bad = 0;
    for (struct dirent *e; (e = readdir(d));) {
        char sub[4096];
        if (e->d_name[0] == '.')
            continue;
        snprintf(sub, sizeof sub, "%s/%s", path, e->d_name);
        bad |= replay(sub, count);
    }
    closedir(d);
    return bad;
}

int main(int argc, char **argv)
{
    unsigned count = 0;
    int bad = 0;
    for (int i = 1; i < argc; i++)
        bad |= replay(argv[i], &count);
    printf("%u inputs\n", count);
    return bad || !count;
}
