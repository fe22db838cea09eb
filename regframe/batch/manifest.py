"""The manifest of a batch: a CSV or TSV file with one job per row; every cell is checked before any job runs."""

from __future__ import annotations

import csv
import difflib
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from .. import gate
from ..io.paths import shown
from ..io.text import decoded
from ..remote.address import Remote
from .places import File, Files, Place, Places, Start, argument, named, said, several

MAX_BYTES = 64 << 20
"""Largest manifest that is read, in bytes: some 100 000 jobs."""
RESERVED = ("summary.csv", "summary.html", "con", "prn", "aux", "nul")
"""Names in the output folder that no job may have; the last four are names of devices on Windows."""

_ID = re.compile(r"\w(?:[\w.+=@ -]{0,98}[\w+=@-])?")
_SHOWN = 10
"""Number of problems that are listed; the rest is counted."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_SEPARATOR = re.compile(r"sep=([\t,;|])", re.IGNORECASE)
_KINDS = ("image", "labels", "points", "shapes")


class ManifestError(ValueError):
    """A manifest that cannot be used: one sentence per problem, with its line."""


def parse_size(text: str) -> int:
    """Bytes of a size such as ``"2 GiB"``, ``"800MB"`` or ``"4G"``.

    Prefixes are powers of 1024 with an ``i`` or without a ``B``, else powers of 1000.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise ValueError(f"wanted a size such as 2GiB or 800MB, got {text!r}")
    number, prefix, binary = found.groups()
    base = 1000 if text.strip().lower().endswith("b") and prefix and not binary else 1024
    return int(float(number) * base ** " kmgt".index(prefix.lower() or " "))


def _list(value: Any) -> Any:
    return tuple(p.strip() for p in value.split(";") if p.strip()) if isinstance(value, str) else value


def _size(value: Any) -> Any:
    return parse_size(value) if isinstance(value, str) else value


def _job_id(value: str) -> str:
    if not _ID.fullmatch(value):
        raise ValueError(
            "a name that can be a folder's: up to 100 letters, digits, spaces and . _ - + = @, the first a letter or digit"
        )
    if value.lower() in RESERVED:
        raise ValueError(f"a name other than {', '.join(RESERVED)}")
    return value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("a finite number")
    return value


List = Annotated[tuple[str, ...], BeforeValidator(_list)]
Size = Annotated[int, BeforeValidator(_size), Field(gt=0)]
Length = Annotated[float, AfterValidator(_finite), Field(gt=0)]


