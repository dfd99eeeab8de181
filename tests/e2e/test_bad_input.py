"""Bad inputs that broke other servers, against both listeners of one running cpetd.

After each input both listeners answer /health, another request gets its right text, and no error told an address, a source
file or a path of the server. At the end memory has not grown much and the server stops with 0. The model is a small random
one (tiny.py), so that most of the time is spent in what is tested. CPETD may be a build with sanitizers (SLOW=10 there).
"""
import hashlib
import json
import os
import random
import re
import socket
import struct
import threading
import time

import tiny
from harness import Server, case, cpet, main, together
from tiny import HOME, LEAK, LONG, Health, addresses, call, raw, rss, start

SLOW = float(os.environ.get("SLOW", "1"))  # times as long as usual may be taken
NORMAL = {"model": "base", "prompt": "Hello there", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
FORM = {k: v for k, v in NORMAL.items() if k != "ignore_eos"}  # which cannot stand beside a form
CHAT = {"model": "base", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0}
HUGE = [-1, -2**31, -2**63, -2**63 - 1, 2**31, 2**32 + 1, 2**63, 2**64, 10**400, 1e308, -1e308, 0.5, "1", True, [], {}]


class Target:
    """A server, and what has to hold after each input."""

    def __init__(self, *args):
        for i in range(2):
            tiny.module(f"m{i}")
        self.s = start("--module-root", HOME / "modules", "--data", HOME / f"data{random.random()}", "--pet", f"fixed={HOME}/modules/m0", *args)
        self.api, self.admin = addresses(self.s)
        self.n, self.slowest = 0, (0.0, "")
        self.want = self.text()
        self.memory = rss(self.s)
        self.health = Health(self.s)
        self.health.__enter__()

    def text(self):
        status, text = call(self.api, "POST", "/v1/completions", NORMAL, timeout=60 * SLOW)
        assert status == 200, text
        return json.loads(text)["choices"][0]["text"]

    def well(self, what):
        for a in (self.api, self.admin):
            assert call(a, "GET", "/health")[0] == 200, what
        assert self.text() == self.want, f"another text after {what}"
        assert self.s.p.poll() is None, what
        self.n += 1

    def answer(self, what, text):
        """An answer's bytes do not tell what is inside; paths that the administrator gave may be repeated."""
        found = LEAK.search(text.replace(str(HOME / "modules").encode(), b"ROOT"))
        assert not found, f"{what}: the answer holds {found[0]!r}: {text[:300]!r}"

    def call(self, what, where, method, path, body, expected, says=None, headers=None):
        began = time.monotonic()
        try:
            status, text = call(where, method, path, body, headers, timeout=60 * SLOW)
        except (ConnectionError, BrokenPipeError):
            status, text = 0, b""  # refused while the body was on its way
        took = time.monotonic() - began
        self.slowest = max(self.slowest, (took, what))
        assert took < 30 * SLOW, f"{what}: {took:.0f} s"
        assert status in expected, f"{what}: {status} {text[:300]!r}"
        if status >= 400:
            self.answer(what, text)
            if path not in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
                assert set(json.loads(text)["error"]) == {"message", "type", "param", "code"}, f"{what}: {text[:300]!r}"
        if says and status:
            assert says in text.decode(), f"{what}: {text[:300]!r} does not say {says}"
        self.well(what)
        return status, text

    def raw(self, what, where, data, expected, timeout=20):
        """expected: statuses, or 0 for a connection that was closed without an answer."""
        began = time.monotonic()
        out = raw(where, data, timeout * SLOW)
        self.slowest = max(self.slowest, (time.monotonic() - began, what))
        status = int(out.split()[1]) if out.startswith(b"HTTP/1.1 ") else 0
        assert status in expected, f"{what}: {out[:300]!r}"
        if status >= 400:
            self.answer(what, out)
        self.well(what)

    def end(self):
        self.health.__exit__()
        grown = rss(self.s) - self.memory
        print(f"{self.n} inputs, slowest {self.slowest[0]:.1f} s ({self.slowest[1]}), /health in {self.health.worst * 1000:.0f} ms at most, "
              f"resident memory {grown >> 20:+d} MiB", flush=True)
        assert self.health.worst < 3 * SLOW, f"/health took {self.health.worst:.1f} s"
        assert SLOW > 1 or grown < 400 << 20, f"{grown >> 20} MiB more"
        code = self.s.stop(timeout=60 * SLOW)
        assert code == 0, f"it ended with {code}: {self.s.text()[-2000:]}"
        assert "Sanitizer" not in self.s.text() and "runtime error" not in self.s.text(), self.s.text()[-3000:]


def target(*args):
    """Runs the test with a Target that is ended whatever happens."""
    def wrap(f):
        def g():
            t = Target(*args)
            try:
                f(t)
                t.end()
            finally:
                if t.s.p.poll() is None:
                    t.s.p.kill()
                text = t.s.text()
                if "Sanitizer" in text or "runtime error" in text:
                    print(text[-6000:], flush=True)
        g.__name__ = f.__name__
        return case(g)
    return wrap


@target()
def framing(t):
    for where in (t.api, t.admin):
        get = b"GET /health HTTP/1.1\r\nHost: a\r\n"
        t.raw("a header of 17 KB", where, get + b"X: " + b"a" * 17000 + b"\r\n\r\n", {431})
        t.raw("a header of 32 MB", where, [get + b"X: "] + [b"a" * 65536] * 512, {431, 0})
        t.raw("a header name of 1 MB", where, get + b"X" * (1 << 20) + b": a\r\n\r\n", {431, 0})
        t.raw("100,000 headers", where, [get] + [b"A: b\r\n" * 1000] * 100 + [b"\r\n"], {431, 0})
        t.raw("101 headers", where, get + b"A: b\r\n" * 101 + b"\r\n", {431})
        t.raw("a target of 1 MB", where, b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\nHost: a\r\n\r\n", {414, 431, 0})
        t.raw("a target full of percents", where, b"GET /" + b"%" * 3000 + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", {400, 404})
        t.raw("a NUL in the target", where, b"GET /health%00 HTTP/1.1\r\nHost: a\r\n\r\n", {400})
        t.raw("a query of 7,000 members", where, b"GET /health?" + b"a&" * 3500 + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", {400})
        post = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
        if where == t.admin:
            post = b"PUT /admin/v1/tasks/t HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        chunked = post + b"Transfer-Encoding: chunked\r\n\r\n"
        t.raw("3 MB in chunks of a byte", where, [chunked] + [b"1\r\n \r\n" * 8192] * 384 + [b"0\r\n\r\n"], {400, 413, 0})
        t.raw("64 MB in chunks of a byte", where, [chunked] + [b"1\r\n \r\n" * 8192] * (8192 if LONG else 1400) + [b"0\r\n\r\n"], {413, 400, 0})
        t.raw("chunk extensions without end", where, [chunked, b"1;"] + [b"a" * 65536] * 64, {400, 413, 0})
        for size in (b"FFFFFFFFFFFFFFFF", b"10000000000000000", b"-1", b"0x10", b"", b"7FFFFFFFFFFFFFFF", b"1" * 100000):
            t.raw(f"a chunk of {size[:20]}", where, chunked + size + b"\r\nabc\r\n0\r\n\r\n", {400, 413})
        for n in (b"-1", b"18446744073709551616", b"9223372036854775807", b"1e3", b"+5", b" ", b"5,5", b"9" * 5000):
            t.raw(f"a length of {n[:24]}", where, post + b"Content-Length: " + n + b"\r\n\r\n{}", {400, 413})
        t.raw("both framings", where, post + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", {400})
        t.raw("noise", where, bytes(random.Random(1).randrange(256) for _ in range(5000)) + b"\r\n\r\n", {400, 431, 505, 501, 0})
        t.raw("TLS to a plain listener", where, bytes.fromhex("160301020001") + bytes(500) + b"\r\n\r\n", {400, 0})
        t.raw("HTTP/2", where, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(60), {400, 505, 501})
        t.raw("2,000 requests in one go", where, get.replace(b"\r\nHost", b"\r\nConnection: keep-alive\r\nHost") * 0 + (get + b"\r\n") * 1999 + get + b"Connection: close\r\n\r\n", {200})
        t.raw("a key of 15 KB", where, get + b"Authorization: Bearer " + b"k" * 15000 + b"\r\nConnection: close\r\n\r\n", {200})


@target()
def numbers(t):
    """Numbers beyond every range, and what are none."""
    for path, body, names in (
        ("/v1/completions", NORMAL, "n best_of max_tokens logprobs prompt_logprobs min_tokens top_k"),
        ("/v1/chat/completions", {**CHAT, "logprobs": True}, "n max_tokens max_completion_tokens top_logprobs prompt_logprobs"),
    ):
        for name in names.split():
            for v in HUGE:
                good = (v == -1 and name == "top_k") or (name in ("min_tokens",) and v == 0)
                t.call(f"{name} {str(v)[:30]}", t.api, "POST", path, {**body, name: v}, {200} if good else {400})
        for name, values in {"temperature": [-1, 1e308, 10**400, "1", 3], "top_p": [-1, 0, 2, 1e308], "min_p": [-1, 2], "presence_penalty": [-3, 3, 1e308],
                             "frequency_penalty": [-3, 1e308], "repetition_penalty": [0, -1, 11, 1e308], "seed": [2**64, -2**65, 0.5, "a"]}.items():
            for v in values:
                t.call(f"{name} {str(v)[:30]}", t.api, "POST", path, {**body, name: v}, {400})
        for v in ({"-1": 1}, {"999999": 1}, {"99999999999999999999": 1}, {"1": 1e308}, {"a": 1}, {str(i): 1 for i in range(2000)}, []):
            t.call("logit_bias", t.api, "POST", path, {**body, "logit_bias": v}, {400} if v != [] else {400})
        for text in (b'{"model":"base","prompt":"a","max_tokens":NaN}', b'{"model":"base","prompt":"a","temperature":Infinity}', b'{"model":"base","prompt":"a","max_tokens":1e999}',
                     b'{"model":"base","prompt":"a","n":00001}', b'{"model":"base","prompt":"a","n":-}', b'{"model":"base","prompt":"a","n":1' + b"0" * 100000 + b"}"):
            t.call("no JSON number", t.api, "POST", path, text, {400})
    t.call("most choices of most prompts", t.api, "POST", "/v1/completions", {**NORMAL, "prompt": ["a"] * 256, "n": 128}, {400})
    t.call("257 prompts", t.api, "POST", "/v1/completions", {**NORMAL, "prompt": ["a"] * 257}, {400})
    for v in HUGE:
        t.call(f"dimensions {str(v)[:20]}", t.api, "POST", "/v1/embeddings", {"model": "base", "input": "a", "dimensions": v}, {400})
        t.call(f"weight {str(v)[:20]}", t.admin, "PUT", "/admin/v1/tasks/t", {"modules": [{"name": "nothing", "weight": v}]}, {400, 404})
        t.call(f"default {str(v)[:20]}", t.admin, "PUT", "/admin/v1/tasks/t", {"modules": [], "defaults": {"n": v}}, {400})


@target()
def json_bodies(t):
    deep = b"[" * 200000
    paths = [(t.api, "POST", p) for p in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/score", "/tokenize", "/detokenize")]
    paths += [(t.admin, "PUT", "/admin/v1/tasks/t"), (t.admin, "PUT", "/admin/v1/modules/m"), (t.admin, "POST", "/v1/load_lora_adapter"), (t.admin, "POST", "/v1/unload_lora_adapter")]
    for where, method, path in paths:
        for what, body in {
            "nothing": b"", "half": b'{"model": "ba', "200,000 deep": deep, "objects 100,000 deep": b'{"a":' * 100000, "a NUL": b'{"model": "ba\0se"}',
            "an escaped NUL": b'{"model": "ba\\u0000se", "prompt": "a"}', "a lone surrogate": b'{"model": "\\ud800", "prompt": "a"}', "bad UTF-8": b'{"model": "\xff\xfe", "prompt": "a"}',
            "two of a key": b'{"model": "base", "model": "base", "prompt": "a"}', "300,000 values": b"[" + b"1," * 300000 + b"1]", "a list": b"[]", "null": b"null",
            "100,000 keys": json.dumps({str(i): None for i in range(100000)}).encode(), "a name of 1 MB": b'{"model": "' + b"a" * (1 << 20) + b'", "prompt": "a"}',
            "a key of 1 MB": b'{"' + b"k" * (1 << 20) + b'": 1}', "keys that format": b'{"%s%n%x%d": 1, "model": "%n%n"}', "trailing": b'{"model":"base","prompt":"a"} x',
        }.items():
            t.call(f"{path}: {what}", where, method, path, body, {400, 404, 413})
    t.call("9 MB", t.api, "POST", "/v1/completions", b'{"prompt": "' + b"a" * (9 << 20), {413, 0})
    t.call("65 MB", t.admin, "PUT", "/admin/v1/modules/m", b"\x89PET" * (17 << 20), {413, 0}, headers={"Content-Type": "application/octet-stream"})


@target()
def tokens(t):
    """Lengths and ids at the tokenizer's and the pool's edges."""
    rng = random.Random(3)
    texts = {"one letter 3 million times": "a" * 3000000, "blanks": " " * 3000000, "newlines": "\n" * 2000000, "one word": "".join(rng.choice("abcdefgh") for _ in range(2000000)),
             "emoji": "\U0001f600" * 500000, "combining marks": "e" + "\u0301" * 1000000, "special tokens": "<|im_start|>" * 200000, "beginnings of them": "<|im_" * 400000,
             "digits": "1" * 2000000, "apostrophes": "'" * 1000000}
    for what, text in texts.items():
        t.call(f"completion of {what}", t.api, "POST", "/v1/completions", {**NORMAL, "prompt": text}, {400})
        t.call(f"tokens of {what}", t.api, "POST", "/tokenize", {"prompt": text}, {200, 400, 413})
        t.call(f"chat of {what}", t.api, "POST", "/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": text}]}, {400, 413})
    for ids in ([-1], [701], [2**31 - 1], [2**31], [2**32], [2**63 - 1], [2**64], [1.5], [None], [[]], [[[]]], [], [True]):
        t.call(f"ids {ids}", t.api, "POST", "/v1/completions", {**NORMAL, "prompt": ids}, {400})
        t.call(f"back from {ids}", t.api, "POST", "/detokenize", {"tokens": ids}, {200} if ids == [] else {400})
        t.call(f"vector of {ids}", t.api, "POST", "/v1/embeddings", {"model": "base", "input": ids}, {400})
    t.call("131,072 ids", t.api, "POST", "/v1/completions", {**NORMAL, "prompt": [5] * 131072}, {400})
    t.call("200,000 ids", t.api, "POST", "/detokenize", {"tokens": [5] * 200000}, {200, 400, 413})
    t.call("a score of long texts", t.api, "POST", "/score", {"model": "base", "text_1": "a" * 100000, "text_2": "b" * 100000}, {400})
    t.call("257 texts to score", t.api, "POST", "/score", {"model": "base", "text_1": "a", "text_2": ["b"] * 257}, {400})
    t.call("an empty stop", t.api, "POST", "/v1/completions", {**NORMAL, "stop": ""}, {400})
    t.call("17 stops", t.api, "POST", "/v1/completions", {**NORMAL, "stop": ["a"] * 17}, {400})
    t.call("a long stop", t.api, "POST", "/v1/completions", {**NORMAL, "stop": "a" * 100000}, {400})
    t.call("4,097 messages", t.api, "POST", "/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": "a"}] * 4097}, {400})


