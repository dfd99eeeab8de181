/* admin.c - options, calls and tables of cpet module and cpet task. One thread; all is freed by whoever made it.
 *
 * A call is one HTTP request by libcurl. Proxies of the environment are not asked, redirects are not followed and no
 * other protocol is spoken, because the key goes with the request. What a server sends is bounded, and what of it is
 * printed has its control characters replaced.
 */
#include "tools/admin.h"

#include <ctype.h>
#include <curl/curl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file.h"
#include "common/utf8.h"
#include "tools/cmds.h"

enum { ANSWER_MAX = 64 << 20, KEY_MAX = 4096, CONNECT_S = 10, CALL_S = 600, HASH_SHOWN = 12 };

/* ---- options ---- */

/* The letters of struct admin_sub. */
static const struct option options[] = {{"server", required_argument, NULL, 's'},
                                        {"key-file", required_argument, NULL, 'k'},
                                        {"json", no_argument, NULL, 'j'},
                                        {"help", no_argument, NULL, 'h'},
                                        {"path", required_argument, NULL, 'p'},
                                        {"dry-run", no_argument, NULL, 'n'},
                                        {"pinned", no_argument, NULL, 'P'},
                                        {"drain", no_argument, NULL, 'd'},
                                        {"tenant", required_argument, NULL, 't'},
                                        {"module", required_argument, NULL, 'm'},
                                        {"defaults", required_argument, NULL, 'D'},
                                        {"template", required_argument, NULL, 'T'},
                                        {0}};

static const char *option_name(int c)
{
    size_t i = 0;
    while (options[i].name && options[i].val != c)
        i++;
    return options[i].name;
}

/* 0, or an exit status where it was used wrongly. */
static int take_option(struct admin_args *a, const struct admin_sub *sub, int c, const char *arg)
{
    if (!strchr("skj", c) && !strchr(sub->letters, c))
        return cmd_usage(a->argv0, "it takes no --%s", option_name(c));
    switch (c) {
    case 's':
        a->server = arg;
        return 0;
    case 'k':
        a->key_file = arg;
        return 0;
    case 'j':
        a->json = true;
        return 0;
    case 'p':
        a->path = arg;
        return 0;
    case 'n':
        a->dry_run = true;
        return 0;
    case 'P':
        a->pinned = true;
        return 0;
    case 'd':
        a->drain = true;
        return 0;
    case 't':
        a->tenant = arg;
        return 0;
    case 'm':
        if (a->n_modules == ADMIN_MODULES_MAX)
            return cmd_usage(a->argv0, "a task has at most %d modules", ADMIN_MODULES_MAX);
        a->module[a->n_modules++] = arg;
        return 0;
    case 'D':
        a->defaults = arg;
        return 0;
    default:
        a->template_file = arg;
        return 0;
    }
}

static const char *from_env(const char *name)
{
    const char *v = getenv(name);
    return v && *v ? v : NULL;
}

static bool begins(const char *s, const char *with)
{
    return !strncmp(s, with, strlen(with));
}

static int run_sub(int argc, char **argv, const char *help, const struct admin_sub *sub)
{
    char name[64];
    snprintf(name, sizeof name, "%s %s", argv[0], argv[1]);
    argv[1] = name; /* getopt's own messages begin with it */
    struct admin_args a = {.argv0 = name};
    for (int c; (c = getopt_long(argc - 1, argv + 1, "h", options, NULL)) != -1;) {
        if (c == 'h') {
            fputs(help, stdout);
            return cmd_done(name);
        }
        int status = c == '?' ? cmd_usage(name, "see the options") : take_option(&a, sub, c, optarg);
        if (status)
            return status;
    }
    a.n_args = argc - 1 - optind;
    if (a.n_args < sub->min_args || a.n_args > sub->max_args)
        return cmd_usage(name, "it takes %s", sub->wants);
    for (int i = 0; i < a.n_args; i++)
        if (!*(a.arg[i] = argv[1 + optind + i]))
            return cmd_usage(name, "an argument is empty");
    a.server = a.server ? a.server : from_env("CPET_ADMIN");
    a.key_file = a.key_file ? a.key_file : from_env("CPET_ADMIN_KEY_FILE");
    if (!a.server)
        return cmd_usage(name, "needs --server (or CPET_ADMIN in the environment)");
    if (!begins(a.server, "http://") && !begins(a.server, "https://") && !begins(a.server, "unix:"))
        return cmd_usage(name, "--server: '%s' is not http://HOST:PORT or unix:PATH", a.server);
    return sub->run(&a);
}

