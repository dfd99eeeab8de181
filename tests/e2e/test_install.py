#!/usr/bin/env python3
"""What `meson install` puts where, what systemd says of the units, and that completion knows the programs' options.

Installs the build that CPETD lies in under a scratch DESTDIR. systemd-analyze, zsh and fish are used where they are.
"""
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import harness
from harness import CPET, CPETD, ROOT, Skip, case

BUILD = Path(CPETD).resolve().parent
FILES = """
bin/cpet bin/cpetd share/man/man1/cpet.1 share/man/man8/cpetd.8 share/doc/cpetd/LICENSE share/doc/cpetd/cpetd.conf
share/bash-completion/completions/cpet share/bash-completion/completions/cpetd share/zsh/site-functions/_cpet
share/zsh/site-functions/_cpetd share/fish/vendor_completions.d/cpet.fish share/fish/vendor_completions.d/cpetd.fish
""".split()
UNITS = ["cpetd.service", "cpetd.socket", "cpetd-admin.socket"]
COMMANDS = re.findall(r"^  ([a-z]+)  ", subprocess.run([CPET, "--help"], capture_output=True, text=True).stdout, re.M)
scratch = tempfile.TemporaryDirectory(prefix="cpetd-install-")
DEST = Path(scratch.name)


def run(*args, **kw):
    r = subprocess.run(list(map(str, args)), capture_output=True, text=True, **kw)
    assert r.returncode == 0, f"{' '.join(map(str, args))}: {r.returncode}: {r.stdout}{r.stderr}"
    return r.stdout


def prefix():
    """Where the installation lies; made once."""
    options = json.loads(run("meson", "introspect", BUILD, "--buildoptions"))
    path = DEST / next(o["value"] for o in options if o["name"] == "prefix").lstrip("/")
    if not path.exists():
        run("meson", "install", "-C", BUILD, "--no-rebuild", "--quiet", env={**os.environ, "DESTDIR": str(DEST)})
    return path


def with_systemd():
    return "libsystemd" in run("ldd", CPETD)


@case
def files():
    top = prefix()
    have = {str(p.relative_to(top)) for p in top.rglob("*") if not p.is_dir()}
    outside = [str(p) for p in DEST.rglob("*") if not p.is_dir() and top not in p.parents]
    want = set(FILES) | ({f"lib/systemd/system/{u}" for u in UNITS} if with_systemd() else set())
    assert have == want and not outside, f"missing {sorted(want - have)}, too many {sorted(have - want)}, outside {outside}"
    for p in top.rglob("*"):
        if not p.is_dir():
            assert p.stat().st_mode & 0o777 == (0o755 if p.parent.name == "bin" else 0o644), p


@case
def installed_programs_run():
    top = prefix()
    for name in ("cpet", "cpetd"):
        assert run(top / "bin" / name, "--help") == run(BUILD / name, "--help")


@case
def layout_by_options():
    """A distribution's: /usr and /etc, its own place for units, no tests."""
    with tempfile.TemporaryDirectory() as d:
        run("meson", "setup", d, ROOT, "--prefix=/usr", "-Dsystemdunitdir=/units", "-Dtests=false")
        plan = json.loads(run("meson", "introspect", d, "--install-plan"))
        to = {f["destination"] for part in plan.values() for f in part.values()}
        to = {t.replace("{systemdunitdir}", "/units") for t in to}
        if with_systemd():
            assert {f"/units/{u}" for u in UNITS} <= to, to
            unit = (Path(d) / "deploy/cpetd.service").read_text()
            assert "ExecStart=/usr/bin/cpetd --config /etc/cpetd/cpetd.conf" in unit and not re.search(r"@\w+@", unit)
        assert len(to) == len(FILES) + (len(UNITS) if with_systemd() else 0), to


def units():
    """The units, with paths into the installation, in a folder of their own."""
    if not with_systemd():
        raise Skip("cpetd is built without libsystemd")
    if not shutil.which("systemd-analyze"):
        raise Skip("systemd-analyze is not installed")
    top, d = prefix(), DEST / "units"
    d.mkdir(exist_ok=True)
    for u in UNITS:
        text = (top / "lib/systemd/system" / u).read_text()
        (d / u).write_text(re.sub(r"(?<==)\S*/bin/cpetd", str(top / "bin/cpetd"), text))
    return d


@case
def units_verify():
    d = units()
    pages = {"MANPATH": f"{prefix() / 'share/man'}:"}
    r = subprocess.run(["systemd-analyze", "verify", *(str(d / u) for u in UNITS)], capture_output=True, text=True, env={**os.environ, **pages})
    said = [line for line in r.stderr.splitlines() if "cpetd" in line]
    assert r.returncode == 0 and not said, r.stderr


