"""Cells as they come: text tables, Parquet, AnnData, data frames, arrays; read into `Cells` and written back whole."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import regframe

from .sizes import check_parquet

if TYPE_CHECKING:
    import torch
else:
    torch = regframe.later.torch

Array = NDArray[np.float64]

TEXT = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
PARQUET = (".parquet", ".pq")
ANNDATA = (".h5ad",)

LAYOUTS: tuple[tuple[frozenset[str], str, str, str], ...] = (
    (frozenset({"cell_id", "x_centroid", "y_centroid", "transcript_counts"}), "x_centroid", "y_centroid", "µm"),  # Xenium
    (frozenset({"transcript_id", "x_location", "y_location", "feature_name"}), "x_location", "y_location", "µm"),
    (frozenset({"fov", "volume", "center_x", "center_y", "min_x", "max_x"}), "center_x", "center_y", "µm"),  # MERSCOPE
    (frozenset({"barcode_id", "global_x", "global_y", "fov"}), "global_x", "global_y", "µm"),
    (frozenset({"fov", "CenterX_global_px", "CenterY_global_px"}), "CenterX_global_px", "CenterY_global_px", "px"),  # CosMx
    (frozenset({"fov", "x_global_px", "y_global_px"}), "x_global_px", "y_global_px", "px"),
)  # fmt: skip
"""Tables of cells and of transcripts as known instruments write them: the columns that tell the instrument, the columns of x
and y, and the unit that the maker's manual states for them."""

_SUFFIX = re.compile(r"(?<=[\s._\-\[(])(px|pixels?|um|µm|μm|microns?|nm|mm|cm|m)(?=[\])]?\s*$)", re.IGNORECASE)

IDS = ("cell_id", "cellid", "cell", "id", "barcode", "entityid", "transcript_id", "index")
"""Names, in lower case, of columns that number the rows and so hold no gene."""
MISSING = ("", "na", "nan", "none", "null", "<na>")
"""Words, in lower case, that stand for no value."""
_MOST_WORD = 4096
"""Signs of a cell of bytes up to which it counts as text."""
OBSM = ("spatial", "X_spatial")
"""Entries of ``obsm`` that hold positions, the first that is there: the key of scanpy and squidpy, and that with the prefix
of embeddings."""
KEY_ADDED = "spatial_aligned"
"""Entry of ``obsm`` that gets the positions of carried cells."""


