"""A map in the files of others: SimpleITK finds the same points, what is read back is the same map, nothing is believed."""

from __future__ import annotations

import gzip
import io
import json
import math
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fake_result import fake_result

import regframe as rf
from regframe import plugins
from regframe.cli import main
from regframe.data import Grid, unit_ratio
from regframe.formats import BUILT_IN, exchange, itk
from regframe.io import outputs, store
from regframe.maps.affine import Affine
from regframe.maps.displacement import Displacement
from regframe.maps.sequence import Sequence
from regframe.result import Result

sitk = pytest.importorskip("SimpleITK", reason="needs the extra itk")
h5py = pytest.importorskip("h5py", reason="needs the extra itk")

BAR = 1e-3
"""Distance in pixels at which points of two programs are the same."""


def matrix(ndim: int, ratio: float, turn: float = 0.3) -> torch.Tensor:
    """A turn, a stretch and a shift; ``ratio`` fixed units to the moving one."""
    out = torch.eye(ndim + 1, dtype=torch.float64)
    c, s = math.cos(turn), math.sin(turn)
    out[-3:-1, -3:-1] = torch.tensor([[1.1 * c, -s], [s, 0.9 * c]])
    out[:-1, -1] = torch.tensor([-2.0, 6.0, 4.0])[-ndim:]
    return torch.diag(torch.tensor([*[ratio] * ndim, 1.0], dtype=torch.float64)) @ out


def result_of(ndim: int, fixed_unit: str, moving_unit: str, bend: float = 0.5) -> Result:
    """A bent map between canvases of uneven spacing that do not begin at zero."""
    ratio = {("µm", "mm"): 1e-3, ("µm", "µm"): 1.0, ("px", "px"): 1.0, ("px", "µm"): 0.5}[moving_unit, fixed_unit]
    moving = Grid((12, 18, 20)[-ndim:], (2.0, 0.7, 1.3)[-ndim:], (-5.0, 3.0, 7.0)[-ndim:], moving_unit)
    fixed = Grid(
        (10, 22, 17)[-ndim:],
        tuple(s * ratio for s in (1.5, 0.8, 1.2)[-ndim:]),
        tuple(o * ratio for o in (4.0, -3.0, 2.0)[-ndim:]),
        fixed_unit,
    )
    if bend:
        return fake_result(fixed, moving, matrix(ndim, ratio), bend * 2 / ndim**2)
    affine = Affine(matrix(ndim, ratio), moving.unit, fixed.unit)
    straight = fake_result(fixed, moving, matrix(ndim, ratio), 1.0)
    return Result(affine, fixed, moving, straight.metrics, straight.config, affine)


CASES = [(2, "px", "px"), (2, "mm", "µm"), (2, "µm", "px"), (3, "µm", "µm"), (3, "mm", "µm")]


def sides(result: Result, to: str) -> tuple[Grid, Grid]:
    grids = result.fixed_grid, result.moving_grid
    return grids if to == "moving" else (grids[1], grids[0])


def positions(grid: Grid, n: int = 300) -> torch.Tensor:
    """Random positions all over the canvas, ``[N, D]``."""
    generator = torch.Generator().manual_seed(5)
    low = torch.tensor(grid.origin) - torch.tensor(grid.spacing) / 2
    return low + torch.rand(n, grid.ndim, generator=generator, dtype=torch.float64) * torch.tensor(grid.extent)


def carried(result: Result, to: str, x: torch.Tensor) -> torch.Tensor:
    return result.to_moving(x) if to == "moving" else result.to_fixed(x)


def in_pixels(a: Any, b: Any, grid: Grid) -> float:
    difference = np.asarray(a) - np.asarray(b)
    return float(np.linalg.norm(difference / np.array(grid.spacing), axis=-1).max())


def number(unit: str, wanted: str = "mm") -> float:
    return 1.0 if unit == "px" else unit_ratio(unit, wanted) or math.nan


def itk_points(transform: Any, x: torch.Tensor, source: Grid, target: Grid, unit: str = "mm") -> np.ndarray:
    """What ITK makes of positions: numbers turned to x, y(, z) and back."""
    numbers = x.numpy()[:, ::-1] * number(source.unit, unit)
    return np.array([transform.TransformPoint(p) for p in numbers.tolist()])[:, ::-1] / number(target.unit, unit)


def read_field(path: Path) -> Any:
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))


# ------------------------------------------------------------------------------------------------------- the same points


