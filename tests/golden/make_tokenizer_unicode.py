#!/usr/bin/env python3
"""Writes the tables of model/tokenizer_unicode.c: where the reference's Unicode is not the libraries'.

    make_tokenizer_unicode.py > ../../model/tokenizer_unicode.c

`tokenizers` matches patterns with a newer Unicode than PCRE2 10.42 (14.0), normalizes with an older one than utf8proc,
and lowers with the newest. The differences are asked of the installed `tokenizers`; Python's own tables (14.0 in Python
3.11) and libutf8proc (15.0) are what they are compared with.
"""
import ctypes, sys, unicodedata
from tokenizers import Regex, normalizers, pre_tokenizers

assert unicodedata.unidata_version == "14.0.0"
CHARS = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
u8 = ctypes.CDLL("libutf8proc.so.2")
u8.utf8proc_category_string.restype = ctypes.c_char_p
u8.utf8proc_tolower.restype = ctypes.c_int
u8.utf8proc_map.argtypes = [ctypes.c_char_p, ctypes.c_ssize_t, ctypes.POINTER(ctypes.c_void_p), ctypes.c_int]
u8.utf8proc_map.restype = ctypes.c_ssize_t
GC = {c: u8.utf8proc_category_string(ord(c)).decode() for c in CHARS}


def matched(pattern):
    kept = pre_tokenizers.Split(Regex(pattern), "removed").pre_tokenize_str("".join(CHARS))
    return set(CHARS) - set("".join(p for p, _ in kept))


def ranges(chars):
    out = []
    for x in sorted(map(ord, chars)):
        if out and out[-1][1] == x - 1:
            out[-1][1] = x
        else:
            out.append([x, x])
    return out


STAND = {3: dict(Lu=0x1E00, Ll=0x1E01, Lm=0x1D2C, Lo=0xE01, Mn=0x1DC0, Mc=0x903, Nd=0x966, No=0x2460, Po=0x2016, Pd=0x2010,
                 So=0x2300, Sm=0x2200, Sc=0x20A0, Sk=0x309B, Cf=0x200B, Nl=0x2160),
         4: dict(Pd=0x10EAD, Sc=0x11FDD, Lu=0x10400, Ll=0x10428, Lm=0x16B40, Lo=0x10450, Mn=0x101FD, Mc=0x11000, Nd=0x104A0, No=0x10107, Po=0x10100,
                 So=0x10137, Sm=0x1D6C1, Sk=0x1F3FB, Cf=0x110BD, Nl=0x10140)}


def newer():
    """(from, to, stand-in) of the characters that patterns know and Unicode 14 does not."""
    unassigned = {c for c in CHARS if unicodedata.category(c) == "Cn"}
    han = matched(r"\p{Han}")
    rows = {}
    for gc in ("Lu", "Ll", "Lm", "Lo", "Mn", "Mc", "Nd", "No", "Po", "Pd", "So", "Sm", "Sc", "Sk", "Cf", "Nl"):
        for c in matched(r"\p{%s}" % gc) & unassigned:
            n = len(c.encode())
            rows[ord(c)] = 0x20000 if c in han and n == 4 and gc == "Lo" else STAND[n][gc]
    out = []
    for c in sorted(rows):
        if out and out[-1][1] == c - 1 and out[-1][2] == rows[c]:
            out[-1][1] = c
        else:
            out.append([c, c, rows[c]])
    return out


def cut_alone(pre):
    return {c for c in CHARS if len(pre.pre_tokenize_str("a" + c + "a")) == 3}


def u8_map(s, options):
    out = ctypes.c_void_p()
    b = s.encode()
    return ctypes.string_at(out, u8.utf8proc_map(b, len(b), ctypes.byref(out), options)).decode()


def unknown_to_norm():
    """Characters that the reference's normalizers take for unassigned."""
    bad = {chr(0x11930)}  # the second half of a pair that composes only in newer tables
    for cls, opt in ((normalizers.NFC, 10), (normalizers.NFD, 18), (normalizers.NFKC, 14), (normalizers.NFKD, 22)):
        n = cls()
        bad |= {c for c in CHARS if n.normalize_str(c) != u8_map(c, opt)}
        if opt in (10, 18):
            for c in CHARS:
                if GC[c][0] in "MC" and ord(c) > 0x7F and GC[c] != "Co":
                    for s in ("a\u0301", "a", "a\u0334"):
                        for e in ("", "\u0334", "\u0316", "\u0301", "\u0345", "\u093c", "\u094d"):
                            if n.normalize_str(s + c + e) != u8_map(s + c + e, opt):
                                bad.add(c)
    return bad


def table(name, what, rows, fmt):
    print("/* %s */" % what)
    print("static const struct tok_range %s[] = {" % name)
    line = "   "
    for r in rows:
        cell = " " + fmt % tuple(r) + ","
        if len(line) + len(cell) > 118:
            print(line)
            line = "   "
        line += cell
    print(line)
    print("};\n")


