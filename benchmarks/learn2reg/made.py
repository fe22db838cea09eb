"""A task in Learn2Reg's layout whose maps are known: ``python -m benchmarks.learn2reg.made FOLDER [--data DATA] [--pairs 2]``.

The MR volume of a mouse brain, and that volume bent anew for each pair, with noise; the labels of its annotation and landmarks
within the tissue are carried by the bend itself.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from ..entries import Array
from ..proving.maps import bend, indices
from .fields import numbers_of, spacing_of, write_volume

NAME = "MadeMouse"
SIZE = 6.0
"""Largest displacement of a bend, voxels."""
SIGMA = 16.0
"""Distance over which a bend is correlated, voxels."""
NOISE = 0.02
"""Standard deviation of the noise on the bent volumes, of the range of the intensities."""
LANDMARKS = 200
"""Positions on each volume."""


def lay_out(data: Path, folder: Path, pairs: int = 2, step: int = 2, seed: int = 0) -> Path:
    """Write the task into ``folder``: the volume 0000, which is the moving one of every pair, and a fixed one for each.

    Args:
        data: the data folder.
        folder: where the task goes.
        pairs: how many.
        step: every how many voxels along each axis one is kept, after smoothing.
        seed: of bends, landmarks and noise.

    Returns:
        The task's ``NAME_dataset.json``.

    Raises:
        ValueError: where ``data`` has no mouse atlas.
    """
    source = data / "10_3d_mouse_atlas"
    files = (source / "CIVM_mouse.ISO.nii.gz", source / "P56_annotation.nii.gz")
    if not all(path.is_file() for path in files):
        raise ValueError(f"wanted the folder 10_3d_mouse_atlas in {data}, got none; name the data folder by --data")
    rng = np.random.default_rng(seed)
    kept = (slice(None, None, step),) * 3
    image = gaussian_filter(numbers_of(files[0]).astype(np.float32), 0.5 * step)[kept]  # [X, Y, Z]
    image /= image.max()
    _, labels = np.unique(numbers_of(files[1])[kept], return_inverse=True)
    labels = labels.reshape(image.shape)  # numbered from 0, the background
    spacing = tuple(step * one for one in spacing_of(files[0]))
    marks = rng.choice(np.argwhere(labels > 0), LANDMARKS, replace=False).astype(float)
    _write(folder, 0, image, labels, marks, spacing)
    listed = []
    for number in range(1, pairs + 1):
        bent = bend(rng, image.shape, SIZE, SIGMA)
        at = bent.pull(indices(image.shape)).T  # [3, X*Y*Z], where each voxel of this volume lies in 0000
        values = map_coordinates(image, at, order=1, mode="nearest").reshape(image.shape)
        values = values + rng.normal(0, NOISE, values.shape)
        known = map_coordinates(labels, at, order=0, mode="nearest").reshape(image.shape)
        _write(folder, number, values, known, bent.push(marks), spacing)
        listed.append({"fixed": f"./{_named('images', number)}", "moving": f"./{_named('images', 0)}"})
    task = folder / f"{NAME}_dataset.json"
    task.write_text(json.dumps({"name": NAME, "registration_val": listed}, indent=1) + "\n", encoding="utf-8")
    return task


def _write(folder: Path, number: int, values: Array, labels: Array, marks: Array, spacing: Sequence[float]) -> None:
    """Write one volume, its labels and its landmarks ``[N, 3]``, in voxels."""
    write_volume(folder / _named("images", number), np.asarray(values, dtype=np.float32), spacing)
    write_volume(folder / _named("labels", number), labels.astype(np.uint16), spacing)
    table = folder / _named("landmarks", number, "csv")
    table.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(table, marks, delimiter=",", fmt="%.4f")


def _named(kind: str, number: int, suffix: str = "nii.gz") -> str:
    return f"{kind}Tr/{NAME}_{number:04d}_0000.{suffix}"


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser("python -m benchmarks.learn2reg.made", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("REGFRAME_DATA", "data")), help="the data folder"
    )
    parser.add_argument("--pairs", type=int, default=2, help="how many (2)")
    options = parser.parse_args(argv)
    print(f"wrote {lay_out(options.data, options.folder, options.pairs)}")


if __name__ == "__main__":
    main()
