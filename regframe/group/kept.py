"""Finished pairs on the disk: a run that was killed goes on with those that are missing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..io import outputs
from ..io.replacing import settle
from ..io.store import load
from .pairs import Pair

RECORD = "pair.json"
"""Name of the file of a pair's folder that is written last into it."""
PLAN = "plan.txt"
"""Name of the file that says what the pairs beside it were made from."""


class Kept:
    """The pairs of one run; each is a folder that is written aside and then renamed, so that it is whole or absent.

    Args:
        folder: where they lie; None keeps them in memory alone.
        names: names of the images, recorded beside each pair.
        plan: hash of what the pairs depend on; ValueError where the folder holds pairs of another. Not looked at where empty.
    """

    def __init__(self, folder: Path | None, names: Sequence[str], plan: str = "") -> None:
        self.folder, self.names = folder, tuple(names)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if plan:
                _check_plan(folder, plan)
            for stray in folder.glob("tmp-*"):  # left by a process that was killed
                shutil.rmtree(stray) if stray.is_dir() else stray.unlink()

    def find(self, fixed: int, moving: int) -> Pair | None:
        """A pair that was finished before; None where it was not."""
        if self.folder is None or not (place := self._place(fixed, moving)).is_dir():
            return None
        said = json.loads((place / RECORD).read_text(encoding="utf-8"))
        store = place / outputs.TRANSFORM
        return Pair(fixed, moving, load(store) if store.is_dir() else None, said["error"])

    def put(self, pair: Pair) -> Pair:
        """Keep a pair; returns it as it will be read again."""
        if self.folder is None:
            return pair
        aside = self.folder / f"tmp-{os.getpid()}"
        if aside.exists():
            shutil.rmtree(aside)
        aside.mkdir()
        if pair.result is not None:
            pair.result.save(aside / outputs.TRANSFORM)
        facts = {
            "fixed": self.names[pair.fixed], "moving": self.names[pair.moving], "verdict": pair.verdict,
            "confidence": pair.confidence, "reasons": list(pair.reasons), "error": pair.error,
        }  # fmt: skip
        (aside / RECORD).write_text(outputs.to_json(facts, indent=2) + "\n", encoding="utf-8")
        settle(aside, self._place(pair.fixed, pair.moving))
        aside.rename(self._place(pair.fixed, pair.moving))
        found = self.find(pair.fixed, pair.moving)
        assert found is not None
        return found

    def _place(self, fixed: int, moving: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{fixed:03d}-{moving:03d}"


def _check_plan(folder: Path, plan: str) -> None:
    """Note what the pairs of a folder depend on; ValueError where it is noted that they depend on something else."""
    note = folder / PLAN
    if note.is_file():
        if note.read_text(encoding="utf-8").strip() != plan:
            raise ValueError(
                f"wanted to go on with the pairs in {folder}, got other images, channels or settings than they were made from; "
                "name another folder"
            )
        return
    aside = folder / f"tmp-{os.getpid()}-plan"
    aside.write_text(plan + "\n", encoding="utf-8")
    aside.rename(note)
