"""One registration tool in a process of its own: jobs come in as JSON lines, seconds and mapped positions go out.

It is run with the Python that has the tool, needs nothing else but numpy, and imports the tool once, so that a job's time
is that of the registration alone. `rivals.Worker` is the other end of the line. By hand it answers one question, whether a
known map comes back with the right order of axes, signs and order of composition::

    python rivals_worker.py --check greedy

Positions are ``[N, 2]``, in pixels, y before x, at this module's border; each tool's own convention stays in its class.
A job of greedy, ANTs or elastix may have ``start``, an affine map ``[2, 3]`` from fixed to moving positions, from which its
bend begins instead of from an affine stage of its own.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Pixels = NDArray[Any]
Job = dict[str, Any]

START = [[0.978148, -0.207912, 27.942], [0.207912, 0.978148, -21.769]]
"""The affine part of `_turned`, as a check hands it over."""


class Tool(ABC):
    """What a job is handed to; ``checks`` names maps of `MAPS` and jobs that must find them."""

    package: ClassVar[str]
    checks: ClassVar[tuple[tuple[str, Job], ...]]

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @abstractmethod
    def load(self, fixed: Pixels, moving: Pixels) -> None:
        """Takes ``[C, H, W]`` images and turns them into the tool's own type; not timed."""

    @abstractmethod
    def register(self, job: Job) -> Any:
        """Aligns the loaded pair and returns the map as the tool has it; this alone is timed."""

    @abstractmethod
    def points(self, found: Any, index: Points) -> Points:
        """Moving positions ``[N, 2]`` of fixed positions ``[N, 2]``."""


def grey(image: Pixels) -> NDArray[np.float32]:
    """``[H, W]`` of ``[C, H, W]``: the luminance of a colour image, for tools that take one channel."""
    weights = [1.0] if len(image) == 1 else [0.299, 0.587, 0.114]
    return np.ascontiguousarray(np.tensordot(weights, image.astype(np.float64), axes=1), dtype=np.float32)


class Regframe(Tool):
    """regframe itself, through the same door as the others, and with all of its channels.

    A job has ``landmarks`` (positions ``moving`` and ``fixed``), ``init`` (otherwise) and ``config`` (settings), each optional.
    """

    package = "regframe"
    checks = (("turned", {}),)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import torch

        import regframe

        torch.set_num_threads(threads)
        self.rf, self.torch = regframe, torch

    def load(self, fixed: Pixels, moving: Pixels) -> None:
        self.pair = [self.rf.Image.from_array(image, axes="cyx") for image in (fixed, moving)]

    def register(self, job: Job) -> Any:
        config = self.rf.Config.model_validate(job.get("config", {}))
        init = job.get("init", "auto")
        if "landmarks" in job:
            p, q = (self.torch.tensor(job["landmarks"][side], dtype=self.torch.float64) for side in ("moving", "fixed"))
            init = self.rf.landmarks(p, q)
        return self.rf.register(*self.pair, init=init, config=config)

    def points(self, found: Any, index: Points) -> Points:
        return found.to_moving(self.torch.from_numpy(index)).numpy()


class Greedy(Tool):
    """picsl-greedy, in memory and in single precision, which is the faster of its two engines.

    A job has ``affine`` (options of each affine stage, the next starting from the last), ``deformable`` (options, or
    absent) and ``invert`` (the moving image's contrast turned round by hand: NCC and WNCC are signed, so they need it).
    """

    package = "picsl-greedy"
    checks = (
        ("shifted", {"affine": ["-dof 6 -m NMI -n 40x40x20"]}),
        ("shifted", {"affine": [], "deformable": "-m NMI -n 60x60x60 -s 8vox 2vox"}),
        ("shifted", {"affine": [], "deformable": "-m NMI -n 60x60x60 -s 8vox 2vox -ref-pad 20x20"}),
        ("turned", {"affine": ["-dof 6 -m NCC 8x8 -n 80x40x20"], "deformable": "-m NMI -n 60x60x60 -s 8vox 2vox"}),
        ("turned", {"affine": [], "start": START, "deformable": "-m NMI -n 60x60x60 -s 8vox 2vox"}),
    )

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import SimpleITK
        from picsl_greedy import GreedyFloat2D

        self.sitk, self.engine = SimpleITK, GreedyFloat2D
        self.folder = tempfile.TemporaryDirectory()

    def load(self, fixed: Pixels, moving: Pixels) -> None:
        one, other = grey(fixed), grey(moving)
        turned = other.max() + other.min() - other
        self.fixed, self.moving, self.inverted = (self.sitk.GetImageFromArray(image) for image in (one, other, turned))

    def register(self, job: Job) -> Any:
        engine, sink = self.engine(), io.StringIO()
        given = {"fixed": self.fixed, "moving": self.inverted if job.get("invert") else self.moving}

        def execute(options: str, out: str) -> None:
            nonlocal given
            command = f"-threads {self.threads} {options} -i fixed moving -o {out}"
            engine.execute(command, out=sink, err=sink, **given, **{out: None})
            given = {}  # the engine keeps what it was handed once

        last, start = None, np.eye(3)
        if "start" in job:  # x before y, and both axes the other way
            (yy, yx, y), (xy, xx, x) = job["start"]
            start = np.array([[xx, xy, -x], [yx, yy, -y], [0.0, 0.0, 1.0]])
            last = f"{self.folder.name}/start.mat"
            np.savetxt(last, start)
        for stage, options in enumerate(job["affine"]):
            execute(f"-a {options} " + (f"-ia {last}" if last else "-ia-identity"), f"affine{stage}")
            last = f"affine{stage}"
        matrix = np.array(engine[last]) if job["affine"] else start
        if "deformable" not in job:
            return matrix, None
        # without -wp 0 the warp comes back rounded to a tenth of a pixel
        execute(f"{job['deformable']} -wp 0 " + (f"-it {last}" if last else ""), "warp")
        return matrix, engine["warp"]

    def points(self, found: Any, index: Points) -> Points:
        matrix, warp = found
        at = index[:, ::-1].copy()  # x, y
        if warp is not None:  # in ITK's axes, applied before the matrix
            field = self.sitk.GetArrayFromImage(warp)  # [H, W, (x, y)]
            at += _bilinear(field, ((at - warp.GetOrigin()) / warp.GetSpacing())[:, ::-1])
        # the matrix is in RAS: both axes point the other way
        out = -((-at) @ matrix[:2, :2].T + matrix[:2, 2])
        return out[:, ::-1]