int admin_command(int argc, char **argv, const char *help, const struct admin_sub *subs, size_t n)
{
    char list[128] = "";
    if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
        fputs(help, stdout);
        return cmd_done(argv[0]);
    }
    for (size_t i = 0; i < n; i++) {
        size_t used = strlen(list);
        if (argc > 1 && !strcmp(argv[1], subs[i].name))
            return run_sub(argc, argv, help, &subs[i]);
        snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", subs[i].name);
    }
    return cmd_usage(argv[0], "needs one of %s", list);
}

/* ---- the URL ---- */

static void escape(struct buf *b, const char *s)
{
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~";
    for (; *s; s++)
        if (strchr(plain, *s))
            buf_append(b, s, 1);
        else
            buf_printf(b, "%%%02X", (unsigned char)*s);
}

void admin_url(struct buf *b, const char *kind, const char *name)
{
    buf_printf(b, "/admin/v1/%s", kind);
    if (name) {
        buf_puts(b, "/");
        escape(b, name);
    }
}

void admin_query(struct buf *b, const char *key, const char *value)
{
    buf_printf(b, "%s%s=", b->data && strchr(b->data, '?') ? "&" : "?", key);
    escape(b, value);
}

/* ---- the key ---- */

/* "Authorization: Bearer KEY", malloc'ed. */
static int read_key(const char *path, char **header, struct err *e)
{
    struct stat st;
    char *text;
    size_t n;
    int r = file_read(path, KEY_MAX, &text, &n, e);
    if (r)
        return r;
    while (n && (text[n - 1] == '\n' || text[n - 1] == '\r'))
        n--;
    text[n] = 0;
    if (!stat(path, &st) && st.st_mode & 07)
        r = err_set(e, -EINVAL, "%s may be read by everybody; make it 0600", path);
    else if (!n)
        r = err_set(e, -EINVAL, "%s: there is no key in it", path);
    for (size_t i = 0; !r && i < n; i++)
        if (text[i] < 0x21 || text[i] > 0x7E)
            r = err_set(e, -EINVAL, "%s: the key is one line of printable characters without blanks", path);
    if (!r && asprintf(header, "Authorization: Bearer %s", text) < 0)
        r = err_set(e, -ENOMEM, "out of memory");
    free(text);
    return r;
}

/* ---- the call ---- */

static size_t on_data(char *p, size_t size, size_t n, void *ctx)
{
    return buf_append(ctx, p, size * n) ? 0 : size * n;
}

static int on_progress(void *ctx, curl_off_t down_all, curl_off_t down, curl_off_t up_all, curl_off_t up)
{
    (void)down_all;
    (void)down;
    if (up_all > 1 << 20)
        cmd_progress(ctx, (double)up / (double)up_all);
    return 0;
}

struct call {
    CURL *c;
    struct curl_slist *headers;
    FILE *file;
    struct buf url, got;
    char *key;
    char said[CURL_ERROR_SIZE];
};

static int add_header(struct call *k, const char *line, struct err *e)
{
    struct curl_slist *more = curl_slist_append(k->headers, line);
    if (!more)
        return err_set(e, -ENOMEM, "out of memory");
    k->headers = more;
    return 0;
}

