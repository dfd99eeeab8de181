#!/usr/bin/env python3
"""The admin API end to end: modules and tasks registered, swapped, rolled back and deleted while requests run.

Needs CPETD and CPETD_MODEL. Random modules of rank 2 are made for the model under test; what a task answers is compared
with the same module given by --pet.
"""
import glob
import http.client
import json
import os
import shutil
import signal
import struct
import subprocess
import threading
import time

from cpetd_run import ROOT, Server, binary, model, run, scratch, wait_until, write_lora

CPET = os.environ.get("CPET", os.path.join(ROOT, "build", "cpet"))
PROMPT = "The capital of France is"
N = 6  # modules

dirs = {}


def work():
    """A directory with a root of N modules as PEFT directories and as .pet files; made once."""
    if "d" not in dirs:
        dirs["tmp"] = scratch()
        d = dirs["d"] = dirs["tmp"].name
        for i in range(N):
            write_lora(f"{d}/root/m{i}", i, 2, size=0.4)
            subprocess.run([CPET, "pet", "pack", f"{d}/root/m{i}", f"{d}/m{i}.pet"], check=True, stdout=subprocess.DEVNULL)
    return dirs["d"]


def pet(i):
    with open(f"{work()}/m{i}.pet", "rb") as f:
        return f.read()


class Admin(Server):
    def __init__(self, *args, data=None, **kw):
        more = ["--data", data] if data else []
        super().__init__("--module-root", f"{work()}/root", *more, *args, **kw)

    def adm(self, method, path, body=None, want=None, **kw):
        status, _, text = self.request(method, path, body, admin=True, **kw)
        assert want is None or status == want, f"{method} {path}: {status}: {text[:300]}"
        try:
            return json.loads(text)
        except ValueError:
            return text.decode()

    def module(self, name, i, want=201, query=""):
        return self.adm("PUT", f"/admin/v1/modules/{name}{query}", pet(i), want, headers={"Content-Type": "application/octet-stream"})

    def task(self, id, *modules, want=None, **fields):
        return self.adm("PUT", f"/admin/v1/tasks/{id}", {"modules": list(modules), **fields}, want)

    def show(self, what, name):
        return self.adm("GET", f"/admin/v1/{what}/{name}", want=200)["data"][0]

    def names(self, what):
        return [x["name" if what == "modules" else "id"] for x in self.adm("GET", f"/admin/v1/{what}", want=200)["data"]]

    def refused(self, method, path, body, status, param=None, says="", **kw):
        e = self.adm(method, path, body, status, **kw)["error"]
        assert e["param"] == param and says in e["message"], e
        return e


def expected():
    """What each module answers to PROMPT, all resident by --pet; and the backbone alone under "base"."""
    if "answers" not in dirs:
        d = work()
        with Server(*[a for i in range(N) for a in ("--pet", f"p{i}={d}/root/m{i}")]) as s:
            dirs["answers"] = {f"m{i}": s.text(PROMPT, model=f"p{i}") for i in range(N)}
            dirs["answers"]["base"] = s.text(PROMPT)
        assert len(set(dirs["answers"].values())) > 3, dirs["answers"]
    return dirs["answers"]


# ---- each call ----

def test_modules():
    with Admin() as s:
        a = s.module("m0", 0)
        assert {"name", "hash", "kind", "bytes", "rank", "sites"} <= set(a), a
        assert a["name"] == "m0" and a["kind"] == "lora" and a["rank"] == 2 and len(a["hash"]) == 64
        s.module("m0", 0, 200)
        b = s.adm("PUT", "/admin/v1/modules/m1", {"path": f"{work()}/root/m1"}, 201)
        assert s.module("m1", 1, 200)["hash"] == b["hash"]  # the same content, as a directory and as a .pet
        s.adm("PUT", "/admin/v1/modules/m0", {"path": "m2"}, 201)  # another content for the name
        m = s.show("modules", "m0")
        assert m["hash"] not in (a["hash"], b["hash"]) and m["state"] == "ready" and m["residency"] == "stored"
        assert m["users"] == 0 and m["resident_bytes"] == 0 and m["bytes"] > 0 and m["error"] is None
        assert s.names("modules") == ["m0", "m1"]
        s.adm("GET", "/admin/v1/modules/none", want=404)
        s.adm("DELETE", "/admin/v1/modules/m1", want=204)
        s.adm("DELETE", "/admin/v1/modules/m1", want=404)
        assert s.names("modules") == ["m0"]


