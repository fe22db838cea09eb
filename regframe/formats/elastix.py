"""elastix: transform parameter files of affine maps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .itk import MAX_STEPS, _numbers, _step, _text
from .steps import Array, Step

# ---------------------------------------------------------------------------------------------------------------- elastix

_PAIR = re.compile(r"^\(\s*(\w+)((?:\s+(?:\"[^\"]*\"|[^\s\"()]+))*)\s*\)$")
_WORD = re.compile(r"\"([^\"]*)\"|([^\s\"()]+)")
_ELASTIX = {
    "AffineTransform": ("AffineTransform", "AffineTransform"),
    "EulerTransform": ("Euler2DTransform", "Euler3DTransform"),
    "SimilarityTransform": ("Similarity2DTransform", "Similarity3DTransform"),
    "TranslationTransform": ("TranslationTransform", "TranslationTransform"),
}


def write_elastix(
    path: Path, matrix: Array, size: Sequence[int], spacing: Sequence[float], origin: Sequence[float]
) -> None:
    """Write a matrix (fixed → moving) and the fixed grid, along x, y(, z), as a file that ``transformix -tp`` takes."""
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


def is_elastix(path: Path) -> bool:
    """Whether a text file looks like transform parameters of elastix."""
    with path.open("rb") as file:
        return b"(Transform " in file.read(1 << 16)


def read_elastix(path: Path) -> list[Step]:
    """The matrices of a transform parameter file and of those it starts from, which lie beside it; first applied first."""
    steps: list[Step] = []
    seen: set[Path] = set()
    at: Path | None = path
    while at is not None:
        if at.resolve() in seen or len(seen) >= MAX_STEPS:
            raise ValueError(f"wanted a chain of initial transforms that ends, got {at.name!r} twice")
        seen.add(at.resolve())
        step, before = _read_elastix_file(at)
        steps.insert(0, step)
        if before is None:
            break
        name = re.split(r"[\\/]", before)[
            -1
        ]  # elastix writes whole paths; only the folder of the file itself is looked into
        at = path.parent / name
        if name in ("", ".", "..") or not at.is_file() or at.is_symlink():
            raise ValueError(
                f"wanted the initial transform {name!r} beside {path.name!r}, got no such file; put it there"
            )
    return steps


def _read_elastix_file(path: Path) -> tuple[Step, str | None]:
    entries: dict[str, list[str]] = {}
    for line in _text(path).splitlines():
        line = line.split("//")[0].strip() if '"' not in line else line.strip()
        if not line or line.startswith("//"):
            continue
        match = _PAIR.fullmatch(line)
        if match is None:
            raise ValueError(f"wanted lines like (Name value ...) in {path.name!r}, got {line[:80]!r}")
        entries[match[1]] = [a or b for a, b in _WORD.findall(match[2])]

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
    if kind not in _ELASTIX:
        raise ValueError(
            f"wanted one of {sorted(_ELASTIX)}, got {kind}, which bends; let `transformix -def all -tp {path.name}` write its "
            "displacement field and import that with --format nifti"
        )
    ndim = int(dimension)
    center = _numbers(entries.get("CenterOfRotationPoint", ["0"] * ndim), "CenterOfRotationPoint")
    if len(center) != ndim:
        raise ValueError(f"wanted {ndim} numbers of CenterOfRotationPoint in {path.name!r}, got {len(center)}")
    if kind == "EulerTransform" and ndim == 3:
        center = np.append(center, float(one("ComputeZYX", "false") == "true"))
    if kind == "TranslationTransform":
        center = np.zeros(0)
    name = f"{_ELASTIX[kind][ndim - 2]}_double_{ndim}_{ndim}"
    step = _step(name, _numbers(entries.get("TransformParameters", []), "TransformParameters"), center)
    key = "InitialTransformParameterFileName"
    before = one(key if key in entries else "InitialTransformParametersFileName", "NoInitialTransform")
    return step, None if before == "NoInitialTransform" else before
