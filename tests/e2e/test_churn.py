"""Isolation while everything moves: base and task requests of several tenants beside registrations, swaps, roll-backs,
evictions, deletions, and kills of the whole server.

A round sends 32 requests at random times while two administrators change modules and tasks. The test knows which
content each task stood for when: an answer must equal, token for token, what a quiet server that holds all modules
gives for that request alone with one of the contents that were current between sending and answer; a task that was
absent all the time must give 404, another tenant's too. Rounds are seeded by number. Prompts share beginnings, so that
the prefix cache is hit. Now and then the server is killed (kill -9) and started again on the same data: what was
acknowledged must be there. ROUNDS (50; 1,000 in the long run) and FIRST_ROUND come from the environment.
"""
import hashlib
import http.client
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "golden"))
import gen
from harness import MODEL, ORIGINAL, Server, case, cpet, main, together

ROUNDS = int(os.environ.get("ROUNDS", "50"))
FIRST = int(os.environ.get("FIRST_ROUND", "0"))
RANKS = [4, 8, 16, 32, 5, 12, 24, 64, 7, 9]
TENANTS = {"red": "red-key-0123456789", "blue": "blue-key-0123456789"}
ADMIN = "admin-key-0123456789abcdef"
SPECS = 8
ABSENT, BROKEN = -1, -2  # beside the numbers of modules and BASE; broken: the name of its module was deleted
BASE = len(RANKS)
WORK = tempfile.TemporaryDirectory()
HOME = Path(WORK.name)


def make_modules():
    """PEFT directories under modules/, and a .pet of each beside."""
    cfg = json.loads((Path(ORIGINAL) / "config.json").read_text())
    for i, rank in enumerate(RANKS):
        path = HOME / "modules" / f"m{i}"
        if not path.exists():
            gen.lora(cfg, path, rank, f"churn{i}", strength=0.4, targets=[None, ["q_proj", "v_proj"], ["gate_proj", "down_proj"]][i % 3])
            cpet("pet", "pack", path, f"{path}.pet")


def specs():
    rng = random.Random("churn specs")
    shared = [rng.randint(1000, 40000) for _ in range(120)]
    out = []
    for i in range(SPECS):
        prompt = shared[:rng.choice([0, 16, 64, 120])] + [rng.randint(1000, 40000) for _ in range(rng.choice([1, 9, 30]))]
        body = {"prompt": prompt, "max_tokens": rng.choice([3, 6, 10]), "ignore_eos": True, "logprobs": 1, "temperature": 0}
        if i % 2:
            body |= {"temperature": 0.9, "top_p": 0.9, "seed": i}
        out.append(body)
    return out


def text_of(answer):
    c = answer["choices"][0]
    return c["text"], c["logprobs"]["tokens"], c["logprobs"]["token_logprobs"]


def alone(bodies):
    """[spec][module or BASE]: what each request gives by itself on a server where nothing else happens."""
    with Server("--name", "base", *[x for i in range(len(RANKS)) for x in ("--pet", f"m{i}={HOME}/modules/m{i}")]) as s:
        return [[text_of(s.complete(model=m, **b)) for m in [f"m{i}" for i in range(len(RANKS))] + ["base"]] for b in bodies]


class Task:
    """What a task stood for when: [from, until, content]; until None: still. Changed by one administrator only."""

    def __init__(self, name, tenant):
        self.name, self.tenant = name, tenant
        self.lock = threading.Lock()
        self.times = [[0.0, None, ABSENT]]
        self.versions = {}  # version's hash -> (content, module name), of those the server may still keep
        self.module = None  # the name that the current version goes by; None: by content
        self.whole = ABSENT  # what it stands for when its module's name is there

    def now(self):
        return self.times[-1][2]

    def begin(self, content):
        with self.lock:
            self.times.append([time.monotonic(), None, content])

    def acknowledged(self):
        with self.lock:
            if len(self.times) > 1:
                self.times[-2][1] = time.monotonic()

    def refused(self):
        with self.lock:
            self.times.pop()

    def candidates(self, since, until):
        with self.lock:
            return {c for a, b, c in self.times if a <= until and (b is None or b >= since)}

    def forget(self):
        with self.lock:
            del self.times[:-1]
            self.times[0][0] = 0.0


