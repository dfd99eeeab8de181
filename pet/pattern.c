/* pattern.c - regular expressions from outside, on PCRE2 and a budget.
 *
 * One thread at a time for all patterns of one budget. PCRE2's interpreter calls back before every item of a pattern,
 * which counts the steps, whatever the machine; a configuration that needs more than MAX_STEPS for all its
 * modules is refused. Heap and depth are limited too, and the compiled patterns together stay under MAX_COMPILED.
 * Python's syntax and PCRE2's are the same for what module patterns use (groups, classes, anchors, named groups).
 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "pet/pattern.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "common/buf.h"

enum { MAX_KEY = 4096, MAX_COMPILED = 8 << 20, MAX_HEAP_KIB = 4096, MAX_DEPTH = 10000 };
#define MAX_STEPS 5000000u

struct pattern {
    pcre2_code *code;
    pcre2_match_data *data;
    pcre2_match_context *ctx;
    struct pattern_budget *budget;
    char *text; /* the key, for messages */
};

static int count_step(pcre2_callout_block *block, void *budget)
{
    (void)block;
    struct pattern_budget *b = budget;
    return ++b->steps > MAX_STEPS ? PCRE2_ERROR_CALLOUT : 0;
}

void pattern_free(struct pattern *p)
{
    if (!p)
        return;
    pcre2_match_context_free(p->ctx);
    pcre2_match_data_free(p->data);
    pcre2_code_free(p->code);
    free(p->text);
    free(p);
}

static int compile_text(struct pattern *p, const char *before, const char *key, const char *after, struct err *e)
{
    struct buf b;
    buf_init(&b, 0);
    buf_printf(&b, "%s%s%s", before, key, after);
    if (b.failed) {
        buf_free(&b);
        return err_set(e, -ENOMEM, "out of memory");
    }
    int code = 0;
    PCRE2_SIZE at = 0;
    p->code = pcre2_compile((PCRE2_SPTR)b.data, b.len, PCRE2_UTF | PCRE2_NEVER_BACKSLASH_C | PCRE2_AUTO_CALLOUT, &code,
                            &at, NULL);
    buf_free(&b);
    if (p->code)
        return 0;
    PCRE2_UCHAR why[128] = "";
    pcre2_get_error_message(code, why, sizeof why);
    size_t skip = strlen(before);
    return err_set(e, -EINVAL, "pattern \"%.64s\" is not a regular expression that can be used: %s (at character %zu)",
                   key, (char *)why, at > skip ? at - skip : 0);
}

int pattern_compile(const char *before, const char *key, const char *after, struct pattern_budget *b,
                    struct pattern **out, struct err *e)
{
    if (strlen(key) > MAX_KEY)
        return err_set(e, -E2BIG, "pattern \"%.64s...\" is longer than %d characters", key, MAX_KEY);
    struct pattern *p = calloc(1, sizeof *p);
    if (!p || !(p->text = strdup(key))) {
        free(p);
        return err_set(e, -ENOMEM, "out of memory");
    }
    size_t size = 0;
    p->budget = b;
    int r = compile_text(p, before, key, after, e);
    if (!r) {
        pcre2_pattern_info(p->code, PCRE2_INFO_SIZE, &size);
        b->compiled += size;
        if (b->compiled > MAX_COMPILED)
            r = err_set(e, -E2BIG, "pattern \"%.64s\": the patterns together are too large", key);
    }
    if (!r) {
        p->data = pcre2_match_data_create_from_pattern(p->code, NULL);
        p->ctx = pcre2_match_context_create(NULL);
        if (!p->data || !p->ctx)
            r = err_set(e, -ENOMEM, "out of memory");
    }
    if (r) {
        pattern_free(p);
        return r;
    }
    pcre2_set_callout(p->ctx, count_step, b);
    pcre2_set_match_limit(p->ctx, MAX_STEPS);
    pcre2_set_heap_limit(p->ctx, MAX_HEAP_KIB);
    pcre2_set_depth_limit(p->ctx, MAX_DEPTH);
    *out = p;
    return 0;
}

int pattern_match(const struct pattern *p, const char *s, bool whole, bool *found, const char **idx, size_t *idx_len,
                  struct err *e)
{
    uint32_t opts = PCRE2_ANCHORED | (whole ? PCRE2_ENDANCHORED : 0);
    int r = pcre2_match(p->code, (PCRE2_SPTR)s, strlen(s), 0, opts, p->data, p->ctx);
    if (r == PCRE2_ERROR_NOMATCH) {
        *found = false;
        return 0;
    }
    if (r < 0)
        return err_set(e, -E2BIG, "pattern \"%.64s\" takes too many steps on \"%s\"", p->text, s);
    *found = true;
    int group = idx ? pcre2_substring_number_from_name(p->code, (PCRE2_SPTR) "idx") : -1;
    if (group >= 0 && group < r) {
        const PCRE2_SIZE *v = pcre2_get_ovector_pointer(p->data);
        if (v[2 * group] != PCRE2_UNSET && v[2 * group + 1] >= v[2 * group]) {
            *idx = s + v[2 * group];
            *idx_len = v[2 * group + 1] - v[2 * group];
        }
    }
    return 0;
}
