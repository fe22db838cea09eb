"""The making of a group's folder, from which a run that was killed goes on; and tables of rounds."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..config import Config
from ..contracts import Progress
from ..io import claims, outputs
from ..io.text import decoded
from ..plugins import PARTIAL
from ..slides.unfinished import STORE, OnDisk
from ..slides.warp import SlideWarp
from .align import aligned
from .group import PAIRS, Group, check_output, is_group, load_group, write_files
from .kept import PLAN
from .members import Member, fingerprint

MERGED = "merged.json"
"""File in a group's folder that says which merged slides were begun from it, and from what."""


# ---- a run that can be killed -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """The making of a group's folder, which goes on where an earlier process was killed.

    Args:
        path: the folder.
        members: the images.
        reference: as in `regframe.register_group`.
        config: settings of every pair.
    """

    path: Path
    members: list[Member]
    reference: str | int
    config: Config

    @property
    def partial(self) -> Path:
        """The folder of the unfinished run."""
        return self.path.with_name(self.path.name + PARTIAL)

    def plan(self) -> str:
        """Hash of all that the folder depends on."""
        return hashlib.sha256(f"{fingerprint(self.members, self.config)} {self.reference}".encode()).hexdigest()

    def finished(self) -> Group | None:
        """The group, where this run has written its folder before; None otherwise."""
        claims.heal(self.path)
        if not is_group(self.path):
            return None
        with contextlib.suppress(ValueError, KeyError, OSError):
            written = json.loads((self.path / outputs.METRICS).read_text(encoding="utf-8"))
            if written.get("plan") == self.plan():
                shutil.rmtree(self.partial, ignore_errors=True)
                return load_group(self.path)
        return None

    def write(
        self,
        overwrite: bool = False,
        progress: Callable[[Progress], object] | None = None,
        *extras: Callable[[Group, Path], object],
    ) -> Group:
        """Register what is missing and write the folder; ``extras`` are called with group and folder before that gets its name.

        Raises what `check_output` raises, BlockingIOError where another process is at it, ValueError for an unfinished run of
        other inputs or settings.
        """
        check_output(self.path, overwrite, [member.source for member in self.members])
        self.partial.mkdir(parents=True, exist_ok=True)
        place = OnDisk(self.path, self.partial)
        with place.locked():
            store = self.partial / STORE
            place.prepare(overwrite, self.plan(), f"{len(self.members)} images", lambda: store.mkdir())
            group = aligned(self.members, self.reference, self.config, store / PAIRS, progress)
            group.metrics["plan"] = self.plan()
            with outputs.staged(self.path, overwrite) as folder:
                folder.mkdir()
                with _pairs_in(store / PAIRS, folder / PAIRS):
                    write_files(group, folder)
                    for extra in extras:
                        extra(group, folder)
            shutil.rmtree(self.partial, ignore_errors=True)
        return group


def was_written(folder: Path, plan: SlideWarp) -> bool:
    """Whether the output of a plan is there, whole, and was begun by a run in ``folder`` from just this."""
    path = Path(str(plan.path))
    return path.exists() and _begun(folder).get(path.name) == plan.fingerprint


def note_begun(folder: Path, plan: SlideWarp, overwrite: bool = False) -> None:
    """Note in ``folder`` that the output of a plan is begun; FileExistsError where there is one that may not be replaced.

    An output gets its name once it is whole: one that is there, and was noted, was finished.
    """
    path = Path(str(plan.path))
    if path.exists() and not overwrite:
        raise FileExistsError(f"output {path} exists; choose another name, or pass --overwrite to replace it")
    begun = _begun(folder) | {path.name: plan.fingerprint}
    aside = folder / f".{MERGED}.new"
    aside.write_text(json.dumps(dict(sorted(begun.items())), indent=2) + "\n", encoding="utf-8")
    aside.rename(folder / MERGED)


def _begun(folder: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / MERGED).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


@contextlib.contextmanager
def _pairs_in(source: Path, target: Path) -> Iterator[None]:
    """Copy the finished pairs into the folder that gets its name next; those of an unfinished run stay until it has."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("tmp-*", PLAN))
    yield


def read_manifest(path: Path) -> tuple[list[Path], list[str] | None, dict[str, str]]:
    """Files, names and channels of a table of rounds: CSV or TSV with the column ``file``, and if wanted ``name``, ``channel``.

    Paths are relative to the table. Raises ValueError where the table is none, or names no file.
    """
    text, _ = decoded(path.read_bytes())
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    rows = list(csv.DictReader(text.splitlines(), delimiter=delimiter))
    if not rows or not rows[0] or "file" not in rows[0]:
        raise ValueError(f"wanted a table with the column 'file' (and name, channel), got {path}; write its header")
    kept = [row for row in rows if (row.get("file") or "").strip()]
    files = [path.parent / row["file"].strip() for row in kept]
    names = [(row.get("name") or "").strip() for row in kept]
    if any(names) and not all(names):
        raise ValueError(
            f"wanted a name in every row of {path}, or in none, got {names.count('')} without; fill them in"
        )
    channels = {}
    for row, name, file in zip(kept, names, files, strict=True):
        if (row.get("channel") or "").strip():
            channels[name or str(file)] = row["channel"].strip()
    return files, names if any(names) else None, channels
