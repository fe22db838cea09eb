"""Benchmarks of the alignment of spatial transcriptomics: pairs of h5ad files, a match of their spots, scores of its labels.

Two layouts are read. That of SLAT's benchmark (``benchmark/workflow`` of gao-lab/SLAT): folders, at any depth, with
``adata1.h5ad`` (the reference) and ``adata2.h5ad`` (the query), to which a method adds ``METHOD/metrics.yaml`` and
``METHOD/matching.csv``. And a folder of slices, ``*.h5ad`` in the order of their names, each aligned to the one before it, as in
comparisons of PASTE and its like (Xu-0001/Benchmarking), which score a matrix ``pi`` of probabilities
``[spots of the first, spots of the second]``. Positions are ``obsm["spatial"]``, labels columns of ``obs``. The metrics are
written anew. The command is `__main__`.

regframe aligns positions and matches no spots: here a spot of the query is matched to the reference's spot nearest to where the
map puts it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .. import entries
from ..entries import Array, Pair

Words = NDArray[np.str_]
REFERENCE, QUERY = "adata1.h5ad", "adata2.h5ad"
"""Names of the two sides in SLAT's benchmark."""
SPATIAL, ALIGNED = "spatial", "spatial_aligned"
"""Entries of ``obsm``: positions as they are, and those that ``regframe apply points`` adds."""
METHOD = "regframe"
CELL_TYPES = ("cell_type", "Cell_class", "annotation", "celltype")
"""Columns of ``obs`` looked for, the first that both sides have: what SLAT's benchmark calls the biology of its data sets."""
REGIONS = ("layer_guess", "region", "layer_guess_reordered")
"""Likewise, what it calls their topology."""


@dataclass(frozen=True)
class Case:
    """Two slices.

    Args:
        pair: what is run; the reference is the fixed side.
        place: folder of the pair below the data's folder; empty for a folder of slices.
    """

    pair: Pair
    place: Path

    @property
    def name(self) -> str:
        """How the pair is named in tables."""
        return self.place.as_posix() if self.place.parts else self.pair.id


def read_cases(folder: Path, components: int = 0) -> list[Case]:
    """The pairs of a folder in one of the two layouts.

    Args:
        folder: holds them.
        components: how many leading components of the expression drive the match; 0 for the density of the spots alone,
            which is regframe's default.

    Raises:
        ValueError: for a folder with no pair of h5ad files.
    """
    found = [path for path in sorted(folder.rglob(REFERENCE)) if path.with_name(QUERY).is_file()]
    sides = [(path, path.with_name(QUERY), path.parent.relative_to(folder)) for path in found]
    if not found:
        slices = sorted(folder.glob("*.h5ad"))
        sides = [(a, b, Path()) for a, b in itertools.pairwise(slices)]
    if not sides:
        raise ValueError(
            f"wanted {REFERENCE} beside {QUERY}, or two slices *.h5ad, in {folder}, got none; name another folder"
        )
    cases = []
    for number, (fixed, moving, place) in enumerate(sides):
        text = place.as_posix() if place.parts else f"{moving.stem} to {fixed.stem}"
        cells = {"fixed_set": _expression(components, moving), "moving_set": _expression(components, fixed)}
        pair = Pair(entries.named(number, text), fixed, moving, moving, None, cells if components else {})
        cases.append(Case(pair, place))
    return cases


def _expression(components: int, beside: Path) -> str:
    return f"genes=all;components={components};beside={beside.absolute()}"


@dataclass(frozen=True)
class Slice:
    """Positions ``[N, 2]`` (x, y) of a slice, and the words of its labels by what they say."""

    positions: Array
    labels: dict[str, Words]


