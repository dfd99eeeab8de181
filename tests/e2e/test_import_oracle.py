#!/usr/bin/env python3
"""Compares `cpet import` with the PyPI packages `gguf` and `transformers`. Part of the long suite.

`demo` imports the demo's GGUF file (CPETD_DEMO_GGUF, or the one under var/download), compares every tensor with gguf's own
dequantization (rows put back in order here, by numpy), bit for bit, loads the result with transformers and generates
from "The capital of France is". The others are small random Llama and Qwen2 models made by transformers: saved sharded and
whole, imported as f32 and as bf16; written as GGUF by the gguf package (rows permuted, llama3 factors in
rope_freqs.weight) and imported again. transformers' logits of the imported directory equal those of the original, bit for
bit in f32. Skips where a package is missing.
"""
import json
import os
import tempfile

import harness
from harness import ROOT, Skip, case

try:
    import gguf
    import numpy as np
    import torch
    import transformers
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    MISSING = None
except ImportError as e:
    MISSING = str(e)

LAYER = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
         "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def check(what, ok, detail=""):
    print("   %s: %s" % (what, detail or ("yes" if ok else "no")), flush=True)
    assert ok, "%s: %s" % (what, detail or "not so")


def run(*args):
    if MISSING:
        raise Skip(MISSING)
    return json.loads(harness.cpet("import", "--json", *args))


def hf_name(name):
    parts = name.split(".")
    if parts[0] == "blk":
        return "model.layers.%s.%s.%s" % (parts[1], LAYER[parts[2]], parts[3])
    return OUTSIDE[parts[0]] + "." + parts[1]


def unpermute(x, heads):
    """Converters write reshape(heads, 2, d/2, ...) with the middle axes swapped; this swaps them back."""
    return x.reshape(heads, x.shape[0] // heads // 2, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def demo_gguf():
    found = [os.environ.get("CPETD_DEMO_GGUF", "")] + sorted(map(str, (ROOT / "var/download").rglob("*.gguf")))
    for path in found:
        if os.path.isfile(path):
            return path
    raise Skip("the demo's GGUF file is neither CPETD_DEMO_GGUF nor under var/download")


@case
def demo():
    if MISSING:
        raise Skip(MISSING)
    with tempfile.TemporaryDirectory() as tmp:
        compare_gguf(demo_gguf(), tmp)


def compare_gguf(path, tmp):
    out = os.path.join(tmp, "demo")
    run(path, out)
    reader = gguf.GGUFReader(path)
    field = {k: f.contents() for k, f in reader.fields.items() if k.startswith("llama.attention.head")}
    same = total = 0
    with safe_open(os.path.join(out, "model.safetensors"), "pt") as st:
        names = set(st.keys())
        for t in reader.tensors:
            x = gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32).reshape(tuple(int(d) for d in t.shape[::-1]))
            if ".attn_q." in t.name:
                x = unpermute(x, field["llama.attention.head_count"])
            if ".attn_k." in t.name:
                x = unpermute(x, field["llama.attention.head_count_kv"])
            y = st.get_tensor(hf_name(t.name))
            names.discard(hf_name(t.name))
            same += bool(torch.equal(torch.from_numpy(x.copy()).to(torch.bfloat16), y))
            total += 1
    check("tensors equal gguf's", same == total and not names, "%d/%d" % (same, total))
    tok = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ids = tok("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        text = tok.decode(model.generate(**ids, max_new_tokens=12, do_sample=False)[0])
    check("greedy text", "Paris" in text, repr(text))
    chat = tok.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    check("chat template", chat.startswith("<|im_start|>system\n") and chat.endswith("<|im_start|>assistant\n"))


def logits(model):
    with torch.no_grad():
        return model(torch.arange(3, 35).reshape(2, 16)).logits


def save_gguf(model, arch, path, factors):
    c = model.config
    w = gguf.GGUFWriter(path, arch)
    w.add_block_count(c.num_hidden_layers)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_rope_freq_base(c.rope_parameters["rope_theta"])
    tokens = ["<unk>", "<s>", "</s>"] + ["t%d" % i for i in range(3, c.vocab_size)]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list(tokens)
    w.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    w.add_token_merges([])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    if factors is not None:
        w.add_tensor("rope_freqs.weight", factors)
    back = {v: k for k, v in LAYER.items()}
    outside = {v: k for k, v in OUTSIDE.items()}
    for name, t in model.state_dict().items():
        stem, what = name.rsplit(".", 1)
        if stem == "lm_head" and c.tie_word_embeddings:
            continue
        x = t.numpy()
        if stem in outside:
            new = outside[stem]
        else:
            parts = stem.split(".", 3)
            new = "blk.%s.%s" % (parts[2], back[parts[3]])
            heads = {"q": c.num_attention_heads, "k": c.num_key_value_heads}.get(parts[3][10] if "_proj" in parts[3] else "")
            if arch == "llama" and parts[3].startswith("self_attn") and heads:
                x = x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        w.add_tensor(new + "." + what, np.ascontiguousarray(x))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def llama3_factors(base, dim, factor, low, high, old):
    out = []
    for freq in 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)):
        wave = 2 * np.pi / float(freq)
        if wave < old / high:
            out.append(1.0)
        elif wave > old / low:
            out.append(factor)
        else:
            smooth = (old / wave - low) / (high - low)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, dtype=np.float32)


COMMON = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              vocab_size=128, max_position_embeddings=256, bos_token_id=1, eos_token_id=2)
SCALED = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
KINDS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**COMMON, tie_word_embeddings=True)),
    "llama-bias-scaled": lambda: LlamaForCausalLM(LlamaConfig(**COMMON, attention_bias=True, rope_parameters=dict(SCALED))),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**COMMON)),
    "qwen2-tied": lambda: Qwen2ForCausalLM(Qwen2Config(**COMMON, tie_word_embeddings=True)),
}


def compare_random(name, tmp):
    torch.manual_seed(3)
    model = KINDS[name]().eval().float()
    with torch.no_grad():
        for key, p in model.named_parameters():
            p.normal_(0, 0.05)
            if "norm" in key:
                p.add_(1)
    want = logits(model)

    def where(s):
        return os.path.join(tmp, name + "." + s)

    model.save_pretrained(where("whole"))
    model.save_pretrained(where("sharded"), max_shard_size="40KB")
    factors = llama3_factors(5e5, 16, 8.0, 1.0, 4.0, 64) if "scaled" in name else None
    save_gguf(model, name.split("-")[0], where("gguf"), factors)
    lineages = set()
    for source in ("whole", "sharded", "gguf"):
        out = where(source + ".out")
        lineages.add(run("--dtype", "f32", where(source), out)["lineage"]["weights"])
        got = logits(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32))
        check("logits from " + source, torch.equal(want, got), "largest difference %g" % (want - got).abs().max())
    check("one lineage", len(lineages) == 1)
    run("--dtype", "bf16", where("whole"), where("bf16"))
    got = logits(AutoModelForCausalLM.from_pretrained(where("bf16"), dtype=torch.float32))
    check("logits as bf16", 0 < (want - got).abs().max() < 0.2)


def add_random(name):
    def test():
        if MISSING:
            raise Skip(MISSING)
        with tempfile.TemporaryDirectory() as tmp:
            compare_random(name, tmp)
    test.__name__ = name.replace("-", "_")
    case(test)


for k in KINDS:
    add_random(k)

if __name__ == "__main__":
    harness.main()
