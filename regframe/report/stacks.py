"""The report page of a stack: every aligned section, cuts across the stack before and after, figures of the sections."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data import Grid, Image
from ..io import outputs
from ..maps.affine import Affine
from ..maps.resample import resample
from ..stack import align
from ..stack.align import Stack
from ..stack.posegraph import GUIDE
from . import figures
from .page import Picture, fill, jpeg, svg_uri
from .pictures import Array, Look, look_of, shrink
from .words import quoted, small, typed

_HEADLINES = {
    "pass": ("Confirmed", "Every section has its place among its neighbours."),
    "warn": ("Not confirmed throughout", "Look at the sections named below before you use them."),
    "fail": ("No evidence", "Most sections have no place. Nothing was thrown away."),
}
TILE = 150
"""Pixels along the longer side of a section in the montage."""
CUT = 720
"""Least width in pixels of a cut across the stack; wider cuts are shown unchanged."""
MOST_TILES = 160
"""Largest number of sections in the montage; of longer stacks every second, third … section is shown."""


def save(stack: Stack, path: Path, images: Sequence[Image], overwrite: bool = False) -> None:
    """Write the folder of `Stack.save` with the page ``report.html`` in it, complete or not at all.

    ``images`` are the sections, in the stack's order. Raises what `Stack.save` raises.
    """
    with align.staged(path, overwrite) as folder:
        volume = align.write_files(stack, folder, images)
        assert volume is not None  # there are images
        write(stack, images, volume, folder / outputs.REPORT, path)


def write(stack: Stack, images: Sequence[Image], volume: Image, path: Path, out: Path = Path("OUT")) -> None:
    """Write the report of ``stack`` as one HTML file.

    ``volume`` is `Stack.volume` of ``images``; ``out`` the stack's folder, for the commands that the page shows.
    """
    path.write_text(render(stack, images, volume, out), encoding="utf-8")


def render(stack: Stack, images: Sequence[Image], volume: Image, out: Path = Path("OUT")) -> str:
    """The page as text."""
    placed = next((k for k, result in enumerate(stack.results) if result is not None), 0)
    files, section = typed(str(out)), f"{align.SECTIONS}/{align.section_folder(stack, placed)}"
    title, summary = _HEADLINES[stack.verdict]
    m = stack.metrics
    before = as_they_lay(stack, images, volume)
    one, other = m["coherence"]["before"], m["coherence"]["after"]
    loops, pairs = m["drift"]["loops_px"], m["drift"]["pairs_px"]
    cards = [
        ("sections placed", f"{m['n_placed']} of {m['n_sections']}"),
        ("correlation of neighbours", f"{one['ncc']:.2f} → {other['ncc']:.2f}"),
        ("overlap (Dice)", f"{one['dice']:.2f} → {other['dice']:.2f}"),
        ("mutual information", f"{one['nmi']:.2f} → {other['nmi']:.2f}"),
    ]
    if loops:
        cards.append(("round three sections, off by", f"{small(loops['median'])} px"))
    if pairs:
        cards.append(("pairs disagree by, median", f"{small(pairs['median'])} px"))
    if m["drift"].get("chain_departs_px") is not None:
        cards.append(("one after another would drift", f"{small(m['drift']['chain_departs_px'])} px"))
    return fill(
        "stack.html",
        verdict=stack.verdict,
        title=title,
        summary=summary,
        reasons=stack.reasons,
        cards=cards,
        cuts=_cuts(stack, before, volume),
        coherence=Picture(
            "Neighbours",
            svg_uri(_coherence(m)),
            "Correlation of every section with the next one, before (orange) and after (blue).",
        ),
        poses=Picture(
            "Pairs",
            svg_uri(_residuals(stack)),
            "How far every registered pair is from where its sections lie in the end; blue: with the next section, other "
            "colours: with one farther away.",
        ),
        montage=montage(stack, volume),
        sections=[_row(section) for section in m["sections"]],
        seconds=f"{m['seconds']:.0f}",
        canvas=" × ".join(str(n) for n in stack.grid.shape),
        reference=m["reference"]["name"],
        volume=quoted(out / align.VOLUME),
        section=quoted(out / section),
        typed=shlex.quote(str(Path(files, section))),
        spacing=f"{m['spacing_z']['value']:.4g} {m['spacing_z']['unit']}",
    )


def as_they_lay(stack: Stack, images: Sequence[Image], volume: Image) -> Image:
    """The sections before alignment, on the volume's grid: the middles of all canvases laid on each other."""
    data = volume.data.clone()
    plane = stack.plane_grid
    for image, result, at in zip(images, stack.results, stack.planes, strict=True):
        if result is None:
            continue
        shift = torch.eye(3, dtype=torch.float64)
        shift[:2, 2] = torch.tensor(plane.center) - torch.tensor(image.grid.center)
        seen = image.replace(weight=torch.ones(image.grid.shape))
        moved = resample(seen, Affine(shift, plane.unit, plane.unit), plane)
        rim = torch.cat([image.data[:, 0], image.data[:, -1], image.data[:, :, 0], image.data[:, :, -1]], dim=1)
        colour = rim.to(torch.float32).median(dim=1).values
        assert moved.weight is not None
        data[:, at] = torch.where(moved.weight > 0.999, moved.data, colour.to(data.dtype)[:, None, None])
    return volume.replace(data=data)


def _rgb(data: torch.Tensor, look: Look) -> Array:
    return look.rgb(data.to(torch.float32).numpy())


