"""Commands and batch back ends of installed packages: listed by name alone, imported only when they are called.

A package names a click command in the entry-point group ``regframe.commands``, and in ``regframe.pools`` a function that
makes the pool of ``--scheduler NAME://…``.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any

import click

from ..strangers.doors import COMMANDS, POOLS, loaded, package, points
from ._common import BadInput, Main, bad_input


class Outside(click.Command):
    """A command of an installed package before it is imported; help of the group shows whose it is."""

    def __init__(self, point: EntryPoint) -> None:
        super().__init__(point.name, short_help=f"Of {package(point)}.", add_help_option=False)
        self.point = point
        self.context_settings = {"ignore_unknown_options": True, "allow_extra_args": True}

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The context of the command itself, which is imported now; `BadInput` where that fails or gives no command."""
        with bad_input():
            found = loaded(self.point, click.Command, "a click command")
        return found.make_context(info_name, args, parent=parent, **extra)  # type: ignore[no-any-return]


class Whole(Main):
    """The group of all commands, those of installed packages last."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The program itself, and not a call from another one: what it holds at its end is not searched for garbage."""
        atexit.register(
            gc.freeze
        )  # torch alone is 170 000 objects, which the interpreter would look through before it ends
        return super().__call__(*args, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of regframe's commands, then those of installed packages."""
        own = super().list_commands(ctx)
        return [*own, *(name for name in sorted(points(COMMANDS)) if name not in self.commands)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command of regframe, or of an installed package, which is imported when it runs."""
        found = super().get_command(ctx, cmd_name)
        point = points(COMMANDS).get(cmd_name) if found is None else None
        return Outside(point) if point is not None else found


def pool_of(address: str) -> Callable[[int], Any] | None:
    """What makes the pool of ``NAME://…`` for so many jobs; None where no installed package has a back end of this name."""
    name, mark, _ = address.partition("://")
    point = points(POOLS).get(name) if mark else None
    if point is None:
        return None
    with bad_input():
        made = loaded(point, Callable, "a function of an address and a number of jobs")

    def opened(n: int) -> Any:
        pool = made(address, n)
        lacking = [key for key in ("name", "workers", "run", "__enter__", "__exit__") if not hasattr(pool, key)]
        if lacking:
            raise BadInput(
                f"wanted a pool (regframe.batch.pools.Pool) from the back end {name!r} of {package(point)}, got "
                f"{type(pool).__name__} without {', '.join(lacking)}; report this to who wrote it"
            )
        return pool

    return opened
