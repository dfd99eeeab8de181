#!/usr/bin/env python3
"""Fields of completions and chats that go together: log-probabilities of the prompt, token ids, best_of, and errors that name
the field the client sent. Needs CPETD_MODEL and build/cpetd."""
from cpetd_run import Server, run

shared = None
PROMPT = "The capital of France is"
CHAT = [{"role": "user", "content": "Say hi"}]


def server():
    global shared
    if shared is None:
        shared = Server()
    return shared


def chat(**kw):
    status, r = server().post("/v1/chat/completions", {"model": "base", "messages": CHAT, "max_tokens": 4, **kw})
    assert status == 200, r
    return r


def test_prompt_logprobs():
    echo = server().complete(PROMPT, echo=True, logprobs=3, max_tokens=2)["choices"][0]["logprobs"]
    r = server().complete(PROMPT, prompt_logprobs=3, return_token_ids=True, max_tokens=2, n=2)
    n = r["usage"]["prompt_tokens"]
    for c in r["choices"]:
        ids, scores = c["prompt_token_ids"], c["prompt_logprobs"]
        assert len(ids) == len(scores) == n and scores[0] is None
        for i in range(1, n):
            own = scores[i][str(ids[i])]
            assert next(iter(scores[i])) == str(ids[i])
            assert own["logprob"] == echo["token_logprobs"][i] and own["decoded_token"] == echo["tokens"][i]
            by_rank = sorted(scores[i].values(), key=lambda s: s["rank"])
            assert [s["rank"] for s in by_rank[:3]] == [1, 2, 3] and 3 <= len(by_rank) <= 4
            assert [s["logprob"] for s in by_rank] == sorted((s["logprob"] for s in by_rank), reverse=True)
            assert {s["decoded_token"]: s["logprob"] for s in by_rank} == echo["top_logprobs"][i]
    # Alone, without a token generated, and together with an echo of its own number of alternatives.
    c = server().complete(PROMPT, prompt_logprobs=0, max_tokens=0)
    assert c["choices"][0]["text"] == "" and c["usage"]["completion_tokens"] == 0
    assert all(len(s) == 1 for s in c["choices"][0]["prompt_logprobs"][1:])
    both = server().complete(PROMPT, prompt_logprobs=5, echo=True, logprobs=3, max_tokens=2)["choices"][0]
    assert both["logprobs"] == echo and 5 <= len(both["prompt_logprobs"][1]) <= 6
    quiet = server().complete(PROMPT, prompt_logprobs=5, logprobs=0, max_tokens=2)["choices"][0]
    assert len(quiet["logprobs"]["tokens"]) == 2 and quiet["prompt_logprobs"] == both["prompt_logprobs"]
    r = chat(prompt_logprobs=1, return_token_ids=True)
    assert len(r["prompt_logprobs"]) == len(r["prompt_token_ids"]) == r["usage"]["prompt_tokens"]
    two = server().complete([PROMPT, "One two"], prompt_logprobs=3, max_tokens=1, n=2)["choices"]
    assert two[0]["prompt_logprobs"] == two[1]["prompt_logprobs"] == scores and len(two[3]["prompt_logprobs"]) == 2