def _look(volume: Image) -> Look:
    """The look of the whole volume, taken from its middle plane."""
    middle = volume.grid.shape[0] // 2
    flat = Grid(volume.grid.shape[1:], volume.grid.spacing[1:], volume.grid.origin[1:], volume.grid.unit)
    plane = volume.replace(data=volume.data[:, middle].contiguous(), grid=flat)
    return look_of(shrink(plane, max(flat.extent) / 400))


def _cuts(stack: Stack, before: Image, after: Image) -> list[list[Picture]]:
    """Cuts ``xz`` and ``yz`` through the middle of the tissue, before above after."""
    look = _look(after)
    away = (after.data.to(torch.float32) - after.data[:, :1, :1, :1].to(torch.float32)).abs().amax(dim=(0, 1))  # [H, W]
    rows, columns = away.sum(dim=1), away.sum(dim=0)
    y = int((rows.cumsum(0) / rows.sum().clamp(min=1e-9) < 0.5).sum().clamp(max=away.shape[0] - 1))
    x = int((columns.cumsum(0) / columns.sum().clamp(min=1e-9) < 0.5).sum().clamp(max=away.shape[1] - 1))
    dz, dy, dx = stack.grid.spacing
    out = []
    for axis, step in (("xz", dx), ("yz", dy)):
        row = []
        for word, volume in (("before", before), ("after", after)):
            cut = volume.data[:, :, y] if axis == "xz" else volume.data[:, :, :, x]
            row.append(Picture(f"{axis}, {word}", jpeg(_stretched(_rgb(cut, look), dz / step), 88)))
        out.append(row)
    return out


def _stretched(picture: Array, ratio: float) -> Array:
    """A cut ``[Z, W, 3]`` with planes as thick as their distance, within bounds that keep it visible."""
    high, wide = picture.shape[:2]
    scale = max(1, CUT // wide)
    thick = round(ratio * scale)
    thick = int(np.clip(thick, max(2, 120 // high), max(4, 900 // high)))
    return np.repeat(np.repeat(picture, thick, axis=0), scale, axis=1)


def montage(stack: Stack, volume: Image) -> list[dict[str, str]]:
    """Every section on the common canvas, as small pictures."""
    look = _look(volume)
    spacing = max(stack.plane_grid.extent) / TILE
    step = max(1, -(-len(stack.results) // MOST_TILES))
    out = []
    for k in range(0, len(stack.results), step):
        section = stack.metrics["sections"][k]
        tile = ""
        if stack.results[k] is not None:
            plane = Image(
                volume.data[:, stack.planes[k]].contiguous(), stack.plane_grid, volume.channels, labels=volume.labels
            )
            tile = jpeg(_rgb(shrink(plane, spacing).data, look), 80)
        out.append({"uri": tile, "name": stack.names[k], "verdict": section["verdict"]})
    return out


def _row(section: dict[str, Any]) -> dict[str, str]:
    pose, ncc = section.get("pose"), section.get("ncc")
    return {
        "position": str(section["position"]),
        "name": section["name"],
        "verdict": section["verdict"],
        "reasons": "; ".join(section["reasons"]),
        "ncc": f"{ncc['before']:.2f} → {ncc['after']:.2f}" if ncc else "–",
        "turn": f"{pose['turn_degrees']:.1f}°" + (" turned over" if pose["mirrored"] else "") if pose else "–",
        "scale": f"{pose['scale']:.3f}" if pose else "–",
        "residual": small(section["residual_px"]) if pose else "–",
    }


def _coherence(metrics: dict[str, Any]) -> str:
    pairs = metrics["coherence"]["pairs"]
    at = [metrics["sections"][pair["sections"][0]]["position"] for pair in pairs]
    curves = [
        figures.Curve(at, [pair[word]["ncc"] for pair in pairs], colour, word, dot=2.5)
        for word, colour in (("before", figures.LEVELS[1]), ("after", figures.LEVELS[0]))
    ]
    lowest = min((pair[word]["ncc"] for pair in pairs for word in ("before", "after")), default=0.0)
    return figures.chart(
        curves, figures.Axes("position of the section", "correlation", min(0.0, lowest), 1.0, wide=500.0)
    )


def _residuals(stack: Stack) -> str:
    position = [section["position"] for section in stack.metrics["sections"]]
    pixel = stack.plane_grid.pixel
    links = [link for link in stack.links if np.isfinite(link.residual)]
    apart: NDArray[Any] = np.array([1 if link.fixed == GUIDE else link.moving - link.fixed for link in links])

    def curve(own: list[Any], colour: str, name: str) -> figures.Curve:
        x = [position[link.moving] for link in own]
        y = [max(link.residual / pixel, 1e-3) for link in own]
        return figures.Curve(x, y, colour, name, line=False, dot=3.0)

    curves = []
    for d in sorted(set(apart.tolist())):
        own = [link for link, n in zip(links, apart, strict=True) if n == d and link.weight > 0]
        if own:
            colour = figures.LEVELS[(d - 1) % len(figures.LEVELS)]
            curves.append(curve(own, colour, f"{d} apart" if d > 1 else "next"))
    gone = [link for link in links if link.weight == 0]
    if gone:
        curves.append(curve(gone, figures.LEVELS[5], "given up"))
    values = [value for each in curves for value in each.y]
    low, high = (min(values), max(values)) if values else (0.1, 1.0)
    return figures.chart(curves, figures.Axes("position of the section", "px", low / 2, high * 2, log=True, wide=500.0))
