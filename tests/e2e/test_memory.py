"""Resident memory: no float copy of a quantized weight exists, whatever was served."""
import os
import time
from pathlib import Path

from harness import MODEL, PETS, Server, case, main, together

MB = 1 << 20


def rss(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def budget(kv_bytes, modules):
    files = (Path(MODEL) / "model.safetensors").stat().st_size + sum(p.stat().st_size for p in modules)
    return files + kv_bytes + 60 * MB


@case
def after_loading_and_after_serving():
    modules = sorted(PETS.glob("*.pet"))
    args = [a for p in modules for a in ("--pet", f"{p.stem}={p}")]
    start = time.monotonic()
    with Server(*args, "--kv-bytes", "256M") as s:
        ready = time.monotonic() - start
        loaded = rss(s.p.pid)
        # keys and values are given pages as they are first written: nothing of them is resident yet
        assert loaded <= budget(0, modules), f"{loaded / MB:.0f} MB resident after loading, budget {budget(0, modules) / MB:.0f} MB"
        tasks = [Path(MODEL).name] + [p.stem for p in modules]
        for _ in range(2):
            together([lambda t=t: s.complete(model=t, prompt="Once upon a time", max_tokens=48, ignore_eos=True) for t in tasks * 8])
        served = rss(s.p.pid)
        assert served <= budget(256 * MB, modules), f"{served / MB:.0f} MB resident after serving"
        print(f"  ready after {ready:.2f} s; resident {loaded / MB:.0f} MB loaded, {served / MB:.0f} MB after {16 * len(tasks)} requests; "
              f"file {(Path(MODEL) / 'model.safetensors').stat().st_size / MB:.0f} MB, {os.cpu_count()} cores")


main()
