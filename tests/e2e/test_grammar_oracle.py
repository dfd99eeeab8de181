#!/usr/bin/env python3
"""Random texts of grammars against the PyPI package `jsonschema`. Part of the long suite.

For each schema of data/jsonschema (CPET_DATA, or ../shared/data beside the source) that compiles, grammar_filter writes random
texts of it, tokens drawn from the masks. Each must be JSON without repeated keys and valid, formats included. Two
differences are not counted: a fraction in multipleOf, which jsonschema tests by dividing doubles, and numbers beyond what a
double holds. Skips without the package or the data.
"""
import json
import os
import subprocess
import sys

import harness
from harness import ROOT, Skip, case

try:
    import jsonschema
    from jsonschema import validators
    MISSING = None
except ImportError as e:
    MISSING = str(e)

DATA = os.path.join(os.environ.get("CPET_DATA") or os.path.join(ROOT, "..", "shared", "data"), "jsonschema")
FILTER = os.environ.get("GRAMMAR_FILTER") or os.path.join(ROOT, "build", "tests", "unit", "model", "grammar_filter")
TEXTS = os.environ.get("TEXTS", "10")


def once(pairs):
    keys = [k for k, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("a key twice")
    return dict(pairs)


def fraction(error):
    return error.validator == "multipleOf" and isinstance(error.validator_value, float)


def check(lines):
    schemas = {s["name"]: s["schema"] for s in lines}
    given = "".join(json.dumps({"name": s["name"], "schema": s["schema"]}) + "\n" for s in lines)
    done = subprocess.run([FILTER, TEXTS], input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    texts = compiled = 0
    for line in done.stdout.split("\n")[:-1]:
        out = json.loads(line)
        if "refused" in out:
            continue
        compiled += 1
        schema = schemas[out["name"]]
        cls = validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        validator = cls(schema, format_checker=cls.FORMAT_CHECKER)
        for text in out["texts"]:
            value = json.loads(text, object_pairs_hook=once)
            wrong = [e for e in validator.iter_errors(value) if not fraction(e)]
            assert not wrong, f"{out['name']}: {text}: {wrong[0].message[:200]}"
            texts += 1
    print(f"  {compiled} of {len(lines)} schemas compiled, {texts} texts valid", file=sys.stderr)
    assert texts > compiled


def need():
    if MISSING:
        raise Skip(MISSING)
    if not os.path.isdir(DATA):
        raise Skip(f"no {DATA}")


@case
def real_schemas():
    need()
    with open(os.path.join(DATA, "schemas.jsonl")) as f:
        check([json.loads(line) for line in f])


@case
def official_suite():
    need()
    lines = []
    for root, _, files in os.walk(os.path.join(DATA, "draft2020-12")):
        for name in sorted(files):
            if not name.endswith(".json"):
                continue
            with open(os.path.join(root, name)) as f:
                for i, group in enumerate(json.load(f)):
                    lines.append({"name": f"{os.path.relpath(root, DATA)}/{name} {i}", "schema": group["schema"]})
    check(lines)


if __name__ == "__main__":
    harness.main()
