"""Stored order of axes, and declared pixel sizes axis by axis: what is read, what is quoted, what is filled in."""

from __future__ import annotations

import itertools
import json
import math
import struct
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import plain_files as plain
import pytest
import tifffile
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import regframe as rf
from regframe.cli import main

RNG = np.random.default_rng(6)
PLANE = RNG.integers(0, 255, (6, 9), dtype=np.uint8)
STACK = RNG.integers(0, 255, (4, 6, 9), dtype=np.uint8)
UM = dict.fromkeys("zyx", "micrometer")


def said(path: Path, **options: Any) -> tuple[rf.Grid, str]:
    """The grid, and what was said aloud."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opened = rf.open(path, **options)
    assert isinstance(opened, rf.Image)
    return opened.grid, " | ".join(str(w.message) for w in caught)


def notes(path: Path) -> str:
    """What `regframe info` says, all of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        done = CliRunner().invoke(main, ["info", str(path), "--json"])
    assert done.exit_code == 0, done.output
    return " | ".join(json.loads(done.stdout).get("notes", []))


# ---- order of axes -------------------------------------------------------------------------------------------------------

SIZES = {"t": 1, "c": 3, "z": 4, "y": 5, "x": 7}
STEPS = {"z": 3.0, "y": 0.5, "x": 0.25}
STARTS = {"z": 30.0, "y": -20.0, "x": 10.0}


def canonical(values: np.ndarray, letters: str) -> np.ndarray:  # type: ignore[type-arg]
    """``[c, (z,) y, x]`` of an array whose axes are ``letters``."""
    wanted = [a for a in "tczyx" if a in letters]
    moved = np.moveaxis(values, [letters.index(a) for a in wanted], range(len(wanted)))
    return moved.reshape([SIZES["c"] if "c" in letters else 1, *(SIZES[a] for a in "zyx" if a in letters)])


ORDERS = ["".join(order) for kept in ("yx", "cyx", "zyx", "czyx", "tczyx") for order in itertools.permutations(kept)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_order_of_axes_in_a_zarr(tmp_path_factory: Any, data: st.DataObject) -> None:
    letters = data.draw(st.sampled_from(ORDERS))
    values = RNG.integers(0, 60000, [SIZES[a] for a in letters], dtype=np.uint16)
    mixed = {"z": "millimeter", "y": "micrometer", "x": "nanometer"}
    units = data.draw(st.sampled_from([UM, dict.fromkeys("zyx", "nanometer"), mixed]))
    path = plain.image(
        tmp_path_factory.mktemp("z") / "a.zarr", [values], letters, [STEPS], units, shifts=[STARTS],
        order=data.draw(st.sampled_from("CF")), omero=[{"label": n} for n in ("DAPI", "CD31", "CD8")] if "c" in letters else None,
    )  # fmt: skip
    wanted = canonical(values, letters)
    spatial = [a for a in "zyx" if a in letters]
    length = {"micrometer": 1e-6, "nanometer": 1e-9, "millimeter": 1e-3}
    of_x = length[units["x"]]
    image = rf.open(path)
    assert isinstance(image, rf.Image)
    assert np.array_equal(image.data.numpy(), wanted)
    assert image.grid.spacing == pytest.approx([STEPS[a] * length[units[a]] / of_x for a in spatial])
    assert image.grid.origin == pytest.approx([STARTS[a] * length[units[a]] / of_x for a in spatial])
    assert image.channels == (("DAPI", "CD31", "CD8") if "c" in letters else ("0",))
    level = rf.open_pyramid(path).levels[0]
    window = tuple(slice(*sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))) for n in wanted.shape[1:])
    if all(w.stop > w.start for w in window):
        assert np.array_equal(level.read(window), wanted[(slice(None), *window)])
    if "c" in letters:
        picked = rf.open(path, channels=["CD8", "DAPI"])
        assert np.array_equal(picked.data.numpy(), wanted[[2, 0]])
    if "z" in letters:
        plane = rf.open(path, z=2)
        assert np.array_equal(plane.data.numpy(), wanted[:, 2])
        assert plane.grid.spacing == image.grid.spacing[1:]


