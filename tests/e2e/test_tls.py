#!/usr/bin/env python3
"""TLS at the listeners: streams, who may connect, who is too slow, plain HTTP at a TLS port, certificates read again.
Needs CPETD_MODEL, build/cpetd (or CPETD) and openssl(1), which makes the certificates."""
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time

from cpetd_run import Server, Skip, binary, events, model, run, scratch, wait_until, without_options

COMP = "/v1/completions"


def openssl(*args):
    if not shutil.which("openssl"):
        raise Skip("openssl is not installed")
    p = subprocess.run(["openssl", *args], capture_output=True, text=True)
    assert p.returncode == 0, p.stderr


class Certs:
    """An authority, what it signed, and a stranger."""

    def __init__(self, d):
        self.d = d
        self.ca = self.make("ca", None)
        self.server = self.make("server", "ca", "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth")
        self.next = self.make("next", "ca", "subjectAltName=IP:127.0.0.1")
        self.client = self.make("client", "ca", "extendedKeyUsage=clientAuth")
        self.stranger = self.make("stranger", None)

    def path(self, name):
        return os.path.join(self.d, name)

    def make(self, name, ca, ext=""):
        key, csr, crt = (self.path(name + e) for e in (".key", ".csr", ".crt"))
        new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-subj", "/CN=" + name]
        if not ca:
            openssl("req", "-x509", *new, "-days", "2", "-out", crt)
        else:
            openssl("req", *new, "-out", csr)
            with open(self.path(name + ".ext"), "w") as f:
                f.write(ext)
            openssl("x509", "-req", "-in", csr, "-CA", self.path(ca + ".crt"), "-CAkey", self.path(ca + ".key"), "-CAcreateserial", "-days", "2",
                    "-extfile", self.path(name + ".ext"), "-out", crt)
        os.chmod(key, 0o600)
        return crt, key

    def context(self, client=None):
        c = ssl.create_default_context(cafile=self.ca[0])
        if client:
            c.load_cert_chain(*client)
        return c


class TlsServer(Server):
    """Server's requests, over TLS."""
    context = admin_context = None

    def _port(self, what):
        if what.startswith("listening") or self.admin_context:
            what = what.replace("http://", "https://")
        return super()._port(what)

    def connection(self, admin=False, timeout=60):
        port, context = (self.admin_port, self.admin_context) if admin else (self.port, self.context)
        if not context:
            return http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        return http.client.HTTPSConnection("127.0.0.1", port, timeout=timeout, context=context)

    def request(self, method, path, body=None, headers=None, admin=False, timeout=120):
        c = self.connection(admin, timeout)
        c.request(method, path, json.dumps(body) if isinstance(body, (dict, list)) else body, {"Content-Type": "application/json", **(headers or {})})
        r = c.getresponse()
        data = r.read()
        c.close()
        return r.status, dict(r.getheaders()), data

    def raw(self, **kw):
        s = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        return self.context.wrap_socket(s, server_hostname="127.0.0.1", **kw)


def started(certs, *args, client=None, admin=False):
    TlsServer.context = certs.context(client)
    TlsServer.admin_context = certs.context() if admin else None
    return TlsServer("--tls-cert", certs.server[0], "--tls-key", certs.server[1], *args)


