"""Everything that only a machine with a GPU can show, in one run of less than 8 minutes; writes benchmarks/GPU.md.

    python benchmarks/gpu.py                 # on a machine with an NVIDIA GPU: builds, checks, times
    python benchmarks/gpu.py --dry           # anywhere: the same stages on the CPU, at tiny sizes

Stages run one after another, and what each found is kept in build/gpu.json: the same command goes on after the last one that was
done. A stage that would begin after ``--minutes`` is left out, and named. Without REGFRAME_NO_CUDA a build takes about 3 minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import regframe as rf
from regframe import ops, reference
from regframe.fit.frames import Increment
from regframe.fit.halvings import Halvings
from regframe.fit.mapspace import MapSpace
from regframe.fit.prior import velocity_space
from regframe.fit.pyramid import build_levels

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from bench_energy import make_case  # noqa: E402

PLANES = (1024, 2048, 4096, 8192)
"""Pixels along the side of an image: 1, 4, 16 and 64 Mpx."""
SOLIDS = (128, 256)
"""Voxels along the side of a volume."""
CPU_MOST = 5_000_000
"""Pixels up to which the CPU is timed beside: larger ones would take all the time there is."""
TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-9}
"""Largest relative L2 difference from the reference, by dtype: single precision decides in which cell a position at a rim is."""


@dataclass
class Run:
    """What all stages share.

    Args:
        dry: whether it is rehearsed on the CPU at tiny sizes.
        until: when the last stage may begin, by `time.monotonic`.
        found: what each stage found, by its name.
        where: file in which that is kept.
    """

    dry: bool
    until: float
    where: Path
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where everything is tried."""
        return torch.device("cpu" if self.dry else "cuda:0")

    @property
    def sides(self) -> list[tuple[int, ...]]:
        """Shapes of the images and volumes that are timed."""
        if self.dry:
            return [(48, 48), (14, 14, 14)]
        return [*((n, n) for n in PLANES), *((n, n, n) for n in SOLIDS)]

    def times(self, run: Callable[[], Any], rounds: int = 7) -> float:
        """Median seconds of a call, the device waited for; the first two are not counted."""
        taken = []
        for turn in range(3 if self.dry else rounds + 2):
            began = time.perf_counter()
            run()
            if not self.dry:
                torch.cuda.synchronize()
            if turn > 1 or self.dry:
                taken.append(time.perf_counter() - began)
        return statistics.median(taken)


def relative(a: Tensor, b: Tensor) -> float:
    """Relative L2 distance of two tensors, on the host."""
    a, b = a.cpu().double(), b.cpu().double()
    return float((a - b).norm() / b.norm().clamp(min=1e-300))


# ---------------------------------------------------------------------------------------------------------------- stages


def machine(run: Run) -> dict[str, Any]:
    """What is there."""
    facts: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "cores": os.cpu_count()}
    facts["device"] = "the CPU (dry)" if run.dry else torch.cuda.get_device_name(0)
    nvcc = shutil.which("nvcc")
    if nvcc:
        facts["nvcc"] = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout.split("release ")[
            -1
        ][:4]
    return facts


def build(run: Run) -> dict[str, Any]:
    """The kernels of this build: made for this GPU where there are none yet; in a dry run every source is compiled."""
    began = time.perf_counter()
    if run.dry:
        if os.environ.get("REGFRAME_NO_CUDA") == "1":
            return {"kernels": "not compiled: REGFRAME_NO_CUDA"}
        said = subprocess.run(["sh", str(ROOT / "csrc" / "check_cuda.sh")], capture_output=True, text=True,
                              env={**os.environ, "PYTHON": sys.executable})  # fmt: skip
        if said.returncode:
            raise SystemExit(said.stderr)
        return {"kernels": said.stdout.strip().replace("\n", ", "), "seconds": time.perf_counter() - began}
    if ops.has_kernel("cuda"):
        return {"kernels": "there already"}
    major, minor = torch.cuda.get_device_capability(0)
    env = {**os.environ, "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}", "MAX_JOBS": str(os.cpu_count())}
    subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=ROOT, env=env, check=True)
    run.found["build"] = {"kernels": f"built for {major}.{minor}", "seconds": time.perf_counter() - began}
    keep(run)
    os.execv(sys.executable, [sys.executable, *sys.argv])  # what was built is loaded by the new process


