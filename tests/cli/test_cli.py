"""The commands: what they write, what they print where, how they end. Registration itself is a made-up result here."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import PIL.Image
import pytest
import tifffile
import torch
import yaml
import zarr
from fake_result import fake_result

import regframe
from regframe.cli import main
from regframe.contracts import Progress
from regframe.data import Grid, Image, PointSet, Pyramid
from regframe.display.bars import Bars
from regframe.io import outputs
from regframe.report import results
from regframe.result import Result
from regframe.slides import job as slides_job
from regframe.slides import levels, warp
from regframe.slides.place import place

FILES = {"transform.ome.zarr", "metrics.json", "config.resolved.yaml", "log.jsonl", "report.html"}


def run(*args: object, code: int = 0) -> click.testing.Result:
    outcome = click.testing.CliRunner().invoke(main, [str(a) for a in args])
    assert outcome.exit_code == code, (outcome.exit_code, outcome.stdout, outcome.stderr, outcome.exception)
    return outcome


def picture(path: Path, height: int, width: int, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return picture(tmp_path / "fixed.png", 60, 70), picture(tmp_path / "moving.png", 64, 50, seed=1)


class Fake:
    """Stands for `regframe.register` and remembers what it was given."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.verdict = "pass"
        self.raises: BaseException | None = None

    def __call__(self, fixed: Any, moving: Any, **kwargs: Any) -> Result:
        self.calls.append({"fixed": fixed, "moving": moving, **kwargs})
        if self.raises is not None:
            raise self.raises
        for level in (1, 0):
            for i in range(3):
                kwargs["progress"](Progress("lddmm", i, 10, level, 2, 1.0 / (i + 1)))
        return fake_result(fixed.grid, moving.grid, bend=0.3, verdict=self.verdict)