class Job(BaseModel):
    """One row of a manifest: two sides and how to open them, and what to evaluate and carry afterwards.

    Names and meanings are those of the options of ``regframe register``, ``evaluate`` and ``apply``; blank cells have the
    options' defaults. Lists are separated by semicolons.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    id: Annotated[str, AfterValidator(_job_id)]
    fixed: Place
    moving: Place
    landmarks: File | None = None
    config: File | None = None
    settings: List = Field((), alias="set")
    metric: str | None = None
    metric_set: List = ()
    transform: str | None = None
    init: Start = "auto"
    level: Annotated[int, Field(ge=0)] | None = None
    device: str | None = None
    effort: Literal["low", "auto", "full"] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    fixed_adapter: str | None = None
    fixed_set: List = ()
    fixed_mpp: Length | None = None
    fixed_channel: str | None = None
    fixed_nodata: str | None = None
    fixed_mask: File | None = None
    moving_adapter: str | None = None
    moving_set: List = ()
    moving_mpp: Length | None = None
    moving_channel: str | None = None
    moving_nodata: str | None = None
    moving_mask: File | None = None
    fixed_landmarks: File | None = None
    fixed_landmarks_spacing: Length | None = None
    moving_landmarks: File | None = None
    moving_landmarks_spacing: Length | None = None
    apply_image: Places = ()
    apply_image_spacing: Length | None = None
    apply_image_level: Annotated[int, Field(ge=0)] | None = None
    apply_labels: Places = ()
    apply_labels_spacing: Length | None = None
    apply_labels_level: Annotated[int, Field(ge=0)] | None = None
    apply_points: Files = ()
    apply_points_spacing: Length | None = None
    apply_points_columns: str | None = None
    apply_shapes: Files = ()
    apply_shapes_spacing: Length | None = None
    apply_shapes_unit: str | None = None
    memory: Size | None = None
    timeout: Length | None = None
    save_warped: bool = False
    refine: bool = False

    @model_validator(mode="after")
    def _whole(self) -> Job:
        if (self.fixed_landmarks is None) != (self.moving_landmarks is None):
            raise ValueError("fixed_landmarks and moving_landmarks together, got one of them; fill in both or neither")
        names: dict[str, Path | Remote] = {}
        for _, path, name in self.applied():
            other = names.setdefault(name.lower(), path)
            if other is not path:
                raise ValueError(
                    f"files to apply that are named apart, got {shown(str(other))} and {shown(str(path))}, both written as {name}"
                )
        return self

    @property
    def inputs(self) -> dict[str, Path | Remote]:
        """Every file that the job reads, by column."""
        named: dict[str, Path | Remote | None] = {
            name: getattr(self, name) for name in ("fixed", "moving", "landmarks", "config")
        }
        named |= {name: getattr(self, name) for name in ("fixed_landmarks", "moving_landmarks")}
        named |= {name: getattr(self, name) for name in ("fixed_mask", "moving_mask")}
        named["init"] = Path(self.init) if Path(self.init).is_absolute() else None
        for i, (kind, path, _) in enumerate(self.applied()):
            named[f"apply_{kind}:{i}"] = path
        return {name: path for name, path in named.items() if path is not None}

    def applied(self) -> Iterator[tuple[str, Path | Remote, str]]:
        """Files to carry to the fixed side: the name of the command, the file, and the name of the output."""
        for kind in _KINDS:
            for path in getattr(self, f"apply_{kind}"):
                raster = kind in ("image", "labels")
                stem = re.sub(r"(\.ome)?(\.tiff?|\.zarr(\.zip)?)$", "", path.name, flags=re.IGNORECASE)
                stem = stem if stem != path.name else PurePosixPath(path.name).stem
                yield kind, path, f"{stem}.ome.zarr" if raster else path.name

    @property
    def options(self) -> dict[str, Any]:
        """The settings by which a finished job is recognised as this one; its limits are not among them."""
        return self.model_dump(mode="json", exclude={"memory", "timeout"}, exclude_defaults=True)

    def register_arguments(self, out: Path, threads: int = 1) -> list[str]:
        """The command line of ``regframe register``."""
        return [
            *_options(self, "landmarks", "config", "metric", "transform", "level", "device", "effort", "seed"),
            *(f"--init={self.init}" for _ in range(self.init != "auto")),
            *(f"--set={pair}" for pair in self.settings),
            *(f"--metric-set={pair}" for pair in self.metric_set),
            *_side(self, "fixed"),
            *_side(self, "moving"),
            *(["--save-warped"] if self.save_warped else []),
            *(["--refine", f"--workers={threads}"] if self.refine else []),
            f"--output={out}",
            "--",
            argument(self.fixed),
            argument(self.moving),
        ]

    def later_arguments(self, out: Path, threads: int = 1) -> Iterator[tuple[str, list[str]]]:
        """The commands after a registration: name and command line of each ``regframe evaluate`` and ``regframe apply``."""
        if self.fixed_landmarks is not None:
            options = _options(self, "fixed_landmarks", "moving_landmarks")
            for side in ("fixed", "moving"):
                spacing = getattr(self, f"{side}_landmarks_spacing")
                options += [] if spacing is None else [f"--{side}-spacing={spacing!r}"]
            yield "evaluate", ["evaluate", "--json", *options, "--", str(out)]
        for kind, path, name in self.applied():
            options = ["--labels"] if kind == "labels" else []
            options += [f"--workers={threads}"] if kind in ("image", "labels") else []
            spacing = getattr(self, f"apply_{kind}_spacing")
            options += [] if spacing is None else [f"--input-spacing={spacing!r}"]
            level = getattr(self, f"apply_{kind}_level", None)
            options += [] if level is None else [f"--level={level}"]
            if kind == "points" and self.apply_points_columns is not None:
                options.append(f"--columns={self.apply_points_columns}")
            if kind == "shapes" and self.apply_shapes_unit is not None:
                options.append(f"--unit={self.apply_shapes_unit}")
            command = "image" if kind == "labels" else kind
            target = out / "applied" / name
            yield (
                f"apply {kind} {shown(path.name)}",
                ["apply", command, "--to=fixed", *options, f"--output={target}", "--", str(out), argument(path)],
            )


def _options(job: Job, *names: str) -> list[str]:
    values = ((name.replace("_", "-"), getattr(job, name)) for name in names)
    return [f"--{name}={value}" for name, value in values if value is not None]


def _side(job: Job, side: str) -> list[str]:
    out = _options(job, f"{side}_adapter", f"{side}_mpp", f"{side}_channel", f"{side}_nodata", f"{side}_mask")
    return out + [f"--{side}-set={pair}" for pair in getattr(job, f"{side}_set")]


COLUMNS = tuple(field.alias or name for name, field in Job.model_fields.items())
"""The columns that a manifest may have."""

_PATHS = {"fixed", "moving", "landmarks", "config", "fixed_landmarks", "moving_landmarks", "fixed_mask", "moving_mask"}
_PATH_LISTS = {f"apply_{kind}" for kind in _KINDS}


def read_manifest(path: Path, defaults: dict[str, Any] | None = None) -> tuple[Job, ...]:
    """The jobs of a CSV, TSV or semicolon-separated file with a header; blank lines are skipped.

    Args:
        path: the file, UTF-8, UTF-16 or an older encoding of text; relative paths in it are relative to its folder.
        defaults: values for cells that a row leaves blank; for ``set``, entries that come before the row's own.

    Raises:
        ManifestError: names every problem and its line. A missing input file is not a problem here: its job fails later.
        OSError: the manifest cannot be read.
    """
    gate.check_file(path, folder=False)
    if path.stat().st_size > MAX_BYTES:
        raise ManifestError(
            f"wanted a manifest of at most {MAX_BYTES >> 20} MiB, got {path}, which is larger; split it"
        )
    try:
        text, encoding = decoded(path.read_bytes())
    except ValueError as error:
        raise ManifestError(f"wanted a table as text, got {path}: {error}; save it as CSV UTF-8") from error
    rows, delimiter = _table(text, path)
    if not rows:
        raise ManifestError(f"wanted a header and one job per line in {path}, got an empty file")
    (_, header), *body = rows
    header = [name.strip() for name in header]
    _check_header(header, path)
    if not body:
        raise ManifestError(f"wanted one job per line in {path}, got a header alone")

    jobs: list[Job] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for line, cells in body:
        if len(cells) != len(header):
            problems.append(
                f"line {line}: wanted {len(header)} cells, got {len(cells)}; quote what holds a {delimiter!r}"
            )
            continue
        try:
            job = Job.model_validate(
                _values(dict(zip(header, cells, strict=True)), path.resolve().parent, defaults or {}, encoding)
            )
        except ValidationError as error:
            problems += [f"line {line}: {_problem(item)}" for item in error.errors()]
            continue
        key = unicodedata.normalize("NFC", job.id).casefold()
        if key in seen:
            problems.append(
                f"line {line}: wanted ids that differ, got {job.id!r}, which line {seen[key]} has (case does not count)"
            )
        seen.setdefault(key, line)
        jobs.append(job)
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ManifestError(f"{path}: " + "; ".join(problems[:_SHOWN]) + more)
    return tuple(jobs)


def _table(text: str, path: Path) -> tuple[list[tuple[int, list[str]]], str]:
    """Rows of cells that are not blank, each with the line on which it ends, and what divides the cells.

    A first line ``sep=;``, which spreadsheets write, says the latter; else the first row does.
    """
    lines = text.splitlines(keepends=True)
    start = next((i for i, line in enumerate(lines) if line.strip()), 0)
    stated = _SEPARATOR.fullmatch(lines[start].strip("\ufeff \r\n")) if lines else None
    if stated:
        start += 1
    first = lines[start] if start < len(lines) else ""
    delimiter = stated[1] if stated else max("\t,;", key=first.count)
    reader = csv.reader(lines[start:], delimiter=delimiter, strict=True)
    rows = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((reader.line_num + start, cells))
    except csv.Error as error:
        raise ManifestError(
            f"wanted a CSV table in {path}, got on line {reader.line_num + start}: {error}; a cell with quotes is written "
            'in quotes, and each of its own twice: "a ""b"" c"'
        ) from error
    return rows, delimiter


def _check_header(header: list[str], path: Path) -> None:
    unknown = [name for name in header if name not in COLUMNS]
    if unknown:
        close = difflib.get_close_matches(unknown[0], COLUMNS, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(COLUMNS)}"
        raise ManifestError(f"there is no column {unknown[0]!r} in a manifest ({path}); {hint}")
    double = {name for name in header if header.count(name) > 1}
    if double:
        raise ManifestError(f"wanted every column once in {path}, got {_join(double)} more than once")
    absent = [name for name in ("id", "fixed", "moving") if name not in header]
    if absent:
        raise ManifestError(f"wanted the columns id, fixed and moving in {path}, got no {_join(absent)}")


def _values(row: dict[str, str], folder: Path, defaults: dict[str, Any], encoding: str) -> dict[str, Any]:
    """The cells of a row that are not blank, with absolute paths."""
    values: dict[str, Any] = {name: cell.strip() for name, cell in row.items() if cell.strip()}
    for name, value in values.items():
        if name in _PATHS or (name == "init" and not _names_start(folder, value)):
            values[name] = named(folder, row[name], encoding)
        elif name in _PATH_LISTS:
            values[name] = several(folder, row[name], encoding)
    own = _list(values.get("set", ""))
    return {**defaults, **values, "set": (*defaults.get("set", ()), *own)}


def _names_start(folder: Path, value: str) -> bool:
    """Whether a value of ``init`` is the name of a start, as ``regframe register`` will look up, and no file."""
    return re.fullmatch(r"[\w-]+", value) is not None and not (folder / value).exists()


def _problem(item: Any) -> str:
    column = ".".join(str(part) for part in item["loc"])
    wanted = str(item["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"wanted a value in the column {column!r}, got a blank"
    if not column:  # a rule about several columns; its message states the values
        return f"wanted {wanted}"
    wanted = wanted.removeprefix("wanted ").partition(", got")[0]
    return f"wanted in the column {column!r} {wanted}, got {said(item['input'])}"


def _join(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))
