"""OME-Zarr as other programs write it: bioformats2raw's layout, ngff-zarr, ome-zarr-py; and conformance with transformations."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from regframe_image.adapter import ImageAdapter

import regframe as rf
from regframe.io.scene import read_standard

RNG = np.random.default_rng(3)
SIZES = {"t": 1, "c": 2, "z": 3, "y": 36, "x": 44}
SCALE = {"z": 2.0, "y": 0.5, "x": 0.25}
SHIFT = {"z": 10.0, "y": -3.0, "x": 7.0}


def pixels(dims: str, **sizes: int) -> Any:
    return RNG.integers(0, 255, [(SIZES | sizes)[a] for a in dims]).astype(np.uint8)


def as_read(data: Any, dims: str) -> Any:
    """``[C, (z,) y, x]`` of an array with axes ``dims``."""
    kept = [a for a in dims if a != "t"]
    data = data.reshape([n for n, a in zip(data.shape, dims, strict=True) if a != "t"])
    wanted = [a for a in "czyx" if a in kept]
    data = data.transpose([kept.index(a) for a in wanted])
    return data if "c" in kept else data[None]


def multiscale(group: Any, data: Any, dims: str, version: str, name: str = "", **attributes: Any) -> None:
    """A pyramid of two levels by hand, every second pixel, with the metadata of a version."""
    datasets = []
    for k in range(2):
        part = data[tuple(slice(None, None, 2**k if a in "yx" else None) for a in dims)]
        key = f"{name}{k}"
        keys = {} if group.metadata.zarr_format == 3 else {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
        group.create_array(key, shape=part.shape, dtype=part.dtype, **keys)[...] = part
        entry: dict[str, Any] = {"path": key}
        if version >= "0.4":
            steps = [{"type": "scale", "scale": [SCALE.get(a, 1.0) * (2**k if a in "yx" else 1) for a in dims]}]
            entry["coordinateTransformations"] = steps
        datasets.append(entry)
    kinds = {"t": {"type": "time"}, "c": {"type": "channel"}}
    axes: list[Any] = [{"name": a, **kinds.get(a, {"type": "space", "unit": "micrometer"})} for a in dims]
    one: dict[str, Any] = {"datasets": datasets}
    if version >= "0.4":
        one["axes"] = axes
    elif version == "0.3":
        one["axes"] = list(dims)
    if version < "0.5":
        group.attrs.update({"multiscales": [{"version": version, **one}], **attributes})
    else:
        group.attrs["ome"] = {"version": version, "multiscales": [one], **attributes}


def xml(*images: tuple[str, int, int, float]) -> str:
    """The OME-XML beside images of a name, columns, rows and micron per pixel."""
    parts = (
        f'<Image ID="Image:{i}" Name="{name}"><Pixels SizeX="{x}" SizeY="{y}" PhysicalSizeX="{size / 2}" PhysicalSizeY="{size}" '
        f'PhysicalSizeZ="{4 * size}"><Channel Name="DAPI" Color="65535"/><Channel Name="Cy5" Color="-16776961"/></Pixels></Image>'
        for i, (name, x, y, size) in enumerate(images)
    )
    return f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{"".join(parts)}</OME>'


def bioformats2raw(path: Path, images: dict[str, tuple[str, Any]], version: str, text: str, series: list[str]) -> Path:
    """A store of bioformats2raw's layout 3: images by their path, each with a name and an array of five axes."""
    root = zarr.open_group(str(path), mode="w", zarr_format=3 if version >= "0.5" else 2)
    said: dict[str, Any] = {"bioformats2raw.layout": 3}
    root.attrs.update(said if version < "0.5" else {"ome": {"version": version, **said}})
    for key, (_, data) in images.items():
        multiscale(root.create_group(key), data, "tczyx", version)
    beside = root.create_group("OME")
    if series:
        beside.attrs.update({"series": series} if version < "0.5" else {"ome": {"version": version, "series": series}})
    (path / "OME" / "METADATA.ome.xml").write_text(text)
    return path


