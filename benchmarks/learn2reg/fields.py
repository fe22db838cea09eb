"""Volumes and displacement fields as Learn2Reg counts them: in voxels of the files, axes in the files' own order.

regframe turns a volume to the axes (z, y, x) of LPS when it reads it; a field of the challenge knows no space, only voxels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import regframe
from regframe.data import Grid

from ..entries import Array

BLOCK = 1 << 18
"""Positions that are carried at once: 6 MiB of them."""


def _sitk() -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise ValueError("wanted SimpleITK to read NIfTI files, got none; pip install 'regframe[itk]'") from error
    return SimpleITK


def numbers_of(path: Path) -> Array:
    """The numbers of a NIfTI file, axes in the order of the file: ``[X, Y, Z]``, of a field ``[X, Y, Z, 3]``."""
    sitk = _sitk()
    read = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return np.asarray(read).transpose()


def spacing_of(path: Path) -> tuple[float, ...]:
    """The spacing of a NIfTI file's voxels along its own axes, as its header says it."""
    return tuple(_header(path).GetSpacing()[:3])


def _header(path: Path) -> Any:
    reader = _sitk().ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


@dataclass(frozen=True)
class Lie:
    """How a file's voxels lie on the grid that regframe made of it.

    Args:
        axis: for x, y, z of the grid the file's axis.
        turned: for x, y, z whether the file's axis runs the other way.
        size: voxels along the file's axes.
        grid: of regframe.
    """

    axis: tuple[int, ...]
    turned: tuple[bool, ...]
    size: tuple[int, ...]
    grid: Grid

    @classmethod
    def of(cls, path: Path, grid: Grid) -> Lie:
        """The lie of the file ``path``.

        Raises:
            ValueError: for a file that lies between axes, or is not what ``grid`` was made of.
        """
        header = _header(path)
        direction = np.array(header.GetDirection()).reshape(header.GetDimension(), -1)[:3, :3]
        axis = tuple(int(i) for i in np.abs(direction).argmax(axis=1))
        turned = tuple(bool(direction[i, a] < 0) for i, a in enumerate(axis))
        size = tuple(header.GetSize()[:3])
        if sorted(axis) != [0, 1, 2] or tuple(size[a] for a in axis)[::-1] != grid.shape:
            raise ValueError(
                f"wanted in {path} the volume of {grid.shape} that was registered, along the axes of space, got "
                f"{size} with the direction {direction.round(3).tolist()}; register it again"
            )
        return cls(axis, turned, size, grid)

    def positions(self, voxels: Array) -> Array:
        """Positions ``[N, 3]`` (z, y, x), in the grid's unit, of voxels ``[N, 3]`` of the file."""
        index = voxels[:, list(self.axis)]
        last = np.array([self.size[a] - 1 for a in self.axis])
        index = np.where(self.turned, last - index, index)[:, ::-1]
        return np.array(self.grid.origin) + np.array(self.grid.spacing) * index

    def voxels(self, positions: Array) -> Array:
        """The inverse of `positions`."""
        index = ((positions - np.array(self.grid.origin)) / np.array(self.grid.spacing))[:, ::-1]
        last = np.array([self.size[a] - 1 for a in self.axis])
        out = np.empty_like(index)
        out[:, list(self.axis)] = np.where(self.turned, last - index, index)
        return out


def displacements(folder: Path, fixed: Path, moving: Path) -> Array:
    """The map of a result as the challenge wants it: ``[X, Y, Z, 3]`` float32, from voxels of the fixed to those of the moving.

    Args:
        folder: of the result.
        fixed: the fixed volume's file.
        moving: the moving one's.

    Raises:
        ValueError: for files that are not those of the result.
    """
    result = regframe.load(folder)
    here, there = Lie.of(fixed, result.fixed_grid), Lie.of(moving, result.moving_grid)
    count = int(np.prod(here.size))
    out = np.empty((count, 3), dtype=np.float32)
    for start in range(0, count, BLOCK):
        number = np.arange(start, min(start + BLOCK, count))
        voxels = np.stack(np.unravel_index(number, here.size), axis=1).astype(np.float64)
        carried = result.to_moving(torch.from_numpy(here.positions(voxels))).numpy()
        out[number] = there.voxels(carried) - voxels
    return out.reshape(*here.size, 3)


def write_field(path: Path, field: Array) -> None:
    """Write displacements ``[X, Y, Z, 3]`` as a NIfTI file of four axes, float32, aside and renamed."""
    write_volume(path, np.asarray(field, dtype=np.float32))


def write_volume(path: Path, numbers: NDArray[Any], spacing: Sequence[float] | None = None) -> None:
    """Write ``[X, Y, Z, ...]`` as a NIfTI file whose axes are in that order, aside and renamed.

    Args:
        path: the file.
        numbers: of a type that NIfTI knows.
        spacing: of the voxels along each axis, mm; 1 where it is not given.
    """
    sitk = _sitk()
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(np.ascontiguousarray(numbers.transpose()), isVector=False)
    if spacing is not None:
        image.SetSpacing([float(one) for one in spacing])
    aside = path.with_name(f".{os.getpid()}.{path.name}")
    sitk.WriteImage(image, str(aside), useCompression=True)
    aside.replace(path)