@case
def service_is_confined():
    """An exposure of 1.5 at most."""
    run("systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", units() / "cpetd.service")


@case
def service_fits_the_options():
    """The unit waits longer than the default draining time, and names options that there are."""
    text, help_text = (units() / "cpetd.service").read_text(), run(CPETD, "--help")
    drain_ms = int(re.search(r"--drain-ms.*\((\d+)\)", help_text)[1])
    assert int(re.search(r"^TimeoutStopSec=(\d+)s$", text, re.M)[1]) >= drain_ms / 1000 + 15
    for option in re.findall(r"(?<=\s)--[a-z-]+", re.search(r"^ExecStart=(.*)", text, re.M)[1]):
        assert option in help_text, option
    conf = re.findall(r"^#?([a-z-]+) = ", (prefix() / "share/doc/cpetd/cpetd.conf").read_text(), re.M)
    assert len(conf) >= 8 and all(f"--{o} " in help_text for o in conf), conf


# ---- completion ----


def options_of(text):
    return set(re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]*)", text))


def cpetd_options():
    return set(re.findall(r"^  (--[a-z0-9-]+)", run(CPETD, "--help"), re.M))


def environment():
    return {**os.environ, "PATH": f"{prefix() / 'bin'}:{os.environ['PATH']}", "HOME": str(DEST)}


def in_bash(line):
    words = line.split(" ")
    script = f"""source "$1"; COMP_WORDS=({' '.join(words)} {"''" if not words[-1] else ''}); COMP_CWORD={len(words) - 1}
        compopt() {{ :; }}; _{words[0]}; printf '%s\\n' "${{COMPREPLY[@]}}" """
    out = run("bash", "-c", script, "bash", prefix() / "share/bash-completion/completions" / words[0], env=environment(), cwd=DEST)
    return set(out.split())


def in_fish(line):
    where = prefix() / "share/fish/vendor_completions.d" / f"{line.split()[0]}.fish"
    out = run("fish", "-N", "-c", f"source {where}; complete -C '{line}'", env=environment(), cwd=DEST)
    return {word.split("\t")[0] for word in out.splitlines()}


# The completion system's functions print what they are given; of a specification "--name=[text]:arg:(words)" the words
# where --name stands before the word at hand, else the names.
ZSH = r"""
file=$1; shift; words=("$@"); CURRENT=$#words PREFIX=$words[-1]
_files() { : }
compadd() { local -a a; a=(${@:#-*}); local n=$a[1]; print -rl -- ${(P)n} }
_arguments() {
    local spec
    for spec; do
        [[ $spec =~ '^\*?(--[a-z0-9-]+)=?\[[^]]*\](:[^:]*(\\:[^:]*)*:(.*))?$' ]] || { print -r "bad: $spec"; continue }
        [[ $words[-2] == --* ]] || print -r -- $match[1]
        [[ $words[-2] == $match[1] ]] && print -rl -- ${=${match[4]//[()]/}}
    done
}
source $file || true
"""


def in_zsh(line):
    words = line.split(" ")
    out = run("zsh", "-f", "-c", ZSH, "zsh", prefix() / "share/zsh/site-functions" / f"_{words[0]}", *words, env=environment(), cwd=DEST)
    return {w for w in out.split() if w.startswith(words[-1])}


def completes(ask):
    got = {w.removesuffix("=") for w in ask("cpetd --")}
    assert got == cpetd_options(), f"cpetd --: {sorted(got ^ cpetd_options())}"
    got = {w.removesuffix("=") for w in ask("cpetd --kv")}
    assert got == {"--kv", "--kv-bytes"}, got
    got = {w.removeprefix("--precision=") for w in ask("cpetd --precision ")}
    assert got == {"int8", "bf16", "f32"}, got
    assert set(COMMANDS) <= ask("cpet "), ask("cpet ")
    for c in COMMANDS:
        want, got = options_of(run(CPET, c, "--help")) | {"--help"}, ask(f"cpet {c} --")
        assert got == want, f"cpet {c} --: {sorted(got ^ want)}"
    assert {"pack", "convert", "inspect", "verify"} <= ask("cpet pet "), ask("cpet pet ")


@case
def completion_in_bash():
    completes(in_bash)
    (DEST / "some-model").mkdir(exist_ok=True)
    assert "some-model" in in_bash("cpetd --model some"), in_bash("cpetd --model some")
    assert in_bash("cpetd --log-format = js") == {"json"}


@case
def completion_in_fish():
    if not shutil.which("fish"):
        raise Skip("fish is not installed")
    completes(in_fish)


@case
def completion_in_zsh():
    if not shutil.which("zsh"):
        raise Skip("zsh is not installed")
    completes(in_zsh)


if __name__ == "__main__":
    harness.main()
