"""10x Genomics Xenium: ``experiment.xenium`` names the pictures and states the pixel size; positions are in µm.

Layout: "Understanding Xenium Outputs" of Xenium Onboard Analysis 1 to 4. Until version 1.9 ``morphology_focus.ome.tif`` and
``morphology_mip.ome.tif`` lie beside the stack ``morphology.ome.tif``; from 2.0 on the folder ``morphology_focus`` has a file for
each stain (``morphology_focus_0000.ome.tif``, from 4.0 on ``ch0000_dapi.ome.tif``).
"""

from __future__ import annotations

import re
from typing import ClassVar

from .folder import Folder, Record
from .layouts import PIXEL, Choice, Found, Layout, Picture, Table, parquet_first

MANIFEST = "experiment.xenium"
"""The JSON file that every Xenium folder has."""
VERSIONS = (1, 4)
"""First and last major version of Xenium Onboard Analysis and Xenium Ranger whose layout is known here."""
_VERSION = re.compile(r"^xenium(?:[-_ ]?ranger)?[-_ ]v?(\d+)\b", re.IGNORECASE)
_HINTS = ("cells.parquet", "cells.csv.gz", "transcripts.parquet", "transcripts.csv.gz", "cell_feature_matrix.h5")
"""Files that a folder without its manifest is still told by, where there are two of them."""


class Xenium(Layout):
    """A region of a Xenium run."""

    name: ClassVar[str] = "xenium"
    signs: ClassVar[str] = MANIFEST

    def recognises(self, folder: Folder) -> float:
        """By the manifest; less sure where two other files are there without it."""
        if (folder.root / MANIFEST).is_file():
            return 0.95
        return 0.4 if sum((folder.root / name).is_file() for name in _HINTS) > 1 else 0.0

    def find(self, folder: Folder, choice: Choice) -> Found:
        """Tables, pictures and pixel size."""
        folder.needed((MANIFEST,), "the pixel size and the version", "copy the folder whole")
        manifest = folder.json(MANIFEST)
        version, notes = _version(manifest, choice.override)
        pixel = manifest.number("pixel_size", *PIXEL, "micrometres per pixel")
        if pixel is None:
            raise ValueError(f"wanted 'pixel_size' in {manifest.where!r}, got none; copy the maker's file anew")
        tables = {}
        for use, stem, columns in (
            ("cells", "cells", ("x_centroid", "y_centroid")),
            ("transcripts", "transcripts", ("x_location", "y_location")),
        ):
            name = folder.first(*parquet_first(stem))
            if name is not None:
                tables[use] = Table(folder.root / name, columns)
        missing = {
            use: f"neither {use}.parquet nor {use}.csv.gz; copy the folder whole" for use in ("cells", "transcripts")
        }
        missing["image"] = "no morphology_focus and no morphology.ome.tif; copy the folder whole"
        notes += (f"{pixel:.6g} µm per pixel of its pictures, as {MANIFEST} states",)
        return Found("Xenium", version, tables, _pictures(folder, manifest, pixel), missing, notes)


def _version(manifest: Record, override: bool) -> tuple[str, tuple[str, ...]]:
    """The version as the manifest says it, and a note where it says none; ValueError for one that is not known."""
    said = manifest.word("analysis_sw_version")
    if said is None:
        return "", ("its manifest does not say which version wrote it; it is read as one of those that are known",)
    match = _VERSION.match(said)
    if match is not None and VERSIONS[0] <= int(match[1]) <= VERSIONS[1]:
        return said, ()
    if not override:
        raise ValueError(
            f"wanted a folder of Xenium Onboard Analysis or Xenium Ranger {VERSIONS[0]} to {VERSIONS[1]}, got the version "
            f"{said[:60]!r} in {manifest.where!r}; read it all the same with override=true, and check the overlay"
        )
    return said, (f"its version {said[:60]!r} is not known; it is read as version {VERSIONS[1]}",)


def _pictures(folder: Folder, manifest: Record, pixel: float) -> dict[str, Picture]:
    """The pictures that are there: those in focus first, then the projection, then the stack."""
    named = manifest.record("images")
    out: dict[str, Picture] = {}

    def add(name: str, file: str | None, stack: bool = False) -> None:
        path = None if file is None else folder.path(file)
        if path is not None and all(path != other.path for other in out.values()):
            out[name] = Picture(path, expected=pixel, stack=stack)

    stains = folder.files("*.ome.tif", "morphology_focus")
    add("focus", named.word("morphology_focus_filepath"))
    if "focus" not in out:
        add("focus", next(iter(stains), None))
    add("focus" if "focus" not in out else "focus_single", "morphology_focus.ome.tif")
    for file in stains:
        add(file.rpartition("/")[2].removesuffix(".ome.tif"), file)
    add("mip", named.word("morphology_mip_filepath") or "morphology_mip.ome.tif")
    add("stack", named.word("morphology_filepath") or "morphology.ome.tif", stack=True)
    return out
