#!/usr/bin/env python3
"""What `meson install` puts where, what systemd says of the units, and that completion knows the programs' options.

Installs the build that CPETD lies in under a scratch DESTDIR. systemd-analyze, zsh and fish are used where they are.
"""
import functools
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


def listed(command, lines, **kw):
    """What a shell, in one go, says of each line: its script prints the words, and a line of = after each."""
    parts = run(*command, *lines, env=environment(), cwd=DEST).split("=\n")
    assert len(parts) == len(lines) + 1, parts
    return dict(zip(lines, parts))


BASH = r"""
where=$1; shift; compopt() { :; }
for line; do
    read -ra COMP_WORDS <<<"$line"; [[ $line == *' ' ]] && COMP_WORDS+=('')
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); source "$where/${COMP_WORDS[0]}"
    "_${COMP_WORDS[0]}"; printf '%s\n' "${COMPREPLY[@]}"; echo =
done
"""


def in_bash(lines):
    where = prefix() / "share/bash-completion/completions"
    return {k: set(v.split()) for k, v in listed(["bash", "-c", BASH, "bash", where], lines).items()}


def in_fish(lines):
    where = prefix() / "share/fish/vendor_completions.d"
    script = f"for l in $argv; source {where}/(string split ' ' $l)[1].fish; complete -C $l; echo =; end"
    return {k: {w.split("\t")[0] for w in v.splitlines()} for k, v in listed(["fish", "-N", "-c", script], lines).items()}


# The completion system's functions print what they are given; of a specification "--name=[text]:arg:(words)" the words
# where --name stands before the word at hand, else the names.
ZSH = r"""
where=$1; shift
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
for line; do
    words=("${(@s: :)line}"); CURRENT=$#words PREFIX=$words[-1]
    () { source $where/_$words[1] } # in a function, as autoload has it
    print =
done
"""


def in_zsh(lines):
    got = listed(["zsh", "-f", "-c", ZSH, "zsh", prefix() / "share/zsh/site-functions"], lines)
    return {k: {w for w in v.split() if w.startswith(k.split(" ")[-1])} for k, v in got.items()}


@functools.cache
def help_of(*command):
    return options_of(run(*command, "--help"))


def completes(ask):
    got = ask(["cpetd --", "cpetd --kv", "cpetd --precision ", "cpet ", "cpet pet ", *(f"cpet {c} --" for c in COMMANDS)])
    got = {k: {w.removeprefix("--precision=").removesuffix("=") for w in v} for k, v in got.items()}
    want = {f"cpet {c} --": help_of(CPET, c) | {"--help"} for c in COMMANDS}
    want |= {"cpetd --": cpetd_options(), "cpetd --kv": {"--kv", "--kv-bytes"}, "cpetd --precision ": {"int8", "bf16", "f32"}}
    for line, words in want.items():
        assert got[line] == words, f"{line}: {sorted(got[line] ^ words)}"
    assert set(COMMANDS) <= got["cpet "], got["cpet "]
    assert {"pack", "convert", "inspect", "verify"} <= got["cpet pet "], got["cpet pet "]


@case
def completion_in_bash():
    completes(in_bash)
    (DEST / "some-model").mkdir(exist_ok=True)
    got = in_bash(["cpetd --model some", "cpetd --log-format = js"])
    assert got == {"cpetd --model some": {"some-model"}, "cpetd --log-format = js": {"json"}}, got


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
