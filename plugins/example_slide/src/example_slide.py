"""Whole slides for regframe: a .rawslide.json file that lists levels, and files of plain numbers beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import regframe

ENDING, FOLDER = ".rawslide.json", ".rawslide"
HEAD = f"slide{ENDING}"
"""Name of the file that lists the levels, in a slide that is a folder."""


class RawSlide(regframe.PyramidAdapter):
    """Slides in .rawslide.json files, or .rawslide folders: a list of levels, and a file of numbers [C, y, x] for each."""

    name = "rawslide"
    writes_tiles = (FOLDER,)

    def matches(self, source: Any) -> float:
        """0.9 for its own word in the head of the file."""
        head = head_of(source) if isinstance(source, (str, Path)) else Path()
        if not head.name.endswith(ENDING) or not head.is_file():
            return 0.0
        with head.open("rb") as file:
            return 0.9 if b'"rawslide"' in file.read(4096) else 0.1

    def levels(self, source: Any) -> Sequence[regframe.Grid]:
        """Every level covers the same area, so that a coarser one begins further in."""
        (_, _, shape, fine), *_ = found = described(source)
        begins = regframe.gate.read_json(head_of(source)).get("origin_um", [0.0, 0.0])
        of = [[n / m for n, m in zip(shape[1:], s[1:], strict=True)] for _, _, s, _ in found]
        return [
            regframe.Grid(
                s[1:],
                tuple(fine * f for f in factor),
                tuple(float(at) + fine * (f - 1) / 2 for at, f in zip(begins, factor, strict=True)),
                "µm",
            )
            for (_, _, s, _), factor in zip(found, of, strict=True)
        ]

    def read(self, source: Any, level: int, region: tuple[slice, ...]) -> np.ndarray[Any, Any]:
        """The file is open, and its pages are in memory, only here."""
        path, dtype, shape, _ = described(source)[level]
        return np.array(np.memmap(path, dtype, "r", shape=shape)[(slice(None), *region)])

    def begin(
        self, path: Path, levels: Sequence[regframe.Grid], dtype: np.dtype[Any], channels: Sequence[str]
    ) -> regframe.TileWriter:
        """A folder, which the levels' files are put into."""
        if levels[0].unit != "µm" or len(set(levels[0].spacing)) != 1 or dtype.kind not in "uif":
            raise ValueError(
                f"wanted square pixels in µm of plain numbers for {path.name}, got {levels[0].spacing} {levels[0].unit} of "
                f"{dtype}; write .ome.zarr"
            )
        return _Writer(path, levels, dtype, len(channels))

    @classmethod
    def sample(cls, folder: Path) -> Path:
        """A small slide, for `regframe plugins --check`."""
        fine = np.random.default_rng(0).integers(0, 255, (2, 48, 40), dtype=np.uint8)
        return write(Path(folder) / f"sample{ENDING}", [fine, fine[:, ::2, ::2]], 0.5)


class _Writer(regframe.TileWriter):
    """Files as large as the levels, of which a block is in memory only while it is written."""

    def __init__(self, path: Path, levels: Sequence[regframe.Grid], dtype: np.dtype[Any], channels: int) -> None:
        path.mkdir()
        self.dtype = dtype
        self.shapes = [(channels, *level.shape) for level in levels]
        self.files = [path / f"{number}.raw" for number in range(len(levels))]
        entries = [{"file": f.name, "shape": s} for f, s in zip(self.files, self.shapes, strict=True)]
        self.head = {"rawslide": dtype.str, "um_per_pixel": levels[0].spacing[0], "levels": entries}
        self.head["origin_um"] = list(levels[0].origin)
        for file, shape in zip(self.files, self.shapes, strict=True):
            with file.open("wb") as made:
                made.truncate(int(np.prod(shape)) * dtype.itemsize)

    def write(self, level: int, region: tuple[slice, ...], block: np.ndarray[Any, Any]) -> None:
        """The file's pages are in memory only here."""
        np.memmap(self.files[level], self.dtype, "r+", shape=self.shapes[level])[(slice(None), *region)] = block

    def finish(self) -> None:
        """The list of levels comes last: a folder without it is no slide."""
        (self.files[0].parent / HEAD).write_text(json.dumps(self.head), encoding="utf-8")


def head_of(source: str | Path) -> Path:
    """The file that lists the levels of a slide, which is a file or a folder."""
    path = Path(source)
    return path / HEAD if path.is_dir() else path


def described(source: Any) -> list[tuple[Path, np.dtype[Any], tuple[int, ...], float]]:
    """File, type and shape ``[C, y, x]`` of each level, finest first, and the size in µm of a pixel of the finest.

    Raises ValueError for another content, and for files of another size than they should have.
    """
    try:
        source = head_of(source)
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
