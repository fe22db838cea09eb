"""What is kept beside the output goes nowhere else, whatever lies there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

PAIR = {"id": 1, "name": "a", "fixed": [20, 30], "moving": [24, 24]}


def test_a_link_is_replaced_not_followed(opened: Callable[..., Any], tmp_path: Path) -> None:
    victim = tmp_path / "elsewhere" / "victim.txt"
    victim.parent.mkdir()
    victim.write_text("mine", encoding="utf-8")
    for suffix in (".session.json", ".landmarks.csv", ".region.csv", ".region.geojson", ".start.txt", ".steps.json"):
        (tmp_path / f"out{suffix}").symlink_to(victim)
    client, session = opened()
    assert "unreadable" in session.said
    assert client.put("/api/landmarks", json={"revision": 0, "pairs": [PAIR]}).status_code == 200
    session.worker.ask = lambda ask: None
    session.worker.touch = lambda touch: True
    for begin in ("landmarks", "shown"):
        assert client.post("/api/align", json={"begin": begin}).status_code == 200
    ring = [[0, 0], [0, 60], [60, 60], [60, 0]]
    assert client.post("/api/correct", json={"region": [ring]}).status_code == 200
    assert victim.read_text(encoding="utf-8") == "mine"
    assert [path.name for path in victim.parent.iterdir()] == ["victim.txt"]
    for suffix in (".session.json", ".landmarks.csv", ".region.csv", ".region.geojson", ".start.txt"):
        assert not (tmp_path / f"out{suffix}").is_symlink(), suffix
