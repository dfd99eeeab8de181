"""Valid requests in seeded, timed interleavings: each answer is that of the same request alone.

A seed makes a schedule: some fifty requests (streams and not, n, best_of, log-probabilities, structured outputs, embeddings,
scores) of several tasks, each begun at a time of its own; some clients leave at a random moment, before the answer or in the
middle of a stream; beside them administrators register, point tasks to and fro, and delete. There are few pages and little
memory for modules, so that generations are preempted and modules put out. What a client got before it left must be the
beginning of what it gets alone. At the end of each seed no page, module or descriptor is held.

SEEDS (3; with LONG=1 150) and FIRST_SEED come from the environment. A failed seed is printed; FIRST_SEED=N SEEDS=1 runs it
again.
"""
import json
import os
import random
import socket
import threading
import time

import tiny
from harness import case, cpet, main, together
from tiny import HOME, LONG, addresses, call, descriptors, metrics, settles, start

SEEDS = int(os.environ.get("SEEDS", "150" if LONG else "3"))
FIRST = int(os.environ.get("FIRST_SEED", "0"))
SPECS = 48
TASKS = ["base", "t0", "t1", "t2", "t3"]  # what the test asks; t0 to t3 have module m0 to m3
RANKS = [4, 16, 8, 32]
SMALL = ["--max-context", "512", "--inject-delay-ms", "2", "--pet-bytes", "480K"]


def specs():
    """(path, body without model) of each kind, the same in every run."""
    rng = random.Random("interleave")
    shared = [rng.randint(10, 690) for _ in range(200)]
    out = []
    for i in range(SPECS):
        prompt = shared[:rng.choice([0, 0, 40, 96, 200])] + [rng.randint(10, 690) for _ in range(rng.choice([1, 20, 70]))]
        body = {"prompt": prompt, "max_tokens": rng.choice([1, 10, 60, 150]), "seed": i, "temperature": rng.choice([0, 0.8, 1.2]), "ignore_eos": True}
        kind = i % 8
        if kind == 0:
            body["max_tokens"] = 230
        elif kind == 1:
            body |= {"n": 3, "logprobs": 2}
        elif kind == 2:
            body |= {"n": 2, "best_of": 4, "max_tokens": 20}
        elif kind == 3:
            body |= {"logprobs": 5, "echo": True, "max_tokens": 8}
        elif kind == 4:
            body |= {"structured_outputs": rng.choice([{"regex": "[a-f]{5,30}x"}, {"choice": ["return", "repair", "question"]}, {"json": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}, "required": ["a", "b"], "additionalProperties": False}}]),
                     "max_tokens": 60}
            del body["ignore_eos"]
        elif kind == 5:
            out.append(("/v1/embeddings", {"input": prompt, "pooling": rng.choice(["mean", "last"])}))
            continue
        elif kind == 6:
            out.append(("/v1/chat/completions", {"messages": [{"role": "user", "content": f"Number {i}"}], "max_tokens": 40, "temperature": 0.7, "seed": i, "logprobs": True, "top_logprobs": 2}))
            continue
        elif kind == 7:
            body |= {"prompt_logprobs": 2, "max_tokens": 4, "stop": ["q", "zz"]}
        out.append(("/v1/completions", body))
    return out


def may_stream(path, body):
    return path != "/v1/embeddings" and "prompt_logprobs" not in body and body.get("best_of", 1) <= body.get("n", 1)


def essence(answer):
    """What must be equal: all of it but ids, times, the model's name and what was cached."""
    return json.dumps({"choices": [{k: v for k, v in c.items()} for c in answer.get("choices", [])], "data": answer.get("data"),
                       "prompt_logprobs": answer.get("prompt_logprobs"), "usage": {k: v for k, v in answer["usage"].items() if k != "prompt_tokens_details"}}, sort_keys=True)


def texts(answer):
    return {c["index"]: c["text"] if "text" in c else c["message"]["content"] for c in answer.get("choices", [])}


