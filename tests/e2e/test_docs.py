#!/usr/bin/env python3
"""Holds the documentation to the programs and the sources.

Options of `cpetd --help` and of each `cpet` command stand in the manual pages, and the other way round; paths named in
README.md and docs/ are in the tree; fields, refusals, routes and metrics of the sources are described. The manual pages
are linted where mandoc and man are installed; every curl line and the Python example are run, where the demo is there.
Needs build/cpetd and build/cpet (or CPETD, CPET).
"""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import harness
from harness import CPET, CPETD, MODEL, PETS, ROOT, Server, Skip, case

DOCS = sorted(ROOT.glob("docs/*.md"))
PAGES = [ROOT / "docs/cpetd.8", ROOT / "docs/cpet.1"]
FOLDERS = "common kernels formats pet model proto server compress tools deploy tests bench docs".split()
COMMANDS = "import compress pet logits ppl module task".split()


def text(path):
    return (ROOT / path).read_text(encoding="utf-8")


def run(*args):
    r = subprocess.run(args, capture_output=True, text=True)
    assert r.returncode == 0, f"{' '.join(map(str, args))}: {r.returncode}: {r.stderr.strip()}"
    return r.stdout


def same(what, have, want):
    missing, extra = sorted(want - have), sorted(have - want)
    assert not missing and not extra, f"{what}: missing {missing}, too many {extra}"


def options(s):
    return set(re.findall(r"(?<![\w-])--([a-z][a-z0-9-]*)", s))


def flags(page):
    """The options that an mdoc text names: Fl -name, whatever else stands on the line."""
    return set(re.findall(r"(?:Fl |\| )-([a-z][a-z0-9-]*)", page))


@case
def cpetd_options_in_the_manual_page():
    same("docs/cpetd.8", flags(text("docs/cpetd.8")), options(run(CPETD, "--help")))


@case
def cpetd_options_in_operating_md():
    want = options(run(CPETD, "--help"))
    cpets = set().union(*(options(run(CPET, c, "--help")) for c in ("module", "task")))  # it shows these two commands
    same("docs/operating.md", options(text("docs/operating.md")) - (cpets - want), want)


@case
def defaults_in_operating_md_and_the_manual_page():
    rows = {m[1]: line for line in text("docs/operating.md").split("\n") if (m := re.match(r"\| `--([a-z0-9-]+)", line))}
    items = {m[1]: m[2] for m in re.finditer(r"\.It Fl -(\S+)(.*?)(?=\n\.It|\n\.El)", text("docs/cpetd.8"), re.S)}
    checked = 0
    for line in re.sub(r"\n {34}", " ", run(CPETD, "--help")).split("\n"):
        m = re.match(r" +--([a-z0-9-]+).*?\(([0-9][0-9A-Z.:]*|auto|text)\)", line)
        if not m:
            continue
        name, value = m.groups()
        assert f"`{value}`" in rows[name], f"docs/operating.md: --{name} is {value} by default"
        assert f"Default: {value}." in items[name], f"docs/cpetd.8: --{name} is {value} by default"
        checked += 1
    assert checked >= 12, f"only {checked} defaults found in --help"


@case
def cpet_options_in_the_manual_page():
    page = text("docs/cpet.1")
    sections = dict(re.findall(r"^\.Ss (\S+)\n(.*?)(?=^\.S[hs])", page, re.S | re.M))
    same("commands of docs/cpet.1", set(sections), set(COMMANDS))
    listed = set(re.findall(r"^  ([a-z]+) {2,}", run(CPET, "--help"), re.M))
    same("commands of cpet --help", set(COMMANDS), listed)
    for c in COMMANDS:
        have, want = flags(sections[c]) - {"help"}, options(run(CPET, c, "--help")) - {"help"}
        same(f"docs/cpet.1, cpet {c}", have, want)


@case
def cpetd_options_in_readme():
    shown = set(re.findall(r"^\| `--([a-z0-9-]+)", text("README.md"), re.M))
    assert shown and shown <= options(run(CPETD, "--help")), f"README.md: {shown}"


@case
def paths_are_in_the_tree():
    name = r"(?<![\w./-])((?:%s)/[\w./*-]*|[\w-]+\.(?:md|build|options|txt))" % "|".join(FOLDERS)
    wrong = []
    for doc in [ROOT / "README.md", *DOCS]:
        for path in re.findall(name, doc.read_text(encoding="utf-8")):
            path = path.rstrip(".")
            if not (list(ROOT.glob(path)) or list(doc.parent.glob(path))):
                wrong.append(f"{doc.name}: {path}")
    assert not wrong, "; ".join(wrong)


@case
def functions_that_readme_names_are_in_the_sources():
    sources = "\n".join(p.read_text(encoding="utf-8") for f in FOLDERS for p in ROOT.glob(f"{f}/**/*.[ch]") if f != "tests")
    part = text("README.md").split("## Follow one request")[1].split("## The tree")[0]
    names = set(re.findall(r"`([a-z]+(?:_[a-z0-9]+)+|serve|walk|fill)`", part))
    wrong = sorted(n for n in names if not re.search(r"\b%s\(" % n, sources))
    assert len(names) > 40 and not wrong, f"{len(names)} names, not in the sources: {wrong}"


def fields():
    table = text("proto/fields.c").split("const struct field req_fields[] = {")[1].split("};")[0]
    return set(re.findall(r'\{"(\w+)"', table))


@case
def fields_in_api_md():
    part = text("docs/api.md").split("## Fields")[1].split("### Refused")[0]
    same("docs/api.md, fields", set(re.findall(r"^\| `(\w+)`", part, re.M)), fields())


