#!/usr/bin/env python3
"""Compares the tokenizer with the PyPI package `tokenizers`, both directions.

    test_tokenizer_oracle.py --filter BUILD/tests/unit/model/tok_filter [--dir DIR ...] [--random 10000]

For each tokenizer directory (by default small ones of every kind, trained here on the texts of the data directory): ids
of every text of tokenizer_texts (whole files, lines, and the strings of blns.json) and of random valid UTF-8 strings,
with and without special tokens; the decoded text of those ids and of random ids, with and without special tokens.
Prints identical/total for each and exits 1 where one differs. Needs `tokenizers`; exits 77 without it or the data.
"""
import argparse, glob, json, os, random, struct, subprocess, sys

try:
    import tokenizers
except ImportError:
    print("skipped: no `tokenizers`")
    sys.exit(77)

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "golden"))


def data_dir():
    return os.environ.get("CPET_DATA") or os.path.join(HERE, "..", "..", "..", "shared", "data")


def texts(root):
    """Every text of tokenizer_texts: files whole and by line, blns strings, ggml's test inputs."""
    out = []
    for path in sorted(glob.glob(os.path.join(root, "tokenizer_texts", "**", "*"), recursive=True)):
        if not os.path.isfile(path):
            continue
        s = open(path, "rb").read().decode("utf-8", "replace")
        out.append(s)
        if path.endswith("blns.json"):
            out += json.loads(s)
        elif path.endswith(".inp"):
            out += s.split("\n__ggml_vocab_test__\n")
        out += s.splitlines(keepends=True)
    return out


SPECIALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<unk>", "<tool>", "<word>", "<lr>"]
PLANES = [(0x20, 0x7E), (0x20, 0x7E), (0x0, 0x1F), (0x80, 0x24F), (0x250, 0x6FF), (0x900, 0xDFF), (0xE00, 0x11FF),
          (0x1E00, 0x20CF), (0x2000, 0x2BFF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFB00, 0xFFFF),
          (0x1F300, 0x1FAFF), (0x10000, 0x1FFFF), (0x20000, 0x2FFFF), (0x0, 0x10FFFF), (0x300, 0x36F)]


def random_text(rng):
    out = []
    for _ in range(rng.randint(0, 40)):
        k = rng.random()
        if k < 0.15:
            out.append(rng.choice([" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", " \n ", "'s", "'LL", "'re ", "\u200d",
                                   "\u2581", "\u0130", "\u180e", "\x00", "e\u0301", "<0x41>"]))
        elif k < 0.22:
            out.append(rng.choice(SPECIALS))
        elif k < 0.4:
            out.append("".join(rng.choice("abcdefghijklmnopqrstuvwxyzABC0123456789 .,'") for _ in range(rng.randint(1, 12))))
        else:
            lo, hi = rng.choice(PLANES)
            for _ in range(rng.randint(1, 4)):
                c = rng.randint(lo, hi)
                if not 0xD800 <= c <= 0xDFFF:
                    out.append(chr(c))
    return "".join(out)


class Reader:
    def __init__(self, data):
        self.d, self.at = data, 0

    def num(self):
        self.at += 4
        return struct.unpack_from("<I", self.d, self.at - 4)[0]

    def raw(self, n):
        self.at += n
        return self.d[self.at - n:self.at]


def ours(filt, where, flags, frames):
    """frames: bytes of each; gives (ids or None, [decoded, decoded without special, pieces]) of each."""
    data = b"".join(struct.pack("<I", len(f) // (4 if flags == "d" else 1)) + f for f in frames)
    p = subprocess.run([filt, where, flags], input=data, stdout=subprocess.PIPE, check=True)
    r, out = Reader(p.stdout), []
    for _ in frames:
        ids = None
        if flags != "d":
            n = r.num()
            if n == 0xFFFFFFFF:
                out.append((None, None))
                continue
            ids = list(struct.unpack("<%di" % n, r.raw(4 * n)))
        out.append((ids, [r.raw(r.num()) for _ in range(3)]))
    return out


class Score:
    def __init__(self):
        self.same, self.total, self.shown = 0, 0, 0

    def add(self, a, b, what):
        self.total += 1
        if a == b:
            self.same += 1
        elif self.shown < 3:
            self.shown += 1
            print("   differs:", repr(what)[:300], "\n     expected", repr(a)[:300], "\n     got     ", repr(b)[:300])

    def __str__(self):
        return "%d/%d" % (self.same, self.total)


def compare(filt, where, pool, rng):
    t = tokenizers.Tokenizer.from_file(os.path.join(where, "tokenizer.json"))
    scores = {k: Score() for k in ("ids", "ids+post", "ids plain", "text", "text plain", "random ids")}
    for flags, name in (("1", "ids"), ("3", "ids+post"), ("0", "ids plain")):
        t.encode_special_tokens = flags == "0"
        want = [t.encode(s, add_special_tokens=flags == "3").ids for s in pool]
        for s, w, (ids, decoded) in zip(pool, want, ours(filt, where, flags, [s.encode() for s in pool])):
            scores[name].add(w, ids, s)
            if name == "ids":
                scores["text"].add(t.decode(w, skip_special_tokens=False).encode(), decoded and decoded[0], s)
                scores["text plain"].add(t.decode(w, skip_special_tokens=True).encode(), decoded and decoded[1], s)
    top = t.get_vocab_size() + 5
    lists = [[rng.randrange(top) for _ in range(rng.randint(0, 30))] for _ in range(2000)]
    if any(v in t.get_vocab() for v in ("<0x41>",)):
        ids = [v for k, v in t.get_vocab().items() if k.startswith("<0x")]
        lists += [[rng.choice(ids) if rng.random() < 0.8 else rng.randrange(top) for _ in range(rng.randint(0, 12))]
                  for _ in range(2000)]
    for ids, (_, decoded) in zip(lists, ours(filt, where, "d", [struct.pack("<%di" % len(i), *i) for i in lists])):
        want = [t.decode(ids, skip_special_tokens=k).encode() for k in (False, True)]
        scores["random ids"].add(want, decoded[:2], ids)
    print("%-40s %s" % (os.path.basename(where.rstrip("/")), ", ".join("%s %s" % (k, v) for k, v in scores.items())))
    return all(s.same == s.total for s in scores.values())


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--filter", required=True)
    ap.add_argument("--dir", action="append", default=[])
    ap.add_argument("--random", type=int, default=10000)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--work", default="/tmp/cpet-tokenizers", help="where trained tokenizers are kept")
    a = ap.parse_args()
    if not os.path.isdir(os.path.join(data_dir(), "tokenizer_texts")):
        print("skipped: no tokenizer_texts in", data_dir())
        return 77
    dirs = a.dir
    if not dirs:
        import make_tokenizer
        dirs = make_tokenizer.train_all(data_dir(), a.work, 4000)
    rng = random.Random(a.seed)
    pool = texts(data_dir())
    n = len(pool)
    pool += [random_text(rng) for _ in range(a.random)]
    print("%d texts from the data directory, %d random strings, tokenizers %s" % (n, a.random, tokenizers.__version__))
    ok = True
    for d in dirs:
        ok = compare(a.filter, d, pool, rng) and ok
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