@pytest.mark.parametrize("letters", ORDERS[:32])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_order_of_axes_in_an_array(tmp_path: Path, letters: str, order: Any) -> None:
    values = np.asarray(RNG.integers(0, 255, [SIZES[a] for a in letters], dtype=np.uint8), order=order)
    np.save(tmp_path / "a.npy", values)
    stated = [STEPS[a] for a in "zyx" if a in letters]
    for source in (tmp_path / "a.npy", values):
        opened = rf.open(source, axes=letters, spacing=stated)
        assert np.array_equal(opened.data.numpy(), canonical(values, letters))
        assert opened.grid.spacing == tuple(stated)


@pytest.mark.parametrize("letters", [o for o in ORDERS if len(o) < 4])
def test_every_order_of_axes_in_a_tiff(tmp_path: Path, letters: str) -> None:
    values = RNG.integers(0, 255, [SIZES[a] for a in letters], dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values, metadata={"axes": letters.upper()}, photometric="minisblack")
    assert np.array_equal(rf.open(tmp_path / "a.tif").data.numpy(), canonical(values, letters))


def test_levels_of_a_pyramid_in_another_order(tmp_path: Path) -> None:
    full = RNG.integers(0, 255, (16, 24, 3), dtype=np.uint8)  # x, y, c
    levels = [full, np.ascontiguousarray(full[::2, ::2])]
    scales = [{"x": 0.5 * f, "y": 0.25 * f} for f in (1, 2)]
    shifts = [{"x": 0.0, "y": 0.0}, {"x": 0.25, "y": 0.125}]
    path = plain.image(tmp_path / "a.zarr", levels, "xyc", scales, UM, shifts=shifts)
    coarse = rf.open(path, level=1)
    assert (coarse.grid.shape, coarse.grid.spacing, coarse.grid.origin) == ((12, 8), (0.5, 1.0), (0.125, 0.25))
    assert np.array_equal(coarse.data.numpy(), levels[1].transpose(2, 1, 0))


def test_axes_that_are_words(tmp_path: Path) -> None:
    words = {"width": "x", "height": "y", "depth": "z"}
    path = plain.image(tmp_path / "a.zarr", [STACK.transpose(2, 1, 0)], "xyz", [STEPS], UM)
    text = (path / ".zattrs").read_text()
    for word, letter in words.items():
        text = text.replace(f'"name": "{letter}"', f'"name": "{word}"')
    (path / ".zattrs").write_text(text)
    opened = rf.open(path)
    assert np.array_equal(opened.data[0].numpy(), STACK)
    assert opened.grid.spacing == (3.0, 0.5, 0.25)


def test_the_cases_of_stored_order() -> None:
    folder = plain.case("09")
    zyx = np.load(folder / "zyx.npy")
    opened = rf.open(folder / "xyz.ome.zarr")
    assert np.array_equal(opened.data[0].numpy(), zyx)
    for name in ("xyz.ome.zarr", "xyz_cube.ome.zarr"):
        assert rf.open(folder / name).grid.spacing == (4.0, 0.25, 0.5)
    assert rf.open(folder / "xyc.ome.zarr").grid.spacing == (0.25, 0.5)
    xy = np.load(folder / "xy.npy")
    assert np.array_equal(rf.open(folder / "xy.npy", axes="xy").data[0].numpy(), xy.T)


# ---- units ---------------------------------------------------------------------------------------------------------------

