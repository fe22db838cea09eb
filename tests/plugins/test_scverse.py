"""The scverse door: AnnData and SpatialData get the map beside what they had, in x, y, and lose nothing."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regframe_scverse as rs
import torch
from click.testing import CliRunner
from fake_result import fake_result

import regframe as rf
from regframe.cli import main

FIXED = rf.Grid((60, 90), 2.0, (10.0, -20.0), "µm")
MOVING = rf.Grid((70, 80), 1.5, (-5.0, 30.0), "µm")
TURN = torch.tensor(
    [[0.9, -0.3, 30.0], [0.4, 1.2, -60.0], [0, 0, 1]], dtype=torch.float64
)  # (y, x), unlike its mirror image


def some_result(fixed: rf.Grid = FIXED, moving: rf.Grid = MOVING, **options: Any) -> rf.Result:
    result = fake_result(fixed, moving, TURN, **options)
    sd = None if result.weight is None else torch.full_like(result.weight, 0.5)
    return rf.Result(**{**vars(result), "position_sd": sd})


def inside(grid: rf.Grid, n: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Positions ``[N, 2]`` (y, x) in the middle of the canvas."""
    rng = np.random.default_rng(seed)
    return np.array(grid.center) + (rng.random((n, 2)) - 0.5) * np.array(grid.extent) * 0.6


def some_anndata(yx: np.ndarray[Any, Any]) -> Any:
    anndata = pytest.importorskip("anndata")
    import pandas
    import scipy.sparse

    n = len(yx)
    counts = scipy.sparse.random(n, 5, 0.4, format="csr", random_state=1, dtype=np.float32)
    obs = pandas.DataFrame(
        {"kind": pandas.Categorical((["T", "B", "Treg"] * n)[:n]), "in_canvas": ["sketch"] * n},
        index=[f"c{(7 * i) % 101}" for i in range(n)],
    )
    data = anndata.AnnData(
        counts, obs=obs, obsm={"spatial": yx[:, ::-1].copy(), "X_pca": np.arange(2.0 * n).reshape(n, 2)}
    )
    data.layers["raw"] = counts * 2
    data.uns["spatial"] = {"lib": {"scalefactors": {"tissue_hires_scalef": 0.25, "spot_diameter_fullres": 89.0}}}
    data.uns["note"] = "kept"
    return data


# ---- AnnData -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["fixed", "moving"])
def test_align_adds_and_changes_nothing(to: Any) -> None:
    result = some_result()
    yx = inside(MOVING if to == "fixed" else FIXED, 40)
    yx[3] = 1e4
    data = some_anndata(yx)
    before = data.copy()
    assert rs.align(data, result, to=to, unit="um") is None
    carry = result.transform if to == "fixed" else result.transform.inverse()
    expected = carry.points(torch.from_numpy(yx)).numpy()
    np.testing.assert_array_equal(data.obsm["spatial_aligned"], expected[:, ::-1])
    assert np.abs(expected - expected[:, ::-1]).min() > 1e-3  # so that the order shows
    np.testing.assert_array_equal(data.obsm["spatial"], before.obsm["spatial"])
    assert list(data.obs.columns) == ["kind", "in_canvas", "match_probability", "position_sd", "regframe_in_canvas"]
    assert data.obs[["kind", "in_canvas"]].equals(before.obs)
    canvas = FIXED if to == "fixed" else MOVING
    np.testing.assert_array_equal(data.obs["regframe_in_canvas"], canvas.contains(torch.from_numpy(expected)).numpy())
    assert not data.obs["regframe_in_canvas"].iloc[3]
    assert np.isnan(data.obs["match_probability"].iloc[3])
    assert data.obs["match_probability"].drop(data.obs_names[3]).between(0, 1).all()
    scale = 1.0 if to == "fixed" else float(torch.linalg.det(TURN)) ** -0.5
    np.testing.assert_allclose(data.obs["position_sd"].drop(data.obs_names[3]), 0.5 * scale)
    assert data.uns == before.uns
    assert (data.X != before.X).nnz == 0
    assert list(data.obsm) == [*before.obsm, "spatial_aligned"]
    rs.align(data, result, to=to, unit="um")  # again: what an earlier call wrote is replaced
    assert len(data.obs.columns) == 5
    data.obs["match_probability"] = data.obs["match_probability"].astype("Float64").mask(data.obs["position_sd"].isna())
    rs.align(data, result, to=to, unit="um")  # missing values of pandas too
    assert data.obs["match_probability"].dtype == np.float64
    assert len(data.obs.columns) == 5


