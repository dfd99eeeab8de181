#!/usr/bin/env python3
"""cpetd under a service manager: sockets passed to it, readiness, reloads, the watchdog, credentials. The manager is
played here: by its environment variables, a datagram socket and listening sockets, as sd_listen_fds(3), sd_notify(3)
and sd_watchdog_enabled(3) have them. Needs the demo backbone (CPETD_MODEL) and a cpetd built with libsystemd."""
import fcntl
import os
import queue
import signal
import socket
import subprocess
import threading
import time

import cpetd_run
from cpetd_run import Server, Skip, binary, model, run, scratch, wait_until, without_options
from test_server import COMP, concurrently, key_line

# Gives the descriptors of the arguments before "--" the numbers 3, 4... and the process's own number to LISTEN_PID.
PASS = """
n=3
while [ "$1" != -- ]; do eval "exec $n<&$1 $1<&-"; n=$((n + 1)); shift; done
shift
: ${LISTEN_PID=$$}
export LISTEN_PID
exec "$@"
"""


def listening(family=socket.AF_INET, addr=("127.0.0.1", 0)):
    s = socket.socket(family)
    s.bind(addr)
    s.listen(64)
    return s


class Manager:
    """The datagram socket of NOTIFY_SOCKET; messages are kept in order, each a dictionary."""

    def __init__(self, where):
        self.path = os.path.join(where, "notify")
        self.s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.s.bind(self.path)
        self.messages = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        while True:
            try:
                text = self.s.recv(4096).decode()
            except OSError:
                return
            self.messages.append({"at": time.monotonic(), **dict(line.split("=", 1) for line in text.splitlines())})

    def has(self, key, after=0):
        return any(key in m for m in self.messages[after:])

    def times(self, key):
        return [m["at"] for m in self.messages if key in m]


class Activated(Server):
    """A Server whose sockets are passed: the HTTP one, and the admin one where it is given."""

    def __init__(self, http, admin=None, args=(), env=None, names=None):
        self.key, self.lines = None, []
        cpetd_run.alive.append(self)
        fds = [fcntl.fcntl(s.fileno(), fcntl.F_DUPFD, 30) for s in (http, admin) if s]
        env = {"LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": names or ":".join(["http", "admin"][:len(fds)]), **(env or {})}
        cmd = ["bash", "-c", PASS, "pass", *map(str, fds), "--", binary(), "--model", model(), "--name", "base", *args]
        self.p = subprocess.Popen(cmd, stderr=subprocess.PIPE, text=True, env=without_options(env), pass_fds=fds)
        for fd in fds:
            os.close(fd)
        self.q = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.port = http.getsockname()[1]


def with_libsystemd():
    out = subprocess.run(["ldd", binary()], capture_output=True, text=True).stdout
    if "libsystemd" not in out:
        raise Skip("cpetd is built without libsystemd")


