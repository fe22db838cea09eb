"""`AdapterTests`: checks on recognising, reading, refusing, carrying and writing."""

from __future__ import annotations

import builtins
import contextlib
import io
import math
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from .. import plugins
from ..contracts import Adapter
from ..data import Image, PointSet, Pyramid
from ..maps.affine import Affine
from ..slides.reader import PyramidAdapter
from ._base import PluginTests, SkipTest, refusal, want

_JUNK = bytes(range(256)) * 8
"""Content that is of no format: every byte value, zeros among them."""

_PADDING = 64 << 20
"""Bytes by which a copy of the sample is lengthened (as a hole, without disk space) to measure how much ``matches`` reads."""

Data = Image | PointSet


class AdapterTests(PluginTests):
    """Subclass it, write ``make`` and ``sample`` (or give the adapter a class method ``sample``), and pytest runs every check.

    Override a check to replace it; set it to None to leave it out.

    Attributes:
        bad_options: options, a mapping each, that ``__init__`` has to refuse with a ValueError. In addition, a word is passed to
            every option whose default is a number or true/false.
        keeps_grid: False where the format stores neither spacing nor origin (JPEG, say).
        tolerance: largest difference of values after writing and reading, relative to the largest value; 0 is exact.
        header: number of bytes that ``matches`` may read.
        sniffed: False for an adapter that is used by name only; its ``matches`` may then return 0 for its own sample.
    """

    keeps_grid: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1e-6
    header: ClassVar[int] = 1 << 20
    sniffed: ClassVar[bool] = True

    def make(self) -> Adapter:
        """A new adapter to test, with options of your choice."""
        adapter: Adapter = super().make()
        return adapter

    def sample(self, folder: Path) -> Any:
        """Write a small source into ``folder`` (nothing else) and return its path; by default the adapter's own ``sample``."""
        source = type(self.make()).sample(folder)
        want(
            source is not None,
            "a small source to test with",
            "none",
            "write a method sample(self, folder), or the class method sample(cls, folder) of the adapter",
        )
        return source

    # ---- recognising ------------------------------------------------------------------------------------------------

    def _used(self, folder: Path) -> None:
        source = self.sample(folder)
        adapter = self.make()
        self._score(source, adapter)
        adapter.open(source)

    def test_matches_its_own(self, tmp_path: Path) -> None:
        """The confidence for the sample is above 0 and at most 1, as a string and as a path."""
        source = self.sample(tmp_path)
        score = self._score(source)
        if self.sniffed:
            want(score > 0, "matches above 0 for its own sample", score)
        if isinstance(source, os.PathLike):
            want(self._score(str(source)) == score, f"{score} for the same path as a string", self._score(str(source)))

    def test_matches_nothing_else(self, tmp_path: Path) -> None:
        """The confidence is 0 for what it does not read: foreign files, folders, missing paths, addresses, objects."""
        (tmp_path / "foreign.other").write_bytes(_JUNK)
        (tmp_path / "text.other").write_text("nothing to see here\n", encoding="utf-8")
        (tmp_path / "empty.other").touch()
        (tmp_path / "folder.other").mkdir()
        names = ("foreign.other", "text.other", "empty.other", "folder.other", "gone.other")
        sources = [*(tmp_path / name for name in names), "memory://nowhere", "", None, 3, object(), ["a"], {"a": 1}]
        for source in sources:
            score = self._score(source)
            shown = source.name if isinstance(source, Path) else repr(source)
            want(score == 0, f"matches to answer 0 for {shown}", score, "0 is no; tell what you read by its content")

    def test_matches_looks_at_the_content(self, tmp_path: Path) -> None:
        """The confidence is lower for foreign bytes under the sample's name than for the sample."""
        source = self._file(tmp_path)
        score = self._score(source)
        if not self.sniffed and score == 0:
            raise SkipTest("it is asked for by name")
        source.write_bytes(_JUNK)
        want(
            self._score(source) < score,
            f"less than {score} from matches for foreign bytes under the sample's name",
            self._score(source),
            "look at the first bytes; 0.1 for the suffix alone",
        )

    def test_matches_reads_a_header(self, tmp_path: Path) -> None:
        """At most ``header`` bytes of a long file are read."""
        source = self._file(tmp_path)
        adapter = self.make()
        adapter.matches(source)  # a first call, so that imports are not counted
        with source.open("rb+") as file:
            file.truncate(source.stat().st_size + _PADDING)
        with _counted() as read:
            self._score(source, adapter)
        want(
            sum(read) <= self.header,
            f"matches to read at most {self.header} bytes of a file of {source.stat().st_size}",
            f"{sum(read)} bytes",
            "read the first few thousand, every file of every user passes through here",
        )

    def test_open_finds_it(self, tmp_path: Path) -> None:
        """`regframe.open` without a name uses this adapter for the sample; skipped where the adapter is not installed."""
        source, cls = self.sample(tmp_path), type(self.make())
        if cls not in {entry.cls for entry in plugins.adapters()}:
            raise SkipTest("it is not installed")
        if not self.sniffed:
            raise SkipTest("it is asked for by name")
        chosen = type(plugins.find_adapter(source))
        want(
            chosen is cls, f"regframe.open to take {cls.name} for its sample", chosen.name, "answer more than that one"
        )

    def _score(self, source: Any, adapter: Adapter | None = None) -> float:
        shown = source.name if isinstance(source, Path) else repr(source)
        try:
            score = (adapter or self.make()).matches(source)
        except Exception as error:
            raise AssertionError(
                f"wanted matches({shown}) to answer, got {type(error).__name__}: {' '.join(str(error).split())}; "
                "return 0 for what cannot be looked at"
            ) from error
        want(
            isinstance(score, (int, float)) and 0 <= score <= 1,
            f"matches({shown}) from 0 to 1",
            repr(score),
        )
        return float(score)

    def _file(self, folder: Path) -> Path:
        """The sample as a single file that can be damaged; skips the check where the sample is not a single file."""
        source = self.sample(folder)
        if not isinstance(source, (str, os.PathLike)) or not Path(source).is_file():
            raise SkipTest("the sample is not a file")
        return Path(source)

    # ---- reading ----------------------------------------------------------------------------------------------------

    def test_open(self, tmp_path: Path) -> None:
        """The sample opens as an `Image` or a `PointSet`, finite and not empty, equal each time; the source is not changed."""
        source = self.sample(tmp_path)
        before = _contents(tmp_path)
        data = self.make().open(source)
        want(isinstance(data, (Image, PointSet)), "an Image or a PointSet from open", type(data).__name__)
        values = data.data if isinstance(data, Image) else data.coords
        want(values.numel() > 0, "a sample with something in it", f"shape {list(values.shape)}")
        want(
            bool(values.isfinite().all()),
            "finite values (positions)",
            f"{int((~values.isfinite()).sum())} that are NaN or inf",
            "refuse them, or give them a value and weight 0",
        )
        if isinstance(data, Image) and data.weight is not None:
            low, high = float(data.weight.min()), float(data.weight.max())
            want(0 <= low <= high <= 1, "a weight from 0 to 1", f"{low:g} to {high:g}")
        if isinstance(data, Image) and data.labels:
            want(not data.data.dtype.is_floating_point, "whole numbers for labels", data.data.dtype)
        self._same(self.make().open(source), data, "the same data from a second open", 0.0)
        if isinstance(source, os.PathLike):
            self._same(self.make().open(str(source)), data, "the same data for the path as a string", 0.0)
        want(_contents(tmp_path) == before, "the sample's folder as it was after open", "other files or contents")

    def test_pyramid(self, tmp_path: Path) -> None:
        """Levels finest first, of one dtype and as many channels as are named; a region is the same as that part of the whole."""
        pyramid = self.make().pyramid(self.sample(tmp_path))
        if pyramid is None:
            raise SkipTest("it reads no levels")
        want(isinstance(pyramid, Pyramid) and bool(pyramid.levels), "a Pyramid with levels", type(pyramid).__name__)
        sizes = [math.prod(level.grid.shape) for level in pyramid.levels]
        pixels = [level.grid.pixel for level in pyramid.levels]
        want(
            sizes == sorted(sizes, reverse=True) and pixels == sorted(pixels),
            "levels finest first",
            f"pixels of {', '.join(f'{p:.4g}' for p in pixels)} {pyramid.grid.unit}",
            "sort them",
        )
        for number, level in enumerate(pyramid.levels):
            shape = (len(pyramid.channels), *level.grid.shape)
            whole = level.read(tuple(slice(0, n) for n in level.grid.shape))
            want(tuple(whole.shape) == shape, f"level {number} as [C, *S] {list(shape)}", list(whole.shape))
            want(
                whole.dtype == pyramid.dtype,
                f"level {number} in the dtype that the pyramid states, {pyramid.dtype}",
                whole.dtype,
                "state the one that read returns",
            )
            want(len(level.chunk) == len(shape), f"a chunk (c, *S) of {len(shape)} numbers", level.chunk)
            for part in _regions(level.grid.shape):
                shown = ", ".join(f"{s.start}:{s.stop}" for s in part)
                want(
                    np.array_equal(level.read(part), whole[(slice(None), *part)], equal_nan=whole.dtype.kind == "f"),
                    f"from level {number} in [{shown}] what the whole level holds there",
                    "other pixels",
                )

    def test_open_what_is_not_there(self, tmp_path: Path) -> None:
        """A path that does not exist is a FileNotFoundError or ValueError of one sentence."""
        source = self._file(tmp_path)
        missing = source.with_name(f"gone{''.join(source.suffixes)}")
        want(
            refusal(lambda: self.make().open(missing), "a path that does not exist", (ValueError, OSError)) is not None,
            "a FileNotFoundError for a path that does not exist",
            "data",
        )

    def test_open_what_is_something_else(self, tmp_path: Path) -> None:
        """Foreign bytes under the sample's name are a ValueError of one sentence."""
        source = self._file(tmp_path)
        source.write_bytes(_JUNK)
        want(
            refusal(lambda: self.make().open(source), "foreign bytes", (ValueError, OSError)) is not None,
            "a ValueError for foreign bytes under the sample's name",
            "data",
            "check that the content is what the name says",
        )

    def test_open_what_is_damaged(self, tmp_path: Path) -> None:
        """A truncated or corrupted sample is read, or refused with a ValueError of one sentence.

        This is tried for every file of the sample.
        """
        source = self.sample(tmp_path)
        whole = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
        files = [path for path, content in whole.items() if content]
        if not files:
            raise SkipTest("the sample wrote no file")
        numbers = random.Random(0)  # a fixed seed, so that every run damages the same bytes

        def attempt(path: Path, content: bytes, what: str) -> None:
            path.write_bytes(content)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                refusal(lambda: self.make().open(source), f"{path.name} {what}", (ValueError, OSError))
            path.write_bytes(whole[path])

        for i in range(12):
            path = files[i % len(files)]
            size = len(whole[path]) * i // 12
            attempt(path, whole[path][:size], f"cut short after {size} of {len(whole[path])} bytes")
        for i in range(24):
            path = files[i % len(files)]
            changed = bytearray(whole[path])
            at = numbers.randrange(len(changed))
            changed[at] = numbers.choice([0, 255, changed[at] ^ 1, ord("9"), ord("-"), ord("<")])
            attempt(path, bytes(changed), f"with {changed[at]} for {whole[path][at]} in byte {at}")

    # ---- carrying ---------------------------------------------------------------------------------------------------

    def test_apply_nothing(self, tmp_path: Path) -> None:
        """Under the identity map the data come back unchanged: every channel, row and column, in order."""
        source = self.sample(tmp_path)
        adapter = self.make()
        data = adapter.open(source)
        native = self._carried(
            adapter, source, data, (0.0,) * data.ndim if isinstance(data, PointSet) else (0.0,) * data.grid.ndim
        )
        if isinstance(native, type(data)) or isinstance(data, type(native)):
            self._same(native, data, "from apply by the identity what open returned", 1e-5)
        elif isinstance(native, PointSet):  # a table that is opened as an image (rasterised) but carried as points
            self._same(
                self._carried(adapter, source, data, (0.0,) * native.ndim),
                native,
                "the same points from a second apply",
                0.0,
            )

    def test_apply_a_shift(self, tmp_path: Path) -> None:
        """A shift of two pixels along y and one along x moves the data by that, and changes nothing else."""
        source = self.sample(tmp_path)
        adapter = self.make()
        data = adapter.open(source)
        if isinstance(data, Image):
            ndim, spacing = data.grid.ndim, data.grid.spacing
        else:
            ndim, spacing = data.ndim, (1.0,) * data.ndim
        steps = (0, 2, 1)[3 - ndim :]
        shift = tuple(n * s for n, s in zip(steps, spacing, strict=True))
        still = self._carried(adapter, source, data, (0.0,) * ndim)
        moved = self._carried(adapter, source, data, shift)
        if isinstance(still, PointSet) and isinstance(moved, PointSet):
            expected = still.replace(coords=still.coords + torch.tensor(shift, dtype=torch.float64))
            self._same(moved, expected, "points moved by the shift in (z,) y, x, and all else as it was", 1e-9)
            return
        assert isinstance(still, Image)
        want(isinstance(moved, Image), "an image again", type(moved).__name__)
        assert isinstance(moved, Image)
        here = tuple(slice(n, None) for n in steps)
        there = tuple(slice(0, size - n) for n, size in zip(steps, still.grid.shape, strict=True))
        if min(s.stop for s in there) < 1:
            raise SkipTest("the sample is too small to be moved by two pixels")
        self._close(
            moved.data[:, *here],
            still.data[:, *there],
            1e-5,
            "pixels moved by 2 along y and 1 along x",
            'transform maps the data\'s space to the destination: resample(image, transform, grid, "auto") does it',
        )

    def test_apply_keeps_ids(self, tmp_path: Path) -> None:
        """Labels moved by a fraction of a pixel contain no new id, except 0 at the border."""
        source = self.sample(tmp_path)
        adapter = self.make()
        data = adapter.open(source)
        if not isinstance(data, Image) or not data.labels:
            raise SkipTest("it reads no labels")
        moved = self._carried(adapter, source, data, [0.4 * s for s in data.grid.spacing])
        assert isinstance(moved, Image)
        new = set(moved.data.flatten().tolist()) - set(data.data.flatten().tolist()) - {0}
        want(
            not new,
            "the ids that were there after a shift by part of a pixel",
            f"also {sorted(new)[:5]}",
            "never average labels",
        )

    def _carried(self, adapter: Adapter, source: Any, data: Data, shift: Sequence[float]) -> Data:
        unit = data.grid.unit if isinstance(data, Image) else data.unit
        matrix = torch.eye(len(shift) + 1, dtype=torch.float64)
        matrix[:-1, -1] = torch.tensor(tuple(shift), dtype=torch.float64)
        moved = adapter.apply(source, Affine(matrix, unit, unit), data.grid if isinstance(data, Image) else None)
        want(isinstance(moved, (Image, PointSet)), "an Image or a PointSet from apply", type(moved).__name__)
        return moved

    # ---- writing ----------------------------------------------------------------------------------------------------

    def test_save_then_open(self, tmp_path: Path) -> None:
        """Data that were read, written and read again are equal; no other file is left in the folder."""
        self._round_trip(tmp_path, 0.0)

    def test_save_what_was_moved(self, tmp_path: Path) -> None:
        """Data that were carried, written and read again are where they were carried to."""
        self._round_trip(tmp_path, 2.0)

    def _round_trip(self, folder: Path, pixels: float) -> None:
        (folder / "in").mkdir()
        (folder / "out").mkdir()
        source = self.sample(folder / "in")
        adapter = self.make()
        ends = tuple(adapter.writes_tiles) if isinstance(adapter, PyramidAdapter) else ()
        if type(adapter).save is PyramidAdapter.save and not ends:
            raise SkipTest("it only reads")
        data = adapter.open(source)
        grid = data.grid if isinstance(data, Image) else None
        step = grid.spacing[-1] * pixels if grid is not None else pixels
        ndim = grid.ndim if grid is not None else data.ndim  # type: ignore[union-attr]
        native = self._carried(adapter, source, data, (*(0.0,) * (ndim - 1), step))
        target = folder / "out" / (Path(source).name if isinstance(source, (str, os.PathLike)) else "sample")
        if ends and not target.name.lower().endswith(ends):
            target = target.with_name(f"sample{ends[0]}")
        adapter.save(native, target)
        left = sorted(path.name for path in (folder / "out").iterdir())
        want(target.exists(), f"save to write {target.name}", left or "nothing")
        stem = target.name.partition(".")[0]
        want(
            all(name.startswith(stem) for name in left),
            f"nothing beside {target.name} that does not bear its name",
            ", ".join(left),
            "remove what was written aside",
        )
        again = self.make().open(target)
        if isinstance(native, Image) != isinstance(data, Image):  # a table that is opened as an image (rasterised)
            want(type(again) is type(data), f"{type(data).__name__} again", type(again).__name__)
            native = self._carried(adapter, source, data, (*(0.0,) * (ndim - 1), step))
            carried = (
                self.make().apply(target, Affine.identity(ndim, native.unit)) if isinstance(native, PointSet) else again
            )
            self._same(carried, native, "what save wrote", self.tolerance)
            return
        if self.sniffed:
            want(self._score(target) > 0, f"matches above 0 for what save wrote ({target.name})", self._score(target))
        self._same(again, native, "from open what save wrote", self.tolerance)

    def test_save_refuses_the_other_kind(self, tmp_path: Path) -> None:
        """Points given to an adapter of images (or the reverse) are written, or refused in a sentence without leaving a file."""
        (tmp_path / "in").mkdir()
        (tmp_path / "out").mkdir()
        source = self.sample(tmp_path / "in")
        data = self.make().apply(source, Affine.identity(*self._space(source)), self._grid(source))
        target = tmp_path / "out" / (Path(source).name if isinstance(source, (str, os.PathLike)) else "sample")
        other: Data = PointSet(torch.zeros(2, 2)) if isinstance(data, Image) else Image.from_array(torch.zeros(4, 5))
        kinds = (ValueError, TypeError)
        error = refusal(lambda: self.make().save(other, target), f"{type(other).__name__} given to save", kinds)
        if error is not None:
            left = sorted(path.name for path in target.parent.iterdir())
            want(not left, "nothing written by a save that is refused", ", ".join(left), "check before, write aside")

    def _space(self, source: Any) -> tuple[int, str]:
        data = self.make().open(source)
        return (data.grid.ndim, data.grid.unit) if isinstance(data, Image) else (data.ndim, data.unit)

    def _grid(self, source: Any) -> Any:
        data = self.make().open(source)
        return data.grid if isinstance(data, Image) else None

    # ---- comparing --------------------------------------------------------------------------------------------------

    def _same(self, got: Data, expected: Data, wanted: str, tolerance: float) -> None:
        """Compare images (values, channels, grid, mask) or points (positions, unit, table)."""
        want(
            isinstance(got, Image) == isinstance(expected, Image),
            f"{wanted}, of kind {type(expected).__name__}",
            type(got).__name__,
        )
        if isinstance(got, Image) and isinstance(expected, Image):
            want(got.labels == expected.labels, f"{wanted}, labels={expected.labels}", got.labels)
            want(got.data.dtype == expected.data.dtype, f"{wanted}, of {expected.data.dtype}", got.data.dtype)
            want(got.channels == expected.channels, f"{wanted}, channels {expected.channels}", got.channels)
            exact = 0.0 if expected.labels else tolerance
            a, b = got.data, expected.data
            if expected.weight is not None and a.shape == b.shape:  # pixels of weight 0 need not be kept
                a, b = a[:, expected.weight > 0.5], b[:, expected.weight > 0.5]
            self._close(a, b, exact, f"{wanted}, values", "keep every value and its place")
            if self.keeps_grid:
                want(got.grid.unit == expected.grid.unit, f"{wanted}, in {expected.grid.unit}", got.grid.unit)
                for part in ("spacing", "origin"):
                    here, there = (torch.tensor(getattr(x.grid, part), dtype=torch.float64) for x in (got, expected))
                    close = torch.allclose(here, there, rtol=1e-6, atol=1e-6 * expected.grid.pixel)
                    want(close, f"{wanted}, {part} {tuple(there.tolist())}", tuple(here.tolist()))
            want(
                (got.weight is None) == (expected.weight is None),
                f"{wanted}, {'without' if expected.weight is None else 'with'} a weight",
                "the other",
                "carry the mask along",
            )
            if got.weight is not None and expected.weight is not None:
                self._close(
                    got.weight.float(), expected.weight.float(), 0.51, f"{wanted}, weight", "carry the mask along"
                )
        if isinstance(got, PointSet) and isinstance(expected, PointSet):
            want(got.unit == expected.unit, f"{wanted}, in {expected.unit}", got.unit)
            want(
                len(got) == len(expected), f"{wanted}, {len(expected)} points", len(got), "lose none, not even NaN rows"
            )
            self._close(got.coords, expected.coords, tolerance, f"{wanted}, positions", "keep their order")
            names = list(expected.table)
            want(list(got.table) == names, f"{wanted}, columns {names}", list(got.table), "carry the table along")
            for name in names:
                if name not in expected.columns:
                    same = list(got.table[name]) == list(expected.table[name])
                    want(same, f"{wanted}, column {name!r} as it was", "other cells or another order")
            if expected.weights is not None:
                want(got.weights is not None, f"{wanted}, with weights", "none", "carry them along")
                assert got.weights is not None
                self._close(got.weights, expected.weights, tolerance, f"{wanted}, weights", "carry them along")

    def _close(self, got: Tensor, expected: Tensor, tolerance: float, wanted: str, advice: str) -> None:
        want(got.shape == expected.shape, f"{wanted}, of shape {list(expected.shape)}", list(got.shape), advice)
        if not got.numel():
            return
        a, b = got.to(torch.float64), expected.to(torch.float64)
        off = float((a - b).abs().max())
        limit = tolerance * max(1e-300, float(b.abs().max()))
        want(off <= limit, f"{wanted} within {limit:.3g}", f"up to {off:.6g} off", advice)


