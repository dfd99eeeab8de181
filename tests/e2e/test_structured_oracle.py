#!/usr/bin/env python3
"""Answers with a schema against jsonschema: every answer that came to its end is valid. Needs CPETD_MODEL, build/cpetd, jsonschema."""
import json
import os

import jsonschema

from cpetd_run import Server, run

SEEDS = int(os.environ.get("SEEDS", "4"))
TEXT, SHORT = {"type": "string", "maxLength": 40}, {"type": "string", "minLength": 1, "maxLength": 8}


def obj(required=None, **properties):
    return {"type": "object", "properties": properties, "required": list(properties) if required is None else required, "additionalProperties": False}


SCHEMAS = {
    "flat": obj(name=TEXT, age={"type": "integer"}, member={"type": "boolean"}, none={"type": "null"}),
    "optional": obj(["b"], a=SHORT, b=SHORT, c=SHORT),
    "nested": obj(a=obj(b=obj(c=obj(d=SHORT)))),
    "enum": obj(kind={"enum": ["red", "green", 5, None, True, {"a": [1]}]}, one={"const": "x"}),
    "array": {"type": "array", "items": {"type": "integer", "minimum": -5, "maximum": 120}, "minItems": 2, "maxItems": 5},
    "tuple": {"type": "array", "prefixItems": [{"type": "string", "maxLength": 5}, {"type": "number"}], "items": False, "minItems": 2},
    "numbers": obj(a={"type": "number"}, b={"type": "integer", "minimum": 10, "maximum": 20}, c={"type": "integer", "exclusiveMinimum": 0}),
    "any_of": obj(v={"anyOf": [{"type": "integer"}, obj(x=SHORT), {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}]}),
    "types": obj(v={"type": ["string", "null"], "maxLength": 10}),
    "pattern": obj(id={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"}),
    "ref": {"$defs": {"p": obj(x={"type": "integer"}, y={"type": "integer"})}, **obj(a={"$ref": "#/$defs/p"}, b={"$ref": "#/$defs/p"})},
    "tree": {"$defs": {"t": obj(["v"], v={"enum": [1, 2]}, next={"$ref": "#/$defs/t"})}, "$ref": "#/$defs/t"},
    "date": obj(d={"type": "string", "format": "date"}),
    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    "top_string": {"type": "string", "minLength": 3, "maxLength": 12},
    "top_number": {"type": "number"},
    "boolean": {"type": "boolean"},
}


def test_valid():
    with Server() as s:
        whole, refused, cut = 0, [], 0
        for name, schema in SCHEMAS.items():
            jsonschema.Draft202012Validator.check_schema(schema)
            check = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
            for t in (0, 1, 2):
                form = {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}
                body = {"model": "base", "messages": [{"role": "user", "content": "Give me an example of " + json.dumps(schema)}], "temperature": t,
                        "n": 1 if t == 0 else SEEDS, "seed": t, "max_tokens": 200, "response_format": form}
                status, r = s.post("/v1/chat/completions", body)
                if status == 400:
                    refused.append(name)
                    continue
                assert status == 200, r
                for c in r["choices"]:
                    if c["finish_reason"] != "stop":
                        cut += 1
                        continue
                    check.validate(json.loads(c["message"]["content"]))
                    whole += 1
        print("  %d answers valid, %d cut; refused: %s" % (whole, cut, ", ".join(sorted(set(refused))) or "none"))
        assert whole > 20 * SEEDS and len(set(refused)) <= 2


run([test_valid], "structured_oracle")
