#!/usr/bin/env python3
"""The request log: a JSON line a request, rotation, what a disk that does not move costs, and no prompt unless asked.
Needs CPETD_MODEL and build/cpetd (or CPETD)."""
import hashlib
import json
import os
import re
import signal
import time

from cpetd_run import Server, model, run, scratch, wait_until

COMP, CHAT = "/v1/completions", "/v1/chat/completions"
SECRET = "the walrus and the carpenter"


def lines(path):
    with open(path) as f:
        return [json.loads(x) for x in f]


def wait_lines(path, n):
    wait_until(lambda: os.path.exists(path) and len(lines(path)) >= n, "%d lines in %s" % (n, path))
    got = lines(path)
    assert len(got) == n, got
    return got


def test_lines():
    with scratch() as d:
        log, keys = os.path.join(d, "requests"), os.path.join(d, "keys")
        with open(keys, "w") as f:
            f.write("anna:%s\n" % hashlib.blake2b(b"key-anna", digest_size=32).hexdigest())
        with Server("--request-log", log, "--api-keys", keys, key="key-anna") as s:
            s.get("/health"), s.get("/ready")
            s.request("POST", COMP, {"model": "base", "prompt": SECRET, "max_tokens": 5, "ignore_eos": True}, {"x-request-id": "id-1"})
            list(s.stream(CHAT, {"model": "base", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 3, "n": 2}))
            s.post(COMP, {"model": "base", "prompt": SECRET, "n": 0})
            s.post(COMP, {"model": "no-such", "prompt": SECRET})
            s.post(COMP, {"model": "base", "prompt": SECRET + '", "x'})
            s.request("POST", COMP, '{"model": "base", "prompt": "%s" x' % SECRET)
            s.get("/v1/models"), s.get("/nothing", headers={"Authorization": "Bearer wrong"})
            c = s.open_stream(COMP, {"model": "base", "prompt": "x", "max_tokens": 4000, "ignore_eos": True})
            c.getresponse().readline()
            c.close()
            got = wait_lines(log, 9)
            first, chat = got[0], got[1]
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"]), first
            want = {"request_id": "id-1", "method": "POST", "path": COMP, "status": 200, "outcome": "ok", "tenant": "anna", "task": "base",
                    "stream": False, "finish_reasons": ["length"], "cached_tokens": 0, "completion_tokens": 5, "error_param": None}
            assert {k: first[k] for k in want} == want, first
            assert first["client"].startswith("127.0.0.1:") and first["prompt_tokens"] > 3
            assert 0 <= first["queue_ms"] <= first["first_token_ms"] <= first["total_ms"] < 20000, first
            assert chat["path"] == CHAT and chat["stream"] and len(chat["finish_reasons"]) == 2 and chat["completion_tokens"] <= 6
            assert [(x["status"], x["outcome"], x.get("task"), x.get("error_param")) for x in got[2:8]] == [
                (400, "error", None, "n"), (404, "error", None, "model"), (200, "ok", "base", None), (400, "error", None, None),
                (200, "ok", None, None), (404, "error", None, None)], got
            assert (got[8]["status"], got[8]["outcome"], got[8]["stream"]) == (200, "abort", True), got[8]
            with open(log) as f:
                assert "walrus" not in f.read()
            assert s.metric("cpet_request_log_lines_total") == 9 and s.metric("cpet_request_log_dropped_total") == 0
            assert os.stat(log).st_mode & 0o007 == 0


def test_rotation():
    with scratch() as d:
        log, old = os.path.join(d, "r"), os.path.join(d, "r.1")
        with open(log, "w") as f:
            f.write('{"kept": true}\n')
        with Server("--request-log", log) as s:
            for i in range(3):
                s.complete("x", max_tokens=1)
            assert wait_lines(log, 4)[0] == {"kept": True}
            os.rename(log, old)
            s.complete("x", max_tokens=1)
            wait_lines(old, 5)
            s.p.send_signal(signal.SIGHUP)
            wait_until(lambda: os.path.exists(log), "a new file")
            s.complete("x", max_tokens=1)
            wait_lines(log, 1)
            assert len(lines(old)) == 5
            for _ in range(4):
                s.complete("x", max_tokens=1)
            assert s.stop() == 0
            assert len(lines(log)) == 5  # what was queued is written before the end


def test_prompts_when_asked():
    with scratch() as d:
        log = os.path.join(d, "r")
        with Server("--request-log", log, "--log-prompts") as s:
            s.complete(SECRET, max_tokens=1)
            s.complete([[5, 6, 7]], max_tokens=1)
            s.post(CHAT, {"model": "base", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 1})
            s.post(COMP, {"model": "base", "prompt": "y" * 50000, "max_tokens": 1, "n": 0})
            s.post(COMP, {"model": "base", "prompt": "word " * 20000, "max_tokens": 1})
            got = wait_lines(log, 5)
            assert got[0]["prompt"] == [SECRET] and got[1]["prompt"] == [[5, 6, 7]]
            assert got[2]["prompt"] == [{"role": "user", "content": SECRET}] and got[2]["error"] is None
            assert "n" in got[3]["error"] and len(got[4]["prompt"][0]) == 16384 and "context" in got[4]["error"]


def test_stuck_disk():
    """A reader that does not read: requests go on, lines are dropped and counted, and the end does not hang."""
    with scratch() as d:
        pipe = os.path.join(d, "pipe")
        os.mkfifo(pipe)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        with Server("--request-log", pipe, "--log-prompts") as s:
            big = {"model": "base", "prompt": "word " * 20000, "max_tokens": 1}
            end = time.time() + 60
            while s.metric("cpet_request_log_dropped_total") == 0 and time.time() < end:
                s.post(COMP, big)
            assert s.metric("cpet_request_log_dropped_total") > 0
            start = time.time()
            assert s.complete("x", max_tokens=2)["choices"] and time.time() - start < 2
            assert s.stop() == 0
        os.close(reader)


def test_standard_output_and_bad_paths():
    import subprocess
    from cpetd_run import binary, without_options
    for bad in ("/nowhere/log", "/"):
        p = subprocess.run([binary(), "--model", model(), "--listen", "127.0.0.1:0", "--request-log", bad], capture_output=True, text=True,
                           env=without_options(), timeout=30)
        assert p.returncode == 78 and "--request-log" in p.stderr, (bad, p)
    p = subprocess.Popen([binary(), "--model", model(), "--name", "base", "--listen", "127.0.0.1:0", "--request-log", "-"],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=without_options())
    port = int(p.stderr.readline().rsplit(":", 1)[1])
    import http.client
    c = http.client.HTTPConnection("127.0.0.1", port)
    c.request("GET", "/nothing")
    assert c.getresponse().status == 404
    line = json.loads(p.stdout.readline())
    assert line["path"] == "/nothing" and line["status"] == 404
    p.send_signal(signal.SIGTERM)
    assert p.wait(timeout=30) == 0


if __name__ == "__main__":
    model()
    run([test_lines, test_rotation, test_prompts_when_asked, test_stuck_disk, test_standard_output_and_bad_paths], "e2e/request_log")
