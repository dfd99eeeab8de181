#!/usr/bin/env python3
"""cpet module and cpet task: what they send, what they print, how they end; against a small server, and against cpetd.

The stub keeps what it was sent and answers as the admin listener does (docs/admin.md). Needs build/cpet (or CPET) and the
modules of tests/golden/pet; the last case cpetd and the demo backbone. Standard library only.
"""
import json
import os
import socket
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import harness
from harness import CPET, ROOT, case

GOLDEN = ROOT / "tests/golden/pet/head"
HASH = "ab" * 32
MODULE = {"name": "a", "hash": HASH, "kind": "lora", "bytes": 1234567, "rank": 8, "sites": 14, "state": "ready",
          "residency": "stored", "users": 2, "tenant": None}
TASK = {"id": "t", "version": HASH, "backbone": False, "modules": [{"name": "a", "hash": HASH, "weight": 1.0}, {"name": "b", "hash": HASH, "weight": 0.5}],
        "tenant": "anna"}


class Unix(ThreadingHTTPServer):
    address_family = socket.AF_UNIX

    def server_bind(self):
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "unix", 0

    def get_request(self):
        s, _ = self.socket.accept()
        return s, ("unix", 0)


class Stub:
    """answers: (status, object, or bytes, or None), one a request; the last one stays."""

    def __init__(self, *answers, unix=None):
        self.seen, left = [], list(answers)
        seen = self.seen

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                seen.append((self.command, self.path, dict(self.headers), body))
                status, what = left[0] if len(left) == 1 else left.pop(0)
                data = what if isinstance(what, bytes) else b"" if what is None else json.dumps(what).encode()
                self.send_response(status)
                if status in (301, 307):
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_DELETE = do_POST = answer

            def log_message(self, *args):
                pass

        self.http = Unix(unix, Handler) if unix else ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"unix:{unix}" if unix else f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.http.shutdown()
        self.http.server_close()


