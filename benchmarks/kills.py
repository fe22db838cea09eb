"""Ends commands at random moments, and looks what is left: the state before, or the whole output, and nothing beside it.

    python benchmarks/kills.py --kills 100 --signal KILL        # 100 kills over all commands
    python benchmarks/kills.py --kills 30 --signal INT          # how long it takes them to end, and with which exit code

Each command runs once to its end for the bytes that are wanted. Then it is begun anew, in a folder with or without an earlier
output, and ended at a moment drawn by the seed; half of the moments lie in the last third, where outputs get their names. After
a kill the same command runs again: it must give the same bytes and leave nothing beside them. The commands run in forks of
this process, which has loaded what they need.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PLAIN = {
    "metrics.json",
    "log.jsonl",
    "job.log",
    "report.html",
    "config.resolved.yaml",
    "job.json",
    "summary.csv",
    "summary.html",
    ".regframe-batch.lock",  # names the process
}
"""Files that hold the time which a run took, or pictures drawn from such: their bytes differ from run to run."""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command that writes ``output``; ``prepare`` puts into the folder what an earlier run left there."""

    name: str
    arguments: tuple[str, ...]
    output: str
    earlier: str | None = None
    again: tuple[str, ...] = ("--overwrite",)
    goes_on: bool = False


@dataclasses.dataclass
class Outcome:
    """What became of one command that was ended."""

    command: str
    after: float
    state: str
    faults: list[str]
    seconds: float = 0.0


def make_inputs(folder: Path) -> None:
    """Small images and a finished run, from fixed seeds."""
    import numpy as np
    import tifffile
    from scipy import ndimage

    rng = np.random.default_rng(17)
    fine = ndimage.gaussian_filter(rng.random((300, 280)), 3)
    fine = (60000 * (fine - fine.min()) / (fine.max() - fine.min())).astype(np.uint16)
    for name, shift in (("fixed", (0, 0)), ("moving", (2, 3)), ("third", (-2, 1))):
        tifffile.imwrite(folder / f"{name}.tif", ndimage.shift(fine, shift, order=1, mode="nearest")[20:220, 20:200])
    tifffile.imwrite(folder / "slide.tif", np.tile(fine, (5, 5))[:1300, :1200], tile=(256, 256))
    rows = [f"{name},{folder / 'fixed.tif'},{folder / f'{name}.tif'}" for name in ("moving", "third")]
    (folder / "jobs.csv").write_text("\n".join(["id,fixed,moving", *rows]) + "\n")


def commands(inputs: Path) -> list[Command]:
    """The commands that are ended."""
    images = (str(inputs / "fixed.tif"), str(inputs / "moving.tif"))
    run, slide = str(inputs / "run"), str(inputs / "slide.tif")
    carry = (
        "apply",
        "image",
        run,
        slide,
        "--to",
        "fixed",
        "--input-spacing",
        "0.2",
        "--spacing",
        "0.2",
        "--workers",
        "1",
    )
    return [
        Command("register", ("register", *images, "-o", "out"), "out"),
        Command("register --overwrite", ("register", *images, "-o", "out", "--overwrite"), "out", "run"),
        Command("refine in place", ("refine", "out"), "out", "run", ()),
        Command("export", ("export", run, "-o", "map.nii.gz", "--format", "nifti"), "map.nii.gz"),
        Command("export ants", ("export", run, "-o", "map", "--format", "ants", "--overwrite"), "map0GenericAffine.mat"),
        Command("apply image .zarr", (*carry, "-o", "w.zarr"), "w.zarr", goes_on=True),
        Command("apply image .tif", (*carry, "-o", "w.ome.tif"), "w.ome.tif", goes_on=True),
        Command("apply image .png", ("apply", "image", run, images[1], "--to", "fixed", "-o", "w.png"), "w.png"),
        Command("stack", ("stack", *images, str(inputs / "third.tif"), "-o", "out", "--spacing-z", "1"), "out"),
        Command("batch", ("batch", str(inputs / "jobs.csv"), "-o", "out", "--workers", "1", "--threads", "1"), "out",
                None, (), True),
    ]  # fmt: skip


def begun(arguments: tuple[str, ...], folder: Path) -> int:
    """Start a command of regframe in a fork, in ``folder``; returns its process number. What it says goes to ``said.txt``."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        said = os.open(folder.parent / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from regframe.cli import main

        code = 0
        try:
            main(list(arguments))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except KeyboardInterrupt:
            code = 71
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def ended(process: int) -> int:
    """Wait for a process; its exit code, or minus the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def bytes_of(path: Path) -> str:
    """A hash of a file, or of all files below a folder but those of `PLAIN`; empty where nothing is there."""
    if not path.exists():
        return ""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and p.name not in PLAIN)
    for file in files:
        data = file.read_bytes()
        if file.name == "zarr.json":  # the figures of a result are stored with it
            data = re.sub(rb'"[a-z_]*seconds[a-z_]*": *[0-9.e+-]+', b"", data)
        digest.update(str(file.relative_to(path)).encode() + b"\0" + data)
    return digest.hexdigest()


def leftovers(folder: Path, keeps: bool) -> list[str]:
    """Names in a folder that belong to no output; an unfinished slide counts where ``keeps`` is False."""
    names = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.name.endswith((".partial", ".swept"))]
    names += [str(p.relative_to(folder)) for p in folder.rglob(".regframe-*") if p.name != ".regframe-batch.lock"]
    return [name for name in names if not (keeps and not Path(name).name.startswith("."))]


