"""Maps in the files of other programs, one module per format.

``itk``, ``ants``, ``nifti`` and ``elastix`` are read by ITK's family of programs; ``npz`` is plain numpy arrays, ``ngff`` an
OME-Zarr store, ``points`` positions as csv and geojson. ``steps`` turns a map into the matrices and displacement fields that
such files hold, and back; ``exchange`` chooses the format, writes aside and renames, reads and judges.

This file names the formats without importing them, so that the help of the command line needs no torch.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..contracts import MapFormat


@dataclass(frozen=True)
class BuiltIn:
    """A format that comes with regframe.

    Args:
        name: what ``--format`` takes; the class says it too.
        home: module of this folder and class in it.
        summary: what files these are and who reads them; the first line of the class's docstring without its full stop.
    """

    name: str
    home: str
    summary: str

    def load(self) -> type[MapFormat]:
        """The class itself."""
        module, _, name = self.home.partition(".")
        found: type[MapFormat] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
        return found


BUILT_IN = (
    BuiltIn("itk", "itk.Itk", ".h5, .tfm or .mat: SimpleITK, ITK, 3D Slicer; needs the extra itk, as the next two do"),
    BuiltIn("ants", "ants.Ants", "PATH0GenericAffine.mat, PATH1Warp.nii.gz, PATH1InverseWarp.nii.gz: antsApplyTransforms"),
    BuiltIn("nifti", "nifti.Nifti", ".nii.gz: one displacement field, affine part and all"),
    BuiltIn("elastix", "elastix.Elastix", ".txt: transform parameters of an affine map"),
    BuiltIn("npz", "npz.Npz", ".npz: plain numpy arrays, exact"),
    BuiltIn("ngff", "ngff.Ngff", ".ome.zarr: an OME-Zarr 0.6 store"),
    BuiltIn("csv", "points.Csv", ".csv: positions on both sides as a table"),
    BuiltIn("geojson", "points.GeoJson", ".geojson: positions on both sides as points, for QuPath"),
)  # fmt: skip
"""The formats that come with regframe: the one place where a new one is entered. Those first in it are asked first."""

TOLERANCE_PX = 0.001
"""Largest error that displacement fields may add by being interpolated, in pixels of the side that positions are taken to.

Two programs whose positions are this close agree, by the bar of ``benchmarks/bench_interchange.py``; it is a third of what the
store of a result allows itself, and a tenth of the error from which users are warned.
"""
