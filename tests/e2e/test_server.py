#!/usr/bin/env python3
"""cpetd end to end over plain HTTP. Needs CPETD_MODEL (a model directory) and build/cpetd (or CPETD)."""
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time

from cpetd_run import ROOT, Server, Skip, binary, model, run, scratch, wait_until, without_options, write_lora

COMP, CHAT = "/v1/completions", "/v1/chat/completions"
shared = None  # one server with default settings, for the tests that only ask


def server():
    global shared
    if shared is None:
        shared = Server()
    return shared


def concurrently(jobs):
    out = [None] * len(jobs)

    def one(i):
        try:
            out[i] = jobs[i]()
        except Exception as e:  # handed to the caller
            out[i] = e

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(jobs))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for o in out:
        if isinstance(o, Exception):
            raise o
    return out


def test_ready_lines():
    with Server() as s:
        lines = [x.split(" http://")[0].split(":")[0:2] for x in s.lines]
        assert [x[1] for x in lines] == [" listening on", " admin listening on", " warning", " ready"], s.lines
        assert "no --data" in s.lines[2]
        assert s.stop() == 0


def test_small_gets():
    s = server()
    assert s.get("/health")[0] == 200 and s.get("/ready")[0] == 200
    assert json.loads(s.get("/version")[2])["version"]
    status, h, data = s.get("/v1/models", headers={"x-request-id": "abc-1"})
    m = json.loads(data)
    assert status == 200 and h["x-request-id"] == "abc-1"
    assert [x["id"] for x in m["data"]] == ["base"] and m["data"][0]["parent"] is None
    assert json.loads(s.get("/v1/models/base")[2])["id"] == "base"
    assert s.get("/v1/models/other")[0] == 404 and s.get("/v1/models/")[0] == 404
    assert s.get("/metrics")[0] == 404 and s.get("/metrics", admin=True)[0] == 200
    assert s.get("/admin/v1/tasks")[0] == 404
    assert json.loads(s.get("/admin/v1/tasks", admin=True)[2])["data"][0]["id"] == "base"
    assert json.loads(s.get("/admin/v1/modules", admin=True)[2])["data"] == []
    # without a key a web page on this machine could ask too
    for h in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Host": "evil.example:80"}, {"Host": "evil.example"}):
        assert s.get("/admin/v1/tasks", admin=True, headers=h)[0] == 403, h
    for host in ("localhost", "localhost:9000", "[::1]", "[::1]:80", "127.0.0.1"):
        assert s.get("/admin/v1/tasks", admin=True, headers={"Host": host})[0] == 200, host
    status, h, _ = s.get(COMP)
    assert status == 405 and h["Allow"] == "POST"


def test_completion():
    s = server()
    r = s.complete("The capital of France is", max_tokens=8)
    assert r["object"] == "text_completion" and r["model"] == "base" and r["id"].startswith("cmpl-")
    assert "Paris" in r["choices"][0]["text"], r
    assert r["choices"][0]["finish_reason"] == "length"
    assert r["usage"]["completion_tokens"] == 8 and r["usage"]["total_tokens"] == r["usage"]["prompt_tokens"] + 8


def test_prompt_forms():
    s = server()
    one = s.complete("Once upon a time", max_tokens=6, logprobs=0, echo=True)
    ids = s.complete([[504, 338]], max_tokens=4)
    assert ids["usage"]["prompt_tokens"] == 2
    assert s.complete([504, 338], max_tokens=4)["choices"][0]["text"] == ids["choices"][0]["text"]
    two = s.complete(["Once upon a time", "The sky is"], max_tokens=6)
    assert [c["index"] for c in two["choices"]] == [0, 1]
    assert one["choices"][0]["text"] == "Once upon a time" + two["choices"][0]["text"]
    assert two["choices"][1]["text"] == s.text("The sky is", max_tokens=6)


def test_echo_logprobs():
    s = server()
    r = s.complete("The cat sat on the mat", max_tokens=2, echo=True, logprobs=3)
    lp = r["choices"][0]["logprobs"]
    n = r["usage"]["total_tokens"]
    assert len(lp["tokens"]) == len(lp["token_logprobs"]) == len(lp["text_offset"]) == n
    assert lp["token_logprobs"][0] is None and lp["top_logprobs"][0] is None
    assert "".join(lp["tokens"]) == r["choices"][0]["text"]
    for tok, v, top, off in zip(lp["tokens"], lp["token_logprobs"], lp["top_logprobs"], lp["text_offset"]):
        assert r["choices"][0]["text"][off:].startswith(tok)
        if v is not None:
            assert top[tok] == v and v <= max(top.values())
    # the prompt's scores do not depend on what is generated, or how it is cut into steps
    only = s.complete("The cat sat on the mat", max_tokens=0, echo=True, logprobs=3)["choices"][0]["logprobs"]
    assert only["token_logprobs"] == lp["token_logprobs"][: n - 2]


