"""The prefix cache through cpetd: what is computed again, for whom, and that the answers are those without it.

Rows are counted by --trace-steps, answers compared with their log-probabilities by equality, with a server that has
--no-prefix-cache where it says so.
"""
import hashlib
import http.client
import json
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "golden"))
import gen
from harness import MODEL, ORIGINAL, Server, case, main, together

WORK = tempfile.TemporaryDirectory()
TRACE = Path(WORK.name) / "trace.jsonl"
BASE = Path(MODEL).name
PAGE = 32


def ids(n, seed):
    rng = random.Random(seed)
    return [rng.randint(1000, 40000) for _ in range(n)]


def module(name):
    path = Path(WORK.name) / name
    if not path.exists():
        gen.lora(json.loads((Path(ORIGINAL) / "config.json").read_text()), path, 8, name, strength=0.4)
    return path


def ask(s, prompt, key=None, **more):
    """(what was answered, with log-probabilities; the usage)"""
    body = {"model": BASE, "prompt": prompt, "max_tokens": 6, "ignore_eos": True, "temperature": 0, "logprobs": 3, **more}
    status, a, _ = s.post("/v1/completions", body, {"Authorization": f"Bearer {key}"} if key else {})
    assert status == 200, a
    return [(c["text"], c["logprobs"]) for c in a["choices"]], a["usage"]


def cached(usage):
    return usage["prompt_tokens_details"]["cached_tokens"]


def put(s, path, body):
    c = http.client.HTTPConnection(*s.admin.split("//")[1].rsplit(":", 1), timeout=30)
    c.request("PUT", path, json.dumps(body), {"Content-Type": "application/json"})
    r = c.getresponse()
    text = r.read()
    assert r.status in (200, 201), text


def metric(s, name):
    text = s.get("/metrics", admin=True)[1]
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith((name + "{", name + " ")))


def traced():
    """Prompt rows a step of the server that has just stopped."""
    return [t["prefill_rows"] for t in map(json.loads, TRACE.read_text().splitlines()) if t["prefill_rows"]]


@case
def repeated_prompt_computes_one_page():
    """In all three types of keys and values, with the bits of a server without the cache, alone and in streams."""
    prompt = ids(1024, 1)
    for kv in ("f32", "bf16", "int8"):
        with Server("--kv", kv, "--no-prefix-cache", "--trace-steps", TRACE) as s:
            want, usage = ask(s, prompt)
            again, usage = ask(s, prompt)
            assert again == want and cached(usage) == 0
            s.stop()
        assert sum(traced()) == 2 * 1024
        with Server("--kv", kv, "--trace-steps", TRACE) as s:
            first, usage = ask(s, prompt)
            assert cached(usage) == 0
            second, usage = ask(s, prompt)
            assert cached(usage) == 1024 - PAGE
            assert first == want and second == want, f"{kv}: other bits"
            assert metric(s, "vllm:prefix_cache_queries_total") == 2048 and metric(s, "vllm:prefix_cache_hits_total") == 1024 - PAGE
            s.stop()
        rows = traced()
        assert sum(rows[:-1]) == 1024 and rows[-1] == PAGE, rows