@pytest.mark.parametrize("to", ["fixed", "moving"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_itk_finds_the_same_points(case: tuple[int, str, str], to: Any, tmp_path: Path) -> None:
    result, suffix = result_of(*case), "h5" if to == "fixed" else "tfm"
    source, target = sides(result, to)
    path = tmp_path / f"map.{suffix}"
    written = rf.write_map(result, path, to=to)
    x = positions(source)
    found = itk_points(sitk.ReadTransform(str(path)), x, source, target)
    assert in_pixels(found, carried(result, to, x), target) < BAR
    assert written.max_error_px is not None
    assert written.max_error_px < (1e-9 if to == "moving" else BAR)  # a flow's own steps are fields, and exact
    assert written.files == (path,)


@pytest.mark.parametrize("to", ["fixed", "moving"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_an_affine_map_is_exact_in_every_format_that_holds_it(ndim: int, to: Any, tmp_path: Path) -> None:
    result = result_of(ndim, "mm", "µm", bend=0)
    source, target = sides(result, to)
    x = positions(source)
    wanted = carried(result, to, x)
    for name in ("map.h5", "map.tfm", "map.mat"):
        rf.write_map(result, tmp_path / name, to=to)
        transform = sitk.ReadTransform(str(tmp_path / name))
        assert "Affine" in transform.GetName()
        assert in_pixels(itk_points(transform, x, source, target), wanted, target) < 1e-10
    for name in ("map.h5", "map.tfm", "map.mat", "map.txt", "map.nii.gz", "map.npz"):
        rf.write_map(result, tmp_path / name, to=to, overwrite=True)
        back = rf.read_map(tmp_path / name, result.fixed_grid, result.moving_grid, to=to)
        assert in_pixels(carried(back, to, x), wanted, target) < 1e-8, name


@pytest.mark.parametrize("to", ["fixed", "moving"])
@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[3]], ids=str)
def test_one_field_holds_the_whole_map_over_the_canvas(case: tuple[int, str, str], to: Any, tmp_path: Path) -> None:
    result = result_of(*case)
    source, target = sides(result, to)
    x = positions(source)
    for name in ("map.nii", "map.nii.gz"):
        rf.write_map(result, tmp_path / name, to=to)
        found = itk_points(read_field(tmp_path / name), x, source, target)
        assert in_pixels(found, carried(result, to, x), target) < BAR
    head = (tmp_path / "map.nii").read_bytes()
    assert struct.unpack_from("<h", head, 68)[0] == 1007
    assert head[123] & 7 == (0 if source.unit == "px" else 2)


def test_one_field_between_pixels_and_lengths_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="both sides in pixels or both in length units"):
        rf.write_map(result_of(2, "µm", "px"), tmp_path / "map.nii.gz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", [CASES[2], CASES[4]], ids=str)
def test_the_files_of_ants_are_composed_as_ants_does(case: tuple[int, str, str], tmp_path: Path) -> None:
    result = result_of(*case)
    prefix = tmp_path / "run_"
    written = rf.write_map(result, prefix, "ants")
    assert [f.name for f in written.files] == ["run_0GenericAffine.mat", "run_1Warp.nii.gz", "run_1InverseWarp.nii.gz"]
    affine, warp, inverse = (str(f) for f in written.files)
    linear = sitk.ReadTransform(affine)
    # -t 1Warp -t 0GenericAffine: a fixed point is displaced first; -t [0GenericAffine,1] -t 1InverseWarp the other way
    ways = {
        "moving": sitk.CompositeTransform([linear, read_field(Path(warp))]),
        "fixed": sitk.CompositeTransform([read_field(Path(inverse)), linear.GetInverse()]),
    }
    for to, transform in ways.items():
        source, target = sides(result, to)
        x = positions(source)
        assert in_pixels(itk_points(transform, x, source, target), carried(result, to, x), target) < BAR
    back = rf.read_map(prefix, result.fixed_grid, result.moving_grid)
    for to in ("fixed", "moving"):
        source, target = sides(result, to)
        assert in_pixels(carried(back, to, positions(source)), carried(result, to, positions(source)), target) < 2 * BAR
    assert back.metrics["imported"]["given_inverse_px"] < 2 * BAR


@pytest.mark.parametrize("to", ["fixed", "moving"])
@pytest.mark.parametrize("case", [CASES[1], CASES[2], CASES[3]], ids=str)
def test_what_is_written_is_read_both_ways(case: tuple[int, str, str], to: Any, tmp_path: Path) -> None:
    result = result_of(*case)
    for name in ("map.h5",):
        rf.write_map(result, tmp_path / name, to=to)
        back = rf.read_map(tmp_path / name, result.fixed_grid, result.moving_grid, to=to)
        for side in ("fixed", "moving"):
            source, target = sides(result, side)
            x = positions(source)
            assert in_pixels(carried(back, side, x), carried(result, side, x), target) < 2 * BAR
        assert back.metrics["roundtrip_px"]["max"] < 1e-6
        assert back.verdict == "warn"
        assert "imported" in back.reasons[0]


def test_numbers_may_be_in_another_unit(tmp_path: Path) -> None:
    result = result_of(2, "mm", "µm")
    x = positions(result.fixed_grid)
    rf.write_map(result, tmp_path / "map.h5", unit="um")
    found = itk_points(sitk.ReadTransform(str(tmp_path / "map.h5")), x, result.fixed_grid, result.moving_grid, "µm")
    assert in_pixels(found, result.to_moving(x), result.moving_grid) < BAR
    back = rf.read_map(tmp_path / "map.h5", result.fixed_grid, result.moving_grid, unit="um")
    assert in_pixels(back.to_moving(x), result.to_moving(x), result.moving_grid) < BAR
    with pytest.raises(ValueError, match="wanted mm"):
        rf.write_map(result, tmp_path / "map.nii.gz", unit="um")
    with pytest.raises(ValueError, match="wanted a length unit"):
        rf.write_map(result, tmp_path / "map.tfm", unit="px")


def test_itk_draws_the_same_image(tmp_path: Path) -> None:
    """A moving image resampled by SimpleITK alone with the file, on the canvas that `write_map` names."""
    result = result_of(2, "mm", "µm")
    written = rf.write_map(result, tmp_path / "map.h5")
    y, x = torch.meshgrid(torch.linspace(0, 3, 18), torch.linspace(0, 4, 20), indexing="ij")
    picture = rf.Image((torch.sin(y) + torch.cos(x))[None].double(), result.moving_grid)
    moving = sitk.GetImageFromArray(picture.data[0].numpy())
    moving.SetSpacing([s * 1e-3 for s in reversed(result.moving_grid.spacing)])
    moving.SetOrigin([o * 1e-3 for o in reversed(result.moving_grid.origin)])
    canvas = written.resample
    drawn = sitk.Resample(
        moving, [int(n) for n in canvas["size"]], sitk.ReadTransform(str(tmp_path / "map.h5")), sitk.sitkLinear,
        canvas["origin"], canvas["spacing"], (1.0, 0.0, 0.0, 1.0), -9.0,
    )  # fmt: skip
    found, wanted = sitk.GetArrayFromImage(drawn), result.to_fixed(picture).data[0].numpy()
    inside = found > -5
    assert inside.sum() > 50
    assert np.abs(found - wanted)[inside].max() < 1e-3


@pytest.mark.parametrize("case", [CASES[2], CASES[3]], ids=str)
def test_npz_is_exact(case: tuple[int, str, str], tmp_path: Path) -> None:
    result = result_of(*case)
    rf.write_map(result, tmp_path / "map.npz")
    back = rf.read_map(tmp_path / "map.npz")
    assert (back.fixed_grid, back.moving_grid) == (result.fixed_grid, result.moving_grid)
    for to in ("fixed", "moving"):
        x = positions(sides(result, to)[0])
        assert torch.equal(carried(back, to, x), carried(result, to, x))
    with np.load(tmp_path / "map.npz", allow_pickle=False) as arrays:
        assert list(arrays["axes"]) == list(result.fixed_grid.axes)
        assert np.allclose(arrays["affine_to_fixed"] @ arrays["affine_to_moving"], np.eye(case[0] + 1))
        field, x = arrays["displacement_to_moving"], positions(result.fixed_grid)
        grid = Grid(
            tuple(arrays["displacement_to_moving_shape"]),
            tuple(arrays["displacement_to_moving_spacing"]),
            tuple(arrays["displacement_to_moving_origin"]),
            str(arrays["displacement_to_moving_unit"]),
        )
        way = Sequence((result.affine.inverse(), Displacement(torch.from_numpy(field), grid)))
        assert in_pixels(way.points(x), result.to_moving(x), result.moving_grid) < BAR


def test_a_store_of_ours_comes_back_to_the_bit(tmp_path: Path) -> None:
    result = result_of(3, "µm", "µm")
    rf.write_map(result, tmp_path / "map.ome.zarr")
    back = rf.read_map(tmp_path / "map.ome.zarr")
    x = positions(result.fixed_grid)
    assert torch.equal(back.to_moving(x), result.to_moving(x))
    assert back.verdict == result.verdict
    for to in ("fixed", "moving"):
        x = positions(sides(result, to)[0])
        standard = store.read_standard(tmp_path / "map.ome.zarr", to)  # type: ignore[arg-type]
        assert in_pixels(standard.points(x), carried(result, to, x), sides(result, to)[1]) < BAR


def test_a_store_of_another_program(tmp_path: Path) -> None:
    """The standard part alone, its systems called otherwise, in another unit than the images."""
    result = result_of(2, "mm", "µm")
    rf.write_map(result, tmp_path / "map.ome.zarr")
    import shutil

    shutil.rmtree(tmp_path / "map.ome.zarr" / "regframe")
    node = tmp_path / "map.ome.zarr" / "zarr.json"
    document = json.loads(node.read_text())
    del document["attributes"]["regframe"]
    document.pop("consolidated_metadata", None)
    text = (
        json.dumps(document)
        .replace('"name": "fixed"', '"name": "atlas"')
        .replace('"name": "moving"', '"name": "slide"')
    )
    node.write_text(text)
    fixed, moving = result.fixed_grid.to_unit("µm"), result.moving_grid.to_unit("mm")
    back = rf.read_map(node.parent, fixed, moving, systems=("atlas", "slide"))
    x = positions(fixed)
    assert in_pixels(back.to_moving(x), result.to_moving(x * 1e-3) * 1e-3, moving) < BAR
    with pytest.raises(ValueError, match="coordinate system named"):
        rf.read_map(node.parent, fixed, moving)
    with pytest.raises(ValueError, match="state the pixel size"):
        rf.read_map(node.parent, Grid((9, 9)), moving, systems=("atlas", "slide"))


# ------------------------------------------------------------------------------------------------------ made elsewhere


def smooth_field(ndim: int, direction: np.ndarray, constant: float = 0.0) -> Any:
    shape = (8, 12, 14)[-ndim:]
    values = np.random.default_rng(1).normal(size=(*[3] * ndim, ndim)).astype(np.float64)
    nodes = torch.nn.functional.interpolate(
        torch.from_numpy(np.moveaxis(values, -1, 0))[None], size=shape, mode="bilinear" if ndim == 2 else "trilinear"
    )
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.moveaxis(nodes[0].numpy(), 0, -1)) + constant, isVector=True)
    image.SetSpacing((2.0, 3.0, 4.0)[:ndim])
    image.SetOrigin((5.0, -7.0, 9.0)[:ndim])
    image.SetDirection(direction.ravel().tolist())
    return image