def test_long_echo():
    s = server()
    text = "word and another, " * 150
    lp = s.complete(text, max_tokens=1, echo=True, logprobs=1)["choices"][0]["logprobs"]
    assert "".join(lp["tokens"]).startswith(text) and None not in lp["token_logprobs"][1:]


def test_seeds():
    s = server()
    def ask(seed, n=1):
        return [c["text"] for c in s.complete("Once", temperature=1, seed=seed, n=n, max_tokens=12)["choices"]]
    four = ask(11, 4)
    assert four == ask(11, 4) and len(set(four)) == 4
    assert ask(11) == four[:1] and ask(12) != ask(11)
    free = {s.text("Once", temperature=1, max_tokens=12) for _ in range(3)}
    assert len(free) == 3


def test_stop():
    s = server()
    whole = s.text("The capital of France is", max_tokens=24)
    words = whole.split(" ")
    stop = words[3]
    r = s.complete("The capital of France is", max_tokens=24, stop=[stop, "never there"])
    assert r["choices"][0]["text"] == whole[: whole.index(stop)]
    assert r["choices"][0]["finish_reason"] == "stop"
    assert 0 < r["usage"]["completion_tokens"] < 24
    got = ""
    for e in s.stream(COMP, {"model": "base", "prompt": "The capital of France is", "max_tokens": 24, "temperature": 0,
                             "stop": stop}):
        if e != "[DONE]" and e["choices"]:
            got += e["choices"][0]["text"]
            assert stop not in got and whole.startswith(got)
    assert got == whole[: whole.index(stop)]


def stream_texts(s, path, body):
    texts, finish, usage, done, n_usage = {}, {}, None, False, 0
    for e in s.stream(path, body):
        if e == "[DONE]":
            done = True
            continue
        assert not done
        if e.get("usage"):
            assert e["choices"] == []
            usage, n_usage = e["usage"], n_usage + 1
        for c in e["choices"]:
            assert c["index"] not in finish
            piece = c["text"] if path == COMP else c["delta"].get("content") or ""
            texts[c["index"]] = texts.get(c["index"], "") + piece
            if c["finish_reason"]:
                finish[c["index"]] = c["finish_reason"]
    assert done
    return texts, finish, usage


def test_stream_equals_whole():
    s = server()
    body = {"model": "base", "prompt": ["A list of emoji: \U0001F600", "Deux caf\u00e9s"], "n": 2, "seed": 4, "temperature": 1.1,
            "max_tokens": 40, "stream_options": {"include_usage": True}}
    whole = s.post(COMP, {k: v for k, v in body.items() if k != "stream_options"})[1]
    texts, finish, usage = stream_texts(s, COMP, body)
    assert texts == {c["index"]: c["text"] for c in whole["choices"]}
    assert finish == {c["index"]: c["finish_reason"] for c in whole["choices"]}
    assert usage == whole["usage"]


def test_stream_logprobs():
    s = server()
    body = {"model": "base", "prompt": "One two three", "max_tokens": 10, "temperature": 0, "logprobs": 2}
    want = s.complete("One two three", max_tokens=10, logprobs=2)["choices"][0]["logprobs"]
    got = {k: [] for k in want}
    for e in s.stream(COMP, body):
        if e != "[DONE]" and e["choices"] and e["choices"][0]["logprobs"]:
            for k in got:
                got[k] += e["choices"][0]["logprobs"][k]
    assert got == want