def test_sockets_and_readiness():
    """Ready lines, states in order, a client that came before the start, a reload, eight streams through SIGTERM."""
    with_libsystemd()
    with scratch() as d:
        manager, path, keys = Manager(d), os.path.join(d, "admin.sock"), os.path.join(d, "keys")
        http, admin = listening(), listening(socket.AF_UNIX, path)
        with open(keys, "w") as f:
            f.write(key_line("anna", "key-anna"))
        early = socket.create_connection(http.getsockname())
        early.sendall(b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        with Activated(http, admin, ["--listen", "192.0.2.1:1", "--admin-listen", "192.0.2.1:1", "--drain-ms", "20000",
                                     "--api-keys", keys], {"NOTIFY_SOCKET": manager.path}) as s:
            s.key = "key-anna"
            s.wait_line(r"^cpetd: ready$")
            assert s.lines[:2] == ["cpetd: listening on http://127.0.0.1:%d" % s.port,
                                   "cpetd: admin listening on unix:" + path], s.lines
            assert early.recv(100).startswith(b"HTTP/1.1 200")
            wait_until(lambda: manager.has("READY"), "READY=1")
            first = next(i for i, m in enumerate(manager.messages) if "READY" in m)
            assert first > 0 and all("STATUS" in m and "READY" not in m for m in manager.messages[:first])

            s.p.send_signal(signal.SIGHUP)
            s.wait_line("were reloaded")
            wait_until(lambda: manager.has("READY", first + 1), "READY=1 after the reload")
            reload = next(m for m in manager.messages if "RELOADING" in m)
            assert abs(int(reload["MONOTONIC_USEC"]) / 1e6 - time.monotonic()) < 60
            drains(s, manager)
        assert os.path.exists(path), "the manager's socket file was removed"
        socket.create_connection(http.getsockname()).close()  # the manager's socket still listens


def drains(s, manager):
    body = {"model": "base", "prompt": "Once", "max_tokens": 60, "ignore_eos": True}
    begun = threading.Barrier(9)

    def one():
        got = []
        for e in s.stream(COMP, body):
            if not got:
                begun.wait(30)
            got.append(e)
        return got

    box = []
    t = threading.Thread(target=lambda: box.extend(concurrently([one] * 8)))
    t.start()
    begun.wait(30)
    s.p.send_signal(signal.SIGTERM)
    t.join()
    assert len(box) == 8 and all(got[-1] == "[DONE]" and got[-2]["choices"][0]["finish_reason"] == "length" for got in box), box
    assert s.p.wait(timeout=20) == 0
    stopping = next(m for m in manager.messages if "STOPPING" in m)
    assert int(stopping["EXTEND_TIMEOUT_USEC"]) > 20e6


def test_watchdog():
    """Pings while it idles and works; none while a step hangs; again when it goes on."""
    with_libsystemd()
    with scratch() as d:
        manager = Manager(d)
        env = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "400000"}
        with Server("--inject-delay-ms", "1500", env=env) as s:
            begun = len(manager.times("WATCHDOG"))
            wait_until(lambda: len(manager.times("WATCHDOG")) >= begun + 5, "five pings", 5)
            t0 = time.monotonic()
            s.complete("Once", max_tokens=2, ignore_eos=True)
            t1 = time.monotonic()
            pings = [t for t in manager.times("WATCHDOG") if t0 < t < t1]
            longest = max(b - a for a, b in zip([t0, *pings], [*pings, t1]))
            assert t1 - t0 > 1.4 and longest > 0.9, (t1 - t0, longest)
            wait_until(lambda: len([t for t in manager.times("WATCHDOG") if t > t1]) >= 3, "pings again", 5)
        with Server(env={**env, "WATCHDOG_PID": "1"}) as s:  # another's watchdog
            n = len(manager.times("WATCHDOG"))
            time.sleep(0.5)
            assert len(manager.times("WATCHDOG")) == n


def refused(sockets, env, *args):
    """The exit status and stderr of a start with these sockets passed."""
    fds = [fcntl.fcntl(s.fileno(), fcntl.F_DUPFD, 30) for s in sockets]
    cmd = ["bash", "-c", PASS, "pass", *map(str, fds), "--", binary(), "--model", model(), "--check-config", *args]
    p = subprocess.run(cmd, capture_output=True, text=True, env=without_options(env), pass_fds=fds, timeout=30)
    for fd in fds:
        os.close(fd)
    return p.returncode, p.stderr


