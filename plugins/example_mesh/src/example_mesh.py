"""Triangle meshes for regframe: surfaces in .off and .obj files, and a solver that registers two by their surface distance."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

import regframe

SAMPLES = 1200
"""Positions on each surface at which distances are measured: enough that the mean over them knows a map of 12 numbers to a
tenth of their own scatter."""
DENSE = 10
"""As many times more positions among which the nearest triangles are looked for."""
NEAR = 6
"""Dense positions around a point whose triangles are measured exactly."""
TURNS = 240
"""Turns of space from which the search begins: no turn is more than about 30 degrees from one of them."""
FEW = 20
"""Every how manieth sample is used while many poses are tried."""
ROUNDS = ((10, 1.0, 0.25), (30, 0.25, 0.1))
"""Times that each of them is moved, the share of them that is, the best ones, and the distance from which a mismatch counts
less."""
KEPT = 4
"""Poses of the coarse search that are fitted further; the first is the answer, the next other one its runner-up."""
SCALES = (0.25, 0.08, 0.03, 0.015)
"""Distances, as shares of the radius of the fixed surface, at which a mismatch begins to count less: one fit after another."""
CLOSE = 0.02
"""Distance, as a share of the radius, up to which a position counts as lying on the other surface."""
OTHER = 15.0
"""Degrees from which two poses are two."""


@dataclass(frozen=True)
class Mesh(regframe.PointSet):
    """Vertices, and the triangles between them.

    Args:
        faces: ``[F, 3]`` int64, rows of `coords`.
    """

    faces: Tensor = field(default_factory=lambda: torch.zeros((0, 3), dtype=torch.int64))

    def __post_init__(self) -> None:
        super().__post_init__()
        faces = torch.as_tensor(self.faces, dtype=torch.int64)
        if faces.ndim != 2 or faces.shape[1] != 3:
            raise ValueError(f"wanted triangles [F, 3], got {tuple(faces.shape)}")
        if len(faces) and not 0 <= int(faces.min()) <= int(faces.max()) < len(self):
            raise ValueError(f"wanted triangles between vertices 0 to {len(self) - 1}, got {int(faces.max())}")
        object.__setattr__(self, "faces", faces)


# ---- files ----------------------------------------------------------------------------------------------------------


class MeshAdapter(regframe.Adapter):
    """Triangle meshes in .off and .obj files (vertices and faces); components x, y, z in the files.

    Args:
        unit: length unit of the numbers, which these files do not state.
    """

    name = "mesh"
    writes = {Mesh: (".off", ".obj"), regframe.PointSet: (".off", ".obj")}  # noqa: RUF012

    def __init__(self, unit: str = "px") -> None:
        self.unit = regframe.canonical_unit(unit)

    def matches(self, source: Any) -> float:
        """0.9 for the word OFF or a first vertex under the right suffix."""
        path = str(source).lower()
        if not isinstance(source, (str, Path)) or not path.endswith((".off", ".obj")) or not Path(source).is_file():
            return 0.0
        with Path(source).open("rb") as file:
            head = file.read(1 << 14)
        lines = [line.split() for line in head.splitlines() if line.strip() and not line.lstrip().startswith(b"#")]
        if path.endswith(".off"):
            return 0.9 if lines and lines[0][0] == b"OFF" else 0.1
        return 0.9 if any(line[0] == b"v" and len(line) >= 4 for line in lines) else 0.1

    def open(self, source: Any) -> Mesh:
        """Vertices (z, y, x) and triangles; a polygon becomes a fan of them."""
        path = Path(source)
        try:
            text = path.read_text(encoding="utf-8")
            lines = [line.partition("#")[0].split() for line in text.splitlines()]
            xyz, polygons = (_off if path.suffix.lower() == ".off" else _obj)([line for line in lines if line])
            faces = [(p[0], p[k], p[k + 1]) for p in polygons for k in range(1, len(p) - 1)]
            coords = torch.tensor(xyz, dtype=torch.float64).reshape(-1, 3).flip(1)
            if not len(coords) or not bool(coords.isfinite().all()):
                raise ValueError("no finite vertices")
            return Mesh(coords, self.unit, faces=torch.tensor(faces, dtype=torch.int64).reshape(-1, 3), name=path.name)
        except (ValueError, IndexError, OverflowError, RuntimeError) as error:
            raise ValueError(
                f"wanted vertices and faces of a mesh in {path}, got something else; is it whole?"
            ) from error

    def apply(self, source: Any, transform: regframe.Transform, grid: regframe.Grid | None = None) -> regframe.PointSet:
        """The mesh with its vertices moved."""
        return regframe.move_points(self.open(source), transform)

    def save(self, data: regframe.Image | regframe.PointSet, path: Path) -> None:
        """Write a mesh; points without faces are vertices alone."""
        if not isinstance(data, regframe.PointSet) or data.ndim != 3:
            raise ValueError(
                f"wanted a mesh or points in 3D to write as {path}, got {type(data).__name__}; use another adapter"
            )
        faces = data.faces.tolist() if isinstance(data, Mesh) else []
        vertices = [" ".join(map(repr, row)) for row in data.coords.flip(1).tolist()]
        if str(path).lower().endswith(".obj"):
            lines = [f"v {v}" for v in vertices] + [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in faces]
        else:
            lines = ["OFF", f"{len(vertices)} {len(faces)} 0", *vertices, *(f"3 {a} {b} {c}" for a, b, c in faces)]
        with regframe.staged(Path(path), overwrite=True) as aside:
            aside.write_text("\n".join(lines) + "\n", encoding="ascii")

    @classmethod
    def sample(cls, folder: Path) -> Path:
        """A small mesh, for `regframe plugins --check`."""
        path = Path(folder) / "sample.off"
        cls().save(bumpy(1), path)
        return path


Rows = list[list[str]]


def _off(lines: Rows) -> tuple[list[list[float]], list[list[int]]]:
    head, (vertices, faces) = lines[0], map(int, lines[1][:2])
    if head != ["OFF"] or vertices < 0 or faces < 0 or len(lines) != 2 + vertices + faces:
        raise ValueError("another number of lines than the header says")
    xyz = [[float(word) for word in line[:3]] for line in lines[2 : 2 + vertices]]
    polygons = [[int(word) for word in line[1 : 1 + int(line[0])]] for line in lines[2 + vertices :]]
    if any(len(row) != 3 for row in xyz) or any(
        len(p) < 3 or len(p) != int(r[0]) for p, r in zip(polygons, lines[2 + vertices :], strict=True)
    ):
        raise ValueError("rows of another length")
    return xyz, polygons


def _obj(lines: Rows) -> tuple[list[list[float]], list[list[int]]]:
    xyz: list[list[float]] = []
    polygons = []
    for word, *rest in lines:
        if word == "v":
            xyz.append([float(rest[k]) for k in range(3)])
        elif word == "f":
            ids = [int(each.split("/")[0]) for each in rest]
            polygons.append([k - 1 if k > 0 else len(xyz) + k for k in ids])
            if len(ids) < 3 or 0 in ids:
                raise ValueError("a face of fewer than three vertices")
        elif not word.isidentifier():
            raise ValueError(word)
    return xyz, polygons


# ---- surfaces -------------------------------------------------------------------------------------------------------


class Surface:
    """A mesh that answers which of its triangles are nearest.

    Args:
        corners: ``[F, 3, 3]``, the corners of its triangles.
        seed: of the positions drawn on it.
    """

    def __init__(self, corners: Tensor, seed: int) -> None:
        self.corners = corners
        generator = torch.Generator().manual_seed(seed)
        edges = corners[:, 1:] - corners[:, :1]
        area = torch.linalg.cross(edges[:, 0], edges[:, 1]).norm(dim=1)
        drawn = torch.multinomial(area / area.sum(), DENSE * SAMPLES, replacement=True, generator=generator)
        uv = torch.rand((len(drawn), 2), generator=generator, dtype=torch.float64)
        uv = torch.where(uv.sum(1, keepdim=True) > 1, 1 - uv, uv)
        self.dense = corners[drawn, 0] + (uv[:, :, None] * edges[drawn]).sum(1)
        self.triangle = drawn.numpy()
        self.tree = cKDTree(self.dense.numpy())
        self.coarse = cKDTree(self.samples.numpy())

    @property
    def samples(self) -> Tensor:
        """Positions ``[SAMPLES, 3]``, spread by area."""
        return self.dense[:SAMPLES]

    def place(self, at: Tensor, coarse: bool = False) -> Tensor:
        """The dense positions ``[..., 3]`` nearest to others; of a tenth of them where it may be coarse."""
        return self.dense[torch.from_numpy((self.coarse if coarse else self.tree).query(at.numpy())[1])]

    def nearest(self, at: Tensor) -> Tensor:
        """Triangles ``[N, NEAR]`` around positions ``[N, 3]``."""
        _, index = self.tree.query(at.numpy(), k=NEAR)
        return torch.from_numpy(self.triangle[index])


def closest(at: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """The closest of several triangles, and where on it.

    Args:
        at: positions ``[N, 3]``.
        corners: of ``K`` triangles each, ``[N, K, 3, 3]``.

    Returns:
        The number of the closest triangle ``[N]`` and barycentric weights ``[N, 3]`` of the closest point on it.
    """
    p, a = at[:, None], corners[:, :, 0]
    e0, e1, d = corners[:, :, 1] - a, corners[:, :, 2] - a, p - a

    def dot(one: Tensor, other: Tensor) -> Tensor:
        return (one * other).sum(-1)

    a00, a01, a11, b0, b1 = dot(e0, e0), dot(e0, e1), dot(e1, e1), dot(e0, d), dot(e1, d)
    det = (a00 * a11 - a01 * a01).clamp_min(1e-300)
    s, t = (a11 * b0 - a01 * b1) / det, (a00 * b1 - a01 * b0) / det
    inside = (s >= 0) & (t >= 0) & (s + t <= 1)
    zero = torch.zeros_like(s)
    s0 = (b0 / a00.clamp_min(1e-300)).clamp(0, 1)
    t0 = (b1 / a11.clamp_min(1e-300)).clamp(0, 1)
    along = e1 - e0
    u = (dot(along, d - e0) / dot(along, along).clamp_min(1e-300)).clamp(0, 1)
    places = torch.stack(
        [torch.stack([s, t], -1), torch.stack([s0, zero], -1), torch.stack([zero, t0], -1), torch.stack([1 - u, u], -1)]
    )
    away = d - places[..., :1] * e0 - places[..., 1:] * e1  # [4, N, K, 3]
    squared = dot(away, away)
    squared[0] = torch.where(inside, squared[0], torch.inf)
    best = squared.amin(0).argmin(1)  # [N]
    rows = torch.arange(len(at))
    place = places[squared[:, rows, best].argmin(0), rows, best]
    return best, torch.cat([1 - place.sum(1, keepdim=True), place], 1)


class Pair:
    """Two surfaces in one frame, and the distance between them under a map.

    Args:
        fixed: the surface that stays.
        moving: the one that is mapped.
    """

    def __init__(self, fixed: Surface, moving: Surface) -> None:
        self.fixed, self.moving = fixed, moving

    def away(self, linear: Tensor, shift: Tensor, step: int = 1) -> Tensor:
        """Differences ``[2, N, 3]`` to the closest points: of moving samples on the fixed surface, and the other way.

        They are differentiable in the map; which point is closest is held (its own change is of second order). Where not every
        sample is asked for (``step``), the nearest of the dense positions do.
        """
        m, f = self.moving.samples[::step], self.fixed.samples[::step]
        mapped = m @ linear.T + shift
        if step > 1:
            with torch.no_grad():
                back = torch.linalg.solve(linear.detach(), (f - shift.detach()).T).T
                there, here = self.fixed.place(mapped.detach()), self.moving.place(back)
            return torch.stack([mapped - there, here @ linear.T + shift - f])
        with torch.no_grad():
            corners = self.fixed.corners[self.fixed.nearest(mapped.detach())]
            best, weights = closest(mapped.detach(), corners)
            there = (weights[:, :, None] * corners[torch.arange(len(m)), best]).sum(1)
            back = torch.linalg.solve(linear.detach(), (f - shift.detach()).T).T
            own = self.moving.corners[self.moving.nearest(back)]
            best, weights = closest(f, own @ linear.detach().T + shift.detach())
            here = (weights[:, :, None] * own[torch.arange(len(f)), best]).sum(1)
        return torch.stack([mapped - there, here @ linear.T + shift - f])


def turns(count: int) -> Tensor:
    """Rotations ``[count, 3, 3]`` spread evenly over all turns of space.

    Source: Alexa, Super-Fibonacci Spirals, CVPR 2022: φ = √2, ψ the root of ψ⁴ = ψ + 4.
    """
    s = torch.arange(count, dtype=torch.float64) + 0.5
    t, d = s / count, 2 * math.pi * s
    r, big, alpha, beta = t.sqrt(), (1 - t).sqrt(), d / math.sqrt(2), d / 1.533751168755204288118041
    x, y, z, w = r * alpha.sin(), r * alpha.cos(), big * beta.sin(), big * beta.cos()
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w), 2 * (x * y + z * w), 1 - 2 * (x * x + z * z),
            2 * (y * z - x * w), 2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]  # fmt: skip
    return torch.stack(rows, -1).reshape(-1, 3, 3)


def nearest_of(model: str, linear: Tensor, scale: float) -> Tensor:
    """The linear part of ``model`` that is nearest to a given one; ``scale`` is that of a rigid map."""
    if model == "affine":
        return linear
    u, s, v = torch.linalg.svd(linear)
    sign = torch.ones(3, dtype=torch.float64)
    sign[2] = torch.sign(torch.linalg.det(u @ v))
    found: Tensor = (u * sign) @ v * (scale if model == "rigid" else float(s.mean()))
    return found


# ---- the solver -----------------------------------------------------------------------------------------------------


class Meshes(regframe.Solver):
    """Two triangle meshes, by the distance between their surfaces, from any pose; parts may be missing on either side.

    Args:
        turns: turns of space from which the search begins.
    """

    name = "meshes"
    models = ("rigid", "similarity", "affine")

    def __init__(self, turns: int = TURNS) -> None:
        if isinstance(turns, bool) or not isinstance(turns, int) or turns < 1:
            raise ValueError(f"wanted a whole number of turns of at least 1, got {turns!r}")
        self.turns = turns

    def matches(self, fixed: Any, moving: Any) -> float:
        """Two meshes are nobody else's."""
        return 1.0 if isinstance(fixed, Mesh) and isinstance(moving, Mesh) else 0.0

    def check(self, task: regframe.Task) -> list[regframe.Finding]:
        """Both need surfaces; a rigid map needs both in length units."""
        fixed, moving = sides_of(task)
        for side in (fixed, moving):
            if len(_corners(side)) < 4:
                raise ValueError(
                    f"wanted a mesh of at least 4 triangles, got {side.name!r} with fewer; register it as points"
                )
        if task.metric is not None:
            raise ValueError(
                f"wanted no metric for two meshes, got {task.metric.name!r}: they are compared by distance"
            )
        if regframe.unit_ratio(moving.unit, fixed.unit) is None and task.config.transform == "rigid":
            raise ValueError(
                f"wanted both meshes in length units for a rigid map, got fixed in {fixed.unit} and moving in "
                f"{moving.unit}; state the unit, or use transform='similarity'"
            )
        return []

    def fit(self, task: regframe.Task) -> regframe.Fitted:
        """Search the pose, then fit it at ever smaller distances."""
        model = task.config.transform
        fixed, moving = sides_of(task)
        ratio = regframe.unit_ratio(moving.unit, fixed.unit)
        frames = [_frame(_corners(side)) for side in (fixed, moving)]
        (middle, radius), (other, size) = frames
        if model == "rigid":
            size = radius / float(ratio or 1.0)
        pair = Pair(*(Surface((_corners(side) - c) / r, task.config.seed + k) for k, (side, (c, r)) in
                      enumerate(zip((fixed, moving), ((middle, radius), (other, size)), strict=True))))  # fmt: skip
        history: list[dict[str, Any]] = []
        poses = self._poses(task, pair, (middle, radius, other, size))
        found = []
        for number, (linear, shift) in enumerate(poses):
            if task.progress is not None:
                task.progress(regframe.Progress("surfaces", number, len(poses)))
            for scale in SCALES[:2] if task.start != "auto" else SCALES[1:2]:
                linear, shift, energy = descend(pair, model, linear, shift, scale, step=4)
                history.append({"pose": number, "scale": scale * radius, "loss": energy})
            found.append((_close(pair.away(linear, shift, 4).norm(dim=-1)), linear, shift))
        found.sort(key=lambda one: -one[0])
        (first, linear, shift), *rest = found
        second = max((close for close, other_pose, _ in rest if _degrees(linear, other_pose) > OTHER), default=0.0)
        for scale, step in ((SCALES[2], 4), (SCALES[3], 1)):
            linear, shift, energy = descend(pair, model, linear, shift, scale, step=step)
            history.append({"pose": 0, "scale": scale * radius, "loss": energy})
        away = pair.away(linear, shift).norm(dim=-1)
        if task.progress is not None:
            task.progress(regframe.Progress("surfaces", len(poses), len(poses)))
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3, :3] = linear * (radius / size)
        matrix[:3, 3] = middle + radius * shift - matrix[:3, :3] @ other
        best = regframe.Affine(matrix, moving.unit, fixed.unit)
        figures = {
            "model": model,
            "surface_distance": float(away[away < CLOSE].median() * radius) if bool((away < CLOSE).any()) else None,
            "on_the_other": [float((each < CLOSE).double().mean()) for each in away],
            "runner_up": second / max(first, 1e-30),
            "poses": len(poses),
        }
        return regframe.Fitted(best, best, regframe.canvas(fixed), regframe.canvas(moving), figures, history)

    def _poses(
        self, task: regframe.Task, pair: Pair, frame: tuple[Tensor, float, Tensor, float]
    ) -> list[tuple[Tensor, Tensor]]:
        """Where fits begin, best first, in the frame of the pair."""
        middle, radius, other, size = frame
        model = task.config.transform
        if task.start != "auto":
            matrix = _given(task)
            linear = nearest_of(model, matrix[:3, :3] * (size / radius), 1.0)
            mapped = matrix[:3, :3] @ other + matrix[:3, 3]
            return [(linear, (mapped - middle) / radius)]
        linear, energy = turns(self.turns), torch.zeros(self.turns, dtype=torch.float64)
        shift = torch.zeros((self.turns, 3), dtype=torch.float64)
        for rounds, share, scale in ROUNDS:
            best = energy.argsort(stable=True)[: max(KEPT, round(share * self.turns))]
            linear, shift, energy = settled(pair, linear[best], shift[best], model == "rigid", rounds, scale)
        poses: list[tuple[Tensor, Tensor]] = []
        for k in energy.argsort().tolist():
            if all(_degrees(linear[k], one) > OTHER for one, _ in poses):
                poses.append((linear[k], shift[k]))
            if len(poses) == KEPT:
                break
        return poses

    def judge(self, fitted: regframe.Fitted) -> list[regframe.Finding]:
        """Both surfaces have to lie on each other, and under no other pose nearly as well."""
        figures = fitted.figures
        on, second = min(figures["on_the_other"]), figures["runner_up"]
        if on < 0.6:
            words = "Less than 60 % of one surface lies on the other one."
            return [regframe.Finding("fail", words, on, 0.6, "check that they show the same object")]
        findings = []
        if on < 0.8:
            findings.append(
                regframe.Finding(
                    "warn", "A part of one surface lies away from the other one.", on, 0.8, "look at the overlay"
                )
            )
        if second > 0.9:
            findings.append(
                regframe.Finding(
                    "warn", "Another pose fits nearly as well.", second, 0.9, "give landmarks if it is the right one"
                )
            )
        return findings

    @classmethod
    def sample(cls) -> regframe.Known:
        """A bumpy ball, turned far, a part of it missing and its vertices rough, for `regframe plugins --check`."""
        return known_pair(4)


