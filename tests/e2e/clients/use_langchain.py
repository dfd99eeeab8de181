"""langchain-openai against cpetd: invoke, batch, stream, async, completions, embeddings, structured output. Argument: the URL."""
import asyncio
import sys

from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel

base = sys.argv[1] + "/v1"
KW = dict(base_url=base, api_key="none", temperature=0)


def chat(model, **kw):
    return ChatOpenAI(model=model, max_retries=0, **{**KW, "max_tokens": 24, **kw})


llm = chat("base")
whole = llm.invoke("What is the capital of France?").content
assert "Paris" in whole
assert "".join(c.content for c in llm.stream("What is the capital of France?")) == whole
print("invoke and stream: the same text")
assert [r.content for r in llm.batch(["What is the capital of France?"] * 4)] == [whole] * 4


async def run():
    return await asyncio.gather(*[chat(m).ainvoke("What is the capital of France?") for m in ("base", "triage")])


a, b = asyncio.run(run())
assert a.content == whole and b.content != whole and a.usage_metadata["output_tokens"] > 0
print("batch and async over two tasks")

assert "Paris" in OpenAI(model="base", max_tokens=5, **KW).invoke("The capital of France is")
print("completions")

v = OpenAIEmbeddings(model="base", base_url=base, api_key="none", check_embedding_ctx_length=False).embed_documents(["a text", "b text"])
assert len(v) == 2 and abs(sum(x * x for x in v[0]) - 1) < 1e-3
print("embeddings")


class City(BaseModel):
    name: str
    population: int


c = chat("base", max_tokens=64).with_structured_output(City, method="json_schema").invoke("Name a city and how many live there.")
assert isinstance(c, City)
print("structured output:", c.model_dump_json())
