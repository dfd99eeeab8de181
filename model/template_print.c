/* template_print.c - str(), repr() and json.dumps of a value, as Python writes them.
 *
 * Used by the thread that renders; texts are built in a struct buf bounded by the rendering's output limit. What always
 * holds: nesting is bounded by the rendering's depth, and each element costs a step, so a value that holds itself many
 * times over cannot run on.
 */
#include "model/template_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"

void float_repr(double f, char out[40])
{
    char digits[40];
    int exp10 = 0, prec = 1;
    if (isnan(f) || isinf(f)) {
        strcpy(out, isnan(f) ? "nan" : f < 0 ? "-inf" : "inf");
        return;
    }
    for (; prec <= 17; prec++) {
        snprintf(digits, sizeof digits, "%.*e", prec - 1, f);
        if (strtod(digits, NULL) == f)
            break;
    }
    exp10 = atoi(strchr(digits, 'e') + 1);
    if (prec > 17)
        prec = 17;
    if (exp10 < -4 || exp10 >= 16) {
        char *e = strchr(digits, 'e');
        snprintf(out, 40, "%.*se%c%02d", (int)(e - digits), digits, exp10 < 0 ? '-' : '+', abs(exp10));
        return;
    }
    int decimals = prec - 1 - exp10;
    snprintf(out, 40, "%.*f", decimals > 0 ? decimals : 1, f);
}

