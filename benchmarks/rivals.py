"""The other registration tools: where they live, how they are started, and with which settings they are run.

They are never installed beside regframe. ``REGFRAME_RIVALS`` names the Python that has them, and this makes one::

    python benchmarks/rivals.py --install DIR
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

PACKAGES = ("picsl-greedy==1.4.0.3", "antspyx==0.6.3", "itk-elastix==0.25.4")
HOW_TO_GET = "python benchmarks/rivals.py --install DIR, then REGFRAME_RIVALS=DIR/bin/python"
WORKER = Path(__file__).with_name("rivals_worker.py")
LIMIT = 180.0
"""Seconds after which a job counts as hung: greedy's WNCC can wait for ever when it prints from a second thread."""


@dataclass(frozen=True, eq=False)
class Setting:
    """One way to run a tool: ``text`` is what the tables say, ``job`` what the worker is handed."""

    tool: str
    text: str
    job: dict[str, Any]


def _greedy(affine: Sequence[str], deformable: str = "", invert: bool = False) -> Setting:
    text = ", ".join(f"`-a {options}`" for options in affine) + (f", `{deformable}`" if deformable else "")
    job = {"affine": list(affine), "invert": invert, **({"deformable": deformable} if deformable else {})}
    return Setting("greedy", text + (", contrast inverted by hand" if invert else ""), job)


def _ants(*stages: dict[str, Any]) -> Setting:
    def written(options: dict[str, Any]) -> str:
        rest = (f"{key}={value}" for key, value in options.items() if key != "type_of_transform")
        return f"{options['type_of_transform']}({', '.join(rest)})"

    return Setting("ants", " + ".join(f"`{written(stage)}`" for stage in stages), {"stages": list(stages)})


def _elastix(iterations: int, samples: int) -> Setting:
    changes = {"MaximumNumberOfIterations": str(iterations), "NumberOfSpatialSamples": str(samples)}
    text = f"`rigid` + `affine` + `bspline` of 64 px, Mattes MI, 4 levels, {iterations} iterations, {samples} samples"
    return Setting("elastix", text, {"maps": ["rigid", "affine", "bspline"], "grid": 64.0, "set": changes})


# Smoothing of 24 and 6 px, no background outside the image and a margin around the canvas were searched for by hand on the
# synthetic pair, and brought greedy from 0.9 to 0.2 px: the rival is shown at its best, and at its defaults too. NCC and WNCC
# are signed, so they get the contrast inverted by hand, which NMI and regframe do without.
_TUNED = "-s 24vox 6vox -bg NaN -ref-pad 64x64"
_COARSE = ["-dof 12 -m NMI -n 100x50x0x0"]
_SYN = {"type_of_transform": "SyNRA", "aff_metric": "mattes", "syn_metric": "mattes"}

SYNTHETIC: tuple[Setting, ...] = (
    _greedy(_COARSE, f"-m NMI -n 40x20x10x5 {_TUNED}"),
    _ants(_SYN),
    _elastix(256, 2048),
    _greedy(_COARSE),
    _greedy(_COARSE, f"-m NMI -n 100x50x10x5 {_TUNED}"),
    _greedy(_COARSE, f"-m NMI -n 100x50x10x10 -e 0.5 {_TUNED}"),
    _greedy(_COARSE, f"-m NMI -n 100x100x50x20 {_TUNED}"),
    _greedy(["-dof 12 -m NMI -n 100x50x10"], "-m NMI -n 100x50x10"),
    _greedy(_COARSE, "-m NMI -n 100x100x50x20"),
    _greedy(_COARSE, "-m NMI -n 200x200x100x50"),
    _greedy(_COARSE, "-m NCC 4x4 -n 100x50x10", invert=True),
    _greedy(_COARSE, "-m WNCC 4x4 -n 100x50x10 -s 12vox 6vox -bg NaN", invert=True),
    _ants({**_SYN, "reg_iterations": [100, 100, 50, 20], "flow_sigma": 6}),
    _ants({**_SYN, "syn_metric": "CC", "syn_sampling": 4}),
    _ants(
        {"type_of_transform": "Affine", "aff_metric": "mattes"},
        {"type_of_transform": "SyNOnly", "syn_metric": "mattes", "reg_iterations": [100, 100, 50, 20]},
    ),
    _elastix(64, 2048),
    _elastix(128, 4096),
    _elastix(256, 4096),
    _elastix(256, 8192),
    _elastix(500, 8192),
)
"""For some 1000 x 1000 pixels; here as below, the first of each tool is the one that a small run takes."""

_FINE = ["-dof 6 -m NMI -n 100x100x50", "-dof 12 -m NMI -n 100x100x50"]
_NCC = ["-dof 12 -m NCC 8x8 -n 100x100x50"]

SEED: tuple[Setting, ...] = (
    _greedy(_NCC, invert=True),
    _ants(_SYN),
    _elastix(64, 2048),
    _greedy(_NCC, "-m NCC 8x8 -n 100x50x20 -s 24vox 6vox -bg NaN -ref-pad 32x32", invert=True),
    _greedy(_FINE),
    _greedy(_FINE, "-m NMI -n 100x50x20 -s 16vox 4vox -bg NaN -ref-pad 32x32"),
    _greedy(_FINE, "-m NMI -n 100x50x20"),
    _ants({**_SYN, "reg_iterations": [100, 100, 50, 20], "flow_sigma": 6}),
    _elastix(128, 4096),
    _elastix(256, 2048),
    _elastix(256, 8192),
)
"""For some 200 x 200 pixels, where an affine stage has to go on to the finest level."""

