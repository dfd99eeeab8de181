"""pydantic-ai against cpetd: run, stream, native structured output. Argument: the URL."""
import asyncio
import sys

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=sys.argv[1] + "/v1", api_key="none")
SETTINGS = {"temperature": 0, "max_tokens": 48}
QUESTION = "What is the capital of France?"


def agent(task, **kw):
    return Agent(OpenAIChatModel(task, provider=provider), model_settings=SETTINGS, **kw)


whole = agent("base").run_sync(QUESTION)
assert "Paris" in whole.output and whole.usage.output_tokens > 0
print("run")


async def stream():
    async with agent("base").run_stream(QUESTION) as r:
        return "".join([t async for t in r.stream_text(delta=True)])


assert asyncio.run(stream()) == whole.output
print("stream: the same text")
assert agent("triage", instructions="You sort messages.").run_sync(QUESTION).output != whole.output
print("another task")


class City(BaseModel):
    name: str
    is_capital: bool


c = agent("base", output_type=NativeOutput(City)).run_sync("Name a city.").output
assert isinstance(c, City)
print("native output:", c.model_dump_json())