def test_chat():
    s = server()
    body = {"model": "base", "messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 24,
            "temperature": 0}
    status, r = s.post(CHAT, body)
    if status == 400 and "no chat template" in r["error"]["message"]:
        raise Skip("the model has no chat template")
    assert status == 200, r
    assert r["object"] == "chat.completion" and r["choices"][0]["message"]["role"] == "assistant"
    assert "Paris" in r["choices"][0]["message"]["content"]
    texts, finish, _ = stream_texts(s, CHAT, body)
    assert texts[0] == r["choices"][0]["message"]["content"] and finish[0] == r["choices"][0]["finish_reason"]
    first = next(iter(s.stream(CHAT, body)))
    assert first["choices"][0]["delta"]["role"] == "assistant"
    del body["max_tokens"]
    status, r = s.post(CHAT, body)
    assert status == 200 and r["choices"][0]["finish_reason"] == "stop", r
    lp = s.post(CHAT, {**body, "max_tokens": 5, "logprobs": True, "top_logprobs": 2})[1]["choices"][0]["logprobs"]["content"]
    assert len(lp) == 5 and len(lp[0]["top_logprobs"]) == 2 and lp[0]["token"] == lp[0]["top_logprobs"][0]["token"]


def test_bias_and_ends():
    s = server()
    r = s.complete("The capital of France is", max_tokens=5, logit_bias={"338": 100})
    assert len(set(r["choices"][0]["text"].split())) == 1
    eos = {"model": "base", "prompt": "Hi", "logit_bias": {"2": 100}, "max_tokens": 6, "temperature": 0}
    r = s.post(COMP, eos)[1]
    assert r["choices"][0]["finish_reason"] == "stop" and r["usage"]["completion_tokens"] == 1
    assert r["choices"][0]["text"] == ""
    r = s.post(COMP, {**eos, "ignore_eos": True})[1]
    assert r["choices"][0]["finish_reason"] == "length" and r["usage"]["completion_tokens"] == 6
    r = s.post(COMP, {**eos, "min_tokens": 3})[1]
    assert r["usage"]["completion_tokens"] == 4 and r["choices"][0]["finish_reason"] == "stop"
    a = s.text("ha ha ha ha ha ha ha ha", max_tokens=20)
    b = s.text("ha ha ha ha ha ha ha ha", max_tokens=20, frequency_penalty=2, presence_penalty=2)
    c = s.text("ha ha ha ha ha ha ha ha", max_tokens=20, repetition_penalty=3)
    assert a != b and a != c


def test_errors():
    s = server()
    ok = {"model": "base", "prompt": "x", "max_tokens": 2}
    table = [
        ({**ok, "model": "nope"}, 404, "model"),
        ({**ok, "max_tokens": 1 << 19}, 400, "max_tokens"),
        ({**ok, "max_tokens": -1}, 400, "max_tokens"),
        ({**ok, "temperature": 9}, 400, "temperature"),
        ({**ok, "tools": []}, 400, "tools"),
        ({**ok, "frobnicate": 1}, 400, "frobnicate"),
        ({**ok, "n": 100000}, 400, "n"),
        ({**ok, "prompt": [999999999]}, 400, "prompt"),
        ({**ok, "prompt": ""}, 400, "prompt"),
        ({**ok, "prompt": []}, 400, "prompt"),
        ({"prompt": "x"}, 400, "model"),
    ]
    for body, want, param in table:
        status, r = s.post(COMP, body)
        e = r["error"]
        assert status == want and e["param"] and e["param"].startswith(param), (body, status, r)
        assert e["type"] and e["message"]
    assert s.post(COMP, "{")[0] == 400
    assert s.post(COMP, "x" * (9 << 20))[0] == 413
    assert s.post(COMP, ok)[0] == 200


def test_large_bodies():
    s = server()
    r = s.complete("international " * 1300, max_tokens=1)  # parsed and tokenized on the worker pool
    assert r["usage"]["prompt_tokens"] > 1200
    status, r = s.post(COMP, {"model": "base", "prompt": "lorem " * 200000, "max_tokens": 1})
    assert status == 400 and r["error"]["code"] == "context_length_exceeded", r
    # one who leaves while the worker has its body
    for _ in range(5):
        c = s.open_stream(COMP, {"model": "base", "prompt": "lorem " * 100000})
        c.close()
    assert s.get("/health")[0] == 200


def test_batch_equals_alone():
    s = server()
    rnd = random.Random(5)
    jobs = []
    for i in range(24):
        kw = dict(prompt=[rnd.randrange(100, 40000) for _ in range(rnd.randrange(1, 80))], max_tokens=rnd.randrange(1, 24),
                  temperature=rnd.choice([0, 1]), seed=i, n=rnd.choice([1, 1, 3]))
        if i % 5 == 0:
            kw["repetition_penalty"] = 1.2
        jobs.append(kw)
    ask = lambda kw: [c["text"] for c in s.complete(**kw)["choices"]]
    alone = [ask(kw) for kw in jobs]
    together = concurrently([lambda kw=kw: ask(kw) for kw in jobs])
    assert alone == together