class Trial:
    """One command, with the bytes that it gives and the time that it takes."""

    def __init__(self, command: Command, inputs: Path, place: Path) -> None:
        self.command, self.inputs, self.place = command, inputs, place
        self.before = bytes_of(inputs / command.earlier) if command.earlier else ""
        folder = self._fresh()
        began = time.monotonic()
        code = ended(begun(command.arguments, folder))
        self.takes = time.monotonic() - began
        if code not in (0, 3):
            raise RuntimeError(f"{command.name} ended with {code}: {(place / 'said.txt').read_text()[-500:]}")
        self.wanted = bytes_of(folder / command.output)

    def _fresh(self) -> Path:
        folder = self.place / "work"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if self.command.earlier:
            shutil.copytree(self.inputs / self.command.earlier, folder / self.command.output)
        return folder

    def end(self, number: signal.Signals, share: float) -> Outcome:
        """End the command when ``share`` of its time has passed; what is found then, and after it ran again."""
        command, folder = self.command, self._fresh()
        process = begun(command.arguments, folder)
        time.sleep(share * self.takes)
        os.kill(process, number)
        sent = time.monotonic()
        code = ended(process)
        seconds = time.monotonic() - sent
        outcome = Outcome(command.name, share * self.takes, "", [], seconds)
        now = bytes_of(folder / command.output)
        outcome.state = "new" if now == self.wanted else "before" if now == self.before else "part"
        if outcome.state == "part" and command.name != "batch":
            outcome.faults.append("neither the state before nor the whole output")
        if number is not signal.SIGKILL and code not in (0, 3):
            self._said_why(code, number, outcome)
            outcome.faults += [f"left {name}" for name in leftovers(folder, command.goes_on)]
        again = tuple(a for a in command.again if a not in command.arguments)
        if command.earlier and command.name.startswith("refine") and outcome.state == "new":
            return outcome  # to refine what is refined is another command
        code = ended(begun((*command.arguments, *again), folder))
        if code not in (0, 3):
            outcome.faults.append(f"run again: exit {code}: {(self.place / 'said.txt').read_text()[-300:].strip()}")
        elif bytes_of(folder / command.output) != self.wanted:
            outcome.faults.append("run again: other bytes")
        outcome.faults += [f"run again: left {name}" for name in leftovers(folder, False)]
        return outcome

    def _said_why(self, code: int, number: signal.Signals, outcome: Outcome) -> None:
        if code != 128 + number:
            outcome.faults.append(f"exit code {code}")
        if outcome.seconds > 1.0:
            outcome.faults.append(f"took {outcome.seconds:.2f} s to end")
        lines = (self.place / "said.txt").read_text().splitlines()
        if sum(line.startswith("interrupted") for line in lines) != 1 or any("Traceback" in line for line in lines):
            outcome.faults.append(f"said {' / '.join(lines[-3:])[:200]!r}")


def run(
    kills: int,
    seed: int,
    number: signal.Signals,
    names: list[str],
    found: list[Outcome],
    tell: Callable[[str], object] = print,
) -> None:
    """End ``kills`` commands and append to ``found`` what became of each.

    In turn those whose name begins with one of ``names``; all, where there is none.
    """
    with tempfile.TemporaryDirectory(prefix="regframe-kills-") as name:
        inputs = Path(name) / "inputs"
        inputs.mkdir()
        make_inputs(inputs)
        images = (str(inputs / "fixed.tif"), str(inputs / "moving.tif"))
        assert ended(begun(("register", *images, "-o", str(inputs / "run")), inputs)) in (0, 3)
        chosen = [c for c in commands(inputs) if not names or c.name.startswith(tuple(names))]
        trials = [Trial(command, inputs, Path(name) / "place") for command in chosen]
        rng = random.Random(seed)
        for k in range(kills):
            trial = trials[k % len(trials)]
            share = rng.uniform(0.0, 1.0) if rng.random() < 0.5 else rng.uniform(0.67, 1.02)
            outcome = trial.end(number, share)
            found.append(outcome)
            for fault in outcome.faults:
                tell(f"{outcome.command} at {outcome.after:.2f} of {trial.takes:.2f} s: {fault}")


def table(found: list[Outcome]) -> str:
    """One line for each command."""
    lines = [
        "| command | ended | state before | new state | part | faults | longest, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(o.command for o in found):
        own = [o for o in found if o.command == name]
        states = " | ".join(str(sum(o.state == state for o in own)) for state in ("before", "new", "part"))
        lines.append(
            f"| {name} | {len(own)} | {states} | {sum(bool(o.faults) for o in own)} | {max(o.seconds for o in own):.2f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signal", choices=("KILL", "INT", "TERM"), default="KILL")
    parser.add_argument("commands", nargs="*", help="beginnings of their names; all, where none is given")
    options = parser.parse_args()
    import torch

    import regframe.cli
    import regframe.report.results  # noqa: F401 - both are loaded once, for all forks

    torch.set_num_threads(1)
    found: list[Outcome] = []
    try:
        run(options.kills, options.seed, signal.Signals[f"SIG{options.signal}"], options.commands, found)
    finally:  # what was found until Ctrl-C counts
        print(table(found), flush=True)
    return int(any(o.faults for o in found))


if __name__ == "__main__":
    sys.exit(main())
