"""A pair of slides with a known map, and a real viewer that needs neither a screen nor a graphics card."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import ndimage

import regframe as rf

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
MISSING = [name for name in ("napari", "npe2", "magicgui", "PyQt6") if find_spec(name) is None]
"""Packages without which nothing here runs; `test_needs` says so."""
collect_ignore_glob = [] if not MISSING else ["test_[!n]*.py"]

SHIFT, FINE, COARSE = (-24.0, 41.0), 0.5, 0.8
"""Moving position minus fixed position (y, x), and the pixel sizes of both sides, in µm."""
FIXED_AT = (7.0, -3.0)
"""Position of the first fixed pixel's centre, as a layer may have it."""
_CARD = {7939: "GL_ARB_texture_float", 3379: 16384, 32883: 2048}
"""What a card says of its extensions and of its largest textures in 2D and in 3D."""


@pytest.fixture(scope="session")
def tissue() -> Any:
    """A function that draws brightfield tissue ``[3, H, W]`` uint8 on a grid whose positions are those of the fixed side."""
    random = np.random.default_rng(4)
    noise = np.stack([ndimage.gaussian_filter(random.standard_normal((500, 560)), s) for s in (3, 4, 6)])
    noise = (noise - noise.min(axis=(1, 2), keepdims=True)) / np.ptp(noise, axis=(1, 2), keepdims=True)

    def draw(grid: rf.Grid, shift: tuple[float, float] = (0.0, 0.0)) -> torch.Tensor:
        at = np.moveaxis(grid.coords().numpy() - np.array(shift), -1, 0) + 80.0
        ink = np.stack([ndimage.map_coordinates(plane, at, order=1, mode="reflect") for plane in noise])
        return torch.from_numpy(np.rint(255 - 200 * ink).astype(np.uint8))

    return draw


def levels_of(image: torch.Tensor) -> list[Any]:
    """A multiscale layer's data ``[H, W, 3]``: the image, and means over 2 × 2 pixels."""
    fine = image.numpy()
    cut = fine[:, : fine.shape[1] // 2 * 2, : fine.shape[2] // 2 * 2].astype(np.float64)
    coarse = cut.reshape(3, cut.shape[1] // 2, 2, cut.shape[2] // 2, 2).mean(axis=(2, 4))
    return [np.moveaxis(fine, 0, -1), np.moveaxis(np.rint(coarse).astype(np.uint8), 0, -1)]


@pytest.fixture(scope="session")
def pair(tissue: Any) -> tuple[rf.Image, rf.Image]:
    """Two brightfield images of one tissue, of different pixel size, the second shifted by `SHIFT`."""
    fixed = rf.Grid((620, 640), FINE, FIXED_AT, "µm")
    moving = rf.Grid((400, 410), COARSE, (0.0, 0.0), "µm")
    names = ("red", "green", "blue")
    return (
        rf.Image(tissue(fixed), fixed, names, name="fixed"),
        rf.Image(tissue(moving, SHIFT), moving, names, name="moving"),
    )


@pytest.fixture(scope="session")
def run(pair: tuple[rf.Image, rf.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two slides with several levels."""
    folder = tmp_path_factory.mktemp("run")
    for image in pair:
        here = rf.Affine(torch.eye(3, dtype=torch.float64), "µm", "µm")
        data = image.data.numpy()
        level = rf.Level(image.grid, data.shape, lambda region, data=data: data[(slice(None), *region)])
        pyramid = rf.Pyramid((level,), data.dtype, image.channels, name=image.name)
        rf.warp_slide(pyramid, here, image.grid, folder / f"{image.name}.ome.zarr", options=rf.SlideOptions(chunk=128))
    paths = [str(folder / f"{name}.ome.zarr") for name in ("fixed", "moving")]
    (command,) = entry_points(group="console_scripts", name="regframe")
    done = CliRunner().invoke(command.load(), ["register", *paths, "-o", str(folder / "out"), "--transform", "affine"])
    assert done.exit_code == 0, done.output
    return folder / "out"


@pytest.fixture
def viewer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A viewer of napari with this plug-in; where there is no graphics, what napari asks the card is answered for it."""
    import napari
    import napari_regframe
    import vispy.gloo.gl as gl
    from napari._vispy.utils.gl import get_gl_extensions, get_max_texture_sizes
    from npe2 import PluginManager, PluginManifest

    real = gl.glGetParameter

    def asked(what: int) -> Any:
        try:
            found = real(what)
        except AttributeError:
            found = None
        return found or _CARD.get(what, 0)

    monkeypatch.setattr(gl, "glGetParameter", asked)
    for function in (get_gl_extensions, get_max_texture_sizes):
        function.cache_clear()
    manager = PluginManager.instance()
    if "napari-regframe" not in manager:
        manager.register(PluginManifest.from_file(Path(napari_regframe.__path__[0]) / "napari.yaml"))
    shown = napari.Viewer(show=False)
    yield shown
    shown.close()