POWERS = {
    "Ym": 24, "Zm": 21, "Em": 18, "Pm": 15, "Tm": 12, "Gm": 9, "Mm": 6, "km": 3, "hm": 2, "dam": 1, "m": 0, "dm": -1, "cm": -2,
    "mm": -3, "µm": -6, "nm": -9, "pm": -12, "fm": -15, "am": -18, "zm": -21, "ym": -24, "Å": -10,
}  # fmt: skip
"""OME's metric units of length, typed from the schema: powers of ten in metres."""
LENGTHS = {unit: Fraction(10) ** power for unit, power in POWERS.items()} | {
    "thou": Fraction(254, 10**7), "li": Fraction(254, 120000), "in": Fraction(254, 10000), "ft": Fraction(3048, 10000),
    "yd": Fraction(9144, 10000), "mi": Fraction(1609344, 1000), "pt": Fraction(254, 720000), "ua": Fraction(149597870700),
    "ly": Fraction(9460730472580800), "pc": Fraction(30856775814913673),
}  # fmt: skip
SPELLED = {
    "angstrom": "Å", "Ångström": "Å", "\u212b": "Å", "Angstroms": "Å", "micrometer": "µm", "micrometre": "µm", "microns": "µm",
    "Micron": "µm", "um": "µm", "\u03bcm": "µm", "\\u00B5m": "µm", "UM": "µm", "nanometers": "nm", "NM": "nm", "decimeter": "dm",
    "decimetre": "dm", "kilometer": "km", "picometre": "pm", "femtometer": "fm", "millimetres": "mm", " mm ": "mm", '"mm"': "mm",
    "inch": "in", "inches": "in", "feet": "ft", "yard": "yd", "miles": "mi", "parsec": "pc", "Meter": "m", "megameter": "Mm",
}  # fmt: skip
"""Other spellings, of UDUNITS-2 (which OME-Zarr prescribes), ImageJ and people."""
METRES = {"nm": 1e-9, "µm": 1e-6, "mm": 1e-3, "cm": 1e-2, "m": 1.0}


def in_metres(grid: rf.Grid) -> tuple[float, ...]:
    return tuple(s * METRES[grid.unit] for s in grid.spacing)


@pytest.mark.parametrize("unit", [*LENGTHS, *SPELLED])
def test_every_unit_of_length(tmp_path: Path, unit: str) -> None:
    wanted = float(Fraction(5, 2) * LENGTHS[SPELLED.get(unit, unit)])
    store = plain.image(tmp_path / "a.zarr", [PLANE], "yx", [dict.fromkeys("yx", 2.5)], dict.fromkeys("yx", unit))
    sizes = {f"PhysicalSize{a}": 2.5 for a in "XY"} | {f"PhysicalSize{a}Unit": unit.replace('"', "") for a in "XY"}
    tifffile.imwrite(tmp_path / "a.ome.tif", PLANE, ome=True, metadata={"axes": "YX", **sizes})
    for path in (store, tmp_path / "a.ome.tif"):
        grid, words = said(path)
        assert words == ""
        assert in_metres(grid) == pytest.approx((wanted, wanted), rel=1e-12)


@pytest.mark.parametrize("unit", ["dm", "Å", "pm", "km", "nm", "mm"])
def test_a_unit_of_z_of_its_own(tmp_path: Path, unit: str) -> None:
    sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25, "PhysicalSizeZ": 2.0, "PhysicalSizeZUnit": unit}
    tifffile.imwrite(
        tmp_path / "a.ome.tif", STACK, ome=True, metadata={"axes": "ZYX", **sizes}, photometric="minisblack"
    )
    grid, words = said(tmp_path / "a.ome.tif")
    assert (grid.unit, grid.spacing[1:], words) == ("µm", (0.25, 0.5), "")
    assert grid.spacing[0] == pytest.approx(float(2 * LENGTHS[unit] / LENGTHS["µm"]))


@pytest.mark.parametrize(
    ("unit", "number", "wanted", "quoted"),
    [
        ("slice", 1.0, 0.5, "1 slice"),
        ("pixel", 4.0, 2.0, "4 pixel"),
        ("reference frame", 1.0, 0.5, "1 reference frame"),
        ("furlong", 7.0, 0.5, "7 furlong"),
        (None, 3.0, 3.0, "3 without a unit"),
    ],
)
def test_what_is_no_length_is_quoted(
    tmp_path: Path, unit: str | None, number: float, wanted: float, quoted: str
) -> None:
    scale = {"z": number, "y": 0.25, "x": 0.5}
    path = plain.image(tmp_path / "a.zarr", [STACK], "zyx", [scale], UM | {"z": unit})  # type: ignore[dict-item]
    grid, words = said(path)
    assert (grid.unit, grid.spacing) == ("µm", (wanted, 0.25, 0.5))
    assert quoted in words
    assert quoted in notes(path)
    grid, words = said(path, spacing=(2.0, 0.25, 0.5))
    assert (grid.spacing, words) == ((2.0, 0.25, 0.5), "")
    with pytest.raises(ValueError, match=r"wanted the pixel size that a\.zarr declares"):
        rf.open(path, spacing=(2.0, 0.25, 0.25))


