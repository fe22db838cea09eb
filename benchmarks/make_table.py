"""The document and the figure made of what the benchmarks wrote down.

A benchmark appends a JSON line per measurement to the file that ``REGFRAME_BENCH_JSON`` names (`records.record`), and this
renders them::

    python benchmarks/make_table.py results.jsonl -o benchmarks/RESULTS.md

The figure lies beside the document, with the suffix ``.svg``. A later line about the same thing replaces an earlier one,
so that one benchmark can be run again without the others.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from rivals import equal_error

from regframe.report.figures import INK, LEVELS, MUTED, RULE

Record = dict[str, Any]

KEPT = "<!-- from here on: scripts that print their own tables -->"
KEYS: dict[str, tuple[str, ...]] = {
    "register": ("pair", "tool", "settings", "threads"),
    "scale": ("side", "threads"),
    "ops": ("op", "size", "channels", "T", "dtype", "threads", "device"),
    "energy": ("what",),
    "profile": ("what", "stage"),
    "cells": ("what", "threads"),
}
"""Per benchmark, what makes two records ones of the same thing."""


def circumstances() -> Record:
    """Where, when, with what and by which command this process measures."""
    model = platform.machine()
    cpus = Path("/proc/cpuinfo")
    if cpus.exists():
        names = [line.split(":")[1].strip() for line in cpus.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    return {
        "bench": "circumstances",
        "date": datetime.date.today().isoformat(),
        "machine": f"{model}, {os.cpu_count()} cores",
        "versions": {"Python": platform.python_version()}
        | {name: version(name) for name in ("regframe", "torch", "numpy")},
        "command": shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]),
    }


@dataclass
class Machine:
    """All that was measured on one machine: the latest record of each thing, by benchmark."""

    name: str
    dates: set[str] = field(default_factory=set)
    versions: dict[str, str] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    records: dict[str, dict[tuple[Any, ...], Record]] = field(default_factory=dict)

    def of(self, bench: str) -> list[Record]:
        """The records of one benchmark, in the order in which they were first seen."""
        return list(self.records.get(bench, {}).values())


def read(lines: Iterable[str]) -> list[Machine]:
    """The machines in JSON lines; a record belongs to the last circumstances above it, else to the first below."""
    records = [json.loads(line) for line in lines if line.strip()]
    given = [record for record in records if record["bench"] == "circumstances"]
    machines: dict[str, Machine] = {}

    def enter(record: Record) -> Machine:
        machine = machines.setdefault(record["machine"], Machine(record["machine"]))
        machine.dates.add(record["date"])
        machine.versions |= record["versions"]
        if record["command"] not in machine.commands:
            machine.commands.append(record["command"])
        return machine

    current = enter(given[0] if given else circumstances())
    for record in records:
        bench = record["bench"]
        if bench == "circumstances":
            current = enter(record)
            continue
        if bench not in KEYS:
            raise ValueError(f"wanted a bench of {', '.join(KEYS)}, got {bench!r} in {record}")
        if "version" in record:
            current.versions[record["tool"]] = record["version"]
        current.records.setdefault(bench, {})[tuple(record.get(key) for key in KEYS[bench])] = record
    return list(machines.values())


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A Markdown table; None is a dash, a float has three digits."""

    def cell(value: object) -> str:
        if value is None:
            return "–"
        return digits(value) if isinstance(value, float) else str(value)

    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(map(cell, line)) + " |" for line in lines] + [""]


def digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    size = f"{value:.3g}"
    return f"{value:.0f}" if "e+" in size else f"{float(size):.6f}".rstrip("0").rstrip(".") if "e" in size else size


