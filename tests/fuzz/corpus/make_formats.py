"""Makes the seeds of fuzz_safetensors, fuzz_gguf, fuzz_json and fuzz_backbone: a file of each kind that is read and of each
that is refused. Run: python make_formats.py (needs nothing)."""
import json
import os
import struct

HERE = os.path.dirname(os.path.abspath(__file__))


def put(kind, name, data):
    os.makedirs(os.path.join(HERE, kind), exist_ok=True)
    with open(os.path.join(HERE, kind, name), "wb") as f:
        f.write(data)


def st(header, data=b""):
    h = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(h)) + h + data


def t(dtype, shape, a, b):
    return {"dtype": dtype, "shape": shape, "data_offsets": [a, b]}


types = ["F32", "F16", "BF16", "F64", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL", "F8_E4M3", "F8_E5M2"]
sizes = [4, 2, 2, 8, 1, 1, 2, 2, 4, 4, 8, 8, 1, 1, 1]
good, at = {"__metadata__": {"format": "pt", "k": "v"}}, 0
for n, z in zip(types, sizes):
    good["t." + n] = t(n, [3], at, at + 3 * z)
    at += 3 * z
files = {
    "good": st(good, bytes(range(at))),
    "padded": st(b"{}     "),
    "scalar_empty": st({"s": t("U8", [], 0, 1), "e": t("F32", [0, 7], 1, 1)}, b"x"),
    "order": st({"b": t("U8", [2], 2, 4), "a": t("U8", [2], 0, 2)}, b"abcd"),
    "short": b"\1\0\0",
    "huge_length": b"\xff" * 16,
    "length_past_end": struct.pack("<Q", 99) + b"{}",
    "not_object": st(b"[1]"),
    "bad_json": st(b'{"a":'),
    "duplicate": st(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    "deep": st(b'{"a":{"shape":[[[[[1]]]]]}}'),
    "entry_number": st({"a": 1}),
    "no_dtype": st({"a": {"shape": [1], "data_offsets": [0, 1]}}, b"x"),
    "bad_dtype": st({"a": t("Q4", [1], 0, 1)}, b"x"),
    "shape_text": st({"a": t("U8", "1", 0, 1)}, b"x"),
    "shape_negative": st({"a": t("U8", [-1], 0, 1)}, b"x"),
    "shape_nine": st({"a": t("U8", [1] * 9, 0, 1)}, b"x"),
    "shape_overflow": st({"a": t("F32", [1 << 40, 1 << 40], 0, 0)}),
    "offsets_one": st({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0]}}, b"x"),
    "offsets_swapped": st({"a": t("U8", [1], 1, 0)}, b"x"),
    "offsets_past": st({"a": t("U8", [9], 0, 9)}, b"x"),
    "size_mismatch": st({"a": t("F32", [1], 0, 2)}, b"xx"),
    "more_members": st({"a": dict(t("U8", [1], 0, 1), x=1)}, b"x"),
    "overlap": st({"a": t("U8", [2], 0, 2), "b": t("U8", [2], 1, 3)}, b"abc"),
    "hole": st({"a": t("U8", [1], 0, 1), "b": t("U8", [1], 2, 3)}, b"abc"),
    "trailing": st({"a": t("U8", [1], 0, 1)}, b"abc"),
    "meta_array": st({"__metadata__": []}),
    "meta_number": st({"__metadata__": {"a": 1}}),
}
shard_a = st({"__metadata__": {"format": "pt"}, "a": t("U8", [2], 0, 2)}, b"ab")
shard_b = st({"__metadata__": {"format": "np"}, "b": t("F32", [1], 0, 4)}, b"abcd")


def directory(index, *shards):
    return b"DIR\n" + b"\nNEXT\n".join((index if isinstance(index, bytes) else json.dumps(index).encode(), *shards))