UNTUNED: tuple[Setting, ...] = (
    _ants({"type_of_transform": "SyNRA"}),
    _elastix(256, 2048),
    _greedy([f"-dof {n} -m NMI -n 100x50x10" for n in (6, 12)], "-m NMI -n 100x50x10"),
)
"""For any pair: one setting of each tool, from its own start, as someone would run it who knows nothing of the pair.

Without its rigid stage greedy was far off on all of the lung pairs (2 to 20 % where it now has 0.4 to 1.6).
"""

BENDS: tuple[Setting, ...] = (
    _greedy([], "-m WNCC 8x8 -n 100x100x40 -s 3vox 1vox"),
    _greedy([], "-m NMI -n 100x100x40 -s 3vox 1vox"),
    _ants({"type_of_transform": "SyNOnly", "syn_metric": "mattes", "reg_iterations": [100, 100, 40]}),
    _ants({"type_of_transform": "SyNOnly", "syn_metric": "CC", "syn_sampling": 4, "reg_iterations": [100, 100, 40]}),
)
"""For neighbouring sections in two stains, from an affine map that the job brings as ``start``."""


class RivalError(RuntimeError):
    """A tool crashed, hung or refused its job; the message ends with what it wrote last."""


class Worker:
    """A `rivals_worker` process: one tool, imported once, one job at a time; started again after a job that killed it.

    Args:
        tool: name of one of `rivals_worker.TOOLS`.
        python: the Python that has it.
        threads: what the tool may use.
    """

    def __init__(self, tool: str, python: str, threads: int) -> None:
        self.tool, self.threads = tool, threads
        self._python = python
        self._folder = tempfile.TemporaryDirectory()
        self._process: subprocess.Popen[str] | None = None
        self._loaded: dict[str, str] = {}
        self.version = ""

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._folder.cleanup()

    def check(self) -> None:
        """Make the tool find known maps, so that no sign and no order of axes is taken on trust.

        Three tries: greedy's affine stage begins with a random jitter, from which it was seen to diverge once in seven times.
        """
        for left in (2, 1, 0):
            try:
                self._ask(do="check")
                return
            except RivalError:
                if not left:
                    raise

    def load(self, fixed: NDArray[Any], moving: NDArray[Any], probes: NDArray[np.float64]) -> None:
        """Hand over a pair ``[C, H, W]`` and the fixed positions ``[N, 2]`` that every job maps."""
        for name, array in {"fixed": fixed, "moving": moving, "probes": probes}.items():
            np.save(self._path(name), array)
        self._loaded = {side: self._path(side) for side in ("fixed", "moving")}
        self._ask(do="load", **self._loaded)

    def run(self, job: dict[str, Any]) -> tuple[float, NDArray[np.float64]]:
        """Seconds of the registration, and the moving positions ``[N, 2]`` of the probes."""
        answer = self._ask(do="run", job=job, probes=self._path("probes"), mapped=self._path("mapped"))
        mapped: NDArray[np.float64] = np.load(self._path("mapped"))
        return float(answer["seconds"]), mapped

    def _path(self, name: str) -> str:
        return str(Path(self._folder.name) / f"{name}.npy")

    def _start(self) -> None:
        n = str(self.threads)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
        with self._log().open("w") as log:
            self._process = subprocess.Popen(
                [self._python, str(WORKER), self.tool, "--threads", n],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self._folder.name,
                env={**os.environ, **dict.fromkeys(names, n)},
            )
        self.version = str(self._answer()["version"])
        if self._loaded:
            self._ask(do="load", **self._loaded)

    def _ask(self, **request: Any) -> dict[str, Any]:
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        began = time.monotonic()
        alarm = threading.Timer(LIMIT, self._process.kill)
        alarm.start()
        line = self._process.stdout.readline()
        alarm.cancel()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = self._stop()
        said = self._log().read_text(errors="replace").strip().splitlines()
        end = f"hung and was stopped after {LIMIT:.0f} s" if time.monotonic() - began >= LIMIT else f"ended with {code}"
        raise RivalError(f"{self.tool} {end}: {said[-1] if said else 'it said nothing'}"[:400])

    def _log(self) -> Path:
        return Path(self._folder.name) / "stderr.txt"

    def _stop(self) -> int | None:
        if self._process is None:
            return None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # the end of its jobs, at which it goes by itself
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._process.stdout.close()
        self._process = None
        return code


def equal_error(records: Sequence[dict[str, Any]], bar: float) -> tuple[dict[str, Any], bool]:
    """Of one tool's records the fastest whose mean error is at most ``bar`` px, else the most accurate, and which it is."""
    reached = [record for record in records if record["error_mean"] <= bar]
    if reached:
        return min(reached, key=lambda record: record["seconds"]), True
    return min(records, key=lambda record: record["error_mean"]), False


def install(folder: Path) -> Path:
    """Make a virtual environment with `PACKAGES` and return its Python."""
    venv.EnvBuilder(with_pip=True).create(folder)
    python = folder.resolve() / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--install", type=Path, metavar="DIR", required=True, help="make an environment with the rivals"
    )
    python = install(parser.parse_args().install)
    for tool in ("greedy", "ants", "elastix"):
        subprocess.run([python, WORKER, "--check", tool], check=True)
    print(f"export REGFRAME_RIVALS={python}", file=sys.stdout)


if __name__ == "__main__":
    main()