class Client:
    """One request of a schedule: when it begins, whether and when its client leaves."""

    def __init__(self, rng, which, spec, alone):
        self.delay, self.which = rng.random(), which
        self.path, body = spec
        self.task = rng.choice(TASKS)
        self.stream = may_stream(*spec) and rng.random() < 0.5
        self.body = {**body, "model": self.task, **({"stream": True} if self.stream else {})}
        self.leaves = rng.random() * 0.4 if rng.random() < 0.3 else None
        self.slow = rng.random() < 0.15
        self.want = alone[which][self.task]

    def run(self, where):
        time.sleep(self.delay)
        data = json.dumps(self.body).encode()
        head = f"POST {self.path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        end = time.monotonic() + (self.leaves if self.leaves is not None else 120)
        got = b""
        with socket.create_connection(where, timeout=120) as k:
            k.sendall(head)
            if self.slow:
                for i in range(0, len(data), max(1, len(data) // 8)):
                    k.sendall(data[i:i + max(1, len(data) // 8)])
                    time.sleep(0.01)
            else:
                k.sendall(data)
            while True:
                left = end - time.monotonic()
                if left <= 0:
                    break
                k.settimeout(left)
                try:
                    part = k.recv(500 if self.slow else 65536)
                except TimeoutError:
                    break
                if not part:
                    self.judge(got, True)
                    return
                got += part
        assert self.leaves is not None, f"request {self.which}: no end after 120 s"
        self.judge(got, False)

    def judge(self, got, whole):
        head, _, body = got.partition(b"\r\n\r\n")
        if not head:
            assert not whole, f"request {self.which}: no answer"
            return
        assert head.startswith(b"HTTP/1.1 200"), f"request {self.which} of {self.task}: {got[:300]!r}"
        body = unchunk(body) if b"chunked" in head.lower() else body
        if self.stream:
            self.judge_stream(body, whole)
        elif whole:
            assert essence(json.loads(body)) == self.want[0], f"request {self.which} of {self.task}: {body[:300]!r}, alone {self.want[0][:300]}"

    def judge_stream(self, body, whole):
        got, done = {}, False
        for line in body.decode("utf-8", "ignore").split("\n\n")[:None if whole else -1]:
            if line == "data: [DONE]":
                done = True
            elif line:
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, f"request {self.which} of {self.task}: {line}"
                for c in event["choices"]:
                    got[c["index"]] = got.get(c["index"], "") + (c["text"] if "text" in c else c["delta"].get("content") or "")
        for i, text in got.items():
            same = text == self.want[1][i] if whole else self.want[1][i].startswith(text)
            assert same, f"request {self.which} of {self.task}, choice {i}: {text!r}, alone {self.want[1][i]!r}"
        assert not whole or (done and set(got) == set(self.want[1])), f"request {self.which} of {self.task}: the stream broke off"


def unchunk(data):
    out = b""
    while data:
        size, _, rest = data.partition(b"\r\n")
        try:
            n = int(size, 16)
        except ValueError:
            break
        out += rest[:n]
        data = rest[n + 2:]
    return out


class Administrator:
    """Changes what must not matter: other names, other tasks, other contents of names whose tasks are pinned by version."""

    def __init__(self, seed, where):
        self.rng, self.where = random.Random(f"admin {seed}"), where
        self.until = time.monotonic() + 2.5

    def run(self):
        rng, pets = self.rng, [(HOME / f"modules/m{i}.pet").read_bytes() for i in range(4)]
        while time.monotonic() < self.until:
            name, i = f"other{rng.randrange(3)}", rng.randrange(4)
            act = rng.randrange(8)
            if act == 0:
                self.do("PUT", f"/admin/v1/modules/{name}", {"path": f"m{i}"})
            elif act == 1:
                self.do("PUT", f"/admin/v1/modules/{name}", pets[i])
            elif act == 2:
                self.do("PUT", f"/admin/v1/tasks/{name}", {"modules": [f"m{i}", {"name": f"m{(i + 1) % 4}", "weight": 0.5}]})
            elif act == 3:
                self.do("DELETE", f"/admin/v1/tasks/{name}")
            elif act == 4:
                self.do("DELETE", f"/admin/v1/modules/{name}{rng.choice(['', '?drain=1'])}")
            elif act == 5:  # the task as it is: another writing of the same
                self.do("PUT", f"/admin/v1/tasks/t{i}", {"modules": [f"m{i}"]})
            elif act == 6:  # the name gets another content, its task stays on its version; then the content is back
                self.do("PUT", f"/admin/v1/modules/m{i}", {"path": f"m{(i + 1) % 4}"})
                self.do("PUT", f"/admin/v1/modules/m{i}", {"path": f"m{i}"})
            else:
                self.do("GET", rng.choice(["/admin/v1/tasks", "/admin/v1/modules", "/metrics", f"/admin/v1/tasks/t{i}"]))
            time.sleep(rng.random() * 0.03)

    def do(self, method, path, body=None):
        status, text = call(self.where, method, path, body)
        assert status in (200, 201, 202, 204, 404, 409, 413), f"{method} {path}: {status} {text[:300]!r}"


def alone(all_specs):
    """[spec][task]: (essence, texts) of each request by itself on a quiet server with room for everything."""
    pets = [x for i in range(4) for x in ("--pet", f"t{i}={tiny.module(f'm{i}', RANKS[i])}")]
    out = []
    with start("--no-prefix-cache", *pets) as s:
        for path, body in all_specs:
            row = {}
            for task in TASKS:
                status, text = call(addresses(s)[0], "POST", path, {**body, "model": task})
                assert status == 200, (path, body, text)
                answer = json.loads(text)
                row[task] = essence(answer), texts(answer)
            out.append(row)
    differ = sum(len({row[t][0] for t in TASKS}) == len(TASKS) for row in out)
    assert differ > SPECS * 3 // 4, f"the modules change too little to be told apart: {differ}"
    return out


def register(s):
    for i in range(4):
        for path, body in ((f"modules/m{i}", {"path": f"m{i}"}), (f"tasks/t{i}", {"modules": [f"m{i}"]})):
            status, text = call(addresses(s)[1], "PUT", f"/admin/v1/{path}", body)
            assert status == 201, text


def seed_run(s, seed, all_specs, want):
    rng = random.Random(f"interleave {seed}")
    api, admin = addresses(s)
    problems = []
    clients = [Client(rng, w, all_specs[w], want) for w in (rng.choice([rng.randrange(SPECS), rng.randrange(0, SPECS, 8)]) for _ in range(48))]

    def guarded(f, *args):
        try:
            f(*args)
        except Exception as e:
            problems.append(f"{type(e).__name__}: {e}")

    jobs = [lambda c=c: guarded(c.run, api) for c in clients]
    jobs.append(lambda: guarded(Administrator(seed, admin).run))
    together(jobs)
    assert not problems, f"seed {seed}: {len(problems)} wrong: " + "; ".join(problems[:3])


@case
def interleavings():
    all_specs = specs()
    want = alone(all_specs)
    for i in range(4):
        if not (HOME / f"modules/m{i}.pet").exists():
            cpet("pet", "pack", HOME / f"modules/m{i}", HOME / f"modules/m{i}.pet")
    count = {}
    for config in (("--kv-bytes", "1200K"), ("--kv-bytes", "1200K", "--no-prefix-cache", "--prefill-chunk", "32", "--max-rows", "48")):
        with start(*SMALL, "--module-root", HOME / "modules", "--data", HOME / f"data{len(config)}", *config) as s:
            register(s)
            files = descriptors(s)
            for seed in range(FIRST, FIRST + (SEEDS if len(config) == 2 else max(1, SEEDS // 3))):
                seed_run(s, seed, all_specs, want)
                settles(lambda: metrics(s)["cpet_requests_active"] == 0, f"seed {seed}: all requests end")
                settles(lambda: (lambda m: m["cpet_kv_pages_free"] == m["cpet_kv_pages"])(metrics(s)), f"seed {seed}: pages come back")
            settles(lambda: descriptors(s) <= files + 4, "descriptors come back")
            m = metrics(s)
            for name in ("cpet_preemptions_total", "cpet_module_evictions_total", "vllm:prefix_cache_hits_total", "cpet_sampled_tokens_total"):
                count[name] = count.get(name, 0) + m[name]
            assert m["cpet_step_errors_total"] == 0
            assert s.stop() == 0
    print(", ".join(f"{k} {v:.0f}" for k, v in count.items()), flush=True)
    assert count["cpet_preemptions_total"] and count["cpet_module_evictions_total"] and count["vllm:prefix_cache_hits_total"], count


if __name__ == "__main__":
    main()
