"""Five stained slides of one block, and three rounds of one fluorescent section (``21_slides_of_one_block``), with no option.

    REGFRAME_DATA=data python benchmarks/block.py

Prints, for each stained slide, Dice between its outline and the reference's under its map, and for each round the distance
between matched nuclei. An outline is where colours are more than three fifths of Otsu's threshold from grey, closed over 6
pixels; it knows nothing of the maps.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

import regframe as rf

DATA = Path(os.environ.get("REGFRAME_DATA", "data")) / "21_slides_of_one_block"


def outline(path: Path) -> rf.Image:
    """Where a stained slide shows tissue, 0 or 1."""
    picture = rf.open(path)
    colours = picture.data[:3].numpy().astype(np.float64)
    smooth = ndimage.gaussian_filter(colours.max(axis=0) - colours.min(axis=0), 3.0)
    tissue: NDArray[np.bool_] = smooth > 0.6 * threshold_otsu(smooth)
    tissue = ndimage.binary_fill_holes(ndimage.binary_closing(tissue, iterations=6))
    tissue = ndimage.binary_opening(tissue, iterations=4)
    return picture.replace(
        data=rf.Image.from_array(tissue[None].astype(np.float32), axes="cyx").data, channels=("tissue",)
    )


def main() -> None:
    """Register both groups, print what is measured."""
    stained = sorted(DATA.glob("ihc_*.png"))
    group = rf.register_group([rf.open(path) for path in stained])
    print(f"{group!r}")
    wanted = outline(stained[group.reference]).data[0].numpy() > 0.5
    for path, result in zip(stained, group.results, strict=True):
        if result is None:
            print(f"  {path.stem} no place")
            continue
        found = np.nan_to_num(result.to_fixed(outline(path)).data[0].numpy()) > 0.5
        dice = 2 * (found & wanted).sum() / (found.sum() + wanted.sum())
        print(f"  {path.stem} {result.verdict}, Dice of outlines {dice:.3f}")
    rounds = sorted(DATA.glob("round_*.png"))
    pictures = [rf.open(path) for path in rounds]
    group = rf.register_group(pictures)
    print(f"{group!r}")
    for name, (matches, nuclei) in rf.match_nuclei(group, images=pictures).items():
        if name != group.names[group.reference]:
            median = np.median(matches.residual)
            print(
                f"  {name}: {len(matches.residual)} of {len(nuclei.coords)} nuclei matched, {median:.2f} px apart in the median"
            )


if __name__ == "__main__":
    main()