@dataclass(frozen=True)
class Cells(regframe.PointSet):
    """Cells: positions, the table they came in, and the object that holds what is no column (genes of an AnnData).

    Args:
        native: data frame or AnnData the cells were read from, never changed; None for text tables and arrays.
        original: ``table`` as it was read, from which added columns are told.
        index: what names the rows of a data frame or an AnnData beside its columns, values by name: written to text first. An
            index without a name that counts rows is left out.
        key: entry of ``obsm`` that holds the positions, ``""`` where they are columns.
        places: numbers of the columns of that entry that hold y and x.
        read_unit: unit of the positions when they were read.
        file: the h5ad file of which ``native`` holds only ``obs`` and ``obsm``, None where it holds all of it.
    """

    native: Any = None
    original: Mapping[str, Any] = field(default_factory=dict)
    index: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    places: tuple[int, int] = (1, 0)
    read_unit: str = ""
    file: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.read_unit:
            object.__setattr__(self, "read_unit", self.unit)

    def written(self, name: str) -> str:
        """The name of a position column in a file: where the unit is no longer the one that the cells were read in, the name
        ends in the unit."""
        return name if self.unit == self.read_unit or name not in self.columns else _in_unit(name, self.unit, add=True)

    def numbers(self, name: str, purpose: str = "numbers") -> Array:
        """The column ``name`` as ``[N]`` float64; ValueError where there is none, or it holds other things than numbers."""
        values = self._column(name, purpose)
        if values.dtype.kind in "biuf":
            numbers = values.astype(np.float64)
        else:
            try:
                numbers = np.array([float(v) for v in values], dtype=np.float64)
            except (TypeError, ValueError):
                bad = next(v for v in values if not _is_number(v))
                raise ValueError(
                    f"wanted numbers for {purpose} in the column {name!r} of {self.name!r}, got {str(bad)!r}; "
                    f"name another column, or types={name!r} for a channel per value"
                ) from None
        bad_rows = np.flatnonzero(~np.isfinite(numbers))
        if len(bad_rows):
            raise ValueError(
                f"wanted finite numbers for {purpose} in the column {name!r} of {self.name!r}, got {numbers[bad_rows[0]]} in "
                f"row {bad_rows[0] + 1} ({len(bad_rows)} such rows); fill these in"
            )
        return numbers

    def words(self, name: str) -> NDArray[np.str_]:
        """The column ``name`` as text ``[N]``, ``""`` where it is blank or stands for a missing value."""
        values = np.array([str(v).strip() for v in self._column(name, "types")], dtype=np.str_)
        values[np.isin(np.char.lower(values), MISSING)] = ""
        return values

    def genes(self) -> tuple[str, ...]:
        """Names of the genes: the variables of an AnnData; of a table every column of whole numbers ≥ 0 that differ and are
        neither positions nor ids."""
        if _is_anndata(self.native):
            return tuple(map(str, self.native.var_names))
        first = next(iter(self.table), "")
        found = []
        for name in self.table:
            if name in self.columns or name.lower() in IDS or (name == first and not name.strip()):
                continue
            values = np.asarray(self.table[name])
            if values.dtype.kind not in "biuf":
                if not all(map(_is_number, values[:100])):
                    continue
                try:
                    values = values.astype(np.float64)
                except ValueError:
                    continue
            if (
                np.isfinite(values).all()
                and (values >= 0).all()
                and (values == np.round(values)).all()
                and np.ptp(values) > 0
            ):
                found.append(name)
        return tuple(found)

    def counts(self, names: Sequence[str]) -> Array:
        """Expression ``[N, len(names)]`` float64 of the genes named; ValueError for a gene that is not there."""
        if not _is_anndata(self.native):
            return np.stack([self.numbers(name, "genes") for name in names], axis=1)
        index = self.native.var_names.get_indexer(list(names))
        if (index < 0).any():
            missing = [name for name, i in zip(names, index, strict=True) if i < 0]
            raise ValueError(
                f"wanted genes of {self.name!r}, got {_join(missing)}, which it has not; see its var_names"
            )
        values = self.native.X[:, index]
        values = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
        if not np.isfinite(values).all():
            raise ValueError(
                f"wanted finite expression in {self.name!r}, got NaN or inf among {_join(names)}; fill these in"
            )
        return np.asarray(values, dtype=np.float64)

    def _column(self, name: str, purpose: str) -> NDArray[Any]:
        if name not in self.table:
            raise ValueError(f"wanted a column of {self.name!r} for {purpose} ({_join(self.table)}), got {name!r}")
        return np.asarray(self.table[name])


