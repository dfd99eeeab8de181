#!/usr/bin/env python3
"""Answers with a form, end to end: JSON, schemas, regular expressions, choices. Needs CPETD_MODEL and build/cpetd.

The schemas here use only what `valid` below checks; test_structured_oracle.py compares with jsonschema."""
import json
import re
import threading
import time

from cpetd_run import Server, run

ORDER = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "order": {"type": "integer", "minimum": 0, "maximum": 999999},
        "urgent": {"type": "boolean"},
        "kind": {"enum": ["return", "repair", "question"]},
        "items": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
        "note": {"anyOf": [{"type": "string", "maxLength": 20}, {"type": "null"}]},
    },
    "required": ["name", "order", "urgent", "kind", "items", "note"],
    "additionalProperties": False,
}
MAIL = "Hello, this is Maria Lopez from Lisbon. The kettle does not switch on. My order number is 48213. Please hurry."
CHAT = [{"role": "user", "content": MAIL}]
shared = None


def server():
    global shared
    if shared is None:
        shared = Server()
    return shared


def valid(v, s):
    """Whether v is valid against s, a schema of the few keywords used here."""
    if "anyOf" in s:
        return any(valid(v, x) for x in s["anyOf"])
    if "enum" in s:
        return v in s["enum"]
    kind = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "null": type(None), "number": (int, float)}[s["type"]]
    if not isinstance(v, kind) or (isinstance(v, bool) and s["type"] != "boolean"):
        return False
    if s["type"] == "object":
        return set(s.get("required", [])) <= set(v) <= set(s["properties"]) and all(valid(v[k], s["properties"][k]) for k in v)
    if s["type"] == "array":
        return len(v) <= s.get("maxItems", 1 << 30) and all(valid(x, s["items"]) for x in v)
    if s["type"] == "string":
        return len(v) <= s.get("maxLength", 1 << 30)
    return s.get("minimum", -1e99) <= v <= s.get("maximum", 1e99) if s["type"] == "integer" else True


def fmt(schema):
    return {"type": "json_schema", "json_schema": {"name": "order", "schema": schema, "strict": True}}


def chat(**kw):
    status, r = server().post("/v1/chat/completions", {"model": "base", "messages": CHAT, "max_tokens": 250, **kw})
    assert status == 200, r
    return r


def check(r, least):
    """Every answer that came to its end is an order; at least so many did."""
    whole = 0
    for text, finish in texts(r):
        assert text[:1] == "{", text
        if finish != "stop":
            continue
        got = json.loads(text)
        assert valid(got, ORDER), text
        assert list(got) == list(ORDER["properties"]), text  # the keys come in the schema's order
        whole += 1
    assert whole >= least, (whole, list(texts(r)))


def texts(r):
    for c in r["choices"]:
        yield (c["message"]["content"] if "message" in c else c["text"]), c["finish_reason"]


def test_schema():
    for kw, least in (({"temperature": 0}, 1), ({"temperature": 1, "n": 4, "seed": 1}, 2), ({"temperature": 1.5, "n": 4, "seed": 2}, 2)):
        check(chat(response_format=fmt(ORDER), max_tokens=400, **kw), least)
    as_text, as_object = (server().complete(MAIL, structured_outputs={"json": s}, max_tokens=400) for s in (json.dumps(ORDER), ORDER))
    assert as_text["choices"] == as_object["choices"]
    check(as_text, 1)


def test_json_object():
    whole = 0
    for kw in ({"temperature": 0}, {"temperature": 1, "n": 4, "seed": 3}):
        for text, finish in texts(chat(response_format={"type": "json_object"}, max_tokens=400, **kw)):
            assert text.lstrip()[:1] == "{", text
            if finish == "stop":
                assert isinstance(json.loads(text), dict), text
                whole += 1
    assert whole, "no answer came to its end in 400 tokens"
    r = server().complete("A JSON object:", structured_outputs={"json_object": True}, max_tokens=4)
    assert r["choices"][0]["finish_reason"] == "length" and r["usage"]["completion_tokens"] == 4