static int set_body(struct call *k, const struct admin_body *body, struct err *e)
{
    char line[128];
    struct stat st;
    snprintf(line, sizeof line, "Content-Type: %s", body->type);
    int r = add_header(k, line, e);
    if (r)
        return r;
    if (body->text) {
        curl_easy_setopt(k->c, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(body->text));
        curl_easy_setopt(k->c, CURLOPT_POSTFIELDS, body->text);
        return 0;
    }
    k->file = fopen(body->file, "rbe");
    if (!k->file || fstat(fileno(k->file), &st))
        return err_set(e, -errno, "%s: %s", body->file, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return err_set(e, -EINVAL, "%s: not a regular file", body->file);
    curl_easy_setopt(k->c, CURLOPT_UPLOAD, 1L);
    curl_easy_setopt(k->c, CURLOPT_READDATA, k->file);
    curl_easy_setopt(k->c, CURLOPT_INFILESIZE_LARGE, (curl_off_t)st.st_size);
    return 0;
}

static int set_up(struct call *k, const struct admin_args *a, const char *method, const struct buf *path,
                  const struct admin_body *body, struct err *e)
{
    bool local = begins(a->server, "unix:");
    size_t n = strlen(a->server);
    while (!local && n && a->server[n - 1] == '/')
        n--;
    buf_printf(&k->url, "%.*s%s", local ? 16 : (int)n, local ? "http://localhost" : a->server, path->data);
    if (path->failed || k->url.failed)
        return err_set(e, -ENOMEM, "out of memory");
    if (local)
        curl_easy_setopt(k->c, CURLOPT_UNIX_SOCKET_PATH, a->server + 5);
    curl_easy_setopt(k->c, CURLOPT_URL, k->url.data);
    curl_easy_setopt(k->c, CURLOPT_PATH_AS_IS, 1L); /* a module may be named ".." */
    curl_easy_setopt(k->c, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(k->c, CURLOPT_PROXY, "");
    curl_easy_setopt(k->c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(k->c, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_S);
    curl_easy_setopt(k->c, CURLOPT_TIMEOUT, (long)CALL_S);
    curl_easy_setopt(k->c, CURLOPT_ERRORBUFFER, k->said);
    curl_easy_setopt(k->c, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(k->c, CURLOPT_WRITEDATA, &k->got);
    curl_easy_setopt(k->c, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(k->c, CURLOPT_XFERINFODATA, (void *)(uintptr_t)a->argv0);
    curl_easy_setopt(k->c, CURLOPT_NOPROGRESS, 0L);
    int r = body && body->type ? set_body(k, body, e) : 0;
    curl_easy_setopt(k->c, CURLOPT_CUSTOMREQUEST, method);
    if (!r && a->key_file && !(r = read_key(a->key_file, &k->key, e)))
        r = add_header(k, k->key, e);
    if (!r)
        r = add_header(k, "Accept: application/json", e);
    curl_easy_setopt(k->c, CURLOPT_HTTPHEADER, k->headers);
    return r;
}

/* What a server that said no says: {"error": {"message", "param"}}. */
static int refused(const struct admin_args *a, long status, json_t *o, struct err *e)
{
    const json_t *error = json_object_get(o, "error");
    const char *message = admin_str(error, "message"), *param = admin_str(error, "param");
    if (a->json && o)
        cmd_json(a->argv0, json_incref(o));
    if (*message && *param)
        return err_param(e, -EINVAL, param, "%s: %s", param, message);
    if (*message)
        return err_set(e, -EINVAL, "%s", message);
    return err_set(e, -EINVAL, "%s answered %ld, and no reason", a->server, status);
}

static int finish(struct call *k, const struct admin_args *a, int *status, json_t **answer, struct err *e)
{
    long code = 0;
    json_error_t je;
    CURLcode rc = curl_easy_perform(k->c);
    if (rc && k->got.failed)
        return err_set(e, -EFBIG, "%s: the answer is larger than %d bytes", a->server, ANSWER_MAX);
    if (rc)
        return err_set(e, -EIO, "%s: %s", a->server, *k->said ? k->said : curl_easy_strerror(rc));
    curl_easy_getinfo(k->c, CURLINFO_RESPONSE_CODE, &code);
    json_t *o = k->got.len ? json_loadb(k->got.data, k->got.len, 0, &je) : NULL;
    if (k->got.len && !json_is_object(o)) {
        json_decref(o);
        return err_set(e, -EPROTO, "%s answered %ld, and not in JSON: is it cpetd's admin listener?", a->server, code);
    }
    if (code < 200 || code > 299) {
        int r = refused(a, code, o, e);
        json_decref(o);
        return r;
    }
    *status = (int)code;
    *answer = o;
    return 0;
}

/* The call. 0, *status and *answer (an object; NULL when the server sent none) where the server agreed. Where it did
 * not, e has its sentence and the field at fault, and with --json its answer is printed. */
static int ask(const struct admin_args *a, const char *method, const struct buf *url, const struct admin_body *body,
               int *status, json_t **answer, struct err *e)
{
    struct call k = {0};
    buf_init(&k.got, ANSWER_MAX);
    int r =
        curl_global_init(CURL_GLOBAL_DEFAULT) || !(k.c = curl_easy_init()) ? err_set(e, -ENOMEM, "out of memory") : 0;
    if (!r)
        r = set_up(&k, a, method, url, body, e);
    if (!r)
        r = finish(&k, a, status, answer, e);
    curl_easy_cleanup(k.c);
    curl_slist_free_all(k.headers);
    if (k.file)
        fclose(k.file);
    if (k.key)
        explicit_bzero(k.key, strlen(k.key));
    free(k.key);
    buf_free(&k.url);
    buf_free(&k.got);
    return r;
}

bool admin_send(const struct admin_args *a, const char *method, struct buf *url, const struct admin_body *body,
                int *status, json_t **answer, int *code)
{
    struct err e = {0};
    int r = ask(a, method, url, body, status, answer, &e);
    buf_free(url);
    if (!r && !a->json)
        return true;
    *code = r ? cmd_fail(a->argv0, &e) : cmd_json(a->argv0, *answer ? *answer : json_object());
    return false;
}

/* ---- printing ---- */

const char *admin_str(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

static void put_text(struct buf *b, const char *s)
{
    size_t at = b->len;
    buf_puts(b, s);
    if (!b->failed && b->len > at)
        utf8_hide_controls(b->data + at);
}

/* A value as a cell. Entries of a task's modules are NAME or NAME=WEIGHT; other objects are JSON. */
static void put_value(struct buf *b, const json_t *v)
{
    size_t i, before = b->len;
    const json_t *x;
    if (json_is_string(v)) {
        put_text(b, json_string_value(v));
    } else if (json_is_integer(v)) {
        buf_printf(b, "%lld", (long long)json_integer_value(v));
    } else if (json_is_real(v)) {
        buf_printf(b, "%g", json_real_value(v));
    } else if (json_is_boolean(v)) {
        buf_puts(b, json_is_true(v) ? "yes" : "no");
    } else if (json_is_array(v) && json_array_size(v)) {
        json_array_foreach(v, i, x)
        {
            buf_puts(b, i ? " " : "");
            put_value(b, x);
        }
    } else if (*admin_str(v, "name")) {
        const json_t *w = json_object_get(v, "weight");
        put_text(b, admin_str(v, "name"));
        if (w && json_number_value(w) != 1)
            buf_printf(b, "=%g", json_number_value(w));
    } else if (json_is_object(v) && json_object_size(v)) {
        char *s = json_dumps(v, JSON_COMPACT);
        put_text(b, s ? s : "?");
        free(s);
    } else {
        buf_puts(b, "-");
    }
    if (b->len == before)
        buf_puts(b, "-");
}

static int width(const char *s)
{
    int n = 0;
    for (; *s; s++)
        n += ((unsigned char)*s & 0xC0) != 0x80;
    return n;
}

/* The cell of one entry; hashes are shown by their first digits. */
static void cell(struct buf *b, const json_t *entry, const char *key)
{
    const json_t *v = json_object_get(entry, key);
    buf_clear(b);
    if (json_string_length(v) == 64 && (!strcmp(key, "hash") || !strcmp(key, "version")))
        buf_printf(b, "%.*s", HASH_SHOWN, json_string_value(v));
    else
        put_value(b, v);
}

static const json_t *entries(const json_t *answer)
{
    return json_object_get(answer, "data");
}

static void put_title(struct buf *b, const char *key)
{
    buf_clear(b);
    for (; *key; key++)
        buf_append(b, &(char){*key == '_' ? ' ' : (char)toupper((unsigned char)*key)}, 1);
}

static void print_row(struct buf *b, const json_t *entry, const char *const *columns, const int *widths)
{
    for (size_t c = 0; columns[c]; c++) {
        if (entry)
            cell(b, entry, columns[c]);
        else
            put_title(b, columns[c]);
        const char *text = b->data ? b->data : "";
        printf("%s%*s", text, columns[c + 1] ? widths[c] - width(text) + 2 : 0, "");
    }
    putchar('\n');
}

static int print_table(const struct admin_args *a, const json_t *answer, const char *const *columns)
{
    int widths[16] = {0};
    struct buf b = {0};
    size_t i;
    const json_t *entry;
    for (size_t c = 0; columns[c]; c++)
        widths[c] = width(columns[c]);
    json_array_foreach(entries(answer), i, entry) for (size_t c = 0; columns[c]; c++)
    {
        cell(&b, entry, columns[c]);
        int w = width(b.data ? b.data : "");
        widths[c] = w > widths[c] ? w : widths[c];
    }
    print_row(&b, NULL, columns, widths);
    json_array_foreach(entries(answer), i, entry) print_row(&b, entry, columns, widths);
    buf_free(&b);
    return cmd_done(a->argv0);
}

static int print_entry(const struct admin_args *a, const json_t *answer)
{
    const json_t *list = entries(answer), *entry = list ? json_array_get(list, 0) : answer;
    const char *key;
    json_t *v;
    struct buf b = {0};
    json_object_foreach((json_t *)(uintptr_t)entry, key, v)
    {
        buf_clear(&b);
        put_text(&b, key);
        buf_printf(&b, "%*s", b.len < 16 ? (int)(16 - b.len) : 1, "");
        put_value(&b, v);
        puts(b.data ? b.data : "");
    }
    buf_free(&b);
    return cmd_done(a->argv0);
}

int admin_get(const struct admin_args *a, const char *kind, const char *const *columns)
{
    struct buf url = {0};
    json_t *answer = NULL;
    int status = 0, code;
    admin_url(&url, kind, a->n_args ? a->arg[0] : NULL);
    if (!admin_send(a, "GET", &url, NULL, &status, &answer, &code))
        return code;
    code = a->n_args ? print_entry(a, answer) : print_table(a, answer, columns);
    json_decref(answer);
    return code;
}