@pytest.mark.parametrize("bad", [-2.0, 0.0, math.nan, math.inf])
@pytest.mark.parametrize("axis", ["z", "y"])
def test_a_number_that_is_no_spacing(tmp_path: Path, bad: float, axis: str) -> None:
    scale = {"z": 3.0, "y": 0.25, "x": 0.5} | {axis: bad}
    path = plain.image(tmp_path / "a.zarr", [STACK], "zyx", [scale], UM)
    grid, words = said(path)
    wanted = {"z": 3.0, "y": 0.25, "x": 0.5} | {axis: 2.0 if bad == -2 else 0.5}
    assert (grid.unit, grid.spacing) == ("µm", tuple(wanted[a] for a in "zyx"))
    assert f"declares a spacing of {bad:g} along {axis}" in words


def test_an_axis_that_the_user_names_keeps_the_others(tmp_path: Path) -> None:
    path = plain.image(tmp_path / "a.zarr", [STACK], "cyx", [{"y": 0.25, "x": 0.5}], UM)
    grid, words = said(path, axes="zyx")
    assert (grid.unit, grid.spacing) == ("µm", (0.5, 0.25, 0.5))
    assert "declares no spacing along z; 0.5 µm is taken" in words
    assert said(path, axes="zyx", spacing=(2, 0.25, 0.5)) == (rf.Grid((4, 6, 9), (2, 0.25, 0.5), (), "µm"), "")


def test_x_alone_makes_square_pixels(tmp_path: Path) -> None:
    metadata = {"axes": "ZYX", "PhysicalSizeX": 0.5}
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK, ome=True, metadata=metadata, photometric="minisblack")
    grid, words = said(tmp_path / "a.ome.tif")
    assert (grid.unit, grid.spacing) == ("µm", (0.5, 0.5, 0.5))
    assert "declares no spacing along y; 0.5 µm is taken" in words
    assert "declares no spacing along z; 0.5 µm is taken" in words


@pytest.mark.parametrize("units", [{}, dict.fromkeys("zyx", "pixel"), dict.fromkeys("zyx", "arbitrary")])
def test_without_any_length_the_aspect_is_kept(tmp_path: Path, units: dict[str, str]) -> None:
    path = plain.image(tmp_path / "a.zarr", [STACK], "zyx", [{"z": 3.0, "y": 0.25, "x": 0.5}], units)
    grid, words = said(path)
    assert grid.unit == "px"
    assert np.divide(grid.spacing, grid.spacing[1]) == pytest.approx((12.0, 1.0, 2.0))
    assert ("arbitrary" in words) is ("arbitrary" in units.values())
    assert "0.25" in notes(path)
    assert said(path, spacing=(3, 0.25, 0.5))[0].unit == "µm"


IMAGEJ: list[tuple[dict[str, Any], str, tuple[float, ...], str]] = [
    ({"unit": "micron"}, "µm", (0.25, 0.5), ""),
    ({"unit": "micron", "yunit": "nm"}, "µm", (0.25e-3, 0.5), ""),
    ({"unit": "\\u00B5m", "yunit": "mm"}, "µm", (250.0, 0.5), ""),
    ({"unit": "μm"}, "µm", (0.25, 0.5), ""),
    ({"unit": "dm"}, "cm", (2.5, 5.0), ""),
    ({"unit": "angstrom"}, "nm", (0.025, 0.05), ""),
    ({"unit": "inch"}, "px", (1.0, 2.0), ""),
    ({"unit": "pixel"}, "px", (1.0, 2.0), ""),
    ({"unit": "furlong"}, "px", (1.0, 2.0), "furlong"),
    ({"unit": "micron", "yunit": "furlong"}, "µm", (0.5, 0.5), "0.25 furlong"),
]


