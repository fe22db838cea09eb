"""Shapes: the points, lines and polygons of a GeoJSON document, with everything around them.

Positions are (y, x) as everywhere; GeoJSON's (x, y) is exchanged where a document is read or written, and nowhere else.
Coordinates in pixels count from the outer corner of the first pixel, as in QuPath and other annotation tools, unless the caller
says otherwise; in memory the position of a pixel is its centre. Everything that is not a coordinate (properties, ids, unknown
members, the order of all of it) is kept; ``bbox`` members are computed anew. A "path" is a run of vertices: the points of a
MultiPoint, one line, or one ring.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..data import Grid, canonical_unit, tensor_of, unit_ratio
from ..display import notebook

MAX_VERTICES = 50_000_000
"""Largest number of vertices in a result, and of positions mapped along edges, unless the caller says otherwise: about 1 GB of
coordinates."""

POINTS, LINE, RING = 0, 1, 2
"""Values of `Shapes.kinds`, the kind of a path: separate points, a line, a ring."""

_PATHS = {"Point": 0, "MultiPoint": 1, "LineString": 1, "MultiLineString": 2, "Polygon": 2, "MultiPolygon": 3}
"""Depth of nesting of the coordinates of a geometry, by its type (RFC 7946): the number of lists around a position."""

_KINDS = {"Point": POINTS, "MultiPoint": POINTS, "LineString": LINE, "MultiLineString": LINE}

_GEOMETRIES = ("geometry", "nucleusGeometry")
"""Members of a Feature that hold a geometry; the second one is QuPath's, for cells."""

_DEPTH = 32
"""Largest depth of collections within collections. GeoJSON advises against any; deeper ones would exhaust Python's stack."""
_CHUNK = 1 << 20
"""Number of positions along edges that are mapped together: 16 MB of coordinates."""
_PAIRS = 20_000_000
"""Largest number of pairs of edges of one ring that are compared to find crossings: some seconds of work."""


