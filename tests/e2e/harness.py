"""What the end-to-end tests share: cases that print a line each, a cpetd to talk to, plain HTTP.

A script registers functions with @case and calls main(). Each prints `ok NAME`, `FAIL NAME: why` or `skip NAME: why`;
tests/run counts those lines. Paths come from the environment: CPETD, CPET (the programs), CPETD_MODEL and
CPETD_MODEL_ORIGINAL (the demo backbone, INT8 and uncompressed), CPETD_PETS (a directory with the demo modules),
CPET_DATA (public data sets). Standard library only.
"""
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CPETD = os.environ.get("CPETD", str(ROOT / "build/cpetd"))
CPET = os.environ.get("CPET", str(ROOT / "build/cpet"))
MODEL = os.environ.get("CPETD_MODEL", str(ROOT / "var/models/smollm2-135m-instruct-int8"))
ORIGINAL = os.environ.get("CPETD_MODEL_ORIGINAL", str(ROOT / "var/models/smollm2-135m-instruct"))
PETS = Path(os.environ.get("CPETD_PETS", str(ROOT / "var/pets")))
DATA = Path(os.environ.get("CPET_DATA", str(ROOT.parent / "shared/data")))

CASES = []


class Skip(Exception):
    pass


def case(f):
    CASES.append(f)
    return f


def main():
    failed = 0
    only = sys.argv[1:]
    for f in CASES:
        name = f"{Path(sys.argv[0]).stem}/{f.__name__}"
        if only and f.__name__ not in only:
            continue
        start = time.monotonic()
        try:
            f()
            print(f"ok {name} ({time.monotonic() - start:.1f} s)", flush=True)
        except Skip as e:
            print(f"skip {name}: {e}", flush=True)
        except Exception as e:  # every case is reported, whatever happened in another
            failed += 1
            traceback.print_exc()
            text = " ".join(str(e).split())[:300]
            print(f"FAIL {name}: {type(e).__name__}: {text}", flush=True)
    sys.exit(1 if failed else 0)


def data(name):
    p = DATA / name
    if not p.exists():
        raise Skip(f"{name} of the public data sets is absent")
    return p


def cpet(*args, env=None):
    r = subprocess.run([CPET, *map(str, args)], capture_output=True, text=True, env={**os.environ, **(env or {})})
    if r.returncode:
        raise AssertionError(f"cpet {args[0]} ended with {r.returncode}: {r.stderr.strip()}")
    return r.stdout


class Server:
    """A cpetd on free ports; use as a context. stop() says how it ended."""

    def __init__(self, *args, model=MODEL, env=None, ready_s=60, command=()):
        self.log = tempfile.NamedTemporaryFile("a")
        self.p = subprocess.Popen([*command, CPETD, "--model", str(model), "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", *map(str, args)],
                                  stderr=self.log, stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})})
        self.url = self.admin = None
        end = time.monotonic() + ready_s
        while True:
            text = self.text()
            if "\ncpetd: ready" in "\n" + text:
                break
            if self.p.poll() is not None or time.monotonic() > end:
                self.p.kill()
                raise AssertionError(f"cpetd is not ready: {text.strip()[-500:]}")
            time.sleep(0.02)
        self.url = re.search(r"^cpetd: listening on (http://\S+)", text, re.M)[1]
        self.admin = re.search(r"^cpetd: admin listening on (http://\S+)", text, re.M)[1]

    def text(self):
        return Path(self.log.name).read_text()  # by a descriptor of its own: the server's is at the end

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.p.poll() is None:
            self.stop()

    def stop(self, sig=signal.SIGTERM, timeout=30):
        self.p.send_signal(sig)
        try:
            code = self.p.wait(timeout)
        except subprocess.TimeoutExpired:
            self.p.kill()
            raise AssertionError("cpetd did not stop")
        return code

    def connection(self, timeout=120):
        host, port = self.url.split("//")[1].rsplit(":", 1)
        return http.client.HTTPConnection(host, int(port), timeout=timeout)

    def post(self, path, body, headers=None, timeout=300):
        """(status, parsed JSON or text, headers)"""
        c = self.connection(timeout)
        text = body if isinstance(body, (bytes, str)) else json.dumps(body)
        c.request("POST", path, text, {"Content-Type": "application/json", **(headers or {})})
        return self._answer(c)

    def get(self, path, headers=None, admin=False):
        c = self.connection() if not admin else http.client.HTTPConnection(*self.admin.split("//")[1].rsplit(":", 1), timeout=30)
        c.request("GET", path, headers=headers or {})
        return self._answer(c)

    @staticmethod
    def _answer(c):
        r = c.getresponse()
        text = r.read()
        c.close()
        try:
            return r.status, json.loads(text), r.headers
        except ValueError:
            return r.status, text.decode("utf-8", "replace"), r.headers

    def complete(self, **body):
        """A completion's JSON; anything but 200 is an error."""
        status, answer, _ = self.post("/v1/completions", body)
        assert status == 200, f"{status}: {answer}"
        return answer


def together(jobs):
    """Runs functions at once, a thread each; their results in order, the first error raised."""
    out, errors = [None] * len(jobs), []

    def run(i, f):
        try:
            out[i] = f()
        except BaseException as e:  # carried to the caller
            errors.append(e)

    threads = [threading.Thread(target=run, args=(i, f), daemon=True) for i, f in enumerate(jobs)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]
    return out
