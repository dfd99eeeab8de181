#!/usr/bin/env python3
"""Checks bench/load against a small server of its own. usage: test_load_tool.py PATH/TO/load. Plain Python 3."""
import asyncio, json, subprocess, sys, threading

SEEN, HEADERS = [], []


async def answer(r, w):
    head = await r.readuntil(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    fields = {k.lower(): v.strip() for k, v in (x.split(":", 1) for x in lines if ":" in x)}
    HEADERS.append(fields)
    if first.startswith("GET /health"):
        w.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    else:
        body = json.loads(await r.readexactly(int(fields["content-length"])))
        SEEN.append(body)
        await complete(w, body)
    try:
        await w.drain()
        w.close()
    except ConnectionError:
        pass


async def complete(w, body):
    model = body.get("model")
    if model == "missing":
        w.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}")
        return
    if model == "hang":
        await asyncio.sleep(5)
        return
    w.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n")
    events = [{"choices": [{"text": "x", "finish_reason": None}]} for _ in range(body["max_tokens"])]
    events.append({"choices": [{"text": "", "finish_reason": "length"}]})
    if model != "nousage":
        events.append({"choices": [], "usage": {"completion_tokens": body["max_tokens"]}})
    data = b"".join(b"data: " + json.dumps(e).encode() + b"\r\n\r\n" for e in events) + b"data: [DONE]\n\n"
    if model == "cut":
        data = data[:100]
    for i in range(0, len(data), 37):  # chunks that cut lines and events
        part = data[i:i + 37]
        w.write(b"%x\r\n%s\r\n" % (len(part), part))
        if i % 111 == 0:
            await w.drain()
            await asyncio.sleep(0)
    if model != "cut":
        w.write(b"0\r\n\r\n")


def serve(ready):
    async def main():
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        ready.append(server.sockets[0].getsockname()[1])
        async with server:
            await server.serve_forever()
    asyncio.run(main())


def load(*args, code=0):
    p = subprocess.run([sys.argv[1], *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    assert p.returncode == code, (args, p.returncode, p.stdout, p.stderr)
    return p.stdout.decode()


def main():
    ready = []
    threading.Thread(target=serve, args=(ready,), daemon=True).start()
    while not ready:
        pass
    url = f"http://127.0.0.1:{ready[0]}"
    base = ["--url", url, "--concurrency", "4", "--in", "8", "--out", "5", "--json"]

    j = json.loads(load(*base, "--models", "a,b,c", "--requests", "9", "--runs", "3", "--bearer", "K", "--health-probe", "1"))
    assert len(j["runs"]) == 3 and j["median"]["ok"] == 9 and j["median"]["tokens"] == 45, j
    assert j["median"]["counted_by"] == "usage" and j["median"]["first_token_ms"]["n"] == 9, j
    assert j["median"]["inter_token_ms"]["n"] == 36 and j["median"]["tokens_per_s"] > 0, j
    assert j["median"]["health_ms"]["n"] >= 1, j
    assert sorted(r["tokens_per_s"] for r in j["runs"])[1] == j["median"]["tokens_per_s"]
    assert [b["model"] for b in SEEN].count("a") == 9 and all(h.get("authorization") == "Bearer K" for h in HEADERS)
    b = SEEN[0]
    assert len(b["prompt"]) == 8 and all(1000 <= t <= 40000 for t in b["prompt"]), b
    assert b["stream"] is True and b["ignore_eos"] is True and b["temperature"] == 0 and b["max_tokens"] == 5
    assert b["stream_options"] == {"include_usage": True}

    first = sorted(str(x["prompt"]) for x in SEEN)
    SEEN.clear()
    load(*base, "--models", "a", "--requests", "9")
    assert sorted(str(x["prompt"]) for x in SEEN) == first, "the same seed gives the same prompts"
    SEEN.clear()
    load(*base, "--lora-ids", "3,4", "--requests", "2", "--runs", "1", "--extra", '{"cache_prompt":false,"temperature":1}',
         "--prompt-text", "--vocab", "200")
    assert sorted(x["lora"][0]["id"] for x in SEEN) == [3, 4] and SEEN[0]["temperature"] == 1, SEEN
    assert len(SEEN[0]["prompt"].split()) == 8 and "model" not in SEEN[0] and SEEN[0]["cache_prompt"] is False

    j = json.loads(load(*base, "--models", "nousage", "--runs", "1"))
    assert j["median"]["counted_by"] == "chunks" and j["median"]["tokens"] == 8 * 5, j
    j = json.loads(load(*base, "--models", "a,missing", "--runs", "1", code=1))
    assert j["median"]["errors"] == {"404": 4} and j["median"]["ok"] == 4, j
    j = json.loads(load(*base, "--models", "cut", "--runs", "1", "--requests", "2", code=1))
    assert j["median"]["errors"] == {"connection closed early": 2}, j
    j = json.loads(load(*base, "--models", "hang", "--runs", "1", "--requests", "1", "--timeout", "1", code=1))
    assert j["median"]["errors"] == {"timeout": 1}, j
    j = json.loads(load("--url", "http://127.0.0.1:1", "--models", "a", "--runs", "1", "--requests", "2", "--json", code=1))
    assert j["median"]["errors"] == {"connection refused": 2}, j
    assert "median run" in load(*base[:-1], "--models", "a", "--runs", "2")
    assert load("--help").startswith("usage:")
    for bad in (["--models", "a"], ["--url", url], ["--nope"], ["--url", url, "--models", "a", "--in", "0"],
                ["--url", "https://x", "--models", "a"], ["--url", url, "--models", "a", "--extra", "[1]"]):
        load(*bad, code=2)
    print("bench/load: all checks passed")


main()
