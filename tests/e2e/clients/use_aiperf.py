"""aiperf against cpetd. Arguments: the URL, a directory with the tokenizer."""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

url, tokenizer = sys.argv[1:3]
program = str(Path(sys.executable).with_name("aiperf"))
for kind in ("completions", "chat"):
    with tempfile.TemporaryDirectory() as d:
        r = subprocess.run([program, "profile", "--model", "base,extract", "--url", url, "--endpoint-type", kind, "--streaming",
                            "--concurrency", "8", "--request-count", "32", "--synthetic-input-tokens-mean", "40",
                            "--output-tokens-mean", "16", "--tokenizer", tokenizer, "--extra-inputs", "ignore_eos:true",
                            "--artifact-dir", d, "--ui", "none"], capture_output=True, text=True, timeout=400)
        found = list(Path(d).rglob("profile_export_aiperf.json"))
        assert r.returncode == 0 and found, r.stdout[-1500:] + r.stderr[-1500:]
        p = json.loads(found[0].read_text())
    count, errors = p["request_count"]["avg"], (p.get("error_request_count") or {"avg": 0})["avg"]
    assert count == 32 and not errors and not p.get("error_summary"), p.get("error_summary")
    print(f"{kind}: 32 requests, none failed; first token p50 {p['time_to_first_token']['p50']:.0f} ms")
