"""What the kit says where an adapter's own mistake would read as a damaged file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import regframe as rf
from regframe import testing


class Mistaken(rf.Adapter):
    """Reads nothing: its own code is wrong."""

    name = "mistaken"

    def matches(self, source: Any) -> float:
        return 0.9 if str(source).endswith(".mistaken") else 0.0

    def open(self, source: Any) -> rf.Image:
        grid: Any = None
        return rf.Image(grid.shape, grid)

    def apply(self, source: Any, transform: rf.Transform, grid: rf.Grid | None = None) -> rf.Image | rf.PointSet:
        return self.open(source)

    def save(self, data: rf.Image | rf.PointSet, path: Path) -> None:
        raise ValueError("wanted something that can be written, got nothing; take another one")

    @classmethod
    def sample(cls, folder: Path) -> Path:
        path = Path(folder) / "a.mistaken"
        path.write_text("sound")
        return path


class Kit(testing.AdapterTests):
    def make(self) -> Mistaken:
        return Mistaken()

    def sample(self, folder: Path) -> Path:
        return Mistaken.sample(folder)


def test_the_kit_names_the_line() -> None:
    said = {name: words for name, status, words, _ in testing.run(Kit, only=["open"]) if status == "failed"}
    assert said["open"].startswith(
        "AttributeError: 'NoneType' object has no attribute 'shape' in test_words_of_defects.py, line "
    )
    assert "to a user it reads: FileError" in said["open"]
