"""AnnData: the positions in ``obsm`` carried by a result, beside the ones that were there."""

from __future__ import annotations

from typing import Any

import numpy as np

import regframe

from ._positions import Side, axes_of, points, ratio, sides, turned


def align(
    adata: Any,
    result: regframe.Result,
    to: Side = "fixed",
    key: str = "spatial",
    key_added: str = "spatial_aligned",
    unit: str | None = None,
    scale_factor: str | None = None,
    library_id: str | None = None,
    copy: bool = False,
) -> Any:
    """Carry ``obsm[key]`` to the other side of a registration; all else stays as it was, rows in their order.

    Adds ``obsm[key_added]``, ``[N, 2]`` float64 in the order (x, y) (``[N, 3]``, (x, y, z), for volumes), or a copy of the entry
    with its position columns replaced where it is a data frame or has others, in the unit of the destination,
    ``result.fixed_grid.unit`` for ``to="fixed"``; and to ``obs``: ``match_probability`` and ``position_sd``
    (NaN off the fixed canvas) and ``in_canvas``, with ``regframe_`` before a name that the user's own column bears. These
    replace what an earlier call wrote; nothing else is changed. A cell without a position (NaN) gets none.

    Args:
        adata: cells of the side that they are carried from: the moving side for ``to="fixed"``.
        result: of `regframe.register` or `regframe.load`.
        to: the side to go to, ``"fixed"`` or ``"moving"``.
        key: entry of ``obsm`` with the positions: a data frame whose columns are named, or an array in the order x, y; with its
            columns by name or number after a colon, ``"spatial:x=0,y=1"``, where there are others.
        key_added: entry of ``obsm`` that gets the new ones.
        unit: of ``obsm[key]`` (``"um"``, ``"px"``), which AnnData does not record. It may be left out where the side is in px.
        scale_factor: entry of ``uns["spatial"][library_id]["scalefactors"]`` that positions are multiplied by first, e.g.
            ``"tissue_hires_scalef"`` where that picture was registered in px; None: as they are.
        library_id: entry of ``uns["spatial"]``, needed where there are several.
        copy: return an aligned copy and leave ``adata`` alone.

    Returns:
        The copy, or None.

    Raises:
        ValueError: where there is no such entry, it has another shape, its unit is needed and not stated, or ``adata`` is a view.
    """
    side, _, _ = sides(result, to)
    key, columns = check(adata, key, key_added, copy)
    what = f"obsm[{key!r}]"
    entry = adata.obsm[key]
    places, declared = axes_of(entry, columns or None, side.ndim, what)
    if declared is not None and unit is not None and regframe.canonical_unit(unit) != declared:
        raise ValueError(f"wanted one unit for {what}, got {declared} in its names and unit={unit!r}; leave unit out")
    factor = ratio(unit or declared, side, what)
    if scale_factor is not None:
        if side.unit != "px":
            raise ValueError(
                f"wanted a side in px for {scale_factor!r}, got one in {side.unit}; leave the scale factor out and multiply"
            )
        factor *= _scale(adata.uns, scale_factor, library_id)
    xyz = np.asarray(entry)[:, places] if np.ndim(entry) == 2 else entry
    carried = regframe.carry_points(result, points(xyz, factor, side, what), to)
    out = adata.copy() if copy else adata
    for name, values in carried.columns({str(name): out.obs[name] for name in out.obs.columns}).items():
        out.obs[name] = values.numpy()
    out.obsm[key_added] = _like(entry, places, carried.points, declared)
    return out if copy else None


def check(adata: Any, key: str, key_added: str, copy: bool) -> tuple[str, str]:
    """The entry of ``obsm`` that ``key`` names, and what it says of its columns; errors as of `align`."""
    if not all(hasattr(adata, name) for name in ("obs", "obsm", "uns")):
        raise TypeError(f"wanted an AnnData, got {type(adata).__name__}; read one with anndata.read_h5ad")
    key, _, columns = (key, "", "") if key in adata.obsm else key.partition(":")
    if key not in adata.obsm:
        raise ValueError(f"wanted positions in obsm[{key!r}], got obsm with {_join(adata.obsm)}; name one with key=...")
    if key_added == key:
        raise ValueError(f"wanted another entry than {key!r} for the new positions, got the same; change key_added")
    if getattr(adata, "is_view", False) and not copy:
        raise ValueError("wanted an AnnData of its own, got a view of another; .copy() it first, or pass copy=True")
    return key, columns


def _like(entry: Any, places: list[int], moved: regframe.PointSet, declared: str | None) -> Any:
    """Positions, x first, in the form of the entry that they came from; other columns of it as they were.

    Columns whose names stated the unit ``declared`` are named after axis and unit where that is another now.
    """
    xyz = turned(moved.coords)
    if hasattr(entry, "iloc") and xyz.shape[1] == len(places):
        frame = entry.copy()
        for place, values in zip(places, xyz.T, strict=True):
            frame[frame.columns[place]] = values
        if declared not in (None, moved.unit):
            suffix = {"µm": "um"}.get(moved.unit, moved.unit)
            new = {frame.columns[place]: f"{axis}_{suffix}" for axis, place in zip("xyz", places, strict=False)}
            frame = frame.rename(columns=new)
        return frame
    if np.shape(entry)[1] <= len(places) or xyz.shape[1] != len(places):
        return xyz
    out = np.array(entry, dtype=np.float64)
    out[:, places] = xyz
    return out


def _scale(uns: Any, name: str, library: str | None) -> float:
    libraries = dict(uns.get("spatial", {}))
    if library is None and len(libraries) == 1:
        library = next(iter(libraries))
    if library not in libraries:
        raise ValueError(
            f"wanted one library in uns['spatial'] for {name!r}, got {_join(libraries)}; name it with library_id=..."
        )
    factors = libraries[library].get("scalefactors", {})
    if name not in factors:
        raise ValueError(f"wanted a scale factor {name!r} of {library!r}, got {_join(factors)}; name one of these")
    return float(factors[name])


def _join(names: Any) -> str:
    return ", ".join(map(str, names)) or "none"
