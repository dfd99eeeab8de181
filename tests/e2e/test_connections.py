"""Many connections: thousands idle, hundreds of slow clients, too many; others get their texts, and /health answers.

LONG=1 holds 10,000 idle connections and 600 slow clients, without it 400 and 60. What an idle connection costs is
printed and bounded.
"""
import json
import select
import socket
import subprocess
import time

import tiny
from harness import CPETD, case, main, together
from tiny import LONG, Health, addresses, call, descriptors, metrics, raw, rss, settles, start

IDLE = 10000 if LONG else 400
SLOW = 200 if LONG else 20  # of each kind
HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
BODY = {"model": "base", "prompt": "Hello there", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
IDLE_BYTES = 2048  # resident, in the process; the kernel's buffers come on top


def ask(api):
    status, text = call(api, "POST", "/v1/completions", BODY)
    assert status == 200, text
    return json.loads(text)["choices"][0]["text"]


def answers(socks):
    """Reads an answer to HEALTH from each; those that did not get one."""
    left, end = set(socks), time.monotonic() + 60
    poll = select.poll()
    by = {k.fileno(): k for k in socks}
    for k in socks:
        poll.register(k, select.POLLIN)
    while left and time.monotonic() < end:
        for fd, _ in poll.poll(1000):
            assert by[fd].recv(4096).startswith(b"HTTP/1.1 200"), "an idle connection was refused"
            poll.unregister(fd)
            left.discard(by[fd])
    return left


def open_idle(where, n):
    """n connections, each of which had an answer."""
    socks = []
    for i in range(0, n, 200):
        some = [socket.create_connection(where, timeout=60) for _ in range(min(200, n - i))]
        for k in some:
            k.sendall(HEALTH)
        assert not answers(some)
        socks += some
    return socks


@case
def idle_connections():
    with start("--max-connections", IDLE + 100) as s:
        api, admin = addresses(s)
        want = ask(api)
        for k in open_idle(api, 50):
            k.close()
        settles(lambda: metrics(s)["cpet_connections"] <= 1, "the first ones are closed")
        memory, files = rss(s), descriptors(s)
        began = time.monotonic()
        socks = open_idle(api, IDLE)
        print(f"{IDLE} connections opened in {time.monotonic() - began:.1f} s, {(rss(s) - memory) / IDLE:.0f} bytes each at once", flush=True)
        settles(lambda: descriptors(s) <= files + IDLE + 10, "an idle connection holds one descriptor")
        each = (rss(s) - memory) / IDLE
        print(f"{each:.0f} bytes each when idle for a second, {descriptors(s) - files} descriptors", flush=True)
        assert each <= (IDLE_BYTES if LONG else 4 * IDLE_BYTES), f"{each:.0f} bytes an idle connection"
        with Health(s) as h:
            assert all(t == want for t in together([lambda: ask(api)] * 16))
            sample = socks[:: max(1, IDLE // 200)]
            for k in sample:
                k.sendall(HEALTH)
            assert not answers(sample), "an idle connection does not answer any more"
            time.sleep(0.5)
        print(f"/health in {h.worst * 1000:.0f} ms at most beside them", flush=True)
        assert metrics(s)["cpet_connections"] >= IDLE
        extra = open_idle(api, 90)
        assert b" 503 " in raw_until_refused(api, 200)
        for k in socks + extra:
            k.close()
        settles(lambda: descriptors(s) <= files + 4, "descriptors come back")
        assert ask(api) == want and s.stop() == 0


def raw_until_refused(api, n):
    kept = []
    for _ in range(n):
        k = socket.create_connection(api, timeout=20)
        kept.append(k)
        k.sendall(HEALTH)
        data = k.recv(4096)
        if b" 503 " in data:
            return data
    raise AssertionError("no connection was refused")


def drip(parts, where, small=False):
    """A socket and what it is to send, a byte at a time."""
    k = socket.socket()
    if small:
        k.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    k.settimeout(20)
    k.connect(where)
    return [k, bytearray(parts)]


@case
def slow_clients():
    """Heads, bodies and readers of streams at a few bytes a second, on both listeners: all others are unaffected; heads are cut off after
    their ten seconds."""
    stream = json.dumps({**BODY, "max_tokens": 2000, "stream": True, "logprobs": 5}).encode()
    post = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
    with start("--request-timeout-ms", "60000") as s:
        api, admin = addresses(s)
        want, files = ask(api), descriptors(s)
        head = b"GET /health HTTP/1.1\r\nHost: a\r\nX-Long: " + b"a" * 8000
        slow = [drip(head, w) for w in (api, admin) for _ in range(SLOW)]
        bodies = [drip(stream, w) for w in (api, admin) for _ in range(SLOW // 2)]
        for (k, _), w in zip(bodies, [post, post.replace(b"POST /v1/completions", b"PUT /admin/v1/tasks/t")] * SLOW):
            k.sendall(w % len(stream))
        readers = [drip(b"", api, small=True) for _ in range(SLOW)]
        for k, _ in readers:
            k.sendall(post % len(stream) + stream)
        began, texts, refused = time.monotonic(), 0, 0
        with Health(s) as h:
            while time.monotonic() - began < 13:
                for k, left in slow + bodies:
                    if left:
                        try:
                            k.send(left[:1])
                            del left[:1]
                        except OSError:
                            left.clear()
                            refused += 1
                for k, _ in readers:
                    k.setblocking(False)
                    try:
                        k.recv(1)
                    except BlockingIOError:
                        pass
                assert ask(api) == want
                texts += 1
                time.sleep(0.3)
        cut = 0
        for k, _ in slow:
            k.settimeout(5)
            try:
                cut += b" 408 " in k.recv(4096)
            except ConnectionResetError:
                cut += 1
        print(f"{texts} right texts beside {len(slow)} slow heads, {len(bodies)} bodies, {len(readers)} readers; /health in {h.worst * 1000:.0f} ms at most", flush=True)
        assert cut == len(slow), f"{cut} of {len(slow)} slow heads were cut off"
        for k, _ in slow + bodies + readers:
            k.close()
        settles(lambda: metrics(s)["cpet_requests_active"] == 0 and descriptors(s) <= files + 4, "they are all gone")
        m = metrics(s)
        assert m["cpet_kv_pages_free"] == m["cpet_kv_pages"]
        assert ask(api) == want and s.stop() == 0


@case
def more_requests_than_descriptors():
    """With a limit of descriptors that is short, requests beyond get a 503, connections stay, and the server goes on."""
    with start("--max-connections", 250, command=("prlimit", "--nofile=900:900")) as s:
        api, _ = addresses(s)
        want = ask(api)
        slow = [drip(b"", api) for _ in range(249)]
        for k, _ in slow:
            k.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n1")
        time.sleep(0.5)
        refused = 0
        for k, _ in slow:
            k.setblocking(False)
            try:
                refused += b" 503 " in k.recv(4096)
            except BlockingIOError:
                pass
        assert 10 < refused < 240, f"{refused} refused"
        for k, _ in slow:
            k.close()
        settles(lambda: ask(api) == want, "it answers again")
        assert s.stop() == 0


@case
def too_few_descriptors():
    """Found at start, and said with the numbers."""
    r = subprocess.run(["prlimit", "--nofile=2000:2000", CPETD, "--model", tiny.model(), "--max-connections", "5000", "--check-config"], capture_output=True, text=True)
    assert r.returncode == 78 and "--max-connections 5000 needs" in r.stderr and "limit is 2000" in r.stderr, r.stderr


if __name__ == "__main__":
    main()
