"""Draws the pictures of README.md and docs/gallery.md, and writes the figures that stand beside them in the latter.

    python docs/make_gallery.py            # all of them, into docs/images
    python docs/make_gallery.py hands disc # some

The data are read where they lie, ``$REGFRAME_DATA`` or else ``shared/data`` beside the checkout.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from numpy.typing import NDArray
from scipy.ndimage import center_of_mass, gaussian_filter, map_coordinates
from scipy.spatial import cKDTree
from tifffile import imread
from torch import Tensor

import regframe as rf

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import blind
import truth

matplotlib.use("Agg")

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("REGFRAME_DATA") or HERE.parent.parent / "shared" / "data")
INK = "#262b33"
LINES = "#ffb000"
SIDE = 2.45
"""Inches along a panel; 120 pixels each."""

# the three rough landmarks of the post this project started from, (y, x)
MOVING = torch.tensor([[150.0, 190.0], [100.0, 60.0], [75.0, 100.0]], dtype=torch.float64)
FIXED = torch.tensor([[160.0, 200.0], [100.0, 50.0], [75.0, 100.0]], dtype=torch.float64)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Panel:
    """One picture of a row: ``[h, w]`` or ``[h, w, 3]`` in 0 … 1, lines ``[n, k, 2]`` and points ``[n, 2]`` in (y, x)."""

    title: str
    picture: Array
    lines: list[Array] | None = None
    points: Array | None = None
    targets: Array | None = None


def shown(image: rf.Image) -> Array:
    """An image's values for the eye, ``[h, w]`` or ``[h, w, 3]`` in 0 … 1."""
    data = image.data.numpy().astype(np.float64)
    if data.shape[0] == 3 and image.data.dtype == torch.uint8:
        return np.moveaxis(data, 0, -1) / 255
    low, high = np.percentile(data, [0.5, 99.8])
    return np.clip((data.mean(axis=0) - low) / max(high - low, 1e-12), 0, 1)


def overlay(fixed: rf.Image, warped: rf.Image, inside: Array) -> Array:
    """Fixed in magenta, moving in green, agreement in grey to black; the moving tones follow the fixed ones' ranks."""
    target, source = (grey(shown(i)) for i in (fixed, warped))
    seen = inside > 0
    if np.corrcoef(target[seen], source[seen])[0, 1] < 0:
        source = 1 - source
    ranks = np.linspace(0, 100, 65)
    ladder = np.percentile(source[seen], ranks) + np.arange(65) * 1e-9
    source = np.interp(source, ladder, np.percentile(target[seen], ranks))
    if np.median(target[seen]) < 0.5:  # ink on white, whichever way the image came
        target, source = 1 - target, 1 - source
    source = np.where(seen, source, 1.0)
    return np.stack([source, target, source], axis=-1)


def grey(picture: Array) -> Array:
    """``[h, w]`` of ``[h, w]`` or ``[h, w, 3]``."""
    return picture if picture.ndim == 2 else picture.mean(axis=-1)


