#!/usr/bin/env python3
"""Compares the tokenizer with the PyPI package `tokenizers`, both directions.

For the demo tokenizer and for small ones of every kind, trained here on the public texts: ids of every text of
tokenizer_texts (whole files, lines, and the strings of blns.json) and of random valid UTF-8 strings, with and without
special tokens; the decoded text of those ids and of random ids, with and without special tokens. The SentencePiece
vocabularies are also written as GGUF and imported again, and must still give the ids of the tokenizer they came from.
RANDOM_STRINGS says how many random strings each kind gets (1,000; the demo tokenizer always gets 10,000). Below 10,000 the
ids with the post-processor, and without special tokens, are compared on every third text only.
TOK_FILTER is tests/unit/model/tok_filter of a build. Needs `tokenizers`; skips without it or the texts.
"""
import glob
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import harness
from harness import ROOT, Skip, case

try:
    import tokenizers
except ImportError:
    tokenizers = None

FILTER = os.environ.get("TOK_FILTER", str(ROOT / "build/tests/unit/model/tok_filter"))
RANDOM_STRINGS = int(os.environ.get("RANDOM_STRINGS", "1000"))


def texts(root):
    """Every text of tokenizer_texts: files whole and by line, blns strings, ggml's test inputs."""
    out = []
    for path in sorted(glob.glob(os.path.join(root, "**", "*"), recursive=True)):
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


