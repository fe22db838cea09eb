"""Shapes: points, lines and polygons of GeoJSON files, carried by a map with edges that bend where the map does.

Positions are (y, x) as everywhere; GeoJSON's (x, y) is turned round where a file is read or written, and there alone.
Coordinates in pixels count from the outer corner of the first pixel, as QuPath and other annotation tools do, unless
told otherwise; in memory a pixel's position is its centre. Everything that is not a coordinate (properties, ids, unknown
members, the order of all of it) is kept; ``bbox`` members are computed again.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import os
import warnings
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .data import Grid, canonical_unit, unit_ratio
from .tables import replace_file
from .transforms import Affine, Displacement, Flow, Transform

TOLERANCE = 0.1
"""Default of how far a straight edge may lie from the mapped one, in pixels of the destination."""

MAX_VERTICES = 50_000_000
"""Default limit of vertices, and of positions looked at along edges."""

POINTS, LINE, RING = 0, 1, 2

_PATHS = {"Point": 0, "MultiPoint": 1, "LineString": 1, "MultiLineString": 2, "Polygon": 2, "MultiPolygon": 3}
"""How deep the positions of a geometry lie in lists."""

_KINDS = {"Point": POINTS, "MultiPoint": POINTS, "LineString": LINE, "MultiLineString": LINE}

_GEOMETRIES = ("geometry", "nucleusGeometry")
"""Members of a Feature that are geometries; the second is QuPath's, of cells."""

_DEPTH = 32  # of collections within collections
_CHUNK = 1 << 20  # positions along edges looked at together
_PAIRS = 20_000_000  # pairs of edges of one ring that are compared to see whether it crosses itself
_ROUNDS = 24  # an interval is halved at most so often


@dataclass(frozen=True)
class Shapes:
    """The vertices of a GeoJSON document, and the document around them.

    Args:
        coords: ``[N, 2]`` float64, vertices ``(y, x)`` in ``unit``, path after path; pixels by their centre.
        offsets: ``[P + 1]`` int64; path ``p`` is ``coords[offsets[p]:offsets[p + 1]]``.
        kinds: ``[P]`` uint8 per path: 0 single points, 1 a line, 2 a ring, whose last vertex repeats its first.
        document: the parsed JSON with the numbers of paths in place of positions, nested as these were.
        unit: length unit of the coordinates, ``"px"`` where none is declared.
        extra: what follows x and y in a position (an elevation), by number of the vertex; carried, never moved.
        notes: what was mended when it was read, one sentence each.
        name: what messages call it.
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
    ) -> Shapes:
        """Shapes of a GeoJSON object as `json.loads` gives it, which is left as it is; errors as in `read_shapes`."""
        reader = _Reader(name)
        try:
            skeleton = reader.document(document)
        except RecursionError as error:
            raise ValueError(f"wanted GeoJSON, got {name!r} nested too deep to be one") from error
        if not len(reader.x):
            raise ValueError(f"wanted at least one shape in {name!r}, got none; nothing there has coordinates")
        shift = _half(canonical_unit(unit), pixel_origin)
        yx = np.stack([np.frombuffer(reader.y), np.frombuffer(reader.x)], axis=-1) - shift
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
        """The document with the vertices in it, as `json.dumps` takes it."""
        return _Filler(self, pixel_origin).document(self.document)

    def __len__(self) -> int:
        """Number of features; of geometries where the document is one."""
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

    def to_positions(self, grid: Grid, spacing: float | None = None) -> Shapes:
        """The shapes as positions in the space of ``grid``, in its unit.

        Pixels of an image over the same field become positions by ``spacing``, the size of one in the unit of ``grid``;
        where ``grid`` is in pixels it may be left out. The first pixel is that of the image where ``grid`` is one or a
        level of its pyramid; for anything else (rasterised cells, points) its centre is the zero of the space, as for
        points. Lengths are converted. ValueError where neither is possible: the size of a pixel is never guessed.
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
        """Positions in the space of ``grid`` as pixels of ``spacing`` over it; the inverse of `to_positions`."""
        if self.unit != grid.unit or (spacing is None and grid.unit != "px"):
            raise ValueError(
                f"wanted shapes in {grid.unit} and the size of a pixel, got {self.unit} and {spacing}; state the spacing"
            )
        if spacing is not None and not (math.isfinite(spacing) and spacing > 0):
            raise ValueError(f"wanted a positive spacing, got {spacing}")
        size = 1.0 if spacing is None else spacing
        return self.replace(coords=(self.coords - _corner(grid, size)) / size - 0.5, unit="px")

    def areas(self) -> Tensor:
        """Signed area per path ``[P]`` float64, in ``unit`` squared, positive for counter-clockwise in (x, y); 0 for
        what is no ring."""
        n = self.offsets.diff()
        path = torch.repeat_interleave(torch.arange(len(n)), n)  # [N]
        first = self.coords[self.offsets[:-1].clamp(max=max(len(self.coords) - 1, 0))]
        y, x = (self.coords - first[path]).unbind(dim=-1)
        edge = torch.nonzero((self.kinds[path] == RING)[:-1] & (path[1:] == path[:-1]))[:, 0]
        cross = (x[edge] * y[edge + 1] - x[edge + 1] * y[edge]) / 2
        return torch.zeros(len(n), dtype=torch.float64).index_add_(0, path[edge], cross)

    def outside(self, grid: Grid) -> Tensor:
        """Which vertices lie off the pixels of ``grid``, ``[N]`` bool; its very border belongs to it."""
        index = (self.coords - _low(grid)) / torch.tensor(grid.spacing, dtype=torch.float64)
        return ((index < -1e-6) | (index > torch.tensor(grid.shape, dtype=torch.float64) + 1e-6)).any(dim=-1)

    def crossings(self) -> Tensor:
        """Which paths are rings two edges of which cross, ``[P]`` bool; warns of rings too tangled to tell."""
        return _crossings(self)


