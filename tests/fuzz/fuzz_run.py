"""Commands on damaged files, in forked children with a deadline, and what came of them."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from fuzz_damage import damage
from fuzz_seeds import SEEDS, make

DEADLINE = 20.0
"""Seconds of work, or of waiting on a machine that does nothing else, that a command may take over a damaged file."""
BUSY = 6
"""How many times as long a command may wait where it got little of the processor."""
FAT = 1 << 30
"""Bytes of memory that a command may take over a damaged file beside what it had."""
LINES = 2
"""Lines on stderr, of an error."""
_EXPECTED = re.compile(r"Warning:|aligning .* to |\w+: \d+ iterations, energy ")
"""Lines on stderr that are none of an error."""
_SPACE = 6 << 30
"""Bytes of address space that a child may take beside what it had."""
_TOGETHER = 40
"""Cases that one child does, unless it dies of one."""

BAD = ("defect", "hang", "signal", "memory", "chatter")
"""Outcomes that are failures."""


@dataclass(frozen=True)
class Outcome:
    """What a command did over a damaged file.

    Args:
        kind: of the file.
        seed: of the damage.
        what: was damaged.
        word: ``read``, ``refused`` or one of `BAD`.
        said: on stderr.
        seconds: it took.
        peak: bytes of memory that it took beside what the process had.
        lines: that it said on stderr, without warnings and progress.
    """

    kind: str
    seed: int
    what: str
    word: str
    said: str = ""
    seconds: float = 0.0
    peak: int = 0
    lines: int = 0


class Bench:
    """Sound files, and the sound partners that commands need beside them.

    Args:
        folder: to work in.
        kinds: of files.
        whole: whether what is read is registered too, against a sound file of its kind: pixels read, map and page written,
            the moving side carried; else ``register`` is a dry run.
    """

    def __init__(self, folder: Path, kinds: Sequence[str] = tuple(SEEDS), whole: bool = False) -> None:
        self.folder, self.kinds, self.whole = folder, tuple(kinds), whole
        self.sound = {
            kind: make(kind, folder / "sound" / kind.replace(" ", "_")) for kind in {*kinds, "png", "csv", "result"}
        }

    def command(self, kind: str, path: Path, seed: int = 0) -> list[str]:
        """The command line that reads a file as what it is; the seed decides which side of a whole pair it is."""
        png, out = str(self.sound["png"]), str(path.parent / "out")
        role = SEEDS[kind][0]
        if self.whole and role in ("image", "points"):
            sound = str(self.sound[kind])
            sides = (str(path), sound) if seed // len(self.kinds) % 2 else (sound, str(path))
            warped = ["--save-warped"] if role == "image" else []
            quick = [] if seed % 16 == 0 else ["--init", "identity", "--transform", "affine"]  # ten times as fast
            return ["register", *sides, "-o", out, "--set", "optimizer.max_iter=3", *quick, *warped]
        if self.whole and role in ("landmarks", "config"):
            option = "--landmarks" if role == "landmarks" else "--config"
            return ["register", png, png, "-o", out, option, str(path)]
        if role in ("image", "points"):
            # on the moving side, where a picture takes a volume too; points want points of as many axes
            other = png if role == "image" else str(self.sound[kind])
            return ["register", other, str(path), "-o", out, "--dry-run"]
        if role == "landmarks":
            return ["register", png, png, "-o", out, "--landmarks", str(path), "--dry-run"]
        if role == "config":
            return ["register", png, png, "-o", out, "--config", str(path), "--dry-run"]
        if role == "shapes":
            return [
                "apply",
                "shapes",
                str(self.sound["result"]),
                str(path),
                "-o",
                out + ".geojson",
                "--to",
                "fixed",
                "--input-spacing",
                "0.5",
            ]
        if role == "map":
            return ["import", str(path), "-o", out, "--fixed", png, "--moving", png]
        return ["apply", "points", str(path), str(self.sound["csv"]), "-o", out + ".csv", "--to", "fixed"]

    def unsound(self) -> list[str]:
        """Kinds whose sound file is not read.

        What the commands import is then loaded, once for all children; those that compute run in a child of their own, for the
        threads of torch do not live on in children.
        """
        computing = [kind for kind in self.kinds if self.whole or _computes(kind)]
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            wrong = [f"one of {', '.join(computing)}"]
            with contextlib.suppress(BaseException):
                torch.set_num_threads(1)
                wrong = [kind for kind in computing if self._refuses(kind)]
            with os.fdopen(writer, "w") as told:
                json.dump([wrong, list(sys.modules)], told)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as told:
            wrong, loaded = json.load(told)
        os.waitpid(child, 0)
        for name in loaded:
            if not name.startswith(("__", "test_")):
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
        wrong += [kind for kind in self.kinds if kind not in computing and self._refuses(kind)]
        gc.collect()
        gc.freeze()  # it need not be searched in every child
        return wrong

    def _refuses(self, kind: str) -> bool:
        """Whether the command refuses the sound file of a kind; a map that is not trusted is an answer."""
        refuses = run(self.command(kind, self.sound[kind], 1))[0] not in (0, 3)
        for left in self.sound[kind].parent.glob("out*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        return refuses

    def damaged(self, kind: str, seed: int) -> tuple[Path, str]:
        """A damaged copy of a sound file, and what was done to it."""
        place = Path(tempfile.mkdtemp(dir=self.folder))
        path = place / self.sound[kind].name
        (shutil.copytree if self.sound[kind].is_dir() else shutil.copy)(self.sound[kind], path)
        return path, damage(path, seed)


def _computes(kind: str) -> bool:
    """Whether the command that reads a kind of file carries positions by a map."""
    return SEEDS[kind][0] in ("shapes", "map", "result")


def run(arguments: Sequence[str]) -> tuple[int, str]:
    """A command in this process: its exit code, and what it said on stderr, libraries in C included.

    How fast the machine is, which a dry run finds out for its estimate, says nothing of a file: it is taken as known.
    """
    from regframe.cli import forecast, main

    with (
        tempfile.TemporaryFile() as kept,
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
        mock.patch.object(forecast, "probe", return_value=forecast.PROBE),
    ):
        warnings.simplefilter("default")  # as on a command line
        saved, shown = os.dup(2), sys.stderr
        os.dup2(kept.fileno(), 2)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
        try:
            main.main(list(arguments), prog_name="regframe")
            code: Any = 0
        except SystemExit as error:
            code = error.code
        finally:
            sys.stderr = shown
            os.dup2(saved, 2)
            os.close(saved)
        kept.seek(0)
        return int(code or 0), kept.read(1 << 16).decode("utf-8", "replace")


def lines_of(said: str) -> int:
    """Lines that a command said on stderr beside warnings and the progress of a fit."""
    return sum(bool(line.strip()) and not _EXPECTED.match(line) for line in said.splitlines())


def word_for(code: int, said: str, peak: int = 0) -> str:
    """The outcome of a command that came back."""
    if code not in (0, 2, 3):
        return "defect"
    if peak > FAT:
        return "memory"
    errors = said[said.find("Error:") :] if "Error:" in said else ""
    if code == 2 and (lines_of(said) > LINES or not errors or "Traceback" in said):
        return "chatter"
    return "read" if code in (0, 3) else "refused"


def in_this_process(bench: Bench, kind: str, seed: int) -> Outcome:
    """One damaged file, where nothing can crash."""
    path, what = bench.damaged(kind, seed)
    began = time.monotonic()
    code, said = run(bench.command(kind, path, seed))
    shutil.rmtree(path.parent, ignore_errors=True)
    return Outcome(kind, seed, what, word_for(code, said), said.strip(), time.monotonic() - began)


def in_children(bench: Bench, cases: Sequence[tuple[str, int]], tell: Callable[[Outcome], None]) -> None:
    """Damaged files in forked children; each outcome is told as it comes."""
    left = list(cases)
    while left:
        done = _one_child(bench, left[:_TOGETHER], tell)
        left = left[done:]


def _one_child(bench: Bench, cases: Sequence[tuple[str, int]], tell: Callable[[Outcome], None]) -> int:
    """How many of the cases are done, one that ended the child included."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        with contextlib.suppress(BaseException):
            _work(bench, cases, writer)
        os._exit(0)
    os.close(writer)
    done, buffer, began = 0, b"", time.monotonic()
    word = ""
    while done < len(cases):
        ready, _, _ = select.select([reader], [], [], max(0.0, began + DEADLINE - time.monotonic()))
        late = 1
        while not ready and late < BUSY and os.getloadavg()[0] > (os.cpu_count() or 1):
            ready, _, _ = select.select([reader], [], [], DEADLINE)  # others work on this machine
            late += 1
        part = os.read(reader, 1 << 16) if ready else b""
        if not part:
            word = "signal" if ready else "hang"
            break
        buffer += part
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            tell(Outcome(**json.loads(line)))
            done, began = done + 1, time.monotonic()
    if word == "hang":
        os.kill(child, signal.SIGKILL)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if word:
        kind, seed = cases[done]
        path, what = bench.damaged(kind, seed)
        shutil.rmtree(path.parent, ignore_errors=True)
        tell(Outcome(kind, seed, what, word, f"status {status}", time.monotonic() - began))
        done += 1
    return done


