"""The command line: click commands over the public API. Nothing here imports torch before a command needs it.

One module per command: ``register``, ``refine``, ``correct``, ``view``, ``apply``, ``evaluate``, ``compose``, ``report``,
``batch`` (each job of it: ``job``), ``stack``, ``rounds``, ``mosaic``, ``exchange`` (export, import),
``inspect`` (info, plugins, doctor), ``demo``,
``shrink`` (shrink-case), ``bench``;
``progress`` is the display of all, ``interrupts`` how all end when told to, ``leftovers`` what doctor says of interrupted runs,
``streams`` puts standard input and output in place of files, ``asread`` says how a run read a file that is moved,
``whereabouts`` whether points lie where they belong, ``swapped`` whether x and y of landmarks are exchanged,
``folders`` what a folder of several results is, ``forecast`` what a run would take,
``clusters`` the Dask workers of a command, ``outside`` lists the commands of installed packages.
"""

from __future__ import annotations

import gc

import click

# Loading torch makes some 170 000 objects that stay. At Python's own threshold of 700 they are searched for garbage again and
# again, a fifteenth of the time of a short command. What the user's program has raised further, or turned off, is kept.
if 0 < gc.get_threshold()[0] < 10_000:
    gc.set_threshold(10_000)

from ..versions import version
from ._common import max_bytes_option
from .apply import apply
from .batch import batch
from .bench import bench
from .compose import compose
from .correct import correct
from .demo import demo
from .evaluate import evaluate
from .exchange import export, import_
from .inspect import doctor, info, plugins
from .job import batch_job
from .mosaic import mosaic
from .outside import Whole
from .refine import refine
from .register import register
from .report import report
from .rounds import rounds
from .shrink import shrink_case
from .stack import stack
from .view import view

HELP = """Align images and point tables of tissue: one verb, one map, in both directions.

Exit codes: 0 done, 3 done but the verdict is worse than --require asks (fail, if nothing is asked), 2 bad input, 1 a defect.
"""


def _say_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"regframe {version()}")
        ctx.exit()


version_option = click.Option(
    ["--version"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_say_version,
    help="Say the version and end.",
)

main = Whole(
    name="regframe",
    help=HELP,
    params=[max_bytes_option, version_option],
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    register,
    refine,
    correct,
    view,
    apply,
    evaluate,
    compose,
    stack,
    rounds,
    mosaic,
    batch,
    batch_job,
    report,
    export,
    import_,
    info,
    plugins,
    doctor,
    demo,
    shrink_case,
    bench,
):
    main.add_command(command)

__all__ = ["main"]