def case(ndim: int, dtype: torch.dtype, device: torch.device, side: int = 0) -> dict[str, Any]:
    """Arguments of every op: a smooth bend of a random image."""
    side = side or (40 if ndim == 2 else 14)
    generator = torch.Generator().manual_seed(0)
    shape, nodes, spacing = (side,) * ndim, (9,) * ndim, side / 6

    def noise(*size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64).to(dtype).to(device)

    velocity = (noise(3, ndim, *nodes) - 0.5) * (side / 10)
    matrix = torch.cat(
        [torch.eye(ndim, dtype=torch.float64) * 0.98, torch.full((ndim, 1), 0.3, dtype=torch.float64)], dim=1
    )
    flow = ([spacing] * ndim, [-spacing] * ndim, 6)
    path = ops.Path(velocity, matrix.to(device), shape, (0,) * ndim, (1.0,) * ndim, (0.0,) * ndim, *flow)
    scale = torch.tensor([[0.5, 0.5], [0.3, 0.3]], dtype=torch.float64)
    return {
        "path": path, "moving": noise(2, *shape), "fixed": noise(2, *shape), "weight": noise(*shape), "scale": scale,
        "points": noise(500, ndim) * side, "flow": (velocity, *flow),
    }  # fmt: skip


def results(made: dict[str, Any]) -> dict[str, list[Tensor]]:
    """Value and gradients of every op."""
    path, moving = made["path"], made["moving"].clone().requires_grad_()
    leaves = [moving, path.velocity.clone().requires_grad_(), path.matrix.clone().requires_grad_()]
    warped = ops.warp(leaves[0], *path._replace(velocity=leaves[1], matrix=leaves[2]))
    out = {"warp": [warped.detach(), *torch.autograd.grad((warped * made["fixed"]).sum(), leaves)]}
    fit = ops.contrast(path, made["moving"], made["fixed"], made["weight"], made["scale"], made["scale"])
    out["contrast"] = list(fit)
    out["information"] = list(ops.information(path, made["moving"], made["fixed"], made["weight"]))
    out["correlation"] = list(ops.correlation(warped.detach(), made["fixed"], made["weight"], 4, 1e-4))
    for there in (True, False):
        inputs = [made["points"].clone().requires_grad_(), made["flow"][0].clone().requires_grad_()]
        end = ops.flow_points(inputs[0], inputs[1], *made["flow"][1:], there)
        out[f"points {'to moving' if there else 'to fixed'}"] = [
            end.detach(),
            *torch.autograd.grad(end.square().sum(), inputs),
        ]
    return out


def values(run: Run) -> dict[str, Any]:
    """Every op against its twin in plain torch, float64 on the host; and whether two runs give the same bytes."""
    found: dict[str, Any] = {}
    for ndim in (2, 3):
        exact = results_of_reference(case(ndim, torch.float64, torch.device("cpu")))
        for dtype, most in TOLERANCE.items():
            made = case(ndim, dtype, run.device)
            first, second = results(made), results(made)
            for name, parts in first.items():
                worst = max(relative(a, b) for a, b in zip(parts, exact[name], strict=True))
                same = all(torch.equal(a, b) for a, b in zip(parts, second[name], strict=True))
                if not (worst < most and same):
                    raise SystemExit(
                        f"{name}, {ndim}D, {dtype}: off by {worst:.2g} (most {most:g}), same bytes twice: {same}"
                    )
                found[f"{name}, {ndim}D, {str(dtype)[6:]}"] = worst
    return found


def results_of_reference(made: dict[str, Any]) -> dict[str, list[Tensor]]:
    """`results` by the reference."""
    before = os.environ.get("REGFRAME_REFERENCE")
    os.environ["REGFRAME_REFERENCE"] = "1"
    try:
        return results(made)
    finally:
        os.environ.pop("REGFRAME_REFERENCE")
        if before is not None:
            os.environ["REGFRAME_REFERENCE"] = before


def sanitizer(run: Run) -> dict[str, Any]:
    """compute-sanitizer on every op at small size: memory, and races within a block."""
    tool = shutil.which("compute-sanitizer")
    if run.dry or tool is None:
        return {"memcheck": "left out: dry" if run.dry else "left out: no compute-sanitizer"}
    found = {}
    for kind in ("memcheck", "racecheck"):
        command = [tool, "--tool", kind, "--error-exitcode", "9", sys.executable, str(Path(__file__)), "--small"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=150)
        found[kind] = "clean" if said.returncode == 0 else f"FAILED: {said.stdout[-600:]}"
    return found