class Ants(Tool):
    """antspyx; a job has ``stages``, arguments of successive calls of ``ants.registration``."""

    package = "antspyx"
    checks = (
        ("shifted", {"stages": [{"type_of_transform": "Affine", "aff_metric": "mattes"}]}),
        ("shifted", {"stages": [{"type_of_transform": "SyNOnly", "reg_iterations": [100, 100, 100, 50]}]}),
        ("turned", {"stages": [{"type_of_transform": "SyNRA", "reg_iterations": [100, 100, 100, 50]}]}),
        (
            "turned",
            {
                "stages": [
                    {"type_of_transform": "Affine", "aff_metric": "mattes"},
                    {"type_of_transform": "SyNOnly", "reg_iterations": [100, 100, 100, 50]},
                ]
            },
        ),
        (
            "turned",
            {"start": START, "stages": [{"type_of_transform": "SyNOnly", "reg_iterations": [100, 100, 100, 50]}]},
        ),
    )

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import ants
        import pandas

        self.ants, self.table = ants, pandas.DataFrame
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def load(self, fixed: Pixels, moving: Pixels) -> None:
        # its first axis is the array's first, so what it calls x is y here, on both sides alike
        self.pair = [self.ants.from_numpy(grey(image)) for image in (fixed, moving)]

    def register(self, job: Job) -> Any:
        self.folder = tempfile.TemporaryDirectory()  # its maps are files; they go when the next job begins
        maps: list[str] = []
        if "start" in job:
            start = np.array(job["start"])
            maps = [f"{self.folder.name}/start.mat"]
            self.ants.write_transform(
                self.ants.create_ants_transform(
                    "AffineTransform", dimension=2, matrix=start[:, :2], translation=start[:, 2], center=(0.0, 0.0)
                ),
                maps[0],
            )
        for stage, options in enumerate(job["stages"]):
            before = {"initial_transform": maps[0]} if maps else {}
            out = self.ants.registration(*self.pair, outprefix=f"{self.folder.name}/{stage}_", **before, **options)
            maps = out["fwdtransforms"]
        return maps

    def points(self, found: Any, index: Points) -> Points:
        moved = self.ants.apply_transforms_to_points(2, self.table(index, columns=["x", "y"]), found)
        return moved[["x", "y"]].to_numpy()


class Elastix(Tool):
    """itk-elastix: a job has ``maps`` (names of its default parameter maps), ``grid`` (px) and ``set`` (changes to all)."""

    package = "itk-elastix"
    checks = (
        ("shifted", {"maps": ["affine"], "set": {"MaximumNumberOfIterations": "100"}}),
        ("shifted", {"maps": ["bspline"], "grid": 24.0, "set": {"MaximumNumberOfIterations": "100"}}),
        ("turned", {"maps": ["rigid", "affine", "bspline"], "grid": 24.0, "set": {"MaximumNumberOfIterations": "100"}}),
    )

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import itk

        self.itk = itk

    def load(self, fixed: Pixels, moving: Pixels) -> None:
        self.pair = [self.itk.image_from_array(grey(image)) for image in (fixed, moving)]

    def register(self, job: Job) -> Any:
        parameters = self.itk.ParameterObject.New()
        for name in job["maps"]:
            grid = (job["grid"],) if name == "bspline" else ()
            one = parameters.GetDefaultParameterMap(name, 4, *grid)
            for key, value in {"WriteResultImage": "false", **job.get("set", {})}.items():
                one[key] = (value,)
            parameters.AddParameterMap(one)
        # its number of threads comes from the environment: number_of_threads=2 crashes 0.25.4 with three maps
        _, found = self.itk.elastix_registration_method(
            *self.pair, parameter_object=parameters, log_to_console=False, log_to_file=False
        )
        return found

    def points(self, found: Any, index: Points) -> Points:
        with tempfile.TemporaryDirectory() as folder:
            listed = Path(folder) / "points.txt"
            rows = "\n".join(f"{x!r} {y!r}" for y, x in index.tolist())
            listed.write_text(f"point\n{len(index)}\n{rows}\n")
            move = self.itk.TransformixFilter.New(self.pair[1])
            move.SetTransformParameterObject(found)
            move.SetFixedPointSetFileName(str(listed))
            move.SetOutputDirectory(folder)
            move.UpdateLargestPossibleRegion()
            text = (Path(folder) / "outputpoints.txt").read_text()
        moved = re.findall(r"OutputPoint = \[ (\S+) (\S+) \]", text)  # x, y
        return np.array(moved, dtype=np.float64)[:, ::-1]