def test_align_there_and_back_and_copy() -> None:
    result = some_result()
    data = some_anndata(inside(MOVING, 30))
    there = rs.align(data, result, unit="um", copy=True)
    assert "spatial_aligned" not in data.obsm
    rs.align(there, result, to="moving", key="spatial_aligned", key_added="back", unit="um")
    np.testing.assert_allclose(there.obsm["back"], data.obsm["spatial"], atol=1e-6)
    millimetres = data.copy()
    millimetres.obsm["spatial"] = data.obsm["spatial"] / 1000
    rs.align(millimetres, result, unit="mm")
    np.testing.assert_allclose(millimetres.obsm["spatial_aligned"], there.obsm["spatial_aligned"])
    volume = rf.Grid((8, 9, 10))
    flat = some_anndata(np.zeros((3, 2)))
    flat.obsm["spatial"] = np.array([[1.0, 2, 3], [4, 5, 6], [np.nan, 1, 2]])  # x, y, z
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = torch.tensor([30.0, 20, 10])  # z, y, x
    rs.align(flat, fake_result(volume, volume, shift, bend=0.0))
    np.testing.assert_allclose(flat.obsm["spatial_aligned"], [[11, 22, 33], [14, 25, 36], [np.nan] * 3])
    assert flat.obs["regframe_in_canvas"].tolist() == [False] * 3


def test_scale_factors_count_only_when_asked_for() -> None:
    result = some_result(rf.Grid((60, 90)), rf.Grid((70, 80)))
    yx = inside(rf.Grid((70, 80)), 20)
    data = some_anndata(yx * 4)
    data.uns["spatial"]["other"] = {"scalefactors": {}}
    rs.align(data, result, scale_factor="tissue_hires_scalef", library_id="lib")
    np.testing.assert_array_equal(
        data.obsm["spatial_aligned"], result.transform.points(torch.from_numpy(yx)).numpy()[:, ::-1]
    )
    rs.align(data, result)
    np.testing.assert_array_equal(
        data.obsm["spatial_aligned"], result.transform.points(torch.from_numpy(yx * 4)).numpy()[:, ::-1]
    )
    with pytest.raises(ValueError, match="wanted one library in uns"):
        rs.align(data, result, scale_factor="tissue_hires_scalef")
    with pytest.raises(ValueError, match="wanted a scale factor 'hires' of 'lib', got tissue_hires_scalef, spot"):
        rs.align(data, result, scale_factor="hires", library_id="lib")
    with pytest.raises(ValueError, match="wanted a side in px"):
        rs.align(data, some_result(), unit="um", scale_factor="tissue_hires_scalef", library_id="lib")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"wanted the unit of obsm\['spatial'\], which declares none, for a side in µm, got none; state it"),
        ({"unit": "px"}, "in a unit that converts to µm, as the side it belongs to, got px"),
        ({"unit": "um", "to": "left"}, "wanted 'fixed' or 'moving'"),
        ({"unit": "um", "key": "umap"}, "wanted positions in obsm.'umap'., got obsm with spatial, X_pca"),
        ({"unit": "um", "key_added": "spatial"}, "wanted another entry than 'spatial'"),
    ],
)
def test_align_says_what_is_missing(options: dict[str, Any], message: str) -> None:
    data = some_anndata(inside(MOVING, 5))
    before = list(data.obsm), list(data.obs)
    with pytest.raises(ValueError, match=message):
        rs.align(data, some_result(), **options)
    assert (list(data.obsm), list(data.obs)) == before
    data.obsm["spatial"] = np.zeros((5, 3))
    with pytest.raises(ValueError, match=r"wanted positions \[N, 2\] \(x, y\) in obsm.*got shape \[5, 3\]"):
        rs.align(data, some_result(), unit="um")
    with pytest.raises(ValueError, match="got a view of another"):
        rs.align(data[:3], some_result(), unit="um")
    with pytest.raises(TypeError, match=r"wanted a regframe\.Result, got dict"):
        rs.align(data, {}, unit="um")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scverse") / "run.ome.zarr"
    some_result().save(folder)
    return folder


def datasets(path: Path) -> dict[str, Any]:
    """Every data set of an HDF5 file with its attributes."""
    h5py = pytest.importorskip("h5py")
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        held = item[()] if isinstance(item, h5py.Dataset) else None
        values = None if held is None else np.asarray(held)
        if values is not None:
            values = values.tolist() if values.dtype == object else (values.dtype, values.tobytes())
        found[name] = (values, {k: str(v) for k, v in item.attrs.items()})

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


