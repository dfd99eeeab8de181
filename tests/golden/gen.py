"""Deterministic test inputs: random modules, recovery files and small random backbones, the same bytes everywhere.

Needs numpy only. Values come from splitmix64 over (name, index), so that neither numpy's generators nor an order of
calls matter. Used by make_model.py, which asks PyTorch for the reference, and by the tests that compare with it.
"""
import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np

LINEARS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


def uniform(name, shape, scale):
    """float32 in [-scale, scale), from the name and the index alone."""
    n = int(np.prod(shape))
    with np.errstate(over="ignore"):
        z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(zlib.crc32(name.encode())) * np.uint64(0xD1B54A32D192ED03)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    u = (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)
    return (u * np.float32(scale)).reshape(shape)


def save(path, tensors, meta=None):
    """A safetensors file of float32 arrays."""
    header, off = {}, 0
    if meta:
        header["__metadata__"] = meta
    for k, v in tensors.items():
        header[k] = {"dtype": "F32", "shape": list(v.shape), "data_offsets": [off, off + v.nbytes]}
        off += v.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for v in tensors.values():
            f.write(np.ascontiguousarray(v, np.float32).tobytes())


def shapes(cfg):
    h, f = cfg["hidden_size"], cfg["intermediate_size"]
    hd = cfg.get("head_dim") or h // cfg["num_attention_heads"]
    q, kv = cfg["num_attention_heads"] * hd, cfg["num_key_value_heads"] * hd
    return dict(zip(LINEARS, [(q, h), (kv, h), (kv, h), (h, q), (f, h), (f, h), (h, f)]))


def modules(cfg):
    for layer in range(cfg["num_hidden_layers"]):
        for name, shape in shapes(cfg).items():
            yield f"model.layers.{layer}.{name}", shape


def lora(cfg, out, rank, seed, strength=1.0, targets=None, alpha=None, rslora=False):
    """A PEFT LoRA directory of random weights."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    targets = targets or [t.split(".")[1] for t in LINEARS]
    t = {}
    for m, (n, k) in modules(cfg):
        if m.rsplit(".", 1)[1] in targets:
            t[f"base_model.model.{m}.lora_A.weight"] = uniform(f"{seed}{m}A", (rank, k), k**-0.5)
            t[f"base_model.model.{m}.lora_B.weight"] = uniform(f"{seed}{m}B", (n, rank), strength * rank**-0.5)
    save(out / "adapter_model.safetensors", t, {"format": "pt"})
    (out / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "test", "r": rank, "lora_alpha": alpha or 2 * rank,
        "target_modules": targets, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "use_rslora": rslora,
        "inference_mode": True}, indent=1) + "\n")


def recovery(cfg, path, rank, fn, seed, strength):
    """A recovery file of random weights on every linear."""
    t = {}
    for m, (n, k) in modules(cfg):
        t[f"{m}.recovery_A"] = uniform(f"{seed}{m}A", (rank, k), k**-0.5)
        t[f"{m}.recovery_B"] = uniform(f"{seed}{m}B", (n, rank), strength * rank**-0.5)
    save(path, t, {"cpet.kind": "recovery", "cpet.fn": fn, "cpet.scale": "1.0"})


def backbone(cfg, out, seed):
    """A small random backbone as transformers would save it."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    h, v = cfg["hidden_size"], cfg["vocab_size"]
    t = {"model.embed_tokens.weight": uniform(f"{seed}embed", (v, h), 1.0), "model.norm.weight": 1 + uniform(f"{seed}norm", (h,), 0.2)}
    for layer in range(cfg["num_hidden_layers"]):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            t[f"model.layers.{layer}.{norm}.weight"] = 1 + uniform(f"{seed}{layer}{norm}", (h,), 0.2)
    for m, (n, k) in modules(cfg):
        t[f"{m}.weight"] = uniform(f"{seed}{m}", (n, k), 2 * k**-0.5)
        attn, qkv = "self_attn" in m, m.rsplit(".", 1)[1] in ("q_proj", "k_proj", "v_proj")
        if (cfg["model_type"] == "qwen2" and qkv) or (attn and cfg.get("attention_bias")) or (not attn and cfg.get("mlp_bias")):
            t[f"{m}.bias"] = uniform(f"{seed}{m}b", (n,), 0.5)
    if not cfg["tie_word_embeddings"]:
        t["lm_head.weight"] = uniform(f"{seed}head", (v, h), 2 * h**-0.5)
    save(out / "model.safetensors", t, {"format": "pt"})
    (out / "config.json").write_text(json.dumps(cfg, indent=1) + "\n")


QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3,
         "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 515, "max_position_embeddings": 256, "rms_norm_eps": 1e-6,
         "rope_theta": 1000000.0, "tie_word_embeddings": False, "hidden_act": "silu", "use_sliding_window": False}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 200, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24, "vocab_size": 700, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
         "rope_theta": 500000.0, "tie_word_embeddings": False, "hidden_act": "silu", "attention_bias": True, "mlp_bias": True,
         "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                          "original_max_position_embeddings": 64}}


def make_all(model_dir, out):
    """Everything the golden comparison needs, under out. model_dir: the demo backbone (for its shapes)."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    cfg = json.loads((Path(model_dir) / "config.json").read_text())
    lora(cfg, out / "lora", 8, "lora", strength=0.5)
    recovery(cfg, out / "recovery-linear.safetensors", 8, "none", "rl", 0.9)
    recovery(cfg, out / "recovery-gelu.safetensors", 8, "gelu", "rg", 2.0)
    for name, c in (("qwen2", QWEN2), ("llama", LLAMA)):
        backbone(c, out / name, name)
        lora(c, out / f"{name}-lora", 5, f"{name}lora", strength=1.0, rslora=True)
        recovery(c, out / f"{name}-recovery.safetensors", 6, "gelu", f"{name}rec", 2.0)


if __name__ == "__main__":
    make_all(sys.argv[1], sys.argv[2])
