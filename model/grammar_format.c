/* grammar_format.c - string formats as automata.
 *
 * Used while a grammar is compiled, by the thread that compiles. Each is what the RFC that JSON Schema names says, or
 * less where the RFC has corners that readers disagree on (leap seconds, quoted local parts, IP literals other than
 * IPv6): texts written are always valid. A format whose automaton is exact may also be negated.
 */
#include "model/grammar_schema.h"

#include <stdio.h>
#include <string.h>

#define HEX "[0-9A-Fa-f]"
#define YEAR "(?:\\d{3}[1-9]|\\d\\d[1-9]\\d|\\d[1-9]\\d\\d|[1-9]\\d{3})"
#define LEAP "(?:\\d\\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
#define DATE                                                                                                           \
    "(?:" YEAR "-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\\d|30)|02-(?:0[1-9]|"     \
    "1\\d|2[0-8]))|" LEAP "-02-29)"
#define HOUR "(?:[01]\\d|2[0-3])"
#define TIME HOUR ":[0-5]\\d:[0-5]\\d(?:\\.\\d{1,9})?(?:Z|[+-]" HOUR ":[0-5]\\d)"
#define DURATION_TIME "T(?:\\d+H(?:\\d+M(?:\\d+S)?)?|\\d+M(?:\\d+S)?|\\d+S)"
#define BYTE "(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)"
#define IPV4 BYTE "(?:\\." BYTE "){3}"
#define H16 HEX "{1,4}"
#define LS32 "(?:" H16 ":" H16 "|" IPV4 ")"
#define IPV6                                                                                                           \
    "(?:(?:" H16 ":){6}" LS32 "|::(?:" H16 ":){5}" LS32 "|(?:" H16 ")?::(?:" H16 ":){4}" LS32 "|(?:(?:" H16            \
    ":){0,1}" H16 ")?::(?:" H16 ":){3}" LS32 "|(?:(?:" H16 ":){0,2}" H16 ")?::(?:" H16 ":){2}" LS32 "|(?:(?:" H16      \
    ":){0,3}" H16 ")?::" H16 ":" LS32 "|(?:(?:" H16 ":){0,4}" H16 ")?::" LS32 "|(?:(?:" H16 ":){0,5}" H16 ")?::" H16   \
    "|(?:(?:" H16 ":){0,6}" H16 ")?::)"
#define LABEL "[A-Za-z0-9](?:-?[A-Za-z0-9]){0,31}"                                 /* at most 63 characters */
#define SHORT "[A-Za-z0-9](?:-?[A-Za-z0-9]){0,15}"                                 /* 31 */
#define DOMAIN "(?:" LABEL "(?:\\." LABEL "){0,2}|" SHORT "(?:\\." SHORT "){0,5})" /* 191 */
#define ATOM "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
#define ESCAPED "%" HEX "{2}"
#define PCHAR "(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|" ESCAPED ")"
#define AUTHORITY                                                                                                      \
    "(?:(?:[A-Za-z0-9._~!$&'()*+,;=:-]|" ESCAPED ")*@)?(?:\\[" IPV6 "\\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|" ESCAPED       \
    ")*)(?::\\d*)?"
#define SEGMENTS "(?:/" PCHAR "*)*"
#define TAIL "(?:\\?(?:" PCHAR "|[/?])*)?(?:#(?:" PCHAR "|[/?])*)?"
#define HIER "//" AUTHORITY SEGMENTS "|/(?:" PCHAR "+" SEGMENTS ")?"
#define URI "[A-Za-z][A-Za-z0-9+.-]*:(?:" HIER "|(?:" PCHAR "+" SEGMENTS ")?)" TAIL
#define RELATIVE "(?:" HIER "|(?:(?:[A-Za-z0-9._~!$&'()*+,;=@-]|" ESCAPED ")+" SEGMENTS ")?)" TAIL
#define VARSPEC "(?:[A-Za-z0-9_]|" ESCAPED ")(?:\\.?(?:[A-Za-z0-9_]|" ESCAPED "))*(?:\\*|:[1-9]\\d{0,3})?"
#define POINTER "(?:/(?:[^~/]|~[01])*)*"

static const struct {
    const char *name, *regex;
    bool exact;
    const char *also; /* an expression that matches too */
} formats[] = {
    {"date", DATE, false, NULL},
    {"time", TIME, false, NULL},
    {"date-time", DATE "T" TIME, false, NULL},
    {"duration",
     "P(?:\\d+W|(?:\\d+Y(?:\\d+M(?:\\d+D)?)?|\\d+M(?:\\d+D)?|\\d+D)(?:" DURATION_TIME ")?|" DURATION_TIME ")", false,
     NULL},
    {"email", ATOM "(?:\\." ATOM ")*@" DOMAIN, false, "[^@]{1,64}@[^@]*[.][^@]*"},
    {"hostname", DOMAIN, false, NULL},
    {"ipv4", IPV4, true, NULL},
    {"ipv6", IPV6, true, NULL},
    {"uuid", HEX "{8}-" HEX "{4}-" HEX "{4}-" HEX "{4}-" HEX "{12}", true, NULL},
    {"uri", URI, false, NULL},
    {"uri-reference", "(?:" URI "|" RELATIVE ")", false, NULL},
    {"uri-template",
     "(?:[!#$&()*+,./0-9:;=?@A-Z_a-z~\\[\\]-]|" ESCAPED "|\\{[+#./;?&]?" VARSPEC "(?:," VARSPEC ")*\\})*", false, NULL},
    {"json-pointer", POINTER, true, NULL},
    {"relative-json-pointer", "(?:0|[1-9]\\d*)(?:#|" POINTER ")", true, NULL},
    {"byte", "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", false, NULL},
    {"password", NULL, true, NULL}, /* OpenAPI: a hint to hide the input */
    {"binary", NULL, true, NULL},   /* OpenAPI: any octets */
};

static int both(void *arg, const uint32_t *labels, uint32_t *out)
{
    (void)arg;
    *out = labels[0] && labels[1];
    return 0;
}

static int make(struct gctx *c, const char *regex, const char *also, struct gdfa **out)
{
    struct gdfa *part[2];
    int r = gdfa_regex(c, regex, strlen(regex), false, &part[0]);
    if (r || !also)
        return r ? r : (*out = part[0], 0);
    r = gdfa_regex(c, also, strlen(also), false, &part[1]);
    return r ? r : gdfa_product(c, part, 2, both, NULL, out);
}

int g_format(struct gctx *c, const char *name, bool negated, struct gdfa **out)
{
    size_t n = sizeof formats / sizeof *formats;
    for (size_t i = 0; i < n; i++) {
        if (strcmp(formats[i].name, name))
            continue;
        if (negated && !formats[i].exact)
            return 0;
        if (!formats[i].regex)
            return gdfa_any(c, out);
        struct gdfa **kept = &c->schema->format[i];
        int r = *kept ? 0 : make(c, formats[i].regex, formats[i].also, kept);
        if (!r)
            *out = *kept;
        return r;
    }
    return 0;
}
