"""Logits in float32 against the golden ones of transformers and PEFT (tests/golden/model.json). Needs numpy."""
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "golden"))
import gen
from harness import ORIGINAL, ROOT, Server, case, cpet, main

GOLDEN = json.loads((ROOT / "tests/golden/model.json").read_text())
WORK = tempfile.TemporaryDirectory()
gen.make_all(ORIGINAL, WORK.name)


def fixed(vocab):
    return [(i * 191 + 7) % vocab for i in range(256)]


def logits(args, ids):
    out = Path(WORK.name) / "logits.bin"
    cpet("logits", *args, "--precision", "f32", "--ids", ",".join(map(str, ids)), "--out", out)
    return np.fromfile(out, np.float32).reshape(len(ids), -1)


def compare(name, args, bound):
    base = GOLDEN[name.split("-")[0]]
    changed = total = 0
    worst = 0.0
    for want, plain in zip(GOLDEN[name], base):
        x = logits(args, want["ids"])
        last = x[-1].astype(np.float64)
        top = np.array([i for i, _ in want["top"]])
        diff = [abs(np.log(np.exp(last - last.max()).sum()) + last.max() - want["lse"]), np.abs(last[top] - [v for _, v in want["top"]]).max(),
                np.abs(last[fixed(len(last))] - want["fixed"]).max()]
        worst = max(worst, *diff)
        greedy = x.argmax(1).tolist()
        assert greedy == want["greedy"], f"greedy tokens {greedy} are not {want['greedy']}"
        changed += sum(a != b for a, b in zip(greedy, plain["greedy"]))
        total += len(greedy)
    assert worst < bound, f"{name}: off by {worst:.2e}, bound {bound}"
    if "-" in name:
        assert changed >= 0.2 * total, f"{name}: the module changes only {changed} of {total} greedy tokens"
    print(f"  {name}: largest difference {worst:.2e}; {changed} of {total} greedy tokens changed")


def work(name):
    return str(Path(WORK.name) / name)


@case
def demo_backbone():
    compare("demo", ["--model", ORIGINAL], 1e-3)


@case
def demo_with_lora():
    compare("demo-lora", ["--model", ORIGINAL, "--pet", work("lora")], 2e-3)


@case
def demo_with_linear_recovery():
    compare("demo-recovery-linear", ["--model", ORIGINAL, "--recovery", work("recovery-linear.safetensors")], 2e-3)


@case
def demo_with_gelu_recovery():
    compare("demo-recovery-gelu", ["--model", ORIGINAL, "--recovery", work("recovery-gelu.safetensors")], 2e-3)


def small(name, suffix=None, *args):
    compare(name + (f"-{suffix}" if suffix else ""), ["--model", work(name), *args], 2e-3 if suffix else 1e-3)


@case
def qwen2_with_biases_and_untied_head():
    small("qwen2")
    small("qwen2", "lora", "--pet", work("qwen2-lora"))
    small("qwen2", "recovery", "--recovery", work("qwen2-recovery.safetensors"))


@case
def llama_with_biases_and_scaled_rope():
    small("llama")
    small("llama", "lora", "--pet", work("llama-lora"))
    small("llama", "recovery", "--recovery", work("llama-recovery.safetensors"))


def served(name, model, *args):
    """The first token's log-probability from cpetd is the golden one."""
    with Server("--precision", "f32", "--name", "base", *args, model=ORIGINAL) as s:
        for want in GOLDEN[name][:8]:
            got = s.complete(model=model, prompt=want["ids"], max_tokens=1, temperature=0, logprobs=1, ignore_eos=True)
            lp, ref = got["choices"][0]["logprobs"]["token_logprobs"][0], want["top"][0][1] - want["lse"]
            assert abs(lp - ref) < 2e-3, f"{name}: log-probability {lp}, not {ref}"


@case
def served_with_recovery_and_module():
    served("demo", "base")
    served("demo-lora", "task", "--pet", f"task={work('lora')}")
    served("demo-recovery-gelu", "base", "--recovery", work("recovery-gelu.safetensors"))


@case
def chunking_changes_no_bit():
    ids = GOLDEN["demo"][4]["ids"]
    whole = logits(["--model", ORIGINAL, "--pet", work("lora")], ids)
    for chunk in ("1", "3", "7"):
        part = logits(["--model", ORIGINAL, "--pet", work("lora"), "--chunk", chunk], ids)
        assert whole.tobytes() == part.tobytes(), f"chunks of {chunk}"


main()