def fixed_lines(result: rf.Result, every: int) -> list[Array]:
    """The pixel lines of the fixed canvas, ``every`` pixels apart, where the map puts them on the moving image."""
    height, width = result.fixed_grid.shape
    rows = [np.stack([np.full(width, y), np.arange(width)], axis=1) for y in range(every // 2, height, every)]
    columns = [np.stack([np.arange(height), np.full(height, x)], axis=1) for x in range(every // 2, width, every)]
    return [result.to_moving(torch.from_numpy(line.astype(np.float64))).numpy() for line in rows + columns]


def inside(result: rf.Result) -> Array:
    """1 where a fixed pixel maps onto the moving image, ``[h, w]``."""
    return result.moving_grid.contains(result.to_moving(result.fixed_grid.coords())).numpy().astype(np.float64)


def panels(fixed: rf.Image, moving: rf.Image, result: rf.Result, every: int) -> list[Panel]:
    """The four pictures every entry of the gallery has."""
    warped, seen = result.to_fixed(moving), inside(result)
    carried = shown(warped)
    blank = seen[..., None] if carried.ndim == 3 else seen
    rest = 0.93 if np.median(carried[seen > 0]) > 0.5 else 0.2
    return [
        Panel("Fixed", shown(fixed)),
        Panel("Moving, with the fixed grid", shown(moving), lines=fixed_lines(result, every)),
        Panel("Moving, warped", np.where(blank > 0, carried, rest)),
        Panel("Overlay", overlay(fixed, warped, seen)),
    ]


def draw(name: str, row: list[Panel]) -> None:
    """Write ``docs/images/<name>.jpg``."""
    gap, head, rim = 0.10, 0.34, 0.06
    width, height = len(row) * SIDE + (len(row) - 1) * gap + 2 * rim, SIDE + head + rim
    figure = plt.figure(figsize=(width, height), dpi=120, facecolor="white")
    for i, panel in enumerate(row):
        left = rim + i * (SIDE + gap)
        axes = figure.add_axes((left / width, rim / height, SIDE / width, SIDE / height))
        fill(axes, panel)
    path = HERE / "images" / f"{name}.jpg"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, pil_kwargs={"quality": 80, "optimize": True, "progressive": True})
    plt.close(figure)
    print(f"  {path.name}: {path.stat().st_size // 1024} KB")


def fill(axes: Axes, panel: Panel) -> None:
    """Draw one panel without ticks, in a thin frame."""
    height, width = panel.picture.shape[:2]
    axes.imshow(panel.picture, cmap="gray", vmin=0, vmax=1, interpolation="bicubic" if height < 300 else "antialiased")
    axes.set_title(panel.title, fontsize=10.5, color=INK, pad=6)
    if panel.lines:
        segments = [line[:, ::-1] for line in panel.lines]
        axes.add_collection(LineCollection(segments, colors=LINES, linewidths=0.7, alpha=0.9))
    if panel.targets is not None and panel.points is not None:
        pairs = np.stack([panel.points[:, ::-1], panel.targets[:, ::-1]], axis=1)
        axes.add_collection(LineCollection(list(pairs), colors="#00a0ff", linewidths=1.4))
        axes.plot(*panel.targets.T[::-1], "o", ms=6, mfc="none", mec="#00a0ff", mew=1.4)
    if panel.points is not None:
        axes.plot(*panel.points.T[::-1], "+", ms=7, color="#ff3b30", mew=1.4)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color="#b8bec8", linewidth=0.8)


def figures(result: rf.Result, title: str = "", **errors: Array | Tensor) -> list[str]:
    """What the page says about a run, in Markdown: errors in moving pixels, verdict, what the map does."""
    m = result.metrics
    lines = []
    if errors:
        lines += [f"| {title or 'error, moving px'} | mean | median | p95 | max |", "|---|---|---|---|---|"]
    for name, values in errors.items():
        e = np.asarray(values)
        row = (e.mean(), np.median(e), np.percentile(e, 95), e.max())
        lines.append(f"| {name} | " + " | ".join(f"{v:.2g}" if v < 0.1 else f"{v:.2f}" for v in row) + " |")
    kept = "the affine map was kept"
    if m["model"] == "lddmm":
        kept = (
            f"bends by {m['bending_px']['mean']:.1f} px in the mean, {m['bending_px']['max']:.1f} at most, areas change "
            f"by factors from {m['jacobian_min']:.2f} to {m['jacobian_max']:.1f}"
        )
    share = m["explained_variance"]
    lines += ["", f"`{result}`: {kept}; explains {share['final']:.1%} of the fixed image's variance ({share['start']:.1%} "
              "at the start)."]  # fmt: skip
    return [*lines, *(f"*{result.verdict}*: {reason}." for reason in result.reasons)]


def insert(name: str, lines: list[str]) -> None:
    """Put ``lines`` between the markers of ``name`` in gallery.md, and print them."""
    path = HERE / "gallery.md"
    text = path.read_text(encoding="utf-8")
    head, mark, rest = text.partition(f"<!-- figures: {name} -->")
    _, end, tail = rest.partition("<!-- end -->")
    if not (mark and end):
        sys.exit(f"wanted the markers of {name!r} in {path}, found none")
    body = "\n".join(lines).strip()
    path.write_text(f"{head}{mark}\n{body}\n{end}{tail}", encoding="utf-8")
    print(body)


def seed() -> list[str]:
    """One lung section in two looks; fixed position y lies at 111 + (y - 111) · 5/6 in the moving image."""
    fixed, moving = (rf.open(DATA / "01_seed_cells" / f"{n}.jpg") for n in ("cells2_crop", "cells"))
    coords = fixed.grid.coords().reshape(-1, 2)
    truth = 111 + (coords - 111) * 5 / 6
    result = rf.register(fixed, moving, init=rf.landmarks(MOVING, FIXED))
    draw("seed", panels(fixed, moving, result, 16))
    straight = rf.register(fixed, moving, transform="affine", init=rf.landmarks(MOVING, FIXED))
    alone = rf.register(fixed, moving)
    found = {
        "before": coords,
        "after": result.to_moving(coords),
        '`transform="affine"`': straight.to_moving(coords),
        "without landmarks": alone.to_moving(coords),
    }
    return figures(result, **{k: (v - truth).norm(dim=1) for k, v in found.items()})


def bent(number: int) -> tuple[rf.Image, rf.Image, rf.Transform]:
    """The seed's pair, its moving image warped by a seeded smooth map of 4 px in the mean, and that map, old → new."""
    fixed, moving = (rf.open(DATA / "01_seed_cells" / f"{n}.jpg") for n in ("cells2_crop", "cells"))
    rng = np.random.default_rng(number)
    shape, pad = moving.grid.shape, 100
    noise = [rng.standard_normal([n + 2 * pad for n in shape]) for _ in range(2)]
    field = np.stack([gaussian_filter(n, 30.0)[pad:-pad, pad:-pad] for n in noise])
    field *= 4.0 / np.hypot(*field).mean()
    field *= min(1.0, 12.0 / np.hypot(*field).max())
    at = np.stack(np.mgrid[: shape[0], : shape[1]].astype(float)) + field
    bands = [map_coordinates(band.astype(float), at, order=3, mode="nearest") for band in moving.data.numpy()]
    data = torch.from_numpy(np.stack(bands).clip(0, 255).round().astype(np.uint8))
    return fixed, moving.replace(data=data), rf.Displacement(torch.from_numpy(field), moving.grid).inverse()


def empty(image: rf.Image) -> Tensor:
    """Where a bright-field image shows nothing but light for 7 px around, ``[h, w]`` bool."""
    light = (image.data.to(torch.float32).mean(dim=0) > 230).to(torch.float32)
    return torch.nn.functional.avg_pool2d(light[None], 15, stride=1, padding=7)[0] > 0.95


def seed_bent() -> list[str]:
    """The seed's pair with its moving image bent, three times; the first is drawn."""
    lines: list[str] = []
    for number in range(3):
        fixed, moving, bend = bent(number)
        coords = fixed.grid.coords().reshape(-1, 2)
        truth = bend.points(111 + (coords - 111) * 5 / 6)
        seen = moving.grid.contains(truth)
        result = rf.register(fixed, moving, init=rf.landmarks(MOVING, FIXED))
        affine = rf.register(fixed, moving, transform="affine", init=rf.landmarks(MOVING, FIXED))
        errors = {
            "before": coords,
            "the affine map alone": affine.to_moving(coords),
            "after": result.to_moving(coords),
        }
        errors["after, on tissue"] = errors["after"]
        off = {k: (v - truth).norm(dim=1)[seen] for k, v in errors.items()}
        off["after, on tissue"] = off["after, on tissue"][(~empty(fixed)).reshape(-1)[seen]]
        lines += ["", *figures(result, f"bend {number}: error, moving px", **off)]
        if number:
            continue
        draw("seed_bent", panels(fixed, moving, result, 16))
        start = rf.resample(moving, rf.Affine.identity(2), fixed.grid)
        every = panels(fixed, moving, result, 16)
        before = Panel("Overlay before", overlay(fixed, start, np.ones(fixed.grid.shape)))
        after = Panel("Overlay after", every[3].picture)
        draw("overview", [Panel("Fixed: H&E", every[0].picture), Panel("Moving: another look, bent", every[1].picture),
                          before, after])  # fmt: skip
    return lines


def nuclei() -> list[str]:
    """Nuclei against an inverted, gamma-changed copy of themselves: turned by 20°, shifted by 15 px, bent by 4 px."""
    image = imread(DATA / "19_nuclei" / "img2d.tif").astype(np.float64)
    mask = imread(DATA / "19_nuclei" / "mask2d.tif")
    n, pad = image.shape[0], 150
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal((n + 2 * pad,) * 2) for _ in range(2)]
    field = np.stack([gaussian_filter(k, 50)[pad:-pad, pad:-pad] for k in noise])
    field *= 4 / np.hypot(*field).mean()
    angle, middle = np.deg2rad(20), (n - 1) / 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    x = np.stack(np.mgrid[:n, :n].astype(float))
    to_fixed = np.einsum("ij,jhw->ihw", turn, x - middle) + middle + 15 / np.sqrt(2) + field
    bright = ((image - image.min()) / (np.percentile(image, 99.9) - image.min())).clip(0, 1)
    fixed = rf.Image.from_array(image, axes="yx")
    moving = rf.Image.from_array(map_coordinates(1 - bright**0.5, to_fixed, order=1, cval=1.0), axes="yx")
    labels = map_coordinates(mask, to_fixed, order=0)

    def true(p: Array) -> Array:
        return np.stack([map_coordinates(c, p.T, order=1) for c in to_fixed], axis=1)

    ids = [i for i in np.unique(mask) if i]
    whole = [i for i in ids if (labels == i).sum() >= 0.9 * (mask == i).sum()]
    centres = np.array(center_of_mass(np.ones(mask.shape), labels, whole))
    p = np.array([[120.0, 130.0], [400.0, 150.0], [260.0, 400.0]])
    q = true(p) + np.array([[4.0, -3.0], [-4.0, 2.0], [3.0, 4.0]])  # rough: placed by hand
    result = rf.register(fixed, moving, init=rf.landmarks(p, q))
    found = result.to_fixed(torch.from_numpy(centres)).numpy()
    error = np.linalg.norm(found - true(centres), axis=1)
    every = np.array(center_of_mass(np.ones(mask.shape), mask, ids))
    nearest = np.linalg.norm(found[:, None] - every[None], axis=2).argmin(axis=1)
    own = sum(ids[k] == i for k, i in zip(nearest, whole, strict=True))
    draw("nuclei", panels(fixed, moving, result, 36))
    before = np.linalg.norm(centres - true(centres), axis=1)
    lines = figures(result, "error per nucleus, px", before=before, after=error)
    return [*lines, f"Nuclei whose nearest nucleus is themselves: {own} of {len(whole)}."]


def hands() -> list[str]:
    """Two hands, seven manual landmarks that only measure."""
    folder = DATA / "15_2d_classics" / "fair"
    fixed, moving = rf.open(folder / "hands-R.jpg"), rf.open(folder / "hands-T.jpg")
    with (folder / "hands_landmarks.csv").open() as file:
        rows = list(csv.DictReader(file))
    q, p = (torch.tensor([[float(r[f"{s}_{a}_px"]) for a in "yx"] for r in rows], dtype=torch.float64) for s in "RT")
    result = rf.register(fixed, moving)
    found = result.to_moving(q)
    row = panels(fixed, moving, result, 10)
    row[0] = Panel("Fixed, with 7 manual landmarks", row[0].picture, points=q.numpy())
    row[2] = Panel("Moving, warped", row[2].picture, points=q.numpy(), targets=result.to_fixed(p).numpy())
    draw("hands", row)
    return figures(result, "error at 7 landmarks, px", before=(q - p).norm(dim=1), after=(found - p).norm(dim=1))


def classic(name: str, fixed_file: str, moving_file: str, every: int) -> list[str]:
    """A pair without a known truth."""
    folder = DATA / "15_2d_classics"
    fixed, moving = rf.open(folder / fixed_file), rf.open(folder / moving_file)
    result = rf.register(fixed, moving)
    draw(name, panels(fixed, moving, result, every))
    return figures(result)


def lungs() -> list[str]:
    """Four pairs of neighbouring lung sections in different stains; median error in percent of the diagonal."""
    lines = [
        "| fixed → moving | before | best affine map through the landmarks | regframe | verdict |",
        "|---|---|---|---|---|",
    ]
    for number, pair in enumerate(truth.lungs(DATA)):
        result = rf.register(pair.fixed, pair.moving)
        scores = (np.median(e) / pair.diagonal * 100 for e in (pair.before(), pair.oracle(), pair.judge(result)))
        lines.append(f"| {pair.name} | " + " | ".join(f"{v:.2f} %" for v in scores) + f" | {result.verdict} |")
        if number == 0:
            row = panels(pair.fixed, pair.moving, result, 50)
            carried = result.to_fixed(torch.from_numpy(pair.p)).numpy()
            row[2] = Panel("Moving, warped; landmarks", row[2].picture, points=pair.q, targets=carried)
            draw("lungs", row)
            drawn = figures(result)
    return [*lines, *drawn]


def mouse_brains() -> list[str]:
    """Cells of two mouse brains as density; seven landmarks."""
    pair = truth.merfish(DATA)
    result = rf.register(pair.fixed, pair.moving)
    row = panels(pair.fixed, pair.moving, result, 40)
    index = [
        (points - np.array(g.origin)) / np.array(g.spacing)
        for points, g in (
            (pair.q, pair.fixed.grid),
            (result.to_fixed(torch.from_numpy(pair.p)).numpy(), pair.fixed.grid),
        )
    ]
    row[2] = Panel("Moving, warped; landmarks", row[2].picture, points=index[0], targets=index[1])
    row[1] = Panel("Moving", row[1].picture)
    draw("merfish", row)
    return figures(result, "error at 7 landmarks, µm", before=pair.before(), after=pair.judge(result))


def cortex() -> list[str]:
    """Visium sections of one cortex; how many spots find a spot of their own layer nearest."""
    lines = ["| fixed → moving | centroids together | regframe | verdict |", "|---|---|---|---|"]
    for number, pair in enumerate(truth.layers(DATA)):
        result = rf.register(pair.fixed, pair.moving)
        carried = result.to_fixed(torch.from_numpy(pair.p)).numpy()
        centred = pair.p - pair.p.mean(axis=0) + pair.q.mean(axis=0)
        shares = (agreement(pair, at) for at in (centred, carried))
        lines.append(f"| {pair.name} | " + " | ".join(f"{v:.3f}" for v in shares) + f" | {result.verdict} |")
        if number == 0:
            row = panels(pair.fixed, pair.moving, result, 25)
            layers = sorted({*pair.of_q, *pair.of_p})
            for k, at, of in ((0, pair.q, pair.of_q), (2, carried, pair.of_p)):
                row[k] = Panel(
                    ("Fixed, its layers", "", "Moving, warped, its layers")[k], spots(row[k].picture, at, of, layers)
                )
            draw("cortex", row)
            drawn = figures(result)
    return [*lines, *drawn]


def agreement(pair: truth.Labelled, at: Array) -> float:
    """Share of the moving spots, carried to ``at``, whose nearest fixed spot has their label."""
    _, nearest = cKDTree(pair.q).query(at)
    return float(np.mean([pair.of_q[k] == label for k, label in zip(nearest, pair.of_p, strict=True)]))


def spots(picture: Array, at: Array, of: tuple[str, ...], names: list[str]) -> Array:
    """The picture with a dot in its label's colour at every position."""
    out, colours = picture.copy(), matplotlib.colormaps["tab10"]
    for (y, x), label in zip(np.round(at).astype(int), of, strict=True):
        if 1 <= y < picture.shape[0] - 1 and 1 <= x < picture.shape[1] - 1:
            out[y - 1 : y + 2, x - 1 : x + 2] = colours(names.index(label))[:3]
    return out


def untold(name: str, pair: blind.Two, every: int) -> list[str]:
    """A pair of which nobody knows the truth."""
    result = rf.register(pair.fixed, pair.moving)
    draw(name, panels(pair.fixed, pair.moving, result, every))
    return figures(result)


def named(name: str) -> blind.Two:
    """The pair of `blind.belonging` with this name."""
    return next(two for read in blind.belonging(DATA) for two in read() if two.name == name)


ENTRIES: dict[str, Callable[[], list[str]]] = {
    "seed": seed,
    "seed_bent": seed_bent,
    "nuclei": nuclei,
    "hands": hands,
    "disc": lambda: classic("disc", "fair/c.jpg", "fair/disc.jpg", 8),
    "slices": lambda: classic("slices", "ants/r16slice.jpg", "ants/r64slice.jpg", 16),
    "lungs": lungs,
    "merfish": mouse_brains,
    "cortex": cortex,
    "bulb": lambda: untold("bulb", named("olfactory bulb MOB1 → olfactory bulb MOB2"), 100),
    "coronal": lambda: untold("coronal", named("section s044 → section s079"), 40),
    "nissl": lambda: untold("nissl", blind.nissl(DATA, 1)[0], 40),
}


def main(names: list[str]) -> None:
    """Draw the entries named, or all."""
    unknown = sorted(set(names) - set(ENTRIES))
    if unknown:
        sys.exit(f"wanted some of {', '.join(ENTRIES)}, got {', '.join(unknown)}")
    if not DATA.is_dir():
        sys.exit(f"wanted the data folder, found none at {DATA}; set REGFRAME_DATA")
    for name in names or ENTRIES:
        print(name)
        insert(name, ENTRIES[name]())


if __name__ == "__main__":
    main(sys.argv[1:])