@pytest.mark.parametrize("version", ["0.1", "0.2", "0.3", "0.4", "0.5"])
@pytest.mark.parametrize("listed", [True, False])
def test_bioformats2raw_takes_the_scan_and_lists_all(tmp_path: Path, version: str, listed: bool) -> None:
    scan, label = pixels("tczyx"), pixels("tczyx", y=20, x=18)
    text = xml(("label image", 18, 20, 0.5), ("scan", 44, 36, 0.5))
    order = ["b", "a"] if listed else []
    keys = ("b", "a") if listed else ("0", "1")
    images = {keys[1]: ("scan", scan), keys[0]: ("label", label)}
    path = bioformats2raw(tmp_path / "a.zarr", images, version, text, order)
    with pytest.warns(UserWarning, match="holds 2 images; series 1 .scan"):
        pyramid = ImageAdapter().pyramid(path)
    assert [(s.name, s.role, s.read) for s in pyramid.series] == [
        ("label image", "label", False),
        ("scan", "image", True),
    ]
    grid = pyramid.grid
    assert (grid.spacing, grid.origin, grid.unit) == ((2.0, 0.5, 0.25), (0.0, 0.0, 0.0), "µm")
    assert pyramid.channels == ("DAPI", "Cy5")
    assert pyramid.colors == ("0000FF", "FF0000")
    assert np.array_equal(pyramid.levels[0].read(tuple(slice(0, n) for n in grid.shape)), scan[0])
    assert pyramid.levels[1].grid.spacing == (2.0, 1.0, 0.5)
    with pytest.warns(UserWarning, match="what is read is its label"):
        chosen = ImageAdapter(series="label image").open(path)
    assert np.array_equal(chosen.data.numpy(), label[0])


def test_a_size_in_the_xml_that_contradicts_is_refused(tmp_path: Path) -> None:
    path = bioformats2raw(tmp_path / "a.zarr", {"0": ("", pixels("tczyx"))}, "0.4", xml(("scan", 44, 36, 0.6)), [])
    with pytest.raises(ValueError, match="wanted one pixel size"):
        ImageAdapter().open(path)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_fields_of_a_plate_are_series(tmp_path: Path, version: str) -> None:
    path = tmp_path / "plate.zarr"
    root = zarr.open_group(str(path), mode="w", zarr_format=3 if version >= "0.5" else 2)
    rows, columns = [{"name": "A"}, {"name": "B"}], [{"name": "1"}]
    wells = [{"path": f"{row}/1", "rowIndex": i, "columnIndex": 0} for i, row in enumerate("AB")]
    plate = {"rows": rows, "columns": columns, "wells": wells}
    root.attrs.update({"plate": plate} if version < "0.5" else {"ome": {"version": version, "plate": plate}})
    stored = {}
    for row in "AB":
        well = root.create_group(f"{row}/1")
        images = {"images": [{"path": "0"}, {"path": "1"}]}
        well.attrs.update({"well": images} if version < "0.5" else {"ome": {"version": version, "well": images}})
        for field in "01":
            stored[f"{row}/1/{field}"] = pixels("cyx")
            multiscale(well.create_group(field), stored[f"{row}/1/{field}"], "cyx", version)
    with pytest.warns(UserWarning, match="holds 4 images; series 0"):
        assert np.array_equal(ImageAdapter().open(path).data.numpy(), stored["A/1/0"])
    assert [s.name for s in ImageAdapter(series=3).pyramid(path).series] == list(stored)
    assert np.array_equal(ImageAdapter(series="B/1/0").open(path).data.numpy(), stored["B/1/0"])
    with pytest.raises(ValueError, match=r"wanted a series of plate\.zarr .0 A/1/0, 1 A/1/1"):
        ImageAdapter(series="C/1/0").open(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::RuntimeWarning")
@pytest.mark.filterwarnings("ignore:.*(Consolidated|consolidated).*:UserWarning")
@pytest.mark.parametrize("version", ["0.4", "0.5", "0.6"])
@pytest.mark.parametrize("dims", ["yx", "cyx", "zyx", "yxc", "tczyx"])
def test_files_of_ngff_zarr(tmp_path: Path, version: str, dims: str) -> None:
    nz: Any = pytest.importorskip("ngff_zarr", reason="ngff-zarr is not installed", exc_type=ImportError)
    da: Any = pytest.importorskip("dask.array", reason="dask is not installed")
    data = pixels(dims)
    scale, shift = ({a: table.get(a, default) for a in dims} for table, default in ((SCALE, 1.0), (SHIFT, 0.0)))
    levels = []
    for k in range(2):
        part = data[tuple(slice(None, None, 2**k if a in "yx" else None) for a in dims)]
        step = {a: s * (2**k if a in "yx" else 1) for a, s in scale.items()}
        units = dict.fromkeys((a for a in dims if a in "zyx"), "micrometer")
        levels.append(nz.NgffImage(da.from_array(part, chunks=part.shape), tuple(dims), step, shift, "img", units))
    whole = nz.to_multiscales(levels[0], scale_factors=[], chunks=32)
    nz.to_ome_zarr(str(tmp_path / "a.ome.zarr"), whole, version=version)
    image = ImageAdapter().open(tmp_path / "a.ome.zarr")
    assert np.array_equal(image.data.numpy(), as_read(data, dims))
    assert image.grid.spacing == tuple(scale[a] for a in image.grid.axes)
    assert image.grid.origin == tuple(shift[a] for a in image.grid.axes)
    assert image.grid.unit == "µm"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::RuntimeWarning")
@pytest.mark.filterwarnings("ignore:Scale value not provided:UserWarning")
@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("dims", ["yx", "cyx", "tczyx"])
def test_files_of_ome_zarr_py(tmp_path: Path, version: str, dims: str) -> None:
    writer: Any = pytest.importorskip("ome_zarr.writer", reason="ome-zarr is not installed", exc_type=ImportError)
    formats: Any = pytest.importorskip("ome_zarr.format")
    data, kind = pixels(dims), formats.format_from_version(version)
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=kind.zarr_format)
    told = {"axes": dims, "fmt": kind, "scale_factors": [2], "scale": {a: s for a, s in SCALE.items() if a in dims}}
    told["axes_units"] = dict.fromkeys((a for a in dims if a in "zyx"), "micrometer")
    writer.write_image(data, group, **told)
    writer.write_labels((data > 99).astype(np.uint8), group, name="cells", **told)
    pyramid = ImageAdapter().pyramid(tmp_path / "a.zarr")
    grid = pyramid.grid
    assert np.array_equal(pyramid.levels[0].read(tuple(slice(0, n) for n in grid.shape)), as_read(data, dims))
    assert (grid.spacing, grid.unit) == (tuple(SCALE[a] for a in grid.axes), "µm")
    assert pyramid.levels[1].grid.origin[-2:] == (0.25, 0.125)
    assert [(s.name, s.role) for s in pyramid.series] == [("image", "image"), ("cells", "ids")]
    assert ImageAdapter(series="cells", channels=0 if "c" in dims else None).open(tmp_path / "a.zarr").labels


