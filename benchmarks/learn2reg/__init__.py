"""The challenge Learn2Reg (https://learn2reg.grand-challenge.org): its layout, its submission, its metrics.

A task is a folder with ``NAME_dataset.json``, which names pairs of volumes (``registration_val``, ``registration_test``), the
volumes in ``imagesTr`` or ``imagesTs``, and beside these ``labelsTr``, ``masksTr``, ``landmarksTr``, ``keypointsTr`` with files
of the same names. Wanted are displacement fields over the fixed volume's voxels. The metrics are those of the challenge's
evaluator (``evaluation/evaluation.py`` of MDL-UzL/L2R, version 2.0), written anew. The command is `__main__`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import map_coordinates

from .. import entries
from ..entries import Array, Pair
from .fields import numbers_of, spacing_of

PAIRS = {"val": "registration_val", "test": "registration_test"}
"""The entries of ``NAME_dataset.json`` that list pairs."""
WORSE_IS_MORE = ("sdlogj", "tre")
"""Metrics of which a large value is a bad one; the evaluator's ``30`` is their 0.7-quantile, and the 0.3-quantile of others."""
SHIFT = 3.0
"""What the evaluator adds to each Jacobian determinant before its logarithm, which makes folds hard to see in `sdlogj`."""
LEAST = 1e-9
"""Smallest determinant, so shifted, of which the evaluator takes the logarithm."""
RIM = 2
"""Voxels at every border that the evaluator leaves out of the Jacobian determinants."""


@dataclass(frozen=True)
class Case:
    """A pair of the task.

    Args:
        fixed: the fixed volume as the task names it (``./imagesTr/NAME_0001_0000.nii.gz``).
        moving: the moving one.
        pair: what is run.
    """

    fixed: str
    moving: str
    pair: Pair

    @property
    def codes(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """Subject and modality, four digits each, of the fixed and of the moving volume, cut from the ends of their names."""
        return tuple((name[-16:-12], name[-11:-7]) for name in (self.fixed, self.moving))  # type: ignore[return-value]

    @property
    def name(self) -> str:
        """The evaluator's name of the case."""
        (subject, modality), (other, other_modality) = self.codes
        return f"{subject}_{modality}<--{other}_{other_modality}"

    @property
    def fields(self) -> tuple[str, ...]:
        """The names under which the evaluator looks for the field.

        Its newest version takes the short one for modalities 0000 and 0001 alone, earlier ones also for equal modalities and
        then nothing else: such a field gets both names.
        """
        (subject, modality), (other, other_modality) = self.codes
        short = f"disp_{subject}_{other}.nii.gz"
        full = f"disp_{subject}_{modality}_{other}_{other_modality}.nii.gz"
        if (modality, other_modality) == ("0000", "0001"):
            return (short,)
        return (full, short) if modality == other_modality else (full,)


@dataclass(frozen=True)
class Task:
    """What is to be registered and how it is scored.

    Args:
        name: of the task.
        folder: holds the volumes.
        cases: its pairs, in its order.
        methods: the metrics, as ``evaluation_methods`` of the challenge's ``NAME_VAL_evaluation_config.json``.
        masked: whether `sdlogj` counts within ``masks`` alone.
        shape: voxels of a field, and 3; None where no file says it.
    """

    name: str
    folder: Path
    cases: tuple[Case, ...]
    methods: tuple[dict[str, Any], ...]
    masked: bool = False
    shape: tuple[int, ...] | None = None


def read_task(folder: Path, split: str = "val", config: Path | None = None) -> Task:
    """A task in the challenge's layout.

    Args:
        folder: holds ``*_dataset.json`` and the volumes, or that file.
        split: ``val`` or ``test``: which pairs.
        config: the challenge's ``*_evaluation_config.json``; its pairs and metrics count then, and no dataset file is needed.
            Without it everything is scored that the folder has the truth for.

    Raises:
        ValueError: for a folder without pairs, or a pair whose files are not named as the challenge names them.
    """
    root = folder if folder.is_dir() else folder.parent
    found = [folder] if folder.is_file() else sorted(root.glob("*_dataset.json"))
    if config is None and len(found) != 1:
        names = ", ".join(str(path) for path in found) or "none"
        raise ValueError(f"wanted one file *_dataset.json in {root}, got {names}; name the file instead of the folder")
    stated = _read_json(found[0] if config is None else config)
    pairs = stated.get(PAIRS[split] if config is None else "eval_pairs") or []
    if not pairs:
        raise ValueError(f"wanted pairs in {found[0] if config is None else config}, got none; try --split or --config")
    cases = tuple(_case(number, pair, root) for number, pair in enumerate(pairs))
    name = str(stated.get("task_name") or stated.get("name") or root.name)
    shape = stated.get("expected_shape")
    if config is not None:
        methods = tuple(stated["evaluation_methods"])
        return Task(name, root, cases, methods, bool(stated.get("masked_evaluation")), shape and tuple(shape))
    return Task(name, root, cases, _methods(cases, root))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"wanted a JSON object in {path}, got {error}; correct the file") from error
    if not isinstance(read, dict):
        raise ValueError(f"wanted a JSON object in {path}, got a {type(read).__name__}; name another file")
    return read


