"""`regframe_scverse.tl.align`: two AnnData as squidpy's users have them, registered by one call, written as h5ad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regframe_scverse as rs
import torch

import regframe as rf

ANGLE, SHIFT = np.deg2rad(4), np.array([12.0, -20.0])
TURN = np.array(
    [[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]]
)  # (x, y) of the reference to the query


def pair() -> tuple[Any, Any, np.ndarray[Any, Any]]:
    """A tissue of uneven density, the same cells turned, shuffled, jittered and a fifth gone; their true positions."""
    anndata = pytest.importorskip("anndata", reason="anndata is not installed: regframe[anndata]")
    import pandas

    rng = np.random.default_rng(4)
    xy = rng.uniform((0, 0), (900, 600), (60_000, 2))
    dense = 0.1 + np.exp(-((xy - (250, 200)) ** 2).sum(1) / 2e4) + 0.7 * (np.abs(xy[:, 1] - 380 - 0.1 * xy[:, 0]) < 35)
    tissue = (((xy - (450, 300)) / (430, 280)) ** 2).sum(1) < 1 + 0.1 * np.sin(xy[:, 0] / 60)
    xy = xy[tissue & (rng.random(len(xy)) < dense / 9)]
    chosen = rng.permutation(len(xy))[: int(0.8 * len(xy))]

    def made(positions: Any, index: Any) -> Any:
        obs = pandas.DataFrame({"kind": pandas.Categorical(["T"] * len(index))}, index=[f"c{i}" for i in index])
        counts = np.ones((len(index), 2), np.float32)
        return anndata.AnnData(counts, obs=obs, obsm={"spatial": positions})

    moved = xy[chosen] @ TURN.T + SHIFT + rng.normal(0, 1, (len(chosen), 2))
    return made(xy, range(len(xy))), made(moved, chosen), xy[chosen]


def test_two_tables_are_aligned_by_one_call(tmp_path: Path) -> None:
    reference, query, truth = pair()
    before = query.copy()
    assert (
        rs.tl.align(
            reference,
            query,
            unit="um",
            spacing=12,
            transform="affine",
            init="identity",
            map_path=tmp_path / "m.ome.zarr",
        )
        is None
    )
    off = np.linalg.norm(query.obsm["spatial_aligned"] - truth, axis=1)
    assert np.median(off) < 4  # µm, of cells 12 µm apart
    assert list(reference.obsm) == ["spatial"]
    assert not reference.uns
    assert list(query.obs.columns) == ["kind", "match_probability", "position_sd", "in_canvas"]
    np.testing.assert_array_equal(query.obsm["spatial"], before.obsm["spatial"])
    found = query.uns["spatial_aligned"]
    assert found["verdict"] in ("pass", "warn")
    assert found["unit"] == "µm"
    assert found["params"]["transform"] == "affine"
    by_affine = before.obsm["spatial"] @ found["affine"][:2, :2].T + found["affine"][:2, 2]
    np.testing.assert_allclose(by_affine, query.obsm["spatial_aligned"], atol=1e-6)
    # it is written, and read as it was
    import anndata

    query.write_h5ad(tmp_path / "q.h5ad")
    again = anndata.read_h5ad(tmp_path / "q.h5ad")
    assert again.uns["spatial_aligned"]["verdict"] == found["verdict"]
    assert list(again.uns["spatial_aligned"]["reasons"]) == list(found["reasons"])
    np.testing.assert_array_equal(again.uns["spatial_aligned"]["affine"], found["affine"])
    np.testing.assert_array_equal(again.obsm["spatial_aligned"], query.obsm["spatial_aligned"])
    loaded = rf.load(again.uns["spatial_aligned"]["map"])
    ends = loaded.transform.points(torch.from_numpy(before.obsm["spatial"][:5, ::-1].copy())).numpy()[:, ::-1]
    np.testing.assert_allclose(ends, query.obsm["spatial_aligned"][:5])


def test_a_copy_leaves_the_query_alone() -> None:
    reference, query, _ = pair()
    query.obsm["spatial"] += 400.0  # too far away for a start at the identity
    view = query[:1200]
    with pytest.raises(ValueError, match="got a view of another"):
        rs.tl.align(reference, view)
    with pytest.warns(
        UserWarning, match=r"the verdict on this map is fail, see uns\['on_ref'\]"
    ):  # it begins too far away
        out = rs.tl.align(
            reference, view, key_added="on_ref", spacing=25, transform="rigid", init="identity", copy=True
        )
    assert list(out.obsm) == ["spatial", "on_ref"]
    assert out.uns["on_ref"]["params"]["init"] == "identity"
    assert list(query.obsm) == ["spatial"]
    with pytest.raises(ValueError, match=r"wanted positions in obsm\['X_spatial'\]"):
        rs.tl.align(reference, query, spatial_key="X_spatial")
    with pytest.raises(ValueError, match="change key_added"):
        rs.tl.align(reference, query, key_added="spatial")
    with pytest.raises(TypeError, match="wanted an AnnData, got ndarray"):
        rs.tl.align(query.obsm["spatial"], query)
    assert not query.uns