@dataclass(frozen=True)
class Shapes:
    """The vertices of a GeoJSON document, and the document around them.

    Args:
        coords: ``[N, 2]`` float64, vertices ``(y, x)`` in ``unit``, path after path; the position of a pixel is its centre.
        offsets: ``[P + 1]`` int64; path ``p`` is ``coords[offsets[p]:offsets[p + 1]]``.
        kinds: ``[P]`` uint8, kind of each path: 0 separate points, 1 a line, 2 a ring, whose last vertex repeats its first.
        document: the parsed JSON, in which each path's coordinates are replaced by the number of the path, nested as before.
        unit: length unit of the coordinates, ``"px"`` where none is declared.
        extra: further components of a position (an elevation) by number of the vertex; kept, never mapped.
        notes: what was repaired when the document was read, one sentence each.
        name: used in messages.
    """

    coords: Tensor
    offsets: Tensor
    kinds: Tensor
    document: Any
    unit: str = "px"
    extra: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    name: str = "shapes"

    def __post_init__(self) -> None:
        for name in ("coords", "offsets", "kinds"):
            object.__setattr__(self, name, tensor_of(getattr(self, name)))
        if self.coords.ndim != 2 or self.coords.shape[1] != 2:
            raise ValueError(f"wanted vertices [N, 2] as (y, x), got {tuple(self.coords.shape)}")
        if self.offsets.shape[0] != self.kinds.shape[0] + 1 or int(self.offsets[-1]) != self.coords.shape[0]:
            raise ValueError(
                f"wanted offsets of {self.kinds.shape[0]} paths that end at {self.coords.shape[0]} vertices, "
                f"got {self.offsets.shape[0]} that end at {int(self.offsets[-1])}"
            )
        object.__setattr__(self, "coords", self.coords.to(torch.float64))
        object.__setattr__(self, "unit", canonical_unit(self.unit))

    @classmethod
    def from_geojson(
        cls,
        document: Any,
        unit: str = "px",
        pixel_origin: Literal["corner", "center"] = "corner",
        name: str = "shapes",
        empty: bool = False,
    ) -> Shapes:
        """Shapes of a GeoJSON object as returned by `json.loads`, which is not modified; raises what `read_shapes` raises."""
        reader = _Reader(name)
        try:
            skeleton = reader.document(document)
        except RecursionError as error:
            raise ValueError(f"wanted GeoJSON, got {name!r} nested too deep to be one") from error
        if not len(reader.x) and not empty:
            raise ValueError(f"wanted at least one shape in {name!r}, got none; nothing there has coordinates")
        shift = _half(canonical_unit(unit), pixel_origin)
        yx = np.stack([np.array(reader.y), np.array(reader.x)], axis=-1) - shift
        return cls(
            torch.from_numpy(yx),
            torch.tensor(reader.offsets, dtype=torch.long),
            torch.tensor(reader.kinds, dtype=torch.uint8),
            skeleton,
            unit,
            reader.extra,
            reader.notes(),
            name,
        )

    def to_geojson(self, pixel_origin: Literal["corner", "center"] = "corner") -> Any:
        """The document with the vertices put back, ready for `json.dumps`."""
        return Filler(self, pixel_origin).document(self.document)

    def __len__(self) -> int:
        """Number of features; number of geometries in a collection of geometries; 1 for a single geometry."""
        node = self.document
        if isinstance(node, list):
            return len(node)
        for member in ("features", "geometries"):
            if node.get("type") in ("FeatureCollection", "GeometryCollection") and member in node:
                return len(node[member])
        return 1

    def replace(self, **changes: Any) -> Shapes:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def __repr__(self) -> str:
        return f"Shapes({self.name!r}, {len(self):,} shapes of {len(self.coords):,} vertices in {self.unit})"

    def _repr_html_(self) -> str:
        kinds = [int((self.kinds == kind).sum()) for kind in (POINTS, LINE, RING)]
        one, many = ("set of points", "line", "outline"), ("sets of points", "lines", "outlines")
        words = zip(kinds, one, many, strict=True)
        facts = [
            ("shapes", f"{len(self):,}"),
            (
                "of these",
                ", ".join(f"{n:,} {single if n == 1 else several}" for n, single, several in words if n) or "–",
            ),
            ("vertices", f"{len(self.coords):,} in {self.unit}"),
        ]
        coords, ends = self.coords.numpy(), self.offsets.tolist()
        paths = [
            coords[first:end]
            for first, end, kind in zip(ends, ends[1:], self.kinds.tolist(), strict=False)
            if kind != POINTS
        ]
        alone = torch.repeat_interleave(self.kinds == POINTS, self.offsets.diff())
        return notebook.table(self.name, facts, notebook.outlines(paths, coords[alone.numpy()]))

    def to_positions(self, grid: Grid, spacing: float | None = None) -> Shapes:
        """The shapes as positions in the space of ``grid``, in its unit.

        Pixels are converted with ``spacing``, the size of a pixel in the unit of ``grid``; where ``grid`` is in pixels,
        ``spacing`` may be omitted. Pixels count from the first pixel of the image where ``grid`` is the image or a level of
        its pyramid; for any other grid (rasterised cells, points), the centre of the first pixel is position 0. Lengths are
        converted by their units. ValueError where neither is possible: the size of a pixel is never guessed.
        """
        if spacing is not None and not (math.isfinite(spacing) and spacing > 0):
            raise ValueError(f"wanted a positive spacing, got {spacing}")
        if self.unit != "px":
            if spacing is not None:
                raise ValueError(
                    f"wanted coordinates in px to multiply by a spacing, got {self.unit}; leave one of the two out"
                )
            ratio = unit_ratio(self.unit, grid.unit)
            if ratio is None:
                raise ValueError(
                    f"wanted shapes in px for an image without physical spacing, got {self.unit}; "
                    "state the image's spacing"
                )
            return self.replace(coords=self.coords * ratio, unit=grid.unit)
        if spacing is None and grid.unit != "px":
            raise ValueError(
                f"wanted to know how long a unit of {self.name!r} is beside an image in {grid.unit}, got neither; state "
                f"the pixel size of the full-resolution image in {grid.unit} (--input-spacing), or the unit (--unit)"
            )
        size = 1.0 if spacing is None else spacing
        return self.replace(coords=_corner(grid, size) + (self.coords + 0.5) * size, unit=grid.unit)

    def to_pixels(self, grid: Grid, spacing: float | None = None) -> Shapes:
        """The shapes in pixels of size ``spacing`` over the space of ``grid``; the inverse of `to_positions`."""
        if self.unit != grid.unit or (spacing is None and grid.unit != "px"):
            raise ValueError(
                f"wanted shapes in {grid.unit} and the size of a pixel, got {self.unit} and {spacing}; state the spacing"
            )
        if spacing is not None and not (math.isfinite(spacing) and spacing > 0):
            raise ValueError(f"wanted a positive spacing, got {spacing}")
        size = 1.0 if spacing is None else spacing
        return self.replace(coords=(self.coords - _corner(grid, size)) / size - 0.5, unit="px")

    def areas(self) -> Tensor:
        """Signed area of each path ``[P]`` float64, in ``unit`` squared; positive where it runs counter-clockwise in (x, y).

        0 for paths that are not rings.
        """
        n = self.offsets.diff()
        if not len(self.coords):  # paths without a vertex
            return torch.zeros(len(n), dtype=torch.float64)
        path = torch.repeat_interleave(torch.arange(len(n)), n)  # [N]
        first = self.coords[self.offsets[:-1].clamp(max=max(len(self.coords) - 1, 0))]
        y, x = (self.coords - first[path]).unbind(dim=-1)
        edge = torch.nonzero((self.kinds[path] == RING)[:-1] & (path[1:] == path[:-1]))[:, 0]
        cross = (x[edge] * y[edge + 1] - x[edge + 1] * y[edge]) / 2
        return torch.zeros(len(n), dtype=torch.float64).index_add_(0, path[edge], cross)

    def outside(self, grid: Grid) -> Tensor:
        """Which vertices lie off the pixels of ``grid``, ``[N]`` bool; the outer border of the pixels still belongs to it."""
        index = (self.coords - _low(grid)) / torch.tensor(grid.spacing, dtype=torch.float64)
        return ((index < -1e-6) | (index > torch.tensor(grid.shape, dtype=torch.float64) + 1e-6)).any(dim=-1)

    def crossings(self) -> Tensor:
        """Which paths are rings with edges that cross, ``[P]`` bool; warns about rings that are too complex to test."""
        return _crossings(self)


