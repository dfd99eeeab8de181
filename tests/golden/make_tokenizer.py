#!/usr/bin/env python3
"""Trains small tokenizers of every kind and writes golden ids for awkward strings.

    make_tokenizer.py DATA          writes tokenizer/KIND.json and tokenizer/KIND.gold beside this script

KIND.json is a tokenizer.json trained with the PyPI package `tokenizers` on the texts of DATA. KIND.gold holds one case
a line, three fields between tabs: the string as JSON, its ids with special tokens recognised, and what these ids decode
to as JSON. test_tokenizer.c checks all of them; tests/e2e/test_tokenizer.py trains larger ones with train_all.
"""
import glob, json, os, sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level(add_prefix_space=False, use_regex=True):
    return pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex)


def corpus(data, limit):
    out = []
    for path in sorted(glob.glob(os.path.join(data, "tokenizer_texts", "udhr", "*.txt"))):
        out.append(open(path, encoding="utf-8", errors="replace").read()[:limit])
    for name in ("tinyshakespeare", "gsm8k"):
        for path in sorted(glob.glob(os.path.join(data, name, "*")))[:3]:
            out.append(open(path, encoding="utf-8", errors="replace").read()[:20 * limit])
    return out


def special(names):
    return [AddedToken(n, special=True, normalized=False) for n in names]


def template(t, bos):
    return processors.TemplateProcessing(single=bos + " $A", special_tokens=[(bos, t.token_to_id(bos))])


def train(t, texts, vocab, specials, alphabet):
    tr = trainers.BpeTrainer(vocab_size=vocab, special_tokens=special(specials), initial_alphabet=alphabet, show_progress=False,
                             max_token_length=32)
    t.train_from_iterator(texts, tr)


def kind_smollm(texts, vocab):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()])
    t.decoder = decoders.ByteLevel()
    train(t, texts, vocab, CHATML, pre_tokenizers.ByteLevel.alphabet())
    return t


def kind_gpt2(texts, vocab):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = byte_level(add_prefix_space=True)
    t.decoder = decoders.ByteLevel()
    t.post_processor = processors.ByteLevel(trim_offsets=True)
    train(t, texts, vocab, CHATML[:1], pre_tokenizers.ByteLevel.alphabet())
    return t


def kind_llama3(texts, vocab):
    t = Tokenizer(models.BPE(ignore_merges=True))
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), byte_level(use_regex=False)])
    t.decoder = decoders.ByteLevel()
    train(t, texts, vocab, ["<|begin_of_text|>", "<|end_of_text|>"] + CHATML[1:], pre_tokenizers.ByteLevel.alphabet())
    t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template(t, "<|begin_of_text|>")])
    return t


def kind_qwen2(texts, vocab):
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"), byte_level(use_regex=False)])
    t.decoder = decoders.ByteLevel()
    train(t, texts, vocab, CHATML, pre_tokenizers.ByteLevel.alphabet())
    t.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return t


def spm_model(texts, vocab, pre):
    """Trained without byte fallback, then given the 256 byte tokens: what SentencePiece's own files look like."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    t.pre_tokenizer = pre
    texts = ["".join(c for c in s if ord(c) < 0x2000) for s in texts]
    train(t, texts, vocab - 256, ["<unk>", "<s>", "</s>"], [])
    j = json.loads(t.to_str())
    old = sorted(j["model"]["vocab"], key=j["model"]["vocab"].get)
    new = old[:3] + ["<0x%02X>" % b for b in range(256)] + old[3:]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in j["model"]["merges"]]
    t = Tokenizer(models.BPE(vocab={k: i for i, k in enumerate(new)}, merges=merges, unk_token="<unk>", fuse_unk=True,
                             byte_fallback=True))
    t.add_special_tokens(special(["<unk>", "<s>", "</s>"]))
    t.post_processor = template(t, "<s>")
    return t


def kind_spm_prepend(texts, vocab):
    t = spm_model(texts, vocab, pre_tokenizers.Metaspace())
    t.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    t.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    return t


def kind_spm_metaspace(texts, vocab):
    t = spm_model(texts, vocab, pre_tokenizers.Metaspace())
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    t.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    return t


def kind_metaspace_split(texts, vocab):
    """Metaspace cutting words, its own decoder, no byte fallback, unknown characters one by one."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=False))
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(" {2,}"), " "),
                                         normalizers.Strip()])
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.decoder = decoders.Metaspace()
    train(t, [s for s in texts if s.isascii()] or texts[-1:], vocab, ["<unk>", "<s>", "</s>"], [])
    t.add_tokens([AddedToken("<LR>", lstrip=True, rstrip=True, normalized=False), AddedToken("<word>", single_word=True),
                  AddedToken("Tool", normalized=True)])
    return t