def test_sockets_refused():
    with_libsystemd()
    tcp, everywhere, bound = listening(), listening(addr=("0.0.0.0", 0)), socket.socket()
    bound.bind(("127.0.0.1", 0))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    a, b = socket.socketpair()
    with scratch() as d, open("/dev/null") as null:
        local = listening(socket.AF_UNIX, os.path.join(d, "s"))
        table = [
            ([tcp], "1", "http", 0, ""), ([tcp, local], "2", "http:admin", 0, ""), ([tcp], "1", "admin", 0, ""),
            ([tcp], "1", "web", 78, "neither http nor admin"), ([tcp], "1", None, 78, "neither http nor admin"), ([tcp, local], "2", "http:http", 78, "two"),
            ([bound], "1", "http", 78, "not a listening"), ([udp], "1", "http", 78, "not a listening"),
            ([a], "1", "http", 78, "not a listening"), ([null], "1", "http", 78, "not a listening"),
            ([everywhere], "1", "http", 78, "loopback"), ([everywhere], "1", "admin", 78, "loopback"),
            ([local], "1", "http", 78, "loopback"), ([tcp], "0", "http", 78, "LISTEN_FDS"), ([tcp], "-1", "http", 78, "LISTEN_FDS"),
            ([tcp], "many", "http", 78, "LISTEN_FDS"), ([tcp], "2147483647", "http", 78, "LISTEN_FDS"),
            ([tcp], "2", "http:admin", 78, "LISTEN_FDS"), ([tcp], "1", "http:admin", 78, "LISTEN_FDS"),
            ([tcp], "99999999999999999999", "http", 78, "LISTEN_FDS"), ([tcp], "1", "ht\ntp", 78, "neither"),
            ([tcp], "1", "h" * 300, 78, "neither"), ([tcp], "", "http", 78, "LISTEN_FDS"),
        ]
        for sockets, n, names, want, says in table:
            env = {"LISTEN_FDS": n, **({"LISTEN_FDNAMES": names} if names is not None else {})}
            code, err = refused(sockets, env)
            assert code == want and says in err, (n, names, code, err)
        for pid in ("1", ):  # meant for another process
            code, err = refused([tcp], {"LISTEN_FDS": "junk", "LISTEN_PID": pid})
            assert code == 0, (pid, code, err)
        for pid in ("junk", "-5", ""):
            code, err = refused([tcp], {"LISTEN_FDS": "1", "LISTEN_PID": pid})
            assert code in (0, 78), (pid, code, err)
    a.close()
    b.close()


def test_manager_out_of_reach():
    """NOTIFY_SOCKET and WATCHDOG_USEC of any kind: it serves, and says one line at most about each."""
    with_libsystemd()
    with scratch() as d:
        sockets = "", "x", "/", d + "/nobody", "@nobody", "vsock:junk", "/" + "x" * 300
        spans = "junk", "0", "-1", "1", "18446744073709551615", "99999999999999999999999", ""
        for notify, usec in zip(sockets, spans):
            with Server(env={"NOTIFY_SOCKET": notify, "WATCHDOG_USEC": usec}) as s:
                assert s.get("/ready")[0] == 200
                assert s.stop() == 0
                for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC"):
                    assert sum(name in line for line in s.lines) <= 1, s.lines


def test_credentials():
    """An admin key that its group may read is taken from $CREDENTIALS_DIRECTORY alone."""
    with scratch() as d:
        table = [("admin-key", 0o440, d, 0), ("admin-key", 0o400, d, 0), ("admin-key", 0o444, d, 78), ("admin-key", 0o460, d, 78),
                 ("admin-key", 0o440, None, 78), ("admin-key", 0o440, "/nowhere", 78), ("sub/admin-key", 0o440, d, 78),
                 ("admin-key", 0o440, d[:-1], 78), ("admin-key", 0o600, None, 0)]
        os.mkdir(os.path.join(d, "sub"))
        for name, mode, credentials, want in table:
            path = os.path.join(d, name)
            if os.path.exists(path):
                os.unlink(path)
            with open(path, "w") as f:
                f.write("admin-secret\n")
            os.chmod(path, mode)
            env = {"CREDENTIALS_DIRECTORY": credentials} if credentials else {}
            p = subprocess.run([binary(), "--model", model(), "--check-config", "--admin-key", path], capture_output=True,
                               text=True, env=without_options(env), timeout=30)
            assert p.returncode == want, (name, oct(mode), credentials, p.returncode, p.stderr)


def test_no_writable_code():
    """Answers are the same where no memory may be writable and executable (MemoryDenyWriteExecute=)."""
    deny = os.path.join(os.path.dirname(os.path.abspath(binary())), "tests", "unit", "model", "deny_wx")
    if not os.path.exists(deny):
        raise Skip("no deny_wx beside cpetd")
    texts = []
    for command in ((), (deny,)):
        with Server(command=command) as s:
            texts.append(s.text("The capital of France is, in 2024's words:\n\n  ", max_tokens=12))
            assert s.stop() == 0
    assert texts[0] == texts[1], texts


def main():
    model()
    run([test_sockets_and_readiness, test_watchdog, test_sockets_refused, test_manager_out_of_reach, test_credentials,
         test_no_writable_code], "e2e/service")


if __name__ == "__main__":
    main()