def nested(depth, inner):
    for _ in range(depth):
        inner = {"type": "object", "properties": {"a": inner}, "required": ["a"]}
    return inner


def laughs(n):
    """Each definition names the next one twice."""
    defs = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}}]} for i in range(n)}
    defs[f"d{n}"] = {"type": "integer"}
    return {"$defs": defs, "$ref": "#/$defs/d0"}


REGEXES = ["(a+)+$", "(a|a)*b", "(a|aa)+c", "(.*)*(.*)*x", "a{1,1000000}", "((a{1,100}){1,100}){1,100}", "(((a{0,50}){0,50}){0,50}){0,50}", ".{0,65535}", "a{99999999999999999999}",
           "a{5,2}", "(" * 10000 + ")" * 10000, "(" * 50000, "a|" * 100000, "[" + "".join(map(chr, range(0x4e00, 0x9fff))) + "]+", r"(\w+\s*)*;", r"(?=a)b", r"(?<!a)b", r"(a)\1", r"(?P<x>a)(?P=x)",
           r"\p{L}+", "*", "a**", "[z-a]", "[", "\\", "\ud800", "", "(?:)", "()*", "(()*)*", "a*" * 5000, "(?:a?){500}a{500}", r"\x{110000}", r"\u{FFFFFFFF}", "(a{1000}|b{1000}){1000}", "$^", "(?R)",
           "(.|\\n){0,4000}end", "[\\s\\S]{1,30000}"]


