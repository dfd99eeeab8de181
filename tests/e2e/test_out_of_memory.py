"""Allocations of the whole server fail, one after another: during start, requests, and changes by the admin API.

tests/alloc/fail_alloc.c is preloaded and told through a shared file which allocation fails. Start: a server is started
for each one; it says why on stderr and ends with 1 or 78, or it serves. Requests and loads: one server, and for each
allocation of a call, the call is made with that one failing; it gives its right answer or an error, and the same call
without a failure is right again. Nothing crashes or hangs; the end is 0.

A sample in tests/run; all of them with LONG=1. FAIL_ALLOC names the library.
"""
import collections
import http.client
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import tempfile
import time
from pathlib import Path

import tiny
from harness import CPETD, Skip, case, cpet, main
from tiny import HOME, LONG, addresses, call, start

LIBRARY = os.environ.get("FAIL_ALLOC", str(Path(CPETD).parent / "tests/alloc/libfail_alloc.so"))
STARTS = 1 << 30 if LONG else int(os.environ.get("STARTS", "60"))  # at most so many of each
CALLS = 1 << 30 if LONG else int(os.environ.get("CALLS", "40"))
SECONDS = float(os.environ.get("SECONDS_EACH", "3600" if LONG else "20"))
ASK = {"model": "base", "prompt": "Hello there", "max_tokens": 6, "temperature": 0, "ignore_eos": True}


class Control:
    """The numbers that a process and the test share."""

    def __init__(self):
        self.file = tempfile.NamedTemporaryFile()
        self.file.truncate(4096)
        self.map = mmap.mmap(self.file.fileno(), 4096)
        self.env = {"LD_PRELOAD": LIBRARY, "CPET_FAIL_ALLOC": self.file.name}

    def get(self, i):
        return struct.unpack_from("<Q", self.map, 8 * i)[0]

    seen = property(lambda self: self.get(0))
    failed = property(lambda self: self.get(3))

    def arm(self, first, last=None):
        struct.pack_into("<Q", self.map, 16, last or first)
        struct.pack_into("<Q", self.map, 8, first)

    def arm_next(self, k, more=0):
        self.arm(self.seen + k, self.seen + k + more)

    def disarm(self):
        struct.pack_into("<Q", self.map, 8, 0)

    def clear(self):
        self.map[:40] = bytes(40)

    def caller(self, pid):
        """Where the last failed one was asked for, as FILE+OFFSET."""
        at = self.get(4)
        try:
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                span, _, offset, _, _, *name = line.split()
                a, b = (int(x, 16) for x in span.split("-"))
                if a <= at < b:
                    return f"{name[0] if name else '?'}+{at - a + int(offset, 16):#x}"
        except OSError:
            pass
        return hex(at)


def need_library():
    if not os.path.exists(LIBRARY):
        raise Skip(f"{LIBRARY} is absent")


def chosen(n, most, seed):
    """1 to n, or that many of them: the first and last ones, and some between."""
    if n <= most:
        return list(range(1, n + 1))
    return sorted(set(random.Random(seed).sample(range(1, n + 1), most)))


def command():
    return [CPETD, "--name", "base", "--model", str(tiny.model()), "--threads", "1", "--kv-bytes", "4M", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
            "--pet", f"t={tiny.module('m0')}", "--module-root", str(HOME / "modules"), "--data", str(HOME / "start")]


def one_start(c, n, more=0):
    """Starts with the n-th allocation failing. What became of it, and how many allocations there were until ready."""
    c.clear()
    c.arm(n, n + more)
    with tempfile.NamedTemporaryFile("a") as log:
        p = subprocess.Popen(command(), stderr=log, stdin=subprocess.DEVNULL, env={**os.environ, **c.env})
        try:
            end, text = time.monotonic() + 60, ""
            while p.poll() is None and "cpetd: ready" not in text:
                assert time.monotonic() < end, f"start with allocation {n} failing: hangs ({c.caller(p.pid)}): {text[-300:]}"
                time.sleep(0.003)
                text = Path(log.name).read_text()
            seen = c.seen
            if p.poll() is None:
                where = text.split("cpetd: listening on http://")[1].split()[0].rsplit(":", 1)
                for _ in range(1 + more + 2):  # the failing one may be among those of the first requests
                    status, answer = 0, b""
                    try:
                        status, answer = call((where[0], int(where[1])), "POST", "/v1/completions", ASK)
                    except (OSError, http.client.HTTPException):
                        pass
                    assert status in (0, 200, 500, 503), f"allocation {n}: {status} {answer[:200]!r}"
                    if status == 200:
                        break
                assert status == 200, f"allocation {n}: {status} {answer[:200]!r} {text[-300:]}"
                p.send_signal(signal.SIGTERM)
                code = p.wait(60)
                assert code == 0, f"allocation {n}, ready: it ended with {code}"
                return "ready", seen
            text = Path(log.name).read_text()
            assert p.returncode in (1, 78), f"start with allocation {n} failing: ended with {p.returncode} ({hex(c.get(4))}): {text[-300:]}"
            said = [x for x in text.splitlines() if x.startswith("cpetd: ") and "listening" not in x]
            assert said, f"start with allocation {n} failing: it said nothing, and ended with {p.returncode}"
            return ("memory" if "memory" in text else "other: " + said[-1][-120:]), seen
        finally:
            if p.poll() is None:
                p.kill()
                p.wait()


