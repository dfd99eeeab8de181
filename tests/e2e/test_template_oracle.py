#!/usr/bin/env python3
"""Compares the template engine with the stored renderings of jinja2 (tests/golden/templates.json), byte for byte.

usage: test_template_oracle.py PATH/TO/tmpl_filter [--verbose]. Where jinja2 raised, the engine must fail too; what
raise_exception was given must be the error's whole text. Plain Python 3, no packages."""
import json, os, subprocess, sys

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden")


def text_of(case):
    if "text" in case:
        return case["text"]
    with open(os.path.join(GOLDEN, "templates", case["template"]), encoding="utf-8", newline="") as f:
        return f.read()


def main():
    cases = json.load(open(os.path.join(GOLDEN, "templates.json"), encoding="utf-8"))
    lines = "".join(json.dumps({"template": text_of(c), "vars": c["vars"]}) + "\n" for c in cases)
    out = subprocess.run([sys.argv[1]], input=lines.encode(), stdout=subprocess.PIPE, check=True).stdout
    got = [json.loads(line) for line in out.splitlines()]
    if len(got) != len(cases):
        sys.exit(f"{len(cases)} cases, {len(got)} answers")
    bad = 0
    for c, g in zip(cases, got):
        if "out" in c:
            same = g.get("out") == c["out"]
        else:
            same = g.get("error") == c["error"] if c.get("raised") else "error" in g
        if not same:
            bad += 1
            print(f"{c['name']}: {c.get('text', '')}\n  want {c.get('out', c.get('error'))!r}\n  got  {g.get('out', g.get('error'))!r}")
        elif "--verbose" in sys.argv and "error" in g:
            print(f"{c['name']}: {c['error']!r} / {g['error']!r}")
    print(f"{len(cases) - bad} of {len(cases)} renderings are identical")
    sys.exit(1 if bad else 0)


main()
