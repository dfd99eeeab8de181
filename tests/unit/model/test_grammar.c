/* test_grammar.c - grammars: each keyword by example, regular expressions, choices, limits, masks against acceptance.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/utf8.h"
#include "tests/unit/model/grammar_lib.h"

static struct glib lib;

static int open_lib(void **state)
{
    struct err e = {0};
    (void)state;
    int r = glib_open(GOLDEN_DIR, &lib, &e);
    if (r)
        print_error("%s\n", e.msg);
    return r;
}

static int close_lib(void **state)
{
    (void)state;
    glib_close(&lib);
    return 0;
}

static struct grammar *compiled(enum grammar_kind kind, const char *text)
{
    struct grammar *g = NULL;
    struct err e = {0};
    if (glib_compile(&lib, kind, text, strlen(text), &g, &e))
        fail_msg("%s: %s", text, e.msg);
    return g;
}

/* list: texts apart by a line end; "+" before those to take, "-" before the others. */
static void check(enum grammar_kind kind, const char *source, const char *list)
{
    struct grammar *g = compiled(kind, source);
    while (*list) {
        size_t n = strcspn(list, "\n"), at = 0;
        bool want = *list == '+';
        if (glib_accepts(&lib, g, list + 1, n - 1, &at) != want)
            fail_msg("%s: %s at byte %zu: %.*s", source, want ? "not taken" : "taken", at, (int)n - 1, list + 1);
        list += n + (list[n] != 0);
    }
    grammar_unref(g);
}

static void schema(const char *source, const char *list)
{
    check(GRAMMAR_JSON_SCHEMA, source, list);
}

static void refused(enum grammar_kind kind, const char *source, const char *why)
{
    struct grammar *g = NULL;
    struct err e = {0};
    int r = glib_compile(&lib, kind, source, strlen(source), &g, &e);
    if (!r)
        fail_msg("%s: compiled", source);
    if (!strstr(e.msg, why))
        fail_msg("%s: refused with: %s", source, e.msg);
}

static void test_types(void **state)
{
    (void)state;
    schema("true",
           "+1\n+\"a\"\n+null\n+true\n+false\n+[]\n+{}\n+-1.5e3\n+[1, [2], {\"a\": {}}]\n-\n-01\n-nul\n-{\"a\":1,"
           "\"a\":2}\n-[1,]\n-{,}\n-\"\\x\"\n- 1\n-1 ");
    static const char indented[] = "{\n  \"a\": 1,\n  \"b\": [\n    2\n  ]\n}", spaced[] = "{  \"a\": 1}";
    struct grammar *g = compiled(GRAMMAR_JSON_OBJECT, "");
    assert_true(glib_accepts(&lib, g, indented, sizeof indented - 1, NULL));
    assert_false(glib_accepts(&lib, g, spaced, sizeof spaced - 1, NULL));
    grammar_unref(g);
    schema("{\"type\":\"null\"}", "+null\n-1\n-true");
    schema("{\"type\":\"boolean\"}", "+true\n+false\n-null\n-truee");
    schema("{\"type\":\"integer\"}",
           "+0\n+-5\n+123456789012345678\n-1234567890123456789\n-1.5\n-1.0\n--0\n-00\n-1e3\n-+1");
    schema("{\"type\":\"number\"}", "+0\n+-5\n+1.5\n+1e5\n+1E-05\n+0.0\n+-0.5\n-.5\n-1.\n-1e\n-1e999\n-0x1");
    schema("{\"type\":[\"string\",\"null\"]}", "+\"x\"\n+null\n-1");
    schema("{\"type\":\"object\"}", "+{}\n+{\"a\":1}\n+{\"a\":{\"b\":[]}}\n-[]\n-1\n-{\"a\"}\n-{\"a\":}");
    schema("{\"type\":\"array\"}", "+[]\n+[1,\"a\",null]\n-{}\n-[");
    check(GRAMMAR_JSON_OBJECT, "", "+{}\n+{\"a\": [1, 2, {\"b\": null}]}\n-[]\n-1\n-\"a\"");
    refused(GRAMMAR_JSON_SCHEMA, "false", "no value");
    refused(GRAMMAR_JSON_SCHEMA, "{\"type\":\"text\"}", "#: type");
    refused(GRAMMAR_JSON_SCHEMA, "{", "schema:");
    refused(GRAMMAR_JSON_SCHEMA, "[]", "a schema is");
}