@pytest.mark.parametrize("to", ["fixed", "moving"])
def test_the_command_carries_an_h5ad(saved: Path, tmp_path: Path, to: str) -> None:
    anndata = pytest.importorskip("anndata")
    result = rf.load(saved)
    yx = inside(MOVING if to == "fixed" else FIXED, 40)
    data = some_anndata(yx)
    data.write_h5ad(tmp_path / "in.h5ad")
    arguments = ["apply", "points", str(saved), str(tmp_path / "in.h5ad"), "-o", str(tmp_path / "out.h5ad"), "--to", to]
    found = CliRunner().invoke(main, [*arguments, "--adapter", "cells"])
    assert found.exit_code == 0, found.output
    assert "40 points in µm\nNote: positions that declare no unit were taken in µm" in found.output
    again = CliRunner().invoke(main, [*arguments, "--adapter", "cells", "--adapter-set", "unit=um", "--overwrite"])
    assert "Note" not in again.output
    before, after = datasets(tmp_path / "in.h5ad"), datasets(tmp_path / "out.h5ad")
    new = {"obs/match_probability", "obs/position_sd", "obs/regframe_in_canvas", "obsm/spatial_aligned"}
    assert set(after) - set(before) == new
    assert {n: v for n, v in after.items() if n not in new | {"obs"}} == {n: v for n, v in before.items() if n != "obs"}
    back = anndata.read_h5ad(tmp_path / "out.h5ad")
    rs.align(data, result, to=to, unit="um")  # type: ignore[arg-type]
    np.testing.assert_allclose(back.obsm["spatial_aligned"], data.obsm["spatial_aligned"], atol=1e-9)
    assert list(back.obs.columns) == list(data.obs.columns)
    np.testing.assert_allclose(back.obs["match_probability"], data.obs["match_probability"])
    assert back.obs["regframe_in_canvas"].dtype == bool
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.h5ad", "out.h5ad"]
    # the file says the unit of what it carries, so that the way back needs no word
    other = "moving" if to == "fixed" else "fixed"
    options = ["--to", other, "--adapter", "cells", "--columns", "spatial_aligned", "--adapter-set", "key_added=back"]
    way = ["apply", "points", str(saved), str(tmp_path / "out.h5ad"), "-o", str(tmp_path / "back.h5ad"), *options]
    found = CliRunner().invoke(main, way)
    assert found.exit_code == 0, found.output
    assert "Note" not in found.output
    np.testing.assert_allclose(anndata.read_h5ad(tmp_path / "back.h5ad").obsm["back"], data.obsm["spatial"], atol=1e-6)
    found = CliRunner().invoke(main, [*way[:-1], "key_added=spatial_aligned", "--overwrite"])
    assert found.exit_code == 2
    assert "wanted another entry of obsm" in found.output


def test_the_command_scales_spots_when_asked_to(tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    result = some_result(rf.Grid((60, 90)), rf.Grid((70, 80)), bend=0.0)
    result.save(tmp_path / "run.ome.zarr")
    yx = inside(rf.Grid((70, 80)), 20)
    some_anndata(yx * 4).write_h5ad(tmp_path / "in.h5ad")
    for options, factor in (([], 4), (["--adapter-set", "scale_factor=tissue_hires_scalef"], 1)):
        arguments = [
            "apply",
            "points",
            str(tmp_path / "run.ome.zarr"),
            str(tmp_path / "in.h5ad"),
            "--to",
            "fixed",
            "--overwrite",
        ]
        found = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "out.h5ad"), "--adapter", "cells", *options])
        assert found.exit_code == 0, found.output
        moved = anndata.read_h5ad(tmp_path / "out.h5ad").obsm["spatial_aligned"]
        np.testing.assert_allclose(
            moved[:, ::-1], result.transform.points(torch.from_numpy(yx * factor)).numpy(), atol=1e-9
        )
    found = CliRunner().invoke(
        main, [*arguments, "-o", str(tmp_path / "o.h5ad"), "--adapter", "cells", "--adapter-set", "scale_factor=x"]
    )
    assert found.exit_code == 2
    assert "wanted one scale factor 'x' in uns['spatial'] of 'in.h5ad' (libraries: lib), got None" in found.output


# ---- SpatialData ---------------------------------------------------------------------------------------------------


