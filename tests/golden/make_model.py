"""Makes model.json: reference logits of transformers and PEFT in float32. `python make_model.py MODEL_DIR WORK_DIR`.

MODEL_DIR is what `cpet import` makes of the demo backbone. For every case and prompt the file holds, of the last
position, the log-sum-exp, the top 64 and 256 fixed entries, and of every position the greedy token.
"""
import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import gen

PROMPTS = [
    "The capital of France is", "Once upon a time, in a village by the sea,", "def fibonacci(n):\n    ", "1, 1, 2, 3, 5, 8, 13,",
    "The quick brown fox jumps over the lazy dog.", "Water boils at 100 degrees", "To be, or not to be, that is the", "import numpy as np\n\nx = np.",
    "In 1969, Neil Armstrong became the first", "Question: What is the largest planet?\nAnswer:", "Les enfants jouent dans le", "{\"name\": \"Alice\", \"age\":",
    "The mitochondria is the", "My favourite recipe begins with two cups of", "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n",
    "Roses are red, violets are", "The chemical symbol for gold is", "SELECT name, price FROM products WHERE", "She opened the door slowly and saw",
    "The study of stars and planets is called",
]


def fixed(vocab):
    return [(i * 191 + 7) % vocab for i in range(256)]


def entry(model, ids):
    with torch.no_grad():
        x = model(input_ids=torch.tensor([ids])).logits[0].float()
    last = x[-1]
    top = last.topk(64)
    return {"ids": ids, "lse": round(torch.logsumexp(last.double(), 0).item(), 6), "top": [[i, round(v, 5)] for v, i in zip(top.values.tolist(), top.indices.tolist())],
            "fixed": [round(last[i].item(), 5) for i in fixed(len(last))], "greedy": x.argmax(-1).tolist()}


def add_recovery(model, path, fn):
    t = load_file(path)
    act = {"none": lambda v: v, "gelu": torch.nn.functional.gelu}[fn]
    for name, mod in model.named_modules():
        if f"{name}.recovery_A" in t:
            a, b = t[f"{name}.recovery_A"], t[f"{name}.recovery_B"]
            mod.register_forward_hook(lambda m, i, o, a=a, b=b: o + act(i[0] @ a.T) @ b.T)


def load(path, rec=None, fn="gelu", pet=None):
    m = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    if rec:
        add_recovery(m, rec, fn)
    if pet:
        m = PeftModel.from_pretrained(m, pet)
    return m.eval()


def main():
    model, work = Path(sys.argv[1]), Path(sys.argv[2])
    gen.make_all(model, work)
    tok = AutoTokenizer.from_pretrained(model)
    prompts = [tok(p).input_ids for p in PROMPTS]
    cases = {}
    demo = [("demo", {}), ("demo-lora", {"pet": work / "lora"}), ("demo-recovery-linear", {"rec": work / "recovery-linear.safetensors", "fn": "none"}),
            ("demo-recovery-gelu", {"rec": work / "recovery-gelu.safetensors"})]
    for name, kw in demo:
        m = load(model, **kw)
        cases[name] = [entry(m, ids) for ids in prompts]
    for name, c in (("qwen2", gen.QWEN2), ("llama", gen.LLAMA)):
        small = [[int(v) for v in (gen.uniform(f"{name}{i}", (12 + 17 * i,), 0.5) + 0.5) * (c["vocab_size"] - 1)] for i in range(6)]
        for case, kw in ((name, {}), (f"{name}-lora", {"pet": work / f"{name}-lora"}), (f"{name}-recovery", {"rec": work / f"{name}-recovery.safetensors"})):
            m = load(work / name, **kw)
            cases[case] = [entry(m, ids) for ids in small]
    for case in cases:
        base = cases[case.split("-")[0]]
        n = sum(len(p["greedy"]) for p in base)
        changed = sum(a != b for p, q in zip(cases[case], base) for a, b in zip(p["greedy"], q["greedy"]))
        print(f"{case}: {changed} of {n} greedy tokens differ from the plain backbone's")
    out = Path(__file__).with_name("model.json")
    out.write_text(json.dumps(cases, separators=(",", ":")).replace('"],', '"],\n').replace("},{", "},\n{") + "\n")


if __name__ == "__main__":
    main()