static void test_strings(void **state)
{
    (void)state;
    schema("{\"type\":\"string\"}", "+\"\"\n+\"\xc3\xa9\"\n+\"\\u00e9\\n\\\"\\\\\\u0001\\u007f\"\n-\"\\/"
                                    "\"\n-\"\\u0041\"\n-\"\\u0022\"\n+\"\\ud83d\\ude00\"\n+\"\xf0\x9f\x98\x80\"\n"
                                    "-\"\\ud83d\"\n-\"\\ude00\"\n-\"\\udc00\"\n-\"\\u002\"\n-\"\\u0000\"\n-\"\xc3\"\n-"
                                    "\"\xed\xa0\x80\"\n-\"\xc0\x80\"\n-"
                                    "\"a\tb\"\n-a");
    schema("{\"type\":\"string\",\"minLength\":2,\"maxLength\":3}",
           "+\"ab\"\n+\"abc\"\n+\"\xc3\xa9\xf0\x9f\x98\x80\"\n+\"\\u00e9\\ud83d\\ude00\"\n-\"a\"\n-\"abcd\"\n-\"\"");
    schema("{\"type\":\"string\",\"pattern\":\"^a+$\"}",
           "+\"a\"\n+\"aaa\"\n-\"\\u0061\"\n-\"\"\n-\"ab\"\n-\"\\u0062\"");
    schema("{\"type\":\"string\",\"pattern\":\"b\"}", "+\"abc\"\n+\"b\"\n-\"ac\"");
    schema("{\"type\":\"string\",\"pattern\":\"^[a-z]+$\",\"maxLength\":3,\"minLength\":2}",
           "+\"ab\"\n+\"abc\"\n-\"a\"\n-\"abcd\"");
    schema("{\"type\":\"string\",\"pattern\":\"^(ab)*$\",\"minLength\":3}", "+\"abab\"\n-\"ab\"\n-\"aba\"");
    schema("{\"type\":\"string\",\"not\":{\"pattern\":\"^a\"}}", "+\"b\"\n+\"\"\n-\"a\"\n-\"ab\"");
    schema("{\"type\":\"string\",\"not\":{\"enum\":[\"a\",\"ab\"]}}", "+\"b\"\n+\"\"\n+\"abc\"\n-\"a\"\n-\"ab\"");
    schema("{\"enum\":[\"red\",\"r\xc3\xa9\"]}", "+\"red\"\n+\"r\xc3\xa9\"\n+\"r\\u00e9\"\n-\"re\"\n-\"redd\"");
    refused(GRAMMAR_JSON_SCHEMA, "{\"type\":\"string\",\"minLength\":3,\"maxLength\":2}", "no value");
    refused(GRAMMAR_JSON_SCHEMA, "{\"type\":\"string\",\"pattern\":\"^(ab)*$\",\"minLength\":3,\"maxLength\":3}",
            "no value");
    refused(GRAMMAR_JSON_SCHEMA, "{\"properties\":{\"a\":{\"pattern\":\"(?=a)\"}}}", "#/properties/a");
    refused(GRAMMAR_JSON_SCHEMA, "{\"format\":\"colour\"}", "format \"colour\"");
}

static void test_formats(void **state)
{
    (void)state;
    schema("{\"type\":\"string\",\"format\":\"date\"}", "+\"2024-02-29\"\n+\"2000-02-29\"\n-\"2023-02-29\"\n-\"1900-02-"
                                                        "29\"\n-\"2024-13-01\"\n-\"2024-04-31\"\n-\"24-01-01\"");
    schema("{\"type\":\"string\",\"format\":\"date-time\"}",
           "+\"2024-02-29T12:00:00Z\"\n+\"2024-02-29T12:00:00.5+01:00\"\n-\"2024-02-29T25:00:00Z\"\n-\"2024-02-29T12:"
           "00:00\"");
    schema("{\"type\":\"string\",\"format\":\"time\"}", "+\"23:59:59Z\"\n-\"24:00:00Z\"\n-\"12:00\"");
    schema("{\"type\":\"string\",\"format\":\"uuid\"}",
           "+\"123e4567-e89b-12d3-a456-426614174000\"\n-\"123e4567e89b12d3a456426614174000\"");
    schema("{\"type\":\"string\",\"format\":\"ipv4\"}", "+\"127.0.0.1\"\n-\"256.0.0.1\"\n-\"1.2.3\"\n-\"01.2.3.4\"");
    schema("{\"type\":\"string\",\"format\":\"ipv6\"}",
           "+\"::1\"\n+\"2001:db8::8a2e:370:7334\"\n+\"::ffff:1.2.3.4\"\n-\"1::2::3\"\n-\"12345::\"");
    schema("{\"type\":\"string\",\"format\":\"email\"}",
           "+\"joe.bloggs@example.com\"\n+\"a.very.long.name.of.parts-and-some@mail.eu.example.co.uk\"\n-\"joe\"\n-\"."
           "joe@example.com\"\n-\"a@b@c.d\"");
    schema("{\"type\":\"string\",\"format\":\"hostname\"}",
           "+\"a.b.c.example.co.uk\"\n+\"localhost\"\n-\"-a\"\n-\"a-\"\n-\"a..b\"\n-\"\"");
    schema("{\"type\":\"string\",\"format\":\"uri\"}",
           "+\"https://example.com/a?b=c#d\"\n+\"urn:a:b\"\n-\"a b\"\n-\"/a\"\n-\"http:// x\"");
    schema("{\"type\":\"string\",\"format\":\"duration\"}",
           "+\"P1DT12H\"\n+\"P4W\"\n+\"PT36H\"\n-\"P\"\n-\"P1\"\n-\"PT\"\n-\"1D\"");
    schema("{\"type\":\"string\",\"not\":{\"format\":\"ipv4\"}}", "+\"a\"\n-\"1.2.3.4\"");
    schema("{\"type\":\"integer\",\"format\":\"int32\"}", "+2147483647\n-2147483648\n+-2147483648");
    refused(GRAMMAR_JSON_SCHEMA, "{\"not\":{\"format\":\"email\"},\"type\":\"string\"}", "under not");
}