def schemas():
    yield "nested 20", nested(12, {"type": "integer"})
    yield "nested 400", nested(400, {"type": "integer"})
    yield "recursive root", {"$ref": "#"}
    yield "recursive pair", {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
    yield "recursive required", {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    yield "recursive list", {"type": "array", "items": {"$ref": "#"}}
    yield "recursive list of at least one", {"type": "array", "items": {"$ref": "#"}, "minItems": 1}
    yield "laughs 10", laughs(10)
    yield "laughs 60", laughs(60)
    yield "allOf laughs", {"$defs": {**{f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}, "d40": {"type": "string"}}, "$ref": "#/$defs/d0"}
    yield "anyOf times anyOf", {"allOf": [{"anyOf": [{"type": "object", "properties": {f"p{i}{j}": {"type": "integer"}}} for j in range(10)]} for i in range(10)]}
    yield "far ref", {"$ref": "http://127.0.0.1:1/schema.json"}
    yield "file ref", {"$ref": "file:///etc/passwd"}
    yield "no ref", {"$ref": "#/$defs/none"}
    yield "20,000 properties", {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(20000)}, "required": [f"p{i}" for i in range(20000)]}
    yield "300 optional properties", {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(300)}}
    yield "50,000 values", {"enum": [f"value {i}" for i in range(50000)]}
    yield "a constant of 1 MB", {"const": "a" * (1 << 20)}
    for name in ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties", "minimum", "maximum", "multipleOf"):
        for v in (10**9, 2**63, 10**300, -1, 1e308, 0.5):
            yield f"{name} {str(v)[:12]}", {"type": {"I": "array", "L": "string", "P": "object"}.get(name[3], "number"), name: v}
    yield "items of items", {"type": "array", "minItems": 1000, "items": {"type": "array", "minItems": 1000, "items": {"type": "array", "minItems": 1000}}}
    yield "nothing fits", {"type": "integer", "minimum": 5, "maximum": 4}
    yield "nothing at all", False
    yield "not all", {"not": {}}
    yield "unique", {"type": "array", "uniqueItems": True, "minItems": 10000}
    yield "a pattern", {"type": "string", "pattern": "^((a+)+)+$", "minLength": 1000, "maxLength": 2000}
    yield "patterns", {"type": "object", "patternProperties": {"^(a|a)*$": {"type": "integer"}, "^(a|b)*$": {"type": "string"}}}
    yield "if", {"if": {"properties": {"a": {"const": 1}}}, "then": {"$ref": "#"}, "else": {"$ref": "#"}}
    yield "a type that is none", {"type": "quantity"}
    yield "a list", []
    yield "a number", 7