def read_cells(
    source: Any,
    columns: str | None = None,
    unit: str | None = None,
    scale_factor: str | None = None,
    genes: bool = True,
) -> Cells:
    """Read cells with all columns and, of an AnnData, all else that it holds; rows keep their order.

    Args:
        source: path of a text table, Parquet or h5ad file; a data frame, an AnnData, an array ``[N, 2]``, a `PointSet`.
        columns: which columns are the positions where their names do not say so (``"x=NAME,y=NAME"``); for an AnnData also
            the name of an ``obsm`` entry, and after a colon its columns by name or number, ``"spatial:x=0,y=1"`` (for the first
            entry of `OBSM` the latter alone); without them those of a frame are told by their names, those of an array are x, y.
            For an array the order of its columns, ``"y,x"``.
        unit: of columns without a unit suffix; where None that of the instrument whose columns these are, else ``"px"``.
        scale_factor: of an AnnData of spots, the entry of its ``scalefactors`` that the positions are multiplied by, e.g.
            ``"tissue_hires_scalef"`` for pixels of that picture; with ``"LIBRARY/"`` before it where there are several.
        genes: False leaves the expression of an h5ad file where it is: only ``obs`` and ``obsm`` are read.

    Raises:
        ValueError: where there are no cells, it is open which columns or axes the positions are in, they are 3D or not
            finite, units disagree, or a row occurs twice.
        ImportError: where the package that reads the format is not installed; it names the extra.
    """
    if isinstance(source, Cells):
        return source
    if scale_factor is not None and not (_is_anndata(source) or str(source).lower().endswith(ANNDATA)):
        raise ValueError(
            f"wanted an AnnData of spots for the scale factor {scale_factor!r}, got {type(source).__name__}; leave it out"
        )
    if isinstance(source, (str, os.PathLike)):
        cells = _read_file(Path(source), columns, unit, scale_factor, genes)
    elif isinstance(source, regframe.PointSet):
        cells = _plain(source)
    elif _is_anndata(source):
        cells = _from_anndata(source, columns, unit, "AnnData", scale_factor)
    elif hasattr(source, "columns") and hasattr(source, "to_csv"):
        cells = _from_frame(source, columns, unit, "data frame")
    elif isinstance(source, np.ndarray) or torch.is_tensor(source):
        cells = _from_array(np.asarray(source), columns, unit)
    else:
        raise ValueError(
            f"wanted a table of cells (a file, a data frame, an AnnData or an array), got {type(source).__name__}; convert it"
        )
    if not len(cells):
        raise ValueError(f"wanted at least one cell in {cells.name!r}, got an empty table; check how it was written")
    if cells.ndim != 2:
        raise ValueError(
            f"wanted cells in a plane, got {cells.ndim} position columns ({_join(cells.columns)}) in {cells.name!r}; "
            "name the two to use with columns='x=NAME,y=NAME', the third is kept"
        )
    _check_rows(cells)
    return cells


def write_cells(cells: Cells, path: Path, key_added: str = KEY_ADDED) -> None:
    """Write the table back by suffix: text, Parquet or h5ad (only what came as AnnData), new columns at the end.

    A position column is renamed where the unit is no longer the one it was read in: ``x_um`` to ``x_px``, ``x`` to ``x_px``.
    An h5ad keeps everything that it had, positions too; the carried ones (x, y) are ``obsm[key_added]``, whose attribute
    ``unit`` in the file names their unit. An h5ad of which only ``obs`` and ``obsm`` were read is copied as a file.
    """
    suffix = path.name.lower()
    added = {name: values for name, values in cells.table.items() if values is not cells.original.get(name)}
    if suffix.endswith(TEXT):
        plain = {name: values for name, values in cells.table.items() if name not in added}
        regframe.write_points(_as_text(cells, plain), path, {name: _texts(values) for name, values in added.items()})
    elif suffix.endswith(PARQUET):
        frame = _moved_frame(cells, added)
        _aside(path, frame.to_parquet)
    elif suffix.endswith(ANNDATA):
        if not _is_anndata(cells.native):
            raise ValueError(
                f"wanted cells read from an AnnData to write {path.name!r}, got {cells.name!r}; write .csv or .parquet"
            )
        if key_added == cells.key:
            raise ValueError(
                f"wanted another entry of obsm for the moved positions than the one they came from, got {key_added!r}; "
                "name it with key_added=..."
            )
        _aside(path, lambda aside: _write_anndata(cells, aside, key_added, added))
    else:
        raise ValueError(
            f"wanted a table ending in {_join((*TEXT, *PARQUET, *ANNDATA))}, got {path.name!r}; choose one of these"
        )


# ---- reading ------------------------------------------------------------------------------------------------------


def _read_file(path: Path, columns: str | None, unit: str | None, scale_factor: str | None, genes: bool) -> Cells:
    suffix = path.name.lower()
    if suffix.endswith(ANNDATA):
        data, units, whole = _read_anndata(path, genes, scale_factor is not None)
        cells = _from_anndata(data, columns, unit, path.name, scale_factor, units)
        return cells if whole else dataclasses.replace(cells, file=path)
    if suffix.endswith(PARQUET):
        return _from_frame(_read_parquet(path), columns, unit, path.name)
    table = regframe.read_table(path, columns)
    known = _layout(table.names) if columns is None else None
    if known is not None:
        columns, unit = known[0], _one_unit(known[1], unit, path.name)
    points = regframe.read_points(table, columns, unit)
    _one_unit(points.unit, unit, path.name)
    return _plain(points)