static void test_numbers(void **state)
{
    (void)state;
    schema("{\"type\":\"integer\",\"minimum\":3,\"maximum\":12}", "+3\n+9\n+10\n+12\n-2\n-13\n-100\n--5\n-30");
    schema("{\"type\":\"integer\",\"minimum\":-12,\"exclusiveMaximum\":-3}", "+-12\n+-4\n--3\n--13\n-0\n-4");
    schema("{\"type\":\"integer\",\"minimum\":-5,\"maximum\":5}", "+-5\n+0\n+5\n--6\n-6\n-50");
    schema("{\"type\":\"number\",\"minimum\":0,\"maximum\":1}", "+0\n+1\n+0.5\n+1.0\n-1.01\n-2\n--0.1");
    schema("{\"type\":\"number\",\"exclusiveMinimum\":0.3}", "+0.31\n+1\n-0.3\n-0.30\n-0.2\n-0.300000000000000000001");
    schema("{\"type\":\"number\",\"minimum\":0}", "+0\n+1e-5\n+12.5\n--1\n--1e-5");
    schema("{\"type\":\"number\",\"exclusiveMinimum\":0}", "+1e-5\n+0.001\n-0\n-0.0\n-0e5\n--1");
    schema("{\"type\":\"integer\",\"multipleOf\":7}", "+0\n+7\n+-14\n+700\n-1\n-15\n-8");
    schema("{\"type\":\"number\",\"multipleOf\":0.01}", "+0\n+1.25\n+1.2\n+3\n-1.255\n-0.001");
    schema("{\"type\":\"number\",\"multipleOf\":2.5}", "+0\n+2.5\n+5\n+5.0\n-2\n-2.4");
    schema("{\"type\":\"integer\",\"allOf\":[{\"multipleOf\":4},{\"multipleOf\":6}]}", "+12\n+24\n-4\n-6\n-18");
    schema("{\"type\":\"integer\",\"not\":{\"multipleOf\":3}}", "+1\n+2\n-0\n-3\n-33");
    schema("{\"not\":{\"type\":\"integer\"},\"type\":\"number\"}", "+1.5\n-1\n-1.0\n-10\n-94788860743231575.9");
    schema("{\"type\":\"integer\",\"not\":{\"enum\":[2,4]},\"minimum\":1,\"maximum\":5}", "+1\n+3\n+5\n-2\n-4\n-0");
    schema("{\"enum\":[1,2.5,-3]}", "+1\n+2.5\n+-3\n-2\n-3\n-25");
    schema("{\"minimum\":1,\"exclusiveMinimum\":true,\"type\":\"integer\"}", "+2\n-1");
    schema("{\"type\":\"number\",\"maximum\":1e308}", "+5\n+123456\n+-1");
    refused(GRAMMAR_JSON_SCHEMA, "{\"type\":\"integer\",\"minimum\":3,\"maximum\":2}", "no value");
    refused(GRAMMAR_JSON_SCHEMA, "{\"type\":\"integer\",\"minimum\":1,\"maximum\":6,\"multipleOf\":7}", "no value");
    refused(GRAMMAR_JSON_SCHEMA, "{\"multipleOf\":0}", "multipleOf must be");
}

static void test_objects(void **state)
{
    (void)state;
    schema(
        "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"},\"b\":{\"type\":\"string\"},\"c\":{}},"
        "\"required\":[\"b\"],\"additionalProperties\":false}",
        "+{\"a\":1,\"b\":\"x\",\"c\":null}\n+{\"b\":\"x\"}\n+{\"a\": 1, \"b\": "
        "\"x\"}\n+{\"b\":\"\",\"c\":[]}\n-{\"a\":1}\n-{}\n"
        "-{\"b\":\"x\",\"a\":1}\n-{\"b\":\"x\",\"d\":1}\n-{\"b\":\"x\",\"b\":\"y\"}\n-{\"b\":1}\n-{\"\\u0062\":\"x\"}");
    schema("{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"}}}",
           "+{}\n+{\"a\":1}\n+{\"a\":1,\"b\":2}\n+{\"b\":2}\n+{\"ab\":2}\n-{\"a\":\"x\"}\n-{\"b\":2,\"a\":\"x\"}\n-{"
           "\"b\":1,\"b\":2}");
    schema("{\"type\":\"object\",\"additionalProperties\":{\"type\":\"integer\"},\"properties\":{\"a\":{\"type\":"
           "\"string\"}}}",
           "+{\"a\":\"x\",\"b\":1}\n+{\"b\":1}\n-{\"b\":\"x\"}\n-{\"a\":1}");
    schema("{\"type\":\"object\",\"patternProperties\":{\"^x\":{\"type\":\"integer\"},\"y$\":{\"minimum\":5}},"
           "\"additionalProperties\":false}",
           "+{\"x\":1}\n+{\"xy\":5}\n+{\"y\":\"s\"}\n-{\"xy\":4}\n-{\"xy\":\"s\"}\n-{\"z\":1}\n-{\"x\":1,\"x\":2}");
    schema("{\"type\":\"object\",\"patternProperties\":{\"^[ab]$\":{}},\"additionalProperties\":false,"
           "\"minProperties\":2}",
           "+{\"a\":1,\"b\":2}\n+{\"b\":1,\"a\":2}\n-{\"a\":1}\n-{\"a\":1,\"a\":2}");
    schema("{\"type\":\"object\",\"minProperties\":1,\"maxProperties\":2}",
           "+{\"a\":1}\n+{\"a\":1,\"b\":2}\n-{}\n-{\"a\":1,\"b\":2,\"c\":3}");
    schema("{\"type\":\"object\",\"properties\":{\"a\":{},\"b\":{},\"c\":{}},\"required\":[\"c\"],\"minProperties\":2,"
           "\"maxProperties\":2,\"additionalProperties\":false}",
           "+{\"a\":1,\"c\":1}\n+{\"b\":1,\"c\":1}\n-{\"c\":1}\n-{\"a\":1,\"b\":1}\n-{\"a\":1,\"b\":1,\"c\":1}");
    schema("{\"type\":\"object\",\"propertyNames\":{\"maxLength\":2}}",
           "+{\"ab\":1}\n+{\"a\":1,\"b\":1}\n-{\"abc\":1}");
    schema("{\"type\":\"object\",\"propertyNames\":{\"enum\":[\"foo\",\"bar\"]}}",
           "+{}\n+{\"foo\":1}\n+{\"foo\":1,\"bar\":2}\n+{\"bar\":1,\"foo\":2}\n-{\"foo\":1,\"foo\":2}\n-{\"f\":1}");
    schema("{\"type\":\"object\",\"properties\":{\"a\":{},\"b\":{}},\"additionalProperties\":false,"
           "\"dependentRequired\":{\"a\":[\"b\"]}}",
           "+{}\n+{\"b\":1}\n+{\"a\":1,\"b\":1}\n-{\"a\":1}");
    schema("{\"type\":\"object\",\"properties\":{\"a\":false,\"b\":{}}}", "+{\"b\":1}\n+{\"c\":1}\n-{\"a\":1}");
    schema("{\"type\":\"object\",\"required\":[\"z\"]}", "+{\"z\":1}\n+{\"z\":1,\"y\":2}\n-{}\n-{\"y\":2}");
    refused(GRAMMAR_JSON_SCHEMA, "{\"type\":\"object\",\"required\":[\"a\"],\"properties\":{\"a\":false}}", "no value");
    refused(GRAMMAR_JSON_SCHEMA, "{\"type\":\"array\",\"items\":[{}],\"unevaluatedItems\":false}", "unevaluatedItems");
    refused(GRAMMAR_JSON_SCHEMA, "{\"unevaluatedProperties\":false,\"allOf\":[{}],\"type\":\"object\"}",
            "unevaluatedProperties");
}