def _case(number: int, pair: Mapping[str, str], root: Path) -> Case:
    fixed, moving = pair.get("fixed", ""), pair.get("moving", "")
    for name in (fixed, moving):
        if not (name.endswith(".nii.gz") and name[-16:-12].isdigit() and name[-11:-7].isdigit()):
            raise ValueError(f"wanted a volume named as NAME_0001_0000.nii.gz, got {name!r}; correct the pair {number}")
    id = entries.named(number, f"{Path(fixed).name[:-7]} from {Path(moving).name[:-7]}")
    return Case(fixed, moving, Pair(id, root / fixed, root / moving))


def _methods(cases: Sequence[Case], root: Path) -> tuple[dict[str, Any], ...]:
    """The metrics that the folder has the truth for, of all pairs."""
    methods: list[dict[str, Any]] = [{"name": "LogJacDetStd", "metric": "sdlogj"}]
    for name, kind in (("TRE_lm", "landmarks"), ("TRE_kp", "keypoints")):
        if all(path.is_file() for case in cases for path in points_of(case, root, kind)):
            methods.append({"name": name, "metric": "tre", "dest": kind})
    labels = [root / name.replace("images", "labels") for case in cases for name in (case.fixed, case.moving)]
    if all(path.is_file() for path in labels):
        most = max(int(numbers_of(path).max()) for path in set(labels))
        methods.append({"name": "DSC", "metric": "dice", "labels": list(range(1, most + 1))})
        methods.append({"name": "HD95", "metric": "hd95", "labels": list(range(1, most + 1))})
    return tuple(methods)


def points_of(case: Case, root: Path, kind: str) -> tuple[Path, Path]:
    """The tables of positions, in voxels, of the fixed and of the moving volume.

    Args:
        case: the pair.
        root: the task's folder.
        kind: ``landmarks`` or ``keypoints``; volumes of other modalities than 0000 and 0001 have theirs in folders of their own.
    """
    (_, modality), (_, other) = case.codes
    if modality != other and (modality, other) != ("0000", "0001"):
        kind += min(modality, other) + max(modality, other)
    return tuple(  # type: ignore[return-value]
        root / name.replace("images", kind).replace(".nii.gz", ".csv") for name in (case.fixed, case.moving)
    )


# the metrics


def determinants(field: Array) -> Array:
    """The Jacobian determinant of ``v -> v + field(v)`` by central differences, without `RIM` voxels at each border.

    Args:
        field: displacements ``[X, Y, Z, 3]`` in voxels.
    """
    inner = (slice(None), *(slice(RIM, -RIM),) * 3)
    rows = []
    for axis in range(3):
        row = np.stack(np.gradient(field[..., axis], axis=(0, 1, 2)))[inner]
        row[axis] += 1
        rows.append(row)
    return np.asarray((rows[0] * np.cross(rows[1], rows[2], axis=0)).sum(axis=0))


def sdlogj(field: Array, mask: Array | None = None) -> float:
    """Standard deviation of the logarithm of the Jacobian determinants, with the evaluator's `SHIFT`.

    Args:
        field: displacements ``[X, Y, Z, 3]`` in voxels.
        mask: ``[X, Y, Z]``, nonzero where voxels count; None for all.
    """
    logs = np.log((determinants(field) + SHIFT).clip(LEAST, 1 / LEAST))
    if mask is not None:
        logs = logs[mask[RIM:-RIM, RIM:-RIM, RIM:-RIM] != 0]
    return float(logs.std())