@pytest.mark.parametrize(("value", "warned"), [("right-to-left", False), ("left-to-right", True)])
@pytest.mark.parametrize("plain", [True, False])
def test_the_orientation_of_a_volume_is_said_where_it_differs(
    tmp_path: Path, value: str, warned: bool, plain: bool
) -> None:
    data = pixels("zyx")
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=3)
    multiscale(group, data, "zyx", "0.5")
    ome = group.attrs["ome"]
    ome["multiscales"][0]["axes"][2]["orientation"] = value if plain else {"type": "anatomical", "value": value}
    group.attrs["ome"] = ome
    if warned:
        with pytest.warns(UserWarning, match="axes run x left-to-right; its pixels are taken as they are stored"):
            image = ImageAdapter().open(tmp_path / "a.zarr")
    else:
        image = ImageAdapter().open(tmp_path / "a.zarr")
    assert np.array_equal(image.data.numpy()[0], data)


# ------------------------------------------------------------------------------------------------- transformations (RFC 5)


def scene(path: Path, systems: str, *transformations: dict[str, Any]) -> Path:
    """A scene of systems with one letter each, axes y and x."""
    axes = [{"name": a, "type": "space"} for a in "yx"]
    ome = {
        "version": "0.6",
        "scene": {
            "coordinateSystems": [{"name": s, "axes": axes} for s in systems],
            "coordinateTransformations": list(transformations),
        },
    }
    path.mkdir()
    (path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}))
    return path


def ends(first: str, last: str, bare: bool = False) -> dict[str, Any]:
    return {"input": first, "output": last} if bare else {"input": {"name": first}, "output": {"name": last}}