def directions(ndim: int) -> list[np.ndarray]:
    c, s = math.cos(0.4), math.sin(0.4)
    turned = np.eye(ndim)
    turned[:2, :2] = [[c, -s], [s, c]]
    flipped = np.diag([-1.0, -1.0, 1.0][:ndim])
    return [np.eye(ndim), turned, flipped]


@pytest.mark.parametrize("constant", [0.0, 20.0])
@pytest.mark.parametrize("turn", range(3))
@pytest.mark.parametrize("ndim", [2, 3])
def test_fields_of_any_direction_are_itks_to_the_edge(ndim: int, turn: int, constant: float, tmp_path: Path) -> None:
    image = smooth_field(ndim, directions(ndim)[turn], constant)
    linear = sitk.AffineTransform(ndim)
    linear.Rotate(0, 1, 0.2)
    linear.SetTranslation([3.0] * ndim)
    linear.SetCenter([1.0] * ndim)
    transform = sitk.CompositeTransform([linear, sitk.DisplacementFieldTransform(sitk.Image(image))])
    sitk.WriteTransform(transform, str(tmp_path / "a.h5"))
    grid = Grid((30, 40, 50)[-ndim:], 1.0, (0.0, 0.0, 0.0)[-ndim:], "mm")
    back = rf.read_map(tmp_path / "a.h5", grid, grid)
    # continuous indices over the whole buffer of the field, the outer halves of its outermost pixels included
    size = np.array(image.GetSize())
    index = np.random.default_rng(2).uniform(-0.499, size - 0.501, size=(400, ndim))
    points = np.array([image.TransformContinuousIndexToPhysicalPoint(i) for i in index.tolist()])
    wanted = np.array([transform.TransformPoint(p) for p in points.tolist()])
    found = back.to_moving(torch.from_numpy(points[:, ::-1].copy())).numpy()[:, ::-1]
    assert np.abs(found - wanted).max() < 1e-9
    again = back.to_fixed(back.to_moving(torch.from_numpy(points[:, ::-1].copy()))).numpy()[:, ::-1]
    assert np.abs(again - points).max() < 1e-6


@pytest.mark.parametrize("name", sorted(itk.RIGID))
@pytest.mark.parametrize("suffix", ["tfm", "h5", "mat"])
def test_rigid_maps_of_itk(name: str, suffix: str, tmp_path: Path) -> None:
    kind = getattr(sitk, name)
    ndim = 2 if "2D" in name else 3
    transform = kind(ndim) if name in ("ScaleTransform", "TranslationTransform") else kind()
    transform.SetParameters((np.array(transform.GetParameters()) * 0.9 + 0.05).tolist())
    if name not in ("TranslationTransform",):
        transform.SetCenter([3.0, -2.0, 5.0][:ndim])
    sitk.WriteTransform(transform, str(tmp_path / f"a.{suffix}"))
    grid = Grid((9, 9, 9)[-ndim:], 1.0, unit="mm")
    back = rf.read_map(tmp_path / f"a.{suffix}", grid, grid)
    x = positions(grid, 20)
    assert np.allclose(back.to_moving(x), itk_points(transform, x, grid, grid), atol=1e-9)


