"""A small random backbone with a tokenizer and a chat template, and what tests of a hostile world share.

The model answers nonsense in microseconds, but deterministic nonsense: a text depends on the prompt, the module and every
token before, so texts can be compared. It lies in a temporary directory of the process.
"""
import http.client
import json
import os
import re
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "golden"))
import gen
from harness import ROOT, Server, together

LONG = bool(os.environ.get("LONG"))
WORK = tempfile.TemporaryDirectory(prefix="cpetd-test-")
HOME = Path(WORK.name)
CONFIG = {**gen.LLAMA, "vocab_size": 701, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2}
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
LEAK = re.compile(rb"0x[0-9a-f]{6,}|\w\.[ch]:\d|\.c\b|/root/|/tmp/|/home/|\(nil\)|assert|backtrace|malloc|sqlite|jansson|libuv|microhttpd", re.I)


def model():
    out = HOME / "model"
    if not out.exists():
        gen.backbone(CONFIG, out, "hostile")
        (out / "tokenizer.json").write_bytes((ROOT / "tests/golden/tokenizer/smollm.json").read_bytes())
        (out / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>",
                                                               "eos_token": "<|im_end|>", "chat_template": TEMPLATE}))
    return out


def module(name, rank=4, strength=2.0):
    """A PEFT directory HOME/modules/NAME."""
    path = HOME / "modules" / name
    if not path.exists():
        gen.lora(CONFIG, path, rank, name, strength=strength)
    return path


def start(*args, **kw):
    return Server("--name", "base", "--threads", "1", "--kv-bytes", "16M", *args, model=model(), **kw)


def addresses(s):
    """(host, port) of the API and of the admin listener."""
    return [(h, int(p)) for h, p in (u.split("//")[1].rsplit(":", 1) for u in (s.url, s.admin))]


def call(address, method, path, body=None, headers=None, timeout=60):
    """(status, body's bytes) of one request on a connection of its own."""
    c = http.client.HTTPConnection(*address, timeout=timeout)
    text = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    c.request(method, path, text, {"Content-Type": "application/json", **(headers or {})})
    r = c.getresponse()
    out = r.status, r.read()
    c.close()
    return out


def raw(address, data, timeout=20, wait=True):
    """What comes back for these bytes until the other side closes, or for a while; b"" too. data may be an iterable."""
    with socket.create_connection(address, timeout=timeout) as k:
        try:
            for part in [data] if isinstance(data, bytes) else data:
                k.sendall(part)
        except OSError:
            pass  # refused before all of it was read
        out = b""
        try:
            while wait and (part := k.recv(65536)):
                out += part
        except OSError:
            pass
        return out


def rss(s):
    """Resident bytes of the server."""
    return int(Path(f"/proc/{s.p.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(s):
    return len(os.listdir(f"/proc/{s.p.pid}/fd"))


def metrics(s):
    """Values by name, the sum of its series."""
    out = {}
    for line in call(addresses(s)[1], "GET", "/metrics")[1].decode().splitlines():
        if line and line[0] != "#":
            name = line.split("{")[0].split(" ")[0]
            out[name] = out.get(name, 0) + float(line.rsplit(" ", 1)[1])
    return out


def settles(f, what, timeout=30):
    end = time.monotonic() + timeout
    while not f():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.05)


class Health:
    """Asks for /health of both listeners all the time; slowest() is the longest that one answer took, in seconds."""

    def __init__(self, s):
        self.worst, self.n, self.stop, self.problem = 0.0, 0, False, None
        self.where = addresses(s)
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        try:
            while not self.stop:
                for a in self.where:
                    began = time.monotonic()
                    assert call(a, "GET", "/health")[0] == 200
                    self.worst, self.n = max(self.worst, time.monotonic() - began), self.n + 1
                time.sleep(0.05)
        except Exception as e:
            self.problem = e

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.stop = True
        self.thread.join()
        if not any(exc) and self.problem:
            raise AssertionError(f"/health: {self.problem!r}")
