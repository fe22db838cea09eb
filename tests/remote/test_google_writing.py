"""Writing to ``gs://``, against a small server that speaks the part of Google's XML interface that is used."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import fake_slides as slides
import pytest

import regframe as rf

pytest.importorskip("obstore")


class _Bucket(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    held: dict[str, bytes]
    refused: list[str]

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("ETag", f'"{hash(body)}"')
        self.send_header("Last-Modified", formatdate(usegmt=True))
        self.send_header("x-goog-generation", "1")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix("/bucket").lstrip("/")

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if any(text in self._key() for text in self.refused):
            self._answer(403)
            return
        self.held[self._key()] = data
        self._answer(200)

    def do_DELETE(self) -> None:
        self._answer(204 if self.held.pop(self._key(), None) is not None else 404)

    def do_HEAD(self) -> None:
        key = self._key()
        self._answer(200, length=len(self.held[key])) if key in self.held else self._answer(404)

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" in query:
            self._answer(200, self._listing(query.get("prefix", [""])[0], query.get("delimiter", [""])[0]))
            return
        data = self.held.get(self._key())
        if data is None:
            self._answer(404)
            return
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if not asked:
            self._answer(200, data)
            return
        first, _, last = asked.partition("-")
        start, stop = (
            (int(first), min(len(data), int(last) + 1 if last else len(data)))
            if first
            else (len(data) - int(last), len(data))
        )
        self.send_response(206)
        for name, value in (("Content-Length", stop - start), ("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}"),
                            ("ETag", f'"{hash(data)}"'), ("Last-Modified", formatdate(usegmt=True))):  # fmt: skip
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data[start:stop])

    def _listing(self, prefix: str, delimiter: str) -> bytes:
        keys = sorted(key for key in self.held if key.startswith(prefix))
        folders = {
            prefix + key[len(prefix) :].partition("/")[0] + "/"
            for key in keys
            if delimiter and "/" in key[len(prefix) :]
        }
        shown = [key for key in keys if not (delimiter and "/" in key[len(prefix) :])]
        items = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f'<ETag>"1"</ETag><Size>{len(self.held[key])}</Size></Contents>'
            for key in shown
        )
        items += "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders)
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>".encode()


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Bucket]]:
    handler = type("Handler", (_Bucket,), {"held": {}, "refused": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        account = {"gcs_base_url": f"http://127.0.0.1:{server.server_address[1]}", "disable_oauth": True}
        account |= {"client_email": "", "private_key": "", "private_key_id": ""}
        (tmp_path / "account.json").write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
        yield handler
        server.shutdown()
        thread.join()


def test_a_slide_is_written_to_a_google_bucket_and_goes_on(google: type[_Bucket], tmp_path: Path) -> None:
    source, here = str(tmp_path / "s"), tmp_path / "o.zarr"
    slides.plan(source, str(here), shard=128, chunk=64).write(1)
    there = slides.plan(source, "gs://bucket/runs/o.zarr", shard=128, chunk=64)
    last = max(p.relative_to(here).as_posix() for p in (here / "0").rglob("*") if p.is_file() and p.name.isdecimal())
    google.refused.append(last)
    with pytest.raises(rf.RemoteError, match=r"cannot write gs://bucket/runs/o\.zarr.*are kept"):
        there.write(1)
    assert "runs/o.zarr/zarr.json" not in google.held
    kept = there.done()
    assert kept
    google.refused.clear()
    written = dict(google.held)
    there.write(1)
    files = {p.relative_to(here).as_posix(): p.read_bytes() for p in here.rglob("*") if p.is_file()}
    assert {key.removeprefix("runs/o.zarr/"): data for key, data in google.held.items()} == files
    assert all(google.held[key] == data for key, data in written.items() if "/c/" in key)
    again = rf.open_pyramid("gs://bucket/runs/o.zarr").image().data
    assert bool((again == rf.open_pyramid(here).image().data).all())
    with pytest.raises(FileExistsError, match="pass --overwrite"):
        slides.plan(source, "gs://bucket/runs/o.zarr", shard=128, chunk=64).write(1)
