"""ANTs: an affine matrix and two displacement fields, one for each direction, in three files of one prefix."""

from __future__ import annotations

from pathlib import Path

from ..contracts import MapFormat, Side, Written
from ..data import Grid
from ..result import Result
from .itk import need, read_transform, write_transform
from .nifti import check_declared, check_mm, read_field, write_field
from .steps import (
    Array,
    Field,
    Step,
    around_affine,
    both_canvases,
    error_of,
    inverse_of,
    map_of,
    number_unit,
    unjudged,
)

AFFINE, WARP, INVERSE = "0GenericAffine.mat", "1Warp.nii.gz", "1InverseWarp.nii.gz"
"""Suffixes of the three files that ``antsRegistration`` writes after its output prefix."""


class Ants(MapFormat):
    """PATH0GenericAffine.mat, PATH1Warp.nii.gz, PATH1InverseWarp.nii.gz: antsApplyTransforms."""

    name = "ants"

    def files(self, path: Path) -> tuple[Path, ...]:
        """The three files of the prefix ``path``; a map that does not bend has the first one only."""
        return ants_files(path)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether ``path`` is the prefix of files that ANTs wrote."""
        return any(file.exists() for file in ants_files(path))

    def write(self, result: Result, path: Path, *, to: Side, unit: str, tolerance: float) -> Written:
        """Write the matrix and, for a map that bends, the fields of both directions."""
        check_mm(self.name, unit, "leave it out, or write itk")
        need("SimpleITK", path, "write")
        affine, warp, inverse = ants_files(path)
        matrix, fields = around_affine(result, unit, tolerance)
        numbers = number_unit(result.fixed_grid.unit, unit)
        write_transform(affine, [matrix])
        if fields is None:
            files: tuple[Path, ...] = (affine,)
            error = error_of([matrix], result, "moving", unit)
        else:
            files = (affine, warp, inverse)
            write_field(warp, fields[0], numbers)
            write_field(inverse, fields[1], numbers)
            error = max(
                error_of([fields[0], matrix], result, "moving", unit),
                error_of([inverse_of(matrix), fields[1]], result, "fixed", unit),
            )
        units = (numbers, number_unit(result.moving_grid.unit, unit))
        return Written(self.name, files, "moving", units, error)

    def read(self, path: Path, fixed: Grid | None, moving: Grid | None, *, to: Side, unit: str) -> Result:
        """Read the matrix and the field to the moving side; the inverse field's disagreement with it is one of the figures."""
        fixed, moving = both_canvases(self.name, fixed, moving)
        check_mm(self.name, unit, "leave it out")
        if to != "moving":
            raise ValueError(
                "wanted the map to the moving side from ants, which always writes that one, got 'fixed'; leave it out"
            )
        steps, back, numbers = read_ants(path)
        check_declared(numbers, fixed, moving)
        transform = map_of(steps, fixed, moving, to, unit)
        result = unjudged(transform, fixed, moving)
        if back is None:
            return result
        return unjudged(transform, fixed, moving, {"given_inverse_px": error_of(back, result, "fixed", unit)})


def ants_files(prefix: Path) -> tuple[Path, Path, Path]:
    """Paths of the affine file, the warp and the inverse warp of a prefix, whether they exist or not."""
    affine, warp, inverse = (prefix.with_name(prefix.name + end) for end in (AFFINE, WARP, INVERSE))
    return affine, warp, inverse


def read_ants(prefix: Path) -> tuple[list[Step], list[Step] | None, str]:
    """The map fixed → moving, the map moving → fixed, and the unit that the fields declare (``mm`` or ``px``).

    Both maps are steps, the first applied first; the second map is None where its file does not exist.
    """
    affine, warp, inverse = ants_files(prefix)
    matrix = _matrix_of(affine)
    if not warp.exists():
        return [matrix], None, "mm"
    field, unit = read_field(warp)
    if not inverse.exists():
        return [field, matrix], None, unit
    back, unit_back = read_field(inverse)
    if unit_back != unit:
        raise ValueError(f"wanted fields in one unit, got {unit} and {unit_back}")
    return [field, matrix], [inverse_of(matrix), back], unit


def _matrix_of(path: Path) -> Array:
    steps = read_transform(path)
    if len(steps) != 1 or isinstance(steps[0], Field):
        raise ValueError(f"wanted one affine transform in {path.name}, got {len(steps)} steps")
    return steps[0]
