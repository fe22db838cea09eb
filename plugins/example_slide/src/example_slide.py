"""Whole slides for regframe: a .rawslide.json file that lists levels, and files of plain numbers beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import regframe

ENDING = ".rawslide.json"


class RawSlide(regframe.PyramidAdapter):
    """Slides in .rawslide.json files, with a file of numbers [C, y, x] per level beside them."""

    name = "rawslide"

    def matches(self, source: Any) -> float:
        """0.9 for its own word in the head of the file."""
        if not isinstance(source, (str, Path)) or not str(source).endswith(ENDING) or not Path(source).is_file():
            return 0.0
        with Path(source).open("rb") as file:
            return 0.9 if b'"rawslide"' in file.read(4096) else 0.1

    def levels(self, source: Any) -> Sequence[regframe.Grid]:
        """Every level covers the same area, so that a coarser one begins further in."""
        (_, _, shape, fine), *_ = found = described(source)
        of = [[n / m for n, m in zip(shape[1:], s[1:], strict=True)] for _, _, s, _ in found]
        return [
            regframe.Grid(s[1:], tuple(fine * f for f in factor), tuple(fine * (f - 1) / 2 for f in factor), "µm")
            for (_, _, s, _), factor in zip(found, of, strict=True)
        ]

    def read(self, source: Any, level: int, region: tuple[slice, ...]) -> np.ndarray[Any, Any]:
        """The file is open, and its pages are in memory, only here."""
        path, dtype, shape, _ = described(source)[level]
        return np.array(np.memmap(path, dtype, "r", shape=shape)[(slice(None), *region)])

    @classmethod
    def sample(cls, folder: Path) -> Path:
        """A small slide, for `regframe plugins --check`."""
        fine = np.random.default_rng(0).integers(0, 255, (2, 48, 40), dtype=np.uint8)
        return write(Path(folder) / f"sample{ENDING}", [fine, fine[:, ::2, ::2]], 0.5)


def described(source: Any) -> list[tuple[Path, np.dtype[Any], tuple[int, ...], float]]:
    """File, type and shape ``[C, y, x]`` of each level, finest first, and the size in µm of a pixel of the finest.

    Raises ValueError for another content, and for files of another size than they should have.
    """
    try:
        head = regframe.gate.read_json(source)
        dtype, fine = np.dtype(str(head["rawslide"])), float(head["um_per_pixel"])
        if dtype.kind not in "uif":
            raise ValueError(f"numbers of the type {dtype}")
        found: list[tuple[Path, np.dtype[Any], tuple[int, ...], float]] = []
        for level in head["levels"]:
            shape = tuple(int(n) for n in level["shape"])
            path = Path(source).parent / str(level["file"])
            regframe.gate.check_inside(path, Path(source).parent)
            regframe.gate.check_file(path, folder=False)
            if len(shape) != 3 or min(shape) < 1 or path.stat().st_size != int(np.prod(shape)) * dtype.itemsize:
                raise ValueError(f"a level of shape {shape} in a file of {path.stat().st_size} bytes")
            found.append((path, dtype, shape, fine))
        return found
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"wanted a slide of plain numbers in {source}, got {error}; is it whole?") from error


def write(path: Path, levels: Sequence[np.ndarray[Any, Any]], um_per_pixel: float) -> Path:
    """Write levels ``[C, y, x]``, finest first, as a slide; returns its path."""
    names = [path.name.removesuffix(ENDING) + f".{number}.raw" for number in range(len(levels))]
    for name, level in zip(names, levels, strict=True):
        with (path.parent / name).open("wb") as file:
            for channel in level:
                np.ascontiguousarray(channel).tofile(file)
    entries = [{"file": name, "shape": level.shape} for name, level in zip(names, levels, strict=True)]
    head = {"rawslide": levels[0].dtype.str, "um_per_pixel": um_per_pixel, "levels": entries}
    path.write_text(json.dumps(head), encoding="utf-8")
    return path


@regframe.hookimpl
def regframe_adapters() -> list[type[regframe.Adapter]]:
    """The adapter of this plug-in."""
    return [RawSlide]