def ours(where, flags, frames):
    """frames: bytes of each; gives (ids or None, [decoded, decoded without special, pieces]) of each."""
    data = b"".join(struct.pack("<I", len(f) // (4 if flags == "d" else 1)) + f for f in frames)
    p = subprocess.run([FILTER, where, flags], input=data, stdout=subprocess.PIPE, check=True)
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


def encoded(t, flags, pool):
    t.encode_special_tokens = flags == "0"
    return [e.ids for e in t.encode_batch(pool, add_special_tokens=flags == "3")]


def compare(where, n_random, source=None):
    """The tokenizer in directory `where` against `tokenizers` on tokenizer.json there, or on the file `source`."""
    if tokenizers is None:
        raise Skip("the package tokenizers is not installed")
    assert os.path.exists(FILTER), f"{FILTER} is not built"
    rng = random.Random(1)
    pool = texts(str(harness.data("tokenizer_texts"))) + [random_text(rng) for _ in range(n_random)]
    t = tokenizers.Tokenizer.from_file(str(source or os.path.join(where, "tokenizer.json")))
    scores = {k: Score() for k in ("ids", "ids+post", "ids plain", "text", "text plain", "random ids")}
    for flags, name in (("1", "ids"), ("3", "ids+post"), ("0", "ids plain")):
        some = pool if flags == "1" or n_random >= 10000 else pool[::3]
        want = encoded(t, flags, some)
        got = ours(where, flags, [s.encode() for s in some])
        for s, w, (ids, _) in zip(some, want, got):
            scores[name].add(w, ids, s)
        if name != "ids":
            continue
        for skip, name in ((False, "text"), (True, "text plain")):
            for s, w, (_, decoded) in zip(some, t.decode_batch(want, skip_special_tokens=skip), got):
                scores[name].add(w.encode(), decoded and decoded[skip], s)
    lists = random_ids(t, rng)
    got = ours(where, "d", [struct.pack("<%di" % len(i), *i) for i in lists])
    want = [t.decode_batch(lists, skip_special_tokens=k) for k in (False, True)]
    for ids, a, b, (_, decoded) in zip(lists, *want, got):
        scores["random ids"].add([a.encode(), b.encode()], decoded[:2], ids)
    line = ", ".join("%s %s" % (k, v) for k, v in scores.items())
    print("   " + line)
    assert all(s.same == s.total for s in scores.values()), line


def random_ids(t, rng):
    """Lists of ids, some beyond the vocabulary; where bytes have tokens, many of those."""
    top = t.get_vocab_size() + 5
    lists = [[rng.randrange(top) for _ in range(rng.randint(0, 30))] for _ in range(2000)]
    ids = [v for k, v in t.get_vocab().items() if len(k) == 6 and k.startswith("<0x")]
    if ids:
        lists += [[rng.choice(ids) if rng.random() < 0.8 else rng.randrange(top) for _ in range(rng.randint(0, 12))]
                  for _ in range(2000)]
    return lists


def trained(kind):
    """The directory of a tokenizer of that kind, trained on the public texts; gone when the program ends."""
    if tokenizers is None:
        raise Skip("the package tokenizers is not installed")
    harness.data("tokenizer_texts")
    sys.path.insert(0, str(ROOT / "tests/golden"))
    import make_tokenizer
    where = WORK / kind
    if not where.exists():
        where.mkdir()
        t = make_tokenizer.KINDS[kind](make_tokenizer.corpus(str(harness.DATA), 30000), 4000)
        t.save(str(where / "tokenizer.json"), pretty=False)
    return where


def gguf_value(kind, v):
    if kind == "str":
        return struct.pack("<Q", len(v.encode())) + v.encode()
    return struct.pack({"u32": "<I", "i32": "<i", "f32": "<f", "bool": "<?"}[kind], v)


def write_gguf(path, keys, tensors):
    """A GGUF file: keys {name: (type, value or list)}, tensors {name: shape as transformers has it}, all zero F32."""
    number = {"u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8, "list": 9}
    out = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(keys))]
    for key, (kind, v) in keys.items():
        out.append(gguf_value("str", key))
        if isinstance(v, list):
            out.append(struct.pack("<IIQ", number["list"], number[kind], len(v)))
        else:
            out.append(struct.pack("<I", number[kind]))
        out += [gguf_value(kind, x) for x in (v if isinstance(v, list) else [v])]
    at = 0
    for name, shape in tensors.items():
        out.append(gguf_value("str", name) + struct.pack("<I", len(shape)))
        out += [struct.pack("<Q", d) for d in reversed(shape)]
        out.append(struct.pack("<IQ", 0, at))
        n = 4
        for d in shape:
            n *= d
        at += (n + 31) // 32 * 32
    head = b"".join(out)
    Path(path).write_bytes(head + bytes(-len(head) % 32) + bytes(at))


def all_merges(vocab, score):
    """Every pair of pieces whose joined text is a piece, best score first: what SentencePiece merges by. In the order of
    transformers' converter: of equal scores the longer left part first, then the longer right part."""
    out = []
    for piece, s in score.items():
        pairs = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        pairs = sorted((vocab[a], vocab[b], a, b) for a, b in pairs if a in vocab and b in vocab)
        out += [(s, len(a), len(b), a, b) for _, _, a, b in pairs]
    return [[a, b] for *_, a, b in sorted(out, key=lambda x: x[:3], reverse=True)]


def through_gguf(kind, space_prefix):
    """A SentencePiece vocabulary as its converters see it: pieces with scores, so all merges; then as GGUF, and imported."""
    source = json.loads((trained(kind) / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = source["model"]["vocab"]
    pieces = sorted(vocab, key=vocab.get)
    types = [2 if p == "<unk>" else 3 if p in ("<s>", "</s>") else 6 if len(p) == 6 and p.startswith("<0x") else 1
             for p in pieces]
    scores = [float(-i) if t == 1 else 0.0 for i, t in enumerate(types)]
    plain = {p: s for p, s, t in zip(pieces, scores, types) if t == 1}
    source["model"]["merges"] = all_merges({p: vocab[p] for p in plain}, plain)
    original = WORK / f"{kind}.original.json"
    original.write_text(json.dumps(source), encoding="utf-8")
    n, d = len(pieces), 32
    name = {"attn_norm": (d,), "ffn_norm": (d,), "attn_q": (d, d), "attn_k": (d, d), "attn_v": (d, d), "attn_output": (d, d),
            "ffn_gate": (d, d), "ffn_up": (d, d), "ffn_down": (d, d)}
    path, out = WORK / f"{kind}.gguf", WORK / f"{kind}.imported"
    write_gguf(path, {
        "general.architecture": ("str", "llama"), "llama.block_count": ("u32", 1), "llama.context_length": ("u32", 64),
        "llama.embedding_length": ("u32", d), "llama.feed_forward_length": ("u32", d), "llama.attention.head_count": ("u32", 2),
        "llama.attention.head_count_kv": ("u32", 2), "llama.attention.layer_norm_rms_epsilon": ("f32", 1e-5),
        "tokenizer.ggml.model": ("str", "llama"), "tokenizer.ggml.tokens": ("str", pieces),
        "tokenizer.ggml.scores": ("f32", scores), "tokenizer.ggml.token_type": ("i32", types),
        "tokenizer.ggml.bos_token_id": ("u32", vocab["<s>"]), "tokenizer.ggml.eos_token_id": ("u32", vocab["</s>"]),
        "tokenizer.ggml.unknown_token_id": ("u32", vocab["<unk>"]), "tokenizer.ggml.add_space_prefix": ("bool", space_prefix),
    }, {"token_embd.weight": (n, d), "output_norm.weight": (d,), **{f"blk.0.{k}.weight": v for k, v in name.items()}})
    harness.cpet("import", path, out)
    return out, original


def add_kind(kind, text):
    def run():
        compare(str(trained(kind)), RANDOM_STRINGS)
    run.__name__, run.__doc__ = kind, text
    case(run)


@case
def demo():
    if not os.path.exists(os.path.join(harness.ORIGINAL, "tokenizer.json")):
        raise Skip(f"no demo backbone in {harness.ORIGINAL}")
    compare(harness.ORIGINAL, max(10000, RANDOM_STRINGS))


for k in ("smollm", "gpt2", "llama3", "qwen2", "spm_prepend", "spm_metaspace", "metaspace_split", "odd"):
    add_kind(k, f"small tokenizer of the kind {k}")


@case
def gguf_spm():
    out, original = through_gguf("spm_prepend", True)
    compare(str(out), RANDOM_STRINGS)
    compare(str(out), RANDOM_STRINGS, original)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as tmp:
        WORK = Path(tmp)
        harness.main()
