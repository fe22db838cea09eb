"""elastix's transform parameter files of affine maps; elastix stores maps that bend as B-splines, which are not supported."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..contracts import MapFormat, Side, Written
from ..data import Grid
from ..maps import bends
from ..maps.base import Transform
from ..result import Result
from .itk import MAX_STEPS, numbers_of, step_of, text_of
from .steps import Array, Field, Step, along_x, both_canvases, map_of, sides, steps_of, written_steps

_ENTRY = re.compile(r"^\(\s*(\w+)((?:\s+(?:\"[^\"]*\"|[^\s\"()]+))*)\s*\)$")  # (Name value "value" ...)
_WORD = re.compile(r"\"([^\"]*)\"|([^\s\"()]+)")
_ITK_KINDS = {  # elastix's name of a transform: ITK's names of it in two and in three dimensions
    "AffineTransform": ("AffineTransform", "AffineTransform"),
    "EulerTransform": ("Euler2DTransform", "Euler3DTransform"),
    "SimilarityTransform": ("Similarity2DTransform", "Similarity3DTransform"),
    "TranslationTransform": ("TranslationTransform", "TranslationTransform"),
}


class Elastix(MapFormat):
    """.txt: transform parameters of an affine map."""

    name = "elastix"
    suffixes = (".txt",)

    def write(self, result: Result, path: Path, *, to: Side, unit: str, tolerance: float) -> Written:
        """Write one matrix; a map that bends is refused."""
        if bends.bent(result.transform):
            raise ValueError(
                "wanted an affine map for elastix, whose parameter files hold matrices and B-splines only, got one that bends; "
                "write --format itk and hand it to SetExternalInitialTransform, or fit with --transform affine"
            )
        steps = steps_of(result, to, unit, tolerance, 0)
        source = sides(result.fixed_grid, result.moving_grid, to)[0]
        assert not isinstance(steps[0], Field)
        write_parameters(path, steps[0], source.shape[::-1], *along_x(source, unit))
        return written_steps(self.name, path, steps, result, to, unit)

    def read(self, path: Path, fixed: Grid | None, moving: Grid | None, *, to: Side, unit: str) -> Transform:
        """Read the matrix of the file, and those of the files it names as its initial transform."""
        fixed, moving = both_canvases(self.name, fixed, moving)
        return map_of(read_parameters(path), fixed, moving, to, unit)


def write_parameters(
    path: Path, matrix: Array, size: Sequence[int], spacing: Sequence[float], origin: Sequence[float]
) -> None:
    """Write a file that ``transformix -tp`` takes.

    Args:
        path: file to write.
        matrix: homogeneous ``[D+1, D+1]``, from the canvas on which is drawn to the image that is resampled.
        size: number of pixels of that canvas along x, y(, z).
        spacing: distance of that canvas' pixels.
        origin: position of the centre of its first pixel.
    """
    ndim = len(matrix) - 1
    entries: list[tuple[str, Sequence[Any]]] = [
        ("Transform", ["AffineTransform"]),
        ("NumberOfParameters", [ndim * ndim + ndim]),
        ("TransformParameters", [*matrix[:-1, :-1].ravel().tolist(), *matrix[:-1, -1].tolist()]),
        ("CenterOfRotationPoint", [0.0] * ndim),
        ("InitialTransformParameterFileName", ["NoInitialTransform"]),
        ("HowToCombineTransforms", ["Compose"]),
        ("FixedImageDimension", [ndim]),
        ("MovingImageDimension", [ndim]),
        ("FixedInternalImagePixelType", ["float"]),
        ("MovingInternalImagePixelType", ["float"]),
        ("Size", list(size)),
        ("Index", [0] * ndim),
        ("Spacing", list(spacing)),
        ("Origin", list(origin)),
        ("Direction", np.eye(ndim).ravel().tolist()),
        ("UseDirectionCosines", ["true"]),
        ("ResampleInterpolator", ["FinalLinearInterpolator"]),
        ("Resampler", ["DefaultResampler"]),
        ("DefaultPixelValue", [0]),
        ("ResultImageFormat", ["nii.gz"]),
        ("ResultImagePixelType", ["float"]),
        ("CompressResultImage", ["true"]),
    ]
    lines = []
    for name, values in entries:
        words = " ".join(f'"{v}"' if isinstance(v, str) else repr(v) for v in values)
        lines.append(f"({name} {words})\n")
    path.write_text("".join(lines), encoding="utf-8")


def read_parameters(path: Path) -> list[Step]:
    """The matrices of a parameter file and of its initial transforms, which lie beside it; the first applied first.

    Raises ValueError for a file that is damaged, that bends, or whose initial transform is missing.
    """
    steps: list[Step] = []
    seen: set[Path] = set()
    at: Path | None = path
    while at is not None:
        if at.resolve() in seen or len(seen) >= MAX_STEPS:
            raise ValueError(f"wanted a chain of initial transforms that ends, got {at.name!r} twice")
        seen.add(at.resolve())
        step, before = _read_file(at)
        steps.insert(0, step)
        at = None if before is None else _beside(path, before)
    return steps


def _beside(path: Path, before: str) -> Path:
    """Path of an initial transform in the folder of ``path``: elastix records whole paths, of which only the name is used."""
    name = re.split(r"[\\/]", before)[-1]
    found = path.parent / name
    if name in ("", ".", "..") or not found.is_file() or found.is_symlink():
        raise ValueError(f"wanted the initial transform {name!r} beside {path.name!r}, got no such file; put it there")
    return found


def _entries(path: Path) -> dict[str, list[str]]:
    """The values of each name in a parameter file; comments begin with ``//``."""
    entries: dict[str, list[str]] = {}
    for line in text_of(path).splitlines():
        line = line.split("//")[0].strip() if '"' not in line else line.strip()  # quoted text may hold a //
        if not line or line.startswith("//"):
            continue
        match = _ENTRY.fullmatch(line)
        if match is None:
            raise ValueError(f"wanted lines like (Name value ...) in {path.name!r}, got {line[:80]!r}")
        entries[match[1]] = [quoted or plain for quoted, plain in _WORD.findall(match[2])]
    return entries


