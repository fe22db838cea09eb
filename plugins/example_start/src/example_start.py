"""A start for regframe: the affine matrix with which QuPath, or another viewer, aligned one image to another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import regframe

KEYS = ("m00", "m01", "m02", "m10", "m11", "m12")
"""Entries of the matrix, by row, as Java programs write them into JSON."""


class ViewerMatrix(regframe.Start):
    """The matrix of a file: six numbers of text (QuPath's alignment window), or JSON with m00 … m12 in it.

    A position (x, y) goes to ``(m00 x + m01 y + m02, m10 x + m11 y + m12)``.

    Args:
        path: the file.
        to: the side that the matrix takes positions to, ``fixed`` or ``moving``; such a file does not say it.
        unit: what its numbers count: ``px``, pixels of both images at full resolution, from the outer corner of the first one,
            or a length unit, in which the first pixel's corner is at 0 too.
    """

    name = "viewer_matrix"

    def __init__(self, path: str, to: str, unit: str = "px") -> None:
        if to not in ("fixed", "moving"):
            raise ValueError(f"wanted to=fixed or to=moving, the side that the matrix takes positions to, got {to!r}")
        self.path, self.to, self.unit = str(path), to, regframe.canonical_unit(unit)

    def find(self, task: regframe.Task) -> list[regframe.Candidate]:
        """The matrix, moving → fixed, between the units of the sides."""
        fixed, moving = (self._frame(side, which) for side, which in ((task.fixed, "fixed"), (task.moving, "moving")))
        numbers = matrix_of(Path(self.path))
        if self.to == "moving":
            numbers = torch.linalg.inv(numbers)
        turned = torch.eye(3, dtype=torch.float64)
        turned[:2, :2], turned[:2, 2] = numbers[:2, :2].flip(0, 1), numbers[:2, 2].flip(0)  # x, y → y, x
        matrix = fixed @ turned @ torch.linalg.inv(moving)
        matrix[2] = torch.tensor([0.0, 0.0, 1.0])
        return [
            regframe.Candidate(matrix, words=f"the matrix in {Path(self.path).name}, taken to go to the {self.to} side")
        ]

    def _frame(self, side: Any, which: str) -> Tensor:
        """From numbers of the file, (y, x), to positions of one side ``[3, 3]``."""
        if not isinstance(side, regframe.Image) or side.grid.ndim != 2:
            raise ValueError(
                f"wanted a picture of two dimensions on the {which} side, got something else; take init='auto'"
            )
        full = side.reading.full if side.reading is not None else side.grid
        steps = full.spacing
        if self.unit != "px":
            ratio = regframe.unit_ratio(self.unit, full.unit)
            if ratio is None:
                raise ValueError(
                    f"wanted a length unit on the {which} side for a matrix in {self.unit}, got {full.unit}; state it"
                )
            steps = (ratio, ratio)
        matrix = torch.eye(3, dtype=torch.float64)
        for axis in range(2):
            matrix[axis, axis] = steps[axis]
            matrix[axis, 2] = full.origin[axis] - full.spacing[axis] / 2
        return matrix

    @classmethod
    def sample(cls, folder: Path) -> tuple[dict[str, Any], regframe.Known]:
        """Options and a pair, for `regframe plugins --check`."""
        path = Path(folder) / "alignment.json"
        path.write_text(
            '{"transform": {"m00": 0, "m10": 1, "m01": -1, "m11": 0, "m02": 24, "m12": 2}}', encoding="utf-8"
        )
        fixed, moving = (
            regframe.Image(torch.rand((1, 24, 20)), regframe.Grid((24, 20), (s, s), (), "µm")) for s in (0.5, 2.0)
        )
        # x, y → 24 - y, x + 2 in pixels from the corners; centres lie half a pixel further in: 0.25 and 1 µm
        known = torch.tensor([[0, 0.25, 1.0], [-0.25, 0, 11.5], [0, 0, 1]], dtype=torch.float64)
        return {"path": str(path), "to": "fixed"}, regframe.Known(fixed, moving, regframe.Affine(known, "µm", "µm"))


def matrix_of(path: Path) -> Tensor:
    """The matrix ``[3, 3]`` of a file, components (x, y); ValueError for a file that holds none."""
    try:
        if path.suffix.lower() == ".json":
            numbers = [float(v) for v in _entries(regframe.gate.read_json(path))]
        else:
            if path.stat().st_size > 1 << 16:
                raise ValueError("a large file")
            numbers = [float(v) for v in path.read_text(encoding="utf-8").replace(",", " ").replace(";", " ").split()]
        if len(numbers) == 9 and numbers[6:] == [0, 0, 1]:
            numbers = numbers[:6]
        matrix = torch.tensor([*numbers, 0, 0, 1], dtype=torch.float64).reshape(3, 3)
        if not bool(matrix.isfinite().all()) or not abs(float(torch.linalg.det(matrix))) > 0:
            raise ValueError("numbers that are singular or not finite")
        return matrix
    except (ValueError, TypeError, LookupError, RuntimeError) as error:
        raise ValueError(f"wanted the six numbers of an affine matrix in {path}, got {error}; write it anew") from error


def _entries(document: Any) -> list[Any]:
    """The six numbers, by row, wherever in a document they stand."""
    if isinstance(document, dict) and set(KEYS) <= document.keys():
        return [document[key] for key in KEYS]
    inner = document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    for each in inner:
        if isinstance(each, (dict, list)):
            try:
                return _entries(each)
            except LookupError:
                continue
    if isinstance(document, list) and len(document) in (6, 9) and all(isinstance(v, (int, float)) for v in document):
        return document
    raise LookupError("no matrix")


@regframe.hookimpl
def regframe_starts() -> list[type[regframe.Start]]:
    """The starts of this plug-in."""
    return [ViewerMatrix]