static void test_arrays(void **state)
{
    (void)state;
    schema("{\"type\":\"array\",\"items\":{\"type\":\"integer\"},\"minItems\":1,\"maxItems\":2}",
           "+[1]\n+[1,2]\n+[1, 2]\n-[]\n-[1,2,3]\n-[\"a\"]");
    schema("{\"type\":\"array\",\"prefixItems\":[{\"type\":\"integer\"},{\"type\":\"string\"}],\"items\":false}",
           "+[]\n+[1]\n+[1,\"a\"]\n-[\"a\"]\n-[1,\"a\",2]");
    schema("{\"type\":\"array\",\"items\":[{\"type\":\"integer\"}],\"additionalItems\":{\"type\":\"string\"}}",
           "+[1]\n+[1,\"a\",\"b\"]\n-[1,2]");
    schema("{\"type\":\"array\",\"contains\":{\"type\":\"integer\"}}", "+[1]\n+[\"a\",1]\n+[1,\"a\",2]\n-[]\n-[\"a\"]");
    schema("{\"type\":\"array\",\"contains\":{\"type\":\"integer\"},\"minContains\":2,\"maxContains\":2}",
           "+[1,2]\n+[1,\"a\",2]\n-[1]\n-[1,2,3]");
    schema("{\"type\":\"array\",\"contains\":{\"const\":1},\"maxItems\":2}", "+[1]\n+[2,1]\n+[1,2]\n-[2,3]\n-[2,3,1]");
    schema("{\"const\":[1,{\"a\":\"b\"}]}", "+[1,{\"a\":\"b\"}]\n-[1]\n-[1,{}]");
    schema("{\"type\":\"array\",\"not\":{\"items\":{\"type\":\"integer\"}}}", "+[\"a\"]\n+[1,\"a\"]\n-[]\n-[1,2]");
    schema("{\"type\":\"array\",\"uniqueItems\":true,\"maxItems\":1}", "+[]\n+[1]\n-[1,2]");
    schema("{\"type\":\"array\",\"uniqueItems\":true,\"items\":{\"enum\":[\"a\",\"ab\",\"c\"]}}",
           "+[]\n+[\"ab\",\"a\",\"c\"]\n+[\"a\"]\n-[\"a\",\"a\"]\n-[\"a\",\"\\u0061\"]\n-[\"a\",\"c\",\"ab\",\"c\"]");
    schema("{\"type\":\"array\",\"uniqueItems\":true,\"items\":{\"type\":\"string\"},\"minItems\":2}",
           "+[\"a\",\"b\"]\n+[\"\",\"x y\", \"z\"]\n-[\"a\"]\n-[\"a\",\"b\",\"a\"]");
    schema("{\"type\":\"array\",\"uniqueItems\":true,\"items\":{\"type\":\"string\",\"maxLength\":1,\"pattern\":\"^[ab]"
           "?$\"}}",
           "+[\"\",\"a\",\"b\"]\n-[\"a\",\"b\",\"\",\"\"]\n-[\"aa\"]");
    refused(GRAMMAR_JSON_SCHEMA,
            "{\"type\":\"array\",\"uniqueItems\":true,\"items\":{\"enum\":[\"a\"]},\"minItems\":2}", "no value");
    refused(GRAMMAR_JSON_SCHEMA, "{\"properties\":{\"a\":{\"type\":\"array\",\"uniqueItems\":true}}}",
            "#/properties/a: uniqueItems");
    refused(GRAMMAR_JSON_SCHEMA, "{\"type\":\"array\",\"items\":false,\"minItems\":1}", "no value");
}