ELASTIX = """// a comment
(Transform "{kind}")
(NumberOfParameters {n})
(TransformParameters {values})
(InitialTransformParametersFileName "{before}")
(HowToCombineTransforms "Compose")
(FixedImageDimension {ndim})
(MovingImageDimension {ndim})
(CenterOfRotationPoint {center})
(ComputeZYX "true")
"""


def write_elastix(
    path: Path, kind: str, values: list[float], center: list[float], before: str = "NoInitialTransform"
) -> Path:
    words = [" ".join(repr(v) for v in numbers) for numbers in (values, center)]
    text = ELASTIX.format(kind=kind, n=len(values), values=words[0], before=before, ndim=len(center), center=words[1])
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("kind", "values", "center", "oracle"),
    [
        ("EulerTransform", [0.3, 4.0, -2.0], [5.0, 6.0], "Euler2DTransform"),
        ("EulerTransform", [0.3, 0.1, -0.2, 4.0, -2.0, 1.0], [5.0, 6.0, 7.0], "Euler3DTransform"),
        ("SimilarityTransform", [1.2, 0.3, 4.0, -2.0], [5.0, 6.0], "Similarity2DTransform"),
        ("SimilarityTransform", [0.1, 0.2, 0.1, 4.0, -2.0, 1.0, 1.1], [5.0, 6.0, 7.0], "Similarity3DTransform"),
        ("AffineTransform", [1.1, 0.2, -0.1, 0.9, 4.0, -2.0], [5.0, 6.0], "AffineTransform"),
        ("TranslationTransform", [4.0, -2.0], [0.0, 0.0], "TranslationTransform"),
    ],
)
def test_elastix(kind: str, values: list[float], center: list[float], oracle: str, tmp_path: Path) -> None:
    ndim = len(center)
    first = write_elastix(
        tmp_path / "TransformParameters.0.txt", "TranslationTransform", [1.0, 2.0, 3.0][:ndim], [0.0] * ndim
    )
    path = write_elastix(tmp_path / "TransformParameters.1.txt", kind, values, center, f"/somewhere/else/{first.name}")
    transform = getattr(sitk, oracle)(*([ndim] if oracle[0] in "AT" else []))
    if oracle[0] != "T":
        transform.SetCenter(center)
    if oracle == "Euler3DTransform":
        transform.SetComputeZYX(True)
    transform.SetParameters(values)
    whole = sitk.CompositeTransform([transform, sitk.TranslationTransform(ndim, [1.0, 2.0, 3.0][:ndim])])
    grid = Grid((9, 9, 9)[-ndim:], 1.0, unit="mm")
    back = rf.read_map(path, grid, grid)
    x = positions(grid, 20)
    assert np.allclose(back.to_moving(x), itk_points(whole, x, grid, grid), atol=1e-9)


def test_elastix_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wanted an affine map for elastix"):
        rf.write_map(result_of(2, "px", "px"), tmp_path / "map.txt")
    grid = Grid((9, 9), unit="mm")
    path = write_elastix(tmp_path / "b.txt", "BSplineTransform", [0.0] * 6, [0.0, 0.0])
    with pytest.raises(ValueError, match=r"BSplineTransform, which bends.*-def all"):
        rf.read_map(path, grid, grid)
    loop = write_elastix(tmp_path / "c.txt", "TranslationTransform", [1.0, 2.0], [0.0, 0.0], "c.txt")
    with pytest.raises(ValueError, match="twice"):
        rf.read_map(loop, grid, grid)
    (tmp_path / "inner").mkdir()
    climbing = write_elastix(tmp_path / "inner" / "d.txt", "TranslationTransform", [1.0, 2.0], [0.0, 0.0], "../b.txt")
    with pytest.raises(ValueError, match=r"beside 'd\.txt'"):
        rf.read_map(climbing, grid, grid)
    added = tmp_path / "e.txt"
    added.write_text(
        write_elastix(tmp_path / "f.txt", "TranslationTransform", [1.0, 2.0], [0.0, 0.0])
        .read_text()
        .replace("Compose", "Add")
    )
    with pytest.raises(ValueError, match="'Add'"):
        rf.read_map(added, grid, grid)


# -------------------------------------------------------------------------------------------------------------- points


def test_points_of_a_regular_grid_and_given_ones(tmp_path: Path) -> None:
    result = result_of(2, "mm", "µm")
    for to in ("fixed", "moving"):
        rf.write_map(result, tmp_path / f"{to}.csv", to=to)  # type: ignore[arg-type]
        fixed, moving, units = rf.read_landmarks(tmp_path / f"{to}.csv")
        assert units == ("mm", "µm")
        assert len(fixed) > 500
        assert torch.equal(
            carried(result, to, fixed if to == "moving" else moving), moving if to == "moving" else fixed
        )
    table = tmp_path / "given.csv"
    table.write_text("id,y,x,type\na,0.001,0.002,T\nb,0.003,0.004,B\n")
    rf.write_map(result, tmp_path / "out.csv", points=rf.read_points(table, unit="mm"))
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == "fixed_y_mm,fixed_x_mm,moving_y_um,moving_x_um,id,type"
    assert [line.split(",")[-2:] for line in lines[1:]] == [["a", "T"], ["b", "B"]]
    with pytest.raises(ValueError, match="in mm with 2 components"):
        rf.write_map(result, tmp_path / "out2.csv", points=rf.PointSet(torch.zeros(1, 2), "µm"))
    with pytest.raises(ValueError, match="larger spacing"):
        rf.write_map(result, tmp_path / "out2.csv", spacing=1e-7)
    with pytest.raises(ValueError, match="which say nothing of what lies between"):
        rf.read_map(tmp_path / "out.csv", result.fixed_grid, result.moving_grid)