def test_client_leaves():
    s = server()
    free = s.metric("cpet_kv_pages_free")
    c = s.open_stream(COMP, {"model": "base", "prompt": "Once", "max_tokens": 4000, "ignore_eos": True})
    r = c.getresponse()
    r.readline()
    assert s.metric("cpet_kv_pages_free") < free and s.metric("vllm:num_requests_running") == 1
    assert s.metric("vllm:kv_cache_usage_perc") > 0
    r.close()
    c.close()
    wait_until(lambda: s.metric("cpet_kv_pages_free") == free, "the pages back", 5)
    wait_until(lambda: s.metric("vllm:num_requests_running") == 0, "nothing running", 5)
    # and one that waits for its whole answer
    c = s.open_stream(COMP, {"model": "base", "prompt": "Once", "max_tokens": 4000, "ignore_eos": True})
    wait_until(lambda: s.metric("vllm:num_requests_running") == 1, "a request running", 5)
    c.sock.close()
    wait_until(lambda: s.metric("cpet_kv_pages_free") == free, "the pages back", 5)
    wait_until(lambda: s.metric("vllm:num_requests_running") == 0, "nothing running", 5)


def test_waiting_by_kv():
    with Server("--kv-bytes", "256M", "--max-context", "4096") as s:
        jobs = [lambda: s.complete("x", max_tokens=12, ignore_eos=True) for _ in range(6)]
        big = [lambda: s.post(COMP, {"model": "base", "prompt": "y " * 50, "max_tokens": 3900, "stop": ["e"]}) for _ in range(6)]
        out = concurrently(jobs + big)
        assert all(o["usage"]["completion_tokens"] == 12 for o in out[:6])
        assert all(o[0] == 200 for o in out[6:])


def test_preemption():
    """Far more than the pages hold at once: everybody gets what they get alone."""
    prompts = [p + " and" * 22 for p in ("The capital of France is", "Once upon a time", "def f(x):", "Animals: the cat")]
    jobs = []
    for i in range(16):  # 3 pages at first, 4 in the end, of 14
        kw = {"prompt": prompts[i % 4], "max_tokens": 76 + i, "ignore_eos": True, "temperature": i % 2, "seed": i}
        if i % 4 == 1:
            kw["n"] = 2
        if i % 5 == 2:
            kw.update(repetition_penalty=1.2, presence_penalty=0.3)
        if i % 7 == 3:
            kw.update(min_tokens=60, ignore_eos=False)
        jobs.append(kw)
    with Server("--kv-bytes", "10M", "--max-context", "256") as s:
        for extra in ({}, {"logprobs": 2, "echo": True}):
            ask = lambda kw: s.complete(**kw, **extra)["choices"]
            alone = [ask(kw) for kw in jobs]
            before = s.metric("cpet_preemptions_total")
            together = concurrently([lambda kw=kw: ask(kw) for kw in jobs])
            for kw, a, t in zip(jobs, alone, together):
                assert a == t, (kw, extra, a, t)
            assert s.metric("cpet_preemptions_total") > before
        assert s.metric("cpet_preemptions_total") == s.metric("vllm:num_preemptions_total")
        print("  %d preemptions" % s.metric("cpet_preemptions_total"))
        body = {"model": "base", "prompt": "Once", "max_tokens": 240, "n": 4}
        status, r = s.post(COMP, body)
        assert status == 400 and "pages" in r["error"]["message"], r
        pages = s.metric("cpet_kv_pages")
        wait_until(lambda: s.metric("cpet_kv_pages_free") == pages, "all pages free")
    with Server("--kv-bytes", "10M", "--max-context", "256") as s:  # clients that leave while others wait for pages
        streams = [s.open_stream(COMP, {"model": "base", "prompt": "Once", "max_tokens": 240, "ignore_eos": True}) for _ in range(8)]
        wait_until(lambda: s.metric("cpet_preemptions_total") > 0, "a preemption")
        for c in streams:
            c.close()
        wait_until(lambda: s.metric("cpet_kv_pages_free") == pages, "all pages free")
        assert s.complete("x")["choices"]