def timed_ops(run: Run) -> dict[str, Any]:
    """Seconds of every op, value and gradient: here, on the CPU, and in plain torch on the same device."""
    rows = []
    for shape in run.sides:
        made = case(len(shape), torch.float32, run.device, shape[0])
        row: dict[str, Any] = {"shape": shape}

        def warp(made: dict[str, Any] = made) -> None:
            velocity = made["path"].velocity.clone().requires_grad_()
            out = ops.warp(made["moving"], *made["path"]._replace(velocity=velocity))
            torch.autograd.grad(out.sum(), velocity)

        def contrast(made: dict[str, Any] = made) -> None:
            ops.contrast(made["path"], made["moving"], made["fixed"], made["weight"], made["scale"], made["scale"])

        def information(made: dict[str, Any] = made) -> None:
            ops.information(made["path"], made["moving"][:1], made["fixed"][:1], made["weight"])

        def correlation(made: dict[str, Any] = made) -> None:
            ops.correlation(made["fixed"].roll(1, -1), made["fixed"], made["weight"], 8, 1e-4)

        calls = (("warp", warp), ("contrast", contrast), ("information", information), ("correlation", correlation))
        for name, call in calls:
            row[name] = run.times(call)
            if math.prod(shape) <= CPU_MOST:
                row[f"{name}, plain torch"] = run.times(lambda call=call: _plain(call), 1)
        rows.append(row)
    return {"rows": rows}


def _plain(call: Callable[[], Any]) -> None:
    os.environ["REGFRAME_REFERENCE"] = "1"
    try:
        call()
    finally:
        os.environ.pop("REGFRAME_REFERENCE")


def energies(run: Run) -> dict[str, Any]:
    """Seconds of one evaluation, value and gradient, three channels: here, literally in torch (float32) here, and on the CPU."""
    rows = []
    for shape in run.sides:
        if len(shape) == 3:
            continue
        ours, literal = make_case(shape[0], 3, torch.float32, run.device)
        row: dict[str, Any] = {"shape": shape, "energy": run.times(ours)}
        if math.prod(shape) <= 4 * CPU_MOST:
            row["literal"] = run.times(literal, 3)
        if math.prod(shape) <= CPU_MOST and not run.dry:
            row["cpu"] = run.times(make_case(shape[0], 3, torch.float32)[0], 3)
        rows.append(row)
    return {"rows": rows}


