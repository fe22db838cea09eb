"""SpatialData: its elements as what regframe registers, and carried by a result into a coordinate system of their own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import regframe

from ._elements import XY, element_of, mapped, module, names_of, placed_in
from ._positions import Array, Side, ratio, sides, turned
from ._raster import carried, pyramid_of, upright

_LEAST_RADIUS = 1e-9
"""Half the distance over which the map's derivative at a circle's centre is taken where its radius is smaller, in the unit of the
coordinate system: a circle of radius 0 stays one, without a division by 0."""


def open_element(
    sdata: Any,
    name: str,
    coordinate_system: str = "global",
    unit: str | None = None,
    scale: int | None = None,
) -> regframe.Image | regframe.PointSet:
    """An element as `regframe.register` takes it, positions those of ``coordinate_system``.

    Images and labels become an `Image` (a pixel's centre lies half a pixel from its corner, where SpatialData counts from),
    points a `PointSet`, shapes the `PointSet` of their centroids, ``(y, x)`` both.

    Args:
        sdata: a SpatialData.
        name: of the element.
        coordinate_system: the one whose positions the result has; all that is placed in it should be in one unit.
        unit: of the coordinate system, which SpatialData does not record; None: ``px``.
        scale: level of a multiscale image to read as a whole, 0 the finest; None takes the one that a registration needs,
            averaged where it is large, as of image files.

    Raises:
        ValueError: for an element that is not there, is 3D, or is not placed in the coordinate system by an affine map; for an
            image whose map turns or mirrors it.
        ImportError: without spatialdata.
    """
    sd = module()
    kind, element = element_of(sdata, name)
    placed = placed_in(sd, element, name, coordinate_system)
    if kind in ("points", "shapes"):
        if kind == "points":
            frame = element[list(XY)].compute()
            xy = np.stack([frame["x"].to_numpy(), frame["y"].to_numpy()], axis=1).astype(np.float64)
        else:
            centroids = element.geometry.centroid
            xy = np.stack([centroids.x.to_numpy(), centroids.y.to_numpy()], axis=1)
        coords = np.ascontiguousarray(mapped(placed, xy)[:, ::-1])
        return regframe.PointSet(torch.from_numpy(coords), unit or "px", name=name)
    pyramid, placed = pyramid_of(sd, element, kind, name, coordinate_system)
    if scale is None:
        image = regframe.read_level(pyramid, *regframe.choose_level(pyramid))
    elif 0 <= scale < len(pyramid.levels):
        image = pyramid.image(scale)
    else:
        raise ValueError(f"wanted a scale of {name!r} from 0 to {len(pyramid.levels) - 1}, got {scale}; choose one")
    grid = upright(image.grid, placed, unit or "px")
    if grid is None:
        raise ValueError(
            f"wanted an image that {coordinate_system!r} neither turns nor mirrors, got {name!r}; rasterize it first, or "
            "register it where it is upright"
        )
    return image.replace(grid=grid)


def align_elements(
    sdata: Any,
    result: regframe.Result,
    to: Side = "fixed",
    elements: Iterable[str] | None = None,
    coordinate_system: str = "global",
    to_coordinate_system: str = "aligned",
    unit: str | None = None,
    suffix: str = "_aligned",
    pixel_origin: Literal["corner", "center"] | None = None,
    spacing: float | None = None,
    map_path: str | Path | None = None,
) -> dict[str, str]:
    """Carry elements to the other side of a registration: each gets a warped twin beside it, in a new coordinate system.

    ``NAME_aligned`` lies in ``to_coordinate_system``, whose positions are those of the destination, in its unit:

    * points: x and y moved, partition by partition and only when computed, with the columns ``match_probability``,
      ``position_sd`` and ``in_canvas``; other columns unchanged;
    * shapes: polygons vertex by vertex, with new vertices where the map bends an edge; circles by their centre, the radius
      scaled as the area around it; index and columns as they were;
    * images and labels: on the canvas of the destination, in their dtype, block by block and only when computed, from the
      level that is fine enough; with coarser levels where they had some; white around brightfield, else 0; ids stay ids.

    The elements themselves stay as they are but for one more transformation, to ``to_coordinate_system + "_affine"``: the
    affine part of the map, which every scverse tool can use. SpatialData has no class for the nonlinear map: it is saved at
    ``map_path`` as a scene of OME-Zarr 0.6 (RFC-5), which may lie within the store, and ``sdata.attrs["regframe"]`` says where
    it is, its unit and verdict; `load_map` reads it. All else happens in memory; write the new elements, transformations and
    attributes with SpatialData's own methods.

    Args:
        sdata: holds elements of the side that they are carried from.
        result: of `regframe.register` or `regframe.load`.
        to: the side to go to, ``"fixed"`` or ``"moving"``.
        elements: their names; None: all that are placed in ``coordinate_system``.
        coordinate_system: the one whose positions are those of the source side.
        to_coordinate_system: name for the destination; that of the other side's elements where they are in ``sdata`` too.
        unit: of ``coordinate_system``, which SpatialData does not record; may be left out where the source side is in px.
        suffix: of the new names.
        pixel_origin: None: positions of the result are those of the coordinate systems, as `open_element` gives them. Where both
            sides of the result were image files, whose first pixel has its *centre* at 0, and the coordinate systems begin at its
            *corner*: ``"corner"``. ``"center"`` is as None.
        spacing: pixel size of carried images, in the unit of the destination; None: that of the destination.
        map_path: folder to write the map to, ``NAME.ome.zarr``.

    Returns:
        New name by old name.

    Raises:
        ValueError: where an element cannot be carried, a name is taken or a unit is needed; nothing has been changed then.
        ImportError: without spatialdata.
    """
    sd = module()
    if pixel_origin not in (None, "corner", "center"):
        raise ValueError(f"wanted pixel_origin 'corner' or 'center', got {pixel_origin!r}; choose one")
    crossing = _crossing(result, to, coordinate_system, to_coordinate_system, unit, pixel_origin == "corner")
    names = names_of(sd, sdata, elements, coordinate_system)
    new = {name: f"{name}{suffix}" for name in names}
    taken = [n for n in new.values() if n in sdata]
    if taken:
        raise ValueError(
            f"wanted new names for the moved elements, got {', '.join(taken)}, which are there; change suffix"
        )
    door = _Door(sd, crossing, spacing)
    twins = {name: door.carried(name, *element_of(sdata, name)) for name in names}  # before anything is changed
    about = crossing.about() | {"map": None if map_path is None else _reference(sdata, Path(map_path))}
    matrix = sd.transformations.Affine(crossing.affine(), XY, XY)
    if map_path is not None:
        result.save(Path(map_path))
    for name, element in twins.items():
        if map_path is not None:
            element.attrs["regframe"] = {"coordinate_system": to_coordinate_system, "map": about["map"]}
        sdata[new[name]] = element
        own = element_of(sdata, name)[1]
        first = sd.transformations.get_transformation(own, to_coordinate_system=coordinate_system)
        both = sd.transformations.Sequence([first, matrix])
        sd.transformations.set_transformation(own, both, to_coordinate_system=about["affine"])
    held = dict(sdata.attrs.get("regframe", {}))
    sdata.attrs["regframe"] = {**held, to_coordinate_system: about}
    return new


def load_map(sdata: Any, coordinate_system: str = "aligned", folder: str | Path | None = None) -> regframe.Result:
    """The result whose map `align_elements` saved and named in ``sdata.attrs``.

    Args:
        sdata: a SpatialData with carried elements.
        coordinate_system: the one that they were carried to.
        folder: where the map lies; None: in the store of ``sdata``, or beside it.

    Raises:
        ValueError: nothing was carried to ``coordinate_system``, or no map was saved.
        FileNotFoundError: the map is in none of these places.
    """
    held = dict(sdata.attrs.get("regframe", {}))
    if coordinate_system not in held:
        raise ValueError(
            f"wanted a coordinate system that elements were moved to ({', '.join(held) or 'none'}), got "
            f"{coordinate_system!r}; name one"
        )
    name = held[coordinate_system].get("map")
    if name is None:
        raise ValueError(
            f"wanted the map to {coordinate_system!r}, got none saved; run align_elements with map_path=..."
        )
    store = None if sdata.path is None else Path(sdata.path)
    places = [Path(folder)] if folder is not None else [] if store is None else [store, store.parent]
    found = next((place / name for place in places if (place / name).exists()), None)
    if found is None:
        looked = " or ".join(str(place) for place in places) or "memory, where no folder is"
        raise FileNotFoundError(f"wanted the map {name} in {looked}, got none; say where it lies with folder=...")
    return regframe.load(found)


def _reference(sdata: Any, map_path: Path) -> str:
    """How a map is named in a SpatialData: from the store on where it lies within, else by its name alone."""
    store, map_path = None if sdata.path is None else Path(sdata.path).resolve(), map_path.resolve()
    inside = store is not None and map_path.is_relative_to(store)
    return map_path.relative_to(store).as_posix() if inside and store is not None else map_path.name


@dataclass(frozen=True)
class _Crossing:
    """The way from one coordinate system to another: (x, y) outside, positions (y, x) of the result inside.

    Args:
        result: of the registration.
        to: the side to go to.
        transform: from positions of the source side to positions of the destination.
        side: grid of the source side.
        canvas: grid of the destination.
        into: ``[3, 3]`` from (x, y) of the system ``source`` to positions of the source side.
        out: ``[3, 3]`` from positions of the destination to (x, y) of the system ``target``.
        source: name of the coordinate system that elements come from.
        target: name of the one that they go to.
    """

    result: regframe.Result
    to: Side
    transform: regframe.Transform
    side: regframe.Grid
    canvas: regframe.Grid
    into: Array
    out: Array
    source: str
    target: str

    def affine(self) -> Array:
        """``[3, 3]`` from (x, y) of ``source`` to (x, y) of ``target``: the affine part of the map."""
        linear = self.result.affine if self.to == "fixed" else self.result.affine.inverse()
        assert isinstance(linear, regframe.Affine)
        matrix: Array = self.out @ linear.matrix.numpy() @ self.into
        return matrix

    def about(self) -> dict[str, Any]:
        """The entry of ``sdata.attrs["regframe"]`` for the coordinate system ``target``."""
        return {
            "to": self.to,
            "source": self.source,
            "unit": self.canvas.unit,
            "verdict": self.result.verdict,
            "affine": f"{self.target}_affine",
        }


def _crossing(result: regframe.Result, to: Side, source: str, target: str, unit: str | None, corner: bool) -> _Crossing:
    """The way from ``source``, in ``unit``, to ``target``; ``corner`` where both begin at the corner of the first pixel."""
    side, canvas, transform = sides(result, to)
    if side.ndim != 2:
        raise ValueError(f"wanted the result of a plane for elements of SpatialData, got one of {side.ndim} dimensions")
    factor = ratio(unit, side, f"the coordinate system {source!r}")
    before, after = (np.array(g.spacing) / 2 if corner else np.zeros(2) for g in (side, canvas))  # (y, x)
    into = np.array([[0, factor, -before[0]], [factor, 0, -before[1]], [0, 0, 1.0]])
    out = np.array([[0, 1, after[1]], [1, 0, after[0]], [0, 0, 1.0]])
    return _Crossing(result, to, transform, side, canvas, into, out, source, target)


class _Door:
    """Carries elements, each kind in its own way; ``spacing`` is the pixel size of carried images, None for the canvas's."""

    def __init__(self, sd: Any, way: _Crossing, spacing: float | None) -> None:
        self.sd, self.way, self.spacing = sd, way, spacing

    def carried(self, name: str, kind: str, element: Any) -> Any:
        """The warped twin of an element."""
        placed = placed_in(self.sd, element, name, self.way.source)
        if kind == "points":
            return self._points(element, placed)
        if kind == "shapes":
            return self._shapes(element, placed, name)
        return self._raster(element, kind, name)

    def _carry(self, placed: Array, xy: Array) -> tuple[Array, dict[str, torch.Tensor]]:
        """Own coordinates ``[N, 2]`` (x, y) in the new system, and the columns that say how far to trust them."""
        way = self.way
        at = mapped(way.into @ placed, xy)  # (y, x)
        carried = regframe.carry_points(way.result, regframe.PointSet(torch.from_numpy(at), way.side.unit), way.to)
        return mapped(way.out, carried.points.coords.numpy()), carried.columns()

    def _points(self, element: Any, placed: Array) -> Any:
        columns = [str(c) for c in element.columns]
        wanted = ("match_probability", "position_sd", "in_canvas")
        titles = {n: f"regframe_{n}" if n in columns else n for n in wanted}

        def move(frame: Any) -> Any:
            xy = np.stack([frame["x"].to_numpy(), frame["y"].to_numpy()], axis=1).astype(np.float64)
            moved, added = self._carry(placed, xy)
            values = {titles[n]: v.numpy() for n, v in added.items()}
            return frame.assign(x=moved[:, 0], y=moved[:, 1], **values)

        moved = element.map_partitions(move, meta=move(element._meta))
        attrs = {k: v for k, v in element.attrs.items() if k != "transform"}
        moved.attrs.update(attrs)
        self._place(moved)
        self.sd.models.PointsModel().validate(moved)
        return moved

    def _shapes(self, element: Any, placed: Array, name: str) -> Any:
        import shapely

        out = element.copy()
        if "radius" in element.columns:
            xy = shapely.get_coordinates(element.geometry.to_numpy())
            r = element["radius"].to_numpy(dtype=np.float64)[:, None]
            step = np.maximum(r, _LEAST_RADIUS)
            ex, ey = np.array([[1.0, 0]]), np.array([[0, 1.0]])
            ends = [self._carry(placed, xy + s * step * e)[0] for e in (ex, ey) for s in (1, -1)]
            jx, jy = (ends[0] - ends[1]) / (2 * step), (ends[2] - ends[3]) / (2 * step)
            area = np.abs(jx[:, 0] * jy[:, 1] - jx[:, 1] * jy[:, 0])
            moved = self._carry(placed, xy)[0]
            out["radius"] = r[:, 0] * np.sqrt(area)
            geometry = shapely.points(moved)
        else:
            geometry = self._polygons(element.geometry.to_numpy(), placed, name)
        out.geometry = geometry
        out.attrs = {k: v for k, v in element.attrs.items() if k != "transform"}
        self._place(out)
        self.sd.models.ShapesModel().validate(out)
        return out

    def _polygons(self, geometries: Any, placed: Array, name: str) -> Any:
        import shapely

        flat = shapely.force_2d(geometries)
        features = [{"type": "Feature", "properties": {}, "geometry": json.loads(g)} for g in shapely.to_geojson(flat)]
        shapes = regframe.Shapes.from_geojson({"type": "FeatureCollection", "features": features}, "px", "center", name)
        at = mapped(self.way.into @ placed, turned(shapes.coords))
        shapes = shapes.replace(coords=torch.from_numpy(at), unit=self.way.side.unit)
        moved = regframe.move_shapes(shapes, self.way.transform, self.way.canvas)
        xy = mapped(self.way.out, moved.coords.numpy())
        back = moved.replace(coords=torch.from_numpy(np.ascontiguousarray(xy[:, ::-1])), unit="px").to_geojson("center")
        return np.array([shapely.from_geojson(json.dumps(f["geometry"])) for f in back["features"]], dtype=object)

    def _raster(self, element: Any, kind: str, name: str) -> Any:
        way = self.way
        pyramid, placed = pyramid_of(self.sd, element, kind, name, way.source)
        flip = np.array([[0, 1.0, 0], [1, 0, 0], [0, 0, 1]])
        lies, transform = way.into @ placed, way.transform
        grids = [upright(level.grid, flip @ lies, way.side.unit) for level in pyramid.levels]
        turned = not all(grids)
        if not turned:
            levels = [
                dataclasses.replace(level, grid=grid or level.grid)
                for level, grid in zip(pyramid.levels, grids, strict=True)
            ]
            pyramid = dataclasses.replace(pyramid, levels=tuple(levels))
        else:  # through its own pixels
            own = regframe.Affine(torch.from_numpy(lies @ flip), "px", way.side.unit)
            transform = regframe.Sequence((own, transform))
        target = way.canvas if self.spacing is None else way.canvas.resampled(self.spacing)
        (sy, sx), (oy, ox) = target.spacing, target.origin
        corner = mapped(way.out, np.array([[oy - sy / 2, ox - sx / 2]]))[0]
        tf = self.sd.transformations
        where = {way.target: tf.Sequence([tf.Scale([sx, sy], XY), tf.Translation(corner.tolist(), XY)])}
        return carried(self.sd, pyramid, transform, target, where, turned)

    def _place(self, element: Any) -> None:
        """Say of an element whose positions are those of the target system that it lies there, and nowhere else."""
        identity = {self.way.target: self.sd.transformations.Identity()}
        self.sd.transformations.set_transformation(element, identity, set_all=True)