def test_busy():
    with Server("--max-seqs", "1", "--max-queue", "2") as s:
        streams = []
        for _ in range(3):
            streams.append(s.open_stream(COMP, {"model": "base", "prompt": "Once", "max_tokens": 3000, "ignore_eos": True}))
            time.sleep(0.3)
        status, h, data = s.request("POST", COMP, {"model": "base", "prompt": "x"})
        assert status == 429 and int(h["Retry-After"]) >= 1, (status, data)
        assert s.metric("vllm:num_requests_waiting") == 2
        for c in streams:
            c.close()
        wait_until(lambda: s.metric("vllm:num_requests_waiting") == 0, "an empty queue")
        assert s.complete("x")["choices"]
    with Server("--max-tenant", "1") as s:
        c = s.open_stream(COMP, {"model": "base", "prompt": "Once", "max_tokens": 3000, "ignore_eos": True})
        c.getresponse().readline()
        assert s.post(COMP, {"model": "base", "prompt": "x"})[0] == 429
        c.close()


def test_deadline():
    with Server("--request-timeout-ms", "400", "--inject-delay-ms", "50") as s:
        status, r = s.post(COMP, {"model": "base", "prompt": "x", "max_tokens": 500, "ignore_eos": True})
        assert status == 504 and r["error"]["message"], r
        got = list(s.stream(COMP, {"model": "base", "prompt": "x", "max_tokens": 500, "ignore_eos": True}))
        assert "error" in got[-1] and len(got) > 1
        assert s.complete("x", max_tokens=2)["choices"]


def test_health_under_delay():
    with Server("--inject-delay-ms", "10") as s:
        stop = threading.Event()

        def load():
            while not stop.is_set():
                s.complete("Once upon", max_tokens=30, ignore_eos=True)

        threads = [threading.Thread(target=load) for _ in range(8)]
        for t in threads:
            t.start()
        time.sleep(0.5)
        times = []
        sock = socket.create_connection(("127.0.0.1", s.port))
        for _ in range(300):
            t0 = time.perf_counter()
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")
            times.append(time.perf_counter() - t0)
            time.sleep(0.005)
        stop.set()
        for t in threads:
            t.join()
        times.sort()
        print("  /health p50 %.2f ms, p99 %.2f ms" % (times[150] * 1e3, times[297] * 1e3))
        assert times[297] < 0.05  # the figure for the record is printed; a busy machine gets some slack here


def test_drain():
    with Server("--drain-ms", "20000") as s:
        body = {"model": "base", "prompt": "Once", "max_tokens": 60, "ignore_eos": True, "stream_options": {"include_usage": True}}
        first = threading.Barrier(9)

        def one():
            got = []
            for e in s.stream(COMP, body):
                if not got:
                    first.wait(30)
                got.append(e)
            return got

        box = []
        t = threading.Thread(target=lambda: box.extend(concurrently([one] * 8)))
        t.start()
        first.wait(30)
        s.p.send_signal(signal.SIGTERM)
        wait_until(lambda: s.get("/ready")[0] == 503, "not ready", 5)
        status, h, _ = s.request("POST", COMP, body)
        assert status == 503 and "Retry-After" in h
        t.join()
        assert len(box) == 8
        for got in box:
            assert got[-1] == "[DONE]" and got[-2]["usage"]["completion_tokens"] == 60
        assert s.p.wait(timeout=20) == 0


def test_drain_cut():
    with Server("--drain-ms", "300") as s:
        c = s.open_stream(COMP, {"model": "base", "prompt": "Once", "max_tokens": 4000, "ignore_eos": True})
        r = c.getresponse()
        r.readline()
        s.p.send_signal(signal.SIGTERM)
        assert b'"error"' in r.read()
        assert s.p.wait(timeout=10) == 0


def key_line(tenant, key):
    return "%s:%s\n" % (tenant, hashlib.blake2b(key.encode(), digest_size=32).hexdigest())