def register_part(records: Sequence[Record]) -> list[str]:
    """Per pair every run, then each rival's fastest at regframe's error."""
    out = ["## Time to a given error", ""]
    for pair in dict.fromkeys(record["pair"] for record in records):
        mine = [record for record in records if record["pair"] == pair]
        tools = {tool: [r for r in mine if r["tool"] == tool] for tool in dict.fromkeys(r["tool"] for r in mine)}
        threads = " or ".join(sorted({str(record["threads"]) for record in mine}))
        out += [f"### {pair[0].upper()}{pair[1:]}, {threads} threads", ""]
        out += table(
            ["tool", "settings", "s", "error mean, px", "p95, px", "worst round's mean, px"],
            [
                [r["tool"], r["settings"], r["seconds"], r["error_mean"], r["error_p95"], r.get("error_worst")]
                for runs in tools.values()
                for r in sorted(runs, key=lambda r: r["seconds"])
            ],
        )
        if "regframe" not in tools or len(tools) == 1:
            continue
        ours = tools["regframe"][0]
        rows = []
        for tool, runs in tools.items():
            if tool == "regframe":
                continue
            best, reached = equal_error(runs, ours["error_mean"])
            said = "fastest at that error or below" if reached else "none reaches it; its most accurate"
            row = [tool, said, best["seconds"], best["error_mean"], best["seconds"] / ours["seconds"]]
            fast, reached = equal_error(tools["regframe"], best["error_mean"])
            rows.append([*row, *([fast["seconds"], best["seconds"] / fast["seconds"]] if reached else [None, None])])
        out += [
            f"regframe ({ours['settings']}): {digits(ours['seconds'])} s, {digits(ours['error_mean'])} px. At that error:",
            "",
        ]
        head = [
            "tool",
            "run",
            "s",
            "error mean, px",
            "its time / regframe's",
            "regframe at that error or below, s",
            "ratio",
        ]
        out += table(head, rows)
    return out


def scale_part(records: Sequence[Record]) -> list[str]:
    """Time and memory by size."""
    records = sorted(records, key=lambda record: record["side"])
    base = next((record["seconds"] for record in records if record["side"] == 1024), None)
    rows = [
        [
            f"{r['side']} × {r['side']}", r["mpx"], r["seconds"], r["seconds"] / r["mpx"], base and r["seconds"] / base,
            r["peak_bytes"] / 2**20, r["peak_bytes"] / (r["mpx"] * 2**20), r["error_mean"], r["error_p95"],
        ]
        for r in records
    ]  # fmt: skip
    head = [
        "pixels", "Mpx", "s", "s per Mpx", "time / 1 Mpx's", "peak beyond the images, MiB", "bytes per pixel",
        "error mean, px", "p95, px",
    ]  # fmt: skip
    threads = " or ".join(sorted({str(record["threads"]) for record in records}))
    return [f"## Size, {threads} threads", "", *table(head, rows)]


def ops_part(records: Sequence[Record]) -> list[str]:
    """The kernels against torch."""
    keys = ["op", "size", "channels", "T", "dtype", "threads", "device"]
    times = ["kernel_ms", "eager_ms", "split_ms", "compiled_ms", "ratio"]
    head = [*keys, "kernel, ms", "eager, ms", "row-split eager, ms", "compiled, ms", "ratio"]
    return ["## Kernels", "", *table(head, [[r.get(key) for key in keys + times] for r in records])]


def energy_part(records: Sequence[Record]) -> list[str]:
    """One step of the optimiser."""
    rows = [[r["what"], r.get("threads"), r["ms"], r.get("rival_ms"), r.get("ratio")] for r in records]
    return ["## One evaluation of the energy", "", *table(["what", "threads", "ms", "rival, ms", "ratio"], rows)]


def profile_part(records: Sequence[Record]) -> list[str]:
    """Where the time goes."""
    out = []
    for what in dict.fromkeys(record["what"] for record in records):
        mine = sorted((r for r in records if r["what"] == what), key=lambda r: -r["seconds"])
        out += [f"## Where the time goes: {what}, {mine[0]['threads']} threads", ""]
        out += table(["stage", "s", "share, %"], [[r["stage"], r["seconds"], 100 * r["share"]] for r in mine])
    return out


def cells_part(records: Sequence[Record]) -> list[str]:
    """Splatting against a histogram and a filter."""
    keys = ["what", "threads", "seconds", "usual_seconds", "error", "usual_error"]
    head = ["what", "threads", "s", "histogram and filter, s", "error over the peak", "theirs"]
    rows = [[f"{r[key]:.0e}" if "error" in key else r[key] for key in keys] for r in records]
    return ["## Cells onto pixels", "", *table(head, rows)]


PARTS = {
    "register": register_part,
    "scale": scale_part,
    "ops": ops_part,
    "energy": energy_part,
    "profile": profile_part,
    "cells": cells_part,
}


def document(machines: Sequence[Machine], figure: str | None, made: str) -> str:
    """Markdown: per machine its circumstances and a part per benchmark."""
    out = ["# Results", "", f"Made by `{made}`; medians of interleaved repeats.", ""]
    if figure:
        out += [f"![Left, error against time per tool and setting; right, time against size]({figure})", ""]
    for machine in machines:
        versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
        out += [f"**{machine.name}**, {' and '.join(sorted(machine.dates))}; {versions}:", ""]
        out += [f"    {command}" for command in machine.commands] + [""]
        for bench, part in PARTS.items():
            if machine.of(bench):
                out += part(machine.of(bench))
    return "\n".join(out).rstrip() + "\n"


