"""Commands on damaged files, in forked children with a deadline, and what came of them."""

from __future__ import annotations

import contextlib
import io
import json
import os
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
    """

    kind: str
    seed: int
    what: str
    word: str
    said: str = ""
    seconds: float = 0.0


class Bench:
    """Sound files, and the sound partners that commands need beside them.

    Args:
        folder: to work in.
    """

    def __init__(self, folder: Path, kinds: Sequence[str] = tuple(SEEDS)) -> None:
        self.folder, self.kinds = folder, tuple(kinds)
        self.sound = {
            kind: make(kind, folder / "sound" / kind.replace(" ", "_")) for kind in {*kinds, "png", "csv", "result"}
        }

    def command(self, kind: str, path: Path) -> list[str]:
        """The command line that reads a file as what it is."""
        png, out = str(self.sound["png"]), str(path.parent / "out")
        role = SEEDS[kind][0]
        if role in ("image", "points"):
            other = png if role == "image" else str(self.sound["csv"])
            return ["register", str(path), other, "-o", out, "--dry-run"]
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
        child = os.fork()
        if not child:
            code = 1
            with contextlib.suppress(BaseException):
                torch.set_num_threads(1)
                code = sum(run(self.command(kind, self.sound[kind]))[0] for kind in self.kinds if _computes(kind))
            os._exit(min(code, 1))
        wrong = ["shapes, map or result"] * bool(os.waitpid(child, 0)[1])
        return wrong + [k for k in self.kinds if not _computes(k) and run(self.command(k, self.sound[k]))[0]]

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
    """A command in this process: its exit code, and what it said on stderr, libraries in C included."""
    from regframe.cli import main

    with tempfile.TemporaryFile() as kept, contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
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


def word_for(code: int, said: str, peak: int = 0) -> str:
    """The outcome of a command that came back."""
    if code not in (0, 2, 3):
        return "defect"
    if peak > FAT:
        return "memory"
    errors = said[said.find("Error:") :] if "Error:" in said else ""
    lines = [line for line in said.splitlines() if line.strip()]
    if code == 2 and (len(lines) > LINES + said.count("Warning:") or not errors or "Traceback" in said):
        return "chatter"
    return "read" if code in (0, 3) else "refused"


def in_this_process(bench: Bench, kind: str, seed: int) -> Outcome:
    """One damaged file, where nothing can crash."""
    path, what = bench.damaged(kind, seed)
    began = time.monotonic()
    code, said = run(bench.command(kind, path))
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
        code, said = run(bench.command(kind, path))
        shutil.rmtree(path.parent, ignore_errors=True)
        word = word_for(code, said, _memory("VmHWM") - before)
        found = Outcome(kind, seed, what, word, said.strip()[-1500:], time.monotonic() - began)
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
    lines = ["| kind | " + " | ".join(words) + " | slowest |", "|---" * (len(words) + 2) + "|"]
    for kind in [*dict.fromkeys(o.kind for o in outcomes), "all"]:
        mine = [o for o in outcomes if kind in (o.kind, "all")]
        counts = Counter(o.word for o in mine)
        cells = [str(counts[word] or "–") for word in words]
        lines.append(f"| {kind} | {' | '.join(cells)} | {max(o.seconds for o in mine):.1f} s |")
    return "\n".join(lines)
