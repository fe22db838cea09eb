"""Every task that the README names has a page with a picture; the drawings are made by a script; tables of Visium are true."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import regframe as rf
from regframe.testing import demo, visium

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
TASKS = {
    "two stains": "tutorials/stains.md",
    "fluorescence": "tutorials/fluorescence.md",
    "Xenium on H&E": "tutorials/xenium.md",
    "Visium neighbours": "visium.md",
    "cells and cells": "tutorials/cells.md",
    "atlas": "tutorials/atlas.md",
    "stack": "stack.md",
    "rounds": "tutorials/rounds.md",
    "slides": "tutorials/slide.md",
    "batch": "batch.md",
    "QuPath": "qupath.md",
    "napari": "napari.md",
    "pieces": "pieces.md",
    "it went wrong": "tutorials/wrong.md",
    "the report": "report.md",
    "the live page": "view.md",
    "spaces, units, directions": "concepts.md",
}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_a_page_with_a_picture(task: str) -> None:
    page = DOCS / TASKS[task]
    pictures = re.findall(r"^!\[([^\]]+)\]\((images/[^)]+)\)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert pictures, f"{TASKS[task]} has no picture"
    for said, name in pictures:
        assert len(said) > 20, f"{name} says nothing to those who cannot see it"
        with Image.open(page.parent / name) as picture:
            assert picture.width <= 1300


@pytest.fixture(scope="module")
def pair() -> demo.Pair:
    return demo.make()


@pytest.fixture(scope="module")
def folder(pair: demo.Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("visium")
    assert visium.write(made, pair) == [
        "visium_a", "visium_b", "visium_a_points.csv", "visium_b_points.csv"
    ]  # fmt: skip
    return made


def test_the_folders_of_visium_are_read_as_a_makers(folder: Path) -> None:
    vendor = rf.adapter("vendor")
    for name in visium.NAMES:
        spots, picture = vendor.open(folder / name), rf.adapter("vendor", use="image").open(folder / name)
        assert spots.unit == picture.grid.unit == "µm"
        np.testing.assert_allclose(picture.grid.spacing, visium.PIXEL, rtol=1e-6)  # measured from the spots
        pairs = spots.coords[:, None] - spots.coords[None, :60]
        distances = np.sort(np.linalg.norm(pairs.numpy(), axis=-1), axis=0)[1]  # to the nearest other spot
        np.testing.assert_allclose(distances, visium.PITCH, atol=0.1)
        inside = np.asarray(spots.table["in_tissue"], int)
        assert 0.5 < inside.mean() < 1
        assert picture.grid.contains(spots.coords).all()


def test_the_truth_beside_them_is_that_of_the_pictures(folder: Path) -> None:
    """Where the tables say that both show one thing, the pictures look alike; four pixels off they do so less."""
    seen = []
    for name in visium.NAMES:
        picture = rf.adapter("vendor", use="image").open(folder / name)
        with (folder / f"{name}_points.csv").open(encoding="utf-8") as file:
            at = np.array([[float(row["y_um"]), float(row["x_um"])] for row in csv.DictReader(file)])
        seen.append((np.asarray(picture.numpy(), float).mean(axis=-1), (at - picture.grid.origin) / visium.PIXEL))
    (one, p), (two, q) = seen
    assert len(p) == len(q) > 10

    def alike(off: int) -> float:
        windows = [
            [image[y - 4 : y + 5, x - 4 : x + 5].ravel() for y, x in np.round(at).astype(int)]
            for image, at in ((one, p), (two, q + off))
        ]
        kept = [(a, b) for a, b in zip(*windows, strict=True) if len(a) == len(b) == 81]
        a, b = np.array([each[0].mean() for each in kept]), np.array([each[1].mean() for each in kept])
        return float(np.corrcoef(a, b)[0, 1])

    assert alike(0) > 0.95
    assert alike(0) > alike(6)


def test_the_same_bytes_each_time(folder: Path, pair: demo.Pair, tmp_path: Path) -> None:
    visium.write(tmp_path, pair)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes(), path.name
    factors = json.loads((folder / "visium_a" / "spatial" / "scalefactors_json.json").read_text())
    assert factors["tissue_hires_scalef"] == visium.HIRES
