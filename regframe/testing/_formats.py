"""`FormatTests`: maps of every kind written, read back, damaged."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..config import Config
from ..contracts import MapFormat, Side, Written
from ..data import Grid
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.flow import Flow
from ..maps.sequence import Sequence
from ..result import Result
from ._base import PluginTests, SkipTest, refusal, want
from ._state import unchanged

_TOLERANCE = 0.01
"""Largest distance in pixels between a map and what was read back: the error from which `regframe.write_map` warns."""
_BEND = 2.0
"""Largest displacement of the bent maps that are written, in pixels."""


def _results() -> Iterator[tuple[str, Result]]:
    """Results to write: in 2D and 3D, in pixels and µm, affine and bent, each with a name."""
    for ndim in (2, 3):
        for units in (("px", "px"), ("um", "um"), ("um", "mm")):
            for bent in (False, True):
                yield (
                    f"{'a bent' if bent else 'an affine'} map in {ndim}D, {units[1]} → {units[0]}",
                    _result(ndim, units, bent),
                )


def _result(ndim: int, units: tuple[str, str], bent: bool) -> Result:
    sizes, finer = (24, 20, 18)[-ndim:], {"px": 1.0, "um": 2.0, "mm": 0.002}
    fixed = Grid(
        sizes, tuple(finer[units[0]] * f for f in (1.0, 1.25, 1.5)[-ndim:]), (3.0 * finer[units[0]],) * ndim, units[0]
    )
    moving = Grid(
        tuple(n + 3 for n in sizes), (1.1 * finer[units[1]],) * ndim, (-2.0 * finer[units[1]],) * ndim, units[1]
    )
    ratio = {("px", "px"): 1.0, ("um", "um"): 1.0, ("um", "mm"): 1000.0}[units]
    matrix = torch.eye(ndim + 1, dtype=torch.float64)
    matrix[:ndim, :ndim] *= 1.02 * ratio
    matrix[0, 1], matrix[1, 0] = 0.1 * ratio, -0.08 * ratio
    matrix[:ndim, -1] = torch.arange(1.0, ndim + 1, dtype=torch.float64) * finer[units[0]]
    affine = Affine(matrix, units[1], units[0])
    transform: Transform = affine
    if bent:  # the flow of a velocity on two nodes a side: smooth, so that fields of few nodes hold it
        nodes = Grid(
            (2,) * ndim,
            tuple(2 * e for e in moving.extent),
            tuple(c - e for c, e in zip(moving.center, moving.extent, strict=True)),
            moving.unit,
        )
        velocity = torch.randn((1, ndim, *nodes.shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        velocity *= _BEND * moving.pixel / float(torch.linalg.vector_norm(velocity, dim=1).max())
        transform = Sequence((Flow(velocity, nodes), affine))
    figures: dict[str, Any] = {
        "verdict": "pass",
        "reasons": [],
        "seconds": 0.0,
        "n_evaluations": 0,
        "roundtrip_px": {"mean": 0.0, "max": 0.0},
    }
    return Result(transform, fixed, moving, figures, Config(), affine)


class FormatTests(PluginTests):
    """Subclass it, write ``make``, and pytest runs every check on your format of maps."""

    def make(self) -> MapFormat:
        """A new format to test, with options of your choice."""
        made: MapFormat = super().make()
        return made

    def _can(self, method: str) -> bool:
        return getattr(type(self.make()), method) is not getattr(MapFormat, method)

    def _write(self, result: Result, folder: Path, to: Side = "moving") -> Written | None:
        """What a map was written as, into an empty folder; None where the format says that it cannot hold it."""
        chosen = self.make()
        path = folder / f"map{(type(chosen).suffixes or ('',))[0]}"
        unit = type(chosen).default_unit or ("px" if result.fixed_grid.unit == "px" else "um")
        written: list[Written] = []
        said = refusal(
            lambda: written.append(chosen.write(result, path, to=to, unit=unit, tolerance=0.001)),
            "a map that it cannot hold",
        )
        return None if said is not None else written[0]

    def _used(self, folder: Path) -> None:
        if not self._can("write"):
            raise SkipTest("it is only read")
        self._write(_result(2, ("px", "px"), False), folder)

    def test_it_says_which_files_are_its_own(self) -> None:
        """``suffixes`` are small letters with a dot; ``files`` begins with a file beside the path; nothing is read for it."""
        chosen = self.make()
        for suffix in type(chosen).suffixes:
            want(suffix == suffix.lower() and suffix.startswith("."), "suffixes as .small", repr(suffix))
        path = Path("no-such-folder") / "map"
        files = chosen.files(path)
        sound = isinstance(files, tuple) and bool(files) and all(file.parent == path.parent for file in files)
        want(sound, "a tuple of files beside the path from files(path)", repr(files))

    def test_a_map_comes_back(self, tmp_path: Path) -> None:
        """Maps of every kind are written and read back to 0.01 px, or refused in one sentence; at least one is written."""
        if not self._can("write"):
            raise SkipTest("it is only read")
        done = 0
        for number, (what, result) in enumerate(_results()):
            folder = tmp_path / str(number)
            folder.mkdir()
            with unchanged("write"):
                written = self._write(result, folder)
            there = set(folder.iterdir())
            if written is None:
                continue
            done += 1
            want(isinstance(written, Written), "regframe.Written from write", type(written).__name__)
            want(there == set(written.files), f"the files that Written lists for {what}", sorted(f.name for f in there))
            claimed = written.max_error_px
            want(claimed is None or 0 <= claimed < math.inf, "max_error_px of a number of pixels or None", claimed)
            if self._can("read") and claimed is not None:
                self._compare(what, result, written)
        want(done > 0, "a map of any kind to be written", "none of them")

    def _compare(self, what: str, result: Result, written: Written) -> None:
        chosen = self.make()
        path = written.files[0].parent / f"map{(type(chosen).suffixes or ('',))[0]}"
        unit = type(chosen).default_unit or ("px" if result.fixed_grid.unit == "px" else "um")
        back = chosen.read(path, result.fixed_grid, result.moving_grid, to=written.to, unit=unit)
        transform = back.transform if isinstance(back, Result) else back
        want(isinstance(transform, Transform), "a regframe.Transform or Result from read", type(back).__name__)
        here, there = result.fixed_grid, result.moving_grid
        maps = [transform.inverse(), result.transform.inverse()]
        if written.to == "fixed":
            here, there, maps = there, here, [transform, result.transform]
        at = here.coords().flatten(0, -2)
        apart = float((maps[0].points(at) - maps[1].points(at)).norm(dim=1).max()) / there.pixel
        allowed = max(_TOLERANCE, 2 * (written.max_error_px or 0.0))
        want(apart <= allowed, f"{what} back within {allowed:.2g} px", f"{apart:.3g} px")

    def test_damage_is_told(self, tmp_path: Path) -> None:
        """An empty file, a cut one and one of other bytes are refused with a ValueError of one sentence, or read as a map."""
        if not self._can("read"):
            raise SkipTest("it is only written")
        chosen = self.make()
        path = tmp_path / f"map{(type(chosen).suffixes or ('',))[0]}"
        grid = Grid((20, 18))
        contents = [b"", b"\x00" * 64, b"no map\n" * 9, bytes(range(256))]
        result = _result(2, ("px", "px"), False)
        if self._can("write"):
            written = self._write(result, tmp_path)
            if written is not None and written.files[0].is_file():
                whole = written.files[0].read_bytes()
                contents += [
                    whole[: len(whole) // 2],
                    whole[: len(whole) // 3] + b"\xff" * 9 + whole[len(whole) // 2 :],
                ]
                path = written.files[0]
        if path.is_dir():
            raise SkipTest("its maps are folders")
        for content in contents:
            path.write_bytes(content)
            type(chosen).recognises(path)
            refusal(lambda: chosen.read(path, grid, grid, to="moving", unit="px"), f"a file of {content[:9]!r}…")
