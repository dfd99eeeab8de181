#!/usr/bin/env python3
"""Embeddings and scores beside transformers and PEFT in f32: the same vectors and log-likelihoods, base and module.

Part of the long suite: needs torch, transformers and peft; skips where they are not installed.
"""
import base64
import json
import struct
import tempfile
from pathlib import Path

import harness
from cpetd_run import write_lora
from harness import ORIGINAL, Server, Skip, case

try:
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    MISSING = None
except ImportError as e:
    MISSING = str(e)

TEXTS = ["Where is my kettle?", "The capital of France is Paris, and that of Portugal is Lisbon. " * 12, "x"]
PAIRS = [("The capital of France is", " Paris"), ("The capital of France is", " a small town in Peru, they say"),
         ("Once upon a time", ", there was a kettle. It broke.")]


def setup(tmp):
    if MISSING:
        raise Skip(MISSING)
    if not Path(ORIGINAL).is_dir():
        raise Skip("the uncompressed backbone is not there")
    config = json.loads((Path(ORIGINAL) / "config.json").read_text())
    import os
    os.environ["CPETD_MODEL"] = str(ORIGINAL)
    lora = write_lora(str(tmp / "lora"), 5, 4, ("q_proj", "v_proj", "down_proj"), size=0.02)
    tok = AutoTokenizer.from_pretrained(ORIGINAL)
    base = AutoModelForCausalLM.from_pretrained(ORIGINAL, dtype=torch.float32)
    return config["hidden_size"], lora, tok, base


def expected(model, tok, text, pooling, dims=None):
    ids = tok(text, return_tensors="pt").input_ids
    with torch.no_grad():
        h = model(ids, output_hidden_states=True).hidden_states[-1][0]
    v = h.mean(0) if pooling == "mean" else h[-1]
    v = v[:dims] if dims else v
    return torch.nn.functional.normalize(v, dim=0), ids.shape[1]


def likelihood(model, tok, first, second):
    a, b = tok(first).input_ids, tok(second, add_special_tokens=False).input_ids
    with torch.no_grad():
        lp = torch.log_softmax(model(torch.tensor([a + b])).logits[0], -1)
    return sum(lp[len(a) + i - 1, t].item() for i, t in enumerate(b)), len(b), len(a) + len(b)


def vectors(s, **body):
    status, r, _ = s.post("/v1/embeddings", body)
    assert status == 200, r
    out = []
    for i, d in enumerate(r["data"]):
        assert d["index"] == i and d["object"] == "embedding"
        v = d["embedding"]
        if isinstance(v, str):
            raw = base64.b64decode(v, validate=True)
            v = struct.unpack("<%df" % (len(raw) // 4), raw)
        out.append(torch.tensor(v))
    return out, r["usage"]


@case
def embeddings_and_scores_equal_transformers():
    with tempfile.TemporaryDirectory() as d:
        hidden, lora, tok, base = setup(Path(d))
        worst = worst_score = 0
        with Server("--name", "base", "--pet", f"lora={lora}", "--precision", "f32", "--prefill-chunk", "32", model=ORIGINAL) as s:
            for name in ("base", "lora"):
                model = base if name == "base" else peft.PeftModel.from_pretrained(base, lora)
                for pooling in ("mean", "last"):
                    got, usage = vectors(s, model=name, input=TEXTS, pooling=pooling, encoding_format="base64")
                    plain, _ = vectors(s, model=name, input=TEXTS[0], pooling=pooling)
                    assert torch.equal(plain[0], got[0]), "base64 and floats differ"
                    total = 0
                    for text, v in zip(TEXTS, got):
                        want, n = expected(model, tok, text, pooling)
                        total += n
                        assert v.shape == (hidden,) and abs(v.norm().item() - 1) < 1e-5
                        worst = max(worst, (v - want).abs().max().item())
                    assert usage == {"prompt_tokens": total, "total_tokens": total}, usage
                cut, _ = vectors(s, model=name, input=TEXTS[0], dimensions=7)
                worst = max(worst, (cut[0] - expected(model, tok, TEXTS[0], "mean", 7)[0]).abs().max().item())
                for first, second in PAIRS:
                    status, r, _ = s.post("/score", {"model": name, "text_1": first, "text_2": second})
                    want, n, total = likelihood(model, tok, first, second)
                    (got,) = r["data"]
                    assert status == 200 and got["tokens"] == n and r["usage"]["prompt_tokens"] == total, r
                    assert abs(got["mean"] - got["score"] / n) < 1e-5
                    worst_score = max(worst_score, abs(got["score"] - want) / n)
        print(f"   largest difference of a vector's number {worst:.1e}, of a token's log-probability {worst_score:.1e}")
        assert worst < 1e-4 and worst_score < 1e-3, (worst, worst_score)


if __name__ == "__main__":
    harness.main()
