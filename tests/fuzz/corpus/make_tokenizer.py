#!/usr/bin/env python3
"""Writes the seeds of fuzz_tokenizer: small tokenizer.json files of every step, a text, and a tokenizer_config.json."""
import json, os

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenizer")
TEXT = "ab a1 12  b\u0301c, <e>\u4f60 <w>\n\u2581ab 'LL <W> \u00e9 \u0130"
CONFIG = {"bos_token": "<e>", "eos_token": {"content": "<e>"}, "chat_template": [{"name": "default", "template": "T"}]}


def bpe(extra=(), **kw):
    vocab = ["a", "b", "ab", "\u0120", "\u0120a", "1", "\u2581", "\u2581a", "<unk>", "<0x41>", "<0xC3>", "<0xA9>", "2", "c"] + list(extra)
    return dict({"type": "BPE", "vocab": {t: i for i, t in enumerate(vocab)},
                 "merges": ["a b", "\u0120 a", ["\u2581", "a"]]}, **kw)


def doc(**kw):
    added = [dict(id=20, content="<e>", special=True, normalized=False), dict(id=21, content="<w>", single_word=True),
             dict(id=22, content="<W>", lstrip=True, rstrip=True, normalized=True), dict(id=23, content="<Wx>")]
    return dict({"added_tokens": added, "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
                 "model": bpe()}, **kw)


def seq(key, *steps):
    return {"type": "Sequence", key: list(steps)}


def split(pattern, behavior="Isolated", **kw):
    return dict({"type": "Split", "pattern": pattern, "behavior": behavior}, **kw)


