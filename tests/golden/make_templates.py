#!/usr/bin/env python3
"""Renders every template of tests/golden/templates over the conversations below, and the snippets in
template_snippets.json, with jinja2 in the environment that transformers makes, into templates.json.
Needs jinja2 and transformers: python tests/golden/make_templates.py [OUT]"""
import json, os, re, sys

HERE = os.path.dirname(os.path.abspath(__file__))

PARAMS = {"type": "object", "properties": {"city": {"type": "string", "description": "Ort, z. B. Zürich"},
          "days": {"type": "array", "items": {"type": "integer"}}, "deep": {"type": "object", "properties": {"x": {"type": "number"}}}},
          "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "The weather <now> & \"later\"", "parameters": PARAMS}},
         {"type": "function", "function": {"name": "add", "description": "Adds", "parameters": {"type": "object", "properties": {}}}}]
CALL = [{"type": "function", "id": "a1b2c3d4e", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": [1, 2], "f": 0.5, "n": None, "b": True}}}]


def m(role, content, **more):
    return {"role": role, "content": content, **more}


CHATS = {
    "user": [m("user", "Hello, how are you?")],
    "system": [m("system", "You are terse."), m("user", "Hi"), m("assistant", "Hi."), m("user", "Bye")],
    "unicode": [m("system", "Sei höflich. 日本語"), m("user", "Grüße 👋🏽 naïve\u00a0café\u3000"), m("assistant", "ΣΊΣΥΦΟΣ ß ﬁ")],
    "space": [m("user", "  leading and trailing \n\n"), m("assistant", "\n\tok \n"), m("user", "\n")],
    "empty": [m("user", ""), m("assistant", ""), m("user", "x")],
    "parts": [m("user", [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}])],
    "order": [m("assistant", "I speak first"), m("user", "no"), m("user", "twice")],
    "tools": [m("system", "Use tools."), m("user", "Weather?"), m("assistant", "", tool_calls=CALL),
              m("tool", "{\"t\": 21}", name="get_weather", tool_call_id="a1b2c3d4e"), m("tool", "sunny", name="x", tool_call_id="b"),
              m("assistant", "<think>\nhm\n</think>\n\nIt is 21 degrees."), m("user", "Thanks")],
    "reason": [m("user", "2+2?"), m("assistant", "<think>\nadd\n</think>\n\n4"), m("user", "sure?"),
               m("assistant", "yes", reasoning_content="still 4")],
    "quotes": [m("user", "it's \"quoted\" \\ {{ x }} {% y %} <b>&amp;</b>"), m("assistant", None), m("user", "?")],
    "none": [],
}


def environment():
    import transformers.utils.chat_template_utils as u
    return u._compile_jinja_template


def render(compile_, template, vars_):
    try:
        return {"out": compile_(template).render(**vars_)}
    except Exception as x:  # what the engine must refuse too
        return {"error": str(x), "raised": type(x).__name__ == "TemplateError"}


def cases():
    folder = os.path.join(HERE, "templates")
    for name in sorted(os.listdir(folder)):
        if not name.endswith(".jinja"):
            continue
        text = open(os.path.join(folder, name), encoding="utf-8", newline="").read()
        for chat, messages in CHATS.items():
            for tools in (None, TOOLS):
                if tools and chat not in ("system", "tools"):
                    continue
                for gen in (False, True):
                    yield {"name": f"{name}/{chat}/{'tools' if tools else 'plain'}/{int(gen)}", "template": name,
                           "vars": {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": gen,
                                    "bos_token": "<s>", "eos_token": "</s>", "enable_thinking": False}}
    for i, (text, vars_) in enumerate(json.load(open(os.path.join(HERE, "template_snippets.json"), encoding="utf-8"))):
        yield {"name": f"snippet/{i}", "text": text, "vars": vars_}


def template_of(case):
    if "text" in case:
        return case["text"]
    return open(os.path.join(HERE, "templates", case["template"]), encoding="utf-8", newline="").read()


def main():
    compile_ = environment()
    out = [{**c, **render(compile_, template_of(c), c["vars"])} for c in cases()]
    path = sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "templates.json")
    with open(path, "w", encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in out) + "\n]\n")


if __name__ == "__main__":
    main()
