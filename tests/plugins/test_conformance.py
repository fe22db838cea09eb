"""What is written as OME-Zarr, read by a validator of the format (ome-zarr-models, where it is installed)."""

from pathlib import Path
from typing import Any

import fake_slides as slides
import numpy as np
import pytest
import zarr

import regframe as rf


def written(folder: Path, kind: str) -> Path:
    """An output of one kind."""
    path = folder / f"{kind}.zarr"
    if kind == "warped":
        slides.plan(str(folder / "s"), str(path), shard=128).write(1)
        return path
    shape, axes, unit = {
        "picture": ((3, 600, 700), "cyx", "µm"),
        "volume": ((2, 5, 60, 70), "czyx", "mm"),
        "pixels": ((1, 60, 70), "cyx", "px"),
        "labels": ((1, 60, 70), "cyx", "nm"),
    }[kind]
    array = np.random.default_rng(0).integers(0, 255, shape).astype(np.int32 if kind == "labels" else np.uint8)
    image = rf.Image.from_array(array, axes, spacing=0.5, unit=unit, labels=kind == "labels")
    rf.adapter("image").save(image, path)
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["picture", "volume", "pixels", "labels", "warped"])
def test_a_validator_takes_what_is_written(tmp_path: Path, kind: str) -> None:
    models: Any = pytest.importorskip(
        "ome_zarr_models", reason="ome-zarr-models is not installed", exc_type=ImportError
    )
    found = models.open_ome_zarr(zarr.open_group(written(tmp_path, kind), mode="r"))
    assert type(found).__name__ == "Image"
    assert found.ome_attributes.version == "0.5"