def _layout(names: Sequence[str]) -> tuple[str, str] | None:
    """Position columns and unit of the instrument whose columns these are."""
    return next(((f"x={x},y={y}", unit) for needed, x, y, unit in LAYOUTS if needed <= set(names)), None)


def _one_unit(declared: str, stated: str | None, name: str) -> str:
    """The ``declared`` unit; ValueError where another one is stated."""
    if stated is not None and regframe.canonical_unit(stated) != declared:
        raise ValueError(
            f"wanted one unit for {name!r}, got positions in {declared} and unit={stated!r}; leave unit out or convert them"
        )
    return declared


def _plain(points: regframe.PointSet) -> Cells:
    values = {f.name: getattr(points, f.name) for f in dataclasses.fields(regframe.PointSet)}
    return Cells(**values, original=points.table)


def _read_parquet(path: Path) -> Any:
    try:
        import pandas
        import pyarrow  # noqa: F401 - pandas reads Parquet with it
    except ImportError as error:
        raise ImportError(
            f"wanted pandas and pyarrow to read {path.name!r}, got no {error.name}; install regframe[tables]"
        ) from error
    with _readable(path, "a Parquet table"), regframe.native_path(path) as native:
        check_parquet(path, native)
        return pandas.read_parquet(native)


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """ValueError for whatever a damaged file makes its reader raise; FileNotFoundError passes."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # the readers document no exceptions
        if str(error).startswith("wanted "):
            raise
        raise ValueError(f"wanted {kind}, got {str(path)!r}, which cannot be read as one ({_reason(error)})") from error


def _read_anndata(path: Path, genes: bool, scales: bool) -> tuple[Any, dict[str, str], bool]:
    """The AnnData of a file, the units that entries of its ``obsm`` declare, and whether it was read whole."""
    try:
        import anndata
        import h5py
        from anndata.io import read_elem
    except ImportError as error:
        raise ImportError(
            f"wanted anndata to read {path.name!r}, got no {error.name}; install regframe[anndata]"
        ) from error
    regframe.gate.check_hdf5(path)
    with _readable(path, "an AnnData file"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files in an older format: whoever reads them cannot help it
        with h5py.File(path, "r") as file:
            positions = file.get("obsm", {})
            units = {key: str(item.attrs["unit"]) for key, item in positions.items() if "unit" in item.attrs}
            grouped = isinstance(file["obs"], h5py.Group) and (not len(positions) or isinstance(positions, h5py.Group))
            if not genes and grouped:  # as AnnData 0.7 and later write
                data = anndata.AnnData(obs=read_elem(file["obs"]))
                for key in positions:
                    data.obsm[key] = read_elem(positions[key])
                if scales and "spatial" in file.get("uns", {}):
                    data.uns["spatial"] = {
                        name: {"scalefactors": read_elem(item["scalefactors"])}
                        for name, item in file["uns/spatial"].items()
                        if "scalefactors" in item
                    }
                return data, units, False
        return anndata.read_h5ad(path), units, True


def _from_frame(frame: Any, columns: str | None, unit: str | None, name: str) -> Cells:
    names = [_word(column) for column in frame.columns]
    twice = sorted(n for n, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(f"wanted distinct column names in {name!r}, got {_join(twice)} more than once; rename them")
    known = _layout(names) if columns is None else None
    if known is not None:
        columns, unit = known[0], _one_unit(known[1], unit, name)
    chosen, declared = _position_columns(names, columns, name)
    table: dict[str, Any] = {n: _values(frame[column]) for n, column in zip(names, frame.columns, strict=True)}
    coords = _finite(np.stack([_floats(table[c], c, name) for c in chosen], axis=1), chosen, name)
    unit = _one_unit(declared, unit, name) if declared else unit
    return Cells(
        torch.from_numpy(coords),
        unit or "px",
        table=table,
        columns=chosen,
        name=name,
        native=frame,
        original=table,
        index=_index(frame.index, "index"),
    )


def _from_anndata(
    data: Any,
    columns: str | None,
    unit: str | None,
    name: str,
    scale_factor: str | None = None,
    units: Mapping[str, str] | None = None,
) -> Cells:
    table: dict[str, Any] = {_word(column): _values(data.obs[column]) for column in data.obs.columns}
    whole: dict[str, Any] = {"table": table, "name": name, "native": data, "original": table}
    whole["index"] = _index(data.obs_names, "obs_names")
    key, chosen = _entry(data, columns, list(table))
    if key:
        places, coords, declared = obsm_positions(data.obsm[key], chosen, f"obsm[{key!r}] of {name!r}")
        coords = _finite(coords, (f"obsm[{key!r}]",), name)
        declared = (units or {}).get(key) or declared
        unit = _one_unit(declared, unit, name) if declared else unit
        if scale_factor is not None:
            if (unit or "px") != "px":
                raise ValueError(
                    f"wanted positions of spots in px for {scale_factor!r}, got them in {unit}; leave one out"
                )
            coords = coords * _scale(data, scale_factor, name)
        return Cells(torch.from_numpy(coords), unit or "px", key=key, places=places, **whole)
    if scale_factor is not None:
        raise ValueError(
            f"wanted positions of spots in obsm for {scale_factor!r}, got {columns or 'no such entry'}; name it"
        )
    try:
        names, declared = _position_columns(list(table), columns, name)
    except ValueError as error:
        raise ValueError(f"{error} (obsm has {_join(data.obsm) or 'nothing'})") from error
    coords = _finite(np.stack([_floats(table[c], c, name) for c in names], axis=1), names, name)
    unit = _one_unit(declared, unit, name) if declared else unit
    return Cells(torch.from_numpy(coords), unit or "px", columns=names, **whole)


def _entry(data: Any, columns: str | None, obs: Sequence[str]) -> tuple[str, str | None]:
    """The entry of ``obsm`` with the positions, ``""`` where ``obs`` has them, and its columns where they are named."""
    first = next((key for key in OBSM if key in data.obsm), "")
    if columns is None:
        return first, None
    if columns in data.obsm:
        return columns, None
    key, colon, chosen = columns.rpartition(":")
    if colon and key in data.obsm:
        return key, chosen
    names = [item.partition("=")[2].strip() or item.strip() for item in columns.split(",")]
    return (first, columns) if first and not set(names) & set(obs) else ("", None)


def obsm_positions(entry: Any, columns: str | None, what: str) -> tuple[tuple[int, int], Array, str | None]:
    """The positions in an entry of ``obsm``.

    Args:
        entry: an array ``[N, K]`` or a data frame.
        columns: its columns of x and y by name or number, ``"x=0,y=1"``. Where None those of a frame whose names say it, else the
            two of an array in the order x, y; a third one, z, is passed over where it is equal in all rows.
        what: name of the entry, for errors.

    Returns:
        The numbers of the columns of y and x, the positions ``[N, 2]`` in this order, and the unit that the names of the columns
        state, None where they do not.

    Raises:
        ValueError: where it is open which columns they are, or one that is named is not there.
    """
    names = [_word(name) for name in getattr(entry, "columns", ())]
    values = np.asarray(entry)
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError(
            f"wanted positions [N, 2] (x, y) in {what}, got shape {list(values.shape)}; "
            "name another entry or columns of obs with columns=..."
        )
    count = values.shape[1]
    told = names if names and not all(name.isdigit() for name in names) else []
    declared: str | None = None
    if columns is not None:
        places = _named_places(columns, told or ["x", "y", "z"][:count], count, what)
        if told:
            with suppress(ValueError):  # names that state no position state no unit
                declared = _position_columns([told[i] for i in places], None, what)[1]
    elif told:
        chosen, declared = _position_columns(told, None, what)
        places = (told.index(chosen[-2]), told.index(chosen[-1]))
        _flat(values, [told.index(name) for name in chosen[:-2]], what)
    else:
        places = (1, 0)
        _flat(values, range(2, count), what)
    coords = values[:, places]
    try:
        return places, np.ascontiguousarray(coords, dtype=np.float64), declared
    except (TypeError, ValueError):
        raise ValueError(f"wanted numbers in {what}, got {values.dtype}; name another entry") from None


def _flat(values: NDArray[Any], others: Sequence[int], what: str) -> None:
    """ValueError where columns beside x and y tell rows apart, so that leaving them out needs a word."""
    if any(len(values) and (values[:, i] != values[0, i]).any() for i in others):
        raise ValueError(
            f"wanted positions [N, 2] (x, y) in {what}, got shape {list(values.shape)}; say which columns are x and y with "
            "columns='x=0,y=1', by number or name (the others are kept), or name another entry"
        )


def _named_places(columns: str, names: Sequence[str], count: int, what: str) -> tuple[int, int]:
    """Numbers of the columns of y and x that ``columns`` states, such as ``x=0,y=1``, ``x=NAME,y=NAME`` or ``x,y``."""
    places: dict[str, int] = {}
    for item in columns.split(","):
        axis, equals, name = (part.strip() for part in item.partition("="))
        name = name if equals else axis
        place = names.index(name) if name in names else int(name) if name.isdecimal() else count
        if axis.lower() not in ("x", "y") or place >= count:
            known = ", ".join(dict.fromkeys([*names, *map(str, range(count))]))
            raise ValueError(
                f"wanted columns of {what} ({known}) as 'x=NAME,y=NAME', got {columns!r}; name two of these"
            )
        places[axis.lower()] = place
    if len(places) < 2 or places["x"] == places["y"]:
        raise ValueError(f"wanted one column each for x and y of {what}, got {columns!r}; write e.g. x=0,y=1")
    return places["y"], places["x"]


def moved_entry(entry: Any, places: tuple[int, int], coords: Array, unit: str) -> Any:
    """A copy of an entry of ``obsm`` with positions ``[N, 2]`` (y, x) in the columns ``places``, float64; others as they were.

    Where the names of these columns state a unit, they state ``unit`` in the copy.
    """
    if hasattr(entry, "iloc"):
        frame = entry.copy()
        for d, place in enumerate(places):
            frame[frame.columns[place]] = coords[:, d]
        frame.columns = [_in_unit(_word(name), unit) if i in places else name for i, name in enumerate(frame.columns)]
        return frame
    out = np.array(entry, dtype=np.float64)
    out[:, places] = coords
    return out


def _in_unit(name: str, unit: str, add: bool = False) -> str:
    """The name of a position column that states ``unit`` instead of the unit in it, if there is one; else ``add`` appends it."""
    suffix = {"µm": "um"}.get(unit, unit)
    declared = _SUFFIX.search(name)
    if declared is None:
        return f"{name}_{suffix}" if add else name
    return (
        name
        if regframe.canonical_unit(declared[0].lower()) == unit
        else name[: declared.start()] + suffix + name[declared.end() :]
    )


def _scale(data: Any, wanted: str, name: str) -> float:
    """The scale factor of the spots that ``wanted`` names as ``ENTRY`` or ``LIBRARY/ENTRY``: pixels of a picture per unit."""
    libraries = data.uns.get("spatial", {})
    library, _, entry = wanted.rpartition("/")
    found = {
        key: held.get("scalefactors", {}).get(entry) for key, held in dict(libraries).items() if library in ("", key)
    }
    if len(found) != 1 or not _is_number(next(iter(found.values()))):
        raise ValueError(
            f"wanted one scale factor {wanted!r} in uns['spatial'] of {name!r} (libraries: {_join(libraries) or 'none'}), "
            f"got {_join(found.values()) or 'none'}; name it LIBRARY/ENTRY"
        )
    return float(next(iter(found.values())))


def _from_array(array: NDArray[Any], columns: str | None, unit: str | None) -> Cells:
    order = [part.strip().lower() for part in columns.split(",")] if columns else []
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        raise ValueError(
            f"wanted an array [N, 2] of numbers, got shape {list(array.shape)} of {array.dtype}; make a table of it"
        )
    if sorted(order) != ["x", "y"][: len(order)] or len(order) != array.shape[1]:
        raise ValueError(
            f"wanted the names of the axes of an array of shape {list(array.shape)}, got {columns!r}; "
            "say which column is which with columns='x,y' or 'y,x'"
        )
    coords = np.asarray(array[:, [order.index("y"), order.index("x")]], dtype=np.float64)
    return Cells(torch.from_numpy(_finite(coords, order, "array")), unit or "px", name="array")


def _position_columns(names: Sequence[str], columns: str | None, name: str) -> tuple[tuple[str, ...], str | None]:
    return regframe.position_columns(regframe.PointTable(Path(name), {column: [] for column in names}, ()), columns)


def _values(series: Any) -> NDArray[Any]:
    """A column as an array: numbers as they are, words as objects; bytes that are text become words."""
    values = np.asarray(series)
    if values.dtype.kind in "biuf":
        return values
    values = np.asarray(series.astype(object))
    if any(isinstance(value, bytes) for value in values):
        values = np.array([_word(value) if isinstance(value, bytes) else value for value in values], dtype=object)
    return values


def _word(value: Any) -> str:
    """A name or cell as text: bytes are decoded where they are text, and written in hexadecimal digits where not."""
    if not isinstance(value, bytes):
        return str(value)
    for encoding in ("utf-8", "latin-1"):
        with suppress(UnicodeDecodeError):
            text = value.rstrip(b"\0").decode(encoding)
            if all(sign.isprintable() or sign in "\t\n\r" for sign in text) and len(text) <= _MOST_WORD:
                return text
    return value.hex()


def _index(index: Any, default: str) -> dict[str, NDArray[Any]]:
    """The values of an index by name, level by level; nothing for one without a name that counts rows."""
    if index.nlevels == 1 and index.name is None and all(str(v) == str(i) for i, v in enumerate(index)):
        return {}
    levels = [index.get_level_values(i) for i in range(index.nlevels)]
    names = [default if name is None else _word(name) for name in index.names]
    return {
        name if names.count(name) == 1 else f"{name}_{i}": _values(level.to_series())
        for i, (name, level) in enumerate(zip(names, levels, strict=True))
    }


def _floats(values: NDArray[Any], column: str, name: str) -> Array:
    try:
        return values.astype(np.float64)
    except (TypeError, ValueError):
        bad = next(v for v in values if not _is_number(v))
        raise ValueError(
            f"wanted numbers in the position column {column!r} of {name!r}, got {str(bad)!r}; name another"
        ) from None


def _finite(coords: Array, columns: Sequence[str], name: str) -> Array:
    bad = np.flatnonzero(~np.isfinite(coords).all(axis=1))
    if len(bad):
        raise ValueError(
            f"wanted finite positions ({_join(columns)}) in every row of {name!r}, got {len(bad)} row(s) without "
            f"(row {_join(str(i + 1) for i in bad[:12])}); fill these in or leave them out"
        )
    return coords


def _check_rows(cells: Cells) -> None:
    """ValueError where a row occurs twice, id and all.

    Different cells may bear one id: fields of view count anew, and nothing is joined on ids. Where no more than half of the
    ids differ, the column is not one that tells rows apart, and rows are not compared.
    """
    first = next(iter(cells.table), None)
    if _is_anndata(cells.native):
        ids = np.asarray(cells.native.obs_names, dtype=object)
    else:
        key = next((n for i, n in enumerate(cells.table) if (i == 0 and not n.strip()) or n.lower() in IDS), None)
        if key is None or first is None:
            return
        ids = np.asarray(cells.table[key]).astype(object)
    if not len(ids) / 2 < len(set(ids)) < len(ids):
        return
    seen: dict[Any, int] = {}
    shared: dict[Any, int] = {}
    for name in ids:
        shared[name] = shared.get(name, 0) + 1
    columns = [np.asarray(values) for values in cells.table.values()]
    coords = cells.coords.numpy()
    for i in np.flatnonzero([shared[name] > 1 for name in ids]):
        row = (ids[i], *coords[i].tolist(), *(str(column[i]) for column in columns))
        if row in seen:
            raise ValueError(
                f"wanted every cell once in {cells.name!r}, got the id {str(ids[i])!r} in rows {seen[row] + 1} and {i + 1}, "
                "which are the same throughout; drop one of them"
            )
        seen[row] = int(i)


# ---- writing ------------------------------------------------------------------------------------------------------


def _as_text(cells: Cells, table: Mapping[str, Any]) -> regframe.PointSet:
    """The cells as a table of text: first what names the rows, then their columns, then what ``obsm`` has beside x and y."""
    text = {n: _texts(v) for n, v in cells.index.items() if n not in table}
    text |= {cells.written(n): _texts(v) if isinstance(v, np.ndarray) else v for n, v in table.items()}
    text |= {name if name not in text else f"{cells.key}_{name}": _texts(v) for name, v in _beside(cells).items()}
    columns = tuple(map(cells.written, cells.columns))
    return regframe.PointSet(cells.coords, cells.unit, None, text, columns, cells.name)


def _beside(cells: Cells) -> dict[str, NDArray[Any]]:
    """What the entry of ``obsm`` with the positions has beside x and y, by name: z, say."""
    if not cells.key or not _is_anndata(cells.native):
        return {}
    entry = cells.native.obsm[cells.key]
    values = np.asarray(entry)
    names = [_word(n) for n in getattr(entry, "columns", ["x", "y", "z", *map(str, range(3, values.shape[1]))])]
    return {names[i]: values[:, i] for i in range(values.shape[1]) if i not in cells.places}


def _texts(values: Any) -> list[str]:
    """Values as a text table has them: numbers with all their digits, truth as words, blanks for missing values."""
    out = []
    for value in values.tolist() if hasattr(values, "tolist") else values:
        if isinstance(value, bytes):
            out.append(_word(value))
        elif isinstance(value, bool):
            out.append("true" if value else "false")
        elif isinstance(value, float):
            out.append("" if value != value else repr(value))
        else:
            out.append("" if value is None else str(value))
    return out


def _write_anndata(cells: Cells, path: Path, key: str, added: Mapping[str, Any]) -> None:
    coords = (
        moved_entry(cells.native.obsm[cells.key], cells.places, cells.coords.numpy(), cells.unit) if cells.key else None
    )
    if coords is None:
        coords = cells.coords.numpy()[:, ::-1].copy()  # x, y
    axes = (
        "x,y"
        if cells.places == (1, 0)
        else ",".join("x" if i == cells.places[1] else "y" for i in sorted(cells.places))
    )
    added = {name: np.asarray(values) for name, values in added.items()}
    if cells.file is None:
        data = cells.native.copy()
        data.obsm[key] = coords
        for name, values in added.items():
            data.obs[name] = values
        data.write_h5ad(path)
    else:
        shutil.copyfile(cells.file, path)
    import h5py
    from anndata.io import write_elem

    with h5py.File(path, "r+") as file:
        if cells.file is not None:
            if "obsm" not in file:
                write_elem(file, "obsm", {})
            write_elem(file["obsm"], key, coords)
            names = [str(name) for name in file["obs"].attrs["column-order"]]
            for name, values in added.items():
                write_elem(file["obs"], name, values)
            names += [name for name in added if name not in names]
            file["obs"].attrs["column-order"] = np.array(names, dtype=h5py.string_dtype())
        file["obsm"][key].attrs.update({"unit": cells.unit, "axes": axes})


def _moved_frame(cells: Cells, added: Mapping[str, Any]) -> Any:
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            f"wanted pandas and pyarrow to write Parquet, got no {error.name}; install regframe[tables]"
        ) from error
    coords = cells.coords.numpy()
    if cells.native is not None and not _is_anndata(cells.native):
        frame = cells.native.copy()
        frame.columns = [_word(column) for column in frame.columns]
    else:
        frame = pandas.DataFrame({n: v for n, v in cells.table.items() if n not in added})
        if _is_anndata(cells.native):
            frame.index = cells.native.obs_names
            for name, values in _beside(cells).items():
                frame[name if name not in frame else f"{cells.key}_{name}"] = values
    for d, name in enumerate(cells.columns or cells.axes):
        frame[name] = coords[:, d]
    frame = frame.rename(columns={name: cells.written(name) for name in cells.columns})
    for name, values in added.items():
        frame[name] = values
    return frame


def _aside(path: Path, write: Any) -> None:
    """Write beside ``path`` and rename, so that a half-written file never bears the name."""
    with regframe.staged(path, overwrite=True) as aside, regframe.native_path(aside, write=True) as native:
        write(native)


def _is_anndata(value: Any) -> bool:
    return all(hasattr(value, name) for name in ("obs", "var_names", "obsm", "obs_names", "X"))


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _join(items: Any) -> str:
    listed = [str(item) or "(unnamed)" for item in items]
    return ", ".join(listed[:12]) + (f" and {len(listed) - 12} more" if len(listed) > 12 else "")
