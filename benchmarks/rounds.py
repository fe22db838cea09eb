"""Rounds of one section whose maps are known: registered, merged, measured on the pixels of every channel; killed and resumed.

    python benchmarks/rounds.py [--size 1024] [--rounds 8] [--seed 0] [--keep FOLDER] [--speed]

Every round shows the nuclei (DAPI) and three markers of its own, shifted by up to 40 px, turned by up to 1° and bent by up to
3 px against the first; it is dimmer than the one before, has lost a tenth of its tissue, and its camera adds noise. One round is
blurred, one shows another section. ``--kills N`` ends the command N times by SIGKILL and compares the bytes of what the same
command then writes. ``--speed`` has the merged slide of a kept folder written by one worker and by two.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates, zoom
from skimage.registration import phase_cross_correlation

import regframe as rf

Floats = NDArray[np.float64]
PAD = 96
"""Pixels of tissue beyond the canvas on each side: more than the largest shift, so that every round is full."""
SHIFT, TURN, BEND = 40.0, 1.0, 3.0
"""Largest shift and bend in pixels, largest turn in degrees."""
LOST = 0.1
"""Share of the tissue that a round has lost."""
BLEACH = 0.88
"""Brightness of a round, over that of the one before."""
WINDOW = 64
"""Pixels per axis of the windows in which a channel of the merged slide is compared with the truth."""


@dataclass(frozen=True)
class Truth:
    """The map of a round, moving → fixed, in pixels.

    Args:
        matrix: affine part ``[3, 3]``.
        bend: coarse displacement ``[2, n, n]`` over the canvas, added to the position before the affine part.
        size: pixels per axis of the canvas.
    """

    matrix: Floats
    bend: Floats
    size: int

    def __call__(self, at: Floats) -> Floats:
        """Positions ``[N, 2]`` of the round in the first round."""
        scale = (self.bend.shape[1] - 1) / (self.size - 1)
        by = np.stack([map_coordinates(band, (at * scale).T, order=3, mode="nearest") for band in self.bend], axis=1)
        return np.asarray((at + by) @ self.matrix[:2, :2].T + self.matrix[:2, 2])


def truth(size: int, rng: np.random.Generator) -> Truth:
    """A map within `SHIFT`, `TURN` and `BEND`."""
    angle = np.deg2rad(rng.uniform(-TURN, TURN))
    c, s = np.cos(angle), np.sin(angle)
    linear, middle = np.array([[c, -s], [s, c]]), np.array([(size - 1) / 2] * 2)
    shift = rng.uniform(-SHIFT, SHIFT, 2) / np.sqrt(2)
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = linear, middle + shift - linear @ middle
    bend = np.stack([gaussian_filter(rng.standard_normal((33, 33)), 5.0, mode="reflect") for _ in range(2)])
    return Truth(matrix, bend * BEND / np.linalg.norm(bend, axis=0).max(), size)


@dataclass(frozen=True)
class Tissue:
    """A section: where it is, and its nuclei, on a canvas with `PAD` pixels more on each side.

    Args:
        mask: ``[H, W]`` 0 … 1.
        cells: places ``[N, 2]`` of the nuclei.
        rng: gives the stains.
    """

    mask: NDArray[np.float32]
    cells: NDArray[np.intp]

    @classmethod
    def make(cls, size: int, seed: int) -> Tissue:
        """A section of a seed."""
        rng, whole = np.random.default_rng(seed), size + 2 * PAD
        small = zoom(gaussian_filter(rng.standard_normal((64, 64)), 6.0, mode="wrap"), whole / 64, order=1)[
            :whole, :whole
        ]
        mask = (small > np.quantile(small, 0.25)).astype(np.float32)
        dense = zoom(rng.random((96, 96)), whole / 96, order=1)[:whole, :whole]
        chance = mask * (0.2 + dense) / 160
        cells = np.argwhere(rng.random(mask.shape, dtype=np.float32) < chance)
        return cls(gaussian_filter(mask, 2.0), cells)

    def stain(self, seed: int, share: float) -> NDArray[np.float32]:
        """A stain of a share of the cells, 0 … 1: the nuclei where 1, else also what lies around them."""
        rng = np.random.default_rng((seed, 7))
        own = self.cells[rng.random(len(self.cells)) < share]
        size = rng.integers(0, 3, len(own))
        out = np.zeros(self.mask.shape, np.float32)
        for k, width in enumerate((2.0, 2.6, 3.4)):
            points = np.zeros(self.mask.shape, np.float32)
            some = own[size == k]
            points[some[:, 0], some[:, 1]] = rng.uniform(0.5, 1.0, len(some))
            wide = width * (1.0 if share == 1 else 1.5)
            out += gaussian_filter(points, wide) * np.float32(2 * np.pi * wide**2 * 1.4)
        texture = gaussian_filter(rng.standard_normal(self.mask.shape, dtype=np.float32), 1.5)
        return np.asarray((1 - np.exp(-out)) * (1 + 0.8 * texture).clip(0.3, 2) + 0.05 * self.mask, dtype=np.float32)


@dataclass(frozen=True)
class Rounds:
    """The made rounds of a folder.

    Args:
        paths: the files, OME-TIFF.
        truths: map of each; None of the stranger.
        blurred: number of the blurred round.
        stranger: number of the round of another section.
        seed: of the section.
        size: pixels per axis.
    """

    paths: tuple[Path, ...]
    truths: tuple[Truth | None, ...]
    blurred: int
    stranger: int
    seed: int
    size: int

    def kept(self, k: int) -> NDArray[np.float32]:
        """Where a round still has its tissue, on its own canvas ``[H, W]``, 0 … 1; everywhere in the first."""
        if k == 0:
            return np.ones((self.size, self.size), np.float32)
        drawn = np.random.default_rng((self.seed, 11, k)).standard_normal((self.size // 8, self.size // 8))
        lost = zoom(gaussian_filter(drawn, 3.0, mode="wrap"), 8, order=1)[: self.size, : self.size]
        return gaussian_filter((lost < np.quantile(lost, 1 - LOST)).astype(np.float32), 1.0)

    def markers(self, k: int) -> tuple[str, ...]:
        """Names of the channels of a round."""
        return ("DAPI", *(f"M{3 * k + i}" for i in range(3)))

    def plane(self, tissue: Tissue, name: str) -> NDArray[np.float32]:
        """A channel where the first round has it, with `PAD` pixels more on each side, as it is without noise and loss."""
        return tissue.stain(self.seed, 1.0) if name == "DAPI" else tissue.stain(self.seed + 100 + int(name[1:]), 0.3)


def make(folder: Path, size: int, n: int, seed: int, odd: bool = True) -> Rounds:
    """Write ``n`` rounds; with ``odd`` the last but one is of another section and the last but two is blurred."""
    rng = np.random.default_rng(seed)
    tissue, other = Tissue.make(size, seed), Tissue.make(size, seed + 5000)
    truths: list[Truth | None] = [Truth(np.eye(3), np.zeros((2, 33, 33)), size)]
    truths += [truth(size, rng) for _ in range(n - 1)]
    blurred, stranger = (n - 3, n - 2) if odd else (-1, -1)
    paths = tuple(folder / f"round{k + 1:02d}.ome.tif" for k in range(n))
    found = Rounds(
        paths, tuple(None if k == stranger else t for k, t in enumerate(truths)), blurred, stranger, seed, size
    )
    at = np.stack(np.meshgrid(np.arange(float(size)), np.arange(float(size)), indexing="ij"), axis=-1).reshape(-1, 2)
    for k, path in enumerate(paths):
        if path.exists():  # of an earlier call with the same folder, size and seed
            continue
        rng = np.random.default_rng((seed, 13, k))
        own = truths[k]
        assert own is not None
        where = (own(at) + PAD).T.reshape(2, size, size)
        shown = other if k == stranger else tissue
        kept = found.kept(k)
        planes = []
        for name in found.markers(k):
            base = found.plane(shown, name) if k != stranger else shown.stain(seed + 9, 1.0 if name == "DAPI" else 0.3)
            seen = map_coordinates(base, where, order=3, mode="nearest") * kept
            if k == blurred:
                seen = gaussian_filter(seen, 3.0)
            bright = 3000 * BLEACH**k * (1.0 if name == "DAPI" else 0.6)
            counts = rng.poisson(np.clip(seen * bright + 100, 0, None) / 4) * 4
            planes.append(np.clip(counts, 0, 65535).astype(np.uint16))
        colours = [-1 if name == "DAPI" else 0x00FF00FF for name in found.markers(k)]
        channel = {"Name": list(found.markers(k)), "Color": colours, "EmissionWavelength": [461, 519, 565, 665],
                   "EmissionWavelengthUnit": ["nm"] * 4}  # fmt: skip
        metadata = {"axes": "CYX", "Channel": channel, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5,
                    "PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}  # fmt: skip
        aside = path.with_name(f"new-{path.name}")
        tifffile.imwrite(
            aside, np.stack(planes), ome=True, metadata=metadata, tile=(256, 256), photometric="minisblack"
        )
        aside.rename(path)
    return found


def errors(result: rf.Result, known: Truth, reference: Truth, tissue: Tissue) -> Floats:
    """Error of a map in pixels at a lattice of positions on the tissue, ``[N]``; ``reference`` is the truth of its fixed side."""
    at = np.stack(
        np.meshgrid(np.arange(8.0, known.size, 16), np.arange(8.0, known.size, 16), indexing="ij"), -1
    ).reshape(-1, 2)
    there = known(at)
    on = map_coordinates(tissue.mask, (there + PAD).T, order=1, mode="constant") > 0.5
    on &= ((there >= 0) & (there < known.size)).all(axis=1)
    moving, fixed = pixels_of(result.moving_grid, known.size), pixels_of(result.fixed_grid, known.size)
    found = fixed(result.transform.points(moving(at[on], True)), False).numpy()
    return np.linalg.norm(reference(found) - there[on], axis=1)


def pixels_of(grid: rf.Grid, size: int) -> Callable[[Any, bool], torch.Tensor]:
    """Takes pixels ``[N, 2]`` of a file of ``size`` pixels per axis to physical positions, or back.

    Args:
        grid: grid of the level that was registered, on the same canvas.
        size: pixels per axis of the file.
    """
    level = torch.tensor(grid.spacing, dtype=torch.float64)
    spacing = level * torch.tensor(grid.shape) / size
    origin = torch.tensor(grid.origin, dtype=torch.float64) - (level - spacing) / 2

    def convert(at: Any, to_physical: bool) -> torch.Tensor:
        at = torch.as_tensor(at, dtype=torch.float64)
        return at * spacing + origin if to_physical else (at - origin) / spacing

    return convert


def in_channels(merged: Path, made: Rounds, reference: int, tissue: Tissue) -> dict[str, float]:
    """Median distance in pixels, over windows, between each channel of a merged slide and where the truth has it."""
    known = made.truths[reference]
    assert known is not None
    size = made.size
    pyramid = rf.open_pyramid(merged)
    pixels = pyramid.levels[0].read((slice(0, size), slice(0, size)))
    at = np.stack(np.meshgrid(np.arange(float(size)), np.arange(float(size)), indexing="ij"), -1).reshape(-1, 2)
    where = (known(at) + PAD).T.reshape(2, size, size)
    step = WINDOW if size < 512 else 2 * WINDOW
    ends = range(WINDOW // 2, size - WINDOW - WINDOW // 2 + 1, step)
    starts = [(y, x) for y in ends for x in ends]
    out = {}
    for i, name in enumerate(pyramid.channels):
        plane = name.partition(" ")[0]
        if made.stranger >= 0 and (plane in made.markers(made.stranger)[1:] or f"round{made.stranger + 1:02d}" in name):
            continue
        wanted = map_coordinates(made.plane(tissue, plane), where, order=3, mode="nearest")
        seen = pixels[i].astype(np.float64)
        windows = [(slice(y, y + WINDOW), slice(x, x + WINDOW)) for y, x in starts]
        contrast = [float(wanted[w].std()) for w in windows]
        most = float(np.median(contrast))
        shifts = [
            phase_cross_correlation(wanted[w], seen[w], upsample_factor=50, normalization=None)[0]
            for w, c in zip(windows, contrast, strict=True)
            if c >= most and seen[w].min() > 0
        ]
        if shifts:
            out[name] = float(np.median(np.linalg.norm(shifts, axis=1)))
    return out


def losses(group: rf.Group, made: Rounds, tissue: Tissue) -> dict[str, tuple[float, float, float, float]]:
    """Dice, precision and recall of the area that each round but the reference is said to have lost, and the share truly lost.

    What counts is tissue of the section on the reference's canvas that the round's canvas holds too.
    """
    lost, reference = group.lost, made.truths[group.reference]
    assert lost is not None
    assert reference is not None
    at = lost.grid.coords().reshape(-1, 2)
    pixels = pixels_of(group[group.reference].fixed_grid, made.size)
    there = reference(pixels(at, False).numpy())  # in the first round's
    on = map_coordinates(tissue.mask, (there + PAD).T, order=1, mode="constant") > 0.5
    out = {}
    for n, name in enumerate(lost.channels[1:], 1):
        k = group.names.index(name)
        if k in (group.reference, made.stranger):
            continue
        back = group[k].transform.inverse().points(at)  # known to 0.1 px; the map has pixels of several
        index = pixels_of(group[k].moving_grid, made.size)(back, False).numpy()
        inside = on & ((index >= 0) & (index <= made.size - 1)).all(axis=1)
        gone = map_coordinates(made.kept(k), index.T, order=1, mode="nearest") < 0.5
        known, said = gone & inside, lost.data[n].numpy().ravel() > 0
        hit = int((known & said).sum())
        out[name] = (2 * hit / max(1, int(known.sum() + said.sum())), hit / max(1, int(said.sum())),
                     hit / max(1, int(known.sum())), float(known.sum() / inside.sum()))  # fmt: skip
    return out


def command(made: Rounds, out: Path, merged: Path, more: list[str]) -> list[str]:
    """The command line of a run."""
    call = [sys.executable, "-c", "from regframe.cli import main; main()", "rounds", *map(str, made.paths)]
    return [*call, "-o", str(out), "--merged", str(merged), "--repeats", "keep", "--json", "--workers", "1", *more]


def run(call: list[str]) -> tuple[dict[str, Any], float, float]:
    """What a command printed, its peak memory in MiB, and the seconds it took."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(call, stdout=said, stderr=subprocess.DEVNULL)
        peak = 0.0  # of the command alone; what is reported at its end counts this process, from which it was forked
        while child.poll() is None:
            with contextlib.suppress(OSError, TypeError):
                status = Path(f"/proc/{child.pid}/status").read_text(encoding="utf-8")
                peak = max(peak, int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024)  # type: ignore[index]
            time.sleep(0.1)
        said.seek(0)
        return json.loads(said.read()), peak, time.perf_counter() - began