@target()
def grammars(t):
    """Where structured outputs are served, every one compiles in bounds or is refused; where they are not, by name."""
    good, bad = 0, 0
    for i, r in enumerate(REGEXES):
        status, _ = t.call(f"regex {i} {r[:30]!r}", t.api, "POST", "/v1/completions", {**FORM, "structured_outputs": {"regex": r}}, {200, 400, 413})
        good, bad = good + (status == 200), bad + (status != 200)
        t.call(f"regex {i} in a schema", t.api, "POST", "/v1/completions", {**FORM, "structured_outputs": {"json": {"type": "string", "pattern": r}}}, {200, 400, 413})
    for what, schema in schemas():
        status, _ = t.call(f"schema: {what}", t.api, "POST", "/v1/completions", {**FORM, "structured_outputs": {"json": schema}}, {200, 400, 413})
        good, bad = good + (status == 200), bad + (status != 200)
        t.call(f"response_format: {what}", t.api, "POST", "/v1/chat/completions", {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}, {200, 400, 413})
    for choice in ([], [""], ["a"] * 100000, ["a" * (1 << 20)], [1], "a", [f"{i}" for i in range(50000)], ["\ud800"]):
        t.call(f"choice {str(choice)[:20]}", t.api, "POST", "/v1/completions", {**FORM, "structured_outputs": {"choice": choice}}, {200, 400, 413})
    for body in ({"grammar": "root ::= root"}, {"grammar": "start: start*"}, {"structural_tag": "{}"}, {"json": "{"}, {"json": "[" * 100000}, {"regex": "a", "choice": ["b"]}, {}, [], "x", {"json_object": False}):
        t.call(f"structured_outputs {str(body)[:30]}", t.api, "POST", "/v1/completions", {**FORM, "structured_outputs": body}, {400, 413})
    for body in ({"type": "grammar"}, {"type": "json_schema"}, {"type": 1}, [], "json", {"type": "json_schema", "json_schema": {"name": "x" * 100000, "schema": {}}}):
        t.call(f"response_format {str(body)[:30]}", t.api, "POST", "/v1/chat/completions", {**CHAT, "response_format": body}, {400, 413, 200})
    print(f"{good} compiled, {bad} refused", flush=True)