def test_regex_and_choice():
    for kw in ({"temperature": 0}, {"temperature": 1.5, "n": 8, "seed": 4}):
        for text, finish in texts(server().complete("The date is", structured_outputs={"regex": r"20[0-9]{2}-(0[1-9]|1[0-2])-[0-3][0-9]"}, **kw)):
            assert finish == "stop" and re.fullmatch(r"20[0-9]{2}-(0[1-9]|1[0-2])-[0-3][0-9]", text), text
        for text, finish in texts(server().complete("Of which kind?", structured_outputs={"choice": ["billing", "shipping", "ship it", "épée"]}, **kw)):
            assert finish == "stop" and text in ["billing", "shipping", "ship it", "épée"], text
    r = server().complete("a", structured_outputs={"regex": "b+"}, max_tokens=5)  # ends where it may, or at its limit
    assert re.fullmatch("b+", r["choices"][0]["text"])


def test_streams():
    body = {"model": "base", "messages": CHAT, "max_tokens": 250, "response_format": fmt(ORDER), "temperature": 1, "seed": 7, "n": 3}
    want = list(texts(chat(**body)))
    got, finish = [""] * 3, [None] * 3
    for e in server().stream("/v1/chat/completions", body):
        if e == "[DONE]":
            break
        for c in e["choices"]:
            got[c["index"]] += c["delta"].get("content") or ""
            finish[c["index"]] = c["finish_reason"] or finish[c["index"]]
    assert list(zip(got, finish)) == want, (got, finish, want)


def test_with_other_fields():
    """Log-probabilities, ids, best_of, stop strings, min_tokens, bias and penalties beside a form."""
    so = {"structured_outputs": {"json": ORDER}}
    r = server().complete(MAIL, **so, max_tokens=250, logprobs=2, return_token_ids=True)
    c = r["choices"][0]
    assert len(c["logprobs"]["tokens"]) == r["usage"]["completion_tokens"] == len(c["token_ids"])
    assert "".join(c["logprobs"]["tokens"]) == c["text"]  # the end token is not shown
    check(server().complete(MAIL, **so, max_tokens=400, temperature=1, seed=1, best_of=4, n=2), 1)
    text, finish = next(texts(server().complete(MAIL, **so, max_tokens=250, stop="order")))
    assert finish == "stop" and "order" not in text and text[:1] == "{"
    # The form ends the answer, whatever min_tokens says; until then no end of text comes.
    text, finish = next(texts(server().complete(MAIL, structured_outputs={"choice": ["yes", "no"]}, min_tokens=9)))
    assert finish == "stop" and text in ("yes", "no")
    r = server().complete("a", structured_outputs={"regex": "(ab)*"}, min_tokens=8, max_tokens=12)
    assert r["usage"]["completion_tokens"] >= 8 and re.fullmatch("(ab)*a?", r["choices"][0]["text"])
    # A bias cannot bring in what the form forbids, nor drive out the last that it allows.
    ids = server().complete("a", structured_outputs={"choice": ["yes"]}, return_token_ids=True)["choices"][0]["token_ids"]
    bias = {str(i): -100 for i in ids} | {"100": 100}
    kw = {"presence_penalty": 2, "frequency_penalty": 2, "repetition_penalty": 2}
    assert next(texts(server().complete("a", structured_outputs={"choice": ["yes"]}, logit_bias=bias, **kw)))[0] == "yes"


