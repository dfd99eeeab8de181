#!/usr/bin/env python3
"""Tokens, embeddings, scores and the OpenAPI document, end to end. Needs CPETD_MODEL and build/cpetd (or CPETD).

The openai client asks for embeddings too where this Python has it. Vectors and scores beside transformers:
test_endpoints_oracle.py.
"""
import base64
import hashlib
import json
import math
import os
import re
import struct
import threading

from cpetd_run import ROOT, Server, Skip, run, scratch, write_lora

CHAT = [{"role": "user", "content": "Where is my kettle?"}]
shared = None
folder = None


def server():
    global shared, folder
    if shared is None:
        folder = scratch()
        shared = Server("--pet", "lora=" + write_lora(os.path.join(folder.name, "lora"), 3, 4, size=0.3), "--public-metrics",
                        "--prefill-chunk", "16")
    return shared


def ask(path, status=200, s=None, **body):
    got, r = (s or server()).post(path, body)
    assert got == status, (got, r)
    return r


def refused(path, param, says, status=400, **body):
    e = ask(path, status, **body)["error"]
    assert e["param"] == param and says in e["message"], e


def document():
    with open(os.path.join(ROOT, "proto/openapi.json"), encoding="utf-8") as f:
        return json.load(f)


# ---- tokens ----

def test_tokenize():
    text = "Where is my kettle? <|im_end|> wörld \U0001F600"
    r = ask("/tokenize", prompt=text, return_token_strs=True)
    assert r["count"] == len(r["tokens"]) == len(r["token_strs"]) and r["max_model_len"] > 0
    assert "<|im_end|>" in r["token_strs"] or r["count"] > 10
    assert ask("/detokenize", tokens=r["tokens"])["prompt"] == text
    assert ask("/tokenize", prompt=text)["token_strs"] is None
    assert ask("/tokenize", prompt="") == {"count": 0, "max_model_len": r["max_model_len"], "tokens": [], "token_strs": None}
    assert ask("/detokenize", tokens=[]) == {"prompt": ""}
    # what a completion reads
    status, whole = server().post("/v1/completions", {"model": "base", "prompt": text, "max_tokens": 1, "return_token_ids": True})
    assert status == 200 and whole["choices"][0]["prompt_token_ids"] == r["tokens"]


def test_tokenize_chat():
    s = server()
    status, r = s.post("/tokenize", {"model": "lora", "messages": CHAT})
    if status == 400 and "no chat template" in r["error"]["message"]:
        raise Skip("the model has no chat template")
    status, whole = s.post("/v1/chat/completions", {"model": "lora", "messages": CHAT, "max_tokens": 1, "return_token_ids": True})
    assert status == 200 and whole["prompt_token_ids"] == r["tokens"]
    bare = ask("/tokenize", messages=CHAT, add_generation_prompt=False)
    assert bare["count"] < r["count"] and r["tokens"][:bare["count"]] == bare["tokens"]