def starts(more):
    need_library()
    c = Control()
    what, n = one_start(c, 1 << 60)
    assert what == "ready"
    problems, count, began, did = [], collections.Counter(), time.monotonic(), 0
    for k in chosen(n, STARTS, "starts"):
        if time.monotonic() - began > SECONDS:
            break
        did += 1
        try:
            count[one_start(c, k, more)[0]] += 1
        except AssertionError as e:
            problems.append(str(e))
            print(e, flush=True)
    print(f"{did} of {n} allocations of a start: {dict(count)}", flush=True)
    assert not problems, f"{len(problems)} wrong: " + "; ".join(problems[:3])


@case
def each_of_a_start():
    starts(0)


@case
def each_of_a_start_and_those_after_it():
    """Ten in a row fail: what an error path needs is not there either."""
    starts(9)


def kinds():
    """name -> (listener, method, path, body of the k-th call). The k-th differs where caches would answer."""
    pets = [(HOME / f"modules/m{i}.pet").read_bytes() for i in range(2)]
    ids = [random.Random(9).randrange(10, 690) for _ in range(80)]
    return {
        "completion": (0, "POST", "/v1/completions", lambda k: {**ASK, "logprobs": 2, "n": 2, "seed": 1}),
        "a new prompt": (0, "POST", "/v1/completions", lambda k: {**ASK, "prompt": [10 + k % 680, *ids]}),
        "chat": (0, "POST", "/v1/chat/completions", lambda k: {"model": "t", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0}),
        "stream": (0, "POST", "/v1/completions", lambda k: {**ASK, "stream": True}),
        "large body": (0, "POST", "/v1/completions", lambda k: {**ASK, "prompt": [ids * 2] * 60, "max_tokens": 1}),
        "regex": (0, "POST", "/v1/completions", lambda k: {"model": "base", "prompt": "a", "max_tokens": 9, "structured_outputs": {"regex": f"[a-c]{{2}}{k}x?"}}),
        "schema": (0, "POST", "/v1/completions", lambda k: {"model": "base", "prompt": "a", "max_tokens": 9, "structured_outputs": {"json": {"type": "object", "properties": {f"a{k}": {"type": "integer"}}}}}),
        "embedding": (0, "POST", "/v1/embeddings", lambda k: {"model": "base", "input": ["Hello", "you"]}),
        "tokenize": (0, "POST", "/tokenize", lambda k: {"prompt": "Hello there, you"}),
        "models": (0, "GET", "/v1/models", lambda k: None),
        "metrics": (1, "GET", "/metrics", lambda k: None),
        "tasks": (1, "GET", "/admin/v1/tasks", lambda k: None),
        "module by path": (1, "PUT", "/admin/v1/modules/a", lambda k: {"path": f"m{k % 2}"}),
        "module sent": (1, "PUT", "/admin/v1/modules/b", lambda k: pets[k % 2]),
        "task": (1, "PUT", "/admin/v1/tasks/x", lambda k: {"modules": ["a"], "defaults": {"max_tokens": 1 + k % 100}, "template": tiny.TEMPLATE}),
        "load on demand": (0, "POST", "/v1/completions", lambda k: {**ASK, "model": f"big{k % 2}"}),
        "delete task": (1, "DELETE", "/admin/v1/tasks/x", lambda k: None),
        "adapter": (1, "POST", "/v1/load_lora_adapter", lambda k: {"lora_name": "l", "lora_path": f"m{k % 2}", "load_inplace": True}),
        "unload": (1, "POST", "/v1/unload_lora_adapter", lambda k: {"lora_name": "l"}),
    }


