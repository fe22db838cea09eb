"""Shapes: what GeoJSON is read and refused, that only coordinates change, and that edges bend as the map does."""

from __future__ import annotations

import copy
import gzip
import itertools
import json
import math
from pathlib import Path
from typing import Any

import click.testing
import hypothesis.strategies as st
import numpy as np
import pytest
import tifffile
import torch
from fake_result import fake_result, smooth_velocity
from hypothesis import given, settings

import regframe as rf
from regframe.cli import main
from regframe.cli.apply import in_unit
from regframe.maps import edges as maps_edges
from regframe.maps import shapes as maps_shapes
from regframe.result import Result

SQUARE = [[1.0, 2.0], [5.0, 2.0], [5.0, 6.0], [1.0, 6.0], [1.0, 2.0]]
HOLE = [[2.0, 3.0], [2.0, 4.0], [3.0, 4.0], [3.0, 3.0], [2.0, 3.0]]
BOW = [[0.0, 0.0], [4.0, 4.0], [4.0, 0.0], [0.0, 4.0], [0.0, 0.0]]


def geometry(kind: str, coordinates: Any, **members: Any) -> dict[str, Any]:
    return {"type": kind, "coordinates": coordinates, **members}


def feature(shape: dict[str, Any] | None, **members: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": shape, **members}


def collection(*features: dict[str, Any], **members: Any) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(features), **members}


EVERYTHING = {
    "zoo": [1, {"b": None, "a": True}],
    "type": "FeatureCollection",
    "features": [
        {
            "properties": {"z": 1, "a": "µ \ud800", "measurements": {"Area µm²": 12.5, "n": 10**30}, "x": [[1, 2]]},
            "id": "7c-α",
            "geometry": geometry("Polygon", [SQUARE, HOLE], plane={"c": -1, "z": 0}),
            "nucleusGeometry": geometry("Polygon", [HOLE]),
            "type": "Feature",
        },
        feature(geometry("Point", [1.5, 2.5]), id=4),
        feature(None, properties=None),
        feature(geometry("MultiPoint", [[1.0, 2.0], [3.0, 4.0]])),
        feature(geometry("LineString", [[1.0, 2.0], [3.0, 4.0], [8.0, 1.0]])),
        feature(geometry("MultiLineString", [[[1.0, 2.0], [3.0, 4.0]], []])),
        feature(geometry("MultiPolygon", [[SQUARE, HOLE], [BOW]])),
        feature({"type": "GeometryCollection", "geometries": [geometry("Point", []), geometry("Point", [0.0, 9.0])]}),
    ],
    "last": 0.1,
}


def shift(y: float, x: float, unit: str = "px") -> rf.Affine:
    return rf.Affine(torch.tensor([[1, 0, y], [0, 1, x], [0, 0, 1]], dtype=torch.float64), unit, unit)


def rigid(angle: float, y: float = 0.0, x: float = 0.0, mirror: bool = False) -> rf.Affine:
    c, s = math.cos(angle), math.sin(angle)
    f = -1.0 if mirror else 1.0
    return rf.Affine(torch.tensor([[c, -f * s, y], [s, f * c, x], [0, 0, 1]], dtype=torch.float64))


def bend(size: float = 6.0, seed: int = 0, extent: float = 100.0, n: int = 9) -> rf.Flow:
    grid = rf.Grid((n, n), extent / (n - 1))
    return rf.Flow(smooth_velocity(grid, size, seed), grid)


def without_coordinates(node: Any) -> Any:
    """The document as text, order included, coordinates left out."""

    def strip(item: Any) -> Any:
        if isinstance(item, dict):
            return {k: None if k == "coordinates" else strip(v) for k, v in item.items()}
        return [strip(v) for v in item] if isinstance(item, list) else item

    return json.dumps(strip(node))