def test_without_spatialdata_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "spatialdata":
            raise ImportError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    message = r"wanted spatialdata for elements of SpatialData, got no spatialdata; install regframe\[spatialdata\]"
    with pytest.raises(ImportError, match=message):
        rs.align_elements(object(), some_result())
    with pytest.raises(ImportError, match=message):
        rs.open_element(object(), "he")


SCALE, SHIFT = (1.5, 3.0), (7.0, -4.0)  # x, y of the element's pixels in "global"


def placed(xy: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Own (x, y) as positions (y, x)."""
    return (xy * SCALE + SHIFT)[:, ::-1]


def some_spatialdata(grid: rf.Grid) -> Any:
    sd = pytest.importorskip("spatialdata")
    import geopandas
    import pandas
    import shapely
    from spatialdata.models import Image2DModel, Labels2DModel, PointsModel, ShapesModel
    from spatialdata.transformations import Affine, Scale, Sequence, Translation

    where = {"global": Sequence([Scale(list(SCALE), ("x", "y")), Translation(list(SHIFT), ("x", "y"))])}
    own = (inside(grid, 12)[:, ::-1] - SHIFT) / SCALE
    frame = pandas.DataFrame({"x": own[:, 0], "y": own[:, 1], "gene": list("abcabcabcabc"), "in_canvas": range(12)})
    points = PointsModel.parse(frame, coordinates={"x": "x", "y": "y"}, feature_key="gene", transformations=where)
    index = [f"cell{i}" for i in range(12)]
    circles = geopandas.GeoDataFrame(
        {"radius": np.full(12, 1.0)}, geometry=geopandas.points_from_xy(*own.T), index=index
    )
    ring, hole = np.array([[0, 0], [8, 0], [8, 5], [0, 5]]), np.array([[1, 1], [1, 2], [3, 2]])
    polygons = [shapely.Polygon(ring + o, [hole + o]) for o in own[:3]]
    polygons[1] = shapely.MultiPolygon([polygons[1], shapely.Polygon(ring + own[1] + 20)])
    cells = geopandas.GeoDataFrame({"n": [3, 1, 2]}, geometry=polygons, index=["p", "q", "r"])
    shape = tuple(int(e / s) for e, s in zip(grid.extent, SCALE[::-1], strict=True))
    y, x = np.mgrid[: shape[0], : shape[1]]
    lie = {"global": Sequence([Scale(list(SCALE), ("x", "y")), Translation(np.array(grid.origin)[::-1], ("x", "y"))])}
    picture = np.stack([y, x, 0 * x + 7]).astype(np.float32)
    turned = np.array([[0.0, -1.5, 150.0], [3.0, 0.0, -2.0], [0, 0, 1]])
    return sd.SpatialData(
        images={
            "he": Image2DModel.parse(
                picture, dims=("c", "y", "x"), c_coords=["row", "column", "k"], scale_factors=[2], transformations=lie
            ),
            "turned": Image2DModel.parse(
                picture[:, :30, :30],
                dims=("c", "y", "x"),
                transformations={"global": Affine(turned, ("x", "y"), ("x", "y"))},
            ),
        },
        labels={
            "nuclei": Labels2DModel.parse((1000 * y + x + 1).astype(np.uint32), dims=("y", "x"), transformations=lie)
        },
        points={"transcripts": points},
        shapes={
            "spots": ShapesModel.parse(circles, transformations=where),
            "cells": ShapesModel.parse(cells, transformations=where),
        },
    )


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("to", ["fixed", "moving"])
def test_elements_are_carried(to: Any, tmp_path: Path) -> None:
    pytest.importorskip("spatialdata")
    import spatialdata
    from spatialdata.transformations import get_transformation

    result = some_result()
    source, canvas = (MOVING, FIXED) if to == "fixed" else (FIXED, MOVING)
    phi = result.transform if to == "fixed" else result.transform.inverse()
    data = some_spatialdata(source)

    def expected(own: Any) -> Any:
        return phi.points(torch.from_numpy(np.ascontiguousarray(placed(own)))).numpy()[:, ::-1]

    new = rs.align_elements(data, result, to, unit="um", map_path=tmp_path / "map.ome.zarr")
    assert set(new) == {"he", "turned", "nuclei", "transcripts", "spots", "cells"}
    # points
    before, after = data["transcripts"].compute(), data["transcripts_aligned"].compute()
    np.testing.assert_allclose(after[["x", "y"]], expected(before[["x", "y"]].to_numpy()), atol=1e-9)
    assert list(after.columns) == [*before.columns, "match_probability", "position_sd", "regframe_in_canvas"]
    assert after[["gene", "in_canvas"]].equals(before[["gene", "in_canvas"]])
    assert data["transcripts_aligned"].attrs["spatialdata_attrs"]["feature_key"] == "gene"
    # shapes
    spots, moved = data["spots"], data["spots_aligned"]
    np.testing.assert_allclose(moved.get_coordinates(), expected(spots.get_coordinates().to_numpy()), atol=1e-9)
    ratio = np.sqrt(np.prod(SCALE) * float(torch.linalg.det(TURN)) ** (1 if to == "fixed" else -1))
    np.testing.assert_allclose(moved["radius"], ratio, rtol=0.15)  # the bend's share is small
    assert list(moved.index) == list(spots.index)
    cells, moved = data["cells"], data["cells_aligned"]
    assert list(moved.geometry.geom_type) == ["Polygon", "MultiPolygon", "Polygon"]
    assert moved["n"].tolist() == [3, 1, 2]
    corners = expected(cells.get_coordinates().loc[["p"]].to_numpy())
    written = moved.get_coordinates().loc[["p"]].to_numpy()
    assert np.abs(corners[:, None] - written[None]).max(-1).min(-1).max() < 1e-6  # every vertex is there
    assert len(moved.geometry.iloc[0].interiors) == 1
    # images and labels: the picture holds its own pixel's row and column
    image = (
        spatialdata.get_pyramid_levels(data["he_aligned"], n=0)
        if hasattr(data["he_aligned"], "children")
        else data["he_aligned"]
    )
    assert image.shape == (3, *canvas.shape)
    assert image.coords["c"].values.tolist() == ["row", "column", "k"]
    at = np.array([[canvas.shape[1] // 2 + 3, canvas.shape[0] // 2 - 5]]) + 0.5  # (x, y) of a pixel's centre
    matrix = get_transformation(image, "aligned").to_affine_matrix(("x", "y"), ("x", "y"))
    position = (at @ matrix[:2, :2].T + matrix[:2, 2])[:, ::-1]
    np.testing.assert_allclose(position[0], np.array(canvas.origin) + (at[0, ::-1] - 0.5) * canvas.spacing)
    from_ = phi.inverse().points(torch.from_numpy(position.copy())).numpy()[0]
    pixel = (from_ - np.array(source.origin)) / np.array(SCALE[::-1]) - 0.5  # (y, x), by centres
    row, column = (float(image.values[c, int(at[0, 1]), int(at[0, 0])]) for c in (0, 1))
    np.testing.assert_allclose([row, column], pixel, atol=1e-3)
    label = int(data["nuclei_aligned"].values[int(at[0, 1]), int(at[0, 0])])
    assert data["nuclei_aligned"].dtype == np.uint32
    np.testing.assert_allclose([(label - 1) // 1000, (label - 1) % 1000], pixel, atol=0.501)
    # turned by a quarter: own x grows with y of the system
    x, y = np.meshgrid(np.arange(4, 26), np.arange(4, 26))
    lies = np.stack([3.0 * (x + 0.5) - 2.0, 150.0 - 1.5 * (y + 0.5)], axis=-1)
    hit = (phi.points(torch.from_numpy(lies)).numpy() - canvas.origin) / np.array(canvas.spacing)
    hit = np.round(hit).astype(int)
    seen = ((hit >= 0) & (hit < canvas.shape)).all(axis=-1)
    assert seen.sum() > 20
    values = data["turned_aligned"].values[:, hit[seen][:, 0], hit[seen][:, 1]]
    assert np.abs(values[0] - y[seen]).max() < 2.5  # pixels of the canvas are up to twice as large
    assert np.abs(values[1] - x[seen]).max() < 2.5
    # the affine as a transformation, and the map beside
    linear = result.affine if to == "fixed" else result.affine.inverse()
    matrix = get_transformation(data["transcripts"], "aligned_affine").to_affine_matrix(("x", "y"), ("x", "y"))
    own = before[["x", "y"]].to_numpy()
    affine = linear.points(torch.from_numpy(np.ascontiguousarray(placed(own)))).numpy()[:, ::-1]
    np.testing.assert_allclose(own @ matrix[:2, :2].T + matrix[:2, 2], affine)
    assert data.attrs["regframe"]["aligned"] == {
        "to": to, "source": "global", "unit": "µm", "verdict": "pass", "affine": "aligned_affine", "map": "map.ome.zarr",
    }  # fmt: skip
    again = rf.load(tmp_path / "map.ome.zarr")
    ends = again.transform.points(torch.from_numpy(inside(MOVING, 5)))
    assert torch.allclose(ends, result.transform.points(torch.from_numpy(inside(MOVING, 5))), atol=0.02)
    data.write(tmp_path / "s.zarr")
    assert set(spatialdata.read_zarr(tmp_path / "s.zarr").points) == {"transcripts", "transcripts_aligned"}


@pytest.mark.filterwarnings("default")
def test_elements_are_opened_where_they_lie() -> None:
    pytest.importorskip("spatialdata")
    data = some_spatialdata(MOVING)
    image = rs.open_element(data, "he", unit="um")
    assert isinstance(image, rf.Image)
    assert (image.channels, image.grid.unit, image.grid.spacing) == (("row", "column", "k"), "µm", (3.0, 1.5))
    assert image.grid.origin == (MOVING.origin[0] + 1.5, MOVING.origin[1] + 0.75)
    coarse = rs.open_element(data, "he", scale=1)
    assert isinstance(coarse, rf.Image)
    assert coarse.grid.spacing[0] == pytest.approx(image.grid.extent[0] / coarse.grid.shape[0])
    labels = rs.open_element(data, "nuclei")
    assert isinstance(labels, rf.Image)
    assert labels.labels
    own = data["transcripts"].compute()[["x", "y"]].to_numpy()
    for name in ("transcripts", "spots"):
        points = rs.open_element(data, name, unit="um")
        assert isinstance(points, rf.PointSet)
        np.testing.assert_allclose(points.coords.numpy(), placed(own))
    with pytest.raises(ValueError, match="neither turns nor mirrors, got 'turned'"):
        rs.open_element(data, "turned")
    with pytest.raises(ValueError, match="wanted a scale of 'he' from 0 to 1, got 2"):
        rs.open_element(data, "he", scale=2)
    with pytest.raises(ValueError, match=r"wanted an element of this SpatialData \(he, turned, .*got 'dapi'"):
        rs.open_element(data, "dapi")
    with pytest.raises(ValueError, match="wanted 'he' placed in the coordinate system 'um', got global"):
        rs.open_element(data, "he", "um")


@pytest.mark.filterwarnings("default")
def test_elements_are_refused_before_anything_changes(tmp_path: Path) -> None:
    pytest.importorskip("spatialdata")
    data = some_spatialdata(MOVING)
    before = sorted(name for _, name, _ in data.gen_elements())
    for options, message in (
        ({}, "wanted the unit of the coordinate system 'global'"),
        ({"unit": "um", "elements": ["dapi"]}, "got 'dapi'"),
        ({"unit": "um", "coordinate_system": "x"}, "wanted elements placed in the coordinate system 'x', got none"),
        ({"unit": "um", "elements": "he", "suffix": ""}, "got he, which are there"),
        ({"unit": "um", "pixel_origin": "left"}, "wanted pixel_origin"),
    ):
        with pytest.raises(ValueError, match=message):
            rs.align_elements(data, some_result(), **options)  # type: ignore[arg-type]
    assert sorted(name for _, name, _ in data.gen_elements()) == before
    assert "regframe" not in data.attrs


@pytest.mark.filterwarnings("default")
def test_results_of_files_count_from_centres() -> None:
    """Identity between two images of pixels 1 and 2: corner to corner in SpatialData, half a pixel apart by centres."""
    sd = pytest.importorskip("spatialdata")
    import geopandas
    from spatialdata.models import ShapesModel

    fixed, moving = rf.Grid((40, 60), 2.0, unit="µm"), rf.Grid((80, 120), 1.0, unit="µm")
    shift = torch.eye(3, dtype=torch.float64)
    shift[:2, 2] = 0.5 - 1.0  # the first corner, -0.5 by centres, is -1 by those of the fixed one
    result = fake_result(fixed, moving, shift, bend=0.0)
    corner = ShapesModel.parse(
        geopandas.GeoDataFrame({"radius": [1.0, 1.0]}, geometry=geopandas.points_from_xy([0, 30], [0, 10]))
    )
    data = sd.SpatialData(shapes={"a": corner})
    rs.align_elements(data, result, unit="um", pixel_origin="corner")
    np.testing.assert_allclose(data["a_aligned"].get_coordinates(), [[0, 0], [30, 10]], atol=1e-9)
    rs.align_elements(data, result, elements="a", unit="um", suffix="_b", to_coordinate_system="b")
    np.testing.assert_allclose(data["a_b"].get_coordinates(), [[-0.5, -0.5], [29.5, 9.5]], atol=1e-9)