HALF = {"type": "scale", "scale": [0.5]}
SAME = {"type": "identity"}
BY_AXIS: list[list[dict[str, Any]]] = [
    [
        {"transformation": HALF, "inputAxes": [1], "outputAxes": [0]},
        {"transformation": SAME, "inputAxes": [0], "outputAxes": [1]},
    ],
    [{**HALF, "input_axes": [1], "output_axes": [0]}, {**SAME, "input_axes": [0], "output_axes": [1]}],
]
"""A transformation axis by axis, as 0.6 has it and as its drafts did."""


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        ({"type": "mapAxis", "mapAxis": [1, 0]}, (2.0, 1.0)),
        ({"type": "byDimension", "transformations": BY_AXIS[0]}, (1.0, 1.0)),
        ({"type": "byDimension", "transformations": BY_AXIS[1]}, (1.0, 1.0)),
        ({"type": "translation", "translation": [10, 20]}, (11.0, 22.0)),
    ],
)
def test_transformations_both_ways(
    tmp_path: Path, bare: bool, step: dict[str, Any], wanted: tuple[float, float]
) -> None:
    path = scene(tmp_path / "a", "ab", {**step, **ends("a", "b", bare)})
    x, y = (torch.tensor([v], dtype=torch.float64) for v in ((1.0, 2.0), wanted))
    assert torch.allclose(read_standard(path, "fixed", ("b", "a")).points(x), y)
    assert torch.allclose(read_standard(path, "moving", ("b", "a")).points(y), x)


def test_a_way_leads_over_several_systems(tmp_path: Path) -> None:
    ab = {"type": "translation", "translation": [1.0, 0.0], **ends("a", "b")}
    cb = {"type": "scale", "scale": [2.0, 4.0], **ends("c", "b")}
    both = {
        "type": "bijection",
        "forward": {"type": "translation", "translation": [5.0, 5.0]},
        "inverse": {"type": "translation", "translation": [-5.0, -5.0]},
        **ends("c", "d"),
    }
    path = scene(tmp_path / "a", "abcde", ab, cb, both)
    x = torch.tensor([[3.0, 8.0]], dtype=torch.float64)
    y = read_standard(path, "fixed", ("d", "a")).points(x)
    assert y.tolist() == [[7.0, 7.0]]
    assert torch.allclose(read_standard(path, "moving", ("d", "a")).points(y), x)
    with pytest.raises(ValueError, match="got none that leads to 'e'"):
        read_standard(path, "fixed", ("e", "a"))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"type": "mapAxis", "mapAxis": [1, 1]}, "wanted an order of 2 axes at 'mapAxis'"),
        ({"type": "mapAxis", "mapAxis": [0, 1, 2]}, "wanted an order of 2 axes at 'mapAxis'"),
        ({"type": "byDimension", "transformations": BY_AXIS[0][:1]}, "wanted each of 2 output axes once"),
        (
            {"type": "byDimension", "transformations": [{**HALF, "input_axes": [5], "output_axes": [0]}]},
            "wanted numbers of axes below 2",
        ),
        ({"type": "projectAxis", "droppedInputs": [0]}, "got the transformation 'projectAxis'"),
    ],
)
def test_wrong_transformations_are_named(tmp_path: Path, step: dict[str, Any], message: str) -> None:
    path = scene(tmp_path / "a", "ab", {**step, **ends("a", "b")})
    with pytest.raises(ValueError, match=message):
        read_standard(path, "fixed", ("b", "a"))


def test_the_conformance_suite_of_transformations() -> None:
    found = importlib.util.find_spec("transformation_conformance")
    if found is None or found.origin is None:
        pytest.skip("ome-zarr-transformations-conformance is not installed")
    cases = sorted((Path(found.origin).parent / "cases").iterdir())
    assert len(cases) >= 20
    for case in cases:
        said = tomllib.loads((case / "conformance.toml").read_text())
        systems = (said["target"]["name"], said["source"]["name"])
        if said["should_error"]:
            with pytest.raises(ValueError, match="wanted a coordinate system named"):
                read_standard(case, "fixed", systems)
            continue
        x = torch.tensor(said["source"]["coordinates"], dtype=torch.float64)
        wanted = torch.tensor(said["target"]["coordinates"], dtype=torch.float64)
        y = read_standard(case, "fixed", systems).points(x)
        assert torch.allclose(y, wanted, said["relative_tolerance"], said["absolute_tolerance"]), case.name


@pytest.mark.parametrize("labels", [True, False])
def test_images_pass_the_strict_schema(tmp_path: Path, labels: bool) -> None:
    validate: Any = pytest.importorskip("ngff_zarr.validate", reason="ngff-zarr is not installed", exc_type=ImportError)
    pytest.importorskip("jsonschema", exc_type=ImportError)
    image = rf.Image.from_array(pixels("cyx", c=1), "cyx", spacing=0.5, unit="µm", labels=labels)
    rf.adapter("image").save(image, tmp_path / "a.zarr")
    attributes = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())["attributes"]
    validate.validate(attributes, version="0.5", model="image", strict=True)
    made = attributes["ome"]["multiscales"][0]["metadata"]
    assert made["version"] == rf.__version__