def read_slice(path: Path, columns: dict[str, Sequence[str]], key: str = SPATIAL) -> Slice:
    """Positions and labels of an h5ad; counts are not read.

    Args:
        path: of the file.
        columns: for each kind of label the columns of ``obs`` to look for.
        key: the entry of ``obsm``.

    Raises:
        ValueError: for a file without the positions.
    """
    import anndata

    data = anndata.read_h5ad(path, backed="r")
    try:
        if key not in data.obsm:
            raise ValueError(f'wanted obsm["{key}"] in {path}, got {", ".join(data.obsm) or "none"}; add the positions')
        positions = np.asarray(data.obsm[key], dtype=np.float64)[:, :2]
        labels = {}
        for kind, names in columns.items():
            for name in names:
                if name in data.obs:
                    labels[f"{kind}:{name}"] = data.obs[name].astype(str).to_numpy().astype(str)
        return Slice(positions, labels)
    finally:
        data.file.close()


def shared_labels(reference: Slice, query: Slice, kind: str) -> tuple[Words, Words] | None:
    """The labels of a kind by the first column that both have; None without one."""
    for name in reference.labels:
        if name.startswith(f"{kind}:") and name in query.labels:
            return reference.labels[name], query.labels[name]
    return None


def match(reference: Array, query: Array) -> NDArray[np.int64]:
    """For each query position ``[N, 2]`` the number of the reference's position nearest to it.

    Args:
        reference: positions ``[M, 2]``.
        query: positions carried to the reference, in the same unit.
    """
    return np.asarray(cKDTree(reference).query(query)[1], dtype=np.int64)


# what they score


def write_matching(path: Path, matching: NDArray[np.int64]) -> None:
    """Write two rows, the numbers of the query's spots and those of the reference's, as SLAT's ``edge_score`` reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, np.stack([np.arange(len(matching)), matching]), fmt="%d")


def write_metrics(path: Path, figures: dict[str, float]) -> None:
    """Write SLAT's ``metrics.yaml``: one number a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}: {value!r}\n" for name, value in figures.items()), encoding="utf-8")


def write_pi(path: Path, matching: NDArray[np.int64], spots: int) -> None:
    """Write the match as the matrix ``pi`` ``[spots, len(matching)]`` of PASTE's comparisons: CSV, gzipped, its sum 1.

    Args:
        path: ends in ``.gz``.
        matching: for each spot of the second slice that of the first.
        spots: of the first slice.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pi = np.zeros((spots, len(matching)))
    pi[matching, np.arange(len(matching))] = 1 / len(matching)
    np.savetxt(path, pi, fmt="%.9g", delimiter=",")


def scored(
    matching: NDArray[np.int64], types: tuple[Words, Words] | None, regions: tuple[Words, Words] | None
) -> dict[str, float]:
    """The benchmarks' figures of a match, by their names; those without labels are left out.

    ``celltype_score`` and ``region_score`` are the shares of query spots matched to one of their label, ``global_score`` (CRI) of
    both labels. ``mapping_accuracy`` is the mass of ``pi`` between spots of one label and ``LTARI`` the adjusted Rand index of
    the labels that the match carries over, of the regions, or of the types where there are none.

    Args:
        matching: for each query spot that of the reference.
        types: labels ``[M]`` of the reference and ``[N]`` of the query.
        regions: likewise.
    """
    out: dict[str, float] = {}
    alike = {
        name: labels[0][matching] == labels[1]
        for name, labels in (("celltype_score", types), ("region_score", regions))
        if labels is not None
    }
    if len(alike) == 2:
        out["global_score"] = float(np.logical_and(*alike.values()).mean())
    out |= {name: float(same.mean()) for name, same in alike.items()}
    labels = types if regions is None else regions
    if labels is not None:
        out["mapping_accuracy"] = float((labels[0][matching] == labels[1]).mean())
        out["LTARI"] = adjusted_rand(labels[1], labels[0][matching])
    return out


def adjusted_rand(one: Words, other: Words) -> float:
    """The adjusted Rand index (Hubert and Arabie 1985) of two labellings ``[N]``: 1 for the same parts, 0 by chance."""
    a, b = (np.unique(labels, return_inverse=True)[1] for labels in (one, other))
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)
    both, first, second, total = (
        (counts * (counts - 1) / 2).sum() for counts in (table, table.sum(1), table.sum(0), np.array([table.sum()]))
    )
    chance = first * second / total if total else 0.0
    most = (first + second) / 2
    return 1.0 if most == chance else float((both - chance) / (most - chance))