class Service:
    """A server on a directory of its own that can be killed and comes back on the same data."""

    def __init__(self, *extra):
        keys = "".join(f"{t}:{hashlib.blake2b(k.encode(), digest_size=32).hexdigest()}\n" for t, k in TENANTS.items())
        (HOME / "keys").write_text(keys)
        (HOME / "admin").write_text(ADMIN)
        for f in ("keys", "admin"):
            (HOME / f).chmod(0o600)
        self.data = tempfile.TemporaryDirectory(dir=HOME)
        self.args = ["--name", "base", "--api-keys", HOME / "keys", "--admin-key", HOME / "admin", "--data", self.data.name, "--module-root",
                     HOME / "modules", "--pet-bytes", "40M", *extra]
        self.s = Server(*self.args)

    def kill(self):
        self.s.p.send_signal(signal.SIGKILL)
        self.s.p.wait()
        self.s = Server(*self.args)

    def admin(self, method, path, body=None):
        c = http.client.HTTPConnection(*self.s.admin.split("//")[1].rsplit(":", 1), timeout=60)
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        c.request(method, path, body if body is None or isinstance(body, bytes) else json.dumps(body),
                  {"Authorization": f"Bearer {ADMIN}", "Content-Type": kind})
        r = c.getresponse()
        text = r.read()
        c.close()
        return r.status, json.loads(text) if text.startswith(b"{") else text.decode()

    def state(self):
        """For the message when an answer does not come."""
        c = http.client.HTTPConnection(*self.s.admin.split("//")[1].rsplit(":", 1), timeout=60)
        c.request("GET", "/metrics", headers={"Authorization": f"Bearer {ADMIN}"})
        lines = c.getresponse().read().decode().splitlines()
        return " ".join(x for x in lines if x.startswith(("vllm:num_requests", "cpet_modules", "cpet_requests", "cpet_module")) and "bucket" not in x)

    def ask(self, tenant, body):
        return self.s.post("/v1/completions", body, {"Authorization": f"Bearer {TENANTS[tenant]}"})


class Administrator:
    """Changes its own module names and tasks, one call after another; another one has others."""

    def __init__(self, name, service, tasks):
        self.name, self.service, self.tasks = name, service, tasks
        self.content = {}  # module name -> content, as acknowledged

    def change(self, t, content, call, *expected):
        """One call that makes t stand for content; False, and nothing changed, for an unexpected status."""
        t.begin(content)
        status, a = call()
        if status not in expected:
            t.refused()
            return status, a
        t.acknowledged()
        return status, a

    def put_module(self, rng):
        name, content = f"{self.name}-{rng.randrange(3)}", rng.randrange(len(RANKS))
        body = {"path": str(HOME / "modules" / f"m{content}")}
        if rng.random() < 0.5:
            body = (HOME / "modules" / f"m{content}.pet").read_bytes()
        mended = [t for t in self.tasks if t.now() == BROKEN and t.module == name]
        for t in mended:
            t.begin(t.whole)
        status, a = self.service.admin("PUT", f"/admin/v1/modules/{name}", body)
        assert status in (200, 201), (status, a)
        for t in mended:
            t.acknowledged()
        self.content[name] = content
        return name

    def put_task(self, rng):
        t = rng.choice(self.tasks)
        name = rng.choice(sorted(self.content)) if self.content and rng.random() < 0.6 else self.put_module(rng)
        was, content = t.now(), self.content[name]
        status, a = self.change(t, content, lambda: self.service.admin("PUT", f"/admin/v1/tasks/{t.name}", {"modules": [name], "tenant": t.tenant}), 200, 201)
        assert status == (201 if was == ABSENT else 200), (status, a)
        if was == ABSENT:
            t.versions = {}
        t.versions[a["version"]] = content, name
        t.module, t.whole = name, content

    def roll_back(self, rng):
        t = rng.choice(self.tasks)
        if t.now() == ABSENT or not t.versions:
            return self.put_task(rng)
        version = rng.choice(sorted(t.versions))
        content, name = t.versions[version]
        status, a = self.change(t, content, lambda: self.service.admin("PUT", f"/admin/v1/tasks/{t.name}", {"version": version}), 200)
        if status == 404:  # no longer kept
            del t.versions[version]
            return None
        assert status == 200 and a["version"] == version, (status, a)
        t.module, t.whole = name if self.content.get(name) == content else None, content
        return None

    def delete_task(self, rng):
        t = rng.choice(self.tasks)
        if t.now() == ABSENT:
            return self.put_task(rng)
        status, a = self.change(t, ABSENT, lambda: self.service.admin("DELETE", f"/admin/v1/tasks/{t.name}"), 204)
        assert status == 204, (status, a)
        return None

    def delete_module(self, rng):
        """Without drain it is refused while anything uses it; with it, tasks of that name are broken until it is back."""
        if not self.content:
            return
        name, drain = rng.choice(sorted(self.content)), rng.random() < 0.3
        using = [t for t in self.tasks if t.module == name and t.now() not in (ABSENT, BROKEN)]
        for t in using if drain else []:
            t.begin(BROKEN)
        status, a = self.service.admin("DELETE", f"/admin/v1/modules/{name}{'?drain=1' if drain else ''}")
        for t in using if drain else []:
            t.acknowledged()
        assert status == 202 if drain else status == 409 or (status == 204 and not using), (status, a)
        if status != 409:
            del self.content[name]

    def work(self, rng, n):
        acts = [self.put_module, self.put_task, self.put_task, self.put_task, self.roll_back, self.roll_back, self.delete_task, self.delete_module]
        for _ in range(n):
            time.sleep(rng.random() * 0.05)
            rng.choice(acts)(rng)