def test_keys():
    with scratch() as d:
        path, admin = os.path.join(d, "keys"), os.path.join(d, "admin")
        with open(path, "w") as f:
            f.write(key_line("anna", "key-anna"))
        with open(os.open(admin, os.O_CREAT | os.O_WRONLY, 0o600), "w") as f:
            f.write("admin-secret\n")
        with Server("--api-keys", path, "--admin-key", admin) as s:
            assert s.get("/health")[0] == 200
            status, h, data = s.get("/v1/models")
            assert status == 401 and h["WWW-Authenticate"] == "Bearer", data
            assert s.get("/v1/models", headers={"Authorization": "Bearer wrong"})[0] == 401
            assert s.get("/v1/models", headers={"Authorization": "Bearer key-anna"})[0] == 200
            # who has no key is told before the body is asked for
            with socket.create_connection(("127.0.0.1", s.port), timeout=10) as c:
                c.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 8000000\r\nExpect: 100-continue\r\n\r\n")
                answer = c.makefile("rb").read().decode()
            assert answer.startswith("HTTP/1.1 401 ") and "WWW-Authenticate: Bearer" in answer, answer
            assert "invalid_api_key" in answer
            assert s.get("/metrics", admin=True)[0] == 401 and s.get("/health", admin=True)[0] == 200
            assert s.get("/metrics", admin=True, headers={"Authorization": "Bearer admin-secret"})[0] == 200
            with open(path, "w") as f:
                f.write("broken\n")
            s.p.send_signal(signal.SIGHUP)
            s.wait_line("not reloaded")
            assert s.get("/v1/models", headers={"Authorization": "Bearer key-anna"})[0] == 200
            with open(path, "w") as f:
                f.write(key_line("bert", "key-bert"))
            s.p.send_signal(signal.SIGHUP)
            s.wait_line("were reloaded")
            assert s.get("/v1/models", headers={"Authorization": "Bearer key-anna"})[0] == 401
            assert s.get("/v1/models", headers={"Authorization": "Bearer key-bert"})[0] == 200


