"""Maps of real pairs in the files of other programs: how far off those programs are, both ways, at what size.

Positions all over a canvas are carried by SimpleITK with the file that `write_map` wrote, and by numpy and scipy alone with
the OME-Zarr stores, that of an export and the one every result is saved as; where ngff-zarr is installed it reads the stores.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import truth
import zarr
from numpy.typing import NDArray
from records import record
from scipy.ndimage import map_coordinates

import regframe as rf
from regframe.data import Grid, unit_ratio

DATA = Path(os.environ.get("REGFRAME_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
PAIRS = ("lesion_1", "lesion_3", "MERFISH")
BAR = 1e-3
"""Distance in px at which positions of two programs count as equal."""
STORED = 0.006
"""Distance in px that the store of a result may be off, which is kept small; it is written to 0.003 px, twice as exactly."""
PROBES = 1 << 17
"""Positions that are compared, eight times as many as `write_map` looks at itself."""

Array = NDArray[np.float64]
Side = Literal["fixed", "moving"]


def pair(name: str) -> truth.Pair:
    if name == "MERFISH":
        return truth.merfish(DATA)
    return next(p for p in truth.lungs(DATA) if p.name.startswith(name))


@pytest.fixture(scope="module", params=PAIRS)
def result(request: pytest.FixtureRequest, small: bool) -> tuple[str, rf.Result]:
    """A real pair, registered; one, coarsely, for a quick run."""
    needed = "03_st_merfish" if request.param == "MERFISH" else "02_histology_landmarks"
    if not (DATA / needed).is_dir():
        pytest.skip(f"no data; set REGFRAME_DATA to the folder that has {needed}")
    if small and request.param != "lesion_3":
        pytest.skip("too large for a quick run")
    both = pair(request.param)
    settings = {"pyramid": {"finest": 2}, "optimizer": {"max_iter": 10}} if small else {}
    return request.param, rf.register(both.fixed, both.moving, config=rf.Config.model_validate(settings))


def probes(grid: Grid, count: int = PROBES) -> torch.Tensor:
    """``count`` positions ``[N, D]`` all over a canvas, to the edges of its outermost pixels."""
    random = torch.rand((count, grid.ndim), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return torch.tensor(grid.origin) + (random - 0.5 / torch.tensor(grid.shape)) * torch.tensor(grid.extent)


def by_itk(path: Path, x: Array, source: Grid, target: Grid) -> Array:
    """A file's transform as SimpleITK applies it: its points, which are also what its resampling asks for."""
    sitk = pytest.importorskip("SimpleITK", reason="needs the extra itk")
    if path.name.endswith(".nii.gz"):
        transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    else:
        transform = sitk.ReadTransform(str(path))
    scale = [1.0 if grid.unit == "px" else unit_ratio(grid.unit, "mm") or math.nan for grid in (source, target)]
    found = [transform.TransformPoint(p) for p in (x[:, ::-1] * scale[0]).tolist()]
    return np.array(found)[:, ::-1] / scale[1]


def by_itk_resampling(path: Path, source: Grid, target: Grid) -> Array:
    """Where SimpleITK takes each pixel of the canvas while it resamples: images of the target's coordinates, drawn."""
    sitk = pytest.importorskip("SimpleITK", reason="needs the extra itk")
    transform = sitk.ReadTransform(str(path))
    scale = [1.0 if grid.unit == "px" else unit_ratio(grid.unit, "mm") or math.nan for grid in (source, target)]
    drawn = []
    for axis in range(2):
        # an image that is as wide as needed and linear, so that drawing it gives the coordinate itself
        ends = np.array([-10.0, 11.0]) * target.extent[axis] + target.origin[axis]
        values = np.broadcast_to(ends[:, None] if axis == 0 else ends[None], (2, 2))
        image = sitk.GetImageFromArray(np.ascontiguousarray(values))
        image.SetOrigin(
            [(-10 * e + o) * scale[1] for o, e in zip(target.origin[::-1], target.extent[::-1], strict=True)]
        )
        image.SetSpacing([21 * e * scale[1] for e in target.extent[::-1]])
        drawn.append(
            sitk.GetArrayFromImage(
                sitk.Resample(
                    image, list(source.shape[::-1]), transform, sitk.sitkLinear, [o * scale[0] for o in source.origin[::-1]],
                    [s * scale[0] for s in source.spacing[::-1]], (1.0, 0.0, 0.0, 1.0), math.nan, sitk.sitkFloat64,
                )
            ).ravel()
        )  # fmt: skip
    return np.stack(drawn, axis=1)


def by_numpy(path: Path, to: Side, x: Array) -> Array:
    """The OME-Zarr transformation with numpy and scipy alone."""
    whole = zarr.open_group(path, mode="r").attrs.asdict()["ome"]["scene"]["coordinateTransformations"][0]
    for step in whole["forward" if to == "fixed" else "inverse"]["transformations"]:
        if step["type"] == "affine":
            matrix = np.array(step["affine"])
            x = x @ matrix[:, :-1].T + matrix[:, -1]
            continue
        group = zarr.open_group(path / step["path"], mode="r")
        dataset = group.attrs.asdict()["ome"]["multiscales"][0]["datasets"][0]
        scale, shift = (np.array(t[t["type"]][1:]) for t in dataset["coordinateTransformations"][0]["transformations"])
        x = moved(np.asarray(group[dataset["path"]][...]), scale, shift, x)
    return x


