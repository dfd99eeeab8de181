"""Clients that applications have, each in an environment of its own: litellm, langchain-openai, pydantic-ai, the openai
client's second major version, aiperf, lm-eval's local-completions, schemathesis over the OpenAPI document. A long test: it installs them under var/clients (or CPET_CLIENTS)
from the package index, unless they are there. Each script in clients/ prints a line a check; where a package cannot be
installed its client is skipped, saying so.
"""
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from harness import ORIGINAL, PETS, ROOT, Server, Skip, case, main

HOME = Path(os.environ.get("CPET_CLIENTS", str(ROOT / "var/clients")))
HERE = Path(__file__).resolve().parent / "clients"


def python(name, *packages):
    """The interpreter of an environment that has the packages."""
    home = HOME / name
    if not (home / "installed").exists():
        venv.create(home, with_pip=True, clear=True)
        r = subprocess.run([home / "bin/pip", "install", "-q", "--disable-pip-version-check", *packages], capture_output=True, text=True)
        if r.returncode:
            raise Skip(f"cannot install {' '.join(packages)}: {r.stderr.strip()[-200:]}")
        (home / "installed").touch()
    return home / "bin/python"


def script(interpreter, name, *args, timeout=600, **env):
    r = subprocess.run([interpreter, HERE / name, *map(str, args)], capture_output=True, text=True, timeout=timeout,
                       env={**os.environ, "OPENAI_API_KEY": "none", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
                            "HF_HUB_OFFLINE": "1", **{k: str(v) for k, v in env.items()}})
    for line in r.stdout.splitlines():
        print(f"  {line}", flush=True)
    assert r.returncode == 0, f"{name} ended with {r.returncode}: {r.stderr.strip()[-1500:]}"
    return r.stdout


def server(*args, **kw):
    return Server("--name", "base", *[x for t in ("extract", "triage") for x in ("--pet", f"{t}={demo(t)}")], *args, **kw)


def demo(task):
    """The demo module, as deploy/quickstart names it or as it lies in the tree."""
    return next((p for p in (PETS / task, PETS / f"{task}.pet", ROOT / "deploy/demo" / task) if p.exists()))


@case
def openai_2():
    interpreter = python("openai2", "openai<3")
    r = subprocess.run([interpreter, HERE.parent / "test_openai.py"], capture_output=True, text=True, timeout=600)
    assert r.returncode == 0, r.stdout[-1500:] + r.stderr[-500:]
    print("  " + r.stdout.strip().splitlines()[-1])


@case
def litellm():
    interpreter = python("litellm", "litellm")
    with server() as s:
        script(interpreter, "use_litellm.py", s.url)


@case
def langchain():
    interpreter = python("langchain", "langchain-openai")
    with server() as s:
        script(interpreter, "use_langchain.py", s.url)


@case
def pydantic_ai():
    interpreter = python("pydantic", "pydantic-ai-slim[openai]")
    with server() as s:
        script(interpreter, "use_pydantic_ai.py", s.url)


@case
def aiperf():
    """Load, two tasks at once: every request succeeds and tokens are counted."""
    interpreter = python("aiperf", "aiperf")
    with server() as s:
        script(interpreter, "use_aiperf.py", s.url, ORIGINAL, HF_HUB_OFFLINE="")


@case
def lm_eval():
    """Log-likelihoods of a local multiple-choice task, equal to transformers' in f32 (clients/likelihoods.py makes those
    where torch and transformers are installed)."""
    interpreter = python("lmeval", "lm-eval[api]==0.4.13", "transformers")
    with server("--precision", "f32", model=ORIGINAL) as s:
        script(interpreter, "use_lm_eval.py", s.url, ORIGINAL, os.environ.get("ORACLE_PYTHON", sys.executable), timeout=1200)


@case
def schemathesis():
    """The document as it is served: nothing that it forbids is taken, no answer differs from it. Then narrowed to what this
    server can answer: all of that is taken."""
    interpreter = python("schemathesis", "schemathesis==4.32.5")
    with server("--public-metrics", "--max-context", "512") as s, tempfile.TemporaryDirectory() as d:
        vocab = s.get("/tokenizer_info")[1]["vocab_size"]
        hidden = len(s.post("/v1/embeddings", {"model": "base", "input": "a"})[1]["data"][0]["embedding"])
        narrow = Path(d) / "narrow.json"
        subprocess.run([sys.executable, HERE / "narrow_openapi.py", ROOT / "proto/openapi.json", narrow, "base", str(vocab), str(hidden)], check=True)
        for document, without in ((f"{s.url}/openapi.json", "positive_data_acceptance"), (narrow, "negative_data_rejection")):
            r = subprocess.run([interpreter.with_name("schemathesis"), "run", document, "--url", s.url, "--exclude-checks", without,
                                "--max-time", os.environ.get("SCHEMATHESIS_S", "90"), "--request-timeout", "60", "--no-color", "-n", "40",
                                "--seed", "1", "--continue-on-failure", "--report-dir", d], capture_output=True, text=True, timeout=900, cwd=d)
            print("  " + " ".join(re.findall(r"\d+ generated, .*", r.stdout)))
            assert r.returncode == 0, r.stdout[-4000:] + r.stderr[-1000:]


if __name__ == "__main__":
    main()