def pair(shape: tuple[int, ...]) -> tuple[rf.Image, rf.Image]:
    """Two images of one smooth thing, the moving one bent by about a hundredth of its side."""
    ndim, generator = len(shape), torch.Generator().manual_seed(1)
    mode = "bicubic" if ndim == 2 else "trilinear"
    image = sum(
        torch.nn.functional.interpolate(
            torch.rand((1, 1, *(max(2, n // k) for n in shape)), generator=generator), shape, mode=mode
        )[0]
        for k in (4, 16)
    )
    assert isinstance(image, Tensor)
    bend = torch.nn.functional.interpolate(
        torch.randn((1, ndim, *(5,) * ndim), generator=generator), shape, mode=mode, align_corners=True
    )[0]
    at = rf.Grid(shape).coords().to(torch.float32).movedim(-1, 0) + bend * max(shape) / 150
    warped = reference.sample_image(image, at.movedim(0, -1))
    return rf.Image(image, rf.Grid(shape)), rf.Image(warped, rf.Grid(shape))


def fits(run: Run) -> dict[str, Any]:
    """Seconds of whole fits from ``init="identity"``, also on the CPU where the pair is small, and how far both maps differ."""
    rows = []
    for shape in run.sides:
        sides = pair(shape)
        options = {
            "pyramid": {"max_pixels": max(64, math.prod(shape))},
            "optimizer": {"max_iter": 5 if run.dry else 200},
        }
        config = rf.Config.model_validate(options)

        def fit(device: str, sides: Any = sides, config: Any = config) -> tuple[rf.Result, float]:
            began = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = rf.register(*sides, metric="contrast", init="identity", config=config, device=device)
            return found, time.perf_counter() - began

        here, seconds = fit(str(run.device))
        again, second = fit(str(run.device))
        at = sides[1].grid.resampled(tuple(max(1.0, n / 40) for n in shape)).coords()
        row: dict[str, Any] = {"shape": shape, "first": seconds, "second": second}
        row["same bytes"] = bool(torch.equal(here.transform.points(at), again.transform.points(at)))
        if math.prod(shape) <= CPU_MOST and not run.dry:
            other, row["cpu"] = fit("cpu")
            row["off_px"] = float((here.transform.points(at) - other.transform.points(at)).norm(dim=-1).max())
        rows.append(row)
    return {"rows": rows}


def graph(run: Run) -> dict[str, Any]:
    """One evaluation captured into a CUDA graph (velocity, kernel, adjoint): the same bytes as outside, and its time."""
    side = 48 if run.dry else 1024
    images = [Halvings(image).on(run.device) for image in pair((side, side))]
    level = build_levels(*images, torch.eye(3, dtype=torch.float64), rf.Config())[-1]
    metric = rf.metric("contrast")
    metric.prepare(rf.Image(level.fixed, level.fixed_grid), rf.Image(level.moving, level.moving_grid))
    maps = MapSpace(torch.eye(3, dtype=torch.float64), Increment("affine", 2, float(side)),
                    velocity_space(rf.Grid((side, side)), rf.Config()).on(run.device))  # fmt: skip
    from regframe.fit.energy import Energy

    energy = Energy(level, metric, maps, level.fixed_weight, 1e5)
    assert maps.space is not None
    u = torch.randn(maps.space.size, generator=torch.Generator().manual_seed(0)).to(run.device) * 0.01
    path = energy.path(torch.cat([torch.zeros(6, device=run.device), u]), level.moving_grid)

    def step() -> list[Tensor]:
        assert maps.space is not None
        moved = path._replace(velocity=maps.space.velocity(u))
        value, v_grad, m_grad = energy._mismatch(moved)
        return [value, m_grad, maps.space.adjoint(v_grad)]

    plain = [t.clone() for t in step()]
    if run.dry:
        return {"step": run.times(step)}
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        captured = step()
    recorded.replay()
    torch.cuda.synchronize()
    same = all(torch.equal(a, b) for a, b in zip(plain, captured, strict=True))
    return {"step": run.times(step, 50), "replayed": run.times(recorded.replay, 50), "same bytes": same}


def waits(run: Run) -> dict[str, Any]:
    """How often an evaluation waits for the device: once, for what the affine part of a bend is computed from on the host."""
    if run.dry:
        return {"waits": "left out: dry"}
    ours, _ = make_case(256, 3, torch.float32, run.device)
    ours()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            ours()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"waits": sum("synchron" in str(one.message) for one in said)}


STAGES: dict[str, Callable[[Run], dict[str, Any]]] = {
    "machine": machine, "build": build, "values": values, "waits": waits, "graph": graph, "energies": energies, "fits": fits,
    "ops": timed_ops, "sanitizer": sanitizer,
}  # fmt: skip

# ---------------------------------------------------------------------------------------------------------------- report


def keep(run: Run) -> None:
    """Write what was found so far."""
    run.where.parent.mkdir(parents=True, exist_ok=True)
    run.where.write_text(json.dumps({"dry": run.dry, **run.found}, indent=2) + "\n")


def shown(value: Any) -> str:
    """A cell of a table."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return " x ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def report(run: Run) -> str:
    """The page: one table a stage; times in seconds."""
    lines = [
        "# On a GPU",
        "",
        "Written by `python benchmarks/gpu.py`" + (" --dry: a rehearsal on the CPU." if run.dry else "."),
        "",
    ]
    lines += ["Times are medians in seconds. `values` are relative L2 differences from plain torch in float64.", ""]
    for name in STAGES:
        found = run.found.get(name)
        lines += [f"## {name}", ""]
        if found is None:
            lines += ["Not run: out of time.", ""]
            continue
        rows = found.get("rows") or [{"": key, "found": value} for key, value in found.items()]
        keys = list(dict.fromkeys(key for row in rows for key in row))
        lines += ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
        lines += ["| " + " | ".join(shown(row.get(key, "")) for key in keys) + " |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run what is left, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dry", action="store_true", help="on the CPU, at tiny sizes")
    parser.add_argument("--again", action="store_true", help="forget what earlier runs found")
    parser.add_argument("--minutes", type=float, default=7.0, help="no stage begins after so many")
    parser.add_argument("--state", type=Path, default=ROOT / "build" / "gpu.json")
    parser.add_argument(
        "-o", "--output", type=Path, default=None, help="the page; benchmarks/GPU.md, or build/GPU-dry.md"
    )
    parser.add_argument("--small", action="store_true", help=argparse.SUPPRESS)  # what compute-sanitizer watches
    options = parser.parse_args(arguments)
    if options.small:
        for ndim in (2, 3):
            results(case(ndim, torch.float32, torch.device("cuda:0")))
        torch.cuda.synchronize()
        return 0
    run = Run(options.dry, time.monotonic() + 60 * options.minutes, options.state)
    if not run.dry:
        from regframe import devices

        devices.check("cuda")
    if run.where.exists() and not options.again:
        known = json.loads(run.where.read_text())
        if known.pop("dry") == run.dry:
            run.found = known
    for name, stage in STAGES.items():
        if name in run.found:
            continue
        if time.monotonic() > run.until:
            print(f"{name}: left out, out of time", flush=True)
            continue
        began = time.perf_counter()
        run.found[name] = stage(run)
        keep(run)
        print(f"{name}: {time.perf_counter() - began:.1f} s", flush=True)
    page = options.output or (ROOT / "build" / "GPU-dry.md" if run.dry else ROOT / "benchmarks" / "GPU.md")
    page.write_text(report(run))
    print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