static void test_combinations(void **state)
{
    (void)state;
    schema("{\"anyOf\":[{\"type\":\"integer\",\"minimum\":5},{\"type\":\"string\"}]}", "+5\n+\"a\"\n-4\n-null");
    schema("{\"oneOf\":[{\"type\":\"integer\"},{\"type\":\"number\",\"minimum\":2}]}", "+1\n+2.5\n-3\n-1.5");
    schema("{\"oneOf\":[{\"type\":\"string\"},{\"type\":\"string\",\"maxLength\":2}]}", "+\"abc\"\n-\"ab\"");
    schema("{\"oneOf\":[{\"required\":[\"a\"]},{\"required\":[\"b\"]}],\"type\":\"object\",\"properties\":{\"a\":{},"
           "\"b\":{}},"
           "\"additionalProperties\":false}",
           "+{\"a\":1}\n+{\"b\":1}\n-{}\n-{\"a\":1,\"b\":2}");
    schema("{\"oneOf\":[{\"type\":\"object\",\"properties\":{\"k\":{\"const\":\"a\"},\"v\":{\"type\":\"integer\"}},"
           "\"required\":[\"k\",\"v\"]},"
           "{\"type\":\"object\",\"properties\":{\"k\":{\"const\":\"b\"},\"v\":{\"type\":\"string\"}},\"required\":["
           "\"k\",\"v\"]}]}",
           "+{\"k\":\"a\",\"v\":1}\n+{\"k\":\"b\",\"v\":\"x\"}\n-{\"k\":\"a\",\"v\":\"x\"}\n-{\"k\":\"c\",\"v\":1}");
    schema("{\"oneOf\":[{\"type\":\"object\",\"properties\":{\"s\":{\"type\":\"string\"},\"a\":{\"type\":\"array\"}},"
           "\"required\":[\"s\",\"a\"],"
           "\"additionalProperties\":false},{\"type\":\"object\",\"properties\":{\"s\":{\"type\":\"string\"}},"
           "\"required\":[\"s\"],"
           "\"additionalProperties\":false}]}",
           "+{\"s\":\"x\"}\n+{\"s\":\"x\",\"a\":[]}\n-{\"a\":[]}\n-{\"s\":\"x\",\"b\":1}");
    schema("{\"type\":\"object\",\"properties\":{\"a\":{},\"b\":{\"type\":\"integer\"}},\"additionalProperties\":false,"
           "\"not\":{\"additionalProperties\":{\"type\":\"integer\"}}}",
           "+{\"a\":\"x\"}\n+{\"a\":null,\"b\":1}\n-{}\n-{\"b\":1}\n-{\"a\":1}\n-{\"a\":1,\"b\":2}");
    schema("{\"type\":\"object\",\"properties\":{\"a\":{},\"ab\":{},\"c\":{}},\"additionalProperties\":false,"
           "\"not\":{\"patternProperties\":{\"^a\":{\"type\":\"integer\"}}}}",
           "+{\"a\":\"x\"}\n+{\"a\":1,\"ab\":null}\n-{}\n-{\"c\":null}\n-{\"a\":1,\"ab\":1}");
    refused(GRAMMAR_JSON_SCHEMA, "{\"type\":\"object\",\"not\":{\"additionalProperties\":{\"type\":\"integer\"}}}",
            "cannot be negated where");
    schema("{\"allOf\":[{\"properties\":{\"a\":{\"minimum\":2}}},{\"properties\":{\"a\":{\"type\":\"integer\","
           "\"maximum\":4}},\"required\":[\"a\"]}],"
           "\"type\":\"object\"}",
           "+{\"a\":3}\n-{\"a\":1}\n-{\"a\":5}\n-{}");
    schema("{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"},\"b\":{\"type\":\"integer\"}},\"if\":{"
           "\"properties\":{\"a\":{\"const\":1}},"
           "\"required\":[\"a\"]},\"then\":{\"required\":[\"b\"]},\"else\":{\"properties\":{\"b\":false}},"
           "\"additionalProperties\":false}",
           "+{\"a\":1,\"b\":2}\n+{\"a\":2}\n+{}\n-{\"a\":1}\n-{\"a\":2,\"b\":3}\n-{\"b\":3}");
    schema("{\"not\":{\"type\":[\"object\",\"array\"]}}", "+1\n+\"a\"\n-{}\n-[]");
    schema("{\"not\":{\"properties\":{\"a\":{\"type\":\"integer\"}},\"required\":[\"a\"]},\"type\":\"object\"}",
           "+{}\n+{\"a\":\"x\"}\n-{\"a\":1}");
    schema("{\"$ref\":\"#/$defs/"
           "t\",\"$defs\":{\"t\":{\"type\":\"object\",\"properties\":{\"v\":{\"type\":\"integer\"},\"n\":{\"$ref\":\"#/"
           "$defs/t\"}},"
           "\"required\":[\"v\"],\"additionalProperties\":false}}}",
           "+{\"v\":1}\n+{\"v\":1,\"n\":{\"v\":2,\"n\":{\"v\":3}}}\n-{\"v\":1,\"n\":{}}");
    schema("{\"$defs\":{\"a\":{\"$anchor\":\"x\",\"type\":\"integer\"}},\"$ref\":\"#x\"}", "+1\n-\"a\"");
    schema("{\"type\":\"integer\",\"title\":\"t\",\"description\":\"d\",\"default\":\"x\",\"examples\":[1],\"x-own\":{"
           "\"type\":\"string\"}}",
           "+1\n-\"x\"");
    schema("{\"$schema\":\"http://json-schema.org/draft-07/"
           "schema#\",\"definitions\":{\"a\":{\"type\":\"integer\"},\"b\":{\"minimum\":3}},"
           "\"oneOf\":[{\"$ref\":\"#/definitions/a\",\"type\":\"string\"},{\"$ref\":\"#/definitions/"
           "b\",\"type\":\"number\"}]}",
           "+1\n+\"a\"\n+3.5\n-3\n-2.5");
    refused(GRAMMAR_JSON_SCHEMA, "{\"enum\":[\"a b@c.d\"],\"not\":{\"format\":\"email\"}}", "not decided");
    refused(GRAMMAR_JSON_SCHEMA, "{\"$ref\":\"http://example.com/a.json\"}", "nothing is fetched");
    refused(GRAMMAR_JSON_SCHEMA, "{\"$ref\":\"#/nowhere\"}", "leads nowhere");
    refused(
        GRAMMAR_JSON_SCHEMA,
        "{\"properties\":{\"a\":{\"$ref\":\"#/properties/a\"}},\"required\":[\"a\"],\"type\":\"object\",\"not\":{}}",
        "no value");
    refused(GRAMMAR_JSON_SCHEMA, "{\"type\":\"object\",\"required\":[\"a\"],\"properties\":{\"a\":{\"$ref\":\"#\"}}}",
            "no value");
}

