"""An S3 server on this machine (moto's), and between it and whoever asks a proxy that can do what networks do.

The proxy lets one conditional write through at a time, as S3 itself decides between several; moto alone would not.
"""

import atexit
import functools
import http.client
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

SLOW_DOWN = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
DENIED = "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
SILENCE_SECONDS = 2.0


class Proxy(ThreadingHTTPServer):
    """Hands requests on, each after `fault(method, path)` has said what happens to it; None for nothing."""

    daemon_threads = True

    def __init__(self, port):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port, self.url = port, f"http://127.0.0.1:{self.server_address[1]}"
        self.one_at_a_time = threading.Lock()
        self.reset()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def reset(self):
        self.fault = lambda method, path: None
        self.older = {}
        """End of a path → by how many seconds its objects are older than they are."""
        self.requests = []
        """Method, path and fault of each request since."""

    def handle_error(self, request, client_address):
        """Clients that were cut off cut off in turn."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Say nothing."""

    def do(self):
        fault = self.server.fault(self.command, self.path)
        self.server.requests.append((self.command, self.path, fault))
        length = int(self.headers.get("Content-Length") or 0)
        if fault == "reset":
            return self.cut_off()
        body = self.rfile.read(length // 2 if fault == "torn" else length)
        if fault == "torn":
            return self.cut_off()
        if fault == "silence":
            time.sleep(SILENCE_SECONDS)
            return self.cut_off()
        if fault == "slow":
            time.sleep(0.2)
        if fault == "503":
            return self.answer(503, {"Retry-After": "1"}, SLOW_DOWN.encode())
        if fault == "403":
            return self.answer(403, {}, DENIED.encode())
        if fault == "careless":
            for name in ("If-None-Match", "If-Match"):
                del self.headers[name]
        status, headers, data = self.forward(body)
        if fault == "lost":
            return self.cut_off()
        if fault == "cut" and self.command == "GET" and len(data) > 1:
            return self.answer(status, headers, data, sent=len(data) // 2)
        return self.answer(status, headers, data)

    def forward(self, body):
        with self.server.one_at_a_time:
            upstream = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
            upstream.request(self.command, self.path, body, dict(self.headers))
            found = upstream.getresponse()
            data = found.read()
            upstream.close()
        kept = {
            n.title(): v
            for n, v in found.getheaders()
            if n.lower() not in ("connection", "transfer-encoding", "server")
        }
        for end, seconds in self.server.older.items():
            if self.path.endswith(end) and "Last-Modified" in kept:
                then = parsedate_to_datetime(kept["Last-Modified"]) - timedelta(seconds=seconds)
                kept["Last-Modified"] = format_datetime(then, usegmt=True)
        return found.status, kept, data

    def answer(self, status, headers, data, sent=None):
        self.send_response_only(status)
        if self.command != "HEAD" or "Content-Length" not in headers:
            headers = {n: v for n, v in headers.items() if n.lower() != "content-length"}
            headers["Content-Length"] = str(len(data))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data if sent is None else data[:sent])
            if sent is not None:
                self.wfile.flush()
                self.cut_off()

    def cut_off(self):
        """A reset: unsent bytes are thrown away, and the other side is told."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


for _method in ("GET", "PUT", "HEAD", "POST", "DELETE"):
    setattr(_Handler, f"do_{_method}", _Handler.do)


@functools.cache
def server():
    """The proxy before a server that lives as long as this process."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    atexit.register(process.kill)
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return Proxy(port)
        except OSError:
            time.sleep(0.02)
    raise RuntimeError("moto's server did not start")


CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
    "AWS_METADATA_ENDPOINT": "http://127.0.0.1:1",
}
_numbers = iter(range(10**9))


@pytest.fixture
def s3(monkeypatch, tmp_path):
    """The proxy, with this process's environment set to it, a cache of its own, and little patience."""
    from quantascope.storage import objects, providers

    proxy = server()
    proxy.reset()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": proxy.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    quick = providers.Patience(first_wait_seconds=0.01, longest_wait_seconds=0.05, silence_seconds=1.0)
    monkeypatch.setattr(objects, "PATIENCE", quick)
    yield proxy
    proxy.reset()


@pytest.fixture
def bucket(s3):
    """The URI of an empty bucket."""
    name = f"bucket-{os.getpid()}-{next(_numbers)}"
    connection = http.client.HTTPConnection(s3.url.removeprefix("http://"))
    connection.request("PUT", f"/{name}")
    assert connection.getresponse().status == 200
    connection.close()
    s3.reset()
    return f"s3://{name}"
