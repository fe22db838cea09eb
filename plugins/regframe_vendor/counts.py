"""Transcripts per spot or bin, from the matrix that Space Ranger writes (10x HDF5)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import regframe

from .folder import Folder

if TYPE_CHECKING:
    import torch
else:
    torch = regframe.later.torch

MOST_COUNTS = 4_000_000_000
"""Entries of a matrix that are summed at most: those of a Visium HD slide at 2 µm are some hundred millions."""
_BLOCK = 1 << 24
"""Entries that are read at a time."""


def weighed(points: regframe.PointSet, matrix: Path | None, folder: Folder) -> regframe.PointSet:
    """The spots or bins with their sums of transcripts as weights, 0 where the matrix does not know them."""
    if matrix is None or "barcode" not in points.table:
        raise ValueError(
            f"wanted a matrix of counts by barcode in {str(folder.root)!r} for counts=true, got none; copy "
            "filtered_feature_bc_matrix.h5 to where Space Ranger put it, or leave counts out"
        )
    barcodes, sums = totals(matrix)
    order = np.argsort(barcodes)
    names = np.array([str(name).encode() for name in points.table["barcode"]])
    at = order[np.searchsorted(barcodes, names, sorter=order).clip(0, len(order) - 1)]
    weights = np.where(barcodes[at] == names, sums[at], 0.0)
    if not weights.any():
        raise ValueError(
            f"wanted counts of the barcodes of {points.name!r}, got none of them in {str(matrix)!r}; check both"
        )
    return points.replace(weights=torch.from_numpy(weights))


def totals(path: Path) -> tuple[NDArray[np.bytes_], NDArray[np.float64]]:
    """Barcodes and the sum of each one's counts; ValueError where the file is no such matrix."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"wanted h5py to read {path.name!r}, got none; install regframe[anndata]") from error
    try:
        with h5py.File(path, "r") as file:
            matrix = file["matrix"]
            data, starts = matrix["data"], np.asarray(matrix["indptr"][:], dtype=np.int64)
            barcodes = np.asarray(matrix["barcodes"][:]).astype(np.bytes_)
            sound = len(starts) == len(barcodes) + 1 and starts[0] == 0 and starts[-1] == len(data) <= MOST_COUNTS
            if not sound or (np.diff(starts) < 0).any() or data.dtype.kind not in "iuf":
                raise ValueError("its parts do not fit together")
            running = np.zeros(len(data) + 1)
            for begin in range(0, len(data), _BLOCK):
                part = np.asarray(data[begin : begin + _BLOCK], dtype=np.float64)
                running[begin + 1 : begin + 1 + len(part)] = running[begin] + np.cumsum(part)
    except Exception as error:  # h5py documents no exceptions
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"wanted a matrix of counts (10x HDF5) in {str(path)!r}, got something else ({reason})"
        ) from error
    sums: NDArray[np.float64] = running[starts[1:]] - running[starts[:-1]]
    if len(sums) == 0 or not np.isfinite(sums).all() or (sums < 0).any():
        raise ValueError(
            f"wanted counts of 0 and more in {str(path)!r}, got none or others; copy the maker's file anew"
        )
    return barcodes, sums