@pytest.mark.parametrize(("metadata", "unit", "spacing", "quoted"), IMAGEJ)
def test_units_of_imagej(
    tmp_path: Path, metadata: dict[str, Any], unit: str, spacing: tuple[float, ...], quoted: str
) -> None:
    greek = metadata.get("unit") == "μm"  # which the writer refuses
    metadata = {"axes": "YX", **metadata, **({"unit": "GGm"} if greek else {})}
    tifffile.imwrite(tmp_path / "a.tif", PLANE, imagej=True, resolution=(2.0, 4.0), metadata=metadata)
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(whole.replace(b"GGm", "μm".encode()))
    grid, words = said(tmp_path / "a.tif")
    assert grid.unit == unit
    assert grid.spacing == pytest.approx(spacing)
    assert quoted in words if quoted else words == ""


@pytest.mark.parametrize(("spacing", "zunit", "wanted"), [(-3.0, None, 3.0), (3.0, "nm", 3e-3), (1.0, "slice", 0.5)])
def test_z_of_imagej(tmp_path: Path, spacing: float, zunit: str | None, wanted: float) -> None:
    metadata = {"axes": "ZYX", "unit": "micron", "spacing": spacing, **({"zunit": zunit} if zunit else {})}
    tifffile.imwrite(tmp_path / "a.tif", STACK, imagej=True, resolution=(2.0, 2.0), metadata=metadata)
    grid, words = said(tmp_path / "a.tif")
    assert (grid.unit, grid.spacing) == ("µm", pytest.approx((wanted, 0.5, 0.5)))
    assert bool(words) is (zunit != "nm")


def nrrd(path: Path, *lines: str) -> Path:
    """A volume of 4 × 6 × 9 pixels, 3 × 0.25 × 0.5 apart, with more lines in its header."""
    head = [
        "NRRD0004", "type: uint8", "dimension: 3", "space: left-posterior-superior", "sizes: 9 6 4",
        "space directions: (0.5,0,0) (0,0.25,0) (0,0,3)", "kinds: domain domain domain", "encoding: raw",
        "space origin: (10,-20,30)", *lines,
    ]  # fmt: skip
    path.write_bytes("\n".join(head).encode() + b"\n\n" + STACK.tobytes())
    return path


def test_units_of_nrrd(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK", reason="needs the extra itk")
    bare, words = said(nrrd(tmp_path / "a.nrrd"))
    assert (bare.unit, words) == ("px", "")
    assert np.divide(bare.spacing, bare.spacing[1]) == pytest.approx((12.0, 1.0, 2.0))
    assert "in no unit of length" in notes(tmp_path / "a.nrrd")
    grid, words = said(nrrd(tmp_path / "b.nrrd", 'space units: "um" "nm" "mm"'))
    assert (grid.unit, words) == ("µm", "")
    assert grid.spacing == pytest.approx((3000.0, 0.25e-3, 0.5))
    assert grid.origin == pytest.approx((30000.0, -0.02, 10.0))
    grid, words = said(nrrd(tmp_path / "c.nrrd", 'space units: "mm" "mm" "s"'))
    assert (grid.unit, grid.spacing) == ("mm", (0.5, 0.25, 0.5))
    assert "3 s, which is no length" in words
    one = nrrd(tmp_path / "d.nrrd", 'space units: "angstrom" "angstrom" "angstrom"')
    assert said(one)[0].spacing == pytest.approx((0.3, 0.025, 0.05))


@pytest.mark.parametrize(
    ("name", "spacing"),
    [
        ("yunit.tif", (0.25, 0.5)),
        ("micrometer.tif", (0.25, 0.5)),
        ("greekmu.tif", (0.25, 0.5)),
        ("negz.tif", (3.0, 0.5, 0.5)),
    ],
)
def test_the_cases_of_units(name: str, spacing: tuple[float, ...]) -> None:
    grid, words = said(plain.case(f"04/{name}"))
    assert grid.unit == "µm"
    assert grid.spacing == pytest.approx(spacing)
    assert ("-3" in words) is (name == "negz.tif")


# ---- contradictions ------------------------------------------------------------------------------------------------------


def nifti(path: Path, codes: tuple[int, int], change: Any) -> Path:
    """A NIfTI-1 file of 4 × 6 × 9 pixels whose sform ``[3, 4]`` was changed; ``codes`` of qform and sform."""
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, 3, 9, 6, 4, 1, 1, 1, 1)
    struct.pack_into("<2h", head, 70, 2, 8)
    struct.pack_into("<8f", head, 76, 1, 0.5, 0.25, 3, 0, 0, 0, 0)
    struct.pack_into("<f", head, 108, 352)
    head[123] = 2  # mm
    struct.pack_into("<2h", head, 252, *codes)
    struct.pack_into("<6f", head, 256, 0, 0, 0, 10, 20, 30)
    sform = np.array([[0.5, 0, 0, 10], [0, 0.25, 0, 20], [0, 0, 3, 30]], np.float64)
    struct.pack_into("<12f", head, 280, *change(sform).ravel())
    head[344:348] = b"n+1\0"
    path.write_bytes(bytes(head) + STACK.tobytes())
    return path