def test_errors():
    ok = {"model": "base", "prompt": "a"}
    deep = {"type": "object"}
    for _ in range(20):
        deep = {"type": "object", "properties": {"a": deep}}
    for body, param, says in (
        ({"response_format": fmt({"type": "nothing"})}, "response_format", "type"),
        ({"response_format": fmt({"$ref": "#/nowhere"})}, "response_format", "nowhere"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs", "JSON"),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs", ""),
        ({"structured_outputs": {"regex": "(?=a)b"}}, "structured_outputs", ""),
        ({"structured_outputs": {"grammar": "root ::= x"}}, "structured_outputs", "grammar"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "only one"),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos", "combined"),
        ({"response_format": fmt(deep)}, "", "nested"),
        ({"guided_json": {}}, "guided_json", "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "prompt": [5] * 9000}, "prompt", "context"),
    ):
        status, r = server().post("/v1/completions", {**ok, **body})
        assert status == 400 and (r["error"]["param"] or "") == param and says in r["error"]["message"], (body, status, r)
    assert server().text("a", max_tokens=1) is not None


def test_isolation():
    """Requests with and without a form, all at once, give what each gives alone."""
    bodies = []
    for i in range(12):
        b = {"prompt": MAIL + " %d" % i, "max_tokens": 60, "temperature": i % 3 / 2, "seed": i, "logprobs": 1}
        form = [{}, {"structured_outputs": {"json": ORDER}}, {"response_format": {"type": "json_object"}}, {"structured_outputs": {"regex": "[a-z ]{20,40}"}}][i % 4]
        bodies.append({**b, **form})
    alone = [server().complete(**b)["choices"] for b in bodies]
    out = [None] * len(bodies)

    def ask(i):
        out[i] = server().complete(**bodies[i])["choices"]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(bodies))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i, a in enumerate(alone):
        assert out[i] == a, (i, out[i], a)


def test_preemption():
    """A preempted answer goes on where its form stood."""
    with Server("--kv-bytes", "10M", "--max-context", "406") as s:
        schema = {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 40, "maxItems": 40}
        body = {"prompt": "Colours:", "max_tokens": 200, "temperature": 1, "n": 2, "structured_outputs": {"json": schema}}
        want = [s.complete(seed=i, **body)["choices"] for i in range(4)]
        out = [None] * 4

        def ask(i):
            out[i] = s.complete(seed=i, **body)["choices"]

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert out == want
        ended = [c for r in out for c in r if c["finish_reason"] == "stop"]
        assert len(ended) >= 2 and all(len(json.loads(c["text"])) == 40 for c in ended), out
        print("  %d preemptions" % s.metric("cpet_preemptions_total"))
        assert s.metric("cpet_preemptions_total") > 0


def test_health_while_compiling():
    """A large schema is compiled on a worker: the loop answers meanwhile."""
    big = {"type": "object", "additionalProperties": False, "properties": {"k%d" % i: {"type": "string", "pattern": "^[a-z]{1,%d}$" % (i % 60 + 1)} for i in range(300)}}
    slow, stop = [0.0], threading.Event()

    def probe():
        while not stop.is_set():
            t = time.time()
            assert server().get("/health")[0] == 200
            slow[0] = max(slow[0], time.time() - t)
            time.sleep(0.005)

    t = threading.Thread(target=probe)
    t.start()
    status, r = server().post("/v1/completions", {"model": "base", "prompt": "a", "max_tokens": 2, "structured_outputs": {"json": big}})
    stop.set()
    t.join()
    assert status in (200, 400), r
    assert slow[0] < 0.25, "health took %.3f s" % slow[0]


def test_forms_in_memory():
    """Large forms of live requests are bounded in memory, each request's counting; small ones pass."""
    large = {"type": "object", "required": ["k0"],
             "properties": {"k%d" % i: {"type": "string", "minLength": 1900 - i, "pattern": "^[a-z%d]{1,%d}$" % (i % 10, 2000 + i)} for i in range(2)}}
    out, s = [], server()

    def ask(form, n):
        out.append(s.post("/v1/completions", {"model": "base", "prompt": "a", "max_tokens": n, "structured_outputs": form})[0])

    ask({"json": large}, 1)
    assert out == [200], out
    threads = [threading.Thread(target=ask, args=({"json": large}, 60)) for _ in range(80)]
    threads += [threading.Thread(target=ask, args=({"choice": ["yes", "no"]}, 2)) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert set(out) == {200, 429} and out.count(200) > 8 + 20, out
    ask({"json": large}, 1)
    assert out[-1] == 200


run([test_schema, test_json_object, test_regex_and_choice, test_streams, test_with_other_fields, test_errors, test_isolation, test_preemption,
     test_health_while_compiling, test_forms_in_memory], "structured")