def _work(bench: Bench, cases: Sequence[tuple[str, int]], writer: int) -> None:
    """What a child does."""
    torch.set_num_threads(1)
    used = _memory("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (used + _SPACE, used + _SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for kind, seed in cases:
        path, what = bench.damaged(kind, seed)
        began, before = time.monotonic(), _memory("VmRSS")
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        code, said = run(bench.command(kind, path, seed))
        shutil.rmtree(path.parent, ignore_errors=True)
        seconds, peak = time.monotonic() - began, max(0, _memory("VmHWM") - before)
        found = Outcome(
            kind, seed, what, word_for(code, said, peak), said.strip()[-1500:], seconds, peak, lines_of(said)
        )
        os.write(writer, json.dumps(vars(found)).encode() + b"\n")


def _memory(field: str) -> int:
    """Bytes that this process has, by a field of Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    return 0


def table(outcomes: Sequence[Outcome]) -> str:
    """Kinds of files by outcome, as a table of Markdown."""
    words = ("read", "refused", *BAD)
    lines = [
        "| kind | " + " | ".join(words) + " | slowest | most memory | most lines |",
        "|---" * (len(words) + 4) + "|",
    ]
    for kind in [*dict.fromkeys(o.kind for o in outcomes), "all"]:
        mine = [o for o in outcomes if kind in (o.kind, "all")]
        counts = Counter(o.word for o in mine)
        cells = [str(counts[word] or "–") for word in words]
        most = f"{max(o.seconds for o in mine):.1f} s | {max(o.peak for o in mine) >> 20} MiB | {max(o.lines for o in mine)}"
        lines.append(f"| {kind} | {' | '.join(cells)} | {most} |")
    return "\n".join(lines)