def test_tasks():
    e = expected()
    with Admin() as s:
        s.module("m0", 0)
        m1 = s.module("m1", 1)
        a = s.task("t", "m0", want=201)
        assert a["id"] == "t" and len(a["version"]) == 64 and a["modules"][0]["weight"] == 1.0
        assert s.text(PROMPT, model="t") == e["m0"]
        b = s.task("t", {"name": "m1"}, want=200)
        assert s.text(PROMPT, model="t") == e["m1"] and a["version"] != b["version"]
        assert s.task("t", m1["hash"], want=200)["version"] == b["version"]  # by content
        s.task("t", {"name": "m0", "weight": 0}, want=200)
        assert s.text(PROMPT, model="t") == e["base"]
        s.task("t", want=200)  # no module
        assert s.text(PROMPT, model="t") == e["base"]
        assert "t" in [x["id"] for x in json.loads(s.get("/v1/models")[2])["data"]]
        s.adm("DELETE", "/admin/v1/tasks/t", want=204)
        s.adm("DELETE", "/admin/v1/tasks/t", want=404)
        assert s.post("/v1/completions", {"model": "t", "prompt": PROMPT})[0] == 404


def test_defaults_and_template():
    with Admin() as s:
        s.task("short", want=201, defaults={"max_tokens": 3, "temperature": 0})
        status, r = s.post("/v1/completions", {"model": "short", "prompt": PROMPT})
        assert status == 200 and r["usage"]["completion_tokens"] == 3, r
        s.task("plain", want=201, template="{{ messages[0].content }}", defaults={"temperature": 0, "max_tokens": 8})
        status, r = s.post("/v1/chat/completions", {"model": "plain", "messages": [{"role": "user", "content": PROMPT}]})
        assert status == 200 and r["choices"][0]["message"]["content"] == s.text(PROMPT, max_tokens=8), r
        v = s.task("short", defaults={"temperature": 0, "max_tokens": 3})["version"]
        assert v == s.show("tasks", "short")["versions"][0] and len(s.show("tasks", "short")["versions"]) == 1


def test_roll_back():
    e = expected()
    with Admin() as s:
        for i in (0, 1):
            s.module(f"m{i}", i)
        versions = [s.task("t", f"m{i}")["version"] for i in (0, 1)]
        assert s.show("tasks", "t")["versions"] == versions[::-1]
        assert s.adm("PUT", "/admin/v1/tasks/t", {"version": versions[0]}, 200)["version"] == versions[0]
        assert s.text(PROMPT, model="t") == e["m0"] and s.show("tasks", "t")["versions"] == versions
        s.adm("PUT", "/admin/v1/tasks/t", {"version": versions[1]}, 200)
        s.adm("DELETE", "/admin/v1/modules/m0", want=204)  # the kept version keeps the content
        time.sleep(1.5)
        s.adm("PUT", "/admin/v1/tasks/t", {"version": versions[0]}, 200)
        assert s.text(PROMPT, model="t") == e["m0"]
        s.refused("PUT", "/admin/v1/tasks/t", {"version": "0" * 64}, 404, "version")
        s.refused("PUT", "/admin/v1/tasks/t", {"version": "zz"}, 400, "version")
        s.refused("PUT", "/admin/v1/tasks/t", {"version": versions[0], "modules": []}, 400, "version")
        s.refused("PUT", "/admin/v1/tasks/u", {"version": versions[0]}, 404, "id")