def test_geojson_counts_pixels_from_the_corner(tmp_path: Path) -> None:
    result = result_of(2, "px", "px")
    rf.write_map(result, tmp_path / "a.geojson", spacing=4.0)
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert len(features) > 10
    shapes = rf.read_shapes(tmp_path / "a.geojson")
    for i, feature in enumerate(features):
        at = feature["properties"]
        x = torch.tensor([at["fixed_y"], at["fixed_x"]], dtype=torch.float64)
        assert torch.allclose(result.to_moving(x), torch.tensor([at["moving_y"], at["moving_x"]], dtype=torch.float64))
        assert feature["geometry"]["coordinates"] == pytest.approx([at["moving_x"] + 0.5, at["moving_y"] + 0.5])
        assert shapes.coords[i].tolist() == pytest.approx([at["moving_y"], at["moving_x"]])
    with pytest.raises(ValueError, match="flat"):
        rf.write_map(result_of(3, "µm", "µm"), tmp_path / "b.geojson")


# ------------------------------------------------------------------------------------------------- nothing is believed

TFM = "#Insight Transform File V1.0\n#Transform 0\nTransform: {kind}\nParameters: {values}\nFixedParameters: {fixed}\n"
FIELD = "DisplacementFieldTransform_double_2_2"
GRID = Grid((9, 9), unit="mm")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello", "Insight Transform File"),
        ("#Insight Transform File V1.0\n", "wanted a transform, got none"),
        ("#Insight Transform File V1.0\nParameters: 1 2\n", "got the line"),
        ("#Insight Transform File V1.0\nTransform: AffineTransform_double_2_2\nParameters: 1 0 0 1 0", "cut short"),
        (TFM.format(kind="AffineTransform_double_2_2", values="1 0 0 1 0", fixed="0 0"), "wanted 6 parameters"),
        (TFM.format(kind="AffineTransform_double_2_2", values="1 0 0 1 0 x", fixed="0 0"), "wanted numbers"),
        (TFM.format(kind="AffineTransform_double_2_2", values="1 0 0 1 0 nan", fixed="0 0"), "NaN or inf"),
        (TFM.format(kind="AffineTransform_double_2_2", values="1 2 2 4 0 0", fixed="0 0"), "invertible"),
        (TFM.format(kind="AffineTransform_double_3_3", values="1 0 0 0 1 0 0 0 1 0 0 0", fixed="0 0 0"), "one of 3"),
        (TFM.format(kind="AffineTransform_double_4_4", values="1", fixed="0"), "2 or 3 dimensions"),
        (TFM.format(kind="BSplineTransform_double_2_2", values="1", fixed="0"), "which is neither"),
        (TFM.format(kind="Euler2DTransform_double_2_2", values="1 2", fixed="0 0"), "wanted the parameters of Euler2D"),
        (TFM.format(kind=FIELD, values="1 2", fixed="1000000 1000000 0 0 1 1 1 0 0 1"), "wanted 2000000000000 numbers"),
        (TFM.format(kind=FIELD, values="1 2", fixed="1.5 1 0 0 1 1 1 0 0 1"), "whole numbers"),
        (TFM.format(kind=FIELD, values="1 2", fixed="1 1 0 0 -1 1 1 0 0 1"), "positive spacing"),
        (TFM.format(kind=FIELD, values="1 2", fixed="1 1 0 0 1 1 1 1 1 1"), "right angles"),
        (TFM.format(kind=FIELD, values="1 2", fixed="1 1"), "size, origin, spacing and direction"),
        (TFM.format(kind=FIELD, values="1 inf", fixed="1 1 0 0 1 1 1 0 0 1"), "NaN or inf"),
        ("#Insight Transform File V1.0\nTransform: CompositeTransform_double_2_2\n", "none"),
        (
            "#Insight Transform File V1.0\n" + "Transform: CompositeTransform_double_2_2\n" * 2,
            "composite in a composite",
        ),
        ("#Insight Transform File V1.0\n" + "Transform: IdentityTransform_double_2_2\n" * 99, "at most 64"),
    ],
)
def test_bad_text_transforms(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.tfm").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        rf.read_map(tmp_path / "a.tfm", GRID, GRID)
    assert "a.tfm" in str(caught.value)


def hdf5(path: Path, change: Callable[[Any], None]) -> Path:
    affine = sitk.AffineTransform(2)
    sitk.WriteTransform(affine, str(path))
    with h5py.File(path, "r+") as file:
        change(file["TransformGroup/0"])
    return path


def _replace(name: str, **how: Any) -> Callable[[Any], None]:
    def change(group: Any) -> None:
        del group[name]
        group.create_dataset(name, **how)

    return change


def _outer(group: Any) -> None:
    del group["TransformParameters"]
    group["TransformParameters"] = h5py.ExternalLink("other.h5", "/secret")


def _elsewhere(group: Any) -> None:
    del group["TransformParameters"]
    group.create_dataset("TransformParameters", (6,), "<f8", external=[("/etc/hostname", 0, 48)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_replace("TransformParameters", shape=(1 << 40,), dtype="<f8", chunks=(1 << 16,)), "all of them written"),
        (_replace("TransformParameters", shape=(1 << 20,), dtype="<f8"), "all of them written"),
        (_replace("TransformParameters", data=np.full(6, np.nan)), "NaN or inf"),
        (_replace("TransformParameters", data=np.zeros(6)), "invertible"),
        (_replace("TransformParameters", data=np.zeros(3)), "wanted 6 parameters"),
        (_replace("TransformParameters", data=[b"abc"]), "wanted numbers"),
        (_replace("TransformType", data=[b"a", b"b"]), "one word"),
        (_outer, "got none"),
        (_elsewhere, "of another file"),
    ],
)
def test_bad_hdf5(change: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        rf.read_map(hdf5(tmp_path / "a.h5", change), GRID, GRID)


def test_a_truncated_hdf5_file(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "a.h5", lambda group: None)
    for size in (0, 100, path.stat().st_size // 2):
        (tmp_path / "b.h5").write_bytes(path.read_bytes()[:size])
        with pytest.raises(ValueError, match="sound HDF5"):
            rf.read_map(tmp_path / "b.h5", GRID, GRID)


def test_bad_mat_files(tmp_path: Path) -> None:
    sitk.WriteTransform(sitk.AffineTransform(2), str(tmp_path / "a.mat"))
    good = (tmp_path / "a.mat").read_bytes()
    huge = struct.pack("<5i", 0, 1 << 30, 1 << 30, 0, 27) + good[20:]
    for data, message in (
        (good[:30], "cut short"),
        (huge, "cut short"),
        (b"", "fixed parameters"),
        (b"x" * 99, "format 4"),
    ):
        (tmp_path / "b.mat").write_bytes(data)
        with pytest.raises(ValueError, match=message):
            rf.read_map(tmp_path / "b.mat", GRID, GRID)


def nifti(tmp_path: Path, **fields: tuple[str, int, Any]) -> Path:
    sitk.WriteImage(smooth_field(2, np.eye(2)), str(tmp_path / "good.nii"))
    data = bytearray((tmp_path / "good.nii").read_bytes())
    for form, at, value in fields.values():
        struct.pack_into(form, data, at, value)
    (tmp_path / "a.nii").write_bytes(data)
    return tmp_path / "a.nii"


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (("<h", 42, 32767), "cut short"),
        (("<h", 42, -5), "displacement field"),
        (("<h", 40, 3), "displacement field"),
        (("<h", 68, 0), "intent 0"),
        (("<B", 123, 3), "in mm or without a unit"),
        (("<h", 72, 8), "32 or 64 bits"),
        (("<f", 108, 1e9), "32 or 64 bits"),
        (("<d", 360, math.nan), "NaN or inf"),
        (("<i", 344, 0), "NIfTI-1"),
    ],
)
def test_bad_fields(field: tuple[str, int, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        rf.read_map(nifti(tmp_path, x=field), GRID, GRID)


def test_huge_and_truncated_fields(tmp_path: Path) -> None:
    huge = nifti(tmp_path, x=("<h", 42, 32767), y=("<h", 44, 32767))
    with pytest.raises(ValueError, match="at most"):
        rf.read_map(huge, GRID, GRID)
    whole = gzip.compress((tmp_path / "good.nii").read_bytes())
    (tmp_path / "b.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut short"):
        rf.read_map(tmp_path / "b.nii.gz", GRID, GRID)
    with pytest.raises(ValueError, match="one of 2"):
        rf.read_map(tmp_path / "good.nii", Grid((4, 4, 4), unit="mm"), Grid((4, 4, 4), unit="mm"))
    pixels = nifti(tmp_path, x=("<B", 123, 0))
    with pytest.raises(ValueError, match="without a unit"):
        rf.read_map(pixels, GRID, GRID)


def npz(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    rf.write_map(result_of(2, "px", "px"), path, overwrite=True)
    with np.load(path) as arrays:
        found = dict(arrays)
    change(found)
    np.savez(path, **found)
    return path


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format", np.array(2), "upgrade regframe"),
        ("axes", np.array(["x", "y"]), "wanted the axes"),
        ("velocity", np.full((1, 2, 2, 2), np.nan, dtype=np.float32), "NaN or inf"),
        ("velocity", np.zeros((1, 2, 5, 2)), "wanted a velocity"),
        ("n_steps", np.array(1 << 40), "steps of the flow"),
        ("after", np.zeros((3, 3)), "last row"),
        ("after", np.diag([1.0, 0.0, 1.0]), "invertible"),
        ("after", np.eye(4), "of shape"),
        ("fixed_shape", np.array([-1, 5]), "at least one pixel"),
        ("fixed_spacing", np.array([0.0, 1.0]), "positive spacing"),
        ("fixed_unit", np.array("parsec"), "length unit"),
    ],
)
def test_bad_npz(name: str, value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        rf.read_map(npz(tmp_path / "a.npz", lambda arrays: arrays.update({name: value})))


def test_npz_declares_what_it_does_not_hold(tmp_path: Path) -> None:
    good = npz(tmp_path / "a.npz", lambda arrays: None)

    def rewritten(member: str, data: bytes | None) -> Path:
        with zipfile.ZipFile(good) as old, zipfile.ZipFile(tmp_path / "b.npz", "w") as new:
            for entry in old.infolist():
                if entry.filename != member:
                    new.writestr(entry.filename, old.read(entry))
            if data is not None:
                new.writestr(member, data)
        return tmp_path / "b.npz"

    def header(text: str) -> bytes:
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()

    pickled = io.BytesIO()
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    for data, message in (
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 999999999, 999999999)}"), "at most"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 50, 50)}"), "as many as it declares"),
        (header("__import__('os').getcwd()"), "damaged"),
        (pickled.getvalue(), "numbers or text"),
        (b"nonsense", "format 1.0"),
        (None, "wanted"),
    ):
        with pytest.raises(ValueError, match=message):
            rf.read_map(rewritten("velocity.npy" if data else "after.npy", data))
    (tmp_path / "c.npz").write_bytes(good.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"sound \.npz"):
        rf.read_map(tmp_path / "c.npz")


