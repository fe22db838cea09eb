"""``regframe batch-job``: the command that a batch runs for each job; not meant for people."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from ._common import EXIT_FAIL, parse_pairs, sentence
from .apply import apply
from .evaluate import evaluate
from .register import register

_COMMANDS: dict[str, click.Command] = {"register": register, "evaluate": evaluate, "apply": apply}


@click.command(hidden=True, name="batch-job")
@click.argument("folder")
def batch_job(folder: str) -> None:
    """Run the commands of one job, read as a line of JSON from stdin, and write how they ended.

    FOLDER is for whoever looks at the list of processes.
    """
    del folder
    from ..batch import pools, work

    order: dict[str, Any] = json.loads(_line())
    work.end_with_parent()
    work.obey(order["memory"])
    pools.trust(order["credentials"])
    arguments = list(order["register"])
    extra = [*order["simpler"], *(option for side in order["sides"] for option in _coarser(side, order["sides"][side]))]
    arguments[arguments.index("--") : arguments.index("--")] = extra  # of an option given twice the last one counts
    outcome, reason = _run("register", arguments)
    broken = []
    if outcome == "done":
        for name, (command, *rest) in order["later"]:
            if order["scheduler"] and rest[:1] == ["image"]:
                rest[1:1] = [f"--scheduler={order['scheduler']}"]
            with _output_of(name, Path(order["folder"])):
                ended, why = _run(command, rest, Path(order["waits"]).touch)
            if ended != "done":
                broken.append(f"{name}: {why}")
    answer = {"outcome": outcome, "reason": reason, "broken": broken}
    Path(order["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def _line() -> bytes:
    """The first line of stdin, read without consuming what follows."""
    return sys.stdin.buffer.raw.readline() if hasattr(sys.stdin.buffer, "raw") else sys.stdin.buffer.readline()


def _coarser(side: str, how: dict[str, Any]) -> list[str]:
    """The option that opens a side one level coarser than usual; empty where there is no such level."""
    import regframe

    options = parse_pairs(how["options"], f"--{side}-set")
    level = options.pop("level", how["level"])
    try:
        pyramid = regframe.open_pyramid(how["path"], how["adapter"], **options)
        if level is None:
            level = regframe.choose_level(pyramid)[0]
    except (ValueError, TypeError, OSError, ImportError):  # `register` will report the fault
        return []
    return [f"--{side}-set=level={level + 1}"] if level + 1 < len(pyramid.levels) else []


@contextlib.contextmanager
def _output_of(name: str, folder: Path) -> Any:
    if name != "evaluate":
        yield
        return
    path = folder / "evaluation.json"
    with path.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        yield


def _run(name: str, arguments: Sequence[str], waits: Callable[[], None] | None = None) -> tuple[str, str]:
    """Run a command; returns how it ended (``done``, ``bad input``, ``disk``, ``memory`` or ``defect``) and why.

    ``waits`` is called once the command only waits for tasks of the cluster.
    """
    from ..batch.work import cause

    command = _COMMANDS[name]
    try:
        code = command.main(list(arguments), prog_name=f"regframe {name}", standalone_mode=False, obj=waits)
    except click.ClickException as error:
        click.echo(f"Error: {error.format_message()}", err=True)
        return cause(error) or "bad input", error.format_message()
    except (Exception, click.Abort) as error:  # noqa: BLE001 - the supervisor gets a sentence, the log the traceback
        traceback.print_exc()
        return cause(error) or "defect", f"{type(error).__name__}: {sentence(error)}"
    if code in (None, 0, EXIT_FAIL):
        return "done", ""
    return "defect", f"{name} ended with exit code {code}"
