#!/usr/bin/env python3
"""Each metric of /metrics moves when what it counts happens, and gauges come back. Needs CPETD_MODEL and build/cpetd (or
CPETD). promtool (Debian package prometheus) lints the exposition where it is installed.

Every family that a server shows must be in MOVES or in STILL below, so that a new metric brings its test with it.
"""
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time

from cpetd_run import Server, Skip, model, run, scratch, wait_until, write_lora

COMP = "/v1/completions"
# Constant once the server runs, or moved by what a test cannot bring about (a step that fails).
STILL = {"cpet_start_time_seconds", "process_start_time_seconds", "process_max_fds", "process_virtual_memory_bytes",
         "cpet_weight_bytes", "cpet_kv_pages", "vllm:cache_config_info", "vllm:max_gpu_lora_adapters",
         "vllm:num_cpu_loaded_lora_adapters", "cpet_step_errors_total", "cpet_tenants", "cpet_modules_budget_bytes", "cpet_admin_operations", "cpet_module_load_errors_total"}
MOVES = {}  # family -> the test that saw it move


def moved(test, *names):
    for n in names:
        MOVES.setdefault(n, test)


def text_of(s):
    status, h, data = s.get("/metrics", admin=True)
    assert status == 200 and h["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8", h
    return data.decode()


def families(text):
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))