def test_several_fields_on_nodes_of_their_own_are_followed_one_after_the_other(tmp_path: Path) -> None:
    fields = [sitk.DisplacementFieldTransform(smooth_field(2, np.eye(2), c)) for c in (0.0, 1.0)]
    composite = sitk.CompositeTransform(fields)
    sitk.WriteTransform(composite, str(tmp_path / "a.h5"))
    found = rf.read_map(tmp_path / "a.h5", GRID, GRID)
    at = np.random.default_rng(0).uniform((2.0, 12.0), (18.0, 24.0), size=(50, 2))  # y, x; well inside both
    expected = [composite.TransformPoint(point)[::-1] for point in at[:, ::-1].tolist()]
    np.testing.assert_allclose(found.to_moving(torch.from_numpy(at)), expected, atol=1e-6)


def test_without_the_extra_the_line_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = result_of(2, "px", "px")
    result.save(tmp_path / "run.ome.zarr")
    monkeypatch.setattr(itk.importlib.util, "find_spec", lambda name: None)
    for name in ("map.h5", "map.nii.gz"):
        with pytest.raises(ImportError, match=r"pip install 'regframe\[itk\]'"):
            rf.write_map(result, tmp_path / name)
    done = CliRunner().invoke(main, ["export", str(tmp_path / "run.ome.zarr"), "-o", str(tmp_path / "map.h5")])
    assert done.exit_code == 2
    assert "regframe[itk]" in done.output
    rf.write_map(result, tmp_path / "map.npz")