def kind_odd(texts, vocab):
    """What is left: split behaviors, Punctuation, Whitespace, digits in groups, NFD, NFKD."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    t.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.NFKD(), normalizers.Strip(left=False, right=True)])
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split("\n", "merged_with_previous"), pre_tokenizers.Split(Regex("[,;]"), "merged_with_next"),
        pre_tokenizers.Split(Regex(r"[a-z]+"), "contiguous", invert=True), pre_tokenizers.Split("~", "removed"),
        pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.Whitespace()])
    train(t, [s for s in texts if s.isascii()] or texts[-1:], vocab, ["<unk>"], [])
    t.add_tokens([AddedToken("<lr>", lstrip=True, rstrip=True), AddedToken("<word>", single_word=True)])
    return t


KINDS = {k[5:]: v for k, v in list(globals().items()) if k.startswith("kind_")}


def train_all(data, work, vocab):
    dirs = []
    for name, make in KINDS.items():
        where = os.path.join(work, name)
        os.makedirs(where, exist_ok=True)
        make(corpus(data, 100000), vocab).save(os.path.join(where, "tokenizer.json"), pretty=False)
        dirs.append(where)
    return dirs


def cases(data):
    s = ["", " ", "  ", "   a", "a   ", "\t", "\n", "\r\n", "a\r\n\r\nb", "\n\n\n", " \n ", "a  b", "a   b    c", "\x00", "a\x00b",
         "1", "12", "123", "1234", "12345", " 1", "  1", "   12", "    123", "1 2  3   4", "3.14", "1,234,567", "-5", "2\u00b2",
         "\u0661\u0662\u0663", "x1y2", "Hello", "hello world", "Hello, World!", "it's I'LL we'Re they'VE 'Twas 'd'D", "don't",
         "DON'T", "I'\u017ft", "caf\u00e9", "cafe\u0301", "\u00c5\u212b A\u030a", "e\u0323\u0301 e\u0301\u0323", "\u1e9b\u0323",
         "\ufb01 \ufdfa", "\uac00\u1100\u1161\u11a8", "\u4f60\u597d\uff0c\u4e16\u754c", "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8",
         "\ud55c\uad6d\uc5b4", "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22", "\u0928\u092e\u0938\u094d\u0924\u0947",
         "\u0645\u0631\u062d\u0628\u0627", "\u05e9\u05dc\u05d5\u05dd", "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467",
         "\U0001f44d\U0001f3fd", "\U0001f1eb\U0001f1f7", "\u200b", "\u00a0", "\u3000x", "\u180e", "a\u00adb", "\ufeff",
         "\u2581", "\u2581a \u2581", "<0x41>", "<unk>", "<s>", " <s> ", "<s>a</s>", "<|im_start|>user\nhi<|im_end|>\n",
         "<|endoftext|>", "a<|endoftext|>b", "<|endoftext|><|endoftext|>", "<|im_start", "<|im_start|", "<|begin_of_text|>x",
         "<tool>", "<tool>x<tool>", "<word>", "a<word>", " <word> ", "<word>a", "-<word>-", "a <lr> b", "a  <LR>  b", "tool Tool",
         "\u0130stanbul", "\u03a3\u03a3", "~a~b~", "a,b;c", "x\ny\nz", "def f(x):\n    return x ** 2\n", "http://a.b/c?d=e&f",
         "!!!", "...", "#$%^&*()", "a_b-c", "\u201cq\u201d\u2019", "\u20ac5", "A" * 40, "ab" * 30, " " * 33, "\n" * 20, "7" * 20,
         "\U0010ffff", "\ue000", "\ufffd", "\u0301", "\u0301a", "x\u0334\u0301\u0345"]
    blns = json.load(open(os.path.join(data, "tokenizer_texts", "blns.json"), encoding="utf-8"))
    rest = [b for b in blns if 0 < len(b) < 80]
    s += rest[:: max(1, len(rest) // 95)]
    return s


def main():
    data = sys.argv[1]
    where = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenizer")
    os.makedirs(where, exist_ok=True)
    for name, make in KINDS.items():
        t = make(corpus(data, 3000), 700)
        text = t.to_str(pretty=False)
        open(os.path.join(where, name + ".json"), "w", encoding="utf-8").write(text + "\n")
        with open(os.path.join(where, name + ".gold"), "w", encoding="utf-8") as f:
            for c in cases(data):
                ids = t.encode(c, add_special_tokens=True).ids
                f.write("%s\t%s\t%s\n" % (json.dumps(c, ensure_ascii=False), " ".join(map(str, ids)),
                                          json.dumps(t.decode(ids, skip_special_tokens=False), ensure_ascii=False)))
        print(name, t.get_vocab_size(), len(text))


if __name__ == "__main__":
    main()