def labels(text, name):
    """[({label: value}, value)] of a family's samples."""
    out = []
    for m in re.finditer(r"^%s\{(.*)\} (\S+)$" % re.escape(name), text, re.M):
        out.append(({k: v.replace('\\"', '"').replace("\\\\", "\\") for k, v in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', m[1])}, float(m[2])))
    return out


def sums(metrics):
    out = {}
    for k, v in metrics.items():
        name = k.split("{")[0]
        out[name] = out.get(name, 0) + v
    return out


def test_format():
    with scratch() as d:
        lora = write_lora(os.path.join(d, "p"), 1, 4)
        with Server("--pet", "übung=" + lora, "--pet", "task/2=" + lora) as s:
            s.complete("x", model="übung")
            text = text_of(s)
            for line in text.splitlines():
                assert re.fullmatch(r"# (HELP \S+ .+|TYPE \S+ (gauge|counter|histogram))|[a-z0-9_:]+(\{(\w+=\"[^\"]*\",?)*\})? [-+0-9.e]+", line), line
            samples = [x.rsplit(" ", 1)[0] for x in text.splitlines() if x[0] != "#"]
            assert len(samples) == len(set(samples))
            assert {x["task"] for x, _ in labels(text, "cpet_task_requests_total")} == {"other", "übung"}
            loaded = labels(text, "vllm:lora_adapter_loaded")
            assert [x["adapter_name"] for x, _ in loaded] == ["übung", "task/2"]
            assert set(loaded[0][0]) == {"model_name", "engine", "adapter_name", "level", "pinned", "rank"}
            assert loaded[0][0]["level"] == "gpu" and loaded[0][0]["rank"] == "4" and loaded[0][1] == 1
            want = {"vllm:num_requests_running": "gauge", "vllm:num_requests_waiting": "gauge", "vllm:kv_cache_usage_perc": "gauge",
                    "vllm:cache_config_info": "gauge", "vllm:prompt_tokens_total": "counter", "vllm:generation_tokens_total": "counter",
                    "vllm:num_preemptions_total": "counter", "vllm:request_success_total": "counter",
                    "vllm:time_to_first_token_seconds": "histogram", "vllm:inter_token_latency_seconds": "histogram",
                    "vllm:request_time_per_output_token_seconds": "histogram", "vllm:e2e_request_latency_seconds": "histogram",
                    "vllm:request_queue_time_seconds": "histogram", "vllm:request_inference_time_seconds": "histogram",
                    "vllm:request_prefill_time_seconds": "histogram", "vllm:request_decode_time_seconds": "histogram",
                    "vllm:request_prompt_tokens": "histogram", "vllm:request_generation_tokens": "histogram",
                    "vllm:lora_requests_info": "gauge", "vllm:lora_adapter_loaded": "gauge", "vllm:num_gpu_loaded_lora_adapters": "gauge",
                    "vllm:num_cpu_loaded_lora_adapters": "gauge", "vllm:max_gpu_lora_adapters": "gauge",
                    "vllm:lora_adapter_load_seconds": "histogram"}
            have = families(text)
            assert not {k: v for k, v in want.items() if have.get(k) != v}, have
            c = http.client.HTTPConnection("127.0.0.1", s.admin_port)
            c.request("HEAD", "/metrics")
            r = c.getresponse()
            assert r.status == 200 and r.getheader("Content-Type").startswith("text/plain; version=0.0.4") and r.read() == b""
            assert int(r.getheader("Content-Length")) > 5000
            if shutil.which("promtool"):
                p = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
                other = [x for x in (p.stdout + p.stderr).splitlines() if "metric names should not contain ':'" not in x]
                assert not other, other
            else:
                print("  promtool is not installed: not linted")


def test_requests_count():
    with Server() as s:
        before = sums(s.metrics())
        s.complete("The capital of France is", max_tokens=7, ignore_eos=True)
        s.complete("One two", max_tokens=5, ignore_eos=True, n=2)
        diff = {k: v - before.get(k, 0) for k, v in sums(s.metrics()).items()}
        n_prompt = 5 + 2
        want = {"vllm:prompt_tokens_total": n_prompt, "vllm:generation_tokens_total": 17, "cpet_sampled_tokens_total": 17,
                "vllm:request_success_total": 3, "vllm:e2e_request_latency_seconds_count": 3,
                "vllm:time_to_first_token_seconds_count": 3, "vllm:inter_token_latency_seconds_count": 6 + 4 + 4,
                "vllm:request_time_per_output_token_seconds_count": 3, "vllm:request_queue_time_seconds_count": 2,
                "vllm:request_prefill_time_seconds_count": 3, "vllm:request_decode_time_seconds_count": 3,
                "vllm:request_inference_time_seconds_count": 3, "vllm:request_prompt_tokens_count": 3,
                "vllm:request_prompt_tokens_sum": 5 + 2 + 2, "vllm:request_generation_tokens_count": 3,
                "vllm:request_generation_tokens_sum": 17, "cpet_task_requests_total": 2, "cpet_task_prompt_tokens_total": n_prompt,
                "cpet_task_generation_tokens_total": 17}
        wrong = {k: (diff[k], v) for k, v in want.items() if diff[k] != v}
        assert not wrong, wrong
        assert 12 <= diff["cpet_steps_total"] <= 13 and diff["cpet_step_seconds_count"] == diff["cpet_steps_total"]
        assert n_prompt + 6 + 2 * 4 <= diff["cpet_rows_total"] <= n_prompt + 6 + 2 * 4 + 1
        assert diff["process_cpu_seconds_total"] > 0 and diff["cpet_http_responses_total"] >= 3
        assert 0 < diff["vllm:request_decode_time_seconds_sum"] < diff["vllm:request_inference_time_seconds_sum"] <= diff["vllm:e2e_request_latency_seconds_sum"]
        reasons = {x["finished_reason"]: v for x, v in labels(text_of(s), "vllm:request_success_total")}
        assert reasons == {"stop": 0, "length": 3, "abort": 0}, reasons
        s.complete("The capital of France is", max_tokens=8, stop=["Paris"])
        reasons = {x["finished_reason"]: v for x, v in labels(text_of(s), "vllm:request_success_total")}
        assert reasons["stop"] == 1, reasons
        assert s.post(COMP, {"model": "base", "prompt": "x", "n": 0})[0] == 400
        assert s.post(COMP, {"model": "none", "prompt": "x"})[0] == 404
        after = text_of(s)
        assert sums(s.metrics())["cpet_requests_failed_total"] == 2
        codes = {(x["listener"], x["code"]): v for x, v in labels(after, "cpet_http_responses_total")}
        assert codes["api", "200"] == 3 and codes["api", "400"] == 1 and codes["api", "404"] == 1, codes
        with socket.create_connection(("127.0.0.1", s.port)) as c:
            c.sendall(b"GET / HTTP/2.0\r\nHost: h\r\n\r\n")
            c.recv(1000)
        assert ({"listener": "api", "code": "505"}, 1) in labels(text_of(s), "cpet_http_responses_total")
        strip = lambda k: re.sub(r"_(count|sum|bucket)$", "", k) if re.sub(r"_(count|sum|bucket)$", "", k) in families(after) else k
        moved("requests", *map(strip, want), "process_cpu_seconds_total", "cpet_http_responses_total", "cpet_requests_failed_total",
              "cpet_steps_total", "cpet_step_seconds", "cpet_rows_total")


def test_gauges_up_and_back():
    with scratch() as d:
        lora, other = (write_lora(os.path.join(d, "p%d" % i), i, 4) for i in (1, 2))
        with Server("--pet", "a=" + lora, "--pet", "b=" + other, "--max-seqs", "1", "--max-queue", "1", "--inject-delay-ms", "2") as s:
            names = ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "cpet_requests_active",
                     "cpet_connections", "process_open_fds"]
            idle = sums(s.metrics())
            info = lambda: labels(text_of(s), "vllm:lora_requests_info")[0]
            adapters = lambda: (info()[0]["running_lora_adapters"], info()[0]["waiting_lora_adapters"])
            assert adapters() == ("", "") and abs(info()[1] - time.time()) < 5
            streams = []
            for task, shown in (("a", ("a", "")), ("b", ("a", "b"))):
                streams.append(s.open_stream(COMP, {"model": task, "prompt": "Once", "max_tokens": 4000, "ignore_eos": True}))
                wait_until(lambda: adapters() == shown and s.metric("vllm:num_requests_running") == 1, "the adapters %s" % (shown,))
            assert s.post(COMP, {"model": "b", "prompt": "x"})[0] == 429
            busy = sums(s.metrics())
            assert busy["cpet_requests_rejected_total"] == 1
            up = {n: (idle[n], busy[n]) for n in names if not busy[n] > idle[n]}
            assert not up, up
            assert busy["vllm:num_requests_running"] == 1 and busy["vllm:num_requests_waiting"] == 1
            assert busy["cpet_kv_pages_free"] < idle["cpet_kv_pages_free"] and busy["cpet_step_slots"] == 1
            for c in streams:
                c.close()
            wait_until(lambda: adapters() == ("", ""), "no adapters at work")
            wait_until(lambda: all(sums(s.metrics())[n] <= idle[n] for n in names), "the gauges back")
            back = sums(s.metrics())
            assert back["cpet_kv_pages_free"] == idle["cpet_kv_pages_free"]
            s.complete("x", max_tokens=2)
            assert sums(s.metrics())["cpet_step_slots"] == 0
            aborts = [(x["task"], v) for x, v in labels(text_of(s), "cpet_task_requests_total") if x["outcome"] == "abort" and v]
            assert sorted(aborts) == [("a", 1), ("b", 1)], aborts
            assert ({"model_name": "base", "engine": "0", "finished_reason": "abort"}, 2) in labels(text_of(s), "vllm:request_success_total")
            assert idle["vllm:lora_adapter_load_seconds_count"] == 2 and idle["vllm:lora_adapter_load_seconds_sum"] > 0
            assert idle["cpet_tasks"] == 3 and idle["vllm:max_gpu_lora_adapters"] >= 1
            moved("gauges", *names, "vllm:lora_requests_info", "cpet_requests_rejected_total", "cpet_kv_pages_free", "cpet_step_slots")


def test_modules_and_memory():
    with scratch() as d:
        lora = write_lora(os.path.join(d, "p"), 1, 16)
        with Server() as s:
            none = sums(s.metrics())
        with Server("--pet", "a=" + lora) as s:
            one = sums(s.metrics())
            loads = labels(text_of(s), "vllm:lora_adapter_load_seconds_count")
            assert [x["transition"] for x, _ in loads] == ["load"]
    assert none["cpet_modules_resident"] == 0 == none["vllm:num_gpu_loaded_lora_adapters"] and "vllm:lora_adapter_loaded" not in none
    assert one["cpet_modules_resident"] == 1 == one["vllm:num_gpu_loaded_lora_adapters"] == one["vllm:lora_adapter_loaded"]
    assert none["cpet_modules_resident_bytes"] == 0 and one["cpet_modules_resident_bytes"] > 100000
    assert one["process_resident_memory_bytes"] == one["cpet_resident_bytes"] > 50e6
    assert one["process_virtual_memory_bytes"] > one["process_resident_memory_bytes"]
    moved("modules", "cpet_modules_resident", "cpet_modules_resident_bytes", "vllm:num_gpu_loaded_lora_adapters", "vllm:lora_adapter_loaded",
          "process_resident_memory_bytes", "cpet_resident_bytes", "vllm:lora_adapter_load_seconds")


def test_residency():
    with scratch() as d:
        for i in (1, 2):
            write_lora(os.path.join(d, "m%d" % i), i, 16)
        with Server("--pet", "a=" + os.path.join(d, "m1")) as s:
            size = s.metric("cpet_modules_resident_bytes")
        with Server("--module-root", d, "--pet-bytes", str(int(1.5 * size))) as s:
            def admin(path, body):
                status, _, data = s.request("POST", path, body, admin=True)
                assert status == 200, (status, data)
            state = lambda which: [v for x, v in labels(text_of(s), "cpet_modules") if x["state"] == which][0]
            assert (s.metric("cpet_modules_resident"), s.metric("cpet_tasks"), state("ready")) == (0, 1, 0)
            for i in (1, 2):
                admin("/v1/load_lora_adapter", {"lora_name": "m%d" % i, "lora_path": "m%d" % i})
            assert s.metric("cpet_tasks") == 3 and state("ready") == 2
            s.complete("x", model="m1", max_tokens=1)
            one = s.metric("cpet_module_loads_total")
            assert one >= 1 and s.metric("cpet_modules_resident") == 1 == s.metric("vllm:lora_adapter_loaded")
            busy = s.open_stream(COMP, {"model": "m1", "prompt": "x", "max_tokens": 4000, "ignore_eos": True})
            busy.getresponse().readline()
            other = s.open_stream(COMP, {"model": "m2", "prompt": "x", "max_tokens": 2})
            wait_until(lambda: s.metric("cpet_requests_waiting_for_modules") == 1, "a request that waits for its module", 60)
            assert s.metric("vllm:num_requests_waiting") == 1
            busy.close()
            assert b"[DONE]" in other.getresponse().read()
            assert s.metric("cpet_requests_waiting_for_modules") == 0 == s.metric("vllm:num_requests_waiting")
            assert s.metric("cpet_module_evictions_total") >= 1 and s.metric("cpet_modules_resident") == 1
            assert [x["adapter_name"] for x, _ in labels(text_of(s), "vllm:lora_adapter_loaded")] == ["m2"]
            assert s.metric("vllm:lora_adapter_load_seconds_count") == s.metric("cpet_module_loads_total") > one
            assert 0 < s.metric("cpet_modules_resident_bytes") <= s.metric("cpet_modules_budget_bytes")
            for i in (1, 2):
                admin("/v1/unload_lora_adapter", {"lora_name": "m%d" % i})
            wait_until(lambda: s.metric("cpet_modules_resident") == 0, "the modules gone")
            assert s.metric("cpet_modules_resident_bytes") == 0 and s.metric("cpet_tasks") == 1 and state("ready") == 0
        moved("residency", "cpet_tasks", "cpet_modules", "cpet_module_loads_total", "cpet_module_evictions_total", "cpet_requests_waiting_for_modules")


def test_ready():
    with Server(wait=False) as s:
        assert s.metric("cpet_ready") == 0
        s.wait_line(r"^cpetd: ready$")
        assert s.metric("cpet_ready") == 1
        c = s.open_stream(COMP, {"model": "base", "prompt": "Once", "max_tokens": 4000, "ignore_eos": True})
        c.getresponse().readline()
        s.p.send_signal(signal.SIGTERM)
        wait_until(lambda: s.metric("cpet_ready") == 0, "cpet_ready 0 while draining")
        c.close()
    moved("ready", "cpet_ready")


def test_prefix_cache():
    with Server("--kv-bytes", "10M", "--max-context", "256") as s:
        prompt = "one two three four " * 25
        names = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total", "cpet_kv_pages_kept")
        before = sums(s.metrics())
        n = s.complete(prompt, max_tokens=1)["usage"]["prompt_tokens"]
        first = sums(s.metrics())
        s.complete(prompt, max_tokens=1)
        second = sums(s.metrics())
        assert [before[k] for k in names] == [0, 0, 0]
        assert first[names[0]] == n and second[names[0]] == 2 * n and first[names[1]] == 0 and n - 33 <= second[names[1]] < n, second
        assert first[names[2]] == n // 32
        # pages that are only kept give way to a request that needs all
        s.complete("five " * 200, max_tokens=40, ignore_eos=True)
        s.complete("six seven " * 100, max_tokens=40, ignore_eos=True)
        assert s.metric("cpet_kv_pages_free") == s.metric("cpet_kv_pages")
        moved("prefix cache", *names)


def test_request_log():
    with scratch() as d:
        with Server("--request-log", os.path.join(d, "log")) as s:
            s.complete("x", max_tokens=1)
            wait_until(lambda: s.metric("cpet_request_log_lines_total") == 1, "a line")
    with Server("--request-log", "/dev/full") as s:
        s.complete("x", max_tokens=1)
        wait_until(lambda: s.metric("cpet_request_log_dropped_total") == 1, "a line dropped")
    moved("request log", "cpet_request_log_lines_total", "cpet_request_log_dropped_total")


def test_preemptions():
    with Server("--kv-bytes", "10M", "--max-context", "256") as s:
        assert s.metric("vllm:num_preemptions_total") == 0
        streams = [s.open_stream(COMP, {"model": "base", "prompt": "Once", "max_tokens": 240, "ignore_eos": True}) for _ in range(8)]
        wait_until(lambda: s.metric("cpet_preemptions_total") > 0, "a preemption", 60)
        for c in streams:
            c.close()
        wait_until(lambda: s.metric("cpet_requests_active") == 0, "nothing at work")
        assert s.metric("cpet_preemptions_total") == s.metric("vllm:num_preemptions_total")
    moved("preemptions", "cpet_preemptions_total", "vllm:num_preemptions_total")


def test_grammars():
    with Server() as s:
        for i, (form, hits) in enumerate((("a", 0), ("b", 0), ("a", 1))):
            s.complete("x", structured_outputs={"regex": form})
            result = {x["result"]: v for x, v in labels(text_of(s), "cpet_grammar_lookups_total")}
            assert result == {"hit": hits, "miss": min(i + 1, 2)} and s.metric("cpet_grammars") == min(i + 1, 2)
    moved("grammars", "cpet_grammars", "cpet_grammar_lookups_total")


def test_cap():
    with scratch() as d:
        lora = write_lora(os.path.join(d, "p"), 1, 1)
        tasks = ["t%d" % i for i in range(4)]
        args = [a for t in tasks for a in ("--pet", "%s=%s" % (t, lora))]
        with Server(*args, "--metrics-tasks", "2") as s:
            for t in tasks:
                s.complete("x", model=t, max_tokens=3, ignore_eos=True)
            text = text_of(s)
            ok = {x["task"]: v for x, v in labels(text, "cpet_task_requests_total") if x["outcome"] == "ok"}
            assert ok == {"other": 2, "t0": 1, "t1": 1}, ok
            assert {x["task"]: v for x, v in labels(text, "cpet_task_generation_tokens_total")} == {"other": 6, "t0": 3, "t1": 3}
            assert [(x["adapter_name"], v) for x, v in labels(text, "vllm:lora_adapter_loaded")] == [("t0", 1), ("t1", 1), ("other", 2)]


def test_every_family_is_tested():
    if len(MOVES) < 20:
        raise Skip("only with all the others")
    with Server() as s:
        have = set(families(text_of(s)))
    assert have == set(MOVES) | STILL, (have ^ (set(MOVES) | STILL))


if __name__ == "__main__":
    model()
    run([test_format, test_requests_count, test_gauges_up_and_back, test_modules_and_memory, test_residency, test_ready, test_prefix_cache, test_request_log, test_preemptions, test_grammars,
         test_cap, test_every_family_is_tested], "e2e/metrics")
