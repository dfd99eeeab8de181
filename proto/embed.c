/* embed.c - a program of the build alone: writes a file's bytes as a C source that proto/endpoints.h declares.
 *
 * Usage: embed IN OUT. The source defines resp_openapi, so that the server needs no file beside it at run time. Owns
 * its two streams; what fails is said on stderr with exit 1.
 */
#include <stdio.h>

static int copy(FILE *in, FILE *out)
{
    size_t n = 0;
    fprintf(out, "#include \"proto/endpoints.h\"\n\nstatic const char bytes[] = {");
    for (int c; (c = getc(in)) != EOF; n++)
        fprintf(out, "%s%d,", n % 24 ? "" : "\n    ", c > 127 ? c - 256 : c);
    fprintf(out, "\n};\n\nconst char *resp_openapi(size_t *n)\n{\n    *n = %zu;\n    return bytes;\n}\n", n);
    return n && !ferror(in) && !ferror(out) ? 0 : -1;
}

int main(int argc, char **argv)
{
    FILE *in = argc == 3 ? fopen(argv[1], "rb") : NULL, *out = in ? fopen(argv[2], "wb") : NULL;
    int bad = !out || copy(in, out);
    if (out && fclose(out))
        bad = 1;
    if (in)
        fclose(in);
    if (bad)
        fprintf(stderr, "embed: %s could not be made\n", argc == 3 ? argv[2] : "OUT");
    return bad ? 1 : 0;
}