def test_tokenize_large():
    """More tokens than the context holds, on a worker; other requests go on."""
    text = "a kettle and " * 20000
    done = []
    t = threading.Thread(target=lambda: done.append(ask("/tokenize", prompt=text, return_token_strs=True)))
    t.start()
    assert server().get("/health")[0] == 200
    t.join()
    (r,) = done
    assert r["count"] > r["max_model_len"] and "".join(r["token_strs"]).replace("Ġ", " ") == text
    assert ask("/detokenize", tokens=r["tokens"][:100000])["prompt"] == text[:len(text) * 100000 // r["count"]] or r["count"] > 100000


def test_tokens_refused():
    refused("/tokenize", "prompt", "required")
    refused("/tokenize", "model", "does not exist", 404, model="nobody", prompt="a")
    refused("/detokenize", "tokens", "from 0 to", tokens=[1 << 30])
    refused("/tokenize", "tools", "not supported", messages=CHAT, tools=[])
    refused("/detokenize", "spaces", "unknown field", tokens=[1], spaces=1)


def test_tokenizer_info():
    status, _, data = server().get("/tokenizer_info")
    info = json.loads(data)
    assert status == 200 and info["vocab_size"] > 0 and info["tokenizer_class"]
    for name in ("bos_token", "eos_token", "pad_token"):
        if info[name] is not None:
            assert ask("/tokenize", prompt=info[name], add_special_tokens=False)["count"] == 1, name


def test_remote_tokenizer():
    """The requests of lm-eval's remote tokenizer, in its order."""
    s = server()
    _, _, data = s.get("/tokenizer_info")
    info = json.loads(data)
    assert "eos_token" in info
    r = ask("/tokenize", prompt="test", add_special_tokens=False)
    assert isinstance(r["tokens"], list)
    eot = ask("/tokenize", prompt=info["eos_token"], add_special_tokens=False)["tokens"][0]
    ids = ask("/tokenize", prompt="A kettle is for", add_special_tokens=False)["tokens"] + [eot]
    r = s.complete([ids], max_tokens=1, logprobs=1, seed=1234, echo=True)["choices"][0]["logprobs"]
    assert len(r["tokens"]) == len(ids) + 1 and r["token_logprobs"][0] is None
    for token, top in list(zip(r["token_logprobs"], r["top_logprobs"]))[1:]:
        assert token <= max(top.values())


# ---- embeddings ----

def embed(texts, **kw):
    r = ask("/v1/embeddings", **{"model": "base", "input": texts, **kw})
    assert r["object"] == "list" and [d["index"] for d in r["data"]] == list(range(len(r["data"])))
    return [d["embedding"] for d in r["data"]], r


def unpack(text):
    raw = base64.b64decode(text, validate=True)
    return list(struct.unpack("<%df" % (len(raw) // 4), raw))


def test_embeddings():
    texts = ["Where is my kettle?", "It broke. " * 40, "x"]
    vec, r = embed(texts)
    tokens = sum(ask("/tokenize", prompt=t)["count"] for t in texts)
    assert r["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens} and r["model"] == "base"
    for v in vec:
        assert abs(math.fsum(x * x for x in v) - 1) < 1e-5
    ids = [ask("/tokenize", prompt=t)["tokens"] for t in texts]
    assert embed(ids)[0] == vec and embed(ids[0])[0] == vec[:1] and embed(texts[1])[0] == vec[1:2]
    assert [struct.pack("<%df" % len(v), *v) for v in vec] == [struct.pack("<%df" % len(v), *v) for v in map(unpack, embed(texts, encoding_format="base64")[0])]
    assert embed(texts, model="lora")[0] != vec
    last, _ = embed(texts, pooling="last")
    assert last != vec and last[2] == vec[2]  # one token: its mean is its last


def test_embedding_dimensions():
    (whole,), _ = embed("Where is my kettle?", normalize=False)
    (cut,), _ = embed("Where is my kettle?", dimensions=7)
    norm = math.sqrt(math.fsum(x * x for x in whole[:7]))
    assert len(cut) == 7 and all(abs(a - b / norm) < 1e-5 for a, b in zip(cut, whole))
    refused("/v1/embeddings", "dimensions", "from 1 to %d" % len(whole), model="base", input="a", dimensions=len(whole) + 1)
    assert embed("a", dimensions=len(whole))[0] == embed("a")[0]


def test_embeddings_beside_others():
    """The same bits alone and in a full batch, whatever the chunks of a prompt were."""
    s = server()
    texts = ["kettle " * n for n in (1, 15, 16, 17, 90)]
    alone = {m: [embed(t, model=m, encoding_format="base64")[0][0] for t in texts] for m in ("base", "lora")}
    stop, errors = threading.Event(), []

    def decode(i):
        while not stop.is_set():
            status, r = s.post("/v1/completions", {"model": ("base", "lora")[i % 2], "prompt": "Once", "max_tokens": 16, "seed": i})
            if status != 200:
                errors.append(r)

    threads = [threading.Thread(target=decode, args=(i,)) for i in range(3)]
    for t in threads:
        t.start()
    try:
        for _ in range(2):
            for m in alone:
                assert embed(texts, model=m, encoding_format="base64")[0] == alone[m]
    finally:
        stop.set()
        for t in threads:
            t.join()
    assert not errors, errors[0]


def test_many_embeddings():
    """An answer that is large is written on a worker; a client that leaves meanwhile harms nobody."""
    texts = ["text %d" % i for i in range(96)]
    vec, _ = embed(texts)
    assert len({tuple(v) for v in vec}) == 96
    c = server().open_stream("/v1/embeddings", {"model": "base", "input": texts, "user": None})
    c.close()
    refused("/v1/embeddings", "stream", "not supported", model="base", input="a", stream=True)
    assert embed(texts[3])[0] == vec[3:4]


def test_embeddings_refused():
    refused("/v1/embeddings", "input", "no tokens", model="base", input="") if ask("/tokenize", prompt="")["count"] == 0 else None
    refused("/v1/embeddings", "input", "context holds", model="base", input="kettle " * 20000)
    refused("/v1/embeddings", "input", "context holds", model="base", input=[1] * 100000)
    refused("/v1/embeddings", "model", "does not exist", 404, model="nobody", input="a")


def test_openai_client():
    try:
        import openai
    except ImportError:
        raise Skip("this Python has no openai client")
    c = openai.OpenAI(base_url="http://127.0.0.1:%d/v1" % server().port, api_key="none", max_retries=0, timeout=120)
    r = c.embeddings.create(model="base", input=["Where is my kettle?", "x"])
    want, _ = embed(["Where is my kettle?", "x"])
    assert [len(d.embedding) for d in r.data] == [len(v) for v in want]
    assert all(abs(a - b) < 1e-6 for d, v in zip(r.data, want) for a, b in zip(d.embedding, v))
    assert c.embeddings.create(model="base", input="x", encoding_format="float").data[0].embedding == want[1]
    assert len(c.embeddings.create(model="base", input="x", dimensions=5).data[0].embedding) == 5


# ---- score ----

def test_score():
    s = server()
    first, seconds = "The capital of France is", [" Paris", " a small town in Peru, they say"]
    r = ask("/score", model="base", text_1=first, text_2=seconds)
    assert [d["index"] for d in r["data"]] == [0, 1] and r["data"][0]["mean"] > r["data"][1]["mean"]
    n = 0
    for second, d in zip(seconds, r["data"]):
        ids = ask("/tokenize", prompt=first)["tokens"]
        more = ask("/tokenize", prompt=second, add_special_tokens=False)["tokens"]
        lp = s.complete([ids + more], max_tokens=0, echo=True, logprobs=0)["choices"][0]["logprobs"]["token_logprobs"]
        assert d["tokens"] == len(more) and abs(d["score"] - math.fsum(lp[len(ids):])) < 1e-4
        assert abs(d["mean"] - d["score"] / d["tokens"]) < 1e-5
        n += len(ids) + len(more)
    assert r["usage"] == {"prompt_tokens": n, "total_tokens": n} and r["object"] == "list" and r["model"] == "base"
    pairs = ask("/v1/score", model="base", text_1=[first, first], text_2=seconds)
    assert pairs["data"] == r["data"]
    assert ask("/v1/score", model="lora", text_1=first, text_2=seconds)["data"] != r["data"]
    refused("/score", "text_1", "as many as", model="base", text_1=["a", "b"], text_2=["c", "d", "e"])
    refused("/score", "text_2", "no tokens", model="base", text_1="a", text_2=["b", ""])
    refused("/score", "text_2", "context holds", model="base", text_1="a " * 5000, text_2="b " * 5000)


def test_score_shares_a_beginning():
    """The rows of text_1 are computed once, and what is scored has the same bits as without the cache."""
    first = "A kettle stands on the stove of the house at the end of the road. " * 20
    seconds = [" It is %d years old." % i for i in range(12)]
    with Server("--no-prefix-cache", "--max-rows", "64") as plain, Server("--max-rows", "64") as s:
        body = dict(model="base", text_1=first, text_2=seconds)
        want = ask("/score", s=plain, **body)["data"]
        assert ask("/score", s=s, **body)["data"] == want
        n = ask("/tokenize", s=s, prompt=first)["count"]
        hits, queries = s.metric("vllm:prefix_cache_hits_total"), s.metric("vllm:prefix_cache_queries_total")
        assert 11 * (n - 33) <= hits <= queries, (n, hits, queries)
        assert ask("/v1/score", s=s, **body)["data"] == want


# ---- keys ----

def test_keys_and_tenants():
    with scratch() as d:
        path = os.path.join(d, "keys")
        with open(path, "w") as f:
            f.write("one:%s\n" % hashlib.blake2b(b"key-one", digest_size=32).hexdigest())
        with Server("--api-keys", path, key="key-one") as s:
            assert s.get("/tokenizer_info")[0] == 200
            assert s.post("/tokenize", {"prompt": "a"})[0] == 200
            for p in ("/tokenize", "/detokenize", "/v1/embeddings", "/score", "/v1/score"):
                status, h, _ = s.request("POST", p, {}, headers={"Authorization": "Bearer no"})
                assert status == 401 and h["WWW-Authenticate"] == "Bearer", p
            assert s.get("/tokenizer_info", headers={"Authorization": "Bearer no"})[0] == 401
            assert s.get("/openapi.json", headers={"Authorization": "Bearer no"})[0] == 200


# ---- the OpenAPI document ----

def test_document_is_served():
    status, h, data = server().get("/openapi.json")
    assert status == 200 and h["Content-Type"] == "application/json" and json.loads(data) == document()


def test_paths_are_the_servers():
    with open(os.path.join(ROOT, "server/api.c"), encoding="utf-8") as f:
        source = f.read()
    table = source.split("public_paths[] = {")[1].split("};")[0]
    have = {p: post == "true" for p, post in re.findall(r'\{"(/[^"]+)", R_\w+, (true|false)\}', table)}
    have["/v1/models/{id}"] = False
    described = {p: "post" in item for p, item in document()["paths"].items()}
    assert have == described, (set(have.items()) ^ set(described.items()))


def test_methods():
    s = server()
    for path, item in document()["paths"].items():
        path = path.replace("{id}", "base")
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "QUERY"):
            status, h, data = s.request(method, path, "{}" if method != "GET" else None)
            if method.lower() in item:
                assert status == (200 if method == "GET" else 400), (method, path, status)
            else:
                assert status == 405 and h["Allow"] == ("POST" if "post" in item else "GET, HEAD"), (method, path, status)
                assert json.loads(data)["error"]["type"] == "invalid_request_error"


def test_unknown_fields():
    for path, item in document()["paths"].items():
        if "post" in item:
            refused(path, "whatever", "unknown field", whatever=1)
            refused(path, "tools", "not supported", tools=[])


if __name__ == "__main__":
    run([f for name, f in sorted(globals().items()) if name.startswith("test_")], "endpoints")