@pytest.fixture(autouse=True)
def quick_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests here only ask that the report is written; those that use ``real_report`` get it."""
    if "real_report" not in request.fixturenames:
        monkeypatch.setattr("regframe.report.results.write", lambda *args: Path(args[3]).write_text("<html>"))


@pytest.fixture
def real_report() -> None:
    """Asks for the report as it is."""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    stand_in = Fake()
    monkeypatch.setattr(regframe, "register", stand_in, raising=False)
    return stand_in


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Result]:
    fixed, moving = Grid((60, 70)), Grid((64, 50))
    turn = torch.tensor([[0.96, -0.2, 9.0], [0.2, 0.96, -3.0], [0, 0, 1]], dtype=torch.float64)
    result = fake_result(fixed, moving, turn, bend=0.5, pose_margin=0.4)
    blank = [Image(torch.rand((1, *g.shape)), g) for g in (fixed, moving)]
    results.write_run(tmp_path / "run", result, (blank[0], blank[1]), {})
    return tmp_path / "run", result


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


# ---- the group ----------------------------------------------------------------------------------------------------


def test_help_needs_no_torch(root: Path) -> None:
    code = (
        "import sys\nfrom regframe.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'matplotlib', 'zarr', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert found.returncode == 0, found.stderr
    for command in ("register", "apply", "evaluate", "batch", "report", "info", "plugins", "doctor", "demo"):
        assert command in found.stdout


@pytest.mark.parametrize(
    "command",
    ["register", "apply image", "apply points", "apply shapes", "evaluate", "batch", "info", "plugins", "demo"],
)
def test_every_command_has_help(command: str) -> None:
    assert "Usage" in run(*command.split(), "--help").stdout


def test_a_defect_is_one_line_and_exit_code_1(pair: tuple[Path, Path], tmp_path: Path, fake: Fake) -> None:
    fake.raises = RuntimeError("the third\nkind")
    outcome = run("register", *pair, "-o", tmp_path / "out", code=1)
    assert "Defect: RuntimeError: the third kind" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert "Traceback" in run("register", *pair, "-o", tmp_path / "out", "-v", code=1).stderr
    assert not (tmp_path / "out").exists()
    assert not leftovers(tmp_path)


def test_interruption_is_clean(pair: tuple[Path, Path], tmp_path: Path, fake: Fake) -> None:
    fake.raises = KeyboardInterrupt()
    outcome = run("register", *pair, "-o", tmp_path / "out", code=130)
    assert "interrupted" in outcome.stderr
    assert not (tmp_path / "out").exists()
    assert not leftovers(tmp_path)


# ---- register -----------------------------------------------------------------------------------------------------


def test_register_writes_the_folder(pair: tuple[Path, Path], tmp_path: Path, fake: Fake) -> None:
    out = tmp_path / "deep" / "out"
    outcome = run("register", *pair, "-o", out, "--seed", 7, "--set", "optimizer.max_iter=12")
    assert {p.name for p in out.iterdir()} == FILES
    assert not leftovers(out.parent)
    assert "Result(pass" in outcome.stdout
    assert "bend" in outcome.stderr
    assert fake.calls[0]["config"].seed == 7
    assert fake.calls[0]["config"].optimizer.max_iter == 12
    assert fake.calls[0]["init"] is None  # as the settings say
    assert fake.calls[0]["config"].init == "auto"
    assert fake.calls[0]["metric"] is None  # the data decide
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["verdict"] == "pass"
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert len(log) == 36
    assert log[0]["stage"] == "affine"
    resolved = yaml.safe_load((out / "config.resolved.yaml").read_text())
    assert set(resolved["versions"]) >= {"regframe", "torch", "numpy", "python"}
    assert resolved["seed"] == 0  # of the made-up result
    assert resolved["run"]["fixed"]["path"] == str(pair[0])
    assert regframe.load(out).verdict == "pass"
    assert oct(out.stat().st_mode & 0o777) == oct(0o777 & ~_umask())


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def test_json_is_alone_on_stdout(pair: tuple[Path, Path], tmp_path: Path, fake: Fake) -> None:
    outcome = run("register", *pair, "-o", tmp_path / "out", "--json")
    found = json.loads(outcome.stdout)
    wanted = {"verdict", "reasons", "seconds", "n_evaluations", "energy", "roundtrip_px", "jacobian_min", "output"}
    assert wanted <= set(found)


@pytest.mark.parametrize(("verdict", "code"), [("pass", 0), ("warn", 3), ("fail", 3)])
def test_what_is_not_confirmed_ends_with_3_where_a_pass_is_required(
    pair: tuple[Path, Path], tmp_path: Path, fake: Fake, verdict: str, code: int
) -> None:
    fake.verdict = verdict
    run("register", *pair, "-o", tmp_path / "out", "--require", "pass", code=code)
    assert (tmp_path / "out" / "metrics.json").is_file()


@pytest.mark.parametrize(("verdict", "code"), [("pass", 0), ("warn", 0), ("fail", 3)])
def test_exit_code_follows_the_verdict(
    verdict: str, code: int, pair: tuple[Path, Path], tmp_path: Path, fake: Fake
) -> None:
    fake.verdict = verdict
    run("register", *pair, "-o", tmp_path / "out", code=code)
    assert {p.name for p in (tmp_path / "out").iterdir()} == FILES


def test_the_resolved_config_can_be_passed_back(pair: tuple[Path, Path], tmp_path: Path, fake: Fake) -> None:
    run("register", *pair, "-o", tmp_path / "one")
    config = tmp_path / "one" / "config.resolved.yaml"
    run(
        "register",
        *pair,
        "-o",
        tmp_path / "two",
        "--config",
        config,
        "--transform",
        "rigid",
        "--set",
        "sobolev.scale=4",
    )
    settings = fake.calls[1]["config"]
    assert (settings.transform, settings.sobolev.scale) == ("rigid", 4.0)


def test_overwrite_replaces_only_what_regframe_wrote(pair: tuple[Path, Path], tmp_path: Path, fake: Fake) -> None:
    out = tmp_path / "out"
    run("register", *pair, "-o", out)
    (out / "metrics.json").write_text('{"old": true}')
    run("register", *pair, "-o", out, code=2)
    run("register", *pair, "-o", out, "--overwrite")
    assert "old" not in json.loads((out / "metrics.json").read_text())
    assert not leftovers(tmp_path)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("x")
    outcome = run("register", *pair, "-o", precious, "--overwrite", code=2)
    assert "left alone" in outcome.stderr
    assert (precious / "thesis.txt").read_text() == "x"
    assert len(fake.calls) == 2  # refused before computing


def test_a_failed_overwrite_keeps_the_old_output(
    pair: tuple[Path, Path], tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run("register", *pair, "-o", out)
    before = (out / "metrics.json").read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("regframe.report.results.write", fail)
    outcome = run("register", *pair, "-o", out, "--overwrite", code=2)
    assert "disk is full" in outcome.stderr
    assert (out / "metrics.json").read_bytes() == before
    assert {p.name for p in out.iterdir()} == FILES
    assert not leftovers(tmp_path)


def test_dry_run_writes_nothing(pair: tuple[Path, Path], tmp_path: Path, fake: Fake) -> None:
    outcome = run("register", *pair, "-o", tmp_path / "out", "--dry-run", "--transform", "affine")
    assert "60 × 70 px" in outcome.stdout
    assert "affine" in outcome.stdout
    found = json.loads(run("register", *pair, "-o", tmp_path / "out", "--dry-run", "--json").stdout)
    assert found["moving"]["shape"] == [64, 50]
    assert not fake.calls
    assert not (tmp_path / "out").exists()


def test_sides_are_opened_as_asked(pair: tuple[Path, Path], tmp_path: Path, fake: Fake) -> None:
    run("register", *pair, "-o", tmp_path / "out", "--fixed-mpp", 0.5, "--moving-set", "spacing=2", "--moving-set",
        "unit=nm", "--fixed-channel", 1, "--moving-channel", "red", "--fixed-adapter", "image")  # fmt: skip
    fixed, moving = fake.calls[0]["fixed"], fake.calls[0]["moving"]
    assert (fixed.grid.unit, fixed.grid.spacing, fixed.data.shape[0]) == ("µm", (0.5, 0.5), 1)
    assert (moving.grid.unit, moving.grid.spacing, moving.channels) == ("nm", (2.0, 2.0), ("red",))
    run("report", tmp_path / "out")  # opens both sides as this run did


def test_what_does_not_count_is_stated_per_side(pair: tuple[Path, Path], tmp_path: Path, fake: Fake) -> None:
    value = int(regframe.open(pair[0]).data[0, 0, 0])
    mask = np.zeros((64, 50), np.uint8)
    mask[:, :20] = 255
    PIL.Image.fromarray(mask).save(tmp_path / "mask.png")
    run("register", *pair, "-o", tmp_path / "out", "--fixed-channel", 0, "--fixed-nodata", value, "--moving-mask",
        tmp_path / "mask.png")  # fmt: skip
    fixed, moving = fake.calls[0]["fixed"], fake.calls[0]["moving"]
    assert torch.equal(fixed.weight == 0, fixed.data[0] == value)
    assert torch.equal(moving.weight, (torch.arange(50) < 20).expand(64, 50).to(torch.float32))
    options = yaml.safe_load((tmp_path / "out" / "config.resolved.yaml").read_text())["run"]
    assert options["fixed"]["options"]["nodata"] == value
    assert options["moving"]["options"]["mask"] == str(tmp_path / "mask.png")
    run("report", tmp_path / "out")
    said = run("register", *pair, "-o", tmp_path / "b", "--fixed-nodata", "empty", code=2).stderr
    assert "wanted a number or nan for --fixed-nodata, got 'empty'" in said


def test_info_says_what_holds_no_data(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(100, 10, (40, 50)).astype(np.float32)
    values[:4] = np.nan
    values[36:] = -9999
    tifffile.imwrite(tmp_path / "a.tif", values)
    assert "10.00% not a number, 10.00% -9999" in run("info", tmp_path / "a.tif").stdout
    found = json.loads(run("info", tmp_path / "a.tif", "--set", "nodata=-9999", "--json").stdout)["no_data"]
    assert found == {"nan": 0.1, "nodata": 0, "padded": 0, "masked": 0.1}


def test_save_warped(pair: tuple[Path, Path], tmp_path: Path, fake: Fake) -> None:
    run("register", *pair, "-o", tmp_path / "out", "--save-warped")
    warped = regframe.open(tmp_path / "out" / "warped.ome.zarr")
    assert isinstance(warped, Image)
    assert warped.grid.shape == (60, 70)


def test_init_from_a_saved_result(
    pair: tuple[Path, Path], tmp_path: Path, saved: tuple[Path, Result], fake: Fake
) -> None:
    run("register", *pair, "-o", tmp_path / "out", "--init", saved[0])
    assert isinstance(fake.calls[0]["init"], Result)
    run("register", *pair, "-o", tmp_path / "out2", "--init", tmp_path / "absent", code=2)


def test_landmarks_reach_register(pair: tuple[Path, Path], tmp_path: Path, fake: Fake) -> None:
    marks = tmp_path / "p.csv"
    marks.write_text("fixed_y,fixed_x,moving_y,moving_x\n10,10,12,9\n50,12,52,10\n20,60,22,45\n")
    run("register", *pair, "-o", tmp_path / "out", "--landmarks", marks)
    assert fake.calls[0]["init"] not in ("auto", "identity", None)


def test_report_is_drawn_again(pair: tuple[Path, Path], tmp_path: Path, fake: Fake, real_report: None) -> None:
    out = tmp_path / "out"
    run("register", *pair, "-o", out)
    (out / "report.html").unlink()
    run("report", out)
    assert (out / "report.html").stat().st_size > 10_000
    moved = pair[1].rename(tmp_path / "elsewhere.png")
    assert "--moving" in run("report", out, code=2).stderr
    run("report", out, "--moving", moved)


# ---- apply --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["fixed", "moving"])
def test_apply_image(to: str, pair: tuple[Path, Path], tmp_path: Path, saved: tuple[Path, Result]) -> None:
    out, result = saved
    source = pair[1] if to == "fixed" else pair[0]
    opened = regframe.open(source)
    assert isinstance(opened, Image)
    grid, transform = (
        (result.fixed_grid, result.transform) if to == "fixed" else (result.moving_grid, result.transform.inverse())
    )
    for options, expected in (
        (("--background", "border"), regframe.resample(opened, transform, grid)),
        ((), result.to_fixed(opened) if to == "fixed" else result.to_moving(opened)),
    ):
        run("apply", "image", out, source, "-o", tmp_path / "w.png", "--to", to, "--overwrite", *options)
        found = regframe.open(tmp_path / "w.png")
        assert isinstance(found, Image)
        assert (found.data.int() - expected.data.int()).abs().max() <= 1
    assert "exists" in run("apply", "image", out, source, "-o", tmp_path / "w.png", "--to", to, code=2).stderr
    run("apply", "image", out, source, "-o", tmp_path / "w.png", "--to", to, "--overwrite")


@pytest.mark.parametrize("name", ["w.tif", "w.ome.zarr"])
def test_apply_image_saves_by_suffix(
    name: str, pair: tuple[Path, Path], tmp_path: Path, saved: tuple[Path, Result]
) -> None:
    for extra in ((), ("--overwrite",)):
        run("apply", "image", saved[0], pair[1], "-o", tmp_path / name, "--to", "fixed", *extra)
    found = regframe.open(tmp_path / name)
    assert isinstance(found, Image)
    assert found.grid.shape == (60, 70)
    assert not leftovers(tmp_path)


def test_apply_image_at_another_resolution(tmp_path: Path, saved: tuple[Path, Result]) -> None:
    large = picture(tmp_path / "large.png", 128, 100)
    outcome = run("apply", "image", saved[0], large, "-o", tmp_path / "w.png", "--to", "fixed", code=2)
    assert "--input-spacing" in outcome.stderr
    assert not (tmp_path / "w.png").exists()
    run("apply", "image", saved[0], large, "-o", tmp_path / "w.png", "--to", "fixed", "--input-spacing", 0.5)
    for bad in (0, -1, "nan"):
        run(
            "apply", "image", saved[0], large, "-o", tmp_path / "v.png", "--to", "fixed", "--input-spacing", bad, code=2
        )


@pytest.fixture
def lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image can be read by regions."""

    def pyramid(self: Any, source: Any) -> Pyramid:
        return levels.pyramid_of(self.open(source))

    monkeypatch.setattr(type(regframe.adapter("image")), "pyramid", pyramid)


