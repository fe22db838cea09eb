"""Draws the pictures of the pages on concepts and tasks, small and of few colours.

    python docs/make_drawings.py           # the drawings of docs/concepts.md
    python docs/make_drawings.py DIR       # also of what the pages' commands left in DIR, written by `regframe demo --data`

DIR holds ``visium`` (page visium.md), ``stack`` (stack.md) and ``run`` with ``moved.geojson`` (shapes.md); what is not there is
left out.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Polygon, Rectangle
from numpy.typing import NDArray
from PIL import Image as Picture

matplotlib.use("Agg")

HERE = Path(__file__).resolve().parent
INK, RULE, FIXED, MOVING = "#262b33", "#9aa3ad", "#b5179e", "#2a9134"


def save(figure: Figure, name: str, colors: int = 0) -> None:
    """Write ``docs/images/NAME``: a PNG of ``colors`` colours, or a JPEG where there are none."""
    held = io.BytesIO()
    figure.savefig(held, dpi=96)
    plt.close(figure)
    picture = Picture.open(held).convert("RGB")
    path = HERE / "images" / name
    if colors:
        picture.quantize(colors, dither=Picture.Dither.NONE).save(path, optimize=True)
    else:
        picture.save(path, quality=72, optimize=True, progressive=True)
    print(f"  {name}: {path.stat().st_size / 1024:.0f} KB")


def outline(angle: float, bend: float, center: tuple[float, float]) -> NDArray[np.float64]:
    """A piece of tissue ``[N, 2]`` (x, y), turned by ``angle`` degrees and bent."""
    t = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    radius = 1 + 0.22 * np.cos(2 * t + 0.5) + 0.10 * np.cos(3 * t)
    x, y = 1.15 * radius * np.cos(t), 0.85 * radius * np.sin(t)
    y = y + bend * np.sin(1.4 * x)
    a = np.radians(angle)
    return np.stack([np.cos(a) * x - np.sin(a) * y, np.sin(a) * x + np.cos(a) * y], axis=1) + center


def arrow(axes: Axes, a: tuple[float, float], b: tuple[float, float], color: str, curve: float = 0.0) -> None:
    """An arrow from ``a`` to ``b``."""
    style = f"arc3,rad={curve}"
    axes.add_patch(
        FancyArrowPatch(a, b, arrowstyle="-|>", mutation_scale=13, color=color, lw=1.6, connectionstyle=style)
    )


def spaces() -> None:
    """Two spaces, and what each direction carries."""
    figure, axes = plt.subplots(figsize=(8.4, 3.1))
    for left, angle, bend, color, word in ((0, 0, 0, FIXED, "fixed"), (7.4, 28, 0.22, MOVING, "moving")):
        axes.add_patch(Rectangle((left, 0), 4, 3.4, fill=False, ec=RULE, lw=1.2))
        axes.add_patch(Polygon(outline(angle, bend, (left + 2, 1.7)), fc=color, ec=color, alpha=0.22, lw=1.5))
        spot = outline(angle, bend, (left + 2, 1.7))[14] * 0.62 + np.array([left + 2, 1.7]) * 0.38
        axes.plot(*spot, "o", color=color, ms=6)
        axes.text(
            left + 2, 3.62, f"space and canvas of the {word} side", ha="center", va="center", color=INK, fontsize=9
        )
        arrow(axes, (left, 0), (left + 0.75, 0), INK)
        arrow(axes, (left, 0), (left, 0.75), INK)
        axes.text(left + 0.78, 0.16, "x", va="center", fontsize=9)
        axes.text(left + 0.09, 0.72, "y", va="center", fontsize=9)
    arrow(axes, (7.3, 2.3), (4.1, 2.3), INK)
    arrow(axes, (4.1, 1.1), (7.3, 1.1), INK)
    for y, word, what in ((2.3, "to_fixed", "moving points and images"), (1.1, "to_moving", "fixed points and images")):
        axes.text(5.7, y - 0.18, word, ha="center", fontsize=11, family="monospace", color=INK)
        axes.text(5.7, y + 0.28, what, ha="center", fontsize=8.5, color=INK)
    axes.set(xlim=(-0.1, 11.6), ylim=(3.85, -0.2), aspect="equal")
    axes.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)
    save(figure, "spaces.png", 32)


def pixels() -> None:
    """Where a pixel lies: indices, micrometres, middles and corners."""
    figure, axes = plt.subplots(figsize=(8.4, 3.4))
    for row in range(4):
        for column in range(6):
            shade = "#f3d9ef" if (row, column) == (2, 4) else "white"
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fc=shade, ec=RULE, lw=1))
            axes.plot(column, row, ".", color=RULE, ms=4)
    axes.plot(0, 0, "o", color=FIXED, ms=8)
    axes.plot(-0.5, -0.5, "s", color=MOVING, ms=8)
    axes.plot(4, 2, "o", color=FIXED, ms=8)
    notes = (
        (0, 0, (-2.3, 1.7), "middle of the first pixel:\nregframe counts from here\n(y, x) = (0, 0)", FIXED),
        (-0.5, -0.5, (-2.5, -0.72), "its outer corner: QuPath and\nGeoJSON count from here", MOVING),
        (4, 2, (7.7, 2.05), "row 2, column 4\nat spacing 0.5 µm:\n(y, x) = (1.0, 2.0) µm", FIXED),
    )
    for x, y, at, text, color in notes:
        axes.annotate(
            text,
            (x, y),
            at,
            fontsize=9,
            ha="center",
            va="center",
            color=INK,
            arrowprops={"arrowstyle": "-", "color": color},
        )
    arrow(axes, (3, 4.05), (4, 4.05), INK)
    arrow(axes, (4, 4.05), (3, 4.05), INK)
    axes.text(3.5, 4.3, "spacing", ha="center", va="center", fontsize=9)
    arrow(axes, (-0.5, -0.95), (1.2, -0.95), INK)
    axes.text(1.35, -0.95, "x, columns", va="center", fontsize=9)
    arrow(axes, (-0.85, -0.5), (-0.85, 0.6), INK)
    axes.text(-0.9, 0.78, "y", ha="center", va="center", fontsize=9)
    axes.set(xlim=(-3.7, 9.2), ylim=(4.5, -1.25), aspect="equal")
    axes.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)
    save(figure, "pixels.png", 32)


def visium(folder: Path) -> None:
    """Two neighbours on Visium slides, and the spots of one on the other."""
    import regframe as rf

    fixed, moving = (rf.adapter("vendor", use="image").open(folder / f"visium_{which}") for which in "ab")
    spots = rf.adapter("vendor").open(folder / "visium_b")
    result = rf.load(folder / "visium")
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 2.95), layout="constrained")
    fixed.plot(axes[0])
    moving.plot(axes[1])
    fixed.plot(axes[2])
    on = np.asarray(spots.table["in_tissue"]).astype(int) == 1
    for each, positions in ((axes[1], spots.coords), (axes[2], result.to_fixed(spots).coords)):
        y, x = np.asarray(positions)[on].T
        each.scatter(x, y, s=3, color="#00b7ff", linewidths=0)
    for each, title in zip(axes, ("section a", "section b, its spots", "spots of b on a"), strict=True):
        each.set(title=title, xlabel="", ylabel="", xlim=axes[0].get_xlim(), ylim=axes[0].get_ylim())
        each.tick_params(labelsize=7)
    save(figure, "visium.jpg")


def stack(folder: Path) -> None:
    """Neighbouring sections as they came, and in the stack."""
    import regframe as rf

    paths = sorted((folder / "sections").glob("*.png"))[1:4]
    found = [next((folder / "stack" / "sections").glob(f"*_{path.name}")) for path in paths]
    figure, axes = plt.subplots(1, 4, figsize=(8.4, 2.3), layout="constrained")
    for each, path in zip(axes, paths, strict=False):
        rf.open(path, spacing=2.0, unit="um").plot(each)
        each.set_title(path.name, fontsize=9)
    carried = [
        rf.load(at).to_fixed(rf.open(path, spacing=2.0, unit="um")) for at, path in zip(found, paths, strict=True)
    ]
    greys = [np.asarray(image.numpy(), float).mean(axis=-1) for image in carried]
    axes[3].imshow(np.stack(greys, axis=-1).clip(0, 255).astype(np.uint8))
    axes[3].set_title("all three, red green blue", fontsize=9)
    for each in axes:
        each.set(xticks=[], yticks=[], xlabel="", ylabel="")
    save(figure, "stack.jpg")


def shapes(folder: Path) -> None:
    """Annotations that were drawn on one side, on both."""
    import regframe as rf

    figure, axes = plt.subplots(1, 2, figsize=(6.2, 3.1), layout="constrained")
    for each, side, name, title in (
        (axes[0], "moving", "drawn", "drawn on the moving slide"),
        (axes[1], "fixed", "moved", "carried to the fixed one"),
    ):
        rf.open(folder / f"{side}.png").plot(each)
        for feature in json.loads((folder / f"{name}.geojson").read_text())["features"]:
            kind, at = feature["geometry"]["type"], feature["geometry"]["coordinates"]
            x, y = np.atleast_2d(np.asarray(at[0] if kind == "Polygon" else at, float)).T
            each.plot(x, y, "-" if kind == "Polygon" else "o", color="#ffb000", lw=2.2)
        each.set(title=title, xlabel="", ylabel="", xticks=[], yticks=[])
    save(figure, "shapes.jpg")


def main(folder: Path | None) -> None:
    """See the module."""
    spaces()
    pixels()
    wanted: tuple[tuple[str, Callable[[Path], None]], ...] = (("visium", visium), ("stack", stack), ("run", shapes))
    for name, draw in wanted:
        if folder is not None and (folder / name).exists():
            draw(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