# ---------------------------------------------------------------------------------------------------------- the commands


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = result_of(2, "px", "px")
    path = tmp_path / "map.h5"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="--overwrite"):
        rf.write_map(result, path)
    monkeypatch.setattr(itk, "write_transform", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        rf.write_map(result, path, overwrite=True)
    assert path.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["map.h5"]


def picture(path: Path, shape: tuple[int, int]) -> Path:
    from PIL import Image

    y, x = np.mgrid[: shape[0], : shape[1]]
    Image.fromarray((128 + 60 * np.sin(x / 5) + 60 * np.cos(y / 4)).astype(np.uint8)).save(path)
    return path


def test_out_of_one_folder_and_into_another(tmp_path: Path) -> None:
    """``export``, ``import`` and then ``apply``, ``info``, ``evaluate``: the imported map goes through the same door."""
    run = CliRunner().invoke
    result = fake_result(Grid((60, 64)), Grid((62, 66)), matrix(2, 1.0, 0.05))
    result.save(tmp_path / "run.ome.zarr")
    out = tmp_path / "map.h5"
    done = run(main, ["export", str(tmp_path / "run.ome.zarr"), "--format", "itk", "-o", str(out), "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["units"] == ["px", "px"]
    assert said["resample"] == {"size": [64, 60], "spacing": [1, 1], "origin": [0, 0]}
    fixed, moving = picture(tmp_path / "f.png", (60, 64)), picture(tmp_path / "m.png", (62, 66))
    sides = ["--fixed", str(fixed), "--moving", str(moving)]
    done = run(main, ["import", str(out), "-o", str(tmp_path / "taken"), *sides])
    assert done.exit_code == 0, done.output
    assert outputs.is_output(tmp_path / "taken")
    assert (tmp_path / "taken" / "report.html").is_file()
    x = positions(result.fixed_grid)
    again = rf.load(tmp_path / "taken")
    assert again.verdict == "warn"
    assert in_pixels(again.to_moving(x), result.to_moving(x), result.moving_grid) < 1e-9
    (tmp_path / "p.csv").write_text("x,y\n20,30\n40,11\n")
    for source in ("taken", "run.ome.zarr"):
        files = [str(tmp_path / name) for name in (source, "p.csv", f"{source}.csv")]
        done = run(main, ["apply", "points", *files[:2], "--to", "fixed", "-o", files[2]])
        assert done.exit_code == 0, done.output
    assert np.allclose(*(rf.read_points(tmp_path / f"{n}.csv").coords for n in ("taken", "run.ome.zarr")), atol=1e-6)
    taken = str(tmp_path / "taken")
    draw = ["apply", "image", taken, str(moving), "--to", "fixed", "-o", str(tmp_path / "w.png")]
    for command in (["info", taken], ["report", taken], draw):
        done = run(main, command)
        assert done.exit_code == 0, done.output
    assert run(main, ["import", str(out), "-o", str(tmp_path / "taken"), *sides]).exit_code == 2
    for arguments, words in (
        ([str(out), "-o", str(tmp_path / "n1"), "--fixed", str(fixed)], "wanted both"),
        ([str(out), "-o", str(tmp_path / "n2")], "canvases of both images"),
        ([str(tmp_path / "none.h5"), "-o", str(tmp_path / "n3"), *sides], "does not exist"),
        ([str(fixed), "-o", str(tmp_path / "n4"), *sides], "whose suffix says none"),
        ([str(out), "-o", str(tmp_path / "n5"), *sides, "--unit", "parsec"], "length unit"),
    ):
        done = run(main, ["import", *arguments])
        assert done.exit_code == 2, done.output
        assert words in done.output
        assert not Path(arguments[2]).exists()


def test_npz_needs_no_image_and_a_wrong_direction_fails(tmp_path: Path) -> None:
    run = CliRunner().invoke
    result = fake_result(Grid((60, 64)), Grid((62, 66)), matrix(2, 1.0, 0.05))
    rf.write_map(result, tmp_path / "map.npz")
    done = run(main, ["import", str(tmp_path / "map.npz"), "-o", str(tmp_path / "taken")])
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "taken" / "report.html").exists()
    assert rf.load(tmp_path / "taken").metrics["imported"]["format"] == "npz"
    far = sitk.TranslationTransform(2, [500.0, 0.0])
    sitk.WriteTransform(far, str(tmp_path / "far.tfm"))
    back = rf.read_map(tmp_path / "far.tfm", result.fixed_grid, result.moving_grid)
    assert back.verdict == "fail"
    assert "hardly overlap" in " ".join(back.reasons)


def test_a_fit_of_real_images(data_dir: Path, tmp_path: Path) -> None:
    """Two looks at one section, coarse and quick: SimpleITK draws what regframe draws."""
    folder = data_dir / "01_seed_cells"
    fixed, moving = (rf.open(folder / name, spacing=0.5, unit="µm") for name in ("cells2_crop.jpg", "cells.jpg"))
    from regframe.config import Config

    settings = {"transform": "lddmm", "optimizer": {"max_iter": 15}, "pyramid": {"finest": 1}}
    result = rf.register(fixed, moving, config=Config.model_validate(settings))
    x = positions(result.fixed_grid)
    rf.write_map(result, tmp_path / "map.h5")
    found = itk_points(sitk.ReadTransform(str(tmp_path / "map.h5")), x, result.fixed_grid, result.moving_grid)
    assert in_pixels(found, result.to_moving(x), result.moving_grid) < BAR


def test_the_page_names_every_format_and_array(root: Path, tmp_path: Path) -> None:
    page = (root / "docs" / "interchange.md").read_text(encoding="utf-8")
    for built_in in BUILT_IN:
        assert f"`{built_in.name}`" in page
    rf.write_map(result_of(2, "px", "px"), tmp_path / "map.npz")
    with np.load(tmp_path / "map.npz") as arrays:
        listed = {*arrays} - {n for n in arrays if n.endswith(("_shape", "_spacing", "_origin", "_unit"))}
    assert all(f"`{name}`" in page for name in listed)


# ----------------------------------------------------------------------------------------------------- formats of a stranger


class Plain(rf.MapFormat):
    """.plain: an affine map as text.

    Args:
        digits: after the point.
    """

    name = "plain"
    suffixes = (".plain",)

    def __init__(self, digits: int = 17) -> None:
        self.digits = digits

    def write(self, result: Any, path: Path, *, to: Any, unit: str, tolerance: float) -> rf.Written:
        np.savetxt(path, result.affine.matrix.numpy(), fmt=f"%.{self.digits}g")
        return rf.Written(self.name, (path,), "fixed", (result.fixed_grid.unit, result.moving_grid.unit), 0.0)

    def read(self, path: Path, fixed: Grid | None, moving: Grid | None, *, to: Any, unit: str) -> rf.Transform:
        assert fixed is not None
        assert moving is not None
        return rf.Affine(torch.from_numpy(np.loadtxt(path)), moving.unit, fixed.unit)


class Silent(rf.MapFormat):
    """.silent: nothing."""

    name = "silent"
    suffixes = (".silent",)


def test_a_format_of_a_stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strangers = tuple(plugins.Entry("format", cls.name, cls, "stranger 1 (s)") for cls in (Plain, Silent))
    known = plugins.entries
    monkeypatch.setattr(plugins, "entries", lambda kind: (*known(kind), *(strangers if kind == "format" else ())))
    result = result_of(2, "px", "px", bend=0)
    written = rf.write_map(result, tmp_path / "a.plain")
    assert written.files == (tmp_path / "a.plain",)
    assert written.resample["size"] == [
        20,
        18,
    ]  # of the moving side, which images are drawn on with a map to the fixed one
    back = rf.read_map(tmp_path / "a.plain", result.fixed_grid, result.moving_grid)
    x = positions(result.moving_grid)
    assert torch.equal(back.to_fixed(x), result.to_fixed(x))
    assert back.verdict == "warn"
    assert back.metrics["imported"]["format"] == "plain"
    rf.write_map(result, tmp_path / "a.plain", digits=2, overwrite=True)
    again = rf.read_map(tmp_path / "a.plain", result.fixed_grid, result.moving_grid)
    assert not torch.equal(again.to_fixed(x), result.to_fixed(x))
    with pytest.raises(ValueError, match="wanted digits with plain alone, got npz; leave digits out"):
        rf.write_map(result, tmp_path / "a.npz", digits=2)
    with pytest.raises(ValueError, match=r"options of the format plain \(digits\), got colour"):
        rf.write_map(result, tmp_path / "a.plain", colour=2)
    with pytest.raises(ValueError, match="silent, which is only read"):
        rf.write_map(result, tmp_path / "new" / "a.silent")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.plain"]
    (tmp_path / "a.silent").write_text("")
    with pytest.raises(ValueError, match="silent, which is only written"):
        rf.read_map(tmp_path / "a.silent", result.fixed_grid, result.moving_grid)


def test_the_table_says_what_the_classes_say() -> None:
    for built_in in BUILT_IN:
        cls = built_in.load()
        assert cls.name == built_in.name
        assert (cls.__doc__ or "").partition("\n")[0] == f"{built_in.summary}."
        assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in cls.suffixes)
    assert len({built_in.name for built_in in BUILT_IN}) == len(BUILT_IN)


def test_the_help_needs_no_torch(root: Path) -> None:
    code = (
        "import sys\nfrom regframe.cli import main\n"
        "try:\n    main(['export', '--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert found.returncode == 0, found.stderr
    for built_in in BUILT_IN:
        assert f"{built_in.name:<8} {built_in.summary}" in found.stdout


def test_which_format_a_path_is_of(tmp_path: Path) -> None:
    for name, wanted in (
        ("a.H5", "itk"), ("a.tfm", "itk"), ("a.mat", "itk"), ("a.nii.gz", "nifti"), ("a.txt", "elastix"), ("a.npz", "npz"),
        ("a.ome.zarr", "ngff"), ("a.csv.gz", "csv"), ("a.geojson", "geojson"),
    ):  # fmt: skip
        assert exchange.format_of(tmp_path / name).name == wanted
    (tmp_path / "a.txt").write_text(TFM.format(kind="IdentityTransform_double_2_2", values="", fixed=""))
    assert exchange.format_of(tmp_path / "a.txt").name == "itk"
    (tmp_path / "run_0GenericAffine.mat").write_bytes(b"")
    assert exchange.format_of(tmp_path / "run_").name == "ants"
    with pytest.raises(ValueError, match="whose suffix says none"):
        exchange.format_of(tmp_path / "b")
    with pytest.raises(ValueError, match="wanted the name of a format, got 'tiff'; there is ants, "):
        exchange.format_of(tmp_path / "b", "tiff")


def test_what_a_map_does_not_replace(tmp_path: Path) -> None:
    bent, straight = result_of(2, "px", "px"), result_of(2, "px", "px", bend=0)
    rf.write_map(bent, tmp_path / "run_", "ants")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match=r"run_1Warp\.nii\.gz exists and is of an earlier map"):
        rf.write_map(straight, tmp_path / "run_", "ants", overwrite=True)
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    image = rf.Image(torch.rand(1, 9, 9), Grid((9, 9)))
    rf.adapter("image").save(image, tmp_path / "image.ome.zarr")
    for name in (None, "csv"):
        with pytest.raises(FileExistsError, match="not \\(only\\) a regframe store"):
            rf.write_map(straight, tmp_path / "image.ome.zarr", name, overwrite=True)
    assert rf.open(tmp_path / "image.ome.zarr").grid.shape == (9, 9)  # type: ignore[union-attr]


def test_options_of_a_format_on_the_command_line(tmp_path: Path) -> None:
    run = CliRunner().invoke
    fake_result(Grid((60, 64)), Grid((62, 66))).save(tmp_path / "run.ome.zarr")
    export = ["export", str(tmp_path / "run.ome.zarr"), "-o"]
    for name, option in (("a.csv", ["--spacing", "8"]), ("b.csv", ["--format-set", "spacing=8"])):
        done = run(main, [*export, str(tmp_path / name), *option])
        assert done.exit_code == 0, done.output
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    for arguments, words in (
        ([str(tmp_path / "c.h5"), "--spacing", "8"], "wanted spacing with csv or geojson alone, got itk"),
        ([str(tmp_path / "c.h5"), "--format", "tiff"], "wanted the name of a format, got 'tiff'; there is ants"),
        ([str(tmp_path / "c.csv"), "--spacing", "-1"], "wanted a positive spacing"),
        ([str(tmp_path / "c.csv"), "--format-set", "spacing=wide"], "wanted a positive spacing"),
        ([str(tmp_path / "c.csv"), "--format-set", "points=a.csv"], "--points FILE"),
        ([str(tmp_path / "c.csv"), "--format-set", "to=fixed"], "got to, which every one has"),
        ([str(tmp_path / "c.zarr"), "--format-set", "systems=atlas"], "a fixed and a moving coordinate system"),
    ):
        done = run(main, [*export, *arguments])
        assert done.exit_code == 2, done.output
        assert words in done.output
