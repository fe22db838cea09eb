"""The example packages through the command line, a batch on two workers and a stack: meshes, a start, a format, slides."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click.testing
import numpy as np
import pytest
import torch
import yaml
from scipy.ndimage import gaussian_filter, zoom

import regframe as rf
from regframe import plugins
from regframe.cli import main

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("example_mesh", "example_start", "example_landmarks_format", "example_slide")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The four packages, as if installed, here and in processes that are started."""
    folder = tmp_path_factory.mktemp("installed")
    for name in PACKAGES:
        info = folder / f"{name}-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 0.1.0\n")
        project = tomllib.loads((ROOT / "plugins" / name / "pyproject.toml").read_text())["project"]
        lines = [
            "\n".join([f"[{group}]", *(f"{word} = {place}" for word, place in points.items())])
            for group, points in project["entry-points"].items()
        ]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    places = [str(folder), *(str(ROOT / "plugins" / name / "src") for name in PACKAGES)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", ":".join([*places, *sys.path]))
        for place in places:
            patch.syspath_prepend(place)
        plugins.refresh()
        yield
    plugins.refresh()


def command(*arguments: object, code: int = 0) -> str:
    done = click.testing.CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == code, (done.exit_code, done.stdout, done.stderr)
    return done.stdout + done.stderr


def texture(shape: tuple[int, int], seed: int, sigma: float = 4.0) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    field = gaussian_filter(np.random.default_rng(seed).random(shape), sigma)
    made: np.ndarray[tuple[int, int], np.dtype[np.uint8]] = (255 * (field - field.min()) / np.ptp(field)).astype(
        np.uint8
    )
    return made


def meshes(folder: Path, seed: int, model: str) -> rf.Known:
    from example_mesh import MeshAdapter, known_pair

    known = known_pair(4, seed, model)
    MeshAdapter("µm").save(known.fixed, folder / "a.off")
    MeshAdapter("µm").save(known.moving, folder / "b.obj")
    return known


def slides(folder: Path, size: int, shift: int = 0) -> list[Path]:
    """Two slides of one tissue, the second of which begins ``shift`` pixels further in along y, twice as far along x."""
    from example_slide import write

    small = texture((size // 16 + 32, size // 16 + 32), 0, 2.0)
    paths = []
    for name, by in (("fixed", 0), ("moving", shift)):
        place = folder / f"{name}.rawslide.json"
        whole = np.empty((1, size, size), dtype=np.uint8)
        for top in range(0, size, 1024):  # a strip at a time
            rows = min(1024, size - top)
            strip = np.repeat(np.repeat(small[(top + by) // 16 : (top + by + rows) // 16 + 1], 16, 0), 16, 1)
            whole[0, top : top + rows] = strip[(top + by) % 16 :][:rows, 2 * by : 2 * by + size]
        levels = [whole]
        while max(levels[-1].shape) > 1024:
            levels.append(np.ascontiguousarray(levels[-1][:, ::2, ::2]))
        paths.append(write(place, levels, 0.5))
    return paths


def test_meshes_by_the_command(packages: None, tmp_path: Path) -> None:
    """Registered, within 0.5 % of the diagonal, by the richest model where none is named; carried with their faces."""
    known = meshes(tmp_path, 41, "affine")
    sets = ("--fixed-set", "unit=um", "--moving-set", "unit=um")
    said = command("register", tmp_path / "a.off", tmp_path / "b.obj", "-o", tmp_path / "run", *sets)
    assert "Result(pass, affine" in said
    assert yaml.safe_load((tmp_path / "run" / "config.resolved.yaml").read_text())["transform"] == "affine"
    assert isinstance(known.fixed, rf.PointSet)
    assert isinstance(known.moving, rf.PointSet)
    at = known.moving.coords
    away = (rf.load(tmp_path / "run").to_fixed(at) - known.transform.points(at)).norm(dim=1).max()
    assert float(away / (known.fixed.coords.amax(0) - known.fixed.coords.amin(0)).norm()) < 0.005
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "<h2>Both surfaces</h2>" in page
    assert "From example-mesh 0.1.0." in page
    adapter = ("--adapter", "mesh", "--adapter-set", "unit=um")
    command(
        "apply", "points", tmp_path / "run", tmp_path / "b.obj", "-o", tmp_path / "c.off", "--to", "fixed", *adapter
    )
    carried = rf.open(tmp_path / "c.off")
    assert torch.equal(carried.faces, rf.open(tmp_path / "b.obj").faces)  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["rigid", "similarity", "affine"])
@pytest.mark.parametrize("seed", range(50, 54))
def test_rough_and_partial_meshes(packages: None, model: str, seed: int) -> None:
    """Seeds that nothing was set on: another triangulation, 15 % cut off, half of the vertices rough."""
    from example_mesh import known_pair

    known = known_pair(4, seed, model)
    assert isinstance(known.fixed, rf.PointSet)
    assert isinstance(known.moving, rf.PointSet)
    result = rf.register(known.fixed, known.moving, transform=model)
    at = known.moving.coords
    away = (result.to_fixed(at) - known.transform.points(at)).norm(dim=1).max()
    assert float(away / (known.fixed.coords.amax(0) - known.fixed.coords.amin(0)).norm()) < 0.005
    assert result.verdict == "pass"


def test_another_model_than_a_solver_has_is_refused(packages: None, tmp_path: Path) -> None:
    meshes(tmp_path, 41, "rigid")
    said = command(
        "register", tmp_path / "a.off", tmp_path / "b.obj", "-o", tmp_path / "run", "--transform", "lddmm", code=2
    )
    assert "wanted transform rigid or similarity or affine for this kind of pair (meshes), got 'lddmm'" in said


def turned_pair(folder: Path) -> torch.Tensor:
    """Two pictures, and a viewer's file with the map between them; returns that map, moving → fixed, (y, x)."""
    moving = texture((90, 120), 3)
    rf.adapter("image").save(rf.Image.from_array(moving, "yx"), folder / "moving.tif")
    rf.adapter("image").save(rf.Image.from_array(np.rot90(moving).copy(), "yx"), folder / "fixed.tif")
    # x, y → y, 120 - x in pixels counted from the corner
    (folder / "viewer.json").write_text('{"m00": 0, "m01": 1, "m02": 0, "m10": -1, "m11": 0, "m12": 120}')
    return torch.tensor([[0, -1, 119.0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)


def test_a_start_and_a_format_by_the_command(packages: None, tmp_path: Path) -> None:
    known = turned_pair(tmp_path)
    sides = (tmp_path / "fixed.tif", tmp_path / "moving.tif")
    start = ("--init", "viewer_matrix", "--init-set", f"path={tmp_path / 'viewer.json'}", "--init-set", "to=fixed")
    command("register", *sides, "-o", tmp_path / "run", "--transform", "similarity", *start)
    result = rf.load(tmp_path / "run")
    assert float((result.affine.matrix - known).abs().max()) < 0.1
    settings = yaml.safe_load((tmp_path / "run" / "config.resolved.yaml").read_text())
    assert settings["init"] == "viewer_matrix"
    assert settings["init_options"] == {"path": str(tmp_path / "viewer.json"), "to": "fixed"}

    command("export", tmp_path / "run", "-o", tmp_path / "map.bigwarp.csv")
    assert (tmp_path / "map.bigwarp.csv").read_text().startswith('"Pt-0","true",')  # and not regframe's own csv
    files = ("--fixed", sides[0], "--moving", sides[1])
    command("import", tmp_path / "map.bigwarp.csv", *files, "-o", tmp_path / "taken")
    at = result.moving_grid.corners()
    assert torch.allclose(rf.load(tmp_path / "taken").to_fixed(at), result.to_fixed(at), atol=1e-6)


def memory(field: str) -> float:
    """MiB of this process: ``VmRSS`` or ``VmHWM``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def carried_slide(folder: Path, size: int, shift: int, out: str = "out.ome.zarr") -> float:
    """MiB more than before that it takes to register two slides and carry one at its finest level; the map is checked."""
    fixed, moving = slides(folder, size, shift)
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("wanted /proc to measure memory by")
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    command("register", fixed, moving, "-o", folder / "run", "--transform", "rigid")
    command("apply", "image", folder / "run", moving, "-o", folder / out, "--to", "fixed", "--level", "0",
            "--workers", "1")  # fmt: skip
    more = memory("VmHWM") - before
    result = rf.load(folder / "run")
    away = result.to_fixed(torch.tensor([[0.0, 0.0]])) - torch.tensor([[0.5 * shift, 1.0 * shift]])
    assert float(away.norm()) < 0.5 * size / 1000
    pyramid = rf.open_pyramid(folder / out)
    assert pyramid is not None
    assert pyramid.levels[0].grid.shape == (size, size)
    print(f"{size} px to {out}: {more:.0f} MiB more than before")
    return more


@pytest.mark.parametrize("out", ["out.ome.zarr", "out.rawslide"])
def test_a_slide_of_3000_px(packages: None, tmp_path: Path, out: str) -> None:
    assert carried_slide(tmp_path, 3008, 80, out) < 700


@pytest.mark.slow
@pytest.mark.parametrize("out", ["out.ome.zarr", "out.rawslide"])
def test_a_slide_of_12288_px(packages: None, tmp_path: Path, out: str) -> None:
    """The bar: 700 MiB more than before."""
    assert carried_slide(tmp_path, 12288, 160, out) < 700


@pytest.mark.slow
def test_a_batch_on_two_workers(packages: None, tmp_path: Path) -> None:
    """Each kind of pair is a job; workers find the packages by themselves, and make the shards of a slide together."""
    pytest.importorskip("distributed")
    meshes(tmp_path, 42, "rigid")
    slides(tmp_path, 4352, 64)
    turned_pair(tmp_path)
    rows = [
        "id,fixed,moving,set,apply_image,apply_image_level",
        "mesh,a.off,b.obj,transform=similarity,,",
        "slide,fixed.rawslide.json,moving.rawslide.json,transform=rigid,moving.rawslide.json,0",
        f"start,fixed.tif,moving.tif,transform=similarity; init=viewer_matrix; init_options.path={tmp_path / 'viewer.json'}; "
        "init_options.to=fixed,,",
    ]
    (tmp_path / "jobs.csv").write_text("\n".join(rows) + "\n")
    command("batch", tmp_path / "jobs.csv", "-o", tmp_path / "out", "--workers", "2", "--threads", "1")
    for name in ("mesh", "slide", "start"):
        assert json.loads((tmp_path / "out" / name / "metrics.json").read_text())["verdict"] in ("pass", "warn")
    log = (tmp_path / "out" / "slide" / "job.log").read_text()
    assert re.search(r"10 shards on Dask at \S+, 2 workers", log), log
    carried = (tmp_path / "out" / "slide", tmp_path / "moving.rawslide.json", "--to", "fixed", "--level", "0")
    command("apply", "image", *carried[:2], "-o", tmp_path / "alone.ome.zarr", *carried[2:], "--workers", "1")
    (applied,) = (tmp_path / "out" / "slide" / "applied").iterdir()
    alone, spread = (rf.open(path, level=0) for path in (tmp_path / "alone.ome.zarr", applied))
    assert isinstance(alone, rf.Image)
    assert isinstance(spread, rf.Image)
    assert torch.equal(alone.data, spread.data)
    command("export", tmp_path / "out" / "start", "-o", tmp_path / "map.bigwarp.csv")
    assert (tmp_path / "map.bigwarp.csv").read_text().startswith('"Pt-0","true",')


@pytest.mark.slow
def test_the_own_format_of_a_slide_written_by_two_workers(packages: None, tmp_path: Path) -> None:
    """Shards are computed on the workers of a running cluster; what is written is what one process writes."""
    distributed = pytest.importorskip("distributed")
    fixed, moving = slides(tmp_path, 4352, 64)
    command("register", fixed, moving, "-o", tmp_path / "run", "--transform", "rigid")
    line = ("apply", "image", tmp_path / "run", moving, "--to", "fixed", "--level", "0", "-o")
    command(*line, tmp_path / "alone.rawslide", "--workers", "1")
    local = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "memory_limit": 0, "threads_per_worker": 1}
    with distributed.LocalCluster(n_workers=2, silence_logs=50, **local) as cluster:
        said = command(*line, tmp_path / "spread.rawslide", "--scheduler", cluster.scheduler_address)
    assert "2 workers" in said
    files = [
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        for name in ("alone.rawslide", "spread.rawslide")
    ]
    assert len(files[0]) > 1
    assert files[0] == files[1]


@pytest.mark.slow
def test_a_stack_of_slides(packages: None, tmp_path: Path) -> None:
    from example_slide import write

    whole = zoom(texture((80, 80), 5, 3.0), 4, order=1)
    for k in range(3):
        fine = np.roll(whole, (6 * k, -4 * k), (0, 1))[None]
        write(tmp_path / f"s{k}.rawslide.json", [fine, fine[:, ::2, ::2]], 2.0)
    paths = sorted(tmp_path.glob("*.rawslide.json"))
    command("stack", *paths, "-o", tmp_path / "out", "--spacing-z", "20", "--order", "given")
    sections = sorted((tmp_path / "out" / "sections").iterdir())
    assert len(sections) == 3
    command("export", sections[0], "-o", tmp_path / "map.bigwarp.csv")
    assert (tmp_path / "map.bigwarp.csv").read_text().startswith('"Pt-0","true",')
