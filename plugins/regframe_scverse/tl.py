"""Tools in the manner of scanpy and squidpy: they change the AnnData that they are given, and return nothing or a copy."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

import regframe

from .anndata_door import align as carry
from .anndata_door import check

__all__ = ["align"]

_FIGURES = ("matching_fraction", "jacobian_min", "folding_fraction", "n_evaluations", "seconds")
"""Figures of a result that are kept in ``uns``."""


def align(
    adata_ref: Any,
    adata_query: Any,
    *,
    spatial_key: str = "spatial",
    key_added: str = "spatial_aligned",
    unit: str | None = None,
    cell_types: str | None = None,
    spacing: float | None = None,
    transform: str | None = None,
    metric: str | None = None,
    init: Any = "auto",
    map_path: str | Path | None = None,
    copy: bool = False,
) -> Any:
    """Register the cells of ``adata_query`` to those of ``adata_ref``, and carry their positions into its space.

    The cells are registered as densities (the adapter ``cells``), of all cells or per cell type; nothing has to be set.

    Args:
        adata_ref: the reference; it stays as it is.
        adata_query: cells, spots or bins that are brought onto it.
        spatial_key: entry of ``obsm`` with the positions, in the order x, y, of both.
        key_added: entry of ``obsm`` that gets the new positions.
        unit: of the positions of both, which AnnData does not record (``"um"``); None: px.
        cell_types: column of ``obs`` of both whose values get a channel each; None: one density of all cells.
        spacing: pixel size of the densities, in ``unit``; None: from the room that a cell has.
        transform: model of the map, ``"rigid"``, ``"similarity"``, ``"affine"`` or ``"lddmm"``; None: affine plus a smooth bend.
        metric: as of `regframe.register`.
        init: where the fit begins, as of `regframe.register`: ``"auto"``, ``"identity"``, `regframe.landmarks`, a result …
        map_path: folder to write the map to, ``NAME.ome.zarr``, which `regframe.load` reads; None: it is not kept.
        copy: return an aligned copy and leave ``adata_query`` alone.

    Returns:
        None, or the copy. Set are

        * ``obsm[key_added]``: the positions in the space of ``adata_ref``;
        * ``obs["match_probability"]``, ``obs["position_sd"]``, ``obs["in_canvas"]``: how far to trust each, as of
          `regframe_scverse.align`;
        * ``uns[key_added]``: ``verdict`` (``pass``, ``warn``, ``fail``), ``reasons``, ``confidence`` where it is known,
          ``affine`` (``[3, 3]``, (x, y) of the query to (x, y) of the reference, without the bend), ``unit``, ``figures``,
          ``params``, ``version``, and ``map``, the path of the map where it was saved. ``write_h5ad`` takes all of it.

    Raises:
        ValueError: where the positions cannot be read or registered, before anything is changed.

    Warns:
        UserWarning: where the verdict is ``fail``.
    """
    for adata in (adata_ref, adata_query):
        check(adata, spatial_key, key_added, copy or adata is adata_ref)
    options = {"columns": spatial_key, "unit": unit, "types": cell_types, "spacing": spacing}
    fixed, moving = (regframe.open(adata, adapter="cells", **options) for adata in (adata_ref, adata_query))
    result = regframe.register(fixed, moving, transform=transform, metric=metric, init=init)
    if map_path is not None:
        result.save(map_path)
    out = adata_query.copy() if copy else adata_query
    carry(out, result, key=spatial_key, key_added=key_added, unit=unit)
    params = {
        "spatial_key": spatial_key, "unit": unit, "cell_types": cell_types, "spacing": spacing, "metric": metric,
        "transform": result.config.transform, "init": init if isinstance(init, str) else type(init).__name__,
        "seed": result.config.seed,
    }  # fmt: skip
    out.uns[key_added] = _record(result, params, map_path)
    if result.verdict == "fail":
        warnings.warn(
            f"regframe: the verdict on this map is fail, see uns[{key_added!r}]: {' '.join(result.reasons)}",
            UserWarning,
            stacklevel=2,
        )
    return out if copy else None


def _record(result: regframe.Result, params: dict[str, Any], map_path: str | Path | None) -> dict[str, Any]:
    """What ``uns`` gets; only what ``write_h5ad`` takes, so that a value that is not known has no entry."""
    linear = result.affine
    assert isinstance(linear, regframe.Affine)
    flip = np.array([[0, 1.0, 0], [1, 0, 0], [0, 0, 1]])
    found = {
        "verdict": result.verdict,
        "reasons": np.array(result.reasons, dtype=object),
        "confidence": result.confidence,
        "affine": flip @ linear.matrix.numpy() @ flip,
        "unit": result.fixed_grid.unit,
        "figures": _known({name: result.metrics.get(name) for name in _FIGURES}),
        "params": _known(params),
        "version": regframe.__version__,
        "map": None if map_path is None else str(map_path),
    }
    return _known(found)


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