def check(service, task, tenant, which, body, answers, wait, problems):
    time.sleep(wait)
    since = time.monotonic()
    status, a, _ = service.ask(tenant, {"model": task.name if task else "base", **body})
    possible = task.candidates(since, time.monotonic()) if task else {BASE}
    if task and task.tenant not in (None, tenant):
        possible = {ABSENT}
    if status == 404:
        if ABSENT not in possible:
            problems.append(f"{task.name} for {tenant}: 404, but it stood for {possible}")
    elif status == 503 and BROKEN in possible and "was deleted" in str(a):
        pass
    elif status != 200:
        problems.append(f"{task and task.name}: {status} {a}")
    elif not any(text_of(a) == answers[which][c] for c in possible - {ABSENT, BROKEN}):
        is_of = [c for c in range(BASE + 1) if text_of(a) == answers[which][c]]
        problems.append(f"{task and task.name} for {tenant}, request {which}: the text is that of {is_of}, not of {possible}")


def registry_is(service, administrators):
    """What the server knows is what was acknowledged."""
    status, a = service.admin("GET", "/admin/v1/tasks")
    assert status == 200
    there = {t["id"] for t in a["data"] if t["id"] != "base"}
    want = {t.name for ad in administrators for t in ad.tasks if t.now() != ABSENT}
    assert there == want, f"tasks: {there ^ want}"
    status, a = service.admin("GET", "/admin/v1/modules")
    names = {m["name"] for m in a["data"]}
    missing = {n for ad in administrators for n in ad.content} - names
    assert status == 200 and not missing, f"modules: {missing} are missing"


def rounds(n, *extra):
    make_modules()
    bodies = specs()
    answers = alone(bodies)
    distinct = min(len(set(map(str, row))) for row in answers)
    assert distinct > BASE // 2, "the modules change too little to be told apart"
    service = Service(*extra)
    admins = [Administrator(name, service, [Task(f"{name}-{i}", [None, "red", "blue"][i % 3]) for i in range(4)]) for name in ("one", "two")]
    try:
        for r in range(FIRST, FIRST + n):
            rng = random.Random(f"churn round {r}")
            problems, jobs = [], []
            for _ in range(32):
                task = rng.choice([t for ad in admins for t in ad.tasks]) if rng.random() < 0.8 else None
                tenant = rng.choice(sorted(TENANTS)) if not task or not task.tenant or rng.random() < 0.1 else task.tenant
                which = rng.randrange(SPECS)
                jobs.append(lambda a=(task, tenant, which, bodies[which], answers, rng.random() * 0.3, problems): check(service, *a))
            jobs += [lambda ad=ad, g=random.Random(f"{r} {ad.name}"): ad.work(g, 6) for ad in admins]
            try:
                together(jobs)
            except TimeoutError:
                raise AssertionError(f"round {r}: no answer; {service.state()}")
            assert not problems, f"round {r}: " + "; ".join(problems[:4])
            for ad in admins:
                for t in ad.tasks:
                    t.forget()
            if rng.random() < 0.05:
                service.kill()
                registry_is(service, admins)
        registry_is(service, admins)
        assert service.s.stop() == 0
    finally:
        if service.s.p.poll() is None:
            service.s.p.kill()


@case
def requests_beside_admin_writes():
    rounds(ROUNDS)


@case
def without_the_prefix_cache():
    rounds(max(1, ROUNDS // 5), "--no-prefix-cache")


if __name__ == "__main__":
    main()