def bytes_of(*places: Path, beside: Path | None = None) -> str:
    """Hash of all files below some places; the report in them names the folder that it lies in, and that of the rounds
    (``beside``)."""
    sha = hashlib.sha256()
    for place in places:
        for path in sorted(p for p in [place, *place.rglob("*")] if p.is_file()):
            content = path.read_bytes().replace(str(place.parent).encode(), b"")
            content = content if beside is None else content.replace(str(beside).encode(), b"")
            sha.update(str(path.relative_to(place.parent)).replace(place.name, "x").encode() + content)
    return sha.hexdigest()


def killed(made: Rounds, folder: Path, wanted: str, seconds: float, times: int, more: list[str]) -> int:
    """Number of runs, of ``times``, that were killed at a random moment and that the same command ended with other bytes."""
    rng, wrong = np.random.default_rng(1), 0
    for n in range(times):
        own = folder / f"k{n}"  # of the same names, which the files hold
        own.mkdir()
        out, merged = own / "OUT", own / "OUT.ome.zarr"
        call = command(made, out, merged, more)
        for _ in range(2):
            child = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                child.wait(float(rng.uniform(0.1, 1.0)) * seconds)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                child.wait()
        run(call)
        left = [p.name for p in own.iterdir() if p not in (out, merged)]
        wrong += bytes_of(out, merged, beside=folder) != wanted or bool(left)
    return wrong