A, B = "a.safetensors", "b.safetensors"
files |= {
    "dir_shards": directory({"metadata": {}, "weight_map": {"a": A, "b": B}}, shard_a, shard_b),
    "dir_single": directory(b"", shard_a),
    "dir_none": directory(b""),
    "dir_single_bad": directory(b"", b"\1"),
    "dir_index_json": directory(b"{", shard_a),
    "dir_index_no_map": directory({}, shard_a),
    "dir_index_empty": directory({"weight_map": {}}, shard_a),
    "dir_outside": directory({"weight_map": {"a": "../a.safetensors"}}, shard_a),
    "dir_number": directory({"weight_map": {"a": 1}}, shard_a),
    "dir_shard_missing": directory({"weight_map": {"a": A, "b": B}}, shard_a),
    "dir_tensor_missing": directory({"weight_map": {"a": A, "c": A}}, shard_a),
    "dir_tensor_twice": directory({"weight_map": {"a": A, "b": B}}, shard_a, shard_a),
    "dir_shard_bad": directory({"weight_map": {"a": A, "b": B}}, shard_a, shard_b[:20]),
}
for name, data in files.items():
    put("safetensors", name, data)


def s(x):
    x = x.encode() if isinstance(x, str) else x
    return struct.pack("<Q", len(x)) + x


def kv(key, kind, value):
    return s(key) + struct.pack("<I", kind) + value


def arr(kind, n, body):
    return struct.pack("<IQ", kind, n) + body


def head(n_t, n_kv, version=3, magic=b"GGUF"):
    return magic + struct.pack("<IQQ", version, n_t, n_kv)


def tensor(name, dims, kind, off):
    return s(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in dims) + struct.pack("<IQ", kind, off)


def pad(b, a=32):
    return b + bytes(-len(b) % a)


kvs = [kv("v%d" % k, k, v) for k, v in {
    0: b"\7", 1: b"\xf9", 2: b"\1\2", 3: b"\1\xff", 4: b"\1\2\3\4", 5: b"\1\2\3\xff", 6: struct.pack("<f", 1.5), 7: b"\1",
    8: s("text"), 10: b"\1" * 8, 11: b"\xff" * 8, 12: struct.pack("<d", 2.5)}.items()]
kvs += [kv("a.str", 9, arr(8, 2, s("a") + s("bc"))), kv("a.i32", 9, arr(5, 2, b"\1\0\0\0\2\0\0\0")),
        kv("a.f32", 9, arr(6, 1, b"\0\0\x80\x3f")), kv("a.nested", 9, arr(9, 1, arr(3, 2, b"\1\0\2\0"))),
        kv("a.i8", 9, arr(1, 1, b"\xff")), kv("a.i16", 9, arr(3, 1, b"\xff\xff")), kv("a.u64", 9, arr(10, 1, b"\xff" * 8))]
