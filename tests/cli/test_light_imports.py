"""Which large modules a command or a call loads: lists of modules, not times."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import zarr

from regframe import later
from regframe.solvers import plain
from regframe.solvers.preparation import prepare

LARGE = (
    "torch",
    "scipy",
    "skimage",
    "zarr",
    "pandas",
    "matplotlib",
    "dask",
    "numba",
    "sklearn",
    "sympy",
    "distributed",
    # of parts of them, and of regframe's own, what only other kinds of pairs and files need
    "scipy.spatial",
    "regframe.solvers.cellwise",
    "regframe.solvers.points.align",
    "regframe.solvers.mixed.nuclei",
    "regframe_image.fluoview",
    "regframe_image.zeiss",
)


def loaded(code: str, folder: Path) -> set[str]:
    """Which of `LARGE` a process holds after some code."""
    line = f"{code}\nimport json, sys; print(json.dumps([m for m in {LARGE!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", line], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def command(*words: str) -> str:
    return (
        "import click.testing\nfrom regframe.cli import main\n"
        f"done = click.testing.CliRunner().invoke(main, {list(words)!r})\nassert done.exit_code == 0, done.stderr\n"
    )


def texture(seed: int, size: int = 64) -> np.ndarray:
    small = np.random.default_rng(seed).integers(20, 220, (size // 8, size // 8, 3), dtype=np.uint8)
    return np.asarray(PIL.Image.fromarray(small).resize((size, size)))


def test_info_of_a_picture_needs_no_torch(tmp_path: Path) -> None:
    PIL.Image.fromarray(texture(0)).save(tmp_path / "a.png")
    PIL.Image.fromarray(texture(0)).save(tmp_path / "a.tif")
    code = command("info", "a.png") + command("info", "a.tif", "--json") + command("--version")
    assert loaded(code, tmp_path) == set()


def test_a_registration_from_python_loads_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    for name in ("a", "b"):
        PIL.Image.fromarray(texture(0)).save(tmp_path / f"{name}.png")
    code = "import regframe as rf\nrf.register('a.png', 'b.png', transform='rigid', init='identity')\n"
    assert loaded(code, tmp_path) <= {"torch", "scipy", "skimage"}


def test_a_module_comes_when_a_name_of_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    held = later.module("colorsys")
    assert "colorsys" not in sys.modules
    monkeypatch.setattr(plain, "colorsys", held, raising=False)  # a module that binds it to this name
    assert not hasattr(held, "__wrapped__")
    assert "colorsys" not in sys.modules
    assert held.rgb_to_hsv(1, 1, 1) == (0, 0, 1)
    assert plain.colorsys is sys.modules["colorsys"]  # type: ignore[attr-defined]
    assert later.module("colorsys") is sys.modules["colorsys"]
    assert held.hsv_to_rgb is sys.modules["colorsys"].hsv_to_rgb


def test_an_option_of_the_command_says_the_version() -> None:
    from click.testing import CliRunner

    from regframe.cli import main
    from regframe.versions import version

    assert CliRunner().invoke(main, ["--version"]).stdout == f"regframe {version()}\n"


def test_the_command_is_there_as_a_module(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from regframe.versions import version

    monkeypatch.setattr(sys, "argv", ["regframe", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("regframe", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"regframe {version()}\n"


# ---- a first look with numpy alone is never surer than the whole one ----------------------------------------------------


def pictures() -> dict[str, np.ndarray]:
    """Pictures ``[C, h, w]``, sound ones and some with each kind of pixel that does not count."""
    base = np.moveaxis(texture(1, 96), -1, 0).copy()
    wide = base.astype(np.uint16) * 16
    made = {"sound": base, "sound 16 bit": wide, "volume": np.stack([base] * 4, 1), "one value": np.full_like(base, 7)}
    for name, change in {
        "black corner": lambda a: a.__setitem__((slice(None), slice(0, 30), slice(0, 20)), 0),
        "white border": lambda a: a.__setitem__((slice(None), slice(None), slice(80, None)), 255),
        "small corner": lambda a: a.__setitem__((slice(None), slice(0, 3), slice(0, 3)), 0),
        "hot corner": lambda a: [a.__setitem__((slice(None), slice(0, n), slice(0, n)), v) for n, v in ((40, 3), (1, 255))],
        "loose colour": lambda a: a.__setitem__((slice(None), slice(None, None, 7), slice(None, None, 7)), 0),
    }.items():  # fmt: skip
        made[name] = base.copy()
        change(made[name])
    turned = PIL.Image.fromarray(texture(2, 96)).rotate(20, expand=True)
    made["turned on black"] = np.moveaxis(np.asarray(turned), -1, 0).copy()
    made["12 bit with 65535"] = wide.copy()
    made["12 bit with 65535"][0, 10:20, 10:20] = 65535
    made["-9999"] = wide.astype(np.float32)
    made["-9999"][:, 40:, 40:] = -9999
    made["nan"] = wide.astype(np.float32)
    made["nan"][0, 3, 3] = np.nan
    return made


@pytest.mark.parametrize("name", pictures())
def test_the_first_look_is_never_surer_than_the_whole_one(name: str) -> None:
    import regframe as rf

    data = pictures()[name]
    image = rf.Image.from_array(data, "cyx" if data.ndim == 3 else "czyx")
    look = prepare(image)[1]
    gone = look.nan_fraction + look.nodata_fraction + look.padded_fraction + look.masked_fraction
    assert not (plain.plain(data) and gone > 0)
    if name in ("sound", "sound 16 bit", "volume", "small corner", "loose colour"):
        assert plain.plain(data)


def test_the_usual_range_is_that_of_lower_medians() -> None:
    import torch

    windows = torch.rand((500, 9), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    windows[windows < 0.3] = torch.nan
    windows[:3] = torch.nan
    medians = windows.nanmedian(dim=1).values
    medians = medians[~medians.isnan()].sort().values
    assert plain.usual_range(windows.numpy()) == (float(medians[0]), float(medians[-1]))
    assert plain.usual_range(np.full((4, 9), np.nan)) == (0.0, 0.0)


def test_info_says_the_same_of_a_store(tmp_path: Path) -> None:
    made = zarr.create_array(tmp_path / "a.zarr", shape=(64, 64), dtype="u1", dimension_names=["y", "x"])
    made[:] = texture(3)[..., 0]
    from click.testing import CliRunner

    from regframe.cli import main

    said = CliRunner().invoke(main, ["info", str(tmp_path / "a.zarr"), "--json"], catch_exceptions=False)
    assert json.loads(said.stdout)["no_data"] == {"nan": 0.0, "nodata": 0.0, "padded": 0.0, "masked": 0.0}