@case
def usage_in_a_stream():
    with Server() as s:
        body = {"model": BASE, "prompt": ids(100, 2), "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}}
        for want in (0, 96):
            text = s.post("/v1/completions", body)[1]
            chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
            assert cached(chunks[-1]["usage"]) == want, chunks[-1]


@case
def at_once_computes_the_beginning_once():
    """Twelve at once with 256 tokens in common: these are read once, and each gets what it gets alone."""
    common, n = ids(256, 3), 12
    prompts = [common + ids(20 + i, f"own {i}") for i in range(n)]
    with Server("--no-prefix-cache") as s:
        alone = [ask(s, p)[0] for p in prompts]
    with Server("--trace-steps", TRACE) as s:
        answers = together([lambda p=p: ask(s, p) for p in prompts])
        s.stop()
    assert [a for a, _ in answers] == alone
    assert sorted(cached(u) for _, u in answers) == [0] + [256] * (n - 1), [cached(u) for _, u in answers]
    assert sum(traced()) == 256 + sum(20 + i for i in range(n)), traced()


@case
def next_turn_of_a_chat():
    messages = [{"role": "user", "content": "Tell me a long story about a lighthouse keeper and the sea."}]
    with Server() as s:
        for turn in range(3):
            a = s.post("/v1/chat/completions", {"model": BASE, "messages": messages, "max_tokens": 80, "temperature": 0, "ignore_eos": True})[1]
            n, hit = a["usage"]["prompt_tokens"], cached(a["usage"])
            # the answer's text need not become the tokens that were sampled, but its beginning does
            assert hit >= (n - 120) // PAGE * PAGE if turn else hit == 0, f"turn {turn}: {hit} of {n}"
            messages += [{"role": "assistant", "content": a["choices"][0]["message"]["content"]}, {"role": "user", "content": "Go on."}]


@case
def only_alike_share():
    """Neither another module nor another tenant finds anything; the same content under another name does."""
    keys = Path(WORK.name) / "keys"
    keys.write_text("".join(f"{t}:{hashlib.blake2b(k.encode(), digest_size=32).hexdigest()}\n" for t, k in (("anna", "key-a"), ("bert", "key-b"), ("anna", "key-c"))))
    prompt = ids(200, 4)
    with Server("--api-keys", keys, "--public-metrics", "--pet", f"x={module('x')}", "--pet", f"y={module('y')}", "--pet", f"z={module('x')}") as s:
        for task in (BASE, "x", "y"):
            a, usage = ask(s, prompt, "key-a", model=task)
            assert cached(usage) == 0, task
            b, usage = ask(s, prompt, "key-b", model=task)
            assert cached(usage) == 0 and a == b, task
            c, usage = ask(s, prompt, "key-c", model=task)
            assert cached(usage) == 192 and c == a, task
        a = ask(s, prompt, "key-a", model="x")
        assert ask(s, prompt, "key-a", model="z") == a and cached(a[1]) == 192


@case
def a_module_put_anew_finds_nothing_old():
    """A task is pointed to another content, by the same names, and back: each content has its own pages, and the first
    one's are still there."""
    contents = [module(name) for name in ("first", "second")]
    prompt = ids(200, 6)
    with Server("--no-prefix-cache", *(f"--pet=t{i}={p}" for i, p in enumerate(contents))) as s:
        want = [ask(s, prompt, model=f"t{i}")[0] for i in range(2)]
    assert want[0] != want[1]
    with Server("--data", Path(WORK.name) / "data", "--module-root", WORK.name) as s:
        for content, hit in ((0, 0), (0, 192), (1, 0), (1, 192), (0, 192)):
            put(s, "/admin/v1/modules/m", {"path": str(contents[content])})
            put(s, "/admin/v1/tasks/t", {"modules": ["m"]})
            a, usage = ask(s, prompt, model="t")
            assert a == want[content] and cached(usage) == hit, (content, usage)
        put(s, "/admin/v1/tasks/t", {"modules": [{"name": "m", "weight": 0.5}]})
        assert cached(ask(s, prompt, model="t")[1]) == 0


@case
def scores_choices_and_lists():
    """Log-probabilities of the prompt are computed whole; choices, best_of and lists of prompts use the cache."""
    prompt, bodies = ids(150, 5), [{"n": 3, "temperature": 1, "seed": 7}, {"n": 2, "best_of": 4, "temperature": 1, "seed": 8}, {"n": 1, "top_p": 0.5, "temperature": 1, "seed": 9}]
    with Server("--no-prefix-cache") as s:
        want = [ask(s, prompt, **b)[0] for b in bodies]
        echo = ask(s, prompt, echo=True)[0]
    with Server() as s:
        assert ask(s, prompt, echo=True)[0] == echo
        a, usage = ask(s, prompt, echo=True)
        assert a == echo and cached(usage) == 0
        for body, w in zip(bodies, want):
            a, usage = ask(s, prompt, **body)
            assert a == w and cached(usage) == 128, (body, usage)
        a, usage = ask(s, [prompt, prompt[:100]], **bodies[2])
        assert a[0] == want[2][0] and cached(usage) == 128 + 96, usage


@case
def small_pool():
    """More beginnings than pages, long answers: pages are given out again, some requests wait or are preempted; all
    answers are those without the cache."""
    bodies = []
    for i in range(16):
        rng = random.Random(f"small {i}")
        bodies.append({"prompt": ids(rng.choice([96, 160]), f"beginning {i % 5}") + ids(rng.choice([1, 30]), i), "max_tokens": rng.choice([4, 60])})
    with Server("--no-prefix-cache") as s:
        want = together([lambda b=b: ask(s, **b)[0] for b in bodies])
    with Server("--max-context", "512", "--kv-bytes", "24M") as s:
        for _ in range(2):
            answers = together([lambda b=b: ask(s, **b) for b in bodies])
            assert [a for a, _ in answers] == want
        assert sum(cached(u) for _, u in answers) > 0
        end = time.monotonic() + 5
        while metric(s, "cpet_kv_pages_free") != metric(s, "cpet_kv_pages"):
            assert time.monotonic() < end, "pages are held"
        assert metric(s, "cpet_kv_pages_kept") > 0


main()