# ---- the document -------------------------------------------------------------------------------------------------


class _Walk:
    """Walks through a document and returns a copy in which every geometry is replaced by ``change(geometry)``.

    Everything else is shared with the original.
    """

    def __init__(self) -> None:
        self.n_features = 0

    def change(self, node: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def box(self, node: dict[str, Any]) -> dict[str, Any]:
        """Hook that is called last on every FeatureCollection, Feature and geometry."""
        return node

    def document(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.feature(item) for item in node]
        if node["type"] == "FeatureCollection":
            return self.box({**node, "features": [self.feature(item) for item in node["features"]]})
        return self.feature(node) if node["type"] == "Feature" else self.geometry(node)

    def feature(self, node: dict[str, Any]) -> dict[str, Any]:
        self.n_features += 1
        changed = {m: self.geometry(node[m]) for m in _GEOMETRIES if isinstance(node.get(m), dict)}
        return self.box({**node, **changed})

    def geometry(self, node: dict[str, Any], depth: int = 0) -> dict[str, Any]:
        if node["type"] == "GeometryCollection":
            parts = [self.geometry(part, depth + 1) for part in node["geometries"]]
            return self.box({**node, "geometries": parts})
        return self.box(self.change(node))


class _Reader(_Walk):
    """Collects the positions of a document and replaces them by numbers of paths; ValueError for anything but GeoJSON."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.x, self.y = array("d"), array("d")
        self.offsets, self.kinds = [0], list[int]()
        self.extra: dict[int, tuple[float, ...]] = {}
        self.n_open = self.n_short = 0

    def notes(self) -> tuple[str, ...]:
        notes = []
        if self.n_open:
            notes.append(f"{_count(self.n_open, 'ring')} did not end where it began and was closed")
        if self.n_short:
            notes.append(f"{_count(self.n_short, 'ring')} of fewer than four positions moved as it is")
        return tuple(notes)

    def document(self, node: Any) -> Any:
        if isinstance(node, list):
            if not all(isinstance(item, dict) and item.get("type") == "Feature" for item in node):
                raise self.wrong("a type such as FeatureCollection", f"a list of {len(node)} entries")
        elif not isinstance(node, dict):
            raise self.wrong("a type such as FeatureCollection", _brief(node))
        elif node.get("type") not in ("FeatureCollection", "Feature", "GeometryCollection", *_PATHS):
            members = ", ".join(str(member)[:40] for member in list(node)[:8]) or "none"
            got = f"the type {_brief(node['type'])}" if "type" in node else f"an object with the members {members}"
            raise self.wrong("a type such as FeatureCollection", got)
        elif node["type"] == "FeatureCollection" and not isinstance(node.get("features"), list):
            raise self.wrong("a list of features", _brief(node.get("features")))
        return super().document(node)

    def feature(self, node: Any) -> dict[str, Any]:
        if not isinstance(node, dict) or node.get("type") != "Feature":
            raise self.wrong("features only in a FeatureCollection", _brief(node))
        for member in _GEOMETRIES:
            if node.get(member) is not None and not isinstance(node[member], dict):
                self.n_features += 1
                raise self.wrong(f"an object or null as {member}", _brief(node[member]))
        return super().feature(node)

    def geometry(self, node: Any, depth: int = 0) -> dict[str, Any]:
        if depth > _DEPTH:
            raise self.wrong(f"at most {_DEPTH} collections within each other", "more")
        if not isinstance(node, dict) or node.get("type") not in ("GeometryCollection", *_PATHS):
            raise self.wrong("a geometry", _brief(node.get("type") if isinstance(node, dict) else node))
        if node["type"] == "GeometryCollection" and not isinstance(node.get("geometries"), list):
            raise self.wrong("a list of geometries", _brief(node.get("geometries")))
        return super().geometry(node, depth)

    def change(self, node: dict[str, Any]) -> dict[str, Any]:
        kind = str(node["type"])
        return {**node, "coordinates": self.nested(node.get("coordinates"), _PATHS[kind], kind)}

    def nested(self, value: Any, depth: int, kind: str) -> Any:
        if not isinstance(value, list):
            raise self.wrong(f"coordinates of a {kind} as lists", _brief(value))
        if depth > 1:
            return [self.nested(item, depth - 1, kind) for item in value]
        if depth == 0:
            value = [value] if value else []
        return self.path(value, kind)

    def path(self, positions: list[Any], kind: str) -> int:
        x, y = self.x, self.y
        start = len(x)
        for position in positions:
            if type(position) is not list or len(position) < 2:
                raise self.wrong(f"positions [x, y] in a {kind}", _brief(position))
            if len(position) > 2:
                self.extra[len(x)] = tuple(position[2:])
            for number in position:
                if type(number) is not float and type(number) is not int:
                    raise self.wrong(f"numbers in the positions of a {kind}", _brief(number))
                if not -1e300 < number < 1e300:
                    raise self.wrong(f"finite coordinates in a {kind}", _brief(number))
            x.append(position[0])
            y.append(position[1])
        code = _KINDS.get(kind, RING)
        if code == RING and len(x) > start:
            if x[start] != x[-1] or y[start] != y[-1]:
                self.n_open += 1
                if start in self.extra:
                    self.extra[len(x)] = self.extra[start]
                x.append(x[start])
                y.append(y[start])
            self.n_short += len(x) - start < 4
        self.kinds.append(code)
        self.offsets.append(len(x))
        return len(self.kinds) - 1

    def wrong(self, wanted: str, got: str) -> ValueError:
        where = f" (feature {self.n_features} of the file)" if self.n_features else ""
        return ValueError(f"wanted GeoJSON with {wanted} in {self.name!r}, got {got}{where}; mend the file")


class Filler(_Walk):
    """Puts the vertices of shapes back into their document, in place of the numbers of paths, and computes every ``bbox`` anew.

    Args:
        shapes: the shapes to write.
        pixel_origin: where coordinates in pixels count from: ``corner`` or ``center`` of the first pixel.
    """

    def __init__(self, shapes: Shapes, pixel_origin: str) -> None:
        super().__init__()
        xy = shapes.coords.detach().cpu().numpy()[:, ::-1] + _half(shapes.unit, pixel_origin)
        self.xy = np.ascontiguousarray(xy)  # [N, 2] as (x, y)
        self.offsets = shapes.offsets.tolist()
        self.extra = shapes.extra

    def change(self, node: dict[str, Any]) -> dict[str, Any]:
        """A geometry with positions in place of the numbers of paths."""
        positions = self._nested(node["coordinates"])
        if node["type"] == "Point":
            positions = positions[0] if positions else []
        return {**node, "coordinates": positions}

    def _nested(self, paths: Any) -> list[Any]:
        if isinstance(paths, list):
            return [self._nested(item) for item in paths]
        start, stop = self.offsets[paths], self.offsets[paths + 1]
        positions: list[Any] = self.xy[start:stop].tolist()
        if self.extra:
            positions = [[*p, *self.extra.get(start + i, ())] for i, p in enumerate(positions)]
        return positions

    def box(self, node: dict[str, Any]) -> dict[str, Any]:
        """The node, with its ``bbox`` (where it has one) computed from its positions."""
        old = node.get("bbox")
        if not isinstance(old, list) or len(old) not in (4, 6):
            return node
        flat = np.asarray([p[:2] for p in _positions(node)], dtype=np.float64).reshape(-1, 2)
        if not len(flat):
            return node
        half = len(old) // 2
        return {
            **node,
            "bbox": [*flat.min(axis=0).tolist(), *old[2:half], *flat.max(axis=0).tolist(), *old[half + 2 :]],
        }


class _Rounder(_Walk):
    """Clears QuPath's flag ``isEllipse``, so that the polygon itself counts.

    QuPath draws a polygon with this flag as the ellipse in its upright bounding box. Under a map that turns or bends, that
    would be another ellipse than the mapped polygon.
    """

    def change(self, node: dict[str, Any]) -> dict[str, Any]:
        return {**node, "isEllipse": False} if node.get("isEllipse") is True else node


def _positions(node: dict[str, Any]) -> Iterator[list[float]]:
    """All positions in a document (as filled by `Filler`)."""
    for member in ("features", "geometries"):
        for item in node.get(member, ()) if node["type"] in ("FeatureCollection", "GeometryCollection") else ():
            yield from _positions(item)
    if node["type"] == "Feature":
        if isinstance(node.get("geometry"), dict):
            yield from _positions(node["geometry"])
    elif node["type"] in _PATHS:
        level: list[Any] = [node["coordinates"]] if node["coordinates"] else []
        for _ in range(_PATHS[node["type"]]):
            level = [item for part in level for item in part]
        yield from level


def _half(unit: str, pixel_origin: str) -> float:
    if pixel_origin not in ("corner", "center"):
        raise ValueError(f"wanted pixels counted from their corner or center, got {pixel_origin!r}")
    return 0.5 if unit == "px" and pixel_origin == "corner" else 0.0


def _low(grid: Grid) -> Tensor:
    """Position of the outer corner of the first pixel, ``[2]``."""
    if grid.ndim != 2:
        raise ValueError(f"wanted an image of 2 axes for shapes, got {grid.ndim}; move them as points instead")
    return torch.tensor([o - s / 2 for o, s in zip(grid.origin, grid.spacing, strict=True)], dtype=torch.float64)


def _corner(grid: Grid, size: float) -> Tensor:
    """Position from which pixels of ``size`` count in the space of ``grid``, ``[2]``.

    It is the outer corner of the image, where ``grid`` is the image's grid or a level of its pyramid; half a pixel before 0
    otherwise.
    """
    low = _low(grid)
    factor = torch.tensor(grid.spacing, dtype=torch.float64) / (-2 * low)  # pixels of the image in one of the grid
    image = (low < 0) & ((factor - factor.round()).abs() < 1e-6) & (factor > 0.5)
    return low if bool(image.all()) else torch.full((2,), -size / 2, dtype=torch.float64)


def _brief(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)} entries"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**18:
        return "a number beyond all bounds"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


def _runs(values: Tensor) -> Iterator[tuple[int, int]]:
    """Start and length of every run of equal values."""
    if len(values):
        _, counts = torch.unique_consecutive(values, return_counts=True)
        start = 0
        for count in counts.tolist():
            yield start, count
            start += count


# ---- rings that cross themselves ----------------------------------------------------------------------------------


def _crossings(shapes: Shapes) -> Tensor:
    """Which rings have edges that cross, ``[P]`` bool.

    Edges are sorted along the longer side of their ring's bounding box, and compared only with edges they overlap there.
    """
    n = shapes.offsets.diff()
    found = torch.zeros(len(n), dtype=torch.bool)
    path = torch.repeat_interleave(torch.arange(len(n)), n)  # [N]
    edge = torch.nonzero((path[1:] == path[:-1]) & (shapes.kinds[path[:-1]] == RING))[:, 0]
    if not len(edge):
        return found
    ring = path[edge]
    a, b = shapes.coords[edge], shapes.coords[edge + 1]
    lower, upper = torch.minimum(a, b), torch.maximum(a, b)
    shape = (len(n), 2)
    index = ring[:, None].expand(-1, 2)
    low = torch.full(shape, math.inf, dtype=torch.float64).scatter_reduce(0, index, lower, "amin")
    high = torch.full(shape, -math.inf, dtype=torch.float64).scatter_reduce(0, index, upper, "amax")
    size = (high - low).clamp(min=0.0).nan_to_num(0.0)  # [P, 2] sides of each ring's bounding box; 0 for other paths
    axis = size.argmax(dim=1)
    width = size.amax(dim=1)
    base = (1.001 * width).cumsum(0) - 1.001 * width + torch.arange(len(n)) * float(width.max()) * 1e-6
    along = axis[ring][:, None]
    origin = base[ring] - low.gather(1, axis[:, None])[:, 0][ring]
    order = (lower.gather(1, along)[:, 0] + origin).argsort()
    begin = (lower.gather(1, along)[:, 0] + origin)[order].contiguous()
    end = (upper.gather(1, along)[:, 0] + origin)[order].contiguous()
    ring, a, b = ring[order], a[order], b[order]
    lower, upper = lower[order], upper[order]
    partners = (
        torch.searchsorted(begin, end, right=True) - torch.arange(len(begin)) - 1
    )  # [E] edges that follow and overlap
    per_ring = torch.zeros(len(n), dtype=torch.long).index_add_(0, ring, partners)
    tangled = per_ring > _PAIRS
    if bool(tangled.any()):
        warnings.warn(
            f"{_count(int(tangled.sum()), 'ring')} of {shapes.name!r} too long to tell whether its edges cross",
            stacklevel=3,
        )
    partners = torch.where(tangled[ring], 0, partners.clamp(min=0))
    for start, count in _runs((partners.cumsum(0) / _CHUNK).long()):
        here = partners[start : start + count]
        i = torch.repeat_interleave(torch.arange(start, start + count), here)
        j = i + 1 + torch.arange(len(i)) - torch.repeat_interleave(here.cumsum(0) - here, here)
        near = (ring[i] == ring[j]) & (lower[i] <= upper[j]).all(dim=1) & (lower[j] <= upper[i]).all(dim=1)
        i, j = i[near], j[near]
        apart = _side(a[i], b[i], a[j]) * _side(a[i], b[i], b[j]) < 0
        apart &= _side(a[j], b[j], a[i]) * _side(a[j], b[j], b[i]) < 0
        found[ring[i[apart]]] = True
    return found


def _side(a: Tensor, b: Tensor, p: Tensor) -> Tensor:
    """On which side of the line ``a`` – ``b`` positions ``p`` lie: -1, 0 (on it) or 1; all ``[N, 2]``."""
    u, v = b - a, p - a
    return (u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]).sign()