static void regex(const char *source, const char *list)
{
    check(GRAMMAR_REGEX, source, list);
}

/* 121 alternatives that a required property tells apart: no pair is looked at twice. */
static void test_wide(void **state)
{
    struct buf b = {0};
    (void)state;
    buf_puts(&b, "{\"oneOf\":[");
    for (int i = 0; i < 121; i++)
        buf_printf(&b,
                   "%s{\"type\":\"object\",\"properties\":{\"k\":{\"const\":\"v%d\"},\"x%d\":{\"type\":\"string\"}},"
                   "\"required\":[\"k\"]}",
                   i ? "," : "", i, i);
    buf_puts(&b, "]}");
    schema(b.data, "+{\"k\":\"v7\",\"x7\":\"y\"}\n+{\"k\":\"v120\",\"x120\":\"\"}\n-{\"k\":\"v7\",\"x7\":1}\n-{\"k\":"
                   "\"v121\"}\n-{}");
    buf_free(&b);
}

static void test_regex(void **state)
{
    (void)state;
    regex("a|bc", "+a\n+bc\n-b\n-abc\n-");
    regex("^(yes|no)$", "+yes\n+no\n-y");
    regex("[a-c]{2,3}x?", "+ab\n+abc\n+abcx\n+abx\n-a\n-abcd");
    regex("\\d+(\\.\\d{2})?", "+1\n+12.34\n-12.3\n-.12");
    regex("(?:ab)*", "+\n+ab\n+abab\n-a");
    regex("(?P<y>\\d{4})-(?<m>\\d\\d)", "+2024-01\n-24-01");
    regex("[^a-z\\s]+", "+ABC\n+\xc3\xa9\n-a\n-A B");
    regex("\\u00e9\\x41\\u{1F600}\\ud83d\\ude00", "+\xc3\xa9"
                                                  "A\xf0\x9f\x98\x80\xf0\x9f\x98\x80\n-e");
    regex(".", "+a\n+\xe2\x82\xac\n-ab\n-");
    regex("a.*?b+?", "+ab\n+axxb\n-a");
    regex("a{2}{", "+aa{\n-aa");
    regex("[\\w.-]+@[a-z]+", "+a.b-c@x\n-@x");
    regex("(|a)b", "+b\n+ab\n-a");
    regex("a$|^b", "+a\n+b\n-ab");
    refused(GRAMMAR_REGEX, "(?=a)b", "lookahead");
    refused(GRAMMAR_REGEX, "(?<!a)b", "lookbehind");
    refused(GRAMMAR_REGEX, "(a)\\1", "backreferences");
    refused(GRAMMAR_REGEX, "\\bab", "word boundaries");
    refused(GRAMMAR_REGEX, "\\p{L}", "Unicode properties");
    refused(GRAMMAR_REGEX, "(?i)a", "kind of group");
    refused(GRAMMAR_REGEX, "a++", "possessive");
    refused(GRAMMAR_REGEX, "a**", "repeat of a repeat");
    refused(GRAMMAR_REGEX, "*a", "nothing to repeat");
    refused(GRAMMAR_REGEX, "(a", "without its )");
    refused(GRAMMAR_REGEX, "a)", "without its (");
    refused(GRAMMAR_REGEX, "[b-a]", "out of order");
    refused(GRAMMAR_REGEX, "[a", "without its ]");
    refused(GRAMMAR_REGEX, "[]a]", "empty class");
    refused(GRAMMAR_REGEX, "a\\", "at the end");
    refused(GRAMMAR_REGEX, "a^b", "no text matches");
    refused(GRAMMAR_REGEX, "(a|b)*a(a|b){30}", "states");
    refused(GRAMMAR_REGEX, "((a{1000}){1000}){1000}", "too large");
    refused(GRAMMAR_REGEX, "\xff", "UTF-8");
}