def read_shapes(
    path: str | os.PathLike[str],
    unit: str = "px",
    pixel_origin: Literal["corner", "center"] = "corner",
    max_bytes: int = 1 << 30,
) -> Shapes:
    """Read a GeoJSON file (gzipped or not): a FeatureCollection, Feature, geometry, or QuPath's list of features.

    Args:
        path: the file.
        unit: what its coordinates are in; GeoJSON does not say.
        pixel_origin: where coordinates in pixels count from: the outer corner of the first pixel, or its centre.
        max_bytes: largest text to read; it takes about twenty times as much memory.

    A ring that is not closed is closed and a note says so. Raises FileNotFoundError, or ValueError with one sentence
    where it is no JSON, no GeoJSON, too large, nested too deep, without any shape, or where a coordinate is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"wanted a GeoJSON file, got {str(path)!r}, which is not a file")
    return Shapes.from_geojson(_parse(path, max_bytes), unit, pixel_origin, path.name)


def write_shapes(
    shapes: Shapes, path: str | os.PathLike[str], pixel_origin: Literal["corner", "center"] = "corner"
) -> None:
    """Write GeoJSON, one feature per line, ``.gz`` compressed; numbers read back the same.

    Coordinates in pixels count from ``pixel_origin``. The file is written aside and then renamed.
    """
    path = Path(path)
    if not bool(torch.isfinite(shapes.coords).all()):
        raise ValueError(f"wanted finite vertices to write {path.name!r}, got NaN or inf")
    try:
        data = b"".join(_pieces(_Filler(shapes, pixel_origin), shapes.document)) + b"\n"
    except RecursionError as error:
        raise ValueError(f"wanted members that can be written as JSON, got {shapes.name!r} nested too deep") from error
    replace_file(path, gzip.compress(data, mtime=0) if path.suffix.lower() == ".gz" else data)


def move_shapes(
    shapes: Shapes,
    transform: Transform,
    grid: Grid,
    tolerance: float = TOLERANCE,
    max_vertices: int = MAX_VERTICES,
) -> Shapes:
    """``shapes`` carried by ``transform`` by their exact positions, in the target's unit, everything else untouched.

    Vertices are put into an edge where the straight chord would leave the mapped edge by more than ``tolerance``; an
    edge that two polygons share gets the same ones in both. Under an affine map there are none. A ring that a mirroring
    map turns round is turned back, its first vertex first, so that orientations stay what they were.

    Args:
        shapes: positions in the source space, in its unit; see `Shapes.to_positions`.
        transform: a map of two dimensions.
        grid: canvas of the target space; its pixel is what the tolerance is measured in.
        tolerance: largest distance of chord and mapped edge, in pixels of ``grid``.
        max_vertices: largest number of vertices that may come out, or of positions to look at.

    Raises ValueError where dimensions or units do not fit or the limit is exceeded.
    """
    if transform.ndim != 2 or grid.ndim != 2:
        raise ValueError(f"wanted a map of 2 dimensions for shapes, got {transform.ndim}; move them as points instead")
    if shapes.unit != transform.source_unit or grid.unit != transform.target_unit:
        raise ValueError(
            f"wanted shapes in {transform.source_unit} and a grid in {transform.target_unit} for this map, "
            f"got {shapes.unit} and {grid.unit}; state the spacing"
        )
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise ValueError(f"wanted a positive tolerance in pixels, got {tolerance}")
    if len(shapes.coords) > max_vertices:
        raise ValueError(f"wanted at most {max_vertices} vertices, got {len(shapes.coords)}; split {shapes.name!r}")
    moved = transform.points(shapes.coords)
    if not bool(torch.isfinite(moved).all()):
        raise ValueError(f"wanted vertices that the map takes somewhere, got NaN for some of {shapes.name!r}")
    out = shapes.replace(coords=moved, unit=transform.target_unit)
    step = _step(transform, shapes)
    if step is not None:
        out = _densified(shapes, out, transform, step, tolerance * grid.pixel, max_vertices)
    if not _keeps_boxes(transform):
        out = out.replace(document=_Rounder().document(out.document))
    return _closed(_turned_back(out, shapes.areas()))


# ---- the document -------------------------------------------------------------------------------------------------


class _Walk:
    """Goes through a document and returns it with every geometry replaced by ``change(geometry)``, the rest shared."""

    def __init__(self) -> None:
        self.n_features = 0

    def change(self, node: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def box(self, node: dict[str, Any]) -> dict[str, Any]:
        """The last word on a FeatureCollection, Feature or geometry."""
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
    """Collects the positions and puts the numbers of paths in their place; what is no GeoJSON ends in ValueError."""

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
            notes.append(f"{_count(self.n_short, 'ring')} of fewer than four positions carried as it is")
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


class _Filler(_Walk):
    """Puts the vertices back where the numbers of their paths are, and computes every ``bbox`` there is again."""

    def __init__(self, shapes: Shapes, pixel_origin: str) -> None:
        super().__init__()
        xy = shapes.coords.detach().cpu().numpy()[:, ::-1] + _half(shapes.unit, pixel_origin)
        self.xy = np.ascontiguousarray(xy)  # [N, 2] as (x, y)
        self.offsets = shapes.offsets.tolist()
        self.extra = shapes.extra

    def change(self, node: dict[str, Any]) -> dict[str, Any]:
        positions = self.nested(node["coordinates"])
        if node["type"] == "Point":
            positions = positions[0] if positions else []
        return {**node, "coordinates": positions}

    def nested(self, paths: Any) -> list[Any]:
        if isinstance(paths, list):
            return [self.nested(item) for item in paths]
        start, stop = self.offsets[paths], self.offsets[paths + 1]
        positions: list[Any] = self.xy[start:stop].tolist()
        if self.extra:
            positions = [[*p, *self.extra.get(start + i, ())] for i, p in enumerate(positions)]
        return positions

    def box(self, node: dict[str, Any]) -> dict[str, Any]:
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
    """QuPath reads a polygon it marked as an ellipse back from its bounding box, which a map that turns or bends makes
    another ellipse: the polygon counts from here on."""

    def change(self, node: dict[str, Any]) -> dict[str, Any]:
        return {**node, "isEllipse": False} if node.get("isEllipse") is True else node


def _positions(node: dict[str, Any]) -> Iterator[list[float]]:
    """The positions in a document that holds them."""
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


def _parse(path: Path, max_bytes: int) -> Any:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as stream:
            raw = stream.read(max_bytes + 1) if packed or path.stat().st_size <= max_bytes else None
        if raw is not None and len(raw) <= max_bytes:
            return json.loads(raw.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError(f"wanted GeoJSON, got {str(path)!r} nested too deep to be one") from error
    except (OSError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"wanted a GeoJSON file, got {str(path)!r}, which cannot be read as JSON ({reason})"
        ) from error
    raise ValueError(
        f"wanted at most {max_bytes / 2**20:.4g} MiB of GeoJSON, got more in {str(path)!r}; "
        "split it, or raise max_bytes of regframe.read_shapes"
    )


def _pieces(filler: _Filler, node: Any) -> Iterator[bytes]:
    """The document as JSON, feature by feature, so that only one is in memory with all its lists."""
    if isinstance(node, list):
        yield from _listed(map(filler.feature, node))
    elif node["type"] == "FeatureCollection" and "bbox" not in node:
        for i, (member, value) in enumerate(node.items()):
            yield b"{" if i == 0 else b", "
            yield _dumped(member) + b": "
            if member == "features":
                yield from _listed(map(filler.feature, value))
            else:
                yield _dumped(value)
        yield b"}"
    else:
        yield _dumped(filler.document(node))


def _listed(features: Iterator[Any]) -> Iterator[bytes]:
    yield b"["
    for i, feature in enumerate(features):
        yield b",\n" if i else b"\n"
        yield _dumped(feature)
    yield b"\n]"


def _dumped(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which only its escape can say
        return json.dumps(value).encode()


def _half(unit: str, pixel_origin: str) -> float:
    if pixel_origin not in ("corner", "center"):
        raise ValueError(f"wanted pixels counted from their corner or center, got {pixel_origin!r}")
    return 0.5 if unit == "px" and pixel_origin == "corner" else 0.0


def _low(grid: Grid) -> Tensor:
    """Where the outer corner of the first pixel lies, ``[2]``."""
    if grid.ndim != 2:
        raise ValueError(f"wanted an image of 2 axes for shapes, got {grid.ndim}; move them as points instead")
    return torch.tensor([o - s / 2 for o, s in zip(grid.origin, grid.spacing, strict=True)], dtype=torch.float64)


def _corner(grid: Grid, size: float) -> Tensor:
    """Where pixels of ``size`` over the space of ``grid`` count from, ``[2]``: the outer corner of the image whose grid, or
    a level of whose pyramid, it is; half a pixel before zero where it is neither."""
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


# ---- edges that bend ----------------------------------------------------------------------------------------------


class _Edges(NamedTuple):
    """Edges that are looked at together: where they begin and end, before and after the map, ``[E, 2]`` each."""

    start: Tensor
    end: Tensor
    moved_start: Tensor
    moved_end: Tensor


def _step(transform: Transform, shapes: Shapes) -> float | None:
    """How far apart, in the source space, positions along an edge are looked at first: a quarter of the distance of the
    nodes that bend the map, so that none lies unseen in between; None for a map that bends nowhere."""
    step, scale = math.inf, 1.0
    for part in transform.parts():
        if isinstance(part, Affine):
            scale *= float(torch.linalg.matrix_norm(part.matrix[:2, :2], ord=2))
        elif isinstance(part, (Flow, Displacement)):
            step = min(step, min(part.grid.spacing) / 4 / max(scale, 1e-300))
        elif len(shapes.coords):  # a map of another kind: fine enough for what is drawn
            size = float((shapes.coords.amax(dim=0) - shapes.coords.amin(dim=0)).max())
            step = min(step, max(size, 1e-300) / 1024)
    return None if math.isinf(step) else step


def _densified(
    shapes: Shapes, moved: Shapes, transform: Transform, step: float, tolerance: float, max_vertices: int
) -> Shapes:
    n = shapes.offsets.diff()
    path = torch.repeat_interleave(torch.arange(len(n)), n)  # [N]
    edges = torch.nonzero((path[1:] == path[:-1]) & (shapes.kinds[path[:-1]] != POINTS))[:, 0]  # begin at vertex …
    a, b = shapes.coords[edges], shapes.coords[edges + 1]
    pieces = (torch.linalg.vector_norm(b - a, dim=-1) / step).ceil().clamp(min=1.0)  # [E] intervals to begin with
    if float(pieces.sum()) > max_vertices:
        raise ValueError(
            f"wanted at most {max_vertices} positions to look at along the edges of {shapes.name!r}, "
            f"got {float(pieces.sum()):.3g}; check its unit, or raise the limit"
        )
    # both directions of an edge are one edge: neighbours that share it stay without a gap
    swapped = (a[:, 0] > b[:, 0]) | ((a[:, 0] == b[:, 0]) & (a[:, 1] > b[:, 1]))
    begin, end = edges + swapped.long(), edges + (~swapped).long()
    found: list[tuple[Tensor, Tensor, Tensor]] = []  # vertex before, order behind it, position
    total, chunk = len(shapes.coords), (pieces.cumsum(0) / _CHUNK).long()
    for first, count in _runs(chunk):
        here = slice(first, first + count)
        part = _Edges(shapes.coords[begin[here]], shapes.coords[end[here]], moved.coords[begin[here]],
                      moved.coords[end[here]])  # fmt: skip
        edge, t, position = _bends(part, transform, pieces[here].long(), tolerance)
        total += len(edge)
        if total > max_vertices:
            raise ValueError(
                f"wanted at most {max_vertices} vertices, got more along the bends of {shapes.name!r}; "
                "raise the tolerance or the limit"
            )
        found.append((edges[here][edge], torch.where(swapped[here][edge], 1 - t, t), position))
    if total == len(shapes.coords):
        return moved
    before, t, position = (torch.cat(columns) for columns in zip(*found, strict=True))
    order = np.lexsort((t.numpy(), before.numpy()))
    before, position = before[torch.from_numpy(order)], position[torch.from_numpy(order)]
    added = torch.bincount(before, minlength=len(path))  # [N] vertices put behind each
    shift = added.cumsum(0) - added
    coords = torch.empty((total, 2), dtype=torch.float64)
    kept = torch.arange(len(path)) + shift
    coords[kept] = moved.coords
    coords[torch.arange(len(before)) + before + 1] = position
    offsets = torch.cat([shapes.offsets[:1], (added.cumsum(0) + torch.arange(1, len(path) + 1))])[shapes.offsets]
    extra = dict(shapes.extra)
    if extra:
        extra = _spread(shapes, moved.coords, coords, kept.tolist())
    return moved.replace(coords=coords, offsets=offsets, extra=extra)


def _spread(shapes: Shapes, moved: Tensor, coords: Tensor, kept: list[int]) -> dict[int, tuple[float, ...]]:
    """What follows x and y, by the new numbers of vertices: as it was, and linear along an edge with it at both ends."""
    extra = {kept[i]: values for i, values in shapes.extra.items()}
    for i, low in shapes.extra.items():
        high = shapes.extra.get(i + 1)
        if high is None or i + 1 >= len(kept) or len(high) != len(low) or kept[i + 1] == kept[i] + 1:
            continue
        line = coords[kept[i] : kept[i + 1] + 1]
        along = torch.linalg.vector_norm(line.diff(dim=0), dim=-1).cumsum(0)
        for k in range(kept[i] + 1, kept[i + 1]):
            t = float(along[k - kept[i] - 1] / along[-1].clamp_min(1e-300))
            extra[k] = tuple(p + t * (q - p) for p, q in zip(low, high, strict=True))
    return extra


def _bends(edges: _Edges, transform: Transform, pieces: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """The vertices that edges need: number of the edge, share of its length, mapped position; by edge, then along it.

    Positions along the edges are mapped until the line through them is within half of the tolerance everywhere; of
    these as few are kept as leave none of them farther than the other half from the line through the kept.
    """

    def at(edge: Tensor, t: Tensor) -> Tensor:
        return transform.points(edges.start[edge] + t[:, None] * (edges.end - edges.start)[edge])

    interval = torch.repeat_interleave(torch.arange(len(pieces)), pieces)
    rank = torch.arange(len(interval)) - (pieces.cumsum(0) - pieces)[interval]
    t0, t1 = rank / pieces[interval], (rank + 1) / pieces[interval]
    t0, t1 = t0.to(torch.float64), t1.to(torch.float64)
    inner = rank > 0
    p0 = edges.moved_start[interval]
    p0[inner] = at(interval[inner], t0[inner])
    p1 = edges.moved_end[interval]
    p1[:-1][inner[1:]] = p0[1:][inner[1:]]
    samples = [(interval[inner], t0[inner], p0[inner])]
    for _ in range(_ROUNDS):
        middle = (t0 + t1) / 2
        p = at(interval, middle)
        samples.append((interval, middle, p))
        # a kink off the middle is at most twice as far from the chord as the middle is
        rough = _distance(p, p0, p1) > tolerance / 4
        if not bool(rough.any()):
            break
        interval, t0, t1, middle, p0, p1, p = (v[rough] for v in (interval, t0, t1, middle, p0, p1, p))
        interval = torch.cat([interval, interval])
        t0, t1, p0, p1 = torch.cat([t0, middle]), torch.cat([middle, t1]), torch.cat([p0, p]), torch.cat([p, p1])
    edge, t, p = (torch.cat(columns) for columns in zip(*samples, strict=True))
    far = torch.zeros(len(pieces), dtype=torch.bool)
    far[edge[_distance(p, edges.moved_start[edge], edges.moved_end[edge]) > tolerance / 2]] = True
    edge, t, p = edge[far[edge]], t[far[edge]], p[far[edge]]
    order = torch.from_numpy(np.lexsort((t.numpy(), edge.numpy())))
    edge, t, p = edge[order], t[order], p[order]
    keep = _fewest(edge, p, edges.moved_start, edges.moved_end, tolerance / 2)
    return edge[keep], t[keep], p[keep]


def _fewest(edge: Tensor, p: Tensor, start: Tensor, end: Tensor, tolerance: float) -> Tensor:
    """Which samples ``p`` ``[M, 2]`` to keep, ``[M]`` bool, so that none is farther than ``tolerance`` from the line
    through the kept ones: every stretch is split at its farthest sample until it fits, all edges at once."""
    keep = torch.zeros(len(p), dtype=torch.bool)
    number = torch.arange(len(p))
    stretch, a, b = edge, start, end  # [M] the stretch a sample is in; ends of every stretch
    while len(number):
        distance = _distance(p[number], a[stretch], b[stretch])
        worst = torch.zeros(len(a), dtype=torch.float64).scatter_reduce(0, stretch, distance, "amax")
        active = worst[stretch] > tolerance
        number, stretch, distance = number[active], stretch[active], distance[active]
        if not len(number):
            break
        peak = distance == worst[stretch]
        first = torch.full((len(a),), len(p)).scatter_reduce(0, stretch[peak], number[peak], "amin")
        keep[first[first < len(p)]] = True
        at = first[stretch]  # where the stretch of each sample is split
        used, rank = torch.unique(stretch, return_inverse=True)
        behind = number > at
        rest = number != at
        middle = p[first[used]]
        a = torch.stack([a[used], middle], dim=1).reshape(-1, 2)
        b = torch.stack([middle, b[used]], dim=1).reshape(-1, 2)
        number, stretch = number[rest], (2 * rank + behind.long())[rest]
    return keep


def _distance(p: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Distance of positions ``p`` from the segments ``a`` – ``b``, all ``[N, 2]``."""
    line = b - a
    t = ((p - a) * line).sum(dim=-1) / (line * line).sum(dim=-1).clamp_min(1e-300)
    distance: Tensor = torch.linalg.vector_norm(p - a - t.clamp(0, 1)[:, None] * line, dim=-1)
    return distance


