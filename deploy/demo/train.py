"""Trains the two demo modules with PEFT: `python train.py MODEL_DIR OUT_DIR [task ...]`.

The recipe: rank 4, alpha 8, all seven linears; one pass over 1,280 made-up customer messages (messages.py), batches of
16, AdamW at 1e-3 with a linear fall, loss on the answer only; for triage then one over 640 others at 5e-4; stored in
bf16. MODEL_DIR is what `cpet import` makes.
Then 20 held-out messages are answered with and without the module, and what came out is counted.
Needs torch, transformers and peft; a few minutes a module on two cores.
"""
import json
import random
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from messages import TASKS, dataset

# messages, seed, rate
STAGES = {"extract": [(1280, 1, 1e-3)], "triage": [(1280, 1, 1e-3), (640, 2, 5e-4)]}

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def prompt(text):
    return f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def batch(tok, rows):
    ids = [(tok(prompt(a)).input_ids, tok(b + "<|im_end|>").input_ids) for a, b in rows]
    longest = max(len(a) + len(b) for a, b in ids)
    x = torch.full((len(ids), longest), 2)
    y = torch.full((len(ids), longest), -100)
    m = torch.zeros((len(ids), longest), dtype=torch.long)
    for i, (a, b) in enumerate(ids):
        x[i, :len(a) + len(b)] = torch.tensor(a + b)
        y[i, len(a):len(a) + len(b)] = torch.tensor(b)
        m[i, :len(a) + len(b)] = 1
    return x, y, m


def loss_of(base, x, y, m):
    hidden = base.model(input_ids=x, attention_mask=m).last_hidden_state
    at = y[:, 1:] != -100  # logits of the answer's positions only: the vocabulary is most of the work
    return torch.nn.functional.cross_entropy(base.lm_head(hidden[:, :-1][at]).float(), y[:, 1:][at])


def run_stage(base, model, tok, task, n, seed, rate):
    """One pass over n messages."""
    rows = dataset(task, n, seed=seed)
    steps = len(rows) // 16
    opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    fall = torch.optim.lr_scheduler.LambdaLR(opt, lambda s: min(1.0, (s + 1) / 10) * (1 - s / steps))
    order = list(range(len(rows)))
    random.Random(2).shuffle(order)
    for s in range(steps):
        total = 0.0
        for part in range(4):  # four at a time: little memory, the same gradient
            at = 16 * s + 4 * part
            loss = loss_of(base, *batch(tok, [rows[i] for i in order[at:at + 4]])) / 4
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        fall.step()
        opt.zero_grad()
        if s % 5 == 0 or s == steps - 1:
            print(f"{task}: step {s} of {steps}, loss {total:.4f}", flush=True)


def train(model_dir, task, out, first=0):
    torch.manual_seed(0)
    tok = AutoTokenizer.from_pretrained(model_dir)
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16)
    if first:  # goes on with what an earlier run left in OUT_DIR
        model = PeftModel.from_pretrained(base, out, is_trainable=True)
    else:
        model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, task_type="CAUSAL_LM",
                                                target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]))
    for n, seed, rate in STAGES[task][first:]:
        run_stage(base, model, tok, task, n, seed, rate)
    base.config._name_or_path = "SmolLM2-135M-Instruct (dequantized Q4_1)"
    model.peft_config["default"].base_model_name_or_path = base.config._name_or_path
    model.save_pretrained(out)
    weights = load_file(out / "adapter_model.safetensors")
    save_file({k: v.to(torch.bfloat16).contiguous() for k, v in weights.items()}, out / "adapter_model.safetensors", metadata={"format": "pt"})
    (out / "README.md").unlink(missing_ok=True)
    return model, tok


def answer(model, tok, text):
    x = tok(prompt(text), return_tensors="pt")
    y = model.generate(**x, max_new_tokens=64, do_sample=False, pad_token_id=2, eos_token_id=2)
    return tok.decode(y[0, x.input_ids.shape[1]:], skip_special_tokens=True).strip()


def held_out(model, tok, task):
    model.eval()
    right = base_right = 0
    for text, want in dataset(task, 20, seed=3, held_out=True):
        got = answer(model, tok, text)
        with model.disable_adapter():
            base = answer(model, tok, text)
        right += got == want
        base_right += base == want
        print(json.dumps({"message": text, "want": want, "got": got, "base": base[:80]}, ensure_ascii=False), flush=True)
    print(f"{task}: {right} of 20 held-out answers as trained; the base model: {base_right}", flush=True)


def main():
    model_dir, out_dir, tasks = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] or sorted(TASKS)
    for task in tasks:
        task, _, first = task.partition(":")  # triage:1 starts at the second stage
        model, tok = train(model_dir, task, out_dir / task, int(first or 0))
        held_out(model, tok, task)


if __name__ == "__main__":
    main()