def cpet(*args, env=None, status=0):
    """(stdout, stderr); the exit status must be as told."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CPET_ADMIN")}
    r = subprocess.run([CPET, *map(str, args)], capture_output=True, text=True, env={**clean, **(env or {})}, timeout=60)
    assert r.returncode == status, f"{args}: {r.returncode}, not {status}: {r.stdout} {r.stderr}"
    return r.stdout, r.stderr


def sent(*args, answer=(200, MODULE), **more):
    """The one request that a command makes, and what it printed."""
    with Stub(answer) as s:
        out, _ = cpet(*args, "--server", s.url, **more)
        assert len(s.seen) == 1, s.seen
        return s.seen[0], out


def key_file(text="secret-key\n", mode=0o600):
    fd, path = tempfile.mkstemp()
    os.write(fd, text.encode())
    os.fchmod(fd, mode)
    os.close(fd)
    return path


@case
def a_pet_file_is_sent_as_it_is():
    with tempfile.NamedTemporaryFile(suffix=".pet") as f:
        f.write(bytes(range(256)) * 20000)  # larger than what libcurl sends without asking
        f.flush()
        (method, path, headers, body), out = sent("module", "put", "a", f.name, answer=(201, MODULE))
        assert (method, path) == ("PUT", "/admin/v1/modules/a"), path
        assert headers["Content-Type"] == "application/octet-stream" and body == bytes(range(256)) * 20000
        assert "Authorization" not in headers
        assert out.startswith("a: lora, rank 8 on 14 linears, 1.23 MB, hash " + HASH) and "already" not in out, out
        _, out = sent("module", "put", "a", f.name)
        assert "it was there already" in out, out
        (_, path, _, _), out = sent("module", "put", "a b/..?x", f.name, "--dry-run", "--tenant", "a&b", "--pinned")
        assert path == "/admin/v1/modules/a%20b%2F..%3Fx?dry_run=1&pinned=1&tenant=a%26b", path
        assert "it would be taken" in out, out
        (_, path, _, _), _ = sent("module", "put", "..", f.name)
        assert path == "/admin/v1/modules/..", path


@case
def a_peft_directory_is_packed():
    with tempfile.TemporaryDirectory() as tmp:
        (_, _, _, body), _ = sent("module", "put", "a", GOLDEN, env={"TMPDIR": tmp})
        assert not os.listdir(tmp), "the packed file was left"
        p = Path(tmp) / "sent.pet"
        p.write_bytes(body)
        inspect = lambda path: json.loads(cpet("pet", "inspect", path, "--json")[0])
        assert inspect(p)["hash"] == inspect(GOLDEN)["hash"]
        _, err = cpet("module", "put", "a", ROOT / "tests", "--server", "http://127.0.0.1:9", status=1, env={"TMPDIR": tmp})
        assert "adapter_config.json" in err and os.listdir(tmp) == ["sent.pet"], err


@case
def a_path_of_the_server():
    (method, path, headers, body), _ = sent("module", "put", "a", "--path", "adapters/ä", "--dry-run")
    assert (method, path) == ("PUT", "/admin/v1/modules/a?dry_run=1") and headers["Content-Type"] == "application/json"
    assert json.loads(body) == {"path": "adapters/ä"}


@case
def tables():
    (method, path, _, _), out = sent("module", "list", answer=(200, {"data": [MODULE, {**MODULE, "name": "a longer näme", "tenant": "bert"}]}))
    assert (method, path) == ("GET", "/admin/v1/modules")
    lines = out.splitlines()
    assert len(lines) == 3 and lines[0].startswith("NAME") and len({line.index("lora") for line in lines[1:]}) == 1, out
    assert "abababababab " in lines[1] and HASH not in out and "bert" in lines[2], out
    (_, path, _, _), out = sent("task", "list", answer=(200, {"data": [TASK]}))
    assert path == "/admin/v1/tasks" and "a b=0.5" in out and "anna" in out, out
    assert sent("task", "list", answer=(200, {"data": []}))[1].splitlines()[1:] == []
    for answer in (MODULE, {"data": [MODULE]}):
        (_, path, _, _), out = sent("module", "show", "a", answer=(200, answer))
        assert path == "/admin/v1/modules/a" and HASH in out and "tenant          -" in out, out
    (_, path, _, _), out = sent("task", "show", "t", answer=(200, {**TASK, "versions": [HASH, "cd" * 32], "defaults": {"top_p": 0.5}}))
    assert path == "/admin/v1/tasks/t" and f"{HASH} {'cd' * 32}" in out and '{"top_p":0.5}' in out, out
    out = sent("module", "show", "a", answer=(200, {**MODULE, "base": "x\x1b[31mred"}))[1]
    assert "\x1b" not in out, out


@case
def json_is_the_servers_answer():
    for args, answer in ((("module", "list"), {"data": [MODULE]}), (("task", "show", "t"), TASK), (("module", "put", "a", "--path", "x"), MODULE)):
        assert json.loads(sent(*args, "--json", answer=(200, answer))[1]) == answer
    assert json.loads(sent("task", "delete", "t", "--json", answer=(204, None))[1]) == {}
    error = {"error": {"message": "there is no task \"t\"", "type": "not_found_error", "param": None, "code": None}}
    with Stub((404, error)) as s:
        out, err = cpet("task", "delete", "t", "--json", "--server", s.url, status=1)
        assert json.loads(out) == error and "there is no task" in err


@case
def deleting():
    (method, path, _, body), out = sent("module", "delete", "a", answer=(204, None))
    assert (method, path, body, out) == ("DELETE", "/admin/v1/modules/a", b"", "a: deleted\n")
    (_, path, _, _), out = sent("module", "delete", "a", "--drain", answer=(202, {"name": "a", "state": "draining", "users": 3}))
    assert path == "/admin/v1/modules/a?drain=1" and "3 requests" in out, out
    (method, path, _, _), _ = sent("task", "delete", "t", answer=(204, None))
    assert (method, path) == ("DELETE", "/admin/v1/tasks/t")


@case
def tasks():
    with tempfile.TemporaryDirectory() as tmp:
        tmpl, defaults = Path(tmp) / "t.jinja", Path(tmp) / "d.json"
        tmpl.write_text("{{ messages }}é\n")
        defaults.write_text('{"temperature": 0}')
        (method, path, headers, body), out = sent("task", "put", "t", "--module", "a", "--module", "b=0.5", "--module", f"{HASH}=-1e-3", "--module", "x=y=2",
                                                  "--defaults", '{"max_tokens": 5}', "--template", tmpl, "--tenant", "anna", answer=(201, {"id": "t", "version": HASH}))
        assert (method, path) == ("PUT", "/admin/v1/tasks/t") and headers["Content-Type"] == "application/json"
        assert json.loads(body) == {"modules": [{"name": "a", "weight": 1}, {"name": "b", "weight": 0.5}, {"name": HASH, "weight": -0.001}, {"name": "x=y", "weight": 2}],
                                    "defaults": {"max_tokens": 5}, "template": "{{ messages }}é\n", "tenant": "anna"}, body
        assert out == f"t: made, version {HASH}\n", out
        (_, _, _, body), out = sent("task", "put", "t", "--defaults", f"@{defaults}", answer=(200, {"id": "t", "version": HASH}))
        assert json.loads(body) == {"modules": [], "defaults": {"temperature": 0}} and out.startswith("t: changed"), (body, out)
    (method, path, _, body), _ = sent("task", "rollback", "t", HASH, answer=(200, {"id": "t", "version": HASH}))
    assert (method, path, json.loads(body)) == ("PUT", "/admin/v1/tasks/t", {"version": HASH})


@case
def the_key():
    path = key_file()
    (_, _, headers, _), _ = sent("task", "list", "--key-file", path, answer=(200, {"data": []}))
    assert headers["Authorization"] == "Bearer secret-key"
    with Stub((200, {"data": []})) as s:
        cpet("task", "list", env={"CPET_ADMIN": s.url, "CPET_ADMIN_KEY_FILE": path})
        # no proxy of the environment sees it
        cpet("task", "list", env={"CPET_ADMIN": s.url, "CPET_ADMIN_KEY_FILE": path, "http_proxy": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9"})
        assert [h["Authorization"] for _, _, h, _ in s.seen] == ["Bearer secret-key"] * 2
    with Stub((307, {})) as s:  # nor where a redirect points
        cpet("task", "list", "--server", s.url, "--key-file", path, status=1)
        assert [p for _, p, _, _ in s.seen] == ["/admin/v1/tasks"]
    for bad in (key_file(mode=0o644), key_file(""), key_file("two\nlines"), key_file("a b"), key_file("x" * 5000), "/nowhere"):
        with Stub((200, {})) as s:
            _, err = cpet("task", "list", "--server", s.url, "--key-file", bad, status=1)
            assert bad in err and not s.seen, err
        if bad != "/nowhere":
            os.unlink(bad)
    os.unlink(path)


@case
def a_unix_socket():
    with tempfile.TemporaryDirectory() as tmp, Stub((200, {"data": []}), unix=f"{tmp}/admin.sock") as s:
        cpet("task", "list", "--server", s.url)
        assert s.seen[0][:2] == ("GET", "/admin/v1/tasks")
        cpet("task", "list", "--server", f"unix:{tmp}/none", status=1)


@case
def the_server_says_no():
    error = {"error": {"message": "a weight must be a finite number", "type": "invalid_request_error", "param": "modules", "code": None}}
    with Stub((400, error)) as s:
        out, err = cpet("task", "put", "t", "--module", "a", "--server", s.url, status=1)
        assert not out and err == "cpet task put: modules: a weight must be a finite number\n", err
    with Stub((400, {"error": {"message": "the tensor \x1b[2J\x9b1m\nis not", "param": None}})) as s:  # of a file that somebody made
        _, err = cpet("module", "list", "--server", s.url, status=1)
        assert err == "cpet module list: the tensor ?[2J??1m?is not\n", ascii(err)
    for answer, text in (((502, b"<html>bad gateway"), "502"), ((200, b"[1]"), "JSON"), ((500, {"error": "x"}), "500"), ((401, None), "401"), ((200, b"{" * 100000), "JSON")):
        with Stub(answer) as s:
            _, err = cpet("module", "list", "--server", s.url, status=1)
            assert text in err and s.url in err, err
    with socket.create_server(("127.0.0.1", 0)) as gone:
        url = f"http://127.0.0.1:{gone.getsockname()[1]}"
    _, err = cpet("module", "list", "--server", url, status=1)
    assert url in err and "connect" in err.lower(), err


@case
def used_wrongly():
    url = ("--server", "http://127.0.0.1:9")
    for args, text in (((), "needs one of put, list, show, delete"), (("nonsense",), "needs one of"), (("list",), "--server"), (("list", "x", *url), "no arguments"),
                       (("put", "a", *url), "FILE or --path"), (("put", "a", "f", "--path", "p", *url), "FILE or --path"), (("put", *url), "a NAME"),
                       (("list", "--server", "ftp://x"), "ftp://x"), (("list", "--server", "127.0.0.1:9"), "http://HOST:PORT"), (("list", "--drain", *url), "takes no --drain"),
                       (("show", "", *url), "empty"), (("list", "--nonsense", *url), "see the options")):
        out, err = cpet("module", *args, status=2)
        assert not out and text in err and "try 'cpet module" in err, err
    for args, text in (((), "rollback"), (("put", "t", "--module", "a=b", *url), "WEIGHT"), (("put", "t", "--module", "a=nan", *url), "WEIGHT"), (("put", "t", "--module", "=1", *url), "name"),
                       (("put", "t", "--defaults", "[1]", *url), "object"), (("put", "t", "--defaults", "{", *url), "object"), (("rollback", "t", "12", *url), "64"),
                       (("rollback", "t", *url), "HASH"), (("put", "t", "--path", "x", *url), "takes no --path"), (("put", "t", *["--module", "a"] * 65, *url), "64 modules")):
        _, err = cpet("task", *args, status=2)
        assert text in err, err
    for name in ("module", "task"):
        for args in (("--help",), ("list", "--help")):
            assert cpet(name, *args)[0].startswith(f"usage: cpet {name} put")
    for args in (("put", "t", "--template", "/nowhere", *url), ("put", "t", "--defaults", "@/nowhere", *url)):
        assert "/nowhere" in cpet("task", *args, status=1)[1]
    _, err = cpet("module", "put", "a", "/nowhere", *url, status=1)
    assert "/nowhere" in err, err


@case
def a_servers_life():
    demo = ROOT / "deploy/demo"
    if not Path(harness.MODEL).is_dir():
        raise harness.Skip("the demo is not there (deploy/quickstart --no-serve makes it)")
    with tempfile.TemporaryDirectory() as tmp:
        key, wrong = key_file("an-admin-key"), key_file("another-key")
        start = ("--name", "base", "--data", f"{tmp}/data", "--admin-key", key, "--module-root", demo, "--threads", 1)
        with harness.Server(*start) as s:
            env = {"CPET_ADMIN": s.admin, "CPET_ADMIN_KEY_FILE": key}
            do = lambda *args, **more: cpet(*args, env=env, **more)[0]
            assert "it would be taken" in do("module", "put", "extract", demo / "extract", "--dry-run")
            assert do("module", "list").count("\n") == 1
            assert "already" not in do("module", "put", "extract", demo / "extract")
            assert "already" in do("module", "put", "extract", "--path", "extract")
            do("module", "put", "triage", "--path", "triage", "--pinned")
            assert do("task", "put", "t", "--module", "extract", "--defaults", '{"temperature": 0, "max_tokens": 4}').startswith("t: made")
            assert s.complete(model="t", prompt="Hello")["usage"]["completion_tokens"] == 4
            assert do("task", "put", "t", "--module", "triage=0.5", "--module", "extract").startswith("t: changed")
            new, old = json.loads(do("task", "show", "t", "--json"))["data"][0]["versions"]
            assert old in do("task", "rollback", "t", old)
            _, err = cpet("task", "rollback", "t", "00" * 32, env=env, status=1)
            assert err.startswith("cpet task rollback: "), err
            for args, text in ((("module", "delete", "extract"), "uses"), (("module", "put", "x", ROOT / "README.md"), "x"), (("task", "put", "u", "--module", "none"), "modules"),
                               (("module", "put", "x", GOLDEN), "lm_head"), (("task", "list", "--key-file", wrong), "key"), (("module", "show", "none"), "none")):
                out, err = cpet(*args, env=env, status=1)
                assert text in err and not out, err
            _, modules, tasks = do("module", "list"), json.loads(do("module", "list", "--json")), do("task", "list")
            s.p.kill()
            s.p.wait()
        with harness.Server(*start) as s:  # after kill -9 all is there
            env["CPET_ADMIN"] = s.admin
            names = lambda a: {(m["name"], m["hash"]) for m in a["data"]}
            assert names(json.loads(do("module", "list", "--json"))) == names(modules) and do("task", "list") == tasks, tasks
            assert s.complete(model="t", prompt="Hello")["usage"]["completion_tokens"] == 4
            assert do("module", "delete", "extract", "--drain") == "extract: deleted\n"
            assert do("task", "delete", "t") == "t: deleted\n" and do("module", "delete", "triage") == "triage: deleted\n"
            assert do("module", "list").count("\n") == 1
        os.unlink(key)
        os.unlink(wrong)


if __name__ == "__main__":
    harness.main()