def main():
    numeric = cut_alone(pre_tokenizers.Digits(individual_digits=True))
    punct = cut_alone(pre_tokenizers.Punctuation())
    word = {c for c in CHARS if len(pre_tokenizers.Whitespace().pre_tokenize_str("a" + c + "a")) == 1}
    ascii_punct = set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
    ours_word = {c for c in CHARS if GC[c] in ("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "Pc") or
                 c in "\u200c\u200d" or any(a <= ord(c) <= b for a, b in ((0x24B6, 0x24E9), (0x1F130, 0x1F149),
                                                                          (0x1F150, 0x1F169), (0x1F170, 0x1F189)))}
    lower = normalizers.Lowercase()
    low = []
    for c in CHARS:
        s = lower.normalize_str(c)
        if len(s) == 1 and ord(s) != u8.utf8proc_tolower(ord(c)):
            delta = ord(s) - ord(c)
            if low and low[-1][1] == ord(c) - 1 and low[-1][2] == delta:
                low[-1][1] = ord(c)
            else:
                low.append([ord(c), ord(c), delta])
    print("""/* tokenizer_unicode.c - where the Unicode of `tokenizers` is not that of PCRE2 and utf8proc.
 *
 * Ids must not depend on which library knows which year's characters. A pattern sees a character that is newer than
 * PCRE2's tables as an older one of the same general category and length in UTF-8 (its stand-in); classes add or leave
 * out what the reference does; normalizers leave alone what the reference's older tables do not know. Written by
 * tests/golden/make_tokenizer_unicode.py; read-only, any thread.
 */
#include "model/tokenizer_impl.h"

#include <string.h>

#include "common/utf8.h"

struct tok_range {
    uint32_t from, to;
    int32_t value; /* stand-in, or the distance to the small letter */
};
""")
    table("newer", "Assigned after Unicode 14.0, with stand-ins.", newer(), "{0x%x, 0x%x, 0x%x}")
    table("numeric", "Numbers that utf8proc does not know.",
          ranges(numeric - {c for c in CHARS if GC[c][0] == "N"}), "{0x%x, 0x%x, 0}")
    table("punct", "Punctuation in the reference alone.",
          ranges(punct - {c for c in CHARS if GC[c][0] == "P"} - ascii_punct), "{0x%x, 0x%x, 0}")
    table("not_punct", "Punctuation in utf8proc alone.", ranges({c for c in CHARS if GC[c][0] == "P"} - punct),
          "{0x%x, 0x%x, 0}")
    table("word", "Word characters that utf8proc does not know.", ranges(word - ours_word), "{0x%x, 0x%x, 0}")
    table("no_form", "Without decomposition and combining class in the reference.", ranges(unknown_to_norm()),
          "{0x%x, 0x%x, 0}")
    table("lower", "Capitals that utf8proc does not know.", low, "{0x%x, 0x%x, %d}")
    print("""#define FIND(list, cp) find(list, sizeof list / sizeof *list, cp)

static const struct tok_range *find(const struct tok_range *list, size_t n, uint32_t cp)
{
    size_t lo = 0, hi = n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (list[mid].to < cp)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < n && list[lo].from <= cp ? &list[lo] : NULL;
}

bool tok_uni_numeric(uint32_t cp)
{
    return FIND(numeric, cp) != NULL;
}

int tok_uni_punct(uint32_t cp)
{
    return FIND(punct, cp) ? 1 : FIND(not_punct, cp) ? -1 : 0;
}

bool tok_uni_word(uint32_t cp)
{
    return FIND(word, cp) != NULL;
}

bool tok_uni_no_form(uint32_t cp)
{
    return FIND(no_form, cp) != NULL;
}

uint32_t tok_uni_lower(uint32_t cp)
{
    const struct tok_range *r = FIND(lower, cp);
    return r ? (uint32_t)((int32_t)cp + r->value) : 0;
}

bool tok_uni_has_newer(const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        if ((unsigned char)s[i] < 0xE0) { /* all of them take three bytes or more */
            i++;
            continue;
        }
        uint32_t cp = 0;
        size_t k = utf8_next(s + i, n - i, &cp);
        if ((cp < 0x3400 || cp >= 0xA700) && (cp < 0xAC00 || cp > 0xFFFF) && FIND(newer, cp))
            return true;
        i += k ? k : 1;
    }
    return false;
}

void tok_uni_stand_in(char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        uint32_t cp = 0;
        size_t k = utf8_next(s + i, n - i, &cp);
        const struct tok_range *r = k > 2 ? FIND(newer, cp) : NULL;
        if (r)
            utf8_put((uint32_t)r->value, s + i);
        i += k ? k : 1;
    }
}""")


if __name__ == "__main__":
    main()
