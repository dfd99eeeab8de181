"""Isolation: a request's text never depends on what else is in the batch.

Rounds of 32 requests over 16 random modules of ranks 4 to 64 and the base, arriving at random; greedy and seeded
sampled ones. Each text must equal, token for token, the same request sent alone. ROUNDS (20; 200 in the long run)
comes from the environment, FIRST_ROUND too: a round depends on its own number alone. One case also reads the step trace: that the batch is really shared.
The same with prompts that begin alike, so that the prefix cache is hit all the time; alone is then a server without it.
"""
import hashlib
import http.client
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "golden"))
import gen
from harness import MODEL, ORIGINAL, Server, case, cpet, main, together

ROUNDS = int(os.environ.get("ROUNDS", "20"))
FIRST = int(os.environ.get("FIRST_ROUND", "0"))
RANKS = [4, 8, 16, 32, 64, 5, 12, 24, 48, 7, 9, 33, 8, 16, 4, 64]
WORK = tempfile.TemporaryDirectory()


def modules():
    cfg = json.loads((Path(ORIGINAL) / "config.json").read_text())
    args = []
    for i, rank in enumerate(RANKS):
        path = Path(WORK.name) / f"m{i}"
        targets = [None, ["q_proj", "v_proj"], ["gate_proj", "up_proj", "down_proj"], ["q_proj", "k_proj", "v_proj", "o_proj"]][i % 4]
        if not path.exists():
            gen.lora(cfg, path, rank, f"iso{i}", strength=0.4, targets=targets)
        args += ["--pet", f"m{i}={path}"]
    return args


def request(rng, base):
    task = rng.choice([base] + [f"m{i}" for i in range(len(RANKS))] * 2)
    body = {"model": task, "prompt": [rng.randint(1000, 40000) for _ in range(rng.choice([3, 17, 40, 90, 200]))], "max_tokens": rng.choice([4, 8, 16]),
            "ignore_eos": True, "logprobs": 2}
    if rng.random() < 0.5:
        body |= {"temperature": 0.9, "top_p": rng.choice([1.0, 0.9]), "top_k": rng.choice([0, 50]), "seed": rng.randint(0, 2**31)}
    else:
        body["temperature"] = 0
    return body


def alike(body, rng, beginnings):
    """The body with a prompt that shares what some other requests begin with."""
    first = rng.choice(beginnings)
    return body | {"prompt": first[:rng.choice([20, 64, 100, 128, 200])] + body["prompt"][:rng.choice([1, 15, 40])],
                   "model": rng.choice([body["model"], "m3", "m4"])}


def answer(s, body, wait=0.0):
    time.sleep(wait)
    c = s.complete(**body)["choices"][0]
    return c["text"], c["logprobs"]["tokens"], c["logprobs"]["token_logprobs"]


def rounds(n, *args, env=None):
    """The prompts are sent three times: without the prefix cache, so that all of each is computed in each batch."""
    with Server(*modules(), "--no-prefix-cache", *args, env=env) as s:
        base = Path(MODEL).name
        for r in range(FIRST, FIRST + n):
            rng = random.Random(f"round {r}")
            bodies = [request(rng, base) for _ in range(32)]
            alone = [answer(s, b) for b in bodies]
            waits = [rng.random() * 0.3 for _ in bodies]
            mixed = together([lambda b=b, w=w: answer(s, b, w) for b, w in zip(bodies, waits)])
            for i, a in enumerate(alone):
                assert mixed[i] == a, f"round {r}, request {i} ({bodies[i]['model']}): {mixed[i]} is not {a}"
            again = together([lambda b=b: answer(s, b) for b in reversed(bodies)])
            for i, m in enumerate(mixed):
                assert again[31 - i] == m, f"round {r}, request {i}: another order of arrival changed the text"
        assert s.stop() == 0


@case
def mixed_rounds_equal_alone():
    rounds(ROUNDS)