def test_modules():
    with scratch() as d:
        ranks = [1, 4, 8, 16]
        targets = [("q_proj", "v_proj"), ("down_proj",), ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj")]
        args = []
        for i, r in enumerate(ranks):
            args += ["--pet", "task%d=%s" % (i, write_lora(os.path.join(d, "m%d" % i), i, r, targets[i], 0.3))]
        trace = os.path.join(d, "trace")
        with Server(*args, "--trace-steps", trace) as s:
            models = {m["id"]: m for m in json.loads(s.get("/v1/models")[2])["data"]}
            assert set(models) == {"base", "task0", "task1", "task2", "task3"} and models["task1"]["parent"] == "base"
            mods = json.loads(s.get("/admin/v1/modules", admin=True)[2])["data"]
            assert sorted(m["rank"] for m in mods) == ranks
            ask = lambda m, p, seed: s.complete(p, model=m, max_tokens=16, temperature=seed % 2, seed=seed)["choices"][0]["text"]
            prompts = ["The capital of France is", "Once upon a time", "def f(x):", "Dear Sir or Madam,"]
            jobs = [(m, prompts[k % 4], k) for k, m in enumerate(sorted(models) * 4)]
            alone = [ask(*j) for j in jobs]
            together = concurrently([lambda j=j: ask(*j) for j in jobs])
            assert alone == together
            greedy = {m: s.text(prompts[0], model=m) for m in models}
            assert len(set(greedy.values())) == 5, greedy
            info = [k for k in s.metrics() if k.startswith("vllm:lora_requests_info")]
            assert len(info) == 1 and s.metric("cpet_modules_resident") == 4
            assert s.stop() == 0
        with open(trace) as f:
            steps = [json.loads(x) for x in f]
        assert max(x["tasks"] for x in steps) >= 4 and max(x["slots"] for x in steps) >= 3
        assert all(x["rows"] == x["decode_rows"] + x["prefill_rows"] for x in steps)


def exit_of(*args, env=None):
    p = subprocess.run([binary(), *args], capture_output=True, text=True, errors="replace", timeout=60, env=without_options(env))
    return p.returncode, p.stderr + p.stdout


def test_exit_codes():
    m = ["--model", model()]
    with scratch() as d:
        loose = os.path.join(d, "k")
        with open(loose, "w") as f:
            f.write("some-admin-key")
        os.chmod(loose, 0o644)
        empty = os.path.join(d, "empty")
        os.mkdir(empty)
        keys, key = os.path.join(d, "keys"), os.path.join(d, "key")
        with open(keys, "w") as f:
            f.write(key_line("a", "key-a"))
        with open(os.open(key, os.O_CREAT | os.O_WRONLY, 0o600), "w") as f:
            f.write("an-admin-key")
        bad = os.path.join(d, "conf")
        with open(bad, "w") as f:
            f.write("kv-bytes = lots\n")
        table = [
            (["--version"], 0, "cpetd "), (["--help"], 0, "--kv-bytes"), (["--nope"], 2, "--nope"), ([], 2, "--model"),
            (m + ["--check-config"], 0, "fine"), (m + ["--threads", "many"], 2, "--threads"),
            (m + ["--listen", "0.0.0.0:0"], 78, "loopback"), (m + ["--device", "cuda:0"], 78, "no CUDA"),
            (m + ["--admin-key", loose], 78, "0600"), (m + ["--config", bad], 78, "line 1"),
            (m + ["--name", "a b", "--check-config"], 78, "blanks"),
            (m + ["--name", b"a\xff", "--check-config"], 78, "UTF-8"),
            (m + ["--api-keys", keys, "--listen", "example.org:80", "--check-config"], 78, "--listen"),
            (m + ["--api-keys", keys, "--listen", "0.0.0.0:66000", "--check-config"], 78, "--listen"),
            (m + ["--admin-listen", "127.0.0.1", "--admin-key", key, "--check-config"], 78, "--admin-listen"),
            (m + ["--trace-steps", empty + "/no/t", "--check-config"], 78, "--trace-steps"),
            (m + ["--trace-steps", empty, "--listen", "127.0.0.1:0"], 78, "trace"),
            (m + ["--pet", "a=/nowhere"], 78, "/nowhere"), (["--model", "/nowhere"], 78, "/nowhere"),
            (["--model", empty, "--listen", "127.0.0.1:0"], 1, empty),
            (m + ["--kv-bytes", "1K", "--listen", "127.0.0.1:0"], 78, "KV"),
            (m + ["--name", "t", "--pet", "t=" + empty], 78, "name"),
            (m + ["--pet", "t=" + empty, "--listen", "127.0.0.1:0"], 1, "t"),
        ]
        for args, want, says in table:
            code, out = exit_of(*args)
            assert code == want and says in out, (args, code, out)
        code, out = exit_of(*m, "--check-config", env={"CPETD_KV_BYTES": "x"})
        assert code == 78 and "CPETD_KV_BYTES" in out
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        code, out = exit_of(*m, "--listen", "127.0.0.1:%d" % taken.getsockname()[1])
        assert code == 1, (code, out)


def test_signal_while_loading():
    with Server(wait=False) as s:
        s.p.send_signal(signal.SIGTERM)
        assert s.p.wait(timeout=30) == 0


def test_metrics_move():
    s = server()
    before = s.metrics()
    s.complete("x", max_tokens=7, ignore_eos=True)
    after = s.metrics()
    diff = lambda name: sum(after[k] - before.get(k, 0) for k in after if k.split("{")[0] == name)
    assert diff("vllm:generation_tokens_total") == 7 and diff("vllm:prompt_tokens_total") == 1
    assert diff("cpet_sampled_tokens_total") == 7 and diff("cpet_steps_total") == 7
    assert diff("vllm:time_to_first_token_seconds_count") == 1 and diff("vllm:inter_token_latency_seconds_count") == 6
    assert diff("vllm:e2e_request_latency_seconds_count") == 1 and diff("vllm:request_success_total") == 1
    for name in ("vllm:cache_config_info", "vllm:lora_requests_info", "vllm:max_gpu_lora_adapters", "cpet_resident_bytes",
                 "vllm:num_requests_waiting", "vllm:request_queue_time_seconds_count"):
        assert any(k.split("{")[0] == name for k in after), name


def test_curl():
    s = server()
    script = os.path.join(ROOT, "tests", "e2e", "test_curl.sh")
    p = subprocess.run(["sh", script, "http://127.0.0.1:%d" % s.port, "base"], capture_output=True, text=True, timeout=120)
    assert p.returncode == 0, p.stdout + p.stderr


def test_shared_server_ends():
    global shared
    if shared is not None:
        assert shared.stop() == 0
        shared = None


if __name__ == "__main__":
    model()
    run([test_ready_lines, test_small_gets, test_completion, test_prompt_forms, test_echo_logprobs, test_long_echo, test_seeds,
         test_stop, test_stream_equals_whole, test_stream_logprobs, test_chat, test_bias_and_ends, test_errors,
         test_large_bodies, test_batch_equals_alone, test_client_leaves, test_metrics_move, test_curl, test_shared_server_ends,
         test_waiting_by_kv, test_preemption, test_busy, test_deadline, test_health_under_delay, test_drain, test_drain_cut, test_keys,
         test_modules, test_exit_codes, test_signal_while_loading], "e2e/server")
