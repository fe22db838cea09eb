"""Servers on loopback for tests of remote stores: a web server with byte ranges and an S3 server, which count and can fail."""

from __future__ import annotations

import contextlib
import http.server
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote


@dataclass
class Log:
    """What a server was asked for, and sent.

    Args:
        sent: bytes of all answers to GET.
        asked: method and path of every request, with its range.
        cut: how many of the next answers with a body of more than 1000 bytes are cut in the middle.
        status: a status to answer with, for paths that hold the text.
    """

    sent: int = 0
    asked: list[str] = field(default_factory=list)
    cut: int = 0
    status: dict[str, int] = field(default_factory=dict)

    def clear(self) -> None:
        self.sent, self.cut = 0, 0
        self.asked.clear()
        self.status.clear()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    log: Log
    ranges = True

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, body: bool) -> None:
        asked = self.headers.get("Range")
        name = unquote(self.path.partition("?")[0].lstrip("/"))
        self.log.asked.append(f"{self.command} {name} {asked or ''}".strip())
        status = next((code for text, code in self.log.status.items() if text in name), 0)
        file = self.folder / name
        if status or not file.is_file():
            self._headers(status or 404, 0)
            return
        data = file.read_bytes()
        start, stop = 0, len(data)
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", asked or "") if self.ranges else None
        if found:
            if found[1]:
                start, stop = int(found[1]), min(stop, int(found[2]) + 1 if found[2] else stop)
            else:
                start = max(0, stop - int(found[2]))
            if start >= stop:
                self._headers(416, 0)
                return
        extra = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"} if found else {}
        self._headers(206 if found else 200, stop - start, {"ETag": f'"{hash(data)}"', **extra})
        if not body:
            return
        if self.log.cut and stop - start > 1000:
            self.log.cut -= 1
            stop = (start + stop) // 2
            self.close_connection = True
        self.log.sent += stop - start  # before the client can go on
        with contextlib.suppress(ConnectionError):  # it has read enough
            self.wfile.write(data[start:stop])

    def _headers(self, status: int, length: int, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        fixed = {"Content-Length": str(length), "Last-Modified": "Mon, 30 Nov 2026 00:00:00 GMT"}
        for name, value in (fixed | (more or {})).items():
            self.send_header(name, value)
        self.end_headers()


@contextlib.contextmanager
def web(folder: Path, ranges: bool = True) -> Iterator[tuple[str, Log]]:
    """A web server of a folder; yields its address and its log."""
    log = Log()
    handler = type("Handler", (_Handler,), {"folder": folder, "log": log, "ranges": ranges})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", log
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def s3() -> Iterator[tuple[str, Log]]:
    """An S3 server (moto's); yields its address and its log. The variables of the environment are the caller's to set."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    log = Log()
    app = DomainDispatcherApplication(create_backend_app)

    def counted(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        name = environ["PATH_INFO"].lstrip("/")
        log.asked.append(f"{environ['REQUEST_METHOD']} {name} {environ.get('HTTP_RANGE', '')}".strip())
        status = next((code for text, code in log.status.items() if text in name), 0)
        if status:
            start(f"{status} no", [("Content-Length", "0")])
            return [b""]
        body = b"".join(app(environ, start))
        if environ["REQUEST_METHOD"] == "GET":
            log.sent += len(body)
        return [body]

    server = make_server("127.0.0.1", 0, counted, threaded=True)
    server.RequestHandlerClass.log = lambda *_: None  # type: ignore[union-attr]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", log
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