BL = {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}
NBL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
TEMPLATE = {"type": "TemplateProcessing", "special_tokens": {"<e>": {"id": "<e>", "ids": [20], "tokens": ["<e>"]}},
            "single": [{"SpecialToken": {"id": "<e>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                       {"SpecialToken": {"id": "<e>", "type_id": 0}}]}
UNDER = {"String": "\u2581"}
SEEDS = {
    "plain": doc(),
    "bytelevel": doc(pre_tokenizer=BL, decoder={"type": "ByteLevel"}, post_processor=seq("processors", {"type": "ByteLevel"}, TEMPLATE)),
    "smollm": doc(pre_tokenizer=seq("pretokenizers", {"type": "Digits", "individual_digits": True}, BL), decoder={"type": "ByteLevel"}),
    "llama3": doc(pre_tokenizer=seq("pretokenizers", split({"Regex": r"(?i:'s|'ll)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"}), NBL),
                  model=bpe(ignore_merges=True), decoder={"type": "ByteLevel"}),
    "forms": doc(normalizer=seq("normalizers", {"type": "NFC"}, {"type": "NFD"}, {"type": "NFKC"}, {"type": "NFKD"}, {"type": "Lowercase"},
                                {"type": "Strip", "strip_left": True, "strip_right": True})),
    "spm": doc(normalizer=seq("normalizers", {"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}),
               model=bpe(byte_fallback=True, fuse_unk=True, unk_token="<unk>"), post_processor=TEMPLATE,
               decoder=seq("decoders", {"type": "Replace", "pattern": UNDER, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
                           {"type": "Strip", "content": " ", "start": 1, "stop": 1})),
    "metaspace": doc(pre_tokenizer={"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": True},
                     model=bpe(unk_token="<unk>"), decoder={"type": "Metaspace", "replacement": "\u2581", "add_prefix_space": True}),
    "metaspace_whole": doc(pre_tokenizer={"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": False}),
    "metaspace_old": doc(pre_tokenizer={"type": "Metaspace", "replacement": "\u2581", "add_prefix_space": False}),
    "cuts": doc(pre_tokenizer=seq("pretokenizers", split({"String": "a"}, "MergedWithPrevious"), split({"Regex": "[,;]"}, "MergedWithNext"),
                                  split({"Regex": "x*"}, "Contiguous", invert=True), split({"String": "~"}, "Removed"),
                                  {"type": "Punctuation", "behavior": "Isolated"}, {"type": "Whitespace"})),
    "regex": doc(pre_tokenizer=split({"Regex": r"^\w+$|(?<=a)\S|\d\D|\W|\x41\x{42}C\t\v[\S\d\w\x41-\x{5a}]|[^\p{^Lu}\P{Ll}\p{Han}]{2}|a{,3}|{|(?i)b|(c)|(?>d)|\."})),
    "replace": doc(normalizer={"type": "Replace", "pattern": {"Regex": " {2,}|x*"}, "content": "a"}, decoder={"type": "Replace", "pattern": {"Regex": "a+"}, "content": ""}),
    "unk_merges": doc(model=bpe(("<unk>a",), unk_token="<unk>", byte_fallback=True, merges=[["<unk>", "a"], "a b"])),
    "nodecoder_unicode": doc(decoder=seq("decoders", {"type": "Fuse"}, {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never"})),
    "bad_model": doc(model={"type": "WordPiece"}),
    "bad_step": doc(normalizer={"type": "Nmt"}),
    "bad_merge": doc(model=bpe(merges=["a zz"])),
    "bad_id": doc(model=dict(bpe(), vocab={"a": 4194303})),
    "bad_unk": doc(model=bpe(unk_token="no")),
    "bad_post": doc(post_processor={"type": "TemplateProcessing", "special_tokens": {"<e>": {"id": "<e>", "ids": [99]}},
                                    "single": [{"SpecialToken": {"id": "<e>"}}, {"Sequence": {"id": "A"}}]}),
    "bad_behavior": doc(pre_tokenizer=split({"String": "a"}, "Sideways")),
    "bad_regex": doc(pre_tokenizer=split({"Regex": "(?<a"})),
    "bad_class": doc(pre_tokenizer=split({"Regex": "[[a]"})),
    "bad_sequence": doc(decoder=seq("decoders", seq("decoders", {"type": "Strip", "content": " ", "start": 9999, "stop": 0}))),
    "bad_bool": doc(model=bpe(fuse_unk="yes")),
    "bad_scheme": doc(decoder={"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "no"}),
    "bad_mark": doc(pre_tokenizer={"type": "Metaspace", "replacement": "ab"}),
    "bad_pair": doc(model=bpe(merges=[["a"]])),
    "bad_steps": doc(pre_tokenizer={"type": "Sequence", "pretokenizers": 1}),
    "bad_pattern": doc(pre_tokenizer={"type": "Split", "pattern": {"String": ""}}),
    "no_behavior": doc(pre_tokenizer={"type": "Split", "pattern": {"Regex": "\\u0041|x"}}, decoder={"type": "Nope"}),
    "dropout": doc(model=bpe(dropout=0.5)),
}
# The files beside tokenizer.json: tokenizer_config.json, special_tokens_map.json, generation_config.json, config.json,
# chat_template.jinja. None: not there.
SIDES = {
    "dir": (CONFIG, {"bos_token": "<w>"}, {"eos_token_id": [20, 21, 20]}, {"bos_token_id": 21}, "T"),
    "dir_ids": ({}, None, None, {"bos_token_id": 20, "eos_token_id": 21}, "{{ x }}"),
    "dir_map": (None, {"bos_token": "<w>", "eos_token": {"content": "<e>"}}, {"eos_token_id": 0}, {"bos_token_id": 4000}, None),
    "dir_bad_eos": (CONFIG, None, {"eos_token_id": "x"}, {}, None),
    "dir_many_eos": (CONFIG, None, {"eos_token_id": list(range(100))}, {}, None),
    "dir_bad_token": ({"bos_token": "none such"}, None, None, {}, None),
    "dir_bad_template": ({"chat_template": 1}, None, None, {}, None),
    "dir_bad_json": ("{", None, None, {}, None),
    "dir_array": ([], None, None, {}, None),
}


def main():
    os.makedirs(HERE, exist_ok=True)
    for name, d in SEEDS.items():
        data = json.dumps(d, ensure_ascii=False, separators=(",", ":")).encode() + b"\0" + TEXT.encode()
        data += "\U0001347d\u1c89 \u180e".encode() + b"a" * 40 + (b"ab" * 30) + "\U00011930\u0301\u0323".encode() * 20
        data += b"\0" + json.dumps(CONFIG).encode()
        open(os.path.join(HERE, name), "wb").write(data)
    for name, sides in SIDES.items():
        parts = [json.dumps(SEEDS["bytelevel"], separators=(",", ":")), "ab <e> ab"]
        parts += ["" if v is None else v if isinstance(v, str) else json.dumps(v) for v in sides]
        open(os.path.join(HERE, name), "wb").write("\0".join(parts).encode())
    # one piece of many merges, pieces of one word again and again, bytes that are not characters
    many = doc(model=bpe(("abab", "\u00c3", "\u00a9", "\u00ff", "\u00e4"), merges=["a b", "ab ab"]), pre_tokenizer=NBL,
               decoder={"type": "ByteLevel"})
    open(os.path.join(HERE, "long_piece"), "wb").write(json.dumps(many).encode() + b"\0" + b"ab" * 600 + "\u00ff\u4f60".encode() * 9)
    words = doc(pre_tokenizer=BL, decoder={"type": "ByteLevel"})
    open(os.path.join(HERE, "same_words"), "wb").write(json.dumps(words).encode() + b"\0" + b" ab a1 ab a1" * 200)
    open(os.path.join(HERE, "bad_utf8"), "wb").write(json.dumps(SEEDS["plain"]).encode() + b"\0ab\xff\xc3")
    open(os.path.join(HERE, "empty"), "wb").write(b"")
    whole = open(os.path.join(HERE, "spm"), "rb").read()
    open(os.path.join(HERE, "cut"), "wb").write(whole[:700])


if __name__ == "__main__":
    main()