def one_call(s, c, name, kind, k, problems):
    """The call with its k-th allocation failing; then without."""
    listener, method, path, body = kind
    where = addresses(s)[listener]
    before = c.failed
    c.arm_next(k)
    try:
        status, text = call(where, method, path, body(k), timeout=60)
    except TimeoutError:
        status, text = -1, b""
    except (OSError, http.client.HTTPException) as e:  # closed without an answer, or in the middle of one
        status, text = 0, str(e).encode()
    site = c.caller(s.p.pid)
    c.disarm()
    what = f"{name}, allocation {k} ({site})"
    if s.p.poll() is not None:
        raise AssertionError(f"{what}: the server ended with {s.p.poll()}: {s.text()[-500:]}")
    if status not in (0, 200, 201, 202, 204, 404, 500, 503):
        problems.append(f"{what}: {status} {text[:200]!r}")
    if status == 404 and name not in ("delete task", "unload") or (status >= 400 and not text):
        problems.append(f"{what}: {status} {text[:200]!r}")
    return status, c.failed > before


@case
def each_of_a_call():
    need_library()
    c = Control()
    for i in range(2):
        tiny.module(f"m{i}")
        tiny.module(f"big{i}", 32)
        if not (HOME / f"modules/m{i}.pet").exists():
            cpet("pet", "pack", HOME / f"modules/m{i}", HOME / f"modules/m{i}.pet")
    with start("--pet", f"t={HOME}/modules/m0", "--module-root", HOME / "modules", "--data", HOME / "calls", "--pet-bytes", "460K", env=c.env) as s:
        problems = []
        api, admin = addresses(s)
        for i in range(2):
            assert call(admin, "PUT", f"/admin/v1/modules/big{i}", {"path": f"big{i}"})[0] == 201
            assert call(admin, "PUT", f"/admin/v1/tasks/big{i}", {"modules": [f"big{i}"]})[0] == 201
        assert call(admin, "PUT", "/admin/v1/modules/a", {"path": "m1"})[0] == 201
        want = call(api, "POST", "/v1/completions", ASK)[1].split(b'"text":')[1].split(b'"finish')[0]
        for name, kind in kinds().items():
            listener, method, path, body = kind
            before, most = c.seen, 0
            for k in (1000003, 1000002, 1000003):
                before = c.seen
                status, text = call(addresses(s)[listener], method, path, body(k))
                most = max(most, c.seen - before)
                assert status < 300 or status == 404, (name, status, text)
                if name in ("delete task", "unload"):
                    break
            count, did, began, hit = collections.Counter(), 0, time.monotonic(), 0
            for k in chosen(most + 3, CALLS, name):
                if time.monotonic() - began > SECONDS:
                    break
                if name == "delete task":
                    call(admin, "PUT", "/admin/v1/tasks/x", {"modules": ["a"]})
                if name == "unload":
                    call(admin, "POST", "/v1/load_lora_adapter", {"lora_name": "l", "lora_path": "m0"})
                status, failed = one_call(s, c, name, kind, k, problems)
                count[status] += 1
                did, hit = did + 1, hit + failed
                status, text = call(api, "POST", "/v1/completions", ASK)
                if status != 200 or text.split(b'"text":')[1].split(b'"finish')[0] != want:
                    problems.append(f"after {name}, allocation {k}: {status} {text[:200]!r}")
                for a in (api, admin):
                    assert call(a, "GET", "/health")[0] == 200
            status, text = call(addresses(s)[listener], method, path, body(2000003))
            if not (status < 300 or status == 404):
                problems.append(f"{name} afterwards: {status} {text[:200]!r}")
            print(f"{name}: {did} of {most} allocations, {hit} failed, {dict(sorted(count.items()))}", flush=True)
        for x in problems:
            print(x, flush=True)
        assert not problems, f"{len(problems)} wrong: " + "; ".join(problems[:3])
        m = tiny.metrics(s)
        assert m["cpet_kv_pages_free"] == m["cpet_kv_pages"] and m["cpet_requests_active"] == 0, "something is held"
        code = s.stop()
        assert code == 0, f"it ended with {code}"


if __name__ == "__main__":
    main()