def _runs(values: Tensor) -> Iterator[tuple[int, int]]:
    """Start and length of every run of equal values."""
    if len(values):
        _, counts = torch.unique_consecutive(values, return_counts=True)
        start = 0
        for count in counts.tolist():
            yield start, count
            start += count


def _turned_back(shapes: Shapes, areas: Tensor) -> Shapes:
    """Rings whose signed area is of the other sign than in ``areas`` ``[P]``, walked the other way from the same vertex."""
    flipped = shapes.areas() * areas < 0
    if not bool(flipped.any()):
        return shapes
    path = torch.repeat_interleave(torch.arange(len(flipped)), shapes.offsets.diff())
    index = torch.arange(len(shapes.coords))
    mirrored = (shapes.offsets[:-1] + shapes.offsets[1:] - 1)[path] - index
    index = torch.where(flipped[path], mirrored, index)
    extra = {}
    if shapes.extra:
        extra = {new: shapes.extra[old] for new, old in enumerate(index.tolist()) if old in shapes.extra}
    return shapes.replace(coords=shapes.coords[index], extra=extra)


def _closed(shapes: Shapes) -> Shapes:
    """Rings that end, to the bit, where they begin."""
    ring = torch.nonzero((shapes.kinds == RING) & (shapes.offsets.diff() > 0))[:, 0]
    coords = shapes.coords.clone()
    coords[shapes.offsets[ring + 1] - 1] = coords[shapes.offsets[ring]]
    return shapes.replace(coords=coords)


def _keeps_boxes(transform: Transform) -> bool:
    """Whether an upright box stays one: an affine map without turn or shear, quarter turns aside."""
    parts = [part for part in transform.parts() if isinstance(part, Affine)]
    if len(parts) < len(transform.parts()):
        return False
    linear = torch.eye(2, dtype=torch.float64)
    for part in parts:
        linear = part.matrix[:2, :2] @ linear
    size = float(linear.abs().max()) * 1e-9
    off, on = linear.flip(0).diagonal().abs(), linear.diagonal().abs()
    return bool((off < size).all() or (on < size).all())


# ---- rings that cross themselves ----------------------------------------------------------------------------------


def _crossings(shapes: Shapes) -> Tensor:
    """Edges are sorted along the longer side of their ring's box and compared with those they overlap on it."""
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
    size = (high - low).clamp(min=0.0).nan_to_num(0.0)  # [P, 2]; paths that are no ring take no room
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
