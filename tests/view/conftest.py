"""A small pair with a known map, and a page of it that a client may ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture
from scipy import ndimage

MISSING = [name for name in ("starlette", "uvicorn", "httpx2") if find_spec(name) is None]
"""Packages without which nothing here runs; `test_needs` says so."""
collect_ignore_glob = [] if not MISSING else ["test_[!n]*.py"]

if not MISSING:
    from starlette.testclient import TestClient

    from regframe.view.server import application
    from regframe.view.session import Session, Setting
    from regframe.view.source import Source

HOME = "http://127.0.0.1:8000"


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two brightfield pictures of 120 × 150 px, the second moved by (4, -6)."""
    folder = tmp_path_factory.mktemp("pair")
    random = np.random.default_rng(1)
    noise = np.stack([ndimage.gaussian_filter(random.standard_normal((160, 190)), 4) for _ in range(3)], axis=-1)
    ink = (noise - noise.min()) / np.ptp(noise)
    whole = np.rint(255 - 180 * ink).astype(np.uint8)
    for name, (y, x) in (("fixed.png", (20, 20)), ("moving.png", (16, 26))):
        Picture.fromarray(whole[y : y + 120, x : x + 150]).save(folder / name)
    return folder / "fixed.png", folder / "moving.png"


@pytest.fixture
def opened(pair: tuple[Path, Path], tmp_path: Path) -> Iterator[Callable[..., tuple[TestClient, Session]]]:
    """A function that opens a page of the pair, with the cookie, and returns the client and the session."""
    sessions: list[Session] = []

    def open_(**changes: Any) -> tuple[TestClient, Session]:
        sides = {
            side: {"path": path.resolve(), "adapter": "image", "options": {}}
            for side, path in zip(("fixed", "moving"), pair, strict=True)
        }
        given: dict[str, Any] = {"output": tmp_path / "out", "run": sides, **changes}
        sources = [Source(path, "image") for path in pair]
        gate, session = application(Setting(*sources, **given), token="word")
        sessions.append(session)
        client = TestClient(gate, base_url=HOME)
        assert client.get("/?token=word").status_code == 200
        return client, session

    yield open_
    for session in sessions:
        session.close()
