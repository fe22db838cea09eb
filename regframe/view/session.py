"""One view: both sides, the maps that there are, the landmarks, and what is kept of them on the disk."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import secrets
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..config import Config
from ..correction.region import Region
from ..data import AXES, Grid, Image, PointSet, Pyramid, unit_ratio
from ..io import outputs
from ..maps import bends
from ..maps.affine import Affine
from ..maps.base import Transform
from ..result import Result
from . import pairfiles, pairs, regions, steps
from .bend import corrected, started
from .display import Look, png
from .layers import Fields, Slice
from .planes import Planes, WarpedPlanes
from .source import Side, Source, finest
from .tiles import KEPT_FILES, KEPT_PIXELS, Canvas, Kept, Warped
from .worker import Ask, Touch, Worker

_OLD = 6
"""Maps that are kept beside those that are shown, so that tiles that are on their way still find theirs."""


@dataclass(frozen=True)
class Shown:
    """A map that can be looked at.

    Args:
        key: its name in addresses; another map never has it.
        title: what it is called.
        result: the map with its figures.
        by_hand: whether it was placed by hand: an affine map that a fit may begin from.
        steps: how it came about.
        warped: the moving picture under it; None of a side without pixels.
        fields: its layers.
        words: options of the command ``verb`` that give this map; None where that command alone does not.
        verb: ``register`` or ``correct``.
    """

    key: str
    title: str
    result: Result
    by_hand: bool
    steps: tuple[steps.Step, ...]
    warped: Warped | WarpedPlanes | None
    fields: Fields
    words: tuple[str, ...] | None = None
    verb: str = "register"


@dataclass(frozen=True)
class _Asked:
    """What the other process was asked last.

    Args:
        number: of the question.
        base: key of the map that was to be corrected.
        done: steps of its answer.
        title: what its answer is called.
        words: options of ``regframe correct`` that give it, or None.
    """

    number: int
    base: str
    done: tuple[steps.Step, ...]
    title: str
    words: tuple[str, ...] | None


@dataclass(frozen=True)
class Setting:
    """What a view is opened with.

    Args:
        fixed: the fixed side.
        moving: the moving side.
        output: the folder that Save writes; landmarks are kept beside it.
        result: the map that there is, or None.
        folder: the folder that it came from.
        run: what is recorded of the inputs, as `regframe.report.results.write_run` takes it.
        overwrite: replace ``output`` if it was there before.
        config: settings of a fit.
        words: the command line's words that open both sides and state the settings, for the command that is shown.
    """

    fixed: Source
    moving: Source
    output: Path
    result: Result | None = None
    folder: Path | None = None
    run: dict[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    config: Config = field(default_factory=Config)
    words: tuple[str, ...] = ()


class Session:
    """All that a view holds; its methods may be called from several threads.

    Raises what opening the files raises, and ValueError where the two sides cannot be shown on one canvas.
    """

    def __init__(self, setting: Setting, tell: Callable[[str, Any], None] = lambda word, value: None) -> None:
        self.setting, self.tell = setting, tell
        base = setting.result
        self.fixed = Side.of(setting.fixed, None if base is None else base.fixed_grid)
        self.moving = Side.of(setting.moving, None if base is None else base.moving_grid)
        self.planes = _planes(self.fixed, self.moving)
        self.canvas = Canvas(finest(self.fixed)) if self.planes is None else self.planes.canvases["z"]
        self.looks = {
            name: None if side.pyramid is None else Look.of(side.pyramid)
            for name, side in (("fixed", self.fixed), ("moving", self.moving))
        }
        self._fixed_picture: Warped | WarpedPlanes | None = None
        if self.fixed.pyramid is not None:
            same = Affine.identity(self.fixed.grid.ndim, self.fixed.grid.unit)
            self._fixed_picture = self._picture(self.fixed.pyramid, same)
        self._pixels = Kept(KEPT_PIXELS, lambda pair: int(pair[0].nbytes + pair[1].nbytes))
        self._files = Kept(KEPT_FILES, len)
        self._born, self._count = secrets.token_hex(3), itertools.count()
        self._lock = threading.RLock()
        self._maps: dict[str, Shown] = {}
        self.start = started(_side_by_side(self.moving.grid, self.fixed.grid), self.fixed.grid, self.moving.grid)
        if base is not None:
            done = () if setting.folder is None else (steps.opened(setting.folder),)
            self.current = self._added("The map of this run", base, False, done)
        else:
            self.current = self._placed("As the two lie", self.start)
        self.fresh: Shown | None = None
        self.pairs = pairs.Pairs()
        self.said = self._recovered()
        self.saved: str | None = None
        self._data: tuple[Image | PointSet, Image | PointSet] | None = None
        self._asked_for: _Asked | None = None
        self._pending: tuple[Ask, tuple[str, ...]] | None = None
        self.worker = Worker(setting.fixed, setting.moving, self._heard)

    # ---- maps -------------------------------------------------------------------------------------------------------

    def map_of(self, key: str) -> Shown:
        """The map with a key; ValueError where it is gone."""
        found = self._maps.get(key)
        if found is None:
            raise ValueError("wanted a map that is shown, got one that is gone; load the page again")
        return found

    def _added(
        self,
        title: str,
        result: Result,
        by_hand: bool,
        done: Iterable[steps.Step],
        words: tuple[str, ...] | None = None,
        verb: str = "register",
    ) -> Shown:
        pyramid = self.moving.pyramid
        warped = None if pyramid is None else self._picture(pyramid, result.transform)
        fields = Fields(result.transform, None if by_hand else result, self.fixed.grid, self.moving.grid)
        shown = Shown(
            f"{self._born}{next(self._count)}", title, result, by_hand, tuple(done), warped, fields, words, verb
        )
        with self._lock:
            self._maps[shown.key] = shown
            living = {getattr(self, "current", shown).key, shown.key}
            if getattr(self, "fresh", None) is not None:
                living.add(self.fresh.key)  # type: ignore[union-attr]
            for key in [key for key in self._maps if key not in living][:-_OLD]:
                del self._maps[key]
        return shown

    def _picture(self, pyramid: Pyramid, transform: Transform) -> Warped | WarpedPlanes:
        """A side under a map, as it is shown."""
        if self.planes is None:
            return Warped(pyramid, transform, self.canvas)
        return WarpedPlanes(pyramid, transform, self.planes)

    def check_flat(self, what: str) -> None:
        """ValueError for a pair of volumes, which cannot have ``what``."""
        if self.planes is not None:
            raise ValueError(
                f"wanted two flat sides for {what}, got volumes; open one plane of each (z=K), or align by search"
            )

    def _placed(self, title: str, start: Result) -> Shown:
        (part,) = start.affine.parts()
        return self._added(title, start, True, (steps.placed(part.matrix),))  # type: ignore[attr-defined]

    def place(self, turn: float, mirror: bool, scale: float, shift: tuple[float, float], to: str = "") -> Shown:
        """Move the moving side by hand, from where it is shown.

        Args:
            turn: degrees, counted as a clock's hand goes.
            mirror: turn it over, left to right.
            scale: factor of its size.
            shift: (y, x) in the fixed unit.
            to: ``reset``: begin again as the two lie; ``other``: the second-best pose of the search; empty otherwise.

        Raises ValueError for numbers that give no map.
        """
        self.check_flat("placing by hand")
        base = self.fresh or self.current
        if to == "reset":
            matrix = bends.product(self.start.affine.parts(), 2)
        elif to == "other":
            runner_up = self.current.result.metrics.get("runner_up")
            if not runner_up:
                raise ValueError("wanted another placement that the search found, got none")
            matrix = torch.tensor(runner_up["matrix"], dtype=torch.float64)
        else:
            matrix = bends.product(base.result.affine.parts(), 2)
        if not (0.01 <= scale <= 100) or not all(math.isfinite(v) for v in (turn, *shift)):
            raise ValueError(f"wanted a turn, a size between 0.01 and 100 and a shift, got {turn}, {scale} and {shift}")
        middle = matrix[:-1, :-1] @ torch.tensor(self.moving.grid.center, dtype=torch.float64) + matrix[:-1, -1]
        c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        flip = -1.0 if mirror else 1.0
        linear = (
            scale
            * torch.tensor([[c, s], [-s, c]], dtype=torch.float64)
            @ torch.diag(torch.tensor([1.0, flip], dtype=torch.float64))
        )
        own = torch.eye(3, dtype=torch.float64)
        own[:-1, :-1] = linear
        own[:-1, -1] = middle - linear @ middle + torch.tensor(shift, dtype=torch.float64)
        shown = self._placed("Placed by hand", started(own @ matrix, self.fixed.grid, self.moving.grid))
        self._propose(shown)
        return shown

    def follow(self) -> Shown:
        """Correct the present map by the landmarks, at once; ValueError where they are too few."""
        base, now = self.current, pairs.used(self.pairs.now)
        found = corrected(base.result, now, base.by_hand)
        shown = self._added("Corrected by landmarks", found, False, (*base.steps, steps.bent(now, base.by_hand)))
        with self._lock:
            number = self._asking(
                base, (*base.steps, steps.looked(now, base.by_hand)), "Corrected by landmarks and images"
            )
            self._propose(shown)
        self.worker.touch(Touch(number, base.result, pairs.plain(now), base.by_hand))
        return shown

    def correct(self, rings: Any) -> None:
        """Correct the present map inside a region alone, by landmarks and images there; the other process does it.

        Args:
            rings: outlines of the region, ``[R][K][2]`` as (y, x) on the fixed side.

        Raises ValueError for a region that is none, and while an alignment runs.
        """
        self.check_flat("a correction in a region")
        base, now = self.current, pairs.used(self.pairs.now)
        outlines, landmarks, words = self._written(Region.of(rings).rings, now)
        inner = base.steps[-1:] and base.steps[-1]["do"] == "open"
        with self._lock:
            done = (*base.steps, steps.mended(outlines, landmarks))
            number = self._asking(base, done, "Corrected in a region", words if inner else None)
        if not self.worker.touch(Touch(number, base.result, pairs.plain(landmarks), base.by_hand, list(outlines))):
            raise ValueError("wanted one fit at a time, got a correction while an alignment runs; stop it first")

    def _written(self, rings: Any, now: list[pairs.Pair]) -> tuple[Any, list[pairs.Pair], tuple[str, ...]]:
        """Region and landmarks as they read back from the files, beside the output, that the command takes; and its words."""
        region, table = self._beside(".region.geojson"), self._beside(".region.csv")
        sides = self.grids()
        regions.write(rings, region, sides.fixed)
        steps.keep(table, pairfiles.write_csv(now, sides))
        found = pairfiles.read(table.read_text(encoding="utf-8"), sides) if now else []
        landmarks = [pairs.Pair(i, name, fixed, moving, on) for i, (name, fixed, moving, on) in enumerate(found, 1)]
        words = ("--region", str(region), *(("--landmarks", str(table)) if now else ()))
        return regions.read(region, sides.fixed).rings, landmarks, words

    def _asking(
        self, base: Shown, done: tuple[steps.Step, ...], title: str, words: tuple[str, ...] | None = None
    ) -> int:
        """Note what the other process is about to be asked, so that its answer is known from older ones; returns its number."""
        self._asked_for = _Asked(next(self._count), base.key, done, title, words)
        return self._asked_for.number

    def _touched(self, number: int, found: Result | str | None) -> None:
        """Show the answer of the other process, unless something else was asked for, or another map was taken, meanwhile."""
        with self._lock:
            asked = self._asked_for
            if asked is None or asked.number != number or asked.base != self.current.key:
                return
            self._asked_for = None
            if isinstance(found, Result):
                shown = self._added(asked.title, found, False, asked.done, asked.words, verb="correct")
                self._propose(shown)
        if isinstance(found, str):
            self.tell("problem", {"text": found})
        self.tell("settled", {"number": number})

    def _propose(self, shown: Shown) -> None:
        with self._lock:
            self.fresh = shown
        self.tell("maps", self.maps())

    def decide(self, take: bool) -> None:
        """Take the new map in place of the present one, or leave it."""
        with self._lock:
            self._asked_for = None
            if take and self.fresh is not None:
                self.current = self.fresh
            self.fresh = None
        self.keep()
        self.tell("maps", self.maps())

    def maps(self) -> dict[str, Any]:
        """The maps that are shown, for the page."""
        return {
            "current": _told(self.current),
            "fresh": None if self.fresh is None else _told(self.fresh),
            "other": self.planes is None and bool(self.current.result.metrics.get("runner_up")),
            "busy": self.worker.busy if hasattr(self, "worker") else False,
        }

    # ---- pictures ---------------------------------------------------------------------------------------------------

    def tile(self, side: str, key: str, level: int, column: int, row: int, style: str, plane: str = "") -> bytes:
        """A tile as PNG; ValueError for one that there is not.

        Args:
            side: ``fixed`` or ``moving``.
            key: of the map.
            level: as viewers count.
            column: of the tile.
            row: of the tile.
            style: colours and contrast, as `Look.style` takes them.
            plane: of a pair of volumes, which plane, as `Planes.read` takes it.
        """
        picture = self._fixed_picture if side == "fixed" else self.map_of(key).warped
        look = self.looks.get(side)
        if picture is None or look is None:
            raise ValueError(f"wanted a side with pixels, got {side!r}")
        channels = look.style(style)
        at = None if self.planes is None else self.planes.read(plane)
        canvas = self.canvas if self.planes is None or at is None else self.planes.canvases[at[0]]
        region = canvas.region(level, column, row)
        own = "" if side == "fixed" else key

        def pixels() -> tuple[Any, Any]:
            if isinstance(picture, Warped):
                return picture.pixels(level, region)
            assert at is not None
            return picture.pixels(at, level, region)

        def drawn() -> bytes:
            found, seen = self._pixels.get((side, own, at, level, column, row), pixels)
            return png(look.draw(found, channels), seen)

        return self._files.get((side, own, at, level, column, row, style), drawn)

    def values(self, key: str, at: tuple[float, ...], plane: str = "") -> dict[str, Any]:
        """What lies under the pointer, at a fixed position (y, x), of volumes on a plane."""
        shown = self.map_of(key)
        at = self.placed_at(plane, (at[0], at[1]))
        where = torch.tensor([at], dtype=torch.float64)
        moving = shown.result.transform.inverse().points(where)[0].tolist()
        found: dict[str, Any] = {"fixed_at": list(at), "moving_at": moving, "unit": self.fixed.grid.unit}
        found["moving_unit"] = self.moving.grid.unit
        for name, side, place in (("fixed", self.fixed, at), ("moving", self.moving, moving)):
            found[name] = _pixel(side, place)
        found["layers"] = {name: _finite(float(shown.fields.values(name, where)[0])) for name in shown.fields.names}
        return found

    # ---- landmarks --------------------------------------------------------------------------------------------------

    def landmarks(self, key: str = "") -> dict[str, Any]:
        """The landmarks with residuals under a map, for the page."""
        shown = self.map_of(key) if key else self.current
        now, revision = self.pairs.now, self.pairs.revision
        found = pairs.judged(now, shown.result.transform.points)
        rows = [{**dataclasses.asdict(pair), **dataclasses.asdict(one)} for pair, one in zip(now, found, strict=True)]
        undo, redo = self.pairs.can
        return {"revision": revision, "pairs": rows, "undo": undo, "redo": redo, "used": len(pairs.used(now))}

    def changed(self) -> None:
        """Keep the landmarks and tell every window."""
        self.keep()
        self.tell("landmarks", {"revision": self.pairs.revision})

    def slice_of(self, plane: str) -> Slice | None:
        """A plane of a volume; None of flat sides."""
        if self.planes is None:
            return None
        read = self.planes.read(plane)
        return Slice(self.planes.whole(read), AXES[3].index(read[0]))

    def placed_at(self, plane: str, at: tuple[float, float]) -> tuple[float, ...]:
        """A position on what is shown, of volumes on a plane, as one of the fixed side."""
        return at if self.planes is None else self.planes.position(self.planes.read(plane), at)

    def predicted(self, key: str, side: str, at: tuple[float, ...]) -> tuple[float, ...]:
        """The partner of a position under a map."""
        map_: Transform = self.map_of(key).result.transform
        found = (
            (map_.inverse() if side == "fixed" else map_).points(torch.tensor([at], dtype=torch.float64))[0].tolist()
        )
        if not all(math.isfinite(v) for v in found):
            raise ValueError("wanted a place where the map is known, got one far outside")
        return tuple(map(float, found))

    def grids(self) -> pairfiles.Sides:
        """The finest grids of both sides."""
        return pairfiles.Sides(finest(self.fixed), finest(self.moving))

    # ---- aligning ---------------------------------------------------------------------------------------------------

    def align(self, begin: str) -> None:
        """Align anew in the other process: from ``landmarks``, from the map that is ``shown``, or ``search`` for a start.

        Raises ValueError where that cannot be begun.
        """
        ask, words = self._asked(begin)
        self._pending = ask, words
        self.worker.ask(ask)
        self.tell("maps", self.maps())

    def _asked(self, begin: str) -> tuple[Ask, tuple[str, ...]]:
        config = self.setting.config.model_dump(mode="json")
        if begin == "search":
            return Ask(config), ("--init", "auto")
        if begin == "shown":
            self.check_flat("a start by hand")
            base = self.fresh or self.current
            affine = base.result.affine
            start = started(bends.product(affine.parts(), 2), self.fixed.grid, self.moving.grid)
            matrix, words = steps.kept_start(start, self._beside(".start.txt"))
            return Ask(config, matrix=matrix), tuple(words)
        if begin != "landmarks":
            raise ValueError(f"wanted a start of landmarks, shown or search, got {begin!r}")
        now = pairs.used(self.pairs.now)
        if not now:
            raise ValueError("wanted at least one pair of landmarks that counts, got none; add one, or align by search")
        path = self._beside(".landmarks.csv")
        steps.keep(path, pairfiles.write_csv(now, self.grids()))
        ask = Ask(config, ([list(pair.moving) for pair in now], [list(pair.fixed) for pair in now]))
        return ask, ("--landmarks", str(path))

    def _heard(self, word: str, value: Any) -> None:
        """What the other process says."""
        if word == "done" and self._pending is not None:
            ask, words = self._pending
            self.fresh = self._added("The new map", value, False, (steps.fitted(ask),), words)
        if word in ("touched", "untouched"):
            self._touched(*value)
            return
        if word == "progress":
            self.tell("progress", value)
            return
        if word == "failed":
            self.tell("problem", {"text": str(value)})
        self.tell("maps", self.maps())

    # ---- the disk ---------------------------------------------------------------------------------------------------

    def command(self, shown: Shown) -> str:
        """The command that makes the folder of a map without a browser."""
        setting = self.setting
        if shown.words is not None and shown.verb == "correct":
            return steps.line(["regframe", "correct", setting.folder, *shown.words, "-o", setting.output])
        if shown.words is not None:
            return steps.line(["regframe", "register", setting.fixed.path, setting.moving.path, "-o", setting.output,
                               *setting.words, *shown.words])  # fmt: skip
        what = (
            [setting.folder]
            if setting.folder is not None
            else [setting.fixed.path, setting.moving.path, *setting.words]
        )
        return steps.line(["regframe", "view", *what, "--replay", self._beside(".steps.json"), "-o", setting.output])

    def save(self) -> dict[str, Any]:
        """Write the folder of the present map; returns its path and the command that makes it anew."""
        from ..report import results

        with self._lock:
            shown, setting = self.current, self.setting
            if shown.by_hand and not shown.steps:
                raise ValueError("wanted a map to save, got none; align first")
            if self._data is None:
                self._data = setting.fixed.data(), setting.moving.data()
            text = steps.written(steps.History(shown.steps, self.pairs.now))
            steps.keep(self._beside(".steps.json"), text)
            begun = () if shown.verb == "correct" else shown.words or ()
            words = dict(zip(begun[::2], begun[1::2], strict=False))
            run = {**setting.run, "landmarks": None, "init": words.get("--init", "auto")}
            if "--landmarks" in words:
                run["landmarks"] = Path(words["--landmarks"]).resolve()
            again = setting.overwrite or self.saved is not None
            results.write_run(
                setting.output, shown.result, self._data, run, again, lambda folder: _step_file(folder, text)
            )
            self.saved = str(setting.output)
        told = {
            "folder": str(setting.output),
            "command": self.command(shown),
            "report": str(setting.output / outputs.REPORT),
        }
        self.tell("saved", told)
        return told

    def replay(self, path: Path) -> None:
        """Repeat the steps of a file and write the folder: what ``--replay`` does, without a page."""
        from ..report import results

        history = steps.read(path)
        self._data = self.setting.fixed.data(), self.setting.moving.data()
        found = steps.repeated(history.steps, self.setting.result, self._data, self.start)
        self.current = self._added("Repeated", found, False, history.steps)
        results.write_run(
            self.setting.output, found, self._data, {**self.setting.run, "landmarks": None, "init": "auto"},
            self.setting.overwrite, lambda folder: _step_file(folder, steps.written(history)),
        )  # fmt: skip

    def keep(self) -> None:
        """Keep landmarks and steps beside the output, so that nothing is lost when the server ends."""
        steps.keep(
            self._beside(".session.json"), json.dumps({"format": 1, "pairs": pairs.plain(self.pairs.now)}) + "\n"
        )

    def _recovered(self) -> str:
        """Take up the landmarks that an earlier view kept, else those of the shown folder; a sentence on that, or nothing."""
        path = self._beside(".session.json")
        if not path.is_file():
            return self._of_folder()
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            kept = [pairs.Pair.of(pair, self.fixed.grid.ndim) for pair in found["pairs"]]
        except (ValueError, KeyError, TypeError, OSError, RecursionError):
            path.rename(path.with_name(path.name + ".unreadable"))
            return f"{path.name} could not be read and was set aside as {path.name}.unreadable"
        self.pairs = pairs.Pairs(kept)
        return f"{len(kept)} landmarks of an earlier view were taken up from {path.name}" if kept else ""

    def _of_folder(self) -> str:
        """Take up the landmarks that the shown folder was saved with; a sentence on that, or nothing."""
        setting = self.setting
        if setting.folder is None or setting.result is None:
            return ""
        try:
            kept = [
                pairs.Pair.of(pair, self.fixed.grid.ndim)
                for pair in pairs.plain(steps.landmarks_of(setting.result, setting.folder))
            ]
            self.pairs = pairs.Pairs(kept)
        except (ValueError, OSError) as error:
            return f"the landmarks of {setting.folder.name} could not be read: {error}"
        return f"{len(kept)} landmarks of {setting.folder.name} are shown" if kept else ""

    def _beside(self, suffix: str) -> Path:
        return self.setting.output.with_name(self.setting.output.name + suffix)

    def close(self) -> None:
        """End the other process."""
        self.worker.stop(again=False)


def _step_file(folder: Path, text: str) -> None:
    (folder / steps.STEPS).write_text(text, encoding="utf-8")


def _told(shown: Shown) -> dict[str, Any]:
    metrics = shown.result.metrics
    return {
        "key": shown.key,
        "title": shown.title,
        "by_hand": shown.by_hand,
        "verdict": metrics.get("verdict"),
        "reasons": list(metrics.get("reasons", ())),
        "confidence": metrics.get("confidence"),
        "layers": list(shown.fields.names),
    }


def _planes(fixed: Side, moving: Side) -> Planes | None:
    """The planes of two volumes; None of two flat sides, and ValueError for one of each."""
    if fixed.grid.ndim != moving.grid.ndim:
        raise ValueError(
            f"wanted two flat sides or two volumes to view, got {fixed.name} of {fixed.grid.ndim} axes and {moving.name} of "
            f"{moving.grid.ndim}; open one plane of the volume (z=K)"
        )
    return Planes(finest(fixed)) if fixed.grid.ndim == 3 else None


def _side_by_side(moving: Grid, fixed: Grid) -> torch.Tensor:
    """The start where nobody has placed anything: equal sizes where the units say so, else equal pixels; middle on middle."""
    ratio = unit_ratio(moving.unit, fixed.unit)
    scale = ratio if ratio is not None else fixed.pixel / moving.pixel
    matrix = torch.eye(fixed.ndim + 1, dtype=torch.float64)
    matrix[:-1, :-1] *= scale
    matrix[:-1, -1] = torch.tensor([f - scale * m for f, m in zip(fixed.center, moving.center, strict=True)])
    return matrix


def _pixel(side: Side, at: Any) -> dict[str, float] | None:
    """The values of a side's nearest pixel at a position, by channel; None beyond it."""
    if side.pyramid is None:
        return None
    level = side.pyramid.levels[0]
    grid = level.grid
    index = [
        round((a - o) / s) if math.isfinite(a) else -1 for a, o, s in zip(at, grid.origin, grid.spacing, strict=True)
    ]
    if not all(0 <= i < n for i, n in zip(index, grid.shape, strict=True)):
        return None
    values = level.read(tuple(slice(i, i + 1) for i in index)).reshape(-1)
    return {name: float(v) for name, v in zip(side.pyramid.channels, values, strict=True)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
