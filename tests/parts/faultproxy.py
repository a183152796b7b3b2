"""A proxy in front of an object store that goes wrong on purpose, and counts what is asked."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from attrs import define, field


@define
class Faults:
    """What goes wrong now; changed by the test while the proxy runs."""

    status: int | None = None  #: answered instead of asking the server
    delay_s: float = 0.0  #: before any answer
    is_dead: bool = False  #: connections end without an answer
    cut_at: float | None = None  #: share of a body after which the connection ends
    body: Callable[[bytes], bytes] | None = None  #: what becomes of the body of a GET
    path: Callable[[str], str] = lambda path: path  #: what is asked of the server instead
    ignores_conditions: bool = False  #: If-None-Match is not passed on


@define
class FaultProxy:
    """The proxy: ``port``, ``faults``, and ``asked``: requests by method, and "list" for those that list a bucket."""

    port: int
    faults: Faults
    asked: Counter[str] = field(factory=Counter)


@contextlib.contextmanager
def fault_proxy(server_port: int) -> Iterator[FaultProxy]:
    """A proxy in front of ``server_port`` while the block runs."""
    faults, asked = Faults(), Counter[str]()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked["list" if "list-type" in self.path else self.command] += 1
            time.sleep(faults.delay_s)
            if faults.is_dead:
                self.close_connection = True
                return
            if faults.status is not None:
                self.respond(faults.status, {}, b"<Error><Code>Refused</Code></Error>")
                return
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "accept-encoding")}
            if faults.ignores_conditions:
                headers = {k: v for k, v in headers.items() if k.lower() != "if-none-match"}
            server = http.client.HTTPConnection("127.0.0.1", server_port, timeout=60)
            try:
                server.request(self.command, faults.path(self.path), body, headers)
                answer = server.getresponse()
                text = answer.read()
            finally:
                server.close()
            if self.command == "GET" and answer.status == 200 and faults.body is not None:
                text = faults.body(text)
            self.respond(answer.status, dict(answer.getheaders()), text)

        def respond(self, status: int, headers: dict[str, str], text: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                    self.send_header(name, value)
            told = next((v for k, v in headers.items() if k.lower() == "content-length"), "0")
            is_head = self.command == "HEAD"
            self.send_header("Content-Length", told if is_head else str(len(text)))
            self.end_headers()
            if is_head:
                return
            if faults.cut_at is not None and self.command == "GET":
                text = text[: int(len(text) * faults.cut_at)]
                self.close_connection = True
            self.wfile.write(text)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield FaultProxy(server.server_address[1], faults, asked)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
