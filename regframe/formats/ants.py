"""ANTs: an affine matrix and two warps, found and read."""

from __future__ import annotations

from pathlib import Path

from ..maps.affine import Affine
from .itk import read_transform
from .nifti import read_field
from .steps import Field, Step

# ------------------------------------------------------------------------------------------------------------------- ANTs

AFFINE, WARP, INVERSE = "0GenericAffine.mat", "1Warp.nii.gz", "1InverseWarp.nii.gz"
"""What ``antsRegistration`` puts after its output prefix."""


def ants_files(prefix: Path) -> list[Path]:
    """The files of a prefix, there or not."""
    return [prefix.with_name(prefix.name + end) for end in (AFFINE, WARP, INVERSE)]


def read_ants(prefix: Path) -> tuple[list[Step], list[Step] | None, str]:
    """Steps from fixed to moving, those back where they are there (None: they are not), and the unit of the fields."""
    affine, warp, inverse = ants_files(prefix)
    matrix = read_transform(affine)
    if len(matrix) != 1 or isinstance(matrix[0], Field):
        raise ValueError(f"wanted one affine transform in {affine.name}, got {len(matrix)} steps")
    if not warp.exists():
        return matrix, None, "mm"
    field, unit = read_field(warp)
    if not inverse.exists():
        return [field, matrix[0]], None, unit
    import torch

    back, unit_back = read_field(inverse)
    if unit_back != unit:
        raise ValueError(f"wanted fields in one unit, got {unit} and {unit_back}")
    undone = Affine(torch.from_numpy(matrix[0])).inverse().matrix.numpy()
    return [field, matrix[0]], [undone, back], unit
