#!/usr/bin/env python3
"""Compares the template engine with jinja2, byte for byte, on the templates of tests/golden/templates and on snippets.

`stored` uses the renderings in tests/golden/templates.json and needs no package; `live` renders everything again with the
jinja2 that is installed, in the environment that transformers makes for chat templates. Where jinja2 raises, the engine
must fail too; what raise_exception was given must be the error's whole text. TMPL_FILTER is tests/unit/model/tmpl_filter
of a build.
"""
import json
import os
import subprocess

import harness
from harness import ROOT, Skip, case

FILTER = os.environ.get("TMPL_FILTER", str(ROOT / "build/tests/unit/model/tmpl_filter"))
GOLDEN = ROOT / "tests/golden"


def cases():
    out = json.loads((GOLDEN / "templates.json").read_text(encoding="utf-8"))
    for c in out:
        if "text" not in c:
            c["text"] = (GOLDEN / "templates" / c["template"]).read_bytes().decode()
    return out


def compare(want):
    lines = "".join(json.dumps({"template": c["text"], "vars": c["vars"]}) + "\n" for c in want)
    out = subprocess.run([FILTER], input=lines.encode(), stdout=subprocess.PIPE, check=True).stdout
    got = [json.loads(line) for line in out.splitlines()]
    assert len(got) == len(want), f"{len(want)} cases, {len(got)} answers"
    bad = 0
    for c, g in zip(want, got):
        if "out" in c:
            same = g.get("out") == c["out"]
        else:
            same = g.get("error") == c["error"] if c.get("raised") else "error" in g
        if not same:
            bad += 1
            print(f"   {c['name']}: {c['text'][:300]}\n      want {c.get('out', c.get('error'))!r}\n      got  {g.get('out', g.get('error'))!r}")
    print(f"   {len(want) - bad} of {len(want)} renderings are identical")
    assert not bad, f"{bad} of {len(want)} renderings differ"


def environment():
    """jinja2 as chat templates expect it: sandboxed, blocks trimmed, loop controls, `generation` blocks, tojson as plain
    JSON, raise_exception and strftime_now."""
    try:
        import jinja2
        import jinja2.ext
        import jinja2.sandbox
    except ImportError:
        raise Skip("the package jinja2 is not installed") from None

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller):
            return caller()

    def raise_exception(text):
        raise jinja2.exceptions.TemplateError(text)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(format):
        import datetime
        return datetime.datetime.now().strftime(format)

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                       extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return env, jinja2


@case
def stored():
    compare(cases())


@case
def live():
    env, jinja2 = environment()
    want = []
    for c in cases():
        c = {k: c[k] for k in ("name", "text", "vars")}
        try:
            c["out"] = env.from_string(c["text"]).render(**c["vars"])
        except Exception as x:  # what the engine must refuse too
            c["error"], c["raised"] = str(x), type(x) is jinja2.exceptions.TemplateError
        want.append(c)
    compare(want)


if __name__ == "__main__":
    harness.main()
