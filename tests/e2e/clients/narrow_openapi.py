"""Writes the OpenAPI document narrowed to what one server answers with 200: its model, vocabulary and hidden size, few
tokens, and without the fields that only go together with others. Arguments: proto/openapi.json, the output, the model's
name, the vocabulary's size, the hidden size.

What schemathesis makes of it has to be taken; what it makes of the document itself has to be refused or taken as the
document says.
"""
import json
import sys

source, out, model, vocab, hidden = sys.argv[1:]
with open(source, encoding="utf-8") as f:
    doc = json.load(f)
s = doc["components"]["schemas"]
text = {"type": "string", "minLength": 1, "maxLength": 20, "pattern": "^[ -~]+$"}
s["ModelName"] = {"type": "string", "enum": [model]}
s["TokenIds"]["items"]["maximum"] = int(vocab) - 1
s["TokenIds"]["maxItems"] = 8
one, texts, _, lists = s["Prompts"]["anyOf"]
one.update(text)
texts.update(items=text, maxItems=3)
lists["maxItems"] = 3
s["Messages"]["maxItems"] = 3
_, assistant = s["Message"]["anyOf"]
assistant["properties"]["content"]["anyOf"].pop()  # whether a null can be rendered is the template's
assistant["required"].append("content")
s["DetokenizeRequest"]["properties"]["tokens"]["items"]["maximum"] = int(vocab) - 1
s["EmbeddingRequest"]["properties"]["dimensions"]["maximum"] = int(hidden)
for name, most in (("text_1", 1), ("text_2", 3)):
    one, many = s["ScoreRequest"]["properties"][name]["anyOf"]
    one.update(text)
    many.update(items=text, maxItems=most)
together = {"CompletionRequest": ["best_of", "stream_options", "stream"],
            "ChatRequest": ["max_completion_tokens", "stream_options", "top_logprobs", "prompt_logprobs"]}
for name, gone in together.items():
    p = s[name]["properties"]
    for g in gone + ["response_format", "structured_outputs"]:  # schemas and grammars are tested by themselves
        p.pop(g, None)
    p["max_tokens"] = {"type": "integer", "minimum": 1, "maximum": 4}
    s[name]["required"].append("max_tokens")
    p["min_tokens"]["maximum"] = 1
    p["n"]["maximum"] = 2
    p["logit_bias"].update(propertyNames={"pattern": "^[1-9][0-9]?$"}, maxProperties=4)
with open(out, "w", encoding="utf-8") as f:
    json.dump(doc, f)
