"""How data and results show themselves in a notebook, and numpy arrays where tensors are wanted."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from fake_result import fake_result

import regframe as rf
from regframe.display import notebook as display

HOSTILE = "<script>alert(1)</script>"


def image(channels: int = 3, *shape: int, dtype: type = np.uint8) -> rf.Image:
    shape = shape or (40, 60)
    values = np.random.default_rng(0).integers(0, 255, (channels, *shape)).astype(dtype)
    return rf.Image(values, rf.Grid(shape, 0.5, (), "µm"), name=HOSTILE)


def points(n: int = 9430) -> rf.PointSet:
    coords = np.random.default_rng(1).uniform(0, 500, (n, 2))
    return rf.PointSet(coords, "µm", table={HOSTILE: ["x" * 100] * n}, name=HOSTILE)


def shapes() -> rf.Shapes:
    ring = [[0, 0], [40, 0], [40, 20], [0, 0]]
    return rf.Shapes.from_geojson({"type": "Polygon", "coordinates": [ring]}, name=HOSTILE)


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (image(), ("40 × 60 px of 0.5 µm", "3 channels", "uint8")),
        (image(1, 5, 40, 60, dtype=np.float32), ("5 × 40 × 60 px", "1 channel,", "float32")),
        (points(), ("9,430 points (y, x) in µm", "1 columns")),
        (shapes(), ("1 shapes of 4 vertices in px",)),
    ],
    ids=["image", "volume", "points", "shapes"],
)
def test_what_is_printed_is_short(shown: object, words: tuple[str, ...]) -> None:
    text = repr(shown)
    assert len(text) < 200
    for word in words:
        assert word in text
    page = shown._repr_html_()  # type: ignore[attr-defined]
    assert len(page) < 200_000
    assert "data:image/png;base64," in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_map_is_printed_by_its_size() -> None:
    nodes = rf.Grid((9, 7), 2.0, (), "µm")
    flow, field = rf.Flow(torch.zeros(2, 2, 9, 7), nodes, 4), rf.Displacement(torch.zeros(2, 9, 7), nodes)
    assert repr(rf.Sequence((flow, field))) == (
        "Sequence(transforms=(Flow(9 × 7 nodes, 2 time slices, 4 steps, µm), Displacement(9 × 7 nodes, µm)))"
    )
    assert repr(flow.inverse()).endswith("reverse)")
    assert repr(field.inverse()).endswith("inverted)")


def test_a_result_shows_its_verdict_and_why() -> None:
    grid = rf.Grid((40, 60), 0.5, (), "µm")
    result = fake_result(grid, grid, verdict="warn", confidence=0.6)
    page = result._repr_html_()
    assert "Not confirmed" in page
    assert "&lt;no&gt; counterpart" in page
    assert "40 × 60 px of 0.5 µm" in page
    assert "expected error" not in page
    known = dataclasses.replace(result, position_sd=torch.full(result.weight_grid.shape, 2.0))  # type: ignore[union-attr]
    assert known.expected_error == pytest.approx(2.146 * 2, rel=1e-3)  # of a Rayleigh distribution
    assert "4.3 µm" in known._repr_html_()
    assert result.expected_error is None


def test_the_expected_error_is_that_of_the_matching_tissue() -> None:
    grid = rf.Grid((40, 60))
    result = fake_result(grid, grid)
    assert result.weight is not None
    sd, weight = torch.full_like(result.weight, 9.0), torch.zeros_like(result.weight)
    sd[:4], weight[:4], sd[0, 0] = 1.0, 1.0, float("nan")
    made = dataclasses.replace(result, position_sd=sd, weight=weight)
    assert made.expected_error == pytest.approx(2.146, rel=1e-3)
    assert dataclasses.replace(made, weight=weight * 0).expected_error is None


def test_numpy_arrays_do_where_tensors_do() -> None:
    values = np.arange(24, dtype=">u2").reshape(2, 3, 4)
    made = rf.Image(values, rf.Grid((3, 4)), weight=np.ones((3, 4), dtype=np.float32))
    assert isinstance(made.data, torch.Tensor)
    assert isinstance(made.weight, torch.Tensor)
    assert np.array_equal(made.numpy(), np.moveaxis(values, 0, -1))
    assert np.array_equal(np.asarray(made), made.numpy())
    assert np.asarray(made, dtype=np.float32).dtype == np.float32
    set_ = rf.PointSet(np.array([[1, 2], [3, 4]]), weights=np.array([0.5, 1.0]))
    assert set_.coords.dtype == torch.float64
    assert isinstance(set_.weights, torch.Tensor)
    with pytest.raises(ValueError, match="numeric array"):
        rf.PointSet(np.array([["a", "b"]]))
    with pytest.raises(ValueError, match="wanted a tensor or numpy array of coordinates, got list"):
        rf.PointSet([[1.0, 2.0]])  # type: ignore[arg-type]


def test_plots() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    one = image()
    axes = one.plot()
    assert axes.images[0].get_extent() == [-0.25, 29.75, 19.75, -0.25]
    assert np.allclose(axes.images[0].get_array(), one.numpy() / 255)
    assert one.plot(axes, channel=1) is axes
    with pytest.raises(ValueError, match="wanted one of the channels 0, 1, 2, or its number, got 'nucleus'"):
        one.plot(channel="nucleus")
    grid = one.grid
    result = fake_result(grid, grid, bend=1.0)
    assert len(result.plot().lines) > 18
    both = result.overlay(one, one)
    assert both.get_ylim() == (19.75, -0.25)
    middle = np.asarray(both.images[0].get_array())
    assert middle.shape == (40, 60, 3)
    dots = result.overlay(points(50), points(50))
    assert len(dots.collections) == 2
    plt.close("all")


def test_odd_data_are_drawn_too() -> None:
    assert display.dots(np.full((3, 2), np.nan)).shape == (8, 8, 3)
    assert display.dots(np.zeros((3, 2))).min() < 1
    assert np.isfinite(display.rgb(np.full((4, 4, 2), np.nan))).all()
    labels = rf.Image(np.arange(16).reshape(1, 4, 4), rf.Grid((4, 4)), labels=True)
    assert "ids, int64" in labels._repr_html_()


def test_registering_loads_no_plots_tables_or_clusters() -> None:
    script = """
import sys, numpy as np, regframe as rf
values = np.random.default_rng(0).random((64, 64)).astype(np.float32)
image = rf.Image.from_array(values)
result = rf.register(image, image, transform="rigid")
import regframe.report.results
regframe.report.results.render(result, image, image, 200, 60)
repr(result), result._repr_html_(), image._repr_html_()
print([name for name in ("matplotlib", "pandas", "dask", "distributed") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_shapes_are_drawn_as_outlines() -> None:
    """The edges, not the corners alone; points as crosses; very many as dots."""
    ring = [[0.0, 0.0], [200.0, 0.0], [200.0, 100.0], [0.0, 100.0], [0.0, 0.0]]
    picture = display.outlines([np.array(ring)], np.array([[180.0, 50.0]]))
    drawn = (picture < 0.9).any(axis=-1)
    assert (drawn.sum(axis=0) > 0.8 * drawn.shape[0] * 200 / 216).sum() >= 2  # two whole sides
    middle = drawn[30:-30, 20:-20]
    assert 3 <= middle.sum() <= 60  # the cross
    started = time.perf_counter()
    many = display.outlines([np.array(ring) + i for i in range(display.MOST_DRAWN + 1)], np.zeros((0, 2)))
    assert time.perf_counter() - started < 5
    assert (many < 1).any()
    assert display.outlines([], np.zeros((0, 2))).shape == (8, 8, 3)