def tre(fixed: Array, moving: Array, field: Array, spacing: Sequence[float]) -> Array:
    """Distance ``[N]`` in mm of carried landmarks from their places.

    Args:
        fixed: positions ``[N, 3]`` in the fixed volume, in voxels.
        moving: those in the moving one.
        field: displacements ``[X, Y, Z, 3]`` in voxels, interpolated by cubic splines as the evaluator does.
        spacing: of the moving volume's voxels, mm.
    """
    carried = fixed + np.stack([map_coordinates(field[..., axis], fixed.T) for axis in range(3)], axis=1)
    return np.linalg.norm((carried - moving) * np.asarray(spacing), axis=1)


def warped(labels: Array, field: Array) -> Array:
    """Labels ``[X, Y, Z]`` of the moving volume on the fixed one's voxels, 0 beyond their volume."""
    places = np.indices(field.shape[:3]) + np.moveaxis(field, -1, 0)
    return map_coordinates(labels, places, order=0)


def dice(fixed: Array, moving: Array, carried: Array, labels: Sequence[int]) -> list[float]:
    """Overlap of each label, ``2 |A ∩ B| / (|A| + |B|)``; NaN where it is in one of the two volumes alone.

    Args:
        fixed: labels ``[X, Y, Z]`` of the fixed volume.
        moving: those of the moving one as it is.
        carried: those brought onto the fixed one, see `warped`.
        labels: which ones.
    """
    found = []
    for label in labels:
        a, b = fixed == label, carried == label
        known = a.any() and (moving == label).any()
        found.append(float(2 * (a & b).sum() / (a.sum() + b.sum())) if known else float("nan"))
    return found


def hd95(fixed: Array, moving: Array, carried: Array, labels: Sequence[int]) -> list[float] | None:
    """95th percentile of the distance of each label's surfaces, in voxels; None where ``surface-distance`` is not installed.

    The evaluator uses that package (``pip install surface-distance``), whose surfaces have areas; arguments are those of `dice`.
    """
    try:
        from surface_distance.metrics import compute_robust_hausdorff, compute_surface_distances
    except ImportError:
        return None
    found = []
    for label in labels:
        a, b = fixed == label, carried == label
        if not (a.any() and (moving == label).any()):
            found.append(float("nan"))
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it imports by old names of scipy
            found.append(float(compute_robust_hausdorff(compute_surface_distances(a, b, (1.0, 1.0, 1.0)), 95.0)))
    return found


def scored(task: Task, case: Case, field: Array) -> dict[str, float]:
    """The evaluator's figures of one field, by the names of the task's metrics; those without truth or package are left out.

    Args:
        task: what it belongs to.
        case: its pair.
        field: displacements ``[X, Y, Z, 3]`` in voxels.
    """
    out: dict[str, float] = {}
    volumes: tuple[Array, Array, Array] | None = None
    for method in task.methods:
        value: float | None = None
        if method["metric"] == "sdlogj":
            mask = task.folder / case.fixed.replace("images", "masks")
            value = sdlogj(field, numbers_of(mask) if task.masked and mask.is_file() else None)
        elif method["metric"] == "tre":
            tables = points_of(case, task.folder, method["dest"])
            if all(path.is_file() for path in tables):
                places = [np.loadtxt(path, delimiter=",", ndmin=2) for path in tables]
                value = float(tre(*places, field, spacing_of(case.pair.moving)).mean())
        elif method["metric"] in ("dice", "hd95"):
            files = [task.folder / name.replace("images", "labels") for name in (case.fixed, case.moving)]
            if all(path.is_file() for path in files):
                if volumes is None:
                    fixed, moving = (numbers_of(path) for path in files)
                    volumes = fixed, moving, warped(moving, field)
                each = (dice if method["metric"] == "dice" else hd95)(*volumes, method["labels"])
                value = None if each is None else float(np.nanmean(each))
        if value is not None:
            out[method["name"]] = value
    return out


def aggregates(task: Task, scores: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean, deviation and the evaluator's ``30`` of each metric over the cases that have it."""
    out = {}
    for method in task.methods:
        values = [one[method["name"]] for one in scores.values() if method["name"] in one]
        if values:
            part = 0.7 if method["metric"] in WORSE_IS_MORE else 0.3
            figures = {"mean": np.mean(values), "std": np.std(values), "30": np.quantile(values, part)}
            out[method["name"]] = {name: float(value) for name, value in figures.items()}
    return out