def draw(machines: Sequence[Machine]) -> Figure | None:
    """Error against time (a marker per tool and setting, a fill per pair) and time against size; None without either."""
    register = [record for machine in machines for record in machine.of("register")]
    scale = [(machine, machine.of("scale")) for machine in machines if machine.of("scale")]
    if not register and not scale:
        return None
    figure = Figure(figsize=(9.0, 3.8), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.set(xscale="log", yscale="log")
        for name, spine in axes.spines.items():
            spine.set_visible(name in ("left", "bottom"))
            spine.set_color(RULE)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.tick_params(which="both", colors=MUTED, labelsize=8, length=3)
        axes.tick_params(which="minor", length=0)
        axes.grid(color=RULE, linewidth=0.5)
        axes.set_axisbelow(True)
    pairs = list(dict.fromkeys(record["pair"] for record in register))
    for i, tool in enumerate(dict.fromkeys(record["tool"] for record in register)):
        color, marker = LEVELS[i % len(LEVELS)], "osD^v"[i % 5]
        look = {
            "s": 34,
            "marker": marker,
            "edgecolor": color,
            "linewidth": 1.2,
            "zorder": 4 if tool == "regframe" else 3,
        }
        for pair in pairs:
            runs = [record for record in register if (record["tool"], record["pair"]) == (tool, pair)]
            x, y = ([record[key] for record in runs] for key in ("seconds", "error_mean"))
            left.scatter(x, y, facecolor=color if pair == pairs[0] else "white", **look)
        left.scatter([], [], facecolor=color, label=tool, **look)
    for pair in pairs if len(pairs) > 1 else []:
        face = MUTED if pair == pairs[0] else "white"
        left.scatter([], [], s=34, marker="o", facecolor=face, edgecolor=MUTED, label=pair)
    left.set_xlabel("time, s", fontsize=9, color=MUTED)
    left.set_ylabel("mean error, px", fontsize=9, color=MUTED)
    left.set_title("Time to a given error", fontsize=10, color=INK, loc="left")
    if register:
        figure.legend(fontsize=8, frameon=False, labelcolor=INK, loc="outside lower left", ncols=6, handletextpad=0.2)
    for i, (machine, records) in enumerate(scale):
        color = LEVELS[i % len(LEVELS)]
        records = sorted(records, key=lambda record: record["mpx"])
        x, y = ([record[key] for record in records] for key in ("mpx", "seconds"))
        right.plot(x, y, "o-", color=color, markersize=5, label=machine.name)
        right.plot(x, [y[0] * size / x[0] for size in x], ":", color=MUTED, linewidth=1)
        right.annotate("in proportion", (x[-1], y[0] * x[-1] / x[0]), (-4, 4), textcoords="offset points", fontsize=8,
                       color=MUTED, ha="right")  # fmt: skip
    if scale:
        right.set_xticks(sorted({record["mpx"] for _, records in scale for record in records}))
    right.set_xlabel("size, Mpx", fontsize=9, color=MUTED)
    right.set_ylabel("time, s", fontsize=9, color=MUTED)
    right.set_title("regframe, time by size", fontsize=10, color=INK, loc="left")
    if len(scale) > 1:
        right.legend(fontsize=8, frameon=False, labelcolor=INK)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, help="JSON lines that benchmarks wrote to $REGFRAME_BENCH_JSON")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.md", help="the figure lies beside it")
    arguments = parser.parse_args()
    machines = read(arguments.records.read_text().splitlines())
    figure = draw(machines)
    drawn = arguments.output.with_suffix(".svg")
    if figure:
        figure.savefig(drawn, metadata={"Date": None})
    made = f"python benchmarks/make_table.py {arguments.records.name} -o {arguments.output.name}"
    before = arguments.output.read_text() if arguments.output.exists() else ""
    kept = before[before.index(KEPT) :] if KEPT in before else ""  # what scripts of their own have printed
    arguments.output.write_text(
        document(machines, drawn.name if figure else None, made).rstrip("\n") + "\n\n" * bool(kept) + (kept or "\n")
    )


if __name__ == "__main__":
    main()
