"""Nobody gets in but the user's own browser, and nothing but the page's own files is ever read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from regframe.view.gate import MOST_BYTES, Gate

HOME = "http://127.0.0.1:8000"


def guarded() -> TestClient:
    return TestClient(Gate(PlainTextResponse("inside"), "word"), base_url=HOME)


def test_the_word_opens_once() -> None:
    client = guarded()
    first = client.get("/?token=word", headers={"sec-fetch-site": "cross-site"})
    assert first.status_code == 200
    assert "inside" not in first.text
    cookie = first.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert client.get("/").text == "inside"
    assert client.get("/anything?token=old").text == "inside"
    client.cookies.clear()
    assert client.get("/?token=word").status_code == 403


@pytest.mark.parametrize("path", ["/", "/?token=", "/?token=wrong", "/static/main.js?token=word", "/api/state"])
def test_without_the_word_nothing(path: str) -> None:
    assert guarded().get(path).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example:8000"},
        {"host": "localhost:8000@evil.example"},
        {"host": ""},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:8000"},
        {"origin": "http://127.0.0.1:9"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
    ids=str,
)
def test_other_sites_are_refused(headers: dict[str, str]) -> None:
    client = guarded()
    client.get("/?token=word")
    assert client.get("/").text == "inside"
    assert client.get("/", headers=headers).status_code == 403


@pytest.mark.parametrize("host", ["localhost:9999", "127.0.0.1", "[::1]:1", "LOCALHOST:22"])
def test_a_forwarded_port_is_let_in(host: str) -> None:
    client = guarded()
    client.get("/?token=word")
    assert client.get("/", headers={"host": host, "origin": f"http://{host}"}).text == "inside"


def test_large_bodies_are_refused_before_they_are_read(opened: Callable[..., Any]) -> None:
    client, _ = opened()
    kind = {"content-type": "application/json"}
    huge = {**kind, "content-length": str(1 << 30)}
    assert client.post("/api/place", content=b"", headers=huge).status_code == 413
    assert client.post("/api/place", content=b" " * (MOST_BYTES + 1), headers=kind).status_code == 413
    assert client.post("/api/place", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    assert client.post("/api/place", content=b"{", headers=kind).status_code == 400
    assert client.post("/api/place", content=b"[" * 100_000, headers=kind).status_code == 400
    assert client.post("/api/place", content=b"[]", headers=kind).status_code == 400


@pytest.mark.parametrize(
    "path",
    [
        "/static/../gate.py",
        "/static/..%2fgate.py",
        "/static/%2e%2e/%2e%2e/data.py",
        "/static//etc/passwd",
        "/static/nothing.js",
        "/etc/passwd",
        "/tiles/fixed/../../gate.py",
    ],
)
def test_no_path_is_opened(opened: Callable[..., Any], path: str) -> None:
    client, _ = opened()
    assert client.get(path).status_code in (400, 404)


def test_every_answer_forbids_what_comes_from_elsewhere(opened: Callable[..., Any]) -> None:
    client, _ = opened()
    for path in ("/", "/api/state", "/static/main.js", "/nothing"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
    page = client.get("/").text
    assert "http://" not in page
    assert "https://" not in page
