"""Real pairs of which no truth is known: such as belong together, and such as do not."""

from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
from scipy.ndimage import gaussian_filter
from truth import merfish, picture, pixels

import regframe as rf


@dataclass(frozen=True)
class Two:
    """Two images of which no truth is known."""

    name: str
    fixed: rf.Image
    moving: rf.Image


def nissl(data: Path, number: int) -> list[Two]:
    """The first ``number`` pairs of consecutive Nissl sections, each with the next."""
    folder = data / "13_nissl_serial"
    with zipfile.ZipFile(next(folder.glob("*.zip"))) as archive:
        names = sorted((n for n in archive.namelist() if n.endswith(".jpg")), key=lambda n: n[-8:])[: number + 1]
        images = [rf.Image.from_array(tifffile.imread(io.BytesIO(archive.read(n))), "yxc") for n in names]
    numbered = itertools.pairwise(zip((name[-8:-4] for name in names), images, strict=True))
    return [Two(f"Nissl {a} → {b}", fixed, moving) for (a, fixed), (b, moving) in numbered]


def belonging(data: Path) -> Iterator[Callable[[], list[Two]]]:
    """Pairs that belong together, one set at a time, read when called."""
    bulb, atlas = data / "08_st_mob", data / "11_sections_to_atlas"
    paths = {
        "hippocampus plate": atlas / "brainglobe" / "Atlas_Hipp.tif",
        "sample": atlas / "brainglobe" / "sample_hipp.tif",
        "section s044": atlas / "641_2002_2568_NM01_s044.png",
        "section s079": atlas / "641_2002_2568_NM01_s079.png",
        "olfactory bulb MOB1": bulb / "MOB1.jpg",
        "olfactory bulb MOB2": bulb / "MOB2.jpg",
    }

    def read(fixed: str, moving: str) -> list[Two]:
        return [Two(f"{fixed} → {moving}", picture(paths[fixed]), picture(paths[moving]))]

    yield partial(nissl, data, 6)
    yield partial(read, "hippocampus plate", "sample")
    yield partial(read, "hippocampus plate", "section s079")
    for a, b in (("section s044", "section s079"), ("olfactory bulb MOB1", "olfactory bulb MOB2")):
        yield partial(read, a, b)
        yield partial(read, b, a)


UNLIKE = (
    ("lung lesion 3", "brain cells"), ("brain cells", "lung lesion 3"), ("lung lesion 1", "brain cells"),
    ("lung lesion 1", "hand"), ("hand", "lung lesion 3"), ("lung lesion 1", "lung lesion 3"),
    ("brain MR", "hand"), ("hand", "brain MR"), ("brain MR", "lung lesion 1"), ("lung lesion 3", "white noise"),
    ("smooth noise", "lung lesion 1"), ("white noise", "other white noise"), ("smooth noise", "other smooth noise"),
    ("Nissl", "hand"), ("brain MR", "shape"), ("cortex", "lung lesion 1"), ("nuclei", "lung cells"),
    ("shape", "hand"), ("cortex", "brain cells"), ("nuclei", "smooth noise"),
)  # fmt: skip
"""Fixed and moving images (names of `_zoo`) that do not belong together."""


def _zoo(data: Path) -> dict[str, Callable[[], rf.Image]]:
    lung, classics = data / "02_histology_landmarks", data / "15_2d_classics"

    def noise(number: int, sigma: float) -> rf.Image:
        values = np.random.default_rng(number).standard_normal((256, 320))
        values = gaussian_filter(values, sigma) if sigma else values
        return rf.Image.from_array((128 + 40 * values / values.std()).clip(0, 255).astype(np.uint8), "yx")

    return {
        "lung lesion 3": lambda: picture(lung / "lung-lesion_3" / "29-041-Izd2-w35-He-les3.jpg"),
        "lung lesion 1": lambda: picture(lung / "lung-lesion_1" / "Izd2-29-041-w35_proSPC.jpg"),
        "lung cells": lambda: picture(data / "01_seed_cells" / "cells.jpg"),
        "brain cells": lambda: pixels(merfish(data)).moving,
        "brain MR": lambda: picture(classics / "ants" / "r16slice.jpg"),
        "hand": lambda: picture(classics / "fair" / "hands-R.jpg"),
        "shape": lambda: picture(classics / "shapes" / "reference.png"),
        "cortex": lambda: picture(data / "06_st_dlpfc" / "151673" / "tissue_lowres_image.png"),
        "nuclei": lambda: picture(data / "19_nuclei" / "img2d.tif"),
        "Nissl": lambda: nissl(data, 1)[0].fixed,
        "white noise": lambda: noise(1, 0),
        "other white noise": lambda: noise(2, 0),
        "smooth noise": lambda: noise(3, 6),
        "other smooth noise": lambda: noise(4, 6),
    }


def unlike(data: Path) -> Iterator[Callable[[], Two]]:
    """Pairs of images that do not belong together, read when called."""
    zoo = _zoo(data)

    def read(fixed: str, moving: str) -> Two:
        return Two(f"{fixed} → {moving}", zoo[fixed](), zoo[moving]())

    for names in UNLIKE:
        yield partial(read, *names)
