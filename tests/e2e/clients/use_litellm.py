"""litellm against cpetd: completions, chats, streams, async ones, several tasks, errors by type. Argument: the URL."""
import asyncio
import sys

import litellm

base = sys.argv[1] + "/v1"
MESSAGE = [{"role": "user", "content": "What is the capital of France?"}]
KW = dict(api_base=base, api_key="none", temperature=0, max_tokens=24)

r = litellm.completion(model="openai/base", messages=MESSAGE, **KW)
whole = r.choices[0].message.content
assert "Paris" in whole and r.usage.completion_tokens > 0, r
text = "".join(c.choices[0].delta.content or "" for c in litellm.completion(model="openai/base", messages=MESSAGE, stream=True, **KW))
assert text == whole, (text, whole)
print("chat and stream: the same text")

parts = list(litellm.completion(model="openai/base", messages=MESSAGE, stream=True, stream_options={"include_usage": True}, **KW))
assert parts[-1].usage.completion_tokens == r.usage.completion_tokens
print("usage in the stream")

t = litellm.text_completion(model="text-completion-openai/base", prompt="The capital of France is", api_base=base, api_key="none",
                            max_tokens=5, temperature=0)
assert "Paris" in t.choices[0].text, t
print("text completion")

answers = {m: litellm.completion(model=f"openai/{m}", messages=MESSAGE, **KW).choices[0].message.content for m in ("extract", "triage")}


async def together():
    rs = await asyncio.gather(*[litellm.acompletion(model=f"openai/{m}", messages=MESSAGE, **KW) for m in ("base", "extract", "triage") * 4])
    return [x.choices[0].message.content for x in rs]


assert asyncio.run(together()) == [whole, answers["extract"], answers["triage"]] * 4
assert len({whole, *answers.values()}) == 3
print("twelve at once over three tasks: each its own text")

for model, kw, error in (("openai/nobody", {}, litellm.NotFoundError), ("openai/base", {"temperature": 9}, litellm.BadRequestError)):
    try:
        litellm.completion(model=model, messages=MESSAGE, **{**KW, **kw})
        raise SystemExit(f"{model} {kw}: no error")
    except error:
        pass
print("errors by type")

e = litellm.embedding(model="openai/base", input=["one text", "another"], api_base=base, api_key="none")
assert len(e.data) == 2 and len(e.data[0]["embedding"]) > 100
print("embeddings")
