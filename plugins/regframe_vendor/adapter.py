"""The adapter ``vendor``: the output folder of an instrument as its cells, its transcripts or its picture, in one frame of µm."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import regframe

from .cosmx import CosMx
from .counts import weighed
from .folder import Folder
from .layouts import PIXEL, Choice, Found, Layout, Picture, Use
from .merscope import Merscope
from .tables import ALIGNED, COUNTS, aligned, check_size, counted, header_of, points, read
from .visium import Visium
from .xenium import MANIFEST, Xenium

LAYOUTS: tuple[type[Layout], ...] = (Xenium, Merscope, CosMx, Visium)
"""The layouts that are known."""
USES: dict[str, Use] = {
    "cells": "cells", "spots": "cells", "bins": "cells", "transcripts": "transcripts", "image": "image",
}  # fmt: skip
"""What ``use`` may say, and what it means."""
_SAME = 1e-3
"""Relative difference of the pixel sizes in a picture and in its folder above which they contradict each other."""


class VendorAdapter(regframe.Adapter):
    """Output folders of Xenium, MERSCOPE, CosMx, Visium and Visium HD: cells, transcripts or picture, positions in µm.

    Of a folder one thing is registered, its cells where nothing is chosen (spots of Visium, bins of Visium HD). All lie in one
    frame, so a map that was found with the picture carries the cells too. What is carried is the maker's table, its columns as
    they are, with two more: ``aligned_x_um`` and ``aligned_y_um``. A table with these columns is opened by them.

    Args:
        use: ``cells`` (``spots``, ``bins``), ``transcripts`` or ``image``; None: the first of these that is there, ``image``
            before ``transcripts``.
        vendor: ``xenium``, ``merscope``, ``cosmx`` or ``visium``; None: the one whose files are there.
        region: which region (MERSCOPE) or sample (CosMx), by name, where a folder holds several.
        image: which picture, by the name that ``regframe info`` lists: ``focus``, ``mip``, ``stack`` (Xenium), a stain
            (MERSCOPE), ``hires``, ``lowres`` (Visium); None: the first.
        bin: side of the bins of Visium HD, µm; None: 8.
        z: plane of a stack; None: the middle one.
        channels: channels of the picture, by name or number.
        level: resolution of the picture, 0 the finest; None: as the adapter ``image`` chooses.
        spacing: micrometres per pixel, where the folder does not state them (CosMx, Visium).
        unit: of ``spacing``, µm where None.
        override: read a version that is not known.
        counts: True: spots and bins of Visium weigh the sum of their transcripts instead of 1, so that their density shows the
            tissue's own structure (needs h5py).
    """

    name = "vendor"

    def __init__(
        self,
        use: str | None = None,
        vendor: str | None = None,
        region: str | None = None,
        image: str | None = None,
        bin: int | str | None = None,
        z: int | None = None,
        channels: int | str | Sequence[int | str] | None = None,
        level: int | None = None,
        spacing: float | None = None,
        unit: str | None = None,
        override: bool = False,
        counts: bool = False,
    ) -> None:
        if use is not None and use not in USES:
            raise ValueError(f"wanted use to be one of {', '.join(USES)}, got {use!r}")
        known = [layout.name for layout in LAYOUTS]
        if vendor is not None and vendor not in known:
            raise ValueError(f"wanted the vendor to be one of {', '.join(known)}, got {vendor!r}")
        for what, value in (("z", z), ("level", level)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise ValueError(f"wanted {what} as a whole number from 0, got {value!r}")
        for what, flag in (("override", override), ("counts", counts)):
            if not isinstance(flag, bool):
                raise ValueError(f"wanted {what} to be true or false, got {flag!r}")
        self.use = None if use is None else USES[use]
        self.vendor, self.channels, self.level, self.counts = vendor, channels, level, counts
        self.choice = Choice(
            None if region is None else str(region),
            None if image is None else str(image),
            _bin(bin),
            z,
            _microns(spacing, unit),
            override,
        )

    def matches(self, source: Any) -> float:
        """0.4 to 0.95 for a folder with the files of a layout, 0.95 for a table with aligned columns; 0 for anything else."""
        if not isinstance(source, (str, os.PathLike)):
            return 0.0
        path = Path(source)
        try:
            if path.is_dir() or path.name == MANIFEST:
                folder = Folder(path if path.is_dir() else path.parent)
                return max(layout().recognises(folder) for layout in self._layouts())
            return 0.95 if path.is_file() and aligned(header_of(path)) is not None else 0.0
        except (OSError, ValueError):
            return 0.0

    def open(self, source: Any) -> regframe.Image | regframe.PointSet:
        """The cells or transcripts as a `PointSet` in µm, or the picture as an `Image`; ValueError, in one sentence, for a folder
        that is of no known layout, lacks what was chosen, is of a version that is not known, or is damaged."""
        again = self._again(source)
        if again is not None:
            return again
        folder, found = self._found(source)
        use = self._use(folder, found)
        if use != "image":
            table = found.tables[use]
            return weighed(points(folder, table), table.matrix, folder) if self.counts else points(folder, table)
        reader, picture = self._picture(folder, found)
        image = reader.open(picture.path)
        assert isinstance(image, regframe.Image)
        return image.replace(grid=_shifted(image.grid, picture.origin))

    def pyramid(self, source: Any) -> regframe.Pyramid | None:
        """Every resolution of the picture, lazy, where it is what is read; else None."""
        if self._again(source) is not None:
            return None
        folder, found = self._found(source)
        if self._use(folder, found) != "image":
            return None
        reader, picture = self._picture(folder, found)
        pyramid = reader.pyramid(picture.path)
        if pyramid is None:
            return None
        levels = [dataclasses.replace(v, grid=_shifted(v.grid, picture.origin)) for v in pyramid.levels]
        return dataclasses.replace(pyramid, levels=tuple(levels), notes=(*self.notes(source), *pyramid.notes))

    def apply(
        self, source: Any, transform: regframe.Transform, grid: regframe.Grid | None = None
    ) -> regframe.Image | regframe.PointSet:
        """The maker's table in its order, its aligned columns carried by ``transform``; or the picture, resampled."""
        data = self.open(source)
        if isinstance(data, regframe.PointSet):
            return regframe.move_points(data, transform)
        return regframe.resample(data, transform, data.grid if grid is None else grid, "auto")

    def save(self, data: regframe.Image | regframe.PointSet, path: Path) -> None:
        """Write a table (``.csv``, ``.csv.gz``, ``.tsv``, ``.parquet``) or an image, as the adapters of these do."""
        regframe.adapter("image" if isinstance(data, regframe.Image) else "cells").save(data, Path(path))

    def notes(self, source: Any) -> tuple[str, ...]:
        """What was found in the folder, what of it is read, and how to choose something else."""
        path = _path(source)
        if path.is_file() and path.name != MANIFEST:
            return ()
        folder, found = self._found(source)
        use = self._use(folder, found)
        if use == "image":
            picture = self._choose(folder, found)
            chosen, others = (
                f"{_short(picture.path, folder)} (use=image)",
                [n for n in found.images if n != picture.name],
            )
        else:
            chosen, others = f"{_short(found.tables[use].path, folder)} (use={use})", list(found.images)
        rest = [f"{_short(t.path, folder)} (use={u})" for u, t in found.tables.items() if u != use]
        if others:
            rest.append(f"{'other pictures' if use == 'image' else 'pictures'} (use=image) {', '.join(others[:12])}")
        version = f", {found.version}" if found.version else ""
        first = f"{folder.name} is a folder of {found.vendor}{version}: {chosen} is read, in µm"
        return (first, *((f"also there: {'; '.join(rest)}",) if rest else ()), *found.notes)

    @classmethod
    def sample(cls, folder: Path) -> Path:
        """A small Visium folder, for ``regframe plugins --check``; named as a table, as then is what is saved under its name."""
        path = Path(folder) / "sample.csv"
        (path / "spatial").mkdir(parents=True)
        array = [(row, column) for row in range(6) for column in range(7)]
        rows = [
            f"S{i:02}-1,{int(column > 1)},{row},{2 * column + row % 2},{173 * row},{200 * column + 100 * (row % 2)}\n"
            for i, (row, column) in enumerate(array)
        ]
        (path / "spatial" / "tissue_positions_list.csv").write_text("".join(rows), encoding="utf-8")
        scales = '{"tissue_hires_scalef": 0.1, "spot_diameter_fullres": 130.0}'
        (path / "spatial" / "scalefactors_json.json").write_text(scales, encoding="utf-8")
        return path

    # ---- finding ------------------------------------------------------------------------------------------------------

    def _layouts(self) -> list[type[Layout]]:
        return [layout for layout in LAYOUTS if self.vendor in (None, layout.name)]

    def _found(self, source: Any) -> tuple[Folder, Found]:
        """What the folder holds by the layout that is surest of it."""
        path = _path(source)
        if path.name == MANIFEST and path.is_file():
            path = path.parent
        if not path.exists():
            raise FileNotFoundError(
                f"wanted the output folder of an instrument, got {str(path)!r}, which does not exist"
            )
        if not path.is_dir():
            raise ValueError(
                f"wanted the output folder of an instrument, or a table with {ALIGNED[1]} and {ALIGNED[0]}, got the file "
                f"{str(path)!r}; name the folder that it lies in, or another adapter"
            )
        folder = Folder(path)
        sure = sorted(((layout().recognises(folder), layout) for layout in self._layouts()), key=lambda pair: -pair[0])
        best = [layout for score, layout in sure if score == sure[0][0]]
        if sure[0][0] <= 0:
            signs = "; ".join(f"{layout.name}: {layout.signs}" for layout in self._layouts())
            raise ValueError(
                f"wanted a folder with the files of an instrument ({signs}), got {str(path)!r} without; name another"
            )
        if len(best) > 1:
            raise ValueError(
                f"wanted the folder of one instrument, got {str(path)!r} with files of {' and '.join(b.name for b in best)}; "
                "choose with vendor=NAME"
            )
        return folder, best[0]().find(folder, self.choice)

    def _use(self, folder: Folder, found: Found) -> Use:
        """What is read; ValueError where the folder does not hold it."""
        there = [u for u in ("cells", "image", "transcripts") if (found.images if u == "image" else u in found.tables)]
        use = self.use or cast(Use, next(iter(there), "cells"))
        if use not in there:
            has = f"; it has {', '.join(there)}" if there else ""
            raise ValueError(
                f"wanted {use} of the {found.vendor} folder {str(folder.root)!r}, got {found.missing[use]}{has}"
            )
        return use

    # ---- the picture --------------------------------------------------------------------------------------------------

    def _choose(self, folder: Folder, found: Found) -> _Named:
        names = list(found.images)
        wanted = names[0] if self.choice.image is None else self.choice.image
        if wanted not in found.images:
            raise ValueError(
                f"wanted a picture of {str(folder.root)!r} ({', '.join(names[:12])}), got image={wanted!r}; name one of these"
            )
        return _Named(**vars(found.images[wanted]), name=wanted)

    def _picture(self, folder: Folder, found: Found) -> tuple[regframe.Adapter, _Named]:
        """The reader of the chosen picture with its options; ValueError where it contradicts its folder."""
        picture = self._choose(folder, found)
        options: dict[str, Any] = {"channels": self.channels, "level": self.level}
        if picture.spacing is not None:
            options |= {"spacing": picture.spacing, "unit": "µm"}
        if picture.stack:
            options["z"] = self.choice.z
        pyramid = regframe.adapter("image", **options).pyramid(picture.path)
        assert pyramid is not None
        grid = pyramid.grid
        if picture.stack and grid.ndim == 3:
            options["z"] = grid.shape[0] // 2
        if picture.expected is not None and self.level in (None, 0):
            ratio = regframe.unit_ratio(grid.unit, "µm")
            if ratio is None:
                options |= {"spacing": picture.expected, "unit": "µm"}
            elif abs(grid.spacing[-1] * ratio / picture.expected - 1) > _SAME:
                raise ValueError(
                    f"wanted the {picture.expected:g} µm per pixel of {MANIFEST} in {str(picture.path)!r}, got "
                    f"{grid.spacing[-1] * ratio:g} µm; copy both anew, or open the picture by itself"
                )
            else:
                options["unit"] = "µm"
        return regframe.adapter("image", **options), picture

    # ---- tables that were carried before --------------------------------------------------------------------------------

    def _again(self, source: Any) -> regframe.PointSet | None:
        """A table with aligned columns, None where the source is something else."""
        path = _path(source)
        if not path.is_file() or path.name == MANIFEST:
            return None
        columns = aligned(header_of(path))
        if columns is None:
            return None
        check_size(path)
        return counted(read(path, f"x={columns['x']},y={columns['y']}", columns["unit"]), COUNTS, path)


