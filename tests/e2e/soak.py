#!/usr/bin/env python3
"""An hour of mixed traffic: does memory, descriptors, pages or modules creep?

    tests/e2e/soak.py [--minutes 60] [--json FILE]

Rounds of tests/e2e/test_interleave.py (streams, choices, forms, embeddings, clients that leave, registrations, swaps, deletions,
evictions, preemption), with idle and slow connections, damaged uploads and bad requests between them; each text is compared
with the same request alone. After each round, when all is quiet, it samples resident memory, descriptors, free pages,
resident modules and rows of the registry's tables.

Memory may grow for ten minutes, or a third of the time where that is less (caches, arenas of threads, the tables'
sizes). After that it must be flat: the median of the last quarter at most 2 MiB or 3 % (the larger) above that of the first
quarter, and descriptors at most 4 more. Pages must be free and requests gone after every round.
"""
import argparse
import json
import random
import socket
import statistics
import sys
import time

import test_interleave as rounds
import tiny
from harness import cpet, together
from tiny import HOME, addresses, call, descriptors, metrics, raw, rss, settles, start


def noise(s, rng):
    """What is refused, half sent, or never finished."""
    api, admin = addresses(s)
    whole = (HOME / "modules/m1.pet").read_bytes()
    for _ in range(rng.randrange(6)):
        what = rng.randrange(6)
        if what == 0:
            b = bytearray(whole)
            b[rng.randrange(len(b))] ^= 1
            assert call(admin, "PUT", "/admin/v1/modules/damaged", bytes(b))[0] == 400
        elif what == 1:
            assert call(api, "POST", "/v1/completions", {"model": "base", "prompt": "a", "n": rng.choice([-1, 10**9, "a"])})[0] == 400
        elif what == 2:
            raw(rng.choice([api, admin]), b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"a" * rng.randrange(20000), wait=False)
        elif what == 3:
            raw(rng.choice([api, admin]), b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"a" * rng.randrange(90000), wait=False)
        elif what == 4:
            assert call(api, "POST", "/v1/completions", {"model": "base", "prompt": "a", "max_tokens": 3, "structured_outputs": {"regex": f"[a-z]{{{rng.randrange(1, 200)}}}"}})[0] == 200
        else:
            path = rng.choice(["/admin/v1/tasks", "/admin/v1/modules", "/metrics"])
            assert call(admin, "GET", path)[0] == 200


def sample(s, began, n):
    m = metrics(s)
    return {"minute": round((time.monotonic() - began) / 60, 2), "round": n, "rss_kib": rss(s) >> 10, "descriptors": descriptors(s), "pages_free": int(m["cpet_kv_pages_free"]),
            "modules": int(m["cpet_modules_resident"]), "requests": int(sum(v for k, v in m.items() if k == "cpet_http_responses_total"))}


def run(s, minutes, specs, want):
    began, series, n = time.monotonic(), [], 0
    idle = [socket.create_connection(addresses(s)[0]) for _ in range(20)]
    while time.monotonic() - began < minutes * 60:
        rng = random.Random(f"soak {n}")
        together([lambda: rounds.seed_run(s, 1000 + n, specs, want), lambda: noise(s, rng)])
        k = idle.pop(0)
        k.close()
        idle.append(socket.create_connection(addresses(s)[0]))
        settles(lambda: metrics(s)["cpet_requests_active"] == 0, f"round {n}: all requests end")
        settles(lambda: (lambda m: m["cpet_kv_pages_free"] == m["cpet_kv_pages"])(metrics(s)), f"round {n}: pages come back")
        time.sleep(1.2)  # until connections rest
        series.append(sample(s, began, n))
        if not n % 10:
            print(json.dumps(series[-1]), flush=True)
        n += 1
    for k in idle:
        k.close()
    return series


def judge(series, minutes):
    rest = [x for x in series if x["minute"] >= min(10, minutes / 3)]
    quarter = max(1, len(rest) // 4)
    first, last = (statistics.median(x["rss_kib"] for x in part) for part in (rest[:quarter], rest[-quarter:]))
    files = [statistics.median(x["descriptors"] for x in part) for part in (rest[:quarter], rest[-quarter:])]
    print(f"{len(series)} rounds, {series[-1]['requests']} answers; resident KiB: {first:.0f} in the first quarter, {last:.0f} in the last; descriptors {files[0]:.0f}, {files[1]:.0f}")
    grown = last - first
    if grown > max(2048, 0.03 * first):
        return f"resident memory grew by {grown:.0f} KiB after the first minutes"
    if files[1] > files[0] + 4:
        return f"descriptors grew from {files[0]:.0f} to {files[1]:.0f}"
    return None


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=60)
    p.add_argument("--json", help="where the series goes")
    a = p.parse_args()
    specs = rounds.specs()
    want = rounds.alone(specs)
    for i in range(4):
        cpet("pet", "pack", HOME / f"modules/m{i}", HOME / f"modules/m{i}.pet")
    try:
        with start(*rounds.SMALL, "--kv-bytes", "1200K", "--module-root", HOME / "modules", "--data", HOME / "soak") as s:
            rounds.register(s)
            series = run(s, a.minutes, specs, want)
            code = s.stop()
        if a.json:
            with open(a.json, "w") as f:
                json.dump(series, f)
        problem = judge(series, a.minutes) or (f"it ended with {code}" if code else None)
    except AssertionError as e:
        problem = str(e)
    print(f"FAIL soak: {problem}" if problem else f"ok soak ({a.minutes:.0f} minutes)", flush=True)
    sys.exit(1 if problem else 0)


if __name__ == "__main__":
    main()
