#!/usr/bin/env python3
"""PEFT -> .pet -> PEFT with the real PEFT: what comes back loads and computes the same logits.

Part of the long suite: needs torch, transformers and peft; skips where they are not installed.
"""
import json
import tempfile
import warnings
from pathlib import Path

import harness
from harness import Skip, case

try:
    import peft
    import torch
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
    MISSING = None
except ImportError as e:
    MISSING = str(e)

warnings.filterwarnings("ignore")
IDS = [[1, 5, 9, 2, 60, 33, 7, 7, 12]]
SHAPE = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2)
MODULES = {
    "all": dict(r=4, lora_alpha=7, target_modules="all-linear", rank_pattern={"q_proj": 2},
                alpha_pattern={r"layers\.1\..*_proj": 3}),
    "rslora": dict(r=6, lora_alpha=5, use_rslora=True, target_modules=r".*\.(q|v)_proj"),
    "head": dict(r=3, lora_alpha=10, target_modules=["lm_head", "o_proj"], layers_to_transform=[0, 2]),
    "mixed": dict(r=1, lora_alpha=0.3, target_modules=["down_proj", "k_proj"],
                  rank_pattern={"layers.0.mlp.down_proj": 16, "layers.2.self_attn.k_proj": 9}),
}


def cpet(*args):
    out = harness.cpet("pet", *args)
    return json.loads(out) if "--json" in args else out


def logits(base, adapter):
    model = peft.PeftModel.from_pretrained(base(), adapter)
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits


def check(tmp, name, base, dtype, kwargs):
    src, out, back = tmp / name, tmp / f"{name}.pet", tmp / f"{name}.back"
    torch.manual_seed(3)
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **kwargs)
    model = peft.get_peft_model(base(), config)
    for key, parameter in model.named_parameters():
        if ".lora_" in key:  # not the base: PEFT saves a wrapped head's weight too, and loads it again
            parameter.data = parameter.data.to(dtype)
    model.save_pretrained(src)
    packed = cpet("pack", src, out, "--json")
    assert packed["hash"] == cpet("inspect", src, "--json")["hash"]
    assert cpet("verify", out, "--model", tmp / base.__name__, "--json")["ok"]
    cpet("convert", out, back)
    assert packed["hash"] == cpet("inspect", back, "--json")["hash"]
    a = {k: v for k, v in load_file(src / "adapter_model.safetensors").items() if ".lora_" in k}
    b = load_file(back / "adapter_model.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)
    want, got = logits(base, src), logits(base, back)
    with torch.no_grad():
        plain = base()(torch.tensor(IDS)).logits
    diff = (want - got).abs().max().item()
    assert diff <= 1e-5 * want.abs().max().item(), diff
    assert (want - plain).abs().max().item() > 1e-3, "the module changes nothing"
    print(f"   {packed['sites']} linears, largest difference {diff:.2g}")


def llama():
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=False, **SHAPE)).eval()


def qwen2():
    torch.manual_seed(2)
    return Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=False, **SHAPE)).eval()


def add(base, name, i):
    def test():
        if MISSING:
            raise Skip(MISSING)
        with tempfile.TemporaryDirectory() as d:
            tmp = Path(d)
            base().save_pretrained(tmp / base.__name__)
            check(tmp, name, base, (torch.float32, torch.bfloat16, torch.float16)[i % 3], MODULES[name])
    test.__name__ = f"{base.__name__}_{name}"
    case(test)


for b in (llama, qwen2):
    for n, k in enumerate(MODULES):
        add(b, k, n)

if __name__ == "__main__":
    harness.main()
