#!/usr/bin/env python3
"""Makes tests/golden/pet/: small PEFT modules as PEFT saves them, and what PEFT makes of them.

    python tests/golden/make_pet.py [OUT]

Needs torch, transformers and peft. OUT/NAME/ is the module, OUT/expected.json says for each NAME either the rank and
scaling that PEFT has for every wrapped linear after loading it, or a text that has to be in the sentence of refusal.
"""
import json
import pathlib
import shutil
import sys
import warnings

import peft
import torch
from peft import (AdaLoraConfig, IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PrefixTuningConfig, VeraConfig,
                  get_peft_model)
from transformers import LlamaConfig, LlamaForCausalLM

warnings.filterwarnings("ignore")
OUT = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "pet")

TAKEN = {
    "all_linear": dict(r=2, lora_alpha=7, target_modules="all-linear"),
    "patterns": dict(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"],
                     rank_pattern={"layers.1.self_attn.q_proj": 3, "^model.layers.0.mlp.down_proj": 2,
                                   r"layers\.\d+\.self_attn\.v_proj": 1},
                     alpha_pattern={"q_proj": 5, r".*\.1\..*": 9, "v_proj": 2}),
    "rslora": dict(r=3, lora_alpha=5, use_rslora=True, target_modules=r".*\.(q|o)_proj",
                   rank_pattern={"o_proj": 2}),
    "layers": dict(r=2, target_modules=["q_proj", "up_proj"], layers_to_transform=[1], layers_pattern="layers"),
    "layer_one": dict(r=2, target_modules=["k_proj"], layers_to_transform=1),
    "excluded": dict(r=2, target_modules=["q_proj", "k_proj"], exclude_modules=r".*\.0\.self_attn\.k_proj"),
    "head": dict(r=2, target_modules=["lm_head", "gate_proj"]),
    "orthogonal": dict(r=2, target_modules=["q_proj"], init_lora_weights="orthogonal"),
}
REFUSED = {
    "dora": (LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]), "DoRA"),
    "lora_bias": (LoraConfig(r=2, lora_bias=True, target_modules=["q_proj"]), "lora_bias"),
    "to_save": (LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]), "modules_to_save"),
    "tokens": (LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[1, 2]), "trained tokens"),
    "embedding": (LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"]), "embedding"),
    "replicated": (LoraConfig(r=2, target_modules=["q_proj"], layer_replication=[[0, 2], [1, 2]]), "replicated"),
    "alora": (LoraConfig(r=2, target_modules=["q_proj"], alora_invocation_tokens=[1], task_type="CAUSAL_LM"), "aLoRA"),
    "pissa": (LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"), "pissa"),
    "olora": (LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="olora"), "olora"),
    "ia3": (IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]), "IA3"),
    "adalora": (AdaLoraConfig(target_modules=["q_proj"], total_step=10, tinit=1, tfinal=1), "ADALORA"),
    "prefix": (PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"), "PREFIX_TUNING"),
    "loha": (LoHaConfig(r=2, target_modules=["q_proj"]), "LOHA"),
    "lokr": (LoKrConfig(r=2, target_modules=["q_proj"]), "LOKR"),
    "vera": (VeraConfig(r=2, target_modules=["q_proj"]), "VERA"),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def base():
    torch.manual_seed(1)
    c = LlamaConfig(vocab_size=24, hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
                    num_key_value_heads=1, tie_word_embeddings=False)
    return LlamaForCausalLM(c)


def save(model, name):
    shutil.rmtree(OUT / name, ignore_errors=True)
    model.save_pretrained(OUT / name)
    (OUT / name / "README.md").unlink(missing_ok=True)
    path = OUT / name / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = "tiny/base"
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def scalings(model):
    out = {}
    for name, m in model.named_modules():
        if hasattr(m, "scaling") and hasattr(m, "lora_A") and "default" in m.scaling:
            out[name.removeprefix("base_model.model.")] = {"rank": m.r["default"], "scale": m.scaling["default"]}
    return out


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    expected = {}
    for i, (name, kwargs) in enumerate(TAKEN.items()):
        kwargs.setdefault("init_lora_weights", False)
        model = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", **kwargs)).to(DTYPES[i % 3])
        save(model, name)
        loaded = peft.PeftModel.from_pretrained(base(), OUT / name)
        expected[name] = {"modules": scalings(loaded)}
    for name, (config, text) in REFUSED.items():
        save(get_peft_model(base(), config), name)
        expected[name] = {"refused": text}
    (OUT / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
