#!/usr/bin/env python3
"""cpetd through the openai client. Needs CPETD_MODEL and build/cpetd (or CPETD), and a Python that has `openai`."""
import sys

from cpetd_run import SKIP, Server, Skip, model, run, wait_until

try:
    import openai
except ImportError:
    print("skip openai: this Python has no openai client")
    sys.exit(SKIP)

shared = None


def server():
    global shared
    if shared is None:
        shared = Server()
    return shared


def client(s=None, **kw):
    s = s or server()
    return openai.OpenAI(base_url="http://127.0.0.1:%d/v1" % s.port, api_key="none", max_retries=0, timeout=120, **kw)


def test_models():
    c = client()
    assert [m.id for m in c.models.list()] == ["base"]
    assert c.models.retrieve("base").id == "base"


def test_completion():
    r = client().completions.create(model="base", prompt="The capital of France is", max_tokens=6, temperature=0, logprobs=2)
    assert "Paris" in r.choices[0].text and r.choices[0].finish_reason == "length"
    assert r.usage.completion_tokens == 6 and len(r.choices[0].logprobs.tokens) == 6


def test_n_and_stream():
    c = client()
    kw = dict(model="base", prompt="Once", n=3, seed=9, temperature=1, max_tokens=10)
    whole = {x.index: x.text for x in c.completions.create(**kw).choices}
    got = {}
    for e in c.completions.create(**kw, stream=True):
        for x in e.choices:
            got[x.index] = got.get(x.index, "") + x.text
    assert got == whole and len(set(whole.values())) == 3


def chat(**kw):
    body = dict(model="base", messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0,
                max_tokens=24)
    try:
        return client().chat.completions.create(**{**body, **kw})
    except openai.BadRequestError as e:
        if "no chat template" in str(e):
            raise Skip("the model has no chat template")
        raise


def test_chat():
    r = chat(logprobs=True, top_logprobs=3)
    assert "Paris" in r.choices[0].message.content and r.choices[0].message.role == "assistant"
    assert len(r.choices[0].logprobs.content) == r.usage.completion_tokens
    assert len(r.choices[0].logprobs.content[0].top_logprobs) == 3


def test_chat_stream():
    whole = chat()
    text, role, finish, usage = "", None, None, None
    for e in chat(stream=True, stream_options={"include_usage": True}):
        usage = e.usage or usage
        for x in e.choices:
            role = x.delta.role or role
            text += x.delta.content or ""
            finish = x.finish_reason or finish
    assert (text, role, finish) == (whole.choices[0].message.content, "assistant", whole.choices[0].finish_reason)
    assert usage == whole.usage


def test_stop():
    r = chat(stop=["Paris"])
    assert "Paris" not in r.choices[0].message.content and r.choices[0].finish_reason == "stop"


def expect(error, f, **about):
    try:
        f()
    except error as e:
        for k, v in about.items():
            assert getattr(e, k) == v, (k, getattr(e, k), v)
        return
    raise AssertionError("no " + error.__name__)


def test_errors():
    c = client()
    ask = lambda **kw: lambda: c.completions.create(**{"model": "base", "prompt": "x", "max_tokens": 1, **kw})
    expect(openai.NotFoundError, ask(model="none"), param="model", code="model_not_found")
    expect(openai.BadRequestError, ask(temperature=7), param="temperature", type="invalid_request_error")
    expect(openai.BadRequestError, ask(suffix="y"), param="suffix")
    expect(openai.BadRequestError, ask(max_tokens=500000), code="context_length_exceeded")
    expect(openai.BadRequestError, lambda: chat(tools=[{"type": "function", "function": {"name": "f"}}]), param="tools")


def test_form():
    """The client's own parse(): a pydantic model becomes a strict schema, and the answer one of it."""
    import typing

    import pydantic

    class Item(pydantic.BaseModel):
        kind: typing.Literal["return", "repair"]
        count: int = pydantic.Field(ge=0, le=99)

    class Order(pydantic.BaseModel):
        items: list[Item] = pydantic.Field(max_length=3)
        urgent: bool
        note: typing.Optional[typing.Literal["none", "call back"]]

    ask = [{"role": "user", "content": "The kettle is broken, please repair it soon."}]
    for t in (0, 1):
        r = client().chat.completions.parse(model="base", messages=ask, response_format=Order, temperature=t, seed=1, max_tokens=200)
        assert r.choices[0].finish_reason == "stop" and isinstance(r.choices[0].message.parsed, Order), r
    r = client().chat.completions.create(model="base", messages=ask, max_tokens=20, extra_body={"structured_outputs": {"choice": ["yes", "no"]}})
    assert r.choices[0].message.content in ("yes", "no") and r.choices[0].finish_reason == "stop"


def test_vllm_fields():
    r = client().completions.create(model="base", prompt="One two three", max_tokens=2, best_of=3, temperature=1,
                                    extra_body={"prompt_logprobs": 1, "return_token_ids": True})
    c = r.choices[0]
    assert len(c.prompt_logprobs) == len(c.prompt_token_ids) == r.usage.prompt_tokens and len(c.token_ids) == 2
    assert c.prompt_logprobs[1][str(c.prompt_token_ids[1])]["rank"] >= 1


def test_busy():
    with Server("--max-tenant", "1") as s:
        c = client(s)
        stream = c.completions.create(model="base", prompt="Once", max_tokens=3000, stream=True, extra_body={"ignore_eos": True})
        next(iter(stream))
        expect(openai.RateLimitError, lambda: c.completions.create(model="base", prompt="x", max_tokens=1))
        stream.close()


def test_leaves_midway():
    s = server()
    free = s.metric("cpet_kv_pages_free")
    stream = client().completions.create(model="base", prompt="Once", max_tokens=3000, stream=True,
                                         extra_body={"ignore_eos": True})
    for i, _ in enumerate(stream):
        if i == 3:
            break
    assert s.metric("cpet_kv_pages_free") < free
    stream.close()
    wait_until(lambda: s.metric("cpet_kv_pages_free") == free, "the pages back", 5)


if __name__ == "__main__":
    model()
    run([test_models, test_completion, test_n_and_stream, test_chat, test_chat_stream, test_stop, test_errors, test_form,
         test_vllm_fields, test_busy, test_leaves_midway], "e2e/openai")