def by_ngff_zarr(path: Path, to: Side, x: Array) -> Array:
    """The OME-Zarr transformation as ngff-zarr reads it: its scene, checked against the standard, its fields and their nodes."""
    from ngff_zarr import NgffScene, from_ome_zarr

    scene: Any = NgffScene.from_ome_zarr(str(path), validate=True)
    whole = scene.coordinateTransformations[0]
    for step in (whole.forward if to == "fixed" else whole.inverse).transformations:
        if step.type == "affine":
            matrix = np.array(step.affine)
            x = x @ matrix[:, :-1].T + matrix[:, -1]
            continue
        image: Any = from_ome_zarr(f"{path}/{step.path}").images[0]
        scale, shift = (np.array([v[d] for d in image.dims[1:]]) for v in (image.scale, image.translation))
        x = moved(np.asarray(image.data), scale, shift, x)
    return x


def moved(field: Any, scale: Array, shift: Array, x: Array) -> Array:
    """``x`` carried by a displacement field ``[D, *S]``, linear between nodes."""
    index = ((x - shift) / scale).T
    return x + np.stack([map_coordinates(d, index, order=1) for d in field], axis=1)


def size(*paths: Path) -> float:
    """What files and folders take, in MB."""
    files = [f for path in paths for f in ([path] if path.is_file() else path.rglob("*")) if f.is_file()]
    return sum(f.stat().st_size for f in files) / 1e6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the map in:UserWarning")
@pytest.mark.filterwarnings("ignore:the displacement field:UserWarning")
def test_other_programs_find_the_same_points(
    result: tuple[str, rf.Result], small: bool, report: Callable[[str], None], tmp_path: Path
) -> None:
    name, found = result
    sides: dict[Side, tuple[Grid, Grid]] = {
        "moving": (found.fixed_grid, found.moving_grid),
        "fixed": (found.moving_grid, found.fixed_grid),
    }
    x = {to: probes(grids[0], PROBES // 16 if small else PROBES) for to, grids in sides.items()}
    wanted = {"moving": found.to_moving(x["moving"]), "fixed": found.to_fixed(x["fixed"])}

    def said(
        what: str, to: Side, there: Array, bar: float, seconds: float, mb: float, at: torch.Tensor | None = None
    ) -> None:
        exact = wanted[to] if at is None else at
        error = np.linalg.norm((there - exact.numpy()) / np.array(sides[to][1].spacing), axis=1)
        report(
            f"{name}: {what} to {to}: {error.max():.1e} px at most, {error.mean():.1e} in the mean; "
            f"{mb:.1f} MB, written in {seconds:.0f} s"
        )
        record(
            benchmark="interchange", pair=name, format=what, to=to, max_px=float(error.max()), mean_px=float(error.mean()),
            megabytes=mb, seconds=seconds,
        )  # fmt: skip
        assert error.max() <= 1.2 * bar  # looked at in more places than the writer did

    tolerance = 0.01 if small else BAR
    for to in sides:
        began = time.perf_counter()
        path = tmp_path / f"{to}.h5"
        rf.write_map(found, path, to=to, tolerance=tolerance)
        cost = time.perf_counter() - began, size(path)
        said("itk .h5, points,", to, by_itk(path, x[to].numpy(), *sides[to]), tolerance, *cost)
        pixels = sides[to][0].coords().reshape(-1, 2)
        exact = found.to_moving(pixels) if to == "moving" else found.to_fixed(pixels)
        said("itk .h5, resampling,", to, by_itk_resampling(path, *sides[to]), tolerance, *cost, exact)
        path = tmp_path / f"{to}.nii.gz"
        if not small:
            began = time.perf_counter()
            rf.write_map(found, path, to=to)
            cost = time.perf_counter() - began, size(path)
            said("nifti, one field,", to, by_itk(path, x[to].numpy(), *sides[to]), 0.1, *cost)
    readers: dict[str, Callable[[Path, Side, Array], Array]] = {"numpy": by_numpy}
    try:
        import ngff_zarr  # noqa: F401

        readers["ngff-zarr"] = by_ngff_zarr
    except ImportError:
        report(f"{name}: ngff-zarr is not installed, so numpy reads its files alone")
    for kind in ("ngff", "store"):
        path = tmp_path / f"{kind}.ome.zarr"
        began = time.perf_counter()
        if kind == "ngff":
            rf.write_map(found, path, tolerance=tolerance)
        else:
            found.save(path)
        cost = time.perf_counter() - began, size(path)
        for reader, read in readers.items():
            for to in sides:
                bar = (tolerance if kind == "ngff" else max(STORED, tolerance)) if to == "fixed" else 1e-5
                said(f"{kind} by {reader}", to, read(path, to, x[to].numpy()), bar, *cost)