static void test_choice(void **state)
{
    static const struct grammar_text t[] = {{"yes", 3}, {"yesterday", 9}, {"no \xc3\xa9", 5}};
    struct grammar_spec s = {.kind = GRAMMAR_CHOICE, .choice = t, .n_choices = 3};
    struct grammar *g = NULL;
    struct err e = {0};
    (void)state;
    assert_int_equal(grammar_compile(lib.v, &s, NULL, &g, &e), 0);
    assert_true(glib_accepts(&lib, g, "yes", 3, NULL));
    assert_true(glib_accepts(&lib, g, "yesterday", 9, NULL));
    assert_true(glib_accepts(&lib, g, "no \xc3\xa9", 5, NULL));
    assert_false(glib_accepts(&lib, g, "yest", 4, NULL));
    assert_false(glib_accepts(&lib, g, "no", 2, NULL));
    grammar_unref(g);
    s.n_choices = 0;
    assert_int_equal(grammar_compile(lib.v, &s, NULL, &g, &e), -EINVAL);
    static const struct grammar_text bad = {"\xff", 1};
    s.choice = &bad, s.n_choices = 1;
    assert_int_equal(grammar_compile(lib.v, &s, NULL, &g, &e), -EINVAL);
}

static const char big[] = "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\",\"maxLength\":20},"
                          "\"age\":{\"type\":\"integer\","
                          "\"minimum\":0,\"maximum\":150},\"tags\":{\"type\":\"array\",\"items\":{\"enum\":[\"a\","
                          "\"b\",\"long tag\"]},\"maxItems\":4},"
                          "\"when\":{\"type\":\"string\",\"format\":\"date-time\"},\"more\":{\"type\":\"object\","
                          "\"patternProperties\":{\"^[ab]{1,2}$\":"
                          "{\"type\":\"number\"}},\"additionalProperties\":false,\"minProperties\":3}},\"required\":["
                          "\"name\",\"age\",\"more\"]}";

/* Every token of the vocabulary: allowed by the mask exactly where it is accepted. */
static void test_mask_is_accept(void **state)
{
    struct grammar *g = compiled(GRAMMAR_JSON_SCHEMA, big);
    static const char text[] = "{\"name\": \"J\xc3\xb6rg \\u00e9\", \"age\": 12, \"tags\": [\"long tag\", \"a\"], "
                               "\"when\": \"2024-02-29T12:00:00Z\", "
                               "\"more\": {\"a\": 1.5, \"ab\": 2, \"b\": -3e4}, \"other\": [true]}";
    (void)state;
    for (size_t n = 0; n < sizeof text; n += 3) {
        struct grammar_state *s = NULL, *probe = NULL;
        const uint32_t *mask;
        assert_int_equal(grammar_state_open(g, &s), 0);
        for (size_t i = 0; i < n; i++)
            assert_int_equal(grammar_accept(s, lib.byte[(unsigned char)text[i]]), 0);
        assert_int_equal(grammar_mask(s, &mask), 0);
        for (uint32_t id = n % 2; id < lib.vocab; id += 1 + (n % 5)) {
            assert_int_equal(grammar_state_open(g, &probe), 0);
            for (size_t i = 0; i < n; i++)
                (void)grammar_accept(probe, lib.byte[(unsigned char)text[i]]);
            bool ok = !grammar_accept(probe, (int32_t)id);
            if (ok != (mask[id / 32] >> (id % 32) & 1))
                fail_msg("after %zu bytes token %u is %s", n, id,
                         ok ? "accepted but masked" : "allowed but not accepted");
            grammar_state_close(probe);
            if (n > 60)
                id += 400;
        }
        grammar_state_close(s);
    }
    grammar_unref(g);
}

static void test_random(void **state)
{
    static const struct {
        enum grammar_kind kind;
        const char *text;
    } all[] = {{GRAMMAR_JSON_OBJECT, ""},
               {GRAMMAR_JSON_SCHEMA, big},
               {GRAMMAR_JSON_SCHEMA, "true"},
               {GRAMMAR_REGEX, "[a-z]{3,9}( [A-Z\xc3\xa9]+)*\\."}};
    (void)state;
    for (size_t k = 0; k < sizeof all / sizeof *all; k++) {
        struct grammar *g = compiled(all[k].kind, all[k].text);
        int done = 0;
        for (uint64_t seed = 0; seed < 40; seed++) {
            struct buf b = {0};
            bool ended = glib_random(&lib, g, seed, 60, 400, &b);
            assert_false(b.failed);
            done += ended;
            if (ended && !glib_accepts(&lib, g, b.data ? b.data : "", b.len, NULL))
                fail_msg("not taken again: %s", b.data);
            json_t *j = ended && all[k].kind != GRAMMAR_REGEX
                            ? json_loadb(b.data, b.len, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, NULL)
                            : NULL;
            if (ended && all[k].kind != GRAMMAR_REGEX && !j)
                fail_msg("not JSON: %s", b.data);
            json_decref(j);
            buf_free(&b);
        }
        assert_true(done > 10);
        grammar_unref(g);
    }
}

static void test_ends(void **state)
{
    struct grammar *g = compiled(GRAMMAR_JSON_SCHEMA, "{\"const\":true}");
    struct grammar_state *s = NULL;
    (void)state;
    assert_true(grammar_bytes(g) > 0);
    assert_int_equal(grammar_state_open(g, &s), 0);
    assert_false(grammar_over(s));
    assert_int_equal(grammar_accept(s, lib.eos), -EINVAL);
    assert_int_equal(grammar_accept(s, -1), -EINVAL);
    assert_int_equal(grammar_accept(s, 1 << 30), -EINVAL);
    for (const char *p = "true"; *p; p++)
        assert_int_equal(grammar_accept(s, lib.byte[(unsigned char)*p]), 0);
    assert_true(grammar_over(s));
    const uint32_t *mask;
    uint32_t n = 0;
    assert_int_equal(grammar_mask(s, &mask), 0);
    for (uint32_t i = 0; i < (lib.vocab + 31) / 32; i++)
        n += (uint32_t)__builtin_popcount(mask[i]);
    assert_int_equal(n, 1);
    assert_int_equal(grammar_accept(s, lib.eos), 0);
    assert_true(grammar_over(s));
    assert_int_equal(grammar_accept(s, lib.eos), -EINVAL);
    grammar_state_close(s);
    grammar_unref(g);
}

