"""Starts cpetd for a test, talks to it over plain HTTP, and runs tests one a line. Standard library only."""
import atexit
import http.client
import json
import os
import queue
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SKIP = 77


class Skip(Exception):
    pass


def binary():
    return os.environ.get("CPETD", os.path.join(ROOT, "build", "cpetd"))


def model():
    path = os.environ.get("CPETD_MODEL")
    if not path or not os.path.isdir(path):
        print("skip e2e: CPETD_MODEL names no model directory")
        sys.exit(SKIP)
    return path


alive = []


def kill_all():
    for s in alive:
        s.__exit__()


atexit.register(kill_all)


def without_options(env=None):
    """The environment without cpetd's own options (CPETD_MODEL is one of them), then env."""
    return {**{k: v for k, v in os.environ.items() if not k.startswith("CPETD_") or k == "CPETD_CPU_LEVEL"}, **(env or {})}


class Server:
    """with Server("--max-seqs", "4") as s: s.post("/v1/completions", {...})"""

    def __init__(self, *args, admin=True, env=None, key=None, wait=True, command=()):
        self.key = key
        cmd = [*command, binary(), "--model", model(), "--name", "base", "--listen", "127.0.0.1:0"]
        if admin:
            cmd += ["--admin-listen", "127.0.0.1:0"]
        self.lines = []
        alive.append(self)
        self.p = subprocess.Popen(cmd + list(args), stderr=subprocess.PIPE, text=True, env=without_options(env))
        self.q = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.port = self._port("listening on http://")
        self.admin_port = self._port("admin listening on http://") if admin else None
        if wait:
            self.wait_line(r"^cpetd: ready$")

    def _read(self):
        for line in self.p.stderr:
            self.q.put(line.rstrip("\n"))
        self.q.put(None)

    def wait_line(self, pattern, timeout=60):
        end = time.time() + timeout
        while True:
            line = self.q.get(timeout=max(0.01, end - time.time()))
            if line is None:
                raise AssertionError("cpetd ended: " + " / ".join(self.lines))
            self.lines.append(line)
            if re.search(pattern, line):
                return line

    def _port(self, what):
        return int(self.wait_line("^cpetd: " + re.escape(what)).rsplit(":", 1)[1])

    def request(self, method, path, body=None, headers=None, admin=False, timeout=120):
        c = http.client.HTTPConnection("127.0.0.1", self.admin_port if admin else self.port, timeout=timeout)
        h = {"Content-Type": "application/json", **({"Authorization": "Bearer " + self.key} if self.key else {})}
        h.update(headers or {})
        c.request(method, path, json.dumps(body) if isinstance(body, (dict, list)) else body, h)
        r = c.getresponse()
        data = r.read()
        c.close()
        return r.status, dict(r.getheaders()), data

    def get(self, path, **kw):
        return self.request("GET", path, **kw)

    def post(self, path, body, **kw):
        status, _, data = self.request("POST", path, body, **kw)
        return status, json.loads(data)

    def complete(self, prompt, **kw):
        body = {"model": "base", "prompt": prompt, "max_tokens": 16, "temperature": 0, **kw}
        status, r = self.post("/v1/completions", body)
        assert status == 200, r
        return r

    def text(self, prompt, **kw):
        return self.complete(prompt, **kw)["choices"][0]["text"]

    def stream(self, path, body, timeout=120):
        """Yields the parsed events of a stream; the last is "[DONE]" when it came."""
        c = self.open_stream(path, body, timeout)
        r = c.getresponse()
        assert r.status == 200, (r.status, r.read())
        assert r.getheader("Content-Type").startswith("text/event-stream")
        yield from events(r)
        c.close()

    def open_stream(self, path, body, timeout=120):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        h = {"Content-Type": "application/json", **({"Authorization": "Bearer " + self.key} if self.key else {})}
        c.request("POST", path, json.dumps({**body, "stream": True}), h)
        return c

    def metrics(self):
        status, _, data = self.get("/metrics", admin=True)
        assert status == 200
        out = {}
        for line in data.decode().splitlines():
            if line and line[0] != "#":
                name, value = line.rsplit(" ", 1)
                out[name] = float(value)
        return out

    def metric(self, name):
        return sum(v for k, v in self.metrics().items() if k.split("{")[0] == name)

    def stop(self, sig=signal.SIGTERM):
        if self.p.poll() is None:
            self.p.send_signal(sig)
        return self.p.wait(timeout=60)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.p.poll() is None:
            self.p.kill()
            self.p.wait()


def events(r):
    for raw in r:
        line = raw.decode().rstrip("\r\n")
        if not line:
            continue
        assert line.startswith("data: "), line
        yield line[6:] if line == "data: [DONE]" else json.loads(line[6:])


def wait_until(f, what, timeout=20):
    end = time.time() + timeout
    while time.time() < end:
        if f():
            return
        time.sleep(0.02)
    raise AssertionError("never came: " + what)


def write_lora(path, seed, rank, targets=("q_proj", "v_proj"), size=0.05):
    """A PEFT directory with a random LoRA for the model under test."""
    with open(os.path.join(model(), "config.json")) as f:
        c = json.load(f)
    hidden, head = c["hidden_size"], c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    q, kv, ffn = c["num_attention_heads"] * head, c["num_key_value_heads"] * head, c["intermediate_size"]
    shape = {"q_proj": (hidden, q, "self_attn"), "k_proj": (hidden, kv, "self_attn"), "v_proj": (hidden, kv, "self_attn"),
             "o_proj": (q, hidden, "self_attn"), "gate_proj": (hidden, ffn, "mlp"), "up_proj": (hidden, ffn, "mlp"),
             "down_proj": (ffn, hidden, "mlp")}
    rnd, header, parts, at = random.Random(seed), {}, [], 0
    for layer in range(c["num_hidden_layers"]):
        for t in targets:
            k, n, block = shape[t]
            for side, dims in (("A", (rank, k)), ("B", (n, rank))):
                count = dims[0] * dims[1]
                data = struct.pack("<%df" % count, *((rnd.random() - 0.5) * 2 * size for _ in range(count)))
                name = "base_model.model.model.layers.%d.%s.%s.lora_%s.weight" % (layer, block, t, side)
                header[name] = {"dtype": "F32", "shape": list(dims), "data_offsets": [at, at + len(data)]}
                parts.append(data)
                at += len(data)
    h = json.dumps(header).encode()
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, "adapter_model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(h)) + h + b"".join(parts))
    with open(os.path.join(path, "adapter_config.json"), "w") as f:
        json.dump({"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(targets), "bias": "none",
                   "base_model_name_or_path": "base", "task_type": "CAUSAL_LM"}, f)
    return path


def run(tests, title):
    """Runs each test and prints its line, as harness.py does; exits 1 when one failed."""
    only, failed = sys.argv[1:], 0
    for t in tests:
        if only and t.__name__ not in only:
            continue
        start = time.time()
        try:
            t()
            line = "ok %s/%s (%.1f s)" % (title, t.__name__, time.time() - start)
        except Skip as e:
            line = "skip %s/%s: %s" % (title, t.__name__, e)
        except Exception as e:
            failed += 1
            line = "FAIL %s/%s: %s: %s" % (title, t.__name__, type(e).__name__, " ".join(str(e).split())[:300])
            traceback.print_exc()
        print(line, flush=True)
    sys.exit(1 if failed else 0)


def scratch():
    return tempfile.TemporaryDirectory(prefix="cpetd-test-")