@target()
def tools_templates_and_links(t):
    """Refused by name; nothing is fetched."""
    seen = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{seen.getsockname()[1]}/x"
    bad = {"parameters": {"$ref": "#"}, "name": "f"}
    for name, v in {"tools": [{"type": "function", "function": bad}], "functions": [bad], "tool_choice": "required", "chat_template": "{% for i in range(99999999) %}{{ i }}{% endfor %}",
                    "chat_template_kwargs": {"a": "b" * 1000}, "documents": [{"url": url}], "audio": {"format": "wav"}, "web_search_options": {}, "mm_processor_kwargs": {"url": url}}.items():
        t.call(name, t.api, "POST", "/v1/chat/completions", {**CHAT, name: v}, {400}, name)
        t.call(f"{name} among defaults", t.admin, "PUT", "/admin/v1/tasks/t", {"modules": [], "defaults": {name: v}}, {400}, name)
    for part in ({"type": "image_url", "image_url": {"url": url}}, {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, {"type": "video_url", "video_url": {"url": url}},
                 {"type": "file", "file": {"file_id": url}}, {"type": "image_url", "image_url": url}, {"type": "text", "text": "a", "url": url}):
        t.call(f"a part {part['type']}", t.api, "POST", "/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": [part]}]}, {400})
    t.call("an image to embed", t.api, "POST", "/v1/embeddings", {"model": "base", "input": [{"image": url}]}, {400})
    for path in (url, "file:///etc/passwd", "/etc/passwd", "../../etc/passwd", "//etc/passwd", "a" * 100000, "\n", "m0\0x", ".", "/dev/zero", "/proc/self/mem"):
        t.call(f"a module at {path[:20]!r}", t.admin, "PUT", "/admin/v1/modules/m", {"path": path}, {400, 403, 404})
        t.call(f"an adapter at {path[:20]!r}", t.admin, "POST", "/v1/load_lora_adapter", {"lora_name": "m", "lora_path": path}, {400, 403, 404})
    seen.settimeout(0.2)
    try:
        seen.accept()
    except TimeoutError:
        return
    raise AssertionError("a link was fetched")


TEMPLATES = {
    "a long loop": "{% for i in range(1000000000) %}{{ i }}{% endfor %}",
    "nested loops": "".join(f"{{% for i{k} in range(1000) %}}" for k in range(8)) + "x" + "{% endfor %}" * 8,
    "a large product": "{{ 'x' * 1000000000 }}",
    "products of products": "{{ ('x' * 100000) * 100000 }}",
    "doubling": "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "doubling a list": "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "replacing": "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s | replace('x', 'xxxxxxxxxxxxxxxx') %}{% endfor %}{{ ns.s }}",
    "a macro that calls itself": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "a macro that calls itself twice": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(0) }}",
    "tojson of tojson": "{% set ns = namespace(s='\"') %}{% for i in range(60) %}{% set ns.s = ns.s | tojson %}{% endfor %}{{ ns.s }}",
    "indent": "{{ ('a\n' * 10000) | indent(100000) }}",
    "join": "{{ (['a'] * 100000) | join('b' * 100000) }}",
    "a range from afar": "{{ range(-9223372036854775807, 9223372036854775807) | list | length }}",
    "an integer that overflows": "{{ 9223372036854775807 + 1 }}",
    "the least integer by -1": "{{ (-9223372036854775807 - 1) // -1 }}",
    "a division by zero": "{{ 1 // 0 }}", "a remainder by zero": "{{ 1 % 0 }}",
    "a power": "{{ 9 ** 9 ** 9 }}",
    "a negative slice": "{{ 'abc'[9223372036854775807:-9223372036854775808:-1] }}",
    "a format": "{{ '%1000000000d' | format(1) }}", "a format of an address": "{{ '%s%n%p' % (1, 2, 3) }}",
    "an exception": "{{ raise_exception('x' * 1000000) }}",
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "an import": "{% import '/etc/passwd' as x %}", "an include": "{% include '/etc/passwd' %}", "an endless string": "{{ 'a", "open blocks": "{% if 1 %}" * 100000,
    "parentheses": "{{ " + "(" * 100000 + "1" + ")" * 100000 + " }}", "nots": "{{ " + "not " * 100000 + "1 }}", "filters": "{{ 'a'" + "|upper" * 50000 + " }}",
    "a date": "{{ strftime_now('%Y' * 100000) }}", "a center": "{{ 'a' | center(1000000000) }}",
}