@case
def refused_fields_in_api_md():
    known = text("proto/fields.c").split("bool req_field_known")[1].split("};")[0]
    part = text("docs/api.md").split("### Refused by name")[1].split("\n\n")[2]
    same("docs/api.md, refused fields", set(re.findall(r"`(\w+)`", part)), set(re.findall(r'"(\w+)"', known)))
    messages = text("proto/messages.c").split("bool message_field_known")[1].split("};")[0]
    for f in re.findall(r'"(\w+)"', messages):
        assert f"`{f}`" in text("docs/api.md"), f"docs/api.md: messages[].{f}"


@case
def routes_in_api_md():
    routes = set(re.findall(r'\{"(/[\w/]+)", R_', text("server/api.c")))
    assert len(routes) >= 9, routes
    missing = sorted(r for r in routes if not re.search(r"`(GET|POST) %s`" % r, text("docs/api.md")))
    assert not missing, f"docs/api.md: {missing}"


@case
def metrics_in_operating_md():
    names = set(re.findall(r'"((?:vllm:|cpet_|process_)\w+)"', text("server/metrics.c")))
    same("docs/operating.md, metrics", set(re.findall(r"^\| `((?:vllm:|cpet_|process_)\w+)`", text("docs/operating.md"), re.M)), names)


@case
def manual_pages_without_complaint():
    if not (shutil.which("mandoc") or shutil.which("man")):
        raise Skip("neither mandoc nor man is installed")
    for page in map(str, PAGES):
        if shutil.which("mandoc"):
            out = subprocess.run(["mandoc", "-Tlint", page], capture_output=True, text=True)
            assert out.returncode == 0 and not out.stdout, out.stdout + out.stderr
        if shutil.which("man"):
            env = {**os.environ, "LC_ALL": "C.UTF-8", "MANROFFSEQ": ""}
            out = subprocess.run(["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", page], capture_output=True, text=True, env=env)
            assert out.returncode == 0 and not out.stderr, out.stderr


def demo():
    """A server as deploy/quickstart starts it."""
    pets = [p for t in ("extract", "triage") for p in (PETS / f"{t}.pet", PETS / t) if p.exists()]
    if not Path(MODEL).is_dir() or len({p.stem for p in pets}) < 2:
        raise Skip("the demo is not there (deploy/quickstart --no-serve makes it)")
    return Server("--name", "smollm2-135m-instruct-int8", *[a for p in pets[::-1] for a in ("--pet", f"{p.stem}={p}")])


def blocks(path, language):
    return re.findall(r"^```%s\n(.*?)^```" % language, text(path), re.S | re.M)


@case
def curl_lines_work():
    if not shutil.which("curl"):
        raise Skip("no curl")
    with demo() as s:
        ran = 0
        for path in ("docs/api.md", "README.md"):
            for line in [c for b in blocks(path, "sh") for c in re.split(r"^(?=curl )", b, flags=re.M) if c.startswith("curl ")]:
                want = "400" if '"tools"' in line else "404" if '"nobody"' in line else "200"
                script = f"U={s.url} A={s.admin} J='Content-Type: application/json'\n"
                script += line.replace("curl ", "curl -sS -m 120 -o /dev/null -w '%{http_code}' ", 1).replace("http://127.0.0.1:8000", s.url)
                out = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
                assert out.stdout.strip() == want, f"{path}: {line}: {out.stdout}{out.stderr}"
                ran += 1
        assert ran >= 18, f"only {ran} curl lines found"


@case
def admin_curl_lines_work():
    if not shutil.which("curl"):
        raise Skip("no curl")
    import tempfile
    with tempfile.TemporaryDirectory() as d:
        key = Path(d, "key")
        key.write_text("admin-secret\n")
        key.chmod(0o600)
        for t in ("extract", "triage"):
            source = [p for p in (PETS / f"{t}.pet", PETS / t) if p.exists()]
            if not Path(MODEL).is_dir() or not source:
                raise Skip("the demo is not there (deploy/quickstart --no-serve makes it)")
            if source[0].is_dir():
                shutil.copytree(source[0], f"{d}/root/{t}")
            else:
                run(CPET, "pet", "convert", str(source[0]), f"{d}/root/{t}")
        lines = [c for b in blocks("docs/admin.md", "sh") for c in b.split("\n") if c]
        with Server("--data", f"{d}/data", "--module-root", f"{d}/root", "--admin-key", str(key)) as s:
            script, want = f"cd {d}\n{lines[0]}\nA={s.admin} U={s.url} ROOT={d}/root\ncpet() {{ {CPET} \"$@\"; }}\n", []
            for line in lines[1:]:
                if line.startswith("curl "):
                    want.append((re.search(r"# (\d+)$", line)[1], line))
                    line = "echo $(" + line.replace("curl ", "curl -sS -m 120 -o /dev/null -w '%{http_code}' ", 1).rsplit("#", 1)[0] + ")"
                elif line.startswith("V="):  # jq is not everywhere
                    line = re.sub(r"jq -r .*\)$", "python3 -c 'import json, sys; print(json.load(sys.stdin)[\"data\"][0][\"versions\"][1])')", line)
                else:
                    line += " >/dev/null"
                script += line + "\n"
            out = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
            have = out.stdout.split()
            assert len(want) > 20 and len(have) == len(want), f"{out.stdout}{out.stderr}"
            for got, (code, line) in zip(have, want):
                assert got == code, f"{line}: {got} {out.stderr}"


@case
def python_example_works():
    try:
        import openai  # noqa: F401
    except ImportError as e:
        raise Skip(str(e))
    (code,) = blocks("README.md", "python")
    with demo() as s:
        out = run(sys.executable, "-c", code.replace("http://127.0.0.1:8000", s.url))
    assert re.fullmatch(r"extract -> .+\ntriage -> .+\n", out, re.S), out


if __name__ == "__main__":
    harness.main()
