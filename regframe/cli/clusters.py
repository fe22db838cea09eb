"""The Dask cluster of a command with ``--scheduler``, and the sentence of one whose work is interrupted."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import interrupts
from ._common import BadInput

if TYPE_CHECKING:
    from ..batch import Cluster

_F = TypeVar("_F", bound=Callable[..., Any])


def scheduler_option(does: str) -> Callable[[_F], _F]:
    """The option ``--scheduler``; ``does`` says what its workers do."""
    return click.option(
        "--scheduler", metavar="ADDRESS", help=f"A Dask scheduler, or its scheduler file, whose workers {does}."
    )


@contextlib.contextmanager
def cluster_at(address: str, here: int | None, what: str) -> Iterator[Cluster | None]:
    """The workers of a scheduler, or None where this process has as many (``here``); says ``what`` is done there.

    Raises ValueError for an address where no scheduler answers; `BadInput` where it is lost and stays away.
    """
    from .. import batch

    waits = click.get_current_context().obj  # function to call once this process only waits for the cluster
    with batch.Cluster(address, first=True) as pool:
        if here is not None and pool.workers <= here:
            yield None
            return
        pool.say = functools.partial(click.echo, err=True)
        click.echo(f"{what} on {pool.name}", err=True)
        if callable(waits):
            waits()
        try:
            yield pool
        except ConnectionError as error:
            raise BadInput(str(error)) from error


def kept_beside(out: Path) -> Path:
    """The folder where what a run measures is kept until its output is written."""
    from ..plugins import PARTIAL

    out = out.absolute()  # "." has no name
    return out.with_name(out.name + PARTIAL)


@contextlib.contextmanager
def kept_when_interrupted(folder: Path, what: str) -> Iterator[None]:
    """A block whose answers are kept in ``folder``: removed when it ends well; where it is interrupted, a sentence says what is.

    ``what`` is the plural of an answer.
    """
    from ..slides.unfinished import STORE

    try:
        yield
    except KeyboardInterrupt as stop:
        number = sum(1 for path in (folder / STORE).glob("*-*.npz") if not path.name.startswith(("tmp-", "round-")))
        interrupts.say(f"interrupted; {number} {what} are kept in {folder}: run the same command again to go on")
        click.get_current_context().exit(interrupts.code_of(stop))
    shutil.rmtree(folder, ignore_errors=True)