OPTIONS: list[tuple[object, ...]] = [
    (),
    ("--background", "border"),
    ("--background", 9, "--canvas", "union"),
    ("--canvas", "moving", "--spacing", 0.7),
    ("--region", "10:31.5,-4:40", "--canvas", "union", "--labels"),
    ("--level", 0, "--input-spacing", 1),
]


@pytest.mark.parametrize("to", ["fixed", "moving"])
@pytest.mark.parametrize("options", OPTIONS)
def test_apply_image_tile_by_tile_is_apply_image(
    options: tuple[object, ...], to: str, pair: tuple[Path, Path], tmp_path: Path, saved: tuple[Path, Result],
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    source = pair[1] if to == "fixed" else pair[0]
    if "--labels" in options:
        PIL.Image.open(source).convert("L").save(source)
    run("apply", "image", saved[0], source, "-o", tmp_path / "whole.png", "--to", to, *options)
    request.getfixturevalue("lazy")
    for name in ("w.zarr", "w.ome.tif"):
        outcome = run("apply", "image", saved[0], source, "-o", tmp_path / name, "--to", to, *options, "--workers", 1)
        assert "levels" in outcome.stderr
        found, expected = regframe.open(tmp_path / name), regframe.open(tmp_path / "whole.png")
        assert isinstance(found, Image)
        assert isinstance(expected, Image)
        assert torch.equal(found.data, expected.data)
    assert {p.name for p in tmp_path.iterdir()} >= {"w.zarr", "w.ome.tif"}
    assert not list(tmp_path.glob("*.partial"))


def test_a_look_at_a_large_image(
    pair: tuple[Path, Path], tmp_path: Path, saved: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small part of what is too large to be read, and coarse pixels, which are means and not samples."""
    grid = saved[1].moving_grid
    fine = regframe.Image(torch.rand(1, *(20 * n for n in grid.shape), generator=torch.Generator().manual_seed(0)) * 255,
                          grid.resampled(grid.spacing[0] / 20))  # fmt: skip
    regframe.warp_slide(levels.pyramid_of(fine.replace(data=fine.data.byte())), regframe.Affine.identity(2), fine.grid,
                        tmp_path / "large.zarr")  # fmt: skip
    monkeypatch.setattr(type(regframe.adapter("image")), "open", lambda *_: pytest.fail("the whole was read"))
    for k, options in enumerate((("--spacing", 2), ("--region", "10:12,20:25", "--level", 0))):
        for name in (f"{k}.png", f"{k}.zarr"):
            outcome = run(
                "apply", "image", saved[0], tmp_path / "large.zarr", "-o", tmp_path / name, "--to", "fixed", *options
            )
            assert "wrote" in outcome.stderr
        found = np.asarray(PIL.Image.open(tmp_path / f"{k}.png"))
        expected = np.asarray(zarr.open_group(tmp_path / f"{k}.zarr", mode="r")["0"])[0]
        assert np.array_equal(found, expected)
        if not k:
            assert found[found > 0].std() < 10  # of 74, were they samples
    monkeypatch.setattr(warp.SlideWarp.image, "__defaults__", (1000,))
    said = run("apply", "image", saved[0], tmp_path / "large.zarr", "-o", tmp_path / "x.png", "--to", "fixed", code=2)
    assert "wanted at most" in said.stderr
    assert "write .zarr or .tif" in said.stderr


def test_apply_image_says_what_it_wants(
    pair: tuple[Path, Path], tmp_path: Path, saved: tuple[Path, Result], lazy: None
) -> None:
    command = ("apply", "image", saved[0], pair[1], "-o", tmp_path / "w.zarr", "--to", "fixed")
    assert "Y0:Y1,X0:X1" in run(*command, "--region", "3,4", code=2).stderr
    assert "wanted a region with pixels" in run(*command, "--region", "900:950,0:9", code=2).stderr
    assert "auto, border or a number" in run(*command, "--background", "blue", code=2).stderr
    assert "--spacing" in run(*command, "--spacing", -1, code=2).stderr
    assert "level" in run(*command, "--level", 3, code=2).stderr
    assert not (tmp_path / "w.zarr").exists()
    (tmp_path / "w.zarr.partial").mkdir()
    (tmp_path / "w.zarr.partial" / "plan.json").write_text('{"hash": "x", "what": "another slide"}')
    assert "it was begun with (another slide)" not in run(*command, "--overwrite").stderr
    run(*command, code=2)


def test_apply_image_with_another_unfinished_output(
    pair: tuple[Path, Path], tmp_path: Path, saved: tuple[Path, Result], lazy: None
) -> None:
    command = ("apply", "image", saved[0], pair[1], "-o", tmp_path / "w.zarr", "--to", "fixed")
    (tmp_path / "w.zarr.partial").mkdir()
    (tmp_path / "w.zarr.partial" / "plan.json").write_text('{"hash": "x", "what": "another slide"}')
    assert "(another slide)" in run(*command, code=2).stderr


def test_a_slide_job_is_paths_alone(
    pair: tuple[Path, Path], tmp_path: Path, saved: tuple[Path, Result], lazy: None
) -> None:
    job = slides_job.SlideJob(str(saved[0]), str(pair[1]), str(tmp_path / "w.zarr"), "fixed", options=(("level", 0),))
    assert json.loads(json.dumps(dataclasses.asdict(job)))["output"] == job.output
    plan = job.plan()
    assert plan is not None
    with plan.started():
        assert [slides_job.run_shard(job, index) for index in range(plan.shards)] == list(range(plan.shards))
        plan.finish()
    run("apply", "image", saved[0], pair[1], "-o", tmp_path / "v.zarr", "--to", "fixed")
    found, expected = (regframe.open(tmp_path / name) for name in ("w.zarr", "v.zarr"))
    assert isinstance(found, Image)
    assert isinstance(expected, Image)
    assert torch.equal(found.data, expected.data)


def test_a_worker_that_lives_on_takes_the_new_result_at_the_same_place(
    pair: tuple[Path, Path], tmp_path: Path, saved: tuple[Path, Result], lazy: None
) -> None:
    result = tmp_path / "result"
    saved[1].save(result)
    job = slides_job.SlideJob(str(result), str(pair[1]), str(tmp_path / "w.zarr"), "fixed", options=(("level", 0),))
    first = job.plan()
    assert first is not None
    shift = torch.tensor([[1.0, 0, 5], [0, 1, 3], [0, 0, 1]], dtype=torch.float64)
    old = saved[1].transform
    moved = dataclasses.replace(saved[1], transform=regframe.Affine(shift, old.source_unit, old.target_unit))
    written = []
    for made, plan in ((saved[1], first), (moved, None)):
        made.save(result, overwrite=True)
        plan = plan or job.plan()
        assert plan is not None
        with plan.started(overwrite=True):
            task = dataclasses.replace(job, made_of=plan.fingerprint)
            for index in range(plan.shards):
                slides_job.run_shard(task, index)
            plan.finish(overwrite=True)
        written.append(regframe.open(tmp_path / "w.zarr"))
    assert not torch.equal(written[0].data, written[1].data)


def test_apply_image_refuses_points(tmp_path: Path, saved: tuple[Path, Result]) -> None:
    table = tmp_path / "cells.csv"
    table.write_text("x,y\n1,2\n")
    assert (
        "apply points"
        in run("apply", "image", saved[0], table, "-o", tmp_path / "w.png", "--to", "fixed", code=2).stderr
    )


def test_place() -> None:
    side = Grid((100, 80), 0.5, (), "µm")
    assert place(Grid((100, 80)), side, None) == side  # the same pixels, without a declared size
    assert place(side.to_unit("nm"), side, None) == side
    half = place(Grid((200, 160)), side, 0.25)
    assert half.origin == pytest.approx((-0.125, -0.125))
    assert half.extent == pytest.approx(side.extent)
    own = place(Grid((50, 40), 1000.0, (250.0, 250.0), "nm"), side, None)
    assert (own.spacing, own.origin, own.unit) == (pytest.approx((1, 1)), pytest.approx((0.25, 0.25)), "µm")
    level = Grid((25, 20), 4.0, (1.5, 1.5))
    assert place(level, Grid((100, 80)), None) == level
    for grid, spacing in (
        (Grid((200, 160)), None),  # no telling
        (Grid((100, 80), 5.0, (), "µm"), None),  # the same pixels, another declared size
        (Grid((50, 40), 1.0, (1000.0, 0.0), "µm"), None),  # elsewhere
        (Grid((3, 100, 80)), None),
    ):
        with pytest.raises(ValueError, match="wanted"):
            place(grid, side, spacing)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("to", ["fixed", "moving"])
def test_apply_points(to: str, tmp_path: Path, saved: tuple[Path, Result]) -> None:
    out, result = saved
    table = tmp_path / "cells.csv"
    rows = ["cell,x,y,type", 'c1,10.5,20,"a, b"', "c2,30,41,T", "c3,-400,5,B"]
    table.write_text("\n".join(rows) + "\n")
    run("apply", "points", out, table, "-o", tmp_path / "moved.csv", "--to", to)
    found = read_csv(tmp_path / "moved.csv")
    assert list(found[0]) == ["cell", "x", "y", "type", "match_probability", "position_sd", "in_canvas"]
    assert [(row["cell"], row["type"]) for row in found] == [("c1", "a, b"), ("c2", "T"), ("c3", "B")]
    coords = torch.tensor([[20, 10.5], [41, 30], [5, -400]], dtype=torch.float64)
    moved = result.to_fixed(coords) if to == "fixed" else result.to_moving(coords)
    there = torch.tensor([[float(row["y"]), float(row["x"])] for row in found], dtype=torch.float64)
    assert torch.allclose(there, moved)
    target = result.fixed_grid if to == "fixed" else result.moving_grid
    assert [row["in_canvas"] for row in found] == ["true" if c else "false" for c in target.contains(moved).tolist()]
    assert found[2]["match_probability"] == ""
    assert 0 < float(found[0]["match_probability"]) <= 1


def test_points_there_and_back(tmp_path: Path, saved: tuple[Path, Result]) -> None:
    table = tmp_path / "cells.csv"
    table.write_text("y,x\n20,10.5\n41,30\n")
    run("apply", "points", saved[0], table, "-o", tmp_path / "there.csv", "--to", "fixed")
    run("apply", "points", saved[0], tmp_path / "there.csv", "-o", tmp_path / "back.csv", "--to", "moving")
    back = read_csv(tmp_path / "back.csv")
    assert list(back[0]) == ["y", "x", "match_probability", "position_sd", "in_canvas"]
    assert [float(back[0]["y"]), float(back[0]["x"])] == pytest.approx([20, 10.5], abs=1e-6)


def test_points_in_pixels_of_another_resolution(tmp_path: Path, saved: tuple[Path, Result]) -> None:
    (tmp_path / "full.csv").write_text("40,21\n82,60\n")
    options = ("--columns", "y,x", "--input-spacing", 0.5)
    run("apply", "points", saved[0], tmp_path / "full.csv", "-o", tmp_path / "m.csv", "--to", "fixed", *options)
    expected = saved[1].to_fixed(torch.tensor([[20.0, 10.5]], dtype=torch.float64))[0]
    row = read_csv(tmp_path / "m.csv")[0]
    assert [float(row["y"]), float(row["x"])] == pytest.approx(expected.tolist())


# ---- evaluate -----------------------------------------------------------------------------------------------------


def landmark_files(tmp_path: Path, result: Result, error: float = 0.0) -> tuple[Path, Path]:
    moving = torch.tensor([[10, 12], [50, 15], [30, 40], [22, 33]], dtype=torch.float64)
    fixed = result.to_fixed(moving)
    moving = moving + torch.tensor([0.0, error])
    for name, coords, order in (("f.csv", fixed, [0, 1, 2, 3]), ("m.csv", moving, [3, 1, 0, 2])):
        lines = ["id,X,Y", *(f"p{i},{float(coords[i, 1])!r},{float(coords[i, 0])!r}" for i in order)]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    return tmp_path / "f.csv", tmp_path / "m.csv"


def test_evaluate(tmp_path: Path, saved: tuple[Path, Result]) -> None:
    fixed, moving = landmark_files(tmp_path, saved[1], error=0.5)
    outcome = run("evaluate", saved[0], "--fixed-landmarks", fixed, "--moving-landmarks", moving, "--json")
    found = json.loads(outcome.stdout)
    assert found["n"] == 4
    for statistic in ("mean", "median", "p90", "max"):
        assert found["tre_px"][statistic] == pytest.approx(0.5, abs=1e-6)
        assert found["before"]["tre_px"][statistic] > 1
    assert found["rtre_median"] == pytest.approx(0.5 / math.hypot(64, 50), rel=1e-5)
    text = run("evaluate", saved[0], "--fixed-landmarks", fixed, "--moving-landmarks", moving).stdout
    assert "4 pairs" in text
    assert "after, px" in text


@pytest.mark.parametrize("column", ["label", "Name", "landmark_id"])
def test_evaluate_says_how_it_pairs(tmp_path: Path, saved: tuple[Path, Result], column: str) -> None:
    fixed, moving = landmark_files(tmp_path, saved[1], error=0.5)
    for path in (fixed, moving):
        path.write_text(path.read_text().replace("id,", f"{column},"))
    outcome = run("evaluate", saved[0], "--fixed-landmarks", fixed, "--moving-landmarks", moving, "--json")
    assert json.loads(outcome.stdout)["paired_on"] == column
    assert json.loads(outcome.stdout)["tre_px"]["max"] == pytest.approx(0.5, abs=1e-6)
    assert f"paired on the column {column!r}" in outcome.stderr
    for path in (fixed, moving):
        path.write_text("".join(line.partition(",")[2] for line in path.read_text().splitlines(keepends=True)))
    outcome = run("evaluate", saved[0], "--fixed-landmarks", fixed, "--moving-landmarks", moving, "--json")
    assert json.loads(outcome.stdout)["paired_on"] is None
    assert "paired row by row" in outcome.stderr


def test_an_empty_annotation_is_no_error(tmp_path: Path, saved: tuple[Path, Result]) -> None:
    (tmp_path / "a.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    outcome = run(
        "apply", "shapes", saved[0], tmp_path / "a.geojson", "--to", "fixed", "-o", tmp_path / "b.geojson", "--json"
    )
    assert json.loads(outcome.stdout)["shapes"] == 0
    assert json.loads((tmp_path / "b.geojson").read_text()) == {"type": "FeatureCollection", "features": []}


def test_points_of_standard_input_to_standard_output(tmp_path: Path, saved: tuple[Path, Result]) -> None:
    text = "id;x;y\na;1,5;2\nb;3;4,25\n"
    (tmp_path / "p.csv").write_bytes(text.encode("utf-16"))
    said = run("apply", "points", saved[0], tmp_path / "p.csv", "--to", "fixed", "-o", tmp_path / "o.csv")
    assert "Note: decimal commas were read as points" in said.stderr
    for source, raw, target in (
        ("-", text.encode("utf-16"), "-"),
        (tmp_path / "p.csv", b"", "-"),
        ("-", text.encode(), tmp_path / "q.csv"),
    ):
        runner = click.testing.CliRunner()
        arguments = ["apply", "points", str(saved[0]), str(source), "--to", "fixed", "-o", str(target)]
        outcome = runner.invoke(main, arguments, input=raw)
        assert outcome.exit_code == 0, outcome.output
        found = outcome.stdout_bytes if target == "-" else Path(target).read_bytes()
        assert found == (tmp_path / "o.csv").read_bytes()
    outcome = click.testing.CliRunner().invoke(
        main, ["apply", "points", str(saved[0]), "-", "--to", "fixed", "-o", "-"], input=b""
    )
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert "wanted a table on standard input, got nothing" in outcome.stderr
    assert not Path("-").exists()


def test_evaluate_in_physical_units(tmp_path: Path) -> None:
    fixed, moving = Grid((60, 70), 0.002, (), "mm"), Grid((64, 50), 0.5, (), "µm")
    result = fake_result(fixed, moving, torch.diag(torch.tensor([1e-3, 1e-3, 1.0], dtype=torch.float64)), bend=1.0)
    marks = torch.tensor([[10.0, 12.0], [5.0, 7.0], [20.0, 15.0]], dtype=torch.float64)
    found = regframe_evaluate(result, result.to_fixed(marks), marks + torch.tensor([1.5, 2.0]))
    assert found["unit"] == "µm"
    assert found["tre"]["mean"] == pytest.approx(2.5)
    assert found["tre_px"]["mean"] == pytest.approx(5.0)
    with pytest.raises(ValueError, match="in mm"):
        regframe_evaluate(result, PointSet(marks, "px"), PointSet(marks, "µm"))
    with pytest.raises(ValueError, match="missing value in row 1"):
        regframe_evaluate(result, torch.tensor([[0.0, 0.0], [math.nan, 0.0]]), marks[:2])


def regframe_evaluate(*args: Any) -> dict[str, Any]:
    from regframe.evaluation import evaluate

    return evaluate(*args)


def test_evaluate_with_scaled_landmarks(tmp_path: Path, saved: tuple[Path, Result]) -> None:
    marks = torch.tensor([[10, 12], [50, 15], [30, 40]], dtype=torch.float64)
    for name, coords in (("f.csv", saved[1].to_fixed(marks) * 10), ("m.csv", marks * 4)):
        (tmp_path / name).write_text("y,x\n" + "\n".join(f"{a!r},{b!r}" for a, b in coords.tolist()) + "\n")
    files = ("--fixed-landmarks", tmp_path / "f.csv", "--moving-landmarks", tmp_path / "m.csv")
    outcome = run("evaluate", saved[0], *files, "--fixed-spacing", 0.1, "--moving-spacing", 0.25, "--json")
    assert json.loads(outcome.stdout)["tre_px"]["max"] < 1e-6
    (tmp_path / "f.csv").write_text("y,x\n" + "".join(f"{y * 1000},{x * 1000}\n" for y, x in marks.tolist()))
    outcome = run("evaluate", saved[0], *files)
    assert "multiplied by 0.001 they would not: --fixed-spacing 0.001" in outcome.stderr


# ---- info, plugins, doctor, demo ----------------------------------------------------------------------------------


def test_info(pair: tuple[Path, Path], tmp_path: Path, saved: tuple[Path, Result]) -> None:
    found = json.loads(run("info", pair[0], "--json").stdout)
    assert (found["kind"], found["shape"], found["adapter"]) == ("image", [60, 70], "image")
    assert "60, 70" in run("info", pair[0]).stdout
    (tmp_path / "c.csv").write_text("x_um,y_um,g\n1,2,3\n")
    found = json.loads(run("info", tmp_path / "c.csv", "--json").stdout)
    assert (found["kind"], found["n"], found["unit"]) == ("points", 1, "µm")
    assert json.loads(run("info", saved[0], "--json").stdout)["verdict"] == "pass"
    assert "Flow then Affine" in run("info", saved[0]).stdout
    run("info", tmp_path / "absent", code=2)


def test_plugins() -> None:
    found = json.loads(run("plugins", "--json").stdout)
    assert "contrast" in {entry["name"] for entry in found["metrics"]}
    assert {"image", "points"} <= {entry["name"] for entry in found["adapters"]}
    assert "from regframe" in run("plugins").stdout


def test_doctor() -> None:
    found = json.loads(run("doctor", "--json").stdout)
    assert found["check"]["ok"]
    assert found["versions"]["torch"] == torch.__version__
    assert found["ops"]["built"] == (found["ops"].get("isa") in ("baseline", "avx2", "avx512"))
    assert "check      ok" in run("doctor").stdout


def test_demo_pair_and_its_errors() -> None:
    from regframe.testing import demo

    pair = demo.make()
    assert pair.moving.data.shape == (3, 512, 512)
    grid = pair.moving.grid
    bend = demo.bending(grid, 0)
    size = torch.linalg.vector_norm(bend.points(grid.coords()) - grid.coords(), dim=-1)
    assert 2 < float(size.mean()) < 8
    assert float(size.max()) <= demo.BEND_PX
    assert float(pair.truth.jacobian_determinant(grid.resampled(8)).min()) > 0.3
    perfect = Result(pair.truth, pair.fixed.grid, grid, {}, regframe.Config(), demo.turn(grid))
    errors = demo.errors(pair, perfect)
    assert errors["after"]["max"] < 1e-6
    assert errors["before"]["mean"] > 50


def test_demo_command(tmp_path: Path, fake: Fake) -> None:
    outcome = run("demo", "-o", tmp_path / "demo")
    assert "before" in outcome.stdout
    assert (tmp_path / "demo" / "report.html").as_uri() in outcome.stdout
    assert {p.name for p in (tmp_path / "demo").iterdir()} == FILES | {"inputs"}
    run("demo", "-o", tmp_path / "demo", code=2)
    assert "error_px" in json.loads(run("demo", "-o", tmp_path / "demo", "--overwrite", "--json").stdout)


# ---- the folder ---------------------------------------------------------------------------------------------------


def test_json_of_what_runs_produce() -> None:
    value = {"a": torch.tensor(1.5), "b": np.float32(2), "c": math.nan, "d": (np.arange(2), Path("x")), 3: True}
    assert json.loads(outputs.to_json(value)) == {"a": 1.5, "b": 2.0, "c": None, "d": [[0, 1], "x"], "3": True}


def test_staging_refuses_what_appeared_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"

    def write() -> None:
        with outputs.staged(target) as path:
            path.write_text("mine")
            target.write_text("theirs")

    with pytest.raises(FileExistsError, match="appeared"):
        write()
    assert target.read_text() == "theirs"
    assert not leftovers(tmp_path)


def test_staging_of_a_format_of_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, beside = tmp_path / "out.hdr", tmp_path / "out.bin"

    def write(text: str, overwrite: bool) -> None:
        with outputs.staged(target, overwrite) as path:
            path.write_text(text)
            path.with_suffix(".bin").write_text(text)

    write("one", False)
    target.unlink()
    with pytest.raises(FileExistsError, match=r"out\.bin appeared while this ran or lay beside it"):
        write("two", False)
    assert not target.exists()
    target.write_text("one")
    put = outputs.put

    def failing(item: Path, to: Path, overwrite: bool) -> bool:
        if to == target and item.read_text() == "two":
            raise OSError("the disk is gone")
        return put(item, to, overwrite)

    with monkeypatch.context() as patched:
        patched.setattr(outputs, "put", failing)
        with pytest.raises(OSError, match="the disk is gone"):
            write("two", True)
    assert [target.read_text(), beside.read_text()] == ["one", "one"]
    write("two", True)
    assert [target.read_text(), beside.read_text()] == ["two", "two"]
    with (
        pytest.raises(FileNotFoundError, match=r"wanted out\.hdr to be written, got nothing"),
        outputs.staged(target, True),
    ):
        pass
    assert target.read_text() == "two"
    assert not leftovers(tmp_path)


def test_a_column_of_the_users_own_is_kept(tmp_path: Path, saved: tuple[Path, Result]) -> None:
    (tmp_path / "cells.csv").write_text("y,x,in_canvas\n20,10.5,sketch\n")
    run("apply", "points", saved[0], tmp_path / "cells.csv", "-o", tmp_path / "out.csv", "--to", "fixed")
    row = read_csv(tmp_path / "out.csv")[0]
    assert row["in_canvas"] == "sketch"
    assert row["regframe_in_canvas"] in ("true", "false")


def test_landmarks_outside_the_image_are_remarked_on(tmp_path: Path, saved: tuple[Path, Result]) -> None:
    for side in ("f", "m"):
        (tmp_path / f"{side}.csv").write_text("y,x\n2000,1050\n2100,900\n")
    out = run("evaluate", saved[0], "--fixed-landmarks", tmp_path / "f.csv", "--moving-landmarks", tmp_path / "m.csv")
    assert "2 of 2 landmarks" in out.stderr


# ---- progress -----------------------------------------------------------------------------------------------------


def shown(steps: list[Progress], capsys: pytest.CaptureFixture[str]) -> list[str]:
    with Bars() as bars:
        for step in steps:
            bars(step)
    return capsys.readouterr().err.splitlines()


def test_a_fit_says_a_line_per_level(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [Progress("lddmm", i, 10, level, 2, 1 / (i + 1)) for level in (0, 1) for i in (1, 2, 3)]
    lines = shown([*steps, Progress("affine", 1, 10, loss=2.0)], capsys)
    assert lines == [
        "bend        level 1 of 2: 3 iterations, energy 0.25",
        "bend        level 2 of 2: 3 iterations, energy 0.25",
        "affine: 1 iteration, energy 2",
    ]


def test_counted_steps_say_a_line_per_quarter(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [Progress("shards", done, 8) for done in range(1, 9)]
    few = [Progress("tiles", done, 3) for done in range(1, 4)]
    again = [Progress("pairs", done, 4) for _ in range(2) for done in range(4)]
    pairs = [f"pairs: {n} of 4" for n in (1, 2, 3)]
    assert shown(steps + few + again, capsys) == [f"shards: {n} of 8" for n in (2, 4, 6, 8)] + pairs + pairs


def test_a_terminal_gets_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Bars() as bars:
        for step in (Progress("affine", 3, 10, 0, 2, 1.25), Progress("shards", 0, 7), Progress("shards", 6, 7)):
            bars(step)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    last = text[text.rindex("affine") :].splitlines()
    assert "level 1 of 2" in last[0]
    assert "3 / 3" in last[0]
    assert "energy 1.25" in last[0]
    assert "7 / 7" in last[1]
    assert "energy" not in last[1]
    assert "level" not in last[1]
