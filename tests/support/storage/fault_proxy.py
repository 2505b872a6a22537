"""A proxy between a client and an S3 server that delays, refuses, resets and truncates, at given rates and by a seed.

It speaks plain HTTP/1.1, one request for each connection, which is all that faults need.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SO_LINGER, SOL_SOCKET
from struct import pack
from urllib.parse import urlsplit

SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)

# Linger for no time: the peer sees a reset, not an end.
_RESET = pack("ii", 1, 0)

_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "date", "server"}


@dataclass(frozen=True)
class Faults:
    """The share of requests that each fault happens to; faults are drawn one by one, in this order.

    Attributes
    ----------
    slow_down
        Answered with 503 SlowDown; the server never sees the request.
    reset
        The connection is reset before the server sees the request.
    lost_answer
        The server carries the request out; the connection is reset before the answer.
    truncated
        Half of the body, then the end of the connection.
    relabelled
        Half of the body, with a Content-Length of that half.
    latency
        Answered after ``latency_s``.
    only
        Faults happen only to requests whose path contains this.
    """

    slow_down: float = 0.0
    reset: float = 0.0
    lost_answer: float = 0.0
    truncated: float = 0.0
    relabelled: float = 0.0
    latency: float = 0.0
    latency_s: float = 0.05
    seed: int = 0
    only: str = ""


class FaultProxy:
    """A running proxy.

    Attributes
    ----------
    endpoint
        Its address.
    faults
        What goes wrong from now on; may be replaced at any time.
    counts
        How often each fault was injected; ``requests`` are all.
    """

    def __init__(self, target: str, faults: Faults) -> None:
        self.faults, self.counts = faults, Counter[str]()
        self._target = urlsplit(target).netloc
        self._random, self._lock = random.Random(faults.seed), threading.Lock()
        proxy = self

        class Handler(_Handler):
            def respond(self) -> None:
                proxy.handle(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def injected(self) -> int:
        """How many faults were injected, delays not counted."""
        return sum(self.counts[name] for name in ("slow_down", "reset", "lost_answer", "truncated", "relabelled"))

    def handle(self, handler: "_Handler") -> None:
        """Answer one request, or fail to."""
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        with self._lock:
            self.counts["requests"] += 1
        faults = self.faults if self.faults.only in handler.path else Faults()
        if self._draw("latency", faults.latency):
            time.sleep(faults.latency_s)
        if self._draw("slow_down", faults.slow_down):
            handler.send_response(503)
            handler.answer(SLOW_DOWN, {"Content-Type": "application/xml"})
            return
        if self._draw("reset", faults.reset):
            handler.reset()
            return
        answer, content = self._forward(handler, body)
        if self._draw("lost_answer", faults.lost_answer):
            handler.reset()
            return
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP}
        handler.send_response(answer.status)
        has_body = handler.command == "GET" and answer.status in (200, 206) and len(content) > 1
        if has_body and self._draw("truncated", faults.truncated):
            handler.answer(content[: len(content) // 2], headers)
            handler.reset()
        elif has_body and self._draw("relabelled", faults.relabelled):
            half = content[: len(content) // 2]
            handler.answer(half, {**_without_length(headers), "Content-Length": str(len(half))})
        else:
            handler.answer(content, headers)

    def _draw(self, name: str, share: float) -> bool:
        with self._lock:
            happens = share > 0 and self._random.random() < share
            self.counts[name] += happens
            return happens

    def _forward(self, handler: "_Handler", body: bytes) -> tuple[HTTPResponse, bytes]:
        connection = HTTPConnection(self._target, timeout=60)
        try:
            # The Host header is part of the signature: it stays the proxy's.
            connection.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
            for name, value in handler.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.putheader("Connection", "close")
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    # S3's clients ask whether to go on before they send a body, which 1.0 does not answer.
    protocol_version = "HTTP/1.1"

    def respond(self) -> None:
        raise NotImplementedError

    def do_GET(self) -> None:
        self.respond()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 - the names that http.server gives them

    def answer(self, content: bytes, headers: dict[str, str]) -> None:
        """Send headers and a body; HEAD keeps the length of the body that it does not have."""
        for name, value in headers.items():
            self.send_header(name, value)
        if self.command != "HEAD" and "content-length" not in {name.lower() for name in headers}:
            self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()

    def reset(self) -> None:
        """Reset the connection."""
        self.connection.setsockopt(SOL_SOCKET, SO_LINGER, _RESET)
        self.close_connection = True

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True  # the client has gone

    def finish(self) -> None:
        try:
            super().finish()
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that http.server gives it
        pass


def _without_length(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() != "content-length"}


@contextmanager
def fault_proxy(target: str, faults: Faults) -> Iterator[FaultProxy]:
    """Yield a proxy before a server while the block runs."""
    proxy = FaultProxy(target, faults)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