@case
def prompts_that_begin_alike():
    """With the prefix cache: arriving at random, twice, against a server without it asked one by one."""
    for args, env in ([], {}), (["--kv", "int8", "--threads", "1"], {"CPETD_CPU_LEVEL": "vnni"}):
        with Server(*modules(), "--no-prefix-cache", *args, env=env) as off, Server(*modules(), *args, env=env) as on:
            hits = 0
            for r in range(FIRST, FIRST + max(1, ROUNDS // 20)):
                rng = random.Random(f"alike {r}")
                beginnings = [[rng.randint(1000, 40000) for _ in range(200)] for _ in range(3)]
                bodies = [alike(request(rng, Path(MODEL).name), rng, beginnings) for _ in range(24)]
                alone = [answer(off, b) for b in bodies]
                for _ in range(2):
                    waits = [rng.random() * 0.3 for _ in bodies]
                    mixed = together([lambda b=b, w=w: answer(on, b, w) for b, w in zip(bodies, waits)])
                    for i, a in enumerate(alone):
                        assert mixed[i] == a, f"round {r}, request {i} ({bodies[i]['model']}): {mixed[i]} is not {a}"
                again = [on.complete(**b | {"max_tokens": 1})["usage"]["prompt_tokens_details"]["cached_tokens"] for b in bodies]
                hits += sum(again)
                assert sum(again) > 0.5 * sum(len(b["prompt"]) for b in bodies), again
            print(f"  {' '.join(args)} {hits} tokens from the cache in the last pass")


@case
def one_thread():
    rounds(max(1, ROUNDS // 10), "--threads", "1")


@case
def every_kernel_level():
    for level in ("avx2", "vnni", "amx"):
        rounds(max(1, ROUNDS // 10), env={"CPETD_CPU_LEVEL": level})


@case
def int8_keys_and_values():
    rounds(max(1, ROUNDS // 10), "--kv", "int8")


@case
def logits_are_equal_at_every_level_and_thread_count():
    """By memcmp: prompts in chunks of 1, 5 and 128 rows, 1 and 2 threads."""
    rng = random.Random(3)
    ids = ",".join(str(rng.randint(1000, 40000)) for _ in range(33))
    modules()
    for level in ("scalar", "avx2", "vnni", "amx"):
        seen = set()
        for chunk, threads in (("128", "2"), ("5", "1"), ("1", "2")):
            out = Path(WORK.name) / "logits.bin"
            cpet("logits", "--model", MODEL, "--pet", f"{WORK.name}/m4", "--ids", ids, "--out", out, "--chunk", chunk, "--threads", threads,
                 env={"CPETD_CPU_LEVEL": level})
            seen.add(out.read_bytes())
        assert len(seen) == 1, f"{level}: the bits depend on chunking or threads"


@case
def batches_are_shared():
    """32 at once over 16 modules: 80 % of the decode steps carry 24 rows or more and 12 slots or more."""
    trace = Path(WORK.name) / "trace.jsonl"
    rng = random.Random(5)
    with Server(*modules(), "--trace-steps", trace) as s:
        bodies = [{"model": f"m{i % 16}", "prompt": [rng.randint(1000, 40000) for _ in range(64)], "max_tokens": 64, "ignore_eos": True, "temperature": 0}
                  for i in range(32)]
        together([lambda b=b: s.complete(**b) for b in bodies])
        s.stop()
    steps = [json.loads(line) for line in trace.read_text().splitlines()]
    decode = [t for t in steps if t["decode_rows"]]
    full = [t for t in decode if t["decode_rows"] >= 24 and t["slots"] >= 12]
    assert len(full) >= 0.8 * len(decode), f"{len(full)} of {len(decode)} decode steps"
    print(f"  {len(full)} of {len(decode)} decode steps carry 24 rows and 12 slots or more")


@case
def long_forms_of_one_tenant_hold_up_no_other():
    """Forms that take long to compile: another tenant's, and an admin call, do not wait behind all of them."""
    def form(i):
        names = {f"k{i}_{j}": {"type": "string", "pattern": f"^(a|b)*a(a|b){{11}}x{{{j}}}$"} for j in range(12)}
        return {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": names, "additionalProperties": False}}}

    keys = Path(WORK.name) / "keys"
    keys.write_text("".join(f"{t}:{hashlib.blake2b(f'{t}-key'.encode(), digest_size=32).hexdigest()}\n" for t in ("many", "one")))
    done, passed = [], []

    def ask(s, tenant, **body):
        status, a, _ = s.post("/v1/completions", {"model": "base", "prompt": "a", "max_tokens": 1, **body}, {"Authorization": f"Bearer {tenant}-key"})
        assert status == 200, a
        done.append(tenant)

    def one(s):
        time.sleep(0.3)
        before = len(done)
        ask(s, "one", structured_outputs={"choice": ["a", "b"]})
        passed.append(done.index("one") - before)
        before = len(done)
        c = http.client.HTTPConnection(*s.admin.split("//")[1].rsplit(":", 1), timeout=120)
        c.request("PUT", "/admin/v1/tasks/t", json.dumps({"modules": []}))
        assert c.getresponse().status == 201
        done.append("admin")
        passed.append(done.index("admin") - before)

    with Server("--name", "base", "--api-keys", keys) as s:
        together([lambda i=i: ask(s, "many", response_format=form(i)) for i in range(16)] + [lambda: one(s)])
        assert max(passed) < 7, (passed, done)


main()