def settled(
    pair: Pair, linear: Tensor, shift: Tensor, rigid: bool, rounds: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Many poses at once, each moved towards its nearest fit by pairs of nearest positions.

    Args:
        pair: the surfaces.
        linear: ``[B, 3, 3]`` to begin from.
        shift: ``[B, 3]`` to begin from.
        rigid: whether sizes stay as they are.
        rounds: times that each is moved.
        scale: distance at which a mismatch begins to count less.

    Returns:
        ``[B, 3, 3]``, ``[B, 3]``, and the energies ``[B]``.
    """
    m, f = pair.moving.samples[::FEW], pair.fixed.samples[::FEW]
    for _ in range(rounds):
        mapped = m @ linear.mT + shift[:, None]
        back = torch.linalg.solve(linear, (f - shift[:, None]).mT).mT
        source = torch.cat([m.expand(len(linear), -1, -1), pair.moving.place(back, coarse=True)], 1)
        target = torch.cat([pair.fixed.place(mapped, coarse=True), f.expand(len(linear), -1, -1)], 1)
        squared = (source @ linear.mT + shift[:, None] - target).square().sum(-1, keepdim=True)
        weight = (scale**2 / (squared + scale**2)).square()
        weight = weight / weight.sum(1, keepdim=True)
        middles = [(weight * each).sum(1, keepdim=True) for each in (source, target)]
        source, target = source - middles[0], target - middles[1]
        u, s, v = torch.linalg.svd((weight * target).mT @ source)
        sign = torch.ones_like(s)
        sign[:, 2] = torch.linalg.det(u @ v).sign()
        size = torch.ones(len(s), dtype=torch.float64)
        if not rigid:
            size = ((s * sign).sum(1) / (weight * source.square()).sum((1, 2))).clamp(0.5, 2.0)
        linear = size[:, None, None] * (u * sign[:, None]) @ v
        shift = (middles[1] - middles[0] @ linear.mT)[:, 0]
    return linear, shift, (squared / (squared + scale**2)).mean((1, 2))


def descend(
    pair: Pair, model: str, linear: Tensor, shift: Tensor, scale: float, steps: int = 40, step: int = 1
) -> tuple[Tensor, Tensor, float]:
    """The map of ``model`` near a given one with the least robust distance.

    Args:
        pair: the surfaces.
        model: ``rigid``, ``similarity`` or ``affine``.
        linear: ``[3, 3]`` to begin from.
        shift: ``[3]`` to begin from.
        scale: distance at which a mismatch begins to count less.
        steps: largest number of steps.
        step: every how manieth sample is used.
    """
    count = {"rigid": 6, "similarity": 7, "affine": 12}[model]

    def at(x: Tensor) -> tuple[Tensor, Tensor]:
        if model == "affine":
            change = torch.eye(3, dtype=torch.float64) + x[3:].reshape(3, 3)
        else:
            a, b, c = x[3:6]
            zero = torch.zeros((), dtype=torch.float64)
            change = torch.linalg.matrix_exp(torch.stack([zero, -c, b, c, zero, -a, -b, a, zero]).reshape(3, 3))
            change = change * x[6].exp() if model == "similarity" else change
        return change @ linear, shift + x[:3]

    def evaluate(x: Tensor) -> tuple[float, Tensor]:
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            energy = _energy(pair.away(*at(leaf), step), scale)
            (gradient,) = torch.autograd.grad(energy, leaf)
        return energy.item(), gradient

    def movement(change: Tensor) -> float:
        return float(change[:3].norm() + change[3:].norm())

    limits = regframe.Descent(max_iter=steps, tolerance=1e-5, max_move=0.3, first_move=0.1)
    outcome = regframe.minimize(evaluate, torch.zeros(count, dtype=torch.float64), movement, limits)
    with torch.no_grad():
        return *at(outcome.x), outcome.energy


def _energy(away: Tensor, scale: float) -> Tensor:
    """Mean of d² / (d² + scale²), in 0 … 1."""
    squared = away.square().sum(-1)
    return (squared / (squared + scale * scale)).mean()


def _close(away: Tensor) -> float:
    """Share of all samples that lie on the other surface."""
    return float((away < CLOSE).double().mean())


def _degrees(one: Tensor, other: Tensor) -> float:
    a, b = (nearest_of("rigid", each, 1.0) for each in (one, other))
    return math.degrees(math.acos(max(-1.0, min(1.0, (float((a * b).sum()) - 1) / 2))))


def sides_of(task: regframe.Task) -> tuple[Mesh, Mesh]:
    """Both sides, which are meshes: others were not matched."""
    if not isinstance(task.fixed, Mesh) or not isinstance(task.moving, Mesh):
        raise ValueError(
            f"wanted two meshes, got {type(task.fixed).__name__} and {type(task.moving).__name__}; take another solver"
        )
    return task.fixed, task.moving


def _corners(side: Mesh) -> Tensor:
    """Corners ``[F, 3, 3]`` of the triangles that have an area."""
    corners: Tensor = side.coords[side.faces]
    edges = corners[:, 1:] - corners[:, :1]
    return corners[torch.linalg.cross(edges[:, 0], edges[:, 1]).norm(dim=1) > 0]


def _frame(corners: Tensor) -> tuple[Tensor, float]:
    """Middle of a surface, and the root mean square distance from it."""
    edges = corners[:, 1:] - corners[:, :1]
    area = torch.linalg.cross(edges[:, 0], edges[:, 1]).norm(dim=1)
    area = area / area.sum()
    middles = corners.mean(1)
    middle = (area[:, None] * middles).sum(0)
    return middle, float((area * (middles - middle).square().sum(1)).sum().sqrt())


def _given(task: regframe.Task) -> Tensor:
    """The matrix from which the user has the fit begin."""
    if isinstance(task.start, regframe.Transform):
        (part,) = task.start.parts()
        if isinstance(part, regframe.Affine):
            return part.matrix
    pairs = task.start
    if not hasattr(pairs, "moving") or len(pairs.moving) < 4:
        raise ValueError("wanted an affine map or at least 4 landmarks to begin from, got fewer; take init='auto'")
    ones = torch.cat([pairs.moving, torch.ones((len(pairs.moving), 1), dtype=torch.float64)], 1)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3] = torch.linalg.lstsq(ones, pairs.fixed).solution.T
    return matrix


# ---- a made pair ----------------------------------------------------------------------------------------------------


def bumpy(fineness: int, turn: Tensor | None = None, unit: str = "µm") -> Mesh:
    """A ball with bumps that no turn repeats, about 100 µm wide.

    Args:
        fineness: how often the triangles of an octahedron are split in four.
        turn: ``[3, 3]``, by which the triangles are turned, the shape not.
        unit: of the coordinates.
    """
    vertices = [(0.0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, -1), (0, -1, 0), (-1, 0, 0)]
    faces = [(a, b, c) for a in (0, 3) for b in (1, 4) for c in (2, 5)]
    for _ in range(fineness):
        middles: dict[tuple[int, int], int] = {}

        def between(a: int, b: int, middles: dict[tuple[int, int], int] = middles) -> int:
            key = (min(a, b), max(a, b))
            if key not in middles:
                middles[key] = len(vertices)
                middle = np.add(vertices[a], vertices[b])
                vertices.append(tuple(middle / np.linalg.norm(middle)))
            return middles[key]

        faces = [
            face
            for a, b, c in faces
            for ab, bc, ca in [(between(a, b), between(b, c), between(c, a))]
            for face in ((a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca))
        ]
    at = torch.tensor(vertices, dtype=torch.float64)
    if turn is not None:
        at = at @ turn.T
    directions = torch.tensor([[1.0, 0.2, 0], [-0.4, 1, 0.3], [0.1, -0.5, 1], [-0.7, -0.6, -0.4]], dtype=torch.float64)
    directions = directions / directions.norm(dim=1, keepdim=True)
    heights = torch.tensor([16.0, 11.0, -9.0, 8.0], dtype=torch.float64)
    radius = 40 + (heights * torch.exp(6 * (at @ directions.T - 1))).sum(1)
    return Mesh(
        at * radius[:, None] * torch.tensor([1.0, 1.15, 0.85], dtype=torch.float64), unit, faces=torch.tensor(faces)
    )


def known_pair(
    fineness: int, seed: int = 0, model: str = "affine", rough: float = 0.3, missing: float = 0.15
) -> regframe.Known:
    """Two meshes of one shape with other triangles, and their map.

    Args:
        fineness: of both.
        seed: of pose, roughness and of where a part is missing.
        model: ``rigid``, ``similarity`` or ``affine``.
        rough: standard deviation of the noise on half of the moving vertices, µm.
        missing: share of the moving triangles that is cut off on one side.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.linalg.qr(torch.randn((2, 3, 3), generator=generator, dtype=torch.float64))[0]
    turn, other = draws * torch.linalg.det(draws)[:, None, None]
    fixed, shape = bumpy(fineness), bumpy(fineness, other)
    linear = turn * {"rigid": 1.0, "similarity": 0.8, "affine": 0.8}[model]
    if model == "affine":
        linear = linear + 0.05 * torch.randn((3, 3), generator=generator, dtype=torch.float64)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = linear
    matrix[:3, 3] = 50 * torch.randn(3, generator=generator, dtype=torch.float64)
    known = regframe.Affine(matrix, "µm", "µm")
    moving = regframe.move_points(shape, known.inverse())
    noise = rough * torch.randn(moving.coords.shape, generator=generator, dtype=torch.float64)
    half = torch.rand((len(moving), 1), generator=generator) < 0.5
    side = moving.coords @ torch.randn(3, generator=generator, dtype=torch.float64)
    keep = side[shape.faces].mean(1).argsort()[: round((1 - missing) * len(shape.faces))]
    kept, faces = torch.unique(shape.faces[keep], return_inverse=True)
    return regframe.Known(fixed, Mesh((moving.coords + half * noise)[kept], "µm", faces=faces), known)


class Surfaces:
    """A section of the report of two meshes: which share of each surface lies on the other one."""

    def show(self, result: regframe.Result) -> regframe.Section | None:
        """Words, a table and a bar for each surface; None for any other kind of result."""
        shares = result.metrics.get("on_the_other")
        if not isinstance(shares, (list, tuple)) or len(shares) != 2:
            return None
        names, unit = ("fixed", "moving"), result.fixed_grid.unit
        bars = "".join(
            f'<text x="4" y="{20 + 26 * k}">{name}</text>'
            f'<rect x="70" y="{6 + 26 * k}" width="{300 * share:.0f}" height="18" fill="#1f5fae"/>'
            for k, (name, share) in enumerate(zip(names, shares, strict=True))
        )
        distance = result.metrics.get("surface_distance")
        return regframe.Section(
            "Both surfaces",
            [f"A place lies on the other surface where it is within {CLOSE:.0%} of the fixed one's radius of it."],
            [
                *(
                    [f"{name} surface on the other one", f"{share:.0%}"]
                    for name, share in zip(names, shares, strict=True)
                ),
                [f"median distance there ({unit})", distance],
            ],
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 380 60" font-family="sans-serif" font-size="13">{bars}</svg>',
            "Share of each surface that lies on the other one",
        )


@regframe.hookimpl
def regframe_adapters() -> list[type[regframe.Adapter]]:
    """The adapter of this plug-in."""
    return [MeshAdapter]


@regframe.hookimpl
def regframe_solvers() -> list[type[regframe.Solver]]:
    """The solver of this plug-in."""
    return [Meshes]