static void str_repr(const struct tstr *s, struct buf *b)
{
    char quote = memchr(s->p, '\'', s->len) && !memchr(s->p, '"', s->len) ? '"' : '\'';
    buf_append(b, &quote, 1);
    for (size_t i = 0; i < s->len;) {
        uint32_t cp;
        size_t n = utf8_next(s->p + i, s->len - i, &cp);
        if (cp == (uint32_t)quote || cp == '\\')
            buf_printf(b, "\\%c", (char)cp);
        else if (cp == '\n' || cp == '\r' || cp == '\t')
            buf_puts(b, cp == '\n' ? "\\n" : cp == '\r' ? "\\r" : "\\t");
        else if (uc_printable(cp))
            buf_append(b, s->p + i, n);
        else
            buf_printf(b, cp < 0x100 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x" : "\\U%08x", cp);
        i += n ? n : 1;
    }
    buf_append(b, &quote, 1);
}

static int print_list(struct tctx *c, const struct tlist *l, const char *open, const char *close, struct buf *out)
{
    int rc = charge(c, l->n);
    buf_puts(out, open);
    for (size_t i = 0; !rc && i < l->n; i++) {
        if (i)
            buf_puts(out, ", ");
        rc = tv_print(c, l->v[i], true, out);
    }
    buf_puts(out, close);
    return rc;
}

static int print_dict(struct tctx *c, const struct tdict *d, struct buf *out)
{
    int rc = charge(c, d->n);
    buf_puts(out, "{");
    for (size_t i = 0; !rc && i < d->n; i++) {
        if (i)
            buf_puts(out, ", ");
        rc = tv_print(c, d->e[i].k, true, out);
        buf_puts(out, ": ");
        if (!rc)
            rc = tv_print(c, d->e[i].v, true, out);
    }
    buf_puts(out, "}");
    return rc;
}

static int print_compound(struct tctx *c, struct tv v, struct buf *out)
{
    static const char *const views[] = {"dict_items([", "dict_keys([", "dict_values(["};
    int rc = 0;
    switch ((enum tv_kind)v.kind) {
    case TV_LIST:
        return print_list(c, v.l, "[", "]", out);
    case TV_TUPLE:
        return print_list(c, v.l, "(", v.l->n == 1 ? ",)" : ")", out);
    case TV_VIEW:
        return print_list(c, v.l, views[v.aux], "])", out);
    case TV_DICT:
        return print_dict(c, v.d, out);
    case TV_NS:
        buf_puts(out, "<Namespace ");
        rc = print_dict(c, v.d, out);
        buf_puts(out, ">");
        return rc;
    case TV_RANGE:
        buf_printf(out, "range(%lld, %lld", (long long)v.l->start,
                   (long long)((uint64_t)v.l->start + v.l->n * (uint64_t)v.l->step));
        if (v.l->step != 1)
            buf_printf(out, ", %lld", (long long)v.l->step);
        buf_puts(out, ")");
        return 0;
    case TV_MACRO:
        buf_printf(out, "<Macro '%s'>", c->t->names[v.macro->def->id]->p);
        return 0;
    default:
        return rfail(c, "a %s cannot be printed%s", tv_type((enum tv_kind)v.kind),
                     v.kind == TV_GEN ? "; make it a list first" : "");
    }
}

int tv_print(struct tctx *c, struct tv v, bool repr, struct buf *out)
{
    char num[40];
    int rc = 0;
    switch ((enum tv_kind)v.kind) {
    case TV_UNDEF:
        buf_puts(out, repr ? "Undefined" : "");
        break;
    case TV_NONE:
        buf_puts(out, "None");
        break;
    case TV_BOOL:
        buf_puts(out, v.b ? "True" : "False");
        break;
    case TV_INT:
        buf_printf(out, "%lld", (long long)v.i);
        break;
    case TV_FLOAT:
        float_repr(v.f, num);
        buf_puts(out, num);
        break;
    case TV_STR:
        rc = charge(c, v.s->len / 16);
        if (repr)
            str_repr(v.s, out);
        else
            buf_append(out, v.s->p, v.s->len);
        break;
    default:
        rc = enter(c);
        if (rc)
            return rc;
        rc = print_compound(c, v, out);
        c->depth--;
    }
    return rc ? rc : buf_check(c, out);
}

int tv_str(struct tctx *c, struct tv v, struct tv *out)
{
    if (v.kind == TV_STR) {
        *out = v;
        return 0;
    }
    struct buf b;
    buf_init(&b, c->max_output);
    int rc = tv_print(c, v, false, &b);
    if (rc) {
        buf_free(&b);
        return rc;
    }
    return str_of_buf(c, &b, out);
}

/* ---- JSON ---- */

struct dumper {
    struct tctx *c;
    struct buf b;
    const char *item_sep, *key_sep, *indent; /* indent NULL: on one line */
    size_t level;
    bool ascii, sort;
};

static void dump_str(struct dumper *d, const struct tstr *s)
{
    static const char from[] = "\"\\\n\r\t\f\b", *const to[] = {"\\\"", "\\\\", "\\n", "\\r", "\\t", "\\f", "\\b"};
    buf_puts(&d->b, "\"");
    for (size_t i = 0; i < s->len;) {
        uint32_t cp;
        size_t n = utf8_next(s->p + i, s->len - i, &cp);
        const char *f = cp && cp < 128 ? strchr(from, (char)cp) : NULL;
        if (f)
            buf_puts(&d->b, to[f - from]);
        else if (cp < 32 || (d->ascii && cp == 127) || (d->ascii && cp > 127 && cp < 0x10000))
            buf_printf(&d->b, "\\u%04x", cp);
        else if (d->ascii && cp >= 0x10000)
            buf_printf(&d->b, "\\u%04x\\u%04x", 0xD800 + ((cp - 0x10000) >> 10), 0xDC00 + ((cp - 0x10000) & 0x3FF));
        else
            buf_append(&d->b, s->p + i, n);
        i += n ? n : 1;
    }
    buf_puts(&d->b, "\"");
}

static void dump_newline(struct dumper *d)
{
    if (!d->indent)
        return;
    buf_puts(&d->b, "\n");
    for (size_t i = 0; i < d->level; i++)
        buf_puts(&d->b, d->indent);
}

static int dump(struct dumper *d, struct tv v);

static int dump_list(struct dumper *d, const struct tlist *l)
{
    int rc = 0;
    buf_puts(&d->b, "[");
    d->level++;
    for (size_t i = 0; !rc && i < l->n; i++) {
        if (i)
            buf_puts(&d->b, d->item_sep);
        dump_newline(d);
        rc = dump(d, list_get(l, i));
    }
    d->level--;
    if (l->n)
        dump_newline(d);
    buf_puts(&d->b, "]");
    return rc;
}

static int dump_key(struct dumper *d, struct tv k)
{
    if (k.kind == TV_STR) {
        dump_str(d, k.s);
        return 0;
    }
    if (k.kind == TV_TUPLE || k.kind > TV_STR || k.kind == TV_UNDEF)
        return rfail(d->c, "keys must be str, int, float, bool or None, not %s", tv_type((enum tv_kind)k.kind));
    buf_puts(&d->b, "\"");
    int rc = dump(d, k);
    buf_puts(&d->b, "\"");
    return rc;
}

static int by_key(const void *a, const void *b, void *arg)
{
    int cmp = 0, *failed = arg;
    const struct tpair *x = a, *y = b;
    if (x->k.kind != TV_STR || y->k.kind != TV_STR) {
        *failed = 1;
        return 0;
    }
    size_t n = x->k.s->len < y->k.s->len ? x->k.s->len : y->k.s->len;
    cmp = memcmp(x->k.s->p, y->k.s->p, n);
    return cmp ? cmp : (x->k.s->len > y->k.s->len) - (x->k.s->len < y->k.s->len);
}

static int dump_dict(struct dumper *d, const struct tdict *x)
{
    struct tpair *e = x->e;
    int rc = 0, mixed = 0;
    if (d->sort && x->n) {
        e = arena_memdup(d->c->arena, x->e, x->n * sizeof *e);
        if (!e)
            return rnomem(d->c);
        qsort_r(e, x->n, sizeof *e, by_key, &mixed);
        if (mixed)
            return rfail(d->c, "tojson sorts string keys only");
    }
    buf_puts(&d->b, "{");
    d->level++;
    for (size_t i = 0; !rc && i < x->n; i++) {
        if (i)
            buf_puts(&d->b, d->item_sep);
        dump_newline(d);
        rc = dump_key(d, e[i].k);
        buf_puts(&d->b, d->key_sep);
        if (!rc)
            rc = dump(d, e[i].v);
    }
    d->level--;
    if (x->n)
        dump_newline(d);
    buf_puts(&d->b, "}");
    return rc;
}

static int dump_scalar(struct dumper *d, struct tv v)
{
    char num[40];
    switch ((enum tv_kind)v.kind) {
    case TV_NONE:
        buf_puts(&d->b, "null");
        return 0;
    case TV_BOOL:
        buf_puts(&d->b, v.b ? "true" : "false");
        return 0;
    case TV_INT:
        buf_printf(&d->b, "%lld", (long long)v.i);
        return 0;
    case TV_FLOAT:
        float_repr(v.f, num);
        buf_puts(&d->b, isnan(v.f) ? "NaN" : isinf(v.f) ? (v.f < 0 ? "-Infinity" : "Infinity") : num);
        return 0;
    case TV_STR:
        dump_str(d, v.s);
        return charge(d->c, v.s->len / 16);
    default:
        return rfail(d->c, "Object of type %s is not JSON serializable", tv_type((enum tv_kind)v.kind));
    }
}

static int dump(struct dumper *d, struct tv v)
{
    int rc = charge(d->c, 1);
    if (rc)
        return rc;
    if (v.kind != TV_LIST && v.kind != TV_TUPLE && v.kind != TV_DICT)
        rc = dump_scalar(d, v);
    else if (!(rc = enter(d->c))) {
        rc = v.kind == TV_DICT ? dump_dict(d, v.d) : dump_list(d, v.l);
        d->c->depth--;
    }
    return rc ? rc : buf_check(d->c, &d->b);
}

static int dump_options(struct dumper *d, const struct args *a, char spaces[65])
{
    const struct tv *ascii = &a->v[0], *indent = &a->v[1], *sep = &a->v[2], *sort = &a->v[3];
    int64_t n;
    d->ascii = tv_given(*ascii) && tv_truth(*ascii);
    d->sort = tv_given(*sort) && tv_truth(*sort);
    if (indent->kind == TV_STR) {
        d->indent = indent->s->p;
    } else if (tv_as_int(*indent, &n)) {
        if (n > 64)
            return rfail(d->c, "tojson: an indent of more than 64");
        memset(spaces, ' ', 64);
        spaces[n > 0 ? n : 0] = 0;
        d->indent = spaces;
    } else if (tv_given(*indent) && indent->kind != TV_NONE) {
        return rfail(d->c, "tojson: indent must be a number, a string or none");
    }
    d->item_sep = d->indent ? "," : ", ";
    d->key_sep = ": ";
    if (!tv_given(*sep) || sep->kind == TV_NONE)
        return 0;
    if ((sep->kind != TV_LIST && sep->kind != TV_TUPLE) || sep->l->n != 2 || sep->l->v[0].kind != TV_STR ||
        sep->l->v[1].kind != TV_STR)
        return rfail(d->c, "tojson: separators must be two strings");
    d->item_sep = sep->l->v[0].s->p;
    d->key_sep = sep->l->v[1].s->p;
    return 0;
}

/* a: ensure_ascii, indent, separators, sort_keys. */
int json_dump(struct tctx *c, struct tv v, const struct args *a, struct tv *out)
{
    struct dumper d = {.c = c};
    char spaces[65];
    buf_init(&d.b, c->max_output);
    int rc = dump_options(&d, a, spaces);
    if (!rc)
        rc = dump(&d, v);
    if (rc) {
        buf_free(&d.b);
        return rc;
    }
    return str_of_buf(c, &d.b, out);
}