def polygons(seed: int, n: int = 6, inside: float = 100.0) -> dict[str, Any]:
    """Star-shaped rings with coarse edges."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 5)) + np.linspace(0, 1e-3, 5)
        center, radius = rng.uniform(0.3 * inside, 0.7 * inside, 2), rng.uniform(5, 0.3 * inside, 5)
        ring = (center + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)).tolist()
        made.append(feature(geometry("Polygon", [[*ring, ring[0]]]), id=i))
    return collection(*made)


def paths(shapes: rf.Shapes) -> list[torch.Tensor]:
    ends = shapes.offsets.tolist()
    return [shapes.coords[a:b] for a, b in itertools.pairwise(ends)]


# ---- reading and writing --------------------------------------------------------------------------------------------


def test_x_and_y_are_turned_round_and_pixels_counted_from_their_corner() -> None:
    document = geometry("LineString", [[10, 20.5], [30, 40]])
    assert rf.Shapes.from_geojson(document).coords.tolist() == [[20.0, 9.5], [39.5, 29.5]]
    assert rf.Shapes.from_geojson(document, pixel_origin="center").coords.tolist() == [[20.5, 10.0], [40.0, 30.0]]
    assert rf.Shapes.from_geojson(document, unit="um").coords.tolist() == [[20.5, 10.0], [40.0, 30.0]]


def test_all_that_geojson_has_comes_back_as_it_was(tmp_path: Path) -> None:
    text = json.dumps(EVERYTHING, ensure_ascii=True)
    for name in ("a.geojson", "a.geojson.gz"):
        data = text.encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else b"\xef\xbb\xbf" + data)
        shapes = rf.read_shapes(tmp_path / name)
        assert len(shapes) == 8
        assert shapes.kinds.tolist() == [2, 2, 2, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0]
        rf.write_shapes(shapes, tmp_path / f"b{name}")
        written = (tmp_path / f"b{name}").read_bytes()
        back = json.loads(gzip.decompress(written) if name.endswith("gz") else written)
        assert json.dumps(back) == json.dumps(EVERYTHING)
    assert shapes.to_geojson() == EVERYTHING
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "document",
    [
        [feature(geometry("Point", [1.0, 2.0]), id=i) for i in range(2)],  # as older QuPath wrote them
        feature(geometry("Point", [1.0, 2.0]), x=1),
        geometry("MultiPoint", [[1.0, 2.0], [3.0, 2.0]]),
        {"type": "GeometryCollection", "geometries": [geometry("Point", [1.0, 2.0])], "name": "é"},
    ],
)
def test_what_may_be_the_whole_document(document: Any, tmp_path: Path) -> None:
    before = json.dumps(document)
    shapes = rf.Shapes.from_geojson(document)
    rf.write_shapes(shapes, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == document
    assert json.dumps(document) == before
    rf.write_shapes(rf.move_shapes(shapes, shift(3, 1), rf.Grid((9, 9))), tmp_path / "a.json")
    assert rf.read_shapes(tmp_path / "a.json").coords[0].tolist() == [4.5, 1.5]


def test_measurements_that_are_no_numbers_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        '{"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, "n": NaN}'
    )
    rf.write_shapes(rf.read_shapes(tmp_path / "a.json"), tmp_path / "b.json")
    assert '"n": NaN' in (tmp_path / "b.json").read_text()


def test_a_box_is_that_of_the_moved_shape_and_an_ellipse_no_longer_one() -> None:
    ring = geometry("Polygon", [SQUARE], bbox=[1.0, 2.0, 5.0, 6.0], isEllipse=True)
    document = collection(feature(ring, bbox=[1, 2, -7, 5, 6, 7]), feature(None, bbox=[0, 0, 1, 1]), bbox=[1, 2, 5, 6])
    shapes, grid = rf.Shapes.from_geojson(document), rf.Grid((20, 20))
    moved = rf.move_shapes(shapes, shift(10, 20), grid).to_geojson()
    assert moved["bbox"] == moved["features"][0]["geometry"]["bbox"] == [21, 12, 25, 16]
    assert moved["features"][0]["bbox"] == [21, 12, -7, 25, 16, 7]
    assert moved["features"][1]["bbox"] == [0, 0, 1, 1]
    assert moved["features"][0]["geometry"]["isEllipse"] is True
    for turned in (rigid(0.3), bend()):
        assert rf.move_shapes(shapes, turned, grid).to_geojson()["features"][0]["geometry"]["isEllipse"] is False
    assert rf.move_shapes(shapes, rigid(math.pi / 2), grid).document["features"][0]["geometry"]["isEllipse"] is True
    assert document["features"][0]["geometry"]["isEllipse"] is True


def test_an_elevation_is_carried_and_drawn_along_new_vertices() -> None:
    document = geometry("LineString", [[10.0, 10.0, 5], [90.0, 80.0, 25], [50.0, 90.0]])
    shapes = rf.Shapes.from_geojson(document)
    moved = rf.move_shapes(shapes, bend(), rf.Grid((100, 100))).to_geojson()["coordinates"]
    z = [p[2] for p in moved if len(p) == 3]
    assert len(z) > 5
    assert (z[0], z[-1]) == (5, 25)
    assert z == sorted(z)
    assert len(moved[-1]) == 2
    mirrored = rf.Shapes.from_geojson(geometry("Polygon", [[[0, 0, 1], [4, 0, 2], [4, 4, 3], [0, 0, 1]]]))
    out = rf.move_shapes(mirrored, rigid(0.0, mirror=True), rf.Grid((9, 9))).to_geojson()["coordinates"][0]
    assert [p[2] for p in out] == [1, 3, 2, 1]


def test_open_and_short_rings_are_mended_or_carried_and_noted() -> None:
    shapes = rf.Shapes.from_geojson(geometry("Polygon", [SQUARE[:-1], [[0, 0], [1, 1], [0, 0]]]))
    assert "1 ring did not end where it began" in shapes.notes[0]
    assert "fewer than four" in shapes.notes[1]
    assert shapes.to_geojson()["coordinates"][0] == SQUARE


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"type": "FeatureCollection", "features": []}',
        '{"type": "Feature", "geometry": null, "properties": {"a": 1}}',
        '{"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": []}}]}',
        '{"type": "GeometryCollection", "geometries": []}',
    ],
)
def test_nothing_annotated_is_carried_as_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="at least one shape"):
        rf.read_shapes(tmp_path / "a.json")
    shapes = rf.read_shapes(tmp_path / "a.json", empty=True)
    moved = rf.move_shapes(shapes, rf.Affine.identity(2), rf.Grid((5, 5)))
    rf.write_shapes(moved, tmp_path / "b.json")
    assert json.loads((tmp_path / "b.json").read_text()) == json.loads(text)
    assert not len(moved.crossings()) or not bool(moved.crossings().any())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot be read as JSON"),
        ("x,y\n1,2\n", "cannot be read as JSON"),
        ("\udcff", "cannot be read as JSON"),
        ('{"type": "Point", "coordinates": [1, 2]', "cannot be read as JSON"),
        ("[" * 200_000, "nested too deep"),
        ('{"type":"GeometryCollection","geometries":[' * 300 + "]}" * 300, "at most 32 collections"),
        ('{"a": 1, "b": 2}', "members a, b"),
        ('{"type": "Topology", "objects": {}}', '"Topology"'),
        ('{"type": ["Point"]}', "a list of 1 entries"),
        ("3", "such as FeatureCollection in 'a.json', got 3"),
        ("[1, 2]", "a list of 2 entries"),
        ("[]", "at least one shape"),
        ('{"type": "FeatureCollection", "features": []}', "at least one shape"),
        ('{"type": "FeatureCollection"}', "a list of features"),
        ('{"type": "FeatureCollection", "features": [{"type": "Point"}]}', "features only"),
        ('{"type": "Feature", "geometry": 7}', "an object or null as geometry in .*, got 7"),
        ('{"type": "Feature", "geometry": {"type": "Circle"}}', 'a geometry in .*, got "Circle" .feature 1'),
        ('{"type": "Feature", "geometry": null}', "at least one shape"),
        ('{"type": "GeometryCollection", "geometries": {}}', "a list of geometries"),
        ('{"type": "Point"}', "coordinates of a Point as lists in .*, got null"),
        ('{"type": "Point", "coordinates": [NaN, 1]}', "finite coordinates in a Point in 'a.json', got NaN"),
        ('{"type": "Point", "coordinates": [1, -Infinity]}', "finite coordinates .* got -Infinity"),
        ('{"type": "Point", "coordinates": [1, 1e999]}', "finite coordinates .* got Infinity"),
        ('{"type": "Point", "coordinates": [1, 1' + "0" * 400 + "]}", "finite coordinates .* beyond all bounds"),
        ('{"type": "Point", "coordinates": [1, 2, NaN]}', "finite coordinates"),
        ('{"type": "Point", "coordinates": ["1", 2]}', "numbers in the positions of a Point"),
        ('{"type": "Point", "coordinates": [true, 2]}', "numbers in the positions"),
        ('{"type": "LineString", "coordinates": [[1, 2], [3]]}', "positions .x, y. in a LineString"),
        ('{"type": "Polygon", "coordinates": [[1, 2], [3, 4]]}', "positions .x, y. in a Polygon"),
        ('{"type": "Polygon", "coordinates": [[[1, 2], null]]}', "positions .x, y. in a Polygon"),
    ],
)
def test_what_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=says) as caught:
        rf.read_shapes(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def nodes(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [at, *(path for key, value in items for path in nodes(value, (*at, key)))]


@given(
    at=st.sampled_from(nodes(EVERYTHING)[1:]),
    value=st.sampled_from(
        [None, True, -1, 2.5, math.nan, "Feature", [], [[]], [[1, 2]], {}, {"type": "Point"}, {"type": []}]
    ),
)
@settings(max_examples=200)
def test_a_damaged_document_is_carried_or_refused_in_a_sentence(at: tuple[Any, ...], value: Any) -> None:
    document = copy.deepcopy(EVERYTHING)
    inner = document
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    shapes, says = None, ""
    try:
        shapes = rf.Shapes.from_geojson(document)
    except ValueError as error:
        says = str(error)
    if shapes is None:
        assert says.startswith("wanted ")
        return
    moved = rf.move_shapes(shapes, shift(0, 0), rf.Grid((20, 20)))
    if not shapes.notes:
        assert moved.to_geojson() == document


def test_files_that_are_missing_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a file"):
        rf.read_shapes(tmp_path / "none.json")
    text = json.dumps(EVERYTHING).encode()
    for name, data in (("a.json", text), ("bomb.json", gzip.compress(b" " * 10_000_000 + text))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match="MiB of GeoJSON, got more"):
            rf.read_shapes(tmp_path / name, max_bytes=1000)
    (tmp_path / "cut.gz").write_bytes(gzip.compress(text)[:-20])
    with pytest.raises(ValueError, match="cannot be read"):
        rf.read_shapes(tmp_path / "cut.gz")


def test_nothing_half_written_bears_the_name(tmp_path: Path) -> None:
    shapes = rf.Shapes.from_geojson(geometry("Point", [1, 2]))
    with pytest.raises(ValueError, match="finite"):
        rf.write_shapes(shapes.replace(coords=shapes.coords * math.nan), tmp_path / "a.json")
    with pytest.raises(ValueError, match="corner or center"):
        rf.write_shapes(shapes, tmp_path / "a.json", pixel_origin="middle")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


# ---- units ----------------------------------------------------------------------------------------------------------


def test_units_are_never_guessed() -> None:
    shapes = rf.Shapes.from_geojson(geometry("Point", [40, 10]))
    micron = rf.Grid((25, 50), 2.0, (0.75, 0.75), "µm")  # every fourth pixel of 0.5 µm, its first corner at -0.25
    assert shapes.to_positions(micron, 0.5).coords.tolist() == [[4.75, 19.75]]
    assert shapes.to_positions(micron, 0.5).unit == "µm"
    with pytest.raises(ValueError, match=r"--input-spacing.*--unit"):
        shapes.to_positions(micron)
    lengths = rf.Shapes.from_geojson(geometry("Point", [40, 10]), unit="nm")
    assert lengths.to_positions(micron).coords.tolist() == [[pytest.approx(0.01), pytest.approx(0.04)]]
    with pytest.raises(ValueError, match="in px to multiply by a spacing, got nm"):
        lengths.to_positions(micron, 0.5)
    with pytest.raises(ValueError, match="in px for an image without physical spacing, got nm"):
        lengths.to_positions(rf.Grid((9, 9)))
    level = rf.Grid((25, 50), 4.0, (1.5, 1.5))  # level 2 of a pyramid in pixels
    assert shapes.to_positions(level).coords.tolist() == [[9.5, 39.5]]
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="positive spacing"):
            shapes.to_positions(micron, bad)
    with pytest.raises(ValueError, match="2 axes"):
        shapes.to_positions(rf.Grid((3, 4, 5)))


def test_a_raster_that_begins_elsewhere_leaves_zero_where_it_is() -> None:
    """As the positions of `apply points`, which the cells were rasterised from, and pixels of their image have it."""
    shapes = rf.Shapes.from_geojson(geometry("Point", [40, 10]))
    for origin in ((1000.0, 500.0), (3.0, -40.0)):
        grid = rf.Grid((10, 12), 15.0, origin, "µm")
        placed = shapes.to_positions(grid, 0.5)
        assert torch.allclose(placed.coords, in_unit(rf.PointSet(shapes.coords), grid, 0.5).coords)
        assert torch.allclose(placed.to_pixels(grid, 0.5).coords, shapes.coords)
        assert torch.equal(shapes.to_positions(rf.Grid((10, 12), 15.0, origin)).coords, shapes.coords)


@given(spacing=st.floats(0.01, 100), origin=st.floats(-50, 50))
def test_pixels_to_positions_and_back(spacing: float, origin: float) -> None:
    grid = rf.Grid((30, 40), 1.3, (origin, -origin), "µm")
    shapes = rf.Shapes.from_geojson(polygons(1))
    back = shapes.to_positions(grid, spacing).to_pixels(grid, spacing)
    assert back.unit == "px"
    assert torch.allclose(back.coords, shapes.coords, rtol=0, atol=1e-8)
    with pytest.raises(ValueError, match="size of a pixel"):
        shapes.to_positions(grid, spacing).to_pixels(grid)


def test_a_move_is_refused_where_units_or_dimensions_do_not_fit() -> None:
    shapes, grid = rf.Shapes.from_geojson(geometry("Point", [1, 2])), rf.Grid((9, 9))
    for transform, canvas, says in (
        (rf.Affine.identity(2, "µm"), rf.Grid((9, 9), unit="µm"), "wanted shapes in µm"),
        (rf.Affine.identity(2), rf.Grid((9, 9), unit="µm"), "wanted shapes in px and a grid in px"),
        (rf.Affine.identity(3), rf.Grid((9, 9, 9)), "a map of 2 dimensions"),
    ):
        with pytest.raises(ValueError, match=says):
            rf.move_shapes(shapes, transform, canvas)
    with pytest.raises(ValueError, match="positive tolerance"):
        rf.move_shapes(shapes, shift(0, 0), grid, tolerance=0)


# ---- laws -----------------------------------------------------------------------------------------------------------


@given(y=st.integers(-1000, 1000), x=st.integers(-1000, 1000))
def test_a_translation_moves_coordinates_and_nothing_else(y: int, x: int) -> None:
    shapes = rf.Shapes.from_geojson(EVERYTHING)
    moved = rf.move_shapes(shapes, shift(y, x), rf.Grid((50, 50)))
    assert torch.equal(moved.coords, shapes.coords + torch.tensor([y, x]))
    assert without_coordinates(moved.to_geojson()) == without_coordinates(EVERYTHING)
    assert torch.equal(moved.offsets, shapes.offsets)


@given(angle=st.floats(-4, 4), mirror=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_a_rigid_map_keeps_areas_and_orientation_and_adds_nothing(angle: float, mirror: bool, seed: int) -> None:
    shapes = rf.Shapes.from_geojson(polygons(seed))
    moved = rf.move_shapes(shapes, rigid(angle, 30, -8, mirror), rf.Grid((50, 50)))
    assert torch.allclose(moved.areas(), shapes.areas(), rtol=1e-9)
    assert torch.equal(moved.offsets, shapes.offsets)
    for ring, old in zip(paths(moved), paths(shapes), strict=True):
        assert torch.equal(ring[0], ring[-1])
        assert torch.allclose(ring[0], rigid(angle, 30, -8, mirror).points(old[:1])[0])


def test_rings_without_a_vertex_have_no_area_and_are_carried(tmp_path: Path) -> None:
    path = tmp_path / "empty.geojson"
    path.write_text('{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[]]}, "properties": null}')
    shapes = rf.read_shapes(path, empty=True)
    assert shapes.areas().tolist() == [0.0] * len(shapes.areas())
    rf.write_shapes(rf.move_shapes(shapes, rf.Affine.identity(2), rf.Grid((8, 9))), tmp_path / "out.geojson")
    assert '"coordinates": [[]]' in (tmp_path / "out.geojson").read_text().replace("[ ]", "[]")


def test_areas_are_signed_and_exact() -> None:
    shapes = rf.Shapes.from_geojson(EVERYTHING)
    assert shapes.areas().tolist() == [16, -1, -1, 0, 0, 0, 0, 0, 16, -1, 0, 0, 0]


@given(seed=st.integers(0, 99), n_steps=st.sampled_from([1, 3]), mirror=st.booleans())
@settings(max_examples=25)
def test_there_and_back_gives_the_vertices_back(seed: int, n_steps: int, mirror: bool) -> None:
    flow = bend(seed=seed)
    there = rf.Sequence((rf.Flow(flow.velocity, flow.grid, n_steps), rigid(0.7, 20, 5, mirror)))
    shapes, grid = rf.Shapes.from_geojson(polygons(seed)), rf.Grid((100, 100))
    moved = rf.move_shapes(shapes, there, grid)
    back = rf.move_shapes(moved, there.inverse(), grid)
    assert len(moved.coords) > len(shapes.coords)
    assert without_coordinates(back.to_geojson()) == without_coordinates(polygons(seed))
    for ring, old in zip(paths(back), paths(shapes), strict=True):
        at = [int((ring[:-1] - vertex).norm(dim=-1).argmin()) for vertex in old[:-1]]
        assert at == sorted(set(at))  # in their order
        assert torch.allclose(ring[at], old[:-1], rtol=0, atol=1e-6)
        assert at[0] == 0


def gap(shapes: rf.Shapes, moved: rf.Shapes, transform: rf.Transform, n: int = 2000) -> float:
    """Largest distance of the densely mapped edges of ``shapes`` from the chords of ``moved``."""
    worst = 0.0
    for old, new in zip(paths(shapes), paths(moved), strict=True):
        t = torch.linspace(0, 1, n, dtype=torch.float64)[:, None]
        corner = 0
        for a, b in itertools.pairwise(old):
            target = transform.points(b[None])[0]
            stop = corner + 1 + int((new[corner + 1 :] - target).norm(dim=-1).argmin())
            assert torch.allclose(new[stop], target, atol=1e-9)
            curve = transform.points(a + t * (b - a))
            chords = new[corner : stop + 1]
            far = [maps_edges._distance(curve, p.expand_as(curve), q.expand_as(curve)) for p, q in
                   itertools.pairwise(chords)]  # fmt: skip
            worst = max(worst, float(torch.stack(far).amin(dim=0).max()))
            corner = stop
    return worst


@pytest.mark.parametrize("tolerance", [0.02, 0.1, 1.0])
def test_chords_stay_within_the_tolerance(tolerance: float) -> None:
    grid = rf.Grid((50, 50), 2.0)
    for seed in range(3):
        shapes = rf.Shapes.from_geojson(polygons(seed, 3))
        for transform in (
            bend(seed=seed),
            bend(seed=seed).inverse(),
            rf.Sequence((rigid(0.5), bend(9.0, seed, n=21))),
            rf.displacement_of(bend(6.0, seed), rf.Grid((26, 26), 4.0)),
        ):
            moved = rf.move_shapes(shapes, transform, grid, tolerance)
            assert gap(shapes, moved, transform) <= 2 * tolerance
            plain = shapes.replace(coords=transform.points(shapes.coords))
            assert gap(shapes, plain, transform) > 0.3
    assert len(rf.move_shapes(shapes, transform, grid, 2 * tolerance).coords) < len(moved.coords)


def test_an_edge_that_bends_nowhere_gets_no_vertex() -> None:
    shapes = rf.Shapes.from_geojson(geometry("LineString", [[500, 500], [900, 800]]))
    assert len(rf.move_shapes(shapes, bend(), rf.Grid((100, 100))).coords) == 2  # beyond the nodes
    points = rf.Shapes.from_geojson(geometry("MultiPoint", [[10, 10], [90, 90]]))
    assert len(rf.move_shapes(points, bend(), rf.Grid((100, 100))).coords) == 2


def test_neighbours_keep_their_common_edge() -> None:
    left = [[10, 10], [50, 20], [60, 90], [10, 80], [10, 10]]
    right = [[90, 10], [50, 20], [60, 90], [90, 80], [90, 10]]
    document = collection(feature(geometry("Polygon", [left])), feature(geometry("Polygon", [right[::-1]])))
    shapes = rf.Shapes.from_geojson(document)
    for transform in (bend(), rf.Sequence((bend(), rigid(1.0, mirror=True)))):
        one, other = (set(map(tuple, p.tolist())) for p in paths(rf.move_shapes(shapes, transform, rf.Grid((9, 9)))))
        assert len(one & other) > 4


def test_positions_are_those_of_the_exact_map() -> None:
    shapes, flow = rf.Shapes.from_geojson(polygons(3)), bend()
    moved = rf.move_shapes(shapes, flow, rf.Grid((100, 100)))
    back = flow.inverse().points(moved.coords)
    for ring, old in zip(paths(shapes.replace(coords=back, offsets=moved.offsets)), paths(shapes), strict=True):
        off = torch.stack([maps_edges._distance(ring, a.expand_as(ring), b.expand_as(ring)) for a, b in
                           itertools.pairwise(old)])  # fmt: skip
        assert off.amin(dim=0).max() < 1e-9


def test_there_is_a_limit_of_vertices() -> None:
    shapes, grid = rf.Shapes.from_geojson(polygons(0)), rf.Grid((100, 100))
    n = len(rf.move_shapes(shapes, bend(), grid, 1e-3).coords)
    with pytest.raises(ValueError, match="at most 10 vertices, got 36; split"):
        rf.move_shapes(shapes, bend(), grid, max_vertices=10)
    with pytest.raises(ValueError, match="raise the tolerance or the limit"):
        rf.move_shapes(shapes, bend(), grid, 1e-3, max_vertices=n - 1)
    assert len(rf.move_shapes(shapes, bend(), grid, 1e-3, max_vertices=n).coords) == n
    far = rf.Shapes.from_geojson(geometry("LineString", [[0, 0], [1e100, 5]]))
    with pytest.raises(ValueError, match=r"positions to look at .* got .*e\+.*; check its unit"):
        rf.move_shapes(far, bend(), grid)


def test_many_edges_are_done_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, grid = rf.Shapes.from_geojson(polygons(5)), rf.Grid((100, 100))
    whole, crossing = rf.move_shapes(shapes, bend(), grid), shapes.crossings()
    monkeypatch.setattr(maps_shapes, "_CHUNK", 7)
    parts = rf.move_shapes(shapes, bend(), grid)
    assert torch.equal(parts.offsets, whole.offsets)
    assert torch.allclose(parts.coords, whole.coords, rtol=0, atol=1e-12)
    assert torch.equal(shapes.crossings(), crossing)


# ---- rings that cross themselves ------------------------------------------------------------------------------------


def test_rings_that_cross_themselves_are_told_and_carried() -> None:
    shapes = rf.Shapes.from_geojson(EVERYTHING)
    assert torch.nonzero(shapes.crossings())[:, 0].tolist() == [10]
    assert rf.move_shapes(shapes, rigid(1.0), rf.Grid((9, 9))).crossings().tolist() == shapes.crossings().tolist()


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40)
def test_crossings_are_those_of_every_pair(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rings = []
    for _ in range(4):
        v = rng.integers(0, 12, (int(rng.integers(3, 9)), 2)).tolist()
        rings.append([*v, v[0]])
    shapes = rf.Shapes.from_geojson(geometry("Polygon", rings))

    def side(a: list[int], b: list[int], p: list[int]) -> int:
        return int(np.sign((b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0])))

    def crosses(ring: list[list[int]]) -> bool:
        edges = list(itertools.pairwise(ring))
        return any(
            side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0 for a, b in edges for c, d in edges
        )

    assert shapes.crossings().tolist() == [crosses(ring) for ring in rings]


def test_a_ring_too_long_to_tell_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps_shapes, "_PAIRS", 1)
    with pytest.warns(UserWarning, match="6 rings of 'shapes' too long"):
        assert not rf.Shapes.from_geojson(polygons(0)).crossings().any()


@given(spacing=st.floats(0.01, 10), height=st.integers(1, 5000))
def test_the_outline_of_an_image_lies_on_it(spacing: float, height: int) -> None:
    grid = rf.Grid((height, 7), spacing, unit="µm")
    outline = rf.Shapes.from_geojson(geometry("MultiPoint", [[0, 0], [7, 0], [7, height], [7.01, 0], [0, -0.01]]))
    assert outline.to_positions(grid, spacing).outside(grid).tolist() == [False, False, False, True, True]


# ---- the command ----------------------------------------------------------------------------------------------------


def run(*args: object, code: int = 0) -> click.testing.Result:
    outcome = click.testing.CliRunner().invoke(main, [str(a) for a in args])
    assert outcome.exit_code == code, (outcome.exit_code, outcome.stdout, outcome.stderr, outcome.exception)
    return outcome


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    turn = torch.tensor([[0.96, 0.2, 9.0], [0.2, -0.96, 60.0], [0, 0, 1]], dtype=torch.float64)
    result = fake_result(rf.Grid((60, 70)), rf.Grid((64, 50)), turn, bend=6.0, n_nodes=4)
    path = tmp_path_factory.mktemp("r") / "r.ome.zarr"
    result.save(path)
    return path, result


@pytest.fixture(scope="module")
def micron(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    fixed, moving = rf.Grid((60, 70), 4.0, (1.5, 1.5), "µm"), rf.Grid((64, 50), 2.0, (), "µm")
    result = fake_result(fixed, moving, bend=0.0)
    path = tmp_path_factory.mktemp("r") / "r.ome.zarr"
    result.save(path)
    return path, result


@pytest.mark.parametrize("to", ["fixed", "moving"])
def test_apply_shapes(to: str, tmp_path: Path, saved: tuple[Path, Result]) -> None:
    out, result = saved
    ring = [[4, 5], [40, 5], [40, 50], [4, 50], [4, 5]]
    bow = [[10, 10], [20, 20], [20, 10], [10, 20], [10, 10]]
    document = collection(feature(geometry("Polygon", [ring, bow]), id="a"), feature(geometry("Point", [400, 7])))
    (tmp_path / "a.geojson").write_text(json.dumps(document))
    outcome = run("apply", "shapes", out, tmp_path / "a.geojson", "-o", tmp_path / "b.geojson", "--to", to, "--json")
    source, target = result.moving_grid, result.fixed_grid
    transform = result.transform
    if to == "moving":
        source, target, transform = target, source, transform.inverse()
    back = rf.read_shapes(tmp_path / "b.geojson")
    expected = rf.move_shapes(rf.Shapes.from_geojson(document), transform, target)
    assert torch.allclose(back.coords, expected.coords, rtol=0, atol=2e-3)  # the map as stored
    assert without_coordinates(back.to_geojson()) == without_coordinates(document)
    figures = json.loads(outcome.stdout)
    assert figures["vertices"] == {"read": 11, "written": len(back.coords)}
    assert figures["self_intersecting"] == {"read": 1, "written": 1}
    assert figures["outside_canvas"]["moving" if to == "fixed" else "fixed"] == 1
    assert figures["outside_canvas"][to] == int((~target.contains(back.coords)).sum()) > 0
    assert (figures["unit"], figures["shapes"], figures["tolerance_px"]) == ("px", 2, 0.1)
    assert "1 of 11 vertices lie outside" in outcome.stderr
    assert "1 rings cross themselves" in outcome.stderr
    again = ("apply", "shapes", out, tmp_path / "a.geojson", "-o", tmp_path / "b.geojson", "--to", to)
    assert "exists" in run(*again, code=2).stderr
    assert run(*again, "--overwrite").stdout == ""
    assert not list(tmp_path.glob(".*"))


def test_apply_shapes_in_physical_units(tmp_path: Path, micron: tuple[Path, Result]) -> None:
    out, _ = micron
    (tmp_path / "a.json").write_text(json.dumps(geometry("Point", [40, 10])))
    given_, moved = tmp_path / "a.json", tmp_path / "b.json"
    command = ("apply", "shapes", out, given_, "-o", moved, "--to", "fixed", "--overwrite")
    assert "--input-spacing" in run(*command, code=2).stderr
    assert not moved.exists()
    run(*command, "--input-spacing", 0.5)  # corner at -1 µm
    assert json.loads(moved.read_text())["coordinates"] == pytest.approx([19.0, 4.0])
    run(*command, "--unit", "um")
    assert json.loads(moved.read_text())["coordinates"] == pytest.approx([40.0, 10.0])
    run(*command, "--input-spacing", 0.5, "--output-spacing", 0.25)  # fixed corner at -0.5 µm
    assert json.loads(moved.read_text())["coordinates"] == pytest.approx([78.0, 18.0])
    run(*command, "--input-spacing", 0.5, "--output-spacing", 0.25, "--pixel-origin", "center")
    assert json.loads(moved.read_text())["coordinates"] == pytest.approx([78.5, 18.5])
    for extra, says in (
        (("--input-spacing", 0), "positive --input-spacing"),
        (("--input-spacing", 1, "--output-spacing", "nan"), "positive --output-spacing"),
        (("--input-spacing", 1, "--tolerance", 0), "positive tolerance"),
        (("--input-spacing", 1, "--unit", "um"), "leave one of the two out"),
        (("--unit", "parsec"), "length unit"),
        (("--unit", "px"), "--input-spacing"),
    ):
        assert says in run(*command, *extra, code=2).stderr


def test_a_shape_lies_where_the_pixels_it_was_drawn_around_lie(tmp_path: Path, micron: tuple[Path, Result]) -> None:
    """Ids of a mask and the outline of its pixels go through the same map, the mask by --labels."""
    out, _ = micron
    mask = np.zeros((64, 50), np.uint32)
    mask[20:40, 6:26] = 2**31 + 7  # moving pixels of 2 µm from corner -1 µm: y 39 … 79, x 11 … 51 µm
    tifffile.imwrite(tmp_path / "m.tif", mask)
    run("apply", "image", out, tmp_path / "m.tif", "-o", tmp_path / "w.tif", "--to", "fixed", "--labels")
    warped = rf.open(tmp_path / "w.tif", labels=True)
    assert isinstance(warped, rf.Image)
    assert set(warped.data.flatten().tolist()) == {0, 2**31 + 7}
    ring = [[6, 20], [26, 20], [26, 40], [6, 40], [6, 20]]
    (tmp_path / "a.json").write_text(json.dumps(geometry("Polygon", [ring])))
    options = ("--input-spacing", 2, "--output-spacing", 4)
    run("apply", "shapes", out, tmp_path / "a.json", "-o", tmp_path / "b.json", "--to", "fixed", *options)
    y, x = torch.nonzero(warped.data[0].long()).unbind(dim=-1)
    box = [float(x.min()), float(y.min()), float(x.max()) + 1, float(y.max()) + 1]  # corners of fixed pixels
    moved = np.array(json.loads((tmp_path / "b.json").read_text())["coordinates"][0])
    assert [*moved.min(axis=0), *moved.max(axis=0)] == pytest.approx(box, abs=0.51)
    assert [*moved.min(axis=0), *moved.max(axis=0)] == pytest.approx([2.875, 9.875, 12.875, 19.875])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("suffix", ["tif", "ome.zarr"])
def test_ids_come_through_exactly(dtype: str, suffix: str, tmp_path: Path, saved: tuple[Path, Result]) -> None:
    top = min(int(np.iinfo(dtype).max), 2**32 - 1 if suffix == "tif" else 2**63 - 1)
    ids = np.array(sorted({1, 2, top - 1, top, min(top, 2**24 + 1)}), dtype)
    mask = ids[np.random.default_rng(0).integers(0, len(ids), (64, 50))]
    np.save(tmp_path / "m.npy", mask)
    run("apply", "image", saved[0], tmp_path / "m.npy", "-o", tmp_path / f"w.{suffix}", "--to", "fixed", "--labels")
    warped = rf.open(tmp_path / f"w.{suffix}", labels=True)
    assert isinstance(warped, rf.Image)
    found = set(np.unique(warped.data.numpy()).tolist())
    assert found == {0, *ids.tolist()}
    if suffix != "tif":
        assert str(warped.data.numpy().dtype) == dtype


def test_ids_too_large_for_a_format_are_refused(tmp_path: Path, saved: tuple[Path, Result]) -> None:
    mask = np.full((64, 50), 2**40, np.int64)
    np.save(tmp_path / "m.npy", mask)
    for name in ("w.tif", "w.png"):
        outcome = run("apply", "image", saved[0], tmp_path / "m.npy", "-o", tmp_path / name, "--to", "fixed", "--labels",
                      code=2)  # fmt: skip
        assert ".zarr" in outcome.stderr
    big = np.full((1, 4, 4), np.iinfo(np.int64).max)
    same = rf.resample(rf.Image(torch.from_numpy(big), rf.Grid((4, 4))), rf.Affine.identity(2), rf.Grid((4, 4)))
    assert int(same.data.min()) > 2**62  # and not wrapped round


def test_c_long_long_is_as_good_as_long() -> None:
    array = np.arange(12, dtype=np.ulonglong).reshape(3, 4)
    assert rf.Image.from_array(array).data.dtype == torch.uint64


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64"])
def test_channels_come_through_in_their_type(dtype: str, tmp_path: Path, saved: tuple[Path, Result]) -> None:
    pixels = (np.random.default_rng(0).random((5, 64, 50)) * 200).astype(dtype)
    image = rf.Image.from_array(pixels, "cyx", channels=tuple("abcde"))
    rf.adapter("image").save(image, tmp_path / "m.ome.zarr")
    options = ("-o", tmp_path / "w.ome.zarr", "--to", "fixed")
    run("apply", "image", saved[0], tmp_path / "m.ome.zarr", *options)
    warped = rf.open(tmp_path / "w.ome.zarr")
    assert isinstance(warped, rf.Image)
    assert warped.channels == image.channels
    assert warped.data.dtype == image.data.dtype
    one = saved[1].to_fixed(image.replace(data=image.data[3:4], channels=("d",)))
    assert torch.allclose(warped.data[3].double(), one.data[0].double(), rtol=0, atol=1.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [("x,y\n1,2\n", "JSON"), ('{"type": "FeatureCollection"}', "a list of features"), ("[" * 99_999, "deep")],
)
def test_the_command_refuses_in_one_sentence(text: str, says: str, tmp_path: Path, saved: tuple[Path, Result]) -> None:
    (tmp_path / "a.json").write_text(text)
    outcome = run("apply", "shapes", saved[0], tmp_path / "a.json", "-o", tmp_path / "b.json", "--to", "fixed", code=2)
    assert says in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_shapes_need_a_map_of_two_dimensions(tmp_path: Path) -> None:
    fake_result(rf.Grid((5, 6, 7)), rf.Grid((5, 6, 7)), bend=0.0, weight=False).save(tmp_path / "r.ome.zarr")
    (tmp_path / "a.json").write_text(json.dumps(geometry("Point", [1, 2])))
    says = run("apply", "shapes", tmp_path / "r.ome.zarr", tmp_path / "a.json", "-o", tmp_path / "b.json", "--to", "fixed",
               code=2).stderr  # fmt: skip
    assert "2 axes for shapes, got 3" in says


# ---- real data ------------------------------------------------------------------------------------------------------


def test_annotated_sections(data_dir: Path) -> None:
    """Twelve landmarks that were drawn on two Visium sections, as a polygon: it lands on the other section's."""
    with np.load(
        data_dir / "09_st_visium_misc" / "stalign_annotations" / "visium2_points.npz", allow_pickle=False
    ) as file:
        drawn, partner = (torch.from_numpy(file[name]) for name in ("pointsI", "pointsJ"))  # [12, 2] as (y, x)
    ones = torch.ones((len(drawn), 1), dtype=torch.float64)
    solved = torch.linalg.lstsq(torch.cat([drawn, ones], dim=1), partner).solution
    matrix = torch.cat([solved.T, torch.tensor([[0.0, 0.0, 1.0]])])
    affine = rf.Affine(matrix)
    ring = [*drawn.flip(1).tolist(), drawn[0].flip(0).tolist()]
    document = collection(feature(geometry("Polygon", [ring])), feature(geometry("MultiPoint", ring[:-1])))
    extent = tuple(int(v) + 500 for v in partner.max(dim=0).values.tolist())
    shapes = rf.Shapes.from_geojson(document, pixel_origin="center")
    moved = rf.move_shapes(shapes, affine, rf.Grid(extent))
    assert torch.equal(moved.coords[-12:], rf.move_points(rf.PointSet(drawn), affine).coords)
    error = (moved.coords[-12:] - partner).norm(dim=-1)
    start = (drawn - partner).norm(dim=-1)
    assert error.median() < 0.3 * start.median()
    back = rf.move_shapes(moved, affine.inverse(), rf.Grid(extent))
    assert torch.allclose(back.coords, shapes.coords, rtol=0, atol=1e-6)


def test_nuclei_keep_their_ids(data_dir: Path) -> None:
    mask = rf.open(data_dir / "19_nuclei" / "mask2d.tif", labels=True)
    assert isinstance(mask, rf.Image)
    turn = rf.Affine(torch.tensor([[0.0, -1, 511], [1, 0, 0], [0, 0, 1]], dtype=torch.float64))
    turned = rf.resample(mask, turn, mask.grid)
    assert np.array_equal(turned.data[0].numpy(), np.flip(mask.data[0].numpy().T, axis=0))


def test_a_result_carries_shapes(saved: tuple[Path, Result]) -> None:
    result = saved[1]
    drawn = rf.Shapes.from_geojson({"type": "Point", "coordinates": [4.0, 3.0]}).to_positions(result.moving_grid)
    there = result.to_fixed(drawn)
    assert torch.allclose(there.coords, result.to_fixed(drawn.coords))
    assert torch.allclose(result.to_moving(there).coords, drawn.coords, atol=1e-6)
