"""The probe: a worker's health over HTTP, for Docker, Kubernetes and load balancers.

``GET /health`` is answered by threads of the worker's parent, from what the watchdog saw last and
what the board shows now. Nothing here asks the queue file or waits for a child.
"""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from http.server import HTTPServer
from socketserver import ThreadingMixIn
from typing import Any

from celery.utils.log import get_logger

from .native import start_thread

logger = get_logger(__name__)

#: How long a client may take to send its request, or to take the answer (seconds).
PATIENCE = 2.0
#: How many clients are answered at once.
CLIENTS = 16
#: How many bytes the head of a request may have.
HEAD = 16_384
#: How often the thread looks whether it is to end (seconds).
LOOK = 0.5


class Probe:
    """The HTTP server of one worker; the address is taken when it is made.

    :param address: a host and a port.
    :param describe: returns the worker's health as JSON takes it, with its ``status``.
    """

    def __init__(self, address: Any, describe: Callable[[], dict[str, Any]]) -> None:
        self.host, self.port = _parse(address)
        self._describe = describe
        self._listener = _listen(self.host, self.port)
        self._stopped = False
        self._file = self._listener.fileno()
        # A child that outlived its parent would keep the next worker from the port.
        os.register_at_fork(after_in_child=self._close_in_child)

    def start(self) -> None:
        """Begin to answer."""
        start_thread(self._run, "celeriac-probe")
        host = f"[{self.host}]" if ":" in self.host else self.host or "0.0.0.0"
        logger.info("Health is told on http://%s:%s/health", host, self.port)

    def stop(self) -> None:
        """Answer no more."""
        self._stopped = True

    def _close_in_child(self) -> None:
        if not self._stopped:
            self._stopped = True
            os.close(self._file)

    def _run(self) -> None:
        with _Server(self._listener, self._describe) as server:
            while not self._stopped:
                server.handle_request()


class _Server(ThreadingMixIn, HTTPServer):
    daemon_threads = True
    block_on_close = False
    timeout = LOOK

    def __init__(self, listener: socket.socket, describe: Callable[[], dict[str, Any]]) -> None:
        super().__init__(("", 0), _Request, bind_and_activate=False)
        self.socket.close()
        # A socket of this very thread: with gevent it belongs to the thread's own loop.
        self.socket = socket.socket(fileno=listener.detach())
        self.describe = describe
        self._free = threading.Semaphore(CLIENTS)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # What clients do is no business of the worker's log.
        level = logging.DEBUG if isinstance(sys.exc_info()[1], OSError) else logging.ERROR
        logger.log(level, "A request for the health failed", exc_info=True)


class _Request(BaseHTTPRequestHandler):
    """One request. Its head is read as a whole, in limited time."""

    server: _Server
    server_version = "Celeriac"
    sys_version = ""
    timeout = PATIENCE

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(io.BytesIO(self._read_head()))

    def do_GET(self) -> None:
        if self.path.partition("?")[0] not in ("/", "/health"):
            self._answer(404, {"error": "There is /health, and nothing else."})
            return
        told = self.server.describe()
        self._answer(503 if told["status"] == "wedged" else 200, told)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a probe comes every few seconds."""

    def _answer(self, code: int, told: dict[str, Any]) -> None:
        body = json.dumps(told).encode() + b"\n"
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _read_head(self) -> bytes:
        deadline = time.monotonic() + PATIENCE
        head = b""
        while b"\r\n\r\n" not in head and b"\n\n" not in head and len(head) < HEAD:
            self.connection.settimeout(max(0.001, deadline - time.monotonic()))
            data = self.connection.recv(HEAD)
            if not data:
                break
            head += data
        self.connection.settimeout(PATIENCE)
        return head


def _parse(address: Any) -> tuple[str, int]:
    host, colon, port = str(address).rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise SystemExit(
            f"The worker can not start. worker_health_address is {address!r}, and a host and a "
            "port are needed: '127.0.0.1:8100', or ':8100' for every interface."
        )
    return host.removeprefix("[").removesuffix("]"), int(port)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(CLIENTS)
    except OSError as exc:
        listener.close()
        raise SystemExit(
            f"The worker can not start. It is to tell its health on {host}:{port}, which can not "
            f"be had ({exc.strerror}). Each worker of a machine needs a port of its own: end what "
            "has it, or set worker_health_address."
        ) from None
    return listener
