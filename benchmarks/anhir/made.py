"""The lung pairs of the data folder in ANHIR's layout: ``python -m benchmarks.anhir.made FOLDER [--data DATA]``.

Images are linked, landmarks are written in their pixels (5 % of the scanned ones; the challenge's own images have a quarter).
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .. import entries
from . import AXES, COVER, DIAGONAL, STATUS, TIME, WARPED

HEAD = ("", DIAGONAL, "Image size [pixels]", *COVER, STATUS, "Warped target landmarks", WARPED, TIME)


def lay_out(data: Path, folder: Path) -> Path:
    """Write ``folder/images`` and ``folder/landmarks``; returns the cover table.

    Raises:
        ValueError: where ``data`` has no lung pairs.
    """
    source = data / "02_histology_landmarks"
    if not (source / "pairs.csv").is_file():
        raise ValueError(
            f"wanted the folder 02_histology_landmarks in {data}, got none; name the data folder by --data"
        )
    rows = []
    with (source / "pairs.csv").open(newline="") as file:
        for number, pair in enumerate(csv.DictReader(file)):
            row = dict.fromkeys(HEAD, "") | {"": str(number), STATUS: "training"}
            for side, name in (("fixed", "Target"), ("moving", "Source")):
                image = source / pair[f"{side}_image"]
                place = Path(image.parent.name, "scale-5pc", image.name)
                scale = float(pair[f"{side}_landmark_scale"])
                points = entries.read_points(source / pair[f"{side}_landmarks"], AXES) * scale
                numbered = [(n, *point) for n, point in enumerate(points, start=1)]
                entries.write_table(folder / "landmarks" / place.with_suffix(".csv"), ["", *AXES], numbered)
                _link(image, folder / "images" / place)
                row |= {f"{name} image": place.as_posix(), f"{name} landmarks": place.with_suffix(".csv").as_posix()}
                if name == "Target":
                    with Image.open(image) as opened:
                        width, height = opened.size
                    row |= {"Image size [pixels]": str((height, width)), DIAGONAL: f"{np.hypot(width, height):.1f}"}
            rows.append([row[name] for name in HEAD])
    cover = folder / "images" / "dataset_small.csv"
    entries.write_table(cover, HEAD, rows)
    return cover


def _link(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        place.symlink_to(source.absolute())


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser("python -m benchmarks.anhir.made", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("REGFRAME_DATA", "data")), help="the data folder"
    )
    options = parser.parse_args(argv)
    print(f"wrote {lay_out(options.data, options.folder)}")


if __name__ == "__main__":
    main()