@dataclasses.dataclass(frozen=True)
class _Named(Picture):
    """A picture with the name by which it is chosen."""

    name: str = ""


def _path(source: Any) -> Path:
    """The path of a source; ValueError for anything else."""
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(
            f"wanted the path of an instrument's output folder, got {type(source).__name__}; regframe.open reads other objects"
        )
    return Path(source)


def _shifted(grid: regframe.Grid, origin: tuple[float, float]) -> regframe.Grid:
    """The grid moved by ``origin`` µm (y, x)."""
    moved = (*grid.origin[:-2], *(o + d for o, d in zip(grid.origin[-2:], origin, strict=True)))
    return dataclasses.replace(grid, origin=moved)


def _short(path: Path, folder: Folder) -> str:
    return path.relative_to(folder.root).as_posix()


def _bin(value: int | str | None) -> int | None:
    """The side of a bin from ``8``, ``"008um"`` or ``"square_008um"``."""
    if value is None:
        return None
    match = re.match(r"^(?:square_)?(\d{1,3})(?:um|µm)?$", str(value))
    if isinstance(value, bool) or match is None or int(match[1]) < 1:
        raise ValueError(f"wanted bin as the side of the bins in µm, such as 8, got {value!r}")
    return int(match[1])


def _microns(spacing: float | None, unit: str | None) -> float | None:
    """A stated pixel size in µm."""
    if spacing is None:
        if unit is not None:
            raise ValueError(f"wanted unit beside spacing, got unit={unit!r} alone; positions come in µm in any case")
        return None
    ratio = regframe.unit_ratio(regframe.canonical_unit(unit or "µm"), "µm")
    if isinstance(spacing, bool) or not isinstance(spacing, (int, float)) or ratio is None:
        raise ValueError(f"wanted spacing as one length per pixel, got {spacing!r} {unit or 'µm'}")
    value = float(spacing) * ratio
    if not PIXEL[0] <= value <= PIXEL[1]:
        raise ValueError(f"wanted spacing from {PIXEL[0]:g} to {PIXEL[1]:g} µm per pixel, got {value:g}")
    return value