def _read_file(path: Path) -> tuple[Step, str | None]:
    """The matrix of one parameter file, and the name of its initial transform, or None."""
    entries = _entries(path)

    def one(name: str, default: str | None = None) -> str:
        found = entries.get(name, [] if default is None else [default])
        if len(found) != 1:
            raise ValueError(
                f"wanted one value of {name} in {path.name!r}, got {len(found)}; is it a transform of elastix?"
            )
        return found[0]

    kind = one("Transform")
    if one("HowToCombineTransforms", "Compose") != "Compose":
        raise ValueError(
            "wanted transforms that are composed, got HowToCombineTransforms 'Add'; no chain of maps is that"
        )
    dimension = one("FixedImageDimension")
    if dimension not in ("2", "3") or one("MovingImageDimension", dimension) != dimension:
        raise ValueError(f"wanted 2 or 3 dimensions on both sides, got {dimension}")
    if kind not in _ITK_KINDS:
        raise ValueError(
            f"wanted one of {sorted(_ITK_KINDS)}, got {kind}, which bends; let `transformix -def all -tp {path.name}` write its "
            "displacement field and import that with --format nifti"
        )
    ndim = int(dimension)
    center = numbers_of(entries.get("CenterOfRotationPoint", ["0"] * ndim), "CenterOfRotationPoint")
    if len(center) != ndim:
        raise ValueError(f"wanted {ndim} numbers of CenterOfRotationPoint in {path.name!r}, got {len(center)}")
    # ITK's fixed parameters: the centre, and for three angles the order in which they turn; a translation has none
    if kind == "EulerTransform" and ndim == 3:
        center = np.append(center, float(one("ComputeZYX", "false") == "true"))
    if kind == "TranslationTransform":
        center = np.zeros(0)
    name = f"{_ITK_KINDS[kind][ndim - 2]}_double_{ndim}_{ndim}"
    step = step_of(name, numbers_of(entries.get("TransformParameters", []), "TransformParameters"), center)
    key = "InitialTransformParameterFileName"
    before = one(key if key in entries else "InitialTransformParametersFileName", "NoInitialTransform")
    return step, None if before == "NoInitialTransform" else before