def _contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class _CountedFile(io.FileIO):
    """A raw file that records how much is read from it."""

    read_sizes: list[int]

    def readinto(self, buffer: Any) -> int | None:
        n = super().readinto(buffer)
        self.read_sizes.append(n or 0)
        return n

    def readall(self) -> bytes:
        data = super().readall() or b""
        self.read_sizes.append(len(data))
        return data

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            return self.readall()
        data = super().read(size) or b""
        self.read_sizes.append(len(data))
        return data


@contextlib.contextmanager
def _counted() -> Iterator[list[int]]:
    """Sizes of all reads from files that Python code opens inside the block; reads by C libraries are not seen."""
    sizes: list[int] = []
    original = io.open

    def counting(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
        if set(mode) - set("rbt") or isinstance(file, int) or kwargs.get("opener"):
            return original(file, mode, buffering, *args, **kwargs)
        raw = _CountedFile(file, "r")
        raw.read_sizes = sizes
        if "b" in mode:
            return raw if buffering == 0 else io.BufferedReader(raw)
        return io.TextIOWrapper(io.BufferedReader(raw), *args, **kwargs)

    with mock.patch.object(builtins, "open", counting), mock.patch.object(io, "open", counting):
        yield sizes


def _regions(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """A corner, a middle part that begins and ends anywhere, and the last pixel of a grid."""
    yield tuple(slice(0, max(1, n // 3)) for n in shape)
    yield tuple(slice(n // 3, max(n // 3 + 1, n - n // 4)) for n in shape)
    yield tuple(slice(n - 1, n) for n in shape)
