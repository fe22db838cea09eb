"""Maps in the files of other programs, one module per format.

``itk``, ``ants``, ``nifti`` and ``elastix`` are formats of ITK's family of programs; ``npz`` is plain numpy arrays, ``ngff`` an
OME-Zarr store, ``matrix`` bare numbers, ``qupath`` maps for QuPath, ``points`` moved positions as csv and geojson. ``steps``
turns a map into the matrices and displacement fields that such files hold, and back. ``exchange`` chooses the format, writes to
a temporary name and renames, reads and judges; ``starts`` reads what ``init`` names.

This module names the formats without importing them, so that the command line can list them without loading torch.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..hookspecs import hookimpl

if TYPE_CHECKING:
    from ..contracts import MapFormat


@dataclass(frozen=True)
class BuiltIn:
    """A format that comes with regframe.

    Args:
        name: what ``--format`` accepts; equal to the ``name`` of the class.
        home: ``module.class`` in this package.
        summary: the files of the format and the programs that read them; the first line of the class's docstring without its full
            stop.
    """

    name: str
    home: str
    summary: str

    def load(self) -> type[MapFormat]:
        """Import and return the format's class."""
        module, _, name = self.home.partition(".")
        found: type[MapFormat] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
        return found


@hookimpl
def regframe_formats() -> list[type[Any]]:
    """The classes of the formats of regframe, in the order in which they are asked whether a file is theirs."""
    return [built_in.load() for built_in in BUILT_IN]


BUILT_IN = (
    BuiltIn("itk", "itk.Itk", ".h5, .tfm or .mat: SimpleITK, ITK, 3D Slicer; needs the extra itk, as the next two do"),
    BuiltIn("ants", "ants.Ants", "PATH0GenericAffine.mat, PATH1Warp.nii.gz, PATH1InverseWarp.nii.gz: antsApplyTransforms"),
    BuiltIn("nifti", "nifti.Nifti", ".nii.gz: one displacement field, affine part and all"),
    BuiltIn("elastix", "elastix.Elastix", ".txt: transform parameters of an affine map"),
    BuiltIn("npz", "npz.Npz", ".npz: plain numpy arrays, exact"),
    BuiltIn("ngff", "ngff.Ngff", ".ome.zarr: an OME-Zarr 0.6 store"),
    BuiltIn("qupath", "qupath.Alignment", ".qupath.txt: an affine map to paste into QuPath's Interactive image alignment"),
    BuiltIn("matrix", "matrix.Matrix", ".npy, .csv, .txt (--format matrix): an affine map as bare numbers (Xenium Explorer)"),
    BuiltIn("warpy", "qupath.Warpy", ".warpy.json, transform_1_2.json (--format warpy): a map for QuPath's extension Warpy"),
    BuiltIn("csv", "points.Csv", ".csv: positions on both sides as a table"),
    BuiltIn("geojson", "points.GeoJson", ".geojson: positions on both sides as points, for QuPath"),
)  # fmt: skip
"""The formats of regframe; a new one is entered here and nowhere else. Whether a file is theirs is asked in this order."""

TOLERANCE_PX = 0.001
"""Largest error that displacement fields may add through interpolation between nodes, in pixels of the side ``to``.

By the bar of ``benchmarks/bench_interchange.py`` two programs agree if their positions are this close. It is a third of the
tolerance of a result's store, and a tenth of the error from which users are warned.
"""