blocks = {0: (1, 4), 1: (1, 2), 30: (1, 2), 8: (32, 34), 2: (32, 18), 3: (32, 20)}
infos, body = b"", b""
for kind, (n, size) in blocks.items():
    infos += tensor("t%d" % kind, [32, 2], kind, len(body))
    body = pad(body + bytes(i * 37 & 0x3F for i in range(64 // n * size)))
one = tensor("t", [4], 0, 0)
data = bytes(64)
align = kv("general.alignment", 4, struct.pack("<I", 64))
files = {
    "good": pad(head(6, len(kvs)) + b"".join(kvs) + infos) + body,
    "version2_aligned": pad(head(1, 1, 2) + align + one, 64) + data,
    "empty": head(0, 0),
    "magic": head(0, 0, magic=b"GGML"),
    "version1": head(0, 0, 1),
    "big_endian": head(0, 0, 0x03000000),
    "cut_header": b"GGUF\3\0\0",
    "many_keys": head(0, 1 << 60),
    "many_tensors": head(1 << 60, 0),
    "key_length": head(0, 1) + b"\xff" * 16,
    "key_nul": head(0, 1) + kv("a\0", 0, b"\0") + data,
    "value_type": head(0, 1) + kv("a", 13, b"\0") + data,
    "string_length": head(0, 1) + kv("a", 8, b"\xff" * 8),
    "array_type": head(0, 1) + kv("a", 9, arr(99, 1, data)),
    "array_count": head(0, 1) + kv("a", 9, arr(10, 1 << 61, data)),
    "array_deep": head(0, 1) + kv("a", 9, arr(9, 1, arr(9, 1, arr(9, 1, arr(9, 1, arr(9, 1, arr(0, 1, data))))))),
    "key_twice": head(0, 2) + kv("a", 0, b"\0") + kv("a", 0, b"\0") + data,
    "value_cut": head(0, 1) + kv("a", 12, b"\0\0\0"),
    "dims_zero": head(1, 0) + tensor("t", [], 0, 0) + data,
    "dims_five": head(1, 0) + tensor("t", [1] * 5, 0, 0) + data,
    "dim_empty": head(1, 0) + tensor("t", [0], 0, 0) + data,
    "dim_overflow": head(1, 0) + tensor("t", [1 << 33, 1 << 33], 0, 0) + data,
    "type_q4k": head(1, 0) + tensor("t", [256], 12, 0) + data,
    "type_unknown": head(1, 0) + tensor("t", [256], 77, 0) + data,
    "row_blocks": head(1, 0) + tensor("t", [33], 8, 0) + data,
    "offset_odd": pad(head(1, 0) + tensor("t", [4], 0, 8)) + data,
    "offset_past": pad(head(1, 0) + tensor("t", [4], 0, 1 << 40)) + data,
    "tensor_twice": pad(head(2, 0) + one + tensor("t", [4], 0, 32)) + data,
    "tensors_overlap": pad(head(2, 0) + one + tensor("u", [4], 0, 0)) + data,
    "alignment_48": pad(head(1, 1) + kv("general.alignment", 4, struct.pack("<I", 48)) + one) + data,
    "alignment_text": pad(head(1, 1) + kv("general.alignment", 8, s("x")) + one) + data,
    "no_data": head(1, 0) + one,
}
for name, data in files.items():
    put("gguf", name, data)

texts = {
    "object": '{"u": 7, "n": -1, "big": 9007199254740993, "f": 1.5, "e": 1e300, "t": true, "s": "x\\u00e9\\n", "o": {"k": [1]}, "a": [1, [2]], "z": null}',
    "array": "[[], {}, 1, \"s\"]", "string": '"a\\"b"', "number": "3", "true": "true", "empty": "", "space": "  ",
    "keys_twice": '{"a": 1, "a": 2}', "nul": '{"a": "\\u0000"}', "huge_int": '{"a": 99999999999999999999}', "huge_real": '{"a": 1e999}',
    "tail": "{} x", "cut": '{"a": [1, 2', "cut_string": '"abc\\', "deep": "[" * 9 + "]" * 9, "many": "[" + "0," * 1001 + "0]",
    "utf8": '"\xff"', "closed": "]]]]", "surrogate": '"\\ud800"', "pair": '"\\ud83d\\ude00"',
}
for name, text in texts.items():
    put("json", name, text.encode("latin-1"))

plain = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "hidden_act": "silu"}
llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
configs = {
    "llama": {}, "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True}, "bias": {"attention_bias": True, "mlp_bias": True},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}}, "llama3": {"rope_scaling": llama3, "rope_theta": 5e5},
    "llama3_wide": {"rope_scaling": dict(llama3, original_max_position_embeddings=8), "head_dim": 32},
    "parameters": {"rope_parameters": dict(llama3, rope_theta=1e6)}, "default": {"rope_scaling": {"rope_type": "default"}},
    "untyped": {"rope_scaling": {"factor": 2}}, "yarn": {"rope_scaling": {"rope_type": "yarn"}},
    "factors": {"rope_scaling": dict(llama3, low_freq_factor=4.0)}, "no_factors": {"rope_scaling": {"rope_type": "llama3"}},
    "theta": {"rope_parameters": {"rope_theta": 0}}, "rope_number": {"rope_scaling": 3}, "rope_type": {"rope_scaling": {"rope_type": 1}},
    "type": {"model_type": "gpt2"}, "no_type": {"model_type": None}, "window": {"model_type": "qwen2", "use_sliding_window": True},
    "act": {"hidden_act": "gelu"}, "layers": {"num_hidden_layers": 0}, "hidden": {"hidden_size": 1 << 20}, "no_hidden": {"hidden_size": None},
    "heads": {"num_attention_heads": 6, "num_key_value_heads": 4}, "head_dim": {"head_dim": 12}, "head_small": {"num_attention_heads": 64, "num_key_value_heads": 64},
    "eps": {"rms_norm_eps": 2}, "tied": {"tie_word_embeddings": 1}, "context": {"max_position_embeddings": -1},
}
for name, change in configs.items():
    put("backbone", name, json.dumps({**plain, **change}).encode())
put("backbone", "array", b"[]")
put("backbone", "cut", json.dumps(plain).encode()[:50])