def sped_up(group: rf.Group, folder: Path) -> tuple[float, float, bool]:
    """Seconds in which one worker and two write the merged slide, and whether they wrote the same bytes."""
    seconds, written = [], []
    for workers in (1, 2):
        place = folder / f"by{workers}" / "merged.ome.zarr"
        place.parent.mkdir(exist_ok=True)
        began = time.perf_counter()
        rf.merge_group(group, place, workers=workers, overwrite=True)
        seconds.append(time.perf_counter() - began)
        written.append(bytes_of(place))
    return seconds[0], seconds[1], written[0] == written[1]


def main() -> None:
    """Make rounds, run the command on them, print what is left of the known maps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder of the rounds and the output, used again if there")
    parser.add_argument(
        "--speed", action="store_true", help="write the slide of the kept folder by one worker and by two"
    )
    parser.add_argument("more", nargs="*", help="further options of the command, after --")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(exist_ok=True)
        if given.speed:
            one, two, same = sped_up(rf.load_group(folder / "OUT"), folder)
            print(
                f"merged by one worker {one:.1f} s, by two {two:.1f} s: {one / two:.2f} × as fast; same bytes: {same}"
            )
            return
        made = make(folder, given.size, given.rounds, given.seed)
        tissue = Tissue.make(given.size, given.seed)
        out, merged = folder / "OUT", folder / "OUT.ome.zarr"
        said, memory, seconds = run(command(made, out, merged, given.more))
        group = rf.load_group(out)
        print(f"{group!r}, {seconds:.0f} s, peak memory {memory:.0f} MiB")
        for k, image in enumerate(said["images"]):
            what = {made.blurred: "the blurred one", made.stranger: "the stranger"}.get(k, "")
            result, known, base = group.results[k], made.truths[k], made.truths[group.reference]
            line = "no place"
            if result is not None and known is not None and base is not None:
                off = errors(result, known, base, tissue)
                line = f"median {np.median(off):.3f} px, 90 % within {np.quantile(off, 0.9):.3f}"
            why = image["reasons"][0][:70] if image["verdict"] != "pass" else ""
            print(f"  {image['name']} {image['verdict']:5} {line}  {what} {why}")
        for name, (dice, precision, recall, share) in losses(group, made, tissue).items():
            said_lost = said["images"][group.names.index(name)]["lost_fraction"]
            print(f"  lost by {name}: {said_lost:.1%} of its tissue (known: {share:.1%}), Dice {dice:.3f}, "
                  f"precision {precision:.3f}, recall {recall:.3f}")  # fmt: skip
        found = in_channels(merged, made, group.reference, tissue)
        print("on the pixels of the merged slide, median px by channel:", {k: round(v, 3) for k, v in found.items()})
        print(f"worst channel {max(found.values()):.3f} px (bar 0.3)")
        if given.kills:
            wanted = bytes_of(out, merged, beside=folder)
            print(
                f"killed: {killed(made, folder, wanted, seconds, given.kills, given.more)} of {given.kills} ended otherwise"
            )


if __name__ == "__main__":
    main()
