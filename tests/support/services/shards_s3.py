"""A real S3 server in a process of its own, and a proxy before it that makes trouble."""

import http.client
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BUCKET = "pictures"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of a moto server on a free port of the loopback."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/")
                connection.getresponse().read()
                break
            except OSError:
                assert process.poll() is None, "the S3 server did not start"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


class Proxy(ThreadingHTTPServer):
    """Passes requests on; each one for a shard takes the next of `trouble` first.

    "503" answers that, ("cut", n) closes the connection after n bytes of the body,
    ("stall", n) holds it open there until `released`, "pass" does nothing.
    """

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream.removeprefix("http://")
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.trouble: list[str | tuple[str, int]] = []
        self.always: str | tuple[str, int] = "pass"
        self.shard_reads: list[str] = []  # the Range of every request for a shard
        self.stalled = threading.Event()
        self.released = threading.Event()

    def next_trouble(self) -> str | tuple[str, int]:
        return self.trouble.pop(0) if self.trouble else self.always


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, format: str, *args: object) -> None: ...

    def do_GET(self) -> None:
        self._pass_on()

    def do_HEAD(self) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        trouble: str | tuple[str, int] = "pass"
        if self.path.partition("?")[0].endswith(".tar"):
            self.server.shard_reads.append(self.headers.get("Range", "whole"))
            trouble = self.server.next_trouble()
        if trouble == "503":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=20)
        upstream.request(self.command, self.path, headers=dict(self.headers))
        answer = upstream.getresponse()
        body = answer.read()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if isinstance(trouble, str):
            self.wfile.write(body)
            return
        kind, count = trouble
        self.wfile.write(body[:count])
        self.wfile.flush()
        if kind == "stall":
            self.server.stalled.set()
            self.server.released.wait(30)
        self.close_connection = True


@contextmanager
def proxy_before(upstream: str) -> Iterator[Proxy]:
    with Proxy(upstream) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.released.set()
            proxy.shutdown()
            thread.join()
