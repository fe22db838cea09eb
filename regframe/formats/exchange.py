"""`write_map` and `read_map`: maps in the files of other programs, in any format.

What a format cannot hold is refused, never approximated silently. Where a bend becomes a displacement field, the error of
interpolating that field is measured and reported. ``docs/interchange.md`` shows how other programs use the files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from .. import gate, plugins, strangers, verdict
from ..contracts import MapFormat, Side, Written
from ..data import Grid, unit_ratio
from ..evaluation import map_figures
from ..io import outputs, store
from ..maps.affine import Affine
from ..maps.base import Transform
from ..maps.known import known
from ..maps.pieces import as_displacement, in_pieces
from ..result import Result
from ..versions import versions
from . import TOLERANCE_PX
from .ngff import Ngff
from .points import Points
from .steps import along_x, both_canvases, unjudged

SEAMS = (
    "the map is in pieces, which this format cannot hold: it is written as one displacement field, which jumps at the seams and "
    "is no map of any piece within a pixel of them; a store (.ome.zarr, regframe's own) keeps the pieces"
)
"""Remark where a map in pieces is written as a field."""

# -------------------------------------------------------------------------------------------------------------- formats


def known_formats() -> tuple[type[MapFormat], ...]:
    """The classes of all formats, in the order in which they are asked whether a file is theirs."""
    return tuple(entry.cls for entry in plugins.chosen_by_default("format"))


def format_of(path: Path, name: str | None = None, reading: bool = True) -> type[MapFormat]:
    """The format called ``name``; without a name the one that recognises the file at ``path``, or that has its suffix.

    A file that is about to be replaced (``reading`` is False) says nothing of what is written.
    """
    known = known_formats()
    names = ", ".join(each.name for each in known)
    if name is not None:
        return plugins.format_named(name)
    found = next((each for each in known if each.recognises(path)), None) if reading else None
    lower = path.name.lower()
    ends = [(len(end), each) for each in known for end in each.suffixes if lower.endswith(end)]
    found = found or max(ends, key=lambda one: one[0], default=(0, None))[1]  # .bigwarp.csv says more than .csv
    if found is None:
        raise ValueError(
            f"wanted a format out of {names}, got {path.name!r}, whose suffix says none; name one (--format)"
        )
    return found


def _with_options(chosen: type[MapFormat], options: Mapping[str, Any]) -> MapFormat:
    """An instance of a format with the options that are not None; ValueError for an option it does not have."""
    given = {name: value for name, value in options.items() if value is not None}
    own = inspect.signature(chosen).parameters
    strange = sorted(given.keys() - own.keys())
    if not strange:
        return chosen(**given)
    takers = [each.name for each in known_formats() if inspect.signature(each).parameters.keys() >= set(strange)]
    said = " and ".join(strange)
    if takers:
        raise ValueError(f"wanted {said} with {' or '.join(takers)} alone, got {chosen.name}; leave {said} out")
    raise ValueError(f"wanted options of the format {chosen.name} ({', '.join(own) or 'it has none'}), got {said}")


def _unit(chosen: type[MapFormat], to: Side, unit: str | None) -> str:
    """The unit that a format is told; ValueError for a word that is none, and for a side that there is not."""
    if to not in get_args(Side):
        raise ValueError(f"wanted 'fixed' or 'moving' as the side to go to, got {to!r}; choose one")
    if unit is None:
        return chosen.default_unit or ""
    if chosen.default_unit is not None and unit_ratio(unit, "mm") is None:
        raise ValueError(f"wanted a length unit for the numbers of the file, got {unit!r}; take mm or um")
    return unit


# ------------------------------------------------------------------------------------------------------------------- out


def write_map(
    result: Result,
    path: str | Path,
    format: str | None = None,
    *,
    to: Side = "moving",
    unit: str | None = None,
    tolerance: float = TOLERANCE_PX,
    overwrite: bool = False,
    **options: Any,
) -> Written:
    """Write the map of ``result`` for another program.

    Args:
        result: what `register` returned.
        path: file to write; for ``ants`` the prefix of three files, for ``ngff`` a folder.
        format: ``itk``, ``ants``, ``nifti``, ``elastix``, ``npz``, ``ngff``, ``matrix``, ``qupath``, ``warpy``, ``csv`` or
            ``geojson``; where None, the suffix says it.
        to: the side that the written map takes positions to. Other programs resample the moving image on the fixed canvas with
            a map to ``moving``, the default. Formats that hold both directions ignore it.
        unit: length unit of the numbers, for sides that have a length unit and formats that declare none, mm where None; NIfTI,
            and with it ANTs, is in mm. A bare matrix has to have it stated and may be in ``px``.
        tolerance: largest error of a displacement field by interpolation, in pixels of the side ``to``.
        overwrite: replace what is at ``path``.
        options: options of the format. ``csv`` and ``geojson`` take ``points``, a `PointSet` of the side opposite to ``to``, or
            ``spacing``, the distance of positions on a regular grid over that side's canvas, in its unit.

    Raises:
        FileExistsError: ``path`` exists and ``overwrite`` is False.
        ValueError: the format cannot hold this map.
        ImportError: SimpleITK is missing; the message has the line that installs it.
    """
    path = Path(path)
    chosen = _with_options(format_of(path, format, reading=False), options)
    unit = _unit(type(chosen), to, unit)
    transform = known(result.transform, result.moving_grid, result.fixed_grid)
    if in_pieces(transform) and not isinstance(chosen, (Ngff, Points)):  # these say exactly what each piece does
        transform = as_displacement(transform, result.moving_grid, result.fixed_grid, to)
        warnings.warn(SEAMS, stacklevel=2)
    result = dataclasses.replace(result, transform=transform)
    places = chosen.files(path)
    with strangers.named(), _aside(places, overwrite) as aside:
        written = chosen.write(result, aside.with_name(path.name), to=to, unit=unit, tolerance=tolerance)
        strangers.returned(written, Written, chosen, "write")
        files = tuple(path.with_name(file.name) for file in written.files)
        _check_left(places, files)
    if written.max_error_px is not None and written.max_error_px > store.WORTH_A_WARNING_PX:
        warnings.warn(
            f"the map in {files[-1].name} is up to {written.max_error_px:.2g} px off, the best that this format can do "
            "for this much bending; .h5 and ngff come closer, and ngff and npz hold the exact map for regframe "
            "itself",
            stacklevel=2,
        )
    return dataclasses.replace(written, files=files, resample=written.resample or _resample(result, written))


@contextlib.contextmanager
def _aside(places: tuple[Path, ...], overwrite: bool) -> Iterator[Path]:
    """A temporary path for the first of some files, with the others beside it; all are renamed to ``places`` at the end.

    Where writing fails, existing files stay, and no new folder remains.
    """
    for place in places:
        outputs.check_file(place, overwrite)
        if place.is_dir():  # a Zarr store: it may hold other images; only a store of regframe may be replaced
            store.check_target(place, overwrite)
    with outputs.staged(places[0], overwrite) as aside:
        yield aside


def _check_left(places: tuple[Path, ...], files: tuple[Path, ...]) -> None:
    """Refuse to write where a file of an earlier map would remain that the new map does not have."""
    for place in places:
        if place not in files and place.exists():
            raise FileExistsError(
                f"output {place} exists and is of an earlier map, beside which this one has no such file; remove it first"
            )


def _resample(result: Result, written: Written) -> dict[str, list[float]]:
    """Size, spacing and origin along x, y(, z) of the canvas on which images are resampled, in the numbers of the file."""
    if written.to == "moving":
        canvas, unit = result.fixed_grid, written.units[0]
    else:
        canvas, unit = result.moving_grid, written.units[1]
    spacing, origin = along_x(canvas, unit)
    return {"size": [float(n) for n in canvas.shape[::-1]], "spacing": spacing, "origin": origin}


# -------------------------------------------------------------------------------------------------------------------- in


def read_map(
    path: str | Path,
    fixed: Grid | None = None,
    moving: Grid | None = None,
    format: str | None = None,
    *,
    to: Side = "moving",
    unit: str | None = None,
    **options: Any,
) -> Result:
    """A map that another program made, as a `Result` that carries data both ways.

    Args:
        path: the file; for ``ants`` the output prefix of ``antsRegistration``, for ``ngff`` the store.
        fixed: canvas of the fixed image; not needed for ``npz`` and for a store of regframe, which contain it.
        moving: canvas of the moving image; not needed where ``fixed`` is not.
        format: name of the format; found from the file where None.
        to: the side that the file's transform takes positions to; a transform to ``moving`` is one that resamples the moving
            image on the fixed canvas.
        unit: length unit of the file's numbers, for sides that have a length unit, mm where None; NIfTI states its own. Of a bare
            matrix it has to be stated, or ``px``.
        options: of the format. ``ngff`` takes ``systems``, the names of the fixed and the moving coordinate system in a store
            of another program.

    The inverse of a field is not stored but solved for; ``metrics["roundtrip_px"]`` states how exactly. The verdict is ``warn``
    at best, because only the map can be judged and not the fit behind it. Raises FileNotFoundError, or ValueError with one
    sentence for a file that cannot be read or holds no map.
    """
    began = time.perf_counter()
    path = Path(path)
    chosen = _with_options(format_of(path, format), options)
    unit = _unit(type(chosen), to, unit)
    needed = chosen.files(path)[0]
    if not needed.exists():
        raise FileNotFoundError(f"wanted a file to import, got {str(needed)!r}, which does not exist")
    for part in chosen.files(path):
        gate.check_file(part)
    with strangers.named(), _named(path):
        found = chosen.read(path, fixed, moving, to=to, unit=unit)
        strangers.returned(found, (Transform, Result), chosen, "read")
        if isinstance(found, Transform):
            found = unjudged(found, *both_canvases(chosen.name, fixed, moving))
        result: Result = found
        if "verdict" in result.metrics:
            return result
        _check_canvases(result, fixed, moving)
        return _judged(result, chosen.name, path, began)


def _check_canvases(result: Result, fixed: Grid | None, moving: Grid | None) -> None:
    """Refuse images whose canvases differ from those in the file."""
    for given, found, side in ((fixed, result.fixed_grid, "fixed"), (moving, result.moving_grid, "moving")):
        if given is not None and (given.shape, given.unit) != (found.shape, found.unit):
            raise ValueError(f"wanted the {side} image the map belongs to, {found}, got {given}; leave it out")


def _judged(result: Result, name: str, path: Path, began: float) -> Result:
    """``result`` with the figures that follow from a map alone (round trip, folds, overlap), and a verdict on them.

    The metrics that came with the file are moved to the key ``imported``.
    """
    phi = result.transform
    kind = "affine" if all(isinstance(part, Affine) for part in phi.parts()) else "displacement"
    metrics = {
        "model": f"imported {kind}",
        "imported": {"format": name, "path": str(path), **result.metrics},
        "metric": {"name": "none", "why": "the map was imported"},
        **map_figures(result),
        "matching_fraction": None,
        "pose_margin": None,
        "n_evaluations": 0,
        "energy": {"first": None, "last": None},
        "seconds": time.perf_counter() - began,
        "versions": versions(),
        "seed": 0,
    }
    findings = verdict.of_import(metrics, f"{path.name} ({name})")
    return dataclasses.replace(result, metrics=metrics | verdict.conclude(findings))


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the file's name in front of an error's sentence, unless it is there already."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        fault = strangers.fault_of(error)
        if fault is not None:
            raise fault from error
        if isinstance(error, strangers.PluginFault):
            raise
        if str(error).startswith(f"cannot read {path}"):  # the store names the file itself
            raise
        raise ValueError(f"cannot import {path}: {error}") from error