@target()
def task_templates(t):
    """A task's template that loops or grows ends in an error of the request, in bounds."""
    kept = 0
    for what, text in TEMPLATES.items():
        status, _ = t.call(f"template: {what}", t.admin, "PUT", "/admin/v1/tasks/t", {"modules": [], "template": text}, {200, 201, 400, 413})
        if status < 400:
            kept += 1
            a = t.call(f"chat: {what}", t.api, "POST", "/v1/chat/completions", {**CHAT, "model": "t"}, {200, 400, 413})
            t.call(f"tokens: {what}", t.api, "POST", "/tokenize", {"model": "t", "messages": CHAT["messages"]}, {200, 400, 413})
    with_task = [lambda: t.call("eight at once", t.api, "POST", "/v1/chat/completions", {**CHAT, "model": "t"}, {200, 400, 413})] * 8
    t.call("nested loops, again", t.admin, "PUT", "/admin/v1/tasks/t", {"modules": [], "template": TEMPLATES["nested loops"]}, {200, 201})
    together(with_task)
    print(f"{kept} of {len(TEMPLATES)} templates were taken", flush=True)


def tensors(path, header, data=b"", length=None):
    """A PEFT directory whose safetensors file has this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.mkdir(parents=True, exist_ok=True)
    (path / "adapter_config.json").write_bytes((HOME / "modules/m0/adapter_config.json").read_bytes())
    (path / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


@target()
def tensor_files(t):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"

    def one(shape, offsets, dtype="F32"):
        return {name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}

    ok = bytes(4 * 64 * 4)
    whole = (HOME / "modules/m0/adapter_model.safetensors").read_bytes()
    n = struct.unpack("<Q", whole[:8])[0]
    head = json.loads(whole[8:8 + n])

    def changed(f):
        h = json.loads(json.dumps(head))
        f(h, next(k for k in h if "lora_A" in k))
        return h

    cases = {
        "offsets beyond the file": (one([4, 64], [0, 1 << 40]), ok), "an end past 64 bits": (one([4, 64], [2**63, 2**64 + 1024]), ok), "negative offsets": (one([4, 64], [-1024, 0]), ok),
        "an end before the beginning": (one([4, 64], [1024, 0]), ok), "offset + size that wraps": (one([4, 64], [2**64 - 512, 512]), ok),
        "a product that overflows": (one([2**32, 2**32], [0, 1024]), ok), "a product that overflows to fit": (one([2**62, 4, 64], [0, 1024]), ok), "a zero and a huge side": (one([0, 2**63 - 1], [0, 0]), ok),
        "a side of 2^32 + 4": (one([2**32 + 4, 64], [0, 1024]), ok), "a side of 2^64 + 4": (one([2**64 + 4, 64], [0, 1024]), ok), "a negative side": (one([-4, -64], [0, 1024]), ok), "a fraction": (one([4.5, 64], [0, 1024]), ok),
        "a thousand sides": (one([1] * 1000, [0, 4]), bytes(4)), "no side": (one([], [0, 4]), bytes(4)), "no type": (one([4, 64], [0, 1024], "F7"), ok), "bits": (one([4, 64], [0, 32], "F4"), bytes(32)),
        "a header that is no object": (b"[]", ok), "a header that is cut": (b'{"a"', ok), "an empty header": (b"", ok), "a deep header": (b'{"a":' * 50000, ok),
        "100,000 tensors": ({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100000)}, b""),
        "two that overlap": ({**one([4, 64], [0, 1024]), name.replace("lora_A", "lora_B"): {"dtype": "F32", "shape": [96, 4], "data_offsets": [512, 2048]}}, bytes(2048)),
        "a rank of 2^31": (changed(lambda h, k: h[k].update(shape=[2**31, 64])), whole[8 + n:]), "sides swapped": (changed(lambda h, k: h[k].update(shape=h[k]["shape"][::-1])), whole[8 + n:]),
        "layer 10^18": (changed(lambda h, k: h.update({k.replace("layers.0", "layers.1000000000000000000"): h.pop(k)})), whole[8 + n:]),
        "layer -1": (changed(lambda h, k: h.update({k.replace("layers.0", "layers.-1"): h.pop(k)})), whole[8 + n:]),
    }
    for what, (h, data) in cases.items():
        tensors(HOME / "modules/bad", h, data)
        t.call(what, t.admin, "PUT", "/admin/v1/modules/bad", {"path": "bad"}, {400, 413})
    for length in (0, 7, 2**31, 2**32, 2**63, 2**64 - 1, 2**64 - 8):
        tensors(HOME / "modules/bad", one([4, 64], [0, 1024]), ok, length)
        t.call(f"a header of {length} bytes", t.admin, "PUT", "/admin/v1/modules/bad", {"path": "bad"}, {400, 413})
    for at in [0, 1, 7, 8, 9, n // 2, n + 7, n + 8, n + 9, len(whole) // 2, len(whole) - 1]:
        (HOME / "modules/bad/adapter_model.safetensors").write_bytes(whole[:at])
        t.call(f"cut at {at}", t.admin, "PUT", "/admin/v1/modules/bad", {"path": "bad"}, {400})
    config = json.loads((HOME / "modules/m0/adapter_config.json").read_text())
    (HOME / "modules/bad/adapter_model.safetensors").write_bytes(whole)
    for key, v in [("r", x) for x in HUGE] + [("lora_alpha", x) for x in (10**400, "1", [], 1e308)] + [("target_modules", "(a+)+$" * 50), ("target_modules", "(" * 1000), ("rank_pattern", {".*(a|a)*(q_proj|(.*)*)": 8}),
                   ("target_modules", ["x" * 100000]), ("peft_type", "LORA" * 10000), ("modules_to_save", ["lm_head"])]:
        (HOME / "modules/bad/adapter_config.json").write_text(json.dumps({**config, key: v}))
        t.call(f"{key} {str(v)[:20]}", t.admin, "PUT", "/admin/v1/modules/bad?dry_run=1", {"path": "bad"}, {400, 413})


class Bomb:
    def __reduce__(self):
        return os.system, (f"touch {HOME}/executed",)


@target()
def pickle_in_a_checkpoint(t):
    import pickle
    path = HOME / "modules/pickled"
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_bytes((HOME / "modules/m0/adapter_config.json").read_bytes())
    (path / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    t.call("a pickle", t.admin, "PUT", "/admin/v1/modules/p", {"path": "pickled"}, {400}, "adapter_model.bin")
    t.call("a pickle for vLLM's call", t.admin, "POST", "/v1/load_lora_adapter", {"lora_name": "p", "lora_path": "pickled"}, {400, 404}, "adapter_model.bin")
    t.call("a pickle sent", t.admin, "PUT", "/admin/v1/modules/p", pickle.dumps(Bomb()), {400}, headers={"Content-Type": "application/octet-stream"})
    (path / "adapter_model.safetensors").write_bytes(pickle.dumps(Bomb()))
    t.call("a pickle by another name", t.admin, "PUT", "/admin/v1/modules/p", {"path": "pickled"}, {400})
    assert not (HOME / "executed").exists(), "it was executed"


@target()
def damaged_uploads(t):
    """A .pet cut at each boundary and in between, and with flipped bytes: refused, and nothing of it stays."""
    cpet("pet", "pack", HOME / "modules/m1", HOME / "m1.pet")
    whole = (HOME / "m1.pet").read_bytes()
    manifest = struct.unpack("<Q", whole[16:24])[0]
    rng = random.Random(11)
    octets = {"Content-Type": "application/octet-stream"}
    ends = [0, 1, 7, 8, 12, 16, 24, 31, 32, 63, 64, 65, 64 + manifest - 1, 64 + manifest, 64 + manifest + 1, len(whole) - 1]
    ends += [64 + manifest + m.start() for m in re.finditer(rb"\x28\xb5\x2f\xfd", whole[64 + manifest:])] + [rng.randrange(len(whole)) for _ in range(100 if LONG else 10)]
    for at in ends:
        t.call(f"cut at {at}", t.admin, "PUT", "/admin/v1/modules/cut", whole[:at], {400}, headers=octets)
    for k in range(2000 if LONG else 120):
        at = k // 2 if k < 128 else rng.choice([rng.randrange(64, 64 + manifest), rng.randrange(len(whole))])
        b = bytearray(whole)
        b[at] ^= 1 << rng.randrange(8)
        t.call(f"byte {at} flipped", t.admin, "PUT", "/admin/v1/modules/flipped", bytes(b), {400, 413}, headers=octets)

    def remade(f):
        """The manifest changed by f, with the head that belongs to it."""
        m = json.loads(whole[64:64 + manifest])
        f(m)
        text = json.dumps(m).encode()
        head = bytearray(whole[:64])
        head[16:24] = struct.pack("<Q", len(text))
        head[24:32] = struct.pack("<Q", 64 + len(text) + len(whole) - 64 - manifest)
        head[32:64] = hashlib.blake2b(text, digest_size=32).digest()
        return bytes(head) + text + whole[64 + manifest:]

    def each_number(m, v):
        """Ways to set one number of the manifest to v."""
        def walk(o, path):
            for k, x in o.items() if isinstance(o, dict) else enumerate(o) if isinstance(o, list) else ():
                if isinstance(x, (int, float)) and not isinstance(x, bool):
                    yield path + [k]
                yield from walk(x, path + [k])
        return list(walk(m, []))

    m = json.loads(whole[64:64 + manifest])
    spots = each_number(m, 0)
    for path in spots if LONG else rng.sample(spots, min(len(spots), 12)):
        for v in (-1, 0, 2**31, 2**32 + 1, 2**63 - 1, 2**64, 1e308):
            def put(m, path=path, v=v):
                for k in path[:-1]:
                    m = m[k]
                m[path[-1]] = v
            t.call(f"{'.'.join(map(str, path))} {v}", t.admin, "PUT", "/admin/v1/modules/remade?dry_run=1", remade(put), {400, 413, 200}, headers=octets)
    t.call("the whole one", t.admin, "PUT", "/admin/v1/modules/whole", whole, {201}, headers=octets)
    names = {x["name"] for x in json.loads(call(t.admin, "GET", "/admin/v1/modules")[1])["data"]}
    assert names <= {"whole", "fixed"} and "whole" in names, names


@target()
def names(t):
    """Names of tasks and modules that are none."""
    for name in ("..", "%2e%2e", "%00", "a%2fb", "a" * 5000, "%ff%fe", "%20", "a%0d%0ab", "%22", "base", "fixed", "%F0%9F%98%80" * 100, "x?y=z", "%", "%zz"):
        for kind in ("tasks", "modules"):
            for method, body in (("PUT", {"modules": ["nothing"]}), ("GET", None), ("DELETE", None)):
                t.call(f"{method} {kind}/{name[:20]}", t.admin, method, f"/admin/v1/{kind}/{name}", body, {400, 404, 405, 409, 414, 403} | ({200} if name in ("base", "fixed") and method == "GET" else set()))
    for name in ("", "a" * 100000, "\0", "base/../fixed", "\u202e", "%s%n", "../../etc/passwd", None, 1, {}):
        t.call(f"model {str(name)[:20]!r}", t.api, "POST", "/v1/completions", {**NORMAL, "model": name}, {400, 404})
        t.call(f"adapter {str(name)[:20]!r}", t.admin, "POST", "/v1/unload_lora_adapter", {"lora_name": name}, {400, 404})


@target()
def registration_during_generation(t):
    """The same name registered by eight at once, again and again, while streams of it run: texts are those of one content."""
    body = {**NORMAL, "model": "twice", "max_tokens": 40}
    wants = []
    for m in ("m0", "m1"):
        t.call(f"module from {m}", t.admin, "PUT", "/admin/v1/modules/twice", {"path": m}, {200, 201})
        t.call(f"task from {m}", t.admin, "PUT", "/admin/v1/tasks/twice", {"modules": ["twice"]}, {200, 201})
        wants.append(json.loads(call(t.api, "POST", "/v1/completions", body)[1])["choices"][0]["text"])
    assert wants[0] != wants[1]
    wrong, done = [], threading.Event()

    def ask():
        while not done.is_set():
            status, text = call(t.api, "POST", "/v1/completions", body)
            if status != 200 or json.loads(text)["choices"][0]["text"] not in wants:
                wrong.append((status, text[:200]))

    askers = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for a in askers:
        a.start()

    def register(i):
        for k in range(6):
            for method, path, what in (("PUT", "/admin/v1/modules/twice", {"path": f"m{(i + k) % 2}"}), ("PUT", "/admin/v1/tasks/twice", {"modules": ["twice"]}),
                                       ("POST", "/v1/load_lora_adapter", {"lora_name": "twice", "lora_path": f"m{k % 2}"}), ("POST", "/v1/load_lora_adapter", {"lora_name": "twice", "lora_path": f"m{k % 2}", "load_inplace": True})):
                status, text = call(t.admin, method, path, what, timeout=60 * SLOW)
                if status not in (200, 201, 400):
                    wrong.append((status, text[:200]))
                t.answer(path, text)

    together([lambda i=i: register(i) for i in range(8)])
    done.set()
    for a in askers:
        a.join()
    assert not wrong, wrong[:3]
    t.call("a name of the command line", t.admin, "PUT", "/admin/v1/modules/fixed", {"path": "m1"}, {409, 400})
    t.call("the backbone's name", t.admin, "PUT", "/admin/v1/tasks/base", {"modules": []}, {409, 400})
    t.well("the end")


@case
def tenants_and_keys():
    """Wrong keys of all lengths get the same answer; a tenant's prompts do not speed up another's."""
    secret = "a-key-of-some-length"
    lines = "".join(f"{n}:{hashlib.blake2b(k.encode(), digest_size=32).hexdigest()}\n" for n, k in (("one", secret), ("two", "another-key")))
    (HOME / "keys").write_text(lines)
    (HOME / "admin").write_text("an-admin-key-of-some-length")
    (HOME / "admin").chmod(0o600)
    with start("--api-keys", HOME / "keys", "--admin-key", HOME / "admin") as s:
        api, admin = addresses(s)
        answers = set()
        for k in ("", "a", secret[:-1], secret + "x", secret.upper(), "Bearer", "k" * 10000, "%00", "an-admin-key-of-some-length"):
            status, text = call(api, "POST", "/v1/completions", NORMAL, {"Authorization": f"Bearer {k}"})
            answers.add((status, json.loads(text)["error"]["message"]))
            if "admin" not in k:
                status, text = call(admin, "GET", "/admin/v1/tasks", None, {"Authorization": f"Bearer {k}"})
                answers.add((status, json.loads(text)["error"]["message"]))
        assert {a[0] for a in answers} == {401} and len(answers) <= 2, answers
        body = {**NORMAL, "prompt": list(range(10, 210))}
        cached = []
        for k in (secret, secret, "another-key", "another-key"):
            a = json.loads(call(api, "POST", "/v1/completions", body, {"Authorization": f"Bearer {k}"})[1])
            cached.append(a["usage"]["prompt_tokens_details"]["cached_tokens"])
        assert cached == [0, 192, 0, 192], cached
        assert s.stop() == 0


if __name__ == "__main__":
    main()