def test_errors():
    key = {"Authorization": "Bearer wrong"}
    with Admin("--pet", f"fixed={work()}/root/m5", "--pet-bytes", "100M") as s:
        s.module("m0", 0)
        T, M = "/admin/v1/tasks/t", "/admin/v1/modules/m"
        for body, status, param in [
                ({}, 400, "modules"), ({"modules": "m0"}, 400, "modules"), ({"modules": [3]}, 400, "modules"),
                ({"modules": ["none"]}, 404, "modules"), ({"modules": ["0" * 64]}, 404, "modules"), ({"modules": ["fixed"]}, 400, "modules"),
                ({"modules": [{"name": "m0", "weight": "x"}]}, 400, "modules"), ({"modules": [{"name": "m0", "scale": 1}]}, 400, "scale"),
                ({"modules": ["m0"] * 5}, 400, "modules"), ({"modules": [], "more": 1}, 400, "more"),
                ({"modules": [], "defaults": {"temperature": 9}}, 400, "defaults.temperature"), ({"modules": [], "defaults": []}, 400, "defaults"),
                ({"modules": [], "template": "{% if"}, 400, "template"), ({"modules": [], "tenant": "a b"}, 400, "tenant"),
                ("[]", 400, None), ("{", 400, None), ("", 400, None), ('{"modules": [], "modules": []}', 400, None),
                ("[" * 100000, 400, None), (b'{"modules": ["\xff"]}', 400, None)]:
            s.refused("PUT", T, body, status, param)
        for body, status, param in [({}, 400, "path"), ({"path": 3}, 400, "path"), ({"path": ""}, 400, "path"), ({"path": "m0", "x": 1}, 400, "x"),
                                    (b"", 400, None), (b"\x89PET\r\n\x1a\n", 400, None), (b"nothing of the kind", 400, None),
                                    (pet(0)[:-100], 400, None)]:
            s.refused("PUT", M, body, status, param)
        damaged = bytearray(pet(0))
        damaged[len(damaged) // 2] ^= 255
        s.refused("PUT", M, bytes(damaged), 400)
        s.refused("PUT", "/admin/v1/modules/a%20b", pet(0), 400, "name")
        s.refused("PUT", "/admin/v1/modules/" + "a" * 64, pet(0), 400, "name")
        s.refused("PUT", "/admin/v1/modules/" + "x" * 200, pet(0), 400, "name")
        s.refused("PUT", "/admin/v1/tasks/a%20b", {"modules": []}, 400, "id")
        for name in ("fixed", "base"):  # what the command line made stays
            s.refused("PUT", f"/admin/v1/tasks/{name}", {"modules": []}, 409, "id")
            s.refused("DELETE", f"/admin/v1/tasks/{name}", None, 409, "id")
        s.refused("PUT", "/admin/v1/modules/fixed", pet(0), 409, "name")
        s.refused("DELETE", "/admin/v1/modules/fixed", None, 409, "name")
        assert s.request("POST", T, "{}", admin=True)[0] == 405 and s.request("PUT", "/admin/v1/tasks", "{}", admin=True)[0] == 405
        assert s.request("GET", "/v1/load_lora_adapter", admin=True)[0] == 405
        assert s.request("GET", "/admin/v1/other", admin=True)[0] == 404 and s.request("PUT", "/admin/v1/modules/", b"x", admin=True)[0] == 404
        assert s.request("PUT", T, {"modules": []})[0] == 404  # not on the public listener
        assert s.names("modules") == ["fixed", "m0"] and s.names("tasks") == ["base", "fixed"]
    with scratch() as d:
        with open(os.open(f"{d}/key", os.O_CREAT | os.O_WRONLY, 0o600), "w") as f:
            f.write("the admin key\n")
        with Admin("--admin-key", f"{d}/key") as s:
            for headers in ({}, key, {"Authorization": "the admin key"}):
                for method, path in (("PUT", T), ("GET", T), ("DELETE", T), ("PUT", M), ("POST", "/v1/load_lora_adapter")):
                    status, _, text = s.request(method, path, {"modules": []}, admin=True, headers=headers)
                    assert status == 401 and json.loads(text)["error"]["code"] == "invalid_api_key", text
            s.task("t", want=401)
            s.adm("PUT", T, {"modules": []}, 201, headers={"Authorization": "Bearer the admin key"})


def test_wrong_modules():
    d = work()
    shutil.copytree(f"{d}/root/m0", f"{d}/root/nan", dirs_exist_ok=True)
    with open(f"{d}/root/nan/adapter_model.safetensors", "r+b") as f:
        f.seek(-4, 2)
        f.write(struct.pack("<f", float("nan")))
    shutil.copytree(f"{d}/root/m0", f"{d}/root/dora", dirs_exist_ok=True)
    with open(f"{d}/root/dora/adapter_config.json", "r+") as f:
        c = json.load(f)
        f.seek(0)
        json.dump({**c, "use_dora": True}, f)
    with Admin() as s:
        s.refused("PUT", "/admin/v1/modules/m", {"path": "nan"}, 400, None, "finite")
        s.refused("PUT", "/admin/v1/modules/m", {"path": "dora"}, 400, "path")
        each = s.module("m", 0, 200, "?dry_run=1")["resident_bytes"]
        assert s.names("modules") == []
    with Admin("--pet-bytes", str(each - 1)) as s:
        s.refused("PUT", "/admin/v1/modules/m", pet(0), 413)
        assert s.names("modules") == []
        assert s.metric("cpet_modules_resident_bytes") == 0


def stored(data):
    return sorted(glob.glob(data + "/modules/*") + glob.glob(data + "/incoming/*"))


def test_dry_run_stores_nothing():
    with scratch() as d, Admin(data=f"{d}/data") as s:
        before = stored(f"{d}/data")
        for query in ("?dry_run=1", "?dry_run"):
            assert s.module("m0", 0, 200, query)["rank"] == 2
        s.adm("PUT", "/admin/v1/modules/m0?dry_run=1", {"path": "m0"}, 200)
        s.refused("PUT", "/admin/v1/modules/m0?dry_run=1", b"nothing", 400)
        assert s.names("modules") == [] and stored(f"{d}/data") == before == []


def test_paths_stay_under_the_roots():
    d = work()
    root, out = f"{d}/root", f"{d}/outside"
    write_lora(out, 99, 2)
    links = {"link-dir": out, "link-up": "../outside", "link-root": "/"}
    for name, to in links.items():
        if not os.path.lexists(f"{root}/{name}"):
            os.symlink(to, f"{root}/{name}")
    os.makedirs(f"{root}/half", exist_ok=True)
    for f in ("adapter_config.json", "adapter_model.safetensors"):  # a directory inside whose files are elsewhere
        if not os.path.lexists(f"{root}/half/{f}"):
            os.symlink(f"{out}/{f}", f"{root}/half/{f}")
    if not os.path.lexists(f"{root}/inner"):
        os.symlink("m1", f"{root}/inner")
    with Admin() as s:
        for path in (out, "../outside", f"{root}/../outside", "m0/../../outside", "link-dir", "link-up", f"{root}/link-root{out}", "half", "/etc/passwd",
                     "/etc/no-such-file", "../../../../etc/passwd", root, ".", f"{d}/m0.pet"):
            e = s.refused("PUT", "/admin/v1/modules/x", {"path": path}, 403, "path")
            assert "passwd" not in e["message"] and out not in e["message"], e  # and it says the same of what is not there
        s.adm("PUT", "/admin/v1/modules/x", {"path": "inner"}, 201)  # a link that stays inside
        s.adm("PUT", "/admin/v1/modules/x", {"path": "m0/../m2"}, 201)
        s.refused("POST", "/v1/load_lora_adapter", {"lora_name": "x", "lora_path": out}, 403, "lora_path")
    with Server() as s:
        assert s.request("PUT", "/admin/v1/modules/x", {"path": f"{root}/m0"}, admin=True)[0] == 403


def test_adapters_as_in_vllm():
    e = expected()
    with Admin() as s:
        L, U = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
        assert s.adm("POST", L, {"lora_name": "a", "lora_path": f"{work()}/root/m0"}, 200) == "Success: LoRA adapter 'a' added successfully."
        assert s.text(PROMPT, model="a") == e["m0"]
        assert s.names("modules") == ["a"] and s.names("tasks") == ["base", "a"]
        s.refused("POST", L, {"lora_name": "a", "lora_path": "m1"}, 400, "lora_name", "has already been loaded")
        s.adm("POST", L, {"lora_name": "a", "lora_path": "m1", "load_inplace": True}, 200)
        assert s.text(PROMPT, model="a") == e["m1"]
        s.refused("POST", L, {"lora_name": "b"}, 400, "lora_path")
        s.refused("POST", L, {"lora_path": "m0"}, 400, "lora_name")
        s.refused("POST", L, {"lora_name": "base", "lora_path": "m0", "load_inplace": True}, 409, "id")
        s.refused("POST", L, {"lora_name": "b", "lora_path": "none"}, 403, "lora_path")
        s.task("other", "a", want=201)
        s.refused("POST", U, {"lora_name": "a"}, 409, "lora_name")
        s.adm("DELETE", "/admin/v1/tasks/other", want=204)
        assert s.adm("POST", U, {"lora_name": "a"}, 200) == "Success: LoRA adapter 'a' removed successfully."
        s.refused("POST", U, {"lora_name": "a"}, 404, "lora_name")
        s.refused("POST", U, {}, 400, "lora_name")
        assert s.names("modules") == [] and s.names("tasks") == ["base"]


def test_tenants():
    with scratch() as d:
        import hashlib
        keys = {t: f"{t}-key-1234" for t in ("red", "blue")}
        with open(f"{d}/keys", "w") as f:
            for t, k in keys.items():
                f.write(f"{t}:{hashlib.blake2b(k.encode(), digest_size=32).hexdigest()}\n")
        with Admin("--api-keys", f"{d}/keys", data=f"{d}/data") as s:
            s.module("of-red", 0, 201, "?tenant=red")
            s.module("of-all", 1)
            s.task("red-task", "of-red", "of-all", tenant="red", want=201)
            s.refused("PUT", "/admin/v1/tasks/blue-task", {"modules": ["of-red"], "tenant": "blue"}, 403, "modules")
            s.refused("PUT", "/admin/v1/tasks/all-task", {"modules": ["of-red"]}, 403, "modules")
            s.refused("PUT", "/admin/v1/tasks/all-task", {"modules": [s.show("modules", "of-red")["hash"]]}, 403, "modules")
            s.task("all-task", "of-all", want=201)
            s.refused("PUT", "/admin/v1/modules/of-all?tenant=blue", pet(1), 409, "tenant")
        with Admin("--api-keys", f"{d}/keys", data=f"{d}/data") as s:  # and so after a restart
            for tenant, status in (("red", 200), ("blue", 404)):
                s.key = keys[tenant]
                assert s.post("/v1/completions", {"model": "red-task", "prompt": PROMPT, "max_tokens": 1})[0] == status
                assert s.post("/v1/completions", {"model": "all-task", "prompt": PROMPT, "max_tokens": 1})[0] == 200
                assert s.get("/v1/models/red-task")[0] == status
                listed = [m["id"] for m in json.loads(s.get("/v1/models")[2])["data"]]
                assert ("red-task" in listed) == (status == 200) and "all-task" in listed, listed


# ---- what lasts ----

def test_restart():
    e = expected()
    with scratch() as d:
        with Admin(data=f"{d}/data") as s:
            s.module("m0", 0)
            s.module("m1", 1)
            old = s.task("t", "m0")["version"]
            s.task("t", {"name": "m1", "weight": 1}, defaults={"max_tokens": 16}, template="{{ 1 }}")
            s.module("gone", 2)
            s.task("gone", "gone")
            s.adm("DELETE", "/admin/v1/tasks/gone", want=204)
            s.adm("DELETE", "/admin/v1/modules/gone", want=204)
            before = [{k: v for k, v in s.show("tasks", "t").items()}, s.show("modules", "m1")["hash"]]
            assert s.stop() == 0
        with Admin(data=f"{d}/data") as s:
            assert s.names("modules") == ["m0", "m1"] and s.names("tasks") == ["base", "t"]
            assert [s.show("tasks", "t"), s.show("modules", "m1")["hash"]] == before
            assert s.metric("cpet_modules_resident") == 0  # rows only are read at start
            assert s.text(PROMPT, model="t") == e["m1"] and s.metric("cpet_modules_resident") == 1
            s.adm("PUT", "/admin/v1/tasks/t", {"version": old}, 200)
            assert s.text(PROMPT, model="t") == e["m0"]
            second = subprocess.run([binary(), "--model", model(), "--listen", "127.0.0.1:0", "--data", f"{d}/data"], capture_output=True, text=True)
            assert second.returncode != 0 and "cpetd: --data" in second.stderr, second.stderr
        clash = subprocess.run([binary(), "--model", model(), "--listen", "127.0.0.1:0", "--data", f"{d}/data", "--pet", f"t={work()}/root/m0"],
                               capture_output=True, text=True)
        assert clash.returncode == 78 and '"t"' in clash.stderr, clash.stderr


def test_kill_9():
    with scratch() as d:
        acknowledged, deleted = {}, set()
        for round in range(4):
            with Admin(data=f"{d}/data") as s:
                tasks = {x["id"]: x["version"] for x in s.adm("GET", "/admin/v1/tasks", want=200)["data"]}
                modules = s.names("modules")
                for id, versions in acknowledged.items():
                    assert tasks.get(id) in versions, f"round {round}: {id}"
                assert not deleted & set(tasks), deleted & set(tasks)
                if "m0" not in modules:
                    s.module("m0", 0)
                    s.module("m1", 1)
                stop = threading.Event()

                def write(k):
                    i = 0
                    while not stop.is_set():
                        id = f"t{k}-{round}-{i % 5}"
                        i += 1
                        body = {"modules": [f"m{i % 2}"], "defaults": {"seed": i}}
                        before = acknowledged.get(id, [])
                        acknowledged[id] = None  # on its way: neither is certain
                        try:
                            if i % 7 == 0 and before:
                                s.adm("DELETE", f"/admin/v1/tasks/{id}", want=204)
                                del acknowledged[id]
                                deleted.add(id)
                            else:
                                deleted.discard(id)
                                acknowledged[id] = [s.adm("PUT", f"/admin/v1/tasks/{id}", body)["version"]]
                        except (OSError, http.client.HTTPException):
                            if acknowledged.get(id, 0) is None:
                                del acknowledged[id]
                            return

                threads = [threading.Thread(target=write, args=(k,)) for k in range(3)]
                for t in threads:
                    t.start()
                time.sleep(0.4 + 0.2 * round)
                s.p.send_signal(signal.SIGKILL)
                s.p.wait()
                stop.set()
                for t in threads:
                    t.join()
        assert len(acknowledged) > 8, acknowledged


def test_damaged_contents():
    e = expected()
    with scratch() as d:
        with Admin(data=f"{d}/data") as s:
            for i in range(3):
                s.module(f"m{i}", i)
                s.task(f"t{i}", f"m{i}")
            paths = [f"{d}/data/modules/{s.show('modules', f'm{i}')['hash']}.pet" for i in range(3)]
        os.unlink(paths[0])
        with open(paths[1], "r+b") as f:
            f.seek(os.path.getsize(paths[1]) // 2)
            f.write(b"damaged")
        with Admin(data=f"{d}/data") as s:
            assert s.show("modules", "m0")["state"] == "failed" and s.show("tasks", "t0")["state"] == "failed"
            for i in (0, 1):
                status, r = s.post("/v1/completions", {"model": f"t{i}", "prompt": PROMPT})
                assert status == 500 and r["error"]["param"] == "model" and d not in r["error"]["message"], r
                assert s.show("modules", f"m{i}")["state"] == "failed" and s.show("tasks", f"t{i}")["error"]
            assert s.text(PROMPT, model="t2") == e["m2"]
            s.module("m1", 1, 200)  # the same again mends it
            assert s.text(PROMPT, model="t1") == e["m1"] and s.show("modules", "m1")["state"] == "ready"
            s.module("m0", 0, 200)
            assert s.text(PROMPT, model="t0") == e["m0"]


# ---- while requests run ----

def test_swaps_under_streams():
    e = expected()
    with Admin("--inject-delay-ms", "2") as s:
        for i in (0, 1):
            s.module(f"m{i}", i)
        s.task("t", "m0")
        answers, errors, stop = [], [], threading.Event()

        def ask():
            try:
                while not stop.is_set():
                    c = s.open_stream("/v1/completions", {"model": "t", "prompt": PROMPT, "max_tokens": 16, "temperature": 0})
                    r = c.getresponse()
                    assert r.status == 200, r.read()
                    parts = [json.loads(x[6:]) for x in r.read().decode().split("\n\n") if x.startswith("data: {")]
                    answers.append("".join(p["choices"][0]["text"] for p in parts))
                    c.close()
            except Exception as x:
                errors.append(x)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for t in threads:
            t.start()
        end, i = time.time() + 60, 0
        while (i < 40 or len(answers) < 12) and not errors and time.time() < end:
            s.task("t", f"m{i % 2}", want=200)
            i += 1
            time.sleep(0.03)
        stop.set()
        for t in threads:
            t.join()
        assert not errors, errors[0]
        seen = set(answers)
        assert seen <= {e["m0"], e["m1"]} and len(seen) == 2, (len(answers), seen)
        wait_until(lambda: s.show("modules", "m0")["users"] == 0 == s.show("modules", "m1")["users"], "no users")


def test_concurrent_puts_agree():
    with scratch() as d:
        with Admin(data=f"{d}/data") as s:
            order, lock = [], threading.Lock()

            def put(k):
                for i in range(10):
                    v = s.task("t", defaults={"seed": 100 * k + i})["version"]
                    with lock:
                        order.append(v)

            threads = [threading.Thread(target=put, args=(k,)) for k in range(4)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            now = s.show("tasks", "t")
            assert now["version"] == now["versions"][0] and now["version"] in order[-4:] and len(now["versions"]) == 16
        with Admin(data=f"{d}/data") as s:
            assert s.show("tasks", "t")["version"] == now["version"]


def rss(s):
    with open(f"/proc/{s.p.pid}/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def big(i):
    """A module large enough to be seen in RSS: all linears, a high rank."""
    name = f"big{i}"
    if name not in dirs:
        d = work()
        path = f"{d}/root/{name}"
        write_lora(path, 1000 + i, 4, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
        widen(path, 64)
        dirs[name] = name
    return name


def widen(path, rank):
    """Repeats the rows of A and the columns of B up to rank: quick, and large."""
    with open(f"{path}/adapter_model.safetensors", "rb") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        head, data = json.loads(f.read(n)), f.read()
    out, parts, at = {}, [], 0
    for name, t in head.items():
        (r, c), (a, b) = t["shape"], t["data_offsets"]
        if "lora_A" in name:
            piece, shape = data[a:b] * (rank // r), [rank, c]
        else:
            piece = b"".join(data[a + 4 * c * i:a + 4 * c * (i + 1)] * (rank // c) for i in range(r))
            shape = [r, rank]
        out[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + len(piece)]}
        parts.append(piece)
        at += len(piece)
    h = json.dumps(out).encode()
    with open(f"{path}/adapter_model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(h)) + h + b"".join(parts))
    with open(f"{path}/adapter_config.json", "r+") as f:
        c = json.load(f)
        f.seek(0)
        json.dump({**c, "r": rank, "lora_alpha": rank}, f)


def test_delete_gives_memory_back():
    with Admin("--inject-delay-ms", "10") as s:
        s.text(PROMPT, max_tokens=2)
        s.adm("PUT", "/admin/v1/modules/big", {"path": big(0)}, 201)
        s.task("t", "big")
        before = rss(s)
        s.text(PROMPT, model="t", max_tokens=1)
        m = s.show("modules", "big")
        assert m["resident"] and m["resident_bytes"] == s.metric("cpet_modules_resident_bytes") > 1 << 20, m
        assert rss(s) - before > m["resident_bytes"] // 2, (rss(s), before)  # 37 MB on the demo backbone
        c = s.open_stream("/v1/completions", {"model": "t", "prompt": PROMPT, "max_tokens": 60, "temperature": 0, "ignore_eos": True})
        r = c.getresponse()
        r.readline()
        wait_until(lambda: s.show("modules", "big")["users"] == 1, "one user")
        s.refused("DELETE", "/admin/v1/modules/big", None, 409, "name", '"t"')
        s.adm("DELETE", "/admin/v1/tasks/t", want=204)
        s.refused("DELETE", "/admin/v1/modules/big", None, 409, "name", "drain")
        assert s.adm("DELETE", "/admin/v1/modules/big?drain=1", want=202)["state"] == "draining"
        assert s.show("modules", "big")["state"] == "draining" and s.metrics()['cpet_modules{state="draining"}'] == 1
        s.refused("PUT", "/admin/v1/tasks/u", {"modules": ["big"]}, 404, "modules")
        text = r.read().decode()  # it finishes
        assert text.rstrip().endswith("data: [DONE]") and text.count("data: {") > 50, text[-200:]
        c.close()
        wait_until(lambda: s.metric("cpet_modules_resident_bytes") == 0, "the module is out")
        assert s.names("modules") == []
        wait_until(lambda: rss(s) - before < m["resident_bytes"] // 4 + (3 << 20), "the memory is back")


def test_drain_with_a_task_in_place():
    with Admin() as s:
        s.module("m0", 0)
        s.task("t", "m0")
        s.text(PROMPT, model="t")
        s.adm("DELETE", "/admin/v1/modules/m0?drain=1", want=202)
        wait_until(lambda: s.metric("cpet_modules_resident") == 0, "the module is out")
        status, r = s.post("/v1/completions", {"model": "t", "prompt": PROMPT})
        assert status == 503 and "m0" in r["error"]["message"], r
        assert s.show("tasks", "t")["state"] == "failed"
        s.module("m0", 0)
        assert s.text(PROMPT, model="t") == expected()["m0"]


def test_content_shared_with_the_command_line():
    """The same module by --pet, under two names, and registered: one content, and deleting one name harms no other."""
    e, m0 = expected()["m0"], f"{work()}/root/m0"
    with Admin("--pet", f"a={m0}", "--pet", f"b={m0}") as s:
        assert s.names("modules") == ["a", "b"] and s.metric("cpet_modules_resident") == 1
        s.module("m0", 0)
        s.task("t", "m0")
        assert s.text(PROMPT, model="t") == e == s.text(PROMPT, model="b") and s.metric("cpet_modules_resident") == 1
        s.adm("DELETE", "/admin/v1/tasks/t", want=204)
        s.adm("DELETE", "/admin/v1/modules/m0", want=204)
        time.sleep(1.5)  # its content is collected
        assert s.text(PROMPT, model="a") == e and s.metric("cpet_modules_resident") == 1 and s.metric("cpet_module_loads_total") == 0


def test_pins_survive_a_restart():
    with scratch() as d:
        with Admin(data=f"{d}/data") as s:
            s.module("m0", 0, 201, "?pinned=1")
            s.module("m1", 1)
        with Admin(data=f"{d}/data") as s:
            wait_until(lambda: s.show("modules", "m0")["resident"], "the pinned one is loaded")
            assert s.show("modules", "m0")["pinned"] and s.show("modules", "m1")["residency"] == "stored"


# ---- more modules than memory ----

def test_small_budget():
    e = expected()
    with Admin() as s:
        s.module("m0", 0)
        s.task("t", "m0")
        s.text(PROMPT, model="t")
        each = int(s.metric("cpet_modules_resident_bytes"))
    with Admin("--pet-bytes", str(2 * each + each // 2)) as s:
        for i in range(N):
            s.module(f"m{i}", i)
            s.task(f"t{i}", f"m{i}")
        s.task("both", {"name": "m0", "weight": 0}, "m1")
        s.refused("PUT", "/admin/v1/tasks/three", {"modules": ["m0", "m1", "m2"]}, 413, "modules")
        jobs, wrong = [(f"t{i % N}", e[f"m{i % N}"]) for i in range(4 * N)] + [("both", None), ("base", e["base"])] * 4, []
        both = s.text(PROMPT, model="both")

        def ask(mine):
            for task, want in mine:
                got = s.text(PROMPT, model=task)
                if got != (want or both):
                    wrong.append((task, got))

        threads = [threading.Thread(target=ask, args=(jobs[k::6],)) for k in range(6)]
        for t in threads:
            t.start()
        most = 0
        while any(t.is_alive() for t in threads):
            most = max(most, s.metric("cpet_modules_resident_bytes"))
            time.sleep(0.02)
        for t in threads:
            t.join()
        assert not wrong, wrong
        m = s.metrics()
        assert 0 < most <= 2 * each + each // 2 and m["cpet_module_evictions_total"] > N and m["cpet_module_loads_total"] > N, (most, each)
        assert m["cpet_requests_waiting_for_modules"] == 0 and m["cpet_modules_resident"] == 2
        s.module("m0", 0, 200, "?pinned=1")
        wait_until(lambda: s.show("modules", "m0")["residency"] == "resident", "the pinned one is loaded")
        for i in range(1, N):
            assert s.text(PROMPT, model=f"t{i}") == e[f"m{i}"]
        assert s.show("modules", "m0")["resident"] and s.show("modules", "m0")["pinned"]
    d = work()
    with Server("--pet-bytes", str(2 * each), *[a for i in range(N) for a in ("--pet", f"p{i}={d}/root/m{i}")]) as s:
        assert any("do not fit into --pet-bytes" in x for x in s.lines), s.lines
        for i in range(N):
            assert s.text(PROMPT, model=f"p{i}") == e[f"m{i}"]


def test_waiting_for_memory():
    """A request that waits for another's memory: its client may leave, its time may run out, the others go on."""
    with Admin() as s:
        s.adm("PUT", "/admin/v1/modules/m", {"path": "m0"}, 201)
        each = s.adm("PUT", "/admin/v1/modules/m", {"path": "m0"}, 200)["resident_bytes"]
    with Admin("--pet-bytes", str(each + each // 2), "--inject-delay-ms", "5", "--request-timeout-ms", "1500") as s:
        for i in (0, 1):
            s.module(f"m{i}", i)
            s.task(f"t{i}", f"m{i}")
        holder = s.open_stream("/v1/completions", {"model": "t0", "prompt": PROMPT, "max_tokens": 400, "ignore_eos": True})
        hr = holder.getresponse()
        hr.readline()
        leaver = s.open_stream("/v1/completions", {"model": "t1", "prompt": PROMPT, "max_tokens": 4})
        wait_until(lambda: s.metric("cpet_requests_waiting_for_modules") == 1, "one waits")
        leaver.sock.close()
        leaver.close()
        wait_until(lambda: s.metric("cpet_requests_waiting_for_modules") == 0, "and is forgotten")
        start = time.time()
        assert len(s.text(PROMPT)) > 0 and s.metric("cpet_modules_resident") == 1  # the backbone's do not wait
        status, r = s.post("/v1/completions", {"model": "t1", "prompt": PROMPT, "max_tokens": 4})
        assert status in (200, 504) and time.time() - start < 4, (status, r)
        hr.read()
        holder.close()
        assert s.text(PROMPT, model="t1") == expected()["m1"]


def test_sigterm_during_writes():
    with scratch() as d:
        done = []
        with Admin(data=f"{d}/data") as s:
            s.module("m0", 0)

            def put(k):
                try:
                    for i in range(1000):
                        status, _, text = s.request("PUT", f"/admin/v1/tasks/t{k}-{i}", {"modules": ["m0"]}, admin=True)
                        if status != 201:
                            assert status == 503, (status, text)
                            return
                        done.append(f"t{k}-{i}")
                except (OSError, http.client.HTTPException):
                    pass

            threads = [threading.Thread(target=put, args=(k,)) for k in range(4)]
            for t in threads:
                t.start()
            wait_until(lambda: len(done) > 10, "some writes")
            assert s.stop() == 0
            for t in threads:
                t.join()
        with Admin(data=f"{d}/data") as s:
            assert set(done) <= set(s.names("tasks"))


def test_many_tasks():
    """Rows only are read at start, and a write costs the same whatever is there."""
    with scratch() as d:
        with Admin(data=f"{d}/data") as s:
            for i in range(N):
                s.module(f"m{i}", i)
            hashes = [s.show("modules", f"m{i}")["hash"] for i in range(N)]
            start = time.time()
            for i in range(150):
                s.adm("PUT", f"/admin/v1/tasks/task-{i}", {"modules": [hashes[i % N]]}, 201)
            each = (time.time() - start) / 150
        start = time.time()
        with Admin(data=f"{d}/data") as s:
            assert len(s.names("tasks")) == 151 and s.metric("cpet_modules_resident") == 0
            assert s.text(PROMPT, model="task-149") == expected()[f"m{149 % N}"]
        assert each < 0.25, f"{each:.3f} s a task"


if __name__ == "__main__":
    run([f for n, f in list(globals().items()) if n.startswith("test_")], "test_admin")