def test_token_ids():
    r = server().complete(PROMPT, return_token_ids=True, max_tokens=5, logprobs=1, return_tokens_as_token_ids=True)
    c = r["choices"][0]
    assert c["logprobs"]["tokens"] == ["token_id:%d" % i for i in c["token_ids"]] and len(c["token_ids"]) == 5
    assert all(t in m for t, m in zip(c["logprobs"]["tokens"], c["logprobs"]["top_logprobs"]))
    assert server().text(c["prompt_token_ids"], max_tokens=5) == c["text"]
    assert "token_ids" not in server().complete(PROMPT)["choices"][0]
    got, prompts = [], 0
    for e in server().stream("/v1/completions", {"model": "base", "prompt": PROMPT, "max_tokens": 5, "temperature": 0, "return_token_ids": True}):
        for x in e["choices"] if e != "[DONE]" else []:
            got += x["token_ids"]
            if "prompt_token_ids" in x:
                prompts += 1
                assert x["prompt_token_ids"] == c["prompt_token_ids"]
    assert got == c["token_ids"] and prompts == 1
    whole = chat(return_token_ids=True, seed=1, n=2)
    got, prompts = [[], []], 0
    for e in server().stream("/v1/chat/completions", {"model": "base", "messages": CHAT, "max_tokens": 4, "seed": 1, "n": 2, "return_token_ids": True}):
        if e == "[DONE]":
            break
        if "prompt_token_ids" in e:
            prompts += 1
            assert e["prompt_token_ids"] == whole["prompt_token_ids"]
        for x in e["choices"]:
            got[x["index"]] += x.get("token_ids", [])
    assert got == [x["token_ids"] for x in whole["choices"]] and prompts == 1
    named = chat(seed=1, logprobs=True, top_logprobs=1, return_tokens_as_token_ids=True, return_token_ids=True)["choices"][0]
    assert [t["token"] for t in named["logprobs"]["content"]] == ["token_id:%d" % i for i in named["token_ids"]]


def test_best_of():
    for prompt in (PROMPT, [PROMPT, "Once upon a time"]):
        every = server().complete(prompt, n=5, temperature=1, seed=3, max_tokens=8, logprobs=0, stop="a")
        best = server().complete(prompt, best_of=5, n=2, temperature=1, seed=3, max_tokens=8, stop="a")
        prompts = len(prompt) if isinstance(prompt, list) else 1
        want = []
        for p in range(prompts):
            mean = [(sum(c["logprobs"]["token_logprobs"]) / len(c["logprobs"]["token_logprobs"]), c["text"]) for c in every["choices"][5 * p:5 * p + 5]]
            want += [t for _, t in sorted(mean, key=lambda m: -m[0])[:2]]
        assert [c["text"] for c in best["choices"]] == want
        assert [c["index"] for c in best["choices"]] == list(range(2 * prompts))
        assert best["choices"][0]["logprobs"] is None
        assert best["usage"]["completion_tokens"] == every["usage"]["completion_tokens"]
    same = server().complete(PROMPT, best_of=2, n=2, temperature=1, seed=3)["choices"]
    assert same == server().complete(PROMPT, n=2, temperature=1, seed=3)["choices"]


def test_errors_name_the_field():
    ids = [5] * 8190
    for path, body, param, says in (
        ("completions", {"prompt": "a", "max_tokens": 9000}, "max_tokens", "max_tokens is 9000"),
        ("completions", {"prompt": ids}, "prompt", "by default"),
        ("completions", {"prompt": ids * 2}, "prompt", "16380 tokens"),
        ("completions", {"prompt": "a " * 9000}, "prompt", "context"),
        ("chat/completions", {"messages": CHAT, "max_tokens": 9000}, "max_tokens", "max_tokens is 9000"),
        ("chat/completions", {"messages": CHAT, "max_completion_tokens": 9000}, "max_completion_tokens", "max_completion_tokens is 9000"),
        ("chat/completions", {"messages": [{"role": "user", "content": "a " * 9000}]}, "messages", "context"),
    ):
        status, r = server().post("/v1/" + path, {"model": "base", **body})
        e = r["error"]
        assert status == 400 and e["param"] == param and says in e["message"] and e["code"] == "context_length_exceeded", (param, r)
    status, r = server().post("/v1/completions", {"model": "base", "prompt": [[5] * 8000] * 7, "prompt_logprobs": 20})
    assert status == 400 and r["error"]["param"] == "prompt_logprobs", r
    status, r = server().post("/v1/completions", {"model": "é" * 128, "prompt": "a"})
    assert status == 404 and "\ufffd" not in r["error"]["message"] and "é" * 100 in r["error"]["message"]
    status, r = server().post("/v1/completions", {"model": "x" + "é" * 127, "prompt": "a"})
    assert status == 404 and "\ufffd" not in r["error"]["message"] and r["error"]["message"].count("é") == 99


run([test_prompt_logprobs, test_token_ids, test_best_of, test_errors_name_the_field], "fields")