def mirrored(axis: int) -> Any:
    return lambda sform: sform * np.where(np.arange(4) == axis, -1, 1)


def sheared(amount: float) -> Any:
    return lambda sform: sform + amount * np.array([[0, 0.25, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_sform_that_mirrors_the_qform(tmp_path: Path, axis: int) -> None:
    pytest.importorskip("SimpleITK", reason="needs the extra itk")
    path = nifti(tmp_path / "a.nii", (1, 2), mirrored(axis))
    with pytest.raises(ValueError, match=r"wanted one orientation in .* mirror image of its qform"):
        rf.open(path)
    grid, words = said(path, override=True)
    assert "the sform is taken, as was asked for" in words
    alone, words = said(nifti(tmp_path / "b.nii", (0, 2), mirrored(axis)))
    assert (alone, words) == (grid, "")


@pytest.mark.parametrize("amount", [0.05, 0.5, 3.0])
def test_a_sheared_sform(tmp_path: Path, amount: float, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("SimpleITK", reason="needs the extra itk")
    with pytest.raises(ValueError, match="wanted axes that stand upright on each other, got a sheared sform"):
        rf.open(nifti(tmp_path / "a.nii", (0, 2), sheared(amount)))
    grid, words = said(nifti(tmp_path / "b.nii", (1, 2), sheared(amount)))
    assert grid == said(nifti(tmp_path / "c.nii", (1, 1), lambda sform: sform))[0]
    assert words == "b.nii has a sheared sform, which no grid follows; its qform is taken instead"
    text = "".join(capfd.readouterr())
    assert "ITK" not in text
    assert "WARNING" not in text


@pytest.mark.parametrize("amount", [1e-4, 1e-3, 5e-3])
def test_an_sform_that_is_upright_but_for_rounding(tmp_path: Path, amount: float) -> None:
    pytest.importorskip("SimpleITK", reason="needs the extra itk")
    grid, words = said(nifti(tmp_path / "a.nii", (0, 2), sheared(amount)))
    assert (grid.spacing, words) == ((3.0, 0.25, 0.5), "")


def test_an_sform_of_another_pixel_size(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK", reason="needs the extra itk")
    path = nifti(tmp_path / "a.nii", (0, 1), lambda sform: sform * [2, 1, 1, 1])
    with pytest.raises(ValueError, match="got an sform 100% off its field pixdim"):
        rf.open(path)
    assert said(path, override=True)[0].spacing == (3.0, 0.25, 0.5)
    grid, words = said(nifti(tmp_path / "b.nii", (1, 1), lambda sform: sform * [2, 1, 1, 1]))
    assert grid.spacing == (3.0, 0.25, 0.5)
    assert "pixdim is taken" in words


def test_sheared_axes_of_text_formats(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK", reason="needs the extra itk")
    text = nrrd(tmp_path / "a.nrrd").read_bytes().replace(b"(0,0.25,0)", b"(0.1,0.25,0)")
    (tmp_path / "a.nrrd").write_bytes(text)
    head = "ObjectType = Image\nNDims = 3\nBinaryData = True\nTransformMatrix = 1 0 0 0.3 1 0 0 0 1\nElementSpacing = 0.5 2 3\n"
    head += "DimSize = 9 6 4\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    (tmp_path / "b.mha").write_bytes(head.encode() + STACK.tobytes())
    for name in ("a.nrrd", "b.mha"):
        with pytest.raises(ValueError, match="wanted axes that stand upright on each other"):
            rf.open(tmp_path / name)