TOOLS: dict[str, type[Tool]] = {"regframe": Regframe, "greedy": Greedy, "ants": Ants, "elastix": Elastix}


def _bilinear(field: Pixels, at: Points) -> Points:
    """``field`` ``[H, W, 2]`` at the indices ``at`` ``[N, 2]``, continued with its border value."""
    at = np.clip(at, 0, np.array(field.shape[:2]) - 1)
    low = np.minimum(at.astype(int), np.array(field.shape[:2]) - 2)
    (fy, fx), (y, x) = (at - low).T[:, :, None], low.T
    top = (1 - fx) * field[y, x] + fx * field[y, x + 1]
    return (1 - fy) * top + fy * ((1 - fx) * field[y + 1, x] + fx * field[y + 1, x + 1])


_SIDE = 192
"""Pixels per side of the images that a check aligns."""


def _shifted(index: Points) -> Points:
    return index + np.array([6.0, -4.0])


def _turned(index: Points) -> Points:
    """A bend of 3 px, *then* a turn of 12° about the middle and a shift: in the other order it is 1.2 px off."""
    y, x = index.T
    bent = index + 3.0 * np.stack([np.sin(2 * np.pi * x / 120), np.cos(2 * np.pi * y / 100)], axis=1)
    c, s, middle = math.cos(math.radians(12)), math.sin(math.radians(12)), (_SIDE - 1) / 2
    return (bent - middle) @ np.array([[c, s], [-s, c]]) + middle + np.array([6.0, -4.0])


MAPS: dict[str, Callable[[Points], Points]] = {"shifted": _shifted, "turned": _turned}


def _texture(at: Points) -> NDArray[np.float32]:
    """``[N]``: a sum of waves, so that no image has to be interpolated; positive, for ANTs starts from centres of mass."""
    rng = np.random.default_rng(0)
    out = np.zeros(len(at))
    for length in np.geomspace(18, 110, 48):
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        out += math.sqrt(length) * np.cos(2 * np.pi / length * (at @ (np.sin(angle), np.cos(angle))) + phase)
    return (150 + 100 * np.tanh(out / out.std())).astype(np.float32)


def check(tool: Tool) -> list[float]:
    """Mean error in px of each of the tool's checks, amid the image; raises AssertionError above 0.6 px."""
    index = np.stack(np.mgrid[:_SIDE, :_SIDE].astype(float), axis=-1).reshape(-1, 2)
    moving = _texture(index).reshape(1, _SIDE, _SIDE)
    inner = index[((index > 0.3 * _SIDE) & (index < 0.7 * _SIDE)).all(axis=1)][::17]
    errors = []
    for name, job in tool.checks:
        truth = MAPS[name]
        tool.load(_texture(truth(index)).reshape(1, _SIDE, _SIDE), moving)
        moved = tool.points(tool.register(job), inner)
        errors.append(float(np.linalg.norm(moved - truth(inner), axis=1).mean()))
        if not errors[-1] < 0.6:
            raise AssertionError(
                f"{tool.package}: wanted the known map {name!r}, got {errors[-1]:.2f} px off, by {job}"
            )
    return errors


def serve(tool: Tool, line_out: io.TextIOBase) -> None:
    """Answer each line of stdin with one line; an error ends the process, and its traceback is on stderr."""

    def answer(**fields: Any) -> None:
        line_out.write(json.dumps(fields) + "\n")
        line_out.flush()

    answer(version=version(tool.package))
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "check":
            answer(errors=check(tool))
        elif request["do"] == "load":
            tool.load(*(np.load(request[side]) for side in ("fixed", "moving")))
            answer()
        else:
            began = time.perf_counter()
            found = tool.register(request["job"])
            seconds = time.perf_counter() - began
            np.save(request["mapped"], tool.points(found, np.load(request["probes"])))
            answer(seconds=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool", choices=list(TOOLS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--check", action="store_true", help="find known maps, print the errors in px, and end")
    arguments = parser.parse_args()
    # the tools' C++ prints to the file descriptor of stdout, which is the line to the other end: it gets another one
    line_out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    tool = TOOLS[arguments.tool](arguments.threads)
    if arguments.check:
        print(arguments.tool, *(f"{error:.3f}" for error in check(tool)), "px", file=line_out, flush=True)
    else:
        serve(tool, line_out)


if __name__ == "__main__":
    main()
