"""The merged slide read by libraries that are not regframe's: tifffile, the OME schema, ome-zarr-models, bioio.

    python benchmarks/elsewhere.py make FOLDER   # where regframe is installed: two made rounds, merged as OME-Zarr and OME-TIFF
    python benchmarks/elsewhere.py read FOLDER   # anywhere else: pip install bioio bioio-ome-zarr bioio-ome-tiff ome-zarr-models

Both slides must give the same channel names, colours, wavelengths, pixel size and pixels as were put in. For QuPath, which runs
on Java and is not run here, what it reads is looked at: OME-XML that is valid by the schema of June 2016, channels with names and
colours, physical sizes, and a pyramid in SubIFDs that halves. What is not installed is named and left out; the exit code is the
number of things that are wrong.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

ZARR, TIFF, WANTED = "merged.ome.zarr", "merged.ome.tif", "wanted.json"
SIZE, PIXEL = 640, 0.5
"""Pixels per axis of the rounds, above the size from which a slide has a pyramid; µm per pixel."""


def make(folder: Path) -> None:
    """Write two made rounds, merged in both formats, and beside them what readers should find."""
    from rounds import make as make_rounds

    import regframe as rf

    folder.mkdir(parents=True, exist_ok=True)
    made = make_rounds(folder, SIZE, 2, seed=3, odd=False)
    group = rf.register_group(made.paths, reference=0, transform="rigid")
    for name in (ZARR, TIFF):
        rf.merge_group(group, folder / name, workers=1, overwrite=True)
    names = ["DAPI (round01)", "M0", "M1", "M2", "DAPI (round02)", "M3", "M4", "M5"]
    colours = ["FFFFFF", "00FF00", "00FF00", "00FF00"] * 2  # as the rounds state them
    wanted = {"names": names, "colours": colours, "waves": [461, 519, 565, 665] * 2, "pixel": PIXEL, "size": SIZE}
    (folder / WANTED).write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")


class Check:
    """Prints one line per question, and counts those that are answered otherwise than they should be."""

    def __init__(self) -> None:
        self.wrong = 0

    def __call__(self, what: str, found: Any, wanted: Any) -> None:
        """Whether ``found`` is ``wanted``."""
        good = found == wanted
        self.wrong += not good
        print(f"  {'ok   ' if good else 'WRONG'} {what}: {found}" + ("" if good else f", wanted {wanted}"))


def with_tifffile(folder: Path, wanted: dict[str, Any], check: Check) -> None:
    """The pages of the OME-TIFF: one series of all channels, and a pyramid in SubIFDs."""
    with tifffile.TiffFile(folder / TIFF) as file:
        check("is OME", file.is_ome, True)
        series = file.series[0]
        check("axes and shape", (series.axes, series.shape), ("CYX", (len(wanted["names"]), SIZE, SIZE)))
        check("levels", [level.shape[1] for level in series.levels], [SIZE // 2**n for n in range(len(series.levels))])
        check("more than one level", len(series.levels) > 1, True)
        subs = [len(page.subifds or ()) for page in series.levels[0].pages]
        check("SubIFDs of every page", subs, [len(series.levels) - 1] * len(wanted["names"]))
        check("tiled", series.keyframe.is_tiled, True)


def with_schema(folder: Path, wanted: dict[str, Any], check: Check) -> None:
    """The OME-XML: valid by the schema, and what it says of the channels."""
    import ome_types
    import xmlschema

    text = tifffile.tiffcomment(folder / TIFF)
    schema = xmlschema.XMLSchema(Path(ome_types.__file__).parent / "ome-2016-06.xsd")
    check("valid by OME 2016-06", [str(error.reason) for error in schema.iter_errors(text)], [])
    pixels = ome_types.from_xml(text).images[0].pixels
    check("names", [c.name for c in pixels.channels], wanted["names"])
    check("colours", [_hex(c.color) for c in pixels.channels], wanted["colours"])
    check("wavelengths", [c.emission_wavelength for c in pixels.channels], wanted["waves"])
    sizes = {(getattr(pixels, f"physical_size_{a}"), getattr(pixels, f"physical_size_{a}_unit").value) for a in "xy"}
    check("pixel size", sizes, {(wanted["pixel"], "µm")})


def _hex(colour: Any) -> str:
    return "".join(f"{value:02X}" for value in colour.as_rgb_tuple(alpha=False))


def with_models(folder: Path, wanted: dict[str, Any], check: Check) -> None:
    """The OME-Zarr, validated, and what its metadata say."""
    import ome_zarr_models
    import zarr
    from ome_zarr_models.common.omero import Omero

    group = ome_zarr_models.open_ome_zarr(zarr.open_group(str(folder / ZARR), mode="r"))
    said = group.attributes.ome
    check("kind", (type(group).__name__, said.version), ("Image", "0.5"))
    shown = Omero.model_validate(said.omero).channels
    check("names", [c.label for c in shown], wanted["names"])
    check("colours", [c.color.upper() for c in shown], wanted["colours"])
    scale = said.multiscales[0].datasets[0].coordinateTransformations[0].scale
    check("pixel size", list(scale[-2:]), [wanted["pixel"]] * 2)
    check("unit", [axis.unit for axis in said.multiscales[0].axes][-2:], ["micrometer"] * 2)


def with_bioio(folder: Path, wanted: dict[str, Any], check: Check) -> None:
    """Both slides through bioio: names, pixel size, levels, and the same pixels in both."""
    from bioio import BioImage

    read = {}
    for name in (ZARR, TIFF):
        image = BioImage(folder / name)
        check(f"{name}: names", [str(one) for one in image.channel_names], wanted["names"])
        check(f"{name}: pixel size", (image.physical_pixel_sizes.Y, image.physical_pixel_sizes.X), (PIXEL, PIXEL))
        check(f"{name}: shape", image.shape, (1, len(wanted["names"]), 1, SIZE, SIZE))
        if name == ZARR:  # bioio-ome-tiff 1.4 reads no pyramid of any TIFF
            check(f"{name}: levels", len(image.resolution_levels) > 1, True)
        read[name] = np.asarray(image.data)
    check("the same pixels", bool(np.array_equal(read[ZARR], read[TIFF])), True)
    check("pixels", str(read[ZARR].dtype), "uint16")


READERS: tuple[tuple[str, tuple[str, ...], Callable[[Path, dict[str, Any], Check], None]], ...] = (
    ("tifffile", ("tifffile",), with_tifffile),
    ("schema of OME 2016-06", ("ome_types", "xmlschema"), with_schema),
    ("ome-zarr-models", ("ome_zarr_models",), with_models),
    ("bioio", ("bioio", "bioio_ome_zarr", "bioio_ome_tiff"), with_bioio),
)


def missing(names: tuple[str, ...]) -> Iterator[str]:
    """Those of some packages that are not installed."""
    return (name for name in names if importlib.util.find_spec(name) is None)


def read(folder: Path) -> int:
    """Read both slides with all that is installed; the number of things that are wrong."""
    wanted, check = json.loads((folder / WANTED).read_text(encoding="utf-8")), Check()
    for name, packages, reader in READERS:
        lacking = list(missing(packages))
        print(f"{name}: not read, {', '.join(lacking)} is missing" if lacking else f"{name}:")
        if not lacking:
            reader(folder, wanted, check)
    print(f"{check.wrong} wrong")
    return check.wrong


if __name__ == "__main__":
    what, where = sys.argv[1], Path(sys.argv[2])
    if what not in ("make", "read"):
        sys.exit(f"wanted make or read, got {what!r}")
    sys.exit(make(where) if what == "make" else read(where))