def test_requests_and_streams():
    with scratch() as d:
        certs = Certs(d)
        with started(certs, "--admin-tls-cert", certs.server[0], "--admin-tls-key", certs.server[1], admin=True) as s:
            assert s.lines[0].startswith("cpetd: listening on https://127.0.0.1:") and s.lines[1].startswith("cpetd: admin listening on https://")
            whole = s.complete("Once upon a time", max_tokens=24)["choices"][0]["text"]
            c = s.connection()  # several requests on a connection, a stream among them
            for _ in range(2):
                c.request("POST", COMP, json.dumps({"model": "base", "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0, "stream": True}),
                          {"Content-Type": "application/json"})
                got = list(events(c.getresponse()))
                assert got[-1] == "[DONE]" and "".join(x["choices"][0]["text"] for x in got[:-1]) == whole
                c.request("GET", "/health")
                assert c.getresponse().read() == b'{"status": "ok"}'
            assert c.sock.version() == "TLSv1.3"
            c.close()
            assert s.metric("cpet_connections") >= 1
            # a large body, and a large answer: many records each way
            status, r = s.post("/tokenize", {"model": "base", "prompt": "word " * 100000})
            assert status == 200 and r["count"] >= 100000, (status, str(r)[:300])
            # eight streams at once
            texts = [None] * 8

            def one(i):
                c = s.connection()
                c.request("POST", COMP, json.dumps({"model": "base", "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0, "stream": True}),
                          {"Content-Type": "application/json"})
                texts[i] = "".join(x["choices"][0]["text"] for x in list(events(c.getresponse()))[:-1])
            threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
            [t.start() for t in threads], [t.join() for t in threads]
            assert texts == [whole] * 8
            # a client that leaves is noticed
            c = s.connection()
            c.request("POST", COMP, json.dumps({"model": "base", "prompt": "x", "max_tokens": 4000, "ignore_eos": True, "stream": True}), {"Content-Type": "application/json"})
            c.getresponse().readline()
            assert s.metric("vllm:num_requests_running") == 1
            c.close()
            wait_until(lambda: s.metric("vllm:num_requests_running") == 0, "the request cancelled")
            assert s.stop() == 0


def test_versions_and_alpn():
    with scratch() as d:
        certs = Certs(d)
        with started(certs) as s:
            def speaks(minimum, maximum, alpn=None):
                c = certs.context()
                c.minimum_version, c.maximum_version = minimum, maximum
                c.set_ciphers("DEFAULT:@SECLEVEL=0")
                if alpn:
                    c.set_alpn_protocols(alpn)
                with socket.create_connection(("127.0.0.1", s.port), timeout=10) as raw, c.wrap_socket(raw, server_hostname="127.0.0.1") as t:
                    t.sendall(b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
                    assert t.recv(100).startswith(b"HTTP/1.1 200")
                    return t.version(), t.selected_alpn_protocol()
            v = ssl.TLSVersion
            assert speaks(v.TLSv1_2, v.TLSv1_2) == ("TLSv1.2", None)
            assert speaks(v.TLSv1_3, v.TLSv1_3, ["h2", "http/1.1"]) == ("TLSv1.3", "http/1.1")
            for args in ((v.TLSv1, v.TLSv1_1), (v.TLSv1_2, v.TLSv1_3, ["h2"])):
                try:
                    speaks(*args)
                    raise AssertionError("%s was taken" % (args,))
                except (ssl.SSLError, ConnectionError):
                    pass
            try:  # a client that does not know the authority
                ssl.create_default_context().wrap_socket(socket.create_connection(("127.0.0.1", s.port)), server_hostname="127.0.0.1")
                raise AssertionError("no authority needed")
            except ssl.SSLCertVerificationError:
                pass
            assert s.get("/health")[0] == 200


def test_plain_http_and_garbage():
    with scratch() as d:
        with started(Certs(d)) as s:
            with socket.create_connection(("127.0.0.1", s.port), timeout=10) as c:
                c.sendall(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n")
                answer = c.makefile("rb").read()
                assert answer.startswith(b"HTTP/1.1 400 ") and b"this address speaks HTTPS" in answer, answer
            for junk in (b"\x16\x03\x01\xff\xff" + b"x" * 100, b"\x16\x03\x01\x00\x05hello", b"\x00" * 50, b"\x16"):
                with socket.create_connection(("127.0.0.1", s.port), timeout=15) as c:
                    c.sendall(junk)
                    c.shutdown(socket.SHUT_WR)
                    while c.recv(1000):
                        pass
            assert s.get("/health")[0] == 200
            wait_until(lambda: s.metric("cpet_connections") <= 2, "the connections gone")


def test_slow_handshake():
    """Ten seconds for the handshake; and who is slow holds nobody up."""
    with scratch() as d:
        with started(Certs(d)) as s:
            start = time.time()
            silent = socket.create_connection(("127.0.0.1", s.port), timeout=30)
            slow = socket.create_connection(("127.0.0.1", s.port), timeout=30)
            inc, out = ssl.MemoryBIO(), ssl.MemoryBIO()
            client = s.context.wrap_bio(inc, out, server_hostname="127.0.0.1")
            try:
                client.do_handshake()
            except ssl.SSLWantReadError:
                pass
            hello = out.read()

            def drip():
                for b in hello:
                    try:
                        slow.send(bytes([b]))
                    except OSError:
                        return
                    time.sleep(0.1)
            t = threading.Thread(target=drip, daemon=True)
            t.start()
            for _ in range(5):
                before = time.time()
                assert s.get("/health")[0] == 200 and time.time() - before < 1
            assert silent.recv(10) == b""
            assert slow.recv(10) == b""
            assert 8 < time.time() - start < 15, time.time() - start
            silent.close(), slow.close()


def test_client_certificates():
    with scratch() as d:
        certs = Certs(d)
        with started(certs, "--tls-client-ca", certs.ca[0], client=certs.client) as s:
            assert s.complete("x", max_tokens=2)["choices"]
            for wrong in (None, certs.stranger, certs.server):  # none, another authority's, one for servers
                s.context = certs.context(wrong)
                try:
                    status = s.get("/health")[0]
                    raise AssertionError("%s was taken: %s" % (wrong, status))
                except (ssl.SSLError, ConnectionError, http.client.RemoteDisconnected):
                    pass
            s.context = certs.context(certs.client)
            assert s.get("/health")[0] == 200


def test_reload():
    with scratch() as d:
        certs = Certs(d)
        cert, key = certs.path("now.crt"), certs.path("now.key")

        def put(pair):
            for src, dst in ((pair[0], cert), (pair[1], key)):
                shutil.copy(src, dst)
            os.chmod(key, 0o600)

        def shown(s):
            with s.raw() as t:
                return dict(x[0] for x in t.getpeercert()["subject"])["commonName"]
        put(certs.server)
        TlsServer.context, TlsServer.admin_context = certs.context(), None
        with TlsServer("--tls-cert", cert, "--tls-key", key) as s:
            assert shown(s) == "server"
            old = s.connection()
            old.request("GET", "/health")
            assert old.getresponse().read()
            stream = s.connection()
            stream.request("POST", COMP, json.dumps({"model": "base", "prompt": "x", "max_tokens": 300, "ignore_eos": True, "stream": True}),
                           {"Content-Type": "application/json"})
            r = stream.getresponse()
            r.readline()
            put(certs.next)
            s.p.send_signal(signal.SIGHUP)
            s.wait_line("the certificates were reloaded")
            assert shown(s) == "next"
            old.request("GET", "/health")  # connections that are open go on
            assert old.getresponse().read() == b'{"status": "ok"}'
            assert r.read().endswith(b"data: [DONE]\n\n")
            shutil.copy(certs.server[0], cert)  # does not fit the key
            s.p.send_signal(signal.SIGHUP)
            s.wait_line("the certificates were not reloaded")
            assert shown(s) == "next"
            os.chmod(key, 0o644)
            s.p.send_signal(signal.SIGHUP)
            s.wait_line("not reloaded.*0600")
            assert shown(s) == "next"


def test_configuration():
    with scratch() as d:
        certs = Certs(d)
        loose = certs.path("loose.key")
        shutil.copy(certs.server[1], loose)
        os.chmod(loose, 0o640)
        cert, key = certs.server
        table = [(["--tls-cert", cert], "--tls-key"), (["--tls-key", key], "--tls-cert"), (["--tls-client-ca", cert], "--tls-cert"),
                 (["--tls-cert", cert, "--tls-key", loose], "0600"), (["--tls-cert", cert, "--tls-key", "/nowhere"], "/nowhere"),
                 (["--tls-cert", key, "--tls-key", key], key), (["--tls-cert", certs.ca[0], "--tls-key", key], certs.ca[0]),
                 (["--tls-cert", cert, "--tls-key", key, "--tls-client-ca", key], key),
                 (["--admin-tls-cert", cert, "--admin-tls-key", key], "--admin-listen"),
                 (["--admin-tls-cert", cert, "--admin-tls-key", key, "--admin-listen", "unix:" + d + "/s"], "--admin-listen")]
        for args, says in table:
            p = subprocess.run([binary(), "--model", model(), "--check-config", *args], capture_output=True, text=True, env=without_options(), timeout=30)
            assert p.returncode == 78 and says in p.stderr, (args, p)
        p = subprocess.run([binary(), "--model", model(), "--check-config", "--tls-cert", cert, "--tls-key", key], capture_output=True, text=True,
                           env=without_options(), timeout=30)
        assert p.returncode == 0, p


if __name__ == "__main__":
    model()
    run([test_requests_and_streams, test_versions_and_alpn, test_plain_http_and_garbage, test_slow_handshake, test_client_certificates,
         test_reload, test_configuration], "e2e/tls")