/* A state whose store is made anew again and again: in time that grows as the text does. */
static void test_long(void **state)
{
    enum { N = 40000 };
    static char text[N + 8];
    struct grammar *g =
        compiled(GRAMMAR_JSON_SCHEMA, "{\"type\":\"object\",\"patternProperties\":{\"^[a-z]*$\":{\"type\":\"null\"}},"
                                      "\"additionalProperties\":false}");
    size_t at, n = 0;
    (void)state;
    text[n++] = '{';
    text[n++] = '"';
    for (uint32_t x = 1; n < N; n++) {
        x = x * 1664525 + 1013904223;
        text[n] = (char)('a' + (x >> 16) % 26);
    }
    memcpy(text + n, "\":null}", 7);
    n += 7;
    assert_true(glib_accepts(&lib, g, text, n, &at));
    grammar_unref(g);
}

static void limited(const char *text, struct grammar_limits l, const char *why)
{
    struct grammar_spec s = {.kind = GRAMMAR_JSON_SCHEMA, .text = {text, strlen(text)}};
    struct grammar *g = NULL;
    struct err e = {0};
    assert_int_equal(grammar_compile(lib.v, &s, &l, &g, &e), -E2BIG);
    if (!strstr(e.msg, why))
        fail_msg("refused with: %s", e.msg);
}

static void test_limits(void **state)
{
    (void)state;
    limited(big, (struct grammar_limits){.max_bytes = 100}, "more than 100 bytes");
    limited(big, (struct grammar_limits){.max_nodes = 5}, "more than 5");
    limited(big, (struct grammar_limits){.max_states = 50}, "more than 50 states");
    limited(big, (struct grammar_limits){.max_steps = 5000}, "5000 steps");
    limited(big, (struct grammar_limits){.max_memory = 200000}, "200000 bytes");
    limited(big, (struct grammar_limits){.max_depth = 2}, "deep");
    static char many[30000 * 3 + 32] = "{\"pattern\":\"";
    size_t n = strlen(many);
    for (uint32_t cp = 0x3400; cp < 0x3400 + 26000; cp++)
        n += utf8_put(cp, many + n);
    memcpy(many + n, "\"}", 3);
    limited(many, (struct grammar_limits){0}, "steps");
    /* comparing values counts: of arrays within each other, and of numbers in every way to write them */
    static char same[1 << 17];
    n = (size_t)sprintf(same, "{\"enum\":[[0");
    for (int i = 1; i < 3000; i++)
        n += (size_t)sprintf(same + n, ",%d.%d", i, 1 + i % 9);
    n += (size_t)sprintf(same + n, "]],\"allOf\":[true");
    for (int i = 0; i < 300; i++)
        n += (size_t)sprintf(same + n, ",{\"uniqueItems\":true,\"title\":\"%d\"}", i);
    sprintf(same + n, "]}");
    limited(same, (struct grammar_limits){0}, "steps");
    n = (size_t)sprintf(same, "{\"$defs\":{\"e\":{\"enum\":[0");
    for (int i = 1; i < 2000; i++)
        n += (size_t)sprintf(same + n, ",[[1,2,3,4,5,6,7,8],%d]", i);
    n += (size_t)sprintf(same + n, "]}},\"anyOf\":[false");
    for (int i = 0; i < 1500; i++)
        n += (size_t)sprintf(same + n, ",{\"$ref\":\"#/$defs/e\",\"title\":\"%d\"}", i);
    sprintf(same + n, "]}");
    limited(same, (struct grammar_limits){0}, "steps");
    n = (size_t)sprintf(same, "{\"prefixItems\":[true");
    for (int i = 0; i < 1024; i++)
        n += (size_t)sprintf(same + n, ",true");
    sprintf(same + n, "]}");
    limited(same, (struct grammar_limits){0}, "more than 1024 items");
    struct err e = {0};
    struct grammar_vocab *v = NULL;
    assert_int_equal(grammar_vocab_create(lib.t, &lib.eos, 0, lib.vocab, &v, &e), -EINVAL);
    assert_int_equal(grammar_vocab_create(lib.t, &lib.eos, 1, 1, &v, &e), -EINVAL);
    grammar_unref(NULL);
    grammar_vocab_free(NULL);
    grammar_state_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_types),        cmocka_unit_test(test_strings),        cmocka_unit_test(test_formats),
        cmocka_unit_test(test_numbers),      cmocka_unit_test(test_objects),        cmocka_unit_test(test_arrays),
        cmocka_unit_test(test_combinations), cmocka_unit_test(test_regex),          cmocka_unit_test(test_wide),
        cmocka_unit_test(test_choice),       cmocka_unit_test(test_mask_is_accept), cmocka_unit_test(test_random),
        cmocka_unit_test(test_ends),         cmocka_unit_test(test_limits),         cmocka_unit_test(test_long)};
    return cmocka_run_group_tests(tests, open_lib, close_lib);
}
